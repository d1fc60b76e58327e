"""Small linear programs for polytopes, by HiGHS; every answer is one of optimal, unbounded, infeasible, else an error."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from gpsafe import _require

Array = NDArray[np.float64]
Status = Literal["optimal", "unbounded", "infeasible"]


def maximize(objective: Array, H: Array, h: Array) -> tuple[Status, float, Array]:
    """max objective·x over Hx ≤ h: status, value (±inf if none), maximiser (NaN if none).

    Raises:
        ValueError: if HiGHS gives no answer; a failure is never read as one.
    """
    # Presolve may say "infeasible or unbounded"; without it HiGHS tells which.
    for options in ({}, {"presolve": False}):
        result = linprog(-objective, A_ub=H, b_ub=h, bounds=(None, None), method="highs", options=options)
        if result.status == 0:
            return "optimal", float(-result.fun), np.asarray(result.x)
        if result.status in (2, 3) and options:
            nothing = np.full(H.shape[1], np.nan)
            return ("infeasible", -np.inf, nothing) if result.status == 2 else ("unbounded", np.inf, nothing)
    raise _require.fail("Polytope", "an answer of the linear program solver", result.message)
