"""A family of plants of any size: coupled subsystems in a chain, with unknown parts of exactly known RKHS norm."""

from __future__ import annotations

import torch

from gpsafe import _require
from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.sets import Box
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.synthetic import _build

GAIN = 3.0  # of every local feedback: with input gain 0.25 an actuated subsystem contracts by 0.25 a step


def chain(
    nx: int,
    nu: int,
    *,
    generator: torch.Generator,
    rkhs_norm: float = 4.0,
    coupling: float = 0.1,
    noise_std: float = 0.01,
    horizon: int = 8,
    budget: float = 0.4,
) -> RKHSTwin:
    """x⁺ = A x + B u + f(x, u) + w with nx subsystems in a chain, the first nu of them actuated.

    A has 1 on the diagonal of actuated subsystems and 0.5 of the others, and `coupling` between neighbours; B has 0.25
    on its diagonal. f_i is a random function of *all* states and inputs with ‖f_i‖_k = rkhs_norm exactly; k is RBF with
    ℓ = 1 for states and 3 for inputs, and standard deviation 0.1 (actuated) or 0.02. x₀ = 0, cost 1{x₁ > 1}, reward
    x₁ − 0.01‖u‖². The box of states is ±1.5 for x₁ and ±0.6 for the others, |u_i| ≤ 1.

    Args:
        nx: subsystems.
        nu: inputs, 1 ≤ nu ≤ nx.
        generator: draws f (30 uniform centres in the box, normal weights).
        rkhs_norm: B.
        coupling: between neighbours.
        noise_std: σ.
        horizon: T.
        budget: d.
    """
    _require.count("chain", "nx", nx)
    _require.count("chain", "nu", nu)
    if nu > nx:
        raise _require.fail("chain", f"nu <= nx = {nx}", nu)
    diagonal = torch.cat([torch.ones(nu), 0.5 * torch.ones(nx - nu)]).double()
    neighbours = torch.ones(max(nx - 1, 0), dtype=torch.float64)
    A = torch.diag(diagonal) + coupling * (torch.diag(neighbours, 1) + torch.diag(neighbours, -1))
    B = 0.25 * torch.eye(nx, nu, dtype=torch.float64)
    return _build(
        f"chain-{nx}-{nu}", A, B, [1.0] * nx + [3.0] * nu, [0.1] * nu + [0.02] * (nx - nu),
        [1.5] + [0.6] * (nx - 1) + [1.0] * nu, torch.zeros(nx, dtype=torch.float64),
        rkhs_norm=rkhs_norm, noise_std=noise_std, generator=generator, horizon=horizon, budget=budget,
    )  # fmt: skip


def chain_policies(nx: int, nu: int, targets: torch.Tensor) -> AffinePolicies:
    """u_1 = clip(3(g − x₁), ±1) for each g of `targets` (P,), u_i = clip(−3x_i, ±1) for i > 1."""
    goals = torch.zeros(len(targets), nx, dtype=torch.float64)
    goals[:, 0] = targets
    gain = GAIN * torch.eye(nu, nx, dtype=torch.float64)
    box = Box(-torch.ones(nu, dtype=torch.float64), torch.ones(nu, dtype=torch.float64))
    return set_point_policies(goals, gain, torch.zeros(len(targets), nu, dtype=torch.float64), box)
