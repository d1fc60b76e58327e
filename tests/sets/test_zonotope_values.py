"""Zonotopes to the digit: what counts as within a limit, which sets are selected, how much a reduction adds, what is drawn."""

import math
from fractions import Fraction
from functools import partial

import torch

from gpsafe.sets.zonotope import HUGE, Zonotope

tensor = partial(torch.tensor, dtype=torch.float64)


def test_within_looks_at_every_half_width_and_at_every_coordinate():
    """The largest of either decides, and the limit itself is within."""
    flat = Zonotope(
        torch.zeros(3, 2).double(), tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 0.5]], [[1.0, 0.0]] * 2])
    )
    assert flat.within(2.0).tolist() == [True, False, True]
    assert flat.within(2.5).tolist() == [True, True, True]
    assert flat.within(0.0).tolist() == [False, False, False]
    far = Zonotope(tensor([[0.0, 2 * HUGE], [-2 * HUGE, 0.0], [HUGE, -HUGE]]), torch.zeros(3, 2, 1).double())
    assert far.within(math.inf).tolist() == [False, False, True]
    wide = Zonotope(torch.zeros(2, 1).double(), tensor([[[2 * HUGE]], [[HUGE]]]))
    assert wide.within(math.inf).tolist() == [False, True] and not bool(wide.within(1.0).any())


def test_selected_sets_keep_centre_and_generators():
    body = Zonotope(tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.arange(18.0).double().reshape(3, 2, 3))
    for index, rows in ((torch.tensor([2, 0]), [2, 0]), (torch.tensor([False, True, False]), [1])):
        chosen = body.select(index)
        assert torch.equal(chosen.center, body.center[rows]) and torch.equal(chosen.generators, body.generators[rows])


def test_boxes_are_summed_with_their_whole_width():
    body = Zonotope(tensor([1.0, -1.0]), tensor([[0.5, 0.0], [0.0, 0.25]]))
    space = Zonotope(torch.zeros(3).double(), torch.zeros(3, 0).double())
    for radius, known in (([1.0, 0.5, 0.0], False), ([1.0, 0.0, 0.5], False), ([1.0, 0.0, 0.0], True)):
        assert bool(torch.isfinite(space.plus_box(tensor(radius), [0]).generators).all()) == known
    summed = body.plus_box(tensor([0.25, 2.0]))
    assert torch.equal(summed.generators, tensor([[0.5, 0.0, 0.25, 0.0], [0.0, 0.25, 0.0, 2.0]]))
    assert torch.equal(body.plus_box(tensor([0.0, 2.0]), [1]).generators[:, 2:], tensor([[0.0], [2.0]]))
    assert summed.support(tensor([[2.0, -1.0]])).tolist() == [2.0 * 1.75 + 1.0 + 2.25]


def test_a_reduction_adds_what_its_frame_may_lose_and_no_more():
    """The oldest generators lie along the axes, the frame is exact: what is left is the share for rounding."""
    for size in (1.0, 1e-6, 1e150):
        old = size * torch.diag(tensor([4.0, 1.0])).repeat(1, 3)
        new = tensor([[1.0, 2.0], [3.0, 4.0]])
        reduced = Zonotope(tensor([7.0, 8.0]), torch.cat([old, new], -1)).reduce_outer(5)
        assert torch.equal(reduced.generators[:, 2:], new) and torch.equal(reduced.center, tensor([7.0, 8.0]))
        width, exact = reduced.generators[:, :2].abs().sum(-1) / size, tensor([12.0, 3.0])
        torch.testing.assert_close(width - exact, torch.full((2,), 2e-13 * 15.0).double(), rtol=2e-3, atol=0)
    # 7 generators in a plane for an order of 6: the last 3 are kept, the others become 2; an order below 4 counts as 4
    many = Zonotope(torch.zeros(2).double(), torch.ones(2, 7).double())
    assert many.reduce_outer(7) is many
    assert [many.reduce_outer(order).order for order in (6, 5, 4, 1)] == [5, 4, 4, 4]
    few = Zonotope(torch.zeros(2).double(), torch.ones(2, 4).double())
    assert few.reduce_outer(1) is few


def test_reductions_of_coordinates_of_very_different_sizes():
    """States of 10⁹ beside one of 10⁻⁹ left the small one 10⁵ times as wide; of four and more, also where frames of coordinates
    that have none in common were sought at once. What is reduced is contained, in rationals.
    """
    for units in (
        [2.0**30, 2.0**-30],
        [2.0**-30, 1.0, 2.0**30],
        [2.0**-30, 2.0**-28, 2.0**30],
        [2.0**60, 2.0**20, 2.0**-20, 2.0**-60],
        [2.0**40, 2.0**-40, 2.0**40, 2.0**-40, 2.0**-40],
        [2.0**35, 1.0, 2.0**-70, 2.0**-35, 2.0**70],
    ):
        for seed in range(10):
            size = tensor(units)
            old = torch.randn(len(units), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            body = Zonotope(0 * size, size.unsqueeze(-1) * old)
            reduced = body.reduce_outer(8)
            assert bool((reduced.radius <= 3 * body.radius).all())
            for direction in (torch.eye(len(units)).double() / size, old[:, :2].mT / size):
                assert all(a <= b for a, b in zip(reach(body, direction), reach(reduced, direction), strict=True))


def reach(body: Zonotope, directions: torch.Tensor) -> list[Fraction]:
    """Supports of a body about 0, exactly."""
    rows, columns = ([[Fraction(v) for v in row] for row in m.tolist()] for m in (directions, body.generators.mT))
    return [
        sum((abs(sum(a * b for a, b in zip(row, column, strict=True))) for column in columns), Fraction(0))
        for row in rows
    ]


def test_samples_fill_the_set_and_a_third_of_them_are_corners():
    body = Zonotope(tensor([10.0, -5.0]), torch.diag(tensor([1.0, 2.0])))
    points = body.sample(300, torch.Generator().manual_seed(0))
    xi = (points - body.center) / tensor([1.0, 2.0])
    corner = (xi.abs() == 1.0).all(-1)
    assert corner.tolist() == [True] * 100 + [False] * 200
    assert {tuple(row) for row in xi[:100].tolist()} == {(a, b) for a in (-1.0, 1.0) for b in (-1.0, 1.0)}
    assert (
        bool((xi.amin(0) < -0.9).all())
        and bool((xi[100:].amin(0) < -0.9).all())
        and bool((xi[100:].amax(0) > 0.9).all())
    )
    assert float(xi.abs().max()) <= 1.0


def test_a_reduction_knows_no_unit_and_points_stay_points():
    g = torch.Generator().manual_seed(0)
    body = Zonotope(torch.zeros(2).double(), torch.randn(2, 9, dtype=torch.float64, generator=g))
    expected = body.reduce_outer(4).generators
    for size in (1e-150, 1e-300, 1e150):
        found = Zonotope(body.center, size * body.generators).reduce_outer(4).generators
        torch.testing.assert_close(found / size, expected, rtol=1e-6, atol=1e-9)
    point = Zonotope(body.center, 0.0 * body.generators).reduce_outer(4)
    assert point.order == 4 and float(point.generators.abs().max()) < 1e-300
