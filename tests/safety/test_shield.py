"""The shield always has an answer, and on its event no state violates the constraint; broken shields are caught."""

import asyncio
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from cost_cases import extremal_member, generator, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from shield_cases import HORIZON, case_of, corners, judge_of, judged, pushes, shield_of, tracking_of
from strategies import seeds

from gpsafe.algorithms.episode import Pilot, verified_episode
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.linalg import vector
from gpsafe.models import GP, LowRankGP
from gpsafe.planning.tracking import Tracking, linearised
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety.shield import NotCertified, Shield, noise_radius
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import SineKnown
from gpsafe.systems.task import Task

NONE = torch.zeros(0, 1, 1, dtype=torch.float64)


def adversarial(seed: int, time: int) -> torch.Tensor:
    """Candidates (3, 6, 1): none at all, full pushes, inputs far outside their box, NaN."""
    g = generator(seed + 7919 * time)
    candidates = pushes(seed + time, 3, length=6) * 1.5
    kind = int(torch.randint(0, 9, (1,), generator=g))
    if kind > 3:
        return NONE
    if kind == 0:
        candidates = torch.ones_like(candidates)
    elif kind == 1:
        candidates = 1e6 * torch.randn(candidates.shape, dtype=torch.float64, generator=g)
    elif kind == 2:
        candidates[0, 0, 0] = math.nan
    return candidates


def play(case, shield: Shield, f, noise, candidates) -> tuple[torch.Tensor, list]:
    """States (T + 1, nx) and decisions of one episode of known + f; candidates: time → (K, H, 1)."""
    model, x = case.confidence.model, case.system.initial_state
    states, decisions = [x], []
    for t in range(HORIZON):
        decision, shield = shield.decide(x, candidates(t))
        assert bool(case.system.input_box.contains(decision.u))
        residual = f(torch.cat([x, decision.u]).unsqueeze(0))
        x = model.prior(x[None], decision.u[None])[0] + model.embed(residual.reshape(1, 1))[0] + noise[t]
        states.append(x)
        decisions.append(decision)
    return torch.stack(states), decisions


def truth(case):
    return lambda z: case.system.residual_fn(z)[..., 0]


