"""Advantages, clipped updates and steps in a trust region beside those of stable-baselines3."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch

from gpsafe.baselines._nets import Net
from gpsafe.baselines._surrogate import Surrogate, advantages
from gpsafe.baselines.lagrangian import trust_region
from gpsafe.baselines.ppo import Clip, clipped

pytestmark = pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra 'rl'")


@pytest.mark.parametrize(("discount", "decay"), [(0.99, 0.95), (0.9, 1.0), (0.9, 0.0)])
def test_advantages_are_those_of_its_roll_out_buffer(discount, decay):
    """It has no V(s⁺) of its own: that of the next row counts, and a time-out's comes with the reward (`collect_rollouts`)."""
    from gymnasium.spaces import Box
    from stable_baselines3.common.buffers import RolloutBuffer

    random, steps, lanes, space = np.random.default_rng(0), 40, 3, Box(-1.0, 1.0, (1,))
    terminated, truncated = random.random((2, steps, lanes)) < 0.1
    truncated &= ~terminated
    ended, values, last = terminated | truncated, random.normal(size=(steps, lanes)), random.normal(size=lanes)
    after = np.where(ended, random.normal(size=(steps, lanes)), np.concatenate([values[1:], last[None]]))
    reward = random.normal(size=(steps, lanes))
    theirs = RolloutBuffer(steps, space, space, "cpu", gae_lambda=decay, gamma=discount, n_envs=lanes)
    theirs.rewards, theirs.values = reward + discount * after * truncated, values  # in float64, unlike what it collects
    theirs.episode_starts = np.concatenate([np.ones((1, lanes)), ended[:-1]]).astype(float)
    theirs.advantages = np.zeros((steps, lanes))
    theirs.compute_returns_and_advantage(torch.from_numpy(last), ended[-1])
    found = advantages(reward, values, after, terminated, ended, discount, decay)
    assert ended.any() and terminated.any() and truncated.any()
    np.testing.assert_allclose(found, theirs.advantages, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found + values, theirs.returns, rtol=0, atol=1e-12)


ROWS, HIDDEN, STD = 96, (16, 8), 0.4


def case(nu: int) -> tuple[Net, np.ndarray, np.ndarray, np.ndarray]:
    """A policy, states, actions that it drew, and what they are worth."""
    random = np.random.default_rng(1)
    net, rows = Net((3, *HIDDEN, nu)).randomise(random), random.normal(size=(ROWS, 3))
    drawn = net(rows)[-1] + STD * random.normal(size=(ROWS, nu))
    return net, rows, drawn, random.normal(size=ROWS)


def theirs(kind: Any, net: Net, rows: np.ndarray, drawn: np.ndarray, weight: np.ndarray, **options: Any):
    """Parameters of the actor, in our order, after `train` from the same weights on the same batch; and what it has logged.

    σ is fixed, and what it does to advantages is off.
    """
    import gymnasium
    from gymnasium.spaces import Box
    from stable_baselines3.common.logger import Logger

    class Spaces(gymnasium.Env):
        observation_space, action_space = Box(-9.0, 9.0, (rows.shape[1],)), Box(-9.0, 9.0, (drawn.shape[1],))

    policy = {"net_arch": {"pi": list(HIDDEN), "vf": [4]}, "ortho_init": False, "optimizer_kwargs": {"eps": 1e-8}}
    about = {"n_steps": ROWS, "normalize_advantage": False, "policy_kwargs": policy, "device": "cpu"}
    library = kind("MlpPolicy", Spaces(), **about, **options)
    del library.policy.log_std
    library.policy.log_std = torch.full((drawn.shape[1],), math.log(STD))
    linear = [m for m in library.policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)]
    layers = [*linear, library.policy.action_net]
    with torch.no_grad():
        for layer, (w, b) in zip(layers, net.layers, strict=True):
            layer.weight.copy_(torch.from_numpy(w.T.copy()))
            layer.bias.copy_(torch.from_numpy(b[0]))
        chances = library.policy.evaluate_actions(*(torch.from_numpy(v).float() for v in (rows, drawn)))[1]
    buffer = library.rollout_buffer
    buffer.observations, buffer.actions = (v[:, None].astype(np.float32) for v in (rows, drawn))
    buffer.log_probs, buffer.advantages = chances.numpy()[:, None], weight[:, None].astype(np.float32)
    buffer.full = True
    library.set_logger(Logger(None, []))
    np.random.seed(5)  # noqa: NPY002 (its shuffling is that of the whole process)
    library.train()
    flat = [p.detach().numpy() for layer in layers for p in (layer.weight.T.reshape(-1), layer.bias)]
    return np.concatenate(flat), library.logger.name_to_value


