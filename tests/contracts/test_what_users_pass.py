"""Lists, arrays of any width and wrong shapes, on everything of the face that takes points: taken, or refused by name."""

import re

import numpy as np
import pytest
import torch

import gpsafe as gs
from gpsafe.systems import DerivedCost, DerivedKnown
from tests.systems import _claims as claims

SAID = re.compile(r"^[A-Za-z_.() ]+: expected .*, got ", re.DOTALL)  # the one voice of errors


def forms(*points: torch.Tensor) -> list[tuple]:
    """The same numbers, which float32 holds exactly, as people pass them."""
    exact = [p.float().double() for p in points]
    arrays = [p.numpy() for p in exact]
    return [tuple(exact), tuple(arrays), tuple(a.astype(np.float32) for a in arrays), tuple(a.tolist() for a in arrays)]


def takes(function, *points: torch.Tensor, wrong: bool = True) -> None:
    """All forms give the same float64 numbers; one entry more or less is refused in words."""
    expected, *others = [function(*given) for given in forms(*points)]
    for found in others:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    if wrong:
        for bad in (points[0][..., :-1], torch.cat([points[0], points[0][..., :1]], -1)):
            with pytest.raises(ValueError, match=SAID):
                function(bad, *points[1:])
        with pytest.raises(ValueError, match=SAID):
            function("words", *points[1:])


@pytest.mark.parametrize("name", ["double-integrator", "pendulum", "cartpole", "rkhs-1d", "reference-pendulum"])
def test_plants_and_their_costs(name):
    system = claims.SYSTEMS[name]()
    x, u = torch.rand(3, system.nx).double(), torch.rand(3, system.nu).double()
    takes(system.mean, x, u)
    takes(system.cost, x)
    takes(system.cost.upper, x, x + 0.5, wrong=False)
    takes(system.cost.lower, x, x + 0.5, wrong=False)


@pytest.mark.parametrize("name", ["reference-1d", "pendulum", "double-integrator", "derived"])
def test_known_parts(name):
    known, region, nx = claims.PRIORS[name]()
    x, u = torch.rand(3, nx).double(), torch.rand(3, region.dim - nx).double()
    takes(known, x, u, wrong=not isinstance(known, DerivedKnown))


SQUARE = gs.Box([-1.0, -1.0], [1.0, 1.0])
KERNEL = gs.kernels.rbf([1.0, 1.0])
THINGS = {
    "box": SQUARE.contains,
    "clip": SQUARE.clip,
    "polytope": gs.Polytope.of_box(SQUARE).contains,
    "ellipsoid": gs.Ellipsoid([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).contains,
    "policies": gs.AffinePolicies([[0.1]], [[[0.2, 0.3]]], gs.Box([-1.0], [1.0])),
    "posterior": gs.GP.regression(KERNEL, dim=2, noise_std=0.1).condition_on([[0.0, 0.5]], [[1.0]]).posterior,
    "bounds": gs.ConfidenceSet(gs.Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1))
    .update(gs.GP.create(KERNEL, 0.01, nx=2, nu=0, noise_std=0.1))
    .bounds,
    "derived cost": DerivedCost(lambda x: x.square().sum(-1), nx=2),
}


@pytest.mark.parametrize("name", THINGS)
def test_things_that_take_points(name):
    takes(THINGS[name], torch.rand(1, 4, 2).double())


MADE = {
    "Box": lambda v: gs.Box(v, [1.0]),
    "Polytope": lambda v: gs.Polytope(v, [1.0]),
    "Ellipsoid": lambda v: gs.Ellipsoid(v, [[1.0]]),
    "Zonotope": lambda v: gs.sets.Zonotope([0.0], v),
    "AffineKnown": lambda v: gs.AffineKnown([[1.0]], v, [0.0]),
    "IndicatorCost": lambda v: gs.IndicatorCost(v, [1.0]),
    "HingeCost": lambda v: gs.HingeCost([1.0], v),
    "AffinePolicies": lambda v: gs.AffinePolicies([[0.0]], v, gs.Box([0.0], [1.0])),
    "Transitions": lambda v: gs.Transitions(v, [[0.0]], [[0.0]]),
    "GP": lambda v: gs.GP.create(v, 0.1, nx=1, nu=0, noise_std=0.1),
    "regularizer": lambda v: gs.GP.create(KERNEL, v, nx=2, nu=0, noise_std=0.1),
    "kernel": gs.kernels.rbf,
    "Mixture": lambda v: gs.Mixture(rkhs_norm=v, subgaussian=0.1, delta=0.1),
    "Verdict": lambda v: gs.Verdict(v, 1.0, 1.0),
    "load": gs.load,
    "Task": gs.Task.of,
    "estimate": lambda v: gs.estimate(v, v),
    "sample": lambda v: SQUARE.sample(3, v),
    "plant": lambda v: plant(noise_std=v),
    "x0": lambda v: plant(x0=v),
    "states": lambda v: plant(states=(v, v)),
    "budget": lambda v: plant(budget=v),
}


def plant(**change):
    given = {"x0": [0.0], "states": ([-1], [1]), "inputs": ([-1], [1]), "safe": ([-1], [1]), "horizon": 3, **change}
    return gs.plant(lambda x, u: 0.5 * x + u, **given)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("given", [None, "words", [[1.0], [1.0, 2.0]], {"a": 1}], ids=str)
def test_nonsense_is_refused_in_words(name, given):
    if name == "load" and given == "words":
        given = 3
    with pytest.raises(ValueError, match=SAID):
        MADE[name](given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"safe": ([-1, -1], [1, 1])}, "safe with as many entries"),
        ({"states": ([-1, -1], [1, 1])}, "x0 with as many entries"),
    ],
)
def test_limits_of_another_plant_are_refused(change, words):
    with pytest.raises(ValueError, match=f"plant: expected {words}"):
        plant(**change)


def test_integer_seeds_and_arrays_for_limits():
    assert torch.equal(SQUARE.sample(3, 5), SQUARE.sample(3, torch.Generator().manual_seed(5)))
    made = plant(states=(np.array([-1.0], np.float32), np.array([1.0])), noise_std=np.array([0.1], np.float32))
    assert made.state_box.lower.dtype is made.noise_std.dtype is torch.float64
