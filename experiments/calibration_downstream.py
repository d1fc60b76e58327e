"""What happens downstream when the bars of each model enter ActSafe's policy set and X-MPSC's filter.

Two plants: the reference pendulum of theory, whose kernels and B are known (there β is a theorem), and the cart-pole with what
is known of it 20 % off, kernels fitted and B read off. All models learn from the same first episodes, two transitions in three;
the third recalibrates. Six ways to read bars off a model (`gpsafe.calibration.bars.SCALES`).

ActSafe: one expansion of a class of affine policies, each at the worst of particles that err by the claimed half-width for a
whole episode; the true plant says which policies are safe. X-MPSC: the filter with the claims as its tubes, in flights whose
proposals are uniform or point away from the safe controller, with the same noise for all; and on states with inputs of
which it is known whether the next state can be kept safe.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpsafe import _require, plotting
from gpsafe.calibration import MODELS, Effort, Fitter, bars, downstream, theory_band
from gpsafe.comparison import Contest, PolicySet, task
from gpsafe.comparison.beliefs import joined
from gpsafe.models import GP
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, grouped, plus_minus

NAMES = ("gp", "ensemble-5", "dropout", "laplace")
DELTA = 0.1
PLANTS = ("twin", "cart-pole")
APART = 3  # every so manieth transition recalibrates


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: tuple[str, ...] = PLANTS
    """twin, cart-pole."""
    models: tuple[str, ...] = NAMES
    """Names of `gpsafe.calibration.MODELS`."""
    first: int = 3
    """Episodes learnt from."""
    flights: int = 1
    """Of each kind of proposals."""
    flown: tuple[str, ...] = ("plain", "raw", "scale", "conformal", "theory")
    """Bars with which the filter flies; the policy set is made with all."""
    pairs: int = 15
    """States with inputs that are shown to the filter."""
    policies: int = 9
    """Along each of two axes of the class."""
    points: int = 500
    """At which f* is looked up in the bars."""
    steps: int = 400
    """Gradient steps of a training."""

    def __post_init__(self) -> None:
        _require.names("--plants", self.plants, PLANTS)
        _require.names("--models", self.models, MODELS)
        _require.names("--flown", self.flown, bars.SCALES)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One plant a piece."""
    for i, plant in enumerate(arguments.plants):
        record.progress(i, len(arguments.plants), plant)
        record.piece(plant, lambda p=plant: Piece(list(_plant(arguments, p, seed)), {}))
    record.progress(len(arguments.plants), len(arguments.plants), "done")


def _plant(arguments: Arguments, plant: str, seed: int) -> Iterator[dict[str, Any]]:
    contest = task(plant, seed)  # type: ignore[arg-type]
    contest = replace(contest, offline=contest.offline[: arguments.first])
    rows = joined(contest.offline)
    apart = torch.arange(len(rows)) % APART == APART - 1
    train, held_out = (rows.select(m) for m in (~apart, apart))
    fitter = Fitter(
        train, seed, prior=contest.known, noise_std=contest.plant.noise_std.clamp_min(1e-12), kernels=contest.kernels,
        outputs=contest.outputs, effort=Effort(hyperparameters=80, steps=arguments.steps),
    )  # fmt: skip
    unsafe = PolicySet.create(contest, count=arguments.policies).unsafe()
    x = contest.goals(2 * arguments.points)[: arguments.points]
    u = contest.plant.input_box.sample(len(x), contest.generator(6))
    fliers: list[tuple[str, str, bars.Bars | None]] = [("none", "none", None)]
    for name in arguments.models:
        model = fitter.fit(name).model
        for scale in bars.SCALES:
            if scale == "theory" and not isinstance(model, GP):
                continue
            fliers.append((name, scale, bars.bars(model, scale, held_out, delta=DELTA, band=_band(contest, model))))
    for name, scale, claimed in fliers:
        begun = time.process_time()
        about = {"plant": plant, "model": name, "scale": scale, "rows": len(train), "apart": len(held_out)}
        if claimed is not None:
            low, high = claimed.of_function(x, u)
            chosen = list(contest.outputs)
            yield {
                **about, "what": "set", **downstream.policy_set(contest, claimed, count=arguments.policies, unsafe=unsafe),
                "missed": int(claimed.misses(contest.plant.mean, x, u).sum()), "points": len(x),
                "half": float((0.5 * (high - low) / contest.plant.noise_std.clamp_min(1e-12))[:, chosen].mean()),
            }  # fmt: skip
        if claimed is not None and scale not in arguments.flown:
            continue
        for row in downstream.filtered(contest, claimed, episodes=arguments.flights, pairs=arguments.pairs):
            yield {**about, "what": "pairs" if row["proposed"] == "pairs" else "flight", **row}
        yield {**about, "what": "cost", "seconds": time.process_time() - begun}


