"""The account's theorem: what a learner makes of a budget of expected cost never exceeds it, and an honest one can use it up.
And that of recovery shields: nor does the chance of a violation exceed the mass that was let pass.

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
from gpsafe.safety.recovery import RecoveryShield
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
RULES = ((0.05, math.inf), (0.05, 0.12), (0.3, 0.3))  # ε of a step and η of the episode, of recovery shields
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


Proposer = Callable[[BudgetFilter | RecoveryShield, Tensor], Tensor]


def _fixed(u: float) -> Proposer:
    return lambda safe, x: vector(u)


def _greedy(safe: BudgetFilter | RecoveryShield, x: Tensor) -> Tensor:
    """The largest input that passes, by bisection: dearer ones are larger."""
    low, high = 0.0, 2.0
    for _ in range(12):
        middle = 0.5 * (low + high)
        passed = safe.decide(x, vector(middle))[0].source == "learner"
        low, high = (middle, high) if passed else (low, middle)
    return vector(low)


def _chance(u: float, noise: float) -> float:
    """P(u + w > 1)."""
    return 0.5 * math.erfc((1.0 - u) / (noise * math.sqrt(2.0)))


def _expected(safe: BudgetFilter, propose: Proposer, noise: float, costly: bool = False) -> float:
    """E of the cost from here on, over all that may happen: a state without a cost, or one with."""
    left = STEPS - safe.stage
    x, now = vector(1.5 if costly else 0.0), float(costly)
    if left == 1:
        return now  # what the last input leads to is never charged
    allowed, after = safe.decide(x, propose(safe, x))
    chance = _chance(float(allowed.u), noise)
    there = [
        _expected(after, propose, noise, happens) if p > 1e-9 else 0.0
        for happens, p in ((False, 1 - chance), (True, chance))
    ]
    return now + (1 - chance) * there[0] + chance * there[1]


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """E Σ c / d for every proposer and budget under one noise; the control applies the published rule."""
    noise = NOISE[shard]
    to_go, rows = _to_go(noise), []
    for d in BUDGETS:
        safe = BudgetFilter(to_go, d, "pointwise" if broken else "account").start()
        rows += [_expected(safe, propose, noise) / d for propose in _proposers(noise)]
    return {"noise": noise, "shares": rows}


def _proposers(noise: float) -> list[Proposer]:
    """With a fixed chance of a cost, and the one that spends all that it may."""
    normal = torch.distributions.Normal(0.0, 1.0)
    return [*(_fixed(1.0 + noise * float(normal.icdf(torch.tensor(chance)))) for chance in CHANCES), _greedy]


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    return _closest(samples, [f"d = {d:g}" for d in BUDGETS])


def _closest(samples: Sequence[Sample], limits: Sequence[str]) -> Evidence:
    """The largest share among limits and proposers, against 1."""
    shares = [share for s in samples for share in s["shares"]]
    most = worst_of(shares)
    at = shares.index(most) % (len(limits) * (len(CHANCES) + 1))
    limit, proposer = limits[at // (len(CHANCES) + 1)], at % (len(CHANCES) + 1)
    who = "the one that spends all it may" if proposer == len(CHANCES) else f"a chance of {CHANCES[proposer]:g} a step"
    return Evidence(
        len(shares), most, Verdict(most, most, 1.0, witness=f"closest at {limit}, {who}"), {"shares": shares}
    )


def _violated(shield: RecoveryShield, propose: Proposer, noise: float) -> float:
    """P(a state that costs): until there is one, what is decided is the same in all runs, since the plant forgets its state."""
    kept, x = 1.0, vector(0.0)
    for _ in range(STEPS - 1):  # what the last input leads to is no state of the episode
        found, shield = shield.decide(x, propose(shield, x))
        kept *= 1.0 - _chance(float(found.u), noise)
    return 1.0 - kept


def _sample_recovery(shard: int, budget: Budget, broken: bool) -> Sample:
    """P(violation)/(1 − safety) for every proposer and rule under one noise; the control takes ε for that of the episode."""
    noise, rows = NOISE[shard], []
    for level, total in RULES:
        shield = RecoveryShield(_to_go(noise), level, total)
        mass = level if broken else 1.0 - shield.safety
        rows += [_violated(shield, propose, noise) / mass for propose in _proposers(noise)]
    return {"noise": noise, "shares": rows}


def _judge_recovery(samples: Sequence[Sample], broken: bool) -> Evidence:
    return _closest(samples, [f"eps = {level:g}, eta = {total:g}" for level, total in RULES])


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


def _lighter(factor: float) -> AbstractContextManager[object]:
    """What has passed is added to the mass in part only."""
    whole = RecoveryShield.decide

    def decide(self: RecoveryShield, x: Tensor, learned: Tensor) -> Any:
        found, after = whole(self, x, learned)
        assert after.mass is not None
        object.__setattr__(after, "mass", after.mass - (1 - factor) * found.chance)
        return found, after

    return mock.patch.object(RecoveryShield, "decide", decide)


def _plot_recovery(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    _drawn(figure, claim, control, "mass of an episode", "eps for an episode", "P(violation) / bound")


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    _drawn(figure, claim, control, "account", "the published rule", "expected cost / d")


def _drawn(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any], own: str, other: str, y: str) -> None:
    axes = figure.subplots()
    for data, noun, label in ((claim, "claim", own), (control, "control", f"control: {other}")):
        axes.plot(sorted(data["shares"]), markersize=3, label=label, **plotting.look(noun).marked)
    plotting.limit(axes, 1.0)
    axes.set(xlabel="proposer, limit and noise, in order", ylabel=y)
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
    Check(
        name="recovery-mass",
        claim="Behind a recovery shield P(violation) ≤ max(V̄_0, min(η, V̄_0 + Tε)), whatever a learner proposes.",
        source="gpsafe.safety.recovery, theory §3.10",
        assumptions=("f* ∈ F_n (here: known)", "w_t ~ N(0, diag(σ²))", "exact state and input"),
        statistic="largest P(violation)/(1 − safety) over proposers, rules and noises, exact; threshold 1",
        control="ε of a step, taken for a bound of the whole episode",
        shards=dict.fromkeys(("quick", "full"), len(NOISE)),
        sample=_sample_recovery,
        judge=_judge_recovery,
        plot=_plot_recovery,
        grades=(
            Grade("certified chance ahead Q̄", _cheaper, shards=(0,)),
            Grade("chances added to the mass", _lighter, shards=(0,)),
        ),
    ),
)
