"""What `mutate` reads: the areas and mutants of a checkout, and which test runs which line."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutation_operators import Mutant, Source, outermost

EQUIVALENT = "mutation_equivalent.toml"


@dataclass
class Coverage:
    """Which test runs which lines, kept per test file; lines are counted from the start of their function."""

    path: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def load(self) -> Coverage:
        """Reads what an earlier run stored."""
        if self.path.exists():
            self.files = json.loads(self.path.read_text())
        return self

    def save(self) -> None:
        """Writes it."""
        write(self.path, self.files)

    def all_of(self, file: str, within: Iterable[str]) -> dict[str, float]:
        """Every test in those of the files `within` in which one calls a function of `file`, with their seconds; every test
        of `within` where none does, as when `file` has none.
        """
        every = {name: self.files.get(name, {}).get("tests", {}) for name in within}
        calling = [tests for tests in every.values() if any(file in test["lines"] for test in tests.values())]
        return {
            node: test["seconds"]
            for tests in calling or every.values()
            for node, test in tests.items()
            if not test["failed"]
        }

    def tests(self, mutant: Mutant, start: int, within: Iterable[str]) -> dict[str, float]:
        """The tests in the files `within` that run the mutant's line, with their seconds.

        `start` is the first line of the function. Where the function's text is another one than when coverage was measured,
        every test counts that calls the function.
        """
        function, found = mutant.function, {}
        lines = range(mutant.first - start, mutant.line - start + 1)
        for name in within:
            for node, test in self.files.get(name, {}).get("tests", {}).items():
                called = test["lines"].get(mutant.file)
                if called is None or test["failed"]:
                    continue
                if function in called:
                    then, offsets = called[function]
                    if then != mutant.digest or any(line in offsets for line in lines):
                        found[node] = test["seconds"]
        return found


@dataclass
class Area:
    """A part of the source and the tests written for it."""

    source: str
    tests: list[str]


@dataclass
class Project:
    """A checkout: areas, what to import once, mutants of the chosen files."""

    root: Path
    areas: list[Area]
    preload: list[str]
    everything: list[str]
    sources: dict[str, Source]
    equivalents: list[dict[str, str]]

    @staticmethod
    def read(root: Path, only: list[str]) -> Project:
        """From pyproject.toml; `only` are prefixes of paths."""
        table = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["mutation"]
        areas = [Area(a["source"], a["tests"]) for a in table["areas"]]
        skipped = set(table.get("skip", []))
        sources: dict[str, Source] = {}
        for area in areas:
            base = root / area.source
            for file in sorted(base.rglob("*.py")) if base.is_dir() else [base]:
                path = str(file.relative_to(root))
                if path not in sources and path not in skipped and (not only or path.startswith(tuple(only))):
                    sources[path] = Source.read(root, path)
        declared = root / "scripts" / EQUIVALENT
        equivalents = tomllib.loads(declared.read_text()).get("equivalent", []) if declared.exists() else []
        return Project(root, areas, table.get("preload", []), table["tests"], sources, equivalents)

    def area(self, path: str) -> Area:
        """The most special area of a file."""
        fitting = [a for a in self.areas if path == a.source or path.startswith(a.source.rstrip("/") + "/")]
        return max(fitting, key=lambda a: len(a.source))

    def test_paths(self, path: str) -> list[str]:
        """The area's tests and the file's own doctests."""
        return [*self.area(path).tests, path]

    def equivalent(self, mutant: Mutant) -> str | None:
        """Why a mutant is declared equivalent: every key of the entry but the reason agrees with the mutant's."""
        for entry in self.equivalents:
            if all(getattr(mutant, key) == value for key, value in entry.items() if key != "reason"):
                return entry["reason"]
        return None


def places(source: Source) -> dict[int, tuple[str, int]]:
    """Line → (outermost function, line from its start)."""
    return {
        line: (name, line - node.lineno)
        for name, node in outermost(source.tree)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }


def test_files(root: Path, path: str) -> list[str]:
    """The Python files of a path."""
    base = root / path
    return [str(f.relative_to(root)) for f in base.rglob("*.py")] if base.is_dir() else [path]


def sha(path: Path) -> str:
    """Of a file's bytes, shortened."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write(path: Path, value: Any) -> None:
    """JSON, in one step: a stopped run leaves the old file or the new one."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=1, ensure_ascii=False))
    scratch.replace(path)
