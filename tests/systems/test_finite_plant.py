"""The finite plants behind the checks of theory §4: exact values against enumeration, suprema bracketed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from strategies import seeds

from proofs_checks import actsafe_theory
from proofs_checks._finite import FinitePlant


def drawn(seed: int, horizon: int = 3) -> tuple[FinitePlant, torch.Tensor, torch.Tensor, torch.Generator]:
    source = torch.Generator().manual_seed(seed)
    plant = FinitePlant.draw(5, 4, horizon, 0.2, source)
    residual = 0.3 * torch.randn(4, 5, dtype=torch.float64, generator=source)
    return plant, residual, torch.rand(4, 5, dtype=torch.float64, generator=source), source


@given(seeds())
def test_values_equal_the_sum_over_all_paths(seed):
    plant, residual, stage, source = drawn(seed)
    weights = torch.rand(3, dtype=torch.float64, generator=source)
    kernel = plant.transition(plant.mean(residual))
    assert torch.allclose(kernel.sum(-1), torch.ones(4, 5, dtype=torch.float64), atol=1e-14)
    expected = torch.zeros(4, dtype=torch.float64)
    for policy in range(4):
        for one, two in itertools.product(range(5), repeat=2):
            p = kernel[policy, plant.start, one] * kernel[policy, one, two]
            path = torch.stack([stage[policy, c] for c in (plant.start, one, two)])
            expected[policy] += p * (weights * path).sum()
    assert torch.allclose(plant.value(stage, residual, weights), expected, atol=1e-13)
    both = plant.value(torch.stack([stage, 2 * stage]), residual)
    assert torch.allclose(both[1], 2 * both[0]) and torch.allclose(both[0], plant.value(stage, residual))


@given(seeds())
def test_suprema_bound_every_member_and_close_on_a_point(seed):
    plant, residual, stage, source = drawn(seed, horizon=4)
    half = 0.2 * torch.rand(4, 5, dtype=torch.float64, generator=source)
    below, above = plant.supremum(stage, residual - half, residual + half)
    member = residual + half * (2 * torch.rand(4, 5, dtype=torch.float64, generator=source) - 1)
    assert bool((below <= above).all()) and bool((plant.value(stage, member) <= above).all())
    assert float((above - below).max()) < 0.05
    point = plant.supremum(stage, residual, residual)
    for end in point:
        assert torch.allclose(end, plant.value(stage, residual), rtol=1e-10)


@pytest.mark.parametrize("check", actsafe_theory.CHECKS, ids=lambda check: check.name)
def test_each_claim_holds_and_its_control_is_violated_on_few_draws(check):
    claim = check.judge([check.sample(0, "quick", False)], False)
    control = check.judge(
        [check.sample(shard, "quick", True) for shard in range(check.num_shards("quick", True))], True
    )
    assert claim.verdict.outcome == "HOLDS" and control.verdict.outcome == "VIOLATED"
    assert claim.verdict.lower > 0.6  # the draws are hard enough to see a factor of two


def test_the_refuting_plant_obeys_the_right_form():
    """Control: what fails with E under f* holds with E under μ on the same plant, and for the robust program with both."""
    plant, cost, mid, half, truth = actsafe_theory.refuting_plant()
    left = actsafe_theory.variation_bound(plant, cost, mid, half) - plant.value(cost, truth)
    scale = 2 * (plant.horizon - 1) / actsafe_theory.ROOT
    under_mean, under_truth = (scale * plant.value(half / plant.noise_std, f) for f in (mid, truth))
    assert float(under_truth) < float(left) < float(under_mean)
    _, above = plant.supremum(cost, mid - half, mid + half)
    assert float(above - plant.value(cost, truth)) < float(under_truth)
