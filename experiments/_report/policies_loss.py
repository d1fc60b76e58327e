"""What keeps safe policies of `pendulum_policies.py` out of S_n: one F_n, one part of the bound changed at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, ConvexProgram, Mixture
from gpsafe.cost.pruned import windowed
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.models import GP
from gpsafe.policies import PolicyClass
from gpsafe.systems.rkhs_twin import RKHSTwin

from .policies_truth import paths


def losses(
    system: RKHSTwin,
    programs: tuple[RobustDP, RobustDP],
    posterior: GP,
    bound: ConvexProgram,
    policies: PolicyClass,
    region: tuple[Tensor, Tensor],
) -> list[dict[str, object]]:
    """How many of the policies each variant certifies on the same data.

    Args:
        programs: on the coarse grid and on the finer one.
        posterior: after all episodes; its band alone, without those before it.
        bound: the convex program; the mixture bound with the same assumptions is set against it.
        policies, region: proved safe, and a box that each window includes, (P, nx) twice.
    """
    mixture = Mixture(rkhs_norm=bound.rkhs_norm, subgaussian=bound.subgaussian, delta=bound.delta)
    states = paths(system, policies, count=32, seed=0)
    low, high = torch.minimum(states.amin((1, 2)), region[0]), torch.maximum(states.amax((1, 2)), region[1])
    rows: list[dict[str, object]] = []
    for name, band, exact in (("mixture", mixture, False), ("program", bound, False), ("program", bound, True)):
        confidence = ConfidenceSet(band).update(posterior)
        for grid, whole in zip(("coarse", "finer"), programs, strict=True):
            upper = torch.full((policies.num,), torch.inf, dtype=torch.float64)
            for part, index in windowed(whole, low, high, margin=12):
                for group in index.split(max(1, part.chunk // part.grid.num)):
                    cells = part.enclosure(confidence, policies.select(group)).refine(confidence)
                    if exact:  # what holds at the centre of a cell is taken to hold all over it: no bound, a diagnosis
                        cells = replace(cells, slack=torch.zeros_like(cells.slack), inner=None)
                    upper[group] = part.upper(cells)
            certified = int((upper <= system.budget).sum())
            rows.append({"band": name, "grid": grid, "no slack": exact, "certified": certified, "of": policies.num})
    return rows
