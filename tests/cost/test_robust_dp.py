"""The robust dynamic program rounds up at every step, and equals its naive form."""

import math
from dataclasses import replace

import pytest
import torch
from cost_cases import make_case
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds

from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost.enclosure import enclose
from gpsafe.cost.grid import Averager, Grid
from gpsafe.cost.robust_dp import RobustDP, sweep
from gpsafe.cost.session import DPSession
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
)
from gpsafe.systems.task import Task

SOLVE = 1e-8


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator(seed))


def cell_probability(mean: float, std: float, low: float, high: float) -> float:
    cdf = lambda v: 0.5 * (1 + math.erf((v - mean) / (std * math.sqrt(2))))  # noqa: E731
    return cdf(high) - cdf(low)


def exact_average(value: list[float], mean: float, std: float, low: float, width: float, outside: float) -> float:
    """E V(mean + w) for piecewise constant V, by one Φ-difference a cell."""
    inside = [cell_probability(mean, std, low + i * width, low + (i + 1) * width) for i in range(len(value))]
    return sum(p * v for p, v in zip(inside, value, strict=True)) + (1 - sum(inside)) * outside


@given(seeds(), st.integers(1, 3), st.sampled_from([0.0, 0.02, 0.1, 0.7]))
def test_average_dominates_every_mean_in_its_sub_cell(seed, split, std):
    grid = Grid(Box(torch.tensor([0.0]), torch.tensor([1.0])), (9,), (split,))
    value = uniform(seed, 1, 9)
    outside = 1.5
    table = Averager(grid, torch.tensor([std], dtype=torch.float64), value.device)(value, outside)[0]
    position = uniform(seed + 1, 9 * split)
    for j in range(9 * split):
        mean = (j + float(position[j])) / (9 * split)
        if std == 0.0:
            truth = float(value[0, min(int(mean * 9), 8)])
        else:
            truth = exact_average(value[0].tolist(), mean, std, 0.0, 1 / 9, outside)
        assert table[j] >= truth - 1e-12
    assert bool((table <= outside + 1e-12).all())


@given(seeds())
def test_two_dimensional_average_dominates_the_exact_one(seed):
    grid = Grid(Box(torch.zeros(2), torch.ones(2)), (5, 4))
    value, outside, std = uniform(seed, 1, 5, 4), 1.2, torch.tensor([0.1, 0.2], dtype=torch.float64)
    table = Averager(grid, std, value.device)(value, outside)[0]
    where = uniform(seed + 1, 5, 4, 2)
    for i in range(5):
        for j in range(4):
            m0, m1 = (i + float(where[i, j, 0])) / 5, (j + float(where[i, j, 1])) / 4
            rows = [exact_average(value[0, a].tolist(), m1, 0.2, 0.0, 0.25, outside) for a in range(5)]
            assert table[i, j] >= exact_average(rows, m0, 0.1, 0.0, 0.2, outside) - 1e-12


def naive_sweep(cells, width, std, low, high, stage, horizon, rate):
    """The same recursion in scalar loops: 2-neighbour average at each cell centre, then the max over touched cells."""
    value = list(stage)
    for t in range(1, horizon):
        outside = t * rate
        padded = [outside, *value, outside]
        table = []
        for j in range(cells):
            center = (j + 0.5) * width
            total, mass = 0.0, 0.0
            for edge in range(cells + 1):
                p = cell_probability(center, std, (edge - 0.5) * width, (edge + 0.5) * width)
                total += p * max(padded[edge], padded[edge + 1])
                mass += p
            table.append(total + (1 - mass) * outside)
        new = []
        for j in range(cells):
            if low[j] < 0 or high[j] > cells * width:
                new.append(outside + stage[j])
                continue
            touched = [i for i in range(cells) if (i + 1) * width >= low[j] - 1e-12 and i * width <= high[j] + 1e-12]
            new.append(max(table[i] for i in touched) + stage[j])
        value = new
    return value


@given(seeds(), st.integers(1, 5))
def test_sweep_equals_scalar_loops(seed, horizon):
    cells, width, std = 7, 0.3, 0.25
    grid = Grid(Box(torch.zeros(1), torch.tensor([2.1], dtype=torch.float64)), (cells,))
    a, b = uniform(seed, 1, cells, 1) * 2.4 - 0.1, uniform(seed + 1, 1, cells, 1) * 0.5
    stage = uniform(seed + 2, 1, cells)
    got = sweep(
        Averager(grid, torch.tensor([std]).double(), a.device), a, a + b, stage, horizon=horizon, outside_rate=1.0
    )
    naive = naive_sweep(
        cells, width, std, a[0, :, 0].tolist(), (a + b)[0, :, 0].tolist(), stage[0].tolist(), horizon, 1.0
    )
    assert torch.allclose(got[0], torch.tensor(naive, dtype=torch.float64), atol=1e-12, rtol=0)