@settings(max_examples=max(6, settings().max_examples // 4))
@given(seed=seeds(), extremal=st.booleans())
def test_there_is_always_an_answer_and_no_state_violates_the_constraint(seed, extremal):
    """Adversarial candidates, noise at the corners of its box, and a plant at the very edge of F_n."""
    case, judge = case_of(), judged()
    f = truth(case)
    if extremal:
        z = case.system.region.sample(1, generator(seed))[0] * vector(0.3, 0.3, 1.0)
        f = extremal_member(case, z, 1.0 if seed % 2 else -1.0)
    noise = corners(judge.noise_radius, HORIZON, seed)
    states, decisions = play(case, shield_of(case, judge), f, noise, lambda t: adversarial(seed, t))
    assert len(decisions) == HORIZON
    assert float(case.system.cost(states).max()) == 0.0
    assert all(d.falsified is None for d in decisions)


def test_candidates_are_carried_out_when_admitted_and_the_first_admitted_wins():
    case, judge = case_of(), judged()
    candidates = torch.tensor([1.0, 0.25, 0.1], dtype=torch.float64).reshape(3, 1, 1).expand(3, 8, 1)
    decision, following = shield_of(case, judge).decide(case.system.initial_state, candidates)
    assert decision.source == "plan" and decision.index == 1
    assert decision.admitted.tolist() == [False, True, True]
    assert float(decision.u) == pytest.approx(0.25) and decision.margin > 0
    assert following.time == 1 and bool(following.stored.lengths > 0)
    later, _ = following.decide(vector(0.0, 0.2), NONE)
    assert later.source == "stored" and later.index is None and later.margin == decision.margin


def test_without_candidates_the_certified_fallback_runs():
    case = case_of()
    shield = shield_of(case, judged())
    assert shield.basis == "certified" and not any("assumed" in a for a in shield.assumptions)
    decision, _ = shield.decide(case.system.initial_state, NONE)
    expected = shield.judge.fallbacks(case.system.initial_state.reshape(1, 1, 2))[0, 0]
    assert decision.source == "fallback" and torch.equal(decision.u, expected)


def stored_plan_violates(shifted) -> bool:
    """Whether following a verified open-loop push of two steps, with `shifted` for what remains, violates."""
    case, judge = case_of(), judged()
    x0, lengths = case.system.initial_state, torch.tensor([2])
    plan = Plans.open_loop(torch.full((1, 2, 1), 0.7, dtype=torch.float64), lengths, torch.tensor([0]), 2)
    assert bool(judge.verify(Zonotope.point(x0.expand(1, -1)), plan, HORIZON).admitted)
    noise = torch.zeros(HORIZON, 2, dtype=torch.float64)
    with mock.patch.object(Plans, "shifted", shifted):
        shield = replace(shield_of(case, judge), stored=plan)
        states, decisions = play(case, shield, truth(case), noise, lambda t: NONE)
    assert decisions[0].source == "stored"
    return float(case.system.cost(states).max()) > 0


def test_control_a_stored_plan_off_by_one_is_caught():
    assert not stored_plan_violates(Plans.shifted)
    assert stored_plan_violates(lambda plan: plan)


@pytest.mark.parametrize(("nu", "weight", "horizon"), [(1, 1.0, 660), (2, 1e20, 3)])
def test_candidates_without_finite_gains_are_refused_and_the_fallback_answers(nu, weight, horizon):
    """x⁺ = 3x + Σu + …: without feedback 3^660 is no number, and nor are the gains along that path; with a weight of 1e20
    and two equal inputs the equations for the gains are singular."""
    one, ones = torch.eye(1, dtype=torch.float64), torch.ones(1, nu, dtype=torch.float64)
    known = SineKnown(3 * one, ones, vector(0.0), 0.01 * one, torch.ones(1, 1 + nu, dtype=torch.float64), vector(0.0))
    model = GP.create(kernels.rbf([1.0] * (1 + nu), 1e-6), 1e-6, nx=1, nu=nu, noise_std=1e-3, prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1e-3, subgaussian=1e-3, delta=0.1)).update(model)
    box, rest = Box(-ones[0], ones[0]), 0 * ones
    hold = AffinePolicies(rest, -3 / nu * ones.mT[None], box)
    judge = PlanTube(
        fallbacks=hold,
        task=Task(vector(0.0), horizon, IndicatorCost(one, vector(1.0)), 0.0, vector(1e-4)),
        noise_radius=vector(1e-3),
        input_box=box,
    )
    tracking = Tracking(
        brakes=AffinePolicies(rest, 0 * ones.mT[None], box), authority=0.5, state_weight=vector(weight),
        input_weight=ones[0],
    )  # fmt: skip
    shield = Shield.start(judge, confidence, vector(0.0), tracking=tracking)
    assert isinstance(shield, Shield)
    decision, _ = shield.decide(vector(0.0), torch.ones(2, 5, nu, dtype=torch.float64))
    assert decision.source == "fallback" and decision.admitted.tolist() == [False, False]


class Unfinished(Tracking):
    """Raises, returns nonsense, or writes on what it was given."""

    answer: object

    def plans(self, judge, x, candidates, lengths, steps):
        for given_ in (x, candidates, lengths):
            given_.zero_()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(judge, steps) if callable(self.answer) else self.answer


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("no gains"),
        KeyError("x"),
        TimeoutError(),
        ZeroDivisionError(),
        asyncio.CancelledError(),
        GeneratorExit(),
        None,
        (part for part in ()),
        lambda judge, steps: Plans.of_fallbacks(torch.arange(2), 2, 1),
        lambda judge, steps: Plans.of_fallbacks(torch.tensor([99, 99, 99]), 2, 1),
    ],
)
def test_whatever_completes_the_candidates_only_costs_the_candidates(answer):
    case, judge = case_of(), judged()
    base = tracking_of(case)
    odd = Unfinished(brakes=base.brakes, authority=0.8, state_weight=base.state_weight, input_weight=base.input_weight)
    object.__setattr__(odd, "answer", answer)
    start, candidates = vector(0.05, 0.1), torch.full((3, 4, 1), 0.1, dtype=torch.float64)
    shield = shield_of(case, judge)
    expected, _ = shield.decide(start, NONE)
    decision, following = replace(shield, tracking=odd).decide(start, candidates)
    assert decision.source == "fallback" and torch.equal(decision.u, expected.u)
    assert decision.admitted.tolist() == [False] * 3
    assert "could not be judged" in decision.reason
    assert expected.reason == ""
    assert torch.equal(start, vector(0.05, 0.1)) and bool((candidates == 0.1).all())
    again, _ = following.decide(vector(0.05, 0.1), NONE)
    assert again.source == "fallback"


