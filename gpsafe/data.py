"""Recorded transitions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """Observed (x, u, x⁺): shapes (n, nx), (n, nu), (n, nx). ``a + b`` concatenates. Refuses NaN, infinite, empty data."""

    x: Tensor
    u: Tensor
    x_next: Tensor

    def __post_init__(self) -> None:
        for name in ("x", "u", "x_next"):
            value = _require.finite("Transitions", name, getattr(self, name))
            if value.ndim != 2:
                raise _require.fail("Transitions", f"{name} of shape (n, d)", f"shape {tuple(value.shape)}")
            object.__setattr__(self, name, value)
        _require.shape("Transitions", "x_next", self.x_next, tuple(self.x.shape))
        if self.u.shape[0] != self.x.shape[0]:
            raise _require.fail("Transitions", f"{self.x.shape[0]} inputs u", self.u.shape[0])

    def __len__(self) -> int:
        return self.x.shape[0]

    def __add__(self, other: Transitions) -> Transitions:
        return Transitions(
            torch.cat([self.x, other.x]), torch.cat([self.u, other.u]), torch.cat([self.x_next, other.x_next])
        )

    @property
    def z(self) -> Tensor:
        """Model inputs (x, u), shape (n, nx + nu)."""
        return torch.cat([self.x, self.u], dim=-1)
