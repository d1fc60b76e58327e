"""Cart-pole swung up from hanging behind the shield: |x| ≤ 0.6 m at every step, while masses and length are learned.

Theory mode on an RKHS twin: a light pole (0.1 kg, 1 m) on a cart of 1 kg with 10 N, so that a certified brake can stop the cart
while the pole turns over. Two episodes of S_0 within 0.15 m of rest come first; then an explorer (reward of the swing-up +
information) proposes and `gpsafe.safety.shield` admits, from x_0 certified. Certificates reach to the end of the
episode, so that from high up few steps are left to certify. Two explorers, one that prices the limit on particles and one that
is blind to it, fly with and without the shield; the backup flies alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.episode import Trajectory
from gpsafe.algorithms.learned import TheoryModel
from gpsafe.algorithms.learner import EpisodePolicy, stream
from gpsafe.algorithms.receding import TASK, RecedingActSafe
from gpsafe.confidence import Mixture
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.plan_tube import PlanTube
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning import ICEM, Constraint, Explorer, Planner, Table
from gpsafe.planning.tracking import Tracking
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety.shield import NotCertified, noise_radius
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.cartpole_local import CartPoleLocal
from gpsafe.systems.cartpole_policies import hanging_lqr
from gpsafe.systems.rkhs_twin import RKHSTwin, twin
from gpsafe.systems.task import Task
from gpsafe.testbed.experiment import Experiment, Piece, Record

from ._report.cartpole import near_rest
from ._report.swingup import BRAKE, UP, body, report, shielded

VARIANTS = ("aware+shield", "blind+shield", "aware", "blind")


@dataclass(frozen=True, slots=True)
class Arguments:
    """Settings."""

    variants: tuple[str, ...] = VARIANTS
    """Explorers that price the limit ("aware") or do not ("blind"), behind the shield or not."""
    episodes: int = 12
    """Episodes of exploration, those of S_0 included."""
    tasks: int = 3
    """Episodes that seek the reward alone, from which nothing is learned: after S_0, and again after exploration."""
    initial: int = 2
    """Episodes of S_0."""
    steps: int = 70
    """Steps of an episode, 0.05 s each."""
    track: float = 0.6
    """Limit on |x|, m."""
    noise: tuple[float, float, float, float] = (1e-4, 5e-5, 2e-4, 5e-4)
    """Standard deviation of the process noise (m, rad, m/s, rad/s)."""
    errors: tuple[float, float, float] = (0.05, 0.05, 0.03)
    """Relative errors of the known part's masses (cart, pole) and length."""
    samples: int = 200
    """Sequences per iCEM iteration."""
    elites: int = 20
    """Elites of iCEM."""
    iterations: int = 3
    """Iterations of iCEM."""
    horizon: int = 30
    """Planning horizon, steps."""
    particles: int = 3
    """Particles that price the limit."""
    margin: float = 0.05
    """By which the price keeps away from the limit, m."""
    intrinsic: float = 0.1
    """Weight of information beside the reward."""
    order: int = 128
    """Generators of a tube."""
    spacing: tuple[float, float, float] = (0.2, 1.0, 0.4)
    """Of the anchors at which F_n is tabulated, in (θ, ω, u)."""
    delta: float = 0.1
    """Probability that f* is outside some F_n."""
    delta_noise: float = 0.01
    """Probability that the noise leaves its box in any step of any episode of a seed."""

    def __post_init__(self) -> None:
        _require.names("--variants", self.variants, VARIANTS)


def plant(arguments: Arguments) -> RKHSTwin:
    """RKHS twin of the light cart-pole over a turn and a fifth each way; v⁺ and ω⁺ are learned as functions of (θ, ω, u)."""
    a = arguments
    physics = body(a)
    cart, pole, length = a.errors
    half = vector(2 * a.track, 1.2 * math.pi, 5.0, 8.0, 1.0)
    return twin(
        physics,
        CartPoleLocal(physics.prior(cart_error=cart, pole_error=pole, length_error=length)),
        kernels=kernels.rbf([1.2, 8.0, 3.0], variance=0.05**2, dims=(1, 3, 4)),
        outputs=(2, 3),
        counts=(1, 13, 1, 5, 3),
        region=Box(-half, half),
        ridge=1e-3,
        test_points=3000,
    )


