"""Compiled code where nothing can be written: slower at the start, never absent, and told in the log."""

import ast
import fcntl
import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from gpsafe.planning.mpc import _numba

ROOT = Path(__file__).parents[3]
DECIDE = """
import logging, math, sys
logging.basicConfig(level=logging.WARNING)
sys.path.insert(0, "tests")
import torch
from dataclasses import replace
from xmpsc_cases import double_integrator
from gpsafe.models import Ensemble, identity_prior
from gpsafe.tube import EnsembleTube
from gpsafe.planning.mpc import _sweeps
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.safety.filter import SafetyFilter

def slow(*_):
    raise AssertionError("not the compiled sweep")

_sweeps.general = slow
untrained = Ensemble.create(2, 1, generator=torch.Generator().manual_seed(0), members=1, hidden=(4,), prior=identity_prior)
problem = replace(double_integrator(steps=2), model=EnsembleTube.paper(untrained))
x, u = torch.zeros(2).double(), torch.tensor([0.1]).double()
decision, _ = SafetyFilter(problem, CondensedSQP(starts=1, iterations=2)).start().decide(x, u)
print(decision.certificate is not None and decision.certificate.margins is not None, decision.reason)
"""


@pytest.fixture
def fresh():
    _numba._warn.cache_clear()


@pytest.mark.slow  # all of it is compiled anew
def test_without_a_folder_to_write_in_the_filter_still_finds_plans():
    """In a process of its own, whose only place for machine code is no folder."""
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": "/dev/null/numba"}
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", DECIDE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout.startswith("True"), (found.stdout, found.stderr)
    assert found.stderr.count("machine code is not kept on disk") == 1, found.stderr
    assert "no folder can be written" in found.stderr


def test_compilation_goes_on_without_a_folder(monkeypatch, caplog, fresh):
    from numba.core.caching import CompileResultCacheImpl

    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    monkeypatch.setenv("NUMBA_CACHE_LOCATOR_CLASSES", "")

    @_numba.njit(cache=True)
    def twice(x):
        return 2.0 * x

    assert twice(1.5) == 3.0
    assert twice.signatures
    assert "no folder can be written" in caplog.text


@pytest.mark.parametrize("method", ["_load_index", "_save_index", "_save_data"])
def test_a_disk_that_fails_later_costs_a_compilation_only(method, monkeypatch, caplog, fresh):
    """A full disk, files of another user, half-written files."""
    from numba.core.caching import IndexDataCacheFile

    def fails(self, *_):
        raise OSError(28, "No space left on device")

    @_numba.njit(cache=True)
    def thrice(x):
        return 3.0 * x

    thrice._cache.flush()  # of what an earlier run kept
    monkeypatch.setattr(IndexDataCacheFile, method, fails)
    with caplog.at_level(logging.WARNING):
        assert thrice(1.5) == 4.5
    assert "No space left on device" in caplog.text
    assert thrice(2) == 6.0  # another signature


CALLER = """
from {module} import njit
from _callee import inner

@njit(cache=True)
def outer(x):
    return 10.0 * inner(x)
"""


@pytest.mark.parametrize(("module", "after"), [("gpsafe.planning.mpc._numba", (20.0, 0)), ("numba", (10.0, 1))])
def test_machine_code_is_kept_until_a_file_beside_it_changes(module, after, tmp_path, monkeypatch):
    """A function called from another file is built in. Numba itself, the control, goes on with what that file was."""
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # Python's own cache tells files of one second apart by size alone
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "_caller.py").write_text(CALLER.format(module=module))
    told = []
    for factor in (1.0, 1.0, 2.0):
        (tmp_path / "_callee.py").write_text(
            f"from {module} import njit\n\n@njit(cache=True)\ndef inner(x):\n    return {factor} * x\n"
        )
        _numba.sources.cache_clear()
        for name in ("_caller", "_callee"):  # as a new process would
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        outer = importlib.import_module("_caller").outer
        told.append((outer(1.0), sum(outer.stats.cache_hits.values())))
    monkeypatch.delitem(sys.modules, "_caller")
    monkeypatch.delitem(sys.modules, "_callee")
    _numba.sources.cache_clear()
    assert told == [(10.0, 0), (10.0, 1), after]


def test_where_compilation_is_disabled_a_function_stays_what_it_is(monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)

    def twice(x):
        return 2.0 * x

    assert _numba.njit(cache=True)(twice) is twice and twice(1.5) == 3.0


def test_control_numba_itself_would_refuse(monkeypatch):
    import numba
    from numba.core.caching import CompileResultCacheImpl

    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="cannot cache function"):
        numba.njit(cache=True)(lambda x: x)


def test_nobody_compiles_past_the_fallback():
    """`_lanes` teaches numba a type and compiles nothing."""
    for path in (ROOT / "gpsafe").rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "numba" in text else ():
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            imported = any((name or "").split(".")[0] == "numba" for name in names)
            assert not imported or path.name in ("_numba.py", "_lanes.py"), (
                f"{path}: compile with gpsafe.planning.mpc._numba"
            )


TOGETHER = """
from gpsafe.planning.mpc._numba import njit

@njit(cache=True)
def one(x):
    return x + 1.0

@njit(cache=True)
def two(x):
    return one(x) * 2.0

@njit(cache=True)
def broken(x):
    return x.nothing
"""


def _begin(module, barrier, answers):
    barrier.wait(60)
    answers.put((module.two(1.0), sum(module.two.stats.cache_misses.values())))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """One of two functions that nobody has compiled, with machine code kept in a folder of its own."""
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "_together.py").write_text(TOGETHER)
    importlib.invalidate_caches()
    yield importlib.import_module("_together")
    sys.modules.pop("_together")


@pytest.mark.parametrize("locked", [True, False])
def test_of_two_processes_one_compiles_and_the_other_reads(locked, module, monkeypatch):
    """Without the lock, the control, both compile."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    if not locked:
        monkeypatch.setattr(_numba, "_locked", lambda folder: nullcontext())
    workers = [context.Process(target=_begin, args=(module, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(answers.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert found == [(4.0, 0 if locked else 1), (4.0, 1)]


def test_the_lock_is_free_again_whatever_happens_and_nobody_waits_for_ever(module, monkeypatch):
    from numba.core.errors import TypingError

    with pytest.raises(TypingError):
        module.broken(1.0)
    folder = Path(module.one._cache.cache_path)
    with open(folder / "compiling.lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free
        monkeypatch.setattr(_numba, "_patience", 0.0)
        assert module.two(1.0) == 4.0  # as if the other had been stopped
    monkeypatch.setattr(_numba, "fcntl", None)
    assert module.two(1) == 4.0
