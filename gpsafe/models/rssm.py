"""A recurrent state-space model with an ensemble of priors: a world model for images, as in ActSafe's visual experiments.

With o_t an observation, a_t the action that led to it, h_t deterministic and s_t stochastic,

    h_t^m = cell_m(h_{t−1}, s_{t−1}, a_t),   p_m(s_t | h_t^m), m = 1 … M      the ensemble: cell and prior head
    q(s_t | h_t, e_t), e_t = encoder(o_t),   o_t ~ N(decoder(h_t, s_t), σ² I)   shared by all members

Filtering draws the member whose h_t goes on, anew in every step, and so does imagination; the loss of a sequence is

    Σ_t −log N(o_t; decoder(h_t, s_t), σ² I) + w · mean_m max(KL(q ‖ p_m), free nats)      (with KL balance).

**Nothing here is believed.** The latent state has no units, the members share encoder, decoder and posterior, and their spread
is calibrated to nothing: no set of functions contains the truth with a stated probability. What that costs is measured by the
experiment `pixels-v0`.

Source: As et al., "ActSafe: Active exploration with safety constraints for reinforcement learning" (the experiments from
images), after Hafner et al.'s RSSM. Here all members are fitted in every step (not one drawn), and sequences may carry a weight
for every member, so that a bootstrap is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gpsafe import _require
from gpsafe._show import short
from gpsafe.models._latent import Head, Kind, Latent, disagreement, divergence, gaussian_log_density, stacked
from gpsafe.models._recurrent import GRU, Decoder, Encoder, LinearCell, Perceptron

__all__ = ["RSSM", "Filtered", "Loss", "RSSMSettings", "State", "disagreement"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
FORMAT = "gpsafe-rssm-1"


@dataclass(frozen=True, slots=True)
class RSSMSettings:
    """Sizes and weights.

    Args:
        shape: of an observation: (H, W, C), or (n,).
        nu: size of an action.
        deterministic: size of h.
        latent, stochastic, classes: kind and size of s; classes only of a categorical.
        hidden: width of the heads; 0: the heads are affine.
        embedding: size of e.
        members: M.
        depth: channels of the first convolution; 0: encoder and decoder are dense (affine if `hidden` is 0).
        cell: "gru", or "linear" (h_t is affine in (s, a)).
        least_std: smallest standard deviation of a Gaussian latent.
        observation_std: σ.
        balance, free_nats, kl_weight: of the divergence.
        dtype: "float32" or "float64". Float32 halves the time of convolutions; there is no bound here for rounding to break.
    """

    shape: tuple[int, ...]
    nu: int
    deterministic: int = 64
    latent: Kind = "gaussian"
    stochastic: int = 8
    classes: int = 8
    hidden: int = 64
    embedding: int = 64
    members: int = 5
    depth: int = 8
    cell: Literal["gru", "linear"] = "gru"
    least_std: float = 0.1
    observation_std: float = 1.0
    balance: float = 0.8
    free_nats: float = 1.0
    kl_weight: float = 1.0
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        where = "RSSMSettings"
        object.__setattr__(self, "shape", tuple(_require.count(where, "shape", n) for n in self.shape))
        for name in ("deterministic", "stochastic", "classes", "embedding", "members"):
            _require.count(where, name, getattr(self, name))
        for name in ("nu", "hidden", "depth"):
            _require.count(where, name, getattr(self, name), minimum=0)
        _require.positive(where, "observation_std", self.observation_std)
        _require.nonnegative(where, "least_std, free_nats, kl_weight", [self.least_std, self.free_nats, self.kl_weight])
        if not 0.0 <= self.balance <= 1.0:
            raise _require.fail(where, "balance in [0, 1]", self.balance)
        _require.one_of(where, "latent", self.latent, ("gaussian", "categorical"))
        _require.one_of(where, "cell", self.cell, ("gru", "linear"))
        _require.one_of(where, "dtype", self.dtype, DTYPES)

    @property
    def head(self) -> Head:
        """How a latent is made of numbers."""
        return Head(self.latent, self.stochastic, self.classes, self.least_std)


@short
@dataclass(frozen=True, slots=True, eq=False)
class State:
    """h (*b, D) and s (*b, S)."""

    deterministic: Tensor
    stochastic: Tensor

    @property
    def feature(self) -> Tensor:
        """(h, s), what is decoded."""
        return torch.cat([self.deterministic, self.stochastic], dim=-1)

    def detach(self) -> State:
        """Without gradients."""
        return State(self.deterministic.detach(), self.stochastic.detach())

    def __getitem__(self, index: Any) -> State:
        return State(self.deterministic[index], self.stochastic[index])


@short
@dataclass(frozen=True, slots=True, eq=False)
class Filtered:
    """T steps of a batch of B sequences: states and posterior (T, B, ·), priors of all members (M, T, B, ·)."""

    states: State
    posterior: Latent
    prior: Latent

    def disagreement(self, *, scale: float = 1.0) -> Tensor:
        """Of every step, (T, B)."""
        return disagreement(self.prior, scale=scale)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """Means per step of a sequence.

    Attributes:
        total: what is descended.
        reconstruction: −log likelihood of the observation.
        divergence: KL(q ‖ p_m), mean over members, before free nats.
    """

    total: Tensor
    reconstruction: Tensor
    divergence: Tensor


class RSSM(nn.Module):
    """The model. Build it with `RSSM(settings, generator)`; weights come from the generator alone.

    Args:
        settings: sizes and weights.
        generator: draws the weights.
    """

    def __init__(self, settings: RSSMSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.settings = s = settings
        hidden = (s.hidden,) if s.hidden else ()
        head, feature = s.head, s.deterministic + s.head.out
        cell = GRU if s.cell == "gru" else LinearCell
        self.cell = cell(s.members, head.out + s.nu, s.deterministic, generator)
        self.prior = Perceptron(s.members, (s.deterministic, *hidden, head.width), generator)
        self.posterior = Perceptron(1, (s.deterministic + s.embedding, *hidden, head.width), generator)
        self.encoder = Encoder(s.shape, depth=s.depth, hidden=hidden, out=s.embedding, generator=generator)
        self.decoder = Decoder(s.shape, depth=s.depth, hidden=hidden, d_in=feature, generator=generator)
        self.to(DTYPES[s.dtype])

    @property
    def _like(self) -> Tensor:
        return next(self.parameters())

    def initial(self, batch: int) -> State:
        """h = 0 and s = 0, before the first observation."""
        s, like = self.settings, self._like
        return State(like.new_zeros(batch, s.deterministic), like.new_zeros(batch, s.head.out))

    def predict(self, state: State, action: Tensor) -> tuple[Tensor, Latent]:
        """h of all members (M, B, D) and their priors (M, B, ·), one step ahead.

        Args:
            state: (B, ·), or (M, B, ·): each member its own.
            action: (B, nu), or (M, B, nu).
        """
        h = self._ahead(state, action)
        return h, self.settings.head(self.prior(h))

    def _ahead(self, state: State, action: Tensor) -> Tensor:
        members = self.settings.members
        x = torch.cat([state.stochastic, action.to(state.stochastic)], dim=-1)
        h = state.deterministic
        return self.cell(x.expand(members, *x.shape[-2:]), h.expand(members, *h.shape[-2:]))

    def infer(self, h: Tensor, embedding: Tensor) -> Latent:
        """q(s | h, e), (B, ·)."""
        return self.settings.head(self.posterior(torch.cat([h, embedding], dim=-1).unsqueeze(0))[0])

    def decode(self, state: State) -> Tensor:
        """Mean of the observation: state (*b, ·) ↦ (*b, *shape)."""
        feature = state.feature
        return self.decoder(feature.reshape(-1, feature.shape[-1])).unflatten(0, feature.shape[:-1])

    def _member(self, generator: torch.Generator | None) -> int:
        if generator is None or self.settings.members == 1:
            return 0
        drawn = torch.randint(self.settings.members, (), generator=generator, device=generator.device)
        return int(drawn)

    def filter(
        self, observations: Tensor, actions: Tensor, generator: torch.Generator | None, *, start: State | None = None
    ) -> Filtered:
        """Posterior states along B sequences.

        Args:
            observations: (B, T, *shape).
            actions: (B, T, nu); actions[:, t] led to observations[:, t], so the first is usually 0.
            generator: draws members and states, on the model's device. None: member 0 and means, the deterministic filter.
            start: before the first action; `initial` by default.
        """
        like = self._like
        o = _require.real("RSSM.filter", "observations", observations).to(like)
        a = _require.real("RSSM.filter", "actions", actions).to(like)
        batch, steps = o.shape[:2]
        _require.shape("RSSM.filter", "observations", o, (batch, steps, *self.settings.shape))
        _require.shape("RSSM.filter", "actions", a, (batch, steps, self.settings.nu))
        embedding = self.encoder(o.flatten(0, 1)).unflatten(0, (batch, steps))
        state = self.initial(batch) if start is None else start
        stochastic, carried, ahead, posteriors = [], [], [], []
        for t in range(steps):
            every = self._ahead(state, a[:, t])
            h = every[self._member(generator)]
            posterior = self.infer(h, embedding[:, t])
            state = State(h, posterior.mean if generator is None else posterior.sample(generator))
            for of, value in ((ahead, every), (carried, h), (stochastic, state.stochastic), (posteriors, posterior)):
                of.append(value)
        hidden = torch.stack(ahead, dim=1)  # (M, T, B, D)
        prior = self.settings.head(self.prior(hidden.flatten(1, 2)).unflatten(1, (steps, batch)))
        return Filtered(State(torch.stack(carried), torch.stack(stochastic)), stacked(posteriors), prior)

    def loss(
        self, observations: Tensor, actions: Tensor, generator: torch.Generator, *, weights: Tensor | None = None
    ) -> Loss:
        """See the module; `weights` (M, B) ≥ 0 weigh the divergence of members and sequences (a bootstrap); 1 by default."""
        return self.loss_of(self.filter(observations, actions, generator), observations, weights=weights)

    def loss_of(self, found: Filtered, observations: Tensor, *, weights: Tensor | None = None) -> Loss:
        """The loss of sequences (B, T, *shape) that were filtered already, for whoever has heads of their own on the states."""
        s = self.settings
        decoded = self.decode(found.states)  # (T, B, *shape)
        target = observations.to(decoded).movedim(1, 0)
        density = gaussian_log_density(target, decoded, s.observation_std).flatten(2).sum(-1)
        # (M, T, B) each
        balanced, plain = divergence(found.posterior, found.prior, balance=s.balance, free_nats=s.free_nats)
        if weights is not None:
            balanced = balanced * weights.to(balanced).unsqueeze(1)
        reconstruction = -density.mean()
        return Loss(reconstruction + s.kl_weight * balanced.mean(), reconstruction.detach(), plain.mean())

    def imagine(
        self,
        start: State,
        policy: Callable[[State], Tensor],
        steps: int,
        generator: torch.Generator | None,
        *,
        apart: bool = False,
    ) -> tuple[State, Tensor, Tensor]:
        """States ahead without observations.

        Args:
            start: (B, ·).
            policy: state (M or 1, B, ·) ↦ actions (M or 1, B, nu).
            steps: how many.
            generator: draws states, and members if they do not go apart. None: means, and member 0.
            apart: every member follows its own states from the start (M, B, ·); otherwise a member is drawn anew for every
                step, as published, and the shapes have 1 in place of M.

        Returns:
            States (steps + 1, M or 1, B, ·) with the start, actions (steps, M or 1, B, nu), disagreement (steps, B) among the
            members' predictions (of their own states if they go apart).
        """
        _require.count("RSSM.imagine", "steps", steps)
        count = self.settings.members if apart else 1
        state = State(*(v.expand(count, *v.shape) for v in (start.deterministic, start.stochastic)))
        hs, ss, actions, doubts = [state.deterministic], [state.stochastic], [], []
        for _ in range(steps):
            action = policy(state)
            h, prior = self.predict(state, action)
            doubts.append(disagreement(prior))
            if not apart:
                m = self._member(generator)
                h, prior = h[m : m + 1], prior[m : m + 1]
            state = State(h, prior.mean if generator is None else prior.sample(generator))
            hs.append(state.deterministic)
            ss.append(state.stochastic)
            actions.append(action)
        return State(torch.stack(hs), torch.stack(ss)), torch.stack(actions), torch.stack(doubts)

    def save(self, path: str | Path) -> None:
        """Settings and weights, to be read with `load`."""
        torch.save({"format": FORMAT, "settings": asdict(self.settings), "weights": self.state_dict()}, path)

    @staticmethod
    def load(path: str | Path, *, device: torch.device | str = "cpu") -> RSSM:
        """What `save` wrote, on a device; no code of the file runs."""
        found = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise _require.fail("RSSM.load", f"a file of format {FORMAT}", str(path))
        model = RSSM(RSSMSettings(**found["settings"]), torch.Generator()).to(device)
        model.load_state_dict(found["weights"])
        return model
