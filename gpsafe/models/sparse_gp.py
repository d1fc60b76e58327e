"""GPyTorch's sparse variational Gaussian process (Hensman et al. 2013) as a dynamics model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models._prior import Prior, zero_prior
from gpsafe.models._residual import ResidualModel
from gpsafe.rkhs import kernels as kernel_functions


@short
@dataclass(frozen=True, slots=True, eq=False)
class SparseGP(ResidualModel):
    """q(f) = ∫ p(f | v) q(v) dv with m inducing values at data points, q(v) Gaussian and optimal for the ELBO.

    The kernel and the noise are those given, as for an exact GP with λ = noise_std²; only the posterior is approximate. Its
    std is that of the variational family: no confidence bound covers it.
    """

    kernels: tuple[Kernel, ...]
    size: int
    points: Tensor | None = None
    factors: Tensor | None = None  # (p, m, m): Cholesky factors of the Gram matrices of the inducing points
    means: Tensor | None = None  # (p, m): of q in whitened coordinates
    covariances: Tensor | None = None  # (p, m, m)

    @staticmethod
    @plain_tensors
    def create(
        kernel: Kernel | Sequence[Kernel],
        nx: int,
        nu: int,
        *,
        noise_std: Tensor | Sequence[float] | float,
        size: int = 20,
        outputs: Sequence[int] | None = None,
        prior: Prior = zero_prior,
    ) -> SparseGP:
        """A model without data.

        Args:
            kernel: one for all learned outputs, or one each; frozen.
            nx, nu, noise_std, outputs, prior: see :class:`ResidualModel`.
            size: number m of inducing points, chosen among the data by greedy variance of the first kernel.
        """
        noise, learned = ResidualModel.check("SparseGP", nx, nu, noise_std, outputs, prior)
        _require.count("SparseGP", "size", size)
        given = [kernel] * len(learned) if isinstance(kernel, Kernel) else list(kernel)
        if len(given) != len(learned):
            raise _require.fail("SparseGP", f"{len(learned)} kernels", len(given))
        return SparseGP(nx, nu, noise, learned, prior, 0, None, tuple(kernel_functions.freeze(k) for k in given), size)

    def _fitted(self, z: Tensor, y: Tensor) -> SparseGP:
        points = z[_spread(self.kernels[0], z, self.size)]
        noise = self.noise_std[list(self.outputs)]
        fits = [_variational(k, points, z, y[:, j], float(noise[j])) for j, k in enumerate(self.kernels)]
        factors, means, covariances = (torch.stack(parts) for parts in zip(*fits, strict=True))
        return replace(self, points=points, factors=factors, means=means, covariances=covariances)

    def _residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        prior = [kernel_functions.diagonal(k, z) for k in self.kernels]
        if self.points is None or self.factors is None or self.means is None or self.covariances is None:
            return torch.zeros(len(z), len(prior), dtype=torch.float64, device=z.device), torch.stack(prior, -1).sqrt()
        means, stds = [], []
        for j, k in enumerate(self.kernels):
            half = linalg.solve_lower(self.factors[j], kernel_functions.cross(k, self.points, z))  # (m, n)
            gain = half.square().sum(0) - (half * (self.covariances[j] @ half)).sum(0)
            means.append(self.means[j] @ half)
            stds.append(linalg.safe_sqrt(prior[j] - gain))
        return torch.stack(means, -1), torch.stack(stds, -1)


class _Strategy(gpytorch.models.ApproximateGP):
    """GPyTorch's model: whitened strategy with natural parameters of q."""

    def __init__(self, kernel: Kernel, points: Tensor) -> None:
        distribution = gpytorch.variational.NaturalVariationalDistribution(len(points))
        strategy = gpytorch.variational.VariationalStrategy(self, points, distribution, learn_inducing_locations=False)
        super().__init__(strategy)
        self.kernel = kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(torch.zeros_like(x[..., 0]), self.kernel(x))


def _variational(kernel: Kernel, points: Tensor, z: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor of the Gram matrix, mean and covariance of q in whitened coordinates.

    One natural-gradient step of length 1 reaches the optimum, for the likelihood is Gaussian. The factor has the jitter that
    GPyTorch adds to it (`gpytorch.settings.variational_cholesky_jitter`).
    """
    model = _Strategy(copy.deepcopy(kernel), points).double().to(z.device)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        noise_constraint=gpytorch.constraints.GreaterThan(min(1e-10, 0.1 * noise**2))
    )
    likelihood = likelihood.double().to(z.device)
    likelihood.initialize(noise=torch.tensor(noise**2, dtype=torch.float64, device=z.device))
    objective = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(z))
    optimizer = gpytorch.optim.NGD(model.variational_parameters(), num_data=len(z), lr=1.0)
    model.train()
    with torch.random.fork_rng(devices=[]):  # GPyTorch starts q at a random mean, which one full step forgets
        value = objective(model(z), y)
    assert isinstance(value, Tensor)
    (-value).backward()
    optimizer.step()
    with torch.no_grad():
        jitter = gpytorch.settings.variational_cholesky_jitter.value(torch.float64) or 0.0
        eye = torch.eye(len(points), dtype=torch.float64, device=z.device)
        factor = linalg.cholesky(kernel_functions.cross(kernel, points, points) + jitter * eye, "SparseGP.condition")
        found = model.variational_strategy._variational_distribution()  # not the strategy's memo of it, which is old
        return factor, found.mean.clone(), found.covariance_matrix.clone()


def _spread(kernel: Kernel, z: Tensor, size: int) -> list[int]:
    """Greedy: each next point is where the prior variance given the chosen ones is largest (pivoted Cholesky)."""
    with torch.no_grad():
        prior = kernel_functions.diagonal(kernel, z)
        variance = prior.clone()
        rows: list[Tensor] = []
        chosen: list[int] = []
        for _ in range(min(size, len(z))):
            i = int(variance.argmax())
            if float(variance[i]) <= 1e-12 * float(prior[i]):
                break
            column = kernel_functions.cross(kernel, z[i : i + 1], z)[0]
            for row in rows:
                column = column - row[i] * row
            row = column / variance[i].sqrt()
            rows.append(row)
            chosen.append(i)
            variance = (variance - row.square()).clamp_min(0.0)
            variance[i] = 0.0
        return chosen
