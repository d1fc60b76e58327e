"""Where a theorem ends, nothing is claimed: outside a bound's domain, and for noise that it does not cover."""

import pytest
import torch

from gpsafe import AffineKnown
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Lederer, Mixture, NoiseEnergy, regions
from gpsafe.cost import RobustDP
from gpsafe.cost.grid import Grid
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.task import Task
from gpsafe.tube import GPTube, KollerTube, propagate

ONE = torch.ones(1, 1, dtype=torch.float64)
NOISE = 0.1


def learned(count: int = 20) -> GP:
    """x⁺ = x + u + f(x, u), data in the unit square."""
    known = AffineKnown(ONE, ONE, torch.zeros(1))
    model = GP.create(kernels.rbf(0.3), NOISE**2, nx=1, nu=1, noise_std=NOISE, prior=known)
    z = torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return model.condition_on(z, torch.zeros(count, 1))


LEDERER = Lederer(delta=0.1, lower=(0.0, 0.0), upper=(1.0, 1.0))


def test_regions_say_nothing_of_boxes_beyond_the_one_of_a_bayesian_bound():
    confidence = ConfidenceSet(LEDERER).update(learned())
    lower = torch.tensor([[0.2, 0.2], [0.9, 0.9], [5.0, 5.0]], dtype=torch.float64)
    for epsilon, expected in ((100.0, "yes"), (1e-9, "no")):
        found = regions.certified(confidence, (lower, lower + 0.2), epsilon=epsilon)
        assert getattr(found, expected).tolist() == [True, False, False]
        assert found.undecided.tolist() == [False, True, True]


@pytest.mark.parametrize("form", ["mean", "known"])
def test_a_tube_that_leaves_the_box_of_a_bayesian_bound_claims_nothing(form):
    tube = KollerTube(ConfidenceSet(LEDERER).update(learned()), steps=1, delta=0.1, form=form)
    inputs, gain = 0.5 * ONE, torch.zeros(1, 1)
    inside = propagate(tube, torch.tensor([0.5]), inputs, gain)
    assert bool(torch.isfinite(inside.factor).all())
    for start in (-0.1, 1.1):
        outside = propagate(tube, torch.tensor([start]), inputs, gain)
        assert not bool(torch.isfinite(outside.factor[..., -1, :, :]).all())
    wide = torch.full((1, 1, 1), 0.6)  # the centre is inside, the section is not
    assert bool(torch.isinf(tube.remainder(torch.tensor([[0.5]]), 0.5 * ONE, wide, gain)).all())


def robust(confidence: ConfidenceSet) -> object:
    task = Task(torch.zeros(1), 3, IndicatorCost(ONE, torch.ones(1)), 0.1, torch.tensor([NOISE], dtype=torch.float64))
    policy = AffinePolicies(torch.zeros(1, 1), -0.5 * ONE.unsqueeze(0), Box([-1.0], [1.0]))
    return RobustDP(Grid(Box([-2.0], [2.0]), (16,)), task).evaluate(confidence, policy)


ASSUMED = {"rkhs_norm": 1.0, "delta": 0.1}
TOO_SMALL = {
    "R below the noise": Mixture(subgaussian=0.5 * NOISE, **ASSUMED),
    "noise said to be bounded": NoiseEnergy(subgaussian=NOISE, noise_kind="bounded", **ASSUMED),
    "energy said to be bounded": NoiseEnergy(subgaussian=NOISE, noise_kind="energy", **ASSUMED),
}
CONSUMERS = {
    "cost": robust,
    "tube": lambda confidence: GPTube(confidence, 3, 0.1),
    "koller": lambda confidence: KollerTube(confidence, 3, 0.1),
}


@pytest.mark.parametrize("bound", TOO_SMALL)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_set_that_is_too_small_for_the_noise_certifies_nothing(bound: str, consumer: str):
    bound_of: ConfidenceBound = TOO_SMALL[bound]
    confidence = ConfidenceSet(bound_of).update(learned())
    with pytest.raises(ValueError, match="noise"):
        CONSUMERS[consumer](confidence)
    CONSUMERS[consumer](ConfidenceSet(Mixture(subgaussian=NOISE, **ASSUMED)).update(learned()))


def test_gaussian_noise_leaves_a_set_of_bounded_noise_far_more_often_than_delta():
    """Why it is refused: one observation of f = 0, R = σ, and F_1 without f* in three runs of ten."""
    bound, generator = NoiseEnergy(subgaussian=NOISE, noise_kind="bounded", **ASSUMED), torch.Generator().manual_seed(1)
    missed, z, empty = 0, torch.full((1, 2), 0.5, dtype=torch.float64), learned(1)
    fresh = GP.create(empty.kernels[0], NOISE**2, nx=1, nu=1, noise_std=NOISE, prior=empty.prior, mode="theory")
    for _ in range(100):
        y = NOISE * torch.randn(1, 1, dtype=torch.float64, generator=generator)
        low, high = bound.interval(fresh.condition_on(z, y), z)
        missed += not float(low) <= 0.0 <= float(high)
    assert missed > 20  # of 100; δ is a tenth
