"""The command line. Exit codes: 0 all claims hold and can fail, 1 not so, 2 wrong usage, 130 after Ctrl-C.

`COMMANDS` names the commands. The options of one are a frozen dataclass, read by tyro. Heavy libraries are loaded
inside the functions, so that ``--help`` and mistakes answer quickly.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gpsafe.cli.common import PLAIN, UsageError, parse, see_current_folder, width
from gpsafe.cli.judging import DEFAULTS, Own, asked, judge
from gpsafe.cli.verdicts import list_table, progress_of, results_table

if TYPE_CHECKING:
    from gpsafe.testbed.check import Check


@dataclass(frozen=True)
class Verify:
    """Runs the checks with their controls and prints which claims stand; or, with --system, --env or --data, examines a plant
    or a recording of one's own.

    Finished pieces of checks are kept, so a run that was stopped goes on where it was. Exit code 0 if every claim HOLDS
    and every control is VIOLATED (of one's own: if nothing is refuted), else 1; 2 for wrong usage; 130 after Ctrl-C.
    """

    budget: Literal["quick", "full"] = "quick"
    """How much work: minutes, or hours."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME[,NAME]")] = ()
    """Run these checks only."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the records and the environment here."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the report here, one self-contained page."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of worker processes (default: the available cores)."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List the checks and stop."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do all pieces again instead of reusing finished ones."""
    cache: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results/verify")
    """Where finished pieces are kept."""
    package: Annotated[str, tyro.conf.arg(metavar="MODULE")] = "gpsafe.proofs_checks"
    """Package that holds the checks (default: the project's own)."""
    own: Annotated[Own, tyro.conf.OmitArgPrefixes] = DEFAULTS


def _verify(options: Verify, command: str) -> int:
    from rich.console import Console

    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers: expected a number >= 1, got {options.workers}")
    outputs = _outputs(options)
    if asked(options.own):
        alien = [n for n in ("budget", "only", "workers", "list", "fresh", "cache", "package") if _given(options, n)]
        if alien:
            raise UsageError(f"--{alien[0]}: expected with the project's checks, got a plant or recording")
        return judge(options.own, html=options.html, json=options.json, command=command, outputs=outputs)
    console = Console(width=width())
    chosen, known, missing = _chosen(options)
    if options.list:
        console.print(list_table(chosen, options.budget))
        for module, why in missing.items():
            console.print(f"{module} {why}", **PLAIN, soft_wrap=True)
        return 0
    from gpsafe.testbed import report, store, verify

    try:
        store.require_writable("--cache", options.cache / "timings.json")
    except ValueError as error:
        raise UsageError(str(error)) from None

    from gpsafe.testbed import workers as pool

    workers = options.workers or pool.available_cores()
    started_at, begun = datetime.now(UTC), time.perf_counter()
    with progress_of(console, workers, options.cache) as on_progress:
        results = verify.verify(
            chosen,
            package=options.package,
            budget=options.budget,
            workers=workers,
            cache=options.cache,
            fresh=options.fresh,
            on_progress=on_progress,
        )
    env = report.environment(
        budget=options.budget,
        command=command,
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - begun,
        workers=workers,
        selected=len(chosen),
        known=len(known),
        not_run=missing,
    )
    console.print(results_table(results, console.width))
    if options.json is not None:
        store.write_json(options.json, report.document(results, env))
    if options.html is not None:
        store.write_text(options.html, report.html(results, env, folder=options.html.parent))
    for result in results:
        if not result.passed:
            console.print(f"{result.status} {result.check.name}: {result.reason}", **PLAIN, soft_wrap=True)
    for result in results:
        if result.grades:
            console.print(f"{result.check.name} notices {report.noticed(result)}", **PLAIN, soft_wrap=True)
    for module, why in missing.items():
        console.print(f"NOT RUN {module} {why}", **PLAIN, soft_wrap=True)
    console.print(report.summary(results), **PLAIN, soft_wrap=True)
    for path in outputs:
        console.print(f"wrote {path}", **PLAIN, soft_wrap=True)
    return 0 if all(result.passed for result in results) else 1


def _given(options: Verify, name: str) -> bool:
    """Whether an option differs from its default."""
    return getattr(options, name) != getattr(Verify(), name)


