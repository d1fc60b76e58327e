"""Visual point-goal: who explores a latent space, how far, and at whose cost.

A point among hazards is seen as a 16×16 picture (`PointGoal`), and a world model with five members is learnt from what each
explorer saw. The hazards are known as a function of the place (as the theory has its cost), and in imagination the place is
what a head reads from the latent state; "learnt cost" is the same explorer with a head for the cost in its stead. Visits, costs
and rewards are counted on true states, from the first episode on: the uniform start is counted, too. All is heuristic.

**The rule, fixed before any run that is reported** (`RULE`): the pessimistic planner covers at least 1.5 times the cells of
uniform inputs at no more cost; it costs at most a third of the same planner without pessimism; and the mean cost of an
iteration's episodes is within the budget in at least 95 % of its iterations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import plotting
from gpsafe.models.rssm import RSSMSettings
from gpsafe.planning.latent import (
    LATENT_EXPLORERS,
    PRESETS,
    ActorCritic,
    Iteration,
    LatentAgent,
    LatentPlanner,
    Schedule,
    point_goal_sight,
)
from gpsafe.systems.point_goal import PointGoal
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, bootstrap_ratio, grouped, mean_interval, plus_minus

RULE = {"coverage": 1.5, "cost": 1 / 3, "within": 0.95}
CELL = 0.2  # of the grid whose cells are counted, in units of the state
ARMS: dict[str, tuple[str, str, bool]] = {  # what plans, its name there, whether the cost is known
    "actsafe": ("planner", "actsafe", True),
    "no pessimism": ("planner", "opax", True),
    "uniform": ("planner", "uniform", True),
    "learnt cost": ("planner", "actsafe", False),
    "greedy": ("planner", "greedy", True),
    "optimistic": ("planner", "optimistic", True),
    "LAMBDA": ("actor", "lambda", True),
    "BSRP-Lag": ("actor", "bsrp-lag", True),
    "actor, published": ("actor", "actsafe-published", True),
    "actor, corrected": ("actor", "actsafe-corrected", True),
}
BARS = ("actsafe", "no pessimism", "uniform")  # whose intervals are drawn; those of all are in the table
FIRST_SEED = 100  # of the world models: settings were chosen on seeds 0 and 1
CAPTION = (
    "Intervals are 95 %. Cells of {cell} × {cell} visited by true states, of {cells} in the arena. Cost: steps inside hazards, "
    "all episodes of a run together, the {start} uniform ones at the start included. Task: {episodes} episodes after the last "
    "iteration of the planner that wants reward and fears the worst member, in the explorer's world model. Everything is "
    "heuristic."
)


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    iterations: int = 10
    """Of ten episodes each, the first with uniform inputs."""
    episodes: int = 10
    """Side by side, of 30 steps."""
    updates: int = 60
    """Of the world model after an iteration, and of the actor-critics."""
    members: int = 5
    """Of the ensemble."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Who explores."""


def _settings(a: Arguments) -> RSSMSettings:
    return RSSMSettings(
        (16, 16, 3), nu=2, deterministic=48, stochastic=6, hidden=48, embedding=32, members=a.members, depth=0,
        observation_std=0.1, least_std=0.02, free_nats=0.0,
    )  # fmt: skip


def agent(a: Arguments, arm: str, seed: int) -> LatentAgent:
    """The learner of an arm; plant noise and the first iteration are the same for all arms of a seed."""
    plant, (kind, name, known) = PointGoal(), ARMS[arm]

    def actor(world: Any, generator: torch.Generator) -> ActorCritic:
        about = {"budget": plant.budget, "horizon": plant.horizon, "generator": generator}
        return ActorCritic(replace(PRESETS[name], updates=a.updates), world, plant.input_box, **about)

    planner = _planner(plant, name) if kind == "planner" else actor
    schedule = Schedule(episodes=a.episodes, updates=a.updates)
    sight = point_goal_sight(plant, known_cost=known)
    return LatentAgent(plant, sight, _settings(a), planner, schedule=schedule, seed=FIRST_SEED + seed, rate=4e-3)


def _planner(plant: PointGoal, name: str) -> LatentPlanner:
    return LatentPlanner(LATENT_EXPLORERS[name], plant.input_box, plant.budget, plant.horizon)


def cells(states: Tensor, arena: float) -> set[tuple[int, int]]:
    """Which cells true states (*b, 2) visit."""
    side = round(2 * arena / CELL)
    at = ((states + arena) / CELL).floor().clamp(0, side - 1).long()
    return {(int(i), int(j)) for i, j in at.reshape(-1, 2).unique(dim=0)}


