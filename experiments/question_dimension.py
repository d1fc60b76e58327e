"""Open question 3 of the paper: cost and guarantee against the dimension of (x, u), from 2 to 8.

A chain of coupled subsystems (`gpsafe.systems.chain`): every unknown part depends on all states and inputs and has the same
RKHS norm. Sixteen set-points for the first subsystem, S_0 the three lowest. ActSafe expands with scenario tubes; on the F_n
it ends with, every bound is asked for the cost of all policies. A second part holds the policy fixed and adds data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import ConfidenceSet, ConvexProgram
from gpsafe.cost.base import CostBound
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.systems.base import sample_noise
from gpsafe.systems.chain import chain, chain_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import grouped, mean_interval, peak_memory, plus_minus

SIZES = {2: (1, 1), 3: (2, 1), 4: (2, 2), 5: (3, 2), 6: (3, 3), 7: (4, 3), 8: (4, 4)}
BOUNDS = ("scenario-tube", "total-variation", "robust-dp")
GRIDS = {1: (300,), 2: (100, 60)}


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    dimensions: tuple[int, ...] = tuple(SIZES)
    """nx + nu."""
    policies: int = 16
    """Set-points."""
    episodes: int = 10
    """Episodes of exploration."""
    samples: int = 300
    """Noise paths of the Monte-Carlo bounds."""
    pieces: int = 8
    """Boxes into which scenario tubes cut their sets."""
    compare: bool = True
    """Ask every bound, on the last F_n and on data of one policy; no: explore only."""
    data: tuple[int, ...] = (40, 160, 640)
    """Transitions of one policy, in the second part."""


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The plant, its policies and the learner before data."""

    plant: RKHSTwin
    policies: AffinePolicies
    model: GP
    bound: ConvexProgram

    @staticmethod
    def create(dimension: int, policies: int, seed: int) -> Setting:
        """The chain with nx + nu = dimension."""
        nx, nu = SIZES[dimension]
        plant = chain(nx, nu, generator=_generator(1000 * seed + dimension))
        targets = torch.linspace(-0.3, 1.35, policies, dtype=torch.float64)
        noise = plant.noise_std
        model = GP.create(
            plant.kernels, float(noise[0]) ** 2, nx=nx, nu=nu, noise_std=noise, prior=plant.known, outputs=plant.outputs
        )
        norm = tuple(plant.rkhs_norm.tolist())
        bound = ConvexProgram(rkhs_norm=norm, subgaussian=float(noise[0]), delta=0.1, method="table")
        return Setting(plant, chain_policies(nx, nu, targets), model, bound)

    def bounds(self, arguments: Arguments) -> dict[str, CostBound]:
        """Every sound bound that applies in this dimension, none of them giving up early."""
        samples = arguments.samples
        plant = self.plant
        common: dict[str, Any] = {"task": Task.of(plant), "seed": 77}
        found: dict[str, CostBound] = {
            "scenario-tube": ScenarioTube(
                **common, samples=samples, limit=3.0, anchors=4, pilot=8, pieces=arguments.pieces
            ),
            "total-variation": TotalVariation(**common, samples=samples),
        }
        if plant.nx in GRIDS:
            grid = Grid(plant.state_box, GRIDS[plant.nx])
            found["robust-dp"] = RobustDP(grid, Task.of(plant))
        return found

    def truth(self, paths: int = 4000) -> Tensor:
        """J_c(π, f*) of every policy by Monte Carlo (±0.05 or so): an estimate."""
        noise = sample_noise(self.plant.noise_std, (self.plant.horizon, 1, paths), _generator(3))
        states, _ = closed_loop(self.plant.mean, self.policies, self.plant.initial_state, noise)
        return self.plant.cost(states[..., :-1, :]).sum(-1).mean(-1)

    def width(self, confidence: ConfidenceSet) -> float:
        """Half-width of F_n for x₁⁺ along all policies' noise-free paths, relative to before data, mean."""
        noise = torch.zeros(self.plant.horizon, 1, 1, self.plant.nx, dtype=torch.float64)
        states, inputs = closed_loop(self.plant.mean, self.policies, self.plant.initial_state, noise)
        z = torch.cat([states[..., :-1, :], inputs], dim=-1)
        low, high = confidence.bounds(z)
        prior = confidence.bound.prior_width(confidence.model, z)
        return float((0.5 * (high - low)[..., 0] / prior[..., 0]).mean())


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Exploration and data sweep in every dimension."""
    jobs: list[tuple[str, Callable[[], Piece]]] = []
    for dimension in arguments.dimensions:
        jobs.append((f"explore/{dimension}", partial(_explore, arguments, dimension, seed)))
        if arguments.compare:
            jobs.append((f"data/{dimension}", partial(_data, arguments, dimension, seed)))
    for i, (key, compute) in enumerate(jobs):
        record.progress(i, len(jobs), key)
        record.piece(key, compute)
    record.progress(len(jobs), len(jobs), "done")


def _explore(arguments: Arguments, dimension: int, seed: int) -> Piece:
    task = Setting.create(dimension, arguments.policies, seed)
    budget = task.plant.budget
    tube = task.bounds(arguments)["scenario-tube"]
    assert isinstance(tube, ScenarioTube)
    algorithm = ActSafe(
        task.plant, task.policies, [0, 1, 2], task.model, task.bound, tube.with_(give_up=budget),
        episodes=arguments.episodes, patience=0,
    )  # fmt: skip
    begun = time.perf_counter()
    found = algorithm.run(_generator(7 * seed + 1))
    seconds = time.perf_counter() - begun
    truth = task.truth()
    safe = truth <= budget
    row: dict[str, Any] = {
        "part": "explore",
        "dimension": dimension,
        "seconds_run": seconds,
        "true_safe": int(safe.sum()),
        "unsafe_members": int((~safe)[found.safe_set.members].sum()),
        "violating_steps": sum(int(e.cost) for e in found.episodes),
        "falsified": found.falsified is not None,
        "width": task.width(found.confidence),
        "data": 0 if found.confidence.model.inputs is None else len(found.confidence.model.inputs),
    }
    row |= {f"share_{n}": int(safe[s.members].sum()) / int(safe.sum()) for n, s in enumerate(found.safe_sets)}
    if not arguments.compare:
        return Piece([row])
    return Piece([row, *_measure(task, found.confidence, arguments, truth, {"part": "bounds", "data": 0})])


def _measure(
    task: Setting, confidence: ConfidenceSet, arguments: Arguments, truth: Tensor, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Each bound on F_n: seconds and memory of one evaluation of all policies, excess over the truth, vacuous share."""
    rows = []
    ceiling = task.plant.horizon * task.plant.cost.ceiling
    for name, bound in task.bounds(arguments).items():
        interval, seconds, memory = peak_memory(partial(bound.evaluate, confidence, task.policies))
        safe = truth <= task.plant.budget
        upper = interval.upper
        rows.append(
            about
            | {
                "dimension": task.plant.nx + task.plant.nu,
                "bound": name,
                "seconds": seconds,
                "mebibytes": memory,
                "excess": float((upper - truth)[safe].mean()) / ceiling,
                "certified": int((upper <= task.plant.budget).sum()) / int(safe.sum()),
                "vacuous": float((upper[safe] >= 0.5 * ceiling).double().mean()),
                "below_truth": float((truth - upper).max()),
            }
        )
    return rows


