"""Gaussian tubes: what remains of a trajectory without its linear-Gaussian part stays in the zonotopes, for f* and for
members at the very edge of the confidence set (`gpsafe.cost.gaussian_tube`).

The first pieces are plants in which one term of the tube's step leads (`proofs_checks._edges`), with noise at the very edge
of the box in which the linearisation is enclosed where that is the term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence import ConfidenceSet
from gpsafe.cost.gaussian_tube import GaussianTube, Stage
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import sample_noise
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import graded, tube_grades
from ._edges import COMMON, Edge, edge, share
from .scenario_tubes import PATHS, TESTED, _confidence, _members, _plant, _shrunk

EDGES = (*COMMON, "curved by noise")
KAPPA = 5.0


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
        worst = worst_of(worst, float(share.masked_fill(~counted.unsqueeze(-1), 0.0).max()))
    return worst, float(alive.double().mean())


def _edge_sample(found: Edge) -> Sample:
    """The share of the last Z that the members of an edge use; the noise is within rounding of the edge of its box."""
    noise_std = (found.noise.abs().amax(0) / (KAPPA * (1 - 1e-9))).clamp_min(1e-12)
    tube = GaussianTube(task=found.task(noise_std), width=KAPPA, order=found.order)
    stages = list(tube.stages(found.confidence, found.policies))
    nu = torch.zeros_like(found.initial_state)
    for before, stage, noise in zip(stages, stages[1:], found.noise, strict=False):
        unit = torch.linalg.lstsq(before.factor[0], nu[:, None]).solution[:, 0] if bool((nu != 0).any()) else nu
        if float(unit.abs().max()) > KAPPA:
            raise ValueError(
                f"gaussian-tubes: expected noise inside its box of {KAPPA} deviations, got {unit.tolist()}"
            )
        nu = stage.moved[0] @ unit + noise
    last = stages[-1]
    gap = found.reached() - float(nu @ found.normal)
    worst = share(last.sure.center[0], last.sure.support(found.normal[None])[0, 0], gap, found.normal)
    return {"system": "edge", "data": 0, "worst": [0.0 if bool(last.lost[0]) else worst], "kept": 1.0}


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """Tubes of one set, and the trajectories of f* and of two members at the edge of F_n."""
    with mock.patch.object(LocalAffine, "range_outer", _shrunk) if broken else nullcontext():
        return _edge_sample(edge(EDGES[shard])) if shard < len(EDGES) else _learned_sample(shard - len(EDGES) + 2)


def _learned_sample(shard: int) -> Sample:
    name = ("1d", "pendulum")[shard % 2]
    system, policies = _plant(name)
    policies = policies.select(torch.tensor(TESTED[name]))
    confidence = _confidence(name, shard // 2)
    model, horizon = confidence.model, system.horizon
    noise = sample_noise(system.noise_std, (horizon, 1, PATHS), torch.Generator().manual_seed(19_000 + shard))
    tube = GaussianTube(task=Task.of(system), width=KAPPA)
    stages = list(tube.stages(confidence, policies))
    chosen, last = shard % policies.num, 2 + (3 * shard) % (horizon // 2)
    members = _members(confidence, policies, system.initial_state, noise[:last, 0, 0], chosen)
    worst, kept = [], []
    for residual in (lambda v: system.residual_fn(v)[..., 0], *members):

        def plant(x: Tensor, u: Tensor, residual: Any = residual) -> Tensor:
            return model.prior(x, u) + model.embed(residual(torch.cat([x, u], dim=-1)).unsqueeze(-1))

        states, _ = closed_loop(plant, policies, system.initial_state, noise)
        used, inside = _shares(tube, stages, states, noise)
        worst.append(used)
        kept.append(inside)
    return {"system": name, "data": model.num_data, "worst": worst, "kept": float(np.mean(kept))}


_STEP = GaussianTube.step


def _less_kappa(factor: float) -> AbstractContextManager[object]:
    """R_t = {c_t} ⊕ Z_t ⊕ gκL_t[−1, 1]^nx, while the claim speaks of κ."""

    def step(self: GaussianTube, confidence: ConfidenceSet, stage: Stage) -> Stage:
        return _STEP(replace(self, width=max(factor * self.width, 1e-9)), confidence, stage)

    return mock.patch.object(GaussianTube, "step", step)


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    worst = worst_of(worst_of(s["worst"]) for s in samples)
    learned = [s for s in samples if s["system"] != "edge"]
    trajectories = sum(3 * PATHS * len(TESTED[s["system"]]) for s in learned) + 2 * (len(samples) - len(learned))
    kept = float(np.mean([s["kept"] for s in samples]))
    witness = f"{trajectories} trajectories, {100 * kept:.2f} % of them with all noise inside the boxes"
    data = {key: [s[key] for s in samples] for key in ("worst", "data")}
    return Evidence(trajectories, worst, Verdict(worst, worst, 1.0 + 1e-7, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for offset, data, label, noun in ((-0.2, claim, "tubes", "claim"), (0.2, control, "control", "control")):
        for n, values in zip(data["data"], data["worst"], strict=True):
            axes.plot([n + 3 * offset] * len(values), values, markersize=3, alpha=0.6, **plotting.look(noun).points)
        axes.plot([], [], label=label, **plotting.look(noun).points)
    plotting.limit(axes, 1.0)
    axes.set(xlabel="data", ylabel="largest |x − ν − c| / half-width", title="f* and members at the edge of F_n")
    axes.legend()


CHECKS = (
    Check(
        name="gaussian-tubes",
        claim="x_t − ν_t stays in c_t ⊕ Z_t for every f ∈ F_n while ν stays in its box, ν the linear-Gaussian part of the path",
        source="gpsafe.cost.gaussian_tube; theory §3.7",
        assumptions=("f in F_n", "rkhs_norm<=B", "noise N(0, Σ_w)"),
        statistic="largest share of Z_t's extent (interval hull, or one direction) that x_t − ν_t uses; threshold 1",
        control="a quarter of the width by which the residual may differ from its linearisation",
        shards={"quick": len(EDGES) + 6, "full": len(EDGES) + 80},
        control_shards={"quick": len(EDGES) + 2, "full": len(EDGES) + 12},
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=(
            *tube_grades(EDGES),
            graded("κ in R_t", ("curved by noise",), EDGES, _less_kappa),
        ),
    ),
)
