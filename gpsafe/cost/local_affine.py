"""Affine enclosures of the residual around anchor points: what a tube's step needs of F_n (theory §5.4).

At an anchor a, for every f ∈ F_n with ‖f_j‖_k ≤ B_j and every z, with v = z − a:

    f(z) = f(a) + ∂_v f(a) + rest,   |rest| ≤ B·‖k(z,·) − k(a,·) − ∂_v k(a,·)‖_k     (gpsafe.confidence.functionals)

and the value and slope at a lie in

    separate:  f(a) ∈ [l_n(a), h_n(a)],  |∂_v f(a) − ∂_v μ_n(a)| ≤ β sd_post[∂_v f(a)],
    joint:     |f(a) + ∂_v f(a) − μ_n(a) − ∂_v μ_n(a)| ≤ β sd_post[f(a) + ∂_v f(a)],

or, without gradients, |f(z) − f(a)| ≤ B d_k(z, a). The narrowest is taken, and cut to |f(z)| ≤ B√k. The first two
keep ∇μ_n as a linear map (it cancels against the feedback), so that a contracting loop stays contracting; the metric
form is the better one far from data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.functionals import (
    Band,
    differentiable,
    functional_bands,
    jet,
    taylor_modulus,
)
from gpsafe.confidence.set import EMPTY, ConfidenceSet
from gpsafe.models.low_rank import LowRankGP
from gpsafe.rkhs import kernels

MANY = 64  # columns of a cross-section whose products are all formed


@short
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

        With the columns z_i of offset, generators and errors, v = Σ ξ_i z_i, |ξ_i| ≤ 1, and vᵀSv ≤ Σ_ij |z_iᵀ S z_j|: never
        above (Σ_i √(z_iᵀ S z_i))², the triangle inequality, and far below where columns are nearly orthogonal for S. The
        latter is taken for more than `MANY` columns, whose products would cost more than a narrower set is worth.
        """
        columns = torch.cat([self.offset.unsqueeze(-1), self.generators, torch.diag_embed(self.error)], dim=-1)
        if columns.shape[-1] > MANY:
            columns = columns.unsqueeze(-3)
            return (columns * (gram @ columns)).sum(-2).clamp_min(0.0).sqrt().sum(-1)
        parts = [
            (columns.mT @ (part @ columns)).abs().sum((-2, -1)) for part in gram.unbind(-3)
        ]  # one at a time: memory
        return torch.stack(parts, dim=-1).sqrt()

    def support(self, normal: Tensor) -> Tensor:
        """sup |normal · v| over the set about its offset: sup |n·(v − offset)|, normal (*b, p, d) → (*b, p)."""
        along = (normal @ self.generators).abs().sum(-1)
        return along + (normal.abs() @ self.error.unsqueeze(-1)).squeeze(-1)

    def scaled_norm(self, inverse_scale: Tensor) -> Tensor:
        """An upper bound of sup ‖(z − a)∘inverse_scale‖ over the set, (*b,): the norm of the interval hull, which by the
        triangle inequality is no larger than the sum of the norms of offset, generators and errors.
        """
        return (self.radius * inverse_scale).square().sum(-1).sqrt()


@short
@dataclass(frozen=True, slots=True, eq=False)
class AffineRange:
    """{value + linear ξ + e : |e| ≤ error} ∋ f(z) over a cross-section; value, error (*b, p), linear (*b, p, m).

    `empty` (*b,) marks anchors where F_n came out empty: no claim is made there.
    """

    value: Tensor
    linear: Tensor
    error: Tensor
    empty: Tensor


