"""A picture and its controls: `Explorer(draw, (10, 4), n=Slider("n", range(40), 10))`.

`draw(figure, n=…)` draws what the controls' values say, and nothing else decides on it. In a live notebook the
controls are widgets (the extra `lab`) and every move draws anew; where no kernel runs, the picture of the starting values
stands in their place.
"""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gpsafe import _require, plotting
from gpsafe.testbed.extras import needed

DPI = 100
SIZE = 9.0  # points of the text in pictures
WIDE = {"width": "100%", "max_width": "1000px"}
VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Control:
    """One argument of a picture.

    Args:
        label: its name beside the control.
        values: what it can be.
        start: what it is at first; the first value if None.
        shown: value → text.
    """

    label: str
    values: Sequence[Any]
    start: Any = None
    shown: Callable[[Any], str] = str

    def __post_init__(self) -> None:
        where, values = type(self).__name__, tuple(self.values)
        if not values or len({self.shown(v) for v in values}) != len(values):
            raise _require.fail(where, "values that read differently, at least one", [self.shown(v) for v in values])
        object.__setattr__(self, "values", values)
        if self.start is None:
            object.__setattr__(self, "start", values[0])
        self.require(self.start)

    def require(self, value: Any) -> Any:
        """A value that the control can have."""
        if value not in self.values:
            raise _require.fail(type(self).__name__, f"{self.label} in {list(self.values)}", repr(value))
        return value


class Slider(Control):
    """Ordered values."""


class Choice(Control):
    """A list to choose from."""


@dataclass(frozen=True)
class Tiles(Control):
    """Values as tiles to be clicked, at most `columns` in a row; the colour of a tile is that of the noun that `tint` gives for
    (settings, value).
    """

    tint: Callable[[Mapping[str, Any], Any], str] = lambda settings, value: "faint"
    columns: int = 27


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows, and what Plotly shows in its place where it can: one may zoom in and read values off."""

    png: bytes
    closer: Mapping[str, Any] | None = None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"image/png": self.png}
        if self.closer is not None:
            bundle[plotting.PLOTLY] = self.closer
        return bundle


def show(figure: Figure, *, dpi: float = DPI, closer: bool = False) -> Picture:
    """A figure as a notebook shows it: the same bytes each time.

    Args:
        figure: to be shown.
        dpi: of the picture.
        closer: whether one may zoom in and read values off (`gpsafe.plotting.closer`), where plotly is installed.
    """
    described = None
    if closer:
        with contextlib.suppress(ImportError):
            described = plotting.closer(figure)
    return Picture(plotting.save(figure, kind="png", dpi=dpi), described)


def panels(figure: Figure, rows: int = 1, columns: int = 1, **more: Any) -> list[Axes]:
    """The axes of a figure, row by row: made the first time, emptied later. Making them anew costs as much as drawing."""
    if not figure.axes:
        return list(np.ravel(figure.subplots(rows, columns, squeeze=False, **more)))
    for axes in figure.axes:
        for kind in (
            "collections",
            "lines",
            "patches",
            "images",
            "artists",
            "texts",
        ):  # contours take their numbers along
            for artist in list(getattr(axes, kind)):
                artist.remove()
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
        axes.set_prop_cycle(None)
        axes.relim()
        axes.autoscale(True)
    return list(figure.axes)


class _Pen:
    """Draws a figure in two layers, packed lightly: what counts here is how soon it stands on the screen.

    Below: page, ticks and names of the axes, which take half the time and are kept until one of them differs. Above: the rest.
    """

    def __init__(self, figure: Figure) -> None:
        figure.set_dpi(DPI)
        self.figure, self.canvas = figure, FigureCanvasAgg(figure)
        self._laid = False
        self._below: tuple[object, Any] = (None, None)

    def png(self) -> bytes:
        figure, renderer, buffer = self.figure, self.canvas.get_renderer(), io.BytesIO()
        if not self._laid:
            self.canvas.draw()  # lays out; the places found serve every later move
            figure.set_layout_engine("none")
            self._laid = True
        visible = [axes for axes in figure.axes if axes.get_visible()]
        for axes in visible:
            axes.apply_aspect()
        seen = [_frame(axes) for axes in visible]
        if self._below[0] != seen:
            renderer.clear()
            figure.patch.draw(renderer)
            for axes in visible:
                for part in (axes.patch, axes.xaxis, axes.yaxis) if axes.axison else ():
                    part.draw(renderer)
            self._below = seen, renderer.copy_from_bbox(figure.bbox)
        renderer.restore_region(self._below[1])
        for axes in visible:
            below = {axes.patch, axes.xaxis, axes.yaxis, *(() if axes.axison else axes.spines.values())}
            above = [artist for artist in axes.get_children() if artist not in below]
            for artist in sorted(above, key=lambda artist: artist.zorder):
                artist.draw(renderer)
        for artist in (*figure.lines, *figure.texts, *figure.legends):
            artist.draw(renderer)
        Image.fromarray(np.asarray(renderer.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
        return buffer.getvalue()


def _frame(axes: Axes) -> tuple[object, ...]:
    """All that decides how page, ticks and names of axes look."""
    sides = []
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = [axis.get_majorticklocs().tolist(), axis.get_minorticklocs().tolist()]
        labels = axis.get_major_formatter().format_ticks(ticks[0])
        name = (axis.label.get_text(), axis.label.get_color())
        sides.append((axis.get_visible(), axis.get_scale(), limits, ticks, labels, name))
    return (axes.axison, axes.get_position(original=False).bounds, axes.get_facecolor(), *sides)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """The collection of garbage, a fifth of a second once in some sixty pictures, waits until the answer has been sent."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _widgets() -> Any:
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(needed(error) or str(error), name="ipywidgets") from error
    return ipywidgets


