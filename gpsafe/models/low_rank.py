"""Low-rank evaluation of an exact posterior, with a rigorous error term (theory §2.1 for the exact one).

Let φ(z) = k(z, ·), V = Φ*Φ + λI in the RKHS, so that σ(z) = √λ‖φ(z)‖_{V⁻¹}, and let P project orthogonally
onto the span of r kernel sections k(z_1, ·), …, k(z_r, ·). With a(z) = L_Z⁻¹k_Z(z) the coordinates of Pφ(z)
in an orthonormal basis E, res(z) = ‖(I − P)φ(z)‖ = √(k(z, z) − ‖a‖²) and M = K_XZ L_Z⁻ᵀ = ΦE,

    σ(z) ≤ √λ‖Pφ‖_{V⁻¹} + √λ‖(I − P)φ‖_{V⁻¹} ≤ ‖G^{1/2}a(z)‖ + res(z),      G = I − Mᵀ(K + λI)⁻¹M:

the triangle inequality, then λ E*V⁻¹E = E*(I − Φ*(ΦΦ* + λI)⁻¹Φ)E = G (Woodbury) and V ⪰ λI. The posterior
mean is ⟨μ, φ(z)⟩ = ⟨Pμ, φ(z)⟩ + ⟨(I − P)μ, (I − P)φ(z)⟩, hence by Cauchy–Schwarz

    |μ(z) − (Mᵀα)ᵀa(z)| ≤ ‖(I − P)μ‖_k res(z),      ‖(I − P)μ‖²_k = αᵀKα − ‖Mᵀα‖².

The same holds, with V = Φ*W⁻²Φ + λI and K + λW², where the noise differs by known scales W = diag(w_i) ≥ I (rounding
terms use K + λW² ⪰ λI). 2r² flops a point and output instead of n². Rounding is added outwards, see
`gpsafe.models._projection`; below about λ = 1e-6·k(z, z) these worst-case terms, not the projection, set the width (use
the exact model there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models._prior import Prior, known_part
from gpsafe.models._projection import Projection, select_centers
from gpsafe.models.base import Prediction
from gpsafe.models.gp import GP


@short
@dataclass(frozen=True, slots=True, eq=False)
class LowRankGP:
    """A GP seen through r inducing features: its `posterior` returns an approximate mean and an *upper* bound
    of σ.

    For every z: std(z) ≥ σ(z) and |mean(z) − μ(z)| ≤ mean_error(z), where μ, σ are those of `exact`. So
    mean ± (β·std + mean_error) contains μ ± βσ for every β ≥ 0, and a confidence bound stays valid (β from
    `exact`).

    Attributes:
        exact: the exact posterior.
        rank: largest number r of inducing points for one output.
        tolerance: relative residual variance at which the selection of inducing points stops early.
        mean: "projected" (O(r) a point) or "exact" (O(n) a point, `mean_error` then covers rounding only).
    """

    exact: GP
    rank: int
    tolerance: float
    mean: Literal["projected", "exact"]
    _projections: tuple[Projection, ...]

    @staticmethod
    @plain_tensors
    def create(
        exact: GP,
        rank: int = 160,
        *,
        tolerance: float = 1e-7,
        mean: Literal["projected", "exact"] = "projected",
        candidates: Tensor | None = None,
    ) -> LowRankGP:
        """Projects a posterior that has data.

        Args:
            exact: the posterior.
            rank: number of inducing points at most, per output.
            tolerance: in [1e-9, 1); below about 1e-7 rounding terms take over from the residual.
            mean: see the class.
            candidates: points (m, nx + nu) to choose the inducing points from; default: the data.

        Raises:
            ValueError: on a model without data, arguments outside these ranges, or a projection that is not
                numerically positive definite (raise the tolerance).
        """
        where = "LowRankGP"
        if exact.inputs is None:
            raise _require.fail(where, "a model with data", "none")
        _require.count(where, "rank", rank)
        _require.one_of(where, "mean", mean, ("projected", "exact"))
        if not 1e-9 <= tolerance < 1:
            raise _require.fail(where, "tolerance in [1e-9, 1)", tolerance)
        pool = exact.inputs if candidates is None else _require.finite(where, "candidates", candidates)
        if pool.ndim != 2 or pool.shape[1] != exact.nx + exact.nu:
            raise _require.fail(where, f"candidates of shape (m, {exact.nx + exact.nu})", tuple(pool.shape))
        alpha, norms = exact.weights, exact.posterior_norm()
        projections = []
        with torch.no_grad():
            for i, factor in enumerate(exact._factors):
                outputs = exact._outputs_of(i)
                centers = pool[select_centers(factor, pool, rank, tolerance)]
                projections.append(Projection.build(factor, exact.inputs, alpha[:, outputs], norms[outputs], centers))
        return LowRankGP(exact, rank, tolerance, mean, tuple(projections))

    # -------------------------------------------------------- of the exact model
    @property
    def nx(self) -> int:
        """State dimension."""
        return self.exact.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.exact.nu

    @property
    def outputs(self) -> tuple[int, ...]:
        """Indices of the learned states."""
        return self.exact.outputs

    @property
    def num_outputs(self) -> int:
        """p."""
        return self.exact.num_outputs

    @property
    def num_data(self) -> int:
        """n."""
        return self.exact.num_data

    @property
    def inputs(self) -> Tensor | None:
        """Data inputs, (n, nx + nu)."""
        return self.exact.inputs

    @property
    def targets(self) -> Tensor | None:
        """Data residuals, (n, p)."""
        return self.exact.targets

    @property
    def noise_scale(self) -> Tensor | None:
        """Noise scales of the observations, (n,), or None."""
        return self.exact.noise_scale

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """One kernel per learned output."""
        return self.exact.kernels

    @property
    def regularizer(self) -> Tensor:
        """λ, (p,)."""
        return self.exact.regularizer

    @property
    def noise_std(self) -> Tensor:
        """Aleatoric standard deviation, (nx,)."""
        return self.exact.noise_std

    @property
    def prior(self) -> Prior:
        """Known mean."""
        return self.exact.prior

    @property
    def mode(self) -> Literal["theory", "practical"]:
        """As the exact model's."""
        return self.exact.mode

    @property
    def ranks(self) -> tuple[int, ...]:
        """Number of inducing points used, per learned output."""
        return tuple(self._projections[i].centers.shape[0] for i in self.exact._index)

    def info_gain(self) -> Tensor:
        """g_n of the exact model, (p,)."""
        return self.exact.info_gain()

    def log_marginal_likelihood(self) -> Tensor:
        """Of the exact model, (p,)."""
        return self.exact.log_marginal_likelihood()

    def posterior_norm(self) -> Tensor:
        """‖μ_n‖_k of the exact model, (p,)."""
        return self.exact.posterior_norm()

    def prior_variance(self, z: Tensor) -> Tensor:
        """k_j(z, z), (*b, d) → (*b, p)."""
        return self.exact.prior_variance(z)

    def embed(self, residual: Tensor) -> Tensor:
        """Learned outputs (*b, p) in state coordinates (*b, nx)."""
        return self.exact.embed(residual)

    # ------------------------------------------------------------------- its own
    def condition(self, data: Transitions, *, noise_scale: Tensor | None = None) -> LowRankGP:
        """Conditions the exact model and projects again, on data points (O(n²r))."""
        exact = self.exact.condition(data, noise_scale=noise_scale)
        return LowRankGP.create(exact, self.rank, tolerance=self.tolerance, mean=self.mean)

    def condition_on(self, z: Tensor, y: Tensor, *, noise_scale: Tensor | None = None) -> LowRankGP:
        """As :meth:`condition`, for residuals y (m, p) at z (m, nx + nu)."""
        exact = self.exact.condition_on(z, y, noise_scale=noise_scale)
        return LowRankGP.create(exact, self.rank, tolerance=self.tolerance, mean=self.mean)

    def posterior(self, z: Tensor, *, chunk: int = 1024) -> tuple[Tensor, Tensor]:
        """Approximate residual mean and an upper bound of the latent std at z (*b, d), both (*b, p)."""
        mean, std, _ = self.evaluate(z, chunk=chunk)
        return mean, std

    def mean_error(self, z: Tensor, *, chunk: int = 1024) -> Tensor:
        """Bound on |mean − exact posterior mean| at z (*b, d), (*b, p)."""
        return self.evaluate(z, chunk=chunk)[2]

    def evaluate(self, z: Tensor, *, chunk: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, std and mean_error at z (*b, d) together, each (*b, p). Differentiable in z."""
        z = _require.points("LowRankGP", "z", z, self.nx + self.nu)
        flat = z.reshape(-1, z.shape[-1])
        columns: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for i, projection in enumerate(self._projections):
            parts = [projection.evaluate(part) for part in flat.split(chunk)]
            mean, std, error = (torch.cat([part[k] for part in parts]) for k in range(3))
            if self.mean == "exact":
                base = self.exact._factors[i].diagonal(flat).sqrt().unsqueeze(-1)
                error = 2 * projection.exact_rounding * base
            for k, j in enumerate(self.exact._outputs_of(i)):
                columns[j] = (mean[:, k], std, error[:, k])
        means, stds, errors = (
            torch.stack([columns[j][k] for j in range(self.num_outputs)], dim=-1).reshape(
                *z.shape[:-1], self.num_outputs
            )
            for k in range(3)
        )
        return (self.exact.residual_mean(z) if self.mean == "exact" else means), stds, errors

    def residual_mean(self, z: Tensor) -> Tensor:
        """The mean of :meth:`posterior`, (*b, d) → (*b, p)."""
        return self.exact.residual_mean(z) if self.mean == "exact" else self.posterior(z)[0]

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """x⁺ = prior(x, u) + residual; std includes the widening, not `mean_error`."""
        x = _require.points("LowRankGP.predict", "x", x, self.nx)
        u = _require.points("LowRankGP.predict", "u", u, self.nu)
        mean, std = self.posterior(torch.cat([x, u], dim=-1))
        known = known_part("LowRankGP.predict", self.prior, x, u)
        return Prediction(known + self.embed(mean), self.embed(std), self.noise_std.to(x.device))
