"""The task, stated once: what a plant is asked to do, and what every certificate about it is a statement of."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.systems.base import Cost

if TYPE_CHECKING:
    from gpsafe.systems.base import System


@short
@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """E Σ_{t<T} c(x_t) ≤ d from x_0, under w_t ~ N(0, diag(noise_std²)).

    A plant offers its own (`Task.of`); cost bounds, shields and learners hold the one that they speak of, and a learner
    refuses a bound that speaks of another. For a robot there is no plant object: the task is then what its user states. It owns
    its tensors: who writes on the plant's afterwards has another plant, and the task can tell.

    Args:
        initial_state: x_0, (nx,).
        horizon: T.
        cost: c ∈ [0, C].
        budget: d ≥ 0.
        noise_std: standard deviations of w, (nx,), ≥ 0.
    """

    initial_state: Tensor
    horizon: int
    cost: Cost
    budget: float
    noise_std: Tensor

    def __post_init__(self) -> None:
        x0 = _require.real("Task", "initial_state", self.initial_state)
        if x0.ndim != 1:
            raise _require.fail("Task", "initial_state of shape (nx,)", f"shape {tuple(x0.shape)}")
        noise = _require.nonnegative("Task", "noise_std", _require.real("Task", "noise_std", self.noise_std))
        object.__setattr__(self, "initial_state", x0)
        object.__setattr__(self, "noise_std", _require.shape("Task", "noise_std", noise, tuple(x0.shape)))
        _require.count("Task", "horizon", self.horizon)
        object.__setattr__(self, "budget", _require.number("Task", "budget", self.budget, minimum=0.0))
        if not isinstance(self.cost, Cost):
            raise _require.fail("Task", "a Cost (ceiling, upper and lower over boxes)", type(self.cost).__name__)
        _require.positive("Task", "cost.ceiling", self.cost.ceiling)
        _check_cost(self.cost, x0.numel())

    @staticmethod
    def of(system: System) -> Task:
        """The task of a plant."""
        for name in ("initial_state", "horizon", "cost", "budget", "noise_std"):
            if not hasattr(system, name):
                raise _require.fail("Task.of", f"a plant (it has no {name})", type(system).__name__)
        return Task(system.initial_state, system.horizon, system.cost, system.budget, system.noise_std)

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.initial_state.numel()

    @property
    def total_ceiling(self) -> float:
        """T·C ≥ every J_c."""
        return self.horizon * self.cost.ceiling

    def with_(self, **changes: Any) -> Task:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def differences(self, other: Task) -> list[str]:
        """Fields in which two tasks differ, each with both values; empty for the same task."""
        return [
            f"{field.name} {_told(getattr(self, field.name))} against {_told(getattr(other, field.name))}"
            for field in fields(self)
            if not _same(getattr(self, field.name), getattr(other, field.name))
        ]

    def require_same(self, where: str, other: Task) -> None:
        """Raises ValueError naming the fields in which `other` differs: a bound for one task says nothing of another."""
        found = self.differences(other)
        if found:
            raise _require.fail(where, "one task throughout", "; ".join(found))


class TaskFields:
    """The fields of `task` under their own names, for what holds one."""

    __slots__ = ()
    task: Task

    @property
    def initial_state(self) -> Tensor:
        """x_0, (nx,)."""
        return self.task.initial_state

    @property
    def horizon(self) -> int:
        """T."""
        return self.task.horizon

    @property
    def cost(self) -> Cost:
        """c."""
        return self.task.cost

    @property
    def noise_std(self) -> Tensor:
        """Standard deviations of w, (nx,)."""
        return self.task.noise_std


def _check_cost(cost: Cost, nx: int) -> None:
    """Refuses a cost that writes on states, ends of cells or data: what is asked of them next would be of others; and one whose
    value at a state depends on what else is asked.

    One that cannot be evaluated at a few zeros (another device, another domain) is not checked.
    """
    x, lower, upper = (torch.zeros(nx + 2, nx, dtype=torch.float64) for _ in range(3))
    drawn = 3 * torch.randn(64, nx, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            whole, alone = cost(drawn.clone()), torch.cat([cost(drawn[i : i + 1].clone()) for i in range(3)])
            for ask, given in ((cost, (x,)), (cost.upper, (lower, upper)), (cost.lower, (lower, upper))):
                ask(*given)
    except Exception:
        return
    if _require.written(x, lower, upper):
        raise _require.fail("Task", "a cost that leaves its arguments as they are", "one that writes on them")
    if whole.shape != (64,) or not torch.allclose(whole[:3].double(), alone.double(), 1e-6, 1e-9, equal_nan=True):
        raise _require.fail(
            "Task", "a cost of each state for itself, (*b, nx) → (*b,)", "states that depend on each other"
        )


def _same(a: Any, b: Any) -> bool:
    """Equal values: tensors by their entries, dataclasses (costs) by their fields, other objects by identity or ==."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a.cpu() == b.cpu()).all())
    if is_dataclass(a) and type(a) is type(b):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a == b)


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return str([round(v, 6) for v in value.flatten().tolist()])
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if is_dataclass(value):
        return f"{type(value).__name__}({', '.join(_told(getattr(value, f.name)) for f in fields(value))})"
    return type(value).__name__
