"""The convex-program bound: exact by its dual, sound whatever proposes the multipliers."""

import functools
import math
from dataclasses import replace

import mpmath as mp
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpsafe.confidence import ConfidenceSet, ConvexProgram, Mixture
from gpsafe.confidence.convex_proposer import Proposer
from gpsafe.confidence.dual_program import Program, Spectrum, bound_at
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels, random_function
from tests.strategies import dear, seeds

EXACT, SOLVE, OPT = 1e-12, 1e-8, 1e-6
ASSUMED = {"rkhs_norm": 1.0, "subgaussian": 0.2, "delta": 0.1}
GRID = torch.linspace(-0.2, 1.2, 29, dtype=torch.float64).unsqueeze(-1)


KERNEL = kernels.rbf(0.25)


@functools.cache
def prior(lam: float) -> GP:
    return GP.create(KERNEL, lam, nx=1, nu=0, noise_std=0.2)


def posterior(seed: int, *, lam: float = 0.04, count: int = 20, norm: float = 1.0, noise: float = 0.2):
    """A posterior on noisy values of a function of exactly the given norm, and the function."""
    generator = torch.Generator().manual_seed(seed)
    f = random_function(KERNEL, torch.zeros(1), torch.ones(1), norm=norm, generator=generator)
    z = torch.rand(count, 1, dtype=torch.float64, generator=generator)
    y = f(z) + noise * torch.randn(count, dtype=torch.float64, generator=generator)
    return prior(lam).condition_on(z, y.unsqueeze(-1)), f


@pytest.mark.parametrize(("lam", "count"), [(0.04, 1), (0.04, 15), (2.0, 15), (0.04, 60)])
def test_dual_equals_the_primal_optimum_of_the_conic_solver(lam, count):
    model, _ = posterior(3, lam=lam, count=count)
    program = ConvexProgram(**ASSUMED).program(model, 0, GRID)
    upper, lower, eta_upper, _ = program.solve()
    spectrum = program.spectrum
    proposer = Proposer(spectrum.values, spectrum.targets, program.radius_sq, program.norm)
    for index in range(0, len(GRID), 4):
        top, eta = proposer.optimum(program.cross[:, index], program.prior[index], 1.0)
        bottom, _ = proposer.optimum(program.cross[:, index], program.prior[index], -1.0)
        assert abs(float(upper[index]) - top) <= OPT
        assert abs(float(lower[index]) - bottom) <= OPT
        if math.isfinite(float(eta_upper[index])) and 1e-3 < eta < 1e2:
            assert 0.9 <= float(eta_upper[index]) / eta <= 1.1


@given(seed=seeds(), lam=st.sampled_from([0.01, 0.04, 1.0, 3.0]), count=st.integers(1, 30))
def test_interval_is_inside_the_mixture_interval(seed, lam, count):
    model, _ = posterior(seed, lam=lam, count=count)
    low, high = ConvexProgram(**ASSUMED).interval(model, GRID)
    outer_low, outer_high = Mixture(**ASSUMED).interval(model, GRID)
    assert bool((low >= outer_low).all())
    assert bool((high <= outer_high).all())


@given(seed=seeds(), lam=st.sampled_from([0.04, 1.0, 3.0]), count=st.integers(1, 30))
def test_the_multiplier_lambda_reproduces_the_mixture_bound(seed, lam, count):
    model, _ = posterior(seed, lam=lam, count=count)
    program = ConvexProgram(**ASSUMED).program(model, 0, GRID)
    upper, lower = program.dual(torch.tensor([lam], dtype=torch.float64))
    outer_low, outer_high = Mixture(**ASSUMED).interval(model, GRID)
    assert float((upper - outer_high[:, 0]).abs().max()) <= SOLVE
    assert float((lower - outer_low[:, 0]).abs().max()) <= SOLVE
    scaled = ConvexProgram(**ASSUMED, scale=ASSUMED["subgaussian"] ** 2 / lam)
    beta = float(Mixture(**ASSUMED).beta(model))
    assert abs(float(ConvexProgram(**ASSUMED).beta(model)) - beta) <= EXACT * beta
    assert abs(float(scaled.beta(model)) - beta) <= SOLVE * beta


