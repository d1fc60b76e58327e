"""LBPO: the barrier, why the published form cannot learn, and what the corrected one keeps."""

import math

import numpy as np
import pytest
from baseline_cases import toy

from gpsafe.baselines import LBPO, Frame
from gpsafe.baselines.lbpo import barrier
from gpsafe.systems import SimplePendulum

FRAME = Frame(steps=200, plants=10, hidden=(8,), decay=1.0, cost_decay=1.0)


def test_the_barrier_has_slope_weight_over_room_and_no_end_inside():
    room, weight, small = 0.02, 0.01, 1e-7
    assert barrier(0.0, room, weight) == 0.0
    slope = (barrier(small, room, weight) - barrier(-small, room, weight)) / (2 * small)
    assert math.isclose(slope, weight / room, rel_tol=1e-6)
    values = [barrier(room * (1 - 10.0**-k), room, weight) for k in range(1, 12)]
    assert values == sorted(values) and math.isclose(values[-1], weight * 11 * math.log(10), rel_tol=1e-3)
    assert barrier(room, room, weight) == barrier(2 * room, room, weight) == math.inf
    assert barrier(-room, room, weight) < 0


def weights(learner: LBPO) -> np.ndarray:
    return learner._parts["policy"].flat.copy()


def test_published_with_limit_0_never_moves_without_a_violation():
    one = LBPO(SimplePendulum(), preset="published", frame=FRAME, critic_steps=2)
    start = weights(one)
    one.learn(2)
    assert [row["room"] for row in one.logger.rows] == [0.0, 0.0] and one.totals["train"]["violations"] == 0
    assert np.array_equal(weights(one), start)


def test_published_counts_an_episode_that_ends_by_a_violation_as_all_there_is():
    one = LBPO(toy(), preset="published", frame=FRAME, critic_steps=2)
    one._parts["policy"].layers[-1][1][:] = 3.0  # an actor that pushes against the wall
    one.learn(1)
    row = one.logger.rows[0]
    assert row["violations"] > 0 and row["episodes"] == row["violations"]  # no time-out ends an episode
    assert math.isclose(row["room"], -0.01) and one._parts["numbers"]["cost"] == 1.0


def test_with_room_the_corrected_form_moves_within_its_barrier_and_its_trust_region():
    one = LBPO(SimplePendulum(), frame=FRAME, critic_steps=20)
    start = weights(one)
    one.learn(1)
    row = one.logger.rows[0]
    assert math.isclose(row["room"], 0.01 * 0.05) and 0 < row["kl"] <= one.radius and row["share"] > 0
    assert not np.array_equal(weights(one), start)
    seen, at = np.zeros((50, 2)), one._parts
    seen += np.random.default_rng(0).normal(size=seen.shape)
    risk = [
        at["trusted"](np.concatenate([seen, np.tanh(net(seen)[-1])], -1))[-1].mean()
        for net in (at["policy"], at["baseline"])
    ]
    assert np.isfinite(risk).all()


def test_above_the_limit_the_expected_cost_alone_is_lowered():
    one = LBPO(toy(), frame=FRAME, critic_steps=60, limit=1e-6)
    one._parts["policy"].layers[-1][1][:] = 1.0
    one.learn(1)
    assert one.logger.rows[0]["room"] < 0
    data = {}
    improve = LBPO._improve

    def spied(self, found):
        critic = self._parts["critic"]

        def cost() -> float:
            return float(critic(np.concatenate([found.rows, self._mean(found.rows)], -1))[-1][1].mean())

        data["before"] = cost()
        row = improve(self, found)
        data["after"] = cost()
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LBPO, "_improve", spied)
        one.learn(1)
    assert one.logger.rows[1]["room"] < 0 and one.logger.rows[1]["share"] > 0
    assert data["after"] < data["before"]


