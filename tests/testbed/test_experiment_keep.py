"""What is kept of an experiment reads back to the bit, is not believed once it was touched, and spares the work."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import seeds
from toy_light import importable as light_work
from toy_light import light

from gpsafe.cli import experiments
from gpsafe.cli import main as cli
from gpsafe.cli.common import UsageError
from gpsafe.testbed import lock
from gpsafe.testbed.experiment import Mismatch, Piece, Record, Stale, load, run_seed
from gpsafe.testbed.experiment_keep import keep
from gpsafe.testbed.experiment_report import write
from gpsafe.testbed.experiment_store import Folder
from gpsafe.testbed.tables import frames

MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
rows = st.lists(st.dictionaries(st.text(max_size=5), scalars, max_size=3), max_size=3)


@pytest.fixture
def work(tmp_path, monkeypatch):
    with light_work(tmp_path, monkeypatch) as folder:
        yield folder


def compute(toy, seed: int = 0, results: str = "results", **arguments) -> Record:
    about = {"command": f"in {results}", "started_at": "2026-01-01T00:00:00+00:00"}
    return run_seed(toy, toy.arguments(**arguments), seed, folder=f"{results}/{toy.name}/{seed}", about=about)


def kept(toy, seed: int = 0, results: str = "results", to: str = "kept", **options):
    return keep(Folder(Path(f"{results}/{toy.name}/{seed}")), Folder(Path(f"{to}/{toy.name}/{seed}")), **options)


def files(folder: Path | str) -> dict[str, bytes]:
    there = (p for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in there}


# ------------------------------------------------------------------------------------------ a copy
@MANY
@given(rows, seeds(), st.sampled_from([torch.float64, torch.float32, torch.int64, torch.bool]))
def test_a_kept_piece_reads_back_to_the_bit(tmp_path, rows, seed, dtype):
    shutil.rmtree(tmp_path / "a", ignore_errors=True), shutil.rmtree(tmp_path / "b", ignore_errors=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"experiment": "e", "seed": 1, "arguments": {"x": 2}}')
    tensor = (8 * torch.randn(3, seed % 3, generator=torch.Generator().manual_seed(seed))).to(dtype)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64)
    record = Record(tmp_path / "a", code="c", revision="r")
    record.piece("deep/one", lambda: Piece(rows, {"t": tensor, "special": special}))
    record.piece("rows", lambda: Piece(rows))
    source, target = Folder(tmp_path / "a"), Folder(tmp_path / "b")
    assert keep(source, target).new == 2
    packed, raw = target.file("deep/one.pt.xz").read_bytes(), source.file("deep/one.pt").read_bytes()
    assert lzma.decompress(packed) == raw
    for key in record.keys:
        (there, how), (copy, how_copy) = (folder.read_piece(key) for folder in (source, target))  # pyright: ignore
        assert how == how_copy and repr(copy.rows) == repr(there.rows) == repr(rows)
        for name, values in there.tensors.items():
            again = copy.tensors[name]
            assert again.dtype == values.dtype and again.shape == values.shape
            assert again.numpy().tobytes() == values.numpy().tobytes()


def test_smooth_paths_take_less_room_and_noise_hardly_more(tmp_path):
    """Of 300 flights of 30 steps of two float32 numbers, as the reports of explorers draw them."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(30, 10, 31, 2, generator=generator)
    for seed, (tensor, most) in enumerate(
        [(0.05 * steps.cumsum(-2), 0.9), (steps.view(torch.int32) * 2654435761, 1.02)]
    ):
        record = Record(tmp_path / str(seed))
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "config.json").write_text(f'{{"experiment": "e", "seed": {seed}, "arguments": {{}}}}')
        record.piece("one", lambda tensor=tensor: Piece((), {"states": tensor}))
        keep(Folder(tmp_path / str(seed)), target := Folder(tmp_path / "kept" / str(seed)))
        size = target.file("one.pt.xz").stat().st_size
        assert size < most * (tmp_path / str(seed) / "pieces" / "one.pt").stat().st_size


