"""A figure to look at more closely: the same lines, bands, points and maps for Plotly, which zooms and tells values.

JupyterLab shows Plotly's description of a figure (a mimetype of its own); whoever cannot, shows the picture beside it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from gpsafe import _require
from gpsafe.plotting.labels import EndLabels

PLOTLY = "application/vnd.plotly.v1+json"
PIXELS = 100  # an inch
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_MARKS = {
    "o": "circle",
    ".": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "D": "diamond",
    "x": "x-thin",
    "+": "cross-thin",
    "P": "cross",
    "X": "x",
    "*": "star",
}


def closer(figure: Figure) -> dict[str, Any]:
    """What Plotly needs to draw a figure of this project: lines, marks, filled bands, images and meshes, each where it stands.

    Names beside lines and legends stay where they are; other texts and arrows are left out, a pointer tells values there.

    Args:
        figure: with at least one pair of axes.

    Returns:
        a description as Plotly's own `Figure.to_plotly_json` makes it, checked by it.

    Raises:
        ValueError: without axes.
        ImportError: without plotly (the extra `lab`).
    """
    import plotly.graph_objects as go

    if not figure.axes:
        raise _require.fail("closer", "a figure with axes", "none")
    figure.draw_without_rendering()  # lays out
    height = float(figure.get_size_inches()[1]) * PIXELS
    page, made = to_hex(figure.get_facecolor()), go.Figure()
    for number, axes in enumerate(figure.axes, 1):
        mark = "" if number == 1 else str(number)
        place = {"xaxis": f"x{mark}", "yaxis": f"y{mark}", "legend": f"legend{mark}"}
        legend, named = axes.get_legend(), set[str]()
        wanted = set() if legend is None else {_told(text.get_text()) for text in legend.get_texts()}
        for trace in (*_maps(axes), *_bands(axes), *_lines(axes)):
            shown = trace["name"] in wanted - named
            named |= {trace["name"]}
            made.add_trace({**trace, **place, **({} if trace["type"] == "heatmap" else {"showlegend": shown})})
        made.update_layout(_axes(axes, mark))
        for words in _words(figure, axes, page):
            made.add_annotation(words)
        if legend is not None:
            box = legend.get_window_extent().transformed(figure.transFigure.inverted())
            corner = {"x": float(box.x0), "y": float(box.y1), "xanchor": "left", "yanchor": "top", "font": {"size": 11}}
            made.update_layout({f"legend{mark}": {**corner, "bgcolor": "rgba(0,0,0,0)"}})
    made.update_layout(
        autosize=True, height=round(height), paper_bgcolor=page, plot_bgcolor=page, showlegend=True,
        hovermode="closest", margin={"l": 0, "r": 0, "t": 0, "b": 0}, template=None,
    )  # fmt: skip
    return made.to_plotly_json()


def _words(figure: Figure, axes: Axes, page: str) -> list[dict[str, Any]]:
    """The title above the axes, and the names at the ends of lines."""
    box, ink = axes.get_position(), to_hex(axes.xaxis.label.get_color())
    place = {"xref": "paper", "yref": "paper", "showarrow": False, "xanchor": "left"}
    found = [
        {"text": _told(text), "x": float(box.x0), "y": float(box.y1), "yanchor": "bottom", "bgcolor": page,
         "font": {"size": 12, "color": ink}}
        for text in [axes.get_title(loc="left") or axes.get_title()] if text
    ]  # fmt: skip
    for text in (t for names in axes.artists if isinstance(names, EndLabels) for t in names.texts):
        x, y = figure.transFigure.inverted().transform(text.get_position())
        found.append({"text": _told(text.get_text()), "x": float(x), "y": float(y), "yanchor": "middle",
                      "font": {"size": 11, "color": to_hex(text.get_color())}})  # fmt: skip
    return [{**place, **words} for words in found]


def _axes(axes: Axes, mark: str) -> dict[str, Any]:
    """Where axes stand, between which ends, with which ticks."""
    box, found = axes.get_position(), {}
    ink = to_hex(axes.xaxis.label.get_color())
    for name, axis, ends, domain in (
        ("x", axes.xaxis, axes.get_xlim(), (box.x0, box.x1)),
        ("y", axes.yaxis, axes.get_ylim(), (box.y0, box.y1)),
    ):
        scale, ticks = axis.get_scale(), axis.get_majorticklocs()
        texts = axis.get_major_formatter().format_ticks(list(ticks))
        ends = [float(v) for v in (np.log10(ends) if scale == "log" else ends)]
        found[f"{name}axis{mark}"] = {
            "domain": [float(v) for v in domain],
            "range": ends,
            "type": "log" if scale == "log" else "linear",
            "title": {"text": _told(axis.label.get_text()), "font": {"size": 12, "color": ink}, "standoff": 4},
            "tickfont": {"size": 11, "color": ink},
            "anchor": f"{'y' if name == 'x' else 'x'}{mark}",
            "showgrid": False,
            "zeroline": False,
            "showline": True,
            "linecolor": ink,
            "ticks": "outside",
            **(
                {"tickmode": "array", "tickvals": [float(t) for t in ticks], "ticktext": [_told(t) for t in texts]}
                if any(texts) and scale != "log"
                else {}
            ),
        }
    return found


def _told(text: str) -> str:
    """A text without the marks of mathematics, which Plotly would need a further script for."""
    return re.sub(r"\\([a-z]+)", _greek, text.replace("$", "")).replace("\n", "<br>")


def _greek(found: re.Match[str]) -> str:
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {found[1].upper()}")
    except KeyError:
        return found[1]


def _name(artist: Any) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else _told(label)


def _lines(axes: Axes) -> list[dict[str, Any]]:
    found = []
    for line in axes.lines:
        at, to = line.get_xdata(), line.get_ydata()
        if line.get_transform() != axes.transData:  # a limit: it goes from end to end of one axis
            at, to = _across(axes, line)
        at, to = (np.asarray(v, dtype=float) for v in (at, to))
        dash, mark = _DASHES.get(str(line.get_linestyle())), _MARKS.get(str(line.get_marker()))
        how = "+".join(part for part, there in (("lines", dash), ("markers", mark)) if there)
        if not how:
            continue
        colour, name = to_hex(line.get_color()), _name(line)
        trace: dict[str, Any] = {
            "type": "scatter", "x": at.tolist(), "y": to.tolist(), "mode": how, "name": name,
            "hovertemplate": f"%{{x:.4g}}, %{{y:.4g}}<extra>{name}</extra>",
            "opacity": float(line.get_alpha() or 1.0), "line": {"color": colour, "width": 1.4 * line.get_linewidth()},
        }  # fmt: skip
        if dash:
            trace["line"]["dash"] = dash
        if mark:
            hollow = line.get_fillstyle() == "none"
            small = 0.5 if line.get_marker() == "." else 1.0
            trace["marker"] = {
                "symbol": mark + ("-open" if hollow or mark.endswith("thin") else ""),
                "size": 1.4 * small * line.get_markersize(),
                "color": colour,
            }
        found.append(trace)
    return found


def _across(axes: Axes, line: Line2D) -> tuple[Any, Any]:
    """The ends of `axhline` and `axvline`, and of what else is placed on an axis, on the data's axes."""
    points = line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
    return tuple(axes.transData.inverted().transform(points).T)


