"""The neighbourhood on the same plants: SafeOpt, GoSafe, Koller's tubes, posterior samples, recovery shields, norm estimates.

What other people's methods admit, how wide they are and how often they are wrong where ours is a theorem: explorers of one
policy class (the 1-D reference plant, 81 policies, 58 of them safe), tubes of the same plans (a double integrator with a push
in the ball and the pendulum twin), shields with one backup, and the published over-estimates of a norm that is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpsafe import plotting
from gpsafe.algorithms.learner import Learner
from gpsafe.referee import Design, over_estimate
from gpsafe.rkhs import random_function
from gpsafe.safety import BudgetFilter, RecoveryShield
from gpsafe.systems.base import is_violation, sample_noise
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report import neighbours as parts
from ._report.statistics import Share, grouped, mean_interval, plus_minus

LEVEL, TOTAL = 0.01, 0.05  # ε of a step and η of an episode
DELTA = 0.1  # of the noise of a plan


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    episodes: int = 16
    """Of every explorer."""
    cells: int = 200
    """Of the robust program."""
    transitions: int = 60
    """Behind a tube."""
    steps: int = 8
    """Of a plan."""
    plans: int = 5
    """For each plant and seed."""
    runs: int = 50
    """Of the plant under each plan."""
    counts: tuple[int, ...] = (0, 100)
    """Transitions behind a shield."""
    flights: int = 6
    """Episodes of each shield."""
    functions: int = 6
    """Of each kind whose norm is estimated."""


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Explorers, tubes, shields, norms."""
    torch.set_num_threads(1)
    for stage in parts.STAGES:
        for k, name in enumerate(parts.EXPLORERS):
            record.piece(
                f"explorer/{stage}/{k}", lambda s=stage, name=name: Piece([_explored(arguments, s, name, seed)])
            )
    for name in parts.WORLDS:
        record.piece(f"tubes/{name.replace(' ', '-')}", lambda name=name: Piece(_tubes(arguments, name, seed)))
    for count in arguments.counts:
        record.piece(f"recovery/{count}", lambda count=count: Piece(list(_flown(arguments, count, seed))))
    record.piece("norms", lambda: Piece(list(_norms(arguments, seed))))


def _explored(arguments: Arguments, where: str, name: str, seed: int) -> dict[str, Any]:
    stage = parts.STAGES[where](seed)
    truth, learner = parts.truth(stage, 8 * arguments.cells), parts.EXPLORERS[name](stage, arguments.cells, seed)
    safe, unsafe = truth.safe(stage.system.budget), truth.unsafe(stage.system.budget)
    found: dict[str, Any] = {"stage": where, "explorer": name, "true_safe": int(safe.sum())}
    found["wrong_start"] = int((~safe)[list(stage.initial)].sum())

    def seen(now: Learner, n: int) -> None:
        members = parts.members(now)
        found[f"safe_{n}"], found[f"unsafe_{n}"] = int(safe[members].sum()), int(unsafe[members].sum())

    seen(learner, 0)
    learner.learn(arguments.episodes, lambda now: seen(now, now.told))
    rows = learner.logger.rows
    executed = [row["policy"] for row in rows]
    found |= {"episodes": len(rows), "falsified": learner.falsified is not None, "sound": learner.unsound is None}
    found |= {"unsafe_episodes": int(unsafe[executed].sum()), "violating_steps": int(sum(row["cost"] for row in rows))}
    return found | {"global": sum(row["phase"] == "global" for row in rows)}


def _tubes(arguments: Arguments, name: str, seed: int) -> list[dict[str, Any]]:
    world = parts.WORLDS[name](arguments.transitions, seed)
    rows = parts.tubes(world, arguments.steps, arguments.plans, arguments.runs, DELTA, seed)
    return [{"world": name, **row} for row in rows]


