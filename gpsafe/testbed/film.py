"""One plant with and without a safety filter, side by side as a short GIF: equal start, proposals and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from gpsafe import _require
from gpsafe.systems.drawing import Canvas, picture
from gpsafe.systems.episodic import Episodic
from gpsafe.systems.scene import DARK, GREY, RED, Colour
from gpsafe.testbed import store
from gpsafe.testbed.animate import encode, with_header

COLOURS: dict[str, Colour] = {
    "plan": (0.00, 0.62, 0.45),
    "stored": (0.34, 0.71, 0.91),
    "backup": (0.90, 0.62, 0.00),
    "soft": (0.80, 0.47, 0.65),
    "unfiltered": DARK,
}
"""Of an input's source, see `gpsafe.safety.filter`."""
MAX_FRAMES = 100  # six seconds
TOP = 1.25  # of the strip, in units of the limit


@dataclass(frozen=True, slots=True, eq=False)
class Film:
    """Two episodes of a plant.

    Attributes:
        system: the plant.
        free: states without a filter, (t + 1, nx); the last one may be outside the limits.
        kept: states with it, (t' + 1, nx).
        sources: of the filter's inputs, t' of them.
        title: one line.
    """

    system: Episodic
    free: Tensor
    kept: Tensor
    sources: Sequence[str]
    title: str = ""

    def __post_init__(self) -> None:
        where = "Film"
        for name in ("free", "kept"):
            states = _require.finite(where, name, getattr(self, name))
            if states.ndim != 2 or states.shape[-1] != self.system.nx or states.shape[0] < 2:
                expected = f"{name} of shape (t + 1 >= 2, {self.system.nx})"
                raise _require.fail(where, expected, f"shape {tuple(states.shape)}")
            object.__setattr__(self, name, states.detach().cpu())
        for source in self.sources:
            _require.one_of(where, "source", source, tuple(COLOURS))
        if len(self.sources) != len(self.kept) - 1:
            raise _require.fail(where, f"{len(self.kept) - 1} sources", len(self.sources))

    def shares(self, states: Tensor) -> NDArray[np.float64]:
        """How far states are to their limits, (t,): 0 in the middle, 1 at the first limit, more outside."""
        box, rows = self.system.state_box, list(self.system.limited)
        return ((states - box.center)[:, rows].abs() / box.radius[rows]).amax(-1).numpy()


def save_film(path: str | Path, comparison: Film, *, size: int = 200) -> Path:
    """Writes the film: left without a filter, right with it, framed in the colour of each input's source.

    An episode that left its limits stands still from there on, framed in red. The strip below shows for both how near the
    state is to a limit (the red line) over time.

    Args:
        path: of the file.
        comparison: what to show; more steps than `MAX_FRAMES` are left out evenly.
        size: side of a panel (pixels).

    Returns:
        The path.
    """
    _require.count("save_film", "size", size, minimum=64)
    steps = max(len(comparison.free), len(comparison.kept)) - 1
    shown = np.unique(np.linspace(0, steps, min(steps + 1, MAX_FRAMES)).round().astype(int))
    return store.write_bytes(
        path, encode([frame(comparison, int(step), size=size) for step in shown], comparison.title)
    )


def frame(comparison: Film, step: int, *, size: int = 200) -> Image.Image:
    """The picture of a step, counted from 0."""
    panels = []
    for states in (comparison.free, comparison.kept):
        now = min(step, len(states) - 1)
        panel = picture(comparison.system, states[: now + 1], size=size)
        if states is comparison.kept and now and not bool(comparison.system.terminated(states[now])):
            panel = _framed(panel, COLOURS[comparison.sources[now - 1]])
        panels.append(panel)
    image = np.concatenate([np.concatenate(panels, axis=1), _strip(comparison, step, size)], axis=0)
    drawn = with_header(image, comparison.title)
    write = ImageDraw.Draw(drawn)
    for place, words in ((0, "without filter"), (size, "with filter: " + _told(comparison, step))):
        write.text((place + 6, 22), words, fill=tuple(int(255 * part) for part in DARK))
    return drawn


def _told(comparison: Film, step: int) -> str:
    now = min(step, len(comparison.kept) - 1)
    if bool(comparison.system.terminated(comparison.kept[now])):
        return "limit left"
    return comparison.sources[now - 1] if now else "start"


def _framed(panel: NDArray[np.uint8], colour: Colour, width: int = 4) -> NDArray[np.uint8]:
    """A border, 8 bits a channel."""
    panel = panel.copy()
    for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        panel[edge] = np.rint(255 * np.asarray(colour))
    return panel


def _strip(comparison: Film, step: int, size: int) -> NDArray[np.uint8]:
    """Shares of the limit over time, up to now, (size // 3, 2 size, 3)."""
    height, steps = size // 3, max(len(comparison.free), len(comparison.kept)) - 1
    canvas = Canvas(2 * size, -0.02 * steps, 1.02 * steps, 0.0, TOP * 2 * size / height)
    canvas.capsule((-steps, 1.0), (2 * steps, 1.0), 0.8, RED)
    free, kept = (np.minimum(comparison.shares(s), TOP) for s in (comparison.free, comparison.kept))
    for t in range(1, min(step, len(free) - 1) + 1):
        canvas.capsule((t - 1, free[t - 1]), (t, free[t]), 1.0, GREY)
    for t in range(1, min(step, len(kept) - 1) + 1):
        canvas.capsule((t - 1, kept[t - 1]), (t, kept[t]), 1.4, COLOURS[comparison.sources[t - 1]])
    return canvas.bytes()[-height:]
