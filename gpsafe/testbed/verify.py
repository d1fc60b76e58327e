"""Runs checks and their controls in parallel, piece by piece, and says which claims stand.

A *piece* is one shard of a claim or of its control, or one graded control. Each finished piece is a file under
``<cache>/<fingerprint>/<budget>/<check>/``, so a run that was stopped goes on where it was, and a run after a
change of the sources starts anew. Samples always pass through JSON before they are judged: a judgement is the
same whether its pieces are fresh or kept, and whatever the number of workers. Of two runs that want one check at the same time
the second waits for the first: pieces that move under a judgement would be taken for damaged ones.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpsafe import _require
from gpsafe.testbed import lock, store
from gpsafe.testbed import workers as pool
from gpsafe.testbed.check import BUDGETS, OURS, Budget, Check, Evidence, Graded, select, survey
from gpsafe.testbed.check_result import CheckResult, Result, Status
from gpsafe.testbed.check_store import Pieces, Task
from gpsafe.testbed.provenance import fingerprint
from gpsafe.verdict import Outcome, Verdict

CACHE = Path("results/verify")
GO_ON = 2  # pieces by which a sequential test goes on
__all__ = ["CACHE", "CheckResult", "Progress", "Result", "Status", "Task", "execute", "select", "verify"]


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a run: pieces done of all, those kept from earlier runs, the check that is just finished."""

    done: int
    total: int
    reused: int
    finished: CheckResult | None = None
    notes: tuple[str, ...] = ()
    """Kept files that could not be used; told at the start."""
    left: float | None = None
    """Seconds that the rest will take, about: measured times of such pieces, scaled by how fast this machine has been so far.
    None where no such piece was ever timed."""


@dataclass(slots=True)
class _Job:
    """What is known so far of a claim or of a control."""

    shards: int
    waiting: int = 0
    reused: int = 0
    seconds: float = 0.0
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    evidence: Evidence | None = None

    def result(self) -> Result:
        error, details = None, ""
        if self.errors:
            error, details = self.errors[min(self.errors)]
            if len(self.errors) > 1:
                error += f" (and {len(self.errors) - 1} more of {self.shards} pieces failed)"
        return Result(self.evidence, self.shards, self.reused, self.seconds, error, details)


def execute(task: Task, checks: Mapping[str, Check], budget: Budget, folder: Path) -> tuple[str, str] | None:
    """Does one piece here and keeps it. Returns None, or the error in one line and its traceback."""
    check, pieces, begun = checks[task.name], Pieces(folder), time.perf_counter()
    try:
        judged = None
        if task.grade is not None:
            found = check.measure(check.grades[task.grade], budget)
        elif task.shard is not None:
            found = check.sample(task.shard, budget, task.broken)
        else:
            judged = pieces.kept(task.name, task.broken, check.limit(budget, task.broken))
            found = check.judge([piece["sample"] for piece in judged], task.broken)
            if not isinstance(found, Evidence):
                raise _require.fail(f"{task.name}: judge", "Evidence", type(found).__name__)
        pieces.write(task, found, time.perf_counter() - begun, judged)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a check may raise anything, SystemExit too: it is the check's result
        line = " ".join(f"{task.where}: {type(error).__name__}: {error}".split())
        return line, traceback.format_exc()
    return None


def _start(package: str, expected: str, budget: Budget, folder: Path) -> Callable[[Task], Any]:
    """Called in each worker: loads the checks and returns what does one task."""
    checks, _ = survey(package)
    if fingerprint(package) != expected:  # pieces of other sources must not be kept under this name
        raise RuntimeError("the sources changed while the checks were starting: run them again")
    return lambda task: execute(task, checks, budget, folder)


def _evidence(piece: Mapping[str, Any]) -> Evidence:
    found = piece["evidence"]
    return Evidence(found["n"], found["estimate"], Verdict(**found["verdict"]), found["data"])


