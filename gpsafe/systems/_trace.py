"""Traces of torch functions, run on NumPy arrays of symbols: see :mod:`gpsafe.systems._tape`."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gpsafe.systems._tape import EQUAL, LESS, LESS_EQUAL, UNARY, Builder, Known, NotReadableError, Slot, Tape


class Runner:
    """Runs a trace on NumPy arrays of entries: shapes are NumPy's work, scalars the builder's."""

    def __init__(self, build: Builder) -> None:
        self.build = build
        b = build
        fold: Any = np.frompyfunc
        self.add, self.sub, self.mul = fold(b.plus, 2, 1), fold(b.minus, 2, 1), fold(b.times, 2, 1)
        self.div, self.pow, self.where = fold(b.over, 2, 1), fold(b.power, 2, 1), fold(b.select, 3, 1)
        self.low = fold(lambda x, y: b.select(b.compare(LESS, y, x), y, x), 2, 1)
        self.high = fold(lambda x, y: b.select(b.compare(LESS, x, y), y, x), 2, 1)
        self.lt = fold(lambda x, y: b.compare(LESS, x, y), 2, 1)
        self.le = fold(lambda x, y: b.compare(LESS_EQUAL, x, y), 2, 1)
        self.eq = fold(lambda x, y: b.compare(EQUAL, x, y), 2, 1)
        self.unary = {name: fold(lambda x, n=name: b.unary(n, x), 1, 1) for name in UNARY}

        self.known = self.table()

    def table(self) -> dict[str, Callable[..., Any]]:
        """By aten's names; views and their copies are the same."""
        one, low, high = self.unary, self.low, self.high
        # By choices, which are exact: 1 − (1 − a)(1 − b) would be 0 to rounding only, and so undecided.
        no = lambda x: self.where(x, 0.0, 1.0)  # noqa: E731
        both = lambda a, b: self.where(a, b, 0.0)  # noqa: E731
        either = lambda a, b: self.where(a, 1.0, b)  # noqa: E731
        truth = lambda x: self.where(x, 1.0, 0.0)  # noqa: E731

        def clamp(x: Any, least: Any = None, most: Any = None) -> Any:
            x = x if least is None else high(x, least)
            return x if most is None else low(x, most)

        def reduced(by: Any) -> Callable[..., Any]:
            def over(x: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
                axes = tuple(range(x.ndim)) if dims is None or dims == [] else tuple(np.atleast_1d(dims) % x.ndim)
                for axis in sorted(axes, reverse=True):
                    x = np.asarray(by.reduce(x, axis=axis, keepdims=keepdim), object)
                return x

            return over

        total = reduced(self.add)

        def extreme(by: Any) -> Callable[..., Any]:
            def found(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
                if isinstance(dim, np.ndarray):  # of two tensors
                    return by(x, dim)
                return reduced(by)(x, dim, keepdim) if dim is None else (reduced(by)(x, dim, keepdim), None)

            return found

        def accumulated(by: Any) -> Callable[..., Any]:
            return lambda x, dim, **_: by.accumulate(x, axis=dim, dtype=object) if x.ndim else x

        def norm(x: Any, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
            if order == math.inf:
                return reduced(high)(self.mul(x, one["sign"](x)), dims, keepdim)
            if order not in (1, 2):
                raise NotReadableError(f"a norm of order {order}")
            sizes = self.mul(x, x) if order == 2 else self.mul(x, one["sign"](x))
            found = total(sizes, dims, keepdim)
            return one["sqrt"](found) if order == 2 else found

        def trunc(x: Any) -> Any:
            return self.where(self.lt(x, 0.0), self.mul(-1.0, one["floor"](self.mul(-1.0, x))), one["floor"](x))

        def angle(y: Any, x: Any) -> Any:
            """atan2, by the quotient that is at most 1; no branch divides by zero, for whoever differentiates both."""
            flat = self.le(self.mul(y, one["sign"](y)), self.mul(x, one["sign"](x)))
            under = self.where(flat, self.where(self.eq(x, 0.0), 1.0, x), self.where(self.eq(y, 0.0), 1.0, y))
            slope = one["atan"](self.div(self.where(flat, y, x), under))
            turned = self.where(self.lt(y, 0.0), -math.pi, math.pi)
            behind = self.where(self.lt(x, 0.0), turned, 0.0)
            return self.where(flat, self.add(slope, behind), self.sub(self.mul(0.5, turned), slope))

        def minor(a: Any, row: int, column: int) -> Any:
            return np.delete(np.delete(a, row, axis=-2), column, axis=-1)

        def determinant(a: Any) -> Any:
            if a.shape[-1] > 4:
                raise NotReadableError(f"a determinant of size {a.shape[-1]}")
            if a.shape[-1] == 1:
                return a[..., 0, 0]
            parts = [
                self.mul((-1.0) ** j, self.mul(a[..., 0, j], determinant(minor(a, 0, j)))) for j in range(a.shape[-1])
            ]
            return total(np.stack(parts), 0)

        def inverse(a: Any) -> Any:
            """By cofactors: exact enough for the few rows of a mass matrix."""
            n, found = a.shape[-1], np.empty(a.shape, object)
            for i, j in np.ndindex(n, n):
                rest = minor(a, j, i)
                found[..., i, j] = self.mul((-1.0) ** (i + j), determinant(rest) if n > 1 else 1.0)
            return self.div(found, np.asarray(determinant(a), object)[..., None, None])

        def solve(a: Any, b: Any, *, left: bool = True, **_: Any) -> Any:
            column = b.ndim == a.ndim - 1
            right = b[..., None] if column else b
            found = matmul(inverse(a), right) if left else matmul(right, inverse(a))
            return (found[..., 0] if column else found), None, None, None

        def put(x: Any, places: Any, value: Any, accumulate: bool = False) -> Any:
            if len(places) != 1 or accumulate or np.shape(places[0]) != x.shape or np.size(value) != 1:
                raise NotReadableError("entries written at places that depend on values")
            return self.where(places[0], np.reshape(value, ()), x)

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
            found = self.div(a, b)
            return found if rounding_mode is None else one["floor"](found) if rounding_mode == "floor" else trunc(found)

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

        def converted(x: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
            """To float64, or of what is known; a conversion to whole numbers or to fewer digits is not the identity."""
            if dtype not in (None, torch.float64) and any(isinstance(entry, Slot) for entry in np.ravel(x)):
                raise NotReadableError(f"a conversion to {dtype}")
            return x

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
            "logical_and": lambda a, b: both(a, truth(b)), "bitwise_and": both,
            "logical_or": lambda a, b: either(a, truth(b)), "bitwise_or": either,
            "mm": matmul, "mv": matmul, "dot": matmul, "bmm": matmul, "matmul": matmul, "addmm": linear, "addmv": linear,
            "amax": reduced(high), "amin": reduced(low), "max": extreme(high), "min": extreme(low), "fmax": high, "fmin": low,
            "prod": reduced(self.mul), "cumsum": accumulated(self.add), "cumprod": accumulated(self.mul),
            "linalg_vector_norm": norm, "atan2": angle, "trunc": trunc,
            "fmod": lambda a, b: self.sub(a, self.mul(b, trunc(self.div(a, b)))),
            "log2": lambda x: self.mul(1.0 / math.log(2.0), one["log"](x)),
            "exp2": lambda x: one["exp"](self.mul(math.log(2.0), x)),
            "erfc": lambda x: self.sub(1.0, one["erf"](x)),
            "hypot": lambda x, y: one["sqrt"](self.add(self.mul(x, x), self.mul(y, y))),
            "logical_xor": lambda a, b: no(self.eq(a, b)), "bitwise_xor": lambda a, b: no(self.eq(a, b)),
            "gather": lambda x, dim, places, **_: np.take_along_axis(x, places.astype(np.int64), axis=dim),
            "log10": lambda x: self.mul(1.0 / math.log(10.0), one["log"](x)),
            "_linalg_det": lambda a: (determinant(a), None, None), "linalg_inv_ex": lambda a, *_: (inverse(a), None),
            "_linalg_solve_ex": solve, "index_put": put,
            "convert_element_type": converted, "_to_copy": converted,
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
            **dict.fromkeys(("clone", "detach", "alias", "contiguous", "lift_fresh", "lift", "view_as"), same),
        }  # fmt: skip
        return table | {name: one[name] for name in UNARY if name not in table}

    def run(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        values: dict[Any, Any] = {}
        table, given = self.known, iter(inputs)

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
                name = _name(node.target)
                name = name.removesuffix("_copy") if name not in table else name
                if name not in table:
                    if not node.users:  # a check, say
                        continue
                    raise NotReadableError(f"no scalar form of {node.target}")
                keywords = {key: read(value) for key, value in node.kwargs.items()}
                if name not in ("_to_copy", "convert_element_type"):
                    keywords.pop("dtype", None)
                for unused in ("layout", "device", "pin_memory", "memory_format"):
                    keywords.pop(unused, None)
                found = table[name](*read(node.args), **keywords)
                values[node] = found if isinstance(found, list | tuple) else np.asarray(found, object)
        raise NotReadableError("a trace without an output")


def _name(operation: Any) -> str:
    """Without its overload: of aten.add.Tensor, add."""
    return getattr(getattr(operation, "overloadpacket", operation), "__name__", str(operation))


def _constant(value: Tensor) -> Any:
    return value.detach().cpu().to(torch.float64).numpy().astype(object)


LEAVING = ("numpy", "__array__", "tolist", "__dlpack__")


@contextlib.contextmanager
def _within_torch() -> Iterator[None]:
    """Refuses numbers that leave torch while a function is traced: what is computed of them is not on the trace."""

    def refuse(tensor: Tensor, *_: Any, **__: Any) -> Any:
        raise NotReadableError("numbers that leave torch (numpy, tolist)")

    kept = {name: getattr(Tensor, name) for name in LEAVING}
    try:
        for name in LEAVING:
            setattr(Tensor, name, refuse)
        yield
    finally:
        for name, method in kept.items():
            setattr(Tensor, name, method)


def read(known: Known, nx: int, nu: int, *, strict: bool = False) -> Tape:
    """The tape of p.

    Args:
        known: p, (*b, nx), (*b, nu) → (*b, nx).
        nx, nu: sizes.
        strict: also refuse a function that reads numbers out of any tensor on its way.

    Raises:
        NotReadableError: saying why there is none.
    """
    from torch._decomp import decomposition_table
    from torch.fx.experimental.proxy_tensor import make_fx

    point = 0.1 + 0.01 * torch.arange(nx + nu, dtype=torch.float64).unsqueeze(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build = Builder(nx + nu)
            runner = Runner(build)
            plain = torch.func.functionalize(lambda x, u: known(x, u), remove="mutations_and_views")
            simpler = {op: made for op, made in decomposition_table.items() if _name(op) not in runner.known}
            with _within_torch() if strict else contextlib.nullcontext():
                graph = make_fx(plain, decomposition_table=cast(Any, simpler))(
                    point[:, :nx].clone(), point[:, nx:].clone()
                )
            slots = np.array([Slot(i) for i in range(nx + nu)], object).reshape(1, -1)
            found = runner.run(graph, [slots[:, :nx], slots[:, nx:]])
        outputs = [entry if isinstance(entry, Slot) else float(entry) for entry in np.asarray(found, object).ravel()]
        if len(outputs) != nx:
            raise NotReadableError(f"{len(outputs)} outputs for {nx} states")
        return build.finish(outputs)
    except NotReadableError:
        raise
    except Exception as error:  # whatever a user's function, or a trace of it, may raise
        raise NotReadableError(f"{type(error).__name__}: {error}") from error
