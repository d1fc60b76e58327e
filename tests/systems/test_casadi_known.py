"""Known parts written in CasADi: values and derivatives are CasADi's, and every reader of known parts takes them."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import seeds
from xmpsc_cases import PENDULUM, ensemble_pendulum, pendulum_ensemble

from gpsafe.certify import judge
from gpsafe.systems.casadi_known import OPERATIONS, casadi_known
from gpsafe.tube import EnsembleTube

pytest.importorskip("casadi")
pytest.importorskip("numba")

import casadi as ca

from gpsafe.planning.mpc import _sweeps
from gpsafe.planning.mpc._jets import evaluate
from gpsafe.planning.mpc._read import tape_of
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.planning.mpc.reference import IpoptReference


def function(make, kind=ca.SX):
    x, u = kind.sym("x", 2), kind.sym("u", 1)
    return ca.Function("p", [x, u], [make(x, u)])


def pendulum(x, u):
    """The plant of `xmpsc_cases`, written again."""
    speed = x[1] + 0.1 * (10.0 * ca.sin(x[0]) + (u[0] - 0.1 * x[1]) / 0.33)
    return ca.vertcat(x[0] + 0.1 * speed, speed)


def everything(x, u):
    a, b, c = x[0], x[1], u[0]
    first = ca.sqrt(1 + a**2) + ca.if_else(a < b, ca.tanh(a), ca.atan2(b, 1 + a * a)) + ca.fabs(b) * ca.fmin(a, b)
    first = first + ca.erf(a) + ca.asinh(b) + ca.hypot(a, 2.0) + ca.sign(a) * ca.exp(-b * b) + ca.cosh(0.3 * c)
    second = (
        ca.log1p(c * c) + ca.expm1(0.2 * a) + (2 + ca.sin(b)) ** (0.5 + 0.1 * ca.cos(a)) + 2 * c + 1 / (2 + ca.cos(a))
    )
    second = second + ca.if_else(ca.logic_and(a > 0, ca.logic_not(b > 0.5)), c, -c) + ca.fmax(a, 0.3) - ca.fmod(a, 0.7)
    return ca.vertcat(first, second)


CASES = {
    "pendulum": function(pendulum),
    "pendulum, matrices": function(pendulum, ca.MX),
    "everything": function(everything),
    "zero entry": function(lambda x, u: ca.vertcat(ca.SX(1, 1), x[0])),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=seeds())
def test_values_and_derivatives_are_casadis(name, seed):
    source = CASES[name]
    known = pickle.loads(pickle.dumps(casadi_known(source)))
    z = 1.5 * np.random.default_rng(seed).normal(size=3)
    x, u = ca.SX.sym("x", 2), ca.SX.sym("u", 1)
    both = ca.vertcat(x, u)
    value = source.expand()(x, u)
    rows = [value, ca.jacobian(value, both), ca.vertcat(*(ca.hessian(value[i], both)[0] for i in range(2)))]
    expected = [np.array(part) for part in ca.Function("all", [both], rows)(z)]
    batch = torch.from_numpy(np.stack([z, z]))[:, None]
    assert np.allclose(known(batch[..., :2], batch[..., 2:]).numpy(), expected[0].T, atol=1e-13)
    tape = tape_of(known, 2, 1)
    assert tape is not None
    for found, right in zip(evaluate(tape, z), expected, strict=True):
        assert np.abs(found.reshape(right.shape) - right).max() <= 1e-11 * (1 + np.abs(right).max())


def test_certificates_with_a_part_in_casadi_are_those_with_the_same_part_in_torch():
    problem, point = ensemble_pendulum(), np.array([math.pi + 0.6, 0.6])
    pair = [
        replace(problem, model=EnsembleTube.paper(replace(pendulum_ensemble(), prior=prior)))
        for prior in (casadi_known(CASES["pendulum"]), PENDULUM)
    ]
    mine, torchs = (_sweeps.sweep_of(one, point) for one in pair)
    assert mine.kind == "compiled"
    for found, right in zip(mine(0.3 * np.ones((4, 1))), torchs(0.3 * np.ones((4, 1))), strict=True):
        assert np.abs(found - right).max() <= 1e-11 * (1 + np.abs(right).max())
    x0, learned = torch.from_numpy(point), torch.ones(1, dtype=torch.float64)
    for proposer in (CondensedSQP(), IpoptReference.repaired()):
        found, right = (judge(one, x0, learned, proposer.propose(one.lent(), x0, learned)) for one in pair)
        assert found.certified == right.certified
        assert not found.certified or found.distance == pytest.approx(right.distance, abs=1e-6)


def test_every_operation_has_casadis_name():
    assert all(hasattr(ca, f"OP_{name.upper()}") for name in OPERATIONS)


def test_what_is_no_known_part_is_refused():
    x, u, more = ca.SX.sym("x", 2), ca.SX.sym("u", 1), ca.SX.sym("v", 1)
    with pytest.raises(ValueError, match="a casadi Function"):
        casadi_known(lambda x, u: x)
    for wrong in (
        ca.Function("p", [x, u, more], [x]),
        ca.Function("p", [x, u], [x[0]]),
        ca.Function("p", [x, u], [x, x]),
    ):
        with pytest.raises(ValueError, match="size of x"):
            casadi_known(wrong)
    with pytest.raises(ValueError, match="scalar operations"):
        casadi_known(
            ca.Function("p", [x, u], [ca.vertcat(*[ca.interpolant("s", "linear", [[0, 1]], [0, 1])(x[0])] * 2)])
        )
