"""Cells of a box, Gaussian averages over them rounded up, and maxima over ranges of them: what dynamic programs stand on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.sets import Box

EDGE = 1e-9  # of a cell's width: far more than the rounding of a position


@short
@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A box cut into ``cells[i]`` equal cells along dimension i (nx ≤ 4); each cell has ``split[i]`` sub-cells for means."""

    box: Box
    cells: tuple[int, ...]
    split: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        split = self.split or (1,) * len(self.cells)
        if self.box.dim not in (1, 2, 3, 4) or len(self.cells) != self.box.dim or len(split) != self.box.dim:
            raise _require.fail("Grid", "a box of dimension 1 to 4 with one cell count per dimension", self.cells)
        for number in (*self.cells, *split):
            _require.count("Grid", "cells and split", number)
        if not bool((self.box.upper > self.box.lower).all()):
            raise _require.fail("Grid", "a box with interior", (self.box.lower.tolist(), self.box.upper.tolist()))
        object.__setattr__(self, "split", split)

    @property
    def size(self) -> Tensor:
        """Cell widths, (nx,)."""
        return (self.box.upper - self.box.lower) / self.box.lower.new_tensor(self.cells)

    @property
    def centers(self) -> Tensor:
        """Cell centres in row-major order, (N, nx)."""
        axes = [
            low + (torch.arange(n, dtype=torch.float64, device=low.device) + 0.5) * width
            for low, n, width in zip(self.box.lower, self.cells, self.size, strict=True)
        ]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))

    @property
    def num(self) -> int:
        """N = Π cells."""
        return math.prod(self.cells)

    def window(self, first: Sequence[int], last: Sequence[int]) -> Grid:
        """The same cells `first` … `last` (inclusive) of each axis only: a program on them charges what leaves them."""
        limits = zip(first, last, self.cells, strict=True)
        if not all(0 <= a <= b < n for a, b, n in limits):
            raise _require.fail("Grid.window", f"first ≤ last within {self.cells}", (tuple(first), tuple(last)))
        a = self.box.lower.new_tensor(first)
        b = self.box.lower.new_tensor(last) + 1.0
        box = Box(self.box.lower + a * self.size, self.box.lower + b * self.size)
        return Grid(box, tuple(j - i + 1 for i, j in zip(first, last, strict=True)), self.split)

    def index(self, x: Tensor) -> Tensor:
        """Row-major index of the cell of x (*b, nx), −1 outside."""
        position = ((x - self.box.lower) / self.size).floor()
        limits = torch.tensor(self.cells, device=position.device)
        inside = ((position >= 0) & (position < limits)).all(-1)
        position = torch.where(inside.unsqueeze(-1), position, 0.0).long()
        return torch.where(inside, ravel(position.unbind(-1), self.cells), -1)

    def near(self, x: Tensor) -> Tensor:
        """Indices of all cells that may hold x (*b, nx), (*b, 2^nx), with repetitions; −1 outside.

        Beside an edge `index` may round to the neighbour, whose bounds say nothing of x: the worst of these does.
        """
        position, limits = (x - self.box.lower) / self.size, torch.tensor(self.cells, device=x.device)
        inside = ((position >= 0) & (position < limits)).all(-1, keepdim=True)
        ends = [torch.where(inside, (position + side).floor(), 0.0).long() for side in (-EDGE, EDGE)]
        ends = [torch.minimum(end.clamp_min(0), limits - 1) for end in ends]
        corners = itertools.product(*(pair for pair in zip(*(end.unbind(-1) for end in ends), strict=True)))
        return torch.where(inside, torch.stack([ravel(corner, self.cells) for corner in corners], -1), -1)


