"""The shape of every learner: `learn`, `predict`, `ask` and `tell`, `save` and `load`; a log that pandas reads.

    learner = RecedingActSafe(system, …)          # a System and the parts of the method
    learner.learn(10)                             # ten episodes on `system`
    u = learner.predict(x)                        # the input that it would apply

On a robot there is no `System.mean` to call, and none is needed:

    policy = learner.ask()                        # x ↦ u, for one episode
    states, inputs = …                            # run it, write down what was measured
    learner.tell(states, inputs)

`learn` is that loop and nothing else. What a learner has become is a function of its parts, its seed and the trajectories
that it was told: every generator is made of (seed, purpose, episode). So a run that was interrupted, and goes on from the
same trajectories, gives the same numbers as one that was not, and a file needs to hold nothing but them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from gpsafe import _require
from gpsafe._show import table
from gpsafe.policies.rollout import one_episode
from gpsafe.saved import _learner as _saved
from gpsafe.systems.base import System, sample_noise

if TYPE_CHECKING:
    from pandas import DataFrame

# Purposes of random numbers. Monte-Carlo bounds draw from (seed, stage, …) with stages from 1 on: 0 is the plant's alone.
PLANT, PLANNER, MODEL, START, BEST = 0, 1, 2, 3, 4
Stream = Callable[[int, int, int], torch.Generator]
_ROOM = 1e-6  # of C by which rounding, or a recording in float32, may take a cost out of [0, C]
UNTOLD = "a flight was begun and not told: what is missing may have been left out because of its outcome"


def stream(*numbers: int) -> torch.Generator:
    """A generator of its own for a tuple of small numbers: (seed, purpose, episode)."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def realised(system: System, states: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Σ c(x_t) and Σ r(x_t, u_t) of an episode (T + 1, nx), (T, nu); asked of copies, since the episode is data afterwards.

    Raises:
        ValueError: for a cost outside [0, C], which every certificate rests on.
    """
    past, ceiling = states[:-1], system.cost.ceiling
    cost, room = system.cost(past.clone()), _ROOM * ceiling
    wrong = ~((cost >= -room) & (cost <= ceiling + room))
    if bool(wrong.any()):
        step = int(wrong.nonzero()[0, 0])
        got = f"{float(cost[step]):.4g} in an episode, at {past[step].tolist()}"
        raise _require.fail(type(system.cost).__name__, f"a cost in [0, {ceiling:g}]", got)
    return cost.sum(), system.reward(past.clone(), inputs.clone()).sum()


class EpisodePolicy:
    """x ↦ u for one episode: what `ask` gives. It remembers, so ask it once a step, in order, from the first state on.

    Attributes:
        number: of the episode.
        start: the state that it begins in, (nx,).
        unsound: why no guarantee stands behind it; None if one does.
        states, inputs: what it was asked and answered so far.
    """

    def __init__(
        self, act: Callable[[Tensor], Tensor], system: System, *, number: int, start: Tensor, unsound: str | None
    ) -> None:
        self._act, self._nx, self.horizon = act, system.nx, system.horizon
        self.number, self.start, self.unsound = number, start, unsound
        self.states: list[Tensor] = []
        self.inputs: list[Tensor] = []

    def __call__(self, x: Any) -> Tensor:
        """u (nu,) for the measured state x (nx,), a tensor, an array or a list."""
        if len(self.inputs) >= self.horizon:
            expected = f"{self.horizon} steps an episode (a new one begins with ask())"
            raise _require.fail("policy", expected, "one more")
        x = _require.shape("policy", "x", _require.real("policy", "x", x), (self._nx,))
        u = self._act(x.clone()).detach()
        self.states.append(x)
        self.inputs.append(u.clone())
        return u

    def followed(self, states: Tensor, inputs: Tensor) -> bool:
        """Whether an episode is the one that was flown with this policy: its states were asked, its inputs answered."""
        if len(self.inputs) != len(inputs) or not self.inputs:
            return False
        pairs = ((torch.stack(self.states), states[:-1]), (torch.stack(self.inputs), inputs))
        return all(torch.equal(mine, told.to(mine.device)) for mine, told in pairs)

    def seen(self) -> list[Tensor]:
        """The states (k, nx) that it was asked in, if an outcome is among them or may be known: of an input at the first state
        alone, of several steps, nothing was seen.
        """
        return [torch.stack(self.states)] if len(self.states) >= min(2, self.horizon) else []

    def __repr__(self) -> str:
        told = "guaranteed" if self.unsound is None else f"heuristic: {self.unsound}"
        return f"EpisodePolicy(episode {self.number}, step {len(self.inputs)} of {self.horizon}, {told})"


@dataclass(slots=True, eq=False)
class Logger:
    """One row a told episode: numbers, words, truth values."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def frame(self) -> DataFrame:
        """The rows as a pandas table."""
        import pandas  # half a second that a learner without tables does not pay

        return pandas.DataFrame(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Logger({len(self.rows)} episodes)"


@dataclass(slots=True, eq=False)
class Book:
    """What happened to a learner: all that changes in it.

    Attributes:
        history: states (T + 1, nx) and inputs (T, nu) of each episode.
        logger: a row each.
        refuted: what spoke against its assumptions first, in words.
        asked: the policy of the episode that is being flown.
        untold: states of flights that were begun and not told.
        counts: what else a method counts over its life; saved.
        state: what a method keeps between episodes: derived from the history, in its order.
        cache: derived from the rest: may be forgotten at any time.
    """

    history: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    logger: Logger = field(default_factory=Logger)
    refuted: str | None = None
    asked: EpisodePolicy | None = None
    untold: list[Tensor] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)


