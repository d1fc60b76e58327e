"""Monte-Carlo dropout (Gal & Ghahramani 2016) as a dynamics model; its spread is a heuristic."""

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
class Dropout(ResidualModel):
    """A tanh network trained with dropout, and the mean and spread of `masks` thinned copies of it, drawn once per fit.

    Fixed masks make every prediction a function: the same everywhere, differentiable and repeatable.
    """

    hidden: tuple[int, ...]
    rate: float
    masks: int
    steps: int
    learning_rate: float
    weight_decay: float
    network: MLP | None = None
    inputs: Normalizer | None = None
    targets: Normalizer | None = None

    @staticmethod
    def create(
        nx: int,
        nu: int,
        *,
        noise_std: Tensor | Sequence[float] | float,
        generator: torch.Generator,
        hidden: Sequence[int] = (32, 32),
        rate: float = 0.1,
        masks: int = 50,
        steps: int = 1000,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-3,
        outputs: Sequence[int] | None = None,
        prior: Prior = zero_prior,
    ) -> Dropout:
        """A model without data.

        Args:
            nx, nu, noise_std, outputs, prior: see :class:`ResidualModel`.
            generator: gives the seed of all fits.
            hidden: widths of the tanh layers.
            rate: probability of dropping a hidden value, in (0, 1).
            masks: thinned copies averaged over.
            steps, learning_rate, weight_decay: of the training.
        """
        noise, learned = ResidualModel.check("Dropout", nx, nu, noise_std, outputs, prior)
        _require.probability("Dropout", "rate", rate)
        _require.count("Dropout", "masks", masks, minimum=2)
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        return Dropout(
            nx, nu, noise, learned, prior, seed, None, tuple(hidden), rate, masks, steps, learning_rate, weight_decay
        )  # fmt: skip

    def _fitted(self, z: Tensor, y: Tensor) -> Dropout:
        generator = self._generator(len(z))
        inputs, targets = Normalizer.of(z), Normalizer.of(y)
        network = fit_network(
            inputs(z), targets(y), hidden=self.hidden, generator=generator, steps=self.steps, dropout=self.rate,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay,
        )  # fmt: skip
        weights = [network.weights[0].expand(self.masks, -1, -1)]
        for w in network.weights[1:]:
            kept = (
                torch.rand(self.masks, w.shape[1], 1, dtype=torch.float64, generator=generator).to(w.device)
                >= self.rate
            )
            weights.append(w * kept / (1 - self.rate))
        thinned = MLP(tuple(weights), tuple(b.expand(self.masks, -1) for b in network.biases))
        return replace(self, network=thinned, inputs=inputs, targets=targets)

    def _residual(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.network is None or self.inputs is None or self.targets is None:
            raise _require.fail("Dropout.predict", "a model that has seen data", "none")
        out = self.network(self.inputs(z).expand(self.masks, -1, -1))
        mean = out.mean(0)
        std = linalg.safe_sqrt((out - mean).square().mean(0))
        return self.targets.offset + self.targets.scale * mean, self.targets.scale * std
