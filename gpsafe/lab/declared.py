"""What a statement about a plant buys: which policies are certified for another B, another noise, fewer rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe._show import short
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import CostBound
from gpsafe.data import Transitions
from gpsafe.lab.explorer import Explorer, Slider, panels
from gpsafe.models import GP

Stated = tuple[float, float, int]
"""B and R over the estimates, and how many rows."""
LEAST = 1e-3  # of a bound that is drawn


@short
@dataclass(frozen=True, slots=True, eq=False)
class Declared:
    """Bands along an axis and bounds of policies, for every statement.

    Attributes:
        bands: statement → lower and upper end of the first output of F_n at the points of the axis, (2, m).
        upper: statement → UCB_n(π) of every policy, (P,).
        axis: the first coordinate of these points, (m,).
        rows: all rows, as points of that axis and what the known part leaves out of the first output, (2, n).
        targets: what the policies are told apart by, (P,).
        budget: d.
        ceiling: T C, the largest cost that there is.
    """

    bands: Mapping[Stated, Tensor]
    upper: Mapping[Stated, Tensor]
    axis: Tensor
    rows: Tensor
    targets: Tensor
    budget: float
    ceiling: float

    @staticmethod
    def of(
        empty: GP,
        rows: Transitions,
        bound: Mixture,
        judge: CostBound,
        policies: Any,
        *,
        targets: Tensor,
        points: Tensor,
        norms: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        noises: Sequence[float] = (1.0, 2.0, 4.0),
        counts: Sequence[int] | None = None,
    ) -> Declared:
        """One set of functions F_n and one bound of all policies for each statement: norms × noises × counts of them.

        Args:
            empty: the model without rows.
            rows: what it may see, in their order.
            bound: as it was declared; its B and R are what the factors multiply.
            judge: of the policies; its task says budget and horizon.
            policies: a class of P policies.
            targets: (P,).
            points: (x, u), (m, nx + nu), along the first coordinate of x.
            norms: B over that of the bound.
            noises: R over that of the bound.
            counts: how many of the first rows; an eighth, a quarter, half and all of them if None.

        Raises:
            ValueError: for a count that the rows do not have.
        """
        total = len(rows.x)
        counts = [max(1, total // part) for part in (8, 4, 2, 1)] if counts is None else counts
        if not counts or min(counts) < 0 or max(counts) > total:
            raise _require.fail("Declared.of", f"counts of 0 to {total} rows", list(counts))
        models = {n: empty.condition(rows.select(slice(n))) if n else empty for n in counts}
        bands, upper = {}, {}
        for stated in ((b, r, n) for b in norms for r in noises for n in models):
            b, r, n = stated
            scaled = replace(bound, rkhs_norm=_scaled(bound.rkhs_norm, b), subgaussian=_scaled(bound.subgaussian, r))
            known = ConfidenceSet(scaled).update(models[n])
            bands[stated] = torch.stack([end[:, 0] for end in known.bounds(points)])
            upper[stated] = judge.evaluate(known, policies).upper
        left_out = (rows.x_next - empty.prior(rows.x, rows.u))[:, empty.outputs[0]]
        task = judge.task
        return Declared(
            bands,
            upper,
            points[:, 0],
            torch.stack([rows.x[:, 0], left_out]),
            targets,
            task.budget,
            task.total_ceiling,
        )

    def certified(self, *, norm: float, noise: float, n: int) -> Tensor:
        """UCB_n(π) ≤ d, (P,) Booleans."""
        return self.upper[norm, noise, n] <= self.budget

    def draw(self, figure: Figure, *, norm: float, noise: float, n: int) -> None:
        """The band of a statement with the rows that it rests on, and the worst cost of every policy."""
        band, costs = panels(figure, 1, 2)
        low, high = self.bands[norm, noise, n]
        plotting.band(band, self.axis, low, high, data=(self.rows[0, :n], self.rows[1, :n]), label="$F_n$")
        reach = max(float(ends.abs().max()) for (b, r, _), ends in self.bands.items() if b <= 1 and r <= 1)
        band.set(xlabel="x", ylabel="what the known part leaves out", ylim=(-1.05 * reach, 1.05 * reach))
        share = float((high - low).mean())
        band.set_title(f"{n} rows: the band is {share:.2g} wide", loc="left")
        inside = self.certified(norm=norm, noise=noise, n=n)
        shown = self.upper[norm, noise, n].clamp(LEAST, self.ceiling).log10()
        for mask, noun, label in ((inside, "certified", "certified"), (~inside, "unknown", "not certified")):
            points = {**plotting.look(noun).points, "marker": "o" if noun == "certified" else "x", "markersize": 3.5}
            costs.plot(self.targets[mask], shown[mask], label=f"{label}: {int(mask.sum())}", **points)
        plotting.limit(costs, math.log10(self.budget), label="allowed")
        costs.set(xlabel="policy", ylabel="worst expected cost over $F_n$")
        costs.set(ylim=(math.log10(LEAST) - 0.1, math.log10(2 * self.ceiling)))
        costs.set_yticks(
            [math.log10(v) for v in (LEAST, self.budget, self.ceiling)], ["0", f"{self.budget:g}", f"{self.ceiling:g}"]
        )
        costs.legend(loc="lower right")
        costs.set_title(f"{int(inside.sum())} of {len(inside)} are certified", loc="left")

    def explorer(self) -> Explorer:
        """State B, R and the number of rows."""
        norms, noises, counts = (tuple(dict.fromkeys(column)) for column in zip(*self.upper, strict=True))
        return Explorer(
            self.draw,
            (10.0, 3.6),
            norm=Slider("B, × estimate", norms, 1.0 if 1.0 in norms else None, lambda v: f"× {v:g}"),
            noise=Slider("R, × estimate", noises, 1.0 if 1.0 in noises else None, lambda v: f"× {v:g}"),
            n=Slider("rows n", counts, counts[-1]),
        )


def _scaled(value: Any, factor: float) -> Any:
    return factor * value if isinstance(value, int | float) else tuple(factor * float(v) for v in value)
