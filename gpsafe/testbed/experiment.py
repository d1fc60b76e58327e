"""Experiments: typed arguments, work in pieces that are kept, reports drawn from what is stored.

An experiment is one file ``experiments/<module>.py`` that defines ``EXPERIMENT: Experiment``; it is found by that.
``gpsafe run NAME`` computes, ``gpsafe report NAME`` draws. The two meet on the disk only: `Experiment.report` sees
`Run`\\ s that were read from files, never the objects that a run had in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpsafe import _require
from gpsafe.testbed import extras, listing
from gpsafe.testbed.experiment_run import OnStale, Record, code, run_seed, session
from gpsafe.testbed.experiment_store import Folder, Mismatch, Piece, Stale, as_plain, revive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpsafe.testbed.animate import Animation

__all__ = [
    "Animation",
    "Experiment",
    "Mismatch",
    "OnStale",
    "Piece",
    "Record",
    "Report",
    "Run",
    "Stale",
    "Stored",
    "Table",
    "code",
    "discover",
    "find",
    "listed",
    "load",
    "run_seed",
    "session",
]

Budget = Literal["smoke", "quick", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "quick", "full")
OURS = "gpsafe.experiments"
"""The project's own experiments."""
RESERVED = frozenset(
    {"budget", "seed", "seeds", "workers", "fresh", "stale", "results", "list", "help", "grid", "scheduler"}
)  # of the command line


def __getattr__(name: str) -> Any:
    if name == "Animation":  # loads torch and what draws, for which a list of experiments does not wait
        from gpsafe.testbed.animate import Animation

        return Animation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, slots=True)
class Run:
    """One finished seed, as read from its folder."""

    seed: int
    arguments: Any
    """Instance of the experiment's arguments."""
    provenance: Mapping[str, Any]
    """``sessions``: who worked here, when, from which revision; ``budget``; ``revisions`` and ``codes`` (fingerprints of the
    sources): those of the pieces.
    """
    pieces: Mapping[str, Piece]
    """By key, in the order in which the run asked for them."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns (with units); numbers stay numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    """What stands below it, in Markdown."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise _require.fail("Table", f"rows of {len(self.columns)} cells", f"one of {len(row)}: {row}")


