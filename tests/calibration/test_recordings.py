"""Tables of users: what is read, and what is refused in one line."""

import numpy as np
import pandas as pd
import pytest

from gpsafe.calibration import Effort, recordings
from gpsafe.cli import main as cli


def frame(**changes) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = {"run": np.repeat(["a", "b", "c"], 4), "t": np.tile(np.arange(4) * 0.1, 3), "x": rng.normal(size=12)}
    return pd.DataFrame({**table, "v": rng.normal(size=12), "u": rng.normal(size=12), **changes})


def test_successive_rows_of_a_run_are_transitions():
    table = frame()
    data, labels, notes = recordings.transitions(table, ["x", "v"], ["u"], run="run")
    assert len(data) == 9 and labels == ["a"] * 3 + ["b"] * 3 + ["c"] * 3 and notes == ()
    assert data.x_next[:2, 0].tolist() == table["x"][1:3].tolist()
    alone, none, _ = recordings.transitions(table, ["x"], [])
    assert len(alone) == 11 and alone.u.shape == (11, 0) and none is None


def test_the_next_state_may_have_columns_of_its_own():
    table = frame(x2=np.arange(12.0))
    data, labels, _ = recordings.transitions(table, ["x"], ["u"], following=["x2"], run="run")
    assert data.x_next.flatten().tolist() == list(range(12)) and len(labels) == 12


def test_time_orders_rows_and_gaps_are_no_transitions():
    table = frame()
    order = np.random.default_rng(1).permutation(12)
    shuffled = table.iloc[order]
    plain = recordings.transitions(table, ["x"], ["u"], run="run")[0]
    sorted_ = recordings.transitions(shuffled, ["x"], ["u"], run="run", time="t")[0]
    assert sorted_.x.tolist() == plain.x.tolist()
    gap = frame(t=np.tile([0.0, 0.1, 0.5, 0.6], 3))
    data, _, notes = recordings.transitions(gap, ["x"], ["u"], run="run", time="t")
    assert len(data) == 6 and notes[0].startswith("3 steps longer than")


def test_a_step_that_is_too_short_is_no_transition_either():
    """Two rates in one recording were learnt as one plant: of 99 steps 49 took a fifth of the time."""
    clock = np.concatenate([np.arange(50) * 0.1, 5 + np.arange(50) * 0.02])
    table = pd.DataFrame({"t": clock, "x": np.sin(clock), "u": np.cos(3 * clock)})
    data, _, notes = recordings.transitions(table, ["x"], ["u"], time="t")
    assert len(data) == 50 and "49 steps" in notes[0]


def test_times_may_be_dates():
    plain = recordings.transitions(frame(), ["x"], ["u"], run="run", time="t")[0]
    for zone in (None, "UTC"):
        days = frame(t=np.tile(pd.date_range("2024-01-01", periods=4, freq="s", tz=zone), 3))
        assert recordings.transitions(days, ["x"], ["u"], run="run", time="t")[0].x.tolist() == plain.x.tolist()


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
def test_three_kinds_of_file_say_the_same(kind, tmp_path):
    table, path = frame(), tmp_path / f"data.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow (extra lab)")
        table.to_parquet(path)
    else:
        np.savez(path, run=table["run"].to_numpy(dtype="U1"), x=table["x"], v=table["v"], u=table["u"])
    found = recordings.read(path)
    data = recordings.transitions(found, ["x", "v"], ["u"], run="run")[0]
    assert data.x.tolist() == recordings.transitions(table, ["x", "v"], ["u"], run="run")[0].x.tolist()


def test_matrices_of_an_npz_are_columns(tmp_path):
    np.savez(tmp_path / "d.npz", observation=np.arange(12.0).reshape(6, 2) ** 2, action=np.arange(6.0))
    found = recordings.read(tmp_path / "d.npz")
    assert list(found.columns) == ["observation_0", "observation_1", "action"]


