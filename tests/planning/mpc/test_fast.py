"""The condensed SQP: its sweep against finite differences, autograd and the judge's tubes, its plans against a grid."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from strategies import seeds
from xmpsc_cases import PENDULUM, double_integrator, ensemble_pendulum, gp_pendulum

from gpsafe.certify import CertificationProblem, judge
from gpsafe.cost.enclosure import jacobians
from gpsafe.models import Ensemble
from gpsafe.models.gp import identity_prior, zero_prior
from gpsafe.planning.mpc import _descent, _known, _steps, _sweeps
from gpsafe.planning.mpc.fast import PROXIMAL, STATUS, CondensedSQP, Work, _Point, _Search, shifted
from gpsafe.sets import Box, Polytope
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import EnsembleTube, LinearTube

pytest.importorskip("numba")


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def drawn_problem(
    seed: int, *, nx: int, nu: int, hidden: tuple[int, ...], steps: int, clamp: str, prior, members: int = 2, sure=False
) -> tuple:
    """Random networks with weights large enough to bend, random normalisation, sets without symmetry, gains per stage."""
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    made = Ensemble.create(nx, nu, generator=g, members=members, hidden=hidden, prior=prior)
    network = replace(
        made.network,
        weights=tuple(1.5 * w for w in made.network.weights),
        biases=tuple(0.3 * randn(*b.shape) for b in made.network.biases),
    )
    inputs = replace(made.inputs, offset=0.3 * randn(nx + nu), scale=0.5 + randn(nx + nu).abs())
    targets = replace(made.targets, offset=0.1 * randn(nx), scale=0.3 + 0.5 * randn(nx).abs())
    limits = torch.stack([torch.full((nx,), -8.0), torch.full((nx,), -1.0)]).double()
    ensemble = replace(made, network=network, inputs=inputs, targets=targets, log_var_limits=limits)
    problem = CertificationProblem(
        EnsembleTube.paper(ensemble, variance="clip" if clamp == "hard" else "trained"),
        Polytope(randn(4, nx), randn(4).abs() + 1.0),
        Polytope(torch.cat([torch.eye(nu), -torch.eye(nu)]).double(), torch.ones(2 * nu).double()),
        Polytope(randn(5, nx), randn(5).abs()),
        0.3 * randn(steps, nu, nx),
        steps,
        certainty=0.1 + randn(steps, nx).abs() if sure else None,
    )
    return problem, randn(nx), 0.7 * randn(steps, nu)


def autograd(
    problem: CertificationProblem, x0: torch.Tensor, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and Jacobian through torch, from the tubes the judge uses."""

    def rows(plan: torch.Tensor) -> torch.Tensor:
        margins = problem.margins(problem.tube(x0, plan))
        groups = (margins.state, margins.input, margins.terminal, margins.certainty)
        return -torch.cat([group.flatten(1) for group in groups], dim=1).flatten()

    return rows(inputs), torch.autograd.functional.jacobian(rows, inputs).flatten(1)


CASES = {
    "pendulum": {
        "nx": 2,
        "nu": 1,
        "hidden": (8, 8),
        "steps": 4,
        "clamp": "hard",
        "prior": identity_prior,
        "sure": True,
    },
    "one layer": {"nx": 3, "nu": 1, "hidden": (6,), "steps": 3, "clamp": "soft", "prior": zero_prior},
    "three layers, two inputs": {
        "nx": 2,
        "nu": 2,
        "hidden": (5, 4, 6),
        "steps": 3,
        "clamp": "soft",
        "prior": identity_prior,
    },
    "nine members": {
        "nx": 2,
        "nu": 1,
        "hidden": (3, 4),
        "steps": 2,
        "clamp": "soft",
        "prior": PENDULUM,
        "members": 9,
        "sure": True,
    },
    "linear": {"nx": 2, "nu": 1, "hidden": (), "steps": 2, "clamp": "hard", "prior": zero_prior},
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=2, deadline=None)
@given(seed=seeds())
def test_compiled_sweep_is_the_tube_and_its_derivative(name, seed):
    problem, x0, inputs = drawn_problem(seed, **CASES[name])
    rows, jacobian = _sweeps.compiled(problem, problem.model, x0.numpy())(inputs.numpy())
    expected, slopes = autograd(problem, x0, inputs)
    scale = 1.0 + float(slopes.abs().max())
    assert np.abs(rows - expected.numpy()).max() <= 1e-10 * (1.0 + float(expected.abs().max()))
    assert np.abs(jacobian - slopes.numpy()).max() <= 1e-7 * scale


