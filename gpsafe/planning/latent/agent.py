"""The learner: a world model, and a behaviour that explores in it; `learn`, `predict`, `ask` and `tell` by iterations.

    agent = LatentAgent(plant, sight, settings, LatentPlanner(LATENT_EXPLORERS["actsafe"], plant.input_box, …), seed=0)
    agent.learn(8)               # the first iteration is uniform, and counted like every other
    agent.rows[-1]["cost"]
    agent.save("folder")         # a new one with the same arguments goes on bit-equal after `load`

An iteration is a number of episodes of the plant side by side, which the behaviour sees as pictures only, and the training
after them. **Nothing is guaranteed**: see the package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.rssm import RSSMSettings
from gpsafe.planning.latent._state import array, below, prefixed
from gpsafe.planning.latent.episodes import Episodes, Seen, Stretch
from gpsafe.planning.latent.explorers import LATENT_EXPLORERS
from gpsafe.planning.latent.planner import LatentPlanner
from gpsafe.planning.latent.policy import Behaviour, Iteration, LatentPolicy, fly
from gpsafe.planning.latent.training import Schedule, Training
from gpsafe.planning.latent.world import Precision, Sight, World
from gpsafe.saved import _learner as _saved
from gpsafe.systems.base import System

WEIGHTS, PLANT, ACT, TRAIN = range(4)  # what a stream of random numbers is for


class LatentAgent:
    """See the module.

    Args:
        system: the plant.
        sight: how it is seen.
        settings: of the world model.
        behaviour: what explores; or world, generator ↦ behaviour, for one whose networks have the size of the world's states.
        schedule: how much of everything.
        seed: of everything.
        cost_weight, rate, device, precision: see `World`. What was seen stands on the device, too; the plant stays on the CPU.
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
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.system, self.sight, self.seed = system, sight, _require.index("LatentAgent", "seed", seed)
        self.schedule = schedule or Schedule()
        parts = {"system": system, "sight": sight, "settings": settings, "behaviour": behaviour}
        parts |= {"schedule": self.schedule, "cost_weight": cost_weight, "rate": rate, "precision": precision}
        parts["device"] = torch.device(device).type  # another one draws other numbers
        self._parts = {name: _saved.digest(value) for name, value in parts.items()}
        generator = self._stream(WEIGHTS, 0, "cpu")
        about: dict[str, Any] = {"cost_weight": cost_weight, "rate": rate, "device": device, "precision": precision}
        self.world = World(settings, sight, generator, **about)
        self.behaviour: Behaviour = behaviour if hasattr(behaviour, "act") else behaviour(self.world, generator)  # type: ignore[operator,assignment]
        s = self.schedule
        self.episodes = Episodes(settings.members, preference=s.preference, capacity=s.capacity)
        self.rows: list[dict[str, Any]] = []
        self._asked: LatentPolicy | None = None
        self._predicting: LatentPolicy | None = None
        self._training: Training | None = None

    @property
    def unsound(self) -> str:
        """Why no guarantee stands behind it: never None."""
        return "an ensemble of world models: no set of functions contains the truth with a stated probability"

    @property
    def told(self) -> int:
        """Iterations so far, without one whose training is not finished."""
        return len(self.rows)

    def _stream(self, purpose: int, number: int, device: torch.device | str) -> torch.Generator:
        drawn = np.random.SeedSequence([self.seed, purpose, number]).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(drawn >> np.uint64(1)))

    # ------------------------------------------------------------------ ask, fly, tell
    def ask(self) -> LatentPolicy:
        """The policy of the next iteration. Asked again before it was used, the same one."""
        if self._asked is None or self._asked.steps:
            uniform = self.told < self.schedule.uniform
            plant, phase = self.system, "uniform" if uniform else "explore"
            first = LatentPlanner(LATENT_EXPLORERS["uniform"], plant.input_box, plant.budget, plant.horizon)
            generator = self._stream(ACT, self.told, self.world.device)
            behaviour = first if uniform else self.behaviour
            self._asked = LatentPolicy(self.world, behaviour, generator, number=self.told, phase=phase)
        return self._asked

    def policy(self, behaviour: Behaviour, *, number: int) -> LatentPolicy:
        """Another behaviour in the world that was learnt, such as one that wants the task; nothing is learnt from it here."""
        generator = self._stream(ACT, number, self.world.device)
        return LatentPolicy(self.world, behaviour, generator, number=number, phase="task")

    def rollout(self, policy: LatentPolicy) -> Iteration:
        """The episodes of one iteration, with the plant's noise of its number."""
        noise = self._stream(PLANT, policy.number, "cpu")
        return fly(self.system, self.sight, policy, noise, self.schedule.episodes)

    def tell(self, flown: Iteration, pulse: Callable[[Self], object] | None = None) -> None:
        """Takes in what was flown, trains the world model on all that was seen, and improves the behaviour in it.

        The pulse is called after every update; it may `save`.
        """
        where = "LatentAgent.tell"
        _require.kind(where, "flown", flown, Iteration)
        if self._training is not None:
            raise _require.fail(where, "the training of the last iteration finished, by learn", "an unfinished one")
        phase = self._asked.phase if self._asked is not None else "told"
        stream = self._stream(TRAIN, self.told, self.world.device)
        self.episodes.add(flown.seen, stream)
        self._training = Training(flown, phase=phase, number=self.told, stream=stream, schedule=self.schedule)
        self._asked = None
        self._finish(pulse)

    def _finish(self, pulse: Callable[[Self], object] | None) -> None:
        training = self._training
        assert training is not None
        while not training.step(self.world, self.behaviour, self.episodes):
            if pulse is not None:
                pulse(self)
        self.rows.append(training.row())
        self._training = None

    def learn(
        self,
        iterations: int,
        callback: Callable[[Self, Iteration], object] | None = None,
        *,
        pulse: Callable[[Self], object] | None = None,
    ) -> Self:
        """`iterations` more: ask, fly, tell; the first finishes what a loaded learner was in the middle of.

        The callback is called after each; False ends the loop. For the pulse see `tell`.
        """
        for _ in range(_require.count("LatentAgent.learn", "iterations", iterations, minimum=0)):
            if self._training is not None:
                flown = self._training.flown
                self._finish(pulse)
            else:
                flown = self.rollout(self.ask())
                self.tell(flown, pulse)
            if callback is not None and callback(self, flown) is False:
                break
        return self

    def predict(self, image: Tensor, *, episode_start: bool = False, spent: float = 0.0) -> Tensor:
        """The input (nu,) of the behaviour for one image (*shape); it remembers, until an episode starts."""
        if episode_start or self._predicting is None:
            self._predicting = self.policy(self.behaviour, number=self.told)
        return self._predicting(image.unsqueeze(0), torch.tensor([spent], dtype=torch.float64))[0]

    # ------------------------------------------------------------------ files
    def _header(self) -> dict[str, Any]:
        about = {"learner": type(self).__name__, "seed": self.seed, "parts": self._parts, "rows": self.rows}
        training = self._training.about() if self._training is not None else None
        return {**about, "falsified": None, "counts": {}, "training": training}

    def save(self, folder: str | Path) -> Path:
        """Writes log, fingerprints of the arguments and all that decides how it goes on: ``learner.json`` and arrays.

        What was seen is written once, stretch by stretch; so that a save every few minutes costs what has changed.
        """
        names = []
        for each in self.episodes.stretches:
            if each.name is None or not _saved.has_segment(folder, each.name):
                each.name = _saved.write_segment(folder, {**each.seen.state(), "weights": array(each.weights)})
            names.append(each.name)
        kept = {**prefixed("world", self.world.state()), **prefixed("behaviour", self.behaviour.state())}
        if self._training is not None:
            kept |= prefixed("training", self._training.state())
        return _saved.write(folder, self._header(), [], kept, names)

    def load(self, folder: str | Path) -> Self:
        """Goes on where a saved learner of the same arguments and seed stood, bit-equal. This one must be new.

        Raises:
            ValueError: naming what is torn, foreign or different.
        """
        where = "LatentAgent.load"
        if self.told or self._asked is not None or self._training is not None:
            raise _require.fail(where, "a new learner", f"one in use, told {self.told} iterations")
        header, _, kept = _saved.read(where, folder, self._header(), batches=True)
        for name in header.get("segments", ()):
            arrays, device = _saved.read_segment(where, folder, name), self.world.device
            self.episodes.keep(
                Stretch(Seen.of(arrays).to(device), torch.from_numpy(arrays["weights"]).to(device), name)
            )
        self.world.load(below("world", kept))
        self.behaviour.load(below("behaviour", kept))
        self.rows[:] = header["rows"]
        if header.get("training") is not None:
            seen = self.episodes.stretches[-1].seen
            about = {"number": self.told, "schedule": self.schedule, "world": self.world}
            self._training = Training.of(below("training", kept), header["training"], seen, **about)
        return self

    def __repr__(self) -> str:
        return f"LatentAgent({self.system.name}, seed {self.seed}, {self.told} iterations, heuristic: {self.unsound})"
