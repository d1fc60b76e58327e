"""Who computes the cells of a sweep: processes of joblib on this machine, or a Dask cluster. Both survive a worker's death.

Cells are handed over one by one, never more of them than the workers can hold (`Pool.room`), so that a sweep of 10⁵ cells
costs the scheduler no more memory than one of a thousand. A cell whose worker dies is given to another; since its finished
pieces are kept, that one goes on where the first stopped.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from gpsafe.testbed import workers
from gpsafe.testbed.sweep import Cell, Job, Outcome, fail, work

Task = tuple[Cell, bool]
"""A cell, and whether to wait for another process that computes it."""
MANY = 32
"""Cells in flight above which a twentieth of a second is waited for more outcomes."""
MOST = 6
"""Workers that die with a cell before it has begun: then it is what kills them while it is loaded."""


class Pool(Protocol):
    """What `run` needs."""

    def room(self) -> int:
        """How many cells could be handed over now."""
        ...

    def submit(self, task: Task) -> None:
        """Hands a cell over."""
        ...

    def take(self) -> list[tuple[Task, Outcome]]:
        """What has come back since, after a second at most."""
        ...


def run(cells: Iterable[Cell], job: Job, pool: Pool, on_done: Callable[[Cell, Outcome], None]) -> None:
    """Computes cells, in this order as far as workers come free; returns when all are done.

    Args:
        cells: each at most once.
        job: the sweep.
        pool: the workers, see `processes` and `cluster`.
        on_done: called here once a cell, with its outcome (`sweep.work`); ``busy`` is none: such a cell comes last, and is
            waited for.

    Raises:
        RuntimeError: if a worker cannot compute what is asked of it at all, or the scheduler has gone.
    """
    fresh: Iterator[Task] = ((cell, False) for cell in cells)
    again: deque[Task] = deque()
    busy: list[Task] = []
    deaths: dict[str, list[bool]] = {}
    before: dict[str, int | None] = {}
    while True:
        over = False
        while pool.room() > 0:
            task = again.popleft() if again else next(fresh, None)
            if task is None and busy:  # nothing else is left to be begun
                again += busy
                busy.clear()
                continue
            if task is None:
                over = True
                break
            before[task[0].name] = _taken(task[0], job)
            pool.submit(task)
        if over and not before:
            return
        for task, outcome in pool.take():
            cell, last = task[0], before.pop(task[0].name)
            if "unusable" in outcome:
                raise RuntimeError(f"a worker cannot compute {cell.experiment!r}: {outcome['unusable']}")
            if "busy" in outcome:
                busy.append((cell, True))
            elif "lost" in outcome:
                deaths.setdefault(cell.name, []).append(_taken(cell, job) != last)
                if sum(deaths[cell.name]) < workers.ATTEMPTS and len(deaths[cell.name]) < MOST:
                    again.appendleft(task)
                else:
                    on_done(cell, fail(cell, job.home, f"its worker process {outcome['lost']}, again"))
            else:
                on_done(cell, outcome)


def _taken(cell: Cell, job: Job) -> int | None:
    """When the cell's lock was taken last: of cells that waited on a worker that died, only the one at work is to blame."""
    try:
        return cell.folder(job.home).lock.stat().st_mtime_ns
    except OSError:
        return None


