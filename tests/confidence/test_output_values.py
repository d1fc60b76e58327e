"""One learned output as arrays, and its polynomials over cells: every number against loops that spell its formula out.

Margins of rounding are far below what a comparison of floating-point numbers sees. They are made loud: a unit roundoff of
2⁻¹⁰ in the modules under test, and errors of kernel entries of 1e-4.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from range_cases import KAPPA, KINDS, cells, inverse, kernel, learned, local_of, margin, same

from gpsafe.confidence import _output, _taylor
from gpsafe.confidence._output import Local, MeanTaylor, Output, VarianceTaylor, finite, in_blocks
from gpsafe.confidence._taylor import BLOCK, Bernstein, multi_indices
from gpsafe.linalg import gamma
from gpsafe.models import GP
from gpsafe.rkhs import kernels

pytestmark = pytest.mark.usefixtures("low_orders")


# ---------------------------------------------------------------------------------------------------- its arrays
def test_an_output_is_the_arrays_of_its_own_posterior():
    family = [kernels.rbf([0.5, 0.7], 1.5, dims=[2, 0]), kernels.matern(1.5, 2.5, 0.7)]
    g = torch.Generator().manual_seed(1)
    x, y = (torch.rand(6, k, dtype=torch.float64, generator=g) for k in (3, 2))
    x = 4 * x  # so that entries of the first kernel err by more than ENTRY says, of the second by less
    lam = torch.tensor([0.01, 0.3], dtype=torch.float64)
    model = GP.create(family, lam, nx=2, nu=1, noise_std=0.1).condition_on(x, y)
    for j, (active, scale) in enumerate((([2, 0], [0.5, 0.7]), ([0, 1, 2], [2.5] * 3))):
        output = Output.of(model, j)
        assert output.active.tolist() == active
        same(output.inverse, 1 / np.array(scale), 1e-15)
        assert output.dim == len(active)
        assert output.profile == _taylor.Profile.of(output.form, len(active))
        assert np.array_equal(output.points, x.numpy()[:, active])
        assert np.array_equal(output.weights, model.weights[:, j].numpy())
        assert output.far == 1 / float(lam[j])
        same(output.root @ output.root.T, inverse(output), 1e-8)
        exact = math.sqrt(output.weights @ kernel(output, output.points) @ output.weights)
        assert exact * (1 - 1e-15) <= output.norm <= exact * (1 + 1e-6)
        entries = 32 * 2.0**-52 * (len(active) + 4), kernels.entry_error(model.kernels[j], x)
        assert float(output.rounding.entry) == max(entries) == entries[1 - j]
        assert float(output.rounding.trace) == pytest.approx(6 * (output.form.variance + float(lam[j])))
    assert (_output.ENTRY, _output.ROOM, _output.FAR) == (32 * 2.0**-52, 4.0, 1.0)


def test_every_dimension_has_its_numbers_of_features_and_coefficients(monkeypatch):
    monkeypatch.undo()  # the orders themselves
    features = {d: len(multi_indices(d, p)) for d, p in _taylor.ORDERS.items()}
    assert features == {1: 7, 2: 21, 3: 35, 4: 35, 5: 21, 6: 28}
    assert {d: (p + 1) ** d for d, p in _taylor.DEGREES.items()} == {1: 13, 2: 121, 3: 343, 4: 625, 5: 1024, 6: 4096}


def test_nothing_is_claimed_beyond_the_condition_of_the_margins():
    output = learned(2.5, 1)
    own = output.rounding
    edge = 2 * own.backward * own.trace
    for factor, expected in ((1.0, 0.0), (1 + 1e-9, 0.0), (1 - 1e-9, math.inf)):
        moved = replace(output, rounding=replace(own, regularizer=factor * edge))
        assert moved.nothing == expected


def test_cells_and_points_go_in_blocks_that_fit_into_memory():
    output = learned(math.inf, 2)
    many = replace(output, points=np.zeros((24, 2)))
    assert many.rows() == 2**19 // (6 * 24) // 24 * 24 == 3624
    assert many.rows(points=True) == 2**19 // 48 // 24 * 24 == 10920
    assert replace(output, points=np.zeros((90_000, 2))).rows() == BLOCK
    sizes: list[int] = []

    def run(a, b):
        sizes.append(len(a))
        return a.sum(-1) + b, a * b[:, None]

    for total in (1, 23, 24, 25, 48, 49, 95):
        sizes.clear()
        a, b = np.random.default_rng(total).normal(size=(total, 2)), np.arange(1.0, total + 1)
        first, second = in_blocks(run, 48, a, b)
        assert np.array_equal(first, a.sum(-1) + b) and np.array_equal(second, a * b[:, None])
        assert set(sizes) <= {24, 48} and sum(sizes) - total in range(24) and len(sizes) == math.ceil(total / 48)
    assert finite(np.array([1.0, math.nan, math.inf]), -2.0).tolist() == [1.0, -2.0, math.inf]


@pytest.mark.parametrize(("nu", "d"), KINDS)
def test_values_and_deviations_at_points_are_their_formulas_with_their_margins(nu, d, loud):
    output = learned(nu, d)
    own, v = output.rounding, 1.7
    z = np.random.default_rng(d).uniform(-0.5, 1.5, (7, d))
    z[0] = output.points[0]
    row, std = kernel(output, z), math.sqrt(1.7) * (1 + 2 * loud)
    same(output.std, std)
    same(output.cross(z), row)
    same(output.explained(row.copy()), np.einsum("ci,ij,cj->c", row, inverse(output), row))
    unit = float(own.load) * (1e-4 + gamma(5 + 4))
    same([output.direct_unit, output.direct], [unit, std * unit])
    low, high = output.value(z)
    same(low, row @ output.weights - std * unit)
    same(high, row @ output.weights + std * unit)
    variance = v - np.einsum("ci,ij,cj->c", row, inverse(output), row)
    room = margin(output, variance, v)
    low, high = output.deviation(z)
    same(low, np.sqrt(np.maximum(variance - room, 0.0)) * (1 - 4 * loud))
    same(high, np.sqrt(variance + room) * (1 + 4 * loud))
    assert (low > 0).all()
    size = np.array([0.0, 0.3, 1.2])
    eta, load = float(own.backward), float(own.load)
    s = math.sqrt(2 * float(own.trace) / 0.02)
    t = s * size + 4 * 1e-4 * float(own.trace) / 0.02 * math.sqrt(v)
    direct = (1e-4 + gamma(7)) * math.sqrt(v)
    same(output.carried(size), load * (direct + (1e-5 + 3.3 * gamma(6)) * t) * (1 + 64 * loud))
    zero, stated = (margin(output, np.square(x), v) * (1 + 64 * loud) for x in (0 * size, size))
    same(output.stated(size), stated)
    t0 = s * np.sqrt(zero) + 4 * 1e-4 * float(own.trace) / 0.02 * std
    steep = 2 * 1e-4 * std * s + eta * s * (2 * t0 + s * size)
    same(output.widened(size), 2 * (np.sqrt(2 * zero) + steep))
    for most in (0.05, 0.3, 1.2):  # the claim: at every σ ≤ `most`, of a computed variance as far above σ² as it may be
        sigma = np.linspace(0.0, most, 200)
        computed = np.square(sigma)
        for _ in range(60):
            computed = np.square(sigma) + margin(output, computed, v) / 4
        wider = np.sqrt(computed + margin(output, computed, v) / 4) - sigma
        assert (wider <= output.widened(np.array([most]))).all()


def test_a_refuted_margin_is_replaced_by_the_prior():
    """Explained variance above the prior one: by less than the margin it is cut at 0, by more nothing is known."""
    output = learned(2.5, 1, n=2)
    z = output.points[:1]
    explained = float(output.explained(output.cross(z))[0])
    room = float(margin(output, 0.0, 1.7))
    for excess, expected in ((0.9 * room, math.sqrt(room)), (1.1 * room, math.sqrt(1.7))):
        wrong = replace(output, root=np.asfortranarray(output.root * math.sqrt((1.7 + excess) / explained)))
        low, high = wrong.deviation(z)
        assert low.tolist() == [0.0]
        same(high, expected, 1e-12)
        rows = local_of(wrong, z, z)[0].features(wrong)
        found = VarianceTaylor.of(MeanTaylor.of(wrong, local_of(wrong, z, z)[0], rows), local_of(wrong, z, z)[0], rows)
        assert math.isinf(float(found.error[0])) == (excess > room)
        assert math.isfinite(float(found.slope_error[0, 0])) == (excess < room)


# --------------------------------------------------------------------------------------------------------- cells
@pytest.mark.parametrize(("nu", "d"), KINDS)
def test_cells_in_length_scales_are_their_definition(nu, d, loud):
    output = learned(nu, d)
    lower, upper = cells(d)
    local, indices = local_of(output, lower, upper)
    assert indices == [a for p in range(3) for a in sorted(itertools.product(range(3), repeat=d))[::-1] if sum(a) == p][
        : len(indices)
    ]  # fmt: skip
    radius = (upper - lower) / 2 * output.inverse * (1 + 8 * loud)
    np.testing.assert_allclose(local.radius, radius, rtol=1e-9, atol=1e-15)
    assert local.radius[0].tolist() == [0.0] * d
    same(local.reach, np.sqrt((local.radius**2).sum(-1)) * (1 + 8 * loud))
    gap = ((lower + upper) / 2)[:, :, None] * output.inverse[:, None] - (output.points * output.inverse).T
    np.testing.assert_allclose(local.gaps, gap, rtol=1e-9, atol=1e-14)
    assert np.array_equal(local.powers, np.array(indices, dtype=float).reshape(len(indices), d))
    for c, (k, a) in itertools.product(range(len(lower)), enumerate(indices)):
        same(local.scales[c, k], math.prod(local.radius[c, i] ** e / math.factorial(e) for i, e in enumerate(a)))
    wide = local.reach > 1.0
    assert 3 <= wide.sum() < len(lower)
    assert local.nearest is not None
    away = np.maximum(np.abs(gap) * (1 - 16 * loud) - local.radius[:, :, None], 0.0)
    np.testing.assert_allclose(local.nearest[wide], np.square(away).sum(1)[wide], rtol=1e-8, atol=1e-12)
    assert Local.of(output, lower[:3], upper[:3]).nearest is None


def test_the_radius_covers_both_ends_however_the_centre_is_rounded():
    output, eps = learned(0.5, 1), 2.0**-52
    lower, upper = np.array([[1.0], [1 + eps]]), np.array([[1 + 3 * eps], [1 + 4 * eps]])
    assert (0.5 * lower + 0.5 * upper).flatten().tolist() == [1 + 2 * eps, 1 + 2 * eps]
    same(Local.of(output, lower, upper).radius[:, 0], np.array([2 * eps, 2 * eps]) / 0.6, 1e-14)


@pytest.mark.parametrize(("nu", "d"), KINDS)
def test_far_from_data_every_kernel_value_is_between_zero_and_the_one_at_the_nearest_point(nu, d, loud):
    output = learned(nu, d)
    lower, upper = cells(d)
    local, _ = local_of(output, lower, upper)
    least, most = output.mean_far_from_data(local)
    known = output.far_from_data(local)
    assert local.nearest is not None
    for c in range(len(lower)):
        if local.reach[c] <= 1.0:
            assert (least[c], most[c], known[c]) == (-math.inf, math.inf, 0.0)
            continue
        top = 1.7 * KAPPA[nu](np.sqrt(local.nearest[c]))
        ends = [sum(k * max(s * w, 0.0) for k, w in zip(top, output.weights, strict=True)) for s in (1, -1)]
        error = output.direct
        np.testing.assert_allclose(most[c], ends[0] * (1 + 1e-9) * (1 + 1e-12) + error, rtol=1e-13)
        np.testing.assert_allclose(least[c], -ends[1] * (1 + 1e-9) * (1 + 1e-12) - error, rtol=1e-13)
        explained = (top**2).sum() / 0.02 * (1 + 1e-9)
        same(known[c], math.sqrt(max(1.7 * (1 - 1e-12) - explained, 0.0)), 1e-13)
    assert ((known > 0.1) & (known < 1.29)).any() and known.max() > 1.3 and (known[local.reach > 1.0] == 0).any()
    lost = replace(local, nearest=np.full_like(local.nearest, math.nan))
    assert output.mean_far_from_data(lost)[1].max() == math.inf and output.far_from_data(lost).max() == 0.0


# -------------------------------------------------------------------------------------------------- polynomials
def bernstein(d: int, degree: int, indices, monomials: np.ndarray) -> np.ndarray:
    """Coefficients that give the polynomial at (degree + 1)^d nodes, (C, (degree + 1)^d), by solving for them."""
    s = np.linspace(-1, 1, degree + 1)
    t = (s + 1) / 2
    one = np.array([[math.comb(degree, k) * x**k * (1 - x) ** (degree - k) for k in range(degree + 1)] for x in t])
    nodes = list(itertools.product(s, repeat=d))
    basis = np.ones((1, 1))
    for _ in range(d):
        basis = np.kron(basis, one)
    value = np.array([[math.prod(x**e for x, e in zip(z, a, strict=True)) for a in indices] for z in nodes])
    return np.linalg.solve(basis, value @ monomials.T).T


@pytest.mark.parametrize(("d", "degree"), [(1, 0), (1, 3), (2, 0), (2, 3), (3, 2)])
def test_bernstein_coefficients_slopes_and_peaks_are_what_loops_say(d, degree, loud):
    basis = Bernstein.of(d, degree)
    rng = np.random.default_rng(d + degree)
    monomials = rng.normal(size=(30, len(basis.indices)))
    found = basis.coefficients(monomials)
    np.testing.assert_allclose(found, bernstein(d, degree, basis.indices, monomials), rtol=1e-9, atol=1e-11)
    fewer = basis.coefficients(monomials[:, :1])
    np.testing.assert_allclose(fewer, np.repeat(monomials[:, :1], found.shape[1], axis=1), rtol=1e-12)
    same(basis.unit, 2 * loud * (len(basis.indices) + 4))
    coefficients = rng.normal(size=(30, (degree + 1) ** d))
    coefficients[:5] = np.sort(coefficients[:5], axis=1)  # the largest at a corner
    coefficients[5] = 1.0
    peak = basis.peak(coefficients)
    low, high = basis.slopes(coefficients) if degree else (peak, peak)
    for c, i in itertools.product(range(30), range(d)):
        grid = coefficients[c].reshape((degree + 1,) * d)
        place = list(np.unravel_index(coefficients[c].argmax(), grid.shape))
        if not degree:
            assert peak[c, i] == 0.0
            continue
        steps = np.diff(grid, axis=i).flatten() * degree / 2  # d/ds = ½ d/dt
        same([low[c, i], high[c, i]], [steps.min(), steps.max()])
        k, shift = place[i], 0.0
        if 0 < k < degree:
            before, top, after = (grid[(*place[:i], k + m, *place[i + 1 :])] for m in (-1, 0, 1))
            bend = 2 * top - before - after
            shift = 0.5 * (after - before) / bend if bend > 0 else 0.0
        np.testing.assert_allclose(peak[c, i], np.clip(2 * (k + shift) / degree - 1, -1, 1), atol=1e-12)


def naive_rows(output: Output, local: Local, indices) -> np.ndarray:
    """v ∂^aκ at every gap by the chain rule in one variable's worth of formulas, |a| ≤ 2."""
    rows = np.empty((len(local.gaps), len(indices), len(output.points)))
    for c, (k, a), i in itertools.product(range(len(rows)), enumerate(indices), range(len(output.points))):
        t, nu = local.gaps[c, :, i], output.form.nu
        r = math.sqrt(t @ t)
        if math.isinf(nu):
            hermite = math.prod({0: 1.0, 1: -x, 2: x * x - 1}[e] for x, e in zip(t, a, strict=True))
            rows[c, k, i] = hermite * math.exp(-r * r / 2)
            continue
        decay, axes = math.exp(-math.sqrt(2 * nu) * r), [m for m, e in enumerate(a) for _ in range(e)]
        first = -3 * decay if nu == 1.5 else -5 / 3 * (1 + 5**0.5 * r) * decay
        if not axes:
            rows[c, k, i] = KAPPA[nu](r)
        elif len(axes) == 1:
            rows[c, k, i] = first * t[axes[0]]
        else:
            rows[c, k, i] = 25 / 3 * decay * t[axes[0]] * t[axes[1]] + (first if axes[0] == axes[1] else 0.0)
    return 1.7 * rows


