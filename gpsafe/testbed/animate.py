"""A plant that explores, as a short GIF: its picture beside the cells of the plane that its episodes have visited.

Drawn by `gpsafe.systems.drawing` (no windowing library) and written by Pillow with one shared palette. Plants with one state
variable have no plane to visit: for them the phase portrait stands alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from gpsafe import _require
from gpsafe.systems.base import System, is_violation
from gpsafe.systems.drawing import PAPER, Canvas, picture
from gpsafe.systems.pendulum import Pendulum, wrap_angle
from gpsafe.systems.scene import ACCENT, DARK, GREY, RED
from gpsafe.testbed import store

MAX_BYTES = 1_500_000
FRAME_MS = 60
HEADER = 18  # pixels


@dataclass(frozen=True, slots=True, eq=False)
class Animation:
    """Episodes of a plant, one after another.

    Attributes:
        system: the plant, or its twin (for the picture and the cost).
        states: (E, T + 1, nx): E episodes of T steps, in the plant's units.
        title: one line.
    """

    system: System
    states: Tensor
    title: str = ""

    def __post_init__(self) -> None:
        states = _require.finite("Animation", "states", self.states)
        if states.ndim != 3 or states.shape[-1] != self.system.nx or states.shape[1] < 2:
            expected = f"states of shape (E, T + 1 >= 2, {self.system.nx})"
            raise _require.fail("Animation", expected, f"shape {tuple(states.shape)}")
        object.__setattr__(self, "states", states.detach().cpu())


def save_gif(
    path: str | Path, system: System, states: Tensor, *, title: str = "", size: int = 200, max_frames: int = 240
) -> Path:
    """Writes an `Animation` as a GIF of at most `MAX_BYTES`.

    Left the plant itself; right, for plants with two or more state variables, the cells of the (x₀, x₁) plane (20 × 16
    over the state box; an angle of the pendulum is wrapped) that its states have entered so far, states of positive
    cost in red, and the limit of a pendulum's cost (|ω| = safe speed) as lines. If the frames are too many or the
    file too large, states are left out evenly and the picture shrinks; every state still enters its cell.

    Args:
        path: of the file.
        system: plant.
        states: (E, T + 1, nx).
        title: one line above the picture, before the episode and the step.
        size: side of one panel (pixels).
        max_frames: more states than that are thinned.

    Returns:
        The path.

    Raises:
        ValueError: for states of the wrong shape, or if no admissible size fits.
    """
    movie = Animation(system, states, title)
    _require.count("save_gif", "size", size, minimum=32)
    _require.count("save_gif", "max_frames", max_frames)
    data = _encode(movie, size, max_frames)
    while len(data) > MAX_BYTES:
        size, max_frames = max(32, int(0.85 * size)), int(0.85 * max_frames)
        if max_frames < 8:
            raise _require.fail(
                "save_gif", f"a film of at most {MAX_BYTES} bytes", f"{len(data)} for {max_frames} frames"
            )
        data = _encode(movie, size, max_frames)
    return store.write_bytes(path, data)


def _encode(movie: Animation, size: int, max_frames: int) -> bytes:
    episodes, steps, nx = movie.states.shape
    total = episodes * steps
    shown = np.unique(np.linspace(0, total - 1, min(total, max_frames)).round().astype(int))
    plane = _Plane(movie.system, size) if nx > 1 else None
    frames, painted = [], 0
    for number in shown:
        episode, step = divmod(int(number), steps)
        panels = [picture(movie.system, movie.states[episode, : step + 1], size=size)]
        if plane is not None:
            plane.visit(movie.states.reshape(total, nx)[painted : number + 1])
            panels.append(plane.frame(movie.states[episode, : step + 1]))
        painted = int(number) + 1
        words = f"{movie.title}  episode {episode + 1}/{episodes}, step {step}".strip()
        frames.append(with_header(np.concatenate(panels, axis=1), words))
    return encode(frames, movie.title)


def encode(frames: Sequence[Image.Image], comment: str = "") -> bytes:
    """A GIF that repeats, with one palette of 48 colours for all frames; it rests on the last one."""
    sample = Image.fromarray(np.concatenate([np.asarray(f) for f in frames[:: max(1, len(frames) // 8)]]))
    palette = sample.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    indexed[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=[FRAME_MS] * (len(indexed) - 1) + [1500],
        loop=0,
        comment=comment.encode() or b"gpsafe",
    )
    return buffer.getvalue()


def with_header(panels: NDArray[np.uint8], words: str) -> Image.Image:
    """The panels under a strip with one line of text."""
    image = Image.new("RGB", (panels.shape[1], panels.shape[0] + HEADER), "white")
    image.paste(Image.fromarray(panels), (0, HEADER))
    ImageDraw.Draw(image).text((4, 3), words, fill=tuple(int(255 * part) for part in DARK))
    return image


class _Plane:
    """The first two state variables over the state box, in 20 × 16 cells."""

    CELLS = (20, 16)
    VISITED = (0.70, 0.82, 0.93)
    BEYOND = (0.93, 0.60, 0.57)

    def __init__(self, system: System, size: int) -> None:
        physics = getattr(system, "physics", system)
        self.system, self.size = system, size
        self.wraps = isinstance(physics, Pendulum)
        self.limit = physics.safe_speed if isinstance(physics, Pendulum) else None
        lower, upper = system.state_box.lower[:2].tolist(), system.state_box.upper[:2].tolist()
        if isinstance(physics, Pendulum):
            lower, upper = [-math.pi, -physics.speed_limit], [math.pi, physics.speed_limit]
        self.lower, self.upper = torch.tensor(lower), torch.tensor(upper)
        self.lower, self.upper = self.lower.to(torch.float64), self.upper.to(torch.float64)
        self.seen = np.zeros(self.CELLS, dtype=bool)
        self.bad = np.zeros(self.CELLS, dtype=bool)

    def place(self, states: Tensor) -> Tensor:
        """(n, 2): position in the plane, angles wrapped."""
        x = states[:, :2].to(torch.float64).clone()
        if self.wraps:
            x[:, 0] = wrap_angle(x[:, 0])
        return x

    def visit(self, states: Tensor) -> None:
        """Marks the cells of (n, nx) states; those outside the plane count at its edge."""
        share = (self.place(states) - self.lower) / (self.upper - self.lower)
        count = torch.tensor(self.CELLS)
        cell = torch.minimum((share * count).floor().long().clamp(min=0), count - 1)
        costly = is_violation(self.system.cost(states)).numpy()
        column, row = cell.numpy().T
        self.seen[column, row] = True
        self.bad[column[costly], row[costly]] = True

    def frame(self, trail: Tensor) -> NDArray[np.uint8]:
        """The cells, the limits, and this episode's states so far."""
        (left, bottom), (right, top) = self.lower.tolist(), self.upper.tolist()
        canvas = Canvas(self.size, left, right, bottom, top)
        canvas.image[:] = PAPER
        edges_x = np.linspace(0, self.size, self.CELLS[0] + 1).round().astype(int)
        edges_y = np.linspace(self.size, 0, self.CELLS[1] + 1).round().astype(int)
        columns = np.repeat(np.arange(self.CELLS[0]), np.diff(edges_x))
        rows = np.repeat(np.arange(self.CELLS[1])[::-1], np.diff(edges_y[::-1]))
        canvas.image[self.seen[columns].T[rows]] = self.VISITED
        canvas.image[self.bad[columns].T[rows]] = self.BEYOND
        canvas.image[edges_y[1:-1]] *= 0.97
        canvas.image[:, edges_x[1:-1]] *= 0.97
        for level in () if self.limit is None else (-self.limit, self.limit):
            canvas.capsule((left, level), (right, level), 1.0, RED)
        points = self.place(trail).tolist()
        for x, y in points[:-1]:
            canvas.capsule((x, y), (x, y), 1.2, DARK)
        canvas.capsule(tuple(points[-1]), tuple(points[-1]), 0.02 * self.size, ACCENT)
        canvas.frame(GREY, width=1)
        return canvas.bytes()
