"""Where the condensed SQP starts and when it ends: what later starts and jumps find, and that counts alone decide."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from xmpsc_cases import PENDULUM, ensemble_pendulum, pendulum_ensemble, wave_problem

from gpsafe.certify import judge
from gpsafe.planning.mpc import _starts, _sweeps, fast
from gpsafe.planning.mpc._starts import neighbours, starts
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.tube import EnsembleTube

pytest.importorskip("numba")


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=torch.float64)


@pytest.mark.parametrize("learned", [1.0, -1.0, 0.3, 5.0])
def test_starts_are_distinct_also_where_the_proposed_input_is_at_its_limit(learned):
    """Within the inputs, one or several; fewer are the first of more; without limits there is one."""
    for nu in (1, 2):
        lower, upper, wanted = -np.ones(nu), np.linspace(1.0, 2.0, nu), np.full(nu, learned)
        plans = starts(4, lower, upper, wanted, 12)
        assert len({tuple(plan.ravel()) for plan in plans}) == len(plans) == 12
        assert all((plan >= lower).all() and (plan <= upper).all() for plan in plans)
        assert np.array_equal(plans[0], [np.clip(wanted, lower, upper), *np.zeros((3, nu))])
        assert np.array_equal(starts(4, lower, upper, wanted, 3), plans[:3])
        assert len(starts(4, lower, np.full(nu, np.inf), wanted, 12)) == 1


def test_one_call_and_step_by_step_are_the_same_search():
    """A time limit, however long, leaves the loop between the sweeps to the interpreter."""
    problem, learned = ensemble_pendulum(), vector(1.0)
    for x0 in (vector(math.pi + 0.6, 0.6), vector(math.pi + 1.4, 4.0)):
        whole, work = CondensedSQP().search(problem, x0, learned)
        stepped, same = CondensedSQP(time_limit=1e6).search(problem, x0, learned)
        assert whole.status == stepped.status and torch.allclose(whole.inputs, stepped.inputs, rtol=0, atol=1e-7)
        assert (work.sweeps, work.programs, work.corrections) == (same.sweeps, same.programs, same.corrections)


def test_a_search_is_the_same_whenever_it_is_asked_for():
    problem, x0, learned = ensemble_pendulum(), vector(math.pi + 0.6, 0.6), vector(1.0)
    assert torch.equal(*(CondensedSQP().propose(problem, x0, learned).inputs for _ in range(2)))


@pytest.mark.parametrize(("seed", "learned"), [(33, -1.0), (53, 1.0), (59, -1.0), (82, -1.0), (135, 1.0)])
def test_later_starts_find_what_the_first_misses(seed, learned):
    """Waves in the mean: from (u_L, 0, …) the search ends at a local optimum that is worse, or certifies nothing."""
    problem, x0 = wave_problem(seed)
    one, default = (
        judge(problem, x0, vector(learned), CondensedSQP(starts=n).propose(problem, x0, vector(learned)))
        for n in (1, CondensedSQP().starts)
    )
    assert default.certified
    assert not one.certified or one.distance > default.distance + 1e-6


@settings(max_examples=5, deadline=None)
@given(seed=seeds())
def test_more_starts_are_never_worse(seed):
    problem, x0 = wave_problem(seed % 10_000)
    learned = vector(1.0 if seed % 2 else -1.0)
    one, default = (
        judge(problem, x0, learned, CondensedSQP(starts=n).propose(problem, x0, learned))
        for n in (1, CondensedSQP().starts)
    )
    assert default.certified or not one.certified
    assert not one.certified or default.distance <= one.distance + 1e-7


def test_sweeps_bound_what_a_search_costs_and_more_are_never_worse():
    """No start begins after that many, so that the last one alone exceeds them, by its own iterations and corrections."""
    problem, x0 = wave_problem(33)
    ranks, longest = [], 2 * CondensedSQP().iterations
    for sweeps in (1, 20, 250):
        options = CondensedSQP(sweeps=sweeps)
        proposal, work = options.search(problem, x0, vector(-1.0))
        assert work.sweeps <= sweeps + longest
        certificate = judge(problem, x0, vector(-1.0), proposal)
        ranks.append(certificate.distance if certificate.certified else math.inf)
    assert ranks[0] > ranks[2] and sorted(ranks, reverse=True) == ranks
    whole = CondensedSQP(sweeps=1, exhaustive=True).search(problem, x0, vector(-1.0))[1]
    assert whole.sweeps > longest  # exhaustive: whatever it takes
    with pytest.raises(ValueError, match="sweeps"):
        CondensedSQP(sweeps=0)


def branching(x, u):
    """A known part without a tape."""
    return PENDULUM(x, u) if float(x.detach().abs().max()) < 1e6 else x


@pytest.mark.parametrize("kind", ["compiled", "given", "differences"])
def test_rows_without_their_jacobian_are_the_same(kind):
    """Every kind of sweep; a batch of plans at once."""
    problem, prior = ensemble_pendulum(), branching if kind == "given" else PENDULUM
    problem = replace(problem, model=EnsembleTube.paper(replace(pendulum_ensemble(), prior=prior)))
    x0, scale = np.array([math.pi + 0.4, 0.3]), _sweeps.Scale(1e-9, 3.0)
    sweep = _sweeps.general(problem, x0, scale) if kind == "differences" else _sweeps.sweep_of(problem, x0, scale)
    assert sweep.kind == kind
    plans = np.random.default_rng(0).uniform(-1, 1, (5, problem.steps, problem.nu))
    assert np.allclose(sweep.values(plans), [sweep(plan)[0] for plan in plans], rtol=1e-12, atol=1e-13)
    assert not np.allclose(sweep.values(plans[:1]), sweep.values(plans[1:2]))  # control


@settings(max_examples=40, deadline=None)
@given(seed=seeds(), steps=st.integers(1, 5), nu=st.integers(1, 3))
def test_neighbours_differ_in_one_later_input_and_keep_their_distance(seed, steps, nu):
    rng = np.random.default_rng(seed)
    lower, upper = -rng.uniform(0.1, 3, nu), rng.uniform(0.1, 3, nu)
    plan = rng.uniform(lower, upper, (steps, nu))
    plans, entry = neighbours(plan, lower, upper)
    moved = plans != plan
    assert (moved.sum(axis=(1, 2)) == 1).all() and not moved[:, 0].any()
    assert np.array_equal(moved.reshape(len(plans), -1).argmax(axis=1), entry) if len(plans) else steps == 1
    away = (np.abs(plans - plan) / (0.5 * (upper - lower))).max(axis=(1, 2), initial=0.0)
    assert (away >= 0.3).all()
    assert (plans >= lower - 1e-12).all() and (plans <= upper + 1e-12).all()
    assert set(entry) == set(range(nu, steps * nu))  # none is left out
    assert not len(neighbours(plan, lower, np.full(nu, np.inf))[0])


def test_jumps_go_first_where_the_price_of_the_rows_is_least(monkeypatch):
    """One row, c = u_1² − 1 + u_2, with multiplier 2 at (u_0, 1, 0): the other input's lower end promises most."""
    problem, x0 = wave_problem(0)
    search = fast._Search(problem, x0.numpy(), np.ones(1), CondensedSQP(), fast.Work(), math.inf)
    values = lambda plans: plans[:, 1] ** 2 - 1 + plans[:, 2]  # noqa: E731
    search.sweep = replace(search.sweep, values=values)
    best = fast._Point(np.array([[0.2], [1.0], [0.0]]), np.zeros(1), np.array([2.0]), 0.64, 0.0)
    first, second = search.jumps(best)
    assert first.ravel().tolist() in ([0.2, 0.0, 0.0], [0.2, 1.0, -1.0])
    assert {tuple(first.ravel()), tuple(second.ravel())} == {(0.2, 0.0, 0.0), (0.2, 1.0, -1.0)}
    assert search.work.probes == len(_starts.neighbours(best.inputs, search.lower, search.upper)[0])
    monkeypatch.setattr(fast, "JUMPS", 1)
    assert len(search.jumps(best)) == 1


def test_when_a_search_ends():
    problem, x0 = wave_problem(0)
    work = fast.Work()
    search = fast._Search(problem, x0.numpy(), np.ones(1), CondensedSQP(), work, math.inf)
    known, none = (fast._Point(np.zeros((4, 1)), np.zeros(1), np.zeros(1), 1.0, excess) for excess in (0.0, 0.1))
    assert not search.finished(known, fast.CONFIRM) and search.finished(known, 2 * fast.CONFIRM)
    assert not search.finished(none, fast.REFUTE - 1) and search.finished(none, fast.REFUTE)
    work.sweeps = fast.LEAST
    assert search.finished(known, fast.CONFIRM) and not search.finished(known, fast.CONFIRM - 1)
    work.sweeps = CondensedSQP().sweeps
    assert search.finished(known, 0) and search.finished(none, 0)
    search.options = CondensedSQP(fruitless=7)
    work.sweeps = 6
    assert not search.finished(none, 0)
    work.sweeps = 7
    assert search.finished(none, 0) and not search.finished(known, 0)
