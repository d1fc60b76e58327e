"""The shield with a judge whose verdicts are written down: which plan, which row, what is stored, what is reported."""

import logging
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import Tensor

from gpsafe.cost.plan_tube import SLACK, Plans, Verification
from gpsafe.policies import AffinePolicies
from gpsafe.safety.shield import NotCertified, Shield, noise_radius, noise_risk
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope

tensor = partial(torch.tensor, dtype=torch.float64)
BOX = Box(tensor([-1.0]), tensor([1.0]))
FALLBACKS = AffinePolicies(tensor([[0.1], [0.2], [0.3]]), torch.zeros(3, 1, 2).double(), BOX)
X0 = tensor([0.5, -0.5])


def verdicts(margin, *, steps=None, landed=None) -> Verification:
    margin = tensor(margin)
    steps = torch.full((len(margin),), 5) if steps is None else torch.tensor(steps)
    return Verification(
        margin >= 0, margin, steps, torch.zeros(len(margin), dtype=torch.bool) if landed is None else landed
    )


SIZES = torch.tensor([[0.5, 2e3]], dtype=torch.float64)  # what a step computes with


class Stub(SimpleNamespace):
    """Told apart by identity, as judges are."""

    __hash__ = object.__hash__


def judge(found: Verification, asked: list, *, empty=None):
    """Answers `found` to whatever it is asked, and notes what that was."""

    def verify(start, plans, remaining):
        asked.append((start, plans, remaining))
        return found

    self = Stub(
        fallbacks=FALLBACKS, input_box=BOX, task=SimpleNamespace(horizon=6), noise_radius=tensor([0.1, 0.1]), verify=verify,
        confidence=None,
        anchors=None if empty is None else SimpleNamespace(empty=empty), believed=lambda: (),
        reach=lambda start, plan, time: (Zonotope(start.center + 1.0 + time, tensor([[[0.2], [0.4]]])), None),
        sizes=lambda x, u: SIZES,
    )  # fmt: skip
    self.refine = lambda confidence: self
    return self


CONFIDENCE = SimpleNamespace(model=SimpleNamespace(nx=2))


def start(found: Verification, *, asked=None, **options):
    empty = options.pop("empty", None)
    made = judge(found, [] if asked is None else asked, empty=empty)
    return Shield.start(made, CONFIDENCE, X0, tracking=options.pop("tracking", None), **options)


def test_the_fallback_of_largest_margin_is_stored():
    asked = []
    shield = start(verdicts([0.1, 0.5, 0.3]), asked=asked)
    assert isinstance(shield, Shield)
    assert (shield.basis, shield.time, shield.margin, shield.horizon) == ("certified", 0, 0.5, 6)
    assert shield.stored.fallback.tolist() == [1] and shield.stored.lengths.tolist() == [0]
    assert shield.expected is not None and torch.equal(shield.expected.center, X0[None])
    assert torch.equal(shield.expected.radius, SLACK * SIZES)
    ((point, plans, remaining),) = asked
    assert remaining == 6 and plans.fallback.tolist() == [0, 1, 2] and torch.equal(point.center, X0.expand(3, 2))
    assert shield.assumptions == ()


def test_without_a_certificate_the_best_margin_and_the_longest_tube_are_told():
    found = verdicts([-0.2, -0.1, -0.3], steps=[2, 1, 4])
    refused = start(found)
    assert refused == NotCertified(-0.1, 4, None)
    assumed = start(found, assume=True)
    assert isinstance(assumed, Shield) and assumed.basis == "assumed" and math.isnan(assumed.margin)
    assert assumed.stored.fallback.tolist() == [0] and len(assumed.assumptions) == 1
    empty = tensor([[0.25, 0.5]])
    for assume in (False, True):
        falsified = start(verdicts([0.1, 0.5, 0.3]), assume=assume, empty=empty)
        assert isinstance(falsified, NotCertified)
        assert falsified.falsified == "F_n is empty at 1 anchors, first z = [0.25, 0.5]"
    assert isinstance(start(verdicts([0.0, -1.0, -1.0]), empty=empty[:0]), Shield)  # a margin of 0 is enough


