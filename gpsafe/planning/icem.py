"""Improved cross-entropy method (iCEM, Pinneri et al., CoRL 2020): an untrusted proposer of action sequences.

What it returns is a proposal and carries no guarantee: a certifier that never imports this module decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.sets import Box

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class ICEM:
    """Settings of the optimiser. The defaults are those of the published pendulum figure run.

    Args:
        samples: sequences drawn in the first iteration.
        elites: sequences that the distribution is fitted to.
        iterations: of sampling, scoring and fitting.
        horizon: H, steps of a sequence.
        exponent: β ≥ 0 of the noise, whose power spectrum falls as 1/frequency^β (0: white).
        smoothing: α ∈ [0, 1), new moments = α · old + (1 − α) · those of the elites.
        init_std: standard deviation of the first iteration, in units of half the width of the input box.
        warm_std: factor on `init_std` where a warm start is given.
        keep: share of the elites that compete again in the next iteration, and of the last plan's elites that,
            shifted by one step, compete in the first.
        decay: γ ≥ 1; iteration i draws max(samples / γ^i, 2 · elites) sequences.
    """

    samples: int = 500
    elites: int = 50
    iterations: int = 5
    horizon: int = 20
    exponent: float = 2.0
    smoothing: float = 0.2
    init_std: float = 0.5
    warm_std: float = 1.0
    keep: float = 0.3
    decay: float = 1.0

    def __post_init__(self) -> None:
        for name in ("samples", "elites", "iterations", "horizon"):
            _require.count("ICEM", name, getattr(self, name))
        if self.elites > self.samples:
            raise _require.fail("ICEM", f"elites <= samples = {self.samples}", self.elites)
        for name in ("init_std", "warm_std"):
            _require.positive("ICEM", name, getattr(self, name))
        _require.nonnegative("ICEM", "exponent", self.exponent)
        for name, value, top in (("smoothing", self.smoothing, 1.0), ("keep", self.keep, math.inf)):
            if not 0.0 <= value < top or value > 1.0:
                raise _require.fail("ICEM", f"{name} in [0, 1{')' if top == 1.0 else ']'}", value)
        if not 1.0 <= self.decay < math.inf:
            raise _require.fail("ICEM", "decay >= 1", self.decay)

    @property
    def kept(self) -> int:
        """Number of elites that compete again."""
        return int(self.keep * self.elites)

    def population(self, iteration: int) -> int:
        """Sequences drawn in an iteration (0, 1, …), without those that are kept."""
        return min(self.samples, max(int(self.samples / self.decay**iteration), 2 * self.elites))


PUBLISHED: dict[str, ICEM] = {
    "figure": ICEM(),
    "pendulum": ICEM(samples=1000, elites=100, exponent=0.2),
    "cartpole": ICEM(samples=1000, elites=50, horizon=30, exponent=1.0),
    "racecar": ICEM(samples=500, elites=50, iterations=10, exponent=1.0),
}
"""Presets of the authors' GP experiments: the figure run and the three launchers."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What :func:`icem` found.

    Attributes:
        actions: best sequence seen in any iteration, (H, nu).
        value: its score when it was seen; of a random score the luckiest value, so biased upwards.
        elites: best sequences of the last iteration, best first, (E, H, nu).
        elite_values: their scores, (E,).
        mean: of the final distribution, (H, nu).
        best: best score so far after each iteration, (iterations,): never falls.
    """

    actions: Tensor
    value: Tensor
    elites: Tensor
    elite_values: Tensor
    mean: Tensor
    best: Tensor

    def shifted(self) -> Plan:
        """The same plan one step later: first action dropped, last one repeated. Its values are those of before."""
        actions, elites, mean = (
            torch.cat([v[..., 1:, :], v[..., -1:, :]], dim=-2) for v in (self.actions, self.elites, self.mean)
        )
        return Plan(actions, self.value, elites, self.elite_values, mean, self.best)


def colored_noise(exponent: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian noise along the last axis with power spectral density ∝ 1/max(f, 1/T)^exponent and variance 1.

    Timmer & König (1995): independent normal Fourier coefficients scaled by f^(−exponent/2), transformed back.
    Every entry has variance exactly 1 (the process is stationary on the circle of T steps), exponent 0 is white.

    Args:
        exponent: ≥ 0.
        shape: (*b, T).
        generator: source of randomness.
    """
    steps = shape[-1]
    frequency = torch.fft.rfftfreq(steps, dtype=torch.float64, device=generator.device)
    scale = frequency.clamp_min(1.0 / steps) ** (-0.5 * exponent)
    single = torch.zeros_like(frequency, dtype=torch.bool)  # the constant and, for even T, the Nyquist term: real
    single[0] = True
    if steps % 2 == 0:
        single[-1] = True
    parts = torch.randn(
        2, *shape[:-1], len(frequency), dtype=torch.float64, generator=generator, device=generator.device
    )
    real = parts[0] * scale * (1.0 + single.double()).sqrt()
    spectrum = torch.complex(real, parts[1] * scale * (~single))
    weight = 2.0 - single.double()  # var of entry t: Σ over all T coefficients of 2 scale² / T²
    std = (2 * (weight * scale.square()).sum()).sqrt() / steps
    return torch.fft.irfft(spectrum, n=steps) / std