@settings(max_examples=8, deadline=None)
@given(seed=seeds())
def test_compiled_sweep_against_finite_differences(seed):
    problem, x0, inputs = drawn_problem(seed, **(CASES["pendulum"] | {"clamp": "soft"}))
    _, jacobian = _sweeps.compiled(problem, problem.model, x0.numpy())(inputs.numpy())
    rows, differences = _sweeps.general(problem, x0.numpy())(inputs.numpy())
    assert np.abs(jacobian - differences).max() <= 1e-6 * (1.0 + np.abs(jacobian).max())
    assert np.isfinite(rows).all()


def test_control_a_wrong_curvature_is_caught():
    """The same comparison fails if the derivative of the closed loop is left out (weights changed between the two)."""
    problem, x0, inputs = drawn_problem(3, **CASES["pendulum"])
    other = drawn_problem(4, **CASES["pendulum"])[0]
    _, jacobian = _sweeps.compiled(problem, other.model, x0.numpy())(inputs.numpy())
    _, slopes = autograd(problem, x0, inputs)
    assert np.abs(jacobian - slopes.numpy()).max() > 1e-3


def branching(x, u):
    """No trace: a branch that depends on values."""
    return PENDULUM(x, u) if float(x.detach().abs().max()) < 1e6 else x


def leaving(x, u):
    """No gradient either."""
    return torch.from_numpy(PENDULUM(x.detach(), u.detach()).numpy())


class WithJacobian:
    """Known to torch by its own Jacobian alone."""

    def __call__(self, x, u):
        return leaving(x, u)

    def jacobian(self, x, u):
        return jacobians(PENDULUM, x.detach(), u.detach())


def test_a_known_part_without_a_tape_has_exact_derivatives_from_torch():
    problem = ensemble_pendulum()
    plan, point = 0.3 * np.cos(np.arange(4.0))[:, None], np.array([math.pi + 0.4, 0.3])
    found = {}
    for name, prior in {"tape": PENDULUM, "branch": branching}.items():
        model = EnsembleTube.paper(replace(problem.model.ensemble, prior=prior))
        found[name] = _sweeps.sweep_of(replace(problem, model=model), point)
    assert found["branch"].kind == "given"
    for value, right in zip(found["branch"](plan), found["tape"](plan), strict=True):
        assert np.abs(value - right).max() <= 1e-11 * (1 + np.abs(right).max())
    with torch.no_grad():
        assert np.isfinite(found["branch"](plan)[1]).all()


@settings(max_examples=5, deadline=None)
@given(seed=seeds())
def test_jets_of_torch_functions(seed):
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for known in (
        PENDULUM,
        lambda x, u: 2 * x + u,
        lambda x, u: torch.stack([x[..., 0] * u[..., 0], x[..., 1] ** 3], -1),
    ):
        point = lambda v, known=known: known(v[None, :2], v[None, 2:])[0]  # noqa: E731
        jacobian = torch.func.jacrev(point)
        expected = [torch.func.vmap(part)(z) for part in (point, jacobian, torch.func.jacrev(jacobian))]
        for value, right in zip(_known.jets(known, z, 2), expected, strict=True):
            assert torch.allclose(value, right, rtol=1e-12, atol=1e-12)


def test_control_a_derivative_that_leaves_torch_is_seen():
    """Half of the part without its gradient: nothing raises, and differences are taken."""

    def half(x, u):
        return branching(x, u) + 0.1 * torch.sin(x.detach())

    problem = ensemble_pendulum()
    model = EnsembleTube.paper(replace(problem.model.ensemble, prior=half))
    problem, point = replace(problem, model=model), np.array([math.pi + 0.4, 0.3])
    wrong = _sweeps.given(problem, model, point)
    assert not _sweeps._right(problem, wrong, _sweeps.general(problem, point))


