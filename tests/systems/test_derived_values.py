"""Interval rules behind derived bounds, entry by entry: what random expressions are too tame to tell apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gpsafe.sets import Box
from gpsafe.systems import DerivedCost, _curvature, _interval, _tape, derived
from gpsafe.systems._interval import SMOOTH, Interval, outward, power
from gpsafe.systems._trace import read


def interval(low: float, high: float) -> Interval:
    return Interval(np.array([low]), np.array([high]))


def test_products_of_nan_are_the_whole_line_and_zero_times_infinity_is_zero():
    for lost in (interval(np.nan, np.nan) * interval(1.0, 2.0), interval(1.0, 2.0) * interval(np.nan, 3.0)):
        assert (lost.low, lost.high) == (-np.inf, np.inf)
    none = interval(0.0, 0.0) * interval(-np.inf, np.inf)
    assert (none.low, none.high) == (0.0, 0.0)


def test_squares_are_not_negative_and_no_wider_than_they_must():
    found = interval(-1.0, 0.5).square()
    assert found.low == 0.0 and 1.0 <= found.high <= 1.0 + 1e-14


def test_outward_widens_what_is_finite_and_keeps_an_interval_that_ran_away():
    zero = outward(np.zeros(1), np.zeros(1), least=1e-3)
    assert (zero.low, zero.high) == (-1e-3, 1e-3)
    some = outward(np.array([2.0]), np.array([3.0]), margin=0.5)
    assert some.low == pytest.approx(1.0) and some.high == pytest.approx(4.5)
    far = outward(np.array([np.inf]), np.array([np.inf]))  # the value is some number above HUGE
    assert far.low == pytest.approx(_interval.HUGE) and far.high == np.inf
    near = outward(np.array([-np.inf]), np.array([-np.inf]))
    assert near.low == -np.inf and near.high == pytest.approx(-_interval.HUGE)


@pytest.mark.parametrize(
    ("name", "box", "smooth", "defined"),
    [
        ("log", (0.1, np.inf), True, True),
        ("log", (0.0, 1.0), False, True),
        ("log", (-0.1, 1.0), False, False),
        ("asin", (-0.9, 0.9), True, True),
        ("asin", (-1.0, 0.5), False, True),
        ("asin", (-0.5, 1.0), False, True),
        ("asin", (-0.5, 1.1), False, False),
        ("asin", (-1.1, 0.5), False, False),
        ("acos", (-0.9, 0.9), True, True),
        ("acos", (-1.0, 0.5), False, True),
        ("acos", (-0.5, 1.0), False, True),
        ("acos", (-0.5, 1.1), False, False),
        ("acos", (-1.1, 0.5), False, False),
        ("reciprocal", (0.0, 1.0), False, False),
        ("reciprocal", (-1.0, 0.0), False, False),
        ("reciprocal", (1e-9, 1.0), True, True),
        ("reciprocal", (-1.0, -1e-9), True, True),
        ("exp", (-np.inf, np.inf), True, True),
        ("tan", (-1.5, 1.5), True, True),
        ("tan", (1.5, 1.6), False, False),
    ],
)
def test_where_a_function_is_smooth_and_where_it_has_a_value(name, box, smooth, defined):
    rule, x = SMOOTH[name], interval(*box)
    assert (bool(rule.smooth(x)[0]), bool(rule.defined(x)[0])) == (smooth, defined)


def test_negative_powers_have_a_pole():
    assert not power(-2.0).smooth(interval(0.0, 1.0))[0] and power(-2.0).smooth(interval(0.5, 1.0))[0]


# ------------------------------------------------------------------------------------------------ kinks and choices
def jet(function, *box, second=True):
    """Of a scalar function of (x, y) over a box, as one output."""
    tape = read(lambda x, u: function(x[..., 0], x[..., 1]).unsqueeze(-1).expand(x.shape), 2, 0)
    low, high = (np.array([[b[i] for b in box]]) for i in (0, 1))
    return _curvature.ranges(tape, _curvature.box(low, high, second=second))[0]


def test_what_is_not_known_on_some_boxes_of_a_choice_is_told():
    """√y where x ≤ 0: not known on the second of two boxes, and not needed on the first."""
    tape = read(lambda x, u: torch.where(x[..., :1] > 0, x[..., :1], torch.sqrt(x[..., 1:])).expand(x.shape), 2, 0)
    low, high = np.array([[1.0, -1.0], [-2.0, -1.0], [-1.0, 1.0]]), np.array([[2.0, 1.0], [-1.0, 1.0], [1.0, 2.0]])
    found = _curvature.ranges(tape, _curvature.box(low[:2], high[:2], second=True))[0]
    assert found.bad.tolist() == [False, True] and "sqrt" in found.why
    found = _curvature.ranges(tape, _curvature.box(low, high, second=True))[0]  # and a choice that is open on a third
    assert found.bad.tolist() == [False, True, True]


@pytest.mark.parametrize("ends", [(-2.0, -1.0), (1.0, 2.0), (-1.0, 2.0), (-2.0, 1.0)])
def test_where_a_derivative_turns_counts_inside_alone(ends):
    """tanh′ is 1 at 0, and falls on either side."""
    found, slopes = SMOOTH["tanh"].over(1, interval(*ends)), [1 - math.tanh(end) ** 2 for end in ends]
    top = 1.0 if ends[0] < 0 < ends[1] else max(slopes)
    assert (found.low, found.high) == (pytest.approx(min(slopes), rel=1e-9), pytest.approx(top, rel=1e-9))


def test_equal_is_what_is_one_number_on_both_sides():
    """[1, 1] against itself is; [1, 2] and [0, 1] may be; [2, 3] is not."""
    one, others = (
        (np.ones((4, 1)),) * 2,
        (np.array([[1.0], [1.0], [0.0], [2.0]]), np.array([[1.0], [2.0], [1.0], [3.0]])),
    )
    a, b = (_curvature.box(*ends, second=False)[0] for ends in (one, others))
    for pair in ((a, b), (b, a)):
        found = _curvature._compared(_tape.EQUAL, *pair, False).value
        assert found.low.tolist() == [1.0, 0.0, 0.0, 0.0] and found.high.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_squares_of_what_changes_its_sign_are_not_negative():
    a = Interval(np.array([[-1.0, 2.0]]), np.array([[3.0, 4.0]]))
    own, other = _curvature._outer(a, a, same=True), _curvature._outer(a, a, same=False)
    np.testing.assert_allclose(own.low[0], [[0.0, -4.0], [-4.0, 4.0]], rtol=1e-12)
    np.testing.assert_allclose(other.low[0], [[-3.0, -4.0], [-4.0, 4.0]], rtol=1e-12)
    np.testing.assert_allclose(own.high[0], [[9.0, 12.0], [12.0, 16.0]], rtol=1e-12)
    (x,) = _curvature.box(np.array([[-1.0]]), np.array([[3.0]]), second=True)
    found = _curvature._times(x, x, same=True)
    np.testing.assert_allclose([found.value.low[0], found.value.high[0]], [0.0, 9.0], rtol=1e-12, atol=1e-300)
    apart = _curvature._times(x, x, same=False).value  # of two that lie in the same interval
    np.testing.assert_allclose([apart.low[0], apart.high[0]], [-3.0, 9.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "x", "kink"),
    [
        (lambda x, y: torch.where(x > 0, x, 2 * x), (1.0, 2.0), False),
        (lambda x, y: torch.where(x > 0, x, 2 * x), (-2.0, -1.0), False),
        (lambda x, y: torch.where(x > 0, x, 2 * x), (-1.0, 1.0), True),
        (lambda x, y: torch.abs(x), (0.5, 1.0), False),
        (lambda x, y: torch.abs(x), (-1.0, -0.5), False),
        (lambda x, y: torch.abs(x), (0.0, 1.0), True),
        (lambda x, y: torch.floor(x), (1.1, 1.9), False),
        (lambda x, y: torch.floor(x), (1.0, 1.5), True),
        (lambda x, y: torch.floor(x), (1.5, 2.0), True),
        (lambda x, y: torch.sign(x), (0.1, 1.0), False),
        (lambda x, y: torch.sign(x), (0.0, 0.0), True),
        (lambda x, y: torch.maximum(x, y), (2.0, 3.0), False),
        (lambda x, y: torch.maximum(x, y), (0.5, 3.0), True),
    ],
)
def test_a_kink_is_one_unless_the_box_decides(function, x, kink):
    found = jet(function, x, (-1.0, 1.0))
    assert bool(found.bad[0]) == kink and bool(found.why) == kink
    assert not bool(jet(function, x, (-1.0, 1.0), second=False).bad[0])  # a value passes through it


@pytest.mark.parametrize("turned", [False, True])
def test_only_the_branch_that_may_be_taken_counts(turned):
    def chosen(x, y):
        return torch.where(x > 0, y, 1 / y) if turned else torch.where(x > 0, 1 / y, y)

    taken, left = ((-2.0, -1.0), (1.0, 2.0)) if turned else ((1.0, 2.0), (-2.0, -1.0))
    lost, kept = jet(chosen, taken, (-1.0, 1.0)), jet(chosen, left, (-1.0, 1.0))
    assert bool(lost.bad[0]) and "reciprocal" in lost.why
    assert not bool(kept.bad[0]) and kept.why == ""
    assert kept.value.low[0] == -1.0 and kept.value.high[0] == 1.0


# ------------------------------------------------------------------------------------------------------- saturation
def test_ranges_of_the_saturation_hold_it_and_are_exact_in_the_region():
    region = Box(torch.tensor([1.0, -3.0]).double(), torch.tensor([2.0, -1.0]).double())
    g = torch.Generator().manual_seed(0)
    ends = (6.0 * torch.randn(2, 400, 2, generator=g, dtype=torch.float64) + region.center).sort(0).values
    z = ends[0] + torch.rand(50, 400, 2, generator=g, dtype=torch.float64) * (ends[1] - ends[0])
    z = torch.cat([z, ends]).requires_grad_()
    value = derived._saturate(z, region.lower, region.upper)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), z)
    jets = derived._saturated(*(e.numpy() for e in ends), region)
    for i, found in enumerate(jets):
        assert found.grad is not None and found.hess is not None
        for part, true in (
            (found.value, value),
            (found.grad[:, i], slope),
            (found.hess[:, i, i], bend),
        ):
            true = true[..., i].detach().numpy()
            assert (part.low <= true + 1e-15).all() and (true - 1e-15 <= part.high).all()
    corners = [np.array([[1.0, -3.0]]), np.array([[2.0, -1.0]])]
    for i, found in enumerate(derived._saturated(*corners, region)):
        assert found.grad is not None and found.hess is not None
        assert (found.value.low[0], found.value.high[0]) == (corners[0][0, i], corners[1][0, i])
        assert (found.grad.low[0, i], found.grad.high[0, i]) == (1.0, 1.0)
        assert found.hess.size[0, i, i] == 0.0
    beyond = derived._saturated(np.array([[2.5, -2.0]]), np.array([[3.0, -0.5]]), region)
    assert beyond[0].hess is not None and beyond[0].hess.high[0, 0, 0] == 0.0 > beyond[0].hess.low[0, 0, 0]
    assert beyond[0].value.high[0] - beyond[0].value.low[0] < 0.5  # no wider than it must be


def test_a_cost_over_a_box_with_nan_is_the_ceiling():
    cost = DerivedCost(lambda x: x[..., 0].square(), 2, ceiling=3.0)
    zero, nan = torch.zeros(2).double(), torch.tensor([0.0, torch.nan]).double()
    assert float(cost.upper(zero, zero)) < 1e-12
    for ends in ((nan, zero), (zero, nan)):
        assert float(cost.upper(*ends)) == 3.0 and float(cost.lower(*ends)) == 0.0
