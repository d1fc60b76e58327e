"""The problem itself: which sets are the same, what is refused at its edge, the objective and the margins by hand."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tube_cases import stated

from gpsafe.certify import CertificationProblem
from gpsafe.sets import Box, Polytope

tensor = partial(torch.tensor, dtype=torch.float64)


def box(radius: float, dim: int = 2) -> Polytope:
    return Polytope.of_box(Box(torch.full((dim,), -radius).double(), torch.full((dim,), radius).double()))


def problem(**changes) -> CertificationProblem:
    sets = {"states": box(3.0), "inputs": box(2.0), "terminal": box(1.0)}
    return CertificationProblem(
        **{"model": stated(1), "gain": torch.zeros(2, 2).double(), "steps": 3, **sets, **changes}
    )


def test_a_plan_serves_the_same_sets_and_no_others():
    """Each set counts, and of each its normals and its offsets."""
    case = problem()
    assert (
        case.asks_as(case)
        and case.asks_as(problem())
        and case.asks_as(problem(steps=2, weight=2 * torch.eye(2).double()))
    )
    for name in ("states", "inputs", "terminal"):
        body = getattr(case, name)
        h, H = body.h.clone(), body.H.clone()
        h[3], H[0, 1] = h[3] + 1e-12, 1e-12
        for other in (Polytope(body.H, h), Polytope(H, body.h)):
            assert not case.asks_as(replace(case, **{name: other})) and not replace(case, **{name: other}).asks_as(case)


def test_the_objective_is_the_weighted_square_of_the_gap():
    gap = tensor([[1.0, 2.0], [-3.0, 0.0]])
    learned, action = tensor([[1.5, 1.0], [0.0, 0.0]]), tensor([[0.5, -1.0], [3.0, 0.0]])
    assert torch.equal(learned - action, gap)
    assert problem().distance(learned, action).tolist() == [5.0, 9.0]
    weighted = problem(weight=tensor([[2.0, 0.5], [0.5, 1.0]]))
    assert weighted.distance(learned, action).tolist() == [2.0 + 2 * 0.5 * 2.0 + 4.0, 18.0]


@pytest.mark.parametrize("weight", [[[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.1], [0.0, 1.0]]])
def test_a_weight_is_symmetric_and_definite(weight):
    with pytest.raises(ValueError, match="a symmetric positive definite weight"):
        problem(weight=tensor(weight))


def test_sets_that_admit_everything_or_nothing_are_named():
    case = problem()
    assert case.check() is case
    empty = box(1.0).intersect(Polytope(tensor([[1.0, 0.0]]), tensor([-2.0])))
    half = Polytope(tensor([[1.0, 0.0], [-1.0, 0.0]]), tensor([1.0, 1.0]))
    for change, message in (
        ({"states": empty}, "a non-empty polytope of states"), ({"inputs": empty}, "a non-empty polytope of inputs"),
        ({"terminal": empty}, "a non-empty terminal"), ({"states": half}, "a bounded polytope of states"),
        ({"inputs": half}, "a bounded polytope of inputs"),
        ({"terminal": Polytope(tensor([[-1.0, 0.0]]), tensor([-3.0 - 1e-12]))}, "that meets the states"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            problem(**change).check()
    assert problem(terminal=half).check()  # a terminal set may leave coordinates free
    assert problem(terminal=Polytope(tensor([[-1.0, 0.0]]), tensor([-3.0]))).check()  # touching is meeting


def test_margins_are_offset_minus_support_of_every_member_and_stage():
    case = problem(
        gain=0.5 * torch.eye(2).double(), terminal=box(1.0).intersect(Polytope(tensor([[0.6, 0.8]]), tensor([0.5])))
    )
    tube = case.tube(tensor([0.3, -0.2]), tensor([[0.1, 0.0], [0.0, -0.2], [0.3, 0.1]]))
    found = case.margins(tube)
    assert found.state.shape == (2, 3, 4) and found.input.shape == (2, 3, 4) and found.terminal.shape == (2, 5)
    for m in range(2):
        for k in range(1, 4):
            reach = case.states.H @ tube.center[m, k] + (case.states.H @ tube.factor[m, k]).norm(dim=-1)
            torch.testing.assert_close(found.state[m, k - 1], case.states.h - reach, rtol=1e-12, atol=1e-14)
            reach = case.inputs.H @ tube.inputs[m, k - 1] + 0.5 * (case.inputs.H @ tube.factor[m, k - 1]).norm(dim=-1)
            torch.testing.assert_close(found.input[m, k - 1], case.inputs.h - reach, rtol=1e-12, atol=1e-14)
        last = case.terminal.H @ tube.center[m, 3] + (case.terminal.H @ tube.factor[m, 3]).norm(dim=-1)
        torch.testing.assert_close(found.terminal[m], case.terminal.h - last, rtol=1e-12, atol=1e-14)


def test_a_model_that_counts_its_noise_bounds_the_steps_in_sound_mode_only():
    class Counted:
        nx, nu, num_members, assumptions, steps = 2, 2, 1, (), 3

        def __init__(self, mode: str) -> None:
            self.mode = mode

    assert problem(model=Counted("sound"), steps=3).steps == 3
    with pytest.raises(ValueError, match="steps <= 3, over which the model counts its noise, got 4"):
        problem(model=Counted("sound"), steps=4)
    assert problem(model=Counted("paper"), steps=4).mode == "paper"


def test_copies_for_proposers_are_made_once_for_each_problem():
    case = problem()
    lent = case.lent()
    assert lent is case.lent() and lent is not case and problem().lent() is not lent
    lent.states.h.fill_(9.0)
    assert case.states.h.tolist() == [3.0] * 4
