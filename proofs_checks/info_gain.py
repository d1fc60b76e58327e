"""Bounds of the information gain against brute force on tiny domains (theory §2.12)."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence.info_gain import (
    eigenvalue_bound,
    gram_bound,
    gram_info_gain,
    greedy,
    greedy_bound,
    linear_bound,
    online_bound,
)
from gpsafe.rkhs import kernels
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import FACTORS, around, past_one, replaced, times
from ._regression import generator

TOLERANCE = 1e-9  # relative, for rounding
SHARDS: dict[Budget, int] = {"quick": 4, "full": 40}


def brute_force(gram: Tensor, count: int, regularizer: float) -> float:
    """γ_T over all multisets of T points of a domain with Gram matrix (m, m)."""
    designs = torch.tensor(list(itertools.combinations_with_replacement(range(len(gram)), count)))
    blocks = gram[designs.unsqueeze(-1), designs.unsqueeze(-2)]
    return float(gram_info_gain(blocks, regularizer).max())


def domain(shard: int, index: int) -> tuple[Tensor, float, torch.Generator]:
    """A random kernel matrix of up to 7 points (unit variance), and λ."""
    source = generator(3, shard, index)
    size = int(torch.randint(4, 8, (1,), generator=source))
    dim = 1 + index % 2
    kernel = (kernels.rbf(0.4), kernels.matern(0.5, 0.5), kernels.matern(2.5, 0.3), kernels.rbf(1.0))[index % 4]
    points = torch.rand(size, dim, dtype=torch.float64, generator=source)
    lam = 10.0 ** float(torch.rand(1, generator=source) * 3 - 2)
    return kernels.cross(kernel, points, points), lam, source


def finite_domain(shard: int, budget: Budget, broken: bool) -> Sample:
    """greedy/(1 − 1/e) and the online bound against all designs of T ≤ 4 points; broken: greedy itself."""
    rows = []
    for index in range(40):
        gram, lam, _ = domain(shard, index)
        for count in (2, 3, 4):
            truth = brute_force(gram, count, lam)
            if broken:
                bound = float(greedy(gram, count, lam).gains[-1])
            else:
                bound = min(float(greedy_bound(gram, count, lam)), float(online_bound(gram, count, lam)))
            rows.append([truth, bound])
    return {"rows": rows}


def gram(shard: int, budget: Budget, broken: bool) -> Sample:
    """The bound for every D against g of random designs of up to 60 points; broken: without the tail's
    trace.
    """
    rows = []
    for index in range(40):
        source = generator(4, shard, index)
        count = int(torch.randint(1, 61, (1,), generator=source))
        kernel = (kernels.rbf(0.2), kernels.matern(0.5, 0.5), kernels.matern(1.5, 0.3))[index % 3]
        points = torch.rand(count, 1 + index % 2, dtype=torch.float64, generator=source)
        lam = 10.0 ** float(torch.rand(1, generator=source) * 4 - 3)
        matrix = kernels.cross(kernel, points, points)
        truth = float(gram_info_gain(matrix, lam))
        if broken:
            values = torch.linalg.eigvalsh(matrix).flip(-1).clamp_min(0.0)
            tails = (values.sum() - torch.cat([values.new_zeros(1), values.cumsum(-1)])) / (2 * lam)
            bounds = eigenvalue_bound(values, lam) - tails
        else:
            bounds = gram_bound(matrix, lam)
        rows.append([truth, float(bounds.min())])
    return {"rows": rows}


def linear(shard: int, budget: Budget, broken: bool) -> Sample:
    """(d/2)ln(1 + kT/(dλ)) against the best design of tiny domains (unit vectors); broken: d = 1 in the
    formula.
    """
    rows = []
    for index in range(30):
        source = generator(5, shard, index)
        dim = 2 + index % 2
        points = torch.randn(5, dim, dtype=torch.float64, generator=source)
        points = torch.cat([points / points.norm(dim=-1, keepdim=True), torch.eye(dim, dtype=torch.float64)])
        lam = 10.0 ** float(torch.rand(1, generator=source) * 3 - 2)
        matrix = points @ points.T
        for count in (2, 3, 4):
            truth = brute_force(matrix, count, lam)
            rows.append([truth, linear_bound(1 if broken else dim, count, 1.0, lam)])
    return {"rows": rows}


def judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest relative shortfall (truth − bound)/truth."""
    rows = [row for s in samples for row in s["rows"]]
    truth, bound = worst_of(rows, key=lambda row: (row[0] - row[1]) / row[0])
    value = (truth - bound) / truth
    witness = f"brute force {truth:.9g}, bound {bound:.9g}"
    ratios = sorted(b / t for t, b in rows)
    data = {"rows": rows[:400], "median_ratio": ratios[len(ratios) // 2], "smallest_ratio": ratios[0]}
    return Evidence(len(rows), value, Verdict(value, value, TOLERANCE, witness=witness), data)


def plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    """Bound against brute force, claim and control."""
    axes = figure.subplots()
    for data, noun, label in ((claim, "claim", "bound"), (control, "control", "control")):
        axes.plot(
            [r[0] for r in data["rows"]], [r[1] for r in data["rows"]], ms=3, label=label, **plotting.look(noun).points
        )
    top = max(r[0] for r in claim["rows"])
    axes.plot([0, top], [0, top], lw=1, label="equal", **plotting.look("truth").line)
    axes.set_xlabel("brute force")
    axes.set_ylabel("bound")
    axes.set_ylim(0, 1.6 * top)
    axes.legend()


_HERE = sys.modules[__name__]


def _closer(bound: Tensor, factor: float) -> Tensor:
    """1/(1 − g/e) in place of 1/(1 − 1/e)."""
    return bound * (1 - math.exp(-1)) / (1 - factor * math.exp(-1))


def _shorter(bound: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
    """g T steps left in place of T."""

    def less(gram: Tensor, count: int, regularizer: float) -> Tensor:
        run = greedy(gram, count, regularizer)
        left = 0.5 * factor * count * torch.log1p(run.largest_variance / regularizer)
        return torch.minimum(bound(gram, count, regularizer), (run.gains + left).min(-1).values)

    return less


def _parts(tail: bool) -> Callable[[Callable[..., Tensor], float], Callable[..., Tensor]]:
    """The bound for every D with its head, or its tail, scaled; without the other part it is found by subtraction."""

    def change(bound: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
        def less(gram: Tensor, regularizer: float) -> Tensor:
            values = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0.0)
            kept = torch.cat([torch.zeros_like(values[..., :1]), values.cumsum(-1)], dim=-1)
            tails = 0.5 * (kept[..., -1:] - kept).clamp_min(0.0) / regularizer
            whole = bound(gram, regularizer)
            return whole - (1 - factor) * (tails if tail else whole - tails)

        return less

    return change


def _fewer(bound: Callable[..., float], factor: float) -> Callable[..., float]:
    """kT scaled inside the logarithm."""
    return lambda dim, count, most, regularizer: bound(dim, count, factor * most, regularizer)


def _flatter(_: Callable[..., float], factor: float) -> Callable[..., float]:
    """1 + g(d − 1) in place of d: the formula itself, whose dimension need not be whole then."""

    def less(dim: int, count: int, most: float, regularizer: float) -> float:
        used = past_one(dim, factor)
        return 0.5 * used * math.log1p(most * count / (used * regularizer))

    return less


def _check(
    name: str,
    claim: str,
    source: str,
    control: str,
    sample: Callable[[int, Budget, bool], Sample],
    grades: tuple[Grade, ...],
) -> Check:
    return Check(
        name=name,
        claim=claim,
        source=source,
        assumptions=("float64 arithmetic up to 1e-9",),
        statistic="largest (g − bound)/g; threshold 1e-9 for rounding",
        control=control,
        shards=SHARDS,
        sample=sample,
        judge=judge,
        plot=plot,
        grades=grades,
    )


CHECKS = (
    _check(
        "info-gain-finite-domain",
        "γ_T ≤ greedy/(1 − 1/e), and γ_T ≤ min_t G_t + (T/2)ln(1 + max σ_t²/λ), on a finite domain",
        "theory §2.12; Nemhauser, Wolsey & Fisher 1978; Minoux 1978",
        "the greedy value without the factor 1/(1 − 1/e)",
        finite_domain,
        (
            Grade("greedy bound", around(_HERE, "greedy_bound", times), (0,), (0.9, 0.8, 0.7, 0.6, 0.5)),
            Grade("1/e in 1/(1 − 1/e)", around(_HERE, "greedy_bound", _closer), (0,), (0.9, 0.5, 0.3, 0.1, 0.0)),
            Grade("online bound", around(_HERE, "online_bound", times), (0,), FACTORS),
            Grade("T points left in the online bound", replaced(_HERE, "online_bound", _shorter), (0,), FACTORS),
        ),
    ),
    _check(
        "info-gain-gram",
        "g ≤ (D/2)ln(1 + tr K_D/(Dλ)) + tr(K − K_D)/(2λ) for every D",
        "theory §2.12",
        "the tail's trace forgotten",
        gram,
        (
            Grade("head (D/2)ln(1 + tr K_D/(Dλ))", replaced(_HERE, "gram_bound", _parts(tail=False)), (0,), FACTORS),
            Grade("tail tr(K − K_D)/(2λ)", replaced(_HERE, "gram_bound", _parts(tail=True)), (0,), FACTORS),
        ),
    ),
    _check(
        "info-gain-linear",
        "γ_T ≤ (d/2)ln(1 + kT/(dλ)) for a linear kernel",
        "theory §2.12",
        "the formula with d = 1 on inputs of dimension 2 and 3",
        linear,
        (
            Grade("dimension d", replaced(_HERE, "linear_bound", _flatter), (0,), FACTORS),
            Grade("kT", replaced(_HERE, "linear_bound", _fewer), (0,), FACTORS),
        ),
    ),
)
