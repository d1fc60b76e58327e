"""A shield for receding-horizon planning: no input is applied without a certified plan to the end of the episode.

At every step a planner proposes inputs. The shield completes each candidate with braking and feedback (a `Completer`,
untrusted) and lets a judge (`PlanTube`) follow all plans with a tube of everything that can happen under any f ∈ F_n and any
noise in a box. It applies the first input of the first admitted plan, else goes on with the plan admitted before.

**Theorem.** Assume (a) f* ∈ F_n (and ‖f*_j‖_k ≤ B_j) for the confidence sets used, (b) |w| ≤ w̄ componentwise at every step,
(c) at the start of the episode a fallback was certified from x_0, or (mode "assumed") is assumed to keep the constraint
from x_0 to the end. Then `decide` has an answer at every step and x_0, …, x_T all satisfy the constraint.

*Proof.* Let a plan (u_0, u_1, …) be admitted at time t from the measured x_t, with tubes X_0 = {x_t}, X_1, …, X_{T−t} inside
the constraint. By (a), (b) and the inclusion that defines the tube, x_{t+1} = f*(x_t, u_0(x_t)) + w ∈ X_1, and by induction
the trajectory under u_1, u_2, … stays in X_2, X_3, …: so the remaining plan, *as a feedback law from t+1 on*, keeps the
constraint whatever f* and w were. Hence at t+1 either a fresh plan is admitted, with the same consequence, or the remaining
one is followed, and the induction goes on; it starts with (c). A plan may end in a landing set L: the fallback was certified
from *every* x ∈ L for at least as many steps as remain, so nothing changes. ∎

(a) fails with probability at most δ for all n at once (`ConfidenceBound`), (b) with at most δ_w over the steps counted by
`noise_radius`. So with probability ≥ 1 − δ − δ_w no state of any of those episodes violates the constraint, and each
episode has expected cost J_c ≤ T·C·(δ + δ_w). Nothing is claimed on the complement, nor between the steps of the plant.

A measured state outside what (a) and (b) allow refutes them: it is reported (`Decision.falsified`; the last one, in which
nothing is decided, by `Shield.arrived`), never patched.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._lent import lent, surroundings
from gpsafe._pinned import Pinned, pinned_policies
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost.plan_tube import SLACK, Plans, PlanTube
from gpsafe.policies import inputs_at
from gpsafe.sets.zonotope import Zonotope

Source = Literal["plan", "stored", "fallback"]
_log = logging.getLogger(__name__)


def noise_radius(noise_std: Tensor, *, steps: int, delta: float) -> Tensor:
    """w̄ = kσ with P(|w_t| ≤ w̄ for `steps` steps) ≥ 1 − delta for w_t ~ N(0, diag(σ²)): a union bound over steps and states.

    Args:
        noise_std: σ, (nx,).
        steps: all steps for which the guarantee is to hold: episodes × horizon.
        delta: δ_w.
    """
    sigma = _require.nonnegative("noise_radius", "noise_std", noise_std)
    _require.count("noise_radius", "steps", steps)
    share = _require.probability("noise_radius", "delta", delta) / (2 * steps * sigma.numel())
    tail = -torch.special.ndtri(torch.tensor(share, dtype=torch.float64, device=sigma.device))
    return sigma * (float(tail) + 1e-6)


class Completer(Protocol):
    """Makes whole plans of candidate inputs, with brakes and feedback; never believed. `gpsafe.planning.Tracking` is one."""

    def plans(self, judge: PlanTube, x: Tensor, candidates: Tensor, lengths: Tensor, steps: int) -> Plans:
        """K·M plans of `steps` laws from the measured state x (nx,), candidate-major, M ≥ 1 of each candidate.

        Args:
            judge: refined for the confidence set of the episode, a copy.
            x: measured state.
            candidates: (K, H, nu).
            lengths: (K,), inputs used of each candidate.
            steps: remaining steps of the episode.
        """
        ...


def noise_risk(noise_std: Tensor, radius: Tensor, *, steps: int) -> float:
    """δ_w that `steps` steps in the box |w| ≤ w̄ cost: the union bound that `noise_radius` inverts, rounded up.

    Args:
        noise_std: σ, (nx,).
        radius: w̄, (nx,).
        steps: all steps so far.
    """
    sigma = _require.nonnegative("noise_risk", "noise_std", noise_std)
    radius = _require.shape("noise_risk", "radius", _require.nonnegative("noise_risk", "radius", radius), sigma.shape)
    _require.count("noise_risk", "steps", steps, minimum=0)
    ratio = torch.where(sigma > 0, radius / sigma, torch.inf)
    return steps * float(torch.special.erfc(ratio / math.sqrt(2.0)).sum()) * (1 + 1e-9)


@dataclass(frozen=True, slots=True)
class NotCertified:
    """S_0 could not be certified: no fallback keeps the constraint from x_0 for every member of F_n.

    Attributes:
        margin: best margin over the fallbacks, in units of the constraint; −inf if every tube was given up.
        steps: number of steps that the best tube was followed.
        falsified: set if F_n is empty somewhere: an assumption is false, and nothing can be certified.
    """

    margin: float
    steps: int
    falsified: str | None = None


@short
@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What to apply now.

    Attributes:
        u: (nu,).
        source: "plan": a candidate admitted now; "stored": the plan admitted before goes on; "fallback": its fallback
            policy, certified or assumed.
        index: of the candidate (in the order given) for "plan", else None.
        margin: of the plan that backs u, when it was admitted (see `Verification`); nan if it was assumed.
        admitted: (K,), which candidates were admitted with at least one brake.
        falsified: why a measured state, this one or an earlier one, refutes the assumptions, or None. No guarantee is left if
            it is set.
        reason: why the candidates could not be completed and judged, exceptions with kind and message; empty if they were.
    """

    u: Tensor
    source: Source
    index: int | None
    margin: float
    admitted: Tensor
    falsified: str | None = None
    reason: str = ""


