"""Searches stay in the cube, respect the constraint they see, and get near the best of a planted problem."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.planning.search import (
    AugmentedLagrangian,
    BotorchSearch,
    FiniteGrid,
    LogBarrier,
    RandomSearch,
    RolloutAcquisition,
)
from gpsafe.planning.search.log_barrier import barrier_step
from gpsafe.planning.search.problem import value_and_gradients

SEARCHES = {
    "log-barrier": LogBarrier(steps=60, eta=0.03, eta_final=1e-4),
    "lagrangian": AugmentedLagrangian(outer=8, inner=10),
    "botorch": BotorchSearch(iterations=30),
    "random": RandomSearch(samples=200),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corner(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximise x + y inside a disc of radius 0.5 around (0.4, 0.4): the best value is 0.8 + 0.5√2."""
    return x.sum(-1), (x - 0.4).square().sum(-1) - 0.25


STARTS = torch.tensor([[0.4, 0.4], [0.1, 0.3], [0.6, 0.2]], dtype=torch.float64)
BEST = 0.8 + 0.5 * 2**0.5


@pytest.mark.parametrize("name", SEARCHES)
def test_search_is_feasible_inside_the_cube_and_near_the_best(name):
    found = SEARCHES[name](corner, STARTS, generator(0))
    assert bool(((found.points >= 0) & (found.points <= 1)).all())
    value, constraint = corner(found.points)
    assert torch.allclose(value, found.objective) and torch.allclose(constraint, found.constraint)
    assert bool((constraint <= 0).all())
    assert BEST - 0.06 <= float(found.objective.max()) <= BEST + 1e-5
    assert found.evaluations >= len(STARTS)


@pytest.mark.parametrize("name", SEARCHES)
def test_search_is_reproducible_and_refuses_starts_outside_the_cube(name):
    again = [SEARCHES[name](corner, STARTS, generator(3)).points for _ in range(2)]
    assert torch.equal(*again)
    with pytest.raises(ValueError, match="unit cube"):
        SEARCHES[name](corner, STARTS + 1.0, generator(0))


def test_infeasible_starts_are_returned_unchanged_where_the_method_needs_feasible_ones():
    outside = torch.tensor([[0.99, 0.99], [0.4, 0.4]], dtype=torch.float64)
    for name in ("log-barrier", "botorch"):
        found = SEARCHES[name](corner, outside, generator(0))
        assert torch.equal(found.points[0], outside[0]) and not bool(found.feasible[0])
        assert float(found.objective[1]) > 1.3


def test_the_lagrangian_finds_its_way_back_from_an_infeasible_start():
    found = SEARCHES["lagrangian"](corner, torch.tensor([[0.99, 0.99]]).double(), generator(0))
    assert bool(found.feasible.all()) and float(found.objective) > 1.3


@given(seeds(), st.floats(0.01, 1.0), st.floats(0.5, 20.0))
def test_a_barrier_step_with_true_smoothness_never_loses_more_than_half_of_a_slack(seed, eta, curvature):
    """The theorem behind LBSGD, for f₁ = ½ M ‖x − c‖² − r (M-smooth) and the faces of the cube."""
    g = generator(seed)
    x, center = (torch.rand(50, 3, dtype=torch.float64, generator=g) for _ in range(2))
    up = 10 * torch.randn(50, 3, dtype=torch.float64, generator=g)
    gap = 0.5 * curvature * (x - center).square().sum(-1)
    radius = gap + 10 ** (-4 * torch.rand(50, dtype=torch.float64, generator=g))
    eye = torch.eye(3, dtype=torch.float64).expand(50, -1, -1)

    def slack(point: torch.Tensor) -> torch.Tensor:
        own = radius - 0.5 * curvature * (point - center).square().sum(-1)
        return torch.cat([own.unsqueeze(-1), point, 1 - point], dim=-1)

    normals = torch.cat([(curvature * (x - center)).unsqueeze(1), -eye, eye], dim=1)
    before = slack(x)
    smooth = torch.tensor([[0.1, curvature]]).double().expand(50, 2)
    step = barrier_step(up, before, normals, eta=eta, smoothness=smooth)
    assert bool((slack(x + step) >= 0.5 * before - 1e-12).all())
    blind = barrier_step(up, before, normals, eta=1e-9, smoothness=torch.tensor([[0.1, 1e-9]]).double().expand(50, 2))
    assert bool((step.norm(dim=-1) > 0).all()) and bool(torch.isfinite(blind).all())


def test_control_a_barrier_step_that_ignores_curvature_can_leave_the_set():
    # f₁ = ½·100·(x − ½)² − 1.28 at x = ½ with a gradient of 0: without M nothing limits the step but the faces.
    slack = torch.tensor([[1.28, 0.5, 0.5]], dtype=torch.float64)
    normals = torch.tensor([[[0.0], [-1.0], [1.0]]], dtype=torch.float64)
    up = torch.tensor([[10.0]], dtype=torch.float64)

    def after(m: float) -> float:
        step = barrier_step(up, slack, normals, eta=1e-6, smoothness=torch.tensor([[1e-3, m]], dtype=torch.float64))
        return 1.28 - 50 * float(step) ** 2

    assert after(100.0) >= 0.64 - 1e-12 and after(1e-9) < 0


def test_iterates_of_the_barrier_stay_strictly_feasible():
    seen = []

    def watched(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, constraint = corner(x)
        seen.append(constraint.detach())
        return value, constraint

    found = LogBarrier(steps=80, smoothness=(1.0, 2.0), adapt=False)(watched, STARTS, generator(0))
    assert bool((torch.stack(seen) < 0).all())  # c is 2-smooth, and no trial ever leaves
    assert float(found.objective.max()) > 1.3


def test_a_finite_grid_proposes_itself():
    points = torch.rand(9, 2, dtype=torch.float64, generator=generator(0))
    assert torch.equal(FiniteGrid(points)(corner, STARTS, generator(0)).points, points)


def test_random_search_prefers_feasible_points():
    none = RandomSearch(samples=5)(lambda x: (x.sum(-1), torch.ones(len(x)).double()), STARTS, generator(0))
    assert none.points.shape == STARTS.shape and not bool(none.feasible.any())


def test_the_acquisition_has_the_values_and_derivatives_of_the_problem():
    acquisition = RolloutAcquisition(corner)
    x = STARTS.clone().requires_grad_(True)
    value = acquisition(x.unsqueeze(-2))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    expected = value_and_gradients(corner, STARTS)
    assert torch.equal(value.detach(), expected[0]) and torch.equal(gradient, expected[2])
    before = acquisition.evaluations
    point = STARTS[0].clone().requires_grad_(True)
    slack = acquisition.slack(point)
    (gradient,) = torch.autograd.grad(slack, point)
    assert float(slack.detach()) == pytest.approx(0.25) and torch.allclose(gradient, -expected[3][0])
    acquisition(STARTS[:1].unsqueeze(-2))
    assert acquisition.evaluations == before + 1  # constraint and objective share a rollout


def test_a_problem_without_gradient_gives_zero_gradients():
    *_, up, out = value_and_gradients(lambda x: (x.sum(-1), torch.ones(len(x)).double()), STARTS)
    assert torch.equal(up, torch.ones_like(STARTS)) and torch.equal(out, torch.zeros_like(STARTS))
