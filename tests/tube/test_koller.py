"""Koller's tubes: the papers' recursion in plain loops, what it contains, and what wrong constants do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from xmpsc_cases import gp_confidence, gp_pendulum, plan, propose

from gpsafe.assumptions import Assumption
from gpsafe.certify import judge
from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.rkhs.functions import RKHSFunction, random_function
from gpsafe.sets import Ellipsoid
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_pendulum
from gpsafe.tube import Constants, KollerTube, chi_square_radius, propagate

GAIN = torch.tensor([[-3.0, -0.6]], dtype=torch.float64)
START = torch.tensor([0.3, -0.5], dtype=torch.float64)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def affine_confidence(seed: int, count: int, *, value: float = 2.0) -> ConfidenceSet:
    """Two learned outputs about an affine known part, no process noise, β by hand: the papers' setting."""
    known = AffineKnown(
        0.9 * torch.eye(2).double() + 0.1 * draw(seed, 2, 2), draw(seed + 1, 2, 1), torch.zeros(2).double()
    )
    kernel = [kernels.rbf([0.8, 1.1, 1.3], variance=0.2), kernels.matern(2.5, [1.2, 0.9, 1.0], variance=0.1)]
    model = GP.create(kernel, 0.01, nx=2, nu=1, noise_std=0.0, prior=known)
    if count:
        model = model.condition_on(draw(seed + 2, count, 3), 0.3 * draw(seed + 3, count, 2))
    return ConfidenceSet(Constant(value=value)).update(model)


def naive(confidence: ConfidenceSet, constants: Constants, form: str, x0, inputs, gain, beta: float):
    """`onestep_reachability` of the papers' program, chained; numpy, one number at a time."""
    model = confidence.model
    z_of = lambda x, u: torch.tensor([*x, *u], dtype=torch.float64)  # noqa: E731
    data, targets, lam = model.inputs, model.targets, model.regularizer[0].item()
    assert isinstance(model.prior, AffineKnown)
    A, B = (m.numpy() for m in (model.prior.A, model.prior.B))

    def posterior(z, j):
        k = model.kernels[j]
        k_zz = float(k(z[None], z[None]).to_dense())
        if data is None or targets is None:
            return 0.0, math.sqrt(k_zz)
        K, k_z = k(data, data).to_dense().detach().numpy(), k(data, z[None]).to_dense().detach().numpy()[:, 0]
        M = np.linalg.inv(K + lam * np.eye(len(K)))
        return k_z @ M @ targets[:, j].numpy(), math.sqrt(k_zz - k_z @ M @ k_z)

    def slope(z, j):
        grad = np.zeros(3)
        for i in range(3):  # central differences of the mean
            step = torch.zeros(3).double()
            step[i] = 1e-5
            grad[i] = (posterior(z + step, j)[0] - posterior(z - step, j)[0]) / 2e-5
        return grad

    def ellipsoid_from_rectangle(ub):
        return np.diag([len(ub) * b**2 for b in ub])

    def sum_two_ellipsoids(q_1, q_2):
        c = math.sqrt(np.trace(q_1) / np.trace(q_2))
        return (1 + 1 / c) * q_1 + (1 + c) * q_2

    p, q, centers, shapes = x0.numpy(), np.zeros((2, 2)), [x0.numpy()], [np.zeros((2, 2))]
    K = gain.numpy()
    for u in inputs.numpy():
        z = z_of(p, u)
        S = np.hstack([np.eye(2), K.T])
        r_sqr = max(np.linalg.eigvals(q @ S @ S.T).real)
        mu, sigma = zip(*(posterior(z, j) for j in range(2)), strict=True)
        jac = np.stack([slope(z, j) for j in range(2)]) if form == "mean" else np.zeros((2, 3))
        H = A + jac[:, :2] + (B + jac[:, 2:]) @ K
        p_next = A @ p + B @ u + np.array(mu)
        affine = H @ q @ H.T
        if form == "mean":
            ub_mean = [0.5 * constants.slope[j].item() * r_sqr for j in range(2)]
            ub_sigma = [beta * (sigma[j] + constants.std[j].item() * math.sqrt(r_sqr)) for j in range(2)]
            q_next = ellipsoid_from_rectangle(ub_sigma)
            if r_sqr > 0:
                q_next = sum_two_ellipsoids(sum_two_ellipsoids(q_next, ellipsoid_from_rectangle(ub_mean)), affine)
        else:
            ub = [constants.value[j].item() * math.sqrt(r_sqr) + beta * sigma[j] for j in range(2)]
            q_next = ellipsoid_from_rectangle(ub)
            if r_sqr > 0:
                q_next = sum_two_ellipsoids(q_next, affine)
        p, q = p_next, q_next
        centers.append(p)
        shapes.append(q)
    return np.stack(centers), np.stack(shapes)


