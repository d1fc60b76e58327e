"""A set whose bound, posterior or data were edited in place after acceptance answers nothing: not even at a single point.

Targets set to 0 before the first question gave |f| ≤ 0.24 where f* = −0.80, a length-scale moved then an interval of width
0.000, and a B moved to 0.01 the band ±0.01; the cost bounds and tubes refused all the while.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Constant, Mixture, ranges, regions
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.models import GP
from gpsafe.rkhs import kernels

Z = torch.linspace(-1, 1, 9, dtype=torch.float64).unsqueeze(-1)
BOX = (Z[:2], Z[:2] + 0.1)
ASKED: dict[str, Callable[[ConfidenceSet], object]] = {
    "bounds": lambda F: F.bounds(Z),
    "since": lambda F: F.bounds(Z, since=1),
    "empty": lambda F: F.empty(Z),
    "falsified": lambda F: F.falsified(Z),
    "contains": lambda F: F.contains(lambda z: 0.8 * torch.sin(3 * z), Z),
    "band": lambda F: ranges.band(F, BOX),
    "local affine": lambda F: LocalAffine.at(F, Z),
    "region": lambda F: regions.certified(F, BOX, epsilon=1.0),
}


def observed(model: GP, count: int, seed: int) -> GP:
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.rand(count, 1, dtype=torch.float64, generator=generator) - 1
    return model.condition_on(
        z, 0.8 * torch.sin(3 * z) + 0.1 * torch.randn(z.shape, dtype=z.dtype, generator=generator)
    )


def case(bound: Mixture | Constant) -> tuple[ConfidenceSet, GP, GP]:
    first = observed(GP.regression(kernels.rbf([0.5]), dim=1, noise_std=0.1), 20, 0)
    second = observed(first, 10, 1)
    return ConfidenceSet(bound).update(first).update(second), first, second


def of(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def moved_kernel(model: GP) -> None:
    for parameter in model.kernels[0].parameters():
        parameter.data.add_(1.0)


EDITS: dict[str, Callable[[ConfidenceSet, GP, GP], object]] = {
    "targets": lambda F, first, second: of(second.targets).mul_(0.0),
    "inputs": lambda F, first, second: of(second.inputs)[0].add_(1.0),
    "regularizer": lambda F, first, second: second.regularizer.mul_(2.0),
    "noise": lambda F, first, second: second.noise_std.mul_(0.5),
    "kernel": lambda F, first, second: moved_kernel(second),
    "earlier targets": lambda F, first, second: of(first.targets).mul_(0.0),
    "earlier inputs": lambda F, first, second: of(first.inputs)[3].add_(1.0),
    "norm": lambda F, first, second: object.__setattr__(F.bound, "rkhs_norm", 0.01),
    "delta": lambda F, first, second: object.__setattr__(F.bound, "delta", 0.9),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_set_answers_nothing(edit: str, asked: str):
    confidence, first, second = case(Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.1))
    EDITS[edit](confidence, first, second)
    with pytest.raises(ValueError, match="a set that was edited since"):
        ASKED[asked](confidence)


@pytest.mark.parametrize("asked", ASKED)
def test_a_set_that_nobody_edited_answers(asked: str):
    ASKED[asked](case(Mixture(rkhs_norm=4.0, subgaussian=0.1, delta=0.1))[0])


def apart() -> tuple[ConfidenceSet, GP]:
    """Generations that share no kernel and no λ: the second is conditioned on a copy of the first."""
    first = observed(GP.regression(kernels.rbf([0.5]), dim=1, noise_std=0.1), 20, 0)
    second = observed(copy.deepcopy(first), 10, 1)
    return ConfidenceSet(Mixture(rkhs_norm=4.0, subgaussian=0.1, delta=0.1)).update(first).update(second), first


@pytest.mark.parametrize("edit", [moved_kernel, lambda first: first.regularizer.mul_(2.0)])
def test_an_earlier_generation_with_kernels_of_its_own_is_looked_at_as_well(edit: Callable[[GP], object]):
    confidence, first = apart()
    assert confidence.edited is None
    confidence.bounds(Z)
    edit(first)
    assert confidence.edited == "the kernels and lambda of the earlier generations"


def test_lambda_of_an_earlier_generation_is_looked_at_where_kernels_are_shared():
    first = observed(GP.regression(kernels.rbf([0.5]), dim=1, noise_std=0.1), 20, 0)
    own = copy.copy(first)
    object.__setattr__(own, "regularizer", first.regularizer.clone())
    confidence = (
        ConfidenceSet(Mixture(rkhs_norm=4.0, subgaussian=0.1, delta=0.1)).update(own).update(observed(first, 10, 1))
    )
    assert confidence.edited is None
    own.regularizer.mul_(2.0)
    assert confidence.edited == "the kernels and lambda of the earlier generations"


def test_a_set_that_claims_nothing_may_be_edited():
    confidence, first, second = case(Constant(value=2.0))
    of(first.targets).mul_(0.0)
    of(second.targets).mul_(0.0)
    assert confidence.edited is None
    confidence.bounds(Z)


def test_a_set_says_what_was_edited():
    confidence, first, _ = case(Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.1))
    of(first.targets).mul_(0.0)
    assert confidence.edited == "the observations of the earlier generations"


@pytest.mark.parametrize("asked", [ranges.mean, ranges.std])
def test_ranges_of_a_model_whose_kernel_moved_are_refused(asked: Callable[..., object]):
    """Its factor is that of the old kernel, its Taylor constants would be those of the new one."""
    _, _, model = case(Constant(value=2.0))
    asked(model, BOX)
    moved_kernel(model)
    with pytest.raises(ValueError, match="edited since"):
        asked(model, BOX)
