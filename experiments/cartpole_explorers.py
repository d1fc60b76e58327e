"""Cart-pole in the published form: explorers behind one flag, margins ε on |x| ≤ 1.5 m, nothing certified.

Receding-horizon iCEM on a GP that is refitted after every episode; pessimism is a maximum over particles with a price, so
every number here is heuristic. What a bound does on this plant is in ``cartpole_budgets.py``.

What differs from the published launcher: fewer samples (the budget says how many), outputs are differences of
(x, θ, v, ω), the GP does not see x (the dynamics do not depend on it), L-BFGS instead of 2000 Adam steps, and the posterior
is tabulated once per episode and interpolated while planning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.algorithms.learned import PracticalModel
from gpsafe.algorithms.learner import MODEL, EpisodePolicy, stream
from gpsafe.algorithms.receding import RecedingActSafe
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models.gp import identity_prior
from gpsafe.planning import EXPLORERS, ICEM, Constraint, Planner, Table, untrained
from gpsafe.safety.shield import NotCertified
from gpsafe.sets import Box
from gpsafe.systems.base import HalfspaceCost, sample_noise, step
from gpsafe.systems.cartpole import CartPole
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run
from gpsafe.testbed.experiment import Table as Sheet

from ._report.statistics import mean_interval, plus_minus


@dataclass(frozen=True, slots=True)
class Arguments:
    """Settings; the published launcher has 1000 samples, 50 elites, 5 iterations, horizon 30, 30 particles."""

    explorers: tuple[str, ...] = (
        "uniform",
        "greedy",
        "optimistic",
        "opax",
        "actsafe-mean",
        "actsafe-sampled",
        "safe-hucrl",
    )
    """Explorers; pessimistic ones with the middle margin, actsafe-sampled with all."""
    margins: tuple[float, ...] = (0.0, 0.25, 0.5)
    """epsilon, m: pessimism asks for |x| ≤ 1.5 - epsilon."""
    episodes: int = 10
    """Episodes of exploration."""
    steps: int = 50
    """Steps of an episode."""
    samples: int = 200
    """Sequences per iCEM iteration."""
    elites: int = 20
    """Elites of iCEM."""
    iterations: int = 3
    """Iterations of iCEM."""
    horizon: int = 25
    """Planning horizon, steps."""
    particles: int = 8
    """Particles of sampled pessimism."""
    beta: float = 3.0
    """Factor on the epistemic std of a particle."""
    penalty: float = 1e8
    """Price of the constraint."""
    offline: int = 10
    """Random transitions before the first episode (|x| ≤ 1, |v| ≤ 5, |ω| ≤ 5), 0 or 10 in the launcher."""
    fits: int = 10
    """L-BFGS iterations of a refit."""
    table: tuple[int, int, int, int] = (24, 5, 13, 5)
    """Nodes over (theta, v, omega, u) at which the posterior is tabulated."""

    def __post_init__(self) -> None:
        _require.names("--explorers", self.explorers, EXPLORERS)


def _features(x: Tensor) -> Tensor:
    """(cos θ, sin θ, v, ω): the dynamics do not depend on x."""
    _, theta, v, omega = x.unbind(-1)
    return torch.stack([theta.cos(), theta.sin(), v, omega], dim=-1)


def _variants(arguments: Arguments) -> list[tuple[str, str, float]]:
    """(key, explorer, ε)."""
    middle = arguments.margins[len(arguments.margins) // 2]
    found = []
    for name in arguments.explorers:
        free = EXPLORERS[name].pessimism == "none"
        margins = arguments.margins if name == "actsafe-sampled" else (middle,)
        found += [(f"{name}-{round(100 * m)}", name, 0.0 if free else m) for m in margins]
    return found


def _offline(arguments: Arguments, system: CartPole, seed: int) -> Transitions:
    g = stream(seed, MODEL)
    half = vector(1.0, math.pi, 5.0, 5.0, 1.0)
    z = Box(-half, half).sample(arguments.offline, g)
    x, u = z[:, :4], z[:, 4:]
    return Transitions(x, u, step(system, x, u, sample_noise(system.noise_std, (arguments.offline,), g)))


def learner(arguments: Arguments, system: CartPole, explorer: str, margin: float, seed: int) -> RecedingActSafe:
    """The published form of an explorer, before its first episode."""
    a, cost = arguments, system.cost
    assert isinstance(cost, HalfspaceCost)
    planner = Planner(
        EXPLORERS[explorer],
        ICEM(a.samples, a.elites, a.iterations, a.horizon, exponent=1.0),
        system.input_box,
        system.reward,
        Constraint(cost, margin=margin, form="indicator"),
        particles=a.particles,
        beta=a.beta,
        penalty=a.penalty,
    )
    box = Box(vector(-math.pi, -5.0, -8.0, -1.0), vector(math.pi, 5.0, 8.0, 1.0))
    model = PracticalModel(
        untrained(_features, nx=4, nu=1, noise_std=system.noise_std, generator=stream(seed, MODEL, 1)),
        tabulate=lambda gp: Table.build(gp, identity_prior, box, counts=a.table, axes=(1, 2, 3, 4), periodic=(1,)),
        fits=lambda count: a.fits,
    )
    if a.offline:
        model = model.condition(_offline(a, system, seed))
    return RecedingActSafe(system, planner, model, initial_episodes=0, seed=seed)


def _flown(agent: RecedingActSafe, policy: EpisodePolicy) -> tuple[dict[str, float], dict[str, Tensor]]:
    found, system = agent.flown(policy, *agent.rollout(policy)), agent.system
    row = {
        "cost": float(system.cost(found.states[1:]).sum()),
        "reward": float(system.reward(found.states[:-1], found.inputs).sum()),
        "max_position": float(found.states[:, 0].abs().max()),
        "planning_s": found.planning_s,
    }
    return row, {"states": found.states, "inputs": found.inputs}


def _explore(arguments: Arguments, variant: tuple[str, str, float], seed: int, record: Record) -> None:
    key, name, margin = variant
    system = CartPole(horizon=arguments.steps)
    agent = learner(arguments, system, name, margin, seed)

    def compute() -> Piece:
        known = agent.known
        assert isinstance(known, PracticalModel)
        row, tensors = _flown(agent, agent.ask())
        return Piece([row | {"episode": agent.told}], {**tensors, "log_lengthscale": known.gp.log_lengthscale})

    def task() -> Piece:
        policy = agent.task(number=0)
        assert not isinstance(policy, NotCertified)  # nothing is asked of a verifier
        row, tensors = _flown(agent, policy)
        return Piece([row], {"states": tensors["states"]})

    for number in range(arguments.episodes):
        piece = record.piece(f"{key}/episode-{number:02d}", compute)
        agent.tell(piece.tensors["states"], piece.tensors["inputs"])
    record.piece(f"{key}/task", task)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """All explorers of one seed; the plant's noise is the same for all."""
    variants = _variants(arguments)
    for done, variant in enumerate(variants):
        record.progress(done, len(variants), f"{variant[1]}, ε = {variant[2]:g}")
        _explore(arguments, variant, seed, record)
    record.progress(len(variants), len(variants))


