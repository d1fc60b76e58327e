"""Ranges of a tape, and of its first two derivatives, over boxes of z: second-order interval differentiation.

Every slot carries an interval of its value, and on demand of each ∂_j and each ∂_jk, that hold on the whole box; the rules are
the product and chain rules in interval arithmetic (:mod:`gpsafe.systems._interval`), rounded outward, so that what comes out
is a theorem about the operations of the tape. The box may be all of ℝ^nz: sines, saturations and affine functions have bounded
second derivatives there, a cube has not.

Where a comparison is not decided on the box (``where``, ``clamp``, ``abs``, ``max``, rounding), the function may have a kink,
and its derivatives say nothing; where it may leave the domain of a logarithm, a root or a quotient, nothing is known. Both
are marked, with a reason, and the mark goes with every result of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpsafe.systems import _tape
from gpsafe.systems._interval import SMOOTH, Array, Interval, Smooth, power
from gpsafe.systems._tape import CODES, UNARY, Tape

NAMES = {code: name for name, code in CODES.items()}
DECIDING = (_tape.LESS, _tape.LESS_EQUAL, _tape.EQUAL)
assert set(UNARY) == set(SMOOTH) | {"sign", "floor"}


@dataclass(frozen=True, slots=True)
class Jet:
    """Over n boxes: value (n,), gradient (n, nz), Hessian (n, nz, nz); where it is not known (n,), and why."""

    value: Interval
    grad: Interval | None
    hess: Interval | None
    bad: NDArray[np.bool_]
    why: str


def box(lower: Array, upper: Array, *, second: bool) -> list[Jet]:
    """z itself over the boxes [lower, upper], (n, nz) ×2, whose entries may be infinite; with derivatives if `second`."""
    one, zero = np.ones_like(lower), np.zeros_like(lower)
    if not second:
        return leaves(Interval(lower, upper), None, None)
    return leaves(Interval(lower, upper), Interval(one, one), Interval(zero, zero))


def leaves(value: Interval, first: Interval | None, bend: Interval | None) -> list[Jet]:
    """s_i(z_i) for each i: ranges of s_i, s_i′ and s_i″ over n boxes, (n, nz) each."""
    n, nz = value.low.shape
    found = []
    for i in range(nz):
        grad = hess = None
        if first is not None and bend is not None:
            unit = np.arange(nz) == i
            grad = Interval(np.where(unit, first.low, 0.0), np.where(unit, first.high, 0.0))
            square = unit[:, None] & unit
            hess = Interval(
                np.where(square, bend.low[:, i, None, None], 0.0), np.where(square, bend.high[:, i, None, None], 0.0)
            )
        found.append(Jet(value[:, i], grad, hess, np.zeros(n, bool), ""))
    return found


def ranges(tape: Tape, inputs: list[Jet]) -> list[Jet]:
    """The outputs of a tape of what is given for z.

    Where derivatives are carried, a kink counts as not known; a value passes through it.
    """
    jets = list(inputs)
    with np.errstate(all="ignore"):
        for code, operands, constant in zip(tape.codes, tape.operands, tape.constants, strict=True):
            a, b, c = (jets[int(s)] for s in operands)
            jets.append(_step(int(code), a, b, c, float(constant), jets[0].grad is not None))
    return [jets[int(s)] for s in tape.outputs]


def _constant(like: Jet, value: Interval, bad: NDArray[np.bool_], why: str) -> Jet:
    """What is locally constant."""
    if like.grad is None or like.hess is None:
        return Jet(value, None, None, bad, why)
    flat, square = np.zeros_like(like.grad.low), np.zeros_like(like.hess.low)
    return Jet(value, Interval(flat, flat), Interval(square, square), bad, why)


def _step(code: int, a: Jet, b: Jet, c: Jet, constant: float, second: bool) -> Jet:
    if code == _tape.CONSTANT:
        value = np.full_like(a.value.low, constant)
        return _constant(a, Interval(value, value), np.zeros(len(value), bool), "")
    if code == _tape.ADD:
        return _linear(a, b, 1.0)
    if code == _tape.SUB:
        return _linear(a, b, -1.0)
    if code == _tape.MUL:
        return _times(a, b, same=a is b)
    if code in DECIDING:
        return _compared(code, a, b, second)
    if code == _tape.SELECT:
        return _selected(a, b, c, second)
    if code in (CODES["sign"], CODES["floor"]):
        return _rounded(NAMES[code], a, second)
    name = f"x^{constant:g}" if code == _tape.POWER else NAMES[code]
    return _composed(name, power(constant) if code == _tape.POWER else SMOOTH[name], a, second)


def _both(a: Jet, b: Jet) -> tuple[NDArray[np.bool_], str]:
    return a.bad | b.bad, a.why or b.why


def _linear(a: Jet, b: Jet, sign: float) -> Jet:
    def combined(x: Interval, y: Interval) -> Interval:
        return x + y if sign > 0 else x - y

    grad = None if a.grad is None or b.grad is None else combined(a.grad, b.grad)
    hess = None if a.hess is None or b.hess is None else combined(a.hess, b.hess)
    return Jet(combined(a.value, b.value), grad, hess, *_both(a, b))


def _times(a: Jet, b: Jet, *, same: bool) -> Jet:
    value = a.value.square() if same else a.value * b.value
    if a.grad is None or b.grad is None or a.hess is None or b.hess is None:
        return Jet(value, None, None, *_both(a, b))
    x, y = a.value[:, None], b.value[:, None]
    grad = x * b.grad + y * a.grad
    cross = _outer(a.grad, b.grad, same=same)
    turned = Interval(cross.low.swapaxes(1, 2), cross.high.swapaxes(1, 2))
    hess = (x[..., None] * b.hess + y[..., None] * a.hess) + (cross + turned)
    return Jet(value, grad, hess, *_both(a, b))


def _outer(a: Interval, b: Interval, *, same: bool) -> Interval:
    """a_j b_k, (n, nz) ×2 → (n, nz, nz); a square on the diagonal where they are the same."""
    found = a[:, :, None] * b[:, None, :]
    if same:
        diagonal = np.eye(found.low.shape[-1], dtype=bool)
        return Interval(np.where(diagonal, np.maximum(found.low, 0.0), found.low), found.high)
    return found


def _composed(name: str, outer: Smooth, a: Jet, second: bool) -> Jet:
    known = outer.smooth(a.value) if second else outer.defined(a.value)
    bad = a.bad | ~known
    why = a.why or ("" if bool(known.all()) else f"{name} of what may leave its domain, or reach its end")
    value = outer.over(0, a.value)
    if a.grad is None or a.hess is None:
        return Jet(value, None, None, bad, why)
    first, bend = (outer.over(order, a.value) for order in (1, 2))
    grad = first[:, None] * a.grad
    hess = first[:, None, None] * a.hess + bend[:, None, None] * _outer(a.grad, a.grad, same=True)
    return Jet(value, grad, hess, bad, why)


def _compared(code: int, a: Jet, b: Jet, second: bool) -> Jet:
    x, y = a.value, b.value
    if code == _tape.LESS:
        true, false = x.high < y.low, x.low >= y.high
    elif code == _tape.LESS_EQUAL:
        true, false = x.high <= y.low, x.low > y.high
    else:
        true, false = (x.low == x.high) & (y.low == y.high) & (x.low == y.low), (x.high < y.low) | (x.low > y.high)
    value = Interval(np.where(true, 1.0, 0.0), np.where(false, 0.0, 1.0))
    bad, why = _both(a, b)
    return _kinked(a, value, ~(true | false), bad, why, second, "a comparison (where, clamp, abs, max)")


def _kinked(like: Jet, value: Interval, open_: Any, bad: NDArray[np.bool_], why: str, second: bool, name: str) -> Jet:
    """A step function; where it is not decided on the box there is a kink, perhaps."""
    if second and bool(open_.any()):
        bad, why = bad | open_, why or f"{name} that is not decided on the box: a kink, perhaps"
    return _constant(like, value, bad, why)


def _rounded(name: str, a: Jet, second: bool) -> Jet:
    low, high = (np.sign(end) if name == "sign" else np.floor(end) for end in (a.value.low, a.value.high))
    inside = low == high
    inside = inside & (a.value.low > low if name == "floor" else low != 0)
    return _kinked(a, Interval(low, high), ~inside, a.bad, a.why, second, f"{name} (abs, rounding)")


def _selected(condition: Jet, a: Jet, b: Jet, second: bool) -> Jet:
    never, always = condition.value.high == 0, condition.value.low > 0
    always = always | (condition.value.high < 0)
    open_ = ~(never | always)

    def either(x: Interval | None, y: Interval | None) -> Interval | None:
        if x is None or y is None:
            return None
        shape = (len(always), *(1,) * (x.low.ndim - 1))
        first, second_ = always.reshape(shape), never.reshape(shape)
        both = x.hull(y)
        low = np.where(first, x.low, np.where(second_, y.low, both.low))
        return Interval(low, np.where(first, x.high, np.where(second_, y.high, both.high)))

    bad = condition.bad | (a.bad & ~never) | (b.bad & ~always)
    why = (
        condition.why
        or (a.why if bool((a.bad & ~never).any()) else "")
        or (b.why if bool((b.bad & ~always).any()) else "")
    )
    if second and bool(open_.any()):
        bad, why = bad | open_, why or "a choice (where) that is not decided on the box: a kink, perhaps"
    value = either(a.value, b.value)
    assert value is not None
    return Jet(value, either(a.grad, b.grad), either(a.hess, b.hess), bad, why)
