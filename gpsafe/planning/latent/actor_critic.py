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

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models._recurrent import Perceptron
from gpsafe.models.rssm import State
from gpsafe.planning.latent._state import Arrays, adam, below, load_adam, load_network, network, prefixed
from gpsafe.planning.latent._state import State as Stored
from gpsafe.planning.latent.presets import ActorCriticSettings
from gpsafe.planning.latent.returns import lambda_returns
from gpsafe.planning.latent.world import World
from gpsafe.sets import Box


class ActorCritic:
    """A tanh-Gaussian policy on latent states with two critics.

    Args:
        settings: see `ActorCriticSettings`.
        world: whose latent states it acts on; their size and their device are taken from it.
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
        like = next(world.parameters())
        sizes = (world.feature, *(s.hidden,) * s.layers)
        self.actor = Perceptron(1, (*sizes, 2 * box.dim), generator).to(like)
        self.critics = Perceptron(2, (*sizes, 1), generator).to(like)  # of rewards, of costs
        with torch.no_grad():
            for p in self.actor.layers[-1].parameters():
                p.mul_(0.01)
        self.penalty = s.penalty()
        self.optimiser = torch.optim.Adam(self.critics.parameters(), lr=s.critic_rate)

    def _inputs(self, state: State, generator: torch.Generator) -> Tensor:
        feature = state.feature
        raw = self.actor(feature.reshape(1, -1, feature.shape[-1]))[0].unflatten(0, feature.shape[:-1])
        mean, spread = raw.chunk(2, dim=-1)
        shift = torch.log(torch.expm1(raw.new_tensor(self.settings.first_std)))
        std = torch.nn.functional.softplus(spread + shift) + self.settings.least_std
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        unit = torch.tanh(5.0 * torch.tanh(mean / 5.0) + std * noise)
        return self.box.center.to(unit) + self.box.radius.to(unit) * unit

    def _values(self, feature: Tensor) -> Tensor:
        """Of rewards and costs, (2, *b)."""
        rows = feature.reshape(1, -1, feature.shape[-1]).expand(2, -1, -1)
        return self.critics(rows)[..., 0].unflatten(1, feature.shape[:-1])

    @property
    def updates(self) -> int:
        """Calls of `improve` for every iteration."""
        return self.settings.updates

    def improve(self, world: World, starts: State, generator: torch.Generator) -> None:
        """One step of policy and critics from posterior states (N, ·); the world is left as it is."""
        for p in world.parameters():
            p.requires_grad_(False)
        count = (self.settings.starts,)
        rows = torch.randint(len(starts.stochastic), count, generator=generator, device=generator.device)
        self._update(world, starts[rows].detach(), generator)
        for p in world.parameters():
            p.requires_grad_(True)

    def _update(self, world: World, start: State, generator: torch.Generator) -> None:
        s = self.settings
        with world.precision():
            states, _, doubt = world.rssm.imagine(
                start, lambda state: self._inputs(state, generator), s.horizon, generator, apart=s.apart
            )
            reward, cost = world.outcome(states[1:])  # (H, M or 1, B)
            values = self._values(states.feature[1:])
            told = self._values(states.feature[:-1].detach())
        doubt = doubt.unsqueeze(1).expand_as(reward)
        reward, cost = s.extrinsic * reward + s.intrinsic * doubt, cost + s.alpha * doubt
        both = [
            lambda_returns(r, v, discount=s.discount, mixing=s.mixing)
            for r, v in zip((reward, cost), values, strict=True)
        ]
        # over members; there is one if they do not go apart
        best, worst = both[0].mean(0).amax(0), both[1].mean(0).amax(0)
        self.penalty.step(list(self.actor.parameters()), -best.mean(), worst.mean() - self.threshold)
        loss = sum((v - r.detach()).square().mean() for v, r in zip(told, both, strict=True))
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(self.critics.parameters(), 100.0)
        self.optimiser.step()

    @torch.no_grad()
    def act(self, world: World, state: State, spent: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Inputs (E, nu) in latent states (E, ·)."""
        return self._inputs(state, generator).double()

    def state(self) -> Arrays:
        """Networks, optimisers and the penalty, as arrays."""
        parts = {"actor": network(self.actor), "critics": network(self.critics), "adam": adam(self.optimiser)}
        parts["penalty"] = self.penalty.state()
        return {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}

    def load(self, state: Stored) -> None:
        """Goes on from the `state` of one with the same settings."""
        load_network(self.actor, below("actor", state))
        load_network(self.critics, below("critics", state))
        load_adam(self.optimiser, below("adam", state))
        self.penalty.load(below("penalty", state), list(self.actor.parameters()))
