"""ActSafe with a rich policy class on the pendulum, in theory mode: the robust program certifies 2032 policies.

The plant is exactly in the RKHS (`reference_pendulum`: θ = 0 hangs, θ ≤ 1.2 rad is safe, T = 30, d = 0.2). The class
(`_policies_family`) holds set points with 16 feedback gains, with and without gravity compensation, with energy pumping,
and energy levels. From four given set points the safe set grows; it is held against the true one, which sweeps with
the true f bound from both sides. Two controls take the prior mean for the truth (zero width).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpsafe.algorithms.actsafe import ActSafe, ActSafeRun
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Constant, ConvexProgram
from gpsafe.cost.grid import Grid
from gpsafe.cost.pruned import PrunedSession
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.models import GP
from gpsafe.policies.features import FeaturePolicies
from gpsafe.policies.rollout import transitions
from gpsafe.safety.safe_set import policy_distance
from gpsafe.systems.known import SineKnown
from gpsafe.systems.reference import reference_pendulum
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record

from ._report.policies import report
from ._report.policies_family import Family, family
from ._report.policies_loss import losses
from ._report.policies_truth import BOX, both_sides, paths, true_costs


@dataclass(frozen=True, slots=True)
class Arguments:
    """Sizes of the class, of the grid and of the run."""

    targets: int = 36
    """Set points per gain; energy levels are two fifths of it. 36 with 4 gains gives 2032 policies."""
    gains: int = 4
    """Values of each gain, at most 4."""
    cells_angle: int = 192
    """Cells of the program over θ ∈ [−1.6, 1.6] rad."""
    cells_speed: int = 112
    """Cells over ω ∈ [−5, 5] rad/s."""
    finer: float = 1.5
    """Cells an axis of the second grid, for what the first leaves uncertified, in units of the first's; 1: no second grid."""
    split: int = 2
    """Sub-cells of means per cell and axis."""
    episodes: int = 5
    """Episodes of exploration."""
    delta: float = 0.1
    """Failure probability of the confidence set."""
    candidates: int = 48
    """New members whose exploration value is computed per episode; 0 for all of them (the theorem's maximum)."""
    shrink: float = 0.75
    """A policy is evaluated again when its probed width fell below this share of what it was."""
    control_every: int = 6
    """The controls run on every so many-th policy."""
    push: float = 0.6
    """Disturbance of the second control's plant, rad/s per step (a pilot with 0.1, 0.3 and 0.45 left S_1 safe)."""


def plant(push: float = 0.0) -> RKHSTwin:
    """The reference pendulum; with `push` (rad/s per step), a plant that neither the prior nor B describes."""
    system = reference_pendulum()
    known = system.known
    assert isinstance(known, SineKnown)
    return replace(system, known=replace(known, c=known.c + torch.tensor([0.0, push], dtype=torch.float64)))


def learner(arguments: Arguments) -> tuple[GP, ConfidenceBound]:
    """The model before data and its bound, with the true B of the plant without push."""
    system = reference_pendulum()
    sigma = float(system.noise_std[1])
    model = GP.create(
        system.kernels, sigma**2, nx=2, nu=1, noise_std=system.noise_std, outputs=system.outputs, prior=system.known
    )
    norm = tuple(system.rkhs_norm.tolist())
    return model, ConvexProgram(rkhs_norm=norm, subgaussian=sigma, delta=arguments.delta, method="table")


def program(arguments: Arguments, system: RKHSTwin, finer: float = 1.0) -> RobustDP:
    """The robust program on the whole grid, with `finer` times as many cells an axis."""
    cells = round(finer * arguments.cells_angle), round(finer * arguments.cells_speed)
    return RobustDP(Grid(BOX, cells, (arguments.split, arguments.split)), Task.of(system))


def truth(arguments: Arguments) -> Piece:
    """Both sides of J_c(π, f*), rewards, and the states visited, for the whole class."""
    system, members = plant(), family(targets=arguments.targets, gains=arguments.gains)
    model, bound = learner(arguments)
    grid = program(arguments, system).grid
    confidence = ConfidenceSet(bound).update(model)
    found = true_costs(system, grid, confidence, members.policies, region=members.region, seed=0)
    tensors = {name: getattr(found, name) for name in ("lower", "upper", "estimate", "reward", "visits")}
    return Piece([], tensors)


