"""Policies, costs, plants, kernels and families of a user's own that write on their arguments, as `x -= target` does: they get
copies, or are refused; no believed number and no datum moves.

A Gaussian tube said 1.0000006 and then 1.7e-6 to one question, a plan's judge moved the measured state from 0.1 to −0.9, and a
certified map called states safe that it had not looked at.
"""

from collections.abc import Callable

import gpytorch
import pytest
import test_lent_tensors as lent
import torch
from test_lent_tensors import ONE, Returned, number
from torch import Tensor

from gpsafe.algorithms.learner import realised
from gpsafe.algorithms.safeopt import Totals
from gpsafe.cost import CostToGo, RobustDP
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies, FeaturePolicies, ParametricPolicies, closed_loop
from gpsafe.policies.features import Feature
from gpsafe.policies.rollout import one_episode
from gpsafe.rkhs import kernels
from gpsafe.safety import BudgetFilter, RecoveryShield
from gpsafe.safety.safe_parameters import SafeParameters
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, IndicatorCost
from gpsafe.systems.task import Task


class Towards:
    """u = −0.1(x − 0.5)."""

    def __init__(self, count: int, *, writes: bool) -> None:
        self.num, self.writes = count, writes

    def __call__(self, x: Tensor) -> Tensor:
        if self.writes:
            x -= 0.5
            return -0.1 * x
        return -0.1 * (x - 0.5)

    def select(self, index: Tensor) -> "Towards":
        return type(self)(len(index), writes=self.writes)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones(self.num, lower.shape[1], 1, dtype=torch.float64)
        return -0.1 * ONE.double().expand(self.num, 1, 1), one, one


def task() -> Task:
    return Task(number(0.1), 4, IndicatorCost(ONE, number(1.2)), 0.1, number(0.01))


@pytest.mark.parametrize("name", lent.ASKED)
@pytest.mark.filterwarnings("error")
def test_policies_that_write_move_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    found = []
    for writes in (False, True):
        monkeypatch.setattr(lent, "policies", lambda count, writes=writes: Towards(count, writes=writes))
        about, x = task(), number(0.1)
        confidence = lent.learned(Returned(constant=False, own=True))
        found += [lent.ASKED[name](confidence, about, x), lent.ASKED[name](confidence, about, x)]
        assert torch.equal(about.initial_state, number(0.1)) and torch.equal(x, number(0.1))
    assert all(torch.equal(found[0], one) for one in found[1:])


@pytest.mark.parametrize("kind", ["budget", "recovery"])
def test_filters_leave_the_measured_state(kind: str):
    confidence, inputs = lent.learned(Returned(constant=False, own=True)), Box([-1.0], [1.0])
    told = []
    for writes in (False, True):
        policy, x = Towards(1, writes=writes), number(0.1)
        to_go = CostToGo.of(RobustDP(lent.GRID, task()), confidence, policy, inputs)
        made = BudgetFilter(to_go, budget=4.0) if kind == "budget" else RecoveryShield(to_go, 0.0)
        decision, _ = made.start().decide(x, number(float("nan")))
        told.append(decision)
        assert torch.equal(x, number(0.1))
    assert torch.equal(told[0].u, told[1].u)
    assert kind == "recovery" or told[0].price == told[1].price


class Written:
    """c(x) = 1{x > 1.2}, which counts from its limit, in place, in one of its methods."""

    ceiling = 1.0

    def __init__(self, where: str) -> None:
        self.where = where

    def _over(self, name: str, x: Tensor) -> Tensor:
        if name == self.where:
            x -= 1.2
            return (x[..., 0] > 0).double()
        return (x[..., 0] > 1.2).double()

    def __call__(self, x: Tensor) -> Tensor:
        return self._over("call", x)

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self._over("upper", upper)

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self._over("lower", lower)


@pytest.mark.parametrize("where", ["call", "upper", "lower"])
def test_a_cost_that_writes_is_refused(where: str):
    Task(number(0.1), 4, Written("nowhere"), 0.1, number(0.01))
    with pytest.raises(ValueError, match="cost that leaves its arguments"):
        Task(number(0.1), 4, Written(where), 0.1, number(0.01))


class Corners(Written):
    """c(x) = 1{0.4 < x < 0.6}, whose supremum over a box is said to be at its ends: as of a cost without an obstacle."""

    def __call__(self, x: Tensor) -> Tensor:
        return ((x[..., 0] > 0.4) & (x[..., 0] < 0.6)).double()

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.maximum(self(lower), self(upper))

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.zeros_like(lower[..., 0])


class High(Corners):
    """Right over boxes, but above its ceiling."""

    def __call__(self, x: Tensor) -> Tensor:
        return 1.5 * (x[..., 0] > 0.4).double()


