"""What the experiment on neighbouring methods runs: explorers of one policy class, tubes of one plan, a shield's backup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from gpsafe.algorithms import ActSafe, GoSafe, Margins, SafeOpt, Totals
from gpsafe.algorithms.learner import Learner
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Constant, Mixture
from gpsafe.confidence.members import extremal_member
from gpsafe.cost import CostToGo
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels, random_function
from gpsafe.safety import SafeOptRule
from gpsafe.sets import Box
from gpsafe.systems.base import KnownPart, sample_noise
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.reference import reference_1d, reference_1d_policies, reference_pendulum
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.tube import GPTube, KollerTube, SampledTube, Tube, TubeModel, lqr_gain, propagate

from . import line

SMOOTH = {"kernel": kernels.rbf([0.5], variance=0.5), "noise_std": 0.05}  # of margins, by eye
REWARD = {"kernel": kernels.rbf([0.5], variance=900.0), "noise_std": 0.3}
COST = kernels.matern(0.5, [0.5], variance=100.0)
THRESHOLD = vector(-torch.inf, 0.0)


# ------------------------------------------------------------------------------------------------------- explorers
@dataclass(frozen=True, eq=False)
class Stage:
    """A plant and a class of set-point policies, where the truth can be computed.

    Attributes:
        system: in the ball, norm and kernel known.
        policies, points, initial: the class, its set-points (P, 1), and S_0.
        grid: of the robust program.
    """

    system: RKHSTwin
    policies: AffinePolicies
    points: Tensor
    initial: tuple[int, ...]
    grid: Box

    def program(self, cells: int) -> RobustDP:
        """The robust program of the task."""
        return RobustDP(Grid(self.grid, (cells,)), Task.of(self.system))


@lru_cache(maxsize=4)
def truth(stage: Stage, cells: int) -> line.Truth:
    """J_c of every policy on the plant, enclosed."""
    fine, system = stage.program(cells), stage.system
    confidence = ConfidenceSet(line.sound_bound(system)).update(line.model(system))
    enclosure = fine.enclosure(confidence, stage.policies)
    exact = enclosure.with_residual(system.residual_fn(enclosure.z))
    return line.Truth(fine.lower(exact), fine.upper(exact))


@cache
def reference() -> Stage:
    """The 1-D reference plant and its 81 policies."""
    policies, initial = reference_1d_policies()
    points = torch.linspace(-0.5, 1.5, 81, dtype=torch.float64).unsqueeze(-1)
    return Stage(reference_1d(), policies, points, tuple(initial.tolist()), Box(vector(-1.0), vector(1.5)))


@lru_cache(maxsize=2)
def dormant(seed: int) -> Stage:
    """A plant on the line with the worst f of its norm: invisible up to a random state, then it pushes outwards."""
    system = line.plant(line.dormant(torch.Generator().manual_seed(40_000 + seed)), noise_std=0.01, horizon=20)
    points = torch.linspace(-0.4, 1.6, 81, dtype=torch.float64)
    return Stage(system, line.set_points(points), points.unsqueeze(-1), (0, 1, 2, 3, 4), line.STATES)


STAGES: Mapping[str, Callable[[int], Stage]] = {"reference": lambda seed: reference(), "dormant": dormant}


def _safeopt(
    stage: Stage, cost: GP, bound: ConfidenceBound, rule: SafeOptRule, measure: Any, seed: int, **options: Any
) -> SafeOpt:
    parts = (stage.policies, list(stage.initial), stage.points, (GP.regression(**REWARD, dim=1), cost))
    kind = GoSafe if options else SafeOpt
    return kind(stage.system, *parts, (Constant(value=2.0), bound), rule, measure, seed=seed, **options)


def _actsafe(stage: Stage, cells: int, seed: int) -> ActSafe:
    parts = (line.model(stage.system), line.sound_bound(stage.system), stage.program(cells))
    return ActSafe(stage.system, stage.policies, list(stage.initial), *parts, seed=seed)


def _theorem(stage: Stage, cells: int, seed: int) -> SafeOpt:
    """B from the true costs: the least norm of a function through d − J_c of the class, and 1 % more."""
    slack = stage.system.budget - truth(stage, 8 * cells).upper
    gram = kernels.cross(COST, stage.points, stage.points)
    norm = 1.01 * float((slack @ torch.linalg.solve(gram, slack)).sqrt())
    noise = 0.5 * stage.system.horizon
    bound = Mixture(rkhs_norm=norm, subgaussian=noise, delta=0.1)
    model = GP.regression(COST, dim=1, noise_std=noise)
    return _safeopt(stage, model, bound, SafeOptRule(THRESHOLD, agree="same"), None, seed)


def _by_eye(measure: Any, rule: SafeOptRule, **options: Any) -> Callable[[Stage, int, int], SafeOpt]:
    """β = 2 and one smooth GP for the constraint, as it is run in practice."""

    def made(stage: Stage, cells: int, seed: int) -> SafeOpt:
        model = GP.regression(**SMOOTH, dim=1)
        return _safeopt(stage, model, Constant(value=2.0), rule, measure(stage.system), seed, **options)

    return made


SAME = SafeOptRule(THRESHOLD, agree="same")
EXPLORERS: Mapping[str, Callable[[Stage, int, int], Learner]] = {
    "ActSafe": _actsafe,
    "SafeOpt, as far as a theorem": _theorem,
    "SafeOpt, cost, beta = 2": _by_eye(Totals, SAME),
    "SafeOpt, margin, beta = 2": _by_eye(Margins, SAME),
    "SafeOpt, margin, beta = 2, L": _by_eye(Margins, SafeOptRule(THRESHOLD, vector(0.0, 1.2))),
    "SafeOpt, released program": _by_eye(Margins, SafeOptRule.released(THRESHOLD)),
    "GoSafe, margin, beta = 2": _by_eye(Margins, SAME, lipschitz_state=1.2, jump=0.5, settled=1.5),
}


def members(learner: Learner) -> Tensor:
    """S_n, as indices."""
    if isinstance(learner, SafeOpt):
        return torch.nonzero(learner.standing.sets[-1].safe).flatten()
    assert isinstance(learner, ActSafe)
    return learner.standing.safe_set.members


# ----------------------------------------------------------------------------------------------------------- tubes
@dataclass(frozen=True)
class World:
    """A plant with a residual in the ball, and what is known of it.

    Attributes:
        known: known part; f: residual of the learned outputs, (n, nx + nu) → (n, p).
        outputs: learned states.
        confidence: F_n after some transitions.
        gain: of the plan.
        starts: where plans begin.
    """

    known: KnownPart
    f: Callable[[Tensor], Tensor]
    outputs: tuple[int, ...]
    confidence: ConfidenceSet
    gain: Tensor
    starts: Box


def _world(known: KnownPart, f: Any, kernel: Any, norm: Any, noise: Tensor, box: Box, count: int, seed: int) -> World:
    """The second state is learned from transitions that start anywhere in the box."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x, u = box.sample(count, generator), Box(vector(-1.0), vector(1.0)).sample(count, generator)
    following = known(x, u).clone()
    following[:, 1] += f(torch.cat([x, u], -1))[:, 0]
    data = Transitions(x, u, following + sample_noise(noise, (count,), generator))
    model = GP.create(kernel, float(noise[1]) ** 2, nx=2, nu=1, noise_std=noise, outputs=(1,), prior=known)
    bound = Mixture(rkhs_norm=norm, subgaussian=float(noise[1]), delta=0.1)
    confidence = ConfidenceSet(bound).update(model.condition(data))
    A, B = (m[0] for m in known.jacobian(torch.zeros(1, 2).double(), torch.zeros(1, 1).double()))  # type: ignore[attr-defined]
    gain = lqr_gain(A, B, input_weight=torch.tensor([[10.0]]).double())
    return World(known, f, (1,), confidence, gain, Box(0.3 * box.lower, 0.3 * box.upper))


