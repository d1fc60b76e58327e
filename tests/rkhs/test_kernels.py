"""Kernels agree with gpytorch; the kernel metric is exact at every scale and is a Lipschitz modulus."""

import copy
import inspect
import math

import gpytorch
import mpmath
import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALL_KERNELS, CLOSED_KERNELS, GENERIC_KERNELS, kernel_names, make_kernel, seeds

from gpsafe import rkhs
from gpsafe.rkhs import kernels

EXACT = 1e-12
ROUNDING = 1e-14
PROFILES = (0.5, 1.5, 2.5, math.inf)


def points(seed: int, count: int, dim: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * (2 * torch.rand(count, dim, dtype=torch.float64, generator=generator) - 1)


def unit(nu: float) -> kernels.Stationary:
    return kernels.Stationary(nu, torch.ones(1, dtype=torch.float64), 1.0)


# -------------------------------------------------------------------------------------- evaluation
@given(seeds(), kernel_names(), st.integers(1, 4))
def test_gram_matrix_equals_gpytorch(seed, name, dim):
    kernel = make_kernel(name, dim)
    x, z = points(seed, 5, dim), points(seed + 1, 4, dim)
    torch.testing.assert_close(kernels.cross(kernel, x, z), reference.gram(kernel, x, z), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_diagonal_is_the_diagonal_of_the_gram_matrix(name):
    kernel, z = make_kernel(name, 3), points(0, 6, 3)
    expected = kernels.cross(kernel, z, z).diagonal()
    torch.testing.assert_close(kernels.diagonal(kernel, z), expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(
        kernels.diagonal(kernel, z.reshape(2, 3, 3)), expected.reshape(2, 3), rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_leading_batch_dimensions_are_a_loop(name):
    kernel, x, z = make_kernel(name, 2), points(0, 12, 2).reshape(3, 4, 2), points(1, 6, 2).reshape(3, 2, 2)
    looped = torch.stack([kernels.cross(kernel, a, b) for a, b in zip(x, z, strict=True)])
    torch.testing.assert_close(kernels.cross(kernel, x, z), looped, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", CLOSED_KERNELS)
def test_usual_kernels_have_a_closed_form(name):
    assert kernels.closed_form(make_kernel(name, 3)) is not None


@pytest.mark.parametrize("name", GENERIC_KERNELS)
def test_other_kernels_go_through_gpytorch(name):
    kernel = make_kernel(name, 3)
    assert kernels.closed_form(kernel) is None
    assert kernels.stationary(kernel) is None
    assert kernels.metric_over_box(kernel, torch.ones(3, dtype=torch.float64)) is None


def test_restricted_dimensions_compose_through_scales_and_sums():
    inner = gpytorch.kernels.RBFKernel(active_dims=(1,)) + gpytorch.kernels.LinearKernel(active_dims=(0,))
    outer = gpytorch.kernels.ScaleKernel(inner, active_dims=(3, 1)) + gpytorch.kernels.MaternKernel(active_dims=(2,))
    kernel = kernels.freeze(gpytorch.kernels.ScaleKernel(outer))
    form = kernels.closed_form(kernel)
    assert form is not None
    x, z = points(0, 4, 4), points(1, 3, 4)
    torch.testing.assert_close(kernels.cross(kernel, x, z), reference.gram(kernel, x, z), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("nu", PROFILES)
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("outlier", [0.0, 1e7])
def test_gram_matrix_is_precise_far_from_the_origin_and_beside_outliers(nu, offset, outlier):
    form, x = unit(nu), points(3, 5, 2) + offset
    z = torch.cat([points(4, 4, 2) + offset, torch.full((1, 2), offset + outlier, dtype=torch.float64)])
    exact = torch.tensor(
        [
            [
                float(
                    reference.profile(
                        nu, sum((mpmath.mpf(float(p)) - mpmath.mpf(float(q))) ** 2 for p, q in zip(a, b, strict=True))
                    )
                )
                for b in z
            ]
            for a in x
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(form.gram(x, z), exact, rtol=0, atol=EXACT)


@given(seeds(), st.sampled_from(PROFILES), st.sampled_from([0.1, 1.0, 10.0, 60.0]))
def test_entry_error_covers_the_rounding_of_gram_entries(seed, nu, spread):
    x, z = points(seed, 4, 3, spread), points(seed + 1, 4, 3, spread)
    form = kernels.ClosedForm((unit(nu),))
    bound = kernels.entry_error(form, x)
    computed = form.gram(x, z)
    for i in range(4):
        for j in range(4):
            square = sum((mpmath.mpf(float(p)) - mpmath.mpf(float(q))) ** 2 for p, q in zip(x[i], z[j], strict=True))
            assert abs(mpmath.mpf(float(computed[i, j])) - reference.profile(nu, square)) <= bound
    assert bound < 1e-8


def square(d):
    return (d**2).sum(-1)


PI = np.longdouble("3.14159265358979323846")  # np.pi would err by 1e-12 in the phase of d = 1e4


def periodic_exact(d, x):
    return np.exp(-2 * square(np.sin(PI * d / np.longdouble(1.3))) / np.longdouble(0.7))


def rbf_linear_exact(d, x):
    length = np.sqrt(square(x))
    return np.exp(-0.5 * square(d)) * (x @ x.T) / (length[:, None] * length)


def matern_rbf_exact(d, x):
    return np.exp(-np.sqrt(square(d)) - square(d) / 8)


def quadratic_exact(d, x):
    return (1 + square(d / np.longdouble([0.5, 1.0, 2.0])) / 4) ** -2


def quadratic_periodic_exact(d, x):
    return (1 + square(d[..., 1:2]) / 4) ** -2 * np.exp(-square(np.sin(PI * d[..., :1] / np.longdouble(1.3))))


def quadratic(alpha=2.0, lengthscale=1.0, *, dims=None):
    """As gpytorch has it, with numbers that float32 has too."""
    scales = torch.atleast_1d(torch.as_tensor(lengthscale, dtype=torch.float64))
    kernel = gpytorch.kernels.RQKernel(
        ard_num_dims=scales.numel(),
        active_dims=dims,
        lengthscale_constraint=kernels.exact(),
        alpha_constraint=kernels.exact(),
    ).double()
    kernel.lengthscale, kernel.alpha = scales, alpha
    return kernels.freeze(kernel)


FOREIGN = {
    "rational quadratic": (quadratic(lengthscale=[0.5, 1.0, 2.0]), quadratic_exact),
    "rational quadratic × periodic": (
        kernels.product(quadratic(dims=(1,)), kernels.periodic(1.3, 2.0, dims=(0,))),
        quadratic_periodic_exact,
    ),
    "periodic": (kernels.periodic(1.3, 0.7, 0.9), periodic_exact),
    "rbf × linear": (kernels.product(kernels.rbf(1.0), kernels.linear(1.0)), rbf_linear_exact),
    "matern-1/2 × rbf": (kernels.product(kernels.matern(0.5, 1.0), kernels.rbf(2.0)), matern_rbf_exact),
}


@pytest.mark.parametrize("where", ["spread", "clustered", "outlier"])
@pytest.mark.parametrize("spread", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("name", FOREIGN)
def test_entry_error_covers_products_periodic_and_rational_quadratic_kernels(name, spread, where):
    """Against extended precision, whole and in rows, however far from 0, clustered or beside one point far away.

    gpytorch takes the distances of a rational quadratic kernel from products, so that one point at 10⁵ length-scales cost all
    others eight digits. Margins knew, but not those of the convex program: its interval ended 4·10⁻⁷ inside the exact one.
    """
    kernel, exact = FOREIGN[name]
    z = spread * torch.rand(120, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = z * 1e-3 + spread if where == "clustered" else z
    if where == "outlier":
        z = torch.cat([z[:-1] / spread, 10 * z[-1:]])
    wide = z.numpy().astype(np.longdouble)
    expected = exact(wide[:, None] - wide, wide)
    size = kernels.diagonal(kernel, z).sqrt()
    rows = torch.cat([kernels.cross(kernel, z[i : i + 1], z) for i in range(len(z))])
    for gram in (kernels.cross(kernel, z, z), rows):
        error = float(np.abs((gram / torch.outer(size, size)).numpy() - expected).max())
        assert error <= kernels.entry_error(kernel, z)
    assert kernels.entry_error(kernel, z) < 1e-13


@pytest.mark.parametrize("reach", [1e2, 1e5, 1e8])
def test_entry_error_of_a_periodic_kernel_holds_however_far_from_the_data_it_is_asked(reach):
    """A quotient by the period errs by u of itself: the phase of z = 1e8 by 1e-8."""
    kernel = kernels.periodic(1.3, 0.1)
    x = torch.rand(20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = reach * (1 + torch.rand(20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    with mpmath.workdps(40):
        for i, row in enumerate(kernels.cross(kernel, x, z).tolist()):
            for j, got in enumerate(row):
                phase = mpmath.pi * (mpmath.mpf(x[i].item()) - mpmath.mpf(z[j].item())) / mpmath.mpf(1.3)
                exact = mpmath.exp(-2 * mpmath.sin(phase) ** 2 / mpmath.mpf(0.1))
                assert abs(got - exact) <= kernels.entry_error(kernel, x)


PAIRED = {
    "periodic": (kernels.periodic(1.3, 0.01), lambda d: 200 * mpmath.sin(mpmath.pi * d / mpmath.mpf(1.3)) ** 2),
    "rbf × rbf": (kernels.product(kernels.rbf(0.5), kernels.rbf(0.25)), lambda d: 10 * d * d),
}


@pytest.mark.parametrize("step", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("offset", [0.0, 1e6, 1e8])
@pytest.mark.parametrize("name", PAIRED)
def test_metric_without_a_closed_form_is_rounded_up_far_from_the_origin_too(name, offset, step):
    kernel, exponent = PAIRED[name]
    x = torch.tensor([[offset + 0.37]], dtype=torch.float64)
    z = x + step
    with mpmath.workdps(50):
        scale = float(kernels.diagonal(kernel, x)[0])
        gap = mpmath.mpf(z.item()) - mpmath.mpf(x.item())
        exact = mpmath.sqrt(2 * scale * (1 - mpmath.exp(-exponent(gap))))
        assert exact <= float(kernels.metric(kernel, x, z)[0]) <= exact + mpmath.mpf(1e-6)


@pytest.mark.parametrize("nu", [1.5, 2.5, math.inf])
def test_slope_is_minus_twice_the_derivative_of_the_profile(nu):
    square = torch.linspace(0.01, 30, 50, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(unit(nu).profile(square).sum(), square)
    torch.testing.assert_close(unit(nu).slope(square.detach()), -2 * derivative, rtol=1e-10, atol=EXACT)


def test_slope_of_matern_half_is_refused():
    with pytest.raises(ValueError, match="not differentiable"):
        unit(0.5).slope(torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("nu", PROFILES)
def test_gradient_of_the_gram_matrix_is_finite_at_coinciding_points(nu):
    x = points(0, 3, 2).requires_grad_(True)
    unit(nu).gram(x, x.detach()).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


# ------------------------------------------------------------------------------------------ metric
@pytest.mark.parametrize("nu", PROFILES)
def test_metric_is_exact_over_180_decades(nu):
    with mpmath.workdps(400):
        for exponent in range(-150, 31):
            for mantissa in (1.0, 3.7):
                square = (mantissa * 10.0**exponent) ** 2
                exact = mpmath.sqrt(2 * (1 - reference.profile(nu, mpmath.mpf(square))))
                got = float(unit(nu).metric(torch.tensor(square, dtype=torch.float64)))
                assert abs(mpmath.mpf(got) / exact - 1) < ROUNDING


def test_control_the_textbook_metric_is_caught_near_zero():
    square = torch.tensor(1e-20, dtype=torch.float64)
    naive = (2 - 2 * unit(1.5).profile(square)).clamp_min(0).sqrt()
    assert abs(float(naive / unit(1.5).metric(square)) - 1) > 0.1


def test_metric_of_near_points_far_from_the_origin_subtracts_before_it_scales():
    kernel = kernels.rbf(0.3)
    x = torch.tensor([[1e8]], dtype=torch.float64)
    z = x + 2.0**-20
    assert float(kernels.metric(kernel, x, z)) == pytest.approx(2.0**-20 / 0.3, rel=1e-10)


@given(seeds(), kernel_names())
def test_metric_is_the_kernel_distance(seed, name):
    kernel, x, z = make_kernel(name, 2), points(seed, 6, 2), points(seed + 1, 6, 2)
    square = torch.stack(
        [
            reference.gram(kernel, a[None], a[None])
            + reference.gram(kernel, b[None], b[None])
            - 2 * reference.gram(kernel, a[None], b[None])
            for a, b in zip(x, z, strict=True)
        ]
    ).reshape(-1)
    torch.testing.assert_close(kernels.metric(kernel, x, z), square.clamp_min(0).sqrt(), rtol=1e-9, atol=1e-7)


@given(seeds(), kernel_names(), st.floats(-7, 0.5))
def test_functions_of_norm_b_are_lipschitz_in_the_metric(seed, name, exponent):
    kernel, generator = make_kernel(name, 2), torch.Generator().manual_seed(seed)
    low, high = torch.full((2,), -2.0, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    f = rkhs.random_function(kernel, low, high, norm=1.5, generator=generator, num_centers=8)
    x = points(seed, 30, 2)
    z = x + 10.0**exponent * points(seed + 1, 30, 2, 1.0)
    gap = (f(x) - f(z)).abs()
    rounding = (
        4e-15
        * float(f.weights.abs().sum())
        * float(kernels.diagonal(kernel, x).max() + kernels.diagonal(kernel, z).max())
    )
    assert bool((gap <= 1.5 * kernels.metric(kernel, x, z) + rounding).all())


def test_control_half_the_norm_is_not_a_lipschitz_constant():
    kernel = make_kernel("rbf", 2)
    z = points(0, 2, 2)
    weights = torch.tensor([1.0, -1.0], dtype=torch.float64)
    f = rkhs.RKHSFunction(kernel, z, weights).scaled_to(1.0)  # k(z₀, ·) − k(z₁, ·) attains the modulus at (z₀, z₁)
    gap, distance = (f(z[0]) - f(z[1])).abs(), kernels.metric(kernel, z[0], z[1])
    assert float(gap) == pytest.approx(float(distance), rel=1e-9)
    assert float(gap) > 0.5 * float(distance)


@given(seeds(), kernel_names(CLOSED_KERNELS))
def test_metric_over_box_is_the_supremum(seed, name):
    kernel = make_kernel(name, 3)
    center, radius = points(seed, 1, 3)[0], points(seed + 1, 1, 3, 1.0)[0].abs()
    sup = kernels.metric_over_box(kernel, radius)
    inside = center + radius * points(seed + 2, 200, 3, 1.0)
    assert bool((kernels.metric(kernel, center.expand(200, 3), inside) <= sup * (1 + 1e-9) + 1e-14).all())
    assert float(kernels.metric(kernel, center, center + radius)) == pytest.approx(float(sup), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", CLOSED_KERNELS)
def test_control_a_smaller_box_does_not_cover(name):
    kernel, radius = make_kernel(name, 3), torch.full((3,), 0.5, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    assert float(kernels.metric(kernel, zero, zero + radius)) > float(kernels.metric_over_box(kernel, 0.9 * radius))


# ------------------------------------------------------------------------------- builders, freezing
def test_frozen_kernel_is_a_copy_without_gradients():
    source = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    frozen = kernels.freeze(source)
    source.outputscale = 7.0
    assert float(frozen.outputscale) != pytest.approx(7.0)
    assert all(not p.requires_grad and p.dtype == torch.float64 for p in frozen.parameters())
    assert copy.deepcopy(frozen) is not frozen


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kernels.rbf(0.0), "lengthscale > 0"),
        (lambda: kernels.rbf([1.0, math.nan]), "finite lengthscale"),
        (lambda: kernels.rbf(1.0, -1.0), "variance > 0"),
        (lambda: kernels.matern(2.0, 1.0), "nu in"),
        (lambda: kernels.linear(0.0), "variance > 0"),
        (lambda: kernels.rbf([1.0, 2.0, 3.0], dims=[0, 1]), "one value, or one for each"),
        (lambda: kernels.rbf(1.0, dims=[0, 0]), "distinct dims"),
        (lambda: kernels.additive(), "at least one kernel"),
        (lambda: kernels.product(), "at least one kernel"),
        (lambda: kernels.periodic(0.0, 1.0), "period > 0"),
        (lambda: kernels.periodic([1.0, 2.0, 3.0], [1.0, 2.0]), "as many periods"),
    ],
)
def test_bad_kernel_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# ------------------------------------------------------------------ parameters are what was asked for
def parameters(kernel) -> dict[str, torch.Tensor]:
    """Every hyperparameter as gpytorch reads it, by name."""
    raw = [name for name, _ in kernel.named_parameters()]
    found = {}
    for name in raw:
        owner, _, leaf = name.rpartition(".")
        found[leaf.removeprefix("raw_")] = getattr(kernel.get_submodule(owner), leaf.removeprefix("raw_")).reshape(-1)
    return found


FAMILIES = {  # family: (build from numbers, the parameter each number must be)
    "rbf": (lambda v: kernels.rbf(v[:2], v[2]), {"lengthscale": (0, 2), "outputscale": (2, 3)}),
    "rbf-restricted": (lambda v: kernels.rbf(v[0], v[1], dims=[1]), {"lengthscale": (0, 1), "outputscale": (1, 2)}),
    "matern-1/2": (lambda v: kernels.matern(0.5, v[:2], v[2]), {"lengthscale": (0, 2), "outputscale": (2, 3)}),
    "matern-3/2": (lambda v: kernels.matern(1.5, v[:2], v[2]), {"lengthscale": (0, 2), "outputscale": (2, 3)}),
    "matern-5/2": (lambda v: kernels.matern(2.5, v[:2], v[2]), {"lengthscale": (0, 2), "outputscale": (2, 3)}),
    "linear": (lambda v: kernels.linear(v[0]), {"variance": (0, 1)}),
    "linear-ard": (lambda v: kernels.linear(v[:3]), {"variance": (0, 3)}),
    "periodic": (
        lambda v: kernels.periodic(v[:2], v[2:4], v[4]),
        {"period_length": (0, 2), "lengthscale": (2, 4), "outputscale": (4, 5)},
    ),
    "additive": (
        lambda v: kernels.additive(kernels.rbf(v[0], v[1]), kernels.linear(v[2])),
        {"lengthscale": (0, 1), "outputscale": (1, 2), "variance": (2, 3)},
    ),
    "product": (
        lambda v: kernels.product(kernels.rbf(v[0], v[1]), kernels.linear(v[2])),
        {"lengthscale": (0, 1), "outputscale": (1, 2), "variance": (2, 3)},
    ),
}


def test_every_builder_is_asked_for_its_parameters():
    hints = {
        name: inspect.signature(f).return_annotation for name, f in inspect.getmembers(kernels, inspect.isfunction)
    }
    builders = {name for name, hint in hints.items() if hint in ("Kernel", gpytorch.kernels.Kernel) and name[0] != "_"}
    assert builders - {"freeze", "trainable", "as_fitted"} == {name.split("-")[0] for name in FAMILIES}


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=5))
def test_every_parameter_is_the_number_that_was_given(name, values):
    build, where = FAMILIES[name]
    got = parameters(build(values))
    assert set(got) == set(where)
    for parameter, (first, last) in where.items():
        assert got[parameter].tolist() == values[first:last]


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_closed_forms_read_the_numbers_that_were_given(scale, variance):
    form = kernels.stationary(kernels.rbf(scale, variance))
    assert (float(form.lengthscale), form.variance) == (scale, variance)
    assert kernels.closed_form(kernels.linear(variance)).parts[0].variance.tolist() == [variance]


def test_control_gpytorch_itself_rounds_numbers():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    kernel.outputscale = 0.7
    kernel.base_kernel.lengthscale = torch.tensor(21.0, dtype=torch.float64)
    assert abs(kernel.outputscale.item() - 0.7) > 1e-9
    assert abs(kernel.base_kernel.lengthscale.item() - 21.0) > 1e-10


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_trainable_kernels_have_the_same_values_and_stay_positive_under_any_step(name):
    kernel = FAMILIES[name][0]([0.7, 1e-3, 2.3, 0.4, 1.1])
    free = kernels.trainable(kernel)
    for parameter, value in parameters(kernel).items():
        torch.testing.assert_close(parameters(free)[parameter], value, rtol=1e-12, atol=0)
    with torch.no_grad():
        for raw in free.parameters():
            assert raw.requires_grad
            raw -= 5.0
    assert all(bool((value > 0).all()) for value in parameters(free).values())
    assert not any(raw.requires_grad for raw in kernel.parameters())


# ---------------------------------------------------------------------------- suprema over boxes
@given(seeds(), kernel_names(CLOSED_KERNELS))
def test_variance_over_box_is_the_supremum_and_is_attained(seed, name):
    kernel = make_kernel(name, 3)
    center, radius = points(seed, 1, 3)[0], points(seed + 1, 1, 3, 1.0)[0].abs()
    sup = float(kernels.variance_over_box(kernel, center, radius))
    inside = center + radius * points(seed + 2, 200, 3, 1.0)
    farthest = center + torch.where(center < 0, -radius, radius)
    assert float(kernels.diagonal(kernel, inside).max()) <= sup
    assert float(kernels.diagonal(kernel, farthest)) == pytest.approx(sup, rel=1e-12)
    assert sup <= kernels.variance_everywhere(kernel) * (1 + 1e-13)


def test_suprema_exist_where_they_are_known():
    unknown = [
        name
        for name in ALL_KERNELS
        if kernels.variance_over_box(make_kernel(name, 2), torch.zeros(2), torch.ones(2)) is None
    ]
    assert set(unknown) == set(GENERIC_KERNELS)
    infinite = {name for name in CLOSED_KERNELS if math.isinf(kernels.variance_everywhere(make_kernel(name, 2)))}
    assert infinite == {"linear", "additive"}


@pytest.mark.parametrize("dims", [(0, 0), (-1,)])
def test_repeated_or_negative_dimensions_have_no_closed_form(dims):
    assert kernels.closed_form(gpytorch.kernels.RBFKernel(active_dims=dims)) is None


@given(seeds(), st.sampled_from(PROFILES), st.sampled_from([1.0, 100.0, 1e6]))
def test_gram_entries_are_precise_however_far_points_are_spread(seed, nu, spread):
    x = points(seed, 3, 2, spread)
    z = x + points(seed + 1, 3, 2, 1.0)
    computed = unit(nu).gram(x, z)
    for i in range(3):
        square = sum((mpmath.mpf(float(p)) - mpmath.mpf(float(q))) ** 2 for p, q in zip(x[i], z[i], strict=True))
        assert abs(float(mpmath.mpf(float(computed[i, i])) - reference.profile(nu, square))) <= 1e-15


def test_refusals_name_the_kernel():
    scaled = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel() * gpytorch.kernels.LinearKernel())
    assert kernels.describe(scaled) == "ScaleKernel(ProductKernel(RBFKernel, LinearKernel))"
    assert kernels.describe(kernels.additive(kernels.linear(), kernels.matern(0.5, 1.0))) == (
        "AdditiveKernel(LinearKernel, ScaleKernel(MaternKernel))"
    )
