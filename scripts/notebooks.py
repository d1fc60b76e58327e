#!/usr/bin/env python3
"""Runs the notebooks from top to bottom and writes them with their outputs: python scripts/notebooks.py [NAME ...].

The text is notebooks/NAME.py (percent format, jupytext); beside it stands NAME.ipynb with what its cells show: pictures and
words, without execution counts, times, and widgets, which nobody can move without a kernel (their static picture stays).
"""

from __future__ import annotations

import base64
import io
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
THUMBNAILS = FOLDER / "thumbnails"
LIMIT = 600  # seconds of one cell, on a busy machine
KEPT = ("image/png", "text/html", "text/markdown", "text/plain")
HEAD = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def names() -> list[str]:
    """All notebooks, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def source(name: str) -> Any:
    """The notebook of a text, without outputs."""
    return plain(jupytext.read(FOLDER / f"{name}.py"))


def plain(notebook: Any) -> Any:
    """The notebook without noise: no counts, no times, no widgets, cells named by their place."""
    notebook.metadata = nbformat.from_dict(HEAD)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    for place, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{place}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in map(_output, cell.outputs) if output is not None]
    return notebook


def _output(output: Any) -> Any:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type == "error":
        return output
    data = {kind: value for kind, value in output.data.items() if kind in KEPT}
    if "image/png" in data or "text/html" in data or "text/markdown" in data:
        data.pop("text/plain", None)
    return nbformat.v4.new_output("display_data", data=data) if data else None


def executed(name: str) -> Any:
    """The notebook with the outputs of a fresh run.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    from nbclient import NotebookClient

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    notebook = source(name)
    NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return plain(notebook)


def thumbnail(name: str, notebook: Any) -> None:
    """The first picture of a notebook, small, for the index."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if not pictures:
        return
    picture = Image.open(io.BytesIO(base64.b64decode(pictures[0]))).convert("RGB")
    picture.thumbnail((480, 240))
    THUMBNAILS.mkdir(exist_ok=True)
    picture.quantize(64).save(THUMBNAILS / f"{name}.png", optimize=True)


def main(wanted: list[str]) -> None:
    """Runs and writes the notebooks wanted, or all."""
    for name in wanted or names():
        begun, spent = time.perf_counter(), _processor()
        notebook = executed(name)
        thumbnail(name, notebook)
        target, text = FOLDER / f"{name}.ipynb", nbformat.writes(notebook) + "\n"
        changed = not target.exists() or target.read_text() != text
        target.write_text(text)
        told = "written" if changed else "as it was"
        seconds = f"{time.perf_counter() - begun:.0f} s ({_processor() - spent:.0f} s of a processor)"
        print(f"notebooks: {name} ran in {seconds}, {len(text) / 1e3:.0f} kB, {told}", flush=True)


def _processor() -> float:
    """Seconds that this process and those that it has ended have had."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main(sys.argv[1:])
