"""What cells say of mean, deviation and band: read from their polynomials (`test_output_values.py`), the rounding made loud."""

import math
from dataclasses import replace

import numpy as np
import pytest
from range_cases import KINDS, cells, inverse, learned, local_of, same

from gpsafe.confidence import _cells
from gpsafe.confidence._cells import Band, Deviation, Generation, Mean
from gpsafe.confidence._output import Local, MeanTaylor, Output, VarianceTaylor
from gpsafe.confidence._taylor import Bernstein

pytestmark = pytest.mark.usefixtures("low_orders")


@pytest.mark.parametrize(("nu", "d"), KINDS)
def test_cells_of_mean_and_deviation_are_read_from_their_polynomials(nu, d, loud):
    output = learned(nu, d)
    lower, upper = cells(d)
    local, _ = local_of(output, lower, upper)
    mean = MeanTaylor.of(output, local)
    rows = local.features(output)
    variance = VarianceTaylor.of(MeanTaylor.of(output, local, rows), local, rows)
    cap = output.norm * output.std * (1 + 8 * loud)
    values = mean.basis.coefficients(mean.monomials)
    least, most = output.mean_far_from_data(local)
    error = mean.error(mean.basis)
    low = np.maximum(np.maximum(values.min(-1) - error, -cap), least)
    high = np.minimum(np.minimum(values.max(-1) + error, cap), most)
    assert (high == cap).any() or (high[-1] == most[-1])
    wanted = (
        (Mean(output), mean.basis, values, low, high, mean.slope_error(mean.basis)),
        (Deviation(output), variance.basis, variance.coefficients, variance.low, variance.high, variance.slope_error),
    )
    for objective, basis, coefficients, low, high, steep in wanted:
        assert np.array_equal(objective.inverse, output.inverse)
        found = objective.over(lower, upper)
        same(found.low, low, 1e-11)
        same(found.high, high, 1e-11)
        middle, half = (lower + upper) / 2, (upper - lower) / 2
        spots = np.stack([middle + half * basis.peak(-coefficients), middle + half * basis.peak(coefficients)], axis=1)
        np.testing.assert_allclose(found.spot, spots, rtol=1e-7, atol=1e-7)
        assert (found.spot >= lower[:, None]).all() and (found.spot <= upper[:, None]).all()
        rise = np.zeros((len(lower), d))
        if basis.degree:
            down, up = basis.slopes(coefficients)
            rise = (down - steep > 0).astype(float) - (up + steep < 0)
        assert np.array_equal(found.rise, np.stack([rise, rise], axis=1))
        hoped = np.stack([coefficients.min(-1), coefficients.max(-1)], axis=1)
        same(found.hoped, np.sqrt(np.maximum(hoped, 0.0)) if isinstance(objective, Deviation) else hoped, 1e-7)


# ---------------------------------------------------------------------------------------------------------- band
def test_functions_are_proved_to_rise_or_fall_only_beyond_zero_and_spots_lie_in_their_cells():
    low, high = np.array([1e-300, 0.0, -2.0, -1.0, -1.0]), np.array([1.0, 1.0, -1e-300, 0.0, 3.0])
    assert _cells._rise(low, high).tolist() == [1.0, 0.0, -1.0, 0.0, 0.0]
    basis = Bernstein.of(1, 2)
    least, most = np.array([[0.0, -2.0, 1.0]]), np.array([[3.0, 2.0, 1.0]])
    found = _cells._spots(basis, least, most, np.array([[2.0]]), np.array([[6.0]]))
    np.testing.assert_allclose(
        found[0, :, 0], [4.0 + 2.0 * (-0.1), 2.0]
    )  # of −least: 0, 2, −1, a parabola with peak −0.1
    eps = 2.0**-52
    edge = _cells._spots(basis, -most, most, np.array([[1 + 2 * eps]]), np.array([[1 + 3 * eps]]))
    assert ((edge >= 1 + 2 * eps) & (edge <= 1 + 3 * eps)).all()


