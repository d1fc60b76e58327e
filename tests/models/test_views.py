"""BoTorch and GPyTorch see the same posterior; BoTorch's acquisition functions and optimisers run on it."""

import functools
import math
import pickle
import warnings

import gpytorch
import pytest
import torch
from botorch.acquisition import (
    LogExpectedImprovement,
    UpperConfidenceBound,
    qKnowledgeGradient,
    qLogExpectedImprovement,
    qNegIntegratedPosteriorVariance,
    qUpperConfidenceBound,
)
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.exceptions import OptimizationWarning
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from hypothesis import given
from hypothesis import strategies as st
from linear_operator.utils.warnings import NumericalWarning
from strategies import ALL_KERNELS, dear, kernel_names, make_kernel, seeds

from gpsafe.confidence import Mixture
from gpsafe.linalg import vector
from gpsafe.models import GP, identity_prior
from gpsafe.models.views import as_botorch, as_gpytorch, fit_hyperparameters
from gpsafe.rkhs import kernels

SOLVE = 1e-8
CUBE = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def make(names: tuple[str, ...] = ("rbf", "matern-5/2"), *, seed: int = 0, n: int = 15, **options) -> GP:
    chosen = [make_kernel(name, 2) for name in names]
    options = {"nu": 0, "nx": 2, "outputs": range(len(names)), **options}
    model = GP.create(chosen, 0.05, noise_std=0.1, **options)
    return model.condition_on(draw(seed, n, 2), draw(seed + 1, n, len(names))) if n else model


# ------------------------------------------------------------------------------------------ agreement
@given(seeds(), kernel_names(), st.sampled_from([(), (3,), (2, 2)]), st.integers(1, 4), st.sampled_from([0, 9]))
def test_botorch_posterior_agrees(seed, name, batch, q, n):
    model = make((name, "rbf"), seed=seed, n=n)
    z = draw(seed + 2, *batch, q, 2)
    posterior = as_botorch(model).posterior(z)
    mean, std = model.posterior(z)
    torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=SOLVE)
    torch.testing.assert_close(posterior.variance, std.square(), rtol=0, atol=SOLVE)
    joint = posterior.distribution.covariance_matrix  # (*b, pq, pq), outputs in blocks
    for j in range(2):
        block = joint[..., j * q : (j + 1) * q, j * q : (j + 1) * q]
        torch.testing.assert_close(block, model.covariance(z)[..., j, :, :], rtol=0, atol=SOLVE)
    assert float(joint[..., :q, q:].abs().max()) == 0.0


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_gpytorch_view_agrees_and_botorch_accepts_it_too(name):
    model, z = make((name,)), draw(3, 4, 3, 2)
    ours = as_botorch(model).posterior(z)
    theirs = as_gpytorch(model).posterior(z)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=SOLVE)
    ours, theirs = ours.distribution.covariance_matrix, theirs.distribution.covariance_matrix
    torch.testing.assert_close(ours, theirs, rtol=0, atol=SOLVE)


def test_gpytorch_view_has_exactly_the_parameters_of_the_model():
    model = GP.create(kernels.matern(2.5, [0.7, 21.0], 0.3), 1e-7, nx=1, nu=1, noise_std=0.1)
    view = as_gpytorch(model)
    assert view.likelihood.noise.item() == model.regularizer.item() == 1e-7
    assert view.covar_module.outputscale.item() == 0.3
    assert view.covar_module.base_kernel.lengthscale.tolist() == [[0.7, 21.0]]


def test_observation_noise_is_lambda():
    model, z = make(), draw(3, 5, 2)
    noisy = as_botorch(model).posterior(z, observation_noise=True).variance
    torch.testing.assert_close(noisy, model.posterior(z)[1].square() + model.regularizer)
    given_noise = as_botorch(model).posterior(z, observation_noise=torch.tensor([[0.3, 0.4]])).variance
    expected = model.posterior(z)[1].square() + torch.tensor([0.3, 0.4], dtype=torch.float64)
    torch.testing.assert_close(given_noise, expected, rtol=1e-6, atol=1e-6)


def test_the_known_mean_is_shown_unless_the_residual_is_asked_for():
    model = make(("rbf",), nx=1, nu=1, outputs=[0], prior=identity_prior)
    z = draw(3, 5, 2)
    torch.testing.assert_close(as_botorch(model).posterior(z).mean, model.predict(z[:, :1], z[:, 1:]).mean)
    torch.testing.assert_close(as_botorch(model, residual=True).posterior(z).mean, model.posterior(z)[0])


