"""The filter's bookkeeping to the digit: warm starts, stages, members, reasons, clipping."""

import logging
import math
from dataclasses import replace
from functools import lru_cache, partial

import pytest
import torch
from filter_cases import Moody, Odd, Pair, linear_case, linear_filter, told

from gpsafe.certify import CertificationProblem
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Polytope
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import LinearTube
from gpsafe.verdict import Verdict
from proofs_checks._defects import forged

tensor = partial(torch.tensor, dtype=torch.float64)
ORIGIN, PUSH = tensor([0.0, 0.0]), tensor([0.25])
SILENT = Odd(None)


@lru_cache(maxsize=1)
def running() -> SafetyFilter:
    """After a plan from (0.6, 0.2) whose inputs all differ."""
    decision, safe = linear_filter().decide(tensor([0.6, 0.2]), tensor([0.5]))
    assert decision.source == "plan" and safe.stored is not None
    assert len(set(safe.stored.inputs.flatten().tolist())) == safe.problem.steps == 4
    return safe


class Recorder:
    """Notes what it is given and gives nothing back."""

    def __init__(self) -> None:
        self.warm: list[torch.Tensor | None] = []

    def propose(self, problem, x0, learned, *, warm=None):
        self.warm.append(warm)


# ------------------------------------------------------------------------------------------------------------- stages
@pytest.mark.parametrize("steps", [2, 4, 6])
def test_warm_starts_are_what_is_left_of_the_plan_and_its_last_input(steps):
    safe, recorder = running(), Recorder()
    assert safe.stored is not None
    plan = safe.stored.inputs
    safe = replace(safe, problem=replace(safe.problem, steps=steps), proposer=recorder)
    for _ in range(5):
        _, safe = safe.decide(ORIGIN, PUSH)
    for stage, warm in enumerate(recorder.warm, start=1):
        expected = torch.stack([plan[min(stage + k, 3)] for k in range(steps)])
        assert warm is not None and torch.equal(warm, expected)
    replace(linear_filter(), proposer=recorder).decide(ORIGIN, PUSH)
    assert recorder.warm[-1] is None


def test_the_law_of_every_stage_is_applied_at_the_centres_of_the_tube():
    """At the centre of stage j the input is that of the plan; the last ellipsoid is looked at, nothing after it."""
    safe = replace(running(), proposer=SILENT)
    assert safe.stored is not None and safe.stored.tube is not None
    plan, tube, found = safe.stored.inputs, safe.stored.tube, []
    for stage in range(1, 5):
        found, safe = safe.decide(tube.center[0, stage], PUSH)
        assert found.backed and found.falsified is None and found.contained.tolist() == [True]
        assert safe.stage == stage + 1 and safe.failures == stage
        assert (found.source, found.stage) == (("stored", stage) if stage < 4 else ("backup", None))
        assert stage == 4 or torch.equal(found.u, plan[stage])
        assert (safe.members is None, safe.resting) == (stage == 4, stage == 4)
    after, _ = safe.decide(tube.center[0, 4], PUSH)
    assert (after.source, after.backed, after.contained, after.stage) == ("backup", True, None, None)


@pytest.mark.parametrize("place", [0, 1])
def test_without_a_finite_state_the_plan_itself_goes_on(place):
    safe, x = replace(running(), proposer=SILENT), ORIGIN.clone()
    x[place] = math.nan
    for stage in range(1, 4):
        blind, safe = safe.decide(x, PUSH)
        assert (blind.source, blind.backed, blind.stage, blind.contained) == ("stored", False, stage, None)
        assert torch.equal(blind.u, running().stored.inputs[stage]) and float(blind.u.abs()) > 0.0
        assert (safe.members, safe.resting, safe.falsified) == (None, False, None)


@pytest.mark.parametrize("stage", [1, 3, 4])
def test_every_stage_up_to_the_last_can_refute(stage):
    safe = replace(running(), proposer=SILENT)
    assert safe.stored is not None and safe.stored.tube is not None
    center, factor = safe.stored.tube.center[0], safe.stored.tube.factor[0]
    for j in range(1, stage):
        _, safe = safe.decide(center[j], PUSH)
    for share, refuted in ((0.99, False), (1.01, True)):
        found, after = safe.decide(center[stage] + share * factor[stage][:, 0], PUSH)
        assert (found.falsified is not None) == refuted == (not found.backed)
        assert found.contained.tolist() == [not refuted]
        if refuted:
            assert f"{stage} steps after the plan was certified" in found.falsified
            assert after.falsified == found.falsified


