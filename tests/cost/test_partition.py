"""Partitions hold every point once, and a step on them is the largest average of its definition, level by level."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.cost import multilevel
from gpsafe.cost.grid import Averager, Grid, RangeMax
from gpsafe.cost.multilevel import Multilevel
from gpsafe.cost.partition import Partition
from gpsafe.linalg import vector
from gpsafe.sets import Box

SHAPES = {1: ((5,), (2,)), 2: ((3, 4), (2, 1)), 3: ((2, 3, 2), (1, 2, 1))}


def draws(seed: int):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=g)


def partition(dim: int, seed: int, rounds: int = 3) -> Partition:
    """Some leaves halved, at random, some times; what was coarse may be halved late."""
    cells, split = SHAPES[dim]
    draw, found = (
        draws(seed),
        Partition.of(Grid(Box(vector(-1.0, 0.3, -2.0)[:dim], vector(1.3, 1.0, 5.0)[:dim]), cells, split)),
    )
    for _ in range(rounds):
        found, _ = found.halved(draw(found.num) < 0.3)
    return found


def misplaced(found: Partition, seed: int) -> int:
    """Points that do not lie in the one leaf that `index` names, or lie in another one as well."""
    box, draw = found.grid.box, draws(seed)
    x = box.lower + (box.upper - box.lower) * draw(200, box.dim)
    centers, radius = found.boxes()
    within = ((x.unsqueeze(1) - centers).abs() <= radius).all(-1)
    named = torch.zeros_like(within)
    named[torch.arange(len(x)), found.index(x)] = True
    return int((within != named).any(-1).sum())


@pytest.mark.parametrize("dim", [1, 2, 3])
@settings(max_examples=15)
@given(seeds())
def test_every_point_lies_in_exactly_one_leaf_and_that_is_the_one_named(dim, seed):
    found = partition(dim, seed)
    assert misplaced(found, seed + 1) == 0
    centers, radius = found.boxes()
    assert torch.equal(found.index(centers), torch.arange(found.num))
    assert float(found.share.sum()) == pytest.approx(1.0, abs=1e-12)
    volume = (2 * radius).prod(-1) / (found.grid.box.upper - found.grid.box.lower).prod()
    torch.testing.assert_close(found.share, volume, rtol=1e-12, atol=0)
    outside = torch.stack([found.grid.box.lower - 0.01, found.grid.box.upper, found.grid.box.upper * math.nan])
    assert found.index(outside).tolist() == [-1, -1, -1]
    assert found.num == len(centers) == len(found.level) == len(found.leaves) and found.nodes == len(
        torch.cat(found.split)
    )


@pytest.mark.parametrize("dim", [1, 2, 3])
@settings(max_examples=15)
@given(seeds())
def test_halves_know_where_they_come_from(dim, seed):
    before = partition(dim, seed, 2)
    where = draws(seed + 1)(before.num) < 0.4
    after, source = before.halved(where)
    centers, radius = after.boxes()
    old_centers, old_radius = (end[source] for end in before.boxes())
    assert bool(((centers - old_centers).abs() <= old_radius).all())
    assert torch.equal(source, before.index(centers))
    share = torch.where(where[source], 0.5, 1.0).unsqueeze(-1) * old_radius
    torch.testing.assert_close(radius, share, rtol=1e-12, atol=0)
    assert torch.bincount(source, minlength=before.num).tolist() == torch.where(where, 1 << dim, 1).tolist()
    same, nobody = after.halved(torch.zeros(after.num, dtype=torch.bool))
    assert torch.equal(nobody, torch.arange(after.num)) and same.depth == after.depth
    with pytest.raises(ValueError, match=r"Partition\.halved: expected one Boolean"):
        after.halved(where[:-1])


def test_control_a_broken_map_of_leaves_is_caught(monkeypatch):
    found = partition(2, 3)
    assert misplaced(found, 4) == 0
    turned = Partition(found.grid, tuple(p.flip(-1) if i else p for i, p in enumerate(found.positions)), found.split)
    assert misplaced(turned, 4) > 0
    shuffled = Partition(found.grid, found.positions, (found.split[0].roll(1), *found.split[1:]))
    assert misplaced(shuffled, 4) > 0


def levelled(found: Partition, value: torch.Tensor, level: int) -> torch.Tensor:
    """V on a level by the definition: of each cell the largest over the leaves that share more than an edge with it."""
    grid = found.level_grid(level)
    centers, radius = found.boxes()
    apart = (grid.centers.unsqueeze(1) - centers).abs() < radius + 0.5 * grid.size - 1e-9
    return torch.where(apart.all(-1), value.unsqueeze(1), -math.inf).amax(-1).reshape(-1, *grid.cells)


@pytest.mark.parametrize("dim", [1, 2, 3])
@settings(max_examples=12)
@given(seeds(), st.booleans(), st.sampled_from([3, 200]), st.sampled_from([0, 300_000]))
def test_a_step_is_the_largest_average_on_the_finest_level_that_is_fit(dim, seed, still, span, whole):
    found = partition(dim, seed)
    draw = draws(seed + 1)
    std = vector(0.03, 0.01, 0.1)[:dim] * (not still)
    value, box = draw(2, found.num), found.grid.box
    centre = box.lower + (box.upper - box.lower) * (1.1 * draw(2, found.num, dim) - 0.05)
    half = 0.15 * (box.upper - box.lower) * draw(2, found.num, dim)
    low, high = centre - half, centre + half
    low[0, 1], high[1, 2] = math.nan, math.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multilevel, "TILE", {1: 2, 2: 2, 3: 2})
        patch.setattr(multilevel, "SPAN", {1: span, 2: span, 3: span})
        patch.setattr(multilevel, "TABLES", 3000)
        patch.setattr(multilevel, "WHOLE", whole if dim < 3 else 300_000)  # 0: tile by tile, however many there are
        step = Multilevel.build(found, std, low, high)
    steps = {sign: step(value, 1.0, sign) for sign in (1.0, -1.0)}
    spans, wanted = [], {1.0: [], -1.0: []}
    for level in range(found.depth):
        grid = found.level_grid(level)
        average, lookup = Averager(grid, std, value.device), RangeMax.build(grid, low, high)
        wanted[1.0].append(lookup(average(levelled(found, value, level), 1.0), 1.0))
        wanted[-1.0].append(lookup(-average(levelled(found, -value, level), -1.0), 1.0))
        width = grid.size / grid.size.new_tensor(grid.split)
        ends = [((end - box.lower) / width).floor() for end in (low, high)]
        spans.append(torch.where(lookup.outside, 0.0, (ends[1] - ends[0]).amax(-1)).amax(0))
    for i in range(found.num):
        level = max([0, *(k for k in range(int(found.level[i]) + 1) if spans[k][i] < span)])
        for sign in (1.0, -1.0):
            torch.testing.assert_close(steps[sign][:, i], wanted[sign][level][:, i], rtol=0, atol=1e-9)
    assert bool((steps[1.0] >= steps[-1.0] - 1e-9).all())
    assert float(steps[1.0][0, 1]) == float(steps[1.0][1, 2]) == 1.0  # NaN and infinite boxes leave the grid


@pytest.mark.parametrize("dim", [1, 2, 3])
@settings(max_examples=10)
@given(seeds())
def test_no_mean_of_the_box_has_a_larger_average(dim, seed):
    found, draw = partition(dim, seed), draws(seed + 1)
    std, value, box = vector(0.05, 0.02, 0.3)[:dim], draw(1, found.num), found.grid.box
    centre = box.lower + (box.upper - box.lower) * (0.2 + 0.6 * draw(1, found.num, dim))
    half = 0.1 * (box.upper - box.lower) * draw(1, found.num, dim)
    most = Multilevel.build(found, std, centre - half, centre + half)(value, 1.0)
    centers, radius = found.boxes()
    corners = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=dim)), dtype=torch.float64)
    for m in (centre[0] + half[0] * corner for corner in corners):
        ends = [torch.special.ndtr((centers + sign * radius - m.unsqueeze(1)) / std) for sign in (1.0, -1.0)]
        mass = (ends[0] - ends[1]).prod(-1)
        exact = (mass * value).sum(-1) + 1.0 - mass.sum(-1)
        assert bool((most[0] >= exact - 1e-12).all())
