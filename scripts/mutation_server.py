"""Workers that run tests against mutants: everything is imported and collected once, then forked for every mutant.

*Live*: pytest has collected the tests; the child gives the functions of the mutated file their changed code and runs the
chosen tests. *Fresh*: nothing of the project is imported yet; the child imports the mutated file's code in place of the
file's. Fresh is slower by the import and the collection, and exact where live is not: for lines of a module or a class body,
and for functions that were already called while the tests were collected.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from mutation_operators import Source

PROFILE = "mutate"  # Hypothesis: few derandomised examples, no shrinking
SPARE = 4 << 30  # bytes that a mutant may allocate beyond what its parent has
OPTIONS = (
    "-q", "-s", "--no-header", "--no-summary", "--tb=short",  # no long words about models that are arguments
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # Hypothesis came first
    *(word for name in ("cacheprovider", "xdist", "nbmake", "faulthandler") for word in ("-p", f"no:{name}")),
)  # fmt: skip


class Worker:
    """A forked server and the pipe to it."""

    def __init__(self, serve: Callable[[Connection], None], log: Path) -> None:
        self.connection, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.connection.close()
            code = 1
            try:
                _redirect(log)
                os.setsid()
                serve(theirs)
                code = 0
            except EOFError:
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        theirs.close()
        self.log = log

    def ask(self, job: dict[str, Any] | None = None) -> Any:
        """The answer to a job, or what the worker says first."""
        try:
            if job is not None:
                self.connection.send(job)
            return self.connection.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"a worker broke down, see {self.log}") from error

    def stop(self) -> None:
        self.connection.close()
        os.waitpid(self.pid, 0)


def _redirect(log: Path) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)


def profile() -> None:
    """Registers the Hypothesis profile under the name that a conftest asks for, if the project preloads Hypothesis."""
    os.environ["HYPOTHESIS_PROFILE"] = PROFILE
    if "hypothesis" not in sys.modules:  # half a second that a suite without it need not spend
        return
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        PROFILE, max_examples=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    settings.load_profile(PROFILE)


class _Plugin:
    """Imports the sources in the ordinary way before pytest collects their doctests, which else would import them twice."""

    modules: list[str]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        for module in self.modules:
            importlib.import_module(module)


# ------------------------------------------------------------------------ live
def live(root: Path, paths: list[str], sources: dict[str, Source], connection: Connection) -> None:
    """Collects `paths`, says which tests there are, and serves jobs until the pipe is closed."""
    plugin = _Live(root, sources, connection)
    with plugin.tracer:
        code = pytest.main([*OPTIONS, *paths], plugins=[plugin])
    if not plugin.served:
        connection.send({"broken": f"pytest ended with {code} while collecting"})


class _Live(_Plugin):
    def __init__(self, root: Path, sources: dict[str, Source], connection: Connection) -> None:
        self.root, self.sources, self.connection, self.served = root, sources, connection, False
        self.modules = [_module(path) for path in sources]
        self.tracer = _Tracer({str(root / path): path for path in sources})
        self.early: dict[str, set[tuple[str, int]]] = {}  # lines that importing a test file runs

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector):
        self.tracer.take()
        try:
            return (yield)
        finally:
            if isinstance(collector, pytest.Module) and (lines := self.tracer.take()):
                self.early[str(collector.path.relative_to(self.root))] = lines

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.tracer.stop()
        self.functions = _functions({str(self.root / path) for path in self.sources})
        self.items = {item.nodeid: item for item in session.items}
        self.served = True
        _caches(str(self.root))
        gc.collect()
        gc.freeze()  # children then neither visit nor copy what was here before them
        self.connection.send({"nodes": {i.nodeid: str(i.path.relative_to(self.root)) for i in session.items},
                              "early": self.early})  # fmt: skip
        serve = {"cover": self._cover, "mutant": self._mutant}
        _loop(self.connection, lambda job, out: serve[job["kind"]](job, out))
        return True

    def _cover(self, job: dict[str, Any], out: Connection) -> None:
        items = [self.items[node] for node in job["nodes"]]
        watch = _Coverage(self.tracer)
        items[0].config.pluginmanager.register(watch)
        for item, following in zip(items, [*items[1:], None], strict=True):
            if job["clear"]:
                _clear_caches(self.root)
            before = time.process_time()
            out.send({"at": item.nodeid})
            watch.failed = None
            with self.tracer:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            lines = self.tracer.take() | watch.of(item)
            out.send({"test": item.nodeid, "seconds": time.process_time() - before, "failed": watch.failed,
                      "lines": lines})  # fmt: skip
        out.send({"status": "survived"})

    def _mutant(self, job: dict[str, Any], out: Connection) -> None:
        source = self.sources[job["file"]]
        filename = str(self.root / job["file"])
        code = source.compile(job["id"], filename)
        if job["function"] and not self._patch(code, filename, job["function"]):
            out.send({"status": "fresh"})
            return
        _clear_caches(self.root)
        _run([self.items[node] for node in job["nodes"]], job, out)

    def _patch(self, code: CodeType, filename: str, function: str) -> bool:
        """Gives all functions with this name or inside it their new code; False if one cannot take it."""
        new = {(c.co_qualname, c.co_firstlineno): c for c in _codes(code)}
        found = False
        for (file, name, line), functions in self.functions.items():
            if file != filename or not (name == function or name.startswith(f"{function}.<locals>.")):
                continue
            for live_function in functions:
                changed = new.get((name, line))
                if changed is None or changed.co_freevars != live_function.__code__.co_freevars:
                    return False
                live_function.__code__ = changed
                found = True
        return found


def _codes(code: CodeType) -> list[CodeType]:
    return [code, *(c for const in code.co_consts if isinstance(const, CodeType) for c in _codes(const))]


def _functions(files: set[str]) -> dict[tuple[str, str, int], list[FunctionType]]:
    found: dict[tuple[str, str, int], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename in files:
            code = thing.__code__
            found.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(thing)
    return found


def _clear_caches(root: Path) -> None:
    """Empties every functools cache around a function of the project and its tests."""
    for thing in _caches(str(root)):
        thing.cache_clear()


@functools.cache
def _caches(root: str) -> list[Any]:
    kind = type(functools.lru_cache(lambda: None))
    return [
        thing
        for thing in gc.get_objects()
        if type(thing) is kind
        and str(getattr(getattr(thing.__wrapped__, "__code__", None), "co_filename", "")).startswith(root)
        and "site-packages" not in thing.__wrapped__.__code__.co_filename
    ]


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


# ----------------------------------------------------------------------- fresh
def fresh(root: Path, sources: dict[str, Source], connection: Connection) -> None:
    """Serves jobs in children that import the project anew."""

    def serve(job: dict[str, Any], out: Connection) -> None:
        code = sources[job["file"]].compile(job["id"], str(root / job["file"]))
        original = SourceFileLoader.get_code

        def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
            return code if self.path == str(root / job["file"]) else original(self, fullname)

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
        plugin = _Fresh(job, out)
        files = list(dict.fromkeys(job["files"]))
        status = pytest.main([*OPTIONS, *files], plugins=[plugin])
        if not plugin.started:
            out.send(
                {"status": "killed", "killed_by": f"collection of {plugin.broken or files}", "reason": str(status)}
            )

    gc.freeze()
    _loop(connection, serve)


class _Fresh(_Plugin):
    def __init__(self, job: dict[str, Any], out: Connection) -> None:
        self.job, self.out, self.started, self.broken = job, out, False, ""
        self.modules = [_module(job["file"])]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = self.broken or report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None
        items = {item.nodeid: item for item in session.items}
        self.started = True
        _run([items[n] for n in self.job["nodes"] if n in items], self.job, self.out)
        return True


# ------------------------------------------------------------------ one child
class _FirstFailure:
    def __init__(self) -> None:
        self.reason: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.reason is None:
            lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E")]
            self.reason = (lines[0][1:].strip() if lines else str(report.longrepr)[-100:])[:200]


def _run(items: list[pytest.Item], job: dict[str, Any], out: Connection) -> None:
    """Runs tests until one fails, each within a few times its usual CPU time."""
    first = _FirstFailure()
    if items:
        items[0].config.pluginmanager.register(first)
    for item, following in zip(items, [*items[1:], None], strict=True):
        out.send({"at": item.nodeid})
        signal.setitimer(signal.ITIMER_PROF, job["grace"] + 4.0 * job["seconds"][item.nodeid])
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if first.reason is not None:
            out.send({"status": "killed", "killed_by": item.nodeid, "reason": first.reason})
            return
    out.send({"status": "survived"})


def _loop(connection: Connection, serve: Callable[[dict[str, Any], Connection], None]) -> None:
    """Forks for every job, collects what the child says, ends it when its time is up; answers with one message."""
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        started, (mine, theirs) = time.monotonic(), Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            _child(job, serve, theirs)
        theirs.close()
        said: list[dict[str, Any]] = []
        overdue = False
        while True:
            left = started + job["wall"] - time.monotonic()
            if not wait([mine], timeout=max(0.0, left)):
                overdue = True
                break
            try:
                said.append(mine.recv())
            except EOFError:
                break
        if overdue:
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        mine.close()
        answer: dict[str, Any] = {"seconds": time.monotonic() - started, "tests": [s for s in said if "test" in s]}
        ends = [s for s in said if "status" in s]
        if ends:
            answer |= ends[-1]
        else:
            at = next((s["at"] for s in reversed(said) if "at" in s), "before the first test")
            timed = overdue or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL))
            answer |= {"status": "killed", "killed_by": at, "reason": "timeout" if timed else f"crash ({status})"}
        connection.send(answer)


def _child(job: dict[str, Any], serve: Callable[[dict[str, Any], Connection], None], out: Connection) -> None:
    try:
        os.setsid()
        _redirect(Path(os.devnull))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + SPARE, resource.RLIM_INFINITY))
        serve(job, out)
        out.close()
        os._exit(0)
    except BaseException as error:
        if os.environ.get("MUTATION_DEBUG"):
            import traceback

            Path(os.environ["MUTATION_DEBUG"]).write_text(traceback.format_exc())
        out.send({"status": "error", "reason": repr(error)[:200]})
    finally:
        os._exit(1)


# -------------------------------------------------------------------- coverage
class _Tracer:
    """Which lines of the watched files ran, by `sys.settrace` (coverage needs no package for that)."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files, self.lines = files, set()

    def _local(self, frame, event, arg):
        if event == "line":
            self.lines.add((self.files[frame.f_code.co_filename], frame.f_lineno))
        return self._local

    def _global(self, frame, event, arg):
        # The frame of a module or a class body runs when it is imported: no call.
        if frame.f_code.co_filename not in self.files or not frame.f_code.co_flags & 2:
            return None
        self.lines.add((self.files[frame.f_code.co_filename], frame.f_lineno))
        return self._local

    def __enter__(self) -> None:
        threading.settrace(self._global)
        sys.settrace(self._global)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def take(self) -> set[tuple[str, int]]:
        taken, self.lines = self.lines, set()
        return taken


class _Coverage:
    """Lines run in fixtures that several tests share belong to each of these tests."""

    def __init__(self, tracer: _Tracer) -> None:
        self.tracer, self.shared, self.failed = tracer, {}, None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or (str(report.longrepr)[-300:] if report.failed else None)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        before, self.tracer.lines = self.tracer.lines, set()
        try:
            return (yield)
        finally:
            inside, self.tracer.lines = self.tracer.lines, before | self.tracer.lines
            if fixturedef.scope != "function":
                self.shared.setdefault(fixturedef.argname, set()).update(inside)

    def of(self, item: pytest.Item) -> set[tuple[str, int]]:
        lines: set[tuple[str, int]] = set()
        for name in getattr(item, "fixturenames", ()):
            lines |= self.shared.get(name, set())
        return lines
