"""Figure 3 of the X-MPSC paper: what ensemble size, known part, delay and horizon do to reward and violations.

All combinations on the published pendulum at a stated fraction of its epochs. The paper averages over everything but one
factor; beside that stand paired differences: the same seed and the same other three settings, one factor changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from gpsafe import plotting
from gpsafe.algorithms.xmpsc import XMPSC
from gpsafe.models import identity_prior
from gpsafe.planning.mbpo import Preset, preset
from gpsafe.systems import SimplePendulum
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, mean_interval, plus_minus
from ._report.xmpsc_runs import toy, trained

FACTORS = ("members", "prior", "delay", "horizon")
CLAIMED = {"members": "fewer", "prior": "fewer", "delay": "fewer, less reward", "horizon": "–"}  # by the paper
NAMES = {"members": "members of the ensemble", "prior": "known part", "delay": "delay ℓ", "horizon": "states N"}
MEMORY = 2e8  # bytes of a virtual ring


@dataclass(frozen=True)
class Arguments:
    """The grid."""

    members: tuple[int, ...] = (1, 3, 5)
    """Of the ensemble."""
    priors: tuple[bool, ...] = (False, True)
    """With the published known part (mass and length 20 % low)."""
    delays: tuple[int, ...] = (1, 5, 10)
    """Updates before a hull is used."""
    horizons: tuple[int, ...] = (5, 6, 7)
    """States of a plan."""
    fraction: float = 0.2
    """Of the published epochs."""
    warm_up: int = 8000
    """First transitions, uniform torques."""
    toy: bool = False
    """Everything so small that it takes seconds."""


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One combination a piece; saved every few episodes while it runs."""
    torch.set_num_threads(1)
    cells = list(itertools.product(arguments.members, arguments.priors, arguments.delays, arguments.horizons))
    for i, cell in enumerate(cells):
        key = "/".join(str(int(value)) for value in cell)

        def told(text: str, i: int = i, key: str = key) -> None:
            record.progress(i, len(cells), f"{key}: {text}")

        def compute(cell: tuple[Any, ...] = cell, key: str = key, told: Any = told) -> Piece:
            settings, plant = _settings(cell, arguments), SimplePendulum()
            prior = plant.prior() if cell[1] else identity_prior
            one = XMPSC.create(plant, settings, prior=prior, seed=seed)
            rows = trained(one, settings.epochs * settings.steps, record.scratch(key), told)
            return Piece([{**dict(zip(FACTORS, map(int, cell), strict=True)), **_summary(rows)}])

        record.piece(key, compute)
    record.progress(len(cells), len(cells), "done")


def _settings(cell: tuple[Any, ...], arguments: Arguments) -> Preset:
    members, _, delay, horizon = cell
    found = replace(preset("pendulum").shorter(arguments.fraction), warm_up=arguments.warm_up)
    found = replace(found, members=members, delay=delay, horizon=horizon).within(MEMORY, 2, 1)
    return toy(found) if arguments.toy else found


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the episodes after the warm-up."""
    flown = [row for row in rows if row["phase"] == "train"]
    late = flown[-max(len(flown) // 5, 1) :]
    return {
        "episodes": len(flown),
        "steps": sum(row["steps"] for row in flown),
        "violations": sum(row["violations"] for row in flown),
        "reward": float(np.mean([row["reward"] for row in late])),
        "plans": sum(row["from_plan"] for row in flown) / sum(row["steps"] for row in flown),
        "captured": sum(row["captured"] for row in flown),
        "captured_of": sum(row["captured_of"] for row in flown),
        "volume": flown[-1]["terminal_volume"],
        "ms": float(np.median([row["certify_ms"] for row in flown])),
    }


# ------------------------------------------------------------------------------------------------------------ report
Row = Mapping[str, Any]


def _rows(runs: Sequence[Run]) -> list[Row]:
    return [{"seed": run.seed, **row} for run in runs for piece in run.pieces.values() for row in piece.rows]


def _levels(rows: Sequence[Row]) -> Table:
    """The paper's way: averages over everything else."""
    table = []
    for factor in FACTORS:
        for level in sorted({row[factor] for row in rows}):
            here = [row for row in rows if row[factor] == level]
            held, of = (sum(row[name] for row in here) for name in ("captured", "captured_of"))
            table.append(
                (
                    NAMES[factor],
                    ("no", "yes")[level] if factor == "prior" else str(level),
                    len(here),
                    plus_minus(row["violations"] for row in here),
                    plus_minus(row["reward"] for row in here),
                    f"{np.mean([row['plans'] for row in here]):.3f}",
                    f"{held / max(of, 1):.3f}",
                    f"{np.mean([row['volume'] for row in here]):.3g}",
                    f"{np.median([row['ms'] for row in here]):.3g}",
                )
            )
    columns = (
        "factor",
        "level",
        "runs",
        "violations a run",
        "reward of the last fifth",
        "steps with a new plan",
        "next state in a member's tube",
        "volume of the terminal set at the end",
        "CPU ms a decision",
    )
    caption = "Means over all runs with that level ± 95 % (Student), all other factors and seeds mixed, as the paper averages."
    return Table(columns=columns, rows=table, caption=caption)


