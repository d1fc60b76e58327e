"""Writes the report of an experiment: figures as PNG and PDF, tables as Markdown and CSV, GIFs, and an index."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gpsafe import _require, plotting
from gpsafe.testbed import animate, store
from gpsafe.testbed.experiment import Experiment, Report, Run, Stored, Table
from gpsafe.testbed.experiment_store import as_plain, differing

PNG_DPI, FONT = 140, 8.5
Format = Literal["png", "pdf", "svg"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def write(
    experiment: Experiment, stored: Stored, output: str | Path, *, formats: Sequence[Format] = ("png", "pdf")
) -> list[Path]:
    """Draws the stored runs and writes everything to a folder; returns the files, `index.md` first.

    Nothing but `stored` goes into the figures and tables. The index says which seeds, arguments and revisions they
    stand on, what was left out and why, and whether the seeds differ in arguments or revision. The index shows the PNGs.
    """
    with plotting.style(size=FONT):
        report = experiment.report(stored.runs)
    if not isinstance(report, Report):
        raise _require.fail(f"report of {experiment.name!r}", "a Report", type(report).__name__)
    for name in (*report.figures, *report.tables, *report.animations):
        if not _NAME.fullmatch(name) or name == "index":
            raise _require.fail(f"report of {experiment.name!r}", "file names, not 'index'", repr(name))
    folder, files = Path(output), []
    for name, figure in report.figures.items():
        for suffix in formats:
            files.append(
                store.write_bytes(folder / f"{name}.{suffix}", plotting.save(figure, kind=suffix, dpi=PNG_DPI))
            )
    for name, movie in report.animations.items():
        files.append(animate.save_gif(folder / f"{name}.gif", movie.system, movie.states, title=movie.title))
    for name, table in report.tables.items():
        files.append(store.write_text(folder / f"{name}.md", markdown(table)))
        files.append(store.write_text(folder / f"{name}.csv", as_csv(table)))
    return [store.write_text(folder / "index.md", index(experiment, stored, report)), *files]


def markdown(table: Table) -> str:
    """A Markdown table; floats with four significant digits."""
    lines = [[_cell(c) for c in table.columns], ["---"] * len(table.columns)]
    lines += [[_cell(value) for value in row] for row in table.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\n{table.caption}\n" if table.caption else "\n")


def as_csv(table: Table) -> str:
    """Comma-separated values, with all digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([store.plain(value) for value in row] for row in table.rows)
    return buffer.getvalue()


def _cell(value: Any) -> str:
    value = store.plain(value)
    if value is None:
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")
        return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def index(experiment: Experiment, stored: Stored, report: Report) -> str:
    """The page that ties a report together."""
    parts = [f"# {experiment.title}", f"Experiment `{experiment.name}`. Drawn from stored results only."]
    parts += [f"![{name}]({name}.gif)" for name in report.animations]
    parts += [f"![{name}]({name}.png)" for name in report.figures]
    parts += list(report.notes)
    parts += [f"## {name}\n\n{markdown(table)}\n[CSV]({name}.csv)" for name, table in report.tables.items()]
    parts += ["## Where the numbers come from", *origins(stored)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def origins(stored: Stored) -> list[str]:
    """Warnings, then seeds, budgets, arguments and revisions of the runs, as Markdown."""
    runs = stored.runs
    parts = [f"**Warning.** {line}" for line in mixtures(runs)]
    if stored.left_out:
        parts.append("**Left out:** " + "; ".join(stored.left_out) + ".")
    arguments = ", ".join(f"{k} = {v}" for k, v in as_plain(runs[0].arguments).items())
    facts = [
        f"seeds: {', '.join(str(run.seed) for run in runs)}",
        f"budget: {', '.join(sorted({str(run.provenance.get('budget', '')) or '?' for run in runs}))}",
        f"arguments{' of the first seed' if mixtures(runs) else ''}: {arguments}",
        f"git revisions (+ marks uncommitted changes somewhere in the checkout): {', '.join(_of_pieces(runs, 'revisions'))}",
        f"fingerprints of the code: {', '.join(_of_pieces(runs, 'codes'))}",
        f"commands: {', '.join(f'`{command}`' for command in _of_sessions(runs, 'command'))}",
        f"started: {min(_of_sessions(runs, 'started_at'), default='?')}",
    ]
    return [*parts, "\n".join(f"- {fact}" for fact in facts)]


def mixtures(runs: Sequence[Run]) -> list[str]:
    """One line for each way in which the runs do not belong together."""
    lines = []
    first = as_plain(runs[0].arguments)
    others: dict[str, list[int]] = {}
    for run in runs[1:]:
        if differs := differing(first, as_plain(run.arguments)):
            others.setdefault("; ".join(differs), []).append(run.seed)
    for differs, seeds in others.items():
        who = f"Seed {seeds[0]} has" if len(seeds) == 1 else f"Seeds {', '.join(map(str, seeds))} have"
        lines.append(f"{who} other arguments than seed {runs[0].seed}: {differs}.")
    codes, revisions = (_of_pieces(runs, name) for name in ("codes", "revisions"))
    if len(codes) > 1 or ("unknown" in codes and len(revisions) > 1):
        lines.append(f"The pieces come from different code: {', '.join(codes)} (revisions {', '.join(revisions)}).")
    return lines


def _of_pieces(runs: Sequence[Run], name: str) -> list[str]:
    return sorted({found for run in runs for found in run.provenance.get(name, ())})


def _of_sessions(runs: Sequence[Run], name: str) -> list[str]:
    sessions: list[Mapping[str, Any]] = [s for run in runs for s in run.provenance.get("sessions", ())]
    return list(dict.fromkeys(str(s[name]) for s in sessions if s.get(name)))
