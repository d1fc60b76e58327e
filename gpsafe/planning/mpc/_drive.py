"""A start's loop and its sweeps, a survey's, and a plan's nominal path, each in one compiled call."""

from __future__ import annotations

import numpy as np

from gpsafe.planning.mpc import _descent
from gpsafe.planning.mpc._kernel import _member, sweep, workroom
from gpsafe.planning.mpc._lanes import LANES
from gpsafe.planning.mpc._numba import njit


@njit(cache=True)
def _ask(asking, plan, rows, jacobian):
    before, x0, given, after, room, sweeps = asking
    sweep(before, x0, given, plan, after, room, rows, jacobian)
    sweeps[0] += 1


_descend = njit(cache=False)(_descent.descending(_ask))  # `drive` is kept with what it calls


@njit(cache=True)
def drive(
    before, x0, given, after, plan, rows, jacobian, multipliers, learned, weight, lowest, highest, scale, fixed, enough, prune,
    known, least, told,
):  # fmt: skip
    """`descend` answered by `_kernel.sweep`; how many sweeps it took."""
    sweeps = np.zeros(1, np.int64)
    _descend(
        (before, x0, given, after, workroom(before), sweeps), plan, rows, jacobian, multipliers, learned, weight, lowest,
        highest, scale, fixed, enough, prune, known, least, told,
    )  # fmt: skip
    return sweeps[0]


@njit(cache=True)
def values(before, x0, given, after, plans, rows):
    """Rows (B, R) of plans (B, T, nu)."""
    room, nothing = workroom(before), np.zeros((0, 0))
    for b in range(plans.shape[0]):
        sweep(before, x0, given, plans[b], after, room, rows[b], nothing)


@njit(cache=True)
def path(before, x0, plan, out):
    """x̄ of every member (M, T+1, nx) under a plan (T, nu)."""
    everyone, theta, model = before
    room, x = workroom(before), np.empty((x0.shape[0], LANES))
    for group in range(theta.shape[0]):
        first = group * LANES
        for i in range(x0.shape[0]):
            x[i, :] = x0[i]
        for k in range(out.shape[1]):
            for m in range(min(LANES, everyone - first)):
                for i in range(x0.shape[0]):
                    out[first + m, k, i] = x[i, m]
            if k < plan.shape[0]:
                _member(theta[group], model, x, plan[k], np.bool_(False), room)
                for i in range(x0.shape[0]):
                    x[i, :] = room[2][1][i]
