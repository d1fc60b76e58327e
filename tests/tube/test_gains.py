"""Gains of tubes: what they claim is evaluated, not believed."""

import pytest
import torch
from hypothesis import given, settings
from strategies import seeds

from gpsafe.sets import Ellipsoid
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.tube.gains import constant_gain, lqr_gain, spectral_radius
from gpsafe.tube.lmi import lmi_gain

PLANT = DoubleIntegrator().prior(mass_error=0.0)
AXES = torch.tensor([0.005, 0.02], dtype=torch.float64)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(seeds())
@settings(max_examples=15)
def test_lqr_gains_are_fixed_points_of_value_iteration_and_stabilise(seed):
    A, B = draw(seed, 3, 3), draw(seed + 1, 3, 2)
    gain, P, K = lqr_gain(A, B), torch.eye(3).double(), torch.zeros(2, 3).double()
    for _ in range(60):
        K = -torch.linalg.solve(torch.eye(2).double() + B.mT @ P @ B, B.mT @ P @ A)
        P = torch.eye(3).double() + A.mT @ P @ (A + B @ K)
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
