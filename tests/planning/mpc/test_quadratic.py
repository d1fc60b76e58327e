"""The quadratic program of a step: optimality of what it returns, and the solver `daqp` beside it."""

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import seeds

pytest.importorskip("numba")

from gpsafe.planning.mpc._quadratic import solve


def drawn(seed: int) -> tuple[np.ndarray, ...]:
    """Programs as the search writes them: hardly convex, a dear slack, rows of all sizes, some of them nearly the same."""
    rng = np.random.default_rng(seed)
    p, rows = int(rng.integers(1, 12)), int(rng.integers(1, 120))
    n = p + 1
    hessian = np.diag([2.0, *np.full(p - 1, 1e-6), 1.0])
    for _ in range(int(rng.integers(0, 5))):
        bend = rng.normal(size=p) * 10.0 ** rng.uniform(-2, 2)
        hessian[:p, :p] += np.outer(bend, bend)
    gradient = np.array([rng.normal(), *np.zeros(p - 1), 10.0 ** rng.uniform(1, 5)])
    matrix = rng.normal(size=(rows, n)) * 10.0 ** rng.uniform(-1, 1.5)
    if seed % 2:
        matrix[rows // 2 :] = matrix[: rows - rows // 2] * (1 + 1e-9 * rng.normal(size=(rows - rows // 2, n)))
    matrix[:, p] = -1.0
    lower, upper = -rng.uniform(0, 2, n), rng.uniform(0, 2, n)
    lower[p], upper[p] = 0.0, 1e30
    if seed % 3 == 0:
        lower[0] = upper[0] = 0.0
    return hessian, gradient, matrix, rng.normal(size=rows) - rng.uniform(0, 3), lower, upper


@settings(max_examples=60, deadline=None)
@given(seed=seeds())
def test_solution_is_feasible_and_the_gradient_of_the_lagrangian_vanishes(seed):
    """KKT: rows and bounds hold; multipliers are ≥ 0, none on a row with room; what the bounds must push points outward."""
    hessian, gradient, matrix, bound, lower, upper = drawn(seed)
    x, multipliers = np.full(len(gradient), np.nan), np.full(len(bound), np.nan)
    assert solve(hessian, gradient, np.ascontiguousarray(matrix.T), bound, lower, upper, x, multipliers)
    size = 1 + np.abs(matrix).max()
    assert (lower <= x).all() and (x <= upper).all() and (matrix @ x <= bound + 1e-11 * size).all()
    assert (multipliers >= 0).all() and np.abs(multipliers * (matrix @ x - bound)).max() <= 1e-9 * (
        1 + multipliers.max()
    )
    push = hessian @ x + gradient + matrix.T @ multipliers
    push[(x <= lower + 1e-12) & (push > 0) | (x >= upper - 1e-12) & (push < 0)] = 0.0
    assert np.abs(push).max() <= 1e-8 * (1 + np.abs(gradient).max() + (np.abs(matrix).T @ multipliers).max())


def test_no_worse_than_another_solver():
    daqp = pytest.importorskip("daqp")
    for seed in range(40):
        hessian, gradient, matrix, bound, lower, upper = drawn(seed)
        x, multipliers = np.empty(len(gradient)), np.empty(len(bound))
        assert solve(hessian, gradient, np.ascontiguousarray(matrix.T), bound, lower, upper, x, multipliers)
        ends = np.concatenate([upper, bound]), np.concatenate([lower, np.full(len(bound), -1e30)])
        other, _, flag, _ = daqp.solve(hessian, gradient, matrix, *ends, None, primal_tol=1e-11, eps_prox=0.0)
        value, theirs = (0.5 * y @ hessian @ y + gradient @ y for y in (x, other))
        assert flag < 1 or value <= theirs + 1e-9 * (1 + abs(theirs))


def test_programs_without_a_solution_are_refused():
    one, two = np.ones(1), np.eye(2)
    x, multipliers = np.empty(2), np.empty(2)
    wide = np.full(2, 10.0)
    opposed = np.array([[1.0, -1.0], [0.0, 0.0]]), np.array([-1.0, -1.0])  # x ≤ −1 and x ≥ 1
    assert not solve(two, np.zeros(2), *opposed, -wide, wide, x, multipliers)
    for hessian in (np.diag([1.0, -1.0]), np.diag([1.0, np.nan])):
        assert not solve(hessian, np.zeros(2), two, np.ones(2), -wide, wide, x, multipliers)
    assert not solve(two, np.zeros(2), np.array([[np.nan], [1.0]]), -one, -wide, wide, x, multipliers[:1])
