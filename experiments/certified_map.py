"""Certified maps of the pendulum twin: where staying safe is certain, where it is not, and what waits for data or cells.

One policy of the reference class over T states, with 0, some and more transitions from anywhere in the state box. The map is
refined where smaller cells are estimated to narrow a gap (`CertifiedMap.refined`). Of each cell: bounds of the probability of
staying safe for every f in F_n (`gpsafe.safety.certified_map`). The plant is flown from states all over the grid: how often its
share of safe runs contradicts a bound (Clopper–Pearson), and what the certificate misses.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import beta

from gpsafe import plotting
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import Grid
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.safety import certified_map
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, plus_minus

AROUND = Box(vector(-2.0, -8.0), vector(1.6, 8.0))
CHANCE = 1e-6  # level at which runs contradict a bound, at each state and side


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    counts: tuple[int, ...] = (0, 50, 300)
    """Transitions known."""
    first: int = 64
    """Cells along each axis to begin with."""
    cells: int = 512
    """Along each axis, if all were as small as the smallest."""
    tolerance: float = 0.01
    """Of upper − lower, beyond which a cell is halved if that is estimated to help."""
    horizon: int = 50
    """T."""
    policy: int = 20
    """Number in the reference class."""
    level: float = 0.95
    """Probability of staying safe that is asked for."""
    states: int = 40
    """Along each axis, from which the plant is flown."""
    runs: int = 200
    """From each."""


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """The truth, then a map a number of transitions."""
    torch.set_num_threads(1)
    record.piece("truth", lambda: _truth(arguments, seed))
    for i, count in enumerate(arguments.counts):
        record.progress(i, len(arguments.counts), f"{count} transitions")
        record.piece(f"map/{count}", lambda count=count: _mapped(arguments, seed, count))
    record.progress(len(arguments.counts), len(arguments.counts), "done")


def _states(arguments: Arguments) -> torch.Tensor:
    return Grid(AROUND, (arguments.states, arguments.states)).centers


def _truth(arguments: Arguments, seed: int) -> Piece:
    """Share of safe runs of the plant from each state."""
    system, policies = reference_pendulum(), reference_pendulum_policies()[0].select(torch.tensor([arguments.policy]))
    x, generator = _states(arguments), torch.Generator().manual_seed(90_001 + seed)
    noise = sample_noise(system.noise_std, (arguments.horizon - 1, len(x), arguments.runs), generator)
    state, safe = x.unsqueeze(1).expand(-1, arguments.runs, -1), torch.ones(len(x), arguments.runs, dtype=torch.bool)
    for t in range(arguments.horizon):
        safe &= system.cost(state) == 0
        if t < arguments.horizon - 1:
            state = system.mean(state, policies(state.unsqueeze(0))[0]) + noise[t]
    return Piece(tensors={"safe": safe.sum(-1)})


def learned(seed: int, count: int) -> ConfidenceSet:
    """F_n after that many transitions from anywhere."""
    system, generator = reference_pendulum(), torch.Generator().manual_seed(seed)
    x, u = system.state_box.sample(count, generator), system.input_box.sample(count, generator)
    y = system.mean(x, u) + sample_noise(system.noise_std, (count,), generator)
    model = GP.create(
        system.kernels, 1e-4, nx=2, nu=1, noise_std=system.noise_std, outputs=system.outputs, prior=system.known
    )
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=float(system.noise_std[1]), delta=0.1)
    return ConfidenceSet(bound).update(model.condition(Transitions(x, u, y)) if count else model)


def _mapped(arguments: Arguments, seed: int, count: int) -> Piece:
    system, policies = reference_pendulum(), reference_pendulum_policies()[0].select(torch.tensor([arguments.policy]))
    confidence, task = learned(seed, count), Task.of(system).with_(horizon=arguments.horizon)
    begun = time.process_time()
    coarse = certified_map(confidence, policies, task, Grid(AROUND, (arguments.first, arguments.first), (2, 2)))
    found = coarse.refined(tolerance=arguments.tolerance, cells=arguments.cells)
    row = {"count": count, "seconds": time.process_time() - begun, "gap": float(found.mean(found.gap))}
    row |= {"certain": float(found.mean(found.certainly(arguments.level).double()))}
    row |= {"certainly_not": float(found.mean(found.certainly_not(arguments.level).double()))}
    row |= {"cells": found.partition.num, "reducible": float(found.mean(found.reducible(arguments.tolerance).double()))}
    low, high = found.at(_states(arguments))
    centers, radius = found.partition.boxes()
    cells = torch.cat([centers - radius, centers + radius], dim=-1)
    return Piece([row], {"lower": low[0], "upper": high[0], "cells": cells})


# ------------------------------------------------------------------------------------------------------------ report
def _contradicted(run: Run, count: int) -> int:
    """States at which the plant's runs contradict a bound."""
    safe, runs = run.pieces["truth"].tensors["safe"].numpy(), run.arguments.runs
    found = run.pieces[f"map/{count}"].tensors
    with np.errstate(invalid="ignore"):
        most = np.where(safe < runs, beta.ppf(1 - CHANCE, safe + 1, runs - safe), 1.0)
        least = np.where(safe > 0, beta.ppf(CHANCE, safe, runs - safe + 1), 0.0)
    return int(((found["lower"].numpy() > most) | (found["upper"].numpy() < least)).sum())


