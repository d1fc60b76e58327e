"""``gpsafe sweep``: many cells in parallel, and what it says meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gpsafe.cli.common import PLAIN, UsageError, parse, width
from gpsafe.cli.experiments import OURS, named, option

if TYPE_CHECKING:
    from rich.console import Console

    from gpsafe.testbed.sweep import Cell, Outcome

USAGE = """\
usage: gpsafe sweep FILE.toml [--results FOLDER] [--workers N] [--scheduler local|ADDRESS]
       gpsafe sweep NAME [--grid ARGUMENT=VALUE,VALUE ...] [--seeds 0-9] [--budget smoke|quick|full] [arguments]
                         [the same options]
       gpsafe sweep NAME --help    the experiment's arguments and all options

Computes the product of arguments and seeds in parallel, in processes of joblib or on Dask, and gathers the rows of all cells in
FOLDER/table.parquet. What is finished is skipped; the same command goes on after a stop, and tries again what failed.
A file says, once or in several [[sweep]] tables,

"""
Words = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]
"""Of an option that may be given several times, several words each."""
EVERY = 10.0
"""Seconds between two lines of progress, where there is no terminal."""
SHOWN = 20
"""Failures told one by one."""


@dataclass(frozen=True)
class SweepOptions:
    """How to run."""

    results: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where cells and table are kept (default: results/sweeps/ and the name of the file or the experiment)."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of worker processes on this machine, one thread each (default: the available cores)."""
    scheduler: Annotated[str, tyro.conf.arg(metavar="local|ADDRESS")] = ""
    """Dask instead of joblib: a cluster of this machine's processes, or the scheduler at an address."""


@dataclass(frozen=True)
class GridOptions:
    """What to compute."""

    grid: Annotated[Words, tyro.conf.arg(metavar="ARGUMENT=VALUE,VALUE ...")] = ()
    """Values of arguments; all combinations are computed. Commas separate values, spaces the parts of one."""
    seeds: Annotated[Words, tyro.conf.arg(metavar="0-9 ...")] = ()
    """Seeds and ranges of seeds (default: as many as the budget says, from 0)."""
    budget: Literal["smoke", "quick", "full"] = "quick"
    """Sets the defaults of the arguments."""


def sweep(words: Sequence[str], command: str, *, package: str = OURS) -> int:
    """``gpsafe sweep``: computes cells that are not finished yet. Exit code 1 if one fails."""
    from gpsafe.cli.sweep_plan import FILE_USAGE

    if not words or words[0] in ("--help", "-h"):
        print(f"{USAGE}{FILE_USAGE}", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    cells, options, name = _planned(words, package)
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers: expected a number >= 1, got {options.workers}")
    require_extra("sweep", "pyarrow")
    if options.scheduler:
        require_extra("sweep", "distributed")
    from rich.console import Console

    console = Console(width=width())
    return _compute(console, cells, options.results or Path("results", "sweeps", name), options, command)


def require_extra(command: str, module: str) -> None:
    """Raises UsageError, naming what to install, if a module is missing."""
    import importlib

    from gpsafe.testbed import extras

    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"gpsafe {command} {extras.needed(error) or error}") from None


def _planned(words: Sequence[str], package: str) -> tuple[list[Cell], SweepOptions, str]:
    """The cells that are asked for, how to run them, and what the sweep is called."""
    from gpsafe.cli.sweep_plan import from_file, from_words

    first = words[0]
    if first.endswith(".toml") or Path(first).is_file():
        known = [f.name for f in dataclasses.fields(SweepOptions)]
        options = parse(SweepOptions, words[1:], prog="gpsafe sweep FILE.toml", known=known)
        return from_file(Path(first), package), options, Path(first).stem
    experiment, package = named(words, USAGE, package)
    budget: Any = option(words[1:], "--budget", "quick")
    parts = [
        ("run", SweepOptions, SweepOptions()),
        ("plan", GridOptions, GridOptions()),
        ("experiment", experiment.arguments, experiment.budgets.get(budget, experiment.arguments())),
    ]
    kind: Any = dataclasses.make_dataclass("Options", parts, frozen=True)
    chosen = parse(
        tyro.conf.OmitArgPrefixes[kind],
        words[1:],
        prog=f"gpsafe sweep {experiment.name}",
        description=experiment.title,
        known=[f.name for _, part, _ in parts for f in dataclasses.fields(part)],
    )
    plan = chosen.plan
    grid = [word for several in plan.grid for word in several]
    if plan.grid and not grid:
        raise UsageError("--grid: expected ARGUMENT=VALUE,VALUE, got nothing")
    seeds = [word for several in plan.seeds for word in several]
    cells = from_words(experiment, package, chosen.experiment, grid, seeds, plan.budget)
    return cells, chosen.run, experiment.name


