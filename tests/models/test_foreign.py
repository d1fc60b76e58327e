"""Trained GPyTorch and BoTorch models become GPs with the same posterior; what cannot be carried is refused by name."""

import copy
import functools
import warnings

import gpytorch
import pytest
import torch
from botorch.models import ModelListGP, MultiTaskGP, SingleTaskGP, SingleTaskVariationalGP
from botorch.models.transforms.input import InputStandardize, Normalize, Warp
from botorch.models.transforms.outcome import Log, Standardize
from gpytorch.kernels import (
    AdditiveKernel,
    CosineKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_kernel, seeds

from gpsafe import confidence
from gpsafe.models import GP, from_gpytorch, identity_prior
from gpsafe.models.views import as_botorch, as_gpytorch, fit_hyperparameters
from gpsafe.rkhs import kernels
from gpsafe.systems.base import KnownPart

warnings.filterwarnings("ignore", module="botorch")
warnings.filterwarnings("ignore", module="gpytorch")
pytestmark = pytest.mark.filterwarnings("ignore")
SAME = 1e-8


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


INPUTS = torch.tensor([0.0, 100.0, -3.0]) + torch.tensor([10.0, 5.0, 0.1]) * draw(25, 3)
TARGETS = torch.stack([300 + 40 * torch.sin(INPUTS[:, 0]), INPUTS[:, 1] * INPUTS[:, 2]], -1) + draw(25, 2, seed=1)
QUERIES = torch.tensor([0.0, 100.0, -3.0]) + torch.tensor([10.0, 5.0, 0.1]) * (1.4 * draw(30, 3, seed=2) - 0.2)


def scatter(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Other numbers in every parameter, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data = (
            parameter.data + noise if "mean" in name else parameter.data * noise.exp()
        )  # some are variances
    return module


class Plain(gpytorch.models.ExactGP):
    def __init__(self, x, y, kernel, mean=None, likelihood=None, batch=0, multitask=False):
        shape = torch.Size([batch] if batch else [])
        super().__init__(x, y, likelihood or gpytorch.likelihoods.GaussianLikelihood(batch_shape=shape))
        self.mean_module = mean or gpytorch.means.ConstantMean(batch_shape=shape)
        self.covar_module, self.multitask = kernel, multitask

    def forward(self, z):
        found = gpytorch.distributions.MultivariateNormal(self.mean_module(z), self.covar_module(z))
        multitask = gpytorch.distributions.MultitaskMultivariateNormal
        return multitask.from_batch_mvn(found) if self.multitask else found


def small(z: torch.Tensor) -> torch.Tensor:
    return (z - torch.tensor([0.0, 100.0, -3.0])) / torch.tensor([10.0, 5.0, 0.1])


def agrees(gp: GP, mean: torch.Tensor, variance: torch.Tensor, z: torch.Tensor, *, nu: int) -> None:
    """Mean and variance (q, m) of the source at z against ours, in units of their sizes."""
    found = gp.predict(z[:, : gp.nx], z[:, gp.nx :])
    outputs = list(gp.outputs)
    assert gp.nu == nu and gp.mode == "practical" and mean.shape == (len(z), len(outputs))
    torch.testing.assert_close(
        found.mean[:, outputs] / mean.abs().amax(0), mean / mean.abs().amax(0), rtol=0, atol=SAME
    )
    size = gp.prior_variance(z)
    torch.testing.assert_close(found.std[:, outputs].square() / size, variance / size, rtol=0, atol=SAME)


def ask(model, z, *, noisy=False):
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        model.eval()
        found = model.posterior(z) if hasattr(model, "posterior") else model(z)
        return found.mean.reshape(len(z), -1), found.variance.reshape(len(z), -1)


KERNELS = {
    "rbf": lambda: ScaleKernel(RBFKernel(ard_num_dims=3)),
    "rbf, one length-scale": lambda: ScaleKernel(RBFKernel()),
    "bare": lambda: RBFKernel(ard_num_dims=3),
    "matern": lambda: ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=2, active_dims=(2, 0))),
    "periodic": lambda: ScaleKernel(PeriodicKernel(ard_num_dims=3)),
    "quadratic": lambda: ScaleKernel(RQKernel(ard_num_dims=3)),
    "sum": lambda: ScaleKernel(
        AdditiveKernel(ScaleKernel(RBFKernel(active_dims=(1,))), MaternKernel(nu=2.5, ard_num_dims=3))
    ),
    "product": lambda: ScaleKernel(RBFKernel(active_dims=(1,)) * MaternKernel(nu=0.5, active_dims=(0, 2))),
    "scale chooses": lambda: ScaleKernel(RBFKernel(ard_num_dims=2), active_dims=(2, 1)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_one_output_with_all_transforms(name):
    model = SingleTaskGP(
        INPUTS,
        TARGETS[:, :1],
        covar_module=KERNELS[name](),
        input_transform=Normalize(3),
        outcome_transform=Standardize(1),
    )
    model = scatter(model)
    agrees(from_gpytorch(model, nu=1), *ask(model, QUERIES), QUERIES, nu=1)


@settings(max_examples=5)
@given(seeds(), st.sampled_from([Normalize, InputStandardize, None]), st.booleans(), st.sampled_from([1, 2]))
def test_botorch_models_as_people_make_them(seed, transform, standardise, m):
    z = small(INPUTS) if transform is None else INPUTS
    queries = small(QUERIES) if transform is None else QUERIES
    chosen = None if transform is None else transform(3)
    outcome = Standardize(m) if standardise else None
    y = TARGETS[:, :m] / (1.0 if standardise else 50.0)
    model = scatter(SingleTaskGP(z, y, input_transform=chosen, outcome_transform=outcome), seed)
    assert model.training
    agrees(from_gpytorch(model, nu=1), *ask(model, queries), queries, nu=1)
    before = copy.deepcopy(model.state_dict())
    again = from_gpytorch(model, nu=1)  # now in evaluation mode, with its caches
    agrees(again, *ask(model, queries), queries, nu=1)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_normalising_some_inputs_only():
    model = SingleTaskGP(INPUTS, TARGETS[:, :1], input_transform=Normalize(3, indices=[1, 2]))
    agrees(from_gpytorch(scatter(model)), *ask(model, QUERIES), QUERIES, nu=0)


def test_a_linear_kernel_without_shift_and_a_linear_mean():
    mean = gpytorch.means.LinearMean(3)
    kernel = ScaleKernel(LinearKernel(ard_num_dims=3)) + ScaleKernel(RBFKernel())
    model = scatter(Plain(small(INPUTS), TARGETS[:, 0] / 40, kernel, mean).double())
    z = small(QUERIES)
    agrees(from_gpytorch(model, nu=2), *ask(model, z), z, nu=2)


def test_batches_of_independent_outputs():
    z, queries, y = small(INPUTS), small(QUERIES), TARGETS.T / 50
    kernel = ScaleKernel(RBFKernel(ard_num_dims=3, batch_shape=torch.Size([2])), batch_shape=torch.Size([2]))
    batched = scatter(Plain(z, y, kernel, batch=2).double())
    mean, variance = batched.eval()(queries).mean.detach(), batched(queries).variance.detach()
    agrees(from_gpytorch(batched, nu=1), mean.T, variance.T, queries, nu=1)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2)
    multitask = scatter(Plain(z, y.T, copy.deepcopy(kernel), None, likelihood, batch=2, multitask=True).double())
    agrees(from_gpytorch(multitask, nu=1), *ask(multitask, queries), queries, nu=1)


def test_lists_of_models_outputs_and_known_means():
    parts = [SingleTaskGP(INPUTS, TARGETS[:, j : j + 1], input_transform=Normalize(3)) for j in (0, 1)]
    parts[1].likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model = ModelListGP(*(scatter(part, j) for j, part in enumerate(parts)))
    mean, variance = ask(model, QUERIES)
    gp = from_gpytorch(model, nu=0, outputs=[2, 0], prior=identity_prior)
    assert isinstance(gp.prior, KnownPart) and gp.outputs == (2, 0)
    agrees(gp, mean + QUERIES[:, [2, 0]], variance, QUERIES, nu=0)
    assert float(gp.noise_std[1]) == 0.0 and float(gp.noise_std[0] ** 2) == pytest.approx(float(gp.regularizer[1]))


def test_float32_and_fixed_noise_that_is_equal():
    model = SingleTaskGP(INPUTS, TARGETS[:, :1], torch.full_like(TARGETS[:, :1], 0.3), input_transform=Normalize(3))
    gp = from_gpytorch(model)
    agrees(gp, *ask(model, QUERIES), QUERIES, nu=0)
    assert float(gp.regularizer[0]) == pytest.approx(0.3, rel=1e-12)
    narrow = from_gpytorch(Plain(small(INPUTS).float(), TARGETS[:, 0].float() / 40, ScaleKernel(RBFKernel())))
    assert narrow.inputs is not None and narrow.inputs.dtype is torch.float64


@pytest.mark.parametrize("used", [False, True])
def test_a_float32_model_with_input_units_is_taken_before_and_after_its_use(used):
    """In evaluation mode BoTorch keeps the inputs in their own units aside, where a change of precision misses them."""
    model = SingleTaskGP(INPUTS.float(), TARGETS[:, :1].float(), input_transform=Normalize(3))
    if used:
        ask(model, QUERIES.float())
    gp = from_gpytorch(model)
    assert gp.inputs is not None and torch.equal(gp.inputs, INPUTS.float().double())
    mean, _ = ask(model, QUERIES.float())
    found = gp.predict(QUERIES, QUERIES[:, :0])
    torch.testing.assert_close(found.mean[:, :1], mean.double(), rtol=1e-3, atol=0.1)


class Louder(Plain):
    """Predicts with twice the deviation of its parts."""

    def __call__(self, *inputs, **keywords):
        found = super().__call__(*inputs, **keywords)
        wide = 4.0 * found.lazy_covariance_matrix
        return found if self.training else gpytorch.distributions.MultivariateNormal(found.mean, wide)


def test_a_linear_kernel_with_data_at_the_origin_is_compared_where_it_varies():
    """At the origin its variance is 0, and no measure of errors."""
    z = torch.cat([torch.zeros(1, 3), small(INPUTS)])
    y = z @ torch.tensor([1.0, 2.0, -1.0], dtype=z.dtype)
    model = Plain(z, y, LinearKernel(ard_num_dims=3)).double()
    mean, variance = ask(model, small(QUERIES))
    agrees(from_gpytorch(model), mean, variance, small(QUERIES), nu=0)
    with pytest.raises(ValueError, match="whose forward is"):
        from_gpytorch(Louder(z, y, LinearKernel(ard_num_dims=3)).double())


# ------------------------------------------------------------------------------------------ back and forth
@settings(max_examples=4)
@given(seeds(), st.sampled_from(["rbf", "matern-3/2", "additive"]))
def test_there_and_back(seed, name):
    gp = GP.create(make_kernel(name, 3), 0.05, nx=2, nu=1, noise_std=0.1, outputs=[0])
    gp = gp.condition_on(small(INPUTS), TARGETS[:, :1] / 40)
    back = from_gpytorch(as_gpytorch(gp), nu=1)
    z = small(QUERIES)
    for ours, theirs in zip(back.posterior(z), gp.posterior(z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=SAME)
    assert gp.mode == "theory" and back.mode == "practical" and not kernels.is_stated(back.kernels[0])


def test_out_again_and_fitted():
    """A model of BoTorch, ours, BoTorch's view of ours: all the same; and our own fit takes it."""
    model = scatter(SingleTaskGP(INPUTS, TARGETS, input_transform=Normalize(3)))
    gp = from_gpytorch(model)
    view = as_botorch(gp).posterior(QUERIES)
    mean, variance = ask(model, QUERIES)
    torch.testing.assert_close(view.mean / mean, torch.ones_like(mean), rtol=0, atol=SAME)
    torch.testing.assert_close(view.variance, variance, rtol=1e-6, atol=1e-8)
    fitted = fit_hyperparameters(gp, outputs=[1])
    assert float(fitted.log_marginal_likelihood()[1]) >= float(gp.log_marginal_likelihood()[1]) - 1e-6


def test_no_sound_bound_takes_it():
    gp = from_gpytorch(SingleTaskGP(INPUTS, TARGETS[:, :1], input_transform=Normalize(3)))
    bound = confidence.Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
    with pytest.raises(ValueError, match="theory"):
        confidence.ConfidenceSet(bound).update(gp)


# ------------------------------------------------------------------------------------------ refusals
def plain(**options) -> Plain:
    kernel = options.pop("kernel", None) or ScaleKernel(RBFKernel())
    return Plain(small(INPUTS), TARGETS[:, 0] / 40, kernel, **options).double()


class Deep(Plain):
    def forward(self, z):
        return super().forward(z.square())


@functools.cache
def refused() -> dict[str, tuple]:
    z, y = small(INPUTS), TARGETS[:, :1]
    uneven = SingleTaskGP(z, y, 0.1 + draw(25, 1))
    tasks = MultiTaskGP(torch.cat([z, torch.arange(25.0).remainder(2).reshape(-1, 1)], -1), y, task_feature=-1)
    apart = ModelListGP(SingleTaskGP(z, y), SingleTaskGP(z + 0.1, y))
    rank = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2, rank=1)
    shared = RBFKernel(batch_shape=torch.Size([2]))
    correlated = Plain(z, TARGETS / 50, shared, None, rank, batch=2, multitask=True).double()
    quadratic = gpytorch.means.LinearMean(3)
    quadratic.__class__ = type("QuadraticMean", (gpytorch.means.LinearMean,), {})
    return {
        "an approximate GP": (SingleTaskVariationalGP(z, y), "SingleTaskVariationalGP"),
        "not a model": (RBFKernel(), "RBFKernel"),
        "no data": (Plain(None, None, RBFKernel()), "training data"),
        "another mean": (plain(mean=quadratic), "QuadraticMean"),
        "another kernel": (plain(kernel=ScaleKernel(CosineKernel())), "CosineKernel"),
        "a kernel inside": (plain(kernel=ScaleKernel(RBFKernel() * CosineKernel())), "CosineKernel"),
        "uneven noise": (uneven, "one noise variance"),
        "correlated tasks": (tasks, "Multitask"),
        "correlated noise": (correlated, "GaussianLikelihood"),
        "inputs apart": (apart, "inputs that differ"),
        "a warp": (SingleTaskGP(z, y, input_transform=Warp(3, [0])), "Warp"),
        "a logarithm": (SingleTaskGP(z, y, outcome_transform=Log()), "Log"),
        "a shifted linear kernel": (
            SingleTaskGP(INPUTS, y, covar_module=LinearKernel(), input_transform=Normalize(3)),
            "LinearKernel",
        ),
        "features": (Deep(z, y[:, 0] / 40, ScaleKernel(RBFKernel())).double(), "forward"),
        "many outputs": (SingleTaskGP(z[:, :1], TARGETS), "entries of the state"),
    }


@pytest.mark.parametrize("name", list(refused()))
def test_refused_by_name(name):
    model, words = refused()[name]
    with pytest.raises(ValueError, match=f"^from_gpytorch: .*{words}"):
        from_gpytorch(model)
