"""What Plotly is told of a figure is what stands in it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from gpsafe import lab, plotting

plotly = pytest.importorskip("plotly.graph_objects")


def of_kind(told, kind, **also):
    return [t for t in told["data"] if t["type"] == kind and all(t.get(k) == v for k, v in also.items())]


def test_lines_bands_points_and_maps_keep_their_numbers_and_places():
    with plotting.style():
        figure = plotting.figure(6, 2)
        left, right = figure.subplots(1, 2)
        x = np.linspace(0.0, 1.0, 5)
        plotting.band(left, x, x - 1, x + 1, mean=x, truth=x**2, data=(x[:2], x[:2] + 0.5), label="mean")
        plotting.limit(left, 0.25)
        left.set(xlabel=r"$\theta$ of $F_n$", title="a title")
        plotting.label_ends(left)
        right.imshow(np.arange(6.0).reshape(2, 3), extent=(0, 3, 0, 2), origin="lower", cmap=plotting.colour_map())
        right.plot([0, 1], [1, 2], label="line")
        right.legend()
    told = plotting.closer(figure)
    assert json.loads(json.dumps(told)) == told and plotly.Figure(told)
    mean, truth = (of_kind(told, "scatter", name=name)[0] for name in ("mean", "truth"))
    assert mean["x"] == x.tolist() and truth["y"] == (x**2).tolist()
    (area,) = of_kind(told, "scatter", fill="toself")
    assert (min(area["y"]), max(area["y"])) == (-1.0, 2.0)
    (points,) = [t for t in told["data"] if t.get("mode") == "markers"]
    assert points["y"] == [0.5, 0.75]
    (limit,) = [t for t in told["data"] if t["type"] == "scatter" and t["y"] == pytest.approx([0.25, 0.25])]
    assert limit["x"] == pytest.approx(list(left.get_xlim()))
    (cells,) = of_kind(told, "heatmap")
    assert (cells["x"], cells["y"], cells["z"]) == ([0.5, 1.5, 2.5], [0.5, 1.5], [[0, 1, 2], [3, 4, 5]])
    assert cells["xaxis"] == "x2" and mean["xaxis"] == "x"
    assert told["layout"]["xaxis"]["title"]["text"] == "θ of F_n"
    assert {a["text"] for a in told["layout"]["annotations"]} == {"a title", "mean", "truth"}
    assert [t["name"] for t in told["data"] if t.get("showlegend")] == ["line"]


def test_ends_of_logarithmic_axes_are_exponents_and_marks_are_drawn_as_such():
    figure = plotting.figure(3, 2)
    axes = figure.subplots()
    axes.plot([1, 10], [1, 100], "o", fillstyle="none")
    axes.plot([1, 10], [1, 100], linestyle="", marker="")  # nothing to be seen
    axes.set(yscale="log", ylim=(0.1, 1000), xlim=(0, 11))
    told = plotting.closer(figure)
    assert told["layout"]["yaxis"]["range"] == pytest.approx([-1, 3]) and told["layout"]["yaxis"]["type"] == "log"
    (trace,) = told["data"]
    assert trace["mode"] == "markers" and trace["marker"]["symbol"] == "circle-open"


def test_a_notebook_shows_both_and_the_picture_alone_without_plotly(monkeypatch):
    figure = plotting.figure(3, 2)
    figure.subplots().plot([0, 1], [0, 1])
    shown = lab.show(figure, closer=True)._repr_mimebundle_()
    assert set(shown) == {"image/png", plotting.PLOTLY}
    assert set(lab.show(figure)._repr_mimebundle_()) == {"image/png"}
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    assert lab.show(figure, closer=True)._repr_mimebundle_() == {"image/png": shown["image/png"]}
    with pytest.raises(ImportError):
        plotting.closer(figure)


def test_a_figure_without_axes_is_refused():
    with pytest.raises(ValueError, match="a figure with axes, got none"):
        plotting.closer(plotting.figure(1, 1))
