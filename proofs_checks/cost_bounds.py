"""Theory §3.8: sampled and hallucinated costs lie below the robust program; the truth lies below every sound bound.

The first pieces are plants on which one term of one bound leads (`proofs_checks._cost_edges`); the others are sets learned
from episodes of the one-dimensional reference plant. What a Monte-Carlo part may fail with is checked by itself
(`proofs_checks.monte_carlo_limits`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import enclosure, grid, in_cell, robust_dp, total_variation
from gpsafe.cost.base import CostBound
from gpsafe.cost.enclosure import Enclosure
from gpsafe.cost.gaussian_tube import GaussianTube, Stage
from gpsafe.cost.grid import Grid
from gpsafe.cost.hallucinated import Hallucinated
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.sampled import Sampled
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.known import SineKnown
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._cost_edges import EDGES, cost_edge, fewer_states, fewer_steps
from ._defects import FACTORS, Scaled, around, times

SOUND = ("robust-dp", "total-variation", "scenario-tube", "gaussian-tube")
HEURISTIC = ("sampled", "hallucinated")
CHOSEN = (20, 40, 50, 54, 57, 58, 60, 66)  # set-points, from clearly safe to clearly unsafe
ORDERED = (20, 54, 58, 66)
REACHED = ("value", "cap", "known slope", "outside", "stage")  # edges where a hallucinated f reaches the robust bound


@lru_cache(maxsize=1)
def _system() -> RKHSTwin:
    return reference_1d(noise_std=0.03)


@lru_cache(maxsize=8)
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


def _setting(shard: int, chosen: Sequence[int]) -> tuple[AffinePolicies, ConfidenceSet, dict[str, Any]]:
    """Policies, F_n and the task of one shard."""
    system = _system()
    task = {"task": Task.of(system)}
    return reference_1d_policies()[0].select(torch.tensor(chosen)), _confidence(shard, 1 + 2 * (shard % 3)), task


def _program(cells: int, task: Mapping[str, Any]) -> RobustDP:
    box = Box(torch.tensor([-1.2], dtype=torch.float64), torch.tensor([1.8], dtype=torch.float64))
    return RobustDP(Grid(box, (cells,)), **task)


# ------------------------------------------------------------------ truth below the sound bounds
def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """One edge, or all sound bounds and the truth for eight policies; the control presents the sampled estimate as sound."""
    if broken:
        return _learned(shard, broken=True)
    if shard >= len(EDGES):
        return _learned(shard - len(EDGES), broken=False)
    found = cost_edge(EDGES[shard])
    # made anew: some bounds tabulate what they need when they are made
    bound: CostBound = replace(found.bound)  # pyright: ignore[reportArgumentType, reportAssignmentType]
    upper = bound.evaluate(found.confidence, found.policies).upper.tolist()
    return {
        "policies": [EDGES[shard]],
        "truth_low": [found.truth],
        "truth_high": [found.truth],
        "bounds": {bound.name: upper},
    }


@lru_cache(maxsize=8)
def _truth(shard: int) -> tuple[list[float], list[float]]:
    """J_c of f* from below and from above, by the robust program of the known residual on fine cells."""
    policies, confidence, task = _setting(shard, CHOSEN)
    fine = _program(3000, task)
    cells = fine.enclosure(confidence, policies)
    exact = cells.with_residual(_system().residual_fn(cells.z))
    # less its own outward rounding, which the bounds have too: where both are 0 they would tie
    high = (fine.upper(exact) - 1e-9) / (1 + 1e-9)
    return fine.lower(exact).tolist(), high.clamp_min(0.0).tolist()


def _learned(shard: int, *, broken: bool) -> Sample:
    policies, confidence, task = _setting(shard, CHOSEN)
    low, high = _truth(shard)
    record: Sample = {"policies": [f"set-point {i}" for i in CHOSEN], "truth_low": low, "truth_high": high}
    options: dict[str, Any] = {**task, "seed": 10_000 + shard}
    tried: tuple[CostBound, ...] = (
        (Sampled(**options, samples=100, draws=32),)
        if broken
        else (
            _program(750, task),
            TotalVariation(**options, samples=400),
            ScenarioTube(**options, samples=400),
            GaussianTube(**task),
        )
    )
    bounds = {
        bound.name: (
            bound.evaluate(confidence, policies).lower if broken else bound.evaluate(confidence, policies).upper
        )
        for bound in tried
    }
    return {**record, "bounds": {name: value.tolist() for name, value in bounds.items()}}


def _worst(samples: Sequence[Sample], truth: str) -> tuple[float, str]:
    """Largest truth − bound, and where."""
    found = [
        (t - b, f"{name}, {policy}: truth {t:.4f}, bound {b:.4f}")
        for s in samples
        for name, values in s["bounds"].items()
        for policy, t, b in zip(s["policies"], s[truth], values, strict=True)
    ]
    return worst_of(found, key=itemgetter(0))


def _judge_sound(samples: Sequence[Sample], broken: bool) -> Evidence:
    low, _ = _worst(samples, "truth_low")
    high, where = _worst(samples, "truth_high")
    learned = [s for s in samples if len(s["policies"]) > 1]
    n = sum(len(values) for s in samples for values in s["bounds"].values())
    useful = {k: [v < 19.9 for s in learned for v in s["bounds"][k]] for k in (learned[0]["bounds"] if learned else ())}
    told = ", ".join(f"{k} {np.mean(v):.0%}" for k, v in useful.items())
    verdict = Verdict(low, worst_of(low, high), 0.0, witness=f"tightest: {where}; not vacuous: {told}")
    return Evidence(n, high, verdict, {"samples": learned})


# ------------------------------------------------------------------ lower estimates below the robust program
@lru_cache(maxsize=16)
def _lower_estimates(shard: int) -> dict[str, list[float]]:
    """Sampled and hallucinated: they do not depend on the robust program, so its defects need not repeat them."""
    if shard < len(REACHED):
        found = cost_edge(REACHED[shard])
        assert isinstance(found.bound, RobustDP)
        task = {"task": found.bound.task}
        confidence, policies, size = found.confidence, found.policies, {"samples": 400}
    else:
        policies, confidence, task = _setting(shard - len(REACHED), ORDERED)
        size = {"samples": 64}
    options: dict[str, Any] = {**task, **size, "seed": 10_000 + shard}
    hallucinated = Hallucinated(**options, sampled=Sampled(**options, draws=24))
    return {
        "sampled": Sampled(**options, draws=24).evaluate(confidence, policies).lower.tolist(),
        "hallucinated": hallucinated.evaluate(confidence, policies).lower.tolist(),
    }


def _sample_order(shard: int, budget: Budget, broken: bool) -> Sample:
    """One edge, or four policies of a learned set; the control runs the program of the posterior mean."""
    lower = _lower_estimates(shard)
    if shard < len(REACHED):
        found = cost_edge(REACHED[shard])
        assert isinstance(found.bound, RobustDP)
        program, confidence, policies = replace(found.bound), found.confidence, found.policies
        names = [REACHED[shard]]
    else:
        policies, confidence, task = _setting(shard - len(REACHED), ORDERED)
        program, names = _program(750, task), [f"set-point {i}" for i in ORDERED]
    if broken:
        cells = program.enclosure(confidence, policies)
        upper = program.upper(cells.with_residual(confidence.model.residual_mean(cells.z)))
    else:
        upper = program.evaluate(confidence, policies).upper
    return {"policies": names, "bounds": {"robust-dp": upper.tolist(), **lower}}


def _judge_order(samples: Sequence[Sample], broken: bool) -> Evidence:
    pairs = [("sampled", "robust-dp"), ("hallucinated", "robust-dp"), ("sampled", "hallucinated")]
    found = [
        (low - high, f"{below} {low:.4f} against {above} {high:.4f}, {policy}")
        for s in samples
        for below, above in pairs
        for policy, low, high in zip(s["policies"], s["bounds"][below], s["bounds"][above], strict=True)
    ]
    value, where = worst_of(found, key=itemgetter(0))
    return Evidence(len(found), value, Verdict(value, value, 0.0, witness=where), {"samples": list(samples)})


# ------------------------------------------------------------------ defects of one term each
def _third(name: str, index: int) -> Scaled:
    """Scales one of the three results of `closed_loop_range`."""

    def change(found: tuple[Tensor, Tensor, Tensor], factor: float) -> tuple[Tensor, ...]:
        return tuple(part * factor if i == index else part for i, part in enumerate(found))

    return around(enclosure, name, change)


def _narrower(found: tuple[Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor]:
    middle, half = 0.5 * (found[0] + found[1]), 0.5 * factor * (found[1] - found[0])
    return middle - half, middle + half


def _less_cap(cells: Enclosure, factor: float) -> Enclosure:
    return replace(cells, cap=factor * cells.cap)


def _less_hessian(factor: float) -> AbstractContextManager[object]:
    original = SineKnown.hessian_bound
    return mock.patch.object(SineKnown, "hessian_bound", property(lambda self: factor * original.__get__(self)))


_MATRICES = grid._average_matrices


def _less_shift(factor: float) -> AbstractContextManager[object]:
    """The average at the centre of a sub-cell, and of what the rest of the sub-cell adds only the share g."""

    def matrices(width: float, cells: int, split: int, std: float) -> tuple[Tensor, Tensor]:
        inner, strip = _MATRICES(width, cells, split, std)
        if std == 0.0:
            return inner, strip
        rows = (torch.arange(cells * split, dtype=torch.float64) + 0.5) * (width / split)
        edges = torch.arange(cells + 1, dtype=torch.float64) * width
        below = torch.special.ndtr((edges - rows.unsqueeze(-1)) / std)
        middle = torch.cat([below[:, :1], below.diff(dim=-1), 1.0 - below[:, -1:]], -1)
        return factor * inner + (1.0 - factor) * middle, factor * strip

    return mock.patch.object(grid, "_average_matrices", matrices)


_RUN, _UPPER = RobustDP._run, IndicatorCost.upper


def _less_outside(factor: float) -> AbstractContextManager[object]:
    def run(self: RobustDP, cells: Enclosure, stage: Tensor, outside_rate: float) -> Tensor:
        return _RUN(self, cells, stage, factor * outside_rate)

    return mock.patch.object(RobustDP, "_run", run)


def _less_of_the_cell(factor: float) -> AbstractContextManager[object]:
    def upper(self: IndicatorCost, low: Tensor, high: Tensor) -> Tensor:
        return _UPPER(self, *_narrower((low, high), factor))

    return mock.patch.object(IndicatorCost, "upper", upper)


def _less_failure(factor: float) -> AbstractContextManager[object]:
    original = GaussianTube.failure
    return mock.patch.object(GaussianTube, "failure", property(lambda self: factor * original.__get__(self)))


_EXCEED = Stage.exceed


def _less_union(factor: float) -> AbstractContextManager[object]:
    """The likeliest half-space, and of the others' sum the share g."""

    def exceed(self: Stage, cost: IndicatorCost) -> Tensor:
        rows = zip(cost.normals.unsqueeze(1), cost.offsets.unsqueeze(1), strict=True)
        single = torch.stack([_EXCEED(self, IndicatorCost(*row)) for row in rows]).amax(0)
        return single + factor * (_EXCEED(self, cost) - single)

    return mock.patch.object(Stage, "exceed", exceed)


