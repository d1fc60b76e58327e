"""Observations whose noise is known to be w times as large: the posterior, what may use it, and what refuses it."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ALL_KERNELS, CLOSED_KERNELS, dear, kernel_names, make_kernel, seeds

from gpsafe.assumptions import Assumption
from gpsafe.confidence import BOUNDS, ConfidenceSet, Mixture
from gpsafe.confidence.functionals import functional_beta, jet
from gpsafe.confidence.history import is_prefix, posterior_history
from gpsafe.confidence.members import extremal_member
from gpsafe.cost._lineage import continues
from gpsafe.data import Transitions
from gpsafe.models import GP, LowRankGP, identity_prior, sample_functions
from gpsafe.models.views import as_botorch, as_gpytorch, fit_hyperparameters
from gpsafe.rkhs import kernels, random_function

SOLVE = 1e-8
ASSUMED = {"rkhs_norm": 2.0, "subgaussian": 0.1, "delta": 0.1}
OPTIONS = {
    "chowdhury-gopalan": {"max_data": 50},
    "actsafe": {"max_data": 50},
    "lederer": {"lower": (-9.0, -9.0), "upper": (9.0, 9.0)},
}
COVERED = {"mixture", "abbasi-yadkori", "fiedler", "chowdhury-gopalan", "actsafe", "constant"}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scales(seed: int, n: int, largest: float = 6.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return 1 + (largest - 1) * torch.rand(n, dtype=torch.float64, generator=g)


def empty(*names: str, regularizer=0.05) -> GP:
    chosen = [make_kernel(name, 2) for name in names]
    return GP.create(
        chosen, regularizer, nx=2, nu=0, noise_std=0.1, outputs=range(len(names)), mode="theory", prior=identity_prior
    )


def make(seed: int, names=("rbf",), n: int = 20, **options) -> GP:
    z, y = 2 * normal(seed, n, 2), normal(seed + 1, n, len(names))
    return empty(*names, **options).condition_on(z, y, noise_scale=scales(seed + 2, n))


@given(seeds(), kernel_names(ALL_KERNELS))
def test_posterior_is_the_one_with_lambda_times_squared_scales(seed, name):
    model, z = make(seed, (name, "rbf")), 2 * normal(seed + 5, 7, 2)
    for j, kernel in enumerate(model.kernels):
        noise = torch.diag(0.05 * model.noise_scale.square())
        gram, cross = kernels.cross(kernel, model.inputs, model.inputs) + noise, kernels.cross(kernel, model.inputs, z)
        y = model.targets[:, j]
        mean, std = (part[:, j] for part in model.posterior(z))
        torch.testing.assert_close(mean, cross.mT @ torch.linalg.solve(gram, y), rtol=SOLVE, atol=SOLVE)
        variance = kernels.diagonal(kernel, z) - (cross * torch.linalg.solve(gram, cross)).sum(0)
        torch.testing.assert_close(std.square(), variance, rtol=1e-6, atol=SOLVE)
        gain = 0.5 * (torch.logdet(gram) - noise.diagonal().log().sum())
        torch.testing.assert_close(model.info_gain()[j], gain, rtol=SOLVE, atol=SOLVE)
        density = torch.distributions.MultivariateNormal(torch.zeros_like(y), gram).log_prob(y)
        torch.testing.assert_close(model.log_marginal_likelihood()[j], density, rtol=SOLVE, atol=SOLVE)
        alpha = torch.linalg.solve(gram, y)
        norm = float((alpha @ (gram - noise) @ alpha).sqrt())
        assert norm * (1 - 1e-9) <= float(model.posterior_norm()[j]) <= norm * (1 + 1e-6) + 1e-6


@given(seeds())
def test_linear_kernels_see_scaled_rows(seed):
    """k(x, x′)/(w w′) = k(x/w, x′/w′) for a linear kernel: the theorem's reduction to equal noise, with the code's own GP."""
    model = make(seed, ("linear",))
    w = model.noise_scale.unsqueeze(-1)
    plain = empty("linear").condition_on(model.inputs / w, model.targets / w)
    z = normal(seed + 7, 6, 2)
    for one, other in zip(model.posterior(z), plain.posterior(z), strict=True):
        torch.testing.assert_close(one, other, rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(model.info_gain(), plain.info_gain(), rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(Mixture(**ASSUMED).beta(model), Mixture(**ASSUMED).beta(plain), rtol=SOLVE, atol=SOLVE)


@dear()
@given(seeds(), kernel_names(CLOSED_KERNELS))
def test_scales_of_one_are_equal_noise(seed, name):
    z, y, q = 2 * normal(seed, 12, 2), normal(seed + 1, 12, 1), normal(seed + 2, 5, 2)
    plain = empty(name).condition_on(z, y)
    scaled = empty(name).condition_on(z, y, noise_scale=torch.ones(12))
    mixed = empty(name).condition_on(z[:5], y[:5]).condition_on(z[5:], y[5:], noise_scale=torch.ones(7))
    assert plain.noise_scale is None
    for model in (scaled, mixed):
        for one, other in zip(model.posterior(q), plain.posterior(q), strict=True):
            torch.testing.assert_close(one, other, rtol=SOLVE, atol=SOLVE)
        torch.testing.assert_close(model.info_gain(), plain.info_gain(), rtol=SOLVE, atol=SOLVE)


@given(seeds())
def test_a_repeated_observation_is_one_with_less_noise(seed):
    """m observations with scale √m at one point, all the same, are one observation with scale 1."""
    z, y, q = normal(seed, 1, 2), normal(seed + 1, 1, 1), normal(seed + 2, 4, 2)
    once = empty("rbf").condition_on(z, y)
    often = empty("rbf").condition_on(z.repeat(4, 1), y.repeat(4, 1), noise_scale=torch.full((4,), 2.0).double())
    for one, other in zip(once.posterior(q), often.posterior(q), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@dear()
@given(seeds(), st.integers(1, 19))
def test_appending_pickling_and_history_keep_the_scales(seed, split):
    model, z = make(seed, ("rbf", "matern-3/2")), normal(seed + 9, 6, 2)
    w = model.noise_scale
    first = empty("rbf", "matern-3/2").condition_on(model.inputs[:split], model.targets[:split], noise_scale=w[:split])
    second = first.condition_on(model.inputs[split:], model.targets[split:], noise_scale=w[split:])
    for other in (second, pickle.loads(pickle.dumps(model)), model.to("cpu")):
        assert torch.equal(other.noise_scale, w)
        for one, expected in zip(other.posterior(z), model.posterior(z), strict=True):
            torch.testing.assert_close(one, expected, rtol=SOLVE, atol=SOLVE)
    mean, std = posterior_history(second, [split, 20], z)
    torch.testing.assert_close(mean[0], first.posterior(z)[0], rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(std[1], second.posterior(z)[1], rtol=1e-6, atol=SOLVE)
    assert is_prefix(first, second)
    louder = empty("rbf", "matern-3/2").condition_on(first.inputs, first.targets, noise_scale=w[:split] + 1)
    assert not is_prefix(louder, second)
    ConfidenceSet(Mixture(**ASSUMED)).update(first).update(second)


def test_gradients_and_joint_covariances_are_those_of_the_posterior():
    model, z = make(0, ("rbf", "matern-5/2")), normal(3, 5, 2)
    leaf = z.clone().requires_grad_(True)
    mean, std = model.posterior(leaf)
    (slope,) = torch.autograd.grad(mean[:, 1].sum() + std[:, 1].sum(), leaf)
    torch.testing.assert_close(sum(part[:, 1] for part in model.gradient(z)), slope, rtol=1e-7, atol=1e-9)
    diagonal = model.covariance(z).diagonal(dim1=-2, dim2=-1).mT
    torch.testing.assert_close(diagonal, std.detach().square(), rtol=1e-7, atol=1e-9)
    joint = jet(model, z)
    torch.testing.assert_close(joint.mean[..., 0], mean.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(joint.cov[..., 0, 0], std.detach().square(), rtol=1e-6, atol=1e-8)
    assert torch.equal(functional_beta(Mixture(**ASSUMED), model), Mixture(**ASSUMED).beta(model))


@given(seeds(), st.sampled_from(["rbf", "matern-5/2", "linear"]))
def test_low_rank_views_contain_the_exact_posterior(seed, name):
    exact, z = make(seed, (name,), n=40), 2 * normal(seed + 4, 30, 2)
    low = LowRankGP.create(exact, 12)
    mean, std = exact.posterior(z)
    approximate, wide, error = low.evaluate(z)
    assert bool((wide >= std).all())
    assert bool(((approximate - mean).abs() <= error).all())
    grown = low.condition_on(z[:2], mean[:2], noise_scale=torch.tensor([2.0, 3.0]).double())
    assert float(grown.noise_scale[-1]) == 3.0


def test_samples_have_the_covariance_of_the_posterior():
    model = make(0, ("rbf",), n=4)
    z = torch.cat([model.inputs, normal(1, 2, 2)])
    draws = sample_functions(model, 4000, generator=torch.Generator().manual_seed(0), method="centers", centers=z)(z)
    covariance = torch.cov(draws[..., 0].mT)
    expected = model.covariance(z)[0]
    assert float((covariance - expected).abs().max()) < 0.12 * float(expected.max())


def test_members_of_the_ellipsoid_touch_the_interval():
    model, bound = make(0, ("rbf",)), Mixture(rkhs_norm=1e3, subgaussian=0.1, delta=0.1)
    z = normal(8, 2)
    f = extremal_member(bound, model, z, 1.0)
    mean, std = model.posterior(z.unsqueeze(0))
    assert float(f(z.unsqueeze(0))) == pytest.approx(float(mean + bound.beta(model) * std), rel=1e-6)


# ------------------------------------------------------------------------------------------- theorems
@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_bounds_that_do_not_cover_it_refuse_it_by_name(name):
    lam = 1 + 2 / 50 if "max_data" in OPTIONS.get(name, {}) else ASSUMED["subgaussian"] ** 2
    model = make(0, regularizer=lam)
    options = {"value": 2.0} if name == "constant" else {**ASSUMED, **OPTIONS.get(name, {})}
    if name == "lederer":
        options = {"delta": 0.1, **OPTIONS[name]}
    bound = BOUNDS[name](**options)
    assert bound.refusal(empty("rbf", regularizer=lam).condition_on(model.inputs, model.targets)) is None
    if name in COVERED:
        assert bool((bound.beta(model) > 0).all())
        assert any(entry.kind is Assumption.NOISE_SCALES for entry in bound.assumptions(model))
        return
    with pytest.raises(ValueError, match=f"equal noise in every observation .the theorem of {name}"):
        bound.interval(model, model.inputs)
    marked = type(bound)(**options, unchecked=True)
    assert not ConfidenceSet(marked).update(model).sound


def test_coverage_with_known_scales_and_without_them():
    """120 runs at δ = 0.1, all n ≤ 40 and all points of a grid: with the scales the bound holds; believing that all
    observations are as quiet as the quietest, it does not.
    """
    kernel, grid = kernels.rbf(0.4), torch.linspace(0, 1, 31, dtype=torch.float64).unsqueeze(-1)
    prior = GP.create(kernel, 0.01, nx=1, nu=0, noise_std=0.1)
    bound, failures = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1), {"known": 0, "ignored": 0}
    for seed in range(120):
        g = torch.Generator().manual_seed(seed)
        f = random_function(kernel, torch.zeros(1), torch.ones(1), norm=1.0, generator=g)
        z, w = torch.rand(40, 1, dtype=torch.float64, generator=g), scales(seed, 40, 8.0)
        y = f(z).unsqueeze(-1) + 0.1 * w.unsqueeze(-1) * torch.randn(40, 1, dtype=torch.float64, generator=g)
        for name, scale in (("known", w), ("ignored", None)):
            model = prior.condition_on(z, y, noise_scale=scale)
            counts = list(range(4, 41, 4))
            mean, std = posterior_history(model, counts, grid)
            rows = [prior.condition_on(z[:n], y[:n], noise_scale=None if scale is None else w[:n]) for n in counts]
            beta = torch.stack([bound.beta(row) for row in rows]).unsqueeze(1)
            failures[name] += bool(((f(grid).unsqueeze(-1) - mean).abs() > beta * std + 1e-9).any())
    assert failures["known"] <= 24  # P(> 24 of 120 at 0.1) < 1e-3
    assert failures["ignored"] >= 60


# ------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (torch.tensor([1.0, 0.5, 1.0]), "noise_scale >= 1"),
        (torch.tensor([1.0, -2.0, 1.0]), "noise_scale >= 1"),
        (torch.tensor([1.0, math.nan, 1.0]), "finite noise_scale"),
        (torch.tensor([1.0, math.inf, 1.0]), "finite noise_scale"),
        (torch.ones(2), "noise_scale of shape"),
        (torch.ones(3, 1), "noise_scale of shape"),
    ],
)
def test_scales_are_read_for_what_they_mean(scale, words):
    with pytest.raises(ValueError, match=words):
        empty("rbf").condition_on(normal(0, 3, 2), normal(1, 3, 1), noise_scale=scale)


def test_models_that_know_one_noise_refuse_it():
    model = make(0)
    with pytest.raises(ValueError, match="equal noise"):
        as_gpytorch(model)
    practical = GP.create(make_kernel("rbf", 2), 0.1, nx=2, nu=0, noise_std=0.1, outputs=[0], mode="practical")
    data = Transitions(normal(0, 3, 2), torch.zeros(3, 0), normal(1, 3, 2))
    with pytest.raises(ValueError, match="equal noise"):
        fit_hyperparameters(practical.condition(data, noise_scale=torch.full((3,), 2.0)))
    z = normal(2, 4, 2)
    torch.testing.assert_close(as_botorch(model, residual=True).posterior(z).mean, model.posterior(z)[0])


@settings(max_examples=5)
@given(seeds())
def test_a_caller_who_edits_the_scales_later_changes_nothing(seed):
    w = scales(seed, 5)
    model = empty("rbf").condition_on(normal(seed, 5, 2), normal(seed + 1, 5, 1), noise_scale=w)
    kept = model.noise_scale.clone()
    w += 1
    assert torch.equal(model.noise_scale, kept)


def test_enclosures_are_not_kept_for_a_set_with_other_scales():
    z, y, w = normal(0, 9, 2), normal(1, 9, 1), scales(2, 9)
    plain, scaled = empty("rbf").condition_on(z, y), empty("rbf").condition_on(z, y, noise_scale=w)
    ones = empty("rbf").condition_on(z, y, noise_scale=torch.ones(9))
    again, other = (empty("rbf").condition_on(z, y, noise_scale=v) for v in (w.clone(), w + 1))

    def goes_on(old: GP, new: GP) -> bool:
        first, second = (ConfidenceSet(Mixture(**ASSUMED)).update(model) for model in (old, new))
        return continues(first, 1, second)

    assert goes_on(plain, ones) and goes_on(scaled, again)
    assert not goes_on(plain, scaled) and not goes_on(scaled, other)
