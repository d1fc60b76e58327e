"""Tubes of plans contain every member of F_n under every noise of the box; the judge refuses what can go wrong."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from cost_cases import extremal_member, generator
from hypothesis import given, settings
from hypothesis import strategies as st
from shield_cases import HORIZON, case_of, corners, follow, judge_of, judged, pushes, tracking_of
from strategies import dear, seeds

from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.cost.plan_tube import Plans
from gpsafe.linalg import vector
from gpsafe.policies.features import FeaturePolicies, pendulum_features
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.known import AffineKnown

STEPS = 10


def plans_of(judge, case, seed: int, *, feedback: bool, count: int = 3) -> Plans:
    inputs = pushes(seed, count)
    lengths = torch.randint(0, 9, (count,), generator=generator(seed))
    if feedback:
        return tracking_of(case).plans(judge, case.system.initial_state, inputs, lengths, HORIZON)
    return Plans.open_loop(inputs, lengths, torch.zeros_like(lengths), 2)


def rollout(case, judge, f, plans: Plans, noise, steps: int) -> torch.Tensor:
    """States (P, steps + 1, nx) of known + f under the plans."""
    model, x = case.confidence.model, case.system.initial_state.expand(plans.num, -1)
    states = [x]
    for t in range(steps):
        u = plans.act(x, judge.fallbacks, judge.input_box)
        x = model.prior(x, u) + model.embed(f(torch.cat([x, u], -1)).unsqueeze(-1)) + noise[t]
        states.append(x)
        plans = plans.shifted()
    return torch.stack(states, dim=1)


def excess(tubes: list[Zonotope], states: torch.Tensor) -> torch.Tensor:
    """Largest amount by which a state is outside its set, over directions and steps, (P,)."""
    normals = torch.randn(24, 2, dtype=torch.float64, generator=generator(0))
    normals = torch.cat([normals, torch.eye(2, dtype=torch.float64), -torch.eye(2, dtype=torch.float64)])
    gaps = [states[:, t] @ normals.T - tube.support(normals) for t, tube in enumerate(tubes)]
    return torch.stack(gaps).amax((0, 2))


def member_near(case, states: torch.Tensor, seed: int):
    at = states[seed % states.shape[0], 1 + seed % (STEPS - 1)]
    return extremal_member(case, torch.cat([at, vector(0.5)]), 1.0 if seed % 2 else -1.0)


@pytest.mark.parametrize("runs", [(), (5, 14, 22, 28)], ids=["prior", "data"])
@pytest.mark.parametrize("grid", [True, False], ids=["grid", "direct"])
@dear()
@given(seed=seeds(), feedback=st.booleans())
def test_members_and_admissible_noise_stay_in_the_tube(runs, grid, seed, feedback):
    case, judge = case_of(runs), judged(runs, grid)
    plans = plans_of(judge, case, seed, feedback=feedback)
    noise = corners(judge.noise_radius, STEPS, seed)
    tubes = follow(judge, case.system.initial_state.expand(plans.num, -1), plans, STEPS)
    truth = lambda z: case.system.residual_fn(z)[..., 0]  # noqa: E731
    states = rollout(case, judge, truth, plans, noise, STEPS)
    assert float(excess(tubes, states).max()) <= 1e-8
    f = member_near(case, states, seed)
    assert f.norm_upper <= float(case.system.rkhs_norm[0])
    assert float(excess(tubes, rollout(case, judge, f, plans, noise, STEPS)).max()) <= 1e-8


@settings(max_examples=max(8, settings().max_examples // 3))
@given(seed=seeds(), feedback=st.booleans())
def test_every_plan_that_can_be_seen_to_fail_is_refused(seed, feedback):
    case, judge = case_of(), judged()
    plans = plans_of(judge, case, seed, feedback=feedback)
    found = judge.verify(Zonotope.point(case.system.initial_state.expand(plans.num, -1)), plans, HORIZON)
    plans = found.trimmed(plans)
    for noise in (
        torch.zeros(HORIZON, 2),
        judge.noise_radius.expand(HORIZON, 2),
        corners(judge.noise_radius, HORIZON, seed),
    ):
        states = rollout(case, judge, lambda z: case.system.residual_fn(z)[..., 0], plans, noise.double(), HORIZON)
        bad = case.system.cost(states).amax(-1) > 0
        assert not bool((bad & found.admitted).any())


@dear()
@given(seed=seeds())
def test_curved_fallbacks_are_enclosed_from_whole_sets(seed):
    """A policy whose gain changes with the state, from a box of initial states, mixed with plans that still push."""
    case = case_of()
    g = generator(seed)
    features = pendulum_features()
    weights = 0.4 * torch.randn(2, 1, len(features), dtype=torch.float64, generator=g)
    curved = FeaturePolicies(weights, features, case.system.input_box)
    judge = replace(judged(), fallbacks=curved, landing=(), certified=None)
    start = Zonotope(vector(0.1, -0.2).expand(4, 2), torch.diag_embed(vector(0.05, 0.2).expand(4, 2)))
    inputs, lengths = pushes(seed, 4), torch.tensor([0, 1, 2, 3])
    plans = Plans.open_loop(inputs, lengths, torch.tensor([0, 1, 0, 1]), 2)
    noise, tubes, states = corners(judge.noise_radius, 6, seed), [start], [start.sample(1, g)[0]]
    for t in range(6):
        tubes.append(judge.reach(tubes[-1], plans, t)[0])
        u = Plans(inputs[:, t:], plans.gain[:, t:], (lengths - t).clamp_min(0), plans.fallback, lengths).act(
            states[-1], curved, judge.input_box
        )
        states.append(case.system.mean(states[-1], u) + noise[t])
    assert float(excess(tubes, torch.stack(states, dim=1)).max()) <= 1e-8


def test_planted_plans_are_judged_as_they_deserve():
    case, judge = case_of(), judged()
    inputs = torch.tensor([1.0, -1.0, 0.3, 0.0], dtype=torch.float64).reshape(-1, 1, 1).expand(-1, 12, 1)
    lengths = torch.tensor([12, 12, 2, 0])
    start = Zonotope.point(case.system.initial_state.expand(4, -1))
    plans = tracking_of(case).plans(judge, case.system.initial_state, inputs, lengths, HORIZON)
    found = judge.verify(start, plans, HORIZON)
    assert found.admitted.tolist() == [False, False, True, True]
    beyond = Zonotope.point(vector(1.3, 0.0).expand(4, -1))
    assert not bool(judge.verify(beyond, plans, HORIZON).admitted.any())
    assert bool((found.margin[2:] > 0).all()) and bool((found.margin[:2] < 0).all())


def test_a_plan_ends_in_a_landing_set_only_after_its_own_inputs():
    """Starting inside a landing set, a plan that could end at once would never be carried out."""
    case, judge = case_of(), judged()
    inputs = torch.full((1, 12, 1), 0.2, dtype=torch.float64)
    plans = tracking_of(case).plans(judge, case.system.initial_state, inputs, torch.tensor([5]), HORIZON)
    found = judge.verify(Zonotope.point(case.system.initial_state.expand(1, -1)), plans, HORIZON)
    assert bool(found.admitted) and bool(found.landed) and 5 <= int(found.steps) < HORIZON
    assert int(found.trimmed(plans).lengths) == int(found.steps)
    u = found.trimmed(plans).act(case.system.initial_state.expand(1, -1), judge.fallbacks, judge.input_box)
    assert float(u) == pytest.approx(0.2)


def test_landing_sets_are_certified_for_the_fallback_that_lands_there():
    case = case_of()
    assert int(judged().certified) == HORIZON
    weak = judge_of(case)
    none = type(weak.fallbacks)(weak.fallbacks.offset + 0.5, 0.0 * weak.fallbacks.gain, weak.input_box)
    assert int(replace(weak, fallbacks=none).refine(case.confidence).certified) == -1
    huge = replace(weak, landing=(Box(vector(-0.2, -0.8), vector(1.3, 0.8)),)).refine(case.confidence)
    assert int(huge.certified) == -1


@given(seed=seeds())
def test_landed_plans_keep_the_constraint_from_anywhere_in_the_landing_set(seed):
    case, judge = case_of(), judged()
    x = judge.landing[0].sample(6, generator(seed))
    noise = corners(judge.noise_radius, HORIZON, seed)
    for t in range(HORIZON):
        u = judge.fallbacks(x.unsqueeze(0))[0]
        x = case.system.mean(x, u) + noise[t]
        assert float(case.system.cost(x).max()) == 0.0


def test_tubes_that_grow_beyond_the_limit_are_refused():
    case = case_of()
    tiny = judge_of(case, landing=False, limit=1e-3).refine(case.confidence)
    plans = Plans.of_fallbacks(torch.tensor([0]), 2, 1)
    found = tiny.verify(Zonotope.point(case.system.initial_state.expand(1, -1)), plans, HORIZON)
    assert not bool(found.admitted) and float(found.margin) == -torch.inf and int(found.steps) == 1


@pytest.mark.parametrize("broken", ["none", "half-norm", "shrunk-tube"])
def test_control_a_halved_norm_or_a_shrunk_tube_is_left(broken):
    """Without data the adversary of norm B leaves the tube drawn for B/2, and any tube with a quarter of its error."""
    case = case_of(())
    judge = judged((), False, 0.5 if broken == "half-norm" else 1.0)
    honest = LocalAffine.range_outer

    def shrunk(local, cross):
        found = honest(local, cross)
        return replace(found, error=0.25 * found.error)

    plans = Plans.open_loop(pushes(3, 2), torch.tensor([12, 12]), torch.zeros(2, dtype=torch.long), 2)
    with mock.patch.object(LocalAffine, "range_outer", shrunk if broken == "shrunk-tube" else honest):
        tubes = follow(judge, case.system.initial_state.expand(2, -1), plans, 3)
    f = extremal_member(case, torch.cat([case.system.initial_state, plans.offset[0, 0]]), 1.0)
    states = rollout(case, judge, f, plans, torch.zeros(3, 2, dtype=torch.float64), 3)
    assert (float(excess(tubes, states).max()) > 1e-6) == (broken != "none")


def test_control_noise_outside_its_box_is_outside_the_tube():
    case, judge = case_of(), judged()
    plans = Plans.of_fallbacks(torch.tensor([0]), 2, 1)
    tubes = follow(judge, case.system.initial_state.expand(1, -1), plans, STEPS)
    noise = 4.0 * judge.noise_radius.expand(STEPS, 2)
    states = rollout(case, judge, lambda z: case.system.residual_fn(z)[..., 0], plans, noise, STEPS)
    assert float(excess(tubes, states).max()) > 0.0


def test_closed_jacobians_equal_forward_differentiation():
    known = case_of().system.known
    affine = AffineKnown(torch.eye(2).double(), vector(0.0, 1.0).reshape(2, 1), vector(0.0, 0.0))
    g = generator(0)
    x, u = (
        torch.randn(3, 5, 2, dtype=torch.float64, generator=g),
        torch.randn(3, 5, 1, dtype=torch.float64, generator=g),
    )
    for part in (known, affine):

        class Bare:
            hessian_bound = part.hessian_bound

            def __call__(self, x, u, part=part):
                return part(x, u)

        for closed, forward in zip(jacobians(part, x, u), jacobians(Bare(), x, u), strict=True):
            assert torch.allclose(closed, forward, atol=1e-14)


def test_bad_arguments_are_refused():
    case = case_of()
    with pytest.raises(ValueError, match="PlanTube: expected noise_radius"):
        replace(judge_of(case), noise_radius=vector(0.1))
    with pytest.raises(ValueError, match="PlanTube: expected landing boxes"):
        replace(judge_of(case), landing=(Box(vector(0.0), vector(1.0)),))
    with pytest.raises(ValueError, match="PlanTube: expected refine"):
        judge_of(case).verify(
            Zonotope.point(torch.zeros(1, 2).double()), Plans.of_fallbacks(torch.tensor([0]), 2, 1), 3
        )
    rough = replace(case.confidence.model, prior=lambda x, u: x)
    with pytest.raises(ValueError, match="hessian_bound"):
        judge_of(case).refine(replace(case.confidence, generations=(rough,)))