def _band(contest: Contest, model: Any) -> Any:
    """β with the norm, where it is known; else nothing."""
    if not isinstance(model, GP) or contest.rkhs_norm is None:
        return None
    noise = contest.plant.noise_std[list(contest.outputs)]
    norm = torch.tensor(contest.rkhs_norm, dtype=torch.float64)
    return theory_band(model, rkhs_norm=norm, subgaussian=noise, delta=DELTA)


# ------------------------------------------------------------------------------------------------------------ report
Rows = Sequence[Mapping[str, Any]]


def _what(rows: Rows, what: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["what"] == what]


def _pooled(rows: Iterable[Mapping[str, Any]], count: str, total: str) -> Share:
    found = list(rows)
    return Share(sum(r[count] for r in found), sum(r[total] for r in found))


def _told(share: Share) -> str:
    return str(share) if share.total else "–"


def _order(rows: Rows) -> dict[tuple[str, str, str], Rows]:
    found = grouped(rows, "plant", "model", "scale")
    place = {name: i for i, name in enumerate((*PLANTS, "none", *NAMES, *bars.SCALES))}
    return dict(sorted(found.items(), key=lambda item: [place.get(part, -1) for part in item[0]]))


def report(runs: Sequence[Run]) -> Report:
    """Policy sets, filters, and a figure of both."""
    rows = [{"seed": one.seed, **row} for one in runs for piece in one.pieces.values() for row in piece.rows]
    cells = _order(rows)
    return Report(figures={"downstream": _figure(cells)}, tables={"actsafe": _sets(cells), "xmpsc": _filters(cells)})


def _sets(cells: Mapping[tuple[str, str, str], Rows]) -> Table:
    rows = []
    for (plant, model, scale), found in cells.items():
        own = _what(found, "set")
        if not own:  # without a filter there is no set
            continue
        unsafe = Share.of(r["unsafe_members"] for r in own)
        rows.append(
            (
                plant, model, scale, len(own), plus_minus((r["size"] for r in own), 1),
                plus_minus((r["safe_members"] / r["true_safe"] for r in own), 2), str(unsafe),
                f"{sum(r['unsafe_members'] for r in own)} of {sum(r['true_unsafe'] for r in own)}",
                plus_minus((1 - r["missed"] / r["points"] for r in own), 3), str(Share.of(r["missed"] == 0 for r in own)),
                plus_minus((r["half"] for r in own), 1),
            )
        )  # fmt: skip
    columns = (
        "plant", "model", "bars", "seeds", "|S_1|", "of the safe policies", "runs with an unsafe member", "unsafe members",
        "points with f* inside", "runs with f* inside everywhere", "half-width / noise",
    )  # fmt: skip
    caption = (
        "One expansion from the same rows. Means over seeds ± 95 % Student t; shares of runs with 95 % Clopper–Pearson. "
        "Unsafe: J_c > d by 256 paths of the true plant. Points: recoverable states, uniform inputs. Particles are a lower "
        "estimate of the worst case, for all models alike."
    )
    return Table(columns, rows, caption)


