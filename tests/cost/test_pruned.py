"""Pruned sessions hand out bounds of the robust program: windows, screens and old values never make them smaller."""

import dataclasses

import pytest
import torch
from cost_cases import generator, make_case
from hypothesis import given
from strategies import dear, seeds

from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import pruned
from gpsafe.cost.grid import Grid
from gpsafe.cost.pruned import PrunedSession, probe, windowed
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.sets import Box
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.task import Task

BUDGET = 0.2


def uniform(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=g)


def program(system, cells: int = 397) -> RobustDP:
    """No cell edge on the boundary x = 1, where rounding would decide whether the cell costs 1."""
    grid = Grid(system.state_box, (cells,))
    return RobustDP(grid, Task.of(system))


def session(case, **changes) -> PrunedSession:
    every = case.policies.select(torch.arange(0, 81, 4))
    return PrunedSession(program(case.system), case.confidence, every, generator(1), **changes)


@pytest.fixture(scope="module")
def case():
    return make_case("1d", (0, 10, 20))


def test_window_keeps_the_cells():
    grid = Grid(Box(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])), (8, 6), (1, 2))
    part = grid.window((2, 1), (5, 4))
    assert part.cells == (4, 4) and part.split == (1, 2)
    inside = grid.centers.reshape(8, 6, 2)[2:6, 1:5].reshape(-1, 2)
    assert torch.allclose(part.centers, inside, atol=1e-15, rtol=0)
    with pytest.raises(ValueError, match="window"):
        grid.window((2, 1), (8, 4))


@dear()
@given(seeds())
def test_windows_contain_their_boxes_and_partition_the_policies(seed):
    g = generator(seed)
    dp = program(reference_1d())
    low = 4 * uniform(g, 12, 1) - 2.4
    high = low + uniform(g, 12, 1) * (2.5 - low)
    groups = windowed(dp, low, high)
    assert sorted(torch.cat([index for _, index in groups]).tolist()) == list(range(12))
    for program_on_window, index in groups:
        box = program_on_window.grid.box
        assert bool((box.lower <= low[index] + 1e-12).all() and (box.upper >= high[index] - 1e-12).all())
        assert bool(box.contains(dp.initial_state))


@pytest.mark.parametrize("far", [1e18, 1e25, 1e300, float("inf"), float("nan")])
def test_paths_that_leave_every_grid_get_the_whole_side_of_it(far):
    """Cells beyond 2⁶³ came out negative as whole numbers: no window held x₀, and one such policy ended the session."""
    dp = program(reference_1d())
    low, high = torch.tensor([[-far], [-0.5], [-far]]), torch.tensor([[-0.4], [far], [far]])
    found = {int(i): part.grid.box for part, index in windowed(dp, low.double(), high.double()) for i in index}
    assert len(found) == 3 and all(bool(box.contains(dp.initial_state)) for box in found.values())
    assert all(float(found[i].lower) == float(dp.grid.box.lower) for i in (0, 2))
    assert all(float(found[i].upper) == float(dp.grid.box.upper) for i in (1, 2))


def test_a_policy_that_diverges_leaves_the_others_their_bounds(case):
    gain, wide = torch.tensor([[[0.0]], [[1e200]]], dtype=torch.float64), Box([-1e300], [1e300])
    wild = AffinePolicies(torch.tensor([[0.0], [1.0]]).double(), gain, wide)
    wild_session = dataclasses.replace(session(case), policies=wild)
    upper = wild_session.upper(torch.arange(2))
    assert torch.isfinite(upper).all()
    assert bool((upper >= wild_session.dp.evaluate(case.confidence, wild).upper - 1e-9).all())


@dear()
@given(seeds())
def test_a_program_on_a_window_dominates_that_on_the_grid(case, seed):
    dp = program(case.system)
    policies = case.choose(0, 20, 40, 60)
    whole = dp.upper(dp.enclosure(case.confidence, policies).refine(case.confidence))
    g = generator(seed)
    low, high = -0.6 - 1.5 * uniform(g, 4, 1), -0.4 + 2 * uniform(g, 4, 1)
    for part, index in windowed(dp, low, high, margin=0, pad=0.0):
        chosen = policies.select(index)
        value = part.upper(part.enclosure(case.confidence, chosen).refine(case.confidence))
        assert bool((value >= whole[index] - 1e-9).all())


