"""The account number by number: tables against the program's own sweeps, Q̄ against loops, each entry of the account by hand."""

import math
from dataclasses import replace

import pytest
import torch

from gpsafe.assumptions import Assumption
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import CostToGo, Grid, RobustDP
from gpsafe.cost.robust_dp import sweep
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies, inputs_at
from gpsafe.rkhs import kernels
from gpsafe.safety import BudgetFilter
from gpsafe.sets import Box
from gpsafe.systems.base import HingeCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task

STEPS, CEILING, STD = 5, 2.0, 0.15
INPUTS = Box(torch.tensor([-1.5, -1.0]), torch.tensor([1.5, 1.0]))


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def made(*, noise: float = STD, norm: float = 1.0, sides: int = 1) -> CostToGo:
    """x⁺ = x/2 + u₁ + u₂/2 + f + w, ‖f‖ ≤ 1, six transitions; c rises from 0 at x = ½ to 2; the prior is u = (−x/4, 0.1)."""
    known = AffineKnown(tensor(0.5).reshape(1, 1), tensor(1.0, 0.5).reshape(1, 2), torch.zeros(1).double())
    task = Task(tensor(0.2), STEPS, HingeCost([[1.0], [-1.0]][:sides], [0.5, 0.5][:sides], CEILING), 1.5, tensor(noise))
    program = RobustDP(Grid(Box(tensor(-3.0), tensor(3.0)), (120,), (3,)), task)
    model = GP.create(
        kernels.rbf([1.0, 1.0, 1.0], 0.09), 1e-2, nx=1, nu=2, noise_std=tensor(max(noise, 0.1)), prior=known
    )
    g = torch.Generator().manual_seed(1)
    x, u = torch.randn(6, 1, dtype=torch.float64, generator=g), torch.rand(6, 2, dtype=torch.float64, generator=g)
    data = Transitions(x, u, known(x, u) + 0.05 * torch.sin(3 * x))
    confidence = ConfidenceSet(Mixture(rkhs_norm=norm, subgaussian=max(noise, 0.1), delta=0.1)).update(
        model.condition(data)
    )
    prior = AffinePolicies(tensor(0.0, 0.1).reshape(1, 2), tensor(-0.25, 0.0).reshape(1, 2, 1), INPUTS)
    return CostToGo.of(program, confidence, prior, INPUTS)


@pytest.fixture(scope="module")
def to_go() -> CostToGo:
    return made()


@pytest.mark.parametrize("sides", [1, 2])  # dear on both: then each end of a box of means is the dearest somewhere
def test_the_tables_are_those_of_the_programs_sweep(sides):
    to_go = made(sides=sides)
    program, n = to_go.program, to_go.program.grid.num
    enclosure = program.enclosure(to_go.confidence, to_go.policy).refine(to_go.confidence)
    low, high = enclosure.boxes()
    assert float((high - low)[0, :n].min()) > 0.2  # so that ends taken for each other show
    rates = program.rates(enclosure.centers, enclosure.radius)[:, :n]
    assert float(rates.max()) == CEILING
    for k in range(STEPS + 1):
        own = sweep(program.average, low[:, :n], high[:, :n], rates, horizon=k, outside_rate=CEILING)
        assert torch.equal(to_go.values[k], own[0])
        if k < STEPS:
            assert torch.equal(to_go.tables[k], program.average(own.reshape(1, n), k * CEILING)[0])


@pytest.mark.parametrize("left", range(1, STEPS + 1))
def test_the_cost_ahead_is_the_dearest_mean_of_the_box(to_go, left):
    """Against Φ-differences over the cells for means all over [l, h]; the program adds what a sub-cell can hide."""
    x, u, grid = tensor(0.4), tensor(0.3, -0.4), to_go.program.grid
    low, high = to_go.confidence.bounds(torch.cat([x, u]).unsqueeze(0))
    known = 0.5 * 0.4 + 0.3 - 0.5 * 0.4
    assert float(high - low) > 0.2
    edges = torch.linspace(-3.0, 3.0, grid.num + 1, dtype=torch.float64)
    naive = []
    for mean in torch.linspace(known + float(low), known + float(high), 60, dtype=torch.float64):
        mass = torch.diff(torch.special.ndtr((edges - mean) / STD))
        outside = (1 - mass.sum()) * (left - 1) * CEILING
        naive.append(float(mass @ to_go.values[left - 1] + outside))
    found = to_go.ahead(x, u, left)  # c(0.4) = 0
    assert max(naive) - 1e-9 <= found <= min(max(naive) + 0.1 * left, left * CEILING)
    costly = to_go.ahead(
        tensor(0.9), tensor(0.1, -0.4), left
    )  # the same known part of the next mean, from where c = 0.4
    assert costly >= 0.4 and (left > 1 or costly == pytest.approx(0.4, abs=1e-6))


