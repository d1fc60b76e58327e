"""Verdicts, and the intervals under them, against direct sums of the binomial law."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from gpsafe.verdict import (
    Outcome,
    Verdict,
    anytime_interval,
    bernstein_radius,
    clopper_pearson,
    clopper_pearson_upper,
    hoeffding_radius,
)

NUMBERS = st.floats(allow_nan=False)
INTERVALS = st.tuples(NUMBERS, NUMBERS).map(sorted)


@given(INTERVALS, st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e6))
def test_outcome_is_what_the_interval_says_of_every_value_in_it(interval, threshold, tol):
    lower, upper = interval
    assume(upper > -math.inf)  # refused: nothing was looked at
    outcome = Verdict(lower, upper, threshold, tol).outcome
    assert (outcome is Outcome.HOLDS) == (upper <= threshold - tol)
    if outcome is Outcome.HOLDS:
        assert lower <= upper <= threshold
    if outcome is Outcome.VIOLATED:
        assert upper >= lower > threshold


@given(INTERVALS, INTERVALS, st.floats(-1e6, 1e6))
def test_a_wider_interval_never_says_more(interval, other, threshold):
    assume(interval[1] > -math.inf)  # refused: nothing was looked at
    wide = Verdict(min(interval[0], other[0]), max(interval[1], other[1]), threshold).outcome
    assert wide in (Verdict(*interval, threshold).outcome, Outcome.INCONCLUSIVE)


@pytest.mark.parametrize("args", [(math.nan, 1, 1), (0, 1, math.nan), (1, 0, 1), (0, 1, 1, -1e-9)])
def test_nonsense_is_refused(args):
    with pytest.raises(ValueError, match="Verdict: expected"):
        Verdict(*args)


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.sampled_from([0.5, 0.9, 0.99]))
def test_clopper_pearson_covers_each_probability_at_least_at_its_level(trials, p, confidence):
    # The exact coverage: a sum over all outcomes, by the law of the binomial itself.
    hits = np.arange(trials + 1)
    law = np.array([math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in hits])
    ends = [clopper_pearson(int(k), trials, confidence) for k in hits]
    covered = np.array([low <= p <= high for low, high in ends])
    assert law[covered].sum() >= confidence - 1e-12


def ever_wrong(p: float, trials: int, wrong) -> float:
    """P(∃ n ≤ trials: wrong(k, n)) for k ~ Binomial(n, p), exactly: paths are taken out where they first go wrong."""
    law, gone = np.zeros(trials + 1), 0.0
    law[0] = 1.0
    for n in range(1, trials + 1):
        law[1:] = law[1:] * (1 - p) + law[:-1] * p
        law[0] *= 1 - p
        out = np.array([k <= n and law[k] > 0 and wrong(k, n) for k in range(trials + 1)])
        gone += law[out].sum()
        law[out] = 0.0
    return gone


@pytest.mark.parametrize(("p", "alpha"), [(0.02, 0.05), (0.1, 0.2), (0.5, 0.05), (0.9, 0.05)])
def test_anytime_intervals_are_right_at_all_numbers_of_trials_at_once(p, alpha):
    ends = cache(lambda k, n: anytime_interval(k, n, alpha))
    assert ever_wrong(p, 120, lambda k, n: p > ends(k, n)[1]) <= alpha
    assert ever_wrong(p, 120, lambda k, n: p < ends(k, n)[0]) <= alpha


def test_control_intervals_of_one_size_are_not():
    ends = cache(lambda k, n: clopper_pearson_upper(k, n, 0.05))
    assert ever_wrong(0.1, 120, lambda k, n: ends(k, n) < 0.1) > 0.1


def test_anytime_intervals_decide_soon_where_nothing_fails_and_shrink_with_more_trials():
    assert anytime_interval(0, 32, 0.05)[1] <= 0.1 < anytime_interval(0, 31, 0.05)[1]
    assert (
        anytime_interval(1, 65, 0.05)[1] <= 0.1 < anytime_interval(1, 60, 0.05)[1]
    )  # 40 of fixed size would not decide
    for failures in (0, 1, 5):
        uppers = [anytime_interval(failures, n, 0.05)[1] for n in range(failures + 1, 80)]
        assert (uppers == sorted(uppers, reverse=True) and failures == 0) or anytime_interval(failures, failures, 0.05)[
            1
        ] == 1.0


@given(st.integers(0, 300), st.integers(1, 300), st.floats(0.5, 0.9999))
def test_clopper_pearson_ends_solve_the_tail_equations(successes, trials, confidence):
    successes = min(successes, trials)
    low, high = clopper_pearson(successes, trials, confidence)
    tail = (1 - confidence) / 2
    assert 0 <= low <= successes / trials <= high <= 1
    if successes > 0:
        assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(tail, rel=1e-6)
    if successes < trials:
        assert stats.binom.cdf(successes, trials, high) == pytest.approx(tail, rel=1e-6)
        one_sided = clopper_pearson_upper(successes, trials, tail)
        assert one_sided == pytest.approx(high, rel=1e-9)
    exact = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), rel=1e-6, abs=1e-12)


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.sampled_from([0.1, 0.01]))
def test_hoeffding_radius_covers_a_bernoulli_mean(trials, p, delta):
    hits = np.arange(trials + 1)
    missed = p - hits / trials > hoeffding_radius(trials, 1.0, delta)
    assert stats.binom.pmf(hits[missed], trials, p).sum() <= delta + 1e-12


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.sampled_from([0.1, 0.01]))
def test_bernstein_radius_covers_a_bernoulli_mean(trials, p, delta):
    hits = np.arange(trials + 1)
    var = hits * (trials - hits) / (trials * (trials - 1))  # unbiased, of `hits` ones among `trials`
    radius = np.array([bernstein_radius(trials, 1.0, float(v), delta) for v in var])
    missed = p - hits / trials > radius
    assert stats.binom.pmf(hits[missed], trials, p).sum() <= delta + 1e-12


@given(st.integers(2, 10_000), st.floats(1e-3, 1e3), st.floats(1e-6, 0.5), st.floats(0.1, 10))
def test_radii_scale_with_the_range_and_shrink_with_trials(trials, value_range, delta, scale):
    hoeffding = hoeffding_radius(trials, value_range, delta)
    assert hoeffding_radius(trials, scale * value_range, delta) == pytest.approx(scale * hoeffding)
    assert hoeffding_radius(4 * trials, value_range, delta) == pytest.approx(hoeffding / 2)
    var = value_range**2 / 8
    bernstein = bernstein_radius(trials, value_range, var, delta)
    scaled = bernstein_radius(trials, scale * value_range, scale**2 * var, delta)
    assert scaled == pytest.approx(scale * bernstein)
    assert bernstein_radius(trials + 1, value_range, var, delta) < bernstein


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson(1, 0),
        lambda: clopper_pearson(3, 2),
        lambda: clopper_pearson(-1, 2),
        lambda: clopper_pearson(1, 2, 1.0),
        lambda: clopper_pearson_upper(1, 2, 0.0),
        lambda: anytime_interval(3, 2, 0.1),
        lambda: anytime_interval(1, 2, 1.0),
        lambda: hoeffding_radius(0, 1.0, 0.1),
        lambda: hoeffding_radius(5, 1.0, 1.5),
        lambda: bernstein_radius(1, 1.0, 0.1, 0.1),
    ],
)
def test_intervals_refuse_bad_arguments(call):
    with pytest.raises(ValueError, match="expected"):
        call()
