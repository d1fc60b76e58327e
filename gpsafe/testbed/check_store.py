"""The finished pieces of checks on the disk.

Each is a file ``<cache>/<fingerprint>/<budget>/<check>/<piece>.json`` under a seal over what it says and where it belongs; the
seal of a verdict covers those of the pieces that it judges. A file that is torn, edited, of another type, or copied from
another piece, check, budget or revision breaks its seal: it counts as absent, is named and is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpsafe.testbed import store


@dataclass(frozen=True, slots=True)
class Task:
    """One shard, or (``shard is None``) the judgement over all of them, or (``grade`` given) one graded control."""

    name: str
    broken: bool
    shard: int | None
    grade: int | None = None

    @property
    def where(self) -> str:
        """For messages."""
        if self.grade is not None:
            return f"grade {self.grade}"
        return "judge" if self.shard is None else f"piece {self.shard}"

    @property
    def content(self) -> str:
        """The name of what its file holds."""
        return "graded" if self.grade is not None else "evidence" if self.shard is None else "sample"


@dataclass(frozen=True, slots=True)
class Pieces:
    """Those of one fingerprint and one budget; `folder` is ``<cache>/<fingerprint>/<budget>``."""

    folder: Path
    notes: list[str] = field(default_factory=list)
    """Files that were there and could not be used."""

    def home(self, name: str) -> Path:
        """Folder of a check."""
        return self.folder / quote(name, safe="")

    def path(self, task: Task) -> Path:
        """Where a piece is kept."""
        home = self.home(task.name)
        if task.grade is not None:
            return home / f"grade-{task.grade:05d}.json"
        number = "verdict" if task.shard is None else f"{task.shard:05d}"
        return home / f"{'control' if task.broken else 'claim'}-{number}.json"

    def read(self, task: Task, judged: list[dict[str, Any]] | None = None) -> dict[str, Any] | None:
        """A kept piece, or None if there is none that can be used.

        Args:
            task: which.
            judged: the pieces that a judgement must be about.
        """
        path = self.path(task)
        piece = store.read_piece(path)
        whole = piece if isinstance(piece, dict) and {"seal", "seconds", task.content} <= piece.keys() else None
        if whole is not None and whole["seal"] == self._seal(task, whole, judged):
            return whole
        if path.exists():
            note = f"{path}: not what was written there, is made again"
            self.notes.extend([note] if note not in self.notes else [])
        return None

    def kept(self, name: str, broken: bool, most: int) -> list[dict[str, Any]]:
        """The finished pieces 0, 1, 2 … of a claim or a control, up to the first that is missing."""
        found: list[dict[str, Any]] = []
        while len(found) < most and (piece := self.read(Task(name, broken, len(found)))) is not None:
            found.append(piece)
        return found

    def write(self, task: Task, value: Any, seconds: float, judged: list[dict[str, Any]] | None = None) -> None:
        """Keeps what a task found; `judged` as in `read`."""
        piece = {task.content: store.plain(value), "seconds": seconds}
        store.write_piece(self.path(task), piece | {"seal": self._seal(task, piece, judged)})

    def _seal(self, task: Task, piece: Mapping[str, Any], judged: list[dict[str, Any]] | None) -> str:
        place = [*self.folder.parts[-2:], self.path(task).relative_to(self.folder).as_posix()]
        return store.seal(place, piece[task.content], piece["seconds"], [other["seal"] for other in judged or ()])
