"""Derivatives of posteriors: at any distance, at the data themselves, and after evaluation in inference mode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_kernel, seeds

from gpsafe.confidence import BOUNDS, Mixture
from gpsafe.data import Transitions
from gpsafe.models import GP, Ensemble, LowRankGP, Training, sample_functions
from gpsafe.models.dropout import Dropout
from gpsafe.models.laplace import LastLayerLaplace
from gpsafe.models.sparse_gp import SparseGP
from gpsafe.rkhs import kernels

SMOOTH = {
    "rbf": lambda d: kernels.rbf([0.7 + 0.1 * i for i in range(d)], 1.3),
    "matern-3/2": lambda d: kernels.matern(1.5, [0.7 + 0.1 * i for i in range(d)], 1.3),
    "matern-5/2": lambda d: kernels.matern(2.5, [0.7 + 0.1 * i for i in range(d)], 1.3),
}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def regression(kernel, x: torch.Tensor) -> GP:
    model = GP.create(kernel, 0.01, nx=x.shape[1], nu=0, noise_std=0.1, outputs=[0], mode="theory")
    return model.condition_on(x, torch.sin(3 * x[:, :1]) + 1)


def mean(model: GP):
    return lambda z: model.residual_mean(z).sum()


def differences(model: GP, z: torch.Tensor, step: float) -> torch.Tensor:
    """Hessian of the mean by differences of its closed-form gradient."""
    eye = step * torch.eye(z.numel(), dtype=torch.float64)
    up, down = model.gradient(z + eye)[0][:, 0], model.gradient(z - eye)[0][:, 0]
    return (up - down) / (2 * step)


def hessians(model: GP, z: torch.Tensor) -> list[torch.Tensor]:
    f = mean(model)
    nested = torch.func.jacfwd(torch.func.jacfwd(f))
    return [torch.autograd.functional.hessian(f, z), torch.func.hessian(f)(z), nested(z)]  # pyright: ignore


# ------------------------------------------------------------------------------------------ Hessians
@pytest.mark.parametrize("name", sorted(SMOOTH))
@settings(max_examples=4)
@given(seed=seeds(), spread=st.sampled_from([1.0, 150.0, 1e4]), dim=st.integers(1, 6), at_data=st.booleans())
def test_hessians_of_the_mean(name, seed, spread, dim, at_data):
    """Near and far (data over 10⁴ length-scales), between data and exactly on them."""
    x = normal(seed, 15, dim)
    x[::3] = x[::3] * spread  # clusters near and far
    model = regression(SMOOTH[name](dim), x)
    z = x[4].clone() if at_data else x[4] + 0.3
    expected = differences(model, z, 1e-5)
    scale = float(expected.abs().max()) + 1e-3
    for found in hessians(model, z):
        assert float((found - expected).abs().max()) <= 1e-3 * scale


def test_hessian_at_a_single_observation_is_the_curvature_of_the_kernel():
    for name, curvature in (("rbf", 1.0), ("matern-3/2", 3.0), ("matern-5/2", 5 / 3)):
        kernel = kernels.rbf(0.5, 2.0) if name == "rbf" else kernels.matern(float(name[7]) / 2, 0.5, 2.0)
        for far in (0.0, 1e4):
            model = regression(kernel, torch.full((1, 1), far, dtype=torch.float64))
            expected = -float(model.weights) * 2.0 * curvature / 0.25
            for found in hessians(model, torch.tensor([far], dtype=torch.float64)):
                assert float(found) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["matern-1/2", "additive", "rbf-restricted", "linear"])
def test_other_kernels_have_second_derivatives_away_from_the_data(name):
    x = 200 * normal(0, 8, 2)
    model = regression(make_kernel(name, 2), x)
    z = x[3] + 0.4
    step = 1e-3
    eye = step * torch.eye(2, dtype=torch.float64)
    f = mean(model)
    gradient = lambda p: torch.func.grad(f)(p)  # noqa: E731
    expected = torch.stack([(gradient(z + e) - gradient(z - e)) / (2 * step) for e in eye])
    for found in hessians(model, z):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@given(seeds(), st.sampled_from(["rbf", "matern-1/2", "matern-3/2", "matern-5/2"]), st.sampled_from([1.0, 500.0]))
def test_gram_matrices_are_those_of_true_distances(seed, name, spread):
    x, z = spread * normal(seed, 7, 3), spread * normal(seed + 1, 5, 3)
    z[0] = x[0]
    kernel = make_kernel(name, 3)
    form = kernels.stationary(kernel)
    assert form is not None
    distance = torch.cdist(x / form.lengthscale, z / form.lengthscale, compute_mode="donot_use_mm_for_euclid_dist")
    expected = form.variance * form.profile(distance.square())
    torch.testing.assert_close(kernels.cross(kernel, x, z), expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------ inference mode
X, U = normal(0, 8, 2), normal(1, 8, 1)


def transitions() -> Transitions:
    return Transitions(X, U, X + 0.1)


def exact(*names: str) -> GP:
    return GP.create([make_kernel(name, 3) for name in names], 0.05, nx=2, nu=1, noise_std=0.1, mode="theory")


def network(kind):
    return kind.create(2, 1, noise_std=0.1, generator=torch.Generator().manual_seed(0), steps=20, hidden=(4,))


def ensemble() -> Ensemble:
    generator = torch.Generator().manual_seed(0)
    return Ensemble.create(2, 1, generator=generator, members=2, hidden=(4,), training=Training(epochs=2, steps=2))


MODELS = {
    "gp": lambda: exact("rbf", "matern-5/2").condition(transitions()),
    "gp-generic": lambda: exact("rational-quadratic", "product").condition(transitions()),
    "gp-sums": lambda: exact("additive", "linear").condition(transitions()),
    "low-rank": lambda: LowRankGP.create(exact("rbf", "matern-3/2").condition(transitions()), 4),
    "sparse": lambda: SparseGP.create(make_kernel("rbf", 3), 2, 1, noise_std=0.1, size=4).condition(transitions()),
    "dropout": lambda: network(Dropout).condition(transitions()),
    "laplace": lambda: network(LastLayerLaplace).condition(transitions()),
    "ensemble": lambda: ensemble().condition(transitions()),
}


def gradient(model) -> torch.Tensor:
    x = X.clone().requires_grad_(True)
    prediction = model.predict(x, U)
    (prediction.mean.square().sum() + prediction.std.sum()).backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("created", [False, True])
def test_what_happened_in_inference_mode_does_not_break_later_gradients(name, created):
    expected = gradient(MODELS[name]())
    if created:
        with torch.inference_mode():
            model = MODELS[name]()  # kernel, data and posterior are all made in here
            model.predict(X, U)
    else:
        model = MODELS[name]()
        with torch.inference_mode():
            model.predict(X, U)
    torch.testing.assert_close(gradient(model), expected, rtol=1e-9, atol=1e-11)


def test_posteriors_conditioned_in_inference_mode_grow_and_differentiate_outside():
    with torch.inference_mode():
        first = exact("rbf", "matern-5/2").condition(transitions())
        first.posterior(torch.cat([X, U], -1))
    second = first.condition(Transitions(X + 1, U, X))
    assert bool(torch.isfinite(gradient(second)).all())
    with torch.inference_mode():
        third = second.condition(Transitions(X + 2, U, X))
        samples = sample_functions(third, 3, generator=torch.Generator().manual_seed(0), num_features=8)
        bound = BOUNDS["convex-program"](rkhs_norm=5.0, subgaussian=0.2, delta=0.1)
        bound.interval(third, torch.cat([X, U], -1))
    z = torch.cat([X, U], -1).requires_grad_(True)
    low, high = Mixture(rkhs_norm=5.0, subgaussian=0.2, delta=0.1).interval(third, z)
    (low.sum() + high.sum() + samples(z).sum() + sum(v.sum() for v in bound.interval(third, z))).backward()
    assert z.grad is not None and bool(torch.isfinite(z.grad).all())
