"""Every learner at toy size, as a function of its plant: what the contract of learners is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from shield_cases import judge_of, tracking_of
from torch import Tensor

from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.algorithms.actsafe_continuous import ContinuousActSafe
from gpsafe.algorithms.learned import PracticalModel, TheoryModel
from gpsafe.algorithms.learner import Learner
from gpsafe.algorithms.receding import RecedingActSafe
from gpsafe.algorithms.safeopt import GoSafe, Margins, SafeOpt
from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning import ICEM, Constraint, Planner, untrained
from gpsafe.planning.explorers import EXPLORERS
from gpsafe.planning.search import RandomSearch
from gpsafe.policies import AffinePolicies
from gpsafe.policies.parametric import set_point_family
from gpsafe.rkhs import kernels
from gpsafe.safety import SafeOptRule
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, HalfspaceCost, IndicatorCost, System
from gpsafe.systems.real import RealPlant
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from tests.cost_cases import Case

one_d = cache(reference_1d)


@cache
def swing() -> RKHSTwin:
    """The reference pendulum in episodes of twelve steps."""
    plant = reference_pendulum()
    return replace(plant, physics=replace(plant.physics, horizon=12))  # type: ignore[type-var]


def one_d_policies() -> AffinePolicies:
    return reference_1d_policies()[0]


def line_gp(regularizer: float = 1e-4) -> GP:
    plant = one_d()
    return GP.create(plant.kernels, regularizer, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)


def line_bound() -> Mixture:
    return Mixture(rkhs_norm=tuple(one_d().rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)


def finite(system: System | None = None, **changes: Any) -> ActSafe:
    policies, initial = reference_1d_policies()
    dp = RobustDP(Grid(Box(vector(-1.0), vector(1.5)), (150,)), Task.of(one_d()))
    parts: dict[str, Any] = {"policies": policies, "initial_safe": initial.tolist(), "model": line_gp()}
    parts |= {"bound": line_bound(), "cost_bound": dp, "threshold": 0.3}
    return ActSafe(system or one_d(), **{**parts, **changes})


def continuous(system: System | None = None, **changes: Any) -> ContinuousActSafe:
    family = set_point_family((-0.6, 1.4), (1.0, 6.0), input_box=one_d().input_box)
    dp = RobustDP(Grid(Box(vector(-2.0), vector(1.5)), (200,)), Task.of(one_d()))
    initial = torch.tensor([[-0.5, 3.0], [-0.4, 3.0]]).double()
    parts = (system or one_d(), family, initial, line_gp(), line_bound(), dp, RandomSearch(3))
    options = {"episodes": 2, "starts": 2, "rounds": 2, "rollouts": {"paths": 1}}
    return ContinuousActSafe(*parts, **{**options, **changes})


def planner(system: System, explorer: str = "actsafe-sound") -> Planner:
    cost = system.cost
    assert isinstance(cost, HalfspaceCost)
    return Planner(
        EXPLORERS[explorer], ICEM(8, 3, 1, 4), system.input_box, system.reward, Constraint(cost), particles=2
    )


@cache
def theory(norm: float = 1.0) -> TheoryModel:
    plant, (policies, _) = swing(), reference_pendulum_policies()
    gp = GP.create(plant.kernels, 1e-4, nx=2, nu=1, noise_std=plant.noise_std, outputs=plant.outputs, prior=plant.known)
    bound = Mixture(rkhs_norm=tuple((norm * plant.rkhs_norm).tolist()), subgaussian=0.01, delta=0.1)
    case = Case(plant, policies, ConfidenceSet(bound))
    return TheoryModel.create(gp, bound, judge=judge_of(case), tracking=tracking_of(case))


def sound(system: System | None = None, **changes: Any) -> RecedingActSafe:
    plant, (policies, _) = system or swing(), reference_pendulum_policies()
    model = changes.pop("model", None) or theory()
    options = {"initial_episodes": 2, "delta_noise": 0.9, **changes}
    return RecedingActSafe(plant, planner(plant), model, policies.select(torch.tensor([5, 14, 22, 28])), **options)


def practical(system: System | None = None, **changes: Any) -> RecedingActSafe:
    plant = system or swing()
    gp = untrained(
        identity, nx=2, nu=1, noise_std=plant.noise_std, generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    options = {"initial_episodes": 0, "pessimism": "sampled", **changes}
    return RecedingActSafe(plant, planner(plant), PracticalModel(gp, fits=lambda count: 2), **options)


def identity(x: Tensor) -> Tensor:
    return x


def safeopt(system: System | None = None, **changes: Any) -> SafeOpt:
    """On the measured J_r and J_c with the noise that an episode's cost is known to have."""
    policies, initial = reference_1d_policies()
    points = torch.linspace(-0.5, 1.5, 81).double().unsqueeze(-1)
    models = [
        GP.regression(kernels.rbf([0.5], variance=v), dim=1, noise_std=n) for v, n in ((100.0, 0.3), (25.0, 10.0))
    ]
    bounds = [Mixture(rkhs_norm=b, subgaussian=n, delta=0.05) for b, n in ((4.0, 0.3), (4.0, 10.0))]
    rule = SafeOptRule(vector(-torch.inf, 0.0), agree="same")
    parts = (policies, initial.tolist(), points, tuple(models), tuple(bounds), rule)
    return SafeOpt(system or one_d(), *parts, **changes)


