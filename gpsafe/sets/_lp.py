"""Small linear programs in exact arithmetic: no tolerance anywhere, hence no dependence on the scale of rows or columns.

Floats are rationals, so the simplex method can run on integers: the dictionary keeps the integers D·a_ij for its determinant D,
and a pivot divides by the last D without remainder (Edmonds 1967; Bareiss 1968; lrs of Avis is built alike). Whether a set is
empty, whether a row is implied, and what a maximum is are then facts about the stored numbers. Rounding happens once, when an
answer becomes a float, in the direction that the caller names (`down`, `nearest`, `up`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rational = float | Fraction  # ±inf stand for no value
Status = Literal["optimal", "unbounded", "infeasible"]
PATIENCE = 12  # pivots without progress before Bland's rule, which cannot cycle


class Answer(NamedTuple):
    """Of max n·x over Hx ≤ h.

    Attributes:
        status: decided exactly.
        value: the maximum; inf if unbounded, −inf if infeasible.
        point: a maximiser, (d,); empty if there is none.
        multipliers: y ≥ 0 by row, those that are not 0, which prove the answer. Optimal: Hᵀy = n and h·y = value. Infeasible
            (Farkas): Hᵀy = 0 and h·y < 0. Unbounded: none.
    """

    status: Status
    value: Rational
    point: tuple[Fraction, ...] = ()
    multipliers: Mapping[int, Fraction] = MappingProxyType({})


class Program:
    """{x : Hx ≤ h} for H (k, d) and h (k,) of finite floats or fractions, ready to be maximised over in many directions.

    The dictionary: every slack s_i = h_i − H_i x and every x_j is either one of d non-basic variables t, or basic,
    D·v_i = table[i, 0] − Σ_j table[i, j] t_j. Variables: slacks are 0 … k−1, coordinates k … k+d−1. A search starts from the
    vertex at which the last one ended.
    """

    def __init__(self, H: Iterable[Sequence[Rational]], h: Iterable[Rational]) -> None:
        rows = [_integers([offset, *row]) for row, offset in zip(H, h, strict=True)]
        self.dim, self.rows = len(rows[0][0]) - 1, len(rows)
        self._table = np.array([row for row, _ in rows], dtype=object)
        self._scale = [scale for _, scale in rows]
        self._size = [max(map(abs, row[1:])) for row, _ in rows]
        self._determinant = 1
        self._basic = list(range(self.rows))
        self._other = list(range(self.rows, self.rows + self.dim))  # the non-basic variable of column j + 1
        for column in range(1, self.dim + 1):  # coordinates become basic; those that cannot are free of all rows
            usable = [i for i, v in enumerate(self._basic) if v < self.rows and self._table[i, column] != 0]
            if usable:
                self._pivot(usable[0], column)
        self._refutation: dict[int, Fraction] | None = self._find_vertex()

    @property
    def empty(self) -> bool:
        """Whether no x satisfies Hx ≤ h."""
        return self._refutation is not None

    def maximize(self, objective: Sequence[Rational]) -> Answer:
        """max n·x, n (d,)."""
        if self._refutation is not None:
            return Answer("infeasible", -math.inf, (), self._refutation)
        goal, scale = _integers(objective)
        row: Any = np.zeros(self.dim + 1, dtype=object)
        for i, v in enumerate(self._basic):
            if v >= self.rows:
                row = row + goal[v - self.rows] * self._table[i]
        for j, v in enumerate(self._other):
            if v >= self.rows:
                row[j + 1] -= goal[v - self.rows] * self._determinant
        self._table = np.vstack([self._table, row])
        bounded = self._climb(self.rows)
        last, self._table = self._table[-1], self._table[:-1]
        if not bounded:
            return Answer("unbounded", math.inf)
        value = last[0] / (self._determinant * scale)
        return Answer("optimal", value, self._point(), self._multipliers(last, scale))

    # ------------------------------------------------------------------------------------------------ the simplex method
    def _find_vertex(self) -> dict[int, Fraction] | None:
        """Makes all slacks ≥ 0, one after the other; multipliers that refute Hx ≤ h if one cannot be."""
        for slack in range(self.rows):
            while slack in self._basic:
                row = self._basic.index(slack)
                if self._table[row, 0] >= 0:
                    break
                self._climb(row)
                if self._basic[row] == slack and self._table[row, 0] < 0:
                    found = self._multipliers(self._table[row], Fraction(1))
                    return {**found, slack: found.get(slack, Fraction(0)) + self._scale[slack]}
        return None

    def _climb(self, row: int) -> bool:
        """Raises the variable of a row, over the slacks that are ≥ 0: to its maximum, or to 0 if it starts below as a slack.

        Returns:
            False if there is no maximum.
        """
        idle = 0
        while True:
            goal = self._table[row, 1:]
            if row == self.rows and any(c != 0 and v >= self.rows for c, v in zip(goal, self._other, strict=True)):
                return False
            columns = [j for j, c in enumerate(goal) if c < 0]
            if not columns:
                return True
            if idle > PATIENCE:
                column = min(columns, key=self._other.__getitem__)
            else:
                column = min(columns, key=lambda j: goal[j] * self._size[self._other[j]])
            blocking = self._blocking(column + 1, row)
            if blocking is None:
                return False
            idle = 0 if self._table[blocking, 0] else idle + 1
            self._pivot(blocking, column + 1)
            if row < self.rows and (blocking == row or self._table[row, 0] >= 0):
                return True

    def _blocking(self, column: int, target: int) -> int | None:
        """The row whose slack is the first to be 0 as the variable of a column grows, the least variable among equals."""
        best, top, bottom = None, 0, 1
        entries, offsets = self._table[:, column], self._table[:, 0]
        for i, v in enumerate(self._basic):
            a, b = entries[i], offsets[i]
            if v >= self.rows or (a <= 0 if b >= 0 else i != target):
                continue
            a, b = (a, b) if a > 0 else (-a, -b)
            order = -1 if best is None else b * bottom - top * a
            if order < 0 or (order == 0 and best is not None and v < self._basic[best]):
                best, top, bottom = i, b, a
        return best

    def _pivot(self, row: int, column: int) -> None:
        """Exchanges the basic variable of a row and the non-basic one of a column."""
        table, old = self._table, self._determinant
        along, across, new = table[row].copy(), table[:, column].copy(), table[row, column]
        table = (table * new - np.outer(across, along)) // old
        table[row], table[:, column], table[row, column] = along, -across, old
        self._table, self._determinant = (table, new) if new > 0 else (-table, -new)
        self._basic[row], self._other[column - 1] = self._other[column - 1], self._basic[row]

    # ----------------------------------------------------------------------------------------------------------- answers
    def _point(self) -> tuple[Fraction, ...]:
        point = [Fraction(0)] * self.dim
        for i, v in enumerate(self._basic):
            if v >= self.rows:
                point[v - self.rows] = Fraction(self._table[i, 0], self._determinant)
        return tuple(point)

    def _multipliers(self, row: Any, scale: Fraction) -> dict[int, Fraction]:
        by = self._determinant * scale
        slacks = ((v, c) for v, c in zip(self._other, row[1:], strict=True) if v < self.rows and c != 0)
        return {v: Fraction(c * self._scale[v], by) for v, c in slacks}


def _integers(numbers: Iterable[Rational]) -> tuple[list[int], Fraction]:
    """The least integers that are a positive multiple of the numbers, and that multiple."""
    pairs = [number.as_integer_ratio() for number in numbers]
    common = math.lcm(*(bottom for _, bottom in pairs))
    whole = [top * (common // bottom) for top, bottom in pairs]
    factor = math.gcd(*whole) or 1
    return [number // factor for number in whole], Fraction(common, factor)


# ------------------------------------------------------------------------------------------------------------- rounding
def dot(a: Iterable[Rational], b: Iterable[Rational]) -> Fraction:
    """Σ a_i b_i, exactly."""
    return sum((Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True) if x and y), Fraction(0))


def nearest(value: Rational) -> float:
    """The float closest to a value; ±inf beyond the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def up(value: Rational) -> float:
    """The least float ≥ a value."""
    rounded = nearest(value)
    return rounded if rounded >= value else math.nextafter(rounded, math.inf)


def down(value: Rational) -> float:
    """The greatest float ≤ a value."""
    return -up(-value)
