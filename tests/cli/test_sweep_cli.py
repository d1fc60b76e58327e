"""``gpsafe sweep``: what it may be asked, in a file or in words, and what is wrong in one line."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy_sweep
from hypothesis import given
from hypothesis import strategies as st
from toy_sweep import PACKAGE, run, table, toy

from gpsafe.cli import main as cli
from gpsafe.cli import sweep_plan
from gpsafe.cli.common import UsageError
from gpsafe.testbed import sweep_pools


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_pools, "processes", toy_sweep.here)
    with toy_sweep.importable(tmp_path, monkeypatch) as found:
        yield found


def planned(text: str) -> list[tuple[object, int]]:
    Path("plan.toml").write_text(text, encoding="utf-8")
    return [(pickle.loads(cell.arguments), cell.seed) for cell in sweep_plan.from_file(Path("plan.toml"), PACKAGE)]


HEAD = 'experiment = "toy-sweep"\n'


def test_a_file_and_words_mean_the_same_cells(home):
    Arguments = toy().arguments
    found = planned(
        f'{HEAD}budget="smoke"\nseeds=["0-1", 7]\n[arguments]\non=true\nmaybe=nan\nword="é \\"q\\" --x, 1"\n'
        "[grid]\nrate=[1, -0.5, inf]\nrates=[[], [1, -inf]]"
    )
    assert len(found) == 18 and [seed for _, seed in found[:3]] == [0, 1, 7]
    first, last = found[0][0], found[-1][0]
    assert repr(first) == repr(Arguments(1, 1.0, 'é "q" --x, 1', (), float("nan"), True))
    assert repr(last) == repr(Arguments(1, float("inf"), 'é "q" --x, 1', (1.0, -float("inf")), float("nan"), True))
    experiment = toy()
    words = ["rate=1,-0.5,inf", 'rates=0.5 -1e-3,"2"', "word='a,b'", "maybe=None,nan", "on=True"]
    cells = sweep_plan.from_words(experiment, PACKAGE, Arguments(), words, ["3", "0-1"], "quick")
    assert len(cells) == 3 * 2 * 1 * 2 * 3
    one = pickle.loads(cells[-1].arguments)
    assert one.word == "a,b" and one.rates == (2.0,) and one.maybe != one.maybe and one.on is True
    assert [cell.seed for cell in cells[:3]] == [3, 0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("experiment = ", "plan.toml: expected a TOML file, got Invalid value"),
        ("", "expected the name of an experiment as experiment, got none"),
        ("experiment = 3", "expected the name of an experiment as experiment, got 3"),
        ('experiment = "toy-swep"', "expected an experiment among toy-sweep, got 'toy-swep'; did you mean toy-sweep"),
        (f"{HEAD}sedes = 3", "expected keys among experiment, .*got 'sedes'; did you mean seeds"),
        (f'{HEAD}budget = "huge"', "expected smoke, quick or full as budget, got 'huge'"),
        (f"{HEAD}seeds = 3", 'seeds: expected numbers >= 0 and ranges such as "0-9", got 3'),
        (f"{HEAD}seeds = []", "seeds: expected at least one, got none"),
        (f"{HEAD}seeds = [0, -1]", "seeds: expected numbers >= 0"),
        (f"{HEAD}seeds = [true]", "seeds: expected numbers >= 0"),
        (f'{HEAD}seeds = "9-0"', "seeds: expected numbers >= 0"),
        (f'{HEAD}seeds = ["0-3", 2]', "seeds: expected each once, got 2 twice"),
        (f"{HEAD}[grid]", "expected arguments with their values in grid, got an empty table"),
        (f"{HEAD}grid = 3", "expected a table of lists of values as grid, got 3"),
        (f"{HEAD}[grid]\nrate = []", r"a list of at least one value as grid.rate, got \[\]"),
        (f"{HEAD}[grid]\nrate = 1.0", "a list of at least one value as grid.rate, got 1.0"),
        (f"{HEAD}[grid]\nrats = [1]", "expected arguments of toy-sweep .*got 'rats'; did you mean rates"),
        (f"{HEAD}[arguments]\nbudget = 1", "expected arguments of toy-sweep .*got 'budget'"),
        (f'{HEAD}[grid]\nrate = ["fast"]', "grid.rate: expected a value that it takes, got 'fast'"),
        (f'{HEAD}[grid]\nrate = ["1.0"]', "grid.rate: expected values of its type, as 1.0, got '1.0'"),
        (f"{HEAD}[grid]\npieces = [1.5]", "grid.pieces: expected a value that it takes, got 1.5"),
        (f"{HEAD}[grid]\npieces = [true]", "grid.pieces: expected a value that it takes, got True"),
        (f"{HEAD}[grid]\nword = [3]", "grid.word: expected values of its type, as '3', got 3"),
        (f"{HEAD}[grid]\nrate = [[1.0]]", r"grid.rate: expected values of its type, as 1.0, got \[1.0\]"),
        (f"{HEAD}[grid]\nrates = [1.0]", r"grid.rates: expected values of its type, as \(1.0,\), got 1.0"),
        (f"{HEAD}[arguments]\nrate = 2020-01-01", "arguments.rate: expected a number, a string"),
        (f"{HEAD}[arguments]\nrate = 1.0\n[grid]\nrate = [1]", "expected each argument once, got 'rate' in both"),
        (
            f"{HEAD}[grid]\nrate = [1, 1.0]",
            "expected cells that differ, got one twice: toy-sweep at .*rate=1.0.*seed 0",
        ),
        (f"{HEAD}[grid]\nrate = [nan, nan]", "expected cells that differ, got one twice"),
        (f"{HEAD}[grid]\npieces = [1, 51]", "a value that it takes, got 51 .*expected pieces <= 50, got 51"),
        (f"sweep = 3\n{HEAD}", "expected either one sweep or .*experiment beside"),
        ('[[sweep]]\nexperiment="toy-sweep"\n[[sweep]]\nexperiment="toy-sweep"', "got one twice"),
        ('[[sweep]]\nexperiment="toy-sweep"\n[[sweep]]\nexperiment="x"', "plan.toml, sweep 2: expected an experiment"),
    ],
)
def test_a_wrong_file_is_one_line_and_nothing_is_done(home, text, expected):
    Path("plan.toml").write_text(text)
    with pytest.raises(UsageError, match=expected) as found:
        run("plan.toml")
    assert "plan.toml" in str(found.value) or "twice" in str(found.value)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nope"], "expected an experiment among toy-sweep, got 'nope'"),
        (["nope.toml"], "nope.toml: expected a TOML file, got No such file"),
        (["--grid", "a=1"], "expected the name of an experiment first"),
        (["toy-sweep", "--grid", "rate"], "--grid: expected ARGUMENT=VALUE,VALUE, got 'rate'"),
        (["toy-sweep", "--grid"], "--grid: expected ARGUMENT=VALUE,VALUE, got nothing"),
        (["toy-sweep", "--grid", "rate="], "--grid rate: expected values joined by commas"),
        (["toy-sweep", "--grid", "rate=1,,2"], "--grid rate: expected values joined by commas"),
        (["toy-sweep", "--grid", "rate=1,"], "--grid rate: expected values joined by commas"),
        (["toy-sweep", "--grid", "word='a"], "--grid word: expected values joined by commas"),
        (["toy-sweep", "--grid", "rate=x"], "--grid rate: expected a value that it takes, got 'x'"),
        (["toy-sweep", "--grid", "rat=1"], "--grid: expected arguments of toy-sweep .*; did you mean rate"),
        (["toy-sweep", "--grid", "rate=1", "rate=2"], "--grid: expected each argument once, got 'rate' again"),
        (["toy-sweep", "--grid", "rate=1", "--grid", "rate=2"], "--grid: expected each argument once"),
        (["toy-sweep", "--grid", "rate=1,1"], "expected cells that differ"),
        (["toy-sweep", "--seeds", "a"], "--seeds: expected numbers >= 0"),
        (["toy-sweep", "--seeds", "9" * 20], f"--seeds: expected numbers below {2**62}"),
        (["toy-sweep", "--seeds", "0-99999999999"], "ranges of at most 1000000, got 0-99999999999"),
        (["toy-sweep", "--seeds", "0-2", "1"], "--seeds: expected each once, got 1 twice"),
        (["toy-sweep", "--seeds", "0-2", "--seeds", "1"], "--seeds: expected each once, got 1 twice"),
        (["toy-sweep", "--workers", "0"], "--workers: expected a number >= 1, got 0"),
        (["toy-sweep", "--budget", "huge"], "huge"),
        (["toy-sweep", "--pieces", "x"], "--pieces"),
        (["toy-sweep", "--gird", "rate=1"], "did you mean --grid"),
        (["toy-sweep", "--results", "/proc/none"], "--results: expected a path that can be written"),
    ],
)
def test_wrong_words_are_one_line_and_nothing_is_done(home, words, expected):
    with pytest.raises(UsageError, match=expected):
        run(*words)
    assert not Path("results").exists()


def test_the_command_line_hands_it_on_and_tells_a_mistake_with_exit_code_2(home, capsys):
    Path("bad.toml").write_text("experiment = ")
    assert cli.main(["sweep", "bad.toml"]) == 2
    assert re.fullmatch("error: bad.toml: expected a TOML file, got .*\n", capsys.readouterr().err)
    assert cli.main(["sweep", "--help"]) == 0 and "[grid]" in capsys.readouterr().out
    assert cli.main(["sweep"]) == 2 and "usage: gpsafe sweep" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install_before_any_work(home, monkeypatch):
    for module, words in (("pyarrow", []), ("distributed", ["--scheduler", "local"])):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(UsageError, match=rf"gpsafe sweep needs {module}: pip install 'gpsafe\[cluster\]'"):
                run("toy-sweep", *words)
    assert not Path("results").exists()


def test_the_help_of_an_experiment_has_its_arguments_and_the_options(home, capsys):
    with pytest.raises(SystemExit) as stop:
        run("toy-sweep", "--help")
    out = capsys.readouterr().out
    assert not stop.value.code and all(word in out for word in ("--grid", "--scheduler", "--rates", "--seeds"))


def test_a_file_gives_its_sweep_the_name(home, capsys):
    Path("mine.toml").write_text(f'{HEAD}seeds="0-2"\n[grid]\nrate=[1,2]')
    assert run("mine.toml", "--workers", "1") == 0
    assert len(table("results/sweeps/mine")) == 12
    assert "[6/6]" in capsys.readouterr().out


def test_the_list_of_commands_waits_for_no_library(tmp_path):
    code = "import sys; from gpsafe.cli import main; main.main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert "sweep" in done.stdout and "leaderboard" in done.stdout
    for heavy in ("torch", "pyarrow", "pandas", "distributed", "joblib"):
        assert f"'{heavy}'" not in done.stdout


@given(
    st.lists(st.text(alphabet=st.characters(exclude_characters="'", codec="utf-8"), max_size=6), min_size=1, max_size=4)
)
def test_values_of_a_grid_are_split_at_commas_outside_quotes(values):
    import shlex

    quoted = [f"'{value}'" for value in values]
    assert [shlex.split(one) for one in sweep_plan._split(",".join(quoted), "")] == [[value] for value in values]
