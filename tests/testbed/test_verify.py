"""The runner: what it says of each kind of check, what it keeps, and what survives a killed worker."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.testbed import check as checks
from gpsafe.testbed import provenance, store, verify, workers
from gpsafe.testbed.check import Check, Evidence
from gpsafe.testbed.verify import CheckResult, Result, Status
from gpsafe.verdict import Outcome, Verdict
from tests import toy_checks

KINDS = {
    "holds": Status.HOLDS,
    "violated": Status.VIOLATED,
    "unproven": Status.UNPROVEN,
    "unclear": Status.INCONCLUSIVE,
    "unbounded": Status.HOLDS,
    "raises": Status.ERROR,
    "not-json": Status.ERROR,
    "no-evidence": Status.ERROR,
    "no-shards": Status.ERROR,
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    with toy_checks.importable(tmp_path, monkeypatch) as make:
        yield make


def run(package, cache, **options):
    """Results by name, and the events."""
    events = []
    found = checks.discover(package)
    options = {"workers": 0, "on_progress": events.append} | options
    results = verify.verify(found, package=package, cache=cache, **options)
    assert [result.check.name for result in results] == list(found)
    return {result.check.name: result for result in results}, events


def numbers(results):
    """Everything but the time."""
    kept = {}
    for name, result in results.items():
        variants = [(r.evidence, r.shards, r.error) for r in (result.claim, result.control)]
        kept[name] = (result.status, result.reason, repr(variants))
    return kept


def test_each_kind_of_check_gets_its_status_and_the_rest_goes_on(toy, tmp_path):
    results, events = run(toy(*KINDS), tmp_path / "cache")
    assert {name: result.status for name, result in results.items()} == KINDS
    assert results["raises"].claim.error == "piece 1: RuntimeError: not positive definite"
    assert "not positive" in results["raises"].claim.details
    assert "numbers, strings, lists and dicts, got object" in results["not-json"].reason
    assert "expected Evidence, got int" in results["no-evidence"].reason
    assert "control came out INCONCLUSIVE" in results["unproven"].reason or "HOLDS" in results["unproven"].reason
    assert {event.finished.check.name for event in events if event.finished} == set(KINDS)
    assert events[-1].done == events[-1].total
    assert [event.done for event in events] == sorted(event.done for event in events)


def test_a_second_run_reuses_every_piece_and_says_the_same(toy, tmp_path):
    package = toy("holds", "unclear", "unbounded")
    first, events = run(package, tmp_path / "cache")
    assert events[0].reused == 0
    second, events = run(package, tmp_path / "cache")
    assert (events[0].reused, events[0].done, events[0].total) == (15, 15, 15)
    assert numbers(first) == numbers(second)
    assert second["holds"].claim.seconds == first["holds"].claim.seconds > 0
    assert second["unbounded"].claim.evidence.verdict.lower == -math.inf
    fresh, events = run(package, tmp_path / "cache", fresh=True)
    assert events[0].reused == 0
    assert numbers(fresh) == numbers(first)


def test_only_what_is_missing_or_damaged_is_made_again(toy, tmp_path):
    package = toy("holds")
    first, _ = run(package, tmp_path / "cache")
    folder = next((tmp_path / "cache").glob("*/quick/holds"))
    (folder / "claim-00001.json").write_text('{"sample": ')
    (folder / "control-00002.json").unlink()
    second, events = run(package, tmp_path / "cache")
    assert events[0].reused == 4
    assert numbers(first) == numbers(second)


def test_pieces_of_other_sources_or_budgets_are_not_reused(toy, tmp_path):
    package = toy("holds")
    run(package, tmp_path / "cache")
    _, events = run(package, tmp_path / "cache", budget="full")
    assert events[0].reused == 0
    before = provenance.fingerprint(package)
    with (tmp_path / package / "toy.py").open("a") as file:
        file.write("# another word\n")
    assert provenance.fingerprint(package) != before
    _, events = run(package, tmp_path / "cache")
    assert events[0].reused == 0


def test_a_killed_worker_loses_nothing_and_answers_do_not_depend_on_the_workers(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    package = toy("holds", "unclear", "raises", "dies-once", "dies-always")
    results, events = run(package, tmp_path / "cache", workers=2)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    statuses = {name: str(result.status) for name, result in results.items()}
    assert statuses == {
        "dies-always": "ERROR",
        "dies-once": "HOLDS",
        "holds": "HOLDS",
        "raises": "ERROR",
        "unclear": "INCONCLUSIVE",
    }
    assert results["dies-always"].reason == "piece 1: its worker process was killed by SIGKILL, twice"
    assert events[-1].done == events[-1].total
    # The same pieces again, here in this process.
    package_again = {n: c for n, c in checks.discover(package).items() if not n.startswith("dies")}
    inline = verify.verify(package_again, package=package, cache=tmp_path / "other", workers=0)
    inline = {result.check.name: result for result in inline}
    assert numbers(inline) == {name: kept for name, kept in numbers(results).items() if name in inline}


def test_two_runs_at_once_in_one_cache_do_each_piece_once_and_say_the_same(toy, tmp_path):
    """Each wrote pieces under the other's judgements, whose seals then broke: "was written and cannot be read"."""
    drawn: list[tuple[int, bool]] = []

    def draw(shard, budget, broken):
        drawn.append((shard, broken))
        time.sleep(0.02)
        return {"hits": 400 * broken}

    def weigh(samples, broken):
        time.sleep(0.1)
        return Evidence(1200, float(broken), Verdict(float(broken), float(broken), 0.1), {})

    check = dataclasses.replace(next(iter(checks.discover(toy("holds")).values())), sample=draw, judge=weigh)
    with ThreadPoolExecutor(2) as both:
        options = {"package": toy("holds"), "cache": tmp_path / "cache", "workers": 0}
        runs = [both.submit(verify.verify, {"holds": check}, **options) for _ in range(2)]
        results = [one.result()[0] for one in runs]
    assert [result.status for result in results] == [Status.HOLDS] * 2, [result.reason for result in results]
    assert len(drawn) == len(set(drawn)) == 6


