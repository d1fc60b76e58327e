"""What the plant gets of the action given to a stack of Gymnasium wrappers: known exactly, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import ClipAction, RescaleAction
from numpy.typing import NDArray

from gpsafe import _require
from gpsafe._show import short

Array = NDArray[np.float64]
UNTOUCHED = frozenset(
    {
        "gymnasium.core.Wrapper",
        "gymnasium.core.ObservationWrapper",
        "gymnasium.core.RewardWrapper",
        "stable_baselines3.common.monitor.Monitor",
        *(
            f"gymnasium.wrappers.{name}"
            for name in (
                "common.OrderEnforcing",
                "common.PassiveEnvChecker",
                "common.RecordEpisodeStatistics",
                "common.TimeLimit",
                "rendering.HumanRendering",
                "rendering.RecordVideo",
                "rendering.RenderCollection",
                "stateful_observation.FrameStackObservation",
                "stateful_observation.TimeAwareObservation",
                "stateful_reward.NormalizeReward",
            )
        ),
    }
)
"""Classes whose own `step` hands the action on as it is."""
SEEN_THROUGH = UNTOUCHED - {
    "gymnasium.core.ObservationWrapper",
    "gymnasium.wrappers.stateful_observation.FrameStackObservation",
    "gymnasium.wrappers.stateful_observation.TimeAwareObservation",
} | {"gymnasium.core.ActionWrapper"}
"""Classes whose own `step` and `reset` hand the observation on as it is."""


@short
@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """u = scale · action + shift for actions within low … high, componentwise: nothing on the way clips these.

    Attributes:
        scale, shift: (nu,), of what reaches the innermost environment.
        low, high: (nu,), of the action given to the outermost one; ±inf where nothing limits it.
        exact: whether all spaces on the way are float64.
        believed: what was not read from the wrappers.
    """

    scale: Array
    shift: Array
    low: Array
    high: Array
    exact: bool
    believed: tuple[str, ...]

    @property
    def identity(self) -> bool:
        """Whether the action arrives as it is."""
        return bool((self.scale == 1.0).all() and (self.shift == 0.0).all())

    @staticmethod
    def through(env: gymnasium.Env[Any, Any], passing: Sequence[type] = ()) -> Channel:
        """Of an environment and all its wrappers.

        Args:
            env: outermost.
            passing: classes of wrappers that hand actions on as they are, on the user's word.

        Raises:
            ValueError: for a wrapper of which this is not known, or spaces that are no Box of one dimension.
        """
        size = _box(env).shape
        scale, shift, low, high = np.ones(size), np.zeros(size), np.full(size, -np.inf), np.full(size, np.inf)
        exact, believed = True, []

        def limited(space: spaces.Box) -> None:
            """Action limits by those of `space`, in which scale · action + shift lies."""
            nonlocal low, high
            ends = [(np.asarray(end, np.float64) - shift) / scale for end in (space.low, space.high)]
            low, high = np.maximum(low, np.minimum(*ends)), np.minimum(high, np.maximum(*ends))

        while isinstance(env, gymnasium.Wrapper):
            exact = exact and _box(env).dtype == np.float64
            if type(env) is ClipAction:
                limited(_box(env.env))
            elif type(env) is RescaleAction:
                zero, one = (np.asarray(env.func(np.full(size, v)), np.float64) for v in (0.0, 1.0))
                scale, shift = (one - zero) * scale, (one - zero) * shift + zero
                if not bool((np.isfinite(scale) & (scale != 0.0) & np.isfinite(shift)).all()):
                    raise _require.fail("SafetyFilterWrapper", "a rescaling that has an inverse", scale.tolist())
            else:
                owner = _owner(env, "step")
                if any(issubclass(type(env), kind) for kind in passing):
                    believed.append(f"{type(env).__name__} hands actions on as they are")
                elif owner not in UNTOUCHED:
                    expected = "wrappers that are known to hand actions on, to rescale or to clip them (see `passing`)"
                    raise _require.fail(
                        "SafetyFilterWrapper", expected, f"{type(env).__name__}, whose step is {owner}'s"
                    )
            env = env.env
        exact = exact and _box(env).dtype == np.float64
        limited(_box(env))
        name = type(env).__name__
        believed.append(f"{name} applies every action of its action space as it is, once per step")
        return Channel(scale, shift, low, high, exact, tuple(believed))

    def input(self, action: Array) -> Array:
        """What the plant gets."""
        return self.scale * action + self.shift

    def action(self, u: Array) -> Array:
        """By which the plant gets u."""
        return (u - self.shift) / self.scale

    def allows(self, lower: Array, upper: Array, *, plant: bool) -> bool:
        """Whether all inputs of the box lower … upper arrive unclipped: actions, or with `plant` what the plant gets."""
        if plant:
            ends = [self.action(end) for end in (lower, upper)]
            lower, upper = np.minimum(*ends), np.maximum(*ends)
        size = np.abs(lower) + np.abs(upper) + np.abs(self.shift / self.scale)
        slack = 4 * np.finfo(np.float64).eps * size  # of the divisions here, in any units
        if not self.exact:  # the ends of a float32 space are themselves rounded: 0.7 is 0.69999999
            slack = slack + np.finfo(np.float32).eps * np.maximum(np.abs(lower), np.abs(upper))
        return bool((lower >= self.low - slack).all() and (upper <= self.high + slack).all())


def observation_kept(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether the observation is that of the innermost environment: no wrapper is there of which this is not known."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.ObservationWrapper):  # its `step` is known, what its `observation` does is not
            return False
        if not {_owner(env, "step"), _owner(env, "reset")} <= SEEN_THROUGH:
            return False
        env = env.env
    return True


def _box(env: gymnasium.Env[Any, Any]) -> spaces.Box:
    space = env.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise _require.fail(
            "SafetyFilterWrapper", "a Box of real actions of shape (nu,)", f"{space} of {type(env).__name__}"
        )
    return space


def _owner(env: gymnasium.Env[Any, Any], method: str) -> str:
    """Full name of the class that defines a method of the environment."""
    if method in vars(env):
        return "the instance"
    owner = next(kind for kind in type(env).__mro__ if method in vars(kind))
    return f"{owner.__module__}.{owner.__qualname__}"
