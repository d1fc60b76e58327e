"""Visual cart-pole at two sizes, 32² and the published one, for a machine with one GPU; estimated and tested without.

    gpsafe run pixels-v3 --size published --dry                      # parameters, memory, seconds of an update: here
    gpsafe run pixels-v3 --budget full                               # cart-pole 32² on a GPU, bfloat16
    gpsafe run pixels-v3 --budget full --size published --iterations 500 --arms "actor, published"

dm_control's sparse swing-up (`SparseCartPole`), 1000 steps of 0.01 s an episode, two to an input; a cost in every step with the
cart more than 0.5 m off. At 32² the place of the cart is read from the picture and the cost is known there; at the published
size it is learnt by a head, and the first 200 000 steps are uniform, both as published. A run saves itself every two minutes,
in the middle of an iteration's updates too, and goes on from there with the same command, on the same kind of device; only a
flight that was cut off is flown again. Everything is heuristic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.rssm import RSSMSettings
from gpsafe.planning.latent import ActorCriticSettings, Barrier, Estimate, Schedule, Sight, cartpole_sight, estimate
from gpsafe.systems.pendulum import wrap_angle
from gpsafe.systems.swing_up import SparseCartPole
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import latent

PLACES, ANGLES = 18, 20  # cells of 0.24 m and 18°


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    size: Literal["tiny", "cartpole-32", "published"] = "cartpole-32"
    """Of pictures, networks and batches."""
    iterations: int = 60
    """Of `episodes` each."""
    episodes: int = 10
    """Side by side."""
    updates: int = 1000
    """Of the world model after an iteration, and of an actor-critic."""
    members: int = 5
    """Of the ensemble."""
    arms: tuple[str, ...] = ("actsafe", "no pessimism", "uniform")
    """Who explores."""
    device: str = "cpu"
    """Where world model, imagination and what was seen are; "cuda" for a GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products and convolutions."""
    save_every: float = 120.0
    """Seconds between two checkpoints."""
    dry: bool = False
    """Estimate only; nothing is learnt."""

    def __post_init__(self) -> None:
        _require.names("--arms", self.arms, latent.EXPLORERS)


@dataclass(frozen=True)
class Size:
    """Of pictures, networks and batches."""

    pixels: int
    model: RSSMSettings
    schedule: Schedule
    rate: float
    known: bool
    horizon: int = 500


def size(a: Arguments) -> Size:
    """Of the name."""
    if a.size == "tiny":
        model = RSSMSettings(
            (8, 8, 3), nu=1, deterministic=6, stochastic=2, hidden=6, embedding=6, members=a.members, depth=2
        )
        return Size(8, model, Schedule(batch=2, length=4, capacity=8), 2e-3, known=True, horizon=6)
    if a.size == "cartpole-32":
        model = RSSMSettings(
            (32, 32, 3), nu=1, deterministic=128, stochastic=20, hidden=128, embedding=256, members=a.members, depth=16,
        )  # fmt: skip
        return Size(32, model, Schedule(batch=16, length=32, capacity=1000), 6e-4, known=True)
    model = RSSMSettings(
        (64, 64, 3), nu=1, deterministic=200, stochastic=60, hidden=200, embedding=1024, members=a.members, depth=32,
    )  # fmt: skip
    schedule = Schedule(batch=16, length=50, capacity=1000, uniform=20, preference=1.0)
    return Size(64, model, schedule, 3e-4, known=False)


def _large(settings: ActorCriticSettings) -> ActorCriticSettings:
    """The published actor-critic: its sizes and rates, and what the cart-pole's launcher changes."""
    about: dict[str, Any] = {"horizon": 15, "hidden": 400, "layers": 4, "starts": 800, "critic_rate": 8e-5}
    if settings.name == "actsafe-published":
        about |= {"penalty": _barrier, "intrinsic": 10.0, "alpha": 50.0, "least_std": 1e-3, "first_std": 0.025}
    return replace(settings, **about)


def _barrier() -> Barrier:
    return Barrier(rate=8e-5)


def _small(settings: ActorCriticSettings) -> ActorCriticSettings:
    return replace(settings, starts=4, horizon=2, hidden=6)


