"""Pictures of plants as plain NumPy images: capsules with one pixel of smoothing, no windowing library."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from gpsafe.systems.base import System, is_violation
from gpsafe.systems.scene import ACCENT, DARK, GREY, RED, Colour, Scene, scene_of

Image = NDArray[np.float64]
PAPER: Colour = (0.985, 0.985, 0.98)
UNSAFE: Colour = (0.96, 0.83, 0.81)


class Canvas:
    """An RGB image over the window [left, right] × [bottom, top] of the plane."""

    def __init__(self, size: int, left: float, right: float, bottom: float, top: float) -> None:
        self.image: Image = np.empty((size, size, 3))
        self.image[:] = PAPER
        self.size = size
        self.left, self.bottom = left, bottom
        self.step_x, self.step_y = (right - left) / size, (top - bottom) / size

    def pixel(self, point: tuple[float, float]) -> tuple[float, float]:
        """Column and row (fractional, row 0 on top) of a point of the plane."""
        column = (point[0] - self.left) / self.step_x - 0.5
        row = self.size - (point[1] - self.bottom) / self.step_y - 0.5
        return column, row

    def capsule(self, start: tuple[float, float], end: tuple[float, float], radius: float, colour: Colour) -> None:
        """Paints all pixels within `radius` pixels of the segment, touching only its bounding box."""
        (x0, y0), (x1, y1) = self.pixel(start), self.pixel(end)
        pad = radius + 1.0
        limit = 4.0 * self.size  # far outside the picture: keep the arithmetic finite
        if not np.isfinite([x0, y0, x1, y1]).all() or max(map(abs, (x0, y0, x1, y1))) > limit:
            return
        first, last = max(0, int(min(x0, x1) - pad)), min(self.size, int(max(x0, x1) + pad) + 2)
        above, below = max(0, int(min(y0, y1) - pad)), min(self.size, int(max(y0, y1) + pad) + 2)
        if first >= last or above >= below:
            return
        columns, rows = np.arange(first, last)[None, :], np.arange(above, below)[:, None]
        dx, dy = x1 - x0, y1 - y0
        length_sq = dx * dx + dy * dy
        along = ((columns - x0) * dx + (rows - y0) * dy) / length_sq if length_sq > 0 else np.zeros((1, 1))
        along = np.clip(along, 0.0, 1.0)
        distance = np.hypot(columns - x0 - along * dx, rows - y0 - along * dy)
        cover = np.clip(radius - distance + 0.5, 0.0, 1.0)[..., None]
        block = self.image[above:below, first:last]
        block += cover * (np.asarray(colour) - block)

    def frame(self, colour: Colour, width: int = 3) -> None:
        """Paints a border."""
        for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
            self.image[edge] = colour

    def bytes(self) -> NDArray[np.uint8]:
        """(size, size, 3), uint8."""
        return np.rint(255 * np.clip(self.image, 0.0, 1.0)).astype(np.uint8)


def _scene(scene: Scene, size: int) -> Canvas:
    (x, y), half = scene.center, scene.half_width
    canvas = Canvas(size, x - half, x + half, y - half, y + half)
    for stroke in scene.strokes:
        canvas.capsule(stroke.start, stroke.end, max(0.7, stroke.radius / canvas.step_x), stroke.colour)
    return canvas


def _portrait(system: System, trail: torch.Tensor, size: int) -> Canvas:
    """First two states (time upwards if there is only one) with the cost as background and the path so
    far.
    """
    low, high = system.state_box.lower.tolist(), system.state_box.upper.tolist()
    plane = system.nx > 1
    canvas = Canvas(size, low[0], high[0], low[1] if plane else 0.0, high[1] if plane else float(system.horizon))
    axis_x = torch.linspace(low[0], high[0], size + 1, dtype=torch.float64)
    points = trail[-1].expand(size, size, system.nx).clone()
    points[..., 0] = 0.5 * (axis_x[1:] + axis_x[:-1])
    if plane:
        axis_y = torch.linspace(high[1], low[1], size + 1, dtype=torch.float64)
        points[..., 1] = (0.5 * (axis_y[1:] + axis_y[:-1])).unsqueeze(-1)
    share = (system.cost(points) / system.cost.ceiling).nan_to_num(nan=1.0).numpy()[..., None]
    canvas.image += share * (np.asarray(UNSAFE) - canvas.image)
    path = [
        (float(x[0]), float(x[1]) if plane else float(t)) for t, x in enumerate(trail)
    ]  # time steps, not points of a grid
    for start, end in pairwise(path):
        canvas.capsule(start, end, 1.0, GREY)
    for point in path[:-1]:
        canvas.capsule(point, point, 1.6, DARK)
    canvas.capsule(path[-1], path[-1], 0.018 * size, ACCENT)
    return canvas


def picture(system: System, trail: torch.Tensor, *, size: int = 320) -> NDArray[np.uint8]:
    """The last state of `trail` (n, nx): the system's own scene, or a phase portrait. Red frame if it is a
    violation.

    Returns:
        (size, size, 3) uint8.
    """
    state = trail[-1]
    scene = scene_of(system, state)
    canvas = _portrait(system, trail, size) if scene is None else _scene(scene, size)
    if is_violation(float(system.cost(state))):
        canvas.frame(RED)
    return canvas.bytes()
