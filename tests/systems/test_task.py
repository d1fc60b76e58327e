"""One task, stated once: what differs between a plant and what is certified about it is refused, or the run says so."""

from dataclasses import replace

import pytest
import torch
from cost_cases import make_case
from shield_cases import case_of, judge_of

from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import ConfidenceSet, Constant, Lederer, Mixture
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.hallucinated import Hallucinated
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.session import DPSession, EvaluationSession
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.safety.safe_set import SafePolicySet, reachable
from gpsafe.sets import Box
from gpsafe.systems.base import HingeCost, IndicatorCost
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.task import Task


def algorithm(**changes) -> ActSafe:
    system, (policies, initial) = reference_1d(), reference_1d_policies()
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    parts = {
        "system": system,
        "policies": policies,
        "initial_safe": initial,
        "model": model,
        "bound": Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1),
        "cost_bound": RobustDP(Grid(system.state_box, (120,)), Task.of(system)),
        "episodes": 1,
    }
    return ActSafe(**{**parts, **changes})


OTHER = {
    "horizon": {"horizon": 1},
    "initial_state": {"initial_state": vector(-0.4)},
    "noise_std": {"noise_std": vector(0.005)},
    "budget": {"budget": 5.0},
    "cost": {"cost": IndicatorCost(vector(1.0).reshape(1, 1), vector(1.2))},
    "cost ": {"cost": HingeCost(vector(1.0), vector(1.0))},
}


@pytest.mark.parametrize("name", OTHER)
def test_a_bound_for_another_task_is_refused_by_name(name):
    """T = 1 in the program and T = 20 in the plant certified all 81 policies, 23 of them unsafe."""
    dp = RobustDP(Grid(reference_1d().state_box, (120,)), Task.of(reference_1d()).with_(**OTHER[name]))
    with pytest.raises(ValueError, match=f"one task throughout, got {name.strip()}"):
        algorithm(cost_bound=dp)


def test_a_model_with_another_noise_than_the_tasks_is_refused():
    system = reference_1d()
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=0.02, prior=system.known)
    with pytest.raises(ValueError, match=r"noise_std, got \[0.02\] against \[0.01\]"):
        algorithm(model=model)


def test_equal_tasks_from_two_plants_are_one_task():
    assert not Task.of(reference_1d()).differences(Task.of(reference_1d()))
    assert Task.of(reference_1d()).differences(Task.of(reference_1d(noise_std=0.02))) == [
        "noise_std [0.01] against [0.02]"
    ]


def test_a_session_for_another_task_is_refused():
    wrong = RobustDP(Grid(reference_1d().state_box, (120,)), Task.of(reference_1d()).with_(horizon=1))
    made = algorithm(start=lambda confidence: DPSession.start(wrong, confidence, reference_1d_policies()[0]))
    with pytest.raises(ValueError, match="session: expected one task throughout, got horizon 20 against 1"):
        made.run(torch.Generator().manual_seed(0))


def test_a_session_keeps_no_boxes_of_another_program():
    """The last boxes are those of x_0: with them a program for another x_0 spoke of the old one."""
    case = make_case("1d", (4,))
    dp = RobustDP(Grid(case.system.state_box, (60,)), Task.of(case.system))
    session, index = DPSession.start(dp, case.confidence, case.policies), torch.arange(3)
    for other in (
        replace(dp, task=dp.task.with_(initial_state=vector(0.9))),
        replace(dp, grid=Grid(Box(vector(-2.0), vector(2.0)), (60,))),
    ):
        for ask in (DPSession.upper, DPSession.exploration):
            with pytest.raises(ValueError, match="its own cells and initial state"):
                ask(replace(session, dp=other), index)
    assert torch.equal(replace(session, dp=replace(dp, chunk=100)).upper(index), session.upper(index))


def test_a_task_owns_its_numbers():
    """A program made for σ = 0.01 whose plant then got σ = 0.1, in place, certified 41 policies as if nothing had happened."""
    system = reference_1d()
    task, dp = Task.of(system), RobustDP(Grid(system.state_box, (120,)), Task.of(system))
    system.noise_std.mul_(10)
    system.initial_state.add_(0.1)
    assert float(task.noise_std) == 0.01 and float(task.initial_state) == -0.5
    with pytest.raises(ValueError, match="one task throughout, got initial_state"):
        algorithm(system=system, cost_bound=dp)
    limit = vector(1.0)
    costs = IndicatorCost(vector(1.0).reshape(1, 1), limit), HingeCost(vector(1.0), limit)
    limit.add_(9.0)
    assert [float(cost.directions @ vector(0.0) - cost.excess(vector(0.0))) for cost in costs] == [1.0, 1.0]


