"""A package with a tiny experiment of many kinds of arguments, which loads no library; and a pool that is this process."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import gpsafe
from gpsafe.cli import sweeps
from gpsafe.testbed import sweep, sweep_pools
from gpsafe.testbed.experiment import Experiment

MODULE = textwrap.dedent(
    '''
    import math, os, pathlib, signal, time
    from dataclasses import dataclass
    from gpsafe.testbed.experiment import Experiment, Piece, Report

    HERE = pathlib.Path(__file__).parent

    @dataclass(frozen=True)
    class Arguments:
        """What to do."""

        pieces: int = 2
        """How many."""
        rate: float = 0.5
        """A number."""
        word: str = "calm"
        """A word; "raises" raises in the second piece while the file of this name is there."""
        rates: tuple[float, ...] = (0.5, math.inf)
        """Numbers."""
        maybe: float | None = None
        """A number or none."""
        on: bool = False
        """Yes or no."""

        def __post_init__(self):
            if self.pieces > 50:
                raise ValueError(f"Arguments: expected pieces <= 50, got {self.pieces}")

    def run(arguments, seed, record):
        for k in range(arguments.pieces):
            def one():
                here = f"{seed}-{k}"
                with (HERE / "calls").open("a") as file:
                    file.write(f"{arguments.rate}/{here}\\\\n")
                if arguments.word == "raises" and k == 1 and (HERE / "raises").exists():
                    raise ArithmeticError("no\\\\n growth")
                if (HERE / f"dies-{here}").exists():
                    (HERE / f"dies-{here}").unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
                (HERE / f"at-{here}").touch()
                while (HERE / f"hold-{here}").exists():
                    time.sleep(0.02)
                value = math.sin(1 + seed + arguments.rate * k)
                return Piece([{"k": k, "value": value, "good": value > 0, "seed": f"row {k}"}])
            record.piece(f"k-{k}", one)

    EXPERIMENT = Experiment(
        name="toy-sweep",
        title="Light work",
        arguments=Arguments,
        budgets={"smoke": Arguments(1), "quick": Arguments(), "full": Arguments(3)},
        seeds={"smoke": 1, "quick": 2, "full": 3},
        run=run,
        report=lambda runs: Report(),
    )
    '''
).replace("\\\\", "\\")
PACKAGE = "sweep_work"
ABOUT = {"git_revision": "a" * 40, "git_dirty": False}


@contextlib.contextmanager
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the package, importable here and in other processes; `folder` is the current one."""
    home = folder / PACKAGE
    home.mkdir()
    (home / "__init__.py").touch()
    (home / "toy_sweep.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(gpsafe.__file__).parents[1])]))
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield home
    forget()


def forget() -> None:
    """As in a new process."""
    importlib.invalidate_caches()
    sweep._experiment.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def toy() -> Experiment:
    """The experiment, as its file is now."""
    return importlib.import_module(f"{PACKAGE}.toy_sweep").EXPERIMENT


class Here:
    """A pool that computes in this process, without a log of its own."""

    def __init__(self, job: sweep.Job, count: int) -> None:
        self.job, self.count = replace(job, log=None, parent=None), count
        self.given: list[sweep_pools.Task] = []
        self.most = 0

    def room(self) -> int:
        return self.count - len(self.given)

    def submit(self, task: sweep_pools.Task) -> None:
        self.given.append(task)
        self.most = max(self.most, len(self.given))

    def take(self) -> list[tuple[sweep_pools.Task, sweep.Outcome]]:
        task = self.given.pop()
        return [(task, sweep.work(self.job, *task))]


@contextlib.contextmanager
def here(job: sweep.Job, count: int) -> Iterator[Here]:
    yield Here(job, count)


def run(*words: str) -> int:
    """``gpsafe sweep`` in this process."""
    return sweeps.sweep([*words], "gpsafe sweep", package=PACKAGE)


def command(*words: str) -> list[str]:
    """``gpsafe sweep`` in another one."""
    code = f"""
import functools, sys
from gpsafe.cli import main, sweeps
sweeps.sweep = functools.partial(sweeps.sweep, package={PACKAGE!r})
sys.exit(main.main(["sweep", *{list(words)!r}]))
"""
    return [sys.executable, "-c", code]


def elsewhere(*words: str) -> subprocess.Popen[str]:
    """It, started."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(*words), text=True, start_new_session=True, **streams)


def table(results: str = "results/sweeps/toy-sweep") -> pd.DataFrame:
    """The table but for when its pieces were made, and how fast."""
    found = pd.read_parquet(Path(results) / "table.parquet").drop(columns=["started", "seconds"])
    return found.sort_values(["cell", "row"], ignore_index=True)


def calls(home: Path) -> Counter[str]:
    """How often each piece was begun."""
    file = home / "calls"
    return Counter(file.read_text().split()) if file.exists() else Counter()
