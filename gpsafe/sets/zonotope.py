"""Zonotopes, batched; every approximating operation names its direction.

The sets of a batch never see each other: what becomes of one is bit for bit the same whatever the others are, NaN included,
and a set with a NaN or infinite entry stays one (`within` is False for it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short

HUGE = 1e100  # sizes beyond which squares and products of a tube's arithmetic may overflow: nothing is claimed there
APART = 2.0**36  # of two coordinates' sizes: what the larger rounds is a hundredth of the smaller, or less


@short
@dataclass(frozen=True, slots=True, eq=False)
class Zonotope:
    """{c + Gξ : ξ ∈ [−1, 1]^m}, a batch of them.

    Args:
        center: c, (*b, d).
        generators: G, (*b, d, m); m may be 0.
    """

    center: Tensor
    generators: Tensor

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, center: _require.Numbers, generators: _require.Numbers) -> None: ...

    def __post_init__(self) -> None:
        for name in ("center", "generators"):
            object.__setattr__(self, name, _require.floats("Zonotope", name, getattr(self, name)))
        if self.generators.shape[:-1] != self.center.shape:
            got = f"{tuple(self.center.shape)} and {tuple(self.generators.shape)}"
            raise _require.fail("Zonotope", "center (*b, d) and generators (*b, d, m)", got)

    @staticmethod
    def point(center: Tensor) -> Zonotope:
        """{c}."""
        return Zonotope(center, center.new_zeros(*center.shape, 0))

    @property
    def order(self) -> int:
        """m, the number of generators."""
        return self.generators.shape[-1]

    @property
    def radius(self) -> Tensor:
        """Half-widths of the interval hull, (*b, d)."""
        return self.generators.abs().sum(-1)

    def select(self, index: Tensor) -> Zonotope:
        """The sets of the given indices or mask along the first batch dimension."""
        return Zonotope(self.center[index], self.generators[index])

    def within(self, limit: float) -> Tensor:
        """Whether no half-width of the interval hull exceeds `limit`, and no number `HUGE`, (*b,); False for NaN."""
        return (self.radius.amax(-1) <= min(limit, HUGE)) & (self.center.abs().amax(-1) <= HUGE)

    def support(self, directions: Tensor) -> Tensor:
        """max of n·x over the set for directions n (k, d), (*b, k)."""
        directions = _require.floats("Zonotope.support", "directions", directions)
        along = torch.einsum("kd,...dm->...km", directions, self.generators).abs().sum(-1)
        return torch.einsum("kd,...d->...k", directions, self.center) + along

    def terms(self, directions: Tensor) -> Tensor:
        """Σ_i |n_i|·max|x_i| over the set, (*b, k): the terms of `support`, of which its rounding is a share, cancel or not."""
        return (self.center.abs() + self.radius) @ directions.abs().mT

    def affine(self, matrix: Tensor, offset: Tensor) -> Zonotope:
        """{Mx + o}, M (*b, e, d), o (*b, e): exact."""
        return Zonotope((matrix @ self.center.unsqueeze(-1)).squeeze(-1) + offset, matrix @ self.generators)

    def plus_box(self, radius: Tensor, axes: Sequence[int] | None = None) -> Zonotope:
        """Minkowski sum with the box of half-widths `radius` (*b, d): exact.

        Args:
            axes: the only ones along which a box may have width (default: all), so that the others add no generators. Known
                beforehand, never read off the batch. A set whose box has width elsewhere becomes NaN, as does one whose
                half-widths are negative or NaN.
        """
        chosen = list(range(radius.shape[-1]) if axes is None else axes)
        others = [i for i in range(radius.shape[-1]) if i not in chosen]
        fits = (radius >= 0).all(-1)
        columns = torch.diag_embed(radius)
        if others:
            fits, columns = fits & (radius[..., others] == 0).all(-1), columns[..., chosen]
        columns = columns.masked_fill(~fits[..., None, None], torch.nan)
        return Zonotope(self.center, torch.cat([self.generators, columns], dim=-1))

    def reduce_outer(self, order: int) -> Zonotope:
        """A zonotope of at most max(order, 2d) generators that contains this one; halves the number when it must reduce.

        The first generators (in a tube the oldest) are replaced by the box around them in the frame of their principal
        axes, an orthogonal V: {Oξ} ⊆ {SV diag(Σ|VᵀS⁻¹O|) ζ}. S is a multiple of I, but for coordinates of sizes that are
        `APART`, which are scaled on their own: what the larger rounds would be all there is of the smaller.
        """
        d = self.center.shape[-1]
        limit = max(order, 2 * d)
        if self.order <= limit:
            return self
        kept = limit // 2
        old, new = self.generators.split([self.order - kept, kept], dim=-1)
        size = old.abs().amax(-1)
        near = size.unsqueeze(-2) <= APART * size.unsqueeze(-1)
        scale = torch.where(near, size.unsqueeze(-2), 0.0).amax(-1, keepdim=True)  # the largest that is not `APART`
        unit = old / torch.where(scale > 0, scale, 1.0)
        finite = unit.nan_to_num(0.0, 0.0, 0.0)  # a decomposition of NaN would raise for all sets
        _, frame = torch.linalg.eigh(finite @ finite.mT)
        width = (frame.mT @ unit).abs().sum(-1, keepdim=True)
        width = width + 1e-13 * d * width.sum(-2, keepdim=True)  # frame is orthogonal up to rounding
        return Zonotope(self.center, torch.cat([scale * frame * width.mT, new], dim=-1))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Points of the set (ξ uniform, a third of them at vertices of the cube), (count, *b, d)."""
        shape = (count, *self.center.shape[:-1], self.order)
        xi = 2 * torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device) - 1
        signs = torch.where(xi >= 0, torch.ones_like(xi), -torch.ones_like(xi))
        xi[: count // 3] = signs[: count // 3]
        xi = xi.to(self.center.device)
        return self.center + torch.einsum("...dm,n...m->n...d", self.generators, xi)
