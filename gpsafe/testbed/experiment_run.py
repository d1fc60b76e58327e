"""Computes a seed of an experiment: piece by piece, each kept as soon as it is finished, one process a folder."""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import shutil
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from gpsafe import _require
from gpsafe.testbed import lock, provenance, store
from gpsafe.testbed.experiment_store import UNFINISHED, Folder, Piece, Stale, as_plain, normal, whose

OnStale = Literal["refuse", "recompute", "keep"]
"""What to do with pieces that other code has made: stop before any work; make their seeds anew; keep them, and say so."""

_log = logging.getLogger(__name__)
_codes: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


class Computes(Protocol):
    """What is needed of an `experiment.Experiment` here."""

    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> type: ...
    @property
    def run(self) -> Callable[[Any, int, Record], None]: ...


class Record:
    """What a run keeps: finished pieces on the disk, each computed once, and a progress bar.

    Args:
        folder: the seed's folder.
        revision: of the code that computes; stored with each piece.
        code: its fingerprint, from `code`; stored too.
        on_progress: called with (done, total, text).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        revision: str | None = None,
        code: str | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._folder = Folder(Path(folder))
        self._revision, self._code = revision, code
        self._on_progress = on_progress
        self.keys: list[str] = []
        """Pieces asked for, in order."""
        self.reused = 0
        """How many of them were there already."""
        self.older: list[Mapping[str, Any]] = []
        """How those were made that other code has made."""
        self.notes: list[str] = []
        """Why files that were there could not be used."""

    def piece(self, key: str, compute: Callable[[], Piece]) -> Piece:
        """The stored piece of this key; if there is none, computes and stores it.

        Returns what reads back from the disk (scalars as Python's own, tensors on the CPU), so that a run that goes
        on after a stop sees the same values as one that was never stopped. Keys are words joined by ``/``; to ask
        twice for one key is an error.
        """
        if key in self.keys:
            raise _require.fail("Record.piece", "a new key", f"{key!r} again")
        found = self._folder.read_piece(key)
        if isinstance(found, tuple):
            self.keys.append(key)
            self.reused += 1
            if self._code is None or found[1].get("code") != self._code:
                self.older.append(found[1])
            return found[0]
        if found is not None:
            self.notes.append(found)
            _log.warning("%s", found)
        (self._folder.path / "done.json").unlink(missing_ok=True)
        begun = time.perf_counter()
        piece = normal(key, compute())
        made = {"revision": self._revision, "code": self._code, "at": _now(), "seconds": time.perf_counter() - begun}
        self._folder.write_piece(key, piece, made)
        self.keys.append(key)
        shutil.rmtree(self.scratch(key), ignore_errors=True)
        return piece

    def scratch(self, key: str) -> Path:
        """Where the computation of a piece may keep what it needs to go on after a stop; gone once the piece is stored.

        Other code, other arguments and another seed have another folder: they do not go on with what these left.
        """
        return self._folder.path / UNFINISHED / f"{self._code or 'unknown'}-{self._folder.digest()}" / key

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Says how far this seed is, for the progress bar."""
        if self._on_progress is not None:
            self._on_progress(done, total, text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def session(command: str = "") -> dict[str, Any]:
    """Where numbers that are computed from now on come from."""
    revision, dirty = provenance.git_state()
    about = {"command": command, "started_at": _now(), "seconds": None, "git_revision": revision, "git_dirty": dirty}
    return {**about, "platform": platform.platform(), "versions": provenance.versions()}


def code(experiment: Computes) -> str | None:
    """Fingerprint of the code that the pieces of an experiment rest on, see `provenance.code`.

    None if its source cannot be found, as that of functions typed in at a prompt: its pieces are then vouched for by nothing,
    and count as those of other code. It is taken once for each loaded `Experiment.run`: what is in the files later is not what
    this process computes with.
    """
    run: Any = experiment.run
    while isinstance(run, functools.partial):
        run = run.func
    with contextlib.suppress(TypeError):  # not all that can be called can be referred to weakly
        if run not in _codes:
            _codes[run] = _code(run, experiment.arguments)
        return _codes[run]
    return _code(run, experiment.arguments)


def _code(run: Any, arguments: type) -> str | None:
    return provenance.code(*{getattr(run, "__module__", None) or "", arguments.__module__})


def run_seed(
    experiment: Computes,
    arguments: Any,
    seed: int,
    *,
    folder: str | Path,
    budget: str = "",
    about: Mapping[str, Any] | None = None,
    fresh: bool = False,
    stale: OnStale = "refuse",
    wait: bool = True,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Record:
    """Computes one seed in this process; finished pieces of the same arguments and the same code are kept.

    The folder is locked meanwhile: two processes never compute the same seed in the same place.

    Args:
        experiment: what to run.
        arguments: instance of `experiment.arguments`.
        seed: passed to the run.
        folder: of this seed; made if missing.
        budget: the budget's name, for the record only.
        about: from `session`; made anew if None.
        fresh: forget what the folder holds.
        stale: what to do if some of its pieces were made by other code. ``recompute`` makes the whole seed anew, since
            later pieces may rest on earlier ones.
        wait: for another process that computes this seed; else `lock.Busy` is raised.
        on_progress: called with (done, total, text).

    Raises:
        Mismatch: if the folder holds results of other arguments and `fresh` is not given.
        Stale: if it holds pieces of other code and `stale` is ``refuse``.
        lock.Busy: see `wait`.
    """
    _require.one_of("run_seed", "stale", stale, ("refuse", "recompute", "keep"))
    home = Folder(Path(folder))
    with lock.held(home.lock, wait=wait):
        if fresh:
            home.clear()
        home.require_same(experiment.name, arguments, seed)
        config = {"experiment": experiment.name, "budget": budget, "seed": seed, "arguments": as_plain(arguments)}
        if home.config() is None:  # whose work the pieces are stands in it
            store.write_json(home.path / "config.json", config)
        mark = code(experiment)
        if older := home.older(mark):
            if stale == "refuse":
                raise Stale(outdated(home.path, older, mark))
            if stale == "recompute":
                home.clear()
        store.write_json(home.path / "config.json", config)
        return _run_seed(experiment, arguments, seed, home, about, mark, on_progress)


def outdated(where: str | Path, made: Sequence[Mapping[str, Any]], mark: str | None) -> str:
    """What is wrong with pieces of other code, and what can be done."""
    pieces = "1 piece" if len(made) == 1 else f"{len(made)} pieces"
    ways = "--stale recompute makes them anew, --stale keep keeps them"
    return f"{where}: expected pieces of today's code ({mark or 'unknown'}), got {pieces} of other code ({whose(made)}); {ways}"


def _run_seed(
    experiment: Computes,
    arguments: Any,
    seed: int,
    home: Folder,
    about: Mapping[str, Any] | None,
    mark: str | None,
    on_progress: Callable[[int, int, str], None] | None,
) -> Record:
    about, begun = dict(session() if about is None else about), time.perf_counter()
    about["code"], earlier = mark, home.sessions()
    store.write_json(home.path / "provenance.json", {"sessions": [*earlier, about]})
    record = Record(home.path, revision=_revision(about), code=mark, on_progress=on_progress)
    experiment.run(arguments, seed, record)
    if record.reused < len(record.keys) or home.done() != record.keys:
        about["seconds"] = time.perf_counter() - begun
        store.write_json(home.path / "provenance.json", {"sessions": [*earlier, about]})
        home.write_done(record.keys, _now())
    elif earlier:  # nothing was computed: this session added nothing
        store.write_json(home.path / "provenance.json", {"sessions": earlier})
    return record


def _revision(about: Mapping[str, Any]) -> str | None:
    revision = about.get("git_revision")
    return None if revision is None else f"{revision[:12]}{'+' if about.get('git_dirty') else ''}"
