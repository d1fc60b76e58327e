"""A step of a plan's tube, its slack, its landing and its bookkeeping against loops: no sub-term may be dropped or halved."""

import math
from dataclasses import replace

import pytest
import torch
from shield_cases import HORIZON, case_of, judge_of, judged
from step_cases import Curved, bent_pendulum, draw, learned, one_step, rounded, saturating, tensor

from gpsafe.assumptions import Assumption
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.plan_tube import SLACK, Plans, PlanTube, Verification
from gpsafe.policies import AffinePolicies
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.task import Task
from proofs_checks._defects import forged

NOISE = tensor([0.03, 0.05])


def bent_judge(fallbacks, **options) -> PlanTube:
    F, case = bent_pendulum()
    cost = IndicatorCost(tensor([[1.0, 0.0]]), tensor([9.0]))
    task = Task(case.system.initial_state, 9, cost, 1.0, case.system.noise_std)
    return PlanTube(
        fallbacks=fallbacks, task=task, noise_radius=NOISE, input_box=case.system.input_box, **options
    ).refine(F)


@pytest.mark.parametrize("tabulated", [False, True])
@pytest.mark.parametrize("curved", [False, True])
def test_a_step_is_its_formula(curved, tabulated):
    """Two plans that still follow their own laws, and two that follow their fallbacks; some saturate."""
    F, case = bent_pendulum()
    tube = Zonotope(
        case.system.initial_state + 0.05 * draw(5, 4, 2), 0.05 * draw(6, 4, 2, 3) * tensor([1.0, -1.0, 1.0])
    )
    most, affine = case.system.input_box.upper - 0.02, saturating(case)
    affine.offset[0] = most - affine.gain[0] @ tube.center[2]
    region = Box(tensor([-1.0, -1.0, -1.0]), tensor([1.0, 1.0, 1.0]))
    grid = AnchorGrid.create(region, tensor([0.5, 0.5, 0.25])) if tabulated else None
    judge = bent_judge(Curved(affine) if curved else affine, anchors=grid)
    offset, gain = 0.3 * draw(9, 4, 2, 1), 0.5 * draw(1, 4, 2, 1, 2)
    offset[0, 1] = most - gain[0, 1] @ tube.center[0]
    plans = Plans(
        offset, gain, torch.tensor([2, 2, 1, 0]), torch.tensor([0, 0, 0, 1]), torch.zeros(4, dtype=torch.long)
    )
    found, empty = judge.reach(tube, plans, 1)
    assert not bool(empty.any())
    kinked = []
    for p in range(4):
        law = affine.select(torch.tensor([max(0, p - 2)]))
        if p < 2:
            law = AffinePolicies(offset[p, 1:], gain[p, 1:], case.system.input_box)
        step = one_step(F, law, tube.center[p], tube.generators[p], rest=0.07 if curved and p >= 2 else None)
        anchor = step.z
        if tabulated:
            spacing = tensor([0.5, 0.5, 0.25])
            anchor = (step.z / spacing).round().clamp(-1 / spacing, 1 / spacing) * spacing
        step = learned(F, step, anchor)
        exact = Zonotope(step.center[None], step.linear[None]).plus_box((step.error + NOISE)[None])
        torch.testing.assert_close(found.center[p], step.center, rtol=1e-12, atol=1e-13)
        for n in draw(8, 6, 2):
            assert float(found.support(n[None])[p, 0]) == pytest.approx(float(exact.support(n[None])[0, 0]), rel=1e-10)
        kinked.append(step.kinked)
    assert any(kinked[:2]) and any(kinked[2:])


