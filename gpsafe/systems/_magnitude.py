"""Suprema of a function and of its first two derivatives, carried through sums, products and compositions.

For f: ℝ^n → ℝ the triple (v, g, H) says |f| ≤ v, |∂_j f| ≤ g_j, |∂_jk f| ≤ H_jk on the domain where the
leaves' bounds hold. The rules are the product and chain rules with every term replaced by its absolute bound,
so the result is a theorem, if not a sharp one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Magnitude:
    """|f| ≤ value, |∂_j f| ≤ grad[j], |∂_jk f| ≤ hess[j, k]; grad (n,), hess (n, n)."""

    value: float
    grad: Tensor
    hess: Tensor

    def __add__(self, other: Magnitude) -> Magnitude:
        return Magnitude(self.value + other.value, self.grad + other.grad, self.hess + other.hess)

    def __mul__(self, other: Magnitude) -> Magnitude:
        cross = torch.outer(self.grad, other.grad)
        hess = self.value * other.hess + other.value * self.hess + (cross + cross.T)
        return Magnitude(self.value * other.value, self.value * other.grad + other.value * self.grad, hess)

    def scale(self, factor: float) -> Magnitude:
        """factor·f."""
        size = abs(factor)
        return Magnitude(size * self.value, size * self.grad, size * self.hess)

    def compose(self, value: float, first: float, second: float) -> Magnitude:
        """φ(f) with |φ| ≤ value, |φ′| ≤ first, |φ″| ≤ second on the range of f."""
        return Magnitude(value, first * self.grad, first * self.hess + second * torch.outer(self.grad, self.grad))


def leaf(index: int, n: int, value: float, first: float = 1.0, second: float = 0.0) -> Magnitude:
    """φ(z_index) with |φ| ≤ value, |φ′| ≤ first, |φ″| ≤ second."""
    grad = torch.zeros(n, dtype=torch.float64)
    hess = torch.zeros(n, n, dtype=torch.float64)
    grad[index], hess[index, index] = first, second
    return Magnitude(value, grad, hess)
