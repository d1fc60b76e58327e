"""The process of a certified map, read back by others: naive value iteration, and Storm where it is installed."""

import re

import numpy as np
import pytest
import torch
from export_cases import draw
from strategies import make_kernel

import gpsafe as gs
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.linalg import vector
from gpsafe.policies import AffinePolicies
from gpsafe.safety import CertifiedMap, certified_map
from gpsafe.saved import export_map
from gpsafe.sets import Box
from gpsafe.systems import AffineKnown
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.task import Task
from proofs_checks._defects import forged


def found(nx: int = 1, *, goal: bool = False, horizon: int = 4, seed: int = 0, cells: int = 12) -> CertifiedMap:
    """Two policies on a plant near x⁺ = 0.9x + 0.2u, |x_1| ≤ 0.8."""
    known = AffineKnown(0.9 * torch.eye(nx), 0.2 * torch.ones(nx, 1), torch.zeros(nx))
    model = gs.GP.create(make_kernel("rbf", nx + 1), 0.01, nx=nx, nu=1, noise_std=0.15, prior=known)
    model = model.condition_on(0.5 * draw(8, nx + 1, seed=seed), 0.05 * draw(8, nx, seed=seed + 1))
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.02, subgaussian=0.15, delta=0.1)).update(model)
    normals = torch.eye(nx)[:1].repeat(2, 1) * torch.tensor([[1.0], [-1.0]])
    task = Task(
        torch.zeros(nx), horizon, IndicatorCost(normals, [0.8, 0.8]), 0.1, 0.15 * torch.ones(nx, dtype=torch.float64)
    )
    policies = AffinePolicies(0.1 * draw(2, 1, seed=seed), -0.5 * torch.ones(2, 1, nx), Box(vector(-1.0), vector(1.0)))
    sides = torch.ones(nx, dtype=torch.float64)
    grid = Grid(Box(-1.7 * sides, 1.5 * sides), (cells,) * nx, (2,) * nx)
    return certified_map(confidence, policies, task, grid, goal=Box(-0.2 * sides, 0.5 * sides) if goal else None)


def parsed(text: str):
    """Labels per state, and choices as lists of (state, probability), by the words of the DRN format alone."""
    body = text.split("@model\n")[1]
    labels, choices = [], []
    for line in body.splitlines():
        words = line.split()
        if words[0] == "state":
            assert int(words[1]) == len(labels)
            labels.append(set(words[2:]))
            choices.append([])
        elif words[0] == "action":
            choices[-1].append([])
        else:
            target, colon, share = words
            assert colon == ":"
            choices[-1][-1].append((int(target), float(share)))
    head = dict(re.findall(r"@(nr_states|nr_choices)\n(\d+)", text))
    assert int(head["nr_states"]) == len(labels) and int(head["nr_choices"]) == sum(map(len, choices))
    assert all(abs(sum(p for _, p in choice) - 1) < 1e-12 for state in choices for choice in state)
    return labels, choices


def until(labels, choices, steps: int, best, *, stay: set, reach: set) -> np.ndarray:
    """best (max or min) over schedulers of P(no state of `stay` until one of `reach`, within the steps)."""
    there = np.array([bool(found & reach) for found in labels])
    lost = np.array([bool(found & stay) for found in labels]) & ~there
    value = there.astype(float)
    for _ in range(steps):
        after = [best(sum(p * value[i] for i, p in choice) for choice in state) for state in choices]
        value = np.where(there, 1.0, np.where(lost, 0.0, after))
    return value


CASES = [(1, False, 4), (1, True, 4), (1, False, 1), (2, True, 2)]
SIZES = {1: 12, 2: 5, 4: 3}  # cells along an axis


