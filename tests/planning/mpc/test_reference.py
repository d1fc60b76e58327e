"""IPOPT's proposals: the program against the judge's tubes, its plans against the fast proposer and the judge."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from xmpsc_cases import double_integrator, ensemble_pendulum, gp_pendulum, pendulum_ensemble, wave_problem

from gpsafe.certify import CertificationProblem, judge
from gpsafe.models import Ensemble
from gpsafe.models.gp import zero_prior
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.planning.mpc.reference import IpoptReference
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.xmpsc import SimplePendulum
from gpsafe.tube import EnsembleTube

pytest.importorskip("casadi")

from gpsafe.planning.mpc._casadi import Form, program

FORMS = {
    "paper": IpoptReference.paper(),
    "published": IpoptReference.published(),
    "repaired": IpoptReference.repaired(),
}
LINE = AffineKnown(
    torch.tensor([[1.0, 0.1], [0.2, 0.9]]).double(), torch.tensor([[0.0], [0.3]]).double(), torch.zeros(2).double()
)


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def with_ensemble(*, variance="clip", **changes) -> CertificationProblem:
    problem = ensemble_pendulum(members=2, width=8, steps=3)
    ensemble = replace(pendulum_ensemble(2, 8), **changes)
    return replace(problem, model=EnsembleTube.paper(ensemble, variance=variance))


PROBLEMS = {
    "levels of certainty": lambda: replace(
        with_ensemble(), certainty=0.01 * torch.arange(1.0, 7.0, dtype=torch.float64).reshape(3, 2)
    ),
    "clip": with_ensemble,
    "trained spread": lambda: with_ensemble(variance="trained"),
    "zero prior": lambda: with_ensemble(prior=zero_prior),
    "affine prior": lambda: with_ensemble(prior=LINE),
    "sine prior": lambda: with_ensemble(prior=SimplePendulum().prior()),
    "prior of a user": lambda: with_ensemble(prior=lambda x, u: x + 0.1 * torch.tanh(u * x[..., 1:]).clamp(-0.5, 0.5)),
    "gain per stage": lambda: replace(with_ensemble(), gain=vector(0.1, 0.2, 0.3, -0.1, 0.5, -0.3).reshape(3, 1, 2)),
    "sound linear": double_integrator,
}


def mismatch(problem: CertificationProblem, form: Form, *, shift: float = 0.0) -> float:
    """Largest difference between the program's hard rows and the judge's margins, at a plan's own nominal states."""
    generator = torch.Generator().manual_seed(4)
    inputs = 2 * torch.rand(problem.steps, problem.nu, dtype=torch.float64, generator=generator) - 1
    x0 = vector(3.0, 0.4) if problem.mode == "paper" else vector(0.2, -0.1)
    made = program(problem, form)
    states = np.asarray(made.nominal(x0.numpy(), inputs.numpy().T)).ravel(order="F")
    point = np.concatenate([inputs.numpy().ravel(), states, np.zeros(made.inert)])
    import casadi

    rows = casadi.Function("g", [made.nlp["x"], made.nlp["p"]], [made.nlp["g"]])
    values = np.asarray(rows(point, np.concatenate([x0.numpy(), [0.0] * problem.nu]))).ravel()
    equal = np.isfinite(made.lower)
    assert np.abs(values[equal]).max() < 1e-12
    margins = problem.margins(problem.tube(x0, inputs + shift))
    expected = [] if problem.certainty is None else list(margins.certainty.transpose(0, 1).flatten(0, 1))
    for m in range(problem.num_members):
        for k in range(problem.steps):
            expected += [margins.input[m, k], margins.state[m, k]]
        if form.terminal == "hard":
            expected.append(margins.terminal[m])
    return float(np.abs(values[~equal] + torch.cat(expected).numpy()).max())


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("expand", [False, True])
def test_rows_are_the_judges_margins(name, expand):
    assert mismatch(PROBLEMS[name](), Form(shared=expand, expand=expand)) < 1e-8


def test_control_another_plan_has_other_rows():
    assert mismatch(with_ensemble(), Form(), shift=1e-3) > 1e-5


def test_published_counts():
    """The published program for N = 5, M = 5 and 12 terminal facets has 95 variables and 175 rows."""
    problem = ensemble_pendulum(members=2, width=8, steps=4)
    ensemble = Ensemble.create(2, 1, generator=torch.Generator().manual_seed(0), members=5, hidden=(4, 4))
    made = program(replace(problem, model=EnsembleTube.paper(ensemble)), Form("soft", inert=True))
    assert made.nlp["x"].shape[0] == 95
    assert made.nlp["g"].shape[0] == 175
    assert made.inert == 41


