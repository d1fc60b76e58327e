"""The low-rank posterior contains the exact one, rounding included; dropping any part of the error term is
caught.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import CLOSED_KERNELS, kernel_names, make_kernel, seeds

from gpsafe.confidence import AbbasiYadkori, ConfidenceSet, Mixture
from gpsafe.data import Transitions
from gpsafe.models import GP, LowRankGP
from gpsafe.rkhs import kernels


def draw(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def make(seed: int, names: tuple[str, ...] = ("rbf",), *, n: int = 60, dim: int = 2, regularizer: float = 1e-3) -> GP:
    chosen = [make_kernel(name, dim) for name in names]
    model = GP.create(chosen, regularizer, nx=dim, nu=0, noise_std=0.1, outputs=range(len(names)))
    return model.condition_on(2 * draw(seed, n, dim), draw(seed + 1, n, len(names)))


def queries(model: GP, seed: int, count: int = 200) -> torch.Tensor:
    """In the region of the data, far outside, and at the data themselves."""
    dim = model.nx
    return torch.cat([2 * draw(seed, count, dim), 9 * draw(seed + 1, count // 4, dim), model.inputs])


# --------------------------------------------------------------------------------------- containment
@given(
    seeds(),
    kernel_names(CLOSED_KERNELS),
    st.integers(1, 60),
    st.sampled_from([1e-8, 1e-6, 1e-3, 0.1]),
    st.sampled_from([1e-1, 1e-4, 1e-7]),
    st.floats(0, 30),
)
def test_interval_contains_the_exact_interval(seed, name, rank, regularizer, tolerance, beta):
    exact = make(seed, (name,), regularizer=regularizer)
    low = LowRankGP.create(exact, rank, tolerance=tolerance)
    z = queries(exact, seed + 2)
    mean, std = exact.posterior(z)
    approximate, wide, error = low.evaluate(z)
    assert bool((wide >= std).all())
    assert bool(((approximate - mean).abs() <= error).all())
    assert bool((approximate - beta * wide - error <= mean - beta * std).all())
    assert bool((approximate + beta * wide + error >= mean + beta * std).all())


@pytest.mark.parametrize("bound", [Mixture, AbbasiYadkori])
@pytest.mark.parametrize("mean", ["projected", "exact"])
def test_confidence_interval_contains_that_of_the_exact_model(bound, mean):
    exact = make(0, ("rbf", "matern-5/2"))
    low, z = LowRankGP.create(exact, 25, mean=mean), queries(exact, 2)
    theorem = bound(rkhs_norm=2.0, subgaussian=0.1, delta=0.1)
    inner, outer = theorem.interval(exact, z), theorem.interval(low, z)
    assert bool((outer[0] <= inner[0]).all())
    assert bool((outer[1] >= inner[1]).all())
    assert torch.equal(theorem.beta(exact), theorem.beta(low))


def test_a_confidence_set_may_mix_exact_and_low_rank_generations():
    first = make(0)
    second = first.condition_on(draw(5, 5, 2), draw(6, 5, 1))
    theorem, z = Mixture(rkhs_norm=50.0, subgaussian=0.3, delta=0.1), queries(first, 2)
    exact = ConfidenceSet(theorem).update(first).update(second).bounds(z)
    for order in ((LowRankGP.create(first, 30), second), (first, LowRankGP.create(second, 30))):
        mixed = ConfidenceSet(theorem).update(order[0]).update(order[1]).bounds(z)
        assert bool((mixed[0] <= exact[0] + 1e-9).all())
        assert bool((mixed[1] >= exact[1] - 1e-9).all())


def test_full_rank_is_nearly_exact():
    exact = make(0, n=30, regularizer=1e-2)
    low, z = LowRankGP.create(exact, 30, tolerance=1e-9), exact.inputs
    assert float((low.posterior(z)[1] / exact.posterior(z)[1]).max()) < 1.02
    assert float(low.mean_error(z).max()) < 1e-3


@given(seeds(), st.sampled_from(["rbf", "matern-3/2"]))
def test_more_centres_make_it_tighter(seed, name):
    exact = make(seed, (name,))
    z = 2 * draw(seed + 2, 100, 2)
    widths = [float(LowRankGP.create(exact, rank).posterior(z)[1].mean()) for rank in (5, 20, 60)]
    assert widths[0] >= widths[1] >= widths[2] * (1 - 1e-6)


def test_other_centres_than_the_data_are_as_valid():
    exact = make(0)
    low, z = LowRankGP.create(exact, 20, candidates=3 * draw(9, 100, 2)), queries(exact, 2)
    mean, std = exact.posterior(z)
    approximate, wide, error = low.evaluate(z)
    assert bool((wide >= std).all())
    assert bool(((approximate - mean).abs() <= error).all())


def test_the_exact_mean_leaves_rounding_only():
    exact = make(0)
    low, z = LowRankGP.create(exact, 10, mean="exact"), queries(exact, 2)
    mean, _ = exact.posterior(z)
    error = (low.posterior(z)[0] - mean).abs()
    assert bool((error <= low.mean_error(z)).all())
    assert float(low.mean_error(z).max()) < 1e-8


# ------------------------------------------------------------------------------------------ controls
def covered(low: LowRankGP, **changes) -> tuple[bool, bool]:
    """Whether std and mean are still covered if parts of the projection are replaced."""
    broken = replace(low, _projections=tuple(replace(p, **changes) for p in low._projections))
    z = queries(low.exact, 2)
    mean, std = low.exact.posterior(z)
    approximate, wide, error = broken.evaluate(z)
    return bool((wide >= std).all()), bool(((approximate - mean).abs() <= error).all())


def test_control_without_the_residual_the_std_is_too_small():
    exact = make(0)
    low, z = LowRankGP.create(exact, 15), queries(exact, 2)
    projection = low._projections[0]
    inner = projection._features(z)[1]
    assert not bool((inner.sqrt() >= exact.posterior(z)[1][:, 0]).all())
    assert covered(low) == (True, True)


def test_control_without_the_lost_norm_the_mean_error_is_too_small():
    low = LowRankGP.create(make(0), 15)
    assert covered(low, norms=torch.zeros(1, dtype=torch.float64))[1] is False


def test_control_a_shrunk_quadratic_form_is_caught():
    low = LowRankGP.create(make(0, n=30, regularizer=1e-2), 30, tolerance=1e-9)
    assert covered(low)[0]
    assert not covered(low, quadratic=0.9 * low._projections[0].quadratic)[0]


# ------------------------------------------------------------------------------------ its interfaces
@pytest.mark.parametrize("name", ["rbf", "matern-1/2", "additive", "rbf-restricted"])
def test_the_two_ways_of_evaluation_agree(name):
    low = LowRankGP.create(make(0, (name, "rbf")), 20)
    z = draw(3, 2, 9, 2)
    graph = low.evaluate(z.clone().requires_grad_(True))
    for a, b, c in zip(low.evaluate(z), graph, low.evaluate(z, chunk=4), strict=True):
        assert a.shape == (2, 9, 2)
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-7)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-7)


def test_the_std_is_differentiable():
    low = LowRankGP.create(make(0), 20)
    z, h = draw(3, 5, 2), 1e-6
    leaf = z.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(low.posterior(leaf)[1].sum(), leaf)
    step = torch.tensor([h, 0.0], dtype=torch.float64)
    difference = (low.posterior(z + step)[1] - low.posterior(z - step)[1])[:, 0] / (2 * h)
    torch.testing.assert_close(slope[:, 0], difference, rtol=1e-4, atol=1e-5)


def test_conditioning_projects_the_new_posterior():
    exact = GP.create(kernels.rbf(1.0), 0.01, nx=2, nu=1, noise_std=0.1)
    data = Transitions(draw(0, 20, 2), draw(1, 20, 1), draw(2, 20, 2))
    more = Transitions(draw(3, 5, 2), draw(4, 5, 1), draw(5, 5, 2))
    low = LowRankGP.create(exact.condition(data), 12)
    later = low.condition(more)
    assert (low.num_data, later.num_data) == (20, 25)
    assert torch.equal(later.info_gain(), exact.condition(data).condition(more).info_gain())
    prediction = later.predict(more.x, more.u)
    truth = exact.condition(data).condition(more).predict(more.x, more.u)
    assert bool((prediction.std >= truth.std).all())
    assert later.ranks == (12, 12)


def test_outputs_that_share_a_kernel_share_one_projection():
    exact = GP.create(kernels.rbf(1.0), 0.01, nx=2, nu=0, noise_std=0.1).condition_on(draw(0, 20, 2), draw(1, 20, 2))
    low = LowRankGP.create(exact, 8)
    assert len(low._projections) == 1
    mean, std = exact.posterior(draw(2, 30, 2))
    approximate, wide, error = low.evaluate(draw(2, 30, 2))
    assert bool((wide >= std).all())
    assert bool(((approximate - mean).abs() <= error).all())


def test_nan_queries_never_come_back_as_certain():
    low = LowRankGP.create(make(0), 10)
    z = torch.full((2, 2), float("nan"), dtype=torch.float64)
    assert not bool((low.posterior(z)[1] < 1.0).any())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LowRankGP.create(GP.create(kernels.rbf(1.0), 0.1, nx=1, nu=0, noise_std=0.1)), "a model with data"),
        (lambda: LowRankGP.create(make(0), 0), "rank >= 1"),
        (lambda: LowRankGP.create(make(0), tolerance=0.0), "tolerance in"),
        (lambda: LowRankGP.create(make(0), mean="best"), "mean in"),
        (lambda: LowRankGP.create(make(0), candidates=torch.zeros(3, 5)), "candidates of shape"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
