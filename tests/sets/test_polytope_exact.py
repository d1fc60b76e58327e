"""Polytopes of any scale against corners enumerated in rational arithmetic, and against themselves in other units."""

import math
from fractions import Fraction
from itertools import combinations
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import seeds

from gpsafe.sets import Box, Polytope, convex_hull
from gpsafe.sets._lp import Program, down, nearest, up

FAR = Fraction(10) ** 400  # beyond every corner of what is drawn here
Rows = list[list[Fraction]]


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(dim: int) -> Polytope:
    return Polytope.of_box(Box(-torch.ones(dim).double(), torch.ones(dim).double()))


# --------------------------------------------------------------------------------------------------------------- oracle
def fractions(matrix: torch.Tensor) -> Rows:
    return [[Fraction(v) for v in row] for row in matrix.reshape(-1, matrix.shape[-1]).tolist()]


def dot(a, b) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def solve(rows: Rows, right: list[Fraction]) -> list[Fraction] | None:
    """The solution of a square system; None if it is singular."""
    work = [[*row, b] for row, b in zip(rows, right, strict=True)]
    for j in range(len(work)):
        pivot = next((i for i in range(j, len(work)) if work[i][j]), None)
        if pivot is None:
            return None
        work[j], work[pivot] = work[pivot], work[j]
        work[j] = [v / work[j][j] for v in work[j]]
        for i in range(len(work)):
            if i != j and work[i][j]:
                work[i] = [v - work[i][j] * w for v, w in zip(work[i], work[j], strict=True)]
    return [row[-1] for row in work]


def corners(polytope: Polytope, far: Fraction = FAR) -> Rows:
    """Of the part with |x_j| ≤ far."""
    H, h, dim = fractions(polytope.H), [Fraction(v) for v in polytope.h.tolist()], polytope.dim
    for axis in range(dim):
        for sign in (1, -1):
            H, h = [*H, [Fraction(sign * (j == axis)) for j in range(dim)]], [*h, far]
    found = []
    for chosen in combinations(range(len(H)), dim):
        x = solve([H[i] for i in chosen], [h[i] for i in chosen])
        if x is not None and x not in found and all(dot(row, x) <= b for row, b in zip(H, h, strict=True)):
            found.append(x)
    return found


def exact_support(polytope: Polytope, n: torch.Tensor) -> Fraction | float:
    direction = fractions(n)[0]
    values = [max((dot(direction, x) for x in corners(polytope, far)), default=-math.inf) for far in (FAR, 2 * FAR)]
    return values[0] if values[0] == values[1] else math.inf


@st.composite
def systems(draw, most: int = 3, decades: int = 30, bounded: bool = False):
    """Rows of small integers, with ties and zeros, times 10^k by row and by column."""
    dim = draw(st.integers(1, most))
    small = st.integers(-2, 3)
    rows = draw(st.lists(st.tuples(*[small] * dim, st.integers(-1, 4)), min_size=1, max_size=5))
    if bounded:
        rows += [
            (*(sign * (j == i) for j in range(dim)), draw(st.integers(0, 3))) for i in range(dim) for sign in (1, -1)
        ]
    powers = st.integers(-decades, decades)
    along = [10.0 ** draw(powers) for _ in range(dim)]
    across = [10.0 ** draw(powers) for _ in rows]
    H = tensor(*[[v * a * s for v, a in zip(row, along, strict=False)] for row, s in zip(rows, across, strict=True)])
    h = torch.tensor([row[-1] * s for row, s in zip(rows, across, strict=True)], dtype=torch.float64)
    n = tensor([draw(small) * a for a in along])
    return Polytope(H, h), n


# ------------------------------------------------------------------------------------------------ programs and supports
@given(systems())
def test_answers_are_those_of_the_corners_and_carry_their_proof(case):
    """Supports are the exact ones rounded once; multipliers prove optimality, or by Farkas that there is no point."""
    polytope, n = case
    truth = exact_support(polytope, n)
    H, h, goal = fractions(polytope.H), [Fraction(v) for v in polytope.h.tolist()], fractions(n)[0]
    answer = Program(H, h).maximize(goal)
    assert answer.value == truth
    assert polytope.is_empty() == (truth == -math.inf) == (answer.status == "infeasible")
    assert polytope.support(n).tolist() == [nearest(truth)]
    assert polytope.support_outer(n).tolist() == [up(truth)]
    if answer.status != "unbounded":
        y = answer.multipliers
        assert all(v > 0 for v in y.values())
        combined = [sum((v * H[i][j] for i, v in y.items()), Fraction(0)) for j in range(polytope.dim)]
        bound = sum((v * h[i] for i, v in y.items()), Fraction(0))
        assert (
            (combined == goal and bound == truth) if answer.status == "optimal" else (not any(combined) and bound < 0)
        )
    if answer.status == "optimal":
        assert dot(goal, answer.point) == truth
        assert all(dot(row, answer.point) <= b for row, b in zip(H, h, strict=True))


