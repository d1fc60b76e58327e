"""The shield's theorem: on f* ∈ F_n and |w| ≤ w̄ it always has an answer, and no state violates the constraint.

The first pieces are plants in which one term of the tube's step leads (`proofs_checks._edges`), with a constraint that a
member of F_n (or the noise) violates by a hair: no fallback may be certified there. The others are episodes of a pendulum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from gpsafe.confidence.members import extremal_member, member_share
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.local_affine import AffineRange, Displacements, LocalAffine
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning.tracking import Tracking
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.shield import NotCertified, Shield, noise_radius
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import FACTORS, around, forged, graded, tube_grades
from ._edges import COMMON, Edge, edge

EDGES = (*COMMON, "noise", "on a grid", "landing")
HAIR = 1e-6  # by how much a member's last state is beyond the constraint of an edge
RUNS = (5, 14, 22, 28)
HANGING = 12  # set-point 0
BOX = 3.0  # w̄ in standard deviations
LEVELS = (1.0, 0.6, 0.3, 0.1)
LENGTHS = (6, 1)


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


def _edge_sample(name: str, found: Edge) -> Sample:
    """Whether a fallback is certified although a member violates the constraint at the last step, and what it then does."""
    reached = found.reached()
    offset = torch.tensor([reached - HAIR * (1.0 + abs(reached))], dtype=torch.float64)
    grid = AnchorGrid.create(Box(vector(-1.0, -1.0, -1.0), vector(1.0, 1.0, 1.0)), vector(1.0, math.inf, math.inf))
    judge = PlanTube(
        fallbacks=found.policies,
        task=found.task().with_(cost=IndicatorCost(found.normal[None], offset), horizon=found.steps),
        noise_radius=found.noise.abs().amax(0),
        input_box=found.policies.input_box,
        anchors=grid if name == "on a grid" else None,
        landing=(Box(vector(-0.05), vector(0.05)),) if name == "landing" else (),
        order=found.order,
    )
    nx = found.initial_state.numel()
    tracking = Tracking(brakes=judge.fallbacks, authority=1.0, state_weight=torch.ones(nx), input_weight=vector(1.0))
    start = Shield.start(judge, found.confidence, found.initial_state, tracking=tracking)
    if isinstance(start, NotCertified):
        return {"worst": start.margin, "sources": [], "path": [], "plant": "edge"}
    worst, path, nothing = -math.inf, [], torch.zeros(0, 1, 1, dtype=torch.float64)
    for member in found.members:
        shield, states = start, found.path(member)
        for x, following in itertools.pairwise(states):
            decision, shield = shield.decide(x, nothing)
            if not torch.equal(decision.u, found.policies(x.reshape(1, 1, -1))[0, 0]):
                raise ValueError(f"shield: expected the fallback's input, got {decision.u.tolist()}")
            worst = worst_of(worst, float((following @ found.normal - offset).max()))
        path = states[:, -1].tolist()
    return {"worst": worst, "sources": ["fallback"] * 2 * found.steps, "path": path, "plant": "edge"}


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """An edge, or one episode."""
    with mock.patch.object(LocalAffine, "range_outer", _blind) if broken else nullcontext():
        if shard < len(EDGES):
            return _edge_sample(EDGES[shard], edge(EDGES[shard]))
        return _episode(shard - len(EDGES), broken)


def _episode(shard: int, broken: bool) -> Sample:
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
        f = extremal_member(confidence.bound, model, vector(0.9, 0.5, 0.3), sign)
        if member_share(confidence.bound, model, f) > 1.0:
            raise ValueError("shield: expected a member of F_n")

        def residual(z: Tensor) -> Tensor:
            return f(z).unsqueeze(-1)

    radius = BOX * system.noise_std
    noise = _bounded(sample_noise(2.0 * system.noise_std, (system.horizon,), generator), radius)
    if shard % 2:
        noise = radius.expand_as(noise)
    x, states, sources, silent = system.initial_state, [system.initial_state], [], 0
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
    worst = worst_of(s["worst"] for s in samples)
    states = sum(max(len(s["path"]), 1) for s in samples)  # of an edge that is not certified, its start
    used = [source for s in samples for source in s["sources"]]
    told = ", ".join(f"{name} {used.count(name)}" for name in ("plan", "stored", "fallback"))
    violating = sum(s["worst"] > 0 for s in samples)
    episodes = [s for s in samples if s["plant"] != "edge"]
    edges = len(samples) - len(episodes)
    witness = f"{violating} of {len(samples)} violate ({len(episodes)} episodes, {edges} edges); decisions: {told}"
    data = {"paths": [s["path"] for s in episodes], "plants": [s["plant"] for s in episodes]}
    data["edges"] = [s["worst"] for s in samples if s["plant"] == "edge"]
    return Evidence(states, worst, Verdict(worst, worst, 0.0, witness=witness), data)


_REACH = PlanTube.reach


def _less_noise(factor: float) -> AbstractContextManager[object]:
    """One step of the tube with the noise box g·w̄."""

    def reach(self: PlanTube, tube: Zonotope, plans: Plans, time: int) -> tuple[Zonotope, Tensor]:
        return _REACH(replace(self, noise_radius=factor * self.noise_radius), tube, plans, time)

    return mock.patch.object(PlanTube, "reach", reach)


_REFINE = PlanTube.refine


def _shorter_landing(factor: float) -> AbstractContextManager[object]:
    """Landing sets are certified for g·T steps and believed for T."""

    def refine(self: PlanTube, confidence: ConfidenceSet) -> PlanTube:
        horizon = self.task.horizon
        found = _REFINE(replace(self, task=self.task.with_(horizon=max(1, round(factor * horizon)))), confidence)
        if found.certified is None:
            return forged(found, task=self.task)
        return forged(found, task=self.task, certified=torch.where(found.certified > 0, horizon, found.certified))

    return mock.patch.object(PlanTube, "refine", refine)


def _less_offset(found: tuple[LocalAffine, Tensor], factor: float) -> tuple[LocalAffine, Tensor]:
    return found[0], factor * found[1]


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(9, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    looks = {**plotting.looks(dict.fromkeys(claim["plants"])), "f*": plotting.look("truth")}
    for axes, data, title in ((left, claim, "shielded"), (right, control, "control: mean taken for the truth")):
        seen = set()
        for path, plant in zip(data["paths"], data["plants"], strict=True):
            label = None if plant in seen else plant
            seen.add(plant)
            axes.plot(np.asarray(path), linewidth=0.8, label=label, **looks[plant].line)
        plotting.limit(axes, 1.2)
        axes.set(xlabel="step", ylabel="θ (rad, 0 hangs)", title=title)
    left.legend(loc="lower right")


_COUNTS = [(nx, steps, delta) for nx in (1, 2, 4) for steps in (100, 3_000, 100_000) for delta in (0.1, 1e-3, 1e-6)]


def _radius(sigma: Tensor, steps: int, delta: float, share: float = 1.0) -> Tensor:
    """What is checked: the box for `steps` steps, or (scaled) for fewer."""
    return noise_radius(sigma, steps=max(1, round(share * steps)), delta=delta)


def _sample_box(shard: int, budget: Budget, broken: bool) -> Sample:
    """P(some |w_ti| > w̄_i over all steps)/δ, exactly, for several sizes; the control forgets that there are many steps."""
    ratios = []
    for nx, steps, delta in _COUNTS:
        sigma = torch.linspace(0.1, 1.0, nx, dtype=torch.float64)
        radius = _radius(sigma, 1 if broken else steps, delta)
        once = torch.special.erfc(radius / sigma / math.sqrt(2.0))  # P(|w_i| > w̄_i)
        ratios.append(float(-torch.expm1(steps * torch.log1p(-once).sum())) / delta)
    return {"ratios": ratios}


def _judge_box(samples: Sequence[Sample], broken: bool) -> Evidence:
    ratios = [ratio for s in samples for ratio in s["ratios"]]
    at = worst_of(range(len(ratios)), key=ratios.__getitem__)
    nx, steps, delta = _COUNTS[at % len(_COUNTS)]
    witness = f"closest at nx = {nx}, {steps} steps, δ = {delta:g}"
    return Evidence(len(ratios), ratios[at], Verdict(ratios[at], ratios[at], 1.0, witness=witness), {"ratios": ratios})


_WHOLE = _radius


def _fewer_steps(factor: float) -> AbstractContextManager[object]:
    return mock.patch(f"{__name__}._radius", lambda sigma, steps, delta: _WHOLE(sigma, steps, delta, factor))


def _lower_quantile(factor: float) -> AbstractContextManager[object]:
    return mock.patch(f"{__name__}._radius", lambda sigma, steps, delta: factor * _WHOLE(sigma, steps, delta))


CHECKS = (
    Check(
        name="noise-box",
        claim="P(|w_t| ≤ w̄ componentwise at all steps counted) ≥ 1 − δ for w̄ = noise_radius(σ, steps, δ).",
        source="gpsafe.safety.shield.noise_radius; theory §6.11",
        assumptions=("w_t ~ N(0, diag(σ²))",),
        statistic="largest P(some component leaves the box at some step)/δ, exact; threshold 1",
        control="no union bound: the box of a single step",
        shards=dict.fromkeys(("quick", "full"), 1),
        sample=_sample_box,
        judge=_judge_box,
        grades=(
            Grade("union bound over steps", _fewer_steps, factors=FACTORS),
            Grade("quantile of one step", _lower_quantile, factors=FACTORS),
        ),
    ),
    Check(
        name="shield",
        claim="A planner that always pushes towards θ = 1.2 never gets a shielded plant beyond it, for f* and for members "
        "at the edge of F_n, with noise in its box.",
        source="gpsafe.safety.shield, theory §6.9, §6.10",
        assumptions=("rkhs_norm<=B (exact twin)", "f* ∈ F_n", "|w| <= 3 sigma at every step", "S_0 safe"),
        statistic="largest excess over the constraint (θ − 1.2), of all states of all episodes; the margin where refused",
        control="the judge takes the posterior mean for the truth and forgets the noise",
        shards={"quick": len(EDGES) + 3, "full": len(EDGES) + 120},
        control_shards={"quick": len(EDGES) + 1, "full": len(EDGES) + 24},
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=(
            *tube_grades(EDGES),
            graded("noise box w̄", ("noise",), EDGES, _less_noise),
            graded("steps for which a landing set is certified", ("landing",), EDGES, _shorter_landing),
            graded(
                "distance from the grid's anchor", ("on a grid",), EDGES, around(AnchorGrid, "around", _less_offset)
            ),
        ),
    ),
)