@pytest.mark.parametrize("count", [0, 7])
@pytest.mark.parametrize("form", ["mean", "known"])
@given(seeds())
@settings(max_examples=1)
def test_the_recursion_is_that_of_the_papers(form, count, seed):
    confidence = affine_confidence(seed, count)
    constants = Constants(*(0.3 * draw(seed + k, 2).abs() for k in (4, 5, 6)))
    tube = KollerTube(confidence, 3, 0.1, form, constants)
    x0, inputs, gain = draw(seed + 7, 2), 0.5 * draw(seed + 8, 3, 1), -0.3 * draw(seed + 9, 1, 2)
    found = propagate(tube, x0, inputs, gain)
    centers, shapes = naive(confidence, constants, form, x0, inputs, gain, 2.0)
    np.testing.assert_allclose(found.center[0], centers, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.shape[0], shapes, rtol=1e-6, atol=1e-10)


def learned(seed: int) -> tuple[ConfidenceSet, list[RKHSFunction]]:
    """Two functions of norm 1 after exact observations near 0: |f − μ| ≤ ‖f‖σ, surely, so that β = 1 is right (and sharp)."""
    confidence = affine_confidence(seed, 0)
    model, generator = confidence.model, torch.Generator().manual_seed(seed)
    box = (-2.0 * torch.ones(3).double(), 2.0 * torch.ones(3).double())
    truth = [random_function(k, *box, norm=1.0, num_centers=20, generator=generator) for k in model.kernels]
    z = 0.3 * draw(seed + 2, 8, 3)
    model = model.condition_on(z, torch.stack([f(z) for f in truth], -1))
    return ConfidenceSet(Constant(value=1.0, rkhs_norm=1.0)).update(model), truth


def excess(tube: KollerTube, truth: list[RKHSFunction], seed: int) -> float:
    """Largest distance of closed loops from the tube's sections, in their gauge, over a plan of 4 steps."""
    inputs, gain = 0.3 * draw(seed + 3, 4, 1), -0.3 * draw(seed + 4, 1, 2)
    x = 0.2 * draw(seed + 5, 1, 2)
    found, gauges = propagate(tube, x[0], inputs, gain), []
    for k in range(4):
        z = torch.cat([x, inputs[k] + (x - found.reference[k]) @ gain.mT], dim=-1)
        x = tube.model.prior(z[:, :2], z[:, 2:]) + torch.stack([f(z) for f in truth], -1)
        gauges.append(float(Ellipsoid(found.center[0, k + 1], found.factor[0, k + 1]).gauge(x[0])))
    return max(gauges)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mean", "known"])
@given(seeds())
@settings(max_examples=20)
def test_with_derived_constants_it_contains_every_plant_of_the_ball(form, seed):
    confidence, truth = learned(seed)
    assert excess(KollerTube(confidence, 4, 0.1, form), truth, seed) <= 1 + 1e-9


@pytest.mark.parametrize("form", ["mean", "known"])
@given(seeds(), st.sampled_from([0.01, 0.1, 1.0]))
@settings(max_examples=2)
def test_boxes_bound_the_error_over_a_section(form, seed, size):
    confidence, truth = learned(seed)
    assert _beyond(KollerTube(confidence, 4, 0.1, form), truth, seed, size) <= 1e-12


