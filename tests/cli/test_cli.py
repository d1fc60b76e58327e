"""The command line: exit codes, one-line errors, readable tables, Ctrl-C and resuming."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gpsafe.cli import main as cli
from gpsafe.testbed import check as checks
from gpsafe.testbed import verify
from tests import toy_checks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    with toy_checks.importable(tmp_path, monkeypatch) as make:
        yield make


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["verify", "--only", "hold"], "--only: expected the name of a check, one like holds.*got 'hold'"),
        (["verify", "--only", ","], "--only: expected names"),
        (["verify", "--budget", "huge"], "'huge'.*'quick', 'full'"),
        (["verify", "--workers", "0"], "--workers: expected a number >= 1, got 0"),
        (["verify", "--workers", "many"], "--workers.*'many'"),
        (["verify", "--json", "."], "--json: expected a file name, got the folder"),
        (["verify", "--html", "file/below.html"], "--html: expected a path that can be written"),
        (["verify", "--json", "/proc/none/x.json"], "--json: expected a path that can be written"),
        (["verify", "--cache", "file"], "--cache: expected a path that can be written"),
        (["verify", "--json", "x", "--html", "./x"], "--html: expected another file than --json"),
        (["verify", "--html"], "--html"),
        (["verify", "--bogus"], "--bogus"),
        (["verify", "extra"], "extra"),
        (["verfy"], "'verfy'; did you mean verify"),
        (["compare", "--tasks", "nope"], "invalid choice 'nope' for argument '--tasks'. Expected one of"),
        (["compare", "--models"], "--models: expected names among 'gp', 'ensemble', got none"),
        (["zzz"], "expected one of the commands verify"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2_before_any_work(toy, capsys, words, expected):
    Path("file").touch()
    package = ["--package", toy("holds", "violated")] if words[0] == "verify" else []
    assert cli.main([*words[:1], *package, *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"error: .*{expected}.*\n", err)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), "got none"), (("holds", "holds"), "expected unique check names")],
)
def test_packages_without_usable_checks_are_one_line(toy, capsys, names, expected):
    assert cli.main(["verify", "--package", toy(*names)]) == 2
    assert expected in capsys.readouterr().err
    assert cli.main(["verify", "--package", "no_such_package"]) == 2
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    assert "verify" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "usage: gpsafe COMMAND" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", "--help"])
    assert stop.value.code == 0
    assert "--fresh" in capsys.readouterr().out


def test_list_tells_the_checks_and_runs_nothing(toy, capsys):
    assert cli.main(["verify", "--package", toy("holds", "unbounded"), "--list"]) == 0
    out = capsys.readouterr().out
    assert "holds" in out
    assert "1 + 2" in out
    assert not Path("results").exists()


def test_a_run_prints_the_table_writes_both_files_and_fails_if_a_claim_does(toy, capsys):
    package = toy("holds", "violated", "unproven", "unclear", "raises")
    words = ["verify", "--package", package, "--json", "out/r.json", "--html", "out/r.html", "--workers", "1"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "30 pieces on 1 workers" in out
    assert "UNPROVEN unproven: its control came out HOLDS, not VIOLATED, so the check could not fail\n" in out
    assert "! missed (HOLDS)" in out
    assert "ERROR raises: piece 1: RuntimeError: not positive definite\n" in out
    assert "1 of 5 claims hold, each with its control caught." in out
    document = json.loads(Path("out/r.json").read_text())
    assert len(document["checks"]) == 5
    assert document["environment"]["command"].startswith("gpsafe verify --package")
    assert Path("out/r.html").read_text().startswith("<!doctype html>")
    # Again, only what holds: all pieces are kept, so the answer is at once, and the exit code is 0.
    assert cli.main(["verify", "--package", package, "--only", "holds,holds", "--only", "holds"]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 kept from an earlier run" in out
    assert "The claim holds, and its control, one assumption broken, is caught." in out


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_is_readable(toy, width):
    package = toy("holds", "violated", "unproven", "unclear", "raises", "unbounded")
    results = verify.verify(checks.discover(package), package=package, workers=0)
    console = Console(file=io.StringIO(), width=width)
    console.print(cli.results_table(results, width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for result in results:
        row = next(line for line in lines if line.split()[:1] == [result.check.name])
        assert result.status in row
        assert {"VIOLATED": "caught", None: "ERROR"}.get(result.control_outcome, "missed") in row
    assert lines[3].split() == ["FURTHER", "CLAIMS"]
    assert "Toy 2024, Thm 1" in console.file.getvalue()
    assert "…" not in console.file.getvalue()


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_keeps_finished_pieces_and_the_next_run_goes_on(toy, capsys):
    package = toy("slow")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = ["verify", "--package", package, "--workers", "1", "--html", "r.html"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpsafe.cli.main", *words],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(Path().glob("results/verify/*/quick/slow/*.json"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in out + err
    said = re.fullmatch(
        r"gpsafe verify: stopped; (\d+) of 8 pieces are kept in \S+; the same command \(.*\) goes on\n", err
    )
    assert said
    assert 1 <= int(said[1]) < 8
    assert not Path("r.html").exists()
    kept = len(list(Path().glob("results/verify/*/quick/slow/*-0*.json")))
    assert kept >= int(said[1])

    assert cli.main(words) == 0
    assert f"8 pieces on 1 workers; {kept} of 8 kept from an earlier run" in capsys.readouterr().out
    assert Path("r.html").exists()


def test_ctrl_c_before_the_first_piece_and_in_commands_is_exit_code_130(toy, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "verify", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["verify", "--package", toy("holds")]) == 130
    assert "nothing was finished yet" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "gpsafe.cli.main", "--help"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