@given(seed=seeds(), scale=st.sampled_from([0.1, 1.0, 10.0]), count=st.integers(1, 25))
@example(seed=138007590, scale=0.1, count=10)  # f* is outside, as it may be
def test_interval_contains_every_function_of_the_set(seed, scale, count):
    """Functions of norm ≤ B that fit the data within R_n stay inside: among ridge solutions there is one if there is any."""
    model, f = posterior(seed, count=count)
    bound = ConvexProgram(**ASSUMED, scale=scale)
    low, high = bound.interval(model, GRID)
    program = bound.program(model, 0, GRID)
    candidates = [(f(GRID), f(model.inputs), f.norm)]
    kernel = model.kernels[0]
    gram = kernels.cross(kernel, model.inputs, model.inputs)
    cross = kernels.cross(kernel, GRID, model.inputs)
    for eta in torch.logspace(-5, 4, 90, dtype=torch.float64).tolist():
        weights = torch.linalg.solve(gram + eta * torch.eye(count, dtype=torch.float64), model.targets[:, 0])
        candidates.append((cross @ weights, gram @ weights, float((weights @ gram @ weights).sqrt())))
    members = 0
    for values, fitted, norm in candidates:
        inside = float((fitted - model.targets[:, 0]).square().sum()) <= float(program.radius_sq) and norm <= 1.0
        if inside:
            members += 1
            assert bool((low[:, 0] <= values + SOLVE).all())
            assert bool((values <= high[:, 0] + SOLVE).all())
    assert members > 0 or float((high - low).min()) < 1e-2  # none, or next to none


@given(seed=seeds(), count=st.integers(1, 25))
def test_dual_is_quasi_convex_in_the_multiplier(seed, count):
    model, _ = posterior(seed, count=count)
    program = ConvexProgram(**ASSUMED).program(model, 0, GRID)
    eta = torch.logspace(-4, 4, 120, dtype=torch.float64)
    upper, lower = program.dual_table(eta)
    for table in (upper, -lower):
        best = table.min(0).values
        falling = table.cummin(0).values
        rising = table.flip(0).cummin(0).values.flip(0)
        # Unimodal: each value is at most rounding above the running minimum from one of the two sides.
        above = torch.minimum(table - falling, table - rising)
        assert float(above.max()) <= 1e-6 * (1 + float(best.abs().max()))


@given(seed=seeds(), count=st.integers(1, 25))
def test_search_beats_a_dense_table_of_multipliers(seed, count):
    model, _ = posterior(seed, count=count)
    program = ConvexProgram(**ASSUMED).program(model, 0, GRID)
    upper, lower, _, _ = program.solve()
    tables = program.dual_table(torch.logspace(-6, 6, 400, dtype=torch.float64))
    assert bool((upper <= tables[0].min(0).values + OPT).all())
    assert bool((lower >= tables[1].max(0).values - OPT).all())


@given(seed=seeds(), eta=st.floats(1e-5, 1e5), count=st.integers(1, 20))
def test_table_and_pointwise_dual_agree(seed, eta, count):
    model, _ = posterior(seed, count=count)
    program = ConvexProgram(**ASSUMED).program(model, 0, GRID)
    shared = torch.tensor([eta], dtype=torch.float64)
    table, point = program.dual_table(shared), program.dual(shared.expand(len(GRID)))
    for one, other in zip(table, point, strict=True):
        assert float((one[0] - other).abs().max()) <= SOLVE * (1 + float(other.abs().max()))


@given(seed=seeds(), count=st.integers(1, 20))
def test_a_lying_solver_cannot_produce_an_unsound_interval(seed, count):
    model, _ = posterior(seed, count=count)
    program = ConvexProgram(**ASSUMED).program(model, 0, GRID)
    upper, lower, _, _ = program.solve(grid=60, sections=30)
    generator = torch.Generator().manual_seed(seed)
    lies = 10 ** (12 * torch.rand(2, len(GRID), dtype=torch.float64, generator=generator) - 6)
    lies[:, 0], lies[:, 1], lies[:, 2], lies[:, 3] = math.nan, math.inf, -1.0, 0.0
    claimed_upper, claimed_lower = bound_at(program, (lies[0], lies[1]), 0.04)
    assert bool((claimed_upper >= upper - SOLVE).all())
    assert bool((claimed_lower <= lower + SOLVE).all())
    assert bool(torch.isfinite(claimed_upper).all())


def test_solver_method_agrees_with_the_dual_method(monkeypatch):
    model, _ = posterior(5, count=10)
    dual = ConvexProgram(**ASSUMED).interval(model, GRID)
    conic = ConvexProgram(**ASSUMED, method="cvxpy")
    for one, other in zip(dual, conic.interval(model, GRID), strict=True):
        assert float((one - other).abs().max()) <= OPT
    monkeypatch.setattr(Proposer, "optimum", lambda *_: (0.0, math.nan))  # a solver that fails everywhere
    low, high = conic.interval(model, GRID)
    assert bool((low <= dual[0] + SOLVE).all())
    assert bool((high >= dual[1] - SOLVE).all())