def _beyond(tube: KollerTube, truth: list[RKHSFunction], seed: int, size: float) -> float:
    """Largest |f(z) − f̃(z)| − Σ b over z = z̄ + (I; K)Lξ."""
    x, u, gain = 0.1 * draw(seed + 3, 1, 2), 0.1 * draw(seed + 4, 1, 1), -0.3 * draw(seed + 5, 1, 2)
    factor = size * draw(seed + 6, 1, 2, 2)
    local, rest = tube.linearise(x, u), tube.remainder(x, u, factor, gain)
    ray = draw(seed + 7, 200, 2)
    e = ray / ray.norm(dim=-1, keepdim=True) * torch.linspace(0, 1, 200).double().sqrt().unsqueeze(-1) @ factor[0].mT
    z = torch.cat([x + e, u + e @ gain.mT], dim=-1)
    plant = tube.model.prior(z[:, :2], z[:, 2:]) + torch.stack([f(z) for f in truth], -1)
    linear = local.mean + e @ (local.A + local.B @ gain)[0].mT
    return float(((plant - linear).abs() - rest).max())


@pytest.mark.parametrize("form", ["mean", "known"])
def test_several_points_are_linearised_as_each_alone(form):
    tube, x, u = KollerTube(affine_confidence(0, 7), 3, 0.1, form), draw(1, 3, 1, 2), draw(2, 3, 1, 1)
    local = tube.linearise(x, u)
    for b in range(3):
        own = tube.linearise(x[b], u[b])
        for name in ("mean", "A", "B", "variance"):
            torch.testing.assert_close(getattr(local, name)[b], getattr(own, name), rtol=1e-9, atol=1e-12)


def test_the_noise_of_a_plan_is_that_of_all_noisy_states():
    model = affine_confidence(0, 5).model
    noisy = ConfidenceSet(Constant(value=2.0)).update(replace(model, noise_std=torch.tensor([0.1, 0.3]).double()))
    local = KollerTube(noisy, 3, 0.1).linearise(draw(1, 1, 2), draw(2, 1, 1))
    radius = chi_square_radius(2, 0.1, 3)
    torch.testing.assert_close(local.variance[0], radius**2 * torch.tensor([0.01, 0.09]).double())


class Bent(AffineKnown):
    """With a stated bound of its curvature, ‖H_i‖ = 2 and 0.5."""

    @property
    def hessian_bound(self) -> torch.Tensor:
        return torch.diag_embed(torch.tensor([[1.0, 0.0, 2.0], [0.25, 0.5, 0.125]], dtype=torch.float64))


def test_boxes_are_their_formulas_to_the_last_digits():
    """r = ‖(I; K)L‖ = 4: whole numbers but for the doubt at r = 0 and the factors 1 + 1e-12 of r and of ‖H‖."""
    model = affine_confidence(0, 5).model
    known = Bent(model.prior.A, model.prior.B, model.prior.c)
    confidence = ConfidenceSet(Constant(value=2.0)).update(replace(model, prior=known))
    x, u, gain, factor = draw(1, 1, 2), draw(2, 1, 1), torch.zeros(1, 2).double(), torch.diag(torch.tensor([3.0, -4.0]))
    up, bend, large = 1 + 1e-12, 8 * torch.tensor([2.0, 0.5]).double(), torch.tensor([1e6, 3e6]).double()

    def boxes(form, size, scale):
        tube = KollerTube(confidence, 3, 0.1, form, Constants(size * large, 2 * size * large, 3 * size * large))
        found = torch.stack(tube.boxes(x, u, scale * factor.double()[None], gain))
        assert torch.equal(tube.remainder(x, u, scale * factor.double()[None], gain), found.sum(0))
        return found[:, 0]

    doubt = boxes("known", 1.0, 0.0)[0]
    assert bool((doubt > 0.01).all())
    for size in (0.0, 1.0):  # without them the curvature of the known part is seen
        slope, std, value = (4.0 * k * size * large for k in (1, 2, 3))
        found = boxes("mean", size, 1.0)
        torch.testing.assert_close(found[0], bend * up**3 + 2 * slope * up**2, rtol=1e-14, atol=0)
        torch.testing.assert_close(found[1], doubt + 2.0 * std * up, rtol=1e-14, atol=0)
        torch.testing.assert_close(boxes("known", size, 1.0)[0], bend * up**3 + doubt + value * up, rtol=1e-14, atol=0)


