"""Sparse swing-ups, to be seen in pictures: a reward near the top only, a cost for speed or for leaving the middle."""

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
from gpsafe.systems.base import Cost, IndicatorCost, check_fields, measured
from gpsafe.systems.pendulum import Pendulum

TOP = math.cos(math.radians(8.0))  # dm_control's pendulum
RAIL_TIME = 0.08  # s, of the soft end of the rail


@short
@dataclass(frozen=True, slots=True, eq=False)
class SparsePendulum(Pendulum):
    """`Pendulum` with inputs held for four substeps; reward 1 within 8° of the top, else 0; cost 1{|ω| > safe_speed}.

    A rod that falls from rest at the top passes the bottom with √(6g/l) = 7.7 rad/s, so a swing-up within 6 rad/s needs torque
    on the way up, not only energy pumped before.
    """

    action_repeat: int = 4
    horizon: int = 30
    budget: float = 1.5
    name: str = "sparse-pendulum"

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """1{cos θ ≥ cos 8°}."""
        x, _ = measured(self, x, u)
        return (torch.cos(x[..., 0]) >= TOP).to(x.dtype)


def tolerance(y: Tensor, bound: float, margin: float) -> Tensor:
    """dm_control's: 1 for |y| ≤ bound, a Gaussian tail beyond that is 0.1 at bound + margin."""
    beyond = (y.abs() - bound).clamp_min(0.0) / margin
    return torch.exp(math.log(0.1) * beyond.square())


