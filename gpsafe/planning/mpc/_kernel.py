"""One compiled forward sweep: every constraint row of all members and its exact Jacobian in the inputs.

Members go side by side in lanes (:mod:`gpsafe.planning.mpc._lanes`). Per member and stage, with z = (x̄_k, ū_k) and
sensitivities ∂x̄_k/∂U, ∂Q_k/∂U carried forward (theory §6):

    F = A + BK_k,  G = F Q Fᵀ,  Q⁺ = (s + w)(G/s + W/w),  s = √tr G, w = √tr W, W = diag(scale · exp ℓ(z)),
    rows  h·x̄ + √(hᵀQh) − d  (states of stages 1…T, then inputs with Q → KQKᵀ of stages 0…T−1, then terminal).

∂A, ∂B need the Hessian of the mean. It is Σ_layers Σ_j g_ij tanh″(a_j) ∂a_j ∂a_jᵀ with g_ij = ∂μ_i/∂h_j, so that 1 + nz forward
and nx backward passes give everything; third derivatives never occur because the steps are Gauss–Newton ones.

The variance's clamp low + softplus(high − softplus(high − ℓ) − low) is exp low + 1/(exp(−high) + exp(−ℓ)), one exponential.

Why numba: the sweep is thousands of operations on arrays of 2 to 20 numbers. Its bundled LLVM needs no C compiler, the machine
code is cached on disk, and weights are arguments: nothing is rebuilt after a refit. Figures: :mod:`gpsafe.planning.mpc.fast`.
"""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._copies import copy
from gpsafe.planning.mpc._jets import jets
from gpsafe.planning.mpc._lanes import LANES, fill, load, store
from gpsafe.planning.mpc._network import network
from gpsafe.planning.mpc._numba import njit

# No assumption that NaN or infinity cannot occur: diverging plans must be seen as such.
ZERO, IDENTITY, TAPE, GIVEN = range(4)
_FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}


@njit(cache=True)
def workroom(before):
    """Room for any number of sweeps of one problem, see `sweep`."""
    model = before[2]
    return _workroom(model[0], model[5].shape[0], model[2][4].shape[0])


@njit(cache=True)
def _workroom(sizes, nx, slots):
    """Arrays of `network`, `jets` and `_member`, with lanes; those of `jets` must begin as zeros, of which it keeps some."""
    layers, width, nz = sizes.shape[0] - 1, 0, sizes[0]
    for size in sizes:
        width = max(width, size)
    net = (
        np.empty((layers, width, LANES)), np.empty((layers, width, LANES)), np.empty((layers, nz, width, LANES)),
        np.empty((layers, nz, width, LANES)), np.empty((3, nx, width, LANES)), np.empty((width, LANES)),
        np.empty(width * LANES),
    )  # fmt: skip
    tape = (
        np.zeros((slots, LANES)),
        np.zeros((slots, nz, LANES)),
        np.zeros((slots, nz, nz, LANES)),
        np.zeros((3, LANES)),
    )
    member = (
        np.empty((nz, LANES)), np.empty((2 * nx, LANES)), np.empty((nz, 2 * nx, LANES)), np.empty((nx, nz, nz, LANES)),
        np.empty((nx, LANES)), np.empty((nx, LANES)), np.empty((nx, nx, LANES)), np.empty((nx, nx, LANES)),
        np.empty((6, LANES)),
    )  # fmt: skip
    return net, tape, member


