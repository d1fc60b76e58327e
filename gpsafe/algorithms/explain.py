"""Why is a policy not (yet) certified? Its bound is evaluated again with one source of its excess removed at a time.

A **diagnosis, not a bound**: nothing here admits a policy, and the sets it evaluates with are no confidence sets. No share is
invented: every number is a bound or an estimate that was computed anew, in the task's cost beyond the budget or, for plans, in
the units of the constraint beyond its margin (≤ 0: it would be certified).

    width        β → 0: F_n shrinks to the last posterior mean, B stays.
    reach        after further flights of the present members on a plant that equals the mean: data that can be had now.
    grid         finer cells, anchors at every tube's own centre, more generators: enclosure slack, as far as was refined.
    monte-carlo  many more paths (for scenario tubes the mean of the charges: infinitely many).
    noise        no noise box (plans).
    all          all of these together, `reach` aside.
    nominal      no bound at all: the estimated cost under the posterior mean.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import table
from gpsafe.confidence import ConfidenceSet
from gpsafe.confidence.bounds import ClosedForm
from gpsafe.cost import monte_carlo
from gpsafe.cost._task import MonteCarloBound
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.base import CostBound
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import _NOISE, ScenarioTube
from gpsafe.data import Transitions, spaced
from gpsafe.models import GP
from gpsafe.policies import PolicyClass, selected
from gpsafe.policies.rollout import closed_loop
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import sample_noise
from gpsafe.systems.task import Task

_log = logging.getLogger("gpsafe")
REMOVABLE = ("width", "grid", "monte-carlo", "noise")
CELLS, AXIS = 40_000, 1_600  # cells of a grid that is refined more than once, in all and per axis
POINTS = 320  # imagined observations
MORE = 16  # times the paths, where their limit has no closed form


@dataclass(frozen=True, slots=True)
class Explanation:
    """The split of one policy's excess: a diagnosis, not a bound (see the module).

    Attributes:
        excess: of the bound as it stands; ≤ 0: certified.
        without: source → excess of the bound evaluated again without it, and "reach", "all", "nominal".
        steps: the longest horizon for which the same bound certifies the policy (plans: steps that the tube was followed).
        horizon: T.
        rate: what the bound gives away a step; `allowed`: what the budget allows a step (nan for plans).
        where: z with the widest F_n along the policy's path under the mean; `half_width`: of F_n there.
        floor: what a Monte-Carlo bound reports with no violation in any path (its budget cannot be lower); None for others.
        share: δ of this policy's Monte-Carlo limit: the whole stage's, or, where it was told how many policies share that, as
            much as each of them has. A run that asks of more at a time gives less, and may refuse what is certified here.
    """

    excess: float
    without: Mapping[str, float]
    steps: int
    horizon: int
    rate: float
    allowed: float
    where: tuple[float, ...]
    half_width: float
    floor: float | None = None
    share: float | None = None

    @property
    def certified(self) -> bool:
        """Whether the bound as it stands certifies the policy."""
        return self.excess <= 0.0

    @property
    def causes(self) -> tuple[str, ...]:
        """Sources whose removal alone certifies; if there are none, those that it takes together; () if certified.

        "width" is called "distance" if flights of the present members would not narrow F_n enough where the policy goes.
        "policy": its cost under the mean itself is too high. "horizon": what is left without all sources grows with the steps.
        """
        if self.certified:
            return ()
        alone = [name for name in REMOVABLE if self.without.get(name, math.inf) <= 0.0]
        if not alone and self.without["nominal"] > 0.0:
            return ("policy",)
        if not alone and self.without["all"] > 0.0:
            return ("grid", "horizon") if "grid" in self.without else ("horizon",)
        if not alone:
            removed = [name for name in REMOVABLE if name in self.without]
            alone = [name for name in removed if self.without[name] < self.excess] or removed
        far = self.without.get("reach", -math.inf) > 0.0
        return tuple("distance" if name == "width" and far else name for name in alone)

    @property
    def advice(self) -> str:
        """What would help most."""
        z = [round(value, 3) for value in self.where]
        told = {
            "width": f"more data near z = {z}, where F_n is ±{self.half_width:.3g} (members can fetch it)",
            "distance": f"S_0 nearer to z = {z}, where F_n is ±{self.half_width:.3g}: members do not get there",
            "grid": "a finer grid, more anchors or a higher order",
            "monte-carlo": f"more paths (floor with no violation at all: {self.floor or 0.0:.3g})",
            "noise": "less noise, or a larger delta_noise",
            "policy": "another policy or a larger budget: the mean itself predicts a cost beyond it",
            "horizon": f"a shorter horizon (certified for {self.steps} of {self.horizon}), a larger budget, a sharper bound",
        }
        return "; ".join(told[cause] for cause in self.causes) or "nothing: it is certified"

    def __str__(self) -> str:
        alone = "" if self.share is None else f" (delta = {self.share:.3g} for this policy)"
        if self.certified:
            return f"certified, {-self.excess:.3g} to spare{alone}"
        split = ", ".join(f"{name} {value:+.3g}" for name, value in self.without.items())
        step = "" if math.isnan(self.rate) else f", {self.rate:.3g} a step of {self.allowed:.3g} allowed"
        return (
            f"not certified because of {' and '.join(self.causes)}: {self.excess:.3g} too much{alone}{step}, "
            f"good for {self.steps} of {self.horizon} steps; without {split}; try {self.advice}"
        )

    def __repr__(self) -> str:
        told = "certified" if self.certified else " and ".join(self.causes)
        return f"Explanation({told}, excess {self.excess:.3g}, {self.steps} of {self.horizon} steps)"

    def _repr_html_(self) -> str:
        rows = [("as it stands", self.excess), *((f"without {name}", value) for name, value in self.without.items())]
        return table(repr(self), [*rows, ("try", self.advice)], head=("bound", "excess over the budget"))


@dataclass(frozen=True, kw_only=True)
class _NoWidth(ClosedForm):
    """β = 0: as if f* were the mean. Never sound; B keeps its meaning for enclosures."""

    name = "no-width"
    source = "none (a counterfactual)"
    sound = False
    unequal_noise = True

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """See `ClosedForm.formula`."""
        return torch.zeros_like(info_gain)


def without_width(confidence: ConfidenceSet) -> ConfidenceSet:
    """{μ_n}, with the B and R of the bound."""
    bound = confidence.bound
    free = _NoWidth(rkhs_norm=bound.rkhs_norm, subgaussian=bound.subgaussian, delta=bound.delta, unchecked=True)
    return ConfidenceSet(free, (confidence.model,))


def paths(confidence: ConfidenceSet, policies: PolicyClass, task: Task, count: int) -> tuple[Tensor, Tensor]:
    """States (P, count, T + 1, nx) and inputs under the mean; the first path has no noise."""
    noise = sample_noise(task.noise_std, (task.horizon, 1, count), torch.Generator().manual_seed(0))
    noise[:, :, 0] = 0.0
    model = confidence.model
    return closed_loop(lambda x, u: model.predict(x, u).mean, policies, task.initial_state, noise)


def after_flights(confidence: ConfidenceSet, members: PolicyClass, task: Task) -> ConfidenceSet | None:
    """F after about `POINTS` further observations by (up to as many) members, on a plant that equals the mean.

    None for a model that is no frozen GP, whose posterior is not made of observations alone.
    """
    where = "after_flights"
    model = _require.kind(where, "confidence", confidence, ConfidenceSet).model
    _require.kind(where, "task", task, Task)
    _require.count(where, "members.num", _require.kind(where, "members", members, PolicyClass).num)
    if type(model) is not GP or model.mode != "theory":
        return None
    few = spaced(members.num, max(1, POINTS // task.horizon)).round().long()
    count = max(1, POINTS // (task.horizon * len(few)))
    states, inputs = paths(confidence, selected(members, few, task.initial_state), task, count)
    z = torch.cat([states[..., :-1, :], inputs], dim=-1).reshape(-1, task.nx + inputs.shape[-1])
    x, u = z.unique(dim=0).split([task.nx, inputs.shape[-1]], dim=-1)  # members may agree: F_n takes no row twice
    return confidence.update(model.condition(Transitions(x, u, model.predict(x, u).mean)))


def _widest(confidence: ConfidenceSet, states: Tensor, inputs: Tensor) -> tuple[tuple[float, ...], float]:
    z = torch.cat([states[..., :-1, :], inputs], dim=-1)
    z = z.reshape(-1, z.shape[-1])
    low, high = confidence.bounds(z)
    half = 0.5 * (high - low).amax(-1)
    worst = int(half.argmax())
    return tuple(z[worst].tolist()), float(half[worst])


def _finer(bound: CostBound) -> Iterator[CostBound]:
    """The bound with less enclosure slack, each with less than the one before."""
    if isinstance(bound, RobustDP):
        grid = bound.grid
        for factor in (2, 4):
            cells = tuple(factor * count for count in grid.cells)
            if factor == 2 or (math.prod(cells) <= CELLS and max(cells) <= AXIS):
                yield replace(bound, grid=Grid(grid.box, cells, grid.split))
    elif isinstance(bound, ScenarioTube):
        yield replace(bound, anchors=None, order=2 * bound.order)
    elif isinstance(bound, GaussianTube):
        yield replace(bound, order=2 * bound.order)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One policy of a class of `crowd`, among which δ is shared."""

    policy: PolicyClass
    crowd: int

    def upper(self, bound: CostBound, confidence: ConfidenceSet, *, limit: bool = True) -> float:
        """The bound's upper end; without its Monte-Carlo limit if that is not wanted."""
        if isinstance(bound, MonteCarloBound):
            bound = replace(bound, delta=bound.delta / self.crowd)
            if not limit and isinstance(bound, ScenarioTube):
                return float(bound.charges(confidence, self.policy, bound.noise(confidence, _NOISE)).mean())
            if not limit:
                bound = replace(bound, samples=MORE * bound.samples)
        return float(bound.evaluate(confidence, self.policy).upper[0])


