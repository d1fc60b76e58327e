"""Recalibration: a model with its bars stretched until held-out rows say that they fit.

Every recalibrated model is itself a `DynamicsModel`: its `predict` has mean and spread such that the Gaussian interval of the
stated probability 1 − δ *is* the recalibrated one, so that whatever takes a model takes it. Epistemic and aleatoric spread are
stretched alike: the rows show their sum alone. `interval` says the same without the detour through a Gaussian.

Each kind rests on an assumption, in its `assumptions`; none makes a band hold everywhere. They share two: the held-out
rows were never trained on, and, except for `Adaptive`, what is to come resembles them (*exchangeable*).

    ScaledStd    one factor an output, of largest likelihood         residuals Gaussian but for that factor
    Isotonic     all quantiles of (y − μ)/σ (Kuleshov et al. 2018)     one shape of (y − μ)/σ at all points; right for many rows
    Conformal    ⌈(n+1)(1−δ)⌉-th smallest score (Vovk et al. 2005)    exchangeable, nothing else: P(y in interval) ≥ 1 − δ

`Conformal` with groups takes as score the largest of a trajectory: then a whole trajectory is inside with probability 1 − δ, if
trajectories are exchangeable. Under shift see `gpsafe.calibration.shift`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._sealed import Seal, require_unbroken, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.calibration.coverage import ratios, total_std
from gpsafe.calibration.resampling import members
from gpsafe.data import Transitions
from gpsafe.models import GP, DynamicsModel, Prediction


def conformal_quantile(scores: Tensor, delta: float) -> Tensor:
    """The ⌈(n + 1)(1 − δ)⌉-th smallest of n scores (n, *b), infinite where n < 1/δ − 1; (*b,).

    A further score, exchangeable with them, is at most this with probability ≥ 1 − δ (and ≤ 1 − δ + 1/(n + 1) without ties).
    """
    _require.probability("conformal_quantile", "delta", delta)
    n = len(scores)
    rank = math.ceil((n + 1) * (1 - delta))
    if rank > n:
        return torch.full_like(scores[0] if n else scores.new_zeros(scores.shape[1:]), math.inf)
    return scores.sort(0).values[rank - 1]


@dataclass(frozen=True, slots=True, eq=False)
class Recalibrated(ABC):
    """A model and the rows that recalibrated it.

    Attributes:
        model: as it was learnt.
        held_out: rows that it was not trained on.
        delta: 1 − δ is the probability at which the interval is read.
        assumptions: what the interval rests on.

    What was read off the rows is about this model and these rows (and δ, where it depends on it): `dataclasses.replace` refuses
    others.
    """

    model: DynamicsModel
    held_out: Transitions
    delta: float
    assumptions: tuple[Believed, ...]
    _seal: Seal | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_unbroken(type(self).__name__, self)

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.model.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.model.nu

    @property
    def outputs(self) -> tuple[int, ...]:
        """Learned states."""
        return tuple(getattr(self.model, "outputs", range(self.nx)))

    @abstractmethod
    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """See `DynamicsModel`."""

    def interval(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper end (*b, nx) for the next state."""
        found = self.predict(x, u)
        half = _gaussian(self.delta) * total_std(found)
        return found.mean - half, found.mean + half

    @abstractmethod
    def condition(self, data: Transitions) -> Self:
        """The model after more data, recalibrated on the same held-out rows.

        Raises:
            ValueError: if one of them is among `data`.
        """

    def _learnt(self, data: Transitions) -> DynamicsModel:
        """The model itself after more data."""
        kept = set(_rows(self.held_out))
        if twice := sum(row in kept for row in _rows(data)):
            raise _require.fail(f"{type(self).__name__}.condition", UNTOUCHED, f"{twice} of {len(data)} rows held out")
        return self.model.condition(data)


UNTOUCHED = "held-out rows that the model never learns from"


def _rows(data: Transitions) -> list[tuple[float, ...]]:
    return [tuple(row) for row in torch.cat([data.z, data.x_next], dim=-1).tolist()]