@njit(cache=True, fastmath=_FAST)
def _member(theta, model, x, u, bent, room):
    """A group of members at a stage: outputs, Jacobian, triangles of Hessians if `bent`, W and its rate, left in `room`."""
    sizes, kind, tape, limits, hard, scale = model
    net, (value, grad, bend, triple), (z, out, dout, hess, W, rate, _, _, _) = room
    nx, nu = x.shape[0], u.shape[0]
    nz = nx + nu
    for i in range(nx):
        store(z, (i,), load(x, (i,)))
    for r in range(nu):
        store(z, (nx + r,), u[r])
    network(theta, sizes, z, net, out, dout, hess, nx, bent)
    if kind == IDENTITY:
        for i in range(nx):
            store(out, (i,), load(out, (i,)) + load(x, (i,)))
            store(dout, (i, i), load(dout, (i, i)) + 1.0)
    elif kind == TAPE:
        codes, operands, constants, outputs, order, wide, dims = tape
        jets(z, codes, operands, constants, order, wide, dims, bent, value, grad, bend, triple)
        for i in range(nx):
            o = outputs[i]
            store(out, (i,), load(out, (i,)) + load(value, (o,)))
            for a in range(nz):
                store(dout, (a, i), load(dout, (a, i)) + load(grad, (o, a)))
                if bent and order[o] > 1:
                    for b in range(a + 1):
                        store(hess, (i, a, b), load(hess, (i, a, b)) + load(bend, (o, a, b)))
    for i in range(nx):
        low, high = limits[0, i], limits[1, i]
        least, inverse = math.exp(low), math.exp(-high)
        for m in range(LANES):
            raw = out[nx + i, m]
            if hard:
                W[i, m] = scale[i] * math.exp(min(max(raw, low), high))
                rate[i, m] = 1.0 if low < raw < high else 0.0
            else:
                e = math.exp(-raw)
                inner = 1.0 / (inverse + e)
                W[i, m] = scale[i] * (least + inner)
                rate[i, m] = 1.0 / (1.0 + inverse / e) / (1.0 + least / inner)


@njit(cache=True, fastmath=_FAST)
def _closed_loop(dout, K, F):
    """F = A + BK of a group of members."""
    nx, nu = F.shape[0], K.shape[0]
    for i in range(nx):
        for j in range(nx):
            total = load(dout, (j, i))
            for r in range(nu):
                total = total + load(dout, (nx + r, i)) * K[r, j]
            store(F, (i, j), total)


@njit(cache=True, fastmath=_FAST)
def _spread(F, Q, W, FQ, G, sums):
    """FQ, G = F Q Fᵀ and, in `sums`, what the trace-minimal outer ellipsoid of G and W = diag takes of them:
    1 + w/g and 1 + g/w, both 1 where one of g = √tr G and w = √tr W is 0; 1/g and 1/w, then 0; w/g and g/w."""
    nx = F.shape[0]
    g, w = fill(0.0), fill(0.0)
    for i in range(nx):
        for j in range(nx):
            total = fill(0.0)
            for b in range(nx):
                total = total + load(F, (i, b)) * load(Q, (b, j))
            store(FQ, (i, j), total)
        w = w + load(W, (i,))
    for i in range(nx):
        for j in range(i + 1):
            total = fill(0.0)
            for b in range(nx):
                total = total + load(FQ, (i, b)) * load(F, (j, b))
            store(G, (i, j), total)
            store(G, (j, i), total)
        g = g + load(G, (i, i))
    store(sums, (0,), g)
    store(sums, (1,), w)
    for m in range(LANES):
        one, other = math.sqrt(sums[0, m]), math.sqrt(sums[1, m])
        alone = one == 0.0 or other == 0.0
        sums[2, m] = 0.0 if alone else 1.0 / one
        sums[3, m] = 0.0 if alone else 1.0 / other
        sums[4, m] = 0.0 if alone else other / one
        sums[5, m] = 0.0 if alone else one / other
        sums[0, m], sums[1, m] = 1.0 + sums[4, m], 1.0 + sums[5, m]


@njit(cache=True, fastmath=_FAST)
def _ellipsoid(G, W, sums, Q):
    """Q⁺ of a group of members."""
    nx = W.shape[0]
    of_g, of_w = load(sums, (0,)), load(sums, (1,))
    for i in range(nx):
        for j in range(nx):
            store(Q, (i, j), of_g * load(G, (i, j)))
        store(Q, (i, i), load(Q, (i, i)) + of_w * load(W, (i,)))


@njit(cache=True, fastmath=_FAST)
def _tightened(K, Q, KQ):
    """KQKᵀ of a group of members."""
    nu, nx = K.shape
    for r in range(nu):
        for s in range(nu):
            total = fill(0.0)
            for i in range(nx):
                for j in range(nx):
                    total = total + load(Q, (i, j)) * (K[r, i] * K[s, j])
            store(KQ, (r, s), total)


