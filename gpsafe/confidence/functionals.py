"""What a confidence bound says about gradients of f*, and about f* between points (theory §2.4, §5.2).

**Every bounded linear functional.** The self-normalised theorems bound a norm: with V = ΦᵀΦ + λI,
‖V^{1/2}(f* − μ_n)‖ ≤ √λ β_n. So for every bounded linear functional ℓ with representer φ_ℓ, at once and on the
same event, |ℓ f* − ℓ μ_n| ≤ β_n √λ‖V^{-1/2}φ_ℓ‖ = β_n · sd_post[ℓ f], by Cauchy–Schwarz; values are the special
case φ_ℓ = k(z, ·). For kernels that are differentiable in mean square, ℓ may be a directional derivative.

**Between points.** With e = k(z, ·) − k(c, ·) − ∂_{z−c}k(c, ·), |f(z) − f(c) − ∂_{z−c}f(c)| ≤ ‖f‖_k ‖e‖_k, and
for a stationary kernel with variance v, profile κ(r) and r = ‖(z − c)/ℓ‖

    ‖e‖² = v·(2(1 − κ(r)) + 2rκ′(r) − r²κ″(0)),

which grows with r (its derivative is 2rv(κ″(r) − κ″(0)) ≥ 0 because −κ″ is a covariance, largest at 0), and is at
most v·κ⁗(0)·r⁴/4 where κ⁗(0) exists: √v·(√3/2)r² for RBF, √v·(5/2)r² for Matérn 5/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.bounds import ClosedForm, ConfidenceBound, Mixture
from gpsafe.confidence.convex_program import BallProgram, ConvexProgram
from gpsafe.confidence.rounding import Rounding
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

MULTIPLIERS = (1.0 / 16.0, 4.0)  # η/λ beside λ itself; each costs a posterior
JET_MARGIN = 1e-10  # outward rounding of posterior variances, relative to their prior value: at least this


def functional_beta(bound: ConfidenceBound, model: GP) -> Tensor | None:
    """β (p,) with |ℓ f* − ℓ μ_n| ≤ β sd_post[ℓ f] for all bounded linear ℓ, on the event of the bound; None if the
    bound's theorem gives no such β.

    Closed forms that are never below the mixture β hold on the mixture event, where the statement is true with the
    mixture β and hence with theirs. The set of a convex program lies in the ellipsoid of its multiplier λ, whose β it
    reports. A constant by hand, and Bayesian pointwise bounds, say nothing about gradients.
    """
    if type(model) is not GP:
        return None
    if isinstance(bound, BallProgram):
        beta = bound.beta(model)
        return beta if bool(torch.isfinite(beta).all()) else None
    if not isinstance(bound, ClosedForm) or not bound.frequentist:
        return None
    beta = bound.beta(model)
    reference = Mixture(rkhs_norm=bound.rkhs_norm, subgaussian=bound.subgaussian, delta=bound.delta).beta(model)
    return beta if bound.unchecked or bool((beta >= reference * (1 - 1e-12)).all()) else None


@short
@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """|ℓ f* − ℓ μ| ≤ β sd_post[ℓ f] for all bounded linear ℓ: a posterior and its β (p,)."""

    model: GP
    beta: Tensor


def functional_bands(bound: ConfidenceBound, model: GP) -> tuple[Band, ...]:
    """Bands that hold at once on the event of the bound, that of λ first; empty where `functional_beta` knows of none.

    For a convex program one more for each η of `MULTIPLIERS`, β_η = √(s(η)/η), outwards by the rounding of s.
    """
    beta = functional_beta(bound, model)
    if beta is None:
        return ()
    bands = [Band(model, beta)]
    if isinstance(bound, ConvexProgram) and model.inputs is not None:
        for ratio in MULTIPLIERS:
            found = bound.beta_at(model, ratio)
            if bool(torch.isfinite(found).all()):
                bands.append(Band(model.reweighted(ratio), found))
    return tuple(bands)


def differentiable(model: GP) -> bool:
    """Whether every kernel is one stationary part with closed-form gradients (RBF, Matérn 3/2, 5/2)."""
    forms = [kernels.stationary(kernel) for kernel in model.kernels]
    return all(form is not None and form.nu > 0.5 for form in forms)


def taylor_modulus(form: kernels.Stationary, r: Tensor) -> Tensor:
    """‖k(z, ·) − k(c, ·) − ∂_{z−c}k(c, ·)‖_k for ‖(z − c)/ℓ‖ = r, rounded up; grows with r.

    |f(z) − f(c) − ∂_{z−c}f(c)| ≤ ‖f‖_k times this. r (*b,) → (*b,).
    """
    r = _require.floats("taylor_modulus", "r", r)
    square = r.square()
    zero = torch.zeros((), dtype=r.dtype, device=r.device)
    curvature = form.slope(zero)  # −κ″(0)
    value = 2 * form.gap(square) + square * curvature - 2 * square * form.slope(square)
    value = value.clamp_min(0.0) + 32 * torch.finfo(torch.float64).eps * (square * curvature + square.clamp_max(1.0))
    if math.isinf(form.nu) or form.nu == 2.5:
        fourth = 3.0 if math.isinf(form.nu) else 25.0
        value = torch.minimum(value, 0.25 * fourth * square.square())
    return (form.variance * value).sqrt() * (1 + 1e-14)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Jet:
    """Joint posterior of (f(z), ∇f(z)): |f*(z) + ∂_v f*(z) − (1, v)·mean| ≤ β √((1, v)ᵀ cov (1, v)) for every v, on the
    event of `functional_beta`.

    Attributes:
        mean: (μ_n, ∇μ_n), (*b, p, 1 + d).
        cov: posterior covariance with an outward margin on its diagonal, (*b, p, 1 + d, 1 + d); zero for inactive dims.
    """

    mean: Tensor
    cov: Tensor


def jet(model: GP, z: Tensor, *, chunk: int = 2048) -> Jet:
    """Posterior of value and gradient of the residual at z (*b, d). Needs `differentiable` kernels.

    cov = diag(v, v·(−κ″(0))·ℓ⁻²) − DᵀD with D = L⁻¹(k_n(z), ∂k_n(z)), (n, 1 + d): a stationary prior has value and
    gradient at one point uncorrelated.
    """
    z = _require.points("jet", "z", z, model.nx + model.nu)
    flat = z.reshape(-1, z.shape[-1])
    means, covs = zip(*(_jet(model, part) for part in flat.split(chunk)), strict=True)
    size, p = z.shape[-1] + 1, model.num_outputs
    return Jet(torch.cat(means).reshape(*z.shape[:-1], p, size), torch.cat(covs).reshape(*z.shape[:-1], p, size, size))


def _jet(model: GP, z: Tensor) -> tuple[Tensor, Tensor]:
    m, size = z.shape[0], z.shape[1] + 1
    per_factor: dict[int, tuple[Tensor | None, Tensor]] = {}
    means = torch.zeros(m, model.num_outputs, size, dtype=z.dtype, device=z.device)
    covs = torch.zeros(m, model.num_outputs, size, size, dtype=z.dtype, device=z.device)
    for j, i in enumerate(model._index):
        form = kernels.stationary(model.kernels[j])
        assert form is not None
        if i not in per_factor:
            per_factor[i] = _sections(model, i, form, z, Rounding.of(model).output(j))
        sections, covs[:, j] = per_factor[i]
        if sections is not None:
            means[:, j] = torch.einsum("nmd,n->md", sections, model.weights[:, j])
    return means, covs


def _sections(
    model: GP, i: int, form: kernels.Stationary, z: Tensor, rounding: Rounding
) -> tuple[Tensor | None, Tensor]:
    """(k(z_q, x_r), ∂k(z_q, x_r)/∂z) as (n, m, 1 + d), and the posterior covariance (m, 1 + d, 1 + d).

    Let ρ be the largest margin of a variance in units of its prior one, κ_r (`gpsafe.confidence.rounding` holds for every
    functional). Entry (r, s) of the covariance errs by at most ρ√(κ_r κ_s), a matrix that (1 + d)ρ diag(κ) dominates: of
    |δk_r·q_s| + |δk_s·q_r| ≤ ε(√κ_r t_s + √κ_s t_r) each t is at most √κ times the largest t/√κ. The margins of r and s
    alone would not do: their geometric mean may be smaller than that sum.
    """
    m, size = z.shape[0], z.shape[1] + 1
    active = torch.arange(size - 1, device=z.device) if form.dims is None else form.dims.to(z.device)
    # One factor at a time: squares underflow.
    inverse = form.lengthscale.to(z.device).reciprocal().expand(active.numel())
    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    prior = torch.zeros(size, dtype=z.dtype, device=z.device)
    prior[0] = form.variance
    prior[1 + active] = form.variance * form.slope(zero) * inverse * inverse
    if model.inputs is None:
        return None, torch.diag(prior * (1 + JET_MARGIN)).expand(m, size, size).clone()
    squares = form.squared_distances(model.inputs, z)  # (n, m)
    full = torch.zeros(model.num_data, m, size, dtype=z.dtype, device=z.device)
    full[..., 0] = form.variance * form.profile(squares)
    away = (z[:, active] - model.inputs[:, active].unsqueeze(1)) * inverse
    full[..., 1 + active] = (-form.variance * form.slope(squares)).unsqueeze(-1) * away * inverse
    half = (model._factors[i].inverse @ full.reshape(model.num_data, m * size)).reshape(model.num_data, m, size)
    half = half.permute(1, 0, 2)
    variance = (prior - half.square().sum(1)).clamp_min(0.0)
    share = torch.where(prior > 0, rounding.variance(variance, prior) / prior.clamp_min(1e-300), 0.0)
    margin = (JET_MARGIN + (1 + active.numel()) * share.amax(-1, keepdim=True)) * prior
    return full, torch.diag_embed(prior + margin) - half.mT @ half