def test_error_in_a_step_is_rounded_outwards_and_a_plan_without_numbers_poisons_itself_only():
    F, case = bent_pendulum()
    affine = saturating(case)
    judge = bent_judge(affine)
    plans = Plans(
        draw(1, 3, 2, 1), draw(2, 3, 2, 1, 2), torch.tensor([2, 2, 2]), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 0])
    )
    tube = Zonotope.point(case.system.initial_state.expand(3, 2))
    before, _ = judge.reach(tube, plans, 0)
    for p in range(3):
        law = AffinePolicies(plans.offset[p, :1], plans.gain[p, :1], case.system.input_box)
        step = one_step(F, law, tube.center[p], tube.generators[p])
        step = learned(F, step, step.z)
        grown = before.radius[p] - step.error - NOISE
        torch.testing.assert_close(grown, rounded(F, step) + 1e-12 * NOISE, rtol=0.01, atol=0)
    bad = replace(plans, gain=plans.gain.clone())
    bad.gain[1, 1, 0, 1] = float("nan")  # a law of another step counts as well
    assert bad.finite.tolist() == [True, False, True]
    after, _ = judge.reach(tube, bad, 0)
    assert bool(torch.isnan(after.center[1]).all())
    assert torch.equal(after.center[[0, 2]], before.center[[0, 2]]) and torch.equal(after.generators, before.generators)
    worse = replace(plans, offset=plans.offset.clone())
    worse.offset[2, 0, 0] = float("inf")
    assert worse.finite.tolist() == [True, True, False]
    found = judge.verify(tube, worse, 2)
    assert found.admitted.tolist()[2] is False and float(found.margin[2]) == -math.inf and int(found.steps[2]) == 0


def test_plans_are_what_they_say():
    _, case = bent_pendulum()
    affine, box = saturating(case), case.system.input_box
    offset, gain = 0.3 * draw(1, 3, 4, 1), 0.3 * draw(2, 3, 4, 1, 2)
    plans = Plans(offset, gain, torch.tensor([4, 1, 0]), torch.tensor([1, 0, 1]), torch.tensor([2, 1, 0]))
    x = 0.5 * draw(3, 3, 2)
    left = plans
    for time in range(5):
        for p in range(3):
            if time < int(plans.lengths[p]):
                exact = float((offset[p, time] + gain[p, time] @ x[p]).clamp(box.lower, box.upper))
            else:
                exact = float(affine(x[p].expand(1, 1, 2))[int(plans.fallback[p]), 0, 0])
            assert float(left.act(x, affine, box)[p, 0]) == pytest.approx(exact, rel=1e-14)
        left = left.shifted()
        assert left.lengths.tolist() == [max(0, 3 - time), 0, 0] and left.commit.tolist() == [max(0, 1 - time), 0, 0]
    few = Plans(
        draw(1, 3, 4, 1), draw(2, 3, 4, 1, 2), torch.tensor([4, 1, 0]), torch.tensor([1, 0, 1]), torch.tensor([2, 1, 0])
    )
    part = few.select(torch.tensor([2, 0]))
    assert part.lengths.tolist() == [0, 4] and part.fallback.tolist() == [1, 1] and part.commit.tolist() == [0, 2]
    assert torch.equal(part.offset, few.offset[[2, 0]]) and torch.equal(part.gain, few.gain[[2, 0]]) and part.num == 2
    open_loop = Plans.open_loop(draw(1, 2, 5, 1), torch.tensor([3, 5]), torch.tensor([0, 1]), 2)
    assert (
        not bool(open_loop.gain.any()) and open_loop.gain.shape == (2, 5, 1, 2) and open_loop.commit.tolist() == [3, 5]
    )
    bare = Plans.of_fallbacks(torch.tensor([1, 0]), 2, 1)
    assert bare.lengths.tolist() == [0, 0] and bare.commit.tolist() == [0, 0] and bare.gain.shape == (2, 0, 1, 2)


def test_the_slack_is_the_room_in_the_tightest_half_space_rounded_down():
    _, case = bent_pendulum()
    judge = bent_judge(saturating(case))
    cost = IndicatorCost(tensor([[1.0, 0.5], [-2.0, 0.3]]), tensor([1.0, 2.5]))
    judge = replace(judge, task=judge.task.with_(cost=cost))
    tube = Zonotope(0.3 * draw(1, 5, 2), 0.2 * draw(2, 5, 2, 3))
    tube.center[3, 0], tube.center[4, 1] = float("nan"), 1e200
    found = judge.slack(tube)
    for p in range(3):
        rooms = []
        for n, o in zip(cost.normals, cost.offsets, strict=True):
            support = float(n @ tube.center[p] + (n @ tube.generators[p]).abs().sum())
            terms = float(n.abs() @ (tube.center[p].abs() + tube.generators[p].abs().sum(-1)))
            rooms.append(float(o) - support - SLACK * (abs(float(o)) + terms))
        assert float(found[p]) == pytest.approx(min(rooms), abs=1e-13)
    assert found[3:].tolist() == [-math.inf] * 2


