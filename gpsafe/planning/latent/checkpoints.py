"""A save every two minutes of the clock: what a stopped run loses."""

from __future__ import annotations

import time
from pathlib import Path

from gpsafe import _require
from gpsafe.planning.latent.agent import LatentAgent


class Checkpoint:
    """A pulse for `LatentAgent.learn`: saves the learner into a folder once so many seconds have passed since the last save.

    Args:
        folder: of the saves.
        seconds: between them; 0: after every update.
    """

    def __init__(self, folder: str | Path, seconds: float = 120.0) -> None:
        self.folder = Path(folder)
        self.seconds = _require.nonnegative("Checkpoint", "seconds", seconds)
        self._last = time.monotonic()
        self.saves = 0

    def __call__(self, agent: LatentAgent) -> None:
        """Saves, if it is time."""
        if time.monotonic() - self._last >= self.seconds:
            agent.save(self.folder)
            self._last, self.saves = time.monotonic(), self.saves + 1

    def resume(self, agent: LatentAgent) -> LatentAgent:
        """The learner where the last save left it, or as it is if there is none."""
        return agent.load(self.folder) if (self.folder / "learner.json").exists() else agent
