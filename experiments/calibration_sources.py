"""Calibration where the data come from somewhere else: a safe explorer, and another simulator.

What `calibration` asks of data of the backup law and of uniform data, asked of four sources: the backup law with three uniform
inputs in ten; uniform; ActSafe's expansion phase (the safe policy of which the model is least certain, again and again); and
PyBullet's mechanics under the backup law, where the plants' own equations take one Euler step. Every model learns from each and
is tested on all, of the same number of rows.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, calibration, plotting
from gpsafe.calibration.zoo import Effort, Fitter
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.calibration_plants import (
    Source,
    against_truth,
    explored,
    measured,
    on_line,
    published,
    size_of,
)  # fmt: skip
from ._report.statistics import Share, grouped, plus_minus

NAMES = ("gp", "ensemble-5", "dropout", "laplace")
DELTA = 0.1
SOURCES = {
    "line": ("backup", "uniform", "explored"),
    "pendulum": ("backup", "uniform", "explored", "bullet"),
    "cart-pole": ("backup", "uniform", "explored", "bullet"),
    "drone": ("backup", "bullet"),
}


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: tuple[str, ...] = tuple(SOURCES)
    """Which plants; PyBullet's twins only where it is installed."""
    models: tuple[str, ...] = NAMES
    """Names of `gpsafe.calibration.MODELS`."""
    rows: int = 300
    """Learnt from; half as many recalibrate."""
    test: int = 250
    """Test rows of each source."""
    steps: int = 400
    """Gradient steps of a training."""
    hyperparameters: int = 80
    """Rows for the kernels of the processes."""

    def __post_init__(self) -> None:
        _require.names("--plants", self.plants, SOURCES)
        _require.names("--models", self.models, calibration.MODELS)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One plant a piece."""
    for i, plant in enumerate(arguments.plants):
        record.progress(i, len(arguments.plants), plant)
        record.piece(plant, lambda p=plant: Piece(list(_plant(arguments, p, seed)), {}))
    record.progress(len(arguments.plants), len(arguments.plants), "done")


Drawn = tuple[Transitions, Tensor]


def _rows(source: Source, x: Tensor, u: Tensor, generator: torch.Generator) -> Drawn:
    truth = source.mean(x, u)
    noise = source.noise * torch.randn(truth.shape, dtype=torch.float64, generator=generator)
    return Transitions(x, u, truth + noise), truth


def _drawn(plant: str, kind: str, seed: int, count: int) -> tuple[Source, Drawn]:
    """The source, and so many rows of that kind in random order."""
    simulator = "bullet" if kind == "bullet" else "analytic"
    source = on_line(seed) if plant == "line" else published(plant, seed, simulator)
    generator = torch.Generator().manual_seed(10_007 * seed + 101 * list(SOURCES).index(plant) + len(kind))
    if kind == "explored":
        x, u = explored(plant, seed, count)
    else:
        x, u = source.draw("uniform" if kind == "uniform" else "backup", count, generator)
    order = torch.randperm(len(x), generator=generator)
    return source, _rows(source, x[order], u[order], generator)


def _part(drawn: Drawn, first: int, last: int) -> Drawn:
    rows, truth = drawn
    return rows.select(slice(first, last)), truth[first:last]


def _plant(arguments: Arguments, plant: str, seed: int) -> Iterator[dict[str, Any]]:
    kinds = [k for k in SOURCES[plant] if k != "bullet" or importlib.util.find_spec("pybullet") is not None]
    n, held = arguments.rows, arguments.rows // 2
    drawn = {kind: _drawn(plant, kind, seed, n + held + arguments.test) for kind in kinds}
    for kind, (source, rows) in drawn.items():
        seen, held_out = _part(rows, 0, n)[0], _part(rows, n, n + held)[0]
        fitter = Fitter(
            seen, seed, prior=source.prior, noise_std=source.noise if source.kernels else None, kernels=source.kernels,
            effort=Effort(hyperparameters=arguments.hyperparameters, steps=arguments.steps),
        )  # fmt: skip
        for name in arguments.models:
            begun = time.process_time()
            model = fitter.fit(name).model
            conformal = calibration.Conformal.fit(model, held_out, delta=DELTA)
            band = calibration.theory_band(model, rkhs_norm=source.norm, delta=DELTA) if isinstance(model, GP) else None
            for other, (there, more) in drawn.items():
                test, truth = _part(more, n + held, n + held + arguments.test)
                size = size_of(test, source.prior)
                row = measured(model, conformal, test, size, seen) | against_truth(model, test, truth, size, there)
                if band is not None:
                    told = model.predict(test.x, test.u)
                    row["beta_holds"] = bool((calibration.ratios(truth, told.mean, told.std) <= band.beta).all())
                distance = calibration.distance_to_data(test.z, seen.z)
                yield {
                    "plant": plant, "learnt": kind, "tested": other, "model": name, "distance": float(distance.median()),
                    "seconds": time.process_time() - begun, **row,
                }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ report
Cells = Mapping[tuple[str, str, str, str], Sequence[Mapping[str, Any]]]


def report(runs: Sequence[Run]) -> Report:
    """Coverage from each source on each, for every model; a table of all."""
    rows = [{"seed": one.seed, **row} for one in runs for piece in one.pieces.values() for row in piece.rows]
    cells = grouped(rows, "plant", "learnt", "tested", "model")
    return Report(figures={"sources": _figure(cells)}, tables={"sources": _table(cells)})


def _table(cells: Cells) -> Table:
    rows = [
        (
            plant, learnt, tested, model, len(found), plus_minus((r["inside"] for r in found), 3),
            plus_minus((r["conformal"] for r in found), 3), plus_minus((r["inside_truth"] for r in found), 3),
            f"{np.median([r['needed'] for r in found]):.3g}",
            str(Share.of(r["beta_holds"] for r in found)) if "beta_holds" in found[0] else "",
            plus_minus((r["rmse"] for r in found), 2), f"{np.median([r['distance'] for r in found]):.2g}",
        )
        for (plant, learnt, tested, model), found in cells.items()
    ]  # fmt: skip
    columns = (
        "plant", "learnt from", "tested on", "model", "seeds", "next state in 90 % bars", "in conformal bars",
        "f* in 90 % epistemic bars", "needed multiple, median", "f* within βσ at all test points", "RMSE", "distance",
    )  # fmt: skip
    caption = (
        "Means over seeds ± 95 % Student t; shares of seeds with 95 % Clopper–Pearson. RMSE in standard deviations of the test "
        "residual. Distance: median over test points of that to the nearest row learnt from, inputs normalised. β: with the "
        "true norm on the line, else with twice the norm of the posterior mean, which is no theorem."
    )
    return Table(columns, rows, caption)


def _figure(cells: Cells) -> Any:
    """A matrix a model and plant: learnt from (rows), tested on (columns), per cent of next states in the 90 % bars."""
    plants = list(dict.fromkeys(key[0] for key in cells))
    models = list(dict.fromkeys(key[3] for key in cells))
    figure = plotting.figure(1.2 + 1.75 * len(models), 0.6 + 1.8 * len(plants))
    panels = figure.subplots(len(plants), len(models), squeeze=False)
    for row, plant in zip(panels, plants, strict=True):
        kinds = list(dict.fromkeys(key[1] for key in cells if key[0] == plant))
        for axes, model in zip(row, models, strict=True):
            table = np.array(
                [[np.mean([r["inside"] for r in cells[plant, a, b, model]]) for b in kinds] for a in kinds]
            )
            axes.imshow(table - 0.9, cmap="PuOr", vmin=-0.5, vmax=0.5, aspect="auto")
            for (i, j), value in np.ndenumerate(table):
                dark = abs(value - 0.9) > 0.3
                style = {"color": plotting.colour("page" if dark else "ink"), "fontsize": 8}
                axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", **style)
            axes.set_xticks(range(len(kinds)), [k[:3] for k in kinds], fontsize=7)
            axes.set_yticks(range(len(kinds)), kinds if model == models[0] else [""] * len(kinds), fontsize=8)
            axes.tick_params(length=0)
            axes.set_title(f"{plant}, {model}" if model == models[0] else model, fontsize=9)
    figure.supxlabel("tested on", fontsize=9)
    figure.supylabel("learnt from", fontsize=9)
    figure.suptitle("% of next states in the 90 % bars", fontsize=9)
    return figure


EXPERIMENT = Experiment(
    name="calibration-sources",
    title="Calibration on data of a safe explorer and of another simulator",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(plants=("line",), models=("gp",), rows=30, test=20, steps=5, hyperparameters=15),
        "quick": Arguments(),
        "full": Arguments(rows=1000, test=1000, steps=2000, hyperparameters=250),
    },
    seeds={"smoke": 1, "quick": 5, "full": 20},
    run=run,
    report=report,
)
