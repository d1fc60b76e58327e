"""Sampled pessimism: what published code does. A lower estimate of the worst case: it can refute, never certify."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost import monte_carlo
from gpsafe.cost._task import MonteCarloBound
from gpsafe.cost.base import CostInterval
from gpsafe.models.low_rank import LowRankGP
from gpsafe.models.samples import sample_functions
from gpsafe.policies import PolicyClass, inputs_at

_NOISE, _DRAWS = 1, 2


@short
@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled(MonteCarloBound):
    """max_m J_c(π, f_m) over posterior draws f_m, clipped into [l_n, h_n].

    `lower` is the largest one-sided Monte-Carlo limit (δ_n shared by P policies and all draws), hence a lower
    bound of the robust value; `upper` is T·C: nothing.

    Args:
        draws: number of functions or particles.
        mode: "functions": each draw is one function, the same at all times (Matheron's rule);
            "particles": residuals are drawn anew at every step, independently, as particle-based code does (then the
            adversary changes with time, and independent errors average out: usually weaker).
        features: random features of a prior draw.
    """

    draws: int = 8
    mode: Literal["functions", "particles"] = "functions"
    features: int = 128
    name: str = field(default="sampled", init=False)
    sound: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require.count("Sampled", "draws", self.draws)
        _require.count("Sampled", "features", self.features)
        _require.one_of("Sampled", "mode", self.mode, ("functions", "particles"))

    def costs(self, confidence: ConfidenceSet, policies: PolicyClass) -> Tensor:
        """Σ_t c per policy, draw and path, (P, draws, N)."""
        self.check(confidence)
        model, noise = confidence.model, self.noise(confidence, _NOISE)
        generator = self.generator(confidence, _DRAWS)
        exact = model.exact if isinstance(model, LowRankGP) else model
        functions = (
            sample_functions(exact, self.draws, generator=generator, num_features=self.features)
            if self.mode == "functions"
            else None
        )
        count, paths, nx = self.draws, noise.shape[2], self.initial_state.numel()
        x = self.initial_state.expand(policies.num, count * paths, nx)
        total = torch.zeros(policies.num, count, paths, dtype=torch.float64, device=x.device)
        for t in range(self.horizon):
            total = total + self.cost(x).reshape(total.shape)
            u = inputs_at(policies, x)
            z = torch.cat([x, u], dim=-1)
            low, high = confidence.bounds(z)
            if functions is not None:
                by_draw = z.reshape(policies.num, count, paths, -1).transpose(0, 1).reshape(count, -1, z.shape[-1])
                value = functions(by_draw).reshape(count, policies.num, paths, -1).transpose(0, 1)
                residual = value.reshape(low.shape)
            else:
                mean, std = model.posterior(z)
                unit = torch.randn(1, count * paths, std.shape[-1], dtype=torch.float64, generator=generator)
                residual = mean + std * unit.to(std.device)
            residual = torch.minimum(torch.maximum(residual, low), torch.maximum(low, high))
            x = model.prior(x, u) + model.embed(residual) + noise[t].repeat(1, count, 1)
        return total

    def estimate(self, confidence: ConfidenceSet, policies: PolicyClass) -> Tensor:
        """max over draws of the mean over paths: the number that published code calls pessimistic, (P,). Not a bound."""
        return self.costs(confidence, policies).mean(-1).amax(-1)

    def evaluate(self, confidence: ConfidenceSet, policies: PolicyClass) -> CostInterval:
        """[max over draws of lower limits, T·C]; `sound_upper` is False."""
        share = self.stage_delta(confidence) / (policies.num * self.draws)
        lower = monte_carlo.mean_lower(self.costs(confidence, policies), self.total_ceiling, share).amax(-1)
        return CostInterval(
            lower.clamp_min(0.0),
            torch.full_like(lower, self.total_ceiling),
            sound_upper=False,
            method=self.name,
            delta=self.stage_delta(confidence),
            assumptions=self.believed(confidence, Assumption.MONTE_CARLO_SEED()),
            vacuous=torch.ones_like(lower, dtype=torch.bool),
        )
