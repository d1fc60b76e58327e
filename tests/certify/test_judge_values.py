"""The judge's margins, rounding, interval and deciding row against loops, on a tube model whose every number is stated."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from tube_cases import Stated, stated

from gpsafe.certify import CertificationProblem, Proposal, judge
from gpsafe.certify.judge import ROUNDING
from gpsafe.sets import Box, Polytope
from gpsafe.verdict import Outcome

STEPS = 3
tensor = partial(torch.tensor, dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def box(radius: float, dim: int = 2) -> Polytope:
    return Polytope.of_box(Box(torch.full((dim,), -radius).double(), torch.full((dim,), radius).double()))


def problem(**changes) -> CertificationProblem:
    """Two members, gains of every stage, sets with slanted rows."""
    slanted = Polytope(tensor([[0.6, 0.8]]), tensor([30.0]))
    case = CertificationProblem(
        stated(1),
        box(25.0).intersect(slanted),
        box(20.0).intersect(slanted),
        box(22.0),
        0.3 * draw(2, STEPS, 2, 2),
        STEPS,
    )
    return replace(case, **changes)


def proposed(inputs: Tensor) -> Proposal:
    return Proposal(inputs, "", 1, 0.0, "by hand", 0.0)


X0, PLAN, LEARNED = tensor([0.7, -1.1]), draw(3, STEPS, 2), tensor([0.4, -0.3])


def rows(case: CertificationProblem, x0: Tensor, plan: Tensor):
    """(kind, stage, member, row, margin, sum of absolute terms) of every constraint."""
    tube = case.tube(x0, plan)
    for m in range(tube.num_members):
        for k in range(STEPS + 1):
            c, L = tube.center[m, k], tube.factor[m, k]
            for kind, body, wanted in (("state", case.states, k > 0), ("terminal", case.terminal, k == STEPS)):
                for i, (a, offset) in enumerate(zip(body.H, body.h, strict=True)):
                    if wanted:
                        size = a.abs() @ c.abs() + (a.abs() @ L.abs()).sum() + offset.abs()
                        yield kind, k, m, i, float(offset - a @ c - (a @ L).norm()), float(size)
            for i, (a, offset) in enumerate(zip(case.inputs.H, case.inputs.h, strict=True)):
                if k < STEPS:
                    K, v = tube.gain[k], tube.inputs[m, k]
                    reach = c.abs() + tube.reference[k].abs() + L.abs().sum(-1)
                    size = a.abs() @ v.abs() + a.abs() @ (K.abs() @ reach) + offset.abs()
                    yield "input", k, m, i, float(offset - a @ v - (a @ K @ L).norm()), float(size)


def test_every_margin_is_lowered_by_the_rounding_of_its_row():
    case = problem()
    found = judge(case, X0, LEARNED, proposed(PLAN))
    computed = case.margins(case.tube(X0, PLAN))
    assert found.margins is not None
    every = list(rows(case, X0, PLAN))
    for kind, k, m, i, margin, size in every:
        place = (m, i) if kind == "terminal" else (m, k - 1 if kind == "state" else k, i)
        value, before = (float(getattr(of, kind)[place]) for of in (found.margins, computed))
        assert value == pytest.approx(margin, rel=1e-10)
        assert before - value == pytest.approx(ROUNDING * size, rel=2e-3, abs=0)
    assert found.margins.state.numel() + found.margins.input.numel() + found.margins.terminal.numel() == len(every)
    assert ROUNDING == 1e-12
    # The interval of the largest excess: from the margins that rounding could have hidden to those after rounding.
    assert found.certified and found.reason == ""
    least = min(every, key=lambda row: row[4])
    assert found.verdict.upper + least[4] == pytest.approx(ROUNDING * least[5], rel=2e-3, abs=0)
    assert found.verdict.lower + least[4] == pytest.approx(-ROUNDING * least[5], rel=2e-3, abs=0)
    assert 0 <= found.seconds < 60 and torch.equal(found.action, PLAN[0])


def test_rounding_of_inputs_counts_gains_times_all_that_the_law_sees():
    case = problem(gain=5.0 * draw(2, STEPS, 2, 2), inputs=box(1e-3))
    found, computed = judge(case, X0, LEARNED, proposed(PLAN)), case.margins(case.tube(X0, PLAN))
    for kind, k, m, i, _, size in rows(case, X0, PLAN):
        if kind == "input" and k < 2:
            lowered = float((computed.input - found.margins.input)[m, k, i])
            assert lowered == pytest.approx(ROUNDING * size, rel=2e-3, abs=0)


def test_rounding_counts_the_size_of_negative_offsets():
    case = problem(terminal=Polytope(tensor([[1.0, 0.0]]), tensor([-30.0])))
    found = judge(case, X0, LEARNED, proposed(PLAN))
    computed = case.margins(case.tube(X0, PLAN))
    for kind, _, m, i, _, size in rows(case, X0, PLAN):
        if kind == "terminal":
            lowered = float((computed.terminal - found.margins.terminal)[m, i])
            assert lowered == pytest.approx(ROUNDING * size, rel=2e-3, abs=0)


@pytest.mark.parametrize("kind", ["state", "input", "terminal"])
def test_the_deciding_row_is_named(kind):
    """Each kind of rows in turn is made the tightest."""
    case = problem()
    name = {"state": "states", "input": "inputs", "terminal": "terminal"}[kind]
    body = getattr(case, name)
    case = replace(case, **{name: Polytope(body.H, body.h - 17.0)})
    expected = min(rows(case, X0, PLAN), key=lambda row: row[4])
    assert expected[0] == kind
    found = judge(case, X0, LEARNED, proposed(PLAN)).tightest
    assert found is not None
    assert (found.kind, found.stage, found.member, found.row) == expected[:4]
    assert found.margin == pytest.approx(expected[4], rel=1e-9)


def test_the_distance_is_weighted():
    weight = tensor([[2.0, 0.5], [0.5, 3.0]])
    gap = LEARNED - PLAN[0]
    assert judge(problem(weight=weight), X0, LEARNED, proposed(PLAN)).distance == pytest.approx(
        float(gap @ weight @ gap)
    )
    assert judge(problem(), X0, LEARNED, proposed(PLAN)).distance == pytest.approx(float(gap @ gap))


@pytest.mark.parametrize(("excess", "certified"), [(0.9e-3, True), (1.1e-3, False)])
def test_the_initial_state_may_exceed_its_rows_by_the_tolerance(excess, certified):
    still = Stated(0.1 * torch.eye(2).double()[None], torch.eye(2).double()[None], *torch.zeros(2, 1, 2).double())
    case = problem(model=still, gain=torch.zeros(2, 2).double(), tolerance=1e-3)
    found = judge(case, tensor([0.0, 25.0 + excess]), LEARNED, proposed(torch.zeros(STEPS, 2).double()))
    assert found.certified == certified
    row = int((case.states.H @ tensor([0.0, 1.0]) - case.states.h).argmax())
    assert certified or found.reason == f"infeasible initial state: row {row} of the states is exceeded by {excess:.3g}"


def test_the_edge_of_the_states_belongs_to_them():
    still = Stated(0.1 * torch.eye(2).double()[None], torch.eye(2).double()[None], *torch.zeros(2, 1, 2).double())
    case = problem(model=still, states=box(25.0), gain=torch.zeros(2, 2).double())
    assert judge(case, tensor([0.0, 25.0]), LEARNED, proposed(torch.zeros(STEPS, 2).double())).certified


def test_a_row_that_overflows_at_the_initial_state_is_no_satisfied_row():
    huge = Polytope(tensor([[1.7e308, -1.7e308]]), tensor([1.0]))
    found = judge(problem(states=box(25.0).intersect(huge)), tensor([10.0, 10.0]), LEARNED, proposed(PLAN))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason == "the rows of the states overflow at the initial state"


@pytest.mark.parametrize("part", ["mean", "variance"])
def test_a_tube_that_breaks_down_is_named_by_its_first_stage_and_member(part):
    """Centres and sizes are looked at each on its own; the second member breaks down at the second step, the first later."""

    class Breaking(Stated):
        def linearise(self, x, u):
            local = super().linearise(x, u)
            late = (x[..., :1] - u[..., :1] > tensor([[3.5], [2.5]])) & (
                torch.arange(2) == torch.tensor([[0], [1]])
            ).any(-1, True)
            return replace(local, **{part: torch.where(late, math.nan, getattr(local, part))})

    eye = torch.eye(2).double().expand(2, 2, 2)
    counting = Breaking(eye, 0 * eye, tensor([[1.0, 0.0]] * 2), 1e-4 * torch.ones(2, 2).double())
    case = problem(model=counting, gain=torch.zeros(2, 2).double())
    found = judge(case, tensor([1.0, 0.0]), LEARNED, proposed(torch.zeros(STEPS, 2).double()))
    assert found.outcome is Outcome.INCONCLUSIVE and found.margins is None and not found.certified
    assert found.reason == "the tube of member 1 is not finite at stage 3"
    assert (found.verdict.lower, found.verdict.upper) == (-math.inf, math.inf)


def test_the_law_of_every_stage_and_no_other():
    found = judge(problem(), X0, LEARNED, proposed(PLAN))
    x = tensor([[0.3, -0.2], [1.0, 2.0]])
    for k in range(STEPS):
        expected = PLAN[k] + (x - found.tube.reference[k]) @ found.gain[k].mT
        torch.testing.assert_close(found.law(k, x), expected)
    for k in (-1, STEPS):
        with pytest.raises(ValueError, match=rf"stage.* got {k}"):
            found.law(k, x)
    with pytest.raises(ValueError, match="stage"):
        judge(problem(), X0, LEARNED, proposed(PLAN[:2])).law(0, x)


def test_a_proposal_of_the_wrong_kind_is_described():
    for inputs, told in ((PLAN[:2], "(2, 2)"), (None, "NoneType"), (PLAN.tolist(), "list"), (PLAN + 0j, "")):
        found = judge(problem(), X0, LEARNED, proposed(inputs))
        assert found.reason.startswith("the proposal has no real plan of shape (3, 2): ") and found.reason.endswith(
            told
        )
        assert bool(found.inputs.isnan().all()) and found.inputs.shape == (3, 2) and math.isnan(found.distance)


def test_what_a_certificate_rests_on_is_listed_once():
    found = judge(problem(assumptions=("stated", "another")), X0, LEARNED, proposed(PLAN))
    assert [found.assumptions.count(word) for word in ("stated", "another", "state measured exactly")] == [1, 1, 1]
    single = judge(problem(), X0.float(), LEARNED.float(), proposed(PLAN.float()))
    assert single.inputs.dtype == single.action.dtype == torch.float64


@pytest.mark.parametrize(("tolerance", "certified"), [(0.0, False), (1e-9, True)])
def test_an_input_that_may_have_one_value_only_needs_a_tolerance(tolerance, certified):
    """Its rows leave no room for rounding; that is said, where one read of a margin of −2e-13."""
    locked = Polytope.of_box(Box(tensor([-20.0, 0.1]), tensor([20.0, 0.1])))
    plan = PLAN.clone()
    plan[:, 1] = 0.1
    case = problem(inputs=locked, gain=0 * problem().gain, tolerance=tolerance)
    found = judge(case, X0, LEARNED, proposed(plan))
    assert found.certified == certified
    assert certified or (found.outcome is Outcome.INCONCLUSIVE and "has to state a tolerance" in found.reason)
