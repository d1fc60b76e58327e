"""One compiled forward sweep: every constraint row of all members and its exact Jacobian in the inputs.

Per member and stage, with z = (x̄_k, ū_k) and sensitivities ∂x̄_k/∂U, ∂Q_k/∂U carried forward (theory §6):

    F = A + BK_k,  G = F Q Fᵀ,  Q⁺ = (s + w)(G/s + W/w),  s = √tr G, w = √tr W, W = diag(scale · exp ℓ(z)),
    rows  h·x̄ + √(hᵀQh) − d  (states of stages 1…T, then inputs with Q → KQKᵀ of stages 0…T−1, then terminal).

∂A, ∂B need the Hessian of the mean. It is Σ_layers Σ_j g_ij tanh″(a_j) ∂a_j ∂a_jᵀ with g_ij = ∂μ_i/∂h_j, so that 1 + nz forward
and nx backward passes give everything; third derivatives never occur because the steps are Gauss–Newton ones.

Why numba: the sweep is thousands of operations on arrays of 2 to 20 numbers. Its bundled LLVM needs no C compiler, the machine
code is cached on disk, and weights are arguments: nothing is rebuilt after a refit. Figures: :mod:`gpsafe.planning.mpc.fast`.
"""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._jets import jets
from gpsafe.planning.mpc._numba import njit

# No assumption that NaN or infinity cannot occur: diverging plans must be seen as such.
ZERO, IDENTITY, TAPE, GIVEN = range(4)
_FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}


# tanh over arrays without a library call each, so that LLVM uses vector instructions: e^2v = 2^k e^r with k the nearest
# integer, read off the last bits of 2v/ln 2 + 1.5·2^52, and |r| ≤ ½ ln 2. Sums must not be reordered here.
_ROUNDER, _INVERSE = 6755399441055744.0, 2.0 / math.log(2.0)
_HIGH, _LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # ln 2
_TAYLOR = tuple(1.0 / math.factorial(i) for i in range(13))


@njit(cache=True, fastmath={"contract"})
def _tanh(v, n, shift):
    """tanh of the first n entries of v, in place, to 3e-16; `shift` (n,) is room to work."""
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
def _network(theta, sizes, z, hidden, slope, pre, out, dout, hess, back, product, shift, nx, bent):
    """Outputs, Jacobian dout (nz, 2nx) and, if `bent`, Hessian of the first nx outputs hess (nx, nz, nz) of one member at z."""
    layers = sizes.shape[0] - 1
    nz = sizes[0]
    at = 0
    for layer in range(layers):
        n_in, n_out = sizes[layer], sizes[layer + 1]
        bias = at + n_in * n_out
        last = layer == layers - 1
        value = out if last else hidden[layer]
        for j in range(n_out):
            value[j] = theta[bias + j]
        if layer == 0:
            for i in range(n_in):
                w = theta[at + i * n_out : at + (i + 1) * n_out]
                tangent = dout[i] if last else pre[layer, i]
                zi = z[i]
                for j in range(n_out):
                    value[j] += zi * w[j]
                    tangent[j] = w[j]
        else:
            for a in range(nz):
                tangent = dout[a] if last else pre[layer, a]
                for j in range(n_out):
                    tangent[j] = 0.0
            for i in range(n_in):
                w = theta[at + i * n_out : at + (i + 1) * n_out]
                hi = hidden[layer - 1, i]
                for j in range(n_out):
                    value[j] += hi * w[j]
                for a in range(nz):
                    tangent = dout[a] if last else pre[layer, a]
                    t = slope[layer - 1, i] * pre[layer - 1, a, i]
                    for j in range(n_out):
                        tangent[j] += t * w[j]
        if not last:
            _tanh(value, n_out, shift)
            for j in range(n_out):
                slope[layer, j] = 1.0 - value[j] * value[j]
        at = bias + n_out
    if not bent:
        return
    for i in range(nx):
        for a in range(nz):
            for b in range(nz):
                hess[i, a, b] = 0.0
    # Backward: back[i, j] = ∂μ_i/∂h_j of the layer in turn.
    for layer in range(layers - 2, -1, -1):
        n_in, n_out = sizes[layer + 1], sizes[layer + 2]
        at -= (n_in + 1) * n_out
        for i in range(n_in):
            w = theta[at + i * n_out : at + (i + 1) * n_out]
            for m in range(nx):
                if layer == layers - 2:
                    back[0, m, i] = w[m]
                else:
                    g = 0.0
                    for j in range(n_out):
                        g += w[j] * back[1, m, j]
                    back[0, m, i] = g
        for m in range(nx):
            for j in range(n_in):
                back[1, m, j] = back[0, m, j] * slope[layer, j]
                back[0, m, j] = -2.0 * back[1, m, j] * hidden[layer, j]
        for a in range(nz):
            for b in range(a + 1):
                for j in range(n_in):
                    product[j] = pre[layer, a, j] * pre[layer, b, j]
                for m in range(nx):
                    total = 0.0
                    for j in range(n_in):
                        total += back[0, m, j] * product[j]
                    hess[m, a, b] += total
                    if a != b:
                        hess[m, b, a] += total


