"""Confidence sets: nested, order-free, faithful to the generations, and honest when empty."""

import html
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.confidence import AbbasiYadkori, ConfidenceSet, Constant, ConvexProgram, Mixture
from gpsafe.confidence.history import posterior_history
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels, random_function
from gpsafe.verdict import Outcome
from tests.strategies import dear, seeds

EXACT, SOLVE = 1e-12, 1e-8
GRID = torch.linspace(0, 1, 41, dtype=torch.float64).unsqueeze(-1)
ASSUMED = {"rkhs_norm": 1.0, "subgaussian": 0.1, "delta": 0.1}
bounds = st.sampled_from([Mixture(**ASSUMED), AbbasiYadkori(**ASSUMED), ConvexProgram(**ASSUMED)])


KERNEL = kernels.matern(2.5, 0.3)
PRIOR = GP.create(KERNEL, 0.01, nx=1, nu=0, noise_std=0.1)


def episodes(seed: int, count: int = 3, size: int = 5, *, norm: float = 1.0):
    """f of exactly known norm, and the posteriors after each of `count` episodes of `size` observations."""
    generator = torch.Generator().manual_seed(seed)
    f = random_function(KERNEL, torch.zeros(1), torch.ones(1), norm=norm, generator=generator)
    model, models = PRIOR, []
    for _ in range(count):
        z = torch.rand(size, 1, dtype=torch.float64, generator=generator)
        noise = 0.1 * torch.randn(size, 1, dtype=torch.float64, generator=generator)
        model = model.condition_on(z, f(z).unsqueeze(-1) + noise)
        models.append(model)
    return f, models


def build(bound, models):
    result = ConfidenceSet(bound)
    for model in models:
        result = result.update(model)
    return result


@dear()
@given(seed=seeds(), bound=bounds)
def test_sets_are_nested(seed, bound):
    _, models = episodes(seed)
    low, high = ConfidenceSet(bound).update(models[0]).bounds(GRID)
    for count in range(2, len(models) + 1):
        new_low, new_high = build(bound, models[:count]).bounds(GRID)
        assert bool((new_low >= low - EXACT).all())
        assert bool((new_high <= high + EXACT).all())
        low, high = new_low, new_high


@given(seed=seeds())
def test_order_of_updates_does_not_matter_where_nothing_is_claimed(seed):
    """A set that is sound takes generations in their order only (`tests/confidence/test_lineage.py`)."""
    _, models = episodes(seed)
    free = Mixture(**ASSUMED, unchecked=True)
    reference = build(free, models).bounds(GRID)
    for order in itertools.permutations(models):
        for one, other in zip(build(free, order).bounds(GRID), reference, strict=True):
            assert float((one - other).abs().max()) <= 1e-10


@dear()
@given(seed=seeds(), bound=bounds)
def test_bounds_are_the_intersection_of_all_intervals_and_the_clip(seed, bound):
    _, models = episodes(seed)
    low, high = build(bound, models).bounds(GRID)
    width = models[0].prior_variance(GRID).sqrt()
    expected_low, expected_high = -width, width
    for model in models:
        lower, upper = bound.interval(model, GRID)
        expected_low, expected_high = torch.maximum(expected_low, lower), torch.minimum(expected_high, upper)
    assert float((low - expected_low).abs().max()) <= 1e-10
    assert float((high - expected_high).abs().max()) <= 1e-10


@given(seed=seeds(), since=st.integers(1, 3))
def test_bounds_since_a_generation_intersect_with_the_earlier_ones(seed, since):
    _, models = episodes(seed)
    whole = build(Mixture(**ASSUMED), models)
    early_low, early_high = build(Mixture(**ASSUMED), models[:since]).bounds(GRID)
    late_low, late_high = whole.bounds(GRID, since=since)
    low, high = whole.bounds(GRID)
    assert float((torch.maximum(early_low, late_low) - low).abs().max()) <= EXACT
    assert float((torch.minimum(early_high, late_high) - high).abs().max()) <= EXACT


@given(seed=seeds(), counts=st.lists(st.integers(0, 15), min_size=1, max_size=4, unique=True))
def test_one_pass_history_equals_every_posterior(seed, counts):
    _, models = episodes(seed)
    newest = models[-1]
    assert newest.inputs is not None and newest.targets is not None
    ordered = sorted(counts)
    means, stds = posterior_history(newest, ordered, GRID)
    for i, count in enumerate(ordered):
        model = PRIOR
        if count:
            model = model.condition_on(newest.inputs[:count], newest.targets[:count])
        mean, std = model.posterior(GRID)
        assert float((means[i] - mean).abs().max()) <= 1e-10
        assert float((stds[i] - std).abs().max()) <= 1e-8


@given(seed=seeds())
def test_a_set_of_unrelated_models_is_intersected_too_but_claims_nothing(seed):
    _, models = episodes(seed, count=2)
    other = episodes(seed + 1, count=1)[1][0]
    mixed = build(Mixture(**ASSUMED, unchecked=True), [models[0], other, models[1]])
    low, high = mixed.bounds(GRID)
    assert not mixed.sound
    for model in (models[0], other, models[1]):
        lower, upper = Mixture(**ASSUMED).interval(model, GRID)
        assert bool((low >= lower - 1e-10).all())
        assert bool((high <= upper + 1e-10).all())


