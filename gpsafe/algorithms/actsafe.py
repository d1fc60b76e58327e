"""ActSafe, Algorithm 1, in theory mode on a finite policy class: expand the safe set, then exploit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned, pinned_policies
from gpsafe._show import short, table
from gpsafe.algorithms._class_learner import ClassLearner
from gpsafe.algorithms.explain import Explanation, explain_cost, first_stall, tell
from gpsafe.algorithms.learner import Book, Stream, realised, stream
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Falsification, strayed
from gpsafe.cost._lineage import require_continuation
from gpsafe.cost._task import check_task
from gpsafe.cost.base import CostBound
from gpsafe.cost.enclosure import input_matrix
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.session import DPSession, EvaluationSession, Session
from gpsafe.models import GP
from gpsafe.planning.explore import expected_return
from gpsafe.policies import PolicyClass, inputs_at, selected
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.safe_set import PolicyGap, SafePolicySet, kernels_of
from gpsafe.sets import Box
from gpsafe.systems.base import System, known_with_bound, sample_noise
from gpsafe.systems.task import Task

_STATES = 256  # at which policies that state no limits are asked for their inputs


@short
@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One episode: what was known before it, what was run (nothing yet, between decision and flight)."""

    number: int
    phase: Literal["expand", "exploit"]
    policy: int
    size: int  # |S_n|
    exploration: float  # max over S_n of the optimistic uncertainty value (nan while exploiting)
    beta: tuple[float, ...]
    cost: float = math.nan  # realised Σ c
    reward: float = math.nan
    states: Tensor = field(default_factory=lambda: torch.zeros(0))  # (T + 1, nx)


@short
@dataclass(frozen=True, slots=True, eq=False)
class ActSafeStanding:
    """What stands between two episodes: model, F_n, the session that answers for the class, every S_n, the class as it was."""

    model: GP
    confidence: ConfidenceSet
    session: Session
    safe_sets: tuple[SafePolicySet, ...]
    exploring: bool
    falsified: Falsification | None
    pinned: Pinned

    @property
    def safe_set(self) -> SafePolicySet:
        """The last S_n."""
        return self.safe_sets[-1]


@dataclass(frozen=True, slots=True, eq=False)
class ActSafeRun:
    """The record of a run: episodes, every S_n, the last model and F_n, and whether an assumption was falsified."""

    episodes: tuple[Episode, ...]
    safe_sets: tuple[SafePolicySet, ...]
    confidence: ConfidenceSet
    falsified: Falsification | None = None
    unsound: str | None = None  # why no guarantee stands behind the run; None if one does
    learner: ActSafe | None = field(default=None, repr=False)  # whose run it is

    def __repr__(self) -> str:
        told = "" if self.falsified is None else f", falsified: {self.falsified}"
        told += "" if self.unsound is None else f", no guarantee: {self.unsound}"
        return f"ActSafeRun({len(self.episodes)} episodes, {len(self.safe_set)} of {self.safe_set.num} policies{told[:200]})"

    def _repr_html_(self) -> str:
        shown = self.episodes[-20:]
        rows = [(e.number, e.phase, e.policy, e.size, e.cost, e.reward) for e in shown]
        return table(repr(self), rows, head=("episode", "phase", "policy", "|S_n|", "cost", "reward"))

    @property
    def safe_set(self) -> SafePolicySet:
        """The last S_n."""
        return self.safe_sets[-1]

    def explain(self, index: int) -> Explanation:
        """Why policy `index` is not certified by the last F_n: a diagnosis, not a bound (`gpsafe.algorithms.explain`)."""
        if self.learner is None:
            raise _require.fail("ActSafeRun.explain", "the record of a run of `ActSafe.run`", "one made by hand")
        return self.learner.explained(self.confidence, self.safe_set, index)


