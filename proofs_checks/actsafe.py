"""Theory §4 (i), (ii), (vi): ActSafe with an explicit safe-policy set, run whole, on plants whose truth is computable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting, rkhs
from gpsafe.algorithms.actsafe import ActSafe, ActSafeRun
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Constant, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.safety.safe_set import PolicyGap, SafePolicySet, policy_distance, reachable
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, anytime_interval

from ._defects import around, replaced, set_to_factor, times
from ._regression import generator

DELTA = 0.1
CONFIDENCE = 0.95
RUNS: Mapping[Budget, int] = {"quick": 32, "full": 200}  # 32: the fewest that can show δ = 0.1
WHOLE: Mapping[Budget, int] = {"quick": 40, "full": 250}  # with the hasty ones
WHOLE_MOST: Mapping[Budget, int] = {"quick": 125, "full": 500}
HASTY = 0.2  # of the runs exploit at once: there nothing but β stands between it and an unsafe policy
MOST: Mapping[Budget, int] = {"quick": 100, "full": 400}
EPISODES = 12  # of a run that may expand; graded controls stop it early, which can only hide a failure
REACHING, RUN_OUT = 30, 1.0  # of a run that is to reach R, and the share of them that is run
CONTROL_RUNS: Mapping[Budget, int] = {"quick": 12, "full": 40}


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """A plant, its learner's ingredients, and the truth."""

    algorithm: ActSafe
    truth_upper: Tensor  # rigorous upper end of J_c(π, f*), (P,)
    truth_lower: Tensor


def _task(algorithm: ActSafe, residual: RKHSFunction, fine: RobustDP) -> Setting:
    confidence = ConfidenceSet(algorithm.bound).update(algorithm.model)
    enclosure = fine.enclosure(confidence, algorithm.policies)
    exact = enclosure.with_residual(residual(enclosure.z).unsqueeze(-1))
    return Setting(algorithm, fine.upper(exact), fine.lower(exact))


@lru_cache(maxsize=1)
def _expanding_task() -> Setting:
    """The first reference system (81 set-points, S_0 of 5)."""
    system = reference_1d()
    policies, initial = reference_1d_policies()
    norm = tuple(system.rkhs_norm.tolist())
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    bound = Mixture(rkhs_norm=norm, subgaussian=0.01, delta=DELTA)
    coarse = RobustDP(Grid(Box(vector(-1.0), vector(1.5)), (500,)), Task.of(system))
    fine = RobustDP(Grid(Box(vector(-1.0), vector(1.5)), (2000,)), Task.of(system))
    algorithm = ActSafe(system, policies, initial.tolist(), model, bound, coarse, episodes=EPISODES)
    return _task(algorithm, system.residual[0], fine)


def _short_plant(residual: RKHSFunction, known: AffineKnown) -> CallableSystem:
    """x⁺ = x + 0.25u + f(x, u) + w, four steps, so noisy that the policy distance D is informative."""

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return known(x, u) + residual(torch.cat([x, u], dim=-1)).unsqueeze(-1)

    return CallableSystem(
        name="short-horizon-1d",
        nx=1,
        nu=1,
        state_box=Box(vector(0.0), vector(1.6)),
        input_box=Box(vector(-1.0), vector(1.0)),
        noise_std=vector(0.05),
        initial_state=vector(0.5),
        horizon=4,
        cost=IndicatorCost(vector(1.0).reshape(1, 1), vector(1.0)),
        budget=0.6,
        dynamics=dynamics,
        reward_fn=lambda x, u: x[..., 0],
    )


def _short_policies(count: int = 150) -> AffinePolicies:
    targets = torch.linspace(0.75, 1.05, count, dtype=torch.float64)
    box = Box(vector(-1.0), vector(1.0))
    return set_point_policies(targets[:, None], vector(3.0).reshape(1, 1), torch.zeros(count, 1).double(), box)


