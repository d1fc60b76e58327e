"""A small pool of worker processes that survives the death of a worker and stops cleanly on Ctrl-C.

Each worker holds one task at a time, so a death is charged to the task that was in its hands: that task is
given to a fresh worker once more, everything else goes on. Workers are spawned (no inherited state) with one
thread of linear algebra each, set in their environment before any library is loaded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from gpsafe import _require

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
ATTEMPTS = 2  # a task whose worker dies is tried once more


@dataclass(frozen=True, slots=True)
class Done:
    """A task's return value, or why there is none."""

    task: Any
    value: Any = None
    death: str | None = None
    """What became of the worker, in words that go on after "its worker process"."""


@dataclass(frozen=True, slots=True)
class _Raised:
    """Sent in the place of a value."""

    why: str


def available_cores() -> int:
    """Cores this process may use."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1


@contextlib.contextmanager
def for_spawning() -> Iterator[None]:
    """Sets what a new process inherits: one thread a library, and Ctrl-C held back (not lost)."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    mask = getattr(signal, "pthread_sigmask", None)
    held = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else None
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if mask:
            mask(signal.SIG_SETMASK, held)


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers; one that lived on would write beside those of the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _serve(connection: Connection, start: Callable[..., Callable[[Any], Any]], args: tuple, log: str) -> None:
    """What a worker does until its parent hangs up. What it prints goes to the log file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work = start(*args)
    except Exception as error:
        connection.send(" ".join(str(error).split()) or type(error).__name__)
        return
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the parent has gone
            return
        try:
            _send(connection, work(task))
        except Exception as error:  # an OSError too: a full disk is no parent that has gone
            _send(connection, _Raised("raised " + " ".join(f"{type(error).__name__}: {error}".split())))
        with contextlib.suppress(OSError):  # the log cannot be written: no reason to stop
            sys.stdout.flush()


def _send(connection: Connection, value: Any) -> None:
    """Sends a value, if there still is somebody to read it."""
    data = pickle.dumps(value)  # what cannot be sent raises here
    with contextlib.suppress(OSError):
        connection.send_bytes(data)


class _Worker:
    def __init__(self, start: Callable[..., Callable[[Any], Any]], args: tuple, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, start, args, str(log)), daemon=True)
        self.ready = False
        self.task: tuple[Any, int] | None = None  # with the number of this attempt
        with for_spawning():
            self.process.start()
        theirs.close()

    def stop(self) -> None:
        """Ends the process now. What it was writing is whole or absent (see `gpsafe.testbed.store`)."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def run(
    tasks: list[Any],
    *,
    start: Callable[..., Callable[[Any], Any]],
    args: tuple,
    workers: int,
    log: Path,
    on_done: Callable[[Done], list[Any]],
) -> None:
    """Runs tasks in worker processes, in order of `tasks`; returns when all are done.

    Args:
        tasks: picklable tasks.
        start: called as ``start(*args)`` once in each worker; returns the function that does one task.
        args: arguments of `start`.
        workers: number of processes at most.
        log: file that takes what the workers print.
        on_done: called here for each finished task; returns further tasks, which go first.

    Raises:
        RuntimeError: if `start` raises, or if workers die before it has returned.
    """
    queue: deque[tuple[Any, int]] = deque((task, 1) for task in tasks)
    crew: list[_Worker] = []
    failed_starts = 0
    try:
        while queue or any(worker.task is not None for worker in crew):
            idle = sum(worker.task is None for worker in crew)
            while len(crew) < workers and idle < len(queue):
                crew.append(_Worker(start, args, log))
                idle += 1
            for worker in crew:
                if worker.ready and worker.task is None and queue:
                    worker.task = task, _ = queue.popleft()
                    with contextlib.suppress(OSError):  # already dead: noticed below
                        worker.connection.send(task)
            for connection in wait([worker.connection for worker in crew]):
                worker = next(w for w in crew if w.connection is connection)
                try:
                    value = worker.connection.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    worker.process.join()
                    how = _how(worker.process.exitcode)
                    worker.connection.close()
                    if not worker.ready:
                        failed_starts += 1
                        if failed_starts >= 3:
                            error = _require.fail("workers", f"a worker that starts (see {log})", f"one that {how}")
                            raise RuntimeError(str(error)) from None
                    elif worker.task is not None:
                        task, attempt = worker.task
                        if attempt < ATTEMPTS:
                            queue.appendleft((task, attempt + 1))
                        else:
                            queue.extendleft((t, 1) for t in reversed(on_done(Done(task, death=f"{how}, twice"))))
                    continue
                if not worker.ready:
                    if value is not None:
                        raise RuntimeError(value)
                    worker.ready, failed_starts = True, 0
                    continue
                assert worker.task is not None
                task, worker.task = worker.task[0], None
                done = Done(task, death=value.why) if isinstance(value, _Raised) else Done(task, value)
                queue.extendleft((t, 1) for t in reversed(on_done(done)))
    finally:
        for worker in crew:
            worker.stop()


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-exitcode).name}"
        return f"was killed by signal {-exitcode}"
    return f"stopped with exit code {exitcode}"
