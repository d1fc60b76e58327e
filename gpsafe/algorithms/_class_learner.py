"""Learners that certify policies before they fly them: decide, fly, conclude; with the face of every `Learner`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned
from gpsafe.algorithms.learner import BEST, PLANNER, START, EpisodePolicy, Learner
from gpsafe.confidence import Falsification
from gpsafe.policies import PolicyClass, input_at


class Standing(Protocol):
    """What such a learner knows between two episodes."""

    @property
    def falsified(self) -> Falsification | None:
        """Where F_n, or an interval, is empty."""
        ...

    @property
    def pinned(self) -> Pinned:
        """The policies as they were before any episode: what is known of them is known of these."""
        ...


S = TypeVar("S", bound=Standing)
C = TypeVar("C")


class ClassLearner(Learner, Generic[S, C]):
    """S_n grows, one of its members flies, F_n learns. S: what stands between episodes; C: what was decided for one.

    A method supplies `_start`, `_decide`, `_conclude`, `_policy`, `_best` and `_row`: functions of what they are given. Its
    `run` loops over them with one generator; `ask` and `tell` with one a purpose and episode.
    """

    @abstractmethod
    def _start(self, generator: Any) -> S:
        """Before any episode."""

    @abstractmethod
    def _decide(self, at: S, generator: Any) -> tuple[S, C]:
        """S_n, and the member that is to fly."""

    @abstractmethod
    def _conclude(self, at: S, states: Tensor, inputs: Tensor) -> S:
        """F_{n+1}."""

    @abstractmethod
    def _policy(self, choice: C) -> PolicyClass:
        """The policy of a decision, as a class of one."""

    @abstractmethod
    def _best(self, at: S, generator: Any) -> PolicyClass:
        """The member with the largest expected return (an estimate), as a class of one."""

    @abstractmethod
    def _row(self, choice: C) -> dict[str, Any]:
        """Columns of the log."""

    @property
    def standing(self) -> S:
        """S_n and F_n after everything that was told."""
        book = self._book
        if "standing" not in book.state:
            book.state["standing"] = self._start(self.stream(self.seed, START, 0))
        return book.state["standing"]

    def _decided(self) -> tuple[S, C]:
        """The decision for the next episode: made once, since a certifier may spend probability on it."""
        book, at = self._book, self.standing
        self._require_same_class(at)
        self._require_not_falsified(at)
        if book.state.get("decided", (None,))[0] != self.told:
            book.state["decided"] = (self.told, *self._decide(at, self.stream(self.seed, PLANNER, self.told)))
        at, choice = book.state["decided"][1:]
        self._require_not_falsified(at)  # it may have come out empty where only the decision looked
        return at, choice

    def _require_not_falsified(self, at: S) -> None:
        """Refuses to go on from an F_n that is empty somewhere, which is noted."""
        if at.falsified is not None:
            self._book.refuted = self._book.refuted or str(at.falsified)
            expected = "F_n that is not empty (nothing can be certified any more)"
            raise _require.fail(type(self).__name__, expected, str(at.falsified))

    def _require_same_class(self, at: S) -> None:
        """Refuses to go on with policies that moved: members of S_n would be others than those that were certified."""
        at.pinned.require(type(self).__name__, "a policy class")

    def _choose(self, number: int, start: Tensor) -> EpisodePolicy:
        _, choice = self._decided()
        return self._flying(partial(input_at, self._policy(choice)), number, start)

    def _flying(self, act: Callable[[Tensor], Tensor], number: int, start: Tensor) -> EpisodePolicy:
        """An episode from x = start; `ask` adds a refutation to what speaks against a guarantee for it."""
        away = None if torch.equal(start, self.system.initial_state) else "policies are certified from x_0 alone"
        return EpisodePolicy(act, self.system, number=number, start=start, unsound=self.unsound or away)

    def _learn(self, number: int, asked: EpisodePolicy | None, states: Tensor, inputs: Tensor) -> Mapping[str, Any]:
        at, choice = self._decided()
        after = self._book.state["standing"] = self._conclude(at, states, inputs)
        falsified = None if after.falsified is None else str(after.falsified)
        return {**self._row(choice), "falsified": falsified}

    def predict(self, observation: Any, *, episode_start: bool = False) -> Tensor:
        """u (nu,) of the certified policy with the largest expected return (an estimate), at the measured state (nx,).

        Raises:
            ValueError: once an assumption is falsified: then none is certified.
        """
        if self.falsified is not None:
            raise _require.fail("predict", "assumptions that were not refuted", self.falsified)
        at, _ = self._decided()
        found = self._book.cache.get("best", (None,))
        if found[0] != self.told:
            policy = partial(input_at, self._best(at, self.stream(self.seed, BEST, self.told)))
            found = self._book.cache["best"] = (self.told, policy)
        x = _require.real("predict", "observation", observation)
        return found[1](_require.shape("predict", "observation", x, (self.system.nx,)))