@settings(max_examples=10)
@given(seed=seeds())
def test_an_empty_set_is_reported_not_patched(seed):
    """Observations that no function of norm ≤ B fits: the interval is inverted and the set says so."""
    model, _ = posterior(seed, count=30, norm=20.0)
    bound = ConvexProgram(**ASSUMED)
    low, high = bound.interval(model, GRID)
    assert bool((low > high).all())
    found = ConfidenceSet(bound).update(model).falsified(GRID)
    assert found is not None
    assert "F_n is empty" in str(found)
    assert bool(torch.isnan(ConvexProgram(**ASSUMED, scale=100.0).beta(model)).all())


@given(seed=seeds(), count=st.integers(1, 30))
def test_the_set_is_not_empty_when_the_function_is_in_it(seed, count):
    model, f = posterior(seed, count=count)
    program = ConvexProgram(**ASSUMED).program(model, 0, GRID[:1])
    member = float((f(model.inputs) - model.targets[:, 0]).square().sum()) <= float(program.radius_sq)
    assert not member or not bool(program.empty())


@dear()
@given(seed=seeds(), count=st.integers(1, 12))
def test_batched_programs_equal_single_ones(seed, count):
    programs = []
    for offset in range(3):
        model, _ = posterior(seed + offset, count=count)
        programs.append(ConvexProgram(**ASSUMED).program(model, 0, GRID))
    doubt = {name: max(getattr(p.spectrum, name) for p in programs) for name in ("share", "turn")}
    spectra = [replace(p.spectrum, **doubt) for p in programs]
    programs = [replace(p, spectrum=s) for p, s in zip(programs, spectra, strict=True)]
    parts = (torch.stack([getattr(s, name) for s in spectra]) for name in ("values", "vectors", "targets"))
    batch = Program(
        Spectrum(*parts, **doubt),
        torch.stack([p.cross for p in programs]),
        torch.stack([p.prior for p in programs]),
        torch.stack([p.radius_sq for p in programs]),
        torch.stack([p.norm for p in programs]),
    )
    upper, lower, _, _ = batch.solve(grid=8, sections=4)
    for i, program in enumerate(programs):
        one_upper, one_lower, _, _ = program.solve(grid=8, sections=4)
        assert float((upper[i] - one_upper).abs().max()) <= SOLVE
        assert float((lower[i] - one_lower).abs().max()) <= SOLVE
        assert bool(batch.empty()[i]) == bool(program.empty())


def test_radius_is_the_closed_form_of_the_mixture():
    model, _ = posterior(1, count=8)
    c, noise = 0.7, 0.2
    program = ConvexProgram(**ASSUMED, scale=c).program(model, 0, GRID[:1])
    y = model.targets[:, 0]
    matrix = torch.eye(8, dtype=torch.float64) + c / noise**2 * kernels.cross(
        model.kernels[0], model.inputs, model.inputs
    )
    expected = float(y @ torch.linalg.solve(matrix, y)) + noise**2 * (
        float(torch.linalg.slogdet(matrix).logabsdet) + 2 * math.log(10)
    )
    assert abs(float(program.radius_sq) - expected) <= SOLVE * expected


def test_before_any_data_only_the_norm_speaks():
    model = GP.create(kernels.rbf(0.25), 0.04, nx=1, nu=0, noise_std=0.2)
    low, high = ConvexProgram(**ASSUMED).interval(model, GRID)
    assert float((high - 1.0).abs().max()) <= EXACT
    assert float((low + 1.0).abs().max()) <= EXACT


@pytest.mark.parametrize("changes", [{"scale": 0.0}, {"scale": math.nan}, {"method": "simplex"}])
def test_bad_options_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        ConvexProgram(**ASSUMED, **changes)


