"""What stands between an explorer and the plant, behind one name: nothing, a tube filter, a shield.

A guard is made for one belief; `start` begins an episode, `decide` answers for one step. The pessimistic set of policies is
another kind of thing (`gpsafe.comparison.policies`): it chooses whole episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.certification import Certification, NoInvariantSetError
from gpsafe.algorithms.defaults import sound_learner
from gpsafe.algorithms.learned import TheoryModel
from gpsafe.certify.terminal_set import TerminalSet
from gpsafe.comparison.beliefs import DELTA, Belief, GaussianBelief
from gpsafe.comparison.contest import Contest
from gpsafe.planning.mpc.completion import Completion
from gpsafe.safety.filter import Decision, SafetyFilter
from gpsafe.safety.shield import NotCertified, Shield
from gpsafe.systems.base import KnownPart, is_violation
from gpsafe.systems.derived import derived_known

GuardName = Literal["none", "tube-paper", "tube-sound", "shield"]
STATES = 6  # N of a tube: five steps and then a set
FINITE = 1e3  # half-width of a state box up to which a shield tabulates F_n on it


class UnfitError(ValueError):
    """This certifier has no meaning for this model or plant."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is applied, and why.

    Attributes:
        u: (nu,).
        passed: the proposed input itself, certified (without a guard: as it is).
        backed: a certificate stands behind u, under its assumptions.
        captured: whether the state was in the tube of some member; None if there was nothing to be in.
    """

    u: Tensor
    passed: bool
    backed: bool
    captured: bool | None = None


class Guard(Protocol):
    """One belief's guard; it remembers the episode."""

    @property
    def rests_on(self) -> tuple[str, ...]:
        """Kinds of assumptions of what it calls backed."""
        ...

    def start(self, x: Tensor) -> None:
        """A new episode from the measured x."""
        ...

    def decide(self, x: Tensor, proposed: Tensor) -> Ruling:
        """One step."""
        ...

    def arrived(self, x: Tensor) -> str | None:
        """The first refutation of its assumptions, in words, after the last measured x of the episode."""
        ...

    def outside(self, contest: Contest) -> Mapping[str, tuple[int, int]]:
        """Of its assumptions beside the model's: at how many of how many points each is false."""
        ...


@dataclass(slots=True)
class Free:
    """Nothing stands between."""

    contest: Contest

    @property
    def rests_on(self) -> tuple[str, ...]:
        """See `Guard`."""
        return ()

    def start(self, x: Tensor) -> None:
        """See `Guard`."""

    def decide(self, x: Tensor, proposed: Tensor) -> Ruling:
        """See `Guard`."""
        return Ruling(self.contest.plant.input_box.clip(proposed), True, False)

    def arrived(self, x: Tensor) -> None:
        """See `Guard`."""

    def outside(self, contest: Contest) -> Mapping[str, tuple[int, int]]:
        """See `Guard`."""
        return {}


@dataclass(slots=True)
class Tubed:
    """A `SafetyFilter` with the belief's tubes; plans are completed by the safe controller (`Completion`)."""

    fresh: SafetyFilter
    now: SafetyFilter

    @staticmethod
    def create(contest: Contest, belief: Belief, mode: Literal["paper", "sound"]) -> Tubed:
        """With an invariant terminal set where there is one, else the hull of the first states in the limited coordinates."""
        plant, box = contest.plant, contest.plant.input_box
        how = Certification(
            states=STATES, mode=mode, feedback=None, terminal="invariant", input_weight=10.0, delta=DELTA,
            proposer=Completion(plant.backup, box.lower, box.upper),
        )  # fmt: skip
        try:
            made = how.filter(plant, belief.certified, belief.apart)
        except NoInvariantSetError:
            dims = tuple(plant.limited)
            points = torch.cat([x for x, _ in contest.offline])
            hull = TerminalSet.start(points, dims=dims, delay=0).polytope
            made = replace(how, terminal="hull", feedback=0.0, dims=dims).filter(
                plant, belief.certified, belief.apart, hull
            )
        return Tubed(made, made)

    @property
    def rests_on(self) -> tuple[str, ...]:
        """See `Guard`."""
        return tuple(dict.fromkeys(entry.kind.name for entry in self.fresh.assumptions))

    def start(self, x: Tensor) -> None:
        """See `Guard`."""
        self.now = self.fresh.start()

    def decide(self, x: Tensor, proposed: Tensor) -> Ruling:
        """See `Guard`."""
        decision, self.now = self.now.decide(x, proposed)
        passed = decision.source == "plan" and bool((decision.u - proposed).abs().amax() <= 1e-6)
        return Ruling(decision.u, passed, decision.backed, _captured(decision))

    def arrived(self, x: Tensor) -> str | None:
        """See `Guard`."""
        return self.now.arrived(x).falsified

    def outside(self, contest: Contest) -> Mapping[str, tuple[int, int]]:
        """States of the terminal set that the backup does not keep within limits, without noise."""
        safe, x = self.fresh, contest.goals(4000)
        x = x[safe.problem.terminal.contains(x)]
        law, plant = (safe.invariance.law if safe.invariance is not None else contest.plant.backup), contest.plant
        lost, state = torch.zeros(len(x), dtype=torch.bool), x
        for _ in range(contest.recovery if len(x) else 0):
            state = plant.mean(state, plant.input_box.clip(law(state)))
            lost |= is_violation(plant.cost(state))
        return {"terminal set kept by the backup": (int(lost.sum()), len(x))}


