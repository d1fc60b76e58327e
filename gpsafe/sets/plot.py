"""Outlines of sets in a coordinate plane. Not imported by ``gpsafe.sets`` itself: it loads matplotlib."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.spatial import ConvexHull
from torch import Tensor

from gpsafe import _require
from gpsafe.sets import _hull
from gpsafe.sets.box import Box
from gpsafe.sets.ellipsoid import Ellipsoid
from gpsafe.sets.polytope import Polytope
from gpsafe.sets.zonotope import Zonotope

Body = Box | Ellipsoid | Polytope | Zonotope


def outline(body: Body, dims: tuple[int, int] = (0, 1), *, points: int = 128) -> Tensor:
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
        edges = (
            2 * edges[torch.atan2(edges[:, 1], edges[:, 0]).argsort()]
        )  # by angle, from the lowest corner round to it
        turns = torch.cat([torch.zeros_like(edges[:1]), edges, -edges]).cumsum(0)
        return body.center[list(dims)] - 0.5 * edges.sum(0) + turns
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


def draw(axes: Axes, body: Body, dims: tuple[int, int] = (0, 1), **style: Any) -> None:
    """Adds the outline of every batch element to the axes; `style` goes to ``Axes.plot``."""
    curves = outline(body, dims)
    label = style.pop("label", None)
    for i, curve in enumerate(curves.reshape(-1, *curves.shape[-2:]).detach().cpu().numpy()):
        axes.plot(curve[:, 0], curve[:, 1], label=label if i == 0 else None, **style)