def _average_matrices(width: float, cells: int, split: int, std: float) -> tuple[Tensor, Tensor]:
    """Gaussian average along one axis, wherever it begins: W = A V + E max(V₋, V₊).

    Row j is a sub-cell of half-width ε = width/(2 split) with centre y_j. For every m within ε of y_j,
    E V(m + w) ≤ Σ_i V_i P(y_j + w ∈ cell i shrunk by ε) + Σ_e max(V_{e−}, V_{e+}) P(|y_j + w − e| ≤ ε), because
    V(y + δ) for |δ| ≤ ε is V_i inside the shrunk cell and one of the two neighbours within ε of an edge.
    Columns of A: [left outside, cells…, right outside]; of E: the cells + 1 edges.
    """
    if std == 0.0:  # m + w = m stays in its own cell
        identity = torch.eye(cells, dtype=torch.float64).repeat_interleave(split, 0)
        pad = torch.zeros(cells * split, 1, dtype=torch.float64)
        return torch.cat([pad, identity, pad], -1), torch.zeros(cells * split, cells + 1, dtype=torch.float64)
    # Edges less centres in units of ε are whole numbers, so that far from zero nothing of them is rounded off.
    edges = torch.arange(cells + 1, dtype=torch.float64) * (2 * split)
    gaps, unit = edges - (2 * torch.arange(cells * split, dtype=torch.float64) + 1).unsqueeze(-1), width / (2 * split)
    left, right = (torch.special.ndtr((gaps + side) * unit / std) for side in (-1, 1))
    strip = (right - left).clamp_min(0.0)
    inner = (left[:, 1:] - right[:, :-1]).clamp_min(0.0)
    return torch.cat([left[:, :1], inner, 1.0 - right[:, -1:]], -1), strip


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Rows of the averaging matrices of one axis, cut to the columns that carry probability."""

    cells: slice  # columns of A, counted in padded cells
    edges: slice
    inner: Tensor | None
    strip: Tensor
    rest: Tensor  # probability left out: charged at the value outside, which no value exceeds


def _blocks(inner: Tensor, strip: Tensor, device: torch.device, rows: int = 64) -> list[_Block]:
    """Band structure of (A, E): blocks of rows with their non-negligible columns, transposed for use from the right."""
    blocks = []
    for start in range(0, strip.shape[0], rows):
        part_inner, part_strip = inner[start : start + rows, 1:-1], strip[start : start + rows]
        kept = []
        for part in (part_inner, part_strip):
            used = torch.nonzero((part > 1e-18).any(0)).flatten()
            kept.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0))
        a, e = part_inner[:, kept[0]], part_strip[:, kept[1]]
        rest = (1.0 - a.sum(-1) - e.sum(-1)).clamp_min(0.0)
        padded = slice(kept[0].start + 1, kept[0].stop + 1)
        block_inner = a.T.contiguous().to(device) if a.numel() else None
        blocks.append(_Block(padded, kept[1], block_inner, e.T.contiguous().to(device), rest.to(device)))
    return blocks


class Averager:
    """sup over sub-cells' positions of E V(m + w), for batched V, padded by the value outside; not for means in the outermost
    `margin` cells of each axis."""

    def __init__(
        self, grid: Grid, noise_std: Tensor, device: torch.device, margin: Sequence[int] = (0, 0, 0, 0)
    ) -> None:
        self.grid = grid
        self.axes = []
        for i in range(grid.box.dim):
            matrices = _average_matrices(float(grid.size[i]), grid.cells[i], grid.split[i], float(noise_std[i]))
            rows = slice(margin[i] * grid.split[i], (grid.cells[i] - margin[i]) * grid.split[i])
            self.axes.append(_blocks(matrices[0][rows], matrices[1][rows], device))

    def _along_last(self, value: Tensor, outside: float, axis: int) -> Tensor:
        padded = torch.nn.functional.pad(value, (1, 1), value=outside)
        peaks = torch.maximum(padded[..., :-1], padded[..., 1:])
        parts = []
        for block in self.axes[axis]:
            part = peaks[..., block.edges] @ block.strip
            if block.inner is not None:
                part += padded[..., block.cells] @ block.inner
            parts.append(part.add_(outside * block.rest))
        return torch.cat(parts, dim=-1)

    def __call__(self, value: Tensor, outside: float) -> Tensor:
        """(P, n1[, n2[, n3]]) → (P, S1[, S2[, S3]])."""
        result = value
        for axis in reversed(range(len(self.axes))):
            turned = result.movedim(axis + 1, -1).contiguous()
            result = self._along_last(turned, outside, axis).movedim(-1, axis + 1)
        return result.contiguous()


def touched(grid: Grid, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First and last sub-cell along each axis that boxes [low, high] meet, (P, N, nx) all, and which leave the grid, (P, N)."""
    inside = ((low >= grid.box.lower) & (high <= grid.box.upper) & (low <= high)).all(-1)
    low, high = (torch.where(inside.unsqueeze(-1), end, grid.box.lower) for end in (low, high))
    sub = low.new_tensor([n * s for n, s in zip(grid.cells, grid.split, strict=True)])
    width = grid.size / low.new_tensor(grid.split)
    first = torch.minimum(((low - grid.box.lower) / width - EDGE).floor().clamp_min(0), sub - 1).long()
    last = torch.minimum(((high - grid.box.lower) / width + EDGE).floor(), sub - 1).long()
    return first, last, ~inside  # also what is empty or NaN leaves it