@pytest.mark.parametrize(("nu", "d"), KINDS)
def test_steepness_is_asked_of_the_right_polynomials_with_the_right_error(nu, d, loud, monkeypatch):
    output = learned(nu, d)
    lower, upper = cells(d)
    lower, upper = lower[:8], upper[:8]
    asked: list[tuple] = []
    monkeypatch.setattr(_cells, "_rise", lambda low, high: asked.append((low, high)) or np.zeros_like(low))
    local, _ = local_of(output, lower, upper)
    rows = local.features(output)
    mean = MeanTaylor.of(output, local, rows)
    variance = VarianceTaylor.of(mean, local, rows)
    Mean(output)._over(lower, upper)
    Deviation(output)._over(lower, upper)
    beta = 1.3
    _cells._band(Generation(output, beta, 0.05), lower, upper)
    basis, wanted = variance.basis, []
    if not basis.degree:
        assert not asked
        return
    for own, polynomial, error in (
        (mean.basis, mean.basis.coefficients(mean.monomials), mean.slope_error(mean.basis)),
        (basis, variance.coefficients, variance.slope_error),
    ):
        low, high = own.slopes(polynomial)
        wanted.append((low - error, high + error))
    values, gentle = basis.coefficients(mean.monomials), 0.5 * beta / variance.high * (1 - 8 * loud)
    sharp = 0.5 * beta / np.maximum(variance.low, 1e-300) * (1 + 8 * loud)
    error = mean.slope_error(basis) + sharp[:, None] * variance.slope_error
    for sign in (-1, 1):
        ends = [basis.slopes(values + sign * end[:, None] * variance.coefficients) for end in (gentle, sharp)]
        wanted.append((np.minimum(ends[0][0], ends[1][0]) - error, np.maximum(ends[0][1], ends[1][1]) + error))
    assert len(asked) == len(wanted) == 4
    for found, expected in zip(asked, wanted, strict=True):
        same(found[0], expected[0], 1e-7)
        same(found[1], expected[1], 1e-7)


@pytest.mark.parametrize(("nu", "d"), KINDS)
def test_bands_of_cells_are_their_tangent_or_mean_and_deviation_apart(nu, d, loud):
    output, beta, slack = learned(nu, d), 1.3, 0.05
    lower, upper = cells(d)
    local, _ = local_of(output, lower, upper)
    rows = local.features(output)
    own = MeanTaylor.of(output, local, rows)
    taylor = VarianceTaylor.of(own, local, rows)
    mean = taylor.basis.coefficients(own.monomials)
    drift = own.error(taylor.basis) + slack
    low, high, spots, rise, hoped = _cells._band(Generation(output, beta, slack), lower, upper)
    joint = 0
    for c in range(len(lower)):
        middle = math.sqrt(max(taylor.center[c], 1e-6 * taylor.root[c] ** 2))
        tangent = beta / (2 * middle) * taylor.coefficients[c]
        extra = beta * (taylor.error[c] / (2 * middle) + middle / 2 + own.remainder[c])
        apart = beta * taylor.high[c] * (1 + 4 * loud)
        wide = 8 * loud * (np.abs(mean[c]).max() + np.abs(tangent).max() + extra)
        tops = (mean[c] + tangent).max() + extra, mean[c].max() + apart
        lows = (mean[c] - tangent).min() - extra, mean[c].min() - apart
        same(high[c], min(tops) + drift[c] + wide, 1e-8)
        same(low[c], max(lows) - drift[c] - wide, 1e-8)
        near = beta * middle / 2 + slack
        same(hoped[c], ((mean[c] - tangent).min() - near, (mean[c] + tangent).max() + near), 1e-7)
        joint += (tops[0] < tops[1]) + 100 * (tops[1] < tops[0])
        peaks = np.stack([taylor.basis.peak(v[None])[0] for v in (tangent - mean[c], tangent + mean[c])])
        place = np.clip((lower[c] + upper[c]) / 2 + (upper[c] - lower[c]) / 2 * peaks, lower[c], upper[c])
        np.testing.assert_allclose(spots[c], place, rtol=1e-6, atol=1e-6)
    assert joint > 100 and (joint % 100 or nu == 0.5)
    assert rise.shape == (len(lower), 2, d)


