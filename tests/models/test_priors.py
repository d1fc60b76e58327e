"""Known parts: refused where their shape would only fit by broadcasting, constants included where they are constants."""

from dataclasses import replace

import pytest
import torch

from gpsafe.data import Transitions
from gpsafe.models import GP, Ensemble, LowRankGP, Training, identity_prior
from gpsafe.models.dropout import Dropout
from gpsafe.models.laplace import LastLayerLaplace
from gpsafe.models.sparse_gp import SparseGP
from gpsafe.models.views import as_botorch
from gpsafe.rkhs import kernels
from gpsafe.sets.box import Box
from gpsafe.tube import KnownTube

NX, NU = 2, 1
KERNEL = kernels.rbf([1.0, 1.0, 1.0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(n: int = 6) -> Transitions:
    x, u = (torch.randn(n, d, dtype=torch.float64, generator=generator(d)) for d in (NX, NU))
    return Transitions(x, u, 0.9 * x + u)


def ensemble(prior) -> Ensemble:
    return Ensemble.create(NX, NU, generator=generator(), members=2, prior=prior, training=Training(steps=20, epochs=2))


def gp(prior) -> GP:
    return GP.create(KERNEL, 0.01, nx=NX, nu=NU, noise_std=0.1, prior=prior)


MODELS = {
    "gp": gp,
    "ensemble": ensemble,
    "sparse": lambda prior: SparseGP.create(KERNEL, NX, NU, noise_std=0.1, size=3, prior=prior),
    "dropout": lambda prior: Dropout.create(
        NX, NU, noise_std=0.1, generator=generator(), steps=3, hidden=(4,), prior=prior
    ),
    "laplace": lambda prior: LastLayerLaplace.create(
        NX, NU, noise_std=0.1, generator=generator(), steps=3, prior=prior
    ),
}
WRONG = {
    "one state": lambda x, u: x[..., 0],
    "a column": lambda x, u: x[..., :1],
    "too many states": lambda x, u: torch.cat([x, u], -1),
    "an axis too many": lambda x, u: x.unsqueeze(0),
    "the input": lambda x, u: u,
    "a number": lambda x, u: 0.0,
}
CONSTANTS = {
    "vector": lambda x, u: torch.tensor([1.0, -2.0], dtype=torch.float64),
    "expanded": lambda x, u: torch.tensor([1.0, -2.0], dtype=torch.float64).expand_as(x),
    "zeros_like": lambda x, u: torch.zeros_like(x),
    "full": lambda x, u: torch.full(x.shape, 0.5, dtype=torch.float64),
}


@pytest.mark.parametrize("prior", sorted(WRONG))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_prior_of_another_shape_is_refused_at_creation(model, prior):
    with pytest.raises(ValueError, match=r"prior \(known part\) that returns shape"):
        MODELS[model](WRONG[prior])


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize(
    "prior", [lambda x, u: x.add_(0.1 * u[..., :1]), lambda x, u: x + u.mul_(0.0).sum(-1, keepdim=True)]
)
def test_a_prior_that_writes_on_its_arguments_is_refused_at_creation(model, prior):
    with pytest.raises(ValueError, match="leaves its arguments as they are"):
        MODELS[model](prior)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize(
    "prior",
    [lambda x, u: x.float(), lambda x, u: (9 * x).long(), lambda x, u: x > 0, lambda x, u: torch.tensor([0.1, 0.2])],
    ids=["float32", "whole", "mask", "constant"],
)
def test_a_prior_of_less_width_is_refused_at_creation(model, prior):
    """A known 0.9x in float32 is another function, by 10⁻⁸ of it and without a slope, in bounds that are rounded by 10⁻¹²."""
    with pytest.raises(ValueError, match=r"known part\) in torch.float64"):
        MODELS[model](prior)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_prior_that_cannot_be_tried_is_refused_at_its_first_use(model):
    def prior(x, u):
        if bool((x == 0).any()):
            raise ArithmeticError("undefined at 0")
        return x[..., 0]

    made = MODELS[model](prior)
    with pytest.raises(ValueError, match=r"got shape \(6,\)"):
        made.condition(data())
    with pytest.raises(ValueError, match=r"returns shape \(2, 2\)"):  # as many points as states: a square
        made.condition(data(2))


@pytest.mark.parametrize("name", sorted(WRONG))
def test_views_and_predictions_are_held_to_the_same(name):
    model = replace(gp(identity_prior).condition(data()), prior=WRONG[name])
    x, u = data(4).x, data(4).u
    for one in (model, LowRankGP.create(model, 4)):
        with pytest.raises(ValueError, match="that returns shape"):
            one.predict(x, u)
    with pytest.raises(ValueError, match="that returns shape"):
        as_botorch(model).posterior(torch.cat([x, u], -1))


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_constant_priors_are_known_means(model, name):
    made = MODELS[model](CONSTANTS[name]).condition(data())
    for n in (1, NX, 5):
        prediction = made.predict(data(n).x, data(n).u)
        assert prediction.mean.shape == (n, NX)
        assert bool(torch.isfinite(prediction.mean).all())


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_ensembles_with_a_constant_prior_linearize(name):
    x, u = data().x, data().u
    moved, plain = ensemble(CONSTANTS[name]), ensemble(lambda x, u: 0.0 * x)
    for a, b in ((x, u), (x[0], u[0])):
        found, expected = moved.linearize(a, b), plain.linearize(a, b)
        assert torch.equal(found.jacobian, expected.jacobian)
        assert found.jacobian.shape == (2, *a.shape, NX + NU)
        assert torch.allclose(found.mean, expected.mean + CONSTANTS[name](a, b))


def test_jacobians_and_hessian_bounds_of_known_parts_are_held_to_their_shape():
    class Known:
        hessian_bound = torch.zeros(NX, 1, 1).double()

        def __call__(self, x, u):
            return x

        def jacobian(self, x, u):
            return torch.eye(NX).double(), torch.zeros(NX, NU).double()

    model = ensemble(Known())
    with pytest.raises(ValueError, match="jacobian of shape"):
        model.linearize(data().x, data().u)
    with pytest.raises(ValueError, match="hessian_bound of shape"):
        model.hessian_bound(Box(torch.zeros(3).double(), torch.ones(3).double()))


def test_ensembles_learn_from_one_transition_whatever_the_seed():
    for seed in range(20):
        empty = Ensemble.create(
            NX, NU, generator=generator(seed), members=2, hidden=(4,), training=Training(epochs=2, steps=2)
        )
        one = empty.condition(data(1))
        assert bool(torch.isfinite(one.predict(data(3).x, data(3).u).mean).all())
        assert bool(torch.isfinite(one.condition(data(1)).predict(data(3).x, data(3).u).mean).all())


class Detached:
    """x⁺ = 1.5 x as a constant to torch, which then sees no feedback through it."""

    hessian_bound = torch.zeros(2, 3, 3, dtype=torch.float64)

    def __call__(self, x, u):
        return 1.5 * x.detach() + 0.0 * u


class Elsewhere(Detached):
    def __call__(self, x, u):
        return torch.from_numpy(1.5 * x.detach().numpy())


class OtherSlope(Detached):
    def jacobian(self, x, u):
        return torch.zeros(*x.shape[:-1], 2, 2).double(), torch.zeros(*x.shape[:-1], 2, 1).double()


class OtherBend(Detached):
    def __call__(self, x, u):
        return 1.5 * x + torch.sin(x).square()


@pytest.mark.parametrize("known", [Detached(), OtherSlope(), OtherBend()], ids=lambda k: type(k).__name__)
def test_a_known_part_beyond_its_own_derivatives_is_refused(known):
    """`sound_upper` was True, with tubes that did not grow with the state."""
    for build in (
        lambda: GP.create(kernels.rbf([1.0] * 3), 0.1, nx=2, nu=1, noise_std=0.1, prior=known),
        lambda: Ensemble.create(nx=2, nu=1, generator=torch.Generator().manual_seed(0), prior=known),
        lambda: KnownTube(known, torch.zeros(1)),
    ):
        with pytest.raises(ValueError, match="a known part within its own hessian_bound of its linearisation"):
            build()


def test_a_known_part_that_leaves_torch_is_told_so():
    with pytest.raises(ValueError, match="that torch can differentiate, or one with a `jacobian` of its own"):
        KnownTube(Elsewhere(), torch.zeros(1))