def reaching_task(seed: int) -> Setting:
    """A random residual of norm exactly 1 (the first of its seed's sequence for which S_0 is safe), 150 set-points."""
    kernel = kernels.rbf([1.0, 2.0], variance=0.01)
    generator = torch.Generator().manual_seed(seed)
    policies = _short_policies()
    initial = range(10)
    while True:
        residual = rkhs.random_function(kernel, vector(-0.5, -1.0), vector(1.5, 1.0), norm=1.0, generator=generator)
        known = AffineKnown(vector(1.0).reshape(1, 1), vector(0.25).reshape(1, 1), vector(0.0))
        plant = _short_plant(residual, known)
        model = GP.create(kernel, 0.05**2, nx=1, nu=1, noise_std=0.05, prior=known)
        bound = Mixture(rkhs_norm=1.0 + 1e-9, subgaussian=0.05, delta=DELTA)
        dp = RobustDP(Grid(plant.state_box, (320,)), Task.of(plant))
        distance = policy_distance(
            policies, known, (kernel,), rkhs_norm=bound.norms(1), outputs=(0,), noise_std=plant.noise_std,
            horizon=plant.horizon, ceiling=1.0,
        )  # fmt: skip
        algorithm = ActSafe(plant, policies, initial, model, bound, dp, distance=distance, episodes=REACHING)
        task = _task(algorithm, residual, dp)
        if float(task.truth_upper[: len(initial)].max()) <= plant.budget:
            return task


def _run(task: Setting, seed: int, until: Callable[[SafePolicySet], bool] | None = None, **changes: Any) -> ActSafeRun:
    return task.algorithm.with_(**changes).run(torch.Generator().manual_seed(seed), until=until)


def _f_star_inside(task: Setting, run: ActSafeRun, residual: RKHSFunction, seed: int) -> bool:
    z = task.algorithm.system.state_box.sample(300, torch.Generator().manual_seed(seed))
    u = 2 * torch.rand(300, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)) - 1
    points = torch.cat([z, u], dim=-1)
    verdict = run.confidence.contains(lambda v: residual(v).unsqueeze(-1), points)
    return verdict.outcome == "HOLDS"


# ------------------------------------------------------------------ (i) every executed policy is safe
def _hasty(shard: int) -> bool:
    """Drawn, not in turns: however many runs there are, they are of one distribution.

    The stream was chosen, before any run was made, for a first run that expands: it is the one in the picture.
    """
    return float(torch.rand(1, generator=generator(77, shard))) < HASTY


def _sample_safety(shard: int, budget: Budget, broken: bool) -> Sample:
    task = _expanding_task()
    norm = task.algorithm.bound.rkhs_norm
    bound: ConfidenceBound = task.algorithm.bound
    hasty = broken or _hasty(shard)
    threshold = 100.0 if hasty else 0.1  # exploitation at once; or after an expansion of about nine episodes
    if broken:  # the prior mean taken for the truth
        bound = Constant(rkhs_norm=norm, subgaussian=0.01, delta=DELTA, value=1e-6)
    run = _run(task, 1000 + shard, bound=bound, threshold=threshold, unchecked=broken, episodes=EPISODES)
    unsafe = task.truth_lower > task.algorithm.system.budget
    safe = task.truth_upper <= task.algorithm.system.budget
    executed = [e.policy for e in run.episodes]
    record: Sample = {
        "hasty": hasty,
        "unsafe_executed": int(unsafe[executed].sum()),
        "undecided_executed": int((~unsafe & ~safe)[executed].sum()),
        "unsafe_members": int(unsafe[run.safe_set.members].sum()),
        "sizes": [len(s) for s in run.safe_sets],
        "executed": executed,
        "episodes": len(executed),
        "f_star_inside": _f_star_inside(task, run, task.algorithm.system.residual[0], shard),  # type: ignore[attr-defined]
        "true_safe": int(safe.sum()),
        "initial": len(run.safe_sets[0]),
        "exploiting": sum(e.phase == "exploit" for e in run.episodes),
        "policies": run.safe_set.num,
        "realised_cost": [e.cost for e in run.episodes],
    }
    if shard == 0:
        record["paths"] = [e.states[:, 0].tolist() for e in run.episodes]
        record["entered"] = [run.safe_set.witnesses[i].episode if i in run.safe_set else -1 for i in range(81)]
        record["truth"] = task.truth_upper.tolist()
    return record


