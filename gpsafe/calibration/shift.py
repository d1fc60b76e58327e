"""Conformal prediction where what is to come does *not* resemble the held-out rows.

- `Weighted` (Tibshirani, Barber, Candès & Ramdas 2019): the inputs z = (x, u) have another density, w(z) times the old one up
  to a constant, and given z the next state is as before. If w is right, P(y in interval) ≥ 1 − δ.
- `Adaptive` (Gibbs & Candès 2021): nothing is assumed of the data; every outcome is shown after the step, and δ_t follows the
  misses. Then for *every* sequence |share of misses in T steps − δ| ≤ (max(δ, 1 − δ) + γ)/(γT): an average over time, no
  promise for any single step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._sealed import sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, listed
from gpsafe.calibration.coverage import total_std
from gpsafe.calibration.recalibration import Recalibrated, _gaussian, never_trained_on, standardised
from gpsafe.data import Transitions
from gpsafe.models import DynamicsModel, Normalizer, Prediction


@short
@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodRatio:
    """w(z) = exp(aᵀφ(z)), φ = (1, s, s²), s the normalised z: a logistic regression of "new" against "old".

    Attributes:
        inputs: normalisation.
        weights: a, (2d + 1,).
    """

    inputs: Normalizer
    weights: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """(*b, d) → (*b,)."""
        return torch.exp((_features(self.inputs(z)) @ self.weights).clamp(-30, 30))


def _features(s: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(s[..., :1]), s, s.square()], dim=-1)


def likelihood_ratio(old: Tensor, new: Tensor, *, penalty: float = 1e-3, steps: int = 30) -> LikelihoodRatio:
    """Fitted to inputs old (n, d) and new (m, d): exact for Gaussians of diagonal covariance, an estimate otherwise.

    Newton's method on the mean logistic loss plus ½ `penalty` ‖a‖².
    """
    where = "likelihood_ratio"
    old, new = _require.finite(where, "old", old), _require.finite(where, "new", new)
    inputs = Normalizer.of(torch.cat([old, new]))
    phi = _features(inputs(torch.cat([old, new])))
    label = torch.cat([torch.zeros(len(old)), torch.ones(len(new))]).to(phi)
    mass = torch.where(label > 0, label / (2 * len(new)), 0.5 / len(old))  # both samples count alike
    a, eye = phi.new_zeros(phi.shape[1]), torch.eye(phi.shape[1], dtype=phi.dtype)
    for _ in range(steps):
        p = torch.sigmoid(phi @ a)
        slope = phi.mT @ (mass * (p - label)) + penalty * a
        hessian = (phi * (mass * p * (1 - p)).unsqueeze(-1)).mT @ phi + penalty * eye
        move = torch.linalg.solve(hessian, slope)
        a = a - move * min(1.0, 5.0 / float(move.norm().clamp_min(1e-300)))
    return LikelihoodRatio(inputs, a)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Weighted(Recalibrated):
    """μ ± q(z)σ, all outputs jointly: q(z) the 1 − δ quantile of Σ_i w(z_i)δ_{s_i} + w(z)δ_∞, normalised.

    Where w(z) is so large that the rows say nothing, q(z) is infinite, and so is the spread of all states.
    """

    ratio: Callable[[Tensor], Tensor]
    scores: Tensor
    mass: Tensor

    @staticmethod
    def fit(
        model: DynamicsModel, held_out: Transitions, ratio: Callable[[Tensor], Tensor], *, delta: float = 0.1
    ) -> Weighted:
        """Of rows never trained on, and of the ratio w of the densities of z.

        Args:
            model: any.
            held_out: rows of the old distribution.
            ratio: z (*b, d) → w(z) (*b,) > 0; `likelihood_ratio` estimates one.
            delta: δ.
        """
        _require.probability("Weighted", "delta", delta)
        never_trained_on("Weighted", model, held_out)
        scores, order = standardised(model, held_out).abs().amax(-1).sort()
        mass = _require.positive("Weighted", "ratio", ratio(held_out.z))[order]
        told = listed(Assumption.LIKELIHOOD_RATIO(), Assumption.HELD_OUT())
        return sealed(Weighted(model, held_out, delta, told, ratio, scores, mass.cumsum(0)), free=("delta",))

    def multiple(self, z: Tensor) -> Tensor:
        """q(z), (*b,)."""
        total = self.mass[-1]
        own = self.ratio(z)
        need = (1 - self.delta) * (total + own)
        place = torch.searchsorted(self.mass, need.contiguous())
        padded = torch.cat([self.scores, self.scores.new_full((1,), math.inf)])
        return torch.where(own >= 0, padded[place], math.inf)  # a ratio that is none says nothing

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        found = self.model.predict(x, u)
        batch = found.mean.shape[:-1]
        x, u = (_require.floats("Weighted", name, v) for name, v in (("x", x), ("u", u)))
        z = torch.cat([x.expand(*batch, self.nx), u.expand(*batch, self.nu)], dim=-1)
        factor = (self.multiple(z) / _gaussian(self.delta)).unsqueeze(-1)
        return replace(found, std=_times(found.std, factor), noise_std=_times(found.noise_std, factor))

    def condition(self, data: Transitions) -> Weighted:
        return Weighted.fit(self._learnt(data), self.held_out, self.ratio, delta=self.delta)


def _times(std: Tensor, factor: Tensor) -> Tensor:
    """std·factor, with 0·∞ = ∞: an interval that is everything is so for states of no spread, too, of which a model may err."""
    return torch.where(torch.isinf(factor), factor, std * factor)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Adaptive(Recalibrated):
    """μ ± q_tσ, all outputs jointly, with q_t the conformal quantile at a level δ_t that follows the misses.

    δ_{t+1} = δ_t + γ(δ − miss_t). For δ_t ≤ 0 the interval is everything, for δ_t ≥ 1 nothing.

    Attributes:
        level: δ_t.
        rate: γ.
        scores: those of the held-out rows and of what was seen since, ascending.
        steps, misses: seen so far.
    """

    level: float
    rate: float
    scores: Tensor
    steps: int = 0
    misses: int = 0

    @staticmethod
    def fit(model: DynamicsModel, held_out: Transitions, *, delta: float = 0.1, rate: float = 0.02) -> Adaptive:
        """Before the first step: as `Conformal`."""
        _require.probability("Adaptive", "delta", delta)
        never_trained_on("Adaptive", model, held_out)
        rate = _require.positive_number("Adaptive", "rate", rate)
        scores = standardised(model, held_out).abs().amax(-1).sort().values
        found = Adaptive(model, held_out, delta, listed(Assumption.FEEDBACK()), delta, rate, scores)
        return sealed(found, free=("level", "scores", "steps", "misses"))

    @property
    def multiple(self) -> float:
        """q_t."""
        if self.level <= 0:
            return math.inf
        rank = math.ceil((len(self.scores) + 1) * (1 - self.level))
        if rank <= 0:
            return -math.inf  # nothing is inside
        return math.inf if rank > len(self.scores) else float(self.scores[rank - 1])

    def observe(self, x: Tensor, u: Tensor, x_next: Tensor) -> Adaptive:
        """After one step from x (nx,) under u (nu,) to x_next (nx,): δ_t moves, and the score joins the others."""
        row = Transitions(x.reshape(1, -1), u.reshape(1, -1), x_next.reshape(1, -1))
        score = standardised(self.model, row).abs().amax()
        miss = not float(score) <= self.multiple
        place = int(torch.searchsorted(self.scores, score))
        scores = torch.cat([self.scores[:place], score.reshape(1), self.scores[place:]])
        level = self.level + self.rate * (self.delta - miss)
        return replace(self, level=level, scores=scores, steps=self.steps + 1, misses=self.misses + miss)

    def promised(self) -> float:
        """(max(δ, 1 − δ) + γ)/(γT): how far the share of misses may be from δ, for any sequence."""
        if self.steps == 0:
            return math.inf
        return (max(self.delta, 1 - self.delta) + self.rate) / (self.rate * self.steps)

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        found = self.model.predict(x, u)
        factor = torch.tensor(max(self.multiple, 0.0) / _gaussian(self.delta), dtype=torch.float64)
        return replace(found, std=_times(found.std, factor), noise_std=_times(found.noise_std, factor))

    def interval(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Empty (the lower end above the upper one) where δ_t ≥ 1."""
        found = self.model.predict(x, u)
        half = _times(total_std(found), torch.tensor(self.multiple, dtype=torch.float64))
        return found.mean - half, found.mean + half

    def condition(self, data: Transitions) -> Adaptive:
        """A new model has other scores: the level is kept, the scores are those of the held-out rows again."""
        fresh = Adaptive.fit(self._learnt(data), self.held_out, delta=self.delta, rate=self.rate)
        return replace(fresh, level=self.level, steps=self.steps, misses=self.misses)
