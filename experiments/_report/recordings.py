"""Recordings of real plants that others made, read from a folder beside the checkout; they are not part of this repository.

rc_car      a remote-controlled car, 30 Hz (lasgroup/simulation_transfer, MIT): body-frame speeds and turning rate, steering and
            throttle of this step and the last one; rows with |ω| > 15 rad/s, where the angle wrapped, are left out
qube        a rotary inverted pendulum in closed loop about upright, 100 Hz taken at 50 Hz (decargroup/closed_loop_koopman,
            MIT): angles and their differences, voltage
pendulum    a free pendulum, 100 Hz taken at 20 Hz (dynamicslab/MultiArm-Pendulum, MIT): angle, angular speed, no input
tanks       cascaded water tanks, 4 s (nonlinearbenchmark.org, free for research): the lower level, the one before, pump voltage
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpsafe.data import Transitions

Recording = tuple[Transitions, list[str]]


def _joined(runs: dict[str, tuple[np.ndarray, np.ndarray]]) -> Recording:
    """Of states (t + 1, nx) and inputs (t, nu) of every run."""
    parts = [(x[:-1], u, x[1:]) for x, u in runs.values()]
    labels = [name for name, (_, u) in runs.items() for _ in u]
    return Transitions(*(np.concatenate([part[i] for part in parts]) for i in range(3))), labels


def car(folder: Path) -> Recording:
    """Both recordings, in blocks of 200 rows."""
    parts, labels = [], []
    for name in ("train_1", "train_2"):
        with np.load(folder / "rc_car" / f"{name}.npz") as stored:
            seen, action, after = (stored[key].astype(float) for key in ("observation", "action", "next_observation"))
        turned = [_body(rows[:, 2], rows[:, 3:6]) for rows in (seen, after)]
        u = np.hstack([action, seen[:, 6:8]])
        kept = (np.abs(turned[0][:, 2]) <= 15) & (np.abs(turned[1][:, 2]) <= 15)
        parts.append([v[kept] for v in (turned[0], u, turned[1])])
        labels += [f"{name}/{i // 200}" for i in range(int(kept.sum()))]
    return Transitions(*(np.concatenate([part[i] for part in parts]) for i in range(3))), labels


def _body(angle: np.ndarray, speed: np.ndarray) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    ahead, aside = c * speed[:, 0] + s * speed[:, 1], c * speed[:, 1] - s * speed[:, 0]
    return np.stack([ahead, aside, speed[:, 2]], axis=1)


def qube(folder: Path) -> Recording:
    """Every run by itself."""
    runs = {}
    with np.load(folder / "qube" / "qube_100hz.npz") as stored:
        for name in (n for n in stored.files if n.startswith("run_")):
            rows = stored[name].astype(float)[::2]
            angles = rows[:, 3:5]
            state = np.hstack([angles[1:], (angles[1:] - angles[:-1]) / 0.02])
            runs[name] = (state, rows[1:-1, 7:8])
    return _joined(runs)


def swing(folder: Path) -> Recording:
    """Every run in blocks of 40 steps."""
    runs = {}
    with np.load(folder / "pendulum" / "free_swing_100hz.npz") as stored:
        for name in (n for n in stored.files if n.startswith(("id_", "vad_"))):
            rows = stored[name].astype(float)[::5]
            for i in range(0, len(rows) - 1, 40):
                piece = rows[i : i + 41]
                if len(piece) > 1:
                    runs[f"{name}/{i}"] = (piece, np.zeros((len(piece) - 1, 0)))
    return _joined(runs)


def tanks(folder: Path) -> Recording:
    """Estimation and validation, in blocks of 64 steps."""
    table = np.genfromtxt(folder / "tanks" / "cascaded_tanks.csv", delimiter=",", names=True)
    runs = {}
    for kind in ("Est", "Val"):
        level, volts = table[f"y{kind}"], table[f"u{kind}"]
        before = np.stack([volts[1:], level[:-1]], axis=1)
        for i in range(0, len(before) - 1, 64):
            piece = level[1 + i : 66 + i, None]
            if len(piece) > 1:
                runs[f"{kind}/{i}"] = (piece, before[i : i + len(piece) - 1])
    return _joined(runs)


RECORDINGS: dict[str, Callable[[Path], Recording]] = {
    "rc-car": car,
    "qube": qube,
    "free-pendulum": swing,
    "tanks": tanks,
}
