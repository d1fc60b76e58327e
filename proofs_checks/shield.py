"""The shield's theorem: on f* ∈ F_n and |w| ≤ w̄ it always has an answer, and no state violates the constraint."""

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

from gpsafe.checks import Budget, Check, Evidence, Sample
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.members import extremal_member
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.local_affine import AffineRange, Displacements, LocalAffine
from gpsafe.cost.plan_tube import PlanTube
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rollout import closed_loop, transitions
from gpsafe.sets import Box
from gpsafe.shield import Shield
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.tracking import Tracking
from gpsafe.verdict import Verdict

RUNS = (5, 14, 22, 28)
HANGING = 12  # set-point 0
BOX = 3.0  # w̄ in standard deviations
LEVELS = (1.0, 0.7, 0.5, 0.35, 0.2, 0.1)
LENGTHS = (8, 4, 2, 1)


@lru_cache(maxsize=1)
def _plant() -> tuple[RKHSTwin, AffinePolicies]:
    return reference_pendulum(), reference_pendulum_policies()[0]


def _bounded(noise: Tensor, radius: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(noise, -radius), radius)


def _confidence(runs: int, generator: torch.Generator) -> ConfidenceSet:
    system, policies = _plant()
    model = GP.create(
        system.kernels, 1e-4, nx=2, nu=1, noise_std=system.noise_std, outputs=system.outputs, prior=system.known
    )
    for index in RUNS[:runs]:
        noise = _bounded(sample_noise(system.noise_std, (system.horizon, 1, 1), generator), BOX * system.noise_std)
        chosen = policies.select(torch.tensor([index]))
        states, inputs = closed_loop(system.mean, chosen, system.initial_state, noise)
        model = model.condition(transitions(states[0, 0], inputs[0, 0]))
    return ConfidenceSet(Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)).update(model)


def _blind(local: LocalAffine, cross: Displacements) -> AffineRange:
    """The control: the posterior mean is taken for the truth."""
    found = _RANGE(local, cross)
    return replace(found, error=0.0 * found.error)


_RANGE = LocalAffine.range_outer


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """One episode of a planner that always pushes towards the constraint, as hard as the shield allows."""
    system, policies = _plant()
    generator = torch.Generator().manual_seed(4_000 + shard)
    confidence = _confidence(2 + shard % 3, generator)
    model, constraint = confidence.model, system.cost
    assert isinstance(constraint, IndicatorCost)
    judge = PlanTube(
        fallbacks=policies.select(torch.tensor([HANGING])),
        task=Task.of(system),
        noise_radius=(0.0 if broken else BOX) * system.noise_std,
        input_box=system.input_box,
        anchors=AnchorGrid.create(Box(vector(-2.5, -8.0, -1.0), vector(2.5, 8.0, 1.0)), vector(0.2, 2.0, 0.25)),
        landing=(Box(vector(-0.2, -0.8), vector(0.2, 0.8)),),
    )
    tracking = Tracking(brakes=judge.fallbacks, authority=0.8, state_weight=vector(10.0, 1.0), input_weight=vector(1.0))
    candidates = vector(*LEVELS).repeat_interleave(len(LENGTHS)).reshape(-1, 1, 1).expand(-1, max(LENGTHS), 1)
    lengths = torch.tensor(LENGTHS).repeat(len(LEVELS))
    sign = (0.0, 1.0, -1.0)[shard % 3]  # f*, or a member of F_n at its very edge
    residual = system.residual_fn
    if sign:
        edge = extremal_member(confidence.bound, model, vector(0.9, 0.5, 0.3), sign)

        def residual(z: Tensor) -> Tensor:
            return edge(z).unsqueeze(-1)

    radius = BOX * system.noise_std
    noise = _bounded(sample_noise(2.0 * system.noise_std, (system.horizon,), generator), radius)
    if shard % 4 == 3:
        noise = radius.expand_as(noise)
    x, states, sources, silent = system.initial_state, [system.initial_state], [], 0
    with mock.patch.object(LocalAffine, "range_outer", _blind) if broken else nullcontext():
        shield = Shield.start(judge, confidence, x, tracking=tracking, assume=True)
        assert isinstance(shield, Shield)
        for t in range(system.horizon):
            decision, shield = shield.decide(x, candidates, lengths)
            z = torch.cat([x, decision.u])
            x = model.prior(x, decision.u) + model.embed(residual(z.unsqueeze(0)))[0] + noise[t]
            states.append(x)
            sources.append(decision.source)
            silent += decision.falsified is None
    path = torch.stack(states)
    return {
        "worst": float(constraint.excess(path).max()),
        "sources": sources,
        "basis": shield.basis,
        "consistent": silent,
        "path": path[:, 0].tolist(),
        "plant": ("f*", "edge of F_n, up", "edge of F_n, down")[shard % 3],
    }


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    worst = max(s["worst"] for s in samples)
    states = sum(len(s["path"]) for s in samples)
    used = [source for s in samples for source in s["sources"]]
    told = ", ".join(f"{name} {used.count(name)}" for name in ("plan", "stored", "fallback"))
    violating = sum(s["worst"] > 0 for s in samples)
    witness = f"{violating} of {len(samples)} episodes violate; decisions: {told}"
    data = {"paths": [s["path"] for s in samples], "plants": [s["plant"] for s in samples]}
    return Evidence(states, worst, Verdict(worst, worst, 0.0, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(9, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    colors = {"f*": "black", "edge of F_n, up": "#D55E00", "edge of F_n, down": "#009E73"}
    for axes, data, title in ((left, claim, "shielded"), (right, control, "control: mean taken for the truth")):
        seen = set()
        for path, plant in zip(data["paths"], data["plants"], strict=True):
            label = None if plant in seen else plant
            seen.add(plant)
            axes.plot(np.asarray(path), color=colors[plant], linewidth=0.8, label=label)
        axes.axhline(1.2, color="black", linestyle="--")
        axes.set(xlabel="step", ylabel="θ (rad, 0 hangs)", title=title)
    left.legend(fontsize="small", loc="lower right")
    figure.tight_layout()


CHECKS = (
    Check(
        name="shield",
        claim="A planner that always pushes towards θ = 1.2 never gets a shielded plant beyond it, for f* and for members "
        "at the edge of F_n, with noise in its box.",
        source="gpsafe.shield, theory §6 (hard constraints, recursive feasibility)",
        assumptions=("rkhs_norm<=B (exact twin)", "f* ∈ F_n", "|w| <= 3 sigma at every step", "S_0 safe"),
        statistic="largest θ − 1.2 over all states of all episodes; threshold 0",
        control="the judge takes the posterior mean for the truth and forgets the noise",
        shards={"quick": 12, "full": 120},
        control_shards={"quick": 6, "full": 24},
        sample=_sample,
        judge=_judge,
        plot=_plot,
    ),
)
