"""A picture follows its controls, with widgets and without; a missing extra is named."""

from __future__ import annotations

import sys
import time

import pytest

from gpsafe import plotting
from gpsafe.lab import Choice, Explorer, Slider, Tiles, bands, panels, prices
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


@pytest.mark.parametrize(
    ("make", "moves"),
    [
        (
            bands.explorer,
            [{"n": 20}, {"bound": "fiedler"}, {"regularizer": 0.1}, {"kernel": "Matérn 5/2"}, {"delta": 0.5}],
        ),
        (prices.episode_explorer, [{"norm": 2.0}, {"noise": 0.1}, {"horizon": 50}]),
    ],
)
def test_an_answer_takes_less_than_a_tenth_of_a_second(make, moves):
    explorer, spent = make(), []
    explorer.picture()
    for move in moves:
        for _ in range(2):
            begun = time.process_time()
            explorer.picture(**move)
            spent.append(time.process_time() - begun)
    assert sorted(spent)[len(spent) // 2] < 0.1