def report(runs: Sequence[Run]) -> Report:
    """J_c and J_r of every explorer, mean ± 95 % interval over seeds."""
    arguments = runs[0].arguments
    variants = _variants(arguments)
    rows, cost_curves = [], []
    figure = plotting.figure("screen", 3.5)
    costs, bars = figure.subplots(1, 2, width_ratios=(1.3, 1.0))
    n = np.arange(1, arguments.episodes + 1)
    looks = plotting.looks(range(len(variants)))
    for k, (key, name, margin) in enumerate(variants):
        table = np.array(
            [[r.pieces[f"{key}/episode-{e:02d}"].rows[0]["cost"] for e in range(arguments.episodes)] for r in runs]
        )
        rewards = [
            float(np.mean([r.pieces[f"{key}/episode-{e:02d}"].rows[0]["reward"] for e in range(arguments.episodes)]))
            for r in runs
        ]
        furthest = max(
            r.pieces[f"{key}/episode-{e:02d}"].rows[0]["max_position"] for r in runs for e in range(arguments.episodes)
        )
        tasks = [r.pieces[f"{key}/task"].rows[0] for r in runs]
        free = EXPLORERS[name].pessimism == "none"
        label = name if free else f"{name}, ε = {margin:g}"
        cost_curves.append((label, table.mean(1)))
        costs.plot(
            n,
            np.cumsum(table.mean(0)),
            markersize=3,
            label=label,
            **looks[k].marked,
        )
        total = arguments.episodes * arguments.steps * len(runs)
        rows.append(
            (
                name,
                "–" if free else f"{margin:g}",
                plus_minus(table.mean(1)),
                plus_minus(table.max(1), 1),
                f"{int(table.sum())} of {total}",
                f"{int((table > 0).sum())} of {table.size}",
                f"{furthest:.2f}",
                plus_minus(rewards, 0),
                plus_minus([t["reward"] for t in tasks], 0),
                plus_minus([t["cost"] for t in tasks], 1),
            )
        )
    costs.set(xlabel="episode", ylabel="steps beyond 1.5 m, summed (mean over seeds)", title="cost of exploring")
    plotting.label_ends(costs)
    centre = np.array([mean_interval(values) for _, values in cost_curves])
    y = np.arange(len(cost_curves))
    bars.barh(y, centre[:, 0], xerr=np.nan_to_num(centre[:, 1]), color=plotting.colour("actsafe"), alpha=0.7, capsize=3)
    for d in (1, 2, 5, 10):
        bars.axvline(d, color=plotting.colour("ink"), linestyle=":", linewidth=0.8)
    bars.set(yticks=y, yticklabels=[label for label, _ in cost_curves], xlabel="mean J_c per episode (steps of 50)")
    bars.set(title="mean ± 95 %; dotted: budgets d")
    columns = (
        "explorer",
        "ε (m)",
        "mean J_c",
        "max J_c of an episode",
        "states beyond 1.5 m",
        "episodes with a violation",
        "largest |x| (m)",
        "J_r per episode",
        "J_r of the task",
        "J_c of the task",
    )
    a = arguments
    notes = [
        f"Practical mode: refitted GPs, sampled pessimism, no guarantee. {len(runs)} seeds, {a.episodes} episodes of "
        f"{a.steps} steps; iCEM {a.samples}/{a.elites}/{a.iterations}, horizon {a.horizon}, {a.particles} particles, "
        f"β = {a.beta:g}, λ = {a.penalty:g}, {a.offline} offline transitions. J_c counts x_1 … x_T beyond 1.5 m. Task: "
        "swing-up with the learned model after exploration, the explorer's pessimism still on.",
        "Published launcher: 1000/50/5, horizon 30, 30 particles (1 without pessimism), 10 episodes, seeds 0–4, ε in "
        "{0, 0.25, 0.5}, λ = 1e8; no numbers of these runs were published with the code.",
    ]
    sheet = Sheet(columns=columns, rows=rows, caption="Mean ± 95 % Student t interval over seeds.")
    return Report(figures={"explorers": figure}, tables={"explorers": sheet}, notes=notes)


SMOKE = Arguments(
    explorers=("uniform", "actsafe-sampled"),
    margins=(0.25,),
    episodes=1,
    steps=2,
    samples=10,
    elites=3,
    iterations=2,
    horizon=3,
    particles=2,
    fits=1,
    table=(4, 2, 3, 2),
)

EXPERIMENT = Experiment(
    name="cartpole-explorers",
    title="Cart-pole in the published form: explorers and margins",
    arguments=Arguments,
    budgets={
        "smoke": SMOKE,
        "quick": Arguments(),
        "full": Arguments(
            samples=500, elites=50, iterations=5, horizon=30, particles=30, fits=40, table=(36, 9, 25, 7)
        ),
    },
    seeds={"smoke": 1, "quick": 5, "full": 5},
    run=run,
    report=report,
)