@dataclass(frozen=True, slots=True, eq=False)
class RangeMax:
    """max of a table (P, S1[, S2[, S3]]) over index boxes, by a sparse table of power-of-two windows."""

    queries: tuple[Tensor, ...]  # flat indices into the stacked levels, (P, N) each
    levels: tuple[range, ...]  # logarithms of the windows in use along each axis
    outside: Tensor  # (P, N): the box leaves the grid

    @staticmethod
    def build(grid: Grid, low: Tensor, high: Tensor) -> RangeMax:
        """Index boxes of the mean boxes [low, high], both (P, N, nx)."""
        firsts, lasts, outside = touched(grid, low, high)
        sub = [n * s for n, s in zip(grid.cells, grid.split, strict=True)]
        return RangeMax.among(firsts, lasts, outside, sub)

    @staticmethod
    def among(
        firsts: Tensor, lasts: Tensor, outside: Tensor, sub: Sequence[int], table: Tensor | None = None
    ) -> RangeMax:
        """Index boxes firsts … lasts (P, N, nx) in tables of that many sub-cells: policy p's in the p-th, or all in one
        sequence of tables, P = 1, each in the one numbered in `table` (1, N)."""
        starts, stops, levels = [], [], []
        for first, last, size in zip(firsts.unbind(-1), lasts.unbind(-1), sub, strict=True):
            level = torch.zeros_like(first)
            for power in range(1, size.bit_length()):
                level += (last - first + 1) >= (1 << power)
            starts.append(first)
            stops.append(last - (1 << level) + 1)
            levels.append(level)
        ranges = tuple(range(int(level.min()), int(level.max()) + 1) for level in levels)
        counts = [len(used) for used in ranges]
        base = ravel([level - used.start for level, used in zip(levels, ranges, strict=True)], counts)
        if table is not None:
            base = base + table * math.prod(counts)
        corners = itertools.product(*zip(starts, stops, strict=True))
        return RangeMax(tuple(base * math.prod(sub) + ravel(corner, sub) for corner in corners), ranges, outside)

    def __call__(self, table: Tensor, outside: float) -> Tensor:
        shape, counts = table.shape, [len(used) for used in self.levels]
        for axis, used in enumerate(self.levels):
            for k in range(used.start):
                table, shorter = torch.empty_like(table), table
                _double(shorter, table, 1 << k, axis - len(counts))
        stack = table.new_empty(shape[0], math.prod(counts), *shape[1:])
        stack[:, 0] = table
        filled = 1  # tables of the axes behind
        for axis in reversed(range(len(counts))):
            for k in range(1, counts[axis]):
                source, target = ((k - 1) * filled, k * filled), (k * filled, (k + 1) * filled)
                shift = 1 << (self.levels[axis].start + k - 1)
                _double(stack[:, slice(*source)], stack[:, slice(*target)], shift, axis - len(counts))
            filled *= counts[axis]
        flat = stack.reshape(len(self.outside), -1)
        result = torch.gather(flat, 1, self.queries[0])
        for query in self.queries[1:]:
            torch.maximum(result, torch.gather(flat, 1, query), out=result)
        return result.masked_fill_(self.outside, outside)


def ravel(position: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Row-major number of a position."""
    flat = position[0]
    for part, size in zip(position[1:], shape[1:], strict=True):
        flat = flat * size + part
    return flat


def _double(source: Tensor, target: Tensor, shift: int, dim: int) -> None:
    """target[i] = max(source[i], source[i + shift]) along `dim`; windows are cut at the far end."""
    size = source.shape[dim]
    shift = min(shift, size)
    head = target.narrow(dim, 0, size - shift)
    torch.maximum(source.narrow(dim, 0, size - shift), source.narrow(dim, shift, size - shift), out=head)
    target.narrow(dim, size - shift, shift).copy_(source.narrow(dim, size - shift, shift))