@dataclass(frozen=True, slots=True)
class Report:
    """What `gpsafe report` writes; names become file names."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    animations: Mapping[str, Animation] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """Paragraphs of Markdown, before the tables."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What to compute and how to show it.

    Attributes:
        name: lower-case words joined by hyphens; also the folder of its results.
        title: one line.
        arguments: frozen dataclass type; every field has a default and a docstring (the help on the command line).
            No seed and no budget.
        budgets: arguments for ``smoke`` (a test of seconds), ``quick`` (minutes) and ``full`` (hours).
        seeds: how many seeds (0, 1, …) each budget runs.
        run: ``run(arguments, seed, record)`` computes one seed; all that it keeps goes through `Record.piece`. Same
            arguments and seed must give the same pieces.
        report: ``report(runs)`` draws all seeds, from the stored pieces only.
    """

    name: str
    title: str
    arguments: type
    budgets: Mapping[Budget, Any]
    seeds: Mapping[Budget, int]
    run: Callable[[Any, int, Record], None]
    report: Callable[[Sequence[Run]], Report]

    def __post_init__(self) -> None:
        where = f"experiment {self.name!r}"
        if not self.name or not all(word.isalnum() and word == word.lower() for word in self.name.split("-")):
            raise _require.fail(where, "lower-case words joined by hyphens as its name", repr(self.name))
        fields = dataclasses.fields(self.arguments) if dataclasses.is_dataclass(self.arguments) else None
        if fields is None or not self.arguments.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
            raise _require.fail(where, "a frozen dataclass type of arguments", self.arguments)
        for f in fields:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise _require.fail(where, "arguments with defaults", f"{f.name} without one")
            if f.name in RESERVED:
                raise _require.fail(where, f"no argument among {', '.join(sorted(RESERVED))}", f.name)
        for name, given in (("budgets", self.budgets), ("seeds", self.seeds)):
            if set(given) != set(BUDGETS):
                raise _require.fail(where, f"{name} for {', '.join(BUDGETS)}", sorted(given))
        for budget in BUDGETS:
            if not isinstance(self.budgets[budget], self.arguments):
                kind = type(self.budgets[budget]).__name__
                raise _require.fail(where, f"{self.arguments.__name__} for the {budget} budget", kind)
            revive(self.arguments, as_plain(self.budgets[budget]))  # what is stored must read back
            _require.count(where, f"seeds of the {budget} budget", self.seeds[budget])


@dataclass(frozen=True, slots=True)
class Stored:
    """What the results folder of an experiment holds: finished seeds, and why others are left out."""

    runs: tuple[Run, ...]
    left_out: tuple[str, ...]


def load(experiment: Experiment, *results: str | Path, seeds: Sequence[int] = ()) -> Stored:
    """Reads the finished seeds of ``results/NAME``; none of their code runs.

    Args:
        experiment: whose results.
        results: folders of all results, one or several: what was computed with other arguments, such as further
            algorithms, stands in a folder of its own, and a report may draw both.
        seeds: only these; all if empty.

    Returns:
        One run a folder and seed, by folder.
    """
    found: list[tuple[Path, int, Folder]] = []
    for where in dict.fromkeys(map(Path, results)):
        home = where / experiment.name
        there = sorted(int(p.name) for p in (home.iterdir() if home.is_dir() else ()) if p.name.isdecimal())
        found += [(where, seed, Folder(home / str(seed))) for seed in there]
    runs, left_out = [], [f"seed {seed}: no results" for seed in seeds if seed not in {s for _, s, _ in found}]
    for where, seed, folder in found:
        if seeds and seed not in seeds:
            continue
        run = _load_seed(experiment, folder, seed)
        if isinstance(run, Run):
            runs.append(run)
        else:
            left_out.append(f"seed {seed}{f' of {where}' if len(results) > 1 else ''}: {run}")
    return Stored(tuple(runs), tuple(left_out))


def _load_seed(experiment: Experiment, folder: Folder, seed: int) -> Run | str:
    config, done = folder.config(), folder.done()
    if config is None or config.get("experiment") != experiment.name or config["seed"] != seed:
        return "no readable config.json of this experiment and seed"
    if done is None:
        return "not finished"
    try:
        arguments = revive(experiment.arguments, config["arguments"])
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # the experiment's own checks of them, too
        return f"its arguments do not fit the experiment's of today ({error})"
    pieces, made = {}, {}
    for key in done:
        found = folder.read_piece(key)
        if not isinstance(found, tuple):
            return found or f"piece {key!r} is missing"
        pieces[key], made[key] = found
    about = {"sessions": folder.sessions(), "budget": str(config.get("budget", ""))}
    for name, field_ in (("revisions", "revision"), ("codes", "code")):
        about[name] = sorted({str(m.get(field_) or "unknown") for m in made.values()})
    return Run(seed, arguments, about, pieces)


def discover(package: str = OURS) -> tuple[dict[str, Experiment], dict[str, str]]:
    """All experiments of a package by name, and the modules that could not be imported with the reason.

    A module is one of ours if its source mentions ``EXPERIMENT``; others are not imported.
    """
    spec = importlib.util.find_spec(package)
    found: dict[str, Experiment] = {}
    broken: dict[str, str] = {}
    for info in pkgutil.iter_modules(spec.submodule_search_locations if spec else ()):
        module = f"{package}.{info.name}"
        origin = getattr(importlib.util.find_spec(module), "origin", None)
        if info.ispkg or info.name.startswith("_") or not origin:
            continue
        if "EXPERIMENT" not in Path(origin).read_text(encoding="utf-8"):
            continue
        try:
            experiment = importlib.import_module(module).EXPERIMENT
            _require_experiment(module, experiment, found)
            found[experiment.name] = experiment
        except Exception as error:  # a module may raise anything; the others must stay usable
            why = extras.needed(error) if isinstance(error, ImportError) else None
            broken[module] = why or " ".join(f"{type(error).__name__}: {error}".split())
    return dict(sorted(found.items())), broken


def listed(package: str = OURS) -> tuple[dict[str, Experiment], dict[str, str]]:
    """Like `discover`, and quicker: experiments to be read, not run; what they compute with is loaded only if needed for that.

    A module that will fail once it is loaded whole may stand in it.
    """

    def fits(found: tuple[dict[str, Experiment], dict[str, str]]) -> bool:
        texts = [text for e in found[0].values() for text in (e.name, e.title)]
        counts = [e.seeds[budget] for e in found[0].values() for budget in BUDGETS]
        missing = all(why.startswith(f"{extras.NEEDS} ") for why in found[1].values())
        return missing and all(type(text) is str for text in texts) and all(type(count) is int for count in counts)

    return listing.read(discover, package, fits)


def find(name: str, package: str = OURS) -> Experiment | None:
    """The experiment of this name, or None. Looks first into the module of the same name, and imports no other then."""
    spec = importlib.util.find_spec(package)
    likely = name.replace("-", "_")
    if spec and likely in {info.name for info in pkgutil.iter_modules(spec.submodule_search_locations)}:
        with contextlib.suppress(Exception):  # `discover` says what is wrong with it
            experiment = importlib.import_module(f"{package}.{likely}").EXPERIMENT
            if isinstance(experiment, Experiment) and experiment.name == name:
                return experiment
    return discover(package)[0].get(name) if name in listed(package)[0] else None


def _require_experiment(module: str, experiment: Any, found: Mapping[str, Experiment]) -> None:
    if not isinstance(experiment, Experiment):
        raise _require.fail(module, "EXPERIMENT to be an Experiment", type(experiment).__name__)
    if experiment.name in found:
        raise _require.fail(module, "an experiment of a new name", repr(experiment.name))