@pytest.mark.parametrize(("nx", "goal", "horizon"), CASES)
def test_a_naive_reader_of_the_process_finds_the_bounds_of_the_map(nx, goal, horizon):
    made = found(nx, goal=goal, horizon=horizon, cells=12 if nx == 1 else 5)
    for policy in range(2 if nx == 1 else 1):
        text = export_map(made, policy)
        (steps,) = {int(k) for k in re.findall(r"<=(\d+)", text)}
        labels, choices = parsed(text)
        asked = set(re.findall(r'"(\w+)"', "".join(text.splitlines()[:2])))
        assert asked <= set().union(*labels)  # Storm refuses a label that no state carries
        if goal:
            lower = until(labels, choices, steps, min, stay={"unsafe", "out"}, reach={"surely_goal"})
            upper = until(labels, choices, steps, max, stay={"surely_unsafe"}, reach={"goal", "out"})
        else:
            lower = 1 - until(labels, choices, steps, max, stay=set(), reach={"unsafe", "out"})
            upper = 1 - until(labels, choices, steps, min, stay=set(), reach={"surely_unsafe"})
        count = made.partition.num
        for ends, theirs in ((made.lower, lower), (made.upper, upper)):
            assert float((ends[policy] - torch.from_numpy(theirs[:count])).abs().max()) < 3e-9
        between = torch.stack([made.lower[policy], made.upper[policy]])
        assert horizon == 1 or bool(((between > 0.05) & (between < 0.95)).any())  # not all 0 or 1
        assert sum("init" in one for one in labels) == 1


def test_the_process_begins_where_the_task_does():
    """Beyond the grid nothing is claimed (it began in cell 0, as if x_0 were there); on an edge the worst cell counts."""
    made, cell = found(), 3.2 / 12

    def begins(x: float) -> set[int]:
        labels, _ = parsed(export_map(forged(made, task=made.task.with_(initial_state=vector(x)))))
        starts = {i for i, one in enumerate(labels) if "init" in one}
        if any("out" in labels[i] for i in starts):
            return {-1}
        lower, upper = made.at(vector(x))
        assert float(made.lower[0, list(starts)].min()) == float(lower[0])
        assert float(made.upper[0, list(starts)].max()) == float(upper[0])
        return starts

    assert begins(2.0) == begins(-1.8) == {-1} and begins(-1.7 + 0.5 * cell) == {0}
    for k in range(1, 12):
        assert begins(-1.7 + k * cell) == {k - 1, k}


def test_control_a_probability_that_is_moved_changes_the_bounds():
    made = found()
    labels, choices = parsed(export_map(made))
    plain = until(labels, choices, 9, max, stay=set(), reach={"unsafe", "out"})
    (out,) = [i for i, one in enumerate(labels) if "out" in one]
    for state in choices:
        if len(state[0]) > 2:
            state[0] = [(i, 0.99 * share) for i, share in state[0]] + [(out, 0.01)]
    assert np.abs(plain - until(labels, choices, 9, max, stay=set(), reach={"unsafe", "out"})).max() > 1e-3


def test_what_has_no_process_is_refused():
    with pytest.raises(ValueError, match=r"a policy in 0\.\.1"):
        export_map(found(), 2)
    with pytest.raises(ValueError, match="cells of a grid, got one refined on 2 levels"):
        export_map(found().refined(tolerance=0.01, cells=24))


@pytest.mark.slow
@pytest.mark.parametrize(("nx", "goal", "horizon"), CASES)
def test_storm_finds_the_bounds_of_the_map(nx, goal, horizon, tmp_path):
    stormpy = pytest.importorskip("stormpy", reason="an oracle, not a dependency")
    made = found(nx, goal=goal, horizon=horizon, cells=12 if nx == 1 else 5)
    path = tmp_path / "map.drn"
    path.write_text(export_map(made))
    model = stormpy.build_model_from_drn(str(path))
    for line, ends in zip(path.read_text().splitlines()[:2], (made.lower, made.upper), strict=True):
        formula = line.split(" = ", 1)[1].removeprefix("1 - ")
        (asked,) = stormpy.parse_properties(formula)
        values = stormpy.model_checking(model, asked)
        theirs = np.array([values.get_value(i) for i in range(made.partition.num)])
        theirs = 1 - theirs if "= 1 - " in line else theirs
        assert float((ends[0] - torch.from_numpy(theirs)).abs().max()) < 1e-6
