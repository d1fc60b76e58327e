"""Many copies of a plant side by side: an `Episodic` system, or a Gymnasium vector environment.

The counter needs the truth, which a measurement is not: an `Episodic` system knows its true states, an environment must say
in ``info["cost"]`` what its new state costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from gpsafe import _require
from gpsafe._show import short
from gpsafe.baselines._nets import Array
from gpsafe.sets import Box
from gpsafe.systems.episodic import Episodic

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

At = dict[str, Array]
"""Where n plants stand: "seen" (n, nx), "age" (n,) steps of the episodes, "sums" (n, 3) of reward, cost and cost·0.99^age."""
DISCOUNT = 0.99


@short
@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What n plants did in one step, (n, ·): the measured state after it, reward, cost, cost of the measured state, ends."""

    after: Array
    reward: Array
    cost: Array
    reported: Array
    terminated: Array
    truncated: Array


class Plants(Protocol):
    """n plants; whatever ends begins anew."""

    @property
    def count(self) -> int:
        """n."""
        ...

    def begin(self, at: At, generator: torch.Generator) -> At:
        """Where the next batch begins, given where the last one stopped ({} if there was none)."""
        ...

    def step(self, at: At, u: Array, generator: torch.Generator) -> tuple[Step, At]:
        """One step of all under u (n, nu); `at` is left as it is."""
        ...


class EpisodicPlants:
    """Copies of an `Episodic` system. Episodes go on from batch to batch, so that each one comes to its end and is counted.

    Args:
        system: the plant.
        count: n.
        timeouts: False: episodes end at the limits alone (a defect of some published code).
    """

    def __init__(self, system: Episodic, count: int, *, timeouts: bool = True) -> None:
        self.system, self._count, self.timeouts = system, count, timeouts

    @property
    def count(self) -> int:
        """n."""
        return self._count

    def begin(self, at: At, generator: torch.Generator) -> At:
        """See `Plants`."""
        if len(at.get("age", ())) == self.count:
            return at
        x = self.system.initial(self.count, generator)
        seen = self.system.observe(x, generator).numpy()
        return {"x": x.numpy(), "seen": seen, "age": np.zeros(self.count, int), "sums": np.zeros((self.count, 3))}

    def step(self, at: At, u: Array, generator: torch.Generator) -> tuple[Step, At]:
        """See `Plants`."""
        system, inputs = self.system, torch.from_numpy(u)
        x = system.advance(torch.from_numpy(at["x"]), inputs, generator)
        seen = system.observe(x, generator)
        cost, reported = system.cost(x).numpy(), system.cost(seen).numpy()
        terminated, age = system.terminated(x).numpy(), at["age"] + 1
        truncated = (age >= system.horizon) & ~terminated if self.timeouts else np.zeros_like(terminated)
        step = Step(seen.numpy(), system.reward(x, inputs).numpy(), cost, reported, terminated, truncated)
        sums = at["sums"] + np.stack([step.reward, cost, cost * DISCOUNT ** at["age"]], -1)
        ended = np.flatnonzero(terminated | truncated)
        following = {"x": x.numpy().copy(), "seen": step.after.copy(), "age": age, "sums": sums}
        if len(ended):
            fresh = system.initial(len(ended), generator)
            following["x"][ended] = fresh.numpy()
            following["seen"][ended] = system.observe(fresh, generator).numpy()
            following["age"][ended], following["sums"][ended] = 0, 0.0
        return step, following


@short
@dataclass(frozen=True, slots=True, eq=False)
class VectorPlant:
    """A Gymnasium vector environment as a plant.

        options = {"autoreset_mode": AutoresetMode.DISABLED}
        plant = VectorPlant(lambda: gymnasium.make_vec("gpsafe/SafeCartPole-v0", 80, vector_kwargs=options), "cart-pole")
        one = baselines.create("cpo", plant)

    Observations (nx,) and actions (nu,) are boxes, actions bounded. ``info["cost"]`` of a step is the cost of the true state
    that it leads to; it is all that is counted, for the environment says nothing else of the truth. Every batch begins with a
    reset of all, seeded with the number of the batch (an environment cannot be put back to where it stood): episodes that the
    end of a batch cuts off are counted in steps and violations, not in the means over episodes.

    Args:
        make: the environment, whose autoreset mode is DISABLED.
        name: of the task; what a saved learner is compared by.
        horizon: steps of an episode, where the environment truncates.
    """

    make: Callable[[], Any]
    name: str
    horizon: int = 100
    _envs: Any = field(init=False, repr=False)
    input_box: Box = field(init=False)

    def __post_init__(self) -> None:
        from gymnasium.spaces import Box as Space
        from gymnasium.vector import AutoresetMode

        envs = cast("VectorEnv[Any, Any, Any]", self.make())
        for name in ("single_observation_space", "single_action_space"):
            space = getattr(envs, name)
            if not isinstance(space, Space) or len(space.shape) != 1:
                raise _require.fail("VectorPlant", f"a flat box as {name}", space)
        if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            wanted = 'vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED}'
            raise _require.fail("VectorPlant", wanted, envs.metadata.get("autoreset_mode"))
        space = cast("Space", envs.single_action_space)
        object.__setattr__(self, "_envs", envs)
        object.__setattr__(self, "input_box", Box(space.low.astype(float), space.high.astype(float)))

    @property
    def count(self) -> int:
        """Environments."""
        return self._envs.num_envs

    @property
    def nx(self) -> int:
        """Numbers of an observation."""
        return self._envs.single_observation_space.shape[0]

    @property
    def nu(self) -> int:
        """Numbers of an action."""
        return self._envs.single_action_space.shape[0]

    def begin(self, at: At, generator: torch.Generator) -> At:
        """See `Plants`."""
        seed = int(torch.randint(2**31, (), generator=generator))
        seen = np.asarray(self._envs.reset(seed=seed)[0], float)
        return {"seen": seen, "age": np.zeros(self.count, int), "sums": np.zeros((self.count, 3))}

    def step(self, at: At, u: Array, generator: torch.Generator) -> tuple[Step, At]:
        """See `Plants`."""
        seen, reward, terminated, truncated, info = self._envs.step(u.astype(self._envs.action_space.dtype))
        if "cost" not in info or not np.all(info.get("_cost", True)):
            expected = 'info["cost"] of every environment: violations are counted on the truth'
            raise _require.fail("VectorPlant", expected, f"an info of {sorted(info)}")
        cost, after = np.asarray(info["cost"], float), np.array(seen, float)
        step = Step(after, np.asarray(reward, float), cost, cost, terminated.copy(), truncated & ~terminated)
        sums = at["sums"] + np.stack([step.reward, cost, cost * DISCOUNT ** at["age"]], -1)
        following = {"seen": after, "age": at["age"] + 1, "sums": sums}
        ended = terminated | truncated
        if ended.any():
            following["seen"] = np.array(self._envs.reset(options={"reset_mask": ended})[0], float)
            following["age"][ended], following["sums"][ended] = 0, 0.0
        return step, following


