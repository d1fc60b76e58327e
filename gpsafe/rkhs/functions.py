"""Functions whose RKHS norm is known exactly: f = Σ_i α_i k(z_i, ·) with ‖f‖²_k = αᵀKα (theory §1 (a))."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.rkhs import kernels


@short
@dataclass(frozen=True, slots=True, eq=False)
class RKHSFunction:
    """f(z) = Σ_i weights_i k(centers_i, z), an element of the RKHS of `kernel`.

    Args:
        kernel: a frozen gpytorch kernel.
        centers: (m, d).
        weights: (m,).
    """

    kernel: Kernel
    centers: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        centers = _require.finite("RKHSFunction", "centers", self.centers)
        if centers.ndim != 2:
            raise _require.fail("RKHSFunction", "centers of shape (m, d)", f"shape {tuple(centers.shape)}")
        weights = _require.finite("RKHSFunction", "weights", self.weights)
        _require.shape("RKHSFunction", "weights", weights, (centers.shape[0],))
        object.__setattr__(self, "centers", centers)
        object.__setattr__(self, "weights", weights)

    def __call__(self, z: Tensor) -> Tensor:
        """f(z), shape (*b, d) → (*b,). Differentiable."""
        _require.last_dim("RKHSFunction", "z", z, self.centers.shape[-1])
        flat = z.reshape(-1, z.shape[-1])
        chunk = max(1, 200_000 // self.centers.shape[0])  # arrays that stay in the cache: three times as fast
        centers, weights = self.centers.to(z.device), self.weights.to(z.device)
        parts = [kernels.cross(self.kernel, part, centers) @ weights for part in flat.split(chunk)]
        return torch.cat(parts).reshape(z.shape[:-1])

    def _square(self) -> tuple[float, float]:
        """αᵀKα as computed, and a bound on its error (see :attr:`norm_upper`)."""
        gram = kernels.cross(self.kernel, self.centers, self.centers)
        m = self.centers.shape[0]
        entry = kernels.entry_error(self.kernel, self.centers) + 2 * linalg.gamma(m + 4)
        largest = float(gram.diagonal().max())
        return float(self.weights @ gram @ self.weights), entry * largest * float(self.weights.abs().sum()) ** 2

    @property
    def norm(self) -> float:
        """‖f‖_k = √(αᵀKα) up to rounding, which is largest for weights that are large and cancel (see
        `norm_upper`).
        """
        return max(self._square()[0], 0.0) ** 0.5

    @property
    def norm_upper(self) -> float:
        """A number ≥ ‖f‖_k in exact arithmetic: √(αᵀKα + e), e = ε·max_i k(z_i, z_i)·‖α‖₁².

        ε is the relative error of a kernel value (`kernels.entry_error`) plus 2γ_{m+4} for the double sum.
        """
        value, error = self._square()
        return (max(value, 0.0) + error) ** 0.5 * (1 + 4 * linalg.UNIT)

    def scaled_to(self, norm: float) -> RKHSFunction:
        """The multiple of f with the given norm."""
        target = float(_require.positive("RKHSFunction.scaled_to", "norm", norm))
        own = self.norm
        if own == 0.0:
            raise _require.fail("RKHSFunction.scaled_to", "a non-zero function", "norm 0")
        return RKHSFunction(self.kernel, self.centers, self.weights * (target / own))


def random_function(
    kernel: Kernel,
    lower: Tensor,
    upper: Tensor,
    *,
    norm: float,
    generator: torch.Generator,
    num_centers: int = 30,
) -> RKHSFunction:
    """A random function of exactly the given norm: uniform centres in the box, normal weights, rescaled.

    Args:
        kernel: any kernel; RBF, Matérn, ARD, scaled, linear, additive alike.
        lower, upper: corners of the box of centres, (d,).
        norm: ‖f‖_k > 0.
        generator: source of randomness; the function lives on its device.
        num_centers: number of centres m.
    """
    lower, upper = (
        _require.finite("random_function", "lower", lower),
        _require.finite("random_function", "upper", upper),
    )
    _require.shape("random_function", "upper", upper, tuple(lower.shape))
    if lower.ndim != 1 or not bool((lower <= upper).all()):
        raise _require.fail("random_function", "lower <= upper of shape (d,)", f"{lower.tolist()} and {upper.tolist()}")
    _require.count("random_function", "num_centers", num_centers)
    device = generator.device
    lower, upper = lower.to(device), upper.to(device)
    unit = torch.rand(num_centers, lower.numel(), dtype=torch.float64, generator=generator, device=device)
    weights = torch.randn(num_centers, dtype=torch.float64, generator=generator, device=device)
    return RKHSFunction(kernel, lower + (upper - lower) * unit, weights).scaled_to(norm)


def interpolate(kernel: Kernel, points: Tensor, values: Tensor, *, ridge: float = 1e-10) -> RKHSFunction:
    """Kernel interpolant of `values` (m,) at `points` (m, d): α = (K + ridge·max diag K·I)⁻¹ values.

    The ridge is part of the definition, not hidden jitter: whatever α is, the result is *exactly* Σ α_i
    k(z_i, ·) with exactly known norm; only its distance to the interpolated values depends on the ridge.
    """
    points, values = (
        _require.finite("interpolate", "points", points),
        _require.finite("interpolate", "values", values),
    )
    _require.positive("interpolate", "ridge", ridge)
    if points.ndim != 2:
        raise _require.fail("interpolate", "points of shape (m, d)", f"shape {tuple(points.shape)}")
    _require.shape("interpolate", "values", values, (points.shape[0],))
    gram = kernels.cross(kernel, points, points)
    gram = gram + ridge * gram.diagonal().max() * torch.eye(len(points), dtype=gram.dtype, device=gram.device)
    factor = linalg.cholesky(gram, "interpolate")
    weights = torch.cholesky_solve(values.unsqueeze(-1), factor).squeeze(-1)
    return RKHSFunction(kernel, points, weights)


def grid(lower: Tensor, upper: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Regular grid of a box including its faces, shape (Π counts, d)."""
    for n in counts:
        _require.count("grid", "counts", n)
    axes = [
        torch.linspace(float(a), float(b), n, dtype=torch.float64, device=lower.device)
        for a, b, n in zip(lower, upper, counts, strict=True)
    ]
    return torch.cartesian_prod(*axes).reshape(-1, len(axes))
