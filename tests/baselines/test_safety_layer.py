"""The safety layer against the exact projection, on data of a linear plant, and the published limits."""

import cvxpy as cp
import numpy as np
from baseline_cases import small
from hypothesis import given, settings
from strategies import seeds

from gpsafe.baselines import SafetyLayer
from gpsafe.baselines.safety_layer import corrected_action
from gpsafe.systems import SafeCartPole, SimplePendulum


def projection(a: np.ndarray, c: np.ndarray, g: np.ndarray, slack: float) -> np.ndarray:
    """argmin ‖d − a‖² subject to c + g d ≤ −slack."""
    d = cp.Variable(len(a))
    cp.Problem(cp.Minimize(cp.sum_squares(d - a)), [c + g @ d <= -slack]).solve(solver=cp.CLARABEL)
    return np.asarray(d.value)


@settings(max_examples=20)
@given(seed=seeds())
def test_with_one_active_constraint_it_is_the_exact_projection(seed):
    random = np.random.default_rng(seed)
    a, g = random.normal(size=2), random.normal(size=(3, 2))
    g *= random.uniform(0.3, 3.0, (3, 1)) / np.linalg.norm(g, axis=-1, keepdims=True)
    slack, c = 0.1, random.uniform(-3, -2, 3) - np.maximum(g @ a, 0)
    c[0] = 0.5 - g[0] @ a  # violated by 0.5
    found = corrected_action(a[None], c[None], g[None], slack)[0]
    if (c + g @ found <= -slack + 1e-6).all():
        np.testing.assert_allclose(found, projection(a, c, g, slack), atol=1e-5)
    assert c[0] + g[0] @ found <= -slack + 1e-6


@given(seed=seeds())
def test_an_action_within_all_limits_is_left_alone(seed):
    random = np.random.default_rng(seed)
    a, g = random.normal(size=(8, 2)), random.normal(size=(8, 3, 2))
    c = -np.abs(np.einsum("nmu,nu->nm", g, a)) - 0.2
    np.testing.assert_array_equal(corrected_action(a, c, g, 0.1), a)


def test_control_with_two_active_constraints_it_is_not_the_projection():
    a, g, c = np.array([1.0, 1.0]), np.eye(2), np.array([-0.5, -0.4])
    found = corrected_action(a[None], c[None], g[None], 0.0)[0]
    assert (c + g @ found > 0.1).any()  # one of them is left violated
    np.testing.assert_allclose(projection(a, c, g, 0.0), [0.5, 0.4], atol=1e-5)


def test_on_a_linear_plant_the_slopes_are_learned_and_the_wall_holds():
    """x⁺ = x + 0.2 u, |x| ≤ 1: n x⁺ − 1 = n x − 1 + 0.2 n u, which the model can say exactly."""
    layer = small("safety-layer", "corrected", pretraining=60, pretraining_steps=2560, slack=0.02)
    assert isinstance(layer, SafetyLayer)
    layer.learn(60)
    rows = np.linspace(-1.5, 1.5, 50)[:, None]
    normals, offsets = layer.limits()
    np.testing.assert_allclose(layer.slopes(rows), np.broadcast_to(0.2 * normals, (50, 2, 1)), atol=0.05)
    np.testing.assert_allclose(offsets, [1.0, 1.0])
    layer._parts["policy"].layers[-1][1][:] = 3.0  # an agent that pushes against the wall
    layer.learn(3)
    trained = layer.totals["train"]
    assert trained["violations"] == 0 and trained["steps"] == 360
    assert all(row["corrected"] > 0.1 for row in layer.logger.rows[60:])
    bare = small("safety-layer", "corrected", pretraining=0)  # control: untaught, it lets the agent through
    bare._parts["policy"].layers[-1][1][:] = 3.0
    bare._parts["layer"].flat[:] = 0.0
    assert bare.learn(3).totals["train"]["violations"] > 0


def test_the_published_limits_are_not_the_plants():
    about = {"pretraining": 1}
    pole, mended = (SafetyLayer(SafeCartPole(), preset=p, **about).limits() for p in ("published", "corrected"))
    angle = pole[0][:, 2] != 0
    np.testing.assert_allclose(pole[1][angle], 1.57)
    np.testing.assert_allclose(mended[1][angle], np.radians(12.0))
    assert np.array_equal(pole[1][~angle], mended[1][~angle])
    pendulum = SafetyLayer(SimplePendulum(), preset="published", **about).limits()[0]
    assert len(pendulum) == 2 and not pendulum[:, 1].any()
    assert len(SafetyLayer(SimplePendulum(), **about).limits()[0]) == 4


def test_the_slack_is_kept_from_the_wall():
    for slack in (0.0, 0.3):
        layer = small("safety-layer", "corrected", pretraining=0, slack=slack)
        net = layer._parts["layer"]
        net.flat[:] = 0.0
        net.layers[-1][1][:, 0, 0] = 0.2 * layer.limits()[0][:, 0]  # the true slopes
        x = np.full((1, 1), 0.9)
        u = layer._applied(x, np.ones((1, 1)))
        np.testing.assert_allclose(x + 0.2 * u, 1.0 - slack, atol=1e-6)
