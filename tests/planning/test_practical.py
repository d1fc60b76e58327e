"""The practical model: features, the likelihood it maximises, and that nothing of it can be taken for theory."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from gpsafe.confidence import Mixture
from gpsafe.data import Transitions
from gpsafe.planning import angle_features, fit, untrained
from gpsafe.planning.practical import LOG_RANGE, negative_log_likelihood
from gpsafe.rkhs import kernels
from gpsafe.systems.pendulum import Pendulum

PLANT = Pendulum(action_repeat=2)
PHI = angle_features((0,))


def data(n: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.rand(n, 3, dtype=torch.float64, generator=generator) - 1
    x, u = z[:, :2] * torch.tensor([math.pi, 5.0]), z[:, 2:]
    return Transitions(x, u, PLANT.mean(x, u) + 1e-3 * torch.randn(n, 2, dtype=torch.float64, generator=generator))


def test_angles_become_cosine_and_sine():
    x = torch.tensor([[0.3, -2.0], [0.3 + 2 * math.pi, -2.0]]).double()
    assert torch.allclose(PHI(x)[0], torch.tensor([math.cos(0.3), math.sin(0.3), -2.0]).double())
    assert torch.allclose(PHI(x)[0], PHI(x)[1])


def test_likelihood_is_that_of_a_multivariate_normal():
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(12, d, dtype=torch.float64, generator=generator) for d in (3, 2))
    log_lengthscale = 0.3 * torch.randn(2, 3, dtype=torch.float64, generator=generator)
    noise = torch.tensor([0.1, 0.3]).double()
    total = 0.0
    for j in range(2):
        gram = kernels.cross(kernels.rbf(log_lengthscale[j].exp()), z, z) + noise[j] * torch.eye(12).double()
        total -= float(MultivariateNormal(torch.zeros(12).double(), gram).log_prob(y[:, j]))
    assert float(negative_log_likelihood(log_lengthscale, z, y, noise)) == pytest.approx(total, rel=1e-9)


def test_fitting_raises_the_likelihood_and_predicts_new_points():
    start = untrained(PHI, nx=2, nu=1, noise_std=PLANT.noise_std, generator=torch.Generator().manual_seed(0))
    seen, new = data(80), data(200, seed=1)
    model = fit(seen, PHI, noise_std=PLANT.noise_std, log_lengthscale=start.log_lengthscale)
    bare = fit(seen, PHI, noise_std=PLANT.noise_std, log_lengthscale=start.log_lengthscale, steps=0)
    errors = [(m.predict(new.x, new.u).mean - new.x_next).square().mean().sqrt() for m in (model, bare, start)]
    assert float(errors[0]) < 0.02
    assert 10 * float(errors[0]) < float(errors[2])
    assert bool((model.gp.log_marginal_likelihood() >= bare.gp.log_marginal_likelihood()).all())
    assert bool((model.log_lengthscale >= LOG_RANGE[0]).all() and (model.log_lengthscale <= LOG_RANGE[1]).all())
    inside = (model.predict(seen.x, seen.u).mean - seen.x_next).abs().max()
    assert float(inside) < 0.01  # interpolates to within its noise


def test_conditioning_refits_to_all_data():
    start = untrained(PHI, nx=2, nu=1, noise_std=PLANT.noise_std, generator=torch.Generator().manual_seed(0))
    model = start.condition(data(20)).condition(data(10, seed=1))
    assert model.gp.num_data == 30
    assert model.predict(torch.zeros(4, 5, 2).double(), torch.zeros(4, 5, 1).double()).mean.shape == (4, 5, 2)


def test_theorems_refuse_a_fitted_model():
    start = untrained(PHI, nx=2, nu=1, noise_std=PLANT.noise_std, generator=torch.Generator().manual_seed(0))
    model = start.condition(data(20))
    with pytest.raises(ValueError, match="theory-mode"):
        Mixture(rkhs_norm=1.0, subgaussian=0.01, delta=0.1).beta(model.gp)
