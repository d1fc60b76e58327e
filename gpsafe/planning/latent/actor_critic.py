"""A policy and its critics, learnt in imagination: the published form of ActSafe, and LAMBDA and BSRP-Lag beside it.

From posterior states the world model imagines H steps under the policy; with critics v the λ-returns are

    R_H = v(s_H),   R_t = r_{t+1} + γ ((1 − λ) v(s_{t+1}) + λ R_{t+1}),

for rewards and, with a critic of their own, for costs. The policy minimises f₀ = −E R^r subject to f₁ = E R^c − d/(T(1 − γ)) ≤
0 by one of `gpsafe.planning.latent.penalties`; critics follow their λ-returns by least squares. The settings say the rest:

* **ActSafe**: rewards are disagreement (OPAX), costs the mean plus α times disagreement, one member is drawn anew in every
  step; LBSGD's step goes through Adam ("actsafe-published"), or is taken ("actsafe-corrected").
* **LAMBDA**: members are posterior samples and go apart; the best member's return, the worst member's cost, a multiplier.
* **BSRP-Lag**: one model, a member drawn anew in every step, and a multiplier.

Sources: As et al. (ActSafe, with its code); As et al. 2022 (LAMBDA); Huang et al. 2024 (SafeDreamer). LAMBDA's samples are
SWAG's in the paper; here they are the members of the bootstrap ensemble, the same for all explorers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models._recurrent import Perceptron
from gpsafe.models.rssm import State
from gpsafe.planning.latent.penalties import Barrier, Multiplier, Penalty
from gpsafe.planning.latent.world import World
from gpsafe.sets import Box


def lambda_returns(reward: Tensor, value: Tensor, *, discount: float, mixing: float) -> Tensor:
    """R_0 … R_{H−1}, (H, *b).

    Args:
        reward: r_1 … r_H, (H, *b).
        value: v(s_1) … v(s_H), (H, *b).
        discount: γ.
        mixing: λ; 1: discounted sums with v at the end, 0: one step.
    """
    found, ahead = [], value[-1]
    for r, v in zip(reward.flip(0), value.flip(0), strict=True):
        ahead = r + discount * ((1.0 - mixing) * v + mixing * ahead)
        found.append(ahead)
    return torch.stack(found[::-1])


@dataclass(frozen=True, slots=True)
class ActorCriticSettings:
    """One algorithm.

    Args:
        name: of it.
        penalty: makes what carries the constraint.
        extrinsic, intrinsic: weights of reward and disagreement.
        alpha: of the bonus on the cost.
        apart: members go apart, the best return and the worst cost over them count.
        horizon, discount, mixing: H, γ, λ.
        hidden: width of the networks.
        starts: posterior states that an update starts from.
        updates: for each call of `improve`.
        critic_rate: Adam's, of the critics.
        least_std, first_std: of the policy before tanh: smallest, and at the start.
    """

    name: str
    penalty: Callable[[], Penalty]
    extrinsic: float = 0.0
    intrinsic: float = 0.0
    alpha: float = 0.0
    apart: bool = False
    horizon: int = 12
    discount: float = 0.99
    mixing: float = 0.95
    hidden: int = 48
    starts: int = 64
    updates: int = 60
    critic_rate: float = 1e-3
    least_std: float = 0.1
    first_std: float = 1.0


PRESETS: dict[str, ActorCriticSettings] = {
    settings.name: settings
    for settings in (
        ActorCriticSettings("actsafe-published", lambda: Barrier(rate=1e-3), intrinsic=1.0, alpha=1.0),
        ActorCriticSettings("actsafe-corrected", Barrier, intrinsic=1.0, alpha=1.0),
        ActorCriticSettings("lambda", Multiplier, extrinsic=1.0, apart=True),
        ActorCriticSettings("bsrp-lag", Multiplier, extrinsic=1.0),
    )
}
"""At the scale of this project: 1e-3 in place of 8e-5 for Adam, and the multipliers of `Multiplier`."""


class ActorCritic:
    """A tanh-Gaussian policy on latent states with two critics.

    Args:
        settings: see `ActorCriticSettings`.
        world: whose latent states it acts on; only their size is taken from it.
        box: of inputs.
        budget, horizon: d and T of an episode.
        generator: draws the weights.
    """

    def __init__(
        self,
        settings: ActorCriticSettings,
        world: World,
        box: Box,
        *,
        budget: float,
        horizon: int,
        generator: torch.Generator,
    ) -> None:
        self.settings, self.box, s = settings, box, settings
        _require.nonnegative("ActorCritic", "budget", budget)
        self.threshold = budget / _require.count("ActorCritic", "horizon", horizon) / (1.0 - s.discount)
        dtype = next(world.parameters()).dtype
        sizes = (world.feature, s.hidden, s.hidden)
        self.actor = Perceptron(1, (*sizes, 2 * box.dim), generator).to(dtype)
        self.critics = Perceptron(2, (*sizes, 1), generator).to(dtype)  # of rewards, of costs
        with torch.no_grad():
            for p in self.actor.layers[-1].parameters():
                p.mul_(0.01)
        self.penalty = s.penalty()
        self.optimiser = torch.optim.Adam(self.critics.parameters(), lr=s.critic_rate)

    def _inputs(self, state: State, generator: torch.Generator) -> Tensor:
        feature = state.feature
        raw = self.actor(feature.reshape(1, -1, feature.shape[-1]))[0].unflatten(0, feature.shape[:-1])
        mean, spread = raw.chunk(2, dim=-1)
        shift = torch.log(torch.expm1(torch.tensor(self.settings.first_std, dtype=raw.dtype)))
        std = torch.nn.functional.softplus(spread + shift) + self.settings.least_std
        noise = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
        unit = torch.tanh(5.0 * torch.tanh(mean / 5.0) + std * noise)
        return self.box.center.to(unit) + self.box.radius.to(unit) * unit

    def _values(self, feature: Tensor) -> Tensor:
        """Of rewards and costs, (2, *b)."""
        rows = feature.reshape(1, -1, feature.shape[-1]).expand(2, -1, -1)
        return self.critics(rows)[..., 0].unflatten(1, feature.shape[:-1])

    def improve(self, world: World, starts: State, generator: torch.Generator) -> None:
        """`updates` steps of policy and critics from posterior states (N, ·); the world is left as it is."""
        for p in world.parameters():
            p.requires_grad_(False)
        for _ in range(self.settings.updates):
            rows = torch.randint(len(starts.stochastic), (self.settings.starts,), generator=generator)
            self._update(world, starts[rows].detach(), generator)
        for p in world.parameters():
            p.requires_grad_(True)

    def _update(self, world: World, start: State, generator: torch.Generator) -> None:
        s = self.settings
        states, _, doubt = world.rssm.imagine(
            start, lambda state: self._inputs(state, generator), s.horizon, generator, apart=s.apart
        )
        reward, cost = world.outcome(states[1:])  # (H, M or 1, B)
        doubt = doubt.unsqueeze(1).expand_as(reward)
        reward, cost = s.extrinsic * reward + s.intrinsic * doubt, cost + s.alpha * doubt
        values = self._values(states.feature[1:])
        both = [
            lambda_returns(r, v, discount=s.discount, mixing=s.mixing)
            for r, v in zip((reward, cost), values, strict=True)
        ]
        best, worst = (
            both[0].mean(0).amax(0),
            both[1].mean(0).amax(0),
        )  # over members; there is one if they do not go apart
        self.penalty.step(list(self.actor.parameters()), -best.mean(), worst.mean() - self.threshold)
        told = self._values(states.feature[:-1].detach())
        loss = sum((v - r.detach()).square().mean() for v, r in zip(told, both, strict=True))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(self.critics.parameters(), 100.0)
        self.optimiser.step()

    @torch.no_grad()
    def act(self, world: World, state: State, spent: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Inputs (E, nu) in latent states (E, ·)."""
        return self._inputs(state, generator).double()