def _effects(rows: Sequence[Row]) -> Table:
    """Paired differences between the highest and the lowest level of a factor."""
    table = []
    for factor in FACTORS:
        low, high = (end(row[factor] for row in rows) for end in (min, max))
        others = [name for name in (*FACTORS, "seed") if name != factor]
        first, last = (
            {tuple(row[name] for name in others): row for row in rows if row[factor] == level} for level in (low, high)
        )
        pairs = [(first[key], last[key]) for key in first if key in last] if low != high else []
        if not pairs:
            continue
        change = {name: [after[name] - before[name] for before, after in pairs] for name in ("violations", "reward")}
        fewer, more = (sum(sign * d < 0 for d in change["violations"]) for sign in (1, -1))
        table.append(
            (
                NAMES[factor],
                f"{low} → {high}" if factor != "prior" else "without → with",
                len(pairs),
                plus_minus(change["violations"]),
                f"{fewer} fewer, {more} more, {len(pairs) - fewer - more} equal",
                f"{sum(b['violations'] for b, _ in pairs)} → {sum(a['violations'] for _, a in pairs)}",
                plus_minus(change["reward"]),
                CLAIMED[factor],
                _verdict(factor, fewer, more, change["reward"]),
            )
        )
    columns = (
        "factor",
        "change",
        "pairs",
        "violations, difference",
        "pairs with",
        "violations in all",
        "reward, difference",
        "claimed",
        "verdict",
    )
    caption = (
        "The same seed and the same other three settings, one factor changed: mean difference ± 95 % (Student over pairs; "
        "those of one seed share its warm-up). Of violations the verdict is a sign test's (the exact 95 % interval of the "
        "share of pairs with fewer, of those that differ, against one half), of reward the interval's."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _verdict(factor: str, fewer: int, more: int, reward: Sequence[float]) -> str:
    """Of what the paper claims of a factor."""
    if CLAIMED[factor] == "–":
        return "–"
    low, high = Share(fewer, fewer + more).interval if fewer + more else (0.0, 1.0)
    found = ["confirmed" if low > 0.5 else "refuted" if high < 0.5 else "open"]
    if "reward" in CLAIMED[factor]:
        mean, half = mean_interval(reward)
        found.append("confirmed" if mean + half < 0 else "refuted" if mean - half > 0 else "open")
    return ", ".join(found)


def report(runs: Sequence[Run]) -> Report:
    """Averages, paired effects, and both in a figure."""
    rows = _rows(runs)
    return Report(figures={"figure3": _figure(rows)}, tables={"effects": _effects(rows), "levels": _levels(rows)})


def _figure(rows: Sequence[Row]) -> Figure:
    figure = plotting.figure("screen", 4.4)
    panels = figure.subplots(2, len(FACTORS), sharey="row", sharex="col")
    for column, factor in enumerate(FACTORS):
        levels = sorted({row[factor] for row in rows})
        for axes, name in zip(panels[:, column], ("violations", "reward"), strict=True):
            found = [mean_interval(row[name] for row in rows if row[factor] == level) for level in levels]
            half = [0.0 if np.isnan(h) else h for _, h in found]
            look = plotting.look(name).marked
            axes.errorbar(range(len(levels)), [m for m, _ in found], yerr=half, capsize=2, markersize=4, **look)
        ticks = ["no", "yes"][: len(levels)] if factor == "prior" else [str(n) for n in levels]
        panels[1, column].set_xticks(range(len(levels)), ticks)
        panels[1, column].set_xlabel(NAMES[factor])
    panels[0, 0].set_ylim(bottom=0)  # of all panels, once all is drawn
    panels[0, 0].set_ylabel("violations a run")
    panels[1, 0].set_ylabel("reward of the last fifth")
    return figure


EXPERIMENT = Experiment(
    name="xmpsc-figure3",
    title="What ensemble size, known part, delay and horizon do to X-MPSC (Figure 3 of its paper)",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(members=(1, 2), priors=(True,), delays=(1,), horizons=(3,), warm_up=100, toy=True),
        "quick": Arguments(fraction=0.05),
        "full": Arguments(),
    },
    seeds={"smoke": 1, "quick": 1, "full": 5},
)
