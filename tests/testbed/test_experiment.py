"""Experiments: pieces are whole or absent, runs go on after a stop, reports see stored results only."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import seeds
from toy_experiment import module

from gpsafe.cli import experiments
from gpsafe.cli import main as cli
from gpsafe.cli.common import UsageError
from gpsafe.testbed import experiment
from gpsafe.testbed.experiment import Experiment, Mismatch, Piece, Record, Report, Table, load, run_seed
from gpsafe.testbed.experiment_report import markdown, write
from gpsafe.testbed.experiment_store import Folder, as_plain, revive

ABOUT = {"command": "test", "started_at": "2026-01-01T00:00:00+00:00", "git_revision": "a" * 40, "git_dirty": False}


def compute(toy: Experiment, seed: int = 0, results: str = "results", about=ABOUT, **arguments) -> Record:
    folder = Path(results) / toy.name / str(seed)
    return run_seed(toy, toy.arguments(**arguments), seed, folder=folder, budget="quick", about=about)


def files(folder: Path | str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def edit(home: Path) -> None:
    """Another source of the toy, to the same effect."""
    with (home / "toy_growth.py").open("a") as file:
        file.write("# another word\n")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
rows = st.lists(st.dictionaries(st.text(max_size=5), scalars, max_size=3), max_size=3)


# ------------------------------------------------------------------------------------------ pieces
def test_a_piece_keeps_unfinished_work_until_it_is_stored_and_other_code_does_not_go_on_with_it(tmp_path):
    record = Record(tmp_path / "0", code="one")

    def stopped() -> Piece:
        record.scratch("a/b").mkdir(parents=True)
        (record.scratch("a/b") / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.piece("a/b", stopped)
    assert not (Record(tmp_path / "0", code="two").scratch("a/b") / "half").exists()
    again = Record(tmp_path / "0", code="one")
    assert (again.scratch("a/b") / "half").exists()
    again.piece("a/b", lambda: Piece([{"x": 1}]))
    assert not again.scratch("a/b").exists()


def test_unfinished_work_of_other_arguments_or_before_a_fresh_start_is_not_gone_on_with(toy, tmp_path):
    begun: list[bool] = []

    def run(arguments, seed, record):
        half = record.scratch("k") / "half"
        begun.append(half.exists())
        half.parent.mkdir(parents=True, exist_ok=True)
        half.touch()
        raise KeyboardInterrupt

    stopped, home = replace(toy, run=run), tmp_path / "0"
    for episodes, options in ((3, {}), (3, {}), (3, {"fresh": True}), (4, {"fresh": True}), (5, {})):
        if episodes == 5:
            (home / "config.json").unlink()  # then nothing says whose work it is
        with pytest.raises(KeyboardInterrupt):
            run_seed(stopped, toy.arguments(episodes=episodes), 0, folder=home, about={}, **options)
    assert begun == [False, True, False, False, False]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows, seeds(), st.sampled_from([torch.float64, torch.float32, torch.int64, torch.bool]))
def test_a_piece_reads_back_as_it_was_returned(tmp_path, rows, seed, dtype):
    shutil.rmtree(tmp_path / "0", ignore_errors=True)
    tensor = (8 * torch.randn(3, 0 if seed % 5 == 0 else 2, generator=torch.Generator().manual_seed(seed))).to(dtype)
    first = Record(tmp_path / "0").piece("a/b", lambda: Piece(rows, {"t": tensor, "view": tensor.mT}))
    second = Record(tmp_path / "0").piece("a/b", lambda: pytest.fail("computed again"))
    for piece in (first, second):
        assert repr(piece.rows) == repr(rows)  # repr: NaN is not itself
        assert piece.tensors["t"].dtype == dtype and torch.equal(piece.tensors["t"], tensor)
        assert torch.equal(piece.tensors["view"], tensor.mT)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["json", "pt"]), st.integers(0, 10**6), st.booleans())
def test_a_damaged_piece_counts_as_absent_and_is_made_again(tmp_path, suffix, place, cut):
    shutil.rmtree(tmp_path / "0", ignore_errors=True)
    good = Piece([{"x": 0.5}], {"t": torch.arange(4.0)})
    Record(tmp_path / "0").piece("a", lambda: good)
    file = tmp_path / "0" / "pieces" / f"a.{suffix}"
    data = file.read_bytes()
    place %= len(data)
    file.write_bytes(data[:place] if cut else b"\0" + data[1:])
    record = Record(tmp_path / "0")
    again = record.piece("a", lambda: good)
    assert record.reused == 0 and len(record.notes) == 1 and str(file) in record.notes[0]
    assert (again.rows == good.rows and file.read_bytes() == data) or suffix == "json"
    assert Record(tmp_path / "0").piece("a", lambda: pytest.fail("computed again")).rows == good.rows


def test_control_an_undamaged_file_of_other_work_is_not_taken(toy, tmp_path):
    """A piece of another seed or other arguments, copied in whole, is recognised."""
    compute(toy, 0), compute(toy, 1)
    shutil.copytree("results/toy-growth/1/pieces", "results/toy-growth/0/pieces", dirs_exist_ok=True)
    record = compute(toy, 0)
    assert record.reused == 0 and all("other work" in note for note in record.notes)
    assert compute(toy, 0).reused == 3


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", "a//b", ".a", "a b", "a\\b"])
def test_a_key_that_leaves_the_folder_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match="key of a piece"):
        Record(tmp_path).piece(key, Piece)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (Piece([{"x": torch.zeros(2)}]), "a scalar in column 'x'"),
        (Piece([{"x": object()}]), "got object"),
        (Piece((), {"t": [1.0]}), "a tensor in 't'"),  # pyright: ignore[reportArgumentType]
        ([{"x": 1}], "expected a Piece"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(tmp_path, piece, expected):
    with pytest.raises(ValueError, match=expected):
        Record(tmp_path).piece("a", lambda: piece)
    assert files(tmp_path) == {}


def test_a_key_asked_for_twice_is_an_error(tmp_path):
    record = Record(tmp_path)
    record.piece("a", Piece)
    with pytest.raises(ValueError, match="'a' again"):
        record.piece("a", Piece)


# --------------------------------------------------------------------------------------- arguments
class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    x: float = 1.0


@dataclass(frozen=True)
class Rich:
    path: Path = Path("a")
    colour: Colour = Colour.RED
    inner: Inner = Inner()
    table: tuple[tuple[float, ...], ...] = ((1.0, 2.0), (math.inf,))
    limit: float = math.inf
    maybe: float | None = None


@given(st.floats(allow_nan=False), st.lists(st.lists(st.floats(allow_nan=False))), st.none() | st.floats(-5, 5))
def test_arguments_survive_json(x, table, maybe):
    given = Rich(Path("b/c"), Colour.RED, Inner(x), tuple(map(tuple, table)), -x, maybe)
    assert revive(Rich, json.loads(json.dumps(as_plain(given), allow_nan=False))) == given


def test_arguments_of_another_shape_are_refused_by_name():
    with pytest.raises(ValueError, match="others: new"):
        revive(Inner, {"x": 1.0, "new": 2})
    with pytest.raises(ValueError, match="others: x"):
        revive(Inner, {})


def test_an_experiment_is_checked_when_it_is_made(toy):
    for change, expected in [
        ({"name": "Toy Growth"}, "lower-case words"),
        ({"arguments": dict}, "frozen dataclass"),
        ({"budgets": {"quick": toy.arguments()}}, "budgets for smoke, quick, full"),
        ({"budgets": dict.fromkeys(("smoke", "quick", "full"), 3)}, "Arguments for the smoke budget"),
        ({"seeds": {"smoke": 0, "quick": 1, "full": 1}}, "seeds of the smoke budget >= 1"),
    ]:
        with pytest.raises(ValueError, match=expected):
            replace(toy, **change)


# -------------------------------------------------------------------------------------------- runs
def test_a_run_leaves_what_the_contract_says_and_loads(toy):
    record = compute(toy)
    assert record.keys == [f"grown/episode-{k:02d}" for k in range(3)] and record.reused == 0
    folder = Path("results/toy-growth/0")
    assert {p.name for p in folder.iterdir()} == {".lock", "config.json", "provenance.json", "done.json", "pieces"}
    (run,), left_out = (stored := load(toy, "results")).runs, stored.left_out
    assert left_out == () and run.seed == 0 and run.arguments == toy.arguments() and run.arguments.rates[1] == math.inf
    assert list(run.pieces) == record.keys and run.provenance["revisions"] == ["a" * 12]
    assert run.provenance["sessions"][0]["seconds"] > 0
    expected = torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(run.pieces["grown/episode-02"].tensors["noise"], expected)
    assert run.pieces["grown/episode-02"].rows[0] == {"k": 2, "mean": float(expected.mean()), "far": math.inf}


def test_the_same_command_again_changes_nothing(toy):
    compute(toy)
    before = files("results")
    assert compute(toy).reused == 3
    assert files("results") == before


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_never_stopped(toy, package, tmp_path):
    (tmp_path / package / "raises").touch()
    with pytest.raises(ArithmeticError):
        compute(toy, fault="raises")
    assert load(toy, "results").left_out == ("seed 0: not finished",) and load(toy, "results").runs == ()
    (tmp_path / package / "raises").unlink()
    assert compute(toy, fault="raises").reused == 1
    compute(toy, results="whole", fault="raises")
    stopped, whole = load(toy, "results").runs[0], load(toy, "whole").runs[0]
    assert [p.rows for p in stopped.pieces.values()] == [p.rows for p in whole.pieces.values()]
    assert len(stopped.provenance["sessions"]) == 2


def test_a_killed_process_loses_only_the_piece_in_progress(toy, package, tmp_path):
    home = tmp_path / package
    (home / "waits").touch()
    code = (
        f"import sys; sys.path[:0] = {[str(tmp_path), str(Path(experiment.__file__).parents[2])]!r}\n"
        f"from {package}.toy_growth import EXPERIMENT, Arguments\n"
        "from gpsafe.testbed.experiment import run_seed\n"
        "run_seed(EXPERIMENT, Arguments(fault='waits'), 0, folder='results/toy-growth/0', about={})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not (home / "waiting").exists():  # it is inside the second piece now
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Path("results/toy-growth/0/done.json").exists()
    (home / "waits").unlink()
    record = compute(toy, fault="waits")
    assert record.reused == 1 and record.notes == [] and len(load(toy, "results").runs) == 1


def test_other_arguments_are_refused_by_name_unless_fresh(toy):
    compute(toy)
    before = files("results")
    with pytest.raises(Mismatch, match=r"episodes = 3 there, 4 now.*--fresh"):
        compute(toy, episodes=4)
    assert files("results") == before
    folder = Path("results/toy-growth/0")
    (folder / "mine.txt").touch()
    assert run_seed(toy, toy.arguments(2), 0, folder=folder, about=ABOUT, fresh=True).reused == 0
    assert list(load(toy, "results").runs[0].pieces) == ["grown/episode-00", "grown/episode-01"]
    assert (folder / "mine.txt").exists()  # what is not ours stays


def test_a_torn_config_is_written_anew_and_the_pieces_stay(toy):
    compute(toy)
    Path("results/toy-growth/0/config.json").write_text('{"seed')
    assert load(toy, "results").runs == ()
    assert compute(toy).reused == 3 and len(load(toy, "results").runs) == 1


# ----------------------------------------------------------------------------------------- reports
def test_a_report_draws_stored_results_only(toy, tmp_path):
    compute(toy, 0), compute(toy, 1)

    def never(*_):
        pytest.fail("a report must not compute")

    stored = load(replace(toy, run=never), "results")
    written = write(replace(toy, run=never), stored, "out")
    assert sorted(p.name for p in written) == ["growth.pdf", "growth.png", "index.md", "means.csv", "means.md"]
    with open("out/means.csv") as file:
        table = list(csv.reader(file))
    numbers = {(int(seed), int(k)): float(mean) for seed, k, mean, _ in table[1:]}
    for run in stored.runs:
        for k, piece in enumerate(run.pieces.values()):
            assert numbers.pop((run.seed, k)) == piece.rows[0]["mean"] == float(piece.tensors["noise"].mean())
    assert numbers == {}
    first = files("out")
    write(toy, stored, "out")
    assert files("out") == first  # nothing in it depends on when it was drawn
    page = first["index.md"].decode()
    assert "seeds: 0, 1" in page and "k\\|n" in page and "∞" in page and "Warning" not in page


def test_a_seed_with_a_missing_or_foreign_piece_is_left_out_by_name(toy):
    for seed in range(4):
        compute(toy, seed)
    Path("results/toy-growth/1/pieces/grown/episode-01.pt").unlink()
    Path("results/toy-growth/2/pieces/grown/episode-01.json").unlink()
    Path("results/toy-growth/3/config.json").write_text("[]")
    stored = load(toy, "results", seeds=(0, 1, 2, 3, 7))
    assert [run.seed for run in stored.runs] == [0]
    reasons = "\n".join(stored.left_out)
    assert re.search(r"seed 7: no results\n.*seed 1: .*missing.*\n.*seed 2: .*missing\n.*seed 3: .*config", reasons)
    assert "seed 7: no results" in write(toy, stored, "out")[0].read_text()


def test_mixed_arguments_and_code_are_said(toy, package, tmp_path):
    compute(toy, 0)
    compute(toy, 1, episodes=2, about=ABOUT | {"git_revision": "b" * 40, "git_dirty": True})
    page = write(toy, load(toy, "results"), "out")[0].read_text()
    assert "Seed 1 has other arguments than seed 0: episodes = 3 there, 2 now" in page
    assert f"revisions (+ marks uncommitted changes somewhere in the checkout): {'a' * 12}, {'b' * 12}+" in page
    assert "different code" not in page  # two revisions with the same sources are the same code
    assert (
        write(toy, load(toy, "results", "results", Path("results")), "out")[0].read_text() == page
    )  # each folder once
    Path("results").rename("first")
    compute(toy, 1, episodes=4), compute(toy, 0, episodes=4)
    both = load(toy, "first", "results", seeds=(0, 1, 5))
    assert [(run.seed, run.arguments.episodes) for run in both.runs] == [(0, 3), (1, 2), (0, 4), (1, 4)]
    assert both.left_out == ("seed 5: no results",)
    assert (
        "Seeds 0, 1 have other arguments than seed 0: episodes = 3 there, 4 now"
        in write(toy, both, "out")[0].read_text()
    )
    shutil.rmtree("results"), Path("first").rename("results")
    edit(tmp_path / package)
    compute(importlib.reload(module(package)).EXPERIMENT, 2)
    codes = sorted({code for run in load(toy, "results").runs for code in run.provenance["codes"]})
    page = write(toy, load(toy, "results"), "out")[0].read_text()
    assert len(codes) == 2 and f"different code: {codes[0]}, {codes[1]} (revisions" in page


def test_a_report_that_is_none_or_has_bad_names_is_refused(toy):
    compute(toy)
    stored = load(toy, "results")
    for report, expected in [
        (lambda runs: None, "expected a Report"),
        (lambda runs: Report(tables={"a/b": Table((), ())}), "file names"),
        (lambda runs: Report(tables={"index": Table((), ())}), "file names"),
    ]:
        with pytest.raises(ValueError, match=expected):
            write(replace(toy, report=report), stored, "out")
    with pytest.raises(ValueError, match="rows of 2 cells"):
        Table(("a", "b"), [(1,)])


def test_cells_of_a_table():
    table = Table(("a",), [(x,) for x in (1, 2.0, 1 / 3, 1e-9, None, math.nan, True, "x|y", torch.tensor(0.25))])
    cells = [line.strip("| ") for line in markdown(table).splitlines()[2:]]
    assert cells == ["1", "2", "0.3333", "1e-09", "", "NaN", "True", "x\\|y", "0.25"]


# ------------------------------------------------------------------------------------ command line
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run"], "expected the name of an experiment first; there are toy-growth"),
        (["run", "toy-grow"], "got 'toy-grow'; did you mean toy-growth"),
        (["run", "toy-growth", "--budget", "huge"], "'huge'.*'smoke', 'quick', 'full'"),
        (["run", "toy-growth", "--epsodes", "3"], "--epsodes.*did you mean --episodes"),
        (["run", "toy-growth", "--episodes", "many"], "--episodes.*many"),
        (["run", "toy-growth", "--workers", "0"], "--workers: expected a number >= 1, got 0"),
        (["run", "toy-growth", "--seeds", "0", "-1"], "-1"),
        (
            ["run", "toy-growth", "--seeds", "9" * 20],
            f"--seeds: expected numbers >= 0 and below {2**62}, got {'9' * 20}",
        ),
        (["run", "toy-growth", "--results", "file"], "--results: expected a path that can be written"),
        (["bench", "xmpsk"], "expected one of xmpsc, got 'xmpsk'"),
        (["report"], "expected the name of an experiment first"),
        (
            ["report", "toy-growth"],
            "expected finished results in results/toy-growth, got nothing; gpsafe run toy-growth",
        ),
        (["report", "toy-growth", "--seeds", "3"], "got seed 3: no results"),
        (["report", "toy-growth", "--reslts", "x"], "did you mean --results"),
        (["report", "toy-growth", "--output", "file"], "--output: expected a path that can be written"),
    ],
)
def test_wrong_usage_is_one_clear_error_before_any_work(package, words, expected):
    Path("file").touch()
    with pytest.raises(UsageError, match=expected):
        getattr(experiments, words[0])(words[1:], "gpsafe", package=package)
    assert not Path("results").exists()


def test_help_lists_the_arguments_with_the_budgets_defaults(package, capsys):
    with pytest.raises(SystemExit) as stop:
        experiments.run(["toy-growth", "--budget", "full", "--help"], "gpsafe", package=package)
    out = capsys.readouterr().out
    assert not stop.value.code
    assert "Episodes of growth. (default: 9)" in out and "--workers" in out and "Noise that grows" in out
    assert cli.main(["run", "--help"]) == 0 == cli.main(["report", "--help"])


def test_list_names_experiments_and_broken_modules(package, capsys, tmp_path):
    assert experiments.run(["--list"], "gpsafe", package=package) == 0
    assert re.search("toy-growth +Noise that grows +1, 2, 4", capsys.readouterr().out)
    (tmp_path / package / "torn.py").write_text("EXPERIMENT = 1 / 0\n")
    assert experiments.run(["--list"], "gpsafe", package=package) == 1
    assert f"{package}.torn cannot be used: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_that_dies_loses_nothing_but_the_piece_in_progress(package, capsys, tmp_path):
    (tmp_path / package / "dies").touch()
    words = ["toy-growth", "--fault", "dies", "--seeds", "5", "--fresh"]
    assert experiments.run(words, "gpsafe run toy-growth", package=package) == 0
    assert "[1/1] seed 5: 3 pieces, 1 of them kept from before" in capsys.readouterr().out
    with pytest.raises(UsageError, match="fault = 'dies' there, '' now"):
        experiments.run(["toy-growth", "--seeds", "5"], "gpsafe", package=package)
    assert experiments.report(["toy-growth"], "gpsafe", package=package) == 0
    assert Path("results/toy-growth/report/growth.png").read_bytes()[:4] == b"\x89PNG"
    assert "`gpsafe run toy-growth`" in Path("results/toy-growth/report/index.md").read_text()


@pytest.mark.slow
def test_a_seed_that_raises_is_named_and_the_others_finish(package, capsys, tmp_path):
    (tmp_path / package / "raises").touch()
    assert experiments.run(["toy-growth", "--fault", "raises"], "gpsafe", package=package) == 1
    out = capsys.readouterr().out
    assert "seed 0 failed: ArithmeticError: no growth" in out and "seed 1 failed" in out
    assert "Traceback" in Path("results/toy-growth/worker.log").read_text()
    (tmp_path / package / "raises").unlink()
    assert experiments.run(["toy-growth", "--fault", "raises"], "gpsafe", package=package) == 0
    assert "seed 0: 3 pieces, 1 of them kept" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_runs_reports_and_prints_the_tables(package, capsys, monkeypatch):
    monkeypatch.setitem(experiments.BENCH, "xmpsc", "toy-growth")
    words = ["xmpsc", "--budget", "smoke", "--results", "elsewhere"]
    assert experiments.bench(words, "gpsafe bench xmpsc", package=package) == 0
    out = capsys.readouterr().out
    assert "[1/1] seed 0: 1 pieces" in out and "| seed | k\\|n | mean | far |" in out
    assert Path("elsewhere/toy-growth/report/index.md").exists()
    assert cli.main(["bench", "--help"]) == 0 and cli.main(["bench"]) == 2


def test_folder_names_are_seeds_only(toy):
    compute(toy)
    Path("results/toy-growth/report").mkdir()
    Path("results/toy-growth/x1").mkdir()
    assert [run.seed for run in load(toy, "results").runs] == [0]
    assert Folder(Path("results/toy-growth/9")).config() is None