@njit(cache=True, fastmath=_FAST)
def _row(normal, offset, x, Q, row):
    """h·x + √(hQh) − d into row[0] and the root into row[1], of a group of members."""
    dim = x.shape[0]
    center, square = fill(-offset), fill(0.0)
    for i in range(dim):  # most rows bound few entries
        if normal[i] != 0.0:
            center = center + normal[i] * load(x, (i,))
            for j in range(dim):
                if normal[j] != 0.0:
                    square = square + load(Q, (i, j)) * (normal[i] * normal[j])
    store(row, (0,), center)
    store(row, (1,), square)
    for m in range(LANES):
        root = math.sqrt(0.0 if row[1, m] < 0.0 else row[1, m])  # NaN stays
        row[0, m] += root
        row[1, m] = root


@njit(cache=True, fastmath=_FAST)
def _slopes(normal, X, S, columns, row, slope):
    """The derivative of `_row` in the first `columns` inputs, (columns,) of `slope`."""
    dim = normal.shape[0]
    for m in range(LANES):
        row[1, m] = 0.5 / row[1, m] if row[1, m] > 0.0 else 0.0
    half = load(row, (1,))
    for c in range(columns):
        total, square = fill(0.0), fill(0.0)
        for i in range(dim):
            if normal[i] != 0.0:
                total = total + normal[i] * load(X, (i, c))
                for j in range(dim):
                    if normal[j] != 0.0:
                        square = square + load(S, (i, j, c)) * (normal[i] * normal[j])
        store(slope, (c,), total + half * square)


@njit(cache=True, fastmath=_FAST)
def _write(row, slope, columns, members, at, block, rows, jacobian):
    """A row of a group of members to its places, `block` apart."""
    for m in range(members):
        rows[at + m * block] = row[0, m]
        for c in range(columns):
            jacobian[at + m * block, c] = slope[c, m]


