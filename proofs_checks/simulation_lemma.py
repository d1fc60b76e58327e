"""Theory §3.4: the simulation lemma, |J_c(π, f) − J_c(π, f′)| ≤ C Σ_t (T−1−t) E_{π,f′}[2Φ(‖Σ_w^{-1/2}(f−f′)‖/2) − 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import kernels, rkhs
from gpsafe.checks import Budget, Check, Evidence, Sample
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.robust_dp import Grid, RobustDP
from gpsafe.cost.total_variation import parting_rate, simulation_gap
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import set_point_policies
from gpsafe.rollout import closed_loop
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task
from gpsafe.verdict import Verdict, hoeffding_radius

HORIZON = 5
PATHS = 4_000
FAILURE = 1e-3


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """One pair f, f′ of random functions of norm 1 and eight set-points: both sides with their intervals."""
    generator = torch.Generator().manual_seed(400 + shard)
    kernel = kernels.rbf([1.0, 2.0], variance=0.01)
    box = (vector(-0.5, -1.0), vector(1.6, 1.0))
    pair = [rkhs.random_function(kernel, *box, norm=1.0, generator=generator) for _ in range(2)]
    known = AffineKnown(vector(1.0).reshape(1, 1), vector(0.25).reshape(1, 1), vector(0.0))
    targets = torch.linspace(0.8, 1.1, 8, dtype=torch.float64)[:, None]
    gain = vector(3.0).reshape(1, 1)
    policies = set_point_policies(targets, gain, torch.zeros(8, 1).double(), Box(vector(-1.0), vector(1.0)))
    noise_std, start = vector(0.05), vector(0.5)
    cost = IndicatorCost(vector(1.0).reshape(1, 1), vector(1.0))
    dp = RobustDP(Grid(Box(vector(-0.2), vector(1.8)), (1600,)), Task(start, HORIZON, cost, 1.0, noise_std))
    model = GP.create(kernel, 0.0025, nx=1, nu=1, noise_std=noise_std, prior=known)
    bound = Mixture(rkhs_norm=1.0 + 1e-9, subgaussian=0.05, delta=0.1)
    enclosure = dp.enclosure(ConfidenceSet(bound).update(model), policies)
    exact = [enclosure.with_residual(f(enclosure.z).unsqueeze(-1)) for f in pair]
    upper, lower = [dp.upper(e) for e in exact], [dp.lower(e) for e in exact]
    gap_low = torch.maximum(lower[0] - upper[1], lower[1] - upper[0]).clamp_min(0.0)
    gap_high = torch.maximum(upper[0] - lower[1], upper[1] - lower[0])

    def mean(x: Tensor, u: Tensor) -> Tensor:
        return known(x, u) + pair[1](torch.cat([x, u], dim=-1)).unsqueeze(-1)

    states, inputs = closed_loop(mean, policies, start, sample_noise(noise_std, (HORIZON, 1, PATHS), generator))
    z = torch.cat([states[..., :-1, :], inputs], dim=-1)
    difference = (pair[0](z) - pair[1](z)).abs().unsqueeze(-1)
    rate = parting_rate(difference, noise_std * (10.0 if broken else 1.0)).mean(1)  # (P, T)
    weights = torch.arange(HORIZON - 1, -1, -1, dtype=torch.float64)
    bound_value = (rate * weights).sum(-1)
    radius = hoeffding_radius(PATHS, float(weights.sum()), FAILURE)
    return {
        "excess_low": (gap_low - bound_value - radius).tolist(),
        "excess_high": (gap_high - bound_value + radius).tolist(),
        "gap": gap_high.tolist(),
        "bound": bound_value.tolist(),
    }


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    low = max(max(s["excess_low"]) for s in samples)
    high = max(max(s["excess_high"]) for s in samples)
    gaps = np.concatenate([s["gap"] for s in samples])
    bounds = np.concatenate([s["bound"] for s in samples])
    used = float(np.median(gaps / np.maximum(bounds, 1e-12)))
    witness = (
        f"{len(gaps)} pairs and policies; gap/bound: median {used:.2f}, largest {float((gaps / bounds).max()):.2f}"
    )
    data = {"gap": gaps.tolist(), "bound": bounds.tolist()}
    return Evidence(len(gaps), high, Verdict(low, high, 0.0, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    axes.scatter(claim["bound"], claim["gap"], s=12, color="#0072B2", label="lemma")
    axes.scatter(control["bound"], control["gap"], s=12, color="#D55E00", marker="x", label="control")
    limit = max(max(claim["bound"]), 1.0)
    axes.plot([0, limit], [0, limit], color="black", linewidth=0.8, label="gap = bound")
    axes.set(xlabel="bound of the lemma", ylabel="|J_c(π, f) − J_c(π, f′)|", title="simulation lemma")
    axes.legend(fontsize="small")


def _binned(mean: Tensor, std: float, edges: Tensor) -> Tensor:
    """Transition matrix of x⁺ = mean(x) + w between the cells of a grid; what leaves it stays in the end cells.

    Binning is a channel: it cannot increase total variation, so the lemma with 2Φ(|f − f′|/2σ) − 1 holds exactly.
    """
    inner = torch.special.ndtr((edges[1:-1] - mean.unsqueeze(-1)) / std)
    zero, one = torch.zeros_like(mean).unsqueeze(-1), torch.ones_like(mean).unsqueeze(-1)
    return torch.diff(torch.cat([zero, inner, one], dim=-1), dim=-1)


def _sample_capped(shard: int, budget: Budget, broken: bool) -> Sample:
    """Both sides of the capped lemma on 40 pairs of chains with 400 states, computed exactly.

    Half of the pairs differ only where a bistable plant decides to which side it goes, so that the first step decides
    all later costs: there the lemma is nearly an equality.
    """
    generator = torch.Generator().manual_seed(700 + shard)
    edges = torch.linspace(-2.0, 2.0, 401, dtype=torch.float64)
    x = 0.5 * (edges[1:] + edges[:-1])
    start = 200
    gaps, bounds = [], []
    for pair in range(40):
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
        chains = [_binned(mean, std, edges) for mean in (first, second)]
        rate = parting_rate((first - second).abs().unsqueeze(-1), vector(std))
        masses = [torch.zeros_like(x).index_fill_(0, torch.tensor(start), 1.0) for _ in chains]
        totals, rates = [0.0, 0.0], []
        for _ in range(horizon):
            rates.append(masses[1] @ rate)
            for i, chain in enumerate(chains):
                totals[i] += float(masses[i] @ cost)
                masses[i] = masses[i] @ chain
        parting = torch.stack(rates)
        # the control shortens what is lost after parting by one step: T − 2 − t
        bound = float(simulation_gap(parting[: horizon - 1], 1.0)) if broken else float(simulation_gap(parting, 1.0))
        gaps.append(abs(totals[0] - totals[1]))
        bounds.append(bound)
    return {"gap": gaps, "bound": bounds}


def _judge_capped(samples: Sequence[Sample], broken: bool) -> Evidence:
    gaps, bounds = (np.concatenate([s[key] for s in samples]) for key in ("gap", "bound"))
    value = float((gaps - bounds).max())
    ratio = float((gaps / np.maximum(bounds, 1e-12))[bounds > 1e-3].max())
    witness = f"{len(gaps)} pairs of chains; largest gap/bound {ratio:.3f}"
    data = {"gap": gaps.tolist(), "bound": bounds.tolist()}
    return Evidence(len(gaps), value, Verdict(value, value, 1e-12, witness=witness), data)


CHECKS = (
    Check(
        name="simulation-lemma",
        claim="|J_c(π, f) − J_c(π, f′)| ≤ C Σ_t (T−1−t) E_{π,f′}[2Φ(‖Σ_w^{-1/2}(f−f′)(z_t)‖/2) − 1].",
        source="theory §3.4; ActSafe, Lemma on the cost difference",
        assumptions=("gaussian noise of known variance",),
        statistic="largest (gap − bound): gap by rigorous sweeps, bound by Monte Carlo with a Hoeffding radius",
        control="the noise is believed ten times larger",
        shards={"quick": 12, "full": 100},
        control_shards={"quick": 6, "full": 20},
        sample=_sample,
        judge=_judge,
        plot=_plot,
    ),
    Check(
        name="simulation-lemma-capped",
        claim="|J_c(π, f) − J_c(π, f′)| ≤ C·max{Σ_t d_t(T−1−t) : 0 ≤ d_t ≤ p_t, Σ d_t ≤ 1}.",
        source="theory §3.4",
        assumptions=("gaussian noise of known variance",),
        statistic="largest (gap − bound) over pairs of binned chains, both sides exact; half of the pairs nearly attain it",
        control="T−2−t steps are lost after parting at t instead of T−1−t",
        shards={"quick": 4, "full": 40},
        control_shards={"quick": 1, "full": 4},
        sample=_sample_capped,
        judge=_judge_capped,
        plot=_plot,
    ),
)