Plant = Episodic | VectorPlant


@short
@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """L steps of n plants, time first.

    Attributes:
        seen, after: measured states before and after each step, (L, n, nx); they differ from the next `seen` where one ended.
        inputs: as applied, (L, n, nu).
        reward, cost, reported: (L, n); cost of the true, `reported` of the measured state after the step.
        terminated, truncated: (L, n), Boolean.
        finished: a row for each episode that ended: return, cost, discounted cost, steps, (k, 4).
        left: where the plants stand after it.
    """

    seen: Array
    after: Array
    inputs: Array
    reward: Array
    cost: Array
    reported: Array
    terminated: Array
    truncated: Array
    finished: Array
    left: At

    @property
    def ended(self) -> Array:
        """(L, n), Boolean."""
        return self.terminated | self.truncated

    @property
    def steps(self) -> int:
        """L·n."""
        return self.reward.size

    @property
    def failures(self) -> Array:
        """Which of `finished` ended with a termination, (k,)."""
        return self.terminated[self.ended]

    @staticmethod
    def of_episodes(plant: Episodic, episodes: Sequence[tuple[Any, Any]]) -> Batch:
        """Episodes of a robot, states (t + 1, nx) and inputs (t, nu) as measured: one after the other.

        Reward and cost are those of the measured states: nothing else is known.
        """
        where, parts = "Batch.of_episodes", []
        for states, inputs in _require.listing(where, "episodes", episodes):
            x, u = _require.real(where, "states", states), _require.real(where, "inputs", inputs)
            if u.ndim != 2 or u.shape[1] != plant.nu or tuple(x.shape) != (len(u) + 1, plant.nx) or not len(u):
                expected = f"states (t + 1, {plant.nx}) and inputs (t, {plant.nu}), t >= 1"
                raise _require.fail(where, expected, f"{tuple(x.shape)} and {tuple(u.shape)}")
            cost, last = plant.cost(x[1:]), torch.arange(len(u)) == len(u) - 1
            failed = last & plant.terminated(x[1:])
            parts.append((x[:-1], x[1:], u, plant.reward(x[1:], u), cost, cost, failed, last & ~failed))
        if not parts:
            raise _require.fail(where, "at least one episode", 0)
        rows = [torch.cat(columns).unsqueeze(1).numpy() for columns in zip(*parts, strict=True)]
        weights = [DISCOUNT ** np.arange(len(p[2])) for p in parts]
        finished = [
            [float(p[3].sum()), float(p[4].sum()), float((p[4].numpy() * w).sum()), len(w)]
            for p, w in zip(parts, weights, strict=True)
        ]
        return Batch(*rows, finished=np.array(finished), left={})


def fly(plants: Plants, act: Callable[[Array], Array], steps: int, at: At, generator: torch.Generator) -> Batch:
    """`steps` steps of all plants under act: measured states (n, nx) ↦ inputs (n, nu)."""
    at, rows, finished = plants.begin(at, generator), [], []
    for _ in range(steps):
        u = act(at["seen"])
        step, following = plants.step(at, u, generator)
        rows.append((at["seen"], step.after, u, step.reward, step.cost, step.reported, step.terminated, step.truncated))
        ended = step.terminated | step.truncated
        if ended.any():
            gained = np.stack([step.reward, step.cost, step.cost * DISCOUNT ** at["age"]], -1)
            finished.append(np.concatenate([at["sums"] + gained, at["age"][:, None] + 1], -1)[ended])
        at = following
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    return Batch(*stacked, finished=np.concatenate(finished) if finished else np.zeros((0, 4)), left=at)
