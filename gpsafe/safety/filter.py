"""The safety filter: any proposed input becomes one that a certificate stands behind, whenever there is one (theory §6.8).

At every step a proposer (untrusted) looks for a plan whose first input is close to the proposed one, and the judge decides.
The filter applies the first of these that exists:

    plan      ū_0 of a plan certified now;
    stored    law j of the plan certified j steps ago, ū_j + K_j(x − c_j), while j < T and x is in its tube;
    backup    κ(x), if X_f ∩ X is certified to be invariant under κ and x is in it.

These are *backed*. If none exists, something is applied all the same, and the decision says that nothing backs it: the stored
plan although x is outside its tube, the least-violating plan (only with `soften`, the published rule), κ(x), or the proposed
input, clipped to the inputs.

**Theorem.** Let the tube model satisfy (1) of `gpsafe.tube.core` at every step, let the state be measured exactly and u be
applied exactly, let X_f ∩ X be certified invariant under κ, let the tolerance be 0, and let the first decision be backed. Then
every decision is backed, and x_t ∈ X, u_t ∈ U for all t, whatever is proposed and whatever the proposer returns or raises.

*Proof.* Let a plan be certified at time s. By (1), x_{s+j} is in its tube for j = 0 … T, which lies in X, and its law keeps
to U; so until j = T−1 "stored" is backed unless a newer plan is. At j = T the state is in the last ellipsoid, hence in X_f ∩ X,
where κ is backed and stays backed by invariance; likewise from a start in X_f ∩ X. ∎

If x is, after all, in none of the tubes in which the plant must be, then a premise is false. This is said in the decision
(`Decision.falsified`; of an episode's last state by `arrived`), and nothing is called backed from there on until `start`,
although the same inputs are applied: a plan certified with a refuted model is a guess. For probabilistic premises it may be the
event of probability δ.

Tensors can be written on. A stored plan whose numbers or limits are no longer those that were certified is forgotten, and the
reason tells it; a backup, or its set, that is no longer what was certified is a premise that is false.

That a *new* plan is found again is not claimed, and not needed. Without the invariance certificate the theorem holds for T − 1
steps after the last certified plan; what comes later is the listed assumption. In paper mode (1) is false in general.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._lent import surroundings
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.certify.judge import Certificate, judge
from gpsafe.certify.problem import CertificationProblem, Proposal, Proposer
from gpsafe.certify.terminal_set import Invariance
from gpsafe.verdict import Outcome

__all__ = ["Decision", "SafetyFilter", "Source"]

Source = Literal["plan", "stored", "backup", "soft", "unfiltered"]
Law = Callable[[Tensor], Tensor]
BLAMED = "the model's assumptions, exact measurement or exact application of the input are false"
_log = logging.getLogger(__name__)


class _Rest(NamedTuple):
    """What is applied without a new plan, what backs it, and why there is no backup."""

    source: Source
    u: Tensor
    backed: bool
    broken: str = ""


@short
@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What to apply now.

    Attributes:
        u: (nu,), finite.
        source: see the module; "soft" is a least-violating plan, "unfiltered" the proposed input, clipped.
        backed: whether a certificate stands behind u, under its assumptions; never once they are falsified.
        stage: j, steps since the stored plan was certified; 0 for "plan", None if there is no plan with a stage left.
        contained: whether x is in the stored plan's tube at stage j ≥ 1, by member, (M,); None if there is no such stage or x
            is not finite.
        certificate: of this step's proposal; None if the proposer failed.
        reason: why there is no new plan, in words, exceptions with kind and message; empty if there is.
        falsified: why an assumption behind `backed` is false, since when it is; None as long as nothing refutes them.
    """

    u: Tensor
    source: Source
    backed: bool
    stage: int | None
    contained: Tensor | None
    certificate: Certificate | None
    reason: str
    falsified: str | None = None


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafetyFilter:
    """(x, u_L) → u; a value: `decide` returns the filter for the next step. `start` forgets the stored plan.

    The proposer works on copies (`CertificationProblem.lent`): nothing that it writes on reaches the judge.

    Attributes:
        problem: X, U, X_f, model and gain.
        proposer: of plans.
        invariance: of X_f under its law, which then is the backup.
        backup: κ where invariance is not certified; then what follows the last plan is assumed. One that raises or returns no
            input of shape (nu,) is told in the reason, and nothing backs what is applied instead.
        soften: after this many infeasible steps in a row, and no stored plan left, apply least-violating plans.
        stored: the last certified plan.
        stage: steps since then.
        failures: infeasible steps in a row.
        members: that may still be the one for which (1) holds, (M,): x was in their tubes at all stages while the plan's law
            was followed. None if it was not always followed.
        resting: whether the last input was that of the certified backup in its set.
        falsified: see `Decision`; stays until `start`.
    """

    problem: CertificationProblem
    proposer: Proposer
    invariance: Invariance | None = None
    backup: Law | None = None
    soften: int | None = None
    stored: Certificate | None = None
    stage: int = 0
    failures: int = 0
    members: Tensor | None = None
    resting: bool = False
    falsified: str | None = None

    def __post_init__(self) -> None:
        where = "SafetyFilter"
        if not isinstance(self.problem, CertificationProblem):
            raise _require.fail(where, "a CertificationProblem", type(self.problem).__name__)
        self.problem.lent()
        _proposes(self.proposer)
        if self.invariance is not None:
            if self.invariance.verdict.outcome is not Outcome.HOLDS:
                raise _require.fail(where, "a certified invariance", self.invariance.verdict.outcome)
            if self.falsified is None and not self.invariance.concerns(self.problem):
                raise _require.fail(where, "an invariance certificate of this problem's sets and model", "another's")
        if self.backup is not None and not callable(self.backup):
            raise _require.fail(where, "a backup law x ↦ u", type(self.backup).__name__)
        if self.soften is not None:
            _require.count(where, "soften", self.soften)
        _require.index(where, "stage", self.stage)
        _require.index(where, "failures", self.failures)
        if self.stored is not None:
            if not (isinstance(self.stored, Certificate) and self.stored.outcome is Outcome.HOLDS):
                raise _require.fail(where, "a certified plan in stored", self.stored)
            if not self.problem.asks_as(self.stored.problem):
                raise _require.fail(where, "a stored plan certified for these sets (start forgets it)", "another's")
            if self.stored.verdict.threshold > self.problem.tolerance:
                granted = f"{self.stored.verdict.threshold:g}"
                raise _require.fail(where, f"a stored plan within a tolerance of {self.problem.tolerance:g}", granted)

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What `backed` rests on; with a stored plan of another model, that model's too."""
        earlier = () if self.stored is None else self.stored.assumptions
        sure, tolerance, open_end = self.invariance, self.problem.tolerance, ()
        if sure is None:
            open_end = (Assumption.TERMINAL_INVARIANT(" under the backup after a plan's last step (not certified)"),)
        elif tolerance > 0:
            told = f" under the backup from up to {tolerance:g} outside, where plans may end (not certified)"
            open_end = (Assumption.TERMINAL_INVARIANT(told),)
        return listed(self.problem.believed, earlier, () if sure is None else sure.assumptions, open_end)

    def start(self) -> SafetyFilter:
        """The filter at the start of an episode, which forgets plan and refutation.

        X, U and X_f are checked (small linear programs), and the proposer gets ready, if it has a method `prepare(problem)`:
        what it lacks to work at all is an error here, not an episode without plans.

        Raises:
            ValueError: see `CertificationProblem.check`; for an invariance that was written on since it was certified.
        """
        self.problem.check()
        if self._moved is not None:
            raise _require.fail("SafetyFilter.start", "the invariance as it was certified", self._moved)
        prepare = getattr(self.proposer, "prepare", None)
        if prepare is not None:
            prepare(self.problem.lent())
        return replace(self, stored=None, stage=0, failures=0, members=None, resting=False, falsified=None)

    def refuted(self, why: str) -> SafetyFilter:
        """With an assumption falsified from now on, by what only the caller could see; the first reason stays."""
        return replace(self, falsified=self.falsified or why)

    def arrived(self, x: Tensor) -> SafetyFilter:
        """With what the measured state x (nx,) refutes, as `decide` finds it: for the last state of an episode, in which
        nothing is decided any more. An environment that ends where a limit is left shows its leaving in that state alone.
        """
        kept, _ = self._kept()
        *_, falsified = kept._whereabouts(_vector("x", x, self.problem.nx))
        return kept if falsified is None else kept.refuted(falsified)

    def decide(self, x: Tensor, learned: Tensor) -> tuple[Decision, SafetyFilter]:
        """The input for the measured state x (nx,) and the proposed u_L (nu,), and the filter for the next step.

        NaN or infinite x and u_L, plans that diverge and whatever a proposer raises or returns are answered by falling back,
        with the reason. A u_L whose square is not finite is replaced by what the fallback would do.

        Of exceptions all kinds are the proposer's failure, `MemoryError` too: it asked for too much, and the answer needs next
        to nothing; and `asyncio.CancelledError` and `GeneratorExit`, which nobody else can raise in a call that neither awaits
        nor yields. Only what is no failure but somebody's wish to stop passes through (KeyboardInterrupt, SystemExit, and a
        group that holds one). A proposer that never returns is not answered: give it a time limit.

        Raises:
            ValueError: on wrong shapes or what is no tensor of real numbers.
        """
        problem = self.problem
        x = _vector("x", x, problem.nx)
        learned = _vector("learned", learned, problem.nu)
        kept, forgotten = self._kept()
        if forgotten:
            decision, following = kept.decide(x, learned)
            return replace(decision, reason="; ".join(filter(None, (forgotten, decision.reason)))), following
        contained, members, inside, falsified = self._whereabouts(x)
        usable = bool(torch.isfinite(problem.distance(learned, torch.zeros_like(learned))))
        rest, reasons = None, []
        if not usable:
            rest = self._fallback(x, inside)
            reasons = ["the proposed input is not finite, or its square is not"]
            learned = rest.u
        certificate, broken = None, "the measured state is not finite"
        if bool(torch.isfinite(x).all()):
            certificate, broken = self._certify(x, learned)
        reason = "; ".join(filter(None, (*reasons, broken)))
        trusted, running = falsified is None, self.stored is not None and self.stage < self._last
        if certificate is not None and certificate.outcome is Outcome.HOLDS:
            decision = Decision(
                certificate.action.clone(), "plan", trusted, 0, contained, certificate, reason, falsified
            )
            fresh = torch.ones(problem.num_members, dtype=torch.bool, device=x.device)
            changed = {"stored": certificate, "stage": 1, "failures": 0, "members": fresh, "resting": False}
            return decision, replace(self, **changed, falsified=falsified)
        rest = self._fallback(x, inside) if rest is None else rest
        source, u, failures = rest.source, rest.u, self.failures + 1
        soft = self.soften is not None and failures >= self.soften and not rest.backed and not running
        if soft and certificate is not None and bool(torch.isfinite(certificate.action).all()):
            source, u = "soft", self._clipped(certificate.action)
        elif source == "unfiltered" and usable:
            u = self._clipped(learned)
        reason = "; ".join(filter(None, (reason, rest.broken)))
        stage = self.stage if running else None
        decision = Decision(u, source, rest.backed and trusted, stage, contained, certificate, reason, falsified)
        changed = {
            "stage": self.stage + 1,
            "failures": failures,
            "members": members if source == "stored" and rest.backed else None,
            "resting": source == "backup" and rest.backed,
        }
        return decision, replace(self, **changed, falsified=falsified)

    @property
    def _moved(self) -> str | None:
        """What of the invariance certificate is about something else by now; None without one."""
        sure = self.invariance
        if sure is None:
            return None
        return sure.edited or (None if sure.concerns(self.problem) else "one of other sets or of another model")

    def _kept(self) -> tuple[SafetyFilter, str]:
        """Without a stored plan that was written on, or whose limits were, since it was certified; and why."""
        if self.stored is None:
            return self, ""
        edited = self.stored.edited or ("" if self.problem.asks_as(self.stored.problem) else "other limits")
        if not edited:
            return self, ""
        falsified = self.falsified or self._broken
        kept = replace(self, stored=None, stage=0, members=None, falsified=falsified)
        return kept, f"the stored plan was forgotten: expected it as it was certified, got {edited}"

    @property
    def _broken(self) -> str | None:
        """`_moved` in the words of a refutation."""
        moved = self._moved
        return (
            None
            if moved is None
            else f"the backup was changed: expected the invariance as it was certified, got {moved}"
        )

    def _whereabouts(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, bool, str | None]:
        """Is x in the stored tube, by member; who may be the right one; is x in the right one's; what is refuted.

        Under (1) one and the same member contains the plant at all stages while the law is followed. Where the law was not
        always followed, nothing is refuted, and x is in the right member's tube for certain only if it is in all.
        """
        plan, falsified = self.stored, self.falsified
        edited = getattr(self.problem.model, "edited", None)  # a certificate in hand speaks of what the model was
        if falsified is None and edited is not None:
            falsified = f"the model was changed: expected {edited}"
        falsified = falsified or self._broken
        if not bool(torch.isfinite(x).all()):
            return None, None, False, falsified
        sure = self.invariance
        if falsified is None and self.resting and sure is not None and not bool(sure.region.contains(x)):
            worst = float(sure.region.violation(x))
            falsified = f"x left the set certified to be invariant under the backup, by {worst:.3g}: {BLAMED}"
        if plan is None or plan.tube is None or self.stage > plan.tube.steps:
            return None, None, False, falsified
        contained = plan.tube.at(self.stage).contains(x)
        if plan.tube.mode == "paper":
            return contained, None, bool(contained.any()), falsified
        if self.members is None:
            everywhere = bool(contained.all())
            return contained, contained if everywhere else None, everywhere, falsified
        members = self.members.to(contained.device) & contained
        inside = bool(members.any())
        if falsified is None and not inside:
            told = f"x is in the tube of no member that contained it before, {self.stage} steps after the plan was certified"
            falsified = f"{told}: {BLAMED}"
        return contained, members, inside, falsified

    def _fallback(self, x: Tensor, inside: bool) -> _Rest:
        """What is applied without a new plan."""
        plan, stage, steps = self.stored, self.stage, self._last
        finite, sure = bool(torch.isfinite(x).all()), self.invariance
        if plan is not None and stage < steps and inside:
            return _Rest("stored", plan.law(stage, x), True)
        if sure is not None and finite and bool(sure.region.contains(x)):
            u = sure.law(x)  # in U, as certified, unless what was certified has been changed
            return _Rest("backup", u if self._broken is None else self._clipped(u), True)
        if plan is not None and stage < steps:
            u = plan.law(stage, x) if finite else plan.inputs[stage]
            return _Rest("stored", self._clipped(u), False)
        law, broken = sure.law if sure is not None else self.backup, ""
        if law is not None:
            try:
                u = torch.as_tensor(law(x.clone()), dtype=x.dtype).detach().to(x, copy=True)
                return _Rest("backup", self._clipped(_require.shape("backup", "u", u, (self.problem.nu,))), False)
            except BaseException as error:
                if _require.stops(error):
                    raise
                broken = f"the backup failed: {_require.told(error)}"
                _log.warning(broken)
        return _Rest("unfiltered", self._clipped(x.new_full((self.problem.nu,), math.nan)), False, broken)

    @property
    def _last(self) -> int:
        """T of the stored plan, 0 without one."""
        return 0 if self.stored is None or self.stored.tube is None else self.stored.tube.steps

    def _certify(self, x: Tensor, learned: Tensor) -> tuple[Certificate | None, str]:
        """The judge on what the proposer finds, and why that is no certified plan."""
        warm = None
        if self.stored is not None:
            steps = self.problem.steps
            rest = self.stored.inputs[min(self.stage, self.stored.inputs.shape[0] - 1) :][:steps]
            warm = torch.cat([rest, rest[-1:].expand(steps - rest.shape[0], -1)])
        try:
            with surroundings():
                proposal = self.proposer.propose(self.problem.lent(), x.clone(), learned.clone(), warm=warm)
            if not isinstance(proposal, Proposal):  # asks what was returned, so in here
                return None, self._failed(f"it returned a {type(proposal).__name__}, no Proposal")
        except BaseException as error:
            if _require.stops(error):
                raise
            return None, self._failed(_require.told(error))
        try:
            certificate = judge(self.problem, x, learned, proposal, spare=True)
        except BaseException as error:  # of the model, at a plan that no model needs to bear, or of what was returned
            if _require.stops(error):
                raise
            return None, f"the plan's tube could not be made: {_require.told(error)}"
        return certificate, certificate.reason

    def _failed(self, why: str) -> str:
        told = f"the proposer failed: {why}"
        if self.failures == 0:  # once in a row: a proposer that cannot work must not go unnoticed
            _log.warning(told)
        return told

    def _clipped(self, u: Tensor) -> Tensor:
        """u moved towards a centre of U until it is in U as computed; the centre itself if u is not finite."""
        inputs = self.problem.inputs
        if bool(torch.isfinite(u).all()) and bool(inputs.contains(u)):
            return u
        center = inputs.chebyshev()[0].to(u.device)
        if not bool(torch.isfinite(u).all()):
            return center
        along = inputs.H @ (u - center)
        room = (inputs.h - inputs.H @ center).clamp_min(0.0)
        share = torch.where(along > 0, room / along.clamp_min(1e-300), torch.full_like(along, math.inf)).min()
        for shrink in (0.0, 1e-15, 1e-13, 1e-11, 1e-9):  # rounding may leave it outside by a bit
            moved = center + (1.0 - shrink) * share.clamp_max(1.0) * (u - center)
            if bool(inputs.contains(moved)):
                return moved
        return center


def _proposes(proposer: object) -> None:
    """A proposer that cannot even be called is the user's mistake, not a step without a plan."""
    propose = getattr(proposer, "propose", None)
    expected = "a proposer: an object with a method propose(problem, x0, learned, *, warm)"
    if isinstance(proposer, type) or not callable(propose):
        raise _require.fail("SafetyFilter", expected, repr(proposer))
    try:
        signature = inspect.signature(propose)
    except (TypeError, ValueError):  # built in: nothing is known
        return
    try:
        signature.bind(None, None, None, warm=None)
    except TypeError as error:
        raise _require.fail(
            "SafetyFilter", expected, f"{type(proposer).__name__}.propose{signature}: {error}"
        ) from error


def _vector(name: str, value: Tensor, size: int) -> Tensor:
    """Own float64 copy of a tensor (size,); NaN and infinity may be in it."""
    if not isinstance(value, Tensor) or value.is_complex() or value.dtype is torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise _require.fail("SafetyFilter.decide", f"a tensor of real numbers {name}", got)
    return _require.shape("SafetyFilter.decide", name, value, (size,)).detach().to(torch.float64, copy=True)
