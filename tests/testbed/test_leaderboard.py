"""The leaderboard: right numbers, intervals that cover, nothing hidden, nothing that a page could run."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import toy_sweep
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_sweep import run

from gpsafe.cli import main as cli
from gpsafe.testbed import sweep_pools
from gpsafe.testbed.experiment import Record
from gpsafe.testbed.experiment_store import Folder, Piece
from gpsafe.testbed.leaderboard import LEVEL, boards, load, number
from gpsafe.testbed.leaderboard_page import page
from gpsafe.testbed.store import write_json
from gpsafe.testbed.sweep import grouped, named
from gpsafe.testbed.sweep_table import TABLE, Table
from gpsafe.verdict import clopper_pearson

finite = st.floats(-1e6, 1e6)
QUANTILES = dict(
    zip(range(1, 8), (12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818, 2.4469119, 2.3646243), strict=True)
)
"""Of 97.5 %, of Student's t with so many degrees of freedom."""


def stored(
    home: Path, cells: list[tuple[dict, int, list[dict]]], *, experiment: str = "any", code: str = "code"
) -> Path:
    """A sweep's folder with these cells: arguments, seed, rows."""
    places = {}
    for arguments, seed, rows in cells:
        group = grouped(experiment, arguments, code)
        folder = Folder(home / "runs" / group / experiment / str(seed))
        write_json(folder.path / "config.json", {"experiment": experiment, "seed": seed, "arguments": arguments})
        record = Record(folder.path, code=code, revision="rev")
        record.piece("all", lambda rows=rows: Piece(rows))
        folder.write_done(record.keys, "now")
        places[named(group, seed)] = f"runs/{group}/{experiment}/{seed}"
    assert Table(home).add(places.items()) == {}
    return home


def rewritten(home: Path, name: str, change) -> None:
    """The table with one of its numbers changed."""
    table = pyarrow.parquet.read_table(home / TABLE)
    values = table[name].to_pylist()
    values[0] = change(values[0])
    at = table.schema.get_field_index(name)
    pyarrow.parquet.write_table(table.set_column(at, name, pyarrow.array(values)), home / TABLE)


# ---------------------------------------------------------------------------------------------------------- numbers
@given(st.dictionaries(st.integers(0, 50), st.lists(finite, min_size=1, max_size=4), min_size=2, max_size=8))
def test_a_mean_has_students_interval_over_the_means_of_seeds(values):
    found = number(values, rate=False)
    means = np.array([np.mean(rows) for rows in values.values()])
    half = QUANTILES[len(means) - 1] * means.std(ddof=1) / math.sqrt(len(means))
    scale = 1e-7 * (1 + abs(means).max())
    assert found.kind == "t" and found.seeds == len(means) and found.rows == sum(map(len, values.values()))
    assert abs(found.estimate - means.mean()) <= scale
    assert found.low is not None and found.high is not None and found.low <= found.estimate <= found.high
    assert abs(found.high - found.estimate - half) <= scale and abs(found.estimate - found.low - half) <= scale


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_a_rate_with_a_row_a_seed_is_clopper_and_pearsons(values):
    found = number({seed: [float(value)] for seed, value in enumerate(values)}, rate=True)
    assert found.kind == "Clopper–Pearson" and found.estimate == pytest.approx(sum(values) / len(values))
    assert (found.low, found.high) == clopper_pearson(sum(values), len(values), LEVEL)


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=5), min_size=1, max_size=12))
def test_a_rate_with_many_rows_a_seed_is_wider_than_one_that_counts_seeds_as_rows(values):
    found = number({seed: list(map(float, rows)) for seed, rows in enumerate(values)}, rate=True)
    total, n = sum(Fraction(sum(rows), len(rows)) for rows in values), len(values)
    assert found.kind == "Bentkus" and found.low is not None and found.high is not None
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.low <= clopper_pearson(math.floor(total), n, LEVEL)[0]
    assert found.high >= clopper_pearson(math.ceil(total), n, LEVEL)[1]
    assert found.estimate == pytest.approx(float(total / n))


