"""Lyapunov barrier policy optimisation (Sikchi, Zhou, Held 2021): a log barrier keeps the policy's Q_c near a baseline's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpsafe import _require
from gpsafe.algorithms.learner import MODEL
from gpsafe.baselines._nets import Array, Net, Numbers, Running
from gpsafe.baselines._surrogate import Surrogate, barrier, regress
from gpsafe.baselines.base import BEFORE, Part
from gpsafe.baselines.onpolicy import Data, Frame, OnPolicy
from gpsafe.baselines.plants import Batch

NOISE = 0.05


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class LBPO(OnPolicy):
    """A deterministic ReLU actor tanh(μ(s)), flown with noise N(0, 0.05²); critics Q_r, Q_c on sums of what followed.

    ε = (1 − γ)(d − Ĵ_c). Where ε ≥ 0 (and in the first batch) policy and Q_c become the baseline. Where ε > 0 the policy climbs
    E Q_r − barrier(Δ, ε), Δ = E[Q_c(s, μ(s)) − Q_c(s, μ_baseline(s))]; where ε < 0 it lowers Q_c. One step in a trust region.

    Published, and why it learns nothing there: with d = 0, ε ≤ 0 always. ε < 0 minimises the cost alone; ε = 0 gives the
    barrier the weight β/0, a gradient of NaN, and no step is taken: **the reward is never improved**. Only episodes that end
    by a violation enter Ĵ_c (it is 1 or 0), time-outs end no episode, a barrier of weight ≤ 0.05 is left out, the line search
    looks at the improvement alone, not at the divergence, and networks are of 256 units (nine CPU-seconds a batch).
    Corrected: d > 0 (0.05 violations an episode, unless `limit` says otherwise), Ĵ_c the mean discounted cost of all episodes,
    the barrier itself in the line search, KL ≤ radius, and the frame's networks.

    Args:
        radius: of the divergence between policies of deviation 0.05.
        weight: β.
        critic_steps: full-batch steps of Adam on the critics.
        The rest: see `OnPolicy`.
    """

    radius: float = 0.012
    weight: float = 0.01
    critic_steps: int = 80
    frame: Frame = field(default_factory=lambda: Frame(decay=1.0, cost_decay=1.0))

    def __post_init__(self) -> None:
        super(LBPO, self).__post_init__()
        for name in ("radius", "weight"):
            _require.positive("LBPO", name, getattr(self, name))

    @property
    def allowed(self) -> float:
        """d: as given; 0 (published), 0.05 or the plant's budget if that is larger (corrected)."""
        found = super(LBPO, self).allowed
        return max(found, 0.05) if self.limit is None and self.preset == "corrected" else found

    @property
    def _timeouts(self) -> bool:
        return self.preset != "published"

    def std(self, epoch: int) -> float:
        """0.05 in every epoch."""
        return NOISE

    def _fresh(self) -> dict[str, Part]:
        random, nx, nu = self._random(MODEL, BEFORE), self.system.nx, self.system.nu
        hidden = (256, 256) if self.preset == "published" else self.frame.hidden
        actor, critic = (nx, *hidden, nu), (nx + nu, *hidden, 1)
        parts: dict[str, Part] = {
            "policy": Net(actor, kind="relu").randomise(random),
            "critic": Net(critic, (2,), dtype=np.float32).randomise(random),
            "baseline": Net(actor, kind="relu"),
            "trusted": Net(critic, dtype=np.float32),
            "seen": Running(nx),
        }
        return parts | {"numbers": Numbers(cost=0.0, discounted=0.0, length=float(self.system.horizon), taken=0.0)}

    def _mean(self, rows: Array) -> Array:
        return np.tanh(self._parts["policy"](rows)[-1])

    def _estimate(self, batch: Batch) -> None:
        super(LBPO, self)._estimate(batch)
        if self.preset == "published":
            self._parts["numbers"]["cost"] = 1.0 if batch.terminated.any() else 0.0

    def _signals(self, batch: Batch) -> tuple[Array, Array]:
        return batch.reward, self._charge(batch)

    def _worth(self, rows: Array) -> Array:
        return self._parts["critic"](np.concatenate([rows, self._mean(rows)], -1))[-1]

    def _criticise(self, rows: Array, drawn: Array, targets: Array, random: np.random.Generator) -> None:
        pairs, goal = np.concatenate([rows, drawn], -1, dtype=np.float32), targets[..., None].astype(np.float32)
        for _ in range(self.critic_steps):
            regress(self._parts["critic"], pairs, goal, self.frame.critic_rate)

    def _improve(self, data: Data) -> Mapping[str, Any]:
        at, published, nx = self._parts, self.preset == "published", self.system.nx
        room = (1 - self.frame.discount) * (self.allowed - (data.cost if published else data.discounted))
        policy, critic, trusted = at["policy"], at["critic"], at["trusted"]
        if room >= 0 or not at["numbers"]["taken"]:
            at["baseline"].flat[:], trusted.flat[:], at["numbers"]["taken"] = policy.flat, critic.flat[1], 1.0
        local = Surrogate(policy, data.rows, data.drawn, NOISE, squash=True)
        anchor = float(self._risk(np.tanh(at["baseline"](data.rows)[-1]), data.rows))
        weight = np.float64(self.weight) / np.float64(room)
        minimal = room < 0 or (room == 0 and not published)
        whole = 0.0 if minimal or (published and weight <= 0.05) else weight

        def loss(mean: Array) -> float:
            gain, cost = critic(np.concatenate([data.rows, mean], -1))[-1].mean((1, 2))
            if minimal:
                return float(cost)
            change = float(self._risk(mean, data.rows)) - anchor
            return float(-gain + whole * change) if published else -float(gain) + barrier(change, room, self.weight)

        values = critic(np.concatenate([data.rows, local.old], -1))
        slopes = critic.input_gradient(values, np.ones_like(values[-1]), nx).astype(float)
        climb = -slopes[1] if minimal else slopes[0] - (whole * slopes[1] if whole else 0.0)
        gradient = local.pull(climb)
        x = local.natural(gradient)
        square, before = float(x @ local.fisher(x)), loss(local.old)
        step = math.sqrt(2 * self.radius / square) * x if square > 0 else np.zeros_like(x)

        def accept(mean: Array, ratio: Array, divergence: float, share: float) -> bool:
            better = before - loss(mean)
            enough = bool(better > max(0.1 * share * float(gradient @ step), 0.0))
            return enough and (published or divergence <= self.radius)

        share, divergence = local.search(step, accept, times=10, factor=0.5)
        if square > 0 and (published or room >= 0):
            self._mix(data.rows, anchor, room)
        return {"room": room, "share": share, "kl": divergence}

    def _risk(self, mean: Array, rows: Array) -> Any:
        """E Q_c of the baseline's critic under actions."""
        return self._parts["trusted"](np.concatenate([rows, mean], -1))[-1].mean()

    def _mix(self, rows: Array, anchor: float, room: float) -> None:
        """Towards the baseline by halves, until E Q_c rises by ε at most."""
        policy, start = self._parts["policy"], self._parts["baseline"].flat
        for _ in range(10):
            if float(self._risk(self._mean(rows), rows)) - anchor <= room:
                return
            policy.flat[:] = (policy.flat + start) / 2
