"""A step of a scenario tube, its charges and its giving up against loops: no sub-term may be dropped or halved."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import Curved, bent_pendulum, draw, learned, one_step, rounded, saturating, tensor

from gpsafe.cost import monte_carlo, scenario_tube
from gpsafe.cost._pieces import common, cut
from gpsafe.cost.scenario_tube import (
    SLACK,
    ScenarioTube,
    Tubes,
    _scales,
    _Walk,
    charge_upper,
    farthest_points,
)
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import HingeCost, IndicatorCost
from gpsafe.systems.task import Task

FAR = IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0]))


def bound_of(case, *, cost=FAR, horizon=6, **options) -> ScenarioTube:
    task = Task(case.system.initial_state, horizon, cost, 1.0, case.system.noise_std)
    return ScenarioTube(**{"task": task, "seed": 3, "samples": 8, "anchors": None, **options})


@pytest.mark.parametrize("anchors", [None, 2])
@pytest.mark.parametrize("curved", [False, True])
def test_a_step_is_its_formula(curved, anchors):
    """Two policies with four paths each; the first saturates on a part of its sets."""
    F, case = bent_pendulum()
    x = case.system.initial_state + 0.05 * draw(5, 2, 4, 2)
    affine = saturating(case)
    affine.offset[0] = case.system.input_box.upper - 0.02 - affine.gain[0] @ x[0, 1]
    bound = bound_of(case, anchors=anchors)
    noise = 0.02 * draw(4, 1, 4, 2)
    tube = Zonotope(x, 0.05 * draw(6, 2, 4, 2, 3))
    walk = _Walk(Curved(affine) if curved else affine, tube, torch.zeros(2, 4, dtype=torch.bool))
    found = walk.step(bound, F, noise)
    assert not bool(found.lost.any())
    kinked = []
    for p in range(2):
        one = affine.select(torch.tensor([p]))
        steps = [one_step(F, one, x[p, n], tube.generators[p, n], rest=0.07 if curved else None) for n in range(4)]
        z = torch.stack([step.z for step in steps])
        chosen, nearest = farthest_points(z[None] / _scales(F, z), anchors or 4)
        for n, step in enumerate(steps):
            anchor = z[n] if anchors is None else z[chosen[0, nearest[0, n]]]
            step = learned(F, step, anchor)
            exact = Zonotope(step.center[None], step.linear[None]).plus_box(step.error[None])
            torch.testing.assert_close(found.tube.center[p, n], step.center + noise[0, n], rtol=1e-12, atol=1e-13)
            for normal in draw(8, 6, 2):
                reach = float(exact.support(normal[None])[0, 0] + normal @ noise[0, n])
                assert float(found.tube.support(normal[None])[p, n, 0]) == pytest.approx(reach, rel=1e-9)
            kinked.append(step.kinked)
    assert any(kinked) and not all(kinked)


@pytest.mark.parametrize("anchors", [None, 2])
def test_a_step_in_pieces_is_the_hull_of_their_images_within_that_of_the_whole(anchors):
    """Boxes by hand: halved across the widest side of the anchor's box, in length-scales."""
    F, case = bent_pendulum()
    affine, noise, never = saturating(case), 0.02 * draw(4, 1, 4, 2), torch.zeros(2, 4, dtype=torch.bool)
    x = case.system.initial_state + 0.05 * draw(5, 2, 4, 2)
    tube = Zonotope(x, 0.2 * draw(6, 2, 4, 2, 3))
    box = Zonotope(x, torch.diag_embed(0.9 * tube.radius))
    walk = _Walk(affine, tube, never, _Walk(affine, box, never))
    found = walk.step(bound_of(case, anchors=anchors, pieces=4), F, noise)
    whole = replace(walk, boxes=None).step(bound_of(case, anchors=anchors), F, noise).tube
    assert torch.equal(found.tube.generators, whole.generators) and found.boxes is not None
    z = torch.cat([x, affine(x)], -1)
    chosen, nearest = farthest_points(z / _scales(F, z), anchors or 4)
    smaller = []
    for p in range(2):
        one, boxes = affine.select(torch.tensor([p])), {}
        for n in range(4):
            lender = n if anchors is None else int(chosen[p, nearest[p, n]])
            side = box.radius[p, lender] / _scales(F, z)[:2]
            shifts, radius = [torch.zeros(2).double()], box.radius[p, n].clone()
            for _ in range(2):
                i = int(side.argmax())
                side[i], radius[i] = side[i] / 2, radius[i] / 2
                move = torch.zeros(2).double()
                move[i] = radius[i]
                shifts = [shift - move for shift in shifts] + [shift + move for shift in shifts]
            boxes[n] = lender, [x[p, n] + shift for shift in shifts], radius
        for n, (lender, centers, radius) in boxes.items():
            ends = []
            for k, center in enumerate(centers):
                anchor = one_step(F, one, boxes[lender][1][k], torch.diag(boxes[lender][2])).z
                step = learned(F, one_step(F, one, center, torch.diag(radius)), anchor)
                reach = step.linear.abs().sum(-1) + step.error
                ends.append(torch.stack([step.center - reach, step.center + reach]) + noise[0, n])
            low, high = torch.stack(ends)[:, 0].amin(0), torch.stack(ends)[:, 1].amax(0)
            c, r = whole.center[p, n], whole.radius[p, n]
            smaller += [bool((low > c - r).any()), bool((low < c - r).any())]
            low, high = torch.maximum(low, c - r), torch.minimum(high, c + r)
            torch.testing.assert_close(found.boxes.tube.center[p, n], 0.5 * (low + high), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found.boxes.tube.radius[p, n], 0.5 * (high - low), rtol=1e-9, atol=1e-12)
    assert any(smaller[::2])