def test_a_report_and_tables_of_what_is_kept_are_those_of_the_results(toy):
    compute(toy, 0), compute(toy, 1)
    assert kept(toy, 0).finished and kept(toy, 1).finished
    first, second = load(toy, "results"), load(toy, "kept")
    write(toy, first, "out", formats=()), write(toy, second, "again", formats=())
    assert files("out") == files("again") and len(second.runs) == 2
    assert frames("kept/toy-growth")["rows"].equals(frames("results/toy-growth")["rows"])
    assert not list(Path("kept").rglob("*.pt"))
    before = files("kept")
    assert kept(toy, 0).new == 0 and compute(toy, 0, results="kept").reused == 3 and files("kept") == before


# ------------------------------------------------------------------------------- stops, and touches
def test_a_seed_in_the_middle_is_kept_and_a_run_goes_on_from_it_elsewhere(toy, package, tmp_path):
    fault = tmp_path / package / "raises"
    fault.touch()
    with pytest.raises(ArithmeticError):
        compute(toy, fault="raises")
    found = kept(toy)
    assert (found.new, len(found.sizes), found.finished) == (1, 1, False)
    assert load(toy, "kept").left_out == ("seed 0: not finished",)
    fault.unlink(), shutil.rmtree("results")  # the machine is gone
    assert compute(toy, results="kept", fault="raises").reused == 1
    found = kept(toy, results="kept")
    assert (found.new, len(found.sizes), found.finished) == (2, 3, True) and not list(Path("kept").rglob("*.pt"))
    compute(toy, fault="raises")
    (never,), (stopped,) = load(toy, "results").runs, load(toy, "kept").runs
    for key, piece in never.pieces.items():
        assert stopped.pieces[key].rows == piece.rows
        assert torch.equal(stopped.pieces[key].tensors["noise"], piece.tensors["noise"])
    assert compute(toy, results="kept", fault="raises").reused == 3


def test_what_is_finished_later_is_added_and_sessions_are_told_once(toy, package, tmp_path):
    fault = tmp_path / package / "raises"
    fault.touch()
    with pytest.raises(ArithmeticError):
        compute(toy, fault="raises")
    kept(toy)
    first = files("kept")
    fault.unlink()
    compute(toy, fault="raises")
    assert kept(toy).new == 2 and kept(toy).finished
    assert all(files("kept")[name] == data for name, data in first.items() if "pieces" in name)
    assert len(Folder(Path("kept/toy-growth/0")).sessions()) == 2


def test_a_kept_file_that_is_torn_or_edited_counts_as_absent_and_is_mended(toy):
    compute(toy), kept(toy)
    whole = files("kept")

    @MANY
    @given(st.sampled_from(["json", "pt.xz"]), st.integers(0, 10**6), st.booleans())
    def touch(suffix, place, cut):
        file = Path(f"kept/toy-growth/0/pieces/grown/episode-01.{suffix}")
        data = file.read_bytes()
        place %= len(data)
        file.write_bytes(data[:place] if cut else data[:place] + bytes([data[place] ^ 0x80]) + data[place + 1 :])
        assert load(toy, "kept").runs == ()
        assert kept(toy).new == 1 and files("kept") == whole

    touch()
    Path("kept/toy-growth/0/pieces/grown/episode-01.pt.xz").write_bytes(b"no such file")
    record = compute(toy, results="kept")
    assert record.reused == 2 and "episode-01.pt.xz: not the tensors that were stored" in record.notes[0]
    assert len(load(toy, "kept").runs) == 1  # beside the compressed ones that are none


def test_the_tensors_of_another_seed_are_not_taken_for_its_own(toy):
    compute(toy, 0), compute(toy, 1), kept(toy, 0), kept(toy, 1)
    shutil.copytree("kept/toy-growth/1/pieces", "kept/toy-growth/0/pieces", dirs_exist_ok=True)
    assert [run.seed for run in load(toy, "kept").runs] == [1]
    assert kept(toy, 0, results="kept", to="elsewhere").sizes == () and kept(toy, 0).finished


def test_of_raw_and_compressed_tensors_those_are_read_that_were_stored(toy):
    compute(toy), kept(toy)
    raw = Path("kept/toy-growth/0/pieces/grown/episode-01.pt")
    raw.write_bytes(b"half of a file")  # a stop between two writes leaves the old one there
    assert len(load(toy, "kept").runs) == 1
    assert kept(toy).finished and not raw.exists() and len(load(toy, "kept").runs) == 1


