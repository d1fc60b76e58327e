"""What follows an iteration, update by update: it can be written down between any two of them, and goes on bit-equal."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.rssm import State
from gpsafe.planning.latent._state import Arrays, generator, load_generator
from gpsafe.planning.latent._state import State as Stored
from gpsafe.planning.latent.episodes import Episodes, Seen, pictures
from gpsafe.planning.latent.policy import Behaviour, Iteration
from gpsafe.planning.latent.world import World
from gpsafe.systems.base import is_violation


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much of everything.

    Args:
        episodes: of an iteration, side by side.
        uniform: iterations at the start with uniform inputs.
        updates: of the world model after an iteration.
        batch: episodes in an update.
        length: steps of each that an update sees; None: all.
        capacity, preference: see `Episodes`.
    """

    episodes: int = 10
    uniform: int = 1
    updates: int = 60
    batch: int = 16
    length: int | None = None
    capacity: int | None = None
    preference: float = 3.0

    def __post_init__(self) -> None:
        for name in ("episodes", "batch"):
            _require.count("Schedule", name, getattr(self, name))
        for name in ("uniform", "updates"):
            _require.count("Schedule", name, getattr(self, name), minimum=0)
        for name in ("length", "capacity"):
            if getattr(self, name) is not None:
                _require.count("Schedule", name, getattr(self, name), minimum=2 if name == "length" else 1)


class Training:
    """The updates after one iteration: first those of the world model, then those of the behaviour in it.

    Args:
        flown: the iteration.
        phase: its name.
        number: its number.
        stream: random numbers of these updates, on the world's device.
        schedule: how much of everything.
    """

    def __init__(
        self, flown: Iteration, *, phase: str, number: int, stream: torch.Generator, schedule: Schedule
    ) -> None:
        self.flown, self.phase, self.number, self.stream, self.schedule = flown, phase, number, stream, schedule
        self.updates = self.improved = 0
        self.losses: deque[Tensor] = deque(maxlen=max(schedule.updates // 10, 1))
        self.starts: State | None = None
        self.error = float("nan")

    def step(self, world: World, behaviour: Behaviour, episodes: Episodes) -> bool:
        """One update; True after the last."""
        s = self.schedule
        if self.updates < s.updates:
            self.losses.append(world.update(episodes, self.stream, batch=s.batch, length=s.length))
            self.updates += 1
            return False
        if self.starts is None:
            self.starts = self._look(world, episodes)
        if self.improved < behaviour.updates:
            behaviour.improve(world, self.starts, self.stream)
            self.improved += 1
        return self.improved >= behaviour.updates

    @torch.no_grad()
    def _look(self, world: World, episodes: Episodes) -> State:
        """Reads what was flown anew, for its error; and posterior states from which a behaviour may start."""
        s, seen = self.schedule, self.flown.seen
        squares = []
        with world.precision():
            for part in (seen[i : i + s.batch].to(world.device) for i in range(0, len(seen), s.batch)):
                new = world.rssm.filter(pictures(part.images), part.actions, None).states
                squares.append((world.readings(new).movedim(0, 1) - part.readings).square().sum())
        self.error = float((torch.stack(squares).sum() / max(seen.readings.numel(), 1)).sqrt())
        return self.look(world, episodes, self.stream, s)

    @staticmethod
    @torch.no_grad()
    def look(world: World, episodes: Episodes, stream: torch.Generator, schedule: Schedule) -> State:
        """Posterior states (N, ·) along episodes that were drawn anew, twice a batch of them."""
        count = (2 * schedule.batch,)
        rows = torch.randint(len(episodes), count, generator=stream, device=stream.device)
        every = episodes.rows(rows.tolist(), stream, length=schedule.length)
        with world.precision():
            found = world.rssm.filter(pictures(every.images), every.actions, stream).states
        return State(*(v.flatten(0, 1) for v in (found.deterministic, found.stochastic)))

    def row(self) -> dict[str, Any]:
        """What is to be said of the iteration, once all is done."""
        seen = self.flown.seen
        cost, reward = (v[:, :-1].sum(-1) for v in (seen.cost, seen.reward))  # of x_0 … x_{T−1}, as J_c has it
        return {
            "iteration": self.number,
            "phase": self.phase,
            "episodes": len(seen),
            "cost": float(cost.mean()),
            "violations": int(is_violation(seen.cost[:, :-1]).sum()),
            "reward": float(reward.mean()),
            "loss": float(torch.stack(list(self.losses)).mean()) if self.losses else float("nan"),
            "read_error": self.error,
            "guaranteed": False,
        }

    def about(self) -> dict[str, Any]:
        """What of it is no array."""
        return {"phase": self.phase, "updates": self.updates, "improved": self.improved}

    def state(self) -> Arrays:
        """What of it is an array, but for what was seen, which stands among the episodes."""
        found = {"states": self.flown.states.numpy(), "stream": generator(self.stream), "error": np.array(self.error)}
        found["losses"] = np.array([float(loss) for loss in self.losses], np.float64)
        if self.starts is not None:
            for name in ("deterministic", "stochastic"):
                found[name] = getattr(self.starts, name).cpu().numpy()
        return found

    @staticmethod
    def of(
        state: Stored, about: dict[str, Any], seen: Seen, *, number: int, schedule: Schedule, world: World
    ) -> Training:
        """Goes on from `state` and `about`."""
        like = next(world.parameters())
        flown = Iteration(seen.to("cpu"), torch.from_numpy(state["states"]))
        stream = load_generator(state["stream"], world.device)
        found = Training(flown, phase=str(about["phase"]), number=number, stream=stream, schedule=schedule)
        found.updates, found.improved, found.error = (
            int(about["updates"]),
            int(about["improved"]),
            float(state["error"]),
        )
        found.losses.extend(torch.from_numpy(state["losses"]).to(like))
        if "deterministic" in state:
            found.starts = State(*(torch.from_numpy(state[k]).to(like) for k in ("deterministic", "stochastic")))
        return found
