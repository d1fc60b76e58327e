"""Gradients of the posterior mean and standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe import kernels
from gpsafe.models._factor import Factor


def closed(factor: Factor) -> kernels.Stationary | None:
    """The differentiable stationary form (RBF, Matérn 3/2, 5/2) of the factor's kernel, if it is one."""
    form = factor.form
    if form is None or len(form.parts) != 1:
        return None
    part = form.parts[0]
    return part if isinstance(part, kernels.Stationary) and part.nu > 0.5 else None


def stationary_gradient(
    factor: Factor, form: kernels.Stationary, inputs: Tensor, weights: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """∇μ (m, k, d) and ∇σ (m, d) at z (m, d) for weights (n, k), without a graph.

    With ∂k(z, x_i)/∂z = −w_i (z − x_i)/ℓ²: ∇μ = −Σ_i α_i w_i (z − x_i)/ℓ² and, with q = (K + λI)⁻¹k_n(z),
    ∇σ = Σ_i q_i w_i (z − x_i)/(ℓ²σ); 0 where σ = 0.
    """
    center = inputs.mean(0)
    active = slice(None) if form.dims is None else form.dims.to(z.device)
    x, points = (inputs - center)[:, active], (z - center)[:, active]
    squares = kernels.squared_distances(form.scaled(z), form.scaled(inputs))
    slope = form.variance * form.slope(squares)
    gram = form.variance * form.profile(squares)
    half = gram @ factor.inverse.mT
    variance = form.variance - half.square().sum(-1)
    columns = torch.cat(
        [(slope.unsqueeze(1) * weights.mT), (slope * (half @ factor.inverse)).unsqueeze(1)], dim=1
    )
    moved = columns.sum(-1, keepdim=True) * points.unsqueeze(1) - columns @ x  # Σ_i c_i (z − x_i)
    moved = moved / form.lengthscale.to(z.device).square()
    std = variance.clamp_min(0.0).sqrt()
    inverse = torch.where(variance > 0, 1 / std, torch.zeros_like(std))
    full = torch.zeros(*moved.shape[:-1], z.shape[-1], dtype=z.dtype, device=z.device)
    full[..., active] = moved
    return -full[:, :-1], full[:, -1] * inverse.unsqueeze(-1)