def reward(x: Tensor, u: Tensor) -> Tensor:
    """−(1 + cos θ)² − 0.2x² − 0.01v² − 0.001u²: the published one charges the speeds that a swing-up needs."""
    position, theta, v, _ = x.unbind(-1)
    return -(1.0 + theta.cos()).square() - 0.2 * position.square() - 0.01 * v.square() - 0.001 * u[..., 0].square()


def _judged(arguments: Arguments, system: RKHSTwin) -> tuple[PlanTube, Tracking]:
    """Of plans that end in one of two brakes: to hanging at rest, or of the cart alone while the pole turns over."""
    a = arguments
    rests = [hanging_lqr(system.known, position=q, speed=0.1, swing=10.0, effort=1.0) for q in (5.0, 20.0)]
    brakes = [
        hanging_lqr(system.known, position=20.0, speed=0.1, swing=1.0, effort=1.0),
        vector(*BRAKE).reshape(1, 4),
    ]
    nothing = torch.zeros(2, 1, dtype=torch.float64)
    judge = PlanTube(
        fallbacks=AffinePolicies(nothing, -torch.stack(rests), system.input_box),
        task=Task.of(system),
        noise_radius=noise_radius(system.noise_std, steps=a.steps * (a.episodes + 2 * a.tasks), delta=a.delta_noise),
        input_box=system.input_box,
        anchors=AnchorGrid.create(system.region, vector(math.inf, a.spacing[0], math.inf, *a.spacing[1:])),
        order=a.order,
    )
    tracking = Tracking(
        brakes=AffinePolicies(nothing, -torch.stack(brakes), system.input_box),
        authority=vector(0.7, 0.8),
        state_weight=vector(5.0, 5.0, 0.1, 0.1),
        input_weight=vector(1.0),
    )
    return judge, tracking


def learner(arguments: Arguments, system: RKHSTwin, variant: str, seed: int) -> RecedingActSafe:
    """One variant before any data."""
    a, cost, noise, learned = arguments, system.cost, system.noise_std, list(system.outputs)
    assert isinstance(cost, IndicatorCost)
    gp = GP.create(
        system.kernels, noise[learned].square(), nx=4, nu=1, noise_std=noise, outputs=learned, prior=system.known
    )
    bound = Mixture(
        rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=tuple(noise[learned].tolist()), delta=a.delta
    )
    box = Box(vector(-1.2 * math.pi, -8.0, -1.0), vector(1.2 * math.pi, 8.0, 1.0))
    judge, tracking = _judged(a, system)
    model = TheoryModel.create(
        gp,
        bound,
        tabulate=lambda gp: Table.build(gp, system.known, box, counts=(31, 17, 5), axes=(1, 3, 4)),
        judge=judge,
        tracking=tracking,
    )
    planner = Planner(
        Explorer("swing-up", 1.0, a.intrinsic, "sound" if shielded(variant) else "sampled"),
        ICEM(a.samples, a.elites, a.iterations, a.horizon, exponent=1.0),
        system.input_box,
        reward,
        Constraint(cost, margin=a.margin, form="worst"),
        particles=a.particles,
        beta=2.0,
        penalty=1e3 if variant.startswith("aware") else 1e-9,
    )
    return RecedingActSafe(
        system,
        planner,
        model,
        near_rest(system, reach=0.15, position=10.0, swing=1.0),
        initial_episodes=a.initial,
        delta_noise=a.delta_noise,
        seed=seed,
    )


