"""Theory §3.5: scenario tubes contain every trajectory of f* and of members at the very edge of the confidence set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe.checks import Budget, Check, Evidence, Sample
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.members import extremal_member
from gpsafe.cost.local_affine import AffineRange, Displacements, LocalAffine
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rollout import closed_loop, transitions
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.verdict import Verdict

PATHS = 40
RUNS = {"1d": (0, 4, 20, 40), "pendulum": (0, 5, 14, 24, 30)}  # policies that were run, by index
TESTED = {"1d": (2, 25, 45, 60), "pendulum": (2, 10, 18, 24, 32)}


@lru_cache(maxsize=2)
def _plant(name: str) -> tuple[RKHSTwin, AffinePolicies]:
    if name == "1d":
        return reference_1d(), reference_1d_policies()[0]
    return reference_pendulum(), reference_pendulum_policies()[0]


def _confidence(name: str, seed: int) -> ConfidenceSet:
    """The set after up to five runs: one posterior, so that its extremal members are members."""
    system, policies = _plant(name)
    noise_std = float(system.noise_std[list(system.outputs)][0])
    model = GP.create(
        system.kernels, noise_std**2, nx=system.nx, nu=1, noise_std=system.noise_std, outputs=system.outputs,
        prior=system.known,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for index in RUNS[name][: seed % (len(RUNS[name]) + 1)]:
        noise = sample_noise(system.noise_std, (system.horizon, 1, 1), generator)
        chosen = policies.select(torch.tensor([index]))
        states, inputs = closed_loop(system.mean, chosen, system.initial_state, noise)
        model = model.condition(transitions(states[0, 0], inputs[0, 0]))
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=noise_std, delta=0.1)
    return ConfidenceSet(bound).update(model)


def _shrunk(local: LocalAffine, cross: Displacements) -> AffineRange:
    """The control: a quarter of what the residual may differ from its mean."""
    found = _RANGE(local, cross)
    return replace(found, error=0.25 * found.error)


_RANGE = LocalAffine.range_outer


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """Tubes of one set, and the trajectories of f* and of two extremal members at a point of the mean path."""
    name = ("1d", "pendulum")[shard % 2]
    system, policies = _plant(name)
    policies = policies.select(torch.tensor(TESTED[name]))
    confidence = _confidence(name, shard // 2)
    model, horizon = confidence.model, system.horizon
    generator = torch.Generator().manual_seed(9_000 + shard)
    noise = sample_noise(system.noise_std, (horizon, 1, PATHS), generator)
    tube = ScenarioTube(task=Task.of(system), seed=shard)
    with mock.patch.object(LocalAffine, "range_outer", _shrunk if broken else _RANGE):
        tubes = tube.tubes(confidence, policies, noise)
    mean_path, mean_inputs = closed_loop(lambda x, u: model.predict(x, u).mean, policies, system.initial_state, noise)
    chosen, time = shard % policies.num, 1 + (3 * shard) % (horizon // 2)
    z = torch.cat([mean_path[chosen, 0, time], mean_inputs[chosen, 0, time]])
    members = [extremal_member(confidence.bound, model, z, sign) for sign in (1.0, -1.0)]
    worst, used, picture = -np.inf, [], {}
    for which, residual in enumerate([lambda v: system.residual_fn(v)[..., 0], *members]):

        def plant(x: Tensor, u: Tensor, residual: Any = residual) -> Tensor:
            return model.prior(x, u) + model.embed(residual(torch.cat([x, u], dim=-1)).unsqueeze(-1))

        states, _ = closed_loop(plant, policies, system.initial_state, noise)
        for t, part in enumerate(tubes.sets):
            follow = tubes.lost > t
            share = ((states[..., t, :] - part.center).abs() / part.radius.clamp_min(1e-9))[follow]
            if t > 0 and share.numel():
                worst = max(worst, float(share.max()))
                used.append(float(share.max()))
        picture[str(which)] = states[chosen, 0, :, 0].tolist()
    center = torch.stack([part.center[chosen, 0, 0] for part in tubes.sets])
    half = torch.nan_to_num(tubes.widths()[chosen, 0, :, 0], posinf=10.0)
    picture |= {"low": (center - half).tolist(), "high": (center + half).tolist()}
    last = torch.nan_to_num(tubes.widths()[..., -1, 0], posinf=1e3).median()
    return {
        "system": name, "data": model.num_data, "worst": worst, "used": float(np.mean(used)), "width": float(last),
        "picture": picture,
    }  # fmt: skip


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    worst = max(s["worst"] for s in samples)
    informed = [s for s in samples if s["data"] > 0]
    widths = {name: [s["width"] for s in informed if s["system"] == name] for name in ("1d", "pendulum")}
    told = ", ".join(f"{name} {np.median(v):.3f}" for name, v in widths.items() if v)
    trajectories = sum(3 * PATHS * len(TESTED[s["system"]]) for s in samples)
    witness = f"{trajectories} trajectories; median half-width of the last set once there are data: {told}"
    data = {
        "worst": [s["worst"] for s in samples],
        "data": [s["data"] for s in samples],
        "system": [s["system"] for s in samples],
        "width": [s["width"] for s in samples],
        "picture": max((s for s in samples if s["system"] == "pendulum"), key=lambda s: s["data"])["picture"],
    }
    return Evidence(trajectories, worst, Verdict(worst, worst, 1.0, tol=1e-7, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(9, 3.6)
    left, right = figure.subplots(1, 2)
    for axes, data, title in ((left, claim, "tubes"), (right, control, "control: a quarter of the width")):
        picture = data["picture"]
        steps = range(len(picture["low"]))
        axes.fill_between(steps, picture["low"], picture["high"], color="#0072B2", alpha=0.25, label="tube")
        for which, label, color in (
            ("0", "f*", "black"),
            ("1", "extremal, up", "#D55E00"),
            ("2", "extremal, down", "#009E73"),
        ):
            axes.plot(steps, picture[which][: len(steps)], color=color, linewidth=1, label=label)
        axes.set(xlabel="step", ylabel="first state", title=title)
    left.legend(fontsize="small")
    figure.tight_layout()


CHECKS = (
    Check(
        name="scenario-tubes",
        claim="The tube of a noise path contains the trajectory of f* and of every tested f ∈ F_n, ‖f‖_k ≤ B, under it.",
        source="theory §3.5, §5",
        assumptions=("rkhs_norm<=B (exact twins)", "f* ∈ F_n"),
        statistic="largest |x_t − centre|/half-width over members, policies, paths and steps; threshold 1",
        control="the affine enclosure of the residual keeps a quarter of its error term",
        shards={"quick": 12, "full": 80},
        control_shards={"quick": 6, "full": 12},
        sample=_sample,
        judge=_judge,
        plot=_plot,
    ),
)