def _judge_safety(samples: Sequence[Sample], broken: bool) -> Evidence:
    runs = len(samples)
    failures = sum(s["unsafe_executed"] + s["undecided_executed"] > 0 for s in samples)
    if broken:  # one-sided the other way: only what is certainly unsafe counts against the control
        failures = sum(s["unsafe_executed"] > 0 for s in samples)
    estimate, upper = failures / runs, anytime_interval(failures, runs, 1 - CONFIDENCE)[1]
    lower = anytime_interval(failures, runs, 0.5 * (1 - CONFIDENCE))[0]
    own = [s["unsafe_executed"] > 0 for s in samples if s["hasty"]]  # which may refute alone: the other half
    alone = anytime_interval(sum(own), len(own), 0.5 * (1 - CONFIDENCE)) if own else (0.0, 1.0)
    if alone[0] > DELTA:
        estimate, lower, upper = sum(own) / len(own), *alone
    first, grown = samples[0], [s for s in samples if not s["hasty"]] or samples
    witness = (
        f"{failures} of {runs} runs executed a policy not shown safe; mean |S_n| {first['initial']} → "
        f"{np.mean([s['sizes'][-1] for s in grown]):.1f} of {first['true_safe']} truly safe; f* in F_n in "
        f"{sum(s['f_star_inside'] for s in samples)} of {runs}; {len(own)} runs exploit at once"
    )
    data = {
        "sizes": [s["sizes"] for s in samples],
        "executed": [s["executed"] for s in samples],
        "unsafe_members": [s["unsafe_members"] for s in samples],
        "realised_cost_max": max(max(s["realised_cost"]) for s in samples),
        "true_safe": first["true_safe"],
        "policies": first["policies"],
        **{key: first.get(key, []) for key in ("paths", "entered", "truth")},
    }
    return Evidence(runs, estimate, Verdict(lower, upper, DELTA, witness=witness), data)


def _plot_safety(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(10, 3.4)
    growth, space, phase = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.1))
    sizes = [np.asarray(s) for s in claim["sizes"]]
    length = max(len(s) for s in sizes)
    table = np.array([np.pad(s, (0, length - len(s)), mode="edge") for s in sizes])
    plotting.growth(growth, {"actsafe": table}, safe=claim["true_safe"])
    growth.set_title("growth of $S_n$ inside S*")

    entered, truth = np.asarray(claim["entered"]), np.asarray(claim["truth"])
    goals = np.linspace(-0.5, 1.5, len(entered))
    space.plot(goals, truth, linewidth=1, **plotting.look("truth").line)
    inside = entered >= 0
    marks = space.scatter(
        goals[inside], truth[inside], c=entered[inside], cmap=plotting.colour_map("order"), s=18, zorder=3
    )
    plotting.limit(space, 0.2, label="budget d")
    space.set(
        xlabel="set-point g (policy)", ylabel="J_c(π, f*)", title="policy space: episode of entry", yscale="symlog"
    )
    figure.colorbar(marks, ax=space, label="episode")

    paths = [np.asarray(p) for p in claim["paths"]]
    plotting.phase(phase, [np.stack([path[:-1], path[1:]], -1) for path in paths])
    line = np.linspace(-0.6, 1.1, 2)
    phase.plot(line, line, linewidth=0.6, **plotting.look("proposed").line)
    plotting.limit(plotting.limit(phase, 1.0, label="x = 1"), 1.0, upright=True)
    phase.set(xlabel="$x_t$", ylabel="$x_{t+1}$", title="closed-loop phase portrait")


# ------------------------------------------------------------------ (ii) S_n is monotone
KEPT: float | None = None  # share of S_{n−1} kept by sets from the newest posterior alone; None: the sets of ActSafe


def _sample_monotone(shard: int, budget: Budget, broken: bool) -> Sample:
    kept = 0.0 if broken else KEPT
    if kept is not None:  # no running intersection: {π : UCB ≤ d} from the newest posterior; and no union with S_{n−1}
        task = _expanding_task()
        run = _run(task, 5000 + shard, episodes=4)
        sets = [set(run.safe_sets[0].witnesses)]
        for generation in run.confidence.generations[:-1]:
            alone = ConfidenceSet(task.algorithm.bound).update(generation)
            upper = task.algorithm.cost_bound.evaluate(alone, task.algorithm.policies).upper
            before = sorted(sets[-1])[: round(kept * len(sets[-1]))]
            sets.append({*torch.nonzero(upper <= task.algorithm.system.budget).flatten().tolist(), *before})
    else:
        run = _run(reaching_task(shard), 5000 + shard, episodes=6)
        sets = [set(s.witnesses) for s in run.safe_sets]
    lost = [len(before - after) for before, after in pairwise(sets)]
    return {"lost": sum(lost), "steps": len(lost), "sizes": [len(s) for s in sets]}


