"""Frozen hyperparameters against refitted ones: what a refit moves, and whether the rows that neither saw prefer it.

With θ_0 frozen before the judging rows and θ_1 refitted to everything but the last of them, p_1/p_0 of these last rows given
the rest has mean ≤ 1 if y comes from the process θ_0: a ratio of 1/δ refutes θ_0 at level δ, in the Bayesian reading. A refit
moves the RKHS, hence the norm, and no statement for all n survives it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe.data import spaced
from gpsafe.models import GP
from gpsafe.referee.claim import Claim
from gpsafe.referee.rows import Rows
from gpsafe.rkhs import kernels

MOST = 300  # rows


@dataclass(frozen=True, slots=True)
class Refit:
    """One output.

    Attributes:
        log_ratio: ln p_1/p_0 of the last rows.
        tested: how many they are.
        scales: smallest and largest ratio of a refitted length-scale to the frozen one; nan for kernels that have none.
        amplitude: ratio of √k(z, z).
        noise: ratio of √λ.
        norms: ‖μ‖ of the same rows in the frozen and in the refitted RKHS.
        width: refitted over frozen median posterior deviation at the last rows.
    """

    log_ratio: float
    tested: int
    scales: tuple[float, float]
    amplitude: float
    noise: float
    norms: tuple[float, float]
    width: float


def refits(rows: Rows, claim: Claim) -> tuple[Refit, ...]:
    """One an output."""
    from botorch.exceptions import OptimizationWarning  # loaded for this alone

    from gpsafe.models.views import fit_hyperparameters

    z, y = rows.data.z, claim.residuals(rows.data)
    keep = spaced(len(z), MOST).round().long()
    z, y = z[keep], y[keep]
    cut = len(z) - max(4, int((keep >= rows.first).sum()) // 2)
    found = []
    for j, kernel in enumerate(claim.kernels):
        frozen = _model(kernel, claim.noise[j], z.shape[1])
        seen = frozen.condition_on(z[:cut], y[:cut, j : j + 1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizationWarning)  # the largest likelihood of its starts is taken
            again = fit_hyperparameters(seen)
        new = _model(again.kernels[0], float(again.regularizer[0].sqrt()), z.shape[1])
        later = new.condition_on(z[:cut], y[:cut, j : j + 1])
        (p0, whole), (p1, other) = (_gain(m, z[cut:], y[cut:, j : j + 1]) for m in (seen, later))
        a, b = (kernels.stationary(m.kernels[0]) for m in (frozen, new))
        ratio = torch.full((1,), torch.nan) if a is None or b is None else b.lengthscale / a.lengthscale
        prior = [float(m.prior_variance(z[:1])[0, 0]) for m in (frozen, new)]
        width = [float(m.posterior(z[cut:])[1].median()) for m in (seen, later)]
        found.append(
            Refit(
                p1 - p0,
                len(z) - cut,
                (float(ratio.min()), float(ratio.max())),
                (prior[1] / prior[0]) ** 0.5,
                float(new.regularizer[0].sqrt()) / claim.noise[j],
                (float(whole.posterior_norm()[0]), float(other.posterior_norm()[0])),
                width[1] / max(width[0], 1e-300),
            )
        )
    return tuple(found)


def _model(kernel: Kernel, noise: float, dim: int) -> GP:
    return GP.create(kernel, noise**2, nx=dim, nu=0, noise_std=noise, outputs=[0], mode="practical")


def _gain(model: GP, z: Tensor, y: Tensor) -> tuple[float, GP]:
    """ln density of further rows, and the model that has seen them."""
    whole = model.condition_on(z, y)
    return float((whole.log_marginal_likelihood() - model.log_marginal_likelihood())[0]), whole
