"""Robust dynamic program on a grid: a sound upper bound of sup_{f ∈ F_n} J_c(π, f) (theory §3.3).

    V_T = 0,   V_t(x) = c(x) + sup_{m ∈ [l_n, h_n](x, π(x))} E V_{t+1}(m + w).

Everything rounds up: per cell the supremum of c and an outer box of the next means; the Gaussian average of a
piecewise constant V at a mean known up to ±ε uses exact Φ-differences and the larger neighbour within ε of each edge;
then the maximum over all sub-cells that the mean box touches; leaving the grid costs the largest rate for the rest of
the horizon. Policies are a batch dimension; time is the only Python loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost._task import OfTask
from gpsafe.cost.base import CostInterval
from gpsafe.cost.enclosure import Enclosure, enclose
from gpsafe.cost.grid import Averager, Grid, RangeMax
from gpsafe.policies import PolicyClass, selected
from gpsafe.rkhs import kernels
from gpsafe.systems.task import Task


def stages(
    average: Averager, low: Tensor, high: Tensor, stage: Tensor, *, horizon: int, outside_rate: float
) -> Iterator[Tensor]:
    """V with 1, 2, …, `horizon` stages left, rounded up, (P, N) each; arguments as in `sweep`."""
    policies, grid = low.shape[0], average.grid
    lookup = RangeMax.build(grid, low, high)
    value = stage.expand(policies, grid.num)
    for t in range(horizon):
        if t:
            outside = t * outside_rate
            value = lookup(average(value.reshape(policies, *grid.cells), outside), outside) + stage
        yield value


def sweep(average: Averager, low: Tensor, high: Tensor, stage: Tensor, *, horizon: int, outside_rate: float) -> Tensor:
    """Backward sweep V_t = stage + max_{m ∈ [low, high]} E V_{t+1}(m + w), rounded up, for t = horizon−1 … 0.

    Args:
        average: Gaussian average over a grid of N cells.
        low, high: mean boxes over each cell, (P, N, nx).
        stage: supremum of the stage value over each cell, (P or 1, N).
        horizon: number of stages summed.
        outside_rate: supremum of the stage value outside the grid; ≥ every entry of `stage`.

    Returns:
        V_0 per cell, (P, N).
    """
    value = torch.zeros(low.shape[0], average.grid.num, dtype=torch.float64, device=low.device)
    for value in stages(average, low, high, stage, horizon=horizon, outside_rate=outside_rate):  # noqa: B007  the last
        pass
    return value


@short
@dataclass(frozen=True, slots=True, eq=False)
class RobustDP(OfTask):
    """sup_{f ∈ F_n} J_c(π, f) ≤ V_0(x₀), for nx ≤ 4.

    F_n is {f : l_n ≤ f ≤ h_n, ‖f‖_k ≤ B}: the rectangular relaxation used here, and the kernel metric inside a cell, are
    outer. Valid for any policy class with `slopes`, any known part with a Hessian bound, and sums of RBF, Matérn and linear
    kernels, whose suprema over cells are known; other kernels are refused.

    Args:
        grid: cells.
        task: T, σ, c with its supremum over boxes, and x_0 inside the grid.
        chunk: number of policy-cells worked on at a time; small enough that the tables of a chunk stay in cache.
    """

    grid: Grid
    task: Task
    chunk: int = 150_000
    name: str = field(default="robust-dp", init=False)
    sound: bool = field(default=True, init=False)
    _average: Averager | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _require.kind("RobustDP", "task", self.task, Task)
        _require.shape("RobustDP", "initial_state", self.initial_state, (self.grid.box.dim,))
        if not bool(self.grid.box.contains(self.initial_state)):
            raise _require.fail("RobustDP", "initial_state inside the grid", self.initial_state.tolist())
        average = Averager(self.grid, self.noise_std, self.initial_state.device)
        object.__setattr__(self, "_average", average)

    @property
    def average(self) -> Averager:
        """Over the grid, for the task's noise."""
        assert self._average is not None
        return self._average

    def enclosure(self, confidence: ConfidenceSet, policies: PolicyClass) -> Enclosure:
        """Mean boxes of all policies over all cells, and (last column) over the exact initial state.

        Built without data; `Enclosure.refine` intersects generations as they come.
        """
        self.check(confidence)
        centers = self._centers()
        radius = torch.cat([(0.5 * self.grid.size).expand(self.grid.num, -1), torch.zeros_like(centers[-1:])])
        return enclose(centers, radius, confidence, policies)

    def _centers(self) -> Tensor:
        """Of the cells, and x₀, (N + 1, nx)."""
        return torch.cat([self.grid.centers, self.initial_state.unsqueeze(0)])

    def upper(self, enclosure: Enclosure) -> Tensor:
        """V_0(x₀) for every policy of the enclosure, rounded up and at most T·C, (P,)."""
        stage = self.rates(enclosure.centers, enclosure.radius)
        return self.outward(self._run(enclosure, stage, self.cost.ceiling)).clamp_max(self.total_ceiling)

    def outward(self, value: Tensor, ceiling: float | None = None) -> Tensor:
        """Expected costs, or sums of what is at most `ceiling` a stage, rounded up. Without noise they are sums of stage costs,
        with which a cost of 0 stays 0; averages over noise come of differences of probabilities, which err by a share of the
        ceiling."""
        share = self.cost.ceiling if ceiling is None else ceiling
        share = share if bool((self.task.noise_std > 0).any()) else 0.0
        return value + 1e-9 * (share + value.abs())

    def lower(self, enclosure: Enclosure) -> Tensor:
        """A lower bound of inf over the same mean boxes (J_c's lower side when l = h = f*), rounded down but to 0, (P,)."""
        centers, radius = enclosure.centers, enclosure.radius
        stage = -self.cost.lower(centers - radius, centers + radius).unsqueeze(0)
        return (-self.outward(self._run(enclosure, stage, 0.0))).clamp_min(0.0)

    def exploration(self, enclosure: Enclosure, std: Tensor) -> Tensor:
        """Upper bound of sup_f E Σ_t ‖σ(z_t)‖ (the optimistic value of ActSafe's expansion phase), (P,).

        Args:
            std: norm ‖σ‖ at the cell centres, (P, N + 1); it is widened by the kernel metric over each cell, but not beyond
                what the enclosure knows of σ over the cell (`Enclosure.peak`).

        Raises:
            ValueError: for a kernel whose variance has no bound outside the grid (with a linear part), by name.
        """
        for kernel in enclosure.kernels:
            if math.isinf(kernels.variance_everywhere(kernel)):
                expected = "kernels of bounded variance (stationary): outside the grid it is charged"
                raise _require.fail("RobustDP.exploration", expected, kernels.describe(kernel))
        most = math.hypot(*(kernels.variance_everywhere(kernel) ** 0.5 for kernel in enclosure.kernels))
        stage = std + enclosure.metric.norm(dim=-1)
        if enclosure.peak is not None:
            stage = torch.fmin(stage, enclosure.peak.norm(dim=-1))
        return self.outward(self._run(enclosure, torch.where(stage <= torch.inf, stage, most), most), most)

    def rates(self, centers: Tensor, radius: Tensor) -> Tensor:
        """Supremum of c over boxes, both (n, nx), (1, n); C where it would be NaN."""
        stage = self.cost.upper(centers - radius, centers + radius).unsqueeze(0)
        return torch.where((stage >= 0) & (stage <= self.cost.ceiling), stage, self.cost.ceiling)

    def _run(self, enclosure: Enclosure, stage: Tensor, outside_rate: float) -> Tensor:
        if not torch.equal(enclosure.centers, self._centers()):
            raise _require.fail("RobustDP", "an enclosure over its own cells and initial state", "another program's")
        low, high = enclosure.boxes()
        step = max(1, self.chunk // self.grid.num)
        stage = stage.expand(low.shape[0], -1)
        values = [
            self._chunk(low[i : i + step], high[i : i + step], stage[i : i + step], outside_rate)
            for i in range(0, low.shape[0], step)
        ]
        return torch.cat(values)

    def _chunk(self, low: Tensor, high: Tensor, stage: Tensor, outside_rate: float) -> Tensor:
        """The sweep on the cells for t ≥ 1, then one exact step from x₀."""
        n = self.grid.num
        average = self.average
        value = sweep(
            average, low[:, :n], high[:, :n], stage[:, :n], horizon=self.horizon - 1, outside_rate=outside_rate
        )
        if self.horizon == 1:
            return stage[:, n]
        outside = (self.horizon - 1) * outside_rate
        table = average(value.reshape(-1, *self.grid.cells), outside)
        first = RangeMax.build(self.grid, low[:, n:], high[:, n:])(table, outside)
        return stage[:, n] + first[:, 0]

    def evaluate(self, confidence: ConfidenceSet, policies: PolicyClass) -> CostInterval:
        """Sound interval [0, V_0(x₀)] for every policy, from all generations of the confidence set."""
        step = max(1, self.chunk // self.grid.num)
        uppers = []
        for i in range(0, policies.num, step):
            part = selected(policies, torch.arange(i, min(i + step, policies.num)), self.initial_state)
            uppers.append(self.upper(self.enclosure(confidence, part).refine(confidence)))
        ceiling, upper = self.total_ceiling, torch.cat(uppers)
        return CostInterval(
            torch.zeros_like(upper),
            upper,
            sound_upper=confidence.sound,
            method=self.name,
            assumptions=self.believed(confidence, Assumption.KNOWN_DERIVATIVES(), Assumption.COST_RANGE()),
            vacuous=upper >= ceiling,
        )