def test_longest_pieces_come_first_once_times_are_known(toy, tmp_path, monkeypatch):
    package = toy("holds", "unclear", "violated")
    store.write_piece(
        tmp_path / "cache" / "timings.json",
        {f"quick/{n}/{b}": t for n, t in (("holds", 1.0), ("unclear", 3.0)) for b in (True, False)},
    )
    order = []
    original = verify.execute
    monkeypatch.setattr(verify, "execute", lambda task, *args: order.append(task) or original(task, *args))
    run(package, tmp_path / "cache")
    assert list(dict.fromkeys(task.name for task in order)) == ["violated", "unclear", "holds"]
    assert store.read_piece(tmp_path / "cache" / "timings.json")["quick/violated/False"] < 1


@pytest.mark.slow
def test_a_run_says_how_long_the_rest_will_take_once_times_are_known(toy, tmp_path):
    package = toy("holds", "slow")
    first, seen = run(package, tmp_path / "cache")
    assert seen[0].left is None  # never timed
    again, seen = run(package, tmp_path / "cache", fresh=True)
    left = [event.left for event in seen]
    assert left[0] > 0
    assert left[-1] == 0
    slow = sum(r.claim.seconds + r.control.seconds for r in first.values())
    assert left[0] == pytest.approx(slow, rel=0.5)
    assert again["slow"].status is Status.HOLDS


