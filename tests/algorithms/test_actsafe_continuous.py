"""ActSafe on continuous parameters: members are truly safe, S_n grows, only members run, fooled searches change nothing."""

import pytest
import torch

from gpsafe.algorithms.actsafe_continuous import ContinuousActSafe
from gpsafe.confidence import ConfidenceSet, Constant, Memberless, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.models import GP
from gpsafe.planning.search import FiniteGrid, LogBarrier, RandomSearch
from gpsafe.policies.parametric import feedback_family, set_point_family
from gpsafe.safety.safe_set import PolicyGap
from gpsafe.sets import Box
from gpsafe.systems.reference import reference_1d, reference_pendulum
from gpsafe.systems.task import Task


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def algorithm():
    plant = reference_1d()
    family = set_point_family((-0.6, 1.4), (1.0, 6.0), input_box=plant.input_box)
    model = GP.create(plant.kernels, 1e-4, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
    bound = Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    dp = RobustDP(Grid(Box(vector(-2.0), vector(1.5)), (500,)), Task.of(plant))
    initial = torch.tensor([[-0.5, 3.0], [-0.4, 3.0]]).double()
    return ContinuousActSafe(
        plant, family, initial, model, bound, dp, LogBarrier(steps=6), episodes=3, exploit=1, starts=4, rounds=4,
        pessimism="sampled", rollouts={"paths": 2, "draws": 3, "features": 64},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(algorithm):
    return algorithm.run(torch.Generator().manual_seed(0))


def true_cost(algorithm, theta: torch.Tensor) -> torch.Tensor:
    dp = algorithm.cost_bound
    confidence = ConfidenceSet(algorithm.bound).update(algorithm.model)
    enclosure = dp.enclosure(confidence, algorithm.family(theta))
    return dp.lower(enclosure.with_residual(algorithm.system.residual_fn(enclosure.z)))


def test_members_and_executed_policies_are_truly_safe(algorithm, run):
    assert bool((true_cost(algorithm, run.safe.theta) <= algorithm.system.budget).all())
    executed = torch.stack([e.theta for e in run.episodes])
    assert bool((torch.cdist(executed, run.safe.theta).amin(-1) == 0).all())
    assert run.falsified is None and all(e.cost == 0.0 for e in run.episodes)


def test_the_safe_set_grows_and_every_member_has_its_witness(algorithm, run):
    sizes = [e.size for e in run.episodes]
    assert sizes == sorted(sizes) and sizes[-1] > 4 and len(run.safe) == sizes[-1]
    for witness in run.safe.witnesses[2:]:
        assert witness.rule == "bound" and witness.value <= algorithm.system.budget
    assert [e.goal for e in run.episodes] == ["exploration"] * 3 + ["reward"]
    assert float(run.safe.theta[:, 0].max()) > -0.3  # beyond S_0


def test_refused_proposals_are_recorded(run):
    for episode in run.episodes:
        rows = len(episode.proposals.points)
        assert len(episode.decisions.rule) == rows == len(episode.decisions.upper)
    assert any(not bool(e.decisions.accepted.all()) for e in run.episodes)


def test_the_parameters_of_an_episode_are_no_view_of_the_safe_set(algorithm):
    done = algorithm.with_(episodes=1, exploit=0).run(0)
    kept = done.safe.theta.clone()
    done.episodes[0].theta.mul_(57.3)  # to degrees, for a table
    assert torch.equal(done.safe.theta, kept)


def test_same_seed_same_run(algorithm, run):
    again = algorithm.with_(episodes=2, exploit=0).run(0)  # an integer is a seed
    with pytest.raises(ValueError, match=r"ContinuousActSafe.run: expected a torch.Generator or an integer seed"):
        algorithm.run(-1)
    assert all(torch.equal(a.states, b.states) for a, b in zip(again.episodes, run.episodes, strict=False))


def test_a_search_that_proposes_only_unsafe_policies_changes_nothing_but_by_backing_off(algorithm):
    unsafe = FiniteGrid(torch.tensor([[0.95, 0.5], [1.0, 0.9], [0.9, 0.2]]).double())  # set-points beyond x = 1
    stubborn = algorithm.with_(search=unsafe, episodes=2, exploit=1, rounds=0)
    run = stubborn.run(torch.Generator().manual_seed(0))
    assert len(run.safe) == 2 and not any(bool(e.decisions.accepted.any()) for e in run.episodes)
    backing = stubborn.with_(rounds=5).run(torch.Generator().manual_seed(0))
    assert len(backing.safe) > 2
    assert bool((true_cost(algorithm, backing.safe.theta) <= algorithm.system.budget).all())


def test_heuristic_confidence_is_refused(algorithm):
    wrong = Constant(rkhs_norm=4.47, subgaussian=0.01, delta=0.1, value=2.0)
    with pytest.raises(ValueError, match="sound"):
        algorithm.with_(bound=wrong, search=RandomSearch(4)).run(torch.Generator().manual_seed(0))


def test_a_gap_of_fewer_steps_than_the_task_has_is_refused(algorithm):
    """Its D is too small, and policies would be admitted that nobody certified; as in `ActSafe`, it is refused."""
    task = algorithm.cost_bound.task

    def gap(horizons: list[int], ceiling: float):
        return lambda first, second: PolicyGap(torch.zeros(first.num, second.num).double(), horizons.pop(), ceiling)

    algorithm.with_(distance=gap([task.horizon], 1.0))
    for horizon, ceiling in ((task.horizon - 1, 1.0), (task.horizon, 0.5)):
        with pytest.raises(ValueError, match="ContinuousActSafe: expected a PolicyGap of T >="):
            algorithm.with_(distance=gap([horizon], ceiling))
    later = algorithm.with_(distance=gap([task.horizon - 1, task.horizon], 1.0))
    with pytest.raises(ValueError, match="ContinuousActSafe: expected a PolicyGap of T >="):
        later._gap(algorithm.family(algorithm.initial), algorithm.family(algorithm.initial))


def test_a_false_norm_is_reported(algorithm):
    wrong = Mixture(rkhs_norm=0.002, subgaussian=0.01, delta=0.1)
    run = algorithm.with_(bound=wrong, search=RandomSearch(4)).run(torch.Generator().manual_seed(0))
    assert run.falsified is not None and len(run.episodes) < 4


def test_a_norm_that_no_function_fits_is_reported_though_no_point_shows_it(algorithm):
    """Nothing crosses at the data or between them, and no function of a tenth of the norm is in the ellipsoid: five episodes
    were flown as guaranteed by an F_n without members."""
    wrong = Mixture(rkhs_norm=tuple((0.1 * reference_1d().rkhs_norm).tolist()), subgaussian=0.01, delta=0.1)
    run = algorithm.with_(bound=wrong, search=RandomSearch(4), episodes=5).run(torch.Generator().manual_seed(0))
    assert isinstance(run.falsified, Memberless) and len(run.episodes) < 5
    axes = [torch.linspace(low, high, 40, dtype=torch.float64) for low, high in ((-2.0, 1.5), (-1.0, 1.0))]
    assert not bool(run.confidence.empty(torch.cartesian_prod(*axes)).any())


def test_data_that_refute_an_assumption_are_reported_before_anything_is_run(algorithm):
    z, y = torch.zeros(4, 2).double(), torch.full((4, 1), 5.0).double()
    run = algorithm.with_(model=algorithm.model.condition_on(z, y)).run(torch.Generator().manual_seed(0))
    assert run.falsified is not None and not run.episodes


@pytest.mark.slow
def test_three_feedback_parameters_of_the_pendulum_expand_under_the_two_dimensional_certifier():
    plant = reference_pendulum()
    family = feedback_family(vector(-2.5, 2.0, 0.5), vector(4.0, 3.5, 1.0), input_box=plant.input_box, nx=2)
    model = GP.create(
        plant.kernels, 1e-4, nx=2, nu=1, noise_std=plant.noise_std, prior=plant.known, outputs=plant.outputs
    )
    bound = Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    grid = Grid(Box(vector(-1.6, -5.0), vector(1.6, 5.0)), (160, 160))
    dp = RobustDP(grid, Task.of(plant))
    initial = torch.tensor([[-1.9, 2.667, 0.733], [-1.1, 2.667, 0.733]]).double()
    algorithm = ContinuousActSafe(
        plant, family, initial, model, bound, dp, LogBarrier(steps=6), episodes=3, exploit=0, starts=3, rounds=4,
        pessimism="sampled", rollouts={"paths": 2, "draws": 3},
    )  # fmt: skip
    run = algorithm.run(torch.Generator().manual_seed(0))
    assert len(run.safe) > 4 and float(run.safe.theta[:, 0].max()) > 0.0  # far beyond the offsets of S_0
    assert bool((true_cost(algorithm, run.safe.theta) <= plant.budget).all())
    assert all(float(e.states[:, 0].max()) < 1.2 for e in run.episodes)
