"""Sizes of a paper, and a theme for figures that leaves Matplotlib's own settings as they were."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpsafe import _require
from gpsafe.plotting import colours
from gpsafe.plotting.colours import colour

Name = Literal["light", "dark"]
Width = Literal["single", "double", "screen"]
WIDTHS = {"single": 3.25, "double": 6.75, "screen": 10.0}
"""Inches: one or both columns of a conference page, and a page of a report."""
_RATIO = {"single": 0.72, "double": 0.42, "screen": 0.42}
LEAST_SIZE = 7.0  # points: what is still read in print


def rc(theme: Name = "light", *, size: float = 8.0) -> dict[str, Any]:
    """Settings of Matplotlib for a theme; text of `size` points, small text one less, never below 7."""
    _require.one_of("rc", "theme", theme, colours.THEMES)
    size = max(_require.number("rc", "size", size), LEAST_SIZE)
    page, small = colours.THEMES[theme], max(size - 1, LEAST_SIZE)
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    little = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize")
    white = ("figure.facecolor", "figure.edgecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    return {
        **dict.fromkeys(ink, page.ink),
        **dict.fromkeys(white, page.page),
        **dict.fromkeys(little, small),
        **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.titlesize"), size),
        "axes.prop_cycle": cycler(color=page.series),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.axisbelow": True,
        "grid.color": page.faint,
        "legend.frameon": False,
        "lines.linewidth": 1.3,
        "lines.markersize": 4.0,
        "lines.color": page.ink,
        "patch.edgecolor": page.ink,
        "boxplot.flierprops.markeredgecolor": page.ink,
        "hatch.color": page.grey,
        "hatch.linewidth": 0.6,
        "errorbar.capsize": 2.0,
        "pdf.fonttype": 42,
        "svg.fonttype": "path",
        "svg.hashsalt": "gpsafe",
    }


@contextlib.contextmanager
def style(theme: Name = "light", *, size: float = 8.0) -> Iterator[colours.Theme]:
    """Inside, figures are made in the theme and `colour` gives its colours; afterwards all is as before.

    A figure keeps the theme in which it was made, also when it is saved later.
    """
    settings = rc(theme, size=size)
    token = colours.CURRENT.set(colours.THEMES[theme])
    try:
        with matplotlib.rc_context(settings):  # pyright: ignore[reportArgumentType]
            yield colours.THEMES[theme]
    finally:
        colours.CURRENT.reset(token)


def figure(width: Width | float = "double", height: float | None = None) -> Figure:
    """An empty figure with a layout that keeps labels apart: `axes = figure("single").subplots()`.

    Args:
        width: one column, both, a page of a report; or inches.
        height: inches.
    """
    if isinstance(width, str):
        name = _require.one_of("figure", "width", width, WIDTHS)
        width, ratio = WIDTHS[name], _RATIO[name]
    else:
        ratio = _RATIO["double"]
    height = width * ratio if height is None else height
    return Figure(figsize=(width, height), layout="constrained", facecolor=colour("page"))


def limit(axes: Axes, value: float, *, upright: bool = False, label: str = "") -> Axes:
    """A dashed line that must not be crossed; the label stands on it, inside the axes."""
    line, ends = (axes.axvline, axes.get_xaxis_transform()) if upright else (axes.axhline, axes.get_yaxis_transform())
    line(value, linewidth=0.9, label="_limit", **colours.look("limit").line)
    if label:
        at, offset = ((value, 0.98), (-2, 0)) if upright else ((0.01, value), (0, 2))
        place: dict[str, Any] = {"rotation": 90, "va": "top", "ha": "right"} if upright else {}
        axes.annotate(
            label,
            at,
            xycoords=ends,
            xytext=offset,
            textcoords="offset points",
            fontsize=_small(),
            color=colour("ink"),
            **place,
        )
    return axes


def _small() -> float:
    return max(float(matplotlib.rcParams["font.size"]) - 1, LEAST_SIZE)


def save(made: Figure, path: str | Path | None = None, *, kind: str = "svg", dpi: float = 200) -> bytes:
    """The figure's file, the same bytes each time; written to `path` too if there is one, whose suffix says the kind.

    Args:
        made: the figure.
        path: of the file, or None.
        kind: svg, pdf or png, where there is no path.
        dpi: of a png.
    """
    kind = _require.one_of("save", "kind", Path(path).suffix[1:] if path is not None else kind, ("svg", "pdf", "png"))
    about = {"svg": {"Date": None}, "pdf": {"CreationDate": None, "ModDate": None}, "png": {}}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gpsafe", "svg.fonttype": "path", "pdf.fonttype": 42}):
        made.savefig(buffer, format=kind, dpi=dpi, metadata=about)
    if path is not None:
        Path(path).write_bytes(buffer.getvalue())
    return buffer.getvalue()
