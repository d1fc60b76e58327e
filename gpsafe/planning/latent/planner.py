"""Planning in latent space: iCEM over sequences that every member of the ensemble imagines for itself.

A sequence is worth extrinsic · R + intrinsic · D − price · max(0, C − allowance), where R is the mean reward over members, D
the summed disagreement of the members, and C the imagined cost, of the worst member if pessimism is "worst". The baselines are
other weights of the same objective. The worst of M members is a lower estimate of a supremum, so "worst" bounds nothing; it can
only grow with further members.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.models.rssm import State
from gpsafe.planning.icem import ICEM, Plan, Score, icem
from gpsafe.planning.latent.world import World
from gpsafe.sets import Box

Pessimism = Literal["none", "mean", "worst", "bonus"]


@dataclass(frozen=True, slots=True)
class LatentExplorer:
    """What is sought and what is feared.

    Args:
        name: of the explorer.
        extrinsic: weight of the reward.
        intrinsic: weight of the disagreement.
        pessimism: "none": no constraint; "mean": mean over members; "worst": the worst member's; "bonus": mean + alpha · D, as
            published for the actor-critic.
        alpha: of "bonus" (0.001 and 50 are published).
        uniform: inputs drawn uniformly from their box, without any plan.
    """

    name: str
    extrinsic: float = 0.0
    intrinsic: float = 0.0
    pessimism: Pessimism = "none"
    alpha: float = 1.0
    uniform: bool = False

    def __post_init__(self) -> None:
        _require.one_of("LatentExplorer", "pessimism", self.pessimism, ("none", "mean", "worst", "bonus"))
        _require.nonnegative("LatentExplorer", "alpha", self.alpha)


LATENT_EXPLORERS: dict[str, LatentExplorer] = {
    explorer.name: explorer
    for explorer in (
        LatentExplorer("uniform", uniform=True),
        LatentExplorer("greedy", extrinsic=1.0),
        LatentExplorer("optimistic", extrinsic=1.0, intrinsic=1.0),
        LatentExplorer("opax", intrinsic=1.0),
        LatentExplorer("actsafe", intrinsic=1.0, pessimism="worst"),
        LatentExplorer("actsafe-mean", intrinsic=1.0, pessimism="mean"),
        LatentExplorer("actsafe-bonus", intrinsic=1.0, pessimism="bonus"),
        LatentExplorer("safe-greedy", extrinsic=1.0, pessimism="worst"),
    )
}
"""The published family, as planners. "uniform" draws from all of the input box, not from its upper corner as published."""


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
    states, _, doubt = world.rssm.imagine(
        begin, lambda _: next(steps).expand(members, count, -1), horizon, generator, apart=True
    )
    reward, cost = world.outcome(states[1:])
    return Dream(reward.sum(0).double(), cost.sum(0).double(), doubt.sum(0).double())


@dataclass(slots=True, eq=False)
class LatentPlanner:
    """Receding horizon with one explorer; it learns nothing itself.

    Args:
        explorer: what is sought and feared.
        box: of inputs.
        budget: d of an episode.
        horizon: T of an episode.
        optimiser: iCEM.
        price: of a unit of cost above the allowance.
        every: a plan is followed for so many steps.
    """

    explorer: LatentExplorer
    box: Box
    budget: float
    horizon: int
    optimiser: ICEM = field(
        default_factory=lambda: ICEM(samples=64, elites=8, iterations=2, horizon=12, exponent=1.0, init_std=0.8)
    )
    price: float = 100.0
    every: int = 3
    _plans: dict[int, tuple[Plan, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require.nonnegative("LatentPlanner", "budget, price", [self.budget, self.price])
        _require.count("LatentPlanner", "horizon", self.horizon)
        _require.count("LatentPlanner", "every", self.every)

    def allowance(self, spent: float) -> float:
        """What a plan may cost: the share of the budget for its steps, or what is left of it if that is less."""
        share = self.budget * min(self.optimiser.horizon / self.horizon, 1.0)
        return max(min(self.budget - spent, share), 0.0)

    def score(self, world: World, start: State, spent: float, generator: torch.Generator) -> Score:
        """Worth of sequences (K, H, nu) ↦ (K,) from a state (1, ·)."""
        allowance = self.allowance(spent)
        return lambda actions: dream(world, start, actions, generator).worth(
            self.explorer, allowance=allowance, price=self.price
        )

    def improve(self, world: World, starts: State, generator: torch.Generator) -> None:
        """Nothing: plans are made when they are needed."""

    def act(self, world: World, state: State, spent: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Inputs (E, nu) in the latent states (E, ·) of episodes that have cost `spent` (E,) so far."""
        if self.explorer.uniform:
            unit = torch.rand(len(spent), self.box.dim, dtype=torch.float64, generator=generator)
            return self.box.lower + (self.box.upper - self.box.lower) * unit
        return torch.stack([self._one(world, state, e, float(spent[e]), step, generator) for e in range(len(spent))])

    def _one(self, world: World, state: State, e: int, spent: float, step: int, generator: torch.Generator) -> Tensor:
        plan, age = self._plans.get(e, (None, 0)) if step else (None, 0)
        if plan is None or age == self.every:
            warm = plan
            for _ in range(self.every - 1 if warm is not None else 0):
                warm = warm.shifted()  # type: ignore[union-attr]
            score = self.score(world, state[e : e + 1], spent, generator)
            plan, age = icem(score, self.box, settings=self.optimiser, generator=generator, warm_start=warm), 0
        self._plans[e] = plan, age + 1
        return plan.actions[age]