def test_a_cost_that_refutes_itself_is_refused():
    """A scenario tube said 0.98 of a policy past the obstacle whose cost is 1.01."""
    for cost in (Corners("nowhere"), High("nowhere")):
        with pytest.raises(ValueError, match="between its own lower and upper over boxes"):
            Task(number(0.1), 4, cost, 0.1, number(0.01))


def dynamics(x: Tensor, u: Tensor) -> Tensor:
    """As simulators are written."""
    x *= 0.9
    x += u
    return x


def reward(x: Tensor, u: Tensor) -> Tensor:
    u.square_()
    x.neg_()
    return (x - u)[..., 0]


def plant() -> CallableSystem:
    box = Box([-2.0], [2.0])
    cost = Written("call")
    return CallableSystem("plant", 1, 1, box, box, number(0.0), number(1.0), 3, cost, 1.0, dynamics, reward)


def test_what_was_measured_stays():
    """F_n learned transitions that never were: a plant that returns the state it was given, moved on, recorded it twice."""
    system, policy = plant(), AffinePolicies([[0.1]], [[[0.0]]], Box([-1.0], [1.0]))
    states, inputs = closed_loop(system.mean, policy, system.initial_state, torch.zeros(3, 1, 1, 1).double())
    expected = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(states.flatten(), expected) and torch.equal(system.initial_state, number(1.0))
    alone = one_episode(system.mean, lambda x: x.neg_() * 0.0, system.initial_state, torch.zeros(3, 1).double())
    assert torch.allclose(alone[0].flatten(), 0.9 ** torch.arange(4).double())
    before = states[0, 0].clone(), inputs[0, 0].clone()
    cost, earned = realised(system, states[0, 0], inputs[0, 0])
    assert float(cost) == 0.0 and float(earned) == pytest.approx(-3.0 - 0.03)
    assert torch.equal(Totals(system)(states[0, 0], inputs[0, 0]), torch.stack([earned, 1.0 - cost]))
    assert torch.equal(states[0, 0], before[0]) and torch.equal(inputs[0, 0], before[1])