def test_the_true_function_is_contained_at_least_as_often_as_claimed():
    """50 runs at δ = 0.1: more than 15 failures would have probability < 1e-4 if the bound failed with
    0.1.
    """
    failures = 0
    for seed in range(50):
        f, models = episodes(seed)
        verdict = build(Mixture(**ASSUMED), models).contains(lambda z, f=f: f(z).unsqueeze(-1), GRID)
        failures += verdict.outcome is not Outcome.HOLDS
    assert failures <= 15


@given(seed=seeds())
def test_contains_refutes_a_function_outside_and_names_the_point(seed):
    f, models = episodes(seed)
    confidence = build(Mixture(**ASSUMED), models)
    verdict = confidence.contains(lambda z: f(z).unsqueeze(-1) + 3.0 * (z == GRID[7]), GRID)
    assert verdict.outcome is Outcome.VIOLATED
    assert verdict.witness == f"z = {GRID[7].tolist()}"


@given(seed=seeds())
def test_a_norm_far_too_small_is_falsified_with_the_point(seed):
    _, models = episodes(seed, norm=30.0)
    confidence = build(Mixture(**{**ASSUMED, "rkhs_norm": 0.01}), models)
    found = confidence.falsified(GRID)
    assert found is not None
    low, high = confidence.bounds(torch.tensor([found.point], dtype=torch.float64))
    assert abs(float(low[0, found.output]) - found.lower) <= 1e-10
    assert found.lower > found.upper
    assert float((low - high).max()) > 0


def test_true_assumptions_are_not_falsified():
    alarms = sum(build(Mixture(**ASSUMED), episodes(seed)[1]).falsified(GRID) is not None for seed in range(30))
    assert alarms == 0


@given(seed=seeds())
def test_a_bound_without_a_norm_is_not_clipped(seed):
    _, models = episodes(seed)
    low, high = ConfidenceSet(Constant(value=4.0)).update(models[0]).bounds(GRID)
    mean, std = models[0].posterior(GRID)
    assert float((high - (mean + 4.0 * std)).abs().max()) <= 1e-4
    assert bool(torch.isfinite(low).all())
    assert not ConfidenceSet(Constant(value=4.0)).update(models[0]).sound


def test_notebooks_say_whether_a_set_is_sound():
    for bound, word in ((Mixture(**ASSUMED), "sound"), (Constant(value=4.0), "heuristic")):
        assert f"<td>{word}</td><td>{bound.name}</td>" in ConfidenceSet(bound)._repr_html_()
        one = ConfidenceSet(bound).update(PRIOR)
        assert all(f"<td>assumes</td><td>{html.escape(entry)}" in one._repr_html_() for entry in one.assumptions)


def test_an_empty_set_has_no_model():
    with pytest.raises(ValueError, match="at least one model"):
        ConfidenceSet(Mixture(**ASSUMED)).bounds(GRID)


@pytest.mark.parametrize("form", ["float32", "numpy", "list"])
def test_bounds_are_float64_whatever_the_points_come_in(form):
    """Rounding is accounted for in float64 only: whatever the points come in, the numbers are those of the same points."""
    exact = GRID.float().double()
    given = {"float32": exact.float(), "numpy": exact.numpy(), "list": exact.tolist()}[form]
    _, models = episodes(0)
    for confidence in (build(Mixture(**ASSUMED), models[:1]), build(Mixture(**ASSUMED), models)):
        for found, same in zip(confidence.bounds(given), confidence.bounds(exact), strict=True):
            assert found.dtype == torch.float64 and torch.equal(found, same)
        for found, same in zip(
            confidence.bound.interval(models[-1], given), confidence.bound.interval(models[-1], exact), strict=True
        ):
            assert torch.equal(found, same)
        assert confidence.falsified(given) is None


def test_membership_of_one_output_takes_a_flat_value_and_refuses_what_would_broadcast():
    f, models = episodes(0)
    confidence = build(Mixture(**ASSUMED), models)
    column = confidence.contains(lambda z: f(z).unsqueeze(-1), GRID)
    assert confidence.contains(f, GRID) == column and confidence.contains(f, GRID.numpy()) == column
    for wrong in (
        lambda z: f(z)[:1],
        lambda z: f(z).unsqueeze(0),
        lambda z: f(z)[0],
        lambda z: f(z).unsqueeze(-1).expand(-1, 2),
    ):
        with pytest.raises(ValueError, match=r"ConfidenceSet.contains: expected f\(z\) of shape"):
            confidence.contains(wrong, GRID)


def test_one_model_in_place_of_a_sequence_is_refused_by_name():
    _, models = episodes(0)
    with pytest.raises(
        ValueError, match=r"ConfidenceSet: expected a sequence of models \(or update with one\), got GP"
    ):
        ConfidenceSet(Mixture(**ASSUMED), models[-1])
