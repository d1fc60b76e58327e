"""Argument checks with one error voice: ``where: expected what, got what``.

NumPy and torch are loaded by the checks that look at arrays: whoever only complains does not wait for them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from torch import Generator, Tensor

    Numbers: TypeAlias = (
        Tensor
        | np.ndarray[Any, Any]
        | float
        | Sequence[float]
        | Sequence[Sequence[float]]
        | Sequence[Sequence[Sequence[float]]]
    )  # what constructors turn into tensors


SEEDS = 2**62  # those below are seeds of every library, and so are others made of them by adding a little


def fail(where: str, expected: str, got: Any) -> ValueError:
    """Returns (does not raise) the project's standard error."""
    return ValueError(f"{where}: expected {expected}, got {got}")


def floats(where: str, name: str, value: Any) -> Tensor:
    """Float64 tensor of a tensor, array or nested list of real numbers: what queries and data come in.

    Any width of float or integer is taken; NaN passes, gradients and device stay, a float64 tensor is returned as it is.
    Booleans and complex numbers are refused.
    """
    import numpy as np
    import torch

    if not isinstance(value, torch.Tensor):
        try:  # its own memory: arrays may be read-only, or change later
            value = torch.from_numpy(np.asarray(value).copy())
        except (TypeError, ValueError) as error:
            raise fail(where, f"real numbers in {name}", f"{type(value).__name__}: {error}") from None
    if value.dtype is torch.float64:
        return value
    if value.is_complex() or value.dtype is torch.bool:
        raise fail(where, f"real numbers in {name}", value.dtype)
    return value.to(torch.float64)


def _said_yes(value: Any) -> bool:
    """Whether a number, or an entry of a nested list or of an array, is a Boolean."""
    if isinstance(value, (list, tuple)):
        return any(map(_said_yes, value))
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def finite(where: str, name: str, value: Tensor | Any) -> Tensor:
    """Float64 tensor of `value`; raises ValueError if it is empty or has NaN or infinite entries. Booleans are no numbers."""
    import torch

    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # words, None, rows of different lengths
        raise fail(where, f"real numbers in {name}", f"{type(value).__name__}: {error}") from None
    if tensor.is_complex() or tensor.dtype is torch.bool or (tensor is not value and _said_yes(value)):
        raise fail(where, f"real numbers in {name}", "Booleans" if not tensor.is_complex() else tensor.dtype)
    tensor = tensor.to(torch.float64)
    if tensor.numel() == 0:
        raise fail(where, f"non-empty {name}", f"shape {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise fail(where, f"finite {name}", f"{bad} NaN or infinite entries")
    return tensor


def generator(where: str, value: Generator | int) -> Generator:
    """A source of random numbers: the one that was given, or a fresh one for an integer seed."""
    import torch

    if isinstance(value, torch.Generator):
        return value
    try:
        return torch.Generator().manual_seed(index(where, "seed", value))
    except ValueError:
        raise fail(where, "a torch.Generator or an integer seed >= 0", repr(value)) from None


def last_dim(where: str, name: str, tensor: Tensor, size: int) -> Tensor:
    """Checks ``tensor.shape[-1] == size``."""
    if tensor.ndim == 0 or tensor.shape[-1] != size:
        raise fail(where, f"{name} of shape (*b, {size})", f"shape {tuple(tensor.shape)}")
    return tensor


def points(where: str, name: str, value: Any, size: int) -> Tensor:
    """Points (*b, size) as `floats`."""
    return last_dim(where, name, floats(where, name, value), size)


def shape(where: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> Tensor:
    """Checks the exact shape."""
    if tuple(tensor.shape) != tuple(expected):
        raise fail(where, f"{name} of shape {tuple(expected)}", f"shape {tuple(tensor.shape)}")
    return tensor


def positive(where: str, name: str, value: Tensor | Sequence[float] | float) -> Tensor:
    """Finite and strictly positive, as a float64 tensor."""
    tensor = finite(where, name, value)
    if not bool((tensor > 0).all()):
        raise fail(where, f"{name} > 0", tensor.tolist())
    return tensor


def nonnegative(where: str, name: str, value: Tensor | Sequence[float] | float) -> Tensor:
    """Finite and ≥ 0, as a float64 tensor."""
    tensor = finite(where, name, value)
    if not bool((tensor >= 0).all()):
        raise fail(where, f"{name} >= 0", tensor.tolist())
    return tensor


def half_axes(where: str, name: str, value: Tensor | Sequence[float] | float) -> Tensor:
    """≥ 0 with squares that float64 holds, which would else say that there is no noise: 0, or 1e-150 to 1e150."""
    tensor = nonnegative(where, name, value)
    if not bool(((tensor == 0) | ((tensor >= 1e-150) & (tensor <= 1e150))).all()):
        raise fail(where, f"{name} of 0 or from 1e-150 to 1e150 (choose other units)", tensor.tolist())
    return tensor


def batch(x: Tensor, u: Tensor) -> tuple[int, ...]:
    """Leading axes of (*b, nx) and (*b, nu), broadcast; `torch.broadcast_shapes` takes as long as ten small operations."""
    if x.shape[:-1] == u.shape[:-1]:
        return x.shape[:-1]
    import torch

    return torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])


