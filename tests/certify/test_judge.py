"""The judge: margins against a naive loop, planted liars, reasons for everything that is not certified."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds
from xmpsc_cases import (
    double_integrator,
    ensemble_pendulum,
    gp_pendulum,
    pendulum_data,
    pendulum_ensemble,
    plan,
    propose,
)

from gpsafe.certify import judge
from gpsafe.models import Ensemble
from gpsafe.sets import Box, Polytope
from gpsafe.tube import EnsembleTube
from gpsafe.verdict import Outcome

START = torch.tensor([0.2, 0.1], dtype=torch.float64)
HANGING = torch.tensor([math.pi, 0.3], dtype=torch.float64)
LEARNED = torch.tensor([0.3], dtype=torch.float64)
REST = plan(*[0.0] * 8)


def test_margins_are_those_of_a_loop_over_members_stages_and_rows():
    problem = ensemble_pendulum()
    inputs = plan(0.1, 0.2, -0.1, 0.3)
    found = judge(problem, HANGING, LEARNED, propose(inputs))
    assert found.margins is not None
    tube, Q = problem.tube(HANGING, inputs), problem.tube(HANGING, inputs).shape
    margins = []
    for m in range(problem.num_members):
        for k in range(5):
            x = tube.center[m, k]
            for i, (row, offset) in enumerate(zip(problem.states.H, problem.states.h, strict=True)):
                if k > 0:
                    value = offset - row @ x - (row @ Q[m, k] @ row).sqrt()
                    assert float(found.margins.state[m, k - 1, i]) == pytest.approx(float(value), abs=1e-9)
                    margins.append(float(value))
            for i, (row, offset) in enumerate(zip(problem.inputs.H, problem.inputs.h, strict=True)):
                if k < 4:
                    pulled = row @ problem.gain
                    value = offset - row @ inputs[k] - (pulled @ Q[m, k] @ pulled).sqrt()
                    assert float(found.margins.input[m, k, i]) == pytest.approx(float(value), abs=1e-9)
                    margins.append(float(value))
        for i, (row, offset) in enumerate(zip(problem.terminal.H, problem.terminal.h, strict=True)):
            value = offset - row @ tube.center[m, 4] - (row @ Q[m, 4] @ row).sqrt()
            assert float(found.margins.terminal[m, i]) == pytest.approx(float(value), abs=1e-9)
            margins.append(float(value))
    assert found.tightest is not None
    assert found.tightest.margin == pytest.approx(min(margins), abs=1e-9)
    assert found.distance == pytest.approx(0.2**2)


def test_a_liar_is_caught():
    """A solver that says "optimal" with slack −1 of a plan that leaves the set; and its honest twin."""
    problem = double_integrator()
    liar = judge(problem, START, LEARNED, propose(plan(*[0.9] * 8), status="Solve_Succeeded", slack=-1.0))
    assert liar.outcome is Outcome.VIOLATED
    assert not liar.certified
    assert "margin" in liar.reason
    assert liar.proposal.status == "Solve_Succeeded"
    pessimist = judge(problem, START, LEARNED, propose(REST, status="Infeasible_Problem_Detected", slack=9.0))
    assert pessimist.certified


def test_a_plan_on_the_edge_is_inconclusive_and_a_tolerance_is_stated():
    problem = double_integrator()
    base = judge(problem, START, LEARNED, propose(REST))
    assert base.tightest is not None
    tube = problem.tube(START, REST)
    support = (
        tube.center[..., -1, :] @ problem.terminal.H.mT + (problem.terminal.H @ tube.factor[0, -1]).norm(dim=-1)
    )[0]
    edge = replace(problem, terminal=Polytope(problem.terminal.H, support))
    assert judge(edge, START, LEARNED, propose(REST)).outcome is Outcome.INCONCLUSIVE
    loose = judge(replace(edge, tolerance=1e-6), START, LEARNED, propose(REST))
    assert loose.certified
    assert loose.verdict.threshold == 1e-6
    beyond = replace(problem, terminal=Polytope(problem.terminal.H, support - 1e-7))
    assert judge(beyond, START, LEARNED, propose(REST)).outcome is Outcome.VIOLATED


@pytest.mark.parametrize(
    ("x0", "inputs", "reason"),
    [
        (torch.tensor([math.nan, 0.0]), REST, "initial state has NaN"),
        (torch.tensor([2.0, 0.0]), REST, "infeasible initial state: row 0"),
        (START, plan(math.nan, *[0.0] * 7), "plan has NaN"),
        (START, plan(0.0, 0.0), r"no real plan of shape \(8, 1\)"),
        (START, None, "no real plan of shape"),
        (START, REST + 0j, r"no real plan of shape \(8, 1\): torch.complex128"),
        (START, plan(*[1e308] * 8), "not finite at stage"),
    ],
)
def test_what_cannot_be_judged_is_inconclusive_with_the_reason(x0, inputs, reason):
    found = judge(double_integrator(), x0.double(), LEARNED, propose(inputs))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert not found.certified
    assert re.search(reason, found.reason)
    assert found.margins is None


@pytest.mark.parametrize("place", ["states", "terminal"])
def test_rows_that_overflow_are_never_certified(place):
    """∞ − ∞ in one row beside satisfied rows: no least margin exists."""
    wide = Polytope.of_box(Box(torch.full((2,), -100.0).double(), torch.full((2,), 100.0).double()))
    row = torch.tensor([[1.7e308, -1.7e308]], dtype=torch.float64)
    huge = wide.intersect(Polytope(row, torch.ones(1).double()))
    problem = replace(double_integrator(), **{"states": wide, "terminal": wide, place: huge})
    found = judge(problem, torch.tensor([10.0, 10.0]).double(), LEARNED, propose(REST))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "overflow" in found.reason


def test_a_certificate_does_not_change_with_the_proposers_memory():
    plan_of_a_liar = REST.clone()
    found = judge(double_integrator(), START, LEARNED, propose(plan_of_a_liar))
    assert found.certified
    law = found.law(1, START)
    plan_of_a_liar.fill_(1e6)
    assert torch.equal(found.inputs, REST)
    assert torch.equal(found.law(1, START), law)


def test_sound_certificates_say_what_they_rest_on():
    process = judge(gp_pendulum(), START, LEARNED, propose(plan(0, 0, 0, 0)))
    paper = ensemble_pendulum()
    model = EnsembleTube.calibrated(pendulum_ensemble(), pendulum_data(400, 8), steps=4, delta=0.1)
    network = judge(
        replace(paper, model=model, assumptions=("terminal set invariant",)),
        HANGING,
        LEARNED,
        propose(plan(0, 0, 0, 0)),
    )
    assert process.certified
    assert network.certified
    assert any("rkhs_norm" in told for told in process.assumptions)
    assert any("calibrated" in told for told in network.assumptions)
    assert "terminal set invariant" in network.assumptions
    assert network.margins is not None
    published = judge(paper, HANGING, LEARNED, propose(plan(0, 0, 0, 0)))
    assert published.margins is not None
    assert float(network.margins.state.min()) < float(published.margins.state.min())


MODELS = {"linear": double_integrator, "ensemble": ensemble_pendulum, "gp": gp_pendulum}


@dear()
@given(seeds(), st.sampled_from(["linear", "ensemble", "sound", "gp"]), st.integers(-3, 308))
def test_no_plan_makes_the_judge_raise(seed, name, exponent):
    """Plans of any finite size: an answer each time, and never a certificate for one beyond the inputs."""
    if name == "sound":
        paper = ensemble_pendulum()
        assert isinstance(paper.model, EnsembleTube)
        model = EnsembleTube.sound(paper.model.ensemble, steps=paper.steps, delta=0.1)
        problem, x0 = replace(paper, model=model), HANGING
    else:
        problem, x0 = MODELS[name](), HANGING if name == "ensemble" else START
    generator = torch.Generator().manual_seed(seed)
    signs = 2 * torch.rand(problem.steps, 1, dtype=torch.float64, generator=generator) - 1
    found = judge(problem, x0, LEARNED, propose((signs * 10.0**exponent).requires_grad_()))
    assert found.outcome in set(Outcome)
    assert not found.inputs.requires_grad
    if found.certified:
        assert float(found.inputs.abs().max()) <= 1
    else:
        assert found.reason


def test_a_diverged_member_is_named():
    problem = ensemble_pendulum()
    assert isinstance(problem.model, EnsembleTube)
    model = problem.model.ensemble
    weights = [w.clone() for w in model.network.weights]
    weights[-1][1] = 1e308
    sick = Ensemble.from_weights(weights, model.network.biases, nx=2, nu=1, inputs=model.inputs, targets=model.targets)
    found = judge(replace(problem, model=EnsembleTube.paper(sick)), HANGING, LEARNED, propose(plan(0, 0, 0, 0)))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason == "the tube of member 1 is not finite at stage 1"


def test_the_affine_law_uses_the_stage_asked_for():
    problem = double_integrator()
    inputs = plan(*[0.01 * k for k in range(8)])
    found = judge(problem, START, LEARNED, propose(inputs))
    assert found.tube is not None
    torch.testing.assert_close(found.law(3, found.tube.reference[3]), inputs[3])
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    torch.testing.assert_close(found.law(2, x), inputs[2] + problem.gain @ (x - found.tube.reference[2]))
    with pytest.raises(ValueError, match=r"a stage in 0\.\.7, got 8"):
        found.law(8, x)
    for stage in (-1, True, 1.0, math.nan, None):
        with pytest.raises(ValueError, match="integer stage"):
            found.law(stage, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x of shape"):
        found.law(0, torch.zeros(3).double())


def test_callers_errors_are_refused():
    problem = double_integrator()
    with pytest.raises(ValueError, match=r"judge: expected x0 of shape \(2,\)"):
        judge(problem, torch.zeros(3).double(), LEARNED, propose(REST))
    with pytest.raises(ValueError, match=r"judge: expected learned of shape \(1,\)"):
        judge(problem, START, torch.zeros(2).double(), propose(REST))
    for wrong in ([0.0, 0.0], torch.tensor([True, False]), START + 0j, None):
        with pytest.raises(ValueError, match="a tensor of real numbers x0"):
            judge(problem, wrong, LEARNED, propose(REST))  # type: ignore[arg-type]


def half_space(*row: float) -> Polytope:
    return Polytope(torch.tensor([row], dtype=torch.float64), torch.ones(1).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": half_space(1.0, 0.0)}, "a bounded polytope of states"),
        ({"inputs": half_space(1.0)}, "a bounded polytope of inputs"),
        (
            {"inputs": Polytope(torch.tensor([[1.0], [-1.0]]), torch.tensor([-1.0, -1.0]))},
            "a non-empty polytope of inputs",
        ),
        ({"terminal": Polytope.of_box(Box(torch.full((2,), 2.0), torch.full((2,), 3.0)))}, "that meets the states"),
    ],
)
def test_unbounded_empty_and_disjoint_sets_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(double_integrator(), **change).check()
    double_integrator().check()
    replace(double_integrator(), terminal=half_space(1.0, 0.0)).check()  # a terminal set may leave dimensions free


class Shape:
    """A model of which only these attributes matter."""

    def __init__(self, **changed: object) -> None:
        vars(self).update({"nx": 2, "nu": 1, "num_members": 1, "mode": "sound", "assumptions": ()} | changed)


def test_what_is_given_as_lists_means_the_same_and_cannot_be_changed_later():
    problem = double_integrator()
    gain = problem.gain.clone()
    listed = replace(problem, gain=gain.tolist(), weight=[[2.0]], tolerance=np.float64(0.0), assumptions=["one", "two"])
    assert torch.equal(listed.gain, gain)
    assert float(listed.distance(LEARNED, 0 * LEARNED)) == pytest.approx(0.18)
    assert listed.assumptions == ("one", "two")
    own = replace(problem, gain=gain)
    gain.zero_()
    assert torch.equal(own.gain, problem.gain)


def test_proposers_get_a_copy_once():
    problem = gp_pendulum()
    lent = problem.lent()
    assert lent is problem.lent()
    assert lent is not problem.lent().lent()
    lent.states.h.fill_(1e9)
    lent.model.confidence.model.noise_std.fill_(1e9)  # type: ignore[attr-defined]
    assert float(problem.states.h.max()) < 10
    assert float(problem.model.confidence.model.noise_std.max()) < 1  # type: ignore[attr-defined]

    class Held(Shape):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    with pytest.raises(ValueError, match=r"a model that can be copied.*lock"):
        replace(double_integrator(), model=Held()).lent()


def test_a_plan_may_not_be_longer_than_the_noise_events_counted():
    with pytest.raises(ValueError, match="steps <= 4, over which the model counts its noise, got 5"):
        replace(gp_pendulum(steps=4), steps=5)
    assert replace(gp_pendulum(steps=4), steps=3).steps == 3
    paper = ensemble_pendulum()
    assert isinstance(paper.model, EnsembleTube)
    for model in (
        EnsembleTube.sound(paper.model.ensemble, steps=3, delta=0.1),
        EnsembleTube.calibrated(paper.model.ensemble, pendulum_data(400, 8), steps=3, delta=0.1),
    ):
        assert replace(paper, model=model, steps=3).steps == 3
        with pytest.raises(ValueError, match="steps <= 3"):
            replace(paper, model=model)


def test_wrong_shapes_are_refused():
    problem = double_integrator()
    for change, message in (
        ({"states": half_space(1.0)}, "states.H of shape"),
        ({"gain": torch.zeros(2, 1).double()}, "gain of shape"),
        ({"steps": 0}, "integer steps >= 1"),
        ({"steps": True}, "integer steps >= 1"),
        ({"steps": 8.0}, "integer steps >= 1"),
        ({"weight": -torch.eye(1).double()}, "positive definite weight"),
        ({"weight": torch.tensor([[math.nan]])}, "finite weight"),
        ({"weight": torch.tensor([[True]])}, "numbers in weight, got Booleans"),
        ({"weight": torch.ones(1).double()}, "weight of shape"),
        ({"gain": torch.ones(1, 2, dtype=torch.bool)}, "numbers in gain, got Booleans"),
        ({"gain": torch.full((1, 2), math.inf)}, "finite gain"),
        ({"gain": torch.zeros(7, 1, 2).double()}, "gain of shape"),
        ({"tolerance": -1e-9}, "tolerance >= 0"),
        ({"tolerance": True}, "numbers in tolerance, got Booleans"),
        ({"tolerance": math.nan}, "finite tolerance"),
        ({"tolerance": math.inf}, "finite tolerance"),
        ({"tolerance": torch.zeros(2)}, "one number tolerance"),
        ({"tolerance": "0"}, "one number tolerance"),
        ({"assumptions": "exact"}, "a tuple as assumptions"),
        ({"states": Box(-torch.ones(2).double(), torch.ones(2).double())}, "a Polytope of states"),
        ({"model": Shape(mode="exact")}, "mode of the model"),
        ({"model": Shape(num_members=0)}, "num_members of the model"),
        ({"model": Shape(nx=2.0)}, "nx of the model"),
        ({"model": Shape(steps=7)}, "steps <= 7"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(problem, **change)


def test_a_bare_plan_is_judged_as_a_proposal_that_tells_nothing():
    problem = double_integrator()
    bare, told = (judge(problem, START, LEARNED, given) for given in (REST, propose(REST)))
    unnamed = bare.proposal
    assert unnamed is not None and unnamed.proposer == "unnamed" and not unnamed.given_up and unnamed.path is None
    assert (
        math.isnan(unnamed.seconds) and math.isnan(unnamed.slack) and unnamed.iterations == 0 and unnamed.status == ""
    )
    assert judge(problem, START, LEARNED, propose(REST), spare=True).verdict == told.verdict  # nobody gave it up
    assert bare.verdict == told.verdict and torch.equal(bare.inputs, told.inputs) and bare.distance == told.distance
    assert judge(problem, START, LEARNED, REST[:-1]).outcome is Outcome.INCONCLUSIVE
    odd = REST.as_subclass(type("Odd", (torch.Tensor,), {}))
    assert judge(problem, START, LEARNED, odd).outcome is Outcome.INCONCLUSIVE
