"""Results of other code, of two processes at once, and of a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from toy_light import elsewhere, importable, light

from gpsafe.cli import experiments, running
from gpsafe.cli.common import UsageError
from gpsafe.testbed import lock, provenance, store, verify, workers
from gpsafe.testbed.experiment import Stale, code, load, run_seed
from tests import toy_checks
from tests.light_tasks import Full


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with importable(tmp_path, monkeypatch) as folder:
        yield folder


def compute(seed: int = 0, **options):
    experiment = light()
    return run_seed(experiment, experiment.arguments(), seed, folder=f"results/light/{seed}", about={}, **options)


def values(seed: int = 0) -> list[float]:
    (run,) = load(light(), "results", seeds=(seed,)).runs
    return [piece.rows[0]["value"] for piece in run.pieces.values()]


def command(*words: str) -> int:
    return experiments.run(["light", *words], "gpsafe run light", package="light_work")


def until(condition, process: subprocess.Popen | None = None, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------- code
@pytest.mark.parametrize("name", ["light.py", "helper.py", "__init__.py"])
def test_pieces_of_other_code_are_never_kept_without_a_word(home, capsys, name):
    compute(1)
    old = code(light())
    with (home / name).open("a") as file:
        file.write("# another word\n")
    new = code(light())
    before = {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file() and p.name != ".lock"}
    refused = (
        f"expected pieces of today's code \\({new}\\), got 2 pieces of other code \\(2 of code {old}, revision unknown"
    )
    with pytest.raises(Stale, match=refused):
        compute(1)
    with pytest.raises(UsageError, match=f"{refused}\\); --stale recompute makes them anew, --stale keep keeps them"):
        command("--seeds", "1")
    assert {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file() and p.name != ".lock"} == before
    record = compute(1, stale="keep")
    assert record.reused == 2 and [made["code"] for made in record.older] == [old, old]
    assert load(light(), "results").runs[0].provenance["codes"] == [old]
    record = compute(1, stale="recompute")
    assert record.reused == 0 and record.older == [] and compute(1).reused == 2
    assert load(light(), "results").runs[0].provenance["codes"] == [new]
    capsys.readouterr()


def test_control_what_an_experiment_does_not_import_does_not_make_it_stale(home):
    compute()
    (home / "unused.py").write_text("SCALE = 4\n")
    assert compute().reused == 2


def test_recomputed_seeds_hold_what_todays_code_gives_and_kept_ones_say_that_they_do_not(home, capsys):
    compute(1)
    assert values(1) == [2, 2]
    (home / "helper.py").write_text("SCALE = 7\n")
    assert command("--seeds", "1", "--stale", "keep") == 0
    assert values(1) == [2, 2] and "2 pieces of other code than today's" in (out := capsys.readouterr().out)
    assert re.search(r"seed 1: 2 pieces, 2 of them kept from before; of other code: 2 of code [0-9a-f]{16}", out)
    assert experiments.report(["light"], "gpsafe report light", package="light_work") == 0
    assert "note: Not all pieces are of today's code" in capsys.readouterr().out
    assert command("--seeds", "1", "--stale", "recompute") == 0
    assert values(1) == [7, 7] and "their seeds are made anew" in capsys.readouterr().out
    experiments.report(["light"], "gpsafe report light", package="light_work")
    assert "note" not in capsys.readouterr().out
    page = Path("results/light/report/index.md").read_text()
    assert f"fingerprints of the code: {code(light())}" in page


def test_an_edit_during_a_run_does_not_pass_for_the_code_that_runs(home):
    experiment = light()
    mark = code(experiment)
    (home / "helper.py").write_text("SCALE = 11\n")  # and this process has loaded the old one
    run_seed(experiment, experiment.arguments(), 1, folder="results/light/1", about={})
    assert values(1) == [2, 2] and load(experiment, "results").runs[0].provenance["codes"] == [mark]
    with pytest.raises(Stale):
        compute(1)


def test_one_stale_piece_makes_the_whole_seed_anew(home):
    compute()
    (home / "helper.py").write_text("SCALE = 5\n")
    Path("results/light/0/pieces/k-1.json").unlink()
    compute(stale="keep")
    record = compute(stale="recompute")
    assert record.reused == 0  # k-1 is of today's code, but may rest on what k-0 was


def test_pieces_from_before_there_were_fingerprints_are_of_unknown_code(home):
    compute()
    for file in Path("results/light/0/pieces").glob("*.json"):
        piece = json.loads(file.read_text())
        del piece["seal"]  # as they were written; a fingerprint that no seal vouches for counts as little
        file.write_text(json.dumps(piece))
    with pytest.raises(Stale, match="2 of code unknown"):
        compute()
    assert values() == [0, 0]


def test_code_that_cannot_be_read_vouches_for_nothing():
    assert provenance.code("no_such_module_anywhere") is None
    assert provenance.code("math") is None


def test_a_fingerprint_follows_imports_of_every_form_and_stops_at_installed_packages(home):
    (home / "inner").mkdir()
    (home / "inner" / "__init__.py").touch()
    (home / "inner" / "deep.py").write_text("def late():\n    from .. import unused\n    import numpy, json\n")
    (home / "helper.py").write_text("import light_work.inner.deep as d\nfrom gpsafe.testbed import store\nSCALE = 2\n")
    found = provenance._imported(["light_work.light"])
    assert found is not None
    names = {"light_work", "light_work.light", "light_work.helper", "light_work.inner", "light_work.inner.deep"}
    assert set(found) == names | {"light_work.unused"}


def test_our_experiments_rest_on_their_helpers_and_on_nothing_installed():
    found = provenance._imported(["gpsafe.experiments.pendulum_sound"])
    assert found is not None and found == provenance._imported(["gpsafe.experiments.pendulum_sound"])
    assert {"experiments.pendulum_paper", "experiments._report.pendulum", "experiments"} < set(found)
    assert all(name.split(".")[0] == "experiments" for name in found)
    assert "experiments.xmpsc_table1" not in found


def test_sources_that_change_while_workers_start_are_said(home):
    compute()
    work = running._Work("light_work", "light", None, home, "quick", {}, "another", "refuse")
    with pytest.raises(RuntimeError, match="sources changed"):
        running._start(work)


# ------------------------------------------------------------------------------------------- locks
def test_a_second_run_takes_the_other_seeds_then_waits_and_nothing_is_done_twice(home, capsys):
    (home / "hold-0").touch()
    other = elsewhere(0)
    until(lambda: (home / "calls").exists(), other)

    def let_go() -> None:
        with contextlib.suppress(AssertionError):  # without a lock nobody gets to seed 1: fail, and do not hang
            until(Path("results/light/1/done.json").exists, seconds=20)
        (home / "hold-0").unlink()

    threading.Thread(target=let_go, daemon=True).start()
    assert command("--workers", "1") == 0 == other.wait(60)
    out = capsys.readouterr().out
    told = f"seed 0 is being computed by process {other.pid} on .*: the other seeds first, then it is waited for\n"
    assert re.search(told + r"\[1/2\] seed 1: 2 pieces\n\[2/2\] seed 0: 2 pieces, 2 of them kept", out)
    assert sorted((home / "calls").read_text().split()) == ["0/0", "0/1", "1/0", "1/1"]


def test_fresh_takes_nothing_from_under_a_run_and_a_killed_one_leaves_no_lock(home):
    (home / "hold-0").touch()
    other = elsewhere(0)
    try:
        until(lambda: (home / "calls").exists(), other)
        with pytest.raises(UsageError, match=f"--fresh: .* got one of process {other.pid} on "):
            command("--fresh")
        with pytest.raises(lock.Busy, match=f"process {other.pid} on "):
            compute(wait=False)
        assert not running._alone(Path("results/light"))
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    (home / "hold-0").unlink()
    assert compute(wait=False).reused == 0
    assert lock.free("results/light/0/.lock") and lock.free("no/such/file")


def test_a_file_system_without_locks_is_said_and_stops_nothing(tmp_path, monkeypatch, caplog):
    def none(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_take", none)
    with lock.held(tmp_path / "lock"):
        assert "cannot be locked (No locks available)" in caplog.text


# --------------------------------------------------------------------------------------- full disk
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_a_full_disk_is_the_reason_that_is_given(home, capsys):
    (home / "full").touch()  # in the worker no file can be written, and its log lies on a full disk, too
    Path("results/light").mkdir(parents=True)
    Path("results/light/worker.log").symlink_to("/dev/full")
    assert command("--seeds", "0") == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    place = Path("results/light/0/pieces/k-0.json").absolute()
    assert failed == [f"seed 0 failed: OSError: [Errno {errno.ENOSPC}] No space left on device: '{place}'"]


def test_a_full_disk_stops_no_lock(tmp_path):
    """Who holds it was refused twice: when it was written, and when the file was closed."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file can grow
    try:
        with lock.held(tmp_path / "lock"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.parametrize(("task", "why"), [("x", "raised OSError: .*No space left"), ("unsendable", "raised .*pickle")])
def test_whatever_a_task_raises_a_worker_goes_on_and_says_it(tmp_path, task, why):
    found: list[workers.Done] = []
    workers.run(
        [task, "x"], start=Full, args=(), workers=1, log=tmp_path / "log", on_done=lambda d: found.append(d) or []
    )
    assert len(found) == 2 and re.match(why, found[0].death or "")


def test_an_unwritable_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device: '.*piece\.json'"):
        store.write_piece(tmp_path / "piece.json", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_takes_no_verdict_with_it_and_is_an_error_of_the_check(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with toy_checks.importable(tmp_path, monkeypatch) as make:
        from gpsafe.testbed import check

        package = make("holds")
        found = check.discover(package)
        verify.verify(found, package=package, cache=tmp_path / "cache", workers=0)
        monkeypatch.setattr(os, "fsync", full)
        (tmp_path / "cache" / "timings.json").unlink()
        (kept,) = verify.verify(found, package=package, cache=tmp_path / "cache", workers=0)
        (failed,) = verify.verify(found, package=package, cache=tmp_path / "other", workers=0)
    assert kept.passed
    assert re.fullmatch(r"piece 0: OSError: .*No space left on device: '.*claim-00000\.json' \(and .*\)", failed.reason)
