"""Second-order remainders of the known part over a set, with local curvature where the known part offers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gpsafe.cost.enclosure import jacobians
from gpsafe.systems.base import KnownPart


@runtime_checkable
class LocallyCurved(KnownPart, Protocol):
    """A known part that also bounds its second derivatives over boxes, not only everywhere."""

    def hessian_over(self, lower: Tensor, upper: Tensor) -> Tensor:
        """|∂²p_i/∂z_j∂z_k| ≤ H_ijk on the box [lower, upper] of z = (x, u), (*b, nz) ×2 → (*b, nx, nz, nz)."""
        ...


def remainder_outer(known: KnownPart, center: Tensor, radius: Tensor) -> Tensor:
    """≥ |p(z) − p(c) − ∂p(c)(z − c)| for |z − c| ≤ radius, c, radius (*b, nz) → (*b, nx): ½ Σ_jk H_ijk r_j r_k.

    The segment from c to z lies in the box, so the Hessian bound over the box is enough (Taylor's theorem with the
    integral remainder).
    """
    if isinstance(known, LocallyCurved):
        hessian = known.hessian_over(center - radius, center + radius)
        return 0.5 * torch.einsum("...ijk,...j,...k->...i", hessian, radius, radius) * (1 + 1e-12)
    hessian = known.hessian_bound.to(center.device)
    return 0.5 * torch.einsum("ijk,...j,...k->...i", hessian, radius, radius) * (1 + 1e-12)


def wide_axes(known: KnownPart, outputs: Sequence[int]) -> tuple[int, ...]:
    """States whose error box in a tube's step may have width, whatever the set: all but those that neither are learned, nor
    bend, nor feel the input.

    A state whose row of the Hessian bound is 0 is affine, so that ∂p_i/∂u is the same everywhere: 0 at the origin means that
    no saturation of u reaches it. (Read off the model, never off a batch: sets must not see each other.)
    """
    hessian = known.hessian_bound
    nx = hessian.shape[0]
    x, u = hessian.new_zeros(1, nx), hessian.new_zeros(1, hessian.shape[-1] - nx)
    still = (hessian == 0).all(-1).all(-1) & (jacobians(known, x, u)[1][0] == 0).all(-1)
    return tuple(i for i in range(nx) if i in outputs or not bool(still[i]))
