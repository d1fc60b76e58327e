"""Searches without gradients, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.planning.search.problem import Problem, Proposals, check_starts


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Uniform points; those with the best objective among the (estimated) feasible ones, one per start.

    Args:
        samples: points drawn per start.
    """

    samples: int = 26

    def __call__(self, problem: Problem, starts: Tensor, generator: torch.Generator) -> Proposals:
        """See :class:`Search`. If fewer points than starts are feasible, the least infeasible fill up."""
        starts = check_starts("RandomSearch", starts)
        shape = (self.samples * len(starts), starts.shape[-1])
        points = torch.rand(*shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            value, constraint = problem(points)
        rank = torch.where(constraint <= 0, value - value.min() + 1.0, -constraint)
        chosen = torch.nan_to_num(rank, nan=-torch.inf).argsort(descending=True)[: len(starts)]
        return Proposals(points[chosen], value[chosen], constraint[chosen], len(points))


@dataclass(frozen=True, slots=True, eq=False)
class FiniteGrid:
    """The same points at every call: what a finite policy class does. `points` (m, d) in the unit cube."""

    points: Tensor

    def __call__(self, problem: Problem, starts: Tensor, generator: torch.Generator) -> Proposals:
        """See :class:`Search`."""
        points = check_starts("FiniteGrid", self.points)
        with torch.no_grad():
            value, constraint = problem(points)
        return Proposals(points, value, constraint, len(points))
