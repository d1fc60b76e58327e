"""The filter: order of its answers, right indices, numeric failure, planted liars, refuted models."""

import math
from dataclasses import replace

import pytest
import torch
from filter_cases import Moody, Pair, linear_case, linear_filter, worst_disturbance
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.assumptions import Assumption
from gpsafe.certify import CertificationProblem, Proposal, judge
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Polytope
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import LinearTube


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


ORIGIN = vector(0.0, 0.0)


def test_what_can_be_certified_is_applied_unchanged():
    decision, _ = linear_filter().decide(ORIGIN, vector(0.3))
    assert (decision.source, decision.backed, decision.reason) == ("plan", True, "")
    assert decision.u == pytest.approx(vector(0.3), abs=1e-9)
    assert decision.certificate is not None
    assert decision.certificate.certified


def test_what_cannot_be_is_changed_so_that_a_plan_is_certified():
    decision, _ = linear_filter().decide(vector(0.9, 0.35), vector(1.0))
    assert (decision.source, decision.backed) == ("plan", True)
    assert float(decision.u) < 0.5


@pytest.mark.parametrize("failure", ["far", "nan", "short", "breakdown", "singular"])
def test_fallback_follows_the_law_of_its_stage_and_then_the_backup(failure):
    problem, sure = linear_case()
    assert isinstance(problem.model, LinearTube)
    fine = linear_filter()
    first, safe = fine.decide(vector(0.7, 0.3), vector(1.0))
    plan = first.certificate
    assert plan is not None
    assert plan.tube is not None
    safe, x = replace(safe, proposer=Moody(False, failure)), vector(0.7, 0.3)
    u = first.u
    for j in range(1, problem.steps + 4):
        x = problem.model.plant(x, u)
        x = x + worst_disturbance(problem.model.half_axes, problem.states, x)
        decision, safe = safe.decide(x, vector(1.0))
        assert decision.backed
        assert decision.reason
        if j < problem.steps:
            assert (decision.source, decision.stage) == ("stored", j)
            assert torch.equal(decision.u, plan.inputs[j] + problem.gain @ (x - plan.tube.center[0, j]))
            assert bool(decision.contained)
        else:
            assert (decision.source, decision.stage) == ("backup", None)
            assert torch.equal(decision.u, sure.law(x))
        u = decision.u
    again, _ = replace(safe, proposer=Moody()).decide(x, vector(0.0))
    assert again.source == "plan"


def test_a_liar_is_not_believed():
    class Liar:
        def propose(self, problem, x0, learned, *, warm=None):
            return Proposal(learned.expand(problem.steps, 1).clone(), "optimal", 1, 0.0, "liar", -1.0)

    decision, _ = linear_filter(proposer=Liar()).decide(vector(0.9, 0.0), vector(1.0))
    assert decision.source == "backup"
    assert decision.certificate is not None
    assert not decision.certificate.certified


def test_a_plan_that_its_proposer_has_given_up_is_refused_without_a_judgement():
    """Though it is a good one: nothing but time rests on the proposer's word, and refusing is safe."""

    class Faint:
        def propose(self, problem, x0, learned, *, warm=None):
            plan = torch.zeros(problem.steps, 1).double()
            return Proposal(plan, "infeasible", 1, 0.0, "faint", 1.0, "no heart", given_up=True)

    x, proposed = vector(0.1, 0.0), vector(0.0)
    safe = linear_filter(proposer=Faint())
    decision, _ = safe.decide(x, proposed)
    told = decision.certificate
    assert decision.source == "backup" and "no heart" in decision.reason
    assert told is not None and told.tube is None and told.outcome.value == "INCONCLUSIVE"
    assert torch.equal(told.inputs, torch.zeros(safe.problem.steps, 1).double())
    proposal = Faint().propose(safe.problem, x, proposed)
    assert judge(safe.problem, x, proposed, proposal).certified  # a judge who is asked does judge
    assert judge(safe.problem, x, proposed, replace(proposal, given_up=False), spare=True).certified
    for wrong in ("yes", 1, None):  # not the word
        assert judge(safe.problem, x, proposed, replace(proposal, given_up=wrong), spare=True).certified


