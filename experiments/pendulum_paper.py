"""The pendulum of the ActSafe paper in its published form, with all explorers behind one flag.

Figure run: the physics with its clip, action repeat 2, 50 steps an episode, a GP on (cos θ, sin θ, ω, u) refitted after
every episode, replanning at every step by iCEM, nothing but 10 particles between the plan and |ω| ≤ 6. All of it is
heuristic. What a verifier adds is in ``pendulum_sound.py``.

What differs from the published code: outputs are (Δθ, Δω) instead of the differences of (cos θ, sin θ, ω); L-BFGS instead
of 1000 Adam steps; the posterior is tabulated once per episode and interpolated while planning (`Table`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.episode import Trajectory
from gpsafe.algorithms.learned import LearnedModel, PracticalModel, TrueModel
from gpsafe.algorithms.learner import MODEL
from gpsafe.algorithms.receding import RecedingActSafe
from gpsafe.models.base import DynamicsModel
from gpsafe.models.gp import identity_prior
from gpsafe.planning import (
    EXPLORERS,
    ICEM,
    Constraint,
    Planner,
    Table,
    angle_features,
    untrained,
)
from gpsafe.safety.shield import NotCertified
from gpsafe.sets import Box
from gpsafe.systems.base import HalfspaceCost, System, is_violation
from gpsafe.systems.pendulum import Pendulum, wrap_angle
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run

from ._report import pendulum as common
from ._report import pendulum_figures as reporting


@dataclass(frozen=True, slots=True)
class Arguments:
    """Settings of the published figure run."""

    explorers: tuple[str, ...] = (
        "actsafe-sampled",
        "opax",
        "actsafe-mean",
        "greedy",
        "optimistic",
        "safe-hucrl",
        "uniform",
    )
    """Explorers to run, each with the same plant noise."""
    episodes: int = 15
    """Episodes of exploration."""
    steps: int = 50
    """Steps of an episode."""
    samples: int = 500
    """Sequences per iCEM iteration."""
    elites: int = 50
    """Elites of iCEM."""
    iterations: int = 5
    """Iterations of iCEM."""
    horizon: int = 20
    """Planning horizon, steps."""
    particles: int = 10
    """Particles of sampled pessimism."""
    beta: float = 1.0
    """Factor on the epistemic std of a particle (1: plain posterior draws)."""
    penalty: float = 1e6
    """Price of the constraint."""
    table: tuple[int, int, int] = (90, 33, 7)
    """Nodes over (theta, omega, u) at which the posterior is tabulated for planning, once per episode."""

    @property
    def optimiser(self) -> ICEM:
        """Of planning."""
        return ICEM(self.samples, self.elites, self.iterations, self.horizon)

    def __post_init__(self) -> None:
        _require.names("--explorers", self.explorers, EXPLORERS)


def tabulated(model: DynamicsModel, counts: Sequence[int]) -> Table:
    """The table over one turn and |ω| ≤ 8."""
    box = Box(
        torch.tensor([-math.pi, -8.0, -1.0], dtype=torch.float64),
        torch.tensor([math.pi, 8.0, 1.0], dtype=torch.float64),
    )
    return Table.build(model, identity_prior, box, counts=counts, periodic=(0,))


def planner(arguments: Any, system: System, explorer: str) -> Planner:
    """The planner of an explorer."""
    cost = system.cost
    assert isinstance(cost, HalfspaceCost)
    return Planner(
        EXPLORERS[explorer],
        arguments.optimiser,
        system.input_box,
        system.reward,
        Constraint(cost),
        particles=arguments.particles,
        beta=arguments.beta,
        penalty=arguments.penalty,
    )


def keep_down(x: Tensor, u: Tensor) -> Tensor:
    """−((θ − π)² + 0.1ω²) − 0.02u², the angle wrapped."""
    theta, omega = x.unbind(-1)
    return -(wrap_angle(theta - math.pi).square() + 0.1 * omega.square()) - 0.02 * u[..., 0].square()


TASKS = {"swing-up": None, "keep-down": keep_down}


def episode_record(trajectory: Trajectory, system: System) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The row and tensors of one episode."""
    speed = trajectory.states[1:, 1].abs()
    row = {
        "max_speed": float(speed.max()),
        "violations": int(is_violation(system.cost(trajectory.states[1:])).sum()),
        "steps": len(speed),
        "planning_s": trajectory.planning_s,
        "verifying_s": trajectory.verifying_s,
        **{f"from_{name}": trajectory.sources.count(name) for name in ("plan", "stored", "fallback")},
    }
    return row, {"states": trajectory.states, "inputs": trajectory.inputs, "values": trajectory.values}


