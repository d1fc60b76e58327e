"""What a bound hands out, `interval` of a model with several outputs, against the ends that the coverage checks judge.

Thousands of trials are judged by formulas that are applied here, to one output. What reaches a user goes another way: through a
model, its rounding, the split of δ over outputs and the ends of a program. It must be no narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceBound
from gpsafe.models import GP
from gpsafe.verdict import worst_of

from ._regression import Run, Setting, simulate

OUTPUTS = 2  # both observe the same y, each with δ/2
COUNTS = (1, 20, 60)
ROUNDING = 1e-9  # of a half-width
LESS = [1.0]  # of what is handed out, for a graded control

Ends = Callable[[Run, ConfidenceBound, int, float], tuple[Tensor, Tensor]]
"""(run, bound, n, δ of one output) → lower and upper end for the first trial, (m,)."""


def shortfall(bound: ConfidenceBound, setting: Setting, ends: Ends, source: torch.Generator) -> float:
    """Largest share of a half-width by which what is handed out is narrower than `ends`, or the two differ in the middle."""
    run, grid = simulate(setting, 1, "random", source), setting.candidates()
    z = torch.cat([grid, torch.zeros_like(grid)], dim=-1)  # two states, of which one is always 0
    empty = GP.create(setting.kernel(), setting.regularizer, nx=2, nu=0, noise_std=setting.noise_std)
    found = []
    for count in COUNTS:
        y = run.y[0, :count, None].expand(-1, OUTPUTS)
        lower, upper = bound.interval(empty.condition_on(z[run.picks[0, :count]], y), z)
        middle, half = 0.5 * (lower + upper), 0.5 * LESS[0] * (upper - lower)
        low, high = (end.unsqueeze(-1) for end in ends(run, bound, count, bound.delta / OUTPUTS))
        beyond = torch.maximum(middle - half - low, high - (middle + half))
        found.append(float((beyond / (0.5 * (high - low)).clamp_min(1e-6)).max()))
    return worst_of(found)


@contextmanager
def narrower(factor: float) -> Iterator[None]:
    """Intervals handed out at a share of their width."""
    before, LESS[0] = LESS[0], factor
    try:
        yield
    finally:
        LESS[0] = before
