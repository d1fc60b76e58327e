"""What the experiments on open questions compute with: norm bounds, adversarial plants, shares, memory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import seeds

from experiments import cartpole_budgets
from experiments._report import line
from experiments._report.statistics import RateRatio, Share, bootstrap_ratio, mean_interval
from experiments.check_rkhs_assumption import kernel, lower_norms
from gpsafe import rkhs
from gpsafe.testbed.experiment import Piece

BOX = torch.ones(3, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curve(seed: int, name: str, ridge: float, norm: float = 2.0) -> torch.Tensor:
    """Lower bounds from nested points of a function whose norm is exactly `norm`."""
    f = rkhs.random_function(kernel(name, 3), -BOX, BOX, norm=norm, generator=generator(seed), num_centers=8)
    points = 2 * torch.rand(40, 3, dtype=torch.float64, generator=generator(seed + 1)) - 1
    return lower_norms(kernel(name, 3), points, f(points).unsqueeze(-1), ridge)[:, 0]


@given(seed=seeds(), name=st.sampled_from(["rbf 1", "matern-5/2 1", "matern-3/2 1"]), power=st.integers(-9, -1))
def test_lower_norms_stay_below_the_exact_norm_and_grow_with_points(seed: int, name: str, power: int) -> None:
    bounds = curve(seed, name, 10.0**power)
    assert float(bounds[-1]) <= 2.0 * (1 + 1e-6)
    assert bool((bounds.diff() >= 0).all())


@given(seed=seeds())
def test_lower_norms_grow_as_the_ridge_falls_and_scale_with_the_function(seed: int) -> None:
    assert bool((curve(seed, "matern-5/2 1", 1e-6) >= curve(seed, "matern-5/2 1", 1e-3) - 1e-12).all())
    assert torch.allclose(curve(seed, "rbf 1", 1e-4, 4.0), 2 * curve(seed, "rbf 1", 1e-4, 2.0))


def test_lower_norm_at_the_centres_is_the_norm() -> None:
    own = kernel("matern-3/2 1", 3)
    f = rkhs.random_function(own, -BOX, BOX, norm=2.0, generator=generator(0), num_centers=8)
    assert float(lower_norms(own, f.centers, f(f.centers).unsqueeze(-1), 1e-12)[-1, 0]) == pytest.approx(2.0, rel=1e-6)


def test_control_a_function_outside_the_space_exceeds_every_norm() -> None:
    step = (torch.linspace(-1, 1, 200, dtype=torch.float64) > 0).double().unsqueeze(-1)
    points = torch.linspace(-1, 1, 200, dtype=torch.float64).unsqueeze(-1)
    bounds = lower_norms(kernel("matern-5/2 1", 1), points, step, 1e-12)[:, 0]
    assert float(bounds[-1]) > 1e3


@given(seed=seeds())
def test_dormant_plants_have_the_norm_are_quiet_where_it_is_safe_and_push_outwards(seed: int) -> None:
    f = line.dormant(generator(seed))
    assert f.norm == pytest.approx(line.NORM, rel=1e-6)
    quiet = rkhs.grid(torch.tensor([-0.4, -1.0]).double(), torch.tensor([0.15, 1.0]).double(), (12, 5))
    assert float(f(quiet).abs().max()) < 1e-3
    assert float(f(f.centers[-1:])) > 0.01


def test_truth_of_a_plant_without_residual_is_that_of_its_set_points() -> None:
    zero = rkhs.RKHSFunction(line.KERNEL, torch.zeros(1, 2).double(), torch.tensor([1e-9]).double())
    truth = line.truth(line.plant(zero), line.set_points([0.2, 1.3]), cells=260)
    assert truth.safe(line.BUDGET).tolist() == [True, False]
    assert truth.unsafe(line.BUDGET).tolist() == [False, True]


def test_share_is_exact_and_covers() -> None:
    share = Share.of([True, False, False, True])
    assert (share.count, share.total, share.value) == (2, 4, 0.5)
    assert share.interval[0] < 0.5 < share.interval[1]


def test_peak_memory_sees_an_allocation() -> None:
    code = (
        "import torch; from experiments._report.statistics import peak_memory; "
        "print(*peak_memory(lambda: float(torch.ones(64 * 2**17, dtype=torch.float64).sum())))"
    )  # in a process of its own: elsewhere freed memory may serve the allocation
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    result, seconds, grown = map(float, told.split())
    assert result == 64 * 2**17 and seconds > 0
    assert grown > 40 or grown != grown  # MiB; nan where the system does not tell


@pytest.mark.parametrize("count", [3, 5, 20])
def test_intervals_over_few_seeds_cover_the_mean_in_95_percent_of_experiments(count):
    g = torch.Generator().manual_seed(count)
    found = [mean_interval(torch.randn(count, dtype=torch.float64, generator=g).tolist()) for _ in range(4000)]
    covered = sum(abs(mean) <= half for mean, half in found) / len(found)
    assert abs(covered - 0.95) < 0.02  # 1.96 standard errors would cover 0.81 for three seeds


def test_a_bound_below_the_simulated_truth_by_more_than_its_error_is_counted():
    cost = torch.tensor([[1.0, 1.0, 1.2, 0.8], [0.0, 0.0, 0.0, 0.0], [3.0, 5.0, 4.0, 4.0]], dtype=torch.float64)
    rows = [
        {"bound": name, "data": 0, "policy": i, "upper": upper}
        for name in cartpole_budgets.BOUNDS
        for i, upper in ((0, 0.7), (2, 3.9))  # three standard errors below 1 are 0.75, below 4 they are 2.8
    ]
    pieces = {"truth": Piece([], {"cost": cost}), "bounds-0": Piece(rows, {"chosen": torch.tensor([0, 2])})}
    run = SimpleNamespace(pieces=pieces, arguments=SimpleNamespace(horizon=50))
    table = cartpole_budgets._table_of_bounds([run])
    assert [row[table.columns.index("below truth")] for row in table.rows] == [1] * len(cartpole_budgets.BOUNDS)


def test_a_ratio_over_seeds_stands_when_one_of_them_has_nothing_on_either_side():
    """Draws of that seed alone are left out; with it on one side only the ratio may be infinite; and nan of nothing at all."""
    both = bootstrap_ratio([2.0, 4.0, 0.0], [4.0, 8.0, 0.0], ["all"] * 3, np.sum)
    assert both == pytest.approx((0.5, 0.5, 0.5))
    whole, low, high = bootstrap_ratio([1.0, 3.0], [0.0, 6.0], ["all"] * 2, np.sum)
    assert (whole, low, high) == (pytest.approx(2 / 3), pytest.approx(0.5), math.inf)
    assert all(math.isnan(value) for value in bootstrap_ratio([0.0], [0.0], ["all"], np.sum))


def test_the_interval_of_a_ratio_of_rates_covers_and_turns_with_its_sides():
    """Clopper–Pearson's coverage carries over: 95 % of Poisson draws at least, at a 10⁻⁶ limit; 1/ρ has the ends turned."""
    drawn = np.random.default_rng(0).poisson([3.0 * 2.0, 3.0], (4000, 2))  # ρ = 4 in half as many steps
    intervals = [RateRatio(int(a), 1000, int(b), 2000).interval for a, b in drawn]
    missed = sum(not low <= 4.0 <= high for low, high in intervals)
    assert missed <= stats.binom.ppf(1 - 1e-6, len(drawn), 0.05)
    low, high = RateRatio(7, 300, 2, 500).interval
    assert RateRatio(2, 500, 7, 300).interval == pytest.approx((1 / high, 1 / low))
    assert RateRatio(7, 300, 2, 500).value == pytest.approx(7 / 300 / (2 / 500))


def test_a_ratio_of_rates_without_counts_says_nothing():
    nothing, one = RateRatio(0, 10, 0, 20), RateRatio(3, 10, 0, 20)
    assert math.isnan(nothing.value) and nothing.interval == (0.0, math.inf) and str(nothing) == "–"
    assert one.value == math.inf and one.interval[1] == math.inf and one.interval[0] > 0


def test_a_share_of_what_is_no_answer_is_refused():
    assert (Share.of([True, 0, 1.0]).count, Share.of(torch.tensor([1, 0, 0])).total) == (2, 3)
    with pytest.raises(ValueError, match="true or false"):
        Share.of([True, math.nan])