def _less_extent(factor: float) -> AbstractContextManager[object]:
    def exceed(self: Stage, cost: IndicatorCost) -> Tensor:
        sure = replace(self.sure, generators=factor * self.sure.generators)
        return _EXCEED(replace(self, sure=sure), cost)

    return mock.patch.object(Stage, "exceed", exceed)


def _less_deviation(stage: Stage, factor: float) -> Stage:
    return replace(stage, factor=factor * stage.factor)


def _less_rest(blocks: list[Any], factor: float) -> list[Any]:
    return [replace(block, rest=factor * block.rest) for block in blocks]


def _flatter(found: tuple[Tensor, Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor, Tensor]:
    gain, low, high = found
    return gain, factor * low, factor * high


_SEMINORM = in_cell.Loop.seminorm


def _less_growth(factor: float) -> AbstractContextManager[object]:
    """The deviation at the cell's centre, and of what the rest of the cell adds only the share g."""

    def seminorm(self: in_cell.Loop, gram: Tensor, lean: Tensor | None = None) -> Tensor:
        found = _SEMINORM(self, gram, lean)
        centre = torch.zeros_like(found) if lean is None else lean[..., 0].clamp_min(0.0).sqrt()
        return centre + factor * (found - centre)

    return mock.patch.object(in_cell.Loop, "seminorm", seminorm)


def _on(term: str, names: Sequence[str], order: Sequence[str], scaled: Scaled) -> Grade:
    def prepared(factor: float) -> AbstractContextManager[object]:
        for name in names:
            cost_edge(name)
        return scaled(factor)

    return Grade(term, prepared, tuple(order.index(name) for name in names), FACTORS)


_WIDTH = around(ConfidenceSet, "bounds", _narrower)
_BETA = around(Mixture, "beta", times)
_KNOWN = _third("closed_loop_range", 1)
_CAP = around(robust_dp, "enclose", _less_cap)
_SOUND_GRADES = (
    _on("robust: confidence interval [l, h]", ("value",), EDGES, _WIDTH),
    _on("robust: confidence width β", ("value",), EDGES, _BETA),
    _on("robust: cap B√k", ("cap",), EDGES, _CAP),
    _on("robust: kernel slack in cells", ("in a cell",), EDGES, around(kernels, "metric_over_box", times)),
    _on(
        "robust: deviation of value and gradient in a cell",
        ("gradient",),
        EDGES,
        around(in_cell.Loop, "seminorm", times),
    ),
    _on("robust: Taylor rest in a cell", ("gradient",), EDGES, around(in_cell, "taylor_modulus", times)),
    _on("robust: growth over the cell of what the gradient leaves", ("gradient",), EDGES, _less_growth),
    _on("robust: reach of the inputs in a cell", ("in a cell, by the input",), EDGES, _third("closed_loop_range", 2)),
    _on("robust: range of the known part over a cell", ("known slope", "known slope, below"), EDGES, _KNOWN),
    _on("robust: Hessian remainder of the known part", ("known curve",), EDGES, _less_hessian),
    _on("robust: shift of the mean inside a sub-cell", ("averaged",), EDGES, _less_shift),
    _on("robust: charge outside the grid", ("outside", "outside later", "outside below"), EDGES, _less_outside),
    _on("robust: probability that leaves the grid", ("spilled",), EDGES, around(grid, "_blocks", _less_rest)),
    _on(
        "robust: slope of the policy over a cell",
        ("clipped in a cell",),
        EDGES,
        around(AffinePolicies, "slopes", _flatter),
    ),
    _on("robust: inputs in the Hessian remainder", ("curved by input",), EDGES, _less_hessian),
    _on("robust: supremum of the cost over a cell", ("stage",), EDGES, _less_of_the_cell),
    _on("total variation: parting rate", ("parting",), EDGES, around(total_variation, "parting_rate", times)),
    _on("total variation: half-width of F_n", ("parting",), EDGES, _WIDTH),
    _on("Gaussian tube: tail beyond a half-space", ("tails",), EDGES, around(Stage, "exceed", times)),
    _on("Gaussian tube: extent of Z_t", ("sure part",), EDGES, _less_extent),
    _on("Gaussian tube: union of half-spaces", ("tails",), EDGES, _less_union),
    _on("Gaussian tube: deviation L_t carried on", ("tails",), EDGES, around(GaussianTube, "step", _less_deviation)),
    _on("Gaussian tube: P(ν leaves its box)", ("failure",), EDGES, _less_failure),
    _on("Gaussian tube: steps at which it may", ("failure later",), EDGES, fewer_steps),
    _on("Gaussian tube: states that may", ("failure later",), EDGES, fewer_states),
)
_ORDER_GRADES = (
    _on("confidence interval [l, h] of the program", ("value",), REACHED, _WIDTH),
    _on("cap B√k", ("cap",), REACHED, _CAP),
    _on("range of the known part over a cell", ("known slope",), REACHED, _KNOWN),
    _on("charge outside the grid", ("outside",), REACHED, _less_outside),
    _on("supremum of the cost over a cell", ("stage",), REACHED, _less_of_the_cell),
)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(8, 4)
    axes = figure.subplots()
    sample = claim["samples"][-1]
    for name, values in sample["bounds"].items():
        axes.plot(CHOSEN, values, label=name, fillstyle="none", **plotting.look(name).marked)
    axes.plot(CHOSEN, sample["truth_high"], marker="_", label="truth", **plotting.look("truth").line)
    plotting.limit(axes, 0.2, label="d")
    axes.set(xlabel="policy (set-point index)", ylabel="cost", yscale="symlog", title="one confidence set, all bounds")
    axes.set_ylim(bottom=-0.05)
    plotting.label_ends(axes)


_ASSUMED = ("rkhs_norm<=B (exact twin)", "gaussian noise of known variance", "Monte-Carlo parts within their δ")
CHECKS = (
    Check(
        name="cost-bounds-sound",
        claim="When f* ∈ F_n, J_c(π, f*) is below the robust program, the total-variation and both tubes' bounds.",
        source="theory §3.3–3.8",
        assumptions=_ASSUMED,
        statistic="largest J_c(π, f*) − bound over policies, data sets and bounds",
        control="the sampled estimate, a lower estimate of the supremum, is presented as a bound",
        shards={"quick": len(EDGES) + 2, "full": len(EDGES) + 60},
        control_shards={"quick": 1, "full": 12},
        sample=_sample,
        judge=_judge_sound,
        plot=_plot,
        grades=_SOUND_GRADES,
    ),
    Check(
        name="cost-bounds-order",
        claim="sampled ≤ hallucinated ≤ robust program.",
        source="theory §3.1–3.3, §3.8",
        assumptions=_ASSUMED,
        statistic="largest excess of a lower estimate over the next bound, over policies and data sets",
        control="the robust program forgets the confidence width (posterior mean only)",
        shards={"quick": len(REACHED) + 2, "full": len(REACHED) + 60},
        control_shards={"quick": len(REACHED), "full": len(REACHED) + 12},
        sample=_sample_order,
        judge=_judge_order,
        grades=_ORDER_GRADES,
    ),
)