def _filters(cells: Mapping[tuple[str, str, str], Rows]) -> Table:
    rows = []
    for (plant, model, scale), found in cells.items():
        flights, pairs = _what(found, "flight"), _what(found, "pairs")
        if not flights:
            continue
        steps = sum(r["steps"] for r in flights)
        by = {kind: [r for r in flights if r["proposed"] == kind] for kind in ("uniform", "against")}
        told = _pooled(flights, "captured", "captured_of")
        rows.append(
            (
                plant, model, scale, *(str(Share.of(r["violated"] for r in part)) for part in by.values()),
                "–" if model == "none" else f"{sum(r['corrected'] for r in flights) / steps:.2f}",
                "–" if model == "none" else f"{sum(r['from_plan'] for r in flights) / steps:.2f}",
                f"{told.value:.2f} of {told.total}" if told.total else "–",
                _told(_pooled(pairs, "accepted_of_safe", "safe_pairs")),
                _told(_pooled(pairs, "accepted_of_unsafe", "unsafe_pairs")),
            )
        )  # fmt: skip
    columns = (
        "plant", "model", "bars", "episodes with a violation, uniform", "against the safe controller", "steps corrected",
        "steps with a certified plan", "next state in the tube", "safe inputs let through", "unsafe inputs let through",
    )  # fmt: skip
    caption = (
        "Shares with 95 % Clopper–Pearson intervals, episodes and pairs taken as independent. Paper mode: tubes without a "
        "remainder, of squared half-axes (half-width)², so that nothing is proved for anyone. Steps: over both kinds of "
        "flights; an episode ends at a violation."
    )
    return Table(columns, rows, caption)


def _figure(cells: Mapping[tuple[str, str, str], Rows]) -> Figure:
    """Certified share of the safe policies, safe inputs let through, states in the tube and violations, by model and bars."""
    plants = list(dict.fromkeys(plant for plant, _, _ in cells))
    models = [m for m in NAMES if any(m == model for _, model, _ in cells)]
    figure = plotting.figure(11.5, 1.0 + 2.9 * len(plants))
    panels = figure.subplots(len(plants), 4, squeeze=False, sharey=True)
    looks = plotting.looks(bars.SCALES)
    titles = ("safe policies in S_1", "safe inputs let through", "next states in the tube", "episodes with a violation")
    for row, plant in zip(panels, plants, strict=True):
        for j, scale in enumerate(bars.SCALES):
            for i, model in enumerate(models):
                found = cells.get((plant, model, scale))
                if found is None:
                    continue
                place = i + 0.13 * (j - 2.5)
                own, flights, pairs = _what(found, "set"), _what(found, "flight"), _what(found, "pairs")
                shares = (
                    _pooled(own, "safe_members", "true_safe"), _pooled(pairs, "accepted_of_safe", "safe_pairs"),
                    _pooled(flights, "captured", "captured_of"), Share.of(r["violated"] for r in flights),
                )  # fmt: skip
                for axes, share in zip(row, shares, strict=True):
                    _mark(axes, place, share, looks[scale], scale if i == 0 else None)
        for axes, title in zip(row, titles, strict=True):
            axes.set_yticks(range(len(models)), models)
            axes.set(xlim=(-0.03, 1.03), ylim=(len(models) - 0.5, -0.5), title=f"{plant}: {title}")
        free = cells.get((plant, "none", "none"))
        if free:
            row[3].axvline(Share.of(r["violated"] for r in _what(free, "flight")).value, color=plotting.colour("ink"))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    plotting.legend_beside(panels[0, -1], handles=handles, labels=labels)
    figure.supxlabel("share (95 % Clopper–Pearson for episodes); line: without a filter", fontsize=9)
    return figure


def _mark(axes: Axes, place: float, share: Share, look: plotting.Look, label: str | None) -> None:
    if not share.total:
        return
    low, high = share.interval if share.total < 200 else (share.value, share.value)
    spread = np.array([[share.value - low], [high - share.value]])
    axes.errorbar([share.value], [place], xerr=spread, markersize=4, label=label, **look.points)


EXPERIMENT = Experiment(
    name="calibration-downstream",
    title="What happens downstream: each model's bars in ActSafe's policy set and in X-MPSC's filter",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            plants=("twin",), models=("gp",), flown=("plain",), first=2, pairs=2, policies=3, points=50, steps=5
        ),
        "quick": Arguments(),
        "full": Arguments(
            flown=("plain", "raw", "scale", "isotonic", "conformal", "theory"),
            flights=5,
            pairs=100,
            policies=13,
            points=2000,
            steps=2000,
        ),
    },
    seeds={"smoke": 1, "quick": 5, "full": 20},
    run=run,
    report=report,
)
