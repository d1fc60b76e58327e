"""The trust-region loop of the condensed SQP from one start, compiled as a whole: see :mod:`gpsafe.planning.mpc.fast`.

It asks for rows and Jacobians and knows nothing of where they come from: `drive` answers in compiled code, other sweeps from
Python.
"""

from __future__ import annotations

import math

import numpy as np

from gpsafe.planning.mpc._copies import copy, copy_rows
from gpsafe.planning.mpc._numba import njit
from gpsafe.planning.mpc._quadratic import solve
from gpsafe.planning.mpc._steps import curvature, distance, excess, merit, outcome, program

PENALTIES = (1e3, 1e5)  # ρ while no program is feasible: the second if the first finds no plan
FLOOR = 10.0  # ρ once a program is feasible: three times the multipliers' sum, at least this
PROXIMAL = 1e-6  # added to the curvature, so that the quadratic program has one solution
SAME = 1e-6  # two plans whose costs differ by less are one answer
CONVERGED = 2e-8  # predicted decrease of f + ρs
HOPELESS = 0.03  # stop if the linear model removes a smaller share of the violation within half an input range
LATER = 20  # iterations within which a start must promise a smaller violation than the best plan's
NEAR = 1e-2  # largest violation of a plan that may count as on its way to a known one
MERGED = 0.02  # half input ranges from the best plan within which one is on its way there
TOWARDS = 0.2  # the same if it promises no smaller cost: other optima lie as near
CLOSE = 1e-3  # largest violation of a plan whose cost tells where it leads
PATIENCE = 8.0  # steps like the next one, after which it must be cheaper than the best plan
AGREE = 0.05  # two starts whose least violations differ by a smaller share agree
SMALLER = 0.9  # share of a violation that may be left after `STALL` iterations
CORRECT = 0.25  # share of the predicted decrease below which a step gets its second-order correction

DIVERGED, OPTIMAL, FEASIBLE, INFEASIBLE, DOMINATED, BEATEN = range(6)
STATUS, ITERATIONS, PROGRAMS, CORRECTIONS, COST, EXCESS, LIMIT, STALL, TOLD = range(9)  # places in what is told