def narrower(confidence: ConfidenceSet) -> ConfidenceSet:
    return ConfidenceSet(replace(confidence.bound, rkhs_norm=0.1), confidence.generations)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (
            lambda c, task, p: EvaluationSession(Hallucinated(task=task, seed=1), c, p, torch.Generator()),
            "a sound cost",
        ),
        (
            lambda c, task, p: GaussianTube(task=task).session(narrower(c), p),
            "a confidence set that continues",
        ),
        (lambda c, task, p: GaussianTube(task=task).session(c, p.select(torch.arange(9))), "the policies of the run"),
    ],
)
def test_a_session_of_other_parts_than_the_runs_is_refused(start, reason):
    task, policies = Task.of(reference_1d()), reference_1d_policies()[0]
    made = algorithm(start=lambda confidence: start(confidence, task, policies))
    with pytest.raises(ValueError, match=f"ActSafe: session: expected {reason}"):
        made.run(torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        (Mixture(rkhs_norm=4.5, subgaussian=1e-9, delta=0.1), "subgaussian R >= the task's noise"),
        (Lederer(delta=0.1, lower=(-3.0, -1.0), upper=(3.0, 1.0)), "lambda = noise_std"),
        (Constant(value=2.0), "sound confidence bound"),
        (Mixture(rkhs_norm=4.5, subgaussian=0.01, delta=0.1, unchecked=True), "sound confidence bound"),
    ],
)
def test_a_confidence_bound_that_does_not_cover_the_task_is_refused(bound, reason):
    system = reference_1d()
    model = GP.create(system.kernels, 4e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    with pytest.raises(ValueError, match=reason):
        algorithm(bound=bound, model=model)


def test_every_user_of_a_task_refuses_a_noise_that_f_n_does_not_cover():
    case = make_case("1d", (4,))
    quiet = ConfidenceSet(replace(case.confidence.bound, subgaussian=1e-4)).update(case.confidence.model)
    task = Task.of(case.system)
    for bound in (RobustDP(Grid(case.system.state_box, (60,)), task), ScenarioTube(task=task, seed=1, samples=4)):
        with pytest.raises(ValueError, match="subgaussian"):
            bound.evaluate(quiet, case.choose(2))
    pendulum = case_of(())
    quiet = ConfidenceSet(replace(pendulum.confidence.bound, subgaussian=1e-4)).update(pendulum.confidence.model)
    with pytest.raises(ValueError, match="PlanTube: expected subgaussian"):
        judge_of(pendulum).refine(quiet)


def test_a_run_of_parts_that_no_theorem_covers_says_so():
    heuristic = Constant(rkhs_norm=4.47, subgaussian=0.01, delta=0.1, value=1e-6)
    run = algorithm(bound=heuristic, unchecked=True).run(torch.Generator().manual_seed(0))
    assert run.unsound is not None and "constant" in run.unsound
    assert algorithm().run(torch.Generator().manual_seed(0)).unsound is None


def test_policies_beyond_the_plants_inputs_are_refused():
    policies = reference_1d_policies()[0]
    wide = AffinePolicies(policies.offset, policies.gain, Box(vector(-2.0), vector(2.0)))
    with pytest.raises(ValueError, match="input box"):
        algorithm(policies=wide)


@pytest.mark.parametrize(
    "change",
    [
        {"horizon": 0}, {"horizon": 2.0}, {"budget": -0.1}, {"budget": float("nan")}, {"budget": True},
        {"budget": vector(0.1, 0.2)}, {"noise_std": vector(-0.1)}, {"noise_std": vector(0.1, 0.1)},
        {"initial_state": vector(float("nan"))}, {"initial_state": torch.zeros(1, 1)},
        {"initial_state": torch.tensor([True])}, {"cost": lambda x: x},
    ],
)  # fmt: skip
def test_tasks_without_a_meaning_are_refused(change):
    with pytest.raises(ValueError, match="Task"):
        Task.of(reference_1d()).with_(**change)


MASK = torch.zeros(81, dtype=torch.bool)
MASK[[0, 3]] = True


@pytest.mark.parametrize(
    ("given", "members"),
    [
        ([3, 0, 3], [0, 3]),
        (torch.tensor([3, 0, 3]), [0, 3]),
        (torch.tensor([0, 3]).numpy(), [0, 3]),
        (MASK, [0, 3]),
        (MASK.numpy(), [0, 3]),
        (MASK.tolist(), [0, 3]),
        (range(3), [0, 1, 2]),
        (slice(2), [0, 1]),
        (slice(-2, None), [79, 80]),
        ({4, 1}, [1, 4]),
    ],
)
def test_s0_means_what_an_index_of_an_array_means(given, members):
    safe = SafePolicySet.initial(81, given, budget=0.2)
    assert sorted(safe.witnesses) == members == safe.members.tolist() and len(safe) == len(members)
    assert reachable(given, torch.full((81,), torch.inf), torch.ones(81, 81), budget=0.2, epsilon=0.1) == set(members)


@pytest.mark.parametrize(
    "given",
    [[70.9], torch.tensor([1.0]), [True, 2], [True, False], torch.ones(80, dtype=torch.bool), 5, "03", [81], [-1], [[0]],
     torch.zeros(81, dtype=torch.bool), slice(0, 0), None, [None], [float("nan")]],
)  # fmt: skip
def test_anything_else_as_s0_is_refused(given):
    with pytest.raises(ValueError, match="S_0"):
        SafePolicySet.initial(81, given, budget=0.2)
    with pytest.raises(ValueError, match="S_0"):
        algorithm(initial_safe=given)


def test_distances_below_zero_are_refused_and_nan_admits_nobody():
    distance = torch.ones(3, 3).double()
    distance[0, 1] = torch.nan
    zero = torch.zeros(3).double()
    unknown = torch.full((3,), torch.inf).double()
    unknown[0] = 0.0
    assert len(SafePolicySet.initial(3, [0], budget=0.2).expand(unknown, episode=1, bound="b", distance=distance)) == 1
    assert reachable([0], zero, distance, budget=0.2, epsilon=0.1) == {0}
    distance[0, 1] = -0.1
    with pytest.raises(ValueError, match="distance >= 0"):
        SafePolicySet.initial(3, [0], budget=0.2).expand(torch.ones(3), episode=1, bound="b", distance=distance)
    with pytest.raises(ValueError, match="distance >= 0"):
        reachable([0], torch.ones(3), distance, budget=0.2, epsilon=0.1)