def probability(where: str, name: str, value: float) -> float:
    """A number strictly between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1.0 or math.isnan(value):
        raise fail(where, f"{name} in (0, 1)", repr(value))
    return float(value)


def count(where: str, name: str, value: int, minimum: int = 1) -> int:
    """An integer ≥ `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise fail(where, f"integer {name} >= {minimum}", repr(value))
    return value


def indices(where: str, name: str, value: Any, size: int) -> list[int]:
    """The positions in 0..size − 1 that indexing an array of `size` entries with `value` picks, sorted, each once.

    Lists, ranges, tensors and arrays of integers, Boolean masks of length `size`, and slices mean what they mean in NumPy.
    Everything else is refused: floats, mixtures, masks of another length, a bare number, and negative integers, which as
    members of a set are a slip more often than a count from the end.

    >>> indices("f", "members", slice(None, 3), 10), indices("f", "members", [True, False, True], 3)
    ([0, 1, 2], [0, 2])
    """
    expected = f"{name} as integers in 0..{size - 1}, a Boolean mask of length {size} or a slice"
    import numpy as np
    import torch

    if isinstance(value, slice):
        return sorted(range(*value.indices(size)))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
        raise fail(where, expected, repr(value))
    kinds = {type(v) for v in value} if isinstance(value, Sequence) else set()
    if bool in kinds and len(kinds) > 1:
        raise fail(where, expected, f"Booleans and numbers in one list: {list(value)}")
    array = np.asarray(value if len(value) else np.zeros(0, dtype=int))
    if array.ndim != 1:
        raise fail(where, expected, f"shape {array.shape}")
    if array.dtype == bool:
        if len(array) != size:
            raise fail(where, expected, f"a mask of length {len(array)}")
        return np.flatnonzero(array).tolist()
    if array.dtype.kind not in "iu":
        raise fail(where, expected, f"{array.dtype} entries: {array.tolist()}")
    if not bool(((array >= 0) & (array < size)).all()):
        raise fail(where, expected, array.tolist())
    return sorted({int(i) for i in array})


def positions(where: str, name: str, value: Any, size: int) -> tuple[int, ...]:
    """The same for what goes with other things in order (the outputs of a model with its kernels): integers stay as they are
    given, and are refused if there are none or one twice. So are sets, which have no order.

    >>> positions("f", "outputs", [2, 0], 3), positions("f", "outputs", [True, False, True], 3)
    ((2, 0), (0, 2))
    """
    found = indices(where, name, value, size) if not isinstance(value, (set, frozenset)) else []
    if isinstance(value, slice) or (found and _said_yes(value)):
        return tuple(found)
    given = tuple(int(i) for i in value) if found else ()
    if not found or len(given) != len(found):
        raise fail(where, f"distinct {name} in 0..{size - 1}, at least one", repr(value))
    return given


def kind(where: str, name: str, value: Any, expected: type) -> Any:
    """An object of the expected class."""
    if not isinstance(value, expected):
        raise fail(where, f"{name} to be a {expected.__name__}", type(value).__name__)
    return value


def one_of(where: str, name: str, value: str, allowed: Iterable[str]) -> str:
    """A known name."""
    names = sorted(allowed)
    if value not in names:
        raise fail(where, f"{name} in {{{', '.join(names)}}}", repr(value))
    return value


def names(where: str, value: Any, allowed: Iterable[str]) -> tuple[str, ...]:
    """Known names, at least one.

    >>> names("--arms", ("b", "a"), ("a", "b", "c"))
    ('b', 'a')
    """
    given, known = listing(where, "names", value), list(allowed)
    wrong = [name for name in given if name not in known]
    if wrong or not given:
        raise fail(where, f"names among {', '.join(map(repr, known))}", ", ".join(map(repr, wrong)) or "none")
    return given


def real(where: str, name: str, value: Tensor | Any) -> Tensor:
    """Finite float64 numbers, as a copy that nobody else can write on; Booleans are no numbers here."""
    import numpy as np
    import torch

    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise fail(where, f"numbers in {name}", f"{type(value).__name__}: {error}") from None
    if tensor.dtype is torch.bool:
        raise fail(where, f"numbers in {name}", "Booleans")
    return finite(where, name, tensor).detach().clone()


def number(where: str, name: str, value: Any, *, minimum: float = -math.inf) -> float:
    """One finite number ≥ `minimum`: no Boolean, no array of several."""
    if isinstance(value, str) or real(where, name, value).ndim != 0 or not float(value) >= minimum:
        least = "" if minimum == -math.inf else f" >= {minimum:g}"
        raise fail(where, f"one number {name}{least}", repr(value))
    return float(value)


def positive_number(where: str, name: str, value: Any) -> float:
    """One finite number > 0: no Boolean, no array of several."""
    return float(positive(where, name, number(where, name, value)))


def index(where: str, name: str, value: Any, *, minimum: int = 0) -> int:
    """An integer ≥ `minimum` of Python or NumPy: no Boolean, no float that happens to be whole."""
    import torch

    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool) or getattr(value, "dtype", None) is torch.bool or found < minimum:
        raise fail(where, f"integer {name} >= {minimum}", repr(value))
    return found


def seed(where: str, value: Any) -> int:
    """An integer from 0 up to below `SEEDS`."""
    found = index(where, "seed", value)
    if found >= SEEDS:
        raise fail(where, f"integer seed < {SEEDS}", repr(value))
    return found


def level(where: str, name: str, value: Any, *, minimum: float = -math.inf) -> float:
    """One number ≥ `minimum`, or +inf: beyond all."""
    is_inf = isinstance(value, float) and value == math.inf
    return math.inf if is_inf else number(where, name, value, minimum=minimum)


def tolerance(where: str, value: Any) -> float:
    """One number ≥ 0 by which a comparison may miss."""
    if type(value) is float and 0.0 <= value < math.inf:  # asked in every step of a filter
        return value
    return number(where, "tol", value, minimum=0.0)


def whole(where: str, name: str, value: Any) -> Tensor:
    """Integers as int64, a copy: no Booleans, no floats that happen to be whole."""
    import numpy as np
    import torch

    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise fail(where, f"integers in {name}", f"{type(value).__name__}: {error}") from None
    if tensor.dtype is torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise fail(where, f"integers in {name}", tensor.dtype)
    return tensor.to(torch.int64, copy=True)


def listing(where: str, name: str, value: Any) -> tuple[Any, ...]:
    """A collection as a tuple; a string, which would fall apart into letters, is refused."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise fail(where, f"a tuple as {name}", repr(value))
    return tuple(value)


def written(*given: Tensor) -> bool:
    """Whether somebody wrote on tensors that were fresh when they were handed over, even what was there before: torch counts
    writes, but on inference tensors.
    """
    return any(not t.is_inference() and t._version > 0 for t in given)


def told(error: BaseException) -> str:
    """Kind and message of an exception in one line, even if its message cannot be made."""
    try:
        message = " ".join(str(error).split())[:500]
    except BaseException as inner:
        if stops(inner):
            raise
        message = "(its message fails)"
    return f"{type(error).__name__}: {message}"


def stops(error: BaseException) -> bool:
    """Whether it is no failure but somebody's wish to stop: KeyboardInterrupt, SystemExit, or a group that holds one.

    CancelledError and GeneratorExit are none: outsiders throw them where a coroutine awaits or a generator yields, and a call
    that does neither can only have made them itself (an `asyncio.run` in it that was cancelled, say).
    """
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(error, KeyboardInterrupt | SystemExit)
