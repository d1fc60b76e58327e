"""Gaussian tubes: exact on linear plants, containing on members of F_n, and never below the truth."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from cost_cases import Case, alone, extremal_member, generator, make_case, trajectories
from hypothesis import given
from hypothesis import strategies as st
from strategies import dear, seeds
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import monte_carlo
from gpsafe.cost.gaussian_tube import GaussianTube, Stage
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task


@cache
def case(name: str, *, norm_factor: float = 1.0) -> Case:
    runs = (0, 3, 5) if name == "1d" else (0, 4)
    return alone(make_case(name, runs, norm_factor=norm_factor))


def tube(c: Case, **changes) -> GaussianTube:
    return GaussianTube(**{"task": c.task["task"], **changes})


# ------------------------------------------------------------------------------- linear plants: exact
def linear_confidence(a: Tensor, b: Tensor) -> ConfidenceSet:
    known = AffineKnown(a, b, torch.zeros(2, dtype=torch.float64))
    model = GP.create(kernels.rbf([9.0] * 3, 1e-12), 1.0, nx=2, nu=1, noise_std=0.1, outputs=(1,), prior=known)
    return ConfidenceSet(Mixture(rkhs_norm=1e-6, subgaussian=1.0, delta=0.1)).update(model)


@dear()
@given(seed=seeds())
def test_on_a_linear_plant_it_is_the_sum_of_gaussian_tails(seed: int) -> None:
    g = generator(seed)
    a = torch.tensor([[1.0, 0.1], [0.0, 0.9]], dtype=torch.float64) + 0.05 * torch.randn(
        2, 2, generator=g, dtype=torch.float64
    )
    b = torch.tensor([[0.0], [0.1]], dtype=torch.float64)
    gain = -torch.rand(1, 1, 2, generator=g, dtype=torch.float64)
    noise = torch.tensor([0.02, 0.05], dtype=torch.float64)
    huge = Box(torch.tensor([-1e6], dtype=torch.float64), torch.tensor([1e6], dtype=torch.float64))  # never saturates
    policies = AffinePolicies(torch.zeros(1, 1, dtype=torch.float64), gain, huge)
    cost = IndicatorCost(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64))
    x0 = torch.tensor([0.1, 0.3], dtype=torch.float64)
    bound = GaussianTube(task=Task(x0, 12, cost, 1.0, noise), width=6.0)
    loop, mean, cov, expected = a + b @ gain[0], x0, torch.zeros(2, 2, dtype=torch.float64), 0.0
    for _ in range(12):
        std = float(cov[0, 0]) ** 0.5
        expected += 0.5 * math.erfc((0.2 - float(mean[0])) / std / math.sqrt(2)) if std > 0 else float(mean[0] > 0.2)
        mean, cov = loop @ mean, loop @ cov @ loop.T + torch.diag(noise**2)
    found = float(bound.evaluate(linear_confidence(a, b), policies).upper[0])
    assert expected <= found <= expected + 12 * 12 * bound.failure + 1e-5


def test_costs_far_below_one_step_are_certified() -> None:
    c = case("1d")
    upper = tube(c, width=7.0).evaluate(c.confidence, c.choose(0)).upper
    assert 0 <= float(upper[0]) < 1e-6  # a Monte-Carlo limit of 2000 paths is above 0.1


# ------------------------------------------------------------------------------------------ containment
def escape(c: Case, stages: list[Stage], states: Tensor, noise: Tensor) -> float:
    """Largest excess of x_t − ν_t outside the interval hull of c_t ⊕ Z_t, while ν_t stays within κ; states (P, N, T+1, nx)."""
    worst, nu = -math.inf, torch.zeros_like(states[:, :, 0])
    alive = torch.ones(states.shape[:2], dtype=torch.bool)
    for t, stage in enumerate(stages):
        gap = (states[:, :, t] - nu - stage.sure.center.unsqueeze(1)).abs() - stage.sure.radius.unsqueeze(1)
        counted = alive & ~stage.lost.unsqueeze(-1)
        worst = max(worst, float(gap.masked_fill(~counted.unsqueeze(-1), -math.inf).max()))
        if t + 1 == len(stages):
            break
        if t == 0:
            nu = noise[0].expand_as(nu)
            continue
        unit = torch.linalg.solve(stage.factor.unsqueeze(1), nu.unsqueeze(-1))
        alive = alive & (unit.abs().amax((-2, -1)) <= 5.0)
        nu = (stages[t + 1].moved.unsqueeze(1) @ unit).squeeze(-1) + noise[t]
    return worst


def members_of(c: Case, seed: int):
    """The true residual, and two extremal members at a random state under the first policy."""
    g = generator(seed)
    x = c.system.state_box.sample(1, g)
    z = torch.cat([x, c.policies.select(torch.tensor([0]))(x.unsqueeze(0))[0]], dim=-1)[0]
    yield c.system.residual[0]
    yield from (extremal_member(c, z, sign) for sign in (-1.0, 1.0))


@pytest.mark.parametrize("name", ["1d", "pendulum"])
@dear(3)
@given(seed=seeds(), gradients=st.booleans())
def test_trajectories_of_members_stay_in_the_tube(name: str, seed: int, gradients: bool) -> None:
    c = case(name)
    policies = c.choose(0, 6, 15)
    stages = list(tube(c, gradients=gradients).stages(c.confidence, policies))
    noise = sample_noise(c.system.noise_std, (c.system.horizon, 1, 32), generator(seed))
    for f in members_of(c, seed):
        assert escape(c, stages, trajectories(c, f, policies, noise), noise) <= 1e-9


def test_control_a_tube_that_believes_in_a_fiftieth_of_the_norm_is_left() -> None:
    c, weak = case("1d"), case("1d", norm_factor=0.02)
    policies = c.choose(0, 6, 15, 40)
    stages = list(tube(weak).stages(weak.confidence, policies))
    noise = sample_noise(c.system.noise_std, (c.system.horizon, 1, 32), generator(0))
    worst = max(escape(c, stages, trajectories(c, f, policies, noise), noise) for f in members_of(c, 0))
    assert worst > 1e-4


# -------------------------------------------------------------------------------------------- the bound
@pytest.mark.parametrize("name", ["1d", "pendulum"])
@dear(3)
@given(seed=seeds())
def test_never_below_the_cost_of_a_member(name: str, seed: int) -> None:
    c = case(name)
    index = torch.randint(c.policies.num, (4,), generator=generator(seed))
    policies = c.policies.select(index)
    upper = tube(c).evaluate(c.confidence, policies).upper
    noise = sample_noise(c.system.noise_std, (c.system.horizon, 1, 100), generator(seed))
    for f in members_of(c, seed):
        states = trajectories(c, f, policies, noise)
        cost = c.system.cost(states[:, :, :-1]).sum(-1)
        lower = monte_carlo.mean_lower(cost, float(c.system.horizon), 1e-9)
        assert bool((lower <= upper + 1e-9).all())


def test_giving_up_changes_only_what_exceeds_the_limit() -> None:
    c = case("1d")
    full = tube(c).evaluate(c.confidence, c.policies).upper
    part = tube(c, give_up=1.0).evaluate(c.confidence, c.policies).upper
    assert torch.equal(part[full <= 1.0], full[full <= 1.0])
    assert bool((part[full > 1.0] == c.system.horizon).all())
    assert 0 < int((full <= 1.0).sum()) < c.policies.num


def test_session_keeps_the_smallest_bound_so_far() -> None:
    small, large = make_case("1d", (0,)), make_case("1d", (0, 3, 5))
    index = torch.arange(small.policies.num)
    session = tube(small).session(small.confidence, small.policies)
    before = session.upper(index)
    after = session.update(large.confidence).upper(index)
    assert bool((after <= before).all())
    assert bool((after < before - 1e-6).any())
    assert bool((session.exploration(index[:3]) > 0).all())


def test_a_session_is_not_updated_with_another_history() -> None:
    """F_n with ten times the norm kept the bounds that were found with the smaller one."""
    c = case("1d")
    session = tube(c).session(c.confidence, c.policies)
    wider = replace(c.confidence.bound, rkhs_norm=tuple(10 * b for b in c.confidence.bound.rkhs_norm))
    for other in (ConfidenceSet(wider, c.confidence.generations), ConfidenceSet(c.confidence.bound)):
        with pytest.raises(ValueError, match="update: expected a confidence set that continues"):
            session.update(other)


def test_lists_what_it_believes_and_refuses_what_it_does_not_cover() -> None:
    c = case("1d")
    assert any("noise exactly" in item for item in tube(c).evaluate(c.confidence, c.choose(0)).assumptions)
    with pytest.raises(ValueError, match="width"):
        tube(c, width=-1.0)
    with pytest.raises(ValueError, match="initial state of dimension"):
        list(tube(case("pendulum")).stages(c.confidence, c.choose(0)))