class Memory:
    """Keeps one buffer for all its plans, and writes on the state it is given."""

    def __init__(self, plan: torch.Tensor) -> None:
        self.plan = plan

    def propose(self, problem, x0, learned, *, warm=None):
        x0.zero_()
        learned.zero_()
        return Proposal(self.plan, "Solve_Succeeded", 1, 0.0, "memory", -1.0)


def test_a_proposer_cannot_change_what_was_certified_nor_what_was_measured():
    """The plan 0 from the corner leaves the states; from 0, the state that the proposer writes, it would not."""
    problem, _ = linear_case()
    proposer = Memory(torch.zeros(problem.steps, 1).double())
    x, proposed = vector(0.99, 0.99), vector(0.5)
    decision, _ = linear_filter(proposer=proposer).decide(x, proposed)
    assert decision.source != "plan"
    assert torch.equal(x, vector(0.99, 0.99))
    assert torch.equal(proposed, vector(0.5))
    first, safe = linear_filter(proposer=proposer).decide(ORIGIN.clone(), vector(0.0))
    assert first.source == "plan"
    proposer.plan.fill_(1e6)
    for _ in range(2):
        decision, safe = safe.decide(ORIGIN.clone(), vector(0.0))
        assert (decision.source, decision.backed) == ("stored", True)
        assert decision.u == pytest.approx(vector(0.0), abs=1e-9)


def test_numbers_that_are_not_finite_fall_back_and_say_so():
    problem, sure = linear_case()
    _, running = linear_filter().decide(ORIGIN, vector(0.0))
    blind, after = running.decide(vector(math.nan, 0.0), vector(0.0))
    assert (blind.source, blind.backed, blind.contained) == ("stored", False, None)
    assert "state is not finite" in blind.reason
    assert running.stored is not None
    assert torch.equal(blind.u, running.stored.inputs[1])
    assert after.failures == 1
    fresh, _ = linear_filter().decide(vector(math.inf, 0.0), vector(math.nan))
    assert (fresh.source, fresh.backed) == ("backup", False)
    assert bool(problem.inputs.contains(fresh.u))
    x = vector(0.2, 0.1)
    for learned in (math.nan, 1e300):
        wild, _ = linear_filter().decide(x, vector(learned))
        assert (wild.source, wild.backed) == ("plan", True)
        assert "proposed input is not finite" in wild.reason
        assert wild.u == pytest.approx(sure.law(x), abs=1e-6)


def test_without_backup_or_plan_the_input_is_clipped_and_not_backed():
    problem, _ = linear_case()
    bare = SafetyFilter(problem, Moody(False))
    decision, _ = bare.decide(vector(0.9, 0.9), vector(7.0))
    assert (decision.source, decision.backed) == ("unfiltered", False)
    assert float(decision.u) == pytest.approx(1.0)
    nothing, _ = bare.decide(vector(0.9, 0.9), vector(math.nan))
    assert float(nothing.u) == pytest.approx(0.0, abs=1e-9)
    held, _ = replace(bare, backup=lambda x: -9.0 * x[:1]).decide(vector(0.9, 0.9), vector(1.0))
    assert (held.source, held.backed, float(held.u)) == ("backup", False, pytest.approx(-1.0))
    assert any("not certified" in told for told in bare.assumptions)
    assert not any("not certified" in told for told in linear_filter().assumptions)


def test_where_a_plan_may_end_beside_the_certified_set_what_follows_is_assumed():
    """The theorem has tolerance 0: within another the backup need not be backed at the plan's end. Nothing said so."""
    problem, sure = linear_case()
    tolerant = SafetyFilter(replace(problem, tolerance=0.01), Moody(), sure)
    (told,) = (entry for entry in tolerant.assumptions if entry not in linear_filter().assumptions)
    assert told.kind is Assumption.TERMINAL_INVARIANT and "up to 0.01 outside" in told


