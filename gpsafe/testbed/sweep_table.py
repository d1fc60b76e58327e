"""The rows of all finished cells of a sweep as one Parquet table, ``FOLDER/table.parquet``.

One file, since readers of a folder of parts take the columns of the first part and drop what only later ones have. It is
derived from the folders of the cells, which stay the truth: it is whole or absent, a torn one is made again from them, and
cells that it lacks are added. It is rewritten while the sweep runs, but only once it would grow by a quarter: of n cells O(n)
are written in all, not O(n²).

Columns, in this order:

- ``cell`` (hash of experiment, arguments, code and seed), ``experiment``, ``seed``;
- ``arg_NAME`` for each argument; tuples as JSON text;
- ``piece`` and ``row``, which counts the rows of a cell: (cell, row) is unique;
- the columns of the rows themselves, ``row_NAME`` where a name is taken or begins with ``arg_`` or ``row_``;
- ``revision``, ``code`` (fingerprint), ``started`` (UTC), ``seconds`` of the piece, and ``folder`` of the cell.

Numbers keep their bits: a column of integers and floats is one of floats if no integer loses by it, and any other mixture is
JSON text. NaN is a number, null is what a row has not.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpsafe.testbed import lock, store
from gpsafe.testbed.experiment_store import Folder, as_piece
from gpsafe.testbed.sweep import RUNS, grouped, named
from gpsafe.testbed.tables import number

if TYPE_CHECKING:
    import pyarrow

TABLE = "table.parquet"
HEAD = ("cell", "experiment", "seed")
PLACE = ("piece", "row")
MADE = ("revision", "code", "started", "seconds", "folder")
OURS = frozenset((*HEAD, *PLACE, *MADE))
PREFIX = "arg_"
CHUNK = 1000
"""Cells whose rows are in memory as Python's objects at once."""
EXACT = 2**53
JSON = b"json"
"""Mark of a column of JSON text, in the metadata of its field."""


def column(name: str) -> str:
    """The column of the table that holds a column of a row; different names have different ones.

    >>> column("cost"), column("seed"), column("row_seed")
    ('cost', 'row_seed', 'row_row_seed')
    """
    return f"row_{name}" if name in OURS or name.startswith((PREFIX, "row_")) else name


def rows(folder: Folder, place: str) -> list[dict[str, Any]] | str:
    """The rows of a finished cell, or why there are none.

    Args:
        folder: of the cell.
        place: its path below the sweep's folder.
    """
    config, keys = folder.config(), folder.done()
    if config is None or keys is None:
        return f"{folder.path}: not finished"
    found: list[dict[str, Any]] = []
    arguments = {PREFIX + name: _scalar(value) for name, value in config["arguments"].items()}
    group, work = folder.path.parent.parent.name, folder.digest()
    for key in keys:
        piece = as_piece(file := folder.file(key).parent / f"{folder.file(key).name}.json")
        if isinstance(piece, str):
            return piece
        made = piece["made"]
        if piece["key"] != key or piece["work"] != work:
            return f"{file}: belongs to other work, counts as absent"
        if grouped(config.get("experiment", ""), config["arguments"], made.get("code")) != group:
            return f"{file}: of other arguments or other code than its folder says"
        head = {"cell": named(group, config["seed"]), "experiment": config["experiment"], "seed": config["seed"]}
        about = {"revision": made.get("revision"), "code": made.get("code"), "started": _started(made)}
        about |= {"seconds": made.get("seconds"), "folder": place}
        for row in piece["rows"]:
            own = {column(name): value for name, value in row.items()}
            found.append({**head, **arguments, "piece": key, "row": len(found), **own, **about})
    return found


