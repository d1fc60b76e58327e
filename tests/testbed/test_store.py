"""Files are whole or absent; what is written is strict JSON and comes back."""

from __future__ import annotations

import enum
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.testbed import store

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"))
TREES = st.recursive(LEAVES, lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text(max_size=5), t, max_size=4))


@dataclass
class Point:
    x: float
    where: Path


class Colour(enum.StrEnum):
    RED = "red"


def refuse(literal: str) -> None:
    raise AssertionError(f"{literal} is no strict JSON")


@given(TREES)
def test_jsonable_is_strict_json_and_keeps_finite_values(tree):
    text = json.dumps(store.jsonable(tree), allow_nan=False)
    assert json.loads(text, parse_constant=refuse) == store.jsonable(tree)


@given(TREES)
def test_plain_is_idempotent_and_survives_json_with_infinities_and_nan(tree):
    once = store.plain(tree)
    assert repr(store.plain(once)) == repr(once) == repr(json.loads(json.dumps(once)))


def test_plain_takes_what_numerical_code_returns():
    value = {
        "scalar": np.float64(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "array": np.arange(4).reshape(2, 2),
        "tensor": torch.tensor([1.0, math.inf], dtype=torch.float64),
        "point": Point(1.0, Path("a") / "b"),
        "colour": Colour.RED,
        "set": {2, 1},
        3: (1, 2),
    }
    assert store.plain(value) == {
        "scalar": 0.5,
        "count": 3,
        "flag": True,
        "array": [[0, 1], [2, 3]],
        "tensor": [1.0, math.inf],
        "point": {"x": 1.0, "where": "a/b"},
        "colour": "red",
        "set": [1, 2],
        "3": [1, 2],
    }
    assert store.jsonable(value["tensor"]) == [1.0, "Infinity"]


@pytest.mark.parametrize("value", [object(), {"a": object()}, {(1, 2): 3}, {1: 0, "1": 1}, b"x"])
def test_plain_refuses_what_json_cannot_hold(value):
    with pytest.raises(ValueError, match=r"store\.plain: expected"):
        store.plain(value)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = store.write_text(tmp_path / "deep" / "file.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_written_files_have_the_permissions_of_ordinary_files(tmp_path):
    plain_file = tmp_path / "plain"
    plain_file.write_text("x")
    assert store.write_text(tmp_path / "ours", "x").stat().st_mode == plain_file.stat().st_mode


def test_tensors_come_back_bit_equal(tmp_path):
    value = {"a": torch.linspace(0, 1, 7, dtype=torch.float64), "b": [torch.eye(2)], "c": 3}
    back = store.read_torch(store.write_torch(tmp_path / "x.pt", value))
    assert torch.equal(back["a"], value["a"])
    assert torch.equal(back["b"][0], value["b"][0])
    assert back["c"] == 3


@pytest.mark.parametrize("content", [b"", b'{"sample": 1', b"\xff\xfe"])
def test_a_damaged_piece_reads_as_missing(tmp_path, content):
    (tmp_path / "piece").write_bytes(content)
    assert store.read_piece(tmp_path / "piece") is None
    assert store.read_piece(tmp_path / "absent") is None


def test_unwritable_paths_are_refused_and_writable_ones_left_untouched(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path, tmp_path / "file" / "below", Path("/proc/none/x.json")):
        with pytest.raises(ValueError, match="here: expected"):
            store.require_writable("here", path)
    store.require_writable("here", tmp_path / "new" / "deep" / "x.json")
    store.require_writable("here", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "new").exists()
