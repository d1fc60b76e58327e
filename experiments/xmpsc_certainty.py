"""Limits on disagreement against wider tubes: what keeps a plan from going where the model happens to be wrong.

An ensemble learns n transitions of warm-up once, few or many. Then inputs that push to a limit, and uniform ones, go through
filters that differ in their tubes alone: the published ones (one predicted standard deviation), the same with a limit on how
far members may part along a plan (`gpsafe.certify.certainty`: what all but a twentieth, or half, of the flown stretches keep
to), and sound ones (a conformal radius on rows kept apart, the remainder of the linearisation). All plans end in an invariant
set of their model where there is one. Without a filter the same proposals meet the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.algorithms.certification import Certification, NoInvariantSetError
from gpsafe.models import Ensemble
from gpsafe.safety.flight import fly
from gpsafe.systems.episodic import Episodic
from gpsafe.systems.warmup import warm_up_data
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, draw_shares, grouped
from ._report.xmpsc_runs import proposals, untrained

PLANTS: dict[str, tuple[type[Any], int]] = {"pendulum": (SimplePendulum, 5), "cart-pole": (SafeCartPole, 7)}  # N
TUBES = ("none", "paper", "certain-95", "certain-50", "sound")
PRIORS = ("prior", "plain")
LEARNERS = ("adversary", "uniform")


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: tuple[str, ...] = tuple(PLANTS)
    """pendulum (measured exactly: the noise would be most of what a model can learn), cart-pole."""
    priors: tuple[str, ...] = PRIORS
    """With the published known part (masses and lengths 20 % low), or without."""
    data: tuple[int, ...] = (500, 8000)
    """Warm-up transitions."""
    tubes: tuple[str, ...] = TUBES
    """none (no filter), paper, certain-95, certain-50, sound."""
    training: int = 3000
    """Least number of gradient steps."""
    episodes: int = 10
    """For each learner."""
    steps: int = 100
    """Of an episode, which ends at a violation."""

    def __post_init__(self) -> None:
        _require.names("--plants", self.plants, PLANTS)
        _require.names("--priors", self.priors, PRIORS)
        _require.names("--tubes", self.tubes, TUBES)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One plant, known part, amount of data and tube a piece."""
    torch.set_num_threads(1)
    cells = [
        (p, k, n, t)
        for p in arguments.plants
        for k in arguments.priors
        for n in arguments.data
        for t in arguments.tubes
    ]
    learned: dict[tuple[str, str, int, bool], Any] = {}
    for i, (plant, prior, rows, tube) in enumerate(cells):
        record.progress(i, len(cells), f"{plant}, {prior}, {rows} rows, {tube}")

        def compute(plant: str = plant, prior: str = prior, rows: int = rows, tube: str = tube) -> Piece:
            system = _plant(plant)
            key = plant, prior, rows, tube == "sound"
            if key not in learned:
                learned[key] = _learned(system, prior == "prior", rows, tube == "sound", arguments, seed)
            model, apart, episodes = learned[key]
            return Piece(_episodes(system, plant, tube, model, apart, episodes, arguments, seed))

        record.piece(f"{plant}/{prior}/{rows}/{tube}", compute)
    record.progress(len(cells), len(cells), "done")


def _plant(name: str) -> Any:
    return PLANTS[name][0](observation_noise=0.0) if name == "pendulum" else PLANTS[name][0]()


def _learned(
    system: Any, prior: bool, rows: int, apart: bool, arguments: Arguments, seed: int
) -> tuple[Ensemble, Any, list[tuple[Tensor, Tensor]]]:
    """An ensemble of the warm-up, rows that it has not seen (a fourth, if any), and the episodes."""
    flown = warm_up_data(system, rows, 9_000_011 + seed)
    ensemble = untrained(system, seed, arguments.training, prior=prior)
    data, kept = flown.transitions, torch.arange(rows) % 4 == 3
    if not apart:
        return ensemble.condition(data), None, flown.episodes
    shown, held = (data.select(part) for part in (~kept, kept))
    return ensemble.condition(shown), held, flown.episodes


def certification(plant: str, tube: str) -> Certification:
    """What differs between arms is the tube."""
    share = float(tube.split("-")[1]) / 100 if tube.startswith("certain") else None
    sound: Any = {"mode": "sound", "delta": 0.1} if tube == "sound" else {}
    return Certification(
        states=PLANTS[plant][1], feedback=None, input_weight=10.0, terminal="invariant", certainty=share, **sound
    )