@njit(cache=True, fastmath=_FAST)
def _softplus(v):
    return v if v > 20.0 else math.log1p(math.exp(v))


@njit(cache=True, fastmath=_FAST)
def _row(normal, offset, x, Q, X, S, columns, dim, row, jacobian):
    """h·x + √(hQh) − d into row[0], its derivative in the first `columns` inputs into `jacobian`."""
    center, spread = 0.0, 0.0
    for i in range(dim):  # most rows bound few entries
        if normal[i] != 0.0:
            center += normal[i] * x[i]
            for j in range(dim):
                spread += normal[i] * Q[i, j] * normal[j]
    root = math.sqrt(max(spread, 0.0))
    half = 0.5 / root if root > 0.0 else 0.0
    for c in range(columns):
        jacobian[c] = 0.0
    for i in range(dim):
        if normal[i] != 0.0:
            for c in range(columns):
                jacobian[c] += normal[i] * X[i, c]
            for j in range(dim):
                weight = half * normal[i] * normal[j]
                if weight != 0.0:
                    for c in range(columns):
                        jacobian[c] += weight * S[i, j, c]
    row[0] = center + root - offset


@njit(cache=True, fastmath=_FAST)
def sweep(
    theta,
    sizes,
    kind,
    tape,
    limits,
    hard,
    scale,
    x0,
    given,
    inputs,
    gain,
    start,
    Hx,
    hx,
    Hu,
    hu,
    Ht,
    ht,
    rows,
    jacobian,
):
    """Fills rows (R,) and jacobian (R, T·nu), member by member: states (T, mx), inputs (T, mu), terminal (mt).

    Args:
        theta: (M, P) parameters, layer by layer W (d_in, d_out) and b, in plain units of z, of x⁺ and of its log-variance.
        sizes: (L + 1,) layer sizes.
        kind: known part: ZERO, IDENTITY, TAPE, or GIVEN.
        tape: arrays of `_tape.Tape`; not read unless kind is TAPE.
        limits, hard: (2, nx) of the log-variance and how it is clamped.
        scale: (nx,) multiplies the variance.
        x0, inputs, gain: (nx,), (T, nu), (T, nu, nx).
        given: the known part's values (M, T, nx), Jacobians (…, nz) and Hessians (…, nz, nz) on the nominal paths, if GIVEN.
        start: Q_0 = start · I.
        Hx, hx, Hu, hu, Ht, ht: constraint sets.
        rows, jacobian: outputs; jacobian must hold zeros where a stage does not depend on later inputs.
    """
    members, steps, nu, nx = theta.shape[0], inputs.shape[0], inputs.shape[1], x0.shape[0]
    nz, p = nx + nu, steps * nu
    width = sizes.max()
    layers = sizes.shape[0] - 1
    hidden = np.empty((layers, width))
    slope = np.empty((layers, width))
    pre = np.empty((layers, nz, width))
    back, product = np.empty((2, nx, width)), np.empty(width)
    shift = np.empty(width)
    out, dout, hess = np.empty(2 * nx), np.empty((nz, 2 * nx)), np.empty((nx, nz, nz))
    z, dz = np.empty(nz), np.empty((nz, p))
    x, X = np.empty(nx), np.empty((nx, p))
    Q, S = np.empty((nx, nx)), np.empty((nx, nx, p))
    KQ, KS = np.empty((nu, nu)), np.empty((nu, nu, p))
    dU = np.zeros((nu, p))
    F, G, W = np.empty((nx, nx)), np.empty((nx, nx)), np.empty(nx)
    FQ, dF, dG = np.empty((nx, nx)), np.empty((nx, nx, p)), np.empty((nx, nx, p))
    dW = np.empty((nx, p))
    tmp = np.empty(nx)
    codes, operands, constants, outputs, order, wide, dims = tape
    values, slopes, bends = given
    slots = order.shape[0]
    value, grad, bent = np.zeros(slots), np.zeros((slots, nz)), np.zeros((slots, nz, nz))
    mx, mu, mt = Hx.shape[0], Hu.shape[0], Ht.shape[0]
    block = steps * (mx + mu) + mt
    for m in range(members):
        at_x, at_u = m * block, m * block + steps * mx
        at_t = at_u + steps * mu
        for i in range(nx):
            x[i] = x0[i]
            for j in range(nx):
                Q[i, j] = start if i == j else 0.0
        for k in range(steps):
            known, columns = k * nu, (k + 1) * nu
            K = gain[k]
            # Inputs of this stage, tightened by K Q Kᵀ.
            for r in range(nu):
                for s in range(nu):
                    total = 0.0
                    for i in range(nx):
                        for j in range(nx):
                            total += K[r, i] * Q[i, j] * K[s, j]
                    KQ[r, s] = total
                    for c in range(columns):
                        KS[r, s, c] = 0.0
                    for c in range(known):
                        total = 0.0
                        for i in range(nx):
                            for j in range(nx):
                                total += K[r, i] * S[i, j, c] * K[s, j]
                        KS[r, s, c] = total
                dU[r, known + r] = 1.0
            for q in range(mu):
                at = at_u + k * mu + q
                _row(Hu[q], hu[q], inputs[k], KQ, dU, KS, columns, nu, rows[at : at + 1], jacobian[at])
            # The member at this stage.
            for i in range(nx):
                z[i] = x[i]
                for c in range(known):
                    dz[i, c] = X[i, c]
                for c in range(known, columns):
                    dz[i, c] = 0.0
            for r in range(nu):
                z[nx + r] = inputs[k, r]
                for c in range(columns):
                    dz[nx + r, c] = dU[r, c]
                dU[r, known + r] = 0.0
            _network(theta[m], sizes, z, hidden, slope, pre, out, dout, hess, back, product, shift, nx, True)
            if kind == IDENTITY:
                for i in range(nx):
                    out[i] += x[i]
                    dout[i, i] += 1.0
            elif kind == TAPE:
                jets(z, codes, operands, constants, order, wide, dims, value, grad, bent, True)
                for i in range(nx):
                    o = outputs[i]
                    out[i] += value[o]
                    for a in range(nz):
                        dout[a, i] += grad[o, a]
                        if order[o] > 1:
                            for b in range(a):
                                hess[i, a, b] += bent[o, a, b]
                                hess[i, b, a] += bent[o, a, b]
                            hess[i, a, a] += bent[o, a, a]
            elif kind == GIVEN:
                for i in range(nx):
                    out[i] += values[m, k, i]
                    for a in range(nz):
                        dout[a, i] += slopes[m, k, i, a]
                        for b in range(nz):
                            hess[i, a, b] += bends[m, k, i, a, b]
            trace_w = 0.0
            for i in range(nx):
                raw, low, high = out[nx + i], limits[0, i], limits[1, i]
                if hard:
                    ln = min(max(raw, low), high)
                    rate = 1.0 if low < raw < high else 0.0
                else:
                    inner = high - _softplus(high - raw)
                    ln = low + _softplus(inner - low)
                    rate = 1.0 / (1.0 + math.exp(low - inner)) / (1.0 + math.exp(raw - high))
                W[i] = scale[i] * math.exp(ln)
                trace_w += W[i]
                for c in range(columns):
                    total = 0.0
                    for a in range(nz):
                        total += dout[a, nx + i] * dz[a, c]
                    dW[i, c] = W[i] * rate * total
            for i in range(nx):
                x[i] = out[i]
                for c in range(columns):
                    total = 0.0
                    for a in range(nz):
                        total += dout[a, i] * dz[a, c]
                    X[i, c] = total
                for j in range(nx):
                    total = dout[j, i]
                    for r in range(nu):
                        total += dout[nx + r, i] * K[r, j]
                    F[i, j] = total
                    for c in range(columns):
                        dF[i, j, c] = 0.0
                    for b in range(nz):
                        bend = hess[i, j, b]
                        for r in range(nu):
                            bend += hess[i, nx + r, b] * K[r, j]
                        for c in range(columns):
                            dF[i, j, c] += bend * dz[b, c]
            # G = F Q Fᵀ and its derivative dG = sym(2 dF Q Fᵀ) + F S Fᵀ.
            trace_g = 0.0
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
                    G[i, j] = total
                trace_g += G[i, i]
            for i in range(nx):
                for j in range(i + 1):
                    for c in range(columns):
                        dG[i, j, c] = 0.0
                    for b in range(nx):
                        for c in range(columns):
                            dG[i, j, c] += dF[i, b, c] * FQ[j, b] + FQ[i, b] * dF[j, b, c]
            for c in range(known):
                for i in range(nx):
                    for b in range(nx):
                        total = 0.0
                        for a in range(nx):
                            total += F[i, a] * S[a, b, c]
                        tmp[b] = total
                    for j in range(i + 1):
                        total = 0.0
                        for b in range(nx):
                            total += tmp[b] * F[j, b]
                        dG[i, j, c] += total
            # Trace-minimal outer ellipsoid of the sum.
            g, w = math.sqrt(trace_g), math.sqrt(trace_w)
            if g == 0.0 or w == 0.0:
                for i in range(nx):
                    for j in range(i + 1):
                        Q[i, j] = G[i, j] + (W[i] if i == j else 0.0)
                        for c in range(columns):
                            S[i, j, c] = dG[i, j, c] + (dW[i, c] if i == j else 0.0)
            else:
                for c in range(columns):
                    dg, dw = 0.0, 0.0
                    for i in range(nx):
                        dg += dG[i, i, c]
                        dw += dW[i, c]
                    dg *= 0.5 / g
                    dw *= 0.5 / w
                    ratio_g = (dw - w * dg / g) / g  # ∂(1 + w/g)
                    ratio_w = (dg - g * dw / w) / w  # ∂(1 + g/w)
                    for i in range(nx):
                        for j in range(i + 1):
                            S[i, j, c] = ratio_g * G[i, j] + (1.0 + w / g) * dG[i, j, c]
                        S[i, i, c] += ratio_w * W[i] + (1.0 + g / w) * dW[i, c]
                for i in range(nx):
                    for j in range(i + 1):
                        Q[i, j] = (1.0 + w / g) * G[i, j]
                    Q[i, i] += (1.0 + g / w) * W[i]
            for i in range(nx):
                for j in range(i):
                    Q[j, i] = Q[i, j]
                    for c in range(columns):
                        S[j, i, c] = S[i, j, c]
            for q in range(mx):
                at = at_x + k * mx + q
                _row(Hx[q], hx[q], x, Q, X, S, columns, nx, rows[at : at + 1], jacobian[at])
        for q in range(mt):
            at = at_t + q
            _row(Ht[q], ht[q], x, Q, X, S, p, nx, rows[at : at + 1], jacobian[at])


@njit(cache=True, fastmath=_FAST)
def networks(theta, sizes, x, u, out):
    """The first nx outputs of every member's network at its own x (M, nx) and the input u (nu,), into out (M, nx)."""
    members, nx = x.shape
    widest, layers, nz = sizes.max(), sizes.shape[0] - 1, sizes[0]
    hidden, slope, pre = np.empty((layers, widest)), np.empty((layers, widest)), np.empty((layers, nz, widest))
    back, product, shift = np.empty((2, nx, widest)), np.empty(widest), np.empty(widest)
    raw, tangent, hess, z = np.empty(2 * nx), np.empty((nz, 2 * nx)), np.empty((nx, nz, nz)), np.empty(nz)
    for m in range(members):
        z[:nx], z[nx:] = x[m], u
        _network(theta[m], sizes, z, hidden, slope, pre, raw, tangent, hess, back, product, shift, nx, False)
        out[m] = raw[:nx]
