"""Tubes: the recursion against a naive loop, derivatives, containment, refusals."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from xmpsc_cases import double_integrator, ensemble_pendulum, pendulum_data, pendulum_ensemble, plan

from gpsafe.sets import Ellipsoid
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import EnsembleTube, LinearTube, chi_square_radius, propagate
from gpsafe.tube.core import outer_sum

HANGING = torch.tensor([math.pi, 0.3], dtype=torch.float64)
INPUTS = plan(0.1, -0.3, 0.2, 0.4)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_paper_tube(model: EnsembleTube, x0, inputs, gain):
    """The published recursion (xmpsc.md §1.3) with shape matrices, one member and one step at a time."""
    centers, shapes = [], []
    for m in range(model.num_members):
        member, x, Q = model.ensemble.member(m), x0, 1e-12 * torch.eye(2, dtype=torch.float64)
        row, forms = [x], [Q]
        for u in inputs:
            mean = lambda v: member.evaluate(v[None, :2], v[None, 2:])[0][0, 0]  # noqa: B023, E731
            z = torch.cat([x, u])
            jacobian = torch.autograd.functional.jacobian(mean, z)
            W = torch.diag(member.evaluate(x[None], u[None])[1][0, 0].square())
            F = jacobian[:, :2] + jacobian[:, 2:] @ gain
            G = F @ Q @ F.T
            alpha = (G.trace() / W.trace()).sqrt()
            Q = (1 + 1 / alpha) * G + (1 + alpha) * W
            x = mean(z).detach()
            row.append(x)
            forms.append(Q)
        centers.append(torch.stack(row))
        shapes.append(torch.stack(forms))
    return torch.stack(centers), torch.stack(shapes)


@pytest.mark.parametrize("variance", ["clip", "trained"])
def test_paper_mode_is_the_published_recursion(variance):
    problem = ensemble_pendulum()
    model = EnsembleTube.paper(pendulum_ensemble(), variance=variance)
    tube = propagate(model, HANGING, INPUTS, problem.gain)
    centers, shapes = naive_paper_tube(model, HANGING, INPUTS, problem.gain)
    torch.testing.assert_close(tube.center, centers, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tube.shape, shapes, rtol=1e-9, atol=1e-18)
    assert (tube.inputs == INPUTS).all()


def test_control_a_swapped_alpha_is_not_the_published_recursion():
    problem = ensemble_pendulum()
    tube = problem.tube(HANGING, INPUTS)
    G = Ellipsoid(tube.center[0, 0], tube.factor[0, 1])
    W = Ellipsoid.ball(torch.zeros(2).double(), torch.tensor([0.01, 0.2], dtype=torch.float64))
    ours = outer_sum([G.factor, W.factor])
    alpha = (G.trace / W.trace).sqrt()
    right = (1 + 1 / alpha) * G.shape + (1 + alpha) * W.shape
    swapped = (1 + alpha) * G.shape + (1 + 1 / alpha) * W.shape
    torch.testing.assert_close(ours @ ours.mT, right, rtol=1e-12, atol=1e-15)
    assert (ours @ ours.mT - swapped).abs().max() > 1e-4


def test_paper_tubes_are_differentiable_in_the_inputs():
    problem = ensemble_pendulum()

    def rows(inputs):
        margins = problem.margins(problem.tube(HANGING, inputs))
        return torch.cat([margins.state.flatten(), margins.input.flatten(), margins.terminal.flatten()])

    exact = torch.autograd.functional.jacobian(rows, INPUTS)
    step = 1e-6
    for k in range(len(INPUTS)):
        shift = torch.zeros_like(INPUTS)
        shift[k] = step
        numeric = (rows(INPUTS + shift) - rows(INPUTS - shift)) / (2 * step)
        torch.testing.assert_close(exact[:, k, 0], numeric, rtol=1e-5, atol=1e-6)


def test_batches_of_plans_are_loops_over_plans():
    problem = ensemble_pendulum()
    plans, states = 0.3 * draw(0, 2, 5, 4, 1), HANGING + 0.1 * draw(1, 2, 1, 2)
    tube = problem.tube(states, plans)
    one = problem.tube(states[1, 0], plans[1, 3])
    torch.testing.assert_close(tube.center[1, 3], one.center, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tube.shape[1, 3], one.shape, rtol=1e-9, atol=1e-18)
    assert problem.margins(tube).terminal.shape == (2, 5, 3, problem.terminal.rows)


@given(seeds(), st.booleans())
def test_outer_sums_contain_sums_of_ellipsoids_and_boxes(seed, flat):
    a, b, box = draw(seed, 3, 3), draw(seed + 1, 3, 2), draw(seed + 2, 3).abs()
    a = a * torch.tensor([1.0, 0.0, 0.0]).double() if flat else a
    summed = Ellipsoid(torch.zeros(3).double(), outer_sum([a, b], box))
    generator = torch.Generator().manual_seed(seed)
    parts = [Ellipsoid(torch.zeros(3).double(), f).sample_boundary(50, generator) for f in (a, b)]
    corners = box * torch.sign(draw(seed + 3, 50, 3))
    assert bool(summed.contains(parts[0] + parts[1] + corners, tol=1e-9).all())


@given(seeds(), st.integers(1, 10))
@settings(max_examples=15)
def test_linear_tubes_contain_the_plant_under_admissible_disturbances(seed, steps):
    """Random plants, gains and adversarial boundary disturbances; exact up to rounding, so one excess refutes."""
    nx = 2
    plant = AffineKnown(draw(seed, nx, nx), draw(seed + 1, nx, 1), 0.1 * draw(seed + 2, nx))
    model = LinearTube(plant, draw(seed + 3, nx).abs() + 0.01)
    x0, inputs, gain = draw(seed + 4, nx), draw(seed + 5, steps, 1), draw(seed + 6, 1, nx)
    tube = propagate(model, x0, inputs, gain)
    generator = torch.Generator().manual_seed(seed)
    x = x0.expand(40, nx)
    worst = 0.0
    for k in range(steps):
        u = inputs[k] + (x - tube.reference[k]) @ gain.mT
        w = Ellipsoid.ball(torch.zeros(nx).double(), model.half_axes).sample_boundary(40, generator)
        x = plant(x, u) + w
        worst = max(worst, float(Ellipsoid(tube.center[0, k + 1], tube.factor[0, k + 1]).gauge(x).max()))
    assert worst <= 1 + 1e-9


@given(seeds(), st.integers(-2, 6), st.integers(-3, 6), st.integers(-2, 4), st.booleans())
def test_sound_tubes_contain_the_exact_path_although_large_terms_cancel(
    seed, plant_size, state_size, gain_size, cancel
):
    """In rational arithmetic, without a disturbance; A x + c is of size 1, its terms are up to 10^12; only the law rounds."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def rational(values: torch.Tensor) -> list[Fraction]:
        return [Fraction(float(v)) for v in values]

    A, x0, B = 10.0**plant_size * draw(2, 2), 10.0**state_size * draw(2), draw(2, 1)
    c = draw(2) - A @ x0 if cancel else draw(2)
    inputs = draw(3, 1)
    tube = propagate(
        LinearTube(AffineKnown(A, B, c), torch.zeros(2).double()), x0, inputs, 10.0**gain_size * draw(1, 2)
    )
    x = rational(x0)
    for k in range(3):
        measured = torch.tensor([float(v) for v in x], dtype=torch.float64)
        (u,) = rational(inputs[k] + (measured - tube.reference[k]) @ tube.gain[k].mT)
        terms = [
            [*(a * y for a, y in zip(rational(row), x, strict=True)), Fraction(float(b)) * u]
            for row, b in zip(A, B, strict=True)
        ]
        x = [sum(row, start=o) for row, o in zip(terms, rational(c), strict=True)]
        gap = torch.tensor([float(v - w) for v, w in zip(x, rational(tube.center[0, k + 1]), strict=True)]).double()
        assert bool(Ellipsoid(torch.zeros(2).double(), tube.factor[0, k + 1]).contains(gap)), (k, gap)


