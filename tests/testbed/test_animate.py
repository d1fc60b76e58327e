"""GIFs of a plant that explores: size, frames, cells, limits, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.reference import reference_1d
from gpsafe.testbed import animate
from gpsafe.testbed.animate import Animation, save_gif


def wander(system, episodes: int = 3, steps: int = 6, scale: float = 2.0) -> torch.Tensor:
    noise = torch.randn(episodes, steps + 1, system.nx, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scale * noise.cumsum(1)


def frames(path) -> list[np.ndarray]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")))
        return found


def test_one_frame_a_state_and_two_panels_for_a_plane(tmp_path):
    shown = frames(save_gif(tmp_path / "a.gif", Pendulum(), wander(Pendulum()), title="pendulum", size=64))
    assert len(shown) == 3 * 7 and shown[0].shape == (64 + animate.HEADER, 128, 3)
    alone = frames(save_gif(tmp_path / "b.gif", reference_1d(), wander(reference_1d()), size=64))
    assert alone[0].shape == (64 + animate.HEADER, 64, 3)


def test_many_states_are_thinned_but_all_of_them_enter_their_cells(tmp_path, monkeypatch):
    system, states = Pendulum(), wander(Pendulum(), 4, 50, 0.4)
    panels: list[animate._Plane] = []

    class Spy(animate._Plane):
        def __init__(self, *args):
            super().__init__(*args)
            panels.append(self)

    monkeypatch.setattr(animate, "_Plane", Spy)
    assert len(frames(save_gif(tmp_path / "a.gif", system, states, size=48, max_frames=10))) == 10
    whole = animate._Plane(system, 48)
    whole.visit(states.reshape(-1, 2))
    assert np.array_equal(panels[0].seen, whole.seen) and np.array_equal(panels[0].bad, whole.bad)


def test_cells_wrap_the_angle_and_tell_costly_states_from_others():
    plane = animate._Plane(Pendulum(), 64)
    plane.visit(torch.tensor([[0.1, 1.0], [0.1 + 2 * math.pi, 1.0]], dtype=torch.float64))
    assert plane.seen.sum() == 1 and plane.bad.sum() == 0 and plane.seen[10, 9]
    plane.visit(torch.tensor([[0.1, 7.9], [0.1, 80.0]], dtype=torch.float64))  # beyond the plane: its edge
    assert plane.seen.sum() == 2 and plane.bad.sum() == 1 and plane.bad[10, 15]
    assert plane.limit == 6.0
    image = plane.frame(torch.tensor([[0.1, 1.0]], dtype=torch.float64)).astype(float)
    height = round((8 - 6) / 16 * 64)  # the line |ω| = 6 is red, above and below
    for row in (height, 63 - height):
        line = image[row - 1 : row + 2, 5:40]
        assert float((line[..., 0] - line[..., 2]).max()) > 60
    assert float((image[32, 5:20, 0] - image[32, 5:20, 2]).max()) < 5


def test_a_large_film_shrinks_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(animate, "MAX_BYTES", 9_000)
    path = save_gif(tmp_path / "a.gif", Pendulum(), wander(Pendulum(), 3, 9), size=80)
    assert path.stat().st_size <= 9_000 and 8 <= len(frames(path)) < 30
    monkeypatch.setattr(animate, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="a film of at most 100 bytes"):
        save_gif(tmp_path / "b.gif", Pendulum(), wander(Pendulum()), size=32, max_frames=9)
    assert not (tmp_path / "b.gif").exists()


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (torch.zeros(3, 7, 3, dtype=torch.float64), r"states of shape \(E, T \+ 1 >= 2, 2\)"),
        (torch.zeros(7, 2, dtype=torch.float64), "states of shape"),
        (torch.zeros(3, 1, 2, dtype=torch.float64), "states of shape"),
        (torch.full((1, 4, 2), math.nan, dtype=torch.float64), "finite states"),
    ],
)
def test_wrong_states_are_refused(states, expected):
    with pytest.raises(ValueError, match=expected):
        Animation(Pendulum(), states)
