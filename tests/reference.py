"""Naive oracles: slow, obvious, independent of the library's own shortcuts."""

import math

import flint
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


def exact_posterior(
    nu: float, lengthscale: list[float], variance: float, regularizer: float, x: Tensor, y: Tensor, z: Tensor
) -> tuple[list["flint.arb"], list["flint.arb"]]:
    """Posterior variances and means at z (m, d) from data x (n, d), y (n,), in ball arithmetic of flint's precision."""
    gram, cross = (_exact_gram(nu, lengthscale, variance, x, other) for other in (x, z))
    n, m = cross.nrows(), cross.ncols()
    for i in range(n):
        gram[i, i] += regularizer
    solved = gram.solve(cross)
    dots = [sum(cross[i, j] * solved[i, j] for i in range(n)) for j in range(m)]
    targets = [flint.arb(v) for v in y.tolist()]
    means = [sum(solved[i, j] * targets[i] for i in range(n)) for j in range(m)]
    return [flint.arb(variance) - dot for dot in dots], means


def exact_info_gain(
    nu: float, lengthscale: list[float], variance: float, regularizer: float, x: Tensor, scale: Tensor
) -> "flint.arb":
    """½ log det(I + W⁻¹KW⁻¹/λ) of data x (n, d) with noise scales W = diag(scale), scale (n,), in ball arithmetic."""
    weights = [flint.arb(regularizer) * flint.arb(w) ** 2 for w in scale.tolist()]
    gram = _exact_gram(nu, lengthscale, variance, x, x)
    for i, weight in enumerate(weights):
        gram[i, i] += weight
    return (gram.det().log() - sum(weight.log() for weight in weights)) / 2


def _exact_gram(nu: float, lengthscale: list[float], variance: float, x: Tensor, z: Tensor) -> "flint.arb_mat":
    scales = [flint.arb(v) for v in lengthscale]
    rows, columns = ([[flint.arb(v) / s for v, s in zip(p, scales, strict=True)] for p in t.tolist()] for t in (x, z))

    def entry(a: list["flint.arb"], b: list["flint.arb"]) -> "flint.arb":
        gaps = [p - q for p, q in zip(a, b, strict=True)]
        square = abs(sum(gap * gap for gap in gaps))
        if math.isinf(nu):
            return flint.arb(variance) * (-square / 2).exp()
        r = (2 * flint.arb(nu) * square).sqrt() if square > 0 else flint.arb(0)
        return flint.arb(variance) * {0.5: flint.arb(1), 1.5: 1 + r, 2.5: 1 + r + r * r / 3}[nu] * (-r).exp()

    return flint.arb_mat([[entry(a, b) for b in columns] for a in rows])


def rbf_jet(inputs: Tensor, z: Tensor, lengthscale: Tensor, regularizer: float) -> list[list["flint.arb"]]:
    """Posterior covariance of (f(z), ∇f(z)) for the RBF kernel of variance 1, z (d,), in flint's current precision."""
    n, d = inputs.shape
    scales = lengthscale.expand(d).tolist()
    gram, cross = (_exact_gram(math.inf, scales, 1.0, inputs, other) for other in (inputs, z.reshape(1, -1)))
    for i in range(n):
        gram[i, i] += regularizer
    slopes = [[(flint.arb(p) - flint.arb(q)) / flint.arb(s) ** 2 for p, q, s in zip(row, z.tolist(), scales, strict=True)]
              for row in inputs.tolist()]  # fmt: skip
    sections = flint.arb_mat([[cross[i, 0], *(cross[i, 0] * slope for slope in slopes[i])] for i in range(n)])
    explained = sections.transpose() * gram.solve(sections)
    prior = [flint.arb(1), *(1 / flint.arb(s) ** 2 for s in scales)]
    return [[(prior[i] if i == j else 0) - explained[i, j] for j in range(d + 1)] for i in range(d + 1)]
