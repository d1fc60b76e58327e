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
