"""Last-layer Laplace approximation of a network (Kristiadi et al. 2020; Daxberger et al. 2021) as a dynamics model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.models._mlp import MLP
from gpsafe.models._normalizer import Normalizer
from gpsafe.models._prior import Prior, zero_prior
from gpsafe.models._regression import fit_network
from gpsafe.models._residual import ResidualModel


@short
@dataclass(frozen=True, slots=True, eq=False)
class LastLayerLaplace(ResidualModel):
    """f_j = w_jᵀφ(z), φ the last hidden layer of a trained network and a constant, w_j ~ N(0, I/α_j).

    With Gaussian noise the posterior of the last layer given φ is Gaussian, mean and all:
    w_j | data ~ N(A_j⁻¹Φᵀy_j/s_j², A_j⁻¹), A_j = ΦᵀΦ/s_j² + α_j I, in normalised targets; α_j maximises the evidence on a
    grid. What the features cannot express is not in its std: a heuristic.
    """

    hidden: tuple[int, ...]
    steps: int
    learning_rate: float
    weight_decay: float
    network: MLP | None = None
    inputs: Normalizer | None = None
    targets: Normalizer | None = None
    weights: Tensor | None = None
    roots: Tensor | None = None

    @staticmethod
    def create(
        nx: int,
        nu: int,
        *,
        noise_std: Tensor | Sequence[float] | float,
        generator: torch.Generator,
        hidden: Sequence[int] = (32, 32),
        steps: int = 1000,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-3,
        outputs: Sequence[int] | None = None,
        prior: Prior = zero_prior,
    ) -> LastLayerLaplace:
        """A model without data.

        Args:
            nx, nu, noise_std, outputs, prior: see :class:`ResidualModel`.
            generator: gives the seed of all fits.
            hidden: widths of the tanh layers.
            steps, learning_rate, weight_decay: of the training.
        """
        noise, learned = ResidualModel.check("LastLayerLaplace", nx, nu, noise_std, outputs, prior)
        if not hidden:
            raise _require.fail("LastLayerLaplace", "at least one hidden layer", tuple(hidden))
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        return LastLayerLaplace(
            nx, nu, noise, learned, prior, seed, None, tuple(hidden), steps, learning_rate, weight_decay
        )  # fmt: skip

    def _fitted(self, z: Tensor, y: Tensor) -> LastLayerLaplace:
        inputs, targets = Normalizer.of(z), Normalizer.of(y)
        network = fit_network(
            inputs(z), targets(y), hidden=self.hidden, generator=self._generator(len(z)), steps=self.steps,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay,
        )  # fmt: skip
        noise = self.noise_std.to(z.device)[list(self.outputs)] / targets.scale
        fitted = [
            _last_layer(_features(network, inputs(z)), targets(y)[:, j], float(noise[j]))
            for j in range(len(self.outputs))
        ]
        weights, roots = (torch.stack(parts) for parts in zip(*fitted, strict=True))
        return replace(self, network=network, inputs=inputs, targets=targets, weights=weights, roots=roots)

    def _residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.network is None or self.inputs is None or self.targets is None:
            raise _require.fail("LastLayerLaplace.predict", "a model that has seen data", "none")
        assert self.weights is not None
        assert self.roots is not None
        features = _features(self.network, self.inputs(z))
        mean, std = features @ self.weights.mT, (features @ self.roots).norm(dim=-1).mT
        return self.targets.offset + self.targets.scale * mean, self.targets.scale * std


def _features(network: MLP, z: Tensor) -> Tensor:
    """(m, h + 1): the last hidden values and 1."""
    value = z.unsqueeze(0)
    for w, b in zip(network.weights[:-1], network.biases[:-1], strict=True):
        value = torch.tanh(torch.baddbmm(b.unsqueeze(1), value, w))
    return torch.cat([value[0], torch.ones_like(value[0, :, :1])], dim=-1)


def _last_layer(features: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Posterior mean of w (h + 1,) and a root R of its covariance, A⁻¹ = RRᵀ, at the α of largest evidence.

    ln p(y | α) = −½(Σ_i ln(1 + e_i/α) + yᵀ(y − Φw)/s²) + const, with e_i the eigenvalues of ΦᵀΦ/s².
    """
    alphas = torch.logspace(-6, 4, 41, dtype=torch.float64, device=y.device).unsqueeze(-1)
    values, vectors = torch.linalg.eigh(features.mT @ features / noise**2)
    values = values.clamp_min(0.0)
    along = vectors.mT @ (features.mT @ y) / noise**2
    explained = (along.square() / (values + alphas)).sum(-1)
    evidence = -0.5 * (torch.log1p(values / alphas).sum(-1) - explained)
    alpha = alphas[evidence.argmax()]
    return vectors @ (along / (values + alpha)), linalg.psd_root(
        vectors @ ((1 / (values + alpha)).unsqueeze(-1) * vectors.mT)
    )
