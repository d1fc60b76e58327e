"""Confidence sets F_n = {f : l_n ≤ f ≤ h_n} with running intersection (theory §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.models.gp import GP
from gpsafe.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Falsification:
    """Where F_n came out empty: an assumption (norm, kernel, noise) is false. Never patched."""

    point: tuple[float, ...]
    output: int
    lower: float
    upper: float

    def __str__(self) -> str:
        return (
            f"F_n is empty at z = {[round(v, 4) for v in self.point]}, output {self.output}: "
            f"l = {self.lower:.6g} > h = {self.upper:.6g}; an assumption (norm bound, kernel or noise) is false"
        )


@dataclass(frozen=True, slots=True, eq=False)
class ConfidenceSet:
    """F_n from all posteriors so far: l_n = max_i (μ_i − w_i), h_n = min_i (μ_i + w_i), clipped to ±B√k(z, z).

    `generations` holds the posteriors that were intersected; `bounds(z, since=i)` uses only those from i on (plus the
    clip), so that a caller that keeps l and h at fixed points can intersect new generations as they come.
    """

    bound: ConfidenceBound
    generations: tuple[GP, ...] = ()

    def update(self, model: GP) -> ConfidenceSet:
        """F_{n+1}: intersects the interval of a new posterior. Refuses a model the bound is not valid for."""
        self.bound.check(model)
        return replace(self, generations=(*self.generations, model))

    @property
    def model(self) -> GP:
        """The newest posterior."""
        if not self.generations:
            raise _require.fail("ConfidenceSet", "at least one model (call update first)", "none")
        return self.generations[-1]

    @property
    def sound(self) -> bool:
        """Whether the bound is a theorem for these models."""
        return self.bound.sound and not self.bound.unchecked

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What membership of f* rests on."""
        return self.bound.assumptions(self.model)

    def bounds(self, z: Tensor, *, since: int = 0) -> tuple[Tensor, Tensor]:
        """l_n, h_n of the residual of the learned outputs at z (*b, d), both (*b, p). May cross: see `falsified`."""
        model = self.model
        high = model.prior_variance(z).sqrt() * self.bound.norms(model.num_outputs).to(z.device)
        low = -high
        for generation in self.generations[since:]:
            lower, upper = self.bound.interval(generation, z)
            low, high = torch.maximum(low, lower), torch.minimum(high, upper)
        return low, high

    def falsified(self, z: Tensor, *, tol: float = 1e-9) -> Falsification | None:
        """A point of z (*b, d) where l_n > h_n + tol, the worst one; None if there is none."""
        low, high = self.bounds(z)
        gap = (low - high).reshape(-1, low.shape[-1])
        worst = int(gap.argmax())
        row, output = divmod(worst, gap.shape[-1])
        if float(gap[row, output]) <= tol:
            return None
        low, high = low.reshape(gap.shape), high.reshape(gap.shape)
        point = z.reshape(-1, z.shape[-1])[row]
        return Falsification(tuple(point.tolist()), output, float(low[row, output]), float(high[row, output]))

    def contains(self, f: Callable[[Tensor], Tensor], z: Tensor, *, tol: float = 1e-9) -> Verdict:
        """Whether l_n ≤ f ≤ h_n at z (*b, d), f: (*b, d) → (*b, p). The value is the largest excess outside F_n.

        VIOLATED refutes f ∈ F_n. HOLDS speaks of the given points only.
        """
        low, high = self.bounds(z)
        value = f(z)
        excess = torch.maximum(low - value, value - high)
        worst = int(excess.argmax())
        amount = float(excess.reshape(-1)[worst])
        point = z.reshape(-1, z.shape[-1])[worst // excess.shape[-1]].tolist()
        return Verdict(amount, amount, tol, witness=f"z = {point}")
