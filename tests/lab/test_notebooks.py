"""Every notebook stands twice, as text and with outputs, and the two say the same; outputs are small and quiet."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
BOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
LARGEST, THUMB = 1_000_000, 60_000  # bytes

if importlib.util.find_spec("jupytext") is None:
    pytest.skip("no jupytext", allow_module_level=True)  # not imported: every worker would, for the few that need it


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("notebooks_script", ROOT / "scripts" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(notebook):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def stored(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def noise(notebook):
    """What differs between two runs, or says nothing to a reader."""
    found = ["metadata"] if set(notebook["metadata"]) != {"jupytext", "kernelspec", "language_info"} else []
    for cell in notebook["cells"]:
        found += ["cell metadata"] if cell["metadata"] else []
        if cell["cell_type"] == "code":
            found += ["count"] if cell["execution_count"] is not None else []
            for output in cell["outputs"]:
                found += [output["output_type"]] if output["output_type"] in ("error", "execute_result") else []
                found += [kind for kind in output.get("data", {}) if kind.startswith("application/")]
                text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
                found += ["raw repr"] if re.search(r"<.+ at 0x|tensor\(", text) else []
    return found


def test_text_and_notebook_stand_in_pairs_with_a_number():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == BOOKS
    assert BOOKS[0] == "00_index" and all(re.fullmatch(r"0\d_[a-z_]+", name) for name in BOOKS)


@pytest.mark.parametrize("name", BOOKS)
def test_text_and_notebook_say_the_same(name, script):
    assert cells(stored(name)) == cells(json.loads(script.nbformat.writes(script.source(name))))


@pytest.mark.parametrize("name", BOOKS)
def test_outputs_are_there_small_and_quiet(name):
    assert noise(stored(name)) == []
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    pictures = [o for c in stored(name)["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures or name == "00_index"


@pytest.mark.parametrize("name", BOOKS)
def test_what_is_linked_is_there(name):
    text = "\n".join(source for kind, source in cells(stored(name)) if kind == "markdown")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_the_index_names_every_notebook_with_a_thumbnail():
    text = "\n".join(source for _, source in cells(stored("00_index")))
    for name in BOOKS[1:]:
        assert f"({name}.ipynb)" in text and f"(thumbnails/{name}.png)" in text
        assert (FOLDER / "thumbnails" / f"{name}.png").stat().st_size < THUMB


def test_control_noise_is_caught():
    code = {"cell_type": "code", "metadata": {"x": 1}, "execution_count": 3, "source": "", "outputs": [
        {"output_type": "execute_result", "data": {"text/plain": "<object at 0x7f>", "application/x": ""}}]}  # fmt: skip
    found = noise({"metadata": {"widgets": {}}, "cells": [code]})
    assert found == ["metadata", "cell metadata", "count", "execute_result", "application/x", "raw repr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOOKS)
def test_it_runs_from_top_to_bottom(name, script):
    notebook = script.executed(name)
    assert noise(json.loads(script.nbformat.writes(notebook))) == []
