"""A proposer without a solver: inputs between a law's and the proposed one, each continued by the law.

For any tube model, also those that no compiled search knows (Gaussian processes), a plan is what a pilot would do: a first
input, then the way back. With κ the law, x̄ the nominal path of the model's mean and λ ∈ [0, 1] on a grid,

    ū_0 = κ(x_0) + λ (u_L − κ(x_0)),   ū_k = κ(x̄_k),   k = 1 … T − 1,

all tubes are made in one batch, and the plan of the largest λ whose margins are not negative is handed in; the one with the
least violation if there is none. It searches a segment, so it finds less than a solver: how much is a matter of the law.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.certify.judge import room
from gpsafe.certify.problem import CertificationProblem, Margins, Proposal

SLACK = 1e-9  # that a margin must have here, so that the judge's rounding does not refuse it; more where `room` says so


@short
@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """See the module.

    Args:
        law: κ, x (*b, nx) → u (*b, nu); clipped to the box of `lower` and `upper`.
        lower, upper: box within U, (nu,).
        levels: λ are 0, 1/(levels − 1), …, 1.
    """

    law: Callable[[Tensor], Tensor]
    lower: Tensor
    upper: Tensor
    levels: int = 9

    def __post_init__(self) -> None:
        where = "Completion"
        _require.count(where, "levels", self.levels, minimum=2)
        lower = _require.finite(where, "lower", self.lower)
        upper = _require.shape(where, "upper", _require.finite(where, "upper", self.upper), tuple(lower.shape))
        if lower.ndim != 1 or not bool((lower <= upper).all()):
            raise _require.fail(where, "a box lower <= upper of shape (nu,)", (lower.tolist(), upper.tolist()))
        if not callable(self.law):
            raise _require.fail(where, "a law x ↦ u", type(self.law).__name__)

    def propose(
        self, problem: CertificationProblem, x0: Tensor, learned: Tensor, *, warm: Tensor | None = None
    ) -> Proposal:
        """The plan of the largest feasible λ; `warm` competes with it where it is feasible and nearer."""
        begun = time.perf_counter()
        share = torch.linspace(0.0, 1.0, self.levels, dtype=torch.float64, device=x0.device)
        base = self._input(x0)
        first = base + share.unsqueeze(-1) * (torch.clamp(learned, self.lower, self.upper) - base)
        plans = self._continued(problem, x0, first)
        if warm is not None:
            plans = torch.cat([plans, warm.unsqueeze(0)])
        margins = problem.margins(problem.tube(x0.expand(len(plans), -1), plans))
        margin, kept = least(margins), (margins.state, margins.input, margins.terminal)
        feasible = margin >= SLACK - problem.tolerance
        for part, inside in zip(kept, room(problem, x0), strict=True):
            feasible &= (part >= inside - problem.tolerance).flatten(1).all(-1)
        far = problem.distance(learned, plans[:, 0])
        index = int(torch.where(feasible, far, torch.inf).argmin() if bool(feasible.any()) else margin.argmax())
        told = "" if bool(feasible.any()) else f"none of {len(plans)} completed inputs keeps every row"
        status = "feasible" if bool(feasible.any()) else "infeasible"
        seconds, slack = time.perf_counter() - begun, -float(margin[index])
        return Proposal(plans[index], status, len(plans), seconds, "completion", slack, told)

    def _input(self, x: Tensor) -> Tensor:
        return torch.clamp(self.law(x), self.lower.to(x.device), self.upper.to(x.device))

    def _continued(self, problem: CertificationProblem, x0: Tensor, first: Tensor) -> Tensor:
        """ū (L, T, nu): first inputs (L, nu), then the law along the mean of the members' paths."""
        model, members = problem.model, problem.num_members
        x, u, inputs = x0.expand(len(first), members, -1), first, [first]
        mean = getattr(model, "mean", None)
        for _ in range(problem.steps - 1):
            fed = u.unsqueeze(-2).expand(-1, members, -1)
            with torch.no_grad():
                x = mean(x, fed) if mean is not None else model.linearise(x, fed).mean
            u = self._input(x.mean(-2))
            inputs.append(u)
        return torch.stack(inputs, dim=-2)


def least(margins: Margins) -> Tensor:
    """Least margin of each plan of a batch, (*b,); −inf where one is no number."""
    return torch.nan_to_num(margins.rows.flatten(-2).amin(-1), nan=-torch.inf)
