"""`scripts/mutate.py` on a toy package: what is killed, what survives, what is declared, and that a stopped run goes on."""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpsafe.verdict import clopper_pearson

SCRIPT = Path(__file__).parent.parent / "scripts" / "mutate.py"
BARE = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they cost more to import than the toy to test

SOURCE = '''
"""Toy."""
from dataclasses import dataclass
from functools import cache

HALF = 0.5


def total(a, b):
    """a + b - 1 (no mutant of words)."""
    return a + b


def unseen(a):
    return a - 7.0


def weak(a):
    return a <= 5.0


def countdown(n):
    while n > 0:
        n -= 1
    return n


@cache
def halved(a):
    return HALF * a


@dataclass(frozen=True, slots=True)
class Scaled:
    by: float = 3.0

    def of(self, x):
        def inner(y):
            return self.by * y

        return inner(x)


def of_tuple(values):
    return max(values) if len(values) > 0 else None
'''

TESTS = """
import pytest
from toy.numbers import Scaled, countdown, halved, of_tuple, total, weak

AT_COLLECTION = halved(4.0)

@pytest.fixture(scope="module")
def shared():
    return of_tuple((1, 3, 2)), of_tuple(())

def test_total():
    assert total(2, 3) == 5

def test_weak():
    assert weak(1.0) and not weak(9.0)

def test_countdown():
    assert countdown(2) == 0

def test_halved():
    assert AT_COLLECTION == 2.0

def test_scaled():
    assert Scaled().of(2.0) == 6.0

def test_shared(shared):
    assert shared[0] == 3

def test_shared_again(shared):
    assert shared[1] is None

def test_broken_without_any_mutant():
    assert total(1, 1) == 3
"""

SETTINGS = """
[tool.pytest.ini_options]
pythonpath = ["."]
addopts = ["--import-mode=importlib", "--doctest-modules"]

[tool.mutation]
tests = ["tests", "toy"]
areas = [{ source = "toy", tests = ["tests"] }]
"""

DECLARED = """
[[equivalent]]
file = "toy/numbers.py"
function = "weak"
operator = "compare"
after = "a < 5.0"
reason = "nobody asks at 5"
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    for name, text in {
        "toy/__init__.py": "", "toy/numbers.py": SOURCE, "tests/test_numbers.py": TESTS, "pyproject.toml": SETTINGS,
        "scripts/mutation_equivalent.toml": DECLARED,
    }.items():  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def scripts():
    """The modules of the tool."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield {name: importlib.import_module(name) for name in ("mutate", "mutation_project", "mutation_report")}
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_samples_are_nested_equal_for_every_file_and_no_larger_for_old_survivors(toy, scripts, tmp_path):
    (toy / "toy" / "small.py").write_text("def half(a):\n    return a / 2\n")
    project = scripts["mutation_project"].Project.read(toy, [])
    (toy / "toy" / "small.py").unlink()
    every = {path: {m.id for m in source.mutants} for path, source in project.sources.items()}

    def draw(per_file=None, sample=None, only=(), seed=0, check=False):
        options = argparse.Namespace(
            report=str(tmp_path), budget_minutes=1.0, operator=[], sample_per_file=per_file, sample=sample, seed=seed,
            only=only, check_equivalent=check,
        )  # fmt: skip
        run = scripts["mutate"].Run(project, options)
        run.rows = {i: {"status": "survived"} for i in every["toy/small.py"]}
        return run, run.chosen()

    def sizes(drawn):
        return [len(drawn & every[f"toy/{name}.py"]) for name in ("numbers", "small")]

    small = len(every["toy/small.py"])
    assert 2 < small < 8 < len(every["toy/numbers.py"])
    few, chosen = draw(2)
    assert sizes(few.drawn) == [2, 2] and {m.id for m in chosen} == few.drawn | every["toy/small.py"]
    more, _ = draw(8)
    assert sizes(more.drawn) == [8, small] and few.drawn < more.drawn and more.drawn != draw(8, seed=1)[0].drawn
    assert (
        sum(sizes(draw(sample=5)[0].drawn)) == 5 and draw()[0].drawn == every["toy/numbers.py"] | every["toy/small.py"]
    )
    run, chosen = draw(0, check=True)
    assert not run.drawn and {m.id for m in chosen} - every["toy/small.py"] == {
        m.id for m in project.sources["toy/numbers.py"].mutants if m.after == "a < 5.0"
    }
    run, chosen = draw(4, only=["toy/small.py", "toy"])
    files = [m.file for m in sorted(chosen, key=run._turn)]
    assert files == ["toy/small.py"] * small + ["toy/numbers.py"] * 4


