"""Eight numbers at once, for compiled code: the members of an ensemble side by side, one in each lane of a vector.

The sweep is thousands of sums over two to ten terms, too short for a compiler to vectorise; all members take the same steps.
`load` and `store` move arrays (…, LANES) of doubles, addressed by the leading indices; `fill` makes eight equal ones; + − × ÷
of lanes with lanes and numbers act on each. Where compilation is disabled lanes are NumPy arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 8
_FLAGS = ("reassoc", "contract", "nsz", "arcp")  # infinities and NaN are kept
_VECTOR = ir.VectorType(ir.DoubleType(), LANES)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="gpsafe_lanes")


_lanes = _Lanes()


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _spread(builder: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), mask)


def _pointer(context: Any, builder: Any, signature: Any, array: Any, at: Any) -> Any:
    """Of the first lane at the leading indices `at`, none of them negative."""
    kind, places = signature.args[0], signature.args[1]
    made = context.make_array(kind)(context, builder, value=array)
    size = context.get_value_type(types.intp)
    indices = [
        context.cast(builder, one, given, types.intp)
        for one, given in zip(cgutils.unpack_tuple(builder, at, len(places)), places, strict=True)
    ]
    pointer = cgutils.get_item_pointer(context, builder, kind, made, [*indices, size(0)], wraparound=False)
    return builder.bitcast(pointer, _VECTOR.as_pointer())


def _of_lanes(array: Any, at: Any) -> bool:
    """C-contiguous doubles with one index fewer than axes."""
    right = isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.float64
    return right and isinstance(at, types.BaseTuple) and len(at) == array.ndim - 1


def _load(typing: Any, array: Any, at: Any) -> Any:
    """The lanes of `array` at a tuple of its leading indices."""
    if not _of_lanes(array, at):
        return None

    def made(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, *values), align=8)

    return _lanes(array, at), made


def _store(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Writes lanes, or a number into all of them."""
    if not _of_lanes(array, at) or not isinstance(value, (_Lanes, types.Float)):
        return None

    def made(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        what = values[2] if signature.args[2] == _lanes else _spread(builder, values[2])
        builder.store(what, _pointer(context, builder, signature, *values[:2]), align=8)
        return context.get_dummy_value()

    return types.void(array, at, value), made


def _fill(typing: Any, value: Any) -> Any:
    """Lanes that all hold one number."""
    if not isinstance(value, types.Float):
        return None

    def made(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _spread(builder, values[0])

    return _lanes(value), made


def _operation(function: Callable[..., Any], name: str) -> None:
    """Teaches numba one of + − × ÷."""

    @cast(Any, infer_global)(function)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and _lanes in args and all(isinstance(a, (_Lanes, types.Float)) for a in args):
                return signature(_lanes, *args)
            return None

    def made(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sides = [v if t == _lanes else _spread(builder, v) for v, t in zip(values, signature.args, strict=True)]
        return getattr(builder, name)(*sides, flags=_FLAGS)

    for left, right in ((_Lanes, _Lanes), (_Lanes, types.Float), (types.Float, _Lanes)):
        lower_builtin(function, left, right)(made)


for _function, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operation(_function, _name)
for _function, _name in ((operator.iadd, "fadd"), (operator.isub, "fsub"), (operator.imul, "fmul")):
    _operation(_function, _name)


def _plain_store(array: Any, at: Any, value: Any) -> None:
    array[at] = value


if cast(Any, numba).config.DISABLE_JIT:
    load: Any = lambda array, at: np.array(array[at])  # noqa: E731
    store: Any = _plain_store
    fill: Any = lambda value: np.full(LANES, value)  # noqa: E731
else:
    load, store, fill = intrinsic(_load), intrinsic(_store), intrinsic(_fill)
