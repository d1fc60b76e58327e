"""A known part p(x, u) as a short list of scalar operations, read from its own torch code.

The function is traced once (`make_fx`, to aten operations on a batch of one), and the trace is run on arrays of symbols:
constants are folded, equal operations shared. What is left is data, like a network's weights: the compiled sweep runs it
forward with first and second derivatives (:mod:`gpsafe.planning.mpc._jets`), and CasADi gets the same operations
(:mod:`gpsafe.planning.mpc._casadi`). So every known part, of a stock system or of a user, has one text, in torch, and
exact derivatives.

Not every function can be read: control flow that depends on values, randomness, operations without a scalar form here, more
than `LONGEST` operations. `_read.tape_of` then says None. A tape is compared with its function before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Known = Callable[[Tensor, Tensor], Tensor]
Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LONGEST = 4000
# Codes of operations, shared with the compiled interpreter and CasADi. UNARY ones are differentiated by their own f′ and f″.
ADD, SUB, MUL, LESS, LESS_EQUAL, EQUAL, SELECT, POWER, CONSTANT = range(9)
UNARY = ("sin", "cos", "tan", "tanh", "exp", "log", "sqrt", "reciprocal", "atan", "asin", "acos", "sinh", "cosh")
UNARY += ("log1p", "expm1", "asinh", "acosh", "atanh", "erf", "sign", "floor")
FIRST_UNARY = 16
CODES = {name: FIRST_UNARY + i for i, name in enumerate(UNARY)}
PARTIAL = {POWER, *(CODES[name] for name in ("log", "sqrt", "reciprocal", "asin", "acos", "log1p", "acosh", "atanh"))}
SMALLEST = 1e-290  # of what is folded: products that underflow, or overflow, are left to whoever runs the tape
PLAIN: dict[str, Callable[[float], float]] = {name: getattr(math, name) for name in UNARY if hasattr(math, name)}
PLAIN |= {"reciprocal": lambda v: 1.0 / v, "sign": lambda v: float(np.sign(v)), "floor": lambda v: float(np.floor(v))}


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """Slot i < nz holds z_i; slot nz + i the i-th operation.

    Attributes:
        codes: (L,).
        operands: slots of a, b, c, (L, 3).
        constants: of CONSTANT and POWER, (L,).
        outputs: slots, (nx,).
        order: 0 if locally constant, 1 if affine, else 2, (nz + L,).
        width, dims: how many and which entries of z a slot depends on, (nz + L,) and (nz + L, nz).
    """

    codes: Indices
    operands: Indices
    constants: Array
    outputs: Indices
    order: Indices
    width: Indices
    dims: Indices

    @property
    def arrays(self) -> tuple[Any, ...]:
        """For the interpreter."""
        return self.codes, self.operands, self.constants, self.outputs, self.order, self.width, self.dims


_NONE = np.zeros(0, np.int64)
EMPTY = Tape(_NONE, np.zeros((0, 3), np.int64), np.zeros(0), _NONE, _NONE, _NONE, np.zeros((0, 0), np.int64))


class NotReadableError(Exception):
    """The function has no tape; the message says why."""


@dataclass(frozen=True, slots=True)
class Slot:
    index: int


Entry = float | Slot


class Builder:
    """Appends operations, folding constants and sharing equal ones."""

    def __init__(self, nz: int) -> None:
        self.nz = nz
        self.operations: list[tuple[int, int, int, int, float]] = []
        self.known: dict[tuple[int, int, int, int, float], int] = {}
        self.partial: set[int] = set()  # slots that have no value at some z

    def slot(self, entry: Entry) -> int:
        return entry.index if isinstance(entry, Slot) else self.add(CONSTANT, constant=float(entry)).index

    def add(self, code: int, a: Entry = 0.0, b: Entry = 0.0, c: Entry = 0.0, constant: float = 0.0) -> Slot:
        used = {CONSTANT: 0, SELECT: 3, ADD: 2, SUB: 2, MUL: 2, LESS: 2, LESS_EQUAL: 2, EQUAL: 2}.get(code, 1)
        slots = [self.slot(entry) for entry in (a, b, c)[:used]] + [0] * (3 - used)
        if code in (ADD, MUL):
            slots[:2] = sorted(slots[:2])
        key = (code, slots[0], slots[1], slots[2], constant)
        if key not in self.known:
            if len(self.operations) >= LONGEST:
                raise NotReadableError(f"more than {LONGEST} scalar operations")
            self.operations.append(key)
            self.known[key] = self.nz + len(self.operations) - 1
            if code in PARTIAL or not self.partial.isdisjoint(slots[:used]):
                self.partial.add(self.known[key])
        return Slot(self.known[key])

    def plus(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, Slot) and not isinstance(b, Slot):
            return a + b
        for one, other in ((a, b), (b, a)):
            if one == 0.0 and not isinstance(one, Slot):
                return other
        return self.add(ADD, a, b)

    def minus(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, Slot) and not isinstance(b, Slot):
            return a - b
        return a if not isinstance(b, Slot) and b == 0.0 else self.add(SUB, a, b)

    def times(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, Slot) and not isinstance(b, Slot):
            return a * b if _folds(a * b, a, b) else self.add(MUL, a, b)
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Slot) or one not in (0.0, 1.0):
                continue
            if one == 1.0:
                return other
            if not isinstance(other, Slot) or other.index not in self.partial:
                return 0.0  # but not of 0·ln z, which has no value where ln z has none
        return self.add(MUL, a, b)

    def unary(self, name: str, a: Entry) -> Entry:
        if isinstance(a, Slot):
            return self.add(CODES[name], a)
        found = PLAIN[name](a)
        return found if name not in ("exp", "reciprocal") or _folds(found, a) else self.add(CODES[name], a)

    def over(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(b, Slot) and b == 0.0:
            raise NotReadableError("division by the constant 0")
        return self.times(a, self.unary("reciprocal", b))

    def power(self, a: Entry, exponent: Entry) -> Entry:
        if isinstance(exponent, Slot):  # of a positive base; others disagree with p, and such a tape is not used
            return self.unary("exp", self.times(exponent, self.unary("log", a)))
        if not isinstance(a, Slot):
            found = float(np.power(np.float64(a), exponent))
            return found if _folds(found, a) else self.add(POWER, a, constant=float(exponent))
        if exponent == int(exponent) and 0 <= exponent <= 4:
            product: Entry = 1.0
            for _ in range(int(exponent)):
                product = self.times(product, a)
            return product
        return self.add(POWER, a, constant=float(exponent))

    def compare(self, code: int, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, Slot) and not isinstance(b, Slot):
            return float(a < b if code == LESS else a <= b if code == LESS_EQUAL else a == b)
        return self.add(code, a, b)

    def select(self, condition: Entry, a: Entry, b: Entry) -> Entry:
        if not isinstance(condition, Slot):
            return a if condition != 0.0 else b
        return a if a == b else self.add(SELECT, condition, a, b)

    def finish(self, outputs: list[Entry]) -> Tape:
        out = [self.slot(entry) for entry in outputs]
        keep, stack = set(range(self.nz)), list(out)
        while stack:
            slot = stack.pop()
            if slot not in keep:
                keep.add(slot)
                stack += self._operands(slot)
        place = {slot: i for i, slot in enumerate(sorted(keep))}
        count = len(place) - self.nz
        codes, constants = np.zeros(count, np.int64), np.zeros(count)
        operands = np.zeros((count, 3), np.int64)
        order = np.concatenate([np.ones(self.nz, np.int64), np.zeros(count, np.int64)])
        depends = [{i} for i in range(self.nz)] + [set() for _ in range(count)]
        for slot in sorted(keep)[self.nz :]:
            at, used = place[slot], [place[s] for s in self._operands(slot)]
            code = self.operations[slot - self.nz][0]
            codes[at - self.nz], constants[at - self.nz] = code, self.operations[slot - self.nz][4]
            operands[at - self.nz, : len(used)] = used
            order[at] = _order(code, [int(order[s]) for s in used])
            moving = used[1:] if code == SELECT else used
            if order[at]:
                depends[at] = set().union(*(depends[s] for s in moving))
        width = np.array([len(one) for one in depends], np.int64)
        dims = np.zeros((len(depends), self.nz), np.int64)
        for i, one in enumerate(depends):
            dims[i, : len(one)] = sorted(one)
        return Tape(codes, operands, constants, np.array([place[s] for s in out], np.int64), order, width, dims)

    def _operands(self, slot: int) -> list[int]:
        if slot < self.nz:
            return []
        code, *slots, _ = self.operations[slot - self.nz]
        used = {CONSTANT: 0, SELECT: 3, ADD: 2, SUB: 2, MUL: 2, LESS: 2, LESS_EQUAL: 2, EQUAL: 2}.get(code, 1)
        return [int(s) for s in slots[:used]]


def _folds(found: float, *given: float) -> bool:
    """Whether a product or power of constants is the number it should be, to rounding."""
    return SMALLEST <= abs(found) < math.inf or 0.0 in given or not all(map(math.isfinite, given))


def _order(code: int, orders: list[int]) -> int:
    if code in (CONSTANT, LESS, LESS_EQUAL, EQUAL, CODES["sign"], CODES["floor"]):
        return 0
    if code == SELECT:
        return max(orders[1:])
    if code in (ADD, SUB):
        return max(orders)
    if code == MUL:
        return min(2, sum(orders))
    return 2 if orders[0] else 0
