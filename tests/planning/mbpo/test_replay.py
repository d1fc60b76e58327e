"""Rings against a queue, the published order of real and virtual batches, memory."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.planning.mbpo.replay import Ring, memory, real_updates, train, transitions
from gpsafe.planning.mbpo.sac import SAC, Settings
from gpsafe.systems.xmpsc import SafeCartPole


@given(st.integers(1, 7), st.lists(st.integers(0, 17), max_size=6), st.integers(0, 5))
def test_a_ring_holds_what_a_queue_of_its_capacity_holds(capacity: int, sizes: list[int], saved: int) -> None:
    ring, queue, at = Ring(capacity, 1, 1), deque[float](maxlen=capacity), 0
    for number, size in enumerate(sizes):
        if number == saved:
            state, ring = ring.state(), Ring(capacity, 1, 1)
            ring.load(state)
        rows = np.repeat(np.arange(at, at + size, dtype=np.float32)[:, None], 5, 1)
        ring.extend(rows)
        queue.extend(rows[:, 0])
        at += size
        assert sorted(ring.reward) == sorted(queue) and len(ring) == len(queue)
    if len(ring):
        drawn = ring.sample(np.random.default_rng(0), 200)
        assert set(drawn[:, 0]) <= set(queue)
        assert len(set(drawn[:, 0])) == len(queue)  # 200 draws of at most seven


def test_columns_are_where_they_belong() -> None:
    ring = Ring(10, 2, 1)
    ring.add([1.0, 2.0], [3.0], 4.0, [5.0, 6.0], True)
    ring.add(torch.ones(2, 2), torch.zeros(2, 1), [7.0, 8.0], torch.zeros(2, 2), [False, True])
    assert ring.rows[0].tolist() == [1, 2, 3, 4, 5, 6, 1]
    assert ring.x.tolist()[0] == [1, 2] and ring.u.tolist()[0] == [3] and ring.x_next.tolist()[0] == [5, 6]
    assert ring.reward.tolist() == [4, 7, 8] and ring.terminal.tolist() == [1, 0, 1]


def test_the_reward_is_paid_where_a_step_arrives() -> None:
    plant = SafeCartPole()
    x, after = torch.zeros(2, 4), torch.tensor([[0.0, 1.0, 0.3, 0.0], [0.0, 1.0, 0.1, 0.0]], dtype=torch.float64)
    rows = transitions(plant, x, torch.ones(2, 1), after)
    assert rows[:, -1].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(rows[:, 5], [-(1.09 + 1e-4) - 100, -(1.01 + 1e-4)], rtol=1e-6)
    assert rows.dtype == np.float32 and rows.shape == (2, 11)


@pytest.mark.parametrize(
    ("ratio", "group", "real"), [(0.1, 20, 2), (0.1, 10, 1), (0.1, 5, 0), (0.5, 20, 10), (1.0, 20, 20), (0.29, 100, 29)]
)
def test_each_group_begins_with_its_real_batches(ratio: float, group: int, real: int) -> None:
    seen: list[float] = []
    agent = SAC(1, 1, [-1.0], [1.0], [0])
    agent.update = lambda batch, noise: seen.append(float(batch[0, 0, 2]))  # type: ignore[method-assign]
    rings = [Ring(4, 1, 1), Ring(4, 1, 1)]
    for value, ring in enumerate(rings):
        ring.add([0.0], [0.0], float(value), [0.0], False)
    empty = [Ring(4, 1, 1)]
    train(agent, rings[:1], rings[1:], 2 * group, group=group, real_ratio=ratio, batch=3)
    assert seen == 2 * ([0.0] * real + [1.0] * (group - real)) and real_updates(ratio, group) == real
    for virtual in (None, empty):
        seen.clear()
        train(agent, rings[:1], virtual, 7, group=group, real_ratio=ratio, batch=3)
        assert seen == [0.0] * 7
    with pytest.raises(ValueError, match="1 virtual rings"):
        train(agent, rings[:1], rings, 7, group=group, real_ratio=ratio)


def test_memory_is_that_of_the_rows() -> None:
    assert memory(1000, 12, 4) == Ring(1000, 12, 4)._store.nbytes == 1000 * 30 * 4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda r: r.extend(np.zeros((2, 4), np.float32)), r"rows of shape \(n, 5\)"),
        (lambda r: r.extend(np.full((1, 5), np.nan, np.float32)), "finite rows"),
        (lambda r: r.sample(np.random.default_rng(0), 1), "at least one"),
        (lambda r: r.load({"rows": np.zeros((4, 5)), "next": 0}), "capacity 3"),
        (lambda r: r.load({"rows": np.zeros((3, 5)), "next": 3}), "capacity 3"),
        (lambda r: r.load({"rows": np.zeros((2, 5)), "next": 1}), "capacity 3"),
        (lambda _: Ring(0, 1, 1), "capacity"),
        (lambda _: real_updates(1.5, 3), "real_ratio"),
    ],
)
def test_what_does_not_fit_is_refused(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(Ring(3, 1, 1))


def test_divergence_is_named() -> None:
    rings = [Ring(9, 1, 1), Ring(9, 1, 1)]
    for ring in rings:
        ring.add([0.0], [0.0], 0.0, [0.0], False)
    agent = SAC(1, 1, [-1.0], [1.0], [7, 8], Settings(hidden=(4,)))
    agent.critic.flat[1, 0] = np.inf
    with pytest.raises(ValueError, match=r"divergence of seeds \[8\]"):
        train(agent, rings, None, 3, group=1, real_ratio=1.0, batch=4)