@njit(cache=True, fastmath=_FAST)
def sweep(before, x0, given, inputs, after, room, rows, jacobian):
    """Fills rows (R,) and jacobian (R, T·nu), member by member: states (T, mx), inputs (T, mu), terminal (mt), and, with
    levels, x̄ − c − level and c − x̄ − level of stages 1…T (T, 2nx), c the mean of all members' x̄.

    Args:
        before: `members` M; `theta` (G, P, LANES), parameters of groups of members, layer by layer W (d_in, d_out) and b, in
            plain units of z, of x⁺ and of its log-variance; and of the model `sizes` (L + 1,) of layers, `kind` of the known
            part (ZERO, IDENTITY, TAPE or GIVEN), the arrays of its `_tape.Tape`, read if that is TAPE, `limits` (2, nx) of the
            log-variance and whether it is clamped hard, and `scale` (nx,), which multiplies the variance.
        x0, inputs: (nx,), (T, nu).
        given: the known part's values (M, T, nx), Jacobians (…, nz) and Hessians (…, nz, nz) on the nominal paths, if GIVEN.
        after: `gain` (T, nu, nx), `start` (Q_0 = start · I), the sets Hx, hx, Hu, hu, Ht, ht, and levels (T or 0, nx).
        room: from `workroom`.
        rows, jacobian: outputs; jacobian must hold zeros where a stage does not depend on later inputs. With no rows (0, T·nu)
            it is left out, which halves the time.
    """
    everyone, theta, model = before
    sloped = jacobian.shape[0] > 0
    gain, start, Hx, hx, Hu, hu, Ht, ht, levels = after
    steps, nu, nx = inputs.shape[0], inputs.shape[1], x0.shape[0]
    nz, p = nx + nu, steps * nu
    _, out, dout, hess, W, rate, F, FQ, sums = room[2]
    x, X, Y = np.empty((nx, LANES)), np.empty((nx, p, LANES)), np.empty((nx, p, LANES))
    u, dU = np.empty((nu, LANES)), np.zeros((nu, p, LANES))
    Q, S = np.empty((nx, nx, LANES)), np.empty((nx, nx, p, LANES))
    KQ, KS = np.empty((nu, nu, LANES)), np.empty((nu, nu, p, LANES))
    G, dF, dG = np.empty((nx, nx, LANES)), np.empty((nx, nx, p, LANES)), np.empty((nx, nx, p, LANES))
    dW, bend, product = np.empty((nx, p, LANES)), np.empty((nz, LANES)), np.empty((nx, nx, LANES))
    row, slope = np.empty((2, LANES)), np.empty((p, LANES))
    values, slopes, bends = given
    mx, mu, mt = Hx.shape[0], Hu.shape[0], Ht.shape[0]
    sure = steps * (mx + mu) + mt  # where the rows on disagreement begin
    block = sure + 2 * levels.size
    for group in range(theta.shape[0]):
        first = group * LANES
        members = min(LANES, everyone - first)
        at_x, at_u = first * block, first * block + steps * mx
        at_t = at_u + steps * mu
        for i in range(nx):
            store(x, (i,), x0[i])
            for j in range(nx):
                store(Q, (i, j), start if i == j else 0.0)
        for k in range(steps):
            known, columns, K = k * nu if sloped else 0, (k + 1) * nu if sloped else 0, gain[k]
            # Inputs of this stage, tightened by K Q Kᵀ.
            _tightened(K, Q, KQ)
            for r in range(nu):
                store(u, (r,), inputs[k, r])
                store(dU, (r, k * nu + r), 1.0)
                for s in range(nu):
                    for c in range(known):
                        total = fill(0.0)
                        for i in range(nx):
                            for j in range(nx):
                                total = total + load(S, (i, j, c)) * (K[r, i] * K[s, j])
                        store(KS, (r, s, c), total)
                    for c in range(known, columns):
                        store(KS, (r, s, c), 0.0)
            for q in range(mu):
                _row(Hu[q], hu[q], u, KQ, row)
                _slopes(Hu[q], dU, KS, columns, row, slope)
                _write(row, slope, columns, members, at_u + k * mu + q, block, rows, jacobian)
            for r in range(nu):
                store(dU, (r, k * nu + r), 0.0)
            _member(theta[group], model, x, inputs[k], sloped, room)
            if model[1] == GIVEN:
                for m in range(LANES):
                    n = min(first + m, everyone - 1)
                    for i in range(nx):
                        out[i, m] += values[n, k, i]
                        for a in range(nz):
                            dout[a, i, m] += slopes[n, k, i, a]
                            for b in range(a + 1):
                                hess[i, a, b, m] += bends[n, k, i, a, b]
            _closed_loop(dout, K, F)
            # Derivatives of W, F and x⁺ in all inputs so far: X, of earlier ones, and those of this stage.
            for i in range(nx if sloped else 0):
                amount = load(W, (i,)) * load(rate, (i,))
                for c in range(known):
                    total, level = fill(0.0), fill(0.0)
                    for a in range(nx):
                        total = total + load(dout, (a, i)) * load(X, (a, c))
                        level = level + load(dout, (a, nx + i)) * load(X, (a, c))
                    store(Y, (i, c), total)
                    store(dW, (i, c), amount * level)
                for r in range(nu):
                    store(Y, (i, known + r), load(dout, (nx + r, i)))
                    store(dW, (i, known + r), amount * load(dout, (nx + r, nx + i)))
                for j in range(nx):
                    for b in range(nz):
                        total = load(hess, (i, max(j, b), min(j, b)))
                        for r in range(nu):
                            total = total + load(hess, (i, max(nx + r, b), min(nx + r, b))) * K[r, j]
                        store(bend, (b,), total)
                    for c in range(known):
                        total = fill(0.0)
                        for b in range(nx):
                            total = total + load(bend, (b,)) * load(X, (b, c))
                        store(dF, (i, j, c), total)
                    for r in range(nu):
                        store(dF, (i, j, known + r), load(bend, (nx + r,)))
            for i in range(nx):
                store(x, (i,), load(out, (i,)))
            X, Y = Y, X
            # G = F Q Fᵀ and its derivative dG = sym(2 dF Q Fᵀ) + F S Fᵀ.
            _spread(F, Q, W, FQ, G, sums)
            for c in range(columns):
                if c < known:
                    for i in range(nx):
                        for b in range(nx):
                            total = fill(0.0)
                            for a in range(nx):
                                total = total + load(F, (i, a)) * load(S, (a, b, c))
                            store(product, (i, b), total)
                for i in range(nx):
                    for j in range(i + 1):
                        total = fill(0.0)
                        for b in range(nx):
                            total = total + load(dF, (i, b, c)) * load(FQ, (j, b))
                            total = total + load(FQ, (i, b)) * load(dF, (j, b, c))
                        if c < known:
                            for b in range(nx):
                                total = total + load(product, (i, b)) * load(F, (j, b))
                        store(dG, (i, j, c), total)
            _ellipsoid(G, W, sums, Q)
            of_g, of_w, over_g, over_w = load(sums, (0,)), load(sums, (1,)), load(sums, (2,)), load(sums, (3,))
            w_g, g_w = load(sums, (4,)), load(sums, (5,))
            for c in range(columns):
                dg, dw = fill(0.0), fill(0.0)
                for i in range(nx):
                    dg = dg + load(dG, (i, i, c))
                    dw = dw + load(dW, (i, c))
                dg, dw = 0.5 * dg * over_g, 0.5 * dw * over_w
                change_g, change_w = (dw - w_g * dg) * over_g, (dg - g_w * dw) * over_w  # ∂(1 + w/g), ∂(1 + g/w)
                for i in range(nx):
                    for j in range(i + 1):
                        total = change_g * load(G, (i, j)) + of_g * load(dG, (i, j, c))
                        if i == j:
                            total = total + change_w * load(W, (i,)) + of_w * load(dW, (i, c))
                        store(S, (i, j, c), total)
                        store(S, (j, i, c), total)
            for q in range(mx):
                _row(Hx[q], hx[q], x, Q, row)
                _slopes(Hx[q], X, S, columns, row, slope)
                _write(row, slope, columns, members, at_x + k * mx + q, block, rows, jacobian)
            if levels.size > 0:
                for i in range(nx):
                    store(row, (0,), load(x, (i,)))
                    at = first * block + sure + 2 * nx * k + i
                    _write(row, X[i], columns, members, at, block, rows, jacobian)
        for q in range(mt):
            _row(Ht[q], ht[q], x, Q, row)
            _slopes(Ht[q], X, S, p if sloped else 0, row, slope)
            _write(row, slope, p if sloped else 0, members, at_t + q, block, rows, jacobian)
    for k in range(levels.shape[0]):
        for i in range(nx):
            at = sure + 2 * nx * k + i
            _apart(rows, at, block, everyone, nx, levels[k, i])
            for c in range(p if sloped else 0):
                _apart(jacobian[:, c], at, block, everyone, nx, 0.0)


@njit(cache=True)
def _apart(values, at, block, members, nx, level):
    """Of values x of all members, at places `block` apart, x − c − level, and nx further on c − x − level, c their mean."""
    mean = 0.0
    for m in range(members):
        mean += values[at + m * block] / members
    for m in range(members):
        here = at + m * block
        gap = values[here] - mean
        values[here], values[here + nx] = gap - level, -gap - level


@njit(cache=True, fastmath=_FAST)
def networks(theta, sizes, x, u, out):
    """The first nx outputs of every member's network at its own x (M, nx) and the input u (nu,), into out (M, nx)."""
    members, nx = x.shape
    net, _, (z, found, tangent, hess, _, _, _, _, _) = _workroom(
        sizes, nx, np.int64(0)
    )  # no literals, as in `_quadratic`
    for group in range(theta.shape[0]):
        first = group * LANES
        for m in range(LANES):
            copy(z[:nx, m], x[min(first + m, members - 1)])
            copy(z[nx:, m], u)
        network(theta[group], sizes, z, net, found, tangent, hess, nx, np.bool_(False))
        for m in range(min(LANES, members - first)):
            copy(out[first + m], found[:nx, m])
