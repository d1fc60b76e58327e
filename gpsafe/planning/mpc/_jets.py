"""Compiled interpreter of tapes: values, gradients and Hessians of all operations, forward, at as many points as there are
lanes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpsafe.planning.mpc._lanes import LANES, load, store
from gpsafe.planning.mpc._numba import njit
from gpsafe.systems import _tape

Array = NDArray[np.float64]
_FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}

_ADD, _SUB, _MUL, _LESS, _LESS_EQUAL = _tape.ADD, _tape.SUB, _tape.MUL, _tape.LESS, _tape.LESS_EQUAL
_EQUAL, _SELECT, _POWER, _CONSTANT = _tape.EQUAL, _tape.SELECT, _tape.POWER, _tape.CONSTANT
_SIN, _COS, _TAN, _TANH, _EXP = (_tape.CODES[name] for name in ("sin", "cos", "tan", "tanh", "exp"))
_LOG, _SQRT, _RECIPROCAL, _ATAN = (_tape.CODES[name] for name in ("log", "sqrt", "reciprocal", "atan"))
_ASIN, _ACOS, _SINH, _COSH = (_tape.CODES[name] for name in ("asin", "acos", "sinh", "cosh"))
_LOG1P, _EXPM1, _SIGN = (_tape.CODES[name] for name in ("log1p", "expm1", "sign"))
_ASINH, _ACOSH, _ATANH, _ERF = (_tape.CODES[name] for name in ("asinh", "acosh", "atanh", "erf"))
_BELL = 2.0 / math.sqrt(math.pi)


@njit(cache=True, fastmath=_FAST)
def _elementary(code, constant, v):
    """f, f′, f″ at v."""
    if code == _SIN:
        s = math.sin(v)
        return s, math.cos(v), -s
    if code == _COS:
        c = math.cos(v)
        return c, -math.sin(v), -c
    if code == _RECIPROCAL:
        r = 1.0 / v
        return r, -r * r, 2.0 * r * r * r
    if code == _SQRT:
        r = math.sqrt(v)
        return r, 0.5 / r, -0.25 / (r * v)
    if code == _TANH:
        t = math.tanh(v)
        return t, 1.0 - t * t, -2.0 * t * (1.0 - t * t)
    if code == _EXP:
        e = math.exp(v)
        return e, e, e
    if code == _LOG:
        return math.log(v), 1.0 / v, -1.0 / (v * v)
    if code == _LOG1P:
        return math.log1p(v), 1.0 / (1.0 + v), -1.0 / ((1.0 + v) * (1.0 + v))
    if code == _EXPM1:
        e = math.exp(v)
        return math.expm1(v), e, e
    if code == _TAN:
        t = math.tan(v)
        return t, 1.0 + t * t, 2.0 * t * (1.0 + t * t)
    if code == _ATAN:
        d = 1.0 / (1.0 + v * v)
        return math.atan(v), d, -2.0 * v * d * d
    if code == _ASIN:
        d = 1.0 / math.sqrt(1.0 - v * v)
        return math.asin(v), d, v * d * d * d
    if code == _ACOS:
        d = 1.0 / math.sqrt(1.0 - v * v)
        return math.acos(v), -d, -v * d * d * d
    if code == _SINH:
        return math.sinh(v), math.cosh(v), math.sinh(v)
    if code == _COSH:
        return math.cosh(v), math.sinh(v), math.cosh(v)
    if code == _ASINH:
        d = 1.0 / math.sqrt(1.0 + v * v)
        return math.asinh(v), d, -v * d * d * d
    if code == _ACOSH:
        d = 1.0 / math.sqrt(v * v - 1.0)
        return math.acosh(v), d, -v * d * d * d
    if code == _ATANH:
        d = 1.0 / (1.0 - v * v)
        return math.atanh(v), d, 2.0 * v * d * d
    if code == _ERF:
        d = _BELL * math.exp(-v * v)
        return math.erf(v), d, -2.0 * v * d
    if code == _POWER:
        return v**constant, constant * v ** (constant - 1.0), constant * (constant - 1.0) * v ** (constant - 2.0)
    if code == _SIGN:
        return (1.0 if v > 0.0 else -1.0 if v < 0.0 else v), 0.0, 0.0
    return math.floor(v), 0.0, 0.0


@njit(cache=True, fastmath=_FAST)
def jets(z, codes, operands, constants, order, width, dims, bent, value, grad, hess, triple):
    """Runs a tape at z (nz,) into value (S,), grad (S, nz) and the lower triangles of hess (S, nz, nz) if `bent`, all with
    lanes; `triple` (3,) with lanes is room to work.

    Entries outside a slot's `dims` and orders are never written: they must hold zeros.
    """
    nz = z.shape[0]
    for i in range(nz):
        store(value, (i,), load(z, (i,)))
        store(grad, (i, i), 1.0)
    for k in range(codes.shape[0]):
        code, at = codes[k], nz + k
        a, b, c = operands[k, 0], operands[k, 1], operands[k, 2]
        n = width[at]
        second = bent and order[at] > 1
        if code == _CONSTANT:
            store(value, (at,), constants[k])
        elif code in (_ADD, _SUB):
            sign = 1.0 if code == _ADD else -1.0
            store(value, (at,), load(value, (a,)) + sign * load(value, (b,)))
            for p in range(n):
                i = dims[at, p]
                store(grad, (at, i), load(grad, (a, i)) + sign * load(grad, (b, i)))
                for q in range(p + 1 if second else 0):
                    j = dims[at, q]
                    store(hess, (at, i, j), load(hess, (a, i, j)) + sign * load(hess, (b, i, j)))
        elif code == _MUL and (order[a] == 0 or order[b] == 0):
            factor, source = load(value, (a if order[a] == 0 else b,)), b if order[a] == 0 else a
            store(value, (at,), factor * load(value, (source,)))
            for p in range(n):
                i = dims[at, p]
                store(grad, (at, i), factor * load(grad, (source, i)))
                for q in range(p + 1 if second else 0):
                    j = dims[at, q]
                    store(hess, (at, i, j), factor * load(hess, (source, i, j)))
        elif code == _MUL:
            va, vb = load(value, (a,)), load(value, (b,))
            store(value, (at,), va * vb)
            for p in range(n):
                i = dims[at, p]
                ga, gb = load(grad, (a, i)), load(grad, (b, i))
                store(grad, (at, i), va * gb + vb * ga)
                for q in range(p + 1 if bent else 0):
                    j = dims[at, q]
                    cross = ga * load(grad, (b, j)) + gb * load(grad, (a, j))
                    ha, hb = load(hess, (a, i, j)), load(hess, (b, i, j))
                    store(hess, (at, i, j), va * hb + vb * ha + cross)
        elif code in (_LESS, _LESS_EQUAL, _EQUAL):
            for m in range(LANES):
                one, other = value[a, m], value[b, m]
                true = one < other if code == _LESS else one <= other if code == _LESS_EQUAL else one == other
                value[at, m] = 1.0 if true else 0.0
        elif code == _SELECT:
            true = 0
            for m in range(LANES):
                true += 1 if value[a, m] != 0.0 else 0
            if true in (0, LANES):  # as a rule all members agree
                source = b if true else c
                store(value, (at,), load(value, (source,)))
                for p in range(n):
                    i = dims[at, p]
                    store(grad, (at, i), load(grad, (source, i)))
                    for q in range(p + 1 if second else 0):
                        j = dims[at, q]
                        store(hess, (at, i, j), load(hess, (source, i, j)))
                continue
            for m in range(LANES):
                source = b if value[a, m] != 0.0 else c
                value[at, m] = value[source, m]
                for p in range(n):
                    i = dims[at, p]
                    grad[at, i, m] = grad[source, i, m]
                    for q in range(p + 1 if second else 0):
                        j = dims[at, q]
                        hess[at, i, j, m] = hess[source, i, j, m]
        else:
            for m in range(LANES):
                triple[0, m], triple[1, m], triple[2, m] = _elementary(code, constants[k], value[a, m])
            f, rate, curve = load(triple, (0,)), load(triple, (1,)), load(triple, (2,))
            store(value, (at,), f)
            for p in range(n):
                i = dims[at, p]
                ga = load(grad, (a, i))
                store(grad, (at, i), rate * ga)
                bend = curve * ga
                for q in range(p + 1 if bent else 0):
                    j = dims[at, q]
                    store(hess, (at, i, j), rate * load(hess, (a, i, j)) + bend * load(grad, (a, j)))


def evaluate(tape: _tape.Tape, z: Array) -> tuple[Array, Array, Array]:
    """Values (nx,), Jacobian (nx, nz) and Hessians (nx, nz, nz) of p at z (nz,)."""
    nz, slots = len(z), len(tape.order)
    value, grad, hess = np.zeros((slots, LANES)), np.zeros((slots, nz, LANES)), np.zeros((slots, nz, nz, LANES))
    codes, operands, constants, out, order, width, dims = tape.arrays
    lanes = np.repeat(z[:, None], LANES, axis=1)
    jets(lanes, codes, operands, constants, order, width, dims, True, value, grad, hess, np.zeros((3, LANES)))
    lower = hess[out, ..., 0]
    return value[out, 0], grad[out, :, 0], lower + np.tril(lower, -1).transpose(0, 2, 1)
