"""Polytopes in half-space form, not batched; flat, one-dimensional, empty and unbounded ones have defined answers.

Linear programs (scipy's HiGHS) decide to about `TOL` times the size of the data. What the filter needs at every step
(supports of ellipsoids, tightening, membership) uses no solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.spatial import ConvexHull, Delaunay, HalfspaceIntersection, QhullError
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe.sets import _lp
from gpsafe.sets._containment import Containment
from gpsafe.sets.box import Box
from gpsafe.sets.ellipsoid import Ellipsoid

TOL = 1e-9


class Supported(Protocol):
    """A set with a support function."""

    def support(self, directions: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Polytope:
    """{x : Hx ≤ h}, H (k, d), h (k,), finite. May be empty or unbounded: methods that need otherwise say so and refuse."""

    H: Tensor
    h: Tensor

    def __post_init__(self) -> None:
        H, h = _require.finite("Polytope", "H", self.H), _require.finite("Polytope", "h", self.h)
        if H.ndim != 2:
            raise _require.fail("Polytope", "H of shape (k, d)", f"shape {tuple(H.shape)}")
        object.__setattr__(self, "H", H)
        object.__setattr__(self, "h", _require.shape("Polytope", "h", h, (H.shape[0],)))

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

    def _arrays(self) -> tuple[_lp.Array, _lp.Array]:
        return self.H.detach().cpu().numpy(), self.h.detach().cpu().numpy()

    # ------------------------------------------------------------- without a solver
    def violation(self, x: Tensor) -> Tensor:
        """max_i (H_i x − h_i), (*b,), ≤ 0 inside."""
        return (x @ self.H.mT - self.h).amax(-1)

    def contains(self, x: Tensor, *, tol: float = 0.0) -> Tensor:
        """Boolean (*b,): violation ≤ tol."""
        return self.violation(x) <= tol

    def contains_ellipsoid(self, ellipsoid: Ellipsoid) -> Containment:
        """E ⊆ P with the margin per batch element in units of Hx; exact."""
        return ellipsoid.inside_halfspaces(self.H, self.h)

    def pontryagin_difference(self, body: Supported) -> Polytope:
        """{x : x + e ∈ P for all e ∈ body} = {Hx ≤ h − support(H)}: exact, redundant rows or not; may be empty."""
        support = body.support(self.H)
        _require.shape("Polytope.pontryagin_difference", "support(H)", support, (self.rows,))
        return Polytope(self.H, self.h - support)

    def intersect(self, other: Polytope) -> Polytope:
        """P ∩ P′."""
        _require.last_dim("Polytope.intersect", "H", other.H, self.dim)
        return Polytope(torch.cat([self.H, other.H]), torch.cat([self.h, other.h]))

    def preimage(self, matrix: Tensor, offset: Tensor) -> Polytope:
        """{x : Mx + o ∈ P} for M (d, e), o (d,)."""
        _require.shape("Polytope.preimage", "offset", offset, (self.dim,))
        return Polytope(self.H @ matrix, self.h - self.H @ offset)

    # --------------------------------------------------------- by linear programs
    def support(self, directions: Tensor) -> Tensor:
        """max of n·x over P for n (k, d): (k,); inf where unbounded, −inf if empty."""
        H, h = self._arrays()
        _require.last_dim("Polytope.support", "directions", directions, self.dim)
        values = [_lp.maximize(n, H, h).value for n in directions.detach().cpu().numpy()]
        return torch.tensor(values, dtype=torch.float64, device=self.H.device)

    def support_outer(self, directions: Tensor) -> Tensor:
        """≥ support for n (k, d), (k,): rigorous whatever the solver did, tight where it did well; inf where nothing is known.

        For multipliers y ≥ 0: n·x = (Hᵀy)·x + (n − Hᵀy)·x ≤ h·y + |n − Hᵀy|·|x|. The range of |x| comes from the same bound for
        the coordinates: |x_i| ≤ a_i + R_i max|x|, with Σ R_i < 1, so that P has no direction of recession.
        """
        _require.last_dim("Polytope.support_outer", "directions", directions, self.dim)
        H, h = self._arrays()
        rounding = linalg.gamma(self.rows + 4)

        def bound(n: _lp.Array) -> tuple[float, _lp.Array]:
            y = np.nan_to_num(_lp.maximize(n, H, h).multipliers)
            rest = np.abs(n - H.T @ y) + rounding * (np.abs(n) + np.abs(H).T @ y)
            return float(h @ y + rounding * (np.abs(h) @ y)), rest

        axes = [bound(n) for n in np.concatenate([np.eye(self.dim), -np.eye(self.dim)])]
        spread = max(float(rest.sum()) for _, rest in axes)
        reach = max(value for value, _ in axes) / (1.0 - spread) if spread < 0.5 else np.inf
        values = []
        for n in directions.detach().cpu().numpy():
            value, rest = bound(n)
            values.append(value + float(rest.sum()) * max(reach, 0.0) * (1 + 1e-12) if rest.any() else value)
        return torch.tensor(values, dtype=torch.float64, device=self.H.device)

    def chebyshev(self) -> tuple[Tensor, float]:
        """Centre (d,) and radius of a largest inscribed ball.

        A radius < 0: empty, and −radius is the least t for which {H_i x ≤ h_i + t‖H_i‖} is not. If balls of any size fit, the
        radius is inf and the centre is that of some unit ball. Rows H_i = 0 must be satisfied: −inf if h_i < 0.
        """
        H, h = self._arrays()
        norms = np.linalg.norm(H, axis=1)
        if (h[norms == 0] < 0).any():
            return self.H.new_full((self.dim,), torch.nan), -np.inf
        H, h, norms = H[norms > 0], h[norms > 0], norms[norms > 0]
        rows = np.concatenate([H / norms[:, None], np.ones((len(H), 1))], axis=1)
        last = np.eye(self.dim + 1)[-1:]
        status, value, point, _ = _lp.maximize(last[0], rows, h / norms)
        if status == "unbounded":
            rows, offsets = np.concatenate([rows, last]), np.append(h / norms, 1.0)
            point = _lp.maximize(last[0], rows, offsets).point
            value = np.inf
        return torch.from_numpy(point[:-1].copy()).to(self.H.device), float(value)

    def is_empty(self) -> bool:
        """Whether no ball of radius −TOL max |h_i|/‖H_i‖ fits."""
        return self.chebyshev()[1] < -TOL * self._size()

    def _size(self) -> float:
        norms = self.H.norm(dim=1)
        ratio = torch.where(norms > 0, self.h.abs() / torch.where(norms > 0, norms, torch.ones_like(norms)), 0.0)
        return float(ratio.max()) or 1.0

    def bounding_box(self) -> Box:
        """The smallest box around P.

        Raises:
            ValueError: if P is empty or unbounded (the message names a direction).
        """
        H, h = self._arrays()
        ends = []
        for sign in (-1.0, 1.0):
            for axis in range(self.dim):
                status, value, *_ = _lp.maximize(sign * np.eye(self.dim)[axis], H, h)
                if status != "optimal":
                    got = "an empty one" if status == "infeasible" else f"one unbounded along {sign:+.0f}·e_{axis}"
                    raise _require.fail("Polytope.bounding_box", "a bounded, non-empty polytope", got)
                ends.append(sign * value)
        low, high = torch.tensor(ends, dtype=torch.float64, device=self.H.device).split(self.dim)
        return Box(torch.minimum(low, high), torch.maximum(low, high))

    def is_bounded(self) -> bool:
        """Whether every coordinate has a finite range (an empty set is bounded)."""
        H, h = self._arrays()
        directions = np.concatenate([np.eye(self.dim), -np.eye(self.dim)])
        return all(_lp.maximize(n, H, h).status != "unbounded" for n in directions)

    def contains_polytope(self, other: Polytope) -> Containment:
        """P′ ⊆ P: margin min_i (h_i − max_{P′} H_i x) and the worst point of P′, to solver tolerance.

        An empty P′ is contained with margin inf; an unbounded direction gives −inf. Their witness is NaN.
        """
        _require.last_dim("Polytope.contains_polytope", "H", other.H, self.dim)
        H, h = other._arrays()
        margin, witness = np.inf, np.full(self.dim, np.nan)
        for row, offset in zip(*self._arrays(), strict=True):
            _, value, point, _ = _lp.maximize(row, H, h)
            if offset - value < margin:
                margin, witness = offset - value, point
        return Containment(self.h.new_tensor(margin), torch.from_numpy(witness.copy()).to(self.H.device))

    def reduce(self) -> Polytope:
        """The same set without rows that others imply (to TOL), nor rows H_i = 0 that hold. An empty one is returned as is."""
        if self.is_empty():
            return self
        H, h = self._arrays()
        norms = np.linalg.norm(H, axis=1)
        kept = np.flatnonzero(norms > 0).tolist()
        for i in list(kept):
            others = [j for j in kept if j != i]
            relaxed = np.append(h[others], h[i] + norms[i])
            status, value, *_ = _lp.maximize(H[i], np.concatenate([H[others], H[i : i + 1]]), relaxed)
            if status == "optimal" and value <= h[i] + TOL * norms[i] * self._size() and others:
                kept = others
        return Polytope(self.H[kept], self.h[kept])

    # ------------------------------------------------------------------- by vertices
    def _affine_span(self) -> tuple[_lp.Array, _lp.Array]:
        """A point and an orthonormal basis (d, r) of the affine span, r < d if rows force equality (to TOL)."""
        center, radius = self.chebyshev()
        if radius < -TOL * self._size():
            raise _require.fail("Polytope", "a non-empty polytope", f"inscribed radius {radius:.3e}")
        H, h = self._arrays()
        if radius > TOL * self._size():
            return center.cpu().numpy(), np.eye(self.dim)
        norms = np.linalg.norm(H, axis=1)
        stuck = [
            row / n
            for row, offset, n in zip(H, h, norms, strict=True)
            if n > 0 and offset + _lp.maximize(-row, H, h).value <= 10 * TOL * self._size() * n
        ]
        _, s, Vh = np.linalg.svd(np.array(stuck), full_matrices=True)
        rank = int((s > 1e-9 * s[0]).sum())
        return center.cpu().numpy(), Vh[rank:].T

    def vertices(self) -> Tensor:
        """All vertices, (v, d); flat polytopes are treated in their affine span.

        Raises:
            ValueError: if P is empty or unbounded.
        """
        self.bounding_box()
        center, basis = self._affine_span()
        H, h = self._arrays()
        if basis.shape[1] == 0:
            return torch.from_numpy(center[None].copy()).to(self.H.device)
        inner = Polytope(torch.from_numpy(H @ basis), torch.from_numpy(h - H @ center))
        lengths = inner.H.norm(dim=1)
        kept = lengths > TOL * self.H.norm(dim=1).cpu()
        inner = Polytope(inner.H[kept], inner.h[kept])
        if basis.shape[1] == 1:
            box = inner.bounding_box()
            points = torch.stack([box.lower, box.upper]).numpy()
        else:
            start = inner.chebyshev()[0].numpy()
            faces = torch.cat([inner.H, -inner.h.unsqueeze(1)], dim=1).numpy()
            found = HalfspaceIntersection(faces, start).intersections
            points = found[_hull(found).vertices]
        return torch.from_numpy(center + points @ basis.T).to(self.H.device)

    def image(self, matrix: Tensor, offset: Tensor) -> Polytope:
        """{Mx + o : x ∈ P} for M (e, d), o (e,), of a bounded P: the hull of the moved vertices."""
        return convex_hull(self.vertices() @ matrix.mT + offset)

    def project(self, dims: list[int]) -> Polytope:
        """The shadow of a bounded P on the given coordinates."""
        return convex_hull(self.vertices()[:, dims])

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform points of a bounded P (in its affine span where it is flat), by a triangulation: (count, d)."""
        corners = self.vertices()
        center, basis = _span(corners.cpu().numpy())
        if basis.shape[1] == 0:
            return corners[:1].expand(count, -1).clone()
        flat = (corners.cpu().numpy() - center) @ basis
        cells = np.array([[int(flat.argmin()), int(flat.argmax())]]) if flat.shape[1] == 1 else Delaunay(flat).simplices
        edges = flat[cells[:, 1:]] - flat[cells[:, :1]]
        volume = torch.from_numpy(np.abs(np.linalg.det(edges)))
        cell = torch.multinomial(volume, count, replacement=True, generator=generator)
        gaps = -torch.rand(count, cells.shape[1], dtype=torch.float64, generator=generator).log()
        weights = (gaps / gaps.sum(-1, keepdim=True)).to(corners.device)
        return torch.einsum("nv,nvd->nd", weights, corners[torch.from_numpy(cells).long()[cell]])


