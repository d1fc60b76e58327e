"""The recordings of real plants that a study reads: whole, finite, split into runs. They are no part of the repository."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[3] / "shared" / "data"
RECORDINGS = importlib.import_module("gpsafe.experiments._report.recordings").RECORDINGS
SIZES = {"rc-car": (3, 4, 12_000), "qube": (4, 1, 20_000), "free-pendulum": (2, 0, 1000), "tanks": (1, 2, 2000)}


@pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"needs the recordings in {FOLDER} (docs/calibration.md says from where)"
)
@pytest.mark.parametrize("name", SIZES)
def test_a_recording_is_read_whole(name):
    data, labels = RECORDINGS[name](FOLDER)
    nx, nu, least = SIZES[name]
    assert (data.x.shape[1], data.u.shape[1]) == (nx, nu) and len(data) == len(labels) >= least
    assert len(set(labels)) >= 20
    same = torch.tensor([a == b for a, b in itertools.pairwise(labels)])
    follows = (data.x_next[:-1] == data.x[1:]).all(-1)
    if name == "rc-car":  # rows with glitches are left out of it
        assert float(data.x[:, 2].abs().max()) <= 15 and float(follows[same].double().mean()) > 0.99
    else:
        assert bool(follows[same].all())
