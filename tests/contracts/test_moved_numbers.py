"""Numbers that functions and networks of a user's own rest on, moved after something was certified of them: whoever holds the
certificate has a copy of them, or notices.

A robust program said 1.75, and a scenario tube 1.33, of a plant that costs 4 from its x_0: the limit in a derived cost had
moved, and its suprema over boxes were those of the old one. A derived known part bent with 160 where 0.1 was said to bound it,
a budget filter called an unstable prior backed, and a set stayed "invariant" under networks that were trained on in place.
"""

import math

import pytest
import test_lent_tensors as lent
import torch
from filter_cases import Odd
from shield_cases import case_of, judge_of, tracking_of
from test_lent_tensors import ONE, Returned, number
from torch import Tensor

from gpsafe.algorithms import ContinuousActSafe
from gpsafe.certify import AffineLaw, CertificationProblem, certify_invariance
from gpsafe.cost import CostToGo, RobustDP
from gpsafe.linalg import vector
from gpsafe.models import Ensemble, Normalizer
from gpsafe.policies import AffinePolicies
from gpsafe.policies.parametric import ParametricPolicies
from gpsafe.safety import BudgetFilter, RecoveryShield, SafetyFilter, certified_map
from gpsafe.safety.shield import Shield
from gpsafe.sets import Box, Polytope
from gpsafe.systems import DerivedCost, derived_known
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task
from gpsafe.tube import EnsembleTube, GPTube, KnownTube, LinearTube
from tests.learner_cases import LEARNERS


def task() -> Task:
    return Task(number(0.1), 4, IndicatorCost(ONE, number(1.2)), 0.1, number(0.01))


def test_a_derived_cost_whose_limit_moved_is_refused():
    limit = number(1.2)
    cost = DerivedCost(lambda x: (x[..., 0] > limit).double(), nx=1)
    about, confidence = Task(number(0.1), 4, cost, 0.1, number(0.01)), lent.learned(Returned(constant=False, own=True))
    bound = RobustDP(lent.GRID, about)
    assert float(bound.evaluate(confidence, lent.policies(1)).upper) < 2.0
    limit.fill_(0.0)  # costs 4 from x_0 = 0.1 now
    with pytest.raises(ValueError, match="still the one of which this was derived"):
        bound.evaluate(confidence, lent.policies(1))
    limit.fill_(1.2)
    assert float(bound.evaluate(confidence, lent.policies(1)).upper) < 2.0
    limit.sub_(1e-9)  # no drawn state tells the two apart
    with pytest.raises(ValueError, match="still the one of which this was derived"):
        bound.evaluate(confidence, lent.policies(1))


FACTOR = [1.0]


@pytest.mark.parametrize("kept", ["tensor", "array", "list", "attribute", "default", "global"])
def test_a_derived_known_part_whose_numbers_moved_is_refused(kept: str):
    held = number(1.0)[0]
    array, numbers, owner = held.clone().numpy(), [1.0], type("Owner", (), {"rate": 1.0})()
    FACTOR[0] = 1.0
    known = {
        "tensor": lambda x, u: x + 0.1 * torch.sin(held * x),
        "array": lambda x, u: x + 0.1 * torch.sin(float(array) * x),
        "list": lambda x, u: x + 0.1 * torch.sin(numbers[0] * x),
        "attribute": lambda x, u: x + 0.1 * torch.sin(owner.rate * x),
        "default": lambda x, u, rate=held: x + 0.1 * torch.sin(rate * x),
        "global": lambda x, u: x + 0.1 * torch.sin(FACTOR[0] * x),
    }[kept]
    made = derived_known(known, states=([-2.0], [2.0]), inputs=([-1.0], [1.0]))
    assert float(made.hessian_bound[0, 0, 0]) == pytest.approx(0.1)
    held.fill_(40.0)
    array[...] = numbers[0] = FACTOR[0] = owner.rate = 40.0
    box = torch.zeros(1, 2).double(), torch.ones(1, 2).double()
    for ask in (lambda: made.hessian_bound, lambda: made.hessian_over(*box)):
        with pytest.raises(ValueError, match="still the one of which this was derived"):
            ask()


def test_a_function_may_count_its_calls_and_keep_a_log():
    log: list[Tensor] = []
    count = {"calls": 0}

    def known(x: Tensor, u: Tensor) -> Tensor:
        count["calls"] += 1
        log.append(x)
        return 0.5 * x

    made = derived_known(known, states=([-2.0], [2.0]), inputs=([-1.0], [1.0]))
    assert float(made.hessian_bound.max()) == 0.0 and count["calls"] > 1


