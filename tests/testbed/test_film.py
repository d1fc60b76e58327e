"""Films of a plant with and without a filter: panels, frames in the colour of the source, the strip, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gpsafe.safety.flight import SOURCES as EVERY
from gpsafe.systems import SafeCartPole, SimplePendulum
from gpsafe.systems.scene import RED
from gpsafe.testbed import animate
from gpsafe.testbed import film as module
from gpsafe.testbed.film import COLOURS, Film, frame, save_film

SOURCES = ("plan", "stored", "backup", "soft")


def comparison() -> Film:
    """Without a filter the pendulum leaves its limits after two steps, with it it swings a little."""
    free = torch.tensor([[math.pi, 0.0], [math.pi, 6.0], [7.0, 6.0]], dtype=torch.float64)
    kept = torch.tensor([[math.pi + 0.1 * t, 0.5] for t in range(5)], dtype=torch.float64)
    return Film(SimplePendulum(), free, kept, SOURCES, "pendulum")


def colour(pixel: np.ndarray) -> np.ndarray:
    return np.asarray(pixel, float) / 255


def test_every_source_of_a_filter_has_a_colour():
    assert set(COLOURS) == set(EVERY)


def test_both_panels_are_framed_in_what_happened():
    film, size = comparison(), 64
    for step, source in ((1, "plan"), (2, "stored"), (4, "soft")):
        image = np.asarray(frame(film, step, size=size).convert("RGB"))
        assert image.shape == (animate.HEADER + size + size // 3, 2 * size, 3)
        below = animate.HEADER + size - 2  # in the lower border of the panels
        np.testing.assert_allclose(colour(image[below, size + 20]), COLOURS[source], atol=0.01)
        left = colour(image[below, 20])
        assert np.allclose(left, RED, atol=0.01) == (step >= 2)  # stands still outside its limits


def test_a_filtered_episode_that_leaves_is_framed_in_red_whatever_its_source():
    film = comparison()
    film = replace(film, free=film.kept, kept=film.free, sources=("plan", "plan"))
    image = np.asarray(frame(film, 4, size=64).convert("RGB"))
    np.testing.assert_allclose(colour(image[animate.HEADER + 62, 64 + 20]), RED, atol=0.01)


def test_shares_are_distances_to_the_nearest_limit_in_the_limited_coordinates():
    film = comparison()
    shares = film.shares(film.free)
    assert shares[-1] > 1.0 >= shares[1] == pytest.approx(0.75)
    cart = torch.tensor([[0.0, 50.0, 0.0, 9.0], [1.2, 0.0, -math.radians(12.0), 0.0]], dtype=torch.float64)
    assert Film(SafeCartPole(), cart, cart, ("plan",)).shares(cart).tolist() == pytest.approx([0.0, 1.0])


def test_the_strip_goes_up_to_the_step_and_has_the_limit_in_red():
    film = comparison()
    first, last = (module._strip(film, step, 96).astype(float) / 255 for step in (1, 4))
    assert first.shape == (32, 192, 3)
    row = round(32 * (1 - 1 / module.TOP))
    assert np.abs(last[row - 1 : row + 1, 150] - RED).max(-1).min() < 0.25
    greenish = np.abs(last - COLOURS["soft"]).max(-1) < 0.1
    assert greenish.any() and not (np.abs(first - COLOURS["soft"]).max(-1) < 0.1).any()


def test_the_film_has_a_frame_a_step_up_to_its_limit(tmp_path, monkeypatch):
    with Image.open(save_film(tmp_path / "a.gif", comparison(), size=64)) as image:
        assert (image.n_frames, image.size) == (5, (128, animate.HEADER + 64 + 21))  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "MAX_FRAMES", 3)
    with Image.open(save_film(tmp_path / "b.gif", comparison(), size=64)) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"free": torch.zeros(1, 2).double()}, r"free of shape \(t \+ 1 >= 2, 2\)"),
        ({"kept": torch.zeros(5, 3).double()}, "kept of shape"),
        ({"kept": torch.full((5, 2), math.nan).double()}, "finite"),
        ({"sources": ("plan",)}, "4 sources"),
        ({"sources": ("plan", "plan", "plan", "guess")}, "source"),
    ],
)
def test_what_is_no_comparison_is_refused(change, expected):
    with pytest.raises(ValueError, match=expected):
        replace(comparison(), **change)