def other(output: Output) -> Output:
    """A generation of the same kernel with fewer data."""
    return replace(output, points=output.points[:3], weights=2 * output.weights[:3], root=np.asfortranarray(
        np.linalg.cholesky(inverse(replace(output, points=output.points[:3])))
    ))  # fmt: skip


@pytest.mark.parametrize("cap", [0.4, 50.0])
@pytest.mark.parametrize(("nu", "d"), [(math.inf, 2), (2.5, 2), (0.5, 2)])
def test_a_band_is_the_narrowest_of_its_generations_within_the_cap(nu, d, cap, loud):
    newest = learned(nu, d)
    parts = Generation(other(newest), 0.9, 0.0), Generation(newest, 1.3, 0.05)
    band = Band(parts, cap)
    assert np.array_equal(band.inverse, newest.inverse)
    z = np.random.default_rng(0).uniform(-0.5, 1.5, (9, d))
    z[8] = math.nan
    side = np.array([0, 1, 0, 1, 0, 1, 1, 0, 1])
    low, high = band.at(z, side)
    for i in range(8):
        inner, outer = [cap * (1 - 512 * loud)], [cap]
        for one in parts:
            value, top = (float(v[0]) for v in one.output.value(z[i : i + 1]))
            least, most = (float(v[0]) for v in one.output.deviation(z[i : i + 1]))
            value, top = (value, top) if side[i] else (-top, -value)
            inner.append(value + one.beta * (1 - 8 * loud) * least + one.slack)
            outer.append(top + one.beta * min(most, one.output.std) + one.slack)
        inward, outward = (min(inner) - 8 * loud * abs(min(inner)), min(outer) + 8 * loud * abs(min(outer)))
        same((low[i], high[i]), (inward, outward) if side[i] else (-outward, -inward))
    assert (low[8], high[8]) == (-math.inf, pytest.approx(cap * (1 + 8 * loud)))
    for objective, ends in ((Mean(newest), (-math.inf, math.inf)), (Deviation(newest), (0.0, newest.std))):
        found = objective.at(z, side)
        value = newest.value(z) if isinstance(objective, Mean) else newest.deviation(z)
        assert [float(v[8]) for v in found] == list(ends)
        same(found[0][:8], value[0][:8])
        same(found[1][:8], np.minimum(value[1][:8], ends[1]))
    lower, upper = cells(d)
    found, each = band.over(lower, upper), [_cells._band(one, lower, upper) for one in parts]
    same(found.low, np.maximum(np.maximum(each[0][0], each[1][0]), -cap), 1e-7)
    same(found.high, np.minimum(np.minimum(each[0][1], each[1][1]), cap), 1e-7)
    np.testing.assert_allclose(found.spot, each[1][2], atol=1e-6)
    assert np.array_equal(found.rise, np.where(each[0][3] == each[1][3], each[0][3], 0.0))
    same(found.hoped[:, 0], np.maximum(each[0][4][:, 0], each[1][4][:, 0]), 1e-7)
    same(found.hoped[:, 1], np.minimum(each[0][4][:, 1], each[1][4][:, 1]), 1e-7)
    beyond = np.full((1, d), -1e200), np.full((1, d), 1e200)
    found = band.over(*beyond)
    assert nu == 0.5 or (found.low.tolist(), found.high.tolist()) == ([-cap], [cap])
    assert Deviation(newest).over(*beyond).high.tolist() == [newest.std]
    assert Deviation(newest).over(*beyond).low.tolist() == [0.0]
    found, size = Mean(newest).over(*beyond), newest.norm * newest.std * (1 + 8 * loud)
    far = [float(end[0]) for end in newest.mean_far_from_data(Local.of(newest, *beyond))]
    assert nu == 0.5 or [*found.low, *found.high] == pytest.approx([max(-size, far[0]), min(size, far[1])])