@given(seeds(), st.integers(-3, 12))
def test_what_is_clipped_is_in_the_inputs(seed, exponent):
    """Exactly, not up to rounding: an environment may check its action space."""
    generator = torch.Generator().manual_seed(seed)
    normals, room = (torch.randn(6, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    box = Polytope.of_box(Box(-torch.ones(2).double(), torch.ones(2).double()))
    inputs = box.intersect(Polytope(normals, room[:, 0].abs()))
    plant = AffineKnown(torch.eye(2).double(), torch.eye(2).double(), torch.zeros(2).double())
    problem = CertificationProblem(
        LinearTube(plant, torch.ones(2).double()), box, inputs, box, torch.zeros(2, 2).double(), 2
    )
    proposed = 10.0**exponent * torch.randn(2, dtype=torch.float64, generator=generator)
    decision, _ = SafetyFilter(problem, Moody(False)).decide(vector(0.5, 0.5), proposed)
    assert decision.source == "unfiltered"
    assert bool(inputs.contains(decision.u)), inputs.violation(decision.u)


def test_least_violating_plans_after_enough_failures():
    problem, _ = linear_case()
    x, safe = vector(0.99, 0.99), SafetyFilter(problem, Moody(), soften=3)
    sources = []
    for _ in range(4):
        decision, safe = safe.decide(x, vector(1.0))
        assert not decision.backed
        sources.append(decision.source)
    assert sources == ["unfiltered", "unfiltered", "soft", "soft"]


def test_a_state_outside_the_tube_refutes_the_model_and_nothing_is_backed_until_the_start():
    """In the terminal set, outside it, and when plans are certified again: the same inputs, but no backing."""
    _, running = linear_filter().decide(ORIGIN, vector(0.0))
    broken = replace(running, proposer=Moody(False))
    decision, after = broken.decide(vector(0.3, 0.1), vector(0.0))
    assert decision.contained is not None
    assert not bool(decision.contained.any())
    assert (decision.source, decision.backed) == ("backup", False)
    assert "tube of no member" in (decision.falsified or "")
    again, after = replace(after, proposer=Moody()).decide(ORIGIN, vector(0.0))
    assert (again.source, again.backed, again.falsified) == ("plan", False, decision.falsified)
    assert again.certificate is not None
    assert again.certificate.certified
    assert again.u == pytest.approx(vector(0.0), abs=1e-9)
    blind, after = after.decide(vector(math.nan, 0.0), vector(0.0))
    assert blind.falsified == decision.falsified
    fresh, _ = after.start().decide(ORIGIN, vector(0.0))
    assert (fresh.source, fresh.backed, fresh.falsified) == ("plan", True, None)
    outside, _ = broken.decide(vector(1.2, 0.5), vector(0.0))
    assert (outside.source, outside.backed) == ("stored", False)
    assert outside.falsified


def test_a_state_that_leaves_the_set_certified_invariant_refutes_the_model():
    x = vector(0.2, 0.1)
    first, resting = linear_filter(proposer=Moody(False)).decide(x, vector(0.0))
    assert (first.source, first.backed) == ("backup", True)
    inside, _ = resting.decide(0.9 * x, vector(0.0))
    assert (inside.backed, inside.falsified) == (True, None)
    left, after = resting.decide(vector(0.99, 0.99), vector(0.0))
    assert not left.backed
    assert "left the set certified to be invariant" in (left.falsified or "")
    assert not after.decide(x, vector(0.0))[0].backed
    unknown, _ = linear_filter(proposer=Moody(False)).decide(vector(0.99, 0.99), vector(0.0))
    assert unknown.falsified is None


def test_the_published_tube_claims_nothing_that_could_be_refuted():
    problem, _ = linear_case()
    assert isinstance(problem.model, LinearTube)
    paper = replace(problem, model=replace(problem.model, mode="paper"))
    _, running = SafetyFilter(paper, Moody()).decide(ORIGIN, vector(0.0))
    decision, _ = running.decide(vector(0.3, 0.1), vector(0.0))
    assert decision.contained is not None
    assert not bool(decision.contained.any())
    assert (decision.source, decision.backed, decision.falsified) == ("plan", True, None)


def test_one_and_the_same_member_must_contain_the_plant_at_all_stages():
    """In the first member's tube, then only in the second's: no member is right, though each state is in some tube."""
    problem, _ = linear_case()
    assert isinstance(problem.model, LinearTube)
    model, plant = Pair(problem.model, vector(0.02, 0.08)), problem.model.plant
    _, start = SafetyFilter(replace(problem, model=model), Moody()).decide(ORIGIN, vector(0.0))
    assert start.stored is not None
    assert start.stored.tube is not None
    center = start.stored.tube.center
    broken = replace(start, proposer=Moody(False))
    for path, right in (((0, 0), True), ((1, 1), True), ((0, 1), False), ((1, 0), False)):
        safe, decision = broken, None
        for stage, member in enumerate(path, start=1):
            decision, safe = safe.decide(center[member, stage], vector(0.0))
            assert decision.contained is not None
            assert bool(decision.contained[member])
        assert decision is not None
        assert (decision.backed, decision.falsified is None) == (right, right)
    # after a step in which the law was not followed, only the tubes of all members together are known to hold the plant
    _, blind = broken.decide(vector(math.nan, 0.0), vector(0.0))
    decision, _ = blind.decide(center[1, 2], vector(0.0))
    assert (decision.backed, decision.falsified) == (False, None)
    assert plant is model.base.plant


def test_a_certificate_for_other_inputs_or_another_model_is_refused():
    """The backup law leaves smaller inputs, and a larger disturbance leaves the set."""
    problem, sure = linear_case()
    assert isinstance(problem.model, LinearTube)
    small = Polytope(problem.inputs.H, 0.01 * problem.inputs.h)
    loud = replace(problem.model, half_axes=50 * problem.model.half_axes)
    for other in (replace(problem, inputs=small), replace(problem, model=loud)):
        with pytest.raises(ValueError, match="sets and model"):
            SafetyFilter(other, Moody(), sure)


@pytest.mark.parametrize("steps", [2, 6])
def test_a_stored_plan_outlives_a_change_of_the_horizon(steps):
    _, safe = linear_filter().decide(ORIGIN, vector(0.0))
    other = replace(safe, problem=replace(safe.problem, steps=steps), proposer=Moody(False))
    sources = []
    for _ in range(6):
        decision, other = other.decide(ORIGIN, vector(0.0))
        sources.append(decision.source)
        assert decision.backed
    assert sources == ["stored"] * 3 + ["backup"] * 3
    assert replace(safe, problem=other.problem).decide(ORIGIN, vector(0.0))[0].source == "plan"


def test_wrong_calls_are_errors():
    problem, sure = linear_case()
    safe = linear_filter()
    with pytest.raises(ValueError, match="x of shape"):
        safe.decide(vector(0.0), vector(0.0))
    with pytest.raises(ValueError, match="learned of shape"):
        safe.decide(ORIGIN, vector(0.0, 0.0))
    with pytest.raises(ValueError, match="sets"):
        SafetyFilter(replace(problem, terminal=problem.states), Moody(), sure)
    half = SafetyFilter(replace(problem, states=Polytope(vector(1.0, 0.0).unsqueeze(0), vector(1.0))), Moody())
    with pytest.raises(ValueError, match="unbounded"):
        half.start()
    with pytest.raises(ValueError, match="soften"):
        SafetyFilter(problem, Moody(), soften=0)