def test_boxes_are_lost_only_with_the_whole_or_without_a_claim(monkeypatch):
    """Too wide: the whole's hull stands in; both too wide, or F_n empty: charged for good."""
    F, case = bent_pendulum()
    never, x = torch.zeros(2, 3, dtype=torch.bool), case.system.initial_state.expand(2, 3, 2)
    small, none = Zonotope(x, 0.01 * draw(1, 2, 3, 2, 2)), torch.zeros(1, 3, 2).double()
    policies = case.policies.select(torch.tensor([0, 1]))
    walk = _Walk(
        policies, small, never, _Walk(policies, Zonotope(x, torch.diag_embed(torch.full((2, 3, 2), 3.0))), never)
    )
    bound = bound_of(case, pieces=2, limit=1.0)
    found = walk.step(bound, F, none)
    torch.testing.assert_close(found.boxes.tube.radius, found.tube.radius)
    assert not bool(found.boxes.lost.any())
    wide = Zonotope(x, 9.0 * draw(1, 2, 3, 2, 2))
    found = replace(walk, tube=wide).step(bound, F, none)
    assert bool(found.lost.all()) and bool(found.boxes.lost.all()) and torch.equal(found.boxes.tube.center, x)
    cost = HingeCost(tensor([1.0, 0.0]), -9.0, 2.0)
    assert bool((found.charge(cost) == 2.0).all()) and bool((found.step(bound, F, none).charge(cost) == 2.0).all())
    image, calls = scenario_tube._image, []

    def void(*arguments, **options):
        calls.append(None)
        tube, empty = image(*arguments, **options)
        return tube, empty | (len(calls) == 2)

    monkeypatch.setattr(scenario_tube, "_image", void)
    good = replace(walk, boxes=_Walk(policies, Zonotope(x, torch.diag_embed(small.radius)), never)).step(bound, F, none)
    assert not bool(good.lost.any()) and bool(good.boxes.lost.all())
    assert bool((good.charge(cost) < 2.0 * 9).all()) and not bool(good.step(bound, F, none).boxes.lost.any())