def test_certified_parameters_stay():
    """A family in degrees that converts in place: the member that was certified became another one at every look."""

    def build(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta *= torch.pi / 180
        return theta, torch.zeros(len(theta), 1, 1, dtype=torch.float64)

    family = ParametricPolicies(("angle",), Box([-90.0], [90.0]), Box([-2.0], [2.0]), build)
    theta = torch.tensor([[45.0], [60.0]], dtype=torch.float64)
    safe = SafeParameters.initial(theta, budget=0.1)
    first = family(safe.theta).offset
    about = {"x": torch.zeros(1, 1).double(), "x_radius": torch.zeros(1, 1).double()}
    spread = family.spread(safe.theta, torch.ones_like(theta), **about)
    assert float(spread.max()) == pytest.approx(torch.pi / 180)
    assert torch.equal(family(safe.theta).offset, first) and torch.equal(
        safe.theta, torch.tensor([[45.0], [60.0]]).double()
    )
    theta.zero_()
    assert float(safe.theta[0]) == 45.0


def test_policies_own_their_numbers():
    offset, gain = torch.zeros(1, 1).double(), -torch.ones(1, 1, 1).double()
    made = AffinePolicies(offset, gain, Box([-1.0], [1.0]))
    features = FeaturePolicies(gain, (Feature(("x",)),), Box([-1.0], [1.0]))
    offset.add_(7.0), gain.add_(7.0)
    assert float(made.offset) == 0.0 and float(made.gain) == -1.0 and float(features.coefficients) == -1.0


class InPlace(gpytorch.kernels.Kernel):
    """An RBF kernel that scales the data it is given."""

    has_lengthscale = True

    def forward(self, x1, x2, diag=False, **params):
        gap = x1.mul_(2.0).unsqueeze(-2) - x2.unsqueeze(-3)
        gram = (-0.5 * gap.square().sum(-1)).exp()
        return gram.diagonal(dim1=-2, dim2=-1) if diag else gram


def test_a_kernel_that_writes_is_refused():
    with pytest.raises(ValueError, match="kernel that leaves its arguments"):
        GP.create(InPlace(), 1e-2, nx=1, nu=0, noise_std=0.1)


class Derivative(Returned):
    """p(x, u) = x, whose Jacobian, or local curvature, is computed in place."""

    def __init__(self, where: str) -> None:
        super().__init__(constant=False, own=True)
        self.where = where

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.where == "jacobian":
            x.mul_(0.0)
        return super().jacobian(x, u)

    def hessian_over(self, lower: Tensor, upper: Tensor) -> Tensor:
        if self.where == "hessian_over":
            upper.sub_(lower)
        return torch.zeros(*lower.shape[:-1], 1, 2, 2, dtype=torch.float64)


class Normed(Returned):
    """p(x, u) = x + 0.3 x/(1 + |x|), where the norm may be that of the whole batch: an axis forgotten."""

    hessian_bound = torch.tensor([[[0.6, 0.0], [0.0, 0.0]]], dtype=torch.float64)

    def __init__(self, *, whole: bool) -> None:
        super().__init__(constant=False, own=True)
        self.whole = whole

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        size = x.norm() if self.whole else x.norm(dim=-1, keepdim=True)
        return x + 0.3 * x / (1.0 + size)

    def jacobian(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        A, B = super().jacobian(x, u)
        return A + 0.3 / (1.0 + x.abs()).square().unsqueeze(-1), B


class Total(Written):
    """c(x) = 1{x > 1.2}, of the largest state that is asked for."""

    def __call__(self, x: Tensor) -> Tensor:
        return (x.amax() > 1.2).double().expand(x.shape[:-1])


class Joint(Towards):
    """u = −0.1(x − 0.5) over the largest |x| of the batch."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) / (1.0 + x.abs().amax())


def test_what_depends_on_the_rest_of_its_batch_is_refused():
    make = {"nx": 1, "nu": 1, "noise_std": 0.1}
    GP.create(kernels.rbf([1.0, 1.0]), 1e-2, prior=Normed(whole=False), **make)
    with pytest.raises(ValueError, match="of each row of a batch for itself"):
        GP.create(kernels.rbf([1.0, 1.0]), 1e-2, prior=Normed(whole=True), **make)
    with pytest.raises(ValueError, match="a cost of each state for itself"):
        Task(number(0.1), 4, Total("nowhere"), 0.1, number(0.01))
    confidence = lent.learned(Returned(constant=False, own=True))
    with pytest.raises(ValueError, match="a Joint of each state for itself"):
        RobustDP(lent.GRID, task()).evaluate(confidence, Joint(1, writes=False))


def _first(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])[0]  # x[0] where x[..., 0] was meant


def _before(x: Tensor) -> Tensor:
    return x.cumsum(-2) - x  # an axis that is time in a trajectory, and policies or cells here


@pytest.mark.parametrize("other", [_first, _before])
def test_what_depends_on_its_place_in_the_batch_is_refused(other: Callable[[Tensor], Tensor]):
    """The first row asked for with others is then what it is alone: a check of that row sees nothing."""
    with pytest.raises(ValueError, match="of each row of a batch for itself"):
        GP.create(kernels.rbf([1.0, 1.0]), 1e-2, nx=1, nu=1, noise_std=0.1, prior=lambda x, u: x + u - 0.3 * other(x))

    class Relative(Written):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x - 0.3 * other(x))

        def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
            return torch.ones_like(upper[..., 0])

        def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
            return torch.zeros_like(lower[..., 0])

    with pytest.raises(ValueError, match="a cost of each state for itself"):
        Task(number(0.1), 4, Relative("nowhere"), 0.1, number(0.01))

    def build(theta: Tensor) -> tuple[Tensor, Tensor]:
        goal = theta - 0.3 * other(theta)
        return goal, -torch.ones_like(goal).unsqueeze(-1)

    family = ParametricPolicies(("g",), Box([-1.0], [1.0]), Box([-1.0], [1.0]), build)
    assert family(number(0.4).unsqueeze(0)).num == 1
    with pytest.raises(ValueError, match="each parameter vector for itself"):
        family(torch.tensor([[0.2], [0.4], [0.6]], dtype=torch.float64))


@pytest.mark.parametrize("size", [1.0, 1e-10, 1e10])
def test_what_depends_on_its_batch_in_components_of_other_units_is_refused(size: float):
    """Beside one of 10¹⁰ a component passed whatever it was: it was compared in shares of the largest of all."""

    def prior(x: Tensor, u: Tensor) -> Tensor:
        return torch.stack([size * x[..., 0], x[..., 1] - 0.3 * x.reshape(-1, 2)[0, 1]], -1)

    with pytest.raises(ValueError, match="of each row of a batch for itself"):
        GP.create(kernels.rbf([1.0] * 3), 1e-2, nx=2, nu=1, noise_std=0.1, prior=prior)

    def build(theta: Tensor) -> tuple[Tensor, Tensor]:
        gain = torch.cat([size * theta, theta - 0.3 * theta[:1]], -1)
        return 0.0 * gain, torch.diag_embed(gain)

    limits = Box([-1e30, -1.0], [1e30, 1.0])
    with pytest.raises(ValueError, match="each parameter vector for itself"):
        ParametricPolicies(("g",), Box([-1.0], [1.0]), limits, build)(torch.tensor([[0.2], [0.4], [0.6]]).double())


@pytest.mark.parametrize("where", ["jacobian", "hessian_over"])
def test_a_known_part_whose_derivatives_write_is_refused(where: str):
    make = {"nx": 1, "nu": 1, "noise_std": 0.1}
    GP.create(kernels.rbf([1.0, 1.0]), 1e-2, prior=Derivative("nowhere"), **make)
    with pytest.raises(ValueError, match="leaves its arguments"):
        GP.create(kernels.rbf([1.0, 1.0]), 1e-2, prior=Derivative(where), **make)
