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
import logging
import pkgutil
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpsafe import _require
from gpsafe.testbed import extras, provenance, store
from gpsafe.testbed.animate import Animation
from gpsafe.testbed.experiment_store import Folder, Mismatch, Piece, as_plain, normal, revive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Animation",
    "Experiment",
    "Mismatch",
    "Piece",
    "Record",
    "Report",
    "Run",
    "Stored",
    "Table",
    "discover",
    "find",
    "load",
    "run_seed",
    "session",
]

Budget = Literal["smoke", "quick", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "quick", "full")
OURS = "gpsafe.experiments"
"""The project's own experiments."""
RESERVED = frozenset({"budget", "seed", "seeds", "workers", "fresh", "results", "list", "help"})  # of the command line

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """One finished seed, as read from its folder."""

    seed: int
    arguments: Any
    """Instance of the experiment's arguments."""
    provenance: Mapping[str, Any]
    """``sessions``: who worked here, when, from which revision; ``budget``; ``revisions``: those of the pieces."""
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


class Record:
    """What a run keeps: finished pieces on the disk, each computed once, and a progress bar.

    Args:
        folder: the seed's folder.
        revision: of the code that computes; stored with each piece.
        on_progress: called with (done, total, text).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        revision: str | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._folder = Folder(Path(folder))
        self._revision = revision
        self._on_progress = on_progress
        self.keys: list[str] = []
        """Pieces asked for, in order."""
        self.reused = 0
        """How many of them were there already."""
        self.notes: list[str] = []
        """Why files that were there could not be used."""

    def piece(self, key: str, compute: Callable[[], Piece]) -> Piece:
        """The stored piece of this key; if there is none, computes and stores it.

        Returns what reads back from the disk (scalars as Python's own, tensors on the CPU), so that a run that goes
        on after a stop sees the same values as one that was never stopped. Keys are words joined by ``/``; to ask
        twice for one key is an error.
        """
        if key in self.keys:
            raise _require.fail("Record.piece", "a new key", f"{key!r} again")
        found = self._folder.read_piece(key)
        if isinstance(found, tuple):
            self.keys.append(key)
            self.reused += 1
            return found[0]
        if found is not None:
            self.notes.append(found)
            _log.warning("%s", found)
        (self._folder.path / "done.json").unlink(missing_ok=True)
        begun = time.perf_counter()
        piece = normal(key, compute())
        made = {"revision": self._revision, "at": _now(), "seconds": time.perf_counter() - begun}
        self._folder.write_piece(key, piece, made)
        self.keys.append(key)
        return piece

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Says how far this seed is, for the progress bar."""
        if self._on_progress is not None:
            self._on_progress(done, total, text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def session(command: str = "") -> dict[str, Any]:
    """Where numbers that are computed from now on come from."""
    revision, dirty = provenance.git_state()
    about = {"command": command, "started_at": _now(), "seconds": None, "git_revision": revision, "git_dirty": dirty}
    return {**about, "platform": platform.platform(), "versions": provenance.versions()}


def run_seed(
    experiment: Experiment,
    arguments: Any,
    seed: int,
    *,
    folder: str | Path,
    budget: str = "",
    about: Mapping[str, Any] | None = None,
    fresh: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Record:
    """Computes one seed in this process; finished pieces of the same arguments are kept.

    Args:
        experiment: what to run.
        arguments: instance of `experiment.arguments`.
        seed: passed to the run.
        folder: of this seed; made if missing.
        budget: the budget's name, for the record only.
        about: from `session`; made anew if None.
        fresh: forget what the folder holds.
        on_progress: called with (done, total, text).

    Raises:
        Mismatch: if the folder holds results of other arguments and `fresh` is not given.
    """
    home = Folder(Path(folder))
    if fresh:
        home.clear()
    home.require_same(experiment.name, arguments, seed)
    config = {"experiment": experiment.name, "budget": budget, "seed": seed, "arguments": as_plain(arguments)}
    store.write_json(home.path / "config.json", config)
    about, begun = dict(session() if about is None else about), time.perf_counter()
    earlier = (home.read("provenance.json") or {}).get("sessions", [])
    store.write_json(home.path / "provenance.json", {"sessions": [*earlier, about]})
    record = Record(home.path, revision=_revision(about), on_progress=on_progress)
    experiment.run(arguments, seed, record)
    if record.reused < len(record.keys) or home.read("done.json") is None:
        about["seconds"] = time.perf_counter() - begun
        store.write_json(home.path / "provenance.json", {"sessions": [*earlier, about]})
        store.write_json(home.path / "done.json", {"pieces": record.keys, "at": _now()})
    elif earlier:  # nothing was computed: this session added nothing
        store.write_json(home.path / "provenance.json", {"sessions": earlier})
    return record


def _revision(about: Mapping[str, Any]) -> str | None:
    revision = about.get("git_revision")
    return None if revision is None else f"{revision[:12]}{'+' if about.get('git_dirty') else ''}"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the results folder of an experiment holds: finished seeds, and why others are left out."""

    runs: tuple[Run, ...]
    left_out: tuple[str, ...]


def load(experiment: Experiment, results: str | Path, *, seeds: Sequence[int] = ()) -> Stored:
    """Reads the finished seeds of ``results/NAME``; none of their code runs.

    Args:
        experiment: whose results.
        results: folder of all results.
        seeds: only these; all if empty.
    """
    home = Path(results) / experiment.name
    found = {int(p.name): Folder(p) for p in (home.iterdir() if home.is_dir() else ()) if p.name.isdecimal()}
    runs, left_out = [], [f"seed {seed}: no results" for seed in seeds if seed not in found]
    for seed in sorted(found):
        if seeds and seed not in seeds:
            continue
        run = _load_seed(experiment, found[seed], seed)
        if isinstance(run, Run):
            runs.append(run)
        else:
            left_out.append(f"seed {seed}: {run}")
    return Stored(tuple(runs), tuple(left_out))


def _load_seed(experiment: Experiment, folder: Folder, seed: int) -> Run | str:
    config, done = folder.config(), folder.read("done.json")
    if config is None or config.get("experiment") != experiment.name or config["seed"] != seed:
        return "no readable config.json of this experiment and seed"
    if done is None or not isinstance(done.get("pieces"), list):
        return "not finished"
    try:
        arguments = revive(experiment.arguments, config["arguments"])
    except ValueError as error:
        return f"its arguments do not fit the experiment's of today ({error})"
    pieces, revisions = {}, set()
    for key in done["pieces"]:
        found = folder.read_piece(key)
        if not isinstance(found, tuple):
            return found or f"piece {key!r} is missing"
        pieces[key] = found[0]
        revisions.add(found[1].get("revision"))
    provenance = {**(folder.read("provenance.json") or {}), "budget": config.get("budget", "")}
    return Run(seed, arguments, provenance | {"revisions": sorted(map(str, revisions))}, pieces)


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


def find(name: str, package: str = OURS) -> Experiment | None:
    """The experiment of this name, or None. Looks first into the module of the same name, and imports no other then."""
    spec = importlib.util.find_spec(package)
    likely = name.replace("-", "_")
    if spec and likely in {info.name for info in pkgutil.iter_modules(spec.submodule_search_locations)}:
        with contextlib.suppress(Exception):  # `discover` says what is wrong with it
            experiment = importlib.import_module(f"{package}.{likely}").EXPERIMENT
            if isinstance(experiment, Experiment) and experiment.name == name:
                return experiment
    return discover(package)[0].get(name)


def _require_experiment(module: str, experiment: Any, found: Mapping[str, Experiment]) -> None:
    if not isinstance(experiment, Experiment):
        raise _require.fail(module, "EXPERIMENT to be an Experiment", type(experiment).__name__)
    if experiment.name in found:
        raise _require.fail(module, "an experiment of a new name", repr(experiment.name))
