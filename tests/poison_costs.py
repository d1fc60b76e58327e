"""Poison cases of cost bounds and of what they are made of, of plans, shields, safe sets and confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from cost_cases import Case, make_case
from poison import ROWS, STRUCK, Arguments, PoisonCase, Results, draw, visible
from poison_sets import INDICATOR, bodies
from shield_cases import case_of, judge_of, judged, shield_of
from torch import Tensor

from gpsafe.confidence import ConfidenceSet
from gpsafe.cost import monte_carlo
from gpsafe.cost.base import CostBound
from gpsafe.cost.gaussian_tube import GaussianTube, Stage
from gpsafe.cost.grid import Averager, Grid
from gpsafe.cost.local_affine import Displacements, LocalAffine
from gpsafe.cost.multilevel import Multilevel
from gpsafe.cost.partition import Partition
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.cost.pruned import PrunedSession
from gpsafe.cost.robust_dp import RobustDP, sweep
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.session import DPSession, Session
from gpsafe.cost.total_variation import TotalVariation, parting_rate, simulation_gap
from gpsafe.linalg import vector
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import kernels
from gpsafe.safety.safe_set import PolicyGap, SafePolicySet, policy_distance, through
from gpsafe.safety.safeopt import confident_safe
from gpsafe.safety.shield import Shield
from gpsafe.sets import Box
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.verdict import Verdict

SHORT = 5  # steps
nan, inf, huge = math.nan, math.inf, 1.7e308


class Unchecked(AffinePolicies):
    """Affine policies that take any number, as a user's own class may."""

    def __post_init__(self) -> None:
        pass

    def select(self, index: Tensor) -> Unchecked:
        return Unchecked(self.offset[index], self.gain[index], self.input_box)


@cache
def plant() -> Case:
    return make_case("1d", (4, 20))


@cache
def task() -> dict[str, Any]:
    """x₀ where a saturated input soon costs."""
    return plant().task_with(horizon=SHORT, initial_state=vector(0.6))


def _dp() -> RobustDP:
    return RobustDP(Grid(plant().system.state_box, (81,)), task()["task"])


COST_BOUNDS: dict[str, Callable[[], CostBound]] = {
    "ScenarioTube": lambda: ScenarioTube(**task(), samples=12, anchors=3),
    "ScenarioTube, own anchors": lambda: ScenarioTube(**task(), samples=6, anchors=None),
    "ScenarioTube, in pieces": lambda: ScenarioTube(**task(), samples=6, anchors=2, pieces=4),
    "GaussianTube": lambda: GaussianTube(task=task()["task"]),
    "TotalVariation": lambda: TotalVariation(**task(), samples=12),
    "RobustDP": _dp,
}


def policies(offset: Tensor, gain: Tensor) -> Unchecked:
    return Unchecked(offset, gain, plant().policies.input_box)


def evaluated(name: str) -> Callable[..., Results]:
    def run(offset: Tensor, gain: Tensor) -> Results:
        found = COST_BOUNDS[name]().evaluate(plant().confidence, policies(offset, gain))
        return found.upper, found.lower, found.vacuous

    return run


def laws() -> Arguments:
    chosen = plant().choose(2, 10, 20)
    return {"offset": chosen.offset, "gain": chosen.gain}


def above_the_truth(given: Arguments, found: Results) -> Tensor:
    """An input of 1.7e308 is applied as its limit: the bound of such a policy may be true."""
    system = plant().system
    noise = sample_noise(system.noise_std, (SHORT, 1, 64), torch.Generator().manual_seed(3))
    states, _ = closed_loop(system.mean, policies(given["offset"], given["gain"]), task()["task"].initial_state, noise)
    return system.cost(states[:, :, :-1]).sum(-1).mean(-1) <= found[0] + 0.2


def is_vacuous(upper: Tensor, lower: Tensor, vacuous: Tensor) -> Tensor:
    """C at every step but t = 0, whose state is known to be safe."""
    return (upper >= (SHORT - 1) * (1 - 1e-3)) & (lower <= upper)


# ------------------------------------------------------------------------------------------ their parts
def enclosed(low: Tensor, high: Tensor) -> Results:
    """Values of l and h at one cell of each policy."""
    enclosure = _dp().enclosure(plant().confidence, plant().choose(2, 10, 20)).refine(plant().confidence)
    old_low, old_high = enclosure.low.clone(), enclosure.high.clone()
    old_low[:, -1, 0], old_high[:, -1, 0] = low, high
    return (_dp().upper(replace(enclosure, low=old_low, high=old_high)),)


def edges() -> Arguments:
    return {"low": -0.01 * torch.ones(ROWS).double(), "high": 0.01 * torch.ones(ROWS).double()}


