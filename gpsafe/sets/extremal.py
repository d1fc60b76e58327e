"""Extremal ellipsoids by semidefinite programs; what the solver proposes is rescaled until the claim holds.

Not imported by ``gpsafe.sets`` itself, because cvxpy takes seconds to load.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.sets import _hull
from gpsafe.sets.ellipsoid import Ellipsoid
from gpsafe.sets.polytope import Polytope


def _solve(problem: cp.Problem, where: str) -> None:
    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.SolverError as error:
        raise _require.fail(where, "a solution of the semidefinite program", str(error)) from error
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise _require.fail(where, "a solvable semidefinite program", problem.status)


def inscribed_ellipsoid(polytope: Polytope) -> Ellipsoid:
    """An ellipsoid in P of maximum volume (to solver tolerance); containment holds as computed from the returned factor.

    max log det L over ‖L H_i‖ + H_i c ≤ h_i (Boyd & Vandenberghe, §8.4.2), after scaling the rows; then L is shrunk by the
    largest factor that satisfies every row.

    Raises:
        ValueError: if P is empty, flat or unbounded, for then no such ellipsoid exists.
    """
    where = "inscribed_ellipsoid"
    box = polytope.bounding_box()
    start, radius = polytope.chebyshev()
    if radius <= 0:
        raise _require.fail(where, "a polytope with interior", f"inscribed radius {radius:.3e}")
    scale = box.radius.clamp_min(radius)
    inner = polytope.preimage(torch.diag(scale), start)  # coordinates of order one around an interior point
    norms = inner.H.norm(dim=1)
    keep = norms > 0
    H, h = (inner.H[keep] / norms[keep, None]).cpu().numpy(), (inner.h[keep] / norms[keep]).cpu().numpy()
    factor, center = cp.Variable((polytope.dim, polytope.dim), PSD=True), cp.Variable(polytope.dim)
    limits = [cp.norm(factor @ row) + row @ center <= offset for row, offset in zip(H, h, strict=True)]
    _solve(cp.Problem(cp.Maximize(cp.log_det(factor)), limits), where)
    found = torch.as_tensor(np.asarray(factor.value), device=box.lower.device)
    middle = start + scale * torch.as_tensor(np.asarray(center.value), device=box.lower.device)
    proposal = Ellipsoid(middle, scale.unsqueeze(-1) * found)
    reach = (polytope.H @ proposal.factor).norm(dim=-1)
    room = polytope.h - polytope.H @ middle
    if bool((room < 0).any()):
        raise _require.fail(where, "a centre inside the polytope", f"violation {float(-room.min()):.3e}")
    ratio = torch.where(reach > 0, room / torch.where(reach > 0, reach, torch.ones_like(reach)), torch.inf)
    return Ellipsoid(middle, proposal.factor * min(1.0, float(ratio.min()) * (1 - 1e-14)))


def enclosing_ellipsoid(points: Tensor) -> Ellipsoid:
    """An ellipsoid around points (n, d) of minimum volume in their affine span (to solver tolerance).

    max log det A over ‖A p_i + b‖ ≤ 1 in whitened coordinates; then the factor A⁻¹ is scaled by the largest gauge of a point,
    so that all are inside up to the rounding of the gauge. Points in a subspace give a flat ellipsoid, one point a point.
    """
    where = "enclosing_ellipsoid"
    points = _require.finite(where, "points", points)
    if points.ndim != 2:
        raise _require.fail(where, "points of shape (n, d)", f"shape {tuple(points.shape)}")
    array = points.detach().cpu().numpy()
    center, basis, exponent = _hull.span(array)
    rank = basis.shape[1]
    if rank == 0:
        return Ellipsoid.point(points[0])
    flat = np.ldexp(array - center, [-e for e in exponent]) @ basis
    mean = flat.mean(0)
    root = np.linalg.cholesky(np.atleast_2d((flat - mean).T @ (flat - mean) / len(flat)))
    white = np.linalg.solve(root, (flat - mean).T).T
    A, b = cp.Variable((rank, rank), PSD=True), cp.Variable(rank)
    inside: list[Any] = [cp.norm(A @ p + b) <= 1 for p in white]
    _solve(cp.Problem(cp.Maximize(cp.log_det(A)), inside), where)
    axes = root @ np.linalg.inv(np.asarray(A.value))  # of the ellipsoid in the coordinates of `flat`
    middle = mean - axes @ np.asarray(b.value)
    gauge = float(np.linalg.norm(np.linalg.solve(axes, (flat - middle).T), axis=0).max())
    if not np.isfinite(gauge):
        raise _require.fail(where, "a regular ellipsoid", f"a point of gauge {gauge}")
    axes = np.ldexp(basis @ axes * gauge * (1 + 1e-14), np.array(exponent)[:, None])
    middle = center + np.ldexp(basis @ middle, exponent)
    return Ellipsoid(torch.from_numpy(middle).to(points.device), torch.from_numpy(axes).to(points.device))


def nearest_in_polytope(polytope: Polytope, x: Tensor) -> Tensor:
    """The point of P closest to x (d,), by a quadratic program: inside to solver tolerance times the distance.

    Raises:
        ValueError: if P is empty.
    """
    _require.shape("nearest_in_polytope", "x", x, (polytope.dim,))
    if bool(polytope.contains(x)):
        return x
    where = "nearest_in_polytope"
    if polytope.is_empty():
        raise _require.fail(where, "a non-empty polytope", "an empty one")
    norms = polytope.H.norm(dim=1)
    keep = norms > 0
    H, room = polytope.H[keep] / norms[keep, None], (polytope.h - polytope.H @ x)[keep] / norms[keep]
    scale = float(-room.min())  # x is that far outside at least
    step = cp.Variable(polytope.dim)
    inside: list[Any] = [H.cpu().numpy() @ step <= (room / scale).cpu().numpy()]
    _solve(cp.Problem(cp.Minimize(cp.sum_squares(step)), inside), where)
    return x + scale * torch.as_tensor(np.asarray(step.value), device=x.device)
