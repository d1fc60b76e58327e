"""The Bayesian comparator: uniform error bounds through a Lipschitz grid (Lederer, Umlauft & Hirche 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from gpsafe.sets.box import Box


def sample_path_lipschitz(kernel: Kernel, box: Box, delta: float) -> float:
    """L with P(a sample path of GP(0, k) is L-Lipschitz on the box, Euclidean) ≥ 1 − δ, for a (scaled, ARD)
    RBF kernel.

    L = ‖(√(2 ln(2d/δ)) s_i + 12√(6d) max(s_i, √(r L_i)))_i‖ with s_i² = v/ℓ_i² the variance of ∂_i f, r the
    diameter of the box and L_i a Lipschitz constant of k^{∂i}(a) = (v/ℓ_i²)(1 − a_i²)e^{−‖a‖²/2}, a scaled by
    ℓ: coordinatewise, |a_i(3 − a_i²)|e^{−a_i²/2} ≤ 1.3802 and |a_j|e^{−a_j²/2} ≤ 0.6066.

    Raises:
        ValueError: for another kernel (the theorem needs four derivatives).
    Source: Lederer et al. 2019, Theorem 3.2.
    """
    _require.probability("sample_path_lipschitz", "delta", delta)
    form = kernels.stationary(kernel)
    if form is None or not math.isinf(form.nu) or form.dims is not None:
        raise _require.fail("sample_path_lipschitz", "an RBF kernel on all inputs", kernels.describe(kernel))
    d = box.dim
    scale = form.lengthscale.expand(d)
    deviation = math.sqrt(form.variance) / scale
    slopes = torch.full((d, d), 0.6066, dtype=torch.float64)
    slopes.fill_diagonal_(1.3802)
    kernel_lipschitz = deviation.square() * torch.linalg.vector_norm(slopes / scale, dim=-1)
    diameter = float(torch.linalg.vector_norm(box.upper - box.lower))
    supremum = 12 * math.sqrt(6 * d) * torch.maximum(deviation, (diameter * kernel_lipschitz).sqrt())
    return float(torch.linalg.vector_norm(math.sqrt(2 * math.log(2 * d / delta)) * deviation + supremum))


def covering_number(box: Box, radius: float) -> int:
    """Number of Euclidean balls of the given radius that cover the box: Π ⌈√d·edge_i/(2·radius)⌉ (cubes
    inscribed in balls).
    """
    edges = (box.upper - box.lower).tolist()
    return math.prod(max(1, math.ceil(math.sqrt(box.dim) * edge / (2 * radius))) for edge in edges)


@dataclass(frozen=True, kw_only=True)
class Lederer(ConfidenceBound):
    """|f − μ_n| ≤ √b_n σ_n + γ_n on a box, for f ~ GP(0, k) and noise N(0, λ): another assumption than a
    bounded norm.

    b_n = 2 ln(M(τ)/δ_n), δ_n = 6δ/(π²(n+1)²) for validity at all n at once, M(τ) the covering number of the
    box, and γ_n = L_f τ + ‖μ_n‖_k D(τ) + √b_n D(τ), where D(τ) = sup{d_k(z, z′) : ‖z − z′‖ ≤ τ}. On the grid
    the posterior given any (adaptively chosen) data is N(μ_n, σ_n²), and P(|Z| > c) ≤ e^{−c²/2}; between grid
    points μ_n moves by at most ‖μ_n‖_k D(τ) and σ_n by D(τ) (kernel metric; sharper than the paper's
    √-modulus). Sample paths lie outside the RKHS: `rkhs_norm` and `subgaussian` play no role. `interval`
    includes γ_n; `beta` alone does not suffice.

    Args:
        lower, upper: the box; other points are refused.
        grid_radius: τ > 0; by default 1e-6 times the longest edge.
        lipschitz: L_f, an assumption by that name; None: half of δ pays for `sample_path_lipschitz` (RBF
            only).
    """

    rkhs_norm: float | tuple[float, ...] = math.inf
    subgaussian: float | tuple[float, ...] = math.inf
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    grid_radius: float | None = None
    lipschitz: float | None = None

    name = "lederer"
    source = "Lederer, Umlauft & Hirche 2019, Thms 3.1 and 3.2"
    frequentist = False

    def __post_init__(self) -> None:
        super().__post_init__()
        box = self.box
        if not bool((box.lower < box.upper).all()):
            raise _require.fail("Lederer", "lower < upper", f"{self.lower} and {self.upper}")
        for name in ("grid_radius", "lipschitz"):
            if getattr(self, name) is not None:
                _require.positive("Lederer", name, getattr(self, name))

    @property
    def box(self) -> Box:
        """Where the bound holds."""
        return Box(torch.tensor(self.lower, dtype=torch.float64), torch.tensor(self.upper, dtype=torch.float64))

    @property
    def radius(self) -> float:
        """τ."""
        longest = float((self.box.upper - self.box.lower).max())
        return 1e-6 * longest if self.grid_radius is None else self.grid_radius

    def beliefs(self) -> tuple[Believed, ...]:
        """Bayesian prior and Gaussian noise."""
        entries = [Assumption.GAUSSIAN_PRIOR(), Assumption.LAMBDA_NOISE()]
        if self.lipschitz is not None:
            entries.append(Assumption.SAMPLE_PATH(f" {self.lipschitz}-Lipschitz on the box"))
        return tuple(entries)

    def noise_refusal(self, model: GP, noise_std: Tensor) -> str | None:
        """The posterior is the conditional law only for λ = noise_std²."""
        target = noise_std.cpu().square()
        if bool(((model.regularizer.cpu() - target).abs() > 1e-6 * target).any()):
            return f"lambda = noise_std^2 = {target.tolist()}"
        return None

    def refusal(self, model: GP) -> str | None:
        """Stationary kernels on the box's dimension; RBF unless `lipschitz` is given."""
        if model.nx + model.nu != self.box.dim:
            return f"inputs of dimension {self.box.dim}"
        for kernel in model.kernels:
            form = kernels.stationary(kernel)
            if form is None:
                return f"RBF or Matérn kernels (not {kernels.describe(kernel)})"
            if self.lipschitz is None and (not math.isinf(form.nu) or form.dims is not None):
                return f"RBF kernels on all inputs, or a given lipschitz constant (not {kernels.describe(kernel)})"
        return super().refusal(model)

    def grid_log(self, count: Tensor, log_inv_delta: float) -> Tensor:
        """b_n = 2 ln(M(τ)/δ_n), for n = count (*b,) and ln(1/δ) of one output."""
        own = log_inv_delta + (math.log(2) if self.lipschitz is None else 0.0)
        anytime = math.log(math.pi**2 / 6) + 2 * torch.log(count + 1)
        return 2 * (math.log(covering_number(self.box, self.radius)) + own + anytime)

    def _beta(self, model: GP, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        return self.grid_log(torch.full_like(model.regularizer.cpu(), model.num_data), log_inv_delta).sqrt()

    def moduli(self, kernel: Kernel, outputs: int) -> tuple[float, float]:
        """L_f τ and D(τ) for one of `outputs` outputs."""
        form = kernels.stationary(kernel)
        if form is None:
            raise _require.fail("Lederer", "RBF or Matérn kernels", kernels.describe(kernel))
        slope = self.lipschitz
        if slope is None:
            slope = sample_path_lipschitz(kernel, self.box, self.delta / (2 * outputs))
        nearest = torch.as_tensor((self.radius / float(form.lengthscale.min())) ** 2, dtype=torch.float64)
        return slope * self.radius, float(form.metric(nearest))

    def slack(self, model: GP) -> Tensor:
        """γ_n, (p,)."""
        pairs = [self.moduli(kernel, model.num_outputs) for kernel in model.kernels]
        drift = torch.tensor([pair[0] for pair in pairs], dtype=torch.float64)
        modulus = torch.tensor([pair[1] for pair in pairs], dtype=torch.float64)
        return drift + (model.posterior_norm().cpu() + self.beta(model).cpu()) * modulus

    def covers(self, lower: Tensor, upper: Tensor) -> Tensor:
        """See `ConfidenceBound.covers`: of boxes within the box."""
        low, high = self.box.lower.to(lower.device), self.box.upper.to(lower.device)
        return ((lower >= low) & (upper <= high)).all(-1)

    def interval(self, model: GP, z: Tensor) -> tuple[Tensor, Tensor]:
        """[μ − √b σ − γ, μ + √b σ + γ] at z (*b, d) in the box."""
        if not bool(self.box.contains(z.detach().cpu()).all()):
            raise _require.fail("Lederer", f"points in the box {self.lower}..{self.upper}", "a point outside")
        return super().interval(model, z)
