"""LBSGD where the optimum is known, with and without Adam behind it.

The published code of ActSafe computes the step length that keeps iterates feasible, and then hands the step to Adam, which
divides by the size of what it is given. Here both run on 32 convex quadratic programs with a planted optimum and on a policy of
one parameter for the first reference plant, u = tanh(3(g − x)), whose cost and reward are known to any precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import plotting
from gpsafe.planning.log_barrier import Adam, Descent, Program, log_barrier_descent, values_and_gradients
from gpsafe.planning.quadratics import Quadratics
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_1d
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, grouped, plus_minus

CAPTION = (
    "Intervals are 95 %. Reach: the longest step after which the theory still proves feasibility. On the quadratic programs "
    "the smoothness is exact; for the policy it is the largest second derivative on a grid of 2001 parameters, times 1.5: "
    "measured, not proved. The gap is relative to that of the start, and counts only runs that end feasible."
)
ARMS: dict[
    str, tuple[float, Adam | None]
] = {  # factor on the smoothness that the method is told, and what follows the step
    "LBSGD": (1.0, None),
    "Adam behind, rate 1e-3": (1.0, Adam(rate=1e-3)),
    "Adam behind, rate 1e-2": (1.0, Adam(rate=1e-2)),
    "Adam behind, rate 1e-1": (1.0, Adam(rate=1e-1)),
    "LBSGD, smoothness 1e-4 of the true one": (1e-4, None),
}
PROBLEMS = {"quadratic": "quadratic programs", "policy": "policy of the reference plant"}
WIDTH = 0.03  # of the smooth cost of the policy problem, in units of the state


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    programs: int = 32
    """Quadratic programs."""
    dim: int = 3
    """Their dimension."""
    steps: int = 600
    """Steps of each method; η falls geometrically from 1 to 1e-3 over them."""
    paths: int = 32
    """Noise paths of the policy problem, the same at every parameter."""
    resolution: int = 2001
    """Parameters at which the policy problem's optimum and smoothness are looked for."""


def policy_program(paths: int, generator: torch.Generator) -> Program:
    """g (P, 1) ↦ −mean reward / T and E Σ_t sigmoid((x_t − 1)/width) − d, for u = tanh(3(g − x)) on the reference plant."""
    plant = reference_1d()
    noise = sample_noise(plant.noise_std, (plant.horizon, paths), generator)

    def program(g: Tensor) -> tuple[Tensor, Tensor]:
        x = plant.initial_state.expand(len(g), paths, 1)
        cost, reward = x.new_zeros(x.shape[:2]), x.new_zeros(x.shape[:2])
        for w in noise:
            cost = cost + torch.sigmoid((x[..., 0] - 1.0) / WIDTH)
            u = torch.tanh(3.0 * (g.unsqueeze(1) - x))
            reward = reward + plant.reward(x, u)
            x = plant.physics.mean(x, u) + w
        return -reward.mean(-1) / plant.horizon, (cost.mean(-1) - plant.budget).unsqueeze(-1)

    return program


