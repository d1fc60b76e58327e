"""Certified maps hold the probability of staying safe, of the plant and of members at the edge of F_n, in every state tried.

The reference line with 20 and 160 transitions; the probabilities are quadratures over the noise, nothing is sampled. Its maps
are as wide as F_n, so that a step or a cell that is not counted would not show. So the first piece is a known plant that
forgets its state, x⁺ = u + w, whose probabilities are geometric sums: with a goal, of which a part is unsafe, and without, on
coarse cells and on refined ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.members import extremal_member
from gpsafe.cost import Grid
from gpsafe.cost.enclosure import Enclosure
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import CertifiedMap, certified_map
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

COUNTS = (20, 160)  # transitions known, a shard each
NUMBERS = (30, 45, 52, 58)  # of policies: certainly safe, and around the last safe ones
BOX = Box(vector(-2.5), vector(2.5))
NOISE, CELLS, POINTS = 0.05, 400, 700
STARTS = torch.linspace(-2.0, 0.99, 41, dtype=torch.float64)
ALLOWED = 2e-3  # of the quadrature
BEYOND = torch.cat([STARTS, torch.linspace(1.02, 2.4, 24, dtype=torch.float64)])  # and states where it is all over


INPUTS = (0.0, 0.5, 0.8, 1.1)  # of the plant that forgets
GOAL = Box(vector(0.43), vector(1.4))  # begins within a cell; beyond 1 it is unsafe
STEPS, WIDE = 4, 0.3


@lru_cache(maxsize=1)
def _plant() -> tuple[RKHSTwin, AffinePolicies]:
    return reference_1d(NOISE), reference_1d_policies()[0].select(torch.tensor(NUMBERS))


def _confidence(count: int, seed: int, share: float = 1.0) -> ConfidenceSet:
    """F_n after `count` transitions; the control believes in a share of the norm."""
    system, _ = _plant()
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    if count:
        generator = torch.Generator().manual_seed(seed)
        x, u = BOX.sample(count, generator), system.input_box.sample(count, generator)
        y = system.mean(x, u) + sample_noise(system.noise_std, (count,), generator)
        model = model.condition(Transitions(x, u, y))
    norm = tuple((share * system.rkhs_norm).tolist())
    return ConfidenceSet(Mixture(rkhs_norm=norm, subgaussian=float(system.noise_std), delta=0.1)).update(model)


def _probability(mean: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """P(safe for T states) of each policy from each start, (P, 41), by the rectangle rule on the safe states of the box."""
    system, policies = _plant()
    edges = torch.linspace(-2.5, 1.0, POINTS + 1, dtype=torch.float64)
    x, normal = 0.5 * (edges[:-1] + edges[1:]), torch.distributions.Normal(0.0, float(system.noise_std))
    found = []
    for i in range(policies.num):
        one = policies.select(torch.tensor([i]))

        def law(at: Tensor, one: AffinePolicies = one) -> Tensor:
            """Chances of the cells of the rule after one step, (n, POINTS)."""
            state = at.unsqueeze(-1)
            cdf = normal.cdf(edges - mean(state, one(state.unsqueeze(0))[0]))
            return cdf[:, 1:] - cdf[:, :-1]

        value, step = torch.ones(POINTS, dtype=torch.float64), law(x)
        for _ in range(system.horizon - 2):
            value = step @ value
        found.append(law(STARTS) @ value)
    return torch.stack(found)


def _excess(found: CertifiedMap, truth: Tensor, starts: Tensor = STARTS) -> float:
    low, high = found.at(starts.unsqueeze(-1))
    return float(torch.maximum(low - truth, truth - high).max())


def _forgetful(broken: bool) -> Sample:
    """Largest excess for x⁺ = u + w: p = (1 − q)^{T−1}, or with a goal g Σ_{t<T−1} (1 − q − g)^t; broken: of T − 1 states."""
    known = AffineKnown(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    cost = IndicatorCost(torch.ones(1, 1), torch.ones(1))
    task = Task(vector(0.0), STEPS - broken, cost, 1.0, vector(WIDE))
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=vector(WIDE), prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1e-9, subgaussian=WIDE, delta=0.1)).update(model)
    u = torch.tensor(INPUTS, dtype=torch.float64).unsqueeze(-1)
    policies = AffinePolicies(u, torch.zeros(len(u), 1, 1), Box(vector(-2.0), vector(2.0)))
    below = [torch.special.ndtr((edge - u) / WIDE) for edge in (1.0, float(GOAL.lower))]
    steps = torch.arange(STEPS - 1, dtype=torch.float64)
    safe, reached = below[0] ** (STEPS - 1), ((below[0] - below[1]) * below[1] ** steps).sum(-1, keepdim=True)
    excess, gaps = [], []
    for goal, p in ((None, safe), (GOAL, reached)):
        truth = p.expand(-1, len(BEYOND))
        if goal is not None:
            truth = torch.where(goal.contains(BEYOND.unsqueeze(-1)), 1.0, truth)
        truth = torch.where(BEYOND > 1.0, 0.0, truth)
        found = certified_map(confidence, policies, task, Grid(BOX, (50,)), goal=goal)
        for each in (found, found.refined(tolerance=0.02, cells=200)):
            excess.append(_excess(each, truth, BEYOND))
            gaps.append(float(each.gap.mean()))
    return {"count": 0, "excess": excess, "gap": gaps}


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """Largest excess over a bound, of the plant and of two members; mean of upper − lower."""
    if shard == 0:
        return _forgetful(broken)
    shard -= 1
    system, policies = _plant()
    count = COUNTS[shard % len(COUNTS)]
    honest = _confidence(count, 1000 + shard)
    believed = _confidence(count, 1000 + shard, 0.1) if broken else honest
    found = certified_map(believed, policies, Task.of(system), Grid(BOX, (CELLS,)))
    plants: list[Callable[[Tensor, Tensor], Tensor]] = [system.mean]
    at = torch.tensor([[0.9, 0.3]], dtype=torch.float64)
    for sign in (-1.0, 1.0):
        member = extremal_member(honest.bound, honest.model, at, vector(sign))
        plants.append(lambda x, u, f=member: system.known(x, u) + f(torch.cat([x, u], dim=-1)).unsqueeze(-1))
    excess = [_excess(found, _probability(mean)) for mean in plants]
    low, high = found.at(STARTS.unsqueeze(-1))
    return {"count": count, "excess": excess, "gap": (high - low).mean(-1).tolist()}


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    each = [value for s in samples for value in s["excess"]]
    most, tried = worst_of(each), len(each) * len(NUMBERS) * len(STARTS)
    gaps = {str(s["count"]): s["gap"] for s in samples if s["count"]}
    worst = worst_of(samples, key=lambda s: worst_of(s["excess"]))
    told = f"largest after {worst['count']} transitions" if worst["count"] else "largest for the plant that forgets"
    return Evidence(tried, most, Verdict(most, most, ALLOWED, witness=told), {"gaps": gaps, "excess": each})


def _narrower(factor: float) -> AbstractContextManager[object]:
    """Boxes of next means shrunk about their middles."""
    whole = Enclosure.boxes

    def boxes(self: Enclosure) -> tuple[Tensor, Tensor]:
        low, high = whole(self)
        middle, half = 0.5 * (low + high), 0.5 * factor * (high - low)
        return middle - half, middle + half

    return mock.patch.object(Enclosure, "boxes", boxes)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for data, noun, label in ((claim, "claim", "F_n"), (control, "control", "control: a tenth of the norm")):
        counts = sorted(data["gaps"], key=int)
        mean = [sum(data["gaps"][k]) / len(NUMBERS) for k in counts]
        axes.plot(range(len(counts)), mean, markersize=3, label=label, **plotting.look(noun).marked)
        axes.set_xticks(range(len(counts)), counts)
    axes.set(xlabel="transitions known", ylabel="mean of upper − lower")
    plotting.label_ends(axes)


CHECKS = (
    Check(
        name="certified-map",
        claim="Everywhere the probability of staying safe lies within the map's bounds, for the plant and for members of F_n.",
        source="gpsafe.safety.certified_map, theory §3.12",
        assumptions=("f* ∈ F_n", "w_t ~ N(0, diag(σ²))", "exact state and input"),
        statistic="largest excess of a probability over its bounds, by quadrature; threshold 2e-3, the quadrature's",
        control="a tenth of the norm is believed, and of the plant that forgets a step is left out",
        shards={"quick": 1 + len(COUNTS), "full": 1 + 4 * len(COUNTS)},
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=(Grade("boxes of next means", _narrower, (1, 2), (0.9, 0.7, 0.5, 0.3, 0.0)),),
    ),
)
