"""Gradients inside confidence sets: the jet is the joint posterior, its band covers f*, Taylor remainders are bounded."""

import math

import flint
import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.confidence import (
    AbbasiYadkori,
    ChowdhuryGopalan,
    Constant,
    ConvexProgram,
    Fiedler,
    Lederer,
    Mixture,
)
from gpsafe.confidence.functionals import differentiable, functional_beta, jet, taylor_modulus
from gpsafe.models import GP
from gpsafe.rkhs import kernels, random_function

KERNELS = {
    "rbf": lambda: kernels.rbf([0.7, 1.4], 0.5),
    "matern-5/2": lambda: kernels.matern(2.5, [0.8, 1.1], 2.0),
    "matern-3/2": lambda: kernels.matern(1.5, [0.6, 0.9], 1.3),
    "rbf-restricted": lambda: kernels.rbf(0.9, 1.1, dims=[1]),
}
NORM, NOISE = 2.0, 0.05


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(seed: int, count: int) -> torch.Tensor:
    return 2 * torch.rand(count, 2, dtype=torch.float64, generator=generator(seed)) - 1


def experiment(name: str, seed: int, count: int):
    """A function of norm NORM, and the posterior after `count` noisy observations of it."""
    kernel = KERNELS[name]()
    f = random_function(kernel, -torch.ones(2), torch.ones(2), norm=NORM, generator=generator(seed))
    model = GP.create(kernel, NOISE**2, nx=1, nu=1, noise_std=NOISE)
    if count:
        z = points(seed + 1, count)
        noise = NOISE * torch.randn(count, dtype=torch.float64, generator=generator(seed + 2))
        model = model.condition_on(z, (f(z) + noise).unsqueeze(-1))
    return f, model


def gradient(f, z: torch.Tensor) -> torch.Tensor:
    leaf = z.clone().requires_grad_(True)
    return torch.autograd.grad(f(leaf).sum(), leaf)[0]


@given(seeds(), st.sampled_from(sorted(KERNELS)), st.sampled_from([0, 1, 12]))
def test_jet_is_the_joint_posterior_of_value_and_gradient(seed, name, count):
    _, model = experiment(name, seed, count)
    z = points(seed + 3, 4)
    found = jet(model, z)
    mean, std = model.posterior(z)
    slope, _ = model.gradient(z)
    assert torch.allclose(found.mean[..., 0], mean, atol=1e-8)
    assert torch.allclose(found.mean[..., 1:], slope, atol=1e-7)
    assert torch.allclose(found.cov[..., 0, 0].sqrt(), std, atol=1e-6)
    # joint covariance by central differences of the posterior covariance (smooth kernels)
    if name in ("rbf", "matern-5/2", "rbf-restricted"):
        step = 1e-4
        moves = torch.cat([torch.zeros(1, 2), step * torch.eye(2), -step * torch.eye(2)]).double()
        cloud = model.covariance(z.unsqueeze(1) + moves)[:, 0]
        to_jet = torch.zeros(3, 5, dtype=torch.float64)
        to_jet[0, 0] = 1.0
        for i in range(2):
            to_jet[1 + i, 1 + i], to_jet[1 + i, 3 + i] = 0.5 / step, -0.5 / step
        numeric = to_jet @ cloud @ to_jet.T
        assert torch.allclose(found.cov[:, 0], numeric, atol=2e-3)


@given(seeds(), st.sampled_from(sorted(KERNELS)), st.sampled_from([0, 3, 25]))
def test_band_covers_value_plus_directional_derivative_when_the_noise_event_holds(seed, name, count):
    f, model = experiment(name, seed, count)
    bound = Mixture(rkhs_norm=NORM, subgaussian=NOISE, delta=0.01)
    z = points(seed + 5, 50)
    truth = f(z)
    mean, std = model.posterior(z)
    beta = functional_beta(bound, model)
    assert beta is not None
    assume(bool(((truth - mean[:, 0]).abs() <= beta * std[:, 0]).all()))
    found = jet(model, z)
    direction = torch.randn(50, 3, dtype=torch.float64, generator=generator(seed + 6))
    direction[:10, 0] = 0.0  # pure derivatives
    value = (direction * torch.cat([truth.unsqueeze(-1), gradient(f, z)], -1)).sum(-1)
    center = (direction * found.mean[:, 0]).sum(-1)
    half = beta * torch.einsum("ni,nij,nj->n", direction, found.cov[:, 0], direction).clamp_min(0).sqrt()
    assert bool(((value - center).abs() <= half + 1e-8).all())


