"""Costs: exact suprema over boxes, rounded to the safe side."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpsafe.sets import Box
from gpsafe.systems.base import Cost, HingeCost, IndicatorCost
from tests.strategies import seeds
from tests.systems import _claims as claims


def random_cost(kind: str, dim: int, halfspaces: int, seed: int) -> Cost:
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(halfspaces, dim, dtype=torch.float64, generator=generator)
    offsets = torch.randn(halfspaces, dtype=torch.float64, generator=generator)
    return IndicatorCost(normals, offsets) if kind == "indicator" else HingeCost(normals, offsets, ceiling=0.7)


def cube(dim: int) -> Box:
    half = torch.ones(dim, dtype=torch.float64)
    return Box(-half, half)


@given(kind=st.sampled_from(["indicator", "hinge"]), dim=st.integers(1, 4), m=st.integers(1, 3), seed=seeds())
def test_bounds_enclose_costs_of_any_polytope(kind: str, dim: int, m: int, seed: int) -> None:
    cost = random_cost(kind, dim, m, seed)
    assert isinstance(cost, Cost)
    assert claims.enclosure_gap(cost, *claims.boxes(cube(dim), seed=seed), seed=seed) <= 0.0


@given(kind=st.sampled_from(["indicator", "hinge"]), dim=st.integers(1, 4), m=st.integers(1, 3), seed=seeds())
def test_upper_is_attained_at_a_corner(kind: str, dim: int, m: int, seed: int) -> None:
    cost = random_cost(kind, dim, m, seed)
    lower, upper = claims.boxes(cube(dim), seed=seed)
    picks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=dim)), dtype=torch.float64)
    corners = torch.where(picks[:, None] == 1.0, upper, lower)
    torch.testing.assert_close(cost.upper(lower, upper), cost(corners).amax(0), rtol=0, atol=claims.EXACT)


@given(dim=st.integers(1, 4), seed=seeds())
def test_lower_is_exact_for_one_halfspace(dim: int, seed: int) -> None:
    cost = random_cost("hinge", dim, 1, seed)
    lower, upper = claims.boxes(cube(dim), seed=seed)
    picks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=dim)), dtype=torch.float64)
    corners = torch.where(picks[:, None] == 1.0, upper, lower)
    torch.testing.assert_close(cost.lower(lower, upper), cost(corners).amin(0), rtol=0, atol=claims.EXACT)


def test_box_that_ends_on_the_boundary_of_an_axis_aligned_constraint_costs_nothing() -> None:
    cost = IndicatorCost(torch.eye(2)[:1], torch.tensor([0.3]).double())
    edge = torch.tensor([0.3, 1.0], dtype=torch.float64)
    assert float(IndicatorCost(torch.eye(2)[:1], edge[:1]).upper(edge - 1.0, edge)) == 0.0
    assert float(IndicatorCost(torch.eye(2)[:1], edge[:1]).upper(edge - 1.0, edge.nextafter(edge + 1))) == 1.0
    assert cost.ceiling == 1.0


def test_rounding_of_a_slanted_constraint_goes_outward() -> None:
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(1, 7, dtype=torch.float64, generator=generator)
    disagreements = 0
    for _ in range(300):  # the constraint passes within one rounding of the point
        point = torch.randn(1, 7, dtype=torch.float64, generator=generator)
        value = (point @ normals.T)[0]
        split = (point @ normals.clamp_min(0.0).T + point @ normals.clamp_max(0.0).T)[0]
        disagreements += int(not torch.equal(split, value))
        for offset in (value, value.nextafter(value - 1)):
            cost = IndicatorCost(normals, offset)
            assert float(cost.upper(point, point)) >= float(cost(point)) >= float(cost.lower(point, point))
    assert disagreements > 30, "the two orders of summation must really differ for this test to say anything"


@dataclass(frozen=True)
class CenterCost:
    """Broken: takes the cost at the middle of the box for its supremum."""

    inner: Cost

    @property
    def ceiling(self) -> float:
        return self.inner.ceiling

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self.inner(0.5 * (lower + upper))

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self.inner(0.5 * (lower + upper))


@pytest.mark.parametrize("kind", ["indicator", "hinge"])
def test_control_cost_at_the_middle_is_no_bound(kind: str) -> None:
    normals, offsets = torch.tensor([[1.0, -0.3]]).double(), torch.tensor([0.1]).double()
    cost = CenterCost(IndicatorCost(normals, offsets) if kind == "indicator" else HingeCost(normals, offsets))
    assert claims.enclosure_gap(cost, *claims.boxes(cube(2), seed=0), seed=0) > 0.0


def test_bad_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="IndicatorCost: expected normals of shape"):
        IndicatorCost(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="IndicatorCost: expected offsets of shape"):
        IndicatorCost(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match="IndicatorCost: expected finite normals"):
        IndicatorCost(torch.full((1, 1), torch.nan), torch.ones(1))
    with pytest.raises(ValueError, match="HingeCost: expected ceiling > 0"):
        HingeCost(torch.ones(2), 1.0, ceiling=0.0)
