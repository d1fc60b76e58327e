"""From step functions, CasADi functions, differential equations and environments to plants that learners take."""

import math

import gymnasium
import numpy as np
import pytest
import torch

import gpsafe.systems.envs  # noqa: F401 (registers)
from gpsafe.linalg import vector
from gpsafe.sets import Box
from gpsafe.systems.adapt import KnownFunction, episode, from_casadi, from_numpy, from_ode, plant
from gpsafe.systems.base import System, step
from gpsafe.systems.task import Task

DT = 0.05
LIMITS = {"states": ([-3.0, -3.0], [3.0, 3.0]), "inputs": ([-1.0], [1.0]), "safe": ([-2.0, -math.inf], [2.0, math.inf])}


def van_der_pol(x, u):
    return torch.stack([x[..., 1], (1 - x[..., 0] ** 2) * x[..., 1] - x[..., 0] + u[..., 0]], -1)


def euler_numpy(x, u):
    """The same, one state at a time."""
    return x + DT * np.array([x[1], (1 - x[0] ** 2) * x[1] - x[0] + u[0]])


def euler_vectorized(x, u):
    return x + DT * np.stack([x[:, 1], (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0] + u[:, 0]], -1)


def euler_casadi():
    casadi = pytest.importorskip("casadi")
    x, u = casadi.SX.sym("x", 2), casadi.SX.sym("u", 1)
    return casadi.Function("f", [x, u], [x + DT * casadi.vertcat(x[1], (1 - x[0] ** 2) * x[1] - x[0] + u)])


def points(*lead):
    z = 2 * torch.randn(*lead, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return z[..., :2], z[..., 2:]


FORMS = {
    "numpy": lambda: from_numpy(euler_numpy),
    "vectorized": lambda: from_numpy(euler_vectorized, vectorized=True),
    "casadi": lambda: from_casadi(euler_casadi()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)], ids=str)
def test_step_functions_agree_with_the_same_in_torch(form, lead):
    x, u = points(*lead)
    expected = from_ode(van_der_pol, dt=DT, method="euler")(x, u)
    assert torch.allclose(FORMS[form]()(x, u), expected, rtol=0, atol=1e-14)


def test_runge_kutta_has_order_four_and_euler_one():
    """x' = -x: errors of one unit of time against exp(-1), at h and h/2."""
    x, u = torch.ones(1, 1).double(), torch.zeros(1, 1).double()

    def error(method, n):
        return abs(float(from_ode(lambda x, u: -x, dt=1.0, substeps=n, method=method)(x, u)) - math.exp(-1))

    assert error("rk4", 4) / error("rk4", 8) == pytest.approx(16, rel=0.15)
    assert error("euler", 64) / error("euler", 128) == pytest.approx(2, rel=0.05)


def test_a_plant_is_a_system_with_the_task_that_was_stated():
    made = plant(from_ode(van_der_pol, dt=DT), x0=[0.5, 0.0], horizon=30, noise_std=0.01, budget=0.1, **LIMITS)
    assert isinstance(made, System) and made.name == "plant"
    named = plant(from_ode(van_der_pol, dt=DT), x0=[0.5, 0.0], horizon=30, name="van der Pol", **LIMITS)
    assert named.name == "van der Pol"
    task = Task.of(made)
    assert (task.horizon, task.budget, task.noise_std.tolist()) == (30, 0.1, [0.01, 0.01])
    x = torch.tensor([[2.1, 0.0], [-2.1, 0.0], [0.0, 99.0]]).double()
    assert made.cost(x).tolist() == [1.0, 1.0, 0.0]
    assert float(made.reward(x[0], vector(0.0))) == 0.0
    assert torch.equal(step(made, x, torch.zeros(3, 1).double(), 0 * x), made.mean(x, torch.zeros(3, 1).double()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dynamics": lambda x, u: x[..., 0]}, "float64 of shape"),
        ({"dynamics": lambda x, u: x - x.mean(0)}, "each row of a batch for itself"),
        ({"dynamics": lambda x, u: x / 0}, "finite next states"),
        ({"dynamics": lambda x, u: x.float()}, "float32"),
        ({"dynamics": lambda x, u: x @ torch.eye(3).double()}, "dynamics"),
        ({"dynamics": from_numpy(lambda x, u: x[:1])}, "next states of shape"),
        ({"safe": None}, "either safe or cost, got neither"),
        ({"safe": ([-math.inf] * 2, [math.inf] * 2)}, "a finite limit in safe"),
        ({"states": [1.0]}, "states as a Box or a pair"),
        ({"inputs": ([1.0], [-1.0])}, "inputs with lower <= upper"),
        ({"x0": [9.0, 0.0]}, "initial_state inside state_box"),
        ({"noise_std": -1.0}, "noise_std"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(change, match):
    given = {"dynamics": from_ode(van_der_pol, dt=DT), "x0": [0.5, 0.0], "horizon": 3, **LIMITS, **change}
    with pytest.raises(ValueError, match=match):
        plant(given.pop("dynamics"), **given)


def test_a_wrong_bound_of_second_derivatives_is_found():
    """p = x² u: second derivatives 2u, 2x, on |x|, |u| ≤ 1."""

    def p(x, u):
        return x.square() * u

    region, right = Box(vector(-1.0, -1.0), vector(1.0, 1.0)), torch.tensor([[[2.0, 2.0], [2.0, 0.0]]]).double()
    known = KnownFunction(p, right, region)
    assert torch.equal(known(vector(2.0), vector(3.0)), vector(12.0))
    for wrong in (0.9 * right, right * torch.tensor([[1.0, 0.5], [1.0, 1.0]]).double()):
        with pytest.raises(ValueError, match="at a drawn point"):
            KnownFunction(p, wrong, region)
    with pytest.raises(ValueError, match="shape"):
        KnownFunction(p, right[0], region)


def test_an_episode_of_an_environment_is_what_a_learner_is_told():
    env = gymnasium.make("gpsafe/DoubleIntegrator-v0", noise_std=vector(0.0, 0.0), horizon=6)
    plant_of = env.unwrapped.system
    states, inputs = episode(env, lambda x: plant_of.input_box.upper + 1.0, horizon=4)
    assert states.shape == (5, 2) and inputs.shape == (4, 1)
    assert torch.equal(inputs, plant_of.input_box.upper.expand(4, 1))  # clipped: what was applied is told
    assert torch.allclose(states[1:], plant_of.mean(states[:-1], inputs), rtol=0, atol=1e-15)
    longer, _ = episode(env, lambda x: torch.zeros(1).double(), horizon=99)
    assert len(longer) == 7  # the environment ends it


def test_an_action_that_an_environment_would_clip_in_silence_is_refused():
    """9 was written down where 2 had been applied, and told as what the policy did."""
    env = gymnasium.make("Pendulum-v1")
    states, inputs = episode(env, lambda x: vector(2.0), horizon=3, seed=0)
    assert states.shape == (4, 3) and inputs.flatten().tolist() == [2.0] * 3
    for wrong in (vector(9.0), vector(math.nan)):
        with pytest.raises(ValueError, match="episode: expected actions within"):
            episode(env, lambda x, wrong=wrong: wrong, horizon=3, seed=0)


def test_the_state_may_be_read_from_the_observation():
    env = gymnasium.make("gpsafe/Pendulum-v0", observation="trig")
    states, _ = episode(
        env, lambda x: torch.zeros(1).double(), horizon=2, state=lambda o, info: [math.atan2(o[1], o[0]), o[2]]
    )
    assert states.shape == (3, 2)
