"""Theory mode is for kernels that were stated; what may have been trained is practical until its user declares it."""

import copy
import pickle

import gpytorch
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP

from gpsafe.confidence import Mixture
from gpsafe.models import GP
from gpsafe.models.views import as_gpytorch, fit_hyperparameters
from gpsafe.rkhs import kernels

X = torch.linspace(0, 3, 25, dtype=torch.float64).unsqueeze(-1)
Y = torch.sin(3 * X)
BOUND = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)


def gp(kernel, **options) -> GP:
    return GP.create(kernel, 0.01, nx=1, nu=0, noise_std=0.1, **options)


def trained_model():
    model = SingleTaskGP(X, Y, covar_module=kernels.rbf(1.0).requires_grad_(True))
    fit_gpytorch_mll(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def trained_view():
    view = as_gpytorch(gp(kernels.rbf(1.0)).condition_on(X, Y)).train()
    for parameter in view.covar_module.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(view.covar_module.parameters(), lr=0.1)
    loss = -gpytorch.mlls.ExactMarginalLogLikelihood(view.likelihood, view)(view(X), Y[:, 0])
    loss.backward()
    optimizer.step()
    return view.covar_module


def edited():
    kernel = kernels.rbf(1.0)
    kernel.outputscale = 1.5
    return kernel


def raw_sum():
    return kernels.rbf(1.0) + gpytorch.kernels.LinearKernel().double()


STATED = {
    "rbf": lambda: kernels.rbf([0.5], 2.0),
    "matern": lambda: kernels.matern(1.5, 0.5),
    "linear": lambda: kernels.linear(0.5),
    "additive": lambda: kernels.additive(kernels.rbf(0.5), kernels.linear(0.5)),
    "sum": lambda: kernels.rbf(0.5) + kernels.linear(0.5),
    "product": lambda: kernels.rbf(0.5) * kernels.linear(0.5),
    "frozen": lambda: kernels.freeze(kernels.rbf(0.5)),
    "copied": lambda: copy.deepcopy(kernels.rbf(0.5)),
    "pickled": lambda: pickle.loads(pickle.dumps(kernels.rbf(0.5))),
    "of a model": lambda: gp(kernels.rbf(0.5)).condition_on(X, Y).kernels[0],
}
TRAINED = {
    "gpytorch": lambda: gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double(),
    "gpytorch, frozen": lambda: kernels.freeze(gpytorch.kernels.RBFKernel()),
    "botorch": lambda: trained_model().covar_module,
    "botorch, frozen": lambda: kernels.freeze(trained_model().covar_module),
    "view": trained_view,
    "view, frozen": lambda: kernels.freeze(trained_view()),
    "fitted": lambda: fit_hyperparameters(gp(kernels.rbf(1.0), mode="practical").condition_on(X, Y)).kernels[0],
    "in a sum": lambda: kernels.additive(kernels.rbf(1.0), kernels.freeze(gpytorch.kernels.RBFKernel())),
    "raw sum": raw_sum,
    "trainable": lambda: kernels.rbf(1.0).requires_grad_(True),
    "edited": edited,
}


@pytest.mark.parametrize("name", sorted(STATED))
def test_stated_kernels_are_theory_mode(name):
    kernel = STATED[name]()
    assert kernels.is_stated(kernel)
    model = gp(kernel)
    assert model.mode == "theory"
    assert float(BOUND.beta(model)) > 0
    assert gp(kernel, mode="practical").mode == "practical"


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_trained_kernels_are_practical_unless_declared(name):
    kernel = TRAINED[name]()
    assert not kernels.is_stated(kernel)
    model = gp(kernel)
    assert model.mode == "practical"
    with pytest.raises(ValueError, match=r'declare it: GP.create\(\.\.\., mode="theory"\)'):
        BOUND.beta(model)
    declared = gp(kernel, mode="theory")
    assert bool((BOUND.beta(declared) > 0).all())
    assert "kernel and lambda fixed before data" in BOUND.assumptions(declared)


def test_one_trained_kernel_makes_the_model_practical():
    mixed = [kernels.rbf(1.0), gpytorch.kernels.RBFKernel().double()]
    assert GP.create(mixed, 0.1, nx=2, nu=0, noise_std=0.1).mode == "practical"


def test_what_is_no_gp_is_refused_by_every_bound():
    with pytest.raises(ValueError, match="a GP, or a view of one"):
        BOUND.check(object())  # pyright: ignore[reportArgumentType]
