"""The pendulum of the ActSafe paper with pessimism that is a bound: no input is applied that a verifier has not admitted.

The task of ``pendulum_paper.py`` in theory mode. The plant is an RKHS twin of the pendulum (its clip cannot act before
|ω| ≤ 6 is violated), the known part believes in a length and a mass that are 10 % off, kernel and λ are frozen, B is that of
the twin. iCEM proposes, `gpsafe.safety.shield` decides. ``actsafe-sampled`` and ``opax`` run on the same plant and model
without it.

S_0: inputs |u| ≤ 0.2 from hanging, assumed safe: the most resonant of them, u = 0.2 sign ω, reaches |ω| = 4.5 rad/s in 50 steps
with length and mass both 10 % below the nominal, 2.7 with both above, 3.4 at the nominal ones.
The first episode, and every one for which no fallback can be certified from x_0, is spent on S_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.learned import TheoryModel
from gpsafe.algorithms.learner import MODEL
from gpsafe.algorithms.receding import Initial, RecedingActSafe
from gpsafe.confidence import Mixture
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.plan_tube import PlanTube
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.models.gp import identity_prior
from gpsafe.planning import EXPLORERS, ICEM, Table
from gpsafe.planning.tracking import Tracking
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety.shield import noise_radius
from gpsafe.sets import Box
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.rkhs_twin import RKHSTwin, twin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run

from . import pendulum_paper as paper
from ._report import pendulum as common
from ._report import pendulum_figures as reporting


@dataclass(frozen=True, slots=True)
class Arguments:
    """Published planning settings; a plant and a verifier for which every assumption is true."""

    explorers: tuple[str, ...] = (
        "actsafe-sound",
        "actsafe-sampled",
        "actsafe-mean",
        "safe-hucrl",
        "opax",
        "optimistic",
        "greedy",
        "uniform",
    )
    """Explorers to run on the same plant, model and noise; only actsafe-sound passes the verifier."""
    episodes: int = 15
    """Episodes, the one spent on S_0 included."""
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
    """Particles of sampled pessimism, as published."""
    sound_particles: int = 3
    """Particles with which proposals for the verifier are priced."""
    beta: float = 1.0
    """Factor on the epistemic std of a particle."""
    penalty: float = 1e6
    """Price of the constraint."""
    table: tuple[int, int, int] = (120, 17, 7)
    """Nodes over (theta, omega, u) at which the posterior is tabulated for planning, once per episode."""
    noise: float = 1e-4
    """Standard deviation of the process noise, in rad and rad/s."""
    lengthscale: tuple[float, float, float] = (2.0, 40.0, 10.0)
    """Of the kernel, over (theta, omega, u)."""
    kappa: float = 0.3
    """Standard deviation of the kernel for omega; a tenth of it for theta."""
    delta: float = 0.1
    """Probability that f* is outside some F_n."""
    delta_noise: float = 0.01
    """Probability that the noise leaves its box in any step of any episode of a seed."""
    excitation: float = 0.2
    """S_0: inputs of at most this size."""

    @property
    def optimiser(self) -> ICEM:
        """Of planning."""
        return ICEM(self.samples, self.elites, self.iterations, self.horizon)

    def __post_init__(self) -> None:
        _require.names("--explorers", self.explorers, EXPLORERS)


def plant(arguments: Arguments) -> RKHSTwin:
    """The twin over one turn to either side of hanging and |ω| ≤ 7.9 (from where the clip at 10 cannot be reached)."""
    noise = vector(arguments.noise, arguments.noise)
    physics = Pendulum(action_repeat=2, speed_limit=10.0, horizon=arguments.steps, noise_std=noise)
    speed = physics.free_speed
    region = Box(vector(-math.pi, -speed, -1.0), vector(3 * math.pi, speed, 1.0))
    chosen = [kernels.rbf(list(arguments.lengthscale), (arguments.kappa * s) ** 2) for s in (0.1, 1.0)]
    return twin(physics, physics.prior(), kernels=chosen, outputs=(0, 1), counts=(25, 5, 5), region=region, ridge=1e-9)


def excitation(arguments: Arguments) -> Initial:
    """S_0: u of random size up to `excitation` with the sign of ω, the member of S_0 that shows most."""

    def start(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        sizes = iter(torch.rand(arguments.steps, dtype=torch.float64, generator=generator))

        def act(x: Tensor) -> Tensor:
            sign = torch.where(x[1:] < 0, -x.new_ones(1), x.new_ones(1))
            return arguments.excitation * (0.5 + 0.5 * next(sizes)) * sign

        return act

    return start


def judge(arguments: Arguments, system: RKHSTwin) -> PlanTube:
    """Of plans that end in hanging still."""
    hang = AffinePolicies(vector(1.5 * math.pi)[:, None], vector(-1.5, -1.0).reshape(1, 1, 2), system.input_box)
    landing = tuple(
        Box(vector(math.pi - s * 0.25, -s * 0.8), vector(math.pi + s * 0.25, s * 0.8)) for s in (1.0, 0.6, 0.3)
    )
    total = arguments.steps * (arguments.episodes + len(paper.TASKS))
    return PlanTube(
        fallbacks=hang,
        task=Task.of(system),
        noise_radius=noise_radius(system.noise_std, steps=total, delta=arguments.delta_noise),
        input_box=system.input_box,
        anchors=AnchorGrid.create(system.region, vector(0.15, 1.5, 0.25)),
        landing=landing,
    )


def learner(arguments: Arguments, system: RKHSTwin, explorer: str, seed: int) -> RecedingActSafe:
    """One explorer before any data."""
    noise, speed = system.noise_std, float(system.region.upper[1])
    gp = GP.create(system.kernels, noise.square().tolist(), nx=2, nu=1, noise_std=noise, prior=system.known)
    bound = Mixture(
        rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=tuple(noise.tolist()), delta=arguments.delta
    )
    box = Box(vector(-math.pi, -speed, -1.0), vector(3 * math.pi, speed, 1.0))  # the whole turn to either side
    brakes = AffinePolicies(torch.zeros(2, 1).double(), vector(0.0, -1.0).expand(2, 1, 2).clone(), system.input_box)
    model = TheoryModel.create(
        gp,
        bound,
        tabulate=lambda gp: Table.build(gp, identity_prior, box, counts=arguments.table),
        judge=judge(arguments, system),
        tracking=Tracking(
            brakes=brakes, authority=vector(0.75, 0.9), state_weight=vector(10.0, 1.0), input_weight=vector(1.0)
        ),
    )
    planner = paper.planner(arguments, system, explorer)
    if planner.explorer.pessimism == "sound":
        planner = replace(planner, particles=arguments.sound_particles)
    return RecedingActSafe(
        system,
        planner,
        model,
        excitation(arguments),
        delta_noise=arguments.delta_noise,
        seed=seed,
        stream=common.generator,
    )


def episode_piece(agent: RecedingActSafe, system: RKHSTwin) -> Piece:
    """One episode, and whether the true residual was inside F_n at 2000 points before it."""
    known, episode = agent.known, agent.told
    assert isinstance(known, TheoryModel)
    policy = agent.ask()
    found = agent.flown(policy, *agent.rollout(policy))
    row, tensors = paper.episode_record(found, system)
    points = system.region.sample(2000, common.generator(agent.seed, MODEL, episode))
    row |= {
        "episode": episode,
        "from_initial": found.sources.count("initial"),
        "falsified": found.falsified or "",
        "inside": known.confidence.contains(system.residual_fn, points).outcome == "HOLDS",
        "beta": float(known.confidence.bound.beta(known.gp).max()),
        "max_angle": float((found.states[:, 0] - math.pi).abs().max()),
    }
    return Piece(rows=[row], tensors=tensors)


def explore(arguments: Arguments, explorer: str, seed: int, record: Record, advance: Callable[[str], None]) -> None:
    """S_0 first, then exploration, then the tasks."""
    system = plant(arguments)
    agent = learner(arguments, system, explorer, seed)
    for episode in range(arguments.episodes):
        piece = record.piece(f"{explorer}/episode-{episode:02d}", lambda: episode_piece(agent, system))
        agent.tell(
            piece.tensors["states"], piece.tensors["inputs"], falsified=piece.rows[0]["falsified"] or None
        )  # fmt: skip
        advance(f"{explorer}, episode {episode}")
    record.piece(f"{explorer}/tasks", lambda: paper.task_piece(agent, paper.planner(arguments, system, explorer)))


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """All explorers of one seed."""
    torch.set_num_threads(1)
    done = 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        record.progress(done, arguments.episodes * len(arguments.explorers), text)

    for explorer in arguments.explorers:
        explore(arguments, explorer, seed, record, advance)


def report(runs: Sequence[Run]) -> Report:
    """Table and figures over seeds, beside the published numbers."""
    arguments = runs[0].arguments
    system = plant(arguments)
    checks = [p.rows[0] for run in runs for name in reporting.explorers(runs) for p in reporting.episodes(run, name)]
    sound = [p.rows[0] for run in runs for p in reporting.episodes(run, "actsafe-sound")]
    spent = sum(row["from_initial"] > 0 for row in sound)
    inside, refuted = sum(row["inside"] for row in checks), sum(bool(row["falsified"]) for row in checks)
    gap = ", ".join(f"{value:.2g}" for value in system.twin_error.max.tolist())
    norms = ", ".join(f"{value:.3g}" for value in system.rkhs_norm.tolist())
    steps = arguments.steps * (arguments.episodes + len(paper.TASKS))
    radius = float(noise_radius(system.noise_std, steps=steps, delta=arguments.delta_noise)[0]) / arguments.noise
    notes = [
        f"**What is guaranteed** (actsafe-sound): with probability ≥ {1 - arguments.delta - arguments.delta_noise:.2f} over "
        f"the data of one seed, no state of an episode or task that starts with a certified fallback leaves |ω| ≤ 6, whatever "
        "the planner proposes. "
        f"Assumed: ‖f*‖_k ≤ B = ({norms}) (the plant is built so), Gaussian noise of std {arguments.noise:g}, of which no "
        f"step of {steps} leaves ± {radius:.2f} std (probability ≥ {1 - arguments.delta_noise:g}), no clip, exact "
        "measurement. "
        f"The first episode, and each for which no fallback is certified, is S_0: inputs |u| ≤ {arguments.excitation:g}, "
        f"assumed safe (see the module) and no part of the certificate; {spent} of {len(sound)} episodes were. "
        "Nothing is claimed between steps, nor for the physical pendulum, from which the twin differs "
        f"by at most ({gap}) in (θ⁺, ω⁺) at {system.twin_error.points} points of its region.",
        f"The true residual was inside F_n at 2000 random points in {inside} of {len(checks)} checks (one an episode); the "
        f"verifier's assumptions were refuted by a measurement in {refuted} episodes.",
        "**What differs from the published run**: the plant is the twin without clip, its noise is Gaussian; the GP has a "
        "frozen kernel over (θ, ω, u) and a prior model 10 % off in length and mass; one episode goes to S_0.",
    ]
    return reporting.report(runs, system, notes)


EXPERIMENT = Experiment(
    name="pendulum-sound",
    title="The published pendulum task with a verifier between plan and plant: zero violations, and what it costs",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            explorers=("actsafe-sound", "actsafe-sampled"),
            episodes=2,
            steps=3,
            samples=20,
            elites=4,
            iterations=2,
            horizon=4,
            particles=2,
            table=(12, 5, 3),
        ),
        "quick": Arguments(explorers=("actsafe-sound",), episodes=8),
        "full": Arguments(),
    },
    seeds={"smoke": 1, "quick": 2, "full": 10},
    run=run,
    report=report,
)
