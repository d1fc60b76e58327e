"""Does the band μ ± κσ hold: at a point, at all points at once, and how far from the data?

A point of view for each question:

- **pointwise**: the share of points inside. What calibration usually means; says nothing about the worst point.
- **simultaneous**: the share of functions, or trajectories, that lie inside *everywhere*: at all z, all outputs, all steps.
  What a theorem about F_n needs. `needed_scale` is the smallest κ for which it would be so, sup |y − μ|/σ.
- **conditional on distance**: the same by shells around the data, since models go wrong where they have seen nothing.

A rate comes with its number of trials and the exact interval of Clopper & Pearson (1934), which is right if the trials are
independent: rows of one trajectory, or outputs of one row, are not. Whoever counts whole trajectories has no such problem.

Whatever is NaN is outside, whatever is compared with σ = 0 is inside only where it agrees exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.calibration.resampling import Estimated, bootstrap, members, numbered
from gpsafe.models import Normalizer, Prediction
from gpsafe.verdict import clopper_pearson

RESAMPLES = 200  # of the interval of a share


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` of `n` trials."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.hits / self.n if self.n else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Clopper–Pearson; [0, 1] of nothing."""
        return clopper_pearson(self.hits, self.n, confidence) if self.n else (0.0, 1.0)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}] (n = {self.n})"

    @staticmethod
    def of(inside: Tensor) -> Rate:
        """Of Booleans, every entry a trial."""
        return Rate(int(inside.sum()), inside.numel())


def not_certain(share: Estimated) -> Estimated:
    """A share of which every resample is the same (all, or none): the interval of Clopper and Pearson for as many units."""
    if float(share.low) < float(share.high):
        return share
    low, high = Rate(round(float(share.value) * share.units), share.units).interval(share.confidence)
    ends = torch.tensor([min(low, float(share.low)), max(high, float(share.high))], dtype=torch.float64)
    return Estimated(share.value, ends[0], ends[1], share.units, share.confidence)


def share_inside(inside: Tensor, groups: Any = None, *, generator: torch.Generator | int = 0) -> Estimated:
    """Share of all entries of `inside` (n, *b), Boolean, with its 95 % bootstrap interval over rows, or groups of rows."""
    rows = inside.double().flatten(1).sum(1) if inside.ndim > 1 else inside.double()
    unit = numbered("share_inside", groups, len(rows)).unique(return_inverse=True)[1]
    hits, size = torch.bincount(unit, rows), torch.bincount(unit).double() * (inside.numel() / len(rows))
    return not_certain(bootstrap(lambda k, n: k.sum() / n.sum(), hits, size, resamples=RESAMPLES, generator=generator))


def total_std(prediction: Prediction) -> Tensor:
    """√(σ² + σ_w²), of the next state with its noise, in the shape of the mean."""
    return (prediction.std.square() + prediction.noise_std.square()).sqrt().expand(prediction.mean.shape)


