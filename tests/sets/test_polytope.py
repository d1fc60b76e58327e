"""Polytopes: answers of linear programs against vertices and sampling; flat, empty and unbounded ones."""

import math
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.spatial import ConvexHull
from strategies import seeds

from gpsafe.plotting import draw as draw_set
from gpsafe.plotting import outline
from gpsafe.sets import Box, Ellipsoid, Polytope, Zonotope, convex_hull
from gpsafe.sets.extremal import enclosing_ellipsoid, inscribed_ellipsoid, nearest_in_polytope


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=gen(seed))


def body(seed: int, dim: int) -> Polytope:
    """The hull of a few random points."""
    return convex_hull(normal(seed, 3 * dim + 2, dim))


tensor = partial(torch.tensor, dtype=torch.float64)
UNIT = Polytope.of_box(Box(-torch.ones(2), torch.ones(2)))
HALF = Polytope(tensor([[1.0, 0.0]]), tensor([1.0]))
EMPTY = Polytope(tensor([[1.0, 0.0], [-1.0, 0.0]]), tensor([1.0, -2.0]))
FLAT = Polytope(tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0], [-1.0, 0.0]]), tensor([1.0, -1.0, 2.0, 0.0]))


# ---------------------------------------------------------------------------------------------- hulls
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5, 1e8])
def test_a_hull_of_points_beside_a_line_ends_where_they_end(offset):
    """Far from 0 they leave the line by rounding: facets along it alone, moved outwards, met 250 of their lengths away."""
    for seed in range(20):
        along = normal(seed, 6, 1) + offset
        points = torch.cat([along, 0.3 * along + 1.0], -1)
        directions = normal(seed + 1, 8, 2)
        excess = convex_hull(points).support(directions) - (points @ directions.mT).amax(0)
        assert float(excess.max()) <= 1e-13 * (10.0 + offset)


@given(seeds(), st.integers(1, 3), st.integers(0, 3), st.integers(1, 12))
def test_a_hull_contains_its_points_exactly_and_no_more(seed, dim, rank, count):
    """Also of points in a subspace, and of one point."""
    points = normal(seed, count, min(rank, dim)) @ normal(seed + 1, min(rank, dim), dim) + normal(seed + 2, dim)
    hull = convex_hull(points)
    assert bool(hull.contains(points).all())
    directions = normal(seed + 3, 5, dim)
    reach = (points @ directions.mT).amax(0)
    torch.testing.assert_close(hull.support(directions), reach, rtol=0, atol=1e-7 * (1 + float(points.abs().max())))
    corners = hull.vertices()
    nearest = torch.cdist(corners, points).amin(1)
    assert float(nearest.max()) < 1e-6 * (1 + float(points.abs().max()))


@settings(max_examples=15, deadline=None)
@given(seed=seeds(), dim=st.integers(1, 4))
def test_volumes_are_those_of_boxes_hulls_and_their_images(seed, dim):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    low = draw(dim)
    side = draw(dim).abs() + 0.01
    box = Polytope.of_box(Box(low, low + side))
    assert box.volume() == pytest.approx(float(side.prod()), rel=1e-9)
    matrix = draw(dim, dim)
    turned = convex_hull(Box(low, low + side).vertices() @ matrix.mT)
    assert turned.volume() == pytest.approx(float(side.prod() * torch.linalg.det(matrix).abs()), rel=1e-6)
    if dim > 1:
        points = draw(20, dim)
        assert convex_hull(points).volume() == pytest.approx(ConvexHull(points.numpy()).volume, rel=1e-7)
        flat = Box(low, torch.cat([low[:1], (low + side)[1:]]))
        assert Polytope.of_box(flat).volume() == pytest.approx(float(side[1:].prod()), rel=1e-9)
    assert Polytope.of_box(Box(low, low)).volume() == 1.0


