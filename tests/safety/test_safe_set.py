"""S_n is frozen, monotone, witnessed; D is a sound policy distance; R_ε^H is what its definition says."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe import rkhs
from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import kernels
from gpsafe.safety.safe_set import SafePolicySet, policy_distance, reachable
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.known import AffineKnown


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator(seed))


@given(seeds(), st.booleans())
def test_safe_set_only_grows_and_every_member_has_a_true_witness(seed, lipschitz):
    num, budget = 9, 0.5
    safe = SafePolicySet.initial(num, [0, 4], budget=budget)
    distance = uniform(seed, num, num) if lipschitz else None
    for episode in range(1, 4):
        upper = uniform(seed + episode, num) * 1.5
        grown = safe.expand(upper, episode=episode, bound="b", distance=distance)
        assert set(safe.witnesses) <= set(grown.witnesses)
        for i in set(grown.witnesses) - set(safe.witnesses):
            witness = grown.witnesses[i]
            assert witness.episode == episode and witness.value <= budget
            if witness.rule == "lipschitz":
                assert witness.neighbour in safe and distance is not None
                assert witness.value == pytest.approx(float(upper[witness.neighbour] + distance[witness.neighbour, i]))
            else:
                assert witness.rule == "bound" and witness.value == float(upper[i])
        for i in range(num):
            certified = bool(upper[i] <= budget) or (
                distance is not None and any(float(upper[j] + distance[j, i]) <= budget for j in safe.witnesses)
            )
            assert (i in grown) == (i in safe or certified)
        safe = grown


def test_safe_set_survives_serialisation():
    safe = SafePolicySet.initial(4, [1], budget=0.2).expand(
        torch.tensor([0.1, 0.9, torch.inf, 0.3], dtype=torch.float64), episode=1, bound="robust-dp"
    )
    back = SafePolicySet.from_json(json.loads(json.dumps(safe.to_json(), allow_nan=False)))
    assert back.to_json() == safe.to_json() and back.members.tolist() == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"value": 0.21},
        {"value": None},
        {"rule": "luck"},
        {"episode": -1},
        {"rule": "lipschitz", "neighbour": None},
        {"rule": "lipschitz", "neighbour": 3},
        {"rule": "lipschitz", "neighbour": 0},
    ],
)
def test_a_record_with_a_member_that_did_not_enter_is_refused(change):
    """As `gpsafe.load` refuses it."""
    upper = torch.tensor([0.1, 0.9, torch.inf, 0.3], dtype=torch.float64)
    record = SafePolicySet.initial(4, [1], budget=0.2).expand(upper, episode=1, bound="robust-dp").to_json()
    record["witnesses"]["0"].update(change)
    with pytest.raises(ValueError, match=r"SafePolicySet: expected members .*\b0\b"):
        SafePolicySet.from_json(record)


@pytest.mark.parametrize("members", [[], [7], [-1]])
def test_empty_or_foreign_initial_sets_are_refused(members):
    with pytest.raises(ValueError, match="S_0"):
        SafePolicySet.initial(5, members, budget=1.0)


def test_nan_bounds_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        SafePolicySet.initial(2, [0], budget=1.0).expand(torch.tensor([0.0, torch.nan]), episode=1, bound="b")


KNOWN = AffineKnown(torch.eye(1).double(), torch.tensor([[0.25]]).double(), torch.zeros(1).double())
KERNEL = kernels.rbf([0.5, 1.0], variance=0.04)
BOX = Box(torch.tensor([-1.0]), torch.tensor([1.0]))


def family(count: int, spacing: float) -> AffinePolicies:
    targets = 0.2 + spacing * torch.arange(count, dtype=torch.float64)[:, None]
    return set_point_policies(targets, torch.tensor([[3.0]]).double(), torch.zeros(count, 1).double(), BOX)


def simulated_costs(policies: AffinePolicies, residual, noise_std: torch.Tensor, horizon: int) -> torch.Tensor:
    def mean(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return KNOWN(x, u) + residual(torch.cat([x, u], -1)).unsqueeze(-1)

    noise = sample_noise(noise_std, (horizon, 1, 20_000), generator(0))
    states, _ = closed_loop(mean, policies, torch.zeros(1).double(), noise)
    return (states[..., :-1, 0] > 0.25).double().sum(-1).mean(-1)


@pytest.mark.parametrize("seed", range(4))
def test_policy_distance_dominates_the_difference_of_true_costs(seed):
    noise_std, horizon = torch.tensor([0.1], dtype=torch.float64), 4
    policies = family(6, 0.02)
    residual = rkhs.random_function(
        KERNEL, torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]), norm=1.0, generator=generator(seed)
    )
    distance = policy_distance(
        policies, KNOWN, (KERNEL,), rkhs_norm=torch.ones(1).double(), outputs=(0,), noise_std=noise_std,
        horizon=horizon, ceiling=1.0,
    )  # fmt: skip
    costs = simulated_costs(policies, residual, noise_std, horizon)
    gap = (costs[:, None] - costs[None]).abs()
    assert bool((distance >= gap - 0.05).all())  # common noise; 20 000 paths
    assert torch.equal(distance, distance.T) and float(distance.diagonal().abs().max()) == 0.0


def test_distance_without_the_known_mean_is_caught():
    """τ with B d_k alone is no bound where the known mean reacts to u (theory §4.2)."""
    noise_std, horizon = torch.tensor([0.02], dtype=torch.float64), 4
    policies = family(2, 0.1)
    tiny = 1e-3
    residual = rkhs.random_function(
        KERNEL, torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]), norm=tiny, generator=generator(0)
    )
    costs = simulated_costs(policies, residual, noise_std, horizon)
    frozen = AffineKnown(torch.eye(1).double(), torch.zeros(1, 1).double(), torch.zeros(1).double())
    options = {"rkhs_norm": torch.tensor([tiny]).double(), "outputs": (0,), "noise_std": noise_std,
               "horizon": horizon, "ceiling": 1.0}  # fmt: skip
    published = policy_distance(policies, frozen, (KERNEL,), **options)
    complete = policy_distance(policies, KNOWN, (KERNEL,), **options)
    gap = float((costs[0] - costs[1]).abs())
    assert float(published[0, 1]) < gap / 5 and float(complete[0, 1]) >= gap


def test_distance_refuses_curvature_in_the_input_and_noiseless_states():
    options = {"rkhs_norm": torch.ones(1).double(), "outputs": (0,), "horizon": 3, "ceiling": 1.0}
    with pytest.raises(ValueError, match="noise_std"):
        policy_distance(family(2, 0.1), KNOWN, (KERNEL,), noise_std=torch.zeros(1).double(), **options)


@given(seeds())
def test_reachable_set_is_its_definition_iterated(seed):
    num, budget, epsilon = 8, 1.0, 0.2
    cost, distance = uniform(seed, num), uniform(seed + 1, num, num)
    expected = {0}
    for _ in range(num):
        expected |= {
            i for i in range(num) if any(float(cost[j] + distance[j, i]) <= budget - epsilon for j in expected)
        }
    assert reachable([0], cost, distance, budget=budget, epsilon=epsilon) == expected
    one = reachable([0], cost, distance, budget=budget, epsilon=epsilon, rounds=1)
    assert {0} <= one <= expected