@given(systems())
def test_a_point_that_is_said_to_be_inside_is(case):
    """The quick answer never contradicts the exact one, whatever the sizes."""
    polytope, _ = case
    with mock.patch("gpsafe.sets.polytope.MANY", 0):
        assert not (polytope._plainly_inhabited() and polytope._program().empty)
        assert polytope.is_empty() == polytope._program().empty


def test_many_rows_in_many_coordinates_are_decided_at_once():
    box = unit(8)
    cuts = randn(3, 400, 8)
    thick = box.intersect(Polytope(cuts, cuts.norm(dim=1)))
    assert thick._plainly_inhabited() and not thick.is_empty()
    none = Polytope(
        torch.cat([cuts[:40], -cuts[:1]]), torch.cat([torch.ones(40).double(), -2 * torch.ones(1).double()])
    )
    assert not none._plainly_inhabited() and none.is_empty()


def by_one_number(n: np.ndarray, H: np.ndarray, h: np.ndarray) -> tuple[int, float]:
    """As a float solver answers when rows are scaled to 1 and all offsets by the largest: status and value."""
    size = float(np.abs(h).max()) or 1.0
    found = linprog(-n, A_ub=H, b_ub=h / size, bounds=(None, None), method="highs")
    return found.status, -size * found.fun if found.status == 0 else math.nan


@pytest.mark.parametrize("limit", [1e9, 1e12, 1e15])
def test_control_one_scale_for_all_rows_is_caught(limit):
    """Bounds that mean "no limit" beside bounds of 1, the same set without them, and noise for a row."""
    gap = Polytope(tensor([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]), torch.tensor([1.0, -1.5, limit, limit]))
    assert gap.is_empty()
    assert by_one_number(np.zeros(2), gap.H.numpy(), gap.h.numpy())[0] == 0  # "feasible"
    loose = unit(2).intersect(Polytope(tensor([0.6, 0.8], [-1.0, 0.0]), torch.tensor([limit, limit])))
    assert loose.support(tensor([1.0, 1.0])).tolist() == [2.0]
    assert loose.reduce().rows == 4
    noise = unit(2).intersect(Polytope(tensor([6e-17, 0.0]), torch.tensor([1.0])))
    assert noise.support(tensor([1.0, 1.0])).tolist() == [2.0]
    assert noise.reduce().rows == 4


@pytest.mark.parametrize(
    "value", [Fraction(1, 3), -Fraction(1, 3), Fraction(10) ** 400, Fraction(1, 10**400), 0.0, math.inf]
)
def test_rounding_is_to_the_next_float_and_directed(value):
    for sign in (1, -1):
        low, high = down(sign * value), up(sign * value)
        assert low <= sign * value <= high
        assert low == high or math.nextafter(low, math.inf) == high
        assert nearest(sign * value) in (low, high, math.inf * sign)


# ---------------------------------------------------------------------------------------------- containment, redundancy
@given(systems(decades=15))
def test_every_polytope_contains_itself(case):
    polytope, _ = case
    assert bool(polytope.contains_polytope(polytope))


@given(seeds(), st.integers(1, 5), st.integers(1, 12))
def test_every_random_polytope_contains_itself(seed, dim, rows):
    polytope = Polytope(randn(seed, rows, dim), randn(seed + 1, rows))
    assert bool(polytope.contains_polytope(polytope))


@settings(max_examples=30)
@given(systems(most=2, bounded=True), st.integers(-3, 3), st.integers(-60, 0))
def test_containment_is_decided_exactly_however_close_it_is(case, sign, exponent):
    """Offsets moved by ever less: contained iff the corners are."""
    inner, _ = case
    outer = Polytope(inner.H, inner.h * (1.0 + sign * 2.0**exponent))
    H, h = fractions(outer.H), outer.h.tolist()
    room = [Fraction(b) - dot(row, x) for x in corners(inner) for row, b in zip(H, h, strict=True)]
    margin = outer.contains_polytope(inner).margin
    assert float(margin) == down(min(room, default=math.inf))


