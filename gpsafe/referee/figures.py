"""Three pictures of an examination, for light and dark pages."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpsafe import plotting
from gpsafe.testbed.report_figures import Pictures, data_uri

FEW = 6  # panels
WORDS = {"own": "forecasters with k", "kernel": "shorter, rougher", "time": "with memory"}
Output = Mapping[str, Any]


def drawn(series: Mapping[str, Any], draw: Callable[[Axes, Output], None]) -> Pictures:
    """One panel an output, the first `FEW` of them."""
    outputs: Sequence[Output] = series["outputs"][:FEW]

    def once(theme: Any) -> str:
        with plotting.style(theme, size=9), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing glyphs: the picture shows them
            across = 2 if len(outputs) == 4 else min(3, len(outputs))
            down = math.ceil(len(outputs) / across)
            figure: Figure = plotting.figure(max(6.4, 4.0 * across), 3.1 * down)
            panels = figure.subplots(down, across, squeeze=False)
            for axes, output in zip(panels.flat, outputs, strict=False):
                draw(axes, output)
                axes.set_title(output["name"], loc="left")
            for axes in list(panels.flat)[len(outputs) :]:
                axes.set_visible(False)
            return data_uri(figure)

    return Pictures(once("light"), once("dark"))


def growth(axes: Axes, output: Output) -> None:
    """Lower bound of the norm against n, with what is claimed and what is published from above."""
    n = output["counts"]
    axes.plot(n, output["lower"], label="proved, ≥", **plotting.look("certified").marked)
    axes.plot(n, output["mean"], label="posterior mean", **plotting.look("proposed").line)
    axes.plot([n[0], n[-1]], [output["random"]] * 2, label="random functions", **plotting.look("published").line)
    axes.plot([n[0], n[-1]], [output["norm"]] * 2, label="B", **plotting.look("limit").line)
    axes.set(xscale="log", xlabel="judging rows", ylabel="norm")
    axes.set_xticks(n, [str(k) for k in n])
    axes.minorticks_off()
    axes.set_yscale("symlog", linthresh=max(0.03 * output["norm"], 1e-300))
    axes.set_ylim(bottom=0)
    plotting.label_ends(axes)


def needed(axes: Axes, output: Output) -> None:
    """Norm that each family of forecasters proves, against R."""
    x = [f * output["noise"] for f in output["factors"]]
    looks = plotting.looks(WORDS.values())
    low = 0.01 * output["norm"]
    for family, values in output["needed"].items():
        axes.plot(x, np.maximum(values, low), label=WORDS[family], **looks[WORDS[family]].marked)
    axes.plot([x[0], x[-1]], [output["norm"]] * 2, label="B", **plotting.look("limit").line)
    axes.axvline(output["noise"], linewidth=0.9, label="_R", **plotting.look("limit").line)
    ruled = [value for value, refuted in zip(x, output["refuted"], strict=True) if refuted]
    axes.plot(ruled, [low] * len(ruled), label="_refuted", clip_on=False, **plotting.look("refused").points)
    axes.set(xscale="log", yscale="log", xlabel="R", ylabel="norm at least")
    axes.minorticks_off()
    plotting.label_ends(axes)


def tails(axes: Axes, output: Output) -> None:
    """Share of forecast errors beyond t R, with what R-sub-Gaussian noise may do and what normal noise does."""
    errors = np.asarray(output["errors"])
    t = np.linspace(0, max(6.0, min(float(errors.max()) * 1.05, 15.0)), 200)
    share = np.arange(1, len(errors) + 1) / len(errors)
    shown = errors <= t[-1]
    axes.plot(errors[shown], share[shown], label="forecast errors", **plotting.look("data").points, markersize=3)
    axes.plot(t, np.minimum(1.0, 2 * np.exp(-(t**2) / 2)), label="sub-Gaussian, at most", **plotting.look("limit").line)
    axes.plot(t[1:], [math.erfc(v / math.sqrt(2)) for v in t[1:]], label="normal", **plotting.look("published").line)
    axes.set(yscale="log", xlabel="size, in R", ylabel="share beyond", ylim=(0.4 / len(errors), 1.3), xlim=(0, t[-1]))
    axes.minorticks_off()
    axes.legend(loc="upper right")
