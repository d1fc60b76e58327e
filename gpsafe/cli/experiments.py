"""``gpsafe run``, ``gpsafe report`` and ``gpsafe bench``: experiments on the command line.

The options of ``run`` are its own and, beside them, the fields of the chosen experiment's arguments, with the values
of the chosen budget as defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import itertools
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gpsafe.cli.common import PLAIN, UsageError, parse, see_current_folder, width

if TYPE_CHECKING:
    from rich.console import Console

    from gpsafe.testbed.experiment import Experiment

OURS = "gpsafe.experiments"
"""The project's own; `gpsafe.testbed.experiment.OURS`, whose import takes seconds."""

RUN_USAGE = """\
usage: gpsafe run NAME [--budget smoke|quick|full] [--seeds 0 1 2] [--workers N] [--fresh] [arguments]
       gpsafe run NAME --help    the experiment's arguments
       gpsafe run --list         all experiments"""
BENCH = {"xmpsc": "xmpsc-table1"}
BENCH_USAGE = """\
usage: gpsafe bench xmpsc [--budget smoke|quick|full] [--fresh] [arguments]

Table 1 of X-MPSC, timed: the experiment xmpsc-table1 in one process of one thread, then its tables. Leave the machine
alone meanwhile. The other benchmarks, as JSON: make bench."""
REPORT_USAGE = "usage: gpsafe report NAME [--results FOLDER] [--output FOLDER] [--seeds 0 1 2]"


@dataclass(frozen=True)
class RunOptions:
    """How to run."""

    budget: Literal["smoke", "quick", "full"] = "quick"
    """How much work: seconds, minutes or hours. Sets the defaults of the arguments."""
    seeds: tuple[int, ...] = ()
    """Run these seeds (default: as many as the budget says, from 0)."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of worker processes, one thread each (default: the available cores)."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Forget the stored results of these seeds first."""
    results: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """Where results are kept: FOLDER/NAME/<seed>/."""


@dataclass(frozen=True)
class ReportOptions:
    """Draws figures (PNG, PDF), tables (Markdown, CSV) and animations from stored results only."""

    results: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """Where results are kept: FOLDER/NAME/<seed>/."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to write (default: report/ in the experiment's results)."""
    seeds: tuple[int, ...] = ()
    """These seeds only (default: all that are finished)."""


def _homes(package: str) -> list[str]:
    """`package`; beside ours also a folder experiments/ of the user's own in the current one."""
    see_current_folder()
    own = Path.cwd() / "experiments"
    ours = importlib.util.find_spec(package)
    places = [Path(place) for place in (ours and ours.submodule_search_locations) or []]
    theirs = package == OURS and own.is_dir() and not any(place.exists() and own.samefile(place) for place in places)
    return [package, "experiments"] if theirs else [package]


def _experiments(package: str) -> tuple[dict[str, Experiment], dict[str, str]]:
    from gpsafe.testbed.experiment import discover

    found: dict[str, Experiment] = {}
    broken: dict[str, str] = {}
    for home in _homes(package):
        there, wrong = discover(home)
        found |= {name: experiment for name, experiment in there.items() if name not in found}
        broken |= wrong
    if not found and not broken:
        raise UsageError(f"gpsafe: expected experiments in {package}, got none")
    return found, broken


def _named(words: Sequence[str], usage: str, package: str) -> tuple[Experiment, str]:
    """The experiment that the first word names, and the package it is from."""
    from gpsafe.testbed.experiment import find

    for home in _homes(package) if words else ():
        if (experiment := find(words[0], home)) is not None:
            return experiment, home
    found, broken = _experiments(package)
    if not words or words[0].startswith("-"):
        raise UsageError(f"expected the name of an experiment first; there are {', '.join(found)}\n{usage}")
    name = words[0]
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    wrong = "".join(f"; {module} cannot be used: {why}" for module, why in broken.items())
    raise UsageError(f"expected an experiment among {', '.join(found)}, got {name!r}{hint}{wrong}")


def _list(console: Console, package: str) -> int:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found, broken = _experiments(package)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("experiment", "what", "seeds (smoke, quick, full)"):
        table.add_column(title, overflow="fold")
    for name, experiment in found.items():
        seeds = ", ".join(str(experiment.seeds[budget]) for budget in ("smoke", "quick", "full"))
        table.add_row(Text(name), Text(experiment.title), seeds)
    console.print(table)
    for module, why in broken.items():
        console.print(f"{module} cannot be used: {why}", **PLAIN, soft_wrap=True)
    return 1 if broken else 0


