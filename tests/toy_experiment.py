"""A package with one tiny experiment in a temporary folder, and the same experiment in this process."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOY = textwrap.dedent(
    '''
    import math, os, pathlib, signal, time
    from dataclasses import dataclass
    import torch
    from matplotlib.figure import Figure
    from gpsafe.testbed.experiment import Experiment, Piece, Report, Table

    HERE = pathlib.Path(__file__).parent

    @dataclass(frozen=True, slots=True)
    class Arguments:
        """What to grow."""

        episodes: int = 3
        """Episodes of growth."""
        rates: tuple[float, ...] = (0.5, math.inf)
        """Growth a step."""
        fault: str = ""
        """dies, raises or waits, in the second episode, while the file of this name is there."""

    def run(arguments, seed, record):
        for k in range(arguments.episodes):
            def one():
                fault = HERE / arguments.fault if arguments.fault and k == 1 else None
                if fault and fault.exists():
                    if fault.name == "dies":
                        fault.unlink()
                        os.kill(os.getpid(), signal.SIGKILL)
                    if fault.name == "raises":
                        raise ArithmeticError("no\\n growth")
                    (HERE / "waiting").touch()
                    while fault.exists():
                        time.sleep(0.01)
                noise = torch.randn(4, generator=torch.Generator().manual_seed(10 * seed + k), dtype=torch.float64)
                return Piece([{"k": k, "mean": noise.mean(), "far": math.inf}], {"noise": noise})
            record.piece(f"grown/episode-{k:02d}", one)
            record.progress(k + 1, arguments.episodes, "growing")

    def report(runs):
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot(xlabel="episode", ylabel="mean")
        rows = []
        for run in runs:
            axes.plot([p.rows[0]["mean"] for p in run.pieces.values()])
            rows += [(run.seed, p.rows[0]["k"], p.rows[0]["mean"], p.rows[0]["far"]) for p in run.pieces.values()]
        return Report({"growth": figure}, {"means": Table(("seed", "k|n", "mean", "far"), rows, caption="Note.")})

    EXPERIMENT = Experiment(
        name="toy-growth",
        title="Noise that grows",
        arguments=Arguments,
        budgets={"smoke": Arguments(1), "quick": Arguments(), "full": Arguments(9)},
        seeds={"smoke": 1, "quick": 2, "full": 4},
        run=run,
        report=report,
    )
    '''
)
_fresh = itertools.count()


@contextlib.contextmanager
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a package that holds the experiment, importable here and in worker processes."""
    package = f"toy_experiments_{next(_fresh)}"
    home = folder / package
    home.mkdir()
    (home / "toy_growth.py").write_text(TOY)
    (home / "other.py").write_text("raise AssertionError('no experiment: must not be imported')\n")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield package
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def module(package: str) -> ModuleType:
    """The experiment's module."""
    return importlib.import_module(f"{package}.toy_growth")
