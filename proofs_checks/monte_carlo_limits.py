"""Monte-Carlo limits and their δ, exactly: what a one-sided limit may fail with, and how δ is divided (theory §3.9)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gpsafe.confidence import ConfidenceSet
from gpsafe.cost import monte_carlo
from gpsafe.cost._task import MonteCarloBound
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.policies import AffinePolicies
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import FACTORS, Scaled
from .cost_bounds import _setting

SIZES = (20, 100, 400)
DELTAS = (0.05, 1e-4)
GENERATIONS = (1, 2, 3)
SPENT = (20, 50, 54, 58, 66)
STAGES = 200


def _failure(limit: Any, count: int, delta: float) -> float:
    """sup over p of P(limit < p)/δ for `count` Bernoulli(p) samples, exactly.

    The limit is a function of their number k ~ Bin(count, p), so the probability jumps up only as p passes a value of it.
    """
    k = np.arange(count + 1)
    samples = (torch.arange(count) < torch.as_tensor(k)[:, None]).double()
    values = limit(samples, 1.0, delta).numpy()
    means = values[values < 1.0] * (1 + 1e-12)
    missed = values < means[:, None]
    return float((stats.binom.pmf(k, count, means[:, None]) * missed).sum(-1).max()) / delta


def _shared(delta: float) -> float:
    """Sum of the δ of the limits of which `mean_upper` takes the smallest, over its own."""
    spent, limits = 0.0, (("betting_upper", monte_carlo.betting_upper), ("kl_upper", monte_carlo.kl_upper))
    with ExitStack() as stack:
        for name, original in limits:

            def call(*given: Any, original: Any = original) -> Tensor:
                nonlocal spent
                spent += given[-1]
                return original(*given)

            stack.enter_context(mock.patch.object(monte_carlo, name, call))
        monte_carlo.mean_upper(torch.tensor([0.0, 0.5], dtype=torch.float64), 1.0, delta)
    return spent / delta if spent else math.inf


def _spent(bound: Any, confidence: ConfidenceSet, policies: AffinePolicies) -> float:
    """Sum of the δ of all limits that an evaluation uses, over the share δ/n(n + 1) of its stage."""
    spent = 0.0

    @contextmanager
    def recorded(name: str) -> Iterator[None]:
        original = getattr(monte_carlo, name)

        def call(samples: Tensor, ceiling: float, delta: float) -> Tensor:
            nonlocal spent
            spent += delta * samples.shape[0]
            return original(samples, ceiling, delta)

        with mock.patch.object(monte_carlo, name, call):
            yield

    with recorded("mean_upper"), recorded("dominating_mean_upper"):
        bound.evaluate(confidence, policies)
    n = len(confidence.generations)
    return spent / (bound.delta / (n * (n + 1)))


def _sample_limits(shard: int, budget: Budget, broken: bool) -> Sample:
    """Failure probabilities over their δ (the control takes the sample mean for the limit), or how δ is divided."""
    if shard == 0:
        limits = {name: getattr(monte_carlo, name) for name in ("dominating_mean_upper", "mean_upper")}
        limits["betting_upper"] = lambda samples, ceiling, delta: monte_carlo.betting_upper(samples, delta)
        if broken:
            limits = {"sample mean": lambda samples, ceiling, delta: samples.mean(-1)}
        cases = itertools.product(limits.items(), SIZES, DELTAS)
        return {"found": {f"{name}, N {n}, δ {delta:g}": _failure(f, n, delta) for (name, f), n, delta in cases}}
    found = {f"shares of one limit, δ {delta:g}": _shared(delta) for delta in DELTAS}
    policies, confidence, task = _setting(0, SPENT)
    task = {"task": task["task"].with_(horizon=3)}
    # Σ_{n ≥ N} 1/n(n + 1) = 1/N: nothing is left out
    stages = sum(monte_carlo.stage_delta(0.1, n, calls=2) * 2 for n in range(1, STAGES)) / 0.1
    found["all stages"] = stages + 1.0 / STAGES
    for n in GENERATIONS:
        part = ConfidenceSet(confidence.bound, confidence.generations[:n])
        for bound in (ScenarioTube(**task, seed=1, samples=4), TotalVariation(**task, seed=1, samples=4)):
            found[f"{bound.name}, stage {n}"] = _spent(bound, part, policies)
    return {"found": found}


def _judge_limits(samples: Sequence[Sample], broken: bool) -> Evidence:
    found = {key: value for s in samples for key, value in s["found"].items()}
    where = worst_of(found, key=found.__getitem__)
    verdict = Verdict(found[where], found[where], 1.0 + 1e-6, witness=f"closest: {where}")
    return Evidence(len(found), found[where], verdict, {"found": found})


def _less_deviation(name: str) -> Scaled:
    """limit = mean + g·(limit − mean)."""
    original = getattr(monte_carlo, name)

    def scaled(factor: float) -> AbstractContextManager[object]:
        def limit(samples: Tensor, ceiling: float, delta: float) -> Tensor:
            mean = samples.mean(-1)
            return mean + factor * (original(samples, ceiling, delta) - mean)

        return mock.patch.object(monte_carlo, name, limit)

    return scaled


_STAGE_DELTA = monte_carlo.stage_delta


def _fewer_stages(factor: float) -> AbstractContextManager[object]:
    """δ is divided by 1 + g(n(n + 1) − 1) in place of n(n + 1)."""

    def stage_delta(delta: float, stage: int, *, calls: int = 1) -> float:
        whole = _STAGE_DELTA(delta, stage, calls=calls)
        return whole * stage * (stage + 1) / (1.0 + factor * (stage * (stage + 1) - 1.0))

    return mock.patch.object(monte_carlo, "stage_delta", stage_delta)


def _fewer_policies(factor: float) -> AbstractContextManager[object]:
    """δ_n is divided among 1 + g(P − 1) policies in place of P."""
    original, count = MonteCarloBound.stage_delta, len(SPENT)

    def stage_delta(self: MonteCarloBound, confidence: ConfidenceSet) -> float:
        return original(self, confidence) * count / (1.0 + factor * (count - 1.0))

    return mock.patch.object(MonteCarloBound, "stage_delta", stage_delta)


CHECKS = (
    Check(
        name="monte-carlo-limits",
        claim="A one-sided limit fails with probability at most its δ, and the δ of all policies, limits and stages sum to δ.",
        source="gpsafe.cost.monte_carlo; theory §3.9",
        assumptions=("i.i.d. samples in [0, C]",),
        statistic="largest P(limit < mean)/δ over Bernoulli samples (exact), and δ spent over δ granted; threshold 1",
        control="the sample mean is presented as the limit",
        shards=dict.fromkeys(("quick", "full"), 2),
        control_shards=dict.fromkeys(("quick", "full"), 1),
        sample=_sample_limits,
        judge=_judge_limits,
        grades=(
            Grade("deviation of dominating_mean_upper", _less_deviation("dominating_mean_upper"), (0,), FACTORS),
            Grade("deviation of mean_upper", _less_deviation("mean_upper"), (0,), FACTORS),
            Grade("union bound over policies", _fewer_policies, (1,), FACTORS),
            Grade("union bound over stages", _fewer_stages, (1,), FACTORS),
        ),
    ),
)
