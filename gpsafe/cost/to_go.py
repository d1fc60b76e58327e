"""Certified cost-to-go of one policy: what it, or one other input first, can cost from here on, for every f in F_n."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned
from gpsafe._sealed import Seal, edited, require_unbroken, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost.enclosure import enclose
from gpsafe.cost.grid import RangeMax
from gpsafe.cost.robust_dp import RobustDP, stages
from gpsafe.policies import PolicyClass
from gpsafe.policies.finite import AffinePolicies
from gpsafe.sets import Box

PINS = 64  # about so many states at which the policy must stay what it was


@short
@dataclass(frozen=True, slots=True, eq=False)
class CostToGo:
    """V̄_k(x) ≥ sup_{f ∈ F_n} E Σ of the next k stage costs under π from x, and the same with one input u in front.

        V̄_0 = 0,   V̄_k(x) = sup_cell c + max_{m ∈ box(cell)} E V̄_{k−1}(m + w),
        Q̄_k(x, u) = c(x) + max_{m ∈ box(x, u)} E V̄_{k−1}(m + w)

    with the boxes and averages of :class:`RobustDP`, which round up. Build with `of`, once for each F_n and policy:
    `dataclasses.replace` refuses others than those of the tables, `inputs` excepted.

    Attributes:
        program: grid and task.
        confidence: F_n.
        policy: π, a class of one.
        inputs: where u is admitted.
        values: V̄_k over the cells, (T + 1, N).
        tables: its averages E V̄_k(m + w) over sub-cells of m, (T, S).
    """

    program: RobustDP
    confidence: ConfidenceSet
    policy: PolicyClass
    inputs: Box
    values: Tensor
    tables: Tensor
    _pinned: Pinned = field(compare=False)
    _seal: Seal | None = field(default=None)

    def __post_init__(self) -> None:
        require_unbroken("CostToGo", self)

    @staticmethod
    def of(program: RobustDP, confidence: ConfidenceSet, policy: PolicyClass, inputs: Box) -> CostToGo:
        """For all k ≤ T at once.

        Raises:
            ValueError: if the class holds more than one policy, or the program refuses the model.
        """
        _require.kind("CostToGo", "program", program, RobustDP)
        if policy.num != 1:
            raise _require.fail("CostToGo", "a class of one policy (`select`)", f"{policy.num} policies")
        enclosure = program.enclosure(confidence, policy).refine(confidence)
        (low, high), n, grid = enclosure.boxes(), program.grid.num, program.grid
        average, ceiling = program.average, program.cost.ceiling
        rows = [torch.zeros(1, n, dtype=torch.float64, device=low.device)]
        rates = program.rates(enclosure.centers, enclosure.radius)[:, :n]
        rows += stages(average, low[:, :n], high[:, :n], rates, horizon=program.horizon, outside_rate=ceiling)
        tables = [average(value.reshape(1, *grid.cells), k * ceiling) for k, value in enumerate(rows[:-1])]
        pinned = Pinned.of(policy, grid.centers[:: max(1, n // PINS)].unsqueeze(0))
        made = CostToGo(program, confidence, policy, inputs, torch.cat(rows), torch.cat(tables), pinned)
        return sealed(made, free=("inputs",), watched=("values", "tables"))

    @property
    def moved(self) -> str:
        """Why V̄ is about another policy or F_n than those that are asked now, or was written on; empty if neither."""
        if self._pinned.moved:
            return "the policy is no longer the one that was certified"
        found = edited(self)
        return self.confidence.edited or (f"V̄ was changed: expected it as it was made, got {found}" if found else "")

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What V̄ and Q̄ rest on."""
        return self.program.believed(self.confidence, Assumption.KNOWN_DERIVATIVES(), Assumption.COST_RANGE())

    def value(self, x: Tensor, left: int) -> float:
        """V̄_left at x (nx,), 0 <= left <= T; left·C outside the grid, and where x is not finite."""
        most = self._within("CostToGo.value", left) * self.program.cost.ceiling
        cells = self.program.grid.near(x) if bool(torch.isfinite(x).all()) else torch.tensor([-1])
        return most if int(cells.min()) < 0 else min(float(self.program.outward(self.values[left, cells].max())), most)

    def ahead(self, x: Tensor, u: Tensor, left: int) -> float:
        """Q̄_left at x (nx,) and u (nu,); left·C where F_n is empty or the box of next means leaves the grid."""
        program, ceiling = self.program, self.program.cost.ceiling
        self._within("CostToGo.ahead", left, least=1)
        here, point = x.unsqueeze(0), torch.zeros_like(x).unsqueeze(0)
        now = program.rates(here, point)[0, 0]
        constant = AffinePolicies(
            u.reshape(1, -1), u.new_zeros(1, len(u), len(x)), Box(u, u)
        )  # no other input, clipped
        low, high = enclose(here, point, self.confidence, constant).refine(self.confidence).boxes()
        outside = (left - 1) * ceiling
        most = RangeMax.build(program.grid, low, high)(self.tables[left - 1 : left], outside)[0, 0]
        return min(float(program.outward(now + most)), left * ceiling)

    def _within(self, where: str, left: int, *, least: int = 0) -> int:
        """Stages left that the tables know: a negative one would be read from their end."""
        if _require.index(where, "left", left, minimum=least) > self.program.horizon:
            raise _require.fail(where, f"left <= {self.program.horizon}", left)
        return left
