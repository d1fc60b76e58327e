"""Affine ranges of the residual against loops: each of the three forms, where it leads, with every one of its terms."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from cost_cases import alone, make_case
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.functionals import functional_beta, jet, taylor_modulus
from gpsafe.cost import local_affine
from gpsafe.cost.local_affine import EMPTY, AffineRange, Displacements, LocalAffine, Moduli
from gpsafe.models import GP
from gpsafe.rkhs import kernels

tensor = partial(torch.tensor, dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_displacements_are_measured_term_by_term(monkeypatch):
    cross = Displacements(0.3 * draw(1, 4, 3), 0.2 * draw(2, 4, 3, 2), 0.1 * draw(3, 4, 3).abs())
    root, normal, scale = draw(4, 4, 2, 3, 3), draw(5, 4, 2, 3), draw(6, 3).abs()
    gram = root @ root.mT
    for n in range(4):
        o, G, e = cross.offset[n], cross.generators[n], cross.error[n]
        radius = [abs(float(o[i])) + sum(abs(float(G[i, j])) for j in range(2)) + float(e[i]) for i in range(3)]
        assert cross.radius[n].tolist() == pytest.approx(radius, rel=1e-14)
        columns = [o, G[:, 0], G[:, 1], *torch.diag(e)]
        for q in range(2):
            S = gram[n, q]
            triangle = sum(float((v @ S @ v).clamp_min(0).sqrt()) for v in columns)
            exact = sum(abs(float(u @ S @ v)) for u in columns for v in columns) ** 0.5
            assert float(cross.seminorm(gram)[n, q]) == pytest.approx(exact, rel=1e-12) and exact < triangle
            monkeypatch.setattr(local_affine, "MANY", 5)
            assert float(cross.seminorm(gram)[n, q]) == pytest.approx(triangle, rel=1e-12)
            monkeypatch.undo()
            exact = sum(abs(float(normal[n, q] @ v)) for v in columns[1:])
            assert float(cross.support(normal)[n, q]) == pytest.approx(exact, rel=1e-12)
        hull = float((tensor(radius) * scale).norm())
        parts = sum(float((v * scale).norm()) for v in columns)
        assert float(cross.scaled_norm(scale)[n]) == pytest.approx(hull, rel=1e-12) and hull <= parts


def test_moduli_of_kernels_that_share_a_shape():
    parts = [
        kernels.rbf([0.5, 2.0, 1.0], 0.49),
        kernels.matern(2.5, [0.8, 0.4], 2.25, dims=[0, 2]),
        kernels.rbf([0.5, 2.0, 1.0], 4.0),
    ]
    forms = [kernels.stationary(kernel) for kernel in parts]
    moduli = Moduli.of(forms, torch.zeros(5, 3).double())
    assert moduli.which == (0, 1, 0) and len(moduli.shapes) == 2
    assert moduli.std.tolist() == pytest.approx([0.7, 1.5, 2.0])
    assert moduli.inverse_scales[0].tolist() == pytest.approx([2.0, 0.5, 1.0])
    assert moduli.inverse_scales[1].tolist() == pytest.approx([1.25, 0.0, 2.5])
    cross = Displacements(0.3 * draw(1, 5, 3), 0.2 * draw(2, 5, 3, 2), 0.1 * draw(3, 5, 3).abs())
    metric, rest = moduli.metric(cross.radius), moduli.rest(cross)
    for j, kernel in enumerate(parts):
        exact = kernels.metric_over_box(kernel, cross.radius)
        torch.testing.assert_close(metric[:, j], exact, rtol=1e-9, atol=0)
        shape = replace(forms[j], variance=1.0)
        exact = taylor_modulus(shape, cross.scaled_norm(moduli.inverse_scales[moduli.which[j]])) * moduli.std[j]
        assert bool((rest[:, j] > exact).all())
        torch.testing.assert_close(rest[:, j], exact, rtol=1e-12, atol=0)
    alone = Moduli.of(forms[:1], torch.zeros(5, 3).double())
    torch.testing.assert_close(alone.metric(cross.radius), metric[:, :1], rtol=1e-14, atol=0)
    pair = Moduli.of([forms[0], forms[2]], torch.zeros(5, 3).double())
    torch.testing.assert_close(pair.rest(cross), rest[:, [0, 2]], rtol=1e-14, atol=0)


COUNT = 160


def enclosures() -> tuple[LocalAffine, Displacements]:
    """Two outputs with d = 3; values, slopes and covariances drawn so that each of the forms leads somewhere."""
    forms = [kernels.stationary(kernels.rbf([0.9, 1.5, 1.2], v)) for v in (1.0, 2.25)]
    root = (
        0.9 * draw(1, COUNT, 2, 4, 4) * torch.rand(COUNT, 1, 1, 1, generator=torch.Generator().manual_seed(9)).double()
    )
    local = LocalAffine(
        0.3 * draw(2, COUNT, 2), 0.2 * draw(3, COUNT, 2).abs(), 0.5 * draw(4, COUNT, 2, 4), root @ root.mT,
        tensor([2.0, 3.0]), tensor([2.0, 4.5]), Moduli.of(forms, torch.zeros(1, 3).double()),
    )  # fmt: skip
    size = torch.logspace(-2, 0.5, COUNT, dtype=torch.float64)[:, None]
    cross = Displacements(
        0.1 * size * draw(5, COUNT, 3),
        0.2 * size[..., None] * draw(6, COUNT, 3, 2),
        0.1 * size * draw(7, COUNT, 3).abs(),
    )
    return local, cross


def naive(local: LocalAffine, cross: Displacements, n: int, j: int) -> tuple[int, float, list[float], float]:
    """Which form leads, and its value, linear part and error, before the cut."""
    o, G, e = cross.offset[n], cross.generators[n], cross.error[n]
    mean, cov, norm = local.mean[n, j], local.cov[n, j], float(local.norm[j])
    metric = float(local.moduli.metric(cross.radius)[n, j])
    rest = float(local.moduli.rest(cross)[n, j])
    slope, S, mixed = mean[1:], cov[1:, 1:], cov[0, 1:]
    columns = (o, G[:, 0], G[:, 1], *torch.diag(e))
    spread = sum(abs(float(u @ S @ v)) for u in columns for v in columns) ** 0.5
    tilt = float(mixed @ o) + sum(abs(float(mixed @ v)) for v in (G[:, 0], G[:, 1], *torch.diag(e)))
    joint = max(0.0, float(cov[0, 0]) + 2 * tilt + spread**2) ** 0.5
    extra = norm * rest + float(slope.abs() @ e)
    half = float(local.half[n, j])
    forms = [
        (float(local.middle[n, j]), [0.0, 0.0], half + norm * metric),
        (float(local.middle[n, j] + slope @ o), (slope @ G).tolist(), half + spread + extra),
        (float(mean[0] + slope @ o), (slope @ G).tolist(), joint + extra),
    ]
    best = min(range(3), key=lambda k: forms[k][2])
    return best, *forms[best]


def test_a_range_is_the_narrowest_of_three_forms_cut_to_the_ball():
    local, cross = enclosures()
    found = local.range_outer(cross)
    led, cut = [0, 0, 0], 0
    for n in range(COUNT):
        for j in range(2):
            best, value, linear, error = naive(local, cross, n, j)
            reach, cap = sum(abs(v) for v in linear), float(local.cap[j])
            if abs(value) + reach + error > cap:
                low, high = max(value - reach - error, -cap), min(value + reach + error, cap)
                value, linear, error, cut = (low + high) / 2, [0.0, 0.0], (high - low) / 2, cut + 1
            else:
                led[best] += 1
            assert float(found.value[n, j]) == pytest.approx(value, rel=1e-10, abs=1e-12)
            assert found.linear[n, j].tolist() == pytest.approx(linear, rel=1e-10, abs=1e-12)
            assert error * (1 + 1e-13) < float(found.error[n, j]) < error * (1 + 1e-10)
    assert min(*led, cut) >= 10, (led, cut)
    assert not bool(found.empty.any())
    blind = replace(local, mean=None, cov=None).range_outer(cross)
    assert not bool(blind.linear.any()) and bool((blind.error >= found.error - found.linear.abs().sum(-1) - 10).all())
    exact = local.half + local.norm * local.moduli.metric(cross.radius)
    half = replace(local, cov=None).range_outer(cross)  # values alone say nothing of slopes
    assert torch.equal(half.error, blind.error) and torch.equal(half.value, blind.value)
    inside = local.middle.abs() + exact <= local.cap
    torch.testing.assert_close(blind.error[inside], exact[inside], rtol=1e-11, atol=0)


def test_the_cut_by_hand():
    local, _ = enclosures()
    half = tensor([[0.1, 0.1]]).expand(7, 2).clone()
    half[4, 0], half[5, 1] = -1.1 * EMPTY * 2.0, -0.9 * EMPTY * 4.5
    local = replace(local, half=half, mean=None, cov=None)
    value = tensor([[0.5, 0.0], [1.9, 0.0], [-1.9, 0.0], [3.0, 0.0], [0.0, 0.0], [0.0, 0.0], [float("nan"), 0.0]])
    linear, error = tensor([0.2, -0.1]).expand(7, 2, 2).clone(), torch.full((7, 2), 0.3).double()
    value[:, 1], error[:, 1] = 3.75, 0.25  # 3.75 + 0.5 + 0.25 is the cap of the second output: just within
    linear[:, 1] = tensor([0.25, -0.25])
    found: AffineRange = local._cut(value, linear, error)
    assert found.value[:, 0].tolist() == pytest.approx([0.5, (1.3 + 2.0) / 2, -(1.3 + 2.0) / 2, (2.4 + 2) / 2, 0, 0, 0])
    assert found.error[:, 0].tolist() == pytest.approx([0.3, 0.35, 0.35, 0.0, 0.3, 0.3, 2.0])
    assert found.linear[:, 0].abs().sum(-1).tolist() == pytest.approx([0.3, 0, 0, 0, 0.3, 0.3, 0])
    assert float(local.cap[1]) == 4.5 and torch.equal(found.linear[:, 1], linear[:, 1])
    assert found.empty.tolist() == [False, False, False, True, True, False, False]


@pytest.mark.parametrize("struck", [math.nan, math.inf, -math.inf])
def test_a_range_that_is_no_number_is_the_whole_ball_and_strikes_no_other(struck):
    local, _ = enclosures()
    local = replace(local, half=torch.ones(3, 2).double(), mean=None, cov=None)
    value, linear, error = draw(1, 3, 2), 0.1 * draw(2, 3, 2, 2), draw(3, 3, 2).abs()
    whole = local._cut(value, linear, error)
    for name in ("value", "linear", "error") if struck != -math.inf else ("value", "linear"):
        parts = {"value": value.clone(), "linear": linear.clone(), "error": error.clone()}
        parts[name][1, 0] = struck
        found = local._cut(**parts)
        assert float(found.value[1, 0]) == 0.0 and not bool(found.linear[1, 0].any())
        assert float(found.error[1, 0]) == pytest.approx(float(local.cap[0]), rel=1e-11)
        others = torch.ones(3, 2, dtype=torch.bool)
        others[1, 0] = False
        for part in ("value", "linear", "error"):
            assert torch.equal(getattr(found, part)[others], getattr(whole, part)[others])


def test_the_metric_is_rounded_outwards_by_less_than_a_trillionth():
    """√(2v(1 − e^{−½‖r/ℓ‖²})) to 40 digits, from radii of 1e-6 to 10 length-scales."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    scale, variance = (0.5, 2.0, 1.0), 0.49
    form = kernels.stationary(kernels.rbf(list(scale), variance))
    moduli = Moduli.of([form], torch.zeros(1, 3).double())
    radius = draw(1, 200, 3).abs() * 10.0 ** torch.linspace(-6, 1, 200, dtype=torch.float64).unsqueeze(-1)
    for r, found in zip(radius.tolist(), moduli.metric(radius)[:, 0].tolist(), strict=True):
        gap = sum((mpmath.mpf(a) / mpmath.mpf(b)) ** 2 for a, b in zip(r, scale, strict=True))
        exact = mpmath.sqrt(-2 * mpmath.mpf(form.variance) * mpmath.expm1(-gap / 2))
        assert exact <= found <= exact * (1 + mpmath.mpf(10) ** -12)