def _judge_monotone(samples: Sequence[Sample], broken: bool) -> Evidence:
    lost = sum(s["lost"] for s in samples)
    steps = sum(s["steps"] for s in samples)
    grown = sum(s["sizes"][-1] > s["sizes"][0] for s in samples)
    witness = f"{lost} members lost in {steps} updates; S_n grew in {grown} of {len(samples)} runs"
    return Evidence(
        steps, float(lost), Verdict(lost, lost, 0.0, witness=witness), {"sizes": [s["sizes"] for s in samples]}
    )


# ------------------------------------------------------------------ (vi) R_ε^H(S_0) ⊆ S_n
EPSILON = 0.45


def _sample_reach(shard: int, budget: Budget, broken: bool) -> Sample:
    task = reaching_task(shard)
    algorithm = task.algorithm
    assert algorithm.distance is not None
    limit = algorithm.system.budget
    initial = sorted(SafePolicySet.initial(algorithm.policies.num, algorithm.initial_safe, budget=limit).witnesses)
    distance = algorithm.distance.distance if isinstance(algorithm.distance, PolicyGap) else algorithm.distance
    target = reachable(  # the larger reachable set: true costs from below
        initial, task.truth_lower, distance, budget=limit, epsilon=EPSILON
    )
    episodes = 1 if broken else round(RUN_OUT * REACHING)
    # S_n never shrinks (`actsafe-monotone`): what it holds before the last episode it holds at the end.
    run = _run(task, 3000 + shard, lambda safe: target <= set(safe.witnesses), episodes=episodes)
    reached = set(run.safe_set.witnesses)
    covered = [len(target & set(s.witnesses)) / len(target) for s in run.safe_sets]
    unsafe = task.truth_lower > algorithm.system.budget
    sets = [set(s.witnesses) for s in run.safe_sets]
    return {
        "missing": len(target - reached),
        "target": len(target),
        "initial": len(initial),
        "sizes": [len(s) for s in run.safe_sets],
        "covered": covered,
        "true_safe": int((task.truth_upper <= algorithm.system.budget).sum()),
        "unsafe_members": int(unsafe[run.safe_set.members].sum()),
        "lost": sum(len(a - b) for a, b in pairwise(sets)),
    }


def _judge_reach(samples: Sequence[Sample], broken: bool) -> Evidence:
    runs = len(samples)
    failures = sum(s["missing"] > 0 for s in samples)
    lower, upper = anytime_interval(failures, runs, 1 - CONFIDENCE)
    witness = (
        f"R of mean size {np.mean([s['target'] for s in samples]):.0f} (S_0: {samples[0]['initial']}, "
        f"S*: {np.mean([s['true_safe'] for s in samples]):.0f}, S_n by then: {np.mean([s['sizes'][-1] for s in samples]):.0f}) "
        f"missed in {failures} of {runs} runs"
    )
    data = {"covered": [s["covered"] for s in samples], "sizes": [s["sizes"] for s in samples],
            "target": [s["target"] for s in samples], "true_safe": [s["true_safe"] for s in samples],
            "unsafe_members": [s["unsafe_members"] for s in samples]}  # fmt: skip
    return Evidence(runs, failures / runs, Verdict(lower, upper, DELTA, witness=witness), data)


