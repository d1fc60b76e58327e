"""Where plans may end: hulls of certified states against invariant sets, in the published certification (paper mode).

An ensemble learns the warm-up data once. Then inputs that push to the limits, and uniform ones, go through filters that differ
in their terminal set: the published hull of certified states in two coordinates, the hull in all of them (both updated after
every episode), or an invariant set of the model linearised about rest in all coordinates, made once. Without a filter the same
proposals meet the same noise.
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
from gpsafe.algorithms.certification import Certification
from gpsafe.certify.terminal_set import TerminalSet
from gpsafe.linalg import vector
from gpsafe.models import Ensemble
from gpsafe.safety.filter import SafetyFilter
from gpsafe.safety.flight import fly
from gpsafe.systems.episodic import Episodic
from gpsafe.systems.warmup import warm_up_data
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, draw_shares, grouped
from ._report.xmpsc_runs import proposals, untrained

PLANTS = {
    "pendulum": (SimplePendulum, 5, 0),
    "cart-pole": (SafeCartPole, 7, 2),
}  # N, coordinate that is pushed to its limit
TERMINALS = ("none", "hull", "hull-all", "invariant")
PRIORS = ("prior", "plain")
LEARNERS = ("adversary", "uniform")
STARTS = 80  # first states whose hull is the first terminal set


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: tuple[str, ...] = tuple(PLANTS)
    """pendulum, cart-pole."""
    priors: tuple[str, ...] = PRIORS
    """With the published known part (masses and lengths 20 % low), or without."""
    terminals: tuple[str, ...] = TERMINALS
    """Terminal sets; none: no filter."""
    data: int = 8000
    """Warm-up transitions."""
    training: int = 3000
    """Least number of gradient steps."""
    episodes: int = 10
    """For each learner."""
    steps: int = 100
    """Of an episode, which ends at a violation."""

    def __post_init__(self) -> None:
        _require.names("--plants", self.plants, PLANTS)
        _require.names("--priors", self.priors, PRIORS)
        _require.names("--terminals", self.terminals, TERMINALS)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One plant, prior and terminal set a piece."""
    torch.set_num_threads(1)
    cells = [(p, k, t) for p in arguments.plants for k in arguments.priors for t in arguments.terminals]
    learned: dict[tuple[str, str], tuple[Ensemble, Tensor]] = {}
    for i, (plant, prior, terminal) in enumerate(cells):
        record.progress(i, len(cells), f"{plant}, {prior}, {terminal}")

        def compute(plant: str = plant, prior: str = prior, terminal: str = terminal) -> Piece:
            system, states, pushed = PLANTS[plant][0](), *PLANTS[plant][1:]
            if (plant, prior) not in learned:
                learned[plant, prior] = _learned(system, prior == "prior", arguments, seed)
            how = Certification(
                states=states,
                dims=system.limited if terminal == "hull" else None,
                terminal="invariant" if terminal == "invariant" else "hull",
            )
            return Piece(_episodes(system, how, terminal, pushed, *learned[plant, prior], arguments, seed))

        record.piece(f"{plant}/{prior}/{terminal}", compute)
    record.progress(len(cells), len(cells), "done")


def _learned(system: Episodic, prior: bool, arguments: Arguments, seed: int) -> tuple[Ensemble, Tensor]:
    """An ensemble of the warm-up data, and the first states of its episodes."""
    found = warm_up_data(system, arguments.data, 9_000_011 + seed)
    ensemble = untrained(system, seed, arguments.training, prior=prior)
    return ensemble.condition(found.transitions), found.starts[:STARTS]


def _episodes(
    system: Episodic,
    how: Certification,
    terminal: str,
    pushed: int,
    model: Ensemble,
    starts: Tensor,
    arguments: Arguments,
    seed: int,
) -> list[dict[str, Any]]:
    rows = []
    for learner in LEARNERS:
        hull = how.first(system, starts) if terminal.startswith("hull") else None
        fixed = how.invariant(system, model, None) if terminal == "invariant" else None
        for episode in range(arguments.episodes):
            target = fixed if hull is None else hull.polytope
            safe = None if target is None else how.filter(system, model, None, target)
            generator = torch.Generator().manual_seed(1_000_003 * seed + 1009 * episode + 17 * (learner == "uniform"))
            row, certified = _episode(system, safe, learner, pushed, arguments.steps, generator)
            rows.append({"learner": learner, "episode": episode, "facets": 0 if target is None else target.rows, **row})
            if hull is not None:
                hull = _grown(hull, certified)
    return rows


