"""Ellipsoids: exact operations against sampling and naive formulas, outer ones contain, answers come with a witness."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe import linalg
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.sets._containment import maximize_square

SLACK = 1e-9
tensor = partial(torch.tensor, dtype=torch.float64)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=gen(seed))


def draw(seed: int, dim: int, order: int, batch=(2, 3), spread: int = 0) -> Ellipsoid:
    """Columns on scales 10^−spread … 10^spread; order < dim is flat, 0 a point."""
    scale = 10.0 ** torch.randint(-spread, spread + 1, (*batch, 1, order), generator=gen(seed + 1)).double()
    return Ellipsoid(normal(seed, *batch, dim), normal(seed + 2, *batch, dim, order) * scale)


def size(*bodies: Ellipsoid) -> float:
    return 1.0 + max(float(b.center.abs().max() + b.radius.max()) for b in bodies)


# ---------------------------------------------------------------------------------------------- support
@given(seeds(), st.integers(1, 4), st.integers(0, 6))
def test_support_bounds_every_point_and_is_attained(seed, dim, order):
    body, directions = draw(seed, dim, order), normal(seed + 9, 7, dim)
    points = body.sample_boundary(50, gen(seed))
    reach = torch.einsum("kd,n...d->n...k", directions, points).amax(0)
    support = body.support(directions)
    assert bool((reach <= support + SLACK * size(body)).all())
    attained = torch.stack([(body.support_point(n) * n).sum(-1) for n in directions], dim=-1)
    torch.testing.assert_close(attained, support, rtol=0, atol=1e-12 * size(body))
    for k in range(7):
        assert bool(body.contains(body.support_point(directions[k]), tol=1e-8).all())


@given(seeds(), st.floats(-15, 0))
def test_support_near_a_null_direction_is_accurate_from_the_factor(seed, exponent):
    """L = diag(1, t) turned: along the thin axis the support is t; from Q it would err by 1e-8."""
    thin, angle = 10.0**exponent, normal(seed, 1)[0]
    c, s = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    body = Ellipsoid(torch.zeros(2).double(), turn @ torch.diag(torch.tensor([1.0, thin], dtype=torch.float64)))
    assert abs(float(body.support(turn[:, 1:].T)) - thin) < 4e-16 * max(1.0, thin)


def test_control_from_the_shape_matrix_the_same_support_is_lost():
    angle = torch.linspace(0.1, 1.4, 50, dtype=torch.float64)
    thin = torch.stack([-angle.sin(), angle.cos()], -1)
    factor = torch.stack([torch.stack([angle.cos(), angle.sin()], -1), 1e-12 * thin], -1)
    lost = (thin.unsqueeze(-2) @ (factor @ factor.mT) @ thin.unsqueeze(-1)).flatten().clamp_min(0).sqrt()
    kept = (factor.mT @ thin.unsqueeze(-1)).squeeze(-1).norm(dim=-1)
    assert float((lost - 1e-12).abs().max()) > 1e-9
    assert float((kept - 1e-12).abs().max()) < 1e-15


# ------------------------------------------------------------------------------------------- operations
@given(seeds(), st.integers(1, 4), st.integers(0, 6), st.integers(1, 4))
def test_affine_images_are_exact(seed, dim, order, out):
    body, matrix, offset = draw(seed, dim, order), normal(seed + 5, out, dim), normal(seed + 6, out)
    directions = normal(seed + 7, 5, out)
    moved = body.affine(matrix, offset)
    expected = body.support(directions @ matrix) + directions @ offset
    torch.testing.assert_close(moved.support(directions), expected, rtol=1e-11, atol=1e-11)


@given(seeds(), st.integers(1, 4), st.integers(0, 9), st.integers(0, 5))
def test_compression_keeps_the_set(seed, dim, order, spread):
    body, directions = draw(seed, dim, order, spread=spread), normal(seed + 7, 6, dim)
    small = body.compress()
    assert small.factor.shape[-1] <= max(dim, min(order, dim))
    torch.testing.assert_close(small.support(directions), body.support(directions), rtol=1e-12, atol=1e-13 * size(body))


@given(seeds(), st.integers(1, 4), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 4))
def test_minkowski_sum_outer_contains_the_sum(seed, dim, orders, spread):
    bodies = [draw(seed + 10 * i, dim, order, spread=spread) for i, order in enumerate(orders)]
    total = bodies[0].minkowski_sum_outer(*bodies[1:])
    directions = normal(seed + 7, 9, dim)
    exact = sum(b.support(directions) for b in bodies)
    assert bool((total.support(directions) >= exact - 1e-12 * size(*bodies)).all())
    trace = sum(b.trace.sqrt() for b in bodies).square()
    torch.testing.assert_close(total.trace, trace, rtol=1e-10, atol=0)
    points = sum(b.sample_boundary(30, gen(seed + i)) for i, b in enumerate(bodies))
    gap = torch.einsum("kd,n...d->n...k", directions, points) - total.support(directions)
    assert float(gap.max()) <= 1e-12 * size(*bodies)


@given(seeds(), st.floats(0.02, 0.98))
def test_minkowski_sum_outer_is_trace_minimal_and_the_formula_of_two(seed, share):
    one, two = draw(seed, 3, 3), draw(seed + 50, 3, 3)
    total = one.minkowski_sum_outer(two)
    other = one.shape / share + two.shape / (1 - share)
    trace = other.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert bool((total.trace <= trace * (1 + 1e-12)).all())
    alpha = (one.trace / two.trace).sqrt()[..., None, None]
    torch.testing.assert_close(total.shape, (1 + 1 / alpha) * one.shape + (1 + alpha) * two.shape, rtol=1e-9, atol=1e-9)


def test_control_adding_the_shape_matrices_does_not_contain_the_sum():
    one, two = Ellipsoid.ball(torch.zeros(2), 1.0), Ellipsoid.ball(torch.zeros(2), 1.0)
    wrong = Ellipsoid(torch.zeros(2), torch.cat([one.factor, two.factor], dim=-1))
    assert float(wrong.support(torch.eye(2).double())[0]) < 1.5 < float(one.minkowski_sum_outer(two).radius[0]) + 1e-12


def test_points_add_nothing():
    body, point = draw(1, 3, 2), Ellipsoid.point(normal(2, 3))
    total = body.minkowski_sum_outer(point, point)
    torch.testing.assert_close(total.shape, body.shape, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total.center, body.center + 2 * point.center)
    nothing = point.minkowski_sum_outer(point)
    assert float(nothing.trace) == 0.0


# ------------------------------------------------------------------------------------------ containment
@given(seeds(), st.integers(1, 4), st.integers(0, 5))
def test_inside_halfspaces_agrees_with_support_and_the_witness_decides(seed, dim, order):
    body, H = draw(seed, dim, order), normal(seed + 3, 6, dim)
    h = body.support(H).amax((0, 1)) + 0.3 * normal(seed + 4, 6)
    answer = Polytope(H, h).contains_ellipsoid(body)
    violation = (answer.witness @ H.mT - h).amax(-1)
    torch.testing.assert_close(-violation, answer.margin, rtol=0, atol=1e-11 * size(body))
    assert bool(body.contains(answer.witness, tol=1e-8).all())
    points = body.sample(40, gen(seed))
    assert bool(((points @ H.mT - h).amax(-1) <= -answer.margin + 1e-11 * size(body)).all())


@given(seeds(), st.integers(1, 4), st.integers(1, 5), st.floats(0.2, 3.0))
def test_inside_another_ellipsoid_agrees_with_its_witness(seed, dim, order, scale):
    outer = draw(seed, dim, dim + 1)
    inner = Ellipsoid(outer.center + 0.3 * normal(seed + 4, 2, 3, dim), scale * draw(seed + 8, dim, order).factor)
    answer = inner.inside(outer)
    gauge = outer.gauge(answer.witness, tol=1e-6)
    torch.testing.assert_close(1 - gauge, answer.margin, rtol=1e-6, atol=1e-6)
    worst = outer.gauge(inner.sample_boundary(200, gen(seed)), tol=1e-6).amax(0)
    assert bool((worst <= 1 - answer.margin + 1e-8 * (1 + worst)).all())


@given(seeds(), st.integers(1, 4), st.integers(0, 4))
def test_every_set_is_inside_its_enlargement_only(seed, dim, order):
    body = draw(seed, dim, order)
    larger = Ellipsoid(body.center, 1.001 * body.factor)
    assert bool(body.inside(larger))
    assert bool(larger.inside(body).holds.any()) == (order == 0)
    total = body.minkowski_sum_outer(Ellipsoid.ball(torch.zeros(dim).double(), 0.1))
    answer = Ellipsoid(total.center, body.factor).inside(total)
    assert float(answer.margin.min()) > -1e-12


def test_the_hard_case_of_the_s_procedure():
    """A concentric inner set has no gradient along its top axis: the maximiser is free there."""
    inner = Ellipsoid(torch.zeros(2).double(), torch.diag(tensor([0.5, 0.9])))
    outer = Ellipsoid.ball(torch.zeros(2).double(), 1.0)
    answer = inner.inside(outer)
    assert abs(float(answer.margin) - 0.1) < 1e-12
    torch.testing.assert_close(answer.witness.abs(), tensor([0.0, 0.9]), rtol=0, atol=1e-7)
    shifted = Ellipsoid(tensor([0.2, 0.0]), inner.factor)
    angle = torch.linspace(0, 6.2832, 200001).double()
    boundary = shifted.center + torch.stack([0.5 * angle.cos(), 0.9 * angle.sin()], -1)
    assert abs(1 - float(boundary.norm(dim=-1).max()) - float(shifted.inside(outer).margin)) < 1e-8


def test_flat_sets_contain_only_what_lies_in_their_span():
    flat = Ellipsoid(torch.zeros(3).double(), tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert bool(Ellipsoid(torch.zeros(3), 0.5 * flat.factor).inside(flat))
    tilted = Ellipsoid(torch.zeros(3), tensor([[0.5], [0.0], [1e-3]]))
    answer = tilted.inside(flat)
    assert float(answer.margin) == -float("inf")
    assert abs(abs(float(answer.witness[2])) - 1e-3) < 1e-12
    assert bool(flat.contains(tensor([0.6, 0.8, 0.0])))
    assert not bool(flat.contains(tensor([0.6, 0.7, 1e-3])))
    point = Ellipsoid.point(torch.ones(3).double())
    assert bool(point.inside(point)) and not bool(point.inside(flat)) and not bool(flat.inside(point))


@pytest.mark.parametrize("axes", [(1e8, 1e-8), (1e4, 1e-10), (1e-8, 1.0)])
def test_an_axis_of_small_units_is_one_all_the_same(axes):
    """Beside 1e8 an axis of 1e-8 counted as none: 5e-3 along it, which is 5e5 of them, was inside."""
    unit = torch.tensor(axes, dtype=torch.float64)
    one = Ellipsoid(torch.zeros(2, dtype=torch.float64), torch.diag(unit))
    for share in (0.5, 1.0 - 1e-6, 1.0 + 1e-6, 2.0, 5e5):
        for axis in range(2):
            x = share * unit * torch.eye(2, dtype=torch.float64)[axis]
            assert float(one.gauge(x)) == pytest.approx(share) and bool(one.contains(x)) == (share < 1.0)
    wide = Ellipsoid(one.center, torch.diag(unit * torch.tensor([2.0, 1e3], dtype=torch.float64)))
    assert bool(one.inside(wide)) and not bool(wide.inside(one))
    assert float(wide.inside(one).margin) == pytest.approx(1.0 - 1e3)


@given(seeds(), st.integers(-26, 26), st.integers(-26, 26))
def test_units_of_coordinates_leave_roots_and_gauges(seed, first, second):
    unit = torch.exp2(torch.tensor([first, second, 0.0], dtype=torch.float64))
    source = torch.Generator().manual_seed(seed)
    L, x = (torch.randn(3, n, dtype=torch.float64, generator=source) for n in (3, 1))
    Q = L @ L.mT
    root, moved = linalg.psd_root(Q), linalg.psd_root(unit[:, None] * Q * unit) / unit[:, None]
    assert torch.allclose(root @ root.mT, Q, rtol=1e-12, atol=1e-13)
    assert torch.allclose(moved @ moved.mT, Q, rtol=1e-12, atol=1e-13)
    zero = torch.zeros(3, dtype=torch.float64)
    gauges = [Ellipsoid(zero, s[:, None] * L).gauge(s * x[:, 0]) for s in (torch.ones_like(unit), unit)]
    assert torch.equal(*gauges)


@given(seeds(), st.integers(1, 4), st.integers(0, 5))
def test_maximize_square_bounds_from_above_and_is_attained(seed, dim, order):
    a, A = normal(seed, 4, dim), normal(seed + 1, 4, dim, order)
    upper, xi = maximize_square(a, A)
    value = (a + (A @ xi.unsqueeze(-1)).squeeze(-1)).square().sum(-1)
    assert bool((value <= upper * (1 + 1e-12) + 1e-12).all())
    torch.testing.assert_close(value, upper, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------- points
@given(seeds(), st.integers(1, 3), st.integers(0, 4))
def test_nearest_is_in_the_set_and_no_sample_is_nearer(seed, dim, order):
    body, x = draw(seed, dim, order, batch=(3,)), 3 * normal(seed + 1, 3, dim)
    nearest = body.nearest(x)
    assert bool(body.contains(nearest, tol=1e-7).all())
    others = (body.sample(300, gen(seed)) - x).norm(dim=-1).amin(0)
    assert bool(((nearest - x).norm(dim=-1) <= others + 1e-8).all())
    inside = body.sample(1, gen(seed))[0]
    torch.testing.assert_close(body.nearest(inside), inside, rtol=0, atol=1e-7 * size(body))


def test_samples_are_uniform():
    """In a turned ellipse: each quadrant of the ball has a quarter, half the radius has a quarter of the points."""
    body = draw(3, 2, 5, batch=())
    points = body.sample(20000, gen(0))
    gauge = body.gauge(points)
    assert float(gauge.max()) <= 1 + 1e-9
    assert abs(float((gauge < 0.5).double().mean()) - 0.25) < 0.02
    segment = draw(3, 3, 1, batch=())
    assert abs(float((segment.gauge(segment.sample(20000, gen(0))) < 0.5).double().mean()) - 0.5) < 0.02
    torch.testing.assert_close(
        segment.gauge(segment.sample_boundary(9, gen(0))), torch.ones(9).double(), rtol=0, atol=1e-9
    )


@given(seeds(), st.integers(1, 4))
def test_from_shape_is_inverse_to_shape(seed, dim):
    body = draw(seed, dim, dim)
    torch.testing.assert_close(Ellipsoid.from_shape(body.center, body.shape).shape, body.shape, rtol=1e-9, atol=1e-12)


def test_projection_is_the_shadow():
    body = draw(4, 3, 4)
    shadow = body.project([0, 2])
    directions = normal(1, 5, 2)
    lifted = torch.stack([directions[:, 0], torch.zeros(5), directions[:, 1]], dim=1)
    torch.testing.assert_close(shadow.support(directions), body.support(lifted), rtol=1e-12, atol=1e-12)


def test_bad_ellipsoids_are_refused():
    with pytest.raises(ValueError, match="center"):
        Ellipsoid(torch.zeros(2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="finite factor"):
        Ellipsoid(torch.zeros(1), torch.full((1, 1), float("nan")))
    with pytest.raises(ValueError, match="semi-definite"):
        Ellipsoid.from_shape(torch.zeros(2), torch.diag(tensor([1.0, -0.1])))
    with pytest.raises(ValueError, match="semi-definite"):
        Ellipsoid.from_shape(torch.zeros(2), tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="radius >= 0"):
        Ellipsoid.ball(torch.zeros(2), -1.0)
    with pytest.raises(ValueError, match="minkowski"):
        Ellipsoid.point(torch.zeros(2)).minkowski_sum_outer(Ellipsoid.point(torch.zeros(3)))


def test_box_support_and_vertices():
    box = Box(tensor([-1.0, 2.0, 0.0]), tensor([1.0, 3.0, 0.0]))
    directions = normal(0, 8, 3)
    assert box.vertices().shape == (8, 3)
    torch.testing.assert_close(box.support(directions), (directions @ box.vertices().mT).amax(-1))
    torch.testing.assert_close(Polytope.of_box(box).support(directions), box.support(directions), rtol=1e-9, atol=1e-9)
