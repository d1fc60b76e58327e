"""Sweeps: what is finished stays, the table is what the cells say, and no number loses a bit on the way."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
import toy_sweep
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from toy_sweep import ABOUT, PACKAGE, calls, run, table, toy

from gpsafe.testbed import lock, store, sweep, sweep_pools, sweep_table
from gpsafe.testbed.experiment import Record, run_seed
from gpsafe.testbed.experiment_store import Folder, Piece, as_plain
from gpsafe.testbed.sweep_table import Table, column

HOME = Path("results/sweeps/toy-sweep")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_pools, "processes", toy_sweep.here)
    with toy_sweep.importable(tmp_path, monkeypatch) as found:
        yield found


# ------------------------------------------------------------------------------------------------- what is computed
def test_a_cell_is_computed_once_whatever_sweep_asks_for_it(home, capsys):
    assert run("toy-sweep", "--grid", "rate=0.5,1", "--seeds", "0-2") == 0
    assert len(table()) == 12 and table()["cell"].nunique() == 6
    first = table()
    assert run("toy-sweep", "--grid", "rate=1,2", "--seeds", "1-3") == 0
    assert "6 cells, 2 finished before" in capsys.readouterr().out
    assert set(calls(home).values()) == {1} and len(calls(home)) == len(table()) == 20
    again = table().set_index(["cell", "row"])
    assert again.loc[first.set_index(["cell", "row"]).index].reset_index().equals(first[again.reset_index().columns])
    truth = {(r, s, k): math.sin(1 + s + r * k) for r in (0.5, 1.0, 2.0) for s in range(4) for k in range(2)}
    for row in table().itertuples():
        assert row.value == truth[row.arg_rate, row.seed, row.k] and row.good == (row.value > 0)
        assert row.row_seed == f"row {row.k}" and row.piece == f"k-{row.k}" and row.row == row.k


def test_the_folders_of_a_sweep_are_those_of_a_run(home):
    assert run("toy-sweep", "--grid", "rate=0.5,1") == 0
    from gpsafe.testbed.experiment import load

    for group in {Path(place).parts[1] for place in table()["folder"]}:
        assert [found.seed for found in load(toy(), HOME / "runs" / group).runs] == [0, 1]


def test_a_cell_that_raises_is_told_the_others_go_on_and_the_next_sweep_tries_it_again(home, capsys):
    (home / "raises").touch()
    words = ("toy-sweep", "--grid", "word=raises,calm")
    assert run(*words) == 1
    out = capsys.readouterr().out
    assert out.count("failed: ArithmeticError: no growth") == 2 and "2 of 4 cells are finished" in out
    assert set(sweep.failures(HOME).values()) == {"ArithmeticError: no growth"}
    assert set(table()["arg_word"]) == {"calm"}
    (home / "raises").unlink()
    assert run(*words) == 0
    assert sweep.failures(HOME) == {} and len(table()) == 8
    assert sorted(calls(home).values()) == [2, 2, 3, 3]  # of two words; of what raised, the second piece alone again


def test_other_code_is_computed_anew_and_told_apart(home, capsys):
    assert run("toy-sweep") == 0
    old = table()
    with (home / "toy_sweep.py").open("a") as file:
        file.write("# another word\n")
    toy_sweep.forget()
    assert run("toy-sweep") == 0
    out = capsys.readouterr().out
    assert "2 cells, 0 finished before" in out and f"rows of other code: {old['code'][0]}" in out
    both = table()
    assert both["code"].nunique() == 2 and both["cell"].nunique() == 4 and len(both) == 8
    assert list(both.groupby("code")["value"].sum().round(12).unique()) == [round(old["value"].sum(), 12)]


def test_an_experiment_of_another_name_is_another_cell(home):
    assert run("toy-sweep") == 0
    text = (home / "toy_sweep.py").read_text().replace('name="toy-sweep"', 'name="new-name"')
    (home / "toy_sweep.py").write_text(text)
    toy_sweep.forget()
    assert run("new-name", "--results", str(HOME)) == 0
    assert dict(table()["experiment"].value_counts()) == {"toy-sweep": 4, "new-name": 4}


def test_a_cell_that_another_process_computes_comes_last_and_is_waited_for(home):
    cell = next(sweep.cells(toy(), PACKAGE, [toy().arguments()], [0], ""))
    job = sweep.Job(str(HOME.absolute()), ABOUT)
    with lock.held(cell.folder(HOME).lock):
        assert "process" in sweep.work(job, cell, False)["busy"]
    seen: list[tuple[int, bool]] = []

    class Busy(toy_sweep.Here):
        def take(self):
            task = self.given.pop(0)
            seen.append((task[0].seed, task[1]))
            busy = task[0].seed == 0 and not task[1]
            return [(task, {"busy": "process 1"} if busy else sweep.work(self.job, *task))]

    done: list[int] = []
    cells = sweep.cells(toy(), PACKAGE, [toy().arguments()], range(4), "")
    sweep_pools.run(cells, job, Busy(job, 2), lambda cell, _: done.append(cell.seed))
    assert seen == [(0, False), (1, False), (2, False), (3, False), (0, True)] and done == [1, 2, 3, 0]


def test_never_more_cells_are_handed_over_than_there_is_room_for(home):
    job = sweep.Job(str(HOME.absolute()), ABOUT)
    pool, drawn = toy_sweep.Here(job, 3), 0

    def cells():
        nonlocal drawn
        for cell in sweep.cells(toy(), PACKAGE, [toy().arguments(pieces=0)], range(20), ""):
            drawn += 1
            assert len(pool.given) < 3
            yield cell

    sweep_pools.run(cells(), job, pool, lambda *_: None)
    assert drawn == 20 and pool.most == 3


def test_a_sweep_waits_for_workers_that_are_all_away(home):
    class Away(toy_sweep.Here):
        waits = 3

        def room(self):
            return 0 if self.waits and not self.given else super().room()

        def take(self):
            self.waits -= not self.given
            return super().take() if self.given else []

    job, done = sweep.Job(str(HOME.absolute()), ABOUT), []
    cells = sweep.cells(toy(), PACKAGE, [toy().arguments(pieces=0)], range(4), "")
    pool = Away(job, 2)
    sweep_pools.run(cells, job, pool, lambda cell, _: done.append(cell.seed))
    assert sorted(done) == [0, 1, 2, 3] and pool.waits == 0


@pytest.mark.parametrize("begun", [True, False])
def test_a_cell_that_kills_its_workers_fails_and_one_that_only_waited_there_does_not(home, begun):
    cells = list(sweep.cells(toy(), PACKAGE, [toy().arguments()], [1, 0], ""))  # the deadly one last, when none is left
    job = sweep.Job(str(HOME.absolute()), ABOUT)
    tried: list[int] = []

    class Deadly(toy_sweep.Here):
        def take(self):
            task = self.given.pop()
            tried.append(task[0].seed)
            if task[0].seed == 0:
                if begun:
                    with lock.held(task[0].folder(HOME).lock):
                        pass
                return [(task, {"lost": "died"})]
            return [(task, sweep.work(self.job, *task))]

    outcomes = {}
    sweep_pools.run(cells, job, Deadly(job, 1), lambda cell, outcome: outcomes.update({cell.seed: outcome}))
    assert tried.count(0) == (2 if begun else sweep_pools.MOST) and tried.count(1) == 1
    assert outcomes[0]["error"] == "its worker process died, again" and "pieces" in outcomes[1]


def test_a_worker_without_the_package_or_with_other_code_stops_the_sweep(home, capsys):
    cell = next(sweep.cells(toy(), PACKAGE, [toy().arguments()], [0], ""))
    job = sweep.Job(str(HOME.absolute()), ABOUT)
    foreign = sweep.Cell("no_such_package", cell.experiment, cell.arguments, cell.group, cell.code, 0)
    other = sweep.Cell(PACKAGE, cell.experiment, cell.arguments, cell.group, "0" * 16, 0)
    for one, expected in ((foreign, "cannot be imported from 'no_such_package'"), (other, "expected code 0000")):
        with pytest.raises(RuntimeError, match=expected):
            sweep_pools.run([one], job, toy_sweep.Here(job, 1), lambda *_: None)
    assert not HOME.joinpath("runs").exists()


def test_a_full_disk_fails_cells_loses_nothing_and_the_next_sweep_goes_on(home, monkeypatch, capsys):
    true, room = os.fsync, 8

    def fsync(handle: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(28, "No space left on device")
        true(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device.*table\.parquet"):  # one line, exit code 1
        run("toy-sweep", "--seeds", "0-4")
    monkeypatch.setattr(os, "fsync", true)
    assert run("toy-sweep", "--seeds", "0-4") == 0
    assert len(table()) == 10 and "cells, 1 finished before" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- the table
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
names = st.sampled_from(["x", "seed", "row_seed", "row_row_seed", "arg_x", "piece", "ü \"'", ""])


def bits(value: object) -> object:
    return struct.pack("<d", value) if isinstance(value, float) else value


def column_values(data: pyarrow.Table, name: str) -> list[object]:
    values = data[name].to_pylist()
    text = sweep_table.JSON in (data.schema.field(name).metadata or {})
    return [None if value is None else json.loads(value) for value in values] if text else values


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    st.lists(st.lists(st.dictionaries(names, scalars, max_size=3), max_size=2), min_size=1, max_size=3), st.booleans()
)
@example([[{"x": 2**53 + 1}], [{"x": 0.5}]], False)
@example([[{"x": "\ud800"}], [{"x": "plain"}]], True)
@example([[{"x": math.nan}, {"x": None}], [{"x": 1}]], False)
def test_the_table_holds_what_the_cells_hold_to_the_bit_in_one_step_or_in_many(tmp_path, cells, together):
    shutil.rmtree(tmp_path / "sweep", ignore_errors=True)
    places = {}
    for seed, rows in enumerate(cells):
        group = sweep.grouped("any", {"a": 1}, "code")
        folder = Folder(tmp_path / "sweep" / "runs" / group / "any" / str(seed))
        store.write_json(folder.path / "config.json", {"experiment": "any", "seed": seed, "arguments": {"a": 1}})
        record = Record(folder.path, code="code", revision="rev")
        record.piece("all", lambda rows=rows: Piece(rows))
        folder.write_done(record.keys, "now")
        places[sweep.named(group, seed)] = f"runs/{group}/any/{seed}"
    home = Table(tmp_path / "sweep")
    for step in [places] if together else [{name: place} for name, place in places.items()]:
        assert home.add(step.items()) == {}
    data = sweep_table.read(tmp_path / "sweep")
    if not any(cells):
        assert data is None
        return
    assert data is not None
    by = list(zip(data["seed"].to_pylist(), data["row"].to_pylist(), strict=True))
    assert by == [(seed, i) for seed, rows in enumerate(cells) for i in range(len(rows))]
    for name in {name for rows in cells for row in rows for name in row}:
        values = column_values(data, column(name))
        for (seed, i), value in zip(by, values, strict=True):
            true = cells[seed][i].get(name)
            if type(true) is int and type(value) is float:
                assert int(value) == true  # no integer loses by it
            else:
                assert type(value) is type(true) and (value != value or bits(value) == bits(true))
    os.remove(tmp_path / "sweep" / "table.parquet")  # made again from the cells, it is the same
    assert home.add([]) == {}
    assert sweep_table.read(tmp_path / "sweep").to_pylist().__repr__() == data.to_pylist().__repr__()


@given(st.lists(st.text(max_size=8) | names | st.sampled_from(sorted(sweep_table.OURS)), unique=True, max_size=6))
def test_columns_of_rows_never_meet_each_other_or_ours(found):
    columns = [column(name) for name in found]
    assert len(set(columns)) == len(found) and not set(columns) & sweep_table.OURS
    assert not any(name.startswith(sweep_table.PREFIX) for name in columns)


@pytest.mark.parametrize("torn", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_torn_table_is_made_again_with_all_that_ever_was_in_it(home, torn):
    assert run("toy-sweep", "--grid", "rate=1") == 0
    assert run("toy-sweep", "--grid", "rate=2") == 0
    whole = table()
    (HOME / "table.parquet").write_bytes(torn)
    assert run("toy-sweep", "--grid", "rate=2") == 0
    assert table().equals(whole) and set(calls(home).values()) == {1}


def test_a_torn_piece_of_a_finished_cell_is_found_and_computed_again(home, capsys):
    assert run("toy-sweep") == 0
    whole = table()
    (HOME / "table.parquet").unlink()
    piece = next(HOME.glob("runs/*/*/1/pieces/k-0.json"))
    piece.write_bytes(piece.read_bytes()[:-3])
    assert run("toy-sweep") == 0
    assert "k-0.json: torn or foreign" in capsys.readouterr().out
    assert table().equals(whole) and calls(home) == {"0.5/0-0": 1, "0.5/0-1": 1, "0.5/1-0": 2, "0.5/1-1": 1}


def test_control_a_cell_in_a_folder_of_another_hash_is_left_out(home):
    assert run("toy-sweep") == 0
    (group,) = HOME.glob("runs/*")
    shutil.copytree(group, group.with_name("0" * 16))
    assert "of other arguments or other code" in str(
        sweep_table.rows(Folder(HOME / f"runs/{'0' * 16}/toy-sweep/0"), "")
    )
    (HOME / "table.parquet").unlink()
    assert run("toy-sweep") == 0
    assert len(table()) == 4


def test_experiments_with_other_arguments_and_columns_share_a_table(home):
    text = (
        (home / "toy_sweep.py")
        .read_text()
        .replace('"toy-sweep"', '"other"')
        .replace("rate: float = 0.5", 'rate: str = "?"')
    )
    text = text.replace("arguments.rate * k", "0.1").replace('"value"', '"found"')
    (home / "other.py").write_text(text)
    Path("s.toml").write_text('[[sweep]]\nexperiment="toy-sweep"\n[[sweep]]\nexperiment="other"\narguments={rate="é"}')
    assert run("s.toml") == 0
    both = table("results/sweeps/s")
    assert len(both) == 8 and {"value", "found"} < set(both.columns) and both["value"].notna().sum() == 4
    assert list(both["arg_rate"].unique()) in (['"\\u00e9"', "0.5"], ["0.5", '"\\u00e9"'])


def test_two_tables_written_at_once_hold_both(home):
    mine = [sweep.cells(toy(), PACKAGE, [toy().arguments()], [seed], "") for seed in (0, 1)]
    job = sweep.Job(str(HOME.absolute()), ABOUT)
    cells = [next(one) for one in mine]
    tables = [Table(HOME), Table(HOME)]
    for one in tables:
        one.add([])
    for cell, one in zip(cells, tables, strict=True):  # neither knows of the other's
        sweep.work(job, cell, True)
        one.add([(cell.name, cell.folder("").path.as_posix())], again=True)
    assert list(table()["seed"]) in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_the_table_is_written_a_number_of_times_that_grows_like_the_logarithm():
    home, writes, new = Table(Path("nowhere")), 0, 0
    for i in range(100_000):
        new += 1
        if home.due(new):
            home.known |= {str(j) for j in range(i + 1 - new, i + 1)}
            writes, new = writes + 1, 0
    assert writes < 30


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    word=st.text(max_size=6), maybe=st.none() | st.floats(), rates=st.lists(st.floats(), max_size=3), on=st.booleans()
)
def test_arguments_of_any_kind_name_their_cell_and_stand_in_the_table(home, word, maybe, rates, on):
    shutil.rmtree(HOME, ignore_errors=True)
    experiment = toy()
    try:
        word.encode()
        given = experiment.arguments(word=word, maybe=maybe, rates=tuple(rates), on=on)
    except UnicodeEncodeError:
        return
    cell = next(sweep.cells(experiment, PACKAGE, [given], [3], "quick"))
    twin = next(
        sweep.cells(experiment, PACKAGE, [experiment.arguments(1, 0.5, word, tuple(rates), maybe, on)], [3], "")
    )
    assert cell.name != twin.name
    assert "error" not in sweep.work(sweep.Job(str(HOME.absolute()), ABOUT), cell, True)
    Table(HOME).add([(cell.name, cell.folder("").path.as_posix())])
    data = sweep_table.read(HOME)
    assert data is not None
    row = data.to_pylist()[0]
    assert row["arg_word"] == word or word in ("NaN", "Infinity", "-Infinity")
    assert repr(row["arg_maybe"]) == repr(maybe) and row["arg_on"] is on
    assert json.loads(row["arg_rates"]) == as_plain(given)["rates"]


def test_run_seed_and_a_sweep_give_the_same_numbers(home):
    assert run("toy-sweep", "--seeds", "5") == 0
    record = run_seed(toy(), toy().arguments(), 5, folder="alone", about=ABOUT)
    alone = [Folder(Path("alone")).read_piece(key)[0].rows[0]["value"] for key in record.keys]  # type: ignore[index]
    assert list(pd.read_parquet(HOME / "table.parquet")["value"]) == alone
