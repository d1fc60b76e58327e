"""The residual over a cell, from the posterior of its value and gradient (theory §5.11).

Over a cell with centre c let z_c = (c, π(c)), z = (x, π(x)) = z_c + v, and let a be any point near z_c, w = z_c − a. With
φ_z = k(z, ·), for f ∈ F_n with ‖f‖_k ≤ B,

    |f(z) − μ_n(a) − ∂_wμ_n(a) − ∂_vμ_n(a)| ≤ β sd_post[f(a) + ∂_{w+v} f(a)] + B‖φ_z − φ_a − ∂_{w+v}φ_a‖,              (1)
    |f(z) − f(z_c) − ∂_vμ_n(a)|             ≤ β sd_post[∂_v f(a)] + B(‖∂_vφ_c − ∂_vφ_a‖ + ‖φ_z − φ_c − ∂_vφ_c‖),        (2)
    σ_n(z)                                  ≤ sd_post[f(a) + ∂_{w+v} f(a)] + ‖φ_z − φ_a − ∂_{w+v}φ_a‖.                 (3)

*Proof.* (1) f(z) = f(a) + ∂_{w+v}f(a) + ⟨f, φ_z − φ_a − ∂_{w+v}φ_a⟩: theory §2.4 for f ↦ f(a) + ∂_{w+v}f(a), a bounded
functional, and Cauchy–Schwarz. (2) φ_z − φ_c = ∂_vφ_a + (∂_vφ_c − ∂_vφ_a) + (φ_z − φ_c − ∂_vφ_c), likewise. (3) The triangle
inequality for the posterior seminorm, which is at most ‖·‖. □

‖φ_z − φ_a − ∂φ_a‖ is `taylor_modulus`. With k = q κ(r), δ = v/ℓ, h = w/ℓ and θ the angle between them, ‖∂_vφ_c − ∂_vφ_a‖² =
2q|δ|²(−κ″(0) + cos²θ κ″(|h|) + sin²θ κ′(|h|)/|h|). κ′(r)/r is the average of κ″ over [0, r], and κ″(r) − κ″(0) is at most
κ⁗(0)r²/2 (theory §5.2; RBF 3, Matérn 5/2: 25) or 6√3 r (Matérn 3/2, theory §5.7), which grow with r; so that norm is at most
√q|δ| times √3|h|, 5|h| or √(12√3|h|) (`turn`).

(1) is the band of the newest posterior over the cell, up to second order: σ_n changes little there, even where the gradient of
f is unknown. (2) starts from the running intersection at z_c instead. Both are added to the closed loop *before* absolute
values are taken, so that ∇μ_n cancels against plant and feedback. Anchors a are points of a lattice in z that cells and
policies share: the posterior of the gradient is evaluated some thousand times, not once a cell and policy.

*Rounding.* Covariances carry the margins of `functionals.jet`, means that of `Rounding.mean` for the functional in question
(its prior variance in place of the posterior one), and what comes out is rounded outwards by 1e-12, as ranges of cells are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.confidence.functionals import Band, differentiable, functional_bands, jet, taylor_modulus
from gpsafe.confidence.rounding import Rounding
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.models.low_rank import LowRankGP
from gpsafe.rkhs import kernels

SPACING = 0.05  # of the lattice of anchors, in length-scales


@short
@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """z − z_c over cells: v = (d, s∘Gd + e) with |d| ≤ radius, s ∈ [low, high] (slopes of the clipped policy), |e| ≤ bent.

    Attributes:
        radius: (N, nx).
        gain: G, (P, N, nu, nx).
        low, high, bent: (P, N, nu).
    """

    radius: Tensor
    gain: Tensor
    low: Tensor
    high: Tensor
    bent: Tensor

    @property
    def inputs(self) -> Tensor:
        """≥ |π(x) − π(c)|, (P, N, nu)."""
        return self.high * torch.einsum("pnux,nx->pnu", self.gain.abs(), self.radius) + self.bent

    @property
    def reach(self) -> Tensor:
        """≥ |v|, (P, N, nx + nu)."""
        inputs = self.inputs
        return torch.cat([self.radius.expand(inputs.shape[0], *self.radius.shape), inputs], dim=-1)

    def rows(self, a: Tensor, b: Tensor) -> Tensor:
        """≥ |A d + B(s∘Gd + e)|, (P, N, i, nx) and (P, N, i, nu) → (P, N, i).

        The row norm Σ_j |A + B diag(s) G|_ij r_j is convex in s: for one input its maximum is at an end; for several inputs
        the ends are combined by the triangle inequality.
        """
        gain, low, high, radius = self.gain, self.low, self.high, self.radius
        if low.shape[-1] == 1:
            ends = [a + b * (s.unsqueeze(-1) * gain) for s in (low, high)]
            reach = torch.maximum(*[torch.einsum("pnix,nx->pni", end.abs(), radius) for end in ends])
        else:
            mid, half = 0.5 * (low + high), 0.5 * (high - low)
            row = a + torch.einsum("pniu,pnu,pnux->pnix", b, mid, gain)
            reach = torch.einsum("pnix,nx->pni", row.abs(), radius)
            reach = reach + torch.einsum("pniu,pnu,pnux,nx->pni", b.abs(), half, gain.abs(), radius)
        return reach + torch.einsum("pniu,pnu->pni", b.abs(), self.bent)

    def seminorm(self, gram: Tensor, lean: Tensor | None = None) -> Tensor:
        """≥ sup_v √(s₀ + 2m·v + vᵀSv), the deviation of a functional that is affine in v (so it is convex in v).

        For v = Wd, W(s) = (I; diag(s) G), the supremum over d is at most √(s₀ + 2Σ|Wᵀm|_i r_i + Σ|WᵀSW|_ij r_i r_j); by
        convexity that over s is at a corner of [low, high]; e adds at most Σ √S_uu bent_u, by the triangle inequality.

        Args:
            gram: S ⪰ 0, (P, N, nz, nz).
            lean: (s₀, m) as (P, N, 1 + nz); None: 0.
        """
        nx, nu = self.radius.shape[-1], self.low.shape[-1]
        most = torch.zeros(gram.shape[:2], dtype=gram.dtype, device=gram.device)
        for corner in itertools.product((self.low, self.high), repeat=nu):
            slope = torch.stack([end[..., i] for i, end in enumerate(corner)], dim=-1).unsqueeze(-1) * self.gain
            mixed = gram[..., :nx, nx:] @ slope
            inner = gram[..., :nx, :nx] + mixed + mixed.mT + slope.mT @ (gram[..., nx:, nx:] @ slope)
            square = torch.einsum("pnij,ni,nj->pn", inner.abs(), self.radius, self.radius)
            if lean is not None:
                tilt = lean[..., 1 : 1 + nx] + (slope.mT @ lean[..., 1 + nx :].unsqueeze(-1)).squeeze(-1)
                square = square + lean[..., 0] + 2 * torch.einsum("pni,ni->pn", tilt.abs(), self.radius)
            most = torch.maximum(most, square)
        own = torch.diagonal(gram[..., nx:, nx:], dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
        return most.sqrt() + (own * self.bent).sum(-1)


@short
@dataclass(frozen=True, slots=True, eq=False)
class InCell:
    """Of cells and learned outputs, for f ∈ F_n: f(z) − slope·v is in value ± half (1) and f(z_c) ± error (2); σ_n ≤ peak (3).

    Attributes:
        slope: ∇μ_n(a), (P, N, p, nz).
        value: μ_n(a) + ∂_wμ_n(a), (P, N, p).
        half, error, peak: (P, N, p).
    """

    slope: Tensor
    value: Tensor
    half: Tensor
    error: Tensor
    peak: Tensor

    @staticmethod
    def of(confidence: ConfidenceSet, z: Tensor, loop: Loop) -> tuple[InCell, ...]:
        """From the newest posterior, z (P, N, nz): one for each band of `functional_bands`, of which only the first, that of λ,
        speaks of σ_n. Empty where the bound says nothing of gradients, or the kernels have none.
        """
        model = confidence.model
        model = model.exact if isinstance(model, LowRankGP) else model
        if model.inputs is None or not differentiable(model):
            return ()
        inverse = torch.stack([_inverse_scale(form, z) for form in map(kernels.stationary, model.kernels) if form])
        known = torch.isfinite(z).all(-1, keepdim=True)
        anchors, index = _anchors(torch.where(known, z, 0.0), inverse.amax(0))
        norm = confidence.bound.norms(model.num_outputs).to(z.device)
        bands = functional_bands(confidence.bound, model)
        return tuple(InCell._of(band, norm, (z, anchors, index, inverse), loop) for band in bands)

    @staticmethod
    def _of(band: Band, norm: Tensor, at: tuple[Tensor, Tensor, Tensor, Tensor], loop: Loop) -> InCell:
        """From one posterior; `at`: z, the anchors, which of them is whose, and 1/ℓ (p, nz)."""
        model, beta = band.model, band.beta.to(norm.device)
        z, anchors, index, inverse = at
        forms = [form for form in map(kernels.stationary, model.kernels) if form is not None]
        found, reach, rounding = jet(model, anchors), loop.reach, Rounding.of(model)
        away = (z - anchors[index]).nan_to_num(nan=torch.inf)
        slope, columns = found.mean[..., 1:][index], []
        for j, form in enumerate(forms):
            offset = torch.where(inverse[j] > 0, away, 0.0)  # w
            far, scaled = (offset * inverse[j]).norm(dim=-1), (reach * inverse[j]).norm(dim=-1)  # ‖w/ℓ‖, ≥ ‖v/ℓ‖
            cov = found.cov[..., j, :, :][index]
            gram, mixed = cov[..., 1:, 1:], cov[..., 0, 1:]
            pulled = (gram @ offset.unsqueeze(-1)).squeeze(-1)
            level = cov[..., 0, 0] + ((2 * mixed + pulled) * offset).sum(-1)
            lean = torch.cat([level.unsqueeze(-1), mixed + pulled], dim=-1)
            both, own = loop.seminorm(gram, lean), loop.seminorm(gram)
            rest = taylor_modulus(form, far + scaled)
            bow = turn(form, far) * scaled + taylor_modulus(form, scaled)
            bent = form.variance * float(form.slope(torch.zeros((), dtype=z.dtype)))
            priors = form.variance + bent * (far + scaled).square(), bent * scaled.square()  # of the two functionals
            errors = [rounding.output(j).mean(prior, prior) for prior in priors]
            value = found.mean[..., j, 0][index] + (slope[..., j, :] * offset).sum(-1)
            half, error = beta[j] * both + norm[j] * rest + errors[0], beta[j] * own + norm[j] * bow + errors[1]
            columns.append((value, half * (1 + 1e-12), error * (1 + 1e-12), (both + rest) * (1 + 1e-12)))
        return InCell(slope, *(torch.stack(column, dim=-1) for column in zip(*columns, strict=True)))


def turn(form: kernels.Stationary, far: Tensor) -> Tensor:
    """≥ ‖∂_vφ_c − ∂_vφ_a‖ / ‖v/ℓ‖ for ‖(c − a)/ℓ‖ = far, see the module."""
    smooth = math.isinf(form.nu) or form.nu == 2.5
    per = math.sqrt(3) if math.isinf(form.nu) else 5.0
    value = per * far if smooth else (12 * math.sqrt(3) * far).sqrt()
    return math.sqrt(form.variance) * value * (1 + 1e-14)


def _inverse_scale(form: kernels.Stationary, z: Tensor) -> Tensor:
    """1/ℓ of each input dimension, 0 for those that the kernel ignores, (nz,)."""
    scale = torch.zeros(z.shape[-1], dtype=z.dtype, device=z.device)
    active = slice(None) if form.dims is None else form.dims.to(z.device)
    scale[active] = 1.0 / form.lengthscale.to(z.device)
    return scale


def _anchors(z: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The lattice points (M, nz) nearest to those of z (P, N, nz), each once, and for each of these which one, (P, N).

    The lattice stands still: what is found at a point depends on no other.
    """
    flat = z.reshape(-1, z.shape[-1])
    step = torch.where(inverse > 0, SPACING / inverse, 1.0)
    level = torch.where(inverse > 0, (flat / step).round(), 0.0)
    index, place = torch.arange(len(flat), device=z.device), level - level.amin(0)
    count = place.amax(0) + 1
    if float(count.log().sum()) < math.log(2.0**53):  # codes below are integers that float64 holds exactly
        code = place[:, 0]
        for i in range(1, place.shape[-1]):
            code = code * count[i] + place[:, i]
        _, index = torch.unique(code, return_inverse=True)
    anchors = torch.empty(int(index.max()) + 1, flat.shape[-1], dtype=z.dtype, device=z.device)
    anchors[index] = level * step
    return anchors, index.reshape(z.shape[:-1])