class Brakes:
    """Completes every candidate in two ways: as it is, and scaled by ½ with fallback 2."""

    def __init__(self):
        self.asked = []

    def plans(self, judge, x: Tensor, candidates: Tensor, lengths: Tensor, remaining: int) -> Plans:
        self.asked.append((x, candidates, lengths, remaining))
        both = torch.stack([candidates, 0.5 * candidates], 1).flatten(0, 1)
        return Plans.open_loop(both, lengths.repeat_interleave(2), torch.tensor([1, 2] * len(candidates)), 2)


CANDIDATES = tensor([[[0.8], [0.7]], [[-0.6], [0.4]], [[0.2], [0.9]]])


def decided(margins, candidates=CANDIDATES, *, steps=None, landed=None, lengths=None, x=X0):
    tracking, asked = Brakes(), []
    shield = start(verdicts([0.1, 0.5, 0.3]), tracking=tracking)
    found = verdicts(margins, steps=steps, landed=landed)
    shield.judge.verify = lambda point, plans, remaining: asked.append((point, plans, remaining)) or found
    decision, following = shield.decide(x, candidates, lengths)
    return decision, following, tracking, asked


def test_the_first_admitted_candidate_goes_with_its_best_completion():
    decision, following, tracking, asked = decided([-1.0, -0.1, -0.3, 0.2, 0.9, 0.8])
    assert (decision.source, decision.index, decision.margin) == ("plan", 1, 0.2)
    assert decision.admitted.tolist() == [False, True, True] and decision.falsified is None
    assert decision.u.tolist() == [-0.3]  # the second completion
    assert (following.time, following.margin) == (1, 0.2)
    assert following.stored.fallback.tolist() == [2] and following.stored.lengths.tolist() == [1]
    assert following.stored.offset.flatten().tolist() == [0.2]
    assert torch.equal(following.expected.center, X0[None] + 1.0)  # of the first step of the plan, from x
    ((x, candidates, lengths, remaining),) = tracking.asked
    assert (
        torch.equal(x, X0) and torch.equal(candidates, CANDIDATES) and (lengths.tolist(), remaining) == ([2, 2, 2], 6)
    )
    ((point, plans, remaining),) = asked
    assert remaining == 6 and plans.num == 6 and torch.equal(point.center, X0.expand(6, 2))
    both, *_ = decided([0.3, 0.1, -0.3, 0.2, 0.9, 0.8])
    assert both.index == 0 and both.margin == 0.3 and both.u.tolist() == [0.8]


def test_a_plan_that_lands_is_stored_up_to_there():
    landed = torch.tensor([False, False, False, True, False, False])
    _, following, _, _ = decided([-1.0, -1.0, -1.0, 0.2, -1.0, -1.0], steps=[5, 5, 5, 1, 5, 5], landed=landed)
    assert following.stored.lengths.tolist() == [0]
    _, following, _, _ = decided([-1.0, -1.0, -1.0, 0.2, -1.0, -1.0], steps=[1] * 6)
    assert following.stored.lengths.tolist() == [1]


def test_candidates_that_are_not_finite_are_never_admitted_and_lengths_are_cut():
    for bad in (math.nan, math.inf, -math.inf):
        candidates = CANDIDATES.clone()
        candidates[0, 1, 0] = bad
        decision, _, tracking, _ = decided(
            [0.5, 0.5, -0.1, 0.2, -0.1, -0.1], candidates, lengths=torch.tensor([9, -3, 1])
        )
        assert decision.index == 1 and decision.admitted.tolist() == [False, True, False]
        assert bool(torch.isfinite(tracking.asked[0][1]).all()) and tracking.asked[0][2].tolist() == [2, 0, 1]


def test_else_the_stored_plan_goes_on():
    decision, following, _, _ = decided([-0.1] * 6)
    assert (decision.source, decision.index, decision.margin) == ("fallback", None, 0.5)
    assert decision.u.tolist() == [0.2] and following.margin == 0.5 and not bool(decision.admitted.any())
    _, planned, tracking, asked = decided([-1.0, -0.1, -0.3, 0.2, 0.9, 0.8])
    planned.judge.verify = lambda point, plans, remaining: asked.append(remaining) or verdicts([-1.0] * 6)
    inside = planned.expected.center[0]
    going, after = planned.decide(inside, CANDIDATES)
    assert (going.source, going.u.tolist(), going.falsified, after.time) == ("stored", [0.2], None, 2)
    assert asked[-1] == 5 == tracking.asked[-1][3]
    last, _ = after.decide(after.expected.center[0], CANDIDATES[:0])
    assert (last.source, last.u.tolist(), last.admitted.shape) == ("fallback", [pytest.approx(0.3)], (0,))


