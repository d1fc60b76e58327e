"""Proposes polytopes that are invariant under a linear closed loop with a disturbance.

What comes of it is rounded; `gpsafe.certify.certify_invariance` judges it, for the model itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.spatial import HalfspaceIntersection, QhullError
from torch import Tensor

from gpsafe import _require
from gpsafe.sets import _hull
from gpsafe.sets.polytope import Polytope, Supported

EXACT = 5  # coordinates up to which programs are solved exactly; in eight of them, a single set takes minutes


def invariant_polytope(
    closed: Tensor,
    offset: Tensor,
    region: Polytope,
    disturbance: Supported,
    *,
    margin: float = 1e-6,
    iterations: int = 200,
) -> Polytope:
    """Proposes a set invariant under x⁺ = Fx + o + w: rows of {x : Fx + o + w ∈ S} are added to S until none cuts.

    That is the usual iteration to the largest invariant subset of the region (Kolmanovsky & Gilbert 1998), up to `margin`. Its
    rows are rounded; what it returns is for `certify_invariance` to judge.

    Args:
        closed, offset: F (nx, nx) and o (nx,).
        region: where states are admitted and κ(x) ∈ U; bounded.
        disturbance: set of w.
        margin: by which unit rows are sought stricter, in units of x.
        iterations: at most.

    Raises:
        ValueError: if nothing is left, or rows still cut after all iterations.
    """
    where = "invariant_polytope"
    closed = _require.shape(where, "closed", _require.real(where, "closed", closed), (region.dim, region.dim))
    offset = _require.shape(where, "offset", _require.real(where, "offset", offset), (region.dim,))
    if not _require.number(where, "margin", margin) > 0:
        raise _require.fail(where, "margin > 0", margin)
    _require.count(where, "iterations", iterations)
    S = Polytope(region.H, region.h - margin * region.H.norm(dim=1))
    S = S.reduce() if S.dim <= EXACT else S
    fresh = S
    for _ in range(iterations):
        outline = _outline(S)
        if outline is None and _empty(S):
            raise _require.fail(where, "a non-empty invariant set", "an empty one")
        before = Polytope(fresh.H, fresh.h - margin * fresh.H.norm(dim=1)).pontryagin_difference(disturbance)
        before = before.preimage(closed, offset)
        norms = before.H.norm(dim=1)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        largest = torch.finfo(torch.float64).max  # of rows that F takes to almost 0
        H, h = before.H / norms.unsqueeze(1), (before.h / norms).clamp(-largest, largest)
        if outline is None:
            cuts = (S.support(H) if S.dim <= EXACT else _heights(S, H)) > h
        else:
            S, corners = outline
            cuts = (corners @ H.mT).amax(0) > h
        if not bool(cuts.any()):
            if S.dim > EXACT:
                return _without_needless(S)
            return S if outline is not None else S.reduce()
        fresh = Polytope(H[cuts], h[cuts])
        S = S.intersect(fresh)
    raise _require.fail(where, f"convergence within {iterations} iterations", "rows that still cut")


def _heights(S: Polytope, H: Tensor) -> Tensor:
    """max n·x over S for rows n (k, d) by floating-point programs; inf where there is none. In many coordinates, where exact
    ones take minutes each; what comes of them is a proposal as everything here."""
    rows, offsets = S.H.cpu().numpy(), S.h.cpu().numpy()
    found = [linprog(-n, rows, offsets, bounds=(None, None)) for n in H.cpu().numpy()]
    return torch.tensor([-f.fun if f.status == 0 else math.inf for f in found], dtype=S.H.dtype, device=S.H.device)


def _empty(S: Polytope) -> bool:
    if S.dim <= EXACT:
        return S.is_empty()
    return linprog([0.0] * S.dim, S.H.cpu().numpy(), S.h.cpu().numpy(), bounds=(None, None)).status == 2


def _without_needless(S: Polytope) -> Polytope:
    """S without the rows that the others imply, one after another; what is dropped is implied to rounding."""
    kept = torch.ones(S.rows, dtype=torch.bool, device=S.H.device)
    for i in range(S.rows):
        kept[i] = False
        if not bool(kept.any()) or not float(_heights(Polytope(S.H[kept], S.h[kept]), S.H[i : i + 1])) <= float(S.h[i]):
            kept[i] = True
    return Polytope(S.H[kept], S.h[kept])


def _outline(S: Polytope) -> tuple[Polytope, Tensor] | None:
    """S by the rows that bound it, and its vertices (v, d), to rounding: exact programs take a thousand times as long.

    None where qhull would not be quick (many coordinates) or sure (a thin, empty or unbounded S).
    """
    if not 2 <= S.dim <= EXACT:
        return None
    H, h = S.H.cpu().numpy(), S.h.cpu().numpy()
    found = _hull.roughly_deepest(H, h)
    if found is None or not found[0] > 1e-6 * (1.0 + np.abs(found[1]).max()):
        return None
    try:
        inside = HalfspaceIntersection(np.column_stack([H, -h]), found[1])
    except QhullError:
        return None
    corners = inside.intersections
    if not np.isfinite(corners).all():
        return None
    kept = torch.from_numpy(np.sort(inside.dual_vertices)).long().to(S.H.device)
    return Polytope(S.H[kept], S.h[kept]), torch.from_numpy(corners).to(S.H)
