"""Exact Gaussian-process dynamics model (theory §2).

Each learned output j of the residual x⁺ − prior(x, u) has its own frozen kernel k_j and regulariser λ_j:

    μ(z) = k_n(z)ᵀ (K_n + λI)⁻¹ y,      σ²(z) = k(z, z) − k_n(z)ᵀ (K_n + λI)⁻¹ k_n(z)   (latent, without noise).

Certified numbers come from our own Cholesky factor: no jitter, no variance floor, no iterative solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, kernels, linalg
from gpsafe.data import Transitions
from gpsafe.models.base import Prediction

Prior = Callable[[Tensor, Tensor], Tensor]


def zero_prior(x: Tensor, u: Tensor) -> Tensor:
    """Known mean 0."""
    return torch.zeros_like(x)


def identity_prior(x: Tensor, u: Tensor) -> Tensor:
    """Known mean x: the model learns state differences."""
    return x


class _Store:
    """Rows of L and L⁻¹ in a growable buffer that successive posteriors share.

    Appending data only adds rows, so an older posterior's view [:n, :n] never changes. A posterior may append in
    place only if it is the newest one on its buffer; otherwise it works on a copy.
    """

    __slots__ = ("inverse", "inverse_rows", "lower", "rows")

    def __init__(self, capacity: int, like: Tensor) -> None:
        self.lower = torch.zeros(capacity, capacity, dtype=torch.float64, device=like.device)
        self.inverse: Tensor | None = None
        self.rows = 0
        self.inverse_rows = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """Cholesky factor of K_n + λI for one kernel, appended block by block."""

    kernel: Kernel
    regularizer: float
    store: _Store
    n: int

    @property
    def lower(self) -> Tensor:
        return self.store.lower[: self.n, : self.n]

    @property
    def inverse(self) -> Tensor:
        """L⁻¹, computed at first use and from then on appended to."""
        store = self.store
        if store.inverse is None:
            store.inverse = torch.zeros_like(store.lower)
            store.inverse_rows = 0
        if store.inverse_rows < self.n:
            store.inverse[: self.n, : self.n] = linalg.inverse_lower(self.lower)
            store.inverse_rows = self.n
        return store.inverse[: self.n, : self.n]

    def append(self, old: Tensor, new: Tensor) -> _Factor:
        """Factor for inputs [old; new]: L' = [[L, 0], [Bᵀ, C]] with B = L⁻¹K₁₂ and CCᵀ = K₂₂ + λI − BᵀB."""
        n, m = self.n, new.shape[0]
        store = self.store
        if n + m > store.lower.shape[0] or store.rows != n:
            store = _Store(max(64, 2 * (n + m)), new)
            store.lower[:n, :n] = self.lower
            store.rows = n
            if self.store.inverse is not None and self.store.inverse_rows >= n:
                store.inverse = torch.zeros_like(store.lower)
                store.inverse[:n, :n] = self.store.inverse[:n, :n]
                store.inverse_rows = n
        corner = kernels.cross(self.kernel, new, new)
        corner = corner + self.regularizer * torch.eye(m, dtype=corner.dtype, device=corner.device)
        if n:
            block = linalg.solve_lower(store.lower[:n, :n], kernels.cross(self.kernel, old, new))
            corner = corner - block.T @ block
            store.lower[n : n + m, :n] = block.T
        small = linalg.cholesky(corner, "GP.condition")
        store.lower[n : n + m, n : n + m] = small
        if store.inverse is not None and store.inverse_rows >= n:
            small_inverse = linalg.inverse_lower(small)
            if n:
                rows = store.lower[n : n + m, :n] @ store.inverse[:n, :n]
                store.inverse[n : n + m, :n] = -small_inverse @ rows
            store.inverse[n : n + m, n : n + m] = small_inverse
            store.inverse_rows = n + m
        store.rows = n + m
        return _Factor(self.kernel, self.regularizer, store, n + m)


