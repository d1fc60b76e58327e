"""The task, stated once: what a plant is asked to do, and what every certificate about it is a statement of."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.systems.base import Cost

if TYPE_CHECKING:
    from gpsafe.systems.base import System


_SIZES = torch.tensor([0.03, 0.3, 3.0], dtype=torch.float64).reshape(3, 1, 1)  # of boxes on which a cost is tried


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
        _check_cost(self.cost, x0)

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


def _check_cost(cost: Cost, x0: Tensor) -> None:
    """Refuses a cost that writes on states, ends of cells or data; one whose value at a state depends on what else is asked;
    and one that leaves [0, C] or what it says of boxes itself, at drawn points (none found is no proof).

    One that cannot be evaluated there (another device, another domain) is not checked.
    """
    nx, generator = x0.numel(), torch.Generator().manual_seed(0)
    center = torch.stack([torch.zeros_like(x0), x0]).repeat(32, 1)
    sizes = _SIZES * (1.0 + x0.abs())
    a, b = (center + sizes * torch.randn(3, 64, nx, dtype=torch.float64, generator=generator) for _ in "ab")
    between = a + torch.rand(a.shape, dtype=torch.float64, generator=generator) * (b - a)
    points = torch.stack([a, b, between]).reshape(3, -1, nx)
    low, high = points[:2].amin(0), points[:2].amax(0)
    given = [part.clone() for part in (points, low, high, low, high)]
    try:
        with torch.no_grad():
            c, alone = cost(given[0]), torch.stack([cost(point.clone()) for point in points[:, 1:2]])
            fewer = cost(points[1:, 1::2].flip(0, 1)).flip(0, 1)  # in another order: a first row is then another one
            most, least = cost.upper(*given[1:3]), cost.lower(*given[3:])
    except Exception:
        return
    if _require.written(*given):
        raise _require.fail("Task", "a cost that leaves its arguments as they are", "one that writes on them")
    whole, parts = c.unsqueeze(-1), ((alone, np.s_[:, 1:2]), (fewer, np.s_[1:, 1::2]))
    if c.shape != points.shape[:-1] or not all(linalg.alike(part.unsqueeze(-1), whole, at) for part, at in parts):
        raise _require.fail(
            "Task", "a cost of each state for itself, (*b, nx) → (*b,)", "states that depend on each other"
        )
    room, top = (
        1e-6 * cost.ceiling,
        torch.where(most >= 0, most.clamp_max(cost.ceiling), cost.ceiling),
    )  # as bounds take it
    wrong = (c > top + room) | (c < least.nan_to_num(nan=-torch.inf).clamp_min(0.0) - room)
    if bool(wrong.any()):
        k, i = torch.nonzero(wrong)[0].tolist()
        told = f"{float(c[k, i]):.4g} at {points[k, i].tolist()}, but {float(least[i]):.4g} to {float(most[i]):.4g} "
        told += f"on the box from {low[i].tolist()} to {high[i].tolist()}"
        expected = f"a cost in [0, {cost.ceiling:g}] and between its own lower and upper over boxes"
        raise _require.fail("Task", expected, told)


def _same(a: Any, b: Any) -> bool:
    """Equal values: tensors by their entries, dataclasses (costs) by their fields, other objects by identity or ==."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a.cpu() == b.cpu()).all())
    if is_dataclass(a) and type(a) is type(b):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.compare)
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