BAD = {
    "missing": ({}, {"state": ["x", "speeed"]}, "columns among run, t, x, v, u, got 'speeed'"),
    "near": ({}, {"state": ["X"]}, "did you mean"),
    "nan": ({"x": [np.nan] + [1.0, 2.0, 3.0] * 3 + [5.0, 6.0]}, {}, "1 empty or infinite, the first in row 1"),
    "infinite": ({"v": [1.0, np.inf] * 6}, {}, "6 empty or infinite, the first in row 2"),
    "words": ({"x": ["1.0"] * 11 + ["fast"]}, {}, "numbers in 'x', got 'fast' in row 12"),
    "constant": ({"u": [2.0] * 12}, {}, "'u', which is 2 in every row"),
    "constant-state": ({"v": [0.0] * 12}, {}, "'v', which is 0 in every row"),
    "twice": ({}, {"state": ["x", "x"]}, "every column of state and input once, got x"),
    "count": ({}, {"following": ["v"]}, "as many columns of the next state as of the state, 2"),
    "labels": ({"run": [None] + ["a"] * 11}, {"run": "run"}, "no empty cells in 'run', got 1 of 12 rows"),
    "times": ({"t": [0.0] * 12}, {"run": "run", "time": "t"}, "one row for each time of a run"),
    "clock": ({"t": ["0.1", "noon"] * 6}, {"time": "t"}, "numbers or times in 't' .*, got 'noon' in row 2"),
    "complex": ({"x": np.arange(12) * 1j}, {}, "real numbers in 'x', got complex128"),
    "alone": ({"run": list("abcdefghijkl")}, {"run": "run"}, "successive rows of one run"),
    "nothing": ({}, {"state": []}, "at least one column of the state"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_transitions_is_refused_by_name(case):
    changes, options, message = BAD[case]
    asked = {"state": ["x", "v"], "inputs": ["u"], **options}
    with pytest.raises(ValueError, match=message):
        recordings.transitions(frame(**changes), **asked)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "which does not exist"),
        ("d.txt", "x", "a file that ends in .csv, .npz, .parquet"),
        ("d.npz", "no zip", "a readable .npz file"),
        ("d.csv", "", "a readable .csv file"),
        ("d.parquet", "no", "a readable .parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_name(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        recordings.read(tmp_path / name)


def test_an_npz_with_code_in_it_is_not_run(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"a readable \.npz file"):
        recordings.read(tmp_path / "d.npz")


# ---------------------------------------------------------------------------------------------- command line
@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, u = rng.uniform(-1, 1, 90), rng.uniform(-1, 1, 90)
    pd.DataFrame(
        {"x": x, "u": u, "x2": 0.9 * x + 0.2 * u + 0.03 * rng.normal(size=90), "id": np.arange(90) // 9}
    ).to_csv("d.csv", index=False)
    return tmp_path


WRONG = [
    (["--input", "u"], "--state"),
    (["--state", "y"], "columns among x, u, x2, id, got 'y'"),
    (["--state", "x", "--level", "1.5"], "--level: expected a probability"),
    (["--state", "x", "--models", "oracle"], "--models: expected names among gp"),
    (["--state", "x", "--html", "a.html", "--json", "./a.html"], "--json: expected another file than --html"),
    (["--state", "x", "--html", "/proc/none/a.html"], "--html: expected a path that can be written"),
    (["--state", "x", "--sttae"], "--sttae"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_usage_is_one_line_and_code_2(table, capsys, words, message):
    assert cli.main(["calibrate", "d.csv", *words]) == 2
    _, error = capsys.readouterr()
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_the_command_prints_a_table_and_words_and_writes_page_and_numbers(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("gpsafe.calibration.study.Effort", lambda: Effort(hyperparameters=15, steps=20))
    words = [
        "d.csv",
        "--state",
        "x",
        "--input",
        "u",
        "--next",
        "x2",
        "--id",
        "id",
        "--models",
        "laplace",
        "--json",
        "n.json",
    ]
    assert cli.main(["calibrate", *words]) == 0
    out = capsys.readouterr().out
    assert "inside 90% bars" in out and "laplace is" in out and "wrote calibration.html" in out
    assert "Whose uncertainty fits d.csv?" in (table / "calibration.html").read_text()
    assert '"recalibration": "conformal"' in (table / "n.json").read_text()
