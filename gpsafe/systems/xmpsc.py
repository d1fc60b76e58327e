"""The Simple Pendulum and the Safe CartPole of the published X-MPSC experiments (xmpsc.md §6.1, §6.2), corrected.

Corrections: a step returns the new state (the published pendulum returned the old one), the noise of the input does not
leak into what is stored, and the warm-up law's inputs are clipped before they are used (xmpsc.md §11.3, §11.7, §11.8).
See `gpsafe.systems.episodic` for what these plants have in common.
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
from gpsafe.systems import scene as draw
from gpsafe.systems.base import Cost, check_fields, measured
from gpsafe.systems.episodic import Published, leaves, uniform, wild
from gpsafe.systems.known import SineKnown, pendulum_known
from gpsafe.systems.riccati import riccati
from gpsafe.systems.xmpsc_known import SafeCartPoleKnown


@short
@dataclass(frozen=True, slots=True, eq=False)
class SimplePendulum(Published):
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
    backup_gain: Tensor = field(init=False)
    name: str = "simple-pendulum"

    def __post_init__(self) -> None:
        for parameter in ("mass", "length", "gravity", "dt"):
            _require.positive("SimplePendulum", parameter, getattr(self, parameter))
        for parameter in ("damping", "input_noise", "observation_noise"):
            _require.nonnegative("SimplePendulum", parameter, getattr(self, parameter))
        push = self.dt / (self.mass * self.length**2) * self.input_noise / math.sqrt(3.0)
        object.__setattr__(self, "noise_std", vector(self.dt * push, push))
        check_fields("SimplePendulum", self)
        # One over the square of what is allowed (Bryson's rule), and an effort at which the law keeps within ±1 far from rest:
        # a larger one swings longer, a smaller one saturates earlier, where no linear law is certified.
        gain = riccati(self.mean, self.rest, vector(0.0), self.state_box.radius**-2, vector(0.1))
        object.__setattr__(self, "backup_gain", gain)

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
    def rest(self) -> Tensor:
        """(π, 0), hanging: where `backup` takes it, wherever it starts."""
        return vector(math.pi, 0.0)

    @property
    def input_box(self) -> Box:
        """[−1, 1] N m."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def initial_box(self) -> Box:
        """θ ∈ [0.75π, 1.25π], ω ∈ [−1.2, 1.2]."""
        return Box(vector(0.75 * math.pi, -1.2), vector(1.25 * math.pi, 1.2))

    @property
    def limited(self) -> tuple[int, ...]:
        """Both."""
        return (0, 1)

    @property
    def cost(self) -> Cost:
        """1 outside the state box."""
        return leaves(self.state_box, self.limited)

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

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The measurement of x."""
        return x + uniform(2 * self.observation_noise * self.state_box.radius, tuple(x.shape), generator)

    def backup(self, x: Tensor) -> Tensor:
        """clip(−K(θ − π, ω), ±1), the Riccati law about hanging, (*b, 2) → (*b, 1)."""
        return self.input_box.clip((self.rest.to(x.device) - x) @ self.backup_gain.T.to(x.device))

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform torques, as published."""
        return uniform(vector(1.0), (*x.shape[:-1], 1), generator)

    def scene(self, x: Tensor) -> draw.Scene:
        """The rod, θ = 0 up and θ growing clockwise; red rays end the allowed angles."""
        theta, limits = float(x[0]), self.state_box
        tip = (self.length * math.sin(theta), self.length * math.cos(theta))
        rays = []
        for angle in (float(limits.lower[0]), float(limits.upper[0])):
            near, far = ((r * self.length * math.sin(angle), r * self.length * math.cos(angle)) for r in (1.05, 1.25))
            rays.append(draw.Stroke(near, far, 0.02 * self.length, draw.RED))
        rod = draw.Stroke((0.0, 0.0), tip, 0.04 * self.length, draw.ACCENT)
        bob = draw.Stroke(tip, tip, 0.1 * self.length, draw.DARK)
        return draw.Scene((*rays, rod, bob), half_width=1.3 * self.length)


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeCartPole(Published):
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
    backup_gain: Tensor = field(init=False)
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
        # One over the square of what is allowed (Bryson's rule), 1 m/s and 1 rad/s for the speeds; the effort as above.
        limits = torch.where(self.state_box.radius < 1e4, self.state_box.radius, 1.0)
        gain = riccati(self.mean, self.rest, vector(0.0), limits**-2, vector(30.0))
        object.__setattr__(self, "backup_gain", gain)

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
    def rest(self) -> Tensor:
        """Upright in the middle: where `backup` takes it, wherever it starts."""
        return torch.zeros(4, dtype=torch.float64)

    @property
    def input_box(self) -> Box:
        """[−1, 1]."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def initial_box(self) -> Box:
        """±0.05 in every dimension."""
        return Box(vector(*(4 * [-0.05])), vector(*(4 * [0.05])))

    @property
    def limited(self) -> tuple[int, ...]:
        """Position and angle."""
        return (0, 2)

    @property
    def cost(self) -> Cost:
        """1 outside the limits of position and angle."""
        return leaves(self.state_box, self.limited)

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

    def backup(self, x: Tensor) -> Tensor:
        """clip(−K x, ±1), the Riccati law about rest, upright in the middle, (*b, 4) → (*b, 1)."""
        return self.input_box.clip((self.rest.to(x.device) - x) @ self.backup_gain.T.to(x.device))

    def published_backup(self, x: Tensor) -> Tensor:
        """The hand-set law of the published code, clip(−5·position − 3·speed − 113θ − 40ω, ±1), (*b, 4) → (*b, 1)."""
        return (x @ vector(-5.0, -3.0, -113.0, -40.0).to(x.device)).clamp(-1.0, 1.0).unsqueeze(-1)

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As published: `published_backup`, but a uniform input for one state in five."""
        return wild(self.published_backup(x), 0.2, generator)

    def scene(self, x: Tensor) -> draw.Scene:
        """Cart, pole (tip at position − L sin θ) and the ends of the track."""
        place, theta, track = float(x[0]), float(x[2]), float(self.state_box.upper[0])
        tip = (place - self.length * math.sin(theta), self.length * math.cos(theta))
        ends = [draw.Stroke((s * track, -0.25), (s * track, 0.25), 0.03, draw.RED) for s in (-1, 1)]
        rail = draw.Stroke((-2 * track, 0.0), (2 * track, 0.0), 0.015, draw.GREY)
        cart = draw.Stroke((place - 0.2, 0.0), (place + 0.2, 0.0), 0.12, draw.DARK)
        return draw.Scene((rail, *ends, cart, draw.Stroke((place, 0.0), tip, 0.05, draw.ACCENT)), 1.15 * track)
