"""What the Monte-Carlo cost bounds share: the task, and where their noise and δ come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost import monte_carlo
from gpsafe.systems.base import Cost


@dataclass(frozen=True, kw_only=True, eq=False)
class MonteCarloTask:
    """J_c(π, f) = E Σ_{t<T} c(x_t), x_0 given, x_{t+1} = f(x_t, π(x_t)) + w_t, w_t ~ N(0, diag(noise_std²)).

    Args:
        initial_state: x₀, (nx,).
        horizon: T.
        cost: c ∈ [0, C].
        noise_std: (nx,), ≥ 0.
        seed: of the Monte-Carlo noise; must not be the plant's.
        samples: N, number of noise paths.
        delta: total failure probability of the Monte-Carlo parts over a whole run (see `monte_carlo`).
        calls: number of different policy classes that may be evaluated at one stage.
    """

    initial_state: Tensor
    horizon: int
    cost: Cost
    noise_std: Tensor
    seed: int
    samples: int = 256
    delta: float = 0.01
    calls: int = 1

    def __post_init__(self) -> None:
        where = type(self).__name__
        x0 = _require.finite(where, "initial_state", self.initial_state)
        if x0.ndim != 1:
            raise _require.fail(where, "initial_state of shape (nx,)", f"shape {tuple(x0.shape)}")
        noise = _require.nonnegative(where, "noise_std", self.noise_std)
        object.__setattr__(self, "initial_state", x0)
        object.__setattr__(self, "noise_std", _require.shape(where, "noise_std", noise, tuple(x0.shape)))
        _require.count(where, "horizon", self.horizon)
        _require.count(where, "samples", self.samples, minimum=2)
        _require.count(where, "seed", self.seed, minimum=0)
        _require.count(where, "calls", self.calls)
        _require.probability(where, "delta", self.delta)
        _require.positive(where, "cost.ceiling", self.cost.ceiling)

    @property
    def total_ceiling(self) -> float:
        """T·C ≥ every J_c."""
        return self.horizon * self.cost.ceiling

    def stage(self, confidence: ConfidenceSet) -> int:
        """n: number of generations of F_n."""
        return max(1, len(confidence.generations))

    def stage_delta(self, confidence: ConfidenceSet) -> float:
        """δ_n of this call, to be shared by its policies."""
        return monte_carlo.stage_delta(self.delta, self.stage(confidence), calls=self.calls)

    def noise(self, confidence: ConfidenceSet, purpose: int, *, paths: int | None = None) -> Tensor:
        """(T, 1, N, nx), a function of (seed, stage, purpose)."""
        return monte_carlo.noise_paths(
            self.noise_std,
            self.horizon,
            paths or self.samples,
            seed=self.seed,
            stage=self.stage(confidence),
            purpose=purpose,
            device=self.initial_state.device,
        )

    def generator(self, confidence: ConfidenceSet, purpose: int) -> torch.Generator:
        """Generator of (seed, stage, purpose)."""
        return monte_carlo.stream(self.seed, self.stage(confidence), purpose)

    def check_model(self, confidence: ConfidenceSet) -> None:
        """Refuses a model of another state dimension."""
        nx = confidence.model.nx
        if self.initial_state.numel() != nx:
            raise _require.fail(type(self).__name__, f"an initial state of dimension {nx}", self.initial_state.numel())
