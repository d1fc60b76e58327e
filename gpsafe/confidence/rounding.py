"""Rounding of computed posteriors, outwards (45 digits against float64: `tests/confidence/test_rounding.py`).

Notation: A = K + λI (λw_i² on its diagonal where noise scales w_i ≥ 1 differ; A ⪰ λI all the same), T = tr A, a_i² = A_ii,
q = A⁻¹k_n(z), k = k(z, z), u the unit roundoff, γ_n = nu/(1 − nu). A computed kernel value errs by ε√(k_ii k_jj) at a query,
by ε₀√(k_ii k_jj) between data (`kernels.entry_error`); the computed factor satisfies LLᵀ = A + δA with |δA_ij| ≤ η a_i a_j,
η = ε₀ + 1.1γ_{n+1} (Higham 2002, Thm 10.3, in any order of summation).

**Proved.** k_nᵀA⁻¹k_n = max_p 2pᵀk_n − pᵀAp, so with the perturbed maximiser q̂ and t = Σ|q̂_i|a_i the explained variance is
too large by at most 2ε√k t + ηt². Cauchy–Schwarz in the RKHS, q̂ᵀKq̂ ≥ (q̂ᵀk_n)²/k, gives λ‖q̂‖² ≤ σ² to first order: a query
whose variance is small has small weights. If ηT ≤ λ/2, then in full t ≤ √(2Tσ²/λ) + 4εT√k/λ; if not, nothing is claimed
(margin k). The same q carries the errors of the weights α into the mean: with w = Σ a_i|α_i|,
|δμ| ≤ w((ε + γ_n)√k + (ε₀ + 3.3γ_{n+1})t), since α solves a system within ε₀ + 3.3γ_{n+1} of A in the same sense.

The information gain: log det is concave, so log det A = log det(LLᵀ − δA) ≤ log det LLᵀ + ‖(LLᵀ)⁻¹‖_F‖δA‖_F, where
‖δA‖_F ≤ ηT and LLᵀ ⪰ (λ − ηT)I: at most √n ηT/(λ − ηT) more. Its sum of logarithms, each at most |ln λ| + |ln T|,
rounds by γ_{n+4}n times that. Where ηT > λ/2, Hadamard's det A ≤ Π A_ii ≤ (T/n)ⁿ serves alone.

**Measured.** v = L⁻¹k_n(z) is a product with the computed inverse X, ‖X‖_F ≤ √(n/λ): in the worst case 2‖v‖‖δv‖ is
2γ_n‖X‖_F√T k. Rounding errors do not conspire: PRODUCT·2u√(nT/λ)k is taken. A quarter of 1 covered data over 1 … 100
length-scales, uniform, clustered, repeated, along paths (n ≤ 300; λ/k from 1e-3 to 1e-12; appended in blocks) three times over,
but not sixty points evenly on a line at λ/k = 1e-11, where 1.4 was needed just beside the line; eight leaves room again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import linalg
from gpsafe._show import short
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models.gp import GP
from gpsafe.models.low_rank import LowRankGP
from gpsafe.rkhs import kernels

MARGIN = 1e-12  # of the variance relative to k(z, z): at least this
PRODUCT = 8.0  # see the module
EPS = torch.finfo(torch.float64).eps


@short
@dataclass(frozen=True, slots=True, eq=False)
class Rounding:
    """What the margins need of one posterior, per learned output.

    Attributes:
        regularizer: λ, (p,).
        trace: T, (p,).
        load: w, (p,).
        entry, gram: ε and ε₀, (p,).
        count: n.
    """

    regularizer: Tensor
    trace: Tensor
    load: Tensor
    entry: Tensor
    gram: Tensor
    count: int

    @staticmethod
    def of(model: GP | LowRankGP) -> Rounding:
        """Of this posterior, computed once."""
        exact = model.exact if isinstance(model, LowRankGP) else model
        cache = exact._cache if exact._cache is not None else {}
        if "rounding" not in cache:
            cache["rounding"] = _measure(exact)
        return cache["rounding"]

    @property
    def backward(self) -> Tensor:
        """η, (p,)."""
        return self.gram + 1.1 * linalg.gamma(self.count + 1)

    def output(self, j: int) -> Rounding:
        """Of one learned output, all fields of shape ()."""
        fields = (self.regularizer, self.trace, self.load, self.entry, self.gram)
        regularizer, trace, load, entry, gram = (field[j] for field in fields)
        return Rounding(regularizer, trace, load, entry, gram, self.count)

    def _weight(self, variance: Tensor, prior: Tensor) -> Tensor:
        """t for queries of posterior variance at most `variance`."""
        carried = linalg.safe_sqrt(2 * self.trace / self.regularizer * variance)
        return carried + 4 * self.entry * self.trace / self.regularizer * linalg.safe_sqrt(prior)

    def variance(self, variance: Tensor, prior: Tensor) -> Tensor:
        """≥ exact − computed posterior variance, from the computed one and k(z, z), (*b, p) ×2 → (*b, p)."""
        margin = MARGIN * prior
        if self.count == 0:
            return margin
        product = PRODUCT * EPS * (self.count * self.trace / self.regularizer).sqrt()
        margin = margin + (product + linalg.gamma(self.count + 2)) * prior
        t = self._weight(variance + margin, prior)
        margin = margin + 2 * self.entry * linalg.safe_sqrt(prior) * t + self.backward * t.square()
        return torch.where(self.backward * self.trace <= 0.5 * self.regularizer, margin, prior)

    def mean(self, variance: Tensor, prior: Tensor) -> Tensor:
        """≥ |exact − computed posterior mean|, from a bound of the posterior variance, (*b, p) ×2 → (*b, p)."""
        if self.count == 0:
            return torch.zeros_like(prior)
        direct = (self.entry + linalg.gamma(self.count + 2)) * linalg.safe_sqrt(prior)
        carried = (self.gram + 3.3 * linalg.gamma(self.count + 1)) * self._weight(variance, prior)
        return self.load * (direct + carried)

    def info_gain(self, gain: Tensor) -> Tensor:
        """≥ the exact g_n = ½ log det(I + W⁻¹K_nW⁻¹/λ), from the computed one, (p,) → (p,)."""
        if self.count == 0:
            return gain
        n, lam, lost = self.count, self.regularizer, self.backward * self.trace
        factor = math.sqrt(n) * lost / (lam - lost)
        summed = linalg.gamma(n + 4) * n * (lam.log().abs() + self.trace.log().abs())
        hadamard = 0.5 * n * (self.trace / (n * lam)).log() + summed
        return torch.where(lost <= 0.5 * lam, gain + 0.5 * factor + summed, hadamard)


@plain_tensors
def _measure(model: GP) -> Rounding:
    lam = model.regularizer
    none = torch.zeros_like(lam)
    if model.inputs is None:
        return Rounding(lam, none, none, none, none, 0)
    lam = lam.to(model.inputs.device)
    scale = 1.0 if model.noise_scale is None else model.noise_scale.square().unsqueeze(-1)
    diagonal = model.prior_variance(model.inputs) + lam * scale
    inputs, own = model.inputs, [factor.form or factor.kernel for factor in model._factors]
    entries = [[kernels.entry_error(kernel, inputs, product=flag) for kernel in own] for flag in (True, False)]
    entry, gram = (lam.new_tensor([values[i] for i in model._index]) for values in entries)
    load = (diagonal.sqrt() * model.weights.abs()).sum(0)
    return Rounding(lam, diagonal.sum(0), load, entry, gram, model.num_data)
