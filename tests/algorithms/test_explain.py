"""Why a policy is not certified: cases with exactly one cause name it, and without the cause they are certified."""

from functools import cache

import pytest
import torch
from cost_cases import Case, make_case
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import continuous, finite, sound, theory

from gpsafe.algorithms import explain as module
from gpsafe.algorithms.actsafe import ActSafeRun
from gpsafe.algorithms.explain import REMOVABLE, Explanation, explain_cost, first_stall
from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.linalg import vector
from gpsafe.sets import Box
from gpsafe.systems.reference import reference_1d_policies
from gpsafe.systems.task import Task

learned = cache(lambda: make_case("1d", (4, 12, 20)))
doubtful = cache(lambda: make_case("1d", (4,), norm_factor=2.0))


def program(case: Case, cells: int, **changes) -> RobustDP:
    return RobustDP(Grid(Box(vector(-1.0), vector(1.5)), (cells,)), Task.of(case.system).with_(**changes))


def without_doubt(case: Case) -> ConfidenceSet:
    bound = Constant(rkhs_norm=4.47, subgaussian=0.01, delta=0.1, value=1e-6, unchecked=True)
    return ConfidenceSet(bound).update(case.confidence.model)


def test_a_coarse_grid_is_named_and_a_fine_one_certifies():
    case = learned()
    about = (without_doubt(case), case.choose(48), case.choose(0, 1))
    coarse, fine = (explain_cost(program(case, cells), *about) for cells in (20, 100))
    assert "grid" in coarse.causes and "width" not in coarse.causes and "finer grid" in coarse.advice
    assert fine.certified and fine.causes == ()


def test_a_large_norm_is_named_as_width_and_the_true_set_certifies():
    case, other = doubtful(), learned()
    wide = explain_cost(program(case, 200), case.confidence, case.choose(7), case.choose(4, 5, 6))
    assert wide.causes == ("width",) and wide.half_width > 0.05
    assert explain_cost(program(other, 200), other.confidence, other.choose(7), other.choose(4)).certified


def test_few_samples_are_named_with_their_floor_and_many_certify():
    case = learned()
    few, many = (
        explain_cost(ScenarioTube(**case.task, samples=n, anchors=4), case.confidence, case.choose(12), case.choose(4))
        for n in (40, 1000)
    )
    assert few.causes == ("monte-carlo",)
    assert few.floor is not None and few.floor > case.system.budget >= (many.floor or 0.0)
    assert many.certified


def test_a_policy_beyond_the_reach_of_s_0_is_named_distant_and_one_within_is_not():
    learner = finite()
    far, near = learner.explain(30), learner.explain(8)
    assert far.causes == ("distance",) and far.without["width"] <= 0.0 < far.without["reach"]
    assert near.causes == ("width",) and near.without["reach"] <= 0.0
    closer = finite(initial_safe=[*range(5), 28, 29, 31]).explain(30)
    assert closer.causes == ("width",)


def test_a_policy_too_costly_under_the_mean_is_named_itself_and_a_larger_budget_certifies():
    case = learned()
    costly = explain_cost(program(case, 200), without_doubt(case), case.choose(59), case.choose(4))
    free = explain_cost(program(case, 200, budget=20.0), without_doubt(case), case.choose(59), case.choose(4))
    assert costly.causes == ("policy",) and costly.without["nominal"] > 0.0
    assert free.certified


def test_the_steps_told_are_certified_and_one_more_is_not():
    case = doubtful()
    about = (case.confidence, case.choose(7))
    told = explain_cost(program(case, 150), *about, case.choose(4)).steps
    budget = case.system.budget
    good, bad = (float(program(case, 150, horizon=t).evaluate(*about).upper) for t in (told, told + 1))
    assert good <= budget < bad


def test_the_excess_is_that_of_the_bound_and_of_the_share_of_its_class():
    case = learned()
    bound = ScenarioTube(**case.task_with(budget=20.0), samples=40, anchors=4)
    several = case.choose(8, 12, 16)
    upper = bound.evaluate(case.confidence, several).upper - bound.task.budget
    found = explain_cost(bound, case.confidence, case.choose(12), case.choose(4), crowd=3)
    assert found.excess == pytest.approx(float(upper[1]), rel=1e-9)