def _data(arguments: Arguments, dimension: int, seed: int) -> Piece:
    """Bounds of three set-points near x₁ = 0.3 after more and more runs of the middle one."""
    task = Setting.create(dimension, arguments.policies, seed)
    plant = task.plant
    targets = torch.tensor([0.25, 0.3, 0.35], dtype=torch.float64)
    near = Setting(plant, chain_policies(plant.nx, plant.nu, targets), task.model, task.bound)
    truth, rows, model = near.truth(), [], task.model
    confidence, used = ConfidenceSet(task.bound), 0
    for count in arguments.data:
        episodes = (count - used) // plant.horizon
        noise = sample_noise(plant.noise_std, (plant.horizon, 1, episodes), _generator(11 * seed + count))
        states, inputs = closed_loop(plant.mean, near.policies.select(torch.tensor([1])), plant.initial_state, noise)
        model, used = model.condition(transitions(states[0], inputs[0])), used + episodes * plant.horizon
        confidence = confidence.update(model)
        if float(truth.min()) <= plant.budget:
            rows += _measure(near, confidence, arguments, truth, {"part": "data", "data": count})
    return Piece(rows)


def report(runs: Sequence[Run]) -> Report:
    """|S_n|/|S*|, tightness, seconds and memory against nx + nu."""
    rows = [row for one in runs for piece in one.pieces.values() for row in piece.rows]
    explore = grouped([r for r in rows if r["part"] == "explore"], "dimension")
    bounds = grouped([r for r in rows if r["part"] == "bounds"], "dimension", "bound")
    data = grouped([r for r in rows if r["part"] == "data"], "dimension", "data", "bound")
    dimensions = [d for (d,) in explore]
    if not bounds:
        return Report(figures={"dimension": _exploration(explore)}, tables={"exploration": _exploration_table(explore)})
    figure = plotting.figure("screen", 6.2)
    panels = figure.subplots(2, 3)
    _growth(panels[0, 0], explore)
    _against(panels[0, 1], dimensions, bounds, "excess", "mean (UCB − J_c)/TC over S*", "tightness on the last F_n")
    width = [mean_interval(r["width"] for r in explore[d,]) for d in dimensions]
    plotting.intervals(panels[0, 1], dimensions, [m for m, _ in width], *([m + s * h for m, h in width] for s in (-1, 1)),
                       noun="none", label="width of F_n / before data")  # fmt: skip
    plotting.label_ends(panels[0, 1])
    _extreme(
        panels[0, 2], dimensions, bounds, "seconds", min, "least s per UCB of all policies", "time (shared machine)"
    )
    panels[0, 2].set_yscale("log")
    _extreme(
        panels[1, 0], dimensions, bounds, "mebibytes", max, "largest MiB of one UCB", "memory (growth of the process)"
    )
    panels[1, 0].set_yscale("symlog", linthresh=1.0)
    counts = sorted({count for _, count, _ in data})
    for axes, name in zip(panels[1, 1:], ("scenario-tube", "total-variation"), strict=True):
        for count, style in zip(counts, ("-", "--", ":", "-."), strict=False):
            chosen = [d for d in dimensions if (d, count, name) in data]
            spread = [mean_interval(r["excess"] for r in data[d, count, name]) for d in chosen]
            axes.errorbar(chosen, [m for m, _ in spread], yerr=[np.nan_to_num(h) for _, h in spread], linestyle=style,
                          color=plotting.colour(name), marker="o", markersize=4, capsize=2, label=f"n = {count}")  # fmt: skip
        axes.set(xlabel="nx + nu", ylabel="mean (UCB − J_c)/TC", ylim=(-0.02, 1.02),
                 title=f"{name}: one policy, more data")  # fmt: skip
        axes.legend()
    tables = {"exploration": _exploration_table(explore), "bounds": _bound_table(bounds), "data": _data_table(data)}
    return Report(figures={"dimension": figure}, tables=tables)