def check_parts(
    where: str, system: System, model: GP, bound: ConfidenceBound, cost_bound: CostBound, *, unchecked: bool
) -> str | None:
    """Whether the parts speak of one task, each within its theorem: x_0, T, c, d and σ are those of the plant in the cost
    bound too, and the confidence bound covers σ and the model. If not, S_n is a set of guesses.

    Returns:
        None if they do; what is wrong, if it is and `unchecked` allows it.

    Raises:
        ValueError: if it is wrong and not allowed.
    """
    if not cost_bound.sound:
        raise _require.fail(where, "a sound cost bound", cost_bound.name)
    try:
        check_theorem(where, Task.of(system), model, bound, cost_bound.task)
    except ValueError as error:
        if not unchecked:
            raise _require.fail(where, "parts within one theorem (or unchecked=True)", str(error)) from error
        return str(error)
    return None


def check_theorem(where: str, plant: Task, model: GP, bound: ConfidenceBound, certified: Task) -> None:
    """Raises ValueError unless one theorem covers model and bound, and what is certified is the plant's task."""
    if not bound.sound or bound.unchecked:
        got = f"{bound.name}, unchecked or heuristic"
        raise _require.fail(where, "a sound confidence bound, used within its theorem", got)
    bound.check(model)
    plant.require_same(where, certified)
    if not torch.equal(model.noise_std.cpu(), certified.noise_std.cpu()):
        got = f"{model.noise_std.tolist()} against {certified.noise_std.tolist()}"
        raise _require.fail(where, "a model with the task's noise_std", got)
    check_task(where, certified, ConfidenceSet(bound, (model,)))


def check_inputs(where: str, system: System, policies: object) -> None:
    """Refuses policies that ask for inputs beyond the plant's limits: what it applies then is not what was certified.

    Those that state no box are asked at x_0 and at states drawn from the plant's box; none found beyond is no proof.
    """
    box, limits = getattr(policies, "input_box", None), system.input_box
    if isinstance(box, Box):
        asked = torch.stack([box.lower, box.upper])
    elif isinstance(policies, PolicyClass):
        try:
            drawn = system.state_box.sample(_STATES, torch.Generator().manual_seed(0))
            x = torch.cat([system.initial_state.unsqueeze(0), drawn]).unsqueeze(0)
            asked = inputs_at(policies, x).reshape(-1, system.nu)
        except Exception:  # another domain
            return
    else:
        return
    if bool(((asked < limits.lower) | (asked > limits.upper)).any()):  # what is not a number accuses nobody
        told = f"within the plant's input box {(limits.lower.tolist(), limits.upper.tolist())}"
        raise _require.fail(where, f"policies {told}", (asked.amin(0).tolist(), asked.amax(0).tolist()))


def check_gap(
    where: str, gap: object, task: Task, norms: Tensor, model: GP, policies: PolicyClass | None = None
) -> None:
    """Refuses a gap of fewer steps, of a smaller cost, of a noisier plant or of smaller norms B (p,), of other kernels than the
    model's, of a known part that reacts less to the input, or of other policies: it is no bound for the task's. Of a table D,
    or of a gap that does not say what it is of, this cannot be read."""
    if not isinstance(gap, PolicyGap):
        return
    if gap.horizon < task.horizon or gap.ceiling < task.cost.ceiling:
        expected = f"a PolicyGap of T >= {task.horizon} and C >= {task.cost.ceiling:g}, as the task has"
        raise _require.fail(where, expected, (gap.horizon, gap.ceiling))
    sigma, held = gap.noise_std, gap.rkhs_norm
    if sigma is not None and not (sigma.shape == task.noise_std.shape and bool((sigma <= task.noise_std).all())):
        raise _require.fail(where, f"a PolicyGap of noise_std <= {task.noise_std.tolist()}, the task's", sigma.tolist())
    if held is not None and not (held.shape == norms.shape and bool((held >= norms).all())):
        raise _require.fail(where, f"a PolicyGap of norms >= {norms.tolist()}, those of the bound", held.tolist())
    if gap.kernels is not None and gap.kernels != kernels_of(model.outputs, model.kernels):
        raise _require.fail(where, "a PolicyGap of the model's outputs and kernels", "one of others")
    if gap.reaction is not None:
        own = input_matrix(known_with_bound(where, model.prior), model.nx, model.nu).abs()
        if not (own.shape == gap.reaction.shape and bool((own <= gap.reaction * (1 + 1e-12)).all())):
            raise _require.fail(where, f"a PolicyGap of |dp/du| >= {own.tolist()}, the model's", gap.reaction.tolist())
    if policies is not None and not all(pinned.agrees(policies) for pinned in gap.pinned):
        raise _require.fail(where, "a PolicyGap of the policies that it is to compare", "one of others")


