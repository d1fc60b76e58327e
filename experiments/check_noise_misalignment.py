"""Next check 3 of the paper: process noise, wrong beliefs about it, and a reward that pulls against the cost.

Random plants on a line, exactly in the RKHS; S_n by the robust program. Three learners: ActSafe, the greedy explorer
in the same pessimistic S_n (SafeHUCRL's rule on a policy class), and the greedy explorer that takes the posterior mean for
the truth (no pessimism). Every run ends with the policy of S_n that the posterior mean likes best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from gpsafe import plotting
from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import Constant
from gpsafe.planning.explore import expected_return
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import sample_noise
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report.statistics import (
    Share,
    draw_shares,
    grouped,
    mean_interval,
    plus_minus,
)

CAPTION = (
    "Intervals are 95 %. Regret is against the best surely safe policy, so an unsafe final policy may have a negative one. "
    "A run stops when F_n comes out empty; without pessimism its intervals have no width, so every such run stops early."
)
SWEEPS = ("noise", "belief", "target")
LEARNERS = {"ActSafe": "actsafe", "greedy, pessimistic": "greedy", "greedy, mean": "mean greedy"}


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: int = 3
    """Random plants per seed; each meets every noise level, belief and reward."""
    noises: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08)
    """Standard deviations of the process noise."""
    beliefs: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """What the learner takes the noise for, as a multiple of the truth."""
    targets: tuple[float, ...] = (0.3, 1.0, 1.4)
    """States at which the reward −|x − target| is largest; states beyond 1 are unsafe."""
    episodes: int = 8
    """Episodes of exploration."""
    cells: int = 300
    """Cells of the robust program."""


@dataclass(frozen=True, slots=True)
class Case:
    """One combination: noise σ of the plant, σ believed / σ, target of the reward −|x − target| (unsafe beyond 1)."""

    sweep: str
    noise: float = line.NOISE
    belief: float = 1.0
    target: float = 1.0

    @property
    def value(self) -> float:
        """What the sweep varies."""
        return {"noise": self.noise, "belief": self.belief, "target": self.target}[self.sweep]


def cases(arguments: Arguments) -> list[Case]:
    """All combinations."""
    return [
        *(Case("noise", noise=value) for value in arguments.noises),
        *(Case("belief", belief=value) for value in arguments.beliefs),
        *(Case("target", target=value) for value in arguments.targets),
    ]


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Every plant under every case with every learner."""
    for k in range(arguments.plants):
        record.progress(k, arguments.plants, f"plant {k}")
        record.piece(f"plant-{k:03d}", lambda k=k: Piece(list(_plant(arguments, seed, k)), {}))
    record.progress(arguments.plants, arguments.plants, "done")


def _plant(arguments: Arguments, seed: int, number: int) -> Iterator[dict[str, Any]]:
    start = 100_003 * seed + number
    residual = line.typical(torch.Generator().manual_seed(start))
    policies = line.set_points(torch.linspace(0.0, 1.15, 24))
    for case in cases(arguments):
        system = line.plant(residual, noise_std=case.noise, target=case.target)
        believed = line.plant(residual, noise_std=case.belief * case.noise, target=case.target)
        truth = line.truth(system, policies, cells=2 * arguments.cells)
        noise = sample_noise(system.noise_std, (system.horizon, 1, 500), torch.Generator().manual_seed(5))
        states, inputs = closed_loop(system.mean, policies, system.initial_state, noise)
        value = system.reward(states[..., :-1, :], inputs).sum(-1).mean(-1)
        safe = truth.safe(system.budget)
        for learner in LEARNERS:
            bound = line.sound_bound(believed)
            if learner == "greedy, mean":
                bound = Constant(
                    rkhs_norm=bound.rkhs_norm, subgaussian=bound.subgaussian, delta=bound.delta, value=1e-6
                )
            algorithm = ActSafe(
                system, policies, [0, 1, 2, 3], line.model(believed), bound, line.program(believed, arguments.cells),
                episodes=arguments.episodes, threshold=0.0 if learner == "ActSafe" else 1e9, unchecked=True,
            )  # fmt: skip
            found = algorithm.run(torch.Generator().manual_seed(start + 1))
            members = found.safe_set.members
            liked = expected_return(
                system, found.confidence.model, policies.select(members), generator=torch.Generator().manual_seed(3)
            )
            final = int(members[liked.argmax()])
            yield {
                "sweep": case.sweep,
                "value": case.value,
                "learner": learner,
                **line.outcome(algorithm, truth, found, residual),
                "final_unsafe": bool(truth.unsafe(system.budget)[final]),
                "regret": float(value[safe].max() - value[final]) / system.horizon,
                "reward": sum(e.reward for e in found.episodes) / len(found.episodes) / system.horizon,
                "best": float(value[safe].max()) / system.horizon,
            }


