"""Calibration metrics against values of the Uncertainty Toolbox 0.1.1 and scoringrules, and against what they mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe import calibration
from gpsafe.calibration import Rate, bootstrap, metrics

F64 = {"dtype": torch.float64}
FORMS = ("interval", "quantile")
CURVES = (
    calibration.mean_absolute_calibration_error,
    calibration.root_mean_squared_calibration_error,
    calibration.max_calibration_error,
    calibration.miscalibration_area,
)
SCORES = (calibration.nll_gaussian, calibration.crps_gaussian, calibration.check_score, calibration.interval_score)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, **F64, generator=torch.Generator().manual_seed(seed))


def drawn(seed: int, n: int, *batch: int, overconfident: float = 1.0):
    mean, std = 3 * randn(seed, n, *batch), torch.exp(0.5 * randn(seed + 1, n, *batch))
    return mean + overconfident * std * randn(seed + 2, n, *batch), mean, std


def table():
    i = torch.arange(12, **F64)
    return torch.sin(1.7 * i) * 2, torch.sin(1.7 * i + 0.3) * 1.8, 0.2 + 0.1 * (i % 5)


# Computed by uncertainty-toolbox 0.1.1 on `table`, 100 bins, all defaults.
GOLDEN = {
    ("mean_absolute_calibration_error", "interval"): 0.1647474747474748,
    ("root_mean_squared_calibration_error", "interval"): 0.18517213758749063,
    ("miscalibration_area", "interval"): 0.16620950888192274,
    ("mean_absolute_calibration_error", "quantile"): 0.0903787878787879,
    ("root_mean_squared_calibration_error", "quantile"): 0.1031796674303798,
    ("miscalibration_area", "quantile"): 0.09106873331011264,
    ("nll_gaussian", ""): 0.9330507245325034,
    ("crps_gaussian", ""): 0.27368635300638505,
    ("check_score", ""): 0.1382090035630348,
    ("interval_score", ""): 1.3404637174289513,
}


@pytest.mark.parametrize(("name", "form"), GOLDEN)
def test_values_are_those_of_the_uncertainty_toolbox(name, form):
    options = {"prop_type": form} if form else {}
    assert float(getattr(calibration, name)(*table(), **options)) == pytest.approx(GOLDEN[name, form], abs=1e-12)


def test_sharpness_and_energy_score_are_the_published_ones():
    y, mean, std = table()
    assert float(calibration.sharpness(std)) == pytest.approx(0.4010403138505322, abs=1e-14)
    i = torch.arange(12, **F64)
    samples = torch.stack([torch.stack([torch.cos(i + k), torch.sin(i * k)], 1) for k in range(5)], 1)
    assert float(calibration.energy_score(torch.stack([y, mean], 1), samples)) == pytest.approx(1.3438898383637763)


@pytest.mark.slow
@given(seeds())
def test_proper_scores_agree_with_scoringrules(seed):
    import scoringrules  # compiles for seconds

    y, mean, std = drawn(seed, 7)
    assert metrics.crps_rows(y, mean, std).numpy() == pytest.approx(
        scoringrules.crps_normal(y.numpy(), mean.numpy(), std.numpy()), abs=1e-12
    )
    assert metrics.nll_rows(y, mean, std).numpy() == pytest.approx(
        scoringrules.logs_normal(y.numpy(), mean.numpy(), std.numpy()), abs=1e-9
    )
    target, samples = randn(seed, 4, 3), randn(seed + 1, 4, 6, 3)
    assert metrics.energy_rows(target, samples).numpy() == pytest.approx(
        scoringrules.es_ensemble(target.numpy(), samples.numpy()), abs=1e-12
    )


@given(seeds(), st.integers(2, 40))
def test_the_area_is_the_integral_between_the_curves(seed, bins):
    """Crossings included: a fine trapezoid rule on the piecewise linear curve agrees."""
    y, mean, std = drawn(seed, 9)
    for form in FORMS:
        expected, observed = calibration.reliability(y, mean, std, num_bins=bins, prop_type=form)
        fine = np.union1d(np.linspace(0, 1, 4001), expected.numpy())
        gap = np.abs(np.interp(fine, expected.numpy(), observed.numpy()) - fine)
        area = float(calibration.miscalibration_area(y, mean, std, num_bins=bins, prop_type=form))
        assert area == pytest.approx(np.trapezoid(gap, fine), abs=2e-6)


@given(seeds())
def test_columns_are_a_loop(seed):
    y, mean, std = drawn(seed, 8, 2, 3)
    for metric in (*CURVES, *SCORES):
        whole = metric(y, mean, std)
        assert whole.shape == (2, 3)
        assert float(whole[1, 2]) == pytest.approx(float(metric(y[:, 1, 2], mean[:, 1, 2], std[:, 1, 2])), abs=1e-12)


@given(seeds(), st.floats(0.1, 50), st.floats(-5, 5))
def test_units_and_origin_do_not_matter_to_calibration(seed, unit, shift):
    y, mean, std = drawn(seed, 30)
    for metric in CURVES:
        moved = metric(unit * y + shift, unit * mean + shift, unit * std)
        assert float(moved) == pytest.approx(float(metric(y, mean, std)), abs=1 / 30 / 99 + 1e-9)  # a tie may turn
    assert float(calibration.crps_gaussian(unit * y, unit * mean, unit * std)) == pytest.approx(
        unit * float(calibration.crps_gaussian(y, mean, std))
    )


def test_a_right_model_is_calibrated_and_a_wrong_one_is_not():
    right, wrong = drawn(0, 20_000), drawn(0, 20_000, overconfident=2.0)
    for metric in CURVES:
        for form in FORMS:
            assert float(metric(*right, prop_type=form)) < 0.02
            assert float(metric(*wrong, prop_type=form)) > 0.09
    for score in SCORES:  # proper: right σ beats twice and half of it
        y, mean, std = right
        assert float(score(y, mean, std)) < min(float(score(y, mean, 2 * std)), float(score(y, mean, 0.5 * std)))
    uniform = calibration.pit(*right).sort().values
    assert float((uniform - (torch.arange(20_000) + 0.5) / 20_000).abs().max()) < 0.02
    assert float((uniform.flip(0) + uniform - 1).abs().max()) < 0.04


@pytest.mark.parametrize("metric", [*CURVES, *SCORES], ids=lambda f: f.__name__)
def test_what_makes_no_sense_is_refused(metric):
    y, mean, std = drawn(0, 5)
    for bad in (
        (y, mean[:4], std),
        (y, mean, 0 * std),
        (y, mean, -std),
        (y * math.nan, mean, std),
        (y, mean, torch.ones(2, 5)),
        (y[:0], mean[:0], std[:0]),
    ):
        with pytest.raises(ValueError, match="expected"):
            metric(*bad)


# ------------------------------------------------------------------------------------------------ bootstrap
def crps(y, mean, std):
    return calibration.crps_gaussian(y, mean, std)


def test_intervals_cover_about_as_often_as_they_say():
    """The mean of an exponential: 95 % nominal, 40 rows."""
    hits = dict.fromkeys(("percentile", "bca"), 0)
    for seed in range(60):
        rows = torch.zeros(40, **F64).exponential_(generator=torch.Generator().manual_seed(seed))
        for method in hits:
            found = bootstrap(lambda v: v.mean(), rows, resamples=199, method=method, generator=seed)
            hits[method] += bool(found.low <= 1.0 <= found.high)
    for method, number in hits.items():
        low, high = Rate(number, 60).interval(0.99)
        assert low <= 0.95 and high >= 0.9, (method, number)


def test_rows_of_one_trajectory_need_the_cluster_bootstrap():
    """Ten copies of each row: by rows the interval is √10 too narrow."""
    rows = randn(0, 30).repeat_interleave(10)
    labels = torch.arange(30).repeat_interleave(10)
    alone, together = (
        bootstrap(lambda v: v.mean(), rows, groups=g, resamples=400, generator=1) for g in (None, labels)
    )
    assert (alone.units, together.units) == (300, 30)
    ratio = float((together.high - together.low) / (alone.high - alone.low))
    assert 0.8 * math.sqrt(10) < ratio < 1.25 * math.sqrt(10)


def test_bootstrap_is_vector_valued_repeatable_and_careful():
    y, mean, std = drawn(3, 20, 2)
    found = bootstrap(crps, y, mean, std, resamples=50, method="bca", generator=4)
    again = bootstrap(crps, y, mean, std, resamples=50, method="bca", generator=4)
    assert found.value.shape == (2,) and torch.equal(found.low, again.low)
    assert bool((found.low <= found.value).all() and (found.value <= found.high).all())
    constant = bootstrap(lambda v: v.mean(), torch.ones(6, **F64), method="bca", resamples=20)
    assert float(constant.low) == float(constant.high) == 1.0
    with pytest.raises(ValueError, match="equally many rows"):
        bootstrap(crps, y, mean[:3], std)
    with pytest.raises(ValueError, match="20 labels"):
        bootstrap(crps, y, mean, std, groups=[1, 2])