def boxes(low: Tensor, high: Tensor) -> Results:
    enclosure = _dp().enclosure(plant().confidence, plant().choose(2, 10, 20))
    low, high = (v[:, None, None].expand_as(enclosure.low) for v in (low, high))
    return replace(enclosure, low=low, high=high).boxes()


def no_box(low: Tensor, high: Tensor) -> Tensor:
    return visible(low, high) | ~(low <= high).flatten(1).all(-1)


def dearest_box(upper: Tensor) -> Tensor:
    return upper >= (SHORT - 1) * (1 - 1e-9)


def one_edge(side: str, run: Callable[..., Results], struck: Callable[..., Tensor]) -> PoisonCase:
    """l = −inf and h = inf say that nothing is known, which is no poison."""
    (other,) = set(edges()) - {side}
    poisons = (nan, inf, huge) if side == "low" else (nan, -inf)
    return PoisonCase(partial(run, **{other: edges()[other]}), lambda: {side: edges()[side]}, struck, poisons=poisons)


def swept(low: Tensor, high: Tensor) -> Results:
    grid = Grid(Box(vector(-1.0), vector(1.0)), (8,))
    average = Averager(grid, vector(0.1), torch.device("cpu"))
    stage = torch.zeros(ROWS, 8).double()
    return (sweep(average, low, high, stage, horizon=3, outside_rate=1.0),)


def halves() -> Partition:
    """Of a grid of eight cells, the third."""
    return Partition.of(Grid(Box(vector(-1.0), vector(1.0)), (8,))).halved(torch.arange(8) == 2)[0]


def stepped(low: Tensor, high: Tensor) -> Results:
    step = Multilevel.build(halves(), vector(0.1), low, high)
    return (step(torch.zeros(ROWS, 9).double(), 1.0),)


def leaves() -> Arguments:
    return {name: torch.nn.functional.pad(end, (0, 0, 0, 1)) for name, end in cells().items()}


def cells() -> Arguments:
    centre = torch.linspace(-0.5, 0.5, 8).double().reshape(8, 1).expand(ROWS, 8, 1)
    return {"low": centre - 0.1, "high": centre + 0.1}


def local_range(**given: Tensor) -> Results:
    """Around anchors, at displacements."""
    local = LocalAffine.at(plant().confidence, given["anchor"])
    found = local.range_outer(Displacements(given["offset"], given["generators"], given["error"]))
    return found.value, found.linear, found.error, found.empty


def says_nothing(value: Tensor, linear: Tensor, error: Tensor, empty: Tensor) -> Tensor:
    """No claim but |f| ≤ B√k."""
    cap = plant().confidence.bound.prior_width(plant().confidence.model, torch.zeros(1, 2).double())
    everything = (value == 0).all(-1) & (error >= cap * (1 - 1e-9)).all(-1) & (linear == 0).flatten(1).all(-1)
    return everything | visible(value, error) | empty


def stage_of(center: Tensor, generators: Tensor, factor: Tensor) -> Results:
    fine = torch.zeros(ROWS, dtype=torch.bool)
    chosen = AffinePolicies(
        torch.zeros(ROWS, 1).double(), torch.zeros(ROWS, 1, 2).double(), Box(vector(-1.0), vector(1.0))
    )
    return (Stage(chosen, Zonotope(center, generators), factor, factor, fine).exceed(INDICATOR),)


# --------------------------------------------------------------------------------------- plans and shields
@cache
def bare_judge() -> PlanTube:
    return judge_of(case_of(), grid=False, landing=False).refine(case_of().confidence)


def verified(judge: Callable[[], PlanTube], steps: int) -> Callable[..., Results]:
    def run(center: Tensor, generators: Tensor, offset: Tensor, gain: Tensor) -> Results:
        zero = torch.zeros(ROWS, dtype=torch.long)
        plans = Plans(offset, gain, zero + offset.shape[1], zero, zero)
        found = judge().verify(Zonotope(center, generators), plans, steps)
        return found.margin, found.admitted, found.steps, found.landed

    return run


def some_plans() -> Arguments:
    return {
        "center": 0.05 * draw(ROWS, 2),
        "generators": 0.01 * draw(ROWS, 2, 2),
        "offset": 0.1 * draw(ROWS, 3, 1),
        "gain": torch.tensor([[-0.5, -0.2]]).double().expand(ROWS, 3, 1, 2),
    }


def refused(margin: Tensor, admitted: Tensor, steps: Tensor, landed: Tensor) -> Tensor:
    return ~admitted & ~landed


def as_clipped(run: Callable[..., Results]) -> Callable[[Arguments, Results], Tensor]:
    """A finite law may be as good as one with an offset of 1e6, which saturates too."""

    def honest(given: Arguments, found: Results) -> Tensor:
        return (found[0] - run(**{**given, "offset": given["offset"].clamp(-1e6, 1e6)})[0]).abs() <= 1e-9

    return honest


