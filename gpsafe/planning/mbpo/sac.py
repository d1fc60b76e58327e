"""Soft actor-critic with the gradient written out: NumPy, float32, the networks of S seeds stacked on the leading axis.

The actor is a = tanh(μ(x) + σ(x)ε), u = middle + radius·a; two critics Q(x, a) with slow copies Q′; fixed entropy weight α.
Losses ½ Σ_i mean (Q_i(x, a) − y)², y = r + γ(1 − terminal)(min Q′(x⁺, a⁺) − α log π(a⁺|x⁺)); mean (α log π(a|x) − min Q(x, a)).
An update is a function of its arguments, seed i draws from `generators[i]` alone: S stacked seeds give the bits of single ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpsafe import _require
from gpsafe.models._flat import Adam
from gpsafe.planning.mbpo._nets import FLOAT, Array, Arrays, Nets, generator_state, restored_generator

LOG_STD = (-20.0, 2.0)  # limits of log σ


@dataclass(frozen=True, slots=True)
class Settings:
    """Widths of the ReLU layers, Adam's rate, γ, α, and the part of Q′ that an update keeps."""

    hidden: tuple[int, ...] = (100, 100)
    learning_rate: float = 3e-4
    discount: float = 0.99
    entropy: float = 0.2
    polyak: float = 0.995

    def __post_init__(self) -> None:
        _require.positive("sac.Settings", "learning_rate", self.learning_rate)
        _require.nonnegative("sac.Settings", "entropy", self.entropy)
        for name in ("discount", "polyak"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise _require.fail("sac.Settings", f"{name} in [0, 1]", getattr(self, name))


class SAC:
    """S agents, one a seed, that learn side by side; low ≤ u ≤ high, (nu,). Weights change in place; `state` copies them."""

    def __init__(
        self, nx: int, nu: int, low: Any, high: Any, seeds: Sequence[int], settings: Settings | None = None
    ) -> None:
        self.nx, self.nu = _require.count("SAC", "nx", nx), _require.count("SAC", "nu", nu)
        self.seeds = tuple(_require.index("SAC", "seed", s) for s in _require.listing("SAC", "seeds", seeds))
        count = _require.count("SAC", "number of seeds", len(self.seeds))
        limits = [_require.shape("SAC", "low, high", _require.real("SAC", "low, high", v), (nu,)) for v in (low, high)]
        _require.positive("SAC", "high - low", limits[1] - limits[0])
        self.middle, self.radius = (((limits[1] + s * limits[0]) / 2).numpy().astype(FLOAT) for s in (1, -1))
        self.settings = Settings() if settings is None else settings
        self.generators = [np.random.default_rng(s) for s in self.seeds]
        self.actor = Nets((count,), (nx, *self.settings.hidden, 2 * nu))
        self.critic, self.target = (Nets((count, 2), (nx + nu, *self.settings.hidden, 1)) for _ in range(2))
        for i, generator in enumerate(self.generators):
            self.actor.randomise(i, generator)
            self.critic.randomise(i, generator)
        self.target.flat[:] = self.critic.flat

    def act(self, x: Any, noise: Any | None = None) -> Array:
        """u (S, n, nu) at states x (S, n, nx): the deterministic tanh μ, or the draw that goes with noise ε (S, n, nu)."""
        out = self.actor(self._stacked("x", x, self.nx))[-1]
        a = np.tanh(out[..., : self.nu]) if noise is None else self._draw(out, np.asarray(noise, FLOAT))[0]
        return (self.middle + self.radius * a).astype(FLOAT)

    def sample(self, x: Any) -> Array:
        """Stochastic u (S, n, nu) at x (S, n, nx)."""
        return self.act(x, np.stack([g.standard_normal((np.shape(x)[1], self.nu), FLOAT) for g in self.generators]))

    def policy(self, i: int = 0) -> Callable[[Any], Array]:
        """The stochastic policy of agent i: x (n, nx) ↦ u (n, nu)."""
        one = self.actor.part(i)

        def stochastic(x: Any) -> Array:
            noise = self.generators[i].standard_normal((len(x), self.nu), FLOAT)
            return (self.middle + self.radius * self._draw(one(np.asarray(x, FLOAT))[-1], noise)[0]).astype(FLOAT)

        return stochastic

    def _stacked(self, name: str, value: Any, size: int) -> Array:
        array = np.asarray(value, FLOAT)
        if array.ndim != 3 or (len(array), array.shape[2]) != (len(self.seeds), size):
            raise _require.fail("SAC", f"{name} of shape ({len(self.seeds)}, n, {size})", f"shape {array.shape}")
        return array

    def _draw(self, out: Array, noise: Any) -> tuple[Array, Array, Array]:
        """a, log π(a|x) and σε; 1 − tanh² v as 2(ln 2 − |v| − ln(1 + e^(−2|v|))), also where tanh v rounds to 1."""
        log_std = np.clip(out[..., self.nu :], *LOG_STD)
        step = np.exp(log_std) * noise
        raw = out[..., : self.nu] + step
        slope = np.abs(raw) + np.log1p(np.exp(-2 * np.abs(raw)))
        density = 2 * slope - 0.5 * np.square(noise) - log_std - 0.5 * math.log(32 * math.pi)
        return np.tanh(raw), density.sum(-1), step

    def update(self, batch: Array, noise: Array) -> None:
        """One step of critics, actor and slow copies.

        Args:
            batch: rows [x | u | r | x⁺ | terminal], (S, B, 2nx + nu + 2).
            noise: ε of a at x and of a⁺ at x⁺, (S, 2, B, nu).
        """
        n, nx, nu, s = batch.shape[1], self.nx, self.nu, self.settings
        x, u, reward, following, terminal = np.split(batch, (nx, nx + nu, nx + nu + 1, 2 * nx + nu + 1), -1)
        values = self.actor(np.concatenate([x, following], 1))
        action, density, step = self._draw(values[-1], noise.reshape(len(batch), 2 * n, nu))
        a, step = action[:, :n], step[:, :n]
        worth = self.target(np.concatenate([following, action[:, n:]], -1)[:, None])[-1].min(1)
        goal = reward + s.discount * (1 - terminal) * (worth - s.entropy * density[:, n:, None])
        past = self.critic(np.concatenate([x, (u - self.middle) / self.radius], -1)[:, None])
        self.critic.backward(past, (past[-1] - goal[:, None]) / FLOAT(n))
        self.critic.step(s.learning_rate)
        # α log π − min Q through a, with ε fixed: by the argument of tanh 2αa − (1 − a²)∂Q/∂a; log σ also has −α of its own.
        by_mean = (2 * s.entropy * a - self._pull(x, a) * (1 - a * a)) / FLOAT(n)
        log_std = values[-1][:, :n, nu:]
        by_std = (by_mean * step - s.entropy / n) * ((log_std >= LOG_STD[0]) & (log_std <= LOG_STD[1]))
        self.actor.backward([v[:, :n] for v in values], np.concatenate([by_mean, by_std], -1))
        self.actor.step(s.learning_rate)
        self.target.flat += FLOAT(1 - s.polyak) * (self.critic.flat - self.target.flat)

    def _pull(self, x: Array, a: Array) -> Any:
        """∂/∂a of what the actor climbs, min Q(x, a), (S, n, nu)."""
        own = self.critic(np.concatenate([x, a], -1)[:, None])
        first = own[-1][:, :1] <= own[-1][:, 1:]
        return self.critic.input_gradient(own, np.concatenate([first, ~first], 1).astype(FLOAT), self.nx).sum(1)

    def imitate(self, x: Any, u: Any, *, steps: int = 500, batch: int = 256, learning_rate: float = 1e-3) -> None:
        """tanh μ towards recorded inputs u (S, n, nu) at x (S, n, nx): Adam steps of their own on the mean squared distance."""
        x, wanted = self._stacked("x", x, self.nx), (self._stacked("u", u, self.nu) - self.middle) / self.radius
        kept, self.actor.adam = self.actor.adam, Adam(self.actor.flat.shape)
        for _ in range(steps):
            rows = np.stack([g.integers(x.shape[1], size=(batch, 1)) for g in self.generators])
            values = self.actor(np.take_along_axis(x, rows, 1))
            a = np.tanh(values[-1][..., : self.nu])
            gap = (a - np.take_along_axis(wanted, rows, 1)) * (1 - a * a) * FLOAT(2 / (batch * self.nu))
            self.actor.backward(values, np.concatenate([gap, np.zeros_like(gap)], -1))
            self.actor.step(learning_rate)
        self.actor.adam = kept

    def state(self) -> Arrays:
        """All that decides how it goes on: weights, Adam's moments and steps, generators."""
        nets = (("actor", self.actor), ("critic", self.critic), ("target", self.target))
        parts = {f"{name}.{part}": value for name, net in nets for part, value in net.state().items()}
        return {**parts, "generators": np.stack([generator_state(g) for g in self.generators])}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from the `state` of agents of the same sizes."""
        for name in ("actor", "critic", "target"):
            getattr(self, name).load({part: state[f"{name}.{part}"] for part in ("flat", "first", "second", "steps")})
        self.generators[:] = [restored_generator(row) for row in state["generators"]]
