"""``gpsafe leaderboard``: a page of what stored sweeps found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gpsafe.cli.common import UsageError, parse
from gpsafe.cli.sweeps import Words, require_extra

DEFAULT = Path("results", "sweeps")


@dataclass(frozen=True)
class LeaderboardOptions:
    """Draws a static page of stored sweeps: every number with its 95 % interval, its sample size and its cells."""

    sweeps: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[SWEEPS ...]")]] = ()
    """Folders of sweeps (default: all in results/sweeps/)."""
    output: Annotated[Path, tyro.conf.arg(metavar="FILE.html")] = Path("leaderboard.html")
    """The page."""
    value: Annotated[Words, tyro.conf.arg(metavar="COLUMN ...")] = ()
    """Columns of the table to show; the first one ranks (default: all numbers, eight at most, and no ranking)."""
    by: Annotated[Words, tyro.conf.arg(metavar="ARGUMENT ...")] = ()
    """Arguments, and columns of rows, to tell apart (default: the arguments that vary)."""
    smallest_first: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Small values rank first."""


def leaderboard(words: Sequence[str], command: str) -> int:
    """``gpsafe leaderboard``: reads the tables, computes nothing anew."""
    known = [f.name for f in dataclasses.fields(LeaderboardOptions)]
    options: LeaderboardOptions = parse(LeaderboardOptions, words, prog="gpsafe leaderboard", known=known)
    require_extra("leaderboard", "pyarrow")
    from gpsafe.testbed import leaderboard as numbers
    from gpsafe.testbed import leaderboard_page, store
    from gpsafe.testbed.sweep_table import TABLE

    sweeps = options.sweeps or tuple(file.parent for file in sorted(DEFAULT.glob(f"*/{TABLE}")))
    values, by = ([word for several in given for word in several] for given in (options.value, options.by))
    if not sweeps:
        raise UsageError(f"gpsafe leaderboard: expected sweeps in {DEFAULT}, got none; gpsafe sweep computes them")
    try:
        store.require_writable("--output", options.output)
        stored = numbers.load(sweeps, by=by)
        boards = numbers.boards(stored, values=values, by=by, smallest=options.smallest_first)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not boards:
        raise UsageError("gpsafe leaderboard: expected columns of numbers in the sweeps, got none")
    store.write_text(options.output, leaderboard_page.page(stored, boards, options.output.parent))
    for note in stored.notes:
        print(f"note: {note}")
    cells, lines = len({cell.cell for cell in stored.cells}), sum(len(board.lines) for board in boards)
    print(f"wrote {options.output}: {cells} cells in {lines} lines")
    return 0