# ------------------------------------------------------------------------------------------------------ one machine
class _Processes:
    """One joblib (loky) executor of a single process for each slot.

    A pool of several processes breaks as a whole when one of them dies, and does not say over which task; so here each has its
    own, and a death is charged to the cell that was in its hands.
    """

    def __init__(self, job: Job, count: int) -> None:
        self.job = job
        self.free: deque[Any] = deque([None] * count)
        self.back: queue.SimpleQueue[tuple[Any, Task, Any]] = queue.SimpleQueue()
        self.crew: list[Any] = []

    def room(self) -> int:
        return len(self.free)

    def submit(self, task: Task) -> None:
        slot = self.free.popleft()
        with workers.for_spawning():
            try:
                slot = slot or self._executor()
                future = slot.submit(work, self.job, *task)
            except BrokenProcessPool:  # its process died while it had nothing to do
                self.crew.remove(slot)
                slot = self._executor()
                future = slot.submit(work, self.job, *task)
        future.add_done_callback(lambda done: self.back.put((slot, task, done)))

    def _executor(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        self.crew.append(ProcessPoolExecutor(max_workers=1, env=dict.fromkeys(workers.THREADS, "1")))
        return self.crew[-1]

    def take(self) -> list[tuple[Task, Outcome]]:
        found = []
        for slot, task, future in _drained(self.back):
            error = future.exception()
            if error is None:
                outcome = future.result()
            elif isinstance(error, BrokenProcessPool):
                self.crew.remove(slot)
                how = re.search(r"exit codes .*\{(.*)\}", str(error))
                outcome, slot = {"lost": f"died ({how[1]})" if how else f"died: {_first_line(error)}"}, None
            else:  # what cannot be sent back
                outcome = {"unusable": _first_line(error)}
            self.free.append(slot)
            found.append((task, outcome))
        return found


@contextlib.contextmanager
def processes(job: Job, count: int) -> Iterator[Pool]:
    """Worker processes of joblib on this machine, one thread each. They end with the block, in the middle of a cell even."""
    pool = _Processes(job, count)
    try:
        yield pool
    finally:
        for executor in pool.crew:
            executor.shutdown(wait=True, kill_workers=True)


# --------------------------------------------------------------------------------------------------------- clusters
class Cluster:
    """The workers of a Dask scheduler, as many as there are at the time.

    A scheduler of others gets two cells a thread: one at work, one that need not travel when that is finished (and tells a
    cluster that adapts that more workers are wanted). One of our own gets one.
    """

    def __init__(
        self, job: Job, client: Any, where: str, local: Any = None, count: int = 0, work: Callable[..., Outcome] = work
    ) -> None:
        self.job, self.client, self.where, self.local, self.count = job, client, where, local, count
        self.work = work
        self.back: queue.SimpleQueue[tuple[Any, Task]] = queue.SimpleQueue()
        self.out: dict[Any, None] = {}  # the scheduler forgets a task once nobody holds its future
        self.names, self.threads, self.looked = 0, 0, -1.0

    def room(self) -> int:
        if time.monotonic() - self.looked > 1:  # workers come and go
            with self._scheduler():
                self.threads, self.looked = sum(self.client.nthreads().values()), time.monotonic()
            if self.local is not None and self.threads < self.count:
                self.local.scale(self.count)  # its nannies replace workers, but not those that die while they start
        return (self.threads if self.local else max(1, 2 * self.threads)) - len(self.out)

    def submit(self, task: Task) -> None:
        self.names += 1
        key = f"{task[0].experiment}-{task[0].name}-{self.names}"
        future = self.client.submit(self.work, self.job, *task, key=key, pure=False)
        self.out[future] = None
        future.add_done_callback(lambda done: self.back.put((done, task)))

    def take(self) -> list[tuple[Task, Outcome]]:
        from distributed import KilledWorker

        back = _drained(self.back)
        if back and len(self.out) > MANY:  # one question for the outcomes of many cells
            time.sleep(0.05)
            back += _drained(self.back, wait=0.0)
        with self._scheduler():
            whole = [future for future, _ in back if future.status == "finished"]
            values = dict(zip(whole, self.client.gather(whole), strict=True)) if whole else {}
        found: list[tuple[Task, Outcome]] = []
        for future, task in back:
            self.out.pop(future, None)
            if future in values:
                outcome = values[future]
            elif future.status == "error":
                error = future.exception()
                gone = isinstance(error, KilledWorker)
                outcome = {"lost": "died"} if gone else {"unusable": _first_line(error)}
            else:
                outcome = {"lost": f"was {future.status}"}
            found.append((task, outcome))
        return found

    @contextlib.contextmanager
    def _scheduler(self) -> Iterator[None]:
        """Asks the scheduler something; RuntimeError if it does not answer any more."""
        try:
            if self.client.status != "running":
                raise ConnectionError(f"a client that is {self.client.status}")
            yield
        except Exception as error:  # whatever a connection that breaks in the middle of a question may raise
            raise RuntimeError(f"the scheduler at {self.where} has gone ({_first_line(error)})") from None


@contextlib.contextmanager
def cluster(job: Job, where: str, count: int) -> Iterator[Pool]:
    """Workers of Dask.

    Args:
        job: the sweep.
        where: ``local`` for a scheduler and workers of this process' own; else the address of a scheduler, whose workers see
            the sweep's folder and the same sources under the same paths.
        count: how many workers a local one has.

    Raises:
        RuntimeError: if nobody answers at the address.
    """
    import dask.config
    import distributed

    settings = {
        "distributed.scheduler.worker-ttl": None,  # a cell that computes for minutes without a word is not dead
        "distributed.scheduler.allowed-failures": 0,  # `run` counts deaths
        "distributed.deploy.lost-worker-timeout": "5s",
    }
    local: Any = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        try:
            with workers.for_spawning():
                if where == "local":
                    local = distributed.LocalCluster(
                        n_workers=count,
                        threads_per_worker=1,
                        memory_limit=None,
                        dashboard_address=None,  # pyright: ignore[reportArgumentType]
                        silence_logs=logging.CRITICAL,
                        env=dict.fromkeys(workers.THREADS, "1"),
                    )
                    where = stack.enter_context(local).scheduler_address
                stack.enter_context(_quiet("distributed", "asyncio", "tornado"))
                client = stack.enter_context(distributed.Client(where, timeout="10s", set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise RuntimeError(f"--scheduler: expected a Dask scheduler at {where}, got {_first_line(error)}") from None
        yield Cluster(job, client, where, local, count)


@contextlib.contextmanager
def _quiet(*tops: str) -> Iterator[None]:
    """Silences loggers, which on the loss of a connection write pages about what is told here in a line."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in tops]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _drained(back: queue.SimpleQueue[Any], wait: float = 1.0) -> list[Any]:
    """All that is in a queue, after a second at most if there is nothing."""
    found = []
    with contextlib.suppress(queue.Empty):
        found.append(back.get(timeout=wait) if wait else back.get_nowait())
        while True:
            found.append(back.get_nowait())
    return found


def _first_line(error: BaseException | None) -> str:
    told = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
