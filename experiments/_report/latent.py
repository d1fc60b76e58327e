"""What the studies of exploring in latent space share: a task, its explorers, a run that may be stopped, tables and growth."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gpsafe import plotting
from gpsafe._files import write_bytes
from gpsafe.models.rssm import RSSMSettings
from gpsafe.planning.latent import (
    LATENT_EXPLORERS,
    PRESETS,
    ActorCritic,
    ActorCriticSettings,
    Behaviour,
    Checkpoint,
    LatentAgent,
    LatentPlanner,
    Schedule,
    Sight,
    World,
)
from gpsafe.planning.latent.world import Precision
from gpsafe.systems.base import is_violation
from gpsafe.testbed.experiment import Piece, Record, Run, Table

from .statistics import Share, grouped, mean_interval, plus_minus

EXPLORERS: dict[str, tuple[str, str, bool]] = {  # what plans, its name there, whether the cost is known
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
    "Intervals are 95 %. {cells} Cost: {cost}, all episodes of a run together, the {start} uniform ones at the start included. "
    "Task: {start} episodes after the last iteration of the planner that wants reward and fears the worst member, in the "
    "explorer's world model. Everything is heuristic."
)


class Sizes(Protocol):
    """What the arguments of every such study have."""

    @property
    def iterations(self) -> int: ...
    @property
    def episodes(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def members(self) -> int: ...


@dataclass(frozen=True)
class LatentTask:
    """A plant, how it is seen and learnt, and the grid whose cells are counted.

    Args:
        plant: makes it.
        sight: of the plant, with the cost known or left to a head.
        settings: of a world model with so many members.
        rate: Adam's, of the world model.
        plane: states (N, nx) ↦ (N, 2), where the grid lies.
        corner, cell, count: of the grid: lowest corner, widths, how many.
        cells, cost: what is counted, in words.
        schedule: but for episodes and updates, which the arguments say.
        actor: changes the settings of an actor-critic.
        device, precision: see `World`.
        save_every: seconds between two saves.
    """

    plant: Callable[[], Any]
    sight: Callable[[Any, bool], Sight]
    settings: Callable[[int], RSSMSettings]
    rate: float
    plane: Callable[[Tensor], Tensor]
    corner: tuple[float, float]
    cell: tuple[float, float]
    count: tuple[int, int]
    cells: str
    cost: str
    schedule: Schedule = field(default_factory=Schedule)
    actor: Callable[[ActorCriticSettings], ActorCriticSettings] | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    save_every: float = 120.0

    def visited(self, states: Tensor) -> set[tuple[int, int]]:
        """Which cells true states (*b, nx) visit."""
        at = (self.plane(states.reshape(-1, states.shape[-1])) - torch.tensor(self.corner)) / torch.tensor(self.cell)
        index = torch.minimum(at.floor().clamp_min(0), torch.tensor(self.count, dtype=at.dtype) - 1).long()
        return {(int(i), int(j)) for i, j in index.unique(dim=0)}

    @property
    def total(self) -> int:
        """Cells of the grid."""
        return self.count[0] * self.count[1]


def planner(plant: Any, name: str) -> LatentPlanner:
    """Of one explorer."""
    return LatentPlanner(LATENT_EXPLORERS[name], plant.input_box, plant.budget, plant.horizon)


def agent(task: LatentTask, a: Sizes, arm: str, seed: int) -> LatentAgent:
    """The learner of an arm; plant noise and the first iteration are the same for all arms of a seed."""
    plant, (kind, name, known) = task.plant(), EXPLORERS[arm]

    def actor(world: World, generator: torch.Generator) -> Behaviour:
        about = {"budget": plant.budget, "horizon": plant.horizon, "generator": generator}
        settings = replace(PRESETS[name], updates=a.updates)
        return ActorCritic(task.actor(settings) if task.actor else settings, world, plant.input_box, **about)

    behaviour = planner(plant, name) if kind == "planner" else actor
    about: dict[str, Any] = {"seed": FIRST_SEED + seed, "rate": task.rate, "device": task.device}
    about |= {"schedule": replace(task.schedule, episodes=a.episodes, updates=a.updates), "precision": task.precision}
    return LatentAgent(plant, task.sight(plant, known), task.settings(a.members), behaviour, **about)


def key(arm: str) -> str:
    """Of the arm's piece."""
    return arm.lower().replace(", ", "-").replace(" ", "-")


