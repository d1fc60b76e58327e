"""SafeOpt and GoSafe as learners on a finite policy class: they fly a policy, measure what it earned and cost, and learn that.

Nothing of the plant is modelled: a Gaussian process over the policies' parameters says what is known of J_r and J_c, and the
sets are those of `gpsafe.safety.safeopt` and `gpsafe.safety.gosafe`. One episode is one noisy measurement of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned, pinned_policies
from gpsafe._show import short
from gpsafe.algorithms._class_learner import ClassLearner
from gpsafe.algorithms.actsafe import check_inputs
from gpsafe.algorithms.learner import Book, EpisodePolicy, Stream, realised, stream
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence import ConfidenceBound, Falsification
from gpsafe.confidence.lineage import Lineage, repetition
from gpsafe.confidence.set import EMPTY
from gpsafe.models import GP
from gpsafe.policies import PolicyClass, input_at, selected
from gpsafe.safety.gosafe import Boundary, Rollouts, adopt
from gpsafe.safety.safeopt import Beliefs, SafeOptRule, SafeOptSets, check_model
from gpsafe.sets import Box
from gpsafe.sets.zonotope import HUGE
from gpsafe.systems.base import HalfspaceCost, System
from gpsafe.systems.task import Task

Measure = Callable[[Tensor, Tensor], Tensor]
_SAME = 1e-9  # how far an applied input may be from the policy's own: rounding of a batch


@short
@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """(Σ r, d − Σ c) of an episode, (2,): measurements of J_r and of d − J_c, whose noise lies in an interval of length T·C."""

    system: System

    def __call__(self, states: Tensor, inputs: Tensor) -> Tensor:
        """States (T + 1, nx), inputs (T, nu)."""
        cost, reward = realised(self.system, states, inputs)
        return torch.stack([reward, self.system.budget - cost])


@short
@dataclass(frozen=True, slots=True, eq=False)
class Margins:
    """(Σ r, least distance of a state to the limit), (2,): what SafeOpt is run on in practice, since it is smooth in the
    policy.

    That its mean is ≥ h is another promise than J_c ≤ d, and neither follows from the other.
    """

    system: System

    def __call__(self, states: Tensor, inputs: Tensor) -> Tensor:
        """States (T + 1, nx), inputs (T, nu)."""
        past, cost = states[:-1], self.system.cost
        assert isinstance(cost, HalfspaceCost)
        return torch.stack([self.system.reward(past, inputs).sum(), -cost.excess(past).amax()])


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeOptStanding:
    """What stands between two episodes.

    Attributes:
        models: posteriors of the q functions.
        sets: of every iteration so far; the last is S_n, G_n, M_n.
        chosen: the policy that is to fly, and why: "local" or "global".
        failed: policies that called for the backup, with the state in which they did (GoSafe).
        rollouts: B (GoSafe).
        pinned: the class as it was.
        falsified: where an interval came out empty.
        lineages: the models as they were made.
    """

    models: tuple[GP, ...]
    sets: tuple[SafeOptSets, ...]
    chosen: tuple[int, Literal["local", "global"]]
    failed: Mapping[int, Tensor]
    rollouts: Rollouts
    pinned: Pinned
    falsified: Falsification | None = None
    lineages: tuple[Lineage, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lineages", tuple(map(Lineage.of, self.models)))


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeOptEpisode:
    """What was decided for an episode: phase, policy, |S_n|, |G_n|, |M_n| and the width max_i w_n^i there."""

    number: int
    phase: Literal["local", "global"]
    policy: int
    size: int
    expanders: int
    maximisers: int
    width: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SafeOpt(ClassLearner["SafeOptStanding", SafeOptEpisode]):
    """SafeOpt (`gpsafe.safety.safeopt`) on a plant's policies.

    **Soundness.** With the default measure, bounds that are theorems for sub-Gaussian noise and R ≥ T·C/2 for the cost (a
    variable in [0, T·C] is T·C/2-sub-Gaussian, and no less is known of it), every policy of S_n has J_c ≤ d with probability ≥
    1 − Σδ_i over the constraints, at all episodes at once, under `assumptions`: S_0 safe, d − J_c in the ball of radius B of
    the kernel over *policy parameters*, and true Lipschitz constants where the rule has them. So C_0 is within ±B√k, which a
    norm that is too small may not survive (`falsified`). Otherwise `unsound` says what is
    missing: β by hand, a noise level fitted by eye or another measure, which is how SafeOpt is run in practice.

    Args:
        system: the plant; never shown to the learner beyond its task.
        policies: finite class.
        initial_safe: S_0, as in `ActSafe`.
        points: parameters of the policies in which the functions are modelled, (P, d).
        models: one GP of one output over R^d per function (`GP.regression`); f_0 is to be large.
        bounds: one per function.
        rule: which version of SafeOpt; thresholds included.
        measure: (states, inputs) → (q,), one measurement of every function; None: `Totals`, with q = 2 and thresholds (−inf,
        0). seed, stream: as in `ActSafe`.
    """

    system: System
    policies: PolicyClass
    initial_safe: Sequence[int] | Tensor | slice
    points: Tensor
    models: tuple[GP, ...]
    bounds: tuple[ConfidenceBound, ...]
    rule: SafeOptRule
    measure: Measure | None = None
    seed: int = 0
    stream: Stream = stream
    _book: Book = field(init=False, repr=False, default_factory=Book)

    def __post_init__(self) -> None:
        where = type(self).__name__
        _require.index(where, "seed", self.seed)
        check_inputs(where, self.system, self.policies)
        Task.of(self.system)  # an episode's cost is T*C/2-sub-Gaussian only if c is in [0, C]
        points = _require.finite(where, "points", _require.real(where, "points", self.points))
        if points.ndim != 2 or len(points) != self.policies.num:
            raise _require.fail(where, f"points ({self.policies.num}, d)", tuple(points.shape))
        if len(points.unique(dim=0)) < len(points):  # J_c would be no function of them, of whatever norm
            raise _require.fail(where, "points that tell the policies apart", "two policies at one point")
        object.__setattr__(self, "points", points)
        for name in ("models", "bounds"):
            object.__setattr__(self, name, tuple(_require.listing(where, name, getattr(self, name))))
        sizes = len(self.models), len(self.bounds), len(self.rule.threshold)
        if len(set(sizes)) != 1:
            raise _require.fail(where, "as many models as bounds and thresholds", sizes)
        for model, bound in zip(self.models, self.bounds, strict=True):
            check_model(where, model, points)
            bound.check(model)
        if self.measure is None and tuple(self.rule.threshold.tolist()) != (-torch.inf, 0.0):
            raise _require.fail(where, "thresholds (-inf, 0) with the default measure", self.rule.threshold.tolist())
        self.rule.start(self.policies.num, self.initial_safe)

    # ------------------------------------------------------------------ claims
    @property
    def unsound(self) -> str | None:
        """Why J_c ≤ d is not promised for the policies of S_n; None if it is, see the class."""
        if self.measure is not None:
            return "the measured constraint is not the task's J_c <= d"
        if not self.rule.intersect:
            return "the sets of the released program forget S_0 and earlier intervals"
        needed = 0.5 * self.system.horizon * self.system.cost.ceiling
        bound, model = self.bounds[1], self.models[1]
        if not bound.sound or bound.unchecked:
            return f"{bound.name} is no theorem"
        if not any(entry.kind is Assumption.SUBGAUSSIAN for entry in bound.beliefs()):
            return f"{bound.name} does not cover the noise of an episode's cost"
        if bound.noise_refusal(model, torch.tensor([needed], dtype=torch.float64)) is not None:
            return f"an episode's cost is known to be {needed:g}-sub-Gaussian (T*C/2), not less"
        return None

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What membership of S_n rests on."""
        rows = [i for i, h in enumerate(self.rule.threshold.tolist()) if h > -torch.inf]
        about = [entry for i in rows for entry in self.bounds[i].assumptions(self.models[i])]
        slopes = [] if self.rule.lipschitz is None or self.rule.own else [self.rule.lipschitz[rows].tolist()]
        return listed(
            about,
            [Assumption.LIPSCHITZ(f": {value} in the policies' parameters") for value in slopes],
            Assumption.INITIAL_SET(),
            Assumption.TASK(),
            Assumption.EXACT_INPUT(),
            Assumption.ROUNDING(),
        )

    # ------------------------------------------------------------------ of a learner of classes
    def _start(self, generator: Any) -> SafeOptStanding:
        sets = self.rule.start(self.policies.num, self.initial_safe)
        pairs = zip(self.bounds, self.models, strict=True)
        most = torch.cat([bound.prior_width(model, self.points) for bound, model in pairs], -1)
        most = torch.where(self.rule.threshold > -torch.inf, most, torch.inf)  # of the others' norms nothing is assumed
        sets = replace(sets, lower=torch.maximum(sets.lower, -most), upper=torch.minimum(sets.upper, most))
        pinned, none = pinned_policies(self.policies, self.system.initial_state), Rollouts.empty(self.system.nx)
        return self._next(SafeOptStanding(self.models, (sets,), (0, "local"), {}, none, pinned))

    def _require_same_class(self, at: SafeOptStanding) -> None:
        """Refuses models that were edited, too, where something is promised: that was said of what they were."""
        ClassLearner._require_same_class(self, at)
        for lineage in at.lineages if self.unsound is None else ():
            edited = lineage.edited()
            if edited is not None:
                raise _require.fail(type(self).__name__, edited, "a model that was edited since")

    def _next(self, at: SafeOptStanding) -> SafeOptStanding:
        """Iteration n: sets from the newest posteriors, and whom to fly. Observations told again are refused, as in F_n."""
        for model in at.models if self.unsound is None else ():
            again = repetition(model)
            if again is not None:
                raise _require.fail(type(self).__name__, again, f"a model of {model.num_data} observations")
        beliefs = Beliefs.of(at.models, self.bounds, self.points, covariance=self.rule.needs_covariance)
        distance = None if self.rule.lipschitz is None else _distances(self.points)
        sets = self.rule.step(at.sets[-1], beliefs, distance)
        return self._chosen(replace(at, sets=(*at.sets, sets), falsified=_empty(sets, beliefs, self.points)))

    def _chosen(self, at: SafeOptStanding) -> SafeOptStanding:
        return replace(at, chosen=(self._widest(at.sets[-1]), "local"))

    def _widest(self, sets: SafeOptSets) -> int:
        """a_n; of S_0 where the sets of the released program have come out empty (there it raises)."""
        if bool(sets.candidates.any()):
            return self.rule.choose(sets)
        return self.rule.choose(sets, self.rule.start(self.policies.num, self.initial_safe).safe)

    def _decide(self, at: SafeOptStanding, generator: Any) -> tuple[SafeOptStanding, SafeOptEpisode]:
        sets, (policy, phase) = at.sets[-1], at.chosen
        counts = len(sets), int(sets.expanders.sum()), int(sets.maximisers.sum())
        return at, SafeOptEpisode(len(at.sets) - 2, phase, policy, *counts, float(sets.width[policy].amax()))

    def _learn(self, number: int, asked: EpisodePolicy | None, states: Tensor, inputs: Tensor) -> Mapping[str, Any]:
        """As of any class; an episode that was begun and not finished refutes that every observation is kept."""
        at, _ = self._decided()
        whole = self._whole(states) and _same(self._flight(at), states, inputs, self.system.input_box)
        row = dict(ClassLearner._learn(self, number, asked, states, inputs))
        if not whole and self._begun(at, asked, states, inputs):
            missing = "an episode of the policy was cut short or taken over: its measurement is missing"
            row["falsified"] = row["falsified"] or missing
        return row

    def _begun(self, at: SafeOptStanding, asked: EpisodePolicy | None, states: Tensor, inputs: Tensor) -> bool:
        """Whether it is the chosen policy's episode from x_0: in the first input, if that one was asked, else in all.

        What comes later may depend on what was seen: then the episodes that are measured are chosen by their outcome.
        """
        steps = 1 if asked is not None and asked.inputs else len(inputs)
        began = torch.equal(states[0], self.system.initial_state)
        return began and _same(self._flight(at), states[: steps + 1], inputs[:steps], self.system.input_box)

    def _flight(self, at: SafeOptStanding) -> _Watched:
        """What flies: the chosen policy."""
        return _Watched(self._act, at.chosen[0], None)

    def _conclude(self, at: SafeOptStanding, states: Tensor, inputs: Tensor) -> SafeOptStanding:
        """Nothing is learned of an episode that was not the whole of the asked policy's, from x_0."""
        policy, _ = at.chosen
        if not self._whole(states) or not _same(self._act(policy), states, inputs, self.system.input_box):
            return self._next(at)
        return self._next(replace(at, models=self._measured(at, policy, states, inputs)))

    def _measured(self, at: SafeOptStanding, policy: int, states: Tensor, inputs: Tensor) -> tuple[GP, ...]:
        """The posteriors after one more measurement of a policy."""
        values = (Totals(self.system) if self.measure is None else self.measure)(states, inputs)
        _require.shape(type(self).__name__, "measure", values, (len(self.models),))
        point = self.points[policy].unsqueeze(0)
        pairs = zip(at.models, values, strict=True)
        return tuple(model.condition_on(point, value.reshape(1, 1)) for model, value in pairs)

    def _whole(self, states: Tensor) -> bool:
        return len(states) == self.system.horizon + 1 and torch.equal(states[0], self.system.initial_state)

    def _act(self, policy: int) -> Callable[[Tensor], Tensor]:
        return partial(input_at, selected(self.policies, torch.tensor([policy]), self.system.initial_state))

    def _policy(self, choice: SafeOptEpisode) -> PolicyClass:
        return selected(self.policies, torch.tensor([choice.policy]), self.system.initial_state)

    def _best(self, at: SafeOptStanding, generator: Any) -> PolicyClass:
        """The member of S_n with the largest lower bound of f_0."""
        sets = at.sets[-1]
        safe = sets.safe if bool(sets.safe.any()) else at.sets[0].safe
        best = torch.where(safe, sets.lower[:, 0].nan_to_num(nan=-torch.inf), -torch.inf)
        return selected(self.policies, torch.nonzero(safe & (best == best.amax()))[0], self.system.initial_state)

    def _row(self, choice: SafeOptEpisode) -> dict[str, Any]:
        names = ("phase", "policy", "size", "expanders", "maximisers", "width")
        return {name: getattr(choice, name) for name in names}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GoSafe(SafeOpt):
    """GoSafeOpt (`gpsafe.safety.gosafe`): SafeOpt, and, once its widths are below `settled`, policies from outside S_n under
    watch.

    Args:
        lipschitz_state: L_x, of the constraints in the state; stated, not derived.
        jump: Ξ, how far the state can move in a step; stated.
        settled: width max_i w_n^i below which local exploration is over.
    """

    lipschitz_state: float = field(kw_only=True)
    jump: float = field(kw_only=True)
    settled: float = field(kw_only=True)

    @property
    def unsound(self) -> str | None:
        """Always something: see `gpsafe.safety.gosafe`."""
        return "GoSafe's theorem is of plants without noise and of margins over the whole future"

    def _boundary(self, at: SafeOptStanding) -> Boundary:
        numbers = {"lipschitz": self.lipschitz_state, "jump": self.jump}
        return Boundary.of(at.sets[-1], self.rule.threshold, at.rollouts, **numbers)

    def _chosen(self, at: SafeOptStanding) -> SafeOptStanding:
        sets, boundary = at.sets[-1], self._boundary(at)
        failed = {a: x for a, x in at.failed.items() if float(boundary.slack_at(x.unsqueeze(0))[0]) < 0}
        local = self._widest(sets)
        among = ~sets.safe
        among[list(failed)] = False
        tried = len(at.rollouts) and float(sets.width[local].amax()) < self.settled and bool(among.any())
        chosen = (self.rule.choose(sets, among), "global") if tried else (local, "local")
        return replace(at, failed=failed, chosen=chosen)

    def _choose(self, number: int, start: Tensor) -> EpisodePolicy:
        at, _ = self._decided()
        return self._flying(self._flight(at), number, start)

    def _flight(self, at: SafeOptStanding) -> _Watched:
        policy, phase = at.chosen
        return _Watched(self._act, policy, self._boundary(at) if phase == "global" else None)

    def _conclude(self, at: SafeOptStanding, states: Tensor, inputs: Tensor) -> SafeOptStanding:
        (policy, phase), flight = at.chosen, self._flight(at)
        if not self._whole(states) or not _same(flight, states, inputs, self.system.input_box):
            return self._next(at)
        if flight.stopped is not None:
            return self._next(replace(at, failed={**at.failed, policy: flight.stopped}))
        sets = at.sets if phase == "local" else (*at.sets[:-1], adopt(at.sets[-1], policy, self.rule.threshold))
        rollouts, models = at.rollouts.add(policy, states), self._measured(at, policy, states, inputs)
        return self._next(replace(at, models=models, sets=sets, rollouts=rollouts))


