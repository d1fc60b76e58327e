"""Monte-Carlo limits hold with their stated probability, and the shares of δ sum to δ."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import dear, seeds

from gpsafe.cost.monte_carlo import (
    betting_upper,
    dominating_mean_upper,
    kl_upper,
    mean_lower,
    mean_upper,
    stage_delta,
    stream,
)
from gpsafe.verdict import bernstein_radius

EXACT = 1e-12


def failure_probability(limit, trials: int, p: float) -> float:
    """P(limit(K/n) < p) for K ~ Binomial(n, p), summed exactly."""
    counts = torch.arange(trials + 1, dtype=torch.float64)
    below = limit(counts / trials) < p
    return float(stats.binom.pmf(counts.numpy(), trials, p)[below.numpy()].sum())


@given(st.integers(2, 60), st.floats(0.001, 0.999), st.sampled_from([0.3, 0.05, 0.001]))
def test_kl_limit_fails_with_probability_at_most_delta_for_every_bernoulli(trials, p, delta):
    assert failure_probability(lambda mean: kl_upper(mean, trials, delta), trials, p) <= delta


def test_control_the_mean_without_a_term_fails_half_of_the_time():
    assert failure_probability(lambda mean: mean, 50, 0.3) > 0.3


@given(st.integers(2, 2000), st.sampled_from([0.2, 0.01, 1e-6]))
def test_kl_limit_of_no_events_is_the_clopper_pearson_limit(trials, delta):
    limit = float(kl_upper(torch.zeros(1, dtype=torch.float64), trials, delta))
    assert limit == pytest.approx(1 - delta ** (1 / trials), rel=1e-9)
    assert limit >= (1 - delta ** (1 / trials)) * (1 - EXACT)


@pytest.mark.parametrize("shape", [(0.2, 3.0), (8.0, 8.0), (0.02, 2.0)])
def test_limits_of_means_of_bounded_variables_fail_rarely_on_both_sides(shape):
    generator = torch.Generator().manual_seed(3)
    runs, count, delta = 2000, 40, 0.1
    uniform = torch.rand(runs, count, dtype=torch.float64, generator=generator).numpy()
    samples = 5.0 * torch.from_numpy(stats.beta.ppf(uniform, *shape))
    truth = 5.0 * shape[0] / sum(shape)
    high, low = mean_upper(samples, 5.0, delta), mean_lower(samples, 5.0, delta)
    assert bool((low <= samples.mean(-1) + EXACT).all())
    assert bool((high >= samples.mean(-1) - EXACT).all())
    assert float((high < truth).double().mean()) <= delta
    assert float((low > truth).double().mean()) <= delta


@dear()
@given(seeds(), st.sampled_from([0.2, 1e-3]), st.integers(2, 300))
def test_limit_for_dominating_samples_grows_with_every_sample(seed, delta, count):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.rand(1, count, dtype=torch.float64, generator=generator).pow(6)
    raised = samples + (1 - samples) * torch.rand(1, count, dtype=torch.float64, generator=generator).pow(9)
    assert float(dominating_mean_upper(raised, 1.0, delta)) >= float(dominating_mean_upper(samples, 1.0, delta)) - EXACT
    assert float(dominating_mean_upper(samples, 1.0, delta)) >= float(samples.mean())


def bernstein(samples: torch.Tensor, delta: float) -> float:
    return float(samples.mean()) + bernstein_radius(samples.numel(), 1.0, float(samples.var()), delta)


def test_control_a_limit_by_the_variance_may_fall_when_a_sample_is_raised():
    samples = torch.full((1, 20_000), 0.5, dtype=torch.float64)
    raised = samples.clone()
    samples[0, 0] = 0.0
    assert bernstein(raised, 0.01) < bernstein(samples, 0.01)
    assert float(dominating_mean_upper(raised, 1.0, 0.01)) > float(dominating_mean_upper(samples, 1.0, 0.01))


@given(st.integers(2, 60), st.floats(0.001, 0.999), st.sampled_from([0.3, 0.05, 0.001]), st.sampled_from([1.0, 0.3]))
def test_bets_fail_with_probability_at_most_delta_for_every_scaled_bernoulli(trials, p, delta, size):
    """Samples in {0, size}: the binomial sum is exact. (δ · 6 and more would be found out, below.)"""

    def limit(share: torch.Tensor) -> torch.Tensor:
        hits = torch.arange(trials, dtype=torch.float64) < (share * trials).round().unsqueeze(-1)
        return betting_upper(size * hits.double(), delta) / size

    assert failure_probability(limit, trials, p) <= delta


def test_control_a_limit_for_six_times_the_delta_is_found_out():
    values = betting_upper((torch.arange(20) < torch.arange(21)[:, None]).double(), 0.3)
    assert max(failure_probability(lambda share: values, 20, p) for p in (0.02, 0.05, 0.1, 0.149, 0.2)) > 0.05


@dear()
@given(seeds(), st.integers(2, 200), st.sampled_from([0.2, 1e-3, 1e-6]))
def test_limits_are_never_wider_than_the_kl_limit_of_a_fifth_of_delta(seed, count, delta):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.rand(3, count, dtype=torch.float64, generator=generator).pow(
        float(8 * torch.rand(1, generator=generator))
    )
    found = mean_upper(samples, 1.0, delta)
    assert bool((found <= kl_upper(samples.mean(-1), count, delta / 5) * (1 + 1e-11)).all())
    free = float(mean_upper(torch.zeros(1, count, dtype=torch.float64), 1.0, delta))
    assert free <= 1 - (0.64 * delta) ** (1 / count) + 1e-9


def test_small_variance_is_used():
    samples = 0.5 + 1e-3 * torch.rand(1, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(mean_upper(samples, 1.0, 0.01)) < 0.5 + 0.02
    assert float(kl_upper(samples.mean(-1), 4000, 0.009)) > 0.5 + 0.02


@given(st.integers(1, 5), st.floats(1e-6, 0.5))
def test_shares_of_all_stages_and_calls_sum_to_delta(calls, delta):
    spent = sum(calls * stage_delta(delta, stage, calls=calls) for stage in range(1, 2000))
    assert spent <= delta
    assert spent == pytest.approx(delta * (1 - 1 / 2000), rel=1e-9)


def test_streams_repeat_and_differ_between_seeds_stages_and_purposes():
    def draw(*key):
        return torch.rand(4, generator=stream(*key)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_upper(torch.ones(3, 1), 1.0, 0.1),
        lambda: mean_upper(torch.ones(3, 5) * 2, 1.0, 0.1),
        lambda: mean_upper(-torch.ones(3, 5), 1.0, 0.1),
        lambda: mean_upper(torch.full((3, 5), math.nan), 1.0, 0.1),
        lambda: mean_upper(torch.ones(3, 5), 1.0, 0.0),
        lambda: stage_delta(0.1, 0),
        lambda: stage_delta(1.0, 1),
        lambda: stream(-1, 1, 1),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()
