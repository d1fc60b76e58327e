"""Partitions of a box into cells of unequal size: a grid, some of whose cells are halved along all axes, and so on.

Level l is the grid with 2^l times as many cells along each axis; a *node* is a cell of a level, and the 2^nx halves of a node
that is split stand behind one another on the next. Nodes that are not split are *leaves*: half open, disjoint, and their union
is the box.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.cost.grid import Grid, ravel


@short
@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """N leaves; see the module. Nodes and leaves are numbered level by level.

    Attributes:
        grid: level 0, all of whose cells are nodes, in row-major order.
        positions: of the nodes of each level among its cells, (n_l, nx) integers.
        split: which nodes of each level have halves, (n_l,); none of the last.
    """

    grid: Grid
    positions: tuple[Tensor, ...]
    split: tuple[Tensor, ...]

    @staticmethod
    def of(grid: Grid) -> Partition:
        """The cells of a grid."""
        axes = [torch.arange(n, device=grid.box.lower.device) for n in grid.cells]
        nodes = torch.cartesian_prod(*axes).reshape(grid.num, -1)
        return Partition(grid, (nodes,), (torch.zeros(grid.num, dtype=torch.bool, device=nodes.device),))

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.split)

    def level_grid(self, level: int) -> Grid:
        """The grid of a level."""
        return replace(self.grid, cells=tuple(n << level for n in self.grid.cells))

    @property
    def leaves(self) -> Tensor:
        """Numbers of the nodes that are leaves, (N,)."""
        return torch.nonzero(~torch.cat(self.split)).flatten()

    @property
    def level(self) -> Tensor:
        """Of each leaf, (N,)."""
        counts = torch.stack([(~split).sum() for split in self.split])
        return torch.repeat_interleave(torch.arange(self.depth, device=counts.device), counts)

    @property
    def num(self) -> int:
        """N."""
        return int(sum((~split).sum() for split in self.split))

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(map(len, self.split))

    def boxes(self) -> tuple[Tensor, Tensor]:
        """Centres and radii of the leaves, (N, nx) each."""
        centers, radii = [], []
        for level, (positions, split) in enumerate(zip(self.positions, self.split, strict=True)):
            size, at = self.level_grid(level).size, positions[~split]
            centers.append(self.grid.box.lower + (at.to(size.dtype) + 0.5) * size)
            radii.append((0.5 * size).expand(len(at), -1))
        return torch.cat(centers), torch.cat(radii)

    @property
    def share(self) -> Tensor:
        """Of the box, that each leaf takes, (N,)."""
        return 0.5 ** (self.grid.box.dim * self.level.double()) / self.grid.num

    def index(self, x: Tensor) -> Tensor:
        """Number of the leaf of x (*b, nx), −1 outside."""
        return self._leaf(self.level_grid(self.depth - 1).index(x))

    def near(self, x: Tensor) -> Tensor:
        """Numbers of all leaves that may hold x (*b, nx), (*b, 2^nx), with repetitions, see `Grid.near`; −1 outside."""
        return self._leaf(self.level_grid(self.depth - 1).near(x))

    def _leaf(self, cell: Tensor) -> Tensor:
        """Of cells of the deepest level, by their index there; −1 for −1."""
        finest, inside = self.level_grid(self.depth - 1), cell >= 0
        place = torch.stack(torch.unravel_index(cell.clamp_min(0), finest.cells), dim=-1)
        node = ravel((place >> (self.depth - 1)).unbind(-1), self.grid.cells)
        found = torch.zeros_like(node)
        before, climbing = 0, inside
        for level, split in enumerate(self.split):
            rank = (~split).cumsum(0) - 1
            found = torch.where(climbing & ~split[node], before + rank[node], found)
            before += int((~split).sum())
            climbing = climbing & split[node]
            if level + 1 < self.depth:
                half = (place >> (self.depth - 2 - level)) & 1
                child = ((split.cumsum(0) - 1)[node] << self.grid.box.dim) + ravel(
                    half.unbind(-1), (2,) * half.shape[-1]
                )
                node = torch.where(climbing, child, 0)
        return torch.where(inside, found, -1)

    def cover(self, level: int) -> Tensor:
        """For each cell of a level its node, or the leaf of a coarser level that holds it, (*cells)."""
        nodes = torch.arange(self.grid.num, device=self.positions[0].device).reshape(self.grid.cells)
        before = self.grid.num
        for below, positions in enumerate(self.positions[1 : level + 1], 1):
            for axis in range(nodes.ndim):
                nodes = nodes.repeat_interleave(2, axis)
            places = ravel(positions.unbind(-1), self.level_grid(below).cells)
            nodes.view(-1)[places] = before + torch.arange(len(places), device=places.device)
            before += len(places)
        return nodes

    def spread(self, value: Tensor) -> Tensor:
        """The largest value over the leaves (P, N) of each node, (P, nodes)."""
        result = value.new_empty(value.shape[0], self.nodes)
        result[:, self.leaves] = value
        parts = list(result.split([len(split) for split in self.split], dim=1))
        for level in reversed(range(self.depth - 1)):
            halves = parts[level + 1].reshape(value.shape[0], -1, 1 << self.grid.box.dim)
            parts[level][:, self.split[level]] = halves.amax(-1)
        return result

    def halved(self, where: Tensor) -> tuple[Partition, Tensor]:
        """With some leaves (N,) halved along all axes, and for each new leaf the old one that it is or came from.

        Raises:
            ValueError: for another number of leaves.
        """
        if where.shape != (self.num,):
            raise _require.fail("Partition.halved", f"one Boolean for each of {self.num} leaves", tuple(where.shape))
        dim = self.grid.box.dim
        halves = torch.tensor(list(itertools.product((0, 1), repeat=dim)), device=where.device)
        asked = torch.zeros(self.nodes, dtype=torch.bool, device=where.device)
        asked[self.leaves] = where
        number = torch.full((self.nodes,), -1, device=where.device)
        number[self.leaves] = torch.arange(self.num, device=where.device)
        sizes = [len(split) for split in self.split]
        asks, numbers = asked.split(sizes), number.split(sizes)
        # Of the new nodes of a level: their place among the old ones, or −1, and the old leaf that holds them, or −1.
        old, leaf = torch.arange(sizes[0], device=where.device), numbers[0]
        places, cut, source = [self.positions[0]], [], []
        for level in range(self.depth + 1):
            kept = old >= 0
            was = kept & self.split[level][old] if level < self.depth else torch.zeros_like(kept)
            now = was | (kept & asks[level][old]) if level < self.depth else was
            cut.append(now)
            source.append(leaf[~now])
            if not bool(now.any()):
                break
            parents = torch.nonzero(now).flatten()
            places.append((2 * places[level][parents].unsqueeze(1) + halves).reshape(-1, dim))
            first = (self.split[level].cumsum(0) - 1)[old[parents]] << dim
            inherits = was[parents].unsqueeze(1)
            child = first.unsqueeze(1) + torch.arange(1 << dim, device=where.device)
            old = torch.where(inherits, child, -1).flatten()
            held = leaf[parents].unsqueeze(1).expand(-1, 1 << dim)
            leaf = torch.where(old >= 0, numbers[level + 1][old] if level + 1 < self.depth else -1, held.flatten())
        return Partition(self.grid, tuple(places), tuple(cut)), torch.cat(source)
