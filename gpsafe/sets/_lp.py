"""Small linear programs for polytopes, by HiGHS; every answer is one of optimal, unbounded, infeasible, else an error.

HiGHS works with absolute tolerances and drops coefficients below 1e-9. So rows, objective and variables are scaled first:
rows and objective to a largest entry of 1, variables to the size of the data.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from gpsafe import _require

Array = NDArray[np.float64]
Status = Literal["optimal", "unbounded", "infeasible"]
PRECISE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


class Answer(NamedTuple):
    """Value (±inf if there is none), maximiser (NaN likewise), and multipliers y ≥ 0 with Hᵀy ≈ objective (NaN likewise)."""

    status: Status
    value: float
    point: Array
    multipliers: Array


def maximize(objective: Array, H: Array, h: Array) -> Answer:
    """max objective·x over Hx ≤ h, to about 1e-10 of the data's size; 1e-7 where HiGHS only answers at its own tolerances.

    Raises:
        ValueError: if HiGHS gives no answer; a failure is never read as one.
    """
    lengths, goal = np.abs(H).max(axis=1), float(np.abs(objective).max())
    nothing = np.full(H.shape[1], np.nan), np.full(H.shape[0], np.nan)
    if (h[lengths == 0] < 0).any():
        return Answer("infeasible", -np.inf, *nothing)
    kept = np.flatnonzero(lengths > 0)
    goal, lengths = goal or 1.0, lengths[kept]
    ratios = h[kept] / lengths
    size = float(np.abs(ratios).max(initial=0.0)) or 1.0
    rows, room = H[kept] / lengths[:, None], ratios / size
    # Presolve may say "infeasible or unbounded"; without it HiGHS tells which. Strict tolerances may end without an answer.
    for options in (PRECISE, {**PRECISE, "presolve": False}, {}, {"presolve": False}):
        result = linprog(-objective / goal, A_ub=rows, b_ub=room, bounds=(None, None), method="highs", options=options)
        if result.status == 0:
            multipliers = np.zeros(H.shape[0])
            multipliers[kept] = goal * np.maximum(-np.asarray(result.ineqlin.marginals), 0.0) / lengths
            return Answer("optimal", float(-result.fun) * goal * size, size * np.asarray(result.x), multipliers)
        if result.status in (2, 3) and "presolve" in options:
            return Answer(*("infeasible", -np.inf) if result.status == 2 else ("unbounded", np.inf), *nothing)
    raise _require.fail("Polytope", "an answer of the linear program solver", result.message)