@pytest.mark.parametrize(
    ("regularizer", "stretch"), [(1e-4, 1.0), (3.5e-6, 1.0), (1e-8, 1.0), (1e-10, 1.0), (1e-5, 30.0)]
)
def test_widths_are_rounded_outwards_on_dense_data_at_small_regularizers(regularizer, stretch):
    """Points of one path, far closer than the length-scale or spread over sixty of them."""
    time = 0.1 * torch.arange(80, dtype=torch.float64)
    wobble = 1e-3 * torch.randn(80, 2, dtype=torch.float64, generator=generator(1))
    inputs = stretch * torch.stack([3.0 + time.sin(), 2.0 * time.cos()], dim=-1) + wobble
    lengthscale = torch.tensor([1.0, 2.0], dtype=torch.float64)
    model = GP.create(kernels.rbf(lengthscale, 1.0), regularizer, nx=2, nu=0, noise_std=1.0, outputs=(0,))
    model = model.condition_on(inputs, torch.zeros(80, 1, dtype=torch.float64))
    z = torch.cat([inputs[::20], inputs[4::40] + 0.05])
    one, bound = torch.ones(1, dtype=torch.float64), Constant(value=1.0)
    half = bound.half_width(model, one, model.posterior(z)[1], model.prior_variance(z))[:, 0]
    found = jet(model, z).cov[:, 0]
    with flint.ctx.workdps(45):
        exact = [reference.rbf_jet(inputs, point, lengthscale, regularizer) for point in z]
        lacking = [float(rows[0][0] - flint.arb(float(h)) ** 2) for rows, h in zip(exact, half, strict=True)]
        excess = [
            [[float(flint.arb(float(c)) - e) for c, e in zip(mine, true, strict=True)] for mine, true in pair]
            for pair in (zip(cov, rows, strict=True) for cov, rows in zip(found, exact, strict=True))
        ]
    assert max(lacking) <= 0.0
    assert float(torch.linalg.eigvalsh(torch.tensor(excess, dtype=torch.float64)).min()) >= 0.0


def test_control_a_band_without_beta_is_left():
    f, model = experiment("rbf", 3, 12)
    z = points(9, 200)
    found = jet(model, z)
    off = (gradient(f, z) - found.mean[:, 0, 1:]).abs()
    assert bool((off > 0.3 * found.cov[:, 0].diagonal(dim1=-2, dim2=-1)[:, 1:].sqrt()).any())


@given(seeds(), st.sampled_from(["rbf", "matern-5/2", "matern-3/2"]), st.floats(-4, 1))
def test_taylor_modulus_is_the_norm_of_the_remainder_and_bounds_functions(seed, name, exponent):
    kernel = KERNELS[name]()
    form = kernels.stationary(kernel)
    f = random_function(kernel, -torch.ones(2), torch.ones(2), norm=NORM, generator=generator(seed))
    c = points(seed + 1, 30)
    v = torch.randn(30, 2, dtype=torch.float64, generator=generator(seed + 2)) * 10.0**exponent
    r = form.scaled(v).norm(dim=-1)
    remainder = (f(c + v) - f(c) - (gradient(f, c) * v).sum(-1)).abs()
    modulus = taylor_modulus(form, r)
    assert bool((remainder <= NORM * modulus + 1e-9).all())
    # k(c+v,·) − k(c,·) − ∂_v k(c,·): its squared norm from the closed form, in higher precision
    wide = r.double()
    exact = (
        2 * form.gap(wide.square())
        + wide.square() * form.slope(torch.zeros(()).double())
        - 2 * wide.square() * (form.slope(wide.square()))
    )
    big = wide > 0.05
    assert torch.allclose(modulus[big], (form.variance * exact[big]).sqrt(), rtol=1e-6)


@pytest.mark.parametrize("name", ["rbf", "matern-5/2", "matern-3/2"])
def test_taylor_modulus_grows_and_has_the_stated_order(name):
    form = kernels.stationary(KERNELS[name]())
    r = torch.logspace(-6, 2, 400, dtype=torch.float64)
    modulus = taylor_modulus(form, r)
    assert bool((modulus.diff() >= 0).all())
    if name != "matern-3/2":
        limit = {"rbf": math.sqrt(3) / 2, "matern-5/2": 2.5}[name]
        assert bool((modulus <= limit * math.sqrt(form.variance) * r.square() * (1 + 1e-12)).all())
        assert float(modulus[100] / r[100] ** 2) == pytest.approx(limit * math.sqrt(form.variance), rel=2e-2)


def test_control_a_smaller_constant_is_exceeded_by_the_extremal_function():
    """f = e/‖e‖ attains ‖e‖: with ½ in place of √3/2 the RBF remainder would be called impossible."""
    form = kernels.stationary(kernels.rbf([1.0, 1.0]))
    attained = float(taylor_modulus(form, torch.tensor(0.1).double()))
    assert attained > 0.5 * 0.1**2


def test_which_bounds_speak_of_gradients():
    _, model = experiment("rbf", 1, 8)
    common = {"rkhs_norm": NORM, "subgaussian": NOISE, "delta": 0.1}
    for bound in (Mixture(**common), AbbasiYadkori(**common), Fiedler(**common), ConvexProgram(**common)):
        beta = functional_beta(bound, model)
        assert beta is not None
        assert bool((beta >= Mixture(**common).beta(model) * 0.999999).all()) or isinstance(bound, ConvexProgram)
    assert functional_beta(Constant(value=3.0), model) is None
    assert functional_beta(Lederer(delta=0.1, lower=(-1.0, -1.0), upper=(1.0, 1.0)), model) is None
    unit = GP.create(kernels.rbf([0.7, 1.4]), 1 + 2 / 10, nx=1, nu=1, noise_std=1.0).condition_on(
        points(0, 4), torch.zeros(4, 1).double()
    )
    assert functional_beta(ChowdhuryGopalan(rkhs_norm=1.0, subgaussian=1.0, delta=0.1, max_data=10), unit) is not None
    assert differentiable(model)
    rough = GP.create(kernels.matern(0.5, 1.0), 0.1, nx=1, nu=1, noise_std=0.1)
    assert not differentiable(rough)