def test_a_state_beyond_the_one_step_set_is_reported():
    _, shield, _, _ = decided([0.3] * 6)
    center, radius = shield.expected.center[0], tensor([0.2, 0.4])
    for sign in (-1, 1):
        for i in range(2):
            for factor, refuted in ((0.99, False), (1.5, True)):
                x = center.clone()
                x[i] += sign * float(radius[i] + factor * SLACK * SIZES[0, i])
                told = shield._outside(x)
                assert (told is not None) == refuted
                assert told is None or told.startswith(f"state {i} at t = 1 is")
                assert shield.decide(x, CANDIDATES)[0].falsified == told


def test_where_nothing_was_claimed_nothing_is_reported():
    _, shield, _, _ = decided([0.3] * 6)
    assert shield._outside(tensor([1e9, 1e9])) is not None
    for nothing in (None, Zonotope(tensor([[0.0, 0.0]]), tensor([[[math.inf], [0.4]]]))):
        assert replace(shield, expected=nothing)._outside(tensor([1e9, 1e9])) is None


def test_what_breaks_at_the_candidates_is_logged(caplog):
    class Broken:
        def plans(self, *arguments):
            raise ArithmeticError("no gain")

    shield = start(verdicts([0.1, 0.5, 0.3]), tracking=Broken())
    with caplog.at_level(logging.WARNING):
        decision, following = shield.decide(X0, CANDIDATES)
    assert decision.reason == "the candidates could not be judged: ArithmeticError: no gain"
    assert [record.message for record in caplog.records] == [decision.reason]
    assert (decision.source, decision.u.tolist(), following.time) == ("fallback", [0.2], 1)
    assert decision.admitted.tolist() == [False] * 3


def test_callers_errors_are_refused():
    _, shield, _, _ = decided([0.3] * 6)
    for x, candidates, lengths, message in (
        (tensor([0.0]), CANDIDATES, None, "x of shape"),
        (tensor([0.0, math.nan]), CANDIDATES, None, "finite x"),
        (X0, CANDIDATES[0], None, "candidates of shape"),
        (X0, torch.zeros(1, 2, 2).double(), None, "candidates of shape"),
        (X0, CANDIDATES, torch.tensor([1]), "lengths of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            shield.decide(x, candidates, lengths)
    for _ in range(5):
        _, shield = shield.decide(X0, CANDIDATES[:0])
    with pytest.raises(ValueError, match="a time below the horizon 6"):
        shield.decide(X0, CANDIDATES[:0])
    with pytest.raises(ValueError, match="x0 of shape"):
        Shield.start(judge(verdicts([0.1]), []), CONFIDENCE, tensor([0.0]), tracking=None)


def test_the_noise_box_is_a_union_bound_over_tails_steps_and_states():
    sigma = tensor([0.5, 0.0, 2.0])
    k = stats.norm.isf(0.03 / (2 * 40 * 3))
    torch.testing.assert_close(noise_radius(sigma, steps=40, delta=0.03), sigma * (k + 1e-6), rtol=1e-9, atol=0)
    for bad in ({"steps": 0, "delta": 0.1}, {"steps": 4, "delta": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            noise_radius(sigma, **bad)
    with pytest.raises(ValueError, match="noise_std"):
        noise_radius(-sigma, steps=4, delta=0.1)


def test_the_risk_of_a_noise_box_is_the_sum_of_its_tails_rounded_up():
    """A state without noise never leaves its box, not even one without width."""
    sigma, radius = tensor([0.5, 0.0, 2.0, 0.0]), tensor([1.5, 0.0, 8.0, 0.1])
    tails = 2 * stats.norm.sf(3.0) + 2 * stats.norm.sf(4.0)
    for steps in (0, 1, 7):
        assert noise_risk(sigma, radius, steps=steps) == pytest.approx(steps * tails * (1 + 1e-9), rel=1e-11, abs=0)
    inverse = noise_radius(sigma, steps=40, delta=0.03)
    assert noise_risk(sigma, inverse, steps=40) == pytest.approx(0.03 * 2 / 4, rel=1e-4)
    assert noise_risk(sigma[:1], tensor([0.0]), steps=3) >= 3.0
