"""Corners of sets that have no width along some coordinates, and what boxes and hulls of them are: values by hand."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from gpsafe.linalg import gamma
from gpsafe.sets import Box, Polytope, _hull, convex_hull
from gpsafe.sets._containment import Containment, maximize_square

tensor = partial(torch.tensor, dtype=torch.float64)


def ordered(points: torch.Tensor) -> list[list[float]]:
    return sorted((points + 0.0).tolist())


@pytest.mark.parametrize("middle", [2.0, -3.0, 1.1e8, 0.1])
def test_coordinates_that_are_fixed_move_the_rows_of_the_others(middle):
    """x = a, y ≥ 0, x + y ≤ a + 1: corners (a, 0) and (a, 1), to the digit."""
    fixed = Polytope(
        tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]]), tensor([middle, -middle, 0.0, middle + 1.0])
    )
    assert ordered(fixed.vertices()) == [[middle, 0.0], [middle, (middle + 1.0) - middle]]
    tall = Polytope(torch.cat([fixed.H.flip(1), tensor([[1.0, -1.0]])]), torch.cat([fixed.h, tensor([9.0 - middle])]))
    assert ordered(tall.vertices()) == [[0.0, middle], [(middle + 1.0) - middle, middle]]


def test_the_volume_of_a_point_is_one():
    assert Polytope.of_box(Box([1.0, -2.0], [1.0, -2.0])).volume() == 1.0


def test_rows_become_float64_whatever_they_come_in():
    for H, h in (([[1, 0], [0, 2]], [1, 3]), (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 3.0]))):
        found = Polytope(H, h)
        assert torch.equal(found.H, tensor([[1.0, 0.0], [0.0, 2.0]])) and torch.equal(found.h, tensor([1.0, 3.0]))


def test_points_and_segments_in_space():
    box = Polytope.of_box(Box(tensor([1.0, -2.0, 0.25]), tensor([1.0, -2.0, 0.25])))
    assert box.vertices().tolist() == [[1.0, -2.0, 0.25]]
    line = Polytope.of_box(Box(tensor([1.0, -2.0, 0.25]), tensor([1.0, 4.0, 0.25])))
    assert ordered(line.vertices()) == [[1.0, -2.0, 0.25], [1.0, 4.0, 0.25]]
    plate = Polytope.of_box(Box(tensor([1.0, -2.0, 3.0]), tensor([5.0, -2.0, 4.0]))).intersect(
        Polytope(tensor([[1.0, 1.0, 1.0]]), tensor([6.0]))
    )
    corners = ordered(plate.vertices())
    assert len(corners) == 4 and [row[1] for row in corners] == [-2.0] * 4
    expected = [[1.0, -2.0, 3.0], [1.0, -2.0, 4.0], [4.0, -2.0, 4.0], [5.0, -2.0, 3.0]]
    torch.testing.assert_close(tensor(corners), tensor(expected), rtol=0, atol=1e-12)


def test_thin_sets_are_cut_across_their_thinnest_row():
    """The segment x + y = 1 from (0, 1) to (2, −1), with rows of very different lengths, one of them 0."""
    for share in (1.0, 1e6, 1e-6):
        H = tensor([[share, share], [-share, -share], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
        found = Polytope(H, tensor([share, -share, 2.0, 0.0, 1.0])).vertices()
        torch.testing.assert_close(tensor(ordered(found)), tensor([[0.0, 1.0], [2.0, -1.0]]), rtol=0, atol=1e-9)


def test_rows_along_the_normal_of_a_thin_set_do_not_cut_its_slice():
    """The segment (t, −t), |t| ≤ 1, and a row that meets its normal at an angle s and would cut it at t = ½."""
    flat = tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
    for s, end in ((1.5e-9, 0.5), (0.7e-9, 1.0)):
        H = torch.cat([flat, tensor([[1.0 + s, 1.0 - s]])])
        found = Polytope(H, tensor([1e-13, 1e-13, 1.0, 1.0, s])).vertices()
        torch.testing.assert_close(tensor(ordered(found)), tensor([[-1.0, 1.0], [end, -end]]), rtol=0, atol=1e-4)


def test_points_span_a_direction_if_they_spread_along_it_by_more_than_its_level():
    along = tensor(
        [[0.0, 0.0], [0.6, 0.8], [0.3, 0.4]]
    )  # a third point off by b has singular values in the ratio b/1.25
    for share, rows in ((1.4, 3), (0.7, 4)):
        off = tensor([[0.0, 0.0], [0.0, 0.0], [-0.8, 0.6]])
        assert convex_hull(along + share * 1.25e-12 * off).rows == rows


def test_rows_that_touch_nothing_change_no_corner():
    square = Polytope.of_box(Box(-torch.ones(2).double(), torch.ones(2).double()))
    corners = [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    for row, offset in (
        ([1.0, 1.0], 2.5),
        ([1e-9, 1e-9], 1.0),
        ([1e9, -1e9], 1e10),
        ([0.0, 0.0], 0.0),
        ([1.0, 1.0], 2.0),
    ):
        found = square.intersect(Polytope(tensor([row]), tensor([offset]))).vertices()
        torch.testing.assert_close(tensor(ordered(found.round(decimals=9))), tensor(corners), rtol=0, atol=1e-12)
    cut = square.intersect(Polytope(1e-9 * tensor([[1.0, 1.0]]), 1e-9 * tensor([1.0]))).vertices()
    torch.testing.assert_close(
        tensor(ordered(cut.round(decimals=9))),
        tensor([[-1.0, -1.0], [-1.0, 1.0], [0.0, 1.0], [1.0, -1.0], [1.0, 0.0]]),
        rtol=0,
        atol=1e-12,
    )


def test_a_row_that_touches_only_the_far_end_of_a_needle_cuts_it():
    """A cone in four dimensions about the diagonal, whose deepest point is near its base, and its tip cut off."""
    base = 0.15 * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    cone = convex_hull(torch.cat([base, tensor([[1.84] * 4])]))
    row, offset = tensor([[0.999] * 4]), 0.999 * 4 * 1.8
    found = cone.intersect(Polytope(row, tensor([offset]))).vertices()
    tip = (found @ row.T).squeeze(-1)
    assert float(tip.max()) == pytest.approx(offset, rel=1e-9) and int((tip > 6.0).sum()) == 8


def test_hulls_of_points_that_miss_a_dimension_stand_apart_by_the_rounding_only():
    points = tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 0.0]])
    hull = convex_hull(points)
    assert hull.rows == 4
    assert hull.contains(tensor([[1.0, 0.0], [1.0, 1e-12], [2.0 + 1e-12, -1.0 - 1e-12], [0.5, 0.5]])).tolist() == [
        True, False, False, True,
    ]  # fmt: skip
    torch.testing.assert_close(hull.H.norm(dim=1), torch.ones(4).double(), rtol=1e-15, atol=0)
    nearly = convex_hull(points + tensor([[0.0, 0.0], [0.0, 0.0], [1e-9, 1e-9]]))  # that is a triangle
    assert nearly.rows == 3 and bool(nearly.contains(tensor([1.0 + 0.9e-9, 0.9e-9])))


def test_normals_of_a_tiny_hull_far_away_are_those_of_its_edges():
    """Differences of close floats are exact; sums would be rounded."""
    points = tensor([3e9, -3e9]) + tensor([[0.0, 0.0], [0.0317, 0.0111], [0.0123, 0.0519]])
    hull, edges = convex_hull(points), points.roll(-1, 0) - points
    exact = torch.stack([edges[:, 1], -edges[:, 0]], -1) / edges.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        tensor(ordered(hull.H.round(decimals=12))), tensor(ordered(exact.round(decimals=12))), rtol=0, atol=1e-11
    )


def test_hulls_with_a_fixed_coordinate_have_its_unit_vectors_for_rows():
    for height in (5.0, -0.1, 1e8):
        hull = convex_hull(tensor([[0.0, 0.0, height], [1.0, 0.0, height], [0.0, 1.0, height]]))
        across = hull.H[:, 2] != 0
        assert sorted(zip(hull.H[across].tolist(), hull.h[across].tolist(), strict=True)) == [
            ([0.0, 0.0, -1.0], -height), ([0.0, 0.0, 1.0], height),
        ]  # fmt: skip
        assert hull.rows == 5
    single = convex_hull(tensor([[3.0, -0.1]]))
    assert sorted(single.H.abs().tolist()) == [[0.0, 1.0]] * 2 + [[1.0, 0.0]] * 2
    assert single.vertices().tolist() == [[3.0, -0.1]]


def test_offsets_of_a_hull_are_raised_by_the_rounding_of_a_sum_of_its_length():
    """The facet x + y ≤ 0 of points whose terms cancel: 2γ_{d+2} times the sum of their sizes."""
    hull = convex_hull(tensor([[1.0, -1.0], [-1.0, 1.0], [-2.0, -2.0]]))
    row = int(hull.H.sum(1).argmax())
    torch.testing.assert_close(hull.H[row], tensor([0.5**0.5] * 2), rtol=1e-15, atol=0)
    size = 2 * 4 * 2.0**-53 * 2**0.5
    assert 0.9 * size < float(hull.h[row]) < 1.5 * size


def test_boxes_are_sampled_between_their_ends():
    box = Box(tensor([2.0, -1.0]), tensor([6.0, 3.0]))
    points = box.sample(500, torch.Generator().manual_seed(0))
    assert points.shape == (500, 2) and bool(box.contains(points).all())
    assert bool((points.amin(0) < box.lower + 0.1).all()) and bool((points.amax(0) > box.upper - 0.1).all())
    assert ordered(box.vertices()) == [[2.0, -1.0], [2.0, 3.0], [6.0, -1.0], [6.0, 3.0]]
    assert Box(tensor([1.0]), tensor([2.0])).vertices().tolist() == [[1.0], [2.0]]
    assert Polytope.of_box(box).h.tolist() == [6.0, 3.0, -2.0, 1.0]


def test_the_largest_square_is_reached_and_never_exceeded():
    """Distinct, equal and zero singular values, with and without a part along the largest."""
    for a, A in (
        ([1.0, 0.0], [[2.0, 0.0], [0.0, 1.0]]), ([0.0, -1.0], [[2.0, 0.0], [0.0, 1.0]]), ([0.0, 0.1], [[2.0, 0.0], [0.0, 1.0]]),
        ([3.0, -4.0], [[2.0, 0.0], [0.0, 2.0]]), ([0.0, 0.0], [[0.5, 0.0], [0.0, 3.0]]), ([1.0, 1.0], [[0.0, 0.0], [0.0, 0.0]]),
        ([-1.0, 2.0], [[1.0, 2.0, -1.0], [0.0, 1.0, 3.0]]), ([-1.0, -1e-3], [[3.0, 0.0], [0.0, -1.0]]),
    ):  # fmt: skip
        upper, xi = maximize_square(tensor(a), tensor(A))
        turn = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
        if len(A[0]) == 2:
            circle = torch.stack([turn.cos(), turn.sin()])
            assert float(upper) >= float((tensor(a)[:, None] + tensor(A) @ circle).square().sum(0).max())
        reached = float((tensor(a) + tensor(A) @ xi).square().sum())
        assert float(xi.norm()) == pytest.approx(1.0, rel=1e-12)
        assert reached == pytest.approx(float(upper), rel=1e-12) and float(upper) >= reached * (1 - 1e-15)


@pytest.mark.parametrize("along", [-1e-18, 1e-18])
def test_a_part_along_the_largest_that_is_rounding_is_followed_to_its_side(along):
    upper, xi = maximize_square(tensor([along, 0.1]), torch.diag(tensor([2.0, 1.0])))
    reached = float((tensor([along, 0.1]) + tensor([2.0, 1.0]) * xi).square().sum())
    assert float(upper) * (1 - 1e-8) < reached <= float(upper) and math.copysign(1.0, float(xi[0])) == math.copysign(
        1.0, along
    )


def test_rows_that_are_not_finite_are_bounded_by_nothing_and_others_do_not_notice():
    a = tensor([[1.0, 0.0], [math.nan, 0.0], [1e200, 0.0], [0.0, 1.0]])
    A = torch.eye(2).double().repeat(4, 1, 1)
    A[3, 0, 0] = 1e200
    upper, xi = maximize_square(a, A)
    assert upper[1:].tolist() == [math.inf] * 3 and bool(torch.isfinite(xi).all())
    alone, _ = maximize_square(a[:1], A[:1])
    assert torch.equal(upper[:1], alone) and float(alone) == pytest.approx(4.0, rel=1e-14)
    empty, none = maximize_square(a, A[..., :0])
    assert empty.tolist() == [1.0, math.inf, math.inf, 1.0] and none.shape == (4, 0)


def test_containment_holds_where_the_margin_is_none_or_more():
    found = Containment(tensor([0.0, -1e-300, math.nan, 1.0]), torch.zeros(4, 1).double())
    assert found.holds.tolist() == [True, False, False, True] and not bool(found)
    assert bool(Containment(tensor([0.0, 2.0]), torch.zeros(2, 1).double()))


def test_what_is_not_bounded_by_a_point_has_no_witness():
    square = Polytope.of_box(Box(-torch.ones(2).double(), torch.ones(2).double()))
    none = square.intersect(Polytope(tensor([[1.0, 0.0]]), tensor([-2.0])))
    half = Polytope(tensor([[1.0, 0.0]]), tensor([0.0]))
    for other, margin in ((none, math.inf), (half, -math.inf)):
        found = square.contains_polytope(other)
        assert float(found.margin) == margin and bool(found.witness.isnan().all())


def test_a_coordinate_that_an_image_ignores_keeps_its_rounding():
    """{0·x : |x| ≤ 1} = {0}: supports are 0, raised by the one least float that a product 0·x may be off by, times |x|."""
    for reach in (1.0, 3.0):
        ends = tensor([reach])
        image = Polytope.of_box(Box(-ends, ends)).image(tensor([[0.0]]), tensor([0.0]))
        assert image.h.tolist() == [reach * 5e-324] * 2


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_a_flat_set_is_thinnest_along_its_least_side_wherever_it_lies(thin):
    """Boxes of sides 0.5 … 2 but for one of 1e-6, far from 0 along another axis: the far rows have the largest offsets."""
    low, sides = [0.0, 0.0, 0.0], [0.5, 2.0, 1.0]
    low[(thin + 1) % 3], low[(thin + 2) % 3], sides[thin] = 50.0, -70.0, 1e-6
    rows = np.concatenate([np.eye(3), -np.eye(3)])
    room = [Fraction(a) + Fraction(s) for a, s in zip(low, sides, strict=True)] + [-Fraction(a) for a in low]
    assert np.abs(_hull._thinnest(rows, room)).tolist() == np.eye(3)[thin].tolist()


@pytest.mark.parametrize("away", [0.0, 1.0, -1e3, 1e9])
def test_the_span_of_points_knows_their_extents_and_not_where_they_are(away):
    """Extents 6, 0 and 0.25 about any centre: units 2³ and 2^−1, and a coordinate that does not vary spans nothing."""
    points = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 0.25], [3.0, 0.0, -0.125], [1.0, 0.0, 0.25]]) + away
    center, basis, exponent = _hull.span(points)
    assert (center == points[0]).all() and exponent == [3, 0, -1]
    assert np.abs(basis).tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    slanted = _hull.span(points * [1.0, 0.0, 0.0] + [0.0, 0.0, 1.0] * points[:, :1])[1]
    assert slanted.shape == (3, 1) and np.abs(slanted[:, 0]) == pytest.approx([0.5**0.5, 0.0, 0.5**0.5])


def test_the_worst_point_of_nothing_is_none_in_all_coordinates():
    nothing = Polytope(tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), tensor([-1.0, -1.0]))
    found = Polytope.of_box(Box(torch.zeros(3).double(), torch.ones(3).double())).contains_polytope(nothing)
    assert float(found.margin) == math.inf and found.witness.shape == (3,) and bool(found.witness.isnan().all())


def test_samples_fill_parts_of_unequal_size_by_their_volume():
    """A pentagon of area 12.5, of which 4.5 is below y = 1 and 9 left of x = 3; the triangles of a cut are unequal."""
    body = convex_hull(tensor([[0.0, 0.0], [4.0, 0.0], [5.0, 1.0], [3.0, 3.0], [0.0, 3.0]]) + tensor([30.0, -7.0]))
    x = body.sample(20_000, torch.Generator().manual_seed(1))
    for share, part in ((4.5 / 12.5, x[:, 1] < -6.0), (9 / 12.5, x[:, 0] < 33.0)):
        assert float(part.double().mean()) == pytest.approx(share, abs=4.5 * (share * (1 - share) / 20_000) ** 0.5)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_hull_is_raised_by_the_rounding_of_its_rows_and_no_more(count):
    """2γ_{d+2} Σ|H_i||p|, where a row is none of ±e_j; however many points there are."""
    points = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(count)) + 9.0
    hull = convex_hull(points)
    plain = ((hull.H != 0).sum(1) == 1) & (hull.H.abs() == 1).any(1)
    margin = 2 * gamma(5) * (points.abs() @ hull.H.abs().mT)
    assert torch.equal(hull.h, (points @ hull.H.mT + torch.where(plain, 0.0, margin)).amax(0))
