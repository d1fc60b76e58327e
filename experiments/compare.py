"""ActSafe and X-MPSC under one roof: models × certifiers × explorers on the same plants, data, noise and counter.

Every contestant of a task has the same known part, first episodes, starts and noise; it explores for some episodes, each told
to its model, and seeks the task's reward after each. A violation is a true state outside the limits, which ends the episode. At
the end its certifier is tried on pairs of a state and an input of which is known whether the next state can be recovered
from: how many safe inputs it lets through says how conservative it is, how many unsafe ones how wrong. See `gpsafe.comparison`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from matplotlib.figure import Figure

from gpsafe import _require, plotting
from gpsafe.comparison import TASKS, Budget, combinations, contestant, reference, task
from gpsafe.comparison.run import MODELS, SEEKS
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, mean_interval, plus_minus

Certifier = Literal["none", "policy-set", "tube-paper", "tube-sound", "shield"]
CERTIFIERS: tuple[Certifier, ...] = get_args(Certifier)
COUNTED = (
    "accepted_of_safe", "safe_pairs", "accepted_of_unsafe", "unsafe_pairs", "certified_policies", "safe_policies",
    "false_policies",
)  # fmt: skip
GOOD = 0.5  # of the way from the safe controller's reward to the planner's that knows the plant


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    tasks: tuple[Literal["twin", "pendulum", "cart-pole", "arm"], ...] = ("twin", "pendulum", "cart-pole", "arm")
    """twin, pendulum, cart-pole, arm."""
    models: tuple[Literal["gp", "ensemble"], ...] = ("gp", "ensemble")
    """gp, ensemble."""
    certifiers: tuple[Certifier, ...] = CERTIFIERS
    """none, policy-set, tube-paper, tube-sound, shield; each where it says something."""
    explorers: tuple[Literal["uniform", "uncertainty", "reward"], ...] = ("uniform", "uncertainty", "reward")
    """uniform, uncertainty, reward."""
    episodes: int = 3
    """Of exploration, each followed by one that seeks the reward."""
    pairs: int = 40
    """Pairs of a state and an input on which a certifier is tried at the end."""
    points: int = 1000
    """States for coverage, and points at which the models' assumptions are tried."""
    horizon: int = 50
    """Steps of an episode; the twin has its own 30."""

    def __post_init__(self) -> None:
        _require.names("--tasks", self.tasks, TASKS)
        _require.names("--models", self.models, MODELS)
        _require.names("--certifiers", self.certifiers, CERTIFIERS)
        _require.names("--explorers", self.explorers, SEEKS)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """A piece a contestant."""
    torch.set_num_threads(1)
    budget = Budget(
        episodes=arguments.episodes,
        every=1,
        pairs=arguments.pairs,
        goals=arguments.points,
        points=arguments.points,
    )
    cells = [
        (name, who)
        for name in arguments.tasks
        for who in combinations(arguments.models, arguments.certifiers, arguments.explorers)
        if who[1] in TASKS[name]
    ]
    for i, (name, who) in enumerate(cells):
        record.progress(i, len(cells), f"{name}: {' / '.join(who)}")

        def compute(name: str = name, who: tuple[str, str, str] = who) -> Piece:
            rows, summary = contestant(task(name, seed, horizon=arguments.horizon), *who, budget=budget)
            return Piece([*rows, {"phase": "end", **_flat(summary)}])

        record.piece("/".join((name, *who)), compute)
    for name in arguments.tasks:
        record.piece(f"{name}/reference", lambda name=name: _reference(name, seed, arguments, budget))
    record.progress(len(cells), len(cells), "done")


def _reference(name: str, seed: int, arguments: Arguments, budget: Budget) -> Piece:
    low, high = reference(task(name, seed, horizon=arguments.horizon), budget)
    return Piece([{"safe": low, "planner": high}])


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v for k, v in summary.items()}


# ------------------------------------------------------------------------------------------------------------ report
Cell = tuple[str, str, str, str]
Rows = dict[Cell, dict[int, Sequence[dict[str, Any]]]]


def _cells(runs: Sequence[Run]) -> tuple[Rows, dict[str, dict[int, tuple[float, float]]]]:
    found: Rows = {}
    wanted: dict[str, dict[int, tuple[float, float]]] = {}
    for one in runs:
        for key, piece in one.pieces.items():
            if key.endswith("/reference"):
                row = piece.rows[0]
                wanted.setdefault(key.split("/")[0], {})[one.seed] = (row["safe"], row["planner"])
            else:
                name, model, certifier, explorer = key.split("/")
                found.setdefault((name, model, certifier, explorer), {})[one.seed] = piece.rows
    return found, wanted


