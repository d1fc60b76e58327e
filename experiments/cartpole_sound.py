"""Cart-pole with pessimism that is a bound: no input is applied that keeps |x| ≤ 1.5 m only by luck.

Theory mode on the RKHS twin of ``_cartpole.py`` with small noise. The first episodes are spent on S_0 (damped set-points within
0.25 m of rest, safe by assumption); after that iCEM proposes and `gpsafe.safety.shield` admits, from x_0 certified. The same
planner runs on the same plant, data and noise without the verifier. A second piece asks where braking is certified.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpsafe import _require, plotting
from gpsafe.algorithms.learned import TheoryModel
from gpsafe.algorithms.learner import stream
from gpsafe.algorithms.receding import RecedingActSafe
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning import EXPLORERS, ICEM, Constraint, Planner, Table
from gpsafe.planning.tracking import Tracking
from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.safety.shield import noise_radius
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost, is_violation
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run
from gpsafe.testbed.experiment import Table as Sheet

from ._report.cartpole import hanging_lqr, near_rest, plant
from ._report.statistics import mean_interval, plus_minus


@dataclass(frozen=True, slots=True)
class Arguments:
    """Settings."""

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
    """Explorers on the same plant, model and noise; only the first passes a verifier."""
    episodes: int = 8
    """Episodes, those of S_0 included."""
    initial: int = 3
    """Episodes of S_0."""
    steps: int = 50
    """Steps of an episode."""
    noise: tuple[float, float, float, float] = (1e-4, 5e-5, 2e-4, 5e-4)
    """Standard deviation of the process noise (m, rad, m/s, rad/s): a box of 4.6 times this is in every step of a tube."""
    samples: int = 200
    """Sequences per iCEM iteration."""
    elites: int = 20
    """Elites of iCEM."""
    iterations: int = 3
    """Iterations of iCEM."""
    horizon: int = 20
    """Planning horizon, steps."""
    particles: int = 8
    """Particles of sampled pessimism."""
    order: int = 128
    """Generators of a tube: 16 instead of 128 make it 30 times wider after 50 steps."""
    delta: float = 0.1
    """Probability that f* is outside some F_n."""
    delta_noise: float = 0.01
    """Probability that the noise leaves its box in any step of any episode of a seed."""

    def __post_init__(self) -> None:
        _require.names("--explorers", self.explorers, EXPLORERS)


def _judged(arguments: Arguments, system: RKHSTwin) -> tuple[PlanTube, Tracking]:
    """Of plans that end at the nearest rest, and what brakes there or towards ± 0.7 m."""
    gains = [hanging_lqr(system.known, position=q, speed=0.1, swing=s, effort=1.0) for q, s in ((1, 10), (4, 10))]
    judge = PlanTube(
        fallbacks=AffinePolicies(vector(0.0, 0.0).reshape(2, 1), -torch.stack(gains), system.input_box),
        task=Task.of(system),
        noise_radius=noise_radius(
            system.noise_std, steps=arguments.steps * arguments.episodes, delta=arguments.delta_noise
        ),
        input_box=system.input_box,
        anchors=AnchorGrid.create(system.region, vector(math.inf, 0.2, math.inf, 1.0, 0.4)),
        landing=tuple(Box(-s * vector(0.8, 0.1, 0.4, 0.3), s * vector(0.8, 0.1, 0.4, 0.3)) for s in (1.0, 0.5)),
        order=arguments.order,
    )
    goals = torch.zeros(3, 4, dtype=torch.float64)
    goals[:, 0] = vector(0.0, 0.7, -0.7)
    tracking = Tracking(
        brakes=set_point_policies(goals, gains[0], torch.zeros(3, 1, dtype=torch.float64), system.input_box),
        authority=0.75,
        state_weight=vector(4.0, 10.0, 0.1, 0.1),
        input_weight=vector(1.0),
    )
    return judge, tracking


def learner(arguments: Arguments, system: RKHSTwin, explorer: str, seed: int) -> RecedingActSafe:
    """One explorer before any data."""
    a, cost, noise, learned = arguments, system.cost, system.noise_std, list(system.outputs)
    assert isinstance(cost, IndicatorCost)
    gp = GP.create(
        system.kernels, noise[learned].square(), nx=4, nu=1, noise_std=noise, outputs=learned, prior=system.known
    )
    norm, scale = tuple(system.rkhs_norm.tolist()), tuple(noise[learned].tolist())
    box = Box(vector(-math.pi, -8.0, -1.0), vector(math.pi, 8.0, 1.0))
    judge, tracking = _judged(a, system)
    model = TheoryModel.create(
        gp,
        Mixture(rkhs_norm=norm, subgaussian=scale, delta=a.delta),
        tabulate=lambda gp: Table.build(gp, system.known, box, counts=(41, 21, 5), axes=(1, 3, 4)),
        judge=judge,
        tracking=tracking,
    )
    planner = Planner(
        EXPLORERS[explorer],
        ICEM(a.samples, a.elites, a.iterations, a.horizon, exponent=1.0),
        system.input_box,
        system.reward,
        Constraint(cost, margin=0.25, form="indicator"),
        particles=a.particles,
        beta=3.0,
        penalty=1e8,
    )
    return RecedingActSafe(
        system,
        planner,
        model,
        near_rest(system, reach=0.25, position=1.0, swing=10.0),
        initial_episodes=a.initial,
        delta_noise=a.delta_noise,
        seed=seed,
    )


def _episode(agent: RecedingActSafe, system: RKHSTwin) -> Piece:
    known, number = agent.known, agent.told
    assert isinstance(known, TheoryModel)
    policy = agent.ask()
    found = agent.flown(policy, *agent.rollout(policy))
    points = system.region.sample(1000, stream(agent.seed, 7, number))
    row = {
        "episode": number,
        "cost": float(system.cost(found.states[1:]).sum()),
        "max_position": float(found.states[:, 0].abs().max()),
        "max_angle": float(found.states[:, 1].abs().max()),
        "reward": float(system.reward(found.states[:-1], found.inputs).sum()),
        "info_gain": float(known.gp.info_gain().sum()),
        "inside": known.confidence.contains(system.residual_fn, points).outcome == "HOLDS",
        "falsified": found.falsified or "",
        "planning_s": found.planning_s,
        "verifying_s": found.verifying_s,
        **{f"from_{s}": found.sources.count(s) for s in ("plan", "stored", "fallback", "initial")},
    }
    return Piece([row], {"states": found.states, "inputs": found.inputs})


def _explore(arguments: Arguments, name: str, seed: int, record: Record) -> None:
    system = plant(noise=1.0, horizon=arguments.steps, budget=0.01, stds=arguments.noise)
    agent = learner(arguments, system, name, seed)
    for number in range(arguments.episodes):
        piece = record.piece(f"{name}/episode-{number:02d}", lambda: _episode(agent, system))
        agent.tell(
            piece.tensors["states"], piece.tensors["inputs"], falsified=piece.rows[0]["falsified"] or None
        )  # fmt: skip
        record.progress(number, arguments.episodes, name)
    if agent.verified:
        record.piece(f"{name}/braking", lambda: _braking(arguments, agent, system))


def _braking(arguments: Arguments, agent: RecedingActSafe, system: RKHSTwin) -> Piece:
    """Share of states from which a fallback is certified for an episode, after S_0 and after the run, and with the true f."""
    steps, known = arguments.steps, agent.known
    assert isinstance(known, TheoryModel)
    axis = torch.linspace(-1.4, 1.4, 8, dtype=torch.float64)
    speeds = torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
    rest = torch.zeros(1, dtype=torch.float64)
    swings, turns = torch.linspace(-0.8, 0.8, 5, dtype=torch.float64), torch.linspace(-2.0, 2.0, 5, dtype=torch.float64)
    grids = {
        "cart at (x, v)": torch.cartesian_prod(axis, rest, speeds, rest),
        "pole at (θ, ω)": torch.cartesian_prod(rest, swings, rest, turns),
    }
    rows = []
    new, _ = _judged(arguments, system)
    fallbacks = new.fallbacks
    for index, model in ((i, known.confidence.generations[i]) for i in (0, arguments.initial, -1)):
        confidence = ConfidenceSet(known.confidence.bound)
        for generation in known.confidence.generations[: None if index < 0 else index + 1]:
            confidence = confidence.update(generation)
        judge = new.refine(confidence)
        for name, points in grids.items():
            admitted = torch.zeros(len(points), dtype=torch.bool)
            for f in range(fallbacks.num):
                plans = Plans.of_fallbacks(torch.full((len(points),), f), 4, 1)
                admitted |= judge.verify(Zonotope.point(points), plans, steps).admitted
            rows.append({"grid": name, "data": model.num_data, "certified": float(admitted.double().mean())})
    for name, points in grids.items():
        safe = torch.zeros(len(points), dtype=torch.bool)
        for f in range(fallbacks.num):
            policy, x = fallbacks.select(torch.tensor([f])), points.unsqueeze(0)
            inside = torch.ones(len(points), dtype=torch.bool)
            for _ in range(steps):
                x = system.mean(x, policy(x))
                inside &= x[0, :, 0].abs() <= 1.5
            safe |= inside
        rows.append({"grid": name, "data": -1, "certified": float(safe.double().mean())})
    return Piece(rows)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """All explorers of one seed."""
    for name in arguments.explorers:
        _explore(arguments, name, seed, record)


def report(runs: Sequence[Run]) -> Report:
    """Largest |x| per episode with and without the verifier; where braking is certified."""
    a = runs[0].arguments
    figure = plotting.figure("screen", 3.6)
    furthest, gains = figure.subplots(1, 2)
    rows, facts = [], []
    n = np.arange(1, a.episodes + 1)
    looks = plotting.looks(a.explorers)
    for name in a.explorers:
        table = [[r.pieces[f"{name}/episode-{e:02d}"].rows[0] for e in range(a.episodes)] for r in runs]
        later = [row for part in table for row in part[a.initial :]]
        reach = np.array([[row["max_position"] for row in part] for part in table])
        gain = np.array([[row["info_gain"] for row in part] for part in table])
        style = {**looks[name].marked, "markersize": 3}
        furthest.plot(n, reach.max(0), label=f"{name} (max over seeds)", **style)
        band = np.array([mean_interval(column) for column in gain.T])
        gains.plot(n, band[:, 0], label=name, **style)
        gains.fill_between(n, band[:, 0] - band[:, 1], band[:, 0] + band[:, 1], color=style["color"], alpha=0.2)
        sources = {s: sum(row[f"from_{s}"] for row in later) for s in ("plan", "stored", "fallback", "initial")}
        rows.append(
            (
                name,
                f"{int(sum(row['cost'] for row in later))} of {len(later) * a.steps}",
                f"{sum(is_violation(row['cost']) for row in later)} of {len(later)}",
                f"{max(row['max_position'] for row in later):.3f}",
                f"{max(row['max_angle'] for row in later):.2f}",
                plus_minus(gain[:, -1], 1),
                plus_minus([float(np.mean([row["reward"] for row in part[a.initial :]])) for part in table], 0),
                " / ".join(str(v) for v in sources.values()),
                f"{1000 * float(np.mean([row['planning_s'] for row in later])) / a.steps:.0f}",
                f"{1000 * float(np.mean([row['verifying_s'] for row in later])) / a.steps:.0f}",
            )
        )
        checks = [row for part in table for row in part]
        refuted = sum(bool(row["falsified"]) for row in checks)
        facts.append(
            f"{name}: f* inside F_n in {sum(row['inside'] for row in checks)} of {len(checks)}, refuted {refuted}"
        )
    plotting.limit(furthest, 1.5, label="limit 1.5 m")
    furthest.axvspan(0.5, a.initial + 0.5, color=plotting.colour("grey"), alpha=0.15)
    furthest.annotate("S_0", (0.6, 0.02), xycoords=("data", "axes fraction"))
    furthest.set(xlabel="episode", ylabel="largest |x| (m)", title="cart position")
    furthest.set_ylim(0.0, min(6.0, furthest.get_ylim()[1]))
    plotting.label_ends(furthest)
    gains.set(xlabel="episode", ylabel="information gain before it (nats)", title="information")
    plotting.label_ends(gains)
    columns = (
        "explorer",
        "states beyond 1.5 m",
        "episodes with a violation",
        "largest |x| (m)",
        "largest |θ| (rad)",
        "information (nats)",
        "J_r per episode",
        "plan / stored / fallback / S_0",
        "planning (ms a step)",
        "verifying (ms a step)",
    )
    tables = {
        "sound": Sheet(
            columns=columns,
            rows=rows,
            caption="After the episodes of S_0. Mean ± 95 % Student t interval over seeds. Times on a shared machine.",
        )
    }
    judged = [name for name in a.explorers if f"{name}/braking" in runs[0].pieces]
    if judged:
        tables["braking"] = _braking_table(runs, judged[0])
    notes = [
        f"{len(runs)} seeds. Guaranteed for actsafe-sound after S_0: with probability ≥ {1 - a.delta - a.delta_noise:.2f} over "
        "the data of one seed no state leaves |x| ≤ 1.5 m. Assumed: the exact B of the twin, Gaussian noise in its box, exact "
        "measurement, S_0 safe in its episodes. Nothing is guaranteed for the other explorers, nor for the physics.",
        f"At 1000 random points and each episode: {'; '.join(facts)}.",
        "Noise is smaller than in `cartpole-budgets`: a hard tube adds a box of 4.6 standard deviations at every step, where "
        "a Gaussian tube adds variances.",
    ]
    return Report(figures={"sound": figure}, tables=tables, notes=notes)


def _braking_table(runs: Sequence[Run], name: str) -> Sheet:
    grouped: dict[tuple[str, int], list[float]] = {}
    for r in runs:
        for row in r.pieces[f"{name}/braking"].rows:
            grouped.setdefault((row["grid"], row["data"]), []).append(row["certified"])
    rows = [(grid, "true f, no noise" if n < 0 else str(n), plus_minus(v)) for (grid, n), v in grouped.items()]
    return Sheet(
        columns=("states", "data", "share certified"),
        rows=rows,
        caption="Share of a grid of states (|x| ≤ 1.4, |v| ≤ 2 with the pole hanging; |θ| ≤ 0.8, |ω| ≤ 2 with the cart at "
        "rest) from which one of two static fallbacks is certified for 50 steps.",
    )


EXPERIMENT = Experiment(
    name="cartpole-sound",
    title="Cart-pole: a verifier between plan and plant",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            explorers=("actsafe-sound",),
            episodes=2,
            initial=1,
            steps=3,
            samples=10,
            elites=3,
            iterations=1,
            horizon=3,
            particles=2,
        ),
        "quick": Arguments(),
        "full": Arguments(episodes=15, samples=500, elites=50, iterations=5, particles=30),
    },
    seeds={"smoke": 1, "quick": 5, "full": 5},
    run=run,
    report=report,
)