def _exploration(explore: dict[tuple[Any, ...], list[Any]]) -> Figure:
    """S_n against n, and where every run ends."""
    figure = plotting.figure("screen", 3.2)
    left, right = figure.subplots(1, 2)
    _growth(left, explore)
    for (dimension,), group in explore.items():
        last = max(int(key[6:]) for key in group[0] if key.startswith("share_"))
        for key, marker in (("share_0", "_"), (f"share_{last}", "o")):
            right.plot(
                [dimension] * len(group), [r[key] for r in group], marker, color=plotting.colour("scenario-tube")
            )
    dimensions = [d for (d,) in explore]
    right.set(xlabel="nx + nu", ylabel="safe |S_n| / |S*|", title="every run: S_0 (–) and the last S_n (o)",
              ylim=(0, 1.05), xticks=dimensions, xlim=(min(dimensions) - 0.5, max(dimensions) + 0.5))  # fmt: skip
    return figure


def _growth(axes: Axes, explore: dict[tuple[Any, ...], list[Any]]) -> None:
    shades = plotting.ramp(max(len(explore), 1))
    for i, ((dimension,), group) in enumerate(explore.items()):
        length = sum(key.startswith("share_") for key in group[0])
        share = np.array([[r.get(f"share_{n}", np.nan) for n in range(length)] for r in group])
        axes.plot(range(length), np.nanmean(share, 0), color=shades[i], label=f"nx + nu = {dimension}")
    axes.set(xlabel="episode n", ylabel="safe |S_n| / |S*| (mean)", title="ActSafe with scenario tubes", ylim=(0, 1.05))
    plotting.label_ends(axes)


