#!/usr/bin/env python3
"""Which small errors in the believed modules do the tests notice?

    python scripts/mutate.py --only gpsafe/sets --sample 200 --budget-minutes 20
    python scripts/mutate.py --only gpsafe/sets --survivors     # those of the last report
    python scripts/mutate.py --sample-per-file 30               # every believed module: the table of docs/results.md

Makes single-point mutants (`mutation_operators`), runs each against the tests of its area that execute its line, cheapest
first, and what survives against the rest of the suite (with --rest). Which test executes which line is measured once and kept
in the report's folder. A stopped run goes on where it was: a result is kept until the text of its function changes, a
survivor is tried again when the tests of its area change. pyproject.toml names the areas ([tool.mutation]);
scripts/mutation_equivalent.toml declares mutants that no test can tell apart, each with its reason.

A sample is random with a fixed seed, and nested: a larger one goes on from the report of a smaller one. The modules are run
in the order of --only.

Writes report/mutation.json: counts by module and in all, a row per mutant, and the kills of each test.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mutation_operators import Mutant, outermost
from mutation_project import Coverage, Project, places, sha, test_files, write
from mutation_report import say, show, summary

SHORT = (0.3, 3.0)  # seconds: tests are tried in these bands, within a band file by file


class Run:
    """One call of the tool."""

    def __init__(self, project: Project, options: argparse.Namespace) -> None:
        self.project, self.options = project, options
        self.folder = Path(options.report)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = {}
        self.report = self.folder / "mutation.json"
        if self.report.exists():
            self.rows = {row["id"]: row for row in self.read()["rows"]}
        self.coverage = Coverage(self.folder / "mutation_coverage.json").load()
        self.places = {path: places(source) for path, source in project.sources.items()}
        self.end = time.monotonic() + 60 * options.budget_minutes
        self.lock = threading.Lock()
        self.kills: Counter[tuple[str, str]] = Counter()
        self.saved = time.monotonic()
        self.drawn: set[str] = set()  # the random sample, without what else is tried

    # ------------------------------------------------------------------ choice
    def chosen(self) -> list[Mutant]:
        """The sample, the same for the same seed whatever else changes, what survived before, and what is declared if asked."""
        all_of_them = [m for source in self.project.sources.values() for m in source.mutants]
        if self.options.operator:
            all_of_them = [m for m in all_of_them if m.operator in self.options.operator]
        rank = {m.id: hashlib.sha256(f"{self.options.seed}:{m.id}".encode()).digest() for m in all_of_them}
        ranked = sorted(all_of_them, key=lambda m: rank[m.id])
        if self.options.sample_per_file is not None:
            before: Counter[str] = Counter()
            for m in ranked:
                before[m.file] += 1
                if before[m.file] <= self.options.sample_per_file:
                    self.drawn.add(m.id)
        else:
            self.drawn = {m.id for m in ranked[: self.options.sample]}
        again = {i for i, row in self.rows.items() if row["status"] == "survived"}
        if self.options.check_equivalent:
            again |= {m.id for m in all_of_them if self.project.equivalent(m) is not None}
        return [m for m in all_of_them if m.id in self.drawn | again]

    def open(self, mutants: list[Mutant], stage: str) -> list[Mutant]:
        """Those without a result that still holds."""
        left = []
        for m in mutants:
            row = self.rows.get(m.id, {"digest": None, "after": None, "status": None})
            holds = row["digest"] == m.digest and row["after"] == m.after
            if holds and row["status"] == "killed":
                continue
            if holds and row["status"] == "survived" and row["tests"].get(stage) == self.tests_digest(m, stage):
                continue
            if stage == "rest" and not (holds and row["status"] == "survived"):
                continue
            left.append(m)
        return left

    @functools.cache  # noqa: B019
    def _digest(self, paths: tuple[str, ...]) -> str:
        files = sorted({f for path in paths for f in test_files(self.project.root, path)})
        return hashlib.sha256(b"".join((self.project.root / f).read_bytes() for f in files)).hexdigest()[:16]

    def tests_digest(self, mutant: Mutant, stage: str) -> str:
        """Changes with the tests of the stage."""
        paths = self.project.area(mutant.file).tests if stage == "area" else self.project.everything
        return self._digest(tuple(paths))

    # ----------------------------------------------------------------- stages
    def stage(self, name: str, mutants: list[Mutant]) -> None:
        """Runs the open ones of `mutants` against the tests of a stage."""
        todo = self.open(mutants, name)
        for m in mutants:
            reason = self.project.equivalent(m)
            killed = self.rows.get(m.id, {}).get("status") == "killed"
            if reason is not None and not killed and not self.options.check_equivalent:
                self._row(m, {"status": "equivalent", "reason": reason, "killed_by": None, "seconds": 0.0}, name)
                todo = [other for other in todo if other is not m]
        if not todo:
            return
        files = {m.file for m in todo}
        paths = (
            self.project.everything
            if name == "rest"
            else sorted({p for f in files for p in self.project.test_paths(f)})
        )
        self._serve(name, todo, paths)

    def _serve(self, stage: str, todo: list[Mutant], paths: list[str]) -> None:
        import mutation_server as server

        server.profile()
        root, sources = self.project.root, self.project.sources
        log = self.folder / f"mutation_{stage}.log"
        log.write_text("")
        pairs = []
        for _ in range(self.options.workers):
            fresh = server.Worker(lambda c: server.fresh(root, sources, c), log)
            pairs.append((server.Worker(lambda c: server.live(root, paths, sources, c), log), fresh))
        hellos = [live.ask() for live, _ in pairs]
        for hello in hellos:
            if "broken" in hello:
                raise RuntimeError(f"{hello['broken']}, see {log}")
        self.nodes: dict[str, str] = hellos[0]["nodes"]
        self.early: dict[str, set[tuple[str, int]]] = hellos[0]["early"]
        say(f"{stage}: {len(todo)} mutants, {len(self.nodes)} tests in {len(set(self.nodes.values()))} files")
        self._each(pairs, self._missing(stage), self._cover)
        self.coverage.save()
        self.done, self.total = 0, len(todo)
        order = _shuffled(todo) if self.options.sample is not None else sorted(todo, key=self._turn)
        self._each(pairs, [(stage, m) for m in order], self._mutant)
        for live, fresh in pairs:
            live.stop()
            fresh.stop()

    def _turn(self, m: Mutant) -> tuple[int, str, str]:
        """Files in the order of --only."""
        prefixes = [i for i, prefix in enumerate(self.options.only) if m.file.startswith(prefix)]
        return min(prefixes, default=0), m.file, m.function

    def _each(self, pairs: list[Any], jobs: list[Any], work: Any) -> None:
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        failures: list[BaseException] = []

        def loop(pair: Any) -> None:
            while not failures and (work == self._cover or time.monotonic() < self.end):
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    work(pair, job)
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=loop, args=(pair,), daemon=True) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    # --------------------------------------------------------------- coverage
    def _missing(self, stage: str) -> list[str]:
        return [
            file
            for file in sorted(set(self.nodes.values()))
            if self.coverage.files.get(file, {}).get("digest") != sha(self.project.root / file)
            or not set(self.project.sources) <= set(self.coverage.files[file]["sources"])
        ]

    def _cover(self, pair: Any, file: str) -> None:
        nodes = [node for node, its in self.nodes.items() if its == file]
        answer = pair[0].ask({"kind": "cover", "nodes": nodes, "wall": 3600.0, "clear": True})
        tests = {}
        for test in answer["tests"]:
            lines: dict[str, dict[str, tuple[str, list[int]]]] = {}
            for path, line in sorted(test["lines"]):
                where = self.places[path].get(line)
                if where is not None:
                    then = lines.setdefault(path, {}).setdefault(where[0], (self._function_digest(path, where[0]), []))
                    then[1].append(where[1])
            tests[test["test"]] = {"seconds": round(test["seconds"], 4), "failed": bool(test["failed"]), "lines": lines}
            if test["failed"]:
                say(f"fails without any mutant, left out: {test['test']}: {test['failed']}")
        if len(tests) < len(nodes):
            say(f"broke off at {answer.get('killed_by')} ({answer.get('reason')}): {file} is measured in part")
        old = self.coverage.files.get(file, {})
        sources = set(self.project.sources)
        if old.get("digest") == sha(self.project.root / file):  # other sources measured earlier are kept
            for node, test in old["tests"].items():
                if node in tests:
                    tests[node]["lines"] = {**test["lines"], **tests[node]["lines"]}
            sources |= set(old["sources"])
        with self.lock:
            self.coverage.files[file] = {
                "digest": sha(self.project.root / file), "sources": sorted(sources), "tests": tests
            }  # fmt: skip
            self.coverage.save()
        say(f"coverage of {file}: {len(tests)} tests, {sum(t['seconds'] for t in tests.values()):.1f} s")

    @functools.cache  # noqa: B019
    def _function_digest(self, path: str, function: str) -> str:
        source = self.project.sources[path]
        node = dict(outermost(source.tree))[function]
        lines = source.text.splitlines()[node.lineno - 1 : node.end_lineno]  # type: ignore[attr-defined]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    # ---------------------------------------------------------------- mutants
    def _mutant(self, pair: Any, job: tuple[str, Mutant]) -> None:
        stage, m = job
        area = self._area_files(m)
        within = area if stage == "area" else [f for f in set(self.nodes.values()) if f not in area]
        if m.function:
            seconds = self.coverage.tests(m, m.line - self.places[m.file][m.line][1], within)
        else:
            seconds = self.coverage.all_of(m.file, within)
        answer = self._ask(pair[0], m, seconds) if m.function else {"status": "fresh", "seconds": 0.0}
        lines = {(m.file, line) for line in range(m.first, m.line + 1)}
        early = [file for file in within if lines & self.early.get(file, set())]
        if answer["status"] == "fresh" or (answer["status"] == "survived" and early):
            spent = answer["seconds"]
            seconds |= {
                node: test["seconds"]
                for file in early
                for node, test in self.coverage.files[file]["tests"].items()
                if not test["failed"]
            }
            answer = self._ask(pair[1], m, seconds)
            answer["seconds"] += spent
        if answer["status"] == "error":
            raise RuntimeError(f"{m.id}: {answer['reason']}")
        if answer["status"] == "survived":
            answer["reason"] = f"{len(seconds)} tests run its line" if seconds else "no test runs its line"
            declared = self.project.equivalent(m)
            if declared is not None:
                answer |= {"status": "equivalent", "reason": declared}
        elif self.project.equivalent(m) is not None:
            say(f"declared equivalent, and killed: {m.id}")
        self._row(m, answer, stage)

    def _ask(self, server: Any, m: Mutant, seconds: dict[str, float]) -> dict[str, Any]:
        nodes = self._ordered({node: s for node, s in seconds.items() if node in self.nodes}, m)
        if not nodes:
            return {"status": "survived", "seconds": 0.0}
        return server.ask({
            "kind": "mutant", "file": m.file, "id": m.id, "function": m.function, "nodes": nodes, "seconds": seconds,
            "files": [self.nodes[n] for n in nodes], "grace": self.options.grace, "wall": 90.0 + 15 * sum(seconds.values()),
        })  # fmt: skip

    def _area_files(self, m: Mutant) -> list[str]:
        paths = self.project.test_paths(m.file)
        return [f for f in set(self.nodes.values()) | set(self.coverage.files)
                if any(f == p or f.startswith(p.rstrip("/") + "/") for p in paths)]  # fmt: skip

    def _ordered(self, seconds: dict[str, float], m: Mutant) -> list[str]:
        """Cheap tests first, file by file; ahead of all those that already killed a mutant of this function."""

        def band(node: str) -> int:
            return sum(seconds[node] > limit for limit in SHORT)

        own = f"{m.file}::{m.function}"
        killers = [n for n in seconds if self.kills[own, n] and band(n) < 2]
        killers.sort(key=lambda n: seconds[n] / self.kills[own, n])
        rest = sorted(set(seconds) - set(killers), key=lambda n: (band(n), self.nodes[n], seconds[n]))
        return [*killers, *rest]

    def _row(self, m: Mutant, answer: dict[str, Any], stage: str) -> None:
        with self.lock:
            if answer["status"] == "killed":
                self.kills[f"{m.file}::{m.function}", answer["killed_by"]] += 1
            old = self.rows.get(m.id, {})
            tests = {
                **(old.get("tests", {}) if old.get("digest") == m.digest else {}),
                stage: self.tests_digest(m, stage),
            }
            self.rows[m.id] = {
                **asdict(m), "status": answer["status"], "stage": stage, "killed_by": answer.get("killed_by"),
                "reason": answer.get("reason", ""), "seconds": round(answer["seconds"], 3), "tests": tests,
                "first": old.get("first", answer["status"]),
            }  # fmt: skip
            if answer["status"] != "equivalent" or answer["seconds"] > 0:
                self.done += 1
                by = f"  by {answer.get('killed_by')}" if answer["status"] == "killed" else ""
                say(
                    f"[{self.done}/{self.total}] {answer['status']:9} {answer['seconds']:5.1f} s {m.file}:{m.line} "
                    f"{m.operator}: {m.before[:70]} -> {m.after[:70]}{by}"
                )
            if time.monotonic() > self.saved + 10:
                self.write()

    def read(self) -> dict[str, Any]:
        """The last report."""
        return json.loads(self.report.read_text())

    def write(self) -> dict[str, Any]:
        """Writes the report; rows of mutants that are no more are left out."""
        now = {m.id: m for source in self.project.sources.values() for m in source.mutants}
        self.rows = {
            i: row for i, row in self.rows.items() if row["file"] not in self.project.sources or i in now
        }  # fmt: skip
        kills = Counter(row["killed_by"] for row in self.rows.values() if row["status"] == "killed")
        tests = [
            {"test": node, "seconds": test["seconds"], "kills": kills[node]}
            for file in self.coverage.files.values()
            for node, test in file["tests"].items()
            if test["lines"]
        ]
        tests.sort(key=lambda t: (t["kills"] > 0, -t["seconds"]))
        totals = {path: len(source.mutants) for path, source in self.project.sources.items() if source.mutants}
        report = {
            **summary(self.rows.values(), self.drawn, totals),
            "rows": sorted(self.rows.values(), key=lambda row: (row["file"], row["line"], row["id"])), "tests": tests,
        }  # fmt: skip
        write(self.report, report)
        self.saved = time.monotonic()
        return report


def _shuffled(mutants: list[Mutant]) -> list[Mutant]:
    mixed = list(mutants)
    random.Random(0).shuffle(mixed)
    return mixed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="prefixes of source files, as gpsafe/sets")
    parser.add_argument("--operator", nargs="*", default=[], help="kinds of mutants, as sign or compare")
    parser.add_argument("--sample", type=int, help="number of mutants, drawn from all")
    parser.add_argument("--sample-per-file", type=int, help="number of mutants, drawn from each file")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--grace", type=float, default=4.0, help="CPU seconds for a test, beside four times its own")
    parser.add_argument("--rest", action="store_true", help="try survivors on the rest of the suite too")
    parser.add_argument(
        "--check-equivalent",
        action="store_true",
        help="run all declared equivalents, sampled or not: none may be killed",
    )
    parser.add_argument("--survivors", action="store_true", help="show the last report, run nothing")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--report", default=None, help="folder; the root's report/ if not given")
    options = parser.parse_args()
    root = options.root.resolve()
    options.report = options.report or str(root / "report")
    os.chdir(root)
    sys.path[:0] = [str(root)]
    project = Project.read(root, options.only)
    run = Run(project, options)
    mutants = run.chosen()
    if options.list:
        for m in mutants:
            say(f"{m.id}\n    {m.before}\n -> {m.after}")
        return
    if options.survivors:
        show(run.read(), options.only)
        return
    for name in project.preload:
        importlib.import_module(name)
    try:
        run.stage("area", mutants)
        if options.rest:
            run.stage("rest", mutants)
    finally:
        report = run.write()
    show(report, options.only)


if __name__ == "__main__":
    main()
