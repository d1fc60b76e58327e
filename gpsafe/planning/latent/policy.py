"""What acts in latent space, and the belief that goes along with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.models.rssm import State
from gpsafe.planning.latent._state import Kept
from gpsafe.planning.latent.episodes import Seen, pictures
from gpsafe.planning.latent.world import Sight, World
from gpsafe.systems.base import System, sample_noise


class Behaviour(Kept, Protocol):
    """What acts in latent space."""

    @property
    def updates(self) -> int:
        """Calls of `improve` for every iteration."""
        ...

    def improve(self, world: World, starts: State, generator: torch.Generator) -> None:
        """Learns a step in the imagination of a world, from posterior states (N, ·)."""
        ...

    def act(self, world: World, state: State, spent: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Inputs (E, nu), in latent states (E, ·), at a step of E episodes that have cost `spent` (E,) so far."""
        ...


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
        with self.world.precision():
            shown = pictures(images.to(self.world.device)).unsqueeze(1)
            found = rssm.filter(shown, self._last.unsqueeze(1), None, start=self._state)
        self._state = found.states[0]
        self._last = self.behaviour.act(self.world, self._state, spent, self.steps, self.generator).cpu()
        self.steps += 1
        return self._last


@short
@dataclass(frozen=True, slots=True, eq=False)
class Iteration:
    """What was flown: what the learner sees of it, and the true states (E, T + 1, nx), which it does not."""

    seen: Seen
    states: Tensor


def fly(plant: System, sight: Sight, policy: LatentPolicy, noise: torch.Generator, count: int) -> Iteration:
    """Episodes side by side, on the CPU."""
    drawn = sample_noise(plant.noise_std, (plant.horizon, count), noise)
    x = plant.initial_state.expand(count, -1)
    spent = torch.zeros(count, dtype=torch.float64)
    still = torch.zeros(count, plant.nu, dtype=torch.float64)
    states, images, inputs, rewards, costs = [], [], [still], [], []
    for t in range(plant.horizon + 1):
        states.append(x)
        seen = sight.see(x)
        images.append(sight.kept(seen))
        costs.append(plant.cost(x))
        rewards.append(plant.reward(x, inputs[-1]))  # of the input that led there
        spent = spent + costs[-1]
        if t < plant.horizon:
            inputs.append(plant.input_box.clip(policy(images[-1] if sight.compact else seen, spent)))
            x = plant.mean(x, inputs[-1]) + drawn[t]
    along = torch.stack(images, dim=1)
    readings = sight.read_kept(along.flatten(0, 1)).unflatten(0, along.shape[:2])
    acted, reward, cost = (torch.stack(of, dim=1) for of in (inputs, rewards, costs))
    return Iteration(Seen(along, acted, reward, cost, readings), torch.stack(states, dim=1))