@dataclass(slots=True)
class Shielded:
    """A `Shield`: every input has a certified plan to the end of the episode; where none begins, the safe controller flies."""

    contest: Contest
    model: TheoryModel
    now: Shield | None = None

    @staticmethod
    def create(contest: Contest, belief: Belief) -> Shielded:
        """Of a Gaussian process; parts as `sound_learner` makes them."""
        if not isinstance(belief, GaussianBelief):
            raise UnfitError("a shield believes F_n, which an ensemble has not")
        plant = contest.plant
        known = contest.known
        if not isinstance(known, KnownPart):
            known = derived_known(known, states=contest.region, inputs=plant.input_box)
        narrow: Any = _Boxed(plant, contest.region) if _wide(plant) else plant
        parts = {} if belief.found is not None else {"rkhs_norm": contest.rkhs_norm, "outputs": contest.outputs}
        made = sound_learner(narrow, known, belief.found or contest.kernels, episodes=20, **parts).known  # type: ignore[arg-type]
        if not isinstance(made, TheoryModel) or made.judge is None:
            raise UnfitError("no judge for this plant")
        judge = replace(made.judge, anchors=None) if _wide(plant) else made.judge
        whole = replace(made, gp=belief.confidence.model, confidence=belief.confidence, judge=judge).refined()
        return Shielded(contest, whole)

    @property
    def rests_on(self) -> tuple[str, ...]:
        """See `Guard`."""
        assert self.model.judge is not None
        judge = replace(self.model.judge, confidence=self.model.confidence)  # all that is read of a refined one
        return tuple(dict.fromkeys(entry.kind.name for entry in judge.believed()))

    def start(self, x: Tensor) -> None:
        """See `Guard`."""
        found = self.model.shield(x)
        self.now = None if isinstance(found, NotCertified) else found

    def decide(self, x: Tensor, proposed: Tensor) -> Ruling:
        """See `Guard`."""
        if self.now is None or self.now.time >= self.now.horizon:
            return Ruling(self.contest.plant.backup(x), False, False)
        decision, self.now = self.now.decide(x, proposed.reshape(1, 1, -1))
        sure = decision.falsified is None
        return Ruling(decision.u, decision.source == "plan", sure, sure)

    def arrived(self, x: Tensor) -> str | None:
        """See `Guard`."""
        return None if self.now is None else self.now.arrived(x).falsified

    def outside(self, contest: Contest) -> Mapping[str, tuple[int, int]]:
        """See `Guard`."""
        return {}


def guard(name: GuardName | str, contest: Contest, belief: Belief) -> Guard:
    """The guard of that name for a belief.

    Raises:
        UnfitError: where it makes no sense.
    """
    _require.one_of("guard", "certifier", name, ("none", "tube-paper", "tube-sound", "shield"))
    if name == "none":
        return Free(contest)
    if name == "shield":
        return Shielded.create(contest, belief)
    if name == "tube-sound" and isinstance(belief, GaussianBelief) and not isinstance(contest.known, KnownPart):
        raise UnfitError("sound tubes of a Gaussian process need a known part with a Hessian bound")
    return Tubed.create(contest, belief, "paper" if name == "tube-paper" else "sound")


def _captured(decision: Decision) -> bool | None:
    return None if decision.contained is None else bool(decision.contained.any())


def _wide(plant: Any) -> bool:
    return bool((plant.state_box.radius > FINITE).any())


class _Boxed:
    """A system whose state box is another one."""

    def __init__(self, system: Any, box: Any) -> None:
        self._system, self.state_box = system, box

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)