# ---------------------------------------------------------------------------------------------------------- a run
def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One piece an arm."""
    for i, arm in enumerate(arguments.arms):
        record.progress(i, len(arguments.arms), arm)
        record.piece(_key(arm), lambda arm=arm: _explored(arguments, arm, seed))
    record.progress(len(arguments.arms), len(arguments.arms), "done")


def _key(arm: str) -> str:
    return arm.lower().replace(", ", "-").replace(" ", "-")


def _explored(a: Arguments, arm: str, seed: int) -> Piece:
    one, rows, flown = agent(a, arm, seed), [], []
    plant, visited = PointGoal(), set()

    def after(learner: LatentAgent, last: Iteration) -> None:
        visited.update(cells(last.states, plant.arena))
        flown.append(last.states)
        cost = last.seen.cost[:, :-1]
        rows.append(
            {
                "arm": arm, "cells": len(visited), "costly": int((cost.sum(-1) > 0).sum()),
                "goals": int((last.seen.reward > 0).any(-1).sum()), **learner.rows[-1],
            }
        )  # fmt: skip

    one.learn(a.iterations, after)
    task = one.rollout(one.policy(_planner(plant, "safe-greedy"), number=a.iterations))
    cost, reward = task.seen.cost[:, :-1].sum(-1), task.seen.reward[:, :-1].sum(-1)
    rows.append({"arm": arm, "phase": "task", "cost": float(cost.mean()), "reward": float(reward.mean())})
    return Piece(rows, {"states": torch.stack(flown).float(), "task": task.states.float()})


# ------------------------------------------------------------------------------------------------------ the report
def report(runs: Sequence[Run]) -> Report:
    """Coverage, cost, the rule. Folders with other arms may be drawn together."""
    a, plant = runs[0].arguments, PointGoal()
    arms = [arm for arm in ARMS if any(arm in r.arguments.arms for r in runs)]
    rows = [{**row, "seed": r.seed} for r in runs for p in r.pieces.values() for row in p.rows]
    grown = [row for row in rows if row["phase"] != "task"]
    ends = {arm: _ends([r for r in grown if r["arm"] == arm]) for arm in arms}
    task = {arm: [r for r in rows if r["phase"] == "task" and r["arm"] == arm] for arm in arms}
    columns = (
        "explorer", "seeds", "cells", "cost of a run", "iterations with mean cost above the budget",
        "runs that touched the goal", "task: reward", "task: cost", "reading error at the end",
    )  # fmt: skip
    table = []
    for arm, found in ends.items():
        mine = [r for r in grown if r["arm"] == arm]
        table.append(
            (
                arm, len(found), _mean((e["cells"] for e in found), 1), _mean((e["violations"] for e in found), 1),
                str(Share.of(r["cost"] > plant.budget for r in mine)),
                str(Share.of(e["goals"] > 0 for e in found)),
                _mean((r["reward"] for r in task[arm]), 1), _mean((r["cost"] for r in task[arm]), 1),
                _mean(e["read_error"] for e in found),
            )
        )  # fmt: skip
    count = round(2 * plant.arena / CELL) ** 2
    caption = CAPTION.format(cell=CELL, cells=count, start=a.episodes, episodes=a.episodes)
    tables = {"explorers": Table(columns=columns, rows=table, caption=caption)}
    if set(BARS) <= set(arms):
        tables["rule"] = _rule(ends, [r for r in grown if r["arm"] == "actsafe"], plant.budget)
    notes = [
        f"{a.iterations} iterations of {a.episodes} episodes and {a.updates} updates. The settings of the "
        "world model were chosen by looking at two other seeds, of the explorer without pessimism and of uniform inputs."
    ]
    return Report(
        figures={"growth": _growth(a, arms, grown, plant.budget), "visits": _visits(runs, plant)},
        tables=tables,
        notes=notes,
    )


def _mean(values: Iterable[float], digits: int = 2) -> str:
    """With its interval, if there are two values."""
    listed = list(values)
    return plus_minus(listed, digits) if len(listed) > 1 else f"{listed[0]:.{digits}f}"


def _ends(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every seed: cells and reading error at the end, violations and goals summed."""
    return [
        {
            "cells": group[-1]["cells"], "read_error": group[-1]["read_error"],
            "violations": sum(r["violations"] for r in group), "goals": sum(r["goals"] for r in group),
        }
        for group in grouped(rows, "seed").values()
    ]  # fmt: skip


