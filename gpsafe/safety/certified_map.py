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

What is neither certainly safe nor certainly unsafe is undecided: for want of data, or of cells. `CertifiedMap.refined` halves
the cells; the gap that is left then is the confidence set's.

Source: theory §3.3; interval Markov models of Gaussian processes (Jackson, Laurenti, Frew & Lahijanian, CDC 2021).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost.robust_dp import Averager, Grid, RangeMax, RobustDP
from gpsafe.policies import PolicyClass
from gpsafe.sets import Box
from gpsafe.systems.task import Task

ROUNDING = 1e-9  # added to each bound: far more than T sums of products of probabilities can err


@short
@dataclass(frozen=True, slots=True, eq=False)
class CertifiedMap:
    """lower ≤ p(x; f) ≤ upper for all f ∈ F_n and all x of a cell; see the module.

    Attributes:
        grid: N cells.
        lower, upper: of each policy over each cell, (P, N), in [0, 1].
        assumptions: what that rests on.
        confidence, policies, task, goal: of what it is a statement.
    """

    grid: Grid
    lower: Tensor
    upper: Tensor
    assumptions: tuple[Believed, ...]
    confidence: ConfidenceSet
    policies: PolicyClass
    task: Task
    goal: Box | None = None

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds at states (*b, nx): (P, *b) each; [0, 1] outside the grid. On an edge those of all cells beside it hold."""
        x = _require.points("CertifiedMap.at", "x", _require.real("CertifiedMap.at", "x", x), self.grid.box.dim)
        index = self.grid.near(x)
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

    def refined(self, *, tolerance: float, cells: int = 512) -> CertifiedMap:
        """Cells halved along all axes until no gap exceeds the tolerance, or the next grid had more than `cells` along an axis.

        Bounds only tighten: the coarse ones hold on the halves as well, and are intersected with theirs.
        """
        _require.positive("CertifiedMap.refined", "tolerance", tolerance)
        _require.count("CertifiedMap.refined", "cells", cells)
        found = self
        while float(found.gap.max()) > tolerance and 2 * max(found.grid.cells) <= cells:
            grid = Grid(found.grid.box, tuple(2 * n for n in found.grid.cells), found.grid.split)
            finer = certified_map(found.confidence, found.policies, found.task, grid, goal=found.goal)
            low, high = (_halved(bound, found.grid) for bound in (found.lower, found.upper))
            found = replace(finer, lower=torch.maximum(finer.lower, low), upper=torch.minimum(finer.upper, high))
        return found


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
    meets, inside, nowhere = cells.unsafe, cells.surely_unsafe, torch.zeros_like(cells.unsafe)
    if goal is None:
        bad, good = _Event(meets, nowhere, 0.0), _Event(nowhere, inside, 1.0)
    else:
        bad, good = _Event(meets, cells.surely_goal, 1.0), _Event(cells.goal, inside, 0.0)
    program = cells.program
    boxes, step = (cells.low, cells.high), max(1, program.chunk // grid.num)
    parts = [tuple(end[i : i + step] for end in boxes) for i in range(0, policies.num, step)]
    failed, reached = (
        torch.cat([event.most(program.average, *part, steps=task.horizon - 1) for part in parts])
        for event in (bad, good)
    )
    lower = (1.0 - failed - ROUNDING).clamp(0.0, 1.0)
    upper = torch.maximum((reached + ROUNDING).clamp(0.0, 1.0), lower)
    believed = program.believed(confidence, Assumption.KNOWN_DERIVATIVES(), Assumption.COST_RANGE())
    return CertifiedMap(grid, lower, upper, believed, confidence, policies, task, goal)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """What the programs of a map run on.

    Attributes:
        program: on the grid.
        low, high: boxes of next means, (P, N, nx).
        unsafe, surely_unsafe: cells that meet {c > 0}, and that lie in it, (N,).
        goal, surely_goal: cells that meet G and do not lie in {c > 0}; that lie in G and do not meet {c > 0}, (N,).
    """

    program: RobustDP
    low: Tensor
    high: Tensor
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
        enclosure = program.enclosure(confidence, policies).refine(confidence)
        low, high = (end[:, : grid.num] for end in enclosure.boxes())
        centers, radius = enclosure.centers[: grid.num], enclosure.radius[: grid.num]
        ends = centers - radius, centers + radius
        meets = ~(task.cost.upper(*ends) <= 0.0)  # NaN is unsafe
        inside = task.cost.lower(*ends) > 0.0
        touches = within = torch.zeros_like(meets)
        if goal is not None:
            within = ((ends[0] >= goal.lower) & (ends[1] <= goal.upper)).all(-1)
            touches = ((ends[1] >= goal.lower) & (ends[0] <= goal.upper)).all(-1)
        return Cells(program, low, high, meets, inside, touches & ~inside, within & ~meets)


@dataclass(frozen=True, slots=True)
class _Event:
    """What happens on cells of `yes` and can no longer on cells of `no`, both (N,); elsewhere it has happened at the last state
    with probability `last`."""

    yes: Tensor
    no: Tensor
    last: float

    def most(self, average: Averager, low: Tensor, high: Tensor, *, steps: int) -> Tensor:
        """Supremum of its probability for next means in [low, high] (P, N, nx), rounded up, (P, N)."""
        grid, lookup = average.grid, RangeMax.build(average.grid, low, high)
        value = self._decided(torch.full(low.shape[:2], self.last, dtype=low.dtype, device=low.device))
        for _ in range(steps):
            value = self._decided(lookup(average(value.reshape(-1, *grid.cells), 1.0), 1.0).clamp_max(1.0))
        return value

    def _decided(self, value: Tensor) -> Tensor:
        return torch.where(self.yes, 1.0, torch.where(self.no, 0.0, value))


def _halved(bound: Tensor, grid: Grid) -> Tensor:
    """A bound over cells, (P, N), over their halves."""
    value = bound.reshape(-1, *grid.cells)
    for axis in range(1, value.ndim):
        value = value.repeat_interleave(2, axis)
    return value.reshape(bound.shape[0], -1)
