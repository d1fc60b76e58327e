"""Boxes of residuals within cells against their formulas, evaluated one cell, corner and coordinate at a time."""

import itertools
import math

import numpy as np
import pytest
import torch

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.functionals import functional_beta, taylor_modulus
from gpsafe.cost import in_cell
from gpsafe.cost.in_cell import InCell, Loop, turn
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.rkhs import kernels

SCALES, VARIANCE, NOISE = [0.8, 1.1, 1.5, 1.3], 0.5, 0.1
KERNELS = {"rbf": kernels.rbf, "matern-5/2": lambda scales, variance: kernels.matern(2.5, scales, variance)}
CURVATURE = {"rbf": 1.0, "matern-5/2": 5.0 / 3.0}  # −κ″(0)


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def loop_of(nu: int) -> Loop:
    """Two policies, three cells, two states."""
    low = 0.3 * uniform(4, 2, 3, nu).abs()
    return Loop(
        radius=0.02 + 0.1 * uniform(1, 3, 2).abs(),
        gain=2 * uniform(2, 2, 3, nu, 2),
        low=low,
        high=low + 0.6,
        bent=0.05 * uniform(3, 2, 3, nu).abs(),
    )


def section(name: str, z: np.ndarray, a: np.ndarray) -> np.ndarray:
    """(k(z, a), ∂k(z, a)/∂a)."""
    scaled = (z - a) / np.array(SCALES[: len(z)])
    r = math.sqrt(float((scaled**2).sum()))
    if name == "rbf":
        value, slope = math.exp(-0.5 * r * r), math.exp(-0.5 * r * r)
    else:
        s = math.sqrt(5.0) * r
        value, slope = (1 + s + s * s / 3) * math.exp(-s), 5.0 / 3.0 * (1 + s) * math.exp(-s)
    return VARIANCE * np.concatenate([[value], slope * scaled / np.array(SCALES[: len(z)])])