def test_pruned_bounds_are_those_of_the_program_or_larger(case):
    pruned_session = session(case)
    index = torch.arange(pruned_session.policies.num)
    upper = pruned_session.upper(index)
    dp = pruned_session.dp
    whole = dp.upper(dp.enclosure(case.confidence, pruned_session.policies).refine(case.confidence))
    assert bool((upper >= whole - 1e-9).all())
    certified = upper <= BUDGET
    assert 0 < int(certified.sum()) == int((whole <= BUDGET).sum())  # windows and screen lose nothing here
    log = pruned_session.log[-1]
    assert log["screened"] + log["kept"] + log["evaluated"] == len(index) and log["screened"] > 0


def test_what_the_first_grid_leaves_is_asked_on_the_finer_one(case):
    """The coarse number or the fine one, whichever is smaller; only those above the budget are asked twice."""
    coarse, fine = program(case.system, 79), program(case.system)
    plain, both = (dataclasses.replace(session(case, finer=f), dp=coarse) for f in (None, fine))
    index = torch.arange(plain.policies.num)
    first, second = plain.upper(index), both.upper(index)
    whole = fine.upper(fine.enclosure(case.confidence, both.policies).refine(case.confidence))
    assert bool((second <= first).all()) and bool((second >= torch.minimum(first, whole) - 1e-9).all())
    assert int((first <= BUDGET).sum()) < int((second <= BUDGET).sum()) == int((whole <= BUDGET).sum())
    assert both.log[-1]["refined"] == both.log[-1]["evaluated"] - int((first <= BUDGET).sum())
    assert bool((second[first <= BUDGET] == first[first <= BUDGET]).all()) and plain.log[-1]["refined"] == 0
    other = RobustDP(fine.grid, dataclasses.replace(fine.task, budget=0.1))
    with pytest.raises(ValueError, match="finer"):
        session(case, finer=other)


def test_what_an_update_certifies_is_not_said_of_the_set_before_it_nor_of_another_plants(case):
    """The bounds were kept in one table for all that came of a session: one run's certificates passed into the next one's."""
    early = dataclasses.replace(
        session(case), confidence=ConfidenceSet(case.confidence.bound, case.confidence.generations[:1])
    )
    index = torch.arange(early.policies.num)
    first = early.upper(index)
    late = early.update(case.confidence).upper(index)
    assert bool((late < first).any())
    assert torch.equal(early.upper(index), first)
    assert torch.equal(early.update(early.confidence).upper(index), first)
    assert not bool(torch.isfinite(dataclasses.replace(early, policies=early.policies).memo.upper).any())


def test_bounds_only_shrink_and_certified_policies_are_not_evaluated_again(case):
    early = dataclasses.replace(
        session(case), confidence=ConfidenceSet(case.confidence.bound, case.confidence.generations[:2])
    )
    index = torch.arange(early.policies.num)
    first = early.upper(index).clone()
    late = early.update(case.confidence)
    second = late.upper(index)
    assert bool((second <= first).all()) and bool((second < first).any())
    assert late.log[-1]["evaluated"] + int((first <= BUDGET).sum()) <= len(index)
    assert bool((second[first <= BUDGET] == first[first <= BUDGET]).all())


def test_a_screen_that_lets_everything_pass_certifies_nothing_unsafe(case, monkeypatch):
    def blind(*args, **kwargs):
        found = probe(*args, **kwargs)
        return dataclasses.replace(found, cost=torch.zeros_like(found.cost))

    monkeypatch.setattr(pruned, "probe", blind)
    every = session(case)
    upper = every.upper(torch.arange(every.policies.num))
    assert every.log[-1]["evaluated"] == every.policies.num
    exact = every.dp.enclosure(case.confidence, every.policies)
    truth = every.dp.lower(exact.with_residual(case.system.residual_fn(exact.z)))
    assert bool((truth > BUDGET).any()) and bool((upper[truth > BUDGET] > BUDGET).all())