def test_sound_tubes_share_one_affine_law():
    """Every member's nominal input is the law at its own nominal state."""
    model = EnsembleTube.sound(pendulum_ensemble(), steps=4, delta=0.1)
    gain = torch.tensor([[-2.0, -0.5]], dtype=torch.float64)
    tube = propagate(model, HANGING, INPUTS, gain)
    torch.testing.assert_close(tube.reference, tube.center.mean(0))
    expected = INPUTS + (tube.center[:, :-1] - tube.reference[:-1]) @ gain.mT
    torch.testing.assert_close(tube.inputs, expected)
    assert (tube.inputs[0] - tube.inputs[1]).abs().max() > 1e-4


def test_chi_square_radius():
    assert chi_square_radius(2, 0.1, 1) == pytest.approx(math.sqrt(-2 * math.log(0.1)))
    assert chi_square_radius(2, 0.1, 10) == pytest.approx(math.sqrt(-2 * math.log(0.01)))


def test_bad_input_is_refused():
    problem, model = double_integrator(), EnsembleTube.paper(pendulum_ensemble())
    with pytest.raises(ValueError, match=r"propagate: expected x0 of shape \(\*b, 2\)"):
        problem.tube(torch.zeros(3).double(), torch.zeros(8, 1).double())
    with pytest.raises(ValueError, match=r"propagate: expected inputs of shape \(\*b, T, 1\)"):
        problem.tube(torch.zeros(2).double(), torch.zeros(1).double())
    with pytest.raises(ValueError, match="propagate: expected gain of shape"):
        propagate(model, HANGING, INPUTS, torch.zeros(2, 1).double())
    with pytest.raises(ValueError, match="propagate: expected finite gain"):
        propagate(model, HANGING, INPUTS, torch.full((1, 2), math.nan).double())
    with pytest.raises(ValueError, match="expected radius > 0"):
        replace(model, radius=0.0)
    with pytest.raises(ValueError, match="at least 39 held-out rows, got 20"):
        EnsembleTube.calibrated(model.ensemble, pendulum_data(20), steps=4, delta=0.1)
