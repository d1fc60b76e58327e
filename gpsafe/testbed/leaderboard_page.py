"""The leaderboard as one self-contained HTML page, in the style of the guarantee report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from gpsafe.testbed import provenance
from gpsafe.testbed.leaderboard import Board, Line, Number, Stored, Sweeps, mean
from gpsafe.testbed.report_template import STYLE

SHOWN = 4  # significant digits; all of them are in the title of a number

BOARD_STYLE = """
td.value{white-space:nowrap} td.value a{font-weight:600} td.value .range{font-size:.86em}
.older{color:var(--soft);font-size:.82em;border:1px solid var(--line);border-radius:.3rem;padding:0 .3rem}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,"Liberation Mono",monospace;overflow-wrap:anywhere}
section.check:target{outline:3px solid var(--holds);outline-offset:3px}
@media (max-width:40rem){main{padding:1.2rem .8rem 3rem} table.board thead{display:none}
table.board tr{display:block;border-bottom:2px solid var(--axis);padding:.4rem 0}
table.board td,table.board th{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.15rem 0;
white-space:normal;overflow-wrap:anywhere;text-align:right}
table.board td::before,table.board th::before{content:attr(data-label);color:var(--soft);font:400 .86rem system-ui,sans-serif;
text-align:left}}
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';style-src 'unsafe-inline'">
<title>Leaderboard</title>
<style>$style</style>
</head>
<body>
<main>
<h1>Leaderboard</h1>
<p class="summary">$summary</p>
<dl class="environment">$environment</dl>
$boards
<p class="note">The unit is the seed: n counts seeds, an estimate is the mean over them of each seed's mean over its rows.
Intervals have a level of 95 % each, with no correction for their number. <b>t</b>: Student's, for seeds whose values are about
normal. <b>Clopper–Pearson</b>: of a rate (a column of true and false) with one row a seed, exact. <b>Bentkus</b>: of a rate
with several rows a seed, which need not be independent of each other: Clopper–Pearson of the sum of the seeds' rates, rounded
down for the lower end and up for the upper, at the level 1 − 0.05/e. Cells that failed are in no number. Where intervals
overlap, an order is not established. Other code has lines of its own. Each number leads to its cells: seeds, arguments,
revision and stored folder.</p>
$failures
$sections
</main>
</body>
</html>
""")


def page(stored: Sweeps, boards: Sequence[Board], folder: str | Path) -> str:
    """The page; the same store gives the same page.

    Args:
        stored: the sweeps.
        boards: from `leaderboard.boards`.
        folder: that the page will stand in; links to stored results are relative to it.
    """
    parts, sections = [], []
    for i, board in enumerate(boards):
        parts.append(_board(board, i))
        sections += [_section(board, line, f"l{i}-{j}", Path(folder)) for j, line in enumerate(board.lines)]
    lines = sum(len(board.lines) for board in boards)
    summary = f"Cells: {len({cell.cell for cell in stored.cells})}, of experiments: {len(boards)}, in lines: {lines}"
    summary += f"; cells that failed: {len(stored.failures)}" if stored.failures else ""
    about = {"sweeps": ", ".join(map(str, stored.homes)), "drawn by": _version()}
    environment = "".join(f'<div class="wide"><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in about.items())
    return PAGE.substitute(
        style=STYLE + BOARD_STYLE,
        summary=escape(summary),
        environment=environment,
        boards="\n".join(parts) + "".join(f'<p class="alarm">{escape(note)}</p>' for note in stored.notes),
        failures=_failures(stored, Path(folder)),
        sections=f"<h2>Cells</h2>\n{''.join(sections)}" if sections else "",
    )


def _version() -> str:
    revision, changed = provenance.git_state()
    return f"gpsafe, revision {revision[:12]}{'+' if changed else ''}" if revision else "gpsafe"


def _board(board: Board, index: int) -> str:
    titles = [*(["#"] if board.ranked else []), *board.by, *board.columns, "code"]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    rows = []
    for j, line in enumerate(board.lines):
        fields = [("#", str(j + 1))] if board.ranked else []
        fields += [(name, escape(told(line.arguments[name]))) for name in board.by]
        plain = [f'<td data-label="{escape(label)}">{text}</td>' for label, text in fields]
        target = f"#l{index}-{j}"
        values = [
            f'<td class="value" data-label="{escape(name)}">{_value(line.numbers.get(name), line, target)}</td>'
            for name in board.columns
        ]
        older = "" if line.latest else ' <span class="older">older code</span>'
        code = f'<td data-label="code"><span><a href="{target}"><code>{escape(line.code)}</code></a>{older}</span></td>'
        rows.append(f"<tr>{''.join(plain)}{''.join(values)}{code}</tr>")
    more = f" Not shown: {', '.join(board.left_out)}." if board.left_out else ""
    mixed = (
        f"Rows that differ in {', '.join(board.mixed)} are averaged here; --by tells them apart." if board.mixed else ""
    )
    rank = f"Ranked by {board.columns[0]}." if board.ranked else "In the order of their arguments, not ranked."
    return (
        f'<h2 id="b{index}">{escape(board.experiment)}</h2>\n<p class="soft">{escape(rank + more)}</p>\n'
        f'{f"""<p class="alarm INCONCLUSIVE">{escape(mixed)}</p>""" if mixed else ""}\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="b{index}"><table class="board">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _value(number: Number | None, line: Line, target: str) -> str:
    """An estimate with its interval and sample size, linked to its cells."""
    if number is None:
        return "–"
    interval = "no interval" if number.low is None else f"[{digits(number.low)}, {digits(number.high)}] {number.kind}"
    notes = [f"n = {number.seeds}", *([f"{number.rows} rows"] if number.rows > number.seeds else [])]
    notes += [number.note] if number.note else []
    notes += [f"{line.failed} failed"] if line.failed else []
    exact = f"{number.estimate!r} [{number.low!r}, {number.high!r}]"
    return (
        f'<span><a href="{target}" title="{escape(exact)}">{digits(number.estimate)}</a>'
        f'<span class="range">{escape(interval)}</span><span class="range">{escape(", ".join(notes))}</span></span>'
    )


def _section(board: Board, line: Line, anchor: str, folder: Path) -> str:
    """What a number rests on: all arguments, the code and revisions, and the cells."""
    told_apart = ", ".join(f"{name} = {told(value)}" for name, value in line.arguments.items())
    facts = {**line.arguments, **line.others, "code": line.code}
    facts["revisions"] = ", ".join(sorted({cell.revision for cell in line.cells}))
    about = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(told(value))}</code></dd>" for name, value in facts.items()
    )
    head = "".join(
        f'<th scope="col">{escape(title)}</th>'
        for title in ("seed", "cell", *board.columns, "revision", "started", "seconds")
    )
    rows = "".join(_cell(board, cell, folder) for cell in line.cells)
    title = f"{board.experiment}: {told_apart}" if told_apart else board.experiment
    return (
        f'<section class="check" id="{anchor}"><h3>{escape(title)}</h3><dl class="facts">{about}</dl>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table class="grades">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )


def _cell(board: Board, cell: Stored, folder: Path) -> str:
    values = ""
    for name in board.columns:
        given = cell.values.get(name, ())
        value = mean(given) if given else None
        many = f' <span class="soft">of {len(given)}</span>' if len(given) > 1 else ""
        values += "<td>–</td>" if value is None else f'<td title="{value!r}">{digits(value)}{many}</td>'
    link = f'<a href="{_link(cell.folder, folder)}"><code>{escape(cell.cell)}</code></a>'
    rest = "".join(f"<td>{escape(text)}</td>" for text in (cell.revision, cell.started, f"{cell.seconds:.3g}"))
    return f"<tr><td>{cell.seed}</td><td>{link}</td>{values}{rest}</tr>\n"


def _failures(stored: Sweeps, folder: Path) -> str:
    if not stored.failures:
        return ""
    items = "".join(
        f'<li><a href="{_link(place, folder)}"><code>{escape(str(place))}</code></a>: {escape(why)}</li>'
        for place, why in stored.failures.items()
    )
    return f'<h2 id="failed">Cells that failed</h2>\n<div class="alarm"><ul>{items}</ul></div>'


def _link(place: Path, folder: Path) -> str:
    try:
        return escape(quote(Path(os.path.relpath(place, folder)).as_posix() + "/"))
    except ValueError:  # another drive
        return escape(place.absolute().as_uri())


def digits(value: Any) -> str:
    """A number for people, as `report_figures.number`, which would load what draws figures.

    >>> digits(0.123456), digits(-3.0), digits(float("-inf"))
    ('0.1235', '−3', '−∞')
    """
    if value != value:
        return "NaN"
    return f"{value:.{SHOWN}g}".replace("inf", "∞").replace("-", "−")


def told(value: Any) -> str:
    """A value of an argument in words."""
    if isinstance(value, list):
        return ", ".join(map(told, value))
    return "None" if value is None else value if isinstance(value, str) else repr(value)