@given(seeds(), st.integers(1, 2))
def test_sweep_is_monotone_in_boxes_and_stage(seed, dim):
    cells = (6, 5)[:dim]
    grid = Grid(Box(torch.zeros(dim), torch.ones(dim)), cells)
    std = torch.full((dim,), 0.15, dtype=torch.float64)
    low = uniform(seed, 2, grid.num, dim)
    high = low + 0.3 * uniform(seed + 1, 2, grid.num, dim)
    stage = uniform(seed + 2, 2, grid.num)
    average = Averager(grid, std, low.device)
    small = sweep(average, low, high, stage, horizon=4, outside_rate=1.0)
    wide = sweep(average, low - 0.1, high + 0.05, stage, horizon=4, outside_rate=1.0)
    more = sweep(average, low, high, (stage + 0.1).clamp_max(1.0), horizon=4, outside_rate=1.0)
    assert bool((wide >= small - 1e-12).all()) and bool((more >= small - 1e-12).all())
    assert bool((wide <= 4.0 + 1e-12).all())


@pytest.mark.parametrize("which", ["1d", "pendulum"])
@dear()
@given(seed=seeds())
def test_enclosure_contains_the_true_next_mean(which, seed):
    case = make_case(which, ())
    system, policies = case.system, case.choose(3, 20, 40)
    centers = system.state_box.sample(40, generator(seed)) * 0.9
    radius = 0.05 * uniform(seed + 1, 40, system.nx)
    model = GP.create(
        system.kernels, 1e-4, nx=system.nx, nu=1, noise_std=system.noise_std, outputs=system.outputs,
        prior=system.known,
    )  # fmt: skip
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    confidence = ConfidenceSet(bound).update(model)
    enclosure = enclose(centers, radius, confidence, policies)
    tight = enclosure.with_residual(system.residual_fn(enclosure.z))
    x = centers + radius * (2 * uniform(seed + 2, 3, 40, system.nx) - 1)
    truth = system.mean(x, policies(x))
    for candidate in (enclosure, tight):
        low, high = candidate.boxes()
        assert bool((truth >= low - 1e-12).all()) and bool((truth <= high + 1e-12).all())


@pytest.fixture(scope="module")
def one_d():
    system = reference_1d()
    policies, _ = reference_1d_policies()
    grid = Grid(system.state_box, (801,))
    dp = RobustDP(grid, Task.of(system))
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    return system, policies.select(torch.arange(40, 70, 3)), dp, ConfidenceSet(bound).update(model)


def test_true_cost_lies_between_lower_and_upper_sweep(one_d):
    system, policies, dp, confidence = one_d
    enclosure = dp.enclosure(confidence, policies)
    exact = enclosure.with_residual(system.residual_fn(enclosure.z))
    upper, lower = dp.upper(exact), dp.lower(exact)
    noise = sample_noise(system.noise_std, (system.horizon, 1, 4000), generator(0))
    states, _ = closed_loop(system.mean, policies, system.initial_state, noise)
    costs = system.cost(states[..., :-1, :]).sum(-1)
    margin = 5 * costs.std(-1) / 4000**0.5 + 1e-3
    assert bool((lower <= costs.mean(-1) + margin).all())
    assert bool((upper >= costs.mean(-1) - margin).all())
    tight = (upper - lower) < 0.01  # all but the policy at the very boundary, where costs jump by 14
    assert int(tight.sum()) == 9 and float(costs.mean(-1).max()) > 10 > 0.1 > float(costs.mean(-1).min())


def test_uninformed_bound_dominates_the_true_cost_and_control_is_caught(one_d):
    system, policies, dp, confidence = one_d
    interval = dp.evaluate(confidence, policies)
    enclosure = dp.enclosure(confidence, policies)
    truth = dp.lower(enclosure.with_residual(system.residual_fn(enclosure.z)))
    assert interval.sound_upper and bool((interval.upper >= truth).all())
    wrong = dp.upper(enclosure.with_residual(torch.full_like(enclosure.low, -0.1)))  # not the true residual
    assert bool((wrong < truth - 0.5).any())


def test_evaluation_in_chunks_of_policies_changes_nothing(one_d):
    _, policies, dp, confidence = one_d
    small = RobustDP(dp.grid, dp.task, chunk=801)
    whole, parts = dp.evaluate(confidence, policies).upper, small.evaluate(confidence, policies).upper
    assert torch.allclose(whole, parts, atol=SOLVE, rtol=0)


def test_horizon_one_is_the_cost_of_the_initial_state(one_d):
    _, policies, dp, confidence = one_d
    single = RobustDP(dp.grid, dp.task.with_(initial_state=torch.tensor([1.2], dtype=torch.float64), horizon=1))
    assert torch.allclose(single.evaluate(confidence, policies).upper, torch.ones(policies.num).double(), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"initial_state": torch.tensor([9.0], dtype=torch.float64)},
        {"initial_state": torch.zeros(2).double(), "noise_std": torch.ones(2).double()},
    ],
)
def test_tasks_of_another_grid_are_refused(one_d, change):
    _, _, dp, _ = one_d
    with pytest.raises(ValueError, match="RobustDP"):
        RobustDP(dp.grid, dp.task.with_(**change))


