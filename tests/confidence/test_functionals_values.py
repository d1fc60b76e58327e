"""Taylor moduli and joint posteriors of value and gradient, from derivatives of the kernel taken by differentiation."""

import math
from functools import partial

import pytest
import torch

from gpsafe.confidence import AbbasiYadkori, Constant, ConvexProgram, Mixture, Srinivas
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.functionals import differentiable, functional_beta, jet, taylor_modulus
from gpsafe.confidence.rounding import Rounding
from gpsafe.models import GP, LowRankGP
from gpsafe.rkhs import kernels

tensor = partial(torch.tensor, dtype=torch.float64)
PROFILES = {
    1.5: lambda r: (1 + math.sqrt(3) * r) * torch.exp(-math.sqrt(3) * r),
    2.5: lambda r: (1 + math.sqrt(5) * r + 5 / 3 * r.square()) * torch.exp(-math.sqrt(5) * r),
    math.inf: lambda r: torch.exp(-0.5 * r.square()),
}


def kernel_of(nu: float, scale, variance: float):
    return kernels.rbf(scale, variance) if math.isinf(nu) else kernels.matern(nu, scale, variance)


@pytest.mark.parametrize("nu", PROFILES)
def test_the_taylor_modulus_is_its_formula(nu):
    form = kernels.stationary(kernel_of(nu, [0.75], 1.75))
    bend = {1.5: -3.0, 2.5: -5 / 3, math.inf: -1.0}[nu]  # κ″(0)
    for r in (0.2, 1.0, 3.0, 40.0):
        x = tensor(r).requires_grad_()
        (slope,) = torch.autograd.grad(PROFILES[nu](x), x)
        exact = math.sqrt(1.75 * (2 * (1 - float(PROFILES[nu](x.detach()))) + 2 * r * float(slope) - r**2 * bend))
        found = float(taylor_modulus(form, tensor(r)))
        assert exact * (1 - 1e-13) <= found <= exact * (1 + 1e-9)
    tiny = float(taylor_modulus(form, tensor(1e-6)))
    fourth = {2.5: math.sqrt(25 / 4), math.inf: math.sqrt(3) / 2}
    if nu in fourth:
        assert tiny == pytest.approx(math.sqrt(1.75) * fourth[nu] * 1e-12, rel=1e-9, abs=0)
    assert float(taylor_modulus(form, tensor(0.0))) == 0.0


