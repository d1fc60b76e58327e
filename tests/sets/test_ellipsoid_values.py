"""Ellipsoids: values by hand, thresholds exactly where they are stated, nothing that is merely on the safe side."""

import math
from functools import partial

import pytest
import torch

from gpsafe.sets import Ellipsoid
from gpsafe.sets._containment import Containment, maximize_square

tensor = partial(torch.tensor, dtype=torch.float64)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_makers_and_sizes():
    c = tensor([[1.0, 2.0], [0.0, -1.0]])
    point = Ellipsoid.point(c)
    assert torch.equal(point.center, c) and point.factor.shape == (2, 2, 0) and point.trace.tolist() == [0.0, 0.0]
    ball = Ellipsoid.ball(c, tensor([0.5, 3.0]))
    assert (
        ball.factor.tolist() == [[[0.5, 0.0], [0.0, 3.0]]] * 2
        and Ellipsoid.ball(c, 0.0).radius.tolist() == [[0.0, 0.0]] * 2
    )
    body = Ellipsoid(tensor([1.0, -1.0]), tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 2.0]]))
    assert (body.dim, body.shape.tolist(), float(body.trace)) == (2, [[25.0, 4.0], [4.0, 5.0]], 30.0)
    torch.testing.assert_close(body.radius, tensor([5.0, math.sqrt(5)]))
    torch.testing.assert_close(body.support(tensor([[2.0, 0.0], [0.0, -1.0]])), tensor([12.0, 1 + math.sqrt(5)]))
    shift = body.affine(tensor([[0.0, 2.0]]), tensor([7.0]))
    torch.testing.assert_close((shift.center, shift.factor), (tensor([5.0]), tensor([[0.0, 2.0, 4.0]])))
    assert body.affine(tensor([[0.0, 2.0]])).center.tolist() == [-2.0]
    moved = Ellipsoid(tensor([1.0, -1.0]), body.factor).affine(torch.eye(2).double(), c)  # offsets make the batch
    assert moved.factor.shape == (2, 2, 3) and torch.equal(moved.center, c + body.center)


def test_a_shape_may_be_indefinite_or_unsymmetric_by_rounding_only():
    c, turn = torch.zeros(2).double(), torch.linalg.qr(draw(0, 2, 2)).Q

    def made(values, skew=0.0):
        Q = turn @ torch.diag(tensor(values)) @ turn.mT
        return Ellipsoid.from_shape(c, 0.5 * (Q + Q.mT) + skew * tensor([[0.0, 0.5], [-0.5, 0.0]]))

    exact = made([4.0, 1.0])
    torch.testing.assert_close(exact.shape, turn @ torch.diag(tensor([4.0, 1.0])) @ turn.mT)
    made([4.0, -4.0 * 0.8e-12])
    assert not bool(made([0.0, 0.0]).factor.any())
    with pytest.raises(ValueError, match=r"smallest eigenvalue -4\.8"):
        made([4.0, -4.0 * 1.2e-12])
    size = float(exact.shape.abs().max())
    made([4.0, 1.0], skew=0.9e-10 * size)  # |Q − Qᵀ| has entries of `skew`
    with pytest.raises(ValueError, match="symmetric"):
        made([4.0, 1.0], skew=1.1e-10 * size)
    good, bad = torch.diag(tensor([4.0, 1.0])), torch.diag(tensor([1.0, -1e-3]))
    for rows in ([good, bad], [bad, good]):
        with pytest.raises(ValueError, match="semi-definite"):
            Ellipsoid.from_shape(torch.zeros(2, 2).double(), torch.stack(rows))
    with pytest.raises(ValueError, match="symmetric"):  # one row's own size counts, not another's
        Ellipsoid.from_shape(
            torch.zeros(2, 2).double(), torch.stack([1e6 * good, good + tensor([[0.0, 1e-6], [0.0, 0.0]])])
        )


def test_flat_directions_have_the_centre_as_support_point_and_finite_derivatives():
    factor = tensor([[2.0], [0.0]]).requires_grad_()
    flat = Ellipsoid(tensor([1.0, 3.0]), factor)
    n = tensor([0.0, 1.0])
    point = flat.support_point(n)
    assert point.tolist() == [1.0, 3.0]
    (gradient,) = torch.autograd.grad(point.sum(), factor)
    assert bool(torch.isfinite(gradient).all())
    assert flat.support_point(tensor([-5.0, 1.0])).tolist() == [-1.0, 3.0]


