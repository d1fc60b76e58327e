"""What a sweep costs beside its cells: workers of both kinds, the store and its table, Dask's scheduler.

``python -m experiments.benchmarks --only sweep-workers sweep-store sweep-scheduler --json OUT``; at 10⁵ cells
``TMPDIR=/dev/shm python -m experiments.benchmarks.sweep --cells 100000`` (minutes, 2 GB of memory), where a file costs no wait
for a disk.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import resource
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpsafe.testbed import leaderboard, leaderboard_page, sweep, sweep_pools, workers
from gpsafe.testbed.experiment import Experiment, session
from gpsafe.testbed.sweep_table import TABLE, Table

from .common import Record, Settings, benchmark

PACKAGE = "sweep_benchmark"
MODULE = textwrap.dedent(
    '''
    import time
    from dataclasses import dataclass
    from gpsafe.testbed.experiment import Experiment, Piece, Report

    @dataclass(frozen=True)
    class Arguments:
        """What to do."""

        sleep: float = 0.0
        """Seconds."""

    def run(arguments, seed, record):
        def one():
            if arguments.sleep > 0:
                time.sleep(arguments.sleep)
            return Piece([{"k": k, "value": seed + k / 7, "good": k > 0} for k in range(3)])
        record.piece("all", one)

    EXPERIMENT = Experiment(
        name="nothing",
        title="Sleeps",
        arguments=Arguments,
        budgets=dict.fromkeys(("smoke", "quick", "full"), Arguments()),
        seeds=dict.fromkeys(("smoke", "quick", "full"), 1),
        run=run,
        report=lambda runs: Report(),
    )
    '''
)


@contextlib.contextmanager
def scene() -> Iterator[tuple[Experiment, Path]]:
    """An experiment of one piece with three rows, and a folder; both gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / PACKAGE).mkdir()
        (home / PACKAGE / "__init__.py").touch()
        (home / PACKAGE / "nothing.py").write_text(MODULE)
        sys.path.insert(0, name)
        importlib.invalidate_caches()
        try:
            yield importlib.import_module(f"{PACKAGE}.nothing").EXPERIMENT, home
        finally:
            sys.path.remove(name)
            sweep._experiment.cache_clear()
            for module in [module for module in sys.modules if module.split(".")[0] == PACKAGE]:
                del sys.modules[module]


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@benchmark("sweep-workers")
def sweep_workers(settings: Settings) -> Record:
    """Cells that do nothing (overhead a cell) and cells that sleep (do workers wait?), after one warm-up cell a worker."""
    nothing, asleep, sleep = (20, 16, 0.1) if settings.quick else (400, 80, 0.25)
    rows: list[dict[str, Any]] = []
    for scheduler, count in itertools.product(("", "local"), (1, 2) if settings.quick else (1, 2, 4, 8)):
        with scene() as (experiment, home):
            job = sweep.Job(str(home / "s"), session(), paths=(str(home),), log=os.devnull)
            pool = sweep_pools.cluster(job, scheduler, count) if scheduler else sweep_pools.processes(job, count)
            begun, spent, walls = time.perf_counter(), cpu(), []
            with pool as crew:
                first = 0
                for number, nap in ((count, 0.05), (nothing, 0.0), (asleep, sleep)):
                    seeds = range(first, first + number)
                    cells = list(sweep.cells(experiment, PACKAGE, [experiment.arguments(nap)], seeds, ""))
                    start = time.perf_counter()
                    sweep_pools.run(cells, job, crew, lambda cell, outcome: outcome["pieces"])
                    walls.append(time.perf_counter() - start)
                    first += number
            total = time.perf_counter() - begun
        rows.append(
            {
                "scheduler": scheduler or "joblib",
                "workers": count,
                "start_and_end_s": total - sum(walls[1:]),
                "ms_a_cell_of_nothing": 1e3 * walls[1] / nothing,
                "ms_too_long_a_cell_asleep": 1e3 * (walls[2] - asleep * sleep / count) / (asleep / count),
                "efficiency_asleep": asleep * sleep / count / walls[2],
                "cpu_ms_a_cell_in_all": 1e3 * (cpu() - spent) / (nothing + asleep),
            }
        )
    return {"cells_of_nothing": nothing, "cells_asleep": asleep, "sleep_s": sleep, "rows": rows}


class _Slots:
    """As many workers as asked for, simulated: cells are computed here, one by one, while the others are held."""

    def __init__(self, job: sweep.Job, count: int) -> None:
        self.job, self.count, self.given = job, count, []
        self.seconds = 0.0

    def room(self) -> int:
        return self.count - len(self.given)

    def submit(self, task: sweep_pools.Task) -> None:
        self.given.append(task)

    def take(self) -> list[tuple[sweep_pools.Task, sweep.Outcome]]:
        back, self.given, begun = self.given, [], time.process_time()
        found = [(task, sweep.work(self.job, *task)) for task in back]
        self.seconds += time.process_time() - begun
        return found