def _plot_reach(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(9, 3.6)
    left, right = figure.subplots(1, 2)
    for row in claim["covered"]:
        left.plot(row, color=plotting.colour("actsafe"), alpha=0.35, linewidth=0.8)
    left.set(
        xlabel="episode n", ylabel="|R ∩ S_n| / |R|", title=f"R_ε^H(S_0) inside S_n, ε = {EPSILON}", ylim=(0, 1.03)
    )
    right.scatter(
        claim["target"],
        [s[-1] for s in claim["sizes"]],
        color=plotting.colour("actsafe"),
        s=18,
        label="|S_n| once R is in it",
    )
    right.scatter(claim["target"], claim["true_safe"], color=plotting.colour("truth"), marker="_", label="|S*|")
    limit = max(*claim["true_safe"], *claim["target"])
    right.plot([0, limit], [0, limit], linewidth=0.6, **plotting.look("proposed").line)
    right.set(xlabel="|R_ε^H(S_0)|", ylabel="policies", title="per random plant")
    right.legend()


def _narrower(factor: float) -> AbstractContextManager[object]:
    """β scaled, in runs of three episodes."""
    _expanding_task()  # what is true is found before
    stack = ExitStack()
    stack.enter_context(around(Mixture, "beta", times)(factor))
    stack.enter_context(mock.patch(f"{__name__}.EPISODES", 3))
    return stack


def _forgetful(expand: Callable[..., SafePolicySet], factor: float) -> Callable[..., SafePolicySet]:
    """Of what was in S_{n−1} beside S_0 this share is kept, the rest must be shown safe again."""

    def fewer(self: SafePolicySet, *args: Any, **kwargs: Any) -> SafePolicySet:
        given = {i: w for i, w in self.witnesses.items() if w.rule == "given"}
        others = [i for i in self.witnesses if i not in given]
        kept = {i: self.witnesses[i] for i in others[: round(factor * len(others))]}
        return expand(SafePolicySet(self.num, self.budget, given | kept), *args, **kwargs)

    return fewer


_HERE = sys.modules[__name__]
_TWICE = (
    "the running intersection only lowers the bounds, so that every member is shown safe again: it keeps S_n by itself"
)
CHECKS = (
    Check(
        name="actsafe-executed-safe",
        claim="With probability ≥ 1 − δ every policy that ActSafe executes is safe: J_c(π_n, f*) ≤ d for all n.",
        source="ActSafe, Theorem 4.6; theory §4 (i)",
        assumptions=("rkhs_norm<=B (exact twin)", "gaussian noise of known variance", "S_0 safe"),
        statistic="share of whole runs with an executed policy not shown safe (robust sweeps with the true f*), limits valid "
        "at every number of runs, 95 % each; a fifth of them, drawn, exploit at once and may refute alone",
        control="the confidence width is set to zero and the model is exploited at once",
        shards=WHOLE,
        most=WHOLE_MOST,
        control_shards=CONTROL_RUNS,
        sample=_sample_safety,
        judge=_judge_safety,
        plot=_plot_safety,
        grades=(Grade("confidence width β", _narrower, (5, 9, 12), (0.9, 0.7, 0.5, 0.3, 0.1, 0.0)),),
    ),
    Check(
        name="actsafe-monotone",
        claim="S_n ⊆ S_{n+1} in every update of every run.",
        source="ActSafe, Definition of S_n; theory §4 (ii)",
        assumptions=(),
        statistic="policies lost from S_n, over all updates of whole runs on random exact-norm plants",
        control="S_n rebuilt from the newest posterior alone, without the union with S_{n-1}",
        shards={"quick": 16, "full": 100},
        control_shards={"quick": 2, "full": 8},
        sample=_sample_monotone,
        judge=_judge_monotone,
        grades=(
            Grade("union with S_{n−1}", replaced(SafePolicySet, "expand", _forgetful), (0,), (0.0,), unseen=_TWICE),
            Grade(
                "the same without the running intersection", set_to_factor(_HERE, "KEPT"), (0,), (0.9, 0.7, 0.5, 0.0)
            ),
        ),
    ),
    Check(
        name="actsafe-reaches",
        claim=f"With probability ≥ 1 − δ, R_ε^H(S_0) ⊆ S_n at the end of 30 episodes (ε = {EPSILON}, H to the fixed point).",
        source="ActSafe, Theorem 4.6; theory §4 (vi)",
        assumptions=("rkhs_norm<=B (exact)", "gaussian noise of known variance", "S_0 safe"),
        statistic="share of runs on random exact-norm plants in which S_n misses a policy of R_ε^H(S_0), limits valid at every "
        "number of runs, 95 % each",
        control="stop after the first episode, before anything is learned",
        shards=RUNS,
        most=MOST,
        control_shards=CONTROL_RUNS,
        sample=_sample_reach,
        judge=_judge_reach,
        plot=_plot_reach,
        grades=(Grade("episodes", set_to_factor(_HERE, "RUN_OUT"), (0, 1), (0.5, 0.2, 0.1)),),
    ),
)
