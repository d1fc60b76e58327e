"""Bounds for noise that is bounded, correlated, or known by its moments only (theory §2.14).

All that is used of the noise w = y − f*(X) is its energy, wᵀK_w⁻¹w ≤ Γ_n² for all n, with K_w positive definite and known.
With M = L⁻¹, K_w = LLᵀ, f* lies in {f : ‖M(f(X) − y)‖² ≤ Γ_n², ‖f‖_k ≤ B}, so that for every η > 0

    |f(z) − μ_η(z)| ≤ (σ_η(z)/√η)·√(Γ_n² + ηB² − η yᵀ(K + ηK_w)⁻¹y),

with μ_η, σ_η the posterior of noise covariance ηK_w; the best η gives the largest and smallest value in the set. The noise need
not have mean zero nor be independent of the inputs, so that it holds with feedback and with a bias within its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from scipy.stats import chi2
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed
from gpsafe.confidence.convex_program import BallProgram, _spectrum
from gpsafe.confidence.dual_program import EPS, Program, Spectrum
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

Noise = Literal["bounded", "gaussian", "moments", "energy"]
CONDITION = 1e6  # of K_w at most: rounding of M K Mᵀ grows with it
OUTWARDS = 1 + 1e-9  # of Γ_n²: rounding of M, and of the quantile


@dataclass(frozen=True, kw_only=True)
class NoiseEnergy(BallProgram):
    """max and min of f(z) over {f : ‖f(X) − y‖_{K_w⁻¹} ≤ Γ_n, ‖f‖_k ≤ B}; see the module.

    With δ_j = δ/p for each of p outputs, and R = `subgaussian`, the size of the noise, Γ_n² is

    - "bounded", |w_i| ≤ R: R² Σ_{ij} |K_w⁻¹|_{ij}, which is nR² without correlation; surely;
    - "gaussian", w_{1:n} ~ N(0, R²K_w): R² times the 1 − δ_n quantile of χ²_n, δ_n = 6δ_j/(π²n²), Σ_n δ_n = δ_j;
    - "moments", E[w_i² | past] ≤ R² and E[w_i⁴ | past] ≤ κR⁴: nR² + R²√(2^k κ(1/δ_k − 1)) for 2^{k−1} < n ≤ 2^k with
      δ_k = 6δ_j/(π²(k+1)²): Cantelli's inequality for the martingale Σ(w_i² − E[w_i² | past]) up to 2^k (Doob);
    - "energy", wᵀK_w⁻¹w ≤ R² for all n: R²; surely.

    Args:
        noise_kind: what is known of it.
        correlation: ρ of noise with K_w,ij = ρ^|i−j| between observations i and j, in the order in which they were appended; or
            n ↦ K_w (n, n), its leading blocks those of smaller n (episodes in which it starts anew, say); 0: K_w = I.
        kurtosis: κ of "moments"; 3 for Gaussian noise, ≥ 1.
        method: as in `BallProgram`.

    Source: Lahr, Köhler, Scampicchio & Zeilinger 2025 (arXiv 2505.22235), for a given Γ_n.
    """

    noise_kind: Noise = "moments"
    correlation: float | Callable[[int], Tensor] = 0.0
    kurtosis: float = 9.0

    name: ClassVar[str] = "noise-energy"
    source: ClassVar[str] = "Lahr, Koehler, Scampicchio & Zeilinger 2025"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require.one_of("NoiseEnergy", "noise_kind", self.noise_kind, ("bounded", "gaussian", "moments", "energy"))
        _require.number("NoiseEnergy", "kurtosis", self.kurtosis, minimum=1.0)
        if not callable(self.correlation):  # the condition number of ρ^|i−j| is below ((1 + |ρ|)/(1 − |ρ|))²
            size = abs(_require.number("NoiseEnergy", "correlation", self.correlation))
            if size >= 1 or (1 + size) ** 2 > CONDITION * (1 - size) ** 2:
                raise _require.fail("NoiseEnergy", "|correlation| <= 0.998", self.correlation)
        if self.noise_kind == "moments" and self.correlated:
            raise _require.fail("NoiseEnergy", "correlation = 0 for noise known by its moments", self.correlation)

    @property
    def correlated(self) -> bool:
        """Whether K_w is not the identity."""
        return callable(self.correlation) or self.correlation != 0.0

    def covariance(self, n: int) -> Tensor:
        """K_w of the first n observations, (n, n).

        Raises:
            ValueError: if it is not symmetric and positive definite with a condition number of at most 10⁶.
        """
        if not callable(self.correlation):
            return _decaying(float(self.correlation), n)
        found = _require.floats("NoiseEnergy", "correlation(n)", self.correlation(n)).cpu()
        if found.shape != (n, n):
            raise _require.fail("NoiseEnergy", f"correlation(n) of shape ({n}, {n})", tuple(found.shape))
        values = torch.linalg.eigvalsh(found) if bool(torch.isfinite(found).all()) else found.new_zeros(1)
        if not torch.equal(found, found.T) or not float(values[0]) * CONDITION >= float(values[-1]) > 0.0:
            raise _require.fail("NoiseEnergy", "correlation(n) symmetric, positive definite, condition <= 1e6", found)
        return found

    def energy(self, n: int, noise: Tensor, log_inv_delta: float) -> Tensor:
        """Γ_n² of n ≥ 1 observations for R = noise (*b,) and ln(1/δ_j), rounded outwards, (*b,)."""
        if self.noise_kind == "energy":
            factor = 1.0
        elif self.noise_kind == "bounded":
            factor = float(torch.linalg.inv(self.covariance(n)).abs().sum()) if self.correlated else float(n)
        elif self.noise_kind == "gaussian":
            factor = float(chi2.isf(6 * math.exp(-log_inv_delta) / (math.pi * n) ** 2, n))
        else:
            k = (n - 1).bit_length()
            inverse = math.exp(log_inv_delta) * (math.pi * (k + 1)) ** 2 / 6
            factor = n + math.sqrt(2.0**k * self.kurtosis * (inverse - 1))
        return noise.square() * factor * OUTWARDS

    def beliefs(self) -> tuple[Believed, ...]:
        """A norm, and the noise's size in words."""
        size = {"bounded": "every |w_i| <= R", "gaussian": "w ~ N(0, R^2 K_w)", "energy": "w' K_w^-1 w <= R^2"}
        words = size.get(self.noise_kind, f"E w_i^2 <= R^2, E w_i^4 <= {self.kurtosis:g} R^4 given the past")
        where = f"; K_w = {self.correlation}" if self.correlated else ""
        norm = Assumption.RKHS_NORM(f"<={self.rkhs_norm}")
        return norm, Assumption.NOISE_ENERGY(f": {words}, R = {self.subgaussian}{where}")

    def noise_refusal(self, model: GP, noise_std: Tensor) -> str | None:
        """Independent Gaussian noise is not bounded, nor is its energy; it has no correlation, and κ = 3."""
        if self.noise_kind == "bounded" and bool((noise_std > 0).any()):
            return "noise of any size, as Gaussian noise is (noise_kind is 'bounded')"
        if self.noise_kind == "energy":
            return "noise whose energy grows with n, as Gaussian noise's does (noise_kind is 'energy')"
        if self.correlated:
            return "independent noise, as the task's is (correlation is not 0)"
        if self.noise_kind == "moments" and self.kurtosis < 3:
            return f"kurtosis >= 3, as Gaussian noise has (kurtosis = {self.kurtosis})"
        return super().noise_refusal(model, noise_std)

    def _radius_sq(self, model: GP, output: int, spectrum: Spectrum) -> Tensor:
        p = model.num_outputs
        noise = self.noise(p)[output].to(spectrum.values.device)
        return self.energy(model.num_data, noise, math.log(p / self.delta))

    def _spectrum(self, model: GP, output: int) -> Spectrum:
        return _white(self, model, output) if self.correlated else _spectrum(model, output)

    def _seen(self, cross: Tensor) -> Tensor:
        if not self.correlated:
            return cross
        n, rho = cross.shape[-2], self.correlation
        # A function's answer may change, so that nothing of it is kept.
        root = torch.linalg.cholesky(self.covariance(n)) if callable(rho) else _root(float(rho), n)
        return torch.linalg.solve_triangular(root.to(cross.device), cross, upper=False)

    def _plain(self, model: GP, output: int) -> Program:
        if not self.correlated:
            return super()._plain(model, output)
        assert model.inputs is not None
        spectrum = _spectrum(model, output)
        most = float(torch.linalg.eigvalsh(self.covariance(model.num_data))[-1])  # wᵀw ≤ λ_max(K_w) wᵀK_w⁻¹w
        z, norm = model.inputs[:1], self.norms(model.num_outputs)[output].to(spectrum.values.device)
        cross = spectrum.vectors.mT @ kernels.cross(model.kernels[output], model.inputs, z)
        radius = most * OUTWARDS * self._radius_sq(model, output, spectrum)
        return Program(spectrum, cross, kernels.diagonal(model.kernels[output], z), radius, norm)


