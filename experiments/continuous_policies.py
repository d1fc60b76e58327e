"""Continuous policy classes: gradient searches propose, the robust program decides.

The first reference plant with u = clip(k (g − x)), (g, k) ∈ [−0.6, 1.4] × [1, 6], x₀ = −0.5, cost 1{x > 1}, d = 0.2, from
S_0 = {g ∈ {−0.5, −0.45, −0.4}, k = 3}. Every arm runs the same ActSafe loop with the same certifier (robust program, D rule)
and the same back-off; arms differ in how parameters are proposed. The truth of every (g, k) is enclosed by two sweeps with
the true f.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gpsafe.algorithms.actsafe_continuous import ContinuousActSafe, ContinuousRun
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning.search import AugmentedLagrangian, BotorchSearch, FiniteGrid, LogBarrier, RandomSearch, Search
from gpsafe.planning.search.rollouts import Pessimism
from gpsafe.policies import AffinePolicies
from gpsafe.policies.parametric import set_point_family
from gpsafe.policies.rollout import closed_loop
from gpsafe.safety.safe_parameters import SafeParameters, certified_boxes, lipschitz_boxes, sound_upper
from gpsafe.safety.safe_set import policy_distance
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_1d
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run

from ._report.continuous import draw

SHAPES = ((0.3, 1.0), (0.15, 0.6), (0.08, 0.4), (0.04, 0.25), (0.02, 0.12), (0.01, 0.06), (0.005, 0.03))
INITIAL = ((-0.5, 3.0), (-0.45, 3.0), (-0.4, 3.0))
FAMILY = set_point_family((-0.6, 1.4), (1.0, 6.0), input_box=Box(vector(-1.0), vector(1.0)))


@dataclass(frozen=True)
class Arguments:
    """Sizes; the arms are fixed in the file."""

    episodes: int = 8
    """Episodes of exploration."""
    exploit: int = 2
    """Episodes that follow, searched for reward."""
    starts: int = 6
    """Certified parameters a search starts from."""
    steps: int = 16
    """Evaluations with gradient per start of a search (random search gets as many points)."""
    rounds: int = 4
    """Bisection steps back from a refused proposal."""
    cells: int = 700
    """Cells of the certifier's grid on [-2, 1.5]."""
    truth_goals: int = 40
    """Cells of the truth in g."""
    truth_gains: int = 20
    """Cells of the truth in k."""
    grid_goals: int = 24
    """Set-points of the finite class."""
    grid_gains: int = 12
    """Gains of the finite class."""
    boxed: int = 48
    """Members around which certified boxes are sought at the end."""


@dataclass(frozen=True, slots=True)
class Arm:
    """How parameters are proposed."""

    search: Search
    pessimism: Pessimism
    rounds: int


