"""Affine policies: their slopes and secants enclose every change of the clipped input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.sets import Box


def draw(seed: int, nx: int, nu: int) -> tuple[AffinePolicies, torch.Tensor, torch.Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    limit = 0.2 + torch.rand(nu, dtype=torch.float64, generator=g)
    policies = AffinePolicies(
        torch.randn(3, nu, dtype=torch.float64, generator=g),
        torch.randn(3, nu, nx, dtype=torch.float64, generator=g),
        Box(-limit, 2 * limit),
    )
    x = torch.randn(1, 20, nx, dtype=torch.float64, generator=g)
    radius = 10.0 ** torch.randint(-8, 2, (1, 20, 1), generator=g).double()
    return policies, x, radius * torch.rand(1, 20, nx, dtype=torch.float64, generator=g), g


def excess(policies, x, radius, low, high, g) -> torch.Tensor:
    """How far input changes leave [low, high] ∘ gain(x′ − x), relative to the change of the raw input."""
    worst = torch.zeros(())
    for _ in range(40):
        move = radius * (2 * torch.rand(*x.shape, dtype=torch.float64, generator=g) - 1)
        raw = move @ policies.gain.mT
        change = policies(x + move) - policies(x)
        below = torch.minimum(low * raw, high * raw) - change
        above = change - torch.maximum(low * raw, high * raw)
        worst = torch.maximum(worst, (torch.maximum(below, above) / (1e-6 + raw.abs())).max())
    return worst


@given(seeds(), st.integers(1, 3), st.integers(1, 2))
def test_slopes_over_boxes_enclose_input_changes(seed, nx, nu):
    policies, x, radius, g = draw(seed, nx, nu)
    gain, low, high = policies.slopes(x - radius, x + radius)
    assert gain is policies.gain
    assert bool(((low >= 0) & (low <= high) & (high <= 1)).all())
    assert float(excess(policies, x, radius, low, high, g)) <= 1e-8


@given(seeds())
def test_secants_are_attained(seed):
    policies, x, _, _ = draw(seed, 1, 1)
    reach = torch.full((3, 20, 1), 1.5, dtype=torch.float64)
    low, high = policies.secants(x, reach)
    raw = policies.offset.unsqueeze(-2) + x @ policies.gain.mT
    steps = 1.5 * torch.linspace(-1, 1, 4001, dtype=torch.float64)
    steps = steps[steps.abs() > 1e-6]
    box = policies.input_box
    clip = lambda v: box.clip(v.unsqueeze(-1)).squeeze(-1)  # noqa: E731
    secant = (clip(raw + steps) - clip(raw)) / steps
    assert torch.allclose(secant.amin(-1, keepdim=True), low, atol=2e-3)
    assert torch.allclose(secant.amax(-1, keepdim=True), high, atol=2e-3)


@given(seeds(), st.integers(1, 3), st.integers(1, 2), st.floats(-8, 1))
def test_strips_about_chords_are_the_narrowest_that_hold_the_input(seed, nx, nu, exponent):
    """Every input lies in the strip, and both of its sides are touched."""
    policies, x, _, g = draw(seed, nx, nu)
    reach = 10.0**exponent * torch.rand(3, 20, nu, dtype=torch.float64, generator=g)
    middle, slope, half = policies.chords(x, reach)
    raw = policies.offset.unsqueeze(-2) + x @ policies.gain.mT
    ends = [raw - reach, raw + reach]
    inner = [
        torch.minimum(torch.maximum(limit.expand_as(raw), ends[0]), ends[1])
        for limit in (policies.input_box.lower, policies.input_box.upper)
    ]
    steps = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(-1, 1, 1, 1)
    v = torch.cat([raw + reach * steps, torch.stack(ends + inner)])
    gap = policies.input_box.clip(v) - slope * (v - raw) - middle
    assert bool((gap.abs() <= half).all()) and bool(((slope >= 0) & (slope <= 1)).all())
    slack = 1e-11 * (1 + raw.abs() + reach)
    assert bool((gap.amax(0) >= half - slack).all()) and bool((gap.amin(0) <= slack - half).all())
    low, high = policies.secants(x, reach)
    once = (inner[0] == ends[0]) | (inner[1] == ends[1])
    assert bool((half <= 0.5 * (high - low) * reach + slack)[once].all())


def test_a_corner_is_held_by_half_the_width_that_secants_need():
    policies = AffinePolicies([[1.0]], [[[-1.0]]], Box([-1.0], [1.0]))
    reach = torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    middle, slope, half = policies.chords(torch.zeros(1, 1, 1).double(), reach)
    low, high = policies.secants(torch.zeros(1, 1, 1).double(), reach)
    found = [float(middle), float(slope), float(half), float(0.5 * (high - low) * reach)]
    assert found == pytest.approx([0.9, 0.5, 0.1, 0.2], abs=1e-10)


def test_control_slopes_of_the_center_alone_are_no_enclosure():
    policies, x, _, g = draw(5, 2, 1)
    radius = torch.ones_like(x)
    _, low, high = policies.slopes(x, x)
    assert float(excess(policies, x, radius, low, high, g)) > 0.1


def test_free_and_saturated_boxes_have_one_slope():
    box = Box(torch.tensor([-1.0]), torch.tensor([1.0]))
    policies = set_point_policies(
        torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0]]).double(), torch.zeros(2, 1).double(), box
    )
    _, low, high = policies.slopes(torch.full((1, 1, 1), -0.5).double(), torch.full((1, 1, 1), 0.5).double())
    assert low[0, 0, 0] == high[0, 0, 0] == 1.0
    assert low[1, 0, 0] == high[1, 0, 0] == 0.0


@pytest.mark.parametrize("gain", [torch.ones(2, 1), torch.ones(3, 1, 1), torch.full((2, 1, 1), torch.nan)])
def test_bad_gains_are_refused(gain):
    with pytest.raises(ValueError, match="AffinePolicies"):
        AffinePolicies(torch.zeros(2, 1), gain, Box(torch.tensor([-1.0]), torch.tensor([1.0])))
