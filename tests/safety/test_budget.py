"""A budget of expected cost: the account's rule keeps it, the published one with noise does not, and neither without Q̄."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost import CostToGo, Grid, RobustDP
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import BudgetFilter
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.task import Task
from gpsafe.verdict import clopper_pearson
from proofs_checks._defects import forged

INPUTS = Box(torch.tensor([-2.0]), torch.tensor([2.0]))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def gamble(*, noise: float = 0.1, budget: float = 0.55, horizon: int = 8) -> CostToGo:
    """x⁺ = u + w, known; x > 1 costs 1; the prior's u is 0. An input of 1 costs 1 at the next step with probability ½."""
    known = AffineKnown(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    cost, std = IndicatorCost(torch.ones(1, 1), torch.ones(1)), scalar(noise)
    task = Task(scalar(0.0), horizon, cost, budget, std)
    program = RobustDP(Grid(Box(scalar(-3.0), scalar(3.0)), (1200,), (4,)), task)
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=std.clamp_min(0.1), prior=known)
    bound = Mixture(rkhs_norm=1e-9, subgaussian=0.1, delta=0.1)
    prior = AffinePolicies(torch.zeros(1, 1), torch.zeros(1, 1, 1), INPUTS)
    return CostToGo.of(program, ConfidenceSet(bound).update(model), prior, INPUTS)


@pytest.fixture(scope="module")
def gambler() -> CostToGo:
    return gamble()


@pytest.fixture(scope="module")
def learned() -> CostToGo:
    """The 1-D reference plant after twelve transitions, and a policy that is safe on it."""
    system, (policies, _) = reference_1d(), reference_1d_policies()
    g = torch.Generator().manual_seed(0)
    x = system.state_box.sample(12, g) * 0.7
    u = system.input_box.sample(12, g)
    noise = system.noise_std * torch.randn(12, 1, dtype=torch.float64, generator=g)
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    confidence = ConfidenceSet(bound).update(model.condition(Transitions(x, u, system.mean(x, u) + noise)))
    program = RobustDP(Grid(system.state_box, (401,)), Task.of(system))
    return CostToGo.of(program, confidence, policies.select(torch.tensor([40])), system.input_box)


def run(safe: BudgetFilter, propose, mean, generator: torch.Generator) -> tuple[float, list]:
    """Σ c of one episode, and its decisions."""
    task, filter = safe.to_go.program.task, safe.start()
    x, total, found = task.initial_state, 0.0, []
    for t in range(task.horizon):
        total += float(task.cost(x))
        allowed, filter = filter.decide(x, propose(x, t, generator))
        found.append(allowed)
        x = mean(x, allowed.u) + task.noise_std * torch.randn(1, dtype=torch.float64, generator=generator)
    return total, found


def costs(safe: BudgetFilter, episodes: int) -> list[float]:
    g = torch.Generator().manual_seed(5)
    return [run(safe, lambda x, t, g: scalar(1.0), lambda x, u: u, g)[0] for _ in range(episodes)]


def test_the_published_rule_spends_the_budget_again_and_again_and_the_account_once(gambler):
    """½ at every step for as long as it goes well: 1 − 2⁻⁷ in all, where d is 0.55."""
    published = costs(BudgetFilter(gambler, rule="pointwise"), 30)
    low = clopper_pearson(sum(c > 0 for c in published), 30, 0.99)[0]
    assert low > 0.55 + 0.2
    one = run(BudgetFilter(gambler), lambda x, t, g: scalar(1.0), lambda x, u: u, torch.Generator().manual_seed(0))[1]
    assert [a.source for a in one] == ["learner", *6 * ["prior"], "learner"] and all(a.backed for a in one)
    assert one[0].price == pytest.approx(0.5, abs=0.03) and one[-1].slack >= 0
    kept = costs(BudgetFilter(gambler), 30)
    assert clopper_pearson(sum(c > 0 for c in kept), 30, 0.99)[0] <= 0.55 and max(kept) <= 1.0


def test_control_half_the_price_is_caught(gambler, monkeypatch):
    ahead = CostToGo.ahead
    monkeypatch.setattr(CostToGo, "ahead", lambda self, x, u, left: 0.3 * ahead(self, x, u, left))
    assert clopper_pearson(sum(c > 0 for c in costs(BudgetFilter(gambler), 30)), 30, 0.99)[0] > 0.55