def test_which_sweep_a_problem_takes():
    from xmpsc_cases import pendulum_ensemble

    problem = ensemble_pendulum()
    x0 = np.array([math.pi, 0.0])

    def with_prior(prior):
        return replace(problem, model=EnsembleTube.paper(replace(pendulum_ensemble(), prior=prior)))

    sound = replace(problem, model=EnsembleTube.sound(pendulum_ensemble(), steps=4, delta=0.1))
    kinds = {
        "compiled": (problem, with_prior(PENDULUM)),
        "given": (with_prior(branching),),
        "differences": (sound, with_prior(WithJacobian())),
    }
    for kind, cases in kinds.items():
        for case in cases:
            assert _sweeps.sweep_of(case, x0).kind == kind


def test_scaled_rows_are_hardness_times_row_and_offset():
    problem, x0, inputs = drawn_problem(5, **CASES["pendulum"])
    terminal = problem.terminal.rows + 2 * problem.certainty.numel()  # hardness does not count for these
    for build in (lambda *a: _sweeps.compiled(problem, problem.model, *a), lambda *a: _sweeps.general(problem, *a)):
        rows, jacobian = build(x0.numpy())(inputs.numpy())
        scaled, slopes = build(x0.numpy(), _sweeps.Scale(0.25, 10.0))(inputs.numpy())
        hard = np.full((problem.num_members, len(rows) // problem.num_members), 10.0)
        hard[:, -terminal:] = 1.0
        assert np.allclose(scaled, hard.ravel() * (rows + 0.25), rtol=1e-12, atol=1e-12)
        assert np.allclose(slopes, hard.ravel()[:, None] * jacobian, rtol=1e-6, atol=1e-6)
        sets = problem.states, problem.inputs, problem.terminal
        further = tuple(tuple(0.1 * place + 0.01 * np.arange(s.rows)) for place, s in enumerate(sets))
        scaled, _ = build(x0.numpy(), _sweeps.Scale(0.25, 10.0, further))(inputs.numpy())
        stages = [np.tile(part, count) for part, count in zip(further, (problem.steps, problem.steps, 1), strict=True)]
        more = np.concatenate([*stages, np.zeros(len(rows) // problem.num_members - sum(map(len, stages)))])
        assert np.allclose(
            scaled, hard.ravel() * (rows + 0.25 + np.tile(more, problem.num_members)), rtol=1e-12, atol=1e-12
        )


def test_rows_that_bind_nothing_change_no_plan():
    """A limit of 10⁶ that stands for none is rounded by 10⁻⁶; the other rows are not, and the plan is as near as without it."""
    problem, x0, learned = (
        ensemble_pendulum(),
        vector(2.545110134190523, -0.7477683655585103),
        vector(0.17762184143066406),
    )
    extra = Polytope(
        torch.cat([problem.states.H, torch.eye(2).double()]), torch.cat([problem.states.h, vector(1e6, 1e6)])
    )
    one, other = (CondensedSQP().propose(p, x0, learned) for p in (problem, replace(problem, states=extra)))
    assert (one.inputs[0] - learned).abs().max() > 0.1
    assert torch.equal(one.inputs, other.inputs)


def test_an_infeasible_answer_names_the_row_that_is_exceeded():
    """The reason is the judge's tightest row, for a state from which the terminal set is out of reach."""
    problem = ensemble_pendulum()
    x0, learned = vector(math.pi + 1.4, 4.0), vector(1.0)
    proposal = CondensedSQP().propose(problem, x0, learned)
    tightest = judge(problem, x0, learned, proposal).tightest
    assert proposal.status == "infeasible"
    where = f"{tightest.kind} row {tightest.row} of member {tightest.member} at stage {tightest.stage}"
    assert where in proposal.reason
    fine = CondensedSQP().propose(problem, vector(math.pi, 0.0), vector(0.1))
    assert fine.status == "optimal" and fine.reason == ""


STATES = [(math.pi, 0.0, 0.3), (math.pi + 0.75, 0.3, 1.0), (math.pi - 0.7, -0.8, -1.0), (math.pi + 0.5, 1.1, 1.0)]


@pytest.mark.parametrize("case", STATES)
def test_plans_are_certified_and_no_grid_plan_is_better(case):
    """T = 2: every plan of a fine grid that the judge's margins allow costs at least as much, up to the grid."""
    problem = ensemble_pendulum(steps=2)
    x0, learned = vector(*case[:2]), vector(case[2])
    proposal = CondensedSQP(exhaustive=True).propose(problem, x0, learned)
    certificate = judge(problem, x0, learned, proposal)
    axis = torch.linspace(-1, 1, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).unsqueeze(-1)
    margins = problem.margins(problem.tube(x0, grid))
    least = torch.stack([m.flatten(1).amin(1) for m in (margins.state, margins.input, margins.terminal)]).amin(0)
    best = torch.where(least >= 0, problem.distance(learned, grid[:, 0]), torch.inf).amin()
    assert certificate.certified == (proposal.slack <= 0)
    assert certificate.certified or not bool(torch.isfinite(best))
    assert certificate.distance <= float(best) + 1e-6 or not certificate.certified
    if proposal.status == "infeasible":
        assert proposal.slack <= float(-least.amax()) * 1.02  # a least-violating plan, to the early exit's share


def test_all_kinds_of_outcome_occur():
    problem = ensemble_pendulum()
    generator = torch.Generator().manual_seed(0)
    box = Box(vector(math.pi - 0.9, -2.0), vector(math.pi + 0.9, 2.0))
    states, learned = box.sample(30, generator), 2 * torch.rand(30, 1, dtype=torch.float64, generator=generator) - 1
    seen = set()
    for x0, u in zip(states, learned, strict=True):
        proposal = CondensedSQP().propose(problem, x0, u)
        certificate = judge(problem, x0, u, proposal)
        assert certificate.certified == (proposal.slack <= 0)
        seen.add((proposal.status, certificate.distance > 1e-7))
    assert {("optimal", False), ("optimal", True), ("infeasible", True)} <= seen


def test_linear_and_gaussian_process_tubes_behind_the_same_interface():
    problem = double_integrator()
    proposal = CondensedSQP().propose(problem, vector(0.3, 0.4), vector(1.0))
    assert judge(problem, vector(0.3, 0.4), vector(1.0), proposal).certified
    problem = gp_pendulum(steps=2)
    proposal = CondensedSQP(starts=1, iterations=4).propose(problem, vector(0.1, 0.0), vector(0.2))
    assert judge(problem, vector(0.1, 0.0), vector(0.2), proposal).certified == (proposal.slack <= 0)


def test_without_numba_the_plan_is_the_same(monkeypatch):
    def absent(*_):
        raise ImportError

    problem, x0, learned = ensemble_pendulum(), vector(math.pi + 0.6, 0.6), vector(1.0)
    expected = CondensedSQP().propose(problem, x0, learned)
    monkeypatch.setattr(_sweeps, "compiled", absent)
    found = CondensedSQP().propose(problem, x0, learned)
    assert found.status == expected.status == "optimal"
    assert float(problem.distance(learned, found.inputs[0])) == pytest.approx(
        float(problem.distance(learned, expected.inputs[0])), abs=1e-6
    )


def curved(bend: np.ndarray, d: np.ndarray, change: np.ndarray) -> np.ndarray:
    """`_steps.curvature` for a change of the gradient that two Jacobians of two rows show."""
    before = np.ones((2, len(d)))
    after = before + np.stack([0.5 * change, np.zeros(len(d))])
    updated = bend.copy()
    _steps.curvature(updated, d, before, after, np.array([2.0, 3.0]), PROXIMAL)
    return updated


@settings(max_examples=30, deadline=None)
@given(seed=seeds())
def test_curvature_stays_positive_semidefinite(seed):
    """Also for changes that show negative curvature, which the damping turns around."""
    rng = np.random.default_rng(seed)
    bend = np.zeros((4, 4))
    for _ in range(12):
        d, change = rng.normal(size=4) * 10.0 ** rng.uniform(-4, 1), rng.normal(size=4) * 10.0 ** rng.uniform(-3, 3)
        last, bend = bend, curved(bend, d, change)
        if d @ change >= 0.2 * d @ (last @ d + PROXIMAL * d):  # undamped: the secant equation
            assert np.allclose(bend @ d + PROXIMAL * d, change, rtol=1e-6, atol=1e-9 * np.abs(bend).max())
    values = np.linalg.eigvalsh(bend + PROXIMAL * np.eye(4))
    assert values.min() >= -1e-9 * values.max()
    assert np.array_equal(curved(bend, np.ones(4), np.full(4, np.nan)), bend)


@settings(max_examples=30, deadline=None)
@given(seed=seeds())
def test_program_of_a_step_is_the_one_written_down(seed):
    """Matrices against NumPy's, only the rows that can become active, and the solution's plan."""
    rng = np.random.default_rng(seed)
    nu, steps, rows = int(rng.integers(1, 3)), int(rng.integers(1, 4)), int(rng.integers(1, 30))
    p = nu * steps
    values, jacobian = 3 * rng.normal(size=rows), rng.normal(size=(rows, p))
    inputs, learned, scale = rng.uniform(-1, 1, p), rng.normal(size=nu), rng.uniform(0.01, 2, p)
    half, low, high, reach = rng.normal(size=(nu, nu)), np.full(p, -1.0), np.full(p, 1.0), rng.uniform(0.5, 2)
    bend, fixed = rng.normal(size=(p, p)), rng.normal(size=(p + 1, p + 1))
    n = p + 1
    out = np.full((n, n), np.nan), np.full(n, np.nan), np.full((n, rows), np.nan), np.full(rows, np.nan)
    lower, upper, chosen = np.full(n, np.nan), np.full(n, np.nan), np.zeros(rows, np.int64)
    count = _steps.program(
        values,
        jacobian,
        inputs,
        learned,
        half @ half.T,
        low,
        high,
        reach,
        scale,
        fixed,
        bend,
        7.0,
        *out,
        lower,
        upper,
        chosen,
    )
    hessian, gradient, columns, bound = out
    expected = np.flatnonzero(values + np.abs(jacobian) @ (reach * scale) > 0)
    assert np.array_equal(chosen[:count], expected)
    assert np.array_equal(columns[:, :count].T, np.column_stack([jacobian[expected], -np.ones(count)]))
    assert np.array_equal(bound[:count], -values[expected])
    assert np.allclose(hessian, fixed + np.pad(bend, (0, 1)))
    assert np.allclose(gradient, [*2 * half @ half.T @ (inputs[:nu] - learned), *np.zeros(p - nu), 7.0])
    assert np.array_equal(lower, [*np.maximum(-reach * scale, low - inputs), 0.0])
    assert np.array_equal(upper, [*np.minimum(reach * scale, high - inputs), _steps.NONE])
    found, multipliers, plan = rng.normal(size=n), rng.uniform(0, 1, rows), np.empty(p)
    slack, bent, total = _steps.outcome(found, multipliers, bend, inputs, low, high, plan)
    assert slack == max(found[p], 0.0) and bent == pytest.approx(found[:p] @ bend @ found[:p])
    assert np.array_equal(plan, np.clip(inputs + found[:p], low, high))
    assert total == pytest.approx(multipliers.sum())


def test_excess_is_the_largest_row_and_infinite_if_anything_is_not_finite():
    rows, jacobian = np.array([-1.0, 0.5, 0.2]), np.ones((3, 2))
    assert _steps.excess(rows, jacobian) == 0.5
    for bad in (np.nan, np.inf, -np.inf):
        for at in range(3):
            broken, slopes = rows.copy(), jacobian.copy()
            broken[at], slopes[at, at % 2] = bad, bad
            assert _steps.excess(broken, jacobian) == _steps.excess(rows, slopes) == math.inf


def test_warm_start_at_the_answer_needs_no_more_steps_than_a_cold_one():
    problem, x0, learned = ensemble_pendulum(), vector(math.pi + 0.6, 0.6), vector(1.0)
    cold = CondensedSQP().propose(problem, x0, learned)
    warm = CondensedSQP().propose(problem, x0, learned, warm=cold.inputs)
    assert warm.iterations <= cold.iterations and judge(problem, x0, learned, cold).distance > 1.0
    assert judge(problem, x0, learned, warm).distance == pytest.approx(
        judge(problem, x0, learned, cold).distance, abs=1e-7
    )
    assert shifted(vector(1.0, 2.0, 3.0).unsqueeze(1)).flatten().tolist() == [2.0, 3.0, 3.0]


def test_weight_decides_which_input_gives_way():
    """Two inputs that move the same state: the cheaper one is changed."""
    problem, x0, _ = drawn_problem(0, **CASES["three layers, two inputs"])
    free = Polytope(torch.cat([torch.eye(2), -torch.eye(2)]).double(), torch.full((4,), 50.0).double())
    halved = Polytope(vector(1.0, 1.0).unsqueeze(0), vector(0.0))
    problem = replace(
        problem, states=free, terminal=free, inputs=problem.inputs.intersect(halved), gain=0 * problem.gain
    )
    actions = []
    for weight in (torch.diag(vector(1.0, 100.0)), torch.diag(vector(100.0, 1.0))):
        plan = CondensedSQP().propose(replace(problem, weight=weight), 0 * x0, vector(0.5, 0.5)).inputs
        actions.append(plan[0])
    # min w₁(½ − a)² + w₂(½ − b)² over a + b = 0: the gaps ½ − a, ½ − b add to 1 in the ratio w₂ : w₁.
    assert torch.allclose(actions[0], vector(0.5 - 100 / 101, 0.5 - 1 / 101), atol=1e-5)
    assert torch.allclose(actions[1], vector(0.5 - 1 / 101, 0.5 - 100 / 101), atol=1e-5)


@pytest.mark.parametrize(("x0", "learned"), [((math.nan, 0.0), 0.0), ((math.pi, 0.0), math.inf), ((1e200, 0.0), 0.0)])
def test_numeric_failure_is_a_status(x0, learned):
    problem = ensemble_pendulum()
    proposal = CondensedSQP().propose(problem, vector(*x0), vector(learned))
    assert proposal.status in ("diverged", "infeasible") and proposal.slack > 0
    assert proposal.inputs.shape == (problem.steps, 1) and bool(torch.isfinite(proposal.inputs).all())


def test_limits_and_bad_arguments():
    problem, x0, learned = ensemble_pendulum(), vector(*STATES[1][:2]), vector(1.0)
    assert CondensedSQP(iterations=1).propose(problem, x0, learned).iterations <= CondensedSQP().starts
    hurried, work = CondensedSQP(time_limit=1e-9).search(problem, x0, learned)
    assert hurried.inputs.shape == (4, 1) and work.sweeps <= 3
    with pytest.raises(ValueError, match="x0"):
        CondensedSQP().propose(problem, vector(1.0), learned)
    lost = CondensedSQP().propose(problem, x0, learned, warm=torch.full((4, 1), math.nan).double())
    assert bool(torch.isfinite(lost.inputs).all())
    with pytest.raises(ValueError, match="warm"):
        CondensedSQP().propose(problem, x0, learned, warm=torch.zeros(3, 1).double())
    with pytest.raises(ValueError, match="time_limit"):
        CondensedSQP(time_limit=0.0)
    with pytest.raises(ValueError, match="iterations"):
        CondensedSQP(iterations=0)


def test_hard_rows_are_kept_when_the_terminal_set_is_out_of_reach():
    """A terminal set two units beyond the limits: equal rows share the violation, hard ones leave it to the terminal set."""
    base = double_integrator()
    edge = float(base.states.support(torch.tensor([[1.0, 0.0]]).double()))
    H = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    problem = replace(base, terminal=Polytope(H, torch.tensor([-edge - 2.0]).double()))
    x0, learned = torch.tensor([0.9 * edge, 0.0]).double(), torch.zeros(1).double()
    found = {}
    for hardness in (1.0, 100.0):
        proposal = CondensedSQP(hardness=hardness).propose(problem, x0, learned)
        assert proposal.status == "infeasible"
        margins = problem.margins(problem.tube(x0, proposal.inputs))
        found[hardness] = -float(margins.state.min()), -float(margins.terminal.min())
    assert found[1.0][0] > 0.02
    assert found[100.0][0] < 0.1 * found[1.0][0]
    assert found[100.0][1] < 3.0


def test_hardness_changes_no_plan_that_can_be_certified():
    problem, x0 = ensemble_pendulum(), torch.tensor([0.2, 0.3]).double()
    for learned in (-1.0, 0.4, 1.0):
        proposed = torch.tensor([learned]).double()
        plans = [CondensedSQP(hardness=h).propose(problem, x0, proposed) for h in (1.0, 100.0)]
        certificates = [judge(problem, x0, proposed, plan) for plan in plans]
        assert certificates[0].certified == certificates[1].certified
        if certificates[0].certified:
            assert certificates[1].distance == pytest.approx(certificates[0].distance, abs=1e-6)


def sweeps_of(patience: int, rows) -> tuple[int, str, float]:
    """Sweeps, status and violation of one descent in one input from 0, for rows (value, slope) of it and of its number."""
    plan, known, values, slopes = np.zeros((1, 1)), np.zeros((1, 1)), np.empty(1), np.empty((1, 1))
    one, told = np.ones(1), np.zeros(_descent.TOLD)
    told[_descent.LIMIT], told[_descent.STALL] = 50, patience
    arguments = (
        plan,
        values,
        slopes,
        np.empty(1),
        np.zeros(1),
        np.ones((1, 1)),
        -5 * one,
        5 * one,
        one,
        np.diag([2.0, 1.0]),
    )

    def ask(asked: list, plan, values, slopes) -> None:
        values[0], slopes[0, 0] = rows(len(asked), plan[0, 0])
        asked.append(None)

    asked: list = []
    _descent.descending(ask)(asked, *arguments, 1e-9, False, known, math.inf, told)
    return len(asked), STATUS[int(told[_descent.STATUS])], float(told[_descent.EXCESS])


def test_nothing_that_a_search_was_given_is_held_after_it():
    """A filter that runs for days would fill the memory: compiled generators never let go of their arguments."""
    problem, x0 = ensemble_pendulum(), np.array([0.2, 0.3])
    search = _Search(problem, x0, np.array([1.0]), CondensedSQP(), Work(), math.inf)
    assert search.sweep.kind == "compiled"
    best, start = _Point.nowhere(problem.steps, 1), np.zeros((problem.steps, 1))
    search.run(start, best)
    held = [sys.getrefcount(part) for part in (search.curvature, search.lowest, best.inputs)]
    for _ in range(5):
        search.run(start, best)
    assert [sys.getrefcount(part) for part in (search.curvature, search.lowest, best.inputs)] == held


def test_a_start_whose_violation_stalls_is_given_up():
    """A row that promises to fall and does not; one that falls by a fifth an iteration; one that is all but satisfied."""
    lie = lambda count, u: (0.1, -1.0)  # noqa: E731
    many, few = sweeps_of(50, lie), sweeps_of(3, lie)
    assert few[1] == many[1] == "infeasible" and few[2] == 0.1 and few[0] <= 2 * 3 + 1 < many[0]
    falls = lambda count, u: (0.8**count, -1.0)  # noqa: E731
    assert sweeps_of(2, falls) == sweeps_of(50, falls)
    close = lambda count, u: (9e-4, -1.0)  # noqa: E731
    assert sweeps_of(2, close) == sweeps_of(50, close)


def test_a_patient_and_an_impatient_search_find_the_same_plans():
    problem, optimal = ensemble_pendulum(), 0
    for case in STATES:
        x0, asked = vector(*case[:2]), vector(case[2])
        long, short = (CondensedSQP(patience=p).propose(problem, x0, asked) for p in (50, 4))
        assert long.status == short.status and short.given_up == (long.status == "infeasible")
        optimal += long.status == "optimal" and torch.equal(long.inputs, short.inputs)
    assert optimal >= 2
    proposal = CondensedSQP(patience=4, fruitless=1).propose(problem, vector(math.pi + 1.3, 2.0), vector(0.7))
    assert proposal.status == "infeasible" and proposal.given_up


def far_problem() -> tuple[CertificationProblem, torch.Tensor]:
    """Nine members, three inputs, sets that leave |u| ≤ 1 alone to be kept."""
    problem, x0, _ = drawn_problem(1, nx=2, nu=3, hidden=(4, 3), steps=3, clamp="hard", prior=identity_prior, members=9)
    states, terminal = (Polytope(s.H, 6 * s.h + 6) for s in (problem.states, problem.terminal))
    return replace(problem, states=states, terminal=terminal), 0.3 * x0


@pytest.mark.parametrize("weight", [1e-12, 1e-9, 1e6, 1e12])
def test_the_unit_of_the_objective_changes_no_plan(weight):
    """With small units all plans would cost the same to `SAME`; large ones no penalty would outweigh."""
    bent = ensemble_pendulum(), vector(2.545110134190523, -0.7477683655585103), vector(0.17762184143066406)
    for problem, x0, learned in (bent, (*far_problem(), vector(1.7, 1.7, 1.7))):
        units = weight * torch.eye(problem.nu).double()
        one, other = (CondensedSQP().propose(p, x0, learned) for p in (problem, replace(problem, weight=units)))
        assert one.status == other.status == "optimal"
        assert (one.inputs[0] - learned).abs().max() > 0.1, "something has to give way"
        assert (other.inputs[0] - one.inputs[0]).abs().max() < 1e-6


def in_units(state: float, force: float) -> CertificationProblem:
    """The double integrator for x = y/state, u = v/force."""
    problem = double_integrator()
    assert isinstance(problem.model, LinearTube)
    plant = problem.model.plant
    model = LinearTube(AffineKnown(plant.A, plant.B * state / force, state * plant.c), state * problem.model.half_axes)
    sets = ((problem.states, state), (problem.inputs, force), (problem.terminal, state))
    return CertificationProblem(
        model, *(Polytope(part.H, unit * part.h) for part, unit in sets), problem.gain * force / state, problem.steps
    )


@pytest.mark.parametrize("units", [(1e-6, 1e-6), (1e6, 1e6), (1e-9, 1e9), (1e9, 1e-9), (1.0, 900.0)])
def test_plans_are_the_same_in_all_units(units):
    """Inputs of 10⁻⁶ ended up to a fifth dearer; of ±900 some plans were not found, others cost 3000 times the best."""
    state, force = units
    ordinary, problem, found = in_units(1.0, 1.0), in_units(state, force), 0
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        x = (2 * torch.rand(2, dtype=torch.float64, generator=g) - 1) * torch.tensor([0.9, 0.6], dtype=torch.float64)
        learned = 2.4 * torch.rand(1, dtype=torch.float64, generator=g) - 1.2
        one, other = (
            judge(case, s * x, f * learned, CondensedSQP().propose(case, s * x, f * learned))
            for case, s, f in ((ordinary, 1.0, 1.0), (problem, state, force))
        )
        assert one.certified == other.certified
        found += one.certified
        if one.certified:
            assert other.distance / force**2 == pytest.approx(one.distance, rel=1e-3, abs=1e-6)
    assert found >= 8


def test_a_sweep_in_other_units_is_the_sweep():
    problem, x0 = ensemble_pendulum(), np.array([0.1, -0.2])
    own = _sweeps.sweep_of(problem, x0)
    rows, inputs = np.exp2(np.arange(own.count) % 5), np.full((problem.steps, problem.nu), 8.0)
    other, plan = _sweeps.in_units(own, rows, inputs), 0.1 * np.ones((problem.steps, problem.nu))
    (c, J), (d, K) = own(plan), other(plan / inputs)
    assert np.array_equal(d, c / rows) and np.array_equal(K, 8.0 * J / rows[:, None])
    assert np.array_equal(other.values(plan[None] / inputs), own.values(plan[None]) / rows)
    assert own.path is not None and other.path is not None and other.drive is None
    assert np.array_equal(other.path(plan / inputs), own.path(plan))


@pytest.mark.parametrize("size", [1e2, 1e5, 1e8, 1e160, 1e308])
def test_an_input_that_is_proposed_far_outside_comes_to_the_nearest(size):
    problem, x0 = far_problem()
    found = CondensedSQP().propose(problem, x0, size * vector(1.0, 1.0, 1.0))
    if size < 1e150:
        assert found.status == "optimal"
        assert (found.inputs[0] - 1.0).abs().max() < 1e-6
    else:  # its distance overflows
        assert problem.margins(problem.tube(x0, found.inputs)).rows.isfinite().all()


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3, 1e6])
def test_a_plan_that_is_found_is_certified_in_any_unit_of_the_inputs(unit):
    """The judge rounds by a share of a row's size: what lies 1e-9 inside a row of size 1000 is refused."""
    problem = ensemble_pendulum()
    ensemble, scale = problem.model.ensemble, vector(1.0, 1.0, unit)
    seen = replace(ensemble.inputs, offset=ensemble.inputs.offset * scale, scale=ensemble.inputs.scale * scale)
    model = replace(problem.model, ensemble=replace(ensemble, inputs=seen))
    inputs = Polytope(problem.inputs.H, unit * problem.inputs.h)
    problem = replace(problem, model=model, inputs=inputs, gain=unit * problem.gain)
    g, found = torch.Generator().manual_seed(0), 0
    for _ in range(30):
        x0 = vector(math.pi, 0.0) + vector(0.5, 1.2) * torch.randn(2, dtype=torch.float64, generator=g)
        learned = unit * (2 * torch.rand(1, generator=g).double() - 1)
        plan = CondensedSQP().propose(problem, x0, learned)
        if plan.slack <= 0:
            found += 1
            assert judge(problem, x0, learned, plan).certified
    assert found >= 18
