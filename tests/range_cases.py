"""A learned output whose margins of rounding are large enough to be seen, cells around its data, and naive kernels."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from gpsafe.confidence._cells import Cells
from gpsafe.confidence._output import Local, Output
from gpsafe.confidence._taylor import multi_indices
from gpsafe.linalg import gamma
from gpsafe.models import GP
from gpsafe.rkhs import kernels

LOUD = 2.0**-10
KINDS = ((math.inf, 1), (math.inf, 2), (2.5, 2), (1.5, 1), (0.5, 2))
KAPPA = {
    math.inf: lambda r: np.exp(-r * r / 2), 0.5: lambda r: np.exp(-r), 1.5: lambda r: (1 + 3**0.5 * r) * np.exp(-(3**0.5) * r),
    2.5: lambda r: (1 + 5**0.5 * r + 5 / 3 * r * r) * np.exp(-(5**0.5) * r),
}  # fmt: skip


def same(found, expected, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0)


def learned(nu: float, d: int, n: int = 5, offset: float = 0.0) -> Output:
    """Variance 1.7, λ 0.02, an error of entries of 1e-4."""
    scale = [0.6, 0.9][:d]
    kernel = kernels.rbf(scale, 1.7) if math.isinf(nu) else kernels.matern(nu, scale, 1.7)
    g = torch.Generator().manual_seed(n + d)
    x, y = (torch.rand(n, k, dtype=torch.float64, generator=g) + offset for k in (d, 1))
    model = GP.create(kernel, 0.02, nx=d, nu=0, noise_std=0.1, outputs=(0,)).condition_on(x, y - 0.4)
    return loudened(Output.of(model, 0))


def loudened(output: Output) -> Output:
    """With an error of kernel entries of 1e-4, 1e-5 between data."""
    unit = torch.tensor(1e-4, dtype=torch.float64)
    return replace(output, rounding=replace(output.rounding, entry=unit, gram=0.1 * unit))


def cells(d: int) -> tuple[np.ndarray, np.ndarray]:
    """A point, tiny, small, flat, medium, just below and above one length-scale to the corner, wide, huge, ever farther."""
    center = np.array([[0.3, 0.4], [0.5, 0.2], [0.7, 0.9], [0.1, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.1], [1.5, -0.4],
                       [0.5, 0.5], [2.8, 2.0], [3.1, 3.1], [4.5, 3.0], [60.0, -70.0]])[:, :d]  # fmt: skip
    size = np.array(
        [0.0, 1e-3, 0.05, 0.2, 0.3, 0.99 / math.sqrt(d), 1.01 / math.sqrt(d), 1.3, 40.0, 1.1, 1.1, 1.1, 1.1]
    )
    radius = size[:, None] * np.array([0.6, 0.9])[:d]
    radius[3, -1] = 0.0
    return center - radius, center + radius


def inverse(output: Output) -> np.ndarray:
    """(K + λ)⁻¹ from its definition."""
    gram = kernel(output, output.points)
    return np.linalg.inv(gram + np.eye(len(gram)) / output.far)


def kernel(output: Output, z: np.ndarray) -> np.ndarray:
    gap = (z[:, None] - output.points) * output.inverse
    return output.form.variance * KAPPA[output.form.nu](np.sqrt((gap * gap).sum(-1)))


def margin(output: Output, variance, prior) -> np.ndarray:
    """Four times the margin of a posterior variance, from the text of `gpsafe.confidence.rounding`."""
    own, n = output.rounding, len(output.points)
    lam, trace, entry = float(own.regularizer), float(own.trace), float(own.entry)
    eta = float(own.gram) + 1.1 * gamma(n + 1)
    first = (1e-12 + 8 * 2.0**-52 * math.sqrt(n * trace / lam) + gamma(n + 2)) * prior
    t = np.sqrt(2 * trace / lam * (variance + first)) + 4 * entry * trace / lam * np.sqrt(prior)
    return 4.0 * np.where(eta * trace <= lam / 2, first + 2 * entry * np.sqrt(prior) * t + eta * t * t, prior)


def local_of(output: Output, lower: np.ndarray, upper: np.ndarray) -> tuple[Local, list[tuple[int, ...]]]:
    return Local.of(output, lower, upper), list(multi_indices(output.dim, output.profile.order))


@dataclass(frozen=True)
class Cubics:
    """g₀ and g₁ = Σ_i a_i z_i³ + b_i z_i² + e_i z_i (+ 0.01 for g₁), enclosed by slopes.

    Values of g₀ are known to ± `noise`, those of g₁ to twice as much.
    """

    cubic: np.ndarray
    square: np.ndarray
    linear: np.ndarray
    noise: float = 0.0
    unknown: float = -np.inf
    """where z_0 is below it no value is known"""

    @property
    def inverse(self) -> np.ndarray:
        return 1.0 / np.arange(1.0, len(self.linear) + 1)

    def value(self, z: np.ndarray) -> np.ndarray:
        return (((self.cubic * z + self.square) * z + self.linear) * z).sum(-1)

    def over(self, lower: np.ndarray, upper: np.ndarray) -> Cells:
        center, radius = 0.5 * lower + 0.5 * upper, 0.5 * (upper - lower)
        slope = (3 * self.cubic * center + 2 * self.square) * center + self.linear
        room = radius * (np.abs(6 * self.cubic * center + 2 * self.square) + 3 * np.abs(self.cubic) * radius)
        rise = (slope > room).astype(float) - (slope < -room)
        value, wide = self.value(center), (radius * (np.abs(slope) + room)).sum(-1) + 2 * self.noise
        spot = center + 0.25 * radius * np.sign(slope)
        spots, rises, near = np.stack([center, spot], axis=1), np.stack([rise, rise], axis=1), wide - 2 * self.noise
        hoped = np.stack([value - near, value + 0.01 + near], axis=1)
        return Cells(value - wide, value + 0.01 + wide, spots, rises, hoped)

    def at(self, points: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = self.value(points) + 0.01 * side
        known = points[:, 0] >= self.unknown
        noise = self.noise * (1 + side)
        return np.where(known, value - noise, -np.inf), np.where(known, value + noise, np.inf)


def problem(seed: int, d: int, noise: float, unknown: float) -> tuple[Cubics, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cubic, square, linear = rng.normal(size=(3, d)) * np.array([[1.0], [1.0], [0.3]])
    objective = Cubics(cubic, square, linear, noise, unknown)
    lower = rng.uniform(-1, 0.5, (7, d))
    upper = lower + rng.uniform(0, 1.5, (7, d))
    upper[0], upper[1, -1] = lower[0], lower[1, -1]
    return objective, lower, upper