@pytest.mark.parametrize("form", ["mean", "known"])
def test_control_constants_that_are_too_small_do_damage(form):
    zero = torch.zeros(2).double()
    broken = [
        (KollerTube(c, 4, 0.1, form, Constants(zero, zero, zero)), f, s) for s in range(4) for c, f in [learned(s)]
    ]
    assert max(_beyond(tube, truth, seed, 1.0) for tube, truth, seed in broken) > 0.02


def test_our_tube_is_the_narrower_one_and_the_judge_takes_both():
    problem = gp_pendulum(steps=4)
    theirs = replace(problem, model=KollerTube(gp_confidence(60), 4, 0.1))
    ours, koller = (propagate(p.model, START, plan(0.1, 0.0, 0.0, 0.0), p.gain) for p in (problem, theirs))
    wider = koller.ellipsoids.radius / ours.ellipsoids.radius.clamp_min(1e-12)
    assert bool((wider[0, 2:, 1] > 1).all())
    assert judge(theirs, torch.zeros(2).double(), plan(0)[0], propose(plan(0, 0, 0, 0))).verdict is not None


@given(seeds())
@settings(max_examples=3)
def test_derived_constants_bound_slopes_of_the_mean_and_differences_of_the_deviation(seed):
    confidence = affine_confidence(seed, 12)
    bound = Mixture(rkhs_norm=1.5, subgaussian=0.1, delta=0.1)
    used, model = Constants.of(ConfidenceSet(bound).update(confidence.model)), confidence.model
    z, w = draw(seed + 4, 60, 3), draw(seed + 4, 60, 3) + 0.2 * draw(seed + 5, 60, 3)
    gap = (z - w).norm(dim=-1, keepdim=True)
    bend = (model.gradient(z)[0] - model.gradient(w)[0]).norm(dim=-1)
    assert bool((bend <= used.slope * gap).all())
    assert bool(((model.posterior(z)[1] - model.posterior(w)[1]).abs() <= used.std * gap).all())
    assert torch.allclose(used.value, 1.5 * used.std)


def test_derived_constants_are_their_formulas():
    """‖μ‖√(k⁗(0))/ℓ², √(−κ″(0))/ℓ and B times that, for the least length-scale: κ⁗(0) = 3 and 25, −κ″(0) = 1 and 5/3."""
    model = affine_confidence(0, 9).model
    found = Constants.of(ConfidenceSet(Mixture(rkhs_norm=(1.5, 2.5), subgaussian=0.1, delta=0.1)).update(model))
    parts, up = zip((0.2, 3.0, 1.0, 0.8), (0.1, 25.0, 5 / 3, 0.9), strict=True), 1 + 1e-12
    variance, fourth, second, scale = (torch.tensor(v, dtype=torch.float64) for v in parts)
    std = (variance * second).sqrt() / scale * up
    torch.testing.assert_close(
        found.slope, model.posterior_norm() * (variance * fourth).sqrt() / scale**2 * up, rtol=1e-14, atol=0
    )
    torch.testing.assert_close(found.std, std, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.value, std * torch.tensor([1.5, 2.5]).double(), rtol=1e-14, atol=0)


def test_it_says_what_it_assumes_and_refuses_what_has_no_constants():
    confidence = gp_confidence(60)
    kinds = {entry.kind for entry in KollerTube(confidence, 4, 0.1).assumptions}
    given_ = {entry.kind for entry in KollerTube(confidence, 4, 0.1, constants=Constants.of(confidence)).assumptions}
    assert given_ - kinds == {Assumption.LIPSCHITZ} and Assumption.RKHS_NORM in kinds
    by_hand = ConfidenceSet(Constant(value=2.0)).update(confidence.model)
    assert Assumption.IN_SET in {entry.kind for entry in KollerTube(by_hand, 4, 0.1).assumptions}
    with pytest.raises(ValueError, match="expected form"):
        KollerTube(confidence, 4, 0.1, "median")  # type: ignore[arg-type]
    rough = GP.create(kernels.matern(0.5, 1.0), 0.01, nx=2, nu=1, noise_std=0.1, prior=reference_pendulum().known)
    with pytest.raises(ValueError, match="Matérn 3/2"):
        KollerTube(ConfidenceSet(Constant(value=2.0)).update(rough), 4, 0.1)
    plain = GP.create(kernels.linear(1.0), 0.01, nx=2, nu=1, noise_std=0.1, prior=reference_pendulum().known)
    with pytest.raises(ValueError, match="Matérn 3/2"):
        KollerTube(ConfidenceSet(Constant(value=2.0)).update(plain), 4, 0.1)