def _table(runs: Sequence[Run]) -> Table:
    arguments, rows = runs[0].arguments, []
    for count in arguments.counts:
        found = [run.pieces[f"map/{count}"].rows[0] for run in runs]
        wrong, tried = sum(_contradicted(run, count) for run in runs), len(runs) * arguments.states**2
        shares = [100 * (1 - row["certain"] - row["certainly_not"]) for row in found]
        parts = ([100 * row["certain"] for row in found], [100 * row["certainly_not"] for row in found], shares)
        rows.append(
            (
                count,
                len(runs),
                *(plus_minus(part) if len(runs) > 1 else f"{part[0]:.3g}" for part in parts),
                plus_minus([row["gap"] for row in found]) if len(runs) > 1 else f"{found[0]['gap']:.3g}",
                f"{np.median([row['cells'] for row in found]):.0f}",
                f"{100 * np.mean([row['reducible'] for row in found]):.3g}",
                str(Share(wrong, tried)),
                f"{np.median([row['seconds'] for row in found]):.3g}",
            )
        )
    columns = (
        "transitions", "seeds", f"safe with probability ≥ {arguments.level:g}, % of the grid", "certainly not, %",
        "undecided, %", "mean of upper − lower", "cells", "smaller ones would help, % of the grid (estimated)",
        "states at which runs contradict a bound", "CPU s",
    )  # fmt: skip
    caption = (
        f"From {arguments.first}² cells to cells of 1/{arguments.cells} of the grid along an axis, where a gap of more than "
        f"{arguments.tolerance:g} is estimated to be due to cells; T = {arguments.horizon}. {arguments.runs} runs of the plant "
        f"from each of {arguments.states}² states a seed; each bound is tried at level {CHANCE:g}. Means ± 95 %. F_n at "
        "δ = 0.1, norm and kernel known."
    )
    return Table(columns, rows, caption)


def _figure(run: Run) -> Figure:
    arguments = run.arguments
    figure = plotting.figure(4.2 * len(arguments.counts), 4.2)
    axes = figure.subplots(1, len(arguments.counts), squeeze=False, sharey=True)[0]
    x = _states(arguments).reshape(arguments.states, arguments.states, 2)
    safe = (run.pieces["truth"].tensors["safe"] >= arguments.level * arguments.runs).reshape(arguments.states, -1)
    for panel, count in zip(axes, arguments.counts, strict=True):
        lower = run.pieces[f"map/{count}"].tensors["lower"].reshape(arguments.states, -1)
        plotting.certified_map(
            panel, x[:, 0, 0].numpy(), x[0, :, 1].numpy(), (lower >= arguments.level).T.numpy(), safe=safe.T.numpy()
        )
        cells = run.pieces[f"map/{count}"].tensors["cells"].numpy()
        plotting.outlines(panel, cells[:, :2], cells[:, 2:])
        panel.set(xlim=(cells[:, 0].min(), cells[:, 2].max()), ylim=(cells[:, 1].min(), cells[:, 3].max()))
        panel.set_xlabel(f"angle (rad), {count} transitions")
    axes[0].set_ylabel("speed (rad/s)")
    return figure


def report(runs: Sequence[Run]) -> Report:
    """The map of the first seed, and the numbers of all."""
    return Report(figures={"map": _figure(runs[0])}, tables={"map": _table(runs)})


EXPERIMENT = Experiment(
    name="certified-map",
    title="Certified maps of a pendulum: staying safe for every plant of the confidence set",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(counts=(20,), first=6, cells=12, horizon=3, states=3, runs=4),
        "quick": Arguments(),
        "full": Arguments(cells=1024, runs=1000),
    },
    seeds={"smoke": 1, "quick": 3, "full": 5},
)