def _option(words: Sequence[str], name: str, default: str) -> str:
    """The value of an option that is needed before tyro has judged the words."""
    for word, after in itertools.pairwise([*words, ""]):
        if word == name:
            return after
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return default


def run(words: Sequence[str], command: str, *, package: str = OURS) -> int:
    """``gpsafe run``: computes the seeds of an experiment in worker processes. Exit code 1 if one fails."""
    from rich.console import Console

    console = Console(width=width())
    if list(words) == ["--list"]:
        return _list(console, package)
    if list(words) in (["--help"], ["-h"]):
        print(RUN_USAGE)
        return 0
    experiment, package = _named(words, RUN_USAGE, package)
    budget: Any = _option(words[1:], "--budget", "quick")  # sets the defaults of all else
    kind = dataclasses.make_dataclass(
        "Options",
        [
            ("run", RunOptions, RunOptions()),
            ("experiment", experiment.arguments, experiment.budgets.get(budget, experiment.arguments())),
        ],
        frozen=True,
    )
    known = [f.name for f in (*dataclasses.fields(RunOptions), *dataclasses.fields(experiment.arguments))]
    chosen: Any = parse(
        tyro.conf.OmitArgPrefixes[kind],
        words[1:],
        prog=f"gpsafe run {experiment.name}",
        description=experiment.title,
        known=known,
    )
    options, arguments = chosen.run, chosen.experiment
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers: expected a number >= 1, got {options.workers}")
    if any(seed < 0 for seed in options.seeds):
        raise UsageError(f"--seeds: expected numbers >= 0, got {min(options.seeds)}")
    seeds = list(dict.fromkeys(options.seeds)) or list(range(experiment.seeds[options.budget]))
    return _compute(console, experiment, arguments, seeds, options=options, command=command, package=package)


def _compute(
    console: Console,
    experiment: Experiment,
    arguments: Any,
    seeds: list[int],
    *,
    options: RunOptions,
    command: str,
    package: str,
) -> int:
    from gpsafe.testbed import store
    from gpsafe.testbed import workers as pool
    from gpsafe.testbed.experiment import session
    from gpsafe.testbed.experiment_store import Folder

    home = options.results / experiment.name
    try:
        store.require_writable("--results", home / "worker.log")
        for folder in (Folder(home / str(seed)) for seed in seeds):
            if options.fresh:  # here, not in a worker: one that dies is given its seed once more
                folder.clear()
            folder.require_same(experiment.name, arguments, int(folder.path.name))
    except ValueError as error:
        raise UsageError(str(error)) from None
    home.mkdir(parents=True, exist_ok=True)
    log = home / "worker.log"
    log.write_bytes(b"")
    failures: dict[int, str] = {}
    workers = min(options.workers or pool.available_cores(), len(seeds))
    with _progress(console, home, seeds) as on_seed:

        def on_done(done: pool.Done) -> list[Any]:
            outcome = done.value or {"error": f"its worker {done.death}"}
            if "error" in outcome:
                failures[done.task] = outcome["error"]
            on_seed(done.task, outcome)
            return []

        work = _Work(package, experiment.name, arguments, home.absolute(), options.budget, session(command))
        pool.run(list(seeds), start=_start, args=(work,), workers=workers, log=log, on_done=on_done)
    for seed, why in failures.items():
        console.print(f"seed {seed} failed: {why} (more in {log})", **PLAIN, soft_wrap=True)
    if not failures:
        console.print(f"results in {home}; gpsafe report {experiment.name} draws them", **PLAIN, soft_wrap=True)
    return 1 if failures else 0


@dataclass(frozen=True)
class _Work:
    """What a worker needs to know."""

    package: str
    name: str
    arguments: Any
    home: Path
    budget: str
    about: Mapping[str, Any]


