"""PPO, and PPO on the Lagrangian: clipped surrogate of a weight that both rewards and costs enter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpsafe import _require
from gpsafe.baselines._nets import Array, Numbers
from gpsafe.baselines._surrogate import Surrogate
from gpsafe.baselines.base import Part
from gpsafe.baselines.lagrangian import ascended
from gpsafe.baselines.onpolicy import Data, OnPolicy


class Multiplier(Numbers):
    """λ ≥ 0 under Adam's steps along the excess, as omnisafe has it."""

    def __init__(self) -> None:
        super().__init__(value=1e-3, first=0.0, second=0.0, steps=0.0)

    def ascend(self, excess: float, rate: float) -> None:
        """One step."""
        self["steps"] += 1
        self["first"] += 0.1 * (excess - self["first"])
        self["second"] += 1e-3 * (excess * excess - self["second"])
        size = math.sqrt(self["second"] / (1 - 0.999 ** self["steps"])) + 1e-8
        self["value"] = max(0.0, self["value"] + rate * self["first"] / (1 - 0.9 ** self["steps"]) / size)


def clipped(
    local: Surrogate,
    weight: Array,
    random: np.random.Generator,
    *,
    passes: int,
    part: int,
    rate: float,
    **limits: float,
) -> tuple[int, float]:
    """PPO: Adam's steps on E min(ρw, clip(ρ, 1 ± clip) w), until a pass ends with KL > stop.

    Args:
        local: the policy about its present parameters.
        weight: w, (N,).
        random: of the shuffling.
        passes, part, rate: passes over the batch, rows of a mini-batch, Adam's rate.
        limits: clip, stop, and norm, at which a gradient is cut.

    Returns:
        Passes made, and KL.
    """
    net, rows, drawn, divergence = local.net, local.rows, local.drawn, 0.0
    near = np.square(drawn - local.old).sum(-1)
    for done in range(1, passes + 1):
        order = random.permutation(len(rows))
        for k in range(0, len(rows), part):
            few = order[k : k + part]
            values = net(rows[few])
            gap, w = drawn[few] - values[-1], weight[few]
            ratio = np.exp((near[few] - np.square(gap).sum(-1)) / (2 * local.std**2))
            cut = np.where(w > 0, ratio > 1 + limits["clip"], ratio < 1 - limits["clip"])
            climb = net.backward(values, (~cut * ratio * w)[:, None] * gap / (local.std**2 * len(few)))
            norm = float(np.linalg.norm(climb))
            net.step(-climb * min(1.0, limits["norm"] / (norm + 1e-8)), rate)
        divergence = local.now()[2]
        if divergence > limits["stop"]:
            return done, divergence
    return passes, divergence


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class PPOLagrangian(OnPolicy):
    """PPO on the advantage (A − λA_c)/(1 + λ), A standardised and A_c centred; up to 40 passes, stopped at KL > 0.02, clip 0.2.

    Published: omnisafe's defaults: mini-batches of 64, λ under Adam (rate 0.035, λ_0 = 1e-3), whose steps have the size of
    the rate however large the excess is; the cost is that of the measured state, as for the others.
    Corrected: λ by `ascended` with the same rate, true cost, sixteen mini-batches a pass (five times as fast, and no worse).
    σ is annealed as in the whole comparison, not learnt as in omnisafe: an entropy term would have nothing to act on.

    Args:
        multiplier_rate, rate: of λ, and of Adam on the policy.
        The rest: see `OnPolicy`.
    """

    multiplier_rate: float = 0.035
    rate: float = 3e-4

    def __post_init__(self) -> None:
        super(PPOLagrangian, self).__post_init__()
        for name in ("multiplier_rate", "rate"):
            _require.positive("PPOLagrangian", name, getattr(self, name))

    def _fresh(self) -> dict[str, Part]:
        return {**super(PPOLagrangian, self)._fresh(), "multiplier": Multiplier()}

    def _improve(self, data: Data) -> Mapping[str, Any]:
        held, excess, published = self._parts["multiplier"], data.cost - self.allowed, self.preset == "published"
        if published:
            held.ascend(excess, self.multiplier_rate)
        else:
            held["value"] = ascended(held["value"], excess, self.multiplier_rate)
        lam, (gain, cost) = held["value"], data.advantage
        weight = (standardised(gain) - lam * (cost - cost.mean())) / (1 + lam)
        local = Surrogate(self._parts["policy"], data.rows, data.drawn, data.std)
        part = 64 if published else -(-len(weight) // self.frame.parts)
        limits = {"clip": 0.2, "stop": 0.02, "norm": 40.0}
        done, divergence = clipped(local, weight, data.generator, passes=40, part=part, rate=self.rate, **limits)
        return {"multiplier": lam, "passes": done, "kl": divergence}


def standardised(values: Array) -> Array:
    """(values − mean)/std."""
    return (values - values.mean()) / (values.std() + 1e-8)
