"""What all that is compared shares: one plant, the same first data, and what is truly safe on it.

A contest needs the true plant, which no contestant sees: it flies on it and is judged by it. Every contestant gets the same
known part, the same first episodes (half of their inputs random, half the safe controller's), the same start x_0 and the same
noise.

**What is truly safe.** A state counts as *recoverable* if, without noise, some continuation keeps the limits for `recovery`
steps: the safe controller, or one of the corners (and the middle) of the input box held for 1, 2, 4, … steps and then the safe
controller. That is a lower bound of the viability kernel: a state that is not found recoverable may still be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self, cast

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.models._prior import Prior
from gpsafe.policies.rollout import transitions
from gpsafe.sets import Box
from gpsafe.systems.base import System
from gpsafe.systems.episodic import Episodic, as_episodic

Trajectory = tuple[Tensor, Tensor]
HELD = (1, 2, 4, 8, 16)  # steps for which a corner of the inputs is held before the safe controller takes over


@short
@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """One plant and one seed's first data. Make it with `create`.

    Attributes:
        plant: the true one; w ~ N(0, diag(noise_std²)), measured exactly.
        known: p of all models, (*b, nx), (*b, nu) → (*b, nx).
        region: box of states in which coverage and conservatism are asked for.
        offline: the first episodes, states (t + 1, nx) and inputs (t, nu).
        budget: d, of the policy set.
        radius: a state counts as covered if a visited one is that near in every coordinate, in half-widths of the region.
        recovery: steps for which a continuation must keep the limits.
        seed: of the first data and of everything that is drawn.
        outputs: states of which a Gaussian process learns; the others are those of the known part.
        surface: what maps drawn states to those that the plant can be in, where its state is redundant.
        kernels, rkhs_norm: of the residuals f* − p, where they are known (a twin); else they are estimated from the first data.
    """

    plant: Episodic
    known: Prior
    region: Box
    offline: tuple[Trajectory, ...]
    budget: float
    radius: float
    recovery: int
    seed: int
    outputs: tuple[int, ...]
    surface: Callable[[Tensor], Tensor] | None = None
    kernels: tuple[Kernel, ...] | None = None
    rkhs_norm: tuple[float, ...] | None = None

    @classmethod
    def create(
        cls,
        system: System,
        known: Prior,
        *,
        law: Callable[[Tensor], Tensor] | None = None,
        region: Box | None = None,
        noise_std: Tensor | None = None,
        episodes: int = 6,
        budget: float = 0.1,
        radius: float | None = None,
        recovery: int = 60,
        seed: int = 0,
        outputs: Sequence[int] | None = None,
        surface: Callable[[Tensor], Tensor] | None = None,
        kernels: Sequence[Kernel] | None = None,
        rkhs_norm: Sequence[float] | Tensor | None = None,
    ) -> Self:
        """Draws the first data.

        Args:
            system: the true plant; its horizon is the length of an episode.
            known: known part of all models.
            law: safe controller, (*b, nx) → (*b, nu); the system's `backup` by default.
            region: see the class; the state box by default, whose sides must then be finite in effect (below 10⁴).
            noise_std: (nx,) ≥ 0, positive where something is learned; the system's by default.
            episodes: of first data.
            budget: d.
            radius: 0.1 for two states, 0.25 for more.
            outputs: those with noise by default.
            recovery, seed, surface, kernels, rkhs_norm: see the class.
        """
        where = "Contest"
        _require.kind(where, "system", system, System)
        law = getattr(system, "backup", None) if law is None else law
        if law is None:
            raise _require.fail(where, "a safe controller `law`", "a plant without one of its own")
        start = Box(system.initial_state, system.initial_state)
        plant = cast(Episodic, as_episodic(system, start, law, random=0.5, noise_std=noise_std))
        region = system.state_box if region is None else region
        if region.dim != system.nx or not bool((region.radius < 1e4).all()):
            raise _require.fail(where, f"a region of {system.nx} finite sides", region)
        _require.count(where, "episodes", episodes)
        _require.count(where, "recovery", recovery)
        radius = (
            (0.1 if system.nx <= 2 else 0.25) if radius is None else _require.positive(where, "radius", radius).item()
        )
        generator = torch.Generator().manual_seed(7919 * _require.index(where, "seed", seed) + 1)
        offline = tuple(_first(plant, generator) for _ in range(episodes))
        budget = _require.number(where, "budget", budget, minimum=0.0)
        if (kernels is None) != (rkhs_norm is None):
            raise _require.fail(where, "kernels and rkhs_norm together", "one of them")
        noisy = torch.nonzero(plant.noise_std > 0).flatten().tolist()
        learned = tuple(noisy) if outputs is None else _require.positions(where, "outputs", outputs, plant.nx)
        if not set(learned) <= set(noisy):
            raise _require.fail(
                where, "positive noise_std of what is learned (R of the bound)", plant.noise_std.tolist()
            )
        norm = None if rkhs_norm is None else tuple(float(b) for b in rkhs_norm)
        chosen = None if kernels is None else tuple(kernels)
        return cls(plant, known, region, offline, budget, radius, recovery, seed, learned, surface, chosen, norm)

    def generator(self, purpose: int, number: int = 0) -> torch.Generator:
        """The same for all contestants: (seed, purpose, number)."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + 10_007 * purpose + number)

    # ------------------------------------------------------------------ truth
    def recoverable(self, x: Tensor) -> Tensor:
        """Whether a continuation that keeps the limits was found, see the module, (N, nx) → (N,)."""
        plant, box = self.plant, self.plant.input_box
        corners = [box.center, *(torch.stack(c) for c in product(*zip(box.lower, box.upper, strict=True)))]
        plans = [(box.center, 0)] + [(corner, held) for corner in corners for held in HELD]
        inputs, held = torch.stack([u for u, _ in plans]), torch.tensor([h for _, h in plans])
        state = x.unsqueeze(1).expand(-1, len(plans), -1)
        alive = plant.cost(state) == 0
        for t in range(self.recovery):
            u = torch.where((t < held).unsqueeze(-1), inputs, plant.backup(state))
            state = plant.mean(state, u)
            alive = alive & (plant.cost(state) == 0)
        return alive.any(-1)

    def pairs(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Recoverable states with uniform inputs, and whether the next states are recoverable, (K, nx), (K, nu), (K,).

        At most `count` of ten times as many draws of the region.
        """
        generator = self.generator(1)
        x = self.region.sample(10 * count, generator)
        x = self._legal(x)
        x = x[self.recoverable(x)][:count]
        u = self.plant.input_box.sample(len(x), generator)
        after = self.plant.mean(x, u)
        return x, u, (self.plant.cost(after) == 0) & self.recoverable(after)

    def goals(self, count: int) -> Tensor:
        """Recoverable states of the region, uniform, (K, nx): those that coverage counts."""
        x = self._legal(self.region.sample(count, self.generator(2)))
        return x[self.recoverable(x)]

    def covered(self, goals: Tensor, visited: Tensor) -> Tensor:
        """Which goals (K, nx) have a visited state (N, nx) within the radius, (K,)."""
        near = (goals.unsqueeze(1) - visited.unsqueeze(0)).abs() / self.region.radius
        return (near.amax(-1) <= self.radius).any(-1)

    def _legal(self, x: Tensor) -> Tensor:
        """States that the plant can be in: a redundant state is mapped to its surface."""
        return x if self.surface is None else self.surface(x)


def _first(plant: Episodic, generator: torch.Generator) -> Trajectory:
    x, states, inputs = plant.initial(1, generator), [], []
    states.append(x[0])
    while len(inputs) < plant.horizon and not bool(plant.terminated(x)[0]):
        u = plant.warm_up(x, generator)
        x = plant.advance(x, u, generator)
        states.append(x[0])
        inputs.append(u[0])
    return torch.stack(states), torch.stack(inputs)


def joined(episodes: Sequence[Trajectory], every: int = 1) -> Transitions:
    """All transitions of episodes, or every so manieth of each."""
    parts = [transitions(x, u) for x, u in episodes]
    return Transitions(*(torch.cat([getattr(p, name)[::every] for p in parts]) for name in ("x", "u", "x_next")))
