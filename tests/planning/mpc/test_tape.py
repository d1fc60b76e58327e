"""Known parts as tapes: compiled values and derivatives are torch's, for every known part and for users' functions."""

import copy
import importlib
import inspect
import math
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from xmpsc_cases import ensemble_pendulum, pendulum_data, pendulum_ensemble

import gpsafe.systems
from gpsafe.certify import judge
from gpsafe.models import Ensemble, Training
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.tube import EnsembleTube
from tests.systems import _claims as claims

pytest.importorskip("numba")

from gpsafe.planning.mpc import _read, _sweeps
from gpsafe.planning.mpc._jets import evaluate
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.systems import _tape, _trace

WIDE = replace(SafeCartPole(), cart=0.8, pole=0.08, length=0.4)
# Layers draw from the global generator: seeded, the part is the same in every process, and there is a plan to find.
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(10)
    LAYERS = torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)
NETWORK = torch.nn.Sequential(*LAYERS).double().requires_grad_(False)


def written_in_place(x, u):
    y = x.clone()
    y[..., 0] = x[..., 0] + 0.1 * torch.tanh(x[..., 1]) * u[..., 0]
    y[..., 1] += torch.where(x[..., 0] > 0.3, x[..., 0].square(), x[..., 1].abs())
    return y


def mixed(x, u):
    a, b = x.unbind(-1)
    first = torch.exp(-a.square()) / (1.0 + b**2) + torch.sqrt(1.0 + a**2) ** 3 - torch.sigmoid(b) * u[..., 0]
    second = (
        torch.atan(b) + torch.log1p(a**2) + torch.minimum(a, 0.5 * b).clamp(-0.7, 0.9) + torch.expm1(0.3 * u).sum(-1)
    )
    return torch.cat([first.unsqueeze(-1), second[..., None]], dim=-1)


def products(x, u):
    A = torch.tensor([[1.0, 0.1], [-0.2, 0.9]], dtype=torch.float64)
    z = torch.cat([x, u], dim=-1)
    turned = (A @ x.unsqueeze(-1)).squeeze(-1) + torch.einsum("ij,...j->...i", A, torch.sin(x))
    return turned + torch.nn.functional.softplus(z[..., 1:]) + z.mean(-1, keepdim=True) - torch.relu(z[..., :2] - 0.2)


USERS = {
    "in place": (written_in_place, 2),
    "mixed": (mixed, 2),
    "products": (products, 2),
    "network": (lambda x, u: NETWORK(torch.cat([x, u], dim=-1)), 2),
    "plant": (WIDE.mean, 4),
    "constant": (lambda x, u: torch.ones_like(x), 2),
    "remainder": (lambda x, u: torch.remainder(x + math.pi, 2 * math.pi) - math.pi + 0 * u, 2),
}
CASES = {name: (lambda make=make: _sized(*make())) for name, make in claims.PRIORS.items()}
CASES |= {name: (lambda pair=pair: (*pair, 1)) for name, pair in USERS.items()}