class Vandal(Tracking):
    """Completes well, and widens the noise box, F_n's data and the limits of the judge that it was given."""

    def plans(self, judge, x, candidates, lengths, steps):
        judge.noise_radius.zero_()
        judge.confidence.model.targets.zero_()
        judge.task.initial_state.fill_(9.0)
        judge.task.cost.offsets.fill_(9.0)
        return super().plans(judge, x, candidates, lengths, steps)


class Scribbler:
    """A planner that writes on its model."""

    def propose(self, model, x, *, generator, warm_start=None):
        model.targets.fill_(7.0)
        raise ArithmeticError("no plan")


class Cancelled:
    """A planner whose own task was cancelled."""

    def propose(self, model, x, *, generator, warm_start=None):
        raise asyncio.CancelledError


def test_who_completes_and_who_plans_write_on_copies():
    case, judge = case_of(), judged()
    base = tracking_of(case)
    vandal = Vandal(
        brakes=base.brakes, authority=base.authority, state_weight=base.state_weight, input_weight=base.input_weight
    )
    shield, start = shield_of(case, judge), case.system.initial_state
    own = shield.judge
    kept = [v.clone() for v in (own.noise_radius, own.confidence.model.targets, own.task.initial_state)]
    reach = own.constraint.excess(start)
    for seed in range(3):
        expected, _ = shield.decide(start, pushes(seed, 2))
        replace(shield, tracking=vandal).decide(start, pushes(seed, 2))
        decision, _ = shield.decide(start, pushes(seed, 2))
        assert torch.equal(decision.u, expected.u) and decision.margin == expected.margin
    pilot = Pilot(Scribbler(), own.confidence.model, case.system.input_box, generator(0), shield)
    pilot(start)
    assert "no plan" in pilot.failures[0]
    cancelled = Pilot(Cancelled(), own.confidence.model, case.system.input_box, generator(0), shield)
    cancelled(start)
    assert "CancelledError" in cancelled.failures[0]
    for before, after in zip(
        kept, (own.noise_radius, own.confidence.model.targets, own.task.initial_state), strict=True
    ):
        assert torch.equal(before, after)
    assert torch.equal(own.constraint.excess(start), reach)


def test_a_set_that_cannot_be_made_costs_the_guarantee_and_not_the_answer():
    """A fallback whose own slopes turn out wrong in flight, say."""
    case = case_of()
    shield = shield_of(case)
    with mock.patch.object(PlanTube, "reach", side_effect=ValueError("slopes")):
        decision, after = shield.decide(case.system.initial_state, pushes(0, 2))
    plain, _ = shield.decide(case.system.initial_state, pushes(0, 0))
    assert decision.source == "fallback" and torch.equal(decision.u, plain.u)
    assert "could not be made: ValueError: slopes" in str(decision.falsified) and after.expected is None
    assert after.decide(case.system.initial_state, pushes(0, 2))[0].falsified == decision.falsified


def test_a_state_that_the_assumptions_exclude_is_reported():
    case = case_of()
    _, following = shield_of(case, judged()).decide(case.system.initial_state, NONE)
    assert following.decide(vector(0.0, 0.0), NONE)[0].falsified is None
    told = following.decide(vector(0.0, 0.5), NONE)[0].falsified
    assert told is not None and "state 1 at t = 1" in told


def test_the_last_state_of_an_episode_is_held_against_its_one_step_set_too():
    """At t = T nothing is decided any more, and whatever the last step led to went unnoticed."""
    case, judge = case_of(), judged()
    last = replace(judge, task=judge.task.with_(horizon=1)).refine(case.confidence)
    _, after = shield_of(case, last).decide(case.system.initial_state, NONE)
    with pytest.raises(ValueError, match="below the horizon 1"):
        after.decide(vector(0.0, 0.5), NONE)
    assert after.arrived(vector(0.0, 0.0)).falsified is None
    refuted = after.arrived(vector(0.0, 0.5))
    assert "state 1 at t = 1" in str(refuted.falsified)
    assert refuted.arrived(vector(0.0, 0.0)).falsified == refuted.falsified
    assert after.arrived(vector(0.0, torch.nan)).falsified is None  # no measurement
    with pytest.raises(ValueError, match=r"Shield\.arrived"):
        after.arrived(vector(0.0))


