"""Certified maps hold the probabilities of the plant and of members of F_n, and equal their naive form."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from strategies import seeds

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.members import extremal_member
from gpsafe.cost.enclosure import Enclosure
from gpsafe.cost.grid import Averager, Grid, RangeMax
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import kernels
from gpsafe.safety import CertifiedMap, certified_map
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.chain import chain, chain_policies
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.task import Task

WIDE = Box(vector(-2.5), vector(2.5))
SQUARE = Box(vector(0.0, 0.0), vector(1.0, 1.0))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator(seed))


# ------------------------------------------------------------------------------------------- a plant that is known exactly
def known_line(slope: float, offset: float, std: float, limit: float, horizon: int):
    """x⁺ = slope x + offset + w with a residual that is nothing; safe is x ≤ limit."""
    one = torch.ones(1, 1).double()
    known = AffineKnown(slope * one, one, vector(0.0))
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=vector(std), prior=known)
    bound = Mixture(rkhs_norm=1e-15, subgaussian=std, delta=0.1)
    policies = AffinePolicies(
        vector(offset).reshape(1, 1), torch.zeros(1, 1, 1).double(), Box(vector(-9.0), vector(9.0))
    )
    task = Task(vector(0.0), horizon, IndicatorCost(one, vector(limit)), 0.1, vector(std))
    return ConfidenceSet(bound).update(model), policies, task


def by_quadrature(slope, offset, std, limit, horizon, x, *, goal=None, count=1500):
    """p(x) by the rectangle rule on [−6, limit]."""
    grid = np.linspace(-6.0, limit, count + 1)
    grid = 0.5 * (grid[:-1] + grid[1:])
    width = grid[1] - grid[0]

    def density(at):
        return np.exp(-0.5 * ((grid - slope * at[:, None] - offset) / std) ** 2) / (std * math.sqrt(2 * math.pi))

    there = lambda at: (at >= goal[0]) & (at <= goal[1])  # noqa: E731
    value = np.ones_like(grid) if goal is None else there(grid).astype(float)
    kernel, first = density(grid) * width, density(x) * width
    for t in range(horizon - 1):
        last = t == horizon - 2
        value, at = (first if last else kernel) @ value, x if last else grid
        if goal is not None:
            value = np.where(there(at), 1.0, value)
    return np.where(x > limit, 0.0, value)


@settings(max_examples=5)
@given(st.floats(0.3, 1.05), st.floats(-0.3, 0.3), st.floats(0.1, 0.4), st.floats(0.2, 1.2), st.booleans())
def test_it_holds_the_exact_probability_and_closes_in_on_it(slope, offset, std, limit, reach):
    confidence, policies, task = known_line(slope, offset, std, limit, 6)
    goal = Box(vector(-1.0), vector(-0.4)) if reach else None
    x = torch.linspace(-2.4, 1.9, 37).double().unsqueeze(-1)
    ends = None if goal is None else (-1.0, -0.4)
    truth = torch.from_numpy(by_quadrature(slope, offset, std, limit, 6, x[:, 0].numpy(), goal=ends))
    grid = Grid(Box(vector(-4.0), vector(3.0)), (140,))
    coarse = certified_map(confidence, policies, task, grid, goal=goal)
    fine = coarse.refined(tolerance=1e-9, cells=560)
    assert fine.partition.level_grid(fine.partition.depth - 1).cells == (560,)
    near = 0.02  # of the limit or of the goal's ends, where p jumps and the rectangle rule is off
    clear = ((x[:, 0] - limit).abs() > near) & (
        reach is False or ((x[:, 0] + 1.0).abs() > near) & ((x[:, 0] + 0.4).abs() > near)
    )
    for found, gap in ((coarse, 0.6), (fine, 0.2)):
        low, high = found.at(x)
        assert bool((low[0] <= truth + 2e-3)[clear].all()) and bool((high[0] >= truth - 2e-3)[clear].all())
        assert float((high - low)[0][clear].mean()) < gap


def test_no_cell_speaks_of_a_state_beside_it():
    """Unsafe is −x > limit, and the cell from −limit on is safe; the state just below it is not, though it rounds into it."""
    confidence, policies, task = known_line(0.9, 0.0, 0.2, 0.6, 1)
    limit, beside = 0.7142857142857142, vector(-0.7142857142857143)
    grid = Grid(Box(vector(-1.0), vector(1.0)), (7,))
    found = certified_map(
        confidence, policies, task.with_(cost=IndicatorCost(-torch.eye(1).double(), vector(limit))), grid
    )
    assert float(found.lower[0, 1]) > 0.99 and float(found.task.cost(beside)) == 1.0
    assert float(found.at(beside)[0]) == 0.0
    halved, _ = found.partition.halved(torch.arange(7) == 1)  # the same edge, between a leaf and a smaller one
    assert sorted({*halved.near(beside).tolist()}) == [0, 6]


def test_what_it_says_of_the_horizon_the_goal_and_the_outside():
    confidence, policies, task = known_line(0.9, 0.0, 0.2, 0.6, 6)
    grid = Grid(Box(vector(-4.0), vector(3.0)), (140,))
    short = certified_map(confidence, policies, task.with_(horizon=1), grid)
    x = vector(-1.0, 0.5, 0.7).unsqueeze(-1)
    assert [bound.tolist() for bound in short.at(x)] == [[[1 - 1e-9, 1 - 1e-9, 0.0]], [[1.0, 1.0, 1e-9]]]
    longer = certified_map(confidence, policies, task, grid)
    assert bool((longer.lower <= short.lower).all()) and bool((longer.upper <= short.upper + 1e-9).all())
    small = certified_map(confidence, policies, task, grid, goal=Box(vector(-1.0), vector(-0.5)))
    large = certified_map(confidence, policies, task, grid, goal=Box(vector(-1.2), vector(-0.2)))
    assert bool((large.lower >= small.lower).all()) and bool((large.upper >= small.upper).all())
    assert [bound.tolist() for bound in longer.at(vector(-4.5, 3.5).unsqueeze(-1))] == [[[0.0, 0.0]], [[1.0, 1.0]]]
    parts = [
        found.double().mean() for found in (longer.certainly(0.9), longer.certainly_not(0.9), longer.undecided(0.9))
    ]
    assert float(sum(parts)) == pytest.approx(1.0) and min(map(float, parts)) > 0.0
    assert bool((longer.gap >= 0).all()) and "GAUSSIAN_NOISE" in {entry.kind.name for entry in longer.assumptions}


@pytest.mark.parametrize(("limit", "meets", "inside"), [(0.375, 3, 4), (0.4375, 3, 4), (0.5, 4, 5)])
def test_a_cell_is_safe_only_if_all_of_it_is_and_lost_only_if_none_is(limit, meets, inside):
    """Before any step: cells of 1/8, closed, so that edges are exact; safe is x_0 ≤ limit, G ends on edges and between."""
    known = AffineKnown(torch.eye(2).double(), torch.zeros(2, 1).double(), vector(0.0, 0.0))
    model = GP.create(kernels.rbf([1.0, 1.0, 1.0]), 1e-4, nx=2, nu=1, noise_std=vector(0.1, 0.1), prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1e-15, subgaussian=0.1, delta=0.1)).update(model)
    policies = AffinePolicies(torch.zeros(1, 1).double(), torch.zeros(1, 1, 2).double(), Box(vector(-1.0), vector(1.0)))
    cost = IndicatorCost(torch.tensor([[1.0, 0.0]]).double(), vector(limit))
    task = Task(vector(0.1, 0.1), 1, cost, 0.1, vector(0.1, 0.1))
    grid = Grid(SQUARE, (8, 8))
    index = torch.arange(8)
    across, along = index[:, None].expand(8, 8), index[None].expand(8, 8)
    unsafe, lost = across >= meets, across >= inside
    stays = certified_map(confidence, policies, task, grid)
    low, high = (bound.reshape(8, 8) > 0.5 for bound in (stays.lower, stays.upper))
    assert torch.equal(low, ~unsafe) and torch.equal(high, ~lost)
    goal = Box(vector(0.25, 0.125), vector(0.75, 0.53))
    found = certified_map(confidence, policies, task, grid, goal=goal)
    within = (across >= 2) & (across <= 5) & (along >= 1) & (along <= 3)
    touches = (across >= 1) & (across <= 6) & (along <= 4)
    assert torch.equal(found.lower.reshape(8, 8) > 0.5, within & ~unsafe)
    assert torch.equal(found.upper.reshape(8, 8) > 0.5, touches & ~lost)
    edges = certified_map(confidence, policies, task, grid, goal=Box(vector(0.0, 0.125), vector(0.25, 0.5)))
    assert torch.equal(edges.lower.reshape(8, 8) > 0.5, (across <= 1) & (along >= 1) & (along <= 3) & ~unsafe)
    assert torch.equal(edges.upper.reshape(8, 8) > 0.5, (across <= 2) & (along <= 4) & ~lost)
    outside = [bound.tolist() for bound in found.at(torch.tensor([[-0.1, 0.5], [0.3, 0.3]]).double())]
    assert outside[0][0][0] == 0.0 and outside[1][0][0] == 1.0


# ------------------------------------------------------------------------------------------ a plant that has to be learned
@pytest.fixture(scope="module")
def learned():
    """The line of the reference plant after 60 transitions; truly safe, unsafe and undecided set-points."""
    system, (every, _) = reference_1d(), reference_1d_policies()
    policies = every.select(torch.tensor([10, 45, 52, 58]))
    x, u = WIDE.sample(60, generator(1)), 2 * uniform(2, 60, 1) - 1
    data = Transitions(x, u, system.mean(x, u) + sample_noise(system.noise_std, (60,), generator(3)))
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    confidence = ConfidenceSet(bound).update(model.condition(data))
    return system, policies, confidence, certified_map(confidence, policies, Task.of(system), Grid(WIDE, (1001,)))


def refuted(found: CertifiedMap, mean, policies, system, seed: int, *, runs: int = 400, level: float = 1e-6) -> bool:
    """Whether runs of one plant from 12 states contradict a bound, by Clopper–Pearson at a level for each."""
    starts = torch.linspace(-1.5, 1.4, 12).double()
    for start in starts:
        noise = sample_noise(system.noise_std, (system.horizon, 1, runs), generator(seed))
        states, _ = closed_loop(mean, policies, start.reshape(1), noise)
        safe = (system.cost(states[..., :-1, :]) == 0).all(-1).sum(-1)
        low, high = (bound[:, 0] for bound in found.at(start.reshape(1, 1)))
        for k, a, b in zip(safe.tolist(), low.tolist(), high.tolist(), strict=True):
            at_most = beta.ppf(1 - level, k + 1, runs - k) if k < runs else 1.0
            at_least = beta.ppf(level, k, runs - k + 1) if k else 0.0
            if a > at_most or b < at_least:
                return True
    return False


def test_runs_of_the_plant_and_of_members_stay_within_the_bounds(learned):
    system, policies, confidence, found = learned
    assert not refuted(found, system.mean, policies, system, 7)
    for sign in (-1.0, 1.0):
        z = torch.tensor([[0.9, 0.2]]).double()
        member = extremal_member(confidence.bound, confidence.model, z, vector(sign))
        mean = lambda x, u, member=member: system.known(x, u) + member(torch.cat([x, u], -1)).unsqueeze(-1)  # noqa: E731
        assert not refuted(found, mean, policies, system, 8)
    shares = [float(found.certainly(0.95)[i].double().mean()) for i in range(policies.num)]
    assert shares[0] > 0.5 and shares[-1] < 0.2 and bool((found.lower <= found.upper).all())


def test_control_a_map_of_another_plant_is_caught(learned, monkeypatch):
    system, policies, confidence, _ = learned
    honest = Enclosure.boxes
    monkeypatch.setattr(Enclosure, "boxes", lambda self: tuple(end + 0.1 for end in honest(self)))
    wrong = certified_map(confidence, policies, Task.of(system), Grid(WIDE, (501,)))
    assert refuted(wrong, system.mean, policies, system, 7)


def test_policies_do_not_know_of_each_other_and_nan_helps_nobody(learned, monkeypatch):
    system, policies, confidence, found = learned
    order = torch.tensor([2, 0, 3, 1])
    turned = certified_map(confidence, policies.select(order), Task.of(system), found.partition.grid)
    assert torch.equal(turned.lower, found.lower[order]) and torch.equal(turned.upper, found.upper[order])
    honest = Enclosure.boxes

    def poisoned(self):
        low, high = honest(self)
        low[1, 300:320], high[2, 500] = math.nan, math.nan
        return low, high

    monkeypatch.setattr(Enclosure, "boxes", poisoned)
    struck = certified_map(confidence, policies, Task.of(system), found.partition.grid)
    assert torch.equal(struck.lower[[0, 3]], found.lower[[0, 3]])
    assert bool((struck.lower <= found.lower).all()) and bool((struck.upper >= found.upper).all())
    assert float(struck.lower[1, 300:320].max()) == 0.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda f: certified_map(f.confidence, f.policies, f.task, f.partition.grid, goal=SQUARE),
            "goal",
        ),
        (
            lambda f: certified_map(f.confidence, f.policies, f.task, Grid(SQUARE, (3, 3))),
            "grid of dimension",
        ),
        (lambda f: f.refined(tolerance=0.0), "tolerance"),
        (lambda f: f.at(vector(0.0, 0.0)), "x"),
        (lambda f: f.certainly(-0.1), "level"),
    ],
)
def test_what_makes_no_sense_is_refused(learned, change, match):
    with pytest.raises(ValueError, match=match):
        change(learned[-1])


# ------------------------------------------------------------------------------------------------- three and four coordinates
@pytest.mark.parametrize(("cells", "split"), [((4, 3, 5), (1, 2, 1)), ((3, 2, 2, 3), (1, 2, 2, 1))])
@settings(max_examples=5)
@given(seeds())
def test_many_coordinates_are_averaged_and_searched_as_by_hand(cells, split, seed):
    nx = len(cells)
    grid = Grid(Box(torch.zeros(nx).double(), torch.ones(nx).double()), cells, split)
    std = vector(0.15, 0.3, 0.2, 0.25)[:nx]
    value = uniform(seed, 1, *cells)
    table = Averager(grid, std, value.device)(value, 1.0)[0]
    mean = uniform(seed + 1, nx)
    sub = [int(m * n * s) for m, n, s in zip(mean.tolist(), cells, split, strict=True)]
    mass = [
        [0.5 * (math.erf(((i + 1) / n - m) / (s * 2**0.5)) - math.erf((i / n - m) / (s * 2**0.5))) for i in range(n)]
        for m, n, s in zip(mean.tolist(), cells, std.tolist(), strict=True)
    ]
    spread = [math.prod(m[i] for m, i in zip(mass, at, strict=True)) for at in itertools.product(*map(range, cells))]
    exact = sum(p * v for p, v in zip(spread, value.flatten().tolist(), strict=True)) + 1.0 - sum(spread)
    assert float(table[tuple(sub)]) >= exact - 1e-12
    wide = uniform(seed + 2, 1, 9, nx)
    low, high = 1.1 * wide - 0.05, 1.1 * wide - 0.05 + 0.4 * uniform(seed + 3, 1, 9, nx)
    most = RangeMax.build(grid, low, high)(table.unsqueeze(0), 1.0)[0]
    for q in range(9):
        a, b = low[0, q].tolist(), high[0, q].tolist()
        if min(a) < 0 or max(b) > 1:
            assert float(most[q]) == 1.0
            continue
        spans = [
            range(int(a[i] * n * s), int(b[i] * n * s) + 1) for i, (n, s) in enumerate(zip(cells, split, strict=True))
        ]
        assert float(most[q]) == max(float(table[at]) for at in itertools.product(*spans))
    x = uniform(seed + 4, 20, nx) * 1.2 - 0.1
    index = grid.index(x)
    held = grid.centers[index.clamp_min(0)]
    inside = ((x >= 0) & (x < 1)).all(-1)
    assert bool(((x - held).abs() <= 0.5 * grid.size + 1e-12)[inside].all())
    assert bool((index[~inside] == -1).all()) and bool((index[inside] >= 0).all())


@pytest.mark.slow
def test_a_chain_of_four_states_is_mapped():
    g = generator(0)
    system = chain(4, 2, generator=g, rkhs_norm=0.1, noise_std=0.15, horizon=4)
    policies, side = chain_policies(4, 2, vector(0.0, 0.9)), vector(1.5, 0.9, 0.6, 0.6)
    x, u = 1.1 * side * (2 * uniform(1, 150, 4) - 1), 2 * uniform(2, 150, 2) - 1
    data = Transitions(x, u, system.mean(x, u) + sample_noise(system.noise_std, (150,), g))
    model = GP.create(system.kernels, 1e-2, nx=4, nu=2, noise_std=system.noise_std, prior=system.known).condition(data)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.15, delta=0.1)
    grid = Grid(Box(-side - 0.6, side + 0.6), (10,) * 4, (2,) * 4)
    found = certified_map(ConfidenceSet(bound).update(model), policies, Task.of(system), grid)
    starts = torch.cat([torch.zeros(1, 4).double(), 0.6 * side * (2 * uniform(3, 9, 4) - 1)])
    for i, start in enumerate(starts):
        noise = sample_noise(system.noise_std, (system.horizon, 1, 2000), generator(10 + i))
        states, _ = closed_loop(system.mean, policies, start, noise)
        safe = (system.cost(states[..., :-1, :]) == 0).all(-1).sum(-1)
        low, high = (bound[:, 0].tolist() for bound in found.at(start.unsqueeze(0)))
        for k, a, b in zip(safe.tolist(), low, high, strict=True):
            assert a <= (beta.ppf(1 - 1e-6, k + 1, 2000 - k) if k < 2000 else 1.0)
            assert b >= (beta.ppf(1e-6, k, 2001 - k) if k else 0.0)
    assert float(found.at(starts[:1])[0][0]) > 0.5  # it says something