def _episodes(
    system: Episodic,
    plant: str,
    tube: str,
    model: Ensemble,
    apart: Any,
    episodes: list[tuple[Tensor, Tensor]],
    arguments: Arguments,
    seed: int,
) -> list[dict[str, Any]]:
    safe, kind = None, "none"
    if tube != "none":
        how, kind = certification(plant, tube), "invariant"
        try:
            safe = how.filter(system, model, apart, None, episodes)
        except NoInvariantSetError:  # the published hull then
            kind = "hull"
            hull = how.first(system, torch.stack([x[0] for x, _ in episodes])).polytope
            safe = how.filter(system, model, apart, hull, episodes)
    rows = []
    for learner in LEARNERS:
        for episode in range(arguments.episodes):
            g = torch.Generator().manual_seed(1_000_003 * seed + 1009 * episode + 17 * (learner == "uniform"))
            flight = fly(system, safe, proposals(system, learner, _push), steps=arguments.steps, generator=g)
            certified = safe is not None and safe.invariance is not None
            rows.append(
                {"learner": learner, "episode": episode, "terminal": kind, "invariant": certified, **flight.row()}
            )
    return rows


def _push(seen: Tensor, drawn: Tensor) -> Tensor:
    """Full force along the last speed."""
    return torch.where(seen[-1:] >= 0, 1.0, -1.0).to(drawn)


# ------------------------------------------------------------------------------------------------------------ report
Row = Mapping[str, Any]
Cells = Mapping[tuple[str, ...], Sequence[Row]]


def _table(cells: Cells) -> Table:
    table = []
    for key, rows in cells.items():
        steps = sum(row["steps"] for row in rows)
        total = {
            name: sum(row[name] for row in rows)
            for name in ("from_plan", "backed", "corrected", "captured", "captured_of")
        }
        filtered = key[3] != "none"
        table.append(
            (
                *key,
                str(Share.of(row["violated"] for row in rows)),
                f"{total['from_plan'] / steps:.3f}" if filtered else "–",
                f"{total['backed'] / steps:.3f}" if filtered else "–",
                f"{total['corrected'] / steps:.3f}" if filtered else "–",
                f"{total['captured'] / total['captured_of']:.3f} of {total['captured_of']}"
                if total["captured_of"]
                else "–",
                f"{sum(row['refuted'] for row in rows)}" if filtered else "–",
                ", ".join(sorted({row["terminal"] for row in rows})) if filtered else "–",
                f"{np.median([row['ms'] for row in rows]):.3g}" if filtered else "–",
            )
        )
    columns = (
        "plant",
        "known part",
        "rows",
        "tubes",
        "learner",
        "episodes with a violation",
        "steps with a new plan",
        "backed",
        "corrected",
        "next state in a member's tube",
        "episodes that refuted the model",
        "terminal set",
        "CPU ms a decision",
    )
    caption = (
        "Counts with 95 % Clopper–Pearson intervals, over episodes of all seeds (a seed is one model: its episodes are not "
        "independent). Shares of steps. Backed: a certificate stands behind the input, which in paper mode claims nothing. "
        "Times on a machine that did other work too."
    )
    return Table(columns=columns, rows=table, caption=caption)


def report(runs: Sequence[Run]) -> Report:
    """Violations and plans, by tube."""
    cells: dict[tuple[str, ...], list[Row]] = {}
    for run in runs:
        for key, piece in run.pieces.items():
            for (learner,), rows in grouped(piece.rows, "learner").items():
                cells.setdefault((*key.split("/"), learner), []).extend(rows)
    cells = dict(sorted(cells.items(), key=lambda c: (c[0][0], c[0][1], int(c[0][2]), c[0][4], TUBES.index(c[0][3]))))
    return Report(figures={"certainty": _figure(cells)}, tables={"certainty": _table(cells)})


def _figure(cells: Cells) -> Figure:
    places = list(dict.fromkeys((p, k, n, q) for p, k, n, _, q in cells))
    figure = plotting.figure("screen", 5.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for j, name in enumerate(TUBES):
        at = [(i, cells[p, k, n, name, q]) for i, (p, k, n, q) in enumerate(places) if (p, k, n, name, q) in cells]
        if not at:
            continue
        x = [i + 0.16 * (j - 2) for i, _ in at]
        shares = [Share.of(row["violated"] for row in rows) for _, rows in at]
        draw_shares(top, x, shares, label=name, noun=name, joined=False)
        if name != "none":
            plans = [sum(r["from_plan"] for r in rows) / sum(r["steps"] for r in rows) for _, rows in at]
            bottom.plot(x, plans, **plotting.look(name).points)
    bottom.set_xticks(range(len(places)), [f"{p}\n{k}\n{n} rows\n{q}" for p, k, n, q in places])
    for axes, title in ((top, "episodes with a violation"), (bottom, "steps with a new plan")):
        axes.set_title(title)
        axes.set_ylim(-0.03, 1.03)
    figure.legend(*top.get_legend_handles_labels(), loc="outside right center", title="tube")
    return figure


EXPERIMENT = Experiment(
    name="xmpsc-certainty",
    title="Limits on disagreement against wider tubes: published, certain and sound certificates",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(
            plants=("pendulum",),
            priors=("prior",),
            data=(400,),
            tubes=("none", "certain-95"),
            training=100,
            episodes=1,
            steps=5,
        ),
        "quick": Arguments(),
        "full": Arguments(episodes=50),
    },
    seeds={"smoke": 1, "quick": 3, "full": 10},
)