def _hull(points: _lp.Array) -> ConvexHull:
    try:
        return ConvexHull(points)
    except QhullError as error:
        raise _require.fail("convex_hull", "points that Qhull can enclose", str(error).split("\n")[0]) from error


def _span(points: _lp.Array) -> tuple[_lp.Array, _lp.Array]:
    """Mean and orthonormal basis (d, r) of the affine span of points (n, d), rank to 1e-12 of the largest extent."""
    center = points.mean(0)
    _, s, Vh = np.linalg.svd(points - center, full_matrices=True)
    scale = max(float(s[0]), 1e-12 * float(np.abs(points).max()))
    return center, Vh[: int((s > 1e-12 * scale).sum())].T


def convex_hull(points: Tensor) -> Polytope:
    """The convex hull of points (n, d), any n ≥ 1 and d ≥ 1, with unit normals.

    Offsets are raised until every point satisfies its row as computed, so that the hull contains the points exactly. Points in
    a subspace (to 1e-12) give a flat polytope: two opposite rows per missing dimension.
    """
    points = _require.finite("convex_hull", "points", points)
    if points.ndim != 2:
        raise _require.fail("convex_hull", "points of shape (n, d)", f"shape {tuple(points.shape)}")
    array = points.detach().cpu().numpy()
    center, basis = _span(array)
    normal = np.linalg.svd(basis, full_matrices=True)[0][:, basis.shape[1] :] if basis.size else np.eye(array.shape[1])
    inner = (array - center) @ basis
    if basis.shape[1] == 0:
        rows = np.zeros((0, array.shape[1]))
    elif basis.shape[1] == 1:
        rows = np.concatenate([basis.T, -basis.T])
    else:
        rows = np.unique(_hull(inner).equations[:, :-1].round(14), axis=0) @ basis.T
    H = torch.from_numpy(np.concatenate([rows, normal.T, -normal.T])).to(points.device)
    return Polytope(H, (points @ H.mT).amax(0))
