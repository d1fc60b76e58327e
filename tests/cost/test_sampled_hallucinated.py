"""Lower estimates: sampled ≤ hallucinated ≤ the robust value, and neither is ever called a bound."""

import pytest
import torch
from cost_cases import generator, make_case
from reference import robust_cost_1d

from gpsafe.cost.grid import Grid
from gpsafe.cost.hallucinated import Adversary, Hallucinated
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.sampled import Sampled
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.systems.base import HingeCost, sample_noise

SMALL = {"samples": 64}


@pytest.fixture(scope="module")
def case():
    return make_case("1d", (4, 25, 45))


@pytest.fixture(scope="module")
def frontier(case):
    """Policies from safe to unsafe."""
    return case.choose(30, 45, 50, 55, 58, 62)


def test_sampled_is_at_most_hallucinated_is_at_most_every_sound_bound(case, frontier):
    sampled = Sampled(**case.task, **SMALL).evaluate(case.confidence, frontier)
    found = Hallucinated(**case.task, **SMALL, steps=5).evaluate(case.confidence, frontier)
    dp = RobustDP(
        Grid(case.system.state_box, (801,)),
        case.task["task"],
    )
    uppers = [
        bound.evaluate(case.confidence, frontier)
        for bound in (dp, ScenarioTube(**case.task, samples=200), TotalVariation(**case.task, samples=200))
    ]
    half = Sampled(**{**case.task, "delta": 0.005}, **SMALL).evaluate(case.confidence, frontier)
    assert bool((half.lower <= found.lower).all())
    assert bool((half.lower <= sampled.lower + 1e-12).all())
    for interval in uppers:
        assert bool((found.lower <= interval.upper).all()), interval.method
    assert float(found.lower.max()) > 5.0


def test_hallucination_finds_what_sampling_misses(case):
    policies = case.choose(55)
    sampled = Sampled(**case.task, **SMALL).evaluate(case.confidence, policies)
    found = Hallucinated(**case.task, **SMALL, steps=0).evaluate(case.confidence, policies)
    assert float(sampled.lower) < 1.0 < 5.0 < float(found.lower)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("index", [pytest.param(30, marks=SLOW), 50, pytest.param(56, marks=SLOW)])
def test_lower_estimates_agree_with_the_brute_force_robust_value(case, index):
    """V_0(x₀) by naive loops on the rectangular set: hallucinated ≤ V_0 ≤ robust DP, and the search comes near."""
    model, policies, horizon = case.confidence.model, case.choose(index), 8
    cache: dict[float, tuple[float, float]] = {}

    def policy(x: float) -> float:
        return float(policies(torch.tensor([[[x]]], dtype=torch.float64)))

    def interval(x: float, u: float) -> tuple[float, float]:
        if x not in cache:
            z = torch.tensor([[x, u]], dtype=torch.float64)
            low, high = case.confidence.bounds(z)
            center = float(model.prior(z[:, :1], z[:, 1:]))
            cache[x] = center + float(low), center + float(high)
        return cache[x]

    task = case.task_with(horizon=horizon, initial_state=torch.tensor([0.6], dtype=torch.float64))
    exact = robust_cost_1d(
        interval, policy, lambda x: float(x > 1.0), start=0.6, horizon=horizon, noise_std=0.01, low=-0.4, high=2.0
    )
    found = Hallucinated(**task, samples=400, steps=10).evaluate(case.confidence, policies)
    dp = RobustDP(Grid(case.system.state_box, (2001,)), task["task"])
    upper = float(dp.evaluate(case.confidence, policies).upper)
    assert float(found.lower) <= exact + 0.02 <= upper + 0.04
    search = Hallucinated(**task, samples=400, steps=10)
    adversary = search.search(case.confidence, policies)
    value = search.simulate(case.confidence, policies, adversary, search.noise(case.confidence, 99)).mean()
    assert float(value) >= 0.75 * exact - 0.05