def report(runs: Sequence[Run]) -> Report:
    """Safe-set size, unsafe executions and regret against noise, belief and misalignment."""
    rows = [row for one in runs for piece in one.pieces.values() for row in piece.rows]
    groups = grouped(rows, "sweep", "value", "learner")
    columns = (
        "varied", "value", "learner", "runs", "|S*|", "safe |S_n|/|S*|", "f* left F_n", "runs with an unsafe episode",
        "final policy unsafe", "F_n found empty", "regret of the final policy per step", "reward per step while learning",
    )  # fmt: skip
    names = {"noise": "noise σ", "belief": "believed σ / σ", "target": "reward target (unsafe beyond 1)"}
    table = [
        (
            names[sweep], value, learner, len(group),
            f"{np.mean([r['true_safe'] for r in group]):.1f}",
            plus_minus((r["safe_members"] / r["true_safe"] for r in group), 3),
            str(Share.of(r["escaped"] for r in group)),
            str(Share.of(r["unsafe_executed"] for r in group)),
            str(Share.of(r["final_unsafe"] for r in group)),
            str(Share.of(r["falsified"] for r in group)),
            plus_minus((r["regret"] for r in group), 3),
            plus_minus((r["reward"] for r in group), 3),
        )
        for (sweep, value, learner), group in groups.items()
    ]  # fmt: skip
    figure = plotting.figure("screen", 7.7)
    panels = figure.subplots(3, 3)
    for axes, sweep in zip(panels.T, SWEEPS, strict=True):
        values = sorted({value for kind, value, _ in groups if kind == sweep})
        for learner, noun in LEARNERS.items():
            chosen = [groups[sweep, value, learner] for value in values]
            _means(axes[0], values, [[r["safe_members"] / r["true_safe"] for r in g] for g in chosen], learner, noun)
            shares = [Share.of(r["unsafe_executed"] for r in g) for g in chosen]
            draw_shares(axes[1], values, shares, label=learner, noun=noun)
            _means(axes[2], values, [[r["regret"] for r in g] for g in chosen], learner, noun)
        if sweep == "belief":
            shares = [Share.of(r["escaped"] for r in groups[sweep, value, "ActSafe"]) for value in values]
            draw_shares(axes[1], values, shares, label="ActSafe: f* left F_n", noun="falsified")
        labels = ("safe |S_n| / |S*|", "share of runs with an unsafe episode", "regret of the final policy per step")
        for ax, label in zip(axes, labels, strict=True):
            ax.set(xlabel=names[sweep], ylabel=label)
            if sweep != "target":
                ax.set_xscale("log")
                ax.set_xticks(values, [f"{v:g}" for v in values])
                ax.minorticks_off()
        axes[0].set_ylim(0, 1.05)
        axes[1].set_ylim(-0.03, 1.03)
    plotting.legend_beside(panels[0, 2])
    plotting.legend_beside(panels[1, 1])
    return Report(
        figures={"noise-misalignment": figure},
        tables={"noise-misalignment": Table(columns=columns, rows=table, caption=CAPTION)},
    )


def _means(axes: Axes, x: Sequence[float], samples: list[list[float]], label: str, noun: str) -> None:
    mean, half = np.array([mean_interval(s) for s in samples]).T
    plotting.intervals(axes, x, mean, mean - half, mean + half, noun=noun, label=label)


EXPERIMENT = Experiment(
    name="check-noise-misalignment",
    title="Process noise, wrong beliefs about it, and rewards that pull against the cost",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(plants=1, noises=(0.03,), beliefs=(1.0,), targets=(0.3,), episodes=1, cells=60),
        "quick": Arguments(),
        "full": Arguments(plants=40, episodes=12),
    },
    seeds={"smoke": 1, "quick": 10, "full": 10},
    run=run,
    report=report,
)
