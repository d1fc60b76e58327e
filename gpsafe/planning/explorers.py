"""Explorers behind one flag: what is sought (reward, information, nothing) × what is feared (pessimism)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.models.base import DynamicsModel
from gpsafe.planning.icem import ICEM, Plan, icem
from gpsafe.planning.scores import Constraint, Reward, imagine, penalised_return
from gpsafe.sets import Box

Pessimism = Literal["none", "mean", "sampled", "sound"]


@dataclass(frozen=True, slots=True)
class Explorer:
    """What the planner of an exploration phase maximises.

    Args:
        name: of the explorer.
        extrinsic: weight of the task's reward.
        intrinsic: weight of the intrinsic reward.
        pessimism: "none": the constraint is ignored; "mean": it is priced on the mean rollout; "sampled": on P
            particles, as published (a heuristic); "sound": as "sampled", and every action passes a verifier.
        uniform: white uniform proposals instead of optimised ones.
    """

    name: str
    extrinsic: float
    intrinsic: float
    pessimism: Pessimism
    uniform: bool = False

    def __post_init__(self) -> None:
        _require.one_of("Explorer", "pessimism", self.pessimism, ("none", "mean", "sampled", "sound"))

    def with_pessimism(self, pessimism: Pessimism) -> Explorer:
        """The same explorer, otherwise pessimistic."""
        return replace(self, name=f"{self.name}+{pessimism}", pessimism=pessimism)


EXPLORERS: dict[str, Explorer] = {
    explorer.name: explorer
    for explorer in (
        Explorer("uniform", 0.0, 0.0, "none", uniform=True),
        Explorer("greedy", 1.0, 0.0, "none"),
        Explorer("optimistic", 1.0, 1.0, "none"),
        Explorer("opax", 0.0, 1.0, "none"),
        Explorer("actsafe-mean", 0.0, 1.0, "mean"),
        Explorer("actsafe-sampled", 0.0, 1.0, "sampled"),
        Explorer("actsafe-sound", 0.0, 1.0, "sound"),
        Explorer("safe-hucrl", 1.0, 0.0, "sampled"),
    )
}
"""The published family; OPAX has the weight of the extrinsic reward at 0, SafeHUCRL that of the intrinsic one."""


@short
@dataclass(frozen=True, slots=True, eq=False)
class Planner:
    """Receding-horizon planning for one explorer: settings that stay the same over a run.

    Args:
        explorer: what is sought and feared.
        optimiser: iCEM settings.
        box: input box.
        reward: of the task, (x⁺, u) → r.
        constraint: what pessimism prices.
        particles: P of "sampled" and "sound"; other explorers imagine `free_particles`.
        free_particles: P without pessimism (the published unsafe run: 1).
        beta: factor on the epistemic std of a particle.
        penalty: λ.
        over_particles: "max" as published for exploration, "mean" for tasks.
        tail, tail_steps: a fallback policy that every imagined sequence ends with, so that the constraint prices
            what a verifier will ask: can it still be braked?
    """

    explorer: Explorer
    optimiser: ICEM
    box: Box
    reward: Reward
    constraint: Constraint
    particles: int = 10
    free_particles: int = 1
    beta: float = 1.0
    penalty: float = 1e6
    over_particles: Literal["max", "mean"] = "max"
    tail: Callable[[Tensor], Tensor] | None = None
    tail_steps: int = 0

    def __post_init__(self) -> None:
        _require.count("Planner", "particles", self.particles)
        _require.count("Planner", "free_particles", self.free_particles)
        _require.nonnegative("Planner", "beta", self.beta)
        _require.positive("Planner", "penalty", self.penalty)
        if (self.tail is None) != (self.tail_steps == 0):
            raise _require.fail("Planner", "tail and tail_steps > 0 together", (self.tail, self.tail_steps))

    def score(self, model: DynamicsModel, x: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Score of sequences (K, H, nu) → (K,) from state x; fresh particles at every call."""
        mean_only = self.explorer.pessimism == "mean"
        free = self.explorer.pessimism == "none"

        def score(actions: Tensor) -> Tensor:
            imagined = imagine(
                model,
                x,
                actions,
                particles=1 if mean_only else self.free_particles if free else self.particles,
                beta=self.beta,
                generator=None if mean_only else generator,
                tail=None if free else self.tail,
                tail_steps=0 if free else self.tail_steps,
            )
            return penalised_return(
                imagined,
                actions,
                reward=self.reward,
                extrinsic=self.explorer.extrinsic,
                intrinsic=self.explorer.intrinsic,
                constraint=None if free else self.constraint,
                penalty=self.penalty,
                over_particles=self.over_particles,
            )

        return score

    def propose(
        self, model: DynamicsModel, x: Tensor, *, generator: torch.Generator, warm_start: Plan | None = None
    ) -> Plan:
        """A plan from state x (nx,), and the elites next to it. Nothing of it is certified."""
        score = self.score(model, x, generator)
        if not self.explorer.uniform:
            return icem(score, self.box, settings=self.optimiser, generator=generator, warm_start=warm_start)
        count = 1 if self.explorer.pessimism == "none" else self.optimiser.elites
        shape = (count, self.optimiser.horizon)
        unit = torch.rand(*shape, self.box.dim, dtype=torch.float64, generator=generator, device=generator.device)
        actions = self.box.lower + (self.box.upper - self.box.lower) * unit
        values = score(actions)
        order = values.argsort(descending=True, stable=True)  # equal scores stay in random order
        actions, values = actions[order], values[order]
        return Plan(actions[0], values[0], actions, values, actions[0], values[:1])
