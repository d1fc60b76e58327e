"""What the plants of the published X-MPSC experiments share: starts, bounded noise, and an end when a limit is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, System, is_violation, sample_noise


@runtime_checkable
class Episodic(System, Protocol):
    """A plant with published starts, noise and end of an episode.

    An episode ends when the *true* state leaves the limits. The reward of a step is therefore `reward(x⁺, u)`, of the state it
    leads to, so that a penalty for leaving is paid; the cost of a step is c(x⁺) for the same reason. Noise is bounded and
    enters through the input and the measurement; `noise_std` is a stand-in: the standard deviations of a step from
    `initial_state` under the noise of the input.
    """

    @property
    def initial_box(self) -> Box:
        """A box that holds all starts; they need not fill it (see `initial`)."""
        ...

    @property
    def limited(self) -> tuple[int, ...]:
        """Coordinates that `state_box` limits; in the others it ends at 10⁵, as published."""
        ...

    def initial(self, count: int, generator: torch.Generator) -> Tensor:
        """Starts, (count, nx)."""
        ...

    def advance(self, x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        """The true next state for the command u: its noise is added, then it is clipped to `input_box`."""
        ...

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The measurement of x."""
        ...

    def terminated(self, x: Tensor) -> Tensor:
        """Whether the episode ends at the true state x, (*b,), Boolean: exactly where c(x) > 0."""
        ...

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs of the first data, in `input_box`, (*b, nu)."""
        ...

    def backup(self, x: Tensor) -> Tensor:
        """A law that is to keep the limits from many states, its inputs in `input_box`, (*b, nu)."""
        ...


class _Noisy(System, Protocol):
    @property
    def input_noise(self) -> float: ...
    @property
    def initial_box(self) -> Box: ...


class Published:
    """What `Episodic` asks for, where nothing is special: starts fill their box, all inputs have the same noise."""

    __slots__ = ()

    def initial(self: _Noisy, count: int, generator: torch.Generator) -> Tensor:
        """Uniform in `initial_box`, (count, nx)."""
        return self.initial_box.sample(count, generator)

    def advance(self: _Noisy, x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        """A step under the published input noise; the noisy u is clipped to the limits, the caller's is left alone."""
        size = torch.full((self.nu,), self.input_noise, dtype=torch.float64)
        return self.mean(x, self.input_box.clip(u + uniform(size, tuple(u.shape), generator)))

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x: measured exactly."""
        return x

    def terminated(self: _Noisy, x: Tensor) -> Tensor:
        """c(x) > 0, or NaN."""
        return is_violation(self.cost(x))


def uniform(size: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """U(−size, size), (*shape,); the last dimension is that of size."""
    draw = torch.rand(*shape, dtype=torch.float64, generator=generator, device=generator.device)
    return (2 * draw - 1) * size.to(draw.device)


def wild(law: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The inputs `law`, (*b, nu), but uniform ones in [−1, 1] for that share of the states."""
    free = uniform(torch.ones(law.shape[-1], dtype=torch.float64), tuple(law.shape), generator)
    draw = torch.rand(*law.shape[:-1], 1, dtype=torch.float64, generator=generator, device=generator.device)
    return torch.where(draw < share, free, law)


def leaves(box: Box, rows: tuple[int, ...]) -> IndicatorCost:
    """1 outside the box in the given dimensions."""
    eye = torch.eye(box.dim, dtype=torch.float64)[list(rows)]
    return IndicatorCost(torch.cat([eye, -eye]), torch.cat([box.upper[list(rows)], -box.lower[list(rows)]]))


def unlimited(box: Box, nx: int) -> Box:
    """The box in the coordinates after its own up to nx widened to ±10⁵."""
    free = torch.full((nx - box.dim,), 1e5, dtype=torch.float64)
    return Box(torch.cat([box.lower, -free]), torch.cat([box.upper, free]))


def spread(system: System, input_noise: float) -> Tensor:
    """Standard deviations of f*(x_0, u_0 + e), e ~ U(±input_noise)^nu, u_0 the middle of the inputs, (nx,).

    By central differences.
    """
    x, push = system.initial_state, input_noise * torch.eye(system.nu, dtype=torch.float64)
    u = torch.cat([system.input_box.center + push, system.input_box.center - push])
    above, below = system.mean(x.expand(len(u), -1), u).chunk(2)
    return (0.5 * (above - below)).norm(dim=0) / 3**0.5


@short
@dataclass(frozen=True, slots=True, eq=False)
class EpisodicPlant(Published):
    """Any `System` as an `Episodic` one: build with `as_episodic`.

    Its noise is w ~ N(0, diag(noise_std²)); it is measured exactly. The rest is that of `system`.
    """

    system: System
    initial_box: Box
    law: Callable[[Tensor], Tensor]
    random: float
    noise_std: Tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in type(self).__slots__:  # of an object that is being made
            raise AttributeError(name)
        return getattr(self.system, name)

    @property
    def limited(self) -> tuple[int, ...]:
        """The system's, or all coordinates."""
        return getattr(self.system, "limited", tuple(range(self.system.nx)))

    def advance(self, x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
        """mean(x, u) + w, u clipped to the inputs."""
        noise = sample_noise(self.noise_std, tuple(x.shape[:-1]), generator)
        return self.system.mean(x, self.system.input_box.clip(u)) + noise

    def backup(self, x: Tensor) -> Tensor:
        """The law, clipped to the inputs, (*b, nu)."""
        return self.system.input_box.clip(self.law(x))

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`backup`, but a uniform input for the share `random` of states."""
        box = self.system.input_box
        free = box.sample(max(x[..., 0].numel(), 1), generator).reshape(*x.shape[:-1], box.dim)
        draw = torch.rand(*x.shape[:-1], 1, dtype=torch.float64, generator=generator, device=x.device)
        return torch.where(draw < self.random, free, self.backup(x))


def as_episodic(
    system: System,
    starts: Box,
    law: Callable[[Tensor], Tensor],
    *,
    random: float = 0.2,
    noise_std: Tensor | None = None,
) -> EpisodicPlant:
    """A plant of one's own for learners that need starts, an end of an episode and a safe controller (`XMPSC`).

    Args:
        system: the plant; an episode ends where its cost is positive.
        starts: box of first states.
        law: safe controller, (*b, nx) → (*b, nu): the first data come from it, and what is applied when nothing else is left.
        random: share of the first inputs that are drawn from the input box instead.
        noise_std: standard deviations of w, (nx,) ≥ 0; the system's by default.

    Raises:
        ValueError: if starts or the law's inputs have other dimensions, or a corner of the starts has a cost.
    """
    where = "as_episodic"
    _require.kind(where, "system", system, System)
    if starts.dim != system.nx:
        raise _require.fail(where, f"starts of dimension {system.nx}", starts.dim)
    if not 0.0 <= random <= 1.0:
        raise _require.fail(where, "random in [0, 1]", random)
    corners = torch.stack([starts.lower, starts.upper])
    if bool(is_violation(system.cost.upper(starts.lower, starts.upper)).any()):
        raise _require.fail(where, "starts without a cost", f"a cost in {starts}")
    _require.shape(where, "the law's inputs", law(corners), (2, system.nu))
    sigma = system.noise_std if noise_std is None else _require.nonnegative(where, "noise_std", noise_std)
    return EpisodicPlant(system, starts, law, random, _require.shape(where, "noise_std", sigma, (system.nx,)))