def test_control_a_screen_without_width_lets_policies_pass_that_the_program_refuses(case):
    """The screen is a guess: alone it would certify more than the program does."""
    every = session(case, slack=0.0)
    passed = every.probe().cost <= BUDGET
    early = ConfidenceSet(case.confidence.bound, case.confidence.generations[:1])
    refused = every.dp.upper(every.dp.enclosure(early, every.policies).refine(early)) > BUDGET
    assert bool((passed & refused).any())


def test_lazy_maximum_is_the_maximum(case):
    lazy = session(case, batch=2)
    members = torch.arange(0, 12)
    first = lazy.exploration(members)
    eager = session(case)
    assert float(first.max()) == pytest.approx(float(eager.exploration(members).max()), rel=1e-9)
    again = lazy.exploration(members)  # same F_n: only the top is refreshed
    assert int(again.argmax()) == int(first.argmax()) and lazy.log[-1]["refreshed"] <= 12 + 2


def test_lazy_maximum_after_new_data_equals_a_full_refresh(case):
    early = dataclasses.replace(
        session(case, batch=1), confidence=ConfidenceSet(case.confidence.bound, case.confidence.generations[:2])
    )
    members = torch.arange(0, 10)
    early.exploration(members)
    late = early.update(case.confidence)
    lazy = late.exploration(members)
    full = session(case).exploration(members)
    assert float(lazy.max()) <= float(full.max()) * (1 + 1e-6)
    assert late.log[-1]["refreshed"] < len(members)
    assert bool((lazy >= full * (1 - 0.2)).all())  # stale values are older, larger bounds


def test_candidates_limit_the_first_evaluations(case):
    few = session(case, candidates=3)
    values = few.exploration(torch.arange(0, 9))
    assert int(torch.isfinite(values).sum()) == 3 and few.log[-1]["refreshed"] == 3


def test_actsafe_with_a_pruned_session_expands_like_the_plain_one():
    system, (policies, initial) = reference_1d(), reference_1d_policies()
    dp = program(system, 300)
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    algorithm = ActSafe(system, policies, initial.tolist(), model, bound, dp, episodes=4)
    plain = algorithm.run(generator(0))

    def start(confidence):
        return PrunedSession(dp, confidence, policies, generator(9))

    fast = algorithm.with_(start=start).run(generator(0))
    assert sum(e.cost for e in fast.episodes) == 0
    assert len(fast.safe_set) >= 0.8 * len(plain.safe_set) > len(initial)


@pytest.mark.parametrize("change", [{"shrink": 0.0}, {"batch": 0}])
def test_bad_sessions_are_refused(case, change):
    with pytest.raises(ValueError, match="PrunedSession"):
        dataclasses.replace(session(case), **change)


def test_a_session_is_not_updated_with_another_history(case):
    wider = dataclasses.replace(case.confidence.bound, rkhs_norm=50.0)
    with pytest.raises(ValueError, match="update: expected a confidence set that continues"):
        session(case).update(ConfidenceSet(wider, case.confidence.generations))


def test_what_an_update_finds_says_nothing_of_the_sets_before_it(case):
    """A second run from the same first session certified in its first episode all that the first run ever had."""
    first = ConfidenceSet(case.confidence.bound, case.confidence.generations[:1])
    every, index = case.policies.select(torch.arange(0, 81, 4)), torch.arange(21)
    before, fresh = (PrunedSession(program(case.system), first, every, generator(1)) for _ in range(2))
    after = before.update(case.confidence)
    found = after.upper(index), after.exploration(index)
    assert int((found[0] <= BUDGET).sum()) > 1 and int((after.upper(index) <= BUDGET).sum()) > 1
    assert torch.equal(before.upper(index), fresh.upper(index))
    assert torch.equal(before.exploration(index), fresh.exploration(index)) and before.log is after.log
