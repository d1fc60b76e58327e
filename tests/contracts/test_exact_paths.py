"""Paths in rational arithmetic against tubes, in units of 10⁻¹² to 10¹²: where terms cancel to 0 at a limit of 0, nothing
but the outward rounding of a step is left.
"""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import GaussianTube, PlanTube, ScenarioTube
from gpsafe.cost.plan_tube import SLACK, Plans
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task

HORIZON = 6


def exact(value: Tensor) -> list[Fraction]:
    return [Fraction(float(v)) for v in value]


def product(matrix: Tensor, x: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(exact(row), x, strict=True)), Fraction(0)) for row in matrix]


def beyond(tube: Zonotope, x: list[Fraction], row: int = 0) -> Fraction:
    """The largest excess of ±x_i beyond the interval hull, of which tubes that are judged allow `SLACK` of the terms."""
    found = []
    for value, center, rays in zip(x, exact(tube.center[row]), tube.generators[row], strict=True):
        radius = sum(map(abs, exact(rays)), Fraction(0))
        found.append(abs(value - center) - radius - Fraction(SLACK) * (abs(center) + radius))
    return max(found)


class Plant:
    """x⁺ = Ax + Bu + c of three states under u = Kx + o; the first is learned, with a residual of the share `small` of it, and
    the residual is 0. The last is neither learned nor driven, and nothing is made of it.
    """

    def __init__(self, seed: int, small: float = 1e-6) -> None:
        rng = random.Random(seed)
        self.units = [10.0 ** rng.randint(-12, 12) * rng.uniform(1, 9) for _ in range(4)]
        s, force = vector(*self.units[:3]), self.units[3]
        self.x0 = s * vector(*(rng.uniform(-1, 1) for _ in range(3)))
        self.A = vector(*(rng.uniform(-1, 1) for _ in range(9))).reshape(3, 3) * s.unsqueeze(-1) / s
        self.A[:, 2] = 0.0
        self.B = (s * vector(rng.uniform(-1, 1), rng.uniform(-1, 1), 0.0)).unsqueeze(-1) / force
        self.c = s * vector(rng.uniform(-1, 1), rng.uniform(-1, 1), 0.0)
        self.K = 0.3 * force * vector(rng.uniform(-1, 1), rng.uniform(-1, 1), 0.0).reshape(1, 3) / s
        self.o, self.force, self.small, self.size = vector(0.1 * force), force, small, s

    def step(self, x: list[Fraction]) -> list[Fraction]:
        u = [a + b for a, b in zip(product(self.K, x), exact(self.o), strict=True)]
        return [sum(parts) for parts in zip(product(self.A, x), product(self.B, u), exact(self.c), strict=True)]

    @property
    def policies(self) -> AffinePolicies:
        most = vector(1e6 * self.force)
        return AffinePolicies(self.o.reshape(1, 1), self.K.unsqueeze(0), Box(-most, most))

    @property
    def confidence(self) -> ConfidenceSet:
        share, known = self.small * float(self.size[0]), AffineKnown(self.A, self.B, self.c)
        noise = (self.small * self.size).tolist()
        model = GP.create(
            kernels.rbf(self.units, share**2), share**2, nx=3, nu=1, noise_std=noise, outputs=(0,), prior=known
        )
        return ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=share, delta=0.1)).update(model)

    @property
    def task(self) -> Task:
        return Task(self.x0, HORIZON, IndicatorCost(torch.eye(3).double(), 0 * self.x0), 0.1, self.small * self.size)

    @property
    def judge(self) -> PlanTube:
        policies = self.policies
        return PlanTube(
            fallbacks=policies,
            task=self.task,
            noise_radius=0 * self.x0,
            input_box=policies.input_box,
            limit=1e90,
        ).refine(self.confidence)

    def followed(self, start: Zonotope, steps: int) -> list[Zonotope]:
        judge, sets = self.judge, [start]
        for t in range(steps):
            sets.append(judge.reach(sets[-1], Plans.of_fallbacks(torch.zeros(1, dtype=torch.long), 3, 1), t)[0])
        return sets