def test_the_report_counts_the_sample_by_module_and_bounds_its_rate(scripts, capsys):
    outcomes = [("a", "killed", "killed")] * 2 + [("a", "killed", "survived"), ("a", "survived", "survived")]
    outcomes += [("a", "equivalent", "survived"), ("b", "killed", "killed"), ("b", "survived", "survived")]
    rows = [
        {"id": str(i), "file": file, "status": status, "first": first, "line": 1, "function": "f", "operator": "sign",
         "reason": "r", "text": "t", "before": "b", "after": "a"} for i, (file, status, first) in enumerate(outcomes)
    ]  # fmt: skip
    found = scripts["mutation_report"].summary(rows, set("012345"), {"a": 40, "b": 2, "c": 5})  # the last is not drawn
    assert found["modules"] == {
        "a": {"killed": 3, "survived": 1, "equivalent": 1, "sampled": 5, "total": 40},
        "b": {"killed": 1, "survived": 0, "equivalent": 0, "sampled": 1, "total": 2},
        "c": {"killed": 0, "survived": 0, "equivalent": 0, "sampled": 0, "total": 5},
    }
    assert [found[key] for key in ("killed", "survived", "equivalent", "sampled", "total")] == [4, 1, 1, 6, 47]
    assert found["by_size"] == pytest.approx((40 * 0.75 + 2 * 1.0) / 42)
    for name, killed in (("rate", 4), ("first", 3)):
        assert (found[name]["killed"], found[name]["judged"]) == (killed, 5)
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(clopper_pearson(killed, 5, 0.95), rel=1e-12)
    large = scripts["mutation_report"].rate(1450, 1500)
    assert (large["low"], large["high"]) == pytest.approx(clopper_pearson(1450, 1500, 0.95), rel=1e-10)
    assert scripts["mutation_report"].rate(5, 5)["high"] == 1.0 and scripts["mutation_report"].rate(0, 5)["low"] == 0.0
    scripts["mutation_report"].show(found | {"rows": rows}, ["a"])
    said = capsys.readouterr().out
    assert "a:1 f [sign] r" in said and "b:1 f" not in said and " 75.0%  a\n" in said and " 80.0%  all\n" in said
    assert "not equivalent, killed: 4 of 5, 95 % interval 28.4% to 99.5%" in said and "number of mutants: 76.2%" in said


OPERATORS = ("sign", "constant", "drop-term", "drop-factor", "opposite", "compare", "drop-statement")


def command(root, *options):
    """A call that makes about half of all mutants: every kind of outcome, at half the cost."""
    return [
        sys.executable, str(SCRIPT), "--root", str(root), "--grace", "0.1", "--operator", *OPERATORS, *options,
    ]  # fmt: skip


def mutate(root, *options):
    """Output and the rows by (function, before, after)."""
    done = subprocess.run(command(root, *options), env=BARE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((root / "report" / "mutation.json").read_text())
    return done.stdout, report, {(r["function"], r["before"], r["after"]): r for r in report["rows"]}


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_every_mutant_gets_its_status(toy):
    with subprocess.Popen(command(toy), env=BARE, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if line.startswith("[2/"):
                break
        run.send_signal(signal.SIGINT)
    early = json.loads((toy / "report" / "mutation.json").read_text())["rows"]
    assert len(early) >= 2

    output, report, rows = mutate(toy)
    assert f"area: {len(rows) - sum(r['status'] != 'equivalent' for r in early)} mutants" in output or len(early) > 2
    kept = {row["id"]: row for row in report["rows"]}
    assert all(kept[row["id"]] == row for row in early)  # results of the stopped run, not made again

    # killed, each by the test that executes its line, also through a cache filled at collection, a class body, a shared fixture
    assert rows["total", "a + b", "a - b"]["killed_by"] == "tests/test_numbers.py::test_total"
    assert rows["", "0.5", "1.0"]["killed_by"].endswith("test_halved")
    assert rows["halved", "HALF * a", "a"]["killed_by"].endswith("test_halved")
    assert rows["", "3.0", "6.0"]["killed_by"].endswith("test_scaled")
    assert rows["Scaled.of", "self.by * y", "y"]["killed_by"].endswith("test_scaled")
    assert rows["of_tuple", "max", "min"]["killed_by"].endswith("test_shared")
    assert rows["of_tuple", "len(values) > 0", "len(values) >= 0"]["status"] == "killed"
    endless = rows["countdown", "n -= 1", "pass"]
    assert (endless["status"], endless["reason"]) == ("killed", "timeout")
    # survivors and the declared one
    assert rows["unseen", "a - 7.0", "a"]["status"] == "survived"
    assert rows["unseen", "a - 7.0", "a"]["reason"] == "no test runs its line"
    assert rows["weak", "5.0", "2.5"]["status"] == "survived"
    assert rows["weak", "a <= 5.0", "a < 5.0"]["status"] == "equivalent"
    # a test that fails by itself proves nothing
    assert "fails without any mutant, left out: tests/test_numbers.py::test_broken" in output or len(early) >= 2
    assert not any("test_broken" in (row["killed_by"] or "") for row in report["rows"])
    assert not any("mutant of words" in row["before"] for row in report["rows"])
    counts = {s: sum(r["status"] == s for r in report["rows"]) for s in ("killed", "survived", "equivalent")}
    assert counts == {s: report[s] for s in counts}

    # Another test: survivors are tried again, the killed stand. Lines above: identities stand.
    with (toy / "tests" / "test_numbers.py").open("a") as file:
        file.write(
            "\n\ndef test_edge():\n    from toy.numbers import unseen\n    assert weak(5.0) and unseen(7.0) == 0.0\n"
        )
    source = toy / "toy" / "numbers.py"
    source.write_text(source.read_text().replace("HALF = 0.5", "HALF = 0.5\nOTHER = 1\n\n"))
    output, _, after = mutate(toy, "--check-equivalent")
    assert "declared equivalent, and killed" in output
    assert after["weak", "a <= 5.0", "a < 5.0"]["status"] == "killed"
    assert after["unseen", "a - 7.0", "a"]["killed_by"].endswith("test_edge")
    assert after["total", "a + b", "a - b"]["seconds"] == rows["total", "a + b", "a - b"]["seconds"]