@settings(max_examples=10)  # many linear programs
@given(seeds(), st.integers(1, 3))
def test_samples_are_inside_and_average_to_the_centre_of_mass(seed, dim):
    polytope = body(seed, dim)
    points = polytope.sample(200, gen(seed))
    assert float(polytope.violation(points).max()) < 1e-9
    square = convex_hull(tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).sample(20000, gen(seed))
    assert float((square.mean(0) - 1 / 3).abs().max()) < 0.02


# ------------------------------------------------------------------------------------ emptiness, bounds
def test_empty_unbounded_and_flat_ones_are_told_apart():
    assert EMPTY.is_empty() and not HALF.is_empty() and not FLAT.is_empty() and not UNIT.is_empty()
    assert EMPTY.is_bounded() and FLAT.is_bounded() and UNIT.is_bounded() and not HALF.is_bounded()
    assert EMPTY.chebyshev()[1] == pytest.approx(-0.5)
    assert HALF.chebyshev()[1] == math.inf
    assert float(HALF.violation(HALF.chebyshev()[0])) <= -1 + 1e-9
    assert abs(FLAT.chebyshev()[1]) < 1e-9
    assert HALF.support(torch.eye(2).double()).tolist() == [1.0, math.inf]
    assert EMPTY.support(torch.eye(2).double()).tolist() == [-math.inf, -math.inf]
    impossible = Polytope(torch.zeros(1, 2), tensor([-1.0]))
    assert impossible.is_empty()
    with pytest.raises(ValueError, match="empty"):
        EMPTY.bounding_box()
    with pytest.raises(ValueError, match=r"unbounded along -1·e_0"):
        HALF.bounding_box()
    with pytest.raises(ValueError, match="unbounded"):
        HALF.vertices()
    corners = FLAT.vertices()
    torch.testing.assert_close(corners[corners[:, 0].argsort()], tensor([[0.0, 1.0], [2.0, -1.0]]))


@settings(max_examples=10)  # many linear programs
@given(seeds(), st.integers(1, 3))
def test_vertices_box_and_centre_agree(seed, dim):
    polytope = body(seed, dim)
    corners, box = polytope.vertices(), polytope.bounding_box()
    torch.testing.assert_close(box.lower, corners.amin(0), rtol=0, atol=1e-8)
    torch.testing.assert_close(box.upper, corners.amax(0), rtol=0, atol=1e-8)
    center, radius = polytope.chebyshev()
    ball = Ellipsoid.ball(center, radius)
    assert float(polytope.contains_ellipsoid(ball).margin) > -1e-8
    assert not bool(polytope.contains_ellipsoid(Ellipsoid.ball(center, 1.001 * radius)))


def test_one_dimension_is_an_interval():
    segment = Polytope(tensor([[2.0], [-1.0], [1.0]]), tensor([2.0, 3.0, 5.0]))
    assert segment.vertices().flatten().tolist() == [-3.0, 1.0]
    assert segment.reduce().rows == 2
    hull = convex_hull(tensor([[0.5], [-1.0], [0.25]]))
    assert sorted(hull.h.tolist()) == [0.5, 1.0]
    assert hull.sample(10, gen(0)).shape == (10, 1)


# ------------------------------------------------------------------------------------------ containment
@settings(max_examples=10)  # many linear programs
@given(seeds(), st.integers(1, 3), st.floats(0.3, 2.0))
def test_containment_of_polytopes_agrees_with_the_vertices_and_the_witness(seed, dim, scale):
    outer = body(seed, dim)
    corners = scale * body(seed + 1, dim).vertices()
    inner = convex_hull(corners)
    answer = outer.contains_polytope(inner)
    assert float(answer.margin) == pytest.approx(-float(outer.violation(corners).max()), abs=1e-7)
    assert float(outer.violation(answer.witness)) == pytest.approx(-float(answer.margin), abs=1e-7)
    assert float(inner.violation(answer.witness)) < 1e-7