def _scalar(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else number(value)


def _started(made: Mapping[str, Any]) -> str | None:
    try:
        return (datetime.fromisoformat(made["at"]) - timedelta(seconds=made["seconds"])).isoformat(timespec="seconds")
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def read(home: str | Path) -> pyarrow.Table | None:
    """The table of a sweep's folder as it is now; None if there is none, or it cannot be read or is another's."""
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_table(Path(home) / TABLE, partitioning=None)  # pyright: ignore[reportArgumentType]
    except (OSError, pyarrow.ArrowException):
        return None
    return found if set(found.column_names) >= OURS else None


@dataclass(slots=True)
class Table:
    """The table of one sweep's folder, and which cells it has.

    Attributes:
        home: the sweep's folder.
        known: names of the cells in it, as far as this process has seen.
        codes: by experiment, of which codes there are rows.
    """

    home: Path
    known: set[str] = field(default_factory=set)
    codes: dict[str, set[str]] = field(default_factory=dict)

    def add(self, cells: Iterable[tuple[str, str]], *, again: bool = False) -> dict[str, str]:
        """Adds finished cells, given by name and path below the folder, and what a torn table lacks; returns by name why cells
        could not be read. Cells that are in it stay as they are unless `again`. Several processes may do so at once.
        """
        import pyarrow
        import pyarrow.compute

        wanted = dict(cells)
        with lock.held(self.home / ".table.lock"):
            old = read(self.home)
            there = set() if old is None else set(old["cell"].unique().to_pylist())
            if old is None:  # also the cells of sweeps that were here before
                wanted = dict(finished(self.home)) | wanted
            new = [(name, place) for name, place in wanted.items() if again or name not in there]
            wrong: dict[str, str] = {}
            parts = [] if old is None else [old]
            if gone := there & {name for name, _ in new}:
                parts = [parts[0].filter(~pyarrow.compute.field("cell").isin(sorted(gone)))]
            for start in range(0, len(new), CHUNK):
                if made := self._rows(new[start : start + CHUNK], wrong):
                    parts.append(_table(made))
            if gone or len(parts) > (old is not None):
                old = merged(parts)
                _write(self.home / TABLE, old)
            self.known = there | {name for name, _ in new} - set(wrong)
            for pair in old.group_by(["experiment", "code"]).aggregate([]).to_pylist() if old is not None else ():
                self.codes.setdefault(pair["experiment"], set()).add(pair["code"])
        return wrong

    def due(self, new: int) -> bool:
        """Whether so many cells more are worth writing the table anew."""
        return new >= max(CHUNK, len(self.known) // 4)

    def _rows(self, cells: Sequence[tuple[str, str]], wrong: dict[str, str]) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for name, place in cells:
            found = rows(Folder(self.home / place), place)
            if isinstance(found, str):
                wrong[name] = found
            else:
                made += found
        return made


def finished(home: str | Path) -> Iterator[tuple[str, str]]:
    """Names and places of all finished cells of a sweep's folder that can be read."""
    for file in sorted(Path(home).glob(f"{RUNS}/*/*/*/done.json")):
        place = file.parent.relative_to(home).as_posix()
        found = rows(Folder(file.parent), place)
        if not isinstance(found, str) and found:
            yield found[0]["cell"], place


def merged(parts: Sequence[pyarrow.Table]) -> pyarrow.Table:
    """Tables of cells as one: all their columns, each in a type that holds what stands in all of them, sorted by experiment,
    code, arguments and seed.
    """
    import pyarrow

    seen = list(dict.fromkeys(name for part in parts for name in part.column_names))
    arguments = [name for name in seen if name.startswith(PREFIX)]
    own = [name for name in seen if name not in OURS and name not in arguments]
    names = [*HEAD, *arguments, *PLACE, *own, *MADE]
    columns, fields = [], []
    for name in names:
        kind, text = _common([part.schema.field(name) for part in parts if name in part.column_names], parts, name)
        chunks = []
        for part in parts:
            if name not in part.column_names:
                chunks.append(pyarrow.nulls(part.num_rows, kind))
            elif text and JSON not in (part.schema.field(name).metadata or {}):
                chunks.append(_as_text(part[name].to_pylist()))
            else:
                chunks += part[name].cast(kind).chunks
        columns.append(pyarrow.chunked_array(chunks, kind))
        fields.append(pyarrow.field(name, kind, metadata={JSON: b"1"} if text else None))
    whole = pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields))
    known = [name for name in sorted(arguments) if whole.schema.field(name).type != pyarrow.null()]
    order = ["experiment", "code", *known, "seed", "cell", "row"]  # the seeds of one set of arguments side by side
    return whole.sort_by([(name, "ascending") for name in order])


def _common(
    fields: Sequence[pyarrow.Field], parts: Sequence[pyarrow.Table], name: str
) -> tuple[pyarrow.DataType, bool]:
    """The type of a column that holds those of all parts, and whether it is one of JSON text."""
    import pyarrow
    import pyarrow.compute

    if any(JSON in (one.metadata or {}) for one in fields):
        return pyarrow.string(), True
    kinds = {one.type for one in fields} - {pyarrow.null()}
    if len(kinds) < 2:
        return (*kinds, pyarrow.null())[0], False
    if kinds == {pyarrow.int64(), pyarrow.float64()}:
        whole = [part[name] for part in parts if name in part.column_names and part[name].type == pyarrow.int64()]
        ends: Any = pyarrow.compute.min_max  # pyright: ignore[reportAttributeAccessIssue]
        if all(_exact(ends(values).as_py().values()) for values in whole):
            return pyarrow.float64(), False
    return pyarrow.string(), True


def _exact(values: Iterable[Any]) -> bool:
    """Whether floats hold these integers."""
    return all(abs(value) <= EXACT for value in values if type(value) is int)


def _table(found: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    import pyarrow

    columns, fields = [], []
    for name in dict.fromkeys(name for row in found for name in row):
        array, text = _array([row.get(name) for row in found])
        columns.append(array)
        fields.append(pyarrow.field(name, array.type, metadata={JSON: b"1"} if text else None))
    return pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(fields))


def _array(values: list[Any]) -> tuple[pyarrow.Array, bool]:
    """Python's scalars in one type, and whether it is JSON text because they have none in common."""
    import pyarrow

    kinds = {type(value) for value in values} - {type(None)}
    types = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    try:
        if len(kinds) < 2:
            return pyarrow.array(values, types[kinds.pop()] if kinds else pyarrow.null()), False
        if kinds == {int, float} and _exact(values):
            return pyarrow.array(values, pyarrow.float64()), False
    except (OverflowError, UnicodeEncodeError, pyarrow.ArrowInvalid):  # beyond 64 bits; half a character
        pass
    return _as_text(values), True


def _as_text(values: Iterable[Any]) -> pyarrow.Array:
    import pyarrow

    return pyarrow.array([None if value is None else json.dumps(value) for value in values], pyarrow.string())


def _write(path: Path, table: pyarrow.Table) -> None:
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    store.write_bytes(path, buffer.getvalue())
