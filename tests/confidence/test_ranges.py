"""Ranges over boxes contain what 45 digits say, at points that a search makes as bad as it can, for every kernel family."""

import math
from functools import cache

import flint
import mpmath
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Constant, ConvexProgram, Mixture, _taylor, ranges
from gpsafe.confidence._cells import Deviation, Mean
from gpsafe.confidence._output import ENTRY, Local, Output
from gpsafe.confidence._taylor import Bernstein, Products, Profile, multi_indices
from gpsafe.models import GP, LowRankGP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box

FAMILIES = (math.inf, 2.5, 1.5, 0.5)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def shaped(nu: float, scales: list[float], variance: float = 1.0, **options):
    return (
        kernels.rbf(scales, variance, **options) if math.isinf(nu) else kernels.matern(nu, scales, variance, **options)
    )


def data(kind: str, n: int, d: int, seed: int) -> Tensor:
    x = uniform(n, d, seed=seed)
    if kind == "cluster":
        return x[torch.arange(n) % 3] + 1e-3 * uniform(n, d, seed=seed + 1)
    if kind == "repeated":
        return x[torch.arange(n) % (n // 3)]
    return x + (100.0 if kind == "far from 0" else 0.0)


def learned(
    nu: float, scales: list[float], lam: float, kind: str = "uniform", variance: float = 1.0, n: int = 24
) -> GP:
    d = len(scales)
    x = data(kind, n, d, seed=n + d)
    y = math.sqrt(variance) * (torch.sin(3 * (x - x.mean(0))).sum(-1) + math.sqrt(lam) * uniform(n, seed=7))
    model = GP.create(shaped(nu, scales, variance), lam * variance, nx=d, nu=0, noise_std=1.0, outputs=(0,))
    return model.condition_on(x, y.unsqueeze(-1))


def boxes(model: GP, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Of many sizes: a point, an edge, a huge one, one far from data, one around a datum, small ones."""
    assert model.inputs is not None
    d = model.inputs.shape[1]
    form = kernels.stationary(model.kernels[0])
    assert form is not None
    scales = form.lengthscale.expand(d)
    center = model.inputs.mean(0) + 1.2 * uniform(8, d, seed=seed)
    radius = scales * 10.0 ** (1.5 * uniform(8, 1, seed=seed + 1) - 1.5) * uniform(8, d, seed=seed + 2).abs()
    radius[0], center[4] = 0.0, model.inputs[0]
    radius[1, 0] = 0.0
    radius[2] = 4.0
    center[3] = center[3] + 60 * scales.max()
    return center - radius, center + radius


def worst_points(value, lower: Tensor, upper: Tensor) -> Tensor:
    """Where `value` is about largest and least over each box, by sampling and a search that narrows, (2N, d)."""
    n, d = lower.shape
    z = lower + (upper - lower) * (0.5 + 0.5 * uniform(60, n, d, seed=1))
    corners = torch.where(uniform(12, n, d, seed=2) > 0, lower, upper)
    z, found, line = torch.cat([z, corners]), [], torch.arange(n)
    for sign in (1.0, -1.0):
        best, step = z[(sign * value(z)).argmax(0), line], 0.3
        for i in range(25):
            tried = torch.cat([best[None], best + step * (upper - lower) * uniform(12, n, d, seed=10 + i)])
            tried = torch.minimum(torch.maximum(tried, lower), upper)
            best, step = tried[(sign * value(tried)).argmax(0), line], 0.75 * step
        found.append(best)
    return torch.cat(found)


@cache
def case(name: str) -> GP:
    return {
        "rbf": lambda: learned(math.inf, [0.5, 0.8], 1e-4),
        "rbf, lambda 1e-6, clusters": lambda: learned(math.inf, [1.0, 1.5, 0.7], 1e-6, "cluster"),
        "rbf, short and long": lambda: learned(math.inf, [0.08, 15.0], 1e-6),
        "rbf, small amplitude, far from 0": lambda: learned(math.inf, [0.6], 1e-5, "far from 0", variance=1e-4),
        "matern 5/2": lambda: learned(2.5, [0.9, 0.7], 1e-4),
        "matern 5/2, repeated": lambda: learned(2.5, [0.2, 5.0], 1e-6, "repeated", variance=30.0),
        "matern 3/2": lambda: learned(1.5, [0.9, 0.7], 1e-3),
        "matern 3/2, clusters": lambda: learned(1.5, [2.0], 1e-6, "cluster"),
        "matern 1/2": lambda: learned(0.5, [0.9, 0.7], 1e-4),
        "four inputs": lambda: learned(math.inf, [0.9, 1.1, 2.0, 0.7], 1e-4),
        "six inputs": lambda: learned(2.5, [1.9, 1.1, 2.0, 1.7, 1.0, 3.0], 1e-2),
    }[name]()


CASES = (
    "rbf", "rbf, lambda 1e-6, clusters", "rbf, short and long", "rbf, small amplitude, far from 0", "matern 5/2",
    "matern 5/2, repeated", "matern 3/2", "matern 3/2, clusters", "matern 1/2", "four inputs", "six inputs",
)  # fmt: skip


def excess(name: str, what: str, *, tol: float, cells: int, seed: int = 0) -> tuple[float, float]:
    """How far exact values at the worst points lie outside the enclosures, and beyond what is said to be attained."""
    model = case(name)
    lower, upper = boxes(model, seed)
    found = getattr(ranges, what)(model, (lower, upper), tol=tol, cells=cells)
    index = ("mean", "std").index(what)
    points = worst_points(lambda z: model.posterior(z)[index][..., 0], lower, upper)
    points = torch.cat([points, found.argmin[:, 0], found.argmax[:, 0]])
    assert bool(((points >= lower.repeat(4, 1)) & (points <= upper.repeat(4, 1))).all())
    form = kernels.stationary(model.kernels[0])
    assert form is not None
    assert model.inputs is not None
    assert model.targets is not None
    outside = claimed = -math.inf
    with flint.ctx.workdps(45):
        scales = form.lengthscale.expand(len(lower[0])).tolist()
        own = (form.nu, scales, form.variance, float(model.regularizer[0]), model.inputs, model.targets[:, 0], points)
        variances, means = reference.exact_posterior(*own)
        n = len(lower)
        for i in range(4 * n):
            exact = means[i] if what == "mean" else variances[i].sqrt()
            ends = [flint.arb(float(end[i % n, 0])) for end in (found.lower, found.upper)]
            outside = max(outside, float((ends[0] - exact).upper()), float((exact - ends[1]).upper()))
            if i >= 3 * n:
                claimed = max(claimed, float((flint.arb(float(found.attained_high[i % n, 0])) - exact).upper()))
            elif i >= 2 * n:
                claimed = max(claimed, float((exact - flint.arb(float(found.attained_low[i % n, 0]))).upper()))
    return outside, claimed


# ------------------------------------------------------------------------------------------------- enclosures
@pytest.mark.parametrize("what", ["mean", "std"])
@pytest.mark.parametrize("name", CASES)
def test_enclosures_contain_the_exact_posterior_and_attained_values_are_attained(name, what):
    for tol, cells in ((1e-6, 60), (1e-2, 1)):
        outside, claimed = excess(name, what, tol=tol, cells=cells)
        assert outside <= 0
        assert claimed <= 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["mean", "std"])
@pytest.mark.parametrize("name", CASES)
def test_enclosures_contain_the_exact_posterior_on_many_boxes(name, what):
    for seed in range(1, 13):
        for tol, cells in ((1e-8, 2000), (1e-3, 20), (1e-2, 1)):
            outside, claimed = excess(name, what, tol=tol, cells=cells, seed=seed)
            assert outside <= 0
            assert claimed <= 0


def unseen(nu: float, what: str) -> tuple[float, float]:
    """The value at the end of a cell, and the upper bound there, of a function that shows nothing around the centre.

    Data around 0 fix value and derivatives there, so that σ(r) is about ‖e‖, and the mean through one more datum at r about
    ‖μ‖‖e‖: nothing but the remainder knows.
    """
    r = 0.5
    x = torch.linspace(-0.03, 0.03, 7, dtype=torch.float64).unsqueeze(-1)
    y = torch.zeros_like(x)
    if what == "mean":
        x, y = torch.cat([x, x[:1] * 0 + r]), torch.cat([y, y[:1] + 1.0])
    model = GP.create(shaped(nu, [1.0]), 1e-10, nx=1, nu=0, noise_std=1.0).condition_on(x, y)
    of = (Mean if what == "mean" else Deviation)(Output.of(model, 0))
    cells = of.over(np.array([[-r]]), np.array([[r]]))
    return float(model.posterior(torch.tensor([[r]]))[what == "std"]), float(cells.high[0])


@pytest.mark.parametrize("what", ["mean", "std"])
@pytest.mark.parametrize("nu", [math.inf, 2.5, 1.5])
def test_what_the_centre_does_not_show_is_in_the_remainder_and_in_nothing_else(nu, what, monkeypatch):
    monkeypatch.setitem(_taylor.ORDERS, 1, 2)  # of the RBF: with noise, data near 0 do not fix more derivatives
    value, bound = unseen(nu, what)
    assert value <= bound <= 4 * value
    monkeypatch.setattr(Profile, "remainder", lambda self, r: 0.0 * r)
    value, bound = unseen(nu, what)
    assert value > 1.2 * bound


def test_control_slopes_without_their_remainder_cut_to_the_wrong_end(monkeypatch):
    """The mean rises at the centre of the box and has its peak on the way to the end."""
    x = torch.tensor([[0.5]], dtype=torch.float64)
    model = GP.create(kernels.matern(1.5, 1.0), 1e-6, nx=1, nu=0, noise_std=1.0).condition_on(x, 2 * x)
    box = Box([-0.2], [1.0])
    assert 1.0 - 1e-5 <= float(ranges.mean(model, box).upper) <= 1.01
    monkeypatch.setattr(Profile, "slope", lambda self, r: 0.0 * r)
    assert float(ranges.mean(model, box).upper) < 0.9


def test_control_rounding_left_out_is_noticed(monkeypatch):
    monkeypatch.setattr(Output, "carried", lambda self, deviation: 0.0 * deviation)
    monkeypatch.setattr(Output, "direct_unit", 0.0)
    assert excess("rbf, lambda 1e-6, clusters", "mean", tol=1e-6, cells=60)[0] > 0


# ------------------------------------------------------------------------------------------ tolerance and time
def test_the_tolerance_is_reached_where_kernels_are_smooth():
    model = learned(math.inf, [0.6, 0.7, 0.8], 1e-4, n=60)
    lower = uniform(40, 3, seed=3)
    for side, tol in ((0.1, 0.01), (0.02, 0.01), (0.3, 0.001)):
        for what in (ranges.mean, ranges.std):
            found = what(model, (lower, lower + side), tol=tol)
            assert float(found.gap.max()) <= tol
            assert bool((found.attained_low <= found.attained_high).all())
    rough = learned(2.5, [0.6, 0.7, 0.8], 1e-4, n=60)
    assert float(ranges.mean(rough, (lower, lower + 0.1)).gap.max()) <= 0.01
    assert float(ranges.std(rough, (lower, lower + 0.05)).gap.max()) <= 0.01


def test_where_rounding_is_hopeless_the_prior_is_all_that_is_said_of_the_deviation():
    """ηT > λ/2: computed variances may be far below 0."""
    x = torch.linspace(0, 5, 80, dtype=torch.float64).unsqueeze(-1)
    model = GP.create(kernels.matern(0.5, 1.0), 1e-15, nx=1, nu=0, noise_std=1.0).condition_on(x, torch.sin(x))
    box = x[:-1] - 0.01, x[:-1] + 0.01
    found = ranges.std(model, box, cells=20)
    assert bool((found.lower == 0).all())
    assert found.upper.flatten().tolist() == pytest.approx([1.0] * 79, rel=1e-12)
    smooth = GP.create(kernels.matern(2.5, 1.0), 1e-15, nx=1, nu=0, noise_std=1.0).condition_on(
        x[::4], torch.sin(x[::4])
    )
    assert bool((ranges.std(smooth, box, cells=20).upper >= 1.0).all())


def test_a_computed_variance_far_below_zero_does_not_make_the_deviation_vanish():
    """60 points on a line at λ/k = 1e-11: the product with the inverse factor errs by 4.2 times its measured margin."""
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None] * torch.tensor([0.3, 0.7, 0.5], dtype=torch.float64)
    model = GP.create(kernels.rbf([0.4] * 3, 50.0), 5e-10, nx=3, nu=0, noise_std=1.0, outputs=(0,))
    model = model.condition_on(x, torch.sin(3 * x[:, :1]))
    some = x[::6]
    found = ranges.std(model, (some, some), cells=4)
    with flint.ctx.workdps(45):
        own = (math.inf, [0.4] * 3, 50.0, 5e-10, x, torch.sin(3 * x[:, 0]), some)
        for i, variance in enumerate(reference.exact_posterior(*own)[0]):
            exact = variance.sqrt()
            assert flint.arb(float(found.lower[i, 0])) <= exact <= flint.arb(float(found.upper[i, 0]))


def test_more_cells_never_lose_the_enclosure_and_narrow_it():
    model = case("matern 3/2")
    lower = uniform(6, 2, seed=5)
    widths = [ranges.std(model, (lower, lower + 0.4), tol=1e-4, cells=c) for c in (1, 10, 100, 1000)]
    sums = [float((w.upper - w.lower).sum()) for w in widths]
    assert sums == sorted(sums, reverse=True)
    assert sums[0] > 1.5 * sums[-1]


# -------------------------------------------------------------------------------------------------- invariants
def fields(found: ranges.Range) -> list[Tensor]:
    return [
        getattr(found, name) for name in ("lower", "upper", "attained_low", "attained_high", "argmin", "argmax", "gap")
    ]


@pytest.mark.parametrize("nu", [math.inf, 2.5])
def test_no_box_sees_another(nu):
    """Bit for bit, whatever the batch: subsets, another order, a box at a time."""
    model = learned(nu, [0.6, 0.7, 0.8], 1e-4, n=70)
    lower = uniform(19, 3, seed=8)
    upper = lower + 0.3 * uniform(19, 3, seed=9).abs()
    for what in (ranges.mean, ranges.std):
        together = what(model, (lower, upper))
        for pick in (
            torch.randperm(19, generator=torch.Generator().manual_seed(0)),
            torch.tensor([4]),
            torch.arange(3, 12),
        ):
            alone = what(model, (lower[pick], upper[pick]))
            for a, b in zip(fields(together), fields(alone), strict=True):
                assert torch.equal(a[pick], b)


@given(st.integers(0, 10**6), st.sampled_from(["rbf", "matern 5/2", "matern 3/2"]))
@settings(max_examples=12, deadline=None)
def test_attained_values_of_a_part_lie_in_the_range_of_the_whole(seed, name):
    model = case(name)
    lower = uniform(3, 2, seed=seed)
    upper = lower + uniform(3, 2, seed=seed + 1).abs()
    inner = lower + 0.3 * (upper - lower), upper - 0.4 * (upper - lower)
    for what in (ranges.mean, ranges.std):
        whole, part = what(model, (lower, upper), cells=50), what(model, inner, cells=50)
        assert bool((part.attained_high <= whole.upper).all())
        assert bool((part.attained_low >= whole.lower).all())


def test_boxes_come_as_one_or_as_arrays_of_any_shape_and_outputs_keep_their_kernels():
    family = [
        kernels.rbf(0.5, dims=[1]),
        kernels.matern(2.5, [0.7, 0.9], 2.0, dims=[0, 2]),
        kernels.rbf([0.5, 0.6, 0.7]),
    ]
    z = uniform(20, 3, seed=4)
    model = GP.create(family, 1e-3, nx=3, nu=0, noise_std=0.1).condition_on(z, torch.sin(3 * z))
    lower = uniform(2, 3, 3, seed=6)
    upper = lower + 0.2
    for index, what in enumerate((ranges.mean, ranges.std)):
        found, one = what(model, (lower, upper)), what(model, Box(lower[1, 2], upper[1, 2]))
        assert found.lower.shape == (2, 3, 3)
        assert found.argmin.shape == (2, 3, 3, 3)
        for a, b in zip(fields(found), fields(one), strict=True):
            assert torch.equal(a[1, 2], b)
        z = lower + 0.2 * (0.5 + 0.5 * uniform(50, 2, 3, 3, seed=7))
        value = model.posterior(z)[index]
        assert bool(((value >= found.lower) & (value <= found.upper)).all())
        assert bool((found.gap <= 0.01).all())
        assert bool(((found.argmin >= lower.unsqueeze(-2)) & (found.argmin <= upper.unsqueeze(-2))).all())
        for j in range(3):
            assert (
                float(model.posterior(found.argmax[..., j, :])[index][..., j].sub(found.attained_high[..., j]).min())
                >= 0
            )


def test_every_output_has_its_own_range_and_shared_ones_the_same():
    scales = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    family = [shaped(nu, [scale]) for nu, scale in zip(FAMILIES * 2, scales, strict=True)]
    first = [shaped(nu, [scale], dims=[0]) for nu, scale in zip(FAMILIES * 2, scales, strict=True)]
    z, box = uniform(12, 1, seed=4), (-torch.ones(3, 1).double(), uniform(3, 1, seed=6))
    y = torch.sin(3 * z + torch.arange(8))
    many = GP.create(first, 1e-3, nx=8, nu=0, noise_std=0.1).condition_on(torch.cat([z, torch.zeros(12, 7)], dim=1), y)
    wide = tuple(torch.cat([end, torch.zeros(3, 7)], dim=1) for end in box)
    for what in (ranges.mean, ranges.std):
        together = what(many, wide, cells=30)
        for j in range(8):
            one = GP.create(family[j], 1e-3, nx=1, nu=0, noise_std=0.1).condition_on(z, y[:, j : j + 1])
            torch.testing.assert_close(what(one, box, cells=30).upper[:, 0], together.upper[:, j], rtol=1e-6, atol=1e-6)
    same = GP.create(family[0], 1e-3, nx=1, nu=1, noise_std=0.1, outputs=[0]).condition_on(
        torch.cat([z, z.cos()], dim=1), y[:, :1], noise_scale=1 + z[:, 0].abs()
    )
    pair = tuple(torch.cat([end, end], dim=1) for end in box)
    found = ranges.std(same, pair)
    inside = pair[0] + (pair[1] - pair[0]) * (0.5 + 0.5 * uniform(300, 3, 2, seed=8))
    value = same.posterior(inside)[1]
    assert bool(((value >= found.lower) & (value <= found.upper)).all())
    assert float(found.gap.max()) <= 0.01


def test_a_box_without_sense_is_lost_alone():
    model = case("rbf")
    lower, upper = torch.zeros(4, 2, dtype=torch.float64), torch.full((4, 2), 0.2, dtype=torch.float64)
    lower[1, 0], upper[2, 1], lower[3, 1] = math.nan, math.inf, 0.3
    for what in (ranges.mean, ranges.std):
        found = what(model, (lower, upper))
        assert torch.equal(found.gap.isinf().flatten(), torch.tensor([False, True, True, True]))
        assert bool((found.lower[1:] == -math.inf).all() and (found.upper[1:] == math.inf).all())
        assert bool(found.attained_low[1:].isnan().all() and found.argmax[1:].isnan().all())
        assert float(found.gap[0]) <= 0.01
        alone = what(model, (lower[:1], upper[:1]))
        assert torch.equal(found.lower[:1], alone.lower) and torch.equal(found.upper[:1], alone.upper)


def test_without_data_the_ranges_are_the_prior():
    model = GP.create(kernels.rbf(1.0, 4.0), 1e-2, nx=1, nu=0, noise_std=0.1)
    box = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    assert torch.equal(ranges.mean(model, box).upper, torch.zeros(2, 1, dtype=torch.float64))
    spread = ranges.std(model, box)
    assert spread.lower.flatten().tolist() == pytest.approx([2.0, 2.0], rel=1e-14)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1.5, subgaussian=0.1, delta=0.1)).update(model)
    low, high = confidence.bounds(box[0])
    found = ranges.band(confidence, box)
    assert bool((found.lower <= low).all() and (found.upper >= high).all())
    assert float(found.upper.max()) == pytest.approx(3.0, rel=1e-6)


def test_what_has_no_ranges_is_refused_by_name():
    box = Box([0.0], [1.0])
    one = torch.zeros(1, 1, dtype=torch.float64)
    for kernel, name in (
        (kernels.linear(1.0), "LinearKernel"),
        (kernels.periodic(1.0, 1.0), "PeriodicKernel"),
        (kernels.additive(kernels.rbf(1.0), kernels.matern(0.5, 1.0)), "AdditiveKernel"),
    ):
        model = GP.create(kernel, 0.1, nx=1, nu=0, noise_std=0.1).condition_on(one + 1.0, one)
        for what in (ranges.mean, ranges.std):
            with pytest.raises(ValueError, match=name):
                what(model, box)
    seven = GP.create(kernels.rbf([1.0] * 7), 0.1, nx=7, nu=0, noise_std=0.1)
    with pytest.raises(ValueError, match="at most 6 active inputs, got 7"):
        ranges.mean(seven, Box([0.0] * 7, [1.0] * 7))
    model = case("rbf, small amplitude, far from 0")
    with pytest.raises(ValueError, match=r"ranges.mean: expected an exact GP, got LowRankGP"):
        ranges.mean(LowRankGP.create(model, 3), box)
    for bad in (
        torch.zeros(2, 1),
        [0.0, 1.0],
        (torch.zeros(2, 2), torch.zeros(2, 2)),
        (torch.zeros(2, 1), torch.zeros(3, 1)),
    ):
        with pytest.raises(ValueError, match=r"ranges.mean: expected"):
            ranges.mean(model, bad)  # type: ignore[arg-type]
    for option in ({"tol": 0.0}, {"tol": math.nan}, {"cells": 0}):
        with pytest.raises(ValueError, match=r"ranges.std: expected"):
            ranges.std(model, box, **option)
    confidence = ConfidenceSet(ConvexProgram(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(model)
    with pytest.raises(
        ValueError, match=r"ranges.band: expected a bound of the form mean ± beta·std, got convex-program"
    ):
        ranges.band(confidence, box)


# -------------------------------------------------------------------------------------------------------- band
@pytest.mark.parametrize("name", ["rbf", "matern 5/2", "matern 3/2", "matern 1/2", "rbf, lambda 1e-6, clusters"])
@pytest.mark.parametrize("norm", [1.0, 1e4])
def test_bands_contain_what_the_confidence_set_says_in_every_generation(name, norm):
    model = case(name)
    assert model.inputs is not None
    assert model.targets is not None
    root = math.sqrt(float(model.regularizer[0]))
    confidence, grown = ConfidenceSet(Mixture(rkhs_norm=norm, subgaussian=root, delta=0.1)), None
    empty = GP.create(
        model.kernels[0], model.regularizer, nx=model.nx, nu=0, noise_std=1.0, outputs=(0,), mode="theory"
    )
    for part in (slice(0, 9), slice(9, 24)):
        grown = (grown or empty).condition_on(model.inputs[part], model.targets[part])
        confidence = confidence.update(grown)
        lower, upper = boxes(model)
        found = ranges.band(confidence, (lower, upper), tol=1e-5, cells=40)
        for side, end in enumerate((found.lower, found.upper)):
            points = worst_points(lambda z, of=confidence, side=side: of.bounds(z)[side][..., 0], lower, upper)
            low, high = confidence.bounds(points)
            value = (low, high)[side].reshape(2, -1, 1)
            assert bool((value >= end).all() if side == 0 else (value <= end).all())
        assert bool((confidence.bounds(found.argmin[:, 0])[0] <= found.attained_low).all())
        assert bool((confidence.bounds(found.argmax[:, 0])[1] >= found.attained_high).all())


def test_bands_are_as_narrow_as_their_tolerance_and_cut_at_the_norm():
    model = learned(math.inf, [0.6, 0.7], 1e-4, n=40)
    lower = uniform(20, 2, seed=3)
    confidence = ConfidenceSet(Mixture(rkhs_norm=4.0, subgaussian=0.01, delta=0.1)).update(model)
    assert float(ranges.band(confidence, (lower, lower + 0.1)).gap.max()) <= 0.01
    far = ranges.band(confidence, (lower + 50, lower + 51))
    assert float(far.upper.max()) == pytest.approx(4.0, rel=1e-9)
    wide = ranges.band(ConfidenceSet(Constant(value=3.0)).update(model), (lower + 50, lower + 51))
    assert 3.0 <= float(wide.upper.max()) <= 3.03


# ------------------------------------------------------------------------------------------------------- table
@pytest.mark.parametrize("nu", FAMILIES)
def test_interpolation_errs_by_no_more_than_is_proved_and_by_a_fair_part_of_it(nu):
    model = learned(nu, [0.6, 0.9], 1e-4)
    seen = []
    for count in (4, 9):
        step = 2.0 / count
        proved = ranges.interpolation(model, [step, step])
        axis = -1 + step * torch.arange(count + 1, dtype=torch.float64)
        nodes = torch.cartesian_prod(axis, axis).reshape(count + 1, count + 1, 2)
        z = uniform(4000, 2, seed=3)
        place = ((z + 1) / step).floor().long().clamp_max(count - 1)
        t = (z + 1) / step - place
        mean, std = torch.zeros(4000, dtype=torch.float64), torch.zeros(4000, dtype=torch.float64)
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = torch.stack([t[:, i] if c else 1 - t[:, i] for i, c in enumerate(corner)]).prod(0)
            values = model.posterior(nodes[place[:, 0] + corner[0], place[:, 1] + corner[1]])
            mean, std = mean + weight * values[0][:, 0], std + weight * values[1][:, 0]
        exact = model.posterior(z)
        assert float((exact[0][:, 0] - mean).abs().max()) <= float(proved.mean)
        assert float((exact[1][:, 0] - std).max()) <= float(proved.std)
        seen.append((float((exact[0][:, 0] - mean).abs().max()) / float(proved.mean), float(proved.mean)))
    assert nu == 0.5 or seen[1][0] > 0.02
    assert seen[1][1] < seen[0][1]
    bare = GP.create(shaped(nu, [0.6, 0.9]), 1e-4, nx=2, nu=0, noise_std=0.1, outputs=[0])
    chords = _taylor.chord(nu, np.array([0.1 / 0.6, 0.1 / 0.9])).sum()
    left, seen_too = ranges.interpolation(bare, [0.1, 0.1]), ranges.interpolation(model, [0.1, 0.1])
    deviation = math.sqrt(float(kernels.stationary(model.kernels[0]).variance))
    assert left.mean.tolist() == left.std.tolist() == [0.0]  # of constants
    assert seen_too.std.tolist() == pytest.approx([deviation * chords], rel=1e-2)
    norm = math.sqrt(
        float((model.weights[:, 0] @ kernels.cross(model.kernels[0], model.inputs, model.inputs)) @ model.weights[:, 0])
    )
    assert seen_too.mean.tolist() == pytest.approx([deviation * chords * norm], rel=1e-2)
    for bad in ([0.1], [0.1, math.nan], [-0.1, 0.1]):
        with pytest.raises(ValueError, match=r"ranges.interpolation: expected"):
            ranges.interpolation(model, bad)


@pytest.mark.parametrize("nu", FAMILIES)
def test_chords_are_at_least_the_exact_distance_and_close(nu):
    for eta in (0.05, 0.5, 3.0):
        t = np.linspace(0, 1, 101)

        def kernel(a, eta=eta):
            return Profile(nu, 0).value(np.square(a * eta))

        square = (
            1 + (1 - t) ** 2 + t**2 + 2 * t * (1 - t) * kernel(1.0) - 2 * (1 - t) * kernel(t) - 2 * t * kernel(1 - t)
        )
        bound = float(_taylor.chord(nu, np.array([eta]))[0])
        exact = math.sqrt(max(square.max(), 0.0))
        assert exact <= bound + 1e-7
        assert eta > 0.1 or exact >= 0.55 * bound


# --------------------------------------------------------------------------------------------------- its parts
def exact_remainders(nu: float, order: int, r: float, angle: float) -> tuple[float, float]:
    """‖e‖ and ‖∂_ie‖/(1/ℓ_i) for unit length-scales, z − c of length r at `angle` to axis i, in 40 digits.

    Of Taylor's formula along the segment: with K(t) the kernel of t ↦ φ(t), ⟨φ^(j)(0), φ^(k)(0)⟩ = (−1)^k K^(j+k)(0) and
    ⟨φ(1), φ^(k)(0)⟩ = (−1)^k K^(k)(1); the same with the kernel −∂_i²κ of ∂_iφ, one order less.
    """

    def along(t):
        return reference.profile(nu, (t * r) ** 2)

    def across(t):
        x, y = t * r * mpmath.cos(angle), t * r * mpmath.sin(angle)
        return -mpmath.diff(lambda a: reference.profile(nu, (x + a) ** 2 + y**2), 0, 2)

    def at_zero(kernel, k):
        # Matérn kernels have a kink of higher order at 0: extend them evenly by what they are on one side
        if k % 2:
            return mpmath.mpf(0)
        side = mpmath.taylor(kernel, mpmath.mpf("1e-12"), k) if not math.isinf(nu) else mpmath.taylor(kernel, 0, k)
        return side[k] * mpmath.factorial(k)

    def norm(kernel, p):
        total = kernel(mpmath.mpf("1e-25")) + kernel(mpmath.mpf("1e-25"))
        total = 2 * at_zero(kernel, 0)
        ends = mpmath.taylor(kernel, 1, p)
        for j in range(p + 1):
            total -= 2 * (-1) ** j * ends[j]
            for k in range(p + 1):
                total += (-1) ** k * at_zero(kernel, j + k) / (mpmath.factorial(j) * mpmath.factorial(k))
        return total - at_zero(kernel, 0)

    with mpmath.workdps(60):
        value = norm(along, order)
        slope = norm(across, order - 1) if order else mpmath.mpf(0)
        return float(mpmath.sqrt(abs(value))), float(mpmath.sqrt(abs(slope)))


@pytest.mark.parametrize("nu", FAMILIES)
def test_remainders_are_at_least_the_exact_norms_and_close_for_small_cells(nu):
    profile = Profile(nu, {math.inf: 4, 2.5: 2, 1.5: 1, 0.5: 0}[nu])
    for r in (0.02, 0.3, 1.0, 4.0):
        bounds = [float(v(np.array([r]))[0]) for v in (profile.remainder, profile.slope)]
        for angle in (0.0, 0.7, math.pi / 2):
            value, slope = exact_remainders(nu, profile.order, r, angle)
            assert value <= bounds[0] * (1 + 1e-6)
            assert slope <= bounds[1] * (1 + 1e-6)
            if r == 0.02:
                assert value >= 0.9 * bounds[0]
                assert nu == 0.5 or angle > 0 or slope >= 0.9 * bounds[1]


@pytest.mark.parametrize("nu", FAMILIES)
def test_features_are_derivatives_and_priors_their_inner_products(nu):
    for d in (1, 3):
        form = kernels.stationary(shaped(nu, [1.0] * d))
        assert form is not None
        profile = Profile.of(form, d)
        indices = multi_indices(d, profile.order)
        t = uniform(2, d, 5, seed=d).numpy()
        rows = np.empty((2, len(indices), 5))
        profile.features(t, indices, rows)
        weights = uniform(5, seed=3).numpy()
        np.testing.assert_allclose(profile.sums(t, weights), rows @ weights, rtol=1e-12, atol=1e-14)
        with mpmath.workdps(40):
            for k in (0, len(indices) // 2, len(indices) - 1):
                point = [mpmath.mpf(v) for v in t[1, :, 2]]
                value = mpmath.diff(lambda *z: reference.profile(nu, sum(v * v for v in z)), point, indices[k])
                assert float(value) == pytest.approx(rows[1, k, 2], rel=1e-9, abs=1e-12)
        table = profile.priors(d)
        assert np.linalg.eigvalsh(table).min() > -1e-9
        origin = np.empty((1, len(indices), 1))
        profile.features(np.zeros((1, d, 1)), indices, origin)
        np.testing.assert_allclose(table[:, 0], origin[0, :, 0], atol=1e-13)  # ⟨∂^aφ, φ⟩ = ∂^aκ(0)


@pytest.mark.parametrize(("nu", "d"), [(math.inf, 1), (math.inf, 3), (2.5, 2), (1.5, 1)])
def test_features_err_by_less_than_their_stated_rounding(nu, d):
    """Relative to their prior norm, with room for another factor of two, near and far, anywhere in space."""
    scales = [0.3, 0.7, 1.9][:d]
    for offset in (0.0, 1000.0):
        x = 3 * torch.tensor(scales, dtype=torch.float64) * uniform(30, d, seed=d) + offset
        model = GP.create(shaped(nu, scales), 1e-2, nx=d, nu=0, noise_std=1.0, outputs=(0,))
        output = Output.of(model.condition_on(x, x[:, :1]), 0)
        center = (offset + 0.1 * uniform(1, d, seed=4)).numpy()
        rows = Local.of(output, center, center).features(output)[0]
        priors = np.sqrt(np.diagonal(output.profile.priors(d)))
        indices, worst = multi_indices(d, output.profile.order), 0.0
        with mpmath.workdps(40):
            for i in range(30):
                t = [(mpmath.mpf(center[0, k]) - mpmath.mpf(float(x[i, k]))) / mpmath.mpf(scales[k]) for k in range(d)]
                square = sum(v * v for v in t)
                for m, index in enumerate(indices):
                    worst = max(worst, abs(rows[m, i] - exact_feature(nu, t, square, index)) / priors[m])
        assert worst <= 0.5 * ENTRY * (d + 4)


def exact_feature(nu: float, t, square, index: tuple[int, ...]):
    """∂^aκ(t) of the RBF (Hermite) or a Matérn kernel (κ′/r, (κ′/r)′/r), in mpmath's precision."""
    if math.isinf(nu):
        he = [
            (-1) ** k * mpmath.hermite(k, v / mpmath.sqrt(2)) / mpmath.sqrt(2) ** k
            for v, k in zip(t, index, strict=True)
        ]
        return mpmath.fprod(he) * mpmath.exp(-square / 2)
    a = mpmath.sqrt(2 * nu * square)
    axes = [i for i, e in enumerate(index) for _ in range(e)]
    if not axes:
        return reference.profile(nu, square)
    first = (-3 if nu == 1.5 else -mpmath.mpf(5) / 3 * (1 + a)) * mpmath.exp(-a)
    if len(axes) == 1:
        return first * t[axes[0]]
    return mpmath.mpf(25) / 3 * mpmath.exp(-a) * t[axes[0]] * t[axes[1]] + (first if axes[0] == axes[1] else 0)


def test_bernstein_coefficients_enclose_polynomials_and_products_collect_them():
    for d, degree in ((1, 6), (2, 4), (3, 3)):
        basis, products = Bernstein.of(d, degree), Products.of(d, 2, degree)
        monomials = uniform(4, len(basis.indices), seed=d).numpy()
        s = uniform(200, d, seed=5).numpy()
        powers = np.stack([np.prod(s ** np.array(a), axis=-1) for a in basis.indices])
        coefficients = basis.coefficients(monomials)
        value = monomials @ powers
        assert (value.max(-1) <= coefficients.max(-1) + 1e-13).all()
        assert (value.min(-1) >= coefficients.min(-1) - 1e-13).all()
        corner = monomials @ np.array([(-1.0) ** a[0] for a in basis.indices])
        np.testing.assert_allclose(
            coefficients.reshape(4, *(degree + 1,) * d)[(slice(None), 0, *(-1,) * (d - 1))], corner
        )
        low, high = basis.slopes(coefficients)
        step = 1e-6
        for i in range(d):
            ahead = s.copy()
            ahead[:, i] += step
            moved = np.stack([np.prod(ahead ** np.array(a), axis=-1) for a in basis.indices])
            slope = (monomials @ moved - value) / step
            assert (slope.max(-1) <= high[:, i] + 1e-4).all()
            assert (slope.min(-1) >= low[:, i] - 1e-4).all()
        features = multi_indices(d, 2)
        gram = uniform(4, len(features), len(features), seed=9).numpy()
        kept, rest, _ = products(gram)
        row = np.stack([np.prod(s ** np.array(a), axis=-1) for a in features])
        full = np.einsum("cab,as,bs->cs", gram, row, row)
        own = np.stack([np.prod(s ** np.array(a), axis=-1) for a in products.basis.indices])
        assert (np.abs(full - kept @ own) <= rest[:, None] + 1e-12).all()
        assert (rest > 0).all() == (degree < 4)


def test_orders_and_degrees_cover_every_dimension():
    assert set(_taylor.ORDERS) == set(_taylor.DEGREES) == set(range(1, _taylor.MAX_DIM + 1))
    assert all(_taylor.DEGREES[d] >= _taylor.ORDERS[d] for d in _taylor.ORDERS)