def scenario(plant: Plant, pieces: int = 1) -> list[Zonotope]:
    bound = ScenarioTube(task=plant.task, seed=0, samples=2, pilot=2, limit=1e90, pieces=pieces)
    found = bound.tubes(plant.confidence, plant.policies, torch.zeros(HORIZON, 1, 1, 3).double())
    assert int(found.lost[0, 0]) == HORIZON
    return [Zonotope(part.center[0], part.generators[0]) for part in found.sets]


def gaussian(plant: Plant) -> list[Zonotope]:
    bound = GaussianTube(task=plant.task, limit=1e90)
    return [stage.sure for stage in bound.stages(plant.confidence, plant.policies)]


FOLLOWED = {
    "scenario": scenario,
    "scenario, in pieces": lambda plant: scenario(plant, 4),
    "gaussian": gaussian,
    "plan": lambda plant: plant.followed(Zonotope.point(plant.x0.unsqueeze(0)), HORIZON - 1),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_state_that_nothing_but_rounding_moves_is_held_where_it_cancels(name):
    """The last state comes to 0 in the first or a later step, but for what float64 cannot say."""
    for seed in range(20):
        plant = Plant(seed)
        at, x = 1 + seed % 4, plant.x0
        for _ in range(at):
            last, x = x, plant.A @ x + plant.B @ (plant.K @ x + plant.o) + plant.c
        plant.c[2] = -(plant.A @ last)[2]
        path = exact(plant.x0)
        for t, found in enumerate(FOLLOWED[name](plant)):
            assert beyond(found, path) <= 0, (seed, t)
            path = plant.step(path)
            if t + 1 == at:
                assert abs(path[2]) < Fraction(1e-15 * float(plant.size[2]))


def test_sets_whose_images_cancel_are_held():
    """About 0, where a step has no other size than its set: the second state's second image is next to nothing."""
    for seed in range(40):
        plant = Plant(seed, small=1e-20)
        plant.x0, plant.c, plant.o, plant.K = 0 * plant.x0, 0 * plant.c, 0 * plant.o, 0 * plant.K
        plant.B *= 1e-20
        plant.A[1, 1], plant.A[1, 2] = 0.0, -plant.A[1, 0] * plant.A[0, 0] / plant.A[2, 0]
        start = Zonotope(plant.x0.unsqueeze(0), torch.diag(vector(float(plant.size[0]), 0.0, 0.0)).unsqueeze(0))
        path = exact(vector(float(plant.size[0]), 0.0, 0.0))
        for t, found in enumerate(plant.followed(start, 3)):
            assert beyond(found, path) <= 0, (seed, t)
            path = plant.step(path)


def test_inputs_that_cancel_over_a_set_are_held():
    """The gain makes next to nothing of the first state's first image, and the second state is the input alone."""
    for seed in range(40):
        plant = Plant(seed, small=1e-20)
        plant.x0, plant.c, plant.o = 0 * plant.x0, 0 * plant.c, 0 * plant.o
        plant.A[:, 1], plant.B[0], plant.B[1] = 0.0, 0.0, plant.size[1] / plant.force
        plant.A[2, 0] = plant.size[2] / plant.size[0] / 3
        plant.K[0, 1], plant.K[0, 2] = 0.0, -plant.K[0, 0] * plant.A[0, 0] / plant.A[2, 0]
        plant.A[1, 0] = 0.0
        start = Zonotope(plant.x0.unsqueeze(0), torch.diag(vector(float(plant.size[0]), 0.0, 0.0)).unsqueeze(0))
        path = exact(vector(float(plant.size[0]), 0.0, 0.0))
        for t, found in enumerate(plant.followed(start, 3)):
            assert beyond(found, path) <= 0, (seed, t)
            path = plant.step(path)
