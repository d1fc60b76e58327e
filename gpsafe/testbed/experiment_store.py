"""One seed of an experiment on the disk: its arguments, where its numbers come from, and its pieces.

A folder ``results/NAME/<seed>/`` holds

- ``config.json``: experiment, budget, seed, arguments;
- ``provenance.json``: one entry a session that worked here (revision, versions, command, start, seconds);
- ``pieces/<key>.json`` and, if it has tensors, ``pieces/<key>.pt``, or the same bytes compressed, ``pieces/<key>.pt.xz``
  (`gpsafe.testbed.experiment_keep`);
- ``done.json``: the keys of all pieces, once the run has returned;
- ``unfinished/``: what a piece in progress keeps to go on after a stop.

Every file is whole or absent (`gpsafe.testbed.store`). A piece is its ``.json``: it names the SHA-256 of the ``.pt`` that
belongs to it, a digest of the experiment, the seed and the arguments it was computed for, and the fingerprint of the code
that made it, all under one seal. A torn pair of files, an edited one and a piece of other arguments are recognised and count
as absent; a piece of other code is recognised and counts as what it is (`Folder.older`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpsafe import _require
from gpsafe.testbed import store

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "gpsafe piece 1"
UNFINISHED = "unfinished"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.=+-]*)*")


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What one stretch of work found: rows of scalars (for tables) and named tensors (for figures)."""

    rows: Sequence[Mapping[str, Any]] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Mismatch(ValueError):
    """A folder holds results of other arguments."""


class Stale(ValueError):
    """A folder holds results of other code."""


def normal(key: str, piece: Piece) -> Piece:
    """The piece as it will be read back: Python's own scalars; detached, contiguous copies of the tensors on the CPU.

    Raises ValueError if a row holds anything but scalars, or a tensor is none.
    """
    where = f"piece {key!r}"
    if not isinstance(piece, Piece):
        raise _require.fail(where, "a Piece", type(piece).__name__)
    rows = []
    for row in piece.rows:
        plain = store.plain(dict(row))
        for name, value in plain.items() if isinstance(plain, dict) else ():
            if isinstance(value, (list, dict)):
                raise _require.fail(where, f"a scalar in column {name!r}", type(value).__name__)
        rows.append(plain)
    for name, tensor in piece.tensors.items():
        import torch  # pieces of rows alone do not wait for it

        if not isinstance(tensor, torch.Tensor):
            raise _require.fail(where, f"a tensor in {name!r}", type(tensor).__name__)
    return Piece(rows, {name: t.detach().cpu().contiguous().clone() for name, t in piece.tensors.items()})


def as_plain(arguments: Any) -> dict[str, Any]:
    """The fields of a dataclass in JSON's terms."""
    fields = store.jsonable(arguments)
    assert isinstance(fields, dict)
    return fields


def differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """``field = stored, not wanted`` for each field that differs."""
    gone = object()
    return [
        f"{name} = {stored.get(name, 'absent')!r} there, {wanted.get(name, 'absent')!r} now"
        for name in dict.fromkeys((*stored, *wanted))
        if stored.get(name, gone) != wanted.get(name, gone)
    ]


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one seed."""

    path: Path

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON object of this folder; None if the file is missing, torn or something else."""
        found = store.read_piece(self.path / name)
        return found if isinstance(found, dict) else None

    def config(self) -> dict[str, Any] | None:
        """Experiment, budget, seed and arguments; None if they cannot be read."""
        found = self.read("config.json")
        if found is None or not isinstance(found.get("arguments"), dict) or type(found.get("seed")) is not int:
            return None
        return found

    def sessions(self) -> list[dict[str, Any]]:
        """Who worked here, as far as it can be read."""
        found = (self.read("provenance.json") or {}).get("sessions")
        return [session for session in found if isinstance(session, dict)] if isinstance(found, list) else []

    def done(self) -> list[str] | None:
        """The keys of all pieces of a finished run; None if it is not finished, or that file is torn or foreign."""
        found = self.read("done.json") or {}
        keys = found.get("pieces")
        if not isinstance(keys, list) or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys):
            return None
        return keys if found.get("seal", (whole := self._whole(keys))) == whole else None

    def write_done(self, keys: Sequence[str], at: str) -> None:
        """Says that the run has returned, after it asked for these pieces."""
        store.write_json(self.path / "done.json", {"pieces": list(keys), "at": at, "seal": self._whole(keys)})

    def _whole(self, keys: Sequence[str]) -> str:
        return store.seal(self.digest(), list(keys))

    @property
    def lock(self) -> Path:
        """What `gpsafe.testbed.lock.held` takes while this seed is computed."""
        return self.path / ".lock"

    def require_same(self, experiment: str, arguments: Any, seed: int) -> None:
        """Raises Mismatch, naming the fields, if results of other arguments are here."""
        stored = self.config()
        if stored is None:
            return
        wanted = {"experiment": experiment, "seed": seed, **as_plain(arguments)}
        there = {"experiment": stored.get("experiment"), "seed": stored["seed"], **stored["arguments"]}
        if differs := differing(there, wanted):
            expected = f"{self.path}: expected the arguments of the results stored there"
            raise Mismatch(f"{expected}, got others ({'; '.join(differs)}); --fresh starts anew")

    def clear(self) -> None:
        """Removes the results of this seed, and nothing that this module does not write."""
        for name in ("done.json", "config.json", "provenance.json", "progress.json"):
            (self.path / name).unlink(missing_ok=True)
        for file in sorted((self.path / "pieces").rglob("*")):
            if file.suffix in (".json", ".pt", ".xz", ".tmp"):
                file.unlink()
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)

    def digest(self) -> str:
        """Which work the pieces here belong to: 16 hex digits of experiment, seed and arguments."""
        config = self.config() or {}
        identity = [config.get(name) for name in ("experiment", "seed", "arguments")]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def write_piece(self, key: str, piece: Piece, made: Mapping[str, Any]) -> None:
        """Stores a piece; tensors first, since the ``.json`` vouches for them."""
        target = self.file(key)
        found: dict[str, Any] = {"format": FORMAT, "key": key, "work": self.digest(), "made": dict(made)}
        found |= {"rows": list(piece.rows), "tensors": None}
        if piece.tensors:
            import torch

            buffer = io.BytesIO()
            torch.save(dict(piece.tensors), buffer)
            store.write_bytes(target.with_name(target.name + ".pt"), buffer.getvalue())
            found["tensors"] = hashlib.sha256(buffer.getvalue()).hexdigest()
        found["seal"] = _seal(found)
        store.write_piece(target.with_name(target.name + ".json"), found)

    def file(self, key: str) -> Path:
        """Path of a piece's files, without suffix."""
        if not _KEY.fullmatch(key):
            expected = "words of letters, digits and _.=+-, joined by /, as the key of a piece"
            raise _require.fail("Record.piece", expected, repr(key))
        return self.path / "pieces" / key

    def read_piece(self, key: str) -> tuple[Piece, dict[str, Any]] | str | None:
        """The piece and how it was made; the reason if its files are unusable; None if there is none."""
        found = self.stored(key)
        if not isinstance(found, tuple):
            return found
        head, data = found
        tensors: dict[str, Tensor] = {}
        if data is not None:
            import torch

            try:
                tensors = torch.load(io.BytesIO(data), weights_only=True)
            except Exception as error:  # torch raises what it likes on what is no file of its own
                return f"{self.file(key)}.pt: no tensors ({type(error).__name__}), counts as absent"
        return Piece(head["rows"], tensors), head["made"]

    def stored(self, key: str) -> tuple[dict[str, Any], bytes | None] | str | None:
        """A piece as its files hold it: the ``.json``, and the bytes of the ``.pt`` that it vouches for (None: no tensors).

        The reason if they are unusable; None if there is no such piece. Of ``.pt`` and ``.pt.xz`` it is the one that fits.
        """
        file = self.file(key)
        target = file.with_name(file.name + ".json")
        if not target.exists():
            return None
        head = as_piece(target)
        if isinstance(head, str):
            return head
        if head["key"] != key or head["work"] != self.digest():
            return f"{target}: belongs to other work, counts as absent"
        if head["tensors"] is None:
            return head, None
        there = [body for suffix in (".pt", ".pt.xz") if (body := file.with_name(file.name + suffix)).is_file()]
        for body in there:
            data = store.read_bytes(body)
            if data is not None and hashlib.sha256(data).hexdigest() == head["tensors"]:
                return head, data
        if not there:
            return f"{file}.pt: missing, counts as absent"
        return f"{there[0]}: not the tensors that were stored, counts as absent"

    def older(self, code: str | None) -> list[Mapping[str, Any]]:
        """How the pieces of this work were made that were not made by the code of this fingerprint.

        An unknown fingerprint, of a piece or of the code, is no other's.
        """
        made = [head["made"] for head in self.heads() if isinstance(head, dict)]
        return [how for how in made if code is None or how.get("code") != code]

    def heads(self) -> Iterator[dict[str, Any] | str]:
        """What stands in the ``.json`` of each piece of this work, without its tensors; or why one cannot be used."""
        work = self.digest()
        for file in sorted((self.path / "pieces").rglob("*.json")):
            found = as_piece(file)
            foreign = isinstance(found, dict) and found["work"] != work
            yield f"{file}: belongs to other work, counts as absent" if foreign else found


