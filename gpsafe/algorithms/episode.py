"""One episode under receding-horizon planning: replan at every step, execute the first action."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.base import DynamicsModel
from gpsafe.planning.explorers import Planner
from gpsafe.planning.icem import Plan
from gpsafe.safety.shield import Shield
from gpsafe.sets import Box
from gpsafe.systems.base import System
from gpsafe.systems.task import Task


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """What happened in one episode.

    Attributes:
        states: (T + 1, nx).
        inputs: (T, nu).
        sources: who chose each input: "plan", "stored" or "fallback"; without a verifier always "plan".
        values: score of the plan found at each step, (T,).
        planning_s, verifying_s: seconds.
        falsified: the first measurement that refutes the verifier's assumptions, in words; None if there was none.
        failures: what the planner raised under a verifier, in words, by step.
    """

    states: Tensor
    inputs: Tensor
    sources: tuple[str, ...]
    values: Tensor
    planning_s: float
    verifying_s: float
    falsified: str | None = None
    failures: Mapping[int, str] = field(default_factory=dict)


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


def proposals(plan: Plan, box: Box, *, prefixes: tuple[int, ...] = (1, 5), levels: int = 7) -> tuple[Tensor, Tensor]:
    """Candidates for a verifier, best first: prefixes of the plan, then single inputs of a grid, nearest to its first one.

    A prefix of one input is the easiest to admit, and enough: the planner is asked again after it. The grid is for
    where no prefix is admitted: the verifier then picks the nearest input that can still be braked.

    Args:
        plan: found by the planner.
        box: input box.
        prefixes: lengths of the plan that are tried.
        levels: grid points per input, ends included; 0 for none.

    Returns:
        candidates (K, H, nu) and how many inputs of each are meant (K,).
    """
    horizon = plan.actions.shape[0]
    lengths = torch.tensor([min(n, horizon) for n in prefixes], device=plan.actions.device)
    candidates = plan.actions.expand(len(prefixes), *plan.actions.shape)
    if levels:
        axes = [
            torch.linspace(lo, hi, levels, dtype=torch.float64) for lo, hi in zip(box.lower, box.upper, strict=True)
        ]
        grid = torch.cartesian_prod(*axes).reshape(-1, box.dim).to(plan.actions.device)
        grid = grid[(grid - plan.actions[0]).square().sum(-1).argsort()]
        single = grid.unsqueeze(1).expand(-1, horizon, -1)
        candidates = torch.cat([candidates, single])
        lengths = torch.cat([lengths, lengths.new_ones(len(grid))])
    return candidates, lengths


def verified_episode(
    system: System,
    planner: Planner,
    model: DynamicsModel,
    shield: Shield,
    *,
    noise: Tensor,
    generator: torch.Generator,
    prefixes: tuple[int, ...] = (1, 5),
    levels: int = 7,
) -> Trajectory:
    """T steps in which every input passes `shield`: what holds for it holds for the episode, whatever the planner does.

    A planner that raises or returns no plan costs the candidates of that step (its value is NaN, and the next search starts
    anew), as in `gpsafe.safety.filter`.

    Args:
        system: the plant, started in its initial state, for which `shield` was started; of the shield's task.
        planner: proposes; untrusted.
        model: what it plans with.
        shield: at t = 0, with a horizon of at least T.
        noise: w, (T, nx).
        generator: of the planner's randomness.
        prefixes, levels: see :func:`proposals`.
    """
    _require.last_dim("episode", "noise", noise, system.nx)
    if isinstance(shield, Shield):
        Task.of(system).require_same("verified_episode", shield.judge.task)
    x, plan, falsified = system.initial_state, None, None
    states, inputs, values, sources = [x], [], [], []
    planning = verifying = 0.0
    failures: dict[int, str] = {}
    for t, w in enumerate(noise):
        start = time.perf_counter()
        try:
            plan = planner.propose(model, x.clone(), generator=generator, warm_start=plan)
            candidates, lengths = proposals(plan, system.input_box, prefixes=prefixes, levels=levels)
            if candidates.ndim != 3 or candidates.shape[-1] != system.nu:
                raise _require.fail("verified_episode", f"a plan (H, {system.nu})", tuple(candidates.shape))
            value = plan.value.detach().to(torch.float64).reshape(())
        except Exception as error:
            plan, failures[t], value = None, _require.told(error), x.new_full((), math.nan)
            candidates, lengths = x.new_zeros(0, 1, system.nu), torch.zeros(0, dtype=torch.long, device=x.device)
        between = time.perf_counter()
        decision, shield = shield.decide(x, candidates, lengths)
        planning, verifying = planning + between - start, verifying + time.perf_counter() - between
        falsified = falsified or decision.falsified
        x = system.mean(x, decision.u) + w
        states.append(x)
        inputs.append(decision.u)
        values.append(value)
        sources.append(decision.source)
    return Trajectory(
        torch.stack(states),
        torch.stack(inputs),
        tuple(sources),
        torch.stack(values),
        planning,
        verifying,
        falsified,
        failures,
    )
