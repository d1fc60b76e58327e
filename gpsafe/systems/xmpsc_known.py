"""The Safe CartPole's step as a known part: second derivatives bounded everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.systems._magnitude import leaf
from gpsafe.systems.cartpole import soft_clip, soft_clips


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
        """∂p/∂x (*b, 4, 4) and ∂p/∂u (*b, 4, 1), in closed form."""
        return self.linearise(x, u)[1:]

    def linearise(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p, ∂p/∂x and ∂p/∂u, in closed form: a judge asks for them at every stage of every plan.

        The accelerations are N/I with N₁ = q + 3mg sin θ cos θ, N₂ = r q + 6m_t g/L sin θ, q = 4·pull − 2mLω² sin θ,
        r = 3/(2L) cos θ and I = 4m_t − 3m cos² θ; speed, ω and u are in q alone.
        """
        batch, m, heavy, dt = (
            _require.batch(x, u),
            self.pole,
            6 * (self.cart + self.pole) * self.gravity / self.length,
            self.dt,
        )
        x, u = x.expand(*batch, 4), u.expand(*batch, 1)
        limits, margins = (
            [self.speed_limit, self.speed_limit, 1.0],
            [0.25 * self.speed_limit, 0.25 * self.speed_limit, 1.0],
        )
        soft, slopes = soft_clips(torch.cat([x[..., 1::2], u], dim=-1), limits, margins)
        slow, turn, push = soft.unbind(-1)
        sine, cosine = torch.sin(x[..., 2]), torch.cos(x[..., 2])
        square, lever, weight = cosine.square(), 2 * m * self.length * turn, 3 * m * self.gravity
        q, r = 4 * (self.force * push - self.friction * slow) - lever * turn * sine, (1.5 / self.length) * cosine
        inertia = 4 * (self.cart + m) - 3 * m * square
        faster = torch.stack([q + weight * sine * cosine, r * q + heavy * sine], dim=-1) / inertia.unsqueeze(-1)
        after = x + dt * torch.stack([x[..., 1], faster[..., 0], x[..., 3], faster[..., 1]], dim=-1)
        # Rows of N's derivative: by θ, then by speed, ω and u, which the second row has r times.
        by_theta = -lever * turn * cosine
        tilted = torch.stack(
            [by_theta + weight * (2 * square - 1), r * by_theta - (1.5 / self.length) * sine * q + heavy * cosine],
            dim=-1,
        )
        tilted = tilted - faster * (6 * m * cosine * sine).unsqueeze(-1)
        first = torch.stack(
            [torch.full_like(q, -4 * self.friction), -2 * lever * sine, torch.full_like(q, 4 * self.force)], dim=-1
        )
        first = slopes * first
        others = torch.stack([first, r.unsqueeze(-1) * first], dim=-2)
        rates = torch.cat([others[..., :1], tilted.unsqueeze(-1), others[..., 1:]], dim=-1) / inertia[..., None, None]
        found = torch.eye(4, 5, dtype=x.dtype, device=x.device).repeat(*batch, 1, 1)
        found[..., 0, 1] = found[..., 2, 3] = dt
        found[..., 1::2, 1:] += dt * rates
        return after, found[..., :4], found[..., 4:]

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