def learnt(
    one: LatentAgent, iterations: int, scratch: Path, save_every: float, told: Callable[[str], None]
) -> list[Tensor]:
    """True states (E, T + 1, nx) of every iteration; goes on from what stands in `scratch`, where it saves by the clock."""
    checkpoint = Checkpoint(scratch, save_every)
    checkpoint.resume(one)
    flown = [_read(scratch / f"flown-{number:04d}.npy") for number in range(one.told)]

    def after(now: LatentAgent, last: Any) -> None:
        buffer = io.BytesIO()
        np.save(buffer, last.states.numpy())
        write_bytes(scratch / f"flown-{len(flown):04d}.npy", buffer.getvalue())  # before a save may count the iteration
        flown.append(last.states)
        told(f"{now.told} of {iterations} iterations")
        checkpoint(now)

    return one.learn(iterations - one.told, after, pulse=checkpoint) and flown


def _read(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def explored(task: LatentTask, a: Sizes, arm: str, seed: int, scratch: Path, told: Callable[[str], None]) -> Piece:
    """One arm: a row an iteration, and one of the task afterwards."""
    one, plant, visited, rows = agent(task, a, arm, seed), task.plant(), set(), []
    flown = learnt(one, a.iterations, scratch, task.save_every, told)
    for states, row in zip(flown, one.rows, strict=True):
        visited |= task.visited(states)
        cost, still = plant.cost(states[:, :-1]), states.new_zeros(*states.shape[:-1], plant.nu)
        goals = int((plant.reward(states, still) > 0.5).any(-1).sum())
        rows.append(
            {"arm": arm, "cells": len(visited), "costly": int(is_violation(cost.sum(-1)).sum()), "goals": goals, **row}
        )
    end = one.rollout(one.policy(planner(plant, "safe-greedy"), number=a.iterations))
    cost, reward = end.seen.cost[:, :-1].sum(-1), end.seen.reward[:, :-1].sum(-1)
    rows.append({"arm": arm, "phase": "task", "cost": float(cost.mean()), "reward": float(reward.mean())})
    return Piece(rows, {"states": torch.stack(flown).float(), "task": end.states.float()})


def run(task: LatentTask, a: Sizes, arms: Sequence[str], seed: int, record: Record) -> None:
    """One piece an arm."""
    for i, arm in enumerate(arms):
        _run(task, a, arm, seed, record, (i, len(arms)))
    record.progress(len(arms), len(arms), "done")


def _run(task: LatentTask, a: Sizes, arm: str, seed: int, record: Record, at: tuple[int, int]) -> None:
    def told(text: str) -> None:
        record.progress(*at, f"{arm}: {text}")

    told("starts")
    record.piece(key(arm), lambda: explored(task, a, arm, seed, record.scratch(key(arm)), told))


# ------------------------------------------------------------------------------------------------------ the report
@dataclass(frozen=True)
class Told:
    """What runs found, by explorer, in the order of `EXPLORERS`.

    Attributes:
        arms: whose results there are.
        grown: rows of iterations.
        ends: of every seed: cells and reading error at the end, violations and goals summed.
        tasks: rows of the task afterwards.
    """

    arms: tuple[str, ...]
    grown: Mapping[str, Sequence[Mapping[str, Any]]]
    ends: Mapping[str, Sequence[Mapping[str, Any]]]
    tasks: Mapping[str, Sequence[Mapping[str, Any]]]


def told(runs: Sequence[Run]) -> Told:
    """Of stored runs. Folders with other arms may be drawn together."""
    rows = [{**row, "seed": r.seed} for r in runs for p in r.pieces.values() for row in p.rows]
    arms = tuple(arm for arm in EXPLORERS if any(row["arm"] == arm for row in rows))
    grown = {arm: [r for r in rows if r["arm"] == arm and r["phase"] != "task"] for arm in arms}
    tasks = {arm: [r for r in rows if r["arm"] == arm and r["phase"] == "task"] for arm in arms}
    return Told(arms, grown, {arm: _ends(mine) for arm, mine in grown.items()}, tasks)


def _ends(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "cells": group[-1]["cells"], "read_error": group[-1]["read_error"],
            "violations": sum(r["violations"] for r in group), "goals": sum(r["goals"] for r in group),
        }
        for group in grouped(rows, "seed").values()
    ]  # fmt: skip


