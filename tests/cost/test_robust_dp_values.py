"""The robust program against dense loops: averages, lookups of boxes, the sweep in two dimensions and what leaves the grid."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Averager, Grid, RangeMax, _average_matrices
from gpsafe.cost.pruned import PrunedSession
from gpsafe.cost.robust_dp import RobustDP, sweep
from gpsafe.cost.to_go import CostToGo
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import HingeCost, IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task

tensor = partial(torch.tensor, dtype=torch.float64)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def phi(v: float) -> float:
    return 0.5 * math.erfc(-v / math.sqrt(2))


GRID = Grid(Box(tensor([-1.0, 0.5]), tensor([2.0, 1.5])), (6, 4), (2, 3))


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-1.3, 0.9), (0.1, 0.7), (-3.0, 3.0)])
@pytest.mark.parametrize("cells", [7, 30, 100])
def test_a_state_is_near_every_cell_that_holds_it(ends, cells):
    """Just beside an edge, where a division rounds it to the neighbour, whose bounds say nothing of it."""
    grid = Grid(Box(tensor([ends[0]]), tensor([ends[1]])), (cells,))
    low, high = grid.centers - 0.5 * grid.size, grid.centers + 0.5 * grid.size
    missed = 0
    for toward in (-math.inf, math.inf):
        x = torch.cat([low, high])
        for _ in range(4):
            holds = (x >= low.T) & (x <= high.T)  # (states, cells)
            near = torch.zeros_like(holds).scatter(1, grid.near(x).clamp_min(0), value=True)
            inside = grid.near(x).amin(-1) >= 0
            assert torch.equal(inside, grid.index(x) >= 0)
            assert not bool((holds & ~near)[inside].any())
            missed += int((~holds[inside].gather(1, grid.index(x)[inside, None])).sum())
            x = torch.nextafter(x, torch.full_like(x, toward))
    assert missed > 0 or (cells, ends) != (7, (-1.0, 1.0))  # by the index alone


def test_cells_near_a_state_are_the_product_of_those_of_its_axes():
    x = tensor([[-0.5, 0.75], [-0.75, 0.75], [-0.75, 0.6], [-0.5, 0.5], [-1.01, 0.6], [1.99, 1.49]])
    expected = [{0, 1, 4, 5}, {0, 1}, {0}, {0, 4}, {-1}, {23}]
    assert [set(row) for row in GRID.near(x).tolist()] == expected
    assert GRID.near(x).shape == (6, 4) and GRID.near(x[:2].unsqueeze(0)).shape == (1, 2, 4)


def test_cells_are_numbered_row_by_row():
    assert GRID.size.tolist() == pytest.approx([0.5, 0.25]) and GRID.num == 24
    exact = [[-1 + 0.5 * (i + 0.5), 0.5 + 0.25 * (j + 0.5)] for i in range(6) for j in range(4)]
    torch.testing.assert_close(GRID.centers, tensor(exact))
    assert GRID.index(GRID.centers).tolist() == list(range(24))
    edges = tensor([[-1.0, 0.5], [-0.5, 0.5], [-1.01, 0.6], [2.0, 0.6], [1.99, 1.49], [0.0, 1.5], [0.0, 0.49]])
    assert GRID.index(edges).tolist() == [0, 4, -1, -1, 23, -1, -1]
    line = Grid(Box(tensor([0.0]), tensor([1.0])), (4,))
    assert line.split == (1,) and line.index(tensor([[0.1], [0.6], [1.0], [-0.1]])).tolist() == [0, 2, -1, -1]
    part = GRID.window((1, 2), (4, 2))
    assert part.cells == (4, 1) and part.split == (2, 3)
    assert torch.equal(part.box.lower, tensor([-0.5, 1.0])) and torch.equal(part.box.upper, tensor([1.5, 1.25]))
    assert GRID.window((0, 0), (5, 3)).cells == GRID.cells


@pytest.mark.parametrize(("first", "last"), [((-1, 0), (2, 2)), ((0, 0), (6, 3)), ((3, 0), (2, 3)), ((0, 2), (5, 4))])
def test_windows_beyond_the_grid_are_refused(first, last):
    with pytest.raises(ValueError, match=r"Grid.window: expected first"):
        GRID.window(first, last)


@pytest.mark.parametrize(("cells", "split"), [((2,), ()), ((2, 2), (1,)), ((2, 0), ()), ((2, 2), (1, 0))])
def test_bad_grids_are_refused(cells, split):
    with pytest.raises(ValueError, match="Grid: expected"):
        Grid(GRID.box, cells, split)
    with pytest.raises(ValueError, match="a box with interior"):
        Grid(Box(tensor([0.0, 0.0]), tensor([1.0, 0.0])), (2, 2))


@pytest.mark.parametrize(("split", "std"), [(1, 0.3), (3, 0.3), (2, 0.04), (2, 0.0)])
def test_averages_are_differences_of_distribution_functions(split, std):
    low, width, cells = -0.7, 0.2, 5
    inner, strip = _average_matrices(width, cells, split, std)
    eps = width / (2 * split)
    for row in range(cells * split):
        y = low + (row + 0.5) * width / split
        edge = [low + i * width for i in range(cells + 1)]
        if std == 0.0:
            assert inner[row].tolist() == [float(i == row // split + 1) for i in range(cells + 2)]
            assert strip[row].tolist() == [0.0] * (cells + 1)
            continue
        near = [phi((e + eps - y) / std) - phi((e - eps - y) / std) for e in edge]
        gaps = [phi((b - eps - y) / std) - phi((a + eps - y) / std) for a, b in itertools.pairwise(edge)]
        outer = [phi((edge[0] - eps - y) / std), 1 - phi((edge[-1] + eps - y) / std)]
        assert strip[row].tolist() == pytest.approx(near, abs=1e-15)
        exact = [outer[0], *(max(0.0, g) for g in gaps), outer[1]]
        assert inner[row].tolist() == pytest.approx(exact, abs=1e-15)
        assert float(inner[row].sum() + strip[row].sum()) == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("far", [2.0**10, 2.0**20])
def test_averages_do_not_depend_on_where_the_grid_lies(far):
    """At 10⁶ positions are rounded by 10⁻¹⁰: of cells of 5·10⁻⁵ that took 4·10⁻⁷ of the ceiling off a bound in five stages."""
    unit, value = 2.0**-10, uniform(4, 1, 40)
    near, there = (Grid(Box(tensor([c - unit]), tensor([c + unit])), (40,), (2,)) for c in (0.0, far))
    one, other = (Averager(grid, tensor([2e-5]), value.device)(value, 1.0) for grid in (near, there))
    assert torch.equal(near.size, there.size) and torch.equal(one, other)


def test_values_are_rounded_up_by_a_share_of_the_ceiling():
    """They err by one: at a ceiling of 10⁸ the exact value was above by 10⁻⁸. In other units it is the same program."""
    found = []
    for ceiling in (1e8, 1.0, 1e-8):
        dp, F, policies = program(horizon=4, cost=HingeCost(tensor([500 * ceiling]), 300 * ceiling, ceiling))
        cells = dp.enclosure(F, policies)
        found.append((dp.upper(cells) / ceiling, dp.lower(cells) / ceiling))
    assert 0.01 < float(found[1][0].min()) < 1.0
    for other in (found[0], found[2]):
        for a, b in zip(found[1], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-18)


def dense(grid: Grid, value: Tensor, outside: float, std: list[float]) -> Tensor:
    """One axis after the other with whole matrices, in loops: (n1[, n2]) → (S1[, S2])."""
    for axis in reversed(range(value.ndim)):
        A, E = _average_matrices(float(grid.size[axis]), grid.cells[axis], grid.split[axis], std[axis])
        rows = value.movedim(axis, -1)
        padded = torch.nn.functional.pad(rows, (1, 1), value=outside)
        edges = torch.stack([torch.maximum(padded[..., i], padded[..., i + 1]) for i in range(rows.shape[-1] + 1)], -1)
        value = (padded @ A.T + edges @ E.T).movedim(-1, axis)
    return value


@pytest.mark.parametrize("std", [[0.4, 0.1], [0.05, 0.3], [0.0, 0.1], [0.2, 0.0]])
def test_averages_over_a_plane_are_those_of_whole_matrices(std):
    value, outside = uniform(1, 2, 6, 4), 1.7
    found = Averager(GRID, tensor(std), value.device)(value, outside)
    for p in range(2):
        torch.testing.assert_close(found[p], dense(GRID, value[p], outside, std), rtol=0, atol=1e-13)


@pytest.mark.parametrize("std", [0.004, 0.05, 0.6])
def test_bands_of_a_long_axis_leave_nothing_out(std):
    grid = Grid(Box(tensor([0.0]), tensor([2.0])), (150,), (2,))
    value = uniform(2, 3, 150)
    found = Averager(grid, tensor([std]), value.device)(value, 1.4)
    for p in range(3):
        torch.testing.assert_close(found[p], dense(grid, value[p], 1.4, [std]), rtol=0, atol=1e-13)
    full = Averager(grid, tensor([std]), value.device)(torch.full_like(value, 1.4), 1.4)
    torch.testing.assert_close(full, torch.full_like(full, 1.4), rtol=0, atol=1e-13)


def largest(grid: Grid, table: Tensor, low: Tensor, high: Tensor, outside: float) -> float:
    """max over the sub-cells that the closed box touches; `outside` for a box that leaves the grid or is none."""
    if not (bool((low >= grid.box.lower).all()) and bool((high <= grid.box.upper).all()) and bool((low <= high).all())):
        return outside
    parts = []
    for i in range(grid.box.dim):
        width, n = float(grid.size[i]) / grid.split[i], grid.cells[i] * grid.split[i]
        a, b = ((float(v[i]) - float(grid.box.lower[i])) / width for v in (low, high))
        parts.append([k for k in range(n) if k <= b + 1e-9 and k + 1 > a - 1e-9])
    if grid.box.dim == 1:
        return max(float(table[k]) for k in parts[0])
    return max(float(table[k, m]) for k in parts[0] for m in parts[1])


@pytest.mark.parametrize("grid", [GRID, Grid(Box(tensor([-1.0]), tensor([2.0])), (13,), (3,)), Grid(GRID.box, (2, 9))])
def test_the_maximum_over_a_box_is_that_of_a_loop(grid):
    shape = [n * s for n, s in zip(grid.cells, grid.split, strict=True)]
    table = uniform(3, 2, *shape)
    size = grid.box.upper - grid.box.lower
    count = 60
    low = grid.box.lower + (1.1 * uniform(4, 2, count, grid.box.dim) - 0.05) * size
    high = low + uniform(5, 2, count, grid.box.dim).square() * size
    low[0, 0], high[0, 0] = grid.box.lower, grid.box.upper  # the whole grid, and its corners
    high[0, 1] = low[0, 1] = grid.box.upper
    high[0, 2] = low[0, 2] = grid.box.lower
    low[1, 0] = float("nan")
    high[1, 1] = low[1, 1] - 0.1
    found = RangeMax.build(grid, low, high)(table, 2.5)
    exact = [[largest(grid, table[p], low[p, n], high[p, n], 2.5) for n in range(count)] for p in range(2)]
    assert torch.equal(found, tensor(exact))
    outside = (found == 2.5).double().mean()
    assert 0.1 < float(outside) < 0.9 and float(found[0, 0]) == float(table[0].max())


def test_a_box_that_ends_at_an_edge_touches_both_neighbours():
    grid = Grid(Box(tensor([0.0]), tensor([1.0])), (4,))
    table = tensor([[1.0, 5.0, 2.0, 7.0]])
    low, high = tensor([[[0.1], [0.25], [0.5 + 1e-11], [0.5 + 1e-8]]]), tensor([[[0.25], [0.4], [0.6], [0.75 - 1e-11]]])
    assert RangeMax.build(grid, low, high)(table, 9.0).tolist() == [[5.0, 5.0, 5.0, 7.0]]


@pytest.mark.parametrize("horizon", [0, 1, 2, 4])
def test_the_sweep_in_a_plane_is_the_recursion_of_dense_loops(horizon):
    std, rate = [0.2, 0.1], 1.3
    low = GRID.box.lower + 1.05 * uniform(6, 2, 24, 2) * (GRID.box.upper - GRID.box.lower)
    high = low + 0.3 * uniform(7, 2, 24, 2)
    stage = uniform(8, 2, 24)
    found = sweep(Averager(GRID, tensor(std), low.device), low, high, stage, horizon=horizon, outside_rate=rate)
    for p in range(2):
        value = torch.zeros(24).double()
        for steps in range(horizon):  # so many steps are left after this one
            table = dense(GRID, value.reshape(6, 4), steps * rate, std)
            value = stage[p] + tensor([largest(GRID, table, low[p, n], high[p, n], steps * rate) for n in range(24)])
        torch.testing.assert_close(found[p], value, rtol=0, atol=1e-12)


def program(*, horizon=5, cost=None, chunk=150_000, norm=0.5, scale=0.05):
    """x⁺ = 0.9x + 0.3u + f on [−1, 1] from 0.3, c = 2·1{x > 0.6}."""
    cost = HingeCost(tensor([1000.0]), 600.0, 2.0) if cost is None else cost
    std = tensor([0.1])
    dp = RobustDP(
        Grid(Box(tensor([-1.0]), tensor([1.0])), (20,)), Task(tensor([0.3]), horizon, cost, 0.2, std), chunk=chunk
    )
    known = AffineKnown(tensor([[0.9]]), tensor([[0.3]]), tensor([0.0]))
    model = GP.create(kernels.rbf([1.0, 1.0], scale), 0.01, nx=1, nu=1, noise_std=std, prior=known)
    policies = AffinePolicies(
        tensor([[0.0], [0.4], [-0.2]]), tensor([[[-0.5]], [[0.3]], [[0.0]]]), Box(-torch.ones(1), torch.ones(1))
    )
    return dp, ConfidenceSet(Mixture(rkhs_norm=norm, subgaussian=0.1, delta=0.1)).update(model), policies


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_the_value_is_a_sweep_and_one_step_from_the_initial_state(horizon):
    dp, F, policies = program(horizon=horizon)
    cells = dp.enclosure(F, policies)
    assert cells.centers.shape == (21, 1) and float(cells.centers[20]) == 0.3
    assert cells.radius[:20].flatten().tolist() == pytest.approx([0.05] * 20) and float(cells.radius[20]) == 0.0
    low, high = cells.boxes()
    stage = tensor([0.0] * 15 + [2.0] * 5 + [0.0])
    stage[15] = 2.0  # the cell from 0.5 to 0.6 ends at the edge
    stage = dp.cost.upper(cells.centers - cells.radius, cells.centers + cells.radius)
    assert float(stage[20]) == 0.0 and stage[16:20].tolist() == [2.0] * 4 and stage[:15].tolist() == [0.0] * 15
    for p in range(3):
        value = torch.zeros(20).double()
        for steps in range(horizon - 1):
            table = dense(dp.grid, value, 2.0 * steps, [0.1])
            value = stage[:20] + tensor(
                [largest(dp.grid, table, low[p, n], high[p, n], 2.0 * steps) for n in range(20)]
            )
        table, outside = dense(dp.grid, value, 2.0 * (horizon - 1), [0.1]), 2.0 * (horizon - 1)
        exact = float(stage[20]) + largest(dp.grid, table, low[p, 20], high[p, 20], outside)
        exact = exact if horizon > 1 else 0.0
        assert float(dp.upper(cells)[p]) == pytest.approx(min(2.0 * horizon, exact + 1e-9 * (2.0 + exact)), abs=1e-13)
    assert horizon < 5 or float(dp.upper(cells).min()) < 0.9 * 2.0 * horizon
    assert torch.equal(program(horizon=horizon, chunk=20)[0].upper(cells), dp.upper(cells))
    interval = program(horizon=horizon, chunk=40)[0].evaluate(F, policies)
    torch.testing.assert_close(interval.upper, dp.upper(cells.refine(F)), rtol=0, atol=1e-13)
    assert torch.equal(interval.lower, torch.zeros(3).double())
    assert torch.equal(interval.vacuous, interval.upper >= 2.0 * horizon)


@pytest.mark.parametrize(("chunk", "sizes"), [(20, [1, 1, 1]), (59, [2, 1]), (60, [3]), (3, [1, 1, 1])])
def test_a_chunk_counts_policies_times_cells(chunk, sizes, monkeypatch):
    dp, F, policies = program(horizon=2, chunk=chunk)
    found, honest = [], RobustDP._chunk

    def counted(self, low, high, stage, rate):
        found.append(low.shape[0])
        return honest(self, low, high, stage, rate)

    monkeypatch.setattr(RobustDP, "_chunk", counted)
    upper = dp.upper(dp.enclosure(F, policies).refine(F))
    assert found == sizes
    assert torch.equal(dp.evaluate(F, policies).upper, upper) and found == sizes + sizes


@pytest.mark.parametrize("field", [{"name": "other"}, {"sound": True}, {"_average": None}])
def test_what_a_program_is_cannot_be_handed_in(field):
    dp, _, _ = program()
    with pytest.raises(TypeError, match="unexpected keyword"):
        RobustDP(dp.grid, dp.task, **field)
    assert dp.name == "robust-dp" and dp.sound


def test_what_leaves_the_grid_or_has_no_number_costs_the_ceiling_for_the_rest():
    dp, F, policies = program(horizon=5)
    cells = dp.enclosure(F, policies)
    gone = replace(cells, low=cells.high + 1.0, high=cells.high)  # empty: anything may happen
    assert dp.upper(gone).tolist() == pytest.approx([8.0 + 10e-9] * 3, abs=1e-12)
    low = cells.low.clone()
    low[1, 0] = cells.high[1, 0] + 1.0  # in one cell, of one policy
    one = dp.upper(replace(cells, low=low))
    assert float(one[1]) == pytest.approx(8.0 + 10e-9, abs=1e-12)
    assert torch.equal(one[[0, 2]], dp.upper(cells)[[0, 2]])
    interval = dp.evaluate(replace(F, bound=replace(F.bound, rkhs_norm=50.0)), policies)
    assert interval.upper.tolist() == pytest.approx([8.0] * 3, abs=1e-7) and not bool(interval.vacuous.any())
    exact = cells.with_residual(torch.zeros_like(cells.low))
    assert bool((dp.lower(gone) == 0.0).all()) and bool((dp.lower(exact) <= dp.upper(exact)).all())


class Strange(HingeCost):
    """Says NaN, −1 and 9 of some cells."""

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        middle = (lower + upper)[..., 0] / 2
        value = torch.where((middle > 0.25) | (upper[..., 0] > 0.6), torch.nan, 0.0 * middle)
        return torch.where(middle < -0.8, -1.0, torch.where(middle < -0.5, 9.0, value))


def test_a_cost_that_is_no_number_of_its_range_counts_as_the_ceiling():
    strange, F, policies = program(horizon=1, cost=Strange(tensor([1000.0]), 600.0, 2.0))
    assert strange.upper(strange.enclosure(F, policies)).tolist() == [2.0] * 3
    longer = program(horizon=3, cost=Strange(tensor([1000.0]), 600.0, 2.0))[0]
    cells = longer.enclosure(F, policies)
    plain = torch.where((cells.centers[:, 0] < -0.5) | (cells.centers[:, 0] > 0.25), 2.0, 0.0 * cells.centers[:, 0])
    assert 0 < int((plain == 0).sum()) < 20
    raw = longer._run(cells, plain[None], 2.0)
    torch.testing.assert_close(longer.upper(cells), raw + 1e-9 * (2.0 + raw), rtol=1e-14, atol=0)


def test_exploration_charges_the_metric_inside_and_the_largest_deviation_outside():
    dp, F, policies = program(horizon=4, scale=0.09)
    cells, std = dp.enclosure(F, policies), 0.1 * uniform(9, 3, 21)
    low, high = cells.boxes()
    stage = std + cells.metric[..., 0]
    for p in range(3):
        value = torch.zeros(20).double()
        for steps in range(3):
            table = dense(dp.grid, value, 0.3 * steps, [0.1])
            value = stage[p, :20] + tensor(
                [largest(dp.grid, table, low[p, n], high[p, n], 0.3 * steps) for n in range(20)]
            )
        exact = float(stage[p, 20]) + largest(dp.grid, dense(dp.grid, value, 0.9, [0.1]), low[p, 20], high[p, 20], 0.9)
        outward = exact + 1e-9 * (0.3 + exact)
        assert float(dp.exploration(cells, std)[p]) == pytest.approx(outward, abs=1e-12)
    gone = replace(cells, low=cells.high + 1.0, high=cells.high)
    torch.testing.assert_close(dp.exploration(gone, std), stage[:, 20] + 0.9)
    metric = tensor([0.3, 0.4]).expand(3, 21, 2)
    two = replace(gone, kernels=(*cells.kernels, kernels.rbf([1.0, 1.0], 0.16)), metric=metric)
    torch.testing.assert_close(dp.exploration(two, std), std[:, 20] + 0.5 + 1.5)
    std[:, 20] = float("nan")
    torch.testing.assert_close(dp.exploration(gone, std), torch.full((3,), 1.2).double())
    with pytest.raises(ValueError, match=r"RobustDP.exploration: expected kernels of bounded variance"):
        dp.exploration(replace(cells, kernels=(kernels.linear(1.0),)), std)


def test_a_lower_value_rounds_down_and_takes_the_least_cost():
    """The infimum side of the same recursion: −lower is the sweep of −c with 0 outside."""
    cost = HingeCost(tensor([[1.0], [-1.0]]), tensor([0.0, 0.0]))  # |x|: a cell's least value is at either end
    dp, F, policies = program(horizon=3, cost=cost)
    cells = dp.enclosure(F, policies)
    low, high = cells.boxes()
    stage = -cost.lower(cells.centers - cells.radius, cells.centers + cells.radius)
    assert float(stage[20]) == pytest.approx(-float(cost(tensor([0.3]))))
    for p in range(3):
        value = torch.zeros(20).double()
        for _ in range(2):
            table = dense(dp.grid, value, 0.0, [0.1])
            value = stage[:20] + tensor([largest(dp.grid, table, low[p, n], high[p, n], 0.0) for n in range(20)])
        exact = float(stage[20]) + largest(dp.grid, dense(dp.grid, value, 0.0, [0.1]), low[p, 20], high[p, 20], 0.0)
        assert float(dp.lower(cells)[p]) == pytest.approx(-exact - 1e-9 * (1 + abs(exact)), abs=1e-13)
    assert float(dp.lower(cells).max()) > 0


def test_averages_on_three_axes_are_those_along_each():
    """Of a product of functions ≥ 0 that ends with the grid: the product of the averages."""
    cells, split, std = (3, 4, 5), (2, 1, 3), torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
    box = Box([-1.0, 0.0, 1.0], [1.0, 1.0, 3.0])
    g = torch.Generator().manual_seed(0)
    parts = [torch.rand(1, n, dtype=torch.float64, generator=g) for n in cells]
    found = Averager(Grid(box, cells, split), std, torch.device("cpu"))(torch.einsum("pi,pj,pk->pijk", *parts), 0.0)
    along = [
        Averager(Grid(Box(box.lower[i : i + 1], box.upper[i : i + 1]), cells[i : i + 1], split[i : i + 1]), std[i : i + 1],
                 torch.device("cpu"))(parts[i], 0.0)
        for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.einsum("pi,pj,pk->pijk", *along), rtol=1e-12, atol=0)


def test_without_noise_a_policy_that_costs_nothing_is_bounded_by_nothing():
    """So that a budget of 0 can be met: then a bound is a sum of stage costs, and 0 stays 0."""
    one = torch.ones(1, 1).double()
    known, still = AffineKnown(0.9 * one, 0.3 * one, tensor([0.0])), tensor([0.0])
    model = GP.create(kernels.rbf([1.0, 1.0], 1.0), 0.01, nx=1, nu=1, noise_std=still, prior=known, mode="theory")
    F = ConfidenceSet(Mixture(rkhs_norm=0.01, subgaussian=0.1, delta=0.1)).update(model)
    policies = AffinePolicies(tensor([[0.0], [0.2], [0.9]]), torch.zeros(3, 1, 1).double(), Box([-1.0], [1.0]))
    task = Task(tensor([0.5]), 10, IndicatorCost(one, tensor([1.2])), 0.0, still)
    dp = RobustDP(Grid(Box([-3.0], [3.0]), (240,)), task)
    upper = dp.upper(dp.enclosure(F, policies).refine(F))
    assert upper[:2].tolist() == [0.0, 0.0] and 5.0 < float(upper[2]) < 7.0
    session = PrunedSession(dp, F, policies, torch.Generator().manual_seed(0))
    assert session.upper(torch.arange(3)).tolist()[:2] == [0.0, 0.0]
    value = CostToGo.of(dp, F, policies.select(torch.tensor([1])), Box([-1.0], [1.0]))
    assert value.value(tensor([0.5]), 10) == 0.0 == value.ahead(tensor([0.5]), tensor([0.2]), 10)
    noisy = replace(dp, task=task.with_(noise_std=tensor([1e-6])))
    assert 0 < float(noisy.upper(noisy.enclosure(F, policies).refine(F))[0]) <= 2e-9
