"""Compiled search among patterns of inputs: the largest constraint row of many plans that share their beginnings.

After a first input, the rest of a plan is a few blocks, each held at one of a few values: a tree whose nodes carry every
member's centre and ellipsoid. A stage is computed once for all plans that begin alike, without derivatives, by the formulas of
:mod:`gpsafe.planning.mpc._kernel`: 243 plans take as long as 14 to 26 sweeps with Jacobians.
"""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._jets import jets
from gpsafe.planning.mpc._kernel import IDENTITY, TAPE, _network, _softplus
from gpsafe.planning.mpc._numba import njit

_FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}


@njit(cache=True, fastmath=_FAST)
def _largest(H, h, x, Q):
    """The largest of h·x + √(hQh) − d over the rows; +inf if one is not finite."""
    top = -math.inf
    for q in range(H.shape[0]):
        center, spread = -h[q], 0.0
        for i in range(x.shape[0]):
            if H[q, i] != 0.0:
                center += H[q, i] * x[i]
                for j in range(x.shape[0]):
                    spread += H[q, i] * Q[i, j] * H[q, j]
        value = center + math.sqrt(max(spread, 0.0))
        top = max(top, value if math.isfinite(value) and math.isfinite(spread) else math.inf)
    return top


@njit(cache=True, fastmath=_FAST)
def violations(
    theta,
    sizes,
    kind,
    tape,
    limits,
    hard,
    scale,
    x0,
    first,
    values,
    lengths,
    gain,
    start,
    Hx,
    hx,
    Hu,
    hu,
    Ht,
    ht,
    found,
):
    """Fills found (C^n,): the largest row of each plan, +inf if it diverges; the last block varies fastest.

    Args:
        first, values: the first input (nu,) and the values of a block (C, nu).
        lengths: stages of each block, (n,), T − 1 in sum.

    The others: see `_kernel.sweep`.
    """
    members, nx, nu, blocks, choices = theta.shape[0], x0.shape[0], first.shape[0], lengths.shape[0], values.shape[0]
    nz, width, layers = nx + nu, sizes.max(), sizes.shape[0] - 1
    hidden, slope, pre = np.empty((layers, width)), np.empty((layers, width)), np.empty((layers, nz, width))
    back, product, shift = np.empty((2, nx, width)), np.empty(width), np.empty(width)
    out, dout, hess, z = np.empty(2 * nx), np.empty((nz, 2 * nx)), np.empty((nx, nz, nz)), np.empty(nz)
    codes, operands, constants, outputs, order, wide, dims = tape
    slots = order.shape[0]
    value, grad, bent = np.zeros(slots), np.zeros((slots, nz)), np.zeros((slots, nz, nz))
    X, S = np.empty((blocks + 1, members, nx)), np.empty((blocks + 1, members, nx, nx))
    top, ends = np.empty(blocks + 1), np.empty(blocks + 1, np.int64)
    KQ, F, FQ, W, Q, x = (
        np.empty((nu, nu)),
        np.empty((nx, nx)),
        np.empty((nx, nx)),
        np.empty(nx),
        np.empty((nx, nx)),
        np.empty(nx),
    )
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
        for m in range(members):
            for i in range(nx):
                x[i] = x0[i] if depth == 0 else X[depth - 1, m, i]
                for j in range(nx):
                    Q[i, j] = (start if i == j else 0.0) if depth == 0 else S[depth - 1, m, i, j]
            for k in range(begin, ends[depth]):
                K = gain[k]
                for r in range(nu):
                    for s in range(nu):
                        total = 0.0
                        for i in range(nx):
                            for j in range(nx):
                                total += K[r, i] * Q[i, j] * K[s, j]
                        KQ[r, s] = total
                worst = max(worst, _largest(Hu, hu, u, KQ))
                z[:nx], z[nx:] = x, u
                _network(theta[m], sizes, z, hidden, slope, pre, out, dout, hess, back, product, shift, nx, False)
                if kind == IDENTITY:
                    for i in range(nx):
                        out[i] += x[i]
                        dout[i, i] += 1.0
                elif kind == TAPE:
                    jets(z, codes, operands, constants, order, wide, dims, value, grad, bent, False)
                    for i in range(nx):
                        out[i] += value[outputs[i]]
                        for a in range(nz):
                            dout[a, i] += grad[outputs[i], a]
                w = 0.0
                for i in range(nx):
                    raw, low, high = out[nx + i], limits[0, i], limits[1, i]
                    ln = min(max(raw, low), high) if hard else low + _softplus(high - _softplus(high - raw) - low)
                    W[i] = scale[i] * math.exp(ln)
                    w += W[i]
                    x[i] = out[i]
                    for j in range(nx):
                        total = dout[j, i]
                        for r in range(nu):
                            total += dout[nx + r, i] * K[r, j]
                        F[i, j] = total
                g = 0.0
                for i in range(nx):
                    for j in range(nx):
                        total = 0.0
                        for b in range(nx):
                            total += F[i, b] * Q[b, j]
                        FQ[i, j] = total
                for i in range(nx):
                    for j in range(nx):
                        total = 0.0
                        for b in range(nx):
                            total += FQ[i, b] * F[j, b]
                        Q[i, j] = total
                    g += Q[i, i]
                g, w = math.sqrt(g), math.sqrt(w)
                ratio = w / g if g > 0.0 and w > 0.0 else 0.0
                other = g / w if g > 0.0 and w > 0.0 else 0.0
                for i in range(nx):
                    for j in range(nx):
                        Q[i, j] *= 1.0 + ratio
                    Q[i, i] += (1.0 + other) * W[i]
                worst = max(worst, _largest(Hx, hx, x, Q))
            for i in range(nx):
                X[depth, m, i] = x[i]
                for j in range(nx):
                    S[depth, m, i, j] = Q[i, j]
        top[depth] = worst
        if depth < blocks:
            digit[depth] = 0
            depth += 1
            continue
        for m in range(members):
            worst = max(worst, _largest(Ht, ht, X[depth, m], S[depth, m]))
        found[leaf] = worst
        leaf += 1
        depth -= 1
        while depth >= 0 and digit[depth] == choices - 1:
            depth -= 1
        if depth >= 0:
            digit[depth] += 1
            depth += 1