OWN = {  # ‖∂^aφ‖² of a unit kernel by the orders in a
    math.inf: {(): 1.0, (1,): 1.0, (2,): 3.0, (1, 1): 1.0}, 2.5: {(): 1.0, (1,): 5 / 3, (2,): 25.0, (1, 1): 25 / 3},
    1.5: {(): 1.0, (1,): 3.0}, 0.5: {(): 1.0},
}  # fmt: skip
CROSS = {math.inf: (-1.0, 1.0), 2.5: (-5 / 3, 25 / 3), 1.5: (-3.0, math.nan), 0.5: (math.nan, math.nan)}


def naive_priors(nu: float, indices) -> np.ndarray:
    """⟨∂^aφ, ∂^bφ⟩ by cases: the same a; 1 with ∂_i²: κ″(0); ∂_i² with ∂_j²: ∂_i²∂_j²κ(0); else 0."""
    table = np.zeros((len(indices),) * 2)
    for (k, a), (m, b) in itertools.product(enumerate(indices), repeat=2):
        if a == b:
            table[k, m] = OWN[nu][tuple(sorted((e for e in a if e), reverse=True))]
        elif {sum(a), sum(b)} == {0, 2} and max(a + b) == 2:
            table[k, m] = CROSS[nu][0]
        elif sum(a) == sum(b) == 2 and max(a) == max(b) == 2:
            table[k, m] = CROSS[nu][1]
    return table


