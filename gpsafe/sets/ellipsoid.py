"""Ellipsoids in factor form, batched; flat ones and points are ordinary members (theory §6.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.sets._containment import Containment, maximize_square

_RANK = 1e-12  # singular values below this share of the largest count as 0 where a rank must be decided


@short
@dataclass(frozen=True, slots=True, eq=False)
class Ellipsoid:
    """E(c, L) = {c + Lξ : ‖ξ‖₂ ≤ 1}, a batch of them. Its shape matrix is Q = LLᵀ.

    The factor need be neither square nor of full rank. Supports come from L and err by about 1e-16 ‖L‖ even near a null
    direction, where they would err by 1e-8 from Q.

    Args:
        center: c, (*b, d).
        factor: L, (*b, d, m); m may be 0 (a point).
    """

    center: Tensor
    factor: Tensor

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, center: _require.Numbers, factor: _require.Numbers) -> None: ...

    def __post_init__(self) -> None:
        center = _require.finite("Ellipsoid", "center", self.center)
        factor = _require.floats("Ellipsoid", "factor", self.factor)
        if factor.ndim < 2 or factor.shape[:-1] != center.shape:
            got = f"{tuple(center.shape)} and {tuple(factor.shape)}"
            raise _require.fail("Ellipsoid", "center (*b, d) and factor (*b, d, m)", got)
        if factor.numel() > 0:
            _require.finite("Ellipsoid", "factor", factor)
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "factor", factor)

    # ------------------------------------------------------------------- makers
    @staticmethod
    def point(center: Tensor) -> Ellipsoid:
        """{c}."""
        return Ellipsoid(center, center.new_zeros(*center.shape, 0))

    @staticmethod
    def ball(center: Tensor, radius: float | Tensor) -> Ellipsoid:
        """Axis-aligned, with half-axes `radius` (scalar or broadcastable to (*b, d)), ≥ 0."""
        radius = _require.nonnegative("Ellipsoid.ball", "radius", radius)
        return Ellipsoid(center, torch.diag_embed(radius.to(center.device).expand(center.shape)))

    @staticmethod
    def from_shape(center: Tensor, shape: Tensor) -> Ellipsoid:
        """From a symmetric positive semi-definite Q (*b, d, d); eigenvalues above −1e-12 λ_max count as 0 if negative."""
        shape = _require.finite("Ellipsoid.from_shape", "shape", shape)
        values = torch.linalg.eigvalsh(0.5 * shape + 0.5 * shape.mT)
        if not bool((values[..., 0] >= -1e-12 * values[..., -1].abs()).all()) or not bool(
            ((shape - shape.mT).abs() <= 1e-10 * shape.abs().amax((-2, -1), keepdim=True)).all()
        ):
            smallest = f"smallest eigenvalue {float(values.min()):.3e}"
            raise _require.fail("Ellipsoid.from_shape", "symmetric positive semi-definite shape", smallest)
        return Ellipsoid(center, linalg.psd_root(shape))

    # --------------------------------------------------------------- properties
    @property
    def dim(self) -> int:
        """d."""
        return self.center.shape[-1]

    @property
    def shape(self) -> Tensor:
        """Q = LLᵀ, (*b, d, d)."""
        return self.factor @ self.factor.mT

    @property
    def radius(self) -> Tensor:
        """Half-widths of the bounding box, (*b, d)."""
        return self.factor.norm(dim=-1)

    @property
    def trace(self) -> Tensor:
        """tr Q, (*b,)."""
        return self.factor.square().sum((-2, -1))

    # --------------------------------------------------------------- operations
    def support(self, directions: Tensor) -> Tensor:
        """max of n·x over the set, n·c + ‖Lᵀn‖, for n (k, d): (*b, k). Exact."""
        directions = _require.floats("Ellipsoid.support", "directions", directions)
        return self.center @ directions.mT + (directions @ self.factor).norm(dim=-1)

    def support_point(self, direction: Tensor) -> Tensor:
        """A point where n·x is largest, for n broadcastable to (*b, d); the centre where the set is flat along n."""
        direction = _require.floats("Ellipsoid.support_point", "direction", direction)
        pulled = (self.factor.mT @ direction.unsqueeze(-1)).squeeze(-1)
        length = pulled.norm(dim=-1, keepdim=True)
        unit = torch.where(length == 0, 0.0, pulled / torch.where(length == 0, 1.0, length))
        return self.center + (self.factor @ unit.unsqueeze(-1)).squeeze(-1)

    def affine(self, matrix: Tensor, offset: Tensor | None = None) -> Ellipsoid:
        """{Mx + o}: M (*b, e, d), o (*b, e). Exact."""
        center = (matrix @ self.center.unsqueeze(-1)).squeeze(-1)
        factor = matrix @ self.factor
        center = center if offset is None else center + offset
        return Ellipsoid(center, factor.expand(*center.shape, factor.shape[-1]))

    def project(self, dims: list[int]) -> Ellipsoid:
        """The shadow on the given coordinates. Exact."""
        return Ellipsoid(self.center[..., dims], self.factor[..., dims, :])

    def compress(self) -> Ellipsoid:
        """The same set with at most d columns, by QR of Lᵀ (Q is kept to about 1e-16 ‖L‖² without being formed)."""
        if self.factor.shape[-1] <= self.dim:
            return self
        return Ellipsoid(self.center, torch.linalg.qr(self.factor.mT, mode="r")[1].mT)

    def minkowski_sum_outer(self, *others: Ellipsoid) -> Ellipsoid:
        """The trace-minimal ellipsoid that contains the Minkowski sum and has the form Σ_i Q_i/p_i, Σp_i = 1.

        Q = (Σ s_j) Σ Q_i/s_i with s_i = √tr Q_i; points add nothing. For two: (1 + 1/α) Q₁ + (1 + α) Q₂, α = s₁/s₂. Its
        trace is (Σ s_i)². By Cauchy's inequality ‖Σ L_iᵀn‖ ≤ √Σ‖L_iᵀn‖²/p_i, for any p, so that it contains the sum.
        Batches broadcast.
        """
        summands = (self, *others)
        for other in others:
            _require.last_dim("Ellipsoid.minkowski_sum_outer", "center", other.center, self.dim)
        sizes = [e.factor.square().sum((-2, -1)).sqrt() for e in summands]
        total = torch.stack(torch.broadcast_tensors(*sizes)).sum(0)
        center = torch.stack(torch.broadcast_tensors(*[e.center for e in summands])).sum(0)
        columns = []
        for e, size in zip(summands, sizes, strict=True):
            ratio = torch.where(size > 0, total / torch.where(size > 0, size, torch.ones_like(size)), 0.0)
            weighted = ratio.sqrt()[..., None, None] * e.factor
            columns.append(weighted.expand(*center.shape, e.factor.shape[-1]))
        return Ellipsoid(center, torch.cat(columns, dim=-1)).compress()

    # -------------------------------------------------------------- containment
    def gauge(self, x: Tensor, *, tol: float = 1e-10) -> Tensor:
        """min ‖ξ‖ with c + Lξ = x, for x (*b, d): (*b,); inf off the set's affine span (farther than tol ‖(x − c, L)‖, in units
        in which every coordinate extends over about 1), and where x is no number or too large to tell.
        """
        tol = _require.tolerance("Ellipsoid.gauge", tol)
        unit = _units(self.factor)
        gap = (_require.points("Ellipsoid", "x", x, self.dim) - self.center) / unit
        factor = self.factor / unit.unsqueeze(-1)
        inverse, span = _pseudo_inverse(factor)
        xi = (inverse @ gap.unsqueeze(-1)).squeeze(-1)
        off = (gap.unsqueeze(-1) - span @ (span.mT @ gap.unsqueeze(-1))).squeeze(-1).norm(dim=-1)
        scale = gap.norm(dim=-1) + factor.norm(dim=(-2, -1))
        return torch.where((off <= tol * scale) & torch.isfinite(scale), xi.norm(dim=-1), torch.inf)

    def contains(self, x: Tensor, *, tol: float = 1e-10) -> Tensor:
        """Boolean (*b,): gauge ≤ 1 + tol."""
        return self.gauge(x, tol=tol) <= 1.0 + _require.tolerance("Ellipsoid.contains", tol)

    def inside_halfspaces(self, H: Tensor, h: Tensor) -> Containment:
        """Is the set in {Hx ≤ h}, H (k, d), h broadcastable to (*b, k)? Margin min_i (h_i − support_i), in units of Hx."""
        slack = h - self.support(H)
        margin, row = slack.min(dim=-1)
        return Containment(margin, self.support_point(H[row]))

    def inside(self, other: Ellipsoid, *, tol: float = 1e-10) -> Containment:
        """Is the set in another ellipsoid? Margin 1 − max gauge of `other`; exact by the S-procedure, from below.

        Up to rounding, about 1e-16 times the condition number of `other` (3e-9 measured at 1e8).
        If the other one is flat: −inf when this set leaves its affine span by more than tol of the two sets' size, in units in
        which every coordinate of the other extends over about 1.
        """
        tol = _require.tolerance("Ellipsoid.inside", tol)
        unit = _units(other.factor)
        mine, others = self.factor / unit.unsqueeze(-1), other.factor / unit.unsqueeze(-1)
        inverse, span = _pseudo_inverse(others)
        gap = ((self.center - other.center) / unit).unsqueeze(-1)
        upper, xi = maximize_square((inverse @ gap).squeeze(-1), inverse @ mine)
        margin = 1.0 - upper.sqrt()
        off_gap, off = gap - span @ (span.mT @ gap), mine - span @ (span.mT @ mine)
        distance, off_xi = maximize_square(off_gap.squeeze(-1), off)
        scale = gap.squeeze(-1).norm(dim=-1) + mine.norm(dim=(-2, -1)) + others.norm(dim=(-2, -1))
        leaves = ~((distance.sqrt() <= tol * scale) & torch.isfinite(scale))
        xi = torch.where(leaves.unsqueeze(-1), off_xi, xi)
        witness = self.center + (self.factor @ xi.unsqueeze(-1)).squeeze(-1)
        return Containment(torch.where(leaves, torch.full_like(margin, -torch.inf), margin), witness)

    # ------------------------------------------------------------------- points
    def nearest(self, x: Tensor, *, steps: int = 100) -> Tensor:
        """The point of the set closest to x (*b, d), by bisection on the multiplier of ‖ξ‖ ≤ 1."""
        U, s, _ = torch.linalg.svd(self.factor, full_matrices=False)
        y = (U.mT @ (x - self.center).unsqueeze(-1)).squeeze(-1)
        batch = torch.broadcast_shapes(y.shape, s.shape)
        y, s = y.expand(batch), s.expand(batch)

        def xi(mu: Tensor) -> Tensor:
            denominator = s.square() + mu
            return torch.where(s > 0, s * y / torch.where(s > 0, denominator, torch.ones_like(s)), 0.0)

        low = torch.zeros_like(y[..., :1])
        high = (s * y).norm(dim=-1, keepdim=True)
        for _ in range(steps):
            middle = 0.5 * (low + high)
            beyond = xi(middle).square().sum(-1, keepdim=True) > 1.0
            low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
        inner = xi(torch.zeros_like(low))
        chosen = torch.where(inner.square().sum(-1, keepdim=True) <= 1.0, inner, xi(high))
        return self.center + (U @ (s * chosen).unsqueeze(-1)).squeeze(-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Points uniform in the set (in its affine span where it is flat), (count, *b, d)."""
        return self._sample(count, generator, fill=True)

    def sample_boundary(self, count: int, generator: torch.Generator) -> Tensor:
        """Images of uniform points of the unit sphere, on the (relative) boundary, (count, *b, d)."""
        return self._sample(count, generator, fill=False)

    def _sample(self, count: int, generator: torch.Generator, *, fill: bool) -> Tensor:
        U, s, _ = torch.linalg.svd(self.factor, full_matrices=False)
        present = (s > _RANK * s.amax(-1, keepdim=True)) if s.shape[-1] else s > 0
        shape = (count, *s.shape)
        ray = (
            torch.randn(shape, dtype=torch.float64, generator=generator, device=generator.device).to(s.device) * present
        )
        length = ray.norm(dim=-1, keepdim=True)
        ray = ray / torch.where(length > 0, length, torch.ones_like(length))
        if fill:
            unit = torch.rand(shape[:-1], dtype=torch.float64, generator=generator, device=generator.device).to(
                s.device
            )
            ray = ray * (unit ** (1.0 / present.sum(-1).clamp_min(1))).unsqueeze(-1)
        return self.center + (U @ (s * ray).unsqueeze(-1)).squeeze(-1)