def test_members_that_were_left_once_do_not_come_back():
    """Those that contained the plant at every stage count, and only while the law is followed."""
    problem, _ = linear_case()
    model = Pair(problem.model, tensor([0.02, 0.08]))
    _, safe = SafetyFilter(replace(problem, model=model), Moody()).decide(ORIGIN, tensor([0.0]))
    assert safe.members.tolist() == [True, True] and (safe.stage, safe.failures) == (1, 0)
    center = safe.stored.tube.center
    safe = replace(safe, proposer=SILENT)
    for member in (0, 1):
        decision, after = safe.decide(center[member, 1], PUSH)
        assert after.members.tolist() == decision.contained.tolist() == [member == 0, member == 1]
        again, _ = after.decide(center[member, 2], PUSH)
        assert again.backed and again.falsified is None
        other, off = after.decide(center[1 - member, 2], PUSH)
        assert not other.backed and "member" in other.falsified and off.members is None
    everywhere = replace(safe, members=None)
    decision, after = everywhere.decide(center[0, 1], PUSH)  # in one tube only, and nobody knows whose
    assert (decision.source, decision.backed, decision.falsified, after.members) == ("stored", False, None, None)
    wide = replace(safe.stored.tube, factor=100.0 * safe.stored.tube.factor)
    known = replace(everywhere, stored=forged(safe.stored, tube=wide))
    decision, after = known.decide(center[0, 1], PUSH)
    assert decision.backed and decision.falsified is None and after.members.tolist() == [True, True]


def test_in_paper_mode_one_tube_of_any_member_is_enough():
    """The published rule, which claims nothing that could be refuted."""
    problem, _ = linear_case()
    model = Pair(replace(problem.model, mode="paper"), tensor([0.02, 0.08]))
    model.mode = "paper"
    _, safe = SafetyFilter(replace(problem, model=model), Moody()).decide(ORIGIN, tensor([0.0]))
    center, safe = safe.stored.tube.center, replace(safe, proposer=SILENT)
    for x, inside in ((center[0, 1], True), (center[1, 1], True), (tensor([0.5, 0.5]), False)):
        decision, after = safe.decide(x, PUSH)
        assert (decision.source, decision.backed, decision.falsified, after.members) == ("stored", inside, None, None)
        assert int(decision.contained.sum()) == inside


def test_a_refutation_stays_the_first_until_the_start():
    safe = running().refuted("first").refuted("second")
    assert safe.falsified == "first"
    decision, after = safe.decide(ORIGIN, PUSH)
    assert (decision.source, decision.backed, decision.falsified, after.falsified) == ("plan", False, "first", "first")
    fresh = after.start()
    assert (fresh.falsified, fresh.stored, fresh.stage, fresh.failures, fresh.members, fresh.resting) == (
        None, None, 0, 0, None, False,
    )  # fmt: skip


def test_a_refutation_at_rest_stays_the_first():
    outside = tensor([0.99, 0.99])
    safe = replace(linear_filter(proposer=SILENT), resting=True)
    assert str(safe.decide(outside, PUSH)[0].falsified).startswith("x left the set certified to be invariant")
    assert safe.refuted("first").decide(outside, PUSH)[0].falsified == "first"


def test_only_a_backed_backup_is_resting():
    problem, sure = linear_case()
    outside = tensor([0.99, 0.99])
    assert not bool(sure.region.contains(outside))
    for x, resting in ((ORIGIN, True), (outside, False), (tensor([math.nan, 0.0]), False)):
        decision, after = linear_filter(proposer=SILENT).decide(x, PUSH)
        assert (decision.source, decision.backed, after.resting) == ("backup", resting, resting)
        assert torch.equal(decision.u, sure.law(x)) or not resting
        left, _ = after.decide(outside, PUSH)
        assert (left.falsified is not None) == resting
        _, after = replace(after, proposer=Moody()).decide(ORIGIN, PUSH)
        assert not after.resting
    assert bool(problem.states.contains(outside))


# ------------------------------------------------------------------------------------------------- soft plans, reasons
def test_least_violating_plans_wait_until_the_stored_plan_has_ended():
    """From the second failure on, unless something better is left; never a plan that is not finite."""
    bad = Odd(told(torch.full((4, 1), 9.0).double()))
    safe = replace(running(), proposer=bad, invariance=None, soften=2)
    found = []
    for _ in range(5):
        decision, safe = safe.decide(tensor([0.9, 0.9]), PUSH)  # in no tube
        found.append((decision.source, decision.backed, decision.stage))
    assert found == [
        ("stored", False, 1),
        ("stored", False, 2),
        ("stored", False, 3),
        ("soft", False, None),
        ("soft", False, None),
    ]
    assert decision.u.tolist() == [1.0]  # clipped
    blind, _ = replace(safe, proposer=Odd(told(torch.full((4, 1), math.nan)))).decide(tensor([0.9, 0.9]), PUSH)
    assert (blind.source, blind.u.tolist()) == ("unfiltered", [0.25])
    silent, after = replace(safe, proposer=SILENT).decide(tensor([0.9, 0.9]), PUSH)
    assert (silent.source, silent.certificate, after.failures) == ("unfiltered", None, 6)
    backed, _ = replace(safe, invariance=linear_case()[1], falsified=None).decide(ORIGIN, PUSH)
    assert (backed.source, backed.backed) == ("backup", True)


