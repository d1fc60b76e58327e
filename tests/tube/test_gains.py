"""Gains of tubes: what they claim is evaluated, not believed."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from strategies import dear, seeds

from gpsafe import linalg
from gpsafe.sets import Ellipsoid
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.tube.gains import constant_gain, lqr_gain, spectral_radius
from gpsafe.tube.lmi import RATES, _checked, lmi_gain

tensor = partial(torch.tensor, dtype=torch.float64)
PLANT = DoubleIntegrator().prior(mass_error=0.0)
AXES = torch.tensor([0.005, 0.02], dtype=torch.float64)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(seeds())
@dear()
def test_lqr_gains_are_fixed_points_of_value_iteration_and_stabilise(seed):
    A, B = draw(seed, 3, 3), draw(seed + 1, 3, 2)
    gain, P, K = lqr_gain(A, B), torch.eye(3).double(), torch.ones(2, 3).double()
    for _ in range(100_000):  # as many as it takes: where A + BK nearly has an eigenvalue of 1, thousands
        last = K
        K = -torch.linalg.solve(torch.eye(2).double() + B.mT @ P @ B, B.mT @ P @ A)
        P = torch.eye(3).double() + A.mT @ P @ (A + B @ K)
        if float((K - last).abs().max()) < 1e-10:
            break
    torch.testing.assert_close(gain, K, rtol=1e-6, atol=1e-6)
    assert float(spectral_radius(A, B, gain)) < 1


def test_what_cannot_be_stabilised_is_refused():
    unstable = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    useless = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="stabilisable"):
        lqr_gain(unstable, useless)
    with pytest.raises(ValueError, match="a common invariant ellipsoid"):
        lmi_gain(unstable.unsqueeze(0), useless.unsqueeze(0), AXES)
    assert (constant_gain(0.5, 2, 1) == -0.5).all()


def test_a_gain_that_leaves_the_loop_unstable_is_refused_whatever_the_solver_says(monkeypatch):
    for gain, radius in ((0.5, r"1\.5"), (1.0, "1$")):
        monkeypatch.setattr(linalg, "regulator", lambda A, B, Q, R, gain=gain: tensor([[gain]]))
        with pytest.raises(ValueError, match=f"got spectral radius {radius}"):
            lqr_gain(tensor([[2.0]]), tensor([[1.0]]))


@pytest.mark.parametrize(
    ("A", "B"), [((2, 2), (1, 2, 1)), ((1, 2, 2), (2, 1)), ((3, 2, 2), (1, 2, 1)), ((1, 2, 3), (1, 2, 1))]
)
def test_members_of_other_shapes_are_refused(A, B):
    with pytest.raises(ValueError, match=r"lmi_gain: expected A \(n, nx, nx\) and B \(n, nx, nu\)"):
        lmi_gain(torch.zeros(A).double(), torch.zeros(B).double(), AXES)


@given(seeds())
@settings(max_examples=5)
def test_lmi_ellipsoids_are_robustly_invariant_for_all_members(seed):
    A = PLANT.A + 0.02 * draw(seed, 3, 2, 2)
    B = PLANT.B * torch.linspace(0.8, 1.2, 3).double().reshape(3, 1, 1)
    found = lmi_gain(A, B, AXES, rates=(0.7, 0.9))
    closed = found.invariant.affine(A + B @ found.gain)
    w = Ellipsoid.ball(torch.zeros(2).double(), AXES)
    generator = torch.Generator().manual_seed(seed)
    for i in range(3):
        body = Ellipsoid(closed.center[i], closed.factor[i])
        points = body.sample_boundary(300, generator) + w.sample_boundary(300, generator)
        assert float(found.invariant.gauge(points).max()) <= 1 + 1e-9
    # Not much larger than it must be: a tenth less is not invariant by the same inequality.
    S, W = found.invariant.shape, w.shape
    smaller = (
        0.8 * S - torch.stack([0.8 * c @ S @ c.mT for c in A + B @ found.gain]) / found.rate - W / (1 - found.rate)
    )
    assert float(torch.linalg.eigvalsh(smaller).min()) < 0


def test_spectral_radii_are_those_of_the_closed_loop():
    A, B, gain = (
        torch.tensor(v, dtype=torch.float64) for v in ([[0.5, 1.0], [0.0, -0.25]], [[1.0], [0.0]], [[1.0, 7.0]])
    )
    assert float(spectral_radius(A, B, gain)) == pytest.approx(1.5, rel=1e-12)
    assert spectral_radius(A.expand(3, 2, 2), B, gain).shape == (3,)


@pytest.mark.parametrize(
    ("A", "B", "words"),
    [([[0.5, 0.0], [0.0, float("nan")]], [[1.0], [0.0]], "finite A"), ([[0.5]], [[float("inf")]], "finite B"),
     ([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]], [[1.0], [0.0]], "A of shape"), ([[0.5]], [[1.0], [0.0]], "A of shape")],
)  # fmt: skip
def test_matrices_that_are_none_are_refused_by_name(A, B, words):
    with pytest.raises(ValueError, match=f"lqr_gain: expected {words}"):
        lqr_gain(torch.tensor(A, dtype=torch.float64), torch.tensor(B, dtype=torch.float64))


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_the_program_of_one_rate_asks_for_its_least_ellipsoid(rate):
    """x⁺ = ax + u + w, |w| ≤ ω, |·| the only axis: S ≥ (a + k)²S/λ + ω²/(1 − λ) is least with k = −a, at S = ω²/(1 − λ)."""
    A, B = torch.tensor([[[1.25]]], dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    found = lmi_gain(A, B, torch.tensor([0.3], dtype=torch.float64), rates=(rate,), input_weight=0.0)
    assert float(found.invariant.shape) == pytest.approx(0.09 / (1 - rate), rel=1e-3)
    assert float(found.gain) == pytest.approx(-1.25, abs=2e-2) and found.rate == rate
    costly = lmi_gain(A, B, torch.tensor([0.3], dtype=torch.float64), rates=(rate,), input_weight=2.0)
    k = min((i / 2000 - 1.25 for i in range(2501)), key=lambda k: objective(1.25 + k, k, rate))
    assert float(costly.gain) == pytest.approx(k, abs=2e-3)


def objective(closed: float, gain: float, rate: float) -> float:
    """S + 2k²S at the least S of a gain."""
    room = 1 - closed**2 / rate
    return (1 + 2 * gain**2) * 0.09 / (1 - rate) / room if room > 0 else float("inf")


def test_lqr_gains_weigh_states_and_inputs_as_asked():
    """x⁺ = 2x + u, cost q x² + r u²: p = q + 4pr/(p + r), K = −2p/(p + r)."""
    A, B = tensor([[2.0]]), tensor([[1.0]])
    weights = {"state_weight": 3.0, "input_weight": 5.0}
    for asked in ({}, {"state_weight": 3.0}, {"input_weight": 5.0}, weights):
        q, r = asked.get("state_weight", 1.0), asked.get("input_weight", 1.0)
        half = (q + 3 * r) / 2
        p = half + math.sqrt(half**2 + q * r)
        gain = lqr_gain(A, B, **{name: tensor([[v]]) for name, v in asked.items()})
        assert float(gain) == pytest.approx(-2 * p / (p + r), rel=1e-10)


@pytest.mark.parametrize("a", [0.5, 0.9])
def test_the_rate_of_the_least_ellipsoid_is_chosen(a):
    """x⁺ = ax + w without an input: ω²/((1 − λ)(1 − a²/λ)) is least at λ = a."""
    assert RATES == (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
    found = lmi_gain(tensor([[[a]]]), tensor([[[0.0]]]), tensor([0.3]))
    assert found.rate == a
    assert float(found.invariant.shape) == pytest.approx(0.09 / (1 - a) ** 2, rel=1e-3)


def test_a_shear_widens_only_the_side_that_it_pushes():
    """x⁺ = (a x₂, 0) + w: S = diag(1 + a²/λ, 1)/(1 − λ). A shear is not its own transpose."""
    shear = tensor([[[0.0, 2.0], [0.0, 0.0]]])
    found = lmi_gain(shear, torch.zeros(1, 2, 1).double(), torch.ones(2).double(), rates=(0.8,))
    torch.testing.assert_close(found.invariant.shape, torch.diag(tensor([30.0, 5.0])), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 70.0])
def test_a_proposed_ellipsoid_of_any_size_is_rescaled_to_the_least_and_raised_by_its_rounding(scale):
    """Diagonal members: the factor is the largest ω_j²/(s_j (1 − λ)(1 − f_j²/λ)), here of the second axis."""
    A = torch.diag_embed(tensor([[0.5, 0.6], [0.2, 0.7]]))
    B, gain = tensor([[0.0], [1.0]]).expand(2, 2, 1), tensor([[0.0, -0.1]])
    axes, sizes = tensor([0.5, 2.0]), scale * tensor([3.0, 4.0])
    found = _checked(A, B, axes, 0.3, 0.8, gain, torch.diag(sizes))
    assert found is not None and found[1].rate == 0.8 and found[1].gain is gain
    second = 4.0 / (0.2 * (1 - 0.6**2 / 0.8))
    expected = tensor([0.75 * second, second]) * (1 + 1e-9)
    torch.testing.assert_close(found[1].invariant.shape, torch.diag(expected), rtol=1e-12, atol=0)
    assert found[0] == pytest.approx(1.75 * second + 0.3 * 0.01 * second, rel=1e-8)


@pytest.mark.parametrize(("fast", "holds"), [(0.8, True), (0.9, False)])
def test_a_member_that_grows_along_one_axis_has_no_ellipsoid_of_the_rate(fast, holds):
    """I − CCᵀ/λ is to be positive along every axis: f² < λ = 0.8."""
    A = torch.diag_embed(tensor([[0.5, 0.1], [0.2, fast]]))
    found = _checked(
        A, torch.zeros(2, 2, 1).double(), AXES, 0.1, 0.8, torch.zeros(1, 2).double(), torch.eye(2).double()
    )
    assert (found is not None) == holds


def test_a_flat_proposal_is_none():
    eye, flat = torch.eye(2).double()[None], torch.zeros(2, 2).double()
    assert _checked(0.5 * eye, 0.0 * eye, AXES, 0.1, 0.8, flat, flat) is None
