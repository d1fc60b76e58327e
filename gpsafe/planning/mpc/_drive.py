"""A start's loop and its sweeps, and a survey's, each in one compiled call."""

from __future__ import annotations

import numpy as np

from gpsafe.planning.mpc import _descent
from gpsafe.planning.mpc._kernel import sweep, workroom
from gpsafe.planning.mpc._numba import njit

_descend = njit(cache=False)(_descent.descend)  # numba forgets what a generator is when it loads one from disk


@njit(cache=True)
def drive(
    before, x0, given, after, plan, rows, jacobian, multipliers, learned, weight, lowest, highest, scale, fixed, enough, prune,
    known, least, told,
):  # fmt: skip
    """`_descent.descend` answered by `_kernel.sweep`; how many sweeps it took."""
    sweeps, room = 0, workroom(before)
    for _ in _descend(
        plan, rows, jacobian, multipliers, learned, weight, lowest, highest, scale, fixed, enough, prune, known, least, told
    ):  # fmt: skip
        sweep(before, x0, given, plan, after, room, rows, jacobian)
        sweeps += 1
    return sweeps


@njit(cache=True)
def values(before, x0, given, after, plans, rows):
    """Rows (B, R) of plans (B, T, nu)."""
    room, nothing = workroom(before), np.zeros((0, 0))
    for b in range(plans.shape[0]):
        sweep(before, x0, given, plans[b], after, room, rows[b], nothing)
