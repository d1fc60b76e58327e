"""Branch and bound against the same rules followed by one box and one cell at a time."""

import numpy as np
import pytest
from range_cases import problem

from gpsafe.confidence import _branch
from gpsafe.confidence._branch import _Front, _split, extremes
from gpsafe.confidence._cells import Cells


def one_by_one(objective, lower, upper, *, tol, cells, rounds):
    """Bound, attained, where and number of cells of one box, sides one after the other within a round."""
    best, bound, slack, used = [-np.inf] * 2, [-np.inf] * 2, [0.0] * 2, [0] * 2
    where = [0.5 * lower + 0.5 * upper] * 2
    fronts = [[(lower, upper, np.inf)], [(lower, upper, np.inf)]]
    for _ in range(rounds):
        seen: list[list] = [[], []]
        for side in (0, 1):
            sign = 2 * side - 1
            for low, high, old in fronts[side]:
                found = objective.over(low[None], high[None])
                top = min(old, found.high[0] if side else -found.low[0])
                rise, low, high, cut = found.rise[0, side] * sign, low.copy(), high.copy(), False
                free = 0
                for i in range(len(low)):
                    if low[i] == high[i]:
                        continue
                    if rise[i] > 0:
                        low[i], cut = high[i], True
                    elif rise[i] < 0:
                        high[i], cut = low[i], True
                    else:
                        free += 1
                spot = np.clip(found.spot[0, side], low, high)
                inner, outer = -np.inf, np.inf
                if not free or sign * found.hoped[0, side] > best[side]:
                    ends = [float(v[0]) for v in objective.at(spot[None], np.array([side]))]
                    inner, outer = ends if side else (-ends[1], -ends[0])
                if not free:
                    top = min(top, outer)
                seen[side].append((low, high, top, cut, not free, inner, outer, spot))
                used[side] += 1
            best[side] = max([best[side], *(cell[5] for cell in seen[side])])
            for *_, inner, outer, spot in seen[side]:
                if inner == best[side] > -np.inf:
                    where[side], slack[side] = spot, outer - inner
        width = max(best[0] + best[1], 0.0) if np.isfinite(best[0] + best[1]) else 0.0
        for side in (0, 1):
            whole, left, right = [], [], []
            for low, high, top, cut, closed, *_ in seen[side]:
                if closed or top <= best[side] + max(0.5 * tol * width, 4 * slack[side]) or used[side] >= cells:
                    bound[side] = max(bound[side], top)
                elif cut:
                    whole.append((low, high, top))
                else:
                    axis = int(((high - low) * objective.inverse).argmax())
                    middle = 0.5 * low[axis] + 0.5 * high[axis]
                    first, second = high.copy(), low.copy()
                    first[axis] = second[axis] = middle
                    left.append((low, first, top))
                    right.append((second, high, top))
            fronts[side] = whole + left + right
        if not (fronts[0] or fronts[1]):
            break
    bound = [max([bound[s], best[s], *(top for *_, top in fronts[s])]) for s in (0, 1)]
    return [-bound[0], bound[1]], [-best[0], best[1]], where, used