@cache
def shield() -> Shield:
    """Of a short episode."""
    judge = judge_of(case_of(), landing=False)
    return shield_of(case_of(), replace(judge, task=judge.task.with_(horizon=6)))


def decided(candidates: Tensor) -> Results:
    decision, _ = shield().decide(case_of().system.initial_state, candidates)
    assert bool(torch.isfinite(decision.u).all())
    return (decision.admitted,)


def started(x0: Tensor) -> Results:
    """It takes one state at a time: the struck one here."""
    made, base = torch.ones(ROWS, dtype=torch.bool), shield()
    found = Shield.start(base.judge, case_of().confidence, x0[STRUCK], tracking=base.tracking)
    made[STRUCK] = isinstance(found, Shield)
    return (made,)


def slack(center: Tensor, generators: Tensor) -> Results:
    return (judged().slack(Zonotope(center, generators)),)


# --------------------------------------------------------------------------------- samples and safe sets
def rows_of(function: Callable[..., Tensor]) -> Callable[..., Results]:
    return lambda **given: (function(**given),)


def entered(upper: Tensor) -> Results:
    grown = SafePolicySet.initial(ROWS + 1, [ROWS], budget=0.5).expand(
        torch.cat([upper, vector(0.3)]), episode=1, bound="poison"
    )
    return (torch.tensor([i in grown for i in range(ROWS)]),)


def entered_through(distance: Tensor) -> Results:
    """Distances of three members to an outsider that all of them admit."""
    table = torch.cat([torch.full((ROWS, ROWS), 9.0).double(), distance.unsqueeze(1)], 1)
    return (through(torch.full((ROWS,), 0.3).double(), table)[:, -1],)


def distances(offset: Tensor) -> Results:
    known = AffineKnown(vector(1.0).reshape(1, 1), vector(0.2).reshape(1, 1), vector(0.0))
    chosen = policies(offset, torch.ones(ROWS, 1, 1).double())
    found = policy_distance(
        chosen, known, [kernels.rbf([1.0, 1.0])], rkhs_norm=vector(0.1), outputs=[0], noise_std=vector(0.5), horizon=3,
        ceiling=1.0, others=plant().choose(40),
    )  # fmt: skip
    return (found[:, 0],)


def verdicts(lower: Tensor, upper: Tensor, threshold: Tensor, tol: Tensor) -> Results:
    rows = zip(lower.tolist(), upper.tolist(), threshold.tolist(), tol.tolist(), strict=True)
    return (torch.tensor([Verdict(*row).outcome == "HOLDS" for row in rows]),)


def limit(f: Callable[[Tensor, float, float], Tensor], samples: Tensor) -> Tensor:
    return f(samples, 1.0, 0.1)


def samples() -> Arguments:
    return {"samples": draw(ROWS, 8).abs().clamp(0.0, 1.0)}


# ----------------------------------------------------------------------------------------------- sessions
def in_session(start: Callable[[RobustDP, ConfidenceSet, Unchecked], Session]) -> Callable[..., Results]:
    def run(offset: Tensor, gain: Tensor) -> Results:
        return (start(_dp(), plant().confidence, policies(offset, gain)).upper(torch.arange(ROWS)),)

    return run


def pruned(dp: RobustDP, confidence: ConfidenceSet, chosen: Unchecked) -> PrunedSession:
    """With a budget that nobody exceeds, so that all are evaluated."""
    dp = replace(dp, task=dp.task.with_(budget=10.0))
    return PrunedSession(dp, confidence, chosen, torch.Generator().manual_seed(1))


def dearest(upper: Tensor) -> Tensor:
    return upper >= (SHORT - 1) * (1 - 1e-3)