def task_piece(agent: RecedingActSafe, settings: Planner) -> Piece:
    """Zero-shot planning for both tasks with the learned model, under the learner's pessimism; empty if it may not begin."""
    rows = []
    tensors: dict[str, Tensor] = {}
    for number, (name, special) in enumerate(TASKS.items()):
        reward = special or agent.system.reward
        policy = agent.task(reward, planner=settings, number=number)
        if isinstance(policy, NotCertified):
            return Piece()
        found = agent.flown(policy, *agent.rollout(policy))
        row, kept = episode_record(found, agent.system)
        value = float(reward(found.states[:-1], found.inputs).sum())
        upright = float(wrap_angle(found.states[-1, 0]).abs())
        rows.append({"task": name, "return": value, "final_angle": upright, **row})
        tensors[name] = kept["states"]
    return Piece(rows=rows, tensors=tensors)


def learner(arguments: Arguments, system: Pendulum, explorer: str, seed: int, truth: bool = False) -> RecedingActSafe:
    """The published form, before any data; or planning with the true plant."""
    model: LearnedModel = TrueModel(system)
    if not truth:
        generator = common.generator(seed, MODEL)
        features = angle_features(system.angles)
        model = PracticalModel(
            untrained(features, nx=2, nu=1, noise_std=system.noise_std, generator=generator),
            tabulate=lambda gp: tabulated(gp, arguments.table),
            fits=lambda count: 40 if count <= arguments.steps else 15,
        )
    settings = planner(arguments, system, explorer)
    return RecedingActSafe(system, settings, model, initial_episodes=0, seed=seed, stream=common.generator)


def explore(arguments: Arguments, explorer: str, seed: int, record: Record, advance: Callable[[str], None]) -> None:
    """Exploration, then the tasks."""
    system = Pendulum(action_repeat=2, horizon=arguments.steps)
    agent = learner(arguments, system, explorer, seed)

    def compute() -> Piece:
        known, table, episode = agent.known, agent.planning_model, agent.told
        assert isinstance(known, PracticalModel) and isinstance(table, Table)
        policy = agent.ask()
        row, tensors = episode_record(agent.flown(policy, *agent.rollout(policy)), system)
        error = table.error(500, generator=common.generator(seed, MODEL, episode))
        row |= {"episode": episode, "table_mean_max": max(error.mean_max), "table_std_max": max(error.std_max)}
        return Piece(rows=[row], tensors={**tensors, "log_lengthscale": known.gp.log_lengthscale})

    for episode in range(arguments.episodes):
        piece = record.piece(f"{explorer}/episode-{episode:02d}", compute)
        agent.tell(piece.tensors["states"], piece.tensors["inputs"])
        advance(f"{explorer}, episode {episode}")
    record.piece(f"{explorer}/tasks", lambda: task_piece(agent, agent.planner))


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """All explorers of one seed, and planning with the true plant."""
    torch.set_num_threads(1)
    done = 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        record.progress(done, arguments.episodes * len(arguments.explorers), text)

    for explorer in arguments.explorers:
        explore(arguments, explorer, seed, record, advance)
    plant = Pendulum(action_repeat=2, horizon=arguments.steps)
    agent = learner(arguments, plant, "safe-hucrl", seed, truth=True)
    record.piece("truth/tasks", lambda: task_piece(agent, agent.planner))


def report(runs: Sequence[Run]) -> Report:
    """Table and figures over seeds, beside the published numbers."""
    return reporting.report(runs, Pendulum(action_repeat=2, horizon=runs[0].arguments.steps))


QUICK = Arguments(explorers=("actsafe-sampled", "opax"), episodes=6)
SMOKE = Arguments(
    explorers=("uniform", "actsafe-sampled"),
    episodes=2,
    steps=3,
    samples=20,
    elites=4,
    iterations=2,
    horizon=4,
    particles=2,
    table=(12, 5, 3),
)

EXPERIMENT = Experiment(
    name="pendulum-paper",
    title="The published pendulum run: GP-ActSafe with sampled pessimism, and its relatives behind one flag",
    arguments=Arguments,
    budgets={"smoke": SMOKE, "quick": QUICK, "full": Arguments()},
    seeds={"smoke": 1, "quick": 2, "full": 5},
    run=run,
    report=report,
)