def task(a: Arguments) -> latent.LatentTask:
    """The cart-pole, at a size."""
    s = size(a)

    def plant() -> SparseCartPole:
        return SparseCartPole(horizon=s.horizon, budget=s.horizon / 10)

    def sight(one: SparseCartPole, known: bool) -> Sight:
        return cartpole_sight(one, size=s.pixels, known_cost=known and s.known)

    def settings(_: int) -> RSSMSettings:
        return s.model

    half, turn = 1.2 * SparseCartPole().rail, 6.283185307179586
    return latent.LatentTask(
        plant, sight, settings, rate=s.rate, plane=_plane, corner=(-half, -turn / 2),
        cell=(2 * half / PLACES, turn / ANGLES), count=(PLACES, ANGLES), cost="steps with the cart more than 0.5 m off",
        cells=f"Cells of {2 * half / PLACES:.2f} m × 18° visited by true states, of {PLACES * ANGLES}.",
        schedule=s.schedule, actor={"tiny": _small, "published": _large}.get(a.size), device=a.device, precision=a.precision,
        save_every=a.save_every,
    )  # fmt: skip


def _plane(states: Tensor) -> Tensor:
    return torch.stack([states[:, 0], wrap_angle(states[:, 1])], dim=-1)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """The estimate, a piece; then, unless it is to be dry, a piece an arm."""
    arms, one = arguments.arms, task(arguments)
    for i, arm in enumerate(arms):
        record.progress(i, len(arms), f"{arm}: estimate")
        record.piece(f"estimate/{latent.key(arm)}", lambda arm=arm: _estimated(one, arguments, arm, seed))
    latent.run(one, arguments, () if arguments.dry else arms, seed, record)


def _estimated(one: latent.LatentTask, a: Arguments, arm: str, seed: int) -> Piece:
    found = estimate(latent.agent(one, a, arm, seed), a.iterations)
    row = {f.name: getattr(found, f.name) for f in fields(Estimate)}
    improvements = a.updates if found.behaviour_parameters else 0
    row["gpu_seconds"] = a.iterations * found.gpu_seconds(a.updates, improvements)
    return Piece([{"arm": arm, "phase": "estimate", "memory": found.memory, **row}])


def report(runs: Sequence[Run]) -> Report:
    """What it needs; and coverage and cost, of what was run."""
    a = runs[0].arguments
    tables, figures = {"estimate": _needs(runs)}, {}
    learnt = [replace(r, pieces={k: p for k, p in r.pieces.items() if not k.startswith("estimate/")}) for r in runs]
    if all(r.pieces for r in learnt):
        found = latent.told(learnt)
        tables["explorers"] = latent.explorers_table(task(a), a, found)
        figures["growth"] = latent.growth(task(a), a, found)
    ran = "Only estimated; nothing was learnt." if a.dry else "Run as estimated."
    return Report(figures=figures, tables=tables, notes=[ran])


def _needs(runs: Sequence[Run]) -> Table:
    mib, columns = 2.0**20, (
        "size", "explorer", "device", "precision", "iterations", "updates each", "parameters of the world model",
        "of the behaviour", "weights and gradients (MiB)", "Adam's moments (MiB)", "activations (MiB)", "replay (MiB)",
        "together (MiB)", "allocated at most (MiB)", "a world update (s)", "an update of the behaviour (s)",
        "a step of acting (s)", "the whole run (h)", "GFLOP of both updates", "operations of both",
        "updates on a GPU, a guess (h)",
    )  # fmt: skip
    rows = [
        (r.arguments, row) for r in runs for k, p in r.pieces.items() if k.startswith("estimate/") for row in p.rows
    ]
    table = [
        (
            a.size, r["arm"], a.device, a.precision, a.iterations, a.updates, r["world_parameters"], r["behaviour_parameters"],
            *(round(r[name] / mib, 1) for name in ("weights", "moments", "activations", "replay", "memory", "peak")),
            *(round(r[name], 4) for name in ("world_seconds", "behaviour_seconds", "act_seconds")),
            round(r["total_seconds"] / 3600, 2), round((r["world_flops"] + r["behaviour_flops"]) / 1e9, 1),
            r["world_launches"] + r["behaviour_launches"], round(r["gpu_seconds"] / 3600, 2),
        )
        for a, r in rows
    ]  # fmt: skip
    caption = (
        "Measured on a few updates with blank pictures, on the device (one thread of a CPU) and in the precision that are "
        "named; activations are what autograd keeps in the larger of the two updates. Seconds: of a machine busy with others. "
        "The guess for a GPU is 10 µs an operation or 100 TFLOP/s, the longer of both, without flights; it was not measured."
    )
    return Table(columns=columns, rows=table, caption=caption)


EXPERIMENT = Experiment(
    name="pixels-v3",
    title="Visual cart-pole at 32² and at the published size, for one GPU",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            size="tiny", iterations=2, episodes=2, updates=2, members=2, arms=("actor, published",), precision="bfloat16",
            save_every=0.0,
        ),
        "quick": Arguments(dry=True, arms=("actsafe",)),
        "full": Arguments(device="cuda", precision="bfloat16"),
    },
    seeds={"smoke": 1, "quick": 1, "full": 3},
    run=run,
    report=report,
)  # fmt: skip
