"""A known part p(x, u) as a short list of scalar operations, read from its own torch code.

The function is traced once (`make_fx`, to aten operations on a batch of one), and the trace is run on arrays of symbols: constants
are folded, equal operations shared. What is left is data, like a network's weights: the compiled sweep runs it forward with first
and second derivatives (:mod:`gpsafe.mpc._jets`), and CasADi gets the same operations (:mod:`gpsafe.mpc._casadi`). So every
known part, of a stock system or of a user, has one text, in torch, and exact derivatives everywhere.

Not every function can be read: control flow that depends on values, randomness, operations without a scalar form here, more than
`LONGEST` operations. `tape_of` then says None. A tape is compared with its function before it is used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Known = Callable[[Tensor, Tensor], Tensor]
Array = NDArray[np.float64]
Indices = NDArray[np.int64]

LONGEST = 4000
# Codes of operations, shared with the compiled interpreter and CasADi. UNARY ones are differentiated by their own f′ and f″.
ADD, SUB, MUL, LESS, LESS_EQUAL, EQUAL, SELECT, POWER, CONSTANT = range(9)
UNARY = ("sin", "cos", "tan", "tanh", "exp", "log", "sqrt", "reciprocal", "atan", "asin", "acos", "sinh", "cosh", "log1p", "expm1")
UNARY += ("sign", "floor")
FIRST_UNARY = 16
CODES = {name: FIRST_UNARY + i for i, name in enumerate(UNARY)}
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


EMPTY = Tape(*(np.zeros(s, t) for s, t in (
    (0, np.int64), ((0, 3), np.int64), (0, np.float64), (0, np.int64), (0, np.int64), (0, np.int64), ((0, 0), np.int64)
)))  # fmt: skip


class NotReadableError(Exception):
    """The function has no tape; the message says why."""


@dataclass(frozen=True, slots=True)
class _Slot:
    index: int


Entry = float | _Slot


class _Builder:
    """Appends operations, folding constants and sharing equal ones."""

    def __init__(self, nz: int) -> None:
        self.nz = nz
        self.operations: list[tuple[int, int, int, int, float]] = []
        self.known: dict[tuple[int, int, int, int, float], int] = {}

    def slot(self, entry: Entry) -> int:
        return entry.index if isinstance(entry, _Slot) else self.add(CONSTANT, constant=float(entry)).index

    def add(self, code: int, a: Entry = 0.0, b: Entry = 0.0, c: Entry = 0.0, constant: float = 0.0) -> _Slot:
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
        return _Slot(self.known[key])

    def plus(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, _Slot) and not isinstance(b, _Slot):
            return a + b
        for one, other in ((a, b), (b, a)):
            if one == 0.0 and not isinstance(one, _Slot):
                return other
        return self.add(ADD, a, b)

    def minus(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, _Slot) and not isinstance(b, _Slot):
            return a - b
        return a if not isinstance(b, _Slot) and b == 0.0 else self.add(SUB, a, b)

    def times(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, _Slot) and not isinstance(b, _Slot):
            return a * b
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, _Slot) and one in (0.0, 1.0):
                return 0.0 if one == 0.0 else other
        return self.add(MUL, a, b)

    def unary(self, name: str, a: Entry) -> Entry:
        return self.add(CODES[name], a) if isinstance(a, _Slot) else PLAIN[name](a)

    def over(self, a: Entry, b: Entry) -> Entry:
        if not isinstance(b, _Slot) and b == 0.0:
            raise NotReadableError("division by the constant 0")
        return self.times(a, self.unary("reciprocal", b))

    def power(self, a: Entry, exponent: Entry) -> Entry:
        if isinstance(exponent, _Slot):
            raise NotReadableError("an exponent that is not constant")
        if not isinstance(a, _Slot):
            return float(np.power(np.float64(a), exponent))
        if exponent == int(exponent) and 0 <= exponent <= 4:
            found: Entry = 1.0
            for _ in range(int(exponent)):
                found = self.times(found, a)
            return found
        return self.add(POWER, a, constant=float(exponent))

    def compare(self, code: int, a: Entry, b: Entry) -> Entry:
        if not isinstance(a, _Slot) and not isinstance(b, _Slot):
            return float(a < b if code == LESS else a <= b if code == LESS_EQUAL else a == b)
        return self.add(code, a, b)

    def select(self, condition: Entry, a: Entry, b: Entry) -> Entry:
        if not isinstance(condition, _Slot):
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


class _Runner:
    """Runs a trace on NumPy arrays of entries: shapes are NumPy's work, scalars the builder's."""

    def __init__(self, build: _Builder) -> None:
        self.build = build
        b = build
        self.add, self.sub = np.frompyfunc(b.plus, 2, 1), np.frompyfunc(b.minus, 2, 1)
        self.mul, self.div = np.frompyfunc(b.times, 2, 1), np.frompyfunc(b.over, 2, 1)
        self.pow, self.where = np.frompyfunc(b.power, 2, 1), np.frompyfunc(b.select, 3, 1)
        self.lt = np.frompyfunc(lambda x, y: b.compare(LESS, x, y), 2, 1)
        self.le = np.frompyfunc(lambda x, y: b.compare(LESS_EQUAL, x, y), 2, 1)
        self.eq = np.frompyfunc(lambda x, y: b.compare(EQUAL, x, y), 2, 1)
        self.unary = {name: np.frompyfunc(lambda x, n=name: b.unary(n, x), 1, 1) for name in UNARY}

    def table(self) -> dict[str, Callable[..., Any]]:
        """By aten's names; views and their copies are the same."""
        one = self.unary
        no = lambda x: self.sub(1.0, x)  # noqa: E731
        low = lambda x, y: self.where(self.lt(y, x), y, x)  # noqa: E731
        high = lambda x, y: self.where(self.lt(x, y), y, x)  # noqa: E731

        def clamp(x: Any, least: Any = None, most: Any = None) -> Any:
            x = x if least is None else high(x, least)
            return x if most is None else low(x, most)

        def total(x: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
            axes = tuple(range(x.ndim)) if dims is None or dims == [] else tuple(np.atleast_1d(dims) % x.ndim)
            for axis in sorted(axes, reverse=True):
                x = np.asarray(self.add.reduce(x, axis=axis, keepdims=keepdim), object)
            return x

        def mean(x: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
            found = total(x, dims, keepdim)
            return self.mul(found, found.size / x.size)

        def matmul(a: Any, b: Any) -> Any:
            left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
            found = total(self.mul(left[..., :, :, None], right[..., None, :, :]), -2)
            found = found[..., 0] if b.ndim == 1 else found
            return found[..., 0, :] if a.ndim == 1 and b.ndim > 1 else found[..., 0] if a.ndim == 1 else found

        def plus(a: Any, b: Any, alpha: float = 1.0, **_: Any) -> Any:
            return self.add(a, self.mul(b, alpha))

        def minus(a: Any, b: Any, alpha: float = 1.0, **_: Any) -> Any:
            return self.sub(a, self.mul(b, alpha))

        def divide(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
            if rounding_mode not in (None, "floor"):
                raise NotReadableError(f"division rounded by {rounding_mode}")
            found = self.div(a, b)
            return found if rounding_mode is None else one["floor"](found)

        def linear(bias: Any, a: Any, b: Any, beta: float = 1.0, alpha: float = 1.0) -> Any:
            return self.add(self.mul(bias, beta), self.mul(matmul(a, b), alpha))

        def cut(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
            return x[(*[slice(None)] * (dim % x.ndim), slice(start, end, step))]

        def pick(x: Any, dim: int, index: int) -> Any:
            return np.asarray(np.take(x, index, axis=dim), object)

        def scatter(x: Any, source: Any, dim: int, place: Any) -> Any:
            found = np.array(x, object, copy=True)
            found[(*[slice(None)] * (dim % x.ndim), place)] = source
            return found

        def expand(x: Any, size: Any, **_: Any) -> Any:
            lead = len(size) - x.ndim
            shape = [x.shape[i - lead] if s == -1 else s for i, s in enumerate(size)]
            return np.broadcast_to(x, shape)

        def index(x: Any, places: Any) -> Any:
            return x[tuple(slice(None) if p is None else np.asarray(p, float).astype(np.int64) for p in places)]

        def squeeze(x: Any, dims: Any = None) -> Any:
            axes = range(x.ndim) if dims is None else np.atleast_1d(dims) % x.ndim
            return np.squeeze(x, tuple(int(i) for i in axes if x.shape[i] == 1))

        def sigmoid(x: Any) -> Any:
            return self.mul(0.5, self.add(1.0, one["tanh"](self.mul(0.5, x))))

        def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
            scaled = self.mul(x, beta)
            safe = low(scaled, threshold)
            return self.where(self.lt(threshold, scaled), x, self.mul(one["log1p"](one["exp"](safe)), 1.0 / beta))

        def remainder(a: Any, b: Any) -> Any:
            return self.sub(a, self.mul(b, one["floor"](self.div(a, b))))

        def full(value: Any) -> Callable[..., Any]:
            return lambda x, *rest, **_: np.full(np.shape(x), float(rest[0] if value is None else value), object)

        same = lambda x, *_, **__: x  # noqa: E731
        reshape = lambda x, size: np.reshape(x, size)  # noqa: E731
        table: dict[str, Callable[..., Any]] = {
            "add": plus, "sub": minus, "rsub": lambda a, b, alpha=1.0: minus(b, a, alpha), "mul": self.mul, "div": divide,
            "true_divide": divide, "neg": lambda x: self.mul(-1.0, x), "square": lambda x: self.mul(x, x), "pow": self.pow,
            "rsqrt": lambda x: one["reciprocal"](one["sqrt"](x)), "abs": lambda x: self.mul(x, one["sign"](x)),
            "sgn": one["sign"], "sigmoid": sigmoid, "softplus": softplus, "remainder": remainder,
            "clamp": clamp, "clamp_min": clamp, "clamp_max": lambda x, most: low(x, most), "hardtanh": clamp,
            "relu": lambda x: high(x, 0.0), "minimum": low, "maximum": high, "where": self.where,
            "lt": self.lt, "le": self.le, "gt": lambda a, b: self.lt(b, a), "ge": lambda a, b: self.le(b, a), "eq": self.eq,
            "ne": lambda a, b: no(self.eq(a, b)), "logical_not": no, "bitwise_not": no,
            "logical_and": self.mul, "bitwise_and": self.mul,
            "logical_or": lambda a, b: no(self.mul(no(a), no(b))), "bitwise_or": lambda a, b: no(self.mul(no(a), no(b))),
            "mm": matmul, "mv": matmul, "dot": matmul, "bmm": matmul, "matmul": matmul, "addmm": linear, "addmv": linear,
            "baddbmm": linear, "linear": lambda x, w, b=0.0: self.add(matmul(x, w.T), b), "sum": total, "mean": mean,
            "cat": lambda parts, dim=0: np.concatenate(parts, dim), "stack": lambda parts, dim=0: np.stack(parts, dim),
            "select": pick, "slice": cut, "unbind": lambda x, dim=0: [pick(x, dim, i) for i in range(x.shape[dim])],
            "select_scatter": scatter,
            "slice_scatter": lambda x, y, dim=0, start=None, end=None, step=1: scatter(x, y, dim, slice(start, end, step)),
            "copy": lambda x, y, *_: np.broadcast_to(y, x.shape), "index": index,
            "index_select": lambda x, dim, places: np.take(x, places.astype(np.int64), axis=dim),
            "split": lambda x, size, dim=0: np.split(x, list(range(size, x.shape[dim], size)), dim),
            "split_with_sizes": lambda x, sizes, dim=0: np.split(x, np.cumsum(sizes)[:-1], dim),
            "unsqueeze": lambda x, dim: np.expand_dims(x, dim), "squeeze": squeeze, "view": reshape, "reshape": reshape,
            "_unsafe_view": reshape, "permute": lambda x, dims: np.transpose(x, dims), "t": lambda x: x.T,
            "transpose": lambda x, a, b: np.swapaxes(x, a, b), "expand": expand, "flip": lambda x, dims: np.flip(x, dims),
            "zeros_like": full(0.0), "ones_like": full(1.0), "full_like": full(None),
            "new_zeros": lambda x, size, **_: np.full(size, 0.0, object),
            "new_ones": lambda x, size, **_: np.full(size, 1.0, object),
            "new_full": lambda x, size, value, **_: np.full(size, float(value), object),
            "zeros": lambda size, **_: np.full(size, 0.0, object), "ones": lambda size, **_: np.full(size, 1.0, object),
            "full": lambda size, value, **_: np.full(size, float(value), object),
            "scalar_tensor": lambda value, **_: np.asarray(float(value), object),
            "arange": lambda *ends, **_: np.arange(*ends).astype(float).astype(object),
            "eye": lambda n, m=None, **_: np.eye(n, m).astype(object),
            **dict.fromkeys(("clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "lift", "view_as"), same),
        }  # fmt: skip
        return table | {name: one[name] for name in UNARY if name not in table}

    def run(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        values: dict[Any, Any] = {}
        table, given = self.table(), iter(inputs)

        def read(argument: Any) -> Any:
            if isinstance(argument, torch.fx.Node):
                return values[argument]
            if isinstance(argument, list | tuple):
                return [read(one) for one in argument]
            return argument

        for node in graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = _constant(getattr(graph, str(node.target)))
            elif node.op == "output":
                return read(node.args[0])
            elif getattr(node.target, "__name__", "") == "getitem":
                values[node] = read(node.args[0])[node.args[1]]
            else:
                packet = getattr(node.target, "overloadpacket", None)
                name = getattr(packet, "__name__", str(node.target))
                name = name.removesuffix("_copy") if name not in table else name
                if name not in table:
                    raise NotReadableError(f"no scalar form of {node.target}")
                keywords = {key: read(value) for key, value in node.kwargs.items()}
                for unused in ("dtype", "layout", "device", "pin_memory", "memory_format"):
                    keywords.pop(unused, None)
                found = table[name](*read(node.args), **keywords)
                values[node] = found if isinstance(found, list) else np.asarray(found, object)
        raise NotReadableError("a trace without an output")


def _constant(value: Tensor) -> Any:
    return value.detach().cpu().to(torch.float64).numpy().astype(object)


def read(known: Known, nx: int, nu: int) -> Tape:
    """The tape of p.

    Raises:
        NotReadableError: saying why there is none.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    point = 0.1 + 0.01 * torch.arange(nx + nu, dtype=torch.float64).unsqueeze(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = torch.func.functionalize(lambda x, u: known(x, u), remove="mutations_and_views")
            graph = make_fx(plain)(point[:, :nx].clone(), point[:, nx:].clone())
            build = _Builder(nx + nu)
            slots = np.array([_Slot(i) for i in range(nx + nu)], object).reshape(1, -1)
            found = _Runner(build).run(graph, [slots[:, :nx], slots[:, nx:]])
        outputs = [entry if isinstance(entry, _Slot) else float(entry) for entry in np.asarray(found, object).ravel()]
        if len(outputs) != nx:
            raise NotReadableError(f"{len(outputs)} outputs for {nx} states")
        return build.finish(outputs)
    except NotReadableError:
        raise
    except Exception as error:  # whatever a user's function, or a trace of it, may raise
        raise NotReadableError(f"{type(error).__name__}: {error}") from error


def tape_of(known: Known, nx: int, nu: int) -> Tape | None:
    """The tape of p if it can be read and agrees with p at drawn points, else None; kept for a few p."""
    if not isinstance(known, Hashable):
        return None
    for attempt in range(2):
        tape = _kept(known, nx, nu)
        if tape is None or agrees(tape, known, nx, nu):
            return tape
        if attempt == 0:  # p has changed since it was read (weights of a module, say)
            _kept.cache_clear()
    return None


@lru_cache(maxsize=32)
def _kept(known: Known, nx: int, nu: int) -> Tape | None:
    try:
        return read(known, nx, nu)
    except NotReadableError:
        return None


def agrees(tape: Tape, known: Known, nx: int, nu: int, *, points: int = 16, tolerance: float = 1e-10) -> bool:
    """Whether the tape's values are p's at points of sizes 0.1 to 10."""
    from gpsafe.mpc._jets import evaluate

    generator = torch.Generator().manual_seed(0)
    size = torch.logspace(-1, 1, points, dtype=torch.float64).unsqueeze(-1)
    z = size * torch.randn(points, nx + nu, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = known(z[:, :nx], z[:, nx:])
    if expected.shape != (points, nx):
        return False
    found = np.stack([evaluate(tape, point)[0] for point in z.numpy()])
    return bool(np.allclose(found, expected.numpy(), rtol=tolerance, atol=tolerance, equal_nan=True))