@short
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shield:
    """State of one episode: the judge for this F_n, the time, and the plan that is admitted from here. Make it with `start`.

    Attributes:
        judge: refined for the confidence set of this episode.
        tracking: completes candidates.
        basis: how S_0 is known: "certified" (tube from x_0) or "assumed".
        time: t.
        stored: the admitted plan (a batch of one) that is valid from the present state.
        margin: its margin; nan if assumed.
        expected: what the present state must lie in: {x_0} at t = 0, then the one-step set, by (a) and (b), widened by a share
            `SLACK` of what a step computes with; None if nothing is claimed.
        falsified: the first measurement that refuted the assumptions, in words; it stays to the end of the episode.
        fallbacks: what the judge's fallback policies gave at the start of the episode.
    """

    judge: PlanTube
    tracking: Completer
    basis: Literal["certified", "assumed"]
    time: int
    stored: Plans
    margin: float
    expected: Zonotope | None = None
    falsified: str | None = None
    fallbacks: Pinned | None = None

    @staticmethod
    def start(
        judge: PlanTube,
        confidence: ConfidenceSet,
        x0: Tensor,
        *,
        tracking: Completer,
        assume: bool = False,
    ) -> Shield | NotCertified:
        """Certifies a fallback from x_0 for the whole episode; the one with the largest margin is stored.

        Args:
            judge: of this or an earlier confidence set (its grid is refined, not rebuilt).
            confidence: F_n.
            x0: measured initial state, (nx,).
            tracking: completes candidates.
            assume: if no fallback can be certified, take fallback 0 as assumed safe from x_0 instead of giving up.
        """
        x0 = _require.shape("Shield.start", "x0", _require.finite("Shield.start", "x0", x0), (confidence.model.nx,))
        judge, horizon = judge.refine(confidence), judge.task.horizon
        fallbacks = torch.arange(judge.fallbacks.num, device=x0.device)
        plans = Plans.of_fallbacks(fallbacks, x0.numel(), judge.input_box.dim)
        found = judge.verify(Zonotope.point(x0.expand(len(fallbacks), -1)), plans, horizon)
        best = int(found.margin.argmax())
        falsified = _empty(judge, x0)
        certified = bool(found.admitted[best]) and falsified is None
        if not certified and (not assume or falsified is not None):
            longest = int(found.steps.argmax())
            return NotCertified(float(found.margin[best]), int(found.steps[longest]), falsified)
        lent("Shield.start", judge)  # what cannot be copied for `tracking` is refused here, not in flight
        chosen = plans.select(torch.tensor([best if certified else 0], device=x0.device))
        u = chosen.act(x0.unsqueeze(0), judge.fallbacks, judge.input_box)[0]
        return Shield(
            judge=judge,
            tracking=tracking,
            basis="certified" if certified else "assumed",
            time=0,
            stored=chosen,
            margin=float(found.margin[best]) if certified else math.nan,
            expected=Zonotope.point(x0.clone().unsqueeze(0)).plus_box(SLACK * judge.sizes(x0, u)),
            fallbacks=pinned_policies(judge.fallbacks, x0),
        )

    @property
    def horizon(self) -> int:
        """T, number of inputs of the episode."""
        return self.judge.task.horizon

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What the guarantee of this episode rests on."""
        assumed = [Assumption.INITIAL_SET(": fallback 0 keeps the constraint from x_0 (S_0 assumed)")]
        return listed(self.judge.believed(), assumed if self.basis == "assumed" else [])

    def decide(self, x: Tensor, candidates: Tensor, lengths: Tensor | None = None) -> tuple[Decision, Shield]:
        """The input for the measured state x (nx,), and the shield for the next step.

        What `tracking` raises, or the judge at plans of its making, costs the candidates and not the answer.

        Args:
            x: measured state.
            candidates: (K, H, nu), best first; K may be 0.
            lengths: (K,), how many inputs of each candidate are meant (default: all).
        """
        if self.time >= self.horizon:
            raise _require.fail("Shield.decide", f"a time below the horizon {self.horizon}", self.time)
        judge, remaining, nu = self.judge, self.horizon - self.time, self.judge.input_box.dim
        nx = judge.noise_radius.numel()
        x = _require.shape("Shield.decide", "x", _require.finite("Shield.decide", "x", x), (nx,))
        candidates = _require.floats("Shield.decide", "candidates", candidates)
        if candidates.ndim != 3 or candidates.shape[-1] != nu:
            raise _require.fail("Shield.decide", f"candidates of shape (K, H, {nu})", tuple(candidates.shape))
        count = candidates.shape[0]
        if lengths is None:
            lengths = torch.full((count,), candidates.shape[1], device=candidates.device)
        lengths = _require.shape(
            "Shield.decide", "lengths", _require.whole("Shield.decide", "lengths", lengths), (count,)
        )
        falsified = self.falsified or self._outside(x) or self._moved()
        admitted = torch.zeros(count, dtype=torch.bool, device=x.device)
        plan, index, margin, reason = self.stored, None, self.margin, ""
        source: Source = "stored" if bool((plan.lengths > 0).all()) else "fallback"
        if count:
            finite = torch.isfinite(candidates).flatten(1).all(-1)
            usable = torch.where(finite[:, None, None], candidates, 0.0)
            length = lengths.clamp(0, candidates.shape[1])
            try:
                with surroundings():
                    given = self.tracking.plans(
                        lent("Shield", judge), x.clone(), usable.clone(), length.clone(), remaining
                    )
                plans = Plans.owned(given, nx, nu, judge.fallbacks.num)
                found = judge.verify(Zonotope.point(x.expand(plans.num, -1)), plans, remaining)
                by_candidate = found.admitted.reshape(count, -1) & finite.unsqueeze(-1)
                margins = torch.where(by_candidate, found.margin.reshape(count, -1), -torch.inf)
                trimmed = found.trimmed(plans)
            except BaseException as error:
                if _require.stops(error):
                    raise
                reason = f"the candidates could not be judged: {_require.told(error)}"
                _log.warning(reason)
            else:
                admitted = by_candidate.any(-1)
                if bool(admitted.any()):
                    index = int(torch.nonzero(admitted)[0])
                    row = index * margins.shape[1] + int(margins[index].argmax())
                    plan, margin = trimmed.select(torch.tensor([row], device=x.device)), float(margins[index].max())
                    source = "plan"
        u = plan.act(x.unsqueeze(0), judge.fallbacks, judge.input_box)[0]
        try:
            expected = judge.reach(Zonotope.point(x.unsqueeze(0)), plan, 0)[0]
            expected = expected.plus_box(SLACK * judge.sizes(x, u))
        except (
            Exception
        ) as error:  # of a fallback, say, whose own slopes turn out wrong: there is an answer all the same
            expected, falsified = None, falsified or f"the next set could not be made: {_require.told(error)}"
        time, stored = self.time + 1, plan.shifted()
        following = replace(self, time=time, stored=stored, margin=margin, expected=expected, falsified=falsified)
        return Decision(u, source, index, margin, admitted, falsified, reason), following

    def arrived(self, x: Tensor) -> Shield:
        """With what the measured state x (nx,) refutes, as `decide` finds it: for the last state of an episode, in which
        nothing is decided any more. One that is not finite is no measurement, and refutes nothing.
        """
        where = "Shield.arrived"
        x = _require.shape(where, "x", _require.floats(where, "x", x), (self.judge.noise_radius.numel(),))
        outside = self._outside(x) if bool(torch.isfinite(x).all()) else None
        return replace(self, falsified=self.falsified or outside or self._moved())

    def _moved(self) -> str | None:
        """What is no longer what the plans in hand were certified for; None if nothing."""
        if self.fallbacks is not None and self.fallbacks.moved:
            return "the fallback policies are no longer those that were certified"
        edited = None if self.judge.confidence is None else self.judge.confidence.edited
        return None if edited is None else f"F_n was edited: expected {edited}"

    def _outside(self, x: Tensor) -> str | None:
        """Why x refutes the assumptions: it is outside the interval hull of the tube's one-step set; None if it is not."""
        if self.expected is None or not bool(self.expected.within(torch.inf)):  # nothing was claimed
            return None
        radius = self.expected.radius[0]
        excess = (x - self.expected.center[0]).abs() - radius
        worst = int(excess.argmax())
        if float(excess[worst]) <= 0.0:
            return None
        if self.time == 0:
            return f"state {worst} at t = 0 is {float(excess[worst]):.3g} away from the x_0 that the episode was started with"
        return (
            f"state {worst} at t = {self.time} is {float(excess[worst]):.3g} beyond its one-step set "
            f"(half-width {float(radius[worst]):.3g}): f* is not in F_n, or the noise left its box"
        )


def _empty(judge: PlanTube, x0: Tensor) -> str | None:
    """Where F_n is empty, in words: of the grid's anchors, and of x_0 under the fallbacks; None if nowhere."""
    points = torch.zeros(0) if judge.anchors is None else judge.anchors.empty
    if len(points):
        return f"F_n is empty at {len(points)} anchors, first z = {points[0].tolist()}"
    if judge.confidence is None:
        return None
    u = inputs_at(judge.fallbacks, x0.reshape(1, 1, -1))[:, 0]
    found = judge.confidence.falsified(torch.cat([x0.expand(len(u), -1), u], dim=-1))
    return None if found is None else str(found)
