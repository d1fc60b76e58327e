"""The Simple Pendulum and the Safe CartPole of the published X-MPSC experiments (xmpsc.md §6.1, §6.2), corrected.

Corrections: a step returns the new state (the published pendulum returned the old one), the noise of the input does not
leak into what is stored, and the backup controller's inputs are clipped before they are used (xmpsc.md §11.3, §11.7, §11.8).
Noise is bounded and enters through the input and the measurement, so `noise_std` is a stand-in: the standard deviations of
a step under the published input noise. `advance` and `observe` draw the published noise itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.linalg import vector
from gpsafe.sets import Box
from gpsafe.systems.base import Cost, IndicatorCost, check_fields, measured
from gpsafe.systems.known import SineKnown, pendulum_known
from gpsafe.systems.xmpsc_known import SafeCartPoleKnown


def _uniform(size: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """U(−size, size), (*shape,); the last dimension is that of size."""
    draw = torch.rand(*shape, dtype=torch.float64, generator=generator, device=generator.device)
    return (2 * draw - 1) * size.to(draw.device)


def _leaves(box: Box, rows: tuple[int, ...]) -> IndicatorCost:
    """1 outside the box in the given dimensions."""
    eye = torch.eye(box.dim, dtype=torch.float64)[list(rows)]
    return IndicatorCost(torch.cat([eye, -eye]), torch.cat([box.upper[list(rows)], -box.lower[list(rows)]]))


@short
@dataclass(frozen=True, slots=True, eq=False)
class SimplePendulum:
    """x = (θ, ω), θ = 0 upright, not wrapped: ω⁺ = ω + dt·(u + m g l sin θ − b ω)/(m l²), θ⁺ = θ + dt·ω⁺, |u| ≤ 1 N m.

    Cost 1 outside the state box. Reward cos θ − 10⁻³ω² − 10⁻³u².

    Args:
        mass: m, kg.
        length: l, m.
        damping: b, N m s.
        gravity: g, m/s².
        dt: s.
        input_noise: half-width of the uniform noise added to u (before it is clipped), N m.
        observation_noise: half-width of the uniform measurement noise, as a share of the state box's widths.
    """

    mass: float = 0.33
    length: float = 1.0
    damping: float = 0.1
    gravity: float = 10.0
    dt: float = 0.1
    input_noise: float = 0.01
    observation_noise: float = 0.005
    horizon: int = 100
    budget: float = 0.0
    initial_state: Tensor = field(default_factory=lambda: vector(math.pi, 0.0))
    noise_std: Tensor = field(init=False)
    name: str = "simple-pendulum"

    def __post_init__(self) -> None:
        for parameter in ("mass", "length", "gravity", "dt"):
            _require.positive("SimplePendulum", parameter, getattr(self, parameter))
        for parameter in ("damping", "input_noise", "observation_noise"):
            _require.nonnegative("SimplePendulum", parameter, getattr(self, parameter))
        push = self.dt / (self.mass * self.length**2) * self.input_noise / math.sqrt(3.0)
        object.__setattr__(self, "noise_std", vector(self.dt * push, push))
        check_fields("SimplePendulum", self)

    @property
    def nx(self) -> int:
        """2."""
        return 2

    @property
    def nu(self) -> int:
        """1."""
        return 1

    @property
    def state_box(self) -> Box:
        """θ ∈ [0.25π, 2.0833π], ω ∈ [−8, 8]: the states that are allowed."""
        return Box(vector(0.25 * math.pi, -8.0), vector(2.0833 * math.pi, 8.0))

    @property
    def input_box(self) -> Box:
        """[−1, 1] N m."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def initial_box(self) -> Box:
        """θ ∈ [0.75π, 1.25π], ω ∈ [−1.2, 1.2]."""
        return Box(vector(0.75 * math.pi, -1.2), vector(1.25 * math.pi, 1.2))

    @property
    def cost(self) -> Cost:
        """1 outside the state box."""
        return _leaves(self.state_box, (0, 1))

    def prior(self, *, scale: float = 0.8) -> SineKnown:
        """The published prior: the same equations with m, l and b times `scale`; 1 gives the truth for |u| ≤ 1."""
        _require.positive("SimplePendulum.prior", "scale", scale)
        m, length, b = scale * self.mass, scale * self.length, scale * self.damping
        inertia = m * length**2
        return pendulum_known(
            gravity=self.gravity / length,
            gain=1 / inertia,
            damping=b / inertia,
            dt=self.dt,
            hanging_at_zero=False,
            semi_implicit=True,
        )

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """The step without noise, (*b, 2), (*b, 1) → (*b, 2); u as given (see `System.mean`)."""
        x, u = measured(self, x, u)
        theta, omega = x.unbind(-1)
        torque = u[..., 0] + self.mass * self.gravity * self.length * torch.sin(theta)
        omega = omega + self.dt * (torque - self.damping * omega) / (self.mass * self.length**2)
        return torch.stack([theta + self.dt * omega, omega], dim=-1)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """cos θ − 10⁻³ω² − 10⁻³u²."""
        return torch.cos(x[..., 0]) - 1e-3 * x[..., 1].square() - 1e-3 * u[..., 0].square()

    def advance(self, x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        """A step under the published input noise; the noisy u is clipped to the limits."""
        return self.mean(x, self.input_box.clip(u + _uniform(vector(self.input_noise), tuple(u.shape), generator)))

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The measurement of x."""
        return x + _uniform(2 * self.observation_noise * self.state_box.radius, tuple(x.shape), generator)


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeCartPole:
    """x = (position, speed, θ, ω), θ = 0 upright, force 10·u N, explicit Euler with dt = 0.02 s.

    With p = m_p L, m_t = m_c + m_p, s = sin θ, c = cos θ and force F,

        speed′ = (−2pω²s + 3m_p g s c + 4F − 4b·speed)/(4m_t − 3m_p c²),
        ω′ = (−3pω²s c + 6m_t g s + 6(F − b·speed)c)/(4L m_t − 3p c²).

    the mechanics of a uniform pole of length L (the specification calls L half the length, which its equations do not bear
    out) whose tip is at position − L sin θ. Cost 1 outside |position| ≤ 2.4 m, |θ| ≤ 12°.
    Reward −(‖x‖² + 10⁻⁴u²) − 100·cost(x).
    """

    cart: float = 1.0
    pole: float = 0.1
    length: float = 0.5
    gravity: float = 10.0
    friction: float = 0.1
    force: float = 10.0
    dt: float = 0.02
    input_noise: float = 0.005
    horizon: int = 100
    budget: float = 0.0
    initial_state: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    noise_std: Tensor = field(init=False)
    name: str = "safe-cartpole"

    def __post_init__(self) -> None:
        for parameter in ("cart", "pole", "length", "gravity", "force", "dt"):
            _require.positive("SafeCartPole", parameter, getattr(self, parameter))
        for parameter in ("friction", "input_noise"):
            _require.nonnegative("SafeCartPole", parameter, getattr(self, parameter))
        total = self.cart + self.pole
        scale = self.dt * self.force * self.input_noise / math.sqrt(3.0)
        speed = 4.0 * scale / (4 * total - 3 * self.pole)
        turn = 6.0 * scale / (4 * self.length * total - 3 * self.pole * self.length)
        object.__setattr__(self, "noise_std", vector(0.0, speed, 0.0, turn))
        check_fields("SafeCartPole", self)

    @property
    def nx(self) -> int:
        """4."""
        return 4

    @property
    def nu(self) -> int:
        """1."""
        return 1

    @property
    def state_box(self) -> Box:
        """|position| ≤ 2.4 m, |θ| ≤ 12°, and 10⁵ for the speeds, as published: no limit in effect."""
        upper = vector(2.4, 1e5, math.radians(12.0), 1e5)
        return Box(-upper, upper)

    @property
    def input_box(self) -> Box:
        """[−1, 1]."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def initial_box(self) -> Box:
        """±0.05 in every dimension."""
        return Box(torch.full((4,), -0.05).double(), torch.full((4,), 0.05).double())

    @property
    def cost(self) -> Cost:
        """1 outside the limits of position and angle."""
        return _leaves(self.state_box, (0, 2))

    def prior(self, *, scale: float = 0.8) -> SafeCartPoleKnown:
        """The published prior: the same equations with both masses and the length times `scale`; 1 gives the truth."""
        _require.positive("SafeCartPole.prior", "scale", scale)
        return SafeCartPoleKnown(
            cart=scale * self.cart,
            pole=scale * self.pole,
            length=scale * self.length,
            gravity=self.gravity,
            friction=self.friction,
            force=self.force,
            dt=self.dt,
        )

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """The step without noise, (*b, 4), (*b, 1) → (*b, 4); u as given (see `System.mean`)."""
        x, u = measured(self, x, u)
        _, speed, theta, omega = x.unbind(-1)
        s, c = torch.sin(theta), torch.cos(theta)
        total, p = self.cart + self.pole, self.pole * self.length
        pull = self.force * u[..., 0] - self.friction * speed
        faster = (-2 * p * omega.square() * s + 3 * self.pole * self.gravity * s * c + 4 * pull) / (
            4 * total - 3 * self.pole * c.square()
        )
        turning = (-3 * p * omega.square() * s * c + 6 * total * self.gravity * s + 6 * pull * c) / (
            4 * self.length * total - 3 * p * c.square()
        )
        change = torch.stack([speed, faster, omega, turning], dim=-1)
        return x + self.dt * change

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """−(‖x‖² + 10⁻⁴u²) − 100 outside the limits."""
        return -(x.square().sum(-1) + 1e-4 * u[..., 0].square()) - 100.0 * self.cost(x)

    def advance(self, x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        """A step under the published input noise; the noisy u is clipped to the limits."""
        return self.mean(x, self.input_box.clip(u + _uniform(vector(self.input_noise), tuple(u.shape), generator)))

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x: measured exactly, as published."""
        return x

    def backup(self, x: Tensor) -> Tensor:
        """The published hand-set law clip(−5·position − 3·speed − 113θ − 40ω, ±1), (*b, 4) → (*b, 1)."""
        return (x @ vector(-5.0, -3.0, -113.0, -40.0).to(x.device)).clamp(-1.0, 1.0).unsqueeze(-1)

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The published safe controller for first data: `backup`, but a uniform input for one state in five."""
        wild = _uniform(vector(1.0), (*x.shape[:-1], 1), generator)
        chosen = torch.rand(*x.shape[:-1], 1, dtype=torch.float64, generator=generator, device=x.device) < 0.2
        return torch.where(chosen, wild, self.backup(x))