def _against(
    axes: Axes, dimensions: list[int], groups: dict[tuple[Any, ...], list[Any]], key: str, label: str, title: str
) -> None:
    for name in BOUNDS:
        chosen = [d for d in dimensions if (d, name) in groups]
        spread = [mean_interval(r[key] for r in groups[d, name]) for d in chosen]
        axes.errorbar(chosen, [m for m, _ in spread], yerr=[np.nan_to_num(h) for _, h in spread],
                      markersize=4, capsize=2, label=name, **plotting.look(name).marked)  # fmt: skip
    axes.set(xlabel="nx + nu", ylabel=label, title=title)
    plotting.label_ends(axes)


def _extreme(
    axes: Axes,
    dimensions: list[int],
    groups: dict[tuple[Any, ...], list[Any]],
    key: str,
    best: Callable[[Iterable[float]], float],
    label: str,
    title: str,
) -> None:
    for name in BOUNDS:
        chosen = [d for d in dimensions if (d, name) in groups]
        height = [best(r[key] for r in groups[d, name]) for d in chosen]
        axes.plot(chosen, height, markersize=4, label=name, **plotting.look(name).marked)
    axes.set(xlabel="nx + nu", ylabel=label, title=title)
    plotting.label_ends(axes)


def _exploration_table(explore: dict[tuple[Any, ...], list[Any]]) -> Table:
    table = []
    for (dimension,), group in explore.items():
        last = max(int(key[6:]) for key in group[0] if key.startswith("share_"))
        table.append(
            (
                dimension, SIZES[dimension], len(group), plus_minus(r["share_0"] for r in group),
                plus_minus(r[f"share_{last}"] for r in group), plus_minus(r["width"] for r in group),
                sum(r["unsafe_members"] for r in group), sum(r["violating_steps"] for r in group),
                plus_minus((r["seconds_run"] for r in group), 1),
            )
        )  # fmt: skip
    columns = ("nx + nu", "(nx, nu)", "runs", "|S_0|/|S*|", "safe |S_n|/|S*|", "width of F_n / before data",
               "unsafe members", "violating steps", "s per run")  # fmt: skip
    return Table(columns=columns, rows=table)


def _bound_table(groups: dict[tuple[Any, ...], list[Any]]) -> Table:
    table = [
        (
            dimension, name, plus_minus(r["excess"] for r in group), plus_minus(r["certified"] for r in group),
            f"{100 * np.mean([r['vacuous'] for r in group]):.0f} %", f"{min(r['seconds'] for r in group):.2f}",
            f"{max(r['mebibytes'] for r in group):.0f}",
            f"{max(r['below_truth'] for r in group):.3f}",
        )
        for (dimension, name), group in groups.items()
    ]  # fmt: skip
    columns = ("nx + nu", "bound", "(UCB − J_c)/TC over S*", "certified/|S*|", "UCB ≥ TC/2 in S*", "least s", "largest MiB",
               "largest J_c − UCB")  # fmt: skip
    caption = (
        "The last F_n of each run. J_c by Monte Carlo (4000 paths), so the last column may be positive by its error. "
        "0 MiB: the work was served from memory freed before."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _data_table(groups: dict[tuple[Any, ...], list[Any]]) -> Table:
    table = [
        (
            dimension,
            count,
            name,
            plus_minus(r["excess"] for r in group),
            f"{np.mean([r['seconds'] for r in group]):.2f}",
        )
        for (dimension, count, name), group in groups.items()
    ]
    return Table(columns=("nx + nu", "n", "bound", "(UCB − J_c)/TC", "least s"), rows=table)


EXPERIMENT = Experiment(
    name="question-dimension",
    title="Q3: cost and guarantee against the dimension of (x, u), 2 to 8",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(dimensions=(2, 3), policies=4, episodes=1, samples=16, pieces=4, data=(16,)),
        "quick": Arguments(),
        "full": Arguments(policies=32, episodes=30, samples=2000, pieces=64, data=(40, 160, 640, 2000)),
    },
    seeds={"smoke": 1, "quick": 5, "full": 10},
    run=run,
    report=report,
)