@benchmark("sweep-store")
def sweep_store(settings: Settings) -> Record:
    """The store at 2000 cells, see `store`."""
    return store(*((200, 20) if settings.quick else (2000, 1000)))


def store(cells: int = 100_000, slots: int = 1000) -> Record:
    """Cells of simulated workers (slots) through the real store, with the table written as the sweep goes; then a restart."""
    number = cells
    with scene() as (experiment, home):
        job = sweep.Job(str(home / "s"), session())
        seconds: dict[str, float] = {}

        @contextlib.contextmanager
        def timed(name: str) -> Iterator[None]:
            start = time.process_time()
            yield
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

        with timed("plan"):
            arguments = [
                experiment.arguments(-1e-9 * k) for k in range(number // 100)
            ]  # no sleep, and yet all different
            planned = list(sweep.cells(experiment, PACKAGE, arguments, range(100), ""))
        table, new, writes = Table(home / "s"), {}, 0

        def on_done(cell: sweep.Cell, outcome: sweep.Outcome) -> None:
            nonlocal writes
            assert outcome["pieces"] == 1
            new[cell.name] = cell.folder("").path.as_posix()
            if table.due(len(new)) or len(table.known) + len(new) == number:
                writes += 1
                with timed("table"):
                    table.add(new.items(), again=True)
                new.clear()

        (home / "s").mkdir()
        table.add([])
        wall = time.perf_counter()
        pool = _Slots(job, slots)
        with timed("submission"):
            sweep_pools.run(planned, job, pool, on_done)
        wall = time.perf_counter() - wall
        seconds["worker"] = pool.seconds
        seconds["submission"] -= seconds["table"] + seconds["worker"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with timed("which_are_finished"):
            assert all(cell.folder(home / "s").done() is not None for cell in planned)
        with timed("table_restart"):
            assert Table(home / "s").add((cell.name, cell.folder("").path.as_posix()) for cell in planned) == {}
        with timed("read_table"):
            import pandas as pd

            rows = len(pd.read_parquet(home / "s" / TABLE))
        with timed("leaderboard"):
            stored = leaderboard.load([home / "s"])
            page = leaderboard_page.page(stored, leaderboard.boards(stored), home)
        files, size = 0, 0
        for folder, _, names in os.walk(home / "s"):
            files += len(names)
            size += sum(os.stat(os.path.join(folder, name)).st_blocks * 512 for name in names)
        return {
            "cells": number,
            "slots": slots,
            "rows": rows,
            "cpu_us_a_cell": {name: 1e6 * value / number for name, value in seconds.items()},
            "wall_us_a_cell": 1e6 * wall / number,
            "table_writes": writes,
            "table_bytes": (home / "s" / TABLE).stat().st_size,
            "files_a_cell": files / number,
            "bytes_on_disk_a_cell": size / number,
            "page_bytes": len(page.encode()),
            "peak_memory_mb": peak,
        }


def _nothing(job: sweep.Job, cell: sweep.Cell, wait: bool) -> sweep.Outcome:
    return {"pieces": 1, "reused": 0}


class _Wide(sweep_pools.Cluster):
    """As if its workers had so many threads; a thousand real ones in a process would wait for each other."""

    pretended = 1000

    def room(self) -> int:
        super().room()
        return 2 * self.pretended - len(self.out)


@benchmark("sweep-scheduler")
def sweep_scheduler(settings: Settings) -> Record:
    """Cells of nothing at all through Dask's scheduler, as many in flight as for 1000 workers: all in this process."""
    import distributed

    number, count = (200, 2) if settings.quick else (3000, 4)
    with scene() as (experiment, home), workers.for_spawning():
        cells = sweep.cells(experiment, PACKAGE, [experiment.arguments()], range(number), "")
        job = sweep.Job(str(home / "s"), session())
        begun = time.process_time()
        options: dict[str, Any] = {"processes": False, "dashboard_address": None, "silence_logs": 50}
        with (
            distributed.LocalCluster(n_workers=count, threads_per_worker=1, **options) as local,
            distributed.Client(local, set_as_default=False) as client,
        ):
            start = time.process_time() - begun
            pool, most, done = _Wide(job, client, "local", work=_nothing), 0, 0

            def on_done(cell: sweep.Cell, outcome: sweep.Outcome) -> None:
                nonlocal most, done
                most, done = max(most, len(pool.out)), done + 1

            wall = time.perf_counter()
            begun = time.process_time()
            sweep_pools.run(cells, job, pool, on_done)
            spent, wall = time.process_time() - begun, time.perf_counter() - wall
        return {
            "cells": number,
            "workers": count,
            "simulated": _Wide.pretended,
            "done": done,
            "most_in_flight": most,
            "start_cpu_s": start,
            "cpu_us_a_cell": 1e6 * spent / number,
            "wall_us_a_cell": 1e6 * wall / number,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


if __name__ == "__main__":
    import json

    import tyro

    print(json.dumps(tyro.cli(store), indent=1))
