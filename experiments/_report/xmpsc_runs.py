"""What the X-MPSC experiments share: whole runs in pieces that a stopped run goes on from, and who proposes inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpsafe.algorithms.xmpsc import XMPSC
from gpsafe.models import Ensemble, Training, identity_prior
from gpsafe.planning.mbpo import Preset, Settings
from gpsafe.safety.flight import SOURCES
from gpsafe.systems.drone import Drone
from gpsafe.systems.episodic import Episodic

SAVE_EVERY = 10  # episodes between two saves of a run that may be stopped
KEPT = ("episode", "phase", "steps", "reward", "violations", "change", "corrected", "captured", "captured_of")
KEPT += ("certify_ms", "disagreement", "backed", "terminal", "terminal_volume")


def toy(settings: Preset) -> Preset:
    """So small that a run takes seconds: to see that it runs."""
    small = {"steps": 32, "model_every": 16, "update_every": 16, "group": 1, "rollouts": 1, "warm_up_epochs": 2}
    return replace(settings, epochs=1, sac=Settings(hidden=(8,)), minibatch=8, **small)


def trained(one: XMPSC, budget: int, scratch: Path, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of all episodes until `budget` environment steps after the warm-up; goes on from what stands in `scratch`."""
    if (scratch / "learner.json").exists():
        one.load(scratch)
    while one.steps < budget:
        one.learn(SAVE_EVERY, lambda now: now.steps < budget)
        one.save(scratch)
        told(f"{one.steps} of {budget} steps")
    names = (*KEPT, *(f"from_{name}" for name in SOURCES))
    return [{name: row[name] for name in names if name in row} for row in one.logger.rows]


def tilt_error(plant: Drone) -> Tensor:
    """Three times the measurement noise in roll and pitch, (12,): with limits drawn in by once it was seen to violate."""
    error = torch.zeros(12, dtype=torch.float64)
    error[3:5] = 3 * plant.observation_noise
    return error


def untrained(
    system: Any, seed: int, steps: int, *, prior: bool = True, hidden: tuple[int, ...] = (10, 10), members: int = 5
) -> Ensemble:
    """An ensemble that takes at least so many gradient steps once it has data, on top of the published known part or not."""
    return Ensemble.create(
        system.nx,
        system.nu,
        generator=torch.Generator().manual_seed(7_000_003 + seed),
        members=members,
        hidden=hidden,
        prior=system.prior() if prior else identity_prior,
        training=Training(epochs=40, steps=steps),
    )


def proposals(
    system: Episodic, learner: str, push: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """(measured state, generator) ↦ u_L: uniform, or an adversary's `push(seen, drawn)`; both draw, and so meet one noise."""

    def propose(seen: Tensor, generator: torch.Generator) -> Tensor:
        drawn = system.input_box.sample(1, generator)[0]
        return drawn if learner == "uniform" else push(seen, drawn)

    return propose