def test_pieces_cover_the_hull_and_no_more():
    tube = Zonotope(draw(1, 2, 5, 3), draw(2, 2, 5, 3, 4))
    parts = cut(tube, 8, tube.radius)
    points = tube.center + tube.radius * (2 * torch.rand(200, 2, 5, 3, dtype=torch.float64) - 1)
    center, radius = (value.unflatten(1, (5, 8)) for value in (parts.center, parts.radius))
    gap = ((points.unsqueeze(3) - center).abs() - radius).amax(-1)
    assert bool((gap.amin(-1) <= 0).all())
    assert bool(((center - tube.center.unsqueeze(2)).abs() + radius <= tube.radius.unsqueeze(2) * (1 + 1e-9)).all())
    torch.testing.assert_close(radius.prod(-1).sum(-1), tube.radius.prod(-1))


def test_what_two_boxes_have_in_common():
    a, b = Zonotope(tensor([[0.0, 0.0]]), torch.eye(2).double()[None]), Zonotope.point(tensor([[0.5, 1.0 + 1e-13]]))
    yes, no = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    both = common(a, no, b, no)
    assert both.center[0].tolist() == pytest.approx([0.5, 1.0]) and float(both.radius.max()) < 1e-12
    for found, part in ((common(a, no, b, yes), a), (common(a, yes, b, no), b)):
        torch.testing.assert_close(found.center, part.center)
        torch.testing.assert_close(found.radius, part.radius)
    assert not bool(common(a, yes, b, yes).within(1e9))


@pytest.mark.parametrize("width", [0.0, 0.05, 3.0])
def test_the_error_of_a_step_is_rounded_outwards(width):
    F, case = bent_pendulum()
    x0, affine, G = case.system.initial_state, saturating(case), width * draw(6, 2, 1, 2, 3)
    walk = _Walk(affine, Zonotope(x0.expand(2, 1, 2), G), torch.zeros(2, 1, dtype=torch.bool))
    found = (
        walk.step(bound_of(case), F, torch.zeros(1, 1, 2).double()).tube.generators[..., -2:].diagonal(dim1=-2, dim2=-1)
    )
    for p in range(2):
        step = one_step(F, affine.select(torch.tensor([p])), x0, G[p, 0])
        step = learned(F, step, step.z)
        torch.testing.assert_close(found[p, 0] - step.error, rounded(F, step), rtol=0.01, atol=0)


def test_wide_or_empty_tubes_are_lost_parked_and_charged_for_good():
    F, case = bent_pendulum()
    x0, policies = case.system.initial_state, case.policies.select(torch.tensor([0, 0]))
    lost = torch.tensor([[False, True], [False, False]])
    walk = _Walk(policies, Zonotope.point(x0.expand(2, 2, 2)), lost)
    free, none = bound_of(case), torch.zeros(1, 2, 2).double()
    after = walk.step(free, F, none)
    assert torch.equal(after.lost, lost) and torch.equal(after.tube.center[0, 1], x0)
    assert not bool(after.tube.generators[0, 1].any()) and torch.equal(after.step(free, F, none).lost, lost)
    width = float(after.tube.radius[0, 0].max())
    assert bool(walk.step(replace(free, limit=0.99 * width), F, none).lost.all())
    assert torch.equal(walk.step(replace(free, limit=1.01 * width), F, none).lost, lost)
    cost = HingeCost(tensor([1.0, 0.0]), float(x0[0]) - 0.25, 2.0)
    torch.testing.assert_close(after.charge(cost)[0, 1], tensor(2.0))
    torch.testing.assert_close(walk.charge(cost), tensor([[0.25, 2.0], [0.25, 0.25]]), rtol=1e-8, atol=0)
    part = after.select(torch.tensor([True, False]))
    assert part.lost.tolist() == [[False, True]] and part.policies.num == 1
    assert torch.equal(part.tube.center, after.tube.center[:1])