def _row(found: Trajectory, agent: RecedingActSafe, phase: str) -> Piece:
    """What happened in one episode, and whether f* was in F_n at 1000 random points."""
    system, known = agent.system, agent.known
    assert isinstance(system, RKHSTwin) and isinstance(known, TheoryModel)
    away = (torch.remainder(found.states[1:, 1], 2 * math.pi) - math.pi).abs()
    points = system.region.sample(1000, stream(agent.seed, 7, agent.told))
    row = {
        "phase": phase,
        "cost": float(system.cost(found.states[1:]).sum()),
        "max_position": float(found.states[:, 0].abs().max()),
        "closest": float(away.min()),
        "upright": int((away < UP).sum()),
        "reward": float(reward(found.states[1:], found.inputs).sum()),
        "overridden": int(found.overridden.sum()),
        "inside": known.confidence.contains(system.residual_fn, points).outcome == "HOLDS",
        "falsified": found.falsified or "",
        "planning_s": found.planning_s,
        "verifying_s": found.verifying_s,
        **{f"from_{s}": found.sources.count(s) for s in ("plan", "stored", "fallback", "initial")},
    }
    return Piece([row], {"states": found.states, "inputs": found.inputs})


def _episode(agent: RecedingActSafe) -> Piece:
    policy = agent.ask()
    found = agent.flown(policy, *agent.rollout(policy))
    return _row(found, agent, "initial" if "initial" in found.sources else "explore")


def _task(agent: RecedingActSafe, number: int) -> Piece:
    """One episode for the reward alone; no row if no fallback is certified, and none is begun then."""
    policy = agent.task(number=number)
    if isinstance(policy, NotCertified):
        return Piece([])
    return _row(agent.flown(policy, *agent.rollout(policy)), agent, "task")


def _backup(arguments: Arguments, agent: RecedingActSafe, number: int) -> Piece:
    """The stiffer fallback from the first step to the last."""
    judge, _ = _judged(arguments, agent.system)  # type: ignore[arg-type]
    law = judge.fallbacks.select(torch.tensor([1]))
    policy = EpisodePolicy(
        lambda x: law(x.reshape(1, 1, 4))[0, 0],
        agent.system,
        number=number,
        start=agent.system.initial_state,
        unsound="no certificate was asked for",
    )
    return _row(agent.flown(policy, *agent.rollout(policy)), agent, "backup")


def _explore(arguments: Arguments, variant: str, seed: int, record: Record) -> None:
    system = plant(arguments)
    agent = learner(arguments, system, variant, seed)
    for number in range(arguments.episodes):
        if number == arguments.initial and shielded(variant):
            for k in range(arguments.tasks):
                record.piece(f"{variant}/early-{k}", lambda k=k: _task(agent, 2 * TASK + k))
        piece = record.piece(f"{variant}/episode-{number:02d}", lambda: _episode(agent))
        agent.tell(
            piece.tensors["states"], piece.tensors["inputs"], falsified=piece.rows[0]["falsified"] or None
        )  # fmt: skip
        record.progress(number, arguments.episodes, variant)
    for k in range(arguments.tasks):
        record.piece(f"{variant}/task-{k}", lambda k=k: _task(agent, TASK + k))
    if variant == arguments.variants[0]:
        for k in range(arguments.tasks):
            record.piece(f"backup/task-{k}", lambda k=k: _backup(arguments, agent, TASK + k))


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """All variants of one seed; the plant's noise in an episode is the same for all."""
    torch.set_num_threads(1)
    for variant in arguments.variants:
        _explore(arguments, variant, seed, record)


SMOKE = Arguments(
    variants=("aware+shield", "blind"),
    episodes=3,
    tasks=1,
    steps=4,
    samples=10,
    elites=3,
    iterations=2,
    horizon=4,
    particles=2,
    order=16,
    spacing=(1.5, 8.0, 1.0),
)

EXPERIMENT = Experiment(
    name="cartpole-swingup",
    title="Cart-pole swung up behind the shield",
    arguments=Arguments,
    budgets={"smoke": SMOKE, "quick": Arguments(), "full": Arguments(episodes=20, samples=400, particles=5)},
    seeds={"smoke": 1, "quick": 3, "full": 10},
    run=run,
    report=report,
)