def pendulum(count: int, seed: int) -> World:
    """The RKHS twin of the reference pendulum (θ = 0 hangs)."""
    system = reference_pendulum()
    norm = tuple(system.rkhs_norm.tolist())
    box = Box(vector(-1.0, -3.0), vector(1.0, 3.0))
    return _world(system.known, system.residual_fn, system.kernels, norm, system.noise_std, box, count, seed)


def double_integrator(count: int, seed: int) -> World:
    """A double integrator with a random push of norm 2 on its speed."""
    kernel, generator = kernels.rbf([1.0, 1.0, 2.0], variance=0.03**2), torch.Generator().manual_seed(seed)
    push = random_function(kernel, -torch.ones(3).double(), torch.ones(3).double(), norm=2.0, generator=generator)
    box = Box(-torch.ones(2).double(), torch.ones(2).double())
    known = DoubleIntegrator().prior(mass_error=0.0)
    return _world(known, lambda z: push(z).unsqueeze(-1), kernel, 2.0, vector(0.001, 0.003), box, count, seed)


WORLDS = {"double integrator": double_integrator, "pendulum": pendulum}
SAMPLES = (5, 20, 100)


def tube_models(world: World, steps: int, delta: float, seed: int) -> dict[str, TubeModel]:
    """Name → tube model."""
    found: dict[str, TubeModel] = {
        "GP tube (ours)": GPTube(world.confidence, steps, delta),
        "Koller, mean": KollerTube(world.confidence, steps, delta),
        "Koller, known part": KollerTube(world.confidence, steps, delta, "known"),
    }
    for count in SAMPLES:
        generator = torch.Generator().manual_seed(77_000 + 1000 * seed + count)
        found[f"{count} samples"] = SampledTube(world.confidence.model, count, generator, steps, delta)
    return found


