"""The convex-program bound, number by number: its dual with every margin, its emptiness, and one observation in closed form."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import pytest
import torch

from gpsafe import linalg
from gpsafe.confidence import ConvexProgram, Mixture, NoiseEnergy
from gpsafe.confidence.convex_proposer import Proposer, _number
from gpsafe.confidence.dual_program import Program, Spectrum, bound_at
from gpsafe.models import GP
from gpsafe.rkhs import kernels

tensor = partial(torch.tensor, dtype=torch.float64)
UNIT = 2.0**-52


def program(values, targets, cross, prior, radius_sq, norm) -> Program:
    """With U = I, and a little doubt."""
    spectrum = Spectrum(tensor(values), torch.eye(len(values)).double(), tensor(targets), 2 * UNIT, UNIT)
    return Program(spectrum, tensor(cross), tensor(prior), tensor(radius_sq), tensor(norm))


def stacked(*programs: Program) -> Program:
    parts = ("values", "vectors", "targets")
    spectrum = Spectrum(*(torch.stack([getattr(p.spectrum, name) for p in programs]) for name in parts), 2 * UNIT, UNIT)
    rest = ("cross", "prior", "radius_sq", "norm")
    return Program(spectrum, *(torch.stack([getattr(p, name) for p in programs]) for name in rest))


def by_hand(p: Program, eta: float, z: int) -> tuple[float, float]:
    """Centre and half-width at one multiplier, by sums over data: e = share·s_max, d = t√((s_max + e)k), ρ = t‖y‖/(1 − t)."""
    v, t, c = p.spectrum.values.tolist(), p.spectrum.targets.tolist(), p.cross[:, z].tolist()
    k, norm, share, turn = float(p.prior[z]), float(p.norm), p.spectrum.share, p.spectrum.turn
    mean = sum(a * b / (s + eta) for a, b, s in zip(c, t, v, strict=True))
    explained = sum(a * a / (s + eta) for a, s in zip(c, v, strict=True))
    fit = eta * sum(b * b / (s + eta) for b, s in zip(t, v, strict=True))
    radius = math.sqrt(float(p.radius_sq)) + 2 * turn / (1 - turn) * math.hypot(*t)
    room = radius**2 + eta * norm**2
    error = share * max(v)
    seen = turn * math.sqrt((max(v) + error) * k)
    variances, weight = [], math.sqrt(k / eta) / 2
    for _ in range(2):
        own = (weight + seen / eta) / (1 - error / eta)
        variances.append(max(k - explained, 0.0) + 1e-12 * k + error * own**2 + 2 * seen * own)
        weight = min(weight, math.sqrt(variances[-1] / eta))
    length = math.sqrt(sum((b / (s + eta)) ** 2 for b, s in zip(t, v, strict=True)))
    moved = 1e-13 * (room + fit) + error / max(eta - error, 0.0) * fit
    half = math.sqrt(variances[-1] * (max(room - fit, 0.0) + moved) / eta)
    return mean, half + (error * weight + seen) * length


PLAIN = ([0.0, 0.5, 2.0], [0.3, -0.7, 1.1], [[0.1, 0.0], [0.4, -0.2], [0.9, 0.3]], [1.5, 0.7], 1.3, 1.7)
CLOSE = ([0.1, 1.0, 2.0], [0.3, -0.7, 1.1], [[0.1, 0.0], [0.4, -0.2], [1.35, 1.1]], [1.1, 0.65], 1.3, 1.7)
# Variance and s(η) come out negative, so that the margins are all there is; eigenvalues are large, so that each counts.
MARGINS = ([1e8, 3e7, 1.0], [1e4, 10.0, 2.0], [[1e4, 9e3], [0.0, 0.0], [1.0, 2.0]], [1.0, 0.8], 1e-3, 1e-4)


@pytest.mark.parametrize(("case", "eta"), [(PLAIN, 0.3), (PLAIN, 40.0), (MARGINS, 0.01), (MARGINS, 1.0)])
def test_the_dual_is_its_formula_down_to_the_margins(case, eta):
    one = program(*case)
    other = program([4 * v for v in case[0]], *case[1:])
    both = stacked(one, other)
    for b, p in enumerate((one, other)):
        for z in range(2):
            mean, half = by_hand(p, eta, z)
            upper, lower = (end[b, z] for end in both.dual(tensor([[eta], [eta]])))
            lost = 2 * UNIT * abs(mean)  # of the difference
            assert float(upper - lower) == pytest.approx(2 * half, rel=1e-7, abs=lost)
            assert float(upper + lower) == pytest.approx(2 * mean, rel=1e-9, abs=1e-7 * half)
            table = both.dual_table(tensor([[7.0, eta], [7.0, eta]]))
            assert float(table[0][b, 1, z]) == pytest.approx(mean + half, rel=1e-7, abs=0)
            assert float(table[1][b, 1, z]) == pytest.approx(mean - half, rel=1e-7, abs=1e-9 * half)
    if case is MARGINS:
        v, c = tensor(case[0]), tensor(case[2])
        assert float((c[:, 0].square() / (v + eta)).sum()) > 1.0 and bool(
            (both.gap(torch.ones(2, 1).double())[0] < 0).all()
        )


def test_the_spectrum_is_that_of_the_matrix_and_its_radius_the_formula():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(2, 4, 2, dtype=torch.float64, generator=g)
    gram, y = root @ root.mT, torch.randn(2, 4, dtype=torch.float64, generator=g)
    found = Spectrum.of(gram, y)
    assert bool((found.values >= 0.0).all())
    torch.testing.assert_close(found.vectors @ torch.diag_embed(found.values) @ found.vectors.mT, gram)
    torch.testing.assert_close((found.vectors @ found.targets.unsqueeze(-1)).squeeze(-1), y)
    scale, noise, log = tensor([0.7, 2.0]), tensor([0.2, 1.5]), 2.5
    radius_sq = found.radius_sq(scale, noise, log)
    for b in range(2):
        c, R = float(scale[b]), float(noise[b])
        matrix = torch.eye(4).double() + c / R**2 * gram[b]
        fit = float(y[b] @ torch.linalg.solve(matrix, y[b]))
        exact = fit + R**2 * float(torch.linalg.slogdet(matrix).logabsdet) + 2 * R**2 * log
        doubt = 2 * c / R**2 * found.share * float(found.values[b, -1])
        added = 1e-12 * exact + doubt * (fit + R**2 * float(torch.linalg.inv(matrix).trace()))
        assert float(radius_sq[b]) - exact == pytest.approx(added, rel=0.1, abs=0)


def test_multipliers_are_searched_between_rounding_and_the_ball():
    for top, radius_sq, norm, low, high in (
        (1.0, 5.0, 2.0, 1.25e-9, 1e6), (1.0, 1e5, 2.0, 2.5e-5, 2.5e7), (30.0, 1.0, 1.0, 3e-8, 3e7),
    ):  # fmt: skip
        found = program([0.1, top], [0.0, 0.0], [[0.0], [0.0]], [1.0], radius_sq, norm).range()
        assert [float(edge) for edge in found] == pytest.approx([low, high], rel=1e-14, abs=0)


def test_a_set_counts_as_empty_when_its_least_gap_is_below_zero_by_more_than_rounding():
    """One observation: min_η s(η) = R_n² − (|y| − B√v)₊², at η = |y|√v/B − v."""
    v, y, B = 2.0, 3.0, 1.0
    least = (y - B * math.sqrt(v)) ** 2
    at = y * math.sqrt(v) / B - v
    margin = 1e-9 * 2 * (least + at * B**2)  # of the terms of s(η): R_n² + ηB² twice, as s is about 0
    cases = [(least - 2 * margin, y, True), (least - 0.5 * margin, y, False), (least + margin, y, False)]
    cases += [
        (least - 2 * margin, -y, True),
        (1e-9, 0.9 * B * math.sqrt(v), False),
        (0.1, 2.0 * B * math.sqrt(v), True),
    ]
    programs = [program([v], [target], [[0.0]], [1.0], radius_sq, B) for radius_sq, target, _ in cases]
    assert stacked(*programs).empty().tolist() == [told for *_, told in cases]
    assert [bool(p.empty()) for p in programs] == [told for *_, told in cases]


def one_observation(v: float, y: float, c: float, k: float, R: float, B: float) -> tuple[float, float]:
    """max f(z) with |f(x) − y| ≤ R, ‖f‖ ≤ B, and the f(x) of the maximiser: f(z) = ca/v + √(k − c²/v)√(B² − a²/v)."""
    low, high = max(y - R, -B * math.sqrt(v)), min(y + R, B * math.sqrt(v))
    a = min(max(B * c / math.sqrt(k), low), high)
    return c * a / v + math.sqrt((k - c * c / v) * max(B * B - a * a / v, 0.0)), a


OBSERVATIONS = [  # v, y, k, R, B
    (1.0, 0.5, 1.0, 0.2, 1.5), (2.0, -1.0, 0.5, 0.3, 1.0), (0.3, 0.4, 2.0, 0.1, 3.0), (1.0, 0.0, 1.0, 5.0, 1.0),
    (1.0, 1.2, 1.0, 0.3, 1.0),
]  # fmt: skip


def test_one_observation_has_a_closed_form():
    """Upper and lower ends are within 1e-6 of it, outside; the multiplier is where the two constraints meet, or ∞."""
    batch = []
    for v, y, k, R, B in OBSERVATIONS:
        crosses = [s * math.sqrt(v * k) for s in (0.9, -0.5, 0.05)]
        batch.append(program([v], [y], [crosses], [k] * 3, R * R, B))
    upper, lower, at_upper, at_lower = stacked(*batch).solve()
    ends = {"finite": 0, "infinite": 0}
    for i, (v, y, k, R, B) in enumerate(OBSERVATIONS):
        for j, c in enumerate(batch[i].cross[0].tolist()):
            for sign, end, at in ((1.0, upper, at_upper), (-1.0, lower, at_lower)):
                exact, a = one_observation(v, sign * y, c, k, R, B)
                found, eta = sign * float(end[i, j]), float(at[i, j])
                assert exact - 1e-12 <= found <= exact + 1e-6, (i, j, sign)
                free = math.isclose(a, B * c / math.sqrt(k))
                if free:
                    ends["infinite"] += 1
                    assert found == pytest.approx(B * math.sqrt(k), rel=1e-9)
                else:  # stationary in a: η = |∂_a| / (2|a − y|) over (d‖f‖² …), found by a fine search instead
                    ends["finite"] += 1
                    grid = torch.logspace(-2e-3, 2e-3, 81).double() * eta
                    table = batch[i].dual_table(grid)[0 if sign > 0 else 1][:, j] * sign
                    assert float(table.min()) >= found - 1e-8
    assert min(ends.values()) >= 4


def test_golden_sections_close_in_on_the_best_multiplier():
    v, y, k, R, B = OBSERVATIONS[0]
    p = program([v], [y], [[0.9, -0.5]], [k, k], R * R, B)
    eta = torch.linspace(-6, 6, 24001).double().exp()
    for side, sign in ((0, 1.0), (1, -1.0)):
        best = (sign * p.dual_table(eta)[side]).argmin(0)
        target = eta.log()[best]
        value, at = p._golden(target - 0.7, target + 1.3, side, sign, 18)
        assert bool(((at.log() - target).abs() < 3 * 2.0 * 0.6181**18 + 1e-3).all())
        torch.testing.assert_close(sign * value, p.dual(at)[side], rtol=0, atol=1e-15)
        for start in (target - 0.7, target - 0.4, target - 1.0):  # whichever of the last two points is the better one
            best, place = p._golden(start, start + 2.0, side, sign, 2)
            torch.testing.assert_close(best, sign * p.dual(place)[side], rtol=1e-13, atol=0)
        coarse = p._golden(target - 0.7, target + 1.3, side, sign, 4)[1]
        assert bool(((coarse.log() - target).abs() < 2.0 * 0.6181**4).all())


def test_bounds_at_proposals_are_the_least_of_their_neighbours():
    one = program(*PLAIN)
    proposals = tensor([[0.5, 1e-30], [math.nan, -3.0]]), tensor([[1e30, 0.0], [math.inf, 0.02]])
    smallest, largest = (float(edge) for edge in one.range())
    for row in range(2):
        upper, lower = bound_at(one, (proposals[0][row], proposals[1][row]), 0.25)
        for z in range(2):
            for side, found in ((0, float(upper[z])), (1, -float(lower[z]))):
                eta = float(proposals[side][row, z])
                eta = eta if 0.0 < eta < math.inf else 0.25
                tries = [min(max(t, smallest), largest) for t in (eta, 0.99 * eta, 1.01 * eta, 0.25)]
                values = [by_hand(one, t, z) for t in tries]
                ends = [mean + half if side == 0 else half - mean for mean, half in values]
                assert found == pytest.approx(min(1.7 * math.sqrt(PLAIN[3][z]), *ends), rel=1e-12)


def test_a_solver_is_asked_for_the_program_without_its_null_directions():
    """Null directions of the Gram matrix carry data, yet no slope; the optimum and its multiplier are those of the dual."""
    p = program([0.0, 1e-15, 1.0], [0.05, 0.02, 0.5], [[0.0], [0.0], [0.9]], [1.0], 0.3**2, 1.5)
    proposer = Proposer(p.spectrum.values, p.spectrum.targets, p.radius_sq, p.norm)
    inner = math.sqrt(0.3**2 - 0.05**2 - 0.02**2)
    for sign in (1.0, -1.0):
        claim, eta = proposer.optimum(p.cross[:, 0], p.prior[0], sign)
        assert claim == pytest.approx(sign * one_observation(1.0, sign * 0.5, 0.9, 1.0, inner, 1.5)[0], abs=1e-6)
        best = p.dual(tensor([eta]))[0 if sign > 0 else 1]
        assert float(best) == pytest.approx(claim, abs=1e-5)
    above, below = proposer.multipliers(p.cross, p.prior)
    for eta, sign in ((above, 1.0), (below, -1.0)):
        assert eta.tolist() == [proposer.optimum(p.cross[:, 0], p.prior[0], sign)[1]]


def model_of(first: float = 1.0) -> GP:
    """Two outputs with kernels, λ and B of their own; the outcomes of the first are multiplied."""
    x, y = tensor([[0.0], [0.4], [1.0]]), tensor([[0.3, -0.2], [0.5, 0.4], [-0.1, 0.6]])
    two, y = [kernels.rbf(0.5), kernels.rbf(1.0, 2.0)], y * tensor([first, 1.0])
    return GP.create(two, (0.04, 0.09), nx=2, nu=0, noise_std=0.2).condition_on(torch.cat([x, 0 * x], 1), y)


def test_programs_and_betas_are_those_of_their_output():
    model, c = model_of(), 0.7
    bound = ConvexProgram(rkhs_norm=(1.5, 2.0), subgaussian=(0.2, 0.3), delta=0.1, scale=c)
    z = tensor([[0.2, 0.0], [3.0, 0.0]])
    for j, (kernel, norm, noise) in enumerate(zip(model.kernels, (1.5, 2.0), (0.2, 0.3), strict=True)):
        p = bound.program(model, j, z)
        K, y = kernels.cross(kernel, model.inputs, model.inputs), model.targets[:, j]
        lam = float(model.regularizer[j])
        torch.testing.assert_close(p.spectrum.vectors @ p.cross, kernels.cross(kernel, model.inputs, z))
        torch.testing.assert_close(p.prior, kernels.diagonal(kernel, z))
        matrix = torch.eye(3).double() + c / noise**2 * K
        radius_sq = float(y @ torch.linalg.solve(matrix, y)) + noise**2 * (
            float(torch.logdet(matrix)) + 2 * math.log(2 / 0.1)
        )
        assert float(p.radius_sq) == pytest.approx(radius_sq, rel=1e-11) and float(p.norm) == norm
        fit = lam * float(y @ torch.linalg.solve(K + lam * torch.eye(3).double(), y))
        assert float(bound.beta(model)[j]) == pytest.approx(
            math.sqrt((radius_sq + lam * norm**2 - fit) / lam), rel=1e-9
        )
        for ratio in (0.1, 3.0):
            eta = ratio * lam
            fit = eta * float(y @ torch.linalg.solve(K + eta * torch.eye(3).double(), y))
            exact = math.sqrt((radius_sq + eta * norm**2 - fit) / eta)
            assert float(bound.beta_at(model, ratio)[j]) == pytest.approx(exact, rel=1e-9)
        plain = ConvexProgram(rkhs_norm=(1.5, 2.0), subgaussian=(0.2, 0.3), delta=0.1)
        matrix = torch.eye(3).double() + K / lam
        radius_sq = float(y @ torch.linalg.solve(matrix, y)) + noise**2 * (
            float(torch.logdet(matrix)) + 2 * math.log(2 / 0.1)
        )
        assert float(plain.program(model, j, z).radius_sq) == pytest.approx(radius_sq, rel=1e-11)
    mixture = Mixture(rkhs_norm=(1.5, 2.0), subgaussian=(0.2, 0.3), delta=0.1)
    assert torch.equal(plain.beta(model), mixture.beta(model))


@pytest.mark.parametrize("scale", [None, 0.7])
def test_intervals_are_the_least_of_ball_mixture_and_dual_for_every_output(scale):
    model, z = model_of(), tensor([[[0.2, 0.0]], [[3.0, 0.0]], [[0.9, 0.1]]])
    options = {"rkhs_norm": (1.5, 2.0), "subgaussian": (0.2, 0.3), "delta": 0.1}
    bound = ConvexProgram(**options, scale=scale)
    low, high = bound.interval(model, z)
    assert low.shape == (3, 1, 2)
    outer_low, outer_high = Mixture(**options).interval(model, z)
    for j in range(2):
        upper, lower, _, _ = bound.program(model, j, z[:, 0]).solve()
        ends = [upper, bound.prior_width(model, z)[:, 0, j]] + ([outer_high[:, 0, j]] if scale is None else [])
        torch.testing.assert_close(high[:, 0, j], torch.stack(ends).amin(0), rtol=1e-14, atol=0)
        ends = [lower, -bound.prior_width(model, z)[:, 0, j]] + ([outer_low[:, 0, j]] if scale is None else [])
        torch.testing.assert_close(low[:, 0, j], torch.stack(ends).amax(0), rtol=1e-14, atol=0)
    torn = model_of(100.0)  # no f fits the first output's data
    low, high = bound.interval(torn, z)
    width = bound.prior_width(torn, z)
    assert torch.equal(low[..., 0], width[..., 0]) and torch.equal(high[..., 0], -width[..., 0])
    assert bool((low[..., 1] < high[..., 1]).all())


def test_a_solver_that_fails_proposes_nothing(monkeypatch):
    one = program(*PLAIN)
    proposer = Proposer(one.spectrum.values, one.spectrum.targets, one.radius_sq, one.norm)

    def fail(**_):
        raise cp.SolverError("no")

    monkeypatch.setattr(proposer.problem, "solve", fail)
    assert all(math.isnan(v) for v in proposer.optimum(one.cross[:, 0], one.prior[0], 1.0))
    above, below = proposer.multipliers(one.cross, one.prior)
    assert bool(above.isnan().all()) and bool(below.isnan().all()) and len(above) == 2
    monkeypatch.setattr(proposer.problem, "solve", lambda **_: None)  # it ends without a number
    assert all(math.isnan(v) for v in proposer.optimum(one.cross[:, 0], one.prior[0], 1.0))


def test_a_search_that_fails_leaves_the_mixture_and_the_ball(monkeypatch):
    model, z = model_of(), tensor([[0.2, 0.0], [3.0, 0.0], [0.9, 0.1]])
    options = {"rkhs_norm": (1.5, 2.0), "subgaussian": (0.2, 0.3), "delta": 0.1}
    outer, width = Mixture(**options).interval(model, z), ConvexProgram(**options).prior_width(model, z)
    far = torch.full((3,), 1e9).double()
    monkeypatch.setattr(Program, "solve", lambda own: (far, -far, far, far))
    low, high = ConvexProgram(**options).interval(model, z)
    assert torch.equal(low, torch.maximum(-width, outer[0])) and torch.equal(high, torch.minimum(width, outer[1]))
    assert bool((outer[1] < width).any()) and bool((outer[0] > -width).any())


def test_numbers_of_a_solver_are_floats_or_nothing():
    assert math.isnan(_number(None)) and _number([[2.5]]) == 2.5 and _number(3) == 3.0


@pytest.mark.parametrize(("fit", "size", "eta"), [(2.0, 3.0, 0.75), (0.0, 3.0, math.inf), (-1e-9, 3.0, math.inf)])
def test_the_proposed_ratio_of_multipliers_is_infinite_where_the_fit_costs_nothing(fit, size, eta):
    """η = ρ_norm R_n/(ρ_fit B) with R_n = 2 and B = 4."""
    one = object.__new__(Proposer)
    one._roots, one._radius, one._norm = np.ones(2), 2.0, 4.0
    one._slope, one._rest = SimpleNamespace(), SimpleNamespace()  # type: ignore[assignment]
    one._fit, one._size = SimpleNamespace(dual_value=fit), SimpleNamespace(dual_value=size)  # type: ignore[assignment]
    one.problem = SimpleNamespace(value=5.0, solve=lambda **_: None)  # type: ignore[assignment]
    assert one.optimum(torch.zeros(2).double(), torch.tensor(1.0), -1.0) == (-5.0, eta)


def test_the_table_is_read_at_its_multiples_of_lambda():
    """The best of the dual at η = 4^{−3} … 4^7 times λ, within the ball: wider than the search, and not by its formula."""
    model, z = model_of(), tensor([[0.2, 0.0], [3.0, 0.0], [0.9, 0.1]])
    bound = ConvexProgram(rkhs_norm=(1.5, 2.0), subgaussian=(0.2, 0.3), delta=0.1, scale=0.7, method="table")
    low, high = bound.interval(model, z)
    for j, lam in enumerate((0.04, 0.09)):
        p = bound.program(model, j, z)
        for q in range(3):
            best = float(bound.prior_width(model, z)[q, j])
            ends = [by_hand(p, lam * 4.0**k, q) for k in range(-3, 8)]
            assert float(high[q, j]) == pytest.approx(min(best, *(m + h for m, h in ends)), rel=1e-9)
            assert float(low[q, j]) == pytest.approx(max(-best, *(m - h for m, h in ends)), rel=1e-9)
    searched = ConvexProgram(rkhs_norm=(1.5, 2.0), subgaussian=(0.2, 0.3), delta=0.1, scale=0.7).interval(model, z)
    assert bool((searched[1] < high - 1e-6).any()) and bool((searched[1] <= high + 1e-12).all())


def test_what_is_computed_anyway_is_what_a_model_in_theory_mode_gets():
    model, z = model_of(), tensor([[0.2, 0.0], [3.0, 0.0]])
    bound = ConvexProgram(rkhs_norm=(1.5, 2.0), subgaussian=(0.2, 0.3), delta=0.1)
    loose = replace(model, mode="practical")
    with pytest.raises(ValueError, match="unchecked=True"):
        bound.interval(loose, z)
    for found, exact in zip(replace(bound, unchecked=True).interval(loose, z), bound.interval(model, z), strict=True):
        assert torch.equal(found, exact)


@pytest.mark.parametrize("norm", [1e-4, 1.7, 1e4])
def test_the_gap_may_have_moved_by_a_share_of_all_its_terms(norm):
    """s(η) = R² + ηB² − fit: by 1e-13 of the three together, and by the error of the matrix in the fit."""
    p, eta = program(*PLAIN[:-1], norm), 0.3
    fit = eta * sum(t * t / (v + eta) for t, v in zip(PLAIN[1], PLAIN[0], strict=True))
    room, error = 1.3 + eta * norm**2, 2 * UNIT * 2.0
    gap = p.gap(tensor([eta]))
    assert float(gap.value[0]) == pytest.approx(room - fit, rel=1e-13)
    assert float(gap.size[0]) == pytest.approx(room + fit, rel=1e-13)
    assert float(gap.error[0]) == pytest.approx(1e-13 * (room + fit) + error / (eta - error) * fit, rel=1e-9)


def test_the_neighbours_of_a_proposal_are_tried_too():
    """A proposal 1 % beside the best multiplier is as good as that itself; λ is far from both."""
    z = tensor([[0.2, 0.0], [0.6, 0.0], [1.4, 0.0]])
    one = ConvexProgram(rkhs_norm=9.0, subgaussian=0.2, delta=0.1, scale=0.7).program(model_of(), 0, z)
    upper, lower, *best = one.solve()
    for factor in (0.99, 1.01):
        found = bound_at(one, (best[0] / factor, best[1] / factor), 1e6)
        beside = one.dual(best[0] / factor)[0], one.dual(best[1] / factor)[1]
        assert bool((found[0] <= upper + 1e-10).all()) and bool((found[1] >= lower - 1e-10).all())
        assert bool((found[0] < beside[0] - 1e-9).any()) and bool((found[1] > beside[1] + 1e-9).any())
    assert bool((upper < one.ceiling).all()) and bool((lower > -one.ceiling).all())


def test_the_radius_is_rounded_outwards_by_what_the_largest_eigenvalue_blurs():
    """Eigenvalues 1e13, 1, 0 for c = R² = 1: 1/(1 + r) and ln(1 + r) are known to a share s·1e13 of 1 and 1/(1 + r)."""
    values, targets, log, one = [0.0, 1.0, 1e13], [0.5, -2.0, 3e6], 0.75, tensor(1.0)
    fit = sum(t * t / (1 + v) for t, v in zip(targets, values, strict=True))
    exact = fit + sum(math.log1p(v) for v in values) + 2 * log
    for share in (2 * UNIT, 1e-14):
        found = Spectrum(tensor(values), torch.eye(3).double(), tensor(targets), share, 0.5).radius_sq(one, one, log)
        assert float(found) - exact == pytest.approx(2e13 * share * (fit + sum(1 / (1 + v) for v in values)), rel=1e-6)


def test_the_doubt_of_a_spectrum_is_in_units_of_the_norm_and_that_of_a_program_comes_from_its_entries():
    gram, y = tensor([[3.0, 1.0], [1.0, 3.0]]), tensor([1.0, 2.0])
    plain = Spectrum.of(gram, y)
    turned = math.sqrt(2.0) * UNIT  # at most: of two vectors (1, ±1)/√2
    assert 0.0 < plain.share < (3 * math.sqrt(1.5) + 2.5 * math.sqrt(2.0) + 2 * math.sqrt(2.0)) * UNIT
    assert plain.turn == pytest.approx((math.sqrt(2) + 2) * linalg.gamma(6), abs=turned)
    assert Spectrum.of(0 * gram, y, 1e-9).share > 1e200 and Spectrum.of(0 * gram, y).share < 10 * UNIT
    for found in (
        Spectrum.of(gram, y, 1e-9), Spectrum.of(torch.stack([2 * gram, gram]), torch.stack([y, y]), 1e-9),
        Spectrum.of(gram, y, product=2.5e-10),
    ):  # fmt: skip
        assert (found.share, found.turn) == pytest.approx((2.5e-10, 2.5e-10), rel=3e-5)
    kernel, x = kernels.rbf(1.0, 2.0), tensor([[0.0], [1.0]])
    model = GP.create(kernel, 0.1, nx=1, nu=0, noise_std=0.1).condition_on(x, x)
    norm = 2 * (1 + math.exp(-0.5))  # of K, whose trace is 4
    error = 4 * kernels.entry_error(kernel, x, product=False)
    common = {"rkhs_norm": 1.0, "subgaussian": 0.1, "delta": 0.1}
    found, bare = ConvexProgram(**common).program(model, 0, x).spectrum, Spectrum.of(kernels.cross(kernel, x, x), y)
    assert found.share - bare.share == pytest.approx(error / norm, rel=1e-5)
    assert found.turn - bare.turn == pytest.approx(error / norm, rel=1e-5)
    white = NoiseEnergy(**common, noise_kind="bounded", correlation=0.5)
    inverse = torch.linalg.inv(torch.linalg.cholesky(white.covariance(2)))
    seen = inverse @ kernels.cross(kernel, x, x) @ inverse.T
    size = inverse.abs() @ tensor([2.0, 2.0]).sqrt()
    own = error / 4 * float(size @ size) / float(torch.linalg.eigvalsh(seen)[-1])
    found = white.program(model, 0, x).spectrum
    assert (found.share, found.turn) == pytest.approx((own + 2 * 1000 * UNIT,) * 2, rel=2e-2)


def test_vectors_that_are_not_orthonormal_are_seen(monkeypatch):
    """U(1 + 1e-9): φ = 2e-9, e = φ for K − UΛUᵀ, and 2φ for the orthonormal Q beside U; y moves by φ."""
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], eigh(matrix)[1] * (1 + 1e-9)))
    gram = torch.diag(tensor([1.0, 1e-3, 1e-6]))
    found = Spectrum.of(gram, tensor([1.0, 2.0, 3.0]))
    size = 2e-9 * math.sqrt(3.0)
    assert found.turn == pytest.approx(size, rel=1e-5) and found.share == pytest.approx(2e-9 + 2 * size, rel=1e-5)


def test_nothing_is_claimed_at_multipliers_below_four_errors_of_the_matrix():
    p = program(*PLAIN)
    p = replace(p, spectrum=replace(p.spectrum, share=0.1 / 2.0))  # e = 0.1
    at = tensor([[0.39], [0.41], [0.05]])
    assert torch.isfinite(p.dual_table(at[:, 0])[0]).all(-1).tolist() == [False, True, False]
    still = replace(
        p, spectrum=replace(p.spectrum, targets=0 * p.spectrum.targets), prior=0 * p.prior, cross=0 * p.cross
    )
    assert torch.stack(still.table(at[:, 0])).tolist() == [[0.0, 0.0], [0.0, 0.0]]  # at z with k(z, z) = 0


@pytest.mark.parametrize(("case", "eta"), [(PLAIN, 0.3), (PLAIN, 40.0), (CLOSE, 0.01), (CLOSE, 3.0)])
def test_what_blurs_the_matrix_widens_every_term(case, eta):
    """In `CLOSE` the query's weights are small because its variance is."""
    sharp = program(*case)
    p = replace(sharp, spectrum=replace(sharp.spectrum, share=1e-3, turn=2e-3))
    upper, lower = p.dual(tensor([eta]))
    for z in range(len(case[3])):
        mean, half = by_hand(p, eta, z)
        assert float(upper[z]) == pytest.approx(mean + half, rel=1e-12)
        assert float(lower[z]) == pytest.approx(mean - half, rel=1e-12)
        assert half > by_hand(sharp, eta, z)[1]