def test_a_charge_is_the_cost_of_the_farthest_point_rounded_up():
    tube = Zonotope(0.3 * draw(1, 3, 4, 2), 0.2 * draw(2, 3, 4, 2, 3))
    tube.center[2, 0, 0], tube.center[2, 1, 1], tube.generators[2, 2, 0, 0] = float("nan"), 1e200, float("inf")
    normals, offsets = tensor([[1.0, -0.5], [-0.3, 2.0]]), tensor([0.2, -0.1])
    cost = HingeCost(normals, offsets, 1.2)
    found = charge_upper(cost, tube)
    for p in range(2):
        for n in range(4):
            c, G = tube.center[p, n], tube.generators[p, n]
            reach = [float(v @ c + (v @ G).abs().sum()) for v in normals]
            terms = [float(v.abs() @ (c.abs() + G.abs().sum(-1))) for v in normals]
            worst = max(r + SLACK * t - float(o) for r, t, o in zip(reach, terms, offsets, strict=True))
            assert float(found[p, n]) == pytest.approx(min(1.2, max(0.0, worst)), abs=1e-12)
    assert found[2, :3].tolist() == [1.2] * 3

    class Plain:
        """Not known by half-spaces: the same cost, over the interval hull."""

        ceiling = 1.2

        def upper(self, lower, upper):
            return cost.upper(lower, upper)

    hull = charge_upper(Plain(), tube)
    for p in range(2):
        for n in range(4):
            c, r = tube.center[p, n], tube.radius[p, n]
            r = r + SLACK * (c.abs() + r)
            worst = max(float(v @ c + v.abs() @ r - o) for v, o in zip(normals, offsets, strict=True))
            assert float(hull[p, n]) == pytest.approx(min(1.2, max(0.0, worst)), abs=1e-12)
    assert hull[2, :3].tolist() == [1.2] * 3
    edge = Zonotope.point(tensor([[0.5 - 1e-10, 0.0], [0.5 - 1e-8, 0.0]]))
    assert charge_upper(IndicatorCost(tensor([[1.0, 0.0]]), tensor([0.5])), edge).tolist() == [1.0, 0.0]


def test_anchors_are_taken_farthest_first_from_the_point_in_the_middle():
    z = draw(3, 3, 11, 2)
    chosen, nearest = farthest_points(z, 4)
    for p in range(3):
        points, taken = z[p], []
        taken.append(int((points - points.mean(0)).norm(dim=-1).argmin()))
        while len(taken) < 4:
            gaps = torch.stack([(points - points[k]).norm(dim=-1) for k in taken]).amin(0)
            taken.append(int(gaps.argmax()))
        assert chosen[p].tolist() == taken
        gaps = torch.stack([(points - points[k]).norm(dim=-1) for k in taken])
        assert nearest[p].tolist() == gaps.argmin(0).tolist()
    assert farthest_points(z, 40)[0].shape == (3, 11)


def test_scales_are_the_smallest_of_all_kernels_and_one_where_none_looks():
    parts = (kernels.rbf([0.5, 2.0], 1.0, dims=[0, 2]), kernels.rbf([0.7, 1.5], 1.0, dims=[0, 2]))
    F = SimpleNamespace(model=SimpleNamespace(kernels=parts, nx=3, nu=1))
    assert _scales(F, torch.zeros(1, 4).double()).tolist() == [0.5, 1.0, 1.5, 1.0]
    parts = (kernels.rbf([0.5, 2.0], 1.0), kernels.linear(1.0))
    whole = SimpleNamespace(model=SimpleNamespace(kernels=parts, nx=1, nu=1))
    assert _scales(whole, torch.zeros(1, 2).double()).tolist() == [0.5, 2.0]


def test_hulls_and_widths_of_tubes():
    sets = tuple(Zonotope(draw(t, 1, 3, 2), 0.5 * draw(9 + t, 1, 3, 2, 2)) for t in range(3))
    tubes = Tubes(sets, torch.tensor([[3, 1, 3]]))
    states = torch.stack([part.center + part.radius for part in sets], -2)
    assert tubes.contains_hull(states).tolist() == [[True, True, True]]
    states[0, 0, 1, 1] += 1e-6
    states[0, 1, 1, 0] += 5.0  # lost from step 1 on: no claim
    states[0, 2, 2, 0] -= 2 * float(sets[2].radius[0, 2, 0]) + 1e-6
    assert tubes.contains_hull(states).tolist() == [[False, True, False]]
    states[0, 1, 0, 0] += 1e-6
    assert tubes.contains_hull(states).tolist() == [[False, False, False]]
    widths = tubes.widths()
    for n in range(3):
        for t in range(3):
            exact = sets[t].radius[0, n] if (n, t) not in ((1, 1), (1, 2)) else tensor([torch.inf] * 2)
            assert torch.equal(widths[0, n, t], exact)


