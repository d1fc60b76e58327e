"""Shares and means with their intervals, for the experiment files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes

from gpsafe import _require, plotting
from gpsafe.verdict import clopper_pearson

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """k of n with its two-sided 95 % Clopper–Pearson interval."""

    count: int
    total: int

    @staticmethod
    def of(values: Iterable[Any]) -> Share:
        """How many of the values are true; NaN, which Python calls true, is no answer.

        Raises:
            ValueError: if one of them is NaN.
        """
        listed = list(values)
        if any(v != v for v in listed):
            raise _require.fail("Share.of", "true or false", "NaN")
        return Share(sum(map(bool, listed)), len(listed))

    @property
    def value(self) -> float:
        """k/n."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the interval."""
        return clopper_pearson(self.count, self.total, 0.95)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count}/{self.total} [{low:.3f}, {high:.3f}]"


def draw_shares(
    axes: Axes,
    x: Iterable[float],
    shares: Iterable[Share],
    *,
    label: str,
    noun: str | plotting.Look,
    joined: bool = True,
) -> None:
    """Shares against x with their intervals."""
    listed = list(shares)
    value = np.array([s.value for s in listed])
    low, high = np.array([s.interval for s in listed]).T
    plotting.intervals(axes, list(x), value, low, high, noun=noun, label=label, joined=joined)


def mean_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of its two-sided 95 % Student t interval (nan below two values)."""
    mean, _, high = plotting.summarised(list(values))
    return float(mean), float(high - mean)


def plus_minus(values: Iterable[float], digits: int = 2) -> str:
    """'mean ± half-width'."""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


@dataclass(frozen=True, slots=True)
class RateRatio:
    """(k/n)/(k′/n′) for counts in n and n′ steps, with its exact two-sided 95 % interval.

    Given k + k′, the first of two Poisson counts whose rates have the ratio ρ is binomial with p = ρn/(ρn + n′); the ends are
    those of Clopper and Pearson's interval of p. Counts that differ between seeds by more than chance make it too narrow.
    """

    count: int
    steps: int
    other: int
    other_steps: int

    @property
    def value(self) -> float:
        """ρ as counted; nan if both counts are 0."""
        if not self.count + self.other:
            return math.nan
        return self.count * self.other_steps / (self.other * self.steps) if self.other else math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the interval."""
        if not self.count + self.other:
            return 0.0, math.inf
        scale = self.other_steps / self.steps
        low, high = (
            scale * p / (1 - p) if p < 1 else math.inf
            for p in clopper_pearson(self.count, self.count + self.other, 0.95)
        )
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g} [{low:.3g}, {high:.3g}]" if self.count + self.other else "–"


def bootstrap_ratio(
    above: Sequence[float],
    below: Sequence[float],
    strata: Sequence[str],
    statistic: Callable[..., Any],
    *,
    draws: int = 2000,
) -> tuple[float, float, float]:
    """statistic(above)/statistic(below) of paired values with the ends of its 95 % percentile bootstrap interval.

    Pairs are drawn anew within their stratum. `statistic` takes an axis (np.sum, np.median). A draw in which it is 0 on both
    sides says nothing of a ratio and is left out; nan if all are such.
    """
    a, b, labels = np.asarray(above), np.asarray(below), np.asarray(strata)
    generator = np.random.default_rng(0)
    places = [np.flatnonzero(labels == label) for label in dict.fromkeys(strata)]
    drawn = np.concatenate([generator.choice(place, (draws, len(place))) for place in places], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = statistic(a[drawn], axis=1) / statistic(b[drawn], axis=1)
        whole = float(statistic(a, axis=0) / statistic(b, axis=0))
    told = ratios[~np.isnan(ratios)]
    if not len(told):
        return whole, math.nan, math.nan
    between = "linear" if np.isfinite(told).all() else "inverted_cdf"  # nothing lies between infinities
    low, high = np.quantile(told, (0.025, 0.975), method=between)
    return whole, float(low), float(high)


def grouped(rows: Iterable[Mapping[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by the values of some columns, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def peak_memory(work: Callable[[], T]) -> tuple[T, float, float]:
    """Result, seconds, and MiB by which the resident memory grew at its peak (nan where Linux does not tell).

    The allocator may serve the work from memory that was freed before, so this is a lower estimate.
    """
    before = _resident(reset=True)
    begun = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begun
    return result, seconds, max(_resident(peak=True) - before, 0.0)


def _resident(*, reset: bool = False, peak: bool = False) -> float:
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    key = "VmHWM:" if peak else "VmRSS:"
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))
