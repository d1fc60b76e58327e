"""The two programs of a certified map, policy by policy, from their definition."""

import sys
from dataclasses import replace
from inspect import signature

import pytest
import torch

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid, RangeMax
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import certified_map
from gpsafe.safety.certified_map import Cells
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task


@pytest.mark.parametrize("goal", [None, Box([-0.55], [-0.15])])
@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_the_bounds_are_the_two_recursions(goal, horizon, monkeypatch):
    one = torch.ones(1, 1).double()
    known = AffineKnown(0.8 * one, one, vector(0.0))
    model = GP.create(kernels.rbf([1.0, 1.0], 0.04), 1e-2, nx=1, nu=1, noise_std=vector(0.2), prior=known)
    g = torch.Generator().manual_seed(1)
    x, u = (2 * torch.rand(8, 1, dtype=torch.float64, generator=g) - 1 for _ in range(2))
    model = model.condition(Transitions(x, u, known(x, u) + 0.05 * torch.sin(3 * x)))
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.5, subgaussian=0.2, delta=0.1)).update(model)
    gains = -0.3 * torch.ones(3, 1, 1, dtype=torch.float64)
    policies = AffinePolicies(vector(0.7, 0.1, 0.9).reshape(3, 1), gains, Box([-2.0], [2.0]))
    task = Task(vector(0.0), horizon, IndicatorCost(one, vector(0.7)), 0.1, vector(0.2))
    grid = Grid(Box([-2.0], [1.6]), (36,))
    found = certified_map(confidence, policies, task, grid, goal=goal)
    cells = Cells.of(confidence, policies, task, grid, goal)
    average = cells.program.average
    assert bool(cells.goal.any()) == bool(cells.surely_goal.any()) == (goal is not None)
    for p in range(3):
        lookup = RangeMax.build(grid, cells.low[p : p + 1], cells.high[p : p + 1])
        wanted = []
        for worst in (True, False):  # of missing what is asked for, and of getting it
            value = None
            for _ in range(horizon):
                if value is not None:
                    value = lookup(average(value.reshape(1, 36), 1.0), 1.0).clamp_max(1.0)[0]
                now = []
                for c in range(36):
                    there = float(worst == (goal is not None)) if value is None else float(value[c])
                    meets, inside = bool(cells.unsafe[c]), bool(cells.surely_unsafe[c])
                    if worst:
                        reached = goal is not None and bool(cells.surely_goal[c])
                        now.append(1.0 if meets else 0.0 if reached else there)
                    else:
                        reached = goal is not None and bool(cells.goal[c])
                        now.append(1.0 if reached else 0.0 if inside else there)
                value = torch.tensor(now, dtype=torch.float64)
            wanted.append(value)
        lower = (1 - wanted[0] - 1e-9).clamp(0.0, 1.0)
        upper = torch.maximum((wanted[1] + 1e-9).clamp(0.0, 1.0), lower)
        torch.testing.assert_close(found.lower[p], lower, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found.upper[p], upper, rtol=1e-12, atol=1e-15)
    assert torch.equal(found.gap, found.upper - found.lower)
    for chunk in (2, 7):  # policy-cells at a time: less than one cell for three policies, and two
        monkeypatch.setattr(sys.modules["gpsafe.safety.certified_map"], "CHUNK", chunk)
        again = certified_map(confidence, policies, task, grid, goal=goal)
        torch.testing.assert_close(again.lower, found.lower, rtol=0, atol=1e-12)
        torch.testing.assert_close(again.upper, found.upper, rtol=0, atol=1e-12)
    small = replace(cells, program=replace(cells.program, chunk=10))  # less than one policy at a time
    monkeypatch.setattr(Cells, "of", staticmethod(lambda *arguments: small))
    slowly = certified_map(confidence, policies, task, grid, goal=goal)
    assert torch.equal(slowly.lower, found.lower) and torch.equal(slowly.upper, found.upper)
    level = float(found.upper[0, 20])
    assert torch.equal(found.certainly_not(level), found.upper < level)
    assert torch.equal(found.certainly(float(found.lower[0, 20])), found.lower >= float(found.lower[0, 20]))
    assert horizon == 1 or bool(((found.upper > 0.05) & (found.upper < 0.95)).any())
    assert signature(found.refined).parameters["cells"].default == 512