def spied(one: LBPO, batches: int) -> list[dict]:
    """Of each update: what ε was made of, Δ, and E Q_r before and after."""
    found, improve = [], LBPO._improve

    def spy(self, data):
        at, rows = self._parts, data.rows

        def worth(i: int) -> float:
            return float(at["critic"](np.concatenate([rows, self._mean(rows)], -1))[-1][i].mean())

        before = worth(0), worth(1)
        row = improve(self, data)
        old = np.tanh(at["baseline"](rows)[-1])
        change = float(self._risk(self._mean(rows), rows)) - float(self._risk(old, rows))
        found.append(
            {**row, "gain": worth(0) - before[0], "more": worth(1) - before[1], "change": change, "data": data}
        )
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LBPO, "_improve", spy)
        one.learn(batches)
    return found


@pytest.mark.parametrize(("limit", "weight"), [(0.02, 0.01), (0.2, 0.01), (1e-3, 1e-9)])
def test_the_corrected_step_climbs_its_objective_and_stays_within_the_barrier(limit, weight):
    found = spied(LBPO(SimplePendulum(), frame=FRAME, critic_steps=5, limit=limit, weight=weight), 6)
    taken = [row for row in found if row["share"] > 0]
    assert len(taken) >= 3 and all(row["gain"] > barrier(row["change"], row["room"], weight) for row in taken)
    for row in found:
        assert math.isclose(row["room"], 0.01 * (limit - row["data"].discounted), rel_tol=1e-9)
        assert row["change"] < row["room"]


def test_control_without_its_barrier_the_step_leaves_it(monkeypatch):
    monkeypatch.setattr("gpsafe.baselines.lbpo.barrier", lambda change, room, weight: 0.0)
    monkeypatch.setattr(LBPO, "_mix", lambda self, rows, anchor, room: None)
    learner = LBPO(SimplePendulum(), frame=FRAME, critic_steps=5, limit=1e-3, weight=1e-9)
    assert any(row["change"] > row["room"] > 0 for row in spied(learner, 6))


def test_the_discounted_cost_of_an_episode_is_what_the_corrected_room_is_made_of():
    (row,) = spied(LBPO(toy(), frame=FRAME, critic_steps=2, limit=0.9), 1)
    data = row["data"]
    assert 0 < data.discounted < data.cost and math.isclose(row["room"], 0.01 * (0.9 - data.discounted))


def test_a_published_step_is_mixed_back_until_the_cost_rises_by_the_room_at_most():
    one = LBPO(toy(), preset="published", frame=FRAME, critic_steps=20, limit=2.0)
    one._parts["policy"].layers[-1][1][:] = 3.0
    found = spied(one, 3)
    assert all(
        math.isclose(row["room"], 0.01 * (2.0 - row["data"].cost)) and row["data"].cost in (0.0, 1.0) for row in found
    )
    assert all(row["change"] <= row["room"] for row in found)


def test_mixing_halves_the_way_to_the_baseline_until_the_room_is_kept():
    one, rows = LBPO(toy(), frame=FRAME), np.linspace(-1, 1, 40)[:, None]
    at = one._parts
    at["trusted"].randomise(np.random.default_rng(0))
    at["baseline"].flat[:] = start = at["policy"].flat.copy()
    anchor = float(one._risk(one._mean(rows), rows))
    far = start + np.random.default_rng(1).normal(size=start.shape)
    at["policy"].flat[:] = far
    if one._risk(one._mean(rows), rows) < anchor:
        at["trusted"].layers[-1][0][:] *= -1
        anchor = float(one._risk(np.tanh(at["baseline"](rows)[-1]), rows))
    change = float(one._risk(one._mean(rows), rows)) - anchor
    for room in (2 * change, 0.3 * change, 0.01 * change):
        at["policy"].flat[:] = far
        one._mix(rows, anchor, room)
        shares = (at["policy"].flat - start) / (far - start)
        halvings = -np.log2(shares.mean())
        np.testing.assert_allclose(shares, shares.mean(), rtol=1e-6)
        assert float(one._risk(one._mean(rows), rows)) - anchor <= room and abs(halvings - round(halvings)) < 1e-6
        assert (round(halvings) == 0) == (room > change)