class Explorer:
    """A picture that follows its controls.

    Args:
        draw: on a figure, which it asks `panels` for axes, with one keyword argument a control.
        size: of the figure, inches.
        controls: by the names of these arguments.
    """

    def __init__(self, draw: Callable[..., object], size: tuple[float, float], **controls: Control) -> None:
        for name, control in controls.items():
            _require.kind("Explorer", name, control, Control)
        self.draw, self.size, self.controls = draw, size, controls
        self._pen: _Pen | None = None

    @property
    def start(self) -> dict[str, Any]:
        """The values at first."""
        return {name: control.start for name, control in self.controls.items()}

    def picture(self, **changed: Any) -> Picture:
        """The picture for the starting values, some of them changed: all that happens when a control is moved."""
        settings = self.start
        for name, value in changed.items():
            _require.one_of("Explorer.picture", "control", name, self.controls)
            settings[name] = self.controls[name].require(value)
        # a title whose height is given need not be moved out of the way of ticks, which costs a fifth of the drawing
        with plotting.style(size=SIZE), matplotlib.rc_context({"axes.titley": 1.0}):
            pen = self._pen = self._pen or _Pen(plotting.figure(*self.size))
            self.draw(pen.figure, **settings)
            return Picture(pen.png())

    def widget(self) -> Any:
        """Controls above the picture, as one widget. Needs the extra `lab`."""
        kit = _widgets()
        settings, image = self.start, kit.Image(value=self.picture().png, format="png")
        image.layout.max_width = "100%"
        tiles: list[tuple[Tiles, list[Any]]] = []

        def move(name: str, value: Any) -> None:
            settings[name] = value
            for kind, buttons in tiles:
                _tint(kind, buttons, settings)
            with undisturbed():
                image.value = self.picture(**settings).png

        rows, simple = [], []
        for name, control in self.controls.items():
            if isinstance(control, Tiles):
                buttons = [kit.Button(description=control.shown(v), tooltip=control.shown(v)) for v in control.values]
                for button, value in zip(buttons, control.values, strict=True):
                    button.layout = kit.Layout(width="auto", height="24px", padding="0")
                    button.style.font_size = "11px"
                    button.on_click(lambda _, name=name, value=value: move(name, value))
                tiles.append((control, buttons))
                least = (
                    f"max(44px, {100 / control.columns:.4g}% - 4px)"  # as many columns as are wide enough to be read
                )
                columns = f"repeat(auto-fill, minmax({least}, 1fr))"
                box = kit.GridBox(buttons, layout=kit.Layout(grid_template_columns=columns, **WIDE))
                rows.append(kit.VBox([kit.Label(control.label), box]))
                continue
            made = kit.SelectionSlider if isinstance(control, Slider) else kit.Dropdown
            options = [(control.shown(v), v) for v in control.values]
            made = made(options=options, value=control.start, description=control.label)
            longest = max(len(text) for text, _ in options)
            made.layout.width, made.style.description_width = f"{max(310, 130 + 7 * longest)}px", "90px"
            made.observe(lambda change, name=name: move(name, change["new"]), "value")
            simple.append(made)
        for kind, buttons in tiles:
            _tint(kind, buttons, settings)
        grid = kit.HBox(simple, layout=kit.Layout(flex_flow="row wrap", **WIDE))
        return kit.VBox([grid, *rows, image])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"image/png": self.picture().png, "text/plain": "a picture with controls"}
        with contextlib.suppress(ImportError):
            bundle[VIEW] = self.widget()._repr_mimebundle_()[VIEW]
        return bundle


def _tint(control: Tiles, buttons: Sequence[Any], settings: Mapping[str, Any]) -> None:
    for button, value in zip(buttons, control.values, strict=True):
        noun = control.tint(settings, value)
        wanted = plotting.colour(noun)
        if button.style.button_color != wanted:
            button.style.button_color = wanted
            button.style.text_color = plotting.colour("ink" if noun in ("faint", "page") else "page")
