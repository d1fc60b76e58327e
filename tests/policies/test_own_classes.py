"""Policy classes of a user's own: what they state of their slopes is tried, and what a bound would overlook is refused."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gpsafe.algorithms import explain
from gpsafe.algorithms.defaults import dither
from gpsafe.algorithms.receding import member
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import GaussianTube, PlanTube, RobustDP, ScenarioTube, TotalVariation
from gpsafe.cost.gaussian_tube import TubeSession
from gpsafe.cost.grid import Grid
from gpsafe.cost.plan_tube import Plans
from gpsafe.cost.session import EvaluationSession
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies, Feature, FeaturePolicies, Feedback, closed_loop, feedback, selected
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


class Waves:
    """u = 0.1 + 0.5 sin(3x), in slopes that are right, or those of sin(x): the 3 forgotten."""

    num = 1

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return 0.1 + 0.5 * torch.sin(3 * x)

    def select(self, index: Tensor) -> "Waves":
        return self

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def feedback(self, lower: Tensor, upper: Tensor) -> Feedback:
        center, radius = 0.5 * (lower + upper), 0.5 * (upper - lower)
        one = torch.ones_like(center)
        gain = 0.5 * self.factor * torch.cos(3 * center).unsqueeze(-1)
        return Feedback(gain, one, one, 0.25 * (self.factor * radius).square())


class Steep(Waves):
    """By secants of one gain: s·1.5(x − c) with s between −1 and 1 does not fit 0 ≤ s, so that s ≤ ⅓ is stated wrongly."""

    def feedback(self, lower: Tensor, upper: Tensor) -> Feedback:
        zero = torch.zeros_like(lower)
        return Feedback(1.5 * torch.ones_like(lower).unsqueeze(-1), zero, zero + 1 / 3, zero)


def case() -> tuple[Task, ConfidenceSet]:
    """x⁺ = x + u + w, known but for a residual of norm 1e-6."""
    task = Task(number(0.0), 6, IndicatorCost([[1.0]], [1.0]), 0.1, number(0.05))
    known = AffineKnown([[1.0]], [[1.0]], [0.0])
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=0.05, prior=known)
    return task, ConfidenceSet(Mixture(rkhs_norm=1e-6, subgaussian=0.05, delta=0.1)).update(model)


def bounds(task: Task):
    grid = Grid(Box([-3.0], [3.0]), (300,))
    return ScenarioTube(task=task, seed=0, samples=200), GaussianTube(task=task), RobustDP(grid, task)


def test_slopes_that_the_class_itself_refutes_are_refused():
    """A Gaussian tube said 1.63 of a policy whose cost is 2.15."""
    task, confidence = case()
    noise = sample_noise(task.noise_std, (6, 1, 4000), torch.Generator().manual_seed(0))
    states, _ = closed_loop(lambda x, u: x + u, Waves(3.0), task.initial_state, noise)
    true = float(task.cost(states[..., :-1, :]).sum(-1).mean())
    for bound in bounds(task):
        assert float(bound.evaluate(confidence, Waves(3.0)).upper) >= true - 0.05
        for wrong in (Waves(1.0), Steep(0.0)):
            with pytest.raises(ValueError, match="move over boxes as their own slopes state"):
                bound.evaluate(confidence, wrong)


def test_boxes_without_numbers_accuse_nobody():
    nothing = torch.full((1, 3, 1), torch.nan, dtype=torch.float64)
    assert bool(feedback(Waves(3.0), nothing, nothing).gain.isnan().all())
    point = torch.zeros(1, 3, 1, dtype=torch.float64)
    assert float(feedback(Waves(1.0), point, point).remainder.max()) == 0.0


def test_other_inputs_under_the_slopes_of_affine_policies_are_refused():
    """With u = 0.3 throughout, certified as u = −0.5x: a robust program said 0 of a policy whose cost is 2.09."""
    with pytest.raises(ValueError, match="Dead: expected a policy class of its own"):

        class Dead(AffinePolicies):
            def __call__(self, x: Tensor) -> Tensor:
                return torch.full_like(x, 0.3)

    with pytest.raises(ValueError, match="Turned: expected a policy class of its own"):

        @dataclass(frozen=True, slots=True, eq=False)
        class Turned(FeaturePolicies):
            def basis(self, x: Tensor) -> Tensor:
                return -super().basis(x)

    class Named(FeaturePolicies):
        """Nothing else than a name."""

    made = Named(torch.ones(1, 1, 1), (Feature(("x",)),), Box([-1.0], [1.0]))
    assert float(feedback(made, torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()).gain) == 1.0


@dataclass(eq=False)
class Gains:
    """u = −k x + b, of policies whose `select` may be wrong in one of the ways in which one forgets something."""

    gain: Tensor
    offset: Tensor
    wrong: str = ""

    @property
    def num(self) -> int:
        return len(self.gain)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.offset - self.gain * x[..., 0]).unsqueeze(-1)

    def select(self, index: Tensor) -> "Gains":
        gain, offset = self.gain[index], self.offset[index]
        if self.wrong == "whole":
            return self
        if self.wrong == "one":
            offset = self.offset[:1]
        return Gains(gain.flip(0) if self.wrong == "order" else gain, offset, self.wrong)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones(self.num, lower.shape[1], 1, dtype=torch.float64)
        return -self.gain.reshape(-1, 1, 1), one, one


def gains(wrong: str) -> Gains:
    column = torch.tensor([[0.2], [0.5], [0.8]], dtype=torch.float64)
    return Gains(column, torch.tensor([[0.0], [0.2], [0.9]], dtype=torch.float64), wrong)


@pytest.mark.parametrize("wrong", ["whole", "one", "order"])
def test_parts_of_a_class_that_hold_other_policies_are_refused(wrong: str):
    """A scenario tube certified all of a class for the first of them, and ActSafe flew policies that nobody had certified."""
    task, confidence = case()
    index = torch.tensor([1, 2])
    fallbacks = Plans.of_fallbacks(index, 1, 1)
    hard = PlanTube(fallbacks=gains(wrong), task=task, noise_radius=number(0.1), input_box=Box([-1.0], [1.0])).refine(
        confidence
    )
    asked = [
        lambda: selected(gains(wrong), index, task.initial_state),
        lambda: bounds(task)[2].enclosure(confidence, gains(wrong)).select(index),
        lambda: fallbacks.law(0, gains(wrong), hard.input_box),
        lambda: hard.verify(Zonotope.point(torch.zeros(2, 1).double()), fallbacks, 3),
        lambda: RobustDP(Grid(Box([-3.0], [3.0]), (300,)), task, chunk=600).evaluate(confidence, gains(wrong)),
        lambda: TubeSession.start(bounds(task)[1], confidence, gains(wrong)).upper(index),
        lambda: EvaluationSession(bounds(task)[1], confidence, gains(wrong), torch.Generator()).upper(index),
        lambda: ScenarioTube(task=task, seed=0, samples=200, give_up=0.1, chunk=400).evaluate(confidence, gains(wrong)),
        lambda: TotalVariation(task=task, seed=0, samples=200, chunk=400).evaluate(confidence, gains(wrong)),
    ]
    for ask in asked:
        with pytest.raises(ValueError, match="whose select\\(index\\) has the policies of these indices"):
            ask()


def test_what_flies_or_explains_a_part_of_a_class_refuses_another_policy_in_its_place(monkeypatch):
    """S_0 of a receding-horizon learner flew the first policy for all; diagnoses imagined its flights in place of others."""
    task, confidence = case()
    first = gains("")
    monkeypatch.setattr(first, "select", lambda index: gains("").select(0 * index), raising=False)
    monkeypatch.setattr(explain, "POINTS", task.horizon)  # one member's
    monkeypatch.setattr(explain, "spaced", lambda num, count: torch.tensor([num - 1.0]))
    with pytest.raises(ValueError, match="whose select"):
        explain.after_flights(confidence, first, task)
    draws = [torch.Generator().manual_seed(seed) for seed in range(9)]
    with pytest.raises(ValueError, match="whose select"):
        _ = [member(first, task.initial_state)(generator) for generator in draws]
    assert explain.after_flights(confidence, gains(""), task) is not None


def test_arguments_of_s_0_and_of_diagnoses_are_refused_in_words():
    task, confidence = case()
    none, box = gains("").select(torch.zeros(0, dtype=torch.long)), Box([-1.0], [1.0])
    fallbacks = AffinePolicies(torch.zeros(2, 1), torch.zeros(2, 1, 1), box)
    for words, ask in (
        ("policies to be a PolicyClass, got function", lambda: member(lambda x: x, task.initial_state)),
        ("integer policies.num >= 1, got 0", lambda: member(none, task.initial_state)),
        ("confidence to be a ConfidenceSet, got GP", lambda: explain.after_flights(confidence.model, gains(""), task)),
        ("members to be a PolicyClass, got NoneType", lambda: explain.after_flights(confidence, None, task)),
        ("integer members.num >= 1, got 0", lambda: explain.after_flights(confidence, none, task)),
        ("task to be a Task, got NoneType", lambda: explain.after_flights(confidence, gains(""), None)),
        ("fallbacks to be a AffinePolicies, got Gains", lambda: dither(gains(""), number(0.1))),
        ("size >= 0, got \\[-0.1\\]", lambda: dither(fallbacks, number(-0.1))),
        ("finite size", lambda: dither(fallbacks, number(float("nan")))),
        ("size of shape \\(1,\\)", lambda: dither(fallbacks, torch.zeros(2))),
    ):
        with pytest.raises(ValueError, match=words):
            ask()


def test_parts_that_are_right_or_cannot_be_asked_are_taken():
    task, confidence = case()
    index = torch.tensor([2, 0, 2])
    part = selected(gains(""), index, task.initial_state)
    assert torch.equal(part.gain, gains("").gain[index])
    whole = [float(v) for v in bounds(task)[1].evaluate(confidence, gains("")).upper]
    parts = TubeSession.start(bounds(task)[1], confidence, gains("")).upper(index)
    assert parts.tolist() == pytest.approx([whole[i] for i in index], abs=1e-9)

    class Near(Gains):
        def __call__(self, x: Tensor) -> Tensor:
            if float(x.abs().max()) > 2.0:
                raise ValueError("beyond the range of the sensor")
            return super().__call__(x)

    narrow = Near(gains("").gain, gains("").offset)
    assert selected(narrow, index, task.initial_state).num == 3


@pytest.mark.parametrize("units", [[1.0], [1e-10], [1e10], [1.0, 1e-10], [1e10, 1.0, 1e-3]])
def test_policies_in_any_units_that_select_others_are_refused(units):
    """Inputs of 10⁻¹⁰ agreed with whatever was selected, also those beside an input of 1."""

    @dataclass(frozen=True)
    class Gains:
        gains: Tensor
        wrong: bool

        @property
        def num(self) -> int:
            return len(self.gains)

        def __call__(self, x: Tensor) -> Tensor:
            return torch.tensor(units).double() * self.gains * x

        def select(self, index: Tensor) -> "Gains":
            wrong = self.gains[index].clone()
            wrong[..., -1] = self.gains[0, 0, -1]  # of the last input alone
            return Gains(wrong if self.wrong else self.gains[index], False)

    index, about = torch.tensor([1]), number(0.3)
    gains = torch.tensor([1.0, 2.0]).double().reshape(2, 1, 1).expand(2, 1, len(units))
    assert selected(Gains(gains, False), index, about).num == 1
    with pytest.raises(ValueError, match="whose select"):
        selected(Gains(gains, True), index, about)