@settings(max_examples=40)
@given(systems(most=2))
def test_reduction_keeps_the_set_and_no_implied_row(case):
    polytope, _ = case
    small = polytope.reduce()
    assert bool(polytope.contains_polytope(small)) and bool(small.contains_polytope(polytope))
    if small.rows > 1 and not polytope.is_empty():
        for i in range(small.rows):
            rest = [j for j in range(small.rows) if j != i]
            assert exact_support(Polytope(small.H[rest], small.h[rest]), small.H[i : i + 1]) > float(small.h[i])


def test_reduction_of_the_whole_space_and_of_twins():
    free = Polytope(torch.zeros(3, 2), torch.ones(3)).reduce()
    assert (free.rows, free.is_empty(), free.is_bounded()) == (1, False, False)
    square = unit(2)
    assert square.intersect(square).intersect(Polytope(2 * square.H, 2 * square.h)).reduce().rows == 4


# ---------------------------------------------------------------------------------------------------- other units
@given(systems(decades=0), seeds())
def test_powers_of_two_by_row_and_by_column_change_nothing(case, seed):
    """{Hx ≤ h} in coordinates x_j/2^{c_j}, rows times 2^{r_i}: the same answers in those units (vertices to rounding)."""
    polytope, n = case
    pick = torch.Generator().manual_seed(seed)
    rows = torch.randint(-200, 200, (polytope.rows,), generator=pick).double().exp2()
    columns = torch.randint(-200, 200, (polytope.dim,), generator=pick).double().exp2()
    other = Polytope(rows.unsqueeze(1) * polytope.H * columns, rows * polytope.h)
    assert other.is_empty() == polytope.is_empty()
    assert other.is_bounded() == polytope.is_bounded()
    assert torch.equal(other.support(n * columns), polytope.support(n))
    assert _directions(other.reduce(), columns) == _directions(polytope.reduce())
    if polytope.is_empty() or not polytope.is_bounded():
        return
    assert torch.equal(other.bounding_box().lower * columns, polytope.bounding_box().lower)
    assert _equal_hulls(other.vertices() * columns, polytope.vertices())
    assert _equal_hulls(convex_hull(other.vertices()).vertices() * columns, polytope.vertices())


def _directions(polytope: Polytope, columns: torch.Tensor | float = 1.0) -> list[list[float]]:
    """Rows with their offsets in units of their largest entry: free of powers of two by row; without rows of 0."""
    H, h = polytope.H / columns, polytope.h.unsqueeze(1)
    size = H.abs().amax(1, keepdim=True)
    return torch.cat([H / size, h / size], dim=1)[size[:, 0] > 0].tolist()


def _equal_hulls(found: torch.Tensor, exact: torch.Tensor) -> bool:
    """In directions of all octants, to 1e-9 of the extent along every coordinate and 1e-15 of its size."""
    unit = 1e-9 * (exact.amax(0) - exact.amin(0)) + 1e-15 * exact.abs().amax(0) + 1e-300
    directions = torch.cartesian_prod(*[torch.arange(-2, 3).double()] * exact.shape[1]).reshape(-1, exact.shape[1])
    a, b = ((directions @ ((points - exact.mean(0)) / unit).mT).amax(1) for points in (found, exact))
    return bool(((a - b).abs() <= directions.abs().sum(1)).all())


# --------------------------------------------------------------------------------------------- corners, hulls and images
@settings(max_examples=40)
@given(systems(bounded=True))
def test_vertices_are_the_corners_to_rounding_of_the_extent(case):
    """Flat sets and points included."""
    polytope, _ = case
    exact = corners(polytope)
    if not exact:
        with pytest.raises(ValueError, match="an empty one"):
            polytope.vertices()
        return
    assert _equal_hulls(polytope.vertices(), tensor(*[[nearest(v) for v in x] for x in exact]))


