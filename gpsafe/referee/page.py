"""The page of an examination: what is refuted first, then every question with its numbers. One file, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from gpsafe.referee import figures
from gpsafe.referee.finding import Finding, Findings, Ruling, shown
from gpsafe.testbed.report_sections import picture
from gpsafe.testbed.report_template import STYLE

SIGNS = {
    Ruling.REFUTED: ("VIOLATED", "✗"), Ruling.STANDS: ("expected", "·"), Ruling.VACUOUS: ("INCONCLUSIVE", "○"),
    Ruling.NOT_APPLICABLE: ("expected", "–"),
}  # fmt: skip
GROUPS = {
    "Noise": ("repeats", "copies", "level", "tail", "time", "memory"),
    "Norm": ("norm", "growth", "upper"),
    "Kernel and confidence set": ("kernel", "shape", "held", "bars"),
    "What follows": ("widths", "refit", "states", "policies"),
}

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>What $title says</title>
<style>$style section.check .scroll table{width:auto;font-size:.86rem} table.verdicts td.words{max-width:44rem}
table.verdicts td.words::before{display:none}</style>
</head>
<body>
<main>
<h1>What $title says of its assumptions</h1>
<p class="$mood">$summary</p>
<dl class="environment">$facts</dl>
<h2>How to read a line</h2>
<p class="note"><b>refuted</b>: were the claim true, such rows would come up with at most the probability written as level.
<b>not refuted</b>: these rows do not contradict it. That is never a proof, and weak where the power is. <b>vacuous</b>: the
answer could hardly have been another, whatever the truth. <b>not applicable</b>: nobody can ask it of these rows, or it was
not stated. Claims that rest on kernel, B and R together fail together: which of the three is wrong, the numbers beside it
suggest and do not prove. The levels of all lines add up to $level.</p>
$tables
<h2>Norm, from below and from above</h2>
$growth
<h2>What R and B would have to be</h2>
$needed
<h2>Tails</h2>
$tails
<h2>What the tests notice on these inputs</h2>
<div class="scroll" tabindex="0" role="region" aria-label="power"><table>$power</table></div>
<p class="note">Numbers of $trials trials in which each test refuted, on functions of exactly known norm with 30 centres among
the rows, measured where these were; the least of all outputs, of the first line the most. The first line are false alarms;
“bars”, “shape” and “memory” suppose a draw of the process, which such functions are not.</p>
<h2>Every question</h2>
$sections
<h2>What was done to the rows</h2>
<ul>$notes</ul>
</main>
</body>
</html>
""")
CAPTIONS = {
    "growth": "Norm against the number of judging rows: proved from below at all n at once; norm of the posterior mean, "
    "which bounds nothing; largest of the random functions through the rows, an over-estimate under an assumption of its "
    "own; and B.",
    "needed": "The norm that the rows prove if R were another (horizontal), by what forecasts them: above B the claim is "
    "refuted. Crosses: some test refutes (k, B, this R). Upright: R as claimed.",
    "tails": "Share of forecast errors, model error included, beyond a size, with what R-sub-Gaussian noise may do at most "
    "and what normal noise of deviation R does. Model error moves the points to the right; the test grants it all that "
    "theory allows.",
}


def html(found: Findings, command: str = "") -> str:
    """The page."""
    title = escape(found.title)
    facts = {**found.facts, "processor seconds": f"{found.seconds:.0f}", **({"command": command} if command else {})}
    parts = [f'<div class="wide"><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>' for key, value in facts.items()]
    by_name = {one.name: one for one in found.findings}
    tables = [_table(group, [by_name[name] for name in names if name in by_name]) for group, names in GROUPS.items()]
    pictures = {
        name: picture(figures.drawn(found.series, draw), CAPTIONS[name])
        for name, draw in (("growth", figures.growth), ("needed", figures.needed), ("tails", figures.tails))
    }
    more = len(found.series["outputs"]) - figures.FEW
    notes = [
        *found.notes,
        *([f"The pictures show the first {figures.FEW} outputs of {figures.FEW + more}."] if more > 0 else []),
    ]
    return PAGE.substitute(
        title=title, style=STYLE, mood="summary bad" if found.refuted else "summary", summary=escape(found.summary()),
        facts="".join(parts), level=f"{found.level:g}", tables="".join(tables), power=_power(found.series["power"]),
        trials=found.series["power"]["trials"], sections="".join(_section(one) for one in found.findings),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes) or "<li>nothing</li>", **pictures,
    )  # fmt: skip


def _badge(ruling: Ruling) -> str:
    kind, sign = SIGNS[ruling]
    return f'<span class="badge {kind}">{sign} {ruling.value}</span>'


def _table(group: str, findings: Sequence[Finding]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="#{one.name}">{one.name}</a><span class="sentence">{escape(one.claim)}</span></th>'
        f'<td data-label="ruling">{_badge(one.ruling)}</td><td class="words">{escape(one.statement)}</td></tr>'
        for one in findings
    )
    head = '<thead><tr><th scope="col">Claim</th><th scope="col">Ruling</th><th scope="col">Finding</th></tr></thead>'
    return f'<h3>{group}</h3><table class="verdicts">{head}<tbody>{rows}</tbody></table>'


def _number(value: Any) -> str:
    return escape(value) if isinstance(value, str) else shown(value, 4)


def _section(one: Finding) -> str:
    compared = _number(one.statistic) if one.statistic is not None else ""
    compared += f", against {_number(one.threshold)}" if one.threshold is not None else ""
    facts = {
        "Statistic": compared, "Level": "" if one.level is None else _number(float(one.level)),
        "Assumes": "" if not one.assumes else f"<ul>{''.join(f'<li>{escape(a)}</li>' for a in one.assumes)}</ul>",
        "Power": escape(one.power),
    }  # fmt: skip
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items() if value)
    table = ""
    if one.rows:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in one.head)
        body = "".join(
            "<tr>"
            + "".join(f'<td class="{"number" if not isinstance(v, str) else ""}">{_number(v)}</td>' for v in row)
            + "</tr>"
            for row in one.rows
        )
        table = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{one.name}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    return (
        f'<section class="check" id="{one.name}"><header><h4>{one.name}</h4>{_badge(one.ruling)}</header>'
        f'<p class="claim">{escape(one.claim)}</p><p>{escape(one.statement)}</p>'
        f'<dl class="facts">{listed}</dl>{table}</section>'
    )


def _power(power: Mapping[str, Any]) -> str:
    tests = list(next(iter(power["hits"].values()), {}))
    head = "".join(f'<th scope="col" class="number">{name}</th>' for name in tests)
    rows = "".join(
        f"<tr><td>{escape(defect)}</td>{''.join(f'<td class=number>{hits.get(t, 0)}</td>' for t in tests)}</tr>"
        for defect, hits in power["hits"].items()
    )
    return f'<thead><tr><th scope="col">Made up</th>{head}</tr></thead><tbody>{rows}</tbody>'
