"""Synthetic plants whose unknown part is a random function of exactly known RKHS norm."""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.linalg import vector
from gpsafe.rkhs import kernels, random_function
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.rkhs_twin import RKHSTwin, exact_twin


def _build(
    name: str,
    A: Tensor,
    B: Tensor,
    lengthscale: list[float],
    std: list[float],
    half: list[float],
    start: Tensor,
    *,
    rkhs_norm: float,
    noise_std: float,
    generator: torch.Generator,
    horizon: int,
    budget: float,
) -> RKHSTwin:
    nx, nu = B.shape
    limits = vector(*half)
    region = Box(-limits, limits)
    known = AffineKnown(A, B, torch.zeros(nx, dtype=torch.float64))
    residual = tuple(
        random_function(
            kernels.rbf(lengthscale, variance=s**2),
            region.lower,
            region.upper,
            norm=rkhs_norm,
            generator=generator,
        )
        for s in std
    )
    normal = torch.eye(nx, dtype=torch.float64)[:1]

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        z = torch.cat([x, u], dim=-1)
        return known(x, u) + torch.stack([f(z) for f in residual], dim=-1)

    physics = CallableSystem(
        name=name,
        nx=nx,
        nu=nu,
        state_box=Box(-limits[:nx], limits[:nx]),
        input_box=Box(-limits[nx:], limits[nx:]),
        noise_std=_require.positive(name, "noise_std", noise_std).expand(nx).clone(),
        initial_state=start,
        horizon=horizon,
        cost=IndicatorCost(normal, vector(1.0)),
        budget=budget,
        dynamics=dynamics,
        reward_fn=lambda x, u: x[..., 0] - 0.01 * u.square().sum(-1),
    )
    return exact_twin(physics, known, residual=residual, outputs=tuple(range(nx)), region=region, name=name)


def rkhs_1d(
    *,
    generator: torch.Generator,
    rkhs_norm: float = 2.0,
    noise_std: float = 0.01,
    horizon: int = 20,
    budget: float = 0.2,
) -> RKHSTwin:
    """x⁺ = x + 0.25u + f(x, u) + w on [−2.5, 2.5] × [−1, 1], ‖f‖_k = rkhs_norm exactly.

    k is RBF with ℓ = (0.9, 3) and standard deviation 0.1. Cost 1{x > 1}, x₀ = −0.5, reward x − 0.01u².

    Args:
        generator: draws f (30 uniform centres, normal weights).
        rkhs_norm: B.
        noise_std: σ.
        horizon: T.
        budget: d.
    """
    return _build(
        "rkhs-1d", vector(1.0).reshape(1, 1), vector(0.25).reshape(1, 1), [0.9, 3.0], [0.1], [2.5, 1.0],
        vector(-0.5), rkhs_norm=rkhs_norm, noise_std=noise_std, generator=generator, horizon=horizon,
        budget=budget,
    )  # fmt: skip


def rkhs_2d(
    *,
    generator: torch.Generator,
    rkhs_norm: float = 2.0,
    noise_std: float = 0.01,
    horizon: int = 30,
    budget: float = 0.2,
) -> RKHSTwin:
    """x⁺ = [[1, 0.2], [0, 0.9]] x + (0, 0.25)u + f(x, u) + w on [−2.5, 2.5]² × [−1, 1], ‖f_j‖_k = rkhs_norm.

    k_j is RBF with ℓ = (0.9, 1.5, 3) and standard deviations 0.02 and 0.1. Cost 1{x₁ > 1}, x₀ = (−0.5, 0),
    reward x₁ − 0.01u². Arguments as in :func:`rkhs_1d`.
    """
    return _build(
        "rkhs-2d", vector(1.0, 0.2, 0.0, 0.9).reshape(2, 2), vector(0.0, 0.25).reshape(2, 1), [0.9, 1.5,
        3.0], [0.02, 0.1], [2.5, 2.5, 1.0], vector(-0.5, 0.0),
        rkhs_norm=rkhs_norm, noise_std=noise_std, generator=generator, horizon=horizon, budget=budget,
    )  # fmt: skip
