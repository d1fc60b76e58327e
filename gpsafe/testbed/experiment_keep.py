"""Finished pieces of a seed, copied to where they outlive the machine that computed them.

The copy is a seed's folder as any other (`gpsafe.testbed.experiment_store`): a run goes on from it and a report draws it. Only
the tensors look different on the disk: a ``.pt`` becomes ``.pt.xz``, whose content is the ``.pt`` to the bit. So the ``.json``
of a piece is copied as it is, and its digest and seal vouch for the copy as they did before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpsafe.testbed import lock, store
from gpsafe.testbed.experiment_store import Folder, Stale, whose


@dataclass(frozen=True, slots=True)
class Kept:
    """What stands in the copy of a seed now."""

    sizes: tuple[int, ...]
    """Bytes of each piece."""
    new: int
    """How many pieces this call has added."""
    finished: bool
    """Whether they are all that the run asked for."""
    notes: tuple[str, ...]
    """Why pieces of the source could not be used."""


def keep(source: Folder, target: Folder, *, fresh: bool = False) -> Kept:
    """Copies the finished pieces of a seed, of an unfinished one too, while it is computed or afterwards.

    A usable piece of the same work and code that is in `target` stays as it is. `source` may be `target`: its tensors are then
    compressed where they are. A call that is stopped leaves whole pieces; the next one goes on.

    Args:
        source: where a run has put them; only read.
        target: made if missing, and locked meanwhile.
        fresh: forget what `target` holds first.

    Raises:
        ValueError: if `source` has no readable arguments.
        Mismatch: if `target` holds results of other arguments.
        Stale: if it holds pieces of other code than those of `source`, with which they are not mixed.
        lock.Busy: if `target` is being computed.
    """
    config = source.config()
    if config is None:
        raise ValueError(f"{source.path}: expected results of a seed, got no readable config.json")
    heads = list(source.heads())
    found = [head for head in heads if isinstance(head, dict)]
    notes = [head for head in heads if isinstance(head, str)]
    if not found and not target.path.exists():
        return Kept((), 0, False, tuple(notes))
    with lock.held(target.lock, wait=False):
        here = target.path.samefile(source.path)
        if fresh and not here:
            target.clear()
        target.require_same(str(config.get("experiment")), config["arguments"], config["seed"])
        if target.config() is None:  # whose work the pieces are stands in it
            store.write_json(target.path / "config.json", config)
        _require_same_code(source, target, found)
        new, sizes, sure = 0, [], set()
        for head in found:
            piece = source.stored(head["key"])
            if isinstance(piece, tuple):
                new += _copied(*piece, target)
                sure.add(head["key"])
                sizes.append(sum(file.stat().st_size for file in _files(target, head["key"]) if file.exists()))
            else:
                notes.append(piece or f"{source.file(head['key'])}.json: is gone")
        _tell_sessions(source, target)
        if (keys := source.done()) is not None and keys != target.done() and _whole(target, keys, sure):
            store.write_json(target.path / "done.json", source.read("done.json"))
        return Kept(tuple(sizes), new, _whole(target, target.done(), sure), tuple(notes))


def _copied(head: Mapping[str, Any], data: bytes | None, target: Folder) -> bool:
    """Puts a piece there, tensors first, since the ``.json`` vouches for them; whether anything was to be done."""
    there = target.stored(head["key"])
    usable = isinstance(there, tuple)
    _, tensors = there if usable else (head, data)
    json, raw, small = _files(target, head["key"])
    if usable and not raw.exists():
        return False
    if tensors is not None:
        store.write_xz(small, tensors)
    if not usable:
        store.write_piece(json, head)
    raw.unlink(missing_ok=True)
    return True


def _files(folder: Folder, key: str) -> tuple[Path, Path, Path]:
    file = folder.file(key)
    return file.with_name(f"{file.name}.json"), file.with_name(f"{file.name}.pt"), file.with_name(f"{file.name}.pt.xz")


def _whole(folder: Folder, keys: Sequence[str] | None, sure: Collection[str]) -> bool:
    """Whether all of these pieces are usable; of those that are surely there nothing is read again."""
    return keys is not None and all(key in sure or isinstance(folder.stored(key), tuple) for key in keys)


def _require_same_code(source: Folder, target: Folder, found: Sequence[Mapping[str, Any]]) -> None:
    """An unknown fingerprint is no other's; the very same piece is itself."""
    codes = {head["made"].get("code") for head in found} - {None}
    there = [head for head in target.heads() if isinstance(head, dict) and head not in found]
    if found and (foreign := [head["made"] for head in there if head["made"].get("code") not in codes]):
        expected = f"{target.path}: expected pieces of the code of those in {source.path} ({whose([h['made'] for h in found])})"
        raise Stale(f"{expected}, got {whose(foreign)}; --fresh forgets them, --to keeps the new ones elsewhere")


def _tell_sessions(source: Folder, target: Folder) -> None:
    """Who worked here: those of the source are as it tells them, which may know their end by now."""
    mine, there = source.sessions(), target.sessions()
    known = [(session.get("started_at"), session.get("command")) for session in mine]
    merged = [s for s in there if (s.get("started_at"), s.get("command")) not in known] + mine
    if merged != there:
        store.write_json(target.path / "provenance.json", {"sessions": merged})
