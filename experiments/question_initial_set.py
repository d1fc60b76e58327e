"""Open question 1 of the paper: what if the initial safe set S_0 is small, badly placed, or wrong?

The first reference plant (`gpsafe.systems.reference`) with 41 set-point policies, 29 of them truly safe. Twelve kinds of S_0:
few members, members at the far end or at the edge of what is safe, sets that contain unsafe policies, and sets chosen by
simulating a wrong prior. Each is explored by ActSafe and by the greedy explorer in the same pessimistic set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.algorithms.actsafe import ActSafe, ActSafeRun
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.sets import Box
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_1d
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report.statistics import Share, grouped, mean_interval, plus_minus

CAPTION = (
    "Intervals are 95 %. A member is refuted when inf over F_n of its cost, by the lower sweep of the robust program, exceeds "
    "d. The last column counts, on the same runs, the unsafe episodes up to each policy's refutation: what would be left if "
    "refuted members were expelled, as long as the run does not change otherwise."
)
GRID = Box(vector(-1.0), vector(1.5))
GOALS = torch.linspace(-0.5, 1.5, 41, dtype=torch.float64)
EXPLORERS = {"actsafe": 0.0, "greedy in S_n": 1e9}  # threshold below which exploration ends
SMALL = ("1 lowest", "2 lowest", "5 lowest", "10 lowest", "1 at random", "1 at the edge", "lowest and edge")
WRONG = ("5 lowest + 1 unsafe", "5 lowest + 3 unsafe", "3 unsafe", "prior: mean only", "prior: biased by -0.1")


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    kinds: tuple[str, ...] = (*SMALL, *WRONG)
    """Which kinds of S_0."""
    episodes: int = 14
    """Episodes of exploration."""
    cells: int = 250
    """Cells of the robust program."""

    def __post_init__(self) -> None:
        _require.names("--kinds", self.kinds, (*SMALL, *WRONG))


@cache
def _plant() -> RKHSTwin:
    return reference_1d()


def _program(cells: int) -> RobustDP:
    plant = _plant()
    return RobustDP(Grid(GRID, (cells,)), Task.of(plant))


def _policies() -> AffinePolicies:
    return line.set_points(GOALS)


def _learner() -> tuple[GP, Mixture]:
    plant = _plant()
    noise = float(plant.noise_std[0])
    model = GP.create(plant.kernels, noise**2, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
    return model, Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=noise, delta=0.1)


@cache
def _truth(cells: int) -> line.Truth:
    program, (model, bound) = _program(cells), _learner()
    enclosure = program.enclosure(ConfidenceSet(bound).update(model), _policies())
    exact = enclosure.with_residual(_plant().residual_fn(enclosure.z))
    return line.Truth(program.lower(exact), program.upper(exact))


def believed_safe(offset: float, paths: int = 500) -> list[int]:
    """Policies that stay within the budget when x⁺ = x + 0.25u + offset + w is simulated."""
    plant = _plant()
    known = AffineKnown(vector(1.0).reshape(1, 1), vector(0.25).reshape(1, 1), vector(offset))
    noise = plant.noise_std * torch.randn(
        plant.horizon, 1, paths, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )
    x, cost = plant.initial_state.expand(len(GOALS), paths, 1), torch.zeros(len(GOALS), paths, dtype=torch.float64)
    for t in range(plant.horizon):
        cost = cost + plant.cost(x)
        x = known(x, _policies()(x)) + noise[t]
    return torch.nonzero(cost.mean(-1) <= plant.budget).flatten().tolist()


def initial_set(kind: str, truth: line.Truth, generator: torch.Generator) -> list[int]:
    """S_0 of a kind; unsafe and random members are drawn."""
    budget = _plant().budget
    safe = torch.nonzero(truth.safe(budget)).flatten()
    unsafe = torch.nonzero(truth.unsafe(budget)).flatten()

    def some(of: Tensor, count: int) -> list[int]:
        return of[torch.randperm(len(of), generator=generator)[:count]].tolist()

    edge = int(safe[-1])
    sets = {
        "1 at random": some(safe, 1),
        "1 at the edge": [edge],
        "lowest and edge": [0, edge],
        "5 lowest + 1 unsafe": [*range(5), *some(unsafe, 1)],
        "5 lowest + 3 unsafe": [*range(5), *some(unsafe, 3)],
        "3 unsafe": some(unsafe, 3),
        "prior: mean only": believed_safe(0.0),
        "prior: biased by -0.1": believed_safe(-0.1),
    }
    return sets[kind] if kind in sets else list(range(int(kind.split()[0])))


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Every S_0 with both explorers; the seed draws noise and random members."""
    for i, kind in enumerate(arguments.kinds):
        record.progress(i, len(arguments.kinds), kind)
        record.piece(f"kind-{i:02d}", lambda kind=kind: Piece(list(_rows(arguments, kind, seed)), {}))
    record.progress(len(arguments.kinds), len(arguments.kinds), "done")


