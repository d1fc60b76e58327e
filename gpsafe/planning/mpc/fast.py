"""Certification in milliseconds: a condensed sequential quadratic program over the inputs alone (xmpsc.md §10).

The problem is min f(U) = (u_L − ū_0)ᵀ weight (u_L − ū_0) over rows c(U) ≤ tolerance − margin, with c and its exact Jacobian
from one sweep (:mod:`gpsafe.planning.mpc._sweeps`). A step d solves (:mod:`gpsafe.planning.mpc._quadratic`)

    min f(U + d) + ½ dᵀBd + ρ s + ½ s²   s. t.   c + ∂c d ≤ tolerance − margin + s,  s ≥ 0,  |d| ≤ Δ,

with one slack s, the largest violation, under an exact penalty: an infeasible problem ends at a least-violating plan. The
plan keeps to the inputs' bounding box in any case. Rows that cannot become active within Δ are left out. f is quadratic and
kept exactly; B is a damped BFGS matrix of the curvature of the rows, without which steps zigzag between curved rows. A poor
step is corrected to second order (the same program with the rows' values at its end) before it is refused.

Nothing here is a guarantee: local minima, and plans that miss the constraints, are possible, and the judge decides.

Why numba: a search is some fifty sweeps and quadratic programs of ten variables, and between them Python would take as long as
both. So a start is one compiled call; members go side by side in vector instructions, which halves a sweep's time (five
networks of width 10, pendulum N = 10 and cart-pole N = 7, one shared core: 54 and 57 µs, member by member 77 and 107). CasADi's
virtual machine with weights as parameters took 330 and 1250 µs where an earlier form of this sweep took 44 and 100. A known
part that cannot be compiled makes a sweep many times as long with its derivatives from torch, and longer still by central
differences of the tube, which serve any other model. Compilation takes half a minute, once per machine, version and change
of the code, then under a second from its disk cache.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.certify.problem import CertificationProblem, Proposal
from gpsafe.planning.mpc import _descent
from gpsafe.planning.mpc._descent import AGREE, CONVERGED, PROXIMAL
from gpsafe.planning.mpc._starts import starts
from gpsafe.planning.mpc._sweeps import Array, Scale, Sweep, input_box, sweep_of

STATUS = ("diverged", "optimal", "feasible", "infeasible", "dominated")  # in the order of `_descent`
SAME = 1e-6  # two plans whose costs differ by less are one answer
CONFIRM, REFUTE = (
    6,
    9,
)  # starts that end at the best known plan, or at no smaller violation than it, and so end the search


@dataclass(slots=True)
class Work:
    """What a search cost: sweeps, quadratic programs and corrections of all starts, seconds (wall clock) within the loops of
    its starts and in all."""

    sweeps: int = 0
    programs: int = 0
    corrections: int = 0
    descent_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CondensedSQP:
    """Proposer of plans, see the module. Nothing is built for a problem; its arrays are kept for a few problems.

    Starts, in this order: `warm` if given, (u_L, 0, …, 0), and drawn plans (:mod:`gpsafe.planning.mpc._starts`), since local
    optima are common: on the cart-pole one start in ten ends at a worse one. Each runs to its own end, but is given up as soon
    as it comes near the best plan known, or, where none is, promises no smaller violation. The search ends where `CONFIRM`
    starts, or `REFUTE` without a plan, have ended so, where the cost is 0, or where no start is left. Where one start
    disagrees, others are likely to: most states need seven starts, few of them all.

    To give up early what promises no cheaper plan, by the linear model near a start, costs more answers than it saves sweeps:
    as many sweeps in four whole starts find what ten pruned ones miss.

    Attributes:
        iterations: of each start.
        starts: how many of them, beside `warm`, at most.
        exhaustive: use all of them, each to its end.
        margin: how far inside its tolerance a row is sought, in its units; above the judge's rounding margin.
        time_limit: seconds; then the best plan so far is returned.
        hardness: how many times a violated state or input row counts, against a terminal row, in what a least-violating plan
            keeps small. 1 trades state limits for the terminal set; the published softening gives up the terminal set alone,
            which large values approach. `Proposal.slack` is counted so, too.
    """

    iterations: int = 50
    starts: int = 12
    exhaustive: bool = False
    margin: float = 1e-9
    time_limit: float = math.inf
    hardness: float = 1.0

    def __post_init__(self) -> None:
        _require.count("CondensedSQP", "iterations", self.iterations)
        _require.count("CondensedSQP", "starts", self.starts)
        _require.positive("CondensedSQP", "margin", self.margin)
        _require.positive("CondensedSQP", "hardness", self.hardness)
        if not self.time_limit > 0:
            raise _require.fail("CondensedSQP", "time_limit > 0", self.time_limit)

    def propose(
        self, problem: CertificationProblem, x0: Tensor, learned: Tensor, *, warm: Tensor | None = None
    ) -> Proposal:
        """See `Proposer`; numeric failure is a status.

        Status: "optimal" (to first order, local), "feasible" (stopped by a limit), "infeasible" (no start found a plan),
        "diverged" (no finite tube or no finite question).

        Raises:
            ValueError: on wrong shapes of x0 (nx,), learned (nu,) or warm (T, nu).
        """
        return self.search(problem, x0, learned, warm=warm)[0]

    def search(
        self, problem: CertificationProblem, x0: Tensor, learned: Tensor, *, warm: Tensor | None = None
    ) -> tuple[Proposal, Work]:
        """`propose`, and what it cost."""
        began, work = time.perf_counter(), Work()
        state = _array("x0", x0, (problem.nx,))
        target = _array("learned", learned, (problem.nu,))
        first = None if warm is None else _array("warm", warm, (problem.steps, problem.nu))
        best, iterations = _Point.nowhere(problem.steps, problem.nu), 0
        status, reason = "diverged", "the state or the proposed input is not finite"
        if np.isfinite(state).all() and np.isfinite(target).all():
            search = _Search(problem, state, target, self, work, began + self.time_limit)
            enough, agreed = search.enough, 0
            drawn = starts(problem.steps, search.lower, search.upper, target, self.starts)
            for start in drawn if first is None else [first, *drawn]:
                point, found, count = search.run(start, best)
                iterations += count
                agreed = _agreed(agreed, point, found, best, enough)
                if point.rank(enough) < best.rank(enough) or status == "diverged":
                    given_up = "infeasible" if point.excess > enough else "feasible"
                    best, status = point, given_up if found == "dominated" else found
                if best.excess <= enough and best.cost <= CONVERGED:
                    break
                if (
                    agreed >= (CONFIRM if best.excess <= enough else REFUTE) and not self.exhaustive
                ) or time.perf_counter() > search.deadline:
                    break
            reason = search.reason(best)
        work.seconds = time.perf_counter() - began
        slack = best.excess - self.margin
        plan = torch.from_numpy(best.inputs).to(x0.device)
        return Proposal(plan, status, iterations, work.seconds, "condensed SQP", slack, reason), work


def shifted(inputs: Tensor) -> Tensor:
    """A plan (T, nu) one step later, as a start: the first input dropped, the last one repeated."""
    return torch.cat([inputs[1:], inputs[-1:]])


def _array(name: str, value: Tensor, shape: tuple[int, ...]) -> Array:
    found = _require.shape("CondensedSQP", name, value, shape).detach().to("cpu", torch.float64).numpy()
    return np.ascontiguousarray(found)


@dataclass(frozen=True, slots=True)
class _Point:
    """A plan, its rows (less what they are allowed), f, and the largest row; +inf if not finite."""

    inputs: Array
    rows: Array
    cost: float
    excess: float

    @staticmethod
    def nowhere(steps: int, nu: int) -> _Point:
        return _Point(np.zeros((steps, nu)), np.zeros(0), math.inf, math.inf)

    def rank(self, enough: float) -> tuple[float, float]:
        """Feasible ones by cost, before the others by violation."""
        return (self.excess if self.excess > enough else 0.0), self.cost


class _Search:
    """One problem from one state. Rows are c + margin − tolerance: ≤ 0 is sought, ≤ `enough` is feasible."""

    def __init__(
        self,
        problem: CertificationProblem,
        state: Array,
        learned: Array,
        options: CondensedSQP,
        work: Work,
        deadline: float,
    ) -> None:
        self.problem = problem
        scale = Scale(options.margin - problem.tolerance, options.hardness)
        self.sweep: Sweep = sweep_of(problem, state, scale)
        self.learned, self.options, self.work, self.deadline = learned, options, work, deadline
        self.steps, self.nu = problem.steps, problem.nu
        self.size = self.steps * self.nu
        self.enough = 0.5 * options.margin
        weight = problem.weight
        self.weight: Array = np.eye(self.nu) if weight is None else weight.detach().cpu().numpy()
        self.lower, self.upper = input_box(problem.inputs)
        half = 0.5 * (self.upper - self.lower)
        self.scale: Array = np.tile(np.where(np.isfinite(half), np.maximum(half, 1e-9), 1.0), self.steps)
        curvature = np.zeros((self.size + 1, self.size + 1))
        curvature[: self.nu, : self.nu] = 2 * self.weight
        curvature[np.arange(self.size), np.arange(self.size)] += PROXIMAL
        curvature[-1, -1] = 1.0
        self.curvature: Array = curvature
        self.lowest, self.highest = np.tile(self.lower, self.steps), np.tile(self.upper, self.steps)

    def run(self, start: Array, best: _Point) -> tuple[_Point, str, int]:
        """The last accepted plan from one start, its status, and the number of steps tried.

        Ends early, as "dominated", where it is on its way to `best`, or to no smaller violation.
        """
        plan, count, told = np.array(start), self.sweep.count, np.zeros(_descent.TOLD)
        rows, jacobian = np.empty(count), np.zeros((count, self.size))
        told[_descent.LIMIT] = self.options.iterations
        arguments = (
            plan, rows, jacobian, self.learned, self.weight, self.lowest, self.highest, self.scale, self.curvature,
            self.enough, not self.options.exhaustive, best.inputs, best.excess, told,
        )  # fmt: skip
        began = time.perf_counter()
        if self.sweep.drive is not None and math.isinf(self.deadline):
            self.work.sweeps += self.sweep.drive(*arguments)
        else:
            for _ in _descent.descend(*arguments):
                rows[:], jacobian[:] = self.sweep(plan)
                self.work.sweeps += 1
                if time.perf_counter() > self.deadline:
                    told[_descent.LIMIT] = 1
        self.work.descent_seconds += time.perf_counter() - began
        self.work.programs += int(told[_descent.PROGRAMS])
        self.work.corrections += int(told[_descent.CORRECTIONS])
        point = _Point(plan, rows, float(told[_descent.COST]), float(told[_descent.EXCESS]))
        return point, STATUS[int(told[_descent.STATUS])], int(told[_descent.ITERATIONS])

    def reason(self, best: _Point) -> str:
        """Why the plan is not certified: its largest row; empty if it may be."""
        if best.excess <= self.enough:
            return ""
        if not len(best.rows):
            return "no start has a finite tube"
        problem = self.problem
        block = len(best.rows) // problem.num_members
        member, place = divmod(int(best.rows.argmax()), block)
        groups = (
            ("state", 1, self.steps, problem.states.rows),
            ("input", 0, self.steps, problem.inputs.rows),
            ("terminal", self.steps, 1, problem.terminal.rows),
            ("certainty", 1, self.steps, 2 * problem.nx),
        )
        where, stage = "", 0
        for name, first, stages, size in groups:
            if place < stages * size:
                where, stage, place = name, first + place // size, place % size
                break
            place -= stages * size
        return (
            f"every start ends with {where} row {place} of member {member} at stage {stage} exceeded, at least by "
            f"{best.excess:.3g}"
        )


def _agreed(agreed: int, point: _Point, found: str, best: _Point, enough: float) -> int:
    """How many starts have ended at the best plan, after one more has; none if that is better."""
    if best.excess <= enough:
        if found == "dominated":
            return agreed + 1
        if point.excess > enough or point.cost > best.cost + SAME:
            return agreed
        return agreed + 1 if point.cost >= best.cost - SAME else 0
    if found == "diverged" or best.excess > (1 + AGREE) * point.excess:
        return 0 if point.excess < best.excess else agreed
    return agreed + 1
