"""Augmented Lagrangian, as in the practical algorithm: ascent on F − ([λ + ρ c]₊² − λ²)/(2ρ) with multiplier updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.planning.search.problem import Problem, Proposals, check_starts, value_and_gradients


@dataclass(frozen=True, slots=True)
class AugmentedLagrangian:
    """Projected Adam inside, λ ← [λ + ρ c]₊ and ρ ← min(growth·ρ, cap) outside; rows are independent.

    Returns for each start the iterate with the best objective among those whose estimated constraint held, else the last.
    Iterates may leave the feasible set: nothing is guaranteed, not even for the estimate.

    Args:
        outer, inner: numbers of multiplier updates and of Adam steps between them.
        rate: step size in the unit cube.
        multiplier, penalty, growth, cap: initial λ and ρ, and how ρ grows.
    """

    outer: int = 5
    inner: int = 5
    rate: float = 0.04
    multiplier: float = 0.0
    penalty: float = 5.0
    growth: float = 3.0
    cap: float = 1e4

    def __post_init__(self) -> None:
        _require.count("AugmentedLagrangian", "outer", self.outer)
        _require.count("AugmentedLagrangian", "inner", self.inner)
        _require.positive("AugmentedLagrangian", "rate, penalty, growth, cap", [self.rate, self.penalty, self.growth])

    def __call__(self, problem: Problem, starts: Tensor, generator: torch.Generator) -> Proposals:
        """See :class:`Search`. Deterministic: the generator is not used."""
        x = check_starts("AugmentedLagrangian", starts).clone()
        multiplier = torch.full((len(x),), self.multiplier, dtype=torch.float64)
        penalty, count = self.penalty, 0
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        value, constraint, up, out = value_and_gradients(problem, x)
        best, best_value, best_constraint = x.clone(), value.clone(), constraint.clone()
        for _ in range(self.outer):
            for _ in range(self.inner):
                weight = (multiplier + penalty * constraint).clamp_min(0.0).unsqueeze(-1)
                gradient = torch.nan_to_num(weight * out - up)
                count += 1
                first = 0.9 * first + 0.1 * gradient
                second = 0.99 * second + 0.01 * gradient.square()
                scaled = (first / (1 - 0.9**count)) / ((second / (1 - 0.99**count)).sqrt() + 1e-12)
                x = (x - self.rate * scaled).clamp(0.0, 1.0)
                value, constraint, up, out = value_and_gradients(problem, x)
                better = _better(value, constraint, best_value, best_constraint)
                best = torch.where(better.unsqueeze(-1), x, best)
                best_value = torch.where(better, value, best_value)
                best_constraint = torch.where(better, constraint, best_constraint)
            multiplier = (multiplier + penalty * constraint).clamp_min(0.0)
            penalty = min(self.growth * penalty, self.cap)
        return Proposals(best, best_value, best_constraint, len(x) * (1 + self.outer * self.inner))


def _better(value: Tensor, constraint: Tensor, best: Tensor, best_constraint: Tensor) -> Tensor:
    """Feasible beats infeasible; among feasible the larger objective; among infeasible the newer."""
    feasible, was = constraint <= 0, best_constraint <= 0
    return (feasible & ~was) | (feasible & was & (value > best)) | (~feasible & ~was)