def _flown(arguments: Arguments, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """A learner that always pushes up, under each shield."""
    system, to_go = parts.reference().system, parts.backed(count, arguments.cells, seed)
    shields = {
        "recovery, level": RecoveryShield(to_go, LEVEL),
        "recovery, level and mass": RecoveryShield(to_go, LEVEL, TOTAL),
        "budget account": BudgetFilter(to_go, TOTAL),
    }
    up = system.input_box.upper
    for name, shield in shields.items():
        generator = torch.Generator().manual_seed(3000 + seed)
        highest, violated, passed = [], 0, 0
        for _ in range(arguments.flights):
            x, now, bad, top = system.initial_state, shield.start(), False, float(system.initial_state)
            for _ in range(system.horizon):
                bad |= bool(is_violation(system.cost(x)))
                found, now = now.decide(x, up)
                passed += found.source == "learner"
                x = system.mean(x, found.u) + sample_noise(system.noise_std, (), generator)
                top = max(top, float(x))
            highest.append(top)
            violated += bad
        bound = (
            1 - shield.safety
            if isinstance(shield, RecoveryShield)
            else min(1.0, max(TOTAL, to_go.value(system.initial_state, system.horizon)))
        )
        row = {"shield": name, "count": count, "highest": float(np.mean(highest)), "violated": violated, "bound": bound}
        yield row | {"flights": arguments.flights, "passed": passed / (arguments.flights * system.horizon)}


def _norms(arguments: Arguments, seed: int) -> Iterator[dict[str, Any]]:
    """Published over-estimates after 60 rows, of functions whose norm is known."""
    kernel, noise = line.KERNEL, 0.01
    for k in range(arguments.functions):
        generator = torch.Generator().manual_seed(10_000 * (k + 1) + seed)
        low, high = torch.tensor([-0.8, -1.0]).double(), torch.tensor([1.8, 1.0]).double()
        for kind, f in (
            ("random, of the kind drawn", random_function(kernel, low, high, norm=line.NORM, generator=generator)),
            ("dormant beyond the rows", line.dormant(generator)),
        ):
            top = 0.3 if kind.startswith("dormant") else 1.8
            z = low + (torch.tensor([top, 1.0]).double() - low) * torch.rand(
                60, 2, dtype=torch.float64, generator=generator
            )
            y = f(z) + noise * torch.randn(60, dtype=torch.float64, generator=generator)
            links = torch.full((60,), -1, dtype=torch.long)
            design = Design(kernel, float("inf"), noise, 0.05, z, 0, links, float(y.square().mean()))
            value = over_estimate(design, y, failure=0.05, seed=seed).value
            yield {"kind": kind, "value": value, "true": f.norm, "covers": value >= f.norm}


# ------------------------------------------------------------------------------------------------------------ report
def report(runs: Sequence[Run]) -> Report:
    """All of it."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in runs:
        for name, piece in one.pieces.items():
            rows.setdefault(name.split("/")[0], []).extend(piece.rows)  # type: ignore[arg-type]
    arguments = runs[0].arguments
    tables = {"explorers": _explorers(rows["explorer"]), "tubes": _containment(rows["tubes"], arguments)}
    tables |= {"recovery": _shields(rows["recovery"]), "norms": _estimates(rows["norms"])}
    return Report(figures={"explorers": _growth(rows["explorer"]), "tubes": _widths(rows["tubes"])}, tables=tables)


def _last(row: Mapping[str, Any], key: str) -> int:
    return row[f"{key}_{row['episodes']}"]


def _explorers(rows: list[dict[str, Any]]) -> Table:
    columns = (
        "plant", "explorer", "what stands behind S_n", "safe members / safe policies, end", "unsafe members, end",
        "episodes with an unsafe policy", "violating steps a run", "runs that refuted themselves",
    )  # fmt: skip
    table = []
    for (stage, name), group in grouped(rows, "stage", "explorer").items():
        unsafe, total, watched = (sum(r[key] for r in group) for key in ("unsafe_episodes", "episodes", "global"))
        table.append(
            (
                stage, name, "a theorem" if group[0]["sound"] else "nothing",
                plus_minus((_last(r, "safe") / r["true_safe"] for r in group), 3),
                plus_minus((_last(r, "unsafe") for r in group), 1),
                str(Share(unsafe, total)) + (f" ({watched} watched)" if watched else ""),
                plus_minus((r["violating_steps"] for r in group), 1), str(Share.of(r["falsified"] for r in group)),
            )
        )  # fmt: skip
    caption = (
        "81 set-points, S_0 of 5. reference: 58 are safe. dormant: f is invisible up to a random state below the limit, then "
        "as large as its norm allows. Intervals are 95 %, over seeds (means) or episodes (shares, Clopper–Pearson; episodes "
        "of a run are not independent). A refuted run stops: an interval was empty. In brackets: GoSafe's episodes under "
        "watch, whose policy is not in S_n and may be unsafe. ActSafe's S_n is that of the last flight, one episode behind the "
        "others'."
    )
    return Table(columns, table, caption)


def _containment(rows: list[dict[str, Any]], arguments: Any) -> Table:
    columns = (
        "plant", "tube", f"width at step 1 / {arguments.steps // 2} / {arguments.steps}, median",
        "runs of the plant inside", "plans with all runs inside", "runs of members at the edge inside",
    )  # fmt: skip
    table = []
    for (world, tube), group in grouped(rows, "world", "tube").items():
        widths = [np.median([r[f"width_{k}"] for r in group]) for k in (1, arguments.steps // 2, arguments.steps)]
        total = sum(r["runs"] for r in group)
        table.append(
            (
                world, tube, " / ".join(f"{w:.3g}" for w in widths),
                str(Share(sum(r["truth"] for r in group), total)),
                str(Share.of(r["truth"] == r["runs"] for r in group)),
                str(Share(sum(r["edge"] for r in group), 2 * total)),
            )
        )  # fmt: skip
    caption = (
        f"{arguments.transitions} transitions, plans of {arguments.steps} steps with their LQR gain, noise at δ = {DELTA:g} a "
        "plan; the hull of all members counts, and its width is that of the speed. Members at the edge: f ∈ F_n that is "
        "largest or smallest at the plan's first point; noise leaves its ellipsoids in up to δ of the runs. Clopper–Pearson, "
        "95 %; runs under one plan are not independent."
    )
    return Table(columns, table, caption)


def _shields(rows: list[dict[str, Any]]) -> Table:
    columns = (
        "transitions", "shield", "learner's inputs that pass", "highest state, mean", "episodes with a violation",
        "proven to be at most",
    )  # fmt: skip
    table = []
    for (count, name), group in grouped(rows, "count", "shield").items():
        bad, flown = sum(r["violated"] for r in group), sum(r["flights"] for r in group)
        passed, top = (plus_minus((r[key] for r in group), 2) for key in ("passed", "highest"))
        table.append((count, name, passed, top, str(Share(bad, flown)), f"{max(r['bound'] for r in group):.3g}"))
    caption = (
        f"A learner that always pushes up; backup: the set-point −0.25; ε = {LEVEL:g} a step, η = {TOTAL:g} an episode of 20 "
        "steps. Safe is x ≤ 1. On the event f* ∈ F_n, which fails with probability 0.1."
    )
    return Table(columns, table, caption)


def _estimates(rows: list[dict[str, Any]]) -> Table:
    table = [
        (kind, str(Share.of(r["covers"] for r in group)), plus_minus((r["value"] / r["true"] for r in group), 2))
        for (kind,), group in grouped(rows, "kind").items()
    ]
    claim = "The estimate is to be at least the norm with probability 0.95, if f is one of the kind that is drawn."
    caption = f"60 rows, noise 0.01. {claim} Those here look like the draws, which are scaled by the rows, and are not."
    return Table(("function", "estimate ≥ norm", "estimate / norm"), table, caption)


def _growth(rows: list[dict[str, Any]]) -> Figure:
    stages = list(dict.fromkeys(r["stage"] for r in rows))
    figure = plotting.figure("screen", 3.4 * len(stages))
    panels = figure.subplots(len(stages), 2, squeeze=False, sharex=True)
    for (left, right), stage in zip(panels, stages, strict=True):
        part = [r for r in rows if r["stage"] == stage]
        for (name,), look in plotting.looks(grouped(part, "explorer")).items():
            group = [r for r in part if r["explorer"] == name]
            length = max(r["episodes"] for r in group) + 1
            for axes, key in ((left, "safe"), (right, "unsafe")):
                scale = [r["true_safe"] if key == "safe" else 1 for r in group]
                values = np.array(
                    [[r.get(f"{key}_{n}", _last(r, key)) for n in range(length)] for r in group], dtype=float
                )
                values /= np.array(scale)[:, None]
                half = (
                    np.array([mean_interval(column)[1] for column in values.T]) if len(group) > 1 else np.zeros(length)
                )
                mean = values.mean(0)
                axes.plot(range(length), mean, label=name, **look.line)
                axes.fill_between(
                    range(length), np.maximum(mean - half, 0), mean + half, color=look.colour, alpha=0.15, linewidth=0
                )
        left.set(ylabel="safe members / safe policies", ylim=(0, 1.05), title=f"{stage} (mean ± 95 %)")
        right.set(ylabel="unsafe members")
    for axes in panels[-1]:
        axes.set(xlabel="episode")
        axes.xaxis.get_major_locator().set_params(integer=True)
    plotting.legend_beside(panels[0, 1])
    return figure


def _widths(rows: list[dict[str, Any]]) -> Figure:
    figure = plotting.figure("screen", 4.2)
    worlds = list(dict.fromkeys(r["world"] for r in rows))
    panels = figure.subplots(1, len(worlds), squeeze=False)[0]
    for axes, world in zip(panels, worlds, strict=True):
        _width(axes, [r for r in rows if r["world"] == world], world)
    plotting.legend_beside(panels[-1])
    return figure


def _width(axes: Axes, rows: list[dict[str, Any]], world: str) -> None:
    for (name,), look in plotting.looks(grouped(rows, "tube")).items():
        group = [r for r in rows if r["tube"] == name]
        steps = [k for k in range(1, 1000) if f"width_{k}" in group[0]]
        middle = [float(np.median([r[f"width_{k}"] for r in group])) for k in steps]
        axes.plot(steps, [m if np.isfinite(m) else np.nan for m in middle], label=name, **look.line)
    axes.set(xlabel="step of the plan", ylabel="width of the speed's hull (median)", title=world, yscale="log")


EXPERIMENT = Experiment(
    name="neighbours",
    title="The neighbourhood on the same plants: SafeOpt, GoSafe, Koller's tubes, samples, recovery shields, norm estimates",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            episodes=2, cells=60, transitions=10, steps=2, plans=1, runs=4, counts=(5,), flights=1, functions=1
        ),
        "quick": Arguments(),
        "full": Arguments(60, 250, plans=20, runs=400, counts=(0, 40, 200), flights=100, functions=30),
    },
    seeds={"smoke": 1, "quick": 5, "full": 20},
    run=run,
    report=report,
)