def test_a_refutation_stays_to_the_end_of_the_episode():
    case = case_of()
    _, following = shield_of(case, judged()).decide(case.system.initial_state, NONE)
    refuted, later = following.decide(vector(0.0, 0.5), NONE)
    assert later.expected is not None
    again, last = later.decide(later.expected.center[0], NONE)
    assert again.falsified == refuted.falsified is not None
    assert last.falsified == refuted.falsified


def test_an_episode_that_starts_elsewhere_is_not_what_was_certified():
    """The fallback was certified from x_0 = 0; at θ = 1.19 with ω = 3 it cannot keep θ ≤ 1.2."""
    case = case_of()
    shield = shield_of(case, judged())
    told = shield.decide(vector(1.19, 3.0), NONE)[0].falsified
    assert told is not None and "at t = 0 is" in told and "x_0" in told
    assert shield.decide(case.system.initial_state, NONE)[0].falsified is None


def test_an_episode_of_another_task_than_the_shields_is_refused():
    case, other = case_of(), make_case("1d", ()).system
    with pytest.raises(ValueError, match="verified_episode: expected one task throughout, got initial_state"):
        verified_episode(other, None, None, shield_of(case, judged()), noise=torch.zeros(2, 1), generator=generator(0))


def test_an_uncertified_fallback_is_a_value_and_may_be_assumed():
    case = case_of(())
    judge, x0 = judge_of(case), case.system.initial_state
    found = Shield.start(judge, case.confidence, x0, tracking=tracking_of(case))
    assert isinstance(found, NotCertified) and found.falsified is None and found.margin < 0 < found.steps
    shield = shield_of(case, judge, assume=True)
    assert shield.basis == "assumed" and any("S_0 assumed" in a for a in shield.assumptions)
    decision, _ = shield.decide(x0, pushes(0, 2))
    assert decision.source == "fallback" and math.isnan(decision.margin) and not bool(decision.admitted.any())


def test_an_empty_confidence_set_certifies_nothing_even_if_s0_is_assumed():
    case = case_of()
    tiny = Mixture(rkhs_norm=0.05, subgaussian=1e-4, delta=0.1, unchecked=True)
    model = replace(case.confidence.model, regularizer=case.confidence.model.regularizer)
    confidence = ConfidenceSet(tiny).update(model)
    judge, x0 = judge_of(case), case.system.initial_state
    found = Shield.start(judge, confidence, x0, tracking=tracking_of(case), assume=True)
    assert isinstance(found, NotCertified) and "F_n is empty" in str(found.falsified)


def test_grids_are_refined_by_intersection_from_episode_to_episode():
    case = make_case("pendulum", (5, 14))
    first = judge_of(case).refine(ConfidenceSet(case.confidence.bound, case.confidence.generations[:1]))
    step = first.refine(case.confidence)
    direct = judge_of(case).refine(case.confidence)
    assert step.anchors is not None and direct.anchors is not None and first.anchors is not None
    new, old, once = step.anchors.local, first.anchors.local, direct.anchors.local
    assert new is not None and old is not None and once is not None
    assert torch.allclose(new.middle, once.middle, atol=1e-12) and torch.allclose(new.half, once.half, atol=1e-12)
    assert bool((new.half <= old.half + 1e-12).all()) and step.anchors.generations == 3
    assert step.anchors.refine(case.confidence) is step.anchors
    with pytest.raises(ValueError, match="another history"):
        step.refine(case_of().confidence)


@given(seed=seeds())
def test_every_point_is_served_by_its_nearest_anchor(seed):
    grid = judged().anchors
    assert grid is not None
    z = grid.box.sample(20, generator(seed)) * 1.2
    _, offset = grid.around(z)
    spacing = (grid.box.upper - grid.box.lower) / (torch.tensor(grid.counts) - 1)
    gaps = ((z.unsqueeze(1) - grid.anchors) / spacing).abs().amax(-1)
    assert torch.allclose((offset / spacing).abs().amax(-1), gaps.amin(-1), atol=1e-9)
    served = z - offset
    assert bool(((served.unsqueeze(1) - grid.anchors).abs().amax(-1).amin(-1) < 1e-9).all())