def _outputs(options: Verify) -> list[Path]:
    """The files that are asked for, after a look at whether they can be written."""
    outputs = [path for path in (options.json, options.html) if path is not None]
    if not outputs:
        return outputs
    from gpsafe.testbed import store

    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UsageError(f"--html: expected another file than --json, got {str(options.html)!r}")
    try:
        for name in ("json", "html"):
            if getattr(options, name) is not None:
                store.require_writable(f"--{name}", getattr(options, name))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return outputs


def _chosen(options: Any) -> tuple[dict[str, Check], dict[str, Check], dict[str, str]]:
    """The checks asked for, all there are, and what keeps others from running."""
    from gpsafe.testbed.check import listed, select, survey

    see_current_folder()
    try:
        known, missing = (listed if options.list else survey)(options.package)
    except Exception as error:  # a module of checks may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"--package: expected checks in {options.package!r}, got {reason}") from None
    if not known:
        raise UsageError(
            f"--package: expected at least one check in {options.package!r}, got {_not_run(missing) or 'none'}"
        )
    names = [name.strip() for part in options.only for name in part.split(",")]
    if options.only and not any(names):
        raise UsageError("--only: expected names of checks, got none")
    try:
        return select(known, [name for name in names if name]), known, missing
    except ValueError as error:
        raise UsageError("; ".join(filter(None, [str(error), _not_run(missing)]))) from None


def _not_run(missing: dict[str, str]) -> str:
    """Which modules of checks need an extra that is not installed."""
    return "; ".join(f"{module} {why}" for module, why in missing.items())


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: what runs it, given the words after its name and the whole command, and one line of help."""

    run: Callable[[Sequence[str], str], int]
    help: str


def _verify_words(words: Sequence[str], command: str) -> int:
    return _verify(parse(Verify, words, prog="gpsafe verify"), command)


def _run_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import experiments

    return experiments.run(words, command)


def _sweep_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import sweeps

    return sweeps.sweep(words, command)


def _leaderboard_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import leaderboards

    return leaderboards.leaderboard(words, command)


def _report_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import experiments

    return experiments.report(words, command)


def _keep_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import keeping

    return keeping.keep(words)


def _compare_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import experiments

    return experiments.compare(words, command)


def _bench_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import experiments

    return experiments.bench(words, command)


def _calibrate_words(words: Sequence[str], command: str) -> int:
    from gpsafe.cli import calibrating

    return calibrating.calibrate(words, command)


COMMANDS: dict[str, Command] = {
    "verify": Command(
        _verify_words,
        "run the checks with their controls, or examine a plant or recording of one's own (--system, --env, --data)",
    ),
    "run": Command(_run_words, "run an experiment, seed by seed; what was finished is kept"),
    "compare": Command(
        _compare_words, "hold models and certifiers against each other on the same plants, data and noise"
    ),
    "sweep": Command(
        _sweep_words, "run an experiment at many arguments and seeds, here or on a cluster, into one table"
    ),
    "leaderboard": Command(_leaderboard_words, "draw what sweeps found as one page, each number linked to its cells"),
    "report": Command(_report_words, "draw the figures and tables of an experiment from its stored results"),
    "keep": Command(_keep_words, "copy finished pieces of an experiment to a small folder that git can hold"),
    "bench": Command(_bench_words, "time X-MPSC certificates beside the published ones: gpsafe bench xmpsc"),
    "calibrate": Command(
        _calibrate_words, "say whose uncertainty fits a table of transitions: gpsafe calibrate DATA.csv"
    ),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    more = "gpsafe COMMAND --help: its options; gpsafe --version: the version"
    return f"usage: gpsafe COMMAND [options]\n\n{listed}\n\n{more}"


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        import importlib.metadata

        print(importlib.metadata.version("gpsafe"))
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        raise UsageError(
            f"gpsafe: expected one of the commands {', '.join(COMMANDS)}, got {words[0]!r}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    command = COMMANDS[words[0]]
    return command.run(words[1:], shlex.join(["gpsafe", *words]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (default: ``sys.argv[1:]``) and returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a claim with ≤ in it must not fail on a plain terminal
    # torch from 2.14 on says so to everyone who imports linear_operator; a user of gpsafe can do nothing about it
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    words = sys.argv[1:] if argv is None else list(argv)
    handler = signal.getsignal(signal.SIGINT)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has gone, as in `gpsafe verify | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(ValueError, TypeError):  # not the main thread, or a handler set outside Python
            signal.signal(signal.SIGINT, handler)


if __name__ == "__main__":
    sys.exit(main())
