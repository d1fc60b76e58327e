"""Other uncertainty models as plug-ins: sparse variational GP, dropout, last-layer Laplace."""

import pytest
import torch
from hypothesis import given, settings
from strategies import seeds

from gpsafe.data import Transitions
from gpsafe.models import GP, identity_prior
from gpsafe.models._mlp import MLP
from gpsafe.models._regression import fit_network
from gpsafe.models.dropout import Dropout
from gpsafe.models.laplace import LastLayerLaplace, _features, _last_layer
from gpsafe.models.sparse_gp import SparseGP
from gpsafe.rkhs import kernels

KERNEL = kernels.rbf([0.8, 0.8, 0.8], variance=1.0)
NOISE = 0.1


def draw(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def data(seed: int, n: int) -> Transitions:
    x, u = draw(seed, n, 2), draw(seed + 1, n, 1)
    w = NOISE * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 2))
    return Transitions(x, u, x + torch.sin(3 * x) * u + w)


def sparse(size: int, **options) -> SparseGP:
    return SparseGP.create(KERNEL, 2, 1, noise_std=NOISE, size=size, prior=identity_prior, **options)


def exact(**options) -> GP:
    return GP.create(KERNEL, NOISE**2, nx=2, nu=1, noise_std=NOISE, prior=identity_prior, **options)


