"""Pointwise, simultaneous and conditional coverage, the plant known or not, one step and many."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_kernel, seeds

from gpsafe import calibration
from gpsafe.calibration import Rate
from gpsafe.data import Transitions
from gpsafe.models import GP, Ensemble, Prediction, Training, zero_prior

F64 = {"dtype": torch.float64}


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, **F64, generator=torch.Generator().manual_seed(seed))


def test_one_miss_anywhere_fails_a_trajectory():
    y = torch.zeros(6, 2, **F64)
    y[4, 1] = 2.5
    args = (y, torch.zeros_like(y), torch.ones_like(y))
    runs = ["a", "a", "b", "b", "c", "c"]
    assert calibration.pointwise(*args, 2.0) == Rate(11, 12)
    assert calibration.simultaneous(*args, 2.0, runs) == Rate(2, 3)
    assert calibration.simultaneous(*args, 2.0) == Rate(0, 1)
    nothing = calibration.simultaneous(*(one[:0] for one in args), 2.0)  # was one of one
    assert nothing == Rate(0, 0) and nothing.interval() == (0.0, 1.0)
    assert calibration.needed_scale(*args, runs).tolist() == [0.0, 0.0, 2.5]
    assert calibration.simultaneous(*args, torch.tensor([0.0, 2.5])) == Rate(1, 1)  # one scale for each output


@given(seeds(), st.floats(0.1, 4))
def test_the_needed_scale_is_the_smallest_that_holds_everywhere(seed, scale):
    y, mean, std = randn(seed, 12, 2), randn(seed + 1, 12, 2), randn(seed + 2, 12, 2).abs() + 0.1
    runs = [i // 3 for i in range(12)]
    needed = calibration.needed_scale(y, mean, std, runs)
    held = calibration.simultaneous(y, mean, std, scale, runs)
    assert held == Rate(int((needed <= scale).sum()), 4)
    assert held.value <= calibration.pointwise(y, mean, std, scale).value
    assert calibration.simultaneous(y, mean, std, float(needed.max()), runs).value == 1.0
    assert calibration.simultaneous(y, mean, std, float(needed.max()) * (1 - 1e-9), runs).value < 1.0


def test_nan_and_certainty_never_help():
    y = torch.tensor([0.0, 1.0, math.nan, 1.0, 0.0], **F64)
    std = torch.tensor([0.0, 0.0, 1.0, math.nan, -1.0], **F64)
    assert calibration.ratios(y, torch.zeros(5, **F64), std).tolist() == [0.0, *[math.inf] * 4]
    assert calibration.pointwise(y, torch.zeros(5, **F64), std, 1e300) == Rate(1, 5)


def test_rates_carry_exact_intervals():
    assert Rate(0, 100).interval()[1] == pytest.approx(1 - 0.025 ** (1 / 100))
    assert Rate(0, 0).interval() == (0.0, 1.0) and math.isnan(Rate(0, 0).value)
    assert str(Rate(9, 10)).startswith("0.900 [0.5")


def test_a_share_of_shells_has_an_interval_over_trajectories():
    """Four trajectories of 100 rows, one of them wholly outside: four trials, not four hundred."""
    y, distance = torch.tensor([0.0, 0.0, 0.0, 9.0], **F64).repeat_interleave(100), torch.arange(400, **F64) % 100
    ids, none = [f"run {i // 100}" for i in range(400)], torch.zeros(400, **F64)
    for shell in calibration.shells(y, none, torch.ones(400, **F64), 2.0, distance, ids, edges=2):
        low, high = shell.rate.interval()
        assert (float(shell.inside.value), shell.inside.units) == (shell.rate.value, 4) == (0.75, 4)
        assert float(shell.inside.low) <= 0.25 < low < high < 1.0 == float(shell.inside.high)


def test_shells_see_what_the_average_hides():
    z, seen = torch.linspace(-3, 3, 400, **F64).unsqueeze(1), torch.linspace(-1, 1, 50, **F64).unsqueeze(1)
    mean, std = torch.zeros(400, **F64), torch.ones(400, **F64)
    y = torch.where(z.squeeze(1).abs() > 1.5, 3.0, 0.5).double()
    far = calibration.distance_to_data(z, seen)
    found = calibration.shells(y, mean, std, 2.0, far)
    assert sum(s.rate.n for s in found) == 400
    assert found[0].rate.value == 1.0 and found[-1].rate.value == 0.0
    assert (found[0].needed, found[-1].needed) == (0.5, 3.0) and found[-1].rmse == pytest.approx(3.0)
    assert float(far.min()) < 1e-2 and float(far.max()) == pytest.approx(2 / float(seen.std(0, correction=0)), rel=1e-3)
    two = calibration.shells(y, mean, std, 2.0, far, edges=[0.0, 0.5, 10.0])
    assert [s.low for s in two] == [0.0, 0.5]
    assert two[0].inside.units == two[0].rate.n and float(two[0].inside.low) <= two[0].rate.value
    with pytest.raises(ValueError, match="increasing edges"):
        calibration.shells(y, mean, std, 2.0, far, edges=[1.0, 0.5])


def test_epistemic_and_aleatoric_are_told_apart():
    truth = torch.zeros(10, 1, **F64)
    told = Prediction(truth + 0.5, truth + 0.4, torch.tensor([0.3], **F64))
    found = calibration.separate(truth, told, 2.0, torch.tensor([0.1], **F64))
    assert found.epistemic == Rate(10, 10) and found.needed == pytest.approx(1.25)
    assert float(found.noise_ratio) == pytest.approx(3.0)
    assert float(calibration.total_std(told)[0]) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------- many steps
class Biased:
    """x⁺ = 0.9x + u + noise, believed up to an unknown constant of deviation 0.1."""

    nx = nu = 1
    outputs = (0,)

    def predict(self, x, u):
        mean = 0.9 * x + u
        return Prediction(mean, torch.full_like(mean, 0.1), torch.full_like(mean, 0.05))


def test_spread_of_many_steps_is_what_the_linear_recursion_says():
    """Persistent error: (1 − 0.9^t)/(1 − 0.9)·0.1; independent error: as noise."""
    generator = torch.Generator().manual_seed(0)
    start, inputs = torch.zeros(2, 1, **F64), torch.ones(2, 6, 1, **F64)
    a = 0.9 ** torch.arange(6, **F64)
    noise = 0.05**2 * a.square().cumsum(0)
    for kind, variance in {
        "persistent": (0.1 * a.cumsum(0)) ** 2,
        "independent": 0.1**2 * a.square().cumsum(0),
    }.items():
        mean, std = calibration.moments(Biased(), start, inputs, num=40_000, epistemic=kind, generator=generator)
        assert mean.shape == std.shape == (2, 6, 1)
        assert mean[0, :, 0].tolist() == pytest.approx(a.cumsum(0).tolist(), abs=0.02)
        assert std[1, :, 0].tolist() == pytest.approx((variance + noise).sqrt().tolist(), rel=0.03)
    closed, _ = calibration.moments(Biased(), start + 1, lambda x: -0.9 * x, steps=3, num=2000, generator=generator)
    assert float(closed.abs().max()) < 0.02  # the policy undoes the dynamics, for every particle


def test_a_wrong_constant_is_persistent():
    """A plant whose error is one constant: persistent bars hold as often as they say, independent ones lose it."""
    truth = 0.1 * randn(1, 300, 1).unsqueeze(1) * (0.9 ** torch.arange(12, **F64)).cumsum(0).reshape(1, 12, 1)
    inputs, generator = torch.zeros(300, 12, 1, **F64), torch.Generator().manual_seed(2)
    rates = {}
    for kind in ("persistent", "independent"):
        mean, std = calibration.moments(
            Biased(), torch.zeros(300, 1, **F64), inputs, num=200, epistemic=kind, generator=generator
        )
        rates[kind] = calibration.pointwise(truth[:, -1], mean[:, -1], std[:, -1], 2.0)
    assert rates["persistent"].interval()[1] >= 0.95
    assert rates["independent"].interval()[1] < 0.9


def test_joint_draws_ask_the_model():
    x, u = randn(0, 12, 1), randn(1, 12, 1)
    data = Transitions(x, u, 0.9 * x + 0.2 * u)
    gp = GP.create(make_kernel("rbf-isotropic", 2), 1e-3, nx=1, nu=1, noise_std=0.01).condition(data)
    ensemble = Ensemble.create(
        1, 1, generator=torch.Generator().manual_seed(0), prior=zero_prior, training=Training(epochs=2, steps=20)
    ).condition(data)
    for model in (gp, ensemble):
        mean, std = calibration.moments(
            model, x[:3], u[:3].unsqueeze(1), num=400, epistemic="joint", generator=torch.Generator().manual_seed(1)
        )
        told = model.predict(x[:3], u[:3])
        assert mean[:, 0].flatten().tolist() == pytest.approx(told.mean.flatten().tolist(), abs=0.05)
        assert bool((std[:, 0] < 3 * calibration.total_std(told) + 1e-2).all())
    with pytest.raises(ValueError, match="an Ensemble or a GP"):
        calibration.particles(
            Biased(), x[:1], u[:1].unsqueeze(1), epistemic="joint", generator=torch.Generator().manual_seed(1)
        )


def test_windows_do_not_overlap():
    states, inputs = torch.arange(11, **F64).unsqueeze(1), torch.arange(10, **F64).unsqueeze(1)
    start, u, after = calibration.windows(states, inputs, 3)
    assert start.flatten().tolist() == [0, 3, 6] and after[1].flatten().tolist() == [4, 5, 6]
    assert u[2].flatten().tolist() == [6, 7, 8]
    with pytest.raises(ValueError, match="N \\+ 1 states"):
        calibration.windows(states, inputs, 11)