def test_following_a_plan_is_step_after_step():
    """Margins, counts and verdicts are those of `reach` and `slack` one step at a time, without landing sets."""
    case = case_of()
    for grid in (True, False):
        judge = judge_of(case, landing=False, grid=grid).refine(case.confidence)
        inputs = tensor([1.0, 0.3, 0.0, -0.9]).reshape(4, 1, 1).expand(4, 12, 1)
        plans = Plans.open_loop(inputs, torch.tensor([12, 4, 0, 12]), torch.zeros(4, dtype=torch.long), 2)
        start = Zonotope.point(tensor([[0.1, 0.0], [0.1, 0.0], [1.3, 0.0], [0.2, 0.3]]))
        found = judge.verify(start, plans, 10)
        for p in range(4):
            tube, one = start.select(torch.tensor([p])), plans.select(torch.tensor([p]))
            margin, steps = float(judge.slack(tube)), 0
            while margin >= 0 and steps < 10:
                tube, _ = judge.reach(tube, one, steps)
                margin, steps = min(margin, float(judge.slack(tube))), steps + 1
            assert float(found.margin[p]) == pytest.approx(margin, rel=1e-7, abs=1e-9)
            assert int(found.steps[p]) == steps and bool(found.admitted[p]) == (margin >= 0)
        assert not bool(found.landed.any()) and int(found.steps[2]) == 0 and 0 < int(found.admitted.sum()) < 4
        assert judge.verify(start, plans, 0).admitted.tolist() == [True, True, False, True]


def test_a_plan_that_starts_at_the_edge_is_followed(monkeypatch):
    """No room is left at first, less than none a step later: it is not admitted on its start alone."""
    case = case_of()
    judge = judge_of(case, landing=False, grid=False).refine(case.confidence)
    start, slack = Zonotope.point(tensor([[0.1, 0.5]])), PlanTube.slack
    plans = Plans.open_loop(torch.ones(1, 4, 1).double(), torch.tensor([4]), torch.tensor([0]), 2)
    room = slack(judge, start)
    monkeypatch.setattr(PlanTube, "slack", lambda own, tube: slack(own, tube) - room)
    found = judge.verify(start, plans, 2)
    after = judge.slack(judge.reach(start, plans, 0)[0])
    assert float(after) < -0.01 and torch.equal(found.margin, after)
    assert found.steps.tolist() == [1] and found.admitted.tolist() == [False]
    assert judge.verify(start, plans, 0).admitted.tolist() == [True]


