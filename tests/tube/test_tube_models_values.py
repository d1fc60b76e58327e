"""What Gaussian-process and ensemble tubes hand to the recursion, against formulas for flat sections, and their radii."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy import stats
from xmpsc_cases import gp_confidence, pendulum_data, pendulum_ensemble

from gpsafe import linalg
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.curvature import remainder_outer
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.models import GP
from gpsafe.models.gp import zero_prior
from gpsafe.rkhs import kernels
from gpsafe.sets._containment import maximize_square
from gpsafe.systems.known import AffineKnown, SineKnown
from gpsafe.tube import EnsembleTube, GPTube, LinearTube, chi_square_radius
from gpsafe.tube.core import sizes
from gpsafe.tube.ensemble import _cells

tensor = partial(torch.tensor, dtype=torch.float64)
X, U, GAIN = tensor([[0.4, -0.7]]), tensor([[0.2]]), tensor([[-0.9, -0.3]])


def gp_tube(mode: str = "sound") -> GPTube:
    confidence = gp_confidence()
    newest = ConfidenceSet(confidence.bound).update(confidence.model)
    return GPTube(newest, 7, 0.02, mode)


@pytest.mark.parametrize("size", [1e-3, 0.1, 2.0, 50.0])
def test_remainders_of_flat_sections_are_the_least_of_their_forms(size):
    """One segment z̄ ± m: the suprema of the quadratic are at its two ends."""
    tube = gp_tube()
    factor = size * tensor([[[0.6], [0.8]]])
    m = torch.cat([factor[0], GAIN @ factor[0]])[:, 0]
    z = torch.cat([X, U], -1)
    local = LocalAffine.at(tube.confidence, z)
    assert local.mean is not None and local.cov is not None
    mean, cov, middle, half = local.mean[0, 0], local.cov[0, 0], float(local.middle[0, 0]), float(local.half[0, 0])
    B, value = float(local.norm[0]), abs(middle - float(mean[0])) + half
    metric = value + abs(float(mean[1:] @ m)) + B * float(local.moduli.metric(m.abs()[None])[0, 0])
    rest = B * float(local.moduli.rest_within(lambda scale: (scale * m).norm()[None])[0, 0])
    ends = [torch.cat([tensor([1.0]), sign * m]) for sign in (-1, 1)]
    joint = max(float(v @ cov @ v) for v in ends) ** 0.5
    apart = value + float(m @ cov[1:, 1:] @ m) ** 0.5
    expected = min(metric, min(joint, apart) + rest)
    total = remainder_outer(tube.model.prior, z, m.abs()[None])[0]
    total[1] += expected
    found = tube.remainder(X, U, factor, GAIN)[0]
    torch.testing.assert_close(found, total, rtol=1e-8, atol=1e-12)
    assert float(found[1]) >= float(total[1]) * (1 - 1e-13)


def test_remainders_of_several_sections_are_each_ones():
    tube, generator = gp_tube(), torch.Generator().manual_seed(5)
    x, u = X + 0.1 * torch.randn(3, 1, 2, dtype=torch.float64, generator=generator), U.expand(3, 1, 1)
    factor = 0.1 * torch.randn(3, 1, 2, 4, dtype=torch.float64, generator=generator)
    found = tube.remainder(x, u, factor, GAIN)
    assert found.shape == (3, 1, 2)
    for b in range(3):
        torch.testing.assert_close(found[b], tube.remainder(x[b], u[b], factor[b], GAIN), rtol=1e-9, atol=1e-13)
    local = tube.linearise(x, u)
    for b in range(3):
        own = tube.linearise(x[b], u[b])
        for name in ("mean", "A", "B", "variance"):
            torch.testing.assert_close(getattr(local, name)[b], getattr(own, name), rtol=1e-9, atol=1e-13)


def test_the_noise_of_a_plan_has_the_dimensions_that_are_noisy():
    tube = gp_tube()
    assert tube.model.noise_std.tolist()[0] > 0
    bound = replace(tube.confidence.bound, subgaussian=0.2)
    still = ConfidenceSet(bound).update(replace(tube.model, noise_std=tensor([0.0, 0.2])))
    growth = GPTube(still, 7, 0.02, noise="sums").growth
    assert growth is not None
    for k, dim in ((1, 1), (2, 2), (7, 2)):  # sums of k noises have min(nx, k) dimensions
        exact = chi_square_radius(dim, 0.02, 7) / chi_square_radius(1, 0.02, 7) * (1 + 1e-14)
        assert growth(k) == pytest.approx(exact, rel=4e-16, abs=0)
    variance = GPTube(still, 7, 0.02).linearise(X, U).variance[0]
    assert variance.tolist() == pytest.approx([0.0, (0.2 * chi_square_radius(1, 0.02, 7)) ** 2], rel=1e-12)


def test_each_form_is_the_least_somewhere():
    tube, forms = gp_tube(), set()
    for x in (X, tensor([[1.1, 5.5]]), tensor([[0.0, 0.0]])):
        for size in (1e-3, 0.1, 2.0, 50.0):
            factor = size * tensor([[[0.6], [0.8]]])
            m = torch.cat([factor[0], GAIN @ factor[0]])[:, 0]
            local = LocalAffine.at(tube.confidence, torch.cat([x, U], -1))
            cov, value = local.cov[0, 0], float((local.middle - local.mean[..., 0]).abs() + local.half)
            joint = max(float(v @ cov @ v) for v in (torch.cat([tensor([1.0]), s * m]) for s in (-1, 1))) ** 0.5
            rest = float((local.norm * local.moduli.rest_within(lambda s, m=m: (s * m).norm()[None]))[0, 0])
            metric = (
                value
                + float((local.mean[0, 0, 1:] @ m).abs())
                + float((local.norm * local.moduli.metric(m.abs()[None]))[0, 0])
            )
            apart = value + float(m @ cov[1:, 1:] @ m) ** 0.5
            forms.add(
                min((("joint", joint + rest), ("apart", apart + rest), ("metric", metric)), key=lambda f: f[1])[0]
            )
    assert {"joint", "metric"} <= forms


def test_linearisations_are_the_posteriors_with_the_noise_of_all_steps():
    tube, paper = gp_tube(), gp_tube("paper")
    model = tube.model
    local, published = tube.linearise(X, U), paper.linearise(X, U)
    predicted = model.predict(X, U)
    A, B = jacobians(model.prior, X, U)
    slope = model.gradient(torch.cat([X, U], -1))[0][:, 0]
    torch.testing.assert_close(local.mean, predicted.mean)
    torch.testing.assert_close(local.A[0, 0], A[0, 0])  # not learned
    torch.testing.assert_close(local.A[0, 1], A[0, 1] + slope[0, :2])
    torch.testing.assert_close(local.B[0, 1], B[0, 1] + slope[0, 2:])
    noisy = int((model.noise_std > 0).sum())
    torch.testing.assert_close(local.variance[0], stats.chi2.isf(0.02 / 7, noisy) * model.noise_std.square())
    torch.testing.assert_close(published.variance, predicted.std.square() + model.noise_std.square())
    assert not bool(paper.remainder(X, U, torch.eye(2).double()[None], GAIN).any())
    assert (tube.num_members, tube.nx, tube.nu) == (1, 2, 1)


def test_nothing_is_claimed_where_a_section_is_not_finite():
    tube = gp_tube()
    good = 0.1 * torch.eye(2).double()[None]
    for x, factor in ((X * math.inf, good), (X, good * math.nan), (X, good * math.inf), (X * math.nan, good)):
        assert tube.remainder(x, U, factor, GAIN).tolist() == [[math.inf, math.inf]]
    assert bool(torch.isfinite(tube.remainder(X, U, good, GAIN)).all())


def test_radii_are_quantiles_with_the_union_over_steps():
    assert chi_square_radius(3, 0.1, 5) == pytest.approx(math.sqrt(stats.chi2.ppf(1 - 0.1 / 5, 3)), rel=1e-9)
    assert chi_square_radius(0, 0.1, 5) == 0.0
    for delta, steps in ((0.0, 5), (1.0, 5), (0.1, 0)):
        with pytest.raises(ValueError, match="expected"):
            chi_square_radius(2, delta, steps)
    ensemble = pendulum_ensemble()
    sound = EnsembleTube.sound(ensemble, steps=5, delta=0.1, aleatoric=1.5, epistemic=0.7)
    assert sound.radius == pytest.approx(1.5 * chi_square_radius(2, 0.1, 5) + 0.7, rel=1e-14)
    assert EnsembleTube.paper(ensemble).radius == 1.0
    for bad in ({"aleatoric": 0.0}, {"epistemic": -1e-9}):
        with pytest.raises(ValueError, match=r"EnsembleTube\.sound"):
            EnsembleTube.sound(ensemble, steps=5, delta=0.1, **bad)


@pytest.mark.parametrize(("steps", "delta", "count"), [(4, 0.1, 57), (1, 0.3, 9), (4, 0.1, 39)])
def test_calibrated_radii_are_the_ranked_score(steps, delta, count):
    ensemble, data = pendulum_ensemble(), pendulum_data(count, 5)
    mean, std = ensemble.evaluate(data.x, data.u)
    scores = sorted(
        max(float(((data.x_next[i] - mean[m, i]) / std[m, i]).norm()) for m in range(3)) for i in range(count)
    )
    rank = math.ceil((count + 1) * (1 - delta / steps))
    tube = EnsembleTube.calibrated(ensemble, data, steps=steps, delta=delta)
    assert tube.radius == pytest.approx(scores[rank - 1], rel=1e-12)
    least = math.ceil(steps / delta) - 1
    few = pendulum_data(least - 1, 5)
    with pytest.raises(ValueError, match=f"at least {least} held-out rows"):
        EnsembleTube.calibrated(ensemble, few, steps=steps, delta=delta)


def test_cells_are_the_cubes_of_a_grid_that_meet_the_ball():
    centers, half = _cells(2, 30, torch.zeros(1).double())
    assert half == 1 / 5
    every = [(a, b) for a in (-0.8, -0.4, 0.0, 0.4, 0.8) for b in (-0.8, -0.4, 0.0, 0.4, 0.8)]
    assert len(centers) == sum(math.hypot(max(abs(a) - 0.2, 0), max(abs(b) - 0.2, 0)) <= 1 for a, b in every)
    one, whole = _cells(3, 7, torch.zeros(1).double())
    assert whole == 1.0 and one.tolist() == [[0.0, 0.0, 0.0]]
    assert _cells(3, 27, torch.zeros(1).double())[1] == pytest.approx(1 / 3)
    assert _cells(3, 64, torch.zeros(1).double())[1] == 1 / 4  # 64^(1/3) comes out below 4
    fine = [(2 * i + 1) / 9 - 1 for i in range(9)]
    near = [(a, b) for a in fine for b in fine if math.hypot(max(abs(a) - 1 / 9, 0), max(abs(b) - 1 / 9, 0)) <= 1]
    assert len(_cells(2, 81, torch.zeros(1).double())[0]) == len(near) < 81


@pytest.mark.parametrize("options", [{"cells": 0}, {"cells": 2.5}, {"steps": 0}])
def test_counts_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match=rf"EnsembleTube: expected .*{next(iter(options))}"):
        EnsembleTube(pendulum_ensemble(), "sound", **options)


@pytest.mark.parametrize("cells", [1, 9])
def test_ensemble_remainders_are_the_worst_cube(cells):
    """|g(z_c)| + h Σ_j |((∂μ(z_c) − ∂μ(z̄))M)_j| + ½ rᵀHr and radius (sup σ − σ(z̄)), cube by cube and member by member."""
    model = EnsembleTube(pendulum_ensemble(), "sound", 1.7, (), cells)
    x, u = tensor([[3.2, 0.4], [3.1, 0.1], [2.9, -0.3]]), tensor([[0.1], [0.2], [0.3]])
    factor = 0.05 * torch.randn(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = model.remainder(x, u, factor, GAIN)
    side = math.isqrt(cells)
    line = [(2 * i + 1) / side - 1 for i in range(side)]
    M = torch.cat([factor, GAIN @ factor], -2)
    z = torch.cat([x, u], -1)
    mean, slope, std = model._local(z)
    worst, spread = torch.zeros(3, 2).double(), torch.zeros(3, 2).double()
    for corner in ((a, b) for a in line for b in line):
        point = z + (M @ tensor(corner)[:, None]).squeeze(-1)
        reach = M.abs().sum(-1) / side
        there = model._local(point)
        H, sup = model._over(point, reach)
        for m in range(3):
            gap = (there[0] - mean)[m] - slope[m] @ (point - z)[m]
            turned = ((there[1] - slope)[m] @ M[m]).abs().sum(-1) / side
            bent = 0.5 * torch.stack([reach[m] @ H[m, i] @ reach[m] for i in range(2)])
            worst[m] = torch.maximum(worst[m], gap.abs() + turned + bent)
            spread[m] = torch.maximum(spread[m], 1.7 * (sup[m] - std[m]))
    torch.testing.assert_close(found, worst + spread.clamp_min(0.0), rtol=1e-9, atol=0)
    assert bool((found >= worst + spread).all())
    for m in range(3):
        predicted = model.ensemble.evaluate(x[m : m + 1], u[m : m + 1])
        torch.testing.assert_close(model.linearise(x, u).mean[m], predicted[0][m, 0])
        torch.testing.assert_close(model.linearise(x, u).variance[m].sqrt(), 1.7 * predicted[1][m, 0])


def test_networks_are_bounded_over_the_whole_cell_in_their_own_units(monkeypatch):
    """The box z ± reach in normalised coordinates, outwards by its rounding; second derivatives and σ in those of x and z."""
    tube = EnsembleTube(pendulum_ensemble(), "sound", 1.7)
    model, g = tube.ensemble, torch.Generator().manual_seed(3)
    z, reach = 2 * torch.randn(2, 3, 3, dtype=torch.float64, generator=g), tensor([0.3, 0.7, 0.05]).expand(2, 3, 3)
    asked, ranges = [], type(model.network).ranges
    monkeypatch.setattr(type(model.network), "ranges", lambda own, *box: asked.append(box) or ranges(own, *box))
    hessian, std = tube._over(z, reach)
    ((low, high),) = asked
    found = ranges(model.network, low, high)
    limits, scale = model.log_var_limits, model.inputs.scale
    for m in range(3):
        for b in range(2):
            for j in range(3):
                offset, unit = float(model.inputs.offset[j]), float(scale[j])
                slack = 1e-15 * (abs(float(z[b, m, j])) + float(reach[b, m, j]) + abs(offset)) / unit
                below = (float(z[b, m, j]) - float(reach[b, m, j]) - offset) / unit - slack
                above = (float(z[b, m, j]) + float(reach[b, m, j]) - offset) / unit + slack
                assert float(low[m, b, j]) == pytest.approx(below, rel=3e-16, abs=1e-16)
                assert float(high[m, b, j]) == pytest.approx(above, rel=3e-16, abs=1e-16)
            exact = found.hessian[m, b, :2] / (scale[:, None] * scale) * model.targets.scale[:, None, None]
            torch.testing.assert_close(hessian[b, m] / exact, torch.full_like(exact, 1 + 1e-12), rtol=1e-14, atol=0)
            raw = (found.value + found.value_radius)[m, b, 2:]
            torch.testing.assert_close(std[b, m], (0.5 * model._log_var(raw)).exp(), rtol=1e-14, atol=0)
            assert bool((std[b, m] <= (0.5 * limits[1]).exp() * (1 + 1e-12)).all())


def test_remainders_of_ensembles_over_a_known_part_add_its_own():
    """On sections with fewer columns than states; for batches of any shape; priors of unknown curvature are refused."""
    ensemble, known = pendulum_ensemble(), gp_tube().model.prior
    plain = EnsembleTube(replace(ensemble, prior=zero_prior), "sound", 1.7, (), 5)
    added = EnsembleTube(replace(ensemble, prior=known), "sound", 1.7, (), 5)
    x, u, factor = X.expand(3, 2), U.expand(3, 1), 0.2 * tensor([[[0.6], [0.8]]] * 3)
    without, found = plain.remainder(x, u, factor, GAIN), added.remainder(x, u, factor, GAIN)
    M, z = torch.cat([factor, GAIN @ factor], -2), torch.cat([x, u], -1)
    assert len(_cells(1, 5, z)[0]) == 5
    least = torch.zeros(3, 2).double()
    for xi in (-0.8, -0.4, 0.0, 0.4, 0.8):
        point, reach = z + xi * M[..., 0], M[..., 0].abs() / 5
        (mean, slope, _), (there, turned, _) = added._local(z), added._local(point)
        bent = (there - mean - (slope @ (point - z).unsqueeze(-1)).squeeze(-1)).abs()
        bent = bent + ((turned - slope) @ M).abs().sum(-1) / 5
        H, _ = added._over(point, reach)
        bent = bent + 0.5 * torch.einsum("mijk,mj,mk->mi", H, reach, reach) + remainder_outer(known, point, reach)
        least = torch.maximum(least, bent)
    grown = torch.stack(
        [added._over(z + xi * M[..., 0], M[..., 0].abs() / 5)[1] for xi in (-0.8, -0.4, 0.0, 0.4, 0.8)]
    ).amax(0)
    spread = 1.7 * (grown * (1 + 1e-12) - added._local(z)[2]).clamp_min(0.0)
    torch.testing.assert_close(found, least * (1 + 1e-12) + spread, rtol=2e-13, atol=0)
    assert bool((found > without).any())
    stacked = added.remainder(x.expand(2, 4, 3, 2), u.expand(2, 4, 3, 1), factor.expand(2, 4, 3, 2, 1), GAIN)
    torch.testing.assert_close(stacked, found.expand(2, 4, 3, 2), rtol=1e-11, atol=0)
    with pytest.raises(ValueError, match="hessian_bound"):
        EnsembleTube(replace(ensemble, prior=lambda x, u: x), "sound").remainder(x, u, factor, GAIN)


def test_linear_tubes_are_their_plant_and_add_nothing():
    plant = AffineKnown(tensor([[1.0, 0.5], [0.0, 0.9]]), tensor([[0.1], [2.0]]), tensor([0.3, -0.2]))
    tube = LinearTube(plant, [0.2, 0.0])
    x, u = tensor([[1.0, -2.0], [0.5, 3.0]]), tensor([[0.7], [-1.0]])
    local = tube.linearise(x, u)
    for i in range(2):
        exact = plant.A @ x[i] + plant.B @ u[i] + plant.c
        torch.testing.assert_close(local.mean[i], exact)
        assert torch.equal(local.A[i], plant.A) and torch.equal(local.B[i], plant.B)
        assert local.variance[i].tolist() == [0.2 * 0.2, 0.0]
    shared = tube.linearise(x, u[0])
    assert (
        torch.equal(shared.A, local.A) and torch.equal(shared.B, local.B) and torch.equal(shared.mean[0], local.mean[0])
    )
    assert tube.remainder(x, u, torch.eye(2).double().expand(2, 2, 2), GAIN).tolist() == [[0.0, 0.0]] * 2
    terms = sizes(tube, local, x.abs(), u, 0 * GAIN)  # all that there are
    torch.testing.assert_close(terms, local.mean.abs() + x.abs() @ plant.A.abs().mT + u.abs() @ plant.B.abs().mT)
    assert (tube.nx, tube.nu, tube.num_members, tube.mode) == (2, 1, 1, "sound")
    assert [belief.kind.name for belief in tube.assumptions] == ["KNOWN_OUTPUTS", "NOISE_ELLIPSOID", "ROUNDING"]
    for bad in (
        {"mode": "both"},
        *({"half_axes": axes} for axes in ([0.2], [0.2, -1e-9], [0.2, 1e-151], [0.2, 1e151])),
    ):
        with pytest.raises(ValueError, match="LinearTube"):
            LinearTube(plant, **{"half_axes": [0.2, 0.0], **bad})


def test_gaussian_process_tubes_take_batches_of_any_shape():
    """Each point as if it were alone: inputs shared by a batch, sections of their own."""
    tube, g = gp_tube(), torch.Generator().manual_seed(4)
    x, u = 0.4 * torch.randn(2, 3, 1, 2, dtype=torch.float64, generator=g), tensor([0.2])
    factor = 0.1 * torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=g)
    local, rest = tube.linearise(x, u), tube.remainder(x, u, factor, GAIN)
    assert local.A.shape == (2, 3, 1, 2, 2) and local.B.shape == (2, 3, 1, 2, 1) and rest.shape == (2, 3, 1, 2)
    for i in range(2):
        for j in range(3):
            one = tube.linearise(x[i, j], u)
            for name in ("mean", "A", "B", "variance"):
                torch.testing.assert_close(getattr(local, name)[i, j], getattr(one, name), rtol=1e-10, atol=1e-12)
            alone = tube.remainder(x[i, j], u, factor[i, j], GAIN)
            torch.testing.assert_close(rest[i, j], alone, rtol=1e-9, atol=1e-13)


def bent_tube(kernel=None) -> GPTube:
    """The pendulum's data over a known part whose first state, which is not learned, bends."""
    F, B = gp_confidence(), tensor([[0.1], [0.2]])
    known = SineKnown(
        torch.eye(2).double(), B, tensor([0.0, 0.0]), tensor([[0.3, 0.1]]), tensor([[1.0, 0.5, 0.2]]), tensor([0.1])
    )
    plain = GP.create(
        kernel or F.model.kernels[0],
        F.model.regularizer,
        nx=2,
        nu=1,
        noise_std=F.model.noise_std,
        outputs=(1,),
        prior=known,
    )
    model = plain.condition_on(F.model.inputs, F.model.targets)
    return GPTube(ConfidenceSet(F.bound).update(model), 7, 0.02)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize(
    ("size", "shift", "half"), [(0.02, 0.02, 1.0), (0.02, 1e-3, 1e-2), (0.3, -0.02, 1.0), (1.0, 1e-3, 0.1)]
)
def test_remainders_of_sections_are_their_least_form_down_to_the_rounding(monkeypatch, rough, size, shift, half):
    """(2) for two columns and a set whose middle is not the mean; a Matérn ½ kernel has no gradients but the posterior's."""
    tube = bent_tube(kernels.matern(0.5, [1.5, 4.0, 2.0], 0.3) if rough else None)
    factor = size * torch.randn(1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    M, z = torch.cat([factor[0], GAIN @ factor[0]]), torch.cat([X, U], -1)
    local = LocalAffine.at(tube.confidence, z)
    local = replace(local, middle=local.middle + shift, half=half * local.half)
    monkeypatch.setattr(LocalAffine, "at", staticmethod(lambda *_: local))
    assert (local.cov is None) == (local.mean is None) == rough
    mean, slope = tube.model.residual_mean(z)[0, 0], tube.model.gradient(z)[0].reshape(3)
    value, B = float((local.middle[0, 0] - mean).abs() + local.half[0, 0]), float(local.norm[0])
    reach = M.norm(dim=1) * (1 + 1e-14)
    forms = [value + float((slope @ M).norm()) + B * float(local.moduli.metric(reach[None])[0, 0])]
    if not rough:
        rest = local.moduli.rest_within(lambda s: torch.linalg.matrix_norm(s[..., None] * M, ord=2)[None] * (1 + 1e-12))
        root = linalg.psd_root(local.cov[0, 0]).mT
        joint = math.sqrt(float(maximize_square(root[:, 0], root[:, 1:] @ M)[0]))
        apart = value + float(torch.linalg.matrix_norm(root[:, 1:] @ M, ord=2))
        assert (apart < joint) == (half < 1.0)
        forms.append(min(joint, apart) * (1 + 1e-10) + B * float(rest[0, 0]))
    bent = remainder_outer(tube.model.prior, z, reach[None])[0]
    found = tube.remainder(X, U, factor, GAIN)[0]
    assert float(found[0]) == pytest.approx(float(bent[0]), rel=4e-15, abs=0)
    assert float(found[1]) == pytest.approx(float(bent[1]) + min(forms) * (1 + 1e-12), rel=3e-13, abs=0)


def test_ensembles_take_inputs_shared_by_a_batch_and_reaches_are_rounded_up(monkeypatch):
    tube, x = EnsembleTube(pendulum_ensemble(), "sound", 1.7, (), 4), X.expand(4, 3, 2)
    one, many = tube.linearise(X.expand(3, 2), U.expand(3, 1)), tube.linearise(x, U[0])
    for name in ("mean", "A", "B", "variance"):
        torch.testing.assert_close(
            getattr(many, name), getattr(one, name).expand_as(getattr(many, name)), rtol=1e-12, atol=0
        )
    asked, over = [], EnsembleTube._over
    monkeypatch.setattr(EnsembleTube, "_over", lambda own, z, reach: asked.append(reach) or over(own, z, reach))
    factor = 0.1 * torch.randn(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tube.remainder(X.expand(3, 2), U.expand(3, 1), factor, GAIN)
    width = 0.5 * torch.cat([factor, GAIN @ factor], -2).abs().sum(-1)
    torch.testing.assert_close(asked[0] / width - 1, torch.full((3, 3), 1e-14).double(), rtol=0.05, atol=0)


def test_the_published_tube_asks_nothing_of_a_known_part_or_of_the_noise():
    """Neither a bound of second derivatives nor R ≥ σ: nothing is claimed; the sound one asks for both."""
    model = GP.create(kernels.rbf([1.0] * 2), 0.01, nx=1, nu=1, noise_std=0.5, prior=lambda x, u: 0.5 * x)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(model)
    assert GPTube(confidence, 7, 0.02, "paper").mode == "paper"
    with pytest.raises(ValueError, match="GPTube"):
        GPTube(confidence, 7, 0.02, "sound")
