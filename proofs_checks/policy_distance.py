"""Theory §4.2: the distance D of two policies, and the second form, bound how far apart their costs are for every ‖f‖ ≤ B.

Random plants use a tenth of D. The first piece has plants that attain it: integrators whose two policies push to either side
at every step, with a cost on one side of the start.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from gpsafe.linalg import vector
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.safety.safe_set import PolicyGap, policy_gap
from gpsafe.sets import Box
from gpsafe.systems.known import AffineKnown
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import worst_of

from . import actsafe
from ._defects import FACTORS, around, replaced, times
from ._regression import generator
from .actsafe_expansion import judge_ratio

ROUNDING = 1e-9
PAIRS = 20  # of the attaining piece


def _affine(input_matrix: float) -> AffineKnown:
    """x + bu."""
    return AffineKnown(torch.eye(1).double(), vector(input_matrix).reshape(1, 1), vector(0.0))


def _random(shard: int, broken: bool) -> Sample:
    """(J_c(π, f*) − J_c(π′, f*))/D(π, π′), and J_c(π, f*) over the second form, for all pairs; broken: without the known part.

    150 set-points on plants with a residual of norm exactly 1; both costs are bracketed by the robust program of the true f.
    """
    task = actsafe.reaching_task(shard)
    algorithm, system = task.algorithm, task.algorithm.system
    assert isinstance(algorithm.policies, AffinePolicies)
    gap = policy_gap(
        algorithm.policies, _affine(0.0 if broken else 0.25), tuple(algorithm.model.kernels),
        rkhs_norm=algorithm.bound.norms(1), outputs=(0,), noise_std=system.noise_std, horizon=system.horizon, ceiling=1.0,
    )  # fmt: skip
    apart = ~torch.eye(len(task.truth_lower), dtype=torch.bool)
    first = (task.truth_lower.unsqueeze(-1) - task.truth_upper) / gap.distance
    second = task.truth_lower / gap.upper(task.truth_upper)
    worst = [float(part[apart].max()) for part in (first, second)]
    about = f"largest share of D {worst[0]:.3g}, of the second form {worst[1]:.3g}"
    return {"worst": worst_of(worst), "cases": int(apart.sum()), "about": about}


def _attaining() -> Sample:
    """The same for x⁺ = x + Mu + f(u) + w from 0, u = ±v, one or two states and inputs, cost 1 at aᵀx > 0: both are exact.

    f_j = B_j(k(v, ·) − k(−v, ·))/d_k(v, −v) has norm B_j and f_j(±v) = ±½B_j d_k: the means part by 2δ, δ = Mv + f(v), at every
    step. With a = Σ⁻¹δ the states aᵀx at t are t‖Σ^{-1/2}δ‖² off, with deviation √t‖Σ^{-1/2}δ‖: J_c(π) − J_c(π′) is
    Σ_t (2Φ(√t‖Σ^{-1/2}δ‖) − 1), which is D.
    """
    worst, about = 0.0, ""
    for index in range(PAIRS):
        draw = torch.rand(5, dtype=torch.float64, generator=generator(75, index)).tolist()
        n, horizon = 1 + index % 2, 2 + int(10 * draw[0])
        shares = torch.tensor([1.0, 0.6], dtype=torch.float64)[:n]
        matrix = draw[1] * torch.tensor([[1.0, 0.5], [0.2, 0.8]], dtype=torch.float64)[:n, :n]
        norm, noise, v = (0.1 + draw[2]) * shares.flip(0), (0.2 + draw[3]) * shares, (0.1 + 0.4 * draw[4]) * shares
        matrix, norm = (
            (0 * matrix, norm) if index % 3 == 0 else (matrix, 1e-6 + 0 * norm) if index % 3 == 1 else (matrix, norm)
        )
        kernel = kernels.rbf(0.5, dims=tuple(range(n, 2 * n)))
        inputs = torch.stack([v, -v])
        ends = torch.cat([torch.zeros_like(inputs), inputs], dim=-1)
        pair = torch.tensor([1.0, -1.0], dtype=torch.float64)
        f = torch.stack([RKHSFunction(kernel, ends, pair).scaled_to(float(size))(ends) for size in norm], -1)
        policies = AffinePolicies(
            inputs, torch.zeros(2, n, n).double(), Box(-torch.ones(n).double(), torch.ones(n).double())
        )
        known = AffineKnown(torch.eye(n).double(), matrix, torch.zeros(n).double())
        gap = policy_gap(
            policies, known, (kernel,) * n, rkhs_norm=norm, outputs=tuple(range(n)),
            noise_std=noise, horizon=horizon, ceiling=1.0,
        )  # fmt: skip
        away = ((inputs @ matrix.mT + f) / noise)[0].norm()
        steps = torch.arange(1, horizon, dtype=torch.float64)
        cost = torch.special.ndtr(torch.stack([away, -away]).unsqueeze(-1) * steps.sqrt()).sum(-1)
        first = float((cost[0] - cost[1]) / gap.distance[0, 1])
        second = float(cost[0] / gap.upper(cost)[1, 0])
        most = worst_of(first, second)
        if math.isnan(most) or most > worst:
            worst, about = most, f"integrators of {n} states over {horizon} steps: share of D {first:.3g}"
    return {"worst": worst, "cases": PAIRS, "about": about}


def sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """The plants that attain D, or a random one."""
    return _random(shard, broken) if broken else _attaining() if shard == 0 else _random(shard - 1, broken)


def judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest share; 1 is reached, so that rounding is left out of the threshold."""
    found = judge_ratio(samples, broken)
    return replace(found, verdict=replace(found.verdict, threshold=1.0 + ROUNDING, tol=0.0))


def _pushed(found: PolicyGap, factor: float) -> PolicyGap:
    return replace(found, push=factor * found.push)


def _nearer(table: Any, factor: float) -> property:
    """D, without the second form."""
    return property(lambda gap: factor * table.fget(gap))


def _weaker(gap_of: Any, factor: float) -> Any:
    """The known part's share of the change of the mean."""
    return lambda policies, known, kernel, **rest: gap_of(
        policies, AffineKnown(known.A, factor * known.B, known.c), kernel, **rest
    )


_HERE = sys.modules[__name__]
CHECKS = (
    Check(
        name="policy-distance",
        claim="|J_c(π, f*) − J_c(π′, f*)| ≤ D(π, π′), and J_c(π, f*) ≤ TC·Φ(Φ⁻¹(J_c(π′, f*)/TC) + a√(T−1)), for all pairs.",
        source="ActSafe, section 4; theory §4.2",
        assumptions=("‖f*‖_k ≤ B (exact by construction)", "gaussian noise of known variance"),
        statistic="largest difference over D, and cost over the second form (costs bracketed); threshold 1",
        control="D without what the known part makes of the input",
        shards={"quick": 4, "full": 31},
        control_shards={"quick": 1, "full": 4},
        sample=sample,
        judge=judge,
        grades=(
            Grade("D", replaced(PolicyGap, "distance", _nearer), (0,), FACTORS),
            Grade("push a", around(_HERE, "policy_gap", _pushed), (0,), FACTORS),
            Grade("known part of the push", replaced(_HERE, "policy_gap", _weaker), (0,), FACTORS),
            Grade("residual's part of the push", around(kernels, "metric_over_box", times), (0,), FACTORS),
        ),
    ),
)
