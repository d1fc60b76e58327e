"""What a receding-horizon learner makes of data: a model to plan with, and in theory mode F_n and a judge of plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.algorithms.actsafe import check_inputs, check_theorem
from gpsafe.confidence import ConfidenceBound, ConfidenceSet
from gpsafe.cost.plan_tube import PlanTube
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.models.base import DynamicsModel, Prediction
from gpsafe.planning.practical import FeatureGP, fit
from gpsafe.safety.shield import Completer, NotCertified, Shield
from gpsafe.systems.base import System
from gpsafe.systems.task import Task


class LearnedModel(Protocol):
    """Grows with data; frozen between episodes."""

    @property
    def heuristic(self) -> str | None:
        """Why nothing that it says is a certificate; None if it can make a shield."""
        ...

    def condition(self, data: Transitions) -> Self:
        """After further transitions."""
        ...

    def planning(self) -> DynamicsModel:
        """What a planner is given: trusted by nobody."""
        ...


@short
@dataclass(frozen=True, slots=True, eq=False)
class TheoryModel:
    """Kernel, λ and bound frozen before the data; F_n; and, for a shield, a judge with what completes its plans.

    Args:
        gp: before any data, in theory mode.
        confidence: F_n. Make it with `create`.
        tabulate: gp → the model that plans are made with (a `Table`, say).
        judge: of plans; None if no verifier is wanted.
        tracking: completes candidates for the judge.
        doubt: why its assumptions are not even believed (they were estimated, say): nothing is called guaranteed then.
    """

    gp: GP
    confidence: ConfidenceSet
    tabulate: Callable[[GP], DynamicsModel] = lambda gp: gp
    judge: PlanTube | None = None
    tracking: Completer | None = None
    doubt: str | None = None

    def __post_init__(self) -> None:
        if (self.judge is None) != (self.tracking is None):
            raise _require.fail("TheoryModel", "judge and tracking together", "one of them")
        if not self.confidence.generations or self.confidence.model is not self.gp:
            raise _require.fail("TheoryModel", "the confidence set of this gp (make both with `create`)", "another one")

    @staticmethod
    def create(
        gp: GP,
        bound: ConfidenceBound,
        *,
        tabulate: Callable[[GP], DynamicsModel] = lambda gp: gp,
        judge: PlanTube | None = None,
        tracking: Completer | None = None,
        doubt: str | None = None,
    ) -> TheoryModel:
        """Before any data."""
        return TheoryModel(gp, ConfidenceSet(bound).update(gp), tabulate, judge, tracking, doubt)

    @property
    def heuristic(self) -> str | None:
        """See `LearnedModel`."""
        return "no verifier was given" if self.judge is None else self.doubt

    def require_theorem(self, where: str, system: System) -> None:
        """Refuses parts that no theorem covers together, as `ActSafe` does: another task, a heuristic bound, another σ, inputs
        beyond the plant's.
        """
        assert self.judge is not None
        try:
            check_theorem(where, Task.of(system), self.gp, self.confidence.bound, self.judge.task)
        except ValueError as error:
            raise _require.fail(where, "parts within one theorem", str(error)) from error
        for policies in (self.judge, self.judge.fallbacks):
            check_inputs(where, system, policies)

    def condition(self, data: Transitions) -> TheoryModel:
        """F_{n+1}."""
        gp = self.gp.condition(data)
        return replace(self, gp=gp, confidence=self.confidence.update(gp))

    def planning(self) -> DynamicsModel:
        """See `LearnedModel`."""
        return self.tabulate(self.gp)

    def refined(self) -> TheoryModel:
        """The judge's grid intersected with F_n: one generation at a time, so that it never depends on who asked when."""
        judge = self.judge
        if judge is None or judge.anchors is None:
            return self
        return replace(self, judge=replace(judge, anchors=judge.anchors.refine(self.confidence)))

    def shield(self, x0: Tensor) -> Shield | NotCertified:
        """Of an episode from x_0."""
        assert self.judge is not None and self.tracking is not None
        return Shield.start(self.judge, self.confidence, x0, tracking=self.tracking)


@short
@dataclass(frozen=True, slots=True, eq=False)
class PracticalModel:
    """The model of the published experiments, refitted after every episode. No theorem covers it.

    Args:
        gp: before any data, or with offline data.
        tabulate: gp → the model that plans are made with.
        fits: number of transitions → L-BFGS iterations of a refit to them.
    """

    gp: FeatureGP
    tabulate: Callable[[FeatureGP], DynamicsModel] = lambda gp: gp
    fits: Callable[[int], int] = lambda count: 40

    @property
    def heuristic(self) -> str:
        """See `LearnedModel`."""
        return "its model is refitted to the data, and no verifier stands between plan and plant"

    def condition(self, data: Transitions) -> PracticalModel:
        """Refitted to all data, from the last hyperparameters."""
        old = self.gp
        joined = data if old.data is None else old.data + data
        steps = self.fits(len(joined))
        gp = fit(
            joined, old.features, noise_std=old.process_std, log_lengthscale=old.log_lengthscale, steps=steps
        )  # fmt: skip
        return replace(self, gp=gp)

    def planning(self) -> DynamicsModel:
        """See `LearnedModel`."""
        return self.tabulate(self.gp)


@dataclass(frozen=True, slots=True)
class TrueModel:
    """The plant as a model without epistemic error that learns nothing: what planning alone would reach."""

    system: System
    heuristic: str = "its model is the plant itself"

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.system.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.system.nu

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """f*(x, u)."""
        mean = self.system.mean(x, u)
        return Prediction(mean, torch.zeros_like(mean), self.system.noise_std)

    def condition(self, data: Transitions) -> TrueModel:
        """Nothing to learn."""
        return self

    def planning(self) -> TrueModel:
        """Itself."""
        return self