def small(make, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return make.create(
        2, 1, noise_std=NOISE, generator=generator, hidden=(12,), steps=200, prior=identity_prior, **options
    )


# ------------------------------------------------------------------------------------------- sparse GP
@settings(max_examples=8)
@given(seeds())
def test_with_all_points_inducing_it_is_the_exact_posterior(seed):
    """Up to GPyTorch's jitter, 1e-6 on the Gram matrix."""
    seen, z = data(seed, 15), data(seed + 9, 20)
    one, two = sparse(15).condition(seen).predict(z.x, z.u), exact().condition(seen).predict(z.x, z.u)
    torch.testing.assert_close(one.mean, two.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.std, two.std, rtol=0, atol=1e-3)


def test_the_posterior_is_that_of_titsias():
    seen, z = data(1, 60), data(10, 25)
    model = sparse(12).condition(seen)
    m, noise = len(model.points), NOISE**2
    with torch.no_grad():
        inner = KERNEL(model.points).to_dense() + 1e-6 * torch.eye(m).double()
        cross, query = KERNEL(model.points, seen.z).to_dense(), KERNEL(model.points, z.z).to_dense()
        information = inner + cross @ cross.mT / noise
        mean = query.mT @ torch.linalg.solve(information, cross @ (seen.x_next - seen.x)) / noise
        explained = query * (torch.linalg.solve(inner, query) - torch.linalg.solve(information, query))
        std = (1.0 - explained.sum(0)).sqrt()
    prediction = model.predict(z.x, z.u)
    torch.testing.assert_close(prediction.mean - z.x, mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(prediction.std, std.unsqueeze(-1).expand(-1, 2), rtol=0, atol=1e-7)


def test_it_does_not_touch_the_global_generator():
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    sparse(5).condition(data(0, 10))
    assert torch.equal(first, torch.rand(1))


def test_before_data_it_is_the_prior_and_known_outputs_are_known():
    model = sparse(5, outputs=[1])
    empty = model.predict(draw(0, 4, 2), draw(1, 4, 1))
    torch.testing.assert_close(empty.std, torch.tensor([[0.0, 1.0]]).double().expand(4, 2))
    after = model.condition(data(0, 20)).predict(draw(0, 4, 2), draw(1, 4, 1))
    assert bool((after.std[:, 0] == 0).all()) and bool((after.mean[:, 0] == draw(0, 4, 2)[:, 0]).all())
    assert bool((after.std[:, 1] < 1).all())


# -------------------------------------------------------------------------------------------- networks
def test_without_dropout_the_network_fits_what_it_sees():
    z, y = draw(0, 80, 2), torch.sin(2 * draw(0, 80, 2))
    options = {"hidden": (16,), "steps": 500, "learning_rate": 3e-2, "weight_decay": 0.0}
    network = fit_network(z, y, generator=torch.Generator().manual_seed(0), **options)
    assert float((network(z.unsqueeze(0))[0] - y).abs().mean()) < 0.05


def test_dropout_is_the_mean_and_spread_of_its_thinned_networks():
    model = small(Dropout, masks=7).condition(data(0, 40))
    x, u = draw(3, 5, 2), draw(4, 5, 1)
    outputs = []
    for k in range(7):
        one = MLP(tuple(w[k : k + 1] for w in model.network.weights), tuple(b[k : k + 1] for b in model.network.biases))
        outputs.append(one(model.inputs(torch.cat([x, u], -1)).unsqueeze(0))[0])
    out = model.targets.offset + model.targets.scale * torch.stack(outputs)
    prediction = model.predict(x, u)
    torch.testing.assert_close(prediction.mean, x + out.mean(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(prediction.std, out.std(0, correction=0), rtol=1e-8, atol=1e-12)
    thinned = model.network.weights[1]
    share = float((thinned == 0).all(-1).double().mean())
    assert 0.0 < share < 0.35


def test_the_last_layer_has_the_posterior_of_linear_regression():
    features, noise = torch.cat([draw(0, 30, 4), torch.ones(30, 1)], -1), 0.3
    y = features @ draw(1, 5) + noise * draw(2, 30)
    mean, root = _last_layer(features, y, noise)
    alphas = torch.logspace(-6, 4, 41, dtype=torch.float64)

    def evidence(alpha):
        covariance = features @ features.mT / alpha + noise**2 * torch.eye(30)
        return torch.distributions.MultivariateNormal(torch.zeros(30).double(), covariance).log_prob(y)

    alpha = alphas[torch.stack([evidence(a) for a in alphas]).argmax()]
    precision = features.mT @ features / noise**2 + alpha * torch.eye(5)
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(precision), rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(mean, torch.linalg.solve(precision, features.mT @ y / noise**2), rtol=1e-7, atol=1e-10)


def test_features_are_the_last_hidden_layer():
    model = small(LastLayerLaplace).condition(data(0, 40))
    z = draw(1, 6, 3)
    features = _features(model.network, z)
    assert features.shape == (6, 13)
    w, b = model.network.weights[-1][0], model.network.biases[-1][0]
    torch.testing.assert_close(features[:, :-1] @ w + b, model.network(z.unsqueeze(0))[0])


@pytest.mark.parametrize("make", [Dropout, LastLayerLaplace])
def test_networks_learn_repeatably_and_refuse_to_guess_without_data(make):
    first, second, other = small(make), small(make), small(make, 1)
    seen, x, u = data(0, 150), draw(3, 50, 2), draw(4, 50, 1)
    means = [m.condition(seen).predict(x, u).mean for m in (first, second, other)]
    assert torch.equal(means[0], means[1]) and not torch.equal(means[0], means[2])
    truth = torch.sin(3 * x) * u
    assert float((means[0] - x - truth).square().mean()) < 0.5 * float(truth.square().mean())
    with pytest.raises(ValueError, match="seen data"):
        first.predict(x, u)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="rate"):
        small(Dropout, rate=1.0)
    with pytest.raises(ValueError, match="outputs as integers"):
        small(LastLayerLaplace, outputs=[2])
    with pytest.raises(ValueError, match="2 kernels"):
        SparseGP.create([KERNEL], 2, 1, noise_std=NOISE)
    with pytest.raises(ValueError, match="noise_std > 0"):
        SparseGP.create(KERNEL, 2, 1, noise_std=0.0)
    with pytest.raises(ValueError, match="hidden layer"):
        LastLayerLaplace.create(2, 1, noise_std=0.1, generator=torch.Generator(), hidden=())
