"""The torque-driven pendulum of the published swing-up experiments: θ = 0 upright, start hanging at θ = π."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.linalg import vector
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems import scene as draw
from gpsafe.systems.base import Cost, HingeCost, IndicatorCost, check_fields, measured
from gpsafe.systems.known import SineKnown
from gpsafe.systems.rkhs_twin import RKHSTwin, twin


def wrap_angle(angle: Tensor) -> Tensor:
    """The representative of an angle in [−π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


@short
@dataclass(frozen=True, slots=True, eq=False)
class Pendulum:
    """A uniform rod with x = (θ, ω).

    ω⁺ = clip(ω + dt(1.5 g/l sin θ + 3/(ml²)·torque·u), ±speed_limit), θ⁺ = θ + dt·ω⁺.

    θ (rad, 0 upright, not wrapped), ω (rad/s), u ∈ [−1, 1]. Cost on |ω| > safe_speed, as an indicator or as
    the hinge min((|ω| − safe_speed)₊, 1). Reward −(θ² + 0.1ω²) − 0.02u² with θ wrapped to [−π, π).

    The clip has no second derivative, so no part of it is in :meth:`prior`. Where |ω| ≤ `free_speed` no input
    can make it act, and there the plant is smooth; :meth:`twin` is built on that region and never clips.

    Args:
        gravity: m/s².
        mass: kg.
        length: m.
        torque: N m at u = 1.
        dt: s, of one substep.
        speed_limit: rad/s, the clip.
        safe_speed: rad/s.
        action_repeat: substeps for which u is held; one step of the plant is all of them.
        cost_kind: "indicator" or "hinge".
        noise_std: of (θ, ω) per step, (rad, rad/s).
        horizon: T steps.
        budget: d.
    """

    gravity: float = 9.81
    mass: float = 1.0
    length: float = 1.0
    torque: float = 2.0
    dt: float = 0.05
    speed_limit: float = 8.0
    safe_speed: float = 6.0
    action_repeat: int = 1
    cost_kind: Literal["indicator", "hinge"] = "indicator"
    noise_std: Tensor = field(default_factory=lambda: vector(0.001, 0.001))
    initial_state: Tensor = field(default_factory=lambda: vector(math.pi, 0.0))
    horizon: int = 100
    budget: float = 0.2
    name: str = "pendulum"

    def __post_init__(self) -> None:
        for parameter in ("gravity", "mass", "length", "torque", "dt", "speed_limit", "safe_speed"):
            _require.positive("Pendulum", parameter, getattr(self, parameter))
        _require.count("Pendulum", "action_repeat", self.action_repeat)
        _require.one_of("Pendulum", "cost_kind", self.cost_kind, ("indicator", "hinge"))
        check_fields("Pendulum", self)

    @property
    def nx(self) -> int:
        """2."""
        return 2

    @property
    def nu(self) -> int:
        """1."""
        return 1

    @property
    def angles(self) -> tuple[int, ...]:
        """State indices that are angles."""
        return (0,)

    @property
    def state_box(self) -> Box:
        """One turn to either side of the hanging position, |ω| ≤ speed_limit."""
        return Box(vector(-math.pi, -self.speed_limit), vector(3 * math.pi, self.speed_limit))

    @property
    def input_box(self) -> Box:
        """[−1, 1]."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def cost(self) -> Cost:
        """1{|ω| > safe_speed}, or min((|ω| − safe_speed)₊, 1)."""
        normals, offsets = (
            vector(0.0, 1.0, 0.0, -1.0).reshape(2, 2),
            vector(self.safe_speed, self.safe_speed),
        )
        if self.cost_kind == "hinge":
            return HingeCost(normals, offsets)
        return IndicatorCost(normals, offsets)

    def _rates(self, *, length_error: float = 0.0, mass_error: float = 0.0) -> tuple[float, float]:
        length, mass = self.length * (1.0 + length_error), self.mass * (1.0 + mass_error)
        return 1.5 * self.gravity / length, 3.0 * self.torque / (mass * length**2)

    @property
    def free_speed(self) -> float:
        """Largest |ω| from which no input reaches the clip within one step (all substeps), rad/s."""
        return self.speed_limit - self.action_repeat * self.dt * sum(self._rates())

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, 2), (*b, 1) → (*b, 2)."""
        x, u = measured(self, x, u)
        pull, push = self._rates()
        theta, omega = x.unbind(-1)
        for _ in range(self.action_repeat):
            omega = omega + self.dt * (pull * torch.sin(theta) + push * u[..., 0])
            omega = omega.clamp(-self.speed_limit, self.speed_limit)
            theta = theta + self.dt * omega
        return torch.stack([theta, omega], dim=-1)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """−(θ² + 0.1ω²) − 0.02u², θ wrapped."""
        theta, omega = x.unbind(-1)
        return -(wrap_angle(theta).square() + 0.1 * omega.square()) - 0.02 * u[..., 0].square()

    def energy(self, x: Tensor) -> Tensor:
        """Kinetic plus potential energy of the rod, J, zero upright at rest: ml²ω²/6 + mgl(cos θ − 1)/2."""
        theta, omega = x.unbind(-1)
        swing = self.mass * self.length**2 * omega.square() / 6
        return swing + 0.5 * self.mass * self.gravity * self.length * (torch.cos(theta) - 1.0)

    def prior(self, *, length_error: float = 0.1, mass_error: float = 0.1) -> SineKnown:
        """One step, without the clip, of a pendulum whose length and mass are off by the given fractions.

        With n = action_repeat > 1 the angle of substep k inside the sine leaves out gravity,
        θ_k ≈ θ + k·dt·ω + ½k(k+1)·dt²·push·u, so that the step stays a sum of sines; for n = 1 this is exact.
        """
        pull, push = self._rates(length_error=length_error, mass_error=mass_error)
        n, dt = self.action_repeat, self.dt
        k = torch.arange(n, dtype=torch.float64)
        amplitudes = dt * pull * torch.stack([dt * (n - k), torch.ones_like(k)], dim=-1)
        frequencies = torch.stack([torch.ones_like(k), dt * k, 0.5 * dt**2 * push * k * (k + 1)], dim=-1)
        A = vector(1.0, n * dt, 0.0, 1.0).reshape(2, 2)
        B = vector(0.5 * n * (n + 1) * dt**2 * push, n * dt * push).reshape(2, 1)
        return SineKnown(A, B, vector(0.0, 0.0), amplitudes, frequencies, torch.zeros_like(k))

    def twin(self, *, length_error: float = 0.1, mass_error: float = 0.1, ridge: float = 1e-9) -> RKHSTwin:
        """The RKHS twin over θ ∈ [−π, 3π], |ω| ≤ free_speed, |u| ≤ 1; both states are learned.

        RBF, ℓ = (1.5, 16, 3) in (θ, ω, u), standard deviation 0.1 for ω⁺ (0.1·action_repeat·dt for θ⁺).
        """
        speed = self.free_speed
        box = self.state_box
        region = Box(vector(float(box.lower[0]), -speed, -1.0), vector(float(box.upper[0]), speed, 1.0))
        scale = 0.1
        step = self.action_repeat * self.dt
        kernel = [kernels.rbf([1.5, 16.0, 3.0], variance=(scale * factor) ** 2) for factor in (step, 1.0)]
        known = self.prior(length_error=length_error, mass_error=mass_error)
        return twin(self, known, kernels=kernel, outputs=(0, 1), counts=(25, 4, 4), region=region, ridge=ridge)

    def scene(self, x: Tensor) -> draw.Scene:
        """The rod, drawn with θ = 0 up and θ growing clockwise."""
        theta = float(x[0])
        tip = (self.length * math.sin(theta), self.length * math.cos(theta))
        r = 0.06 * self.length
        return draw.Scene(
            (
                draw.Stroke((0.0, 0.0), tip, r, draw.ACCENT),
                draw.Stroke((0.0, 0.0), (0.0, 0.0), 0.6 * r, draw.DARK),
            ),
            half_width=1.3 * self.length,
        )
