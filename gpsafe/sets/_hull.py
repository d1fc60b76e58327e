"""Corners of half-spaces and normals of hulls, by Qhull in coordinates in which the set fills a cube.

Qhull knows absolute tolerances, and a set may be flat. So coordinates are first scaled to the extents of the set (by powers of
two, without error), and a flat set is treated in its span. Nothing here is believed: what must hold exactly (that a hull
contains its points, an image its set) is established by exact arithmetic where the normals are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

from gpsafe import _require
from gpsafe.sets import _lp
from gpsafe.sets._lp import Array, Program, Rational

THIN = 1e-9  # a set counts as flat if no ball of this radius fits where its bounding box is about the cube [−1, 1]^d
LEVEL = (
    1e-12  # an extent counts as 0 below this share of the largest coordinate along it, of points of the largest extent
)
SLIVER = 1e3  # how many times the rounding of its offsets a hull is thick at least that is not flat


def exponents(sizes: Array) -> list[int]:
    """e with 2^(e−1) ≤ size < 2^e; 0 for a size of 0."""
    return [math.frexp(size)[1] for size in sizes.tolist()]


def rescaled(H: Array, exponent: list[int]) -> tuple[Array, list[int]]:
    """Rows for coordinates x_j/2^{exponent_j}, each times 2^{−e_i} so that its largest entry is in [½, 1), and e.

    Rows of 0 have e_i = 0. Without overflow; only entries below 1e-308 of the largest are rounded.
    """
    rows, tops = np.zeros(H.shape), []
    for i, row in enumerate(H.tolist()):
        parts = [(*math.frexp(v), shift) for v, shift in zip(row, exponent, strict=True)]
        tops.append(max((e + shift for v, e, shift in parts if v), default=0))
        rows[i] = [math.ldexp(v, e + shift - tops[-1]) for v, e, shift in parts]
    return rows, tops


def power(exponent: int) -> Fraction:
    """2^exponent."""
    return Fraction(2) ** exponent


def deepest(H: Array, h: Sequence[Rational], most: float = math.inf) -> tuple[Rational, tuple[Fraction, ...]]:
    """The largest r ≤ most with H_i x + r‖H_i‖ ≤ h_i for all i and some x, and that x; norms are rounded, all else is exact.

    (inf, none) if there is no largest, (−inf, none) if a row H_i = 0 has h_i < 0.
    """
    rows = [[*row, math.hypot(*row)] for row in H.tolist()]
    last = [0.0] * H.shape[1] + [1.0]
    answer = Program([*rows, last], [*h, most]) if most < math.inf else Program(rows, h)
    found = answer.maximize(last)
    return found.value, found.point[:-1]


def roughly_deepest(H: Array, h: Array) -> tuple[float, Array] | None:
    """As `deepest` with r in [0, 1e6], in floating point, and so for proposals alone; None where the solver finds none."""
    columns = np.column_stack([H, np.linalg.norm(H, axis=1)])
    dim = H.shape[1]
    found = linprog([0.0] * dim + [-1.0], columns, h, bounds=[(None, None)] * dim + [(0, 1e6)])
    return (float(found.x[-1]), found.x[:-1]) if found.status == 0 else None


# -------------------------------------------------------------------------------------------------------------- corners
def corners(H: Array, h: Sequence[Rational]) -> Array:
    """The corners (v, d) of {Hx ≤ h}, non-empty and bounded, to rounding; of a flat set those of a slice along its span."""
    program = Program(H.tolist(), h)
    axes = np.eye(H.shape[1])
    high = [program.maximize(n).value for n in axes.tolist()]
    low = [-program.maximize(n).value for n in (-axes).tolist()]
    free = np.array([a < b for a, b in zip(low, high, strict=True)])
    if not free.all():
        fixed = [0.0 if loose else a for a, loose in zip(low, free, strict=True)]
        rest = [b - _lp.dot(row, fixed) for row, b in zip(H.tolist(), h, strict=True)]
        inner = corners(H[:, free], rest) if free.any() else np.zeros((1, 0))
        found = np.tile([_lp.nearest(a) for a in low], (len(inner), 1))
        found[:, free] = inner
        return found
    if H.shape[1] == 1:
        return np.array([[_lp.nearest(low[0])], [_lp.nearest(high[0])]])

    half = np.array([_lp.nearest((b - a) / 2) for a, b in zip(low, high, strict=True)])
    exponent = exponents(half)  # from here in coordinates in which the set fits into a box of sides in [1, 2)
    rows, tops = rescaled(H, exponent)
    room = [Fraction(offset) * power(-top) for offset, top in zip(h, tops, strict=True)]
    depth, middle = deepest(rows, room)
    offsets = np.array([_lp.nearest(b - _lp.dot(row, middle)) for row, b in zip(rows.tolist(), room, strict=True)])
    if depth > THIN:
        found = _enclosed(rows, offsets)
    else:
        basis = np.linalg.svd(_thinnest(rows, room)[None])[2][1:].T
        kept = np.linalg.norm(rows @ basis, axis=1) > THIN * np.linalg.norm(rows, axis=1)
        around = np.concatenate([axes, -axes])  # in place of rows along the normal
        bounds = np.concatenate([offsets[kept], np.full(len(around), 2.0)])
        found = corners(np.concatenate([rows[kept], around]) @ basis, bounds.tolist()) @ basis.T
    center = [_lp.nearest(v * power(e)) for v, e in zip(middle, exponent, strict=True)]
    return np.array(center) + np.ldexp(found, exponent)


def _thinnest(rows: Array, room: Sequence[Rational]) -> Array:
    """The row along which the set is thinnest, (d,)."""
    program = Program(rows.tolist(), room)
    lengths = np.linalg.norm(rows, axis=1)
    depth = [_lp.nearest(b + program.maximize((-row).tolist()).value) for row, b in zip(rows, room, strict=True)]
    return rows[np.where(lengths > 0, np.array(depth) / np.where(lengths > 0, lengths, 1.0), np.inf).argmin()]


def _enclosed(rows: Array, offsets: Array) -> Array:
    """Corners of {rows·z ≤ offsets}, which has 0 inside and no |z_j| > 2."""
    lengths = np.linalg.norm(rows, axis=1)
    near = (lengths > 0) & (offsets <= 3.0 * math.sqrt(rows.shape[1]) * lengths)  # others touch nothing
    faces = np.concatenate([rows[near], -offsets[near, None]], axis=1) / lengths[near, None]
    try:
        found = HalfspaceIntersection(faces, np.zeros(rows.shape[1])).intersections
    except QhullError as error:
        raise _failure("vertices", "half-spaces", error) from error
    return found[_hull(found).vertices]


# --------------------------------------------------------------------------------------------------------------- normals
def span(points: Array) -> tuple[Array, Array, list[int]]:
    """One point c, an orthonormal basis B (d, r) and e: points are c + 2^e ∘ By, up to `LEVEL` of their extent or size.

    Divided by 2^e, every coordinate that varies spreads over about [−1, 1]; B = 0 in the others. If points span all coordinates
    that vary, B consists of unit vectors.

    A hull of length L that is t thin may have facets along it alone, which meet about Lρ/t beyond its ends once they are moved
    by the rounding ρ of their offsets; taken as flat it is larger by t alone. So it counts as flat below t = `SLIVER`·ρ.
    """
    center = points[0]  # differences of close floats are exact, those from a rounded mean would add dimensions of noise
    spread = np.abs(points - center).max(0)
    free = spread > LEVEL * np.abs(points).max(0)
    exponent = exponents(spread)
    basis = np.eye(len(center))[:, free]
    if free.any():
        down = [-e for e in exponent]
        _, s, Vh = np.linalg.svd(np.ldexp(points - center, down)[:, free], full_matrices=True)
        rounding = 4 * np.finfo(float).eps * np.abs(np.ldexp(points, down))[:, free].max()
        rank = int((s > max(LEVEL * s[0], SLIVER * rounding)).sum())
        basis = basis if rank == free.sum() else basis @ Vh[:rank].T
    return center, basis, exponent


def normals(points: Array) -> Array:
    """Unit normals (k, d) of the facets of a hull; two opposite ones for every dimension that the points miss."""
    center, basis, exponent = span(points)
    free = basis.any(1)
    rank = basis.shape[1]
    if rank < 2:
        rows = np.concatenate([basis.T, -basis.T])
    else:
        scaled = np.ldexp(points - center, [-e for e in exponent])
        rows = np.unique(_hull(scaled @ basis).equations[:, :-1].round(14), axis=0) @ basis.T
    oblique = np.linalg.svd(basis[free], full_matrices=True)[0][:, rank:].T if rank else np.zeros((0, 0))
    across = np.concatenate([oblique @ np.eye(len(center))[free], np.eye(len(center))[~free]])
    rows, _ = rescaled(np.concatenate([rows, across, -across]), [-e for e in exponent])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _hull(points: Array) -> ConvexHull:
    try:
        return ConvexHull(points)
    except QhullError as error:
        raise _failure("convex_hull", "points", error) from error


def _failure(where: str, what: str, error: Exception) -> ValueError:
    return _require.fail(where, f"{what} that Qhull can enclose", str(error).split("\n")[0])
