"""The total-variation bound against loops: rates, paths, weights and the cut."""

import math
from functools import partial

import pytest
import torch
from cost_cases import make_case

from gpsafe.cost import monte_carlo
from gpsafe.cost.total_variation import RADII, TotalVariation, parting_rate, simulation_gap
from gpsafe.systems.base import HingeCost

tensor = partial(torch.tensor, dtype=torch.float64)


def test_rates_are_those_of_gaussians_and_capped():
    gap, noise = tensor([[0.3, 0.0], [0.2, 0.5], [0.0, 0.0], [90.0, 0.0]]), tensor([0.4, 2.0])
    for found, row in zip(parting_rate(gap, noise).tolist(), gap.tolist(), strict=True):
        exact = math.erf(math.hypot(row[0] / 0.4, row[1] / 2.0) / (2 * math.sqrt(2)))
        assert exact * (1 - 1e-15) <= found <= min(1.0, exact * (1 + 1e-12))
    assert parting_rate(tensor([1e-9, 0.0]), tensor([0.0, 1.0])).item() == 1.0  # without noise any gap parts
    assert parting_rate(tensor([0.0, 0.0]), tensor([0.0, 1.0])).item() == 0.0
    for gap in (math.nan, -0.1, math.inf):
        assert parting_rate(tensor([gap, 0.0]), tensor([1.0, 1.0])).item() == 1.0


def test_gaps_part_as_early_as_they_may():
    rates = tensor([[0.1, 0.2, 0.3, 0.9], [0.7, 0.6, 0.1, 0.1], [0.0, 0.0, 0.0, 1.0]])
    expected = [0.1 * 3 + 0.2 * 2 + 0.3, 0.7 * 3 + 0.3 * 2, 0.0]
    torch.testing.assert_close(simulation_gap(rates, 2.5), 2.5 * tensor(expected))
    strange = tensor([[0.0, math.nan, 0.0, 0.0], [0.25, -0.1, 0.0, 0.0], [0.25, 0.0, 1.5, 0.0]])  # no probabilities: 1
    assert simulation_gap(strange, 1.0).tolist() == [2.0, 0.25 * 3 + 0.75 * 2, 0.25 * 3 + 0.75]


@pytest.fixture(scope="module")
def bound():
    case = make_case("1d", (0, 3))
    cost = HingeCost([[1.0]], [-0.6], 1.0)  # whose own costs are 0 on these paths
    return case, TotalVariation(**case.task_with(horizon=4, cost=cost), samples=150, chunk=360)


def test_paths_follow_the_middle_of_the_set(bound):
    case, tv = bound
    policies, confidence = case.choose(0, 40), case.confidence
    noise = tv.noise(confidence, 3)
    total, rates = tv.paths(confidence, policies, noise)
    assert total.shape == (2, 150) and rates.shape == (2, 150, 4) and float(rates.max()) > 0
    assert float(total.min(-1).values.max()) > 0.01 and float(total.max()) < 4
    for p in range(2):
        for n in range(0, 150, 37):
            x, cost = case.system.initial_state, 0.0
            for t in range(4):
                cost += float(tv.cost(x))
                u = policies.select(torch.tensor([p]))(x[None, None])[0, 0]
                low, high = (v[0] for v in confidence.bounds(torch.cat([x, u])[None]))
                rate = parting_rate((high - low) / 2, tv.noise_std)
                assert float(rates[p, n, t]) == pytest.approx(float(rate), rel=1e-9)
                x = case.system.known(x[None], u[None])[0] + (low + high) / 2 + noise[t, 0, n]
            assert float(total[p, n]) == pytest.approx(cost)


