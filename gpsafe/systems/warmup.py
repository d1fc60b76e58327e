"""By simulation: first data of an episodic plant, how often a law keeps its limits, how far two models of it are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.systems.base import System
from gpsafe.systems.episodic import Episodic
from gpsafe.verdict import clopper_pearson


@short
@dataclass(frozen=True, slots=True, eq=False)
class WarmUp:
    """Measured transitions under the warm-up law, in order of time within blocks of at most `horizon` rows.

    Attributes:
        states, inputs, next_states: measured states (n, nx), the commands (n, nu), what was measured a step later. Within an
            episode the measurement after a step is that before the next.
        left: whether the true state after the step is outside the limits, which ends the episode, (n,) Boolean.
        first: whether the row is the first of its episode, (n,) Boolean.
    """

    states: Tensor
    inputs: Tensor
    next_states: Tensor
    left: Tensor
    first: Tensor

    @property
    def violations(self) -> int:
        """How many steps left the limits."""
        return int(self.left.sum())

    @property
    def starts(self) -> Tensor:
        """Measured first states of the episodes, (episodes, nx)."""
        return self.states[self.first]

    @property
    def episodes(self) -> list[tuple[Tensor, Tensor]]:
        """Measured states (t + 1, nx) and inputs (t, nu) of each."""
        lengths = torch.diff(torch.cat([self.first.nonzero().squeeze(-1), torch.tensor([len(self.first)])])).tolist()
        parts = zip(*(rows.split(lengths) for rows in (self.states, self.inputs, self.next_states)), strict=True)
        return [(torch.cat([x, after[-1:]]), u) for x, u, after in parts]

    @property
    def transitions(self) -> Transitions:
        """The rows to learn from."""
        return Transitions(self.states, self.inputs, self.next_states)


def warm_up_data(system: Episodic, transitions: int, seed: int) -> WarmUp:
    """`transitions` steps under `system.warm_up`, as blocks of `horizon` steps that are simulated side by side.

    An episode that leaves the limits starts anew within its block; the end of the block cuts the last one, as a time-out. The
    law is given the true state: it is the operator's.
    """
    count = _require.count("warm_up_data", "transitions", transitions)
    _require.kind("warm_up_data", "system", system, Episodic)
    blocks, generator = -(-count // system.horizon), torch.Generator().manual_seed(seed)
    x = system.initial(blocks, generator)
    seen, fresh = system.observe(x, generator), torch.ones(blocks, dtype=torch.bool)
    rows: list[tuple[Tensor, ...]] = []
    for _ in range(system.horizon):
        u = system.warm_up(x, generator)
        x = system.advance(x, u, generator)
        left, after = system.terminated(x), system.observe(x, generator)
        rows.append((seen, u, after, left, fresh))
        start = system.initial(blocks, generator)
        x = torch.where(left.unsqueeze(-1), start, x)
        seen, fresh = torch.where(left.unsqueeze(-1), system.observe(start, generator), after), left
    return WarmUp(*(torch.stack(part, dim=1).flatten(0, 1)[:count] for part in zip(*rows, strict=True)))


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeFraction:
    """In how many simulated episodes a law kept the limits, and the Clopper–Pearson interval of the probability of it.

    It speaks of the distribution from which the starts were drawn and of episodes of that length, not of any set of states.
    """

    safe: int
    trials: int
    lower: float
    upper: float

    @property
    def fraction(self) -> float:
        """safe/trials."""
        return self.safe / self.trials


def safe_fraction(
    system: Episodic,
    law: Callable[[Tensor], Tensor],
    starts: Tensor,
    steps: int,
    generator: torch.Generator,
    *,
    confidence: float = 0.99,
) -> SafeFraction:
    """Episodes of `steps` steps under the published noise; the law is given the measured states.

    An episode is safe if the true state is inside the limits at the start and after every step; a state with NaN is outside.

    Args:
        system: the plant.
        law: (*b, nx) → (*b, nu).
        starts: independent draws, (n, nx).
        steps: ≥ 1.
        generator: of the noise.
        confidence: of the two-sided interval.
    """
    starts = _require.points("safe_fraction", "starts", starts, system.nx)
    _require.count("safe_fraction", "number of starts", starts.shape[0])
    x, safe = starts, ~system.terminated(starts)
    for _ in range(_require.count("safe_fraction", "steps", steps)):
        x = system.advance(x, law(system.observe(x, generator)), generator)
        safe = safe & ~system.terminated(x)
    kept = int(safe.sum())
    return SafeFraction(kept, len(safe), *clopper_pearson(kept, len(safe), confidence))


@short
@dataclass(frozen=True, slots=True, eq=False)
class Mismatch:
    """Root mean square of the difference of two models' states, per coordinate, (nx,): after one step and after several."""

    one_step: Tensor
    many_steps: Tensor
    steps: int


def mismatch(
    system: Episodic, other: System, *, generator: torch.Generator, episodes: int = 50, steps: int = 20
) -> Mismatch:
    """How far `other`'s mean is from `system`'s, under equal uniform inputs from equal starts, without noise.

    One step is compared from every state of `system`'s trajectory, several steps as two trajectories.
    """
    _require.count("mismatch", "steps", steps)
    if (other.nx, other.nu) != (system.nx, system.nu):
        raise _require.fail("mismatch", f"plants of sizes {(system.nx, system.nu)}", (other.nx, other.nu))
    x = system.initial(_require.count("mismatch", "episodes", episodes), generator)
    there, squares = x, torch.zeros(system.nx, dtype=torch.float64)
    for _ in range(steps):
        u = system.input_box.sample(episodes, generator)
        after = system.mean(x, u)
        squares += (other.mean(x, u) - after).square().mean(0)
        x, there = after, other.mean(there, u)
    return Mismatch((squares / steps).sqrt(), (there - x).square().mean(0).sqrt(), steps)
