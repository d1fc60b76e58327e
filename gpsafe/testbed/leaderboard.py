"""What stored sweeps say, in numbers: for each set of arguments an estimate, its 95 % interval and its sample size.

The unit is the seed. A seed's value is the mean of a column over its rows (and over arguments that are not told apart), the
estimate is the mean over the n seeds, and seeds are independent of each other; rows within a seed need not be. Intervals:

- a column of numbers: Student's t with n − 1 degrees of freedom, right if the seeds' values are about normal; none for n = 1;
- a Boolean column is a rate. With one row a seed: Clopper–Pearson, exact. With several, S is the sum of the seeds' rates, each
  in [0, 1], of which P(S ≥ k) ≤ e P(Bin(n, p) ≥ k) at integers k (Bentkus 2004, Theorem 1.2), so that Clopper–Pearson of ⌊S⌋
  and ⌈S⌉ at the level 1 − 0.05/e holds whatever the dependence within a seed.

Cells of other code are never in one number. A seed that has no value of a column (None in all of its rows) is in no number of
it; the number says how many there are, for a run that breaks off has no violations to show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpsafe import _require
from gpsafe.testbed import sweep
from gpsafe.testbed.sweep_table import OURS, PREFIX, TABLE, read
from gpsafe.verdict import clopper_pearson

if TYPE_CHECKING:
    import pyarrow

LEVEL = 0.95
MOST = 8
"""Columns shown of an experiment if none are asked for."""
Kind = Literal["t", "Clopper–Pearson", "Bentkus", "none"]


@dataclass(frozen=True, slots=True)
class Number:
    """An estimate over seeds."""

    estimate: float
    low: float | None
    high: float | None
    seeds: int
    rows: int
    kind: Kind
    """Of the interval."""
    note: str = ""


def number(values: Mapping[int, Sequence[float]], *, rate: bool) -> Number:
    """The estimate of a column.

    Args:
        values: by seed its rows' values, at least one each.
        rate: whether they are Boolean.

    >>> number({0: [1.0], 1: [0.0], 2: [1.0], 3: [1.0]}, rate=True).estimate
    0.75
    """
    if not values or not all(values.values()):
        counts = {seed: len(rows) for seed, rows in values.items()}
        raise _require.fail("leaderboard.number", "at least one value of each seed", counts)
    means = [mean(rows) for rows in values.values()]
    n, rows = len(means), sum(map(len, values.values()))
    if wild := sum(not math.isfinite(value) for value in means):
        return Number(sum(means) / n, None, None, n, rows, "none", f"{wild} of {n} seeds not finite")
    estimate = mean(means)
    if rate:
        total = sum(Fraction(int(sum(one)), len(one)) for one in values.values())
        exact = rows == n
        level = LEVEL if exact else 1 - (1 - LEVEL) / math.e
        low, high = clopper_pearson(math.floor(total), n, level)[0], clopper_pearson(math.ceil(total), n, level)[1]
        return Number(estimate, low, high, n, rows, "Clopper–Pearson" if exact else "Bentkus")
    if n == 1:
        return Number(estimate, None, None, n, rows, "none", "one seed")
    from scipy import special  # not scipy.stats: it takes a second to load

    spread = math.sqrt(math.fsum((value - estimate) ** 2 for value in means) / (n - 1))
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * spread / math.sqrt(n)
    return Number(estimate, estimate - half, estimate + half, n, rows, "t", "all seeds equal" if spread == 0 else "")


def mean(values: Sequence[float]) -> float:
    """The mean; not finite if one of the values is not.

    >>> mean([0.1] * 10), mean([1.0, math.inf])
    (0.1, inf)
    """
    finite = all(map(math.isfinite, values))
    return (math.fsum(values) if finite else sum(values)) / len(values)


@dataclass(slots=True)
class Stored:
    """One cell, as its rows in a table tell it; or those of its rows that agree in the columns that are told apart."""

    cell: str
    experiment: str
    seed: int
    arguments: Mapping[str, Any]
    """Also those of other experiments, as None; and columns of rows that are told apart."""
    code: str
    folder: Path
    started: str
    revision: str
    seconds: float = 0.0
    values: dict[str, list[float]] = field(default_factory=dict)
    """Rows of numbers and Booleans, by column."""
    words: dict[str, set[str | None]] = field(default_factory=dict)
    """What stands in columns of text."""


@dataclass(frozen=True, slots=True)
class Line:
    """One set of arguments under one code."""

    arguments: Mapping[str, Any]
    """Those that are told apart."""
    others: Mapping[str, Any]
    """The rest; a list of values where several are in one number."""
    code: str
    latest: bool
    """Whether no later code of this experiment is stored."""
    numbers: Mapping[str, Number]
    cells: tuple[Stored, ...]
    failed: int


@dataclass(frozen=True, slots=True)
class Board:
    """One experiment."""

    experiment: str
    by: tuple[str, ...]
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    """Columns of numbers that are not shown."""
    mixed: tuple[str, ...]
    """Columns of text in which rows of one cell differ: their numbers are averaged."""
    lines: tuple[Line, ...]
    ranked: bool


@dataclass(frozen=True, slots=True)
class Sweeps:
    """What is stored: each cell once, and what is wrong."""

    homes: tuple[Path, ...]
    cells: tuple[Stored, ...]
    columns: tuple[str, ...]
    """Of numbers and of Booleans."""
    rates: frozenset[str]
    """The Boolean ones."""
    failures: Mapping[Path, str]
    notes: tuple[str, ...]


def load(homes: Iterable[str | Path], *, by: Iterable[str] = ()) -> Sweeps:
    """Reads the tables of sweeps; of a cell that is in several of them the first counts.

    Args:
        homes: folders of sweeps.
        by: columns of rows to tell apart; a name that is no such column is left to `boards`.

    Raises ValueError if one has no table that can be read.
    """
    import pyarrow

    places = tuple(dict.fromkeys(Path(home).parent if Path(home).name == TABLE else Path(home) for home in homes))
    tables: dict[Path, pyarrow.Table] = {}
    kinds: dict[str, set[pyarrow.DataType]] = {}
    for home in places:
        if (table := read(home)) is None:
            raise _require.fail("leaderboard", f"a sweep's folder with {TABLE}", f"{str(home)!r}")
        tables[home] = table
        for one in table.schema:
            if one.name not in OURS and not one.name.startswith(PREFIX) and one.type != pyarrow.null():
                kinds.setdefault(one.name, set()).add(one.type)
    rates = frozenset(name for name, found in kinds.items() if found == {pyarrow.bool_()})
    columns = tuple(name for name in kinds if kinds[name] <= {pyarrow.int64(), pyarrow.float64()} or name in rates)
    cells: dict[tuple[str, str], Stored] = {}
    notes: list[str] = []
    for home, table in tables.items():
        for name, cell in _cells(home, table, columns, list(by)).items():
            if repr(cell.values) != repr(cells.setdefault(name, cell).values):
                notes.append(
                    f"{cell.folder}: expected the numbers of {cells[name].folder}, got others; the latter count"
                )
    known = {cell.folder.parts[-3:] for cell in cells.values()}  # hash of the group, experiment, seed
    failed: dict[Path, str] = {}
    for folder, why in ((folder, why) for home in places for folder, why in sweep.failures(home).items()):
        if folder.parts[-3:] not in known:
            known.add(folder.parts[-3:])
            failed[folder] = why
    return Sweeps(places, tuple(cells.values()), columns, rates, failed, tuple(notes))


def _cells(
    home: Path, table: pyarrow.Table, columns: Sequence[str], by: Sequence[str]
) -> dict[tuple[str, str], Stored]:
    """The cells of a table by name and by what stands in the columns that are told apart."""
    import pyarrow

    fields = {name: table[name].to_pylist() for name in table.column_names}
    arguments = [name for name in fields if name.startswith(PREFIX)]
    free = [name for name in fields if name not in OURS and name not in arguments]
    labels = [name for name in by if name in free and PREFIX + name not in fields]
    own = [name for name in columns if name in fields and name not in labels]
    texts = [name for name in free if table.schema.field(name).type == pyarrow.string() and name not in labels]
    found: dict[tuple[str, str], Stored] = {}
    pieces: set[tuple[tuple[str, str], str]] = set()
    for i, which in enumerate(fields["cell"]):
        name = which, repr([fields[key][i] for key in labels])
        if (cell := found.get(name)) is None:
            given = {key.removeprefix(PREFIX): fields[key][i] for key in arguments}
            given |= {key: fields[key][i] for key in labels}
            code, place, started, by = (
                fields[key][i] or "unknown" for key in ("code", "folder", "started", "revision")
            )
            cell = Stored(which, fields["experiment"][i], fields["seed"][i], given, code, home / place, started, by)
            found[name] = cell
        if (piece := (name, fields["piece"][i])) not in pieces:
            pieces.add(piece)
            cell.seconds += fields["seconds"][i] or 0.0
        for key in texts:
            cell.words.setdefault(key, set()).add(fields[key][i])
        for key in own:
            if (value := fields[key][i]) is not None:
                cell.values.setdefault(key, []).append(float(value))
    return found


def boards(
    stored: Sweeps, *, values: Sequence[str] = (), by: Sequence[str] = (), smallest: bool = False
) -> list[Board]:
    """One board an experiment.

    Args:
        stored: the sweeps.
        values: columns to show; the first ranks the lines. All (`MOST` at most) and no ranking if empty.
        by: arguments and columns of rows (given to `load` too) to tell apart; the arguments that vary if empty.
        smallest: whether small values rank first.

    Raises ValueError if no experiment has a column or an argument of such a name.
    """
    known = list(dict.fromkeys(name for cell in stored.cells for name in cell.arguments))
    names = [name if name in known else name.removeprefix(PREFIX).replace("-", "_") for name in by]
    for given, there, what in ((values, stored.columns, "columns of numbers"), (names, known, "arguments and columns")):
        for name in given:
            if name not in there:
                raise _require.fail("leaderboard", f"{what} among {', '.join(there) or 'none'}", repr(name))
    found = []
    for experiment in sorted({cell.experiment for cell in stored.cells}):
        cells = [cell for cell in stored.cells if cell.experiment == experiment]
        there = [name for name in stored.columns if any(name in cell.values for cell in cells)]
        columns = [name for name in values if name in there] if values else there[:MOST]
        if not columns:
            continue
        arguments = [name for name in known if any(cell.arguments.get(name) is not None for cell in cells)]
        varying = [name for name in arguments if len({repr(cell.arguments.get(name)) for cell in cells}) > 1]
        told = [name for name in names if name in arguments] if names else varying
        lines = _lines(stored, cells, told, arguments, columns)
        if values:
            lines.sort(key=lambda line: _order(line.numbers.get(columns[0]), smallest))
        left_out = tuple(name for name in there if name not in columns)
        texts = dict.fromkeys(name for cell in cells for name, words in cell.words.items() if len(words) > 1)
        found.append(Board(experiment, tuple(told), tuple(columns), left_out, tuple(texts), tuple(lines), bool(values)))
    return found


def _order(number: Number | None, smallest: bool) -> tuple[bool, float]:
    if number is None or math.isnan(number.estimate):
        return True, 0.0
    return False, number.estimate if smallest else -number.estimate


def _lines(
    stored: Sweeps, cells: Sequence[Stored], by: Sequence[str], arguments: Sequence[str], columns: Sequence[str]
) -> list[Line]:
    latest = max(cells, key=lambda cell: cell.started).code
    groups: dict[str, list[Stored]] = {}
    for cell in cells:
        groups.setdefault(repr((cell.code, [cell.arguments.get(name) for name in by])), []).append(cell)
    lines = []
    for group in groups.values():
        others = {}
        for name in arguments:
            if name not in by:
                seen = list({repr(cell.arguments.get(name)): cell.arguments.get(name) for cell in group}.values())
                others[name] = seen[0] if len(seen) == 1 else seen
        numbers = {}
        for name in columns:
            seeds: dict[int, list[float]] = {}
            for cell in group:
                if name in cell.values:
                    seeds.setdefault(cell.seed, []).extend(cell.values[name])
            if seeds:
                found = number(seeds, rate=name in stored.rates)
                without = len({cell.seed for cell in group} - set(seeds))
                told = f"none of {without} of {len(seeds) + without} seeds" if without else ""
                numbers[name] = replace(found, note=", ".join(filter(None, (found.note, told))))
        parents = {cell.folder.parts[-3:-1] for cell in group}
        failed = sum(folder.parts[-3:-1] in parents for folder in stored.failures)
        where = {name: group[0].arguments.get(name) for name in by}
        ordered = tuple(sorted(group, key=lambda cell: (cell.seed, cell.cell)))
        lines.append(Line(where, others, group[0].code, group[0].code == latest, numbers, ordered, failed))
    return lines