def undecided(arguments: Arguments, first: Piece) -> Piece:
    """Both sides once more, on the whole grid, for the policies that the windows left open: they may leave their window."""
    system, members = plant(), family(targets=arguments.targets, gains=arguments.gains)
    model, bound = learner(arguments)
    lower, upper = first.tensors["lower"], first.tensors["upper"]
    index = torch.nonzero((upper > system.budget) & (lower <= system.budget)).flatten()
    confidence = ConfidenceSet(bound).update(model)
    dp, chosen = program(arguments, system), members.policies.select(index)
    low, high = both_sides(system, dp, confidence, chosen, first.tensors["estimate"][index])
    sides = {"lower": torch.maximum(lower[index], low), "upper": torch.minimum(upper[index], high)}
    return Piece([], {"index": index, **sides})


def explore(
    arguments: Arguments, members: Family, system: RKHSTwin, bound: ConfidenceBound, *, episodes: int, seed: int
) -> tuple[ActSafeRun, list[dict[str, float]]]:
    """One run of ActSafe, and what its session did in each episode."""
    model, _ = learner(arguments)
    dp = program(arguments, system)
    finer = program(arguments, system, arguments.finer) if arguments.finer > 1 else None
    sessions: list[PrunedSession] = []

    def start(confidence: ConfidenceSet) -> PrunedSession:
        probing = torch.Generator().manual_seed(10_000 + seed)
        options = {
            "shrink": arguments.shrink,
            "candidates": arguments.candidates or None,
            "region": members.region,
            "finer": finer,
        }
        sessions.append(PrunedSession(dp, confidence, members.policies, probing, **options))
        return sessions[-1]

    initial = members.initial.tolist()
    algorithm = ActSafe(
        system, members.policies, initial, model, bound, dp, episodes=episodes, start=start, unchecked=not bound.sound
    )
    begun = time.perf_counter()
    run = algorithm.run(torch.Generator().manual_seed(seed))
    log: list[dict[str, float]] = [dict(entry) for entry in sessions[0].log]
    for entry in log:
        entry["seconds"] = (time.perf_counter() - begun) / len(log)
    return run, log


def _entered(run: ActSafeRun, num: int) -> Tensor:
    """The episode at which each policy entered, −1 for those outside, (P,)."""
    return torch.tensor([run.safe_set.witnesses[i].episode if i in run.safe_set else -1 for i in range(num)])


def sound(arguments: Arguments, seed: int) -> Piece:
    """The run in theory mode."""
    system, members = plant(), family(targets=arguments.targets, gains=arguments.gains)
    _, bound = learner(arguments)
    run, log = explore(arguments, members, system, bound, episodes=arguments.episodes, seed=seed)
    rows = []
    for episode, work in zip(run.episodes, log, strict=False):
        counts = torch.bincount(members.kind[run.safe_sets[episode.number].members], minlength=4).tolist()
        rows.append(
            {
                "episode": episode.number,
                "size": episode.size,
                **{f"size_{k}": n for k, n in enumerate(counts)},
                "policy": episode.policy,
                "kind": int(members.kind[episode.policy]),
                "exploration": episode.exploration,
                "beta": episode.beta[0],
                "cost": episode.cost,
                "max_angle": float(episode.states[:, 0].max()),
                "falsified": run.falsified is not None,
                **work,
            }
        )
    states = torch.stack([episode.states for episode in run.episodes])
    return Piece(rows, {"entered": _entered(run, members.policies.num), "states": states})


