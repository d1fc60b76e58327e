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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.models.rssm import RSSMSettings
from gpsafe.planning.latent import Sight, point_goal_sight
from gpsafe.systems.point_goal import PointGoal
from gpsafe.testbed.experiment import Experiment, Record, Report, Run, Table

from ._report import latent
from ._report.statistics import Share, bootstrap_ratio

RULE = {"coverage": 1.5, "cost": 1 / 3, "within": 0.95}
CELL = 0.2  # of the grid whose cells are counted, in units of the state
SIDE = 14  # cells


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
    arms: tuple[str, ...] = tuple(latent.EXPLORERS)
    """Who explores."""

    def __post_init__(self) -> None:
        _require.names("--arms", self.arms, latent.EXPLORERS)


def _settings(members: int) -> RSSMSettings:
    return RSSMSettings(
        (16, 16, 3), nu=2, deterministic=48, stochastic=6, hidden=48, embedding=32, members=members, depth=0,
        observation_std=0.1, least_std=0.02, free_nats=0.0,
    )  # fmt: skip


def _sight(plant: PointGoal, known: bool) -> Sight:
    return point_goal_sight(plant, known_cost=known)


def _plane(states: Tensor) -> Tensor:
    return states


def task() -> latent.LatentTask:
    """The point among hazards."""
    arena = PointGoal().arena
    return latent.LatentTask(
        PointGoal, _sight, _settings, rate=4e-3, plane=_plane, corner=(-arena, -arena), cell=(CELL, CELL),
        count=(SIDE, SIDE), cells=f"Cells of {CELL} × {CELL} visited by true states, of {SIDE**2} in the arena.",
        cost="steps inside hazards",
    )  # fmt: skip


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One piece an arm."""
    latent.run(task(), arguments, arguments.arms, seed, record)


def report(runs: Sequence[Run]) -> Report:
    """Coverage, cost, the rule. Folders with other arms may be drawn together."""
    a, found = runs[0].arguments, latent.told(runs)
    tables = {"explorers": latent.explorers_table(task(), a, found)}
    if set(latent.BARS) <= set(found.arms):
        tables["rule"] = _rule(found.ends, found.grown["actsafe"], PointGoal().budget)
    notes = [
        f"{a.iterations} iterations of {a.episodes} episodes and {a.updates} updates. The settings of the "
        "world model were chosen by looking at two other seeds, of the explorer without pessimism and of uniform inputs."
    ]
    return Report(
        figures={"growth": latent.growth(task(), a, found), "visits": _visits(runs, PointGoal())},
        tables=tables,
        notes=notes,
    )


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


def _visits(runs: Sequence[Run], plant: PointGoal) -> Any:
    one, arms = latent.shown(runs)
    figure = plotting.figure("screen", 2.9)
    around = torch.linspace(0, 2 * np.pi, 100, dtype=torch.float64)
    ring = torch.stack([around.cos(), around.sin()], dim=-1)
    for axes, arm in zip(figure.subplots(1, len(arms), squeeze=False)[0], arms, strict=True):
        x = torch.as_tensor(one.pieces[latent.key(arm)].tensors["states"]).reshape(-1, 2)
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
