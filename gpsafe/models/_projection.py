"""Projection of an exact posterior onto few kernel sections, with every rounding error accounted for.

Notation: centres Z (r of them), T ≈ L_Z⁻ᵀ a fixed matrix of floats, Ẽ = Φ_Z*T the features it *defines* in
the RKHS, â the computed Tᵀk_Z(z) with error e, Δ = TᵀK_ZZT − I (zero only in exact arithmetic), M = K_XZ T, ρ
= φ(z) − Ẽâ.
None of the identities below supposes that T is exact:

    res² = ‖ρ‖² = k(z, z) − ‖â‖² + 2âᵀe + âᵀΔâ,
    σ(z) ≤ √(âᵀGâ) + res,          G = I + Δ − Mᵀ(K + λI)⁻¹M,
    |μ(z) − bᵀâ| ≤ |(Mᵀα − b)ᵀâ| + ‖μ − Ẽb‖ res + |b|ᵀ(|e| + |Δ||â|)          for every b,
    ‖μ − Ẽb‖² = αᵀKα − ‖b‖² + 2bᵀ(b − Mᵀα) + bᵀΔb.

Rounding, with t_j = Σ_k |T_kj| √k(z_k, z_k) and s = Σ_j t_j |â_j|: an entry of a Gram matrix errs by ε √(k(x,
x)k(z, z)) (`kernels.entry_error`), so |e_j| ≤ η √k(z, z) t_j with η = γ_{r+2} + ε, |δM_ij| ≤ η √k_ii t_j and
|Δ_ij| ≤ κ t_i t_j. The weights t_j are largest where |â_j| must be small, so s stays moderate although T is
ill-conditioned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpsafe import linalg
from gpsafe.models import _fast
from gpsafe.models._factor import Factor
from gpsafe.rkhs import kernels

OWN_ROUNDING = 1e-12  # of the exact model's computed variance, relative to k(z, z): the margin that bounds state for it


def select_centers(factor: Factor, candidates: Tensor, rank: int, tolerance: float) -> Tensor:
    """Indices of at most `rank` candidates (m, d) by pivoted Cholesky: each time the one with the largest
    residual.

    Stops when every residual is ≤ tolerance · max k(x, x). The choice affects tightness only, never validity.
    """
    residual = factor.diagonal(candidates).clone()
    stop = tolerance * float(residual.max())
    rows = torch.zeros(rank, candidates.shape[0], dtype=torch.float64, device=candidates.device)
    chosen: list[int] = []
    for k in range(min(rank, candidates.shape[0])):
        best = int(residual.argmax())
        pivot = float(residual[best])
        if pivot <= stop:
            break
        row = factor.cross(candidates[best : best + 1], candidates)[0] - rows[:k, best] @ rows[:k]
        rows[k] = row / math.sqrt(pivot)
        residual = (residual - rows[k].square()).clamp_min(0.0)
        residual[best] = 0.0
        chosen.append(best)
    return torch.tensor(chosen, device=candidates.device)


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """The projected posterior of one factor with k outputs.

    Attributes:
        factor: the exact factor.
        centers: Z, (r, d).
        root: T, (r, r) upper triangular.
        quadratic: C lower triangular with CᵀC ≥ G up to the terms in s below, (r, r).
        weights: b, (r, k).
        spread: t, (r,).
        entry, defect: η and κ.
        linear: factor of s‖â‖ in the error of âᵀGâ: 1.02 η √(Σ_i k_ii/λ).
        norms: bounds of ‖μ − Ẽb‖, (k,).
        drift: bounds of Σ_j |b_j| t_j, (k,).
        weight_error: factors of s and of ‖â‖ in |(Mᵀα − b)ᵀâ| and in the rounding of bᵀâ, (2, k).
        exact_rounding: factor of √k(z, z) in the rounding of the exact model's own computed mean, (k,).
        gram: NumPy evaluation of k(z, Z) on the CPU.

    """

    factor: Factor
    centers: Tensor
    root: Tensor
    quadratic: Tensor
    weights: Tensor
    spread: Tensor
    entry: float
    defect: float
    linear: float
    norms: Tensor
    drift: Tensor
    weight_error: Tensor
    exact_rounding: Tensor
    gram: _fast.Gram | None

    @staticmethod
    def build(factor: Factor, inputs: Tensor, alpha: Tensor, norm_upper: Tensor, centers: Tensor) -> Projection:
        """From the exact posterior: data `inputs` (n, d), weights `alpha` (n, k) and bounds of ‖μ‖_k (k,)."""
        n, r = inputs.shape[0], centers.shape[0]
        own = factor.cross(centers, centers)
        lower = linalg.cholesky(own, "LowRankGP: the chosen centres (raise the tolerance)")
        root = linalg.inverse_lower(lower).contiguous().mT  # Fortran order, as BLAS wants it
        spread = own.diagonal().sqrt() @ root.abs()
        epsilon = max(kernels.entry_error(factor.form or factor.kernel, points) for points in (centers, inputs))
        entry = linalg.gamma(r + 2) + epsilon
        gap = root.mT @ own @ root - torch.eye(r, dtype=own.dtype, device=own.device)
        defect = float((gap.abs() / torch.outer(spread, spread)).max()) + 3 * entry

        moments = factor.cross(inputs, centers) @ root
        half = linalg.solve_lower(factor.lower, moments)
        solve_error = linalg.gamma(n) * (factor.inverse.abs() @ (factor.lower.abs() @ half.abs()))
        product = half.abs().mT @ solve_error
        rounding = product + product.mT + solve_error.mT @ solve_error
        rounding = rounding + linalg.gamma(n + 2) * (half.abs().mT @ half.abs())
        margin = float(torch.linalg.matrix_norm(rounding)) * 1.01 + 4 * r * linalg.gamma(r + 2)
        eye = torch.eye(r, dtype=own.dtype, device=own.device)
        quadratic = linalg.reverse_cholesky(eye - half.mT @ half + margin * eye, "LowRankGP: its covariance")
        quadratic = quadratic.contiguous()
        total = float(factor.diagonal(inputs).sum())
        linear = 1.02 * entry * math.sqrt(total / factor.regularizer)

        weights = moments.mT @ alpha
        size = (factor.diagonal(inputs).sqrt().unsqueeze(-1) * alpha.abs()).sum(0)
        product_error = linalg.gamma(n + 2) * torch.linalg.vector_norm(moments.abs().mT @ alpha.abs(), dim=0)
        weight_error = torch.stack([entry * size, product_error])
        drift = (spread.unsqueeze(-1) * weights.abs()).sum(0) * (1 + linalg.gamma(r + 2))
        length = torch.linalg.vector_norm(weights, dim=0)
        square = norm_upper.square() - length.square() * (1 - 2 * linalg.gamma(r + 2))
        square = square + 2 * (weight_error[0] * drift + weight_error[1] * length) + defect * drift.square()
        gram = None
        if _fast.usable(centers):
            gram = _fast.Gram.build(factor, centers)
        norms = square.clamp_min(0.0).sqrt()
        weight_error[1] += linalg.gamma(r + 2) * length
        own_rounding = (linalg.gamma(n + 2) + epsilon) * size
        return Projection(
            factor,
            centers,
            root,
            quadratic,
            weights,
            spread,
            entry,
            defect,
            linear,
            norms,
            drift,
            weight_error,
            own_rounding,
            gram,
        )

    def _features(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """bᵀâ (m, k), ‖Câ‖², ‖â‖² and s (m,) each, for z (m, d)."""
        if self.gram is None or not _fast.usable(z):
            features = self.factor.cross(self.centers, z).mT @ self.root
            inner = (features @ self.quadratic.mT).square().sum(-1)
            return features @ self.weights, inner, features.square().sum(-1), features.abs() @ self.spread
        block = _fast.scratch(z.shape[0], self.centers.shape[0])
        self.gram.fill(z.detach(), block)
        block = _fast.triangular_product(self.root.numpy(), block, scale=self.gram.amplitude)
        with np.errstate(invalid="ignore"):
            mean, square = block @ self.weights.numpy(), np.einsum("ij,ij->i", block, block)
            spread = np.abs(block) @ self.spread.numpy()
        block = _fast.triangular_product(self.quadratic.numpy().T, block)
        inner = np.einsum("ij,ij->i", block, block)
        return (
            torch.from_numpy(mean),
            torch.from_numpy(inner),
            torch.from_numpy(square),
            torch.from_numpy(spread),
        )

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At z (m, d): bᵀâ (m, k), an upper bound of σ (m,), and a bound of |μ − bᵀâ| (m, k)."""
        r = self.centers.shape[0]
        mean, inner, square, s = self._features(z)
        prior = self.factor.diagonal(z)
        base, length = prior.sqrt(), square.sqrt()
        slack = self.defect * s.square()
        residual_sq = (prior - square).clamp_min(0.0) + 2 * self.entry * base * s + slack
        residual = (residual_sq + linalg.gamma(r + 8) * (prior + square)).sqrt()
        inner = inner * (1 + linalg.gamma(r + 8)) + slack + self.linear * s * length + (self.linear * s).square()
        std = inner.sqrt() + residual + r * linalg.gamma(r + 2) * length
        variance = torch.minimum(std.square() * (1 + 1e-14), prior)
        error = self.norms * residual.unsqueeze(-1) + self.weight_error[0] * s.unsqueeze(-1)
        error = error + self.weight_error[1] * length.unsqueeze(-1)
        error = error + self.drift * (self.entry * base + self.defect * s).unsqueeze(-1)
        error = error + self.exact_rounding * base.unsqueeze(-1)
        return mean, (variance + OWN_ROUNDING * prior).sqrt(), error
