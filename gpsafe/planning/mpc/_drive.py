"""A start's loop and its sweeps in one compiled call."""

from __future__ import annotations

from gpsafe.planning.mpc import _descent
from gpsafe.planning.mpc._kernel import sweep
from gpsafe.planning.mpc._numba import njit

_descend = njit(cache=False)(_descent.descend)  # numba forgets what a generator is when it loads one from disk


@njit(cache=True)
def drive(
    before, x0, given, after, plan, rows, jacobian, learned, weight, lowest, highest, scale, fixed, enough, prune, known,
    least, told,
):  # fmt: skip
    """`_descent.descend` answered by `_kernel.sweep`; how many sweeps it took."""
    sweeps = 0
    for _ in _descend(
        plan, rows, jacobian, learned, weight, lowest, highest, scale, fixed, enough, prune, known, least, told
    ):
        sweep(before, x0, given, plan, after, rows, jacobian)
        sweeps += 1
    return sweeps