def test_reasons_are_told_in_their_order():
    def broken(x):
        raise ArithmeticError("no brakes")

    bare = SafetyFilter(linear_case()[0], Odd(KeyError("lost")), backup=broken)
    decision, _ = bare.decide(ORIGIN, tensor([math.inf]))
    assert decision.reason == (
        "the proposed input is not finite, or its square is not; the proposer failed: KeyError: 'lost'; "
        "the backup failed: ArithmeticError: no brakes"
    )
    assert (decision.source, decision.backed, decision.u.tolist()) == ("unfiltered", False, [0.0])
    decision, _ = replace(bare, proposer=SILENT).decide(ORIGIN, PUSH)
    assert decision.reason.startswith("the proposer failed: it returned a NoneType, no Proposal; the backup failed: ")
    assert decision.u.tolist() == [0.25]
    narrow, _ = replace(bare, proposer=SILENT, backup=lambda x: x).decide(ORIGIN, PUSH)
    assert "the backup failed: ValueError: backup: expected u of shape (1,)" in narrow.reason
    held, _ = replace(bare, proposer=SILENT, backup=lambda x: 0.5 + 0.0 * x[:1]).decide(ORIGIN, PUSH)
    assert (held.source, held.u.tolist(), held.reason) == (
        "backup",
        [0.5],
        "the proposer failed: it returned a NoneType, no Proposal",
    )
    lost, _ = linear_filter().decide(tensor([math.nan, 0.0]), PUSH)
    assert lost.reason == "the measured state is not finite" and lost.certificate is None


def test_a_failing_proposer_and_a_failing_backup_are_logged(caplog):
    def broken(x):
        raise ArithmeticError("no brakes")

    bare = SafetyFilter(linear_case()[0], SILENT, backup=broken)
    with caplog.at_level(logging.WARNING):
        _, after = bare.decide(ORIGIN, PUSH)
        assert [record.message.split(":")[0] for record in caplog.records] == [
            "the proposer failed",
            "the backup failed",
        ]
        caplog.clear()
        after.decide(ORIGIN, PUSH)  # the proposer once in a row
        assert [record.message.split(":")[0] for record in caplog.records] == ["the backup failed"]


@pytest.mark.parametrize("wrong", [[0.0, 0.0], torch.zeros(2, dtype=torch.bool), torch.zeros(2) + 0j])
def test_what_is_no_tensor_of_real_numbers_is_refused(wrong):
    with pytest.raises(ValueError, match="a tensor of real numbers x, got"):
        linear_filter().decide(wrong, PUSH)
    with pytest.raises(ValueError, match="a tensor of real numbers learned, got"):
        linear_filter().decide(ORIGIN, wrong)


def test_whole_numbers_are_numbers_and_what_is_measured_stays_the_callers():
    x = torch.zeros(2, dtype=torch.int64)
    decision, _ = linear_filter().decide(x, PUSH.float())
    assert decision.source == "plan" and decision.u.dtype is torch.float64 and x.dtype is torch.int64


# ----------------------------------------------------------------------------------------------------------- clipping
def clipping(inputs: Polytope) -> SafetyFilter:
    box = Polytope.of_box(Box(-torch.ones(2).double(), torch.ones(2).double()))
    plant = AffineKnown(torch.eye(2).double(), torch.eye(2).double(), torch.zeros(2).double())
    problem = CertificationProblem(
        LinearTube(plant, torch.ones(2).double()), box, inputs, box, torch.zeros(2, 2).double(), 2
    )
    return SafetyFilter(problem, SILENT)


@pytest.mark.parametrize(
    ("given", "applied"),
    [([5.0, 3.0], [2.0, 1.5]), ([1.0, -7.0], [1.0, 0.0]), ([0.25, 2.0], [0.25, 2.0]), ([-3.0, 1.0], [0.0, 1.0]),
     ([0.1, 0.3], [0.1, 0.3]), ([math.nan, 0.0], [1.0, 1.0]), ([1e150, 1e150], [2.0, 2.0])],
)  # fmt: skip
def test_inputs_are_moved_towards_the_centre_as_far_as_needed(given, applied):
    """U = [0, 2]², whose centre is (1, 1)."""
    decision, _ = clipping(Polytope.of_box(Box(torch.zeros(2).double(), 2.0 * torch.ones(2).double()))).decide(
        tensor([0.5, 0.5]), tensor(given)
    )
    assert decision.source == "unfiltered"
    torch.testing.assert_close(decision.u, tensor(applied), rtol=0, atol=1e-12)
    again = torch.ones(2).double() if math.isnan(given[0]) else tensor(given)
    assert torch.equal(decision.u, again) == (applied in ([1.0, 1.0], given))


