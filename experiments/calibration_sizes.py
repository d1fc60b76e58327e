"""Calibration, time and memory as data grow: from 50 to 10 000 transitions, the exact process as far as it goes.

On the line the kernel and B are those of f*, so that β is a theorem at every size; on the pendulum the kernels are fitted on at
most so many rows at every size. Rows come from the backup law (with free inputs among them); tested are rows of that kind and
uniform ones. Processor seconds of one thread; memory is that by which the process grew at its peak while it fitted (a lower
estimate: freed memory is used again), and what the fitted model takes when stored, its rows included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import NullFormatter, NullLocator
from torch import Tensor

from gpsafe import _require, calibration, plotting
from gpsafe.calibration.zoo import Effort, Fitter
from gpsafe.models import GP
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.calibration_plants import Source, against_truth, measured, on_line, published, size_of
from ._report.statistics import Share, grouped, peak_memory, plus_minus

NAMES = ("gp", "sparse-gp", "ensemble-10", "dropout", "laplace")
DELTA = 0.1
PLANTS = ("line", "pendulum")
KINDS = ("backup", "uniform")


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: tuple[str, ...] = PLANTS
    """line, pendulum."""
    models: tuple[str, ...] = NAMES
    """Names of `gpsafe.calibration.MODELS`."""
    counts: tuple[int, ...] = (50, 400, 2000, 10_000)
    """Transitions learnt from."""
    exact: int = 2000
    """The exact process is left out where there are more: its time grows as n³, its memory as n²."""
    held: int = 150
    """Rows that recalibrate."""
    test: int = 200
    """Test rows of each kind."""
    steps: int = 1000
    """Gradient steps of a training."""
    hyperparameters: int = 250
    """Rows for the kernels of the processes."""

    def __post_init__(self) -> None:
        _require.names("--plants", self.plants, PLANTS)
        _require.names("--models", self.models, calibration.MODELS)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One plant and number of rows a piece."""
    _warm(arguments)
    work = [(plant, count) for plant in arguments.plants for count in arguments.counts]
    for i, (plant, count) in enumerate(work):
        record.progress(i, len(work), f"{plant}, {count}")
        record.piece(f"{plant}/{count}", lambda p=plant, c=count: Piece(list(_fits(arguments, p, c, seed)), {}))
    record.progress(len(work), len(work), "done")


def _warm(arguments: Arguments) -> None:
    """The first fit in a process loads libraries, which is no part of its price."""
    seen, _ = on_line(0).rows(KINDS[0], 12, torch.Generator().manual_seed(0))
    fitter = Fitter(seen, effort=Effort(10, iterations=2, inducing=5, steps=2))
    for name in arguments.models:
        model = fitter.fit(name).model
        model.predict(seen.x, seen.u)


