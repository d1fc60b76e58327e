"""Exact Gaussian-process dynamics model (theory §2.1).

Each learned output j of the residual x⁺ − prior(x, u) has its own frozen kernel k_j and regulariser λ_j:

    μ(z) = k_n(z)ᵀ (K_n + λI)⁻¹ y,      σ²(z) = k(z, z) − k_n(z)ᵀ (K_n + λI)⁻¹ k_n(z)   (latent, without
    noise).

Certified numbers come from our own Cholesky factor: no jitter, no variance floor, no iterative solver.

**Noise known per observation.** If observation i has w_i times the noise that λ stands for, w_i ≥ 1, then λI becomes
λ diag(w_i²). This is the posterior of the scaled rows y_i/w_i of the function f(z)/w, which has the kernel
k(z, z′)/(w w′) and ‖·‖ ≤ ‖f‖_k on points (z, w), evaluated at w = 1; with noise ε_i/w_i all rows are alike. So a theorem
for equal noise that holds for every kernel and every predictable choice of points (w_i chosen before ε_i) holds here
with g_n = ½ log det(I + W⁻¹K_nW⁻¹/λ), which is what `info_gain` returns. Bounds that need more refuse such a model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.models import _fast, _gp_checks, _gradient
from gpsafe.models._factor import Factor
from gpsafe.models._prior import Prior, check_prior, identity_prior, known_part, with_derivatives, zero_prior
from gpsafe.models.base import Prediction
from gpsafe.rkhs import kernels

__all__ = ["GP", "Prior", "identity_prior", "zero_prior"]


@short
@dataclass(frozen=True, slots=True, eq=False)
class GP:
    """Exact GP over z = (x, u) for the residual of the learned outputs. Build with :meth:`GP.create`; a trained GPyTorch or
    BoTorch model becomes one by `gpsafe.models.from_gpytorch`.

    Attributes:
        kernels: one frozen kernel per learned output (p of them).
        regularizer: λ, (p,). In theory mode fixed before any data.
        noise_std: aleatoric standard deviation of every state, (nx,).
        nx, nu: dimensions; nu = 0 makes this plain regression on z = x.
        outputs: indices of the learned states; the others equal the prior exactly, with std 0.
        prior: known mean (x, u) → (*b, nx).
        mode: "theory" (kernel, λ, noise frozen before data) or "practical" (may have been fitted: all that it
            outputs is heuristic).
        inputs: (n, nx + nu) or None before any data.
        targets: (n, p) residuals.
        noise_scale: (n,), w_i ≥ 1 of every observation (see the module), or None: all 1.
    """

    kernels: tuple[Kernel, ...]
    regularizer: Tensor
    noise_std: Tensor
    nx: int
    nu: int
    outputs: tuple[int, ...]
    prior: Prior
    mode: Literal["theory", "practical"]
    inputs: Tensor | None = None
    targets: Tensor | None = None
    noise_scale: Tensor | None = None
    _factors: tuple[Factor, ...] = ()
    _index: tuple[int, ...] = ()
    _cache: dict[str, Any] | None = None

    @staticmethod
    @_gp_checks.plain_tensors
    def create(
        kernel: Kernel | Sequence[Kernel],
        regularizer: Tensor | Sequence[float] | float,
        *,
        nx: int,
        nu: int,
        noise_std: Tensor | Sequence[float] | float,
        outputs: Sequence[int] | None = None,
        prior: Prior = zero_prior,
        mode: Literal["theory", "practical"] | None = None,
    ) -> GP:
        """A prior model without data.

        Args:
            kernel: one kernel for all learned outputs (one shared factorisation), or one per output.
            regularizer: λ > 0, scalar or one per learned output.
            nx, nu: state and input dimensions.
            noise_std: aleatoric standard deviation, scalar or (nx,), ≥ 0.
            outputs: learned state indices (default: all).
            prior: known mean, (*b, nx), (*b, nu) → (*b, nx): 0 by default. `identity_prior` (x itself), `gpsafe.AffineKnown`
                and the stock plants' own state the derivatives that certified costs need; a plain function does not.
            mode: see the class. Default: "theory" if every kernel is as :mod:`gpsafe.rkhs.kernels` built it
                (`gpsafe.rkhs.kernels.is_stated`), "practical" otherwise, since a kernel that came from elsewhere (a fitted
                BoTorch or GPyTorch model, `fit_hyperparameters`) may have been trained on these very data. Passing
                mode="theory" declares that kernel and λ were fixed before the data. That is all anyone can check:
                hyperparameters that were fitted, then typed in as numbers, look the same.

        Raises:
            ValueError: on arguments outside these ranges, a kernel that does not take nx + nu inputs, or a prior whose
                values have another shape than x.
        """
        _require.count("GP", "nx", nx)
        _require.count("GP", "nu", nu, minimum=0)
        if mode is not None:
            _require.one_of("GP", "mode", mode, ("theory", "practical"))
        learned = _require.positions("GP", "outputs", slice(None) if outputs is None else outputs, nx)
        given = (
            [kernel] * len(learned) if isinstance(kernel, Kernel) else list(_require.listing("GP", "kernel", kernel))
        )
        for one in given:
            _require.kind("GP", "kernel", one, Kernel)
        if len(given) != len(learned):
            raise _require.fail("GP", f"{len(learned)} kernels", len(given))
        lam = _gp_checks.per_output("regularizer", _require.positive("GP", "regularizer", regularizer), len(learned))
        noise = _gp_checks.per_output("noise_std", _require.nonnegative("GP", "noise_std", noise_std), nx)
        check_prior("GP", prior, nx, nu)
        if mode is None:
            mode = "theory" if all(kernels.is_stated(k) for k in given) else "practical"
        factors: list[Factor] = []
        index: list[int] = []
        seen: dict[tuple[int, float], int] = {}
        frozen: list[Kernel] = []
        for source, value in zip(given, lam.tolist(), strict=True):
            key = (id(source), value)
            if key not in seen:
                seen[key] = len(factors)
                _gp_checks.check_kernel(source, nx + nu)
                factors.append(Factor.empty(kernels.freeze(source), value, lam.device))
            index.append(seen[key])
            frozen.append(factors[seen[key]].kernel)
        return GP(
            tuple(frozen),
            lam,
            noise,
            nx,
            nu,
            learned,
            with_derivatives(prior, nx, nu),
            mode,
            _factors=tuple(factors),
            _index=tuple(index),
            _cache={},
        )

    @staticmethod
    def regression(
        kernel: Kernel, *, dim: int, noise_std: float, mode: Literal["theory", "practical"] | None = None
    ) -> GP:
        """Plain regression y = f(z) + noise, z ∈ R^dim, with one output, zero prior and λ = noise_std²: see :meth:`create`.

        Condition it with :meth:`condition_on`, ask it with :meth:`posterior`.
        """
        noise = float(_require.positive("GP.regression", "noise_std", _require.number("GP", "noise_std", noise_std)))
        return GP.create(kernel, noise * noise, nx=dim, nu=0, noise_std=noise, outputs=[0], mode=mode)

    # ------------------------------------------------------------------ data
    @property
    def num_data(self) -> int:
        """n, the number of transitions seen."""
        return 0 if self.inputs is None else self.inputs.shape[0]

    @property
    def num_outputs(self) -> int:
        """p, the number of learned outputs."""
        return len(self.outputs)

    def condition(self, data: Transitions, *, noise_scale: Tensor | None = None) -> GP:
        """Posterior after `data`, by appending to the Cholesky factor (O(n²m), no refactorisation).

        Append what is new, every observation of it, once: `ConfidenceSet.update` refuses what is not such a continuation.
        `noise_scale`: see :meth:`condition_on`.
        """
        if data.x.shape[-1] != self.nx or data.u.shape[-1] != self.nu:
            got = (data.x.shape[-1], data.u.shape[-1])
            raise _require.fail("GP.condition", f"transitions with (nx, nu) = ({self.nx}, {self.nu})", got)
        residual = data.x_next - known_part("GP.condition", self.prior, data.x, data.u)
        return self.condition_on(data.z, residual[:, list(self.outputs)], noise_scale=noise_scale)

    @_gp_checks.plain_tensors
    def condition_on(self, z: Tensor, y: Tensor, *, noise_scale: Tensor | None = None) -> GP:
        """Posterior after residual observations y (m, p) at z (m, nx + nu). This model is unchanged.

        Args:
            z, y: see above.
            noise_scale: (m,), w_i ≥ 1: observation i has w_i times the noise that λ (and a bound's `subgaussian`) stands
                for, in all outputs; known before the observation is made. Default: 1.
        """
        z = _require.finite("GP.condition", "z", _require.points("GP.condition", "z", z, self.nx + self.nu))
        y = _require.finite("GP.condition", "y", _require.floats("GP.condition", "y", y))
        if z.ndim != 2:
            raise _require.fail("GP.condition", "z of shape (m, d)", f"shape {tuple(z.shape)}")
        _require.shape("GP.condition", "y", y, (z.shape[0], self.num_outputs))
        z, y = z.detach().clone(), y.detach().clone()
        scale = _gp_checks.noise_scale(noise_scale, z)
        if self.inputs is None and self.regularizer.device != z.device:
            return self.to(z.device).condition_on(z, y, noise_scale=scale)
        old = z[:0] if self.inputs is None else self.inputs
        if old.device != z.device or y.device != z.device:
            raise _require.fail("GP.condition", f"data on {old.device}", (str(z.device), str(y.device)))
        with torch.no_grad():
            factors = tuple(factor.append(old, z, scale) for factor in self._factors)
        targets = y if self.targets is None else torch.cat([self.targets, y])
        scales = self.noise_scale
        if scales is not None or scale is not None:
            scales = torch.cat([torch.ones_like(v[:, 0]) if s is None else s for v, s in ((old, scales), (z, scale))])
        return replace(
            self, inputs=torch.cat([old, z]), targets=targets, noise_scale=scales, _factors=factors, _cache={}
        )

    def reweighted(self, factor: float) -> GP:
        """The posterior of the same data for factor·λ, computed once (theory §2.6: each is a bound on the event of one)."""
        _require.positive("GP.reweighted", "factor", factor)
        cache, key = self._cache if self._cache is not None else {}, f"reweighted-{factor}"
        if key not in cache:
            device = self.regularizer.device
            factors = tuple(Factor.empty(f.kernel, f.regularizer * factor, device) for f in self._factors)
            bare = replace(
                self, regularizer=self.regularizer * factor, inputs=None, targets=None, noise_scale=None,
                _factors=factors, _cache={},
            )  # fmt: skip
            if self.inputs is not None and self.targets is not None:
                bare = bare.condition_on(self.inputs, self.targets, noise_scale=self.noise_scale)
            cache[key] = bare
        return cache[key]

    def to(self, device: torch.device | str) -> GP:
        """The same posterior on another device. Conditioning an empty model on data moves it to the data's
        device.
        """
        target = torch.device(device)
        factors = tuple(f.to(target, copy.deepcopy(f.kernel).to(target)) for f in self._factors)
        return replace(
            self,
            kernels=tuple(factors[i].kernel for i in self._index),
            regularizer=self.regularizer.to(target),
            noise_std=self.noise_std.to(target),
            inputs=None if self.inputs is None else self.inputs.to(target),
            targets=None if self.targets is None else self.targets.to(target),
            noise_scale=None if self.noise_scale is None else self.noise_scale.to(target),
            _factors=factors,
            _cache={},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickling and copies: everything but what can be recomputed.

        Not `__getstate__`, which dataclasses with slots replace by their own before Python 3.11.4.
        """
        return _revived, (type(self), {name: getattr(self, name) for name in self.__slots__ if name != "_cache"})

    # ------------------------------------------------------------- posterior
    def _query(self, where: str, z: Tensor) -> Tensor:
        return _require.points(where, "z", z, self.nx + self.nu)

    @property
    @_gp_checks.plain_tensors
    def weights(self) -> Tensor:
        """α_j = (K_j + λ_j I)⁻¹ y_j, shape (n, p)."""
        assert self._cache is not None
        assert self.targets is not None
        if "weights" not in self._cache:
            weights = torch.empty_like(self.targets)
            with torch.no_grad():
                for i, factor in enumerate(self._factors):
                    outputs = self._outputs_of(i)
                    half = linalg.substitute(factor.lower, self.targets[:, outputs])
                    weights[:, outputs] = linalg.substitute(factor.lower, half, adjoint=True)
            self._cache["weights"] = weights
        return self._cache["weights"]

    def _outputs_of(self, i: int) -> list[int]:
        """The outputs that share factor i."""
        return [j for j, k in enumerate(self._index) if k == i]

    @_gp_checks.plain_tensors
    def _evaluators(self) -> list[_fast.Evaluator]:
        assert self._cache is not None
        assert self.inputs is not None
        if "evaluators" not in self._cache:
            with torch.no_grad():
                self._cache["evaluators"] = [
                    _fast.Evaluator.build(factor, self.inputs, self.weights[:, self._outputs_of(i)])
                    for i, factor in enumerate(self._factors)
                ]
        return self._cache["evaluators"]

    def posterior(self, z: Tensor, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Residual mean and latent std at z (*b, d), both (*b, p). Differentiable in z.

        Points may be tensors, NumPy arrays or lists, of any width, here and wherever a model is asked; numbers out are float64.

        Chunks of points keep the working set in cache; the variance comes from a triangular product with L⁻¹,
        never from K⁻¹. A NaN in z gives NaN. Rounding: see :mod:`gpsafe.confidence.rounding`.
        """
        z = self._query("GP.posterior", z)
        flat = z.reshape(-1, z.shape[-1])
        chunk = _fast.chunk_for(self.num_data) if chunk is None else _require.count("GP.posterior", "chunk", chunk)
        shape = (*z.shape[:-1], self.num_outputs)
        if self.inputs is not None and _fast.usable(flat):
            mean, std = self._posterior_fast(flat, chunk)
            return mean.reshape(shape), std.reshape(shape)
        parts = [self._posterior(part) for part in flat.split(chunk)]
        mean = torch.cat([part[0] for part in parts])
        return mean.reshape(shape), torch.cat([part[1] for part in parts]).reshape(shape)

    def _posterior_fast(self, flat: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        flat = flat.detach()
        mean = torch.empty(flat.shape[0], self.num_outputs, dtype=torch.float64)
        std = torch.empty_like(mean)
        means, stds = mean.numpy(), std.numpy()
        buffer = _fast.scratch(min(chunk, flat.shape[0]), self.num_data)
        with torch.no_grad():
            for i, evaluate in enumerate(self._evaluators()):
                outputs = self._outputs_of(i)
                for start in range(0, flat.shape[0], chunk):
                    part, rows = flat[start : start + chunk], slice(start, start + chunk)
                    values, explained = evaluate(part, buffer)
                    deviation = evaluate.std(part, explained)
                    for k, j in enumerate(outputs):
                        means[rows, j], stds[rows, j] = values[:, k], deviation
        return mean, std

    def _posterior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        means: list[Tensor] = []
        variances: dict[int, Tensor] = {}
        grams: dict[int, Tensor] = {}
        for j, i in enumerate(self._index):
            factor = self._factors[i]
            if i not in variances:
                variances[i] = factor.diagonal(z)
                if self.inputs is not None:
                    grams[i] = factor.cross(self.inputs, z)
                    explained = linalg.triangular_square_norms(factor.inverse, grams[i])
                    variances[i] = (variances[i] - explained).clamp_min(0.0)
            means.append(self.weights[:, j] @ grams[i] if i in grams else torch.zeros_like(variances[i]))
        stds = [linalg.safe_sqrt(variances[i]) for i in self._index]
        return torch.stack(means, dim=-1), torch.stack(stds, dim=-1)

    def prior_variance(self, z: Tensor) -> Tensor:
        """k_j(z, z), (*b, d) → (*b, p)."""
        z = self._query("GP.prior_variance", z)
        return torch.stack([self._factors[i].diagonal(z) for i in self._index], dim=-1)

    def mean_error(self, z: Tensor) -> Tensor:
        """Bound on |mean − exact posterior mean|, (*b, d) → (*b, p): 0, for this model is exact."""
        z = self._query("GP.mean_error", z)
        return torch.zeros(*z.shape[:-1], self.num_outputs, dtype=torch.float64, device=z.device)

    def residual_mean(self, z: Tensor, *, chunk: int = 1024) -> Tensor:
        """Residual mean only, (*b, d) → (*b, p): O(n) a point."""
        z = self._query("GP.residual_mean", z)
        flat = z.reshape(-1, z.shape[-1])
        if self.inputs is None:
            return torch.zeros(*z.shape[:-1], self.num_outputs, dtype=z.dtype, device=z.device)
        weights, parts = self.weights, []
        for part in flat.split(chunk):
            grams = [factor.cross(self.inputs, part) for factor in self._factors]
            parts.append(torch.stack([weights[:, j] @ grams[i] for j, i in enumerate(self._index)], dim=-1))
        return torch.cat(parts).reshape(*z.shape[:-1], self.num_outputs)

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """x⁺ = prior(x, u) + residual, shapes (*b, nx), (*b, nu); std is 0 for outputs that are known."""
        x = _require.points("GP.predict", "x", x, self.nx)
        u = _require.points("GP.predict", "u", u, self.nu)
        mean, std = self.posterior(torch.cat([x, u], dim=-1))
        known = known_part("GP.predict", self.prior, x, u)
        return Prediction(known + self.embed(mean), self.embed(std), self.noise_std.to(x.device))

    def embed(self, residual: Tensor) -> Tensor:
        """Puts learned outputs (*b, p) into state coordinates (*b, nx), zero elsewhere."""
        if self.outputs == tuple(range(self.nx)):
            return residual
        full = torch.zeros(*residual.shape[:-1], self.nx, dtype=residual.dtype, device=residual.device)
        full[..., list(self.outputs)] = residual
        return full

    def covariance(self, z: Tensor) -> Tensor:
        """Joint latent posterior covariance at z (*b, m, d), shape (*b, p, m, m). Differentiable in z."""
        z = self._query("GP.covariance", z)
        if z.ndim < 2:
            raise _require.fail("GP.covariance", "z of shape (*b, m, d)", f"shape {tuple(z.shape)}")
        flat = z.reshape(-1, z.shape[-1])
        result = []
        for factor in self._factors:
            joint = factor.cross(z, z)
            if self.inputs is not None:
                half = (factor.cross(self.inputs, flat).mT @ factor.inverse.mT).reshape(*z.shape[:-1], self.num_data)
                joint = joint - half @ half.mT
            result.append(joint)
        return torch.stack([result[i] for i in self._index], dim=-3)

    def gradient(self, z: Tensor, *, chunk: int = 256) -> tuple[Tensor, Tensor]:
        """Gradients of the residual mean and of the latent std at z (m, d): both (m, p, d).

        Closed forms for RBF, Matérn 3/2 and 5/2, automatic differentiation otherwise. The std is not
        differentiable where it vanishes; its gradient is reported as 0 there.
        """
        z = self._query("GP.gradient", z).detach()
        if z.ndim != 2:
            raise _require.fail("GP.gradient", "z of shape (m, d)", f"shape {tuple(z.shape)}")
        return _gradient.posterior_gradient(self, z, chunk)

    # -------------------------------------------------------- scalar quantities
    def info_gain(self) -> Tensor:
        """g_n = ½ log det(I + K_n/λ) per learned output, (p,); of the scaled rows where noise differs (see the module)."""
        values = [
            factor.lower.diagonal().log().sum() - 0.5 * factor.n * math.log(factor.regularizer)
            for factor in self._factors
        ]
        total = torch.stack([values[i] for i in self._index])
        return total if self.noise_scale is None else total - self.noise_scale.log().sum()

    def log_marginal_likelihood(self) -> Tensor:
        """log N(y; 0, K + λI) per learned output, (p,) (λ read as noise variance, times the squared noise scales)."""
        if self.inputs is None or self.targets is None:
            return torch.zeros(self.num_outputs, dtype=torch.float64)
        fit = (self.targets * self.weights).sum(0)
        logdet = torch.stack([self._factors[i].lower.diagonal().log().sum() for i in self._index])
        return -0.5 * fit - logdet - 0.5 * self.num_data * math.log(2 * math.pi)

    def posterior_norm(self) -> Tensor:
        """An upper bound, tight up to rounding, of ‖μ_n‖_k = √(αᵀKα) per learned output, (p,).

        αᵀKα = αᵀ((K + λW²)α − λW²α) = αᵀy − λ‖Wα‖² + αᵀr, where the Cholesky solve leaves a residual |r_i| ≤ ρ‖α‖₁,
        ρ = (γ_{3n+1} + ε) max_j (k_jj + λw_j²), with ε the error of a Gram entry, and the two inner products round by
        γ_{n+4}; W = diag(noise_scale).
        """
        if self.targets is None or self.inputs is None:
            return torch.zeros(self.num_outputs, dtype=torch.float64)
        weights, n = self.weights, self.num_data
        entries = [kernels.entry_error(factor.form or factor.kernel, self.inputs) for factor in self._factors]
        relative = weights.new_tensor([entries[i] for i in self._index]) + linalg.gamma(3 * n + 1)
        scales = torch.ones_like(weights[:, :1]) if self.noise_scale is None else self.noise_scale.unsqueeze(-1)
        ridge = self.regularizer * (scales * weights).square().sum(0)
        square = (weights * self.targets).sum(0) - ridge
        largest = self.prior_variance(self.inputs).amax(0) + self.regularizer * scales.max().square()
        products = (weights * self.targets).abs().sum(0) + ridge
        error = relative * largest * weights.abs().sum(0).square() + linalg.gamma(n + 4) * products
        return (square.clamp_min(0.0) + error).sqrt()


def _revived(kind: type[GP], state: dict[str, Any]) -> GP:
    """The model that `GP.__reduce__` took apart."""
    made = object.__new__(kind)
    for name, value in {**state, "_cache": {}}.items():
        object.__setattr__(made, name, value)
    return made
