"""Tubes of posterior samples: the members are the samples, and what their number proves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from xmpsc_cases import gp_confidence, gp_pendulum, plan, propose

from gpsafe.assumptions import Assumption
from gpsafe.certify import judge
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.models.samples import sample_functions
from gpsafe.rkhs import kernels
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_pendulum
from gpsafe.tube import SampledTube, propagate, sampled_count, sampled_level

GAIN = torch.tensor([[-3.0, -0.6]], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_member_is_the_path_of_one_function_under_the_same_inputs():
    model, inputs = gp_confidence(60).model, plan(0.3, -0.2, 0.5)
    tube = SampledTube(model, 5, generator(), 3, 0.1)
    x0 = torch.stack([vector(0.3, -0.5), vector(0.0, 0.1)])
    found = propagate(tube, x0, inputs, GAIN)
    functions = sample_functions(model, 5, generator=generator(), num_features=512)
    for b, start in enumerate(x0):
        x = start.expand(5, 2)
        for k in range(3):
            u = inputs[k].expand(5, 1)
            value = functions(torch.cat([x, u], -1).unsqueeze(1))[:, 0]
            x = reference_pendulum().known(x, u) + model.embed(value)
            torch.testing.assert_close(found.center[b, :, k + 1], x, rtol=1e-10, atol=1e-10)
    local, step = tube.linearise(found.center[:, :, 1], inputs[1]), 1e-6
    torch.testing.assert_close(local.mean, tube.mean(found.center[:, :, 1], inputs[1]), rtol=1e-12, atol=1e-12)
    for i in range(2):
        moved = step * torch.eye(2).double()[i]
        up, down = (tube.mean(found.center[:, :, 1] + s * moved, inputs[1]) for s in (1, -1))
        torch.testing.assert_close((up - down) / (2 * step), local.A[..., i], rtol=1e-6, atol=1e-6)


def test_the_judge_takes_it_and_it_promises_nothing_of_a_plant():
    problem = gp_pendulum(steps=3)
    tube = SampledTube(gp_confidence(60).model, 8, generator(), 3, 0.1)
    kinds = {entry.kind for entry in tube.assumptions}
    assert Assumption.NOT_A_THEOREM in kinds and Assumption.GAUSSIAN_PRIOR in kinds and tube.mode == "paper"
    certificate = judge(replace(problem, model=tube), vector(0.0, 0.0), vector(0.0), propose(plan(0, 0, 0)))
    assert any("not a theorem" in entry for entry in certificate.assumptions)


@given(st.integers(1, 1000), st.floats(1e-6, 0.5))
@settings(max_examples=20)
def test_levels_are_those_of_order_statistics(samples, failure):
    level = sampled_level(samples, failure)
    assert (1 - level) ** samples == pytest.approx(failure, rel=1e-6)
    assert sampled_level(samples + 1, failure) < level


def test_the_ball_asks_for_numbers_that_nobody_draws():
    assert sampled_count(0.0, 0.5, 0.5) == 1 and sampled_count(0.0, 0.5, 0.1) == 4  # 2⁻⁴ < 0.1 < 2⁻³
    assert 5e6 < sampled_count(4.5, 0.01, 0.1) < 6e6
    assert sampled_count(100.0, 0.01, 0.1) == math.inf
    assert sampled_count(38.0, 0.01, 0.1) == math.inf  # of a chance of 10⁻³¹⁶, whose inverse is no float
    with pytest.raises(ValueError, match="small_ball"):
        sampled_count(1.0, 0.0, 0.1)


@pytest.mark.parametrize("samples", [0, 2.5])
def test_numbers_of_samples_that_are_none_are_refused(samples):
    with pytest.raises(ValueError, match=r"SampledTube: expected .*samples"):
        SampledTube(gp_confidence(60).model, samples, generator(), 3, 0.1)


def highest(tube: SampledTube, x0: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(propagate(tube, x0, inputs, torch.zeros(1, 1).double()).center[:, -1].max())


@pytest.mark.slow
def test_a_further_draw_goes_beyond_k_samples_once_in_k_plus_one_and_a_member_of_the_ball_nearly_always():
    """Without data, K = 9: 1/10 for a draw of the process; a member of norm 3 that pushes upwards is beyond all of them."""
    known = AffineKnown(torch.ones(1, 1).double(), torch.zeros(1, 1).double(), vector(0.0))
    kernel = kernels.rbf([0.5, 5.0], variance=0.01)
    model = GP.create(kernel, 1e-4, nx=1, nu=1, noise_std=0.0, prior=known)
    inputs, x0 = torch.zeros(3, 1).double(), vector(0.0)
    tubes = [SampledTube(model, 9, generator(s), 3, 0.1) for s in range(400)]
    tops = [highest(tube, x0, inputs) for tube in tubes]
    draws = [highest(SampledTube(model, 1, generator(10_000 + s), 3, 0.1), x0, inputs) for s in range(400)]
    beyond = sum(draw > top for draw, top in zip(draws, tops, strict=True)) / 400
    assert 0.05 < beyond < 0.16  # four deviations of the binomial
    pushed = 3 * kernel(torch.zeros(1, 2).double(), torch.zeros(1, 2).double()).to_dense().sqrt().item()
    x = 0.0
    for _ in range(3):  # f = 3 k(0, ·)/√k(0, 0), of norm 3
        x += pushed * math.exp(-0.5 * (x / 0.5) ** 2)
    assert sum(x > top for top in tops) / 400 > 0.9


@pytest.mark.parametrize("noise", [(0.2, 0.1), (0.2, 0.0), (0.0, 0.0)])
def test_the_noise_has_an_ellipsoid_of_as_many_dimensions_as_are_noisy(noise):
    """Half-axes² σ_i²·χ²: the quantile of 1 − δ/T for the number of states with noise."""
    known = AffineKnown(torch.eye(2).double(), torch.zeros(2, 1).double(), vector(0.0, 0.0))
    model = GP.create(kernels.rbf([1.0] * 3), 1e-4, nx=2, nu=1, noise_std=list(noise), prior=known)
    local = SampledTube(model, 2, generator(), 3, 0.1).linearise(torch.zeros(2, 2).double(), torch.zeros(2, 1).double())
    count = sum(s > 0 for s in noise)
    square = chi2.ppf(1 - 0.1 / 3, count) if count else 0.0
    torch.testing.assert_close(local.variance, square * vector(*noise).square().expand(2, 2), rtol=1e-9, atol=0)
