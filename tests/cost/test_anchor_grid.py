"""The grid of anchors goes on with the confidence set it was filled from, and with no other."""

import math
from dataclasses import replace

import pytest
import torch
from cost_cases import make_case

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.local_affine import EMPTY, LocalAffine
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box

BOUND = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)


def confidence(*, dims: int = 0, lengthscale: float = 1.0, outputs: tuple[int, ...] = (0,)) -> ConfidenceSet:
    kernel = kernels.rbf(lengthscale, 1.0, dims=[dims])
    return ConfidenceSet(BOUND).update(GP.create(kernel, 0.01, nx=2, nu=1, noise_std=0.1, outputs=outputs))


@pytest.mark.parametrize("other", [{"dims": 1}, {"lengthscale": 2.0}, {"outputs": (1,)}])
def test_a_confidence_set_over_other_kernels_or_outputs_is_refused(other):
    box = Box(vector(-1.0, -1.0, -1.0), vector(1.0, 1.0, 1.0))
    grid = AnchorGrid.create(box, torch.ones(3, dtype=torch.float64)).refine(confidence())
    assert grid.refine(confidence()) is grid  # equal objects are the same set
    with pytest.raises(ValueError, match="continues the last one"):
        grid.refine(confidence(**other))


BOX = Box(vector(-1.0, 2.0, 0.0), vector(1.0, 3.0, 4.0))


def test_counts_keep_the_spacing_and_one_point_stands_for_an_ignored_axis():
    grid = AnchorGrid.create(BOX, vector(0.75, math.inf, 2.0))
    assert grid.counts == (4, 1, 3)
    axes = [-1.0, -1 / 3, 1 / 3, 1.0], [2.5], [0.0, 2.0, 4.0]
    exact = [[a, b, c] for a in axes[0] for b in axes[1] for c in axes[2]]
    torch.testing.assert_close(grid.anchors, torch.tensor(exact, dtype=torch.float64))
    assert AnchorGrid.create(BOX, vector(2.0, 1.0, 4.0)).counts == (2, 2, 2)
    for bad in (vector(1.0, 1.0), vector(1.0, 0.0, 1.0), vector(1.0, -1.0, 1.0)):
        with pytest.raises(ValueError, match="AnchorGrid: expected a positive spacing"):
            AnchorGrid.create(BOX, bad)


def numbered(grid: AnchorGrid, *, gradients: bool = True) -> AnchorGrid:
    """Filled with enclosures that tell the anchors apart."""
    number = torch.arange(len(grid.anchors), dtype=torch.float64).unsqueeze(-1)
    local = LocalAffine.at(confidence(), torch.zeros(1, 3).double())
    mean, cov = number[..., None] + torch.zeros(1, 1, 4).double(), number[..., None, None] + torch.eye(4).double()
    mean, cov = (mean, cov) if gradients else (None, None)
    return replace(grid, local=replace(local, middle=number, half=0.5 + number, mean=mean, cov=cov))


@pytest.mark.parametrize("counts", [(4, 1, 3), (2, 3, 4), (1, 1, 2)])
def test_a_point_takes_the_nearest_anchor_also_outside_the_box(counts):
    grid = numbered(AnchorGrid(BOX, counts))
    g = torch.Generator().manual_seed(1)
    z = vector(0.0, 2.5, 2.0) + vector(1.5, 0.9, 3.5) * (2 * torch.rand(5, 6, 3, dtype=torch.float64, generator=g) - 1)
    local, offset = grid.around(z)
    spans = (BOX.upper - BOX.lower) / (torch.tensor(counts) - 1).clamp_min(1)
    weights = torch.where(torch.tensor(counts) > 1, 1 / spans, 0.0)  # an axis with one point does not choose
    gaps = ((z.unsqueeze(-2) - grid.anchors) * weights).square().sum(-1)
    nearest = gaps.argmin(-1)
    assert torch.equal(local.middle[..., 0], nearest.double()) and torch.equal(local.half, 0.5 + local.middle)
    assert torch.equal(local.mean[..., 0, 2], nearest.double())
    assert torch.equal(local.cov[..., 0, 1, 1], 1.0 + nearest.double())
    torch.testing.assert_close(offset, z - grid.anchors[nearest])
    assert numbered(AnchorGrid(BOX, counts), gradients=False).around(z)[0].mean is None
    lost, _ = grid.around(vector(math.nan, 2.5, 0.0))
    assert float(lost.middle) < len(grid.anchors)
    assert local.norm is grid.local.norm and local.cap is grid.local.cap and local.moduli is grid.local.moduli


def test_generations_are_intersected_and_value_and_slope_come_from_the_newest():
    case = make_case("1d", (4, 12))
    whole = case.confidence
    first = type(whole)(whole.bound, whole.generations[:2])
    grid = AnchorGrid.create(Box(vector(-1.0, -1.0), vector(1.0, 1.0)), vector(0.5, 1.0))
    with pytest.raises(ValueError, match="at least one model"):
        grid.refine(type(whole)(whole.bound))
    early = grid.refine(first)
    late = early.refine(whole)
    low, high = whole.bounds(grid.anchors)
    torch.testing.assert_close(late.local.middle, (low + high) / 2)
    torch.testing.assert_close(late.local.half, (high - low) / 2)
    assert bool((late.local.half < early.local.half).any()) and late.refine(whole) is late
    newest = LocalAffine.at(type(whole)(whole.bound, (whole.model,)), grid.anchors)
    torch.testing.assert_close(late.local.mean, newest.mean)
    torch.testing.assert_close(late.local.cov, newest.cov)
    assert (early.generations, late.generations) == (2, 3) and late.source is whole
    middle, half = torch.full_like(early.local.middle, 0.25), torch.full_like(early.local.half, 0.125)
    narrow = replace(early, local=replace(early.local, middle=middle, half=half)).refine(whole).local
    new_low, new_high = whole.bounds(grid.anchors, since=2)
    torch.testing.assert_close(narrow.middle - narrow.half, new_low.clamp_min(0.125))
    torch.testing.assert_close(narrow.middle + narrow.half, new_high.clamp_max(0.375))
    assert bool((new_low < 0.125).any()) and bool((new_high > 0.375).any())
    assert late.empty.shape == (0, 2)
    half = late.local.half.clone()
    half[3], half[7] = -2 * EMPTY * late.local.cap, -0.5 * EMPTY * late.local.cap
    broken = replace(late, local=replace(late.local, half=half))
    assert torch.equal(broken.empty, grid.anchors[3:4])
    with pytest.raises(ValueError, match="AnchorGrid: expected refine before use"):
        grid.around(vector(0.0, 0.0))
