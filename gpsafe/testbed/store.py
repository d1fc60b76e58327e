"""Files that are either whole or absent: atomic writes of text, JSON and tensors.

Strict JSON has no infinities and no NaN. `write_json` writes them as the strings ``"Infinity"``,
``"-Infinity"`` and ``"NaN"``, which ``float(...)`` in Python and ``Number(...)`` in JavaScript read back.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpsafe import _require
from gpsafe._files import write_bytes

Plain = None | bool | int | float | str | list[Any] | dict[str, Any]


def plain(value: Any) -> Plain:
    """`value` in Python's own numbers, strings, lists and dicts; infinities and NaN stay floats.

    Takes NumPy and torch scalars and arrays, tuples, sets (sorted), paths, enums and dataclasses too. What
    comes out survives Python's ``json`` unchanged. Raises ValueError for anything else.

    >>> import numpy as np
    >>> plain({1: (np.float64(0.5), Path("a"))})
    {'1': [0.5, 'a']}
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        keys = [_key(key) for key in value]
        if len(set(keys)) != len(keys):
            raise _require.fail("store.plain", "keys that differ as strings", sorted(keys))
        return {key: plain(item) for key, item in zip(keys, value.values(), strict=True)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if _is(value, "torch", "Tensor"):
        return value.detach().cpu().tolist()
    if _is(value, "numpy", "ndarray", "generic"):
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise _require.fail("store.plain", "numbers, strings, lists and dicts", type(value).__name__)


def _is(value: Any, library: str, *names: str) -> bool:
    """Whether `value` is of one of these types of a library; one that is not loaded has made no value."""
    module = sys.modules.get(library)
    kinds = [getattr(module, name, None) for name in names]
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def _key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return str(key)
    if isinstance(key, (bool, int, float)):
        return repr(key)
    raise _require.fail("store.plain", "strings or numbers as keys", type(key).__name__)


def jsonable(value: Any) -> Plain:
    """Like `plain`, with infinities and NaN as strings: fit for strict JSON.

    >>> jsonable([1.5, math.inf, -math.inf, math.nan])
    [1.5, 'Infinity', '-Infinity', 'NaN']
    """
    return _strict(plain(value))


def _strict(value: Plain) -> Plain:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return value


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes UTF-8 text atomically; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> Path:
    """Writes strict JSON atomically, through `jsonable`."""
    return write_text(path, json.dumps(jsonable(value), indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def write_torch(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes tensors (and dicts and lists of them) atomically; read with `read_torch`."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return write_bytes(path, buffer.getvalue())


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Reads what `write_torch` wrote. Loads tensors and plain containers only, never code."""
    import torch

    return torch.load(path, weights_only=True)


def write_piece(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes a piece of a run atomically. Unlike `write_json` it keeps infinities and NaN as numbers."""
    return write_text(path, json.dumps(plain(value), ensure_ascii=True))


def read_piece(path: str | os.PathLike[str]) -> Any | None:
    """Reads what `write_piece` wrote; None if it is missing, damaged or no file (so that it is made again)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_xz(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes bytes atomically, compressed as an ``.xz`` file that any such program opens; `read_bytes` gives them back.

    Its settings are for numbers of four or eight bytes side by side, in which bytes of the same place are alike.
    """
    import lzma

    window = min(max(len(data), 1 << 12), 1 << 26)  # a larger one costs memory and time to set up
    numbers = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": window,
        "lc": 0,
        "lp": 3,
        "pb": 3,
    }
    return write_bytes(path, lzma.compress(data, filters=[numbers]))


def read_bytes(path: str | os.PathLike[str]) -> bytes | None:
    """The bytes of a file, of one whose name ends in ``.xz`` those before it was compressed; None if they cannot be read."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return None
    if Path(path).suffix != ".xz":
        return data
    import lzma

    try:
        return lzma.decompress(data)
    except (lzma.LZMAError, EOFError):
        return None


def seal(*parts: Any) -> str:
    """16 hex digits of JSON values: stored beside them it tells what was written from what was changed since.

    It finds torn, foreign and edited files; who can run this function can forge them.

    >>> seal("a", {"x": 1, "y": 2}) == seal("a", {"y": 2, "x": 1}) != seal("a", {"x": 1, "y": 3})
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def require_writable(where: str, path: str | os.PathLike[str]) -> Path:
    """Raises ValueError unless a file at `path` could be written now. Leaves no trace on success."""
    target = Path(path)
    if target.is_dir():
        raise _require.fail(where, "a file name", f"the folder {str(target)!r}")
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise _require.fail(where, f"a path that can be written, not {str(target)!r}", f"the file {str(folder)!r}")
    try:
        if target.exists():
            with target.open("ab"):
                pass
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _require.fail(where, f"a path that can be written, not {str(target)!r}", reason) from None
    return target
