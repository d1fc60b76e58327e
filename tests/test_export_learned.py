"""Certificates of policies in S_n and of plans on learned models, decided again without the library: ours, and doctored."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cost_cases import make_case
from export_cases import accepted, draw, drop, put, refused_at, rewritten, told
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_exports import LEARNED, ensemble_plan, gp_plan, program_case

import gpsafe_check
from gpsafe.confidence import AbbasiYadkori, ChowdhuryGopalan, Fiedler
from gpsafe.confidence.members import extremal_member
from gpsafe.cost import RobustDP
from gpsafe.cost.grid import Grid
from gpsafe.linalg import vector
from gpsafe.models import identity_prior, zero_prior
from gpsafe.saved import export_bound, export_membership, export_plan
from gpsafe.sets import Box
from gpsafe.systems import SineKnown
from gpsafe.systems.task import Task

# --------------------------------------------------------------------------------------------------------------- ours
FEW, MANY = settings(max_examples=3, deadline=None), settings(max_examples=60, deadline=None)
SINE = SineKnown(
    torch.eye(2), torch.zeros(2, 1), torch.zeros(2), torch.tensor([[0.0, 0.3]]), torch.tensor([[1.0, 0.5, 0.2]]), torch.zeros(1)
)  # fmt: skip
POLICIES = given(
    kernel=st.sampled_from(["rbf", "rbf-isotropic", "matern-1/2", "matern-3/2", "matern-5/2", "rbf-restricted", "additive"]),
    n=st.sampled_from([0, 1, 8]),
    seed=st.integers(0, 99),
    hinge=st.booleans(),
    horizon=st.sampled_from([1, 2, 3]),
    std=st.sampled_from([0.005, 0.02]),
)  # fmt: skip
PROCESSES = given(
    kernel=st.sampled_from([None, "rbf", "matern-3/2", "matern-5/2", "rbf-restricted"]),
    n=st.sampled_from([0, 1, 14]),
    seed=st.integers(0, 99),
    outputs=st.sampled_from([(1,), (0, 1)]),
    steps=st.integers(1, 2),
    noise=st.sampled_from(["each", "sums"]),
)
ENSEMBLES = given(
    seed=st.integers(0, 99),
    members=st.integers(1, 3),
    steps=st.integers(1, 2),
    clamp=st.sampled_from(["soft", "hard"]),
    prior=st.sampled_from([identity_prior, zero_prior, SINE]),
)


def policy_is_admitted(*, std, **case) -> None:
    program, confidence, policies = program_case(noise_std=vector(std), **case)
    text = export_membership(program, confidence, policies, 1)
    assert accepted(text)
    upper = float(json.loads(text)["evidence"]["upper"])
    sharper = float(program.evaluate(confidence, policies).upper[1])  # with gradients
    assert sharper <= upper + 1e-6 and upper <= 4.0


def plan_on_a_process_is_accepted(**case) -> None:
    found = gp_plan(**case)
    if not found.certified:
        with pytest.raises(ValueError, match="a certificate that holds"):
            export_plan(found)
        return
    try:
        text = export_plan(found)
    except ValueError as error:  # the checker's tube is wider
        text = str(error)
    assert "on the tube that the checker can form" in text or accepted(text)


def plan_on_an_ensemble_is_accepted(**case) -> None:
    found = ensemble_plan(**case)
    assert found.certified and accepted(export_plan(found))


test_every_policy_within_its_budget_is_admitted = FEW(POLICIES(policy_is_admitted))
test_every_plan_on_a_gaussian_process_is_accepted = FEW(PROCESSES(plan_on_a_process_is_accepted))
test_every_plan_on_an_ensemble_is_accepted = FEW(ENSEMBLES(plan_on_an_ensemble_is_accepted))
test_many_policies_are_admitted = pytest.mark.slow(MANY(POLICIES(policy_is_admitted)))
test_many_plans_on_gaussian_processes_are_accepted = pytest.mark.slow(MANY(PROCESSES(plan_on_a_process_is_accepted)))
test_many_plans_on_ensembles_are_accepted = pytest.mark.slow(MANY(ENSEMBLES(plan_on_an_ensemble_is_accepted)))


def test_control_most_of_the_plans_above_are_certified_and_exported():
    plans = [gp_plan(seed=seed) for seed in range(2)]
    assert all(found.certified for found in plans) and all(accepted(export_plan(found)) for found in plans)


@pytest.mark.parametrize(
    "bound",
    [
        AbbasiYadkori(rkhs_norm=1.0, subgaussian=0.02, delta=0.1),
        Fiedler(rkhs_norm=1.0, subgaussian=0.02, delta=0.1),
        Fiedler(rkhs_norm=1.0, subgaussian=0.02, delta=0.1, convention="published"),
        ChowdhuryGopalan(rkhs_norm=1.0, subgaussian=0.02, delta=0.1, max_data=20),
    ],
    ids=["abbasi-yadkori", "fiedler", "fiedler-published", "chowdhury-gopalan"],
)
def test_bounds_that_are_never_below_the_mixture_bound_are_proven_by_it(bound):
    program, confidence, policies = program_case(bound=bound, lam=1.1 if isinstance(bound, ChowdhuryGopalan) else 4e-4)
    assert accepted(export_membership(program, confidence, policies, 0))
    assert accepted(export_bound(confidence, vector(0.3, 0.1)))


# ------------------------------------------------------------------------------------ what is claimed, on plants as assumed
def outside(member: dict, states: torch.Tensor, k: int) -> float:
    """Largest ‖L⁻¹(x − c)‖ − 1 at stage k."""
    factor, gap = tensor(member["factor"])[k], (states - tensor(member["center"])[k]).mT
    share = torch.linalg.lstsq(factor, gap).solution
    assert float((factor @ share - gap).abs().max()) < 1e-9
    return float(share.norm(dim=0).max()) - 1.0


def flown_by(tree, reference, step, paths: int = 300):
    """States of all stages under the certified law."""
    problem = {name: tensor(tree["problem"][name]) for name in ("x0", "plan", "gain")}
    x = problem["x0"].expand(paths, -1)
    states = [x]
    for u, K, c in zip(problem["plan"], problem["gain"], reference, strict=False):
        x = step(x, u + (x - c) @ K.mT)
        states.append(x)
    return states


def tensor(tree) -> torch.Tensor:
    """Of nested lists of texts."""
    return torch.from_numpy(np.array(tree, dtype=np.float64))


def sphere(seed: int, *shape: int) -> torch.Tensor:
    """Points of length 1."""
    found = draw(*shape, seed=seed)
    return found / found.norm(dim=-1, keepdim=True)


def test_plants_for_which_a_member_is_right_stay_in_its_exported_tube():
    found = ensemble_plan(seed=3)
    tree = json.loads(export_plan(found))
    ensemble, radius = found.problem.model.ensemble, float(tree["problem"]["radius"])
    for m in range(2):
        member, one = {name: tree["evidence"][name][m] for name in ("center", "factor")}, ensemble.member(m)

        def step(x, u, one=one):
            mean, std = one.evaluate(x, u)
            return mean[0] + radius * std[0] * sphere(4, len(x), 2)

        states = flown_by(tree, tensor(tree["evidence"]["reference"]), step)
        worst = [outside(member, states[k], k) for k in (1, 2)]
        assert max(worst) <= 1e-9 and worst[0] > -0.2  # noise at the edge comes near it


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_plants_at_the_edge_of_the_confidence_set_stay_in_the_exported_tube(sign):
    found = gp_plan(seed=2)
    tree = json.loads(export_plan(found))
    tube, radius = found.problem.model, float(tree["evidence"]["radius"])
    model, centers = tube.model, tensor(tree["evidence"]["center"])
    z = torch.cat([centers[1], tensor(tree["problem"]["plan"])[1]])
    residual = extremal_member(tube.confidence.bound, model, z, sign)

    def step(x, u):
        noise = radius * model.noise_std * sphere(5, len(x), 2)
        return model.prior(x, u) + model.embed(residual(torch.cat([x, u], dim=-1)).unsqueeze(-1)) + noise

    states = flown_by(tree, centers, step)
    assert max(outside(tree["evidence"], states[k], k) for k in (1, 2)) <= 1e-9


def test_a_policy_that_the_slack_form_does_not_certify_is_not_exported():
    program, confidence, policies = program_case(n=0, budget=0.01)
    with pytest.raises(ValueError, match="certified by these boxes"):
        export_membership(program, confidence, policies, 0)


# --------------------------------------------------------------------------------------------------------- forgeries
def cell_missing(tree) -> None:
    """One cell less in the evidence, consistently."""
    del tree["evidence"]["boxes"][10]
    for row in tree["evidence"]["values"]:
        del row[10]
    tree["evidence"]["cells"] -= 1


def stage_more(tree) -> None:
    """One stage more, with the values of the last."""
    tree["problem"]["horizon"] += 1
    tree["evidence"]["values"].append(tree["evidence"]["values"][-1])


def stages_swapped(tree) -> None:
    values = tree["evidence"]["values"]
    values[0], values[1] = values[1], values[0]


def moved(tree) -> None:
    """All targets of the data."""
    for one in tree["problem"].get("learned", [tree["problem"]]):
        one["targets"] = [repr(float(v) + 0.3) for v in one["targets"]]


def fewer(tree) -> None:
    """A row of data less, wherever it stands."""
    problem = tree["problem"]
    for place in (problem.get("data", problem)["inputs"], *(p["targets"] for p in problem.get("learned", [problem]))):
        del place[2]
    if "generations" in problem:
        problem["generations"] = [n - 1 for n in problem["generations"] if n]


def cheaper(tree) -> None:
    """Values of one cell lower, where they were tight."""
    tree["evidence"]["values"][1][16] -= 10**7


def quieter(tree) -> None:
    """Half the noise, R included."""
    for name in ("noise_std", "subgaussian"):
        put("problem", name, value=lambda v: 4 * v)(tree)


def multiplied(tree) -> None:
    """A kernel with one factor, as a product."""
    kernel = tree["problem"]["kernel"]
    kernel[0] = {"family": "product", "factors": [kernel[0]]}


def wider(tree) -> None:
    """Another policy, that is bounded elsewhere."""
    tree["problem"]["limits"][0] = ["-0.9", "0.9"]


def rougher(nu: str) -> Callable[[dict], None]:
    """A Matérn kernel for the first learned output."""
    return lambda tree: tree["problem"]["learned"][0]["kernel"][0].update({"family": "matern", "nu": nu})


def two_kernels(tree) -> None:
    """The first twice, summed."""
    kernel = tree["problem"]["learned"][0]["kernel"]
    kernel.append(kernel[0])


BOX, START = ("evidence", "boxes", 12), ("evidence", "start")
MEMBERSHIP = {
    "a box shrunk from below": (put(*BOX, 0, value=lambda v: v + 1e-6), "box of cell 12"),
    "a box shrunk from above": (put(*BOX, 1, value=lambda v: v - 1e-6), "box of cell 12"),
    "the start's box shrunk": (put(*START, 1, value=lambda v: v - 1e-6), "box of the start"),
    "a box upside down": (lambda tree: tree["evidence"]["boxes"][12].reverse(), "grid"),
    "a cell missing": (cell_missing, "box of cell"),
    "another grid": (put("evidence", "low", value=lambda v: v - 0.1), "box of cell"),
    "no parts": (put("evidence", "split", value=0), "grid"),
    "too many parts": (put("evidence", "split", value=10**9), "grid"),
    "a value that is too low": (cheaper, "value of cell 16 with 2 stages left"),
    "one stage more with the old values": (stage_more, "with 4 stages left"),
    "stages in another order": (stages_swapped, "with 2 stages left"),
    "a smaller number": (put("evidence", "upper", value=lambda v: v - 1e-6), "upper"),
    "a smaller budget": (put("problem", "budget", value=0.0), "budget"),
    "moved data": (moved, "box of cell"),
    "a row of data less": (fewer, "box of cell"),
    "data that are not there": (put("problem", "generations", value=[9]), "generations"),
    "a larger B": (put("problem", "rkhs_norm", value=lambda v: v * 1.01), "box of cell"),
    "a larger R": (put("problem", "subgaussian", value=lambda v: v * 1.5), "box of cell"),
    "more noise": (put("problem", "noise_std", value=lambda v: 2 * v), "noise"),
    "no noise": (put("problem", "noise_std", value=0.0), "signs"),
    "more noise, R included": (quieter, "box of cell"),
    "another lambda": (put("problem", "regularizer", value=lambda v: 30 * v), "box of cell"),
    "a smaller delta": (put("problem", "delta", value=1e-9), "box of cell"),
    "another kernel": (lambda tree: tree["problem"]["kernel"][0].update({"family": "matern", "nu": "0.5"}), "box of cell"),
    "a product": (multiplied, "monotone"),
    "a larger variance": (put("problem", "kernel", 0, "variance", value=lambda v: 2 * v), "box of cell"),
    "another plant": (put("problem", "A", 0, 0, value=lambda v: v + 0.01), "box of cell"),
    "a wind": (put("problem", "c", 0, value=lambda v: v + 0.01), "box of cell"),
    "another gain": (put("problem", "gain", 0, 0, value=lambda v: v + 0.1), "box of cell"),
    "another offset": (put("problem", "offset", 0, value=lambda v: v + 0.01), "box of cell"),
    "wider limits": (wider, "box of cell"),
    "limits upside down": (lambda tree: tree["problem"]["limits"][0].reverse(), "signs"),
    "another start": (put("problem", "x0", value=0.2), "box of the start"),
    "a stricter limit": (put("problem", "cost", "offsets", 0, value=0.3), "with 1 stages left"),
    "another cost": (put("problem", "cost", "family", value="squared"), "cost"),
    "a cheaper ceiling": (put("problem", "cost", "ceiling", value=0.5), "ceiling"),
    "another bound": (put("problem", "bound", value="fiedler"), "bound"),
    "an assumption less": (drop("assumptions", 5), "assumptions"),
}  # fmt: skip
FACTOR = ("evidence", "factor")
ONE = ("problem", "learned", 0)
GP_PLAN = {
    "another start": (put("problem", "x0", 0, value=lambda v: v + 1e-12), "start"),
    "an input beyond U": (put("problem", "plan", 1, 0, value=2.5), "inputs at stage 1 row"),
    "more noise": (put("problem", "noise_std", 1, value=lambda v: 1.5 * v), "noise"),
    "noise in a state that had none": (put("problem", "noise_std", 0, value=0.01), "radius"),
    "a smaller radius": (put("evidence", "radius", value=lambda v: v * 0.9), "radius"),
    "a negative radius": (put("evidence", "radius", value=lambda v: -v), "radius"),
    "a noise that leaves less often": (put("problem", "noise_delta", value=1e-4), "radius"),
    "a tube that is too thin": (put(*FACTOR, 2, 0, 0, value=lambda v: v * (1 - 1e-6)), "tube at stage 2"),
    "a tube that is moved": (put("evidence", "center", 1, 1, value=lambda v: v + 1e-5), "tube at stage 1"),
    "moved data": (moved, "tube at stage 1"),
    "a row of data less": (fewer, "tube at stage 1"),
    "a larger B": (put(*ONE, "rkhs_norm", value=lambda v: v * 1.01), "tube at stage 1"),
    "a larger R": (put(*ONE, "subgaussian", value=lambda v: v * 1.1), "tube at stage 1"),
    "an R below the noise": (put(*ONE, "subgaussian", value=lambda v: v / 2), "noise"),
    "a smaller delta": (put("problem", "data", "delta", value=0.01), "tube at stage 1"),
    "a delta of 1": (put("problem", "data", "delta", value=1.0), "delta"),
    "another lambda": (put(*ONE, "regularizer", value=lambda v: v / 4), "tube at stage 1"),
    "another kernel": (rougher("1.5"), "tube at stage 1"),
    "a kernel without a gradient": (rougher("0.5"), "smooth"),
    "two kernels": (two_kernels, "smooth"),
    "shorter length-scales": (put(*ONE, "kernel", 0, "lengthscale", 0, value=lambda v: v / 2), "tube at stage 1"),
    "another sine": (put("problem", "sines", 0, "amplitude", 1, value=lambda v: 1.2 * v), "tube at stage 1"),
    "a faster sine": (put("problem", "sines", 0, "frequency", 0, value=lambda v: 1.2 * v), "tube at stage"),
    "another phase": (put("problem", "sines", 0, "phase", value=lambda v: v + 0.1), "tube at stage 1"),
    "another plant": (put("problem", "A", 1, 1, value=lambda v: v + 1e-3), "tube at stage 1"),
    "another gain": (put("problem", "gain", 1, 0, 1, value=lambda v: v + 5.0), "tube at stage 2"),
    "less room": (put("problem", "states", "h", 0, value=lambda v: 0.01), "states at stage"),
    "a smaller target": (put("problem", "terminal", "h", 0, value=-1.0), "terminal row 0"),
    "an output that is none": (put(*ONE, "output", value=2), "outputs"),
    "nothing learned": (lambda tree: tree["problem"]["learned"].clear(), "outputs"),
    "an assumption less": (drop("assumptions", 5), "assumptions"),
}  # fmt: skip
NET = ("problem", "weights", 0)
ENSEMBLE_PLAN = {
    "another weight": (put(*NET, 0, 0, 0, value=lambda v: v + 0.01), "member 0: tube at stage 1"),
    "another bias": (put("problem", "biases", 1, 2, 0, value=lambda v: v + 1e-3), "member 1: tube at stage 1"),
    "a larger radius": (put("problem", "radius", value=lambda v: 1.001 * v), "member 0: tube at stage 1"),
    "no radius": (put("problem", "radius", value=0.0), "signs"),
    "more variance": (put("problem", "log_var_limits", 0, 1, value=-6.5), "member 0: tube at stage 1"),
    "another clamp": (put("problem", "clamp", value="none"), "clamp"),
    "other units of inputs": (put("problem", "normalised", 1, 0, value=lambda v: v / 2), "tube at stage 1"),
    "other units of outputs": (put("problem", "restored", 1, 1, value=lambda v: 2 * v), "tube at stage 1"),
    "a scale of 0": (put("problem", "restored", 1, 1, value=0.0), "signs"),
    "fewer cubes": (put("evidence", "side", value=1), "tube at stage 2"),
    "no cubes": (put("evidence", "side", value=0), "cubes"),
    "a tube that is too thin": (put(*FACTOR, 1, 2, 0, 0, value=lambda v: v * (1 - 1e-6)), "member 1: tube at stage 2"),
    "a tube that is moved": (put("evidence", "center", 0, 1, 1, value=lambda v: v + 1e-3), "member 0: tube at stage 1"),
    "a law about another path": (put("evidence", "reference", 1, 0, value=lambda v: v + 0.3), "tube at stage 2"),
    "another start of the law": (put("evidence", "reference", 0, 0, value=lambda v: v + 0.3), "start"),
    "another plant": (put("problem", "B", 0, 0, value=1e-3), "tube at stage 1"),
    "an input beyond U": (put("problem", "plan", 1, 0, value=3.5), "inputs at stage 1 row"),
    "less room": (put("problem", "states", "h", 0, value=-5.0), "states at stage 0"),
    "a smaller target": (put("problem", "terminal", "h", 0, value=-5.0), "terminal row 0"),
    "an assumption less": (drop("assumptions", 0), "assumptions"),
}  # fmt: skip
FORGED = {"membership": MEMBERSHIP, "plan-gp": GP_PLAN, "plan-ensemble": ENSEMBLE_PLAN}
CASES = [(kind, name) for kind, edits in FORGED.items() for name in edits]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda v: v.replace(" ", "-"))
def test_a_doctored_certificate_is_refused_at_the_line_that_fails(kind, name):
    edit, line = FORGED[kind][name]
    refused_at(LEARNED[kind](), edit, line)


def missing(*_):
    """A term of a proof that is not there, in balls."""
    return gpsafe_check.ball(0)


@pytest.mark.parametrize(
    ("kind", "name", "term"),
    [
        ("membership", "a box shrunk from above", "metric"),
        ("plan-gp", "a tube that is too thin", "largest_eigenvalue"),
    ],
)
def test_control_a_checker_without_a_term_accepts_what_it_has_to_refuse(kind, name, term, monkeypatch):
    tree = json.loads(LEARNED[kind]())
    FORGED[kind][name][0](tree)
    assert told(rewritten(tree))[0] == 1
    monkeypatch.setattr(gpsafe_check, term, missing)
    assert told(rewritten(tree))[0] == 0


@pytest.mark.slow
def test_members_of_the_reference_plants_safe_set_are_exported_and_accepted():
    """600 cells, T = 20, 100 observations in six generations: the slack form certifies what the library does."""
    case = make_case("1d", (0, 2, 4, 10, 20))
    program = RobustDP(Grid(Box(vector(-2.5), vector(2.5)), (600,)), Task.of(case.system))
    sharper = program.evaluate(case.confidence, case.policies).upper
    members = torch.nonzero(sharper <= case.system.budget).flatten().tolist()
    texts = [export_membership(program, case.confidence, case.policies, i) for i in members]
    uppers = torch.tensor([float(json.loads(text)["evidence"]["upper"]) for text in texts])
    assert len(members) >= 28 and bool((uppers <= case.system.budget).all())
    for text in (texts[0], texts[-1]):
        code, lines = told(text)
        assert code == 0 and len(lines) > 30