@pytest.mark.parametrize(
    "how",
    [
        Clip(1, ROWS, 1e-2, stop=9.0, norm=9.0),
        Clip(6, ROWS, 1e-2, stop=9.0, norm=9.0),
        Clip(4, ROWS // 3, 1e-2, stop=9.0, norm=0.3),
    ],
    ids=["one step", "beyond the clip", "mini-batches, cut gradients"],
)
def test_a_clipped_update_is_that_of_its_ppo(how, monkeypatch):
    from stable_baselines3 import PPO

    net, rows, drawn, weight = case(2)
    sizes = {"batch_size": how.part, "n_epochs": how.passes, "learning_rate": how.rate, "vf_coef": 0.0}
    wanted, told = theirs(PPO, net, rows, drawn, weight, clip_range=how.clip, max_grad_norm=how.norm, **sizes)
    seen, norms, start, step = [], [], net.flat.copy(), Net.step

    def spy(self, gradient, rate):
        seen.append(self.flat.copy()), norms.append(np.linalg.norm(gradient))
        step(self, gradient, rate)

    monkeypatch.setattr(Net, "step", spy)
    local = Surrogate(net, rows, drawn, STD)
    assert clipped(local, weight, np.random.RandomState(5), how)[0] == how.passes  # type: ignore[arg-type]
    assert len(seen) == how.passes * (ROWS // how.part)
    moved = np.abs(net.flat - start).max()
    np.testing.assert_allclose(net.flat, wanted, rtol=0, atol=1e-5 * moved)
    if how.part < ROWS:
        assert max(norms) <= how.norm + 1e-6 and sum(n > how.norm - 1e-4 for n in norms) > 3  # most are cut
        return
    net.flat[:] = seen[-1]
    _, ratio, _ = local.now()
    beyond = (weight > 0) & (ratio > 1.2) | (weight < 0) & (ratio < 0.8)
    assert beyond.any() == (how.passes > 1)
    ours = np.minimum(ratio * weight, ratio.clip(0.8, 1.2) * weight).mean()
    assert abs(ours + told["train/loss"]) < 1e-6


@pytest.mark.parametrize("radius", [1e-3, 3.0])
def test_a_step_in_a_trust_region_is_that_of_its_trpo(radius, monkeypatch):
    """Every row four times, since our Fisher matrix is that of every fourth; its solver begins at random, ours at 0.

    One input: it takes the mean of the divergences of several where the divergence is their sum.
    """
    from sb3_contrib import TRPO

    net, rows, drawn, weight = case(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.zeros_like)
        options = {
            "target_kl": radius,
            "cg_max_steps": 10,
            "cg_damping": 0.1,
            "n_critic_updates": 1,
            "batch_size": ROWS,
        }
        wanted, told = theirs(TRPO, net, rows, drawn, weight, **options)
    start, local = net.flat.copy(), Surrogate(net, *(v.repeat(4, 0) for v in (rows, drawn)), STD)
    share, divergence = trust_region(local, weight.repeat(4), radius)
    assert told["train/is_line_search_success"] and (share < 1) == (radius > 1)
    moved = np.abs(net.flat - start).max()
    np.testing.assert_allclose(net.flat, wanted, rtol=0, atol=1e-4 * moved)
    assert divergence == pytest.approx(told["train/kl_divergence_loss"], rel=1e-4)
