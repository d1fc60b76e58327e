"""What a plant looks like, as plain geometry: rendering code needs to know nothing else about a system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

Colour = tuple[float, float, float]
DARK: Colour = (0.16, 0.20, 0.26)
ACCENT: Colour = (0.13, 0.42, 0.71)
GREY: Colour = (0.72, 0.75, 0.79)
RED: Colour = (0.80, 0.23, 0.20)


@dataclass(frozen=True, slots=True)
class Stroke:
    """A capsule from `start` to `end` (world units) of the given radius; start = end is a disc."""

    start: tuple[float, float]
    end: tuple[float, float]
    radius: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class Scene:
    """Strokes, drawn in order, seen through a square window of half-width `half_width` around `center`."""

    strokes: tuple[Stroke, ...]
    half_width: float
    center: tuple[float, float] = (0.0, 0.0)


@runtime_checkable
class Drawable(Protocol):
    """A system that can show one of its states."""

    def scene(self, x: Tensor) -> Scene:
        """Geometry of the state x (nx,)."""
        ...


def scene_of(system: object, x: Tensor) -> Scene | None:
    """The system's own scene, or that of the physics behind a twin; None if neither has one."""
    if isinstance(system, Drawable):
        return system.scene(x)
    physics = getattr(system, "physics", None)
    return None if physics is None else scene_of(physics, x)
