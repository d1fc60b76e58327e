"""LBSGD as a search: ascent on a log-barrier of estimates with step sizes from its local smoothness.

Maximise F(θ) subject to c(θ) ≤ 0 and θ in the unit cube: the program of `gpsafe.planning.log_barrier` with f₀ = −F, f₁ = c and
the 2d faces, whose step length keeps every slack above half of what it was if c is M₁-smooth and gradients are exact. That is
feasibility of the *estimated* constraint. The M_i are not known here: they are adapted (×4 when the quadratic model is refuted
at the trial point and the step is taken back, ×0.8 after a success), so even that is a heuristic; a step that would lose more
than half of a slack is never kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.planning import log_barrier
from gpsafe.planning.search.problem import Problem, Proposals, check_starts, value_and_gradients


@dataclass(frozen=True, slots=True)
class LogBarrier:
    """The search; rows are independent, infeasible starts stay where they are.

    Args:
        steps: trial steps.
        eta, eta_final: barrier weight, falling geometrically from the first to the second (objective units).
        smoothness: initial M for objective and constraint.
        adapt: False keeps M fixed (then `smoothness` must be true for the guarantee above).
    """

    steps: int = 25
    eta: float = 0.03
    eta_final: float = 0.003
    smoothness: tuple[float, float] = (1.0, 1.0)
    adapt: bool = True

    def __post_init__(self) -> None:
        _require.count("LogBarrier", "steps", self.steps)
        _require.positive("LogBarrier", "eta", [self.eta, self.eta_final])
        _require.positive("LogBarrier", "smoothness", self.smoothness)

    def __call__(self, problem: Problem, starts: Tensor, generator: torch.Generator) -> Proposals:
        """See :class:`Search`. Deterministic: the generator is not used."""
        x = check_starts("LogBarrier", starts)
        smooth = torch.tensor(self.smoothness, dtype=torch.float64).expand(len(x), 2).clone()
        value, constraint, up, out = value_and_gradients(problem, x)
        evaluations = len(x)
        for k in range(self.steps):
            eta = self.eta * (self.eta_final / self.eta) ** (k / max(1, self.steps - 1))
            slack, normals = _constraints(x, constraint, out)
            inside = (slack > 0).all(-1)
            if not bool(inside.any()):
                break
            step = barrier_step(up, slack, normals, eta=eta, smoothness=smooth)
            step = torch.where(inside.unsqueeze(-1), step, torch.zeros_like(step))
            trial = (x + step).clamp(0.0, 1.0)
            new_value, new_constraint, new_up, new_out = value_and_gradients(problem, trial)
            evaluations += len(x)
            new_slack, _ = _constraints(trial, new_constraint, new_out)
            square = 0.5 * step.square().sum(-1)
            linear = torch.stack([value + (up * step).sum(-1), -(constraint + (out * step).sum(-1))], dim=-1)
            actual = torch.stack([new_value, -new_constraint], dim=-1)
            tiny = 1e-10 * (1.0 + actual.abs())
            refuted = ~(actual >= linear - smooth * square.unsqueeze(-1) - tiny)  # also for NaN
            kept = inside & (new_slack >= 0.5 * slack - 1e-12).all(-1) & torch.isfinite(new_value)
            if self.adapt:
                kept = kept & ~refuted.any(-1)
                blamed = refuted | (~kept & ~refuted.any(-1)).unsqueeze(-1)
                smooth = torch.where(blamed, 4.0 * smooth, 0.8 * smooth)
            rows = kept.unsqueeze(-1)
            x, up, out = torch.where(rows, trial, x), torch.where(rows, new_up, up), torch.where(rows, new_out, out)
            value, constraint = torch.where(kept, new_value, value), torch.where(kept, new_constraint, constraint)
        return Proposals(x, value, constraint, evaluations)


def _constraints(x: Tensor, constraint: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Slacks α (P, m) and gradients of f (P, m, d) for c and the faces of the cube."""
    identity = torch.eye(x.shape[-1], dtype=torch.float64).expand(len(x), -1, -1)
    slack = torch.cat([-constraint.unsqueeze(-1), x, 1.0 - x], dim=-1)
    return slack, torch.cat([gradient.unsqueeze(-2), -identity, identity], dim=-2)


def barrier_step(up: Tensor, slack: Tensor, normals: Tensor, *, eta: float, smoothness: Tensor) -> Tensor:
    """−γ g of the module's formulas, (P, d).

    Args:
        up: ∇F, (P, d).
        slack: α > 0, (P, m): the constraint c first, linear constraints after it.
        normals: ∇f_i, (P, m, d).
        smoothness: (M₀, M₁) of F and c, (P, 2); the linear constraints have M = 0.
    """
    linear = slack.new_zeros(len(slack), slack.shape[-1] - 1)
    smoothness = torch.cat([smoothness, linear], dim=-1)
    return log_barrier.barrier_step(-up, slack, normals, eta=eta, smoothness=smoothness).step