def test_the_time_left_is_scaled_by_how_fast_the_machine_is_and_shared_among_workers():
    tasks = [verify.Task("a", False, k) for k in range(5)]
    clock = verify._Clock(dict.fromkeys(tasks[:4], 10.0) | {tasks[4]: math.inf}, workers=2)
    assert clock.left() == 25.0  # 40 known, a mean of 10 for the one never timed, two workers
    clock.done(tasks[0], 20.0)  # twice as slow as expected
    assert clock.left() == 2 * 20.0
    clock.done(tasks[1], None)  # failed: says nothing of the speed
    clock.done(tasks[4], 7.0)  # never timed: neither does this
    assert clock.left() == 2 * 10.0
    clock.done(tasks[2], 10.0)
    assert clock.left() == 1.5 * 10.0  # one piece cannot be shared
    clock.done(tasks[3], 10.0)
    assert clock.left() == 0.0
    assert verify._Clock({tasks[0]: math.inf}).left() is None


def test_workers_that_cannot_start_are_one_error_and_no_endless_loop(tmp_path):
    with pytest.raises(RuntimeError, match="workers: expected a worker that starts"):
        workers.run([1], start=os._exit, args=(3,), workers=1, log=tmp_path / "log", on_done=lambda done: [])


def test_sources_that_change_during_the_run_are_not_kept_under_the_old_name(toy, tmp_path):
    with pytest.raises(RuntimeError, match="sources changed"):
        verify._start(toy("holds"), "another fingerprint", "quick", tmp_path / "cache")


def test_what_keeps_workers_from_starting_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="invalid literal"):
        workers.run([1], start=int, args=("x",), workers=1, log=tmp_path / "log", on_done=lambda done: [])


