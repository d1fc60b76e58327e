"""What is fitted and drawn is the same wherever it is called: whatever torch's default type is, with gradients or without.

A fit under `torch.no_grad` raised from inside torch; noise of plans and the order of training rows were drawn in the default
type; rows were chosen by positions in it: of 300 rows in bfloat16 the last one was the 301st.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import pytest
import test_lent_tensors as lent
import torch
from test_lent_tensors import ONE, Returned, number
from torch import Tensor

import gpsafe as gs
from gpsafe.algorithms.from_data import estimate_rows
from gpsafe.calibration.shift import likelihood_ratio
from gpsafe.cost import Hallucinated
from gpsafe.models import Training, refit
from gpsafe.models.ensemble import Ensemble
from gpsafe.models.views import fit_hyperparameters
from gpsafe.planning.icem import colored_noise
from gpsafe.planning.practical import fit
from gpsafe.rkhs import kernels
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.rkhs_twin import _probe
from gpsafe.systems.task import Task


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def draw(count: int) -> gs.Transitions:
    x, u = gs.Box([-1.0], [1.0]).sample(count, 0), gs.Box([-1.0], [1.0]).sample(count, 1)
    return gs.Transitions(x, u, 0.9 * x + 0.3 * torch.sin(3 * x) * u)


FEW, MANY = draw(20), draw(360)
EMPTY = Ensemble.create(1, 1, generator=source(), members=2, hidden=(4,), training=Training(epochs=2, batch=8))
TASK = Task(number(0.1), 4, IndicatorCost(ONE, number(1.2)), 0.1, number(0.01))
SET, POLICIES = lent.learned(Returned(constant=False, own=True)), lent.policies(2)
PRACTICAL = gs.GP.create(kernels.rbf([1.0, 1.0]), 0.01, nx=1, nu=1, noise_std=0.1, mode="practical").condition(FEW)


def weights(model: Ensemble) -> Tensor:
    return torch.cat([w.flatten() for w in model.network.weights])


def fitted() -> Tensor:
    start = torch.zeros(1, 2, dtype=torch.float64)
    return fit(FEW, torch.clone, noise_std=number(0.05), log_lengthscale=start, steps=5).log_lengthscale


FOUND: dict[str, Callable[[], Tensor]] = {
    "noise of plans": lambda: colored_noise(2.0, (3, 12), source()),
    "training": lambda: weights(EMPTY.condition(FEW)),
    "refit": lambda: weights(refit(EMPTY, FEW, epochs=2)[0]),
    "ratio": lambda: likelihood_ratio(FEW.z, 0.5 + FEW.z)(FEW.z),
    "probe": lambda: _probe(gs.Box([-1.0, -1.0], [1.0, 1.0]), 200),
    "estimate": lambda: torch.tensor(estimate_rows(MANY, noise_std=0.05).rkhs_norm, dtype=torch.float64),
    "hyperparameters": lambda: fit_hyperparameters(PRACTICAL).regularizer,
    "practical": fitted,
    "hallucinated": lambda: Hallucinated(task=TASK, seed=0, samples=16).evaluate(SET, POLICIES).lower,
}


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


WHERE: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float64": lambda: default(torch.float64),
    "bfloat16": lambda: default(torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
}


@cache
def usual(name: str) -> Tensor:
    return FOUND[name]()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", FOUND)
def test_numbers_are_the_same_to_the_bit(name: str, where: str):
    before = usual(name)
    with WHERE[where]():
        found = FOUND[name]()
    assert found.dtype is torch.float64 and torch.equal(found, before)