def posterior(name: str, inputs: np.ndarray, targets: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (f(a), ∇f(a))."""
    gram = np.array([[section(name, z, other)[0] for other in inputs] for z in inputs])
    inverse = np.linalg.inv(gram + NOISE**2 * np.eye(len(inputs)))
    across = np.array([section(name, z, a) for z in inputs])
    prior = np.diag(np.concatenate([[VARIANCE], VARIANCE * CURVATURE[name] / np.array(SCALES[: len(a)]) ** 2]))
    return across.T @ inverse @ targets, prior - across.T @ inverse @ across


def seminorm(gram: np.ndarray, lean: np.ndarray, loop: Loop, p: int, c: int) -> float:
    """√ of s₀ + 2Σ|Wᵀm|r + Σ|WᵀSW|rr at the worst corner, and Σ√S_uu bent."""
    nu, r = loop.low.shape[-1], loop.radius[c].numpy()
    most = -math.inf
    for corner in itertools.product((0, 1), repeat=nu):
        s = [float((loop.low, loop.high)[end][p, c, i]) for i, end in enumerate(corner)]
        w = np.vstack([np.eye(2), np.diag(s) @ loop.gain[p, c].numpy()])
        inner, tilt = w.T @ gram @ w, w.T @ lean[1:]
        square = lean[0] + sum(2 * abs(tilt[i]) * r[i] for i in range(2))
        square += sum(abs(inner[i, j]) * r[i] * r[j] for i in range(2) for j in range(2))
        most = max(most, square)
    return math.sqrt(most) + sum(math.sqrt(gram[2 + i, 2 + i]) * float(loop.bent[p, c, i]) for i in range(nu))


@pytest.mark.parametrize("nu", [1, 2])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_value_half_error_and_peak_are_what_the_formulas_say(name, nu, monkeypatch):
    class Loud:
        """Margins of rounding that are large enough to be seen: 3 × (prior variance of the functional)."""

        @staticmethod
        def of(model):
            return Loud()

        def output(self, j):
            return self

        def mean(self, prior, posterior):
            assert prior is posterior
            return 3.0 * prior

    kernel = KERNELS[name](SCALES[: 2 + nu], VARIANCE)
    data, targets = uniform(7, 12, 2 + nu), 0.3 * uniform(8, 12, 1)
    model = GP.create(kernel, NOISE**2, nx=2, nu=nu, noise_std=NOISE, outputs=(1,))
    after = torch.cat([torch.zeros(12, 1).double(), targets], -1)
    model = model.condition(Transitions(data[:, :2], data[:, 2:], after))
    confidence = ConfidenceSet(Mixture(rkhs_norm=2.0, subgaussian=NOISE, delta=0.1)).update(model)
    beta = float(functional_beta(confidence.bound, model)[0])
    form, loop, z = kernels.stationary(kernel), loop_of(nu), 0.6 * uniform(9, 2, 3, 2 + nu)
    (before,) = InCell.of(confidence, z, loop)
    monkeypatch.setattr(in_cell, "Rounding", Loud)
    (loud,) = InCell.of(confidence, z, loop)
    step = in_cell.SPACING * np.array(SCALES[: 2 + nu])
    inverse = 1 / np.array(SCALES[: 2 + nu])
    for p, c in itertools.product(range(2), range(3)):
        at = z[p, c].numpy()
        a = np.round(at / step) * step
        w = at - a
        mean, cov = posterior(name, data.numpy(), targets[:, 0].numpy(), a)
        r, gain, high = loop.radius[c].numpy(), loop.gain[p, c].numpy(), loop.high[p, c].numpy()
        inputs = [
            high[i] * sum(abs(gain[i, j]) * r[j] for j in range(2)) + float(loop.bent[p, c, i]) for i in range(nu)
        ]
        reach = np.concatenate([r, inputs])
        far, scaled = (math.sqrt(float(((v * inverse) ** 2).sum())) for v in (w, reach))
        lean = np.concatenate([[cov[0, 0] + 2 * cov[0, 1:] @ w + w @ cov[1:, 1:] @ w], cov[0, 1:] + cov[1:, 1:] @ w])
        both, own = seminorm(cov[1:, 1:], lean, loop, p, c), seminorm(cov[1:, 1:], np.zeros(3 + nu), loop, p, c)
        rest, bend = (float(taylor_modulus(form, torch.tensor(v, dtype=torch.float64))) for v in (far + scaled, scaled))
        bow = float(turn(form, torch.tensor(far, dtype=torch.float64))) * scaled + bend
        priors = VARIANCE * (1 + CURVATURE[name] * (far + scaled) ** 2), VARIANCE * CURVATURE[name] * scaled**2
        for found, margin in ((before, 0.0), (loud, 3.0)):
            close = {"rel": 1e-7}
            assert float(found.value[p, c, 0]) == pytest.approx(mean[0] + mean[1:] @ w, **close)
            assert found.slope[p, c, 0].tolist() == pytest.approx(mean[1:].tolist(), **close)
            assert float(found.half[p, c, 0]) == pytest.approx(beta * both + 2.0 * rest + margin * priors[0], **close)
            assert float(found.error[p, c, 0]) == pytest.approx(beta * own + 2.0 * bow + margin * priors[1], **close)
            assert float(found.peak[p, c, 0]) == pytest.approx(both + rest, **close)


def test_two_outputs_have_each_its_own_kernel(monkeypatch):
    """As two models of one output: half of δ each, and a lattice by the shorter of the length-scales, half of the others."""
    family = [kernels.rbf(SCALES[:3], VARIANCE), kernels.matern(2.5, [2 * s for s in SCALES[:3]], 0.7)]
    data, targets = uniform(7, 12, 3), 0.3 * uniform(8, 12, 2)

    def answer(outputs: list[int], delta: float) -> InCell:
        own = [family[i] for i in outputs]
        model = GP.create(own, NOISE**2, nx=2, nu=1, noise_std=NOISE, outputs=outputs)
        model = model.condition_on(data, targets[:, outputs])
        bound = Mixture(rkhs_norm=torch.tensor([1.5, 2.0])[outputs].double(), subgaussian=NOISE, delta=delta)
        (found,) = InCell.of(ConfidenceSet(bound).update(model), 0.6 * uniform(9, 2, 3, 3), loop_of(1))
        return found

    both, spacing = answer([0, 1], 0.2), in_cell.SPACING
    for i in range(2):
        monkeypatch.setattr(in_cell, "SPACING", spacing / (1 + i))
        alone = answer([i], 0.1)
        for name in ("value", "half", "error", "peak"):
            torch.testing.assert_close(getattr(both, name)[..., i], getattr(alone, name)[..., 0], rtol=1e-9, atol=0)
        torch.testing.assert_close(both.slope[..., i, :], alone.slope[..., 0, :], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_rows_are_the_largest_of_the_corners_or_above_them(nu):
    """|Ad + B(s∘Gd + e)|: exact for one input; for several the triangle inequality, above every corner."""
    loop, a, b = loop_of(nu), uniform(5, 2, 3, 4, 2), uniform(6, 2, 3, 4, nu)
    found, inputs = loop.rows(a, b), loop.inputs
    for p, c, i in itertools.product(range(2), range(3), range(4)):
        r, gain = loop.radius[c].numpy(), loop.gain[p, c].numpy()
        bent = sum(abs(float(b[p, c, i, k])) * float(loop.bent[p, c, k]) for k in range(nu))
        corners = [
            sum(
                abs(float(a[p, c, i, j]) + sum(float(b[p, c, i, k]) * s[k] * gain[k, j] for k in range(nu))) * r[j]
                for j in range(2)
            )
            for s in itertools.product(*[(float(loop.low[p, c, k]), float(loop.high[p, c, k])) for k in range(nu)])
        ]
        mid = [0.5 * float(loop.low[p, c, k] + loop.high[p, c, k]) for k in range(nu)]
        half = [0.5 * float(loop.high[p, c, k] - loop.low[p, c, k]) for k in range(nu)]
        centre = sum(
            abs(float(a[p, c, i, j]) + sum(float(b[p, c, i, k]) * mid[k] * gain[k, j] for k in range(nu))) * r[j]
            for j in range(2)
        )
        spread = sum(abs(float(b[p, c, i, k])) * half[k] * abs(gain[k, j]) * r[j] for k in range(nu) for j in range(2))
        assert float(found[p, c, i]) >= max(corners) + bent - 1e-14
        assert float(found[p, c, i]) == pytest.approx((max(corners) if nu == 1 else centre + spread) + bent, rel=1e-12)
        for k in range(nu):
            held = float(loop.high[p, c, k]) * sum(abs(gain[k, j]) * r[j] for j in range(2)) + float(loop.bent[p, c, k])
            assert float(inputs[p, c, k]) == pytest.approx(held, rel=1e-12)


def test_anchors_are_the_nearest_points_of_the_lattice_each_once():
    z = 0.3 * uniform(3, 2, 40, 3)
    z[..., 1] *= 7.0
    anchors, index = in_cell._anchors(z, torch.tensor([1.0, 0.0, 2.0]).double())
    step = torch.tensor([in_cell.SPACING, 1.0, in_cell.SPACING / 2], dtype=torch.float64)
    nearest = (z / step).round() * step * torch.tensor([1.0, 0.0, 1.0]).double()
    torch.testing.assert_close(anchors[index], nearest, rtol=0, atol=1e-15)
    assert (
        len(anchors)
        == len({tuple(row) for row in nearest.reshape(-1, 3).tolist()})
        == len(set(map(tuple, anchors.tolist())))
    )


def test_anchors_of_a_whole_lattice_stay_apart():
    """Codes of places: odd and even numbers of points along four axes."""
    axes = [torch.arange(n, dtype=torch.float64) - 1 for n in (3, 2, 4, 3)]
    z = in_cell.SPACING * torch.cartesian_prod(*axes)
    anchors, index = in_cell._anchors(z.reshape(2, 36, 4), torch.ones(4).double())
    assert len(anchors) == 72 and len(index.unique()) == 72
    torch.testing.assert_close(anchors[index].reshape(72, 4), z, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("nu", "curve"), [(math.inf, 3.0), (2.5, 25.0), (1.5, math.nan)])
def test_gradients_turn_by_no_more_than_is_said(nu, curve):
    """√(κ⁗(0))h, for Matérn 3/2 √(12√3 h); above √(2(κ″(h) − κ″(0))), and equal to it for small h."""
    kernel = kernels.rbf(1.0, VARIANCE) if math.isinf(nu) else kernels.matern(nu, 1.0, VARIANCE)
    form, zero = kernels.stationary(kernel), {math.inf: 1.0, 2.5: 5 / 3, 1.5: 3.0}[nu]
    assert form is not None
    for h in (0.0, 1e-3, 0.2, 2.0):
        found = float(turn(form, torch.tensor(h, dtype=torch.float64)))
        rate = math.sqrt(12 * math.sqrt(3) * h) if nu == 1.5 else math.sqrt(curve) * h
        assert found == pytest.approx(math.sqrt(VARIANCE) * rate * (1 + 1e-14), rel=2e-15)
        a = math.sqrt(2 * nu) * h if nu < 9 else h
        second = {
            math.inf: (a * a - 1) * math.exp(-a * a / 2),
            2.5: -5 / 3 * (1 + a - a * a) * math.exp(-a),
            1.5: -3 * (1 - a) * math.exp(-a),
        }[nu]
        exact = math.sqrt(2 * VARIANCE * (second + zero))
        assert exact <= found * (1 + 1e-9) and (h != 1e-3 or exact > 0.99 * found)
