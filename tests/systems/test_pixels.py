"""Images of plants: geometry against a loop over pixels, batches against single states, and Gymnasium's own checker."""

import functools
import math
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.systems.cartpole import CartPole
from gpsafe.systems.envs import PLANTS, make_env
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.pixels import PAPER, Capsules, Pixels, capsules, images, rasterise
from gpsafe.systems.reference import reference_1d

EXACT = 1e-12
line = functools.cache(reference_1d)


def drawn(seed: int, count: int, strokes: int) -> Capsules:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    ends = 2 * uniform(2, count, strokes, 2) - 1
    return Capsules(ends[0], ends[1], 0.3 * uniform(strokes) + 0.25, uniform(strokes, 3))


def by_hand(of: Capsules, n: int, size: int) -> np.ndarray:
    """The same picture, pixel by pixel."""
    image = np.tile(np.array(PAPER), (size, size, 1))
    for s in range(len(of.radius)):
        (ax, ay), (bx, by) = of.start[n, s].tolist(), of.end[n, s].tolist()
        length = (bx - ax) ** 2 + (by - ay) ** 2
        for row in range(size):
            for column in range(size):
                px, py = (column + 0.5) * 2 / size - 1, 1 - (row + 0.5) * 2 / size
                t = min(max(((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length, 0.0), 1.0)
                distance = math.hypot(px - ax - t * (bx - ax), py - ay - t * (by - ay))
                cover = min(max(0.5 + (float(of.radius[s]) - distance) * size / 2, 0.0), 1.0)
                image[row, column] += cover * (of.colour[s].numpy() - image[row, column])
    return image


@given(seeds(), st.integers(1, 3), st.integers(1, 3))
def test_the_rasteriser_agrees_with_a_loop_over_pixels(seed, count, strokes):
    of = drawn(seed, count, strokes)
    found = rasterise(of, size=7)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    for n in range(count):
        assert np.abs(found[n].numpy() - by_hand(of, n, 7)).max() <= EXACT


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_every_plant_is_seen_in_a_batch_as_alone_and_its_states_are_told_apart(plant):
    system = make_env(plant).system
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(4, system.nx, dtype=torch.float64, generator=generator) - 0.5
    x = system.initial_state + 0.2 * system.state_box.radius.clamp_max(2.0) * spread
    for size in (16, 32):
        found = images(system, x, size=size)
        assert found.shape == (4, size, size, 3) and found.dtype == torch.float64
        assert all(torch.equal(images(system, x[i : i + 1], size=size)[0], found[i]) for i in range(4))
        assert float((found[0] - found[1]).abs().max()) > 0.01


def test_a_hanging_pendulum_hangs_and_a_cart_stands_where_it_is():
    dark = 0.98 - images(Pendulum(), torch.tensor([[math.pi, 0.0], [0.0, 0.0]]).double(), size=32).amin(-1)
    assert float(dark[0, 16:].sum()) > 3 * float(dark[0, :16].sum())
    assert float(dark[1, :16].sum()) > 3 * float(dark[1, 16:].sum())
    cart = torch.zeros(2, 4, dtype=torch.float64)
    cart[:, 0] = torch.tensor([-0.5, 0.5])
    left, right = images(CartPole(), cart, size=32)
    assert torch.allclose(left, right.flip(1), atol=1e-9)  # mirror images


@given(st.floats(-1.8, 1.8))
def test_the_centroid_of_the_disc_is_the_state_of_a_plant_on_a_line(state):
    plant = line()
    dark = (torch.tensor(PAPER) - images(plant, torch.tensor([[state]]).double(), size=16)).sum(-1)[0]
    columns = (torch.arange(16).double() + 0.5) / 8 - 1
    found = float((dark.sum(0) * columns).sum() / dark.sum()) * 2.5
    assert abs(found - state) <= 0.06  # a fifth of a pixel


def test_pictures_are_differentiable_in_the_state():
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    of = capsules(line(), x)
    weight = torch.linspace(0, 1, 16, dtype=torch.float64).reshape(1, 1, 16, 1)
    (slope,) = torch.autograd.grad((rasterise(of, size=16) * weight).sum(), x)
    assert abs(float(slope)) > 0.01


@pytest.mark.parametrize("plant", ["Pendulum", "CartPole", "RKHS1D"])
@pytest.mark.parametrize("frames", [1, 2])
def test_gymnasium_checker_is_satisfied(plant, frames):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")  # it is a wrapper
        check_env(
            Pixels(gymnasium.make(f"gpsafe/{plant}-v0").unwrapped, size=16, frames=frames), skip_render_check=True
        )


def test_frames_are_stacked_with_the_newest_last():
    env = Pixels(make_env("RKHS1D"), size=16, frames=3)
    first, _ = env.reset(seed=0)
    assert all(np.array_equal(first[..., :3], first[..., 3 * k : 3 * k + 3]) for k in (1, 2))
    seen = [first[..., -3:]]
    for _ in range(3):
        observation, *_, info = env.step(np.ones(1))
        seen.append(observation[..., -3:])
    expected = images(env.unwrapped.system, torch.as_tensor(info["state"]).unsqueeze(0), size=16)[0]  # type: ignore[attr-defined]
    assert np.abs(seen[-1] / 255 - expected.numpy()).max() <= 0.5 / 255 + EXACT
    assert np.array_equal(observation, np.concatenate(seen[-3:], axis=-1))
    again, _ = env.reset(seed=0)
    assert np.array_equal(again, first)


def test_what_has_no_plant_and_what_is_no_state_is_refused():
    with pytest.raises(ValueError, match="Pixels"):
        Pixels(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match="capsules"):
        images(Pendulum(), torch.tensor([[math.nan, 0.0]]).double())
    with pytest.raises(ValueError, match="capsules"):
        images(Pendulum(), torch.zeros(2).double())
