"""One Gaussian test for all steps: attained by constant pushes, held by adaptive ones; broken forms are caught."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.cost import total_variation
from gpsafe.cost.drift import drift_gap, drifted, push
from gpsafe.cost.total_variation import TotalVariation, simulation_gap
from gpsafe.safety.safe_set import PolicyGap, through

NORMAL = NormalDist()
NODES = torch.linspace(-8, 8, 321, dtype=torch.float64)
STEP = float(NODES[1] - NODES[0])


def tensor(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def density(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi) * STEP


def expectations(z: torch.Tensor, first: float, second: torch.Tensor) -> tuple[float, float]:
    """E_P Z and E_Q Z by quadrature: Z = z[w₁, x₂ = w₂ + δ₂(x₁)] on the nodes, pushes `first` and `second` (of x₁)."""
    weight = density(NODES)
    pushed = density(NODES - first)[:, None] * density(NODES[None] - second[:, None])
    return float((weight[:, None] * weight[None] * z).sum()), float((pushed * z).sum())


def adversary(first: float, second: torch.Tensor, level: float) -> torch.Tensor:
    """The likelihood-ratio test of Q against P."""
    ratio = first * NODES[:, None] - 0.5 * first**2 + second[:, None] * NODES[None] - 0.5 * second[:, None] ** 2
    return (ratio > level).double()


@settings(max_examples=25, deadline=None)
@given(seeds(), st.floats(0.1, 1.5), st.floats(-1.5, 1.5))
def test_adaptive_pushes_raise_no_expectation_beyond_one_test(seed, radius, level):
    """The second push spends what the first left of r², in a direction that depends on the first state; Z is the best test."""
    generator = torch.Generator().manual_seed(seed)
    first = radius * float(torch.rand(1, generator=generator)) ** 0.5
    rest = math.sqrt(max(radius**2 - first**2, 0.0))
    second = rest * torch.where(
        torch.rand(321, generator=generator) < 0.5, torch.sin(3 * NODES), torch.ones(321).double()
    )
    for z in (adversary(first, second, level), torch.rand(321, 321, dtype=torch.float64, generator=generator)):
        before, after = expectations(z, first, second)
        assert after <= float(drifted(tensor(before), radius, 1.0)) + 1e-4  # of the quadrature


@pytest.mark.parametrize("share", [0.002, 0.1, 0.6])
def test_constant_pushes_attain_it_and_a_norm_of_the_wrong_kind_is_caught(share):
    """Z the indicator of a half-space of w₁ + w₂; with max_t a_t in place of the root of the sum the bound is broken."""
    a, edge = 0.4, NORMAL.inv_cdf(1 - share) * math.sqrt(2)
    after = 1 - NORMAL.cdf((edge - 2 * a) / math.sqrt(2))
    assert float(drifted(tensor(share), a * math.sqrt(2), 1.0)) == pytest.approx(after, rel=1e-8)
    assert float(drifted(tensor(share), a, 1.0)) < 0.97 * after
    assert after <= share + float(drift_gap(tensor(a, a, 0.0), 1.0))


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.5, 1.0])
def test_rare_costs_are_rounded_up_too(radius):
    """½(1 + erf x) loses the digits of a small probability: 1.64191e-9 for 1.64192e-9, and 0 for 6e-17."""
    for share in (1e-4, 1e-9, 1.1e-11, 1e-15, 1e-20, 1e-40):
        exact = NORMAL.inv_cdf(share) + radius
        exact = 0.5 * math.erfc(-exact / math.sqrt(2))
        found = float(drifted(tensor(share), radius, 1.0))
        assert exact <= found <= exact * (1 + 3e-9)


@given(st.lists(st.floats(0.0, 3.0), min_size=2, max_size=40))
def test_it_is_below_the_sum_of_steps_and_below_pinsker(pushes):
    a = tensor(*pushes)
    found, rates = float(drift_gap(a, 2.0)), torch.special.erf(a / math.sqrt(8.0))
    assert found <= float(simulation_gap(rates, 2.0)) * (1 + 1e-9) + 1e-12
    pinsker = 2.0 * sum(min(1.0, 0.5 * math.sqrt(float(a[:t].square().sum()))) for t in range(1, len(a)))
    assert found <= pinsker * (1 + 1e-9) + 1e-12
    assert found >= float(drift_gap(0.5 * a, 2.0))


def test_thirty_small_steps_cost_a_third_of_their_sum():
    a = torch.full((30,), 0.01, dtype=torch.float64)
    steps = float(simulation_gap(torch.special.erf(a / math.sqrt(8.0)), 1.0))
    assert 3.5 < steps / float(drift_gap(a, 1.0)) < 4.5
    gap = PolicyGap(tensor([0.0, 0.01], [0.01, 0.0]), 30, 1.0)
    rare = gap.upper(tensor(0.1, 0.1))[0]
    assert float(rare[0]) == pytest.approx(0.1) and float(rare[1]) < 0.1 + 0.04 * steps  # a rare cost stays rare


def test_what_is_no_number_admits_nobody():
    nan, inf = math.nan, math.inf
    gap = PolicyGap(tensor([0.0, nan, inf], [0.1, 0.1, -1.0]), 5, 1.0)
    found = through(tensor(0.2, nan), gap)
    assert found[0, 0] == pytest.approx(0.2) and found[0, 1] == inf and found[0, 2] == pytest.approx(4.2)
    assert bool((found[1] == inf).all())
    assert drifted(tensor(nan, -0.1, 0.2, 3.0), tensor(0.1, 0.1, nan, 0.1), 2.0).tolist() == [2.0] * 4
    assert drifted(tensor(0.0, 0.0, 2.0), tensor(3.0, inf, 0.0), 2.0).tolist() == [2e-300, 2.0, 2.0]
    assert push(tensor([0.3, 0.8], [0.0, nan], [-1.0, 0.0]), tensor(0.1, 0.4)).tolist() == [
        pytest.approx(math.hypot(3.0, 2.0)), inf, inf,
    ]  # fmt: skip
    assert push(tensor([0.0, 0.0], [0.0, 0.4]), tensor(0.0, 0.4)).tolist() == [0.0, pytest.approx(1.0)]
    assert drift_gap(tensor(nan, 0.0, 0.0), 1.0) == pytest.approx(2.0)
    assert drift_gap(tensor(-0.5, 0.0, 0.0), 1.0) == pytest.approx(2.0)
    assert drift_gap(tensor(inf, inf, inf, 0.0), 0.7).tolist() == 0.7 * 3  # never more than C at every step
    assert drifted(tensor(2.0, 2.1, inf, -inf), tensor(0.0, 0.0, 0.0, 0.0), 2.0).tolist() == [2.0] * 4


def test_paths_that_are_pushed_too_far_count_in_full(monkeypatch):
    """Half of the centre's paths meet a = 3, where f moves them all into the cost; leaving them out of Z̃ is caught.

    T = 3, c = 1{x₂ > 0 and the path met the place}: under f′ it never is paid, under f with probability ½·Φ(3).
    """
    monkeypatch.setattr(total_variation, "RADII", (1 / 16,))
    paths = 4000
    rates = torch.zeros(1, paths, 3, dtype=torch.float64)
    rates[0, ::2, 1] = math.erf(3 / math.sqrt(8))
    cost = torch.zeros(1, paths, dtype=torch.float64)
    bound = TotalVariation.__new__(TotalVariation)
    monkeypatch.setattr(TotalVariation, "total_ceiling", 3.0)
    truth = 0.5 * NORMAL.cdf(3.0)
    assert float(bound._tested(cost, rates, 0.05)) >= truth
    assert float(bound._tested(cost, torch.zeros_like(rates), 0.05)) < truth / 50


def test_every_result_is_rounded_upwards():
    """Against 40 digits: never below, and above by no more than the margins that the docstrings' "rounded up" stands for."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40

    def normal(x):
        return mpmath.ncdf(x)

    generator = torch.Generator().manual_seed(0)
    gaps = torch.rand(60, 3, dtype=torch.float64, generator=generator)
    noise = 0.1 + torch.rand(3, dtype=torch.float64, generator=generator)
    for gap, found in zip(gaps.tolist(), push(gaps, noise).tolist(), strict=True):
        exact = mpmath.sqrt(sum((mpmath.mpf(g) / mpmath.mpf(s)) ** 2 for g, s in zip(gap, noise.tolist(), strict=True)))
        assert exact <= found <= exact * (1 + mpmath.mpf(10) ** -13)
    for pushes in (0.4 * torch.rand(60, 7, dtype=torch.float64, generator=generator)).tolist():
        exact = 2 * sum(
            2 * normal(mpmath.sqrt(sum(mpmath.mpf(a) ** 2 for a in pushes[:t])) / 2) - 1 for t in range(1, 7)
        )
        assert exact <= float(drift_gap(tensor(*pushes), 2.0)) <= exact * (1 + mpmath.mpf(10) ** -12)
    for share, radius in (2.0 * torch.rand(60, 2, dtype=torch.float64, generator=generator)).tolist():
        share = 10.0 ** (-4 * share) / 2
        exact = 3 * normal(mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(share) - 1) + mpmath.mpf(radius))
        found = float(drifted(tensor(3 * share), radius, 3.0))
        assert exact <= found <= exact * (1 + mpmath.mpf(10) ** -8)
