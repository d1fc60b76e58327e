"""What `gpsafe verify` prints: progress with the time that is left, and the verdicts by paper. Loads rich when it is used."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpsafe.cli.common import PLAIN

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gpsafe.testbed.check import Check
    from gpsafe.testbed.verify import CheckResult, Progress


@contextlib.contextmanager
def progress_of(console: Console, workers: int, cache: Path) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on a terminal, else one plain line at the start and one per finished check."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    state: Progress | None = None
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    work = bar.add_task("pieces", total=None, left="")
    checks = 0

    def on_progress(progress: Progress) -> None:
        nonlocal state, checks
        if state is None:
            for note in progress.notes:
                console.print(note, **PLAIN, soft_wrap=True)
            kept = f"; {progress.reused} of {progress.total} kept from an earlier run" if progress.reused else ""
            about = f"; {remaining(progress.left)}" if progress.left else ""
            console.print(f"{progress.total} pieces on {workers} workers{kept}{about}", **PLAIN, soft_wrap=True)
        state = progress
        if progress.finished is not None:
            checks += 1
            bar.update(work, description=f"{checks} checks done, pieces")
            if not console.is_terminal and progress.done > progress.reused:
                finished = progress.finished
                console.print(
                    f"[{progress.done}/{progress.total}] {finished.status} {finished.check.name}"
                    + (f"; {remaining(progress.left)}" if progress.left else ""),
                    **PLAIN,
                    soft_wrap=True,
                )
        left = "" if progress.left is None else remaining(progress.left)
        bar.update(work, total=progress.total, completed=progress.done, left=left)

    try:
        with bar:
            yield on_progress
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut this line
        kept = "nothing was finished yet" if state is None else f"{state.done} of {state.total} pieces are kept"
        sys.stdout.flush()
        sys.stderr.write(f"gpsafe verify: stopped; {kept} in {cache}; the same command (without --fresh) goes on\n")
        raise
    finally:
        console.file.flush()


def remaining(seconds: float) -> str:
    """A time that is left, as roughly as it is known.

    >>> remaining(7), remaining(100), remaining(5000)
    ('under 10 s left', 'about 2 min left', 'about 1.4 h left')
    """
    if seconds < 10:
        return "under 10 s left"
    if seconds < 90:
        return f"about {10 * round(seconds / 10)} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 3600 else f"about {seconds / 3600:.1f} h left"


_COLOURS = {
    "HOLDS": "bold blue",
    "VIOLATED": "bold red",
    "INCONCLUSIVE": "bold yellow",
    "UNPROVEN": "bold magenta",
    "ERROR": "bold reverse",
}


def results_table(results: Sequence[CheckResult], width: int) -> Table:
    """The verdicts, by paper. Under 130 columns the source stands below the name, the interval below the estimate.

    Under 98 columns n and the seconds are left out.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gpsafe.testbed import report_claims as claims
    from gpsafe.testbed.report import record
    from gpsafe.testbed.report_sections import caught, duration

    wide, tight = width >= 130, width < 98
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("claim" if wide else "claim, source", overflow="fold", min_width=10 if tight else 24)
    if wide:
        table.add_column("source", overflow="fold")
    for title in ("estimate [interval]", "threshold") if tight else ("n", "estimate [interval]", "threshold"):
        table.add_column(title, justify="right", no_wrap=wide)
    table.add_column("verdict", no_wrap=True)
    table.add_column("control", no_wrap=True)
    if not tight:
        table.add_column("seconds", justify="right", no_wrap=True)
    groups = claims.grouped(map(record, results), lambda item: item["source"])
    for item in [line for group, items in groups.items() for line in (group, *items)]:
        if isinstance(item, claims.Group):
            table.add_section()
            table.add_row(Text(item.title.upper(), style="bold"))
            continue
        name = Text(item["name"])
        first = [name, Text(item["source"])] if wide else [name.append("\n" + item["source"], style="dim")]
        estimate = _number(item["estimate"])
        if item["lower"] is not None:
            ends = f"[{_number(item['lower'])}, {_number(item['upper'])}]"
            estimate += (" " if wide else "\n") + ("one point" if item["lower"] == item["upper"] else ends)
        control = item["control_verdict"]
        table.add_row(
            *first,
            *([] if tight else [Text("-" if item["n"] is None else str(item["n"]))]),
            Text(estimate),
            Text(_number(item["threshold"])),
            Text(item["verdict"], style=_COLOURS[item["verdict"]]),
            Text(caught(control)) if control == "VIOLATED" else Text(f"! {caught(control)}", style="bold reverse"),
            *([] if tight else [Text(duration(item["seconds"]))]),
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def list_table(checks: dict[str, Check], budget: Literal["quick", "full"]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gpsafe.testbed import report_claims as claims

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("claim", overflow="fold")
    table.add_column("source", overflow="fold")
    table.add_column(f"pieces ({budget})", justify="right")
    groups = claims.grouped(checks.values(), lambda check: check.source)
    for check in [line for group, members in groups.items() for line in (group, *members)]:
        if isinstance(check, claims.Group):
            table.add_section()
            table.add_row(Text(check.title.upper(), style="bold"))
            continue
        pieces = f"{check.num_shards(budget, False)} + {check.num_shards(budget, True)}"
        table.add_row(Text(check.name), Text(check.claim), Text(check.source), pieces)
    return table
