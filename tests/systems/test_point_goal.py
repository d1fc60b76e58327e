"""The visual point-goal task: a cost enclosed over boxes, smooth walls, a goal that is reached, hazards that are met."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.systems.base import Cost
from gpsafe.systems.pixels import images
from gpsafe.systems.point_goal import DiscCost, PointGoal
from tests.strategies import seeds
from tests.systems import _claims as claims


def discs(seed: int, count: int) -> DiscCost:
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.rand(count, 2, dtype=torch.float64, generator=generator) - 1
    return DiscCost(centers, 0.05 + 0.6 * torch.rand(count, dtype=torch.float64, generator=generator), nx=2)


@given(seeds(), st.integers(1, 4))
def test_the_cost_is_enclosed_over_boxes(seed, count):
    cost = discs(seed, count)
    assert isinstance(cost, Cost)
    box = PointGoal().state_box
    assert claims.enclosure_gap(cost, *claims.boxes(box, seed=seed), seed=seed) <= 0.0


@given(seeds())
def test_the_upper_end_is_attained_and_the_lower_is_exact_for_one_disc(seed):
    cost = discs(seed, 1)
    lower, upper = claims.boxes(PointGoal().state_box, seed=seed)
    nearest = torch.minimum(torch.maximum(cost.centers[0].expand_as(lower), lower), upper)
    assert torch.equal(cost.upper(lower, upper), cost(nearest))
    picks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)
    corners = torch.where(picks[:, None] == 1.0, upper, lower)
    assert torch.equal(cost.lower(lower, upper), cost(corners).amin(0))


@pytest.mark.parametrize("struck", [0, 1])
def test_nan_never_counts_as_safe(struck):
    cost, x = discs(0, 2), torch.full((2,), 5.0, dtype=torch.float64)
    assert float(cost(x)) == 0.0
    x[struck] = math.nan
    assert float(cost(x)) == 1.0 and float(cost.lower(x, x)) == 0.0
    far = torch.full((2,), 5.0, dtype=torch.float64)
    assert float(cost.upper(x, far)) == float(cost.upper(far, x)) == 1.0


def test_walls_hold_and_are_smooth_and_the_middle_is_free():
    plant = PointGoal()
    x = torch.linspace(-1.4, 1.4, 57, dtype=torch.float64).unsqueeze(-1).expand(-1, 2)
    for push in (-1.0, 1.0):
        after = plant.mean(x, torch.full_like(x, push))
        assert float(after.abs().max()) <= 1.4 + 1e-12
        assert bool((after.diff(dim=0) > 0).all())  # no two states are glued together
    middle = x[(x[:, 0].abs() < 0.8)]
    assert float((plant.mean(middle, torch.ones_like(middle)) - middle - 0.2).abs().max()) < 1e-2


def drive(plant: PointGoal, corners: list[tuple[float, float]]) -> tuple[float, float]:
    """Cost and reward of an episode that heads for one corner after the other."""
    x, todo, cost, reward = plant.initial_state, list(corners), 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(plant.horizon):
        aim = torch.tensor(todo[0], dtype=torch.float64)
        u = ((aim - x) / plant.stride).clamp(-1, 1)
        cost, reward = cost + float(plant.cost(x)), reward + float(plant.reward(x, u))
        x = plant.mean(x, u) + 0.01 * torch.randn(2, dtype=torch.float64, generator=generator)
        if float((aim - x).norm()) < 0.1 and len(todo) > 1:
            todo.pop(0)
    return cost, reward


def test_the_straight_way_costs_more_than_the_budget_and_a_way_around_is_free():
    plant = PointGoal()
    straight, gained = drive(plant, [(1.0, 1.0)])
    assert straight > plant.budget and gained > 10
    around, gained = drive(plant, [(-1.2, -0.5), (-1.1, 1.25), (1.0, 1.15)])
    assert around == 0.0 and gained > 0


def test_goal_hazards_and_point_are_seen():
    plant = PointGoal()
    here, there = images(plant, torch.tensor([[-1.0, -1.0], [0.0, -1.0]]).double(), size=32)
    assert float((here - there).abs().amax(-1).gt(0.05).double().sum()) > 8
    red = (here[..., 0] - here[..., 2]).gt(0.3).double().sum()
    assert 3 * 18 < float(red) < 3 * 45  # three discs of radius 3 pixels


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="radii"):
        DiscCost(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="centers"):
        DiscCost(torch.zeros(2), torch.ones(1))
    with pytest.raises(ValueError, match="stride"):
        PointGoal(stride=-1.0)
