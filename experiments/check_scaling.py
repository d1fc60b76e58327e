"""Next check 2 of the paper: which part of the algorithm is the bottleneck, and how does each part grow?

The pieces of one ActSafe episode and of one planning step on the reference pendulum, each timed against the number n of
transitions, the number P of policies, the number of grid cells, and the number of candidate sequences. Times are CPU seconds
of one thread, the least of some repeats, so that other work on the machine counts little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from gpsafe import plotting
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.models import GP
from gpsafe.models.low_rank import LowRankGP
from gpsafe.planning.icem import ICEM, icem
from gpsafe.planning.scores import imagine, penalised_return
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import grouped

EPISODE = ("append one episode", "refine the enclosure", "sweep: UCB", "sweep: exploration")


@dataclass(frozen=True)
class Arguments:
    """Base sizes, and what each is swept over."""

    data: int = 180
    """n, transitions."""
    policies: int = 8
    """P."""
    cells: int = 48
    """Cells per state dimension."""
    candidates: int = 20
    """Sequences per iteration of the planner (5 iterations, horizon 20, 10 particles)."""
    sweep_data: tuple[int, ...] = (60, 120, 240, 480)
    """n."""
    sweep_policies: tuple[int, ...] = (2, 4, 8, 16)
    """P."""
    sweep_cells: tuple[int, ...] = (24, 32, 48, 64)
    """Cells per state dimension."""
    sweep_candidates: tuple[int, ...] = (10, 20, 40)
    """Sequences."""
    repeats: int = 1
    """Of each timing; the least counts."""


@cache
def _plant() -> RKHSTwin:
    return reference_pendulum()


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """One combination of sizes."""

    data: int
    policies: int
    cells: int
    candidates: int

    def family(self) -> AffinePolicies:
        """P set-points."""
        family, _ = reference_pendulum_policies()
        return family.select(torch.linspace(0, family.num - 1, self.policies).round().long())

    def model(self, transitions_: int) -> GP:
        """Posterior of runs of the set-points in turn."""
        plant = _plant()
        family, _ = reference_pendulum_policies()
        model = GP.create(
            plant.kernels, 1e-4, nx=2, nu=1, noise_std=plant.noise_std, outputs=plant.outputs, prior=plant.known
        )
        if transitions_ == 0:
            return model
        generator = torch.Generator().manual_seed(0)
        episodes = -(-transitions_ // plant.horizon)
        chosen = family.select(torch.linspace(0, 29, episodes).round().long())
        noise = sample_noise(plant.noise_std, (plant.horizon, 1, 1), generator)
        states, inputs = closed_loop(plant.mean, chosen, plant.initial_state, noise)
        z, y = _pairs(model, states, inputs, transitions_)
        return model.condition_on(z, y)

    def bound(self) -> Mixture:
        """The mixture bound with the true norm."""
        return Mixture(rkhs_norm=tuple(_plant().rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)

    def program(self) -> RobustDP:
        """The robust program on part of the state box."""
        plant = _plant()
        box = Box(torch.tensor([-1.0, -4.5], dtype=torch.float64), torch.tensor([1.6, 4.5], dtype=torch.float64))
        return RobustDP(Grid(box, (self.cells, self.cells)), Task.of(plant))


def _pairs(model: GP, states: torch.Tensor, inputs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    record = transitions(states, inputs)
    residual = record.x_next - model.prior(record.x, record.u)
    return record.z[:count], residual[:count, list(model.outputs)]


def pieces(setting: Setting) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and work of each component at one combination of sizes; what a component needs is made before it is timed."""
    plant, family = _plant(), setting.family()
    whole, program, old = setting.model(setting.data), setting.program(), max(0, setting.data - plant.horizon)
    assert whole.inputs is not None and whole.targets is not None
    new_z, new_y = whole.inputs[old:], whole.targets[old:]
    before = setting.model(0)
    if old:
        before = before.condition_on(whole.inputs[:old], whole.targets[:old])
    after = before.condition_on(new_z, new_y)  # the same rows first: F_n continues
    points = torch.rand(5000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    after.posterior(points[:1])
    yield "posterior of 5000 points", partial(after.posterior, points)
    low_rank = LowRankGP.create(after, 160)
    yield "the same, low rank", partial(low_rank.posterior, points)

    def append() -> object:
        return before.condition_on(new_z, new_y).posterior(points[:1])

    yield "append one episode", append
    first = ConfidenceSet(setting.bound()).update(before)
    yield "enclosure before data (once)", partial(program.enclosure, first, family)
    enclosure = program.enclosure(first, family).refine(first)
    second = first.update(after)
    yield "refine the enclosure", partial(enclosure.refine, second)
    fine = enclosure.refine(second)
    yield "sweep: UCB", partial(program.upper, fine)

    def exploration() -> object:
        return program.exploration(fine, after.posterior(fine.z)[1].norm(dim=-1))

    yield "sweep: exploration", exploration
    tube = ScenarioTube(task=Task.of(plant), seed=7, samples=64)
    yield "scenario tubes, 64 paths", partial(tube.evaluate, second, family)
    settings = ICEM(samples=setting.candidates, elites=max(2, setting.candidates // 10))

    def plan() -> object:
        generator = torch.Generator().manual_seed(2)

        def score(actions: torch.Tensor) -> torch.Tensor:
            imagined = imagine(
                after, plant.initial_state, actions, particles=10, beta=1.0, generator=torch.Generator().manual_seed(3)
            )
            return penalised_return(
                imagined, actions, reward=plant.reward, extrinsic=1.0, intrinsic=1.0, constraint=None, penalty=0.0
            )

        return icem(score, plant.input_box, settings=settings, generator=generator)

    yield "planning step", plan


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Every component along every sweep; a seed is a repetition on the same data."""
    base = Setting(arguments.data, arguments.policies, arguments.cells, arguments.candidates)
    sweeps: dict[str, tuple[Sequence[int], Callable[[int], Setting]]] = {
        "n": (arguments.sweep_data, lambda v: Setting(v, base.policies, base.cells, base.candidates)),
        "P": (arguments.sweep_policies, lambda v: Setting(base.data, v, base.cells, base.candidates)),
        "cells per axis": (arguments.sweep_cells, lambda v: Setting(base.data, base.policies, v, base.candidates)),
        "sequences": (arguments.sweep_candidates, lambda v: Setting(base.data, base.policies, base.cells, v)),
    }
    jobs = [(sweep, value, setting(value)) for sweep, (values, setting) in sweeps.items() for value in values]
    for i, (sweep, value, setting) in enumerate(jobs):
        record.progress(i, len(jobs), f"{sweep} = {value}")
        key = f"{sweep.replace(' ', '-')}/{value}"
        record.piece(key, partial(_timings, sweep, value, setting, arguments.repeats))
    record.progress(len(jobs), len(jobs), "done")


AFFECTED = {
    "n": None,  # everything
    "P": {"enclosure before data (once)", *EPISODE[1:], "scenario tubes, 64 paths"},
    "cells per axis": {"enclosure before data (once)", *EPISODE[1:]},
    "sequences": {"planning step"},
}


def _timings(sweep: str, value: int, setting: Setting, repeats: int) -> Piece:
    rows = []
    for name, work in pieces(setting):
        touched = AFFECTED[sweep]
        if touched is not None and name not in touched:
            continue
        work()  # warm
        least = min(_cpu_seconds(work) for _ in range(repeats))
        rows.append({"sweep": sweep, "value": value, "part": name, "seconds": least})
    return Piece(rows)


def _cpu_seconds(work: Callable[[], object], *, least: float = 0.15) -> float:
    """CPU seconds of one call, from as many calls as fill `least` seconds (the clock ticks in hundredths)."""
    calls, begun = 0, time.process_time()
    while (spent := time.process_time() - begun) < least or calls == 0:
        work()
        calls += 1
    return spent / calls


def report(runs: Sequence[Run]) -> Report:
    """Growth of each part, exponents, and the shares of one episode."""
    rows = [row for one in runs for piece in one.pieces.values() for row in piece.rows]
    best = {key: min(r["seconds"] for r in g) for key, g in grouped(rows, "sweep", "part", "value").items()}
    parts = list(dict.fromkeys(part for _, part, _ in best))
    looks = plotting.looks(parts)
    figure = plotting.figure("screen", 6.2)
    panels = figure.subplots(2, 2)
    for axes, sweep in zip((panels[0, 0], panels[0, 1], panels[1, 0]), ("n", "P", "cells per axis"), strict=True):
        for part in parts:
            curve = {value: s for (kind, name, value), s in best.items() if kind == sweep and name == part}
            if curve:
                axes.plot(list(curve), list(curve.values()), markersize=4, label=part, **looks[part].marked)
        axes.set(xlabel=sweep, ylabel="CPU seconds, one thread", xscale="log", yscale="log")
        ticks = sorted({value for kind, _, value in best if kind == sweep})
        axes.set_xticks(ticks, [str(v) for v in ticks])
        axes.minorticks_off()
    for axes in panels.flat[:3]:
        plotting.label_ends(axes)
    axes = panels[1, 1]
    values = sorted({value for kind, _, value in best if kind == "n"})
    bottom = np.zeros(len(values))
    for part in EPISODE:
        height = np.array([best["n", part, value] for value in values])
        axes.bar([str(v) for v in values], height, bottom=bottom, color=looks[part].colour, label=part)
        bottom += height
    axes.set(xlabel="n", ylabel="CPU seconds", title="one episode of ActSafe with the robust program")
    plotting.legend_beside(axes)
    table = []
    for (kind, part), group in grouped(rows, "sweep", "part").items():
        values = sorted({r["value"] for r in group})
        seconds = [best[kind, part, value] for value in values]
        slope = np.polyfit(np.log(values), np.log(np.maximum(seconds, 1e-9)), 1)[0] if len(values) > 1 else np.nan
        last = np.log(seconds[-1] / seconds[-2]) / np.log(values[-1] / values[-2]) if len(values) > 1 else np.nan
        table.append((part, kind, f"{values[0]}–{values[-1]}", f"{1e3 * seconds[0]:.1f}", f"{1e3 * seconds[-1]:.1f}",
                      f"{slope:.2f}", f"{last:.2f}"))  # fmt: skip
    columns = ("part", "grows with", "from–to", "ms at the smallest", "ms at the largest", "exponent", "… at the end")
    top = max(value for kind, _, value in best if kind == "n")
    whole = sum(best["n", part, top] for part in EPISODE)
    queries = runs[0].arguments.candidates * 5 * 20 * 10
    notes = [
        f"Shares of one episode at n = {top}: "
        + ", ".join(f"{part} {100 * best['n', part, top] / whole:.0f} %" for part in EPISODE)
        + f" of {whole:.2f} s. The planning step makes {queries} GP queries; the published ones make 0.5–4.5 million."
    ]
    return Report(figures={"scaling": figure}, tables={"scaling": Table(columns=columns, rows=table)}, notes=notes)


EXPERIMENT = Experiment(
    name="check-scaling",
    title="Bottlenecks: cost of each part against data, policies, grid and candidates",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            data=30, policies=2, cells=12, candidates=4, sweep_data=(30, 60), sweep_policies=(2,), sweep_cells=(12,),
            sweep_candidates=(4,), repeats=1,
        ),
        "quick": Arguments(),
        "full": Arguments(
            data=480, policies=64, cells=128, candidates=100, sweep_data=(60, 120, 240, 480, 960, 1920),
            sweep_policies=(16, 32, 64, 128), sweep_cells=(64, 96, 128, 192), sweep_candidates=(50, 100, 200, 500),
            repeats=3,
        ),
    },
    seeds={"smoke": 1, "quick": 2, "full": 3},
    run=run,
    report=report,
)  # fmt: skip