@short
@dataclass(frozen=True, slots=True, eq=False)
class Moduli:
    """Kernel metric and Taylor modulus of p stationary kernels; kernels that differ in variance only are evaluated once.

    Attributes:
        shapes: the different kernels, with unit variance.
        inverse_scales: 1/ℓ of each, 0 for inactive dimensions, (d,).
        which: for each output, its shape.
        std: √k, (p,).
    """

    shapes: tuple[kernels.Stationary, ...]
    inverse_scales: tuple[Tensor, ...]
    which: tuple[int, ...]
    std: Tensor

    @staticmethod
    def of(forms: list[kernels.Stationary], anchors: Tensor) -> Moduli:
        """For inputs shaped and placed as the anchors (*b, d)."""
        keys, shapes, scales, which = [], [], [], []
        for form in forms:
            dims = None if form.dims is None else tuple(form.dims.tolist())
            key = (form.nu, tuple(form.lengthscale.tolist()), dims)
            if key not in keys:
                scale = torch.zeros(anchors.shape[-1], dtype=torch.float64, device=anchors.device)
                active = slice(None) if form.dims is None else form.dims.to(anchors.device)
                scale[active] = 1.0 / form.lengthscale.to(anchors.device)
                keys.append(key)
                shapes.append(replace(form, lengthscale=form.lengthscale.to(anchors.device), variance=1.0))
                scales.append(scale)
            which.append(keys.index(key))
        variance = torch.tensor([form.variance for form in forms], dtype=torch.float64, device=anchors.device)
        return Moduli(tuple(shapes), tuple(scales), tuple(which), variance.sqrt())

    def _spread(self, values: list[Tensor]) -> Tensor:
        if len(values) == 1:
            return values[0].unsqueeze(-1) * self.std
        return torch.stack([values[i] for i in self.which], dim=-1) * self.std

    def metric(self, radius: Tensor) -> Tensor:
        """sup of d_k(a, z) over |z_i − a_i| ≤ radius_i, (*b, d) → (*b, p), rounded outwards."""
        return self._spread([shape.metric_sq(radius).sqrt() * (1 + 1e-13) for shape in self.shapes])

    def rest(self, cross: Displacements) -> Tensor:
        """sup of ‖k(z, ·) − k(a, ·) − ∂_{z−a}k(a, ·)‖ over the set, (*b, p), rounded outwards."""
        return self.rest_within(cross.scaled_norm)

    def rest_within(self, scaled_norm: Callable[[Tensor], Tensor]) -> Tensor:
        """The same for any set of z − a with ‖(z − a)∘s‖ ≤ scaled_norm(s), (d,) → (*b,)."""
        pairs = zip(self.shapes, self.inverse_scales, strict=True)
        return self._spread([taylor_modulus(shape, scaled_norm(scale)) * (1 + 1e-13) for shape, scale in pairs])