def gosafe(system: System | None = None, **changes: Any) -> GoSafe:
    """On margins, with everything chosen by hand."""
    given = safeopt()
    models = (given.models[0], GP.regression(kernels.rbf([0.5], variance=0.5), dim=1, noise_std=0.05))
    bounds = (Constant(value=2.0), Constant(value=2.0))
    parts = (given.policies, given.initial_safe, given.points, models, bounds, given.rule, Margins(one_d()))
    options = {"lipschitz_state": 1.0, "jump": 0.05, "settled": 100.0, **changes}
    return GoSafe(system or one_d(), *parts, **options)


def island(lipschitz: float = 1.0, jump: float = 0.2) -> GoSafe:
    """x⁺ = x + 0.2u, (almost) no noise, ten steps: u = 1 leaves x ≤ 1, the other inputs do not; 3 is no neighbour."""
    one = torch.ones(1, 1).double()
    system = CallableSystem(
        name="island", nx=1, nu=1, state_box=Box(vector(-3.0), vector(3.0)), input_box=Box(vector(-1.0), vector(1.0)),
        noise_std=vector(1e-9), initial_state=vector(0.0), horizon=10, cost=IndicatorCost(one, vector(1.0)), budget=0.0,
        dynamics=lambda x, u: x + 0.2 * u, reward_fn=lambda x, u: -x[..., 0],
    )  # fmt: skip
    policies = AffinePolicies(
        vector(0.0, 0.05, 1.0, -0.35).reshape(4, 1), torch.zeros(4, 1, 1).double(), system.input_box
    )
    models = tuple(GP.regression(kernels.rbf([0.05], variance=4.0), dim=1, noise_std=0.01) for _ in range(2))
    points = vector(0.0, 0.05, 1.0, 2.0).reshape(4, 1)
    parts = (system, policies, [0], points, models, (Constant(value=2.0),) * 2, SafeOptRule(vector(-torch.inf, 0.0)))
    return GoSafe(*parts, Margins(system), lipschitz_state=lipschitz, jump=jump, settled=1.0)


LEARNERS: dict[str, Callable[..., Learner]] = {
    "finite": finite,
    "continuous": continuous,
    "receding-sound": sound,
    "receding-practical": practical,
    "safeopt": safeopt,
    "gosafe": gosafe,
}


def robot_of(plant: System) -> RealPlant:
    """The same task on a plant whose dynamics nobody may ask for."""
    return RealPlant(Task.of(plant), plant.state_box, plant.input_box, plant.reward)
