"""The mechanics of the Two-Link Arm, and its step as a known part: second derivatives bounded everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.systems._magnitude import Magnitude, leaf
from gpsafe.systems.cartpole import soft_clip, soft_clips


@short
@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Two links in a plane: M(θ₂) ω′ = u − C(θ₂, ω) − B ω, with

        M = [a₁ + 2a₂ cos θ₂, a₃ + a₂ cos θ₂; a₃ + a₂ cos θ₂, a₃],   C = a₂ sin θ₂ (−ω₂(2ω₁ + ω₂), ω₁²),
        a₁ = I₁ + I₂ + m₂ l₁²,   a₂ = m₂ l₁ s₂,   a₃ = I₂.

    Moments of inertia I are about the joints (xmpsc.md §6.3; the equations do not contain m₁ and s₁).
    """

    masses: tuple[float, float]
    lengths: tuple[float, float]
    centers: tuple[float, float]
    inertias: tuple[float, float]
    friction: Tensor

    def __post_init__(self) -> None:
        a1, a2, a3 = self.parameters
        _require.positive("Links", "least determinant of the mass matrix", a1 * a3 - a3**2 - a2**2)

    @property
    def parameters(self) -> tuple[float, float, float]:
        """(a₁, a₂, a₃)."""
        first, second = self.inertias
        lever = self.masses[1] * self.lengths[0]
        return first + second + lever * self.lengths[0], lever * self.centers[1], second

    def mass(self, bend: Tensor) -> Tensor:
        """M(θ₂), (*b,) → (*b, 2, 2)."""
        a1, a2, a3 = self.parameters
        c = a2 * torch.cos(bend)
        rows = torch.stack([a1 + 2 * c, a3 + c, a3 + c, torch.full_like(c, a3)], dim=-1)
        return rows.unflatten(-1, (2, 2))

    def accelerations(self, bend: Tensor, omega: Tensor, u: Tensor) -> Tensor:
        """ω′, (*b, 1), (*b, 2), (*b, 2) → (*b, 2), by the inverse of M in closed form."""
        a1, a2, a3 = self.parameters
        sine, cosine = a2 * torch.sin(bend[..., 0]), a2 * torch.cos(bend[..., 0])
        first, second = omega.unbind(-1)
        whirl = torch.stack([-second * (2 * first + second), first.square()], dim=-1) * sine.unsqueeze(-1)
        left, right = (u - whirl - omega @ self.friction.T.to(omega.device)).unbind(-1)
        least = a1 * a3 - a3**2 - cosine.square()
        across = a3 + cosine
        faster = torch.stack([a3 * left - across * right, (a1 + 2 * cosine) * right - across * left], dim=-1)
        return faster / least.unsqueeze(-1)

    def linearise(self, bend: Tensor, omega: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """ω′ (*b, 2) and ∂ω′/∂(θ₂, ω, u) (*b, 2, 5), arguments as in `accelerations`: M⁻¹ (∂(u − C − Bω) − ∂M ω′)."""
        a1, a2, a3 = self.parameters
        sine, cosine, friction = a2 * torch.sin(bend), a2 * torch.cos(bend), self.friction.to(omega.device)
        across = -(a3 + cosine)
        inverse = torch.cat([torch.full_like(across, a3), across, across, a1 + 2 * cosine], dim=-1).unflatten(
            -1, (2, 2)
        )
        inverse = inverse / (a1 * a3 - a3**2 - cosine.square()).unsqueeze(-1)
        first, second = omega[..., :1], omega[..., 1:]
        both = first + second
        whirl = torch.cat([-second * (first + both), first.square()], dim=-1)  # C without its sin θ₂
        faster = (inverse @ (u - sine * whirl - omega @ friction.mT).unsqueeze(-1)).squeeze(-1)
        # −∂M/∂θ₂ = sin θ₂ [2, 1; 1, 0]
        heavier = torch.cat([2 * faster[..., :1] + faster[..., 1:], faster[..., :1]], dim=-1)
        by_bend = sine * heavier - cosine * whirl
        by_omega = torch.cat([second, both, -first, torch.zeros_like(first)], dim=-1).unflatten(-1, (2, 2))
        by_omega = (2 * sine).unsqueeze(-1) * by_omega - friction
        push = torch.eye(2, dtype=omega.dtype, device=omega.device).expand(by_omega.shape)
        return faster, inverse @ torch.cat([by_bend.unsqueeze(-1), by_omega, push], dim=-1)

    def end(self, theta: Tensor) -> Tensor:
        """End-effector l₁(cos θ₁, sin θ₁) + l₂(cos, sin)(θ₁ + θ₂), (*b, 2) → (*b, 2)."""
        first, both = theta[..., 0], theta.sum(-1)
        a, b = self.lengths
        return torch.stack([a * torch.cos(first) + b * torch.cos(both), a * torch.sin(first) + b * torch.sin(both)], -1)


@short
@dataclass(frozen=True, slots=True, eq=False)
class TwoLinkArmKnown:
    """The explicit Euler step of `gpsafe.systems.arm.TwoLinkArm` on its state and u, z ∈ ℝ¹⁰.

    ω and u enter the accelerations through `soft_clip`, which changes nothing for |ω_i| ≤ speed_limit and |u_i| ≤ 1, and keeps
    the Hessian bounded everywhere.

    Args:
        links: mechanics.
        dt: s.
        speed_limit: rad/s, up to where the step is that of the links.
    """

    links: Links
    dt: float
    speed_limit: float = 20.0

    def __post_init__(self) -> None:
        for parameter in ("dt", "speed_limit"):
            _require.positive("TwoLinkArmKnown", parameter, getattr(self, parameter))

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, 8), (*b, 2) → (*b, 8)."""
        theta, omega, goal = 10 * x[..., 4:6], 10 * x[..., 6:8], x[..., :2] - x[..., 2:4]
        slow = soft_clip(omega, self.speed_limit, 0.25 * self.speed_limit)
        faster = self.links.accelerations(theta[..., 1:], slow, soft_clip(u, 1.0, 1.0))
        after = theta + self.dt * omega
        end = self.links.end(after)
        return torch.cat([end, end - goal, after / 10, (omega + self.dt * faster) / 10], dim=-1)

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂p/∂x (*b, 8, 8) and ∂p/∂u (*b, 8, 2), in closed form."""
        return self.linearise(x, u)[1:]

    def linearise(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p, ∂p/∂x and ∂p/∂u, in closed form: a judge asks for them at every stage of every plan."""
        batch, dt, limits = _require.batch(x, u), self.dt, 2 * [self.speed_limit] + 2 * [1.0]
        x, u = x.expand(*batch, 8), u.expand(*batch, 2)
        theta, omega, eye = 10 * x[..., 4:6], 10 * x[..., 6:8], torch.eye(2, dtype=x.dtype, device=x.device)
        soft, slopes = soft_clips(torch.cat([omega, u], dim=-1), limits, 2 * [0.25 * self.speed_limit] + 2 * [1.0])
        faster, by = self.links.linearise(theta[..., 1:], soft[..., :2], soft[..., 2:])
        after, reach = theta + dt * omega, self.links.lengths[1]
        end, both = self.links.end(after), after.sum(-1, keepdim=True)
        value = torch.cat([end, end - (x[..., :2] - x[..., 2:4]), after / 10, (omega + dt * faster) / 10], dim=-1)
        wave = reach * torch.cat([torch.sin(both), torch.cos(both)], dim=-1)
        turned = torch.cat([-end[..., 1:], -wave[..., :1], end[..., :1], wave[..., 1:]], dim=-1).unflatten(-1, (2, 2))
        turned = torch.cat([10 * turned, 10 * dt * turned], dim=-1)
        found = x.new_zeros(*batch, 8, 10)
        found[..., 2:4, :4] = torch.cat([-eye, eye], dim=-1)
        found[..., :2, 4:8] = found[..., 2:4, 4:8] = turned
        found[..., 4:6, 4:8] = torch.cat([eye, dt * eye], dim=-1)
        found[..., 6:, 5] = dt * by[..., 0]
        found[..., 6:, 6:] = (dt * by[..., 1:]) * (slopes * x.new_tensor([1.0, 1.0, 0.1, 0.1])).unsqueeze(-2)
        found[..., 6:, 6:8] += eye
        return value, found[..., :8], found[..., 8:]

    @property
    def hessian_bound(self) -> Tensor:
        """H (8, 10, 10): the product and chain rules on absolute bounds."""
        a1, a2, a3 = self.links.parameters
        (a, b), friction = self.links.lengths, self.links.friction.abs().tolist()
        theta = [leaf(i, 10, math.inf, 10.0) for i in (4, 5)]
        omega = [leaf(i, 10, math.inf, 10.0) for i in (6, 7)]
        margin = 0.25 * self.speed_limit
        first, second = (w.compose(self.speed_limit + 0.5 * margin, 1.0, 1.0 / margin) for w in omega)
        torque = [leaf(i, 10, 1.5, 1.0, 1.0) for i in (8, 9)]
        wave = theta[1].compose(a2, a2, a2)  # a₂ sin θ₂ or a₂ cos θ₂
        whirl = (second * (first.scale(2.0) + second) * wave, first * first * wave)
        drag = [first.scale(row[0]) + second.scale(row[1]) for row in friction]
        left, right = (t + c + d for t, c, d in zip(torque, whirl, drag, strict=True))
        least = a1 * a3 - a3**2 - a2**2  # of a₁a₃ − a₃² − a₂² cos² θ₂
        inverse = theta[1].compose(a1 * a3 - a3**2, a2**2, 2 * a2**2).compose(1 / least, 1 / least**2, 2 / least**3)
        across, corner = _plus(wave, a3), _plus(wave.scale(2.0), a1)
        faster = ((left.scale(a3) + across * right) * inverse, (corner * right + across * left) * inverse)
        after = [t + w.scale(self.dt) for t, w in zip(theta, omega, strict=True)]
        end = after[0].compose(a, a, a) + (after[0] + after[1]).compose(b, b, b)
        turning = [f.scale(self.dt / 10) for f in faster]
        flat = torch.zeros(10, 10, dtype=torch.float64)
        rows = [end.hess] * 4 + [flat, flat] + [t.hess for t in turning]
        return torch.stack(rows) * (1.0 + 1e-12)  # more than their rounding


def _plus(part: Magnitude, constant: float) -> Magnitude:
    return Magnitude(part.value + constant, part.grad, part.hess)
