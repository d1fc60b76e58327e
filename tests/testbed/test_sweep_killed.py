"""Workers, parents and schedulers that are killed in the middle: nothing is lost, nothing is there twice, no bit differs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import toy_sweep
from toy_sweep import calls, elsewhere, run, table

from gpsafe.testbed import store, sweep_pools

WORDS = ("toy-sweep", "--grid", "rate=0.5,1", "--seeds", "0-2", "--workers", "2")
RESULTS = Path("results/sweeps/toy-sweep")


@pytest.fixture
def home(tmp_path, monkeypatch):
    with toy_sweep.importable(tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def undisturbed(home, monkeypatch) -> pd.DataFrame:
    with monkeypatch.context() as patch:
        patch.setattr(sweep_pools, "processes", toy_sweep.here)
        assert run(*WORDS, "--results", "undisturbed") == 0
    (home / "calls").unlink()
    for file in home.glob("at-*"):
        file.unlink()
    return table("undisturbed")


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 60
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def at_work() -> list[int]:
    """Processes that took a lock of a cell here and are alive."""
    told = [file.read_text() for file in RESULTS.glob("runs/*/*/*/.lock")]
    return [pid for text in told if (found := re.match(r"process (\d+) ", text)) and alive(pid := int(found[1]))]


def parent_is_killed_and_all_goes_on(home, undisturbed, *more: str) -> None:
    (home / "hold-1-1").touch()
    process = elsewhere(*WORDS, *more)
    try:
        wait_until(lambda: (home / "at-1-1").exists(), process)
        workers = at_work()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        assert workers
        wait_until(lambda: not any(map(alive, workers)), seconds=20)  # while their cells are on hold
    finally:
        process.kill()
        process.communicate()
    (home / "hold-1-1").unlink()
    assert run(*WORDS) == 0
    assert table().equals(undisturbed)


def one_piece_was_made_twice(home, undisturbed) -> None:
    assert table().equals(undisturbed)
    counts = calls(home)
    assert sum(counts.values()) == 13 and len(counts) == 12 and {counts["0.5/1-1"], counts["1.0/1-1"]} == {1, 2}


def test_a_killed_worker_of_joblib_costs_the_piece_in_its_hands(home, undisturbed):
    (home / "dies-1-1").touch()
    assert run(*WORDS) == 0
    one_piece_was_made_twice(home, undisturbed)


@pytest.mark.slow
def test_after_the_parent_is_killed_its_workers_end_and_the_next_sweep_goes_on(home, undisturbed):
    parent_is_killed_and_all_goes_on(home, undisturbed)
    counts = calls(home)
    assert len(counts) == 12 and max(counts.values()) <= 2
    assert sum(counts.values()) <= 12 + 2  # what was in the hands of the two workers, and nothing else, is made again


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_finished_in_the_table_and_the_same_command_goes_on(home, undisturbed):
    (home / "hold-2-0").touch()
    process = elsewhere(*WORDS)
    try:
        wait_until(lambda: (home / "at-2-0").exists(), process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130 and "Traceback" not in out + err
    said = re.fullmatch(r"gpsafe sweep: stopped; (\d) of 6 cells are finished.*\n", err)
    assert said, err
    done = table()
    assert done["cell"].nunique() == int(said[1]) >= 1
    assert not at_work()
    (home / "hold-2-0").unlink()
    assert run(*WORDS) == 0
    assert table().equals(undisturbed)
    counts = calls(home)
    assert max(counts.values()) <= 2
    assert sum(counts.values()) <= 12 + 2  # what was in the hands of the two workers, and nothing else, is made again


@pytest.mark.slow
def test_two_sweeps_at_once_in_one_folder_share_the_work(home, undisturbed):
    (home / "hold-1-1").touch()
    processes = [elsewhere(*WORDS) for _ in range(2)]
    try:
        wait_until(lambda: (home / "at-1-1").exists())
        (home / "hold-1-1").unlink()
        for process in processes:
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, out + err
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert table().equals(undisturbed) and set(calls(home).values()) == {1}


# ------------------------------------------------------------------------------------------------------------- Dask
@pytest.mark.slow
def test_a_killed_worker_of_dask_is_replaced_and_its_cell_run_again(home, undisturbed):
    (home / "dies-1-1").touch()
    process = elsewhere(*WORDS, "--scheduler", "local")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    one_piece_was_made_twice(home, undisturbed)


@pytest.mark.slow
def test_a_killed_parent_of_a_local_dask_cluster_takes_its_workers_along(home, undisturbed):
    parent_is_killed_and_all_goes_on(home, undisturbed, "--scheduler", "local")


@pytest.mark.slow
def test_after_the_scheduler_is_killed_all_that_is_finished_is_kept(home, undisturbed):
    (home / "hold-2-1").touch()
    log = Path("dask.log").open("ab")  # noqa: SIM115

    def start(what: str, *words: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", "--scheduler-file", "at.json"]
        return subprocess.Popen([*line, *words], stdout=log, stderr=log, start_new_session=True)

    scheduler, worker = start("scheduler", "--port", "0"), start("worker", "--nthreads", "2", "--death-timeout", "60")
    wait_until(lambda: store.read_piece("at.json"))
    process = elsewhere(*WORDS, "--scheduler", store.read_piece("at.json")["address"])  # type: ignore[index]
    try:
        wait_until(lambda: (home / "at-2-1").exists(), process)
        scheduler.kill()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1 and "has gone" in err and "Traceback" not in out + err
        finished = table()["cell"].nunique()
        assert 1 <= finished < 6
    finally:
        for one in (process, scheduler, worker):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()
        log.close()
    (home / "hold-2-1").unlink()
    assert run(*WORDS) == 0
    assert table().equals(undisturbed)
    assert all(count == 1 for piece, count in calls(home).items() if not piece.endswith("/2-1"))