mean = number(1.0)  # a global of the name of a method that the next function calls


def test_a_global_that_only_bears_the_name_of_an_attribute_may_move():
    made = derived_known(
        lambda x, u: x + 0.0 * x.mean(-1, keepdim=True), states=([-2.0], [2.0]), inputs=([-1.0], [1.0])
    )
    mean.add_(1.0)
    assert float(made.hessian_bound.max()) == 0.0


class Moving(Returned):
    """p(x, u) = x + shift."""

    def __init__(self) -> None:
        super().__init__(constant=False, own=True)
        self.shift = number(0.0)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return x + self.shift


@pytest.mark.parametrize("name", lent.ASKED)
def test_a_known_part_that_moved_after_the_last_data_is_refused(name: str):
    """The data were learned with the old one: what was added to μ_n was never taken from the targets."""
    known = Moving()
    confidence = lent.learned(known)
    lent.ASKED[name](confidence, task(), number(0.1))
    known.shift.fill_(0.3)
    with pytest.raises(ValueError, match="still the one with which the data were learned"):
        lent.ASKED[name](confidence, task(), number(0.1))


class Law:
    """u = gain x, where the gain is anybody's to move."""

    num = 1

    def __init__(self, gain: Tensor) -> None:
        self.gain = gain

    def __call__(self, x: Tensor) -> Tensor:
        return self.gain * x

    def select(self, index: Tensor) -> "Law":
        return self

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones(1, lower.shape[1], 1, dtype=torch.float64)
        return self.gain * torch.ones(1, 1, 1).double(), one, one


def test_a_prior_that_moved_backs_nothing():
    gain = number(-0.1)
    confidence, inputs = lent.learned(Returned(constant=False, own=True)), Box([-1.0], [1.0])
    to_go = CostToGo.of(RobustDP(lent.GRID, task()), confidence, Law(gain), inputs)
    budget, recovery = BudgetFilter(to_go, budget=4.0).start(), RecoveryShield(to_go, 4.0).start()
    assert budget.decide(number(0.1), number(0.0))[0].backed
    assert recovery.decide(number(0.1), number(0.0))[0].source == "learner"
    found = certified_map(confidence, Law(gain), task(), lent.GRID)
    gain.fill_(5.0)
    assert to_go.moved and not budget.decide(number(0.1), number(0.0))[0].backed
    assert recovery.decide(number(0.1), number(0.0))[0].source == "backup" and recovery.safety == 0.0
    with pytest.raises(ValueError, match="policies that is still the one"):
        found.refined(tolerance=0.1, cells=64)


def test_a_shield_whose_fallback_moved_says_so():
    case = case_of()
    first = judge_of(case)
    laws = first.fallbacks
    assert isinstance(laws, AffinePolicies)
    shield = Shield.start(first, case.confidence, case.system.initial_state, tracking=tracking_of(case))
    assert isinstance(shield, Shield)
    none = torch.zeros(0, 1, 1, dtype=torch.float64)
    decision, _ = shield.decide(case.system.initial_state, none)
    assert decision.falsified is None
    laws.gain.mul_(-3.0)
    try:
        decision, after = shield.decide(case.system.initial_state, none)
        assert "no longer those that were certified" in str(decision.falsified) and after.falsified
    finally:
        laws.gain.div_(-3.0)


def networks() -> tuple[list[Tensor], list[Tensor]]:
    """One member: μ = 0.5 x, log-variance −12."""
    weights = [torch.zeros(1, 2, 2, dtype=torch.float64)]
    weights[0][0, 0, 0] = 0.5
    return weights, [torch.tensor([[0.0, -12.0]], dtype=torch.float64)]


def test_networks_that_are_trained_on_in_place_are_not_those_of_the_certificate():
    weights, biases = networks()
    offset = torch.zeros(2, dtype=torch.float64)
    model = Ensemble.from_weights(
        weights, biases, nx=1, nu=1, prior=lambda x, u: 0.0 * x, inputs=Normalizer(offset, torch.ones(2))
    )
    x, u = number(1.0), number(0.0)
    tube = EnsembleTube(model, "sound", 1.0)
    before = tube.mean(x.reshape(1, 1), u.reshape(1, 1)).clone()
    weights[0].mul_(4.0), biases[0].add_(1.0), offset.add_(1.0)
    assert torch.equal(tube.mean(x.reshape(1, 1), u.reshape(1, 1)), before)


ENSEMBLE_PARTS = {
    "weights": lambda model: model.network.weights[0],
    "biases": lambda model: model.network.biases[0],
    "inputs": lambda model: model.inputs.scale,
    "targets": lambda model: model.targets.scale,
    "limits": lambda model: model.log_var_limits,
}


