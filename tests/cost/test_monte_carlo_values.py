"""Limits of means equal their formulas term by term (a limit that is too wide passes every test of its probability)."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp

from gpsafe.cost.monte_carlo import (
    betting_upper,
    dominating_mean_upper,
    kl_upper,
    mean_lower,
    mean_upper,
    noise_paths,
    stage_delta,
    stream,
)

tensor = partial(torch.tensor, dtype=torch.float64)


def kl(p: float, q: float) -> float:
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


def reference(mean: float, count: int, delta: float) -> float:
    """sup{q : n KL(mean ‖ q) ≤ ln(1/δ)} by another root finder."""

    def excess(q: float) -> float:
        return count * kl(mean, q) - math.log(1 / delta)

    return brentq(excess, mean, 1 - 1e-15, xtol=1e-15) if excess(1 - 1e-15) > 0 else 1.0


@pytest.mark.parametrize("count", [2, 7, 900])
@pytest.mark.parametrize("mean", [0.0, 0.001, 0.4, 0.97])
def test_kl_limit_is_the_root_and_rounds_up(mean, count):
    for delta in (0.4, 1e-5):
        value, exact = float(kl_upper(tensor([mean]), count, delta)), reference(mean, count, delta)
        assert exact * (1 - 1e-14) <= value <= min(1.0, exact * (1 + 3e-12))


def test_limits_of_no_trials_or_no_probability_are_refused():
    for trials, delta in ((0, 0.1), (5, 0.0), (5, 1.0)):
        with pytest.raises(ValueError, match="kl_upper: expected"):
            kl_upper(tensor([0.5]), trials, delta)


def test_kl_limit_of_a_mean_of_one_is_one_and_rows_are_apart():
    means = torch.tensor([[0.1, 1.0], [0.7, 0.2]], dtype=torch.float64)
    limits = kl_upper(means, 30, 0.1)
    assert float(limits[0, 1]) == 1.0
    for place in ((0, 0), (1, 0), (1, 1)):
        assert float(limits[place]) == pytest.approx(reference(float(means[place]), 30, 0.1), rel=1e-11)


def sample(kind: str) -> torch.Tensor:
    """Two rows in [0, 5]: of small variance, or rare costs."""
    noise = torch.rand(2, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return 2.0 + 0.01 * noise if kind == "narrow" else 5.0 * (noise[:, :40] < 0.04).double()


def capital(row, delta: float) -> float:
    """The crossing of Σ_j w_j Π_i (1 + θ_j (m − X_i)/(1 − m)) by another root finder."""
    count, log = len(row), math.log(1 / delta)
    bets = [1.0]
    while bets[-1] > math.sqrt(log / count):
        bets.append(bets[-1] / 2)
    weights = [0.8] + [0.2 / (len(bets) - 1)] * (len(bets) - 1) if len(bets) > 1 else [1.0]

    def excess(m: float) -> float:
        factors = [np.log(np.maximum(1 + b * (m - row) / (1 - m), 1e-300)).sum() for b in bets]
        return logsumexp(factors, b=weights) - log

    return brentq(excess, row.mean(), 1 - 1e-9, xtol=1e-15) if excess(1 - 1e-9) > 0 else 1.0


@pytest.mark.parametrize("kind", ["narrow", "rare"])
def test_limits_of_means_are_their_formulas(kind):
    samples, ceiling, delta = sample(kind), 5.0, 0.03
    count = samples.shape[-1]
    narrow = []
    for i, row in enumerate((samples / ceiling).numpy()):
        bets, hoeffding = capital(row, 0.8 * delta), reference(row.mean(), count, 0.2 * delta)
        narrow.append(bets < hoeffding)
        expected = ceiling * min(bets, hoeffding)
        for limit in (mean_upper, dominating_mean_upper):
            assert expected <= float(limit(samples, ceiling, delta)[i]) <= expected * (1 + 1e-9)
    assert all(narrow) == (kind == "narrow")  # each part of the formula decides once
    mirrored = ceiling - mean_upper(ceiling - samples, ceiling, delta)
    assert torch.equal(mean_lower(samples, ceiling, delta), mirrored)


def test_a_mean_is_never_above_one():
    assert betting_upper(torch.ones(3, 7).double(), 0.1).tolist() == [1.0] * 3
    assert betting_upper(1.0 + 0.5e-12 * torch.ones(2).double(), 0.1).item() == 1.0


def test_the_limit_of_few_samples_is_the_closed_form_of_the_largest_bet():
    """1 − (δ Π (1 − X_i))^{1/N}, where N ≤ ln(1/δ) leaves no other bet; it grows with every sample."""
    for samples in ([0.3], [0.3, 0.6], [0.4, 0.6]):
        rest = math.prod(1 - x for x in samples)
        exact = 1 - (0.1 * rest) ** (1 / len(samples))
        assert float(betting_upper(tensor(samples), 0.1)) == pytest.approx(exact, rel=1e-9)


def test_samples_at_the_ceiling_give_the_ceiling_and_rounding_above_it_is_forgiven():
    for limit in (mean_upper, dominating_mean_upper):
        assert float(limit(tensor([5.0] * 4), 5.0, 0.1)) == 5.0
        assert float(limit(tensor([5.0 * (1 + 1e-13)] * 4), 5.0, 0.1)) == 5.0
        for bad in (5.0 * (1 + 1e-11), -1e-15, math.nan):
            with pytest.raises(ValueError, match="samples in"):
                limit(tensor([1.0, bad, 2.0]), 5.0, 0.1)
        assert float(limit(tensor([0.0, 5.0]), 5.0, 0.1)) <= 5.0  # two samples are enough
        with pytest.raises(ValueError, match="number of samples >= 2"):
            limit(tensor([1.0]), 5.0, 0.1)
    assert float(mean_lower(tensor([5.0 * (1 + 1e-13)] * 4), 5.0, 0.1)) > 0.0


def test_a_stages_share_is_its_formula_and_the_noise_is_that_of_its_stream():
    assert stage_delta(0.3, 4, calls=5) == pytest.approx(0.3 / (5 * 4 * 5), rel=1e-15)
    assert stage_delta(0.3, 1) == 0.15
    with pytest.raises(ValueError, match=r"stage_delta: expected .*calls"):
        stage_delta(0.3, 4, calls=0)
    first, second = np.random.SeedSequence((7, 2, 3)).generate_state(2, np.uint32)
    seed = int(first) * 2**31 + int(second) // 2
    assert stream(7, 2, 3).initial_seed() == seed
    assert stream(0, 2, 3).initial_seed() > 0  # the seed 0 is one
    with pytest.raises(ValueError, match="stream: expected integer seed >= 0"):
        stream(-1, 2, 3)
    std = torch.tensor([0.5, 2.0], dtype=torch.float64)
    paths = noise_paths(std, 3, 4000, seed=7, stage=2, purpose=3, device=torch.device("cpu"))
    assert paths.shape == (3, 1, 4000, 2)
    normal = torch.randn(3, 1, 4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(paths, std * normal)
