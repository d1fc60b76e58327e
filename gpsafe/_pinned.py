"""Functions that somebody else wrote, held to what they were when something was derived of them.

A closure reads what it captured at every call: a mass that is identified online, a limit that is moved, a gain that is tuned. A
bound that was derived of the function before speaks of another one then. It is noticed where the values at pinned points move,
and where a number moves that the function captures or names: tensors, arrays and floats in closures, defaults, globals and
attributes. Whole numbers, lists and dictionaries are not looked at: functions count their calls and log in them.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require

DEPTH = 3  # functions of functions, attributes of attributes that are followed


@dataclass(frozen=True, slots=True, eq=False)
class Pinned:
    """Values of a function at some points, and the numbers that it captures.

    Attributes:
        function: of tensors, one of the same rows.
        points: its arguments.
        value: what it gave when it was pinned; None if it could not be evaluated.
        numbers: copies of what it captured then.
    """

    function: Callable[..., Tensor]
    points: tuple[Tensor, ...]
    value: Tensor | None
    numbers: tuple[Tensor, ...]

    @staticmethod
    def of(function: Callable[..., Tensor], *points: Tensor) -> Pinned:
        """As it is now."""
        value = _asked(function, points)  # first: what it keeps for later it has then
        return Pinned(function, points, value, numbers_of(function))

    @property
    def moved(self) -> bool:
        """Whether a value or a number is another one now. False does not say that the function is the same everywhere."""
        return not (same_numbers(numbers_of(self.function), self.numbers) and self.agrees(self.function))

    def agrees(self, function: Callable[..., Tensor]) -> bool:
        """Whether a function has these values."""
        now = _asked(function, self.points)
        if now is None or self.value is None:
            return now is self.value
        same = now.shape == self.value.shape and now.device == self.value.device
        if not same or not now.numel():
            return same
        # Of what the function gives at all points: numbers may be small because their units are large.
        size = torch.where(self.value.isfinite(), self.value.abs(), 0.0).flatten(0, -2).amax(0) if now.ndim > 1 else 1.0
        alike = (now - self.value).abs() <= 1e-12 * size
        return bool((alike | (now == self.value) | (now.isnan() & self.value.isnan())).all())

    def require(self, where: str, what: str) -> None:
        """Refuses a function that moved.

        Raises:
            ValueError: that says `what` it is.
        """
        if self.moved:
            expected = f"{what} that is still the one of which this was derived (make it anew)"
            raise _require.fail(where, expected, "one that captures numbers which moved since")


def pinned_prior(prior: Callable[[Tensor, Tensor], Tensor], nx: int, nu: int) -> Pinned:
    """A known part (x, u) ↦ p at some points near and far."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(16, nx + nu, dtype=torch.float64, generator=generator)
    z = z * torch.logspace(-1, 1, 16, dtype=torch.float64).unsqueeze(-1)
    return Pinned.of(prior, z[:, :nx], z[:, nx:])


def pinned_policies(policies: Callable[[Tensor], Tensor], x0: Tensor) -> Pinned:
    """P policies, x (1, N, nx) → (P, N, nu), at x_0 and at states about it near and far, (64, nx)."""
    generator = torch.Generator().manual_seed(0)
    away = torch.randn(63, x0.numel(), dtype=torch.float64, generator=generator).to(x0.device)
    far = torch.logspace(-2, 1, 63, dtype=torch.float64, device=x0.device).unsqueeze(-1)
    return Pinned.of(policies, torch.cat([x0.unsqueeze(0), x0 + far * away]).unsqueeze(0))


def _asked(function: Callable[..., Tensor], points: tuple[Tensor, ...]) -> Tensor | None:
    try:
        with torch.no_grad():
            return function(*(point.clone() for point in points)).double().clone()
    except Exception:  # another domain, another device: as it could not be evaluated before
        return None


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def numbers_of(function: Any) -> tuple[Tensor, ...]:
    """Copies of the tensors, arrays and floats that a function (or an object with attributes) captures or names."""
    return tuple(_found(function, DEPTH, set()))


def same_numbers(now: tuple[Tensor, ...], then: tuple[Tensor, ...]) -> bool:
    """Whether they are as many, and bit for bit the same (NaN is NaN)."""
    return len(now) == len(then) and all(map(_same, now, then))


def _found(value: Any, depth: int, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach().cpu().clone()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        yield torch.from_numpy(value.copy())
    elif isinstance(value, float | np.floating):
        yield torch.tensor(float(value), dtype=torch.float64)
    elif depth and id(value) not in seen and not isinstance(value, type | types.ModuleType):
        seen.add(id(value))
        for part in _parts(value):
            yield from _found(part, depth - 1, seen)


def _parts(value: Any) -> Iterator[Any]:
    """What a function, a method or an object with attributes rests on."""
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            if cell != types.CellType():  # one that is not yet filled
                yield cell.cell_contents
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from (value.__globals__[name] for name in _named(value.__code__) if name in value.__globals__)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, torch.nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, tuple):
        yield from value
    elif is_dataclass(value):
        yield from (getattr(value, field.name) for field in fields(value) if field.compare)
    else:
        yield from getattr(value, "__dict__", {}).values()


@functools.lru_cache(maxsize=1024)
def _named(code: types.CodeType) -> tuple[str, ...]:
    """Globals that a function reads; `co_names` holds those of attributes, too."""
    return tuple(dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"))
