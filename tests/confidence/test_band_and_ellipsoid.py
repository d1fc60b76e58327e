"""F_n is more than its band: between l_n and h_n with norm ≤ B, f may be steeper than the ellipsoid allows (theory §2.9)."""

import torch

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.functionals import jet
from gpsafe.confidence.members import extremal_member, member_share
from gpsafe.models import GP
from gpsafe.rkhs import RKHSFunction, kernels

KERNEL = kernels.rbf([1.0])
BOUND = Mixture(rkhs_norm=3.0, subgaussian=1e-3**0.5, delta=0.1)
PAIR = torch.tensor([[-0.2], [0.2]], dtype=torch.float64)
ORIGIN = torch.zeros(1, 1, dtype=torch.float64)
POINTS = torch.linspace(-6, 6, 4001, dtype=torch.float64).unsqueeze(-1)


def posterior() -> GP:
    """Three observations 0 at each of two points that are close together: their difference is what is known best."""
    model = GP.create(KERNEL, 1e-3, nx=1, nu=0, noise_std=1e-3**0.5, outputs=[0], mode="theory")
    return model.condition_on(PAIR.repeat(3, 1), torch.zeros(6, 1, dtype=torch.float64))


def steepness(f: RKHSFunction, model: GP) -> float:
    """|f′(0) − μ′(0)| in units of β sd_post[f′(0)]."""
    z = ORIGIN.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(z).sum(), z)
    found = jet(model, ORIGIN)
    return float((slope[0, 0] - found.mean[0, 0, 1]).abs() / (BOUND.beta(model)[0] * found.cov[0, 0, 1, 1].sqrt()))


def test_a_function_in_the_band_and_the_ball_is_steeper_than_the_ellipsoid_allows():
    model = posterior()
    confidence = ConfidenceSet(BOUND).update(model)
    f = RKHSFunction(KERNEL, PAIR, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    room = confidence.bounds(POINTS)[1].squeeze(-1) / f(POINTS).abs()
    f = f.scaled_to(0.999 * f.norm * float(room.min()))
    assert f.norm < 3.0 and confidence.contains(lambda z: f(z).unsqueeze(-1), POINTS).outcome == "HOLDS"
    assert steepness(f, model) > 1.3 and member_share(BOUND, model, f) > 1.3


def test_control_a_member_is_not():
    model = posterior()
    for sign in (torch.tensor([-1.0, 1.0]).double(), torch.tensor([1.0, 1.0]).double()):
        assert steepness(extremal_member(BOUND, model, PAIR, sign), model) <= 1.0