@pytest.mark.parametrize("rows", [1e-12, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_scales_of_rows_and_sets_do_not_matter(rows, size):
    """HiGHS drops coefficients below 1e-9 and works to absolute tolerances."""
    square = Polytope.of_box(Box(-torch.ones(2).double(), torch.ones(2).double()))
    same = Polytope(rows * square.H, rows * size * square.h)
    assert same.is_bounded()
    assert not same.is_empty()
    diagonal = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    assert float(same.support(1e-9 * diagonal)) == pytest.approx(2e-9 * size)
    assert float(same.support_outer(diagonal)) == pytest.approx(2 * size)
    assert sorted(same.vertices().div(size).round(decimals=6).tolist()) == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    assert float(same.contains_polytope(same).margin) == pytest.approx(0.0, abs=1e-9 * rows * size)


@example(3, 3, 0.0, -6.0)  # where HiGHS gives no answer at strict tolerances
@given(seeds(), st.integers(1, 4), st.floats(-6, 6), st.floats(-6, 2))
def test_support_outer_is_above_every_vertex_and_tight(seed, dim, exponent, tilt):
    """Needles and nearly parallel rows included; in one dimension an interval."""
    generator = torch.Generator().manual_seed(seed)
    points = 10.0**exponent * torch.randn(dim + 6, dim, dtype=torch.float64, generator=generator)
    points[:, 0] *= 10.0**tilt
    hull = convex_hull(points)
    directions = torch.randn(5, dim, dtype=torch.float64, generator=generator)
    upper = hull.support_outer(directions)
    reached = (points @ directions.mT).amax(0)
    scale = directions.norm(dim=1) * points.abs().max()
    assert bool((upper >= reached - 1e-15 * scale).all())
    assert bool((upper <= reached + 1e-6 * scale).all())


def test_support_outer_tells_bounded_directions_from_unbounded_ones():
    assert HALF.support_outer(torch.eye(2).double()).tolist() == [1.0, math.inf]
    assert EMPTY.support_outer(torch.eye(2).double()).tolist() == [-math.inf, -math.inf]


def test_containment_of_empty_and_unbounded():
    assert UNIT.contains_polytope(EMPTY).margin == math.inf
    assert UNIT.contains_polytope(HALF).margin == -math.inf
    assert bool(HALF.contains_polytope(UNIT))


# ------------------------------------------------------------------------------------------- operations
@given(seeds(), st.integers(1, 3), st.integers(0, 4))
def test_pontryagin_difference_is_exact(seed, dim, order):
    """x + E ⊆ P exactly for x in the difference: equal signs, inside and outside."""
    polytope = body(seed, dim)
    error = Ellipsoid(0.1 * normal(seed + 1, dim), 0.2 * normal(seed + 2, dim, order))
    tight = polytope.pontryagin_difference(error)
    x = polytope.sample(50, gen(seed))
    moved = Ellipsoid(x + error.center, error.factor.expand(50, -1, -1))
    margin = polytope.contains_ellipsoid(moved).margin
    torch.testing.assert_close(-tight.violation(x), margin, rtol=0, atol=1e-12)


def test_pontryagin_difference_of_boxes_and_of_a_too_large_set():
    box = Box(-0.25 * torch.ones(2), 0.5 * torch.ones(2))
    torch.testing.assert_close(UNIT.pontryagin_difference(box).h, tensor([0.5, 0.5, 0.75, 0.75]))
    assert UNIT.pontryagin_difference(Ellipsoid.ball(torch.zeros(2), 1.5)).is_empty()


def test_control_tightening_by_the_centre_only_is_caught():
    error = Ellipsoid(torch.zeros(2).double(), 0.3 * torch.eye(2).double())
    wrong = UNIT.pontryagin_difference(Ellipsoid.point(error.center))
    x = wrong.vertices()[0]
    assert not bool(UNIT.contains_ellipsoid(Ellipsoid(x, error.factor)))


@settings(max_examples=10)  # many linear programs
@given(seeds(), st.integers(1, 3))
def test_reduction_removes_implied_rows_only(seed, dim):
    polytope = body(seed, dim)
    weights = torch.rand(4, polytope.rows, dtype=torch.float64, generator=gen(seed))
    implied = Polytope(weights @ polytope.H, weights @ polytope.h + 0.1)
    both = polytope.intersect(implied)
    small = both.reduce()
    assert small.rows <= polytope.rows
    directions = normal(seed + 2, 6, dim)
    torch.testing.assert_close(small.support(directions), polytope.support(directions), rtol=0, atol=1e-6)


@settings(max_examples=10)  # many linear programs
@given(seeds(), st.integers(1, 3), st.integers(1, 3))
def test_images_and_preimages(seed, dim, out):
    polytope, matrix, offset = body(seed, dim), normal(seed + 1, out, dim), normal(seed + 2, out)
    points = polytope.sample(30, gen(seed))
    image = polytope.image(matrix, offset)
    assert float(image.violation(points @ matrix.mT + offset).max()) < 1e-9
    directions = normal(seed + 4, 4, out)
    expected = polytope.support(directions @ matrix) + directions @ offset
    torch.testing.assert_close(image.support(directions), expected, rtol=0, atol=1e-7)
    target, y = body(seed + 5, out), 2 * normal(seed + 6, 30, dim)
    inside = target.preimage(matrix, offset).violation(y)
    torch.testing.assert_close(inside, target.violation(y @ matrix.mT + offset), rtol=0, atol=1e-11)
    torch.testing.assert_close(
        polytope.project([0]).bounding_box().upper, polytope.bounding_box().upper[:1], rtol=0, atol=1e-8
    )


# ----------------------------------------------------------------------------------- extremal ellipsoids
@settings(max_examples=10)  # many linear programs
@given(seeds(), st.integers(1, 3))
def test_inscribed_ellipsoid_is_inside_and_larger_than_the_ball(seed, dim):
    polytope = body(seed, dim)
    ellipsoid = inscribed_ellipsoid(polytope)
    assert float(polytope.contains_ellipsoid(ellipsoid).margin) >= -1e-14
    volume = float(torch.linalg.det(ellipsoid.factor).abs())
    assert volume >= polytope.chebyshev()[1] ** dim * (1 - 1e-6)


@settings(max_examples=10)  # many linear programs
@given(seeds(), st.integers(1, 3))
def test_enclosing_ellipsoid_holds_all_points_and_touches_enough(seed, dim):
    points = normal(seed, 4 * dim + 3, dim) * 10.0 ** normal(seed + 1, dim)
    ellipsoid = enclosing_ellipsoid(points)
    gauge = ellipsoid.gauge(points)
    assert float(gauge.max()) <= 1 + 1e-9
    assert int((gauge > 1 - 1e-4).sum()) >= min(dim + 1, 2)
    scatter = Ellipsoid(points.mean(0), torch.linalg.cholesky(torch.atleast_2d(torch.cov(points.mT))))
    other = float(torch.linalg.det(scatter.factor) * scatter.gauge(points).max() ** dim)
    assert float(torch.linalg.det(ellipsoid.factor).abs()) <= other * (1 + 1e-5)


def test_known_extremal_ellipsoids():
    torch.testing.assert_close(inscribed_ellipsoid(UNIT).shape, torch.eye(2).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(enclosing_ellipsoid(UNIT.vertices()).shape, 2 * torch.eye(2).double(), rtol=0, atol=1e-5)


def test_extremal_ellipsoids_of_flat_sets():
    line = tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    around = enclosing_ellipsoid(line)
    assert around.factor.shape == (2, 1)
    assert bool(around.contains(line, tol=1e-8).all())
    assert enclosing_ellipsoid(line[:1]).factor.shape == (2, 0)
    with pytest.raises(ValueError, match="with interior"):
        inscribed_ellipsoid(Polytope.of_box(Box(torch.zeros(2), tensor([1.0, 0.0]))))
    with pytest.raises(ValueError, match="unbounded"):
        inscribed_ellipsoid(HALF)


def test_nearest_point_of_a_polytope():
    torch.testing.assert_close(
        nearest_in_polytope(UNIT, tensor([2.0, 0.3])),
        tensor([1.0, 0.3]),
        rtol=0,
        atol=1e-5,
    )
    x = tensor([0.2, 0.3])
    assert torch.equal(nearest_in_polytope(UNIT, x), x)


# --------------------------------------------------------------------------------------------- pictures
def test_outlines_are_boundaries():
    ellipsoid = Ellipsoid(normal(0, 3, 4), normal(1, 3, 4, 5))
    curve = outline(ellipsoid, (1, 3))
    assert curve.shape == (3, 128, 2)
    shadow = ellipsoid.project([1, 3])
    gauge = Ellipsoid(shadow.center.unsqueeze(1), shadow.factor.unsqueeze(1)).gauge(curve)
    torch.testing.assert_close(gauge, torch.ones(3, 128).double(), rtol=0, atol=1e-8)
    assert outline(UNIT).shape == (5, 2)
    assert outline(FLAT).shape == (3, 2)
    zonotope = Zonotope(normal(2, 2), normal(3, 2, 4))
    directions = normal(4, 6, 2)
    for units in (tensor([1.0, 1.0]), tensor([1e6, 1e-6])):
        other = Zonotope(units * zonotope.center, units.unsqueeze(1) * zonotope.generators)
        reach = (outline(other) @ (directions / units).mT).amax(0)
        torch.testing.assert_close(reach, zonotope.support(directions), rtol=0, atol=1e-12)
        turns = outline(other) / units
        torch.testing.assert_close(turns[0], turns[-1], rtol=0, atol=1e-12)


def test_outlines_and_extremal_ellipsoids_do_not_depend_on_units():
    units = tensor([1e6, 1e-6])
    points = normal(5, 12, 2)
    hull, other = convex_hull(points), convex_hull(points * units)
    torch.testing.assert_close(outline(other).div(units).amax(0), outline(hull).amax(0), rtol=1e-9, atol=0)
    assert len(outline(other)) == len(outline(hull))
    for make in (inscribed_ellipsoid, lambda p: enclosing_ellipsoid(p.vertices())):
        a, b = make(hull), make(other)
        torch.testing.assert_close(b.shape / units / units.unsqueeze(1), a.shape, rtol=1e-4, atol=1e-4)
    for size in (1e-9, 1e9):
        near = nearest_in_polytope(Polytope(UNIT.H, size * UNIT.h), size * tensor([2.0, 0.3]))
        torch.testing.assert_close(near / size, tensor([1.0, 0.3]), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="non-empty"):
        nearest_in_polytope(EMPTY, tensor([0.0, 0.0]))


def test_everything_can_be_drawn():
    axes = Figure().subplots()
    bodies = (UNIT, Box(-torch.ones(2), torch.ones(2)), Ellipsoid(normal(0, 3, 2), normal(1, 3, 2, 1)), body(0, 3))
    for each in bodies:
        draw_set(axes, each, label="set")
    assert len(axes.lines) == 6
    assert sum(line.get_label() == "set" for line in axes.lines) == 4


def test_bad_polytopes_are_refused():
    with pytest.raises(ValueError, match=r"h of shape \(1,\)"):
        Polytope(torch.ones(1, 2), torch.ones(2))
    with pytest.raises(ValueError, match="finite H"):
        Polytope(torch.full((1, 2), float("inf")), torch.ones(1))
    with pytest.raises(ValueError, match="convex_hull"):
        convex_hull(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(ValueError, match="intersect"):
        UNIT.intersect(Polytope(torch.ones(1, 3), torch.ones(1)))


def test_a_direction_alone_is_refused_in_words():
    for support in (UNIT.support, UNIT.support_outer):
        with pytest.raises(ValueError, match=r"directions of shape \(k, d\)"):
            support(torch.ones(2, dtype=torch.float64))