def descending(ask):
    """The loop for one way to fill rows: not a generator, since numba never lets go of what a compiled one was given."""

    def descend(
        asking, plan, rows, jacobian, multipliers, learned, weight, lowest, highest, scale, fixed, enough, prune, known, least,
        told,
    ):  # fmt: skip
        """Has `rows` (R,) and `jacobian` (R, T·nu) filled for `plan` (T, nu) by ask(asking, plan, rows, jacobian), again and
        again; ends with those of the last accepted plan in them.

        Args:
            asking: handed to `ask`.
            plan, rows, jacobian: see above; at first `plan` is the start.
            multipliers: output (R,), of the last program.
            learned, weight: of f.
            lowest, highest, scale: bounds of the plan and half its range, (T·nu,).
            fixed: curvature of f and the slack, (T·nu + 1, T·nu + 1).
            enough: largest row of a feasible plan.
            prune: whether to give up what is on its way to the best plan known (DOMINATED), or to nothing better: no smaller
                violation (DOMINATED), or so slowly to a smaller cost that the best one is `PATIENCE` steps away (BEATEN).
            known, least: that plan (T, nu) and its largest row, +inf if there is none.
            told: (TOLD,), output but for `LIMIT`, the most iterations, which `ask` may lower, and `STALL`, those in
                which a violation above `CLOSE` must become `SMALLER`.
        """
        p, inputs, best, count = scale.shape[0], plan.reshape(-1), known.reshape(-1), rows.shape[0]
        program_room = (
            np.empty((p + 1, p + 1)), np.empty(p + 1), np.empty((p + 1, count)), np.empty(count), np.empty(p + 1),
            np.empty(p + 1), np.empty(count, np.int64), np.empty(count),
        )  # fmt: skip
        at, at_rows, at_jacobian = np.empty(p), np.empty(count), np.empty((count, p))
        found, second, trial, other = np.empty(p + 1), np.empty(p + 1), np.empty(p), np.empty(count)
        bend, moved, nothing, shifted = np.zeros((p, p)), np.empty(p), np.zeros(p), np.empty(count)
        to_rows, to_jacobian = np.empty(count), np.empty((count, p))
        told[:LIMIT], multipliers[:] = 0.0, 0.0
        for i in range(p):
            inputs[i] = min(max(inputs[i], lowest[i]), highest[i])
        ask(asking, plan, rows, jacobian)
        copy(at, inputs)
        copy(at_rows, rows)
        copy_rows(at_jacobian, jacobian)
        at_cost, at_excess = distance(inputs, learned, weight), excess(rows, jacobian)
        record = distance(best, learned, weight)
        status, reach, rho, iterations = DIVERGED, 1.0, PENALTIES[0], 0
        going, mark, since = math.isfinite(at_excess), at_excess, 0
        if going and at_excess <= enough and at_cost <= CONVERGED:
            status, going = OPTIMAL, False
        elif going:
            status = FEASIBLE  # until told otherwise: stopped by a limit
        while going and iterations < told[LIMIT] and reach > 1e-12:
            iterations += 1
            told[PROGRAMS] += 1
            if not _step(at_rows, at_jacobian, at, learned, weight, lowest, highest, reach, scale, fixed, bend, rho,
                         program_room, found, multipliers):  # fmt: skip
                bend[:] = 0.0
                reach *= 0.25
                continue
            slack, bent, total = outcome(found, multipliers, bend, at, lowest, highest, trial)
            if slack > enough and rho < PENALTIES[0]:
                rho = PENALTIES[0]
                continue
            promised = distance(trial, learned, weight)
            before = merit(at_cost, at_excess, rho)
            infeasible = at_excess > enough
            if prune and math.isfinite(least):
                if least > enough:
                    far = (reach >= 1.0 and (at_excess <= 2 * least or iterations >= 4)) or iterations >= LATER
                    given_up = far and slack >= (1 - AGREE) * least
                else:
                    apart, gain = _apart(at, best, scale), max(at_cost - promised, 0.0)
                    towards = apart <= TOWARDS and promised > record - SAME
                    given_up = at_excess <= NEAR and (apart <= MERGED or towards)
                    beaten = iterations > 2 and at_excess <= CLOSE and at_cost - record > PATIENCE * gain
                    if beaten and not given_up:
                        status = BEATEN
                        break
                if given_up:
                    status = DOMINATED
                    break
            expected = before - (promised + rho * slack + 0.5 * slack**2 + 0.5 * bent)
            hopeless = infeasible and at_excess - slack <= HOPELESS * at_excess * min(reach, 1.0)
            if hopeless or expected <= CONVERGED:
                if infeasible and rho < PENALTIES[1]:
                    bend[:] = 0.0
                    rho = PENALTIES[1]
                    continue
                status = INFEASIBLE if infeasible else OPTIMAL
                break
            copy(inputs, trial)
            ask(asking, plan, rows, jacobian)
            to_cost, to_excess = promised, excess(rows, jacobian)
            ratio = (before - merit(to_cost, to_excess, rho)) / expected
            copy(moved, found)
            curvature(bend, moved, at_jacobian, jacobian, multipliers, PROXIMAL)
            if ratio < CORRECT and math.isfinite(to_excess):
                for r in range(count):
                    shifted[r] = rows[r]
                    for i in range(p):
                        shifted[r] -= at_jacobian[r, i] * moved[i]
                told[PROGRAMS] += 1
                if _step(shifted, at_jacobian, at, learned, weight, lowest, highest, reach, scale, fixed, bend, rho,
                         program_room, second, other):  # fmt: skip
                    told[CORRECTIONS] += 1
                    outcome(second, other, bend, at, lowest, highest, inputs)
                    copy(to_rows, rows)
                    copy_rows(to_jacobian, jacobian)
                    ask(asking, plan, rows, jacobian)
                    corrected, excessive = distance(inputs, learned, weight), excess(rows, jacobian)
                    if merit(corrected, excessive, rho) < merit(to_cost, to_excess, rho):
                        copy(moved, second)
                        to_cost, to_excess = corrected, excessive
                        ratio = (before - merit(to_cost, to_excess, rho)) / expected
                    else:
                        copy(inputs, trial)
                        copy(rows, to_rows)
                        copy_rows(jacobian, to_jacobian)
            if slack <= enough:
                rho = min(PENALTIES[1], max(FLOOR, 3 * total))
            length = _apart(moved, nothing, scale)
            if ratio > 1e-4:
                copy(at, inputs)
                copy(at_rows, rows)
                copy_rows(at_jacobian, jacobian)
                at_cost, at_excess = to_cost, to_excess
            if at_excess <= max(SMALLER * mark, CLOSE):
                mark, since = at_excess, iterations
            elif iterations - since >= told[STALL]:
                status = INFEASIBLE
                break
            if ratio > 0.75 and length > 0.8 * reach:
                reach = 3 * length
            elif not ratio >= CORRECT:
                reach = 0.3 * length
        if status == FEASIBLE and at_excess > enough:
            status = INFEASIBLE
        copy(inputs, at)
        copy(rows, at_rows)
        copy_rows(jacobian, at_jacobian)
        told[STATUS], told[ITERATIONS], told[COST], told[EXCESS] = status, iterations, at_cost, at_excess

    return descend


@njit(cache=True)
def _apart(one, other, scale):
    """The largest difference of two plans (p,), in half ranges."""
    most = 0.0
    for i in range(scale.shape[0]):
        most = max(most, abs(one[i] - other[i]) / scale[i])
    return most


@njit(cache=True)
def _step(
    rows, jacobian, inputs, learned, weight, lowest, highest, reach, scale, fixed, bend, rho, room, found, multipliers
):  # fmt: skip
    """Solves the program of one step; False if that fails."""
    hessian, gradient, columns, bound, lower, upper, chosen, dual = room
    count = program(
        rows, jacobian, inputs, learned, weight, lowest, highest, reach, scale, fixed, bend, rho,
        hessian, gradient, columns, bound, lower, upper, chosen,
    )  # fmt: skip
    multipliers[:] = 0.0
    if not solve(hessian, gradient, columns, bound[:count], lower, upper, found, dual[:count]):
        return False
    for k in range(count):
        multipliers[chosen[k]] = dual[k]
    return True
