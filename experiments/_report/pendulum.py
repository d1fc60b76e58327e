"""What the pendulum experiments share: coverage of the plane, the published numbers, statistics over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpsafe.systems.pendulum import wrap_angle

CELLS = (20, 16)  # over θ ∈ [−π, π) and ω ∈ [−8, 8]: cells of 18° × 1 rad/s; 240 of the 320 lie in |ω| ≤ 6
PUBLISHED_MAX = (1.63, 0.0, 5.59, 6.10, 5.98, 6.0004, 5.96, 5.79, 2.85, 5.68, 5.88, 5.52, 5.96, 5.98, 5.58)
PUBLISHED_SAFE_CELLS, PUBLISHED_FREE_CELLS = 178, 272
PUBLISHED_SAFE_VIOLATIONS, PUBLISHED_FREE_VIOLATIONS = (2, 750), (122, 850)


def cells(states: Tensor) -> Tensor:
    """Number of the cell of each state (θ, ω), (*b, 2) → (*b,); speeds beyond ±8 count as the outermost cells."""
    theta = ((wrap_angle(states[..., 0]) + math.pi) / (2 * math.pi) * CELLS[0]).long().clamp(0, CELLS[0] - 1)
    omega = ((states[..., 1] + 8.0) / 16.0 * CELLS[1]).floor().long().clamp(0, CELLS[1] - 1)
    return theta * CELLS[1] + omega


def coverage(episodes: Sequence[Tensor]) -> list[int]:
    """Cells visited up to and including each episode, from its states (T + 1, 2)."""
    seen: set[int] = set()
    counts = []
    for states in episodes:
        seen |= set(cells(states).tolist())
        counts.append(len(seen))
    return counts


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own for a tuple of small numbers (seed, episode, …)."""
    state = 0
    for number in numbers:
        state = (state * 1_000_003 + number + 1) % (2**61 - 1)
    return torch.Generator().manual_seed(state)