@given(seeds(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(0, 12))
def test_a_hull_contains_its_points_in_exact_arithmetic(seed, dim, rank, count, decades):
    points = randn(seed, count, min(rank, dim)) @ randn(seed + 1, min(rank, dim), dim) + randn(seed + 2, dim)
    points = points * 10.0 ** (decades * randn(seed + 3, dim)).clamp(-60, 60)
    hull = convex_hull(points)
    H, h = fractions(hull.H), hull.h.tolist()
    assert all(dot(row, x) <= b for x in fractions(points) for row, b in zip(H, h, strict=True))
    assert bool(torch.stack([hull.contains(x) for x in points]).all())
    torch.testing.assert_close(hull.bounding_box().upper, points.amax(0), rtol=1e-9, atol=0)


@example(592, 1, 4, 8)  # two points far from 0: a segment, whatever the rounding of their mean
@example(0, 2, 4, 0)
@given(seeds(), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_the_preimage_of_an_image_contains_the_set(seed, dim, out, decades):
    """Exactly; images into more dimensions are flat. It is not larger than rounding makes it."""
    polytope = convex_hull(randn(seed, dim + 3, dim) * 10.0 ** (decades * randn(seed + 1, dim)).clamp(-20, 20))
    matrix = randn(seed + 2, out, dim) * 10.0 ** (decades * randn(seed + 3, out)).clamp(-20, 20).unsqueeze(1)
    offset = randn(seed + 4, out) * matrix.abs().amax(1)
    image = polytope.image(matrix, offset)
    back = image.preimage(matrix, offset)
    assert bool(back.contains_polytope(polytope))
    for x in fractions(polytope.vertices()):
        moved = [dot(row, x) + b for row, b in zip(fractions(matrix), fractions(offset)[0], strict=True)]
        assert all(
            dot(n, moved) <= b + 1e-9 * abs(b) for n, b in zip(fractions(image.H), image.h.tolist(), strict=True)
        )


@settings(max_examples=20)
@given(seeds())
def test_an_image_into_more_dimensions_loses_no_support_and_gains_none(seed):
    square, directions = unit(2), randn(seed, 6, 2)
    matrix, nothing = randn(seed + 1, 4, 2), torch.zeros(4).double()
    back = square.image(matrix, nothing).preimage(matrix, nothing)
    assert bool((back.support(directions) >= square.support(directions)).all())
    torch.testing.assert_close(back.support(directions), square.support(directions), rtol=1e-9, atol=0)


def test_sums_are_of_any_number_type_and_the_answer_is_the_same():
    points = torch.tensor([[0.5, 0.25], [2.0, 0.0]])
    for kind in (torch.float16, torch.float32, torch.float64):
        assert unit(2).contains(points.to(kind)).tolist() == [True, False]
    assert unit(2).contains(torch.tensor([[0, 1], [2, 0]])).tolist() == [True, False]


def test_boxes_as_large_as_floats_go():
    huge = Polytope.of_box(
        Box(-torch.full((2,), 1.7e308, dtype=torch.float64), torch.full((2,), 1.7e308, dtype=torch.float64))
    )
    assert huge.support(tensor([1.0, 0.0], [1.0, 1.0])).tolist() == [1.7e308, math.inf]
    assert huge.is_bounded() and not huge.is_empty()
    assert huge.bounding_box().upper.tolist() == [1.7e308, 1.7e308]
    assert sorted(huge.vertices().sign().tolist()) == [[-1, -1], [-1, 1], [1, -1], [1, 1]]


def test_a_system_without_a_point_is_refuted_by_a_sum_of_its_rows():
    """Random rows, of which the last contradicts a positive combination of some others."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        H, h = rng.integers(-4, 5, (5, 3)).astype(float), rng.integers(1, 6, 5).astype(float)
        y = rng.integers(0, 3, 5).astype(float)
        y[rng.integers(5)] += 1.0
        H, h = np.vstack([H, -0.75 * (y @ H)]), np.append(h, -0.75 * (y @ h) - 0.125)
        found = Program(H.tolist(), h.tolist()).maximize([1.0, 0.0, 0.0])
        assert found.status == "infeasible" and found.point == () and all(v > 0 for v in found.multipliers.values())
        for j in range(3):
            assert sum(v * Fraction(H[i, j]) for i, v in found.multipliers.items()) == 0
        assert sum(v * Fraction(h[i]) for i, v in found.multipliers.items()) < 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_directions_without_numbers_are_refused_by_name(bad):
    for ask in (unit(2).support, unit(2).support_outer):
        with pytest.raises(ValueError, match=r"Polytope\.support(_outer)?: expected finite directions"):
            ask(tensor([1.0, bad]))
        assert ask(torch.zeros(0, 2).double()).shape == (0,)


def test_a_maximiser_on_a_plane_attains_the_maximum_though_no_row_holds_its_other_coordinates():
    for goal, value in (([2, 2, 2], 6), ([-1, -1, -1], math.inf)):
        answer = Program([[1.0, 1.0, 1.0]], [3.0]).maximize(goal)
        assert answer.value == value
        assert answer.status == "unbounded" or sum(a * b for a, b in zip(goal, answer.point, strict=True)) == value
