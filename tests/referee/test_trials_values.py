"""Every number of a trial against loops over rows: forecasts one by one, ridge regressions by their formula, binomial sums."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from gpsafe.linalg import vector
from gpsafe.referee import over_estimate, trials
from gpsafe.referee.trials import Design
from gpsafe.rkhs import kernels

FIRST, ROWS, COLUMNS = 8, 24, 5
M = ROWS - FIRST
NORM, R, DELTA, SCALE = 1.3, 0.2, 0.05, 0.3
SCALES, VARIANCE = (0.5, 0.8), 1.7
LINKS = torch.tensor([-1, 0, 1, 2, -1, 4, 5, 6, -1, 8, 9, 10, 11, -1, 13, 14, 15, 16, 17, -1, 19, 20, 21, 22])


def design(**changes) -> Design:
    z = 2 * torch.rand(ROWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    return Design(kernels.rbf(SCALES, VARIANCE), NORM, R, DELTA, z, FIRST, LINKS, SCALE, **changes)


def observed() -> torch.Tensor:
    """Of too large a norm, with two rows far off, and smooth in the last columns: with little noise, with R and with 2R."""
    g = torch.Generator().manual_seed(1)
    y = 3 * torch.sin(4 * design().z.sum(-1, keepdim=True)) + R * torch.randn(
        ROWS, COLUMNS, dtype=torch.float64, generator=g
    )
    y[[12, 19], 1] += 15 * R
    size = vector(0.3 * R, R, 2 * R)
    y[:, 2:] = 0.4 * design().z[:, :1].sin() + size * torch.randn(ROWS, 3, dtype=torch.float64, generator=g)
    return y


def gram(scales=SCALES, variance=VARIANCE, *, rough=False) -> np.ndarray:
    z = design().z.numpy() / np.array(scales)
    found = np.empty((ROWS, ROWS))
    for i in range(ROWS):
        for j in range(ROWS):
            r = math.sqrt(((z[i] - z[j]) ** 2).sum())
            found[i, j] = (1 + math.sqrt(3) * r) * math.exp(-math.sqrt(3) * r) if rough else math.exp(-(r**2) / 2)
    return variance * found


def remembered(rho: float) -> np.ndarray:
    """The noise of a row is ρ times that of the row before in its run, and something new."""
    found, run = np.zeros((ROWS, ROWS)), (LINKS.numpy() < 0).cumsum()
    for i in range(ROWS):
        for j in range(ROWS):
            found[i, j] = rho ** abs(i - j) if run[i] == run[j] else 0.0
    return found


UNIT, EYE = gram(variance=1.0), R**2 * np.eye(ROWS)
SHORTER = [gram((0.25, 0.4), 1.0), gram((0.125, 0.2), 1.0), gram(variance=1.0, rough=True)]
SUPPOSED = {
    "own": [(VARIANCE * UNIT, EYE), (SCALE * UNIT, EYE), (10 * SCALE * UNIT, EYE)],
    "kernel": [(f * SCALE * unit, EYE) for unit in SHORTER for f in (1.0, 10.0)],
    "time": [(SCALE * UNIT, R**2 * remembered(rho)) for rho in (0.6, 0.9, -0.5)],
}


def forecast(total: np.ndarray, y: np.ndarray, i: int, start: int = 0) -> tuple[np.ndarray, float]:
    """Mean (S,) of y_i given the rows from `start` to before it, and its variance, noise included."""
    if i == start:
        return np.zeros(y.shape[1]), total[i, i]
    weights = np.linalg.solve(total[start:i, start:i], total[start:i, i])
    return weights @ y[start:i], total[i, i] - weights @ total[start:i, i]


def tried(spent: bool = False) -> trials.Tried:
    return trials.judge(design(spent=spent), observed())


@pytest.mark.parametrize("family", trials.FAMILIES)
def test_forecasters_suppose_what_they_are_said_to(family):
    found = design().forecasters(family)
    assert len(found) == len(SUPPOSED[family])
    for (signal, noise), (s, n) in zip(found, SUPPOSED[family], strict=True):
        assert np.allclose(signal.numpy(), s, rtol=1e-9) and np.allclose(noise.numpy(), n, rtol=1e-12, atol=0)


def radii(family: str) -> np.ndarray:
    """(*) of the module, row by row; the best of M forecasters, each at δ/M."""
    y, each = observed().numpy(), []
    for signal, noise in SUPPOSED[family]:
        terms = []
        for i in range(FIRST, ROWS):
            mean, total = forecast(signal + noise, y, i)
            v = max(total - R**2, 0.0)
            terms.append(R**2 * (y[i] - mean) ** 2 / (R**2 + v) + R**2 * math.log(1 + v / R**2))
        each.append(np.cumsum(terms, 0))
    return np.min(each, 0) + 2 * R**2 * math.log(len(each) / DELTA)


@pytest.mark.parametrize("family", trials.FAMILIES)
def test_a_radius_is_the_sum_over_forecasts_one_by_one_rounded_up(family):
    ratio = tried().radius[family].numpy() / radii(family)
    assert ratio - 1 == pytest.approx(np.full_like(ratio, trials.MARGIN), rel=1e-3, abs=1e-12)
    assert trials.MARGIN == 1e-9


def ridge(count: int) -> tuple[np.ndarray, np.ndarray]:
    """η and yᵀ(K + ηI)⁻¹y of the first judging rows, (h,) and (h, S)."""
    k, y = gram()[FIRST:, FIRST:][:count, :count], observed().numpy()[FIRST:][:count]
    etas = np.linalg.eigvalsh(k)[-1] * np.logspace(-9, 6, 80)
    return etas, np.stack([(y * np.linalg.solve(k + eta * np.eye(count), y)).sum(0) for eta in etas])


@pytest.mark.parametrize("family", trials.FAMILIES)
def test_the_norm_is_the_largest_of_all_multipliers_at_three_numbers_of_rows(family):
    radius, best = radii(family), np.zeros(COLUMNS)
    for count in (M // 4, M // 2, M):
        etas, fit = ridge(count)
        best = np.maximum(best, (fit - radius[count - 1] / etas[:, None]).max(0).clip(0) ** 0.5)
    assert tried().lower[family].numpy() == pytest.approx(best, rel=1e-5)
    assert best[0] > NORM and best[2] < NORM and trials.prefixes(M) == [4, 8, 16]
    assert trials.prefixes(3) == [1, 3] and trials.prefixes(1) == [1]


def chernoff(count: int, delta: float) -> float:
    return optimize.brentq(
        lambda t: (t - math.log1p(t)) * count / 2 - math.log(1 / delta), 0, 1e3, xtol=1e-13, rtol=1e-14
    )


def test_the_level_of_noise_is_what_the_best_function_of_the_ball_leaves():
    etas, fit = ridge(M)
    least = (etas[:, None] * (fit - NORM**2)).max(0).clip(0)
    found = tried().level.numpy()
    assert found == pytest.approx((least / (M * (1 + chernoff(M, DELTA)))) ** 0.5, rel=1e-5) and found[0] > R


@pytest.mark.parametrize(("count", "delta"), [(1, 0.5), (3, 0.05), (80, 0.01), (400, 1e-4)])
def test_chi_square_tails_are_bounded_by_chernoff(count, delta):
    assert trials.chernoff(count, delta) == pytest.approx(chernoff(count, delta), rel=1e-10)


def test_what_eigenvalues_are_wrong_by_costs_norm_and_level():
    """By hand, with an error of the size of the eigenvalues, at the multipliers that are tried."""
    values, turned, radius, error = vector(3.0, 0.5, 0.0), vector(9.0, 1.0, 0.3).unsqueeze(-1), 0.9, 0.4
    etas = [3.0 * 10 ** (-9 + 15 * i / 79) for i in range(80)]
    fits = [sum(t / (v + eta + error) for v, t in zip((3.0, 0.5, 0.0), (9.0, 1.0, 0.3), strict=True)) for eta in etas]
    norm = max(fit * (1 - 1e-9) - radius / eta for fit, eta in zip(fits, etas, strict=True)) ** 0.5
    assert float(trials.norm_lower(values, turned, vector(radius), error)) == pytest.approx(norm, rel=1e-12)
    given = design(spent=False)
    least = max(eta * (fit - NORM**2) for fit, eta in zip(fits, etas, strict=True))
    level = (least / (3 * (1 + chernoff(3, DELTA))) * (1 - 1e-9)) ** 0.5
    assert float(trials._level(given, values, turned, error)) == pytest.approx(level, rel=1e-12)
    wide = replace(given, norm=1e3)  # a ball that leaves nothing to explain
    assert float(trials._level(wide, values, turned, error)) == 0.0
    none = [float(trials.norm_lower(0 * values, turned, vector(size), 0.0)) for size in (1e3, 10.2)]
    assert (
        none[0] == 0.0 and none[1] > 1e50
    )  # a kernel that is 0 at these rows explains none of them, whatever the norm


def test_errors_of_eigenvalues_and_of_variances_grow_with_rows_and_kernel():
    given = design()
    values, vectors, error = trials.spectrum(given)
    assert torch.allclose((vectors * values) @ vectors.T, torch.from_numpy(gram()[FIRST:, FIRST:]), atol=1e-12)
    assert error == 100 * M * 2.0**-52 * float(values.max()) and float(values.min()) >= 0
    assert trials.spectrum(given, 5)[1].shape == (5, 5)
    slip = trials._posterior(given, observed(), 3)[3]
    assert slip == pytest.approx(4 * (ROWS - 3) * 2.0**-52 * (VARIANCE + R**2), rel=1e-12)
    room = trials._room(vector(2.0, math.inf), vector(3.0, 0.0))
    assert room[0, 0] == 6.0 * (1 + 1e-9) and room.isinf().flatten().tolist() == [False, True]


ROUNDED = pytest.mark.parametrize(("slip", "margin"), [(0.0, 0.0), (0.01, 0.25)])


def rounded(monkeypatch, slip: float, margin: float) -> None:
    """Roundings of variances and of widths, large enough to be seen; as they are where they are 0."""
    posterior = trials._posterior
    if slip:
        monkeypatch.setattr(trials, "_posterior", lambda *given: (*posterior(*given)[:3], slip))
        monkeypatch.setattr(trials, "MARGIN", margin)


@ROUNDED
@pytest.mark.parametrize("spent", [False, True])
def test_residuals_beyond_all_uncertainty_are_counted_and_their_binomial_chance_is_exact(
    monkeypatch, spent, slip, margin
):
    """By the band before a row, or by that of all rows, whichever leaves more."""
    rounded(monkeypatch, slip, margin)
    start, y, total = (FIRST if spent else 0), observed().numpy(), VARIANCE * UNIT + EYE
    k, noisy, mine = VARIANCE * UNIT[start:, start:], total[start:, start:], y[start:]
    mean = k @ np.linalg.solve(noisy, mine)
    spread = np.sqrt(np.diag(k - k @ np.linalg.solve(noisy, k)) + len(k) * slip)
    left, gain = np.empty_like(mine), 0.0
    for i in range(start, ROWS):
        m, v = forecast(total, y, i, start)
        beta = math.sqrt(NORM**2 + 2 * gain + 2 * math.log(2 / DELTA))
        left[i - start] = abs(y[i] - m) - (1 + margin) * beta * math.sqrt(v - R**2 + slip)
        gain += 0.5 * math.log(v / R**2)
    beta = (1 + margin) * math.sqrt(NORM**2 + 2 * gain + 2 * math.log(2 / DELTA))
    left = np.maximum(left, abs(mine - mean) - (beta * spread)[:, None])[FIRST - start :]
    counts = np.stack([(left > size * R).sum(0) for size in trials.SIZES])
    assert np.array_equal(tried(spent).tails.numpy(), counts) and 0 < counts[:, 1].max() < M
    chance = [min(1.0, 2 * math.exp(-(size**2) / 2)) for size in trials.SIZES]
    tails = [[stats.binom.sf(c - 1, M, p) if c else 1.0 for c in row] for row, p in zip(counts, chance, strict=True)]
    assert tried(spent).tail.numpy() == pytest.approx(7 * np.min(tails, 0), rel=1e-9)


@ROUNDED
def test_held_out_rows_stand_against_the_band_of_the_first_and_bars_against_all_before_them(monkeypatch, slip, margin):
    rounded(monkeypatch, slip, margin)
    y, total = observed().numpy(), VARIANCE * UNIT + EYE
    inside, across = total[:FIRST, :FIRST], VARIANCE * UNIT[FIRST:, :FIRST]
    mean = across @ np.linalg.solve(inside, y[:FIRST])
    spread = np.sqrt(VARIANCE - np.diag(across @ np.linalg.solve(inside, across.T)) + slip)
    gain = 0.5 * np.linalg.slogdet(inside / R**2)[1]
    beta = math.sqrt(NORM**2 + 2 * gain + 2 * math.log(2 / DELTA))
    allowed = (1 + margin) * (beta * spread + R * math.sqrt(2 * math.log(2 * M / (DELTA / 2))))
    excess = (abs(y[FIRST:] - mean) - allowed[:, None]) / R
    assert tried().held.numpy() == pytest.approx(excess.max(0), rel=1e-6)
    each = [forecast(total, y, i) for i in range(FIRST, ROWS)]
    errors = np.stack([y[FIRST + i] - m for i, (m, _) in enumerate(each)])
    variances = np.array([v for _, v in each])
    assert tried().bars.numpy() == pytest.approx((errors**2 / variances[:, None]).sum(0), rel=1e-9)
    assert tried().errors[0].numpy() == pytest.approx(errors, rel=1e-9)
    assert tried().errors[1].numpy() == pytest.approx(np.sqrt(variances - R**2 + slip), rel=1e-6)


def densities(signals: list[np.ndarray], noises: list[np.ndarray], factors: tuple[float, ...]) -> np.ndarray:
    """ln p(judging rows | first rows), (processes, S)."""
    y, found = observed().numpy().T, []
    for signal in signals:
        for noise in noises:
            for factor in factors:
                total = signal + factor * noise
                whole, first = (
                    stats.multivariate_normal(np.zeros(n), total[:n, :n]).logpdf(y[:, :n]) for n in (ROWS, FIRST)
                )
                found.append(whole - first)
    return np.stack(found)


def test_shapes_and_memory_are_compared_by_the_mean_density_of_some_and_the_largest_of_others():
    own = densities([s for s, _ in SUPPOSED["own"]], [EYE], (0.25, 1.0, 4.0, 16.0))
    others = densities([s for s, _ in SUPPOSED["kernel"]], [EYE], (0.25, 1.0, 4.0))
    noises = [R**2 * remembered(rho) for rho in (0.6, 0.9, -0.5)]
    correlated = densities([SCALE * UNIT], noises, (0.25, 1.0, 4.0, 16.0))
    assert {int(i) % 4 for i in own.argmax(0)} == {0, 1, 2, 3}  # every factor is the best of some column
    assert tried().shape.numpy() == pytest.approx(np.log(np.exp(others).mean(0)) - own.max(0), rel=1e-6)
    best = np.maximum(own.max(0), others.max(0))
    assert tried().memory.numpy() == pytest.approx(np.log(np.exp(correlated).mean(0)) - best, rel=1e-6)


def test_nothing_shorter_and_no_row_that_follows_leave_nothing_to_compare():
    given = replace(
        design(), kernel=kernels.linear([1.0, 1.0]), links=torch.where(torch.arange(ROWS) < FIRST, LINKS, -1)
    )
    found = trials.judge(given, observed())
    assert set(found.radius) == set(found.lower) == {"own"} and set(found.refuted(given)) >= {"shape", "memory"}
    for ratio in (found.shape, found.memory):
        assert ratio.tolist() == [-math.inf] * COLUMNS


def test_a_row_may_follow_the_very_first():
    given = replace(design(), first=1, links=torch.where(torch.arange(ROWS) == 1, 0, -1))
    assert len(given.forecasters("time")) == 3


def test_a_test_refutes_beyond_its_own_limit_and_not_at_it():
    given, one = design(), tried()
    high, low = special.chdtri(M, [DELTA / 2, 1 - DELTA / 2])
    assert [low, high] == pytest.approx(stats.chi2.ppf([DELTA / 2, 1 - DELTA / 2], M), rel=1e-12)
    for test, limit in {"level": R, "held": 0.0, "bars": high, "shape": math.log(20), "memory": math.log(20)}.items():
        found = replace(one, **{test: vector(limit + 1e-9, limit)}).refuted(given)
        assert found[test].tolist() == [True, False], test
    for test, limit in {"tail": DELTA / 2, "bars": low}.items():
        assert replace(one, **{test: vector(limit - 1e-9, limit)}).refuted(given)[test].tolist() == [True, False], test
    for test, family in {"norm": "own", "kernel": "kernel", "time": "time"}.items():
        lower = {**dict.fromkeys(trials.FAMILIES, vector(0.0, 0.0)), family: vector(NORM + 1e-9, NORM)}
        found = replace(one, lower=lower).refuted(given)
        assert {t for t in ("norm", "kernel", "time") if bool(found[t].any())} == {test}
        assert found[test].tolist() == [True, False]


def test_shorter_scales_and_a_rougher_family_are_tried():
    def told(kernel) -> list[tuple[float, list[float]]]:
        forms = [kernels.stationary(other) for other in trials.shapes(kernel)]
        return [(form.nu, form.lengthscale.flatten().tolist()) for form in forms if form is not None]

    assert told(kernels.rbf([0.8, 2.0])) == [(math.inf, [0.4, 1.0]), (math.inf, [0.2, 0.5]), (1.5, [0.8, 2.0])]
    assert told(kernels.matern(1.5, [0.8])) == [(1.5, [0.4]), (1.5, [0.2])]
    assert [nu for nu, _ in told(kernels.matern(2.5, [0.8]))] == [2.5, 2.5, 1.5]
    assert trials.shapes(kernels.linear([1.0])) == []


def test_rows_are_taken_for_unseen_unless_said_otherwise():
    assert not design().spent and design().judging == M


def test_before_any_row_the_band_is_that_of_the_ball():
    """β had the information gain of all rows."""
    given = replace(design(), first=0)
    allowed = math.sqrt((NORM**2 + 2 * math.log(2 / DELTA)) * VARIANCE) + R * math.sqrt(2 * math.log(4 * ROWS / DELTA))
    assert trials.judge(given, observed()).held.numpy() == pytest.approx((abs(observed().numpy()).max(0) - allowed) / R)


BAD = {
    "one number norm >= 0": {"norm": -1.0},
    "finite norm": {"norm": math.nan},
    "noise > 0": {"noise": 0.0},
    "finite noise": {"noise": math.inf},
    r"delta in \(0, 1\), got 0.0": {"delta": 0.0},
    r"delta in \(0, 1\), got 1.0": {"delta": 1.0},
    "finite z": {"z": torch.full((ROWS, 2), math.nan, dtype=torch.float64)},
    "links of shape": {"links": LINKS[1:]},
    "links to earlier rows": {"links": LINKS + 1},
    "links to earlier rows, or": {"links": LINKS - 1},
    "first < 24 rows": {"first": ROWS},
    "integer first >= 0": {"first": -1},
    "kernel to be a Kernel": {"kernel": "rbf"},
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_design_is_refused(message):
    with pytest.raises(ValueError, match=f"Design: expected {message}"):
        replace(design(), **BAD[message])


def test_observations_that_are_no_numbers_are_refused():
    """Of NaN nothing is refuted."""
    y = observed()
    y[20, 1] = math.nan
    with pytest.raises(ValueError, match=r"trials\.judge: expected finite y"):
        trials.judge(design(), y)
    with pytest.raises(ValueError, match=r"norms\.over_estimate: expected finite y"):
        over_estimate(design(), y[:, 1])
    with pytest.raises(ValueError, match=r"norms\.over_estimate: expected y of shape \(24,\)"):
        over_estimate(design(), observed())


def test_columns_are_as_long_as_the_rows():
    with pytest.raises(ValueError, match=r"trials\.judge: expected y of shape"):
        trials.judge(design(), observed()[1:])
