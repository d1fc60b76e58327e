"""Planning in latent space: iCEM over sequences that every member of the ensemble imagines for itself.

A sequence is worth extrinsic · R + intrinsic · D − price · max(0, C − allowance), where R is the mean reward over members, D
the summed disagreement of the members, and C the imagined cost, of the worst member if pessimism is "worst". The baselines are
other weights of the same objective. The worst of M members is a lower estimate of a supremum, so "worst" bounds nothing; it can
only grow with further members.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.rssm import State
from gpsafe.planning.icem import ICEM, Plan, Score, icem
from gpsafe.planning.latent._state import Arrays
from gpsafe.planning.latent._state import State as Stored
from gpsafe.planning.latent.dreams import dream
from gpsafe.planning.latent.explorers import LatentExplorer
from gpsafe.planning.latent.world import World
from gpsafe.sets import Box


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
        if _require.count("LatentPlanner", "every", self.every) > self.optimiser.horizon:
            raise _require.fail(
                "LatentPlanner", f"every <= horizon of its plans = {self.optimiser.horizon}", self.every
            )

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

    @property
    def updates(self) -> int:
        """None: plans are made when they are needed."""
        return 0

    def improve(self, world: World, starts: State, generator: torch.Generator) -> None:
        """Nothing, see `updates`."""

    def state(self) -> Arrays:
        """Nothing: plans do not outlive an episode."""
        return {}

    def load(self, state: Stored) -> None:
        """Nothing, see `state`."""

    def act(self, world: World, state: State, spent: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Inputs (E, nu) in the latent states (E, ·) of episodes that have cost `spent` (E,) so far."""
        if self.explorer.uniform:
            shape, device = (len(spent), self.box.dim), generator.device
            unit = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
            return self.box.lower.to(device) + (self.box.upper - self.box.lower).to(device) * unit
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
