"""What on-policy baselines share: policy, critics, roll-outs, advantages; a method improves the policy.

The frame of the published comparison: actions a ~ N(μ(s), σ²I), u = middle + radius·a; μ a network; σ is not learnt but
annealed over the budget of E epochs, σ_e = 0.499 (1 − e/E) + 0.01; measured states standardised by running mean and deviation;
rewards divided by the running deviation of discounted returns and clipped at ±10, not centred; advantages not standardised;
critics of reward and of cost. The published eight processes of 1000 steps are eighty plants of 100 here, whose episodes go on
from batch to batch, so that the means over ended episodes leave none out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.algorithms.learner import MODEL, PLANNER
from gpsafe.baselines._nets import Array, Net, Numbers, Running
from gpsafe.baselines._surrogate import advantages, regress
from gpsafe.baselines.base import BEFORE, Act, Baseline, Book, Part, Preset
from gpsafe.baselines.plants import Batch, Plant


@dataclass(frozen=True, slots=True)
class Frame:
    """Sizes that all on-policy baselines share.

    Attributes:
        steps, plants: of a batch, and copies of the plant side by side.
        hidden: layers of policy and critics.
        discount, decay, cost_decay: γ, and λ of the advantages of reward and cost.
        critic_rate, passes, parts: Adam's rate of the critics, passes over a batch, mini-batches in a pass.
        spread: (first − last, last) σ.
    """

    steps: int = 8000
    plants: int = 80
    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    decay: float = 0.95
    cost_decay: float = 0.95
    critic_rate: float = 1e-3
    passes: int = 5
    parts: int = 16
    spread: tuple[float, float] = (0.499, 0.01)

    def __post_init__(self) -> None:
        for name in ("steps", "plants", "passes", "parts"):
            _require.count("baselines.Frame", name, getattr(self, name))
        _require.positive("baselines.Frame", "spread", self.spread)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A batch as an update sees it.

    Attributes:
        rows, drawn: standardised states (N, nx) and actions (N, nu), time first.
        advantage: of reward and of cost, (2, N).
        cost: mean cost of the episodes that ended (of the last batch in which one did).
        discounted: the same, discounted.
        length: their mean steps.
        std: σ.
        generator: for the shuffling.
        batch: the batch.
    """

    rows: Array
    drawn: Array
    advantage: Array
    cost: float
    discounted: float
    length: float
    std: float
    generator: np.random.Generator
    batch: Batch


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class OnPolicy(Baseline):
    """An on-policy baseline: a method supplies `_improve`.

    Args:
        system: the plant.
        preset: "published": with the defects that the docstring of the method names; "corrected": without.
        epochs: E.
        limit: d, cost of an episode; None: the preset's.
        frame: sizes.
        seed: of everything.
    """

    system: Plant = field(kw_only=False)
    preset: Preset = "corrected"
    epochs: int = 100
    limit: float | None = None
    frame: Frame = field(default_factory=Frame)
    seed: int = 0
    _book: Book = field(init=False, repr=False, default_factory=Book)

    @abstractmethod
    def _improve(self, data: Data) -> Mapping[str, Any]:
        """One update of the policy; columns for the row of the batch."""

    @property
    def allowed(self) -> float:
        """d: as given; else the budget of the plant (published: 0)."""
        if self.limit is not None:
            return self.limit
        return 0.0 if self.preset == "published" else float(getattr(self.system, "budget", 0.0))

    @property
    def _plants(self) -> int:
        return self.frame.plants

    def _fresh(self) -> dict[str, Part]:
        random, f, nx = self._random(MODEL, BEFORE), self.frame, self.system.nx
        return {
            "policy": Net((nx, *f.hidden, self.system.nu)).randomise(random),
            "critic": Net((nx, *f.hidden, 1), (2,)).randomise(random),
            "seen": Running(nx),
            "returns": Running(1),
            "numbers": Numbers(cost=0.0, discounted=0.0, length=float(self.system.horizon)),
        }

    def _phase(self, number: int) -> tuple[str, int]:
        return "train", self.frame.steps

    def std(self, epoch: int) -> float:
        """σ of an epoch."""
        wide, least = self.frame.spread
        return wide * max(1.0 - epoch / self.epochs, 0.0) + least

    def _mean(self, rows: Array) -> Array:
        return self._parts["policy"](rows)[-1]

    def _act(self, number: int, phase: str) -> Act:
        random, seen, std = self._random(PLANNER, number), self._parts["seen"], self.std(number)

        def act(x: Array) -> tuple[Array, Array]:
            drawn = self._mean(seen(x)) + std * random.standard_normal((len(x), self.system.nu))
            return drawn, self._applied(x, drawn)

        return act

    def _applied(self, x: Array, drawn: Array) -> Array:
        """The inputs (n, nu) that actions become at measured states x."""
        return self._middle + self._radius * drawn

    def predict(self, observation: Any, *, episode_start: bool = False) -> Tensor:
        """See `Baseline`: the mean of the policy."""
        where = f"{type(self).__name__}.predict"
        x = _require.shape(where, "observation", _require.real(where, "observation", observation), (self.system.nx,))
        rows = x.numpy()[None]
        u = self._applied(rows, self._mean(self._parts["seen"](rows)))
        return self.system.input_box.clip(torch.from_numpy(u)[0])

    # ------------------------------------------------------------------ learning
    def _learn(self, number: int, phase: str, drawn: Array, batch: Batch) -> Mapping[str, Any]:
        at, f, shape = self._parts, self.frame, (2, *batch.reward.shape)
        flat = [v.reshape(-1, self.system.nx) for v in (batch.seen, batch.after)]
        rows, after = (at["seen"](v) for v in flat)
        values, later = (self._worth(v).reshape(shape) for v in (rows, after))
        found = [
            advantages(s, v, w, batch.terminated, batch.ended, f.discount, decay)
            for s, v, w, decay in zip(self._signals(batch), values, later, (f.decay, f.cost_decay), strict=True)
        ]
        advantage, random = np.stack(found).reshape(2, -1), self._random(MODEL, number)
        self._criticise(rows, drawn, advantage + values.reshape(2, -1), random)
        self._estimate(batch)
        known = at["numbers"]
        about = (known["cost"], known["discounted"], known["length"], self.std(number), random, batch)
        row = dict(self._improve(Data(rows, drawn, advantage, *about)))
        at["seen"].add(flat[0])
        return {"std": self.std(number), **row}

    def _signals(self, batch: Batch) -> tuple[Array, Array]:
        """The reward and the cost that are learned from, (L, n)."""
        returns = self._parts["returns"]
        returns.add(_discounted(batch, self.frame.discount).reshape(-1, 1))
        return np.clip(batch.reward / returns.std, -10.0, 10.0), self._charge(batch)

    def _worth(self, rows: Array) -> Array:
        """What the critics of reward and cost say of standardised states (N, nx), (2, N, 1)."""
        return self._parts["critic"](rows)[-1]

    def _charge(self, batch: Batch) -> Array:
        """The cost that is learned from: published, that of the measured state."""
        return batch.reported if self.preset == "published" else batch.cost

    def _estimate(self, batch: Batch) -> None:
        """Ĵ_c and the length of an episode, where episodes ended."""
        if len(batch.finished):
            _, cost, discounted, steps = batch.finished.mean(0)
            if self.preset == "published":  # what was measured outside: no episode need have ended by it
                cost = float(batch.reported.sum()) / len(batch.finished)
            self._parts["numbers"].update(cost=float(cost), discounted=float(discounted), length=float(steps))

    def _criticise(self, rows: Array, drawn: Array, targets: Array, random: np.random.Generator) -> None:
        """Both critics towards their targets (2, N)."""
        critic, f = self._parts["critic"], self.frame
        for _ in range(f.passes):
            for part in np.array_split(random.permutation(len(rows)), min(f.parts, len(rows))):
                regress(critic, rows[part], targets[:, part, None], f.critic_rate)


def _discounted(batch: Batch, discount: float) -> Array:
    """Discounted sums of past rewards within episodes, from the begin of the batch, (L, n)."""
    found, past = np.zeros(batch.reward.shape), np.zeros(batch.reward.shape[1])
    for t, (reward, ended) in enumerate(zip(batch.reward, batch.ended, strict=True)):
        found[t] = past = discount * past + reward
        past = past * ~ended
    return found
