"""Constraints on small differences of large states: what rounds is a share of the terms, not of what they leave.

At 10⁹ (a metre in nanometres) a scenario tube charged 0, and a plan was admitted with a margin, where the next state's exact
difference is beyond the limit.
"""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from strategies import seeds

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import GaussianTube, PlanTube, ScenarioTube
from gpsafe.cost.plan_tube import Plans
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task


def case(seed: int, scale: float) -> tuple[Task, ConfidenceSet]:
    """x⁺ = Ax with rows nearly equal; the exact x⁺_2 − x⁺_1 is a millionth of itself beyond its limit."""
    g = torch.Generator().manual_seed(seed)
    A = torch.rand(2, 2, dtype=torch.float64, generator=g)
    A[1] = A[0] + 1e-3 * torch.rand(2, dtype=torch.float64, generator=g) / scale
    x = scale * (1 + torch.rand(2, dtype=torch.float64, generator=g))
    x[1] = torch.minimum(x[1], x[0])  # so that x_0 itself costs nothing
    rows, state = [[Fraction(v) for v in row] for row in A.tolist()], [Fraction(v) for v in x.tolist()]
    gap = sum((b - a) * v for a, b, v in zip(*rows, state, strict=True))
    limit = float(gap) * (1 - 1e-6)
    assert 0 < Fraction(limit) < gap
    still = torch.zeros(2, dtype=torch.float64)
    task = Task(x, 2, IndicatorCost([[-1.0, 1.0]], [limit]), 0.1, still)
    known = AffineKnown(A, torch.zeros(2, 1), still)
    model = GP.create(kernels.rbf([1.0] * 3), 1e-4, nx=2, nu=1, noise_std=1e-6, outputs=[0], prior=known)
    return task, ConfidenceSet(Mixture(rkhs_norm=1e-30, subgaussian=1e-6, delta=0.1)).update(model)


@pytest.mark.parametrize("scale", [1e3, 1e9])
@given(seed=seeds())
def test_a_state_beyond_the_limit_is_never_within(scale, seed):
    task, confidence = case(seed, scale)
    policies = AffinePolicies([[0.0]], [[[0.0, 0.0]]], Box([-1.0], [1.0]))
    charges = ScenarioTube(task=task, seed=0, samples=2).charges(confidence, policies, torch.zeros(2, 1, 2, 2).double())
    assert bool((task.cost(task.initial_state) == 0) & (charges >= 1).all())
    assert float(GaussianTube(task=task).evaluate(confidence, policies).upper) >= 1
    judge = PlanTube(fallbacks=policies, task=task, noise_radius=torch.zeros(2), input_box=policies.input_box)
    start, plans = Zonotope.point(task.initial_state.unsqueeze(0)), Plans.of_fallbacks(torch.tensor([0]), 2, 1)
    assert not bool(judge.refine(confidence).verify(start, plans, 1).admitted)
