"""Differentiable closed-loop rollouts under a posterior: the estimates that searches over parameters climb.

Everything here is heuristic: posterior means, finitely many sampled functions or a few hallucinated adversaries, finitely
many noise paths, a smooth surrogate of the cost. It may propose; only `gpsafe.safety.safe_parameters` accepts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.models.samples import FunctionSamples, sample_functions
from gpsafe.policies.parametric import ParametricPolicies
from gpsafe.systems.base import HalfspaceCost, System, sample_noise

Pessimism = Literal["mean", "sampled", "hallucinated"]
Goal = Literal["exploration", "reward"]
Residual = Callable[[Tensor], Tensor]  # z (P, W, N, nz) → (P, W, N, p)


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """The search problem of one episode. Make it with :meth:`prepare`; call it with points of the unit cube.

    Objective: Σ_t ‖σ_n(z_t)‖ / (T √Σk) ("exploration") or Σ_t r / T ("reward") under the posterior mean, averaged over
    noise paths. Constraint: smooth maximum over worlds of the average over paths of Σ_t hinge(excess_t), minus the budget;
    hinge(e) = [1 + e/width]₊² ≥ 1{e > 0} (summed over half-spaces), so the surrogate exceeds the indicator cost of the
    same paths. Worlds: the mean; `draws` pathwise posterior samples; or the corners μ + η βσ, η ∈ {−1, 1}^p.

    Args:
        family: θ ↦ policies.
        confidence: F_n; its newest posterior is used.
        system: for x₀, T, cost, reward, budget (never its dynamics).
        goal, pessimism: see above.
        noise: common random numbers, (T, N, nx).
        width: of the hinge, in units of the excess.
        functions: the sampled worlds.
        temperature: of the smooth maximum, in units of the cost.
    """

    family: ParametricPolicies
    confidence: ConfidenceSet
    system: System
    goal: Goal
    pessimism: Pessimism
    noise: Tensor
    width: float
    functions: FunctionSamples | None = None
    temperature: float = 0.01

    @staticmethod
    def prepare(
        family: ParametricPolicies,
        confidence: ConfidenceSet,
        system: System,
        *,
        goal: Goal,
        pessimism: Pessimism,
        generator: torch.Generator,
        paths: int = 6,
        draws: int = 8,
        width: float = 0.03,
        features: int = 256,
    ) -> Rollouts:
        """Draws the noise and the sampled worlds once, so that the problem is one smooth function of θ."""
        _require.one_of("Rollouts", "goal", goal, ("exploration", "reward"))
        _require.one_of("Rollouts", "pessimism", pessimism, ("mean", "sampled", "hallucinated"))
        _require.positive("Rollouts", "width", width)
        if not isinstance(system.cost, HalfspaceCost):
            raise _require.fail("Rollouts", "a half-space cost", type(system.cost).__name__)
        noise = sample_noise(system.noise_std, (system.horizon, paths), generator)
        functions = None
        if pessimism == "sampled":
            functions = sample_functions(confidence.model, draws, generator=generator, num_features=features)
        return Rollouts(family, confidence, system, goal, pessimism, noise, width, functions)

    def __call__(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Objective (P,) and constraint (P,) at points of the unit cube (P, d)."""
        return self.objective(unit), self.constraint(unit)

    def objective(self, unit: Tensor) -> Tensor:
        """(P,)."""
        policies, model = self.family(self.family.from_unit(unit)), self.confidence.model
        x = self.system.initial_state.expand(policies.num, self.noise.shape[1], -1)
        total = x.new_zeros(x.shape[:-1])
        exploring = self.goal == "exploration"
        scale = 1.0 / self.system.horizon
        for noise in self.noise:
            u = policies(x)
            z = torch.cat([x, u], dim=-1)
            if exploring:
                residual, std = model.posterior(z)
                total = total + std.norm(dim=-1)
            else:
                residual = model.residual_mean(z)
                total = total + self.system.reward(x, u)
            x = model.prior(x, u) + model.embed(residual) + noise
        if exploring:
            scale /= float(model.prior_variance(x.new_zeros(1, model.nx + model.nu)).sum().sqrt())
        return scale * total.mean(-1)

    def constraint(self, unit: Tensor) -> Tensor:
        """(P,); ≤ 0 where the estimate keeps the budget."""
        policies, model = self.family(self.family.from_unit(unit)), self.confidence.model
        worlds, residual = self._worlds()
        paths = self.noise.shape[1]
        x = self.system.initial_state.expand(policies.num, worlds, paths, -1)
        cost = self.system.cost
        assert isinstance(cost, HalfspaceCost)
        total = x.new_zeros(x.shape[:-1])
        for t in range(self.system.horizon):
            total = total + hinge(cost.excess(x), self.width).sum(-1)
            if t + 1 == self.system.horizon:
                break
            u = policies(x.reshape(policies.num, worlds * paths, -1)).reshape(*x.shape[:-1], -1)
            value = residual(torch.cat([x, u], dim=-1))
            x = model.prior(x, u) + model.embed(value) + self.noise[t]
        per_world = total.mean(-1)
        worst = self.temperature * torch.logsumexp(per_world / self.temperature, dim=-1)
        return worst - self.system.budget

    def _worlds(self) -> tuple[int, Residual]:
        model, bound = self.confidence.model, self.confidence.bound
        if self.pessimism == "mean":
            return 1, model.residual_mean
        if self.functions is not None:
            functions = self.functions

            def sampled(z: Tensor) -> Tensor:
                apart = z.movedim(1, 0)  # (W, P, N, nz)
                values = functions(apart.reshape(functions.num, -1, z.shape[-1]))
                return values.reshape(*apart.shape[:-1], -1).movedim(0, 1)

            return functions.num, sampled
        signs = list(itertools.product((-1.0, 1.0), repeat=model.num_outputs))
        corners = self.noise.new_tensor(signs).unsqueeze(1)  # (W, 1, p)

        def hallucinated(z: Tensor) -> Tensor:
            low, high = bound.interval(model, z)
            cap = bound.prior_width(model, z)
            low, high = torch.maximum(low, -cap), torch.minimum(high, cap)
            return 0.5 * (low + high) + corners * (0.5 * (high - low))

        return len(corners), hallucinated


def hinge(excess: Tensor, width: float) -> Tensor:
    """[1 + e/width]₊²: once differentiable, 0 for e ≤ −width, and ≥ 1{e > 0}."""
    return (1.0 + excess / width).clamp_min(0.0).square()
