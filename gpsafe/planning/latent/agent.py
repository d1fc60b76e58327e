"""The learner: a world model, and a behaviour that explores in it; `learn`, `predict`, `ask` and `tell` by iterations.

    agent = LatentAgent(plant, sight, settings, LatentPlanner(LATENT_EXPLORERS["actsafe"], plant.input_box, …), seed=0)
    agent.learn(8)               # the first iteration is uniform, and counted like every other
    agent.rows[-1]["cost"]

An iteration is a number of episodes of the plant side by side, which the behaviour sees as pictures only, and the training
after them. **Nothing is guaranteed**: see the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.models.rssm import RSSMSettings, State
from gpsafe.planning.latent.episodes import Episodes, Seen
from gpsafe.planning.latent.planner import LATENT_EXPLORERS, LatentPlanner
from gpsafe.planning.latent.world import Sight, World
from gpsafe.systems.base import System, sample_noise

WEIGHTS, PLANT, ACT, TRAIN = range(4)  # what a stream of random numbers is for


class Behaviour(Protocol):
    """What acts in latent space."""

    def improve(self, world: World, starts: State, generator: torch.Generator) -> None:
        """Learns in the imagination of a world, from posterior states (N, ·)."""
        ...

    def act(self, world: World, state: State, spent: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Inputs (E, nu), in latent states (E, ·), at a step of E episodes that have cost `spent` (E,) so far."""
        ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much of everything.

    Args:
        episodes: of an iteration, side by side.
        uniform: iterations at the start with uniform inputs.
        updates: of the world model after an iteration.
        batch: episodes in an update.
        preference: see `Episodes`.
    """

    episodes: int = 10
    uniform: int = 1
    updates: int = 60
    batch: int = 16
    preference: float = 3.0

    def __post_init__(self) -> None:
        for name in ("episodes", "batch"):
            _require.count("Schedule", name, getattr(self, name))
        for name in ("uniform", "updates"):
            _require.count("Schedule", name, getattr(self, name), minimum=0)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Iteration:
    """What was flown: what the learner sees of it, and the true states (E, T + 1, nx), which it does not."""

    seen: Seen
    states: Tensor


class LatentPolicy:
    """Pictures ↦ inputs for E episodes side by side, with the belief that goes along; for one flight."""

    def __init__(
        self, world: World, behaviour: Behaviour, generator: torch.Generator, *, number: int, phase: str
    ) -> None:
        self.world, self.behaviour, self.generator = world, behaviour, generator
        self.number, self.phase = number, phase
        self.steps = 0
        self._state: State | None = None
        self._last = torch.zeros(0)

    @torch.no_grad()
    def __call__(self, images: Tensor, spent: Tensor) -> Tensor:
        """Inputs (E, nu) for images (E, *shape) in episodes that have cost `spent` (E,) so far."""
        rssm = self.world.rssm
        if self._state is None:
            self._last = torch.zeros(len(images), rssm.settings.nu, dtype=torch.float64)
        found = rssm.filter(images.unsqueeze(1), self._last.unsqueeze(1), None, start=self._state)
        self._state = found.states[0]
        self._last = self.behaviour.act(self.world, self._state, spent, self.steps, self.generator)
        self.steps += 1
        return self._last


class LatentAgent:
    """See the module.

    Args:
        system: the plant.
        sight: how it is seen.
        settings: of the world model.
        behaviour: what explores; or world, generator ↦ behaviour, for one whose networks have the size of the world's states.
        schedule: how much of everything.
        seed: of everything.
        cost_weight, rate: see `World`.
    """

    def __init__(
        self,
        system: System,
        sight: Sight,
        settings: RSSMSettings,
        behaviour: Behaviour | Callable[[World, torch.Generator], Behaviour],
        *,
        schedule: Schedule | None = None,
        seed: int = 0,
        cost_weight: float = 1.0,
        rate: float = 2e-3,
    ) -> None:
        self.system, self.sight, self.seed = system, sight, _require.index("LatentAgent", "seed", seed)
        self.schedule = schedule or Schedule()
        generator = self._stream(WEIGHTS, 0)
        self.world = World(settings, sight, generator, cost_weight=cost_weight, rate=rate)
        self.behaviour: Behaviour = behaviour if hasattr(behaviour, "act") else behaviour(self.world, generator)  # type: ignore[operator,assignment]
        self.episodes = Episodes(settings.members, preference=self.schedule.preference)
        self.rows: list[dict[str, Any]] = []
        self._asked: LatentPolicy | None = None
        self._predicting: LatentPolicy | None = None

    @property
    def unsound(self) -> str:
        """Why no guarantee stands behind it: never None."""
        return "an ensemble of world models: no set of functions contains the truth with a stated probability"

    @property
    def told(self) -> int:
        """Iterations so far."""
        return len(self.rows)

    def _stream(self, purpose: int, number: int) -> torch.Generator:
        drawn = np.random.SeedSequence([self.seed, purpose, number]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(drawn >> np.uint64(1)))

    def ask(self) -> LatentPolicy:
        """The policy of the next iteration. Asked again before it was used, the same one."""
        if self._asked is None or self._asked.steps:
            uniform = self.told < self.schedule.uniform
            plant, phase = self.system, "uniform" if uniform else "explore"
            first = LatentPlanner(LATENT_EXPLORERS["uniform"], plant.input_box, plant.budget, plant.horizon)
            behaviour, generator = first if uniform else self.behaviour, self._stream(ACT, self.told)
            self._asked = LatentPolicy(self.world, behaviour, generator, number=self.told, phase=phase)
        return self._asked

    def policy(self, behaviour: Behaviour, *, number: int) -> LatentPolicy:
        """Another behaviour in the world that was learnt, such as one that wants the task; nothing is learnt from it here."""
        return LatentPolicy(self.world, behaviour, self._stream(ACT, number), number=number, phase="task")

    def rollout(self, policy: LatentPolicy) -> Iteration:
        """The episodes of one iteration, with the plant's noise of its number."""
        plant, count = self.system, self.schedule.episodes
        noise = sample_noise(plant.noise_std, (plant.horizon, count), self._stream(PLANT, policy.number))
        x = plant.initial_state.expand(count, -1)
        spent = torch.zeros(count, dtype=torch.float64)
        still = torch.zeros(count, plant.nu, dtype=torch.float64)
        states, images, inputs, rewards, costs = [], [], [still], [], []
        for t in range(plant.horizon + 1):
            states.append(x)
            images.append(self.sight.see(x))
            costs.append(plant.cost(x))
            rewards.append(plant.reward(x, still))
            spent = spent + costs[-1]
            if t < plant.horizon:
                inputs.append(plant.input_box.clip(policy(images[-1], spent)))
                x = plant.mean(x, inputs[-1]) + noise[t]
        along = torch.stack(images, dim=1).float()
        readings = self.sight.read(along.flatten(0, 1)).unflatten(0, along.shape[:2])
        acted, reward, cost = (torch.stack(of, dim=1) for of in (inputs, rewards, costs))
        return Iteration(Seen(along, acted, reward, cost, readings), torch.stack(states, dim=1))

    def tell(self, flown: Iteration) -> None:
        """Takes in what was flown, trains the world model on all that was seen, and improves the behaviour in it."""
        seen, number, s = _require.kind("LatentAgent.tell", "flown", flown, Iteration).seen, self.told, self.schedule
        generator = self._stream(TRAIN, number)
        self.episodes.add(seen, generator)
        loss = self.world.fit(self.episodes, s.updates, generator, batch=s.batch)
        every = self.episodes.seen
        assert every is not None
        with torch.no_grad():
            new = self.world.rssm.filter(seen.images, seen.actions, None).states
            error = (self.world.readings(new).movedim(0, 1) - seen.readings).square().mean().sqrt()
            rows = torch.randint(len(every), (2 * s.batch,), generator=generator)
            starts = self.world.rssm.filter(every.images[rows], every.actions[rows], generator).states
        self.behaviour.improve(
            self.world, State(*(v.flatten(0, 1) for v in (starts.deterministic, starts.stochastic))), generator
        )
        cost, reward = (v[:, :-1].sum(-1) for v in (seen.cost, seen.reward))  # of x_0 … x_{T−1}, as J_c has it
        self.rows.append(
            {
                "iteration": number,
                "phase": self._asked.phase if self._asked is not None else "told",
                "episodes": len(seen),
                "cost": float(cost.mean()),
                "violations": int((seen.cost[:, :-1] > 0).sum()),
                "reward": float(reward.mean()),
                "loss": loss,
                "read_error": float(error),
                "guaranteed": False,
            }
        )
        self._asked = None

    def learn(self, iterations: int, callback: Callable[[Self, Iteration], object] | None = None) -> Self:
        """`iterations` more: ask, fly, tell. The callback is called after each; False ends the loop."""
        for _ in range(_require.count("LatentAgent.learn", "iterations", iterations, minimum=0)):
            flown = self.rollout(self.ask())
            self.tell(flown)
            if callback is not None and callback(self, flown) is False:
                break
        return self

    def predict(self, image: Tensor, *, episode_start: bool = False, spent: float = 0.0) -> Tensor:
        """The input (nu,) of the behaviour for one image (*shape); it remembers, until an episode starts."""
        if episode_start or self._predicting is None:
            self._predicting = self.policy(self.behaviour, number=self.told)
        return self._predicting(image.unsqueeze(0), torch.tensor([spent], dtype=torch.float64))[0]

    def __repr__(self) -> str:
        return f"LatentAgent({self.system.name}, seed {self.seed}, {self.told} iterations, heuristic: {self.unsound})"
