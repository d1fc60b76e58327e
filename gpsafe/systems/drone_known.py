"""The drone near hover as a known part: second derivatives bounded everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.systems._magnitude import Magnitude, leaf
from gpsafe.systems.cartpole import soft_clip, soft_clips


def upward(sines: Tensor, cosines: Tensor) -> Tensor:
    """R e_z, the body's upright in the world, from sines and cosines of (roll, pitch, yaw), (*b, 3) ×2 → (*b, 3)."""
    (sr, sp, sy), (cr, cp, cy) = sines.unbind(-1), cosines.unbind(-1)
    lean = sp * cr
    return torch.stack([cy * lean + sy * sr, sy * lean - cy * sr, cp * cr], dim=-1)


def upward_slopes(sines: Tensor, cosines: Tensor) -> Tensor:
    """∂(R e_z)/∂(roll, pitch, yaw) of :func:`upward`, (*b, 3, 3)."""
    (sr, sp, sy), (cr, cp, cy) = sines.unbind(-1), cosines.unbind(-1)
    lean, level, sunk = sp * cr, cp * cr, sp * sr
    rows = (sy * cr - cy * sunk, cy * level, cy * sr - sy * lean)
    rows += (-sy * sunk - cy * cr, sy * level, cy * lean + sy * sr)
    return torch.stack([*rows, -cp * sr, -lean, torch.zeros_like(lean)], dim=-1).unflatten(-1, (3, 3))


@short
@dataclass(frozen=True, slots=True, eq=False)
class DroneKnown:
    """A step of a body that a rate controller turns, on x = (position, roll pitch yaw, world velocity, body rates) and u ∈ ℝ⁴.

    With T = thrust·(1 + u₀), and set-points s = rate·(u₁, u₂, u₃) for the body rates ω,

        position⁺ = position + dt·velocity,            velocity⁺ = velocity + dt·(R e_z T/m − g e_z),
        ω⁺ = s + E (ω − s),  E = exp(−lags·dt),          angles⁺ = angles + dt·s + (1 − E)/lags·(ω − s),

    the last two exact for ω′ = lags·(s − ω) and angles′ = ω. u₀ enters T through `soft_clip`, which changes nothing for
    |u₀| ≤ 1 and keeps the Hessian bounded; the other rows but those of the velocity are affine.

    Args:
        mass: kg.
        thrust: of all rotors at u₀ = 0, N.
        lags: 1/s, (3,).
        rate: rad/s at u = 1.
        gravity: m/s².
        dt: s.
    """

    mass: float
    thrust: float
    lags: Tensor
    rate: float
    gravity: float
    dt: float

    def __post_init__(self) -> None:
        for parameter in ("mass", "thrust", "rate", "gravity", "dt"):
            _require.positive("DroneKnown", parameter, getattr(self, parameter))
        lags = _require.positive("DroneKnown", "lags", _require.real("DroneKnown", "lags", self.lags))
        object.__setattr__(self, "lags", _require.shape("DroneKnown", "lags", lags, (3,)))

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, 12), (*b, 4) → (*b, 12)."""
        place, angles, speed, body = x[..., :3], x[..., 3:6], x[..., 6:9], x[..., 9:]
        lift = upward(torch.sin(angles), torch.cos(angles)) * (
            self.thrust / self.mass * (1.0 + soft_clip(u[..., :1], 1.0, 1.0))
        )
        down = torch.tensor([0.0, 0.0, -self.gravity], dtype=x.dtype, device=x.device)
        lags, wanted = self.lags.to(x.device), self.rate * u[..., 1:]
        left = torch.exp(-lags * self.dt)
        gap = body - wanted
        turned = angles + self.dt * wanted + (1.0 - left) / lags * gap
        return torch.cat(
            [place + self.dt * speed, turned, speed + self.dt * (lift + down), wanted + left * gap], dim=-1
        )

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂p/∂x (*b, 12, 12) and ∂p/∂u (*b, 12, 4), in closed form."""
        return self.linearise(x, u)[1:]

    def linearise(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p, ∂p/∂x and ∂p/∂u, in closed form: a judge asks for them at every stage of every plan.

        p is a linear map of (x, u) but for the lift in the rows of the velocity.
        """
        batch, dt, force = _require.batch(x, u), self.dt, self.dt * self.thrust / self.mass
        x, u = x.expand(*batch, 12), u.expand(*batch, 4)
        left = torch.exp(-self.lags.to(x.device) * dt)
        lag = (1.0 - left) / self.lags.to(x.device)
        plain = torch.eye(12, 16, dtype=x.dtype, device=x.device)
        plain[:3, 6:9].fill_diagonal_(dt)
        plain[3:6, 9:12], plain[9:, 9:12] = lag.diag(), left.diag()
        plain[3:6, 13:], plain[9:, 13:] = self.rate * (dt - lag).diag(), self.rate * (1.0 - left).diag()
        soft, slope = soft_clips(u[..., :1], [1.0], [1.0])
        sines, cosines = torch.sin(x[..., 3:6]), torch.cos(x[..., 3:6])
        up, push = upward(sines, cosines), force * (1.0 + soft)
        after = torch.cat([x, u], dim=-1) @ plain.mT
        after[..., 6:9] += push * up
        after[..., 8] -= dt * self.gravity
        found = plain.repeat(*batch, 1, 1)
        found[..., 6:9, 3:6] = push.unsqueeze(-1) * upward_slopes(sines, cosines)
        found[..., 6:9, 12] = force * slope * up
        return after, found[..., :12], found[..., 12:]

    @property
    def hessian_bound(self) -> Tensor:
        """H (12, 16, 16): the product rule on absolute bounds."""
        roll, pitch, yaw = (leaf(i, 16, 1.0, 1.0, 1.0) for i in (3, 4, 5))  # sines or cosines
        push = leaf(12, 16, 1.5, 1.0, 1.0)
        push = Magnitude(1.0 + push.value, push.grad, push.hess).scale(self.dt * self.thrust / self.mass)
        across = (yaw * pitch * roll + yaw * roll) * push
        flat = torch.zeros(16, 16, dtype=torch.float64)
        rows = 6 * [flat] + [across.hess, across.hess, (pitch * roll * push).hess] + 3 * [flat]
        return torch.stack(rows) * (1.0 + 1e-12)  # more than their rounding
