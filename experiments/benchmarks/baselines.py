"""Benchmark of the model-free baselines: CPU time of 8000 steps of learning, and what of SQRL's its updates alone take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from gpsafe.baselines import BASELINES, SQRL, create
from gpsafe.baselines.base import Preset
from gpsafe.planning.mbpo._nets import FLOAT
from gpsafe.systems import SafeCartPole

from .common import Record, Settings, benchmark

STEPS = 8000


def _cpu(run: Callable[[], Any], rounds: int) -> float:
    """Median seconds of this process."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def _updates(one: SQRL, rounds: int) -> float:
    """CPU seconds of the updates of a step in training: of the agent, and of its weights."""
    agent, random, nx = one._parts["agent"], np.random.default_rng(0), one.system.nx
    rows = one._parts["replay"].sample(random, 4 if one.preset == "published" else 128)[None]
    noise = random.standard_normal((1, 2, rows.shape[1], one.system.nu), FLOAT)

    def hundred() -> None:
        for _ in range(100):
            agent.update(rows, noise)
            agent.tune(rows[..., :nx], noise[:, 0], alpha_rate=1e-3, nu_rate=1e-4)

    return _cpu(hundred, rounds) / 100


@benchmark("baselines")
def baselines(settings: Settings) -> Record:
    """CPU seconds of 8000 steps of training on the cart-pole, after a first batch of it."""
    record: Record = {}
    rounds = 1 if settings.quick else settings.rounds
    for name in ("cpo", "sqrl") if settings.quick else BASELINES:
        for preset in get_args(Preset):
            small = {"sqrl": {"warm_up": 256, "pretraining": 1}, "safety-layer": {"pretraining": 1}}.get(name, {})
            one = create(name, SafeCartPole(), preset, seed=0, **small)  # type: ignore[arg-type]
            while not one.logger.rows or one.logger.rows[-1]["phase"] != "train":
                one.learn(1)
            batch = one.logger.rows[-1]["steps"]
            seconds = _cpu(lambda one=one: one.learn(1), rounds)
            found = record[f"{name}, {preset}"] = {"cpu_s": seconds * STEPS / batch}
            if isinstance(one, SQRL):
                found["of_which_updates"] = _updates(one, rounds) * STEPS
    return record
