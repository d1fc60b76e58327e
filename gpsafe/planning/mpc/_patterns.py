"""Compiled search among patterns of inputs: the largest constraint row of many plans that share their beginnings.

After a first input, the rest of a plan is a few blocks, each held at one of a few values: a tree whose nodes carry every
member's centre and ellipsoid. A stage is computed once for all plans that begin alike, without derivatives, by the functions
of :mod:`gpsafe.planning.mpc._kernel`.
"""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._kernel import _FAST, _closed_loop, _ellipsoid, _member, _row, _spread, _tightened, _workroom
from gpsafe.planning.mpc._lanes import LANES, store
from gpsafe.planning.mpc._numba import njit


@njit(cache=True, fastmath=_FAST)
def _largest(H, h, x, Q, members, row):
    """The largest of h·x + √(hQh) − d over rows and members; +inf if one is not finite."""
    top = -math.inf
    for q in range(H.shape[0]):
        _row(H[q], h[q], x, Q, row)
        for m in range(members):
            top = max(top, row[0, m] if math.isfinite(row[0, m]) else math.inf)
    return top


@njit(cache=True, fastmath=_FAST)
def violations(before, x0, first, values, lengths, after, found):
    """Fills found (C^n,): the largest row of each plan, +inf if it diverges; the last block varies fastest.

    Args:
        first, values: the first input (nu,) and the values of a block (C, nu).
        lengths: stages of each block, (n,), T − 1 in sum.

    The others: see `_kernel.sweep`.
    """
    everyone, theta, model = before
    gain, start, Hx, hx, Hu, hu, Ht, ht = after
    nx, nu, blocks, choices, groups = x0.shape[0], first.shape[0], lengths.shape[0], values.shape[0], theta.shape[0]
    room = _workroom(model[0], nx, model[2][4].shape[0])
    z, out, dout, hess, W, rate, F, FQ, sums = room[2]
    X, S = np.empty((blocks + 1, groups, nx, LANES)), np.empty((blocks + 1, groups, nx, nx, LANES))
    inputs, KQ, row = np.empty((nu, LANES)), np.empty((nu, nu, LANES)), np.empty((2, LANES))
    x, Q, G = np.empty((nx, LANES)), np.empty((nx, nx, LANES)), np.empty((nx, nx, LANES))
    top, ends = np.empty(blocks + 1), np.empty(blocks + 1, np.int64)
    ends[0] = 1
    for d in range(blocks):
        ends[d + 1] = ends[d] + lengths[d]
    digit = np.zeros(blocks, np.int64)
    depth, leaf = 0, 0
    while depth >= 0:
        # The node at `depth`: stages ends[depth − 1] … ends[depth] − 1, or stage 0 at the root.
        u = first if depth == 0 else values[digit[depth - 1]]
        begin = 0 if depth == 0 else ends[depth - 1]
        worst = -math.inf if depth == 0 else top[depth - 1]
        for r in range(nu):
            store(inputs, (r,), u[r])
        for group in range(groups):
            members = min(LANES, everyone - group * LANES)
            for i in range(nx):
                for m in range(LANES):
                    x[i, m] = x0[i] if depth == 0 else X[depth - 1, group, i, m]
                    for j in range(nx):
                        Q[i, j, m] = (start if i == j else 0.0) if depth == 0 else S[depth - 1, group, i, j, m]
            for k in range(begin, ends[depth]):
                _tightened(gain[k], Q, KQ)
                worst = max(worst, _largest(Hu, hu, inputs, KQ, members, row))
                _member(theta[group], model, x, u, gain[k], room, False)
                _closed_loop(dout, gain[k], F)
                _spread(F, Q, W, FQ, G, sums)
                _ellipsoid(G, W, sums, Q)
                for i in range(nx):
                    x[i] = out[i]
                worst = max(worst, _largest(Hx, hx, x, Q, members, row))
            X[depth, group], S[depth, group] = x, Q
        top[depth] = worst
        if depth < blocks:
            digit[depth] = 0
            depth += 1
            continue
        for group in range(groups):
            members = min(LANES, everyone - group * LANES)
            worst = max(worst, _largest(Ht, ht, X[depth, group], S[depth, group], members, row))
        found[leaf] = worst
        leaf += 1
        depth -= 1
        while depth >= 0 and digit[depth] == choices - 1:
            depth -= 1
        if depth >= 0:
            digit[depth] += 1
            depth += 1