def _of(rows: Iterable[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["phase"] == phase]


def _pooled(cells: Rows) -> dict[tuple[str, str, str], list[tuple[str, int, Sequence[dict[str, Any]]]]]:
    """Over explorers and seeds; those that make no sense left out."""
    found: dict[tuple[str, str, str], list[tuple[str, int, Sequence[dict[str, Any]]]]] = {}
    for (name, model, certifier, explorer), seeds in cells.items():
        for seed, rows in seeds.items():
            if not _of(rows, "end")[0]["unfit"]:
                found.setdefault((name, model, certifier), []).append((explorer, seed, rows))
    return found


def _share(count: int, total: int) -> str:
    return str(Share(count, total)) if total else "–"


def _mean(values: Sequence[float]) -> str:
    return "–" if not values else plus_minus(values) if len(values) > 1 else f"{values[0]:.3g}"


def _main(cells: Rows, wanted: dict[str, dict[int, tuple[float, float]]]) -> Table:
    rows = []
    for (name, model, certifier), runs in _pooled(cells).items():
        flown = [e for _, _, r in runs for e in _of(r, "explore") + _of(r, "seek")]
        explored = [e for _, _, r in runs for e in _of(r, "explore")]
        steps, ends = sum(e["steps"] for e in flown), [_of(r, "end")[0] for _, _, r in runs]
        by_set = certifier == "policy-set"
        total = {k: sum(e.get(k, 0) for e in ends) for k in COUNTED}
        seeks = [_of(r, "seek")[-1]["reward"] for _, _, r in runs]
        reached = [_reached(r, *wanted[name][seed]) for _, seed, r in runs if seed in wanted.get(name, {})]
        there = [s for s in reached if s is not None]
        rows.append(
            (
                name, model, certifier, len(runs),
                _share(sum(e["violated"] for e in flown), len(flown)),
                f"{sum(e['backed'] for e in flown) / steps:.2f}",
                "–" if by_set else f"{sum(e['corrected'] for e in explored) / sum(e['steps'] for e in explored):.2f}",
                _share(total["certified_policies"], total["safe_policies"]) + " policies" if by_set
                else _share(total["accepted_of_safe"], total["safe_pairs"]),
                (_share(total["false_policies"], total["certified_policies"] + total["false_policies"]) + " of S_n") if by_set
                else _share(total["accepted_of_unsafe"], total["unsafe_pairs"]),
                _mean([_of(r, "explore")[-1]["covered"] for x, _, r in runs if x == "uncertainty"]),
                _mean(seeks),
                f"{len(there)}/{len(reached)}" + (f", {np.median(there):.0f}" if there else ""),
                _share(sum(bool(e["refuted"]) for e in flown), len(flown)) if certifier not in ("none", "policy-set") else "–",
                f"{1e3 * sum(e['seconds'] for e in flown) / steps:.3g}",
            )
        )  # fmt: skip
    columns = (
        "task", "model", "certifier", "runs", "episodes with a violation", "steps backed", "steps corrected",
        "safe inputs let through", "unsafe inputs let through", "covered, uncertainty", "reward when seeking",
        "runs that reach half way, median steps", "episodes that refute", "CPU ms a step",
    )  # fmt: skip
    caption = (
        "Explorers and seeds pooled; shares with 95 % Clopper–Pearson intervals, which take episodes and pairs as independent. "
        "Backed: a certificate stands behind the input, under its assumptions. Safe: the next state was found recoverable "
        "without noise. For policy-set: members of S_n among truly safe policies, and truly unsafe ones among members. "
        "Covered: share of recoverable states of the region near a visited one. Half way: from the safe controller's reward to "
        "that of the same planner with the true plant; steps of exploration until then. Means ± 95 %."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def _reached(rows: Sequence[dict[str, Any]], low: float, high: float) -> int | None:
    """Steps of exploration until an episode that seeks gets half way; None if none does."""
    steps = 0
    for row in rows:
        if row["phase"] == "explore":
            steps += row["steps"]
        elif row["phase"] == "seek" and row["reward"] >= low + GOOD * (high - low):
            return steps
    return None


def _explorers(cells: Rows) -> Table:
    rows = []
    for (name, model, certifier, explorer), seeds in cells.items():
        if any(_of(r, "end")[0]["unfit"] for r in seeds.values()):
            rows.append(
                (name, model, certifier, explorer, 0, "–", "–", _of(next(iter(seeds.values())), "end")[0]["unfit"])
            )
            continue
        flown = [e for r in seeds.values() for e in _of(r, "explore")]
        rows.append(
            (
                name, model, certifier, explorer, len(seeds), _share(sum(e["violated"] for e in flown), len(flown)),
                _mean([_of(r, "explore")[-1]["covered"] for r in seeds.values()]), "",
            )
        )  # fmt: skip
    columns = ("task", "model", "certifier", "explorer", "seeds", "episodes with a violation", "covered", "why not")
    return Table(columns=columns, rows=rows, caption="Exploring episodes alone.")


def _assumptions(cells: Rows) -> Table:
    rows = []
    for (name, model, certifier), runs in _pooled(cells).items():
        ends = [_of(r, "end")[0] for _, _, r in runs]
        rests = ", ".join(json.loads(ends[0]["rests_on"]))
        counts: dict[str, list[int]] = {}
        for end in ends:
            for what, (bad, of) in json.loads(end["found_false"]).items():
                kept = counts.setdefault(what, [0, 0])
                kept[0] += bad
                kept[1] += of
        flown = [e for _, _, r in runs for e in _of(r, "explore") + _of(r, "seek")]
        held, of = sum(e["captured"] for e in flown), sum(e["captured_of"] for e in flown)
        if of:
            counts["next state in a tube"] = [of - held, of]
        told = "; ".join(f"{what}: {_share(bad, n)}" for what, (bad, n) in counts.items() if n)
        rows.append((name, model, certifier, rests or "nothing", told))
    columns = ("task", "model", "certifier", "what it calls backed rests on", "found false at")
    caption = (
        "Points of all runs; those of a run are not independent (one function, one trajectory), so the intervals are too "
        "narrow as statements about other seeds. 0 of n is no proof. See gpsafe.assumptions for what the names mean."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def _figure(cells: Rows) -> Figure:
    """Violations and reward against coverage; filled: Gaussian process, open: ensemble."""
    names = list(dict.fromkeys(cell[0] for cell in cells))
    figure = plotting.figure(1.6 + 2.6 * len(names), 5.2)
    axes = figure.subplots(2, len(names), squeeze=False, sharex="col")
    looks = plotting.looks(("unfiltered" if c == "none" else c) for c in CERTIFIERS)
    for (name, model, certifier), runs in _pooled(cells).items():
        column, flown = names.index(name), [e for _, _, r in runs for e in _of(r, "explore") + _of(r, "seek")]
        seeks = [_of(r, "seek")[-1]["reward"] for _, _, r in runs]
        mean, half = mean_interval(seeks) if len(seeks) > 1 else (seeks[0], 0.0)
        covered = [_of(r, "explore")[-1]["covered"] for x, _, r in runs if x == "uncertainty"] or [np.nan]
        share = Share(sum(e["violated"] for e in flown), len(flown))
        low, high = share.interval
        style = {**looks["unfiltered" if certifier == "none" else certifier].points, "capsize": 2}
        style |= {} if model == "gp" else {"markerfacecolor": plotting.colour("page")}
        label = certifier if model == "gp" and column == len(names) - 1 else None
        x = float(np.mean(covered))
        error = [[share.value - low], [high - share.value]]
        axes[0, column].errorbar([x], [share.value], yerr=error, label=label, **style)
        axes[1, column].errorbar([x], [mean], yerr=[half], **style)
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("covered when seeking doubt")
    axes[0, 0].set_ylabel("episodes with a violation")
    axes[1, 0].set_ylabel("reward when seeking it")
    for certifier in CERTIFIERS:
        axes[0, -1].errorbar(
            [], [], label=certifier, **looks["unfiltered" if certifier == "none" else certifier].points
        )
    handles = dict(zip(*reversed(axes[0, -1].get_legend_handles_labels()), strict=True))
    plotting.legend_beside(
        axes[0, -1], handles=list(handles.values()), labels=list(handles), title="filled: GP, open: ensemble"
    )
    return figure


def report(runs: Sequence[Run]) -> Report:
    """The figure and three tables."""
    cells, wanted = _cells(runs)
    tables = {"contestants": _main(cells, wanted), "assumptions": _assumptions(cells), "explorers": _explorers(cells)}
    return Report(figures={"compare": _figure(cells)}, tables=tables)


EXPERIMENT = Experiment(
    name="compare",
    title="ActSafe's and X-MPSC's certificates on the same plants, data and counter",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(
            tasks=("pendulum",),
            models=("gp",),
            certifiers=("none", "shield"),
            explorers=("uniform",),
            episodes=1,
            pairs=3,
            points=100,
            horizon=10,
        ),
        "quick": Arguments(),
        "full": Arguments(episodes=10, pairs=200, points=4000),
    },
    seeds={"smoke": 1, "quick": 3, "full": 5},
)
