"""Policy-set pessimism: whole policies are certified, and the explorer chooses among them (theory §1, S_n).

The class: u = clip(u_0 + o + s K (x − x_0)), K the safe controller's slope at x_0, s and o on a grid; S_0 = {s = 1, o = 0},
assumed safe. With a Gaussian process a policy enters when `GaussianTube` bounds its cost by d for all of F_n; with an ensemble
when no member's particles cost more than d on average, a heuristic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.assumptions import Assumption, listed
from gpsafe.comparison.beliefs import Belief, EnsembleBelief, GaussianBelief
from gpsafe.comparison.contest import Contest
from gpsafe.comparison.guards import UnfitError
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.monte_carlo import mean_lower
from gpsafe.policies import AffinePolicies, selected
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import KnownPart, sample_noise
from gpsafe.systems.task import Task

SCALES, OFFSETS = (-2.0, 2.0), (-0.8, 0.8)
PARTICLES, WIDTH = 16, 2.0  # of a member's rollouts: paths, and standard deviations of its noise
PATHS, LEVEL = 256, 0.01  # of the truth: paths of a policy, and the chance that any policy is wrongly called unsafe


@dataclass(slots=True)
class PolicySet:
    """S_n over one class; it only grows."""

    contest: Contest
    policies: AffinePolicies
    member: Tensor  # (P,), Boolean
    upper: Tensor  # (P,), last bound of the cost
    rests_on: tuple[str, ...] = (Assumption.INITIAL_SET.name,)  # kinds of assumptions behind membership

    @staticmethod
    def create(contest: Contest, *, count: int = 9) -> PolicySet:
        """S_0 = the safe controller's linear form.

        Raises:
            UnfitError: where the safe controller has no derivative at x_0 (the arm, folded).
        """
        plant = contest.plant
        x0, u0 = plant.initial_state, plant.backup(plant.initial_state)
        slope = torch.func.jacrev(plant.backup)(x0)
        if not bool(torch.isfinite(slope).all()):
            raise UnfitError("the safe controller has no slope at x_0, about which the class is made")
        scale = torch.linspace(*SCALES, count, dtype=torch.float64)
        offset = torch.linspace(*OFFSETS, count, dtype=torch.float64)
        s, o = (v.flatten() for v in torch.meshgrid(scale, offset, indexing="ij"))
        gain = s[:, None, None] * slope
        push = o[:, None] * plant.input_box.radius
        policies = AffinePolicies(u0 + push - gain @ x0, gain, plant.input_box)
        first = ((s - 1.0).abs() < 1e-9) & (o.abs() < 1e-9)
        if not bool(first.any()):  # the grid has no such point: the nearest
            first = torch.zeros_like(first)
            first[(s - 1.0).square().add(o.square()).argmin()] = True
        return PolicySet(contest, policies, first, torch.full((len(s),), torch.inf, dtype=torch.float64))

    def expand(self, belief: Belief, number: int) -> None:
        """Admits what the belief certifies now."""
        if isinstance(belief, GaussianBelief):
            if not isinstance(self.contest.known, KnownPart):
                raise UnfitError("a sound cost bound needs a known part with a Hessian bound")
            task = Task.of(self.contest.plant).with_(budget=self.contest.budget)
            bound = GaussianTube(task=task, give_up=self.contest.budget)
            found = bound.evaluate(belief.confidence, self.policies)
            self.upper, kinds = found.upper, [entry.kind.name for entry in listed(found.assumptions)]
        else:
            assert isinstance(belief, EnsembleBelief)
            self.upper, kinds = self._worst(belief, number), [Assumption.NOT_A_THEOREM.name]
        self.rests_on = tuple(dict.fromkeys([*kinds, Assumption.INITIAL_SET.name]))
        self.member = self.member | (self.upper <= self.contest.budget)

    def _worst(self, belief: EnsembleBelief, number: int) -> Tensor:
        """max over members of the mean cost of particles x⁺ = μ_m + 2σ_m ε, (P,)."""
        plant, model, count = self.contest.plant, belief.trained, self.policies.num
        generator = self.contest.generator(4, number)
        x = plant.initial_state.expand(model.members, count, PARTICLES, plant.nx)
        total = torch.zeros(x.shape[:-1], dtype=torch.float64)
        for _ in range(plant.horizon):
            total = total + plant.cost(x)
            u = torch.stack([self.policies(rows) for rows in x])
            mean, noise = model.evaluate(x, u, paired=True)
            x = mean + WIDTH * noise * torch.randn(mean.shape, dtype=torch.float64, generator=generator)
        return torch.nan_to_num(total, nan=torch.inf).mean(-1).amax(0)

    def choose(self, belief: Belief, explorer: str, generator: torch.Generator) -> int:
        """A member: drawn, or that of the most doubt, or of the most reward, along its path under the mean."""
        index = torch.nonzero(self.member).flatten()
        if explorer == "uniform":
            return int(index[torch.randint(len(index), (1,), generator=generator)])
        plant = self.contest.plant
        chosen = selected(self.policies, index, plant.initial_state)
        x, score = plant.initial_state.expand(len(index), 1, -1), torch.zeros(len(index), dtype=torch.float64)
        for _ in range(plant.horizon):
            u = chosen(x)
            found = belief.dynamics.predict(x, u)
            doubt = (found.std / plant.noise_std.clamp_min(1e-9))[..., list(self.contest.outputs)].norm(dim=-1)
            score = score + (plant.reward(found.mean, u) if explorer == "reward" else doubt)[:, 0]
            x = found.mean
        return int(index[torch.nan_to_num(score, nan=-torch.inf).argmax()])

    def costs(self) -> Tensor:
        """Costs of `PATHS` paths of all policies on the true plant, (P, PATHS)."""
        plant = self.contest.plant
        noise = sample_noise(plant.noise_std, (plant.horizon, 1, PATHS), self.contest.generator(5))
        states, _ = closed_loop(plant.mean, self.policies, plant.initial_state, noise)
        return plant.cost(states[..., :-1, :]).sum(-1)

    def unsafe(self) -> Tensor:
        """Which policies cost more than d on the true plant, (P,): their paths show it, at `LEVEL` for all of them at once."""
        plant, costs = self.contest.plant, self.costs()
        if not bool((plant.noise_std > 0).any()):
            return costs[:, 0] > self.contest.budget
        return mean_lower(costs, plant.horizon * plant.cost.ceiling, LEVEL / len(costs)) > self.contest.budget

    def outside(self) -> Mapping[str, tuple[int, int]]:
        """Members that cost more than d on the true plant."""
        members = self.unsafe()[self.member]
        return {"members of S_n cost at most d": (int(members.sum()), len(members))}
