"""Filters on which everything is provable, their adversaries, and proposers that fail."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from xmpsc_cases import gp_pendulum

from gpsafe.certify import CertificationProblem, Proposal
from gpsafe.cost.enclosure import jacobians
from gpsafe.mpc.fast import CondensedSQP
from gpsafe.safety_filter import SafetyFilter
from gpsafe.sets import Box, Polytope
from gpsafe.systems.reference import reference_pendulum
from gpsafe.terminal_set import AffineLaw, Invariance, certify_invariance, invariant_polytope
from gpsafe.tube import lqr_gain
from proofs_checks.safety_filter import linear_case

FAST = CondensedSQP(starts=2, iterations=8)


@dataclass(frozen=True)
class Moody:
    """Proposes well, or, when `works` is off, badly: plans that leave everything, NaN, a wrong shape, a breakdown, or plans
    that are good but for the one kind of rows that they ignore ("states", "inputs", "terminal").
    """

    works: bool = True
    failure: str = "far"

    def propose(self, problem, x0, learned, *, warm=None):
        if self.works:
            return FAST.propose(problem, x0, learned, warm=warm)
        if self.failure == "breakdown":
            raise FloatingPointError("division by zero in the solver")
        if self.failure == "singular":
            raise np.linalg.LinAlgError("Singular matrix")
        if self.failure in ("states", "inputs", "terminal"):
            ignored = getattr(problem, self.failure)
            loose = replace(problem, **{self.failure: Polytope(ignored.H, 10.0 * ignored.h)})
            return FAST.propose(loose, x0, learned, warm=warm)
        plan = torch.full((problem.steps, problem.nu), {"far": 1e6, "nan": torch.nan}.get(self.failure, 0.0)).double()
        return Proposal(plan[:-1] if self.failure == "short" else plan, "Solve_Succeeded", 1, 0.0, "moody", -1.0)


@lru_cache(maxsize=1)
def gp_case(steps: int = 3) -> tuple[CertificationProblem, Invariance]:
    """The RKHS pendulum about its hanging rest with GP tubes, and an invariant terminal set."""
    base = gp_pendulum(steps=steps)
    known = reference_pendulum().known
    zero = torch.zeros(1, 3, dtype=torch.float64)
    A, B = jacobians(known, zero[:, :2], zero[:, 2:])
    stiff = torch.diag(torch.tensor([20.0, 1.0]).double())
    gain = lqr_gain(A[0], B[0], state_weight=stiff, input_weight=torch.tensor([[5.0]]).double())
    law = AffineLaw(gain, torch.zeros(1).double())
    small = Box(torch.tensor([-0.6, -3.0]).double(), torch.tensor([0.6, 3.0]).double())
    region = Polytope.of_box(small).intersect(Polytope(base.inputs.H @ gain, base.inputs.h))
    slack = Box(torch.tensor([-0.0115, -0.13]).double(), torch.tensor([0.0115, 0.13]).double())
    terminal = invariant_polytope(A[0] + B[0] @ gain, torch.zeros(2).double(), region, slack)
    problem = replace(base, terminal=terminal, gain=gain)
    return problem, certify_invariance(problem, law, budget=3000)


def linear_filter(**changes) -> SafetyFilter:
    problem, sure = linear_case()
    return replace(SafetyFilter(problem, Moody(), sure), **changes)


def extreme(half_axes: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The point of the ellipsoid with these half-axes that is farthest along a direction."""
    pushed = half_axes * direction
    return half_axes * pushed / pushed.norm().clamp_min(1e-300)


def worst_disturbance(half_axes: torch.Tensor, states: Polytope, x: torch.Tensor) -> torch.Tensor:
    """Towards the row of the states that is nearest to being left by the undisturbed next state."""
    return extreme(half_axes, states.H[int((states.H @ x - states.h).argmax())])