def ratios(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """|y − μ|/σ, (n, *b): 0 where both are 0, infinite where it is not a number."""
    y, mean, std = (_require.floats("ratios", name, v) for name, v in (("y", y), ("mean", mean), ("std", std)))
    error = (y - mean).abs()
    found = torch.where((error == 0) & (std == 0), torch.zeros_like(error), error / std)
    return torch.where(torch.isnan(found) | (std < 0), torch.full_like(found, math.inf), found)


def pointwise(y: Tensor, mean: Tensor, std: Tensor, scale: Tensor | float) -> Rate:
    """Share of all entries of y (n, *b) within `scale` (a number, or one for each column) times σ of the mean."""
    return Rate.of(ratios(y, mean, std) <= _scale("pointwise", scale))


def _scale(where: str, scale: Tensor | float) -> Tensor:
    found = _require.floats(where, "scale", scale)
    if not bool((found >= 0).all()):
        raise _require.fail(where, "scale >= 0", found.tolist())
    return found


def needed_scale(y: Tensor, mean: Tensor, std: Tensor, groups: Any = None) -> Tensor:
    """κ* = sup |y − μ|/σ over all rows and outputs of every group, (g,); one group if none are given.

    A lower bound of the κ that holds everywhere: points in between were not looked at.
    """
    worst = ratios(y, mean, std).flatten(1).amax(1) if y.ndim > 1 else ratios(y, mean, std)
    if groups is None:
        return worst.amax(0, keepdim=True)
    return torch.stack([worst[rows].amax() for rows in members("needed_scale", groups, len(worst))])


def simultaneous(y: Tensor, mean: Tensor, std: Tensor, scale: Tensor | float, groups: Any = None) -> Rate:
    """Share of the groups, trajectories or functions, with every row and output within `scale` times σ."""
    inside = ratios(y, mean, std) <= _scale("simultaneous", scale)
    held = inside.flatten(1).all(1) if inside.ndim > 1 else inside
    if groups is None:
        return Rate(int(held.all()), 1) if len(held) else Rate(0, 0)
    places = members("simultaneous", groups, len(held))
    return Rate(sum(bool(held[rows].all()) for rows in places), len(places))


# --------------------------------------------------------------------------------------------------- distance
def distance_to_data(z: Tensor, seen: Tensor, *, chunk: int = 512) -> Tensor:
    """Distance of z (n, d) to the nearest row of seen (m, d), (n,), each axis in units of the rows' standard deviation."""
    where = "distance_to_data"
    z, seen = _require.finite(where, "z", z), _require.finite(where, "seen", seen)
    scale = Normalizer.of(seen)
    near, rows = scale(seen), scale(_require.last_dim(where, "z", z, seen.shape[-1]))
    return torch.cat([torch.cdist(part, near).amin(1) for part in rows.split(chunk)])


@short
@dataclass(frozen=True, slots=True, eq=False)
class Shell:
    """Points whose distance to the data lies in [low, high): coverage there, κ* there, mean σ and root mean square error.

    `inside` is the share of `rate` with an interval over units, as rows of one trajectory and outputs of one row are no trials.
    """

    low: float
    high: float
    rate: Rate
    needed: float
    std: float
    rmse: float
    inside: Estimated


def shells(
    y: Tensor, mean: Tensor, std: Tensor, scale: Tensor | float, distance: Tensor, groups: Any = None, *,
    edges: Sequence[float] | int = 4,
) -> tuple[Shell, ...]:  # fmt: skip
    """Coverage by distance to the data.

    Args:
        y, mean, std: (n, *b).
        scale: κ.
        distance: (n,), for example of `distance_to_data`.
        groups: (n,), equal labels belong together, see `share_inside`; None: every row for itself.
        edges: increasing limits of the shells, or how many shells of equally many points.
    """
    where = "shells"
    distance = _require.shape(where, "distance", _require.finite(where, "distance", distance), (len(y),))
    if isinstance(edges, int):
        _require.count(where, "edges", edges)
        cuts = torch.quantile(distance, torch.linspace(0, 1, edges + 1, dtype=torch.float64)).tolist()
        limits = [*sorted({*cuts[:-1]}), math.inf]
    else:
        limits = [float(e) for e in edges]
        if any(a >= b for a, b in itertools.pairwise(limits)) or len(limits) < 2:
            raise _require.fail(where, "at least two increasing edges", limits)
    inside, found = ratios(y, mean, std), []
    held = inside <= _scale(where, scale)
    unit = numbered(where, groups, len(held))
    for low, high in itertools.pairwise(limits):
        rows = (distance >= low) & (distance < high)
        if bool(rows.any()):
            error = (y - mean)[rows].square().mean().sqrt()
            worst = float(inside[rows].max())
            spread, share = float(std.expand(y.shape)[rows].mean()), share_inside(held[rows], unit[rows])
            found.append(Shell(low, high, Rate.of(held[rows]), worst, spread, float(error), share))
    return tuple(found)


# ------------------------------------------------------------------------------------- where the plant is known
@short
@dataclass(frozen=True, slots=True, eq=False)
class Separate:
    """Epistemic and aleatoric part apart, which only a known plant allows.

    Attributes:
        epistemic: share of points with |f* − μ| ≤ κσ, σ without noise.
        needed: sup |f* − μ|/σ.
        noise_ratio: predicted noise_std over the true one, mean over points, (nx,); 1 is right.
    """

    epistemic: Rate
    needed: float
    noise_ratio: Tensor


def separate(truth: Tensor, prediction: Prediction, scale: float, noise_std: Tensor) -> Separate:
    """Error bars of f* without noise, and noise by itself.

    Args:
        truth: f*(x, u) (n, nx).
        prediction: there.
        scale: κ.
        noise_std: true one, (nx,), > 0 where the ratio is to mean something.
    """
    predicted = prediction.noise_std.expand(truth.shape).mean(0)
    return Separate(
        pointwise(truth, prediction.mean, prediction.std, scale),
        float(needed_scale(truth, prediction.mean, prediction.std)),
        predicted / _require.floats("separate", "noise_std", noise_std),
    )
