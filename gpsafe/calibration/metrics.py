"""Calibration and sharpness of Gaussian predictions y ~ N(μ, σ²), and proper scores of them.

Every function takes rows first: y, mean, std (n, *b) give one number for each of the *b columns, for example one an output.
Nothing is smoothed and NaN is refused. Let r = (μ − y)/σ and p_1 … p_k = linspace(0, 1, `num_bins`). The observed proportion at
p is

    interval form   o(p) = #{|r| ≤ Φ⁻¹(½ + p/2)}/n       the centred interval of nominal probability p holds y,
    quantile form   o(p) = #{r ≤ Φ⁻¹(p)}/n               y lies above the quantile 1 − p,

and the calibration errors are norms of o − p over those p. Definitions, grids and signs are those of the Uncertainty Toolbox
(Chung, Char, Guo, Schneider & Neiswanger 2021, arXiv 2109.10254), so that numbers can be compared; proper scores after Gneiting
& Raftery (2007). Lower is better everywhere. All errors of finitely many rows are biased upwards: a perfect model has about
0.4/√n in the mean absolute one.

**Whoever is calibrated here may still be unsafe.** These are averages over points. What a theorem needs, that the band holds at
all points at once, is in `gpsafe.calibration.coverage`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpsafe import _require

FORMS = ("interval", "quantile")


def _checked(where: str, y: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, mean = _require.finite(where, "y", y), _require.finite(where, "mean", mean)
    std = _require.positive(where, "std", std)
    if y.ndim == 0 or mean.shape != y.shape:
        raise _require.fail(where, "mean of the shape (n, *b) of y", f"{tuple(mean.shape)} and {tuple(y.shape)}")
    if std.ndim > y.ndim or torch.broadcast_shapes(std.shape, y.shape) != y.shape:
        raise _require.fail(where, f"std that broadcasts to {tuple(y.shape)}", f"shape {tuple(std.shape)}")
    return y, mean, std.expand(y.shape)


# ------------------------------------------------------------------------------------------------ calibration
def reliability(
    y: Tensor, mean: Tensor, std: Tensor, *, num_bins: int = 100, prop_type: str = "interval"
) -> tuple[Tensor, Tensor]:
    """Expected proportions p (k,) and observed ones o(p) (k, *b): see the module.

    >>> p, o = reliability(torch.tensor([0.0, 1.0, 3.0]), torch.zeros(3), torch.ones(3), num_bins=3)
    >>> p.tolist(), [round(v, 3) for v in o.tolist()]
    ([0.0, 0.5, 1.0], [0.333, 0.333, 1.0])
    """
    where = "reliability"
    y, mean, std = _checked(where, y, mean, std)
    _require.count(where, "num_bins", num_bins, minimum=2)
    _require.one_of(where, "prop_type", prop_type, FORMS)
    expected = torch.linspace(0, 1, num_bins, dtype=torch.float64, device=y.device)
    ratio = (mean - y) / std
    if prop_type == "interval":
        ratio, level = ratio.abs(), 0.5 + expected / 2
    else:
        level = expected
    ordered = ratio.movedim(0, -1).sort(-1).values
    limits = torch.special.ndtri(level).expand(*ordered.shape[:-1], -1).contiguous()
    below = torch.searchsorted(ordered.contiguous(), limits, right=True)
    return expected, below.movedim(-1, 0).to(torch.float64) / len(y)


def _gap(y: Tensor, mean: Tensor, std: Tensor, num_bins: int, prop_type: str) -> Tensor:
    expected, observed = reliability(y, mean, std, num_bins=num_bins, prop_type=prop_type)
    return observed - expected.reshape(-1, *[1] * (observed.ndim - 1))


def mean_absolute_calibration_error(
    y: Tensor, mean: Tensor, std: Tensor, *, num_bins: int = 100, prop_type: str = "interval"
) -> Tensor:
    """Expected calibration error, mean_p |o(p) − p|, (*b,)."""
    return _gap(y, mean, std, num_bins, prop_type).abs().mean(0)


def root_mean_squared_calibration_error(
    y: Tensor, mean: Tensor, std: Tensor, *, num_bins: int = 100, prop_type: str = "interval"
) -> Tensor:
    """√(mean_p (o(p) − p)²), (*b,)."""
    return _gap(y, mean, std, num_bins, prop_type).square().mean(0).sqrt()


def max_calibration_error(
    y: Tensor, mean: Tensor, std: Tensor, *, num_bins: int = 100, prop_type: str = "interval"
) -> Tensor:
    """max_p |o(p) − p| on the grid, (*b,)."""
    return _gap(y, mean, std, num_bins, prop_type).abs().amax(0)


def miscalibration_area(
    y: Tensor, mean: Tensor, std: Tensor, *, num_bins: int = 100, prop_type: str = "interval"
) -> Tensor:
    """∫₀¹ |o(p) − p| dp, o linear between the grid points, (*b,): exact, also where the curves cross."""
    gap = _gap(y, mean, std, num_bins, prop_type)
    a, b = gap[:-1], gap[1:]
    total = a.abs() + b.abs()
    crossing = (a.square() + b.square()) / torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(a * b < 0, crossing, total).sum(0) / (2 * (num_bins - 1))


def pit(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Probability integral transform Φ((y − μ)/σ), (n, *b): uniform on [0, 1] if the predictions are right (Dawid 1984)."""
    y, mean, std = _checked("pit", y, mean, std)
    return torch.special.ndtr((y - mean) / std)