def test_the_bound_is_the_least_of_its_limits(bound):
    assert tuple(2.0**k for k in range(-4, 2)) == RADII
    case, tv = bound
    confidence = case.confidence
    policies = case.choose(0, 40, 60)
    found = tv.evaluate(confidence, policies)
    cost, rates = tv.paths(confidence, policies, tv.noise(confidence, 3))
    share = tv.stage_delta(confidence) / (3 * (5 + len(RADII)))
    T, C = 4, tv.cost.ceiling
    for p in range(3):
        limits = [T * C]
        for cut in range(T):
            weights = [max(T - 1 - t - cut, 0) for t in range(T)]
            sample = cost[p] + C * sum(w * rates[p, :, t] for t, w in enumerate(weights))
            limits.append(C * cut + float(monte_carlo.mean_upper(sample, T * C + C * sum(weights), share)))
        assert float(found.upper[p]) == pytest.approx(min(limits), rel=1e-12)
        lower = float(monte_carlo.mean_lower(cost[p], T * C, share))
        assert float(found.lower[p]) == pytest.approx(min(max(lower, 0.0), min(limits)), rel=1e-12, abs=1e-15)
        assert bool(found.vacuous[p]) == (min(limits) >= T * C * (1 - 1e-9))
    assert bool((found.upper < 0.9 * T * C).any())
    assert found.delta == tv.stage_delta(confidence) and found.sound_upper and found.method == tv.name


def test_a_set_away_from_zero_is_as_wide_as_it_is_and_an_empty_one_parts(bound, monkeypatch):
    case, tv = bound
    noise = tv.noise(case.confidence, 3)
    width = float(case.confidence.bound.prior_width(case.confidence.model, torch.zeros(2).double()))
    for low, high, rate in (
        (1.0, 1.02, parting_rate(tensor([0.01]), tv.noise_std)),
        (-1.02, -1.0, parting_rate(tensor([0.01]), tv.noise_std)),
        (1.0 + 0.5e-9 * width, 1.0, tensor(0.0)),
        (1.0 + 2e-9 * width, 1.0, tensor(1.0)),
    ):
        monkeypatch.setattr(
            type(case.confidence), "bounds", lambda self, z, a=low, b=high: (0 * z[..., :1] + a, 0 * z[..., :1] + b)
        )
        rates = tv.paths(case.confidence, case.choose(0), noise)[1]
        torch.testing.assert_close(rates, rate.expand_as(rates), rtol=1e-9, atol=0)


def test_small_rates_cost_least_without_a_cut(bound):
    """The limit of Σ c + C Σ_t (T−1−t) τ_t, whose samples have the ceiling C(T + 3 + 2 + 1)."""
    _, tv = bound
    C, g = tv.cost.ceiling, torch.Generator().manual_seed(1)
    cost = (torch.rand(2, 300, dtype=torch.float64, generator=g) < 0.02).double()
    rates = 0.02 * torch.rand(2, 300, 4, dtype=torch.float64, generator=g)
    found = tv._upper(cost, rates, 1e-3)
    for p in range(2):
        sample = cost[p] + C * (3 * rates[p, :, 0] + 2 * rates[p, :, 1] + rates[p, :, 2])
        assert float(found[p]) == pytest.approx(float(monte_carlo.mean_upper(sample, 10 * C, 1e-3)), rel=1e-12)


@pytest.mark.parametrize("answer", [math.nan, -0.5, 1.5])
def test_a_cost_beyond_its_range_counts_as_the_largest(bound, answer):
    class Says:
        """0.25, and later something else beyond a state."""

        ceiling = 1.0
        beyond = 0.25

        def __call__(self, x):
            return torch.where(x[..., 0] > 0.0, self.beyond, 0.25)

        def upper(self, lower, upper):
            return torch.ones_like(lower[..., 0])

        def lower(self, lower, upper):
            return torch.zeros_like(lower[..., 0])

    case, _ = bound
    says = Says()
    tv = TotalVariation(**case.task_with(horizon=4, cost=says), samples=40)
    says.beyond = answer  # the task looked at it before
    policies, confidence = case.choose(0, 40), case.confidence
    total, _ = tv.paths(confidence, policies, tv.noise(confidence, 3))
    paths = set(total.flatten().tolist())
    assert paths <= {1.0, 1.75, 2.5, 3.25, 4.0} and len(paths) > 1  # k steps at 1, the others at ¼