def mean(values: Iterable[float], digits: int = 2) -> str:
    """With its interval, if there are two values."""
    listed = list(values)
    return plus_minus(listed, digits) if len(listed) > 1 else f"{listed[0]:.{digits}f}"


def explorers_table(task: LatentTask, a: Sizes, found: Told) -> Table:
    """A row an explorer."""
    plant, table = task.plant(), []
    columns = (
        "explorer", "seeds", "cells", "cost of a run", "iterations with mean cost above the budget",
        "runs that touched the goal", "task: reward", "task: cost", "reading error at the end",
    )  # fmt: skip
    for arm in found.arms:
        ends, tasks = found.ends[arm], found.tasks[arm]
        table.append(
            (
                arm, len(ends), mean((e["cells"] for e in ends), 1), mean((e["violations"] for e in ends), 1),
                str(Share.of(r["cost"] > plant.budget for r in found.grown[arm])),
                str(Share.of(e["goals"] > 0 for e in ends)),
                mean((r["reward"] for r in tasks), 1), mean((r["cost"] for r in tasks), 1),
                mean(e["read_error"] for e in ends),
            )
        )  # fmt: skip
    caption = CAPTION.format(cells=task.cells, cost=task.cost, start=a.episodes)
    return Table(columns=columns, rows=table, caption=caption)


def growth(task: LatentTask, a: Sizes, found: Told) -> Any:
    """Cells and cost by episodes."""
    figure, looks = plotting.figure("screen", 3.4), plotting.looks(found.arms)
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("cells", "cost"), strict=True):
        for arm in found.arms:
            by = grouped(found.grown[arm], "iteration")
            value, half = np.array([mean_interval(r[name] for r in by[k]) for k in by]).T
            episodes = a.episodes * (1 + np.arange(len(value)))
            if name == "cells" and arm in BARS and not np.isnan(half).any():
                ends = (value - half).clip(0, None), (value + half).clip(None, task.total)
                plotting.intervals(axes, episodes, value, *ends, noun=looks[arm], label=arm, joined=True)
            else:
                axes.plot(episodes, value, label=arm, markersize=3, **looks[arm].marked)
        axes.set_xlabel("episodes")
    panels[0].set(ylabel="cells visited (mean over seeds)", title="coverage")
    panels[1].set(ylabel="mean cost of an episode", title="cost of each iteration")
    plotting.limit(panels[1], task.plant().budget, label="budget")
    plotting.legend_beside(panels[1])
    return figure


def shown(runs: Sequence[Run]) -> tuple[Run, list[str]]:
    """The first run that met a cost under its first explorer, or else the first run; and which explorers of it are drawn."""
    one = next((r for r in runs if any(row.get("violations") for row in next(iter(r.pieces.values())).rows)), runs[0])
    arms = [arm for arm in BARS if key(arm) in one.pieces]
    return one, arms or [arm for arm in EXPLORERS if key(arm) in one.pieces][:1]
