"""Total-variation bound of the worst-case cost, for any state dimension (theory §3.4): the simulation lemma, capped.

**Simulation lemma.** Let x follow f and x′ follow f′ under one policy, from one x₀, with noise N(0, Σ). With
V_t(x) = E_f[Σ_{t≤s<T} c(x_s) | x_t = x], V_T = 0, and (P_f V)(x) = E V(f(x, π(x)) + w),

    J(f) − J(f′) = Σ_{t=0}^{T−1} E_{x′_t ∼ f′}[(P_f − P_{f′}) V_{t+1}(x′_t)]

(add and subtract E_{f′}V_{t+1}(x′_{t+1}) in V_0(x₀) = c(x₀) + (P_f V_1)(x₀), and so on: the sum telescopes). V_{t+1}
sums the T − 1 − t costs of times t+1 … T−1, so it lies in [0, C(T−1−t)] and

    |J(f) − J(f′)| ≤ C Σ_t (T−1−t) p_t,   p_t = E_{f′} τ(x′_t),   τ = TV(N(f, Σ), N(f′, Σ)) = 2Φ(‖Σ^{-1/2}(f − f′)‖/2) − 1:

the last step contributes nothing. f may change with time.

**Cap.** Couple the chains: while they are together at the same state they draw their next states from the maximal
coupling, so they part there with probability τ. d_t, the probability of parting at step t, is
E[1{together at t} τ(x′_t)] ≤ p_t, and Σ d_t ≤ 1 because they part once. After parting at t at most C(T−1−t) is lost:

    |J(f) − J(f′)| ≤ C·max{Σ_t d_t(T−1−t) : 0 ≤ d_t ≤ p_t, Σ d_t ≤ 1} = C·min_{λ≥0} {λ + Σ_t p_t (T−1−t−λ)₊}

by linear-programming duality; the minimum is at an integer λ ≤ T−1. For each λ the bound is an expectation over paths of
f′, which is what the Monte-Carlo limit needs. (A cap inside the expectation would be wrong: see
`tests/cost/test_total_variation.py`.)

**All steps in one test.** For each r of a fixed list, J(f) ≤ TC·Φ(Φ⁻¹(E_{f′} Z̃/TC) + r), Z̃ = Σ c on paths of f′ along which the
pushes a_t = ‖Σ^{-1/2}(f − f′)(x′_t)‖, t < T − 1, satisfy Σ a_t² ≤ r², and TC on the others ((2) of `gpsafe.cost.drift`). Of
order √T where the sum of steps is of order T, and small where the cost is rare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost import monte_carlo
from gpsafe.cost._task import MonteCarloBound
from gpsafe.cost.base import CostInterval
from gpsafe.cost.drift import drifted, push
from gpsafe.policies import PolicyClass, inputs_at, selected

_NOISE = 3
RADII = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # r of the module


def parting_rate(gap: Tensor, noise_std: Tensor) -> Tensor:
    """τ = TV(N(m, Σ), N(m′, Σ)) = 2Φ(‖Σ^{-1/2}(m − m′)‖/2) − 1 for |m − m′| ≤ gap, (*b, nx) → (*b,), rounded up.

    A state without noise contributes 1 as soon as its gap is not 0; so does a gap that is NaN or negative.
    """
    half = 0.5 * push(gap, noise_std)
    rate = torch.special.erf(half / math.sqrt(2.0)) * (1 + 1e-13)
    return torch.where(rate <= 1.0, rate, 1.0)


def simulation_gap(rates: Tensor, ceiling: float) -> Tensor:
    """C·max{Σ_t d_t(T−1−t) : 0 ≤ d_t ≤ p_t, Σ d_t ≤ 1} for p = rates (*b, T) → (*b,): a bound of |J(f) − J(f′)|.

    Parting early costs most, so the greedy d_t = min(p_t, 1 − Σ_{s<t} d_s) is the maximum. What is no probability counts as 1.
    """
    rates, horizon = _require.floats("simulation_gap", "rates", rates), rates.shape[-1]
    rates = torch.where((rates >= 0) & (rates <= 1), rates, 1.0)
    used = torch.minimum(rates.cumsum(-1), torch.ones_like(rates))
    parted = torch.diff(used, dim=-1, prepend=torch.zeros_like(used[..., :1]))
    weights = torch.arange(horizon - 1, -1, -1, dtype=rates.dtype, device=rates.device)
    return ceiling * (parted * weights).sum(-1)


@short
@dataclass(frozen=True, kw_only=True, eq=False)
class TotalVariation(MonteCarloBound):
    """J_c(π, m) + capped penalty, with m = (l_n + h_n)/2 as the centre model and τ from the half-width (h_n − l_n)/2.

    Every f between l_n and h_n is within the half-width of m at every z, so f* needs no Lipschitz property. Saturates
    at T·C as soon as the half-width is of the size of the noise: `vacuous` says so.

    One Monte-Carlo limit per λ ∈ {0, …, T−1} and one per r of `RADII` (δ_n shared by P policies and all limits, the lower one
    among them), the smallest is reported.
    """

    samples: int = 1000
    chunk: int = 50_000
    name: str = field(default="total-variation", init=False)
    sound: bool = field(default=True, init=False)

    def paths(self, confidence: ConfidenceSet, policies: PolicyClass, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Costs Σ_t c under the centre model and rates τ(x′_t), (P, N) and (P, N, T).

        F_n empty or NaN at a state counts as τ = 1, a cost that is no number in [0, C] as C.
        """
        model = confidence.model
        x = self.initial_state.expand(policies.num, noise.shape[2], -1)
        total = torch.zeros_like(x[..., 0])
        rates = []
        for t in range(self.horizon):
            cost = self.cost(x)
            total = total + torch.where((cost >= 0) & (cost <= self.cost.ceiling), cost, self.cost.ceiling)
            u = inputs_at(policies, x)
            z = torch.cat([x, u], dim=-1)
            low, high = confidence.bounds(z)
            rate = parting_rate(model.embed((0.5 * (high - low)).clamp_min(0.0)), self.noise_std)
            rates.append(torch.where((confidence.crossed(z, low, high) <= 0).all(-1), rate, 1.0))
            x = model.prior(x, u) + model.embed(0.5 * (low + high)) + noise[t]
        return total, torch.stack(rates, dim=-1)

    def evaluate(self, confidence: ConfidenceSet, policies: PolicyClass) -> CostInterval:
        """[lower limit of J_c(π, m), upper limit of J_c(π, m) + penalty], capped at T·C."""
        self.check(confidence)
        noise = self.noise(confidence, _NOISE)
        lowers, uppers = [], []
        share = self.stage_delta(confidence) / (policies.num * (self.horizon + 1 + len(RADII)))
        for part in torch.arange(policies.num).split(max(1, self.chunk // self.samples)):
            cost, rates = self.paths(confidence, selected(policies, part, self.initial_state), noise)
            lowers.append(monte_carlo.mean_lower(cost, self.total_ceiling, share))
            uppers.append(torch.minimum(self._upper(cost, rates, share), self._tested(cost, rates, share)))
        lower, upper = torch.cat(lowers), torch.cat(uppers)
        return CostInterval(
            torch.minimum(lower.clamp_min(0.0), upper),
            upper,
            sound_upper=confidence.sound,
            method=self.name,
            delta=self.stage_delta(confidence),
            assumptions=self.believed(confidence, Assumption.MONTE_CARLO_SEED()),
            vacuous=upper >= self.total_ceiling * (1 - 1e-9),
        )

    def _upper(self, cost: Tensor, rates: Tensor, share: float) -> Tensor:
        """min over λ of the limits of C λ + E[Σ c + C Σ_t τ_t (T−1−t−λ)₊]."""
        c = self.cost.ceiling
        ahead = torch.arange(self.horizon - 1, -1, -1, dtype=rates.dtype, device=rates.device)
        best = torch.full_like(cost[:, 0], self.total_ceiling)
        for cut in range(self.horizon):
            weights = (ahead - cut).clamp_min(0.0)
            ceiling = self.total_ceiling + c * float(weights.sum())
            mean = monte_carlo.mean_upper(cost + c * (rates * weights).sum(-1), ceiling, share)
            best = torch.minimum(best, c * cut + mean)
        return best

    def _tested(self, cost: Tensor, rates: Tensor, share: float) -> Tensor:
        """min over r of TC·Φ(Φ⁻¹(limit of E Z̃/TC) + r); τ gives back a = 2Φ⁻¹((1 + τ)/2), rounded up."""
        pushes = math.sqrt(8.0) * torch.special.erfinv(rates[..., :-1]) * (1 + 1e-6)
        energy, ceiling = pushes.square().sum(-1), self.total_ceiling
        best = torch.full_like(cost[:, 0], ceiling)
        for radius in RADII:
            kept = torch.where(energy <= radius**2, cost, ceiling)
            best = torch.minimum(best, drifted(monte_carlo.mean_upper(kept, ceiling, share), radius, ceiling))
        return best
