"""The judge of plans: re-propagates the tube, checks every row itself, believes no solver. It never sees a proposer's code."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from gpsafe import _require, _show
from gpsafe._sealed import Seal, edited, require_unbroken, sealed
from gpsafe.certify.problem import CertificationProblem, Margins, Proposal
from gpsafe.sets.polytope import Polytope
from gpsafe.tube.core import Tube
from gpsafe.verdict import Outcome, Verdict

ROUNDING = 1e-12  # share of the sizes in a row by which its margin is reduced: more than the rounding of its evaluation


@dataclass(frozen=True, slots=True)
class Tightest:
    """The row with the least margin. `kind` is state, input, terminal or certainty; stage counts from 0 (terminal: T)."""

    kind: str
    stage: int
    member: int
    row: int
    margin: float


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """What the judge found. Only `certified` says whether the plan is certified.

    The verdict is about these numbers: `dataclasses.replace` refuses others, and a plan, tube or limit that was written on
    certifies nothing.

    Attributes:
        verdict: of "every constraint row exceeds its offset by at most the tolerance", with the interval of the largest excess.
        reason: why not, in words; empty if it holds.
        margins: of all rows after the judge's rounding margin; None if the tube could not be made.
        tightest: the row that decides; None likewise.
        tube: re-propagated by the judge; None likewise.
        inputs: ū, (T, nu), as proposed.
        gain: K, (T, nu, nx) or as in the problem if there is no tube.
        action: ū_0, (nu,).
        distance: (u_L − ū_0)ᵀ weight (u_L − ū_0); that it is minimal is not claimed. NaN for a NaN u_L.
        proposal: as handed in; its status is information.
        seconds: the judge's own time.
        assumptions: what containment of the plant rests on.
        problem: that was asked.
    """

    verdict: Verdict
    reason: str
    margins: Margins | None
    tightest: Tightest | None
    tube: Tube | None
    inputs: Tensor
    gain: Tensor
    action: Tensor
    distance: float
    proposal: Proposal
    seconds: float
    assumptions: tuple[str, ...]
    problem: CertificationProblem
    _seal: Seal | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_unbroken("Certificate", self)

    @property
    def edited(self) -> str | None:
        """What is no longer as the judge saw it; None if all is. Of the model ask `TubeModel.edited`."""
        return edited(self)

    @property
    def limits(self) -> tuple[Polytope, ...]:
        """X, U and X_f."""
        return self.problem.states, self.problem.inputs, self.problem.terminal

    @property
    def outcome(self) -> Outcome:
        """HOLDS, VIOLATED or INCONCLUSIVE."""
        return self.verdict.outcome

    @property
    def certified(self) -> bool:
        """Whether the verdict HOLDS, of the numbers as they are now."""
        return self.outcome is Outcome.HOLDS and self.edited is None

    def __repr__(self) -> str:
        told = f": {self.reason[:200]}" if self.reason else ""
        return f"Certificate({self.outcome.value}, {self.problem.steps} steps by {self.proposal.proposer}{told})"

    def _repr_html_(self) -> str:
        rows = [("verdict", self.outcome.value), ("reason", self.reason or "-"), ("steps", self.problem.steps)]
        rows += [("action", self.action), ("distance", self.distance), *(("rests on", a) for a in self.assumptions)]
        return _show.table("Certificate", rows)

    def law(self, stage: int, x: Tensor) -> Tensor:
        """The affine law at that stage of the plan, ū_k + K_k (x − c_k), (*b, nx) → (*b, nu).

        Raises:
            ValueError: for a stage that is no integer of 0 … T−1, without a tube, or for states of another dimension.
        """
        steps = 0 if self.tube is None else self.tube.steps
        if self.tube is None or _require.index("Certificate.law", "stage", stage) >= steps:
            raise _require.fail("Certificate.law", f"a stage in 0..{steps - 1}", stage)
        _require.last_dim("Certificate.law", "x", x, self.tube.reference.shape[-1])
        return self.inputs[stage] + (x - self.tube.reference[stage]) @ self.tube.gain[stage].mT


def judge(
    problem: CertificationProblem, x0: Tensor, learned: Tensor, proposal: Proposal | Tensor, *, spare: bool = False
) -> Certificate:
    """Whether the proposed inputs satisfy every constraint of the problem from x_0, for all members.

    The margins are lowered by `ROUNDING` of the sizes in each row. This covers float64 evaluation of tubes that do not grow a
    thousandfold; it is a margin, not interval arithmetic. Proposers aim `room` inside, or the problem states a tolerance.

    NaN or infinite states, plans and tubes, rows that overflow, proposals that hold no plan of the right shape and an x_0
    outside the states are INCONCLUSIVE, with the reason.

    A bare plan, a tensor (T, nu), is judged as a proposal that tells nothing else. With `spare` one that its own proposer has
    given up (`Proposal.given_up`) is INCONCLUSIVE at once: nothing is lost but the numbers of a failure.

    Raises:
        ValueError: if x_0 or u_L have the wrong dimension: the caller's error, not the proposer's.
    """
    start = time.perf_counter()
    if issubclass(type(proposal), Tensor):  # not isinstance: that asks the object
        proposal = Proposal(cast(Tensor, proposal), "", 0, math.nan, "unnamed", math.nan)
    proposal = cast(Proposal, proposal)
    for name, value, size in (("x0", x0, problem.nx), ("learned", learned, problem.nu)):
        if not isinstance(value, Tensor) or value.is_complex() or value.dtype is torch.bool:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise _require.fail("judge", f"a tensor of real numbers {name}", got)
        _require.shape("judge", name, value, (size,))
    inputs, unusable = _plan(problem, proposal, x0.device)

    def answer(verdict: Verdict, reason: str, *found: object) -> Certificate:
        margins, tightest, tube = found or (None, None, None)
        assert margins is None or isinstance(margins, Margins)
        assert tightest is None or isinstance(tightest, Tightest)
        assert tube is None or isinstance(tube, Tube)
        plan = inputs
        if plan is None:
            plan = torch.full((problem.steps, problem.nu), math.nan, dtype=torch.float64, device=x0.device)
        found_out = Certificate(
            verdict,
            reason,
            margins,
            tightest,
            tube,
            plan,
            problem.gain if tube is None else tube.gain,
            plan[0].clone(),
            float(problem.distance(learned.to(plan), plan[0])),
            proposal,
            time.perf_counter() - start,
            problem.believed,
            problem,
        )
        watched = ("inputs", "gain", "action", "tube", "limits")
        return sealed(found_out, free=("distance", "proposal", "seconds"), watched=watched)

    def unclear(reason: str) -> Certificate:
        return answer(Verdict(-math.inf, math.inf, problem.tolerance, witness=reason), reason)

    if not bool(torch.isfinite(x0).all()):
        return unclear("the initial state has NaN or infinite entries")
    if inputs is None:
        return unclear(unusable)
    if not bool(torch.isfinite(inputs).all()):
        return unclear("the proposed plan has NaN or infinite entries")
    outside = problem.states.H @ x0.to(torch.float64) - problem.states.h
    if not bool(torch.isfinite(outside).all()):
        return unclear("the rows of the states overflow at the initial state")
    if float(outside.max()) > problem.tolerance:
        row = int(outside.argmax())
        return unclear(f"infeasible initial state: row {row} of the states is exceeded by {float(outside[row]):.3g}")
    if spare and getattr(proposal, "given_up", False) is True:
        return unclear(f"the proposer has no plan: {proposal.reason or proposal.status}"[:400])
    with torch.no_grad():
        tube = problem.tube(x0, inputs, _path(problem, proposal, x0.device))
        margins, rounding, finite = _lowered(problem, tube)
        rows = margins.rows
        tightest, upper = _tightest(problem, rows), -float(rows.min())
        lower = min(upper, -float((rows + 2 * rounding).min()))
    if not finite:
        bad = ~(torch.isfinite(tube.center).all(-1) & torch.isfinite(tube.factor).all(-1).all(-1))
        if bool(bad.any()):
            stage = int(bad.any(0).nonzero()[0])
            member = int(bad[:, stage].nonzero()[0])
            return unclear(f"the tube of member {member} is not finite at stage {stage}")
        return unclear("rows of the constraints overflow on the tube")
    where = f"{tightest.kind} row {tightest.row} of member {tightest.member} at stage {tightest.stage}"
    verdict = Verdict(lower, upper, problem.tolerance, witness=f"{where}: margin {tightest.margin:.3e}")
    reason = "" if verdict.outcome is Outcome.HOLDS else f"{where} has margin {tightest.margin:.3e}"
    if verdict.outcome is Outcome.INCONCLUSIVE:  # as of an input that may have one value only
        reason += ", 0 to rounding: where rows leave no room the problem has to state a tolerance"
    return answer(verdict, reason, margins, tightest, tube)


def _plan(problem: CertificationProblem, proposal: Proposal, device: torch.device) -> tuple[Tensor | None, str]:
    """The plan as float64 in memory that the proposer does not share, or why there is none."""
    expected = f"the proposal has no real plan of shape {(problem.steps, problem.nu)}"
    try:
        inputs = proposal.inputs
        # Other tensor classes may answer what they like, and Booleans are no inputs.
        if type(inputs) not in (Tensor, torch.nn.Parameter) or inputs.is_complex() or inputs.dtype is torch.bool:
            got = inputs.dtype if type(inputs) in (Tensor, torch.nn.Parameter) else type(inputs).__name__
            return None, f"{expected}: {got}"
        if inputs.shape != (problem.steps, problem.nu):
            return None, f"{expected}: {tuple(inputs.shape)}"
        plan = torch.empty((problem.steps, problem.nu), dtype=torch.float64, device=device)
        return plan.copy_(inputs.detach()), ""
    except Exception as error:  # sparse, quantised, without data, no proposal at all …
        return None, f"{expected}: {_require.told(error)}"


def _path(problem: CertificationProblem, proposal: Proposal, device: torch.device) -> Tensor | None:
    """The claimed nominal path in own memory; None if there is none of the right kind: nothing but time rests on it."""
    shape = (problem.num_members, problem.steps + 1, problem.nx)
    try:
        path = proposal.path
        if type(path) is not Tensor or path.dtype is not torch.float64 or path.shape != shape:
            return None
        return torch.empty(shape, dtype=torch.float64, device=device).copy_(path.detach())
    except Exception:  # of whatever was handed in, as in `_plan`: it is no path, and the judge makes its own
        return None


def _lowered(problem: CertificationProblem, tube: Tube) -> tuple[Margins, Tensor, bool]:
    """The margins less `ROUNDING` of the sum of the absolute terms of every row; this share, (M, R) in the order of
    `Margins.rows`; whether the tube and the rows are finite."""
    X, U, F = problem.states, problem.inputs, problem.terminal
    spread = tube.center.abs() + tube.factor.abs().sum(-1)
    # The law K(x − c) rounds in units of |K|(|x| + |c|).
    reach = spread + tube.reference.abs().unsqueeze(-3)
    moved = tube.inputs.abs() + (tube.gain.abs() @ reach[..., :-1, :].unsqueeze(-1)).squeeze(-1)
    sure = reach[..., 1:, :0]
    if problem.certainty is not None:
        sure = (problem.certainty + reach[..., 1:, :]).repeat(1, 1, 2)
    sums = Margins(
        spread[..., 1:, :] @ X.H.abs().mT + X.h.abs(),
        moved @ U.H.abs().mT + U.h.abs(),
        spread[..., -1, :] @ F.H.abs().mT + F.h.abs(),
        sure,
    )
    computed, share = problem.margins(tube), ROUNDING * sums.rows
    rows = computed.rows - share
    groups = (computed.state, computed.input, computed.terminal, computed.certainty)
    parts = rows.split([group[0].numel() for group in groups], dim=-1)
    lowered = Margins(*(part.reshape(group.shape) for part, group in zip(parts, groups, strict=True)))
    return lowered, share, math.isfinite(float(spread.sum() + rows.sum()))


def room(problem: CertificationProblem, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far inside its tolerance a proposer should keep each row of X, U and the terminal set, or the judge's rounding margin
    refuses the plan: 16 `ROUNDING` of its offset and of its terms at x_0 (nx,). Guidance, of which no certificate is made.
    """
    size = x0.to(problem.states.H).abs()
    moved = 2 * (problem.gain.abs().reshape(-1, problem.nu, problem.nx).amax(0) @ size)
    sets = (problem.states, size), (problem.inputs, moved), (problem.terminal, size)
    state, inputs, terminal = (16 * ROUNDING * (rows.h.abs() + rows.H.abs() @ terms) for rows, terms in sets)
    return state, inputs, terminal


def _tightest(problem: CertificationProblem, rows: Tensor) -> Tightest:
    """Of rows (M, R)."""
    member, place = divmod(int(rows.argmin()), rows.shape[-1])
    steps, margin = problem.steps, float(rows[member, place])
    for kind, first, stages, size in (
        ("state", 1, steps, problem.states.rows),
        ("input", 0, steps, problem.inputs.rows),
        ("terminal", steps, 1, problem.terminal.rows),
        ("certainty", 1, steps, 2 * problem.nx),
    ):
        if place < stages * size:
            return Tightest(kind, first + place // size, member, place % size, margin)
        place -= stages * size
    raise AssertionError("a row beyond the last")
