"""What cost bounds share, and what sessions answer, against their definitions."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cost_cases import generator, make_case

from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost import monte_carlo
from gpsafe.cost._lineage import _equal, continues, require_continuation
from gpsafe.cost._task import check_task
from gpsafe.cost.base import CostInterval
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.session import DPSession, EvaluationSession
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import HingeCost, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task


@pytest.fixture(scope="module")
def case():
    return make_case("1d", (4, 12))


def test_a_bound_speaks_of_its_task_and_shares_delta_over_its_stages(case):
    task = Task.of(case.system)
    bound = TotalVariation(task=task, seed=5, samples=7, delta=0.03, calls=2)
    assert bound.initial_state is task.initial_state and bound.cost is task.cost and bound.noise_std is task.noise_std
    assert bound.horizon == task.horizon and bound.total_ceiling == task.horizon * task.cost.ceiling
    F, none = case.confidence, ConfidenceSet(case.confidence.bound)
    assert (bound.stage(F), bound.stage(none)) == (len(F.generations), 1) == (3, 1)
    assert bound.stage_delta(F) == monte_carlo.stage_delta(0.03, 3, calls=2)
    for paths in (None, 4):
        exact = monte_carlo.noise_paths(
            task.noise_std, task.horizon, paths or 7, seed=5, stage=3, purpose=9, device=task.initial_state.device
        )
        assert torch.equal(bound.noise(F, 9, paths=paths), exact)
    draws = [torch.rand(3, generator=g) for g in (bound.generator(F, 2), monte_carlo.stream(5, 3, 2))]
    assert torch.equal(*draws)


def test_intervals_that_say_no_more_are_of_a_deterministic_bound():
    plain = CostInterval(torch.zeros(2), torch.ones(2), True, "by hand")
    assert (plain.delta, plain.assumptions, plain.vacuous.shape) == (0.0, (), (0,))


def test_the_smallest_options_are_allowed(case):
    bound = TotalVariation(task=Task.of(case.system), seed=0, samples=2)
    assert (bound.seed, bound.samples, bound.delta, bound.calls) == (0, 2, 0.01, 1)


@pytest.mark.parametrize("change", [{"samples": 1}, {"seed": -1}, {"calls": 0}, {"delta": 0.0}, {"delta": 1.5}])
def test_bad_options_of_monte_carlo_bounds_are_refused(case, change):
    with pytest.raises(ValueError, match="TotalVariation"):
        TotalVariation(**{"task": Task.of(case.system), "seed": 5, **change})


def test_a_plant_is_no_task(case):
    with pytest.raises(ValueError, match="TotalVariation: expected task to be a Task, got "):
        TotalVariation(task=case.system, seed=5)


def test_noise_that_the_theorem_does_not_cover_and_other_dimensions_are_refused(case):
    task = Task.of(case.system)
    check_task("here", task, case.confidence)
    with pytest.raises(ValueError, match="here"):
        check_task("here", task.with_(noise_std=2 * task.noise_std), case.confidence)
    other = make_case("pendulum", ())
    with pytest.raises(ValueError, match="here: expected an initial state of dimension 2, got 1"):
        check_task("here", task, other.confidence)
    pendulum = Task.of(other.system)
    with pytest.raises(ValueError, match="here"):  # the noise of the learned state is the one that counts
        check_task("here", pendulum.with_(noise_std=pendulum.noise_std * torch.tensor([1.0, 2.0])), other.confidence)
    check_task("here", pendulum.with_(noise_std=pendulum.noise_std + torch.tensor([5.0, 0.0])), other.confidence)
    with pytest.raises(ValueError, match="TotalVariation: expected an initial state of dimension 2, got 1"):
        TotalVariation(task=task, seed=5).check(other.confidence)


def test_a_set_goes_on_where_another_stood_by_its_numbers(case):
    F = case.confidence
    again = make_case("1d", (4, 12)).confidence
    first = ConfidenceSet(F.bound, F.generations[:2])
    assert continues(F, 3, F) and continues(F, 3, again) and continues(first, 2, again)
    assert not continues(F, 3, first) and continues(F, 2, first)
    assert not continues(F, 3, make_case("1d", (4, 13)).confidence) and continues(
        F, 2, make_case("1d", (4, 13)).confidence
    )
    assert not continues(F, 2, make_case("1d", (5, 12)).confidence) and continues(
        F, 1, make_case("1d", (5, 12)).confidence
    )
    other = Mixture(rkhs_norm=F.bound.rkhs_norm, subgaussian=F.bound.subgaussian, delta=0.05)
    assert not continues(F, 3, ConfidenceSet(other, F.generations))


def test_sets_without_data_differ_by_their_prior(case):
    system, bound = case.system, case.confidence.bound

    def fresh(regularizer=1e-4, **change) -> ConfidenceSet:
        prior = AffineKnown(*(change.get(name, torch.eye(1).double()) for name in "AB"), torch.zeros(1).double())
        kernel = kernels.rbf(change.get("scale", 1.0), 1.0)
        model = GP.create(kernel, regularizer, nx=1, nu=1, noise_std=system.noise_std, prior=prior)
        return ConfidenceSet(bound).update(model)

    assert continues(fresh(), 1, fresh())
    for change in (
        {"regularizer": 2e-4},
        {"A": 2 * torch.eye(1).double()},
        {"B": torch.zeros(1, 1).double()},
        {"scale": 2.0},
    ):
        assert not continues(fresh(), 1, fresh(**change)) and not continues(fresh(), 0, fresh(**change))
    assert not continues(fresh(), 1, case.confidence)


def test_every_posterior_of_the_past_has_the_prior_that_it_had(case):
    """A set that claims nothing may be refitted from one generation to the next: each counts with its own kernel."""
    system, bound = case.system, Constant(rkhs_norm=1.0, subgaussian=0.1, value=2.0)

    def posterior(scale: float) -> GP:
        prior = AffineKnown(torch.eye(1).double(), torch.eye(1).double(), torch.zeros(1).double())
        return GP.create(kernels.rbf(scale, 1.0), 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=prior)

    def refitted(*scales: float) -> ConfidenceSet:
        return ConfidenceSet(bound, tuple(posterior(scale) for scale in scales))

    assert continues(refitted(0.5, 1.0), 2, refitted(0.5, 1.0)) and continues(refitted(0.5, 1.0), 1, refitted(0.5, 1.0))
    assert not continues(refitted(0.5, 1.0), 1, refitted(0.6, 1.0))


def test_sessions_answer_for_the_policies_asked(case):
    policies, F = case.choose(4, 20, 33, 50), case.confidence
    dp = RobustDP(Grid(case.system.state_box, (60,)), Task.of(case.system))
    first = ConfidenceSet(F.bound, F.generations[:1])
    session = DPSession.start(dp, first, policies).update(F)
    assert session.task is dp.task and session.confidence is F and session.upper(torch.tensor([])).shape == (0,)
    index = torch.tensor([2, 0])
    whole = dp.evaluate(F, policies).upper
    torch.testing.assert_close(session.upper(index), whole[index])
    std = F.model.posterior(session.enclosure.z)[1].norm(dim=-1)
    exact = dp.exploration(session.enclosure, std)
    torch.testing.assert_close(session.exploration(index), exact[index])
    assert session.falsified() is None
    low = session.enclosure.low.clone()
    low[1, 7] = session.enclosure.high[1, 7] + 1.0
    assert replace(session, enclosure=replace(session.enclosure, low=low)).enclosure.empty()


def test_a_session_of_evaluations_explores_along_the_mean(case):
    policies, F = case.choose(4, 20, 33), case.confidence
    bound = TotalVariation(task=Task.of(case.system), seed=5, samples=8)
    session = EvaluationSession(
        bound, ConfidenceSet(F.bound, F.generations[:1]), policies, generator(3), paths=6
    ).update(F)
    assert session.task is bound.task and session.upper(torch.tensor([])).shape == (0,)
    index = torch.tensor([2, 1])
    assert torch.equal(session.upper(index), bound.evaluate(F, policies.select(index)).upper)
    noise = sample_noise(bound.noise_std, (bound.horizon, 1, 6), generator(3))
    states, inputs = closed_loop(
        lambda x, u: F.model.predict(x, u).mean, policies.select(index), bound.initial_state, noise
    )
    std = F.model.posterior(torch.cat([states[..., :-1, :], inputs], -1))[1].norm(dim=-1)
    torch.testing.assert_close(session.exploration(index), std.sum(-1).mean(-1))
    plain = EvaluationSession(bound, F, policies, generator(3))
    assert plain.paths == 16 and torch.equal(
        plain.exploration(index), replace(plain, generator=generator(3), paths=16).exploration(index)
    )
    assert session.falsified() is None


def test_histories_are_equal_in_shape_and_number_and_a_missing_one_equals_none_only(case):
    one, two = torch.ones(1).double(), torch.ones(2).double()
    assert _equal(None, None) and _equal(one, one.clone())
    assert not _equal(None, one) and not _equal(one, None) and not _equal(one, two) and not _equal(one, 2 * one)
    F = case.confidence
    first = ConfidenceSet(F.bound, F.generations[:2])
    require_continuation("here", first, F)
    require_continuation("here", F, F)
    with pytest.raises(ValueError, match="here: expected a confidence set that continues the last one, got another"):
        require_continuation("here", F, first)


def two_outputs() -> ConfidenceSet:
    family = [kernels.rbf([0.7, 1.0, 2.0], 0.5), kernels.rbf([1.5, 1.0, 1.0], 0.1)]
    prior = AffineKnown(0.9 * torch.eye(2).double(), torch.ones(2, 1).double(), torch.zeros(2).double())
    model = GP.create(family, 0.01, nx=2, nu=1, noise_std=0.1, prior=prior)
    z = torch.randn(4, 3, dtype=torch.float64, generator=generator(1))
    bound = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
    return ConfidenceSet(bound).update(model.condition_on(z, 0.1 * z[:, :2]))


def test_deviations_of_several_outputs_are_taken_together():
    """‖σ_n‖ is Euclidean: what the robust program is given, and what is summed along a path of the mean."""
    F, seen = two_outputs(), []
    z = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator(2))
    part = SimpleNamespace(z=z, select=lambda index: SimpleNamespace(z=z[index]))
    dp = SimpleNamespace(exploration=lambda enclosure, std: seen.append(std) or std.sum(-1))
    DPSession(dp, F, part).exploration(torch.tensor([1]))  # type: ignore[arg-type]
    std = F.model.posterior(z[1:])[1]
    torch.testing.assert_close(seen[0], std.square().sum(-1).sqrt())
    task = Task(torch.zeros(2), 3, HingeCost(torch.tensor([1.0, 0.0]), 1.0, 1.0), 0.1, torch.tensor([0.1, 0.2]))
    policies = AffinePolicies(torch.zeros(1, 1), torch.zeros(1, 1, 2), Box(-torch.ones(1), torch.ones(1)))
    session = EvaluationSession(SimpleNamespace(task=task), F, policies, generator(3), paths=2)  # type: ignore[arg-type]
    noise, total = sample_noise(task.noise_std, (3, 1, 2), generator(3)), 0.0
    for n in range(2):
        x = task.initial_state
        for t in range(3):
            u = policies(x.reshape(1, 1, 2)).reshape(-1)
            total += float(F.model.posterior(torch.cat([x, u])[None])[1].square().sum().sqrt()) / 2
            x = F.model.predict(x[None], u[None]).mean[0] + noise[t, 0, n]
    assert float(session.exploration(torch.tensor([0]))) == pytest.approx(total, rel=1e-9)


def test_sessions_tell_where_the_set_is_empty(case):
    F, policies = case.confidence, case.choose(4)
    empty = ConfidenceSet(replace(F.bound, rkhs_norm=1e-3), F.generations)
    dp = RobustDP(Grid(case.system.state_box, (20,)), Task.of(case.system))
    assert DPSession.start(dp, empty, policies).falsified() is not None
    bound = TotalVariation(task=Task.of(case.system), seed=5, samples=8)
    assert EvaluationSession(bound, empty, policies, generator(3)).falsified() is not None
    none = ConfidenceSet(F.bound, F.generations[:1])
    assert none.model.inputs is None and EvaluationSession(bound, none, policies, generator(3)).falsified() is None
