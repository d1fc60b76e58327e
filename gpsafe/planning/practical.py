"""The practical model of the published experiments: features, standardised data, fitted hyperparameters.

Everything that comes out of a fit to the data is heuristic; no theorem covers it, and `GP.mode` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.models._gp_checks import differentiating
from gpsafe.models.base import Prediction
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

LOG_RANGE = (-3.0, 5.0)  # of log ℓ on standardised inputs: beyond it the likelihood is flat or the data are isolated


@short
@dataclass(frozen=True, slots=True, eq=False)
class FeatureGP:
    """x⁺ = x + g(φ(x), u) + w with a GP for every entry of g: a :class:`gpsafe.models.base.DynamicsModel`.

    Attributes:
        gp: practical-mode regression from (φ(x), u) to x⁺ − x.
        features: φ, (*b, nx) → (*b, m).
        log_lengthscale: fitted, of standardised inputs, (nx, m + nu).
        num_x, num_u: nx, nu.
        process_std: aleatoric, (nx,).
        shift: mean of x⁺ − x over the data, (nx,); the GP models what is left.
        data: what it was fitted to.
    """

    gp: GP
    features: Callable[[Tensor], Tensor]
    log_lengthscale: Tensor
    num_x: int
    num_u: int
    process_std: Tensor
    shift: Tensor
    data: Transitions | None = None

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.num_x

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.num_u

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """See the class."""
        mean, std = self.gp.posterior(torch.cat([self.features(x), u], dim=-1))
        return Prediction(x + self.shift + mean, std, self.process_std)

    def condition(self, data: Transitions) -> FeatureGP:
        """Refits to all data seen so far, warm-started."""
        joined = data if self.data is None else self.data + data
        return fit(joined, self.features, noise_std=self.process_std, log_lengthscale=self.log_lengthscale)


def angle_features(angles: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """φ(x): each angle replaced by its cosine and sine, (*b, nx) → (*b, nx + number of angles)."""

    def features(x: Tensor) -> Tensor:
        columns = []
        for i, column in enumerate(x.unbind(-1)):
            columns += [column.cos(), column.sin()] if i in angles else [column]
        return torch.stack(columns, dim=-1)

    return features


def untrained(
    features: Callable[[Tensor], Tensor], *, nx: int, nu: int, noise_std: Tensor, generator: torch.Generator
) -> FeatureGP:
    """The model before any data: unit variance on raw outputs, ℓ = softplus(N(0, 1)) on raw inputs, as published."""
    m = features(torch.zeros(nx, dtype=torch.float64)).numel()
    draw = torch.randn(nx, m + nu, dtype=torch.float64, generator=generator, device=generator.device)
    log_lengthscale = torch.nn.functional.softplus(draw).log().clamp(*LOG_RANGE)
    zero = torch.zeros(nx, dtype=torch.float64)
    return FeatureGP(
        _regression(log_lengthscale.exp(), zero + 1.0, noise_std), features, log_lengthscale, nx, nu, noise_std, zero
    )


def _regression(lengthscale: Tensor, variance: Tensor, noise_std: Tensor) -> GP:
    nx, d = lengthscale.shape
    parts = [kernels.rbf(ell, float(v)) for ell, v in zip(lengthscale, variance, strict=True)]
    return GP.create(
        parts,
        noise_std.square().tolist(),
        nx=d,
        nu=0,
        noise_std=0.0,
        outputs=tuple(range(nx)),
        mode="practical",
    )


def negative_log_likelihood(log_lengthscale: Tensor, z: Tensor, y: Tensor, noise_var: Tensor) -> Tensor:
    """−log N(y_j; 0, K_j + noise_var_j I) summed over outputs: unit-variance ARD-RBF kernels.

    Args:
        log_lengthscale: (p, d).
        z: (n, d).
        y: (n, p).
        noise_var: (p,).
    """
    scaled = z / log_lengthscale.exp().unsqueeze(-2)  # (p, n, d)
    square = scaled.square().sum(-1)
    distance = (square.unsqueeze(-1) + square.unsqueeze(-2) - 2 * scaled @ scaled.mT).clamp_min(0.0)
    gram = (-0.5 * distance).exp() + noise_var[:, None, None] * torch.eye(z.shape[0]).to(z)
    lower = linalg.cholesky(gram, "planning.fit")
    white = torch.linalg.solve_triangular(lower, y.mT.unsqueeze(-1), upper=False)
    logdet = lower.diagonal(dim1=-2, dim2=-1).log().sum()
    return 0.5 * white.square().sum() + logdet + 0.5 * y.numel() * math.log(2 * math.pi)


@differentiating
def fit(
    data: Transitions,
    features: Callable[[Tensor], Tensor],
    *,
    noise_std: Tensor,
    log_lengthscale: Tensor,
    steps: int = 40,
) -> FeatureGP:
    """Fits x⁺ − x by an exact GP: unit output scale on standardised data, ℓ by marginal likelihood.

    The published code takes 1000 Adam steps; this takes at most `steps` L-BFGS iterations (strong Wolfe) on the same
    objective, from `log_lengthscale`. log ℓ is kept in [−3, 5] by clamping.

    Args:
        data: all transitions.
        features: φ.
        noise_std: fixed, raw units, (nx,).
        log_lengthscale: start, (nx, m + nu), of standardised inputs.
        steps: 0 keeps `log_lengthscale`.
    """
    noise_std = _require.positive("planning.fit", "noise_std", noise_std)
    z, y = torch.cat([features(data.x), data.u], dim=-1), data.x_next - data.x
    spread, scale = (v.std(0, correction=0).clamp_min(1e-3) for v in (z, y))
    center, mean = z.mean(0), y.mean(0)
    inputs, targets, noise_var = (z - center) / spread, (y - mean) / scale, (noise_std / scale).square()
    guess = log_lengthscale.clone().requires_grad_(True)
    if steps:
        optimiser = torch.optim.LBFGS([guess], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = negative_log_likelihood(guess.clamp(*LOG_RANGE), inputs, targets, noise_var) / y.numel()
            loss.backward()
            return loss

        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    found = guess.detach().clamp(*LOG_RANGE)
    gp = _regression(found.exp() * spread, scale.square(), noise_std)
    gp = gp.condition_on(z, targets * scale)
    return FeatureGP(gp, features, found, data.x.shape[1], data.u.shape[1], noise_std, mean, data)
