"""Theory §3.5: scenario tubes contain every trajectory of f* and of members at the very edge of the confidence set.

The first pieces are plants in which one term of the tube's step leads (`proofs_checks._edges`); the others are sets learned
from runs of the reference plants, with f* and the members that push the end of one path as far as they can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.members import extremal_member, member_share, worst_member
from gpsafe.cost import scenario_tube
from gpsafe.cost.local_affine import AffineRange, Displacements, LocalAffine
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import around, graded, tube_grades
from ._edges import COMMON, Edge, edge, share

EDGES = (*COMMON, "anchored", "in pieces")
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


def _members(confidence: ConfidenceSet, policies: AffinePolicies, start: Tensor, noise: Tensor, row: int) -> list[Any]:
    """Two members of F_n, that drive the first state of one path (noise (T, nx)) up and down; they are verified."""
    model, bound, last = confidence.model, confidence.bound, policies.select(torch.tensor([row]))
    sign = 1.0

    def objective(residual: Any) -> Tensor:
        def mean(x: Tensor, u: Tensor) -> Tensor:
            return model.prior(x, u) + model.embed(residual(torch.cat([x, u], dim=-1)))

        return sign * closed_loop(mean, last, start, noise[:, None, None, :])[0][0, 0, -1, 0]

    found = []
    z = torch.cat([start, last(start.reshape(1, 1, -1))[0, 0]])
    for sign in (1.0, -1.0):
        (f,) = worst_member(bound, model, objective, (extremal_member(bound, model, z, sign),), rounds=2)
        if member_share(bound, model, f) > 1.0:
            raise ValueError(f"scenario-tubes: expected a member of F_n, got share {member_share(bound, model, f)}")
        found.append(f)
    return found


def _edge_sample(found: Edge, pieces: int = 1) -> Sample:
    """The share of the last set that the members of an edge use. Two more paths, without noise, draw the anchor to them."""
    none = torch.zeros_like(found.noise)
    noise = torch.stack([none, none, found.noise], dim=1).unsqueeze(1)
    tube = ScenarioTube(task=found.task(), seed=0, order=found.order, anchors=1, pieces=pieces)
    tubes = tube.tubes(found.confidence, found.policies, noise)
    support = tubes.sets[-1].support(found.normal[None])[0, -1, 0]
    worst = share(tubes.sets[-1].center[0, -1], support, found.reached(), found.normal)
    return {"system": "edge", "worst": worst if int(tubes.lost[0, -1]) > found.steps else 0.0}


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """Tubes of one set, and the trajectories of f* and of two members at the edge of F_n."""
    with mock.patch.object(LocalAffine, "range_outer", _shrunk) if broken else nullcontext():
        if shard < len(EDGES):
            return _edge_sample(edge(EDGES[shard]), 4 if EDGES[shard] == "in pieces" else 1)
        return _learned_sample(shard - len(EDGES) + 2)


def _learned_sample(shard: int) -> Sample:
    name = ("1d", "pendulum")[shard % 2]
    system, policies = _plant(name)
    policies = policies.select(torch.tensor(TESTED[name]))
    confidence = _confidence(name, shard // 2)
    model, horizon = confidence.model, system.horizon
    generator = torch.Generator().manual_seed(9_000 + shard)
    noise = sample_noise(system.noise_std, (horizon, 1, PATHS), generator)
    tube = ScenarioTube(task=Task.of(system), seed=shard, pieces=(1, 4)[shard // 2 % 2])
    tubes = tube.tubes(confidence, policies, noise)
    chosen, last = shard % policies.num, 2 + (3 * shard) % (horizon // 2)
    members = _members(confidence, policies, system.initial_state, noise[:last, 0, 0], chosen)
    worst, used, picture = -np.inf, [], {}
    for which, residual in enumerate([lambda v: system.residual_fn(v)[..., 0], *members]):

        def plant(x: Tensor, u: Tensor, residual: Any = residual) -> Tensor:
            return model.prior(x, u) + model.embed(residual(torch.cat([x, u], dim=-1)).unsqueeze(-1))

        states, _ = closed_loop(plant, policies, system.initial_state, noise)
        for t, part in enumerate(tubes.sets):
            follow = tubes.lost > t
            part_used = ((states[..., t, :] - part.center).abs() / part.radius.clamp_min(1e-9))[follow]
            if t > 0 and part_used.numel():
                worst = worst_of(worst, float(part_used.max()))
                used.append(float(part_used.max()))
        picture[str(which)] = states[chosen, 0, :, 0].tolist()
    center = torch.stack([part.center[chosen, 0, 0] for part in tubes.sets])
    half = torch.nan_to_num(tubes.widths()[chosen, 0, :, 0], posinf=10.0)
    picture |= {"low": (center - half).tolist(), "high": (center + half).tolist()}
    wide = torch.nan_to_num(tubes.widths()[..., -1, 0], posinf=1e3).median()
    return {
        "system": name, "data": model.num_data, "worst": worst, "used": float(np.mean(used)), "width": float(wide),
        "picture": picture,
    }  # fmt: skip


def _less_cover(pieces: Zonotope, factor: float) -> Zonotope:
    return replace(pieces, generators=factor * pieces.generators)


def _less_offset(found: tuple[LocalAffine, Tensor], factor: float) -> tuple[LocalAffine, Tensor]:
    return found[0], factor * found[1]


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    worst = worst_of(s["worst"] for s in samples)
    learned = [s for s in samples if s["system"] != "edge"]
    informed = [s for s in learned if s["data"] > 0]
    widths = {name: [s["width"] for s in informed if s["system"] == name] for name in ("1d", "pendulum")}
    told = ", ".join(f"{name} {np.median(v):.3f}" for name, v in widths.items() if v)
    trajectories = sum(3 * PATHS * len(TESTED[s["system"]]) for s in learned) + 2 * (len(samples) - len(learned))
    witness = f"{trajectories} trajectories; median half-width of the last set once there are data: {told}"
    data = {
        "edges": [s["worst"] for s in samples if s["system"] == "edge"],
        **{key: [s[key] for s in learned] for key in ("worst", "data", "system", "width")},
    }
    pendulum = [s for s in learned if s["system"] == "pendulum"]
    if pendulum:
        data["picture"] = max(pendulum, key=lambda s: s["data"])["picture"]
    return Evidence(trajectories, worst, Verdict(worst, worst, 1.0 + 1e-7, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(9, 3.6)
    left, right = figure.subplots(1, 2)
    for axes, data, title in ((left, claim, "tubes"), (right, control, "control: a quarter of the width")):
        picture = data["picture"]
        steps = range(len(picture["low"]))
        plotting.band(axes, steps, picture["low"], picture["high"], label="tube")
        looks = plotting.looks(("truth", "extremal, up", "extremal, down"))
        for which, (label, look) in zip("012", looks.items(), strict=True):
            axes.plot(steps, picture[which][: len(steps)], linewidth=1, label=label, **look.line)
        axes.set(xlabel="step", ylabel="first state", title=title)
    plotting.label_ends(right)


CHECKS = (
    Check(
        name="scenario-tubes",
        claim="The tube of a noise path contains the trajectory of f* and of every tested f ∈ F_n, ‖f‖_k ≤ B, under it.",
        source="theory §3.5, §5.4",
        assumptions=("rkhs_norm<=B (exact twins)", "f* ∈ F_n"),
        statistic="largest share of a set's extent (interval hull, or one direction) that a trajectory uses; threshold 1",
        control="the affine enclosure of the residual keeps a quarter of its error term",
        shards={"quick": len(EDGES) + 6, "full": len(EDGES) + 80},
        control_shards={"quick": len(EDGES) + 2, "full": len(EDGES) + 12},
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=(
            *tube_grades(EDGES),
            graded("sides of the pieces", ("in pieces",), EDGES, around(scenario_tube, "cut", _less_cover)),
            graded("distance from the anchor", ("anchored",), EDGES, around(scenario_tube, "_anchored", _less_offset)),
        ),
    ),
)
