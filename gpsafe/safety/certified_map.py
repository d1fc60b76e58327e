"""Certified maps: bounds of the probability of staying safe, or of reaching a goal, for every f ∈ F_n and every state of a box.

For a policy π, the safe set {c = 0} and x_{t+1} = f(x_t, π(x_t)) + w_t, over the T states x_0, …, x_{T−1} that J_c counts,

    p(x; f) = P(c(x_t) = 0 for all t < T | x_0 = x),   or with a goal G   P(x_t ∈ G for a t < T, c(x_s) = 0 for all s ≤ t).

*Claim.* lower ≤ inf_{f ∈ F_n} p(x; f) and sup_{f ∈ F_n} p(x; f) ≤ upper for all x of a cell. *Proof.* Both are suprema of a
dynamic program over an event: the bad one for the lower bound, the good one for the upper. Let q_t(x) be the probability that
it happens, decided by the remaining states. q is 1 or 0 where it is decided already, and elsewhere
q_t(x) = E q_{t+1}(f(x, π(x)) + w), which the robust program bounds over a cell by its average, rounded up, and the largest
value over the box of next means (`gpsafe.cost.RobustDP`, theory §3.3): V ≥ q holds for the last state by the cells' labels, and
is carried back by monotonicity.
Cells are labelled outwards: for the bad event a cell that meets {c > 0} counts as unsafe and must lie in G to count as there,
for the good event the other way round. What leaves the grid counts against us in both. f may differ from step to step and from
cell to cell in the program, so the bounds are outer. ∎

What is neither certainly safe nor certainly unsafe is undecided: for want of data, or of small cells. `CertifiedMap.refined`
halves cells where the latter is estimated to be the reason; the claim holds for cells of unequal size
(`gpsafe.cost.multilevel`).

Source: theory §3.3; interval Markov models of Gaussian processes (Jackson, Laurenti, Frew & Lahijanian, CDC 2021).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned
from gpsafe._sealed import Seal, edited, require_unbroken, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost.enclosure import enclose
from gpsafe.cost.grid import Grid
from gpsafe.cost.multilevel import Multilevel
from gpsafe.cost.partition import Partition
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.to_go import PINS
from gpsafe.policies import PolicyClass
from gpsafe.sets import Box
from gpsafe.systems.base import is_violation
from gpsafe.systems.task import Task

ROUNDING = 1e-9  # added to each bound: far more than T sums of products of probabilities can err
CHUNK = 50_000  # policy-cells enclosed at a time: the posterior's matrices stay small


@short
@dataclass(frozen=True, slots=True, eq=False)
class CertifiedMap:
    """lower ≤ p(x; f) ≤ upper for all f ∈ F_n and all x of a cell; see the module.

    Attributes:
        cells: N cells, their boxes of next means and labels.
        lower, upper: of each policy over each cell, (P, N), in [0, 1].
        assumptions: what the bounds rest on.
        confidence, policies, task, goal: of what it is a statement.
    """

    cells: Cells
    lower: Tensor
    upper: Tensor
    assumptions: tuple[Believed, ...]
    confidence: ConfidenceSet
    policies: PolicyClass
    task: Task
    goal: Box | None
    _pinned: Pinned = field(compare=False)
    _seal: Seal | None = field(default=None)

    def __post_init__(self) -> None:
        require_unbroken("CertifiedMap", self)

    @property
    def edited(self) -> str | None:
        """Which bounds were written on, or are about something else; None if all are as they were made."""
        return edited(self)

    @property
    def partition(self) -> Partition:
        """The cells; as many cells of a `Grid` until it is refined."""
        return self.cells.partition

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds at states (*b, nx): (P, *b) each; [0, 1] outside the grid. On an edge those of all cells beside it hold."""
        x = _require.points("CertifiedMap.at", "x", _require.real("CertifiedMap.at", "x", x), self.task.nx)
        index = self.partition.near(x)
        known, index = (index >= 0).all(-1), index.clamp_min(0)
        lower, upper = self.lower[:, index].amin(-1), self.upper[:, index].amax(-1)
        return torch.where(known, lower, 0.0), torch.where(known, upper, 1.0)

    def certainly(self, level: float) -> Tensor:
        """Whether p ≥ level on a cell, whatever f ∈ F_n, (P, N)."""
        return self.lower >= _require.number("CertifiedMap.certainly", "level", level, minimum=0.0)

    def certainly_not(self, level: float) -> Tensor:
        """Whether p < level on a cell, whatever f ∈ F_n, (P, N)."""
        return self.upper < _require.number("CertifiedMap.certainly_not", "level", level, minimum=0.0)

    def undecided(self, level: float) -> Tensor:
        """Neither, (P, N)."""
        return ~(self.certainly(level) | self.certainly_not(level))

    @property
    def gap(self) -> Tensor:
        """upper − lower, (P, N)."""
        return self.upper - self.lower

    def mean(self, value: Tensor) -> Tensor:
        """Average over the grid, by volume, of what has values on cells, (P, N) → (P,): a verdict's share, the mean gap."""
        return (self.partition.share * value).sum(-1)

    def refined(self, *, tolerance: float, cells: int = 512) -> CertifiedMap:
        """Cells halved along all axes where smaller ones are estimated to narrow a gap beyond the tolerance, again and again,
        until there is none, or until more than `cells` of the smallest would fit along an axis (`why_open` says what is left).

        Bounds only tighten: those of a cell hold on its halves as well, and are intersected with theirs. Which cells are halved
        rests on an estimate, what is proven of them does not.

        Raises:
            ValueError: if the policies, F_n or the bounds are no longer those of the map.
        """
        self._pinned.require("CertifiedMap.refined", "policies")
        if self.edited is not None:
            raise _require.fail("CertifiedMap.refined", "the bounds as they were made", self.edited)
        self.cells.program.check(self.confidence)
        _require.positive("CertifiedMap.refined", "tolerance", tolerance)
        _require.count("CertifiedMap.refined", "cells", cells)
        found = self
        while max(found.partition.grid.cells) << found.partition.depth <= cells:
            where = found.reducible(tolerance, cells).any(0)
            if not bool(where.any()):
                break
            parts, source = found.cells.halved(found, where)
            finer = _solved(parts, found.confidence, found.policies, found.task, found.goal)
            lower = torch.maximum(finer.lower, found.lower[:, source])
            upper = torch.minimum(finer.upper, found.upper[:, source])
            found = _vouched(replace(finer, lower=lower, upper=upper, _seal=None))
        return found

    def reducible(self, tolerance: float, cells: int | None = None) -> Tensor:
        """Where a gap exceeds the tolerance, and so does what smaller cells would take off it (`by_cells`), (P, N)."""
        _require.positive("CertifiedMap.reducible", "tolerance", tolerance)
        return torch.minimum(self.gap, self.by_cells(cells)) > tolerance

    def by_cells(self, cells: int | None = None) -> Tensor:
        """How much of the gap is due to the size of cells, (P, N): what the smallest, of which `cells` fit along an axis (None:
        any number), would take off it. An estimate, not believed.

        From steps whose rounding nearly cancels: the mean of one that is rounded up and one that is rounded down (suprema over
        the means of a cell's centre, of averages and labels rounded inwards). Where a cell is to be halved k times the former
        counts with ½(1 + 2^−k), which leaves 2^−k of its rounding.
        """
        level = self.partition.level
        remains = torch.zeros(self.partition.num, dtype=torch.float64, device=level.device)
        if cells is not None:
            most = max(cells // max(self.partition.grid.cells), 1).bit_length() - 1
            remains = 0.5 ** (most - level).clamp_min(0).double()
        failed, reached = _suprema(self.cells, self.task, self.goal, 0.5 * (1.0 + remains))
        return torch.maximum(1.0 - self.lower - failed, self.upper - reached)

    def why_open(self, tolerance: float) -> str:
        """Whether all gaps are within the tolerance; if not, where the others come from."""
        small = self.reducible(tolerance)
        wide, small = (float(self.mean(where.double()).mean()) for where in (self.gap > tolerance, small))
        if not wide:
            return f"no gap exceeds {tolerance:g}"
        return (
            f"the gap exceeds {tolerance:g} on {100 * wide:.3g} % of the grid: on {100 * small:.3g} % smaller cells narrow it, "
            f"on {100 * (wide - small):.3g} % more data or a larger grid (estimated)"
        )


def certified_map(
    confidence: ConfidenceSet, policies: PolicyClass, task: Task, grid: Grid, *, goal: Box | None = None
) -> CertifiedMap:
    """Bounds of p over the cells of a grid, for all policies of a class; see the module.

    Args:
        confidence: F_n.
        policies: P policies; of a large class, some: each has a program of its own.
        task: T, σ and c, whose zeros are the safe set. Its x_0 and budget do not matter.
        grid: for nx ≤ 4. Beyond the safe set by what one step and a few σ can reach: what leaves it counts against us.
        goal: G, a box; None: staying safe is all.

    Raises:
        ValueError: for a goal or a grid of another dimension, and as `RobustDP` does for what it does not know.
    """
    cells = Cells.of(confidence, policies, task, grid, goal)
    return _solved(cells, confidence, policies, task, goal)


def _solved(
    cells: Cells, confidence: ConfidenceSet, policies: PolicyClass, task: Task, goal: Box | None
) -> CertifiedMap:
    """The bounds over given cells."""
    failed, reached = _suprema(cells, task, goal)
    lower = (1.0 - failed - ROUNDING).clamp(0.0, 1.0)
    upper = torch.maximum((reached + ROUNDING).clamp(0.0, 1.0), lower)
    believed = cells.program.believed(confidence, Assumption.KNOWN_DERIVATIVES(), Assumption.COST_RANGE())
    centers = cells.program.grid.centers
    pinned = Pinned.of(policies, centers[:: max(1, len(centers) // PINS)].unsqueeze(0))
    return _vouched(CertifiedMap(cells, lower, upper, believed, confidence, policies, task, goal, pinned))


def _vouched(found: CertifiedMap) -> CertifiedMap:
    return sealed(found, watched=("lower", "upper"))


@short
@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """What the programs of a map run on.

    Attributes:
        program: on the grid.
        partition: N cells.
        low, high: boxes of next means, (P, N, nx).
        middle_low, middle_high: those of the centres of cells alone, (P, N, nx).
        unsafe, surely_unsafe: cells that meet {c > 0}, and that lie in it, (N,).
        goal, surely_goal: cells that meet G and do not lie in {c > 0}; that lie in G and do not meet {c > 0}, (N,).
    """

    program: RobustDP
    partition: Partition
    low: Tensor
    high: Tensor
    middle_low: Tensor
    middle_high: Tensor
    unsafe: Tensor
    surely_unsafe: Tensor
    goal: Tensor
    surely_goal: Tensor

    @staticmethod
    def of(confidence: ConfidenceSet, policies: PolicyClass, task: Task, grid: Grid, goal: Box | None) -> Cells:
        """Arguments as of `certified_map`."""
        where = "certified_map"
        if grid.box.dim != task.nx:
            raise _require.fail(where, f"a grid of dimension {task.nx}", grid.box.dim)
        if goal is not None and goal.dim != grid.box.dim:
            raise _require.fail(where, f"a goal of dimension {grid.box.dim}", goal.dim)
        program = RobustDP(grid, task.with_(initial_state=grid.centers[0]))
        program.check(confidence)
        partition = Partition.of(grid)
        return Cells(program, partition, *_enclosed(confidence, policies, task, goal, *partition.boxes()))

    def halved(self, of: CertifiedMap, where: Tensor) -> tuple[Cells, Tensor]:
        """With some cells (N,) of a map halved, and for each new cell the old one that it is or came from."""
        partition, source = self.partition.halved(where)
        fresh = torch.nonzero(where[source]).flatten()
        found = _enclosed(of.confidence, of.policies, of.task, of.goal, *(end[fresh] for end in partition.boxes()))
        parts = []
        for name, new in zip(_ENCLOSED, found, strict=True):
            axis = 1 if new.ndim > 1 else 0
            parts.append(getattr(self, name).index_select(axis, source).index_copy(axis, fresh, new))
        return Cells(self.program, partition, *parts), source


_ENCLOSED = ("low", "high", "middle_low", "middle_high", "unsafe", "surely_unsafe", "goal", "surely_goal")


def _enclosed(
    confidence: ConfidenceSet, policies: PolicyClass, task: Task, goal: Box | None, centers: Tensor, radius: Tensor
) -> tuple[Tensor, ...]:
    """`_ENCLOSED` of some cells, (n, nx) centres and radii."""
    number, parts = max(1, CHUNK // policies.num), []
    for i in range(0, len(centers), number):
        center, half = centers[i : i + number], radius[i : i + number]
        enclosure = enclose(center, half, confidence, policies).refine(confidence)
        ends = center - half, center + half
        meets = is_violation(task.cost.upper(*ends))
        inside = task.cost.lower(*ends) > 0.0
        touches = within = torch.zeros_like(meets)
        if goal is not None:
            within = ((ends[0] >= goal.lower) & (ends[1] <= goal.upper)).all(-1)
            touches = ((ends[1] >= goal.lower) & (ends[0] <= goal.upper)).all(-1)
        parts.append((*enclosure.boxes(), *enclosure.middle(), meets, inside, touches & ~inside, within & ~meets))
    return tuple(torch.cat(part, dim=1 if part[0].ndim > 1 else 0) for part in zip(*parts, strict=True))


def _suprema(cells: Cells, task: Task, goal: Box | None, up: Tensor | None = None) -> Tensor:
    """Of the probabilities of the bad and of the good event over the cells, (2, P, N), rounded up; or estimates, with steps
    that are rounded up in that share (N,) and else down."""
    last = 0.0 if goal is None else 1.0
    events = (cells.unsafe, cells.surely_goal, last), (cells.goal, cells.surely_unsafe, 1.0 - last)
    inwards = (cells.surely_unsafe, cells.goal), (cells.surely_goal, cells.unsafe)
    parts, number = [], max(1, cells.program.chunk // cells.partition.num)
    for i in range(0, len(cells.low), number):
        boxes = [end[i : i + number] for end in (cells.low, cells.high, cells.middle_low, cells.middle_high)]
        outer = Multilevel.build(cells.partition, task.noise_std, *boxes[:2])
        if up is None:
            found = [_most(outer, *event, task.horizon - 1) for event in events]
        else:
            inner = Multilevel.build(cells.partition, task.noise_std, *boxes[2:])
            found = [
                _estimated((outer, inner), (event[:2], within), up, event[2], task.horizon - 1)
                for event, within in zip(events, inwards, strict=True)
            ]
        parts.append(torch.stack(found))
    return torch.cat(parts, dim=1)


def _decided(value: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(yes, 1.0, torch.where(no, 0.0, value))


def _most(step: Multilevel, yes: Tensor, no: Tensor, last: float, steps: int) -> Tensor:
    """Supremum of the probability of an event, (P, N), rounded up: it happens on cells of `yes` and can no longer on cells of
    `no`, both (N,); elsewhere it has happened at the last state with probability `last`."""
    value = _decided(torch.full(step.shape, last, dtype=torch.float64, device=yes.device), yes, no)
    for _ in range(steps):
        value = _decided(step(value, 1.0).clamp_max(1.0), yes, no)
    return value


def _estimated(
    steps: tuple[Multilevel, Multilevel],
    labels: tuple[tuple[Tensor, ...], ...],
    up: Tensor,
    last: float,
    number: int,
) -> Tensor:
    """As `_most`, with a mean of what is rounded up and down at every step: a share `up` (N,) of the former."""
    value = torch.full(steps[0].shape, last, dtype=torch.float64, device=up.device)
    ways = [_decided(value, *label) for label in labels]
    for _ in range(number):
        value = torch.lerp(ways[1], ways[0], up)
        ways = [
            _decided(step(value, 1.0, rounding).clamp(0.0, 1.0), *label)
            for step, label, rounding in zip(steps, labels, (1.0, -1.0), strict=True)
        ]
    return torch.lerp(ways[1], ways[0], up)
