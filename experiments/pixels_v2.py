"""Sparse pendulum swing-up from pictures, under |ω| ≤ 6 rad/s: who explores how far, and at whose cost.

The study of `pixels-v1` on another task: two grey 16×16 pictures of the rod, a substep apart, from which angle and speed are
known by geometry; the limit of the speed is known as a function of what a head reads of both in imagination. A reward is within
8° of the top only. Cells are counted in the plane of angle and speed. There is no rule to pass; all is heuristic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.models.rssm import RSSMSettings
from gpsafe.planning.latent import Sight, pendulum_sight
from gpsafe.systems.pendulum import wrap_angle
from gpsafe.systems.swing_up import SparsePendulum
from gpsafe.testbed.experiment import Experiment, Record, Report, Run

from ._report import latent

ANGLES, SPEEDS = 20, 16  # cells of 18° and of 1 rad/s


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    iterations: int = 8
    """Of ten episodes each, the first with uniform inputs."""
    episodes: int = 10
    """Side by side, of 30 steps of 0.2 s."""
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
        (16, 16, 2), nu=1, deterministic=48, stochastic=6, hidden=48, embedding=32, members=members, depth=0,
        observation_std=0.1, least_std=0.02, free_nats=0.0,
    )  # fmt: skip


def _sight(plant: SparsePendulum, known: bool) -> Sight:
    return pendulum_sight(plant, known_cost=known)


def _plane(states: Tensor) -> Tensor:
    return torch.stack([wrap_angle(states[:, 0]), states[:, 1]], dim=-1)


def task() -> latent.LatentTask:
    """The rod."""
    fastest, turn = SparsePendulum().speed_limit, 2 * math.pi
    return latent.LatentTask(
        SparsePendulum, _sight, _settings, rate=4e-3, plane=_plane, corner=(-math.pi, -fastest),
        cell=(turn / ANGLES, 2 * fastest / SPEEDS), count=(ANGLES, SPEEDS),
        cells=f"Cells of 18° × 1 rad/s visited by true states, of {ANGLES * SPEEDS}, {4 * ANGLES} of them beyond 6 rad/s.",
        cost="steps faster than 6 rad/s",
    )  # fmt: skip


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One piece an arm."""
    latent.run(task(), arguments, arguments.arms, seed, record)


def report(runs: Sequence[Run]) -> Report:
    """Coverage and cost. Folders with other arms may be drawn together."""
    a, found = runs[0].arguments, latent.told(runs)
    note = f"{a.iterations} iterations of {a.episodes} episodes and {a.updates} updates. The settings are those of pixels-v1."
    figures = {"growth": latent.growth(task(), a, found), "phases": _phases(runs)}
    return Report(figures=figures, tables={"explorers": latent.explorers_table(task(), a, found)}, notes=[note])


def _phases(runs: Sequence[Run]) -> Any:
    one, arms = latent.shown(runs)
    plant, figure = SparsePendulum(), plotting.figure("screen", 2.9)
    for axes, arm in zip(figure.subplots(1, len(arms), squeeze=False, sharey=True)[0], arms, strict=True):
        states = torch.as_tensor(one.pieces[latent.key(arm)].tensors["states"]).double().reshape(-1, plant.nx)
        axes.plot(*_plane(states).T, **{**plotting.look("executed").points, "marker": ".", "markersize": 1.5})
        for side in (-1, 1):
            axes.plot([-math.pi, math.pi], [side * plant.safe_speed] * 2, **plotting.look("unsafe").line)
        axes.set(
            title=f"{arm}, seed {one.seed}",
            xlim=(-math.pi, math.pi),
            ylim=(-8.4, 8.4),
            xlabel="angle from the top (rad)",
        )
    figure.axes[0].set_ylabel("speed (rad/s)")
    return figure


EXPERIMENT = Experiment(
    name="pixels-v2",
    title="Sparse pendulum swing-up from pictures: coverage and cost of exploring in latent space",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(iterations=1, episodes=1, updates=1, members=2, arms=("uniform",)),
        "quick": Arguments(),
        "full": Arguments(iterations=30, updates=200),
    },
    seeds={"smoke": 1, "quick": 5, "full": 5},
    run=run,
    report=report,
)