@pytest.mark.parametrize("part", ENSEMBLE_PARTS)
def test_a_calibrated_ensemble_whose_own_numbers_moved_says_so(part: str):
    """A filter went on to back its stored plan: only the known part was looked at."""
    weights, biases = networks()
    sound = EnsembleTube(Ensemble.from_weights(weights, biases, nx=1, nu=1), "sound", 1.0)
    paper = EnsembleTube(Ensemble.from_weights(weights, biases, nx=1, nu=1))
    assert sound.edited is None and paper.edited is None
    for tube in (sound, paper):
        ENSEMBLE_PARTS[part](tube.ensemble).mul_(1.5)
    assert "the networks" in str(sound.edited) and paper.edited is None


def test_a_linear_plant_that_was_edited_says_so():
    for edit in (lambda t: t.plant.A, lambda t: t.plant.B, lambda t: t.plant.c, lambda t: t.half_axes):
        tube = LinearTube(AffineKnown(lent.ONE, lent.ONE, number(1.0)), number(0.1))
        assert tube.edited is None
        published = LinearTube(tube.plant, tube.half_axes, "paper")
        edit(tube).mul_(3.0)
        assert "the plant and half-axes" in str(tube.edited)
        assert published.edited is None  # which claims nothing


def lost(problem, x0, learned, warm):
    raise ArithmeticError("none")


def test_a_filter_whose_model_moved_backs_nothing():
    """The invariance certificate is one of the known part as it was."""
    rate = number(0.5)
    known = derived_known(lambda x, u: rate * x, states=([-2.0], [2.0]), inputs=([-1.0], [1.0]))
    box = Polytope.of_box(Box([-1.0], [1.0]))
    problem = CertificationProblem(KnownTube(known, number(0.0)), box, box, box, torch.zeros(1, 1), 2)
    sure = certify_invariance(problem, AffineLaw(torch.zeros(1, 1), torch.zeros(1)))
    assert sure.certified
    safe = SafetyFilter(problem, Odd(lost), sure).start()
    decision, after = safe.decide(number(0.9), number(0.0))
    assert decision.backed and decision.source == "backup"
    rate.fill_(3.0)  # 0.9 is followed by 2.7
    decision, after = after.decide(number(0.45), number(0.0))
    assert not decision.backed and "the model was changed" in str(decision.falsified)
    assert after.falsified == decision.falsified


class Slotted:
    """Two states and one input; its number is in a slot, where nobody looks: only what it gives can tell."""

    __slots__ = ("rate",)
    hessian_bound = torch.zeros(2, 3, 3, dtype=torch.float64)

    def __init__(self) -> None:
        self.rate = 0.5

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.stack([self.rate * x[..., 0] + u[..., 0], self.rate * x[..., 1]], dim=-1)


def test_a_known_tube_asks_its_known_part_at_states_and_inputs_of_its_sizes():
    known = Slotted()
    tube = KnownTube(known, number(0.0))
    assert tube.edited is None
    known.rate = 0.6
    assert "the known part" in str(tube.edited)


def test_a_tube_of_a_process_whose_known_part_moved_says_so():
    known = Moving()
    tube = GPTube(lent.learned(known), 3, 0.1)
    assert tube.edited is None
    known.shift.fill_(math.pi)
    assert tube.edited is not None


@pytest.mark.parametrize("name", ["finite", "safeopt", "continuous"])
def test_a_learner_whose_policies_moved_flies_none_of_them(name):
    """ "guaranteed" was an episode of what policy 21 had become, which cost 14 of a budget of 0.2."""
    target = vector(0.0)
    family = ParametricPolicies(
        ("gain",), Box([1.0], [6.0]), Box([-1.0], [1.0]), lambda theta: (theta * (target - 0.5), -theta.unsqueeze(-1))
    )
    learner = LEARNERS[name]()
    if isinstance(learner, ContinuousActSafe):
        learner = learner.with_(family=family, initial=vector(3.0).unsqueeze(0))
    learner.learn(1)
    learner.predict(learner.system.initial_state)  # decides, so that the move comes after the decision
    moved = target if isinstance(learner, ContinuousActSafe) else learner.policies.offset  # type: ignore[attr-defined]
    kept = moved.clone()
    moved.add_(2.0)
    for question in (learner.ask, lambda: learner.predict(learner.system.initial_state)):
        with pytest.raises(ValueError, match="policy class that is still the one"):
            question()
    moved.copy_(kept)
    assert learner.ask().unsound is None