def arms(a: Arguments) -> dict[str, Arm]:
    """All of them; the finite class is certified point by point, without back-off."""
    barrier = LogBarrier(steps=a.steps)
    lagrangian = AugmentedLagrangian(outer=max(1, a.steps // 4), inner=min(4, a.steps))
    grid = FiniteGrid(FAMILY.to_unit(FAMILY.grid((a.grid_goals, a.grid_gains))))
    return {
        "log-barrier, mean": Arm(barrier, "mean", a.rounds),
        "log-barrier, hallucinated": Arm(barrier, "hallucinated", a.rounds),
        "log-barrier, sampled": Arm(barrier, "sampled", a.rounds),
        "lagrangian, hallucinated": Arm(lagrangian, "hallucinated", a.rounds),
        "lagrangian, sampled": Arm(lagrangian, "sampled", a.rounds),
        "BoTorch SLSQP, sampled": Arm(BotorchSearch(iterations=a.steps), "sampled", a.rounds),
        "random, sampled": Arm(RandomSearch(samples=a.steps + 1), "sampled", a.rounds),
        "finite grid": Arm(grid, "mean", 0),
    }


@lru_cache(maxsize=1)
def plant() -> RKHSTwin:
    """The reference plant."""
    return reference_1d()


def program(cells: int) -> RobustDP:
    """The certifier."""
    system = plant()
    grid = Grid(Box(vector(-2.0), vector(1.5)), (cells,))
    return RobustDP(grid, Task.of(system))


def learner() -> tuple[GP, Mixture]:
    """The model before data, and the confidence bound."""
    system = plant()
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    return model, Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)


def distance(first: AffinePolicies, second: AffinePolicies) -> Tensor:
    """D(π, π′)."""
    system = plant()
    return policy_distance(
        first, system.known, system.kernels, rkhs_norm=system.rkhs_norm, outputs=(0,), noise_std=system.noise_std,
        horizon=system.horizon, ceiling=system.cost.ceiling, others=second,
    )  # fmt: skip


def true_cost(theta: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Rigorous lower and upper ends of J_c(π_θ, f*), (P,)."""
    model, bound = learner()
    fine, confidence = program(2 * cells), ConfidenceSet(bound).update(model)
    ends = []
    for part in theta.split(256):
        enclosure = fine.enclosure(confidence, FAMILY(part))
        exact = enclosure.with_residual(plant().residual_fn(enclosure.z))
        ends.append((fine.lower(exact), fine.upper(exact)))
    return torch.cat([e[0] for e in ends]), torch.cat([e[1] for e in ends])


def true_reward(theta: Tensor) -> Tensor:
    """J_r(π_θ, f*), estimated on 64 common noise paths, (P,)."""
    system = plant()
    noise = sample_noise(system.noise_std, (system.horizon, 1, 64), torch.Generator().manual_seed(123))
    states, inputs = closed_loop(system.mean, FAMILY(theta), system.initial_state, noise)
    return system.reward(states[..., :-1, :], inputs).sum(-1).mean(-1)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """The truth, then every arm with the same plant noise."""
    methods = arms(arguments)
    record.piece("truth", lambda: _truth(arguments))
    for number, (name, arm) in enumerate(methods.items()):
        record.progress(number, len(methods), name)
        key = name.lower().replace(", ", "-").replace(" ", "-")
        record.piece(f"arm/{key}", lambda name=name, arm=arm: _arm(arguments, name, arm, seed))
    record.progress(len(methods), len(methods), "done")


def _truth(a: Arguments) -> Piece:
    theta = FAMILY.grid((a.truth_goals, a.truth_gains))
    lower, upper = true_cost(theta, a.cells)
    return Piece([], {"theta": theta, "lower": lower, "upper": upper, "reward": true_reward(theta)})


def _arm(a: Arguments, name: str, arm: Arm, seed: int) -> Piece:
    system, dp = plant(), program(a.cells)
    model, bound = learner()
    algorithm = ContinuousActSafe(
        system, FAMILY, torch.tensor(INITIAL, dtype=torch.float64), model, bound, dp, arm.search, distance,
        episodes=a.episodes, exploit=a.exploit, starts=a.starts, rounds=arm.rounds, pessimism=arm.pessimism,
        rollouts={"paths": 4, "draws": 6},
    )  # fmt: skip
    found = algorithm.run(torch.Generator().manual_seed(10_000 + seed))
    rows = [_row(name, found, i, a.cells) for i in range(len(found.episodes))]
    return Piece(rows, _tensors(a, found, dp))


def _row(name: str, found: ContinuousRun, i: int, cells: int) -> dict[str, Any]:
    episode, budget = found.episodes[i], plant().budget
    feasible, accepted = episode.proposals.feasible, episode.decisions.accepted
    lower, upper = true_cost(episode.decisions.theta, cells) if len(accepted) else (torch.zeros(0), torch.zeros(0))
    own_lower, own_upper = true_cost(episode.theta.unsqueeze(0), cells)
    return {
        "arm": name,
        "episode": episode.number,
        "goal": episode.goal,
        "members": episode.size,
        "g": float(episode.theta[0]),
        "k": float(episode.theta[1]),
        "cost": episode.cost,
        "steps": len(episode.states) - 1,
        "true_cost_lower": float(own_lower),
        "true_cost_upper": float(own_upper),
        "true_reward": float(true_reward(episode.theta.unsqueeze(0))),
        "proposals": len(accepted),
        "accepted": int(accepted.sum()),
        "by_lipschitz": episode.decisions.rule.count("lipschitz"),
        "feasible": int(feasible.sum()),
        "feasible_refused": int((feasible & ~accepted).sum()),
        "feasible_unsafe": int((feasible & (lower > budget)).sum()),
        "feasible_safe": int((feasible & (upper <= budget)).sum()),
        "accepted_not_safe": int((accepted & (upper > budget)).sum()),
        "retreats": int(((episode.decisions.fraction > 0) & ~accepted).sum()),
        "calls": episode.decisions.calls,
        "evaluations": episode.proposals.evaluations,
        "search_seconds": episode.seconds[0],
        "certifier_seconds": episode.seconds[1],
        "falsified": found.falsified is not None,
    }


def _tensors(a: Arguments, found: ContinuousRun, dp: RobustDP) -> dict[str, Tensor]:
    """What is known at the end: members, their true costs, certified boxes, and what F_n certifies on the truth's grid."""
    safe, confidence = found.safe, found.confidence
    lower, upper = true_cost(safe.theta, a.cells)
    judge = sound_upper(dp, confidence, FAMILY)
    value = judge(safe.theta)  # by the last F_n: S_0 gets a value too, where it is certified
    certified = torch.nonzero(value <= safe.budget).flatten()
    chosen = certified[_spread_out(safe.theta[certified], a.boxed)]
    start = SafeParameters.initial(safe.theta[:1], budget=safe.budget)
    some = start.add(safe.theta[chosen], value[chosen], episode=len(found.episodes) + 1, bound=dp.name, rule="bound")
    index, shapes = torch.arange(1, len(some)), torch.tensor(SHAPES, dtype=torch.float64)
    boxed, _ = certified_boxes(some, dp, confidence, family=FAMILY, index=index, shapes=shapes)
    lipschitz = lipschitz_boxes(some, FAMILY, distance, shape=FAMILY.box.upper - FAMILY.box.lower)
    grid = FAMILY.grid((a.truth_goals, a.truth_gains))
    return {
        "theta": safe.theta,
        "entered": torch.tensor([w.episode for w in safe.witnesses]),
        "value": safe.values,
        "true_lower": lower,
        "true_upper": upper,
        "box_center": boxed.theta[1:],
        "box_radius": boxed.radius[1:],
        "lipschitz_radius": lipschitz[1:],
        "covered": boxed.covers(grid),
        "known": judge(grid) <= safe.budget,
        "proposed": torch.cat([e.decisions.theta for e in found.episodes]),
        "proposed_feasible": torch.cat([e.proposals.feasible for e in found.episodes]),
        "proposed_accepted": torch.cat([e.decisions.accepted for e in found.episodes]),
        "executed": torch.stack([e.theta for e in found.episodes]),
    }


def _spread_out(theta: Tensor, count: int) -> Tensor:
    """Indices of at most `count` points, farthest first."""
    unit = FAMILY.to_unit(theta)
    chosen = [int(unit[:, 0].argmax())]
    away = torch.cdist(unit, unit[chosen]).squeeze(-1)
    while len(chosen) < min(count, len(theta)):
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, torch.cdist(unit, unit[chosen[-1:]]).squeeze(-1))
    return torch.tensor(chosen)


def report(runs: Sequence[Run]) -> Report:
    """See `_continuous_report`."""
    return draw(runs, FAMILY, budget=plant().budget)


EXPERIMENT = Experiment(
    name="continuous-policies",
    title="Continuous policy classes: log-barrier, augmented Lagrangian and BoTorch propose, the robust program decides",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            episodes=1, exploit=1, starts=2, steps=2, rounds=1, cells=100, truth_goals=6, truth_gains=3, grid_goals=5,
            grid_gains=2, boxed=2,
        ),
        "quick": Arguments(),
        "full": Arguments(episodes=15, exploit=3, steps=32, rounds=6, truth_goals=100, truth_gains=40, grid_goals=41,
                          grid_gains=21, boxed=200),
    },
    seeds={"smoke": 1, "quick": 3, "full": 5},
    run=run,
    report=report,
)  # fmt: skip