def test_grids_of_five_dimensions_are_refused():
    with pytest.raises(ValueError, match="Grid"):
        Grid(Box(torch.zeros(5), torch.ones(5)), (2, 2, 2, 2, 2))


def growth(kernel):
    """x⁺ = f(x, u), u = x, with f(x, x) = 0.9·1.41x of norm 0.9: it leaves x ≤ 1 soon, from 0.3."""
    known = AffineKnown(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    f = RKHSFunction(kernel, torch.ones(1, 2).double(), torch.ones(1).double()).scaled_to(0.9)
    std = torch.tensor([0.01], dtype=torch.float64)
    policies = AffinePolicies(
        torch.zeros(2, 1), torch.tensor([0.0, 1.0]).reshape(2, 1, 1), Box(-torch.ones(1), torch.ones(1))
    )
    cost = IndicatorCost(torch.ones(1, 1), torch.ones(1))
    box = Box(torch.tensor([-0.3]).double(), torch.tensor([3.0]).double())
    dp = RobustDP(Grid(box, (330,)), Task(torch.tensor([0.3]).double(), 20, cost, 0.2, std))
    model = GP.create(kernel, 1e-4, nx=1, nu=1, noise_std=std, prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.9, subgaussian=0.01, delta=0.1)).update(model)
    noise = sample_noise(std, (20, 1, 500), generator(0))
    mean = lambda x, u: f(torch.cat([x, u], -1)).unsqueeze(-1)  # noqa: E731
    states, _ = closed_loop(mean, policies, dp.initial_state, noise)
    return dp, confidence, policies, cost(states[..., :-1, :]).sum(-1).mean(-1)


@pytest.mark.parametrize("family", ["linear", "additive"])
def test_the_ball_is_as_wide_in_every_cell_as_the_kernel_is_there(family):
    """With the cap B√k of the first cell and policy, a linear kernel was certified 0.25 where the truth is 14.5."""
    linear = kernels.linear(1.0)
    kernel = linear if family == "linear" else kernels.additive(kernels.rbf([1.0, 1.0], 0.01), linear)
    dp, confidence, policies, truth = growth(kernel)
    assert float(truth.max()) > 14
    assert bool((dp.evaluate(confidence, policies).upper >= truth).all())
    found = dp.enclosure(confidence, policies).refine(confidence)
    wrong = replace(found, cap=found.cap[:1, :1].expand_as(found.cap))
    assert bool((dp.upper(wrong) < truth - 0.5).any())


def test_the_box_of_the_double_integrator_contains_its_twin():
    twin = DoubleIntegrator().twin()
    model = GP.create(twin.kernels, 1e-4, nx=2, nu=1, noise_std=twin.noise_std, outputs=twin.outputs, prior=twin.known)
    bound = Mixture(rkhs_norm=tuple(twin.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    gain = torch.tensor([[[0.0, 0.0]], [[-0.5, -1.0]]], dtype=torch.float64)
    policies = AffinePolicies(torch.tensor([[0.0], [1.0]]).double(), gain, twin.input_box)
    centers = torch.cat([torch.zeros(1, 2).double(), twin.state_box.sample(50, generator(0))])
    radius = torch.full_like(centers, 0.01)
    low, high = enclose(centers, radius, ConfidenceSet(bound).update(model), policies).boxes()
    for x in (centers - radius, centers, centers + radius):
        truth = twin.mean(x.expand(2, -1, -1), policies(x.expand(2, -1, -1)))
        assert bool((truth >= low).all()) and bool((truth <= high).all())


def test_every_upper_value_is_rounded_up_and_every_lower_one_down(one_d):
    system, policies, dp, confidence = one_d
    session = DPSession.start(dp, confidence, policies)
    index = torch.arange(policies.num)
    assert torch.equal(session.upper(index), dp.evaluate(confidence, policies).upper)
    cells = session.enclosure
    stage = dp.cost.upper(cells.centers - cells.radius, cells.centers + cells.radius).unsqueeze(0)
    raw, ceiling = dp._run(cells, stage, dp.cost.ceiling), dp.horizon * dp.cost.ceiling
    assert bool((session.upper(index) >= torch.clamp(raw + 1e-9 * (dp.cost.ceiling + raw), max=ceiling)).all())
    assert bool((session.upper(index) <= ceiling).all())
    exact = cells.with_residual(system.residual_fn(cells.z))
    assert bool((dp.lower(exact) < dp.upper(exact)).all())


def test_a_bound_without_a_norm_is_refused(one_d):
    _, policies, dp, confidence = one_d
    endless = ConfidenceSet(Constant(value=2.0)).update(confidence.model)
    with pytest.raises(ValueError, match="finite RKHS norm"):
        dp.evaluate(endless, policies)