LONELY = """
import os, pathlib, sys, time

def start():
    def work(task):
        pathlib.Path("worker").write_text(str(os.getpid()))
        time.sleep(600)
    return work

if __name__ == "__main__":
    from gpsafe.testbed import workers
    workers.run([1], start=start, args=(), workers=1, log=pathlib.Path("log"), on_done=lambda done: [])
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "lonely.py").write_text(LONELY)
    parent = subprocess.Popen([sys.executable, "lonely.py"], cwd=tmp_path)
    try:
        _until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text() != "")
    finally:
        parent.kill()
        parent.wait()
    worker = Path("/proc") / (tmp_path / "worker").read_text()
    _until(lambda: not worker.exists() or ") Z " in (worker / "stat").read_text())


def _until(condition) -> None:
    """Waits long: what counts is that it comes true."""
    for _ in range(1200):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if condition():
                return
        time.sleep(0.05)
    raise AssertionError("it never came true")


@pytest.mark.parametrize(("option", "value"), [("budget", "huge"), ("workers", -1), ("workers", 1.5)])
def test_bad_options_are_refused(tmp_path, option, value):
    with pytest.raises(ValueError, match="verify: expected"):
        verify.verify({}, cache=tmp_path, **{option: value})


def test_unknown_names_are_answered_with_near_ones(toy):
    found = checks.discover(toy("holds", "violated", "slow"))
    assert list(verify.select(found, ["slow", "holds", "slow"])) == ["holds", "slow"]
    assert list(verify.select(found, [])) == list(found)
    with pytest.raises(ValueError, match="one like holds, violated, got 'hold'"):
        verify.select(found, ["hold"])
    with pytest.raises(ValueError, match="one of holds, slow, violated, got 'zzz'"):
        verify.select(found, ["zzz"])


def test_graded_controls_are_kept_like_other_pieces_and_do_not_depend_on_the_workers(toy, tmp_path):
    package = toy("graded", "blind", "grade-raises", "grade-harms")
    first, events = run(package, tmp_path / "cache", workers=2)
    assert events[-1].done == events[-1].total == 4 * 6 + 5
    assert first["graded"].grades[0].noticed == 0.7
    assert first["grade-raises"].reason == "in the grade 'the share': grade 0: RuntimeError: too little"
    assert "expected a claim that stands with 'the share' times 1" in first["grade-harms"].reason
    second, events = run(package, tmp_path / "cache")
    assert events[0].done == events[0].total - 2  # the two that failed are made again
    assert [second[name].grades for name in ("graded", "blind")] == [first[name].grades for name in ("graded", "blind")]
    assert {name: r.status for name, r in second.items()} == {name: r.status for name, r in first.items()}


def check_result(claim, control):
    check = Check("c", "C.", "S", (), "s", "K.", {"quick": 1, "full": 1}, lambda *_: {}, lambda *_: None)
    found = [None if v is None else Evidence(1, v[0], Verdict(*sorted(v), 0.0)) for v in (claim, control)]
    return CheckResult(check, *(Result(e, 1, 0, 0.0, None if e else "broke") for e in found))


VALUES = st.none() | st.tuples(st.floats(-2, 2), st.floats(-2, 2))


@given(VALUES, VALUES)
def test_a_claim_passes_only_if_it_holds_and_its_control_is_violated(claim, control):
    result = check_result(claim, control)
    outcomes = [None if e is None else e.verdict.outcome for e in (result.claim.evidence, result.control.evidence)]
    assert result.passed == (outcomes == [Outcome.HOLDS, Outcome.VIOLATED])
    assert bool(result.reason) == (not result.passed)
    assert (result.status is Status.ERROR) == (None in outcomes)
    if None not in outcomes:
        # Whatever the control says, a refuted claim is never called anything better.
        assert (result.status is Status.VIOLATED) == (outcomes[0] is Outcome.VIOLATED)
        if outcomes[1] is not Outcome.VIOLATED:
            assert result.status in (Status.VIOLATED, Status.UNPROVEN)


def test_results_cannot_be_changed_after_the_fact():
    with pytest.raises(dataclasses.FrozenInstanceError):
        check_result(None, None).claim = None


def test_a_sequential_claim_goes_on_until_it_decides_and_resumes_there(toy, tmp_path):
    package, cache = toy("sequential", "undecided"), tmp_path / "cache"
    first, events = run(package, cache)
    assert [first[name].status for name in ("sequential", "undecided")] == [Status.HOLDS, Status.INCONCLUSIVE]
    sizes = [first[name].claim.evidence.n for name in ("sequential", "undecided")]
    assert sizes == [6, 4]  # two at a time from two, or at most four
    assert events[-1].done == events[-1].total
    folder = next(cache.glob("*/quick/sequential"))
    (folder / "claim-verdict.json").unlink()
    (folder / "claim-00005.json").unlink()
    second, events = run(package, cache)
    assert second["sequential"].claim.evidence.n == 5  # what is there is judged before more is made
    fresh, _ = run(package, cache, fresh=True)
    assert numbers(fresh) == numbers(first)
    check = checks.discover(package)["sequential"]
    assert check.run("quick").n == 5 and check.run("quick", broken=True).n == 2


@pytest.mark.parametrize("name", ["linear_operator", "clarabel", "numba", "casadi", "pybullet", "torch"])
def test_the_fingerprint_follows_the_versions_of_what_the_checks_run_on(toy, monkeypatch, name):
    """Pieces of a filter that an older numba had compiled, or of an older solver, were kept as if made now."""
    package, version = toy("holds"), importlib.metadata.version
    before = provenance.fingerprint(package)
    monkeypatch.setattr(importlib.metadata, "version", lambda given: "0.0" if given == name else version(given))
    assert provenance.fingerprint(package) != before


def test_what_results_are_kept_under_follows_the_bodies_of_bullet_plants(toy, tmp_path, monkeypatch):
    """With another mass in the pendulum's file, pieces and experiments counted as made of these sources."""
    package, root = toy("holds"), tmp_path / "gpsafe"
    (root / "systems").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    body = root / "systems/pendulum.urdf"
    body.write_text("<robot/>")
    monkeypatch.setattr(provenance.gpsafe, "__file__", str(root / "__init__.py"))
    before = provenance.fingerprint(package), provenance.code(package)
    body.write_text("<robot name='heavier'/>")
    after = provenance.fingerprint(package), provenance.code(package)
    assert None not in before and all(one != other for one, other in zip(before, after, strict=True))
