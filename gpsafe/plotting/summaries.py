"""Means over seeds with their intervals."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy import stats

from gpsafe import _require

Kind = Literal["t", "bootstrap"]
DRAWS = 2000


def summarised(values: Any, *, kind: Kind = "t", level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis with the ends of its two-sided interval, pointwise; NaN ends below two values.

    Args:
        values: (n, *b)
        kind: Student's t, exact for normal values; or percentiles of the means of 2000 resamples, the same each time.
        level: in (0, 1).

    Returns:
        Mean, lower and upper ends, each (*b,).
    """
    _require.one_of("summarised", "kind", kind, ("t", "bootstrap"))
    level = _require.probability("summarised", "level", level)
    array = np.asarray(values, dtype=float)
    if array.ndim < 1 or not len(array):
        raise _require.fail("summarised", "values of shape (n, *b), n ≥ 1", str(array.shape))
    n, mean = len(array), array.mean(0)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    if kind == "t":
        half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * array.std(0, ddof=1) / n**0.5
        return mean, mean - half, mean + half
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS) / n
    means = np.tensordot(weights, array, 1)
    low, high = np.quantile(means, (0.5 - level / 2, 0.5 + level / 2), axis=0)
    return mean, low, high