def never_trained_on(where: str, model: DynamicsModel, held_out: Transitions) -> None:
    """Refuses rows that a model keeps among its own, as an exact Gaussian process does; others do not show theirs."""
    while isinstance(model, Recalibrated):
        model = model.model
    if not isinstance(model, GP) or model.inputs is None or model.targets is None:
        return
    places: dict[tuple[float, ...], list[int]] = {}
    for i, z in enumerate(model.inputs.tolist()):
        places.setdefault(tuple(z), []).append(i)
    y = (held_out.x_next - model.prior(held_out.x, held_out.u))[:, list(model.outputs)]
    twice = 0
    for z, value in zip(held_out.z.tolist(), y, strict=True):
        known = model.targets[places.get(tuple(z), [])]  # another outcome of the same input is another row
        twice += bool(((known - value).abs() <= 1e-9 * (1 + value.abs())).all(-1).any())
    if twice:
        raise _require.fail(where, UNTOUCHED, f"{twice} of {len(held_out)} are among the model's data")


def _gaussian(delta: float) -> float:
    """Φ⁻¹(1 − δ/2)."""
    return float(torch.special.ndtri(torch.tensor(1 - delta / 2, dtype=torch.float64)))


def standardised(model: DynamicsModel, rows: Transitions) -> Tensor:
    """(y − μ)/√(σ² + σ_w²) at rows, (n, nx), signed; 0 where both are 0."""
    with torch.no_grad():
        found = model.predict(rows.x, rows.u)
        size = ratios(rows.x_next, found.mean, total_std(found))
        return torch.copysign(size, rows.x_next - found.mean)


def _stretched(found: Prediction, factor: Tensor | float) -> Prediction:
    return Prediction(found.mean, found.std * factor, found.noise_std * factor)