def _rule(ends: Mapping[str, Sequence[Mapping[str, Any]]], mine: Sequence[Mapping[str, Any]], budget: float) -> Table:
    """What was asked, what was found."""

    def ratio(key: str, over: str) -> tuple[float, str]:
        above, below = ([float(e[key]) for e in ends[arm]] for arm in ("actsafe", over))
        if not sum(below):
            return float("nan"), "–"
        if len(above) < 2:
            value = sum(above) / sum(below)
            return value, f"{value:.2f}"
        value, low, high = bootstrap_ratio(above, below, ["all"] * len(above), np.sum)
        return value, f"{value:.2f} [{low:.2f}, {high:.2f}]"

    cover, cost, free = ratio("cells", "uniform"), ratio("violations", "uniform"), ratio("violations", "no pessimism")
    within = Share.of(r["cost"] <= budget for r in mine)
    asked = (
        ("cells / those of uniform", f"≥ {RULE['coverage']:g}", cover[1], cover[0] >= RULE["coverage"]),
        ("cost / that of uniform", "≤ 1", cost[1], cost[0] <= 1.0),
        ("cost / that without pessimism", f"≤ {RULE['cost']:.2f}", free[1], free[0] <= RULE["cost"]),
        ("iterations within the budget", f"≥ {RULE['within']:g}", str(within), within.value >= RULE["within"]),
    )
    caption = (
        "Ratios of sums over seeds, with percentile bootstrap intervals over seeds. The estimate decides; the interval says "
        "how surely."
    )
    listed = [(what, rule, found, "met" if held else "not met") for what, rule, found, held in asked]
    return Table(columns=("of the pessimistic planner", "rule", "found", "verdict"), rows=listed, caption=caption)


def _growth(a: Arguments, arms: Sequence[str], rows: Sequence[Mapping[str, Any]], budget: float) -> Any:
    figure, count = plotting.figure("screen", 3.4), round(2 * PointGoal().arena / CELL) ** 2
    looks = plotting.looks(arms)
    panels = figure.subplots(1, 2)
    for axes, key in zip(panels, ("cells", "cost"), strict=True):
        for arm, group in grouped(rows, "arm").items():
            by = grouped(group, "iteration")
            value, half = np.array([mean_interval(r[key] for r in by[k]) for k in by]).T
            episodes = a.episodes * (1 + np.arange(len(value)))
            if key == "cells" and arm[0] in BARS and not np.isnan(half).any():
                ends = (value - half).clip(0, None), (value + half).clip(None, count)
                plotting.intervals(axes, episodes, value, *ends, noun=looks[arm[0]], label=arm[0], joined=True)
            else:
                axes.plot(episodes, value, label=arm[0], markersize=3, **looks[arm[0]].marked)
        axes.set_xlabel("episodes")
    panels[0].set(ylabel="cells visited (mean over seeds)", title="coverage")
    panels[1].set(ylabel="mean cost of an episode", title="cost of each iteration")
    plotting.limit(panels[1], budget, label="budget")
    plotting.legend_beside(panels[1])
    return figure


def _visits(runs: Sequence[Run], plant: PointGoal) -> Any:
    """Of the first seed that met a hazard at all under the first explorer, or else of the first."""
    one = next((r for r in runs if any(row.get("violations") for row in next(iter(r.pieces.values())).rows)), runs[0])
    arms = [arm for arm in BARS if arm in one.arguments.arms] or list(one.arguments.arms[:1])
    figure = plotting.figure("screen", 2.9)
    around = torch.linspace(0, 2 * np.pi, 100, dtype=torch.float64)
    ring = torch.stack([around.cos(), around.sin()], dim=-1)
    for axes, arm in zip(figure.subplots(1, len(arms), squeeze=False)[0], arms, strict=True):
        x = torch.as_tensor(one.pieces[_key(arm)].tensors["states"]).reshape(-1, 2)
        axes.plot(*x.T, **{**plotting.look("executed").points, "marker": ".", "markersize": 1.5})
        for center in plant.hazards:
            axes.plot(*(center + plant.hazard_radius * ring).T, **plotting.look("unsafe").line)
        axes.plot(*(plant.goal + plant.goal_radius * ring).T, **plotting.look("safe").line)
        axes.set(title=f"{arm}, seed {one.seed}", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    return figure


EXPERIMENT = Experiment(
    name="pixels-v1",
    title="Visual point-goal: coverage and cost of exploring in latent space",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(iterations=1, episodes=1, updates=1, members=2, arms=("LAMBDA",)),
        "quick": Arguments(),
        "full": Arguments(iterations=30, updates=200),
    },
    seeds={"smoke": 1, "quick": 5, "full": 5},
    run=run,
    report=report,
)
