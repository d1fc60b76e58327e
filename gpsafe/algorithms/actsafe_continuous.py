"""ActSafe on a continuous policy class: search proposes parameters, a sound certifier admits them, members are executed.

Per episode: (1) search for parameters of large exploration value (later: reward) under an estimated pessimistic constraint,
starting from certified parameters; (2) admit what the certifier accepts, back off from the rest (`safe_parameters.admit`);
(3) execute the best member; (4) update F_n.

**Guaranteed**, on the event f* ∈ F_n for all n and if S_0 is safe: every executed policy, and every member, has
J_c(π, f*) ≤ d; S_n only grows. **Not guaranteed**: that the search finds anything, that S_n reaches the reachable set of
theory §4 (vi) (that theorem needs the maximum over all of S_n), or that the reward is near the best.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.actsafe import check_inputs, check_parts
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Falsification
from gpsafe.cost.base import CostBound
from gpsafe.models import GP
from gpsafe.planning.search.problem import Proposals, Search
from gpsafe.planning.search.rollouts import Goal, Pessimism, Rollouts
from gpsafe.policies.parametric import ParametricPolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.safe_parameters import Decisions, Distance, SafeParameters, admit, sound_upper
from gpsafe.systems.base import System, sample_noise


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
        cost, reward: realised sums.
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
    cost: float
    reward: float
    states: Tensor
    seconds: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class ContinuousRun:
    """The record of a run."""

    episodes: tuple[ContinuousEpisode, ...]
    safe: SafeParameters
    confidence: ConfidenceSet
    falsified: Falsification | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ContinuousActSafe:
    """The algorithm's arguments.

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

    def __post_init__(self) -> None:
        _require.count("ContinuousActSafe", "episodes", self.episodes)
        _require.count("ContinuousActSafe", "exploit", self.exploit, minimum=0)
        _require.count("ContinuousActSafe", "starts", self.starts)
        _require.count("ContinuousActSafe", "rounds", self.rounds, minimum=0)
        check_parts("ContinuousActSafe", self.system, self.model, self.bound, self.cost_bound, unchecked=False)
        theta = torch.as_tensor(self.initial)
        check_inputs("ContinuousActSafe", self.system, self.family(theta))

    def run(self, generator: torch.Generator) -> ContinuousRun:
        """All episodes; stops early if F_n comes out empty at a data point (a falsified assumption)."""
        model, confidence = self.model, ConfidenceSet(self.bound).update(self.model)
        safe = SafeParameters.initial(self.initial, budget=self.cost_bound.task.budget)
        episodes: list[ContinuousEpisode] = []
        falsified = None if model.inputs is None else confidence.falsified(model.inputs)
        if falsified is not None:  # by data that came with the model
            return ContinuousRun((), safe, confidence, falsified)
        for number in range(1, self.episodes + self.exploit + 1):
            goal: Goal = "exploration" if number <= self.episodes else "reward"
            problem = Rollouts.prepare(
                self.family, confidence, self.system,
                goal=goal, pessimism=self.pessimism, generator=generator, **self.rollouts,
            )  # fmt: skip
            began = time.perf_counter()
            proposals = _without(
                self.search(problem, self._starts(safe, problem, generator), generator), safe, self.family
            )
            searched = time.perf_counter()
            safe, decisions = admit(
                safe,
                self.family.from_unit(proposals.points),
                sound_upper(self.cost_bound, confidence, self.family),
                family=self.family,
                episode=number,
                bound=self.cost_bound.name,
                rounds=self.rounds,
                distance=self.distance,
            )
            judged = time.perf_counter()
            with torch.no_grad():
                objective = problem.objective(self.family.to_unit(safe.theta))
            best = int(objective.argmax())
            states, inputs = self._execute(safe.theta[best], generator)
            cost, reward = self.system.cost(states[:-1]).sum(), self.system.reward(states[:-1], inputs).sum()
            episodes.append(
                ContinuousEpisode(
                    number,
                    goal,
                    proposals,
                    decisions,
                    len(safe),
                    safe.theta[best],
                    float(objective[best]),
                    float(cost),
                    float(reward),
                    states,
                    (searched - began, judged - searched),
                )
            )
            model = model.condition(transitions(states, inputs))
            confidence = confidence.update(model)
            falsified = None if model.inputs is None else confidence.falsified(model.inputs)
            if falsified is not None:
                return ContinuousRun(tuple(episodes), safe, confidence, falsified)
        return ContinuousRun(tuple(episodes), safe, confidence)

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

    def with_(self, **changes: object) -> ContinuousActSafe:
        """A copy with some arguments replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


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
