"""What contestants share, and what is truly safe: against stopping distances and naive loops."""

from __future__ import annotations

import pytest
import torch

from gpsafe.comparison import TASKS, Contest, task
from gpsafe.comparison.contest import joined
from gpsafe.linalg import vector
from gpsafe.sets import Box
from gpsafe.systems import AffineKnown, IndicatorCost
from gpsafe.systems.base import CallableSystem

DT = 0.1
A, B = vector(1.0, DT, 0.0, 1.0).reshape(2, 2), vector(0.5 * DT**2, DT).reshape(2, 1)


def carriage(noise=1e-3):
    """A double integrator, |u| ≤ 1, that must stay at positions ≤ 1."""
    reach = vector(2.0, 2.0)
    return CallableSystem(
        name="carriage", nx=2, nu=1, state_box=Box(-reach, reach), input_box=Box(vector(-1.0), vector(1.0)),
        noise_std=vector(noise, noise), initial_state=vector(0.0, 0.0), horizon=12,
        cost=IndicatorCost(vector(1.0, 0.0).reshape(1, 2), vector(1.0)), budget=0.1,
        dynamics=lambda x, u: x @ A.mT + u @ B.mT, reward_fn=lambda x, u: x[..., 0],
    )  # fmt: skip


def law(x):
    return torch.clamp(-(x @ vector(1.0, 2.0).reshape(2, 1)), -1.0, 1.0)


def contest(**changes):
    known = AffineKnown(A, 0.9 * B, vector(0.0, 0.0))
    return Contest.create(carriage(), known, **{"law": law, "episodes": 2, **changes})


def test_recoverable_is_between_two_stopping_distances():
    found, x = (
        contest(recovery=80),
        Box(vector(-2.0, -2.0), vector(2.0, 2.0)).sample(400, torch.Generator().manual_seed(0)),
    )
    position, speed = x.unbind(-1)
    speed = speed.clamp_min(0.0)
    stops_at = position + 0.5 * speed.square()  # with full brakes; steps of DT round by less than speed·DT
    good = found.recoverable(x)
    assert not bool(good[stops_at > 1.0].any())  # a lower bound: never too many
    sure = stops_at + 2 * speed * DT < 1.0 - 0.4  # the controller, or a corner held for 1, 2, 4 … steps, wastes some
    assert int(sure.sum()) > 50
    assert float(good[sure].double().mean()) > 0.9


def test_pairs_are_of_recoverable_states_and_know_whether_the_next_one_is():
    found = contest()
    x, u, good = found.pairs(60)
    assert x.shape == (60, 2) and u.shape == (60, 1)
    assert bool(found.recoverable(x).all())
    after = carriage().mean(x, u)
    assert torch.equal(good, found.recoverable(after) & (after[:, 0] <= 1.0))
    assert 0 < int(good.sum()) < 60


def test_coverage_counts_goals_near_a_visited_state():
    found, generator = contest(radius=0.2), torch.Generator().manual_seed(1)
    goals, visited = (Box(vector(-2.0, -2.0), vector(2.0, 2.0)).sample(n, generator) for n in (30, 7))
    naive = [any(bool(((g - v).abs() / 2.0 <= 0.2).all()) for v in visited) for g in goals]
    assert found.covered(goals, visited).tolist() == naive


def test_first_data_are_those_of_the_seed_and_of_the_plant():
    one, same, other = contest(seed=3), contest(seed=3), contest(seed=4)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one.offline, same.offline, strict=True))
    assert not torch.equal(one.offline[0][0], other.offline[0][0])
    rows = joined(one.offline)
    residual = rows.x_next - carriage().mean(rows.x, rows.u)
    assert float(residual.abs().max()) < 6e-3
    assert len(joined(one.offline, 3)) == 2 * 4


@pytest.mark.parametrize("name", TASKS)
def test_every_task_begins_recoverable_and_its_data_keep_to_its_own_inputs(name):
    found = task(name, 1)
    assert bool(found.recoverable(found.plant.initial_state.unsqueeze(0)).all())
    assert all(bool(found.plant.input_box.contains(u).all()) for _, u in found.offline)
    x, _, good = found.pairs(12)
    assert len(x) == 12 and bool(good.any())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"law": None}, "a safe controller"),
        ({"region": Box(vector(-1e5, -1.0), vector(1e5, 1.0))}, "finite sides"),
        ({"kernels": ()}, "kernels and rkhs_norm together"),
        ({"noise_std": vector(0.0, 1e-3), "outputs": (0,)}, "positive noise_std"),
        ({"budget": float("nan")}, "budget"),
        ({"episodes": 0}, "episodes"),
    ],
)
def test_what_makes_no_contest_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        contest(**changes)


def test_a_task_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="cart-pole"):
        task("kart-pole")