def explain_cost(
    bound: CostBound, confidence: ConfidenceSet, policy: PolicyClass, members: PolicyClass, *, crowd: int = 1
) -> Explanation:
    """Of one policy under a cost bound.

    Args:
        bound: as it certifies.
        confidence: F_n.
        policy: a class of one.
        members: S_n, whose flights give data.
        crowd: policies that share the bound's δ.
    """
    task = bound.task
    if not is_dataclass(bound):
        raise _require.fail("explain", "a cost bound that is a dataclass (parts of it are replaced)", bound.name)
    changes: dict[str, Any] = {"give_up": math.inf} if hasattr(bound, "give_up") else {}
    bound = replace(bound, **changes)  # type: ignore[type-var]
    share = bound.stage_delta(confidence) / crowd if isinstance(bound, MonteCarloBound) else None
    asked, budget = _Asked(policy, _require.count("explain", "crowd", crowd)), task.budget
    upper = asked.upper(bound, confidence)
    states, inputs = paths(confidence, policy, task, 64)
    without: dict[str, float] = {}
    steps, floor = task.horizon, None
    if isinstance(bound, MonteCarloBound) and share is not None:
        free = torch.zeros(1, bound.samples, dtype=torch.float64)
        floor = float(monte_carlo.dominating_mean_upper(free, task.total_ceiling, share))
    if upper > budget:
        mean, finest = without_width(confidence), bound
        without["width"] = asked.upper(bound, mean) - budget
        later = after_flights(confidence, members, task)
        if later is not None:
            without["reach"] = asked.upper(bound, later) - budget
        for finest in _finer(bound):
            without["grid"] = asked.upper(finest, confidence) - budget
            if without["grid"] <= 0.0:
                break
        if isinstance(bound, MonteCarloBound):
            without["monte-carlo"] = asked.upper(bound, confidence, limit=False) - budget
        without["all"] = asked.upper(finest, mean, limit=False) - budget
        without["nominal"] = float(task.cost(states[..., :-1, :]).sum(-1).mean()) - budget
        steps = _lasts(asked, bound, confidence)
    where, half = _widest(confidence, states[:, :8], inputs[:, :8])
    rate, allowed = upper / task.horizon, budget / task.horizon
    return Explanation(upper - budget, without, steps, task.horizon, rate, allowed, where, half, floor, share)