def test_outputs_can_be_chosen():
    model, z = make(), draw(3, 4, 2)
    view = as_botorch(model)
    torch.testing.assert_close(view.posterior(z, output_indices=[1]).mean, model.posterior(z)[0][:, 1:])
    assert view.subset_output([1]).num_outputs == 1


@dear()
@given(seeds(), st.sampled_from([(), (3,)]))
def test_fantasies_equal_conditioning(seed, batch):
    model, view = make(seed=seed), as_botorch(make(seed=seed))
    points, values, z = draw(seed + 2, 2, 2), draw(seed + 3, *batch, 2, 2), draw(seed + 4, 4, 2)
    twice = view.condition_on_observations(points[:1], values[..., :1, :])
    twice = twice.condition_on_observations(points[1:], values[..., 1:, :])
    for fantasy in (view.condition_on_observations(points, values), twice):
        posterior = fantasy.posterior(z)
        assert fantasy.batch_shape == batch
        for index in range(batch[0] if batch else 1):
            one = model.condition_on(points, values[index] if batch else values)
            mean = posterior.mean[index] if batch else posterior.mean
            variance = posterior.variance[index] if batch else posterior.variance
            torch.testing.assert_close(mean, one.posterior(z)[0], rtol=0, atol=SOLVE)
            torch.testing.assert_close(variance, one.posterior(z)[1].square(), rtol=0, atol=SOLVE)


def test_fantasize_runs_and_leaves_the_view_alone():
    view, z = as_botorch(make()), draw(3, 4, 2)
    before = view.posterior(z).variance
    fantasy = view.fantasize(draw(5, 2, 3, 2), SobolQMCNormalSampler(torch.Size([4]), seed=0))
    assert fantasy.posterior(z).mean.shape == (4, 2, 4, 2)
    assert torch.equal(view.posterior(z).variance, before)


def test_control_a_view_with_another_lambda_is_told_apart():
    z = draw(3, 5, 2)
    other = GP.create(make_kernel("rbf", 2), 0.06, nx=2, nu=0, noise_std=0.1, outputs=[0])
    other = other.condition_on(draw(0, 15, 2), draw(1, 15, 1))
    gap = as_botorch(make(("rbf",))).posterior(z).variance - as_gpytorch(other).posterior(z).variance
    assert float(gap.abs().max()) > 100 * SOLVE


# ---------------------------------------------------------------------------------------- optimisation
ACQUISITIONS = {
    "ucb": lambda view: (UpperConfidenceBound(view, beta=4.0), 1),
    "log-ei": lambda view: (LogExpectedImprovement(view, best_f=0.3), 1),
    "q-ucb": lambda view: (
        qUpperConfidenceBound(view, beta=4.0, sampler=SobolQMCNormalSampler(torch.Size([64]), seed=0)),
        2,
    ),
    "q-log-ei": lambda view: (
        qLogExpectedImprovement(view, 0.3, sampler=SobolQMCNormalSampler(torch.Size([64]), seed=0)),
        2,
    ),
    "q-nipv": lambda view: (qNegIntegratedPosteriorVariance(view, draw(9, 40, 2)), 2),
    "q-kg": lambda view: (qKnowledgeGradient(view, num_fantasies=3), 1),
}


def optimise(acquisition, q: int, restarts: int = 2) -> tuple[torch.Tensor, float]:
    torch.manual_seed(0)  # optimize_acqf draws its starting points from the global generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # BoTorch's jitter where candidates coincide
        x, value = optimize_acqf(
            acquisition, CUBE, q=q, num_restarts=restarts, raw_samples=16, options={"maxiter": 40, "seed": 0}
        )
    return x, float(value)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_acquisition_functions_are_optimised(name):
    acquisition, q = ACQUISITIONS[name](as_botorch(make(("rbf",))))
    x, value = optimise(acquisition, q)
    assert x.shape == (q, 2)
    assert bool(((x >= CUBE[0]) & (x <= CUBE[1])).all())
    if name != "q-kg":  # its value has extra fantasy points
        with torch.no_grad():
            others = torch.stack([acquisition(draw(s, 1, q, 2)).reshape(()) for s in range(30)])
        assert value >= float(others.max()) - 1e-6


