"""What every search over parameters takes and gives.

A search maximises an objective under constraint(θ) ≤ 0 on the unit cube, from several starts at once. Both are *estimates*
(see `gpsafe.planning.search.rollouts`): nothing a search says is a certificate. What it returns are proposals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpsafe import _require

Problem = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Unit-cube points (P, d) → objective (P,), constraint (P,); differentiable, row by row."""


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """The end of a search.

    Attributes:
        points: (P, d) in the unit cube.
        objective, constraint: the estimates there, (P,).
        evaluations: number of points at which the problem was evaluated, with or without gradients.
    """

    points: Tensor
    objective: Tensor
    constraint: Tensor
    evaluations: int

    @property
    def feasible(self) -> Tensor:
        """Whether the *estimated* constraint holds, (P,). No statement about safety."""
        return self.constraint <= 0


class Search(Protocol):
    """A method of search."""

    def __call__(self, problem: Problem, starts: Tensor, generator: torch.Generator) -> Proposals:
        """Proposals from starts (P, d) in the unit cube."""
        ...


def check_starts(where: str, starts: Tensor) -> Tensor:
    """Refuses starts outside the unit cube."""
    starts = _require.finite(where, "starts", starts).detach()
    if starts.ndim != 2 or not bool(((starts >= 0) & (starts <= 1)).all()):
        raise _require.fail(where, "starts (P, d) in the unit cube", f"shape {tuple(starts.shape)}")
    return starts


def value_and_gradients(problem: Problem, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Objective (P,), constraint (P,) and their gradients (P, d) ×2. A gradient that does not exist comes out as 0."""
    with torch.enable_grad():
        x = points.detach().clone().requires_grad_(True)
        objective, constraint = problem(x)
        gradients = []
        for value in (objective, constraint):
            found = (
                torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)[0]
                if value.requires_grad
                else None
            )
            gradients.append(torch.zeros_like(points) if found is None else found)
    return objective.detach(), constraint.detach(), gradients[0], gradients[1]
