"""Theory §4.6: no policy that SafeOpt admits is unsafe, unless the noise did what it does with probability δ.

Two kinds of runs. *Drawn*: functions of norm B and noise ±R, counted. *Edge*: measurements of one policy that are just not
enough to admit its neighbour, and just enough. Whatever was measured, an admitted policy is priced afterwards
(:mod:`proofs_checks._safeopt_price`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.algorithms import SafeOpt, Totals
from gpsafe.confidence import Mixture
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import safeopt
from gpsafe.safety.safeopt import SafeOptRule
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, HingeCost
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, anytime_interval, worst_of

from . import _safeopt_price
from ._defects import Scaled, around, replaced, scaled_argument, set_to_factor, times
from ._regression import generator
from ._safeopt_price import DELTA, Case, Run, prices, run

CONFIDENCE = 0.95
RUNS = 8  # drawn runs of a piece
TOUCH = 2e-4  # how far from the edge an edge run's measurements are, on either side, as a share of them
HORIZON, PAID = 6, 1.5  # T of the learner's episodes, which cost at most 1 a step, and what they cost at the edge


# ------------------------------------------------------------------ at the edge
@dataclass(frozen=True)
class Edge:
    """S_0 is one point, measured n times with the same value y; its neighbour, of correlation ρ to it, is unsafe by a hair.

    y and B are such that the lower bound touches the one function of norm B that runs through it with W = 1/δ: with θ =
    n/(n + λ), the mean is μ = yθu, u = k(a_0, ·), and the member μ − β cov(a, ·)/σ(a) has norm B = κβ.

    Attributes:
        count, regularizer, correlation: n, λ, ρ.
        slope: the neighbour is admitted by a slope: a is a_0, κ this number, and h the member's value at the neighbour. 0: a
            is the neighbour, and h = 0.
        constraints: functions that are constrained beside one that is not; the rest keep far away. 0: one is both.
    """

    count: int
    regularizer: float
    correlation: float
    slope: float = 0.0
    constraints: int = 0

    def case(self, noise: float = 1.0) -> tuple[Case, float]:
        """And the value y at which the bound touches."""
        n, lam, rho = self.count, self.regularizer, self.correlation
        theta, gain, q = n / (n + lam), 0.5 * math.log1p(n / lam), max(self.constraints, 1)
        gap = math.sqrt(-2 * math.log(rho))
        if self.slope:  # the member is κβu
            share, per_beta = self.slope**2, (self.slope + math.sqrt(1 - theta)) / theta
        else:  # κ² = ‖σ(a)u/ρ − cov(a, ·)/σ(a)‖², which is 0 at a
            variance = 1 - rho**2 * theta
            share = variance / rho**2 - 2 * (1 - theta) + 1 - rho**2 * theta * (1 - theta) / variance
            per_beta = math.sqrt(variance) / (theta * rho)
        beta = noise * math.sqrt(2 * (gain + math.log(q / DELTA)) / (lam * (1 - share)))
        h = self.slope * beta * rho
        slope = vector(self.slope * beta * (1 - rho) / gap) if self.slope else None
        free = vector(*([-math.inf] if self.constraints else []), *[-100 * beta] * (q - 1), h)
        rule = SafeOptRule(free, slope, agree="some" if self.slope else "same")
        points = vector(0.0, gap).unsqueeze(-1)
        return Case(points, 1.0, lam, math.sqrt(share) * beta, noise, rule, (0,)), per_beta * beta


EDGES: dict[str, Edge] = {
    "B leads": Edge(4, 0.4, 0.9),
    "ln(1/δ) leads": Edge(4, 4.0, 0.99),
    "g leads": Edge(4, 1e-3, 1 - 1e-5),
    "a slope": Edge(4, 1.0, 0.9, slope=0.6),
    "two constraints": Edge(4, 1e-2, 0.999, constraints=2),
    "episodes of a learner": Edge(6, 6.0, 0.98),
}
ORDER = tuple(EDGES)
LEARNER = ORDER.index("episodes of a learner")


def edge_run(edge: Edge, side: float, broken: bool) -> tuple[Case, Run]:
    """With measurements beyond (1) or short of (−1) the edge."""
    case, y = edge.case()
    values = torch.zeros(len(case.rule.threshold), dtype=torch.float64)
    values[-1] = y * (1 + side * TOUCH)
    return case, run(case, lambda n, point: values, edge.count, broken)


def learner_run(edge: Edge, side: float, broken: bool) -> tuple[Case, Run]:
    """The same through `SafeOpt`, in episodes that cost what the edge asks, with the least R that it takes for guaranteed."""
    needed = 0.5 * HORIZON
    case, y = edge.case(needed)
    budget, measured = y + PAID, y * (1 + side * TOUCH)
    system = CallableSystem(
        name="measured", nx=1, nu=1, state_box=Box([-1.0], [1.0]), input_box=Box([-1.0], [1.0]), noise_std=vector(0.1),
        initial_state=vector(0.0), horizon=HORIZON, cost=HingeCost([1.0], 0.0), budget=budget,
        dynamics=lambda x, u: u, reward_fn=lambda x, u: 0.0 * x[..., 0],
    )  # fmt: skip
    policies = AffinePolicies(0.5 * case.points, torch.zeros(2, 1, 1), system.input_box)
    model = GP.regression(kernels.rbf(1.0), dim=1, noise_std=math.sqrt(case.regularizer))
    rule = SafeOptRule(vector(-math.inf, 0.0), agree="same")
    learner = None
    for share in (0.01, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0):
        bound = case.bound(broken)
        bound = bound if broken else replace(bound, subgaussian=share * needed)
        learner = SafeOpt(system, policies, [0], case.points, (model, model), (bound, bound), rule)
        if learner.unsound is None:
            break
    assert learner is not None
    states = torch.full((HORIZON + 1, 1), (budget - measured) / (HORIZON - 1), dtype=torch.float64)
    states[0] = 0.0
    asked = list[int]()
    for _ in range(edge.count):
        policy = learner.ask()
        asked.append(learner.standing.chosen[0])
        learner.tell(states, torch.stack([policy(x) for x in states[:-1]]))
    seen = (budget - states[:-1].sum()).expand(edge.count, 1)
    sets = [replace(s, lower=s.lower[:, 1:], upper=s.upper[:, 1:]) for s in learner.standing.sets]
    return case, Run(asked, seen, sets)


# ------------------------------------------------------------------ drawn
def cliff_run(source: torch.Generator, broken: bool) -> tuple[Case, Run, Tensor]:
    """f = −B k(a, ·): all there is to be seen is that S_0 is safe and its neighbour a is not, by a hair; noise ±R."""
    rho, norm, steps = 1 - 1e-6, 1.0, 8
    points = vector(0.0, math.sqrt(-2 * math.log(rho))).unsqueeze(-1)
    f = -norm * vector(rho, 1.0).unsqueeze(-1)
    rule = SafeOptRule(vector(-0.5 * norm * (1 + rho)), agree="same")
    case = Case(points, 1.0, 4.0, norm, 1.0, rule, (0,))
    return case, run(case, _noisy(f, 1.0, steps, source), steps, broken), f


def grown_run(source: torch.Generator, broken: bool) -> tuple[Case, Run, Tensor]:
    """f a random representer of norm B, safe on part of the class; S_0 its best point."""
    points, steps, noise = torch.linspace(0.0, 3.0, 13, dtype=torch.float64).unsqueeze(-1), 10, 0.02
    gram = torch.exp(-0.5 * (points - points.T).square())
    weights = torch.randn(len(points), 1, dtype=torch.float64, generator=source)
    f = gram @ weights / (weights.T @ gram @ weights).sqrt()
    h = vector(0.5 * float(f.max() + f.min()))
    case = Case(points, 1.0, 0.01, 1.0, noise, SafeOptRule(h, agree="same"), (int(f.argmax()),))
    return case, run(case, _noisy(f, noise, steps, source), steps, broken), f


def _noisy(f: Tensor, noise: float, steps: int, source: torch.Generator) -> Callable[[int, int], Tensor]:
    signs = 2.0 * torch.randint(2, (steps, f.shape[1]), generator=source) - 1
    return lambda n, point: f[point] + noise * signs[n]


DRAWN: dict[str, Callable[[torch.Generator, bool], tuple[Case, Run, Tensor]]] = {"cliff": cliff_run, "grown": grown_run}


def _sample(shard: int, budget: Budget, broken: bool) -> Sample:
    """An edge from both sides, and after all edges eight drawn runs, one of which grows."""
    if shard < len(ORDER):
        edge, both = EDGES[ORDER[shard]], (-1.0, 1.0)
        runs = [(learner_run if shard == LEARNER else edge_run)(edge, side, broken) for side in both]
        found = [worst_of([0.0, *prices(*each)]) for each in runs]
        return {"edge": ORDER[shard], "short": found[0], "beyond": found[1], "drawn": []}
    drawn = []
    for r in range(RUNS):
        kind = "grown" if r == RUNS - 1 else "cliff"
        case, found, f = DRAWN[kind](generator(21, shard, r), broken)
        last = found.sets[-1].safe
        failed = bool((last & (f[:, case.constraints] < case.rule.threshold[case.constraints]).any(-1)).any())
        size = {"size": int(last.sum()), "first": len(case.initial), "priced": worst_of([0.0, *prices(case, found)])}
        drawn.append({"kind": kind, "failed": failed, **size})
    return {"edge": "", "drawn": drawn}


def _judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The rate of failures among drawn runs, at every number of them; one price above δ refutes alone, and so do the cliffs."""
    drawn, edges = [r for s in samples for r in s["drawn"]], [s for s in samples if s["edge"]]
    priced = [(s[side], f"{s['edge']}, measurements {side} of it") for s in edges for side in ("short", "beyond")]
    priced += [(r["priced"], f"a drawn run ({r['kind']})") for r in drawn]
    dearest, where = worst_of(priced, key=lambda pair: pair[0])
    touched, grown = sum(s["beyond"] > 0 for s in edges), [r for r in drawn if r["kind"] == "grown"]
    failed = [r["failed"] for r in drawn]
    estimate, lower, upper = dearest, 0.0, 1.0  # an edge that nobody reached shows nothing
    if drawn and touched == len(edges) == len(ORDER):
        lower, high = anytime_interval(sum(failed), len(failed), 0.5 * (1 - CONFIDENCE))
        estimate, upper = worst_of(sum(failed) / len(failed), dearest), worst_of(high, dearest)
    own = [r["failed"] for r in drawn if r["kind"] == "cliff"]
    lower = max(lower, anytime_interval(sum(own), len(own), 0.5 * (1 - CONFIDENCE))[0] if own else 0.0)
    if not dearest <= DELTA:
        estimate, lower, upper = dearest, dearest, 1.0
    witness = f"largest 1/W of an admission {dearest:.4g} ({where}); {touched} of {len(edges)} edges touched"
    if drawn:
        witness += (
            f"; {sum(failed)} of {len(failed)} drawn runs admitted an unsafe point, |S_n| {grown[0]['first']} → "
            f"{sum(r['size'] for r in grown) / len(grown):.1f} of 13 in {len(grown)}"
        )
    data = {
        "edges": [[s["edge"], s["short"], s["beyond"]] for s in edges],
        "drawn": [[r["kind"], r["failed"], r["size"], r["priced"]] for r in drawn],
    }
    runs = len(drawn) + 2 * len(edges)
    return Evidence(runs, estimate, Verdict(lower, worst_of(lower, upper), DELTA, witness=witness), data)


