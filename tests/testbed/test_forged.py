"""Files of results and caches that are torn, edited, foreign or of another type: named, made again, never believed."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_light import importable, light

from gpsafe.testbed import check, frames, store, verify
from gpsafe.testbed.check_store import Pieces, Task
from gpsafe.testbed.experiment import Mismatch, Stored, load, run_seed
from gpsafe.testbed.experiment_report import write
from tests import toy_checks

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def spoiled(draw, text: str) -> bytes:
    """A file of this content, torn, replaced, or with one value in it replaced by any other."""
    how = draw(st.sampled_from(["torn", "replaced", "nested", "edited"]))
    if how == "torn":
        return text.encode()[: draw(st.integers(0, len(text) - 1))]
    if how == "nested":
        return b"[" * 100_000
    value = json.loads(text)
    if how == "edited" and isinstance(value, dict):
        node = value
        while True:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[key], (dict, list)) or not node[key] or draw(st.booleans()):
                break
            node = node[key]
        node[key] = draw(JSON)
        return json.dumps(value).encode()
    return json.dumps(draw(JSON)).encode()


def restored(data: st.DataObject, whole: dict[Path, bytes]) -> Path:
    """One of the files, spoiled; the others as they were."""
    for file, content in whole.items():
        file.write_bytes(content)
    file = data.draw(st.sampled_from(sorted(whole)))
    file.write_bytes(data.draw(spoiled(whole[file].decode())))
    return file


QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)


# ------------------------------------------------------------------------------------------ checks
@pytest.fixture
def toy(tmp_path, monkeypatch):
    with toy_checks.importable(tmp_path, monkeypatch) as make:
        package = make("holds", "violated", "graded")
        yield package, check.discover(package), tmp_path / "cache"


def verdicts(toy, **options):
    package, found, cache = toy
    events: list[verify.Progress] = []
    options = {"workers": 0, "on_progress": events.append} | options
    results = verify.verify(found, package=package, cache=cache, **options)
    return [(r.status, r.claim.evidence, r.control.evidence, [g.tried for g in r.grades]) for r in results], events[0]


def test_no_file_of_the_cache_can_change_a_verdict(toy):
    told, _ = verdicts(toy)
    whole = {file: file.read_bytes() for file in toy[2].rglob("*.json")}

    @QUICK
    @given(st.data())
    def spoil(data):
        file = restored(data, whole)
        same = store.read_piece(file) == json.loads(whole[file])
        again, first = verdicts(toy)
        assert again == told
        assert same or file.name == "timings.json" or any(str(file) in note for note in first.notes)
        assert verdicts(toy)[1].reused == first.total  # and it is whole again

    spoil()


@pytest.mark.parametrize(
    "donor", ["control-verdict", "claim-00001", "../violated/claim-verdict", "../violated/claim-00000"]
)
def test_a_true_file_in_the_wrong_place_is_not_believed(toy, donor):
    told, _ = verdicts(toy)
    folder = next(toy[2].glob("*/quick/holds"))
    name = "claim-verdict.json" if "verdict" in donor else "claim-00000.json"
    shutil.copy(folder / f"{donor}.json", folder / name)
    again, first = verdicts(toy)
    assert again == told and [str(folder / name) in note for note in first.notes] == [True]


def test_a_verdict_of_pieces_that_have_changed_is_judged_again(toy):
    """Each file is true by itself; together they are not."""
    verdicts(toy)
    pieces = Pieces(next(toy[2].glob("*/quick")))
    for shard in range(3):
        pieces.write(Task("holds", False, shard), {"hits": 400, "n": 400}, 0.0)
    again, first = verdicts(toy)
    assert str(again[1][0]) == "VIOLATED" and "claim-verdict.json" in first.notes[0]


def test_a_forged_verdict_is_named_by_the_command(toy, tmp_path, monkeypatch, capsys):
    from gpsafe.cli import main as cli

    monkeypatch.chdir(tmp_path)
    verdicts(toy)
    file = next(toy[2].glob("*/quick/violated/claim-verdict.json"))
    forged = json.loads(file.read_text())
    forged["evidence"]["verdict"] |= {"lower": 0.0, "upper": 0.0}
    file.write_text(json.dumps(forged))
    words = ["verify", "--package", toy[0], "--cache", "cache", "--workers", "1", "--only", "violated"]
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert f"{file.relative_to(tmp_path)}: not what was written there, is made again\n" in out and "VIOLATED" in out


# ------------------------------------------------------------------------------------- experiments
@pytest.fixture
def folder(tmp_path, monkeypatch):
    with importable(tmp_path, monkeypatch):
        experiment = light()

        def compute():
            about = {"command": "c", "started_at": "now"}
            return run_seed(experiment, experiment.arguments(), 3, folder="results/light/3", about=about)

        compute()
        yield experiment, compute


def test_no_file_of_a_seed_can_break_a_run_a_report_or_a_table_or_put_a_number_into_them(folder):
    experiment, compute = folder
    whole = {file: file.read_bytes() for file in Path("results/light/3").rglob("*.json")}
    rows = [{"k": 0, "value": 6}, {"k": 1, "value": 6}]

    @QUICK
    @given(st.data())
    def spoil(data):
        file = restored(data, whole)
        before: Stored = load(experiment, "results")
        for run in before.runs:  # drawn: then from true pieces alone
            assert [row for piece in run.pieces.values() for row in piece.rows] == rows
            write(experiment, before, "out")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = frames("results")["rows"]
        assert all(row in rows for row in table[["k", "value"]].to_dict("records")) if len(table) else True
        with contextlib.suppress(Mismatch) if file.name == "config.json" else contextlib.nullcontext():
            compute()
        if file.name == "config.json":  # it may name other arguments by now, which is refused in words
            file.write_bytes(whole[file])
            compute()
        (run,) = load(experiment, "results").runs
        assert [piece.rows for piece in run.pieces.values()] == [[row] for row in rows]

    spoil()


def test_an_edited_row_is_named_and_computed_anew(folder):
    _, compute = folder
    file = Path("results/light/3/pieces/k-1.json")
    piece = json.loads(file.read_text())
    forged = copy.deepcopy(piece)
    forged["rows"][0]["value"] = -1
    file.write_text(json.dumps(forged))
    record = compute()
    assert record.notes == [f"{file}: changed since it was written, counts as absent"] and record.reused == 1
    assert json.loads(file.read_text())["rows"] == piece["rows"]


def test_a_torn_config_hides_no_stale_piece(folder):
    Path("light_work/helper.py").write_text("SCALE = 9\n")
    experiment = light()
    Path("results/light/3/config.json").write_text("{")
    with pytest.raises(ValueError, match="2 pieces of other code"):
        run_seed(experiment, experiment.arguments(), 3, folder="results/light/3", about={})


def test_a_folder_where_a_file_should_be_is_absent(tmp_path):
    assert store.read_piece(tmp_path) is None
