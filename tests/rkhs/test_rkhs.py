"""Functions of known RKHS norm: the norm is exact, and nothing in the ball escapes it."""

import math
import pickle

import flint
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import kernel_names, make_kernel, seeds

from gpsafe import rkhs
from gpsafe.rkhs import kernels

EXACT, SOLVE = 1e-12, 1e-8
LOW, HIGH = torch.full((2,), -2.0, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)


def random(name: str, seed: int, norm: float = 1.7, count: int = 6) -> rkhs.RKHSFunction:
    generator = torch.Generator().manual_seed(seed)
    return rkhs.random_function(make_kernel(name, 2), LOW, HIGH, norm=norm, generator=generator, num_centers=count)


def exact_norm(f: rkhs.RKHSFunction) -> "flint.arb":
    """√(αᵀKα) of a stationary kernel in ball arithmetic, from the float64 centres, weights and
    hyperparameters.
    """
    form = kernels.stationary(f.kernel)
    z = [[flint.arb(v) for v in row] for row in f.centers.tolist()]
    scales = [flint.arb(v) for v in form.lengthscale.expand(f.centers.shape[1]).tolist()]
    weights = [flint.arb(w) for w in f.weights.tolist()]
    total = flint.arb(0)
    for i, a in enumerate(z):
        for j, b in enumerate(z):
            gaps = [(p - q) / s for p, q, s in zip(a, b, scales, strict=True)]  # exactly 0 on the diagonal
            square = sum((gap * gap for gap in gaps), flint.arb(0))
            if math.isinf(form.nu):
                value = (-square / 2).exp()
            else:
                r = (2 * flint.arb(form.nu) * square).sqrt()
                value = {0.5: flint.arb(1), 1.5: 1 + r, 2.5: 1 + r + r * r / 3}[form.nu] * (-r).exp()
            total += weights[i] * weights[j] * value
    return (flint.arb(form.variance) * total).sqrt()


STATIONARY = ("rbf", "rbf-isotropic", "matern-1/2", "matern-3/2", "matern-5/2")


@given(seeds(), st.sampled_from(STATIONARY), st.floats(0.01, 100))
def test_norm_of_a_random_function_is_exact(seed, name, norm):
    f = random(name, seed, norm)
    with flint.ctx.workprec(160):
        truth = exact_norm(f)
        assert float(truth) == pytest.approx(norm, rel=1e-10)
        assert f.norm == pytest.approx(float(truth), rel=1e-10)
        assert truth < flint.arb(f.norm_upper)


@pytest.mark.parametrize("name", STATIONARY)
@pytest.mark.parametrize("ridge", [1e-6, 1e-12])
def test_norm_upper_covers_rounding_of_ill_conditioned_interpolants(name, ridge):
    z = rkhs.grid(LOW, HIGH, (5, 5))
    f = rkhs.interpolate(make_kernel(name, 2), z, torch.sin(3 * z[:, 0]) * z[:, 1].abs(), ridge=ridge)
    with flint.ctx.workprec(160):
        truth = exact_norm(f)
        assert truth < flint.arb(f.norm_upper)
        assert f.norm_upper <= 1.01 * float(truth) + 1e-3


def test_control_the_computed_norm_alone_is_not_an_upper_bound():
    below = 0
    with flint.ctx.workprec(160):
        for seed in range(20):
            f = random("rbf", seed)
            below += bool(flint.arb(f.norm) < exact_norm(f))
    assert below > 0


@given(seeds(), kernel_names())
def test_values_stay_within_norm_times_prior_width(seed, name):
    f = random(name, seed)
    z = rkhs.grid(LOW, HIGH, (15, 15))
    assert bool((f(z).abs() <= f.norm_upper * kernels.diagonal(f.kernel, z).sqrt() + EXACT).all())


@given(seeds(), kernel_names())
def test_norm_of_every_kernel_is_the_requested_one(seed, name):
    assert random(name, seed, 0.4).norm == pytest.approx(0.4, rel=1e-9)


@given(seeds(), kernel_names())
def test_evaluation_is_the_sum_of_sections_in_any_batch_shape(seed, name):
    f = random(name, seed)
    z = torch.rand(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = sum(
        w * kernels.cross(f.kernel, c[None], z.reshape(-1, 2))[0] for w, c in zip(f.weights, f.centers, strict=True)
    )
    scale = float(f.weights.abs().sum()) * 10
    torch.testing.assert_close(f(z), expected.reshape(2, 3), rtol=0, atol=EXACT * scale)


def test_functions_are_reproducible_differentiable_and_picklable():
    f, g = random("rbf", 5), random("rbf", 5)
    z = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(f(z), g(z))
    f(z).sum().backward()
    assert float(z.grad.abs().max()) > 0
    assert torch.equal(pickle.loads(pickle.dumps(f))(z), f(z))


def test_interpolant_passes_through_its_values():
    z = rkhs.grid(LOW, HIGH, (5, 5))
    values = torch.sin(z).sum(-1)
    f = rkhs.interpolate(make_kernel("matern-3/2", 2), z, values)
    torch.testing.assert_close(f(z), values, rtol=0, atol=SOLVE)


def test_interpolation_has_minimal_norm():
    f = random("rbf", 0)
    g = rkhs.interpolate(f.kernel, f.centers[:5], f(f.centers[:5]))
    assert g.norm <= f.norm_upper


def test_grid_covers_the_box_with_its_corners():
    z = rkhs.grid(LOW, HIGH, (3, 4))
    assert z.shape == (12, 2)
    assert torch.equal(z.amin(0), LOW)
    assert torch.equal(z.amax(0), HIGH)
    assert rkhs.grid(LOW[:1], HIGH[:1], (5,)).shape == (5, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: random("rbf", 0, -1.0), "norm > 0"),
        (lambda: random("rbf", 0, count=0), "num_centers >= 1"),
        (lambda: random("rbf", 0).scaled_to(math.nan), "finite norm"),
        (lambda: rkhs.RKHSFunction(kernels.rbf(1.0), LOW, LOW), "centers of shape"),
        (lambda: rkhs.RKHSFunction(kernels.rbf(1.0), LOW[None], LOW), "weights of shape"),
        (lambda: random("rbf", 0)(torch.zeros(3, 5, dtype=torch.float64)), r"z of shape \(\*b, 2\)"),
        (lambda: rkhs.interpolate(kernels.rbf(1.0), LOW[None], LOW), "values of shape"),
        (lambda: rkhs.interpolate(kernels.rbf(1.0), LOW[None], LOW[:1], ridge=0.0), "ridge > 0"),
        (lambda: rkhs.RKHSFunction(kernels.rbf(1.0), LOW[None], torch.zeros(1)).scaled_to(1.0), "non-zero"),
        (
            lambda: rkhs.random_function(kernels.rbf(1.0), HIGH, LOW, norm=1.0, generator=torch.Generator()),
            "lower <= upper",
        ),
        (lambda: rkhs.grid(LOW, HIGH, (0, 2)), "counts >= 1"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
