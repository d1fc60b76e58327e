"""Naive oracles: slow, obvious, independent of the library's own shortcuts."""

import math

import mpmath
import torch
from torch import Tensor

# ----------------------------------------------------------------- kernels and Gaussian processes


def profile(nu: float, distance_sq: "mpmath.mpf") -> "mpmath.mpf":
    """κ of the RBF (nu = inf) or Matérn kernel at the squared scaled distance, in mpmath's current precision."""
    if math.isinf(nu):
        return mpmath.exp(-distance_sq / 2)
    r = mpmath.sqrt(2 * mpmath.mpf(nu) * distance_sq)
    return {0.5: mpmath.mpf(1), 1.5: 1 + r, 2.5: 1 + r + r * r / 3}[nu] * mpmath.exp(-r)


def gram(kernel, x: Tensor, z: Tensor) -> Tensor:
    """k(x_i, z_j) one pair at a time, through gpytorch."""
    rows = [[kernel(a.reshape(1, -1), b.reshape(1, -1)).to_dense().squeeze() for b in z] for a in x]
    return torch.stack([torch.stack(row) for row in rows])


def posterior(kernel, regularizer: float, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (m,) and joint covariance (m, m) of one output, from the textbook formulas with an explicit inverse."""
    inverse = torch.linalg.inv(gram(kernel, x, x) + regularizer * torch.eye(len(x), dtype=x.dtype))
    cross = gram(kernel, z, x)
    return cross @ inverse @ y, gram(kernel, z, z) - cross @ inverse @ cross.mT