def _compute(console: Console, cells: list[Cell], home: Path, options: SweepOptions, command: str) -> int:
    from gpsafe.testbed import store, sweep_pools, workers
    from gpsafe.testbed.experiment import session
    from gpsafe.testbed.sweep import Job
    from gpsafe.testbed.sweep_table import TABLE, Table

    try:
        store.require_writable("--results", home / "worker.log")
    except ValueError as error:
        raise UsageError(str(error)) from None
    home.mkdir(parents=True, exist_ok=True)
    log = home / "worker.log"
    log.touch()
    table, places = Table(home), {cell.name: cell.folder("").path.as_posix() for cell in cells}
    before = {cell.name: places[cell.name] for cell in cells if cell.folder(home).done() is not None}
    unreadable = table.add(before.items())
    for why in unreadable.values():
        console.print(f"{why}: this cell is computed again", **PLAIN, soft_wrap=True)
    todo = [cell for cell in cells if cell.name not in before or cell.name in unreadable]
    count = min(options.workers or workers.available_cores(), max(1, len(todo)))
    by = f"on Dask, {options.scheduler}" if options.scheduler else f"in {count} worker processes"
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} finished before; {len(todo)} to compute {by}", **PLAIN)
    local = options.scheduler in ("", "local")
    job = Job(
        str(home.absolute()),
        session(command),
        paths=(str(Path.cwd()),),
        log=str(log.absolute()) if local else None,
        parent=None if options.scheduler else _pid(),
    )
    failed = 0
    if todo:
        pool = (
            sweep_pools.cluster(job, options.scheduler, count)
            if options.scheduler
            else sweep_pools.processes(job, count)
        )
        with _progress(console, table, places, len(todo)) as progress, pool as crew:
            sweep_pools.run(todo, job, crew, progress.on_done)
        failed = progress.failed
    others = {other for cell in cells for other in table.codes.get(cell.experiment, set()) - {cell.code}}
    if others:
        line = f"the table also has rows of other code: {', '.join(sorted(others))}; its column code tells them apart"
        console.print(line, **PLAIN, soft_wrap=True)
    if failed:
        line = f"{failed} of {len(cells)} cells failed: failed.json in its folder says why, more in {log}; "
        console.print(f"{line}the same command tries them again", **PLAIN, soft_wrap=True)
    console.print(
        f"{len(cells) - failed} of {len(cells)} cells are finished; rows in {home / TABLE}", **PLAIN, soft_wrap=True
    )
    return 1 if failed else 0


def _pid() -> int:
    import os

    return os.getpid()


@dataclass
class _Progress:
    """Tells how far a sweep is, and writes its table while it runs."""

    console: Console
    table: Any
    places: dict[str, str]
    total: int
    bar: Any
    done: int = 0
    failed: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)
    last: float = dataclasses.field(default_factory=time.monotonic)
    new: dict[str, str] = dataclasses.field(default_factory=dict)

    def on_done(self, cell: Cell, outcome: Outcome) -> None:
        self.done += 1
        if "error" in outcome:
            self.failed += 1
            if self.failed <= SHOWN:
                line = f"{cell.experiment}, seed {cell.seed}, failed: {outcome['error']} ({self.places[cell.name]})"
                self.console.print(line, **PLAIN, soft_wrap=True)
        else:
            self.new[cell.name] = self.places[cell.name]
        if self.table.due(len(self.new)):
            self.write()
        self.bar.update(0, completed=self.done, failed=f"{self.failed} failed" if self.failed else "")
        if not self.console.is_terminal and (self.done == self.total or time.monotonic() - self.last > EVERY):
            self.last = time.monotonic()
            left = (self.last - self.began) / self.done * (self.total - self.done)
            more = f", {self.failed} failed" if self.failed else ""
            about = f", about {_duration(left)} left" if self.done < self.total else ""
            self.console.print(f"[{self.done}/{self.total}]{more}{about}", **PLAIN, soft_wrap=True)

    def write(self) -> None:
        """Adds what has been finished since to the table."""
        self.table.add(self.new.items(), again=True)
        self.new.clear()

    def rescue(self) -> int:
        """The same where the work was cut short, with the cells whose end nobody was told; returns how many are finished."""
        from gpsafe.testbed.experiment_store import Folder

        home = self.table.home
        finished = {cell: place for cell, place in self.places.items() if Folder(home / place).done() is not None}
        self.new |= {cell: place for cell, place in finished.items() if cell not in self.table.known}
        self.write()
        return len(finished)


def _duration(seconds: float) -> str:
    """
    >>> _duration(5), _duration(300), _duration(7300)
    ('5 s', '5 min', '2.0 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


@contextlib.contextmanager
def _progress(console: Console, table: Any, places: dict[str, str], total: int) -> Iterator[_Progress]:
    """A bar on a terminal, else lines. Whatever ends the work, the table then has all that is finished."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    bar = Progress(
        *columns, TextColumn("{task.fields[failed]}"), console=console, transient=True, disable=not console.is_terminal
    )
    bar.add_task("cells", total=total, failed="")
    progress = _Progress(console, table, places, total, bar)
    try:
        with bar:
            yield progress
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut what follows
        kept = progress.rescue()
        sys.stdout.flush()
        told = f"{kept} of {len(places)} cells are finished and in the table; the same command goes on"
        sys.stderr.write(f"gpsafe sweep: stopped; {told}\n")
        raise
    except BaseException:
        progress.rescue()
        raise
    else:
        progress.write()
