"""A small strictly convex quadratic program, compiled: the dual active-set method of Goldfarb and Idnani (Math. Programming 27,
1983).

    min ½ xᵀHx + gᵀx   s. t.   lower ≤ x ≤ upper,  A x ≤ b

Starting at the free minimum, the most violated constraint is added, and those whose multipliers would turn negative are
dropped, so that x is always the minimum under the active ones. With J = L⁻ᵀQ, H = LLᵀ, and the triangular R of
QᵀL⁻¹N = [R; 0], N the normals of the active constraints, a change of the active set is a few rotations.
"""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._copies import copy
from gpsafe.planning.mpc._numba import njit

VIOLATED = 1e-11  # a row is active only if it would be exceeded by more
DEPENDENT = 1e-20  # squared share of a normal outside the span of the active ones, below which it is in it
CHANGES = 1000  # of the active set, at most


@njit(cache=True)
def solve(hessian, gradient, columns, bound, lower, upper, x, multipliers):
    """Fills x (n,) and the multipliers (R,) of A; False where H is not positive definite or no x is feasible.

    `columns` (n, R or more) holds the columns of A, so that the rooms of all rows, which every change of the active set needs,
    are sums of vectors.
    """
    n, count = gradient.shape[0], bound.shape[0]
    rooms = np.empty(count)
    J, R = np.zeros((n, n)), np.zeros((n, n))
    if not _inverse_factor(hessian, R, J):
        return False
    d, z, ratio, dual = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n + 1)
    active, used = np.zeros(n + 1, np.int64), np.zeros(2 * n + count, np.bool_)
    for i in range(n):  # x = −JJᵀg
        total = 0.0
        for j in range(n):
            total += J[j, i] * gradient[j]
        d[i] = total
    for i in range(n):
        total = 0.0
        for j in range(i, n):
            total -= J[i, j] * d[j]
        x[i] = total
    q = np.int64(0)  # no literal, as which `_onto`, `_add` and `_drop` would be compiled for it too
    for _ in range(CHANGES):
        # The most violated constraint: an upper end (entry), a lower end (n + entry), or a row (2n + row).
        worst, which = -VIOLATED, -1
        for i in range(n):
            if upper[i] - x[i] < worst and not used[i]:
                worst, which = upper[i] - x[i], i
            if x[i] - lower[i] < worst and not used[n + i]:
                worst, which = x[i] - lower[i], n + i
        copy(rooms, bound)
        for j in range(n):
            for r in range(count):
                rooms[r] -= columns[j, r] * x[j]
        for r in range(count):
            if rooms[r] != rooms[r]:
                return False
            if rooms[r] < worst and not used[2 * n + r]:
                worst, which = rooms[r], 2 * n + r
        if which < 0:
            _onto(J, R, active, q, columns, bound, lower, upper, d, x)
            multipliers[:] = 0.0
            for k in range(q):
                if active[k] >= 2 * n:
                    multipliers[active[k] - 2 * n] = dual[k]
            return True
        dual[q] = 0.0
        while True:
            # d = Jᵀ(−normal); primal direction z = J₂d₂; the active multipliers change by −ratio = −R⁻¹d₁.
            size, free = 0.0, 0.0
            for j in range(n):
                if which < n:
                    total = -J[which, j]
                elif which < 2 * n:
                    total = J[which - n, j]
                else:
                    total = 0.0
                    for i in range(n):
                        total -= J[i, j] * columns[i, which - 2 * n]
                d[j] = total
                size += total * total
                free += total * total if j >= q else 0.0
            if not math.isfinite(size):
                return False
            for i in range(n):
                total = 0.0
                for j in range(q, n):
                    total += J[i, j] * d[j]
                z[i] = total
            for i in range(q - 1, -1, -1):
                total = d[i]
                for j in range(i + 1, q):
                    total -= R[i, j] * ratio[j]
                ratio[i] = total / R[i, i]
            length, leaving = math.inf, np.int64(-1)
            for k in range(q):
                if ratio[k] > 0.0 and dual[k] < length * ratio[k]:
                    length, leaving = dual[k] / ratio[k], k
            outside = free > DEPENDENT * size
            full = -worst / free if outside else math.inf
            if math.isinf(min(length, full)):
                return False
            step = min(length, full)
            for k in range(q):
                dual[k] = max(dual[k] - step * ratio[k], 0.0)
            dual[q] += step
            if outside:
                for i in range(n):
                    x[i] += step * z[i]
                worst += step * free
            if full <= length:
                _add(J, R, d, q)
                active[q], used[which] = which, True
                q += 1
                break
            used[active[leaving]] = False
            for k in range(leaving, q):
                active[k], dual[k] = active[k + 1], dual[k + 1]
            _drop(J, R, leaving, q)
            q -= 1
    return False