def test_intervals_of_a_rate_cover_where_the_rows_of_a_seed_are_all_alike_and_pooled_ones_do_not():
    """20 seeds of 50 rows each, all true or all false with probability 0.1: the worst dependence within a seed."""
    generator = np.random.default_rng(0)
    trials, ours, pooled = 300, 0, 0
    for _ in range(trials):
        draws = generator.random(20) < 0.1
        found = number({seed: [float(draw)] * 50 for seed, draw in enumerate(draws)}, rate=True)
        assert found.low is not None and found.high is not None
        ours += found.low <= 0.1 <= found.high
        low, high = clopper_pearson(50 * int(draws.sum()), 1000, LEVEL)
        pooled += low <= 0.1 <= high
    assert ours >= 0.95 * trials and pooled < 0.6 * trials


@given(st.floats(-5, 5), st.integers(2, 6), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_shown_and_has_no_interval(value, n, wild):
    found = number({seed: [value] for seed in range(n)} | {n: [wild, value]}, rate=False)
    assert not math.isfinite(found.estimate) and found.low is found.high is None
    assert found.note == f"1 of {n + 1} seeds not finite"


def test_one_seed_has_no_interval_and_no_seed_no_number():
    found = number({3: [1.0, 2.0]}, rate=False)
    assert (found.estimate, found.low, found.note) == (1.5, None, "one seed")
    for nothing in ({}, {0: []}):
        with pytest.raises(ValueError, match="at least one value"):
            number(nothing, rate=False)


def test_a_seed_without_a_value_is_told_of(tmp_path):
    """Three runs that broke off before they could violate anything, among ten: not the n = 7 of ten that did not."""
    broken = [({}, seed, [{"violated": None if seed < 3 else False, "steps": 5}]) for seed in range(10)]
    (line,) = boards(load([stored(tmp_path, broken)]))[0].lines
    assert line.numbers["violated"].seeds == 7
    assert line.numbers["violated"].note == "none of 3 of 10 seeds"
    assert line.numbers["steps"].note == "all seeds equal"


# ----------------------------------------------------------------------------------------------------------- boards
values = st.none() | st.booleans() | finite | st.just(math.nan)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(st.lists(st.lists(st.tuples(finite, st.none() | st.booleans()), max_size=3), min_size=4, max_size=4))
def test_every_cell_is_in_one_line_and_every_number_is_that_of_its_cells(tmp_path_factory, drawn):
    home = tmp_path_factory.mktemp("sweep")
    cells = [
        ({"a": a, "b": "same"}, seed, [{"x": x, "good": good} for x, good in drawn[2 * a + seed]])
        for a in (0, 1)
        for seed in (0, 1)
    ]
    if not any(rows for _, _, rows in cells):
        return
    found = boards(load([stored(home, cells)]))
    lines = [line for board in found for line in board.lines]
    assert sum(len(line.cells) for line in lines) == sum(bool(rows) for _, _, rows in cells)
    for line in lines:
        told = line.arguments | line.others
        mine = {seed: rows for arguments, seed, rows in cells if arguments["a"] == told["a"] and rows}
        assert sorted(mine) == [cell.seed for cell in line.cells] and told["b"] == "same"
        for name in ("x", "good"):
            given = {seed: [float(row[name]) for row in rows if row[name] is not None] for seed, rows in mine.items()}
            given = {seed: rows for seed, rows in given.items() if rows}
            expected = number(given, rate=name == "good") if given else None
            if expected is not None and len(given) < len(mine):
                told = f"none of {len(mine) - len(given)} of {len(mine)} seeds"
                expected = replace(expected, note=f"{expected.note}, {told}" if expected.note else told)
            assert line.numbers.get(name) == expected


def test_other_code_is_another_line_and_the_older_one_is_called_so(tmp_path):
    home = stored(tmp_path, [({"a": 1}, 0, [{"x": 1.0}])], code="old")
    rewritten(home, "started", lambda _: "2020-01-01T00:00:00+00:00")
    stored(home, [({"a": 1}, 0, [{"x": 2.0}])], code="new")
    (board,) = boards(load([home]))
    assert {(line.code, line.latest, line.numbers["x"].estimate) for line in board.lines} == {
        ("old", False, 1.0),
        ("new", True, 2.0),
    }
    assert page(load([home]), [board], tmp_path).count("older code") == 1


def test_columns_rank_and_arguments_are_told_apart_as_asked(tmp_path):
    rows = {(a, b, seed): [{"x": float(10 * a + b + seed), "y": 1}] for a in (0, 1) for b in (0, 1) for seed in (0, 1)}
    home = stored(tmp_path, [({"a": a, "b": b}, seed, one) for (a, b, seed), one in rows.items()])
    found = load([home])
    (board,) = boards(found, values=["x"])
    assert board.ranked and [line.numbers["x"].estimate for line in board.lines] == [11.5, 10.5, 1.5, 0.5]
    assert board.left_out == ("y",)
    (board,) = boards(found, values=["x"], smallest=True)
    assert board.lines[0].numbers["x"].estimate == 0.5
    (board,) = boards(found, by=["arg_a"])
    assert not board.ranked and [line.others["b"] for line in board.lines] == [[0, 1], [0, 1]]
    one = board.lines[0].numbers["x"]
    assert (one.seeds, one.rows, one.estimate) == (2, 4, 1.0)  # a seed counts once, however many cells it has
    for wrong, expected in (
        ({"values": ["z"]}, "columns of numbers among x, y, got 'z'"),
        ({"by": ["z"]}, "among a, b"),
    ):
        with pytest.raises(ValueError, match=expected):
            boards(found, **wrong)


def test_a_cell_in_two_sweeps_counts_once_and_other_numbers_in_it_are_told(tmp_path):
    first = stored(tmp_path / "a", [({"a": 1}, 0, [{"x": 1.0}]), ({"a": 1}, 1, [{"x": 2.0}])])
    second = stored(tmp_path / "b", [({"a": 1}, 1, [{"x": 2.0}]), ({"a": 1}, 2, [{"x": 3.0}])])
    both = load([first, second, first / TABLE])
    assert len(both.cells) == 3 and both.notes == () and both.homes == (first, second)
    rewritten(second, "x", lambda x: x + 1e-15 * x)
    both = load([first, second])
    (note,) = both.notes
    assert "the latter count" in note and len(both.cells) == 3
    assert "the latter count" in page(both, boards(both), tmp_path)


# ------------------------------------------------------------------------------------------------------------- page
class Reader(HTMLParser):
    """Tags, anchors, links and text of a page; tags must be closed as they were opened."""

    VOID = frozenset({"meta", "br", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        assert not any(name.startswith("on") or name == "src" for name in given)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture
def swept(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_pools, "processes", toy_sweep.here)
    with toy_sweep.importable(tmp_path, monkeypatch) as home:
        (home / "raises").touch()
        assert run("toy-sweep", "--grid", "word=calm,raises", "rate=0.5,1", "--seeds", "0-2") == 1
        yield tmp_path


def test_every_link_of_the_page_leads_somewhere_and_every_number_has_interval_size_and_cells(swept, capsys):
    assert cli.main(["leaderboard", "--output", "out/board.html", "--value", "value", "--value", "good"]) == 0
    text = Path("out/board.html").read_text()
    found = Reader(text)
    assert "script" not in found.tags and not re.search(r"https?://|@import|url\(", text)
    assert len(found.ids) == len(set(found.ids))
    for link in found.links:
        assert link[1:] in found.ids if link.startswith("#") else (Path("out") / unquote(link)).is_dir(), link
    numbers = re.findall(r'<td class="value".*?</td>', text, flags=re.S)
    assert len(numbers) == 2 * 2  # two lines of what is calm
    for one in numbers:
        assert re.search(r'href="#l\d+-\d+"', one) and "[" in one and "n = 3, 6 rows" in one
        assert re.search(r" t<| Bentkus<", one)
    assert text.count("ArithmeticError: no growth") == 6 and "cells that failed: 6" in text
    assert "width=device-width" in text and "prefers-color-scheme:dark" in text and "max-width:40rem" in text


def test_control_a_changed_number_changes_the_page_and_the_same_store_does_not(swept):
    assert cli.main(["leaderboard", "--output", "one.html"]) == 0
    assert cli.main(["leaderboard", "--output", "two.html"]) == 0
    assert Path("one.html").read_text() == Path("two.html").read_text()
    rewritten(Path("results/sweeps/toy-sweep"), "value", lambda value: math.nextafter(value, 9.0))
    assert cli.main(["leaderboard", "--output", "two.html"]) == 0
    assert Path("one.html").read_text() != Path("two.html").read_text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(st.text(alphabet="<>&\"'aé/:-`$\\", min_size=1, max_size=12))
def test_whatever_stands_in_arguments_names_and_errors_is_text_on_the_page(tmp_path_factory, nasty):
    def read(text: str) -> Reader:
        home = tmp_path_factory.mktemp("sweep")
        stored(home, [({"a": text, text: a}, 0, [{text: 1.5}]) for a in (1, 2)])
        write_json(home / "runs" / "0" / "any" / "7" / "failed.json", {"error": text})
        found = load([home])
        return Reader(page(found, boards(found), home))

    reader = read(nasty)
    assert reader.tags == read("plain").tags
    assert nasty in "".join(reader.said)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected sweeps in results/sweeps, got none"),
        (["nowhere"], "a sweep's folder with table.parquet, got 'nowhere'"),
        (["--output", "."], "--output: expected a file name, got the folder"),
        (["--vaule", "x"], "did you mean --value"),
    ],
)
def test_wrong_usage_of_the_leaderboard_is_one_line(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    if "--output" in words:
        words = [str(stored(tmp_path / "s", [({"a": 1}, 0, [{"x": 1.0}])])), *words]
    assert cli.main(["leaderboard", *words]) == 2
    assert re.fullmatch(f"error: .*{expected}.*\n", capsys.readouterr().err)


def test_the_leaderboard_tells_wrong_columns_and_no_numbers(tmp_path, capsys):
    home = stored(tmp_path, [({"a": 1}, 0, [{"x": "word"}])])
    assert cli.main(["leaderboard", str(home)]) == 2
    assert "expected columns of numbers in the sweeps, got none" in capsys.readouterr().err
    assert cli.main(["leaderboard", str(home), "--value", "x"]) == 2
    assert "columns of numbers among none, got 'x'" in capsys.readouterr().err


def test_columns_of_rows_are_told_apart_if_asked_and_the_page_says_if_they_are_not(tmp_path):
    rows = [{"learner": learner, "x": x + (learner == "b")} for learner in "ab" for x in (1.0, 2.0)]
    home = stored(tmp_path, [({"a": 1}, seed, rows) for seed in (0, 1)])
    together = load([home])
    (board,) = boards(together)
    assert board.mixed == ("learner",) and board.lines[0].numbers["x"].estimate == 2.0
    assert "Rows that differ in learner are averaged here" in page(together, [board], tmp_path)
    apart = load([home], by=["learner"])
    (board,) = boards(apart, by=["learner"])
    assert board.mixed == () and [line.arguments for line in board.lines] == [{"learner": "a"}, {"learner": "b"}]
    assert [(line.numbers["x"].estimate, line.numbers["x"].rows) for line in board.lines] == [(1.5, 4), (2.5, 4)]
    assert "are averaged" not in page(apart, [board], tmp_path) and "Cells: 2," in page(apart, [board], tmp_path)