def _plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    names = [row[0] for row in claim["edges"]]
    for data, noun, label in ((claim, "claim", "SafeOpt"), (control, "control", "control: β = 2 by hand")):
        found = {row[0]: max(row[1:]) for row in data["edges"]}
        rows = [(i, found[name]) for i, name in enumerate(names) if found.get(name, 0) > 0]
        axes.plot([i for i, _ in rows], [p for _, p in rows], label=label, **plotting.look(noun).points)
    plotting.limit(axes, DELTA, label="δ")
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set(yscale="log", ylabel="1/W at which an unsafe policy was admitted")
    axes.legend(fontsize=7)


# ------------------------------------------------------------------ graded controls
def _optimistic(function: Callable[..., tuple[Tensor, Tensor]], factor: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """l_n moved towards u_n: a share of the width is left."""

    def patched(*args: Any) -> tuple[Tensor, Tensor]:
        lower, upper = function(*args)
        known = (lower > -torch.inf) & (upper < torch.inf)
        return torch.where(known, upper - factor * (upper - lower), lower), upper

    return patched


def _deviation(found: tuple[Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor]:
    return found[0], factor * found[1]


def _cheaper(found: Tensor, factor: float) -> Tensor:
    """A share of what an episode cost; the budget is where it was."""
    budget = EDGES[ORDER[LEARNER]].case(0.5 * HORIZON)[1] + PAID
    return torch.stack([found[0], budget - factor * (budget - found[1])])


_FALLING = (0.999, 0.99, 0.95, 0.9, 0.7, 0.5, 0.0)


def _graded(term: str, edge: str, scaled: Scaled) -> Grade:
    return Grade(term, scaled, (ORDER.index(edge),), _FALLING)


_LAST = "episodes of a learner"
GRADES = (
    _graded("confidence width β", "B leads", around(Mixture, "formula", times)),
    _graded("norm B", "B leads", scaled_argument(Mixture, "formula", "norm")),
    _graded("noise R", "ln(1/δ) leads", scaled_argument(Mixture, "formula", "noise")),
    _graded("gain g", "g leads", scaled_argument(Mixture, "formula", "info_gain")),
    _graded("ln(1/δ)", "ln(1/δ) leads", scaled_argument(Mixture, "formula", "log_inv_delta")),
    _graded("deviation σ", "B leads", around(GP, "posterior", _deviation)),
    _graded("δ shared among constraints", "two constraints", set_to_factor(_safeopt_price, "UNION")),
    _graded("Lipschitz constant L", "a slope", scaled_argument(safeopt, "lipschitz_safe", "lipschitz")),
    _graded("distance d", "a slope", scaled_argument(safeopt, "lipschitz_safe", "distance")),
    _graded("threshold h", "a slope", scaled_argument(safeopt, "lipschitz_safe", "threshold")),
    _graded("l_n and not u_n in S_n", "ln(1/δ) leads", replaced(safeopt, "intersect", _optimistic)),
    _graded("T·C/2 asked of a learner's R", _LAST, scaled_argument(Mixture, "noise_refusal", "noise_std")),
    _graded("measured cost", _LAST, around(Totals, "__call__", _cheaper)),
    Grade("β in drawn runs", around(Mixture, "formula", times), (len(ORDER),), (0.9, 0.8, 0.7, 0.5, 0.3)),
)

CHECKS = (
    Check(
        name="safeopt-safe",
        claim="With probability ≥ 1 − δ no point that SafeOpt ever admits to S_n, hence none that it asks for, is unsafe.",
        source="Sui et al. 2015, Theorem 1; Berkenkamp et al. 2021, Theorem 1; theory §4.6",
        assumptions=("‖f_i‖_k ≤ B (exact)", "R-sub-Gaussian noise", "S_0 safe", "with L: |f_i(a) − f_i(a′)| ≤ L_i d(a, a′)"),
        statistic="largest of: the share of drawn runs that admit an unsafe point, with an interval valid at every number of "
        "runs; and 1/W over all admitted points, W the least martingale of the noise under which they are unsafe for "
        "functions within B, at the edge and in drawn runs",
        control="β = 2 by hand, as SafeOpt is run in practice",
        shards={"quick": len(ORDER) + 5, "full": len(ORDER) + 40},
        most={"quick": len(ORDER) + 20, "full": len(ORDER) + 100},
        control_shards={"quick": len(ORDER), "full": len(ORDER) + 4},
        sample=_sample,
        judge=_judge,
        plot=_plot,
        grades=GRADES,
    ),
)  # fmt: skip