def nearly_empty(seed: int, ratio: float, share: float) -> tuple[Program, torch.Tensor, mp.mpf, mp.mpf]:
    """A program with s(η) = share of its terms exactly, η = ratio ‖K‖; both ends of its dual bound in fifty digits."""
    generator, n = torch.Generator().manual_seed(seed), 24
    x = 3.0 * torch.rand(n, 1, dtype=torch.float64, generator=generator)
    z = torch.tensor([[5.2]], dtype=torch.float64)
    gram, cross = (torch.exp(-0.5 * (x - other.mT).square()) for other in (x, z))
    eta = ratio * float(torch.linalg.eigvalsh(gram)[-1])
    spread = torch.linalg.cholesky(gram + 10 * eta * torch.eye(n, dtype=torch.float64))
    y = spread @ torch.randn(n, dtype=torch.float64, generator=generator)
    with mp.workdps(50):
        shifted = mp.matrix(gram.tolist()) + mp.mpf(eta) * mp.eye(n)
        column, targets = mp.matrix(cross[:, 0].tolist()), mp.matrix(y.tolist())
        weights, across = mp.lu_solve(shifted, targets), mp.lu_solve(shifted, column)
        fit = mp.mpf(eta) * (targets.T * weights)[0]
        radius = float(fit * (1 + mp.mpf(share)))
        room = mp.mpf(radius) + mp.mpf(eta) * mp.mpf(1e-4) ** 2 - fit
        mean, half = (column.T * weights)[0], mp.sqrt((1 - (column.T * across)[0]) * room / mp.mpf(eta))
        ends = mean + half, mean - half
    spectrum = Spectrum.of(gram, y)
    one, radius_sq, norm = (torch.tensor(value, dtype=torch.float64) for value in (1.0, radius, 1e-4))
    program = Program(spectrum, spectrum.vectors.mT @ cross, one.reshape(1), radius_sq, norm)
    return program, torch.tensor([eta], dtype=torch.float64), *ends


@pytest.mark.parametrize("ratio", [1e-9, 1e-7, 1e-5])
@pytest.mark.parametrize("share", [1e-13, 1e-10, 1e-7])
def test_rounding_of_a_nearly_empty_set_is_covered(ratio, share):
    for seed in range(4):
        program, eta, upper, lower = nearly_empty(seed, ratio, share)
        for found in (program.dual(eta), tuple(end[0] for end in program.dual_table(eta))):
            assert mp.mpf(float(found[0][0])) >= upper and mp.mpf(float(found[1][0])) <= lower
        assert not bool(program.gap(eta).negative)


def test_control_without_the_error_of_the_matrix_it_is_not():
    missed = 0
    for seed in range(8):
        program, eta, upper, _ = nearly_empty(seed, 1e-9, 1e-13)
        program = replace(program, spectrum=replace(program.spectrum, share=0.0, turn=0.0))
        missed += mp.mpf(float(program.dual(eta)[0][0])) < upper
    assert missed


@pytest.mark.parametrize("ratio", [1e6, 1e12])
def test_the_radius_is_rounded_outwards(ratio):
    x = torch.linspace(0.0, 3.0, 20, dtype=torch.float64).unsqueeze(-1)
    gram = torch.exp(-0.5 * (x - x.mT).square())
    for seed in range(4):
        y = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with mp.workdps(50):
            scaled = mp.eye(20) + mp.mpf(ratio) * mp.matrix(gram.tolist())
            targets = mp.matrix(y.tolist())
            exact = (targets.T * mp.lu_solve(scaled, targets))[0] + mp.log(mp.det(scaled)) + 2
        one = torch.tensor(1.0, dtype=torch.float64)
        found = float(Spectrum.of(gram, y).radius_sq(ratio * one, one, 1.0))
        assert exact <= mp.mpf(found) <= exact * (1 + 1e-12 + 1e-13 * ratio)


@pytest.mark.parametrize("method", ["dual", "table", "cvxpy"])
def test_the_norm_alone_is_rounded_outwards(method):
    """B√k in exact arithmetic, where it is the best that is known: 15 of 27 such ends were a unit or less too short."""
    for k in range(27):
        model = GP.regression(kernels.rbf([1.0], variance=10.0 ** -(k % 5) * (1 + 0.1 * k)), dim=1, noise_std=0.1)
        model = model.condition_on(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())
        bound = ConvexProgram(rkhs_norm=0.1 + 0.03 * k, subgaussian=0.1, delta=0.1, method=method, scale=1e-3)
        far = torch.full((1, 1), 60.0, dtype=torch.float64)
        low, high = bound.interval(model, far)
        with mp.workdps(40):
            exact = mp.mpf(bound.rkhs_norm) * mp.sqrt(mp.mpf(float(model.prior_variance(far))))
            assert mp.mpf(float(high)) >= exact and -mp.mpf(float(low)) >= exact
        assert float(high) <= float(exact) * (1 + 1e-13)
