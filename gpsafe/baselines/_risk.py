"""What SQRL adds to soft actor-critic: a safety critic, a mask of actions, a term of the actor's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gpsafe.baselines._nets import Array
from gpsafe.models import _flat
from gpsafe.models._flat import Adam
from gpsafe.planning.mbpo import SAC, Settings
from gpsafe.planning.mbpo._nets import FLOAT, Nets


def risk_target(cost: Array, terminal: Array, later: Array, discount: float) -> Array:
    """c + (1 − terminal) γ_safe Q_safe(s⁺, a⁺)."""
    return cost + (1 - terminal) * discount * later


def masked(risk: Array, weight: Array, limit: float, uniform: Array) -> Array:
    """Which of K actions is taken in each of n states, (n,): among those with risk ≤ ε with probability ∝ weight.

    The least risky where none is.

    Args:
        risk, weight: (n, K), weight ≥ 0.
        limit: ε.
        uniform: U(0, 1), (n,).
    """
    allowed = np.where(risk <= limit, weight, 0.0)
    total = np.cumsum(allowed, -1)
    taken = (uniform[:, None] * total[:, -1:] < total).argmax(-1)
    return np.where(total[:, -1] > 0, taken, risk.argmin(-1))


class RiskAgent(SAC):
    """SAC with a learned entropy weight and twin safety critics, the larger of which counts.

    Args:
        published: targets without the sigmoid, and no gradient of the safety term.
        about: nx, nu, low, high of the plant.
        seed: of its random numbers.
    """

    def __init__(self, published: bool, about: tuple[int, int, Any, Any], seed: int, settings: Settings) -> None:
        super().__init__(*about, [seed], settings)
        self.published, sizes = published, (self.nx + self.nu, *settings.hidden, 1)
        self.risk, self.slow = (Nets((1, 2), sizes) for _ in range(2))
        self.risk.randomise(0, self.generators[0])
        self.slow.flat[:] = self.risk.flat
        self.weights = np.array([0.0, np.log(0.01)])  # log α, log ν
        self.adams = [Adam((1,), np.float64) for _ in range(2)]
        self.safe_limit = 1.0

    def risks(self, x: Array, a: Array) -> Array:
        """max Q_safe at actions in [−1, 1], (1, n)."""
        return _sigmoid(self.risk(np.concatenate([x, a], -1)[:, None])[-1]).max(1)[..., 0]

    def candidates(self, x: Array, noise: Array) -> tuple[Array, Array, Array]:
        """The actions in [−1, 1] that go with noise (n, K, nu) at states (n, nx), their log π and max Q_safe, (n, K, ·)."""
        shape, states = noise.shape, np.asarray(x, FLOAT)[None]
        drawn = noise.reshape(1, -1, shape[2]).astype(FLOAT)
        a, density, _ = self._draw(self.actor(states)[-1].repeat(shape[1], 1), drawn)
        states, wide = states.repeat(shape[1], 1), 2 * max(self.risk.sizes)
        risk = np.concatenate([self.risks(states[:, some], a[:, some]) for some in _flat.pieces(a.shape[1], wide)], 1)
        return a.reshape(shape).astype(float), density.reshape(shape[:2]).astype(float), risk.reshape(shape[:2])

    def _pull(self, x: Array, a: Array) -> Any:
        """As SAC's, less ν ∂Q_safe/∂a."""
        climb = super()._pull(x, a)
        if self.published:
            return climb
        values = self.risk(np.concatenate([x, a], -1)[:, None])
        risk = _sigmoid(values[-1])
        first = risk[:, :1] >= risk[:, 1:]
        slope = (np.concatenate([first, ~first], 1) * risk * (1 - risk)).astype(FLOAT)
        return climb - FLOAT(np.exp(self.weights[1])) * self.risk.input_gradient(values, slope, self.nx).sum(1)

    def tune(self, x: Array, noise: Array, *, alpha_rate: float, nu_rate: float) -> None:
        """log α towards an entropy of dim a, log ν up where Q_safe > ε at the states x (1, n, nx)."""
        a, density, _ = self._draw(self.actor(x)[-1], noise)
        excess = float(self.risks(x, a).mean()) - self.safe_limit
        climbs = (float(density.mean()) - self.nu) * np.exp(self.weights[0]), excess * np.exp(self.weights[1])
        for i, (climb, rate) in enumerate(zip(climbs, (alpha_rate, nu_rate), strict=True)):
            self.adams[i].step(self.weights[i : i + 1], np.array([-climb]), rate)
        self.settings = replace(self.settings, entropy=float(np.exp(self.weights[0])))

    def learn_risk(self, batch: Array, noise: Array, discount: float, polyak: float) -> None:
        """One step of both safety critics on rows [x | u | cost | x⁺ | terminal], (1, n, ·)."""
        nx, nu, n = self.nx, self.nu, batch.shape[1]
        x, u, cost, following, terminal = np.split(batch, (nx, nx + nu, nx + nu + 1, 2 * nx + nu + 1), -1)
        a = self._draw(self.actor(following)[-1], noise)[0]
        later = self.slow(np.concatenate([following, a], -1)[:, None])[-1]
        later = (later if self.published else _sigmoid(later)).max(1)
        goal = risk_target(cost, terminal, later, discount)[:, None]
        values = self.risk(np.concatenate([x, (u - self.middle) / self.radius], -1)[:, None])
        risk = _sigmoid(values[-1])
        self.risk.backward(values, ((risk - goal) * risk * (1 - risk) / n).astype(FLOAT))
        self.risk.step(self.settings.learning_rate)
        self.slow.flat += FLOAT(1 - polyak) * (self.risk.flat - self.slow.flat)

    def state(self) -> dict[str, Any]:
        """All that decides how it goes on."""
        more = {
            f"{name}.{k}": v for name, net in (("risk", self.risk), ("slow", self.slow)) for k, v in net.state().items()
        }
        more |= {f"adam-{i}.{k}": v for i, adam in enumerate(self.adams) for k, v in adam.state().items()}
        return super().state() | more | {"weights": self.weights.copy(), "entropy": np.array(self.settings.entropy)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state`."""
        super().load(state)
        for name, part in (
            ("risk", self.risk),
            ("slow", self.slow),
            *((f"adam-{i}", a) for i, a in enumerate(self.adams)),
        ):
            part.load({key[len(name) + 1 :]: v for key, v in state.items() if key.startswith(f"{name}.")})
        self.weights[:] = state["weights"]
        self.settings = replace(self.settings, entropy=float(state["entropy"]))


def _sigmoid(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * z))