@pytest.mark.parametrize("nu", PROFILES)
def test_jets_are_posteriors_of_value_and_gradient(nu):
    """Conditioning of (f(X), f(z), ∇f(z)), the covariances from second derivatives of k by forward differences of gradients."""
    g = torch.Generator().manual_seed(1)
    X, y = (torch.rand(7, 2, dtype=torch.float64, generator=g) for _ in range(2))
    kernel = kernel_of(nu, [0.5, 0.75], 1.25)
    model = GP.create(kernel, 0.05, nx=2, nu=0, noise_std=0.1).condition_on(X, y)
    z = tensor([[0.3, 0.6], [0.9, 0.2]])
    found = jet(model, z)
    inverse = torch.linalg.inv(kernels.cross(kernel, X, X) + 0.05 * torch.eye(7).double())
    for q in range(2):

        def row(point):
            return kernels.cross(kernel, point[None], X)[0]

        D = torch.cat([row(z[q])[:, None], torch.autograd.functional.jacobian(row, z[q])], 1)
        bend = {1.5: 3.0, 2.5: 5 / 3, math.inf: 1.0}[nu]
        prior = torch.diag(tensor([1.25, 1.25 * bend / 0.25, 1.25 * bend / 0.5625]))
        covariance = prior - D.T @ inverse @ D
        for j in range(2):
            torch.testing.assert_close(found.mean[q, j], D.T @ inverse @ y[:, j], rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(found.cov[q, j], covariance, rtol=0, atol=2e-9 * 1.25 * bend * 4)
            assert bool((found.cov[q, j].diagonal() >= covariance.diagonal() - 1e-13).all())
            assert float(torch.linalg.eigvalsh(found.cov[q, j])[0]) > -1e-9
    empty = jet(GP.create(kernel, 0.05, nx=2, nu=0, noise_std=0.1), z)
    assert not bool(empty.mean.any())
    torch.testing.assert_close(empty.cov[1, 0], prior, rtol=1e-9, atol=0)
    wide = jet(model, z.repeat(3, 1).reshape(1, 6, 2))
    torch.testing.assert_close(wide.mean[0, 4:], found.mean, rtol=0, atol=1e-14)
    many = jet(model, z.repeat(3, 1).reshape(3, 2, 2), chunk=4)
    torch.testing.assert_close((many.mean[2], many.cov[1]), (found.mean, found.cov), rtol=0, atol=1e-14)


def test_inactive_inputs_have_no_gradient():
    kernel = kernels.rbf([0.5], dims=[1])
    model = GP.create(kernel, 0.05, nx=2, nu=0, noise_std=0.1, outputs=[0]).condition_on(
        tensor([[0.1, 0.2]]), tensor([[1.0]])
    )
    found = jet(model, tensor([[0.5, 0.4]]))
    assert found.mean[0, 0, 1] == 0.0 and not bool(found.cov[0, 0, 1].any()) and not bool(found.cov[0, 0, :, 1].any())
    assert float(found.cov[0, 0, 2, 2]) > 1.0 and float(found.mean[0, 0, 2]) < 0.0


def test_only_bounds_that_say_something_of_functionals_have_a_beta():
    options = {"rkhs_norm": 1.0, "subgaussian": 0.2, "delta": 0.1}
    model = GP.create(kernels.rbf(0.5), 0.04, nx=1, nu=0, noise_std=0.2).condition_on(
        tensor([[0.1], [0.5]]), tensor([[1.0], [0.3]])
    )
    for bound in (Mixture(**options), AbbasiYadkori(**options), Srinivas(**options)):
        assert torch.equal(functional_beta(bound, model), bound.beta(model))
    assert functional_beta(Constant(value=50.0), model) is None
    small = Srinivas(**options, max_info_gain=lambda n: 0.0)
    assert functional_beta(small, model) is not None
    assert differentiable(model)
    rough = GP.create([kernels.rbf(0.5), kernels.matern(0.5, 0.5)], 0.04, nx=2, nu=0, noise_std=0.2)
    assert not differentiable(rough)
    assert not differentiable(GP.create(kernels.linear(), 0.04, nx=1, nu=0, noise_std=0.2))


def test_the_taylor_modulus_is_raised_by_the_rounding_of_its_terms():
    """At tiny r the terms cancel to 0 or below for some r: 32ε(r²·(−κ″(0)) + r²) remains, and 1 in place of r² from 1 on."""
    form, eps = kernels.stationary(kernels.matern(1.5, [1.0], 2.0)), 2.0**-52
    r = tensor([1e-16 * (1 + i / 100) for i in range(200)])
    power = float(taylor_modulus(kernels.stationary(kernels.rbf([1.0])), tensor(2.0**-20))) * 2.0**40
    assert power / math.sqrt(0.75) - 1 == pytest.approx(1e-14, rel=0.05, abs=0)
    least = float((taylor_modulus(form, r) / r).square().min()) / 2.0
    assert least == pytest.approx(32 * eps * (3.0 + 1.0), rel=1e-9, abs=0)


def test_a_set_that_is_empty_and_other_models_have_no_functional_beta():
    options = {"rkhs_norm": 1.0, "subgaussian": 0.2, "delta": 0.1}
    x, y = tensor([[0.1], [0.5]]), tensor([[1.0], [0.3]])
    model = GP.create(kernels.rbf(0.5), 0.04, nx=1, nu=0, noise_std=0.2).condition_on(x, y)
    assert functional_beta(Mixture(**options), LowRankGP.create(model, 1)) is None
    for scale in (None, 0.5):
        bound = ConvexProgram(**options, scale=scale)
        assert torch.equal(functional_beta(bound, model), bound.beta(model))
    torn = GP.create(kernels.rbf(0.5), 0.04, nx=1, nu=0, noise_std=0.2).condition_on(x, 50 * y)
    assert functional_beta(ConvexProgram(**options, scale=100.0), torn) is None
    free = GP.create(kernels.rbf(0.5), 0.04, nx=1, nu=0, noise_std=0.2, outputs=[0])
    two = GP.create([kernels.matern(1.5, 0.5), kernels.matern(0.5, 0.5)], 0.04, nx=2, nu=0, noise_std=0.2)
    assert differentiable(free) and not differentiable(two)


def test_jets_have_the_margin_of_rounding_of_every_functional():
    """The diagonal exceeds the exact covariance by 1e-10 of the prior and (1 + d) times the largest relative rounding."""
    x = torch.linspace(0.0, 2.0, 30, dtype=torch.float64)[:, None]
    model = GP.create(kernels.rbf(0.5, 1.5), 1e-6, nx=1, nu=0, noise_std=1e-3).condition_on(x, x.sin())
    z = tensor([[2.6], [2.3], [-0.8]])
    gap = z - x.T
    row = 1.5 * torch.exp(-gap.square() / 0.5)
    D = torch.stack([row, -gap / 0.25 * row], -1)  # (3, 30, 2)
    K = kernels.cross(model.kernels[0], x, x) + 1e-6 * torch.eye(30).double()
    prior = tensor([1.5, 1.5 / 0.25])
    variance = prior - (D * torch.linalg.solve(K, D)).sum(1)
    share = (Rounding.of(model).output(0).variance(variance, prior) / prior).amax(-1, keepdim=True)
    margin = (1e-10 + 2 * share) * prior
    found = jet(model, z).cov[:, 0].diagonal(dim1=-2, dim2=-1) - variance
    assert float((margin / (1e-10 * prior)).min()) > 10.0
    torch.testing.assert_close(found, margin, rtol=0.1, atol=0)


class Stranger(ConfidenceBound):
    """A theorem about values, from elsewhere."""

    name, source = "stranger", "none"

    def _beta(self, model, norm, noise, log_inv_delta):
        return torch.full((model.num_outputs,), 100.0).double()


def test_a_theorem_of_another_form_says_nothing_of_functionals():
    model = GP.create(kernels.rbf(0.5), 0.04, nx=1, nu=0, noise_std=0.2)
    assert functional_beta(Stranger(rkhs_norm=1.0, subgaussian=0.2, delta=0.1), model) is None
