"""Certification in milliseconds: a condensed sequential quadratic program over the inputs alone (xmpsc.md §10).

The problem is min f(U) = (u_L − ū_0)ᵀ weight (u_L − ū_0) over rows c(U) ≤ tolerance − margin, with c and its exact Jacobian
from one sweep (:mod:`gpsafe.planning.mpc._sweeps`). A step d solves (:mod:`gpsafe.planning.mpc._quadratic`)

    min f(U + d) + ½ dᵀBd + ρ s + ½ s²   s. t.   c + ∂c d ≤ tolerance − margin + s,  s ≥ 0,  |d| ≤ Δ,

with one slack s, the largest violation, under an exact penalty: an infeasible problem ends at a least-violating plan. The
plan keeps to the inputs' bounding box in any case. Rows that cannot become active within Δ are left out. f is quadratic and
kept exactly; B is a damped BFGS matrix of the curvature of the rows, without which steps zigzag between curved rows. A poor
step is corrected to second order (the same program with the rows' values at its end) before it is refused.

Inputs beyond 1/32 … 32, and rows below 10⁻³, are measured in units in which they are of order 1 (powers of 2¹⁰ and of 2²⁰,
which round nothing): what is found is then the same in all units. Starts go through Python where that is so, which is slower.

Nothing here is a guarantee: local minima, and plans that miss the constraints, are possible, and the judge decides.

Why numba: a search is some fifty sweeps and quadratic programs of ten variables, and between them Python would take as long as
both. So a start is one compiled call; members go side by side in vector instructions, which halves a sweep's time (five
networks of width 10, pendulum N = 10 and cart-pole N = 7, one shared core: 54 and 57 µs, member by member 77 and 107, in an
earlier form). CasADi's
virtual machine with weights as parameters took 330 and 1250 µs where an earlier form of this sweep took 44 and 100. A known
part that cannot be compiled makes a sweep many times as long with its derivatives from torch, and longer still by central
differences of the tube, which serve any other model. Compilation takes half a minute, once per machine, version and change
of the code, then under a second from its disk cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.certify.judge import ROUNDING, room
from gpsafe.certify.problem import CertificationProblem, Proposal
from gpsafe.planning.mpc import _descent
from gpsafe.planning.mpc._descent import AGREE, CONVERGED, PENALTIES, PROXIMAL, SAME
from gpsafe.planning.mpc._starts import neighbours, starts
from gpsafe.planning.mpc._sweeps import Array, Scale, Sweep, in_units, input_box, sweep_of

STATUS = ("diverged", "optimal", "feasible", "infeasible", "dominated", "beaten")  # in the order of `_descent`
CONFIRM = 6  # starts that end at the best known plan and so end the search
REFUTE = 12  # starts that end at no smaller violation than it, and so end the search
LEAST = 90  # sweeps that are spent before fewer than 2·CONFIRM starts are believed
JUMPS = 8  # starts beside a new best plan, at most
STEEPEST = PENALTIES[0]  # slope of f, which penalties outweigh, see `_unit`


@dataclass(slots=True)
class Work:
    """What a search cost: sweeps, probes (rows without their Jacobian, for jumps), quadratic programs and corrections of all
    starts, seconds (wall clock) within the loops of its starts and in all."""

    sweeps: int = 0
    probes: int = 0
    programs: int = 0
    corrections: int = 0
    descent_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CondensedSQP:
    """Proposer of plans, see the module. Nothing is built for a problem; its arrays are kept for a few problems.

    Starts, in this order: `warm` if given, (u_L, 0, …, 0), and drawn plans (:mod:`gpsafe.planning.mpc._starts`); but after each
    new best plan first the `JUMPS` most promising ones beside it, in which one later input is elsewhere in its range.
    (:meth:`_Search.jumps`). For local optima are common, and they often differ so: on the cart-pole with its known part each
    input has two branches, between which the tube is widest. Of its states that need a correction (95, six networks) eight
    drawn starts miss the best known plan of 14 %, and of 6 % with jumps among them.

    Each start runs to its own end, but is given up as soon as it is on its way to the best plan known, or to nothing better: no
    smaller violation where no plan is known, and otherwise a cost from which `PATIENCE` more steps like the next one would not
    lead to the best; that saves a quarter of the sweeps. To trust the linear model as a bound, near a start, costs more answers
    than it saves sweeps. The search ends where `CONFIRM` starts have ended at the best plan (twice as many within the first
    `LEAST` sweeps), where `REFUTE` promise no smaller violation and there is no plan, where the cost is 0, after `sweeps` of
    them, or where no start is left: rules on counts alone, so that a search is the same on every machine.

    What it misses are cheaper optima that few starts lead to, more than descents that stop short: of 250 cart-pole states that
    need a correction it misses 10, and of 250 with the known part 21; `CondensedSQP(starts=256, sweeps=600)` misses 6 and 14,
    and takes as long at the median, but twice as long at the 95th percentile.

    Attributes:
        iterations: of each start.
        starts: how many of them, beside `warm`, at most.
        sweeps: after so many no more start begins, unless `exhaustive`.
        fruitless: the same as long as there is no plan.
        patience: iterations in which the violation of a start must fall by a tenth, or it is given up.
        exhaustive: use all of them, each to its end, whatever it takes.
        margin: how far inside its tolerance a row is sought, in its units, or those of the module for rows below 10⁻³; farther
            where the judge rounds that row by more.
        time_limit: seconds; then the best plan so far is returned.
        hardness: how many times a violated state or input row counts, against a terminal row, in what a least-violating plan
            keeps small. 1 trades state limits for the terminal set; the published softening gives up the terminal set alone,
            which large values approach. `Proposal.slack` is counted so, too.
    """

    iterations: int = 50
    starts: int = 32
    sweeps: int = 250
    fruitless: int = 250
    patience: int = 50
    exhaustive: bool = False
    margin: float = 1e-9
    time_limit: float = math.inf
    hardness: float = 1.0

    def __post_init__(self) -> None:
        for name in ("iterations", "starts", "sweeps", "fruitless", "patience"):
            _require.count("CondensedSQP", name, getattr(self, name))
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
        status, reason, path = "diverged", "the state or the proposed input is not finite", None
        if np.isfinite(state).all() and np.isfinite(target).all():
            search = _Search(problem, state, target, self, work, began + self.time_limit)
            enough, agreed = search.enough, 0
            drawn = starts(problem.steps, search.lower, search.upper, search.learned, self.starts)
            fresh, ahead = iter(drawn if first is None else [first / search.unit, *drawn]), []
            most = len(drawn) + (first is not None)
            for number, start in enumerate(_first_of(ahead, fresh, most), start=1):
                point, found, count = search.run(start, best)
                iterations += count
                agreed = _agreed(agreed, point, found, best, enough)
                better = point.excess <= enough and point.cost < best.cost - SAME
                if point.rank(enough) < best.rank(enough) or status == "diverged":
                    given_up = "infeasible" if point.excess > enough else "feasible"
                    best, status = point, given_up if found in ("dominated", "beaten") else found
                if best.excess <= enough and best.cost <= CONVERGED:
                    break
                if time.perf_counter() > search.deadline or (not self.exhaustive and search.finished(best, agreed)):
                    break
                if better and number < most:
                    ahead[:] = search.jumps(best)
            reason = search.reason(best)
            path = None if search.sweep.path is None else torch.from_numpy(search.sweep.path(best.inputs)).to(x0.device)
            best = replace(best, inputs=best.inputs * search.unit)
        work.seconds = time.perf_counter() - began
        slack = best.excess - self.margin
        plan = torch.from_numpy(best.inputs).to(x0.device)
        return Proposal(plan, status, iterations, work.seconds, "condensed SQP", slack, reason, path, slack > 0), work


def shifted(inputs: Tensor) -> Tensor:
    """A plan (T, nu) one step later, as a start: the first input dropped, the last one repeated."""
    return torch.cat([inputs[1:], inputs[-1:]])


def _first_of(ahead: list[Array], fresh: Iterator[Array], count: int) -> Iterator[Array]:
    """`count` starts, those of a list that may be refilled before the others."""
    for _ in range(count):
        yield ahead.pop(0) if ahead else next(fresh)


def _array(name: str, value: Tensor, shape: tuple[int, ...]) -> Array:
    found = _require.shape("CondensedSQP", name, value, shape).detach().to("cpu", torch.float64).numpy()
    return np.ascontiguousarray(found)


@dataclass(frozen=True, slots=True)
class _Point:
    """A plan, its rows (less what they are allowed), their multipliers, f, and the largest row; +inf if not finite."""

    inputs: Array
    rows: Array
    multipliers: Array
    cost: float
    excess: float

    @staticmethod
    def nowhere(steps: int, nu: int) -> _Point:
        return _Point(np.zeros((steps, nu)), np.zeros(0), np.zeros(0), math.inf, math.inf)

    def rank(self, enough: float) -> tuple[float, float]:
        """Feasible ones by cost, before the others by violation."""
        return (self.excess if self.excess > enough else 0.0), self.cost


_descend = _descent.descending(lambda asking, *asked: asking(*asked))  # in Python


class _Search:
    """One problem from one state. Rows are c + margin − tolerance: ≤ 0 is sought, ≤ `enough` is feasible. Inputs, u_L and
    weight are measured in `unit`, rows in `row_units`."""

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
        self.steps, self.nu = problem.steps, problem.nu
        self.lower, self.upper = input_box(problem.inputs)
        self.unit: Array = _order(0.5 * (self.upper - self.lower), 10)
        self.lower, self.upper, learned = self.lower / self.unit, self.upper / self.unit, learned / self.unit
        asked = [part.detach().cpu().numpy() for part in room(problem, torch.from_numpy(state))]
        sizes = [np.minimum(_order(part / (16 * ROUNDING), 20), 1.0) for part in asked]
        scale = Scale(options.margin - problem.tolerance, options.hardness, _further(asked, sizes, options.margin))
        self.sweep: Sweep = sweep_of(problem, state, scale, self.unit)
        self.row_units: Array = _of_all_rows(problem, sizes)
        if any((part != 1.0).any() for part in (self.unit, *sizes)):
            self.sweep = in_units(self.sweep, self.row_units, np.tile(self.unit, (self.steps, 1)))
        self.learned, self.options, self.work, self.deadline = learned, options, work, deadline
        self.size = self.steps * self.nu
        self.enough = 0.5 * options.margin
        weight = np.eye(self.nu) if problem.weight is None else problem.weight.detach().cpu().numpy()
        weight = self.unit[:, None] * weight * self.unit
        half = 0.5 * (self.upper - self.lower)
        gap = np.maximum(abs(learned - self.lower), abs(self.upper - learned))
        self.weight: Array = weight * _unit(weight, gap)
        self.scale: Array = np.tile(np.where(np.isfinite(half), np.maximum(half, 1e-9), 1.0), self.steps)
        curvature = np.zeros((self.size + 1, self.size + 1))
        curvature[: self.nu, : self.nu] = 2 * self.weight
        curvature[np.arange(self.size), np.arange(self.size)] += PROXIMAL
        curvature[-1, -1] = 1.0
        self.curvature: Array = curvature
        self.lowest, self.highest = np.tile(self.lower, self.steps), np.tile(self.upper, self.steps)

    def run(self, start: Array, best: _Point) -> tuple[_Point, str, int]:
        """The last accepted plan from one start, its status, and the number of steps tried.

        Ends early, as "dominated", where it is on its way to `best`, or to no smaller violation, and as "beaten" where it could
        not overtake it.
        """
        plan, count, told = np.array(start), self.sweep.count, np.zeros(_descent.TOLD)
        rows, jacobian, multipliers = np.empty(count), np.zeros((count, self.size)), np.empty(count)
        told[_descent.LIMIT], told[_descent.STALL] = self.options.iterations, self.options.patience
        arguments = (
            plan, rows, jacobian, multipliers, self.learned, self.weight, self.lowest, self.highest, self.scale, self.curvature,
            self.enough, not self.options.exhaustive, best.inputs, best.excess, told,
        )  # fmt: skip
        began = time.perf_counter()
        if self.sweep.drive is not None and math.isinf(self.deadline):
            self.work.sweeps += self.sweep.drive(*arguments)
        else:
            _descend(partial(self._answer, told), *arguments)
        self.work.descent_seconds += time.perf_counter() - began
        self.work.programs += int(told[_descent.PROGRAMS])
        self.work.corrections += int(told[_descent.CORRECTIONS])
        point = _Point(plan, rows, multipliers, float(told[_descent.COST]), float(told[_descent.EXCESS]))
        return point, STATUS[int(told[_descent.STATUS])], int(told[_descent.ITERATIONS])

    def _answer(self, told: Array, plan: Array, rows: Array, jacobian: Array) -> None:
        """Rows and Jacobian of a plan; after the deadline the descent is told to end."""
        rows[:], jacobian[:] = self.sweep(plan)
        self.work.sweeps += 1
        if time.perf_counter() > self.deadline:
            told[_descent.LIMIT] = 1

    def finished(self, best: _Point, agreed: int) -> bool:
        """Whether starts that agree, or the effort, end the search."""
        if best.excess > self.enough:
            return agreed >= REFUTE or self.work.sweeps >= min(self.options.fruitless, self.options.sweeps)
        if self.work.sweeps >= self.options.sweeps:
            return True
        return agreed >= (CONFIRM if self.work.sweeps >= LEAST else 2 * CONFIRM)

    def jumps(self, best: _Point) -> list[Array]:
        """Starts beside a local optimum, the most promising first: in each one input after the first is elsewhere in its range.

        They are ranked by λᵀc + Σλ · max(0, the largest row without a multiplier), λ those of the optimum: since its Lagrangian
        is stationary in all inputs, λᵀc < 0 says that the other inputs can be moved, to first order, to a cheaper plan.
        """
        plans, entry = neighbours(best.inputs, self.lower, self.upper)
        if not len(plans):
            return []
        rows, price = self.sweep.values(plans), best.multipliers
        self.work.probes += len(plans)
        others = np.where(price > 0, 0.0, rows).max(axis=1)
        promise = rows @ price + price.sum() * np.maximum(others, 0.0)
        order = np.argsort(np.where(np.isfinite(promise), promise, np.inf), kind="stable")
        _, firsts = np.unique(entry[order], return_index=True)
        return [plans[i] for i in order[np.sort(firsts)][:JUMPS]]

    def reason(self, best: _Point) -> str:
        """Why the plan is not certified: its largest row; empty if it may be."""
        if best.excess <= self.enough:
            return ""
        if not len(best.rows):
            return "no start has a finite tube"
        problem = self.problem
        block = len(best.rows) // problem.num_members
        excess = best.excess * self.row_units[best.rows.argmax()]
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
            f"{excess:.3g}"
        )


def _order(sizes: Array, bits: int) -> Array:
    """The nearest power of 2^bits to each, 1 for 0, infinity and NaN."""
    known = np.where((sizes > 0) & (sizes < math.inf), sizes, 1.0)
    return np.exp2(bits * np.round(np.log2(known) / bits))


def _of_all_rows(problem: CertificationProblem, sizes: list[Array]) -> Array:
    """Units of the rows of X, U and the terminal set → of all rows of a plan, (R,): those of disagreement keep theirs."""
    states, inputs, terminal = sizes
    sure = np.ones(0 if problem.certainty is None else 2 * problem.nx * problem.steps)
    own = np.concatenate([np.tile(states, problem.steps), np.tile(inputs, problem.steps), terminal, sure])
    return np.tile(own, problem.num_members)


def _further(asked: list[Array], sizes: list[Array], margin: float) -> tuple[tuple[float, ...], ...]:
    """What `room` asks beyond the margin of each row of X, U and the terminal set, in the units of the rows: in powers of two,
    since arrays are kept.
    """
    shares = (np.maximum(part / margin / size, 1.0) for part, size in zip(asked, sizes, strict=True))
    more = (np.exp2(np.ceil(np.log2(share))) * size for share, size in zip(shares, sizes, strict=True))
    return tuple(tuple((margin * (part - 1)).tolist()) for part in more)


def _unit(weight: Array, gap: Array) -> float:
    """By what f is scaled, which changes no order of plans, where u_L is up to `gap` (nu,) from the inputs.

    f may reach 1: else all plans would cost the same to `SAME`, where inputs or weights are small. But its slope stays within
    `STEEPEST`: else no penalty would outweigh it, where they are large.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        slope = np.abs(weight) @ gap
        most = float(gap @ slope)
    if not 0 < most < math.inf:  # without bounds, or without a choice
        return 1.0
    return min(max(1.0, 1 / most), STEEPEST / (2 * float(slope.max())))


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
