"""The networks of a group of members at one point, compiled: outputs, Jacobian and Hessians of the mean, with lanes."""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._lanes import fill, load, store
from gpsafe.planning.mpc._numba import njit

_FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}

# tanh over arrays without a library call each, so that LLVM uses vector instructions: e^2v = 2^k e^r with k the nearest
# integer, read off the last bits of 2v/ln 2 + 1.5·2^52, and |r| ≤ ½ ln 2. Sums must not be reordered here.
_ROUNDER, _INVERSE = 6755399441055744.0, 2.0 / math.log(2.0)
_HIGH, _LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # ln 2
_TAYLOR = tuple(1.0 / math.factorial(i) for i in range(13))


@njit(cache=True, fastmath={"contract"})
def _tanh(v, shift):
    """tanh of v (n,) in place, to 3e-16; `shift` (n,) is room to work."""
    n = v.shape[0]
    bits = shift.view(np.int64)
    for j in range(n):
        x = 20.0 if v[j] > 20.0 else v[j]
        x = -20.0 if x < -20.0 else x  # NaN stays
        shift[j] = x * _INVERSE + _ROUNDER
        k = shift[j] - _ROUNDER
        r = 2.0 * x - k * _HIGH - k * _LOW
        p = _TAYLOR[12]
        for i in range(11, -1, -1):
            p = p * r + _TAYLOR[i]
        v[j] = p
    for j in range(n):
        bits[j] = (bits[j] + 1023) << 52
    for j in range(n):
        v[j] = 1.0 - 2.0 / (v[j] * shift[j] + 1.0)


@njit(cache=True, fastmath=_FAST)
def network(theta, sizes, z, room, out, dout, hess, nx, bent):
    """Outputs (2nx,), Jacobian dout (nz, 2nx) and, if `bent`, the lower triangles of the first outputs' Hessians hess
    (nx, nz, nz) at z (nz,), each entry of every array with its lanes."""
    hidden, slope, pre, post, back, product, shift = room
    layers, nz, at = sizes.shape[0] - 1, sizes[0], 0
    for layer in range(layers):
        n_in, n_out, last = sizes[layer], sizes[layer + 1], layer == layers - 1
        bias = at + n_in * n_out
        for j in range(n_out):
            total = load(theta, (bias + j,))
            for i in range(n_in):
                w = load(theta, (at + i * n_out + j,))
                total = total + w * (load(z, (i,)) if layer == 0 else load(hidden, (layer - 1, i)))
            if last:
                store(out, (j,), total)
            else:
                store(hidden, (layer, j), total)
        for a in range(nz):
            for j in range(n_out):
                if layer == 0:
                    total = load(theta, (at + a * n_out + j,))
                else:
                    total = fill(0.0)
                    for i in range(n_in):
                        total = total + load(theta, (at + i * n_out + j,)) * load(post, (layer - 1, a, i))
                if last:
                    store(dout, (a, j), total)
                else:
                    store(pre, (layer, a, j), total)
        if not last:
            _tanh(hidden[layer, :n_out].reshape(-1), shift)
            for j in range(n_out):
                h = load(hidden, (layer, j))
                rate = 1.0 - h * h
                store(slope, (layer, j), rate)
                for a in range(nz):
                    store(post, (layer, a, j), rate * load(pre, (layer, a, j)))
        at = bias + n_out
    if not bent:
        return
    for m in range(nx):
        for a in range(nz):
            for b in range(a + 1):
                store(hess, (m, a, b), 0.0)
    # Backward: back[0, m, i] = ∂μ_m/∂h_i of the layer in turn, back[1] the same before tanh.
    for layer in range(layers - 2, -1, -1):
        n_in, n_out = sizes[layer + 1], sizes[layer + 2]
        at -= (n_in + 1) * n_out
        for i in range(n_in):
            rate = load(slope, (layer, i))
            bend = -2.0 * load(hidden, (layer, i))
            for m in range(nx):
                if layer == layers - 2:
                    g = load(theta, (at + i * n_out + m,))
                else:
                    g = fill(0.0)
                    for j in range(n_out):
                        g = g + load(theta, (at + i * n_out + j,)) * load(back, (1, m, j))
                store(back, (0, m, i), g * rate)
                store(back, (2, m, i), g * rate * bend)
        for m in range(nx):
            for i in range(n_in):
                store(back, (1, m, i), load(back, (0, m, i)))
        for a in range(nz):
            for b in range(a + 1):
                for j in range(n_in):
                    store(product, (j,), load(pre, (layer, a, j)) * load(pre, (layer, b, j)))
                for m in range(nx):
                    total = load(hess, (m, a, b))
                    for j in range(n_in):
                        total = total + load(back, (2, m, j)) * load(product, (j,))
                    store(hess, (m, a, b), total)
