"""Gymnasium environments of the episodic plants: starts, measurements, the end of an episode and what it costs."""

import gymnasium
import numpy as np
import pytest
import torch

from gpsafe.systems import Episodic, SafeCartPole
from gpsafe.systems.envs import SystemEnv, make_env

NAMES = ["SimplePendulum", "SafeCartPole", "TwoLinkArm", "Drone"]
every_plant = pytest.mark.parametrize("name", NAMES)


def played(env: SystemEnv, seed: int, law) -> list[tuple]:
    env.reset(seed=seed)
    steps = []
    for _ in range(env.system.horizon):
        steps.append(env.step(law()))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


@every_plant
def test_resets_draw_the_published_starts_and_observations_are_measurements(name):
    env = gymnasium.make(f"gpsafe/{name}-v0").unwrapped
    assert isinstance(env, SystemEnv) and isinstance(env.system, Episodic)
    starts = []
    for seed in range(20):
        seen, info = env.reset(seed=seed)
        assert bool(env.system.initial_box.contains(torch.from_numpy(info["state"])))
        starts.append(info["state"])
        noisy = name in {"SimplePendulum", "Drone"}
        assert np.array_equal(seen, info["state"]) != noisy
        assert np.abs(seen - info["state"]).max() <= 0.081
    assert np.std(starts, axis=0).max() > 0.02


@every_plant
def test_reward_and_cost_of_a_step_are_those_of_the_true_state_it_leads_to(name):
    env = make_env(name)
    rng = np.random.default_rng(0)
    for seed in range(2):
        steps = played(env, seed, lambda: rng.uniform(-2, 2, env.system.nu))
        for _, reward, terminated, _, info in steps:
            x, u = torch.from_numpy(info["state"]), torch.from_numpy(info["applied"])
            assert reward == float(env.system.reward(x, u)) and bool(env.system.input_box.contains(u))
            assert info["cost"] == info["cost_next"] == float(env.system.cost(x)) == float(terminated)
            assert terminated == bool(env.system.terminated(x))
        assert len(steps) == env.system.horizon or steps[-1][2]
        assert steps[-1][3] == (len(steps) == env.system.horizon)


@pytest.mark.parametrize(("name", "action", "ends"), [("SafeCartPole", [0.0], 3), ("Drone", [0.0, 1.0, 0.0, 0.0], 3)])
def test_an_episode_that_leaves_the_limits_ends_there_costs_one_and_pays_the_penalty(name, action, ends):
    env, left = make_env(name), 0
    for seed in range(3):
        steps = played(env, seed, lambda: np.array(action))
        costs = [info["cost"] for *_, info in steps]
        if steps[-1][2]:
            left += 1
            assert sum(costs) == costs[-1] == 1.0 and len(steps) < env.system.horizon
            assert steps[-1][1] <= -100.0 < min(reward for _, reward, *_ in steps[:-1])
    assert left == ends


@every_plant
def test_the_backup_law_plays_a_whole_episode(name):
    env = make_env(name)
    seen, _ = env.reset(seed=4)
    for t in range(env.system.horizon):
        seen, _, terminated, truncated, info = env.step(env.system.backup(torch.from_numpy(seen)).numpy())
        assert not terminated and truncated == (t == env.system.horizon - 1) and info["cost"] == 0.0


@every_plant
def test_pictures_show_the_state(name):
    env = make_env(name, render_mode="rgb_array", image_size=128)
    env.reset(seed=0)
    pictures = [env.render()]
    for _ in range(25):
        env.step(np.full(env.system.nu, 0.6))
    pictures.append(env.render())
    first, second = (p.astype(int) for p in pictures)
    assert first.shape == (128, 128, 3) and (np.abs(first - second).max(-1) > 40).sum() > 20


def test_a_wide_start_can_be_asked_for():
    env = SystemEnv(SafeCartPole())
    _, info = env.reset(seed=0, options={"state": [1.0, 0.0, 0.1, 0.0]})
    assert info["state"].tolist() == [1.0, 0.0, 0.1, 0.0]
