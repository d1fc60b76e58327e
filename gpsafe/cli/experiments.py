"""``gpsafe run``, ``gpsafe report`` and ``gpsafe bench``: experiments on the command line.

The options of ``run`` are its own and, beside them, the fields of the chosen experiment's arguments, with the values
of the chosen budget as defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gpsafe import _require
from gpsafe.cli.common import PLAIN, UsageError, parse, see_current_folder, width
from gpsafe.cli.running import RunOptions, compute

if TYPE_CHECKING:
    from rich.console import Console

    from gpsafe.testbed.experiment import Experiment

OURS = "gpsafe.experiments"
"""The project's own; `gpsafe.testbed.experiment.OURS`, whose import takes seconds."""

RUN_USAGE = """\
usage: gpsafe run NAME [--budget smoke|quick|full] [--seeds 0 1 2] [--workers N] [--fresh]
                       [--stale refuse|recompute|keep] [arguments]
       gpsafe run NAME --help    the experiment's arguments
       gpsafe run --list         all experiments"""
BENCH = {"xmpsc": "xmpsc-table1"}
BENCH_USAGE = """\
usage: gpsafe bench xmpsc [--budget smoke|quick|full] [--fresh] [arguments]

Table 1 of X-MPSC, timed: the experiment xmpsc-table1 in one process of one thread, then its tables. Leave the machine
alone meanwhile. The other benchmarks, as JSON: make bench."""
COMPARE_USAGE = """\
usage: gpsafe compare [--tasks twin pendulum cart-pole arm] [--models gp ensemble]
                      [--certifiers none policy-set tube-paper tube-sound shield]
                      [--explorers uniform uncertainty reward] [--seeds 0 1 2] [--budget smoke|quick|full] [arguments]

Models, certifiers and explorers on the same plants, data, noise and counter: the experiment compare, then its tables. All
arguments: gpsafe run compare --help. A plant of your own: gpsafe.comparison.compare."""
REPORT_USAGE = (
    "usage: gpsafe report NAME [--results FOLDER ...] [--output FOLDER] [--seeds 0 1 2] [--formats png pdf svg]"
)


@dataclass(frozen=True)
class ReportOptions:
    """Draws figures (PNG, PDF), tables (Markdown, CSV) and animations from stored results only."""

    results: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER ...")] = (Path("results"),)
    """Where results are kept: FOLDER/NAME/<seed>/. Several are drawn together."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to write (default: report/ in the experiment's first results)."""
    seeds: tuple[int, ...] = ()
    """These seeds only (default: all that are finished)."""
    formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")
    """Of figures. The index shows PNGs."""


def _homes(package: str) -> list[str]:
    """`package`; beside ours also a folder experiments/ of the user's own in the current one."""
    see_current_folder()
    own = Path.cwd() / "experiments"
    ours = importlib.util.find_spec(package)
    places = [Path(place) for place in (ours and ours.submodule_search_locations) or []]
    theirs = package == OURS and own.is_dir() and not any(place.exists() and own.samefile(place) for place in places)
    return [package, "experiments"] if theirs else [package]


def _experiments(package: str, *, loaded: bool = False) -> tuple[dict[str, Experiment], dict[str, str]]:
    """Experiments to be read, or (`loaded`) such as can be run; and why modules cannot."""
    from gpsafe.testbed.experiment import discover, listed

    found: dict[str, Experiment] = {}
    broken: dict[str, str] = {}
    for home in _homes(package):
        there, wrong = (discover if loaded else listed)(home)
        found |= {name: experiment for name, experiment in there.items() if name not in found}
        broken |= wrong
    if not found and not broken:
        raise UsageError(f"gpsafe: expected experiments in {package}, got none")
    return found, broken


def named(words: Sequence[str], usage: str, package: str) -> tuple[Experiment, str]:
    """The experiment that the first word names, and the package it is from."""
    from gpsafe.testbed.experiment import find

    for home in _homes(package) if words else ():
        if (experiment := find(words[0], home)) is not None:
            return experiment, home
    found, broken = _experiments(package)
    if words and words[0] in found:  # and yet it could not be loaded
        found, broken = _experiments(package, loaded=True)
    if not words or words[0].startswith("-"):
        raise UsageError(f"expected the name of an experiment first; there are {', '.join(found)}\n{usage}")
    name = words[0]
    for module, why in broken.items():
        if module.rpartition(".")[2] == name.replace("-", "_"):
            raise UsageError(f"{module} cannot be used: {why}")
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


def option(words: Sequence[str], name: str, default: str) -> str:
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
    experiment, package = named(words, RUN_USAGE, package)
    budget: Any = option(words[1:], "--budget", "quick")  # sets the defaults of all else
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
    if wrong := [seed for seed in options.seeds if not 0 <= seed < _require.SEEDS]:
        raise UsageError(f"--seeds: expected numbers >= 0 and below {_require.SEEDS}, got {wrong[0]}")
    seeds = list(dict.fromkeys(options.seeds)) or list(range(experiment.seeds[options.budget]))
    return compute(console, experiment, arguments, seeds, options=options, command=command, package=package)


def report(words: Sequence[str], command: str, *, package: str = OURS) -> int:
    """``gpsafe report``: figures, tables and animations of an experiment, from stored results only."""
    if list(words) in (["--help"], ["-h"]):
        print(REPORT_USAGE)
        return 0
    experiment, _ = named(words, REPORT_USAGE, package)
    known = [f.name for f in dataclasses.fields(ReportOptions)]
    options = parse(ReportOptions, words[1:], prog=f"gpsafe report {experiment.name}", known=known)
    from gpsafe.testbed import experiment_report, store
    from gpsafe.testbed.experiment import code, load

    mark = code(experiment)
    if not options.results:
        raise UsageError(f"--results: expected at least one folder, got none\n{REPORT_USAGE}")
    homes = [folder / experiment.name for folder in options.results]
    output = options.output or homes[0] / "report"
    try:
        store.require_writable("--output", output / "index.md")
    except ValueError as error:
        raise UsageError(str(error)) from None
    stored = load(experiment, *options.results, seeds=options.seeds)
    if not stored.runs:
        why = "; ".join(stored.left_out) or "nothing"
        start = f"gpsafe run {experiment.name} computes them"
        where = " or ".join(map(str, homes))
        raise UsageError(f"expected finished results in {where}, got {why}; {start}")
    files = experiment_report.write(experiment, stored, output, formats=options.formats)
    notes = [*experiment_report.mixtures(stored.runs), *stored.left_out]
    if any(found != mark for run in stored.runs for found in run.provenance["codes"]):
        start = f"gpsafe run {experiment.name} --stale recompute"
        notes.append(f"Not all pieces are of today's code ({mark or 'unknown'}); {start} makes them anew.")
    for line in notes:
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
    folder = Path(option(options, "--results", "results"))
    report([name, "--results", str(folder)], command, package=package)
    for table in sorted((folder / name / "report").glob("*.md")):
        if table.name != "index.md":
            print(f"\n{table.stem}\n\n{table.read_text().strip()}")
    return 0


def compare(words: Sequence[str], command: str, *, package: str = OURS) -> int:
    """``gpsafe compare``: the experiment compare, then its tables."""
    if list(words) in (["--help"], ["-h"]):
        print(COMPARE_USAGE)
        return 0
    if code := run(["compare", *words], command, package=package):
        return code
    return report(["compare", "--results", option(words, "--results", "results")], command, package=package)
