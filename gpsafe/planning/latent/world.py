"""A world model with heads: reward, cost and what pictures show, read from the latent state; and its training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gpsafe import _require
from gpsafe._show import short
from gpsafe.models._latent import gaussian_log_density
from gpsafe.models._recurrent import Perceptron
from gpsafe.models.rssm import DTYPES, RSSM, RSSMSettings, State
from gpsafe.planning.latent._state import Arrays, adam, below, load_adam, load_network, network, prefixed
from gpsafe.planning.latent._state import State as Stored
from gpsafe.planning.latent.episodes import Episodes, pictures

Precision = Literal["float32", "bfloat16"]


@short
@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """How states are seen, and what is known of pictures.

    Args:
        see: states (N, nx) ↦ images (N, *shape).
        read: images (N, *shape) ↦ readings (N, k), by the known geometry of the picture.
        cost: readings (*b, k) ↦ cost per step (*b,) in [0, 1], known as the theory has it (theory §1.1); None: a head like the
            reward's, fitted to the costs that were met. A head that has met no cost knows of none.
        readings: k.
        compact: images lie in [0, 1] and are kept as bytes (`pictures`); otherwise as float32, whatever their range.
    """

    see: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor], Tensor] | None
    readings: int
    compact: bool = False

    def kept(self, images: Tensor) -> Tensor:
        """Images as they are kept."""
        return (255.0 * images).round().to(torch.uint8) if self.compact else images.float()

    def read_kept(self, images: Tensor) -> Tensor:
        """Readings (N, k) of images (N, *shape) as they are kept."""
        return self.read(images.float() / 255.0 if self.compact else images)


class World(nn.Module):
    """RSSM and one head for (reward, cost, readings). Costs are fitted in any case; `Sight.cost` replaces them if it is there.

    Args:
        settings: of the RSSM.
        sight: see `Sight`.
        generator: draws the weights.
        head_std: standard deviation that the likelihood gives the head.
        cost_weight: factor on the likelihood of a cost that is not 0 (100 in LAMBDA's published code).
        rate: Adam's.
        device: where it stands; the weights are drawn on the CPU and are the same everywhere.
        precision: "bfloat16": products of matrices and convolutions are rounded to that while it learns and imagines
            (autocast); weights, states, divergences and optimisers stay in float32.
    """

    def __init__(
        self,
        settings: RSSMSettings,
        sight: Sight,
        generator: torch.Generator,
        *,
        head_std: float = 0.1,
        cost_weight: float = 1.0,
        rate: float = 2e-3,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.rounding = _require.one_of("World", "precision", precision, ("float32", "bfloat16"))
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise _require.fail("World", "a device of this machine", device)
        _require.positive("World", "head_std, cost_weight, rate", [head_std, cost_weight, rate])
        self.rssm, self.sight = RSSM(settings, generator), sight
        self.head_std, self.cost_weight = head_std, cost_weight
        feature = settings.deterministic + settings.head.out
        hidden = (settings.hidden,) if settings.hidden else ()
        self.head = Perceptron(1, (feature, *hidden, 2 + sight.readings), generator).to(DTYPES[settings.dtype])
        self.to(device)
        self.optimiser = torch.optim.Adam(self.parameters(), lr=rate, eps=1e-5)

    @property
    def feature(self) -> int:
        """Entries of a latent state."""
        return self.rssm.settings.deterministic + self.rssm.settings.head.out

    @property
    def device(self) -> torch.device:
        """Where it stands."""
        return next(self.parameters()).device

    def precision(self) -> AbstractContextManager[object]:
        """In it, large products are rounded as the constructor was told."""
        if self.rounding == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _told(self, feature: Tensor) -> Tensor:
        return self.head(feature.reshape(1, -1, feature.shape[-1]))[0].unflatten(0, feature.shape[:-1])

    def readings(self, state: State) -> Tensor:
        """What the picture of a latent state would show, (*b, k)."""
        return self._told(state.feature)[..., 2:]

    def head_cost(self, state: State) -> Tensor:
        """Cost per step as the head has learnt it, (*b,), in [0, 1]; whether a known one stands before it or not."""
        return self._told(state.feature)[..., 1].clamp(0.0, 1.0)

    def outcome(self, state: State) -> tuple[Tensor, Tensor]:
        """Reward and cost per step of latent states, (*b,) each; the cost in [0, 1]."""
        told = self._told(state.feature)
        cost = told[..., 1] if self.sight.cost is None else self.sight.cost(told[..., 2:])
        return told[..., 0], cost.clamp(0.0, 1.0)

    def update(
        self, episodes: Episodes, generator: torch.Generator, *, batch: int, length: int | None = None
    ) -> Tensor:
        """One gradient step on a batch of episodes, or of parts of them; its loss, ()."""
        seen, weights = episodes.sample(batch, generator, length=length)
        images = pictures(seen.images)
        with self.precision():
            found = self.rssm.filter(images, seen.actions, generator)
            loss = self.rssm.loss_of(found, images, weights=weights).total
            told = self._told(found.states.feature)  # (T + 1, B, 2 + k)
        target = torch.cat([torch.stack([seen.reward, seen.cost], -1), seen.readings], -1).to(told).movedim(1, 0)
        density = gaussian_log_density(told, target, self.head_std)
        weighed = torch.ones_like(density)
        weighed[..., 1] += (self.cost_weight - 1.0) * (target[..., 1] > 0)
        loss = loss - (weighed * density).sum(-1).mean()
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 100.0)
        self.optimiser.step()
        return loss.detach()

    def state(self) -> Arrays:
        """Weights and optimiser, as arrays."""
        return {**prefixed("weights", network(self)), **prefixed("adam", adam(self.optimiser))}

    def load(self, state: Stored) -> None:
        """Goes on from the `state` of a world of the same sizes."""
        load_network(self, below("weights", state))
        load_adam(self.optimiser, below("adam", state))
