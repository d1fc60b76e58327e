"""One step of the robust program on a partition: the largest average over each box of next means (theory §3.3, §3.12).

A leaf's box of next means is looked up on the finest level, no finer than its own, on which it spans few enough sub-cells;
there V in a cell is the largest value of the leaves in it, or that of the leaf that holds it, which is no smaller than V. A
level is worked on in *tiles*, blocks of cells with a margin for the noise, and only where boxes lie. A margin of six σ leaves
out a probability below 2e-9, which is charged the value outside, the largest there is, as is everything beyond the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.cost.grid import Averager, Grid, RangeMax, ravel, touched
from gpsafe.cost.partition import Partition
from gpsafe.sets import Box

TILE = {1: 1024, 2: 16, 3: 8}  # cells along an axis, at least; four coordinates are worked on whole
SPAN = {1: 1024, 2: 128, 3: 32, 4: 32}  # sub-cells of a level that a box may span along an axis
WHOLE = 300_000  # sub-cells of a level that is worked on whole if its tiles were no fewer cells
TABLES = 200_000  # numbers in the tables that are worked on at a time: few enough to stay in cache
MARGIN = 6.0  # standard deviations


@dataclass(frozen=True, slots=True, eq=False)
class _Tiles:
    """Some tiles of a level, for some boxes: K tiles of (c_1, …) cells, Q boxes."""

    average: Averager
    cells: Tensor  # nodes of the cells, (K, c_1, …)
    lookup: RangeMax  # of Q boxes in P · K tables
    answers: Tensor  # which entries of the flattened (P, N) they are, (Q,)


@dataclass(frozen=True, slots=True, eq=False)
class Multilevel:
    """sup over m in [low, high] of E V(m + w), for V on the leaves of a partition, rounded up."""

    partition: Partition
    shape: tuple[int, int]  # (P, N)
    tiles: tuple[_Tiles, ...]

    @staticmethod
    def build(partition: Partition, noise_std: Tensor, low: Tensor, high: Tensor) -> Multilevel:
        """For boxes [low, high] of the next means of P policies from N leaves, (P, N, nx) each."""
        waiting, tiles, levels = torch.ones(low.shape[1], dtype=torch.bool, device=low.device), [], partition.level
        for level in reversed(range(partition.depth)):
            grid = partition.level_grid(level)
            tried = torch.nonzero(waiting & (levels >= level)).flatten()
            first, last, outside = touched(grid, low[:, tried], high[:, tried])
            span = (last - first).amax((0, 2))
            few = torch.ones_like(span, dtype=torch.bool) if level == 0 else span < SPAN[grid.box.dim]
            waiting[tried[few]] = False
            boxes = first[:, few], last[:, few]
            tiles += _tiled(partition, level, noise_std, tried[few], boxes, outside[:, few])
        return Multilevel(partition, (low.shape[0], low.shape[1]), tuple(tiles))

    def __call__(self, value: Tensor, outside: float, rounding: float = 1.0) -> Tensor:
        """V on the leaves (P, N) → the suprema, (P, N); V ≤ outside, which is charged beyond the grid.

        Args:
            value: V.
            outside: of what leaves the grid.
            rounding: 1: averages and V on coarser cells are rounded up; −1: down.
        """
        nodes = torch.nn.functional.pad(rounding * self.partition.spread(rounding * value), (0, 1), value=outside)
        result = torch.full((math.prod(self.shape),), outside, dtype=value.dtype, device=value.device)
        for part in self.tiles:
            cells = nodes[:, part.cells].flatten(0, 1)
            table = part.average(cells, outside) if rounding > 0 else -part.average(-cells, -outside)
            result[part.answers] = part.lookup(table, outside)[0]
        return result.reshape(self.shape)


def _tiled(
    partition: Partition, level: int, noise_std: Tensor, leaves: Tensor, boxes: tuple[Tensor, Tensor], outside: Tensor
) -> list[_Tiles]:
    """The tiles of a level for some leaves (n,): their index boxes, first and last (P, n, nx), and which lie outside (P, n)."""
    grid, found = partition.level_grid(level), []
    policies, axes = outside.shape[0], range(grid.box.dim)
    policy, row = torch.nonzero(~outside).unbind(-1)
    if not len(row):
        return found
    first, last = (end[policy, row] for end in boxes)
    reach = [-(-int(most) // s) for most, s in zip((last - first).amax(0), grid.split, strict=True)]
    sizes, reach, margins = _tile(grid, noise_std, reach)
    at = first // _subcells(grid, sizes)
    counts = [-(-n // size) for n, size in zip(grid.cells, sizes, strict=True)]
    used, which = torch.unique(ravel(at.unbind(-1), counts), return_inverse=True)
    widths = [sizes[i] + reach[i] + 2 * margins[i] for i in axes]
    if len(used) * math.prod(widths) >= grid.num and grid.num * math.prod(grid.split) <= WHOLE:
        sizes, reach, margins = list(grid.cells), [0] * len(axes), [0] * len(axes)
        at, counts, widths, used, which = torch.zeros_like(at), [1] * len(axes), sizes, used[:1] * 0, which * 0
    corner = first - at * _subcells(grid, sizes)
    places = torch.stack(torch.unravel_index(used, counts), dim=-1)
    rows = [(sizes[i] + reach[i]) * grid.split[i] for i in axes]
    patch = Grid(Box(torch.zeros_like(grid.size), grid.size * grid.size.new_tensor(widths)), tuple(widths), grid.split)
    average = Averager(patch, noise_std, first.device, margins)
    cover, order = partition.cover(level).flatten(), torch.argsort(which, stable=True)
    ends = torch.nn.functional.pad(torch.bincount(which, minlength=len(used)).cumsum(0), (1, 0))
    group = max(1, TABLES // (policies * math.prod(rows)))
    for start in range(0, len(used), group):
        part = places[start : start + group]
        mine = order[int(ends[start]) : int(ends[min(start + group, len(used))])]
        table = policy[mine] * len(part) + which[mine] - start
        spans = [end[mine].unsqueeze(0) for end in (corner, corner + last - first)]
        inside = torch.zeros_like(table, dtype=torch.bool).unsqueeze(0)
        lookup = RangeMax.among(spans[0], spans[1], inside, rows, table.unsqueeze(0))
        answers = policy[mine] * partition.num + leaves[row[mine]]
        found.append(
            _Tiles(average, _cells(cover, grid, part, sizes, margins, widths, partition.nodes), lookup, answers)
        )
    return found


def _tile(grid: Grid, noise_std: Tensor, reach: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Cells of a tile, of what boxes reach beyond it and of its margins, along each axis."""
    margins = [math.ceil(MARGIN * float(std) / float(size)) for std, size in zip(noise_std, grid.size, strict=True)]
    least = TILE.get(grid.box.dim, max(grid.cells))
    sizes = [max(least, 1 << (max(2 * m, r) - 1).bit_length()) for m, r in zip(margins, reach, strict=True)]
    for i, n in enumerate(grid.cells):  # a tile that is nearly all of an axis is all of it, and has no margin
        if sizes[i] + reach[i] + 2 * margins[i] >= n:
            sizes[i], reach[i], margins[i] = n, 0, 0
    return sizes, reach, margins


def _subcells(grid: Grid, cells: Sequence[int]) -> Tensor:
    return torch.tensor([n * s for n, s in zip(cells, grid.split, strict=True)], device=grid.box.lower.device)


def _cells(
    cover: Tensor,
    grid: Grid,
    places: Tensor,
    sizes: Sequence[int],
    margins: Sequence[int],
    widths: Sequence[int],
    beyond: int,
) -> Tensor:
    """Nodes of the cells of tiles at `places` (K, nx), margin included; `beyond` for what lies outside the grid."""
    cell, inside = torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.bool)
    for i, n in enumerate(grid.cells):
        along = places[:, i : i + 1] * sizes[i] - margins[i] + torch.arange(widths[i], device=places.device)
        along = along.reshape(len(along), *(widths[i] if j == i else 1 for j in range(len(widths))))
        cell = cell.to(along.device) * n + along.clamp(0, n - 1)
        inside = inside.to(along.device) & (along >= 0) & (along < n)
    return torch.where(inside, cover[cell], beyond)
