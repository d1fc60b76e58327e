"""Latent learners so small that they take milliseconds."""

from dataclasses import replace

import torch

from gpsafe.models.rssm import RSSMSettings
from gpsafe.planning import ICEM
from gpsafe.planning.latent import (
    LATENT_EXPLORERS,
    PRESETS,
    ActorCritic,
    LatentAgent,
    LatentPlanner,
    Schedule,
    World,
    point_goal_sight,
)
from gpsafe.systems.point_goal import PointGoal

PLANT = PointGoal(horizon=3)
SMALL = RSSMSettings((8, 8, 3), nu=2, deterministic=4, stochastic=2, hidden=4, embedding=4, members=2, depth=0)


def learner(kind: str, *, seed: int = 0, compact: bool = False, updates: int = 2, **about) -> LatentAgent:
    def actor(world: World, g: torch.Generator) -> ActorCritic:
        settings = replace(PRESETS[kind], updates=2, starts=3, horizon=2, hidden=4)
        return ActorCritic(settings, world, PLANT.input_box, budget=1.5, horizon=3, generator=g)

    quick = ICEM(samples=4, elites=2, iterations=1, horizon=3)
    explorer = LATENT_EXPLORERS.get(kind, LATENT_EXPLORERS["greedy"])
    planner = LatentPlanner(explorer, PLANT.input_box, 1.5, 3, optimiser=quick)
    sight = replace(point_goal_sight(PLANT, size=8), compact=compact)
    schedule = Schedule(episodes=2, updates=updates, batch=2, length=3, capacity=5)
    behaviour = planner if kind in LATENT_EXPLORERS else actor
    return LatentAgent(PLANT, sight, SMALL, behaviour, schedule=schedule, seed=seed, **about)
