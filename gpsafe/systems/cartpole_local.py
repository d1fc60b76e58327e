"""The cart-pole's known part with second derivatives bounded over boxes: near hanging they are small.

The global bound of :class:`CartPoleKnown` must hold at every angle and at the speed limit; around hanging at rest
∂²ω⁺/∂θ² is about dt·(M + m)g sin θ/(lM), some twenty times less. The structure of the plant is used twice: position and
v enter linearly (their rows and columns of the Hessian are zero), and the rest is a quotient whose denominator
M + m sin²θ never falls below M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.systems.cartpole import CartPoleKnown, soft_clip

_UP = 1 + 1e-12  # more than the rounding of a few dozen sums and products


@dataclass(frozen=True, slots=True, eq=False)
class _Local:
    """|f| ≤ value (*b), |∂_j f| ≤ grad (*b, n), |∂_jk f| ≤ hess (*b, n, n) over a batch of boxes."""

    value: Tensor
    grad: Tensor
    hess: Tensor

    def __add__(self, other: _Local) -> _Local:
        return _Local(self.value + other.value, self.grad + other.grad, self.hess + other.hess)

    def __mul__(self, other: _Local) -> _Local:
        cross = self.grad.unsqueeze(-1) * other.grad.unsqueeze(-2)
        hess = self.value[..., None, None] * other.hess + other.value[..., None, None] * self.hess
        grad = self.value.unsqueeze(-1) * other.grad + other.value.unsqueeze(-1) * self.grad
        return _Local(self.value * other.value, grad, hess + cross + cross.mT)

    def scale(self, factor: float) -> _Local:
        """factor·f."""
        size = abs(factor)
        return _Local(size * self.value, size * self.grad, size * self.hess)

    def compose(self, value: Tensor, first: Tensor, second: Tensor) -> _Local:
        """φ(f) with |φ| ≤ value, |φ′| ≤ first, |φ″| ≤ second on the range of f."""
        outer = self.grad.unsqueeze(-1) * self.grad.unsqueeze(-2)
        hess = first[..., None, None] * self.hess + second[..., None, None] * outer
        return _Local(value, first.unsqueeze(-1) * self.grad, hess)


def sine_sup(lower: Tensor, upper: Tensor) -> Tensor:
    """sup |sin| over [lower, upper], (*b,): 1 if π/2 + kπ is inside, else at an end. Rounded up."""
    crest = torch.ceil((lower - 1e-9) / math.pi - 0.5) * math.pi + 0.5 * math.pi
    ends = torch.maximum(lower.sin().abs(), upper.sin().abs()) + 1e-12
    return torch.where(crest <= upper + 1e-9, torch.ones_like(ends), ends).clamp_max(1.0)


class _Boxes:
    """Functions of one coordinate over boxes [lower, upper], (*b, n)."""

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self.lower, self.upper, self.top = lower, upper, torch.maximum(lower.abs(), upper.abs())
        self.one = torch.ones_like(self.top[..., 0])
        self.flat = torch.zeros(*self.top.shape, self.top.shape[-1], dtype=self.top.dtype, device=self.top.device)
        self._unit = torch.eye(self.top.shape[-1], dtype=self.top.dtype, device=self.top.device)

    def leaf(self, axis: int, value: Tensor, first: Tensor, second: Tensor) -> _Local:
        """φ(z_axis) with |φ| ≤ value, |φ′| ≤ first, |φ″| ≤ second, (*b,)."""
        own = _Local(self.top[..., axis], self._unit[axis].expand_as(self.top), self.flat)
        return own.compose(value, first, second)

    def clipped(self, axis: int, limit: float, margin: float) -> _Local:
        """`soft_clip`: its slope is at most 1, and it bends only where the box reaches beyond the limit."""
        size = self.top[..., axis]
        bend = torch.where(size > limit, self.one / margin, torch.zeros_like(self.one))
        return self.leaf(axis, size.clamp_max(limit + 0.5 * margin), self.one, bend)

    def turns(self, axis: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """sup |sin θ|, |cos θ|, |sin 2θ|, |cos 2θ|, (*b,) each."""
        low, high, right = self.lower[..., axis], self.upper[..., axis], 0.5 * math.pi
        single = sine_sup(low, high), sine_sup(low + right, high + right)
        return *single, sine_sup(2 * low, 2 * high), sine_sup(2 * low + right, 2 * high + right)


def _clipped(y: Tensor, limit: float, margin: float) -> tuple[Tensor, Tensor]:
    """`soft_clip` and its derivative."""
    return soft_clip(y, limit, margin), (1.0 - (y.abs() - limit) / margin).clamp(0.0, 1.0)


@short
@dataclass(frozen=True, slots=True, eq=False)
class CartPoleLocal:
    """`known` with `hessian_over` (one substep only). Its values and its global bound are those of `known`.

    Args:
        known: explicit Euler step with action_repeat = 1.
    """

    known: CartPoleKnown

    def __post_init__(self) -> None:
        if self.known.action_repeat != 1:
            raise _require.fail("CartPoleLocal", "action_repeat 1", self.known.action_repeat)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, 4), (*b, 1) → (*b, 4)."""
        return self.known(x, u)

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂p/∂x (*b, 4, 4) and ∂p/∂u (*b, 4, 1), in closed form."""
        k = self.known
        theta, omega = x[..., 1], x[..., 3]
        sine, cosine, inertia = theta.sin(), theta.cos(), k.cart + k.pole * theta.sin().square()
        speed, slope = _clipped(omega, k.speed_limit, 0.25 * k.speed_limit)
        force, gain = (k.force * part for part in _clipped(u[..., 0], 1.0, 1.0))
        pull = k.pole * k.length * speed.square()
        turn = (force + pull * sine) * cosine + (k.cart + k.pole) * k.gravity * sine
        a = (force + pull * sine + k.pole * k.gravity * sine * cosine) / inertia
        bend = 2 * k.pole * sine * cosine / inertia  # (d inertia/dθ)/inertia
        twist = 2 * k.pole * k.length * speed * slope * sine / inertia
        a_theta = (pull * cosine + k.pole * k.gravity * (cosine.square() - sine.square())) / inertia - a * bend
        turn_theta = pull * cosine.square() - (force + pull * sine) * sine + (k.cart + k.pole) * k.gravity * cosine
        alpha_theta = (-turn_theta + turn * bend) / (k.length * inertia)
        one, zero, step = torch.ones_like(theta), torch.zeros_like(theta), torch.full_like(theta, k.dt)
        rows = (
            (one, zero, step, zero, zero),
            (zero, one, zero, step, zero),
            (zero, k.dt * a_theta, one, k.dt * twist, k.dt * gain / inertia),
            (
                zero,
                k.dt * alpha_theta,
                zero,
                one - k.dt * twist * cosine / k.length,
                -k.dt * gain * cosine / (k.length * inertia),
            ),
        )
        full = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
        return full[..., :4], full[..., 4:]

    @property
    def hessian_bound(self) -> Tensor:
        """H (4, 5, 5), everywhere."""
        return self.known.hessian_bound

    def hessian_over(self, lower: Tensor, upper: Tensor) -> Tensor:
        """H (*b, 4, 5, 5) over boxes of z = (x, θ, v, ω, u), (*b, 5) ×2; never above the global bound.

        The formulas of `CartPoleKnown.hessian_bound` with sup |sin θ|, sup |cos θ|, sup |ω| and sup |u| over the box.
        """
        k, boxes = self.known, _Boxes(lower, upper)
        m, length, g = k.pole, k.length, k.gravity
        leaf, one, flat = boxes.leaf, boxes.one, boxes.flat
        sine_top, cosine_top, double_sine, double_cosine = boxes.turns(1)
        push, slow = boxes.clipped(4, 1.0, 1.0).scale(k.force), boxes.clipped(3, k.speed_limit, 0.25 * k.speed_limit)
        sine, cosine = leaf(1, sine_top, cosine_top, sine_top), leaf(1, cosine_top, sine_top, cosine_top)
        both = leaf(1, 0.5 * double_sine, double_cosine, 2 * double_sine)
        least = k.cart  # M + m sin²θ ∈ [M, M + m sup sin²]
        mass = leaf(1, k.cart + m * sine_top.square(), m * double_sine, 2 * m * double_cosine)
        inverse = mass.compose(one / least, one / least**2, 2 * one / least**3)
        square = slow * slow
        a = (push + (square * sine).scale(m * length) + both.scale(m * g)) * inverse
        turn = push * cosine + (square * both).scale(m * length) + sine.scale((k.cart + m) * g)
        alpha = (turn * inverse).scale(1 / length)
        rows = torch.stack([flat, flat, a.scale(k.dt).hess, alpha.scale(k.dt).hess], dim=-3) * _UP
        return torch.minimum(rows, self.hessian_bound.to(rows.device))
