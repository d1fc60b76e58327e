"""Numbers do not depend on torch's default type, which programs that load large networks set to one of 8 or 11 digits.

Cells of a certified map did: at 513.5 cells from the end a bfloat16 is 512, and a state whose own cost is 1 was said to be safe
with probability 0.999999999.
"""

import numpy as np
import pytest
import test_lent_tensors as lent
import torch
from test_lent_tensors import ONE, Returned, number
from xmpsc_cases import double_integrator

from gpsafe.cost.grid import Grid
from gpsafe.models import Ensemble
from gpsafe.planning.mpc import _sweeps
from gpsafe.policies import AffinePolicies
from gpsafe.safety import certified_map
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.task import Task

FEW = (torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture
def default():
    """Sets the default type for the rest of a test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def policies(count: int) -> AffinePolicies:
    zero = torch.zeros(count, 1, dtype=torch.float64)
    return AffinePolicies(zero, zero.unsqueeze(-1) - 0.1, Box([-1.0], [1.0]))


@pytest.mark.parametrize("name", lent.ASKED)
def test_bounds_are_the_same_to_the_bit(name: str, default, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lent, "policies", policies)
    monkeypatch.setattr(lent, "GRID", Grid(Box([-2.0], [2.0]), (300,)))

    def asked() -> torch.Tensor:
        task = Task(number(0.1), 4, IndicatorCost(ONE, number(1.2)), 0.1, number(0.01))
        return lent.ASKED[name](lent.learned(Returned(constant=False, own=True)), task, number(0.1))

    usual = asked()
    for dtype in FEW:
        default(dtype)
        assert torch.equal(asked(), usual)


# Only a float16 has 513 and not 2049.
@pytest.mark.parametrize(("cells", "limit", "dtypes"), [(600, 513, FEW), (2100, 2049, (torch.float16,))])
def test_a_state_that_is_unsafe_is_never_safe(cells: int, limit: int, dtypes: tuple[torch.dtype, ...], default):
    edge = -2.0 + 4.0 * limit / cells
    task = Task(number(0.1), 1, IndicatorCost(ONE, number(edge)), 0.1, number(0.01))
    x = edge + 4.0 / cells * torch.tensor([[0.2], [0.8]], dtype=torch.float64)
    confidence, found = lent.learned(Returned(constant=False, own=True)), []
    for dtype in (torch.float32, *dtypes):
        default(dtype)
        grid = Grid(Box([-2.0], [2.0]), (cells,))
        map_ = certified_map(confidence, policies(1), task, grid).refined(tolerance=0.01, cells=cells)
        assert bool((task.cost(x) == 1).all()) and float(map_.at(x)[0].max()) == 0.0
        found.append(
            torch.cat([torch.stack(map_.partition.boxes()).flatten(), map_.lower.flatten(), map_.upper.flatten()])
        )
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_differences_of_plans_and_numbers_in_lists_are_those_of_float64(default):
    """A step of 10⁻⁶ is 1.01·10⁻⁶ in float16, and was one of float32 under the usual default; 0.1 in a list likewise."""
    problem, plan = double_integrator(), np.full((8, 1), 0.1)

    def asked() -> tuple[np.ndarray, torch.Tensor]:
        rows = _sweeps.general(problem, np.array([0.3, 0.1])).linearise(plan)[1]
        network = Ensemble.from_weights([[[[0.1, 0.2], [0.3, 0.4]]]], [[[0.5, 0.6]]], nx=1, nu=1).network  # type: ignore[arg-type]
        return rows, network.weights[0].flatten()

    rows, weights = asked()
    assert weights.tolist() == [0.1, 0.2, 0.3, 0.4]
    for dtype in FEW:
        default(dtype)
        again = asked()
        assert np.array_equal(again[0], rows) and torch.equal(again[1], weights)
