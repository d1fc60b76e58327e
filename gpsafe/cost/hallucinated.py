"""Hallucinated pessimism: sup over x⁺ = m + η(t, x)∘(h_n − l_n)/2, η ∈ [−1, 1]^p, by search. A lower estimate.

η is an adversary's policy: η_t(x) = clip(bias_t + slope_t ξ, −1, 1), ξ the state relative to a nominal path. The search
starts from the corners (constant signs of all outputs), from feedback away from and towards the nominal path, and from
random biases; the best of them on search noise is improved by gradient ascent through a smooth surrogate of the cost and
the posterior. Only the final evaluation on *fresh* noise counts: it is an honest Monte-Carlo limit of the cost of one
adversary, whatever the search did.
"""

from __future__ import annotations

import itertools
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
from gpsafe.cost.sampled import Sampled
from gpsafe.models._gp_checks import differentiating
from gpsafe.policies import PolicyClass, inputs_at
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import HalfspaceCost

_SEARCH, _FINAL, _INIT = 5, 6, 7
MAX_CORNERS = 16


@short
@dataclass(frozen=True, slots=True, eq=False)
class Adversary:
    """η_t(x) = clip(bias_t + slope_t (x − path_t)/scale_t, −1, 1) for P policies and K candidates.

    Attributes:
        bias: (P, K, T, p).
        slope: (P, K, T, p, nx).
        path, scale: nominal states and their spread, (P, T, nx).
    """

    bias: Tensor
    slope: Tensor
    path: Tensor
    scale: Tensor

    def __call__(self, t: int, x: Tensor, *, smooth: bool = False) -> Tensor:
        """x (P, K, N, nx) → η (P, K, N, p); `smooth` replaces the clip by tanh."""
        xi = (x - self.path[:, None, None, t]) / self.scale[:, None, None, t]
        raw = self.bias[:, :, None, t] + torch.einsum("pkjx,pknx->pknj", self.slope[:, :, t], xi)
        return raw.tanh() if smooth else raw.clamp(-1.0, 1.0)

    def pick(self, index: Tensor) -> Adversary:
        """One candidate per policy, index (P,)."""
        rows = torch.arange(index.numel(), device=index.device)
        return Adversary(
            self.bias[rows, index].unsqueeze(1), self.slope[rows, index].unsqueeze(1), self.path, self.scale
        )


