"""The tape of a known part, read once, kept, and compared with its function before every use."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache

import numpy as np
import torch

from gpsafe.planning.mpc._jets import evaluate
from gpsafe.systems._tape import Known, NotReadableError, Tape
from gpsafe.systems._trace import read


def tape_of(known: Known, nx: int, nu: int) -> Tape | None:
    """The tape of p if it can be read and agrees with p at drawn points, else None; kept for a few p."""
    if not isinstance(known, Hashable):
        return None
    for attempt in range(2):
        tape = _kept(known, nx, nu)
        if tape is None or agrees(tape, known, nx, nu):
            return tape
        if attempt == 0:  # p has changed since it was read (weights of a module, say)
            _kept.cache_clear()
    return None


@lru_cache(maxsize=32)
def _kept(known: Known, nx: int, nu: int) -> Tape | None:
    try:
        return read(known, nx, nu)
    except NotReadableError:
        return None


def agrees(tape: Tape, known: Known, nx: int, nu: int, *, points: int = 16, tolerance: float = 1e-10) -> bool:
    """Whether the tape's values are p's at points of sizes 0.1 to 10."""
    generator = torch.Generator().manual_seed(0)
    size = torch.logspace(-1, 1, points, dtype=torch.float64).unsqueeze(-1)
    z = size * torch.randn(points, nx + nu, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = known(z[:, :nx], z[:, nx:])
    if expected.shape != (points, nx):
        return False
    found = np.stack([evaluate(tape, point)[0] for point in z.numpy()])
    return bool(np.allclose(found, expected.numpy(), rtol=tolerance, atol=tolerance, equal_nan=True))