def test_without_noise_both_rules_are_one_and_keep_the_budget_in_every_run():
    """Steps into cost are free until d = 2.1 is spent: certain ones, two of them."""
    to_go = gamble(noise=0.0, budget=2.1)
    found = {}
    for rule in ("account", "pointwise"):
        total, allowed = run(
            BudgetFilter(to_go, rule=rule), lambda x, t, g: scalar(1.5), lambda x, u: u, torch.Generator()
        )
        found[rule] = [a.source for a in allowed]
        assert total == 2.0 and all(a.backed for a in allowed)
    assert (
        found["account"] == found["pointwise"] == 2 * ["learner"] + 5 * ["prior"] + ["learner"]
    )  # the last one is never charged


def test_the_prior_earns_nothing_by_an_input_that_is_not_admitted():
    """The prior steps to 0.95, 0.95 away, and costs 0.69; with inputs up to 0.5 admitted alone, its step was priced as one of
    0.5, which left 0.405 on the account of 0.061: the learner could then spend 0.69 + 0.345 = 1.03 of 0.75."""
    known = AffineKnown(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1))
    task = Task(scalar(0.0), 3, IndicatorCost(torch.ones(1, 1), torch.ones(1)), 0.75, scalar(0.1))
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=0.1, prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1e-6, subgaussian=0.1, delta=0.1)).update(model)
    prior = AffinePolicies([[0.95]], [[[-1.0]]], INPUTS)
    program = RobustDP(Grid(Box(scalar(-4.0), scalar(6.0)), (1000,)), task)
    for most in (2.0, 0.5):
        to_go = CostToGo.of(program, confidence, prior, Box([-most], [most]))
        start = BudgetFilter(to_go).start()
        allowed, after = start.decide(scalar(0.0), scalar(math.nan))
        assert allowed.source == "prior" and float(allowed.u) == 0.95 and allowed.price > -0.05
        assert to_go.ahead(scalar(0.0), allowed.u, 3) >= to_go.value(scalar(0.0), 3) - 0.05
        assert after.decide(scalar(0.95), scalar(0.04))[0].source == "prior"  # x + u = 0.99: it costs 0.1 more


@settings(max_examples=5, deadline=None)
@given(seed=seeds(), spread=st.floats(0.0, 1.0))
def test_the_account_adds_up(learned, seed, spread):
    system, safe = reference_1d(), BudgetFilter(learned, budget=1.0)

    def propose(x, t, g):
        own = learned.policy(x.reshape(1, 1, -1))[0, 0]
        return own + spread * torch.randn(1, dtype=torch.float64, generator=g)

    _, found = run(safe, propose, system.mean, torch.Generator().manual_seed(seed))
    start = safe.budget - learned.value(system.initial_state, system.horizon)
    assert found[-1].slack == pytest.approx(start - sum(a.price for a in found), abs=1e-9)
    assert all(a.price <= 0 for a in found if a.source == "prior")
    assert not found[0].backed or all(a.backed and a.slack >= 0 for a in found)
    assert bool(torch.stack([system.input_box.contains(a.u) for a in found]).all())


@settings(max_examples=12, deadline=None)
@given(seed=seeds(), left=st.integers(1, 20))
def test_the_cost_ahead_dominates_that_of_the_true_plant(learned, seed, left):
    """Against c + E V̄(f*(x, u) + w) by exact Φ-differences over the cells."""
    system, g, grid = reference_1d(), torch.Generator().manual_seed(seed), learned.program.grid
    x, u = system.state_box.sample(1, g)[0] * 0.9, system.input_box.sample(1, g)[0]
    mean, std = float(system.mean(x, u)), float(system.noise_std)
    edges = torch.linspace(float(grid.box.lower), float(grid.box.upper), grid.num + 1, dtype=torch.float64)
    mass = torch.diff(torch.special.ndtr((edges - mean) / std))
    outside = (left - 1) * learned.program.cost.ceiling
    exact = float(system.cost(x) + mass @ learned.values[left - 1] + (1 - mass.sum()) * outside)
    assert learned.ahead(x, u, left) >= min(exact, left * learned.program.cost.ceiling) - 1e-9
    own = learned.policy(x.reshape(1, 1, -1))[0, 0]
    cell = grid.index(x)
    value = learned.value(x, left)
    assert value >= min(float(learned.values[left, cell]), left * 1.0) and learned.ahead(x, own, 1) == pytest.approx(
        float(system.cost(x)), abs=1e-6
    )