def sharpness(std: Tensor) -> Tensor:
    """√(mean σ²), (*b,): small is sharp, and worth something only together with calibration."""
    return _require.positive("sharpness", "std", std).square().mean(0).sqrt()


# ---------------------------------------------------------------------------------------------- proper scores
def nll_rows(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """−ln N(y | μ, σ²) of every row, (n, *b)."""
    y, mean, std = _checked("nll", y, mean, std)
    return 0.5 * ((y - mean) / std).square() + std.log() + 0.5 * math.log(2 * math.pi)


def crps_rows(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Continuous ranked probability score σ(t(2Φ(t) − 1) + 2φ(t) − 1/√π), t = (y − μ)/σ, of every row, (n, *b)."""
    y, mean, std = _checked("crps", y, mean, std)
    t = (y - mean) / std
    density = torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)
    return std * (t * torch.erf(t / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def check_rows(
    y: Tensor, mean: Tensor, std: Tensor, *, resolution: int = 99, start_q: float = 0.01, end_q: float = 0.99
) -> Tensor:
    """Pinball loss (1{y ≤ v} − q)(v − y) of the quantiles v = μ + σΦ⁻¹(q), mean over q, of every row, (n, *b)."""
    y, mean, std = _checked("check_score", y, mean, std)
    levels = _levels("check_score", resolution, start_q, end_q)
    total = torch.zeros_like(y)
    for q in levels:
        gap = mean + std * torch.special.ndtri(q) - y
        total += ((gap >= 0).to(y.dtype) - q) * gap
    return total / resolution


def interval_rows(
    y: Tensor, mean: Tensor, std: Tensor, *, resolution: int = 99, start_p: float = 0.01, end_p: float = 0.99
) -> Tensor:
    """Width + (2/(1 − p))·(distance of y to the centred interval of probability p), mean over p, of every row, (n, *b)."""
    y, mean, std = _checked("interval_score", y, mean, std)
    levels = _levels("interval_score", resolution, start_p, end_p)
    error, total = (y - mean).abs(), torch.zeros_like(y)
    for p in levels:
        half = std * torch.special.ndtri(0.5 + p / 2)
        total += 2 * half + 2 / (1 - p) * (error - half).clamp_min(0)
    return total / resolution


def _levels(where: str, resolution: int, start: float, end: float) -> Tensor:
    _require.count(where, "resolution", resolution)
    low, high = (_require.probability(where, "a level", v) for v in (start, end))
    if low > high:
        raise _require.fail(where, "levels in increasing order", (low, high))
    return torch.linspace(low, high, resolution, dtype=torch.float64)


def nll_gaussian(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean of `nll_rows`, (*b,)."""
    return nll_rows(y, mean, std).mean(0)


def crps_gaussian(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean of `crps_rows`, (*b,)."""
    return crps_rows(y, mean, std).mean(0)


def check_score(
    y: Tensor, mean: Tensor, std: Tensor, *, resolution: int = 99, start_q: float = 0.01, end_q: float = 0.99
) -> Tensor:
    """Mean of `check_rows`, (*b,)."""
    return check_rows(y, mean, std, resolution=resolution, start_q=start_q, end_q=end_q).mean(0)


def interval_score(
    y: Tensor, mean: Tensor, std: Tensor, *, resolution: int = 99, start_p: float = 0.01, end_p: float = 0.99
) -> Tensor:
    """Mean of `interval_rows`, (*b,)."""
    return interval_rows(y, mean, std, resolution=resolution, start_p=start_p, end_p=end_p).mean(0)


def energy_rows(y: Tensor, samples: Tensor) -> Tensor:
    """Energy score of vectors, mean_i ‖s_i − y‖ − ½ mean_ij ‖s_i − s_j‖, of every row.

    Args:
        y: (n, p).
        samples: (n, m, p), m draws of the prediction of each row. The second mean runs over all m² pairs, as for an ensemble
            that is the whole prediction (Gneiting & Raftery 2007, eq. 20).
    """
    where = "energy_score"
    y, samples = _require.finite(where, "y", y), _require.finite(where, "samples", samples)
    if y.ndim != 2 or samples.ndim != 3:
        got = f"{tuple(y.shape)} and {tuple(samples.shape)}"
        raise _require.fail(where, "y (n, p) and samples (n, m, p)", got)
    _require.shape(where, "samples", samples, (y.shape[0], samples.shape[1], y.shape[1]))
    apart = (samples - y.unsqueeze(1)).norm(dim=-1).mean(1)
    few = max(1, 2_000_000 // samples[0].numel() // samples.shape[1])
    # cdist would take differences of squares, which lose half of the digits
    spread = [(s.unsqueeze(1) - s.unsqueeze(2)).norm(dim=-1).mean((1, 2)) for s in samples.split(few)]
    return apart - 0.5 * torch.cat(spread)


def energy_score(y: Tensor, samples: Tensor) -> Tensor:
    """Mean of `energy_rows`, a number."""
    return energy_rows(y, samples).mean()


def draws(mean: Tensor, std: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(n, num, p) independent draws of N(μ, diag σ²), for `energy_score`."""
    _require.count("draws", "num", num)
    noise = torch.randn(len(mean), num, *mean.shape[1:], dtype=torch.float64, generator=generator)
    return mean.unsqueeze(1) + std.expand(mean.shape).unsqueeze(1) * noise.to(mean.device)
