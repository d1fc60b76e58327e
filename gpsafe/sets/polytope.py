"""Polytopes in half-space form, not batched; flat, one-dimensional, empty and unbounded ones have defined answers.

Emptiness, boundedness, supports, containment and redundancy are decided for the stored numbers in exact arithmetic, whatever
the scale of rows and coordinates; a support is rounded once. Vertices are found to rounding by Qhull, and a tolerance is
stated there only. What the filter needs at every step (supports of ellipsoids, tightening, membership) uses no solver.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from scipy.spatial import Delaunay
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.sets import _hull, _lp
from gpsafe.sets._containment import Containment
from gpsafe.sets._lp import Program, Rational
from gpsafe.sets.box import Box
from gpsafe.sets.ellipsoid import Ellipsoid

MANY = 200  # numbers in H from which a point is sought before emptiness is decided exactly
_ULP, _LEAST = Fraction(1, 2**52), Fraction(1, 2**1074)  # a float is within |v| _ULP + _LEAST of the v that it rounds


class Supported(Protocol):
    """A set with a support function."""

    def support(self, directions: Tensor) -> Tensor: ...


@short
@dataclass(frozen=True, slots=True, eq=False)
class Polytope:
    """{x : Hx ≤ h}, H (k, d), h (k,), finite. May be empty or unbounded: methods that need otherwise say so and refuse."""

    H: Tensor
    h: Tensor

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, H: _require.Numbers, h: _require.Numbers) -> None: ...

    def __post_init__(self) -> None:
        H, h = _require.finite("Polytope", "H", self.H), _require.finite("Polytope", "h", self.h)
        if H.ndim != 2:
            raise _require.fail("Polytope", "H of shape (k, d)", f"shape {tuple(H.shape)}")
        object.__setattr__(self, "H", H.clone())  # its own: limits that move were never certified
        object.__setattr__(self, "h", _require.shape("Polytope", "h", h, (H.shape[0],)).clone())

    @staticmethod
    def of_box(box: Box) -> Polytope:
        """The box as 2d half-spaces, upper bounds first."""
        eye = torch.eye(box.dim, dtype=torch.float64, device=box.lower.device)
        return Polytope(torch.cat([eye, -eye]), torch.cat([box.upper, -box.lower]))

    @property
    def dim(self) -> int:
        """d."""
        return self.H.shape[1]

    @property
    def rows(self) -> int:
        """k."""
        return self.H.shape[0]

    def _lists(self) -> tuple[list[list[float]], list[float]]:
        return self.H.detach().cpu().tolist(), self.h.detach().cpu().tolist()

    def _program(self) -> Program:
        return Program(*self._lists())

    def _tensor(self, numbers: Iterable[float]) -> Tensor:
        return torch.tensor(list(numbers), dtype=torch.float64, device=self.H.device)

    # ------------------------------------------------------------- without a solver
    def violation(self, x: Tensor) -> Tensor:
        """max_i (H_i x − h_i), (*b,), ≤ 0 inside; x (*b, d) of any type of numbers."""
        x = _require.points("Polytope", "x", x, self.dim)
        return (x @ self.H.mT - self.h).amax(-1)

    def contains(self, x: Tensor, *, tol: float = 0.0) -> Tensor:
        """Boolean (*b,): violation ≤ tol, as computed; tol is in units of Hx."""
        return self.violation(x) <= _require.tolerance("Polytope.contains", tol)

    def contains_ellipsoid(self, ellipsoid: Ellipsoid) -> Containment:
        """E ⊆ P with the margin per batch element in units of Hx; exact."""
        return ellipsoid.inside_halfspaces(self.H, self.h)

    def pontryagin_difference(self, body: Supported) -> Polytope:
        """{x : x + e ∈ P for all e ∈ body} = {Hx ≤ h − support(H)}, to rounding, redundant rows or not; may be empty."""
        support = body.support(self.H)
        _require.shape("Polytope.pontryagin_difference", "support(H)", support, (self.rows,))
        return Polytope(self.H, self.h - support)

    def intersect(self, other: Polytope) -> Polytope:
        """P ∩ P′."""
        _require.last_dim("Polytope.intersect", "H", other.H, self.dim)
        return Polytope(torch.cat([self.H, other.H]), torch.cat([self.h, other.h]))

    def preimage(self, matrix: Tensor, offset: Tensor) -> Polytope:
        """{x : Mx + o ∈ P} for M (d, e), o (d,): HM to the closest floats and h − Ho upwards, each rounded once.

        A product of floats would leave nothing but rounding in a row that M takes to almost 0, as it does those of a flat P.
        """
        where = "Polytope.preimage"
        matrix, offset = _require.finite(where, "matrix", matrix), _require.finite(where, "offset", offset)
        _require.shape(where, "offset", offset, (self.dim,))
        _require.shape(where, "matrix", matrix, (self.dim, matrix.shape[-1]))
        (H, h), columns, move = self._lists(), matrix.mT.detach().cpu().tolist(), offset.detach().cpu().tolist()
        rows = self._tensor(_lp.nearest(_lp.dot(row, column)) for row in H for column in columns)
        offsets = self._tensor(_lp.up(b - _lp.dot(row, move)) for row, b in zip(H, map(Fraction, h), strict=True))
        return Polytope(rows.reshape(self.rows, -1), offsets)

    # ----------------------------------------------------- by linear programs, exact
    def support(self, directions: Tensor) -> Tensor:
        """max of n·x over P for n (k, d): (k,), the floats closest to it; inf where unbounded, −inf if empty."""
        return self._tensor(map(_lp.nearest, self._maxima("support", directions)))

    def support_outer(self, directions: Tensor) -> Tensor:
        """The least floats ≥ support for n (k, d): (k,); inf where unbounded, −inf if empty."""
        return self._tensor(map(_lp.up, self._maxima("support_outer", directions)))

    def _maxima(self, where: str, directions: Tensor) -> list[Rational]:
        directions = _require.points(f"Polytope.{where}", "directions", directions, self.dim)
        if directions.ndim != 2:
            raise _require.fail(f"Polytope.{where}", "directions of shape (k, d)", f"shape {tuple(directions.shape)}")
        if directions.numel():
            _require.finite(f"Polytope.{where}", "directions", directions)
        program = self._program()
        return [program.maximize(n).value for n in directions.detach().cpu().tolist()]

    def chebyshev(self) -> tuple[Tensor, float]:
        """Centre (d,) and radius of a largest inscribed ball.

        A radius < 0: empty, and −radius is the least t for which {H_i x ≤ h_i + t‖H_i‖} is not. If balls of any size fit, the
        radius is inf and the centre is that of some unit ball. Rows H_i = 0 must be satisfied: −inf if h_i < 0.
        """
        rows, tops = _hull.rescaled(self.H.detach().cpu().numpy(), [0] * self.dim)
        room: list[Rational] = [Fraction(b) * _hull.power(-top) for b, top in zip(self._lists()[1], tops, strict=True)]
        radius, center = _hull.deepest(rows, room)
        if radius == math.inf:
            center = _hull.deepest(rows, room, 1.0)[1]
        return self._tensor(map(_lp.nearest, center or [math.nan] * self.dim)), _lp.nearest(radius)

    def is_empty(self) -> bool:
        """Whether no x satisfies Hx ≤ h: decided for the stored numbers, without a tolerance: by a point that does, checked
        exactly, or by Farkas' multipliers."""
        return not self._plainly_inhabited() and self._program().empty

    def _plainly_inhabited(self) -> bool:
        """Whether the middle that a floating-point program finds is inside, exactly: at hundreds of rows in eight coordinates
        the exact program takes seconds. False says nothing."""
        if self.rows * self.dim < MANY:
            return False
        H, h = self.H.detach().cpu().numpy(), self.h.detach().cpu().numpy()
        if not (np.isfinite(np.linalg.norm(H, axis=1)).all() and np.isfinite(h).all()):
            return False
        found = _hull.roughly_deepest(H, h)
        if found is None:
            return False
        middle = found[1].tolist()
        return all(_lp.dot(row, middle) <= Fraction(offset) for row, offset in zip(*self._lists(), strict=True))

    def bounding_box(self) -> Box:
        """The smallest box around P with float bounds.

        Raises:
            ValueError: if P is empty or unbounded (the message names a direction).
        """
        program = self._program()
        ends = []
        for sign in (-1.0, 1.0):
            for axis in range(self.dim):
                answer = program.maximize([sign * (j == axis) for j in range(self.dim)])
                if answer.status != "optimal":
                    empty = answer.status == "infeasible"
                    got = "an empty one" if empty else f"one unbounded along {sign:+.0f}·e_{axis}"
                    raise _require.fail("Polytope.bounding_box", "a bounded, non-empty polytope", got)
                ends.append(sign * _lp.up(answer.value))
        return Box(*self._tensor(ends).split(self.dim))

    def is_bounded(self) -> bool:
        """Whether every coordinate has a finite range (an empty set is bounded)."""
        program = self._program()
        axes = torch.eye(self.dim, dtype=torch.float64)
        return all(program.maximize(n).status != "unbounded" for n in torch.cat([axes, -axes]).tolist())

    def contains_polytope(self, other: Polytope) -> Containment:
        """P′ ⊆ P: margin min_i (h_i − max_{P′} H_i x), rounded down once, and the worst point of P′. Its sign is exact.

        An empty P′ is contained with margin inf; an unbounded direction gives −inf. Their witness is NaN.
        """
        _require.last_dim("Polytope.contains_polytope", "H", other.H, self.dim)
        program = other._program()
        margin, witness = math.inf, ()
        for row, offset in zip(*self._lists(), strict=True):
            answer = program.maximize(row)
            room = Fraction(offset) - answer.value
            if room < margin:
                margin, witness = room, answer.point
        point = self._tensor(map(_lp.nearest, witness or [math.nan] * self.dim))
        return Containment(self.h.new_tensor(_lp.down(margin)), point)

    def reduce(self) -> Polytope:
        """The same set without rows that others imply exactly, nor rows H_i = 0 that hold. An empty one is returned as is.

        Of the whole space one row 0 ≤ h_i is left.
        """
        H, h = self._lists()
        program = self._program()
        if program.empty:
            return self
        kept = [
            i for i in range(self.rows) if any(H[i]) and program.maximize(H[i]).value == h[i]
        ]  # others never touch P
        for i in list(kept):
            others = [j for j in kept if j != i]
            if others and Program([H[j] for j in others], [h[j] for j in others]).maximize(H[i]).value <= h[i]:
                kept = others
        kept = kept or [0]
        return Polytope(self.H[kept], self.h[kept])

    # ------------------------------------------------------------------- by vertices
    def vertices(self) -> Tensor:
        """All vertices, (v, d), to rounding.

        Flat polytopes are treated in their affine span. Flat are those in which no ball of radius 1e-9 fits after the bounding
        box has been scaled to about the cube [−1, 1]^d.

        Raises:
            ValueError: if P is empty or unbounded.
        """
        self.bounding_box()
        H, h = self._lists()
        return torch.from_numpy(_hull.corners(np.array(H), list(h))).to(self.H.device)

    def image(self, matrix: Tensor, offset: Tensor) -> Polytope:
        """{Mx + o : x ∈ P} for M (e, d), o (e,), of a bounded P, from outside, tight to rounding.

        Normals are those of the hull of the moved vertices. Their offsets are exact supports of the moved set, raised by what
        `preimage` may lose by rounding: the preimage of an image contains P.
        """
        matrix = _require.finite("Polytope.image", "matrix", matrix)
        offset = _require.shape(
            "Polytope.image", "offset", _require.finite("Polytope.image", "offset", offset), matrix.shape[:1]
        )
        _require.last_dim("Polytope.image", "matrix", matrix, self.dim)
        rows = _hull.normals((self.vertices() @ matrix.mT + offset).detach().cpu().numpy())
        box = self.bounding_box()
        reach = torch.maximum(box.lower.abs(), box.upper.abs()).tolist()
        program, moves = self._program(), offset.detach().cpu().tolist()
        columns = matrix.mT.detach().cpu().tolist()
        offsets = []
        for row in rows.tolist():
            pulled = [_lp.dot(row, column) for column in columns]
            lost = _lp.dot([abs(v) * _ULP + _LEAST for v in pulled], reach)
            offsets.append(_lp.up(program.maximize(pulled).value + _lp.dot(row, moves) + lost))
        return Polytope(torch.from_numpy(rows).to(self.H.device), self._tensor(offsets))

    def project(self, dims: list[int]) -> Polytope:
        """The shadow of a bounded P on the given coordinates, as `image`."""
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.H.device)
        return self.image(eye[dims], self.H.new_zeros(len(dims)))

    def volume(self) -> float:
        """Of a bounded P, to rounding; of a flat one, in its affine span (1 for a point)."""
        cells, flat, corners = self._simplices()
        points, rank = corners.cpu().numpy(), flat.shape[1]
        edges = points[cells[:, 1:]] - points[cells[:, :1]]  # (c, rank, d)
        if rank == self.dim:
            return float(np.abs(np.linalg.det(edges)).sum()) / math.factorial(rank)
        return float(np.sqrt(np.linalg.det(edges @ edges.transpose(0, 2, 1)).clip(0.0)).sum()) / math.factorial(rank)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform points of a bounded P (in its affine span where it is flat), by a triangulation: (count, d)."""
        cells, flat, corners = self._simplices()
        volume = torch.from_numpy(np.abs(np.linalg.det(flat[cells[:, 1:]] - flat[cells[:, :1]])))
        cell = torch.multinomial(volume, count, replacement=True, generator=generator)
        gaps = -torch.rand(count, cells.shape[1], dtype=torch.float64, generator=generator).log()
        weights = (gaps / gaps.sum(-1, keepdim=True)).to(corners.device)
        return torch.einsum("nv,nvd->nd", weights, corners[torch.from_numpy(cells).long()[cell]])

    def _simplices(self) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Simplices of a triangulation as numbers of vertices (c, k + 1); vertices in the affine span (v, k), and (v, d)."""
        corners = self.vertices()
        array = corners.cpu().numpy()
        center, basis, exponent = _hull.span(array)
        flat = np.ldexp(array - center, [-e for e in exponent]) @ basis
        if flat.shape[1] == 0:
            return np.zeros((1, 1), dtype=np.int64), flat[:1], corners[:1]
        if flat.shape[1] == 1:
            return np.array([[int(flat.argmin()), int(flat.argmax())]]), flat, corners
        return Delaunay(flat).simplices, flat, corners


def convex_hull(points: Tensor) -> Polytope:
    """The convex hull of points (n, d), any n ≥ 1 and d ≥ 1, with unit normals; a little larger by rounding, never smaller.

    Offsets are raised by the rounding of H_i p, so that every point satisfies every row, exactly and in whatever order H_i p is
    summed. Points in a subspace (to 1e-12) give a flat polytope: two opposite rows for each missing dimension, which stand
    apart by the points' distance from it and by that rounding.
    """
    points = _require.finite("convex_hull", "points", points)
    if points.ndim != 2:
        raise _require.fail("convex_hull", "points of shape (n, d)", f"shape {tuple(points.shape)}")
    H = torch.from_numpy(_hull.normals(points.detach().cpu().numpy())).to(points.device)
    rounding = 2 * linalg.gamma(points.shape[1] + 2) * (points.abs() @ H.abs().mT)
    exact = ((H != 0).sum(1) == 1) & (H.abs() == 1).any(1)  # rows ±e_j: nothing is rounded
    return Polytope(H, (points @ H.mT + torch.where(exact, 0.0, rounding)).amax(0))