def control(arguments: Arguments, seed: int, push: float) -> Piece:
    """The prior mean taken for the truth (zero width) before any data, on every few policies; truth by Monte Carlo."""
    system, whole = plant(push), family(targets=arguments.targets, gains=arguments.gains)
    kept = torch.arange(whole.policies.num) % arguments.control_every == 0
    kept[whole.initial] = True
    members = whole.select(torch.nonzero(kept).flatten())
    sigma, norm = float(system.noise_std[1]), tuple(system.rkhs_norm.tolist())
    wrong = Constant(rkhs_norm=norm, subgaussian=sigma, delta=arguments.delta, value=1e-6)
    run, _ = explore(arguments, members, system, wrong, episodes=1, seed=seed)
    certified = run.safe_set.members
    cost = system.cost(paths(system, members.policies.select(certified), count=200, seed=1)).sum(-1)
    unsafe = cost.mean(-1) - 3 * cost.std(-1) / 200**0.5 > system.budget
    row = {
        "push": push,
        "policies": members.policies.num,
        "certified": len(certified),
        "unsafe": int(unsafe.sum()),
        "worst": float(cost.mean(-1).max()),
        "executed_cost": run.episodes[0].cost,
    }
    return Piece([row], {})


def loss(arguments: Arguments, run: Piece, first: Piece) -> Piece:
    """What keeps every few-th policy that is proved safe out of the set, on the data of the run."""
    system, whole = plant(), family(targets=arguments.targets, gains=arguments.gains)
    model, bound = learner(arguments)
    assert isinstance(bound, ConvexProgram)
    for row, states in zip(run.rows, run.tensors["states"], strict=True):
        policy = whole.policies.select(torch.tensor([int(row["policy"])]))
        model = model.condition(transitions(states, policy(states[:-1].unsqueeze(0))[0]))
    index = torch.nonzero(first.tensors["upper"] <= system.budget).flatten()[:: 2 * arguments.control_every]
    chosen = whole.select(index)
    programs = (program(arguments, system), program(arguments, system, arguments.finer))
    return Piece(losses(system, programs, model, bound, chosen.policies, chosen.region), {"index": index})


def lipschitz(arguments: Arguments) -> Piece:
    """How far D(π, π′) carries: by the change of a constant input, and over all pairs of the class."""
    system, members = plant(), family(targets=arguments.targets, gains=arguments.gains).policies
    options: dict[str, Any] = {"rkhs_norm": system.rkhs_norm, "outputs": system.outputs, "ceiling": system.cost.ceiling}
    options |= {"noise_std": system.noise_std, "horizon": system.horizon}
    rows = []
    for change in (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3, 1e-2):
        theta = torch.zeros(2, 1, len(members.features), dtype=torch.float64)
        theta[1, 0, 0] = change  # of the constant feature
        two = FeaturePolicies(theta, members.features, members.input_box)
        distance = policy_distance(two, system.known, system.kernels, **options)
        rows.append({"change": change, "distance": float(distance[0, 1])})
    smallest = float("inf")
    for part in torch.arange(members.num).split(64):
        distance = policy_distance(members.select(part), system.known, system.kernels, others=members, **options)
        distance[torch.arange(len(part)), part] = torch.inf
        smallest = min(smallest, float(distance.min()))
    return Piece([row | {"smallest": smallest} for row in rows], {})


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """The run; with seed 0 also the truth (the plant is the same for all) and the controls (they use no data)."""
    record.progress(0, 4, "exploration")
    explored = record.piece("sound", lambda: sound(arguments, seed))
    if seed == 0:
        record.progress(1, 4, "truth")
        first = record.piece("truth", lambda: truth(arguments))
        record.piece("truth-undecided", lambda: undecided(arguments, first))
        record.piece("loss", lambda: loss(arguments, explored, first))
        for done, name, push in ((2, "control/width", 0.0), (3, "control/push", arguments.push)):
            record.progress(done, 4, name)
            record.piece(name, partial(control, arguments, seed, push))
        record.piece("lipschitz", lambda: lipschitz(arguments))
    record.progress(4, 4, "done")


EXPERIMENT = Experiment(
    name="pendulum-policies",
    title="Thousands of pendulum policies certified by the robust program in two dimensions",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            targets=3, gains=1, cells_angle=48, cells_speed=36, split=1, episodes=2, candidates=2, control_every=4
        ),
        "quick": Arguments(),
        "full": Arguments(cells_angle=320, cells_speed=200, episodes=12, candidates=0, shrink=0.9),
    },
    seeds={"smoke": 1, "quick": 3, "full": 10},
    run=run,
    report=report,
)