@short
@dataclass(frozen=True, slots=True, eq=False)
class ScaledStd(Recalibrated):
    """σ ↦ sσ with s² = mean((y − μ)²/σ²) of each output, the scale of largest likelihood."""

    factor: Tensor

    @staticmethod
    def fit(model: DynamicsModel, held_out: Transitions, *, delta: float = 0.1) -> ScaledStd:
        """Of rows never trained on.

        Raises:
            ValueError: if an output has no spread but errs.
        """
        _require.probability("ScaledStd", "delta", delta)
        never_trained_on("ScaledStd", model, held_out)
        factor = standardised(model, held_out).square().mean(0).sqrt()
        if not bool(torch.isfinite(factor).all()):
            raise _require.fail("ScaledStd", "a spread > 0 where the model errs", factor.tolist())
        told = listed(Assumption.SCALED_GAUSSIAN(), Assumption.EXCHANGEABLE(), Assumption.HELD_OUT())
        found = ScaledStd(model, held_out, delta, told, torch.where(factor > 0, factor, torch.ones_like(factor)))
        return sealed(found, free=("delta",))

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        return _stretched(self.model.predict(x, u), self.factor)

    def condition(self, data: Transitions) -> ScaledStd:
        return ScaledStd.fit(self._learnt(data), self.held_out, delta=self.delta)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Isotonic(Recalibrated):
    """All quantiles of t = (y − μ)/σ from held-out rows.

    Kuleshov, Fenner & Ermon (2018) fit an isotonic map R from the predicted to the observed cumulative probability. On the rows
    themselves the observed one is the empirical distribution function, monotone already, and R that function. Here it is
    written in t instead of in probabilities, where double precision ends at |t| = 8: Q(i/(n + 1)) = t_(i), linear in between,
    with the tails of a Gaussian stretched to the outermost t.
    """

    ordered: Tensor

    @staticmethod
    def fit(model: DynamicsModel, held_out: Transitions, *, delta: float = 0.1) -> Isotonic:
        """Of rows never trained on, at least five."""
        _require.probability("Isotonic", "delta", delta)
        never_trained_on("Isotonic", model, held_out)
        t = standardised(model, held_out).sort(0).values
        if len(t) < 5 or not bool(torch.isfinite(t).all()):
            raise _require.fail("Isotonic", "five finite residuals of a spread > 0", (len(t), t.amax(0).tolist()))
        told = listed(Assumption.SAME_SHAPE(), Assumption.EXCHANGEABLE(), Assumption.HELD_OUT())
        return sealed(Isotonic(model, held_out, delta, told, t), free=("delta",))

    def quantile(self, levels: Tensor) -> Tensor:
        """Q(p) of every output, (k, nx), at levels p (k,) in (0, 1)."""
        n = len(self.ordered)
        edge = torch.special.ndtri(torch.tensor(n / (n + 1), dtype=torch.float64))
        place = (levels * (n + 1) - 1).clamp(0, n - 1)
        low = place.floor().long()
        share = (place - low).unsqueeze(-1)
        inner = (1 - share) * self.ordered[low] + share * self.ordered[(low + 1).clamp_max(n - 1)]
        beyond = (torch.special.ndtri(levels).abs() - edge).clamp_min(0).unsqueeze(-1)
        spread = (self.ordered[-1] - self.ordered[0]) / (2 * edge)
        sign = torch.sign(levels - 0.5).unsqueeze(-1)
        return inner + sign * beyond * spread

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """Mean and spread of the recalibrated distribution."""
        found = self.model.predict(x, u)
        levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        q = self.quantile(levels)
        shift, spread = q.mean(0), q.std(0, correction=0)
        return _stretched(replace(found, mean=found.mean + shift * total_std(found)), spread)

    def interval(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Between the quantiles δ/2 and 1 − δ/2: not symmetric."""
        found = self.model.predict(x, u)
        ends = self.quantile(torch.tensor([self.delta / 2, 1 - self.delta / 2], dtype=torch.float64))
        std = total_std(found)
        return found.mean + ends[0] * std, found.mean + ends[1] * std

    def condition(self, data: Transitions) -> Isotonic:
        return Isotonic.fit(self._learnt(data), self.held_out, delta=self.delta)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Conformal(Recalibrated):
    """Split conformal prediction: μ ± qσ with q the conformal quantile of the scores |y − μ|/σ.

    Attributes:
        multiple: q of each output, (nx,).
        outputs_held: "each": every output by itself is inside with 1 − δ; "jointly": all outputs at once.
        groups: labels of the held-out rows, if trajectories are the units.
    """

    multiple: Tensor
    outputs_held: Literal["each", "jointly"]
    groups: tuple[Any, ...] | None

    @staticmethod
    def fit(
        model: DynamicsModel,
        held_out: Transitions,
        *,
        delta: float = 0.1,
        outputs: Literal["each", "jointly"] = "each",
        groups: Any = None,
    ) -> Conformal:
        """Of rows never trained on, or of trajectories.

        Args:
            model: any.
            held_out: the rows.
            delta: δ.
            outputs: see the class.
            groups: (n,) labels: the score of a trajectory is the largest of its rows (Stankeviciute, Alaa & van der Schaar
                2021 take a union bound instead; the maximum is sharper, see Lindemann et al. 2023).

        Raises:
            ValueError: if there are fewer than 1/δ − 1 rows (or trajectories): no finite interval has the probability.
        """
        _require.one_of("Conformal", "outputs", outputs, ("each", "jointly"))
        never_trained_on("Conformal", model, held_out)
        scores = standardised(model, held_out).abs()
        if outputs == "jointly":
            scores = scores.amax(-1, keepdim=True)
        if groups is not None:
            scores = torch.stack([scores[rows].amax(0) for rows in members("Conformal", groups, len(scores))])
        multiple = conformal_quantile(scores, delta)
        if not bool(torch.isfinite(multiple).all()):
            least, unit = math.ceil(1 / delta) - 1, "rows" if groups is None else "trajectories"
            got = f"{len(scores)} with multiples {multiple.tolist()}"
            raise _require.fail("Conformal", f"at least {least} held-out {unit} with finite scores", got)
        unit = (
            ": steps and held-out rows" if groups is None else ": trajectories and held-out trajectories, of one length"
        )
        told = listed(Assumption.EXCHANGEABLE(unit), Assumption.HELD_OUT())
        labels = None if groups is None else tuple(groups.tolist() if hasattr(groups, "tolist") else groups)
        return sealed(Conformal(model, held_out, delta, told, multiple.expand(model.nx).clone(), outputs, labels))

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        return _stretched(self.model.predict(x, u), self.multiple / _gaussian(self.delta))

    def condition(self, data: Transitions) -> Conformal:
        model = self._learnt(data)
        return Conformal.fit(model, self.held_out, delta=self.delta, outputs=self.outputs_held, groups=self.groups)