@njit(cache=True)
def _inverse_factor(H, L, J):
    """J = L⁻ᵀ of H = LLᵀ; L is left as zeros."""
    n = H.shape[0]
    for j in range(n):
        for i in range(j, n):
            total = H[i, j]
            for k in range(j):
                total -= L[i, k] * L[j, k]
            if i > j:
                L[i, j] = total / L[j, j]
            elif total > 0.0:
                L[j, j] = math.sqrt(total)
            else:
                return False
    for i in range(n):  # columns of L⁻¹ are rows of J
        J[i, i] = 1.0 / L[i, i]
        for j in range(i + 1, n):
            total = 0.0
            for k in range(i, j):
                total -= L[j, k] * J[i, k]
            J[i, j] = total / L[j, j]
    L[:] = 0.0
    return True


@njit(cache=True)
def _onto(J, R, active, q, columns, bound, lower, upper, d, x):
    """x moves onto the active constraints, off which rounding has led it: by J₁R⁻ᵀ times what is missing."""
    n = x.shape[0]
    for k in range(q):
        which = active[k]
        if which < n:
            total = x[which] - upper[which]
        elif which < 2 * n:
            total = lower[which - n] - x[which - n]
        else:
            total = -bound[which - 2 * n]
            for j in range(n):
                total += columns[j, which - 2 * n] * x[j]
        for i in range(k):
            total -= R[i, k] * d[i]
        d[k] = total / R[k, k]
    for i in range(n):
        for k in range(q):
            x[i] += J[i, k] * d[k]
        x[i] = min(max(x[i], lower[i]), upper[i])


@njit(cache=True)
def _add(J, R, d, q):
    """Column q of R becomes d with its entries beyond q rotated away, J with them."""
    n = d.shape[0]
    for j in range(n - 1, q, -1):
        if d[j] == 0.0:
            continue
        size = math.hypot(d[j - 1], d[j])
        c, s = d[j - 1] / size, d[j] / size
        d[j - 1], d[j] = size, 0.0
        for i in range(n):
            a, b = J[i, j - 1], J[i, j]
            J[i, j - 1], J[i, j] = c * a + s * b, c * b - s * a
    for i in range(q + 1):
        R[i, q] = d[i]


@njit(cache=True)
def _drop(J, R, out, q):
    """Column `out` of the q columns of R leaves, the others move up and become triangular again, J with them."""
    n = J.shape[0]
    for k in range(out, q - 1):
        for i in range(k + 2):
            R[i, k] = R[i, k + 1]
    for j in range(out, q - 1):
        size = math.hypot(R[j, j], R[j + 1, j])
        if size == 0.0:
            continue
        c, s = R[j, j] / size, R[j + 1, j] / size
        for k in range(j, q - 1):
            a, b = R[j, k], R[j + 1, k]
            R[j, k], R[j + 1, k] = c * a + s * b, c * b - s * a
        for i in range(n):
            a, b = J[i, j], J[i, j + 1]
            J[i, j], J[i, j + 1] = c * a + s * b, c * b - s * a