def test_landing_asks_for_the_place_the_time_the_fallback_and_the_plan():
    case = case_of()
    judge = judged()
    certified = torch.tensor([[5, -1], [-1, 3]])
    boxes = (Box(tensor([-0.2, -0.8]), tensor([0.2, 0.8])), Box(tensor([-0.5, -0.5]), tensor([0.5, 0.5])))
    judge = forged(judge, landing=boxes, certified=certified, fallbacks=case.choose(12, 12))
    point = Zonotope(tensor([[0.1, 0.0]]), tensor([[[0.09, 0.0], [0.0, 0.3]]]))

    def lands(center, fallback, time, steps, commit=0) -> bool:
        tube = Zonotope(tensor([center]), point.generators)
        plans = replace(Plans.of_fallbacks(torch.tensor([fallback]), 2, 1), commit=torch.tensor([commit]))
        return bool(judge._inside_landing(tube, plans, time, steps))

    assert lands([0.1, 0.0], 0, 0, 5) and lands([0.1, 0.0], 0, 3, 8) and not lands([0.1, 0.0], 0, 2, 8)
    assert not lands([0.1, 0.0], 1, 0, 4) and lands([0.1, 0.0], 1, 0, 3) and lands([0.3, 0.0], 1, 7, 10)
    assert not lands([0.3, 0.0], 0, 0, 1) and not lands([0.1, 0.6], 0, 0, 1) and not lands([0.1, -0.6], 0, 0, 1)
    assert not lands([-0.12, 0.0], 0, 0, 1) and lands([-0.1, 0.0], 0, 0, 1)
    assert not lands([0.11 + 1e-12, 0.0], 0, 0, 1) and not lands([-0.11 - 1e-12, 0.0], 0, 0, 1)  # rounding at the edge
    assert lands([0.1, 0.0], 0, 2, 6, commit=2) and not lands([0.1, 0.0], 0, 2, 6, commit=3)
    assert not bool(
        replace(judge, certified=None)._inside_landing(point, Plans.of_fallbacks(torch.tensor([0]), 2, 1), 0, 1)
    )


def test_a_plan_that_starts_in_a_landing_set_has_landed_unless_the_constraint_is_broken_there():
    judge = judged()
    certified = torch.full((1, 2), HORIZON)
    inside, outside = judge.landing[0], Box(tensor([1.1, -0.5]), tensor([1.5, 0.5]))  # the edge is at 1.2
    judge = forged(judge, landing=(inside, outside), certified=certified)
    start = Zonotope.point(tensor([[0.0, 0.0], [1.3, 0.0], [1.15, 0.0]]))
    plans = Plans.of_fallbacks(torch.tensor([0, 0, 0]), 2, 1)
    found = judge.verify(start, plans, HORIZON)
    assert found.landed.tolist() == [True, False, True] and found.admitted.tolist() == [True, False, True]
    assert found.steps.tolist() == [0, 0, 0]
    torch.testing.assert_close(found.margin, judge.slack(start))
    later = judge.verify(start, plans, HORIZON + 1)  # certified for too few: the first lands a step later
    assert later.steps[0] == 1 and bool(later.landed[0])


@pytest.mark.parametrize(("center", "radius"), [(1000.0, 1.0), (0.0, 1000.0)])
def test_rounding_at_a_landing_set_grows_with_where_and_how_wide_the_tube_is(center, radius):
    judge = judged()
    box = Box(tensor([center - radius, -1.0]), tensor([center + radius, 1.0]))
    judge = forged(judge, landing=(box,), certified=torch.tensor([[5]]))
    plans = Plans.of_fallbacks(torch.tensor([0, 0]), 2, 1)
    rays = torch.diag_embed(tensor([[radius - 5e-7, 0.1], [radius - 2e-6, 0.1]]))
    tube = Zonotope(tensor([center, 0.0]).expand(2, 2), rays)
    assert judge._inside_landing(tube, plans, 0, 1).tolist() == [False, True]


@pytest.mark.parametrize("grid", [True, False])
def test_settled_plans_leave_the_batch_only_where_the_others_cannot_notice(grid, monkeypatch):
    case = case_of()
    judge = judge_of(case, landing=False, grid=grid).refine(case.confidence)
    inputs = tensor([1.0, 0.3, 0.0]).reshape(3, 1, 1).expand(3, 12, 1)
    plans = Plans.open_loop(inputs, torch.tensor([12, 4, 0]), torch.zeros(3, dtype=torch.long), 2)
    sizes, honest = [], PlanTube.reach

    def counted(self, tube, part, time):
        sizes.append(part.num)
        return honest(self, tube, part, time)

    monkeypatch.setattr(PlanTube, "reach", counted)
    found = judge.verify(Zonotope.point(tensor([[0.9, 0.8], [0.1, 0.0], [1.3, 0.0]])), plans, 8)
    assert found.admitted.tolist() == [False, True, False] and 1 < int(found.steps[0]) < 8
    expected = [sum(t < int(steps) for steps in found.steps) for t in range(8)] if grid else [3] * 8
    assert sizes == expected