def _sized(known, box, nx):
    return known, nx, box.dim - nx


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=1, deadline=None)
@given(seed=seeds())
def test_value_jacobian_and_hessian_are_torchs(name, seed):
    known, nx, nu = CASES[name]()
    tape = _read.tape_of(known, nx, nu)
    assert tape is not None
    z = 1.5 * torch.randn(nx + nu, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    point = lambda z: known(z[None, :nx], z[None, nx:])[0]  # noqa: E731
    jacobian = torch.func.jacrev(point)
    expected = point(z), jacobian(z), torch.func.jacfwd(jacobian)(z)
    for found, value in zip(evaluate(tape, z.numpy()), expected, strict=True):
        assert np.abs(found - value.numpy()).max() <= 1e-12 * (1.0 + float(value.abs().max()))


def test_every_known_part_of_the_systems_is_among_the_cases():
    found = set()
    of_users = {"adapt", "casadi_known", "derived"}
    for module in pkgutil.iter_modules(gpsafe.systems.__path__):
        if module.name in of_users:
            continue
        for _, kind in inspect.getmembers(importlib.import_module(f"gpsafe.systems.{module.name}"), inspect.isclass):
            protocol = getattr(kind, "_is_protocol", False)
            if hasattr(kind, "hessian_bound") and kind.__module__.startswith("gpsafe.systems") and not protocol:
                found.add(kind)
    assert found <= {type(make()[0]) for make in claims.PRIORS.values()}
    assert len(found) >= 5


def test_what_cannot_be_read_has_no_tape():
    flag = {"gain": 1.0}

    def branching(x, u):
        return x if float(x.sum()) > 0 else -x

    def through_numpy(x, u):
        return torch.from_numpy(np.sin(x.detach().numpy()))

    def sorted_states(x, u):
        return torch.sort(x, -1).values

    def changing(x, u):
        flag["gain"] += 1.0
        return flag["gain"] * x

    for known in (branching, through_numpy, sorted_states, changing):
        assert _read.tape_of(known, 2, 1) is None
    with pytest.raises(_tape.NotReadableError, match="sort"):
        _trace.read(sorted_states, 2, 1)
    with pytest.raises(_tape.NotReadableError, match="outputs"):
        _trace.read(lambda x, u: x[..., :1], 2, 1)


def test_weights_changed_in_place_are_read_anew():
    layer = torch.nn.Linear(3, 2).double().requires_grad_(False)

    def known(x, u):
        return layer(torch.cat([x, u], dim=-1))

    before = _read.tape_of(known, 2, 1)
    layer.weight.mul_(2.0)
    after = _read.tape_of(known, 2, 1)
    assert after is not before and after is not None
    z = np.array([0.3, -0.2, 0.5])
    assert np.allclose(evaluate(after, z)[1], layer.weight.numpy(), atol=1e-15)


def test_a_copy_has_the_same_tape_and_another_part_of_its_kind_has_not():
    known = SimplePendulum().prior()
    tape = _read.tape_of(known, 2, 1)
    assert tape is not None and _read.tape_of(copy.deepcopy(known), 2, 1) is tape
    assert _read.tape_of(SimplePendulum().prior(scale=0.800001), 2, 1) is not tape


def test_control_a_tape_of_another_function_does_not_agree():
    tape = _trace.read(SimplePendulum().prior(), 2, 1)
    assert _read.agrees(tape, SimplePendulum().prior(), 2, 1)
    assert not _read.agrees(tape, SimplePendulum().prior(scale=0.800001), 2, 1)


def rows_of(x, u):
    """Positive definite matrices (…, 2, 2) that depend on x."""
    a, b = x[..., 0], x[..., 1]
    first = torch.stack([2.5 + torch.cos(a), 0.4 * b.tanh()], -1)
    return torch.stack([first, torch.stack([0.3 * torch.sin(a * b), 1.5 + b.square()], -1)], -2)


def with_mask(x, u):
    y = x.clone()
    y[x > 0.2] = 0.7
    return y * x + u


OPERATIONS = {
    "cumsum": lambda x, u: torch.cumsum(x * x, -1) + u,
    "cumprod": lambda x, u: torch.cumprod(x, -1) * u,
    "prod": lambda x, u: x.prod(-1, keepdim=True) + x,
    "diff": lambda x, u: torch.cat([torch.diff(x.sin(), dim=-1), u * x[..., :1]], -1),
    "largest": lambda x, u: x.square().amax(-1, keepdim=True) + x * x.min(-1, keepdim=True).values + u,
    "extremes": lambda x, u: torch.fmax(x, x.flip(-1) * u) + torch.max(x, u.sin()) - torch.fmin(x, 0.3 * u),
    "norms": lambda x, u: x * torch.linalg.norm(x, dim=-1, keepdim=True) + x.norm(p=1, dim=-1, keepdim=True) * u,
    "largest entry": lambda x, u: x * torch.linalg.vector_norm(x, ord=math.inf, dim=-1, keepdim=True) + u,
    "angle": lambda x, u: torch.atan2(x, torch.stack([u[..., 0], -x[..., 0]], -1)),
    "hypot": lambda x, u: torch.hypot(x, u) + torch.atan2(x.sin(), x.cos()),
    "powers": lambda x, u: (1.5 + x.sin()) ** (u + 0.5) + 2.0**x + x.abs() ** 2.5,
    "logarithms": lambda x, u: torch.log2(1.5 + x**2) + torch.log10(2 + u**2) + torch.exp2(0.3 * x) + torch.logaddexp(x, u),
    "inverse functions": lambda x, u: torch.asinh(x) + torch.acosh(2 + u**2) + torch.atanh(0.5 * torch.tanh(x)),
    "erf": lambda x, u: torch.erf(x) + torch.special.erfc(u) * x,
    "activations": lambda x, u: torch.nn.functional.silu(x) + torch.nn.functional.gelu(u + x) + torch.nn.functional.elu(x),
    "leaky": lambda x, u: torch.nn.functional.leaky_relu(x, 0.1) * u + torch.nn.functional.hardtanh(x * u),
    "softmax": lambda x, u: torch.softmax(x * u, -1) + torch.logsumexp(x, -1, keepdim=True),
    "fractions": lambda x, u: torch.fmod(x, 0.7) * u + torch.trunc(3 * x) * x + torch.frac(x) + torch.floor(x) * u,
    "rounded quotient": lambda x, u: torch.div(x, 0.3, rounding_mode="trunc") * x + u,
    "lerp": lambda x, u: torch.lerp(x, x.square(), u) + torch.addcmul(x, x, u, value=0.5) + torch.addcdiv(x, u, 2 + x * x),
    "mask": with_mask,
    "heaviside": lambda x, u: torch.where(torch.logical_xor(x > 0, u > 0), x.square(), u * x) + x.masked_fill(x < 0.1, 0.4),
    "shapes": lambda x, u: torch.roll(x, 1, -1) * u + x.repeat_interleave(2, -1)[..., 1:3],
    "places": lambda x, u: x[..., [1, 0]] * u + torch.index_select(x, -1, torch.tensor([1, 1])) + x.take_along_dim(
        torch.zeros(1, 1, dtype=torch.int64).expand(x.shape[0], 1), -1),
    "solve": lambda x, u: torch.linalg.solve(rows_of(x, u), x.sin()),
    "inverse": lambda x, u: (torch.linalg.inv(rows_of(x, u)) @ (x * u)[..., None])[..., 0],
    "determinant": lambda x, u: x * torch.linalg.det(rows_of(x, u))[..., None] + u,
    "matrices": lambda x, u: (torch.diag_embed(x) @ rows_of(x, u) @ x[..., None])[..., 0] + torch.tril(rows_of(x, u)).sum(-1),
    "each row": lambda x, u: torch.func.vmap(lambda a, b: a * a.sum() + b)(x, u),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_read(name):
    """The tape is the function's, with its derivatives, on either side of every kink."""
    known = OPERATIONS[name]
    tape = _trace.read(known, 2, 1)
    assert _read.agrees(tape, known, 2, 1)
    point = lambda z: known(z[None, :2], z[None, 2:])[0]  # noqa: E731
    jacobian = torch.func.jacrev(point)
    for z in ([0.4, -0.7, 0.3], [-1.3, 0.6, -0.2], [0.9, 1.7, 1.1]):
        z = torch.tensor(z, dtype=torch.float64)
        expected = point(z), jacobian(z), torch.func.jacrev(jacobian)(z)
        for found, value in zip(evaluate(tape, z.numpy()), expected, strict=True):
            assert np.abs(found - value.numpy()).max() <= 1e-12 * (1.0 + float(value.abs().max()))


@settings(max_examples=5, deadline=None)
@given(seed=seeds(), length=st.integers(1, 30))
def test_random_programs(seed, length):
    """Sums, products, quotients and functions of what came before, over and over."""
    draw = np.random.default_rng(seed).integers(0, 1000, (length, 3))

    def known(x, u):
        parts = [*x.unbind(-1), u[..., 0]]
        for code, i, j in draw:
            a, b = parts[i % len(parts)], parts[j % len(parts)]
            parts.append(
                (a + b, a * b, torch.sin(a) - b, a / (1.5 + torch.cos(b)), torch.where(a < b, a, torch.tanh(b)))[
                    code % 5
                ]
            )
        return torch.stack([torch.tanh(parts[-1]), parts[-2]], dim=-1)

    tape = _trace.read(known, 2, 1)
    z = torch.tensor([0.4, -0.7, 0.2], dtype=torch.float64)
    point = lambda z: known(z[None, :2], z[None, 2:])[0]  # noqa: E731
    value, jacobian, hessian = evaluate(tape, z.numpy())
    expected = point(z), torch.func.jacrev(point)(z), torch.func.hessian(point)(z)
    for found, right in zip((value, jacobian, hessian), expected, strict=True):
        assert np.abs(found - right.numpy()).max() <= 1e-10 * (1.0 + float(right.abs().max()))


def with_prior(prior):
    problem = ensemble_pendulum(members=2, width=6)
    model = Ensemble.create(
        2, 1, generator=torch.Generator().manual_seed(1), members=2, hidden=(6, 6), prior=prior,
        training=Training(epochs=1, steps=300),
    )  # fmt: skip
    return replace(problem, model=EnsembleTube.paper(model.condition(pendulum_data(400))))


@pytest.mark.parametrize("prior", [SimplePendulum().prior(), SimplePendulum().mean, USERS["network"][0]])
def test_compiled_and_generic_plans_agree(prior, monkeypatch):
    problem = with_prior(prior)
    x0, learned = torch.tensor([math.pi + 0.6, 0.6], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    point, plan = x0.numpy(), 0.3 * np.ones((4, 1))
    rows, jacobian = _sweeps.compiled(problem, problem.model, point)(plan)
    generic, differences = _sweeps.general(problem, point)(plan)
    assert np.abs(rows - generic).max() <= 1e-10
    assert np.abs(jacobian - differences).max() <= 1e-6
    found = CondensedSQP().propose(problem, x0, learned)
    monkeypatch.setattr(_sweeps, "compiled", lambda *_: (_ for _ in ()).throw(ImportError))
    slow = CondensedSQP().propose(problem, x0, learned)
    one, other = (judge(problem, x0, learned, plan) for plan in (found, slow))
    assert one.certified == other.certified
    assert one.distance == pytest.approx(other.distance, abs=1e-6)


POLES = {
    "root of a square": lambda v: torch.sqrt(v**2),
    "reciprocal": lambda v: 1 / v,
    "logarithm": lambda v: torch.log(v.abs()),
    "arc at its end": lambda v: torch.acos(1 + v),
}


@pytest.mark.parametrize("name", POLES)
def test_a_known_part_without_derivative_where_a_search_begins_is_a_numeric_failure(name):
    """Friction as √v² at rest: no plan, said by a status."""

    def known(x, u):
        return torch.stack([x[..., 0] + 0.1 * x[..., 1], x[..., 1] + 0.1 * u[..., 0] - POLES[name](x[..., 1])], -1)

    problem = replace(ensemble_pendulum(), model=EnsembleTube.paper(replace(pendulum_ensemble(), prior=known)))
    x0 = torch.tensor([math.pi, 0.0], dtype=torch.float64)
    assert _sweeps.sweep_of(problem, x0.numpy()).kind == "compiled"
    assert CondensedSQP().propose(problem, x0, torch.ones(1, dtype=torch.float64)).status == "diverged"


def test_the_ensembles_prior_decides_nothing_but_the_tape():
    """Reading happens once per problem: the sweep of a problem with a stock prior is the compiled one."""
    problem = replace(
        ensemble_pendulum(), model=EnsembleTube.paper(replace(pendulum_ensemble(), prior=SimplePendulum().prior()))
    )
    assert _sweeps.sweep_of(problem, np.array([math.pi, 0.0])).kind == "compiled"
