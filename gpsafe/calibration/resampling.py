"""Bootstrap intervals: over rows, or over whole trajectories where rows of one trajectory belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short

BLOCKS = 100  # of the jackknife


@short
@dataclass(frozen=True, slots=True, eq=False)
class Estimated:
    """A statistic of some rows with its interval, each of the statistic's own shape.

    Attributes:
        value: on the rows as they are.
        low, high: ends of the interval.
        units: how many things were drawn: rows, or groups.
        confidence: of the interval, nominally; the bootstrap is right for many units only.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    units: int
    confidence: float


def bootstrap(
    statistic: Callable[..., Tensor],
    *rows: Tensor,
    groups: Any = None,
    resamples: int = 999,
    confidence: float = 0.95,
    method: Literal["percentile", "bca"] = "percentile",
    generator: torch.Generator | int = 0,
) -> Estimated:
    """Interval of statistic(*rows) when the units, rows or groups of rows, are independent draws.

    n units are drawn with replacement, `resamples` times, and the statistic is computed anew. "percentile": quantiles of what
    came out. "bca": bias-corrected and accelerated quantiles (Efron 1987), with the acceleration from a jackknife that leaves
    out one of at most 100 blocks of units at a time. Rows of a trajectory are alike: without `groups` their interval is too
    narrow (the cluster bootstrap, Davison & Hinkley 1997, ch. 3).

    A statistic that cannot be negative, such as a calibration error, is biased upwards by resampling when its true value is
    near zero: then even the lower end of a percentile interval lies above it. That says "not told apart from zero".

    Args:
        statistic: of tensors with n rows each; a number or (*s,).
        rows: (n, …) each.
        groups: (n,), equal labels belong together; None: every row for itself.
        resamples, confidence, method: see above.
        generator: or a seed.
    """
    where = "bootstrap"
    _require.count(where, "resamples", resamples, minimum=2)
    _require.probability(where, "confidence", confidence)
    _require.one_of(where, "method", method, ("percentile", "bca"))
    if not rows or len({len(r) for r in rows}) != 1 or len(rows[0]) == 0:
        raise _require.fail(where, "arrays with equally many rows, at least one", [tuple(r.shape) for r in rows])
    source = _require.generator(where, generator)
    places = members(where, groups, len(rows[0]))
    units = len(places)

    def at(chosen: list[Tensor]) -> Tensor:
        index = torch.cat(chosen)
        return torch.as_tensor(statistic(*(r[index] for r in rows)), dtype=torch.float64)

    value = torch.as_tensor(statistic(*rows), dtype=torch.float64)
    found = []
    for _ in range(resamples):
        drawn = torch.randint(units, (units,), generator=source)
        found.append(at([places[i] for i in drawn.tolist()]) if groups is not None else at([drawn]))
    ordered = torch.stack(found).sort(0).values
    tail = (1 - confidence) / 2
    low, high = torch.full_like(value, tail), torch.full_like(value, 1 - tail)
    if method == "bca" and units > 1:
        blocks = [list(places[i::BLOCKS]) for i in range(min(BLOCKS, units))]
        left = [at([row for j, b in enumerate(blocks) if j != i for row in b]) for i in range(len(blocks))]
        low, high = (_accelerated(end, value, ordered, torch.stack(left)) for end in (low, high))
    return Estimated(value, _quantile(ordered, low), _quantile(ordered, high), units, confidence)


def members(where: str, groups: Any, count: int) -> tuple[Tensor, ...]:
    """Positions of the rows of every group, in order of first appearance; every row for itself if there are none."""
    if groups is None:
        return tuple(torch.arange(count).split(1))
    found: dict[int, list[int]] = {}
    for i, label in enumerate(numbered(where, groups, count).tolist()):
        found.setdefault(label, []).append(i)
    return tuple(torch.tensor(rows) for rows in found.values())


def numbered(where: str, groups: Any, count: int) -> Tensor:
    """The group of every row, numbered in order of first appearance, (count,)."""
    if groups is None:
        return torch.arange(count)
    labels = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(labels) != count:
        raise _require.fail(where, f"{count} labels in groups", len(labels))
    found: dict[Any, int] = {}
    return torch.tensor([found.setdefault(label, len(found)) for label in labels], dtype=torch.int64)


def _accelerated(level: Tensor, value: Tensor, ordered: Tensor, left: Tensor) -> Tensor:
    """Φ(z₀ + (z₀ + z)/(1 − a(z₀ + z))), z = Φ⁻¹(level)."""
    below = (ordered < value).double().mean(0) + 0.5 * (ordered == value).double().mean(0)
    edge = 0.5 / len(ordered)
    bias = torch.special.ndtri(below.clamp(edge, 1 - edge))
    moved = left.mean(0) - left
    spread = moved.square().sum(0).pow(1.5)
    acceleration = torch.where(spread > 0, moved.pow(3).sum(0) / (6 * spread).clamp_min(1e-300), 0.0)
    shifted = bias + torch.special.ndtri(level)
    return torch.special.ndtr(bias + shifted / (1 - acceleration * shifted))


def _quantile(ordered: Tensor, level: Tensor) -> Tensor:
    """Quantiles of the columns of (m, *s), linear between order statistics, each at its own level (*s,)."""
    place = level.clamp(0, 1) * (len(ordered) - 1)
    below = place.floor().clamp_max(len(ordered) - 1).long()
    above = (below + 1).clamp_max(len(ordered) - 1)
    a, b = (ordered.gather(0, i.unsqueeze(0)).squeeze(0) for i in (below, above))
    share = place - below
    return torch.where(share > 0, a + share * (b - a), a)  # infinite entries stay what they are