def believed(
    model: GP, bound: ConfidenceBound, cost_bound: CostBound, policy: PolicyClass, distance: object
) -> tuple[Believed, ...]:
    """What membership of S_n rests on: the cost bound's own list, read off its value for one `policy`, S_0, and D."""
    values = cost_bound.evaluate(ConfidenceSet(bound, (model,)), policy)
    table = "distances true: |J(π, f) − J(π′, f)| ≤ D(π, π′) for every f of norm B"
    gap = [Assumption.KNOWN_DERIVATIVES()] if isinstance(distance, PolicyGap) else [table]
    return listed(values.assumptions, [Assumption.INITIAL_SET()], [] if distance is None else gap)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ActSafe(ClassLearner["ActSafeStanding", Episode]):
    """The algorithm's arguments, and a learner of the shape of all (`gpsafe.algorithms.learner`).

    Args:
        system: the true plant (only sampled from; its `mean` is never shown to the learner).
        policies: finite policy class.
        initial_safe: S_0, assumed safe: indices, a Boolean mask over the class, or a slice.
        model: GP before data, in theory mode.
        bound: confidence bound.
        cost_bound: sound bound of the worst-case cost (RobustDP is updated incrementally; any other `CostBound` works).
        distance: D(π, π′) or the class's `PolicyGap`, or None to leave the Lipschitz rule out.
        episodes: number of episodes of `run`; `learn` is told its own.
        threshold: expansion ends for good the first time that max_{S_n} of the exploration value falls below it: enough
            for one round of expansion of R_ε; rounds beyond need as many such episodes (theory §4 (vi)).
        start: makes the session that answers for the class (e.g. a `PrunedSession` for thousands of policies); by default
            one that evaluates every policy asked for with `cost_bound`.
        unchecked: also take parts that no theorem covers together (a constant β, another task than the plant's), as controls
            and comparisons do. The run then says why it is not sound.
        view: what F_n is evaluated with, e.g. a low-rank posterior with a rigorous error term; identity by default.
        patience: the log says why, once, when S_n has not grown for so many exploring episodes; 0: never.
        seed, stream: random numbers of `learn`, `ask` and `predict`; `run` takes its generator instead.
    """

    system: System
    policies: PolicyClass
    initial_safe: Sequence[int] | Tensor | slice
    model: GP
    bound: ConfidenceBound
    cost_bound: CostBound
    distance: Tensor | PolicyGap | None = None
    episodes: int = 30
    threshold: float = 0.0
    view: Callable[[GP], GP] = field(default=lambda model: model)
    start: Callable[[ConfidenceSet], Session] | None = None
    unchecked: bool = False
    patience: int = 3
    seed: int = 0
    stream: Stream = stream
    _book: Book = field(init=False, repr=False, default_factory=Book)
    _free: ClassVar[tuple[str, ...]] = ("episodes", "patience")

    def __post_init__(self) -> None:
        _require.count("ActSafe", "episodes", self.episodes)
        _require.count("ActSafe", "patience", self.patience, minimum=0)
        _require.index("ActSafe", "seed", self.seed)
        _require.nonnegative("ActSafe", "threshold", self.threshold)
        self.unsound_because()
        check_inputs("ActSafe", self.system, self.policies)
        norms = self.bound.norms(self.model.num_outputs)
        check_gap("ActSafe", self.distance, self.cost_bound.task, norms, self.model, self.policies)
        SafePolicySet.initial(self.policies.num, self.initial_safe, budget=self.cost_bound.task.budget)

    def unsound_because(self) -> str | None:
        """Why no guarantee stands behind a run (only with `unchecked`); None if one does."""
        parts = (self.system, self.model, self.bound, self.cost_bound)
        return check_parts("ActSafe", *parts, unchecked=self.unchecked)

    @property
    def unsound(self) -> str | None:
        """See `Learner`."""
        return self.unsound_because()

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What membership of S_n rests on (one evaluation of the cost bound); a table D is believed as it is given."""
        first = int(SafePolicySet.initial(self.policies.num, self.initial_safe, budget=0.0).members[0])
        policy = selected(self.policies, torch.tensor([first]), self.system.initial_state)
        return believed(self.model, self.bound, self.cost_bound, policy, self.distance)

    def run(
        self, generator: torch.Generator | int, *, until: Callable[[SafePolicySet], bool] | None = None
    ) -> ActSafeRun:
        """All episodes, from a generator or an integer seed; stops early if F_n comes out empty (an assumption is false).

        Args:
            generator: see above.
            until: of S_n; once true, the episode that would come next is left out and the run ends. S_n never shrinks, so that
                what is asked of it only from below is decided then.
        """
        generator = _require.generator("ActSafe.run", generator)
        at, episodes = self._start(generator), []
        while at.falsified is None and len(episodes) < self.episodes:
            self._require_same_class(at)
            at, choice = self._decide(at, generator)
            if at.falsified is not None or (until is not None and until(at.safe_set)):
                break
            states, inputs = self._execute(choice.policy, generator)
            cost, reward = realised(self.system, states, inputs)
            episodes.append(replace(choice, cost=float(cost), reward=float(reward), states=states))
            at = self._conclude(at, states, inputs)
        return ActSafeRun(tuple(episodes), at.safe_sets, at.confidence, at.falsified, self.unsound_because(), self)

    def explain(self, index: int) -> Explanation:
        """Why policy `index` is not certified by F_n: a diagnosis, not a bound (`gpsafe.algorithms.explain`)."""
        return self.explained(self.standing.confidence, self.standing.safe_set, index)

    def explained(self, confidence: ConfidenceSet, safe: SafePolicySet, index: int) -> Explanation:
        """The same for given F_n and S_n."""
        chosen = torch.tensor(_require.indices("ActSafe.explain", "index", [index], self.policies.num))
        policy, members = (selected(self.policies, at, self.system.initial_state) for at in (chosen, safe.members))
        crowd = safe.num if self.distance is not None else len(safe.outsiders)
        return explain_cost(self.cost_bound, confidence, policy, members, crowd=max(1, crowd))

    def _start(self, generator: torch.Generator) -> ActSafeStanding:
        confidence = ConfidenceSet(self.bound).update(self.view(self.model))
        pinned = pinned_policies(self.policies, self.system.initial_state)
        session = self._session(confidence, generator, pinned)
        safe = SafePolicySet.initial(self.policies.num, self.initial_safe, budget=self.cost_bound.task.budget)
        # data that came with the model may falsify an assumption
        return ActSafeStanding(self.model, confidence, session, (safe,), True, session.falsified(), pinned)

    def _decide(self, at: ActSafeStanding, generator: torch.Generator) -> tuple[ActSafeStanding, Episode]:
        number, safe, session = len(at.safe_sets), at.safe_set, at.session
        candidates = torch.arange(safe.num) if self.distance is not None else safe.outsiders
        upper = torch.full((safe.num,), torch.inf, dtype=torch.float64)
        upper[candidates] = session.upper(candidates)
        safe = safe.expand(upper, episode=number, bound=self.cost_bound.name, distance=self.distance)
        value, exploring, scores = math.nan, at.exploring, torch.zeros(0)
        if exploring:
            scores = session.exploration(safe.members)
            value = float(scores.max())
            exploring = value >= self.threshold
        if not exploring:
            scores = self._returns(at, safe, generator)
        chosen = int(safe.members[scores.argmax()])
        phase = "expand" if exploring else "exploit"
        beta = tuple(self.bound.beta(at.confidence.model).tolist())
        falsified = session.falsified()
        if falsified is not None:  # where only these bounds looked: S_n has not grown, and nothing is to be flown
            return replace(at, falsified=falsified), Episode(number, phase, chosen, len(at.safe_set), value, beta)
        at = replace(at, safe_sets=(*at.safe_sets, safe), exploring=exploring)
        if exploring and len(safe) < safe.num and first_stall([len(s) for s in at.safe_sets], self.patience):
            near = int(safe.outsiders[upper[safe.outsiders].argmin()])
            what = f"S_n stands at {len(safe)} for {self.patience} episodes; the nearest, policy {near}"
            tell("ActSafe", what, lambda: self.explained(at.confidence, safe, near))
        return at, Episode(number, phase, chosen, len(safe), value, beta)

    def _conclude(self, at: ActSafeStanding, states: Tensor, inputs: Tensor) -> ActSafeStanding:
        rows = transitions(states, inputs)
        model = at.model.condition(rows)
        confidence = at.confidence.update(self.view(model))
        session = at.session.update(confidence)
        falsified = at.falsified or session.falsified() or strayed(model, rows, self.cost_bound.task.noise_std)
        return replace(at, model=model, confidence=confidence, session=session, falsified=falsified)

    def _returns(self, at: ActSafeStanding, safe: SafePolicySet, generator: torch.Generator) -> Tensor:
        members = selected(self.policies, safe.members, self.system.initial_state)
        return expected_return(self.system, at.model, members, generator=generator)

    def _policy(self, choice: Episode) -> PolicyClass:
        return selected(self.policies, torch.tensor([choice.policy]), self.system.initial_state)

    def _best(self, at: ActSafeStanding, generator: torch.Generator) -> PolicyClass:
        best = self._returns(at, at.safe_set, generator).argmax()
        return selected(self.policies, at.safe_set.members[best].reshape(1), self.system.initial_state)

    def _row(self, choice: Episode) -> dict[str, Any]:
        kept = ("phase", "policy", "size", "exploration")
        return {name: getattr(choice, name) for name in kept} | {"beta": max(choice.beta)}

    def _session(self, confidence: ConfidenceSet, generator: torch.Generator, pinned: Pinned) -> Session:
        if self.start is not None:
            session = self.start(confidence)
            self.cost_bound.task.require_same("ActSafe: session", session.task)
            if not getattr(session, "bound", self.cost_bound).sound:
                raise _require.fail("ActSafe: session", "a sound cost bound", session.bound.name)  # type: ignore[attr-defined]
            require_continuation("ActSafe: session", getattr(session, "confidence", confidence), confidence)
            own = getattr(session, "policies", None)
            if own is not None and own is not self.policies and not pinned.agrees(own):
                raise _require.fail("ActSafe: session", "the policies of the run", f"{own.num} others")
            return session
        if isinstance(self.cost_bound, RobustDP):
            return DPSession.start(self.cost_bound, confidence, self.policies)
        return EvaluationSession(self.cost_bound, confidence, self.policies, generator)

    def _execute(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        system = self.system
        noise = sample_noise(system.noise_std, (system.horizon, 1, 1), generator)
        policy = selected(self.policies, torch.tensor([index]), self.system.initial_state)
        states, inputs = closed_loop(system.mean, policy, system.initial_state, noise)
        return states[0, 0], inputs[0, 0]
