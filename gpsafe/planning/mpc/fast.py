"""Certification in milliseconds: a condensed sequential quadratic program over the inputs alone (xmpsc.md §10).

The problem is min f(U) = (u_L − ū_0)ᵀ weight (u_L − ū_0) over rows c(U) ≤ tolerance − margin, with c and its exact Jacobian
from one sweep (:mod:`gpsafe.planning.mpc._sweeps`). A step d solves, by `daqp` (dense dual active set),

    min f(U + d) + ½ dᵀBd + ρ s + ½ s²   s. t.   c + ∂c d ≤ tolerance − margin + s,  s ≥ 0,  |d| ≤ Δ,

with one slack s, the largest violation, under an exact penalty: an infeasible problem ends at a least-violating plan. The
plan keeps to the inputs' bounding box in any case. Rows that cannot become active within Δ are left out. f is quadratic and
kept exactly; B is a damped BFGS matrix of the curvature of the rows, without which steps zigzag between curved rows (cart-pole,
N = 7: 29 steps, with it 9). A poor step is corrected to second order (the same program with the rows' values at its end) before
it is refused: without that, the penalty refuses good steps along curved rows (worst case 50 steps, with it 19). Both compared
on 73 states that need a correction.

Nothing here is a guarantee: local minima, and plans that miss the constraints, are possible, and the judge decides.

Why numba (five networks of width 20, CPU time of rows and Jacobian on one shared core, N = 5 and 10): 44 and 100 µs, against
330 and 1250 µs by CasADi's virtual machine with weights as parameters (MX, `buffer()`; more if expanded to SX), which gives the
same numbers to 2e-15. A known part that cannot be compiled makes a sweep about 15 times as long with its derivatives from torch
(pendulum, N = 10), 300 times by central differences of the tube, which serve any other model. numba costs 0.3 s at import,
8 s of compilation once per machine, version and change of the code, then 0.3 s to load from its disk cache. A quadratic program
takes `daqp` 10 to 20 µs; writing it down, reading it and updating B are compiled too (:mod:`gpsafe.planning.mpc._steps`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import daqp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpsafe import _require
from gpsafe.certify.problem import CertificationProblem, Proposal
from gpsafe.planning.mpc import _steps
from gpsafe.planning.mpc._starts import Starts
from gpsafe.planning.mpc._sweeps import Array, Scale, Sweep, input_box, sweep_of

PENALTIES = (1e3, 1e5)  # ρ while no program is feasible: the second if the first finds no plan
FLOOR = 10.0  # ρ once a program is feasible: three times the multipliers' sum, at least this
PROXIMAL = 1e-6  # added to the curvature, so that the quadratic program has one solution
CONVERGED = 2e-8  # predicted decrease of f + ρs
HOPELESS = 0.03  # stop if the linear model removes a smaller share of the violation within half an input range
GAIN = 1e-7  # a later start is given up if it promises to lower the cost by less
SAME = 1e-4  # plans whose costs differ by less, and whose programs have the same binding rows, lead to the same optimum
LATER = 20  # iterations of a start once a certified plan is known
CONFIRM = 3  # later starts that must agree that there is no plan
NEAR = 1e-2  # largest violation near which programs see the binding rows; below it a program has a plan in sight
WIDE = 0.1  # largest violation at which the first program's promise is believed
SIGHT = 4  # iterations by which a later start must have a plan in sight
AGREE = 0.05  # two starts whose least violations differ by a smaller share end the search
CORRECT = 0.25  # share of the predicted decrease below which a step gets its second-order correction


@dataclass(slots=True)
class Work:
    """What a search cost: calls and seconds (wall clock) of sweeps and of quadratic programs, corrections, all starts."""

    sweeps: int = 0
    programs: int = 0
    corrections: int = 0
    sweep_seconds: float = 0.0
    program_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CondensedSQP:
    """Proposer of plans, see the module. Nothing is built for a problem; its arrays are kept for a few problems.

    Starts, in this order: `warm` if given, (u_L, 0, …, 0), and then, where sweeps are compiled, patterns of inputs ranked by
    their violation, else a few fixed ones (:mod:`gpsafe.planning.mpc._starts`). All are used, since local optima are
    common, but for cost 0. Once a certified plan is known, the others only seek cheaper ones: their first input keeps
    within its cost. They are given up as soon as

    - their linear model over half an input range or more has no such plan, close to feasibility or after a step,
    - their program is still far from a plan after a few steps,
    - their program has the binding rows of the best plan's, and its cost: they are on the way to the same optimum, or
    - nothing certified is known and they promise no smaller violation. Where enough starts agree on that, the search ends.

    Starts and rules were chosen on 125 states of the cart-pole that need a correction and tried on 376 of both plants, of networks
    that no figure is from. Cheaper plans are still missed: on plain cart-poles more often than on one state in a hundred.

    Attributes:
        iterations: of each start.
        starts: how many of them, beside `warm`, at most.
        exhaustive: give none of them up early.
        margin: how far inside its tolerance a row is sought, in its units; above the judge's rounding margin.
        time_limit: seconds; then the best plan so far is returned.
        hardness: how many times a violated state or input row counts, against a terminal row, in what a least-violating plan
            keeps small. 1 trades state limits for the terminal set; the published softening gives up the terminal set alone,
            which large values approach. `Proposal.slack` is counted so, too.
    """

    iterations: int = 50
    starts: int = 10
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
            early = [] if first is None else [first]
            early.append(search.starts.plain())
            while (
                start := early.pop(0) if early else search.starts.later(best.inputs, best.excess <= enough)
            ) is not None:
                point, found, count = search.run(start, best)
                iterations += count
                better = point.rank(enough) < best.rank(enough)
                close = enough < best.excess <= (1 + AGREE) * point.excess
                agreed = agreed + 1 if close and found != "diverged" else agreed
                if better and point.excess < (1 - AGREE) * best.excess:
                    agreed = 0
                if better or status == "diverged":
                    given_up = "infeasible" if point.excess > enough else "feasible"
                    best, status = point, given_up if found == "dominated" else found
                if best.excess <= enough and best.cost <= CONVERGED:
                    break
                if (agreed >= CONFIRM and not self.exhaustive) or time.perf_counter() > search.deadline:
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
    """A plan, its rows (less what they are allowed) and their Jacobian, f, and the largest row; +inf if not finite."""

    inputs: Array
    rows: Array
    jacobian: Array
    cost: float
    excess: float

    @staticmethod
    def nowhere(steps: int, nu: int) -> _Point:
        empty = np.zeros((0, steps * nu))
        return _Point(np.zeros((steps, nu)), empty[:, 0], empty, math.inf, math.inf)

    def rank(self, enough: float) -> tuple[float, float]:
        """Feasible ones by cost, before the others by violation."""
        return (self.excess if self.excess > enough else 0.0), self.cost


@dataclass(frozen=True, slots=True)
class _Step:
    """d (p,), the plan it leads to and its f, the slack s, dᵀBd, and the multipliers of all rows with their sum."""

    move: Array
    plan: Array
    cost: float
    slack: float
    bent: float
    multipliers: Array
    total: float


@dataclass(frozen=True, slots=True)
class _Program:
    """Room for the quadratic programs of a search, see `_steps.program`."""

    hessian: Array
    gradient: Array
    matrix: Array
    lower: Array
    upper: Array
    chosen: NDArray[np.int64]

    @staticmethod
    def empty(size: int, rows: int) -> _Program:
        n = size + 1
        room = np.empty((n, n)), np.empty(n), np.empty((rows, n)), np.empty(n + rows), np.empty(n + rows)
        return _Program(*room, np.empty(rows, np.int64))


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
        self.spread: Array = np.sqrt(np.diag(np.linalg.inv(self.weight)))  # of {f ≤ 1} about u_L
        self.program: _Program | None = None
        self.starts = Starts(self.steps, self.lower, self.upper, learned, options.starts, self.sweep.violations)
        self.binding: NDArray[np.int64] = np.zeros(0, np.int64)  # rows of the best plan's last program

    def keep_within(self, cost: float) -> None:
        """Steps then lead to plans whose first input is in the bounding box of f ≤ cost."""
        reach = self.spread * math.sqrt(max(cost, 0.0))
        self.highest[: self.nu] = np.maximum(np.minimum(self.upper, self.learned + reach), self.lower)
        self.lowest[: self.nu] = np.minimum(np.maximum(self.lower, self.learned - reach), self.highest[: self.nu])

    def evaluate(self, inputs: Array) -> _Point:
        began = time.perf_counter()
        rows, jacobian = self.sweep(inputs)
        self.work.sweep_seconds += time.perf_counter() - began
        self.work.sweeps += 1
        cost = _steps.distance(inputs[0], self.learned, self.weight)
        return _Point(inputs, rows, jacobian, cost, _steps.excess(rows, jacobian))

    def step(self, at: _Point, rows: Array, reach: Array, bend: Array, rho: float) -> _Step | None:
        """None if the quadratic program fails."""
        began = time.perf_counter()
        made = self.program
        if made is None or len(made.chosen) < len(rows):
            self.program = made = _Program.empty(self.size, len(rows))
        inputs, p = at.inputs.ravel(), self.size
        count = _steps.program(
            rows, at.jacobian, inputs, self.learned, self.weight, self.lowest, self.highest, reach, self.curvature, bend,
            rho, made.hessian, made.gradient, made.matrix, made.lower, made.upper, made.chosen,
        )  # fmt: skip
        upper, lower = made.upper[: p + 1 + count], made.lower[: p + 1 + count]
        found, _, flag, told = daqp.solve(
            made.hessian, made.gradient, made.matrix[:count], upper, lower, None,
            primal_tol=1e-11, eps_prox=0.0, iter_limit=1000,
        )  # fmt: skip
        self.work.program_seconds += time.perf_counter() - began
        self.work.programs += 1
        if flag < 1:
            return None
        trial, multipliers = np.empty((self.steps, self.nu)), np.empty(len(rows))
        finite, slack, bent, total = _steps.outcome(
            found, told["lam"], made.chosen, count, bend, inputs, self.lowest, self.highest, trial.ravel(), multipliers
        )
        if not finite:
            return None
        cost = _steps.distance(trial[0], self.learned, self.weight)
        return _Step(found[:p], trial, cost, slack, bent, multipliers, total)

    def run(self, start: Array, best: _Point) -> tuple[_Point, str, int]:
        """The last accepted plan from one start, its status, and the number of steps tried.

        Ends early, as "dominated", where the linear model sees nothing better than `best`.
        """
        later = best.excess <= self.enough and not self.options.exhaustive
        self.keep_within(best.cost - GAIN if later else math.inf)
        at = self.evaluate(np.clip(start.ravel(), self.lowest, self.highest).reshape(self.steps, self.nu))
        if math.isinf(at.excess):
            return at, "diverged", 0
        nothing = np.zeros((self.size, self.size))
        bend, reach, rho, blocked = nothing, 1.0, PENALTIES[0], None
        count = 0
        if at.excess <= self.enough and at.cost <= CONVERGED:
            return at, "optimal", 0
        most = min(self.options.iterations, LATER) if later else self.options.iterations
        while count < most and reach > 1e-12 and (count == 0 or time.perf_counter() < self.deadline):
            count += 1
            region = reach * self.scale
            found = self.step(at, at.rows, region, bend, rho)
            if found is None:
                bend, reach = nothing, 0.25 * reach
                continue
            d, slack, multipliers = found.move, found.slack, found.multipliers
            if slack > self.enough and rho < PENALTIES[0]:
                rho = PENALTIES[0]
                continue
            merit = _merit(at, rho)
            if self.dominated(at, found, reach, best, count):
                return at, "dominated", count
            expected = merit - (found.cost + rho * slack + 0.5 * slack**2 + 0.5 * found.bent)
            infeasible = at.excess > self.enough
            hopeless = infeasible and at.excess - slack <= HOPELESS * at.excess * min(reach, 1.0)
            if hopeless or expected <= CONVERGED:
                if infeasible and rho < PENALTIES[1]:
                    bend, rho = nothing, PENALTIES[1]
                    continue
                if (not infeasible and at.cost < best.cost) or math.isinf(best.excess) or best.excess > self.enough:
                    self.binding = _active(multipliers)
                return at, "infeasible" if infeasible else "optimal", count
            to = self.evaluate(found.plan)
            ratio = (merit - _merit(to, rho)) / expected
            if (slack > self.enough) != blocked:  # other multipliers by orders of magnitude: another curvature
                bend, blocked = nothing, slack > self.enough
            bend = _steps.curvature(bend, d, at.jacobian, to.jacobian, multipliers, PROXIMAL)
            if ratio < CORRECT and math.isfinite(to.excess):
                second = self.step(at, to.rows - at.jacobian @ d, region, bend, rho)
                if second is not None:
                    self.work.corrections += 1
                    corrected = self.evaluate(second.plan)
                    if _merit(corrected, rho) < _merit(to, rho):
                        d, to = second.move, corrected
                        ratio = (merit - _merit(to, rho)) / expected
            if slack <= self.enough:
                rho = min(PENALTIES[1], max(FLOOR, 3 * found.total))
            length = float(np.abs(d / self.scale).max())
            if ratio > 1e-4:
                at = to
            if ratio > 0.75 and length > 0.8 * reach:
                reach = 3 * length
            elif not ratio >= CORRECT:
                reach = 0.3 * length
        return at, "infeasible" if at.excess > self.enough else "feasible", count

    def dominated(self, at: _Point, step: _Step, reach: float, best: _Point, count: int) -> bool:
        """Whether this start may be given up, see `CondensedSQP`: heuristics, measured, not bounds."""
        if math.isinf(best.excess) or self.options.exhaustive:
            return False
        if best.excess > self.enough:
            wide = reach >= 1.0 and (at.excess <= 2 * best.excess or count >= 4)
            return step.slack >= (1 - AGREE) * best.excess and (wide or count >= LATER)
        if count >= SIGHT and step.slack > NEAR:
            return True
        same = at.excess <= NEAR and step.slack <= self.enough and abs(at.cost - best.cost) <= SAME
        if same and np.array_equal(_active(step.multipliers), self.binding):
            return True
        nothing = step.slack > self.enough or step.cost >= best.cost - GAIN
        return reach >= 1.0 and (count > 1 or at.excess <= WIDE) and nothing

    def reason(self, best: _Point) -> str:
        """Why the plan is not certified: its largest row; empty if it may be."""
        if best.excess <= self.enough:
            return ""
        if not len(best.rows):
            return "no start has a finite tube"
        problem = self.problem
        block = len(best.rows) // problem.num_members
        member, place = divmod(int(best.rows.argmax()), block)
        mx, mu = problem.states.rows, problem.inputs.rows
        where, stage = "terminal", self.steps
        if place < self.steps * mx:
            where, (stage, place) = "state", divmod(place, mx)
            stage += 1
        elif place < self.steps * (mx + mu):
            where, (stage, place) = "input", divmod(place - self.steps * mx, mu)
        else:
            place -= self.steps * (mx + mu)
        return (
            f"every start ends with {where} row {place} of member {member} at stage {stage} exceeded, at least by "
            f"{best.excess:.3g}"
        )


def _merit(at: _Point, rho: float) -> float:
    violation = max(at.excess, 0.0)
    return at.cost + rho * violation + 0.5 * violation**2


def _active(multipliers: Array) -> NDArray[np.int64]:
    """Rows whose multipliers count."""
    return np.flatnonzero(multipliers > 1e-6 * max(float(multipliers.max(initial=0.0)), 1e-300))