SESSIONS = {"DPSession.upper": DPSession.start, "PrunedSession.upper": pruned}
PARTS = {
    **{f"RobustDP.upper, {side}": one_edge(side, enclosed, dearest_box) for side in ("low", "high")},
    **{f"Enclosure.boxes, {side}": one_edge(side, boxes, no_box) for side in ("low", "high")},
    "sweep": PoisonCase(
        swept, cells, lambda value: (value >= 2.0).any(-1)
    ),
    "Multilevel.build": PoisonCase(stepped, leaves, lambda value: (value == 1.0).any(-1)),
    "LocalAffine.range_outer": PoisonCase(
        local_range,
        lambda: {
            "anchor": 0.3 * draw(ROWS, 2), "offset": 0.01 * draw(ROWS, 2), "generators": 0.01 * draw(ROWS, 2, 3),
            "error": 0.01 * draw(ROWS, 2).abs(),
        },
        says_nothing,
    ),
    "Stage.exceed": PoisonCase(
        stage_of, lambda: {**bodies()(), "factor": 0.1 * torch.eye(2).double().expand(ROWS, 2, 2)}, lambda chance: chance == 1.0
    ),
    "PlanTube.slack": PoisonCase(slack, bodies(), lambda margin: ~(margin >= 0)),
    "parting_rate": PoisonCase(
        rows_of(lambda gap: parting_rate(gap.abs() if gap.isfinite().all() else gap, vector(0.5, 0.0))),
        lambda: {"gap": torch.stack([draw(ROWS).abs(), torch.zeros(ROWS).double()], -1)}, lambda rate: rate == 1.0,
    ),
    "simulation_gap": PoisonCase(
        rows_of(lambda rates: simulation_gap(torch.nn.functional.pad(rates, (0, 1)), 1.0)),  # the last step costs nothing
        lambda: {"rates": torch.full((ROWS, 3), 0.1).double()}, lambda gap: gap >= 1.3 - 1e-9,
    ),
    "kl_upper": PoisonCase(
        rows_of(lambda mean: monte_carlo.kl_upper(mean, 50, 0.1)), lambda: {"mean": torch.full((ROWS,), 0.1).double()},
        lambda limit: limit == 1.0,
    ),
    "betting_upper": PoisonCase(
        rows_of(lambda samples: monte_carlo.betting_upper(samples, 0.1)), samples, lambda x: x == 1.0
    ),
    **{
        f.__name__: PoisonCase(rows_of(partial(limit, f)), samples, lambda x: x >= 1, refuses=True)
        for f in (monte_carlo.mean_upper, monte_carlo.dominating_mean_upper, monte_carlo.mean_lower)
    },
    "confident_safe": PoisonCase(
        lambda lower: (confident_safe(lower, torch.zeros(2).double()),),
        lambda: {"lower": draw(ROWS, 2).abs()}, lambda safe: ~safe,
        poisons=(math.nan, -math.inf),  # a lower bound of 1e308 is one
    ),
    "SafePolicySet.expand": PoisonCase(
        entered, lambda: {"upper": torch.full((ROWS,), 0.4).double()}, lambda inside: ~inside, refuses=True
    ),
    "through": PoisonCase(
        entered_through, lambda: {"distance": torch.full((ROWS,), 0.1).double()}, lambda total: total > 0.5
    ),
    "PolicyGap.upper": PoisonCase(
        lambda push, value: (PolicyGap(push.unsqueeze(1), 3, 1.0).upper(value)[:, 0],),
        lambda: {"push": torch.full((ROWS,), 0.02).double(), "value": torch.full((ROWS,), 0.3).double()},
        lambda total: total > 0.5,
    ),
    "policy_distance": PoisonCase(
        distances, lambda: {"offset": plant().choose(2, 10, 20).offset}, lambda gap: gap >= 2.0 * (1 - 1e-9),
        honest=lambda given, found: found[0] >= distances(given["offset"].clamp(-1e6, 1e6))[0] - 1e-9,
        poisons=(nan, huge),  # an infinite offset is a saturated input, and no class of ours takes one
    ),
    "Verdict": PoisonCase(
        partial(verdicts, lower=torch.zeros(ROWS).double()),
        lambda: {
            "upper": torch.ones(ROWS).double(), "threshold": torch.full((ROWS,), 2.0).double(),
            "tol": torch.zeros(ROWS).double(),
        },
        lambda holds: ~holds, honest=lambda given, found: given["upper"] <= given["threshold"], refuses=True,
    ),
    "Verdict, lower": PoisonCase(
        lambda lower: verdicts(lower, *(torch.full((ROWS,), v).double() for v in (1.0, 2.0, 0.0))),
        lambda: {"lower": torch.zeros(ROWS).double()}, lambda holds: ~holds, refuses=True, poisons=(nan, inf, huge),
    ),
}  # fmt: skip
PLANS = {
    "PlanTube.verify": PoisonCase(
        verified(judged, 6), some_plans, refused, as_clipped(verified(judged, 6)),
    ),
    "PlanTube.verify, no grid": PoisonCase(
        verified(bare_judge, 3), some_plans, refused, as_clipped(verified(bare_judge, 3)),
    ),
    "Shield.decide": PoisonCase(
        decided, lambda: {"candidates": 0.1 * draw(ROWS, 4, 1)}, lambda admitted: ~admitted,
        honest=lambda given, found: found[0] == decided(given["candidates"].clamp(-1e6, 1e6))[0],
    ),
    "Shield.start": PoisonCase(started, lambda: {"x0": 0.02 * draw(ROWS, 2)}, lambda made: ~made, refuses=True),
}  # fmt: skip
CASES = {
    **{name: PoisonCase(evaluated(name), laws, is_vacuous, above_the_truth) for name in COST_BOUNDS},
    **{
        name: PoisonCase(in_session(start), laws, dearest, above_the_truth)
        for name, start in SESSIONS.items()
    },
    **PARTS, **PLANS,
}  # fmt: skip
