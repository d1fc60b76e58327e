"""PPO behind a safety layer (Dalal et al. 2018): c_i(s⁺) ≈ c_i(s) + g_i(s)ᵀa, g_i learned from random data, corrects a."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from gpsafe import _require
from gpsafe.algorithms.learner import MODEL
from gpsafe.baselines._nets import Array, Net
from gpsafe.baselines._surrogate import Surrogate
from gpsafe.baselines.base import BEFORE, Act, Part
from gpsafe.baselines.onpolicy import Data, Frame, OnPolicy
from gpsafe.baselines.plants import Batch, VectorPlant
from gpsafe.baselines.ppo import Clip, clipped, standardised
from gpsafe.systems.base import HalfspaceCost
from gpsafe.systems.episodic import Episodic


def corrected_action(a: Array, c: Array, g: Array, slack: float) -> Array:
    """a − λ_i g_i of the constraint with the largest λ_i = max(0, (g_iᵀa + c_i + slack)/(‖g_i‖² + 1e-8)).

    Where no more than one of c_i + g_iᵀa ≤ −slack is active, this is the nearest action that satisfies them.

    Args:
        a: (n, nu).
        c: (n, m).
        g: (n, m, nu).
        slack: see above.
    """
    excess = np.einsum("nmu,nu->nm", g, a) + c + slack
    push = np.maximum(excess / (np.square(g).sum(-1) + 1e-8), 0.0)
    worst, lanes = push.argmax(-1), np.arange(len(a))
    return a - push[lanes, worst, None] * g[lanes, worst]


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class SafetyLayer(OnPolicy):
    """First `pretraining` batches of uniform inputs, from which g learns (phase "pre-training"); then PPO behind the layer.

    One network g_i(s) of one hidden layer of 10 per constraint, Adam 1e-3 on (c_i(s⁺) − c_i(s) − g_i(s)ᵀa)², batches of 256.
    Constraints are the half-spaces of the plant's cost, c_i(s) = n_i·s − o_i of the *measured* state. PPO: 10 passes,
    mini-batches of 64, clip 0.2, stopped at KL > 0.01, gradients cut at 0.5; its density is that of the action before the
    layer, clipped to the input box before it and after it.

    Published (safe-control-gym's): the pole's limit is ±1.57 rad where the plant's is ±0.209, so that the layer never acts on
    it; of the pendulum only the angle is a constraint; the released comparison has none for the drone (here: all). The six
    million random steps were not counted: here they are, as a phase of their own.
    Corrected: all half-spaces with their limits. The model still has no drift, as in the paper: c_i(s⁺) − c_i(s) = 0 at a = 0.

    Args:
        slack: searched over 0.05, 0.1, 0.15, 0.2.
        pretraining: batches.
        pretraining_steps: of each.
        rate: of Adam on the policy.
        The rest: see `OnPolicy`.
    """

    slack: float = 0.05
    pretraining: int = 1000
    pretraining_steps: int = 6000
    rate: float = 3e-4
    frame: Frame = field(default_factory=lambda: Frame(steps=2000, plants=20))

    def __post_init__(self) -> None:
        super(SafetyLayer, self).__post_init__()
        _require.nonnegative("SafetyLayer", "slack", self.slack)
        _require.count("SafetyLayer", "pretraining", self.pretraining, minimum=0)
        if isinstance(self.system, VectorPlant) or not isinstance(self.system.cost, HalfspaceCost):
            raise _require.fail("SafetyLayer", "a plant whose cost is one of half-spaces", self.system.name)

    @property
    def budget(self) -> int:
        """See `Baseline`."""
        return self.pretraining + self.epochs

    def limits(self) -> tuple[Array, Array]:
        """n (m, nx) and o (m,) of the constraints n s ≤ o."""
        cost = cast("HalfspaceCost", cast("Episodic", self.system).cost)
        normals = cost.directions.numpy()
        offsets = -cost.excess(torch.zeros(1, self.system.nx, dtype=torch.float64))[0].numpy()
        if self.preset == "published" and self.system.name == "safe-cartpole":
            offsets = np.where(normals[:, 2] != 0, 1.57 * np.abs(normals[:, 2]), offsets)
        if self.preset == "published" and self.system.name == "simple-pendulum":
            kept = normals[:, 0] != 0
            return normals[kept], offsets[kept]
        return normals, offsets

    def _fresh(self) -> dict[str, Part]:
        count, random = len(self.limits()[1]), self._random(MODEL, BEFORE - 1)
        layer = Net((self.system.nx, 10, self.system.nu), (count,), "relu").randomise(random)
        return {**super(SafetyLayer, self)._fresh(), "layer": layer}

    def _phase(self, number: int) -> tuple[str, int]:
        return ("pre-training", self.pretraining_steps) if number < self.pretraining else ("train", self.frame.steps)

    @property
    def _plants(self) -> int:
        return 60 if self.told < self.pretraining else self.frame.plants

    def std(self, epoch: int) -> float:
        """σ of a batch, annealed after the pre-training."""
        return super(SafetyLayer, self).std(epoch - self.pretraining)

    def _act(self, number: int, phase: str) -> Act:
        return self._uniform(number) if phase == "pre-training" else super(SafetyLayer, self)._act(number, phase)

    def slopes(self, rows: Array) -> Array:
        """g at standardised states (n, nx), (n, m, nu)."""
        return self._parts["layer"](rows[None])[-1].swapaxes(0, 1)

    def _applied(self, x: Array, drawn: Array) -> Array:
        normals, offsets = self.limits()
        a = np.clip(drawn, -1.0, 1.0)
        safe = corrected_action(a, x @ normals.T - offsets, self.slopes(self._parts["seen"](x)), self.slack)
        return self._middle + self._radius * safe

    def _learn(self, number: int, phase: str, drawn: Array, batch: Batch) -> Mapping[str, Any]:
        if phase != "pre-training":
            return super(SafetyLayer, self)._learn(number, phase, drawn, batch)
        seen, after = (v.reshape(-1, self.system.nx) for v in (batch.seen, batch.after))
        self._parts["seen"].add(seen)
        net, random, rows = self._parts["layer"], self._random(MODEL, number), self._parts["seen"](seen)
        change, a = (
            ((after - seen) @ self.limits()[0].T).T[..., None],
            (batch.inputs.reshape(drawn.shape) - self._middle),
        )
        a, loss = a / self._radius, 0.0
        for few in np.array_split(random.permutation(len(rows)), -(-len(rows) // 256)):
            values = net(rows[None, few])
            gap = (values[-1] * a[few]).sum(-1, keepdims=True) - change[:, few]
            net.step(net.backward(values, 2 * gap * a[few] / len(few)), 1e-3)
            loss += float(np.square(gap).mean()) * len(few) / len(rows)
        return {"loss": loss}

    def _improve(self, data: Data) -> Mapping[str, Any]:
        local = Surrogate(self._parts["policy"], data.rows, data.drawn, data.std)
        how = Clip(10, 64, self.rate, stop=0.01, norm=0.5)
        done, divergence = clipped(local, standardised(data.advantage[0]), data.generator, how)
        changed = np.abs(
            data.batch.inputs.reshape(data.drawn.shape) - self._middle - self._radius * np.clip(data.drawn, -1, 1)
        )
        return {"passes": done, "kl": divergence, "corrected": float((changed.max(-1) > 1e-6).mean())}
