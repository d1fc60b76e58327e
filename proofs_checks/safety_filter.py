"""Recursive feasibility (theory §6.8): the filter always has a backed answer, the plant never leaves the admitted states."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.certify import CertificationProblem, Proposal
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.terminal_set import AffineLaw, Invariance, certify_invariance
from gpsafe.linalg import vector
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.tube import LinearTube, lqr_gain
from gpsafe.verdict import Verdict, worst_of

from ._defects import set_to_factor

STEPS, HORIZON = 4, 40
HALF_AXES = (0.005, 0.02)
WHOLE = 1.0  # of the disturbance, believed in by the model of the claim
SHRINK = 0.2  # and by that of the control


@dataclass(frozen=True)
class _Unreliable:
    """Proposes well, or at chosen times nothing of use: a plan that leaves everything, or NaN."""

    failure: float | None = None

    def propose(
        self, problem: CertificationProblem, x0: Tensor, learned: Tensor, *, warm: Tensor | None = None
    ) -> Proposal:
        if self.failure is None:
            return CondensedSQP(starts=2, iterations=8).propose(problem, x0, learned, warm=warm)
        plan = torch.full((problem.steps, problem.nu), self.failure, dtype=torch.float64)
        return Proposal(plan, "Solve_Succeeded", 1, 0.0, "unreliable", -1.0)


@lru_cache(maxsize=4)
def linear_case(believed: float = 1.0) -> tuple[CertificationProblem, Invariance]:
    """|p|, |v|, |u| ≤ 1; X_f is the largest invariant set under LQR. The model believes in this share of the disturbance."""
    plant = DoubleIntegrator().prior(mass_error=0.0)
    half_axes = believed * vector(*HALF_AXES)
    states, inputs = (Polytope.of_box(Box(-torch.ones(n).double(), torch.ones(n).double())) for n in (2, 1))
    law = AffineLaw(lqr_gain(plant.A, plant.B), vector(0.0))
    region = states.intersect(Polytope(inputs.H @ law.gain, inputs.h))
    noise = Ellipsoid(vector(0.0, 0.0), torch.diag(half_axes))
    terminal = invariant_polytope(plant.A + plant.B @ law.gain, vector(0.0, 0.0), region, noise)
    problem = CertificationProblem(LinearTube(plant, half_axes), states, inputs, terminal, law.gain, STEPS)
    return problem, certify_invariance(problem, law)


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """One episode from a state of X_f: extreme proposals, a proposer that breaks down, disturbances on their ellipsoid."""
    problem, sure = linear_case(SHRINK if broken else WHOLE)
    model = problem.model
    assert isinstance(model, LinearTube)
    generator = torch.Generator().manual_seed(shard)
    draws = torch.rand(HORIZON + 1, 4, dtype=torch.float64, generator=generator)
    angle = 2 * math.pi * draws[0, 0]
    ray = torch.stack([angle.cos(), angle.sin()])
    along = problem.terminal.H @ ray
    x = 0.95 * (problem.terminal.h / along)[along > 1e-9].min() * ray
    used = SafetyFilter(problem, _Unreliable(), sure).start()
    half_axes, push = vector(*HALF_AXES), 1.0 if shard % 2 else -1.0
    worst, unbacked, sources, path = -math.inf, 0, [], [x]
    for failing, kind, size, turn in draws[1:]:
        failure = None if failing < 0.6 else 1e6 if kind < 0.5 else math.nan
        used = replace(used, proposer=_Unreliable(failure))
        decision, used = used.decide(x, vector(3.0 * push * float(size > 0.1)))
        unbacked += not decision.backed
        sources.append(decision.source)
        mean = model.plant(x, decision.u)
        to = 2 * math.pi * turn
        way = problem.states.H[int((problem.states.H @ mean - problem.states.h).argmax())]
        way = way if kind < 0.7 else torch.stack([to.cos(), to.sin()])
        pushed = half_axes * way
        x = mean + half_axes * pushed / pushed.norm()
        worst = worst_of(worst, float(problem.states.violation(x)), float(problem.inputs.violation(decision.u)))
        path.append(x)
    return {"worst": worst, "unbacked": unbacked, "sources": sources, "path": torch.stack(path).tolist()}


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    worst, unbacked = worst_of(s["worst"] for s in samples), sum(s["unbacked"] for s in samples)
    steps = sum(len(s["sources"]) for s in samples)
    used = [source for s in samples for source in s["sources"]]
    told = ", ".join(f"{name} {used.count(name)}" for name in ("plan", "stored", "backup", "unfiltered"))
    statistic = worst_of(worst, unbacked / steps if unbacked else -math.inf)
    witness = f"largest excess of a row of X or U {worst:.3g}; {unbacked} of {steps} decisions unbacked; {told}"
    data = {
        "paths": [s["path"] for s in samples],
        "terminal": linear_case(SHRINK if broken else WHOLE)[0].terminal.vertices().tolist(),
    }
    return Evidence(steps, statistic, Verdict(statistic, statistic, 0.0, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    figure.set_size_inches(9, 4)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, data, title in ((left, claim, "filtered"), (right, control, "control")):
        corners = np.array(data["terminal"])
        corners = corners[np.argsort(np.arctan2(corners[:, 1], corners[:, 0]))]
        axes.fill(*corners.T, color=plotting.colour("safe"), alpha=0.2, label="terminal set")
        for path in data["paths"]:
            axes.plot(*np.array(path).T, color=plotting.colour("plan"), linewidth=0.6)
        axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], label="admitted states", **plotting.look("limit").line)
        axes.set(xlabel="position (m)", ylabel="velocity (m/s)", title=title)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)


BELIEF = set_to_factor(sys.modules[__name__], "WHOLE")
CHECKS = (
    Check(
        name="xmpsc-filter",
        claim="From any start in the terminal set every decision of the filter is backed and the linear plant stays in X, "
        "its inputs in U, under adversarial proposals, a proposer that breaks down, and disturbances on the boundary of their "
        "ellipsoid.",
        source="theory §6.8; gpsafe.safety.filter",
        assumptions=("disturbance in its ellipsoid", "state measured exactly"),
        statistic="the larger of: largest excess of a row of X or U, share of unbacked decisions if any; threshold 0",
        control="the model believes in a fifth of the disturbance",
        shards={"quick": 24, "full": 400},
        control_shards={"quick": 12, "full": 40},
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=(Grade("disturbance in the filter's model", BELIEF, (0,), (0.9, 0.7, 0.5)),),
    ),
)
