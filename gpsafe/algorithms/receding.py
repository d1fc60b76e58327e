"""ActSafe in its receding-horizon form: a planner proposes at every step, a shield decides, model and F_n learn.

The first episodes are spent on S_0, policies that are assumed safe; then the planner explores. With pessimism "sound" an
input is applied only if `gpsafe.safety.shield` admits it, from an x_0 for which a fallback is certified; if none is, and after
an assumption was refuted, the episode is spent on S_0. With any other pessimism, and with a model that is refitted to its data
(`PracticalModel`, the published form), plans are applied as they come: a **heuristic**, and called so.

**Guaranteed** (pessimism "sound"), on the event that f* ∈ F_n for all n and the noise stays in the judge's box: no state of an
episode or task that began with a certified fallback violates the constraint, whatever the planner does. The box fails with
probability at most `delta_noise` over all steps that were spent under it; an episode that would overspend it is refused.
**Assumed**: that S_0 is safe in its episodes. **Not guaranteed**: that anything is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.actsafe import check_inputs
from gpsafe.algorithms.episode import Pilot, Trajectory
from gpsafe.algorithms.explain import Explanation, explain_plan, tell
from gpsafe.algorithms.learned import LearnedModel, TheoryModel
from gpsafe.algorithms.learner import PLANNER, Book, EpisodePolicy, Learner, Stream, stream
from gpsafe.models.base import DynamicsModel
from gpsafe.planning import EXPLORERS, Explorer, Planner
from gpsafe.planning.explorers import Pessimism
from gpsafe.planning.scores import Reward
from gpsafe.policies import PolicyClass, input_at, selected
from gpsafe.policies.rollout import transitions
from gpsafe.safety.shield import NotCertified, Shield, noise_risk
from gpsafe.systems.base import System

TASK = 1000  # tasks take their random numbers as episodes from here on
Initial = Callable[[torch.Generator], Callable[[Tensor], Tensor]]


def member(policies: PolicyClass, about: Tensor) -> Initial:
    """S_0 as a finite class: every episode flies one of its policies, drawn at random.

    Args:
        policies: at least one.
        about: a state (nx,) near which parts of the class are held against the whole (`gpsafe.policies.selected`).
    """
    _require.count("member", "policies.num", _require.kind("member", "policies", policies, PolicyClass).num)

    def draw(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        index = torch.randint(policies.num, (1,), generator=generator)
        return partial(input_at, selected(policies, index, about))

    return draw


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RecedingActSafe(Learner):
    """The algorithm's arguments.

    Args:
        system: the plant: its task, input box, cost and reward are used; `mean` by `learn` alone.
        planner: proposes; its explorer says what is sought, and what is feared.
        model: before any data: `TheoryModel` (frozen, F_n, a judge), `PracticalModel` (refitted), another `LearnedModel`.
        initial: S_0: a policy class, or generator → policy of one episode. None only without a verifier.
        initial_episodes: how many episodes are spent on S_0 before any planning.
        explorer: another one than the planner's, itself or by its name in `EXPLORERS`.
        pessimism: another one than the explorer's: "none", "mean", "sampled" or "sound".
        patience: the log says why, once, when so many episodes had no certified fallback; 0: never.
        delta_noise: probability that the noise leaves the judge's box in any step of any episode or task.
        seed: all random numbers are made of (seed, purpose, episode).
        stream: how they are made.
    """

    system: System
    planner: Planner
    model: LearnedModel
    initial: PolicyClass | Initial | None = None
    initial_episodes: int = 1
    explorer: Explorer | str | None = None
    pessimism: Pessimism | None = None
    delta_noise: float = 0.01
    patience: int = 3
    seed: int = 0
    stream: Stream = stream
    _book: Book = field(init=False, repr=False, default_factory=Book)
    _free: ClassVar[tuple[str, ...]] = ("explorer", "pessimism", "patience")  # the planner has them

    def __post_init__(self) -> None:
        where = "RecedingActSafe"
        _require.index(where, "seed", self.seed)
        _require.count(where, "initial_episodes", self.initial_episodes, minimum=0)
        _require.probability(where, "delta_noise", self.delta_noise)
        _require.count(where, "patience", self.patience, minimum=0)
        explorer = self.planner.explorer if self.explorer is None else self.explorer
        if isinstance(explorer, str):
            explorer = EXPLORERS[_require.one_of(where, "explorer", explorer, EXPLORERS)]
        if self.pessimism is not None and self.pessimism != explorer.pessimism:
            explorer = explorer.with_pessimism(self.pessimism)
        object.__setattr__(self, "planner", replace(self.planner, explorer=explorer))
        if self.verified:
            if not isinstance(self.model, TheoryModel) or self.model.judge is None:
                raise _require.fail(where, 'a TheoryModel with a judge for pessimism "sound"', self.model.heuristic)
            self.model.require_theorem(where, self.system)
            check_inputs(where, self.system, self.initial)
        if self.initial is None and (self.verified or self.initial_episodes):
            raise _require.fail(where, "S_0 as `initial` (or no verifier and initial_episodes=0)", None)

    # ------------------------------------------------------------------ what it is
    @property
    def verified(self) -> bool:
        """Whether a shield stands between plan and plant."""
        return self.planner.explorer.pessimism == "sound"

    @property
    def unsound(self) -> str | None:
        """See `Learner`."""
        free = (
            f'pessimism "{self.planner.explorer.pessimism}" is no bound, and no verifier stands between plan and plant'
        )
        return self.model.heuristic if self.verified else (self.model.heuristic or free)

    @property
    def known(self) -> LearnedModel:
        """The model after everything that was told. Found when it is first needed."""
        cache = self._book.cache
        count, known = cache.get("known", (0, self.model))
        for states, inputs in self._book.history[count:]:
            count, known = count + 1, known.condition(transitions(states, inputs))
            if self.verified and count >= self.initial_episodes:
                known = known.refined()  # type: ignore[union-attr]
            cache["known"] = (count, known)
        return known

    @property
    def noise_spent(self) -> float:
        """δ_w so far: of all steps, flown or not, of the episodes and tasks that were begun under the noise box."""
        return self._risk(self._book.counts.get("boxed", 0))

    def _risk(self, episodes: int) -> float:
        if not (self.verified and isinstance(self.model, TheoryModel) and self.model.judge is not None):
            return 0.0
        steps = self.system.horizon * episodes
        return noise_risk(self.system.noise_std, self.model.judge.noise_radius, steps=steps)

    def _count(self, name: str) -> int:
        counts = self._book.counts
        counts[name] = counts.get(name, 0) + 1
        return counts[name]

    # ------------------------------------------------------------------ episodes
    def _choose(self, number: int, start: Tensor) -> EpisodePolicy:
        generator = self.stream(self.seed, PLANNER, number)
        if number < self.initial_episodes:
            return self._on_initial(number, start, generator, "S_0 is assumed safe")
        if self.verified and self.falsified is not None:
            return self._on_initial(number, start, generator, f"an assumption was refuted ({self.falsified})")
        shield = self._shield(start) if self.verified else None
        if isinstance(shield, NotCertified):
            self._book.refuted = shield.falsified
            self._tell_refusals(number, start)
            told = "no fallback is certified" if shield.falsified is None else shield.falsified
            return self._on_initial(number, start, generator, f"{told}: S_0 is assumed safe")
        return self._piloted(self.planner, shield, number, start, generator)

    def _tell_refusals(self, number: int, start: Tensor) -> None:
        """Once, in the log, when `patience` episodes had no certified fallback."""
        refused: set[int] = self._book.cache.setdefault("refused", set())
        refused.add(number)
        if len(refused) == self.patience and not self._book.cache.get("told_refusals"):
            self._book.cache["told_refusals"] = True
            what = f"no fallback certified in {self.patience} episodes; the best"
            tell("RecedingActSafe", what, lambda: self.explain(start))

    def _shield(self, x: Tensor) -> Shield | NotCertified:
        """A shield for one more episode, if the noise box may be used for another one."""
        known, risk = self.known, self._risk(self._book.counts.get("boxed", 0) + 1)
        if risk > self.delta_noise:
            expected = f"a noise box for one more episode under delta_noise = {self.delta_noise:g}"
            raise _require.fail(
                "RecedingActSafe", expected, f"{risk:.3g} with it (see gpsafe.safety.shield.noise_radius)"
            )
        assert isinstance(known, TheoryModel)
        found = known.shield(x)
        if isinstance(found, Shield):
            self._count("boxed")
        return found

    def _piloted(
        self, planner: Planner, shield: Shield | None, number: int, start: Tensor, generator: torch.Generator
    ) -> PilotedPolicy:
        pilot = Pilot(planner, self.planning_model, self.system.input_box, generator, shield)
        unsound = self.unsound or self._lost
        return PilotedPolicy(pilot, self._note, self.system, number=number, start=start, unsound=unsound)

    def _note(self, refuted: str | None) -> str | None:
        """Takes in what a flight refuted, at once, since not every one is told; what ended every guarantee by now."""
        self._book.refuted = self._book.refuted or refuted
        return self._lost

    @property
    def planning_model(self) -> DynamicsModel:
        """What plans are made with, of the model after everything that was told: made once an episode."""
        cache = self._book.cache
        if cache.get("table", (None, None))[0] != self.told:
            cache["table"] = (self.told, self.known.planning())
        return cache["table"][1]

    def _on_initial(self, number: int, start: Tensor, generator: torch.Generator, reason: str) -> EpisodePolicy:
        assert self.initial is not None
        x0 = self.system.initial_state
        draw = member(self.initial, x0) if isinstance(self.initial, PolicyClass) else self.initial
        return EpisodePolicy(draw(generator), self.system, number=number, start=start, unsound=reason)

    def flown(self, policy: EpisodePolicy, states: Tensor, inputs: Tensor) -> Trajectory:
        """What happened in an episode of a policy of this learner, and who chose its inputs ("initial": S_0)."""
        if isinstance(policy, PilotedPolicy):
            if policy.followed(states, inputs):  # else nobody says that its last step led there
                policy.arrived(states[-1])
            return policy.pilot.flown(states, inputs)
        return Trajectory(states, inputs, ("initial",) * len(inputs), torch.zeros(len(inputs)), 0.0, 0.0)

    def _learn(self, number: int, asked: EpisodePolicy | None, states: Tensor, inputs: Tensor) -> dict[str, Any]:
        if self.verified and asked is None and number >= self.initial_episodes:
            self._count("boxed")  # of another session, perhaps under its shield
        phase = "told" if asked is None else "explore" if isinstance(asked, PilotedPolicy) else "initial"
        row: dict[str, Any] = {"phase": phase}
        if asked is not None and asked.inputs:
            found = self.flown(asked, states, inputs)
            row |= {f"from_{name}": found.sources.count(name) for name in ("plan", "stored", "fallback", "initial")}
            row |= {"planning_s": found.planning_s, "verifying_s": found.verifying_s, "falsified": found.falsified}
        return row

    def explain(self, state: Any = None, fallback: int | None = None) -> Explanation:
        """Why a fallback is not certified by F_n from a state: a diagnosis, not a bound (`gpsafe.algorithms.explain`).

        Args:
            state: (nx,); x_0 if None.
            fallback: of the judge; None: the one of the largest margin.
        """
        where, known = "RecedingActSafe.explain", self.known
        if not isinstance(known, TheoryModel) or known.judge is None:
            raise _require.fail(where, "a TheoryModel with a judge", "a learner that certifies nothing")
        if fallback is not None:
            (fallback,) = _require.indices(where, "fallback", [fallback], known.judge.fallbacks.num)
        members = self.initial if isinstance(self.initial, PolicyClass) else None
        return explain_plan(known.judge, known.confidence, self._start_of(where, state), fallback, members)

    # ------------------------------------------------------------------ tasks
    def task(
        self,
        reward: Reward | None = None,
        *,
        planner: Planner | None = None,
        number: int | None = None,
        start: Any = None,
    ) -> EpisodePolicy | NotCertified:
        """A policy for one episode that seeks a reward with what was learned, under the same pessimism.

        It need not be told, but whether it is may not depend on what was seen in it. Nothing is decided in the state that its
        last step leads to, which can refute the shield's assumptions only if it is shown to the policy's `arrived`.

        Args:
            reward: (x⁺, u) → r; the planner's if None.
            planner: another one than that of exploration; its explorer's pessimism is that of the learner.
            number: of its random numbers; counts up if None.
            start: measured first state; the task's x_0 if None.
        """
        if self.verified and self.falsified is not None:
            return NotCertified(-torch.inf, 0, self.falsified)
        x = self._start_of("RecedingActSafe.task", start)
        shield = self._shield(x) if self.verified else None
        if isinstance(shield, NotCertified):
            return shield
        number = TASK + (self._count("tasks") - 1 if number is None else number)
        planner = planner or self.planner
        explorer = replace(self.planner.explorer, extrinsic=1.0, intrinsic=0.0, uniform=False)
        planner = replace(planner, explorer=explorer, reward=reward or planner.reward, over_particles="mean")
        return self._piloted(planner, shield, number, x, self.stream(self.seed, PLANNER, number))

    def predict(self, observation: Any, *, episode_start: bool = False) -> Tensor:
        """u (nu,) that seeks the task's reward at the measured state (nx,): plan, and shield if there is one.

        Calls in a row are the steps of one episode: its plan and its shield go on. A new episode begins, from the state that is
        measured then, at the first call, after T steps, after `tell`, and on request.

        Raises:
            ValueError: if an episode is to begin where no fallback is certified.
        """
        x = _require.real("predict", "observation", observation)
        running = self._book.cache.get("task")
        if episode_start or running is None or running[0] != self.told or len(running[1].inputs) >= self.system.horizon:
            found = self.task(start=x)
            if isinstance(found, NotCertified):
                expected = "a state from which a fallback is certified"
                raise _require.fail("RecedingActSafe.predict", expected, f"{x.tolist()}: {found}")
            running = self._book.cache["task"] = (self.told, found)
        return running[1](x)


class PilotedPolicy(EpisodePolicy):
    """An episode of planning; what its shield refutes is told to `note`, which answers why no flight is guaranteed by now."""

    def __init__(self, pilot: Pilot, note: Callable[[str | None], str | None], system: System, **about: Any) -> None:
        EpisodePolicy.__init__(self, self._fly, system, **about)
        self.pilot, self._note = pilot, note

    def _fly(self, x: Tensor) -> Tensor:
        u = self.pilot(x)
        self._pass_on()
        return u

    def arrived(self, x: Tensor) -> None:
        """Takes in the last measured state (nx,)."""
        self.pilot.arrived(x)
        self._pass_on()

    def _pass_on(self) -> None:
        lost = self._note(self.pilot.falsified)
        self.unsound = self.unsound or lost
