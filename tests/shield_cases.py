"""A judged reference pendulum (θ = 0 hangs, θ ≤ 1.2) for tests of plan tubes and shields."""

from __future__ import annotations

from functools import lru_cache

import torch
from cost_cases import Case, alone, generator, make_case
from torch import Tensor

from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.linalg import vector
from gpsafe.planning.tracking import Tracking
from gpsafe.safety.shield import Shield
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.task import Task

HORIZON = 30
HANGING = 12  # set-point 0


@lru_cache(maxsize=8)
def case_of(runs: tuple[int, ...] = (5, 14, 22, 28), norm_factor: float = 1.0) -> Case:
    return alone(make_case("pendulum", runs, norm_factor=norm_factor))


def judge_of(case: Case, *, grid: bool = True, landing: bool = True, **options) -> PlanTube:
    """Not yet refined."""
    region = Box(vector(-2.5, -8.0, -1.0), vector(2.5, 8.0, 1.0))
    return PlanTube(
        fallbacks=case.choose(HANGING),
        task=Task.of(case.system),
        noise_radius=3.0 * case.system.noise_std,
        input_box=case.system.input_box,
        anchors=AnchorGrid.create(region, vector(0.25, 2.0, 0.25)) if grid else None,
        landing=(Box(vector(-0.2, -0.8), vector(0.2, 0.8)),) if landing else (),
        **options,
    )


def tracking_of(case: Case) -> Tracking:
    return Tracking(
        brakes=case.choose(HANGING), authority=0.8, state_weight=vector(10.0, 1.0), input_weight=vector(1.0)
    )


@lru_cache(maxsize=8)
def judged(runs: tuple[int, ...] = (5, 14, 22, 28), grid: bool = True, norm_factor: float = 1.0) -> PlanTube:
    case = case_of(runs, norm_factor)
    return judge_of(case, grid=grid).refine(case.confidence)


def shield_of(case: Case, judge: PlanTube | None = None, **options) -> Shield:
    arguments = {"tracking": tracking_of(case), **options}
    found = Shield.start(judge or judge_of(case), case.confidence, case.system.initial_state, **arguments)
    assert isinstance(found, Shield), found
    return found


def pushes(seed: int, count: int, length: int = 12) -> Tensor:
    """Smooth random inputs (count, length, 1)."""
    g = generator(seed)
    level = 2 * torch.rand(count, 1, 1, dtype=torch.float64, generator=g) - 1
    turn = torch.randint(1, length, (count, 1, 1), generator=g)
    steps = torch.arange(length).reshape(1, -1, 1)
    return torch.where(steps < turn, level, -level)


def corners(noise_radius: Tensor, steps: int, seed: int) -> Tensor:
    """Noise at random corners of its box, (steps, nx); for a third of the seeds always the same corner."""
    g = generator(seed)
    signs = 2 * torch.randint(0, 2, (steps, noise_radius.numel()), generator=g) - 1
    signs = signs[:1].expand_as(signs) if seed % 3 == 0 else signs
    return signs * noise_radius


def follow(judge: PlanTube, start: Tensor, plans: Plans, steps: int) -> list[Zonotope]:
    """X_0, …, X_steps from points (P, nx)."""
    tubes = [Zonotope.point(start)]
    for t in range(steps):
        tubes.append(judge.reach(tubes[-1], plans, t)[0])
    return tubes
