"""Recursive feasibility, executed: adversaries propose inputs, break the proposer and choose admissible disturbances.

On a linear plant and on the RKHS pendulum with GP tubes everything is provable: every decision must be backed, every state in
X and in its tube, every input in U. The book of what is allowed is kept here, not read from the filter. Controls break one
premise each and must be caught.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from filter_cases import Moody, extreme, gp_case, linear_case, linear_filter, worst_disturbance
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpsafe.certify import Certificate, CertificationProblem, Margins
from gpsafe.certify.terminal_set import AffineLaw, Invariance, certify_invariance
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.members import extremal_member
from gpsafe.rkhs import RKHSFunction
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Ellipsoid
from gpsafe.systems.reference import reference_pendulum
from gpsafe.tube import GPTube, LinearTube, Tube
from proofs_checks._defects import forged as planted

FAILURES = ("far", "nan", "short", "breakdown", "singular", "states", "inputs", "terminal")


class Plant(RuleBasedStateMachine):
    """The linear plant under the filter; subclasses change the filter or the plant."""

    limit: ClassVar[float] = 3.0  # of adversarial proposals, in units of x

    def build(self) -> SafetyFilter:
        return linear_filter()

    def half_axes(self) -> torch.Tensor:
        model = linear_case()[0].model
        assert isinstance(model, LinearTube)
        return model.half_axes

    def mean(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        model = linear_case()[0].model
        assert isinstance(model, LinearTube)
        return model.plant(x, u)

    @initialize(first=st.floats(0.0, 0.8) | st.sampled_from((0.97, 1 - 1e-9)), angle=st.floats(0.0, 2 * math.pi))
    def begin(self, first: float, angle: float) -> None:
        self.filter = self.build().start()
        self.problem = self.filter.problem
        way = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        rows = self.problem.terminal.H @ way
        self.x = first * float((self.problem.terminal.h / rows)[rows > 1e-9].min()) * way
        self.plan: Certificate | None = None
        self.age = 0
        self.started = False

    @rule(
        learned=st.floats(-1.0, 1.0) | st.sampled_from([-1.0, 1.0, math.nan, 1e300]),
        failure=st.sampled_from(("", "", *FAILURES)),
        angle=st.floats(0.0, 2 * math.pi) | st.just(-1.0),
        times=st.integers(1, 6),
    )
    def steps(self, learned: float, failure: str, angle: float, times: int) -> None:
        """Some steps alike; angle −1 is the disturbance towards the nearest limit."""
        for _ in range(times):
            self.one(learned, failure, angle)

    def one(self, learned: float, failure: str, angle: float) -> None:
        self.filter = replace(self.filter, proposer=Moody(not failure, failure))
        proposed = torch.tensor([self.limit * learned], dtype=torch.float64)
        decision, self.filter = self.decide(proposed)
        self.started = True
        assert decision.backed, decision.reason
        assert decision.source in ("plan", "stored", "backup")
        assert bool(self.problem.inputs.contains(decision.u, tol=1e-9)), decision.u
        if decision.source == "plan":
            assert decision.certificate is not None
            assert decision.certificate.certified
            self.plan, self.age = decision.certificate, 0
        undisturbed = self.mean(self.x, decision.u)
        if angle < 0:
            w = worst_disturbance(self.half_axes(), self.problem.states, undisturbed)
        else:
            way = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
            w = extreme(self.half_axes(), way)
        self.x, self.age = undisturbed + w, self.age + 1
        self.in_tube()

    @precondition(lambda self: hasattr(self, "x") and bool(self.problem.terminal.contains(self.x)))
    @rule()
    def drops(self) -> None:
        """The stored plan is lost where the backup is certified: the filter starts anew."""
        self.filter, self.plan, self.age = self.filter.start(), None, 0

    def decide(self, proposed: torch.Tensor):
        return self.filter.decide(self.x, proposed)

    def in_tube(self) -> None:
        """In the tube of the last plan; after its end in the terminal set."""
        if self.plan is None or self.plan.tube is None:
            return
        if self.age <= self.problem.steps:
            tube = self.plan.tube
            section = Ellipsoid(tube.center[0, self.age], tube.factor[0, self.age])
            assert bool(section.contains(self.x)), (self.age, section.gauge(self.x))
        if self.age >= self.problem.steps:
            assert bool(self.problem.terminal.contains(self.x)), self.age

    @invariant()
    def admitted(self) -> None:
        if hasattr(self, "x"):
            assert bool(self.problem.states.contains(self.x)), self.x


class PendulumTwin(Plant):
    """The RKHS pendulum, its GP tubes, disturbances on the boundary of the noise ellipsoid."""

    def build(self) -> SafetyFilter:
        problem, sure = gp_case()
        return SafetyFilter(problem, Moody(), sure)

    def half_axes(self) -> torch.Tensor:
        local = gp_case()[0].model.linearise(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
        return local.variance[0].sqrt()

    def mean(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return reference_pendulum().mean(x, u)


class AnyMember(PendulumTwin):
    """The same under any function of F_n: f*, or one at the edge of the set where the plant is, changed at will."""

    member: RKHSFunction | None = None

    @rule(which=st.sampled_from((-1, 0, 1)), push=st.floats(-1.0, 1.0))
    def becomes(self, which: int, push: float) -> None:
        model = gp_case()[0].model
        assert isinstance(model, GPTube)
        z = torch.cat([self.x, torch.tensor([push], dtype=torch.float64)])
        used = model.confidence
        self.member = extremal_member(used.bound, used.model, z, float(which)) if which else None

    def mean(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        if self.member is None:
            return super().mean(x, u)
        step = reference_pendulum().known(x, u).clone()
        step[..., 1] += self.member(torch.cat([x, u], dim=-1))
        return step


class Refuted(RuleBasedStateMachine):
    """The linear plant, pushed out of its tube now and then: lawful → refuted → (start) → lawful, and no other way.

    When the plant is where it cannot be is known here from the plan's tube and the terminal set, not from the filter.
    """

    @initialize()
    def begin(self) -> None:
        self.filter = linear_filter().start()
        self.problem = self.filter.problem
        self.x = torch.zeros(2, dtype=torch.float64)
        self.plan: Certificate | None = None
        self.age, self.resting, self.refuted = 0, False, False

    @rule(push=st.floats(-1.0, 1.0), works=st.booleans(), kick=st.sampled_from([0.0, 0.0, 0.0, 0.9, 1.1, 30.0]))
    def steps(self, push: float, works: bool, kick: float) -> None:
        self.filter = replace(self.filter, proposer=Moody(works, "breakdown"))
        decision, self.filter = self.filter.decide(self.x, torch.tensor([push], dtype=torch.float64))
        assert (decision.falsified is not None) == self.refuted
        assert (self.filter.falsified is not None) == self.refuted
        assert not (self.refuted and decision.backed)
        assert decision.backed or self.refuted or decision.source == "unfiltered"
        if decision.source == "plan":
            self.plan, self.age = decision.certificate, 0
        self.resting = decision.source == "backup" and decision.backed
        model = self.problem.model
        assert isinstance(model, LinearTube)
        pushed = extreme(model.half_axes, torch.tensor([1.0, 1.0], dtype=torch.float64))
        self.x, self.age = model.plant(self.x, decision.u) + kick * pushed, self.age + 1
        if self.plan is not None and self.plan.tube is not None and self.age <= self.problem.steps:
            tube = self.plan.tube
            outside = not Ellipsoid(tube.center[0, self.age], tube.factor[0, self.age]).contains(self.x)
            self.refuted = self.refuted or (outside and decision.source in ("plan", "stored") and decision.backed)
        region = self.problem.terminal.intersect(self.problem.states)
        self.refuted = self.refuted or (self.resting and not bool(region.contains(self.x)))

    @precondition(lambda self: getattr(self, "refuted", False))
    @rule()
    def start(self) -> None:
        self.filter = self.filter.start()
        self.x, self.plan, self.resting, self.refuted = torch.zeros_like(self.x), None, False, False


def execute(machine: type[RuleBasedStateMachine], *, examples: int, steps: int, derandomize: bool = False) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize or settings().derandomize,  # as the profile says
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_linear_plant():
    execute(Plant, examples=8, steps=8)


def test_a_refuted_tube_backs_nothing_until_the_filter_is_started_anew():
    execute(Refuted, examples=10, steps=12)


@pytest.mark.slow
def test_linear_plant_for_longer():
    execute(Plant, examples=60, steps=20)


def test_the_terminal_set_of_the_pendulum_is_certified_invariant_for_every_function_of_the_confidence_set():
    assert gp_case()[1].certified


@pytest.mark.parametrize("machine", [PendulumTwin, AnyMember])
def test_pendulum_with_gp_tubes_for_a_moment(machine):
    execute(machine, examples=2, steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [PendulumTwin, AnyMember])
def test_pendulum_with_gp_tubes(machine):
    execute(machine, examples=8, steps=8)


# -------------------------------------------------------------------------------------------------------- controls
def forged(problem: CertificationProblem, law: AffineLaw, template: Invariance) -> Invariance:
    """A certificate that was never earned."""
    region = problem.terminal.intersect(problem.states)
    return planted(template, region=region, inputs=problem.inputs, model=problem.model, law=law)


class ShrunkTube(Plant):
    """The model believes in a fifth of the disturbance."""

    def build(self) -> SafetyFilter:
        problem, sure = linear_case()
        model = problem.model
        assert isinstance(model, LinearTube)
        small = replace(problem, model=replace(model, half_axes=0.2 * model.half_axes))
        return SafetyFilter(small, Moody(), forged(small, sure.law, sure))


class NotInvariant(Plant):
    """The terminal set is all of X."""

    def build(self) -> SafetyFilter:
        problem, sure = linear_case()
        wide = replace(problem, terminal=problem.states)
        assert not certify_invariance(wide, sure.law).certified
        return SafetyFilter(wide, Moody(), forged(wide, sure.law, sure))


class OffByOne(Plant):
    """The stored plan is read one stage too late, as the published filter does after a rejected plan."""

    def decide(self, proposed: torch.Tensor):
        late = replace(self.filter, stage=self.filter.stage + 1) if self.filter.stored is not None else self.filter
        decision, following = late.decide(self.x, proposed)
        if decision.source != "plan":
            following = replace(following, stage=self.filter.stage + 1)
        return decision, following


@dataclass(frozen=True, kw_only=True)
class Narrow(Mixture):
    """A hundredth of β: as with a hundredth of B and of R, but that R is looked at."""

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        rest = {"norm": 0.01 * norm, "noise": 0.01 * noise, "log_inv_delta": log_inv_delta}
        return super().formula(info_gain, count, regularizer, **rest)


class SmallerBeta(AnyMember):
    """The tube believes in a hundredth of β."""

    def build(self) -> SafetyFilter:
        problem, sure = gp_case()
        model = problem.model
        assert isinstance(model, GPTube)
        bound = model.confidence.bound
        assert type(bound) is Mixture
        narrow = ConfidenceSet(Narrow(rkhs_norm=bound.rkhs_norm, subgaussian=bound.subgaussian, delta=bound.delta))
        small = replace(problem, model=replace(model, confidence=narrow.update(model.confidence.model)))
        return SafetyFilter(small, Moody(), forged(small, sure.law, sure))


@pytest.mark.slow
def test_control_a_gp_tube_that_believes_in_too_small_a_beta_is_caught():
    with pytest.raises(AssertionError):
        execute(SmallerBeta, examples=30, steps=8, derandomize=True)


@pytest.mark.parametrize("broken", [ShrunkTube, NotInvariant, OffByOne])
def test_control_a_broken_premise_is_caught(broken):
    with pytest.raises(AssertionError):
        execute(broken, examples=30, steps=8, derandomize=True)


def test_control_a_filter_that_forgets_its_refutation_is_caught(monkeypatch):
    def forgetful(safe: SafetyFilter, x: torch.Tensor, learned: torch.Tensor):
        return honest(replace(safe, falsified=None), x, learned)

    honest = SafetyFilter.decide
    monkeypatch.setattr(SafetyFilter, "decide", forgetful)
    with pytest.raises(AssertionError):
        execute(Refuted, examples=30, steps=12, derandomize=True)


@pytest.mark.parametrize("ignored", ["state", "input", "terminal"])
def test_control_a_judge_that_ignores_one_kind_of_rows_is_caught(ignored, monkeypatch):
    honest = CertificationProblem.margins

    def blind(problem: CertificationProblem, tube: Tube) -> Margins:
        found = honest(problem, tube)
        return replace(found, **{ignored: torch.ones_like(getattr(found, ignored))})

    monkeypatch.setattr(CertificationProblem, "margins", blind)
    with pytest.raises(AssertionError):
        execute(Plant, examples=150, steps=8, derandomize=True)
