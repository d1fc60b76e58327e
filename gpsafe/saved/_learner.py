"""A learner on the disk: JSON and arrays, no pickle, no code.

``learner.json`` names the format, the class, the seed, a fingerprint of every part, the log, and the SHA-256 of
``episodes-HASH.npz``, which holds ``states-0000`` and ``inputs-0000`` of every episode as float64, and, if a method keeps more
than trajectories, of ``state-HASH.npz``. All are readable without gpsafe. The arrays are written first and under names of their
own, since the JSON vouches for them: a save that is cut off leaves the one before it whole. Its last entry, ``sha256``, is that
of the others, so that damage is noticed: a log, or a refutation, that was edited is not what was saved. It keeps no forger out,
who can seal anew; what certifies is derived from trajectories.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import types
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._files import write_bytes

FORMAT = "gpsafe learner 3"
UNSEALED = "gpsafe learner 2"  # the same without `sha256`
KINDS = {"episodes": "arrays", "state": "state"}  # files of arrays, and where the header has their SHA-256
History = list[tuple[Tensor, Tensor]]


def write(
    folder: str | Path,
    header: Mapping[str, Any],
    history: Sequence[tuple[Tensor, Tensor]],
    kept: Mapping[str, np.ndarray] | None = None,
    segments: Sequence[str] = (),
) -> Path:
    """Writes the files; returns the folder. `segments`: what `write_segment` returned for those that this save stands on."""
    home = Path(folder)
    arrays = {}
    for number, (states, inputs) in enumerate(history):
        arrays[f"states-{number:04d}"], arrays[f"inputs-{number:04d}"] = states.cpu().numpy(), inputs.cpu().numpy()
    about = {"format": FORMAT, **header, "episodes": len(history), "arrays": _write_arrays(home, "episodes", arrays)}
    if kept:
        about["state"] = _write_arrays(home, "state", kept)
    if segments:
        about["segments"] = list(segments)
    write_bytes(home / "learner.json", json.dumps({**about, "sha256": seal(about)}).encode())
    named = {_name(kind, about.get(key, "")) for kind, key in KINDS.items()}
    named |= {_name("segment", each) for each in segments}
    for kind in (*KINDS, "segment"):
        for old in home.glob(f"{kind}-*.npz"):
            if old.name not in named:
                old.unlink(missing_ok=True)
    return home


def seal(about: Mapping[str, Any]) -> str:
    """SHA-256 of the entries of learner.json, in their order, without that of this name."""
    return hashlib.sha256(json.dumps({k: v for k, v in about.items() if k != "sha256"}).encode()).hexdigest()


def _name(kind: str, digest: str) -> str:
    return f"{kind}-{digest[:16]}.npz"


def write_segment(folder: str | Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes what never changes again; the name by which `write` and `read_segment` know it."""
    return _write_arrays(Path(folder), "segment", arrays)


def has_segment(folder: str | Path, name: str) -> bool:
    """Whether a segment stands in this folder."""
    return (Path(folder) / _name("segment", name)).exists()


def read_segment(where: str, folder: str | Path, name: str) -> dict[str, np.ndarray]:
    """What `write_segment` wrote; ValueError naming the file that is missing, torn or foreign."""
    head = Path(folder) / "learner.json"
    return _arrays(where, head, _read_arrays(where, head, "segment", name))


def _write_arrays(home: Path, kind: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes them; the SHA-256 of the file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]  (uncompressed: noise does not shrink)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    write_bytes(home / _name(kind, digest), buffer.getvalue())
    return digest