def test_upper_confidence_optimum_is_that_of_our_posterior():
    model = make(("matern-5/2",))
    x, value = optimise(UpperConfidenceBound(as_botorch(model), beta=4.0), 1, restarts=4)
    axis = torch.linspace(-1, 1, 81, dtype=torch.float64)
    mean, std = model.posterior(torch.cartesian_prod(axis, axis))
    assert value >= float((mean + 2 * std).max()) - 1e-6
    mean, std = model.posterior(x)
    assert value == pytest.approx(float(mean + 2 * std), abs=1e-6)


def test_several_outputs_are_optimised_through_a_scalarisation():
    transform = ScalarizedPosteriorTransform(torch.tensor([1.0, 2.0], dtype=torch.float64))
    view = as_botorch(make())
    points = draw(9, 30, 2)
    x, value = optimise(qNegIntegratedPosteriorVariance(view, points, posterior_transform=transform), 1)
    after = make().condition_on(x, torch.zeros(1, 2)).posterior(points)[1].square()
    assert value == pytest.approx(-float((after[:, 0] + 4 * after[:, 1]).mean()), abs=1e-6)


# ---------------------------------------------------------------------------------------------- fitting
def practical(**options) -> GP:
    kernel = make_kernel("rbf", 1)
    x = draw(0, 60, 1) * 3
    y = torch.sin(3 * x) + 0.1 * torch.randn(60, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = GP.create(kernel, 0.5, nx=1, nu=0, noise_std=0.5, **{"mode": "practical", **options})
    return model.condition_on(x, y)


def test_fitting_raises_the_likelihood_and_finds_the_noise():
    before = practical()
    after = fit_hyperparameters(before)
    assert float(after.log_marginal_likelihood()) > float(before.log_marginal_likelihood()) + 10
    assert float(after.noise_std) == pytest.approx(0.1, rel=0.4)
    assert float(after.regularizer) == pytest.approx(float(after.noise_std) ** 2)
    assert after.mode == "practical"
    assert torch.equal(after.inputs, before.inputs)


def test_fitting_can_leave_noise_and_outputs_alone():
    before = practical()
    after = fit_hyperparameters(before, fit_noise=False)
    assert torch.equal(after.regularizer, before.regularizer)
    assert float(after.log_marginal_likelihood()) >= float(before.log_marginal_likelihood())
    untouched = fit_hyperparameters(before, outputs=[])
    assert torch.equal(untouched.posterior(before.inputs)[0], before.posterior(before.inputs)[0])


def test_fitted_hyperparameters_are_a_stationary_point():
    model = fit_hyperparameters(practical())
    kernel = model.kernels[0]

    def likelihood(factor: float) -> float:
        form = kernels.stationary(kernel)
        scaled = kernels.rbf(form.lengthscale * factor, form.variance)
        other = GP.create(scaled, model.regularizer, nx=1, nu=0, noise_std=0.1).condition_on(
            model.inputs, model.targets
        )
        return float(other.log_marginal_likelihood())

    assert likelihood(1.0) >= max(likelihood(1.05), likelihood(0.95)) - 1e-6


SCALES = [(1.0, 1.0), (1e3, 1.0), (1.0, 1e5), (1e-4, 1e-6)]


@pytest.mark.parametrize(
    "name",
    ["rbf", "rbf-restricted", *[pytest.param(n, marks=pytest.mark.slow) for n in ("rbf-isotropic", "matern-5/2")]],
)
def test_fits_do_not_depend_on_units(name):
    """Inputs × 10³, targets × 10⁵: the same fit in their units, and at least as likely as the truth."""
    x = 3 * draw(2, 40, 2).abs()
    y = torch.sin(2 * x[:, 1:]) + 0.1 * draw(3, 40, 1)
    found = []
    for inputs, targets in SCALES:
        model = GP.create(make_kernel(name, 2), 0.5, nx=2, nu=0, noise_std=0.5, outputs=[0], mode="practical")
        after = fit_hyperparameters(model.condition_on(inputs * x, targets * y))
        form = kernels.stationary(after.kernels[0])
        likelihood = float(after.log_marginal_likelihood()) + 40 * math.log(targets)
        noise = float(after.noise_std[0]) / targets
        found.append((likelihood, noise, form.variance / targets**2, *(form.lengthscale / inputs).tolist()))
        pickle.dumps(after)
        assert after.mode == "practical"
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], abs=0.01)
        assert other[1] == pytest.approx(found[0][1], rel=0.05)
        assert other[-1] == pytest.approx(found[0][-1], rel=0.05)
    if name != "rbf-isotropic":
        truth = GP.create(kernels.rbf(0.7, 0.5, dims=[1]), 0.01, nx=2, nu=0, noise_std=0.1, outputs=[0])
        assert found[0][0] >= float(truth.condition_on(x, y).log_marginal_likelihood()) - 1.0


