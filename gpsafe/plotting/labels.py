"""Names at the ends of lines instead of a legend over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform

from gpsafe import _require
from gpsafe.plotting.pages import LEAST_SIZE

GAP = 5.0  # points between the axes and the names


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> np.ndarray:
    """Centres of labels along a line: as near to the wanted ones as can be without two that overlap, in the same order.

    The least sum of squares of the moves under c_{k+1} − c_k ≥ (s_k + s_{k+1})/2, by isotonic regression (pooled adjacent
    violators) of the wanted places less the room taken before them, cut to the interval. Where the labels do not all fit
    between low and high they go beyond both ends alike.

    Args:
        wanted: n places.
        sizes: n extents, ≥ 0.
        low: lower end of the room.
        high: upper end of it.

    Returns:
        (n,)

    >>> spread([1.0, 1.0], [2.0, 2.0], 0.0, 10.0)
    array([1., 3.])
    """
    places, extents = np.asarray(wanted, dtype=float), np.asarray(sizes, dtype=float)
    if places.shape != extents.shape or places.ndim != 1:
        raise _require.fail("spread", "as many sizes as places", f"{extents.shape} and {places.shape}")
    if not (np.isfinite(places).all() and np.isfinite(extents).all() and (extents >= 0).all()):
        raise _require.fail("spread", "finite places and sizes ≥ 0", f"{places} and {extents}")
    if not len(places):
        return places
    order = np.argsort(places, kind="stable")
    half = extents[order] / 2
    taken = np.concatenate([[0.0], np.cumsum(half[:-1] + half[1:])])
    room = (low + half[0], high - half[-1] - taken[-1])
    if room[0] > room[1]:
        room = (sum(room) / 2,) * 2
    blocks: list[tuple[float, int]] = []  # mean, count
    for value in places[order] - taken:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] >= mean:
            before, number = blocks.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        blocks.append((mean, count))
    pooled = np.concatenate([np.full(count, mean) for mean, count in blocks])
    result = np.empty_like(places)
    result[order] = np.clip(pooled, room[0], room[1]) + taken
    return result


class EndLabels(Artist):
    """The names of lines in a column at the right of the axes, each level with the end of its line as far as room allows.

    They are placed when the figure is drawn: the layout, limits and scale of the axes may still change.
    """

    def __init__(self, axes: Axes, lines: Mapping[str, Line2D | PolyCollection], *, size: float) -> None:
        super().__init__()
        self.set_figure(axes.figure)
        self.of = axes
        self.lines = list(lines.values())
        self.texts = [
            Text(0, 0, name, color=_colour(line), fontsize=size, va="center_baseline", ha="left", clip_on=False)
            for name, line in lines.items()
        ]
        for text in self.texts:
            text.set_figure(axes.figure)
            text.set_transform(IdentityTransform())
        self.leaders: list[Line2D] = []
        self.set_zorder(4)

    def place(self, renderer: Any) -> None:
        """Puts names and leaders where they belong now."""
        axes = self.of
        axes.get_xlim()  # limits that follow the data are made when they are asked for
        axes.get_ylim()
        box = axes.get_window_extent(renderer)
        points = renderer.points_to_pixels(1.0)
        ends = [_end(line, axes, box) for line in self.lines]
        heights = [1.05 * text.get_window_extent(renderer).height for text in self.texts]
        levels = spread([y for _, y in ends], heights, box.y0, box.y1)
        self.leaders = []
        for text, line, (x, y), level in zip(self.texts, self.lines, ends, levels, strict=True):
            text.set_position((box.x1 + (GAP + 4) * points, level))
            far = abs(level - y) > 2 * points or box.x1 - x > 8 * points
            leader = Line2D(
                [x, box.x1 + 2 * points, box.x1 + (GAP + 2) * points] if far else [],
                [y, y, level] if far else [],
                color=_colour(line),
                linewidth=0.5,
                alpha=0.8,
                clip_on=False,
            )
            leader.set_figure(axes.figure)
            leader.set_transform(IdentityTransform())
            self.leaders.append(leader)

    def draw(self, renderer: Any) -> None:
        if self.get_visible():
            self.place(renderer)
            for artist in (*self.leaders, *self.texts):
                artist.draw(renderer)
        self.stale = False

    def get_window_extent(self, renderer: Any = None) -> Bbox:
        renderer = renderer or self.of.get_figure(root=True)._get_renderer()  # pyright: ignore
        self.place(renderer)
        return Bbox.union([text.get_window_extent(renderer) for text in self.texts])

    def get_tightbbox(self, renderer: Any = None) -> Bbox:
        return self.get_window_extent(renderer)


def _colour(line: Line2D | PolyCollection) -> Any:
    return line.get_color() if isinstance(line, Line2D) else to_rgb(tuple(np.asarray(line.get_facecolor())[0]))


def _end(line: Line2D | PolyCollection, axes: Axes, box: Bbox) -> tuple[float, float]:
    """Pixels of the last point of a line that has a place, or of the middle of a band's end, kept inside the axes."""
    data = np.asarray(line.get_xydata() if isinstance(line, Line2D) else _middle(line), dtype=float)
    with np.errstate(all="ignore"):
        pixels = np.asarray(line.get_transform().transform(data)).reshape(-1, 2)
    pixels = pixels[np.isfinite(pixels).all(1)]
    inside = pixels[(pixels[:, 0] >= box.x0 - 1) & (pixels[:, 0] <= box.x1 + 1)]
    if not len(inside):
        return box.x1, (box.y0 + box.y1) / 2
    x, y = inside[np.argmax(inside[:, 0])]
    return float(x), float(np.clip(y, box.y0, box.y1))


def _middle(band: PolyCollection) -> np.ndarray:
    corners = np.concatenate(
        [np.asarray(path.vertices, dtype=float) for path in band.get_paths()] or [np.empty((0, 2))]
    )
    corners = corners[np.isfinite(corners).all(1)]
    last = corners[corners[:, 0] == corners[:, 0].max()] if len(corners) else corners
    return (last.min(0, keepdims=True) + last.max(0, keepdims=True)) / 2 if len(last) else corners


def legend_beside(axes: Axes, **more: Any) -> Axes:
    """A legend at the right of the axes, where it covers no data: for bars and points, which have no ends to be named at."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **more)
    return axes


def label_ends(
    axes: Axes, lines: Sequence[Line2D | PolyCollection] | None = None, *, size: float | None = None
) -> Axes:
    """Names the labelled lines and bands at their right ends, in their colours; names never overlap. In place of a legend.

    Args:
        axes: whose lines.
        lines: which ones; all that have a label (error bars and filled bands too) if None.
        size: of the text in points; small text of the style, at least 7, if None.
    """
    found: dict[str, Line2D | PolyCollection] = {}
    if lines is None:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            line = handle[0] if isinstance(handle, ErrorbarContainer) else handle
            if isinstance(line, (Line2D, PolyCollection)):
                found.setdefault(label, line)
    else:
        found = {str(line.get_label()): line for line in lines}
    size = max(LEAST_SIZE, size or float(matplotlib.rcParams["font.size"]) - 1)
    for artist in [a for a in axes.artists if isinstance(a, EndLabels)]:
        artist.remove()
    if found:
        axes.add_artist(EndLabels(axes, found, size=size)).set_clip_on(False)
    return axes
