"""Membership of a policy in S_n for other programs: a robust program on the line whose every step they can check."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption
from gpsafe.confidence import ConfidenceSet
from gpsafe.cost import RobustDP
from gpsafe.cost.grid import Grid, RangeMax
from gpsafe.cost.robust_dp import stages
from gpsafe.policies import AffinePolicies
from gpsafe.saved._certificate import believed_of, believed_of_data, number, numbers, observed, process, proven, written
from gpsafe.systems import AffineKnown
from gpsafe.systems.base import HingeCost, IndicatorCost

UNIT = 2**40  # values are integers in units of ceiling/UNIT
MARGIN = 1e-9  # of the ceiling, added to the values per stage: more than the rounding of an average


def export_membership(program: RobustDP, confidence: ConfidenceSet, policies: AffinePolicies, index: int) -> str:
    """That J_c(π, f) ≤ d for the plant's f and all f ∈ F_n, as JSON; boxes of next means and values per cell are the evidence.

    The boxes are the slack form of theory §3.3: the closed loop of the known part, the intersection of all posteriors at a
    cell's centre, and B d_k over the cell. Those of posterior gradients (theory §5.11), which the library intersects with
    them, the checker does not know: the number in the claim is its own, and usually a little above `program.upper`.

    Args:
        program: nx = 1, with noise, an `IndicatorCost` or a `HingeCost`.
        confidence: F_n with the mixture bound, or one that is never below it, and an `AffineKnown` known part.
        policies: clipped affine ones.
        index: of π among them.

    Raises:
        ValueError: for what the format cannot say, an F_n that came out empty, and a policy that these boxes do not certify.
    """
    where, task, grid = "export_membership", program.task, program.grid
    model = confidence.model
    program.check(confidence)
    known = model.prior
    if task.nx != 1 or not isinstance(known, AffineKnown) or not bool((task.noise_std > 0).all()):
        got = f"nx = {task.nx}, {type(known).__name__}, noise {task.noise_std.tolist()}"
        raise _require.fail(where, "one state, an AffineKnown known part, and noise", got)
    cost = task.cost
    if not isinstance(cost, (IndicatorCost, HingeCost)):
        raise _require.fail(where, "an IndicatorCost or a HingeCost", type(cost).__name__)
    if type(policies) is not AffinePolicies:
        raise _require.fail(where, "AffinePolicies", type(policies).__name__)
    if _require.index(where, "index", index) >= policies.num:
        raise _require.fail(where, f"a policy in 0..{policies.num - 1}", index)
    proven(where, confidence, confidence.generations)
    chosen, n = policies.select(torch.tensor([index])), model.num_data
    limits = policies.input_box
    problem = {
        "A": numbers(known.A),
        "B": numbers(known.B),
        "c": numbers(known.c),
        "offset": numbers(chosen.offset[0]),
        "gain": numbers(chosen.gain[0]),
        "limits": numbers(torch.stack([limits.lower, limits.upper], dim=-1)),
        "x0": number(task.initial_state),
        "horizon": task.horizon,
        "cost": _told_cost(cost),
        "budget": repr(float(task.budget)),
        "noise_std": number(task.noise_std),
        "generations": [one.num_data for one in confidence.generations],
        **process(where, confidence, 0, n),
        **observed(confidence, n),
    }
    coarse = replace(program.enclosure(confidence, chosen), policies=None).refine(confidence)
    low, high = coarse.boxes()
    room = 1e-7 * grid.size
    low, high = low - room, high + room
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise _require.fail(where, "an F_n that is not empty", "an empty one")
    cells, T = grid.num, task.horizon
    ends = _ends(grid)
    stage = torch.tensor([[_rate(cost, *both) for both in ends]], dtype=torch.float64)
    values, V = [], torch.zeros(1, cells, dtype=torch.float64)
    boxes = (low[:, :cells], high[:, :cells])
    for left, found in enumerate(stages(program.average, *boxes, stage, horizon=T - 1, outside_rate=1.0), 1):
        V = (
            torch.tensor([[math.ceil((v + left * MARGIN) * UNIT) for v in found[0].tolist()]], dtype=torch.float64)
            / UNIT
        )
        values.append([int(v * UNIT) for v in V[0].tolist()])
    table = program.average(V, float(T - 1))
    first = RangeMax.build(grid, low[:, cells:], high[:, cells:])(table, float(T - 1))
    start = Fraction(float(task.initial_state))
    upper = cost.ceiling * (_rate(cost, start, start) + float(first) + T * MARGIN)
    if not upper <= task.budget:
        raise _require.fail(where, f"a policy certified by these boxes: at most the budget {task.budget:g}", upper)
    both = torch.cat([low, high], dim=-1)[0]
    evidence = {
        "low": number(grid.box.lower),
        "high": number(grid.box.upper),
        "cells": cells,
        "split": grid.split[0],
        "boxes": numbers(both[:-1]),
        "values": values,
        "start": numbers(both[-1]),
        "upper": repr(upper),
    }
    believed = [*believed_of(problem), *believed_of_data(problem), Assumption.TASK(), Assumption.GAUSSIAN_NOISE()]
    believed += [Assumption.EXACT_STATE(), Assumption.EXACT_INPUT()]
    return written("membership", problem, evidence, believed)


def _ends(grid: Grid) -> list[tuple[Fraction, Fraction]]:
    """The ends of all cells, exactly."""
    low, high = Fraction(float(grid.box.lower)), Fraction(float(grid.box.upper))
    edges = [low + i * (high - low) / grid.num for i in range(grid.num + 1)]
    return list(itertools.pairwise(edges))


def _rate(cost: IndicatorCost | HingeCost, low: Fraction, high: Fraction) -> float:
    """sup c/C over [low, high], rounded up."""
    normals, offsets = _rows(cost)
    excess = max(max(n * low, n * high) - o for n, o in zip(normals, offsets, strict=True))
    if isinstance(cost, IndicatorCost):
        return float(excess > 0)
    return min(max(math.nextafter(float(excess / Fraction(cost.ceiling)), math.inf), 0.0), 1.0)


def _rows(cost: IndicatorCost | HingeCost) -> tuple[list[Fraction], list[Fraction]]:
    """Normals and offsets of the half-lines, exactly."""
    normals, offsets = (cost.normals, cost.offsets) if isinstance(cost, IndicatorCost) else (cost.normal, cost.offset)
    assert isinstance(offsets, Tensor)
    return [Fraction(v) for v in normals[:, 0].tolist()], [Fraction(v) for v in offsets.tolist()]


def _told_cost(cost: IndicatorCost | HingeCost) -> dict[str, Any]:
    normals, offsets = _rows(cost)
    return {
        "family": "indicator" if isinstance(cost, IndicatorCost) else "hinge",
        "normals": [[repr(float(v))] for v in normals],
        "offsets": [repr(float(v)) for v in offsets],
        "ceiling": repr(float(cost.ceiling)),
    }
