"""Sets, tubes and trajectories in a plane of the state space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from scipy.spatial import ConvexHull
from torch import Tensor

from gpsafe import _require
from gpsafe.plotting.colours import Look, colour, look, looks, ramp
from gpsafe.sets import Box, Ellipsoid, Polytope, Zonotope, _hull

Body = Box | Ellipsoid | Polytope | Zonotope
Dims = tuple[int, int]


def outline(body: Body, dims: Dims = (0, 1), *, points: int = 128) -> Tensor:
    """Boundary of the shadow on two coordinates, a closed curve (*b, n, 2); exact but for the `points` of a smooth one."""
    if isinstance(body, Ellipsoid):
        flat = body.project(list(dims)).compress()
        angle = torch.linspace(0, 2 * math.pi, points, dtype=torch.float64, device=flat.center.device)
        circle = torch.stack([angle.cos(), angle.sin()])[: flat.factor.shape[-1]]
        return flat.center.unsqueeze(-2) + (flat.factor @ circle).mT
    if isinstance(body, Zonotope):
        if body.center.ndim != 1:
            raise _require.fail("outline", "one zonotope", f"a batch {tuple(body.center.shape[:-1])}")
        edges = body.generators[list(dims)].mT
        edges = torch.where(((edges[:, 1] < 0) | ((edges[:, 1] == 0) & (edges[:, 0] < 0))).unsqueeze(-1), -edges, edges)
        # by angle, from the lowest corner round to it
        edges = 2 * edges[torch.atan2(edges[:, 1], edges[:, 0]).argsort()]
        turns = torch.cat([torch.zeros_like(edges[:1]), edges, -edges]).cumsum(0)
        return body.center[list(dims)] - 0.5 * edges.sum(0) + turns
    if isinstance(body, Box):
        body = Box(body.lower[list(dims)], body.upper[list(dims)])
        dims = (0, 1)
    corners = body.vertices()[:, list(dims)]
    order = _around(corners)
    return corners[order + order[:1]]


def _around(corners: Tensor) -> list[int]:
    """Indices of the corners of a plane hull in order; both ends of a segment; one of a point."""
    array = corners.detach().cpu().numpy()
    center, basis, exponent = _hull.span(array)
    flat = np.ldexp(array - center, [-e for e in exponent]) @ basis
    if basis.shape[1] < 2:
        along = flat.sum(1)
        return [int(along.argmin()), int(along.argmax())]
    return ConvexHull(flat).vertices.tolist()


def draw(axes: Axes, body: Body, dims: Dims = (0, 1), **style: Any) -> Axes:
    """Adds the outline of every batch element to the axes; `style` goes to ``Axes.plot``."""
    curves = outline(body, dims)
    label = style.pop("label", None)
    for i, curve in enumerate(curves.reshape(-1, *curves.shape[-2:]).detach().cpu().numpy()):
        axes.plot(curve[:, 0], curve[:, 1], label=label if i == 0 else None, **style)
    return axes


def sets(
    axes: Axes,
    bodies: Mapping[str, Body],
    dims: Dims = (0, 1),
    *,
    styles: Mapping[str, Look] | None = None,
    filled: bool = True,
) -> Axes:
    """Shadows of named sets, the first below: a name that is a noun (safe, unsafe, terminal, …) has its look."""
    styles = styles or looks(bodies)
    for name, body in bodies.items():
        if filled:
            curves = outline(body, dims)
            for curve in curves.reshape(-1, *curves.shape[-2:]).detach().cpu().numpy():
                axes.fill(curve[:, 0], curve[:, 1], color=styles[name].colour, alpha=0.14, linewidth=0)
        draw(axes, body, dims, label=name, linewidth=1.2, **styles[name].line)
    return axes


def state_box(axes: Axes, low: Any, high: Any, dims: Dims = (0, 1), *, margin: float = 0.08) -> Axes:
    """The admitted states as a dashed frame, all else shaded as unsafe; the axes show the frame and a margin around it.

    Args:
        axes: to draw on.
        low: (d,) lower limits; infinite ones are not drawn.
        high: (d,) upper limits.
        dims: the two coordinates.
        margin: around the frame, as a share of its extent.
    """
    ends = []
    for dim, unlimited in zip(dims, (axes.get_xlim(), axes.get_ylim()), strict=True):
        a, b = float(low[dim]), float(high[dim])
        if not a < b:
            raise _require.fail("state_box", "low < high", f"[{a}, {b}] in coordinate {dim}")
        frame = (a if math.isfinite(a) else unlimited[0], b if math.isfinite(b) else unlimited[1])
        pad = margin * (frame[1] - frame[0])
        ends.append((a, b, frame[0] - pad, frame[1] + pad))
    (left, right, first, last), (bottom, top, lowest, highest) = ends
    tint: dict[str, Any] = {"color": colour("unsafe"), "alpha": 0.1, "linewidth": 0, "zorder": 0}
    if math.isfinite(left):
        axes.axvspan(first, left, **tint)
    if math.isfinite(right):
        axes.axvspan(right, last, **tint)
    x0, x1 = max(left, first), min(right, last)
    for y0, y1 in ((lowest, bottom), (top, highest)):
        if math.isfinite(y0) and math.isfinite(y1):
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **tint))
    ys = max(bottom, lowest), min(top, highest)
    sides = [([x, x], ys) for x in (left, right)] + [((x0, x1), [y, y]) for y in (bottom, top)]
    for side in sides:
        if np.isfinite(side).all():
            axes.plot(*side, linewidth=1.0, zorder=1, label="_limit", **look("limit").line)
    axes.set(xlim=(first, last), ylim=(lowest, highest))
    return axes


def tube(
    axes: Axes,
    sections: Body | Sequence[Body],
    dims: Dims = (0, 1),
    *,
    box: tuple[Any, Any] | None = None,
    terminal: Body | None = None,
    path: Any = None,
    noun: str | Look = "plan",
    label: str | None = None,
) -> Axes:
    """Sections of a tube over the box of admitted states, with the terminal set and what really happened.

    Args:
        axes: to draw on.
        sections: one set a step: a batch (T + 1,) of ellipsoids, or a list of sets.
        dims: the two coordinates.
        box: lower and upper limits of the states, (d,) each.
        terminal: set in which the tube must end.
        path: (T + 1, d) true states.
        noun: who made the tube.
        label: its name.
    """
    style = noun if isinstance(noun, Look) else look(noun)
    listed: Iterable[Body] = sections if isinstance(sections, Sequence) else [sections]
    curves = [c for body in listed for c in _curves(body, dims)]
    for k, curve in enumerate(curves):
        axes.fill(curve[:, 0], curve[:, 1], color=style.colour, alpha=0.1, linewidth=0)
        axes.plot(curve[:, 0], curve[:, 1], color=style.colour, linewidth=0.8, label=label if k == 0 else None)
    if terminal is not None:
        draw(axes, terminal, dims, label="terminal set", **look("terminal").line)
    if path is not None:
        states = np.asarray(path.detach().cpu().numpy() if hasattr(path, "detach") else path, dtype=float)
        axes.plot(states[:, dims[0]], states[:, dims[1]], marker=".", markersize=4, label="truth", **look("truth").line)
    return axes if box is None else state_box(axes, *box, dims)


def _curves(body: Body, dims: Dims) -> list[np.ndarray]:
    found = outline(body, dims)
    return list(found.reshape(-1, *found.shape[-2:]).detach().cpu().numpy())


def phase(
    axes: Axes,
    paths: Sequence[Any],
    dims: Dims = (0, 1),
    *,
    box: tuple[Any, Any] | None = None,
    names: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
) -> Axes:
    """Trajectories in a plane of the states, early ones light and late ones dark, with a ring where each begins.

    Args:
        axes: to draw on.
        paths: each (T + 1, d), in order (of episodes, say).
        dims: the two coordinates.
        box: lower and upper limits of the states, (d,) each.
        names: of the paths.
        colours: of the paths, where they are in no order.
    """
    shades = list(colours) if colours is not None else ramp(len(paths)) if paths else []
    for k, (path, shade) in enumerate(zip(paths, shades, strict=True)):
        x = np.asarray(path.detach().cpu().numpy() if hasattr(path, "detach") else path, dtype=float)
        label = None if names is None else names[k]
        axes.plot(x[:, dims[0]], x[:, dims[1]], color=shade, marker=".", markersize=3, linewidth=0.9, label=label)
        axes.plot(x[0, dims[0]], x[0, dims[1]], "o", color=shade, fillstyle="none", markersize=5)
    return axes if box is None else state_box(axes, *box, dims)
