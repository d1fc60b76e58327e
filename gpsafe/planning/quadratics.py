"""Convex quadratic programs with a planted optimum: problems on which a method of descent can be held against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short


@short
@dataclass(frozen=True, slots=True, eq=False)
class Quadratics:
    """P programs: minimise ½ xᵀQx − bᵀx subject to ½ M_i ‖x − c_i‖² ≤ r_i, i = 1 … m.

    Args:
        Q: (P, d, d), positive definite.
        b: (P, d).
        centers: c_i, (P, m, d).
        curvature: M_i > 0, (P, m).
        radius: r_i > 0, (P, m).
        optimum: x*, (P, d).
        multipliers: λ_i ≥ 0 of the constraints at x*, (P, m).
    """

    Q: Tensor
    b: Tensor
    centers: Tensor
    curvature: Tensor
    radius: Tensor
    optimum: Tensor
    multipliers: Tensor

    @staticmethod
    def planted(
        count: int, *, dim: int, constraints: int, generator: torch.Generator, condition: float = 30.0
    ) -> Quadratics:
        """Programs whose optimum is known because it was chosen first; 0 is strictly feasible, and x* is not free of charge.

        x* is normal; all but the last constraint are active at x*, their balls contain 0; multipliers are drawn, and
        b = Qx* + Σ λ_i M_i (x* − c_i) makes the Lagrangian stationary at x*, which for a convex program is optimality.

        Args:
            count: P.
            dim: d.
            constraints: m ≥ 2.
            generator: draws everything.
            condition: of Q.
        """
        _require.count("Quadratics.planted", "constraints", constraints, minimum=2)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, dtype=torch.float64, generator=generator)

        basis = torch.linalg.qr(normal(count, dim, dim))[0]
        spectrum = condition ** uniform(count, dim)
        Q = basis @ (spectrum.unsqueeze(-1) * basis.mT)
        optimum = normal(count, dim)
        size = optimum.norm(dim=-1, keepdim=True).unsqueeze(-1)
        # 0 lies in a ball with x* on its border as soon as its centre is nearer to 0 than to x*
        centers = optimum.unsqueeze(1) * (0.1 + 0.3 * uniform(count, constraints, 1)) + 0.1 * size * _unit(
            normal(count, constraints, dim)
        )
        curvature = 10 ** (2 * uniform(count, constraints) - 1)
        radius = 0.5 * curvature * (optimum.unsqueeze(1) - centers).square().sum(-1)
        multipliers = (0.5 + uniform(count, constraints)) / curvature
        radius[:, -1] *= 1.5  # slack at the optimum
        multipliers[:, -1] = 0.0
        pull = ((multipliers * curvature).unsqueeze(-1) * (optimum.unsqueeze(1) - centers)).sum(1)
        b = (Q @ optimum.unsqueeze(-1)).squeeze(-1) + pull
        return Quadratics(Q, b, centers, curvature, radius, optimum, multipliers)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f₀ (P,) and f (P, m) at one point of each program, (P, d)."""
        turned = (self.Q @ x.unsqueeze(-1)).squeeze(-1)
        distance = (x.unsqueeze(1) - self.centers).square().sum(-1)
        return (0.5 * turned - self.b).mul(x).sum(-1), 0.5 * self.curvature * distance - self.radius

    @property
    def smoothness(self) -> Tensor:
        """True M₀ … M_m, (P, 1 + m)."""
        return torch.cat([torch.linalg.eigvalsh(self.Q)[:, -1:], self.curvature], dim=-1)

    @property
    def best(self) -> Tensor:
        """f₀(x*), (P,)."""
        return self(self.optimum)[0]


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True)