@pytest.fixture(scope="module")
def charged():
    """Policies of which some stay below and some above the edge that costs."""
    F, case = bent_pendulum()
    x0 = case.system.initial_state
    cost = HingeCost(tensor([[0.0, 1.0], [0.0, -1.0]]), tensor([float(x0[1]) + 0.15, -float(x0[1]) + 0.25]), 1.0)
    gain = tensor([-0.4, -0.2]).expand(4, 1, 2)
    policies = AffinePolicies(tensor([[0.9], [0.3], [-0.1], [0.1]]), gain, case.system.input_box)
    bound = bound_of(case, cost=cost, samples=30, pilot=4, anchors=4)
    return F, policies, bound, bound.noise(F, 4)


def test_charges_sum_the_steps_from_the_first_to_the_last_but_one(charged):
    F, policies, bound, noise = charged
    total = bound.charges(F, policies, noise)
    tubes = bound.tubes(F, policies, noise)
    assert len(tubes.sets) == bound.horizon and noise.shape == (bound.horizon, 1, 30, 2)
    assert bool((tubes.lost == bound.horizon).all())
    torch.testing.assert_close(total, sum(charge_upper(bound.cost, part) for part in tubes.sets))
    walk = _Walk.start(bound, policies, 30)
    for t in range(bound.horizon - 1):
        walk = walk.step(bound, F, noise[t])
        assert torch.equal(walk.tube.center, tubes.sets[t + 1].center)
    tight = replace(bound, limit=1e-6)
    lost = tight.tubes(F, policies, noise)
    assert bool((lost.lost == 1).all()) and bool(torch.isinf(lost.widths()[:, :, 1:]).all())
    start = charge_upper(bound.cost, lost.sets[0])
    torch.testing.assert_close(tight.charges(F, policies, noise), start + (bound.horizon - 1) * 1.0)


def test_policies_are_given_up_when_their_mean_exceeds_the_limit(charged):
    F, policies, bound, noise = charged
    total = bound.charges(F, policies, noise)
    sets = bound.tubes(F, policies, noise).sets
    seen = sum(charge_upper(bound.cost, part).mean(-1) for part in sets[:-1])  # nobody looks after the last charge
    ranked = seen.sort().values
    cut = replace(bound, give_up=float(ranked[1] + ranked[2]) / 2).charges(F, policies, noise)
    kept = seen <= ranked[1]
    assert float(ranked[2] - ranked[1]) > 1e-3 and int(kept.sum()) == 2
    torch.testing.assert_close(cut[kept], total[kept], rtol=1e-9, atol=1e-12)
    assert bool((cut[~kept] == bound.total_ceiling).all())
    assert bool((replace(bound, give_up=-1.0).charges(F, policies, noise) == bound.total_ceiling).all())


def test_the_interval_is_the_limit_of_the_charges_with_a_share_for_each_policy(charged):
    F, policies, bound, noise = charged
    total = bound.charges(F, policies, noise)
    found = bound.evaluate(F, policies)
    exact = monte_carlo.dominating_mean_upper(total, bound.total_ceiling, bound.stage_delta(F) / policies.num)
    torch.testing.assert_close(found.upper, exact, rtol=1e-9, atol=0)
    assert found.delta == bound.stage_delta(F) and not bool(found.lower.any()) and found.sound_upper
    small = replace(bound, chunk=1).evaluate(F, policies)
    torch.testing.assert_close(small.upper, exact, rtol=1e-9, atol=0)
    assert torch.equal(found.vacuous, found.upper >= bound.total_ceiling * (1 - 1e-9))


