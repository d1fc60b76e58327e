"""Members of the set of a convex program at its very edge: adversaries for bounds that use several of its multipliers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpsafe.confidence import ConvexProgram
from gpsafe.models import GP
from gpsafe.rkhs import RKHSFunction, kernels


def edge_member(bound: ConvexProgram, model: GP, z: Tensor, weights: Tensor, *, output: int = 0) -> RKHSFunction:
    """A maximiser of Σ weights_i f(z_i), z (m, d), over {f : ‖f(X) − y‖² ≤ R_n², ‖f‖ ≤ B} with both constraints tight.

    f = (ΦᵀΦ + ρ)⁻¹(Φᵀy + tℓ), where t makes the norm B and ρ the misfit R_n², both within by 1e-9. AssertionError where no ρ
    does (then one constraint alone decides).
    """
    assert model.inputs is not None and model.targets is not None
    kernel, n, y = model.kernels[output], model.num_data, model.targets[:, output]
    centers, limit = torch.cat([model.inputs, z]), float(bound.norms(model.num_outputs)[output])
    gram, inside = kernels.cross(kernel, centers, centers), 1 - 1e-9
    room = float(bound.program(model, output, model.inputs[:1]).radius_sq) * inside

    def at(rho: float) -> tuple[Tensor, float]:
        shifted = gram[:n, :n] + rho * torch.eye(n, dtype=torch.float64)
        solved = torch.linalg.solve(shifted, torch.stack([y, -gram[:n, n:] @ weights], -1))
        start, along = torch.cat([solved[:, 0], 0 * weights]), torch.cat([solved[:, 1], weights])
        a, b, c = (float(u @ gram @ v) for u, v in ((along, along), (along, start), (start, start)))
        inner = b * b - a * (c - inside * limit**2)
        if inner < 0:  # the mean alone is beyond the ball: ρ is too small
            return start, -math.inf
        f = start + (math.sqrt(inner) - b) / a * along
        return f, float((gram[:n] @ f - y).square().sum())

    low, high = 1e-9, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if at(middle)[1] > room else (middle, high)
    found, misfit = at(low)
    assert (1 - 1e-6) * room <= misfit <= room
    return RKHSFunction(kernel, centers, found)
