"""The grid of anchors goes on with the confidence set it was filled from, and with no other."""

import pytest
import torch

from gpsafe import kernels
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.sets import Box

BOUND = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)


def confidence(*, dims: int = 0, lengthscale: float = 1.0, outputs: tuple[int, ...] = (0,)) -> ConfidenceSet:
    kernel = kernels.rbf(lengthscale, 1.0, dims=[dims])
    return ConfidenceSet(BOUND).update(GP.create(kernel, 0.01, nx=2, nu=1, noise_std=0.1, outputs=outputs))


@pytest.mark.parametrize("other", [{"dims": 1}, {"lengthscale": 2.0}, {"outputs": (1,)}])
def test_a_confidence_set_over_other_kernels_or_outputs_is_refused(other):
    box = Box(vector(-1.0, -1.0, -1.0), vector(1.0, 1.0, 1.0))
    grid = AnchorGrid.create(box, torch.ones(3, dtype=torch.float64)).refine(confidence())
    assert grid.refine(confidence()) is grid  # equal objects are the same set
    with pytest.raises(ValueError, match="continues the last one"):
        grid.refine(confidence(**other))