def _graded(piece: Mapping[str, Any]) -> Graded:
    found = piece["graded"]
    tried = tuple((factor, outcome) for factor, outcome in found["tried"])
    return Graded(**(found | {"tried": tried, "seconds": piece["seconds"]}))


def verify(
    checks: Mapping[str, Check],
    *,
    package: str = OURS,
    budget: Budget = "quick",
    workers: int | None = None,
    cache: Path = CACHE,
    fresh: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[CheckResult, ...]:
    """Runs all pieces of all checks and of their controls.

    Args:
        checks: some or all of ``survey(package)[0]``.
        package: where the worker processes find the checks.
        budget: ``quick`` or ``full``.
        workers: number of processes (default: the available cores); 0 runs everything here.
        cache: folder of the finished pieces.
        fresh: make all pieces again.
        on_progress: called at the start and after each piece.

    Returns:
        One result per check, in the order of `checks`. A piece that raises, or whose worker dies twice,
        makes its check an ERROR and nothing else.
    """
    _require.one_of("verify", "budget", budget, BUDGETS)
    workers = pool.available_cores() if workers is None else workers
    _require.count("verify", "workers", workers, minimum=0)
    mark = fingerprint(package)
    folder = Path(cache) / mark / budget
    timings_path = Path(cache) / "timings.json"
    timings = expected(package) | _read_timings(timings_path)
    run = _Run(checks, budget, folder, on_progress)
    with contextlib.ExitStack() as stack:
        for name in sorted(checks):  # in one order: no two runs wait for each other
            stack.enter_context(lock.held(run.pieces.home(name) / ".lock"))
        tasks = run.plan(fresh)
        key = {task: timings.get(_timed(budget, task), math.inf) for task in tasks}
        run.clock = _Clock(dict(key), max(workers, 1))
        tasks.sort(key=lambda task: -key[task])  # longest first, unknown before known; stable otherwise
        run.announce()
        stack.callback(_keep, timings_path, timings, run.timings)  # of what was done, if it is stopped, too
        if workers == 0:
            _here(run, tasks, folder)
        elif tasks:
            log = Path(cache) / "worker.log"
            log.write_bytes(b"")
            args = (package, mark, budget, folder.absolute())
            pool.run(tasks, start=_start, args=args, workers=workers, log=log, on_done=run.on_done)
    return tuple(run.finished[name] for name in checks)


def _here(run: _Run, tasks: list[Task], folder: Path) -> None:
    """All tasks, and what follows from them at once, without workers."""
    while tasks:
        task, *rest = tasks
        tasks = run.on_done(pool.Done(task, execute(task, run.checks, run.budget, folder))) + rest


def _keep(path: Path, before: Mapping[str, float], new: Mapping[str, float]) -> None:
    """Writes the timings; a disk that is full must not take the verdicts with it."""
    with contextlib.suppress(OSError):
        if new:
            store.write_piece(path, {**before, **new})


def expected(package: str) -> dict[str, float]:
    """Seconds a piece as measured once (``timings.json`` beside the checks): a first run starts with the slowest, too."""
    root = Path(next(iter(importlib.import_module(package).__path__)))
    return _read_timings(root / "timings.json")


def _read_timings(path: Path) -> dict[str, float]:
    found = store.read_piece(path)
    items = found.items() if isinstance(found, dict) else ()
    return {name: float(seconds) for name, seconds in items if type(seconds) in (int, float)}


def _timed(budget: Budget, task: Task) -> str:
    """The name under which the time of one such task is kept."""
    return f"{budget}/{task.name}/{task.broken if task.grade is None else f'grade {task.grade}'}"


@dataclass(slots=True)
class _Clock:
    """How long the pieces that are waiting will take: expected seconds of each, infinite if no such piece was ever timed."""

    waiting: dict[Task, float] = field(default_factory=dict)
    workers: int = 1
    expected: float = 0.0
    taken: float = 0.0

    def done(self, task: Task, seconds: float | None) -> None:
        """Books a piece; seconds None if it failed."""
        before = self.waiting.pop(task, math.inf)
        if seconds is not None and math.isfinite(before):
            self.expected, self.taken = self.expected + before, self.taken + seconds

    def left(self) -> float | None:
        """Seconds: the work that is left over the workers, but no less than the longest piece."""
        known = [seconds for seconds in self.waiting.values() if math.isfinite(seconds)]
        if not known:
            return 0.0 if not self.waiting else None
        speed = self.taken / self.expected if self.expected > 0 else 1.0
        mean = sum(known) / len(known)  # of a piece that was never timed
        return speed * max((sum(known) + mean * (len(self.waiting) - len(known))) / self.workers, max(known))


class _Run:
    """Book-keeping of one call of `verify`."""

    def __init__(
        self, checks: Mapping[str, Check], budget: Budget, folder: Path, report: Callable[[Progress], None]
    ) -> None:
        self.checks, self.pieces, self.report = checks, Pieces(folder), report
        self.budget: Budget = budget
        self.jobs: dict[tuple[str, bool], _Job] = {}
        self.grades: dict[str, dict[int, Graded | None]] = {}  # None: not measured yet
        self.finished: dict[str, CheckResult] = {}
        self.timings: dict[str, float] = {}
        self.clock = _Clock()
        self.done = self.total = self.reused = 0

    def progress(self, finished: CheckResult | None = None, notes: tuple[str, ...] = ()) -> None:
        """Tells the state."""
        self.report(Progress(self.done, self.total, self.reused, finished, notes, self.clock.left()))

    def plan(self, fresh: bool) -> list[Task]:
        """All that is to be done now; takes over the finished pieces."""
        tasks: list[Task] = []
        for name, check in self.checks.items():
            for broken in (False, True):
                tasks += self._plan(name, check, broken, fresh)
            tasks += self._plan_grades(name, check, fresh)
        return tasks

    def _plan_grades(self, name: str, check: Check, fresh: bool) -> list[Task]:
        tasks = [Task(name, False, None, number) for number in range(len(check.grades))]
        self.grades[name] = {}
        for task in tasks:
            piece = None if fresh else self.pieces.read(task)
            self._take_grade(task, piece, None)
            self.reused += piece is not None
            self.done += piece is not None
        self.total += len(tasks)
        return [task for task in tasks if self.grades[name][task.grade or 0] is None]

    def _take_grade(self, task: Task, piece: Mapping[str, Any] | None, error: str | None) -> None:
        assert task.grade is not None
        term = self.checks[task.name].grades[task.grade].term
        try:
            found = None if piece is None else _graded(piece)
        except (KeyError, TypeError, ValueError) as broken:
            found, error = None, f"grade {task.grade}: {type(broken).__name__}: {broken}"
        self.grades[task.name][task.grade] = Graded(term, None, (), error=error) if error else found

    def _plan(self, name: str, check: Check, broken: bool, fresh: bool) -> list[Task]:
        try:
            shards = _require.count(name, f"shards for {self.budget}", check.num_shards(self.budget, broken))
        except (KeyError, ValueError) as error:
            self.jobs[name, broken] = _Job(0, errors={0: (f"shards: {type(error).__name__}: {error}", "")})
            return []
        limit = check.limit(self.budget, broken)
        if fresh:
            for shard in range(limit):
                self.pieces.path(Task(name, broken, shard)).unlink(missing_ok=True)
        kept = self.pieces.kept(name, broken, limit)
        shards = max(shards, len(kept))  # a sequential test that went on
        job = self.jobs[name, broken] = _Job(shards)
        self.total += shards
        missing: list[Task] = []
        for task in (Task(name, broken, shard) for shard in range(shards)):
            piece = self.pieces.read(task)
            if piece is None:
                missing.append(task)
            else:
                job.seconds += piece["seconds"]
        job.waiting, job.reused = len(missing), shards - len(missing)
        self.reused += job.reused
        self.done += job.reused
        judgement = Task(name, broken, None)
        verdict = None if missing else self.pieces.read(judgement, kept)
        if verdict is not None:
            self._take(job, verdict)
            return self._go_on(judgement, job)
        self.pieces.path(judgement).unlink(missing_ok=True)
        return missing or [judgement]

    def announce(self) -> None:
        """Reports the state at the start: what is kept, and which checks need nothing more."""
        self.progress(notes=tuple(self.pieces.notes))
        for name in self.checks:
            self._finish(name)

    def on_done(self, done: pool.Done) -> list[Task]:
        """Books a finished task; returns the judgement if that was the last piece."""
        task: Task = done.task
        job = self.jobs[task.name, task.broken]
        failure = done.value
        if done.death is not None:
            failure = f"{task.where}: its worker process {done.death}", ""
        piece = None
        if failure is None:
            most = self.checks[task.name].limit(self.budget, task.broken) if task.content == "evidence" else 0
            piece = self.pieces.read(task, self.pieces.kept(task.name, task.broken, most))
            if piece is None:
                failure = f"{self.pieces.path(task)} was written and cannot be read", ""
        if task.grade is not None:
            self._take_grade(task, piece, None if failure is None else failure[0])
            self.done += 1
            if piece is not None:
                self.timings[_timed(self.budget, task)] = piece["seconds"]
            self.clock.done(task, None if piece is None else piece["seconds"])
            self.progress()
            self._finish(task.name)
            return []
        if failure is not None:
            job.errors[-1 if task.shard is None else task.shard] = failure
        further: list[Task] = []
        if task.shard is None:
            self.clock.done(task, None)
            if piece is not None:
                self._take(job, piece)
                further = self._go_on(task, job)
            self._finish(task.name)
            return further
        job.waiting -= 1
        self.done += 1
        if piece is not None:
            job.seconds += piece["seconds"]
        if job.waiting == 0 and not job.errors:
            further = [Task(task.name, task.broken, None)]
            self.timings[_timed(self.budget, task)] = job.seconds / job.shards
        self.clock.done(task, None if piece is None else piece["seconds"])
        self.progress()
        if job.waiting == 0 and job.errors:
            self._finish(task.name)
        return further

    def _go_on(self, task: Task, job: _Job) -> list[Task]:
        """More pieces for a sequential test that has not decided."""
        check = self.checks[task.name]
        more = min(GO_ON, check.limit(self.budget, task.broken) - job.shards)
        if job.evidence is None or job.evidence.verdict.outcome is not Outcome.INCONCLUSIVE or more <= 0:
            return []
        tasks = [Task(task.name, task.broken, job.shards + i) for i in range(more)]
        job.shards, job.waiting, job.evidence = job.shards + more, more, None
        self.clock.waiting |= dict.fromkeys(tasks, job.seconds / max(job.shards - more, 1))
        self.total += more
        return tasks

    def _take(self, job: _Job, piece: Mapping[str, Any]) -> None:
        try:
            job.evidence = _evidence(piece)
            job.seconds += piece["seconds"]
        except (KeyError, TypeError, ValueError) as error:
            job.errors[-1] = (f"judge: {type(error).__name__}: {error}", "")

    def _finish(self, name: str) -> None:
        jobs = [self.jobs[name, broken] for broken in (False, True)]
        waiting = any(job.waiting or (job.evidence is None and not job.errors) for job in jobs)
        grades = tuple(grade for grade in self.grades[name].values() if grade is not None)
        if name in self.finished or waiting or len(grades) < len(self.checks[name].grades):
            return
        self.finished[name] = CheckResult(self.checks[name], jobs[0].result(), jobs[1].result(), grades)
        self.progress(self.finished[name])
