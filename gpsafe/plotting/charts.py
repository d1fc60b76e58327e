"""Bands, curves, intervals and calibration: pictures whose second axis is a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gpsafe import _require
from gpsafe.plotting.colours import Look, colour, look, looks
from gpsafe.plotting.labels import label_ends
from gpsafe.plotting.summaries import Kind, summarised

FILL = 0.18


def _array(where: str, name: str, value: Any, ndim: int) -> np.ndarray:
    value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    array = np.asarray(value, dtype=float)
    if array.ndim != ndim:
        raise _require.fail(where, f"{name} with {ndim} axes", f"shape {array.shape}")
    return array


def _look(noun: str | Look) -> Look:
    return noun if isinstance(noun, Look) else look(noun)


def band(
    axes: Axes,
    x: Any,
    low: Any,
    high: Any,
    *,
    mean: Any = None,
    truth: Any = None,
    data: tuple[Any, Any] | None = None,
    noun: str | Look = "band",
    label: str | None = None,
) -> Axes:
    """A function between two ends, with what is believed of it, what it is, and what was seen.

    Args:
        axes: to draw on.
        x: (n,)
        low: (n,)
        high: (n,)
        mean: (n,), if it is to be drawn.
        truth: (n,), if it is known.
        data: inputs and outputs, (m,) each.
        noun: whose band it is.
        label: its name.
    """
    at, below, above = (_array("band", name, v, 1) for name, v in (("x", x), ("low", low), ("high", high)))
    style = _look(noun)
    axes.fill_between(
        at, below, above, color=style.colour, alpha=FILL, linewidth=0, label=label if mean is None else None
    )
    if mean is not None:
        axes.plot(at, _array("band", "mean", mean, 1), label=label, **style.line)
    if truth is not None:
        axes.plot(at, _array("band", "truth", truth, 1), label="truth", **look("truth").line)
    if data is not None:
        seen = (_array("band", "data", values, 1) for values in data)
        axes.plot(*seen, label="_data", markersize=3, **look("data").points)
    return axes


def intervals(
    axes: Axes,
    x: Any,
    value: Any,
    low: Any,
    high: Any,
    *,
    noun: str | Look = "claim",
    label: str | None = None,
    joined: bool = True,
) -> Axes:
    """Estimates against x with their intervals (ends that are NaN are left out); joined by the noun's line or not."""
    at, middle, below, above = (
        _array("intervals", name, v, 1) for name, v in (("x", x), ("value", value), ("low", low), ("high", high))
    )
    if np.isinf([middle, below, above]).any():
        raise _require.fail("intervals", "finite intervals, or NaN (`forest` shows infinite ends)", f"[{low}, {high}]")
    style = _look(noun)
    error = np.nan_to_num(np.maximum(np.stack([middle - below, above - middle]), 0.0), nan=0.0)
    looks_like = {**style.marked, "marker": style.marker or "o"} if joined else style.points
    axes.errorbar(at, middle, yerr=error, label=label, capsize=2, markersize=4, linewidth=1.1, **looks_like)
    return axes


def learning_curves(
    axes: Axes,
    curves: Mapping[str, Any],
    *,
    x: Any = None,
    kind: Kind = "t",
    level: float = 0.95,
    styles: Mapping[str, Look] | None = None,
    labelled: bool = True,
) -> Axes:
    """Means over seeds with pointwise intervals; each name stands at the end of its line, with the number of seeds.

    Args:
        axes: to draw on.
        curves: name → (seeds, T); a name that is a noun has its colour.
        x: (T,), 0 … T − 1 if None.
        kind: of interval: Student's t, or bootstrap percentiles.
        level: of the interval.
        styles: looks of names that need others than `looks` gives.
        labelled: whether to name the lines.
    """
    styles = styles or looks(curves)
    fill = FILL if len(curves) < 4 else 0.5 * FILL  # many bands over each other would hide the lines
    for name, values in curves.items():
        array = _array("learning_curves", name, values, 2)
        at = np.arange(array.shape[1]) if x is None else _array("learning_curves", "x", x, 1)
        mean, low, high = summarised(array, kind=kind, level=level)
        axes.fill_between(at, low, high, color=styles[name].colour, alpha=fill, linewidth=0)
        marks = {"markevery": (0.02, 0.14), "markersize": 3.5}
        axes.plot(at, mean, label=f"{name} (n = {len(array)})", **styles[name].marked, **marks)
    return label_ends(axes) if labelled else axes


