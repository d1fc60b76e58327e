"""LBSGD: descent on a log-barrier whose step lengths keep every iterate feasible (Usmanova et al. 2024, Algorithm 1).

Minimise f₀(x) subject to f_i(x) ≤ 0, i = 1 … m, with f_i M_i-smooth. At a strictly feasible x, with slacks α_i = −f_i(x) > 0
and B_η = f₀ − η Σ log(−f_i),

    g = ∇B_η = ∇f₀ + η Σ ∇f_i/α_i,   θ_i = |⟨∇f_i, g/‖g‖⟩|,
    M₂ = M₀ + 10 η Σ M_i/α_i + 8 η Σ θ_i²/α_i²,
    γ = min{ min_i α_i/(2θ_i + √(α_i M_i)) / ‖g‖, 1/M₂ },   x⁺ = x − γ g.

With exact values, gradients and M_i this gives three statements, which the tests hold it to:

(i) **feasible**: α_i(x⁺) ≥ α_i(x)/2. With s = γ‖g‖, a = 2θ_i s and b = √(α_i M_i) s we have a + b ≤ α_i, so that
    f_i(x⁺) + α_i ≤ θ_i s + M_i s²/2 = a/2 + b²/(2α_i) ≤ (a + b)/2 ≤ α_i/2.
(ii) **descent**: B_η(x⁺) ≤ B_η(x) − γ‖g‖²/2. On the way |f_i′| ≤ θ_i + √(α_i M_i) and the slack is at least α_i/2, so M₂ bounds
    the second derivative of B_η along it.
(iii) **distance to the optimum** x* of a convex problem: f₀(x) − f₀(x*) ≤ m η + ‖∇B_η(x)‖ ‖x − x*‖, for λ_i = η/α_i are
    multipliers whose Lagrangian has the gradient ∇B_η(x).

What the published code of ActSafe does instead is `after=Adam(...)`: γ g is clipped and handed to Adam, which divides by the
size of what it is given. The step is then about `rate` in every coordinate, whatever γ is; (i) and (ii) are void.

None of it makes a policy safe: f_i is what the caller says it is, here as in `gpsafe.planning.search` an estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short

Program = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points (P, d) → f₀ (P,) and f (P, m); differentiable, row by row."""
INFEASIBLE = 1e-8
"""Slack at and below which the published code leaves the barrier and descends the violated constraints."""


@short
@dataclass(frozen=True, slots=True, eq=False)
class BarrierStep:
    """One step of the module's formulas: −γ g.

    Attributes:
        gradient: g, (P, d).
        length: γ, (P,).
        reach: the longest ‖x⁺ − x‖ for which (i) is proved, min_i α_i/(2θ_i + √(α_i M_i)), (P,).
        curvature: M₂, (P,).
    """

    gradient: Tensor
    length: Tensor
    reach: Tensor
    curvature: Tensor

    @property
    def step(self) -> Tensor:
        """−γ g, (P, d)."""
        return -self.length.unsqueeze(-1) * self.gradient


def barrier_step(gradient: Tensor, slack: Tensor, normals: Tensor, *, eta: float, smoothness: Tensor) -> BarrierStep:
    """The step from strictly feasible points.

    Args:
        gradient: ∇f₀, (P, d).
        slack: α > 0, (P, m).
        normals: ∇f_i, (P, m, d).
        eta: η.
        smoothness: M₀, M₁ … M_m, (1 + m,) or (P, 1 + m); 0 for linear functions.
    """
    smoothness = smoothness.expand(len(slack), 1 + slack.shape[-1])
    curved, slack = smoothness[:, 1:], slack.clamp_min(1e-300)
    g = gradient + eta * (normals / slack.unsqueeze(-1)).sum(-2)
    size = torch.linalg.vector_norm(g, dim=-1, keepdim=True).clamp_min(1e-300)
    along = (normals @ (g / size).unsqueeze(-1)).squeeze(-1).abs()
    second = smoothness[:, 0] + 10 * eta * (curved / slack).sum(-1) + 8 * eta * (along / slack).square().sum(-1)
    reach = (slack / (2 * along + (slack * curved).sqrt()).clamp_min(1e-300)).amin(-1)
    return BarrierStep(g, torch.minimum(reach / size.squeeze(-1), 1.0 / second.clamp_min(1e-300)), reach, second)


@dataclass(frozen=True, slots=True)
class Adam:
    """What stands behind the step in the published code: the step γ g is clipped and becomes Adam's "gradient".

    Args:
        rate: learning rate.
        clip: largest norm of γ g.
        decay: of the two moments.
        epsilon: added to the root of the second moment.
    """

    rate: float = 8e-5
    clip: float = 100.0
    decay: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _require.positive("Adam", "rate, clip, epsilon", [self.rate, self.clip, self.epsilon])