class _Watched:
    """x ↦ u of one policy for one run; with a boundary, of its backup from the first state on that calls for it."""

    def __init__(
        self, act: Callable[[int], Callable[[Tensor], Tensor]], policy: int, boundary: Boundary | None
    ) -> None:
        self._of, self._act, self._boundary = act, act(policy), boundary
        self.stopped: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._boundary is not None and self.stopped is None:
            slack, backup = self._boundary.slack_at(x.unsqueeze(0))
            if not float(slack) >= 0:
                self.stopped, self._act = x.clone(), self._of(int(backup))
        return self._act(x)


def _same(policy: Callable[[Tensor], Tensor], states: Tensor, inputs: Tensor, box: Box) -> bool:
    """Whether these inputs are the policy's at these states, in their order, to rounding in units of the largest of them: in
    those of a box, which may be there to limit nothing, the inputs of other policies were its own, too.
    """
    own = torch.stack([policy(x) for x in states[:-1]])
    largest = torch.maximum(-box.lower, box.upper).to(own.device)
    size = torch.minimum(torch.maximum(own.abs(), inputs.abs()).amax(0), largest)
    return bool(((own - inputs).abs() <= _SAME * size).all())


def _distances(points: Tensor) -> Tensor:
    """Between all points (P, d), (P, P), rounded up.

    From differences: differences of squares, which `cdist` takes for more than 25 points, are 0 for points that are 10⁻⁹ of
    their size apart, and S_n would then hold policies that no L says anything of.
    """
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") * (1 + 1e-12)


def _empty(sets: SafeOptSets, beliefs: Beliefs, points: Tensor) -> Falsification | None:
    """The point where an interval is the emptiest, if one is: C_n, or that of a bound which came out inverted, as a convex
    program's does that no function satisfies. An assumption is false.
    """
    told = beliefs.mean - beliefs.half, beliefs.mean + beliefs.half
    known = (beliefs.mean.abs() <= HUGE) & (beliefs.half.abs() <= HUGE)
    lower = torch.stack([sets.lower, torch.where(known, told[0], -torch.inf)])
    upper = torch.stack([sets.upper, torch.where(known, told[1], torch.inf)])
    gap = (lower - upper - EMPTY * torch.minimum(lower.abs(), upper.abs())).nan_to_num(nan=-torch.inf)
    if not bool((gap > 0).any()):
        return None
    at = torch.unravel_index(gap.argmax(), gap.shape)
    return Falsification(tuple(points[at[1]].tolist()), int(at[2]), float(lower[at]), float(upper[at]))