def _units(factor: Tensor) -> Tensor:
    """The extent of each coordinate to a power of two, (*b, d); where a set has none, that of all of it (1 for a point).

    In other units an axis of 1e-8 beside one of 1e8 would count as none, and what is tolerated off the span as a share of the
    longest would be thousands of times the shortest.
    """
    extent = factor.norm(dim=-1)
    whole = extent.norm(dim=-1, keepdim=True)
    extent = torch.where(extent > 0, extent, torch.where(whole > 0, whole, 1.0))
    usable = torch.isfinite(extent) & (extent > 1e-300)
    return torch.exp2(torch.where(usable, extent, 1.0).log2().round())


def _pseudo_inverse(factor: Tensor) -> tuple[Tensor, Tensor]:
    """L⁺ (*b, m, d) and an orthonormal basis of the range of L, padded by zero columns; rank by `_RANK`."""
    U, s, Vh = torch.linalg.svd(factor, full_matrices=False)
    keep = (s > _RANK * s.amax(-1, keepdim=True)) if s.shape[-1] else s > 0
    inverse = torch.where(keep, 1.0 / torch.where(keep, s, torch.ones_like(s)), 0.0)
    return Vh.mT @ (inverse.unsqueeze(-1) * U.mT), U * keep.unsqueeze(-2)
