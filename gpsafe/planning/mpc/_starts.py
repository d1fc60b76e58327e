"""Where the condensed SQP starts: see :class:`gpsafe.planning.mpc.fast.CondensedSQP`."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST = 1500  # stages of all patterns that are ranked, at most
TOWARDS = 0.8  # a pattern's first input: how far from the best plan's towards the proposed one
APART = 2  # blocks in which a pattern differs from all that were taken before
TURNED = 3  # starts made from the best plan


class Starts:
    """Plans (T, nu) within [lower, upper], one after another, none of them twice.

    First `plain`, (u_L, 0, …, 0). Then, where `violations` can rank them, patterns: a first input between the best plan's and
    the proposed one, since only plans with such a one are better; and blocks, each at the lower end, the middle or the upper
    end of the inputs. Those with the least violation come first.

    After the patterns, or before them while no plan is known: the upper end once and then the lower, the lower once and then
    the upper. At last the best plan mirrored, and with its last two inputs at the lower and at the upper end: late inputs act
    on the terminal set through the spread more than through the mean, and have optima at both ends.
    """

    def __init__(
        self,
        steps: int,
        lower: Array,
        upper: Array,
        learned: Array,
        most: int,
        violations: Callable[[Array, Array, NDArray[np.int64]], Array] | None,
    ) -> None:
        self.steps, self.lower, self.upper, self.most, self.violations = steps, lower, upper, most, violations
        nu = len(lower)
        self.wanted = np.clip(learned, lower, upper)
        self.bounded = bool(np.isfinite(upper - lower).all())
        choices = 3**nu
        blocks = min(steps - 1, int(np.log(MOST / steps) / np.log(choices)))
        if blocks < 1 or not self.bounded:
            self.violations = None
        else:
            self.values = np.array(list(itertools.product(*zip(lower, 0.5 * (lower + upper), upper, strict=True))))
            self.lengths = np.array([len(part) for part in np.array_split(np.arange(steps - 1), blocks)][::-1])
            self.digits = np.stack(np.unravel_index(np.arange(choices**blocks), (choices,) * blocks), axis=-1)
        self.given, self.turns = 0, 0
        self.tried: list[Array] = []
        self.taken: list[NDArray[np.int64]] = []
        self.first: Array | None = None
        self.ranking: NDArray[np.int64] = np.zeros(0, np.int64)

    def plain(self) -> Array:
        """The first one."""
        self.given = 1
        once = np.clip(np.zeros((self.steps, len(self.lower))), self.lower, self.upper)
        once[0] = self.wanted
        self.tried = [once]
        return once

    def later(self, best: Array, feasible: bool) -> Array | None:
        """The next one, given the best plan so far (T, nu) and whether it is feasible; None if there is none."""
        if self.given >= self.most or not self.bounded:
            return None
        self.given += 1
        sources = (self._pattern, self._pair, self._turned) if feasible else (self._pair, self._turned, self._pattern)
        return next((plan for plan in (source(best, feasible) for source in sources) if plan is not None), None)

    def _pair(self, best: Array, feasible: bool) -> Array | None:
        for first, rest in ((self.upper, self.lower), (self.lower, self.upper)):
            plan = np.vstack([first, np.tile(rest, (self.steps - 1, 1))])
            if not any(np.array_equal(plan, one) for one in self.tried):
                self.tried.append(plan)
                return plan
        return None

    def _turned(self, best: Array, feasible: bool) -> Array | None:
        self.turns += 1
        if self.turns > TURNED:
            return None
        if self.turns == 1:
            return self.lower + self.upper - best
        plan = best.copy()
        plan[-2:] = self.lower if self.turns == 2 else self.upper
        return plan

    def _pattern(self, best: Array, feasible: bool) -> Array | None:
        if self.violations is None:
            return None
        known = best[0] if feasible else self.lower + self.upper - self.wanted
        first = known + TOWARDS * (self.wanted - known)
        if self.first is None or not np.array_equal(first, self.first):
            found = self.violations(first, self.values, self.lengths)
            self.first, self.ranking = first, np.argsort(found, kind="stable")[: int(np.isfinite(found).sum())]
        for leaf in self.ranking:
            digits = self.digits[leaf]
            if all((digits != one).sum() >= min(APART, len(digits)) for one in self.taken):
                self.taken.append(digits)
                return np.vstack([first, np.repeat(self.values[digits], self.lengths, axis=0)])
        return None
