"""What is certified where, over a plane of states or of parameters."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.patches import Patch

from gpsafe import _require
from gpsafe.plotting.colours import colour, ramp


def colour_map(kind: Literal["amount", "order"] = "amount") -> LinearSegmentedColormap:
    """Little to much (from the page over blue to ink), or early to late (`ramp`), in the theme in use; lightness monotone."""
    _require.one_of("colour_map", "kind", kind, ("amount", "order"))
    stops = [colour("page"), colour("mean"), colour("ink")] if kind == "amount" else ramp(2)
    return LinearSegmentedColormap.from_list(f"gpsafe {kind}", stops)


def certified_map(axes: Axes, x: Any, y: Any, certified: Any, *, safe: Any = None, legend: bool = True) -> Axes:
    """Where a certificate stands, and, where the truth is known, what it misses and whether it is ever wrong.

    Certified and safe is blue; safe but not certified is faint; certified and NOT safe, which must not be, is red and hatched.

    Args:
        axes: to draw on.
        x: (nx,) places along the first axis.
        y: (ny,) places along the second.
        certified: (ny, nx) Booleans.
        safe: (ny, nx) Booleans, if the truth is known.
        legend: whether to say what the colours mean, below the axes.
    """
    at, up = (np.asarray(v, dtype=float) for v in (x, y))
    known = np.asarray(certified)
    true = known if safe is None else np.asarray(safe)
    for name, table in (("certified", known), ("safe", true)):
        if table.shape != (len(up), len(at)) or table.dtype != bool:
            raise _require.fail(
                "certified_map", f"{name} as Booleans of shape {(len(up), len(at))}", f"{table.dtype} {table.shape}"
            )
    parts = [("certified", known & true, "certified", 0.75, "")]
    if safe is not None:
        parts = [("safe, not certified", true & ~known, "faint", 1.0, ""), *parts]
        parts += [("certified, not safe", known & ~true, "unsafe", 1.0, "////")]
    picture, handles = np.zeros((*known.shape, 4)), []
    for name, where, noun, alpha, hatch in parts:
        if hatch and not where.any():
            continue
        picture[where] = to_rgba(colour(noun), alpha)
        share = f"{100 * where.mean():.3g} %" if where.any() else "none"
        handles.append(Patch(facecolor=to_rgba(colour(noun), alpha), hatch=hatch, label=f"{name} ({share})"))
        if hatch:
            axes.contourf(at, up, where, levels=[0.5, 1.5], colors="none", hatches=[hatch])
    axes.pcolormesh(at, up, picture, shading="nearest", zorder=0)
    if legend:
        columns = 1 if len(handles) < 2 else 2
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)
    return axes


def outlines(axes: Axes, lower: Any, upper: Any) -> Axes:
    """The cells of a partition of a plane, as hairlines: the smaller the cells, the darker.

    Args:
        axes: to draw on.
        lower, upper: (N, 2) corners of boxes.
    """
    a, b = (np.asarray(v, dtype=float) for v in (lower, upper))
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2:
        raise _require.fail("outlines", "corners (N, 2) twice", f"{a.shape} and {b.shape}")
    corners = np.stack([a, np.stack([b[:, 0], a[:, 1]], -1), b, np.stack([a[:, 0], b[:, 1]], -1)], axis=1)
    lines = PolyCollection(
        list(corners), facecolors="none", edgecolors=to_rgba(colour("ink"), 0.5), linewidths=0.12, zorder=2
    )
    axes.add_collection(lines)
    return axes
