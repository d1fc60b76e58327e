"""Margins for the rounding of posteriors cover what 45 digits say, with room, wherever the data lie."""

import math

import flint
import pytest
import reference
import torch

from gpsafe.confidence import Constant, ConvexProgram, Mixture
from gpsafe.confidence.rounding import Rounding
from gpsafe.linalg import gamma
from gpsafe.models import GP, LowRankGP
from gpsafe.models._fast import usable
from gpsafe.rkhs import kernels

# nu, arrangement, n, dimension, spread in length-scales, λ/k, k, rows appended at a time
CASES = [
    (math.inf, "path", 60, 2, 3.0, 1e-5, 1.0, 7),
    (math.inf, "path", 60, 2, 30.0, 1e-5, 1.0, 60),
    (math.inf, "uniform", 60, 1, 95.0, 1e-5, 0.01, 60),
    (math.inf, "cluster", 60, 3, 60.0, 1e-5, 30.0, 15),
    (math.inf, "path", 60, 1, 1.0, 1e-3, 1.0, 7),
    (math.inf, "path", 60, 2, 2.0, 1e-10, 1.0, 15),
    (math.inf, "duplicate", 60, 2, 40.0, 1e-8, 1.0, 20),
    (2.5, "path", 60, 2, 2.0, 1e-9, 1.0, 7),
    (1.5, "cluster", 60, 1, 10.0, 1e-8, 1.0, 60),
    (0.5, "duplicate", 60, 2, 90.0, 1e-12, 1.0, 60),
]


