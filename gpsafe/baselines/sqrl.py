"""Safety Q-functions for reinforcement learning (Srinivasan et al. 2020) on the project's soft actor-critic.

Q_safe(s, a) = c + (1 − terminal) γ_safe E Q_safe(s⁺, a⁺): the discounted probability to fail. Actions above ε_safe are masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.learner import MODEL, PLANNER
from gpsafe.baselines._nets import Array
from gpsafe.baselines._risk import RiskAgent, masked
from gpsafe.baselines.base import Act, Baseline, Book, Part, Preset
from gpsafe.baselines.plants import Batch, Plant
from gpsafe.planning.mbpo import Ring, Settings
from gpsafe.planning.mbpo._nets import FLOAT

DRAWS = 100


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class SQRL(Baseline):
    """Uniform warm-up, then batches of 256 steps of masked actions, an update a step.

    Of 100 actions drawn from the policy those with Q_safe ≤ ε are kept and one is taken, the least risky if none is left.
    A batch is four steps of 64 plants; its updates are made when it is told.

    Published: mini-batches of min(4, 128) = 4 rows; the safety term of the actor's loss has no gradient, so that it changes
    nothing; the safety critic learns in the warm-up alone; its targets lack the sigmoid; among the kept actions, which are
    drawn from π already, one is taken ∝ π (together π²); the cost is that of the measured state. The 8000 uniform steps were
    not counted: here they are.
    Corrected, after the paper: mini-batches of 128; `pretraining` batches (a phase of their own) in which Q_safe learns from
    what the masked policy meets; then it is frozen, and the actor's loss has ν (Q_safe − ε), ν by dual ascent; of the kept
    actions any with the same probability, which is π restricted to them; true cost.

    Args:
        system, preset, epochs, seed: see `OnPolicy`; an epoch is `steps` steps.
        steps, warm_up, pretraining: steps of a batch, of the warm-up, and batches of the pre-training (corrected alone).
        safe_limit: ε; searched over 0.1, 0.2, 0.3.
        safe_discount: γ_safe; searched over 0.5, 0.7.
        recent: rows that Q_safe learns from (corrected): the last ones, so that after ten batches it is on-policy.
        sac: the agent; its entropy weight is that of the warm-up, and learned from 1 on afterwards.
        plants: side by side.
    """

    system: Plant = field(kw_only=False)
    preset: Preset = "corrected"
    epochs: int = 100
    steps: int = 256
    warm_up: int = 8000
    pretraining: int = 20
    safe_limit: float = 0.2
    safe_discount: float = 0.7
    recent: int = 2560
    sac: Settings = field(default_factory=lambda: Settings(learning_rate=1e-3))
    plants: int = 64
    seed: int = 0
    _book: Book = field(init=False, repr=False, default_factory=Book)

    def __post_init__(self) -> None:
        super(SQRL, self).__post_init__()
        for name in ("steps", "warm_up", "recent", "plants"):
            _require.count("SQRL", name, getattr(self, name))
        _require.probability("SQRL", "safe_discount", self.safe_discount)

    @property
    def _plants(self) -> int:
        return self.plants

    @property
    def _rehearsed(self) -> int:
        return self.pretraining if self.preset == "corrected" else 0

    @property
    def budget(self) -> int:
        """See `Baseline`."""
        return 1 + self._rehearsed + self.epochs

    def _phase(self, number: int) -> tuple[str, int]:
        if number == 0:
            return "warm-up", self.warm_up
        return ("pre-training" if number <= self._rehearsed else "train"), self.steps

    def _fresh(self) -> dict[str, Part]:
        nx, nu, box = self.system.nx, self.system.nu, self.system.input_box
        agent = RiskAgent(self.preset == "published", (nx, nu, box.lower, box.upper), self.seed, self.sac)
        agent.safe_limit = self.safe_limit
        slack = 2 * self.plants  # the last rows of a batch fill all plants
        rows = self.warm_up + (self._rehearsed + self.epochs) * (self.steps + slack) + slack
        kept = rows if self.preset == "published" else self.recent
        return {"agent": agent, "replay": Ring(rows, nx, nu), "risks": Ring(kept, nx, nu)}

    def _act(self, number: int, phase: str) -> Act:
        if phase == "warm-up":
            return self._uniform(number)
        random = self._random(PLANNER, number)

        def act(x: Array) -> tuple[Array, Array]:
            noise = random.standard_normal((len(x), DRAWS, self.system.nu))
            u = self._choose(x, noise, random.random(len(x)), sharper=self.preset == "published")
            return (u - self._middle) / self._radius, u

        return act

    def _choose(self, x: Array, noise: Array, uniform: Array, *, sharper: bool) -> Array:
        """Inputs (n, nu): one of the actions that go with noise (n, K, nu), by the mask; weights π, or equal ones."""
        a, density, risk = self._parts["agent"].candidates(x, noise)
        weight = np.exp(density - density.max(-1, keepdims=True)) if sharper else np.ones_like(density)
        taken = masked(risk, weight, self.safe_limit, uniform)
        return self._middle + self._radius * a[np.arange(len(x)), taken]

    def predict(self, observation: Any, *, episode_start: bool = False) -> Tensor:
        """u (nu,): tanh μ if it passes the mask, else the likeliest of 99 fixed draws that does, else the least risky."""
        x = _require.real("SQRL.predict", "observation", observation)
        x = _require.shape("SQRL.predict", "observation", x, (self.system.nx,)).numpy()[None]
        noise = np.random.default_rng(0).standard_normal((DRAWS, self.system.nu))
        noise[0] = 0.0
        likeliest = noise[np.square(noise).sum(-1).argsort()]
        u = self._choose(x, likeliest[None], np.zeros(1), sharper=False)  # the first that passes
        return self.system.input_box.clip(torch.from_numpy(u)[0])

    def _learn(self, number: int, phase: str, drawn: Array, batch: Batch) -> Mapping[str, Any]:
        at, nx, published = self._parts, self.system.nx, self.preset == "published"
        agent, random = at["agent"], self._random(MODEL, number)
        x, u, after = (v.reshape(batch.steps, -1) for v in (batch.seen, batch.inputs, batch.after))
        ends, charged = batch.terminated.reshape(-1), batch.reported if published else batch.cost
        at["replay"].add(x, u, batch.reward.reshape(-1), after, ends)
        at["risks"].add(x, u, np.minimum(charged, 1.0).reshape(-1), after, ends)
        size, tuned = (4 if published else 128), phase != "warm-up"
        risky = phase == "warm-up" or (phase == "pre-training" and not published)
        for _ in range(batch.steps):
            rows = at["replay"].sample(random, size)[None]
            agent.update(rows, random.standard_normal((1, 2, size, self.system.nu), FLOAT))
            if tuned:
                noise = random.standard_normal((1, size, self.system.nu), FLOAT)
                agent.tune(rows[..., :nx], noise, alpha_rate=self.sac.learning_rate, nu_rate=1e-4)
            if risky:
                rows = at["risks"].sample(random, size)[None]
                noise = random.standard_normal((1, size, self.system.nu), FLOAT)
                agent.learn_risk(rows, noise, self.safe_discount, 1 - 2e-4)
        alpha, nu = np.exp(agent.weights)
        return {"entropy_weight": float(alpha) if tuned else self.sac.entropy, "multiplier": float(nu)}
