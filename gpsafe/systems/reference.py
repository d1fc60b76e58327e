"""Two reference plants on which the whole theory can be run: exactly in the RKHS, every quantity computable.

Both are RKHS twins with a known mean whose error they learn. The pendulum here hangs at θ = 0 (the plants of
`gpsafe.systems.pendulum` have θ = 0 upright).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.linalg import vector
from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, IndicatorCost
from gpsafe.systems.known import AffineKnown, pendulum_known
from gpsafe.systems.rkhs_twin import RKHSTwin, twin


def reference_1d(noise_std: float = 0.01) -> RKHSTwin:
    """x⁺ = x + 0.25u + f(x, u) + w, f the RKHS twin of 0.06 sin 2.5x + 0.03 u cos x; safe is x ≤ 1.

    RBF kernel, ℓ = (0.9, 3), variance 0.1², 14 × 5 centres on [−2.5, 2.5] × [−1, 1]: B = 4.47. T = 20, cost
    1{x > 1}, d = 0.2, x₀ = −0.5, noise 0.01. Reward x: the best policy is the highest safe set-point.
    """

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return x + 0.25 * u + 0.06 * torch.sin(2.5 * x) + 0.03 * u * torch.cos(x)

    physics = CallableSystem(
        name="reference-1d",
        nx=1,
        nu=1,
        state_box=Box(vector(-2.5), vector(2.5)),
        input_box=Box(vector(-1.0), vector(1.0)),
        noise_std=vector(float(_require.positive("reference_1d", "noise_std", noise_std))),
        initial_state=vector(-0.5),
        horizon=20,
        cost=IndicatorCost(vector(1.0).reshape(1, 1), vector(1.0)),
        budget=0.2,
        dynamics=dynamics,
        reward_fn=lambda x, u: x[..., 0],
    )
    known = AffineKnown(vector(1.0).reshape(1, 1), vector(0.25).reshape(1, 1), vector(0.0))
    kernel = kernels.rbf([0.9, 3.0], variance=0.1**2)
    return twin(physics, known, kernels=kernel, outputs=(0,), counts=(14, 5), ridge=1e-10, name="reference-1d")


def reference_1d_policies() -> tuple[AffinePolicies, Tensor]:
    """u = clip(3(g − x), ±1) for 81 set-points g ∈ [−0.5, 1.5], and S_0 = {g ≤ −0.4} (5 indices)."""
    targets = torch.linspace(-0.5, 1.5, 81, dtype=torch.float64)
    box = Box(vector(-1.0), vector(1.0))
    policies = set_point_policies(targets[:, None], vector(3.0).reshape(1, 1), torch.zeros(81, 1).double(), box)
    return policies, (targets <= -0.4 + 1e-9).nonzero().squeeze(-1)


def reference_pendulum(noise_std: tuple[float, float] = (0.004, 0.01)) -> RKHSTwin:
    """A damped pendulum that hangs at θ = 0 (rad) and must stay below θ = 1.2; x = (θ, ω), |u| ≤ 1.

    Explicit Euler, dt = 0.05: θ⁺ = θ + dt·ω (known), ω⁺ = ω + dt(−9.81 sin θ + 15u − 0.2ω). The known part
    believes in a length of 1.1 (so 9.81/1.1 and the gain 15/1.1²) and damping 0.25; its error in ω⁺ is the
    twin (RBF, ℓ = (1.5, 16, 3), variance 0.06², 9 × 4 × 4 centres on ±2.5 × ±8 × ±1: B = 21.5, 3e-4 from the
    physics). T = 30, cost 1{θ > 1.2}, d = 0.2, x₀ = 0. Reward θ.
    """
    truth = pendulum_known(gravity=9.81, gain=15.0, damping=0.2, dt=0.05, hanging_at_zero=True, semi_implicit=False)
    known = pendulum_known(
        gravity=9.81 / 1.1,
        gain=15.0 / 1.1**2,
        damping=0.25,
        dt=0.05,
        hanging_at_zero=True,
        semi_implicit=False,
    )
    physics = CallableSystem(
        name="reference-pendulum",
        nx=2,
        nu=1,
        state_box=Box(vector(-2.5, -8.0), vector(2.5, 8.0)),
        input_box=Box(vector(-1.0), vector(1.0)),
        noise_std=_require.positive("reference_pendulum", "noise_std", vector(*noise_std)),
        initial_state=vector(0.0, 0.0),
        horizon=30,
        cost=IndicatorCost(vector(1.0, 0.0).reshape(1, 2), vector(1.2)),
        budget=0.2,
        dynamics=truth,
        reward_fn=lambda x, u: x[..., 0],
    )
    kernel = kernels.rbf([1.5, 16.0, 3.0], variance=0.06**2)
    return twin(physics, known, kernels=kernel, outputs=(1,), counts=(9, 4, 4), ridge=1e-9, name="reference-pendulum")


def reference_pendulum_policies() -> tuple[AffinePolicies, Tensor]:
    """u = clip((9.81/1.1·sin g + 40(g − θ) − 11ω)/15, ±1) for 45 set-points g ∈ [−0.6, 1.6].

    θ = 0 hangs, x = (θ, ω). Also the indices of S_0 = {g ≤ −0.35} (6 of them).
    """
    angles = torch.linspace(-0.6, 1.6, 45, dtype=torch.float64)
    targets = torch.stack([angles, torch.zeros_like(angles)], dim=-1)
    feedforward = (9.81 / 1.1) * angles.sin()[:, None] / 15.0
    box = Box(vector(-1.0), vector(1.0))
    policies = set_point_policies(targets, vector(40.0, 11.0).reshape(1, 2) / 15.0, feedforward, box)
    return policies, (angles <= -0.35 + 1e-9).nonzero().squeeze(-1)
