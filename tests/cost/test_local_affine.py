"""Affine ranges are cut to the ball |f| ≤ B√k: parts of a set never come out wider than the set."""

import functools

import torch
from cost_cases import make_case
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds

from gpsafe.cost.local_affine import Displacements, LocalAffine


@functools.cache
def confidence_of(runs: tuple[int, ...], factor: float):
    return make_case("1d", runs, norm_factor=factor).confidence


def hull(found) -> tuple[torch.Tensor, torch.Tensor]:
    spread = found.linear.abs().sum(-1) + found.error
    return found.value - spread, found.value + spread


def over_box(
    confidence, low: torch.Tensor, high: torch.Tensor, *, gradients: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranges over boxes (*b, d), each from an anchor in its middle, the sides as generators."""
    center, radius = 0.5 * (low + high), 0.5 * (high - low)
    local = LocalAffine.at(confidence, center, gradients=gradients)
    cross = Displacements(torch.zeros_like(center), torch.diag_embed(radius), torch.zeros_like(center))
    return hull(local.range_outer(cross))


@dear()
@given(st.sampled_from([(), (20,), (4, 20)]), st.floats(0.2, 3.0), st.booleans(), st.sampled_from([0.3, 1.0]))
def test_1024_cells_are_together_no_wider_than_one(runs, size, gradients, factor):
    confidence = confidence_of(runs, factor)
    low, high = torch.tensor([-size, -0.3 * size]).double(), torch.tensor([size, 0.3 * size]).double()
    steps = torch.linspace(0, 1, 33, dtype=torch.float64)[:-1]
    corner = low + torch.cartesian_prod(steps, steps) * (high - low)
    part_low, part_high = over_box(confidence, corner, corner + (high - low) / 32, gradients=gradients)
    cap = LocalAffine.at(confidence, low).cap
    slack = 1 + 1e-9
    assert bool((part_high <= cap * slack).all()) and bool((part_low >= -cap * slack).all())
    whole_low, whole_high = over_box(confidence, low, high, gradients=gradients)
    if bool((whole_high - whole_low >= 2 * cap).all()):  # the whole got ±B√k: no part is beyond it
        assert float((part_high.max() - whole_high).max()) <= 1e-9 and float((whole_low - part_low.min()).max()) <= 1e-9


@given(seeds())
def test_a_range_that_is_not_a_number_becomes_the_ball(seed):
    local = LocalAffine.at(confidence_of((20,), 1.0), torch.zeros(3, 2, dtype=torch.float64))
    bad = [float("nan"), float("inf"), 1e308][seed % 3]
    offset = torch.tensor([[0.0, 0.0], [bad, 0.0], [0.1, 0.1]], dtype=torch.float64)
    cross = Displacements(offset, torch.zeros(3, 2, 1).double(), torch.zeros(3, 2).double())
    low, high = hull(local.range_outer(cross))
    torch.testing.assert_close(high[1], local.cap)
    torch.testing.assert_close(low[1], -local.cap)
    assert bool((high[[0, 2]] < local.cap).all())


@dear()
@given(seeds())
def test_a_seminorm_over_a_set_is_above_every_corner_and_reached_by_columns_that_are_orthogonal_or_parallel(seed):
    g = torch.Generator().manual_seed(seed)
    root, columns = (torch.randn(3, 3, dtype=torch.float64, generator=g) for _ in range(2))
    cross = Displacements(columns[:, 0], columns[:, 1:], 0.3 * torch.rand(3, dtype=torch.float64, generator=g))
    gram = (root @ root.T).unsqueeze(0)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    every = torch.cat([columns, torch.diag(cross.error)], -1)
    highest = ((root.T @ every) @ signs.T).norm(dim=0).max()
    bound = cross.seminorm(gram)
    assert float(highest) <= float(bound) * (1 + 1e-12)
    axes = torch.linalg.solve(root.T, torch.linalg.qr(columns).Q)  # orthonormal for S
    for tight, value in ((axes, 3**0.5), (axes[:, :1].expand(3, 3), 3.0)):
        cross = Displacements(tight[:, 0], tight[:, 1:], torch.zeros(3).double())
        assert abs(float(cross.seminorm(gram)) - value) < 1e-6
