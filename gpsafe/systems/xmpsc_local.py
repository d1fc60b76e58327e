"""The Safe CartPole's known part with second derivatives bounded over boxes: near upright rest they are small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.systems.cartpole_local import _UP, _Boxes
from gpsafe.systems.xmpsc_known import SafeCartPoleKnown


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeCartPoleLocal:
    """`known` with `hessian_over`. Its values and its global bound are those of `known`."""

    known: SafeCartPoleKnown

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, 4), (*b, 1) → (*b, 4)."""
        return self.known(x, u)

    @property
    def hessian_bound(self) -> Tensor:
        """H (4, 5, 5), everywhere."""
        return self.known.hessian_bound

    def hessian_over(self, lower: Tensor, upper: Tensor) -> Tensor:
        """H (*b, 4, 5, 5) over boxes of z = (position, speed, θ, ω, u), (*b, 5) ×2; never above the global bound.

        The formulas of `SafeCartPoleKnown.hessian_bound` with the suprema of sines, cosines, speeds and u over the box.
        """
        k, boxes = self.known, _Boxes(lower, upper)
        m, total, g = k.pole, k.cart + k.pole, k.gravity
        leaf, clipped, one, flat = boxes.leaf, boxes.clipped, boxes.one, boxes.flat
        sine_top, cosine_top, double_sine, double_cosine = boxes.turns(2)
        sine, cosine = leaf(2, sine_top, cosine_top, sine_top), leaf(2, cosine_top, sine_top, cosine_top)
        both = leaf(2, 0.5 * double_sine, double_cosine, 2 * double_sine)  # ½ sin 2θ
        margin = 0.25 * k.speed_limit
        slow, turn = clipped(1, k.speed_limit, margin), clipped(3, k.speed_limit, margin)
        pull = clipped(4, 1.0, 1.0).scale(k.force) + slow.scale(k.friction)
        least = 4 * total - 3 * m
        inertia = leaf(2, 4 * total * one, 3 * m * double_sine, 6 * m * double_cosine)  # 4m_t − 3m cos²θ
        inverse = inertia.compose(one / least, one / least**2, 2 * one / least**3)
        square = (turn * turn).scale(m * k.length)
        faster = ((square * sine).scale(2.0) + both.scale(3 * m * g) + pull.scale(4.0)) * inverse
        spin = (square * both).scale(3.0) + sine.scale(6 * total * g) + (pull * cosine).scale(6.0)
        turning = (spin * inverse).scale(1 / k.length)
        rows = torch.stack([flat, faster.scale(k.dt).hess, flat, turning.scale(k.dt).hess], dim=-3) * _UP
        return torch.minimum(rows, self.hessian_bound.to(rows.device))