def arrangement(kind: str, n: int, dim: int, spread: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(n + dim)
    unit = torch.rand(n, dim, dtype=torch.float64, generator=g) - 0.5
    if kind == "cluster":
        centers = spread * (torch.rand(5, dim, dtype=torch.float64, generator=g) - 0.5)
        return centers[torch.arange(n) % 5] + 1e-2 * unit
    if kind == "duplicate":
        return spread * unit[torch.arange(n) % (n // 4)]
    if kind == "path":
        time = torch.linspace(-0.5, 0.5, n, dtype=torch.float64)
        return torch.stack([spread * time, *(0.3 * torch.sin(7 * time + i) for i in range(1, dim))], -1) + 1e-3 * unit
    return spread * unit


def measured(nu, kind, n, dim, spread, ratio, variance, block):
    """A posterior, queries, exact variances and means there, and the computed ones of both evaluation paths."""
    x, regularizer = arrangement(kind, n, dim, spread), ratio * variance
    kernel = kernels.rbf([1.0] * dim, variance) if math.isinf(nu) else kernels.matern(nu, [1.0] * dim, variance)
    y = math.sqrt(variance) * torch.sin(3 * x[:, 0]) + math.sqrt(regularizer) * torch.cos(50 * x[:, 0])
    model = GP.create(kernel, regularizer, nx=dim, nu=0, noise_std=1.0, outputs=(0,))
    for start in range(0, n, block):
        model = model.condition_on(x[start : start + block], y[start : start + block, None])
    z = torch.cat([x[::20], x[::20] + 0.05, x[::30] + 0.7])
    with flint.ctx.workdps(45):
        exact = reference.exact_posterior(nu, [1.0] * dim, variance, regularizer, x, y, z)
    assert usable(z)
    return model, z, exact, (model.posterior(z), model._posterior(z))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[0]}-{c[4]:g}-{c[5]:g}")
def test_margins_cover_the_rounding_of_variance_and_mean_three_times(case):
    model, z, (variances, means), computed = measured(*case)
    rounding, prior = Rounding.of(model), model.prior_variance(z)
    bound, half = Constant(value=2.0), None
    for mean, std in computed:
        margin = rounding.variance(std.square(), prior)
        drift = rounding.mean(std.square() + margin, prior)
        half = bound.half_width(model, torch.full((1,), 2.0, dtype=torch.float64), std, prior)
        with flint.ctx.workdps(45):
            for j in range(len(z)):
                deficit = variances[j] - flint.arb(std[j, 0].item()) ** 2
                error = abs(means[j] - flint.arb(mean[j, 0].item()))
                assert 3 * deficit < flint.arb(margin[j, 0].item())
                assert 3 * error < flint.arb(drift[j, 0].item())
                # and so the interval contains the exact one
                width = 2 * (variances[j] if variances[j] > 0 else flint.arb(0)).sqrt()
                assert error + width < flint.arb(half[j, 0].item())


def test_control_computed_variances_alone_are_too_small_somewhere():
    _, z, (variances, _), computed = measured(*CASES[0])
    with flint.ctx.workdps(45):
        deficits = [
            float(variances[j] - flint.arb(std[j, 0].item()) ** 2) for _, std in computed for j in range(len(z))
        ]
    assert max(deficits) > 1e-16


def gains(case, scaled=False):
    """g_n as computed, rounded up, and exact."""
    nu, kind, n, dim, spread, ratio, variance, block = case
    x, lam = arrangement(kind, n, dim, spread), ratio * variance
    kernel = kernels.rbf([1.0] * dim, variance) if math.isinf(nu) else kernels.matern(nu, [1.0] * dim, variance)
    scale = 1 + torch.arange(n, dtype=torch.float64) % 3 if scaled else torch.ones(n, dtype=torch.float64)
    model = GP.create(kernel, lam, nx=dim, nu=0, noise_std=1.0, outputs=(0,))
    for start in range(0, n, block):
        part = slice(start, start + block)
        given = {"noise_scale": scale[part]} if scaled else {}
        model = model.condition_on(x[part], torch.zeros_like(x[part, :1]), **given)
    with flint.ctx.workdps(60):
        exact = reference.exact_info_gain(nu, [1.0] * dim, variance, lam, x, scale)
    return model, model.info_gain()[0], Rounding.of(model).info_gain(model.info_gain())[0], exact


@pytest.mark.parametrize("scaled", [False, True], ids=["equal", "scaled"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[1]}-{c[0]}-{c[4]:g}-{c[5]:g}")
def test_information_gain_is_rounded_up(case, scaled):
    """Three times as much as 60 digits ask for; β reads this one."""
    model, computed, upper, exact = gains(case, scaled)
    with flint.ctx.workdps(60):
        assert 3 * (exact - flint.arb(computed.item())) <= flint.arb((upper - computed).item())
    bound = Mixture(rkhs_norm=1e-9, subgaussian=1.0, delta=0.1, unchecked=True)
    least = (1e-18 + 2 / (case[5] * case[6]) * (upper + math.log(10))).sqrt()
    assert float(bound.beta(model)[0]) == pytest.approx(float(least), rel=1e-14)


def test_control_the_computed_information_gain_is_too_small_somewhere_and_by_more_than_the_last_digits():
    """Without the margin g would be too small by 9e-9 of itself, β by half of that, on a path at λ = 1e-10."""
    with flint.ctx.workdps(60):
        short = [float((exact - flint.arb(got.item())) / exact) for _, got, _, exact in map(gains, CASES)]
    assert max(short) > 1e-10


def test_information_gain_costs_little_where_data_are_noisy_and_is_hadamards_where_rounding_leaves_nothing():
    _, computed, upper, _ = gains((math.inf, "path", 60, 2, 3.0, 1e-4, 1.0, 60))
    assert float(computed) < float(upper) < (1 + 1e-8) * float(computed)
    x = torch.linspace(0, 50, 50, dtype=torch.float64).unsqueeze(-1)
    tiny = GP.create(kernels.rbf(0.1), 1e-15, nx=1, nu=0, noise_std=1.0).condition_on(x, torch.sin(x))
    hadamard = 25 * math.log(1 + 1e15)
    assert hadamard <= float(Rounding.of(tiny).info_gain(tiny.info_gain())[0]) < hadamard * (1 + 1e-12)


@pytest.mark.parametrize(("lam", "trace"), [(0.02, 30.0), (2.0, 0.3)])
@pytest.mark.parametrize("lost", [0.1, 0.499, 0.501, 3.0])
def test_information_gain_is_the_formula_of_the_module(lost, lam, trace):
    """ηT = lost·λ: half of √n ηT/(λ − ηT) and the sum's rounding, or Hadamard alone."""
    n, gain = 10**6, 4.0  # so many that the sum's rounding is seen
    one = torch.ones(1, dtype=torch.float64)
    gram = lost * lam / trace - 1.1 * gamma(n + 1)
    found = float(Rounding(lam * one, trace * one, one, one, gram * one, n).info_gain(gain * one))
    rounds = gamma(n + 4) * n * (abs(math.log(lam)) + abs(math.log(trace)))
    expected = gain + 0.5 * math.sqrt(n) * lost / (1 - lost) if lost < 0.5 else 0.5 * n * math.log(trace / (n * lam))
    assert found - expected == pytest.approx(rounds, abs=1e-8)
    assert rounds > 1e-4


@pytest.mark.parametrize("n", [1, 3, 20])
def test_the_sum_of_few_logarithms_is_rounded_by_their_number_and_four(n):
    one, lam, trace = torch.ones(1, dtype=torch.float64), 0.02, 30.0
    rounding = Rounding(lam * one, trace * one, one, one, -1.1 * gamma(n + 1) * one, n)  # nothing is lost
    rounds = (n + 4) * 2.0**-53 * n * (abs(math.log(lam)) + abs(math.log(trace)))
    assert float(rounding.info_gain(0.0 * one)) == pytest.approx(rounds, rel=1e-6, abs=0)


def test_margins_cost_little_where_data_are_noisy():
    """λ = 1e-4 k and 60 points: the variance grows by less than a millionth; far from data by nothing that matters."""
    model, z, _, computed = measured(math.inf, "path", 60, 2, 3.0, 1e-4, 1.0, 60)
    std = computed[0][1]
    margin = Rounding.of(model).variance(std.square(), model.prior_variance(z))
    assert float((margin / std.square()).max()) < 1e-6


def test_without_data_only_the_floor_remains_and_hopeless_regularizers_give_the_prior():
    empty = GP.create(kernels.rbf(1.0, 2.0), 1e-4, nx=1, nu=0, noise_std=1.0)
    two = torch.full((3, 1), 2.0, dtype=torch.float64)
    assert torch.equal(Rounding.of(empty).variance(two, two), 1e-12 * two)
    assert torch.equal(Rounding.of(empty).mean(two, two), torch.zeros_like(two))
    x = torch.linspace(0, 50, 50, dtype=torch.float64).unsqueeze(-1)
    tiny = GP.create(kernels.rbf(0.1), 1e-15, nx=1, nu=0, noise_std=1.0).condition_on(x, torch.sin(x))
    one = torch.ones(3, 1, dtype=torch.float64)
    assert torch.equal(Rounding.of(tiny).variance(0 * one, one), one)


def test_a_projection_has_the_margins_of_its_exact_posterior_and_outputs_their_own():
    x = torch.linspace(0, 3, 20, dtype=torch.float64).reshape(10, 2)
    family = [kernels.rbf(1.0, 2.0), kernels.linear(0.5)]
    model = GP.create(family, (0.1, 0.2), nx=2, nu=0, noise_std=1.0).condition_on(x, torch.sin(x))
    own = Rounding.of(model)
    assert Rounding.of(model) is own
    assert Rounding.of(LowRankGP.create(model, 3)) is own
    assert own.trace.tolist() == pytest.approx([10 * 2.1, 0.5 * float(x.square().sum()) + 2.0])
    assert own.output(1).trace == own.trace[1]


def test_errors_of_entries_are_those_of_the_kernel_where_it_has_no_stationary_form():
    family = [kernels.periodic(1.0, 1.3, variance=0.7), kernels.rbf([0.4, 0.6])]
    z = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = Rounding.of(GP.create(family, 0.1, nx=2, nu=0, noise_std=0.1).condition_on(z, z))
    for name, product in (("entry", True), ("gram", False)):
        own = [kernels.entry_error(kernel, z, product=product) for kernel in family]
        assert own[0] != own[1] and getattr(found, name).tolist() == pytest.approx(own, rel=1e-12)


def test_margins_are_their_formulas_term_by_term():
    """With errors of entries that show every product, and without any, so that the smallest terms are all there is."""
    u = 2.0**-53
    for entry, gram in (((1e-7, 3e-7), (2e-6, 1e-6)), ((0.0, 0.0), (0.0, 0.0)), ((1e-7, 0.0), (0.2, 0.0))):
        lam, trace, load, n = (0.01, 0.25), (3.0, 5.0), (7.0, 11.0), 40
        given = Rounding(*(torch.tensor(v, dtype=torch.float64) for v in (lam, trace, load, entry, gram)), n)
        variance = torch.tensor([[0.0, 0.0], [0.3, 0.01]], dtype=torch.float64)
        prior = torch.tensor([[1.5, 0.7], [2.0, 4.0]], dtype=torch.float64)
        margins, drifts = given.variance(variance, prior), given.mean(variance, prior)

        def gamma(count: int) -> float:
            return count * u / (1 - count * u)

        for q in range(2):
            for j in range(2):
                v, k, share = float(variance[q, j]), float(prior[q, j]), trace[j] / lam[j]

                def weight(value: float, share=share, k=k, j=j, entry=entry) -> float:
                    return math.sqrt(2 * share * value) + 4 * entry[j] * share * math.sqrt(k)

                backward = gram[j] + 1.1 * gamma(n + 1)
                margin = (1e-12 + 8.0 * 2 * u * math.sqrt(n * share) + gamma(n + 2)) * k
                t = weight(v + margin)
                margin += 2 * entry[j] * math.sqrt(k) * t + backward * t**2
                expected = margin if backward * trace[j] <= 0.5 * lam[j] else k
                assert float(margins[q, j]) == pytest.approx(expected, rel=1e-12, abs=0)
                carried = (gram[j] + 3.3 * gamma(n + 1)) * weight(v)
                drift = load[j] * ((entry[j] + gamma(n + 2)) * math.sqrt(k) + carried)
                assert float(drifts[q, j]) == pytest.approx(drift, rel=1e-12, abs=0)
                assert expected == k or given.output(j).variance(variance[q, j], prior[q, j]) == margins[q, j]
    edge = Rounding(*(torch.tensor([v], dtype=torch.float64) for v in (1.0, 3.0, 7.0, 0.0, 0.1)), n)
    one = torch.ones(1, 1, dtype=torch.float64)
    for factor, lost in ((1.0, False), (1 - 1e-9, True)):
        exact = Rounding(factor * 2 * edge.backward * edge.trace, edge.trace, edge.load, edge.entry, edge.gram, n)
        assert (float(exact.variance(1e-9 * one, one)) == 1.0) == lost


def test_what_the_margins_need_is_measured_on_the_scaled_matrix():
    g = torch.Generator().manual_seed(3)
    x, y = (torch.randn(9, 2, dtype=torch.float64, generator=g) for _ in range(2))
    scale = 1 + torch.rand(9, dtype=torch.float64, generator=g)
    family, lam = [kernels.linear(0.5), kernels.rbf([1.0, 2.0], 2.0)], (0.1, 0.2)
    model = GP.create(family, lam, nx=2, nu=0, noise_std=1.0).condition_on(x, y, noise_scale=scale)
    found = Rounding.of(model)
    for j, kernel in enumerate(family):
        A = kernels.cross(kernel, x, x) + lam[j] * torch.diag(scale.square())
        alpha = torch.linalg.solve(A, y[:, j])
        assert float(found.trace[j]) == pytest.approx(float(A.trace()), rel=1e-12)
        assert float(found.load[j]) == pytest.approx(float(A.diagonal().sqrt() @ alpha.abs()), rel=1e-9)
        form = kernels.closed_form(kernel)
        assert float(found.entry[j]) == kernels.entry_error(form, x, product=True)
        assert float(found.gram[j]) == kernels.entry_error(form, x, product=False)
    assert (found.count, found.regularizer.tolist()) == (9, list(lam))
    assert float(found.entry[0]) != float(found.entry[1])


@pytest.mark.parametrize("beside", [2e-6, 1e-5, 3e-5])
def test_just_beside_data_on_a_line_the_margin_covers_what_is_lost(beside):
    """At λ/k = 1e-11 the product with the inverse factor loses most; a quarter of today's constant claimed a third."""
    along = torch.tensor([0.3, 0.7, 0.5], dtype=torch.float64)
    across = torch.tensor([0.7, -0.3, 0.0], dtype=torch.float64)
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None] * along
    y = torch.sin(3 * x[:, 0])
    kernel = kernels.rbf([0.4] * 3, 50.0)
    model = GP.create(kernel, 5e-10, nx=3, nu=0, noise_std=1.0, outputs=(0,)).condition_on(x, y[:, None])
    z = x[5:55:7] + beside * across / across.norm()
    variance, prior = model.posterior(z)[1].square(), model.prior_variance(z)
    upper = (variance + Rounding.of(model).variance(variance, prior))[:, 0]
    with flint.ctx.workdps(45):
        exact = reference.exact_posterior(math.inf, [0.4] * 3, 50.0, 5e-10, x, y, z)[0]
    assert all(float(e) <= u for e, u in zip(exact, upper.tolist(), strict=True))
    assert float((upper / prior[:, 0]).max()) < 1e-6  # and still says something


def exact_dual(x, y, z, etas, lam, noise, norm, delta):
    """R_n² with c = R²/λ, and the exact ends μ_η ± σ_η√(s(η)/η) at z of every η, for the RBF kernel, in flint's precision."""
    scales = [1.0] * x.shape[1]
    gram, cross = (reference._exact_gram(math.inf, scales, 1.0, x, other) for other in (x, z))
    n, m, targets = len(x), len(z), flint.arb_mat([[flint.arb(v)] for v in y.tolist()])

    def solved(eta, right):
        shifted = flint.arb_mat(gram)
        for i in range(n):
            shifted[i, i] += flint.arb(eta)
        return shifted, shifted.solve(right)

    shifted, alpha = solved(lam, targets)
    square = flint.arb(noise) ** 2
    logdet = shifted.det().log() - n * flint.arb(lam).log()
    radius = flint.arb(lam) * (targets.transpose() * alpha)[0, 0] + square * (logdet + 2 * (1 / flint.arb(delta)).log())
    ends = {}
    for eta in etas:
        _, alpha = solved(eta, targets)
        _, weights = solved(eta, cross)
        gap = radius + flint.arb(eta) * (flint.arb(norm) ** 2 - (targets.transpose() * alpha)[0, 0])
        mean, explained = cross.transpose() * alpha, cross.transpose() * weights
        half = [((1 - explained[j, j]) * gap / flint.arb(eta)).sqrt() for j in range(m)]
        ends[eta] = [(mean[j, 0] - half[j], mean[j, 0] + half[j]) for j in range(m)]
    return radius, ends


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("kind", "dim", "spread"), [("cluster", 3, 60.0), ("path", 2, 3.0), ("duplicate", 2, 1.0)])
def test_a_convex_program_covers_entries_that_err_as_far_as_is_stated_in_the_worst_direction(
    monkeypatch, kind, dim, spread, sign
):
    """Errors ±ε√(k(x, x)k(z, z)) with the signs of the weights α: without a term for them R_n² falls 10⁻⁶ short."""
    n, lam, noise, norm, delta = 24, 1e-8, 0.05, 3.0, 0.1
    x = arrangement(kind, n, dim, spread)
    y = 0.5 * torch.sin(3 * x[:, 0]) + noise * torch.cos(50.0 * torch.arange(n, dtype=torch.float64))
    model = GP.create(kernels.rbf([1.0] * dim), lam, nx=dim, nu=0, noise_std=1.0).condition_on(
        x, y[:, None].expand(n, dim)
    )
    bound = ConvexProgram(rkhs_norm=norm, subgaussian=noise, delta=delta * dim)  # δ/p of each of p = dim outputs
    z = torch.cat([x[:2], x[:1] + 1e-3, x[:1] + 0.5])
    error, signs, real = (
        kernels.entry_error(model.kernels[0], x, product=False),
        model.weights[:, 0].sign(),
        kernels.cross,
    )

    def wrong(kernel, a, b):
        left, right = (signs[: len(v)] if v is x or torch.equal(v, x) else torch.ones(len(v)).double() for v in (a, b))
        return real(kernel, a, b) + sign * error * torch.outer(left, right)

    monkeypatch.setattr(kernels, "cross", wrong)
    program = bound.program(model, 0, z)
    etas = [1e-7, 1e-5, 1e-3, 0.1]
    upper, lower = program.dual_table(torch.tensor(etas, dtype=torch.float64))
    with flint.ctx.workdps(45):
        radius, ends = exact_dual(x, y, z, etas, lam, noise, norm, delta)
        assert flint.arb(program.radius_sq.item()) > radius
        for i, eta in enumerate(etas):
            for j, (low, high) in enumerate(ends[eta]):
                assert flint.arb(lower[i, j].item()) < low and high < flint.arb(upper[i, j].item())
