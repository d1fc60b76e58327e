"""Benchmarks of the MBPO loop: an update of the agent beside stable-baselines3's, a step of a refit beside `condition`'s."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpsafe.data import Transitions
from gpsafe.models import Ensemble, Training, refit
from gpsafe.planning.mbpo import SAC, Ring, branch, sampler, train
from gpsafe.systems.xmpsc import SimplePendulum

from .common import Record, Settings, benchmark, paired, ratio

BATCH = 128


def theirs() -> Callable[[int], Any] | None:
    """Updates of stable-baselines3's agent of the same sizes on a full buffer; None without the extra `rl`."""
    if importlib.util.find_spec("stable_baselines3") is None:
        return None
    from gymnasium import Env, spaces
    from stable_baselines3 import SAC as Library
    from stable_baselines3.common.logger import Logger

    class Sizes(Env):
        observation_space, action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

    nets = {"net_arch": [100, 100], "activation_fn": torch.nn.ReLU}
    agent = Library("MlpPolicy", Sizes(), ent_coef=0.2, buffer_size=1000, policy_kwargs=nets, device="cpu")  # type: ignore[arg-type]
    agent.set_logger(Logger(None, []))
    g = np.random.default_rng(0)
    assert agent.replay_buffer is not None
    for _ in range(1000):
        x, after, u = g.standard_normal((1, 2)), g.standard_normal((1, 2)), g.uniform(-1, 1, (1, 1))
        agent.replay_buffer.add(x, after, u, np.zeros(1), np.zeros(1), [{}])
    return lambda updates: agent.train(updates, BATCH)


@benchmark("sac")
def sac(settings: Settings) -> Record:
    """Agent updates a second at batch 128, (100, 100), one seed and stacks, drawing of batches and noise included."""
    updates = 10 if settings.quick else 100
    contestants: dict[str, Callable[[], Any]] = {}
    for count in (1, 2, 5):
        agent = SAC(2, 1, [-1.0], [1.0], range(count))
        rings = [Ring(1000, 2, 1) for _ in range(count)]
        for ring, g in zip(rings, agent.generators, strict=True):
            ring.extend(g.standard_normal((1000, 7)).astype(np.float32))
            ring.terminal[:] = 0
        calls = max(updates // count, 1)
        contestants[f"{count} seeds"] = lambda a=agent, r=rings, c=calls: train(
            a, r, None, c, group=1, real_ratio=1.0, batch=BATCH
        )
    library = theirs()
    if library is not None:
        contestants["stable-baselines3"] = lambda: library(updates // 10 or 1)
    seconds = paired(contestants, settings.rounds)
    made = {"1 seeds": updates, "2 seeds": updates // 2 * 2, "5 seeds": updates // 5 * 5}
    each = {name: [s / made.get(name, updates // 10 or 1) for s in values] for name, values in seconds.items()}
    record: Record = {name: {"updates_per_s": 1 / float(np.median(values))} for name, values in each.items()}
    for name, values in each.items():
        if name != "1 seeds":
            record[name]["one_seed_is_faster_by"] = ratio(values, each["1 seeds"])
    return record


@benchmark("refit")
def refits(settings: Settings) -> Record:
    """ms of a gradient step of all five members at batch 32, and µs of a virtual transition, on the pendulum with prior."""
    rows, plant = 320 if settings.quick else 6400, SimplePendulum()
    g = torch.Generator().manual_seed(0)
    x = plant.initial(rows, g)
    u = plant.input_box.sample(rows, g)
    data = Transitions(x, u, plant.advance(x, u, g))
    options = Training(epochs=1, steps=0, batch=32, learning_rate=1e-3, held_out=0.0, bootstrap=False, restart=False)
    record: Record = {}
    for hidden in ((10, 10), (20, 20)):
        model = Ensemble.create(2, 1, generator=g, hidden=hidden, prior=plant.prior(), training=options)
        contestants = {
            "condition": lambda m=model: m.condition(data),
            "refit": lambda m=model: refit(m, data),
        }
        seconds = paired(contestants, settings.rounds)
        steps = rows / 32
        learnt = refit(model, data)[0]
        step, policy = sampler(learnt), SAC(2, 1, [-1.0], [1.0], [0]).policy()
        draws = paired(
            {"branch": lambda s=step, p=policy: branch(s, plant, p, x.numpy(), 1, np.random.default_rng(0))},
            settings.rounds,
        )
        record[f"width {hidden[0]}"] = {
            "condition_ms": 1e3 * float(np.median(seconds["condition"])) / steps,
            "refit_ms": 1e3 * float(np.median(seconds["refit"])) / steps,
            "ratio": ratio(seconds["condition"], seconds["refit"]),
            "branch_us_per_row": 1e6 * float(np.median(draws["branch"])) / rows,
        }
    return record
