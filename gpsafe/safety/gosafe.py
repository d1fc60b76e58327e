"""GoSafe: safe sets that are not connected, reached by trying a policy until a state calls for the backup.

[GoSafe] Baumann, Marco, Turchetta & Trimpe, "GoSafe: Globally optimal safe robot learning", ICRA 2021 (arXiv 2105.13281);
[GoSafeOpt] Sukhija, Turchetta, Lindner, Krause, Trimpe & Baumann, Artificial Intelligence 320, 2023 (arXiv 2201.09562).

*Local exploration* is SafeOpt on S_n, which also remembers B, the states that were passed under each policy. *Global
exploration* takes any policy that is neither in S_n nor known to fail, the widest first, and watches every state x of the run:

    go on while some (a, x_a) ∈ B has  l_n^i(a) − h_i ≥ L_x(‖x − x_a‖ + Ξ)  for all constraints i            (boundary
    condition)

where Ξ bounds ‖x_{k+1} − x_k‖. Else the run ends under the policy a of the best (a, x_a), and the policy tried is known to fail
(until B and l_n have grown so that the state in which it was stopped no longer calls for the backup). A run that ends without
the backup was safe: C_n(a) ← C_n(a) ∩ [h, ∞), S_n ← S_n ∪ {a}.

**What it proves**, for plants *without process noise*, constraints that are the least of a state's margin over the *whole*
future and L_x-Lipschitz in the state from which it is counted: g_i(a, x) ≥ g_i(a, x_a) − L_x‖x − x_a‖ ≥ l_n^i(a) − L_x‖x −
x_a‖, so that the backup keeps h_i from one step beyond any state at which the condition holds. Noise, an expected cost and a
finite episode are outside it: a plant of this library has all three, so the learner makes no promise
(`gpsafe.algorithms.GoSafe`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.safety.safeopt import SafeOptSets, constrained


@short
@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """B: state j was passed under policy j.

    Attributes:
        policies: (m,), integers.
        states: (m, nx).
    """

    policies: Tensor
    states: Tensor

    @staticmethod
    def empty(nx: int) -> Rollouts:
        """None yet."""
        return Rollouts(torch.zeros(0, dtype=torch.long), torch.zeros(0, nx, dtype=torch.float64))

    def add(self, policy: int, states: Tensor) -> Rollouts:
        """With the states (k, nx) of one run of a policy."""
        new = torch.full((len(states),), policy, dtype=torch.long)
        return Rollouts(torch.cat([self.policies, new]), torch.cat([self.states, states]))

    def __len__(self) -> int:
        return len(self.policies)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """The boundary condition for one iteration, see the module.

    Args:
        rollouts: B.
        slack: min_i l_n^i(a) − h_i of every policy, (P,).
        lipschitz: L_x.
        jump: Ξ.
    """

    rollouts: Rollouts
    slack: Tensor
    lipschitz: float
    jump: float

    def __post_init__(self) -> None:
        _require.number("Boundary", "lipschitz", self.lipschitz, minimum=0.0)
        _require.number("Boundary", "jump", self.jump, minimum=0.0)

    @staticmethod
    def of(sets: SafeOptSets, threshold: Tensor, rollouts: Rollouts, *, lipschitz: float, jump: float) -> Boundary:
        """From the intervals of an iteration, h (q,), and B."""
        rows = constrained(threshold)
        return Boundary(rollouts, (sets.lower - threshold)[:, rows].amin(-1), lipschitz, jump)

    def slack_at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The largest l − h − L_x(‖x − x_a‖ + Ξ) over B and the policy a that has it: x (n, nx) → (n,), (n,).

        −inf and policy −1 while B is empty. The run goes on where it is ≥ 0 (a NaN does not).
        """
        if not len(self.rollouts):
            return x.new_full((len(x),), -math.inf), torch.full((len(x),), -1, dtype=torch.long)
        gap = (x.unsqueeze(1) - self.rollouts.states).norm(dim=-1)
        value = self.slack[self.rollouts.policies] - self.lipschitz * (gap + self.jump)
        best, at = value.nan_to_num(nan=-math.inf).max(-1)
        return best, self.rollouts.policies[at]


def adopt(sets: SafeOptSets, policy: int, threshold: Tensor) -> SafeOptSets:
    """After a run of `policy` that never called for the backup: C(a) ∩ [h, ∞) and S ∪ {a}."""
    policy = _require.index("adopt", "policy", policy)
    if bool(threshold.isnan().any()):
        raise _require.fail("adopt", "a threshold (q,), numbers or -inf", threshold.tolist())
    lower, safe = sets.lower.clone(), sets.safe.clone()
    lower[policy] = torch.maximum(lower[policy], threshold)
    safe[policy] = True
    return replace(sets, lower=lower, safe=safe)