def policy_truth(program: Program, count: int) -> tuple[float, Tensor]:
    """Best feasible objective, and (M₀, M₁) with a margin of one half, from `count` parameters."""
    grid = torch.linspace(-0.6, 1.6, count, dtype=torch.float64).unsqueeze(-1)
    objective, constraint, up, out = values_and_gradients(program, grid)
    slopes = torch.cat([up, out[:, 0]], dim=-1)
    bend = (slopes.diff(dim=0) / grid.diff(dim=0)).abs().amax(0)
    return float(objective[constraint[:, 0] <= 0].min()), 1.5 * bend


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Both problems under all arms."""
    for i, (problem, name) in enumerate(PROBLEMS.items()):
        record.progress(i, len(PROBLEMS), name)
        record.piece(problem, lambda problem=problem: _piece(arguments, problem, seed))
    record.progress(len(PROBLEMS), len(PROBLEMS), "done")


def _piece(a: Arguments, problem: str, seed: int) -> Piece:
    generator = torch.Generator().manual_seed(seed)
    if problem == "quadratic":
        program = Quadratics.planted(a.programs, dim=a.dim, constraints=a.dim + 1, generator=generator)
        start, best, smoothness = torch.zeros_like(program.optimum), program.best, program.smoothness
    else:
        program = policy_program(a.paths, generator)
        value, smoothness = policy_truth(program, a.resolution)
        start = torch.linspace(-0.5, 0.2, 8, dtype=torch.float64).unsqueeze(-1)
        best = torch.full((len(start),), value, dtype=torch.float64)
    eta = torch.logspace(0, -3, a.steps, dtype=torch.float64)
    rows, arrays = [], {}
    for k, (arm, (factor, after)) in enumerate(ARMS.items()):
        found = log_barrier_descent(program, start, smoothness=factor * smoothness, eta=eta, steps=a.steps, after=after)
        rows += _rows(problem, arm, found, best)
        gap = (found.objective - best) / (found.objective[0] - best)
        arrays |= {
            f"{k}-gap": gap.where(found.feasible, torch.nan).nanmedian(-1).values,
            f"{k}-infeasible": (~found.feasible).double().mean(-1),
            f"{k}-slack": found.slack.amin((-1, -2)),
            f"{k}-stretch": found.stretch.nanmedian(-1).values,
        }
    return Piece(rows, arrays)


def _rows(problem: str, arm: str, found: Descent, best: Tensor) -> list[dict[str, Any]]:
    gap = (found.objective[-1] - best) / (found.objective[0] - best)
    outside = ~found.feasible
    return [
        {
            "problem": problem,
            "arm": arm,
            "left": bool(outside[:, i].any()),
            "outside": float(outside[:, i].double().mean()),
            "worst": float((-found.slack[:, i]).max().clamp_min(0.0)),
            "ends_inside": bool(found.feasible[-1, i]),
            "gap": float(gap[i]),
            "stretch": float(np.nanmax(found.stretch[:, i].numpy())),
        }
        for i in range(len(best))
    ]


def report(runs: Sequence[Run]) -> Report:
    """Gaps, feasibility and step lengths."""
    rows = [row for one in runs for piece in one.pieces.values() for row in piece.rows]
    columns = (
        "problem", "method", "runs that leave the feasible set", "share of iterates outside, %", "worst violation",
        "longest step / reach (median)", "gap at the end, % of the start's",
    )  # fmt: skip
    table = []
    for (problem, arm), group in grouped(rows, "problem", "arm").items():
        ended = [100 * r["gap"] for r in group if r["ends_inside"]]
        table.append(
            (
                PROBLEMS[problem], arm,
                str(Share.of(r["left"] for r in group)),
                f"{100 * np.mean([r['outside'] for r in group]):.1f}",
                f"{max(r['worst'] for r in group):.3g}",
                f"{np.median([r['stretch'] for r in group]):.3g}",
                plus_minus(ended) if len(ended) > 1 else "–",
            )
        )  # fmt: skip
    figure = plotting.figure("screen", 6.4)
    panels = figure.subplots(2, 2)
    drawn = (
        (
            panels[0, 0],
            "quadratic",
            "gap",
            "gap / gap at the start (median)",
            "Quadratic programs: feasible iterates only",
        ),
        (
            panels[0, 1],
            "quadratic",
            "infeasible",
            "share of programs that are outside",
            "Quadratic programs: feasibility",
        ),
        (panels[1, 0], "quadratic", "stretch", "step taken / reach (median)", "What the theory allows is 1"),
        (panels[1, 1], "policy", "slack", "least slack $d - J_c$ (worst start)", "A policy of the reference plant"),
    )
    looks = plotting.looks(ARMS)
    for axes, problem, kind, label, title in drawn:
        for k, (arm, look) in enumerate(looks.items()):
            values = np.stack([one.pieces[problem].tensors[f"{k}-{kind}"] for one in runs])
            value = values.min(0) if kind == "slack" else values.mean(0)
            axes.plot(np.arange(len(value)), value, label=arm, **look.line)
        axes.set(xlabel="step", ylabel=label, title=title)
    for axes in (panels[0, 0], panels[1, 0]):
        axes.set_yscale("log")
    panels[1, 1].set_yscale("symlog", linthresh=0.01)
    plotting.limit(panels[1, 0], 1.0, label="reach")
    plotting.limit(panels[1, 1], 0.0, label="budget")
    plotting.legend_beside(panels[0, 1])
    return Report(figures={"lbsgd": figure}, tables={"lbsgd": Table(columns=columns, rows=table, caption=CAPTION)})


EXPERIMENT = Experiment(
    name="lbsgd",
    title="LBSGD with and without Adam behind it, where the optimum is known",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(programs=4, steps=20, paths=4, resolution=101),
        "quick": Arguments(),
        "full": Arguments(programs=128, steps=4000, paths=128),
    },
    seeds={"smoke": 1, "quick": 5, "full": 20},
    run=run,
    report=report,
)