def test_outer_sums_of_batches_are_those_of_their_rows():
    one, two = Ellipsoid(draw(1, 3, 2), draw(2, 3, 2, 2)), Ellipsoid(draw(3, 2), draw(4, 2, 3))
    total = one.minkowski_sum_outer(two)
    for i in range(3):
        a, b = one.factor[i] @ one.factor[i].mT, two.shape
        s, t = a.trace().sqrt(), b.trace().sqrt()
        torch.testing.assert_close(total.shape[i], (s + t) * (a / s + b / t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(total.center[i], one.center[i] + two.center)
    assert total.factor.shape == (3, 2, 2)
    thin = Ellipsoid(draw(5, 3), draw(6, 3, 2))
    square = Ellipsoid(draw(5, 2), draw(6, 2, 2))
    assert thin.compress() is thin and square.compress() is square  # nothing to save
    assert thin.minkowski_sum_outer().factor.shape == (3, 2)


def test_the_gauge_is_infinite_exactly_beyond_the_stated_distance_from_the_span():
    """Off by y at a size of ‖x − c‖ + ‖L‖_F ≈ 4 + 5."""
    segment = Ellipsoid(tensor([1.0, 2.0, 0.0]), tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 4.0]]))
    for y, inside in ((0.99e-3 * 9, True), (1.01e-3 * 9, False)):
        x = tensor([5.0, 2.0 + y, 0.0])
        gauge = float(segment.gauge(x, tol=1e-3))
        assert (gauge == pytest.approx(4 / 3)) if inside else (gauge == math.inf)
    assert math.isfinite(
        float(segment.gauge(tensor([5.0, 2.0 + 0.89e-9, 0.0])))
    )  # 1e-10 of that size if nothing is said
    assert math.isinf(float(segment.gauge(tensor([5.0, 2.0 + 1.1e-9, 0.0]))))
    for gap, inside in ((3.0 * (1 + 0.9e-3), True), (3.0 * (1 + 1.1e-3), False)):
        assert bool(segment.contains(tensor([1.0 + gap, 2.0, 0.0]), tol=1e-3)) == inside
    assert bool(segment.contains(tensor([4.0, 2.0, 0.0]))) and not bool(
        segment.contains(tensor([4.0 + 1e-9, 2.0, 0.0]))
    )
    assert not bool(segment.contains(tensor([1.0, 2.0 + 1e-8, 0.0])))
    assert float(Ellipsoid.point(tensor([1.0, 2.0])).gauge(tensor([1.0, 2.0]))) == 0.0
    assert float(Ellipsoid.point(tensor([1.0, 2.0])).gauge(tensor([1.0, 2.1]))) == math.inf
    nothing = Ellipsoid(tensor([1.0, 2.0]), torch.zeros(2, 2).double())  # columns without length
    assert nothing.gauge(tensor([[1.0, 2.0], [1.0, 2.1]])).tolist() == [0.0, math.inf]
    turned = Ellipsoid(torch.zeros(2).double(), tensor([[3.0, 4.0], [-4.0, 3.0]]) / 5 @ torch.diag(tensor([2.0, 0.5])))
    x = tensor([0.7, -0.2])
    assert float(turned.gauge(x)) == pytest.approx(float((x @ torch.linalg.inv(turned.shape) @ x).sqrt()), rel=1e-12)


def test_a_set_leaves_a_flat_one_exactly_beyond_the_stated_distance():
    """Sizes ‖c − c′‖ ≈ 2, ‖L‖ = 3, ‖L′‖ = 5 (Frobenius)."""
    flat = Ellipsoid(torch.zeros(3).double(), tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]))
    for y, inside in ((0.99e-2, True), (1.01e-2, False)):
        answer = Ellipsoid(tensor([2.0, y, 0.0]), tensor([[1.0, 2.0, 2.0], [0.0] * 3, [0.0] * 3])).inside(
            flat, tol=1e-3
        )
        assert float(answer.margin) == (pytest.approx(1 - (2 + 3) / 5, abs=1e-12) if inside else -math.inf)
    plane, size = Ellipsoid(torch.zeros(3).double(), tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])), 2.0 + 0.5 + 5.0
    for y, inside in ((0.99e-3 * size, True), (1.01e-3 * size, False)):
        answer = Ellipsoid(tensor([1.2, 1.6, y]), tensor([[0.3], [0.4], [0.0]])).inside(plane, tol=1e-3)
        assert math.isfinite(float(answer.margin)) == inside
    within = Ellipsoid(tensor([0.5, 0.0, 0.0]), tensor([[0.5, 1.0, 1.0], [0.0] * 3, [0.0] * 3])).inside(flat)
    assert float(within.margin) == pytest.approx(1 - 2 / 5, abs=1e-12)
    torch.testing.assert_close(within.witness, tensor([2.0, 0.0, 0.0]), rtol=0, atol=1e-9)
    ball = Ellipsoid(torch.zeros(3).double(), torch.eye(3).double()).inside(
        flat
    )  # its farthest point in the span is no witness
    assert float(ball.margin) == -math.inf and float(ball.witness[1:].norm()) == pytest.approx(1.0)
    tilted = Ellipsoid(torch.zeros(3).double(), tensor([[3.0], [0.0], [0.5]])).inside(flat)
    assert float(tilted.margin) == -math.inf and abs(float(tilted.witness[2])) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(4))
