"""Theory §3.4: the simulation lemma, |J_c(π, f) − J_c(π, f′)| ≤ C Σ_t (T−1−t) E_{π,f′}[2Φ(‖Σ_w^{-1/2}(f−f′)‖/2) − 1].

Both forms, with and without the cap Σ d_t ≤ 1, are tested on the same pairs of chains, where both sides are exact.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting, rkhs
from gpsafe.cost.total_variation import parting_rate, simulation_gap
from gpsafe.linalg import vector
from gpsafe.rkhs import kernels
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict

from ._defects import FACTORS, around, times

PAIRS = 40


def _binned(mean: Tensor, std: float, edges: Tensor) -> Tensor:
    """Transition matrix of x⁺ = mean(x) + w between the cells of a grid; what leaves it stays in the end cells.

    Binning is a channel: it cannot increase total variation, so the lemma with 2Φ(|f − f′|/2σ) − 1 holds exactly.
    """
    inner = torch.special.ndtr((edges[1:-1] - mean.unsqueeze(-1)) / std)
    zero, one = torch.zeros_like(mean).unsqueeze(-1), torch.ones_like(mean).unsqueeze(-1)
    return torch.diff(torch.cat([zero, inner, one], dim=-1), dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two chains of T steps on one grid.

    Attributes:
        gap: |J_c(f) − J_c(f′)|.
        difference: |f − f′| per cell, (S,).
        noise_std: σ.
        visits: distribution of x′_t over the cells, (T, S).
    """

    gap: float
    difference: Tensor
    noise_std: float
    visits: Tensor


@lru_cache(maxsize=8)
def _pairs(shard: int) -> tuple[Pair, ...]:
    """Pairs of chains with 400 states.

    Half of the pairs differ only where a bistable plant decides to which side it goes, so that the first step decides
    all later costs: there the lemma is nearly an equality.
    """
    generator = torch.Generator().manual_seed(700 + shard)
    edges = torch.linspace(-2.0, 2.0, 401, dtype=torch.float64)
    x = 0.5 * (edges[1:] + edges[:-1])
    start = 200
    found = []
    for pair in range(PAIRS):
        draw = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
        horizon, std = 2 + int(12 * draw[0]), 0.1 + 0.3 * draw[1]
        if pair % 2 == 0:
            base, shift = 1.6 * torch.sign(x), std * (0.05 + 2 * draw[2])
            bump = torch.exp(-0.5 * ((x - x[start]) / 0.004).square())
            base = torch.where(bump > 0.5, torch.zeros_like(base), base)
            first, second = base + shift * bump, base - shift * bump
            cost = (x > 0.01).double()
        else:
            kernel = kernels.rbf(0.3 + draw[2], variance=0.3)
            span = (vector(-2.0), vector(2.0))
            first, second = (
                rkhs.random_function(kernel, *span, norm=1.0 + 3 * draw[3], generator=generator)(x.unsqueeze(-1))
                for _ in range(2)
            )
            second = first + draw[2] * (second - first)
            cost = (x > draw[3]).double()
        totals, visits = [], torch.zeros(horizon, len(x), dtype=torch.float64)
        for mean in (first, second):
            chain, mass, total = _binned(mean, std, edges), torch.zeros_like(x), 0.0
            mass[start] = 1.0
            for t in range(horizon):
                visits[t] = mass  # in the end those of the second
                total += float(mass @ cost)
                mass = mass @ chain
            totals.append(total)
        found.append(Pair(abs(totals[0] - totals[1]), (first - second).abs(), std, visits))
    return tuple(found)


def weighted(rates: Tensor, ceiling: float) -> Tensor:
    """C Σ_t p_t (T−1−t): the lemma without its cap, p (T,)."""
    ahead = torch.arange(len(rates) - 1, -1, -1, dtype=rates.dtype)
    return ceiling * (rates * ahead).sum()


def _sample(shard: int, budget: Budget, broken: bool, *, capped: bool) -> Sample:
    """Both sides on 40 pairs; the control loses T−2−t steps after parting at t, one too few."""
    pairs, bounds = _pairs(shard), []
    for pair in pairs:
        rates = pair.visits @ parting_rate(pair.difference.unsqueeze(-1), vector(pair.noise_std))
        bound = simulation_gap if capped else weighted
        bounds.append(float(bound(rates[: len(rates) - 1] if broken else rates, 1.0)))
    return {"gap": [pair.gap for pair in pairs], "bound": bounds}


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    gaps, bounds = (np.concatenate([s[key] for s in samples]) for key in ("gap", "bound"))
    value = float((gaps - bounds).max())
    ratio = float((gaps / np.maximum(bounds, 1e-12))[bounds > 1e-3].max(initial=0.0))
    witness = f"{len(gaps)} pairs of chains; largest gap/bound {ratio:.3f}"
    data = {"gap": gaps.tolist(), "bound": bounds.tolist()}
    return Evidence(len(gaps), value, Verdict(value, value, 1e-12, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    axes.scatter(claim["bound"], claim["gap"], s=12, color=plotting.colour("claim"), label="lemma")
    axes.scatter(control["bound"], control["gap"], s=12, color=plotting.colour("control"), marker="x", label="control")
    limit = max(max(claim["bound"]), 1.0)
    axes.plot([0, limit], [0, limit], linewidth=0.8, label="gap = bound", **plotting.look("truth").line)
    axes.set(xlabel="bound of the lemma", ylabel="|J_c(π, f) − J_c(π, f′)|", title="simulation lemma")
    axes.legend()


_RATE = parting_rate


def _nearer(factor: float) -> AbstractContextManager[object]:
    """τ of g‖Σ_w^{-1/2}(f − f′)‖."""
    return mock.patch(f"{__name__}.parting_rate", lambda gap, noise_std: _RATE(factor * gap, noise_std))


def _check(name: str, claim: str, function: str, *, capped: bool) -> Check:
    here = sys.modules[__name__]
    return Check(
        name=name,
        claim=claim,
        source="theory §3.4; ActSafe, Lemma on the cost difference",
        assumptions=("gaussian noise of known variance",),
        statistic="largest (gap − bound) over pairs of binned chains, both sides exact; half of the pairs nearly attain it",
        control="T−2−t steps are lost after parting at t instead of T−1−t",
        shards={"quick": 2, "full": 40},
        control_shards={"quick": 1, "full": 4},
        sample=partial(_sample, capped=capped),
        judge=_judge,
        plot=_plot,
        grades=(
            Grade("parting rate 2Φ(d/2) − 1", around(here, "parting_rate", times), (0,), FACTORS),
            Grade("scaled distance d", _nearer, (0,), FACTORS),
            Grade("steps lost after parting", around(here, function, times), (0,), FACTORS),
        ),
    )


CHECKS = (
    _check(
        "simulation-lemma",
        "|J_c(π, f) − J_c(π, f′)| ≤ C Σ_t (T−1−t) E_{π,f′}[2Φ(‖Σ_w^{-1/2}(f−f′)(z_t)‖/2) − 1].",
        "weighted",
        capped=False,
    ),
    _check(
        "simulation-lemma-capped",
        "|J_c(π, f) − J_c(π, f′)| ≤ C·max{Σ_t d_t(T−1−t) : 0 ≤ d_t ≤ p_t, Σ d_t ≤ 1}.",
        "simulation_gap",
        capped=True,
    ),
)