def _rows(arguments: Arguments, kind: str, seed: int) -> Iterator[dict[str, Any]]:
    truth = _truth(8 * arguments.cells)
    members = sorted(set(initial_set(kind, truth, torch.Generator().manual_seed(seed))))
    model, bound = _learner()
    for explorer, threshold in EXPLORERS.items():
        program = _program(arguments.cells)
        algorithm = ActSafe(
            _plant(), _policies(), members, model, bound, program, episodes=arguments.episodes, threshold=threshold
        )
        found = algorithm.run(torch.Generator().manual_seed(1000 + seed))
        safe, unsafe = truth.safe(_plant().budget), truth.unsafe(_plant().budget)
        sizes = [int(safe[s.members].sum()) for s in found.safe_sets]
        target = 0.9 * int(safe.sum())
        reached = [n for n, size in enumerate(sizes) if size >= target]
        executed = [episode.policy for episode in found.episodes]
        suspects = [i for i in members if bool(unsafe[i])]
        refuted = dict(zip(suspects, _refutations(found, program, suspects), strict=True))
        yield {
            "kind": kind,
            "explorer": explorer,
            "size_0": len(members),
            "unsafe_0": int(unsafe[members].sum()),
            "true_safe": int(safe.sum()),
            "safe_members": sizes[-1],
            "to_90": reached[0] if reached else -1,
            "certified_unsafe": int(unsafe[found.safe_set.members].sum()) - int(unsafe[members].sum()),
            "unsafe_episodes": int(unsafe[executed].sum()),
            "violating_steps": sum(int(episode.cost) for episode in found.episodes),
            "episodes": len(executed),
            "falsified": found.falsified is not None,
            "refuted": float(np.mean([n >= 0 for n in refuted.values()])) if refuted else float("nan"),
            "unsafe_before_refuted": sum(
                e.policy in refuted and (refuted[e.policy] < 0 or e.number <= refuted[e.policy]) for e in found.episodes
            ),
        } | {f"grown_{n}": size for n, size in enumerate(sizes)}


def _refutations(found: ActSafeRun, program: RobustDP, suspects: list[int]) -> list[int]:
    """First n at which inf_{f ∈ F_n} J_c(π, f) > d, for each suspect; −1 if never."""
    if not suspects:
        return []
    first = [-1] * len(suspects)
    confidence = ConfidenceSet(found.confidence.bound)
    enclosure = None
    for n, generation in enumerate(found.confidence.generations):
        confidence = confidence.update(generation)
        if enclosure is None:
            enclosure = program.enclosure(confidence, _policies().select(torch.tensor(suspects)))
        enclosure = enclosure.refine(confidence)
        for k, lower in enumerate(program.lower(enclosure).tolist()):
            if first[k] < 0 and lower > _plant().budget:
                first[k] = n
    return first


