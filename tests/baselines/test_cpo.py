"""CPO's closed form against a quadratically constrained program in cvxpy, degenerate cases, and the published form."""

import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.baselines.cpo import corrected_step, published_step


def problem(seed: int, kind: str = "plain"):
    """g, b, c, δ and H of a random small problem; kinds are degenerate in one way each."""
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 5))
    root = random.normal(size=(size, size))
    H, g, b = root @ root.T + 0.1 * np.eye(size), random.normal(size=size), random.normal(size=size)
    radius = 10 ** random.uniform(-3, 0)
    edge = math.sqrt(2 * radius * (b @ np.linalg.solve(H, b)))  # beyond ±edge the plane misses the ellipsoid
    c = edge * random.uniform(-1.6, 1.6)
    changes = {
        "plain": {},
        "tight": {"c": 0.0},
        "touching": {"c": edge},
        "no cost": {"b": np.zeros(size)},
        "no reward": {"g": np.zeros(size)},
        "conflict": {"g": b.copy()},
        "agreement": {"g": -b},
    }[kind]
    found = {"g": g, "b": b, "c": c, **changes}
    return found["g"], found["b"], float(found["c"]), radius, H


def optimum(g, b, c, radius, H) -> float:
    """max gᵀd subject to c + bᵀd ≤ 0, ½dᵀHd ≤ δ; −∞ if infeasible. In units in which the ellipsoid is the unit ball."""
    unit = math.sqrt(2 * radius) * np.linalg.inv(np.linalg.cholesky(H)).T
    d = cp.Variable(len(g))
    scale = max(np.linalg.norm(unit.T @ b), abs(c), 1e-12)
    constraints = [(unit.T @ b / scale) @ d + c / scale <= 0, cp.sum_squares(d) <= 1]
    program = cp.Problem(cp.Maximize((unit.T @ g) @ d), constraints)
    return float(program.solve(solver=cp.CLARABEL))


def solver(H):
    return lambda v: np.linalg.solve(H, v)


KINDS = ("plain", "tight", "touching", "no cost", "no reward", "conflict", "agreement")


@settings(max_examples=60)
@given(seed=seeds(), kind=st.sampled_from(KINDS))
def test_the_closed_form_is_the_optimum_or_the_best_recovery(seed, kind):
    g, b, c, radius, H = problem(seed, kind)
    step, case = corrected_step(g, b, c, radius, solver(H))
    s = b @ np.linalg.solve(H, b)
    size = 0.5 * step @ H @ step
    assert np.isfinite(step).all() and size <= radius * (1 + 1e-9)
    edge = math.sqrt(2 * radius * s)
    if c > edge * (1 + 1e-9):  # no step within the radius repairs it: the cost falls as far as it can
        assert case == "recovery" and math.isclose(b @ step, -edge, rel_tol=1e-9, abs_tol=1e-12)
        return
    if abs(c - edge) <= 1e-9 * edge:  # one point is feasible, and rounding decides on which side
        np.testing.assert_allclose(b @ step, -edge, rtol=1e-6)
        return
    assert c + b @ step <= 1e-9 * max(abs(c), edge)
    best, scale = optimum(g, b, c, radius, H), math.sqrt(2 * radius * (g @ np.linalg.solve(H, g)))
    assert abs(g @ step - best) <= 2e-5 * max(scale, 1e-9)


def test_all_cases_are_met_and_the_oracle_sees_infeasible_ones():
    met = {}
    for seed in range(200):
        g, b, c, radius, H = problem(seed)
        met.setdefault(corrected_step(g, b, c, radius, solver(H))[1], (g, b, c, radius, H))
    assert set(met) == {"free", "bounded", "recovery"}
    assert optimum(*met["recovery"]) == -math.inf


def test_control_a_longer_or_a_turned_step_is_no_optimum():
    g, b, c, radius, H = problem(3)
    c = 0.0
    step, best = corrected_step(g, b, c, radius, solver(H))[0], optimum(g, b, c, radius, H)
    assert 0.5 * (1.1 * step) @ H @ (1.1 * step) > radius
    assert g @ (0.9 * step) < best - 1e-4 * abs(best)


def signed(g, b, c, radius, H) -> np.ndarray:
    """The dual formulas with the sign that ascent needs: r = −gᵀH⁻¹b in all of them."""
    x, p = np.linalg.solve(H, g), np.linalg.solve(H, b)
    q, r, s = g @ x, -(g @ p), b @ p
    a, rest = q - r * r / s, 2 * radius - c * c / s
    low, high = (0.0, r / c), (r / c, math.inf)
    of_a, of_b = (low, high) if c < 0 else (high, low)
    clip = [max(of[0], min(of[1], v)) for of, v in ((of_a, math.sqrt(a / rest)), (of_b, math.sqrt(q / (2 * radius))))]
    with np.errstate(divide="ignore"):  # an empty set of λ_b ends at 0, where its value is −∞
        values = (
            -0.5 * (a / clip[0] + rest * clip[0]) - r * c / s,
            -0.5 * (q / np.float64(clip[1]) + 2 * radius * clip[1]),
        )
    lam = clip[0] if values[0] >= values[1] else clip[1]
    return (x - max(0.0, lam * c - r) / s * p) / lam


def test_the_published_step_has_the_sign_of_r_wrong_and_the_other_sign_makes_it_the_optimum():
    broken, compared = 0, 0
    for seed in range(300):
        g, b, c, radius, H = problem(seed)
        if len(g) < 2 or corrected_step(g, b, c, radius, solver(H))[1] != "bounded":
            continue
        compared += 1
        right, (step, _) = corrected_step(g, b, c, radius, solver(H))[0], published_step(g, b, c, radius, solver(H))
        np.testing.assert_allclose(signed(g, b, c, radius, H), right, rtol=1e-5, atol=1e-7 * np.abs(right).max())
        edge = math.sqrt(2 * radius * (b @ np.linalg.solve(H, b)))
        broken += c + b @ step > 1e-3 * edge
    assert compared > 60 and broken > 0.5 * compared


@given(seed=seeds())
def test_at_the_limit_the_published_step_ignores_the_constraint_where_it_matters(seed):
    g, b, _, radius, H = problem(seed, "tight")
    x = np.linalg.solve(H, g)
    step = published_step(g, b, 0.0, radius, solver(H))[0]
    if g @ np.linalg.solve(H, b) > 1e-3:  # the reward's step raises the cost
        np.testing.assert_allclose(step, math.sqrt(2 * radius / (g @ x)) * x, rtol=1e-4)
        assert b @ step > 0 >= b @ corrected_step(g, b, 0.0, radius, solver(H))[0] - 1e-9


@pytest.mark.parametrize("c", [-1.0, 0.5])
def test_the_published_step_agrees_where_no_constraint_enters_or_none_can_be_kept(c):
    for seed in range(60):
        g, b, _, radius, H = problem(seed)
        edge = math.sqrt(2 * radius * (b @ np.linalg.solve(H, b)))
        c_now = math.copysign(1.5 * edge, c)
        steps = [f(g, b, c_now, radius, solver(H)) for f in (corrected_step, published_step)]
        assert steps[0][1] == steps[1][1]
        np.testing.assert_allclose(steps[0][0], steps[1][0], rtol=1e-4)
