"""X-MPSC learners at toy size, and what their logs must add up to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import torch

from gpsafe.algorithms.certification import Certification
from gpsafe.algorithms.xmpsc import XMPSC
from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.models import GP
from gpsafe.planning.mbpo import Preset, Settings, preset
from gpsafe.rkhs import kernels
from gpsafe.safety.flight import SOURCES
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm

TASKS = {"pendulum": SimplePendulum, "cart-pole": SafeCartPole, "arm": TwoLinkArm, "drone": Drone}


def tiny(task: str, **changes) -> Preset:
    """The published settings of a task at toy size; everything happens at least twice."""
    small = {
        "warm_up": 120, "warm_up_epochs": 4, "epochs": 2, "steps": 32, "model_every": 16, "update_every": 8, "group": 2,
        "rollouts": 2, "hidden": (4,), "members": 2, "minibatch": 8, "delay": 1, "horizon": 3, "pretrain": False,
        "sac": Settings(hidden=(8, 8)), "real_ratio": 0.5,
    }  # fmt: skip
    return replace(preset(task), **(small | changes))


def learner(task: str = "pendulum", *, seed: int = 0, prior: bool = True, **changes) -> XMPSC:
    plant = replace(TASKS[task](), horizon=20)
    certification = changes.pop("certification", "published")
    known = {"prior": plant.prior()} if prior else {}
    return XMPSC.create(plant, tiny(task, **changes), certification=certification, seed=seed, **known)


def rows(one: XMPSC) -> str:
    return json.dumps([{k: v for k, v in row.items() if not k.endswith("_ms")} for row in one.logger.rows])


def trained(one: XMPSC, steps: int = 40) -> XMPSC:
    return one.learn(50, lambda now: now.steps < steps)


def account_for(one: XMPSC) -> None:
    """Each step is exactly one of the sources; warm-up stands apart; counts agree with the trajectories."""
    warm = [row for row in one.logger.rows if row["phase"] == "warm-up"]
    rest = [row for row in one.logger.rows if row["phase"] == "train"]
    assert warm and rest and len(warm) + len(rest) == one.told
    assert sum(row["steps"] for row in warm) >= one.preset.warm_up > sum(row["steps"] for row in warm[:-1])
    assert one.steps == sum(row["steps"] for row in rest) == rest[-1]["env_steps"]
    for row in rest:
        assert sum(row[f"from_{name}"] for name in SOURCES) == row["steps"]
        assert row["backed"] <= row["from_plan"] + row["from_stored"] + row["from_backup"]
        assert not row["guaranteed"]
        if one.certification is not None:
            assert 0 <= row["captured"] <= row["captured_of"] <= row["steps"] and row["certify_ms"] > 0
    for row, (states, inputs) in zip(one.logger.rows, one.history, strict=True):
        assert row["steps"] == len(inputs) == len(states) - 1
        assert row["violations"] in (0, 1) and (row["violations"] == 1 or row["steps"] == one.system.horizon)
        assert bool(one.system.input_box.contains(inputs).all())
    assert len(one.standing.real) == sum(row["steps"] for row in one.logger.rows)
    assert int(one.standing.real.terminal.sum()) == sum(row["violations"] for row in one.logger.rows)


def gaussian(mode: Literal["paper", "sound"], terminal: Literal["hull", "invariant"] = "invariant") -> XMPSC:
    """An exact process about the true known part: what is left to learn is 0."""
    plant = replace(SimplePendulum(observation_noise=0.0), horizon=20)
    gp = GP.create(
        kernels.rbf([2.0, 6.0, 2.0], 1e-4), 1e-2, nx=2, nu=1, noise_std=plant.noise_std, prior=plant.prior(scale=1.0)
    )
    bound = (
        Mixture(rkhs_norm=0.01, subgaussian=tuple(plant.noise_std.tolist()), delta=0.1)
        if mode == "sound"
        else Constant(value=2.0, rkhs_norm=(0.01, 0.01))
    )
    how = Certification(states=3, mode=mode, terminal=terminal, feedback=None, around=torch.tensor([0.4, 1.0]).double())
    return XMPSC(plant, ConfidenceSet(bound).update(gp), tiny("pendulum"), how, thinned=10)