@functools.cache
def fitted_likelihood(name: str, inputs: float, targets: float) -> float:
    """Of a composed kernel fitted in these units, in units of 1."""
    z = 2 * draw(0, 30, 2)
    y = (torch.sin(2 * z[:, :1]) + 0.3 * z[:, 1:]) + 0.05 * draw(1, 30, 1)
    kernel = {
        "product": lambda: kernels.product(kernels.rbf(1.0, dims=[0]), kernels.matern(2.5, 1.0, dims=[1])),
        "periodic": lambda: kernels.periodic(1.0, 2.0, dims=[0]),
        "additive": lambda: kernels.additive(kernels.rbf([1.0, 1.0]), kernels.linear([1.0, 1.0])),
    }[name]()
    model = GP.create(kernel, 0.01, nx=2, nu=0, noise_std=0.1, outputs=[0], mode="practical")
    after = fit_hyperparameters(model.condition_on(inputs * z, targets * y))
    return float(after.log_marginal_likelihood()) + 30 * math.log(targets)


@pytest.mark.parametrize(("inputs", "targets"), SCALES[1:])
@pytest.mark.parametrize("name", ["product", "periodic", "additive"])
def test_fits_of_composed_kernels_do_not_depend_on_units(name, inputs, targets):
    """Factors of a product share the unit of the targets; a periodic kernel's ℓ has none, and its likelihood many optima."""
    assert fitted_likelihood(name, inputs, targets) == pytest.approx(fitted_likelihood(name, 1.0, 1.0), abs=0.01)


def test_a_fit_that_explains_nothing_says_so():
    """Targets that differ about 0 at one and the same input are noise, whatever the kernel."""
    model = GP.create(kernels.rbf(1.0), 0.01, nx=1, nu=0, noise_std=0.1, mode="practical")
    with pytest.warns(OptimizationWarning, match="no likelier than noise alone"):
        fit_hyperparameters(model.condition_on(torch.ones(4, 1).double(), vector(1.0, -1.0, 2.0, -2.0).unsqueeze(-1)))


def test_parameters_with_limits_of_their_own_keep_them():
    kernel = gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.RBFKernel(lengthscale_constraint=gpytorch.constraints.Interval(0.2, 0.3))
    ).double()
    kernel.base_kernel.lengthscale = 0.25
    model = GP.create(kernel, 0.5, nx=1, nu=0, noise_std=0.5)
    after = fit_hyperparameters(model.condition_on(practical().inputs, practical().targets))
    assert 0.2 <= float(after.kernels[0].base_kernel.lengthscale) <= 0.3
    assert isinstance(after.kernels[0].base_kernel.raw_lengthscale_constraint, gpytorch.constraints.Interval)
    assert type(after.kernels[0].raw_outputscale_constraint) is gpytorch.constraints.Positive


def test_constant_data_are_fitted_too():
    x = torch.zeros(5, 1).double()
    for value in (0.0, 7.0):
        model = GP.create(kernels.rbf(1.0), 0.1, nx=1, nu=0, noise_std=0.1, mode="practical")
        after = fit_hyperparameters(model.condition_on(x, torch.full_like(x, value)))
        assert bool(torch.isfinite(after.posterior(x)[0]).all())


def test_theory_mode_is_never_fitted():
    with pytest.raises(ValueError, match="fit_hyperparameters: expected a GP of mode"):
        fit_hyperparameters(practical(mode="theory"))


def test_a_model_without_data_is_not_fitted():
    with pytest.raises(ValueError, match="a model with data"):
        fit_hyperparameters(GP.create(make_kernel("rbf", 1), 0.1, nx=1, nu=0, noise_std=0.1, mode="practical"))


def test_bounds_refuse_what_was_fitted():
    with pytest.raises(ValueError, match="theory-mode"):
        Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1).beta(fit_hyperparameters(practical(), outputs=[]))