@short
@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """A run from P starts at once; K steps, so K + 1 iterates.

    Attributes:
        points: (K + 1, P, d).
        objective: f₀, (K + 1, P).
        slack: α, (K + 1, P, m); negative where infeasible.
        barrier_gradient: ‖∇B_η‖ at the first K iterates, with the η of their step, (K, P); nan where infeasible.
        length: γ, (K, P); nan where infeasible.
        reach: longest step with a proof of feasibility, (K, P); nan where infeasible.
        eta: η of each step, (K,).
    """

    points: Tensor
    objective: Tensor
    slack: Tensor
    barrier_gradient: Tensor
    length: Tensor
    reach: Tensor
    eta: Tensor

    @property
    def feasible(self) -> Tensor:
        """Whether all slacks are ≥ 0, (K + 1, P)."""
        return (self.slack >= 0).all(-1)

    @property
    def stretch(self) -> Tensor:
        """‖x⁺ − x‖ / reach of every step, (K, P): above 1 nothing is proved of x⁺."""
        return torch.linalg.vector_norm(self.points.diff(dim=0), dim=-1) / self.reach


def values_and_gradients(program: Program, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f₀ (P,), f (P, m) and their gradients (P, d), (P, m, d)."""
    with torch.enable_grad():
        x = points.detach().clone().requires_grad_(True)
        objective, constraints = program(x)
        outputs = [objective, *constraints.unbind(-1)]
        gradients = [torch.autograd.grad(f.sum(), x, retain_graph=True)[0] for f in outputs]
    return objective.detach(), constraints.detach(), gradients[0], torch.stack(gradients[1:], dim=-2)


def log_barrier_descent(
    program: Program,
    start: Tensor,
    *,
    smoothness: Tensor,
    eta: float | Tensor,
    steps: int,
    after: Adam | None = None,
    recovery: float = 0.01,
) -> Descent:
    """K steps of LBSGD, rows independent; with `after`, what the published code makes of it.

    Args:
        program: f₀ and f.
        start: (P, d). If it is strictly feasible and `smoothness` true, so is every iterate (without `after`).
        smoothness: M₀ … M_m, (1 + m,) or (P, 1 + m).
        eta: η, one number or one per step, (K,).
        steps: K.
        after: None (the step is −γ g), or Adam behind it.
        recovery: where a slack is ≤ `INFEASIBLE` the step is −recovery Σ ∇f_i over the violated constraints.
    """
    where = "log_barrier_descent"
    x = _require.finite(where, "start", start).detach().clone()
    if x.ndim != 2:
        raise _require.fail(where, "start (P, d)", f"shape {tuple(x.shape)}")
    _require.count(where, "steps", steps)
    smoothness = _require.nonnegative(where, "smoothness", smoothness).to(x)
    levels = torch.as_tensor(eta, dtype=x.dtype).expand(steps).clone()
    _require.positive(where, "eta", levels)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    objective, constraints, up, normals = values_and_gradients(program, x)
    if smoothness.shape[-1] != 1 + constraints.shape[-1]:
        raise _require.fail(where, f"smoothness of {1 + constraints.shape[-1]} functions", f"{smoothness.shape[-1]}")
    kept: list[list[Tensor]] = [[x], [objective], [-constraints], [], [], []]
    for k, level in enumerate(levels.tolist(), start=1):
        taken = barrier_step(up, -constraints, normals, eta=level, smoothness=smoothness)
        inside = (-constraints > INFEASIBLE).all(-1)
        violated = (-constraints <= INFEASIBLE).to(x)
        outward = -recovery * (violated.unsqueeze(-1) * normals).sum(-2)
        step = torch.where(inside.unsqueeze(-1), taken.step, outward)
        if after is not None:
            step, first, second = _adam(after, step, first, second, k)
        x = x + step
        objective, constraints, up, normals = values_and_gradients(program, x)
        size = torch.linalg.vector_norm(taken.gradient, dim=-1)
        told = [x, objective, -constraints, *(v.where(inside, torch.nan) for v in (size, taken.length, taken.reach))]
        for of, value in zip(kept, told, strict=True):
            of.append(value)
    points, values, slack, size, length, reach = (torch.stack(of) for of in kept)
    return Descent(points, values, slack, size, length, reach, levels)


def _adam(rule: Adam, step: Tensor, first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's step for the "gradient" −step, row by row, and the new moments."""
    size = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    step = step * (rule.clip / size.clamp_min(1e-300)).clamp_max(1.0)
    one, two = rule.decay
    first = one * first + (1 - one) * step
    second = two * second + (1 - two) * step.square()
    scaled = (first / (1 - one**count)) / ((second / (1 - two**count)).sqrt() + rule.epsilon)
    return rule.rate * scaled, first, second