@short
@dataclass(frozen=True, slots=True, eq=False)
class SparseCartPole:
    """dm_control's cart-pole, `swingup_sparse`, as ActSafe's visual experiments have it; x = (p, θ, v, ω), θ = 0 hangs down.

    A capsule on a cart: with l half its length, I its inertia about the middle, J = I + ml²,

        (M + m) a + m l cos θ·α = 10 u + m l sin θ·ω² − b_c v + rail,    m l cos θ·a + J α = −m g l sin θ − b_p ω,

    by Runge and Kutta's fourth order, dt = 0.01 s, u ∈ [−1, 1] held for `action_repeat` of them. Beyond ±1.8 m the rail pushes
    back as a critically damped spring of 0.08 s: MuJoCo's limit is soft in this sense, its solver is not rebuilt here. Reward
    1{|p| < 0.25, cos of the angle from the top > 0.995} − 0.2 (1 − tolerance(u; 0.1, 0.1)); cost 1{|p| > 0.5} a step.
    `budget` is the published 100 of 1000 steps, as a share of this horizon.

    Args:
        cart, pole: kg.
        length, radius: of the capsule, m.
        force: N at u = 1.
        gravity: m/s².
        cart_damping, pole_damping: N s/m, N m s.
        rail: m, either side.
        track: m, where the cost begins.
        dt, action_repeat: s; substeps of a step.
        noise_std: of the state per step; dm_control has none.
        horizon, budget: T, d.
    """

    cart: float = 1.0
    pole: float = 0.1
    length: float = 1.0
    radius: float = 0.045
    force: float = 10.0
    gravity: float = 9.81
    cart_damping: float = 5e-4
    pole_damping: float = 2e-6
    rail: float = 1.8
    track: float = 0.5
    dt: float = 0.01
    action_repeat: int = 2
    noise_std: Tensor = field(default_factory=lambda: vector(1e-4, 1e-4, 1e-4, 1e-4))
    initial_state: Tensor = field(default_factory=lambda: vector(0.0, 0.0, 0.0, 0.0))
    horizon: int = 500
    budget: float = 50.0
    name: str = "sparse-cartpole"

    def __post_init__(self) -> None:
        for parameter in ("cart", "pole", "length", "radius", "force", "gravity", "rail", "track", "dt"):
            _require.positive("SparseCartPole", parameter, getattr(self, parameter))
        damping = [self.cart_damping, self.pole_damping]
        _require.nonnegative("SparseCartPole", "cart_damping, pole_damping", damping)
        _require.count("SparseCartPole", "action_repeat", self.action_repeat)
        check_fields("SparseCartPole", self)

    @property
    def nx(self) -> int:
        """4."""
        return 4

    @property
    def nu(self) -> int:
        """1."""
        return 1

    @property
    def angles(self) -> tuple[int, ...]:
        """State indices that are angles."""
        return (1,)

    @property
    def state_box(self) -> Box:
        """A little beyond the rail, one and a half turns, |v| ≤ 10, |ω| ≤ 20."""
        half = vector(1.2 * self.rail, 1.5 * math.pi, 10.0, 20.0)
        return Box(-half, half)

    @property
    def input_box(self) -> Box:
        """[−1, 1]."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def cost(self) -> Cost:
        """1{|p| > track}."""
        normals = vector(1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0).reshape(2, 4)
        return IndicatorCost(normals, vector(self.track, self.track))

    @property
    def inertia(self) -> float:
        """J, of the capsule about the hinge at its end: a cylinder and two half balls of one density."""
        r, length = self.radius, self.length
        cylinder, ball = math.pi * r * r * length, 4 / 3 * math.pi * r**3
        m_c, m_b = (self.pole * v / (cylinder + ball) for v in (cylinder, ball))
        middle = m_c * (length**2 / 12 + r * r / 4) + m_b * (2 * r * r / 5 + length**2 / 4 + 3 * length * r / 8)
        return middle + self.pole * (length / 2) ** 2

    def _rates(self, x: Tensor, push: Tensor) -> Tensor:
        p, theta, v, omega = x.unbind(-1)
        sine, cosine = torch.sin(theta), torch.cos(theta)
        beyond = p - p.clamp(-self.rail, self.rail)
        back = -beyond / RAIL_TIME**2 - (beyond != 0) * 2 * v / RAIL_TIME
        back = torch.where(beyond > 0, back.clamp_max(0.0), back.clamp_min(0.0))  # it never pulls outwards
        mass, lever = self.cart + self.pole, 0.5 * self.pole * self.length
        along = push + lever * sine * omega.square() - self.cart_damping * v + mass * back
        about = -self.gravity * lever * sine - self.pole_damping * omega
        det = mass * self.inertia - (lever * cosine).square()
        a = (self.inertia * along - lever * cosine * about) / det
        alpha = (mass * about - lever * cosine * along) / det
        return torch.stack([v, omega, a, alpha], dim=-1)

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, 4), (*b, 1) → (*b, 4)."""
        x, u = measured(self, x, u)
        push, h = self.force * u[..., 0], self.dt
        for _ in range(self.action_repeat):
            k1 = self._rates(x, push)
            k2 = self._rates(x + 0.5 * h * k1, push)
            k3 = self._rates(x + 0.5 * h * k2, push)
            k4 = self._rates(x + h * k3, push)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """See the class."""
        x, u = measured(self, x, u)
        up = (x[..., 0].abs() < 0.25) & (-torch.cos(x[..., 1]) > 0.995)
        return up.to(x.dtype) - 0.2 * (1.0 - tolerance(u[..., 0], 0.1, 0.1))

    def energy(self, x: Tensor) -> Tensor:
        """½(M + m)v² + m l cos θ·vω + ½Jω² + m g l(1 − cos θ), J, zero hanging at rest."""
        _, theta, v, omega = x.unbind(-1)
        lever = 0.5 * self.pole * self.length
        motion = 0.5 * (self.cart + self.pole) * v.square() + 0.5 * self.inertia * omega.square()
        return motion + lever * (torch.cos(theta) * v * omega + self.gravity * (1.0 - torch.cos(theta)))

    def scene(self, x: Tensor) -> draw.Scene:
        """The rail with the ends of its free part, the pole, the cart upon it."""
        p, theta = float(x[0]), float(x[1])
        tip = (p + self.length * math.sin(theta), -self.length * math.cos(theta))
        ends = [draw.Stroke((s * self.track, -0.2), (s * self.track, 0.2), 0.03, draw.GREY) for s in (-1, 1)]
        return draw.Scene(
            (
                draw.Stroke((-2 * self.rail, 0.0), (2 * self.rail, 0.0), 0.02, draw.GREY),
                *ends,
                draw.Stroke((p, 0.0), tip, 0.06, draw.ACCENT),
                draw.Stroke((p - 0.12, 0.0), (p + 0.12, 0.0), 0.12, draw.RED),
            ),
            half_width=1.2 * self.rail,
        )