def test_margins_inside_ellipsoids_and_half_spaces_are_exact(seed):
    """Against a fine sampling of the boundary in the plane; several rows at once."""
    inner, outer = (
        Ellipsoid(draw(seed, 3, 2), draw(seed + 9, 3, 2, 2)),
        Ellipsoid(draw(seed + 5, 2), 4 * draw(seed + 6, 2, 2)),
    )
    angle = torch.linspace(0, 2 * math.pi, 20001).double()
    ring = torch.stack([angle.cos(), angle.sin()], -1)[:, None, :, None]
    boundary = inner.center + (inner.factor @ ring).squeeze(-1)
    answer = inner.inside(outer)
    gap = torch.linalg.solve(outer.factor, (boundary - outer.center).unsqueeze(-1)).squeeze(-1).norm(dim=-1)
    torch.testing.assert_close(answer.margin, 1 - gap.amax(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(answer.witness, boundary[gap.argmax(0), torch.arange(3)], rtol=0, atol=5e-3)
    H, h = draw(seed + 7, 4, 2), draw(seed + 8, 3, 4)
    rows = inner.inside_halfspaces(H, h)
    slack = (h - boundary @ H.mT).amin(0)
    torch.testing.assert_close(rows.margin, slack.amin(-1), rtol=1e-6, atol=1e-6)
    deciding = H[slack.argmin(-1)]
    torch.testing.assert_close(
        (rows.witness * deciding).sum(-1), (boundary * deciding).sum(-1).amax(0), rtol=1e-6, atol=1e-6
    )


def test_no_margin_is_no_containment():
    assert Containment(tensor([0.0, -1e-300, math.nan]), torch.zeros(3, 1)).holds.tolist() == [True, False, False]
    assert bool(Containment(tensor([0.0, 1.0]), torch.zeros(2, 1))) and not bool(
        Containment(tensor([0.0, -1.0]), torch.zeros(2, 1))
    )


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_square_is_an_upper_bound_to_the_last_digits(seed, scale):
    a, A = scale * draw(seed, 5, 2), scale * draw(seed + 1, 5, 2, 3)
    A[1] = 0.0
    a[2] = 0.0
    A[3, :, 1:] = 0.0
    upper, xi = maximize_square(a, A)
    torch.testing.assert_close(xi.norm(dim=-1), torch.ones(5).double())
    value = (a + (A @ xi.unsqueeze(-1)).squeeze(-1)).square().sum(-1)
    assert bool((upper >= value * (1 - 1e-14)).all())
    torch.testing.assert_close(upper, value, rtol=3e-13, atol=0)
    assert float(upper[1]) == pytest.approx(float(a[1].square().sum()), rel=1e-13)
    assert float(upper[2]) == pytest.approx(float(torch.linalg.matrix_norm(A[2], 2)) ** 2, rel=1e-12)
    assert float(upper[3]) == pytest.approx(float(max((a[3] + s * A[3, :, 0]).norm() for s in (-1, 1))) ** 2, rel=1e-12)
    nothing, none = maximize_square(a, A[..., :0])
    assert torch.equal(nothing, a.square().sum(-1)) and none.shape == (5, 0)
    a, A = (
        tensor([0.5, 0.0]),
        tensor([1.5, 2.0]),
    )  # hard case: free along the top axis, y₁ = 0.75/(4 − 2.25) along the other
    top, free = maximize_square(a, torch.diag(A))
    assert float(top) == pytest.approx(float((a + A * free).square().sum()), rel=1e-12)
    torch.testing.assert_close(free.abs(), tensor([3 / 7, math.sqrt(1 - 9 / 49)]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_point_is_the_foot_of_a_normal(seed):
    body, x = Ellipsoid(draw(seed, 2), draw(seed + 1, 2, 2)), 4 * draw(seed + 2, 2)
    near = body.nearest(x)
    if bool(body.contains(x)):
        torch.testing.assert_close(near, x)
        return
    assert float(body.gauge(near)) == pytest.approx(1.0, abs=1e-9)
    normal = torch.linalg.solve(body.shape, near - body.center)
    torch.testing.assert_close((x - near) / (x - near).norm(), normal / normal.norm(), rtol=0, atol=1e-7)
    disc = Ellipsoid(tensor([1.0, 1.0, 1.0]), tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    torch.testing.assert_close(disc.nearest(tensor([7.0, 1.0, 9.0])), tensor([3.0, 1.0, 1.0]), rtol=0, atol=1e-9)
    torch.testing.assert_close(disc.nearest(tensor([1.5, 0.5, 9.0])), tensor([1.5, 0.5, 1.0]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_samples_fill_the_span_uniformly(order):
    """In a ball of dimension m the radius ρ has P(ρ ≤ r) = r^m, directions have covariance I/m."""
    factor = torch.zeros(3, 3).double()
    factor[:, :order] = torch.linalg.qr(draw(1, 3, 3)).Q[:, :order] * 2.0
    body, generator = Ellipsoid(tensor([1.0, 2.0, 3.0]), factor), torch.Generator().manual_seed(0)
    filled, edge = body.sample(20000, generator), body.sample_boundary(20000, generator)
    assert filled.shape == edge.shape == (20000, 3)
    radius = (filled - body.center).norm(dim=-1) / 2
    assert float(radius.max()) <= 1 + 1e-12
    for r in (0.3, 0.6, 0.9):
        assert float((radius <= r).double().mean()) == pytest.approx(r**order, abs=0.015)
    torch.testing.assert_close((edge - body.center).norm(dim=-1), torch.full((20000,), 2.0).double(), rtol=0, atol=1e-9)
    moment = (edge - body.center).mT @ (edge - body.center) / 20000
    torch.testing.assert_close(moment, body.shape / order, rtol=0, atol=0.1)
    torch.testing.assert_close(filled.mean(0), body.center, rtol=0, atol=0.05)
    again = torch.Generator().manual_seed(5)
    batch = Ellipsoid(torch.zeros(2, 1).double(), tensor([[[1.0]], [[3.0]]])).sample(4, again)
    assert batch.shape == (4, 2, 1) and len(set(batch.flatten().tolist())) == 8
    for point in (Ellipsoid.point(body.center), Ellipsoid(body.center, torch.zeros(3, 2).double())):
        assert torch.equal(point.sample(2, again), body.center.expand(2, 3))


def test_ranks_count_what_is_above_rounding():
    """Columns 1e-13 of the largest are no direction of the set; 1e-11 are. Of coordinates each has its own size."""
    for thin, present in ((0.9e-12, False), (1.1e-12, True)):
        body = Ellipsoid(torch.zeros(2).double(), torch.diag(tensor([1.0, thin])))
        assert bool((body.sample(5, torch.Generator().manual_seed(0))[:, 1] != 0).all()) == present
        half = math.sqrt(0.5)  # both coordinates of one extent: a direction is thin, no coordinate is
        across = tensor([half, -half])
        body = Ellipsoid(torch.zeros(2).double(), torch.stack([tensor([half, half]), thin * across], dim=-1))
        gauge = float(body.gauge(3 * thin * across, tol=1e-13))
        assert (gauge == pytest.approx(3.0, rel=1e-3)) if present else (gauge == math.inf)


def test_wrong_shapes_and_numbers_are_refused():
    for center, factor in (
        (torch.zeros(2), torch.zeros(2)),
        (torch.zeros(3, 2), torch.zeros(2, 2)),
        (torch.zeros(2), torch.zeros(1, 2)),
    ):
        with pytest.raises(ValueError, match="center"):
            Ellipsoid(center, factor)
    with pytest.raises(ValueError, match="finite shape"):
        Ellipsoid.from_shape(torch.zeros(1), tensor([[math.nan]]))
    with pytest.raises(ValueError, match="finite center"):
        Ellipsoid(tensor([math.nan]), torch.zeros(1, 0))
    assert Ellipsoid(torch.zeros(2), torch.zeros(2, 3)).factor.dtype == torch.float64


def test_a_batch_of_ellipsoids_in_many_units_answers_as_each_alone():
    """Axes of 1e-6, 1 and 1e6 in turn: the units of one are not those of the next."""
    g = torch.Generator().manual_seed(3)
    sizes = torch.tensor([[1e-6, 1.0, 1e6], [1e6, 1e-6, 1.0], [1.0, 1e6, 1e-6], [1.0, 1.0, 1.0]]).double()
    factor = sizes.unsqueeze(-1) * torch.randn(4, 3, 2, dtype=torch.float64, generator=g)
    center = torch.randn(4, 3, dtype=torch.float64, generator=g)
    inside = center + factor @ tensor([0.3, -0.4])
    batch, other = Ellipsoid(center, factor), Ellipsoid(center, 2.5 * factor)
    gauges, contained = batch.gauge(inside), batch.inside(other)
    assert gauges.tolist() == pytest.approx([0.5] * 4, rel=1e-6)
    for k in range(4):
        one = Ellipsoid(center[k], factor[k])
        assert float(one.gauge(inside[k])) == float(gauges[k])
        alone = one.inside(Ellipsoid(center[k], 2.5 * factor[k]))
        assert (
            float(alone.margin) == pytest.approx(float(contained.margin[k]), rel=1e-9) == pytest.approx(0.6, rel=1e-6)
        )
