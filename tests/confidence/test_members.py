"""Adversaries at the edge of F_n are members of it: in the ellipsoid and in the ball."""

import pytest
import torch
from hypothesis import given
from strategies import seeds

from gpsafe import kernels
from gpsafe.confidence import Mixture
from gpsafe.confidence.members import extremal_member
from gpsafe.models import GP
from gpsafe.rkhs import random_function

KERNEL = kernels.rbf([0.7, 1.4], 0.5)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(seed: int, noise: float, count: int = 12) -> GP:
    g = generator(seed)
    f = random_function(KERNEL, -torch.ones(2), torch.ones(2), norm=1.0, generator=g)
    z = 2 * torch.rand(count, 2, dtype=torch.float64, generator=g) - 1
    y = f(z) + noise * torch.randn(count, dtype=torch.float64, generator=g)
    return GP.create(KERNEL, noise**2, nx=1, nu=1, noise_std=noise).condition_on(z, y.unsqueeze(-1))


@given(seeds())
def test_an_extremal_member_is_in_the_ball_and_in_the_ellipsoid(seed):
    model, bound = learned(seed, 0.05), Mixture(rkhs_norm=5.0, subgaussian=0.05, delta=0.1)
    g = generator(seed + 1)
    z = 2 * torch.rand(50, 2, dtype=torch.float64, generator=g) - 1
    f = extremal_member(bound, model, z[0], 1.0 if seed % 2 else -1.0)
    assert float(f.norm_upper) <= 5.0
    low, high = bound.interval(model, z)
    assert bool(((low[:, 0] - 1e-9 <= f(z)) & (f(z) <= high[:, 0] + 1e-9)).all())


def test_a_posterior_mean_outside_the_ball_is_refused():
    model = learned(3, 0.5)
    short = 0.5 * float(model.posterior_norm())
    with pytest.raises(ValueError, match="norm <="):
        extremal_member(Mixture(rkhs_norm=short, subgaussian=0.5, delta=0.1), model, torch.zeros(2).double(), 1.0)
