"""A sound ensemble tube rests on the derivatives that its known part states, and says so."""

from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch

from gpsafe.assumptions import Assumption
from gpsafe.data import Transitions
from gpsafe.models import Ensemble, _prior, identity_prior
from gpsafe.tube import EnsembleTube


@dataclass(frozen=True)
class Parabola:
    """p = 25 x², with whatever is said about its second derivative."""

    said: float

    def __call__(self, x, u):
        return 25.0 * x.square() + 0.0 * u

    @property
    def hessian_bound(self):
        bound = torch.zeros(1, 2, 2).double()
        bound[0, 0, 0] = self.said
        return bound


def ensemble(prior) -> Ensemble:
    with mock.patch.object(_prior, "check_derivatives"):  # that none was found at drawn points is no proof
        return Ensemble.create(nx=1, nu=1, members=2, generator=torch.Generator().manual_seed(0), prior=prior)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("made", ["sound", "calibrated", "by hand"])
def test_the_derivatives_of_a_known_part_are_listed_where_they_are_used(made):
    rows = Transitions(draw(99, 1), draw(99, 1), draw(99, 1))

    def kinds(prior) -> set[Assumption]:
        model = ensemble(prior)
        tube = {
            "sound": lambda: EnsembleTube.sound(model, steps=3, delta=0.1),
            "calibrated": lambda: EnsembleTube.calibrated(model, rows, steps=3, delta=0.2),
            "by hand": lambda: EnsembleTube(model, "sound", 2.0),
        }[made]()
        assert replace(tube, cells=3).assumptions == tube.assumptions  # listed once
        return {entry.kind for entry in tube.assumptions}

    assert kinds(Parabola(50.0)) - kinds(identity_prior) == {Assumption.KNOWN_DERIVATIVES}
    assert Assumption.KNOWN_DERIVATIVES not in {
        e.kind for e in EnsembleTube.paper(ensemble(Parabola(50.0))).assumptions
    }


@pytest.mark.parametrize(("said", "true"), [(50.0, True), (0.0, False)])
def test_a_curvature_that_is_false_leaves_the_remainder(said, true):
    model = ensemble(Parabola(said))
    tube = EnsembleTube(model, "sound", 1.0)
    x, u, gain = torch.zeros(2, 1).double(), torch.zeros(2, 1).double(), torch.zeros(1, 1).double()
    factor = torch.full((2, 1, 1), 0.2, dtype=torch.float64)
    at = tube.linearise(x, u)
    moved = tube.mean(x + 0.2, u) - at.mean - at.A[..., 0] * 0.2
    assert bool((moved.abs() <= tube.remainder(x, u, factor, gain)).all()) == true
