"""Axis-aligned boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short


@short
@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """{x : lower ≤ x ≤ upper}, both (d,), finite, non-empty."""

    lower: Tensor
    upper: Tensor

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, lower: _require.Numbers, upper: _require.Numbers) -> None: ...

    def __post_init__(self) -> None:
        lower = torch.atleast_1d(_require.finite("Box", "lower", self.lower)).clone()  # its own: limits that move were
        upper = torch.atleast_1d(_require.finite("Box", "upper", self.upper)).clone()  # never certified
        _require.shape("Box", "upper", upper, tuple(lower.shape))
        if lower.ndim != 1:
            raise _require.fail("Box", "lower of shape (d,)", f"shape {tuple(lower.shape)}")
        if not bool((lower <= upper).all()):
            raise _require.fail("Box", "lower <= upper", f"{lower.tolist()} and {upper.tolist()}")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    @property
    def dim(self) -> int:
        """d."""
        return self.lower.numel()

    @property
    def center(self) -> Tensor:
        """Midpoint, (d,)."""
        return 0.5 * (self.lower + self.upper)

    @property
    def radius(self) -> Tensor:
        """Half-widths, (d,)."""
        return 0.5 * (self.upper - self.lower)

    def support(self, directions: Tensor) -> Tensor:
        """max of n·x over the box for n (k, d): (k,). Exact."""
        directions = _require.floats("Box.support", "directions", directions)
        return directions @ self.center + directions.abs() @ self.radius

    def vertices(self) -> Tensor:
        """All 2^d corners, (2^d, d)."""
        pairs = torch.stack([self.lower, self.upper])
        picks = torch.cartesian_prod(*[torch.arange(2)] * self.dim).reshape(-1, self.dim)
        return pairs[picks, torch.arange(self.dim)]

    def image_outer(self, matrix: Tensor, offset: Tensor) -> Box:
        """The smallest box around {Mx + o : x in the box}, M (e, d), o (e,); up to rounding."""
        _require.last_dim("Box.image_outer", "matrix", matrix, self.dim)
        center, radius = matrix @ self.center + offset, matrix.abs() @ self.radius
        return Box(center - radius, center + radius)

    def intersect(self, other: Box) -> Box:
        """The common part; an error if there is none."""
        return Box(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def contains(self, x: _require.Numbers) -> Tensor:
        """Boolean (*b,) for x (*b, d)."""
        x = _require.points("Box.contains", "x", x, self.dim)
        return ((x >= self.lower) & (x <= self.upper)).all(-1)

    def clip(self, x: _require.Numbers) -> Tensor:
        """Nearest point of the box, (*b, d)."""
        x = _require.points("Box.clip", "x", x, self.dim)
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def sample(self, count: int, generator: torch.Generator | int) -> Tensor:
        """Uniform points, (count, d), of a generator or an integer seed."""
        generator = _require.generator("Box.sample", generator)
        unit = torch.rand(count, self.dim, dtype=torch.float64, generator=generator)
        return self.lower + (self.upper - self.lower) * unit
