"""Constrained model-free baselines on many plants side by side. Nothing here is certified, no episode is called guaranteed."""

from __future__ import annotations

from typing import Any, get_args

from gpsafe import _require
from gpsafe.baselines.base import Baseline, BatchPolicy, Preset
from gpsafe.baselines.cpo import CPO
from gpsafe.baselines.lagrangian import TRPOLagrangian
from gpsafe.baselines.lbpo import LBPO
from gpsafe.baselines.onpolicy import Frame
from gpsafe.baselines.plants import Batch, Plant, VectorPlant
from gpsafe.baselines.ppo import PPOLagrangian
from gpsafe.baselines.safety_layer import SafetyLayer
from gpsafe.baselines.sqrl import SQRL

BASELINES: dict[str, type[Baseline]] = {
    "cpo": CPO,
    "trpo-lagrangian": TRPOLagrangian,
    "ppo-lagrangian": PPOLagrangian,
    "lbpo": LBPO,
    "sqrl": SQRL,
    "safety-layer": SafetyLayer,
}
EPOCHS = {"simple-pendulum": 1000, "safe-cartpole": 100, "two-link-arm": 1000, "drone": 250}
"""Published batches of 8000 steps."""


def create(
    name: str, plant: Plant, preset: Preset = "corrected", *, seed: int = 0, epochs: int | None = None, **changes: Any
) -> Baseline:
    """A baseline by its name.

    Args:
        name: a key of `BASELINES`.
        plant: an `Episodic` system or a `VectorPlant`.
        preset: "published": as the authors' code does it, defects and all; "corrected": as their papers say it.
        seed: of everything.
        epochs: batches after the warm-up or pre-training; None: the published number (100 on other plants; SQRL's 100 are of
            256 steps each; the safety layer's are as many times more as its batches of 2000 steps are smaller).
        changes: further arguments of the class.
    """
    kind = BASELINES[_require.one_of("baselines.create", "name", name, BASELINES)]
    _require.one_of("baselines.create", "preset", preset, get_args(Preset))
    if epochs is None:
        epochs = (
            100 if kind is SQRL else EPOCHS.get(getattr(plant, "name", ""), 100) * (4 if kind is SafetyLayer else 1)
        )
    return kind(plant, preset=preset, epochs=epochs, seed=seed, **changes)  # type: ignore[call-arg]


__all__ = [
    "BASELINES",
    "CPO",
    "LBPO",
    "SQRL",
    "Baseline",
    "Batch",
    "BatchPolicy",
    "Frame",
    "PPOLagrangian",
    "SafetyLayer",
    "TRPOLagrangian",
    "VectorPlant",
    "create",
]
