"""What gpsafe writes opens as pandas tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from toy_light import importable, light

from gpsafe.testbed import check, frames, report, store, verify
from gpsafe.testbed.experiment import Report, Table, load, run_seed
from gpsafe.testbed.experiment_report import write
from tests import toy_checks


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    with importable(tmp_path, monkeypatch):
        found = light()
        for seed in (0, 1, 10, 2):
            run_seed(found, found.arguments(), seed, folder=f"results/light/{seed}", about={"git_revision": "a" * 40})
        yield found


@pytest.mark.parametrize("path", ["results", "results/light"])
def test_results_open_as_runs_pieces_and_rows(experiment, path):
    tables = frames(path)
    assert list(tables["runs"]["seed"]) == [0, 1, 2, 10] and set(tables["runs"]["arguments.pieces"]) == {2}
    assert set(tables["runs"]["revisions"]) == {"a" * 12} and tables["runs"]["finished"].all()
    rows = tables["rows"]
    assert list(rows.groupby("seed")["value"].sum()) == [0, 4, 8, 40]
    assert list(rows.columns) == ["experiment", "seed", "piece", "k", "value"]
    pieces = tables["pieces"]
    assert len(pieces) == 8 and (pieces["seconds"] > 0).all() and pieces["code"].nunique() == 1
    assert pd.to_datetime(pieces["at"]).notna().all()


def test_a_seed_a_piece_and_a_report_open_too(experiment, monkeypatch):
    assert list(frames("results/light/10")["rows"]["value"]) == [20, 20]
    assert list(frames("results/light/10/pieces/k-1.json")["rows"]["k"]) == [1]
    monkeypatch.chdir("results/light/10")
    assert list(frames(".")["rows"]["value"]) == [20, 20]
    monkeypatch.chdir("../../..")
    table = Table(("seed", "cost"), [(0, 0.1), (1, math.inf)])
    object.__setattr__(experiment, "report", lambda runs: Report(tables={"costs": table}))
    write(experiment, load(experiment, "results"), "results/light/report")
    for path in ("results/light/report", "results/light/report/costs.csv"):
        assert frames(path)["costs"].to_dict("records") == [{"seed": 0, "cost": 0.1}, {"seed": 1, "cost": math.inf}]


def test_what_cannot_be_used_is_left_out_with_a_warning(experiment):
    Path("results/light/1/pieces/k-0.json").write_text("{")
    with pytest.warns(UserWarning, match="k-0.json: torn or foreign"):
        assert len(frames("results")["rows"]) == 7
    Path("results/light/1/config.json").write_text("[]")
    with pytest.warns(UserWarning, match="no readable config.json"):
        assert list(frames("results")["runs"]["seed"]) == [0, 2, 10]


def test_the_guarantee_report_opens_with_its_infinities_as_numbers(tmp_path, monkeypatch):
    with toy_checks.importable(tmp_path, monkeypatch) as make:
        package = make("holds", "unbounded", "graded", "raises")
        results = verify.verify(check.discover(package), package=package, cache=tmp_path / "cache", workers=0)
    env = report.environment(budget="quick", command="c", started_at="s", seconds=1.0, workers=0, selected=4, known=4)
    path = store.write_json(tmp_path / "report.json", report.document(results, env))
    tables = frames(path)
    checks = tables["checks"].set_index("name")
    assert checks.loc["unbounded", "lower"] == -math.inf and checks["lower"].dtype == float
    assert list(checks["verdict"]) == [str(result.status) for result in results]
    assert set(tables["grades"]["name"]) == {"graded"} and len(tables["grades"]) == 2
    assert tables["environment"].loc[0, "budget"] == "quick"
    line = pd.DataFrame(json.loads(path.read_text())["checks"])  # the same without us
    assert list(line["name"]) == list(tables["checks"]["name"])


@pytest.mark.parametrize("path", ["none", ".", "text.json", "x.csv"])
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("[1]")
    with pytest.raises(ValueError, match="frames: expected a report"):
        frames(path)
