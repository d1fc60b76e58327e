"""The account's theorem: what a learner makes of a budget of expected cost never exceeds it, and an honest one can use it up.

The plant x⁺ = u + w forgets its state, a cost of 1 is due beyond x = 1, and the prior's input is 0. So E Σ c is a sum over what
has happened so far, which is gone through in full; nothing is sampled.
"""

from __future__ import annotations

import math
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
from gpsafe.cost import CostToGo, Grid, RobustDP
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety.budget import BudgetFilter
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

STEPS = 4
NOISE = (0.1, 0.3)
BUDGETS = (0.15, 0.5)
CHANCES = (0.05, 0.3, 0.5)  # of a cost, of the fixed inputs that are proposed; the last proposer spends all that it may
INPUTS = Box(torch.tensor([-2.0]), torch.tensor([2.0]))


@lru_cache(maxsize=8)
def _to_go(noise: float) -> CostToGo:
    known = AffineKnown(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    cost = IndicatorCost(torch.ones(1, 1), torch.ones(1))
    task = Task(vector(0.0), STEPS, cost, 1.0, vector(noise))
    program = RobustDP(Grid(Box(vector(-4.0), vector(4.0)), (800,), (8,)), task)
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=vector(noise), prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1e-9, subgaussian=noise, delta=0.1)).update(model)
    prior = AffinePolicies(torch.zeros(1, 1), torch.zeros(1, 1, 1), INPUTS)
    return CostToGo.of(program, confidence, prior, INPUTS)


Proposer = Callable[[BudgetFilter, Tensor], Tensor]


def _fixed(u: float) -> Proposer:
    return lambda safe, x: vector(u)


def _greedy(safe: BudgetFilter, x: Tensor) -> Tensor:
    """The largest input that passes, by bisection: dearer ones are larger."""
    low, high = 0.0, 2.0
    for _ in range(12):
        middle = 0.5 * (low + high)
        passed = safe.decide(x, vector(middle))[0].source == "learner"
        low, high = (middle, high) if passed else (low, middle)
    return vector(low)


def _expected(safe: BudgetFilter, propose: Proposer, noise: float, costly: bool = False) -> float:
    """E of the cost from here on, over all that may happen: a state without a cost, or one with."""
    left = STEPS - safe.stage
    x, now = vector(1.5 if costly else 0.0), float(costly)
    if left == 1:
        return now  # what the last input leads to is never charged
    allowed, after = safe.decide(x, propose(safe, x))
    chance = 0.5 * math.erfc((1.0 - float(allowed.u)) / (noise * math.sqrt(2.0)))
    there = [
        _expected(after, propose, noise, happens) if p > 1e-9 else 0.0
        for happens, p in ((False, 1 - chance), (True, chance))
    ]
    return now + (1 - chance) * there[0] + chance * there[1]


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """E Σ c / d for every proposer and budget under one noise; the control applies the published rule."""
    noise = NOISE[shard]
    to_go, rows = _to_go(noise), []
    normal = torch.distributions.Normal(0.0, 1.0)
    fixed = [1.0 + noise * float(normal.icdf(torch.tensor(chance))) for chance in CHANCES]
    for d in BUDGETS:
        safe = BudgetFilter(to_go, d, "pointwise" if broken else "account").start()
        rows += [_expected(safe, _fixed(u), noise) / d for u in fixed]
        rows.append(_expected(safe, _greedy, noise) / d)
    return {"noise": noise, "shares": rows}


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    shares = [share for s in samples for share in s["shares"]]
    most = worst_of(shares)
    at = shares.index(most) % (len(BUDGETS) * (len(CHANCES) + 1))
    d, proposer = BUDGETS[at // (len(CHANCES) + 1)], at % (len(CHANCES) + 1)
    who = "the one that spends all it may" if proposer == len(CHANCES) else f"a chance of {CHANCES[proposer]:g} a step"
    return Evidence(
        len(shares), most, Verdict(most, most, 1.0, witness=f"closest at d = {d:g}, {who}"), {"shares": shares}
    )


def _cheaper(factor: float) -> AbstractContextManager[object]:
    whole = CostToGo.ahead
    return mock.patch.object(CostToGo, "ahead", lambda self, x, u, left: factor * whole(self, x, u, left))


def _forgotten(factor: float) -> AbstractContextManager[object]:
    """What a step has cost is taken from the account in part only."""
    whole = BudgetFilter.decide

    def decide(self: BudgetFilter, x: Tensor, learned: Tensor) -> Any:
        allowed, after = whole(self, x, learned)
        before = self.slack if self.slack is not None else allowed.slack + allowed.price
        object.__setattr__(after, "slack", before - factor * allowed.price)
        return allowed, after

    return mock.patch.object(BudgetFilter, "decide", decide)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for data, noun, label in ((claim, "claim", "account"), (control, "control", "control: the published rule")):
        axes.plot(sorted(data["shares"]), markersize=3, label=label, **plotting.look(noun).marked)
    plotting.limit(axes, 1.0)
    axes.set(xlabel="proposer, budget and noise, in order", ylabel="expected cost / d")
    plotting.label_ends(axes)


CHECKS = (
    Check(
        name="budget-account",
        claim="Whatever a learner proposes, deviations from a certified policy that are paid from the account keep E Σ c ≤ d.",
        source="gpsafe.safety.budget, theory §3.10",
        assumptions=("f* ∈ F_n (here: known)", "w_t ~ N(0, diag(σ²))", "exact state and input"),
        statistic="largest E Σ c / d over proposers, budgets and noises, exact; threshold 1",
        control="the published rule: cost so far and to go stay below d, step by step",
        shards=dict.fromkeys(("quick", "full"), len(NOISE)),
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=(
            Grade("certified cost ahead Q̄", _cheaper, shards=(0,)),
            Grade("prices taken from the account", _forgotten, shards=(0,)),
        ),
    ),
)
