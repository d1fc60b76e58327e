"""ActSafe, Algorithm 1, in theory mode on a finite policy class: expand the safe set, then exploit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Falsification
from gpsafe.cost.base import CostBound
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.session import DPSession, EvaluationSession, Session
from gpsafe.explore import expected_return
from gpsafe.models import GP
from gpsafe.policies import PolicyClass
from gpsafe.rollout import closed_loop, transitions
from gpsafe.safe_set import SafePolicySet
from gpsafe.systems.base import System, sample_noise


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One episode: what was known before it, what was run."""

    number: int
    phase: Literal["expand", "exploit"]
    policy: int
    size: int  # |S_n|
    exploration: float  # max over S_n of the optimistic uncertainty value (nan while exploiting)
    beta: tuple[float, ...]
    cost: float  # realised Σ c
    reward: float
    states: Tensor  # (T + 1, nx)


@dataclass(frozen=True, slots=True, eq=False)
class ActSafeRun:
    """The record of a run: episodes, every S_n, the last model and F_n, and whether an assumption was falsified."""

    episodes: tuple[Episode, ...]
    safe_sets: tuple[SafePolicySet, ...]
    confidence: ConfidenceSet
    falsified: Falsification | None = None

    @property
    def safe_set(self) -> SafePolicySet:
        """The last S_n."""
        return self.safe_sets[-1]


@dataclass(frozen=True, slots=True, eq=False)
class ActSafe:
    """The algorithm's arguments.

    Args:
        system: the true plant (only sampled from; its `mean` is never shown to the learner).
        policies: finite policy class.
        initial_safe: S_0, indices assumed safe.
        model: GP before data, in theory mode.
        bound: confidence bound.
        cost_bound: sound bound of the worst-case cost (RobustDP is updated incrementally; any other `CostBound` works).
        distance: D(π, π′), or None to leave the Lipschitz rule out.
        episodes: number of episodes.
        threshold: expansion ends when max_{S_n} of the exploration value falls below it.
        start: makes the session that answers for the class (e.g. a `PrunedSession` for thousands of policies); by default
            one that evaluates every policy asked for with `cost_bound`.
        view: what F_n is evaluated with, e.g. a low-rank posterior with a rigorous error term; identity by default.
    """

    system: System
    policies: PolicyClass
    initial_safe: Sequence[int]
    model: GP
    bound: ConfidenceBound
    cost_bound: CostBound
    distance: Tensor | None = None
    episodes: int = 30
    threshold: float = 0.0
    view: Callable[[GP], GP] = field(default=lambda model: model)
    start: Callable[[ConfidenceSet], Session] | None = None

    def __post_init__(self) -> None:
        _require.count("ActSafe", "episodes", self.episodes)
        _require.nonnegative("ActSafe", "threshold", self.threshold)
        if not self.cost_bound.sound:
            raise _require.fail("ActSafe", "a sound cost bound", self.cost_bound.name)
        self.bound.check(self.model)

    def run(self, generator: torch.Generator) -> ActSafeRun:
        """Runs all episodes; stops early if F_n comes out empty (a falsified assumption)."""
        model, confidence = self.model, ConfidenceSet(self.bound).update(self.view(self.model))
        session = self._session(confidence, generator)
        safe = SafePolicySet.initial(self.policies.num, list(self.initial_safe), budget=self.system.budget)
        safe_sets, episodes, exploring = [safe], [], True
        falsified = session.falsified()  # data that came with the model may do it
        if falsified is not None:
            return ActSafeRun((), (safe,), confidence, falsified)
        for number in range(1, self.episodes + 1):
            candidates = torch.arange(safe.num) if self.distance is not None else safe.outsiders
            upper = torch.full((safe.num,), torch.inf, dtype=torch.float64)
            upper[candidates] = session.upper(candidates)
            safe = safe.expand(upper, episode=number, bound=self.cost_bound.name, distance=self.distance)
            safe_sets.append(safe)
            value = math.nan
            scores = torch.zeros(0)
            if exploring:
                scores = session.exploration(safe.members)
                value = float(scores.max())
                exploring = value >= self.threshold
            if not exploring:
                members = self.policies.select(safe.members)
                scores = expected_return(self.system, model, members, generator=generator)
            chosen = int(safe.members[scores.argmax()])
            states, inputs = self._execute(chosen, generator)
            phase = "expand" if exploring else "exploit"
            cost, reward = self.system.cost(states[:-1]).sum(), self.system.reward(states[:-1], inputs).sum()
            beta = tuple(self.bound.beta(confidence.model).tolist())
            episodes.append(Episode(number, phase, chosen, len(safe), value, beta, float(cost), float(reward), states))
            model = model.condition(transitions(states, inputs))
            confidence = confidence.update(self.view(model))
            session = session.update(confidence)
            falsified = session.falsified()
            if falsified is not None:
                return ActSafeRun(tuple(episodes), tuple(safe_sets), confidence, falsified)
        return ActSafeRun(tuple(episodes), tuple(safe_sets), confidence)

    def _session(self, confidence: ConfidenceSet, generator: torch.Generator) -> Session:
        if self.start is not None:
            return self.start(confidence)
        if isinstance(self.cost_bound, RobustDP):
            return DPSession.start(self.cost_bound, confidence, self.policies)
        return EvaluationSession(self.cost_bound, confidence, self.policies, self.system, generator)

    def _execute(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        system = self.system
        noise = sample_noise(system.noise_std, (system.horizon, 1, 1), generator)
        policy = self.policies.select(torch.tensor([index]))
        states, inputs = closed_loop(system.mean, policy, system.initial_state, noise)
        return states[0, 0], inputs[0, 0]

    def with_(self, **changes: object) -> ActSafe:
        """A copy with some arguments replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]