def _decaying(correlation: float, n: int) -> Tensor:
    """ρ^|i−j|, (n, n)."""
    at = torch.arange(n, dtype=torch.float64)
    return correlation ** (at.unsqueeze(-1) - at).abs()  # 0⁰ = 1


@lru_cache(maxsize=4)
@plain_tensors
def _root(correlation: float, n: int) -> Tensor:
    """L of K_w = LLᵀ, K_w,ij = ρ^|i−j|, which every question to one posterior needs."""
    return torch.linalg.cholesky(_decaying(correlation, n))


@plain_tensors
def _white(bound: NoiseEnergy, model: GP, output: int) -> Spectrum:
    """Eigen-decomposition of M K Mᵀ, computed once per posterior, kernel and ρ (a function's answer may change)."""
    assert model.inputs is not None and model.targets is not None
    cache = {} if model._cache is None or callable(bound.correlation) else model._cache
    kernel = model.kernels[output]
    key = f"white-{id(kernel)}-{output}-{bound.correlation!r}"
    if key not in cache:
        gram = kernels.cross(kernel, model.inputs, model.inputs)
        seen = bound._seen(bound._seen(0.5 * (gram + gram.T)).mT)
        targets = bound._seen(model.targets[:, output].unsqueeze(-1)).squeeze(-1)
        # |ΔK| ≤ ε a aᵀ, a_i² = K_ii, so ‖M ΔK Mᵀ‖ ≤ ε‖|M|a‖².
        size = bound._seen(torch.eye(len(gram)).to(gram)).abs() @ gram.diagonal().sqrt()
        error = kernels.entry_error(kernel, model.inputs, product=False) * float(size.square().sum())
        products = model.num_data * EPS * math.sqrt(CONDITION)  # nε of a solve, times κ(L)
        cache[key] = Spectrum.of(0.5 * (seen + seen.mT), targets, error, products)
    found: Spectrum = cache[key]
    return found
