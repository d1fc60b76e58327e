"""A plant that is not in the computer: a robot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.sets import Box
from gpsafe.systems.task import Task, TaskFields


@short
@dataclass(frozen=True, slots=True, eq=False)
class RealPlant(TaskFields):
    """A `System` of which the task, the limits and the reward are known, and nothing of its dynamics.

    What a learner needs besides its model: it is asked for a policy, the policy is run on the robot, the learner is told what
    was measured. Whatever calls `mean` is refused.

    Args:
        task: x_0, T, cost, budget and noise, as its user states them.
        state_box: region on which it is studied.
        input_box: limits of u.
        reward_fn: (x, u) → r.
        name: short.
    """

    task: Task
    state_box: Box
    input_box: Box
    reward_fn: Callable[[Tensor, Tensor], Tensor]
    name: str = "real plant"

    def __post_init__(self) -> None:
        if self.state_box.dim != self.task.nx:
            raise _require.fail("RealPlant", f"a state box of dimension {self.task.nx}", self.state_box.dim)
        if not bool(self.state_box.contains(self.task.initial_state)):
            raise _require.fail("RealPlant", "initial_state inside state_box", self.task.initial_state.tolist())

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.task.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.input_box.dim

    @property
    def budget(self) -> float:
        """d."""
        return self.task.budget

    def mean(self, x: Tensor, u: Tensor) -> NoReturn:
        """Nobody knows it."""
        raise _require.fail("RealPlant.mean", "ask() and tell() around a run on the plant", "a call of its dynamics")

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """r(x, u)."""
        return self.reward_fn(x, u)
