"""LBSGD where the optimum is known: feasible iterates, descent, the gap that the barrier promises; and Adam behind it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds

from gpsafe.planning.log_barrier import Adam, barrier_step, log_barrier_descent, values_and_gradients
from gpsafe.planning.quadratics import Quadratics

EXACT, SOLVE = 1e-12, 1e-8


def programs(seed: int, count: int = 8, dim: int = 3, constraints: int = 3) -> Quadratics:
    generator = torch.Generator().manual_seed(seed)
    return Quadratics.planted(count, dim=dim, constraints=constraints, generator=generator)


def origin(of: Quadratics) -> torch.Tensor:
    return torch.zeros_like(of.optimum)


@given(seeds(), st.integers(1, 5), st.integers(2, 4))
def test_the_planted_optimum_satisfies_the_kkt_conditions(seed, dim, constraints):
    of = programs(seed, dim=dim, constraints=constraints)
    _, f, up, normals = values_and_gradients(of, of.optimum)
    stationary = up + (of.multipliers.unsqueeze(-1) * normals).sum(-2)
    assert float(stationary.norm(dim=-1).max()) <= SOLVE * float(1 + of.b.norm(dim=-1).max())
    assert float(f.max()) <= SOLVE and float((of.multipliers * f).abs().max()) <= SOLVE
    assert bool((of(origin(of))[1] < 0).all())  # 0 is a strictly feasible start


@dear()
@given(seeds(), st.floats(-4, 0), st.integers(1, 4))
def test_every_step_keeps_half_of_every_slack_and_descends_the_barrier(seed, exponent, dim):
    """(i) and (ii), with true smoothness, from anywhere inside."""
    of, eta = programs(seed, dim=dim), 10**exponent
    found = log_barrier_descent(of, origin(of), smoothness=of.smoothness, eta=eta, steps=25)
    assert bool((found.slack[1:] >= 0.5 * found.slack[:-1] - EXACT).all())
    assert bool(found.feasible.all()) and float(found.stretch.max()) <= 1 + 1e-9
    barrier = found.objective - eta * found.slack.log().sum(-1)
    promised = 0.5 * found.length * found.barrier_gradient.square()
    assert bool((barrier.diff(dim=0) <= -promised + 1e-9 * (1 + barrier[:-1].abs())).all())


@given(seeds(), st.floats(-3, 0))
def test_the_gap_is_within_what_the_barrier_promises(seed, exponent):
    """(iii): f₀ − f₀* ≤ m η + ‖∇B‖ ‖x − x*‖ at every iterate."""
    of, eta = programs(seed), 10**exponent
    found = log_barrier_descent(of, origin(of), smoothness=of.smoothness, eta=eta, steps=20)
    gap = found.objective[:-1] - of.best
    away = (found.points[:-1] - of.optimum).norm(dim=-1)
    promised = of.multipliers.shape[-1] * eta + found.barrier_gradient * away
    assert bool((gap >= -SOLVE).all()) and bool((gap <= promised + SOLVE).all())


def test_it_converges_to_the_optimum_as_eta_falls():
    of, steps = programs(0, count=16, dim=2), 600
    eta = torch.logspace(0, -3, steps, dtype=torch.float64)
    found = log_barrier_descent(of, origin(of), smoothness=of.smoothness, eta=eta, steps=steps)
    gap = found.objective - of.best
    assert bool(found.feasible.all())
    assert float((gap[-1] / gap[0]).max()) <= 0.1 and float((gap[-1] / gap[0]).median()) <= 0.02


@given(st.floats(0.1, 10.0), st.floats(0.01, 0.99), st.floats(0.1, 10.0), st.floats(0.001, 1.0))
def test_lengths_are_those_of_the_formula_on_a_line(curvature, share, slope, eta):
    """f₀ = −slope·x, f₁ = ½M x² − r on a line, written out by hand."""
    r = 1.0
    x = share * (2 * r / curvature) ** 0.5
    alpha, normal = r - 0.5 * curvature * x**2, curvature * x
    one = torch.tensor([1.0], dtype=torch.float64)
    found = barrier_step(
        -slope * one.unsqueeze(0),
        alpha * one.unsqueeze(0),
        normal * one.reshape(1, 1, 1),
        eta=eta,
        smoothness=torch.tensor([0.0, curvature], dtype=torch.float64),
    )
    g = -slope + eta * normal / alpha
    reach = alpha / (2 * normal + (alpha * curvature) ** 0.5)
    second = 10 * eta * curvature / alpha + 8 * eta * (normal / alpha) ** 2
    assert float(found.length) == pytest.approx(min(reach / max(abs(g), 1e-300), 1 / second), rel=1e-9)
    assert float(found.step) == pytest.approx(-float(found.length) * g, rel=1e-9, abs=1e-12)


def test_control_adam_behind_the_step_leaves_the_feasible_set():
    """A wall across the way: the step shortens before it, and Adam, which sees no lengths, walks through."""

    def wall(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -x[..., 0], x - 1.0

    start, smoothness = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1e-3, 0.0], dtype=torch.float64)
    bare = log_barrier_descent(wall, start, smoothness=smoothness, eta=1e-3, steps=200)
    assert bool(bare.feasible.all()) and float(bare.points[-1]) > 0.99
    rate = 0.03
    behind = log_barrier_descent(wall, start, smoothness=smoothness, eta=1e-3, steps=200, after=Adam(rate=rate))
    assert not bool(behind.feasible.all()) and float(behind.slack.min()) < -0.01
    assert float(behind.stretch.nan_to_num(0.0).max()) > 1.0
    # and its steps are about the rate whatever the certified length says: the same for a program scaled by 1000
    scaled = log_barrier_descent(
        lambda x: (1e3 * wall(x)[0], wall(x)[1]),
        start,
        smoothness=1e3 * smoothness,
        eta=1.0,
        steps=5,
        after=Adam(rate=rate),
    )
    assert torch.allclose(scaled.points[:6], behind.points[:6], atol=1e-6)


def test_control_smoothness_stated_too_small_leaves_the_feasible_set():
    of = programs(3, count=64, dim=2)
    honest = log_barrier_descent(of, origin(of), smoothness=of.smoothness, eta=1e-3, steps=60)
    lied = log_barrier_descent(of, origin(of), smoothness=1e-6 * of.smoothness, eta=1e-3, steps=60)
    assert bool(honest.feasible.all()) and not bool(lied.feasible.all())


def test_an_infeasible_start_descends_the_violated_constraint():
    of = programs(1, count=4, dim=2)
    far = 3.0 * of.optimum
    found = log_barrier_descent(of, far, smoothness=of.smoothness, eta=0.1, steps=400)
    assert not bool(found.feasible[0].any()) and bool(found.length[0].isnan().all())
    assert bool((found.slack[50].amin(-1) > found.slack[0].amin(-1)).all())


def test_what_makes_no_sense_is_refused():
    of = programs(0, count=2)
    with pytest.raises(ValueError, match="eta"):
        log_barrier_descent(of, origin(of), smoothness=of.smoothness, eta=0.0, steps=3)
    with pytest.raises(ValueError, match="smoothness of 4 functions"):
        log_barrier_descent(of, origin(of), smoothness=of.smoothness[:, :2], eta=0.1, steps=3)
    with pytest.raises(ValueError, match="rate"):
        Adam(rate=-1.0)
