"""Gradients of the posterior mean and standard deviation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from gpsafe.models._factor import Factor
from gpsafe.rkhs import kernels


class Posterior(Protocol):
    """What is read of a GP: one factor a distinct kernel, `_index` the factor of each output."""

    @property
    def inputs(self) -> Tensor | None: ...
    @property
    def weights(self) -> Tensor: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def _factors(self) -> tuple[Factor, ...]: ...
    @property
    def _index(self) -> tuple[int, ...]: ...
    def _outputs_of(self, i: int) -> list[int]: ...
    def posterior(self, z: Tensor) -> tuple[Tensor, Tensor]: ...


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
    squares = form.squared_distances(inputs, z).mT
    slope = form.variance * form.slope(squares)
    gram = form.variance * form.profile(squares)
    half = gram @ factor.inverse.mT
    variance = form.variance - half.square().sum(-1)
    columns = torch.cat([(slope.unsqueeze(1) * weights.mT), (slope * (half @ factor.inverse)).unsqueeze(1)], dim=1)
    moved = columns.sum(-1, keepdim=True) * points.unsqueeze(1) - columns @ x  # Σ_i c_i (z − x_i)
    moved = moved / form.lengthscale.to(z.device).square()
    std = variance.clamp_min(0.0).sqrt()
    inverse = torch.where(variance > 0, 1 / std, torch.zeros_like(std))
    full = torch.zeros(*moved.shape[:-1], z.shape[-1], dtype=z.dtype, device=z.device)
    full[..., active] = moved
    return -full[:, :-1], full[:, -1] * inverse.unsqueeze(-1)


def posterior_gradient(model: Posterior, z: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """∇mean and ∇std of the posterior at z (m, d), both (m, p, d): see `GP.gradient`."""
    means = torch.zeros(z.shape[0], model.num_outputs, z.shape[1], dtype=z.dtype, device=z.device)
    stds = torch.zeros_like(means)
    automatic = [j for j, i in enumerate(model._index) if closed(model._factors[i]) is None]
    for i, factor in enumerate(model._factors):
        outputs, form = model._outputs_of(i), closed(factor)
        if form is None or model.inputs is None:
            continue
        weights = model.weights[:, outputs]
        for start in range(0, z.shape[0], chunk):
            rows = slice(start, start + chunk)
            mean, std = stationary_gradient(factor, form, model.inputs, weights, z[rows])
            means[rows, outputs], stds[rows, outputs] = mean, std.unsqueeze(1)
    if automatic:
        leaf = z.clone().requires_grad_(True)
        with torch.enable_grad():
            for values, store in zip(model.posterior(leaf), (means, stds), strict=True):
                for j in automatic:
                    if values.requires_grad:
                        (slope,) = torch.autograd.grad(values[:, j].sum(), leaf, retain_graph=True, allow_unused=True)
                        store[:, j] = 0.0 if slope is None else slope
    return means, stds