@short
@dataclass(frozen=True, slots=True, eq=False)
class LocalAffine:
    """F_n seen from anchors: intervals of values and gradients there. All tensors have batch shape *b.

    Attributes:
        middle, half: (l_n + h_n)/2 and (h_n − l_n)/2 at the anchors, (*b, p).
        mean: (μ_n, ∇μ_n), (*b, p, 1 + d); None if gradients are unknown.
        cov: β² · posterior covariance of value and gradient, (*b, p, 1 + d, 1 + d).
        norm, cap: B and B√k, (p,).
        moduli: of the residuals' kernels.
        further: (mean, cov) of the other bands of `functional_bands`.
    """

    middle: Tensor
    half: Tensor
    mean: Tensor | None
    cov: Tensor | None
    norm: Tensor
    cap: Tensor
    moduli: Moduli
    further: tuple[tuple[Tensor, Tensor], ...] = ()

    @staticmethod
    def at(
        confidence: ConfidenceSet, anchors: Tensor, *, gradients: bool = True, multipliers: bool = False
    ) -> LocalAffine:
        """At anchors z (*b, d); `multipliers`: also from the bands of a convex program beside that of λ.

        Raises:
            ValueError: for kernels that are not stationary (RBF or Matérn), or a bound that assumes no norm.
        """
        model, bound = confidence.model, confidence.bound
        norm = bound.norms(model.num_outputs).to(anchors.device)
        forms = [kernels.stationary(kernel) for kernel in model.kernels]
        known = [form for form in forms if form is not None]
        if len(known) < len(forms):
            got = ", ".join(kernels.describe(kernel) for kernel in model.kernels)
            raise _require.fail("LocalAffine", "stationary kernels (RBF or Matérn)", got)
        if not bool(torch.isfinite(norm).all()):
            raise _require.fail("LocalAffine", "a bound with a finite RKHS norm", bound.name)
        moduli = Moduli.of(known, anchors)
        low, high = confidence.bounds(anchors)
        exact = model.exact if isinstance(model, LowRankGP) else model
        bands = functional_bands(bound, exact) if gradients and differentiable(exact) else ()
        jets = [_scaled(band, anchors) for band in (bands if multipliers else bands[:1])]
        mean, cov = jets[0] if jets else (None, None)
        cap = norm * moduli.std
        return LocalAffine(0.5 * (low + high), 0.5 * (high - low), mean, cov, norm, cap, moduli, tuple(jets[1:]))

    @property
    def empty(self) -> Tensor:
        """Anchors at which F_n came out empty, (*b,)."""
        return (self.half < -EMPTY * self.cap).any(-1)

    def gather(self, index: Tensor) -> LocalAffine:
        """Anchors (P, K) → one anchor for each of N points: index (P, N) into K."""

        def pick(value: Tensor) -> Tensor:
            flat = value.reshape(*value.shape[:2], -1)
            rows = torch.gather(flat, 1, index.unsqueeze(-1).expand(*index.shape, flat.shape[-1]))
            return rows.reshape(*index.shape, *value.shape[2:])

        mean = None if self.mean is None else pick(self.mean)
        cov = None if self.cov is None else pick(self.cov)
        further = tuple((pick(mean), pick(cov)) for mean, cov in self.further)
        return LocalAffine(pick(self.middle), pick(self.half), mean, cov, self.norm, self.cap, self.moduli, further)

    def range_outer(self, cross: Displacements) -> AffineRange:
        """The residual over cross-sections around the anchors: the narrowest of the forms, per output."""
        radius = cross.radius
        value, error = self.middle, self.half + self.norm * self.moduli.metric(radius)
        linear = torch.zeros(*value.shape, cross.generators.shape[-1], dtype=value.dtype, device=value.device)
        own = () if self.mean is None or self.cov is None else ((self.mean, self.cov),)
        for mean, cov in (*own, *self.further):
            rest = self.moduli.rest(cross)
            slope, spread = mean[..., 1:], cross.seminorm(cov[..., 1:, 1:])
            ahead = (slope @ cross.offset.unsqueeze(-1)).squeeze(-1)
            variance, mixed = cov[..., 0, 0], cov[..., 0, 1:]
            tilt = (mixed @ cross.offset.unsqueeze(-1)).squeeze(-1) + cross.support(mixed)
            joint = (variance + 2 * tilt + spread.square()).clamp_min(0.0).sqrt()
            extra = self.norm * rest + (slope.abs() @ cross.error.unsqueeze(-1)).squeeze(-1)
            for middle, half in ((self.middle, self.half + spread), (mean[..., 0], joint)):
                better = half + extra < error
                error = torch.where(better, half + extra, error)
                value = torch.where(better, middle + ahead, value)
                linear = torch.where(better.unsqueeze(-1), slope @ cross.generators, linear)
        return self._cut(value, linear, error.clamp_min(0.0))

    def _cut(self, value: Tensor, linear: Tensor, error: Tensor) -> AffineRange:
        """The same where its interval hull is within ±B√k, else that hull cut to ±B√k, without a linear part.

        So the range over a part of a set is never wider than ±B√k, which is what the whole may get. NaN and infinity give ±B√k.
        """
        reach = linear.abs().sum(-1)
        low, high = torch.maximum(value - reach - error, -self.cap), torch.minimum(value + reach + error, self.cap)
        within, known = value.abs() + reach + error <= self.cap, torch.isfinite(low + high)
        center = torch.where(known, 0.5 * (low + high), torch.zeros_like(value))
        radius = torch.where(known, (0.5 * (high - low)).clamp_min(0.0), self.cap.expand_as(value))
        value, error = torch.where(within, value, center), torch.where(within, error, radius)
        linear = torch.where(within.unsqueeze(-1), linear, torch.zeros_like(linear))
        empty = (low > high + EMPTY * self.cap).any(-1) | self.empty
        return AffineRange(value, linear, error * (1 + 1e-12), empty)


def _scaled(band: Band, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """(μ, ∇μ) and β² · posterior covariance at the anchors."""
    found = jet(band.model, anchors)
    return found.mean, found.cov * band.beta.to(anchors.device).square()[:, None, None]
