"""What rows say of the noise without believing in any function: repeated inputs, copied rows, lattices, episodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.referee.rows import Rows, repeats
from gpsafe.referee.trials import chernoff

FEW = 3  # pairs from which a level is read


@dataclass(frozen=True, slots=True)
class Repeats:
    """Rows with exactly the same (x, u).

    Attributes:
        pairs: disjoint ones that judge.
        copies: disjoint pairs of all rows, those that choose too, with the same outcome in all states.
        low: lower confidence limit of R of each output, from (y − y′)/√2, which is R-sub-Gaussian whatever f is; nan without
        pairs. size: r.m.s. of these differences.
    """

    pairs: int
    copies: int
    low: tuple[float, ...]
    size: tuple[float, ...]


def repeated(rows: Rows, y: Tensor, delta: float) -> Repeats:
    """Of the judging rows; `delta` of each output's limit, whose form is that of the level test (`gpsafe.referee.trials`).

    For inputs that are repeated whatever was measured there: a row that was measured again *because* it looked odd has more
    than its share of noise, and the limit then exceeds a true R far more often than `delta`.
    """
    pairs = repeats(rows.data.z[rows.first :])
    gap = y[rows.first :][pairs[:, 0]] - y[rows.first :][pairs[:, 1]] if len(pairs) else y[:0]
    copies = len(repeats(torch.cat([rows.data.z, rows.data.x_next], -1)))
    if len(pairs) < FEW:
        return Repeats(len(pairs), copies, (math.nan,) * y.shape[1], (math.nan,) * y.shape[1])
    size = (gap.square().sum(0) / 2 / len(pairs)).sqrt()
    low = size / math.sqrt(1 + chernoff(len(pairs), delta))
    return Repeats(len(pairs), copies, tuple(low.tolist()), tuple(size.tolist()))


def lattice(values: Tensor) -> float:
    """The step q if the values lie on a lattice coarse enough to matter (at most half as many values as rows), else 0."""
    span = float(values.max() - values.min())
    known = (
        (values / (1e-9 * span)).round().unique() * (1e-9 * span) if span > 0 else values[:1]
    )  # equal up to rounding
    if len(known) < 3 or len(known) > len(values) / 2:
        return 0.0
    gaps = known.diff()
    step = float(gaps.min())
    off = (gaps / step - (gaps / step).round()).abs()
    return step if float((off < 0.05).double().mean()) > 0.95 else 0.0


def lag_one(rows: Rows, errors: Tensor) -> tuple[float, int]:
    """Correlation of forecast errors (m,) of successive judging rows, and how many pairs there are."""
    places = torch.nonzero(rows.links[rows.first :] >= rows.first).flatten()
    if len(places) < 8:
        return math.nan, len(places)
    before = rows.links[rows.first :][places] - rows.first
    a, b = errors[before], errors[places]
    size = float((a.square().sum() * b.square().sum()).sqrt())
    return (float((a * b).sum()) / size if size > 0 else math.nan), len(places)