def test_what_leaves_the_grid_or_is_not_finite_is_charged_in_full(to_go):
    edge = tensor(2.9)  # c = 2
    for left in range(1, STEPS + 1):
        assert to_go.ahead(edge, tensor(1.5, 1.0), left) == left * CEILING
        for away in (3.5, -3.5, math.nan, math.inf):
            assert to_go.value(tensor(away), left) == left * CEILING
    low = tensor(-2.9)  # c = 0, and the box of next means leaves on the other side
    assert to_go.ahead(low, tensor(-1.5, -1.0), 3) == pytest.approx(2 * CEILING, rel=1e-6)
    assert to_go.value(tensor(0.2), 2) == pytest.approx(float(to_go.values[2, 64]), abs=1e-8)  # 0.2 is in cell 64


def test_an_entry_of_the_account(to_go):
    x, u = tensor(0.62), tensor(0.3, -0.4)  # c = 0.12, and up to 0.15 in its cell
    value, ahead = to_go.value(x, STEPS), to_go.ahead(x, u, STEPS)
    price = ahead - value
    just = replace(BudgetFilter(to_go), slack=price)  # exactly what it costs
    allowed, after = just.decide(x, u)
    assert allowed.source == "learner" and allowed.price == price and allowed.slack == 0.0 and allowed.backed
    assert (after.stage, after.spent, after.slack, after.broken) == (1, pytest.approx(0.12), 0.0, False)
    short, later = replace(BudgetFilter(to_go), slack=price - 1e-9).decide(x, u)
    own = to_go.policy(x.reshape(1, 1, 1))[0, 0]
    credit = to_go.ahead(x, own, STEPS) - value
    assert short.source == "prior" and torch.equal(short.u, own) and credit < -1e-9
    assert short.price == credit and short.slack == price - 1e-9 - credit == later.slack
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # the box at a point may stick out of its cell's: V̄ bounds the prior, too
        patch.setattr(CostToGo, "ahead", lambda *_: value + 0.5)
        assert replace(BudgetFilter(to_go), slack=0.2).decide(x, u)[0].price == 0.0
    first, _ = BudgetFilter(to_go, 9.0).decide(x, u)
    assert first.slack == 9.0 - value - price
    _, spent = replace(BudgetFilter(to_go), stage=2, spent=0.25, slack=5.0).decide(tensor(1.1), u)
    assert (spent.stage, spent.spent) == (3, pytest.approx(0.25 + 0.6))


class Rounded(HingeCost):
    """Known at a point up to ±0.125."""

    def upper(self, lower, upper):
        return super().upper(lower, upper) + 0.125

    def lower(self, lower, upper):
        return super().lower(lower, upper) - 0.125


def test_what_is_spent_is_the_upper_end_of_the_cost():
    to_go = made()
    cost = Rounded([[1.0]], [0.5], CEILING)
    program = replace(to_go.program, task=replace(to_go.program.task, cost=cost))
    loose = CostToGo.of(program, to_go.confidence, to_go.policy, INPUTS)
    _, after = replace(BudgetFilter(loose), stage=2, spent=0.25, slack=5.0).decide(tensor(1.1), tensor(0.3, -0.4))
    assert after.spent == pytest.approx(0.25 + 0.6 + 0.125)


def test_a_step_that_is_not_backed_ends_it_for_the_episode(to_go):
    x, own = tensor(0.4), to_go.policy(tensor(0.4).reshape(1, 1, 1))[0, 0]
    poor, after = replace(BudgetFilter(to_go), slack=-3.0).decide(x, own)
    assert not poor.backed and after.broken
    rich, _ = replace(after, slack=9.0).decide(x, own)
    assert not rich.backed and after.start().broken is False and after.start().slack is None


def test_without_noise_the_account_is_raised_to_what_is_left():
    still = made(noise=0.0)
    x, own = tensor(0.2), still.policy(tensor(0.2).reshape(1, 1, 1))[0, 0]
    value = still.value(x, 3)
    price = min(still.ahead(x, own, 3) - value, 0.0)
    for slack, spent in ((0.0, 0.25), (9.0, 0.25), (-5.0, 1.0)):
        safe = replace(BudgetFilter(still, 4.0), stage=STEPS - 3, spent=spent, slack=slack)
        # far from what the learner may do: the prior's own input, as the learner's
        allowed, _ = safe.decide(x, own)
        expected = max(slack, 4.0 - spent - value)
        assert allowed.slack == pytest.approx(
            expected - (allowed.price if allowed.source == "learner" else price), abs=1e-12
        )
    guess = BudgetFilter(still, 4.0, rule="pointwise", surrogate=lambda x, u, left: 0.0)
    assert not guess.decide(x, own)[0].backed
    assert BudgetFilter(still, 4.0, rule="pointwise").decide(x, own)[0].backed
    assert not BudgetFilter(made(), 4.0, rule="pointwise").decide(x, own)[0].backed


