"""Numbers that are none, where they once helped: each case was a certificate of something false."""

import dataclasses
import math

import pytest
import torch
from cost_cases import generator, make_case
from poison_costs import Unchecked
from shield_cases import case_of, judge_of, judged, shield_of

from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.cost.pruned import PrunedSession
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning.tracking import Tracking
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety.shield import NotCertified, Shield
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.task import Task

UNIT = Box(vector(-1.0), vector(1.0))
COST = IndicatorCost(vector(1.0).reshape(1, 1), vector(0.3))


class Drag:
    """x + ½|u|u with |u| written as √u², whose derivative by differentiation is NaN at u = 0. It is C¹, |∂²/∂u²| ≤ 1."""

    hessian_bound = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)

    def __call__(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return x + 0.5 * u.square().sqrt() * u


def drag(prior: object = None) -> ConfidenceSet:
    """F_n = {|f| ≤ ½}: from x₀ = 0 the next state may be ½, beyond the limit 0.3."""
    model = GP.create(kernels.rbf(1.0), 1e-4, nx=1, nu=1, noise_std=1e-3, prior=prior or Drag())
    return ConfidenceSet(Mixture(rkhs_norm=0.5, subgaussian=1e-2, delta=0.1)).update(model)


def halving() -> AffinePolicies:
    return AffinePolicies(vector(0.0).reshape(1, 1), vector(-0.5).reshape(1, 1, 1), UNIT)


@pytest.mark.parametrize("x0", [0.0, -1e-9])
def test_a_known_part_without_a_derivative_certifies_nothing(x0):
    task = Task(vector(x0), 2, COST, 0.1, vector(1e-3))
    assert float(ScenarioTube(task=task, seed=1).evaluate(drag(), halving()).upper) >= 1.0  # 0.0053 once
    assert float(GaussianTube(task=task).evaluate(drag(), halving()).upper) >= 1.0
    once = task.with_(horizon=1)
    judge = PlanTube(fallbacks=halving(), task=once, noise_radius=vector(0.0), input_box=UNIT)
    tracking = Tracking(brakes=halving(), authority=0.8, state_weight=vector(1.0), input_weight=vector(1.0))
    found = Shield.start(judge, drag(), vector(x0), tracking=tracking)
    assert isinstance(found, NotCertified)  # a shield with margin 0.30 once
    assert found.margin < 0


# --------------------------------------------------------------------------------- rows that see each other
def test_a_policy_does_not_change_the_bounds_of_another():
    """One that meets the kink at u = 0, beside one that does not and costs about 1."""
    both = AffinePolicies(vector(0.0, 0.2).reshape(2, 1), vector(-0.5, -0.5).reshape(2, 1, 1), UNIT)
    task = Task(vector(0.0), 2, COST, 0.1, vector(1e-3))
    for bound in (ScenarioTube(task=task, seed=1, samples=100), GaussianTube(task=task)):
        beside_itself = bound.evaluate(drag(), both.select(torch.tensor([1, 1]))).upper[1]
        assert float(beside_itself) >= 1.0
        assert float(bound.evaluate(drag(), both).upper[1]) == float(beside_itself)


@pytest.mark.parametrize("kind", ["scenario", "gaussian"])
def test_a_policy_that_is_given_up_leaves_the_others_to_rounding(case, kind):
    """Where policies leave the batch, posteriors are evaluated at fewer points together: the same up to their rounding."""
    chosen = case.choose(2, 10, 20)
    wild = Unchecked(chosen.offset.clone(), chosen.gain, chosen.input_box)
    wild.offset[1] = math.nan
    task = {"task": Task.of(case.system).with_(horizon=6), "give_up": 0.5}
    bound = GaussianTube(**task) if kind == "gaussian" else ScenarioTube(**task, seed=1, samples=40, pilot=10)
    clean, found = (bound.evaluate(case.confidence, policies).upper for policies in (chosen, wild))
    assert float(found[1]) == 6.0
    assert torch.allclose(found[[0, 2]], clean[[0, 2]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", [True, False])
def test_a_refused_plan_stays_refused_beside_one_that_overflows(grid):
    """A push towards the limit, too far to come back; beside it a plan whose gain overflows."""
    judge = judged(grid=True) if grid else judge_of(case_of(), grid=False, landing=False).refine(case_of().confidence)
    push = torch.ones(2, 8, 1).double()
    gain = torch.zeros(2, 8, 1, 2).double()
    gain[1] = 1.7e308
    zero = torch.zeros(2, dtype=torch.long)
    plans = Plans(push, gain, zero + 8, zero, zero + 8)
    start = Zonotope(vector(0.5, 2.0).expand(2, 2), 0.01 * torch.eye(2).double().expand(2, 2, 2))
    both = judge.verify(start, plans, 8)
    first = torch.tensor([0])
    alone = judge.verify(start.select(first), plans.select(first), 8)
    assert not bool(alone.admitted) and not bool(both.admitted.any())
    assert float(both.margin[0]) == pytest.approx(float(alone.margin), rel=1e-12)
    assert int(both.steps[0]) == int(alone.steps)
    if grid:  # nothing there depends on how many plans are left
        assert float(both.margin[0]) == float(alone.margin)


def test_a_plan_of_numbers_that_are_none_is_refused_by_itself():
    candidates = torch.zeros(3, 4, 1).double()
    candidates[1, 2] = math.nan
    judge = judge_of(case_of(), landing=False)
    shield = shield_of(case_of(), dataclasses.replace(judge, task=judge.task.with_(horizon=6)))
    decision, after = shield.decide(case_of().system.initial_state, candidates)
    assert decision.admitted.tolist() == [True, False, True]
    assert (decision.index, decision.falsified) == (0, None)
    assert after.expected is not None


def test_a_tube_that_was_given_up_accuses_nobody():
    """Where nothing was claimed of the next state, no state refutes anything."""
    shield = shield_of(case_of(), judged())
    lost = dataclasses.replace(
        shield, expected=Zonotope(torch.full((1, 2), math.nan).double(), torch.zeros(1, 2, 1).double())
    )
    decision, _ = lost.decide(case_of().system.initial_state, torch.zeros(0, 1, 1).double())
    assert decision.falsified is None


# ------------------------------------------------------------------------------------------- robust program
@pytest.fixture(scope="module")
def case():
    return make_case("1d", (0, 10, 20))


def program(case, cells: int = 97) -> RobustDP:
    return RobustDP(Grid(case.system.state_box, (cells,)), Task.of(case.system))


@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf])
def test_boxes_that_are_no_numbers_are_charged(case, offset):
    dp = program(case)
    chosen = case.choose(0, 0)
    wild = Unchecked(chosen.offset.clone(), chosen.gain, chosen.input_box)
    wild.offset[1] = offset
    upper = dp.evaluate(case.confidence, wild).upper
    assert float(upper[0]) == float(dp.evaluate(case.confidence, case.choose(0, 0)).upper[0])
    assert float(upper[1]) >= 19.0 - 1e-9 or math.isinf(offset)  # x₀ is known to be safe; an infinite input saturates


def test_an_infinite_norm_is_refused_in_words(case):
    free = ConfidenceSet(Constant(value=3.0)).update(case.confidence.model)
    with pytest.raises(ValueError, match="expected a bound with a finite RKHS norm, got"):
        program(case).evaluate(free, case.choose(0))


def test_cells_where_the_set_is_empty_are_charged(case):
    dp, chosen = program(case), case.choose(0, 0)
    enclosure = dp.enclosure(case.confidence, chosen).refine(case.confidence)
    low, high = enclosure.low.clone(), enclosure.high.clone()
    low[1, -1], high[1, -1] = 0.02, -0.02  # at x₀ itself
    upper = dp.upper(dataclasses.replace(enclosure, low=low, high=high))
    assert float(upper[0]) < 0.1  # of this policy
    assert float(upper[1]) == pytest.approx(19.0)
    rounded = high.clone()
    rounded[1] = low[1] = 0.5 * (enclosure.low[1] + enclosure.high[1])
    low[1] += 1e-12  # crossed by rounding only: an interval of one point
    assert float(dp.upper(dataclasses.replace(enclosure, low=low, high=rounded))[1]) < 0.1


def test_an_enclosure_takes_no_other_set_of_the_same_length(case):
    enclosure = program(case).enclosure(case.confidence, case.choose(0)).refine(case.confidence)
    assert enclosure.refine(case.confidence) is enclosure
    other = make_case("1d", (0, 10, 21))
    assert len(other.confidence.generations) == len(case.confidence.generations)
    with pytest.raises(ValueError, match=r"Enclosure.refine: expected a confidence set that continues"):
        enclosure.refine(other.confidence)
    with pytest.raises(ValueError, match=r"Enclosure.refine: expected a confidence set that continues"):
        enclosure.refine(ConfidenceSet(case.confidence.bound, case.confidence.generations[:1]))
    stricter = dataclasses.replace(case.confidence.bound, delta=0.01)
    with pytest.raises(ValueError, match=r"Enclosure.refine: expected a confidence set that continues"):
        enclosure.refine(ConfidenceSet(stricter, case.confidence.generations))
    longer = case.confidence.update(case.confidence.model)
    assert enclosure.refine(longer).generations == enclosure.generations + 1


def test_an_enclosure_goes_on_after_a_restart(case):
    """Equal numbers in other objects."""
    again = make_case.__wrapped__("1d", (0, 10, 20))  # made anew
    enclosure = program(case).enclosure(case.confidence, case.choose(0)).refine(case.confidence)
    assert again.confidence.model is not case.confidence.model
    assert enclosure.refine(again.confidence).generations == enclosure.generations


# ------------------------------------------------------------------------------------------- falsification
def test_nan_accuses_nobody(case):
    z = torch.zeros(3, 2).double()
    z[1] = math.nan
    assert case.confidence.falsified(z) is None
    with pytest.raises(ValueError, match="nan"):  # what is asked of f there has no answer
        case.confidence.contains(lambda v: torch.zeros(len(v), 1).double(), z)


def contradictory(case) -> ConfidenceSet:
    """Another posterior that excludes what the first ones say, everywhere near x₀."""
    model = case.confidence.generations[0]
    z = torch.cartesian_prod(torch.linspace(-2, 2, 25).double(), torch.linspace(-1, 1, 5).double())
    wrong = model.condition_on(z, torch.full((len(z), 1), 0.3).double())
    right = model.condition_on(z, torch.zeros(len(z), 1).double())
    bound = Mixture(rkhs_norm=20.0, subgaussian=0.01, delta=0.1, unchecked=True)
    return ConfidenceSet(bound).update(model).update(right).update(wrong)


def test_control_the_two_posteriors_contradict_each_other(case):
    assert contradictory(case).falsified(torch.tensor([[0.0, 0.0]]).double()) is not None


def test_no_policy_enters_on_an_empty_set(case):
    """A pruned session meets it while it evaluates: what it hands out then certifies nobody, old bounds included."""
    confidence = contradictory(case)
    dp = program(case)
    dp = dataclasses.replace(dp, task=dp.task.with_(budget=30.0))
    session = PrunedSession(dp, confidence, case.choose(0, 4, 8), generator(1))
    session.memo.upper[0] = 0.0  # from an earlier generation
    upper = session.upper(torch.arange(3))
    assert session.falsified() is not None
    assert bool(torch.isinf(upper).all())


def test_actsafe_executes_nothing_if_the_first_set_is_empty(case):
    """Data that came with the model say 5 where |f*| ≤ B√k = 0.45."""
    s, bound, dp = case.system, case.confidence.bound, program(case)
    model = case.confidence.generations[0].condition_on(torch.zeros(4, 2).double(), torch.full((4, 1), 5.0).double())
    for start in (None, lambda confidence: PrunedSession(dp, confidence, case.policies, generator(1))):
        empty = ActSafe(s, case.policies, [0, 1], model, bound, dp, episodes=2, start=start).run(generator(0))
        assert empty.falsified is not None and not empty.episodes and len(empty.safe_set) == 2