def icem(score: Score, box: Box, *, settings: ICEM, generator: torch.Generator, warm_start: Plan | None = None) -> Plan:
    """Maximises score: (K, H, nu) → (K,) over sequences in the box; larger is better, NaN counts as −∞.

    Each iteration draws coloured noise around the mean, clips it to the box, adds the kept elites (in the first
    iteration the shifted elites of `warm_start`; in the last one the mean itself), scores all, and moves mean and
    standard deviation towards those of the elites. All sequences of an iteration are scored in one call.

    Args:
        score: may be random; it is called `iterations` times.
        box: input box, (nu,).
        settings: see :class:`ICEM`.
        generator: source of randomness; the same state gives the same plan.
        warm_start: the plan of the step before.

    Raises:
        ValueError: if score returns the wrong shape, or the warm start has another horizon or input dimension.
    """
    device = generator.device
    lower, upper = box.lower.to(device), box.upper.to(device)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    shape = (settings.horizon, box.dim)
    if warm_start is None:
        mean, kept, std = middle.expand(shape), middle.new_empty(0, *shape), half.expand(shape) * settings.init_std
    else:
        _require.shape("icem", "warm_start.mean", warm_start.mean, shape)
        moved = warm_start.shifted()
        mean, kept = moved.mean, moved.elites[: settings.kept]
        std = half.expand(shape) * (settings.init_std * settings.warm_std)
    best_value = torch.full((), -math.inf, dtype=torch.float64, device=device)
    best, elites, values, history = mean, kept, best_value.expand(0), []
    for iteration in range(settings.iterations):
        count = settings.population(iteration)
        noise = colored_noise(settings.exponent, (count, box.dim, settings.horizon), generator).mT
        candidates = torch.cat([(mean + std * noise).clamp(lower, upper), kept])
        if iteration == settings.iterations - 1:
            candidates[0] = mean
        found = _require.shape("icem", "score", score(candidates), (candidates.shape[0],))
        found = torch.where(found.isnan(), -math.inf, found)
        values, order = found.topk(settings.elites)
        elites = candidates[order]
        if bool(values[0] > best_value) or iteration == 0:
            best_value, best = values[0], elites[0]
        history.append(best_value)
        alpha = settings.smoothing
        mean = alpha * mean + (1 - alpha) * elites.mean(0)
        std = alpha * std + (1 - alpha) * elites.std(0, correction=0)
        kept = elites[: settings.kept]
    return Plan(best, best_value, elites, values, mean, torch.stack(history))
