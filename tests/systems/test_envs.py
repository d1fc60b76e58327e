"""Gymnasium environments: the API's own checker, the theory's cost, reproducible noise, honest pictures."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from gpsafe.systems.base import sample_noise
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.envs import PLANTS, SystemEnv, make_env
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.reference import reference_1d

EPISODIC = {"SimplePendulum", "SafeCartPole", "TwoLinkArm", "Drone"}
every_plant = pytest.mark.parametrize("plant", sorted(PLANTS))
every_plant_of_the_theory = pytest.mark.parametrize("plant", sorted(set(PLANTS) - EPISODIC))


def run(env: gymnasium.Env, seed: int, steps: int | None = None) -> tuple[list, list[dict], tuple[bool, bool]]:
    """Observations and infos under fixed actions until the episode ends or `steps` are done."""
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=seed)
    observations, infos = [observation], []
    ended = (False, False)
    while not any(ended) and (steps is None or len(infos) < steps):
        action = rng.uniform(-1, 1, env.action_space.shape)
        observation, _, *flags, info = env.step(action)
        observations.append(observation)
        infos.append(info)
        ended = (flags[0], flags[1])
    return observations, infos, ended


@every_plant
@pytest.mark.parametrize("observation", ["state", "trig"])
def test_gymnasium_checker_is_satisfied_without_warnings(plant: str, observation: str) -> None:
    env = gymnasium.make(f"gpsafe/{plant}-v0", observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)


@pytest.mark.parametrize("plant", ["Pendulum", "CartPole", "DoubleIntegrator"])
def test_gymnasium_checker_is_satisfied_by_twins(plant: str) -> None:
    check_env(gymnasium.make(f"gpsafe/{plant}-v0", twin=True).unwrapped)


def test_module_prefix_imports_and_makes() -> None:
    env = gymnasium.make("gpsafe.systems.envs:gpsafe/Pendulum-v0", action_repeat=2, horizon=50)
    assert env.unwrapped.system.action_repeat == 2  # type: ignore[attr-defined]


@every_plant
def test_same_seed_gives_bit_equal_episode_and_another_seed_does_not(plant: str) -> None:
    first, second = make_env(plant), make_env(plant)
    a, b, c = run(first, 7)[0], run(second, 7)[0], run(first, 8)[0]
    assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    assert not all(np.array_equal(p, q) for p, q in zip(a, c, strict=False))


def test_resets_without_seed_continue_the_random_stream() -> None:
    def episodes(env: SystemEnv) -> list[np.ndarray]:
        env.reset(seed=3)
        ends = []
        for _ in range(2):
            ends.append(env.step(np.zeros(1))[0])
            env.reset()
        return ends

    a, b = episodes(make_env("Pendulum")), episodes(make_env("Pendulum"))
    assert np.array_equal(a, b)
    assert not np.array_equal(a[0], a[1])


@every_plant_of_the_theory
def test_episode_cost_is_the_sum_the_budget_bounds_and_ends_by_truncation_at_the_horizon(plant: str) -> None:
    env = make_env(plant)
    system = env.system
    env.reset(seed=0)
    states, costs, done = [system.initial_state], [], (False, False)
    push = torch.full((system.nu,), 0.6 if plant == "CartPole" else 1.0, dtype=torch.float64)
    while not any(done):
        _, reward, *flags, info = env.step(push.numpy())
        assert reward == float(system.reward(states[-1], push))
        states.append(torch.from_numpy(info["state"]))
        costs.append(info["cost"])
        assert info["cost_next"] == float(system.cost(states[-1]))
        done = (flags[0], flags[1])
    assert done == (False, True)
    assert len(costs) == system.horizon
    assert costs == system.cost(torch.stack(states[:-1])).tolist()
    if plant in {"RKHS1D", "DoubleIntegrator", "CartPole"}:
        assert sum(costs) > 0, "the push leaves the safe set"


def test_step_is_the_systems_mean_plus_noise_of_the_declared_size() -> None:
    env = make_env("Pendulum")
    env.reset(seed=0)
    gaps = []
    x = env.system.initial_state
    for _ in range(env.system.horizon):
        info = env.step(np.array([0.3]))[-1]
        x_next = torch.from_numpy(info["state"])
        gaps.append((x_next - env.system.mean(x, torch.tensor([0.3]).double())) / env.system.noise_std)
        x = x_next
    assert torch.allclose(torch.stack(gaps).std(0), torch.ones(2, dtype=torch.float64), atol=0.25)


def test_actions_outside_the_input_box_are_clipped() -> None:
    ends = []
    for action in (1.0, 50.0):
        env = make_env("CartPole")
        env.reset(seed=0)
        ends.append(env.step(np.array([action]))[0])
    assert np.array_equal(ends[0], ends[1])


def test_trig_observation_is_cosine_and_sine_in_place_of_the_angle() -> None:
    plain, trig = make_env("CartPole"), make_env("CartPole", observation="trig")
    start = {"state": [0.1, 0.7, -0.2, 0.3]}
    x, _ = plain.reset(seed=0, options=start)
    seen, _ = trig.reset(seed=0, options=start)
    np.testing.assert_allclose(seen, [x[0], np.cos(x[1]), np.sin(x[1]), x[2], x[3]], rtol=0, atol=1e-15)
    assert trig.observation_space.shape == (5,)
    assert SystemEnv(Pendulum().twin(), observation="trig").observation_space.shape == (3,)


def test_state_that_leaves_the_widened_box_truncates_and_stays_observable() -> None:
    system = DoubleIntegrator(horizon=1000)
    env = SystemEnv(system)
    env.reset(seed=0, options={"state": [19.9, 1.9]})
    observation, _, terminated, truncated, info = env.step(np.ones(1))
    assert (terminated, truncated, info["escaped"]) == (False, True, True)
    assert env.observation_space.contains(observation)
    assert info["state"][0] > env.observation_space.high[0]


@dataclass(frozen=True, eq=False)
class Ending(DoubleIntegrator):
    """Ends when the cart passes 0."""

    def terminated(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 0] > 0.0


def test_episode_terminates_only_if_the_system_says_so() -> None:
    assert run(SystemEnv(DoubleIntegrator()), 0)[2] == (False, True)
    env = SystemEnv(Ending(initial_state=torch.tensor([-0.01, 1.0])))
    env.reset(seed=0)
    assert env.step(np.zeros(1))[2] is True


@pytest.mark.parametrize("action", [np.array([np.nan]), np.array([np.inf]), np.zeros(2), np.zeros((1, 1)), np.zeros(0)])
def test_bad_actions_are_refused(action: np.ndarray) -> None:
    env = make_env("Pendulum")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"SystemEnv\.step: expected"):
        env.step(action)


def test_misuse_is_refused_in_one_line() -> None:
    env = make_env("Pendulum", render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1))
    with pytest.raises(ResetNeeded):
        env.render()
    with pytest.raises(ValueError, match="make_env: expected plant in"):
        make_env("Rocket")
    with pytest.raises(ValueError, match="SystemEnv: expected observation in"):
        make_env("Pendulum", observation="pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SystemEnv: expected render_mode in"):
        make_env("Pendulum", render_mode="human")
    with pytest.raises(ValueError, match=r"SystemEnv\.reset: expected options\['state'\] of shape"):
        env.reset(options={"state": [0.0]})
    with pytest.raises(ValueError, match=r"SystemEnv\.reset: expected finite options\['state'\]"):
        env.reset(options={"state": [0.0, np.nan]})


def picture(env: SystemEnv, state: list[float]) -> np.ndarray:
    env.reset(seed=0, options={"state": state})
    image = env.render()
    assert image is not None
    return image


@pytest.mark.parametrize(
    ("plant", "safe", "elsewhere", "unsafe"),
    [
        ("Pendulum", [3.1, 0.0], [1.0, 0.0], [3.1, 7.0]),
        ("CartPole", [0.0, 0.0, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0], [1.6, 0.0, 0.0, 0.0]),
        ("DoubleIntegrator", [0.0, 0.0], [0.5, 0.0], [1.2, 0.0]),
        ("RKHS1D", [0.0], [0.5], [1.2]),
        ("RKHS2D", [0.0, 0.0], [0.5, 0.4], [1.2, 0.0]),
    ],
)
def test_pictures_show_the_state_and_frame_an_unsafe_one_in_red(
    plant: str, safe: list[float], elsewhere: list[float], unsafe: list[float]
) -> None:
    env = make_env(plant, render_mode="rgb_array", image_size=128)
    image = picture(env, safe)
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    assert (np.abs(image.astype(int) - picture(env, elsewhere)).max(-1) > 40).sum() > 20
    assert np.array_equal(image, picture(env, safe))
    red = np.array([204, 59, 51])
    assert np.array_equal(picture(env, unsafe)[0, 0], red)
    assert not np.array_equal(image[0, 0], red)


def test_pendulum_is_drawn_where_it_is() -> None:
    env = make_env("Pendulum", render_mode="rgb_array", image_size=200)
    for angle, region in (
        (0.0, np.s_[:60, 80:120]),
        (np.pi, np.s_[-60:, 80:120]),
        (np.pi / 2, np.s_[80:120, -60:]),
    ):
        image = picture(env, [angle, 0.0])
        dark = image.min(-1) < 100
        assert dark[region].sum() > 100, "the tip is on the side the angle says (clockwise from upright)"
        assert dark.sum() < 0.2 * dark.size


def test_portrait_shades_exactly_the_unsafe_side() -> None:
    env = SystemEnv(reference_1d(), render_mode="rgb_array", image_size=200)
    image = picture(env, [-2.4]).astype(int)
    row = image[100]
    border = round((1.0 + 2.5) / 5.0 * 200)
    assert bool((row[border + 2 : -2, 1] < 230).all())
    assert bool((row[20 : border - 2, 1] > 230).all())


def test_no_render_mode_renders_nothing() -> None:
    env = make_env("Pendulum")
    env.reset(seed=0)
    assert env.render() is None


def test_noise_generator_is_not_shared_with_the_global_one() -> None:
    torch.manual_seed(0)
    a = torch.rand(3)
    torch.manual_seed(0)
    run(make_env("RKHS1D"), 1, steps=3)
    sample_noise(torch.ones(1).double(), (3,), torch.Generator().manual_seed(0))
    assert torch.equal(a, torch.rand(3))
