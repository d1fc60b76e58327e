"""Parametric families: ranges over boxes of parameters and the gap between two policies contain what they should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.policies import AffinePolicies
from gpsafe.policies.parametric import feedback_family, input_gap, set_point_family
from gpsafe.sets import Box

UNIT = Box(torch.tensor([-1.0]), torch.tensor([1.0]))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def families():
    pair = feedback_family(-torch.ones(3).double(), torch.ones(3).double(), input_box=UNIT, nx=2)
    return {1: set_point_family((-0.5, 1.5), (0.5, 5.0), input_box=UNIT), 2: pair}


@given(seeds(), st.sampled_from([1, 2]))
def test_offsets_and_gains_are_affine_in_each_parameter(seed, nx):
    family = families()[nx]
    theta, i = normal(seed, 1, family.dim), seed % family.dim
    step = torch.zeros(family.dim, dtype=torch.float64)
    step[i] = 0.7
    for part in range(2):
        left, middle, right = (family.build(theta + k * step)[part] for k in (-1, 0, 1))
        assert torch.allclose(left + right, 2 * middle, atol=1e-12)


@given(seeds(), st.sampled_from([1, 2]), st.floats(0.0, 0.4), st.floats(0.0, 0.3))
def test_spread_contains_every_policy_of_the_box_on_the_cell(seed, nx, size, cell):
    family = families()[nx]
    g = generator(seed)
    center = family.box.sample(3, g)
    radius = size * torch.rand(3, family.dim, dtype=torch.float64, generator=g)
    x, x_radius = 1.5 * normal(seed + 1, 4, nx), torch.full((4, nx), cell, dtype=torch.float64)
    bound = family.spread(center, radius, x=x, x_radius=x_radius)
    for _ in range(20):
        theta = center + radius * (2 * torch.rand(3, family.dim, dtype=torch.float64, generator=g) - 1)
        point = x + x_radius * (2 * torch.rand(4, nx, dtype=torch.float64, generator=g) - 1)
        away = (family(theta)(point.unsqueeze(0)) - family(center)(point.unsqueeze(0))).abs()
        assert bool((away <= bound).all())


def test_spread_is_nearly_attained_at_a_vertex():
    family = families()[1]
    center, radius = torch.tensor([[0.2, 2.0]]).double(), torch.tensor([[0.05, 0.3]]).double()
    x = torch.tensor([[0.1]]).double()
    bound = family.spread(center, radius, x=x, x_radius=torch.zeros(1, 1).double())
    corners = family(family.vertices(center, radius)[0])(x.unsqueeze(0))
    assert float(bound) == pytest.approx(float((corners - family(center)(x.unsqueeze(0))).abs().max()), abs=1e-9)


@given(seeds(), st.sampled_from([1, 2]))
def test_input_gap_dominates_the_difference_at_every_state(seed, nx):
    first = AffinePolicies(normal(seed, 3, 1), 3 * normal(seed + 1, 3, 1, nx), UNIT)
    second = AffinePolicies(normal(seed + 2, 4, 1), 3 * normal(seed + 3, 4, 1, nx), UNIT)
    x = 5 * normal(seed + 4, 1, 2000, nx)
    seen = (first(x).unsqueeze(1) - second(x).unsqueeze(0)).abs().amax(-2)
    assert bool((seen <= input_gap(first, second)).all())


@given(seeds())
def test_input_gap_of_one_state_is_exact(seed):
    first = AffinePolicies(normal(seed, 2, 1), 3 * normal(seed + 1, 2, 1, 1), UNIT)
    second = AffinePolicies(normal(seed + 2, 3, 1), 3 * normal(seed + 3, 3, 1, 1), UNIT)
    kinks = [(limit - p.offset) / p.gain[..., 0] for p in (first, second) for limit in (-1.0, 1.0)]
    x = torch.cat([k.flatten() for k in kinks] + [torch.tensor([-1e9, 1e9]).double()]).reshape(1, -1, 1)
    seen = (first(x).unsqueeze(1) - second(x).unsqueeze(0)).abs().amax(-2)
    assert torch.allclose(seen, input_gap(first, second), atol=1e-9)


def test_input_gap_of_a_constant_policy_and_of_itself():
    constant = AffinePolicies(torch.tensor([[0.3]]).double(), torch.zeros(1, 1, 1).double(), UNIT)
    sloped = AffinePolicies(torch.tensor([[0.0]]).double(), torch.ones(1, 1, 1).double(), UNIT)
    assert float(input_gap(constant, sloped)) == pytest.approx(1.3)
    assert float(input_gap(sloped, sloped)) == 0.0


def test_nearby_policies_of_different_gain_are_near_only_by_the_exact_gap():
    """Control of the sharper rule: with one state, a change of gain no longer costs the width of the input box."""
    family = families()[1]
    near = family(torch.tensor([[0.3, 3.0], [0.3, 3.01]]).double())
    assert 0 < float(input_gap(near, near)[0, 1]) < 0.01


def test_families_refuse_the_wrong_number_of_parameters():
    with pytest.raises(ValueError, match="theta"):
        families()[1](torch.zeros(2, 3).double())
