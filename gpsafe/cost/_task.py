"""What cost bounds share: the task, what they believe, and where the Monte-Carlo ones take their noise and δ from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost import monte_carlo
from gpsafe.systems.task import Task, TaskFields


def check_task(where: str, task: Task, confidence: ConfidenceSet) -> None:
    """Refuses a model of another state dimension, and a bound whose theorem does not cover the task's noise.

    The data of F_n come from the plant that the task describes (`ConfidenceSet.check_noise`).
    """
    model = confidence.model
    if task.nx != model.nx:
        raise _require.fail(where, f"an initial state of dimension {model.nx}", task.nx)
    confidence.check_noise(where, task.noise_std)


class OfTask(TaskFields):
    """Gives a cost bound the fields of its `task` under their own names, and the list of what it believes."""

    __slots__ = ()

    @property
    def total_ceiling(self) -> float:
        """T·C ≥ every J_c."""
        return self.task.total_ceiling

    def check(self, confidence: ConfidenceSet) -> None:
        """See `check_task`."""
        check_task(type(self).__name__, self.task, confidence)

    def believed(self, confidence: ConfidenceSet, *further: Believed) -> tuple[Believed, ...]:
        """What every bound of J_c rests on, and `further`."""
        return listed(
            confidence.assumptions,
            confidence.unlearned,
            Assumption.TASK(),
            Assumption.GAUSSIAN_NOISE(),
            Assumption.EXACT_STATE(),
            Assumption.EXACT_INPUT(),
            further,
            Assumption.ROUNDING(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MonteCarloBound(OfTask):
    """J_c(π, f) = E Σ_{t<T} c(x_t), x_0 given, x_{t+1} = f(x_t, π(x_t)) + w_t, w_t ~ N(0, diag(noise_std²)), by sampling w.

    Args:
        task: x_0, T, c, σ.
        seed: of the Monte-Carlo noise; must not be the plant's.
        samples: N, number of noise paths.
        delta: total failure probability of the Monte-Carlo parts over a whole run (see `monte_carlo`).
        calls: number of different policy classes that may be evaluated at one stage.
    """

    task: Task
    seed: int
    samples: int = 256
    delta: float = 0.01
    calls: int = 1

    def __post_init__(self) -> None:
        where = type(self).__name__
        _require.kind(where, "task", self.task, Task)
        _require.count(where, "samples", self.samples, minimum=2)
        _require.count(where, "seed", self.seed, minimum=0)
        _require.count(where, "calls", self.calls)
        _require.probability(where, "delta", self.delta)

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