@pytest.mark.parametrize("mode", ["functions", "particles"])
def test_sampled_costs_are_costs_of_dynamics_inside_the_set(case, mode):
    """Without data and with a tiny norm the set is a point: every draw then costs what the known part costs."""
    tight = make_case("1d", (), norm_factor=1e-9)
    policies = tight.choose(10, 60)
    bound = Sampled(**tight.task, **SMALL, mode=mode)
    costs = bound.costs(tight.confidence, policies)
    assert costs.shape == (2, 8, 64)
    assert bool((costs[0] == 0).all())
    assert float(costs.var(1).amax()) == 0.0
    wide = Sampled(**case.task, **SMALL, mode=mode).costs(case.confidence, case.choose(10, 62))
    assert bool((wide >= 0).all())
    assert bool((wide <= 20).all())


def test_function_draws_are_one_function_and_particles_are_not(case):
    """Without noise every path of a function draw is the same trajectory; particles move independently."""
    cost = HingeCost(torch.tensor([1.0]), -2.0, 5.0)  # grows with every state
    task = case.task_with(noise_std=torch.zeros(1, dtype=torch.float64), cost=cost)
    spread = {
        mode: float(Sampled(**task, samples=16, mode=mode).costs(case.confidence, case.choose(52)).var(-1).amax())
        for mode in ("functions", "particles")
    }
    assert spread["functions"] < 1e-12 < 1e-6 < spread["particles"]


def test_gradient_ascent_does_not_lose_against_its_start(case, frontier):
    start = Hallucinated(**case.task, **SMALL, steps=0)
    better = Hallucinated(**case.task, **SMALL, steps=8)
    noise = start.noise(case.confidence, 5, paths=16)
    values = [
        bound.simulate(case.confidence, frontier, bound.search(case.confidence, frontier), noise).mean(-1)
        for bound in (start, better)
    ]
    assert bool((values[1] >= values[0] - 0.02).all())


def test_costs_without_half_spaces_are_searched_without_gradients(case, frontier):
    class Opaque:
        ceiling = 1.0

        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x):
            return self.inner(x)

        def upper(self, lower, upper):
            return self.inner.upper(lower, upper)

        def lower(self, lower, upper):
            return self.inner.lower(lower, upper)

    task = case.task_with(cost=Opaque(case.system.cost))
    plain = Hallucinated(**case.task, **SMALL, steps=0).evaluate(case.confidence, frontier)
    opaque = Hallucinated(**task, **SMALL, steps=5).evaluate(case.confidence, frontier)
    assert torch.allclose(plain.lower, opaque.lower, atol=1.0)


def test_adversaries_stay_in_the_unit_cube():
    g = generator(0)
    draw = lambda *shape: 9 * torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    adversary = Adversary(draw(2, 3, 4, 1), draw(2, 3, 4, 1, 2), draw(2, 4, 2), draw(2, 4, 2).abs() + 0.1)
    for smooth in (False, True):
        eta = adversary(1, draw(2, 3, 5, 2), smooth=smooth)
        assert eta.shape == (2, 3, 5, 1)
        assert bool((eta.abs() <= 1).all())


def test_candidates_cover_corners_feedback_and_random_walks():
    case = make_case("pendulum", ())
    bound = Hallucinated(**case.task, samples=8, random=2)
    noise = sample_noise(case.system.noise_std, (30, 1, 4), generator(1))
    found = bound.candidates(case.confidence, case.choose(3, 9), noise)
    assert found.bias.shape == (2, 2 + 1 + 4 + 2, 30, 1)
    hinge = HingeCost(torch.tensor([1.0, 0.0]), 1.2, 0.5)
    interval = Hallucinated(**case.task_with(cost=hinge), samples=8, steps=1).evaluate(case.confidence, case.choose(3))
    assert 0.0 <= float(interval.lower) <= float(interval.upper) == 15.0
