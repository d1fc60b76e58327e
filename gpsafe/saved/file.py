"""`save` and `load`: one file for one object, readable with NumPy alone, without pickle and without code.

The file is a zip archive of ``object.json`` and of arrays ``a0.npy``, ``a1.npy``, …: ``numpy.load(path)`` opens it, ``["a0"]``
is an array and ``["object.json"]`` the text that says what it is. Equal objects give equal bytes.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from gpsafe import _require
from gpsafe._files import write_bytes
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.saved.codec import Decoder, Encoder

FORMAT = "gpsafe object 1"
HEAD = "object.json"
LEARNER = "learner.json"  # in the folder of a saved learner


@plain_tensors
def save(path: str | os.PathLike[str], obj: Any) -> Path:
    """Writes a model, confidence set, safe set or certificate (or a set, cost, task, verdict that it is made of) in one step.

    What is read sees the old file or the new one, never a part. A posterior is written with its factors, so that `load`
    gives the same posterior bit by bit (on the CPU).

    >>> import gpsafe as gs, tempfile
    >>> safe = gs.SafePolicySet.initial(3, [1], budget=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gs.load(gs.save(f"{folder}/safe.npz", safe)).budget
    0.5

    Raises:
        ValueError: naming the part that cannot be written: a function of the user's, a kernel with other than stated numbers,
            a learner (which has its own `save`).
    """
    encoder = Encoder()
    about = {"format": FORMAT, "object": encoder.encode(obj, type(obj).__name__), "kernels": encoder.kernels}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        _put(archive, HEAD, json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False).encode())
        for name, array in encoder.arrays.found.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            _put(archive, f"{name}.npy", member.getvalue())
    if Path(path).is_dir():
        raise _require.fail("save", "the path of a file", f"the folder {path}")
    return write_bytes(path, buffer.getvalue())


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980: the bytes are those of the object alone
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)


@plain_tensors
def load(path: str | os.PathLike[str]) -> Any:
    """The object of a file of `save`, on the CPU.

    A file is not believed: constructors check their fields, factors must fit kernel, λ and data, generations must continue
    each other, members of safe sets must have entered within the budget, and a certificate is judged again. Data, and numbers
    that a user may state, are taken as stated.

    Raises:
        ValueError: naming the file if it is missing, torn, foreign, of a newer version, or claims what is not so.
    """
    if not isinstance(path, str | os.PathLike):
        raise _require.fail("load", "a path", repr(path)[:80])
    if Path(path).is_dir():
        learner = (Path(path) / LEARNER).exists()
        got = f"{path}, the folder of a learner (its class loads it)" if learner else f"the folder {path}"
        raise _require.fail("load", "a file of gpsafe.save", got)
    about, arrays = _read(path)
    try:
        decoder = Decoder(arrays, about["kernels"])
        return decoder.decode(about["object"], "object")
    except Exception as error:  # whatever a foreign tree makes constructors do
        raise _require.fail("load", f"what gpsafe.save writes in {path}", _require.told(error)) from error


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read(HEAD))
            members = [name for name in archive.namelist() if name != HEAD]
            arrays = {name.removesuffix(".npy"): archive.read(name) for name in members}
    except FileNotFoundError:
        raise _require.fail("load", "a file of gpsafe.save", f"{path}: missing") from None
    except Exception as error:  # zipfile and zlib raise a dozen kinds on torn files
        raise _require.fail(
            "load", "a file of gpsafe.save", f"{path}: torn or foreign ({_require.told(error)})"
        ) from error
    form = about.get("format") if isinstance(about, dict) else None
    if not isinstance(form, str) or not form.startswith("gpsafe object "):
        raise _require.fail("load", f"{FORMAT!r}", f"{path}: foreign, format {form!r}")
    if form != FORMAT:
        raise _require.fail("load", f"{FORMAT!r}", f"{path}: {form!r}, of another version of gpsafe")
    try:
        return about, {name: np.load(io.BytesIO(data), allow_pickle=False) for name, data in arrays.items()}
    except Exception as error:
        raise _require.fail("load", "arrays of numbers", f"{path}: {_require.told(error)}") from error
