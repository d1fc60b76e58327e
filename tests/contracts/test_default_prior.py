"""A GP made without a known part, or with the state itself, is taken by all that certifies: bit for bit as AffineKnown."""

import pytest
import torch
from cost_cases import generator, make_case
from test_cost_bounds import BOUNDS

from gpsafe.confidence import ConfidenceSet
from gpsafe.data import Transitions
from gpsafe.models import GP, LowRankGP, identity_prior, zero_prior
from gpsafe.models._prior import PlainKnown, prior_jacobian
from gpsafe.systems.base import KnownPart
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import GPTube

CASE = make_case("1d", ())


def affine(scale: float, nx: int = 1, nu: int = 1) -> AffineKnown:
    eye = torch.eye(nx, dtype=torch.float64)
    return AffineKnown(scale * eye, torch.zeros(nx, nu, dtype=torch.float64), 0.0 * eye[0])


def confidence(**prior) -> ConfidenceSet:
    system, g = CASE.system, generator(3)
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, **prior)
    x, u = (torch.rand(8, 1, dtype=torch.float64, generator=g) for _ in range(2))
    seen = model.condition(Transitions(x, u, 0.2 * x + 0.1 * u))
    return ConfidenceSet(CASE.confidence.bound).update(model).update(seen)


STOCK = {"default": ({}, 0.0), "zero": ({"prior": zero_prior}, 0.0), "identity": ({"prior": identity_prior}, 1.0)}


@pytest.mark.parametrize("stock", sorted(STOCK))
@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_costs_take_the_stock_priors_as_the_affine_part_they_are(bound, stock):
    options, scale = STOCK[stock]
    cost, chosen = BOUNDS[bound](CASE.task_with(horizon=6)), CASE.choose(2, 30)
    found, same = (cost.evaluate(confidence(**prior), chosen) for prior in (options, {"prior": affine(scale)}))
    assert torch.equal(found.lower, same.lower) and torch.equal(found.upper, same.upper)
    assert found.sound_upper == same.sound_upper


def test_tubes_take_the_stock_priors():
    x, u, factor = (torch.full(shape, 0.2, dtype=torch.float64) for shape in ((1, 1), (1, 1), (1, 1, 1)))
    gain = torch.zeros(1, 1, dtype=torch.float64)
    for options, scale in STOCK.values():
        found, same = (GPTube(confidence(**p), 3, 0.1) for p in (options, {"prior": affine(scale)}))
        assert torch.equal(found.remainder(x, u, factor, gain), same.remainder(x, u, factor, gain))
        for name in ("mean", "A", "B", "variance"):
            assert torch.equal(getattr(found.linearise(x, u), name), getattr(same.linearise(x, u), name))


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize(("nx", "nu"), [(1, 1), (2, 1), (3, 2)])
def test_plain_known_parts_state_their_own_derivatives(identity, nx, nu):
    plain, same = PlainKnown(nx, nu, identity), affine(float(identity), nx, nu)
    assert isinstance(plain, KnownPart) and bool((plain.hessian_bound == 0).all())
    assert plain.hessian_bound.shape == same.hessian_bound.shape
    x, u = torch.randn(4, 1, nx, dtype=torch.float64), torch.randn(5, nu, dtype=torch.float64)
    value, before = plain(x, u), x.clone()
    assert torch.equal(value, same(x, u).expand(4, 5, nx))  # the batch is that of both
    value += 1.0  # bounds add the residual in place: no two entries, and not the state, may share memory
    assert torch.equal(value, same(x, u).expand(4, 5, nx) + 1.0) and torch.equal(x, before)
    x, u = torch.randn(4, nx, dtype=torch.float64), torch.randn(4, nu, dtype=torch.float64)
    for own, other in zip(plain.jacobian(x, u), same.jacobian(x, u), strict=True):
        assert torch.equal(own, other)
    derived = prior_jacobian("test", lambda x, u: plain(x, u), x, u)
    assert torch.equal(prior_jacobian("test", plain, x, u), derived.expand(4, nx, nx + nu))


def test_confidence_sets_see_that_two_default_priors_are_one():
    one, other = confidence(), confidence(prior=zero_prior)
    ConfidenceSet(one.bound, one.generations).update(other.model)
    with pytest.raises(ValueError, match="known part"):
        one.update(confidence(prior=identity_prior).model)
    assert isinstance(LowRankGP.create(one.model, 4).prior, KnownPart)


def test_a_plain_function_is_refused_by_a_message_that_says_what_to_use():
    for bound in ("robust-dp", "gaussian-tube", "scenario-tube"):
        with pytest.raises(ValueError, match=r"known part with hessian_bound \(gpsafe.AffineKnown .*got <lambda>"):
            BOUNDS[bound](CASE.task).evaluate(confidence(prior=lambda x, u: 0.5 * x), CASE.choose(2))