def _read_arrays(where: str, head: Path, kind: str, digest: Any) -> bytes:
    body = head.parent / _name(kind, str(digest))
    try:
        data = body.read_bytes()
    except OSError as error:
        raise _require.fail(where, f"the {kind} of the learner", f"{body}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise _require.fail(where, f"the {kind} that learner.json names", f"{body}: torn, or of another save")
    return data


def read(
    where: str, folder: str | Path, wanted: Mapping[str, Any], *, free: Sequence[str] = (), batches: bool = False
) -> tuple[dict[str, Any], History, dict[str, np.ndarray]]:
    """The header, the trajectories and what else was kept of a saved learner.

    Args:
        where: for errors.
        folder: written by `write`.
        wanted: header of the learner that is to go on; class, seed and parts must be the same.
        free: parts that may differ.
        batches: its rows stand for batches of many episodes, whose trajectories nobody keeps.

    Raises:
        ValueError: naming the file that is missing, torn or foreign, or the parts that differ.
    """
    head = Path(folder) / "learner.json"
    try:
        found = json.loads(head.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not str(found.get("format", "")).startswith("gpsafe learner "):
        raise _require.fail(where, "a saved learner", f"{head}: missing, torn or foreign")
    if found["format"] not in (FORMAT, UNSEALED):
        raise _require.fail(where, f"{FORMAT!r}", f"{head}: {found['format']!r}, of another version of gpsafe")
    whole = found["format"] == UNSEALED or found.get("sha256") == seal(found)
    for name in ("learner", "seed"):
        if found.get(name) != wanted[name]:
            raise _require.fail(where, f"a saved {name} {wanted[name]!r}", f"{head}: {found.get(name)!r}")
    _require_same_parts(where, head, found.get("parts"), wanted["parts"], free)
    found.setdefault("untold", [])  # files of before know of none
    kinds = {"episodes": int, "rows": list, "counts": dict, "falsified": (str, types.NoneType), "untold": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong or found["episodes"] != (0 if batches else len(found["rows"])):
        raise _require.fail(where, "a saved learner", f"{head}: foreign in {wrong or 'rows'}")
    if not whole:
        raise _require.fail(where, "what was saved", f"{head}: damaged or edited, its sha256 is another")
    history = _trajectories(where, head, _read_arrays(where, head, "episodes", found.get("arrays")), found["episodes"])
    if "state" not in found:
        return found, history, {}
    return found, history, _arrays(where, head, _read_arrays(where, head, "state", found["state"]))


def _arrays(where: str, head: Path, data: bytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise _require.fail(where, "arrays of numbers", f"{head.parent}: {_require.told(error)}") from error


def _require_same_parts(where: str, head: Path, stored: Any, wanted: Mapping[str, str], free: Sequence[str]) -> None:
    stored = stored if isinstance(stored, dict) else {}
    names = [name for name in dict.fromkeys((*wanted, *stored)) if name.split(".")[0] not in free]
    others = [name for name in names if stored.get(name) != wanted.get(name)]
    if others:
        raise _require.fail(where, f"the parts that {head} was saved with", f"another {', '.join(others)}")


def _trajectories(where: str, body: Path, data: bytes, count: int) -> History:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names = [(f"states-{number:04d}", f"inputs-{number:04d}") for number in range(count)]
            return [(torch.from_numpy(arrays[x]), torch.from_numpy(arrays[u])) for x, u in names]
    except (ValueError, KeyError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise _require.fail(where, f"{count} episodes of numbers", f"{body}: {_require.told(error)}") from error


# ---------------------------------------------------------------- fingerprints
def fingerprints(learner: Any) -> dict[str, str]:
    """A digest of every argument of a learner, and one of every field of an argument that is a dataclass: ``model.nx``."""
    found: dict[str, str] = {}
    for name, value in _arguments(learner):
        if name == "seed":
            continue
        inner = _arguments(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else []
        found |= {f"{name}.{part}": digest(item) for part, item in inner} or {name: digest(value)}
    return found


def digest(value: Any) -> str:
    """16 hex digits of the content, the same in every process.

    Of a function: its name, the plain constants in it, and what it captured (not its instructions, which differ between
    versions of Python). Of an object without readable content: its type.
    """
    sha = hashlib.sha256()
    _feed(sha.update, value, ())
    return sha.hexdigest()[:16]


def _arguments(value: Any) -> list[tuple[str, Any]]:
    """Fields without those that are derived (their names begin with an underscore)."""
    names = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
    return [(name, getattr(value, name)) for name in names]


def _feed(update: Any, value: Any, above: tuple[int, ...]) -> None:
    def tag(*words: object) -> None:
        update(("|".join(map(str, words)) + "|").encode())

    if id(value) in above:
        tag("again", above.index(id(value)))
        return
    inside = (*above, id(value))

    def each(kind: str, items: Sequence[Any]) -> None:
        tag(kind, len(items))
        for item in items:
            _feed(update, item, inside)

    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        tag("array", array.dtype, array.shape)
        update(array.tobytes())
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, slice, torch.dtype, torch.device)):
        tag(type(value).__name__, repr(value))
    elif isinstance(value, type):
        tag("type", value.__module__, value.__qualname__)
    elif isinstance(value, (tuple, list)):
        each(type(value).__name__, value)
    elif isinstance(value, (set, frozenset)):
        each("set", sorted(digest(item) for item in value))
    elif isinstance(value, Mapping):
        each("mapping", [part for pair in value.items() for part in pair])
    elif isinstance(value, types.FunctionType):
        tag("function", value.__module__, value.__qualname__, *value.__code__.co_names)
        plain = [c for c in value.__code__.co_consts if isinstance(c, (bool, int, float, str)) and c != value.__doc__]
        each(
            "code",
            [plain, [_content(cell) for cell in value.__closure__ or ()], value.__defaults__, value.__kwdefaults__],
        )
    elif isinstance(value, types.MethodType):
        each("method", [value.__func__, value.__self__])
    elif isinstance(value, functools.partial):
        each("partial", [value.func, value.args, value.keywords])
    elif isinstance(value, torch.nn.Module):  # a kernel: its tree, its plain attributes, every parameter and buffer
        kinds = [(name, type(part), _plain(part)) for name, part in value.named_modules()]
        each("module", [kinds, dict(value.state_dict())])
    elif dataclasses.is_dataclass(value):
        each(f"{type(value).__module__}.{type(value).__qualname__}", _arguments(value))
    else:
        each(f"{type(value).__module__}.{type(value).__qualname__}", sorted(getattr(value, "__dict__", {}).items()))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return types.CellType


def _plain(part: torch.nn.Module) -> list[tuple[str, str]]:
    kinds = (bool, int, float, str, torch.Size)
    return sorted((name, repr(v)) for name, v in vars(part).items() if isinstance(v, kinds) and name != "training")
