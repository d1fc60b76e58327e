"""Rows of a plant that can be called: a `System` at drawn points, a Gymnasium environment under random inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.sets import Box
from gpsafe.systems.adapt import episode
from gpsafe.systems.base import System, sample_noise
from gpsafe.systems.task import Task

ROWS = 600


@short
@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Rows and what their origin states.

    Attributes:
        data, ids: as `gpsafe.referee.examine.examine` takes them.
        stated: of (k, B, R), the known part and the learned outputs: what the plant itself says.
        task, states, inputs: likewise.
        origin: "drawn" or "recorded".
        notes: how they were made.
    """

    data: Transitions
    ids: list[int] | None
    stated: dict[str, Any]
    task: Task | None
    states: Box | None
    inputs: Box | None
    origin: str
    notes: tuple[str, ...]


def named(path: str) -> Any:
    """The object of ``module:object``; a function without arguments is called."""
    where, (module, _, name) = "--system", path.partition(":")
    if not module or not name:
        raise _require.fail(where, "module:object", repr(path))
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may raise anything
        raise _require.fail(where, f"an object {name!r} of a module {module!r}", _require.told(error)) from None
    if isinstance(found, System):
        return found
    if isinstance(found, type) or callable(found):
        try:
            return found()
        except Exception as error:
            raise _require.fail(
                where, f"a plant, or a function that makes one, in {path!r}", _require.told(error)
            ) from None
    return found


def of_system(system: Any, *, rows: int = ROWS, seed: int = 0) -> Source:
    """One-step rows at points drawn from the plant's boxes, with its noise.

    A `RKHSTwin` states its kernels, norms and known part too; any plant states its noise, if it has some.
    """
    where = "verify"
    if not isinstance(system, System):
        if hasattr(system, "reset") and hasattr(system, "step"):
            return of_env(system, rows=rows, seed=seed)
        raise _require.fail(
            where, "a System (gs.plant makes one of a step function) or a Gymnasium environment", type(system).__name__
        )
    generator = torch.Generator().manual_seed(seed)
    x, u = system.state_box.sample(rows, generator), system.input_box.sample(rows, generator)
    try:
        mean = system.mean(x, u)
    except Exception as error:  # a user's plant may raise anything
        raise _require.fail(
            where, "a plant whose mean can be called (of a robot, give data)", _require.told(error)
        ) from None
    data = Transitions(x, u, mean + sample_noise(system.noise_std, (rows,), generator))
    stated: dict[str, Any] = {}
    if hasattr(system, "rkhs_norm") and hasattr(system, "kernels"):
        twin: Any = system
        stated = {"kernels": twin.kernels, "rkhs_norm": twin.rkhs_norm, "prior": twin.known, "outputs": twin.outputs}
    learned = list(stated.get("outputs", range(system.nx)))
    noise = system.noise_std[learned]
    if bool((noise > 0).all()):
        stated["subgaussian"] = noise
    note = f"{rows} points drawn from the plant's boxes of x and u, its own noise added."
    return Source(data, None, stated, Task.of(system), system.state_box, system.input_box, "drawn", (note,))


def of_env(
    env: Any, *, rows: int = ROWS, seed: int = 0, state: Callable[[Any, dict[str, Any]], Any] | None = None
) -> Source:
    """Episodes of a Gymnasium environment (an object, or the name of one) under inputs drawn from its action space."""
    where = "--env"
    import gymnasium

    if isinstance(env, str):
        if "gpsafe/" in env:
            import gpsafe.systems.envs  # noqa: F401  (registers them)
        try:
            env = gymnasium.make(env)
        except Exception as error:
            raise _require.fail(where, "an environment that Gymnasium can make", _require.told(error)) from None
    plant = getattr(env.unwrapped, "system", None)
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise _require.fail(where, "an environment with a continuous action space", str(space))
    if state is None and plant is None and not isinstance(env.observation_space, gymnasium.spaces.Box):
        raise _require.fail(where, "a vector as observation (or state=...)", str(env.observation_space))
    bounded = np.isfinite(space.low).all() and np.isfinite(space.high).all()
    low, high = (space.low, space.high) if bounded else (-np.ones_like(space.low), np.ones_like(space.high))
    generator, parts, ids = torch.Generator().manual_seed(seed), [], []
    steps, runs = 0, 0
    read = state or (lambda observation, info: np.ravel(info.get("state", observation)))
    box = Box(np.ravel(low).astype(float), np.ravel(high).astype(float))

    def act(_: Tensor) -> Tensor:
        return box.sample(1, generator)[0].reshape(space.shape)

    while steps < rows:
        try:
            states, inputs = episode(env, act, horizon=min(200, rows - steps), state=read, seed=seed + runs)
        except Exception as error:  # a user's environment may raise anything
            expected = f"an environment that runs and gives finite vectors as states (episode {runs})"
            raise _require.fail(where, expected, _require.told(error)) from error
        inputs = inputs.reshape(len(inputs), -1)
        parts.append(Transitions(states[:-1], inputs, states[1:]))
        ids += [runs] * len(inputs)
        steps, runs = steps + len(inputs), runs + 1
    data = Transitions(*(torch.cat([getattr(p, n) for p in parts]) for n in ("x", "u", "x_next")))
    notes = [
        f"{runs} episodes under inputs drawn uniformly{'' if bounded else ' from [−1, 1], as the space has no limits'}."
    ]
    notes += _observed(data)
    task = None if plant is None else Task.of(plant)
    states = None if plant is None else plant.state_box
    return Source(data, ids, {}, task, states, box, "recorded", tuple(notes))


def _observed(data: Transitions) -> list[str]:
    """What looks like an angle given by cosine and sine: then states lie on a curve, and boxes of states do not."""
    x, found = data.x, []
    for i in range(x.shape[1] - 1):
        size = x[:, i].square() + x[:, i + 1].square()
        if bool(((size - 1).abs() < 1e-5).all()):
            found.append(f"x{i + 1} and x{i + 2} are a cosine and a sine: the box of states is mostly empty.")
    return found
