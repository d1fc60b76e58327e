"""Gaussian tubes: what remains of a trajectory without its linear-Gaussian part stays in the zonotopes, for f* and for
members at the very edge of the confidence set (`gpsafe.cost.gaussian_tube`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe.checks import Budget, Check, Evidence, Sample
from gpsafe.confidence.members import extremal_member
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.rollout import closed_loop
from gpsafe.systems.base import sample_noise
from gpsafe.systems.task import Task
from gpsafe.verdict import Verdict
from proofs_checks.scenario_tubes import _RANGE, PATHS, TESTED, _confidence, _plant, _shrunk


def _shares(tube: GaussianTube, stages: list, states: Tensor, noise: Tensor) -> tuple[float, float]:
    """Largest |x_t − ν_t − c_t| relative to Z_t while ν stays in its box, and the share of paths on which it does."""
    nu = torch.zeros_like(states[:, :, 0])
    alive = torch.ones(states.shape[:2], dtype=torch.bool)
    worst = 0.0
    for t in range(1, len(stages)):
        before, stage = stages[t - 1], stages[t]
        if t == 1:
            nu = noise[0].expand_as(nu)
        else:
            unit = torch.linalg.solve(before.factor.unsqueeze(1), nu.unsqueeze(-1))
            alive = alive & (unit.abs().amax((-2, -1)) <= tube.width)
            nu = (stage.moved.unsqueeze(1) @ unit).squeeze(-1) + noise[t - 1]
        gap = (states[:, :, t] - nu - stage.sure.center.unsqueeze(1)).abs()
        share = (gap - 1e-12).clamp_min(0.0) / stage.sure.radius.unsqueeze(1).clamp_min(1e-12)
        counted = alive & ~stage.lost.unsqueeze(-1)
        worst = max(worst, float(share.masked_fill(~counted.unsqueeze(-1), 0.0).max()))
    return worst, float(alive.double().mean())


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """Tubes of one set, and the trajectories of f* and of two extremal members at a point of the mean path."""
    name = ("1d", "pendulum")[shard % 2]
    system, policies = _plant(name)
    policies = policies.select(torch.tensor(TESTED[name]))
    confidence = _confidence(name, shard // 2)
    model, horizon = confidence.model, system.horizon
    noise = sample_noise(system.noise_std, (horizon, 1, PATHS), torch.Generator().manual_seed(19_000 + shard))
    tube = GaussianTube(
        task=Task.of(system),
    )
    with mock.patch.object(LocalAffine, "range_outer", _shrunk if broken else _RANGE):
        stages = list(tube.stages(confidence, policies))
    mean_path, mean_inputs = closed_loop(lambda x, u: model.predict(x, u).mean, policies, system.initial_state, noise)
    chosen, time = shard % policies.num, 1 + (3 * shard) % (horizon // 2)
    z = torch.cat([mean_path[chosen, 0, time], mean_inputs[chosen, 0, time]])
    members = [extremal_member(confidence.bound, model, z, sign) for sign in (1.0, -1.0)]
    worst, kept = [], []
    for residual in (lambda v: system.residual_fn(v)[..., 0], *members):

        def plant(x: Tensor, u: Tensor, residual: Any = residual) -> Tensor:
            return model.prior(x, u) + model.embed(residual(torch.cat([x, u], dim=-1)).unsqueeze(-1))

        states, _ = closed_loop(plant, policies, system.initial_state, noise)
        share, inside = _shares(tube, stages, states, noise)
        worst.append(share)
        kept.append(inside)
    return {"system": name, "data": model.num_data, "worst": worst, "kept": float(np.mean(kept))}


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    worst = max(max(s["worst"]) for s in samples)
    trajectories = sum(3 * PATHS * len(TESTED[s["system"]]) for s in samples)
    kept = float(np.mean([s["kept"] for s in samples]))
    witness = f"{trajectories} trajectories, {100 * kept:.2f} % of them with all noise inside the boxes"
    data = {"worst": [s["worst"] for s in samples], "data": [s["data"] for s in samples]}
    return Evidence(trajectories, worst, Verdict(worst, worst, 1.0, tol=1e-7, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for offset, data, label, color in ((-0.2, claim, "tubes", "#0072B2"), (0.2, control, "control", "#D55E00")):
        for n, values in zip(data["data"], data["worst"], strict=True):
            axes.plot([n + 3 * offset] * len(values), values, "o", color=color, markersize=3, alpha=0.6)
        axes.plot([], [], "o", color=color, label=label)
    axes.axhline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="data", ylabel="largest |x − ν − c| / half-width", title="f* and members at the edge of F_n")
    axes.legend()


CHECKS = (
    Check(
        name="gaussian-tubes",
        claim="x_t − ν_t stays in c_t ⊕ Z_t for every f ∈ F_n while ν stays in its box, ν the linear-Gaussian part of the path",
        source="gpsafe.cost.gaussian_tube; theory §3.5 with exact noise",
        assumptions=("f in F_n", "rkhs_norm<=B", "noise N(0, Σ_w)"),
        statistic="largest distance of x_t − ν_t from the tube's centre, over its half-width; threshold 1",
        control="a quarter of the width by which the residual may differ from its linearisation",
        shards={"quick": 12, "full": 80},
        control_shards={"quick": 6, "full": 12},
        sample=_sample,
        judge=_judge,
        plot=_plot,
    ),
)