@pytest.mark.slow
def test_a_mean_without_a_lipschitz_gradient_claims_nothing_beyond_the_first_step():
    """Matérn 3/2: L_∇μ = ∞."""
    model = GP.create(kernels.matern(1.5, 1.0), 0.01, nx=2, nu=1, noise_std=0.1, prior=reference_pendulum().known)
    model = model.condition_on(draw(0, 5, 3), draw(1, 5, 2))
    tube = KollerTube(ConfidenceSet(Constant(value=2.0)).update(model), 4, 0.1)
    found = propagate(tube, START, plan(0, 0, 0), GAIN)
    assert bool(torch.isfinite(found.factor[:, 1]).all()) and not bool(torch.isfinite(found.factor[:, 2]).all())


@pytest.mark.parametrize("form", ["mean", "known"])
def test_no_tube_where_F_n_is_empty(form):
    """Data at 5 and B = 0.2 refute each other; Gaussian-process tubes claimed nothing there, these went on."""
    known = AffineKnown(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-2, nx=1, nu=1, noise_std=0.1, prior=known)
    told = model.condition_on(0.1 * draw(0, 30, 2), 5.0 + 0.1 * draw(1, 30, 1))
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.2, subgaussian=0.1, delta=0.1)).update(model)
    start, still = torch.zeros(1).double(), torch.zeros(2, 1).double()
    for known_set, finite in ((confidence, True), (confidence.update(told), False)):
        tube = propagate(KollerTube(known_set, 2, 0.1, form), start, still, torch.zeros(1, 1).double())
        assert bool(torch.isfinite(tube.factor).all()) is finite


@dataclass(frozen=True, kw_only=True)
class Within(Constant):
    """Covers the cube [−1, 1]³ of (x, u)."""

    def covers(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        return ((lower >= -1.0) & (upper <= 1.0)).all(-1)


@pytest.mark.parametrize("form", ["mean", "known"])
def test_a_section_that_leaves_what_its_bound_covers_has_no_boxes(form):
    """x_1 = ±a with half-width 0.3, x_2 likewise with 0.2, and u = −x_1: from 0.7 and 0.8 on an end is beyond ±1."""
    model = affine_confidence(0, 5).model
    tube = KollerTube(
        ConfidenceSet(Within(value=2.0)).update(model), 3, 0.1, form, Constants(*torch.ones(3, 2).double())
    )
    x = torch.tensor(
        [[0.69, 0.0], [0.71, 0.0], [-0.69, 0.0], [-0.71, 0.0], [0.0, 0.81], [0.0, -0.81], [0.0, 0.79]]
    ).double()
    factor, gain = (
        torch.diag(torch.tensor([0.3, 0.2])).double().expand(7, 1, 2, 2),
        torch.tensor([[-1.0, 0.0]]).double(),
    )
    boxes = tube.boxes(x.unsqueeze(1), -x[:, None, :1], factor, gain)
    finite = [True, False, True, False, False, False, True]
    assert all(torch.isfinite(box).all(-1)[:, 0].tolist() == finite for box in boxes)


@pytest.mark.parametrize("name", ["slope", "std", "value"])
def test_a_constant_that_is_nan_is_refused(name):
    confidence = gp_pendulum(steps=2, count=10).model.confidence
    constants = replace(Constants.of(confidence), **{name: torch.tensor([math.nan], dtype=torch.float64)})
    with pytest.raises(ValueError, match=f"{name} >= 0"):
        KollerTube(confidence, 2, 0.1, constants=constants)
