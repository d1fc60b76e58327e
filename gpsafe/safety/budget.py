"""Deviating from a certified policy within a budget of expected cost: what a learner may do before the prior takes over.

Newer methods (SOOPER, Wendl et al. 2026) let a learner's input pass where the cost so far plus the prior policy's cost-to-go
after it stays below d. With a certified Q̄ in place of a learned critic's mean this looks like a theorem. It is one where
nothing is random; with noise it is none, whatever Q̄ is. Let an input cause one unit of cost with probability d, at once, and
the prior none: the rule admits it for as long as it goes well, so that T such inputs cost 1 − (1 − d)^T. What was risked and
did not happen is never paid for.

Rule "account". Let V̄_t and Q̄_t be certified (`gpsafe.cost.to_go`): for all f ∈ F_n, V̄_t(x) ≥ c(x) + E V̄_{t+1}(x⁺) under the
prior's input, and Q̄_t(x, u) ≥ c(x) + E V̄_{t+1}(x⁺) under u. The price of an input is p_t = Q̄_t(x_t, u_t) − V̄_t(x_t), cut to
p_t ≤ 0 for the prior's own. The account starts with s_0 = d − V̄_0(x_0), and s_{t+1} = s_t − p_t. The learner's input passes if
that leaves s_{t+1} ≥ 0; else the prior's is applied.

**Theorem.** Let f* ∈ F_n, let states be measured and inputs applied exactly, and let the first decision leave s_1 ≥ 0. Then
E Σ_{t<T} c(x_t) ≤ d − E s_T ≤ d, whatever the learner proposes.

*Proof.* Let C_t be the cost before t and Φ_t = C_t + V̄_t(x_t). By the two inequalities E[Φ_{t+1} | x_0 … x_t] ≤ Φ_t + p_t; for
the prior's input both Q̄_t and V̄_t bound its cost. Summed over t: E C_T = E Φ_T ≤ V̄_0(x_0) + E Σ p_t = V̄_0(x_0) + s_0 − E s_T.
From s_1 ≥ 0 on the account stays ≥ 0: by the rule, and by p_t ≤ 0. ∎

Without noise Φ_{t+1} ≤ Φ_t + p_t in every run, so that the account may be raised to d − Φ_t at every step. The rule then is
the published one, C_t + Q̄_t(x_t, u) ≤ d, which is right there. Rule "pointwise" is that one with noise, too, to be compared
with; it is backed without noise alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Believed
from gpsafe.cost.to_go import CostToGo
from gpsafe.policies import input_at

__all__ = ["Allowance", "BudgetFilter"]

Rule = Literal["account", "pointwise"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Allowance:
    """What to apply now.

    Attributes:
        u: (nu,).
        source: whose it is: "learner" or "prior".
        price: p_t of the input that is applied.
        slack: s_{t+1}.
        backed: whether E Σ c ≤ d is certified for the episode, under the filter's assumptions; never again once it was not.
        reason: why the learner's input did not pass; empty if it did.
    """

    u: Tensor
    source: Literal["learner", "prior"]
    price: float
    slack: float
    backed: bool
    reason: str = ""


@short
@dataclass(frozen=True, slots=True, eq=False)
class BudgetFilter:
    """(x, u_L) → u, see the module; a value: `decide` returns the filter for the next step, `start` is that of an episode.

    F_n stands still during an episode; after an update of F_n make a new `CostToGo`.

    Attributes:
        to_go: V̄ and Q̄ of the prior policy.
        budget: d; that of the program's task by default.
        rule: "account" or "pointwise".
        surrogate: (x, u, stages left) ↦ a learner's guess of the cost-to-go, in place of Q̄ in the pointwise rule: the published
            form, never backed.
        stage, spent, slack: t, C_t, s_t; None before the first step. Another budget in the middle of an episode moves
            s_t by as much.
        broken: whether a step was not backed.
    """

    to_go: CostToGo
    budget: float | None = None
    rule: Rule = "account"
    surrogate: Callable[[Tensor, Tensor, int], float] | None = None
    stage: int = 0
    spent: float = 0.0
    slack: float | None = None
    broken: bool = False
    _begun: tuple[CostToGo, float] | None = field(default=None)

    def __post_init__(self) -> None:
        where = "BudgetFilter"
        _require.kind(where, "to_go", self.to_go, CostToGo)
        _require.one_of(where, "rule", self.rule, get_args(Rule))
        budget = self.to_go.program.task.budget if self.budget is None else self.budget
        object.__setattr__(self, "budget", _require.number(where, "budget", budget, minimum=0.0))
        if self.slack is not None and self._begun is not None:
            to_go, opened = self._begun
            if to_go is not self.to_go:
                raise _require.fail(where, "the cost-to-go with which the episode began (start begins anew)", "another")
            object.__setattr__(self, "slack", self.slack + (self._limit - opened))
            object.__setattr__(self, "_begun", (to_go, self._limit))
        if self.surrogate is not None and self.rule != "pointwise":
            raise _require.fail(where, "the pointwise rule with a surrogate", self.rule)

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What `backed` rests on."""
        return self.to_go.assumptions

    def start(self) -> BudgetFilter:
        """At the start of an episode."""
        return replace(self, stage=0, spent=0.0, slack=None, broken=False, _begun=None)

    def decide(self, x: Tensor, learned: Tensor) -> tuple[Allowance, BudgetFilter]:
        """The input for the state x (nx,) and the proposed u_L (nu,), and the filter for the next step.

        u_L is clipped to the inputs; one that is not finite does not pass. Where x is not finite, and where the prior or F_n is
        no longer what was certified (`CostToGo.moved`), the prior answers as far as it can; nothing is backed from there on.

        Raises:
            ValueError: on wrong shapes, or after the task's last step.
        """
        to_go, where = self.to_go, "BudgetFilter.decide"
        task, left = to_go.program.task, to_go.program.horizon - self.stage
        if left < 1:
            raise _require.fail(where, f"at most {to_go.program.horizon} steps (start begins anew)", self.stage)
        x = _require.shape(where, "x", torch.as_tensor(x, dtype=torch.float64), (task.nx,))
        learned = torch.as_tensor(learned, dtype=torch.float64)
        learned = _require.shape(where, "learned", learned, (to_go.inputs.dim,))
        value, budget = to_go.value(x, left), self._limit
        slack = budget - value if self.slack is None else self.slack
        if self._still:
            slack = max(slack, budget - self.spent - value)
        moved = to_go.moved
        seen = bool(torch.isfinite(x).all()) and not moved
        u, price = to_go.inputs.clip(learned), math.inf
        reason = moved or "the proposed input or the state is not finite"
        if seen and bool(torch.isfinite(learned).all()):
            ahead = to_go.ahead(x, u, left)
            guess = ahead if self.surrogate is None else self._guessed(x, u, left)
            price, reason = ahead - value, self._refusal(guess, ahead - value, slack)
        source: Literal["learner", "prior"] = "prior" if reason else "learner"
        if reason:
            u, price = input_at(to_go.policy, x), math.inf
            if not bool(torch.isfinite(u).all()):
                u = to_go.inputs.center
            elif seen:
                price = min(to_go.ahead(x, u, left) - value, 0.0)
        slack -= price
        broken = self.broken or not self._sound or not slack >= 0.0 or bool(moved)
        now = float(task.cost.upper(x.unsqueeze(0), x.unsqueeze(0))[0])
        after = replace(
            self, stage=self.stage + 1, spent=self.spent + now, slack=slack, broken=broken, _begun=(to_go, budget)
        )
        return Allowance(u, source, price, slack, not broken, reason), after

    @property
    def _limit(self) -> float:
        """d."""
        assert self.budget is not None
        return self.budget

    @property
    def _still(self) -> bool:
        return not bool((self.to_go.program.task.noise_std > 0).any())

    @property
    def _sound(self) -> bool:
        """Whether the theorem speaks of this rule, model and task."""
        return self.to_go.confidence.sound and self.surrogate is None and (self.rule == "account" or self._still)

    def _guessed(self, x: Tensor, u: Tensor, left: int) -> float:
        """The learner's word, which it does not share memory with; NaN where it has none."""
        assert self.surrogate is not None
        try:
            return float(self.surrogate(x.clone(), u.clone(), left))
        except BaseException as error:
            if _require.stops(error):
                raise
            _log.warning("the surrogate failed: %s", _require.told(error))
            return math.nan

    def _refusal(self, guess: float, price: float, slack: float) -> str:
        """Why an input does not pass; empty if it does. NaN does not."""
        if self.rule == "account":
            return "" if price <= slack else f"its price {price:.3g} is more than the account's {slack:.3g}"
        whole = self.spent + guess
        return "" if whole <= self._limit else f"cost so far and to go are {whole:.3g} of {self._limit:g}"