class Learner(ABC):
    """What all learners share. A learner is a frozen dataclass of its arguments with a `Book` of what happened.

    A method supplies `_choose`, `_learn`, `predict` and `unsound`; nothing here knows which model or set it uses.
    """

    system: System
    seed: int
    stream: Stream
    _book: Book
    _free: ClassVar[tuple[str, ...]] = ()  # arguments that may differ from those of a saved learner

    # ------------------------------------------------------------------ of the method
    @property
    @abstractmethod
    def unsound(self) -> str | None:
        """Why no guarantee stands behind the learner's episodes; None if one does."""

    @abstractmethod
    def _choose(self, number: int, start: Tensor) -> EpisodePolicy:
        """The policy of episode `number` from x = start: of what was told, and of generators of this seed and episode."""

    @abstractmethod
    def _learn(self, number: int, asked: EpisodePolicy | None, states: Tensor, inputs: Tensor) -> Mapping[str, Any]:
        """Takes in an episode; further columns of its row ("falsified": an assumption refuted, in words)."""

    @abstractmethod
    def predict(self, observation: Any, *, episode_start: bool = False) -> Tensor:
        """The input u (nu,) for the measured state (nx,), after what was learned; nothing is learned from it.

        Args:
            observation: a tensor, an array or a list.
            episode_start: this state is the first of an episode (for methods that remember within one).
        """

    # ------------------------------------------------------------------ of all
    @property
    def told(self) -> int:
        """Episodes so far."""
        return len(self._book.history)

    @property
    def logger(self) -> Logger:
        """One row a told episode."""
        return self._book.logger

    @property
    def history(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Copies of the states and inputs of the told episodes."""
        return tuple((states.clone(), inputs.clone()) for states, inputs in self._book.history)

    @property
    def falsified(self) -> str | None:
        """What refuted an assumption, in words; None while nothing did. It stays: no later episode is guaranteed."""
        return self._book.refuted

    @property
    def _lost(self) -> str | None:
        """What ended every guarantee, in words: a refutation, or a flight of which nobody told the outcome.

        The bounds speak of every observation that was made. Flights that are left out because of what was seen in them leave
        noise with another mean in those that are told.
        """
        if self.falsified is not None:
            return f"an assumption was refuted ({self.falsified})"
        return UNTOLD if self._book.untold else None

    def ask(self, start: Any = None) -> EpisodePolicy:
        """A policy for the next episode. Asked again before it was told, the same one; from its start if it was used.

        While a flight was begun and not told, no other is guaranteed: tell what was measured, however little it is, or tell it
        later.

        Args:
            start: the measured state that the episode begins in, if it is not exactly x_0.
        """
        x, asked = self._start_of(type(self).__name__ + ".ask", start), self._book.asked
        refuted = asked is not None and asked.unsound is None and self._lost is not None
        if asked is None or asked.inputs or refuted or not torch.equal(asked.start, x):
            self._book.untold += [] if asked is None else asked.seen()
            asked = self._book.asked = self._choose(self.told, x)
            asked.unsound = asked.unsound or self._lost
        return asked

    def _start_of(self, where: str, start: Any) -> Tensor:
        """x_0, or the measured state that is given instead."""
        if start is None:
            return self.system.initial_state
        return _require.shape(where, "start", _require.real(where, "start", start), (self.system.nx,))

    def tell(self, states: Any, inputs: Any, *, falsified: str | None = None) -> None:
        """What was measured in an episode, whoever chose the inputs: states (t + 1, nx), inputs (t, nu), t ≥ 1. Once: a copy of
        an episode, bit by bit, that the asked policy did not fly is no further evidence, and is refused.

        Args:
            states, inputs: as measured and applied.
            falsified: what else is known to speak against the assumptions, in words (of an earlier session, say).
        """
        where, nx, nu = type(self).__name__ + ".tell", self.system.nx, self.system.nu
        x, u = _require.real(where, "states", states), _require.real(where, "inputs", inputs)
        if u.ndim != 2 or u.shape[1] != nu or tuple(x.shape) != (len(u) + 1, nx):
            expected = f"states (t + 1, {nx}) and inputs (t, {nu})"
            raise _require.fail(where, expected, f"{tuple(x.shape)} and {tuple(u.shape)}")
        asked, number = self._book.asked, self.told
        followed = asked is not None and asked.followed(x, u)
        again = [i for i, told in enumerate(self._book.history) if not followed and _same_flight(*told, x, u)]
        if again and bool((self.system.noise_std > 0).any()):
            raise _require.fail(where, "an episode that was not told before", f"episode {again[0]} again, bit by bit")
        cost, reward = realised(self.system, x, u)
        row = {
            "episode": number,
            "steps": len(u),
            "cost": float(cost),
            "reward": float(reward),
            "followed": followed,
            "unsound": asked.unsound if asked is not None else "not flown by this learner",
        }
        row |= self._learn(number, asked, x, u)
        row["falsified"] = row.get("falsified") or falsified or ""
        before, self._book.refuted = self._book.refuted, self._book.refuted or row["falsified"] or None
        reason = row["unsound"] or before or row["falsified"]
        if not reason and not row["followed"]:
            reason = "other inputs were applied, or other states measured, than those that the policy saw"
        if not reason and asked is not None and not torch.equal(x[0], asked.start.to(x.device)):
            reason = "it began in another state than it was asked for"
        row["unsound"], row["guaranteed"] = reason or "", not reason
        self._book.history.append((x, u))
        self._book.logger.rows.append(row)
        self._book.untold = [seen for seen in self._untold() if not _same_start(seen, x)]
        self._book.asked = None

    def _untold(self) -> list[Tensor]:
        """States of the flights that were not told, and of the one that is under way."""
        asked = self._book.asked
        return [*self._book.untold, *([] if asked is None else asked.seen())]

    def rollout(self, policy: EpisodePolicy) -> tuple[Tensor, Tensor]:
        """One episode of a policy on the plant with the noise of its number: states (T + 1, nx), inputs (T, nu)."""
        system = self.system
        noise = sample_noise(system.noise_std, (system.horizon,), self.stream(self.seed, PLANT, policy.number))
        return one_episode(system.mean, policy, policy.start, noise)

    def learn(
        self, episodes: int, callback: Callable[[Self], object] | None = None, *, progress_bar: bool = False
    ) -> Self:
        """`episodes` more episodes on the plant: ask, roll out, tell. Ends early once an assumption is falsified.

        Args:
            episodes: how many.
            callback: called with the learner after each; False ends the loop.
            progress_bar: draws one on the terminal.
        """
        steps = range(_require.count(f"{type(self).__name__}.learn", "episodes", episodes, minimum=0))
        for _ in track(steps, type(self).__name__) if progress_bar else steps:
            if self.falsified is not None:
                break
            try:
                policy = self.ask()
            except ValueError:
                if self.falsified is None:
                    raise
                break  # the decision for this episode refuted it
            self.tell(*self.rollout(policy))
            if callback is not None and callback(self) is False:
                break
        return self

    # ------------------------------------------------------------------ files
    def save(self, folder: str | Path) -> Path:
        """Writes trajectories, log and fingerprints of the parts: ``learner.json`` and arrays beside it.

        No code and no object is written: the parts are the constructor's, and `load` compares their fingerprints.
        """
        return _saved.write(folder, self._header(), self._book.history, self._kept())

    def load(self, folder: str | Path) -> Self:
        """Goes on where a saved learner of the same parts and seed stood. This one must be new.

        What the method knows is derived anew from the trajectories, in the time that this took: a file cannot certify. A method
        that certifies nothing by what it keeps may write it down instead (`XMPSC`: networks and buffers).

        Raises:
            ValueError: naming what is torn, foreign or different.
        """
        where = f"{type(self).__name__}.load"
        if self.told or self._book.asked is not None or self._book.counts:
            raise _require.fail(where, "a new learner", f"one in use, told {self.told} episodes")
        header, history, kept = _saved.read(where, folder, self._header(), free=self._free)
        self._book.counts = header["counts"] if kept else {}
        if kept:
            self._book.history[:] = history
            self._revive(kept)
        else:
            for states, inputs in history:
                self.tell(states, inputs)
        self._book.logger.rows[:] = header["rows"]
        self._book.refuted = self._book.refuted or header["falsified"]
        self._book.counts = header["counts"]
        self._book.untold += [_require.points(where, "untold", states, self.system.nx) for states in header["untold"]]
        return self

    def _kept(self) -> dict[str, np.ndarray]:
        """What is written down beside the trajectories, by name; nothing if all is derived from them."""
        return {}

    def _revive(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The state that `_kept` wrote down; the history is in place."""
        raise NotImplementedError  # by methods that keep something

    def _header(self) -> dict[str, Any]:
        book = self._book
        about = {"learner": type(self).__name__, "seed": self.seed, "parts": _saved.fingerprints(self)}
        about |= {"rows": book.logger.rows, "falsified": book.refuted, "counts": book.counts}
        return about | {"untold": [states.tolist() for states in self._untold()]}

    def with_(self, **changes: Any) -> Self:
        """A new learner with some arguments replaced. It was told nothing."""
        return replace(self, **changes)  # type: ignore[type-var]

    def __repr__(self) -> str:
        told = "guaranteed under its assumptions" if self.unsound is None else f"heuristic: {self.unsound}"
        if self.falsified is not None or self._book.untold:
            told = f"falsified: {self.falsified}" if self.falsified is not None else f"heuristic: {UNTOLD}"
        return f"{type(self).__name__}({self.system.name}, seed {self.seed}, {self.told} episodes, {told})"

    def _repr_html_(self) -> str:
        names = ("episode", "phase", "steps", "cost", "reward", "guaranteed")
        rows = [tuple(row.get(name, "") for name in names) for row in self.logger.rows[-20:]]
        return table(repr(self), rows, head=names)


def _same_start(seen: Tensor, states: Tensor) -> bool:
    """Whether a told episode holds the states of a flight."""
    return len(states) >= len(seen) and torch.equal(states[: len(seen)], seen.to(states.device))


def _same_flight(states: Tensor, inputs: Tensor, x: Tensor, u: Tensor) -> bool:
    """Whether two episodes of several steps are one, bit by bit."""
    return len(u) > 1 and torch.equal(states, x.to(states.device)) and torch.equal(inputs, u.to(inputs.device))
