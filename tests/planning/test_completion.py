"""Plans without a solver: the largest step towards the proposed input whose completed tube fits, against a naive loop."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpsafe.certify import judge
from gpsafe.certify.problem import CertificationProblem
from gpsafe.certify.terminal_set import AffineLaw
from gpsafe.linalg import vector
from gpsafe.models import Ensemble
from gpsafe.planning.mpc.completion import Completion, least
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Polytope
from gpsafe.systems import AffineKnown
from gpsafe.tube import EnsembleTube, LinearTube

A, B = vector(1.0, 0.1, 0.0, 1.0).reshape(2, 2), vector(0.005, 0.1).reshape(2, 1)
PLANT = AffineKnown(A, B, vector(0.0, 0.0))
GAIN = vector(-2.0, -2.5).reshape(1, 2)
LAW = AffineLaw(GAIN, vector(0.0))
UNIT = Box(vector(-1.0), vector(1.0))
PROPOSER = Completion(LAW, UNIT.lower, UNIT.upper)


def problem(model=None, noise=1e-3):
    model = LinearTube(PLANT, vector(noise, noise)) if model is None else model
    states = Polytope.of_box(Box(vector(-1.0, -1.0), vector(1.0, 1.0)))
    inner = Polytope.of_box(Box(vector(-0.9, -0.5), vector(0.9, 0.5)))
    return CertificationProblem(model, states, Polytope.of_box(UNIT), inner, GAIN, 4)


def by_hand(asked, x, learned):
    """(λ, plan) of the largest λ whose tube keeps every row, one plan after another; None if there is none."""
    found = None
    for share in torch.linspace(0.0, 1.0, 9, dtype=torch.float64):
        base = torch.clamp(LAW(x), -1.0, 1.0)
        inputs, state = [base + share * (torch.clamp(learned, -1.0, 1.0) - base)], x
        for _ in range(3):
            state = A @ state + B @ inputs[-1]
            inputs.append(torch.clamp(LAW(state), -1.0, 1.0))
        plan = torch.stack(inputs)
        margins = asked.margins(asked.tube(x, plan))
        if min(float(m.min()) for m in (margins.state, margins.input, margins.terminal)) >= 1e-9:
            found = plan
    return found


@settings(max_examples=25, deadline=None)
@example(0.5, 0.0, -1.0)  # a margin of nought: less than the judge's rounding wants
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-2, 2))
def test_it_finds_what_a_loop_finds_and_the_judge_agrees(position, speed, push):
    asked, x, learned = problem(), vector(position, speed), vector(push)
    found, naive = PROPOSER.propose(asked, x, learned), by_hand(problem(), x, learned)
    assert (found.status == "feasible") == (naive is not None)
    assert judge(asked, x, learned, found).certified == (naive is not None)
    if naive is not None:
        assert float((found.inputs - naive).abs().max()) <= 1e-12
    else:
        assert "none of 9" in found.reason


def test_a_warm_plan_that_is_nearer_is_kept_and_one_that_does_not_fit_is_not():
    asked, x, learned = problem(), vector(0.3, 0.2), vector(1.0)
    alone = PROPOSER.propose(asked, x, learned)
    nearer = alone.inputs.clone()
    nearer[0] += 0.5 * (1.0 / 8) * (learned - LAW(x))  # between two levels
    assert judge(asked, x, learned, PROPOSER.propose(asked, x, learned, warm=alone.inputs)).certified
    wild = torch.ones(4, 1, dtype=torch.float64)
    kept = PROPOSER.propose(asked, x, learned, warm=wild)
    assert float((kept.inputs - alone.inputs).abs().max()) <= 1e-12
    if judge(asked, x, learned, PROPOSER.propose(asked, x, nearer[0])).certified:
        chosen = PROPOSER.propose(asked, x, learned, warm=nearer)
        assert float(asked.distance(learned, chosen.inputs[0])) <= float(asked.distance(learned, alone.inputs[0]))


def test_members_of_an_ensemble_share_one_plan():
    model = Ensemble.create(2, 1, generator=torch.Generator().manual_seed(1), members=3, hidden=(5,), prior=PLANT)
    asked = problem(EnsembleTube.paper(model))
    x, learned = vector(0.1, 0.0), vector(0.7)
    found = PROPOSER.propose(asked, x, learned)
    assert found.inputs.shape == (4, 1)
    assert judge(asked, x, learned, found).certified == (found.slack <= 0)


def test_a_filter_with_it_keeps_a_linear_plant_within_limits_whatever_is_proposed():
    asked, generator = problem(noise=2e-3), torch.Generator().manual_seed(0)
    safe, x, plans = SafetyFilter(asked, PROPOSER, backup=LAW).start(), vector(0.0, 0.0), 0
    for _ in range(60):
        decision, safe = safe.decide(x, UNIT.sample(1, generator)[0].sign())
        plans += decision.source == "plan"
        angle = 2 * math.pi * torch.rand(1, dtype=torch.float64, generator=generator)
        x = A @ x + B @ decision.u + 2e-3 * torch.cat([angle.cos(), angle.sin()])
        assert bool(asked.states.contains(x))
    assert plans > 30


def test_least_is_that_of_all_rows_and_nan_is_no_margin():
    asked = problem()
    tube = asked.tube(vector(0.0, 0.0), torch.full((2, 4, 1), torch.nan, dtype=torch.float64))
    assert bool((least(asked.margins(tube)) == -torch.inf).all())


def test_what_is_no_box_or_no_law_is_refused():
    with pytest.raises(ValueError, match="lower <= upper"):
        Completion(LAW, vector(1.0), vector(-1.0))
    with pytest.raises(ValueError, match="levels"):
        Completion(LAW, vector(-1.0), vector(1.0), levels=1)
    with pytest.raises(ValueError, match="a law"):
        Completion(None, vector(-1.0), vector(1.0))


@pytest.mark.parametrize("unit", [1.0, 1e3, 1e6])
def test_a_plan_that_is_found_is_certified_in_any_unit(unit):
    """An input half a millionth inside its limit of a million is inside by less than the judge rounds: the next one is."""
    small = problem()
    states, inputs, terminal = (Polytope(s.H, unit * s.h) for s in (small.states, small.inputs, small.terminal))
    tube = LinearTube(PLANT, unit * vector(1e-3, 1e-3))
    asked = CertificationProblem(tube, states, inputs, terminal, GAIN, 4)
    end, x = unit * UNIT.upper - 5e-7, unit * vector(-0.25, 0.0)
    found = Completion(LAW, -end, end).propose(asked, x, 2 * end)
    assert found.status == "feasible" and judge(asked, x, 2 * end, found).certified