def test_a_certificate_belongs_to_its_fallback_and_its_box():
    """Rows are fallbacks, columns are boxes; T steps where the box was certified, −1 where not."""
    case = case_of()
    small, far = Box(tensor([-0.2, -0.8]), tensor([0.2, 0.8])), Box(tensor([1.0, 1.0]), tensor([1.3, 2.0]))
    weak = judge_of(case)
    both = AffinePolicies(
        torch.cat([weak.fallbacks.offset, weak.fallbacks.offset + 0.5]),
        torch.cat([weak.fallbacks.gain, 0 * weak.fallbacks.gain]),
        weak.input_box,
    )
    judge = replace(weak, fallbacks=both, landing=(far, small, far)).refine(case.confidence)
    assert judge.certified.tolist() == [[-1, HORIZON, -1], [-1, -1, -1]]
    again = judge.refine(case.confidence)
    assert torch.equal(again.certified, judge.certified) and judge.confidence is case.confidence


def test_what_was_verified_ends_where_it_landed():
    plans = Plans.open_loop(draw(1, 4, 6, 1), torch.tensor([6, 4, 6, 2]), torch.tensor([0, 0, 0, 0]), 2)
    yes = torch.tensor([True, True, False, True])
    found = Verification(yes, torch.zeros(4), torch.tensor([3, 5, 2, 2]), yes)
    assert found.trimmed(plans).lengths.tolist() == [3, 4, 6, 2]


def test_the_chance_of_the_noise_box_is_a_sum_over_states_and_steps():
    case = case_of()
    judge = judge_of(case, landing=False).refine(case.confidence)
    sigma = case.system.noise_std
    for factor, steps in ((3.0, 30), (3.5, 7)):
        wide = replace(judge, noise_radius=factor * sigma, task=judge.task.with_(horizon=steps))
        chance = steps * sum(math.erfc(factor / math.sqrt(2)) for s in sigma.tolist() if s > 0)
        text = " ".join(str(item) for item in wide.believed())
        assert f"≤ {min(1.0, chance):.3g} for the task's noise" in text
        assert f"<={(factor * sigma).tolist()}" in text
    still = sigma * torch.tensor([0.0] + [1.0] * (len(sigma) - 1)).double()  # a state without noise adds nothing
    quiet = replace(judge, noise_radius=3.0 * still, task=judge.task.with_(noise_std=still, horizon=7))
    chance = 7 * math.erfc(3.0 / math.sqrt(2)) * int((still > 0).sum())
    assert 0 < chance < 1 and f"≤ {chance:.3g} for the task's noise" in " ".join(map(str, quiet.believed()))
    certain = replace(judge, noise_radius=0.1 * sigma)
    assert "≤ 1 for the task's noise" in " ".join(str(item) for item in certain.believed())
    assert "states [0]" in " ".join(str(item) for item in judge.believed())


def test_only_a_set_that_is_no_theorem_is_itself_believed():
    F, _ = bent_pendulum()
    judge = bent_judge(saturating(bent_pendulum()[1]))
    kinds = [belief.kind for belief in judge.believed()]
    assert F.sound and Assumption.IN_SET not in kinds
    loose = replace(F.bound, unchecked=True)
    kinds = [belief.kind for belief in replace(judge, confidence=type(F)(loose, F.generations)).believed()]
    assert Assumption.IN_SET in kinds


def test_landing_keeps_its_share_for_rounding():
    judge, plans = judged(), Plans.of_fallbacks(torch.tensor([0, 0]), 2, 1)
    judge = forged(judge, landing=(Box(tensor([-1.0, -1.0]), tensor([1.0, 1.0])),), certified=torch.tensor([[5]]))
    size = SLACK * (0.25 + 0.75)
    rays = torch.diag_embed(0.75 - size * tensor([[0.7, 1.5], [1.5, 1.5]]))
    assert judge._inside_landing(Zonotope(tensor([[0.25, 0.25]] * 2), rays), plans, 0, 1).tolist() == [False, True]