def test_inputs_are_moved_in_a_set_of_any_size():
    """U = [0, ½] × [0, ⅛], centre (¼, 1/16) or another with 1/16 to the nearest edge."""
    small = Polytope.of_box(Box(torch.zeros(2).double(), tensor([0.5, 0.125])))
    center = small.chebyshev()[0]
    decision, _ = clipping(small).decide(tensor([0.5, 0.5]), tensor([4.0, float(center[1])]))
    torch.testing.assert_close(decision.u, torch.stack([tensor(0.5), center[1]]), rtol=0, atol=1e-12)
    decision, _ = clipping(small).decide(tensor([0.5, 0.5]), torch.stack([center[0], tensor(-7.0)]))
    torch.testing.assert_close(decision.u, torch.stack([center[0], tensor(0.0)]), rtol=0, atol=1e-12)


def test_what_rounding_leaves_outside_is_moved_by_the_least_share_that_is_listed():
    """[0, 2]² cut by 0.6x + 0.8y ≤ 1.7: some points of the boundary are outside as computed, and 1e-15 of the way is enough."""
    cut = Polytope(tensor([[0.6, 0.8]]), tensor([1.7]))
    inputs = Polytope.of_box(Box(torch.zeros(2).double(), 2.0 * torch.ones(2).double())).intersect(cut)
    safe, center, needed = clipping(inputs), inputs.chebyshev()[0], 0
    for u in center + 4.0 * torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        gauge = float((inputs.H @ (u - center) / (inputs.h - inputs.H @ center)).max())
        plain, moved = center + (u - center) / max(gauge, 1.0), safe._clipped(u)
        assert bool(inputs.contains(moved))
        assert float((moved - plain).norm()) <= 1e-15 * float((plain - center).norm()) + 4e-16
        needed += not bool(inputs.contains(plain))
    assert needed > 0


# ------------------------------------------------------------------------------------------------- what is refused
def test_stored_plans_and_counts_are_checked():
    safe = running()
    with pytest.raises(ValueError, match="a certified plan in stored"):
        replace(safe, stored="plan")
    refused, _ = linear_filter(proposer=Odd(told(torch.full((4, 1), 9.0).double()))).decide(ORIGIN, PUSH)
    assert refused.certificate is not None and not refused.certificate.certified
    with pytest.raises(ValueError, match="a certified plan in stored"):
        replace(safe, stored=refused.certificate)
    for name in ("states", "inputs", "terminal"):
        body = getattr(safe.problem, name)
        other = replace(safe.problem, **{name: Polytope(body.H, 0.5 * body.h)})
        with pytest.raises(ValueError, match="a stored plan certified for these sets"):
            replace(safe, problem=other, invariance=None)
    for change, message in (
        ({"stage": -1}, "stage"), ({"failures": -1}, "failures"), ({"backup": 3}, "a backup law"),
        ({"problem": None}, "a CertificationProblem"), ({"soften": 0}, "soften"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            replace(linear_filter(), **change)


def test_an_invariance_that_is_not_certified_is_refused():
    problem, sure = linear_case()
    for verdict in (Verdict(-1.0, 1e-300, 0.0), Verdict(0.5, 1.0, 0.0)):
        with pytest.raises(ValueError, match="a certified invariance"):
            SafetyFilter(problem, Moody(), forged(sure, verdict=verdict))
    assert SafetyFilter(problem, Moody(), forged(sure, verdict=Verdict(-1.0, 0.0, 0.0))).invariance is not None


def test_the_proposer_is_made_ready_with_a_copy_of_the_problem():
    class Ready(Recorder):
        given = None

        def prepare(self, problem):
            self.given = problem

    ready = Ready()
    safe = linear_filter(proposer=ready)
    safe.start()
    assert ready.given is safe.problem.lent() and ready.given is not safe.problem


def test_what_a_backup_returns_stays_its_own_and_resting_alone_blames_nobody():
    mine = tensor([0.125])
    safe = replace(linear_filter(), proposer=SILENT, backup=lambda x: mine, invariance=None)
    found, _ = replace(safe, resting=True).decide(ORIGIN, PUSH)
    assert found.source == "backup" and found.falsified is None and torch.equal(found.u, mine)
    mine[0] = 9.0
    assert float(found.u) == 0.125
