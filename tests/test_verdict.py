"""Verdicts, and the intervals under them, against direct sums of the binomial law."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from gpsafe.verdict import (
    Outcome,
    Verdict,
    anytime_interval,
    bernstein_radius,
    clopper_pearson,
    clopper_pearson_upper,
    hoeffding_radius,
    worst_of,
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


NONSENSE = {
    "a number for lower, got nan": (math.nan, 1, 1),
    "a number for upper, got '1'": (0, "1", 1),
    "a number for upper, got True": (0, True, 1),
    "a number for upper, got np.True_": (0, np.bool_(True), 1),
    "a number for lower, got tensor": (torch.tensor(False), 1, 1),
    "a number for tol, got np.complex128": (0, 1, 1, np.complex128(1)),
    "a number for upper, got tensor": (0, torch.ones(1), 1),
    "a number for threshold, got nan": (0, 1, math.nan),
    "a number for tol, got None": (0, 1, 1, None),
    "a finite threshold, got inf": (0, 1, math.inf),
    "upper > -inf": (-math.inf, -math.inf, 1),
    "lower <= upper": (1, 0, 1),
    "tol >= 0": (0, 1, 1, -1e-9),
}


@pytest.mark.parametrize("message", NONSENSE)
def test_nonsense_is_refused(message):
    with pytest.raises(ValueError, match=f"Verdict: expected {message}"):
        Verdict(*NONSENSE[message])


@pytest.mark.parametrize(
    ("args", "outcome"),
    [
        ((0, 1, 1), Outcome.HOLDS), ((-math.inf, 0.5, 1), Outcome.HOLDS), ((0, math.inf, 1), Outcome.INCONCLUSIVE),
        ((1, 1, 1), Outcome.HOLDS), ((0, 1.1, 1), Outcome.INCONCLUSIVE),
        ((1, 2, 1), Outcome.INCONCLUSIVE), ((1.1, 2, 1), Outcome.VIOLATED), ((0, 0.95, 1, 0.1), Outcome.INCONCLUSIVE),
        ((0, 0.5, 1, 0.5), Outcome.HOLDS), ((1.07, 2, 1, 0.1), Outcome.INCONCLUSIVE), ((1.2, 2, 1, 0.1), Outcome.VIOLATED),
    ],
)  # fmt: skip
def test_ends_count_to_what_is_claimed_and_a_margin_is_cleared_on_either_side(args, outcome):
    assert Verdict(*args).outcome is outcome


@pytest.mark.parametrize("number", [np.float32, lambda value: torch.tensor(value, dtype=torch.float32)])
def test_what_is_more_than_the_threshold_in_single_precision_does_not_hold(number):
    """0.1 in float32 is 0.100000001, and was compared with 0.1 as if that were in float32, too."""
    assert Verdict(number(0.0), number(0.1), 0.1).outcome is Outcome.INCONCLUSIVE


def test_a_verdict_is_of_the_numbers_as_they_were():
    value = torch.tensor(0.5, dtype=torch.float64)
    found = Verdict(value, value, 1.0)
    value.fill_(2.0)
    assert found.outcome is Outcome.HOLDS and type(found.upper) is float


def test_a_verdict_is_shown_with_its_witness_if_it_has_one():
    page = Verdict(0.25, 0.5, 1.0, 0.125, "seen <here>")._repr_html_()
    for told in ("HOLDS", "value ≤ 1", "[0.25, 0.5]", "0.125", "seen &lt;here&gt;"):
        assert told in page
    assert "witness" not in Verdict(0.25, 0.5, 1.0)._repr_html_()


def test_the_worst_is_the_largest_and_nan_where_there_is_one():
    assert worst_of([0.5, 2.0, 1.0]) == 2.0 and worst_of(1.0, 3.0, 2.0) == 3.0
    assert math.isnan(worst_of([1.0, math.nan, 2.0])) and math.isnan(worst_of(math.inf, math.nan))
    assert worst_of(("a", 1.0), ("b", -2.0), key=lambda pair: -pair[1]) == ("b", -2.0)


@pytest.mark.parametrize(("failures", "trials", "alpha"), [(0, 7, 0.05), (1, 12, 0.3), (5, 40, 0.01), (12, 12, 0.2)])
def test_an_anytime_end_is_where_the_evidence_reaches_one_over_alpha(failures, trials, alpha):
    """e_n(p) = ½ Σ_q (q/p)^k ((1 − q)/(1 − p))^(n − k), q ∈ {0, p/4}; that of the successes from below."""

    def evidence(p: float, k: int) -> float:
        powers = [(trials - k) * math.log((1 - q) / (1 - p)) for q in (0.0, p / 4)]
        powers[0], powers[1] = (powers[0] if k == 0 else -math.inf), powers[1] - k * math.log(4)
        return float(np.logaddexp(*powers)) - math.log(2) + math.log(alpha)

    def end(k: int) -> float:
        return 1.0 if k == trials else optimize.brentq(evidence, 1e-9, 1 - 1e-15, args=(k,), xtol=1e-14)

    low, high = anytime_interval(failures, trials, alpha)
    assert high == pytest.approx(end(failures), abs=2e-12) and high >= end(failures) - 1e-14
    assert low == pytest.approx(1 - end(trials - failures), abs=2e-12)


def test_radii_are_those_of_the_papers():
    assert hoeffding_radius(50, 3.0, 0.1) == pytest.approx(3 * math.sqrt(math.log(10) / 100), rel=1e-12)
    log = math.log(2 / 0.1)  # Maurer & Pontil 2009, Theorem 4
    expected = math.sqrt(2 * 0.7 * log / 50) + 7 * 3 * log / (3 * 49)
    assert bernstein_radius(50, 3.0, 0.7, 0.1) == pytest.approx(expected, rel=1e-12)
    assert hoeffding_radius(1, 0.0, 0.5) == 0.0 == bernstein_radius(2, 0.0, 0.0, 0.5)


def test_of_one_trial_everything_is_known():
    assert clopper_pearson_upper(0, 1, 0.05) == pytest.approx(0.95) and clopper_pearson_upper(1, 1, 0.05) == 1.0
    assert clopper_pearson(0, 1, 0.9) == (0.0, pytest.approx(0.95))
    assert clopper_pearson(1, 1, 0.9) == (pytest.approx(0.05), 1.0)
    assert clopper_pearson(3, 9) == clopper_pearson(3, 9, 0.99)
    assert anytime_interval(1, 1, 0.05)[1] == 1.0 and anytime_interval(0, 1, 0.05)[0] == 0.0


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
        lambda: clopper_pearson_upper(3, 2, 0.1),
        lambda: clopper_pearson_upper(-1, 2, 0.1),
        lambda: clopper_pearson_upper(0, 0, 0.1),
        lambda: anytime_interval(-1, 2, 0.1),
        lambda: anytime_interval(0, 0, 0.1),
        lambda: hoeffding_radius(5, -1.0, 0.5),
        lambda: bernstein_radius(5, 1.0, -0.1, 0.1),
        lambda: bernstein_radius(5, -1.0, 0.1, 0.1),
        lambda: bernstein_radius(5, 1.0, 0.1, 1.0),
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
