"""Recovery shielding: a learner's input passes while a violation after it, under a backup policy, is improbable.

After Goodall & Belardinelli on recovery shielding with Gaussian-process dynamics (arXiv 2602.12444, AAMAS 2026), as their
abstract has it: a learner, a backup policy, a Gaussian process that says how uncertain the next states are, and a lower bound
of the probability of safety. How they propagate uncertainty is not restated here: the probabilities are those of this library,
certified for every f ∈ F_n (`gpsafe.cost.to_go`), so that the rule is theirs and the proof is below.

Let c be the indicator of a violation, V̄ and Q̄ the certified cost-to-go of the backup π and of an input in front of it. The
input u_t passes if Q̄_t(x_t, u_t) ≤ ε and the mass M_t + Q̄_t(x_t, u_t) ≤ η, M_0 = V̄_0(x_0), M the sum of all that has
passed; else π(x_t) is applied.

**Theorem** (theory §3.10, `recovery-mass`). Let f* ∈ F_n. Then P(no violation at x_0 … x_{T−1}) ≥ 1 − max(V̄_0(x_0), min(η,
V̄_0(x_0) + Tε)), whatever the learner proposes. *Proof.* Charge a violation at s to the last t < s at which an input passed, or
to the start. From t on the state moves as under u_t and then π, until the next input passes; costs are not negative, so what
is charged to t is at most Q̄_t(x_t, u_t) in expectation given x_0 … x_t, and V̄_0(x_0) to the start. So E Σ c ≤ V̄_0(x_0) + E Σ
Q̄_t over the passed inputs, which is at most M_T and at most V̄_0 + Tε. P(violation) ≤ E Σ c. ∎

With probability 1 − δ of f* ∈ F_n this is 1 − δ − that mass. The rule with ε alone (η = ∞), as shields have it, pays ε *again
and again*: T·ε, not ε. `gpsafe.safety.BudgetFilter` charges Q̄ − V̄ instead of Q̄, and is never the stricter of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Believed
from gpsafe.cost.to_go import CostToGo
from gpsafe.policies import input_at
from gpsafe.systems.base import IndicatorCost


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """What to apply now: u (nu,), whose it is, and the chance of a violation that was paid for it."""

    u: Tensor
    source: Literal["learner", "backup"]
    chance: float


@short
@dataclass(frozen=True, slots=True, eq=False)
class RecoveryShield:
    """(x, u_L) → u, see the module; a value: `decide` returns the shield for the next step, `start` is that of an episode.

    Attributes:
        to_go: V̄ and Q̄ of the backup, for an indicator cost.
        level: ε of a step.
        total: η of the episode; inf: none.
        stage, mass: t and M_t; None before the first step.
    """

    to_go: CostToGo
    level: float
    total: float = math.inf
    stage: int = 0
    mass: float | None = None

    def __post_init__(self) -> None:
        where = "RecoveryShield"
        _require.kind(where, "to_go", self.to_go, CostToGo)
        _require.kind(where, "cost", self.to_go.program.cost, IndicatorCost)
        _require.number(where, "level", self.level, minimum=0.0)
        if not self.total >= 0:
            raise _require.fail(where, "total >= 0", self.total)

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What `safety` rests on; f* ∈ F_n with the probability of the confidence set."""
        return self.to_go.assumptions

    @property
    def safety(self) -> float:
        """The theorem's bound of P(no violation in an episode from the task's x_0), for every f ∈ F_n; 0 where no theorem says
        that f* ∈ F_n, or where the policy or F_n moved since."""
        if not self.to_go.confidence.sound or self.to_go.moved:
            return 0.0
        task = self.to_go.program.task
        start = self.to_go.value(task.initial_state, task.horizon)
        return max(0.0, 1.0 - max(start, min(self.total, start + task.horizon * self.level)))

    def start(self) -> RecoveryShield:
        """At the start of an episode."""
        return replace(self, stage=0, mass=None)

    def decide(self, x: Tensor, learned: Tensor) -> tuple[Recovery, RecoveryShield]:
        """The input for the state x (nx,) and the proposed u_L (nu,), and the shield for the next step.

        Where x is not finite the backup answers as far as it can, and the middle of the inputs where it cannot.

        Raises:
            ValueError: on wrong shapes, or after the task's last step.
        """
        to_go, where = self.to_go, "RecoveryShield.decide"
        task, left = to_go.program.task, to_go.program.horizon - self.stage
        if left < 1:
            raise _require.fail(where, f"at most {task.horizon} steps (start begins anew)", self.stage)
        x = _require.shape(where, "x", torch.as_tensor(x, dtype=torch.float64), (task.nx,))
        learned = _require.shape(where, "learned", torch.as_tensor(learned, dtype=torch.float64), (to_go.inputs.dim,))
        mass, seen = to_go.value(x, left) if self.mass is None else self.mass, bool(torch.isfinite(x).all())
        chance = math.inf
        if seen and bool(torch.isfinite(learned).all()) and not to_go.moved:
            chance = to_go.ahead(x, to_go.inputs.clip(learned), left)
        following = replace(self, stage=self.stage + 1, mass=mass)
        if chance <= self.level and mass + chance <= self.total:
            return Recovery(to_go.inputs.clip(learned), "learner", chance), replace(following, mass=mass + chance)
        u = input_at(to_go.policy, x)
        return Recovery(u if bool(torch.isfinite(u).all()) else to_go.inputs.center, "backup", 0.0), following
