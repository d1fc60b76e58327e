"""An experiment that loads no library, so that worker processes start at once; and a process that computes a seed of it."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpsafe
from gpsafe.testbed.experiment import Experiment

LIGHT = textwrap.dedent(
    '''
    import errno, os, pathlib, time
    from dataclasses import dataclass
    from gpsafe.testbed.experiment import Experiment, Piece, Report
    from . import helper

    HERE = pathlib.Path(__file__).parent

    @dataclass(frozen=True)
    class Arguments:
        """What to do."""

        pieces: int = 2
        """How many."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run(arguments, seed, record):
        for k in range(arguments.pieces):
            def one():
                with (HERE / "calls").open("a") as file:
                    file.write(f"{seed}/{k}\\n")
                while (HERE / f"hold-{seed}").exists():
                    time.sleep(0.02)
                if (HERE / "full").exists():
                    os.fsync = full
                return Piece([{"k": k, "value": helper.SCALE * seed}])
            record.piece(f"k-{k}", one)

    EXPERIMENT = Experiment(
        name="light",
        title="Light work",
        arguments=Arguments,
        budgets=dict.fromkeys(("smoke", "quick", "full"), Arguments()),
        seeds={"smoke": 1, "quick": 2, "full": 3},
        run=run,
        report=lambda runs: Report(),
    )
    '''
)


@contextlib.contextmanager
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the package `light_work`, importable here and in other processes."""
    home = folder / "light_work"
    home.mkdir()
    (home / "__init__.py").touch()
    (home / "light.py").write_text(LIGHT)
    (home / "helper.py").write_text("SCALE = 2\n")
    (home / "unused.py").write_text("SCALE = 3\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(
        "PYTHONDONTWRITEBYTECODE", "1"
    )  # a file that is written anew within a second, as long as before, would be
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # taken for the one whose bytecode is kept
    importlib.invalidate_caches()
    yield home
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("light_work")]:
        del sys.modules[name]


def light() -> Experiment:
    """The experiment, as its files are now."""
    forget()
    return importlib.import_module("light_work.light").EXPERIMENT


def elsewhere(seed: int) -> subprocess.Popen[str]:
    """Another process that computes this seed here."""
    code = (
        f"import sys; sys.path[:0] = ['.', {str(Path(gpsafe.__file__).parents[1])!r}]\n"
        "from light_work.light import EXPERIMENT, Arguments\n"
        "from gpsafe.testbed.experiment import run_seed\n"
        f"run_seed(EXPERIMENT, Arguments(), {seed}, folder='results/light/{seed}', about={{}})"
    )
    return subprocess.Popen([sys.executable, "-c", code], text=True)
