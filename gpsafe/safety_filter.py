"""The safety filter: any proposed input becomes one that a certificate stands behind, whenever there is one (theory §6).

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
every decision is backed, and x_t ∈ X, u_t ∈ U for all t, whatever is proposed and whatever the proposer does.

*Proof.* Let a plan be certified at time s. By (1), x_{s+j} is in its tube for j = 0 … T, which lies in X, and its law keeps
to U; so until j = T−1 "stored" is backed unless a newer plan is. At j = T the state is in the last ellipsoid, hence in X_f ∩ X,
where κ is backed and stays backed by invariance; likewise from a start in X_f ∩ X. ∎

That a *new* plan is found again is not claimed, and not needed. Without the invariance certificate the theorem holds for T − 1
steps after the last certified plan; what comes later is the listed assumption. In paper mode (1) is false in general.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.certify.judge import Certificate, judge
from gpsafe.certify.problem import CertificationProblem, Proposal, Proposer
from gpsafe.terminal_set import Invariance

Source = Literal["plan", "stored", "backup", "soft", "unfiltered"]
Law = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What to apply now.

    Attributes:
        u: (nu,), finite.
        source: see the module; "soft" is a least-violating plan, "unfiltered" the proposed input, clipped.
        backed: whether a certificate stands behind u, under its assumptions.
        stage: j, steps since the stored plan was certified; 0 for "plan", None if there is no plan with a stage left.
        contained: whether x is in the stored plan's tube at stage j ≥ 1, by member, (M,); None if there is no such stage.
            All False refutes the tube's assumptions (in paper mode, nothing that was claimed).
        certificate: of this step's proposal; None if the proposer failed.
        reason: why there is no new plan, in words; empty if there is.
    """

    u: Tensor
    source: Source
    backed: bool
    stage: int | None
    contained: Tensor | None
    certificate: Certificate | None
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class SafetyFilter:
    """(x, u_L) → u; a value: `decide` returns the filter for the next step. `start` forgets the stored plan.

    Attributes:
        problem: X, U, X_f, model and gain.
        proposer: of plans.
        invariance: of X_f under its law, which then is the backup.
        backup: κ where invariance is not certified; then what follows the last plan is assumed.
        soften: after this many infeasible steps in a row, and no stored plan left, apply least-violating plans.
        stored: the last certified plan.
        stage: steps since then.
        failures: infeasible steps in a row.
    """

    problem: CertificationProblem
    proposer: Proposer
    invariance: Invariance | None = None
    backup: Law | None = None
    soften: int | None = None
    stored: Certificate | None = None
    stage: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        if self.invariance is not None:
            if not self.invariance.certified:
                raise _require.fail("SafetyFilter", "a certified invariance", self.invariance.verdict.outcome)
            if not self.invariance.concerns(self.problem):
                raise _require.fail(
                    "SafetyFilter", "an invariance certificate of this problem's sets and model", "another's"
                )
        if self.soften is not None:
            _require.count("SafetyFilter", "soften", self.soften)

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What `backed` rests on."""
        uncertified = [Assumption.TERMINAL_INVARIANT(" under the backup after a plan's last step (not certified)")]
        return listed(self.problem.believed, uncertified if self.invariance is None else self.invariance.assumptions)

    def start(self) -> SafetyFilter:
        """The filter at the start of an episode; X, U and X_f are checked (small linear programs).

        Raises:
            ValueError: see `CertificationProblem.check`.
        """
        self.problem.check()
        return replace(self, stored=None, stage=0, failures=0)

    def decide(self, x: Tensor, learned: Tensor) -> tuple[Decision, SafetyFilter]:
        """The input for the measured state x (nx,) and the proposed u_L (nu,), and the filter for the next step.

        NaN or infinite x and u_L, plans that diverge and a proposer that breaks down are answered by falling back, with the
        reason. A u_L whose square is not finite is replaced by what the fallback would do.

        Raises:
            ValueError: on wrong shapes.
        """
        problem = self.problem
        x = _require.shape("SafetyFilter.decide", "x", x, (problem.nx,)).to(torch.float64)
        learned = _require.shape("SafetyFilter.decide", "learned", learned, (problem.nu,)).to(torch.float64)
        source, u, backed, contained = self._fallback(x)
        usable, reason = bool(torch.isfinite(problem.distance(learned, u))), ""
        if not usable:
            reason, learned = "the proposed input is not finite, or its square is not", u
        certificate = None
        if bool(torch.isfinite(x).all()):
            proposal, broken = self._propose(x, learned)
            if proposal is not None:
                certificate = judge(problem, x, learned, proposal)
                broken = certificate.reason
            reason = "; ".join(filter(None, (reason, broken)))
        else:
            reason = "the measured state is not finite"
        running = self.stored is not None and self.stage < self._last
        if certificate is not None and certificate.certified:
            decision = Decision(certificate.action, "plan", True, 0, contained, certificate, reason)
            return decision, replace(self, stored=certificate, stage=1, failures=0)
        failures = self.failures + 1
        soft = self.soften is not None and failures >= self.soften and not backed and not running
        if soft and certificate is not None and bool(torch.isfinite(certificate.action).all()):
            source, u = "soft", self._clipped(certificate.action)
        elif source == "unfiltered" and usable:
            u = self._clipped(learned)
        stage = self.stage if running else None
        decision = Decision(u, source, backed, stage, contained, certificate, reason)
        return decision, replace(self, stage=self.stage + 1, failures=failures)

    def _fallback(self, x: Tensor) -> tuple[Source, Tensor, bool, Tensor | None]:
        """What is applied without a new plan: source, u, backed; and containment in the stored tube."""
        plan, stage, steps = self.stored, self.stage, self._last
        finite, contained, inside = bool(torch.isfinite(x).all()), None, False
        if plan is not None and plan.tube is not None and stage <= steps:
            ellipsoids = plan.tube.ellipsoids
            if finite:
                contained = ellipsoids.contains(x)[:, stage]
                inside = bool(contained.any())
            else:
                contained = torch.zeros(plan.tube.num_members, dtype=torch.bool, device=x.device)
        if plan is not None and stage < steps and inside:
            return "stored", plan.law(stage, x), True, contained
        sure = self.invariance
        if sure is not None and finite and bool(sure.region.contains(x)):
            return "backup", sure.law(x), True, contained
        if plan is not None and stage < steps:
            u = plan.law(stage, x) if finite else plan.inputs[stage]
            return "stored", self._clipped(u), False, contained
        law = sure.law if sure is not None else self.backup
        if law is not None:
            return "backup", self._clipped(law(x)), False, contained
        return "unfiltered", self._clipped(x.new_full((self.problem.nu,), math.nan)), False, contained

    @property
    def _last(self) -> int:
        """T of the stored plan, 0 without one."""
        return 0 if self.stored is None or self.stored.tube is None else self.stored.tube.steps

    def _propose(self, x: Tensor, learned: Tensor) -> tuple[Proposal | None, str]:
        warm = None
        if self.stored is not None:
            steps = self.problem.steps
            rest = self.stored.inputs[min(self.stage, self.stored.inputs.shape[0] - 1) :][:steps]
            warm = torch.cat([rest, rest[-1:].expand(steps - rest.shape[0], -1)])
        try:
            return self.proposer.propose(self.problem, x.clone(), learned.clone(), warm=warm), ""
        # A solver's breakdown is a value here; wrong calls still raise.
        except (ArithmeticError, RuntimeError, np.linalg.LinAlgError) as error:
            return None, f"the proposer failed: {type(error).__name__}: {error}"

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


class SafetyFilterWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Filters the actions of any agent: `env = SafetyFilterWrapper(env, filter)`.

    The state is `info["state"]` where the environment gives it (as `gpsafe.envs` does), else the observation; `state` overrides
    that. The info of each step gets "filter": {"source", "backed", "contained" (None, True or False), "reason", "proposed",
    "applied"}; `decision` is the last one in full. The wrapped environment must not change actions inside U; an action space of
    float32 rounds them, by 6e-8 of their size, which no tube accounts for.

    Args:
        env: with a Box action space in the units of the problem's inputs.
        safety_filter: started anew at every reset.
        state: from observation and info to x (nx,).
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        safety_filter: SafetyFilter,
        *,
        state: Callable[[Any, dict[str, Any]], Any] | None = None,
    ) -> None:
        super().__init__(env)
        shape = env.action_space.shape
        if shape != (safety_filter.problem.nu,):
            raise _require.fail("SafetyFilterWrapper", f"actions of shape ({safety_filter.problem.nu},)", shape)
        self.safety_filter = safety_filter
        self.decision: Decision | None = None
        self._state = state or (lambda observation, info: info.get("state", observation))
        self._x: Tensor | None = None

    def _measure(self, observation: Any, info: dict[str, Any]) -> None:
        self._x = torch.as_tensor(np.array(self._state(observation, info), dtype=np.float64))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets both."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.safety_filter, self.decision = self.safety_filter.start(), None
        self._measure(observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step with the filtered action.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self._x is None:
            raise gymnasium.error.ResetNeeded("SafetyFilterWrapper.step: expected a call of reset first, got none")
        proposed = np.array(action, dtype=np.float64)
        decision, self.safety_filter = self.safety_filter.decide(self._x, torch.from_numpy(proposed))
        applied = decision.u.cpu().numpy().copy()
        observation, reward, terminated, truncated, info = self.env.step(applied.astype(self.action_space.dtype))
        self.decision = decision
        self._measure(observation, info)
        told = {
            "source": decision.source,
            "backed": decision.backed,
            "contained": None if decision.contained is None else bool(decision.contained.any()),
            "reason": decision.reason,
            "proposed": proposed,
            "applied": applied,
        }
        return observation, reward, terminated, truncated, {**info, "filter": told}