# ------------------------------------------------------------------------------------- refused
def test_other_arguments_are_refused_and_leave_what_is_kept(toy):
    compute(toy), kept(toy)
    before = files("kept")
    compute(toy, results="more", episodes=4)
    with pytest.raises(Mismatch, match="episodes = 3 there, 4 now"):
        kept(toy, results="more")
    assert files("kept") == before
    assert kept(toy, results="more", fresh=True).new == 4 and len(load(toy, "kept").runs[0].pieces) == 4


def test_pieces_of_other_code_are_never_mixed_into_a_kept_seed(work):
    experiment = light()
    compute(experiment), kept(experiment)
    before = files("kept")
    (work / "helper.py").write_text("SCALE = 9\n")
    experiment = light()
    with pytest.raises(Stale):  # kept or not, it is of other code than today's
        compute(experiment, results="kept")
    compute(experiment, results="today")
    with pytest.raises(Stale, match=r"expected pieces of the code of those in today/light/0 .*--fresh forgets them"):
        kept(experiment, results="today")
    assert files("kept") == before
    assert kept(experiment, results="today", fresh=True).new == 2
    assert compute(experiment, results="kept").reused == 2


def test_pieces_of_unknown_code_are_kept_once(work):
    experiment = light()
    compute(experiment)
    for file in Path("results/light/0/pieces").glob("*.json"):
        file.write_text(file.read_text().replace(', "seal"', ', "zeal"'))
    assert kept(experiment).new == 2 and kept(experiment).new == 0
    compute(experiment, results="again")
    with pytest.raises(Stale, match="2 of code unknown"):
        kept(experiment, results="again")


def test_a_kept_seed_that_is_at_work_is_left_alone_and_nothing_is_no_seed(work):
    experiment = light()
    compute(experiment), kept(experiment)
    with lock.held("kept/light/0/.lock"), pytest.raises(lock.Busy):
        kept(experiment)
    with lock.held("results/light/0/.lock"):  # the source may be
        assert kept(experiment).finished
    with pytest.raises(ValueError, match="no readable config"):
        kept(experiment, 7)
    Folder(Path("results/light/7")).clear(), Path("results/light/7").mkdir()
    shutil.copy("results/light/0/config.json", "results/light/7")
    assert kept(experiment, 7).sizes == () and not Path("kept/light/7").exists()  # no piece of it is finished


# -------------------------------------------------------------------------------- command line
def test_the_command_says_what_it_has_kept(work, capsys):
    for seed in range(3):
        compute(light(), seed)
    Path("results/light/1/done.json").unlink()
    compute(light(), 2, results="kept", pieces=3)
    Path("results/light/0/pieces/k-0.json").write_text("{")
    assert cli.main(["keep", "light"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "seed 0: results/light/0/pieces/k-0.json: torn or foreign, counts as absent"
    assert said[1].startswith(
        "seed 0: 1 pieces, 1 of them new, 0 kB, at most 0 a piece; not finished: gpsafe run light"
    )
    assert said[2].startswith("seed 1: 2 pieces, 2 of them new") and "not finished" in said[2]
    assert said[3].startswith("seed 2 is not kept: kept/light/2: expected the arguments")
    assert experiments.run(["light", "--seeds", "0", "1", "--results", "kept"], "c", package="light_work") == 0
    out = capsys.readouterr().out
    assert "seed 0: 2 pieces, 1 of them kept from before" in out and "seed 1: 2 pieces, 2 of them kept" in out
    assert cli.main(["keep", "light", "--seeds", "1", "--results", "kept", "--to", "kept"]) == 0
    assert "2 pieces, 0 of them new" in (out := capsys.readouterr().out) and "; finished" in out
    assert cli.main(["keep", "--help"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected the name of an experiment first"),
        (["light"], "expected results in results/light, got none of seed any"),
        (["light", "--results", "there", "--seeds", "0", "3"], "none of seed 3"),
        (["light", "--results", "there", "--to", "file"], "--to: expected a path that can be written"),
        (["light", "--two", "x"], "did you mean --to"),
    ],
)
def test_wrong_usage_is_one_clear_error(work, words, expected):
    from gpsafe.cli import keeping

    compute(light(), results="there")
    Path("file").touch()
    with pytest.raises(UsageError, match=expected):
        keeping.keep(words)
    assert not Path("kept").exists()