def growth(
    axes: Axes,
    sizes: Mapping[str, Any],
    *,
    safe: float | tuple[float, float] | None = None,
    total: float | None = None,
    labelled: bool = True,
) -> Axes:
    """|S_n| by episode: the median of the runs and their range, under the number of policies that are safe.

    Args:
        axes: to draw on.
        sizes: name → (runs, episodes).
        safe: |S*|, or an interval for it.
        total: the number of all policies.
        labelled: whether to name the lines.
    """
    styles, longest = looks(sizes), 1
    for name, values in sizes.items():
        array = _array("growth", name, values, 2)
        at = np.arange(array.shape[1])
        longest = max(longest, len(at))
        axes.fill_between(
            at, array.min(0), array.max(0), color=styles[name].colour, alpha=FILL, linewidth=0, step="post"
        )
        runs = "one run" if len(array) == 1 else f"{len(array)} runs"
        axes.step(at, np.median(array, 0), where="post", label=f"{name}, {runs}", **styles[name].line)
    ends = np.array([0, longest - 1])
    if isinstance(safe, tuple):
        axes.fill_between(ends, safe[0], safe[1], color=colour("safe"), alpha=FILL, linewidth=0)
    if safe is not None:
        top = safe[1] if isinstance(safe, tuple) else safe
        axes.plot(ends, [top, top], label="|S*|", linewidth=0.9, **look("limit").line)
    if total is not None:
        axes.plot(ends, [total, total], label="all policies", linewidth=0.9, **look("unknown").line)
    axes.set_xlabel("episode")
    axes.set_ylabel("policies in $S_n$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    return label_ends(axes) if labelled else axes


def reliability(
    axes: Axes,
    expected: Any,
    observed: Any,
    *,
    low: Any = None,
    high: Any = None,
    noun: str | Look = "gp",
    label: str | None = None,
) -> Axes:
    """Observed against nominal share of outcomes inside; below the diagonal a model is over-confident.

    Args:
        axes: to draw on; made square, the diagonal drawn once.
        expected: (n,) nominal levels in [0, 1].
        observed: (n,) shares.
        low: (n,) lower ends of an interval for them.
        high: (n,) upper ends.
        noun: whose curve it is.
        label: its name.
    """
    level, share = _array("reliability", "expected", expected, 1), _array("reliability", "observed", observed, 1)
    style = _look(noun)
    if not any(line.get_label() == "_calibrated" for line in axes.lines):
        axes.plot([0, 1], [0, 1], label="_calibrated", linewidth=0.9, **look("limit").line)
        axes.annotate(
            "over-confident", (0.97, 0.06), ha="right", xycoords="axes fraction", color=colour("grey"), fontsize="small"
        )
        axes.annotate("under-confident", (0.03, 0.9), xycoords="axes fraction", color=colour("grey"), fontsize="small")
    if low is not None and high is not None:
        below, above = (_array("reliability", name, v, 1) for name, v in (("low", low), ("high", high)))
        axes.fill_between(level, below, above, color=style.colour, alpha=FILL, linewidth=0)
    axes.plot(level, share, label=label, markersize=3.5, **style.marked)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="nominal level", ylabel="observed share")
    return axes


def forest(
    axes: Axes,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    threshold: float | None = None,
    nouns: Sequence[str | Look] | None = None,
) -> Axes:
    """One row an estimate with its interval, top down; ends that are infinite or off the axis become arrows.

    Args:
        axes: to draw on.
        rows: name, estimate, lower end, upper end.
        threshold: a line to compare with.
        nouns: colour of each row; claim if None.
    """
    finite = [v for row in rows for v in row[1:] if math.isfinite(v)] + ([] if threshold is None else [threshold])
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    low, high = low - pad, high + pad
    for place, (name, estimate, lower, upper) in enumerate(rows):
        if math.isnan(lower) or math.isnan(upper) or lower > upper:
            raise _require.fail("forest", "lower ≤ upper in each row", f"{name}: [{lower}, {upper}]")
        style = _look("claim" if nouns is None else nouns[place])
        axes.plot([max(lower, low), min(upper, high)], [place, place], color=style.colour, linewidth=2.2, alpha=0.55)
        for end, off, arrow in ((low, lower < low, "<"), (high, upper > high, ">")):
            if off:
                axes.plot(end, place, arrow, color=style.colour, clip_on=False)
        if math.isfinite(estimate):
            axes.plot(estimate, place, linestyle="", marker=style.marker or "o", color=style.colour)
    if threshold is not None:
        axes.axvline(threshold, linewidth=0.9, **look("limit").line)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set(xlim=(low, high), ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return axes
