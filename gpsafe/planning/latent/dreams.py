"""What sequences of inputs are worth in the imagination of all members."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.models.rssm import State
from gpsafe.planning.latent.explorers import LatentExplorer
from gpsafe.planning.latent.world import World


@short
@dataclass(frozen=True, slots=True, eq=False)
class Dream:
    """K sequences imagined by M members.

    Attributes:
        reward, cost: summed over the horizon, (M, K).
        doubt: summed disagreement, (K,).
    """

    reward: Tensor
    cost: Tensor
    doubt: Tensor

    def upper(self, explorer: LatentExplorer) -> Tensor:
        """C, (K,). "worst" never falls when members are added, nor does "bonus" when alpha grows."""
        if explorer.pessimism == "worst":
            return self.cost.amax(0)
        bonus = explorer.alpha * self.doubt if explorer.pessimism == "bonus" else 0.0
        return self.cost.mean(0) + bonus

    def worth(self, explorer: LatentExplorer, *, allowance: float, price: float) -> Tensor:
        """See the module, (K,)."""
        value = explorer.extrinsic * self.reward.mean(0) + explorer.intrinsic * self.doubt
        if explorer.pessimism == "none":
            return value
        return value - price * (self.upper(explorer) - allowance).clamp_min(0.0)


@torch.no_grad()
def dream(world: World, start: State, actions: Tensor, generator: torch.Generator) -> Dream:
    """Imagines sequences (K, H, nu) from one state (1, ·); members go apart, and each draws its own states."""
    count, horizon, _ = actions.shape
    members = world.rssm.settings.members
    steps = iter(actions.to(start.stochastic).movedim(1, 0))
    begin = State(start.deterministic.expand(count, -1), start.stochastic.expand(count, -1))
    with world.precision():
        states, _, doubt = world.rssm.imagine(
            begin, lambda _: next(steps).expand(members, count, -1), horizon, generator, apart=True
        )
        reward, cost = world.outcome(states[1:])
    return Dream(reward.sum(0).double(), cost.sum(0).double(), doubt.sum(0).double())
