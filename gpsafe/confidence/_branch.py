"""Branch and bound over many boxes at once: min g₀ and max g₁ over each, with attained points (theory §5.8).

A round encloses every open cell, tries a point in each that may beat the best one of its box, and closes the cells whose
bound is within the tolerance of the best point. An axis along which the function is proved monotone over the cell is cut to
the end that matters, so that a cell on which everything is monotone becomes a corner, where the posterior itself is evaluated;
other cells are halved along their longest axis. There is no loop over boxes, and no box sees another: budgets are counted box
by box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpsafe.confidence._cells import Objective
from gpsafe.confidence._taylor import Array

ROUNDS = 200
NOISE = 4.0  # a cell within so many margins of rounding of the best point is closed

Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Extremes:
    """Per box and side (0: least, 1: largest).

    Attributes:
        bound: ≤ min g₀ and ≥ max g₁, (N, 2).
        attained: ≥ g₀ and ≤ g₁ at `where`, (N, 2); infinite if no point could be evaluated.
        where: (N, 2, d).
        cells: number of cells that were enclosed, (N, 2).
    """

    bound: Array
    attained: Array
    where: Array
    cells: Index


@dataclass(slots=True)
class _Front:
    """Open cells. Values are those of −g₀ (side 0) and g₁ (side 1): both sides maximise."""

    lower: Array
    upper: Array
    box: Index
    side: Index
    bound: Array

    def take(self, chosen: NDArray[np.bool_] | Index) -> _Front:
        return _Front(self.lower[chosen], self.upper[chosen], self.box[chosen], self.side[chosen], self.bound[chosen])

    def distinct(self) -> tuple[Index, Index]:
        """Which cells there are (the sides share many), and which of them each one is."""
        keys = np.concatenate([self.lower, self.upper], axis=1)
        rows = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).ravel()
        _, some, pick = np.unique(rows, return_index=True, return_inverse=True)
        return some, pick

    def joined(self, other: _Front) -> _Front:
        pairs = ((getattr(self, k), getattr(other, k)) for k in ("lower", "upper", "box", "side", "bound"))
        return _Front(*(np.concatenate(pair) for pair in pairs))


def extremes(objective: Objective, lower: Array, upper: Array, *, tol: float, cells: int) -> Extremes:
    """Of g over boxes [lower, upper], (N, d) ×2, finite and lower ≤ upper.

    Stops at a box where bound and attained differ by at most tol/2 of the attained range (or by rounding) on either side, or
    when `cells` cells have been enclosed for that side.
    """
    count = len(lower)
    best, bound = np.full((2, count, 2), -np.inf)
    slack, used = np.zeros((count, 2)), np.zeros((count, 2), dtype=np.intp)
    where = np.repeat((0.5 * lower + 0.5 * upper)[:, None], 2, axis=1)
    rows = np.arange(count)
    front = _Front(
        np.repeat(lower, 2, axis=0), np.repeat(upper, 2, axis=0), np.repeat(rows, 2), np.tile([0, 1], count),
        np.full(2 * count, np.inf),
    )  # fmt: skip
    for _ in range(ROUNDS):
        if not len(front.box):
            break
        some, pick = front.distinct()
        found = objective.over(front.lower[some], front.upper[some])
        side, line = front.side, np.arange(len(front.box))
        fresh = np.where(side == 1, found.high[pick], -found.low[pick])
        front.bound = np.minimum(front.bound, fresh)
        rise = found.rise[pick, side] * (2 * side - 1)[:, None]
        length = front.upper - front.lower
        free = length > 0
        cut = free & (rise != 0)
        low = np.where(cut & (rise > 0), front.upper, front.lower)
        high = np.where(cut & (rise < 0), front.lower, front.upper)
        spot = np.clip(found.spot[pick, side], low, high)
        closed, box = ~(free & ~cut).any(-1), front.box
        hoped = found.hoped[pick, side] * (2 * side - 1)
        tried = np.flatnonzero(closed | ~(hoped <= best[box, side]))
        inner, outer = np.full(len(box), -np.inf), np.full(len(box), np.inf)
        if len(tried):
            ends, sign = objective.at(spot[tried], side[tried]), side[tried] == 1
            inner[tried] = np.where(sign, ends[0], -ends[1])
            outer[tried] = np.where(sign, ends[1], -ends[0])
        front.bound = np.where(closed, np.minimum(front.bound, outer), front.bound)

        np.maximum.at(best, (box, side), inner)
        ahead = line[(inner == best[box, side]) & (inner > -np.inf)]
        where[box[ahead], side[ahead]] = spot[ahead]
        slack[box[ahead], side[ahead]] = (outer - inner)[ahead]
        np.add.at(used, (box, side), 1)

        width = np.maximum(best.sum(-1), 0.0)
        width = np.where(np.isfinite(width), width, 0.0)
        allowed = np.maximum(0.5 * tol * width[:, None], NOISE * slack)
        done = closed | (front.bound <= (best + allowed)[box, side]) | (used[box, side] >= cells)
        np.maximum.at(bound, (box[done], side[done]), front.bound[done])
        front = _Front(low, high, box, side, front.bound).take(~done)
        front = _split(front, objective.inverse, cut[~done].any(-1))
    np.maximum.at(bound, (front.box, front.side), front.bound)
    bound = np.maximum(bound, np.where(best > -np.inf, best, -np.inf))
    sign = np.array([-1.0, 1.0])
    return Extremes(bound * sign, best * sign, where, used)


def _split(front: _Front, inverse: Array, whole: NDArray[np.bool_]) -> _Front:
    """Halves of the cells along their longest axis in length-scales; those marked `whole` were just cut and stay."""
    rest = front.take(~whole)
    with np.errstate(over="ignore"):
        axis = ((rest.upper - rest.lower) * inverse).argmax(-1)
    line = np.arange(len(axis))
    middle = 0.5 * rest.lower[line, axis] + 0.5 * rest.upper[line, axis]
    left, right = rest.upper.copy(), rest.lower.copy()
    left[line, axis], right[line, axis] = middle, middle
    halves = _Front(rest.lower, left, rest.box, rest.side, rest.bound)
    halves = halves.joined(_Front(right, rest.upper, rest.box, rest.side, rest.bound))
    return front.take(whole).joined(halves)
