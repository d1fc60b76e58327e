"""What is handed to a user's known part, or handed out by it, is nobody's to write on: x itself may come back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture, regions
from gpsafe.cost import GaussianTube, PlanTube, RobustDP, ScenarioTube, TotalVariation
from gpsafe.cost.grid import Grid
from gpsafe.cost.plan_tube import Plans
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import certified_map
from gpsafe.sets import Box, Polytope
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems import derived_known
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown, SineKnown
from gpsafe.systems.task import Task
from gpsafe.tube import GPTube, KollerTube, LinearTube, propagate

ONE = torch.ones(1, 1, dtype=torch.float64)
KEPT = torch.tensor([0.2], dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


class Returned:
    """p(x, u) = x or a constant, in the very memory of x or of the constant, or in memory of its own."""

    hessian_bound = torch.zeros(1, 2, 2, dtype=torch.float64)

    def __init__(self, *, constant: bool, own: bool) -> None:
        self.constant, self.own, self.kept = constant, own, KEPT.clone()

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        value = self.kept.expand(x.shape) if self.constant else x
        return value.clone() if self.own else value

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        unit = torch.ones(*x.shape, 1, dtype=torch.float64)
        return (0.0 if self.constant else 1.0) * unit, 0.0 * unit


def policies(count: int) -> AffinePolicies:
    return AffinePolicies(torch.zeros(count, 1), -0.1 * torch.ones(count, 1, 1), Box([-1.0], [1.0]))


def learned(known: Callable[[Tensor, Tensor], Tensor]) -> ConfidenceSet:
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=0.01, prior=known)
    z = torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bound = Mixture(rkhs_norm=1.0, subgaussian=0.01, delta=0.1)
    return ConfidenceSet(bound).update(model.condition_on(z, 0.3 + 0 * z[:, :1]))


def verified(confidence: ConfidenceSet, task: Task, x: Tensor) -> Tensor:
    judge = PlanTube(fallbacks=policies(1), task=task, noise_radius=number(0.05), input_box=Box([-1.0], [1.0]))
    judge = judge.refine(confidence)
    return judge.verify(Zonotope.point(x.unsqueeze(0)), Plans.of_fallbacks(torch.tensor([0]), 1, 1), 3).margin


GRID = Grid(Box([-2.0], [2.0]), (32,))
ASKED: dict[str, Callable[[ConfidenceSet, Task, Tensor], Tensor]] = {
    "gaussian": lambda F, task, x: GaussianTube(task=task).evaluate(F, policies(1)).upper,
    "gaussian, two": lambda F, task, x: GaussianTube(task=task).evaluate(F, policies(2)).upper,
    "scenario": lambda F, task, x: ScenarioTube(task=task, seed=0, samples=50).evaluate(F, policies(1)).upper,
    "variation": lambda F, task, x: TotalVariation(task=task, seed=0, samples=50).evaluate(F, policies(1)).upper,
    "program": lambda F, task, x: RobustDP(GRID, task).evaluate(F, policies(1)).upper,
    "map": lambda F, task, x: certified_map(F, policies(1), task, GRID).lower,
    "plan": verified,
    "tube": lambda F, task, x: propagate(GPTube(F, 3, 0.1), x, 0.1 * torch.ones(3, 1).double(), -ONE).factor,
    "koller": lambda F, task, x: propagate(KollerTube(F, 3, 0.1), x, 0.1 * torch.ones(3, 1).double(), -ONE).factor,
    "region": lambda F, task, x: regions.certified(
        F, (torch.zeros(1, 2), torch.ones(1, 2)), within=Box([-9.0], [9.0])
    ).yes.double(),
}


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", ASKED)
@pytest.mark.filterwarnings("error")
def test_nobody_writes_on_what_a_known_part_was_given_or_gives(name: str, constant: bool):
    found = []
    for own in (True, False):
        known = Returned(constant=constant, own=own)
        task = Task(number(0.1), 4, IndicatorCost(ONE, number(1.2)), 0.1, number(0.01))
        confidence, x = learned(known), number(0.1)
        found += [ASKED[name](confidence, task, x), ASKED[name](confidence, task, x)]
        assert torch.equal(task.initial_state, number(0.1)) and torch.equal(x, number(0.1))
        assert torch.equal(known.kept, KEPT)
    assert all(torch.equal(found[0], one) for one in found[1:])


def test_a_derived_known_part_that_is_x_leaves_the_task_alone():
    """As a user writes it. The first answer moved x_0 by a step of the residual, and the second was about that x_0."""
    known = derived_known(lambda x, u: x, states=([-2.0], [2.0]), inputs=([-1.0], [1.0]))
    task = Task(number(0.1), 4, IndicatorCost(ONE, number(1.2)), 0.1, number(0.01))
    bound, confidence = GaussianTube(task=task), learned(known)
    first, second = (float(bound.evaluate(confidence, policies(1)).upper) for _ in range(2))
    assert first == second and torch.equal(task.initial_state, number(0.1))


OWNED: dict[str, tuple[Callable[..., object], tuple[str, ...], tuple[Tensor, ...]]] = {
    "box": (Box, ("lower", "upper"), (number(-1.0), number(1.0))),
    "polytope": (Polytope, ("H", "h"), (ONE, number(1.0))),
    "affine": (AffineKnown, ("A", "B", "c"), (ONE, ONE, number(0.0))),
    "sine": (SineKnown, ("A", "B", "c", "amplitudes", "frequencies"), (ONE, ONE, number(0.0), ONE, torch.ones(1, 2))),
    "linear tube": (lambda w: LinearTube(AffineKnown(ONE, ONE, number(0.0)), w), ("half_axes",), (number(0.1),)),
}


@pytest.mark.parametrize("name", OWNED)
def test_sets_and_plants_own_their_numbers(name: str):
    """What was certified is what was stated; who writes on his tensors afterwards has stated nothing."""
    make, fields, numbers = OWNED[name]
    given = [n.clone().double() for n in numbers]
    made = make(*given, *([number(0.0)] if name == "sine" else []))
    for tensor in given:
        tensor.add_(7.0)
    assert all(torch.equal(getattr(made, field), n.double()) for field, n in zip(fields, numbers, strict=True))