def report(runs: Sequence[Run]) -> Report:
    """Growth, violations and refutations by kind of S_0."""
    rows = [row for one in runs for piece in one.pieces.values() for row in piece.rows]
    groups = grouped(rows, "kind", "explorer")
    columns = (
        "S_0", "explorer", "|S_0| (unsafe)", "safe |S_n|/|S*|", "episodes to 90 % (runs)",
        "runs with a newly certified unsafe policy", "unsafe episodes", "violating steps",
        "unsafe members refuted by F_n", "unsafe episodes before that",
    )  # fmt: skip
    table = []
    for (kind, explorer), group in groups.items():
        reached = [r["to_90"] for r in group if r["to_90"] >= 0]
        table.append(
            (
                kind, explorer,
                f"{np.mean([r['size_0'] for r in group]):.0f} ({np.mean([r['unsafe_0'] for r in group]):.0f})",
                plus_minus((r["safe_members"] / r["true_safe"] for r in group), 3),
                f"{np.median(reached):.0f} ({len(reached)}/{len(group)})" if reached else f"– (0/{len(group)})",
                str(Share.of(r["certified_unsafe"] > 0 for r in group)),
                plus_minus((r["unsafe_episodes"] for r in group), 1),
                plus_minus((r["violating_steps"] for r in group), 1),
                _percent(r["refuted"] for r in group),
                plus_minus((r["unsafe_before_refuted"] for r in group), 1),
            )
        )  # fmt: skip
    figure = plotting.figure("screen", 6.7)
    panels = figure.subplots(2, 2)
    _growth(panels[0, 0], groups, SMALL, "S_0 right: small or far")
    _growth(panels[0, 1], groups, WRONG, "S_0 wrong")
    _bars(panels[1, 0], groups, "to_90", "episodes to 90 % of S* (mean)", SMALL)
    _violations(panels[1, 1], groups)
    return Report(
        figures={"initial-set": figure}, tables={"initial-set": Table(columns=columns, rows=table, caption=CAPTION)}
    )


def _percent(values: Any) -> str:
    array = np.array([v for v in values if v is not None], dtype=float)
    array = array[~np.isnan(array)]
    return f"{100 * array.mean():.0f} %" if len(array) else "–"


def _growth(axes: Any, groups: dict[tuple[Any, ...], list[Any]], kinds: Sequence[str], title: str) -> None:
    for kind, look in plotting.looks(kinds).items():
        group = groups.get((kind, "actsafe"), [])
        if not group:
            continue
        length = max(int(r["episodes"]) for r in group) + 1
        sizes = np.array([[r.get(f"grown_{n}", r["safe_members"]) for n in range(length)] for r in group], dtype=float)
        axes.plot(range(length), sizes.mean(0) / group[0]["true_safe"], label=kind, **look.line)
    axes.set(xlabel="episode n", ylabel="safe |S_n| / |S*| (mean)", title=f"{title} (ActSafe)", ylim=(0, 1.05))
    plotting.label_ends(axes)


def _bars(axes: Any, groups: dict[tuple[Any, ...], list[Any]], key: str, label: str, kinds: Sequence[str]) -> None:
    kinds = [kind for kind in kinds if (kind, "actsafe") in groups]
    for k, (explorer, noun) in enumerate(zip(EXPLORERS, ("actsafe", "greedy"), strict=True)):
        spread = [mean_interval([r[key] for r in groups[kind, explorer] if r[key] >= 0] or [np.nan]) for kind in kinds]
        where = np.arange(len(kinds)) + 0.4 * k - 0.2
        axes.barh(where, [m for m, _ in spread], 0.38, xerr=[np.nan_to_num(h) for _, h in spread], color=plotting.colour(noun),
                  label=explorer)  # fmt: skip
    axes.set_yticks(np.arange(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set(xlabel=label)
    plotting.legend_beside(axes)


def _violations(axes: Any, groups: dict[tuple[Any, ...], list[Any]]) -> None:
    kinds = [kind for kind in (*SMALL, *WRONG) if (kind, "actsafe") in groups]
    bars = (
        ("unsafe_episodes", "as the paper", "paper"),
        ("unsafe_before_refuted", "if F_n may expel members", "falsified"),
    )
    for k, (key, label, noun) in enumerate(bars):
        spread = [mean_interval([r[key] for r in groups[kind, "actsafe"]]) for kind in kinds]
        where = np.arange(len(kinds)) + 0.4 * k - 0.2
        axes.barh(where, [m for m, _ in spread], 0.38, xerr=[np.nan_to_num(h) for _, h in spread], color=plotting.colour(noun),
                  label=label)  # fmt: skip
    axes.set_yticks(np.arange(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set(xlabel="episodes with an unsafe policy (ActSafe, mean per run)")
    plotting.legend_beside(axes)


EXPERIMENT = Experiment(
    name="question-initial-set",
    title="Q1: a small, badly placed or wrong initial safe set",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(kinds=("5 lowest", "3 unsafe"), episodes=2, cells=50),
        "quick": Arguments(),
        "full": Arguments(episodes=20, cells=500),
    },
    seeds={"smoke": 1, "quick": 20, "full": 50},
    run=run,
    report=report,
)
