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


@dataclass(frozen=True, slots=True)
class Clip:
    """How long PPO goes on.

    Attributes:
        passes, part, rate: over the batch, rows of a mini-batch, Adam's rate.
        stop: KL(old‖new) after a pass that ends the update, and, but for `patient` ones, 1.5 times that on a mini-batch.
        norm: at which a gradient is cut.
        clip: of the ratio about 1.
    """

    passes: int
    part: int
    rate: float
    stop: float
    norm: float
    clip: float = 0.2
    patient: bool = False


def clipped(local: Surrogate, weight: Array, random: np.random.Generator, how: Clip) -> tuple[int, float]:
    """PPO: Adam's steps on E min(ρw, clip(ρ, 1 ± clip) w); passes begun, and KL.

    Args:
        local: the policy about its present parameters.
        weight: w, (N,).
        random: of the shuffling.
        how: see the class.
    """
    net, rows, drawn, scale, done, over = local.net, local.rows, local.drawn, 2 * local.std**2, 0, False
    near = np.square(drawn - local.old).sum(-1)
    while done < how.passes and not over:
        done += 1
        order = random.permutation(len(rows))
        for few in np.split(order, range(how.part, len(rows), how.part)):
            values = net(rows[few])
            moved = np.square(values[-1] - local.old[few]).sum(-1).mean() / scale
            if over := not how.patient and moved > 1.5 * how.stop:
                break
            gap, w = drawn[few] - values[-1], weight[few]
            ratio = np.exp((near[few] - np.square(gap).sum(-1)) / scale)
            cut = np.where(w > 0, ratio > 1 + how.clip, ratio < 1 - how.clip)
            climb = net.backward(values, (~cut * ratio * w)[:, None] * gap / (local.std**2 * len(few)))
            net.step(-climb * min(1.0, how.norm / (float(np.linalg.norm(climb)) + 1e-8)), how.rate)
        over = over or local.now()[2] > how.stop
    return done, local.now()[2]


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class PPOLagrangian(OnPolicy):
    """PPO on the advantage (A − λA_c)/(1 + λ), A standardised and A_c centred; up to 40 passes, stopped at KL > 0.02, clip 0.2.

    Published: omnisafe's defaults: mini-batches of 64, λ under Adam (rate 0.035, λ_0 = 1e-3), whose steps have the size of the
    rate however large the excess is, so that on a two-armed bandit λ and policy go round and round instead of to the known
    mixture; the cost is that of the measured state, as for the others.
    Corrected: λ by `ascended` with the same rate, true cost, sixteen mini-batches a pass, and mini-batches, too, may stop it.
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
        how = Clip(40, part, self.rate, stop=0.02, norm=40.0, patient=published)
        done, divergence = clipped(local, weight, data.generator, how)
        return {"multiplier": lam, "passes": done, "kl": divergence}


def standardised(values: Array) -> Array:
    """(values − mean)/std."""
    return (values - values.mean()) / (values.std() + 1e-8)
