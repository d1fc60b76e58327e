"""One episode under receding-horizon planning: replan at every step, execute the first action."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.base import DynamicsModel
from gpsafe.planning.explorers import Planner
from gpsafe.systems.base import System


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """What happened in one episode.

    Attributes:
        states: (T + 1, nx).
        inputs: (T, nu).
        sources: who chose each input: "plan", "stored" or "fallback"; without a verifier always "plan".
        values: score of the plan found at each step, (T,).
        planning_s, verifying_s: seconds.
        unsettled: steps at which the measured state contradicted the verifier's assumptions.
    """

    states: Tensor
    inputs: Tensor
    sources: tuple[str, ...]
    values: Tensor
    planning_s: float
    verifying_s: float


def unverified_episode(
    system: System, planner: Planner, model: DynamicsModel, *, noise: Tensor, generator: torch.Generator
) -> Trajectory:
    """T steps of x⁺ = mean(x, u) + w, every plan executed as it comes. No guarantee whatever.

    Args:
        system: the plant.
        planner: settings.
        model: what it plans with, frozen during the episode.
        noise: w, (T, nx).
        generator: of the planner's randomness.
    """
    _require.last_dim("episode", "noise", noise, system.nx)
    x, plan = system.initial_state, None
    states, inputs, values = [x], [], []
    start = time.perf_counter()
    for w in noise:
        plan = planner.propose(model, x, generator=generator, warm_start=plan)
        u = plan.actions[0]
        x = system.mean(x, u) + w
        states.append(x)
        inputs.append(u)
        values.append(plan.value)
    seconds = time.perf_counter() - start
    sources = ("plan",) * len(inputs)
    return Trajectory(torch.stack(states), torch.stack(inputs), sources, torch.stack(values), seconds, 0.0)
