"""Sweeps: many seeds of experiments at many arguments, each computed once and kept under a hash of what it is.

A *cell* is one experiment at one set of arguments and one seed, under one code. Its name is a hash of these four; it lives in

    FOLDER/runs/<hash of experiment, arguments and code>/NAME/<seed>/

which is the folder that `gpsafe run` would make of it (`gpsafe.testbed.experiment_store`): the seeds of one set of arguments
stand side by side, and ``gpsafe report NAME --results FOLDER/runs/<hash>`` draws them. A cell is finished when its folder says
so; beside that only ``failed.json`` is written, by a cell that could not be. Nothing is kept in memory that a killed process
could lose, and other code or other arguments never meet in one folder.

The rows of all cells together are one table, see `gpsafe.testbed.sweep_table`; who computes them, see
`gpsafe.testbed.sweep_pools`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpsafe import _require
from gpsafe.testbed import lock, store
from gpsafe.testbed.experiment import Experiment, code, find, run_seed
from gpsafe.testbed.experiment_store import Folder, as_plain

RUNS = "runs"
FAILED = "failed.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One experiment at one set of arguments and one seed, under one code."""

    package: str
    """Where the experiment is found."""
    experiment: str
    arguments: bytes
    """Pickled: the module that defines their type may not be importable yet where this is unpickled."""
    group: str
    """16 hex digits of experiment, arguments and code."""
    code: str
    """Fingerprint of the code, see `gpsafe.testbed.experiment.code`."""
    seed: int
    budget: str = ""
    """Where the defaults came from, for the record only."""

    @property
    def name(self) -> str:
        """16 hex digits of experiment, arguments, code and seed."""
        return named(self.group, self.seed)

    def folder(self, home: str | os.PathLike[str]) -> Folder:
        """Where it is kept in a sweep's folder."""
        return Folder(Path(home) / RUNS / self.group / self.experiment / str(self.seed))


def grouped(experiment: str, arguments: Mapping[str, Any], mark: str | None) -> str:
    """16 hex digits of an experiment at arguments (in JSON's terms) under a code."""
    return store.seal(experiment, arguments, mark)


def named(group: str, seed: int) -> str:
    """16 hex digits of a group and a seed: the name of a cell."""
    return store.seal(group, seed)


def cells(
    experiment: Experiment, package: str, arguments: Sequence[Any], seeds: Sequence[int], budget: str
) -> Iterator[Cell]:
    """The product of arguments (instances of `experiment.arguments`) and seeds.

    Raises ValueError if the code of the experiment has no fingerprint: nothing could tell then which cells are finished.
    """
    mark = code(experiment)
    if mark is None:
        raise _require.fail(f"experiment {experiment.name!r}", "code that is found in files", "none")
    for one in arguments:
        group, data = grouped(experiment.name, as_plain(one), mark), pickle.dumps(one)
        for seed in seeds:
            yield Cell(package, experiment.name, data, group, mark, seed, budget)


@dataclass(frozen=True, slots=True)
class Job:
    """What is common to the cells of a sweep, for whoever computes them."""

    home: str
    """Absolute path of the sweep's folder."""
    about: Mapping[str, Any]
    """Where the numbers come from, see `gpsafe.testbed.experiment.session`."""
    paths: tuple[str, ...] = ()
    """Folders with packages of the user's own."""
    log: str | None = None
    """File for what the computation prints; None leaves it where it goes."""
    parent: int | None = None
    """Process whose end ends this one."""


Outcome = Mapping[str, Any]
"""Of one attempt at a cell: ``{"pieces": 3, "reused": 1}``, or why there is none: ``error`` (the cell's own), ``busy`` (another
process computes it), ``unusable`` (this process cannot compute it), ``lost`` (its process died).
"""


def work(job: Job, cell: Cell, wait: bool) -> Outcome:
    """Computes one cell in this process, and keeps it. What goes wrong in it is its outcome, and stands in its folder.

    Args:
        job: the sweep.
        cell: the cell.
        wait: for another process that computes it; else the outcome is ``busy``.
    """
    _settle(job)
    folder = cell.folder(job.home)
    try:
        experiment = _experiment(cell.experiment, cell.package)
        arguments = pickle.loads(cell.arguments)
    except Exception as error:
        return {"unusable": _require.told(error)}
    if experiment is None:
        return {"unusable": f"the experiment {cell.experiment!r} cannot be imported from {cell.package!r}"}
    if (mark := code(experiment)) != cell.code:
        return {
            "unusable": f"expected code {cell.code}, got {mark or 'unknown'}: its sources, Python or libraries differ"
        }
    _one_thread()
    begun = time.perf_counter()
    try:
        with _alone:
            record = run_seed(
                experiment,
                arguments,
                cell.seed,
                folder=folder.path,
                budget=cell.budget,
                about=job.about,
                stale="recompute",
                wait=wait,
            )
    except lock.Busy as error:
        return {"busy": str(error)}
    except (Exception, SystemExit) as error:
        with contextlib.suppress(OSError):  # the log may be what cannot be written
            traceback.print_exc()
        return fail(cell, job.home, _require.told(error))
    (folder.path / FAILED).unlink(missing_ok=True)
    return {"pieces": len(record.keys), "reused": record.reused, "seconds": time.perf_counter() - begun}


def fail(cell: Cell, home: str | os.PathLike[str], why: str) -> Outcome:
    """Writes into a cell's folder why it could not be computed; the next attempt that can removes it."""
    found = {"cell": cell.name, "seed": cell.seed, "error": why, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):  # on a full disk it is told, not written
        store.write_json(cell.folder(home).path / FAILED, found)
    return {"error": why}


def failures(home: str | os.PathLike[str]) -> dict[Path, str]:
    """Folders of the cells that failed when they were tried last, and why."""
    found = {}
    for file in sorted(Path(home).glob(f"{RUNS}/*/*/*/{FAILED}")):
        why = store.read_piece(file)
        found[file.parent] = str(why.get("error")) if isinstance(why, dict) else "unknown"
    return found


@functools.cache
def _experiment(name: str, package: str) -> Experiment | None:
    return find(name, package)


@functools.cache
def _one_thread() -> None:
    """For a process that was not started with one thread of linear algebra, as a worker of somebody's cluster."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


_alone = threading.Lock()
"""One cell at a time in a process: workers of several threads exist, and what cells share is not theirs to change."""
_settled: set[str] = set()


def _settle(job: Job) -> None:
    """Once a process: its paths, its log, and who it ends with."""
    if job.home in _settled:
        return
    _settled.add(job.home)
    sys.path[:0] = [path for path in job.paths if path not in sys.path and os.path.isdir(path)]
    if job.parent is not None:
        threading.Thread(target=_end_with, args=(job.parent,), daemon=True).start()
    if job.log is not None:
        with contextlib.suppress(OSError), open(job.log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)


def _end_with(parent: int) -> None:
    """A killed parent cannot stop its workers; one that lived on would hold its cell from the next sweep."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
