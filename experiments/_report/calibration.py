"""Figures and tables of the calibration study, from its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from gpsafe import plotting
from gpsafe.testbed.experiment import Report, Table

from .statistics import Share, mean_interval

LEVEL = 0.9
LEFT_OUT = "from all other seeds"
Rows = Sequence[Mapping[str, Any]]


def report(rows: Rows, names: Sequence[str]) -> Report:
    """All of it."""
    known = [r for r in rows if r["kind"] != "recorded"]
    figures = {
        "coverage": _coverage(rows, names),
        "shells": _shells(rows, names),
        "needed": _needed(known, names),
        "transfer": _transfer(known),
        "width": _width(known, names),
        "cost": _cost(rows, names),
    }
    tables = {
        "summary": _summary(rows, names),
        "everywhere": _everywhere(known, names),
        "transfers": _transfers(known),
        "ahead": _ahead(known, names),
    }
    return Report(figures={k: v for k, v in figures.items() if v is not None}, tables=tables)


def _sources(rows: Rows) -> list[str]:
    return list(dict.fromkeys(r["source"] for r in rows))


def _largest(rows: Rows, source: str) -> Rows:
    """The rows of a known plant with most data, or all of a recording, whose runs differ in length."""
    own = [r for r in rows if r["source"] == source]
    if own and own[0]["kind"] == "recorded":
        return own
    most = max((r["count"] for r in own), default=0)
    return [r for r in own if r["count"] == most]


KINDS = (("same", -0.14, "same-kind"), ("other", 0.14, "other-kind"))
"""Data to be tested on, place, and noun of its colour."""


def _betas(axes: Axes, rows: Rows, field: str) -> None:
    """Bars on the line of the exact GP, of the colour of a theorem or of what stands on a guess."""
    values = [r[field] for r in rows if field in r]
    noun = "safe" if any(r.get("beta_sound") for r in rows) else "unsafe"
    style = {"color": plotting.colour(noun), "markersize": 15, "markeredgewidth": 1.8}
    axes.plot(values, np.zeros(len(values)), "|", **style)


def _grid(count: int, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    across = min(columns, max(1, count))
    down = -(-count // across)
    figure = plotting.figure(width * across, height * down)
    panels = list(np.atleast_1d(figure.subplots(down, across, squeeze=False)).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _models_axis(axes: Axes, names: Sequence[str], first: bool) -> None:
    axes.set_yticks(range(len(names)), names if first else [""] * len(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", color=plotting.colour("faint"), linewidth=0.6)
    if axes.get_xscale() == "log":
        axes.xaxis.set_minor_formatter(NullFormatter())


def _dots(axes: Axes, values: Iterable[float], place: float, noun: str, filled: bool = True) -> None:
    found = [v for v in values if np.isfinite(v)]
    axes.plot(
        found,
        np.full(len(found), place),
        "o",
        color=plotting.colour(noun),
        markersize=4,
        alpha=0.75,
        fillstyle="full" if filled else "none",
    )


def _coverage(rows: Rows, names: Sequence[str]) -> Figure:
    """Share of next states in the 90 % bars, one dot a seed."""
    sources = _sources(rows)
    figure, panels = _grid(len(sources), 3.6, 2.9)
    for axes, source in zip(panels, sources, strict=False):
        own = _largest(rows, source)
        for i, name in enumerate(names):
            for test, shift, noun in KINDS:
                _dots(axes, (r["inside"] for r in own if (r["model"], r["test"]) == (name, test)), i + shift, noun)
        axes.axvline(LEVEL, color=plotting.colour("ink"), linewidth=0.9)
        axes.set(xlim=(-0.02, 1.02), title=f"{source} (n = {own[0]['count']})")
        _models_axis(axes, names, True)
    figure.supxlabel(
        "share of next states inside the 90 % bars: blue, data like those learnt from; orange, the other kind"
    )
    return figure


def _shells(rows: Rows, names: Sequence[str]) -> Figure:
    """Coverage by distance to the data, mean over seeds and both kinds of data, as numbers on colours."""
    sources = _sources(rows)
    figure = plotting.figure(1.9 + 1.55 * len(sources), 1.2 + 0.36 * len(names))
    axes = figure.subplots()
    table = np.full((len(names), 5 * len(sources)), np.nan)
    for j, source in enumerate(sources):
        own = [r for r in _largest(rows, source) if r["test"] == "same"]
        for i, name in enumerate(names):
            found = [[r[f"shell_{k}"] for k in range(4)] for r in own if r["model"] == name and "shell_3" in r]
            if found:
                table[i, 5 * j : 5 * j + 4] = np.mean(found, axis=0)
    axes.imshow(table - LEVEL, cmap="PuOr", vmin=-0.5, vmax=0.5, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks([5 * j + 1.5 for j in range(len(sources))], sources)
    axes.tick_params(length=0)
    axes.set_title(
        "% of next states inside the 90 % bars, in four shells from nearest (left) to farthest (right); orange: too few",
        fontsize=9,
    )
    return figure


def _needed(rows: Rows, names: Sequence[str]) -> Figure:
    """sup |f* − μ|/σ over the test points, one dot a seed, beside β."""
    sources = _sources(rows)
    figure, panels = _grid(len(sources), 3.6, 2.9)
    for axes, source in zip(panels, sources, strict=False):
        own = _largest(rows, source)
        for i, name in enumerate(names):
            for test, shift, noun in KINDS:
                _dots(axes, (r["needed"] for r in own if (r["model"], r["test"]) == (name, test)), i + shift, noun)
        _betas(axes, own, "beta")
        axes.axvline(1.645, color=plotting.colour("ink"), linewidth=0.9)
        axes.set(xscale="log", title=f"{source} (n = {own[0]['count']})")
        for i, name in enumerate(names):
            if all(not np.isfinite(r["needed"]) for r in own if r["model"] == name):
                axes.text(
                    0.5, i, "none: σ = 0", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=8
                )
        _models_axis(axes, names, True)
    figure.supxlabel(
        "multiple of σ that holds f* at all test points: blue, points like the data; orange, the other kind; bar: β of the GP "
        "(green: theorem, red: B read off)",
        fontsize=9,
    )
    return figure


def _pairs(rows: Rows) -> dict[str, list[tuple[str, float, float]]]:
    """(source, needed under the first condition, needed under the second) for three kinds of transfer of ensemble-5."""
    own = [r for r in rows if r["model"] == "ensemble-5"]
    at = {(r["source"], r["kind"], r["count"], r["test"], r["seed"]): r["needed"] for r in own}
    found: dict[str, list[tuple[str, float, float]]] = {
        LEFT_OUT: [], "to more data": [], "to the other distribution": [],
    }  # fmt: skip
    for (source, kind, count, test, seed), value in at.items():
        if test != "same":
            continue
        others = [again for k, again in at.items() if k[:4] == (source, kind, count, test) and k[4] != seed]
        if others:
            found[LEFT_OUT].append((source, max(others), value))
        larger = [k[2] for k in at if k[:2] == (source, kind) and k[2] > count]
        if larger:
            found["to more data"].append((source, value, at[source, kind, min(larger), test, seed]))
        found["to the other distribution"].append((source, value, at[source, kind, count, "other", seed]))
    return found


def _transfer(rows: Rows) -> Figure:
    """Needed multiple there against here; above the diagonal the band of here does not hold there."""
    pairs, sources = _pairs(rows), _sources(rows)
    figure = plotting.figure(11.5, 3.9)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    looks = plotting.looks(sources)
    for axes, (kind, found) in zip(panels, pairs.items(), strict=True):
        for source in sources:
            points = np.array([(a, b) for name, a, b in found if name == source and np.isfinite(b)])
            if len(points):
                axes.plot(*points.T, ".", color=looks[source].colour, markersize=5, alpha=0.6, label=source)
        ends = np.array([b for _, a, b in found if np.isfinite(b)] + [a for _, a, _ in found])
        if len(ends):
            axes.plot([ends.min(), ends.max()], [ends.min(), ends.max()], color=plotting.colour("ink"), linewidth=0.8)
        held = "" if kind == LEFT_OUT or not found else f": {Share.of(b <= a for _, a, b in found).value:.0%} hold"
        axes.set(xscale="log", yscale="log", title=f"{kind}{held}")
    panels[0].set(ylabel="multiple needed there")
    panels[1].set(xlabel="multiple that held f* at all points here (ensemble of 5)")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(fontsize="small", frameon=False)
    return figure


def _width(rows: Rows, names: Sequence[str]) -> Figure:
    """Half-width of a band that held f* at all test points, in standard deviations of the residual."""
    sources = _sources(rows)
    figure, panels = _grid(len(sources), 3.6, 2.9)
    for axes, source in zip(panels, sources, strict=False):
        own = [r for r in _largest(rows, source) if r["test"] == "same"]
        for i, name in enumerate(names):
            chosen = [r for r in own if r["model"] == name]
            _dots(axes, (r["needed"] * r["epistemic"] for r in chosen), i - 0.14, "same-kind")
            _dots(axes, (r["conformal_width"] for r in chosen), i + 0.14, "conformal", False)
        _betas(axes, own, "beta_width")
        axes.axvline(1.0, color=plotting.colour("ink"), linewidth=0.9)
        axes.set(xscale="log", title=f"{source} (n = {own[0]['count']})")
        _models_axis(axes, names, True)
    figure.supxlabel(
        "mean half-width / std of the residual (1: as wide as knowing nothing): blue, needed multiple (f* everywhere); "
        "circles, conformal 90 % (next state); bar, β of the GP",
        fontsize=9,
    )
    return figure


def _cost(rows: Rows, names: Sequence[str]) -> Figure:
    """Processor seconds to fit, and for 1000 predictions, against n."""
    figure = plotting.figure(10, 3.9)
    panels = figure.subplots(1, 2)
    own = [r for r in rows if r["source"] in ("line", "pendulum") and r["test"] == "same"]
    fits = {
        "ensemble-1": "ensemble (10 members)",
        "ensemble-5-plain": "plain ensemble (10)",
    }  # trained with the first asked
    shown = {
        "fit": {n: fits.get(n, n) for n in names if not n.startswith("ensemble") or n in fits},
        "predict": {n: n for n in names if n not in ("ensemble-3", "ensemble-5-plain")},
    }
    counts = sorted({r["count"] for r in own})
    titles = {"fit": "seconds to fit", "predict": "seconds for 1000 predictions"}
    for axes, (field, labels) in zip(panels, shown.items(), strict=True):
        ends, looks = [], plotting.looks(labels)
        for name, label in labels.items():
            values = [np.median([r[field] for r in own if (r["model"], r["count"]) == (name, n)]) for n in counts]
            if counts:
                axes.plot(counts, values, markersize=3, **looks[name].marked)
                ends.append((values[-1], label, looks[name].colour))
        last = -np.inf
        axes.set(xscale="log", yscale="log", xlabel="transitions", title=titles[field])
        axes.set_xticks(counts)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = np.log10(axes.get_ylim())
        for value, label, colour in sorted(ends):
            last = max(np.log10(max(value, 1e-6)), last + 0.06 * (high - low))
            axes.annotate(
                label, (1.02, 10**last), xycoords=("axes fraction", "data"), color=colour, fontsize=8, va="center"
            )
    figure.suptitle("processor seconds, medians over seeds and kinds of data, line and pendulum", fontsize=9)
    return figure


# -------------------------------------------------------------------------------------------------------- tables
def _pm(values: Iterable[float], digits: int = 2) -> str:
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _summary(rows: Rows, names: Sequence[str]) -> Table:
    found = []
    for source in _sources(rows):
        for name in names:
            own = [r for r in _largest(rows, source) if r["model"] == name]
            same, other = ([r for r in own if r["test"] == t] for t in ("same", "other"))
            if not same:
                continue
            found.append(
                (
                    source, name, same[0]["count"], _pm((r["inside"] for r in same), 3),
                    _pm((r["inside"] for r in other), 3) if other else "",
                    _pm((r["conformal"] for r in same), 3), _pm((r["conformal"] for r in other), 3) if other else "",
                    _pm((r["rmse"] for r in same), 3), _pm((r["width"] for r in same), 3), _pm((r["ece"] for r in same), 3),
                    _pm((r["crps"] for r in same), 3),
                    _pm((r["noise_ratio"] for r in same), 2) if "noise_ratio" in same[0] else "",
                )
            )  # fmt: skip
    columns = (
        "plant", "model", "n", "next state in 90 % bars", "of the other kind", "in conformal bars", "of the other kind",
        "RMSE", "half-width", "ECE", "CRPS", "noise / true noise",
    )  # fmt: skip
    caption = (
        "Mean over seeds (and over both kinds of data, where the plant is known) ± 95 % Student t interval. Errors and widths "
        "in standard deviations of the residual. Conformal bars: split conformal at 90 %, from rows of the kind learnt from."
    )
    return Table(columns, found, caption)


def _everywhere(rows: Rows, names: Sequence[str]) -> Table:
    found = []
    for source in _sources(rows):
        for name in names:
            own = [r for r in _largest(rows, source) if r["model"] == name]
            same, other = ([r["needed"] for r in own if r["test"] == t] for t in ("same", "other"))
            betas = [r for r in own if "beta" in r]
            bars = Share.of(v <= 1.6449 for v in same)
            found.append(
                (
                    source, name, f"{np.median(same):.3g} ({min(same):.3g} to {max(same):.3g})",
                    f"{np.median(other):.3g} ({min(other):.3g} to {max(other):.3g})", str(bars),
                    f"{np.median([r['beta'] for r in betas]):.3g}" if betas else "",
                    str(Share.of(r["beta_holds"] for r in betas)) if betas else "",
                    f"{np.median([r['needed'] * r['epistemic'] for r in own if r['test'] == 'same']):.3g}",
                    f"{np.median([r['beta_width'] for r in betas]):.3g}" if betas else "",
                )
            )  # fmt: skip
    columns = (
        "plant", "model", "needed multiple, points like the data", "the other kind", "f* in 90 % bars everywhere", "β",
        "f* within βσ everywhere", "half-width at the needed multiple", "half-width at β",
    )  # fmt: skip
    caption = (
        "Median (range) over seeds and both kinds of data at the largest n. Shares of runs with 95 % Clopper–Pearson "
        "intervals. β: the mixture bound, on the line with the true norm (a theorem), elsewhere with twice the norm of "
        "the posterior mean of kernels fitted to the data (none)."
    )
    return Table(columns, found, caption)


def _transfers(rows: Rows) -> Table:
    found = []
    for kind, pairs in _pairs(rows).items():
        for source in [*_sources(rows), "all"]:
            own = [(a, b) for name, a, b in pairs if source in (name, "all")]
            if own:
                ratio = np.array([b / a for a, b in own])
                found.append(
                    (
                        kind,
                        source,
                        len(own),
                        "" if kind == LEFT_OUT else str(Share.of(r <= 1 for r in ratio)),
                        *np.quantile(ratio, (0.5, 0.95)),
                        ratio.max(),
                    )
                )
    columns = ("transfer", "plant", "pairs", "the multiple held there", "median ratio", "95 % quantile", "largest")
    caption = (
        "Ensembles of 5. Ratio: the multiple needed there over that needed here. From all other seeds (new data, noise and "
        "weights): the largest of the multiples that they needed, held against the one left out. One seed, that which needs "
        "most, must exceed it: what counts is by how much. Pairs of one plant share seeds; their shares are not independent."
    )
    return Table(columns, found, caption)


def _ahead(rows: Rows, names: Sequence[str]) -> Table:
    found = []
    for source in _sources(rows):
        for name in names:
            own = [r for r in _largest(rows, source) if r["model"] == name and "ahead_open" in r]
            by = {k: [r for r in own if r["kind"] == k] for k in ("backup", "uniform")}
            cells = [
                _pm((r[f"ahead_{loop}"] for r in part), 3) if part else ""
                for part in by.values()
                for loop in ("open", "closed")
            ]
            found.append((source, name, *cells))
    columns = (
        "plant", "model", "learnt from backup data, open loop", "closed loop", "learnt from uniform data, open loop",
        "closed loop",
    )  # fmt: skip
    caption = (
        "Share of states after ten steps under the backup law that lie in the 90 % bars of 20 particles with a persistent "
        "epistemic error (mean ± 95 % t interval over seeds)."
    )
    return Table(columns, found, caption)