def test_screening_drops_what_its_own_paths_show_to_be_dear(charged, monkeypatch):
    F, policies, bound, noise = charged
    first = bound.charges(F, policies, noise[:, :, :4])
    low = monte_carlo.mean_lower(first, bound.total_ceiling, 0.05)
    everything = torch.arange(4)
    with monkeypatch.context() as patch:  # without a limit nothing is followed twice
        patch.setattr(ScenarioTube, "charges", None)
        assert torch.equal(bound._plausible(F, policies, noise), everything)
    limit = float(low.sort().values[2:].mean())
    some = replace(bound, give_up=limit)
    dear = monte_carlo.mean_lower(some.charges(F, policies, noise[:, :, :4]), bound.total_ceiling, 0.05) > limit
    assert some._plausible(F, policies, noise).tolist() == everything[~dear].tolist() and bool(dear.any())
    assert replace(some, chunk=3)._plausible(F, policies, noise).tolist() == everything[~dear].tolist()
    assert torch.equal(replace(some, pilot=30)._plausible(F, policies, noise), everything)
    found = some.evaluate(F, policies)
    assert bool((found.upper[dear] == bound.total_ceiling).all()) and bool(found.vacuous[dear].all())


def test_an_end_within_a_billionth_of_the_ceiling_says_nothing(charged, monkeypatch):
    F, policies, bound, _ = charged
    ceiling, shares = bound.total_ceiling, tensor([0.0, 0.5e-9, 2e-9, 1.0])
    monkeypatch.setattr(monte_carlo, "dominating_mean_upper", lambda charges, *_: ceiling * (1 - shares))
    assert bound.evaluate(F, policies).vacuous.tolist() == [True, True, False, False]


def test_hulls_are_left_by_more_than_their_tolerance():
    tubes = Tubes(
        (Zonotope(torch.zeros(1, 2, 2).double(), torch.eye(2).double().expand(1, 2, 2, 2)),), torch.ones(1, 2).long()
    )
    states = tensor([[[[1.075, 0.0]], [[0.0, -1.125]]]])
    assert tubes.contains_hull(states, tol=0.1).tolist() == [[True, False]]


@pytest.mark.parametrize("answer", [math.nan, math.inf, 9.0, 0.0])
def test_a_set_or_a_cost_that_is_no_number_is_charged_the_ceiling_whatever_the_cost_says(answer):
    class Says:
        """A cost of a user's making that looks at nothing."""

        ceiling = 1.2

        def upper(self, lower, upper):
            return torch.full(lower.shape[:-1], answer, dtype=lower.dtype)

    tube = Zonotope(torch.zeros(4, 2).double(), torch.ones(4, 2, 3).double())
    tube.center[1, 0], tube.center[2, 1], tube.generators[3, 0, 2] = math.nan, 1e200, math.inf
    assert charge_upper(Says(), tube).tolist() == [0.0 if answer == 0.0 else 1.2, 1.2, 1.2, 1.2]


def test_a_set_is_cut_across_what_is_widest_after_the_cuts_before():
    """Sides 4, 1.9, 1: halved twice along the first and once along the second."""
    sides = tensor([[[4.0, 1.9, 1.0]]])
    for radius in (sides, sides.flip(-1)):  # where to cut is not for the set to say
        parts = cut(Zonotope(torch.zeros(1, 1, 3).double(), torch.diag_embed(radius)), 8, sides)
        expected = radius[0] * tensor([0.25, 0.5, 1.0])
        torch.testing.assert_close(parts.radius[0], expected.expand(8, 3), rtol=1e-11, atol=0)


@settings(max_examples=25)
@given(st.lists(st.floats(-50, 50), min_size=8, max_size=8), st.floats(0.1, 9.0))
def test_pieces_leave_no_gap_in_exact_arithmetic(centers, radius):
    """Each piece begins where, or before, the last one ends: as rationals, not as rounded numbers."""
    tube = Zonotope(tensor(centers).reshape(8, 1, 1), tensor([radius]).expand(8, 1, 1, 1))
    parts = cut(tube, 8, tube.radius)
    for p, center in enumerate(centers):
        pairs = zip(parts.center[p, :, 0].tolist(), parts.radius[p, :, 0].tolist(), strict=True)
        ends = sorted((Fraction(c) - Fraction(r), Fraction(c) + Fraction(r)) for c, r in pairs)
        assert ends[0][0] <= Fraction(center) - Fraction(radius) and ends[-1][1] >= Fraction(center) + Fraction(radius)
        assert all(low <= high for (_, high), (low, _) in itertools.pairwise(ends))