def hull(tube: Tube) -> tuple[Tensor, Tensor]:
    """Ends of the box around all members' sections, (T + 1, nx) each; infinite where a tube was lost."""
    radius = tube.factor.norm(dim=-1).nan_to_num(nan=torch.inf)
    center = tube.center.nan_to_num(nan=0.0)
    return (center - radius).amin(0), (center + radius).amax(0)


def contained(world: World, tube: Tube, inputs: Tensor, f: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    """Whether runs of known part + f under the tube's law stay in its hull at all steps, (N,); noise (T, N, nx)."""
    low, high = hull(tube)
    x = tube.reference[0].expand(noise.shape[1], -1)
    kept = torch.ones(noise.shape[1], dtype=torch.bool)
    for k in range(len(inputs)):
        u = inputs[k] + (x - tube.reference[k]) @ tube.gain[k].mT
        following = world.known(x, u).clone()
        following[:, list(world.outputs)] += f(torch.cat([x, u], dim=-1)).reshape(len(x), -1)
        x = following + noise[k]
        kept &= ((x >= low[k + 1] - 1e-12) & (x <= high[k + 1] + 1e-12)).all(-1)
    return kept


def tubes(world: World, steps: int, plans: int, runs: int, delta: float, seed: int) -> list[dict[str, Any]]:
    """A row for each plan and tube: width of the second state's hull over the horizon, and who stayed inside."""
    generator, rows = torch.Generator().manual_seed(500 + seed), []
    models = tube_models(world, steps, delta, seed)
    for plan in range(plans):
        x0 = world.starts.sample(1, generator)[0]
        inputs = 0.4 * torch.randn(steps, 1, dtype=torch.float64, generator=generator)
        noise = sample_noise(world.confidence.model.noise_std, (steps, runs), generator)
        z = torch.cat([x0, inputs[0]])
        edge = [extremal_member(world.confidence.bound, world.confidence.model, z, s) for s in (1.0, -1.0)]
        for name, model in models.items():
            tube = propagate(model, x0, inputs, world.gain)
            low, high = hull(tube)
            inside = contained(world, tube, inputs, world.f, noise)
            members = [contained(world, tube, inputs, f, noise) for f in edge]
            widths = {f"width_{k}": float(w) for k, w in enumerate((high - low)[:, 1])}
            kept = {"truth": int(inside.sum()), "edge": int(sum(m.sum() for m in members)), "runs": runs}
            rows.append({"plan": plan, "tube": name, **kept, **widths})
    return rows


# -------------------------------------------------------------------------------------------------------- recovery
def backed(count: int, cells: int, seed: int) -> CostToGo:
    """The certified cost-to-go of a low set-point, after transitions from anywhere in [−0.8, 1.3]."""
    stage = reference()
    system, model, bound = stage.system, line.model(stage.system), line.sound_bound(stage.system)
    generator = torch.Generator().manual_seed(2000 + seed)
    x, u = Box(vector(-0.8), vector(1.3)).sample(count, generator), system.input_box.sample(count, generator)
    y = system.mean(x, u) + sample_noise(system.noise_std, (count,), generator)
    confidence = ConfidenceSet(bound).update(model.condition(Transitions(x, u, y)) if count else model)
    backup = stage.policies.select(torch.tensor([10]))
    return CostToGo.of(stage.program(cells), confidence, backup, system.input_box)
