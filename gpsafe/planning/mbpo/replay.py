"""Replay: rings of transitions of fixed capacity, and the mixture of real and virtual batches that the agent learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gpsafe import _require
from gpsafe._threads import one_blas_thread
from gpsafe.planning.mbpo._nets import FLOAT, Array, Arrays
from gpsafe.planning.mbpo.sac import SAC
from gpsafe.systems.base import System, is_violation


def width(nx: int, nu: int) -> int:
    """Numbers in a row [x | u | reward | x⁺ | terminal]."""
    return 2 * nx + nu + 2


def memory(rows: int, nx: int, nu: int) -> int:
    """Bytes of a full ring."""
    return rows * width(nx, nu) * np.dtype(FLOAT).itemsize


def transitions(system: System, x: Any, u: Any, x_next: Any) -> Array:
    """Rows of steps (n, nx), (n, nu), (n, nx): the reward is that of the state arrived in, r(x⁺, u); terminal is a
    violation.

    A time-out is no terminal: what would have come after it counts.
    """
    x, u, after = (torch.as_tensor(np.asarray(v), dtype=torch.float64) for v in (x, u, x_next))
    parts = x, u, system.reward(after, u)[:, None], after, is_violation(system.cost(after))[:, None]
    return torch.cat([part.to(torch.float32) for part in parts], -1).numpy()


class Ring:
    """The last `capacity` transitions, float32 rows [x | u | reward | x⁺ | terminal]. Memory is touched only as it fills.

    Args:
        capacity: rows.
        nx, nu: dimensions.
    """

    def __init__(self, capacity: int, nx: int, nu: int) -> None:
        self.capacity = _require.count("Ring", "capacity", capacity)
        self.nx, self.nu = _require.count("Ring", "nx", nx), _require.count("Ring", "nu", nu)
        self._store = np.empty((capacity, width(nx, nu)), FLOAT)
        self._next = self._filled = 0

    def __len__(self) -> int:
        return self._filled

    @property
    def rows(self) -> Array:
        """A view of what is stored, (len, 2nx + nu + 2), in no order of time once the ring is full."""
        return self._store[: self._filled]

    @property
    def x(self) -> Array:
        """(len, nx)."""
        return self.rows[:, : self.nx]

    @property
    def u(self) -> Array:
        """(len, nu)."""
        return self.rows[:, self.nx : self.nx + self.nu]

    @property
    def x_next(self) -> Array:
        """(len, nx)."""
        return self.rows[:, self.nx + self.nu + 1 : -1]

    @property
    def reward(self) -> Array:
        """(len,)."""
        return self.rows[:, self.nx + self.nu]

    @property
    def terminal(self) -> Array:
        """(len,), 0 or 1."""
        return self.rows[:, -1]

    def add(self, x: Any, u: Any, reward: Any, x_next: Any, terminal: Any) -> None:
        """Transitions (n, ·), or one: (nx,), (nu,), number, (nx,), truth value."""
        x, u, x_next = (np.atleast_2d(np.asarray(v, FLOAT)) for v in (x, u, x_next))
        r, t = (np.atleast_1d(np.asarray(v, FLOAT))[:, None] for v in (reward, terminal))
        self.extend(np.concatenate([x, u, r, x_next, t], -1))

    def extend(self, rows: Array) -> None:
        """Rows (n, 2nx + nu + 2), the first the oldest; what does not fit pushes out the oldest.

        Raises:
            ValueError: on rows of another width, or NaN or infinite numbers.
        """
        if rows.ndim != 2 or rows.shape[1] != self._store.shape[1]:
            raise _require.fail("Ring.extend", f"rows of shape (n, {self._store.shape[1]})", f"shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise _require.fail(
                "Ring.extend", "finite rows", f"{int((~np.isfinite(rows)).sum())} NaN or infinite entries"
            )
        rows, start = rows[-self.capacity :], self._next
        first = min(len(rows), self.capacity - start)
        self._store[start : start + first] = rows[:first]
        self._store[: len(rows) - first] = rows[first:]
        self._next = (start + len(rows)) % self.capacity
        self._filled = min(self._filled + len(rows), self.capacity)

    def sample(self, generator: np.random.Generator, count: int) -> Array:
        """Rows drawn with replacement, (count, 2nx + nu + 2).

        Raises:
            ValueError: if the ring is empty.
        """
        if not self._filled:
            raise _require.fail("Ring.sample", "at least one stored transition", 0)
        return self._store.take(generator.integers(self._filled, size=count), 0)

    def state(self) -> Arrays:
        """A copy of what is stored, and where the next row goes."""
        return {"rows": self.rows.copy(), "next": np.array(self._next)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from the `state` of a ring of the same capacity."""
        rows, following = np.asarray(state["rows"], FLOAT), int(state["next"])
        full = len(rows) == self.capacity
        if len(rows) > self.capacity or not (0 <= following < self.capacity if full else following == len(rows)):
            got = f"{len(rows)} rows, the next at {following}"
            raise _require.fail("Ring.load", f"the state of a ring of capacity {self.capacity}", got)
        self._next = self._filled = 0
        self.extend(rows)
        self._next = following


def real_updates(real_ratio: float, group: int) -> int:
    """int(real_ratio·group), of the real number: 0.29·100 is 29 here and 28 in floating point."""
    _require.count("mbpo.train", "group", group)
    if not 0.0 <= real_ratio <= 1.0:
        raise _require.fail("mbpo.train", "real_ratio in [0, 1]", real_ratio)
    return int(real_ratio * group + 1e-9)


@one_blas_thread()
def train(
    agent: SAC,
    real: Sequence[Ring],
    virtual: Sequence[Ring] | None,
    updates: int,
    *,
    group: int,
    real_ratio: float,
    batch: int = 128,
) -> None:
    """Updates of the agent in the published order: of every `group`, the first int(real_ratio·group) learn from real batches,
    the others from virtual ones (from real ones while a seed has no virtual rows).

    Args:
        agent: of S seeds.
        real, virtual: a ring a seed.
        updates: how many; published are 64·group every 64 steps.
        group: updates an environment step.
        real_ratio: see above.
        batch: rows.

    Raises:
        ValueError: if an agent diverges (the message names its seed).
    """
    count = len(agent.seeds)
    for name, rings in (("real", real), ("virtual", real if virtual is None else virtual)):
        if len(rings) != count:
            raise _require.fail("mbpo.train", f"{count} {name} rings, one a seed", len(rings))
    imagined = [r if virtual is None or not len(v) else v for r, v in zip(real, virtual or real, strict=True)]
    first = real_updates(real_ratio, group)
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is found below, and named
        for update in range(updates):
            rings = real if update % group < first else imagined
            rows = np.stack([ring.sample(g, batch) for ring, g in zip(rings, agent.generators, strict=True)])
            noise = np.stack([g.standard_normal((2, batch, agent.nu), FLOAT) for g in agent.generators])
            agent.update(rows, noise)
    weights = np.concatenate([agent.actor.flat, agent.critic.flat.reshape(count, -1)], -1)
    if not np.isfinite(weights).all():
        bad = [seed for seed, row in zip(agent.seeds, weights, strict=True) if not np.isfinite(row).all()]
        raise _require.fail("mbpo.train", "finite weights after training", f"divergence of seeds {bad}")