def _seal(head: Mapping[str, Any]) -> str:
    return store.seal({name: value for name, value in head.items() if name != "seal"})


def as_piece(file: Path) -> dict[str, Any] | str:
    """The ``.json`` of a piece, or why it is none. Pieces from before there were seals are of unknown code."""
    found = store.read_piece(file)
    kinds = {"key": str, "work": str, "made": dict, "rows": list, "tensors": (str, type(None))}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return f"{file}: torn or foreign, counts as absent"
    if not all(name in found and isinstance(found[name], kind) for name, kind in kinds.items()):
        return f"{file}: torn or foreign, counts as absent"
    if not all(isinstance(row, dict) for row in found["rows"]):
        return f"{file}: torn or foreign, counts as absent"
    if "seal" not in found:
        return found | {"made": {name: value for name, value in found["made"].items() if name != "code"}}
    if found["seal"] != _seal(found):
        return f"{file}: changed since it was written, counts as absent"
    return found


def whose(made: Sequence[Mapping[str, Any]]) -> str:
    """How many pieces are of which code and revision, in words."""
    names = Counter(f"code {m.get('code') or 'unknown'}, revision {m.get('revision') or 'unknown'}" for m in made)
    return "; ".join(f"{count} of {name}" for name, count in sorted(names.items()))


def revive(kind: Any, stored: Mapping[str, Any]) -> Any:
    """The dataclass instance that `as_plain` wrote; ValueError, naming the fields, if it does not fit `kind` today.

    Values come back through those of the default instance: a tuple where it has a tuple (at any depth), a path where
    it has a path, an enum where it has one, "Infinity" and "NaN" as numbers. A field that is None by default is
    taken as it is, lists as tuples.
    """
    default = kind()
    names = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(names.symmetric_difference(stored)):
        raise _require.fail(kind.__name__, f"the fields {sorted(names)}", f"others: {', '.join(unknown)}")
    found = kind(**{name: _like(getattr(default, name), stored[name]) for name in names})
    if differs := differing(stored, as_plain(found)):
        raise _require.fail(kind.__name__, "arguments that read back", "; ".join(differs))
    return found


def _like(default: Any, value: Any) -> Any:
    if isinstance(value, list):
        first = default[0] if isinstance(default, (tuple, list)) and default else None
        items = [_like(first, item) for item in value]
        return items if isinstance(default, list) else tuple(items)
    if dataclasses.is_dataclass(default) and isinstance(value, dict):
        return revive(type(default), value)
    if isinstance(value, str) and not isinstance(default, str) and default is not None:
        kind: Any = type(default)
        return kind(value)
    if value in ("Infinity", "-Infinity", "NaN") and default is None:
        return float(value)
    return value