def _start(work: _Work) -> Callable[[int], dict[str, Any]]:
    """In a worker: the function that computes one seed. What goes wrong in it is that seed's outcome."""
    from gpsafe.testbed import store
    from gpsafe.testbed.experiment import find, run_seed

    experiment = find(work.name, work.package)
    if experiment is None:
        raise RuntimeError(f"the experiment {work.name!r} cannot be imported in a worker")

    def compute(seed: int) -> dict[str, Any]:
        folder, last = work.home / str(seed), -math.inf

        def on_progress(done: int, total: int, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= 0.25 or done >= total:
                last = time.monotonic()
                store.write_piece(folder / "progress.json", {"done": done, "total": total, "text": text})

        try:
            record = run_seed(
                experiment,
                work.arguments,
                seed,
                folder=folder,
                budget=work.budget,
                about=work.about,
                on_progress=on_progress,
            )
        except Exception as error:
            traceback.print_exc()
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        (folder / "progress.json").unlink(missing_ok=True)
        return {"pieces": len(record.keys), "reused": record.reused, "notes": record.notes}

    return compute


@contextlib.contextmanager
def _progress(console: Console, home: Path, seeds: list[int]) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """On a terminal one bar a seed at work, else one plain line per finished seed. Workers report through files."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gpsafe.testbed import store

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    overall = bar.add_task("seeds", total=len(seeds))
    tasks: dict[int, Any] = {}
    finished: set[int] = set()
    over = threading.Event()
    for seed in seeds:
        (home / str(seed) / "progress.json").unlink(missing_ok=True)

    def watch() -> None:
        while not over.wait(0.3):
            for seed in seeds:
                found = store.read_piece(home / str(seed) / "progress.json")
                if seed in finished or not isinstance(found, dict):
                    continue
                if seed not in tasks:
                    tasks[seed] = bar.add_task(f"seed {seed}", total=found["total"])
                text = f"seed {seed} {found['text']}".strip()
                bar.update(tasks[seed], completed=found["done"], total=found["total"], description=text)

    def on_seed(seed: int, outcome: dict[str, Any]) -> None:
        finished.add(seed)
        bar.advance(overall)
        if seed in tasks:
            bar.remove_task(tasks[seed])
        for note in outcome.get("notes", ()):
            console.print(f"seed {seed}: {note}", **PLAIN, soft_wrap=True)
        if "error" not in outcome:
            kept = f", {outcome['reused']} of them kept from before" if outcome["reused"] else ""
            line = f"[{len(finished)}/{len(seeds)}] seed {seed}: {outcome['pieces']} pieces{kept}"
            console.print(line, **PLAIN, soft_wrap=True)

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        with bar:
            if console.is_terminal:
                watcher.start()
            yield on_seed
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this line
        sys.stdout.flush()
        done = f"{len(finished)} of {len(seeds)} seeds are finished"
        sys.stderr.write(
            f"gpsafe run: stopped; {done}, finished pieces are kept in {home}; the same command (without --fresh) goes on\n"
        )
        raise
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join()


def report(words: Sequence[str], command: str, *, package: str = OURS) -> int:
    """``gpsafe report``: figures, tables and animations of an experiment, from stored results only."""
    if list(words) in (["--help"], ["-h"]):
        print(REPORT_USAGE)
        return 0
    experiment, _ = _named(words, REPORT_USAGE, package)
    known = [f.name for f in dataclasses.fields(ReportOptions)]
    options = parse(ReportOptions, words[1:], prog=f"gpsafe report {experiment.name}", known=known)
    from gpsafe.testbed import experiment_report, store
    from gpsafe.testbed.experiment import load

    output = options.output or options.results / experiment.name / "report"
    try:
        store.require_writable("--output", output / "index.md")
    except ValueError as error:
        raise UsageError(str(error)) from None
    stored = load(experiment, options.results, seeds=options.seeds)
    if not stored.runs:
        why = "; ".join(stored.left_out) or "nothing"
        start = f"gpsafe run {experiment.name} computes them"
        raise UsageError(f"expected finished results in {options.results / experiment.name}, got {why}; {start}")
    files = experiment_report.write(experiment, stored, output)
    for line in (*experiment_report.mixtures(stored.runs), *stored.left_out):
        print(f"note: {line}")
    print(f"wrote {files[0]} and {len(files) - 1} files beside it")
    return 0


def bench(words: Sequence[str], command: str, *, package: str = OURS) -> int:
    """``gpsafe bench``: a timing experiment, run alone, then its report and its tables on the screen."""
    if not words or words[0] in ("--help", "-h"):
        print(BENCH_USAGE, file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] not in BENCH:
        raise UsageError(f"gpsafe bench: expected one of {', '.join(BENCH)}, got {words[0]!r}\n{BENCH_USAGE}")
    name, options = BENCH[words[0]], list(words[1:])
    if code := run([name, "--workers", "1", *options], command, package=package):
        return code
    folder = Path(_option(options, "--results", "results"))
    report([name, "--results", str(folder)], command, package=package)
    for table in sorted((folder / name / "report").glob("*.md")):
        if table.name != "index.md":
            print(f"\n{table.stem}\n\n{table.read_text().strip()}")
    return 0