def _bands(axes: Axes) -> list[dict[str, Any]]:
    """Filled areas: bands between two lines, sets, bars."""
    areas: list[tuple[Any, Any, str]] = [
        (path, area.get_facecolor()[0], _name(area))
        for area in axes.collections
        if isinstance(area, PolyCollection) and len(area.get_facecolor())
        for path in area.get_paths()
    ]
    areas += [(p.get_path().transformed(p.get_patch_transform()), p.get_facecolor(), _name(p)) for p in axes.patches]
    found = []
    for path, shade, name in areas:
        red, green, blue, opacity = to_rgba(shade)
        colour = f"rgba({255 * red:.0f},{255 * green:.0f},{255 * blue:.0f},{opacity:.3g})"
        for corners in path.to_polygons():
            corners = np.asarray(corners)
            found.append(
                {
                    "type": "scatter",
                    "x": corners[:, 0].tolist(),
                    "y": corners[:, 1].tolist(),
                    "mode": "lines",
                    "fill": "toself",
                    "fillcolor": colour,
                    "line": {"width": 0},
                    "hoverinfo": "skip",
                    "name": name,
                }
            )
    return found


def _maps(axes: Axes) -> list[dict[str, Any]]:
    """Images and meshes of one number a cell."""
    found = []
    for image in (*axes.images, *(c for c in axes.collections if isinstance(c, QuadMesh))):
        values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if isinstance(image, AxesImage):
            left, right, low, high = image.get_extent()
            rows, columns = values.shape[:2]
            at = left + (np.arange(columns) + 0.5) * (right - left) / columns
            up = low + (np.arange(rows) + 0.5) * (high - low) / rows
            if image.origin == "upper":
                up = up[::-1]
        else:
            corners = np.asarray(image.get_coordinates())
            at, up = (0.5 * (v[1:] + v[:-1]) for v in (corners[0, :, 0], corners[:, 0, 1]))
        if values.shape != (len(up), len(at)):
            continue  # colours instead of numbers
        least, most = image.get_clim()
        shades = [[float(t), to_hex(image.cmap(t))] for t in np.linspace(0, 1, 12)]
        found.append(
            {
                "type": "heatmap",
                "x": at.tolist(),
                "y": up.tolist(),
                "z": values.tolist(),
                "colorscale": shades,
                "zmin": float(least),
                "zmax": float(most),
                "showscale": False,
                "name": "",
                "hovertemplate": "%{x:.4g}, %{y:.4g}: %{z:.4g}<extra></extra>",
            }
        )
    return found