def test_the_first_step_is_the_programs_own_value(learned):
    system, program = reference_1d(), learned.program
    whole = program.evaluate(learned.confidence, learned.policy).upper
    own = learned.policy(system.initial_state.reshape(1, 1, -1))[0, 0]
    assert learned.ahead(system.initial_state, own, system.horizon) == pytest.approx(float(whole), abs=1e-7)
    assert learned.values.shape == (system.horizon + 1, program.grid.num) and bool((learned.values[0] == 0).all())
    assert bool((learned.values.diff(dim=0) >= -1e-12).all())


def test_a_learned_critic_and_an_unchecked_set_back_nothing(gambler):
    free = BudgetFilter(gambler, rule="pointwise", surrogate=lambda x, u, left: 0.0)
    total, found = run(free, lambda x, t, g: scalar(2.0), lambda x, u: u, torch.Generator().manual_seed(0))
    assert total > 0.55 and not any(a.backed for a in found) and found[0].source == "learner"
    wrong = forged(
        gambler,
        confidence=ConfidenceSet(Constant(rkhs_norm=1e-9, subgaussian=0.1, delta=0.1)).update(gambler.confidence.model),
    )
    assert not BudgetFilter(wrong).decide(scalar(0.0), scalar(0.0))[0].backed


def test_a_surrogate_that_fails_or_writes_costs_the_proposal_alone(gambler):
    def writes(x, u, left):
        x += 9.0
        u += 9.0
        return 0.0

    def fails(x, u, left):
        raise ArithmeticError("no guess")

    def leaves(x, u, left):
        raise GeneratorExit

    for surrogate, source in ((writes, "learner"), (fails, "prior"), (leaves, "prior")):
        rule, x = BudgetFilter(gambler, rule="pointwise", surrogate=surrogate).start(), scalar(0.0)
        found, after = rule.decide(x, scalar(0.1))
        assert (found.source, float(x), after.spent) == (source, 0.0, 0.0) and float(found.u) in (0.1, 0.0)
        assert not found.backed


def test_what_is_not_finite_falls_to_the_prior_and_ends_the_guarantee(gambler):
    safe = BudgetFilter(gambler).start()
    for bad in (math.nan, math.inf, -math.inf):
        allowed, after = safe.decide(scalar(0.0), scalar(bad))
        assert allowed.source == "prior" and allowed.backed and float(allowed.u) == 0.0
        allowed, after = safe.decide(scalar(bad), scalar(0.0))
        assert allowed.source == "prior" and not allowed.backed and bool(torch.isfinite(allowed.u).all())
        assert not after.decide(scalar(0.0), scalar(0.0))[0].backed  # not again in this episode
        assert after.start().decide(scalar(0.0), scalar(0.0))[0].backed
    far, _ = safe.decide(scalar(50.0), scalar(0.0))  # outside the grid everything is charged
    assert not far.backed and far.slack < 0


def test_a_prior_that_is_not_certified_backs_nothing():
    poor = gamble(budget=0.0)
    found = run(BudgetFilter(poor), lambda x, t, g: scalar(1.0), lambda x, u: u, torch.Generator().manual_seed(0))[1]
    assert all(a.source == "prior" for a in found) and found[0].slack < 1e-6


def test_what_does_not_fit_is_refused(gambler):
    two = AffinePolicies(torch.zeros(2, 1), torch.zeros(2, 1, 1), INPUTS)
    with pytest.raises(ValueError, match="a class of one policy"):
        CostToGo.of(gambler.program, gambler.confidence, two, INPUTS)
    for change, message in (
        ({"budget": -1.0}, "budget"),
        ({"budget": math.nan}, "budget"),
        ({"rule": "hope"}, "rule"),
        ({"surrogate": lambda x, u, left: 0.0}, "the pointwise rule with a surrogate"),
    ):
        with pytest.raises(ValueError, match=message):
            BudgetFilter(gambler, **change)
    with pytest.raises(ValueError, match="to_go"):
        BudgetFilter(None)
    safe = BudgetFilter(gambler, stage=8)
    with pytest.raises(ValueError, match="at most 8 steps"):
        safe.decide(scalar(0.0), scalar(0.0))
    with pytest.raises(ValueError, match="left >= 1"):
        gambler.ahead(scalar(0.0), scalar(0.0), 0)
    for left in (-1, 9, 1.0, True):  # −1 was read from the end of the table, and cut to −C
        with pytest.raises(ValueError, match="left"):
            gambler.value(scalar(0.0), left)
    with pytest.raises(ValueError, match="left <= 8"):
        BudgetFilter(gambler, stage=-1).decide(scalar(0.0), scalar(0.0))
    with pytest.raises(ValueError, match="learned"):
        BudgetFilter(gambler).decide(scalar(0.0), torch.zeros(2))