def test_noise_radius_is_a_union_bound():
    sigma = vector(0.1, 2.0)
    radius = noise_radius(sigma, steps=500, delta=0.01)
    outside = 2 * stats.norm.sf((radius / sigma).numpy()) * 500
    assert outside.sum() <= 0.01 and outside.sum() > 0.0099


def test_tracking_gains_solve_the_riccati_recursion():
    case, judge = case_of(), judged()
    tracking = tracking_of(case)
    g = generator(1)
    a = [torch.randn(1, 2, 2, dtype=torch.float64, generator=g) for _ in range(5)]
    b = [torch.randn(1, 2, 1, dtype=torch.float64, generator=g) for _ in range(5)]
    gains = tracking._gains(a, b)[0].numpy()
    value = q = np.diag([10.0, 1.0])
    for t in reversed(range(5)):
        A, B = a[t][0].numpy(), b[t][0].numpy()
        k = -np.linalg.inv(np.eye(1) + B.T @ value @ B) @ B.T @ value @ A
        assert np.allclose(gains[t], k)
        value = q + A.T @ value @ A - A.T @ value @ B @ np.linalg.inv(np.eye(1) + B.T @ value @ B) @ B.T @ value @ A
    x = case.system.initial_state
    plans = tracking.plans(judge, x, pushes(0, 3), torch.tensor([4, 12, 0]), HORIZON)
    first = plans.act(x.expand(3, -1), judge.fallbacks, judge.input_box)
    assert torch.allclose(first[:2], pushes(0, 3)[:2, 0])


def test_candidates_are_completed_without_a_grid_for_a_low_rank_view_too():
    """The view has no factors of its own: every candidate was refused, and only the fallback ran."""
    case = case_of()
    view = ConfidenceSet(case.confidence.bound).update(LowRankGP.create(case.confidence.model, 40))
    judges = [judge_of(case, grid=False, landing=False).refine(c) for c in (view, case.confidence)]
    x = case.system.initial_state.expand(3, -1)
    low, exact = (linearised(judge, x, pushes(0, 3)[:, 0]) for judge in judges)
    assert all(torch.equal(a, b) for a, b in zip(low, exact, strict=True))


@pytest.mark.parametrize("grid", [False, True])
def test_candidates_are_completed_for_a_kernel_without_gradients(grid):
    """Matérn 1/2 has intervals and no slopes: every candidate was refused for that, step after step."""
    case = case_of()
    model = GP.create((kernels.matern(0.5, 2.0),), 1e-4, nx=2, nu=1, noise_std=case.system.noise_std,
                      outputs=case.system.outputs, prior=case.system.known)  # fmt: skip
    inputs, targets = case.confidence.model.inputs, case.confidence.model.targets
    assert inputs is not None and targets is not None
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.01, subgaussian=0.01, delta=0.1))
    rough = replace(case, confidence=confidence.update(model.condition_on(inputs, 0.01 * targets)))
    judge = judge_of(rough, grid=grid, landing=False)
    x, u = case.system.initial_state, vector(0.1)
    decision, _ = shield_of(rough, judge).decide(x, u.expand(1, 1, 1), torch.tensor([1]))
    assert decision.reason == "" and decision.source == "plan"
    following, a, b = linearised(judge.refine(rough.confidence), x.unsqueeze(0), u.unsqueeze(0))
    mean = rough.confidence.model.posterior(torch.cat([x, u]).unsqueeze(0))[0]
    assert torch.allclose(following, case.system.known(x, u) + rough.confidence.model.embed(mean))
    for slope, own in zip((a, b), jacobians(case.system.known, x.unsqueeze(0), u.unsqueeze(0)), strict=True):
        assert torch.equal(slope, own)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"candidates": torch.zeros(2, 3)}, "candidates of shape"),
        ({"x": torch.tensor([0.0, math.nan])}, "finite x"),
        ({"lengths": torch.tensor([1])}, "lengths of shape"),
    ],
)
def test_bad_arguments_are_refused(change, match):
    case = case_of()
    arguments = {"x": case.system.initial_state, "candidates": torch.zeros(2, 3, 1).double(), **change}
    with pytest.raises(ValueError, match=match):
        shield_of(case, judged()).decide(**arguments)


def test_nothing_is_decided_after_the_end():
    case = case_of()
    shield = replace(shield_of(case, judged()), time=HORIZON)
    with pytest.raises(ValueError, match="below the horizon"):
        shield.decide(case.system.initial_state, NONE)