def remainder(nu: float, order: int, r: np.ndarray, eps: float) -> np.ndarray:
    bound = {
        math.inf: math.sqrt(15) / 6 * r**3, 2.5: math.sqrt(20 * 5**0.5 / 3) * r**2.5, 1.5: math.sqrt(4 * 3**0.5) * r**1.5,
        0.5: np.sqrt(2 * (1 - np.exp(-r))),
    }  # fmt: skip
    return bound[nu] * (1 + 64 * eps)


def slope(nu: float, order: int, r: np.ndarray, eps: float) -> np.ndarray:
    bound = {
        math.inf: math.sqrt(15) / 2 * r**2, 2.5: math.sqrt(400 * 5**0.5 / 9) * r**1.5, 1.5: np.sqrt(12 * 3**0.5 * r),
        0.5: np.full_like(r, math.inf),
    }  # fmt: skip
    return bound[nu] * (1 + 64 * eps)


@pytest.mark.parametrize(("nu", "d"), KINDS)
def test_polynomials_of_mean_and_variance_are_their_formulas_with_their_margins(nu, d, loud):
    output = learned(nu, d)
    local, indices = local_of(output, *cells(d))
    rows, scales, count = naive_rows(output, local, indices), local.scales, len(local.scales)
    same(local.features(output), rows, 1e-7)
    mean = MeanTaylor.of(output, local, local.features(output))
    sums = MeanTaylor.of(output, local)
    assert mean.basis == Bernstein.of(d, output.profile.order) and np.array_equal(mean.powers, local.powers)
    for found in (mean, sums):
        np.testing.assert_allclose(found.monomials, (rows @ output.weights) * scales, rtol=1e-9, atol=1e-14)
    priors, std = naive_priors(nu, indices), output.std
    same(output.profile.priors(d), priors)
    norms = np.sqrt(1.7 * np.diagonal(priors)) * scales
    same(mean.prior, norms)
    left = std * remainder(nu, output.profile.order, local.reach, loud)
    np.testing.assert_allclose(mean.remainder, left, rtol=1e-9, atol=1e-18)
    steep = np.where(local.radius == 0, 0.0, std * local.radius * slope(nu, 0, local.reach, loud)[:, None])
    np.testing.assert_allclose(mean.slope, steep, rtol=1e-9, atol=1e-18)
    unit, degree = mean.basis.unit, mean.basis.degree
    size = np.abs(mean.monomials).sum(-1)
    error = output.norm * mean.remainder + output.direct_unit * mean.prior.sum(-1) + unit * size
    same(mean.error(mean.basis), error * (1 + 1e-12), 1e-14)
    share = np.array([[sum(p[k] * a[i] for k, a in enumerate(indices)) for i in range(d)] for p in mean.prior])
    slopes = output.norm * mean.slope + output.direct_unit * share + 2 * degree * unit * size[:, None]
    same(mean.slope_error(mean.basis), slopes * (1 + 1e-12), 1e-14)

    found = VarianceTaylor.of(mean, local, local.features(output))
    top = min(3, 2 * output.profile.order)
    assert found.mean is mean and (found.basis.dim, found.basis.degree) == (d, top)
    gram = (1.7 * priors - rows @ inverse(output) @ rows.transpose(0, 2, 1)) * scales[:, :, None] * scales[:, None]
    kept = np.zeros((count, len(found.basis.indices)))
    rest, rest_slope = np.zeros(count), np.zeros((count, d))
    for (k, a), (m, b) in itertools.product(enumerate(indices), repeat=2):
        both = tuple(np.add(a, b))
        if sum(both) <= top:
            kept[:, found.basis.indices.index(both)] += gram[:, k, m]
        else:
            rest += np.abs(gram[:, k, m])
            rest_slope += np.abs(gram[:, k, m])[:, None] * np.array(both)
    coefficients = bernstein(d, top, found.basis.indices, kept)
    np.testing.assert_allclose(found.coefficients, coefficients, rtol=1e-8, atol=1e-12)
    same(found.center, kept[:, 0])
    own = np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0.0)
    spread, total = np.sqrt(own + margin(output, own, mean.prior**2)), np.abs(gram).sum((1, 2))
    rough = margin(output, spread.sum(-1) ** 2, mean.prior.sum(-1) ** 2)
    unit = found.basis.unit
    same(found.error, unit * total + rest + rough)
    half = local.features(output) @ np.triu(output.root)  # once more with the rounding of the module itself
    gram = (1.7 * priors - half @ half.transpose(0, 2, 1)) * scales[:, :, None] * scales[:, None]
    own, total = np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0.0), np.abs(gram).sum((1, 2))
    spread = np.sqrt(own + margin(output, own, mean.prior**2))
    rough = margin(output, spread.sum(-1) ** 2, mean.prior.sum(-1) ** 2)
    rest = sum(np.abs(gram[:, k, m]) for k, a in enumerate(indices) for m, b in enumerate(indices) if sum(a + b) > top)
    same(found.error, (unit * total + rest + rough) * (1 + 1e-12), 2e-13)
    root = np.sqrt(np.maximum(found.coefficients.max(-1) + found.error, 0.0)) * (1 + 4 * loud)
    least = np.sqrt(np.maximum(found.coefficients.min(-1) - found.error, 0.0)) * (1 - 4 * loud)
    same(found.root, root, 1e-13)
    same(found.high, np.minimum((root + mean.remainder) * (1 + 4 * loud), std), 1e-13)
    known = np.maximum(np.maximum(least - mean.remainder * (1 + 4 * loud), 0.0), output.far_from_data(local))
    same(found.low, known, 1e-13)
    assert ((found.low > 0) & (local.reach < 1)).any() and (found.high < std).any() and (found.high == std).any()
    for i in range(d):
        part = sum(spread[:, k] * a[i] for k, a in enumerate(indices))
        tau = mean.prior.sum(-1) / np.maximum(share[:, i], 1e-300)
        line = margin(output, (spread.sum(-1) + tau * part) ** 2, (2 * mean.prior.sum(-1)) ** 2) / tau
        products = root * mean.slope[:, i] + mean.remainder * (part + mean.slope[:, i])
        expected = (2 * products + rest_slope[:, i] + line + 2 * top * unit * total) * (1 + 1e-12)
        np.testing.assert_allclose(found.slope_error[:, i], expected, rtol=1e-8)