def _grown(hull: TerminalSet, certified: list[Tensor]) -> TerminalSet:
    return hull.update(torch.stack(certified)) if certified else hull


def _episode(
    system: Episodic, safe: SafetyFilter | None, learner: str, pushed: int, steps: int, generator: torch.Generator
) -> tuple[dict[str, Any], list[Tensor]]:
    """Counts, and the states that were certified."""

    def push(seen: Tensor, drawn: Tensor) -> Tensor:
        return vector(1.0 if float(seen[pushed + 1]) >= 0 else -1.0)

    flight = fly(system, safe, proposals(system, learner, push), steps=steps, generator=generator)
    certified = [x for x, d in zip(flight.seen, flight.decisions, strict=False) if d.source == "plan"]
    row = flight.row()
    return {name: row[name] for name in ("steps", "violated", "change", "ms")} | dict(flight.counts), certified


# ------------------------------------------------------------------------------------------------------------ report
Row = Mapping[str, Any]


def _table(cells: Mapping[tuple[str, ...], Sequence[Row]]) -> Table:
    rows = []
    for key, found in cells.items():
        steps = sum(row["steps"] for row in found)
        plans = [row.get("plan", 0) / row["steps"] for row in found]
        filtered = key[2] != "none"
        rows.append(
            (
                *key,
                str(Share.of(row["violated"] for row in found)),
                f"{sum(row.get('plan', 0) for row in found)}/{steps}" if filtered else "–",
                f"{np.mean(plans):.3f}, least {min(plans):.2f}" if filtered else "–",
                f"{np.mean([row['change'] for row in found]):.2f}" if filtered else "–",
                f"{np.median([row['facets'] for row in found]):.0f}" if filtered else "–",
                f"{np.median([row['ms'] for row in found]):.3g}" if filtered else "–",
            )
        )
    columns = (
        "plant",
        "known part",
        "terminal set",
        "learner",
        "episodes with a violation",
        "steps with a new plan",
        "share, mean over episodes",
        "mean |u_L − u|",
        "facets",
        "CPU ms a decision (median)",
    )
    caption = (
        "Counts with 95 % Clopper–Pearson intervals, too narrow as far as episodes of a seed go together: they share a model, "
        "and a hull grows from one to the next. An episode ends when the true state leaves the limits. Times of filter "
        "and judge, on a machine that did other work too."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def report(runs: Sequence[Run]) -> Report:
    """Violations and shares of steps with a plan, by terminal set."""
    cells: dict[tuple[str, ...], list[Row]] = {}
    for run in runs:
        for key, piece in run.pieces.items():
            for (learner,), rows in grouped(piece.rows, "learner").items():
                cells.setdefault((*key.split("/"), learner), []).extend(rows)
    cells = dict(sorted(cells.items(), key=lambda c: (c[0][0], c[0][1], c[0][3], TERMINALS.index(c[0][2]))))
    return Report(figures={"terminal": _figure(cells)}, tables={"terminal": _table(cells)})


def _figure(cells: Mapping[tuple[str, ...], Sequence[Row]]) -> Figure:
    places = list(dict.fromkeys((p, k, q) for p, k, _, q in cells))
    figure = plotting.figure("screen", 4.0)
    left, right = figure.subplots(1, 2)
    for j, name in enumerate(TERMINALS):
        at = [(i, cells[p, k, name, q]) for i, (p, k, q) in enumerate(places) if (p, k, name, q) in cells]
        if not at:
            continue
        x = [i + 0.2 * (j - 1.5) for i, _ in at]
        draw_shares(
            left, x, [Share.of(row["violated"] for row in rows) for _, rows in at], label=name, noun=name, joined=False
        )
        if name != "none":
            shares = [np.mean([row.get("plan", 0) / row["steps"] for row in rows]) for _, rows in at]
            right.plot(x, shares, label=name, **plotting.look(name).points)
    for axes, title in ((left, "episodes with a violation"), (right, "steps with a new plan")):
        axes.set_xticks(range(len(places)), [f"{p}\n{k}\n{q}" for p, k, q in places])
        axes.set_title(title)
        axes.set_ylim(-0.03, 1.03)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", title="terminal set")
    return figure


EXPERIMENT = Experiment(
    name="xmpsc-terminal",
    title="Where plans may end: hulls of certified states against invariant sets",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(
            plants=("pendulum",),
            priors=("prior",),
            terminals=("none", "hull"),
            data=400,
            training=200,
            episodes=1,
            steps=5,
        ),
        "quick": Arguments(),
        "full": Arguments(episodes=50),
    },
    seeds={"smoke": 1, "quick": 5, "full": 10},
)
