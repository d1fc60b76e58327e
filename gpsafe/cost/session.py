"""What ActSafe asks of a cost bound from episode to episode, with or without incremental work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.confidence.set import ConfidenceSet, Falsification
from gpsafe.cost.base import CostBound
from gpsafe.cost.enclosure import Enclosure
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.policies import PolicyClass, selected
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import sample_noise
from gpsafe.systems.task import Task


class Session(Protocol):
    """UCB_n and the exploration value of chosen policies, after each update of F_n."""

    @property
    def task(self) -> Task:
        """The task that UCB_n speaks of."""
        ...

    def upper(self, index: Tensor) -> Tensor:
        """Sound UCB_n of the policies `index`, (m,)."""
        ...

    def exploration(self, index: Tensor) -> Tensor:
        """sup_f E Σ‖σ_n‖ (or an estimate of it) of the policies `index`, (m,)."""
        ...

    def update(self, confidence: ConfidenceSet) -> Self:
        """The same after new generations."""
        ...

    def falsified(self) -> Falsification | None:
        """A point at which F_n is empty, if one was met."""
        ...


@short
@dataclass(frozen=True, slots=True, eq=False)
class DPSession:
    """Robust DP with the enclosure of all policies kept between episodes, so that each posterior is evaluated once."""

    dp: RobustDP
    confidence: ConfidenceSet
    enclosure: Enclosure

    @property
    def task(self) -> Task:
        """Of the program."""
        return self.dp.task

    @property
    def policies(self) -> PolicyClass | None:
        """Whose boxes these are."""
        return self.enclosure.policies

    @staticmethod
    def start(dp: RobustDP, confidence: ConfidenceSet, policies: PolicyClass) -> DPSession:
        """Session before any episode."""
        return DPSession(dp, confidence, dp.enclosure(confidence, policies).refine(confidence))

    def upper(self, index: Tensor) -> Tensor:
        """V_0(x₀), rounded up."""
        if index.numel() == 0:
            return torch.zeros(0, dtype=torch.float64)
        return self.dp.upper(self.enclosure.select(index))

    def exploration(self, index: Tensor) -> Tensor:
        """Optimistic robust value of Σ‖σ_n‖, σ_n of the newest posterior."""
        part = self.enclosure.select(index)
        _, std = self.confidence.model.posterior(part.z)
        return self.dp.exploration(part, std.norm(dim=-1))

    def update(self, confidence: ConfidenceSet) -> DPSession:
        """Intersects the new generations."""
        return replace(self, confidence=confidence, enclosure=self.enclosure.refine(confidence))

    def falsified(self) -> Falsification | None:
        """Looks at all points of the enclosure, or where none is empty as `ConfidenceSet.falsified` does."""
        return self.confidence.falsified(self.enclosure.z if self.enclosure.empty() else None)


@short
@dataclass(frozen=True, slots=True, eq=False)
class EvaluationSession:
    """Any cost bound; exploration is estimated by Monte Carlo under the posterior mean (a heuristic for choosing only)."""

    bound: CostBound
    confidence: ConfidenceSet
    policies: PolicyClass
    generator: torch.Generator
    paths: int = 16

    @property
    def task(self) -> Task:
        """Of the bound."""
        return self.bound.task

    def upper(self, index: Tensor) -> Tensor:
        """Upper ends of the bound's intervals."""
        if index.numel() == 0:
            return torch.zeros(0, dtype=torch.float64)
        return self.bound.evaluate(self.confidence, selected(self.policies, index, self.task.initial_state)).upper

    def exploration(self, index: Tensor) -> Tensor:
        """Mean over paths of Σ‖σ_n‖ along the posterior mean with noise."""
        model = self.confidence.model
        task = self.task
        noise = sample_noise(task.noise_std, (task.horizon, 1, self.paths), self.generator)
        policies = selected(self.policies, index, self.task.initial_state)
        states, inputs = closed_loop(lambda x, u: model.predict(x, u).mean, policies, task.initial_state, noise)
        _, std = model.posterior(torch.cat([states[..., :-1, :], inputs], dim=-1))
        return std.norm(dim=-1).sum(-1).mean(-1)

    def update(self, confidence: ConfidenceSet) -> EvaluationSession:
        """New F_n."""
        return replace(self, confidence=confidence)

    def falsified(self) -> Falsification | None:
        """Looks at the data."""
        return self.confidence.falsified()
