"""Baselines at toy size, and a plant of one dimension on which they are flown in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import gpsafe as gs
from gpsafe.baselines import Baseline, Frame, create
from gpsafe.planning.mbpo import Settings
from gpsafe.systems import as_episodic
from gpsafe.systems.episodic import Episodic


def integrator(x: Tensor, u: Tensor) -> Tensor:
    """x⁺ = x + 0.2 u."""
    return x + 0.2 * u


def push(x: Tensor, u: Tensor) -> Tensor:
    """More is better: the reward is at the wall."""
    return x[..., 0]


def toy(horizon: int = 20, noise: float = 1e-3) -> Episodic:
    """x⁺ = x + 0.2 u + w, |x| ≤ 1 or the episode ends, reward x⁺."""
    plant = gs.plant(
        integrator,
        x0=[0.0],
        horizon=horizon,
        noise_std=[noise],
        states=([-3.0], [3.0]),
        inputs=([-1.0], [1.0]),
        safe=([-1.0], [1.0]),
        reward=push,
    )
    return as_episodic(plant, gs.Box([-0.3], [0.3]), torch.neg)


def small(name: str, preset: str, system: Any = None, seed: int = 0, **changes: Any) -> Baseline:
    """A baseline whose batches take milliseconds."""
    frame = Frame(steps=120, plants=6, hidden=(8,), passes=1, parts=2)
    sizes: dict[str, dict[str, Any]] = {
        "lbpo": {"frame": frame, "critic_steps": 2},
        "safety-layer": {"frame": frame, "pretraining": 1, "pretraining_steps": 240},
        "sqrl": {
            "steps": 24,
            "warm_up": 60,
            "pretraining": 1,
            "plants": 6,
            "sac": Settings(hidden=(8,), learning_rate=1e-3),
        },
    }
    options = {**sizes.get(name, {"frame": frame}), **changes}
    return create(name, toy() if system is None else system, preset, seed=seed, epochs=4, **options)  # type: ignore[arg-type]


BASELINES = ("cpo", "trpo-lagrangian", "ppo-lagrangian", "lbpo", "sqrl", "safety-layer")
CASES: dict[str, Callable[..., Baseline]] = {
    f"{name}-{preset}": partial(small, name, preset) for name in BASELINES for preset in ("published", "corrected")
}
