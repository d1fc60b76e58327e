"""What a step of the condensed SQP costs beside its sweep and its quadratic program, compiled: see
:mod:`gpsafe.planning.mpc.fast`.

The matrices have a few hundred entries, so that NumPy's calls, twenty a step, would take longer than the sweep.
"""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._numba import njit

NONE = 1e30  # no bound


@njit(cache=True, fastmath={"reassoc"})
def excess(rows, jacobian):
    """The largest row; +inf if a row or an entry of the Jacobian is not finite."""
    worst, total = -math.inf, 0.0
    for r in range(rows.shape[0]):
        worst = max(worst, rows[r])
        total += 0.0 * rows[r]
        for c in range(jacobian.shape[1]):
            total += 0.0 * jacobian[r, c]
    return worst if total == 0.0 else math.inf


@njit(cache=True)
def distance(inputs, learned, weight):
    """f: (u_0 − u_L)ᵀ weight (u_0 − u_L) for inputs (T·nu,)."""
    total = 0.0
    for i in range(learned.shape[0]):
        for j in range(learned.shape[0]):
            total += (inputs[i] - learned[i]) * weight[i, j] * (inputs[j] - learned[j])
    return total


@njit(cache=True)
def merit(cost, excess, rho):
    """f + ρs + ½s² of a plan with slack s."""
    violation = max(excess, 0.0)
    return cost + rho * violation + 0.5 * violation**2


@njit(cache=True)
def program(
    rows, jacobian, inputs, learned, weight, lowest, highest, reach, scale, fixed, bend, rho,
    hessian, gradient, columns, bound, lower, upper, chosen,
):  # fmt: skip
    """Fills the quadratic program of one step, in the form of `_quadratic.solve`, and says how many rows it has.

    Args:
        rows, jacobian: (R,), (R, p).
        inputs, lowest, highest: the plan and its bounds, (p,).
        learned, weight: of f.
        reach, scale: each entry moves by at most reach · scale (p,).
        fixed, bend: curvature of f and the slack (p + 1, p + 1), and of the rows (p, p).
        rho: price of the slack, the last variable.
        hessian, gradient, columns, bound: outputs, (p + 1, p + 1), (p + 1,), (p + 1, R), (R,).
        lower, upper: outputs (p + 1,).
        chosen: output (R,): the rows that can become active within reach.
    """
    p, nu = inputs.shape[0], learned.shape[0]
    for i in range(p):
        for j in range(p):
            hessian[i, j] = fixed[i, j] + bend[i, j]
        hessian[i, p] = fixed[i, p]
        hessian[p, i] = fixed[p, i]
        gradient[i] = 0.0
        lower[i] = max(-reach * scale[i], lowest[i] - inputs[i])
        upper[i] = min(reach * scale[i], highest[i] - inputs[i])
    hessian[p, p] = fixed[p, p]
    for i in range(nu):
        for j in range(nu):
            gradient[i] += 2.0 * weight[i, j] * (inputs[j] - learned[j])
    gradient[p] = rho
    lower[p], upper[p] = 0.0, NONE
    count = 0
    for r in range(rows.shape[0]):
        most = rows[r]
        for c in range(p):
            most += abs(jacobian[r, c]) * reach * scale[c]
        if most > 0.0:
            for c in range(p):
                columns[c, count] = jacobian[r, c]
            columns[p, count] = -1.0
            bound[count] = -rows[r]
            chosen[count] = r
            count += 1
    return count


@njit(cache=True)
def outcome(found, multipliers, bend, inputs, lowest, highest, trial):
    """The plan (p,) that a solved program leads to; the slack, dᵀBd, Σ multipliers."""
    p = inputs.shape[0]
    bent, total = 0.0, 0.0
    for i in range(p):
        trial[i] = min(max(inputs[i] + found[i], lowest[i]), highest[i])
        for j in range(p):
            bent += found[i] * bend[i, j] * found[j]
    for r in range(multipliers.shape[0]):
        total += multipliers[r]
    return max(found[p], 0.0), bent, total


@njit(cache=True)
def curvature(bend, step, before, after, multipliers, proximal):
    """Powell's damped BFGS update of B (p, p), in place: positive semidefinite whatever the true curvature is.

    The change of the Lagrangian's gradient over `step` (p,) is (after − before)ᵀ multipliers, of two Jacobians (R, p).
    """
    p = step.shape[0]
    change, along = np.zeros(p), np.zeros(p)
    for r in range(multipliers.shape[0]):
        if multipliers[r] != 0.0:
            for c in range(p):
                change[c] += multipliers[r] * (after[r, c] - before[r, c])
    length, product = 0.0, 0.0
    for i in range(p):
        if not math.isfinite(change[i]):
            return
        for j in range(p):
            along[i] += bend[i, j] * step[j]
        along[i] += proximal * step[i]
        length += step[i] * along[i]
        product += step[i] * change[i]
    if product < 0.2 * length:
        mix = 0.8 * length / (length - product)
        product = 0.0
        for i in range(p):
            change[i] = mix * change[i] + (1.0 - mix) * along[i]
            product += step[i] * change[i]
    if min(length, product) < 1e-30:
        return
    for i in range(p):
        for j in range(p):
            bend[i, j] += change[i] * change[j] / product - along[i] * along[j] / length
