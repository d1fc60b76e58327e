"""Copies of arrays, compiled: numba's own `a[:] = b` comes with the text of its error, which takes seconds to compile."""

from __future__ import annotations

from gpsafe.planning.mpc._numba import njit


@njit(cache=True)
def copy(into, what):
    """into[:] = what[:n] of (n,) and (n or more,)."""
    for i in range(into.shape[0]):
        into[i] = what[i]


@njit(cache=True)
def copy_rows(into, what):
    """into[:] = what, both (m, n)."""
    for i in range(into.shape[0]):
        for j in range(into.shape[1]):
            into[i, j] = what[i, j]
