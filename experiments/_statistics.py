"""Shares with exact intervals, and the look of figures, for the experiment files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from gpsafe.verdict import clopper_pearson

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "black")


@dataclass(frozen=True, slots=True)
class Share:
    """k of n with its two-sided 95 % Clopper–Pearson interval."""

    count: int
    total: int

    @staticmethod
    def of(values: Iterable[Any]) -> Share:
        """How many of the values are true."""
        listed = [bool(v) for v in values]
        return Share(sum(listed), len(listed))

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
    color: str,
    marker: str = "o",
    line: str = "-",
) -> None:
    """Shares against x with their intervals."""
    listed = list(shares)
    value = np.array([s.value for s in listed])
    low, high = np.array([s.interval for s in listed]).T
    error = np.stack([value - low, high - value])
    axes.errorbar(
        list(x), value, yerr=error, label=label, color=color, marker=marker, linestyle=line, capsize=2, markersize=4
    )


def mean_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of its normal 95 % interval (nan below two values)."""
    array = np.asarray(list(values), dtype=float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    return float(array.mean()), 1.96 * float(array.std(ddof=1)) / len(array) ** 0.5


def plus_minus(values: Iterable[float], digits: int = 2) -> str:
    """'mean ± half-width'."""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def grouped(rows: Iterable[Mapping[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by the values of some columns, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups
