"""A picture follows its controls, with widgets and without; a missing extra is named."""

from __future__ import annotations

import gc
import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axis import XAxis
from PIL import Image

from gpsafe import plotting
from gpsafe.lab import Choice, Explorer, Slider, Tiles, bands, panels, prices
from gpsafe.lab import explorer as module
from gpsafe.lab.explorer import VIEW


def line(figure, *, n, shape):
    (axes,) = panels(figure)
    axes.plot([0, n], [0, 1 if shape == "up" else -1])
    axes.legend(["line"])


@pytest.fixture
def small():
    tiles = Tiles(
        "which", ("up", "down"), tint=lambda settings, value: "safe" if settings["shape"] == value else "faint"
    )
    return Explorer(line, (2.0, 1.0), n=Slider("n", (1, 2, 3), 2), shape=tiles)


def test_a_picture_is_a_function_of_the_settings(small):
    first = small.picture()
    assert first.png.startswith(b"\x89PNG") and small.picture(n=3).png != first.png
    assert small.picture(n=2, shape="up").png == first.png, "nothing of an earlier picture is left on the axes"


def test_moving_a_widget_changes_the_picture_and_the_tiles(small):
    pytest.importorskip("ipywidgets")
    grid, tiles, image = small.widget().children
    buttons, before = tiles.children[1].children, image.value
    grid.children[0].value = 3
    assert image.value == small.picture(n=3).png != before
    buttons[1].click()
    assert image.value == small.picture(n=3, shape="down").png
    assert [b.style.button_color for b in buttons] == [plotting.colour("faint"), plotting.colour("safe")]


def test_no_garbage_is_collected_before_an_answer_is_sent():
    pytest.importorskip("ipywidgets")
    running = []

    def draw(figure, *, n):
        running.append(gc.isenabled())
        if n == 3:
            raise ArithmeticError

    grid, _ = Explorer(draw, (2.0, 1.0), n=Slider("n", (1, 2, 3))).widget().children
    grid.children[0].value = 2
    with pytest.raises(ArithmeticError):
        grid.children[0].value = 3
    assert running == [True, False, False] and gc.isenabled()


def test_without_a_kernel_or_the_extra_the_first_picture_stands(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bundle = small._repr_mimebundle_()
    assert VIEW not in bundle and bundle["image/png"] == small.picture().png
    with pytest.raises(ImportError, match=r"needs ipywidgets: pip install 'gpsafe\[lab\]'"):
        small.widget()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Slider("n", ()), "at least one"),
        (lambda: Slider("n", (1, 2), 3), r"n in \[1, 2\]"),
        (lambda: Choice("n", (1, 2), shown=lambda v: "same"), "read differently"),
        (lambda: Explorer(line, (1, 1), n=3), "n to be a Control"),
    ],
)
def test_controls_that_cannot_be_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_settings_that_no_control_has_are_refused(small):
    with pytest.raises(ValueError, match="control in"):
        small.picture(m=1)
    with pytest.raises(ValueError, match="n in"):
        small.picture(n=7)


MOVES = st.lists(st.tuples(st.sampled_from((1, 2, 3)), st.sampled_from(("up", "down"))), min_size=1, max_size=4)


def fresh():
    found = Explorer(line, (2.0, 1.0), n=Slider("n", (1, 2, 3), 2), shape=Choice("shape", ("up", "down")))
    found.picture()
    return found


@settings(deadline=None, max_examples=4)
@given(MOVES)
def test_the_last_picture_does_not_depend_on_the_moves_before(moves):
    moved = fresh()
    for n, shape in moves:
        last = moved.picture(n=n, shape=shape).png
    assert last == fresh().picture(n=n, shape=shape).png


def odd(figure, *, n):
    """What a picture may do to its axes: none, none shown, a square, other ticks, another colour, a scale, an inset."""
    one, other, last = panels(figure, 1, 3)
    one.axis("on" if n % 2 else "off")
    one.plot([0, n], [0, 1])
    other.set_visible(n != 2)
    other.set_aspect("equal" if n == 3 else "auto")
    other.set_xlabel("n", color=plotting.colour("unsafe" if n > 2 else "safe"))
    other.fill_between([0, 1], [0, 0], [n, 1], color=plotting.colour("safe"))
    last.set(yscale="log" if n == 1 else "linear", ylim=(0.1, 10))
    last.set_xticks([0, 1], ["low", "high" if n > 1 else "up"])
    last.plot([0, 1], [1, n], label="line")
    last.legend()


@pytest.mark.parametrize(("draw", "controls"), [(line, {"shape": Choice("shape", ("up",))}), (odd, {})])
def test_two_layers_are_what_one_drawing_shows(draw, controls):
    moved = Explorer(draw, (6.0, 2.0), n=Slider("n", (1, 2, 3)), **controls)
    for n in (3, 1, 2, 3):
        shown = np.asarray(Image.open(io.BytesIO(moved.picture(n=n).png))).astype(int)
        with plotting.style(size=9.0):
            moved._pen.canvas.draw()
        away = np.abs(shown - np.asarray(moved._pen.canvas.buffer_rgba())[..., :3]).max(-1)
        assert (away > 4).mean() < 3e-4  # a fill that touches the frame may lie over the end of a tick


def test_control_a_frame_that_takes_no_notice_of_the_limits_is_seen(monkeypatch):
    wanted = fresh().picture(n=3).png
    monkeypatch.setattr(module, "_frame", lambda axes: ())
    assert fresh().picture(n=3).png != wanted


def calls(monkeypatch, owner, name):
    """How often a function is called from now on."""
    inner, count = getattr(owner, name), []
    monkeypatch.setattr(owner, name, lambda *a, **k: (count.append(1), inner(*a, **k))[1])
    return count


def test_a_move_draws_ticks_anew_only_where_they_differ(monkeypatch):
    moved, count = fresh(), calls(monkeypatch, XAxis, "draw")
    moved.picture(shape="down")  # other limits of y
    before = len(count)
    moved.picture(shape="down")
    assert (before, len(count)) == (1, 1)


@pytest.mark.parametrize(
    ("make", "owner", "name", "moves"),
    [
        (bands.explorer, bands, "histories", [{"n": 20}, {"bound": "fiedler"}, {"norm": 2.0}, {"delta": 0.5}, {"run": 3}]),
        (bands.explorer, bands, "random_function", [{"kernel": "Matérn 5/2"}, {"truth": "twice the norm"}]),
        (prices.width_explorer, prices, "greedy", [{"noise": 0.1}, {"scale": 2.0}, {"norm": 2.0}, {"horizon": 50}]),
        (prices.episode_explorer, prices.kernels, "cross", [{"norm": 2.0}, {"horizon": 50}]),
    ],
)  # fmt: skip
def test_a_move_computes_nothing_that_was_known(make, owner, name, moves, monkeypatch):
    monkeypatch.setattr(prices, "SCALES", (1.0, 2.0))
    monkeypatch.setattr(prices, "NOISES", (0.01, 0.1))
    explorer = make()
    pictures = {explorer.picture().png}
    count = calls(monkeypatch, owner, name)
    for move in moves:
        pictures.add(explorer.picture(**move).png)
    assert not count and len(pictures) == 1 + len(moves)
