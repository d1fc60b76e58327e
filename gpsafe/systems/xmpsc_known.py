"""The Safe CartPole's step as a known part: second derivatives bounded everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.systems._magnitude import leaf
from gpsafe.systems.cartpole import soft_clip, soft_clip_slope


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeCartPoleKnown:
    """The explicit Euler step of `gpsafe.systems.xmpsc.SafeCartPole` on z = (position, speed, θ, ω, u), without its clip of u.

    speed, ω and u enter the accelerations through `soft_clip`, which changes nothing for |speed|, |ω| ≤ speed_limit and
    |u| ≤ 1, and keeps the Hessian bounded everywhere.

    Args:
        cart, pole: masses, kg.
        length: m.
        gravity: m/s².
        friction: N s/m.
        force: N at u = 1.
        dt: s.
        speed_limit: m/s and rad/s, up to where the step is the published one.
    """

    cart: float
    pole: float
    length: float
    gravity: float
    friction: float
    force: float
    dt: float
    speed_limit: float = 10.0

    def __post_init__(self) -> None:
        for parameter in ("cart", "pole", "length", "gravity", "force", "dt", "speed_limit"):
            _require.positive("SafeCartPoleKnown", parameter, getattr(self, parameter))
        _require.nonnegative("SafeCartPoleKnown", "friction", self.friction)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, 4), (*b, 1) → (*b, 4)."""
        position, speed, theta, omega = x.unbind(-1)
        margin = 0.25 * self.speed_limit
        slow, turn = soft_clip(speed, self.speed_limit, margin), soft_clip(omega, self.speed_limit, margin)
        sine, cosine, total = torch.sin(theta), torch.cos(theta), self.cart + self.pole
        pull = self.force * soft_clip(u[..., 0], 1.0, 1.0) - self.friction * slow
        inertia = 4 * total - 3 * self.pole * cosine.square()
        whirl = self.pole * self.length * turn.square() * sine
        faster = (-2 * whirl + 3 * self.pole * self.gravity * sine * cosine + 4 * pull) / inertia
        turning = (-3 * whirl * cosine + 6 * total * self.gravity * sine + 6 * pull * cosine) / (self.length * inertia)
        return torch.stack(
            [
                position + self.dt * speed,
                speed + self.dt * faster,
                theta + self.dt * omega,
                omega + self.dt * turning,
            ],
            dim=-1,
        )

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂p/∂x (*b, 4, 4) and ∂p/∂u (*b, 4, 1), in closed form: a judge asks for them at every stage of every plan."""
        _, speed, theta, omega, push = torch.broadcast_tensors(*x.unbind(-1), u[..., 0])
        margin, m, p = 0.25 * self.speed_limit, self.pole, self.pole * self.length
        turn, total = soft_clip(omega, self.speed_limit, margin), self.cart + self.pole
        sine, cosine = torch.sin(theta), torch.cos(theta)
        pull = self.force * soft_clip(push, 1.0, 1.0) - self.friction * soft_clip(speed, self.speed_limit, margin)
        by_speed = -self.friction * soft_clip_slope(speed, self.speed_limit, margin)
        by_push = self.force * soft_clip_slope(push, 1.0, 1.0)
        inertia, inertia_slope = 4 * total - 3 * m * cosine.square(), 6 * m * cosine * sine
        whirl, whirl_theta = p * turn.square() * sine, p * turn.square() * cosine
        whirl_omega = 2 * p * turn * sine * soft_clip_slope(omega, self.speed_limit, margin)
        double = cosine.square() - sine.square()
        faster = (-2 * whirl + 3 * m * self.gravity * sine * cosine + 4 * pull) / inertia
        faster_theta = (-2 * whirl_theta + 3 * m * self.gravity * double - faster * inertia_slope) / inertia
        heavy = self.length * inertia
        turning = (-3 * whirl * cosine + 6 * total * self.gravity * sine + 6 * pull * cosine) / heavy
        turning_theta = -3 * (whirl_theta * cosine - whirl * sine) + 6 * total * self.gravity * cosine - 6 * pull * sine
        turning_theta = (turning_theta - turning * self.length * inertia_slope) / heavy
        zero, one, dt = torch.zeros_like(theta), torch.ones_like(theta), self.dt
        rows = (
            (one, dt * one, zero, zero, zero),
            (
                zero,
                1.0 + dt * 4 * by_speed / inertia,
                dt * faster_theta,
                -2 * dt * whirl_omega / inertia,
                dt * 4 * by_push / inertia,
            ),
            (zero, zero, one, dt * one, zero),
            (
                zero,
                dt * 6 * by_speed * cosine / heavy,
                dt * turning_theta,
                1.0 - 3 * dt * whirl_omega * cosine / heavy,
                dt * 6 * by_push * cosine / heavy,
            ),
        )
        found = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
        return found[..., :4], found[..., 4:]

    @property
    def hessian_bound(self) -> Tensor:
        """H (4, 5, 5): the product and chain rules on absolute bounds."""
        m, total, g = self.pole, self.cart + self.pole, self.gravity
        position, speed, theta, omega, u = (leaf(i, 5, math.inf) for i in range(5))
        margin = 0.25 * self.speed_limit
        top, bend = self.speed_limit + 0.5 * margin, 1.0 / margin
        slow, turn = speed.compose(top, 1.0, bend), omega.compose(top, 1.0, bend)
        pull = u.compose(1.5, 1.0, 1.0).scale(self.force) + slow.scale(self.friction)
        wave, both = theta.compose(1.0, 1.0, 1.0), theta.compose(0.5, 1.0, 2.0)  # sin θ or cos θ, ½ sin 2θ
        least = 4 * total - 3 * m
        inertia = theta.compose(4 * total, 3 * m, 6 * m)  # 4m_t − 3m cos²θ
        inverse = inertia.compose(1 / least, 1 / least**2, 2 / least**3)
        square = (turn * turn).scale(m * self.length)
        faster = ((square * wave).scale(2.0) + both.scale(3 * m * g) + pull.scale(4.0)) * inverse
        spin = (square * both).scale(3.0) + wave.scale(6 * total * g) + (pull * wave).scale(6.0)
        turning = (spin * inverse).scale(1 / self.length)
        rows = (
            position + speed.scale(self.dt),
            speed + faster.scale(self.dt),
            theta + omega.scale(self.dt),
            omega + turning.scale(self.dt),
        )
        return torch.stack([row.hess for row in rows]) * (1.0 + 1e-12)  # more than their rounding