@short
@dataclass(frozen=True, kw_only=True, eq=False)
class Hallucinated(MonteCarloBound):
    """Lower limit of the cost under the worst adversary found; never below `Sampled` on the same task.

    `lower` is the larger of that limit (δ_n/2) and of `sampled`'s (the other δ_n/2); `upper` is T·C: nothing.

    Args:
        sampled: draws, mode and features of the sampled bound that is included; its task fields are replaced by these.
        search_paths: noise paths of the search.
        random: number of random candidates.
        steps: gradient steps (0: none). Needs a `HalfspaceCost`.
        rate: step size of Adam on bias and slope.
    """

    sampled: Sampled | None = None
    search_paths: int = 16
    random: int = 4
    steps: int = 15
    rate: float = 0.3
    name: str = field(default="hallucinated", init=False)
    sound: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require.count("Hallucinated", "search_paths", self.search_paths, minimum=2)
        _require.count("Hallucinated", "random", self.random, minimum=0)
        _require.count("Hallucinated", "steps", self.steps, minimum=0)
        _require.positive("Hallucinated", "rate", self.rate)

    def _sampled(self) -> Sampled:
        own = self.sampled
        task = {name: getattr(self, name) for name in MonteCarloBound.__dataclass_fields__}
        task["delta"] = self.delta / 2
        if own is None:
            return Sampled(**task)
        return Sampled(**task, draws=own.draws, mode=own.mode, features=own.features)

    def evaluate(self, confidence: ConfidenceSet, policies: PolicyClass) -> CostInterval:
        """[lower limit, T·C]; `sound_upper` is False."""
        self.check(confidence)
        adversary = self.search(confidence, policies)
        share = 0.5 * self.stage_delta(confidence) / policies.num
        with torch.no_grad():
            final = self.simulate(confidence, policies, adversary, self.noise(confidence, _FINAL))
        lower = monte_carlo.mean_lower(final[:, 0], self.total_ceiling, share)
        lower = torch.maximum(lower, self._sampled().evaluate(confidence, policies).lower).clamp_min(0.0)
        return CostInterval(
            lower,
            torch.full_like(lower, self.total_ceiling),
            sound_upper=False,
            method=self.name,
            delta=self.stage_delta(confidence),
            assumptions=self.believed(confidence, Assumption.MONTE_CARLO_SEED()),
            vacuous=torch.ones_like(lower, dtype=torch.bool),
        )

    @differentiating
    def search(self, confidence: ConfidenceSet, policies: PolicyClass) -> Adversary:
        """The best adversary found for every policy (one candidate each)."""
        noise = self.noise(confidence, _SEARCH, paths=self.search_paths)
        candidates = self.candidates(confidence, policies, noise)
        with torch.no_grad():
            start = candidates.pick(self._score(confidence, policies, candidates, noise).argmax(-1))
        if self.steps == 0 or not isinstance(self.cost, HalfspaceCost):
            return start
        improved = self._ascend(confidence, policies, start, noise, self.cost)
        both = Adversary(
            torch.cat([start.bias, improved.bias], 1),
            torch.cat([start.slope, improved.slope], 1),
            start.path,
            start.scale,
        )
        with torch.no_grad():
            return both.pick(self._score(confidence, policies, both, noise).argmax(-1))

    def candidates(self, confidence: ConfidenceSet, policies: PolicyClass, noise: Tensor) -> Adversary:
        """Corners, feedback along single states for each corner pattern, and random biases."""
        model, p, nx = confidence.model, confidence.model.num_outputs, self.initial_state.numel()
        with torch.no_grad():
            states, _ = closed_loop(lambda x, u: model.predict(x, u).mean, policies, self.initial_state, noise)
        states = torch.nan_to_num(states[..., :-1, :], nan=0.0).clamp(-1e6, 1e6)
        path, spread = states.mean(1), states.std(1) + 10 * self.noise_std.to(states.device) + 1e-9
        signs = [list(corner) for corner in itertools.product((1.0, -1.0), repeat=p)][:MAX_CORNERS]
        biases = [torch.tensor(corner, dtype=torch.float64) for corner in signs] + [torch.zeros(p, dtype=torch.float64)]
        slopes = [torch.zeros(p, nx, dtype=torch.float64) for _ in biases]
        for axis in range(nx):
            for sign in (4.0, -4.0):  # nearly bang-bang away from, or towards, the nominal path
                slope = torch.zeros(p, nx, dtype=torch.float64)
                slope[:, axis] = sign
                biases.append(torch.zeros(p, dtype=torch.float64))
                slopes.append(slope)
        generator = self.generator(confidence, _INIT)
        bias = torch.stack(biases)[:, None].expand(-1, self.horizon, -1)
        slope = torch.stack(slopes)[:, None].expand(-1, self.horizon, -1, -1)
        if self.random:
            walk = torch.randn(self.random, self.horizon, p, dtype=torch.float64, generator=generator).cumsum(1)
            bias = torch.cat([bias, walk])
            slope = torch.cat([slope, torch.zeros(self.random, self.horizon, p, nx, dtype=torch.float64)])
        device, policies_num = path.device, policies.num
        return Adversary(
            bias.to(device).expand(policies_num, *bias.shape),
            slope.to(device).expand(policies_num, *slope.shape),
            path,
            spread,
        )

    def simulate(self, confidence: ConfidenceSet, policies: PolicyClass, adversary: Adversary, noise: Tensor) -> Tensor:
        """Σ_t c per policy, candidate and path, (P, K, N)."""
        return torch.stack([self.cost(x) for x in self._states(confidence, policies, adversary, noise)]).sum(0)

    def _states(
        self,
        confidence: ConfidenceSet,
        policies: PolicyClass,
        adversary: Adversary,
        noise: Tensor,
        *,
        smooth: bool = False,
    ) -> list[Tensor]:
        """x_0 … x_{T−1}, (P, K, N, nx) each. With `smooth`: differentiable, newest posterior only."""
        model, count, paths = confidence.model, adversary.bias.shape[1], noise.shape[2]
        x = self.initial_state.expand(policies.num, count, paths, -1)
        states = [x]
        for t in range(self.horizon - 1):
            flat = x.reshape(policies.num, count * paths, -1)
            u = inputs_at(policies, flat)
            z = torch.cat([flat, u], dim=-1)
            if smooth:
                low, high = confidence.bound.interval(model, z)
            else:
                low, high = confidence.bounds(z)
            eta = adversary(t, x, smooth=smooth).reshape(low.shape)
            residual = 0.5 * (low + high) + eta * (0.5 * (high - low)).clamp_min(0.0)
            following = model.prior(flat, u) + model.embed(residual)
            x = following.reshape(x.shape) + noise[t].unsqueeze(1)
            states.append(x)
        return states

    def _score(self, confidence: ConfidenceSet, policies: PolicyClass, adversary: Adversary, noise: Tensor) -> Tensor:
        """Mean cost, ties broken by how near the paths come to the unsafe set, (P, K)."""
        states = self._states(confidence, policies, adversary, noise)
        score = torch.stack([self.cost(x) for x in states]).sum(0).mean(-1)
        if isinstance(self.cost, HalfspaceCost):
            near = torch.nan_to_num(self.cost.excess(torch.stack(states)).amax(-1).amax(0).mean(-1), nan=0.0)
            score = score + 1e-3 * near.tanh()
        return score

    def _ascend(
        self,
        confidence: ConfidenceSet,
        policies: PolicyClass,
        start: Adversary,
        noise: Tensor,
        cost: HalfspaceCost,
    ) -> Adversary:
        """Adam on E Σ_t sigmoid(margin_t/τ) + soft maximum of the margin, from `start`."""
        bias = (0.7 * start.bias.clamp(-1.5, 1.5)).detach().clone().requires_grad_(True)
        slope = start.slope.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([bias, slope], lr=self.rate)
        width = float((5 * cost.directions.abs() @ self.noise_std.to(noise.device)).max().clamp_min(1e-3))
        with torch.enable_grad():
            for _ in range(self.steps):
                adversary = Adversary(bias, slope, start.path, start.scale)
                states = self._states(confidence, policies, adversary, noise, smooth=True)
                margin = cost.excess(torch.stack(states)).amax(-1) / width
                value = torch.sigmoid(margin).sum(0) + 0.1 * torch.logsumexp(margin.clamp(-1e3, 1e3), 0)
                loss = -torch.nan_to_num(value, nan=0.0).mean(-1).sum()
                optimizer.zero_grad()
                loss.backward()
                for parameter in (bias, slope):
                    if parameter.grad is not None:
                        torch.nan_to_num_(parameter.grad, nan=0.0, posinf=0.0, neginf=0.0)
                optimizer.step()
        return Adversary(2.0 * bias.detach(), 2.0 * slope.detach(), start.path, start.scale)
