"""A cart on a rail pushed by a force: the double integrator, discretised exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.linalg import vector
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.sets import Box
from gpsafe.systems import scene as draw
from gpsafe.systems.base import Cost, IndicatorCost, check_fields, measured
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.rkhs_twin import RKHSTwin, exact_twin


@short
@dataclass(frozen=True, slots=True, eq=False)
class DoubleIntegrator:
    """x = (p, v): p⁺ = p + dt·v + ½dt²·a, v⁺ = v + dt·a, a = (force/mass)·u held over a step, u ∈ [−1, 1].

    Cost 1{p > position_limit}; reward −(p − target)² − 0.1v² − 0.01u².

    Args:
        mass: kg.
        force: N at u = 1.
        dt: s.
        position_limit: m.
        target: m; just inside the limit by default.
        noise_std: of (p, v), (m, m/s).
        horizon: T steps.
        budget: d, expected unsafe steps in an episode.
    """

    mass: float = 1.0
    force: float = 1.0
    dt: float = 0.1
    position_limit: float = 1.0
    target: float = 0.9
    noise_std: Tensor = field(default_factory=lambda: vector(0.002, 0.005))
    initial_state: Tensor = field(default_factory=lambda: vector(-0.5, 0.0))
    state_box: Box = field(default_factory=lambda: Box(vector(-2.0, -2.0), vector(2.0, 2.0)))
    horizon: int = 50
    budget: float = 0.2
    name: str = "double-integrator"

    def __post_init__(self) -> None:
        for parameter in ("mass", "force", "dt"):
            _require.positive("DoubleIntegrator", parameter, getattr(self, parameter))
        check_fields("DoubleIntegrator", self)

    @property
    def nx(self) -> int:
        """2."""
        return 2

    @property
    def nu(self) -> int:
        """1."""
        return 1

    @property
    def input_box(self) -> Box:
        """[−1, 1]."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def cost(self) -> Cost:
        """1{p > position_limit}."""
        return IndicatorCost(vector(1.0, 0.0).reshape(1, 2), vector(self.position_limit))

    def prior(self, *, mass_error: float = 0.2) -> AffineKnown:
        """The same plant with a mass (1 + mass_error) times the true one; 0 gives the truth."""
        gain = self.force / (self.mass * (1.0 + mass_error))
        A = vector(1.0, self.dt, 0.0, 1.0).reshape(2, 2)
        B = vector(0.5 * self.dt**2 * gain, self.dt * gain).reshape(2, 1)
        return AffineKnown(A, B, torch.zeros(2, dtype=torch.float64))

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, 2), (*b, 1) → (*b, 2)."""
        x, u = measured(self, x, u)
        push = (self.force / self.mass) * u[..., 0]
        p, v = x.unbind(-1)
        return torch.stack([p + self.dt * v + 0.5 * self.dt**2 * push, v + self.dt * push], dim=-1)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """−(p − target)² − 0.1v² − 0.01u²."""
        p, v = x.unbind(-1)
        return -((p - self.target).square() + 0.1 * v.square() + 0.01 * u[..., 0].square())

    def twin(self, *, mass_error: float = 0.2, variance: float = 1.0) -> RKHSTwin:
        """The twin for the linear kernel k(z, z′) = variance·zᵀz′: the plant itself, distance 0.

        The residual is w·z with w the difference of the matrices, and ‖w·z‖_k = ‖w‖/√variance.
        """
        known, truth = self.prior(mass_error=mass_error), self.prior(mass_error=0.0)
        kernel = kernels.linear(variance)
        rows = torch.cat([truth.A - known.A, truth.B - known.B], dim=-1)
        residual = tuple(RKHSFunction(kernel, row.reshape(1, 3) / variance, vector(1.0)) for row in rows)
        return exact_twin(self, known, residual=residual, outputs=(0, 1))

    def scene(self, x: Tensor) -> draw.Scene:
        """A cart on a rail and the line it must not cross."""
        p, edge = float(x[0]), self.position_limit
        return draw.Scene(
            (
                draw.Stroke((-3.0, -0.2), (3.0, -0.2), 0.012, draw.GREY),
                draw.Stroke((edge, -0.6), (edge, 0.6), 0.012, draw.RED),
                draw.Stroke((p - 0.15, -0.08), (p + 0.15, -0.08), 0.1, draw.DARK),
                draw.Stroke((p, -0.08), (p, -0.08), 0.05, draw.ACCENT),
            ),
            half_width=2.0,
        )
