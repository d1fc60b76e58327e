"""The exact GP against textbook formulas and GPyTorch; its precision; what it refuses."""

import math

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL_KERNELS, kernel_names, make_kernel, seeds

from gpsafe.data import Transitions
from gpsafe.models import GP, identity_prior
from gpsafe.models.views import as_gpytorch
from gpsafe.rkhs import kernels

EXACT, SOLVE = 1e-12, 1e-8


def draw(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def make(names: tuple[str, ...], *, dim: int = 2, regularizer: float = 0.05, **options) -> GP:
    chosen = [make_kernel(name, dim) for name in names]
    return GP.create(chosen, regularizer, nx=dim, nu=0, noise_std=0.1, outputs=range(len(names)), **options)


# ------------------------------------------------------------------------------------- the posterior
@given(seeds(), kernel_names(), st.integers(1, 12), st.sampled_from([1e-3, 0.1, 5.0]))
def test_posterior_equals_the_textbook(seed, name, n, regularizer):
    x, y, z = 2 * draw(seed, n, 2), draw(seed + 1, n, 1), 2 * draw(seed + 2, 4, 2)
    model = make((name,), regularizer=regularizer).condition_on(x, y)
    mean, covariance = reference.posterior(model.kernels[0], regularizer, x, y[:, 0], z)
    got, std = model.posterior(z)
    torch.testing.assert_close(got[:, 0], mean, rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(std[:, 0].square(), covariance.diagonal(), rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(model.covariance(z)[0], covariance, rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(model.residual_mean(z), got, rtol=SOLVE, atol=SOLVE)


@given(seeds(), kernel_names(), st.integers(1, 10))
def test_scalar_quantities_equal_the_textbook(seed, name, n):
    x, y = 2 * draw(seed, n, 2), draw(seed + 1, n, 1)
    model = make((name,), regularizer=0.3).condition_on(x, y)
    gram = reference.gram(model.kernels[0], x, x)
    shifted = gram + 0.3 * torch.eye(n, dtype=torch.float64)
    alpha = torch.linalg.solve(shifted, y)[:, 0]
    gain = 0.5 * torch.logdet(torch.eye(n, dtype=torch.float64) + gram / 0.3)
    likelihood = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), shifted).log_prob(y[:, 0])
    torch.testing.assert_close(model.info_gain()[0], gain, rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(model.log_marginal_likelihood()[0], likelihood, rtol=SOLVE, atol=SOLVE)
    norm = (alpha @ gram @ alpha).clamp_min(0).sqrt()
    torch.testing.assert_close(model.posterior_norm()[0], norm, rtol=1e-6, atol=1e-6)
    assert float(model.posterior_norm()[0]) >= float(norm) * (1 - EXACT)


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_gpytorch_exact_gp_agrees(name):
    x, y, z = 2 * draw(0, 30, 2), draw(1, 30, 2), 2 * draw(2, 9, 2)
    model = make((name, "rbf")).condition_on(x, y)
    for j in range(2):
        other = as_gpytorch(model, j)(z)
        torch.testing.assert_close(model.posterior(z)[0][:, j], other.mean, rtol=SOLVE, atol=SOLVE)
        torch.testing.assert_close(model.covariance(z)[j], other.covariance_matrix, rtol=SOLVE, atol=SOLVE)


@pytest.mark.parametrize("name", ALL_KERNELS)
@pytest.mark.parametrize("shape", [(7, 2), (2, 3, 2), (2,), (0, 2), (600, 2)])
def test_the_three_ways_of_evaluation_agree(name, shape):
    model = make((name, "rbf")).condition_on(2 * draw(0, 40, 2), draw(1, 40, 2))
    z = 2 * draw(3, *shape)
    fast = model.posterior(z)
    graph = model.posterior(z.clone().requires_grad_(True))
    small = model.posterior(z, chunk=3)
    for a, b, c in zip(fast, graph, small, strict=True):
        assert a.shape == (*shape[:-1], 2)
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-10)


def test_outputs_that_share_a_kernel_share_one_factorisation():
    kernel = kernels.rbf(1.0)
    model = GP.create(kernel, 0.1, nx=3, nu=0, noise_std=0.1).condition_on(draw(0, 5, 3), draw(1, 5, 3))
    assert len(model._factors) == 1
    separate = GP.create([kernels.rbf(1.0) for _ in range(3)], 0.1, nx=3, nu=0, noise_std=0.1)
    separate = separate.condition_on(draw(0, 5, 3), draw(1, 5, 3))
    assert len(separate._factors) == 3
    for a, b in zip(model.posterior(draw(2, 6, 3)), separate.posterior(draw(2, 6, 3)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=EXACT * 10)


def test_a_model_without_data_is_the_prior():
    model, z = make(("rbf", "linear")), draw(0, 5, 2)
    mean, std = model.posterior(z)
    assert float(mean.abs().max()) == 0.0
    torch.testing.assert_close(std.square(), model.prior_variance(z), rtol=EXACT, atol=EXACT)
    assert float(model.info_gain().abs().max()) == 0.0
    assert float(model.posterior_norm().abs().max()) == 0.0


def test_known_outputs_follow_the_prior_with_no_uncertainty():
    kernel = kernels.rbf(1.0)
    model = GP.create(kernel, 0.1, nx=2, nu=1, noise_std=[0.1, 0.2], outputs=[1], prior=identity_prior)
    data = Transitions(draw(0, 6, 2), draw(1, 6, 1), draw(2, 6, 2))
    prediction = model.condition(data).predict(data.x, data.u)
    assert torch.equal(prediction.mean[:, 0], data.x[:, 0])
    assert float(prediction.std[:, 0].max()) == 0.0
    residual, std = model.condition(data).posterior(data.z)
    torch.testing.assert_close(prediction.mean[:, 1], data.x[:, 1] + residual[:, 0])
    torch.testing.assert_close(prediction.std[:, 1], std[:, 0])


def test_conditioning_only_shrinks_the_std():
    model = make(("matern-5/2",)).condition_on(draw(0, 5, 2), draw(1, 5, 1))
    z = draw(2, 50, 2)
    later = model.condition_on(draw(3, 5, 2), draw(4, 5, 1))
    assert bool((later.posterior(z)[1] <= model.posterior(z)[1] + EXACT).all())
    assert bool((later.info_gain() >= model.info_gain()).all())


# ----------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("regularizer", [1e-2, 1e-6])
def test_rounding_of_the_posterior_stays_within_the_stated_margin(regularizer):
    flint = pytest.importorskip("flint")
    n = 40
    x, y, z = 2 * draw(0, n, 2), draw(1, n, 1), 2 * draw(2, 5, 2)
    model = GP.create(kernels.rbf(1.0), regularizer, nx=2, nu=0, noise_std=0.1, outputs=[0]).condition_on(x, y)
    mean, std = model.posterior(z)
    lam = model.regularizer.tolist()[0]
    # The builder's softplus may move the parameters by an ulp: the oracle takes them from the model.
    form = kernels.stationary(model.kernels[0])
    with flint.ctx.workprec(400):

        def k(a, b):
            square = sum(
                (
                    ((flint.arb(p) - flint.arb(q)) / flint.arb(float(form.lengthscale[0]))) ** 2
                    for p, q in zip(a, b, strict=True)
                ),
                flint.arb(0),
            )
            return flint.arb(form.variance) * (-square / 2).exp()

        points, queries = x.tolist(), z.tolist()
        matrix = flint.arb_mat(
            [[k(a, b) + (flint.arb(lam) if i == j else 0) for j, b in enumerate(points)] for i, a in enumerate(points)]
        )
        columns = flint.arb_mat([[k(a, q) for q in queries] for a in points])
        solved = matrix.solve(columns)
        for q in range(len(queries)):
            true_mean = sum((solved[i, q] * flint.arb(float(y[i, 0])) for i in range(n)), flint.arb(0))
            true_var = k(queries[q], queries[q]) - sum((solved[i, q] * columns[i, q] for i in range(n)), flint.arb(0))
            assert abs(float(flint.arb(float(std[q, 0])) ** 2 - true_var)) < 1e-12
            assert abs(float(flint.arb(float(mean[q, 0])) - true_mean)) < 1e-8


def test_points_far_from_the_origin_lose_nothing():
    # offsets and inputs on a binary grid: the shifted differences are exactly the same
    x, z = (draw(0, 20, 2) * 64).round() / 64, (draw(2, 6, 2) * 64).round() / 64
    y = draw(1, 20, 1)
    for name in ("rbf", "matern-1/2", "matern-3/2", "matern-5/2"):
        near = make((name,)).condition_on(x, y)
        far = make((name,)).condition_on(x + 2.0**20, y)
        for a, b in zip(near.posterior(z), far.posterior(z + 2.0**20), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_control_an_inverse_of_k_is_less_precise_than_our_factor():
    x, y, z = 2 * draw(0, 60, 1), draw(1, 60, 1), 2 * draw(2, 20, 1)
    model = GP.create(kernels.rbf(1.0), 1e-11, nx=1, nu=0, noise_std=0.1).condition_on(x, y)
    cross = kernels.cross(model.kernels[0], x, z)
    inverse = torch.linalg.inv(model._factors[0].lower @ model._factors[0].lower.mT)
    naive = 1 - (cross * (inverse @ cross)).sum(0)
    assert float((naive - model.posterior(z)[1][:, 0].square()).abs().max()) > 1e-9


# ----------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_gradients_match_finite_differences(name):
    model = make((name, "rbf")).condition_on(2 * draw(0, 25, 2), draw(1, 25, 2))
    z, h = draw(3, 6, 2), 1e-6
    slopes = model.gradient(z)
    for axis in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[axis] = h
        for slope, above, below in zip(slopes, model.posterior(z + step), model.posterior(z - step), strict=True):
            torch.testing.assert_close(slope[..., axis], (above - below) / (2 * h), rtol=1e-5, atol=1e-6)


def test_gradients_of_restricted_kernels_vanish_in_the_other_dimensions():
    model = make(("rbf-restricted",)).condition_on(draw(0, 10, 2), draw(1, 10, 1))
    mean, std = model.gradient(draw(2, 5, 2))
    assert float(mean[..., 0].abs().max()) == 0.0
    assert float(std[..., 0].abs().max()) == 0.0
    assert float(mean[..., 1].abs().max()) > 0.0


@pytest.mark.parametrize("name", ["rbf", "matern-3/2", "linear"])
def test_function_transforms_agree_with_the_gradient(name):
    model = make((name,)).condition_on(draw(0, 10, 2), draw(1, 10, 1))
    z = draw(2, 5, 2)
    jacobian = torch.vmap(torch.func.jacrev(lambda p: model.posterior(p.unsqueeze(0))[0][0]))(z)
    torch.testing.assert_close(jacobian, model.gradient(z)[0], rtol=1e-7, atol=1e-9)


def test_gradient_of_the_std_is_finite_where_the_std_vanishes():
    model = GP.create(kernels.linear(), 0.1, nx=2, nu=0, noise_std=0.1, outputs=[0])
    model = model.condition_on(draw(0, 4, 2), draw(1, 4, 1))
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    model.posterior(z)[1].sum().backward()
    assert float(z.grad.abs().max()) == 0.0
    assert float(model.gradient(z)[1].abs().max()) == 0.0


# ------------------------------------------------------------------------------------------- refusals
def test_nan_queries_never_come_back_as_certain():
    model = make(("rbf",)).condition_on(draw(0, 4, 2), draw(1, 4, 1))
    for z in (torch.full((1, 2), math.nan, dtype=torch.float64), torch.tensor([[0.0, math.inf]], dtype=torch.float64)):
        for query in (z, z.clone().requires_grad_(True)):
            std = model.posterior(query)[1]
            assert not bool((std < 0.5).any())


def test_float32_queries_are_computed_in_float64():
    model, z = make(("rbf",)).condition_on(draw(0, 4, 2), draw(1, 4, 1)), draw(2, 3, 2).float()
    assert torch.equal(model.posterior(z)[0], model.posterior(z.double())[0])


def test_data_that_carry_gradients_are_detached():
    y = draw(1, 4, 1).requires_grad_(True)
    model = make(("rbf",)).condition_on(draw(0, 4, 2).requires_grad_(True), y)
    assert not model.posterior(draw(2, 3, 2))[0].requires_grad


def test_frozen_hyperparameters_ignore_later_changes_of_the_source():
    kernel = kernels.rbf(1.0)
    model = GP.create(kernel, 0.1, nx=2, nu=0, noise_std=0.1).condition_on(draw(0, 4, 2), draw(1, 4, 2))
    before = model.posterior(draw(2, 3, 2))
    kernel.base_kernel.lengthscale = 9.0
    torch.testing.assert_close(model.posterior(draw(2, 3, 2)), before, rtol=0, atol=0)


GOOD = {"nx": 2, "nu": 0, "noise_std": 0.1}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GP.create(kernels.rbf(1.0), 0.0, **GOOD), "regularizer > 0"),
        (lambda: GP.create(kernels.rbf(1.0), math.nan, **GOOD), "finite regularizer"),
        (lambda: GP.create(kernels.rbf(1.0), [0.1] * 3, **GOOD), "scalar or of length 2"),
        (lambda: GP.create(kernels.rbf(1.0), 0.1, nx=2, nu=0, noise_std=-0.1), "noise_std >= 0"),
        (lambda: GP.create(kernels.rbf(1.0), 0.1, nx=2, nu=0, noise_std=[0.1] * 3), "noise_std scalar or"),
        (lambda: GP.create(kernels.rbf(1.0), 0.1, nx=0, nu=0, noise_std=0.1), "nx >= 1"),
        (lambda: GP.create(kernels.rbf(1.0), 0.1, **GOOD, outputs=[2]), "outputs as integers in 0..1"),
        (lambda: GP.create(kernels.rbf(1.0), 0.1, **GOOD, outputs=[]), "distinct outputs in 0..1"),
        (lambda: GP.create([kernels.rbf(1.0)], 0.1, **GOOD), "2 kernels"),
        (lambda: GP.create(kernels.rbf(1.0), 0.1, **GOOD, mode="empirical"), "mode in"),
        (lambda: GP.create(kernels.rbf([1.0, 2.0, 3.0]), 0.1, **GOOD), "a kernel on 2 inputs"),
        (lambda: GP.create(kernels.rbf(1.0, dims=[5]), 0.1, **GOOD), "a kernel on 2 inputs"),
    ],
)
def test_bad_models_are_refused(build, message):
    with pytest.raises(ValueError, match=f"GP: expected.*{message}"):
        build()


@pytest.mark.parametrize(
    ("z", "y", "message"),
    [
        ([[math.nan, 0.0]], [[0.0]], "finite z"),
        ([[0.0, 0.0]], [[math.inf]], "finite y"),
        ([[0.0, 0.0]], [[0.0, 0.0]], "y of shape"),
        ([[0.0, 0.0, 0.0]], [[0.0]], "z of shape"),
        ([0.0, 0.0], [[0.0]], "z of shape"),
        (torch.zeros(0, 2), torch.zeros(0, 1), "non-empty z"),
    ],
)
def test_bad_data_are_refused(z, y, message):
    with pytest.raises(ValueError, match=f"GP.condition: expected {message}"):
        make(("rbf",)).condition_on(torch.as_tensor(z, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64))


def test_queries_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"GP.posterior: expected z"):
        make(("rbf",)).posterior(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"GP.posterior: expected real"):
        make(("rbf",)).posterior(torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"GP.gradient: expected"):
        make(("rbf",)).gradient(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"GP.covariance: expected"):
        make(("rbf",)).covariance(torch.zeros(2, dtype=torch.float64))


def test_plain_regression_is_the_long_form_with_one_output():
    kernel, z = make_kernel("rbf", 3), torch.rand(6, 3, dtype=torch.float64)
    short = GP.regression(kernel, dim=3, noise_std=0.2)
    long = GP.create(kernel, 0.2 * 0.2, nx=3, nu=0, noise_std=0.2, outputs=[0])
    y = z.sum(-1, keepdim=True)
    for a, b in zip(short.condition_on(z, y).posterior(z), long.condition_on(z, y).posterior(z), strict=True):
        assert torch.equal(a, b) and a.shape == (6, 1)
    assert short.mode == long.mode == "theory"
    for bad in (0.0, -1.0, [0.1, 0.2], True):
        with pytest.raises(ValueError, match="noise_std"):
            GP.regression(kernel, dim=3, noise_std=bad)
