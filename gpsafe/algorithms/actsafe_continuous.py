"""ActSafe on a continuous policy class: search proposes parameters, a sound certifier admits them, members are executed.

Per episode: (1) search for parameters of large exploration value (later: reward) under an estimated pessimistic constraint,
starting from certified parameters; (2) admit what the certifier accepts, back off from the rest (`safe_parameters.admit`);
(3) execute the best member; (4) update F_n.

**Guaranteed**, on the event f* ∈ F_n for all n and if S_0 is safe: every executed policy, and every member, has
J_c(π, f*) ≤ d; S_n only grows. **Not guaranteed**: that the search finds anything, that S_n reaches the reachable set of
theory §4 (vi) (that theorem needs the maximum over all of S_n), or that the reward is near the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned, pinned_policies
from gpsafe._show import short, table
from gpsafe.algorithms._class_learner import ClassLearner
from gpsafe.algorithms.actsafe import believed, check_gap, check_inputs, check_parts
from gpsafe.algorithms.explain import Explanation, explain_cost, first_stall, tell
from gpsafe.algorithms.learner import Book, Stream, realised, stream
from gpsafe.assumptions import Believed
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Falsification, strayed
from gpsafe.cost.base import CostBound
from gpsafe.models import GP
from gpsafe.planning.search.problem import Proposals, Search
from gpsafe.planning.search.rollouts import Goal, Pessimism, Rollouts
from gpsafe.policies import AffinePolicies, PolicyClass, inputs_at
from gpsafe.policies.parametric import ParametricPolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.safe_parameters import Decisions, Distance, SafeParameters, admit, sound_upper
from gpsafe.safety.safe_set import PolicyGap
from gpsafe.systems.base import System, sample_noise


@short
@dataclass(frozen=True, slots=True, eq=False)
class ContinuousEpisode:
    """One episode.

    Attributes:
        number: n.
        goal: what was searched for.
        proposals, decisions: what the search proposed (estimates; one row per decision) and what became of it.
        size: |S_n|.
        theta: the executed member, (d,).
        objective: its estimated value.
        cost, reward: realised sums; NaN between decision and flight.
        states: (T + 1, nx).
        seconds: of the search, of the certifier.
    """

    number: int
    goal: Goal
    proposals: Proposals
    decisions: Decisions
    size: int
    theta: Tensor
    objective: float
    cost: float = math.nan
    reward: float = math.nan
    states: Tensor = field(default_factory=lambda: torch.zeros(0))
    seconds: tuple[float, float] = (math.nan, math.nan)


@short
@dataclass(frozen=True, slots=True, eq=False)
class ContinuousStanding:
    """What stands between two episodes: model, F_n, S_n, how many episodes were told, the family as it was."""

    model: GP
    confidence: ConfidenceSet
    safe: SafeParameters
    told: int
    falsified: Falsification | None
    pinned: Pinned
    sizes: tuple[int, ...] = ()  # |S_0|, …


@short
@dataclass(frozen=True, slots=True, eq=False)
class ContinuousRun:
    """The record of a run."""

    episodes: tuple[ContinuousEpisode, ...]
    safe: SafeParameters
    confidence: ConfidenceSet
    falsified: Falsification | None = None

    def _repr_html_(self) -> str:
        told = "" if self.falsified is None else f", falsified: {self.falsified}"
        rows = [(e.number, e.goal, e.size, e.cost, e.reward) for e in self.episodes[-20:]]
        title = f"ContinuousRun({len(self.episodes)} episodes, {len(self.safe)} members{told[:200]})"
        return table(title, rows, head=("episode", "goal", "|S_n|", "cost", "reward"))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ContinuousActSafe(ClassLearner["ContinuousStanding", ContinuousEpisode]):
    """The algorithm's arguments, and a learner of the shape of all (`gpsafe.algorithms.learner`).

    Args:
        system: the true plant (only sampled from).
        family: θ ↦ policies.
        initial: S_0, parameters assumed safe, (m, d).
        model: GP before data, in theory mode.
        bound: confidence bound.
        cost_bound: sound bound of the worst-case cost; a Monte-Carlo one needs calls ≥ 1 + rounds.
        search: method of search.
        distance: D, or None to leave the Lipschitz rule out.
        episodes: how many explore.
        exploit: how many follow with the reward as objective.
        starts: certified parameters that a search starts from: half of them the best, the others random members.
        rounds: bisection steps back from a refused proposal.
        pessimism: of the estimated constraint.
        rollouts: further arguments of `Rollouts.prepare`.
        patience: the log says why, once, when S_n has not grown for so many exploring episodes; 0: never.
        seed, stream: random numbers of `learn`, `ask` and `predict`; `run` takes its generator instead.
    """

    system: System
    family: ParametricPolicies
    initial: Tensor
    model: GP
    bound: ConfidenceBound
    cost_bound: CostBound
    search: Search
    distance: Distance | None = None
    episodes: int = 10
    exploit: int = 1
    starts: int = 8
    rounds: int = 5
    pessimism: Pessimism = "hallucinated"
    rollouts: Mapping[str, Any] = field(default_factory=dict)
    patience: int = 3
    seed: int = 0
    stream: Stream = stream
    _free: ClassVar[tuple[str, ...]] = ("patience",)
    _book: Book = field(init=False, repr=False, default_factory=Book)

    def __post_init__(self) -> None:
        _require.index("ContinuousActSafe", "seed", self.seed)
        _require.count("ContinuousActSafe", "episodes", self.episodes)
        _require.count("ContinuousActSafe", "exploit", self.exploit, minimum=0)
        _require.count("ContinuousActSafe", "starts", self.starts)
        _require.count("ContinuousActSafe", "patience", self.patience, minimum=0)
        _require.count("ContinuousActSafe", "rounds", self.rounds, minimum=0)
        check_parts("ContinuousActSafe", self.system, self.model, self.bound, self.cost_bound, unchecked=False)
        theta = torch.as_tensor(self.initial)
        check_inputs("ContinuousActSafe", self.system, self.family(theta))
        if self.distance is not None:
            self._gap(self.family(theta[:1]), self.family(theta[:1]))

    def _gap(self, first: AffinePolicies, second: AffinePolicies) -> Tensor | PolicyGap:
        """D, refused where it is of another task."""
        assert self.distance is not None
        found = self.distance(first, second)
        norms = self.bound.norms(self.model.num_outputs)
        check_gap("ContinuousActSafe", found, self.cost_bound.task, norms, self.model)
        return found

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What membership of S_n rests on (one evaluation of the cost bound), see `ActSafe.assumptions`."""
        policy = self.family(torch.as_tensor(self.initial)[:1])
        gap = None if self.distance is None else self._gap(policy, policy)
        return believed(self.model, self.bound, self.cost_bound, policy, gap)

    @property
    def unsound(self) -> None:
        """See `Learner`: parts outside their theorems are refused."""
        return None

    def run(self, generator: torch.Generator | int) -> ContinuousRun:
        """All episodes, from a generator or an integer seed; stops early if F_n is found empty (an assumption is false)."""
        generator = _require.generator("ContinuousActSafe.run", generator)
        at, episodes = self._start(generator), []
        while at.falsified is None and len(episodes) < self.episodes + self.exploit:
            self._require_same_class(at)
            at, choice = self._decide(at, generator)
            states, inputs = self._execute(choice.theta, generator)
            cost, reward = realised(self.system, states, inputs)
            episodes.append(replace(choice, cost=float(cost), reward=float(reward), states=states))
            at = self._conclude(at, states, inputs)
        return ContinuousRun(tuple(episodes), at.safe, at.confidence, at.falsified)

    def _start(self, generator: torch.Generator) -> ContinuousStanding:
        confidence = ConfidenceSet(self.bound).update(self.model)
        safe = SafeParameters.initial(self.initial, budget=self.cost_bound.task.budget)
        falsified, first, family = confidence.falsified(), safe.theta.clone(), self.family
        pinned = pinned_policies(lambda x: inputs_at(family(first), x), self.system.initial_state)
        return ContinuousStanding(self.model, confidence, safe, 0, falsified, pinned, (len(safe),))

    def explain(self, theta: Any, *, crowd: int = 1) -> Explanation:
        """Why the policy of parameters (d,) is not certified by F_n: a diagnosis, not a bound (`gpsafe.algorithms.explain`).

        `crowd`: how many policies share a Monte-Carlo bound's δ. An episode asks of all proposals of a round at once, so that
        each has less of it than one alone (`Explanation.share`).
        """
        where, size = "ContinuousActSafe.explain", self.initial.shape[-1]
        theta = _require.shape(where, "theta", _require.real(where, "theta", theta), (size,))
        return self._explained(self.standing, theta, crowd)

    def _explained(self, at: ContinuousStanding, theta: Tensor, crowd: int = 1) -> Explanation:
        policy, members = self.family(theta.unsqueeze(0)), self.family(at.safe.theta)
        return explain_cost(self.cost_bound, at.confidence, policy, members, crowd=crowd)

    def _decide(
        self, at: ContinuousStanding, generator: torch.Generator
    ) -> tuple[ContinuousStanding, ContinuousEpisode]:
        number, safe = at.told + 1, at.safe
        goal: Goal = "exploration" if number <= self.episodes else "reward"
        problem = self._problem(at, goal, self.pessimism, generator)
        began = time.perf_counter()
        proposals = _without(self.search(problem, self._starts(safe, problem, generator), generator), safe, self.family)
        searched = time.perf_counter()
        safe, decisions = admit(
            safe,
            self.family.from_unit(proposals.points),
            sound_upper(self.cost_bound, at.confidence, self.family),
            family=self.family,
            episode=number,
            bound=self.cost_bound.name,
            rounds=self.rounds,
            distance=None if self.distance is None else self._gap,
        )
        judged = time.perf_counter()
        best, objective = self._best_of(safe, problem)
        seconds = (searched - began, judged - searched)
        choice = ContinuousEpisode(number, goal, proposals, decisions, len(safe), best, objective, seconds=seconds)
        at = replace(at, safe=safe, sizes=(*at.sizes, len(safe)))
        if goal == "exploration" and len(proposals.points) and first_stall(at.sizes, self.patience):
            near, crowd = decisions.theta[decisions.upper.argmin()], len(decisions.theta)
            what = f"S_n stands at {len(safe)} for {self.patience} episodes; the nearest proposal, θ = {near.tolist()}"
            tell("ContinuousActSafe", what, lambda: self._explained(at, near, crowd))
        return at, choice

    def _conclude(self, at: ContinuousStanding, states: Tensor, inputs: Tensor) -> ContinuousStanding:
        rows = transitions(states, inputs)
        model = at.model.condition(rows)
        confidence = at.confidence.update(model)
        falsified = at.falsified or confidence.falsified()
        falsified = falsified or strayed(model, rows, self.cost_bound.task.noise_std)
        return replace(at, model=model, confidence=confidence, told=at.told + 1, falsified=falsified)

    def _problem(
        self, at: ContinuousStanding, goal: Goal, pessimism: Pessimism, generator: torch.Generator
    ) -> Rollouts:
        return Rollouts.prepare(
            self.family, at.confidence, self.system,
            goal=goal, pessimism=pessimism, generator=generator, **self.rollouts,
        )  # fmt: skip

    def _best_of(self, safe: SafeParameters, problem: Rollouts) -> tuple[Tensor, float]:
        """The member of the largest objective, and its value."""
        with torch.no_grad():
            objective = problem.objective(self.family.to_unit(safe.theta))
        best = int(objective.argmax())
        return safe.theta[best].clone(), float(objective[best])  # no view: it is handed out

    def _policy(self, choice: ContinuousEpisode) -> PolicyClass:
        return self.family(choice.theta.unsqueeze(0))

    def _best(self, at: ContinuousStanding, generator: torch.Generator) -> PolicyClass:
        theta, _ = self._best_of(at.safe, self._problem(at, "reward", "mean", generator))
        return self.family(theta.unsqueeze(0))

    def _row(self, choice: ContinuousEpisode) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(choice, name) for name in ("goal", "size", "objective")}
        row |= {f"theta_{i}": value for i, value in enumerate(choice.theta.tolist())}
        return row | {"searching_s": choice.seconds[0], "certifying_s": choice.seconds[1]}

    def _starts(self, safe: SafeParameters, problem: Rollouts, generator: torch.Generator) -> Tensor:
        """Unit-cube coordinates of at most `starts` different members."""
        unit = self.family.to_unit(safe.theta)
        with torch.no_grad():
            order = problem.objective(unit).argsort(descending=True)
        top, rest = order[: (self.starts + 1) // 2], order[(self.starts + 1) // 2 :]
        shuffled = rest[torch.randperm(len(rest), generator=generator)]
        return unit[torch.cat([top, shuffled])[: self.starts]]

    def _execute(self, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        system = self.system
        noise = sample_noise(system.noise_std, (system.horizon, 1, 1), generator)
        states, inputs = closed_loop(system.mean, self.family(theta.unsqueeze(0)), system.initial_state, noise)
        return states[0, 0], inputs[0, 0]


def _without(proposals: Proposals, safe: SafeParameters, family: ParametricPolicies) -> Proposals:
    """Leaves out proposals that are members already, and repeated ones."""
    unit = family.to_unit(safe.theta)
    known = torch.cdist(proposals.points, unit).amin(-1) < 1e-9
    twins = torch.cdist(proposals.points, proposals.points) < 1e-9
    repeated = twins.tril(-1).any(-1)
    keep = ~(known | repeated)
    return Proposals(
        proposals.points[keep], proposals.objective[keep], proposals.constraint[keep], proposals.evaluations
    )
