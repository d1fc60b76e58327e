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


# ------------------------------------------------------------------------------- robust costs, 1-D
def robust_cost_1d(
    interval, policy, cost, *, start: float, horizon: int, noise_std: float, low: float, high: float, cells: int = 401
) -> float:
    """sup over f_t with l ≤ f_t ≤ h at every step of E Σ_{t<T} c(x_t), by a dense grid and naive loops.

    `interval(x, u)` gives the range of the next mean, `policy(x)` the input, `cost(x)` c. V is kept at grid points; the
    expectation uses the probability of each cell, the supremum every grid point of the range and its ends. Approximate
    (O(cell width)), for tests with slack only; beyond the grid the value is that of its ends.
    """
    import math

    width = (high - low) / (cells - 1)
    grid = [low + i * width for i in range(cells)]
    means = torch.linspace(low, high, 2 * cells - 1, dtype=torch.float64)
    edges = torch.tensor([g - 0.5 * width for g in grid] + [grid[-1] + 0.5 * width], dtype=torch.float64)
    weights = torch.special.ndtr((edges[1:] - means[:, None]) / noise_std) - torch.special.ndtr(
        (edges[:-1] - means[:, None]) / noise_std
    )

    def choose(x: float, averaged: Tensor) -> float:
        first, last = interval(x, policy(x))
        a = min(max(math.floor((first - low) / (0.5 * width)), 0), len(means) - 1)
        b = min(max(math.ceil((last - low) / (0.5 * width)), 0), len(means) - 1)
        return float(averaged[min(a, b) : max(a, b) + 1].max())

    value = torch.zeros(cells, dtype=torch.float64)
    for t in range(horizon - 1, -1, -1):
        outside_low = torch.special.ndtr((edges[0] - means) / noise_std)
        outside_high = 1.0 - torch.special.ndtr((edges[-1] - means) / noise_std)
        averaged = weights @ value + outside_low * value[0] + outside_high * value[-1]
        points = [start] if t == 0 else grid
        value = torch.tensor([cost(x) + choose(x, averaged) for x in points], dtype=torch.float64)
    return float(value[0])


def rbf_jet(
    inputs: torch.Tensor, z: torch.Tensor, lengthscale: torch.Tensor, regularizer: float
) -> list[list["mpmath.mpf"]]:
    """Posterior covariance of (f(z), ∇f(z)) for the RBF kernel of variance 1, in mpmath's current precision."""
    n, d = inputs.shape
    x, c, ell = ([mpmath.mpf(v) for v in part.flatten().tolist()] for part in (inputs, z, lengthscale.expand(d)))
    x = [x[i * d : (i + 1) * d] for i in range(n)]

    def k(a: list["mpmath.mpf"], b: list["mpmath.mpf"]) -> "mpmath.mpf":
        return profile(math.inf, sum(((p - q) / s) ** 2 for p, q, s in zip(a, b, ell, strict=True)))

    gram = mpmath.matrix(n, n)
    for i in range(n):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = k(x[i], x[j]) + (mpmath.mpf(regularizer) if i == j else 0)
    lower, half = mpmath.cholesky(gram), []
    for row in range(n):
        value = k(x[row], c)
        sections = [value, *(-value * (q - p) / s**2 for p, q, s in zip(x[row], c, ell, strict=True))]
        for m, section in enumerate(sections):
            seen = sum(lower[row, j] * half[j][m] for j in range(row))
            sections[m] = (section - seen) / lower[row, row]
        half.append(sections)
    prior = [mpmath.mpf(1), *(1 / s**2 for s in ell)]
    return [
        [(prior[i] if i == j else 0) - sum(row[i] * row[j] for row in half) for j in range(d + 1)] for i in range(d + 1)
    ]