def test_the_pointwise_rule_weighs_what_was_spent(to_go):
    x, u = tensor(0.4), tensor(0.3, -0.4)
    whole = 0.5 + to_go.ahead(x, u, 2)
    for budget, source in ((whole, "learner"), (whole - 1e-9, "prior")):
        safe = replace(BudgetFilter(to_go, budget, "pointwise"), stage=STEPS - 2, spent=0.5, slack=0.0)
        assert safe.decide(x, u)[0].source == source
    told = []
    replace(
        BudgetFilter(
            to_go, 1.0, "pointwise", surrogate=lambda x, u, left: told.append((float(x), u.tolist(), left)) or 0.0
        ),
        stage=1,
    ).decide(x, tensor(9.0, -0.4))
    assert told == [(0.4, [1.5, -0.4], STEPS - 1)]


def test_what_tables_rest_on_begins_with_the_confidence_set(to_go):
    program = to_go.program
    further = Assumption.KNOWN_DERIVATIVES(), Assumption.COST_RANGE()
    assert to_go.assumptions == program.believed(to_go.confidence, *further)
    kinds = [entry.kind for entry in to_go.assumptions]
    assert {entry.kind for entry in further} < set(kinds) and len(kinds) == len(set(kinds)) > 2


def test_tables_of_a_set_that_was_edited_say_so():
    own = made()
    assert own.moved == ""
    safe = BudgetFilter(own, 100.0)
    before, safe = safe.decide(tensor(0.4), tensor(0.3, -0.4))
    assert (before.source, before.backed) == ("learner", True)
    own.confidence.model.targets.mul_(2.0)
    assert "observations" in own.moved
    after, safe = safe.decide(tensor(0.4), tensor(0.3, -0.4))  # in the middle of an episode: the prior answers
    assert (after.source, after.backed, after.reason) == ("prior", False, own.moved)
    assert torch.equal(after.u, inputs_at(own.policy, tensor(0.4).reshape(1, 1, -1))[0, 0])
    own.confidence.model.targets.div_(2.0)
    assert own.moved == "" and not safe.decide(tensor(0.4), tensor(0.3, -0.4))[0].backed  # for the rest of it


def test_the_first_cell_is_a_cell_and_the_next_cost_that_of_the_state(to_go):
    first = float(to_go.program.grid.centers[0, 0])
    assert to_go.value(tensor(first), 3) == pytest.approx(float(to_go.values[3, 0]), rel=1e-6)
    assert to_go.value(tensor(first), 3) < 3 * CEILING == to_go.value(tensor(first - 1.0), 3)
    both = made(sides=2)
    for x in (-1.2, 0.4, 0.8, 1.1):  # one step ahead there is nothing but c(x)
        cost = min(max(abs(x) - 0.5, 0.0), CEILING)
        assert both.ahead(tensor(x), tensor(0.0, 0.0), 1) == pytest.approx(cost, abs=1e-6)


def test_the_prior_sees_the_whole_state():
    """Two states, u = 0.1 − 0.5x₁ + 0.25x₂."""
    known = AffineKnown(0.5 * torch.eye(2).double(), tensor(1.0, 0.5).reshape(2, 1), tensor(0.0, 0.0))
    task = Task(tensor(0.0, 0.0), 2, HingeCost([[1.0, 0.0]], [0.5], CEILING), 1.5, tensor(STD, STD))
    program = RobustDP(Grid(Box([-2.0] * 2, [2.0] * 2), (8, 8)), task)
    model = GP.create(kernels.rbf([1.0] * 3, 0.01), 1e-2, nx=2, nu=1, noise_std=tensor(STD, STD), prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.1, subgaussian=STD, delta=0.1)).update(model)
    prior = AffinePolicies(tensor(0.1).reshape(1, 1), tensor(-0.5, 0.25).reshape(1, 1, 2), Box([-3.0], [3.0]))
    safe = BudgetFilter(CostToGo.of(program, confidence, prior, Box([-3.0], [3.0])), budget=1.5).start()
    allowed, _ = safe.decide(tensor(0.4, -0.8), tensor(math.nan))
    assert allowed.source == "prior" and allowed.u.tolist() == pytest.approx([0.1 - 0.2 - 0.2])
    assert safe.decide(tensor(0.0, 0.0), tensor(0.0))[0].source == "learner"
    for x in (tensor(0.0, math.nan), tensor(math.inf, 0.0)):  # a state of which a part is not known is not known
        allowed, after = safe.decide(x, tensor(0.0))
        assert allowed.source == "prior" and "not finite" in allowed.reason and math.isinf(allowed.price)
        assert not allowed.backed and after.broken
