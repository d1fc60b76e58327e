"""Theory §3: sampled and hallucinated costs lie below the robust program; the truth lies below every sound bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from matplotlib.figure import Figure

from gpsafe.checks import Budget, Check, Evidence, Sample
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.base import CostBound
from gpsafe.cost.hallucinated import Hallucinated
from gpsafe.cost.robust_dp import Grid, RobustDP
from gpsafe.cost.sampled import Sampled
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rollout import closed_loop, transitions
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.verdict import Verdict

SOUND = ("robust-dp", "total-variation", "scenario-tube")
HEURISTIC = ("sampled", "hallucinated")
CHOSEN = (20, 40, 50, 54, 57, 58, 60, 66)  # set-points, from clearly safe to clearly unsafe


@lru_cache(maxsize=1)
def _system() -> RKHSTwin:
    return reference_1d(noise_std=0.03)


def _confidence(seed: int, episodes: int) -> ConfidenceSet:
    """F_n after some episodes of random policies, drawn in two generations."""
    system = _system()
    policies, _ = reference_1d_policies()
    generator = torch.Generator().manual_seed(seed)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.03, delta=0.1)
    model = GP.create(system.kernels, 0.03**2, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    confidence = ConfidenceSet(bound).update(model)
    for _ in range(2):
        pick = torch.randint(0, 60, (episodes,), generator=generator)
        noise = sample_noise(system.noise_std, (system.horizon, episodes, 1), generator)
        states, inputs = closed_loop(system.mean, policies.select(pick), system.initial_state, noise)
        model = model.condition(transitions(states, inputs))
        confidence = confidence.update(model)
    return confidence


def _setting(shard: int) -> tuple[AffinePolicies, ConfidenceSet, dict[str, Any]]:
    """Policies, F_n and the task of one shard."""
    system = _system()
    task = {"task": Task.of(system)}
    return reference_1d_policies()[0].select(torch.tensor(CHOSEN)), _confidence(shard, 1 + 2 * (shard % 3)), task


def _program(cells: int, task: Mapping[str, Any]) -> RobustDP:
    box = Box(torch.tensor([-1.2], dtype=torch.float64), torch.tensor([1.8], dtype=torch.float64))
    return RobustDP(Grid(box, (cells,)), **task)


def _lower_estimates(
    shard: int, policies: AffinePolicies, confidence: ConfidenceSet, task: Mapping[str, Any]
) -> dict[str, list[float]]:
    options: dict[str, Any] = {**task, "seed": 10_000 + shard, "samples": 160}
    return {
        "sampled": Sampled(**options).evaluate(confidence, policies).lower.tolist(),
        "hallucinated": Hallucinated(**options).evaluate(confidence, policies).lower.tolist(),
    }


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """All bounds and the truth for eight policies; the control presents the sampled estimate as a sound bound."""
    policies, confidence, task = _setting(shard)
    fine = _program(3000, task)
    enclosure = fine.enclosure(confidence, policies)
    exact = enclosure.with_residual(_system().residual_fn(enclosure.z))
    record: Sample = {"truth_low": fine.lower(exact).tolist(), "truth_high": fine.upper(exact).tolist()}
    options: dict[str, Any] = {**task, "seed": 10_000 + shard}
    if broken:
        sampled = Sampled(**options, samples=160).evaluate(confidence, policies)
        return {**record, "bounds": {"sampled": sampled.lower.tolist()}}
    sound: tuple[CostBound, ...] = (
        _program(750, task),
        TotalVariation(**options),
        ScenarioTube(**options, samples=800),
    )
    bounds = {bound.name: bound.evaluate(confidence, policies).upper.tolist() for bound in sound}
    return {**record, "bounds": {**bounds, **_lower_estimates(shard, policies, confidence, task)}}


def _worst(samples: Sequence[Sample], names: Sequence[str], truth: str) -> tuple[float, str]:
    """Largest truth − bound, and where."""
    found = [
        (t - b, f"{name}, set-point {CHOSEN[i]}: truth {t:.4f}, bound {b:.4f}")
        for s in samples
        for name in names
        for i, (t, b) in enumerate(zip(s[truth], s["bounds"][name], strict=True))
    ]
    return max(found)


def _judge_sound(samples: Sequence[Sample], broken: bool) -> Evidence:
    names = ("sampled",) if broken else SOUND
    low, _ = _worst(samples, names, "truth_low")
    high, where = _worst(samples, names, "truth_high")
    n = len(samples) * len(names) * len(CHOSEN)
    useful = {k: sum(v < 19.9 for s in samples for v in s["bounds"][k]) / (len(samples) * len(CHOSEN)) for k in names}
    told = ", ".join(f"{k} {v:.0%}" for k, v in useful.items())
    verdict = Verdict(low, max(low, high), 0.0, witness=f"tightest: {where}; not vacuous: {told}")
    return Evidence(n, high, verdict, {"samples": list(samples)})


def _sample_order(shard: int, budget: Budget, broken: bool) -> Sample:
    policies, confidence, task = _setting(shard)
    program = _program(750, task)
    if broken:  # the confidence width is left out: the program of the posterior mean
        enclosure = program.enclosure(confidence, policies)
        upper = program.upper(enclosure.with_residual(confidence.model.residual_mean(enclosure.z)))
    else:
        upper = program.evaluate(confidence, policies).upper
    return {"bounds": {"robust-dp": upper.tolist(), **_lower_estimates(shard, policies, confidence, task)}}


def _judge_order(samples: Sequence[Sample], broken: bool) -> Evidence:
    found = [
        (low - high, f"{name} {low:.4f} against robust {high:.4f}, set-point {CHOSEN[i]}")
        for s in samples
        for name in HEURISTIC
        for i, (low, high) in enumerate(zip(s["bounds"][name], s["bounds"]["robust-dp"], strict=True))
    ]
    found += [
        (low - high, f"sampled {low:.4f} against hallucinated {high:.4f}, set-point {CHOSEN[i]}")
        for s in samples
        for i, (low, high) in enumerate(zip(s["bounds"]["sampled"], s["bounds"]["hallucinated"], strict=True))
    ]
    value, where = max(found)
    return Evidence(len(found), value, Verdict(value, value, 0.0, witness=where), {"samples": list(samples)})


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(8, 4)
    axes = figure.subplots()
    sample = claim["samples"][-1]
    marks = {"robust-dp": "s", "total-variation": "^", "scenario-tube": "o", "sampled": "v", "hallucinated": "D"}
    for name, values in sample["bounds"].items():
        axes.plot(CHOSEN, values, marker=marks[name], linestyle=":", label=name, fillstyle="none")
    axes.plot(CHOSEN, sample["truth_high"], color="black", marker="_", label="truth")
    axes.axhline(0.2, color="grey", linestyle="--", linewidth=0.8, label="d")
    axes.set(xlabel="policy (set-point index)", ylabel="cost", yscale="symlog", title="one confidence set, all bounds")
    axes.set_ylim(bottom=-0.05)
    axes.legend(fontsize="small", ncols=2)


_COMMON: dict[str, Any] = {
    "assumptions": (
        "rkhs_norm<=B (exact twin)",
        "gaussian noise of known variance",
        "Monte-Carlo parts within their δ",
    ),
    "shards": {"quick": 6, "full": 60},
    "control_shards": {"quick": 3, "full": 12},
}
CHECKS = (
    Check(
        name="cost-bounds-sound",
        claim="When f* ∈ F_n, J_c(π, f*) is below the robust program, the total-variation and the scenario-tube bound.",
        source="theory §3.3–3.5",
        statistic="largest J_c(π, f*) − bound over policies, data sets and bounds",
        control="the sampled estimate, a lower estimate of the supremum, is presented as a bound",
        sample=_sample,
        judge=_judge_sound,
        plot=_plot,
        **_COMMON,
    ),
    Check(
        name="cost-bounds-order",
        claim="sampled ≤ hallucinated ≤ robust program.",
        source="theory §3.1–3.3",
        statistic="largest excess of a lower estimate over the next bound, over policies and data sets",
        control="the robust program forgets the confidence width (posterior mean only)",
        sample=_sample_order,
        judge=_judge_order,
        **_COMMON,
    ),
)
