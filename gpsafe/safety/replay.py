"""Replay buffers that store what was applied, for off-policy agents of stable-baselines3 behind a safety filter (extra `rl`).

    env = SafetyFilterWrapper(env, safety_filter)
    agent = SAC("MlpPolicy", env, replay_buffer_class=AppliedActions)

An off-policy agent learns Q(s, a) from transitions (s, a, r, s'). Behind a filter s' follows from the applied action, not from
the proposed one: with the proposed one in the buffer, the critic learns that it does not matter how far a proposal is from the
safe inputs, and that the plant is another one than it is. On-policy agents (PPO, A2C) must keep their own actions, whose
probabilities they need: to them the filter is a part of the environment. A penalty on ‖proposed − applied‖, both in
``info["filter"]``, may be added by a reward wrapper around the filter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from gpsafe import _require

try:
    from stable_baselines3.common.buffers import ReplayBuffer
except ImportError as error:
    raise ImportError("gpsafe.safety.replay needs stable-baselines3: pip install 'gpsafe[rl]'") from error


class AppliedActions(ReplayBuffer):
    """A replay buffer with ``info["filter"]["action"]`` of `SafetyFilterWrapper` in place of the agent's action.

    Actions are scaled as the agents scale theirs, action_space → [−1, 1]. An applied input outside the action space, by a
    backup law for which the agent has no room, lies outside [−1, 1].
    """

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        if not all("filter" in info for info in infos):
            raise _require.fail("AppliedActions.add", 'info["filter"] of a SafetyFilterWrapper', "none")
        applied = np.stack([np.asarray(info["filter"]["action"], np.float64) for info in infos])
        space = self.action_space
        assert isinstance(space, spaces.Box)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        scaled = 2.0 * (applied - low) / (high - low) - 1.0
        super().add(obs, next_obs, scaled.astype(space.dtype), reward, done, infos)