def _fits(arguments: Arguments, plant: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    source = on_line(seed) if plant == "line" else published(plant, seed)
    generator = torch.Generator().manual_seed(10_007 * seed + 101 * PLANTS.index(plant) + 7)
    tests = {kind: source.rows(kind, arguments.test, generator) for kind in KINDS}  # the same at all sizes
    held_out, _ = source.rows(KINDS[0], arguments.held, generator)
    seen, _ = source.rows(KINDS[0], count, generator)
    effort = Effort(arguments.hyperparameters, exact=arguments.exact, steps=arguments.steps)
    noise = source.noise if source.kernels else None
    fitter = Fitter(seen, seed, prior=source.prior, noise_std=noise, kernels=source.kernels, effort=effort)
    begun = time.process_time()
    fitter.noise  # noqa: B018  (kernels and noise are fitted once, for all that share them)
    kernels = time.process_time() - begun
    for name in arguments.models:
        if name == "gp" and count > arguments.exact:
            continue
        fitted, _, grown = peak_memory(lambda name=name: fitter.fit(name))
        model = fitted.model
        begun = time.process_time()
        model.predict(tests[KINDS[0]][0].x, tests[KINDS[0]][0].u)
        told: dict[str, Any] = {
            "plant": plant, "count": count, "model": name, "kernels": kernels, "fit": fitted.seconds, "grown": grown,
            "size": fitted.size / 2**20, "predict": 1e6 * (time.process_time() - begun) / arguments.test,
        }  # fmt: skip
        for kind, (rows, truth) in tests.items():
            conformal = calibration.Conformal.fit(model, held_out, delta=DELTA)
            size = size_of(rows, source.prior)
            row = measured(model, conformal, rows, size, seen) | against_truth(model, rows, truth, size, source)
            yield {**told, "test": kind, **row, **_band(model, source, rows.x, rows.u, truth)}


def _band(model: Any, source: Source, x: Tensor, u: Tensor, truth: Tensor) -> dict[str, Any]:
    """β of an exact process, and whether it held."""
    if not isinstance(model, GP):
        return {}
    band = calibration.theory_band(model, rkhs_norm=source.norm, delta=DELTA)
    told = model.predict(x, u)
    held = (calibration.ratios(truth, told.mean, told.std) <= band.beta).all()
    return {"beta": float(band.beta.max()), "beta_holds": bool(held), "beta_sound": band.sound}


# ------------------------------------------------------------------------------------------------------------ report
Rows = Sequence[Mapping[str, Any]]


def report(runs: Sequence[Run]) -> Report:
    """Two figures, of calibration and of cost, and a table of each."""
    rows = [{"seed": one.seed, **row} for one in runs for piece in one.pieces.values() for row in piece.rows]
    figures = {"sizes": _calibration(rows), "price": _price(rows)}
    return Report(figures=figures, tables={"sizes": _table(rows), "price": _prices(rows)})


def _cells(rows: Rows) -> dict[tuple[str, str, int], Rows]:
    names = {name: i for i, name in enumerate(NAMES)}
    found = grouped(rows, "plant", "model", "count")
    return {k: found[k] for k in sorted(found, key=lambda k: (PLANTS.index(k[0]), names[k[1]], k[2]))}  # type: ignore[misc]


def _table(rows: Rows) -> Table:
    found = []
    for (plant, model, count), own in _cells(rows).items():
        near, far = ([r for r in own if r["test"] == kind] for kind in KINDS)
        found.append(
            (
                plant, model, count, plus_minus((r["inside"] for r in near), 3), plus_minus((r["inside"] for r in far), 3),
                plus_minus((r["conformal"] for r in near), 3), plus_minus((r["conformal"] for r in far), 3),
                f"{np.median([r['needed'] for r in near]):.3g}", f"{np.median([r['needed'] for r in far]):.3g}",
                f"{np.median([r['beta'] for r in own]):.3g}" if "beta" in own[0] else "",
                str(Share.of(r["beta_holds"] for r in own)) if "beta" in own[0] else "",
                plus_minus((r["rmse"] for r in near), 3), plus_minus((r["noise_ratio"] for r in near), 2),
            )
        )  # fmt: skip
    columns = (
        "plant", "model", "n", "next state in 90 % bars", "of the uniform kind", "in conformal bars", "of the uniform kind",
        "needed multiple, median", "of the uniform kind", "β", "f* within βσ at all test points", "RMSE", "noise / true noise",
    )  # fmt: skip
    caption = (
        "Means over seeds ± 95 % Student t; shares over seeds and both kinds with 95 % Clopper–Pearson, too narrow "
        "as far as the two kinds, of which a seed's model is asked both, go together. Learnt from the backup "
        "law. β: on the line with the true norm, on the pendulum with twice the norm of the posterior mean (no theorem)."
    )
    return Table(columns, found, caption)


def _prices(rows: Rows) -> Table:
    found = []
    for (plant, model, count), own in _cells([r for r in rows if r["test"] == KINDS[0]]).items():
        found.append(
            (
                plant, model, count, *(float(np.median([r[k] for r in own])) for k in ("fit", "predict", "grown", "size")),
                float(np.median([r["kernels"] for r in own])) if "gp" in model else "",
            )
        )  # fmt: skip
    columns = (
        "plant", "model", "n", "seconds to fit", "µs a prediction", "peak growth, MiB", "stored, MiB", "seconds for kernels",
    )  # fmt: skip
    caption = "Medians over seeds; processor seconds of one thread, on a machine that did other work too."
    return Table(columns, found, caption)


def _lines(rows: Rows, panels: Sequence[Any], fields: Sequence[tuple[str, str, str | None]], plant: str) -> None:
    """Medians against n, a curve a model, named at its end."""
    looks = plotting.looks(NAMES)
    for axes, (field, title, scale) in zip(panels, fields, strict=True):
        for name in NAMES:
            own = [r for r in rows if r["plant"] == plant and r["model"] == name and field in r]
            counts = sorted({r["count"] for r in own})
            if counts:
                values = [np.array([r[field] for r in own if r["count"] == n]) for n in counts]
                axes.plot(counts, [np.median(v) for v in values], markersize=3, label=name, **looks[name].marked)
        axes.set(xscale="log", yscale=scale or "linear", title=f"{plant}: {title}")
        every = sorted({r["count"] for r in rows})
        axes.set_xticks(every, [f"{n}" if n < 1000 else f"{n // 1000}k" for n in every])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _calibration(rows: Rows) -> Any:
    plants = list(dict.fromkeys(r["plant"] for r in rows))
    figure = plotting.figure(11.5, 0.6 + 2.9 * len(plants))
    panels = figure.subplots(len(plants), 4, squeeze=False)
    split = {kind: [r for r in rows if r["test"] == kind] for kind in KINDS}
    for row, plant in zip(panels, plants, strict=True):
        for i, kind in enumerate(KINDS):
            fields = (("inside", f"in 90 % bars, {kind}", None), ("needed", f"needed multiple, {kind}", "log"))
            _lines(split[kind], (row[i], row[2 + i]), fields, plant)
            row[i].axhline(0.9, color=plotting.colour("ink"), linewidth=0.9)
            row[i].set_ylim(0, 1.02)
            beta = [r for r in split[kind] if r["plant"] == plant and "beta" in r]
            for n in sorted({r["count"] for r in beta}):
                at = float(np.median([r["beta"] for r in beta if r["count"] == n]))
                noun = "safe" if beta[0]["beta_sound"] else "unsafe"
                row[2 + i].plot([n], [at], "_", color=plotting.colour(noun), markersize=12, markeredgewidth=2)
    plotting.legend_beside(panels[0, -1])
    figure.supxlabel("transitions learnt from (backup law); bars: β (green: theorem, red: B read off)", fontsize=9)
    return figure


def _price(rows: Rows) -> Any:
    plants = list(dict.fromkeys(r["plant"] for r in rows))
    figure = plotting.figure(11.5, 0.6 + 2.9 * len(plants))
    panels = figure.subplots(len(plants), 3, squeeze=False)
    own = [r for r in rows if r["test"] == KINDS[0]]
    fields = (("fit", "seconds to fit", "log"), ("predict", "µs a prediction", "log"), ("size", "stored, MiB", "log"))
    for row, plant in zip(panels, plants, strict=True):
        _lines(own, list(row), fields, plant)
    plotting.legend_beside(panels[0, -1])
    figure.supxlabel("transitions learnt from; medians over seeds, processor time of one thread", fontsize=9)
    return figure


EXPERIMENT = Experiment(
    name="calibration-sizes",
    title="Calibration, time and memory from 50 to 10 000 transitions",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(plants=("line",), counts=(30, 40), held=20, test=20, steps=5, hyperparameters=15),
        "quick": Arguments(),
        "full": Arguments(counts=(50, 200, 1000, 4000, 10_000, 40_000), exact=4000, test=2000, steps=5000),
    },
    seeds={"smoke": 1, "quick": 5, "full": 20},
    run=run,
    report=report,
)
