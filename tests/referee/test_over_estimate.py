"""The published over-estimate of a norm: an order statistic of random functions, no help against what sleeps between rows."""

from __future__ import annotations

import math

import pytest
import torch

from gpsafe.assumptions import Assumption
from gpsafe.referee import Design, over_estimate
from gpsafe.referee.norms import random_functions
from gpsafe.rkhs import kernels, random_function

KERNEL = kernels.rbf([0.5])


def design(z: torch.Tensor) -> Design:
    return Design(KERNEL, math.inf, 0.01, 0.05, z, 0, torch.full((len(z),), -1, dtype=torch.long), 1.0)


def test_it_is_the_least_order_statistic_that_is_enough():
    z = torch.rand(12, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = z[:, 0].sin()
    norms = random_functions(design(z), y, seed=3)
    for failure, rank in ((0.05, 191), (1 / 201, 200), (62 / 201, 139)):  # of 200: ⌈(1 − failure) · 201⌉
        found = over_estimate(design(z), y, failure=failure, seed=3)
        assert found.value == float(norms[rank - 1]) and found.failure == failure
        assert [entry.kind for entry in found.assumptions] == [Assumption.GIVEN]
    with pytest.raises(ValueError, match="1/201"):
        over_estimate(design(z), y, failure=0.004)


@pytest.mark.slow
def test_it_is_no_bound_for_random_functions_of_the_same_look_and_still_less_for_those_that_wake_up_beyond_the_rows():
    """Draws are scaled by the same rows, so that a function which was not drawn so is not exchangeable with them."""
    covered, missed = 0, 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        z = torch.rand(15, 1, dtype=torch.float64, generator=generator)
        f = random_function(KERNEL, z.amin(0), z.amax(0), norm=2.0, generator=generator)
        covered += over_estimate(design(z), f(z), seed=seed).value >= 2.0
        far = kernels.cross(KERNEL, z, torch.full((1, 1), 4.0).double())[
            :, 0
        ]  # 50 k(4, ·): norm 50, nearly 0 on [0, 1]
        missed += over_estimate(design(z), f(z) + 50 * far, seed=seed).value < 40.0
    assert covered < 15 and missed == 20  # of 20, where 0.95 is promised under the assumption
