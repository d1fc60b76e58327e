"""Affine enclosures of the residual around anchor points: what a tube's step needs of F_n (theory §3.5, §5).

At an anchor a, for every f ∈ F_n with ‖f_j‖_k ≤ B_j and every z:

    f(z) = f(a) + ∂_{z−a}f(a) + rest,   f(a) ∈ [l_n(a), h_n(a)],   |∂_v f(a) − ∂_v μ_n(a)| ≤ β √(vᵀSv),
    |rest| ≤ B·‖k(z,·) − k(a,·) − ∂_{z−a}k(a,·)‖_k                        (gpsafe.confidence.functionals)

or, without gradients, |f(z) − f(a)| ≤ B d_k(z, a); and |f(z)| ≤ B√k everywhere. The gradient form keeps ∇μ_n as a
linear map (it cancels against the feedback), so that a contracting loop stays contracting; the metric form is the
better one far from data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require, kernels
from gpsafe.confidence.functionals import (
    differentiable,
    functional_beta,
    gradient_band,
    taylor_modulus,
)
from gpsafe.confidence.set import ConfidenceSet

EMPTY = 1e-9  # l_n may exceed h_n by rounding only


@dataclass(frozen=True, slots=True, eq=False)
class Displacements:
    """The set of z − a over a cross-section: {offset + Zξ + e : ξ ∈ [−1, 1]^m, |e_i| ≤ error_i}.

    Attributes:
        offset: (*b, d).
        generators: Z, (*b, d, m).
        error: (*b, d).
    """

    offset: Tensor
    generators: Tensor
    error: Tensor

    @property
    def radius(self) -> Tensor:
        """sup |z_i − a_i|, (*b, d)."""
        return self.offset.abs() + self.generators.abs().sum(-1) + self.error

    def seminorm(self, gram: Tensor) -> Tensor:
        """An upper bound of sup √(vᵀ S v) over the set for S = gram ⪰ 0 (*b, p, d, d), (*b, p).

        By the triangle inequality over offset, generators and errors.
        """
        columns = torch.cat(
            [self.offset.unsqueeze(-1), self.generators, torch.diag_embed(self.error)], dim=-1
        ).unsqueeze(-3)
        return (columns * (gram @ columns)).sum(-2).clamp_min(0.0).sqrt().sum(-1)

    def scaled_norm(self, inverse_scale: Tensor) -> Tensor:
        """An upper bound of sup ‖(z − a)∘inverse_scale‖ over the set, (*b,): the smaller of the norm of the interval
        hull and the triangle inequality.
        """
        hull = torch.linalg.vector_norm(self.radius * inverse_scale, dim=-1)
        scale = inverse_scale.unsqueeze(-1)
        parts = torch.linalg.vector_norm(self.generators * scale, dim=-2).sum(-1)
        parts = parts + torch.linalg.vector_norm(self.offset * inverse_scale, dim=-1)
        return torch.minimum(hull, parts + (self.error * inverse_scale).sum(-1))


@dataclass(frozen=True, slots=True, eq=False)
class AffineRange:
    """{value + linear ξ + e : |e| ≤ error} ∋ f(z) over a cross-section; value, error (*b, p), linear (*b, p, m).

    `empty` (*b,) marks anchors where F_n came out empty: no claim is made there.
    """

    value: Tensor
    linear: Tensor
    error: Tensor
    empty: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LocalAffine:
    """F_n seen from anchors: intervals of values and gradients there. All tensors have batch shape *b.

    Attributes:
        middle, half: (l_n + h_n)/2 and (h_n − l_n)/2 at the anchors, (*b, p).
        slope: ∇μ_n, (*b, p, d); None if gradients are unknown.
        spread: β² · posterior covariance of the gradient, (*b, p, d, d).
        norm, cap: B and B√k, (p,).
        kernels: of the residuals.
    """

    middle: Tensor
    half: Tensor
    slope: Tensor | None
    spread: Tensor | None
    norm: Tensor
    cap: Tensor
    kernels: tuple[kernels.Kernel, ...]

    @staticmethod
    def at(confidence: ConfidenceSet, anchors: Tensor, *, gradients: bool = True) -> LocalAffine:
        """At anchors z (*b, d).

        Raises:
            ValueError: for kernels that are not stationary (RBF or Matérn), or a bound that assumes no norm.
        """
        model, bound = confidence.model, confidence.bound
        norm = bound.norms(model.num_outputs).to(anchors.device)
        forms = [kernels.stationary(kernel) for kernel in model.kernels]
        if any(form is None for form in forms):
            raise _require.fail("LocalAffine", "stationary kernels (RBF or Matérn)", [type(k).__name__ for k in model.kernels])
        if not bool(torch.isfinite(norm).all()):
            raise _require.fail("LocalAffine", "a bound with a finite RKHS norm", bound.name)
        variance = torch.tensor([form.variance for form in forms if form], dtype=torch.float64, device=anchors.device)
        low, high = confidence.bounds(anchors)
        beta = functional_beta(bound, model) if gradients and differentiable(model) else None
        slope = spread = None
        if beta is not None:
            band = gradient_band(model, anchors)
            slope, spread = band.mean, band.cov * beta.to(anchors.device).square()[:, None, None]
        return LocalAffine(
            0.5 * (low + high), 0.5 * (high - low), slope, spread, norm, norm * variance.sqrt(), model.kernels
        )

    def gather(self, index: Tensor) -> LocalAffine:
        """Anchors (P, K) → one anchor for each of N points: index (P, N) into K."""

        def pick(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            flat = value.reshape(*value.shape[:2], -1)
            rows = torch.gather(flat, 1, index.unsqueeze(-1).expand(*index.shape, flat.shape[-1]))
            return rows.reshape(*index.shape, *value.shape[2:])

        middle, half = pick(self.middle), pick(self.half)
        assert middle is not None and half is not None
        return LocalAffine(middle, half, pick(self.slope), pick(self.spread), self.norm, self.cap, self.kernels)

    def range_outer(self, cross: Displacements) -> AffineRange:
        """The residual over cross-sections around the anchors: the narrowest of the three forms, per output."""
        norm, cap = self.norm, self.cap
        radius = cross.radius
        metric = torch.stack([kernels.metric_over_box(k, radius) for k in self.kernels], dim=-1)  # type: ignore[arg-type]
        value = self.middle
        error = self.half + norm * metric
        linear = torch.zeros(
            *value.shape, cross.generators.shape[-1], dtype=value.dtype, device=value.device
        )
        if self.slope is not None and self.spread is not None:
            rests = []
            for k in self.kernels:
                form = kernels.stationary(k)
                assert form is not None
                scale = torch.zeros_like(radius[..., 0, :].reshape(-1, radius.shape[-1])[0])
                active = slice(None) if form.dims is None else form.dims.to(scale.device)
                scale[active] = 1.0 / form.lengthscale.to(scale.device)
                rests.append(taylor_modulus(form, cross.scaled_norm(scale)))
            kinks = torch.einsum("...pd,...d->...p", self.slope.abs(), cross.error)
            sharp = self.half + cross.seminorm(self.spread) + norm * torch.stack(rests, dim=-1) + kinks
            better = sharp < error
            error = torch.where(better, sharp, error)
            moved = value + torch.einsum("...pd,...d->...p", self.slope, cross.offset)
            value = torch.where(better, moved, value)
            linear = torch.where(better.unsqueeze(-1), self.slope @ cross.generators, linear)
        lost = ~(error < cap)  # also where it is NaN
        value = torch.where(lost, torch.zeros_like(value), value)
        linear = torch.where(lost.unsqueeze(-1), torch.zeros_like(linear), linear)
        error = torch.where(lost, cap.expand_as(error), error.clamp_min(0.0))
        return AffineRange(value, linear, error * (1 + 1e-12), (self.half < -EMPTY).any(-1))
