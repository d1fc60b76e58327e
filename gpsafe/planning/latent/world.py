"""A world model with heads: reward, cost and what pictures show, read from the latent state; and its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpsafe import _require
from gpsafe._show import short
from gpsafe.models._latent import gaussian_log_density
from gpsafe.models._recurrent import Perceptron
from gpsafe.models.rssm import DTYPES, RSSM, RSSMSettings, State
from gpsafe.planning.latent.episodes import Episodes


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
    """

    see: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor], Tensor] | None
    readings: int


class World(nn.Module):
    """RSSM and one head for (reward, cost, readings). Costs are fitted in any case; `Sight.cost` replaces them if it is there.

    Args:
        settings: of the RSSM.
        sight: see `Sight`.
        generator: draws the weights.
        head_std: standard deviation that the likelihood gives the head.
        cost_weight: factor on the likelihood of a cost that is not 0 (100 in LAMBDA's published code).
        rate: Adam's.
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
    ) -> None:
        super().__init__()
        _require.positive("World", "head_std, cost_weight, rate", [head_std, cost_weight, rate])
        self.rssm, self.sight = RSSM(settings, generator), sight
        self.head_std, self.cost_weight = head_std, cost_weight
        feature = settings.deterministic + settings.head.out
        hidden = (settings.hidden,) if settings.hidden else ()
        self.head = Perceptron(1, (feature, *hidden, 2 + sight.readings), generator).to(DTYPES[settings.dtype])
        self.optimiser = torch.optim.Adam(self.parameters(), lr=rate, eps=1e-5)

    @property
    def feature(self) -> int:
        """Entries of a latent state."""
        return self.rssm.settings.deterministic + self.rssm.settings.head.out

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

    def fit(self, episodes: Episodes, updates: int, generator: torch.Generator, *, batch: int = 16) -> float:
        """Gradient steps on batches of episodes; the mean loss of the last tenth (nan if there are none)."""
        losses = []
        for _ in range(updates):
            seen, weights = episodes.sample(batch, generator)
            found = self.rssm.filter(seen.images, seen.actions, generator)
            loss = self.rssm.loss_of(found, seen.images, weights=weights).total
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
            losses.append(loss.detach())
        return float(torch.stack(losses[-max(updates // 10, 1) :]).mean()) if losses else float("nan")
