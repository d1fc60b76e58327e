"""Every assumption that a sound cost bound lists is needed: where it is false the bound is below the truth.

A plant with two or three steps, so that each number can be checked by hand: x_1 = p(x_0, u_0) + f(x_0, u_0) + w and a cost of 1
for a state beyond the limit. Each case is built twice, with the assumption false and with it true; only the first may fail.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch
from test_assumptions import USED
from torch import Tensor

from gpsafe.assumptions import Assumption
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import monte_carlo
from gpsafe.cost.base import CostBound
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP, _prior
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, KnownPart, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task

A = Assumption
SIGMA = 0.1
LIMIT = 0.3
SOUND: dict[str, Callable[[Task], CostBound]] = {
    "robust-dp": lambda task: RobustDP(grid(task), task),
    "gaussian-tube": lambda task: GaussianTube(task=task),
    "scenario-tube": lambda task: ScenarioTube(task=task, seed=5, samples=2000, anchors=4),
    "total-variation": lambda task: TotalVariation(task=task, seed=5, samples=2000),
}


def grid(task: Task) -> Grid:
    if task.nx == 2:
        return Grid(Box(vector(-1.5, -1.5), vector(1.5, 1.5)), (60, 60))
    if task.horizon == 3:  # one cell holds all that one step may do: what it leaves out is the curvature
        return Grid(Box(vector(-1.125), vector(1.125)), (9,), (50,))
    return Grid(Box(vector(-1.5), vector(1.5)), (600,))


def linear(slope: float = 0.0, push: float = 0.0, *, nx: int = 1) -> AffineKnown:
    """p(x, u) = slope x_1 + push u, the same in every state."""
    matrix = torch.zeros(nx, nx).double()
    matrix[:, 0] = slope
    return AffineKnown(matrix, torch.full((nx, 1), push).double(), torch.zeros(nx).double())


@dataclass(frozen=True)
class World:
    """What is believed (F_n, task, policy) and what is true (f, noise, start, how the loop is closed)."""

    confidence: ConfidenceSet
    task: Task
    f: Callable[[Tensor], Tensor]
    gain: float = 0.0
    noise: float = SIGMA
    start: float = 0.0
    seen: Callable[[Tensor], Tensor] = lambda x: x
    applied: Callable[[Tensor], Tensor] = lambda u: u
    known: KnownPart | None = None

    @property
    def policies(self) -> AffinePolicies:
        row = torch.zeros(1, 1, self.task.nx).double()
        row[..., 0] = self.gain
        return AffinePolicies(torch.zeros(1, 1).double(), row, Box(vector(-5.0), vector(5.0)))

    def claim(self, bound: Callable[[Task], CostBound]) -> float:
        found = bound(self.task).evaluate(self.confidence, self.policies)
        assert found.sound_upper
        return float(found.upper[0])

    def truth(self, paths: int = 4000) -> float:
        """J_c of the true plant, by simulation: within 0.03 with certainty for these costs."""
        known, x = self.known or self.confidence.model.prior, torch.full((1, paths, self.task.nx), self.start).double()
        generator, total = torch.Generator().manual_seed(1), torch.zeros(1, paths).double()
        for _ in range(self.task.horizon):
            total = total + self.task.cost(x)
            u = self.applied(self.policies(self.seen(x)))
            mean = known(x, u) + self.f(torch.cat([x, u], dim=-1))
            x = mean + sample_noise(torch.full((self.task.nx,), self.noise).double(), (1, paths), generator)
        return float(total.mean())


def task_of(*, horizon: int = 2, cost: IndicatorCost | None = None, nx: int = 1, noise: float = SIGMA) -> Task:
    first = torch.eye(nx).double()[-1:]
    return Task(
        torch.zeros(nx).double(), horizon, cost or IndicatorCost(first, vector(LIMIT)), 0.5, vector(*[noise] * nx)
    )


def belief(
    observed: Tensor | None = None, *, norm: float = 1.0, noise: float = SIGMA, variance: float = 1.0,
    known: KnownPart | None = None, nx: int = 1,
) -> ConfidenceSet:  # fmt: skip
    """F_n after observations of f at z_0 = 0, λ = noise²."""
    kernel = kernels.rbf([1.0] * (nx + 1), variance=variance)
    outputs = {"outputs": (0,)} if nx == 2 else {}
    model = GP.create(
        kernel,
        SIGMA**2,
        nx=nx,
        nu=1,
        noise_std=SIGMA,
        prior=known or linear(nx=nx),
        **outputs,
    )
    if observed is not None:
        zero = torch.zeros(len(observed), nx).double()
        seen = torch.zeros(len(observed), nx).double()
        seen[:, 0] = observed
        model = model.condition(Transitions(zero, torch.zeros(len(observed), 1).double(), seen))
    return ConfidenceSet(Mixture(rkhs_norm=norm, subgaussian=noise, delta=0.1)).update(model)


def constant(value: float, *, norm_variance: float = 1.0) -> Callable[[Tensor], Tensor]:
    """f(z) = value·k(z, 0)/k(0, 0), whose norm is |value|/√variance."""
    return lambda z: value * torch.exp(-0.5 * z.square().sum(-1, keepdim=True))


def draws(count: int, seed: int = 0, *, scale: float = SIGMA) -> Tensor:
    return scale * torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


STILL = draws(400) - draws(400).mean()  # 400 observations of f(0) = 0


# ------------------------------------------------- one case a kind: (assumption true?) → world
def rkhs_norm(true: bool) -> World:
    return World(belief(norm=0.5 if true else 0.01), task_of(), constant(0.5))


def subgaussian(true: bool) -> World:
    noisy = 0.35 + draws(4, 6, scale=2.0)
    assert float(noisy.mean()) < -0.5  # by chance: nothing that a deviation of 2 would not do
    return World(belief(noisy, noise=2.0 if true else SIGMA), task_of(), constant(0.35))


def fixed_kernel(true: bool) -> World:
    """A kernel of 1/1000 of the size, taken because what was seen so far was small."""
    return World(belief(variance=1.0 if true else 1e-6), task_of(), constant(0.5))


def all_observations(true: bool) -> World:
    observed = 0.3 + draws(800, 2)
    return World(belief(observed if true else observed[observed < 0.3]), task_of(), constant(0.3))


def task(true: bool) -> World:
    stated = task_of() if not true else task_of().with_(initial_state=vector(0.5))
    return World(belief(norm=0.01, known=linear(1.0)), stated, constant(0.0), start=0.5)


def gaussian_noise(true: bool) -> World:
    believed = 0.5 if true else SIGMA
    return World(belief(STILL, noise=believed), task_of(noise=believed), constant(0.0), noise=0.5)


def exact_state(true: bool) -> World:
    seen = (lambda x: x) if true else (lambda x: x - 1.0)
    return World(belief(norm=0.01, known=linear(1.0, 1.0)), task_of(), constant(0.0), gain=-1.0, seen=seen)


def exact_input(true: bool) -> World:
    applied = (lambda u: u) if true else (lambda u: u + 1.0)
    return World(belief(norm=0.01, known=linear(1.0, 1.0)), task_of(), constant(0.0), gain=-1.0, applied=applied)


class Blind(IndicatorCost):
    """A cost whose supremum over sets is wrong."""

    def of_reach(self, reach: Tensor) -> Tensor:
        return torch.zeros_like(reach[..., 0])

    def excess(self, x: Tensor) -> Tensor:
        return torch.full_like(x[..., :1], -1.0)


def cost_range(true: bool) -> World:
    rows = (torch.eye(1).double(), vector(LIMIT))
    task = task_of(cost=IndicatorCost(*rows))
    if not true:
        object.__setattr__(
            task, "cost", Blind(*rows)
        )  # a task refuses one that drawn points refute, and need not find them
    return World(belief(STILL + 0.5), task, constant(0.5))


@dataclass(frozen=True)
class Parabola:
    """p = 25 x², with whatever is said about its second derivative."""

    said: float

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return 25 * x.square() + 0 * u

    @property
    def hessian_bound(self) -> Tensor:
        bound = torch.zeros(1, 2, 2).double()
        bound[0, 0, 0] = self.said
        return bound


def known_derivatives(true: bool) -> World:
    """x_1 = 0.1, x_2 = 25·0.01 + 0.1: beyond the limit by curvature alone, of which the drawn points say nothing here."""
    with nullcontext() if true else mock.patch.object(_prior, "check_derivatives"):
        believed = belief(norm=0.1, noise=1e-3, known=Parabola(50.0 if true else 0.0))
    return World(believed, task_of(horizon=3, noise=1e-4), constant(0.1), noise=1e-4)


def monte_carlo_seed(true: bool) -> World:
    return World(belief(STILL + 0.25), task_of(), constant(0.25))


def known_outputs(true: bool) -> World:
    """The second state, without a process of its own, really moves by 0.5 more than the known part says."""
    moved = replace(linear(nx=2), c=vector(0.0, 0.5))
    still = torch.zeros(5).double()
    believed = belief(still, norm=0.1, known=moved if true else linear(nx=2), nx=2)
    return World(believed, task_of(nx=2), lambda z: torch.zeros_like(z[..., :2]), known=moved)


CASES = {
    A.RKHS_NORM: rkhs_norm, A.SUBGAUSSIAN: subgaussian, A.FIXED_KERNEL: fixed_kernel, A.ALL_OBSERVATIONS: all_observations,
    A.TASK: task, A.GAUSSIAN_NOISE: gaussian_noise, A.EXACT_STATE: exact_state, A.EXACT_INPUT: exact_input,
    A.COST_RANGE: cost_range, A.KNOWN_DERIVATIVES: known_derivatives, A.MONTE_CARLO_SEED: monte_carlo_seed,
    A.KNOWN_OUTPUTS: known_outputs,
}  # fmt: skip
REASONS = {
    A.ROUNDING: "no statement about the plant: measured against long arithmetic in tests of confidence and tubes"
}
PAIRS = [(name, kind) for name in SOUND for kind in (*sorted(USED[name], key=lambda k: k.name), A.KNOWN_OUTPUTS)]


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] not in REASONS])
def test_a_false_assumption_does_damage_and_a_true_one_none(name, kind, monkeypatch):
    honest, world = CASES[kind](True), CASES[kind](False)
    assert honest.claim(SOUND[name]) >= honest.truth() - 0.03
    if kind is A.MONTE_CARLO_SEED:  # pseudo-random numbers that are not random
        monkeypatch.setattr(
            monte_carlo, "sample_noise", lambda std, shape, _: torch.zeros(*shape, std.numel()).double()
        )
    assert world.claim(SOUND[name]) < world.truth() - 0.05


def test_every_listed_assumption_has_a_case_or_a_reason():
    assert {kind for _, kind in PAIRS} == set(CASES) | set(REASONS)