def _lasts(asked: _Asked, bound: CostBound, confidence: ConfidenceSet) -> int:
    """The longest horizon certified within the whole budget, by bisection: J_c grows with T."""
    good, bad = 0, bound.task.horizon
    while bad - good > 1:
        middle = (good + bad) // 2
        shorter = replace(bound, task=bound.task.with_(horizon=middle))  # type: ignore[type-var]
        if asked.upper(shorter, confidence) <= bound.task.budget:
            good = middle
        else:
            bad = middle
    return good


def explain_plan(
    judge: PlanTube, confidence: ConfidenceSet, start: Tensor, fallback: int | None, members: PolicyClass | None
) -> Explanation:
    """Of a fallback policy (None: the one of the largest margin) from the state `start` (nx,), under a judge of plans.

    Args:
        members: S_0, whose flights give data; None if it is no class.
    """
    task = judge.task.with_(initial_state=start)
    refined = judge.refine(confidence)
    index = torch.arange(judge.fallbacks.num) if fallback is None else torch.tensor([fallback])

    def excess(judge: PlanTube, which: Tensor) -> tuple[Tensor, Tensor]:
        plans = Plans.of_fallbacks(which, task.nx, judge.input_box.dim)
        found = judge.verify(Zonotope.point(start.expand(len(which), -1)), plans, task.horizon)
        return -found.margin, found.steps

    every, followed = excess(refined, index)
    best = int(every.argmin() if bool(torch.isfinite(every).any()) else followed.argmax())
    which, worst, steps = index[best].reshape(1), float(every[best]), int(followed[best])
    grid = judge.anchors
    fresh = replace(judge, anchors=None if grid is None else AnchorGrid(grid.box, grid.counts))
    fine = replace(judge, anchors=None, order=2 * judge.order)

    def of(judge: PlanTube, confidence: ConfidenceSet) -> float:
        return float(excess(judge.refine(confidence), which)[0])

    policy, without = selected(judge.fallbacks, which, task.initial_state), {}
    states, inputs = paths(confidence, policy, task, 8)
    if worst > 0.0:
        mean = without_width(confidence)
        without["width"] = of(fresh, mean)
        later = None if members is None else after_flights(confidence, members, task)
        if later is not None:
            without["reach"] = of(fresh, later)
        without["grid"] = of(fine, confidence)
        quiet = torch.zeros_like(judge.noise_radius)
        without["noise"] = of(replace(fresh, noise_radius=quiet), confidence)
        without["all"] = of(replace(fine, noise_radius=quiet), mean)
        normals, offsets = judge.constraint.normals, judge.constraint.offsets
        without["nominal"] = float((states[0, 0] @ normals.T - offsets).max())
    where, half = _widest(confidence, states, inputs)
    return Explanation(worst, without, steps, task.horizon, math.nan, math.nan, where, half)


def first_stall(sizes: Sequence[int], patience: int) -> bool:
    """Whether |S_0|, …, |S_n| end in the first run of `patience` episodes without growth; 0 never says so."""
    if not patience or len(sizes) <= patience:
        return False
    stalled = [sizes[n] == sizes[n - patience] for n in range(patience, len(sizes))]
    return stalled[-1] and not any(stalled[:-1])


def tell(where: str, what: str, explain: Callable[[], Explanation]) -> None:
    """One line on the log of `gpsafe`; what cannot be explained is said, never raised: a diagnosis stops no run."""
    try:
        split = str(explain())
    except Exception as error:
        split = f"no split: {_require.told(error)}"
    _log.warning("%s: %s: %s", where, what, split)
