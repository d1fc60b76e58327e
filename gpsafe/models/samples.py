"""Samples of posterior functions.

Matheron's rule: if f is a draw from the prior and ε ~ N(0, λI), then

    f_n(z) = f(z) + k_n(z)ᵀ(K_n + λI)⁻¹(y − f(X) − ε)

is a draw from the posterior. It costs one draw of a prior *function*; there are two kinds:

- "features": a random trigonometric series f(z) = √(2v/F) Σ_i w_i cos(ω_iᵀz + b_i), ω from the spectral
  density of the kernel (normal for RBF, Student t with 2ν degrees of freedom for Matérn-ν). **Approximate**:
  for F features its covariance errs by O(1/√F) (the series are drawn once per call and shared by its samples,
  so this error does not average out). Linear parts are exact.
- "centers": exact at the given centres and at the data, and the kernel interpolant of its values there in
  between: then f lies in the span of finitely many kernel sections, and joint draws at the centres follow the
  posterior exactly.

λ plays the role of a noise variance here. Samples can refute, never certify.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.models._factor import Factor
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator, device=generator.device)


def sample_at(model: GP, z: Tensor, *, num: int, generator: torch.Generator) -> Tensor:
    """Exact joint draws of the residual functions at z (m, d): (num, m, p), outputs independent.

    From a square root of the joint covariance by its eigendecomposition: no jitter.
    """
    _require.count("sample_at", "num", num)
    z = _require.finite("sample_at", "z", _require.floats("sample_at", "z", z))
    mean, _ = model.posterior(z)
    root = linalg.psd_root(model.covariance(z))  # (p, m, m)
    noise = _randn(generator, num, model.num_outputs, z.shape[0]).to(z.device)
    return mean + (root @ noise.unsqueeze(-1)).squeeze(-1).mT


@dataclass(frozen=True, slots=True, eq=False)
class _Fourier:
    """S random trigonometric series √(2v/F) Σ w cos(ωᵀz + b): frequencies (d, F), phases (F,), weights (S,
    F).
    """

    frequencies: Tensor
    phases: Tensor
    weights: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """(m, d) or (S, m, d) → (S, m)."""
        waves = torch.cos(z @ self.frequencies + self.phases)
        if z.ndim == 2:
            return self.weights @ waves.mT
        return (waves @ self.weights.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, slots=True, eq=False)
class _Slopes:
    """S linear functions: weights (S, d)."""

    weights: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """(m, d) or (S, m, d) → (S, m)."""
        return self.weights @ z.mT if z.ndim == 2 else (z @ self.weights.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, slots=True, eq=False)
class _Sections:
    """S functions Σ_i w_i k(c_i, ·): centres (m, d), weights (S, m)."""

    factor: Factor
    centers: Tensor
    weights: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """(m, d) or (S, m, d) → (S, m)."""
        if z.ndim == 2:
            return self.weights @ self.factor.cross(self.centers, z)
        flat = self.factor.cross(self.centers, z.reshape(-1, z.shape[-1]))
        return torch.einsum("sc,csm->sm", self.weights, flat.reshape(-1, *z.shape[:-1]))


@short
@dataclass(frozen=True, slots=True, eq=False)
class FunctionSamples:
    """S posterior functions of p outputs: a callable that is the same function at every call.

    Attributes:
        num: S.
        approximate: whether the prior draws are (see the module).
        terms: per output, the summands of the sample.
    """

    num: int
    approximate: bool
    dim: int
    terms: tuple[tuple[_Fourier | _Slopes | _Sections, ...], ...]

    def __call__(self, z: Tensor, *, chunk: int = 4096) -> Tensor:
        """Values at shared points z (m, d), or at each function's own points z (S, m, d): (S, m, p).

        Differentiable in z.
        """
        z = _require.points("FunctionSamples", "z", z, self.dim)
        if z.ndim not in (2, 3) or (z.ndim == 3 and z.shape[0] != self.num):
            expected = f"z of shape (m, {self.dim}) or ({self.num}, m, {self.dim})"
            raise _require.fail("FunctionSamples", expected, f"shape {tuple(z.shape)}")
        step = chunk if z.ndim == 2 else max(1, chunk // self.num)
        parts = [self._values(part) for part in z.split(step, dim=-2)]
        return torch.cat(parts, dim=-2)

    def _values(self, z: Tensor) -> Tensor:
        columns = []
        for output in self.terms:
            total = output[0](z)
            for term in output[1:]:
                total = total + term(z)
            columns.append(total)
        return torch.stack(columns, dim=-1)


@plain_tensors
def sample_functions(
    model: GP,
    num: int,
    *,
    generator: torch.Generator,
    method: Literal["features", "centers"] = "features",
    num_features: int = 1024,
    centers: Tensor | None = None,
) -> FunctionSamples:
    """`num` functions from the posterior of the residual, by Matheron's rule (see the module for what is
    exact).

    Args:
        model: the posterior, with or without data.
        num: S.
        generator: source of randomness: same state, same functions.
        method: "features" (approximate; sums of RBF, Matérn and linear kernels) or "centers" (any kernel).
        num_features: F, per stationary part.
        centers: (m, d), for "centers".
    """
    where = "sample_functions"
    _require.count(where, "num", num)
    _require.count(where, "num_features", num_features)
    _require.one_of(where, "method", method, ("features", "centers"))
    dim = model.nx + model.nu
    if method == "centers":
        if centers is None:
            raise _require.fail(where, "centers of shape (m, d) for method 'centers'", "None")
        centers = _require.last_dim(where, "centers", _require.finite(where, "centers", centers), dim)
        if centers.ndim != 2:
            raise _require.fail(where, "centers of shape (m, d)", f"shape {tuple(centers.shape)}")
    terms = []
    with torch.no_grad():
        for j, i in enumerate(model._index):
            factor = model._factors[i]
            if centers is not None and method == "centers":
                prior = _prior_sections(factor, model.inputs, centers, num, generator)
            else:
                prior = _prior_features(factor, dim, num, num_features, generator)
            terms.append((*prior, *_matheron(model, j, factor, prior, num, generator)))
    return FunctionSamples(num, method == "features", dim, tuple(terms))


def _matheron(
    model: GP, j: int, factor: Factor, prior: tuple, num: int, generator: torch.Generator
) -> tuple[_Sections, ...]:
    """The update k_n(·)ᵀ(K + λI)⁻¹(y − f(X) − ε) of every sample of output j."""
    if model.inputs is None or model.targets is None:
        return ()
    values = sum(term(model.inputs) for term in prior)
    noise = math.sqrt(factor.regularizer) * _randn(generator, num, model.num_data).to(model.inputs.device)
    noise = noise if model.noise_scale is None else noise * model.noise_scale
    gap = model.targets[:, j] - values - noise
    weights = torch.cholesky_solve(gap.mT, factor.lower).mT
    return (_Sections(factor, model.inputs, weights),)


def _prior_features(
    factor: Factor, dim: int, num: int, num_features: int, generator: torch.Generator
) -> tuple[_Fourier | _Slopes, ...]:
    if factor.form is None:
        got = kernels.describe(factor.kernel)
        raise _require.fail("sample_functions", "a sum of RBF, Matérn and linear kernels (or method 'centers')", got)
    terms: list[_Fourier | _Slopes] = []
    device = factor.store.lower.device
    for part in factor.form.parts:
        dims = torch.arange(dim) if part.dims is None else part.dims.cpu()
        if isinstance(part, kernels.Linear):
            slopes = torch.zeros(num, dim, dtype=torch.float64, device=device)
            slopes[:, dims] = (_randn(generator, num, len(dims)).to(device)) * part.variance.sqrt().to(device)
            terms.append(_Slopes(slopes))
            continue
        frequencies = _randn(generator, len(dims), num_features)
        if not math.isinf(part.nu):  # Student t: normal over √(χ²/dof), χ² with 2ν = 1, 3, 5 degrees of freedom
            dof = round(2 * part.nu)
            frequencies = frequencies / (_randn(generator, dof, num_features).square().sum(0) / dof).sqrt()
        scaled = torch.zeros(dim, num_features, dtype=torch.float64, device=device)
        lengthscale = part.lengthscale.expand(len(dims)).unsqueeze(-1).to(device)
        scaled[dims] = frequencies.to(device) / lengthscale
        phases = torch.rand(num_features, dtype=torch.float64, generator=generator, device=generator.device)
        weights = _randn(generator, num, num_features) * math.sqrt(2 * part.variance / num_features)
        terms.append(_Fourier(scaled, (2 * math.pi * phases).to(device), weights.to(device)))
    return tuple(terms)


def _prior_sections(
    factor: Factor, inputs: Tensor | None, centers: Tensor, num: int, generator: torch.Generator
) -> tuple[_Sections, ...]:
    """Draws with values K^{1/2}ξ at centres and data: weights QΛ^{−1/2}ξ over the eigenvalues of K above
    rounding.
    """
    points = centers if inputs is None else torch.cat([centers, inputs])
    gram = factor.cross(points, points)
    values, vectors = torch.linalg.eigh(0.5 * (gram + gram.mT))
    kept = values > 1e-13 * values[-1]
    noise = _randn(generator, num, points.shape[0]).to(points.device)
    weights = (noise[:, kept] / values[kept].sqrt()) @ vectors[:, kept].mT
    return (_Sections(factor, points, weights),)
