"""Kernels: any ``gpytorch`` kernel, frozen, with the closed forms that certified numbers need.

A kernel is always a `gpytorch.kernels.Kernel`; this module builds the usual ones, freezes them, evaluates the
stationary ones (RBF, Matérn, with ARD and an output scale) directly in float64, and gives the kernel metric
d_k(z, z′)² = k(z, z) + k(z′, z′) − 2 k(z, z′), the Lipschitz modulus of the unit ball of the RKHS.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require


def freeze(kernel: Kernel) -> Kernel:
    """A detached float64 copy in evaluation mode whose hyperparameters no optimiser can move."""
    frozen = copy.deepcopy(kernel).double().eval()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen


def rbf(lengthscale: Tensor | Sequence[float] | float, variance: float = 1.0) -> Kernel:
    """k(z, z′) = variance · exp(−½ Σ_i ((z_i − z′_i)/ℓ_i)²), one ℓ per input dimension, frozen."""
    return _scaled(gpytorch.kernels.RBFKernel, {}, lengthscale, variance)


def matern(nu: float, lengthscale: Tensor | Sequence[float] | float, variance: float = 1.0) -> Kernel:
    """Matérn kernel with ν ∈ {½, 3/2, 5/2}, ARD length-scales and output variance, frozen."""
    if nu not in (0.5, 1.5, 2.5):
        raise _require.fail("matern", "nu in {0.5, 1.5, 2.5}", nu)
    return _scaled(gpytorch.kernels.MaternKernel, {"nu": nu}, lengthscale, variance)


def linear(variance: float = 1.0) -> Kernel:
    """k(z, z′) = variance · zᵀz′, frozen."""
    kernel = gpytorch.kernels.LinearKernel().double()
    kernel.variance = float(_require.positive("linear", "variance", variance))
    return freeze(kernel)


def _scaled(family: type[Kernel], options: dict, lengthscale: Tensor | Sequence[float] | float, variance: float) -> Kernel:
    scales = torch.atleast_1d(_require.positive(family.__name__, "lengthscale", lengthscale))
    amount = float(_require.positive(family.__name__, "variance", variance))
    base = family(ard_num_dims=scales.numel(), **options).double()
    base.lengthscale = scales
    kernel = gpytorch.kernels.ScaleKernel(base).double()
    kernel.outputscale = amount
    return freeze(kernel)


@dataclass(frozen=True, slots=True)
class Stationary:
    """k(z, z′) = variance · κ(‖(z − z′)/lengthscale‖) with κ the RBF (nu = inf) or Matérn profile.

    `dims` are the active input dimensions (None: all).
    """

    nu: float
    lengthscale: Tensor
    variance: float
    dims: Tensor | None = None

    def scaled(self, z: Tensor) -> Tensor:
        """Active inputs divided by their length-scales."""
        active = z if self.dims is None else z[..., self.dims.to(z.device)]
        return active / self.lengthscale.to(z.device)

    def profile(self, distance_sq: Tensor) -> Tensor:
        """κ as a function of the squared scaled distance r²."""
        if math.isinf(self.nu):
            return torch.exp(-0.5 * distance_sq)
        r = torch.sqrt(2 * self.nu * distance_sq)
        decay = torch.exp(-r)
        if self.nu == 0.5:
            return decay
        if self.nu == 1.5:
            return (1 + r) * decay
        return (1 + r + r.square() / 3) * decay

    def metric(self, distance_sq: Tensor) -> Tensor:
        """d_k as a function of r², accurate near zero: variance·2(1 − κ(r)) without cancellation."""
        if math.isinf(self.nu):
            gap = -torch.expm1(-0.5 * distance_sq)
        else:
            r = torch.sqrt(2 * self.nu * distance_sq)
            gap = -torch.expm1(-r)  # 1 − e^{−r}
            if self.nu == 1.5:
                gap = gap - r * torch.exp(-r)
            elif self.nu == 2.5:
                gap = gap - (r + r.square() / 3) * torch.exp(-r)
            if self.nu > 0.5:  # series where the difference cancels: 1−κ = r²/2 − … (3/2), r²/6 − … (5/2); outward
                series = r.square() / (2 if self.nu == 1.5 else 6)
                gap = torch.where(r < 1e-4, series, gap)
        return torch.sqrt(2 * self.variance * gap.clamp_min(0.0))


def stationary(kernel: Kernel) -> Stationary | None:
    """Closed form of a (scaled, ARD, restricted) RBF or Matérn kernel; None for anything else."""
    variance = 1.0
    dims = None
    while isinstance(kernel, gpytorch.kernels.ScaleKernel):
        variance *= float(kernel.outputscale)
        dims = kernel.active_dims if kernel.active_dims is not None else dims
        kernel = kernel.base_kernel
    if type(kernel) is gpytorch.kernels.RBFKernel:
        nu = math.inf
    elif type(kernel) is gpytorch.kernels.MaternKernel:
        nu = float(kernel.nu)
    else:
        return None
    if kernel.batch_shape.numel() != 1 or (dims is not None and kernel.active_dims is not None):
        return None
    if kernel.active_dims is not None:
        dims = kernel.active_dims
    return Stationary(nu, kernel.lengthscale.detach().reshape(-1), variance, dims)


def cross(kernel: Kernel | Stationary, x: Tensor, z: Tensor) -> Tensor:
    """Gram matrix k(x_i, z_j), shapes (n, d), (m, d) → (n, m); differentiable."""
    form = kernel if isinstance(kernel, Stationary) else stationary(kernel)
    if form is None:
        assert isinstance(kernel, Kernel)
        return kernel(x, z).to_dense()
    a, b = form.scaled(x), form.scaled(z)
    if math.isinf(form.nu):  # ‖a‖² + ‖b‖² − 2ab errs by 1e-16·‖a‖²: harmless under exp, not under a square root
        half = torch.addmm(-0.5 * b.square().sum(-1), a, b.T) - 0.5 * a.square().sum(-1, keepdim=True)
        return form.variance * torch.exp(half.clamp_max(0.0))
    if x.requires_grad or z.requires_grad or torch._C._functorch.maybe_current_level() is not None:
        distance_sq = (a.unsqueeze(-2) - b).square().sum(-1)
        safe = torch.where(distance_sq > 0, distance_sq, torch.full_like(distance_sq, 1e-300))
        return form.variance * form.profile(safe)
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return form.variance * form.profile(distance.square())


def diagonal(kernel: Kernel, z: Tensor) -> Tensor:
    """k(z_i, z_i), shape (*b, d) → (*b,)."""
    form = stationary(kernel)
    if form is not None:
        return torch.full(z.shape[:-1], form.variance, dtype=z.dtype, device=z.device)
    return kernel(z.reshape(-1, z.shape[-1]), diag=True).reshape(z.shape[:-1])


def metric(kernel: Kernel, x: Tensor, z: Tensor) -> Tensor:
    """Kernel metric d_k(x, z) elementwise, shapes (*b, d), (*b, d) → (*b,).

    For f with ‖f‖_k ≤ B: |f(x) − f(z)| ≤ B d_k(x, z). Stationary kernels are evaluated without cancellation.
    """
    form = stationary(kernel)
    if form is not None:
        return form.metric((form.scaled(x) - form.scaled(z)).square().sum(-1))
    x, z = torch.broadcast_tensors(x, z)
    flat_x, flat_z = x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    mixed = kernel(flat_x.unsqueeze(-2), flat_z.unsqueeze(-2)).to_dense().reshape(-1)
    square = diagonal(kernel, flat_x) + diagonal(kernel, flat_z) - 2 * mixed
    return square.clamp_min(0.0).sqrt().reshape(x.shape[:-1])


def metric_over_box(kernel: Kernel, radius: Tensor) -> Tensor | None:
    """sup of d_k(c, z) over |z_i − c_i| ≤ radius_i, shape (*b, d) → (*b,), for stationary kernels; None otherwise."""
    form = stationary(kernel)
    if form is None:
        return None
    return form.metric(form.scaled(radius).square().sum(-1))
