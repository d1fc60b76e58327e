"""Recorded transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short


def spaced(count: int, most: int) -> Tensor:
    """At most so many places evenly from the first of `count` rows to the last, not yet whole, in any default type of torch."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """Observed (x, u, x⁺): shapes (n, nx), (n, nu), (n, nx). ``a + b`` concatenates.

    Kept as float64 copies without gradients, so that nobody's later in-place change alters what was recorded.
    Refuses NaN, infinite and empty data.
    """

    x: Tensor
    u: Tensor
    x_next: Tensor

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, x: _require.Numbers, u: _require.Numbers, x_next: _require.Numbers) -> None: ...

    def __post_init__(self) -> None:
        for name in ("x", "u", "x_next"):
            value = _require.floats("Transitions", name, getattr(self, name))
            if not (name == "u" and value.ndim == 2 and value.shape[1] == 0):  # no input: (n, 0) is right, not empty
                value = _require.finite("Transitions", name, value)
            if value.ndim != 2:
                raise _require.fail("Transitions", f"{name} of shape (n, d)", f"shape {tuple(value.shape)}")
            with torch.inference_mode(False):  # what was recorded in inference mode is learnt from in another
                object.__setattr__(self, name, value.detach().clone())
        _require.shape("Transitions", "x_next", self.x_next, tuple(self.x.shape))
        if self.u.shape[0] != self.x.shape[0]:
            raise _require.fail("Transitions", f"{self.x.shape[0]} inputs u", self.u.shape[0])

    def __len__(self) -> int:
        return self.x.shape[0]

    def __add__(self, other: Transitions) -> Transitions:
        if not isinstance(other, Transitions):
            return NotImplemented
        for name, a, b in (("nx", self.x, other.x), ("nu", self.u, other.u)):
            if a.shape[1] != b.shape[1]:
                raise _require.fail("Transitions", f"the same {name} in both terms", (a.shape[1], b.shape[1]))
        return Transitions(
            torch.cat([self.x, other.x]), torch.cat([self.u, other.u]), torch.cat([self.x_next, other.x_next])
        )

    def select(self, rows: Tensor | slice) -> Transitions:
        """Some of the rows: numbers, a mask or a slice."""
        return Transitions(self.x[rows], self.u[rows], self.x_next[rows])

    @property
    def z(self) -> Tensor:
        """Model inputs (x, u), shape (n, nx + nu)."""
        return torch.cat([self.x, self.u], dim=-1)