@pytest.mark.parametrize(
    ("seed", "d", "noise", "unknown", "tol", "cells", "rounds"),
    [
        (0, 1, 0.0, -np.inf, 1e-3, 10_000, 200),
        (1, 2, 0.0, -np.inf, 1e-2, 10_000, 200),
        (2, 2, 1e-3, -np.inf, 1e-3, 10_000, 200),
        (3, 3, 1e-3, -0.2, 0.05, 60, 200),
        (4, 2, 0.0, 0.1, 1e-4, 25, 200),
        (5, 2, 1e-4, 3.0, 1e-4, 10, 200),
        (6, 2, 0.0, -np.inf, 1e-6, 10_000, 4),
    ],
)
def test_boxes_together_are_boxes_one_by_one(seed, d, noise, unknown, tol, cells, rounds, monkeypatch):
    objective, lower, upper = problem(seed, d, noise, unknown)
    monkeypatch.setattr(_branch, "ROUNDS", rounds)
    found = extremes(objective, lower, upper, tol=tol, cells=cells)
    for n in range(len(lower)):
        bound, attained, where, used = one_by_one(objective, lower[n], upper[n], tol=tol, cells=cells, rounds=rounds)
        assert found.bound[n].tolist() == bound
        assert found.attained[n].tolist() == attained
        assert np.array_equal(found.where[n], where)
        assert found.cells[n].tolist() == used
        z = lower[n] + (upper[n] - lower[n]) * np.random.default_rng(n).random((300, d))
        assert found.bound[n, 0] <= objective.value(z).min() and found.bound[n, 1] >= objective.value(z).max() + 0.01
    if unknown == 3.0:
        assert np.isinf(found.attained).all() and (found.cells >= cells).any()
    elif cells > 1000 and rounds > 100:
        gap = np.maximum(found.attained - found.bound, found.bound - found.attained).max(-1)
        assert (
            gap <= np.maximum(0.5 * tol * (found.attained[:, 1] - found.attained[:, 0]), 4 * 4 * noise) + 1e-15
        ).all()


def test_the_number_of_rounds_is_bounded():
    """Cells at 0 never close: one and two more a round."""

    class Blind:
        inverse = np.ones(1)

        def over(self, lower, upper):
            high = np.where(lower[:, 0] == 0, np.inf, 0.0)
            hoped = np.stack([-high, high], axis=1)
            return Cells(-high, high, np.repeat(upper[:, None], 2, axis=1), np.zeros((len(lower), 2, 1)), hoped)

        def at(self, points, side):
            return np.zeros(len(points)), np.zeros(len(points))

    found = extremes(Blind(), np.zeros((1, 1)), np.ones((1, 1)), tol=0.01, cells=10**6)
    assert found.cells.tolist() == [[1 + 2 * 199] * 2]
    assert found.bound.tolist() == [[-np.inf, np.inf]]
    assert _branch.NOISE == 4.0


def test_fronts_are_taken_joined_and_split_column_by_column():
    rng = np.random.default_rng(0)
    lower = rng.random((4, 2))
    upper = lower + np.array([[1.0, 3.0], [2.0, 3.0], [1.0, 1.0], [5.0, 0.0]])
    front = _Front(lower, upper, np.arange(4) + 10, np.arange(4) + 20, np.arange(4) / 8)
    names = ("lower", "upper", "box", "side", "bound")
    for chosen in (np.array([2, 0]), np.array([True, False, False, True])):
        part, both = front.take(chosen), front.take(chosen).joined(front)
        for name in names:
            column = getattr(front, name)
            assert np.array_equal(getattr(part, name), column[chosen])
            assert np.array_equal(getattr(both, name), np.concatenate([column[chosen], column]))
    found = _split(front, np.array([1.0, 0.5]), np.array([False, True, False, False]))
    assert found.box.tolist() == [11, 10, 12, 13, 10, 12, 13]
    assert found.side.tolist() == [21, 20, 22, 23, 20, 22, 23]
    assert found.bound.tolist() == [0.125, 0.0, 0.25, 0.375, 0.0, 0.25, 0.375]
    for k, (n, axis) in enumerate(((0, 1), (2, 0), (3, 0))):
        low, high = front.lower[n], front.upper[n]
        for part, (a, b) in ((1 + k, (0.0, 0.5)), (4 + k, (0.5, 1.0))):
            ends = low.copy(), high.copy()
            ends[0][axis], ends[1][axis] = (low[axis] + t * (high[axis] - low[axis]) for t in (a, b))
            np.testing.assert_allclose(found.lower[part], ends[0], rtol=1e-15)
            np.testing.assert_allclose(found.upper[part], ends[1], rtol=1e-15)
    huge = _Front(np.full((1, 2), -1e308), np.full((1, 2), 1e308), *np.zeros((2, 1), dtype=np.intp), np.zeros(1))
    assert _split(huge, np.ones(2), np.array([False])).upper.tolist() == [[0.0, 1e308], [1e308, 1e308]]
