"""A cost > 0 or NaN is a violation, and so everywhere that one is counted, shown or refused."""

import ast
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpsafe.algorithms.certification import Certification
from gpsafe.planning.mbpo.replay import transitions
from gpsafe.sets import Box
from gpsafe.systems import CallableSystem, as_episodic, is_violation
from gpsafe.systems.drawing import picture
from gpsafe.systems.scene import RED

ROOT = Path(__file__).parents[2]


class Unknown:
    """A cost that nobody can tell beyond x = 0: NaN there, 0 elsewhere; its supremum over boxes is NaN."""

    ceiling = 1.0

    def __call__(self, x):
        return torch.where(x[..., 0] > 0, math.nan, 0.0)

    def upper(self, lower, upper):
        return torch.full(lower.shape[:-1], math.nan, dtype=torch.float64)

    def lower(self, lower, upper):
        return torch.zeros(lower.shape[:-1], dtype=torch.float64)


def test_of_numbers_tensors_and_arrays():
    values, expected = [-0.0, 0.0, 1e-300, 1.0, math.inf, math.nan], [False, False, True, True, True, True]
    assert list(map(is_violation, values)) == expected
    assert is_violation(torch.tensor(values, dtype=torch.float64)).tolist() == expected
    assert is_violation(np.array(values)).tolist() == expected


def test_a_step_into_a_cost_of_nan_is_terminal():
    system = SimpleNamespace(cost=Unknown(), reward=lambda x, u: torch.zeros(len(x), dtype=torch.float64))
    rows = transitions(system, [[-1.0], [-1.0]], [[0.0], [0.0]], [[-1.0], [1.0]])
    assert rows[:, -1].tolist() == [0.0, 1.0]


def plant(cost):
    one = torch.ones(1, dtype=torch.float64)
    return CallableSystem(
        "drift", 1, 1, Box(-one, one), Box(-one, one), 0.1 * one, 0 * one, 3, cost, 0.0,
        lambda x, u: x + 0 * u, lambda x, u: 0 * x[..., 0],
    )  # fmt: skip


def test_a_box_whose_cost_is_nan_is_no_set_of_limits_and_no_start():
    with pytest.raises(ValueError, match="a cost of half-spaces"):
        Certification()._limits(plant(Unknown()))
    with pytest.raises(ValueError, match="starts without a cost"):
        as_episodic(plant(Unknown()), Box([-0.1], [0.1]), lambda x: 0 * x)


def test_a_state_whose_cost_is_nan_is_framed_in_red():
    corner = [picture(plant(Unknown()), torch.tensor([[x]], dtype=torch.float64))[0, 0].tolist() for x in (0.5, -0.5)]
    assert corner[0] == [round(255 * part) for part in RED] != corner[1]


def compared(path):
    """Places where a cost is asked whether it is `> 0`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Gt):
            right, left = node.comparators[0], ast.unparse(node.left)
            if isinstance(right, ast.Constant) and right.value == 0 and "cost" in left:
                yield f"{path.relative_to(ROOT)}: {left}"


def test_nobody_asks_a_cost_in_another_way():
    """The one exception asks whether a whole cell is surely unsafe, of which NaN is no proof."""
    found = [
        place for room in ("gpsafe", "experiments") for path in (ROOT / room).rglob("*.py") for place in compared(path)
    ]
    assert found == ["gpsafe/safety/certified_map.py: task.cost.lower(*ends)"]