@pytest.mark.parametrize("crowd", [1, 3, 40])
@pytest.mark.parametrize("delta", [0.05, 0.9])
def test_a_diagnosis_has_the_delta_of_the_class_that_it_is_told_of_and_says_so(crowd: int, delta: float):
    """With all of δ it is certified at budgets at which the class refuses it; and δ/crowd above a half was cut to a half."""
    case = learned()
    about = {"samples": 40, "anchors": 4} | case.task_with(budget=20.0) | {"delta": delta}
    bound = ScenarioTube(**about)
    policies = case.choose(*[12] * crowd)
    asked = float(bound.evaluate(case.confidence, policies).upper[0])
    found = explain_cost(bound, case.confidence, case.choose(12), case.choose(4), crowd=crowd)
    assert found.excess + bound.task.budget == pytest.approx(asked, rel=1e-9)
    assert found.share == pytest.approx(bound.stage_delta(case.confidence) / crowd)
    assert f"delta = {found.share:.3g} for this policy" in str(found)
    if crowd > 1:
        alone = explain_cost(bound, case.confidence, case.choose(12), case.choose(4))
        assert alone.excess < found.excess


def test_a_continuous_learner_explains_parameters_and_refuses_others():
    learner = continuous()
    found = learner.explain([-0.45, 3.0])
    assert not found.certified and found.causes in {("width",), ("distance",)}
    with pytest.raises(ValueError, match="theta"):
        learner.explain([0.0])


def test_a_fallback_refused_for_width_is_certified_without_it():
    assert sound().explain().causes == ("width",)
    assert sound(model=theory(0.1)).explain(fallback=0).certified
    with pytest.raises(ValueError, match="fallback"):
        sound().explain(fallback=9)


def stalling(**changes):
    """B so large that nothing is learned in time."""
    bound = Mixture(rkhs_norm=45.0, subgaussian=0.01, delta=0.1)
    return finite(bound=bound, policies=few(), initial_safe=[0], threshold=0.0, episodes=4, **changes)


def few():
    return reference_1d_policies()[0].select(torch.tensor([0, 40, 50]))


def test_a_run_that_stands_says_so_once_with_the_split_and_runs_as_before(caplog):
    runs = [stalling(patience=patience).run(torch.Generator().manual_seed(0)) for patience in (2, 0)]
    lines = [r.getMessage() for r in caplog.records if r.name == "gpsafe"]
    assert len(lines) == 1 and "S_n stands at 1" in lines[0] and "because of" in lines[0] and "\n" not in lines[0]
    for mine, other in zip(runs[0].episodes, runs[1].episodes, strict=True):
        assert torch.equal(mine.states, other.states) and mine.policy == other.policy
    assert runs[0].explain(1).causes == stalling().explained(runs[0].confidence, runs[0].safe_set, 1).causes


def test_a_run_that_grows_says_nothing(caplog):
    finite(episodes=3, patience=2).run(torch.Generator().manual_seed(0))
    assert not [r for r in caplog.records if r.name == "gpsafe"]


def test_a_receding_learner_without_a_fallback_says_so_once(caplog):
    learner = sound(initial_episodes=0, patience=1)
    learner.ask()
    learner.ask([0.01, 0.0])
    lines = [r.getMessage() for r in caplog.records if r.name == "gpsafe"]
    assert len(lines) == 1 and "because of width" in lines[0]


def test_a_diagnosis_that_fails_stops_no_run(caplog):
    def broken() -> Explanation:
        raise ValueError("no kernel")

    module.tell("ActSafe", "what", broken)
    assert "no split" in caplog.text and "no kernel" in caplog.text


def test_a_record_made_by_hand_is_refused_by_name():
    learner = finite()
    run = ActSafeRun((), learner.standing.safe_sets, learner.standing.confidence)
    with pytest.raises(ValueError, match="explain"):
        run.explain(0)


@given(st.lists(st.integers(3, 6), min_size=1, max_size=12).map(sorted), st.integers(0, 4))
def test_the_first_stall_is_told_at_most_once(sizes, patience):
    told = [n for n in range(1, len(sizes) + 1) if first_stall(sizes[:n], patience)]
    stalls = [n for n in range(patience + 1, len(sizes) + 1) if sizes[n - 1] == sizes[n - 1 - patience]]
    assert told == (stalls[:1] if patience else [])


excess = st.floats(-1.0, 1.0)


@given(
    excess,
    st.fixed_dictionaries(
        dict.fromkeys(("width", "all", "nominal"), excess), optional={"reach": excess, "grid": excess}
    ),
)
def test_there_is_a_cause_exactly_if_it_is_not_certified(value, without):
    found = Explanation(value, without, 1, 2, 0.0, 0.0, (0.0,), 1.0)
    assert (found.causes == ()) == found.certified == (value <= 0.0)
    assert set(found.causes) <= {*REMOVABLE, "distance", "policy", "horizon"}
    assert len(repr(found)) < 120 and str(found) and found.advice