@dataclass(frozen=True, slots=True, eq=False)
class GP:
    """Exact GP over z = (x, u) for the residual of the learned outputs. Build with :meth:`GP.create`.

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
    _factors: tuple[_Factor, ...] = ()
    _index: tuple[int, ...] = ()
    _cache: dict[str, Any] | None = None

    @staticmethod
    def create(
        kernel: Kernel | Sequence[Kernel],
        regularizer: Tensor | Sequence[float] | float,
        *,
        nx: int,
        nu: int,
        noise_std: Tensor | Sequence[float] | float,
        outputs: Sequence[int] | None = None,
        prior: Prior = zero_prior,
        mode: Literal["theory", "practical"] = "theory",
    ) -> GP:
        """A prior model without data.

        Args:
            kernel: one kernel for all learned outputs (one shared factorisation), or one per output.
            regularizer: λ > 0, scalar or one per learned output.
            nx, nu: state and input dimensions.
            noise_std: aleatoric standard deviation, scalar or (nx,), ≥ 0.
            outputs: learned state indices (default: all).
            prior: known mean.
            mode: see the class.
        """
        _require.count("GP", "nx", nx)
        _require.count("GP", "nu", nu, minimum=0)
        _require.one_of("GP", "mode", mode, ("theory", "practical"))
        learned = tuple(range(nx)) if outputs is None else tuple(outputs)
        if len(set(learned)) != len(learned) or not learned or not all(0 <= j < nx for j in learned):
            raise _require.fail("GP", f"distinct output indices in 0..{nx - 1}", learned)
        given = [kernel] * len(learned) if isinstance(kernel, Kernel) else list(kernel)
        if len(given) != len(learned):
            raise _require.fail("GP", f"{len(learned)} kernels", len(given))
        lam = _require.positive("GP", "regularizer", regularizer).expand(len(learned)).clone()
        noise = _require.nonnegative("GP", "noise_std", noise_std).expand(nx).clone()
        factors: list[_Factor] = []
        index: list[int] = []
        seen: dict[tuple[int, float], int] = {}
        frozen: list[Kernel] = []
        for source, value in zip(given, lam.tolist(), strict=True):
            key = (id(source), value)
            if key not in seen:
                seen[key] = len(factors)
                factors.append(_Factor(kernels.freeze(source), value, _Store(64, lam), 0))
            index.append(seen[key])
            frozen.append(factors[seen[key]].kernel)
        return GP(
            tuple(frozen), lam, noise, nx, nu, learned, prior, mode, None, None, tuple(factors), tuple(index), {}
        )

    # ------------------------------------------------------------------ data
    @property
    def num_data(self) -> int:
        """n, the number of transitions seen."""
        return 0 if self.inputs is None else self.inputs.shape[0]

    @property
    def num_outputs(self) -> int:
        """p, the number of learned outputs."""
        return len(self.outputs)

    def condition(self, data: Transitions) -> GP:
        """Posterior after `data`, by appending to the Cholesky factor (O(n²m), no refactorisation)."""
        if data.x.shape[-1] != self.nx or data.u.shape[-1] != self.nu:
            got = (data.x.shape[-1], data.u.shape[-1])
            raise _require.fail("GP.condition", f"transitions with (nx, nu) = ({self.nx}, {self.nu})", got)
        residual = (data.x_next - self.prior(data.x, data.u))[:, list(self.outputs)]
        return self.condition_on(data.z, residual)

    def condition_on(self, z: Tensor, y: Tensor) -> GP:
        """Posterior after residual observations y (m, p) at z (m, nx + nu)."""
        z = _require.last_dim("GP.condition", "z", _require.finite("GP.condition", "z", z), self.nx + self.nu)
        y = _require.finite("GP.condition", "y", y)
        if z.ndim != 2:
            raise _require.fail("GP.condition", "z of shape (m, d)", f"shape {tuple(z.shape)}")
        _require.shape("GP.condition", "y", y, (z.shape[0], self.num_outputs))
        old = z[:0] if self.inputs is None else self.inputs
        factors = tuple(factor.append(old, z) for factor in self._factors)
        inputs = torch.cat([old, z])
        targets = y if self.targets is None else torch.cat([self.targets, y])
        return replace(self, inputs=inputs, targets=targets, _factors=factors, _cache={})

    # ------------------------------------------------------------- posterior
    def _weights(self) -> Tensor:
        """α_j = (K_j + λ_j I)⁻¹ y_j, shape (n, p)."""
        assert self._cache is not None and self.targets is not None
        if "weights" not in self._cache:
            columns = [
                torch.cholesky_solve(self.targets[:, j : j + 1], self._factors[i].lower)
                for j, i in enumerate(self._index)
            ]
            self._cache["weights"] = torch.cat(columns, dim=-1)
        return self._cache["weights"]

    def posterior(self, z: Tensor, *, chunk: int = 512) -> tuple[Tensor, Tensor]:
        """Residual mean and latent std at z (*b, d), both (*b, p). Differentiable in z.

        Chunks of points keep the working set in cache; the variance uses the row-blocked triangular product with L⁻¹.
        """
        _require.last_dim("GP.posterior", "z", z, self.nx + self.nu)
        flat = z.reshape(-1, z.shape[-1])
        parts = [self._posterior(part) for part in flat.split(chunk)] or [self._posterior(flat)]
        mean = torch.cat([part[0] for part in parts]).reshape(*z.shape[:-1], self.num_outputs)
        std = torch.cat([part[1] for part in parts]).reshape(*z.shape[:-1], self.num_outputs)
        return mean, std

    def _posterior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        means: list[Tensor] = []
        variances: dict[int, Tensor] = {}
        grams: dict[int, Tensor] = {}
        for j, i in enumerate(self._index):
            factor = self._factors[i]
            if i not in variances:
                variances[i] = kernels.diagonal(factor.kernel, z)
                if self.inputs is not None:
                    grams[i] = kernels.cross(factor.kernel, self.inputs, z)
                    explained = linalg.triangular_square_norms(factor.inverse, grams[i])
                    variances[i] = (variances[i] - explained).clamp_min(0.0)
            means.append(self._weights()[:, j] @ grams[i] if i in grams else torch.zeros_like(variances[i]))
        stds = [_safe_sqrt(variances[i]) for i in self._index]
        return torch.stack(means, dim=-1), torch.stack(stds, dim=-1)

    def prior_variance(self, z: Tensor) -> Tensor:
        """k_j(z, z), (*b, d) → (*b, p)."""
        return torch.stack([kernels.diagonal(kernel, z) for kernel in self.kernels], dim=-1)

    def residual_mean(self, z: Tensor) -> Tensor:
        """Residual mean only, (*b, d) → (*b, p): O(n) a point."""
        flat = _require.last_dim("GP.residual_mean", "z", z, self.nx + self.nu).reshape(-1, z.shape[-1])
        if self.inputs is None:
            return torch.zeros(*z.shape[:-1], self.num_outputs, dtype=z.dtype, device=z.device)
        columns = [
            kernels.cross(self._factors[i].kernel, flat, self.inputs) @ self._weights()[:, j]
            for j, i in enumerate(self._index)
        ]
        return torch.stack(columns, dim=-1).reshape(*z.shape[:-1], self.num_outputs)

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """x⁺ = prior(x, u) + residual, shapes (*b, nx), (*b, nu); std is 0 for outputs that are known."""
        _require.last_dim("GP.predict", "x", x, self.nx)
        _require.last_dim("GP.predict", "u", u, self.nu)
        mean, std = self.posterior(torch.cat([x, u], dim=-1))
        return Prediction(self.prior(x, u) + self.embed(mean), self.embed(std), self.noise_std.to(x.device))

    def embed(self, residual: Tensor) -> Tensor:
        """Puts learned outputs (*b, p) into state coordinates (*b, nx), zero elsewhere."""
        if self.outputs == tuple(range(self.nx)):
            return residual
        full = torch.zeros(*residual.shape[:-1], self.nx, dtype=residual.dtype, device=residual.device)
        full[..., list(self.outputs)] = residual
        return full

    def covariance(self, z: Tensor) -> Tensor:
        """Joint latent posterior covariance at z (m, d), shape (p, m, m)."""
        result = []
        for i in self._index:
            factor = self._factors[i]
            prior = kernels.cross(factor.kernel, z, z)
            if self.inputs is not None:
                block = linalg.solve_lower(factor.lower, kernels.cross(factor.kernel, self.inputs, z))
                prior = prior - block.T @ block
            result.append(prior)
        return torch.stack(result)

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the residual mean and of the latent std at z (m, d): both (m, p, d).

        The std is not differentiable where it vanishes; its gradient is reported as 0 there.
        """
        leaf = z.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            mean, std = self.posterior(leaf)
            rows = [
                torch.autograd.grad(values[:, j].sum(), leaf, retain_graph=True)[0]
                for values in (mean, std)
                for j in range(self.num_outputs)
            ]
        p = self.num_outputs
        return torch.stack(rows[:p], dim=1), torch.stack(rows[p:], dim=1)

    # -------------------------------------------------------- scalar quantities
    def info_gain(self) -> Tensor:
        """g_n = ½ log det(I + K_n/λ) per learned output, (p,)."""
        values = [
            factor.lower.diagonal().log().sum() - 0.5 * factor.n * math.log(factor.regularizer)
            for factor in self._factors
        ]
        return torch.stack([values[i] for i in self._index])

    def log_marginal_likelihood(self) -> Tensor:
        """log N(y; 0, K + λI) per learned output, (p,) (λ read as noise variance)."""
        if self.inputs is None or self.targets is None:
            return torch.zeros(self.num_outputs, dtype=torch.float64)
        fit = (self.targets * self._weights()).sum(0)
        logdet = torch.stack([self._factors[i].lower.diagonal().log().sum() for i in self._index])
        return -0.5 * fit - logdet - 0.5 * self.num_data * math.log(2 * math.pi)

    def posterior_norm(self) -> Tensor:
        """‖μ_n‖_k = √(αᵀKα) per learned output, (p,): αᵀKα = αᵀy − λ‖α‖²."""
        if self.targets is None:
            return torch.zeros(self.num_outputs, dtype=torch.float64)
        weights = self._weights()
        square = (weights * self.targets).sum(0) - self.regularizer * weights.square().sum(0)
        return square.clamp_min(0.0).sqrt()


def _safe_sqrt(value: Tensor) -> Tensor:
    """√value with gradient 0 (not inf) at 0."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, torch.ones_like(value)).sqrt(), torch.zeros_like(value))
