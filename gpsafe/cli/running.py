"""What ``gpsafe run`` does once it knows the experiment: seeds in worker processes, and what it says meanwhile."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gpsafe.cli.common import PLAIN, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from gpsafe.testbed.experiment import Experiment


@dataclass(frozen=True)
class RunOptions:
    """How to run."""

    budget: Literal["smoke", "quick", "full"] = "quick"
    """How much work: seconds, minutes or hours. Sets the defaults of the arguments."""
    seeds: tuple[int, ...] = ()
    """Run these seeds (default: as many as the budget says, from 0)."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of worker processes, one thread each (default: the available cores)."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Forget the stored results of these seeds first."""
    stale: Literal["refuse", "recompute", "keep"] = "refuse"
    """If the code has changed since pieces were stored: stop before any work, make their seeds anew, or keep them."""
    results: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """Where results are kept: FOLDER/NAME/<seed>/."""


def compute(
    console: Console,
    experiment: Experiment,
    arguments: Any,
    seeds: list[int],
    *,
    options: RunOptions,
    command: str,
    package: str,
) -> int:
    """Computes seeds of an experiment; what is stored of them is kept. Exit code 1 if one fails."""
    from gpsafe.testbed import workers as pool
    from gpsafe.testbed.experiment import code, session

    home, mark = options.results / experiment.name, code(experiment)
    _prepare(console, experiment, arguments, home, seeds, mark, options)
    log = home / "worker.log"
    if _alone(home):  # else it is another's as well
        log.write_bytes(b"")
    failures: dict[int, str] = {}
    waiting: list[int] = []
    tried = 0
    workers = min(options.workers or pool.available_cores(), len(seeds))
    with _progress(console, home, seeds) as on_seed:

        def on_done(done: pool.Done) -> list[tuple[int, bool]]:
            nonlocal tried
            (seed, waited), outcome = done.task, done.value or {"error": f"its worker process {done.death}"}
            tried += not waited
            if "busy" in outcome:
                waiting.append(seed)
                line = (
                    f"seed {seed} is being computed by {outcome['busy']}: the other seeds first, then it is waited for"
                )
                console.print(line, **PLAIN, soft_wrap=True)
            else:
                if "error" in outcome:
                    failures[seed] = outcome["error"]
                on_seed(seed, outcome)
            if len(seeds) - tried >= workers:  # seeds that nobody has looked at yet
                return []
            further = [(seed, True) for seed in waiting]
            waiting.clear()
            return further

        about = session(command)
        work = _Work(package, experiment.name, arguments, home.absolute(), options.budget, about, mark, options.stale)
        tasks = [(seed, False) for seed in seeds]
        pool.run(tasks, start=_start, args=(work,), workers=workers, log=log, on_done=on_done)
    more = f" (more in {log})" if log.exists() and log.stat().st_size else ""  # on a full disk it stays empty
    for seed, why in failures.items():
        console.print(f"seed {seed} failed: {why}{more}", **PLAIN, soft_wrap=True)
    if not failures:
        console.print(f"results in {home}; gpsafe report {experiment.name} draws them", **PLAIN, soft_wrap=True)
    return 1 if failures else 0


def _prepare(
    console: Console,
    experiment: Experiment,
    arguments: Any,
    home: Path,
    seeds: list[int],
    mark: str | None,
    options: RunOptions,
) -> None:
    """Looks at what is stored before any work; clears it if so asked. Raises UsageError if it does not go with this run."""
    from gpsafe.testbed import lock, store
    from gpsafe.testbed.experiment_run import outdated
    from gpsafe.testbed.experiment_store import Folder, whose

    folders = [Folder(home / str(seed)) for seed in seeds]
    try:
        store.require_writable("--results", home / "worker.log")
        if options.fresh:  # here, not in a worker: one that dies is given its seed once more
            for folder in (folder for folder in folders if folder.path.exists()):
                with lock.held(folder.lock, wait=False):
                    folder.clear()
        for seed, folder in zip(seeds, folders, strict=True):
            folder.require_same(experiment.name, arguments, seed)
        older = [made for folder in folders for made in folder.older(mark)]
        if older and options.stale == "refuse":
            raise UsageError(outdated(home, older, mark))
    except lock.Busy as error:
        raise UsageError(f"--fresh: expected seeds that nobody is computing, got one of {error}") from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if older:
        what = "kept" if options.stale == "keep" else "their seeds are made anew"
        line = f"{len(older)} pieces of other code than today's ({mark or 'unknown'}): {whose(older)}; {what}"
        console.print(line, **PLAIN, soft_wrap=True)
    home.mkdir(parents=True, exist_ok=True)


def _alone(home: Path) -> bool:
    """Whether no other process computes a seed of this experiment here."""
    from gpsafe.testbed import lock

    return all(lock.free(path) for path in home.glob("*/.lock"))


@dataclass(frozen=True)
class _Work:
    """What a worker needs to know."""

    package: str
    name: str
    arguments: Any
    home: Path
    budget: str
    about: Mapping[str, Any]
    code: str | None
    stale: Literal["refuse", "recompute", "keep"]


def _start(work: _Work) -> Callable[[tuple[int, bool]], dict[str, Any]]:
    """In a worker: the function that computes one seed. What goes wrong in it is that seed's outcome."""
    from gpsafe.testbed import lock, store
    from gpsafe.testbed.experiment import code, find, run_seed
    from gpsafe.testbed.experiment_store import whose

    experiment = find(work.name, work.package)
    if experiment is None:
        raise RuntimeError(f"the experiment {work.name!r} cannot be imported in a worker")
    if code(experiment) != work.code:
        raise RuntimeError("the sources changed while the run was starting: run it again")

    def compute(task: tuple[int, bool]) -> dict[str, Any]:
        seed, wait = task
        folder, last = work.home / str(seed), -math.inf

        def on_progress(done: int, total: int, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= 0.25 or done >= total:
                last = time.monotonic()
                with contextlib.suppress(OSError):  # a bar that stands still must not stop the work
                    store.write_piece(folder / "progress.json", {"done": done, "total": total, "text": text})

        try:
            record = run_seed(
                experiment,
                work.arguments,
                seed,
                folder=folder,
                budget=work.budget,
                about=work.about,
                stale=work.stale,
                wait=wait,
                on_progress=on_progress,
            )
        except lock.Busy as error:
            return {"busy": str(error)}
        except Exception as error:
            with contextlib.suppress(OSError):  # the log may be what cannot be written
                traceback.print_exc()
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        (folder / "progress.json").unlink(missing_ok=True)
        told = {"pieces": len(record.keys), "reused": record.reused, "notes": record.notes}
        return told | {"older": whose(record.older)}

    return compute


@contextlib.contextmanager
def _progress(console: Console, home: Path, seeds: list[int]) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """On a terminal one bar a seed at work, else one plain line per finished seed. Workers report through files."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gpsafe.testbed import store

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    overall = bar.add_task("seeds", total=len(seeds))
    tasks: dict[int, Any] = {}
    finished: set[int] = set()
    over = threading.Event()
    for seed in seeds:
        (home / str(seed) / "progress.json").unlink(missing_ok=True)

    def watch() -> None:
        while not over.wait(0.3):
            for seed in seeds:
                found = store.read_piece(home / str(seed) / "progress.json")
                if seed in finished or not isinstance(found, dict):
                    continue
                done, total = (found.get(name) for name in ("done", "total"))
                if type(done) is not int or type(total) is not int:
                    continue
                if seed not in tasks:
                    tasks[seed] = bar.add_task(f"seed {seed}", total=total)
                text = f"seed {seed} {found.get('text', '')}".strip()
                bar.update(tasks[seed], completed=done, total=total, description=text)

    def on_seed(seed: int, outcome: dict[str, Any]) -> None:
        finished.add(seed)
        bar.advance(overall)
        if seed in tasks:
            bar.remove_task(tasks[seed])
        for note in outcome.get("notes", ()):
            console.print(f"seed {seed}: {note}", **PLAIN, soft_wrap=True)
        if "error" not in outcome:
            kept = f", {outcome['reused']} of them kept from before" if outcome["reused"] else ""
            kept += f"; of other code: {outcome['older']}" if outcome["older"] else ""
            line = f"[{len(finished)}/{len(seeds)}] seed {seed}: {outcome['pieces']} pieces{kept}"
            console.print(line, **PLAIN, soft_wrap=True)

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        with bar:
            if console.is_terminal:
                watcher.start()
            yield on_seed
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this line
        sys.stdout.flush()
        done = f"{len(finished)} of {len(seeds)} seeds are finished"
        sys.stderr.write(
            f"gpsafe run: stopped; {done}, finished pieces are kept in {home}; the same command (without --fresh) goes on\n"
        )
        raise
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join()
