"""Zonotopes: exact operations are exact, outer ones contain."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.sets.zonotope import Zonotope

SLACK = 1e-11


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(seed: int, dim: int, order: int, batch: tuple[int, ...] = (2, 3)) -> Zonotope:
    g = generator(seed)
    shape = 10.0 ** torch.randint(-6, 4, (*batch, 1, order), generator=g).double()
    rays = torch.randn(*batch, dim, order, dtype=torch.float64, generator=g) * shape
    return Zonotope(torch.randn(*batch, dim, dtype=torch.float64, generator=g), rays)


def directions(seed: int, dim: int) -> torch.Tensor:
    return torch.randn(7, dim, dtype=torch.float64, generator=generator(seed))


def inside(points: torch.Tensor, body: Zonotope, normals: torch.Tensor) -> torch.Tensor:
    """Necessary condition of containment: every normal's support is respected."""
    reach = body.support(normals)
    slack = SLACK * (1 + body.radius.sum(-1, keepdim=True) + body.center.abs().sum(-1, keepdim=True))
    return (torch.einsum("kd,...d->...k", normals, points) <= reach + slack).all()


@given(seeds(), st.integers(1, 4), st.integers(0, 9))
def test_support_is_the_maximum_over_vertices(seed, dim, order):
    body, normals = draw(seed, dim, order), directions(seed, dim)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=order)), dtype=torch.float64).reshape(
        2**order, order
    )
    points = body.center + torch.einsum("...dm,nm->n...d", body.generators, corners)
    best = torch.einsum("kd,n...d->n...k", normals, points).amax(0)
    assert torch.allclose(body.support(normals), best, rtol=1e-12, atol=1e-12)
    assert torch.allclose(body.radius, (points - body.center).abs().amax(0), rtol=1e-12, atol=1e-12)


@given(seeds(), st.integers(1, 4), st.integers(0, 30), st.integers(1, 12))
def test_reduction_contains_the_set_and_obeys_the_order(seed, dim, order, limit):
    body = draw(seed, dim, order)
    reduced = body.reduce_outer(limit)
    assert reduced.order <= max(limit, 2 * dim)
    assert inside(body.sample(60, generator(seed)), reduced, directions(seed, dim))
    wider = reduced.support(directions(seed, dim)) - body.support(directions(seed, dim))
    assert bool((wider >= -SLACK * (1 + body.radius.sum(-1, keepdim=True))).all())


def test_control_dropping_generators_is_caught():
    body = draw(1, 2, 20)
    small = Zonotope(body.center, body.generators[..., :4])
    assert not inside(body.sample(200, generator(1)), small, directions(1, 2))


@given(seeds(), st.integers(1, 4), st.integers(0, 6))
def test_affine_images_and_box_sums_are_exact(seed, dim, order):
    body, g = draw(seed, dim, order), generator(seed)
    matrix = torch.randn(2, 3, dim, dim, dtype=torch.float64, generator=g)
    radius = torch.rand(2, 3, dim, dtype=torch.float64, generator=g)
    normals = directions(seed, dim)
    moved = body.affine(matrix, radius)
    pulled = torch.einsum("kd,...de->...ke", normals, matrix)
    along = torch.einsum("...ke,...em->...km", pulled, body.generators).abs().sum(-1)
    center = torch.einsum("...ke,...e->...k", pulled, body.center) + torch.einsum("kd,...d->...k", normals, radius)
    assert torch.allclose(moved.support(normals), center + along, rtol=1e-9, atol=1e-9)
    summed = body.plus_box(radius).support(normals)
    extra = torch.einsum("kd,...d->...k", normals.abs(), radius)
    assert torch.allclose(summed, body.support(normals) + extra, rtol=1e-12, atol=1e-12)


def test_points_have_no_width_and_shapes_are_checked():
    point = Zonotope.point(torch.ones(3, 2).double())
    assert point.order == 0
    assert bool((point.radius == 0).all())
    with pytest.raises(ValueError, match="Zonotope"):
        Zonotope(torch.ones(3, 2), torch.ones(2, 4))


# ------------------------------------------------------------------------------- sets never see each other
def walk(body: Zonotope, radius: torch.Tensor, axes: list[int] | None) -> Zonotope:
    """A few steps of a tube."""
    matrix = torch.eye(body.center.shape[-1]).double() * 0.9
    for _ in range(4):
        body = body.affine(matrix, body.center * 0.1).plus_box(radius, axes).reduce_outer(5)
    return body


@given(seeds(), st.integers(1, 3), st.sampled_from([math.nan, math.inf, -math.inf, 1.7e308]), st.booleans())
def test_no_set_of_a_batch_notices_what_another_is(seed, dim, poison, last):
    """Bit for bit, whatever is struck; and what is struck stays struck."""
    body, g = draw(seed, dim, 3, (6,)), generator(seed)
    radius = torch.rand(6, dim, dtype=torch.float64, generator=g)
    axes = [dim - 1] if last else None
    if last:
        radius[:, : dim - 1] = 0.0
    clean = walk(body, radius, axes)
    struck = torch.rand(6, generator=g) < 0.5
    target = (body.center, body.generators, radius)[seed % 3]
    target[struck, ..., 0] = poison
    found = walk(body, radius, axes)
    assert torch.equal(found.center[~struck], clean.center[~struck])
    assert torch.equal(found.generators[~struck], clean.generators[~struck])
    assert not bool(found.within(1e3)[struck].any())


@given(seeds(), st.integers(2, 4))
def test_axes_named_beforehand_lose_nothing(seed, dim):
    """Boxes without width along the others are summed exactly; a box with width there makes its set NaN, and only it."""
    body, g = draw(seed, dim, 3, (4,)), generator(seed)
    axes = torch.randperm(dim, generator=g)[: dim - 1].sort().values.tolist()
    rest = next(i for i in range(dim) if i not in axes)
    radius = torch.rand(4, dim, dtype=torch.float64, generator=g)
    radius[:, rest] = 0.0
    normals = directions(seed, dim)
    summed, named = body.plus_box(radius), body.plus_box(radius, axes)
    assert named.order == summed.order - 1
    size = (
        body.center.abs() @ normals.abs().mT + summed.support(normals).abs()
    )  # of the summands: centre and width may cancel
    assert bool(((named.support(normals) - summed.support(normals)).abs() <= 1e-13 * size).all())
    radius[2, rest] = 1e-300
    astray = body.plus_box(radius, axes)
    assert astray.within(math.inf).tolist() == [True, True, False, True]


@pytest.mark.parametrize("wrong", [-1e-9, math.nan])
def test_a_width_that_is_none_is_no_width(wrong):
    body, radius = draw(1, 2, 3, (2,)), torch.ones(2, 2).double()
    radius[1, 0] = wrong
    assert body.plus_box(radius).within(math.inf).tolist() == [True, False]
