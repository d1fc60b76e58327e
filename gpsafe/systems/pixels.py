"""Plants seen as small images: a batched rasteriser of capsules by signed distance, in torch, on any device.

Every plant that can draw itself (`gpsafe.systems.scene`) has images of any size, and so has every other plant: a disc at its
first state, and at its second in the vertical if there is one, in the window of its state box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.systems.base import System
from gpsafe.systems.envs import SystemEnv
from gpsafe.systems.scene import ACCENT, scene_of

PAPER = (0.985, 0.985, 0.98)
DISC = 0.12  # radius of the disc of a plant without a scene, as a share of the half-width


@short
@dataclass(frozen=True, slots=True, eq=False)
class Capsules:
    """N pictures of S capsules each, drawn in order, in units of the half-width of a square window around the middle.

    Attributes:
        start, end: (N, S, 2), each in [−1, 1]² if inside the window; y grows upwards.
        radius: (S,).
        colour: (S, 3), in [0, 1].
    """

    start: Tensor
    end: Tensor
    radius: Tensor
    colour: Tensor


def capsules(system: System, x: Tensor) -> Capsules:
    """The pictures of the states x (N, nx)."""
    x = _require.points("capsules", "x", x, system.nx)
    if x.ndim != 2 or not len(x):
        raise _require.fail("capsules", "x (N, nx) with N ≥ 1", f"shape {tuple(x.shape)}")
    _require.finite("capsules", "x", x.detach())
    scenes = [scene_of(system, state) for state in x.cpu()]
    if scenes[0] is None:
        box = system.state_box
        middle, half = box.center.to(x), box.radius.to(x)
        place = ((x - middle) / half)[:, :2]
        place = torch.cat([place, torch.zeros_like(place)], dim=-1)[:, None, :2]
        return Capsules(place, place, x.new_full((1,), DISC), x.new_tensor([ACCENT]))
    center, half = x.new_tensor(scenes[0].center), scenes[0].half_width
    ends = x.new_tensor([[(s.start, s.end) for s in scene.strokes] for scene in scenes if scene is not None])
    start, end = ((ends - center) / half).unbind(-2)
    strokes = scenes[0].strokes
    radius = x.new_tensor([stroke.radius / half for stroke in strokes])
    return Capsules(start, end, radius, x.new_tensor([stroke.colour for stroke in strokes]))


def rasterise(drawn: Capsules, *, size: int, background: tuple[float, float, float] = PAPER) -> Tensor:
    """Images (N, size, size, 3) in [0, 1], row 0 on top: every capsule with one pixel of smoothing, so differentiable.

    A pixel is covered by clip(½ + (r − distance to the segment)/pixel, 0, 1) of a capsule. Capsules thinner than 0.7 of a pixel
    are drawn as wide as that, so that nothing is lost at 16².
    """
    _require.count("rasterise", "size", size, minimum=2)
    pixel = 2.0 / size
    line = (torch.arange(size, dtype=drawn.start.dtype, device=drawn.start.device) + 0.5) * pixel - 1.0
    grid = torch.stack([line.expand(size, size), -line.unsqueeze(-1).expand(size, size)], dim=-1)  # (size, size, 2)
    image = grid.new_tensor(background).expand(len(drawn.start), size, size, 3)
    for s, radius in enumerate(drawn.radius.tolist()):
        start, end = (at[:, s, None, None] for at in (drawn.start, drawn.end))  # (N, 1, 1, 2)
        along, beyond = end - start, grid - start
        share = ((beyond * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True).clamp_min(1e-12)).clamp(
            0.0, 1.0
        )
        distance = (beyond - share * along).square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()
        cover = (0.5 + (max(radius, 0.7 * pixel) - distance) / pixel).clamp(0.0, 1.0)
        image = image + cover * (drawn.colour[s] - image)
    return image


def images(system: System, x: Tensor, *, size: int = 64) -> Tensor:
    """`rgb` of the states x (N, nx): (N, size, size, 3) in [0, 1], float64."""
    return rasterise(capsules(system, x), size=size)


class Pixels(
    gymnasium.Wrapper[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    RecordConstructorArgs,
):
    """A plant's environment whose observations are images instead of states; ``info["state"]`` still tells the true state.

    The observation is a stack of the last `frames` images along the colours, the newest last; after a reset all are the first.

    Args:
        env: a `SystemEnv`, wrapped or not.
        size: pixels of a side, at least 8.
        frames: how many images an observation holds.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, size: int = 64, frames: int = 1) -> None:
        RecordConstructorArgs.__init__(self, size=size, frames=frames)
        gymnasium.Wrapper.__init__(self, env)
        plant = env.unwrapped
        self._plant = _require.kind("Pixels", "env.unwrapped", plant, SystemEnv).system
        self._size = _require.count("Pixels", "size", size, minimum=8)
        self._frames = _require.count("Pixels", "frames", frames)
        shape = (size, size, 3 * frames)
        self.observation_space = spaces.Box(0, 255, shape, dtype=np.uint8)
        self._stack: list[NDArray[np.uint8]] = []

    def _seen(self, info: dict[str, Any]) -> NDArray[np.uint8]:
        state = torch.as_tensor(info["state"], dtype=torch.float64).unsqueeze(0)
        image = np.rint(255 * images(self._plant, state, size=self._size)[0].numpy()).astype(np.uint8)
        self._stack = [*self._stack, image][-self._frames :]
        return np.concatenate([self._stack[0]] * (self._frames - len(self._stack)) + self._stack, axis=-1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """As the environment's, seen."""
        _, info = self.env.reset(seed=seed, options=options)
        self._stack = []
        return self._seen(info), info

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.uint8], Any, bool, bool, dict[str, Any]]:
        """As the environment's, seen."""
        _, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(info), reward, terminated, truncated, info