def test_anchors_hold_what_the_posterior_says_there():
    case = alone(make_case("pendulum", (5, 14)))
    F, z = case.confidence, 0.3 * draw(1, 2, 3, 3)
    found = LocalAffine.at(F, z)
    low, high = F.bounds(z)
    torch.testing.assert_close(found.middle, (low + high) / 2)
    torch.testing.assert_close(found.half, (high - low) / 2)
    there, beta = jet(F.model, z), functional_beta(F.bound, F.model)
    torch.testing.assert_close(found.mean, there.mean)
    torch.testing.assert_close(found.cov, there.cov * float(beta) ** 2)
    assert float(beta) != 1.0 and float(found.norm) == pytest.approx(float(case.system.rkhs_norm))
    assert float(found.cap) == pytest.approx(float(found.norm) * float(F.model.kernels[0](z[0, :1], diag=True)) ** 0.5)
    assert LocalAffine.at(F, z, gradients=False).mean is None
    index = torch.tensor([[2, 0, 0, 1], [1, 1, 2, 0]])
    picked = found.gather(index)
    for name in ("middle", "half", "mean", "cov"):
        for p in range(2):
            assert torch.equal(getattr(picked, name)[p], getattr(found, name)[p][index[p]])
    assert picked.norm is found.norm and picked.cap is found.cap and picked.moduli is found.moduli
    bare = LocalAffine.at(F, z, gradients=False).gather(index)
    assert bare.mean is None and bare.cov is None and torch.equal(bare.half, picked.half)
    linear = GP.create(kernels.linear(1.0), 1e-4, nx=1, nu=1, noise_std=0.01)
    with pytest.raises(ValueError, match="LocalAffine: expected stationary kernels"):
        LocalAffine.at(ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.01, delta=0.1)).update(linear), z[0, :, :2])


def test_rounding_makes_no_length_imaginary_and_no_set_empty():
    cross = Displacements(draw(1, 2, 3), draw(2, 2, 3, 2), draw(3, 2, 3).abs())
    assert float(cross.seminorm(-1e-18 * torch.eye(3).double().expand(2, 1, 3, 3)).max()) < 1e-8
    local, _ = enclosures()
    local = replace(local, half=torch.ones(2, 2).double(), mean=None, cov=None)
    value = local.cap * (1 + tensor([[0.5, 0.5], [0.5, 2.0]]) * EMPTY)
    found = local._cut(value, torch.zeros(2, 2, 1).double(), torch.zeros(2, 2).double())
    assert found.empty.tolist() == [False, True]