def states(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """About the edge of the terminal hull, where corrections are needed."""
    generator = torch.Generator().manual_seed(5)
    angle = 2 * math.pi * torch.rand(count, dtype=torch.float64, generator=generator)
    size = 0.6 + 0.6 * torch.rand(count, dtype=torch.float64, generator=generator)
    x0 = torch.stack([math.pi + 0.25 * math.pi * size * angle.cos(), 1.2 * size * angle.sin()], dim=-1)
    return x0, 2 * torch.rand(count, 1, dtype=torch.float64, generator=generator) - 1


@pytest.mark.parametrize("form", ["paper", "repaired"])
def test_hard_forms_agree_with_the_fast_proposer(form):
    """Feasible exactly where it is, by the judge; never cheaper by more than the tolerances allow."""
    pytest.importorskip("numba")
    problem = ensemble_pendulum(members=2, width=8, steps=3)
    fast, solved = CondensedSQP(exhaustive=True), 0
    for x0, learned in zip(*states(12), strict=True):
        slow = judge(problem, x0, learned, FORMS[form].propose(problem, x0, learned))
        quick = judge(problem, x0, learned, fast.propose(problem, x0, learned))
        assert quick.certified or not slow.certified
        if slow.certified:
            solved += 1
            assert quick.distance <= slow.distance + 1e-6
            assert slow.proposal.slack <= 1e-6
    assert solved >= 4


def test_published_form_rejects_states_that_have_a_plan():
    """The soft terminal set: a needed correction reads as infeasible, and the plan that comes with it is not certified."""
    pytest.importorskip("numba")
    problem = ensemble_pendulum(members=2, width=8, steps=3)
    needed = []
    for x0, learned in zip(*states(60), strict=True):
        best = judge(problem, x0, learned, CondensedSQP().propose(problem, x0, learned))
        if best.certified and best.distance > 1e-2 and float(best.margins.terminal.min()) < 1e-6:
            needed.append((x0, learned))
    assert len(needed) >= 3
    found = [(x0, u, FORMS["published"].propose(problem, x0, u)) for x0, u in needed]
    assert [plan.status for _, _, plan in found] == ["rejected"] * len(found)
    assert not any(judge(problem, x0, u, plan).certified for x0, u, plan in found)
    x0, learned, _ = found[0]
    assert judge(
        problem, x0, learned, FORMS["paper"].propose(problem, x0, learned)
    ).certified  # the hard rows are not to blame


@pytest.mark.parametrize("form", FORMS)
def test_linear_plants(form):
    """A convex program: every form finds the optimum that the fast proposer finds, in sound mode."""
    problem = double_integrator()
    x0, learned = vector(0.3, 0.4), vector(1.0)
    found = judge(problem, x0, learned, FORMS[form].propose(problem, x0, learned))
    best = judge(problem, x0, learned, CondensedSQP().propose(problem, x0, learned))
    assert best.certified and best.distance > 1e-3
    assert abs(found.distance - best.distance) < 1e-4
    assert found.certified == (form != "published")


@pytest.mark.parametrize("seed", [33, 45, 59])
def test_a_feasible_problem_that_zeros_miss_is_solved_after_a_restart(seed):
    """From zeros IPOPT says "infeasible", which is a statement about where it ended; the other starts find a plan."""
    problem, x0 = wave_problem(seed)
    form = IpoptReference(shared=True, expand=True)
    once = replace(form, restarts=0).propose(problem, x0, vector(1.0))
    assert once.status == "Infeasible_Problem_Detected" and "none of 1 starts" in once.reason
    again = form.propose(problem, x0, vector(1.0))
    assert judge(problem, x0, vector(1.0), again).certified
    assert again.status == "Solve_Succeeded" and again.reason == "" and again.iterations > once.iterations


@pytest.mark.parametrize("form", ["paper", "repaired"])
def test_tightening_costs_nothing_that_is_measured(form):
    """At a row's tolerance the condensed SQP's cost is the reference's to 1e-8, where 1e-7 of tightening cost 1e-6."""
    pytest.importorskip("numba")
    problem = replace(ensemble_pendulum(members=2, width=8, steps=3), tolerance=1e-6)
    compared, loose = 0, replace(FORMS[form], tightening=1e-7)
    for x0, learned in zip(*states(40), strict=True):
        quick = judge(problem, x0, learned, CondensedSQP().propose(problem, x0, learned))
        if not quick.certified or quick.distance < 1e-2:
            continue
        slow = judge(problem, x0, learned, FORMS[form].propose(problem, x0, learned))
        assert slow.certified and slow.distance <= quick.distance + 1e-8
        control = judge(problem, x0, learned, loose.propose(problem, x0, learned))
        assert control.distance > quick.distance + 3e-8
        compared += 1
        if compared == 2:
            break
    assert compared == 2


def test_warm_start_and_split():
    problem = ensemble_pendulum(members=2, width=8, steps=3)
    reference, x0, learned = FORMS["repaired"], vector(3.2, 0.1), vector(0.7)
    cold, split = reference.search(problem, x0, learned)
    warm = reference.propose(problem, x0, learned, warm=cold.inputs)
    assert judge(problem, x0, learned, warm).certified
    assert split.total >= split.hessian + split.jacobian + split.values
    assert split.hessian == 0.0  # quasi-Newton
    assert FORMS["paper"].search(problem, x0, learned)[1].hessian > 0.0


def test_numeric_trouble_is_a_status():
    problem = ensemble_pendulum(members=2, width=8, steps=3)
    found = FORMS["paper"].propose(problem, vector(math.nan, 0.0), vector(0.5))
    assert (
        found.status == "no finite question" and not judge(problem, vector(math.nan, 0.0), vector(0.5), found).certified
    )
    short = replace(FORMS["paper"], iterations=1).propose(problem, vector(3.9, 1.0), vector(1.0))
    assert short.status == "Maximum_Iterations_Exceeded" and short.inputs.shape == (3, 1)


def test_bad_input_is_named():
    problem = ensemble_pendulum(members=2, width=8, steps=3)
    with pytest.raises(ValueError, match="x0"):
        FORMS["paper"].propose(problem, vector(1.0), vector(0.5))
    with pytest.raises(ValueError, match="paper-mode EnsembleTube"):
        FORMS["paper"].propose(gp_pendulum(), vector(0.0, 0.0), vector(0.5))
    with pytest.raises(ValueError, match="prior"):
        FORMS["paper"].propose(
            with_ensemble(prior=lambda x, u: torch.sort(x, -1).values), vector(3.0, 0.0), vector(0.5)
        )
    with pytest.raises(ValueError, match="terminal"):
        IpoptReference(terminal="none")  # type: ignore[arg-type]
