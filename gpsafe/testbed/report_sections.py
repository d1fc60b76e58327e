"""A check in the report's page: its row in a group's table, and its own section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gpsafe.testbed.report_claims import Links, interval_words
from gpsafe.testbed.report_figures import Pictures, interval_svg, number
from gpsafe.testbed.verify import CheckResult

SIGNS = {"HOLDS": "✓", "VIOLATED": "✗", "INCONCLUSIVE": "?", "UNPROVEN": "!", "ERROR": "×"}


def duration(seconds: float) -> str:
    """Seconds with one digit after the point.

    >>> duration(0.001), duration(12.34)
    ('<0.1', '12.3')
    """
    return "<0.1" if 0 < seconds < 0.05 else f"{seconds:.1f}"


def caught(outcome: str) -> str:
    """What the control's outcome means: it must be violated, and then the check has caught it.

    >>> caught("VIOLATED"), caught("HOLDS"), caught("ERROR")
    ('caught', 'missed (HOLDS)', 'ERROR')
    """
    return {"VIOLATED": "caught", "ERROR": "ERROR"}.get(outcome, f"missed ({outcome})")


def badge(word: str) -> str:
    """A verdict as a word with a sign in its colour."""
    return f'<span class="badge {word}"><span aria-hidden="true">{SIGNS.get(word, "")}</span> {word}</span>'


def control_badge(outcome: str) -> str:
    """Whether a control was caught."""
    kind, sign = {"VIOLATED": ("expected", "✓"), "ERROR": ("ERROR", "×")}.get(outcome, ("UNPROVEN", "!"))
    return f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span> {caught(outcome)}</span>'


def _range(item: Mapping[str, Any], prefix: str = "") -> str:
    if item[prefix + "lower"] is None:
        return "–"
    if item[prefix + "lower"] == item[prefix + "upper"]:
        return "one point"
    return f"[{number(item[prefix + 'lower'])}, {number(item[prefix + 'upper'])}]"


def row(item: Mapping[str, Any]) -> str:
    """One line of a group's table: the claim in a sentence, the numbers, the verdict, the control."""
    name = escape(item["name"])
    between = "" if item["lower"] is None else f'<span class="range">{_range(item)}</span>'
    return (
        f'<tr><th scope="row"><a href="#check-{name}">{name}</a>'
        f'<span class="sentence">{escape(item["claim"])}</span></th>'
        f'<td class="number" data-label="estimate">{number(item["estimate"])} {between}</td>'
        f'<td class="number" data-label="threshold">{number(item["threshold"])}</td>'
        f'<td class="number extra" data-label="n">{number(item["n"])}</td>'
        f'<td data-label="verdict">{badge(item["verdict"])}</td>'
        f'<td data-label="control">{control_badge(item["control_verdict"])}</td></tr>'
    )


def _found(item: Mapping[str, Any], prefix: str) -> str:
    if item[prefix + "lower"] is None:
        return "nothing"
    text = (
        f"{number(item[prefix + 'estimate'])}, interval {_range(item, prefix)}, threshold "
        f"{number(item[prefix + 'threshold'])}, n = {number(item[prefix + 'n'])}"
    )
    tol, words = item[prefix + "tol"], interval_words(item, prefix)
    text += f", tolerance {number(tol)}" if tol else ""
    return text + (f'<span class="meaning">{escape(words)}</span>' if words else "")


def defect(grade: Mapping[str, Any]) -> str:
    """A factor in words: 0.7 of a term is what remains of it."""
    if grade["error"]:
        return f"error: {grade['error']}"
    if grade["noticed"] is None:
        return "not noticed" + (f" ({grade['unseen']})" if grade["unseen"] else "")
    return "dropped" if grade["noticed"] == 0 else f"× {number(grade['noticed'])}"


def _grades_html(grades: Sequence[Mapping[str, Any]]) -> str:
    """The graded controls of one check: a row per named term, the unnoticed among them."""
    if not grades:
        return ""
    rows = []
    for grade in grades:
        bad = grade["error"] or (grade["noticed"] is None and not grade["unseen"])
        word = escape(defect(grade))
        found = f'<span class="badge {"ERROR" if grade["error"] else "UNPROVEN"}">! {word}</span>' if bad else word
        tried = ", ".join(f"× {number(factor)} {outcome}" for factor, outcome in grade["tried"])
        rows.append(f'<tr><th scope="row">{escape(grade["term"])}</th><td>{found}</td><td>{escape(tried)}</td></tr>')
    return (
        '<table class="grades"><thead><tr><th scope="col">Term scaled</th><th scope="col">Smallest defect noticed</th>'
        f'<th scope="col">Claim with the term scaled</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _linked(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f'<a href="{escape(target)}">{escape(words)}</a>' for words, target in pairs)


def picture(pictures: Pictures, caption: str) -> str:
    """A figure that follows the page from light to dark; wider than a telephone, so it scrolls by itself there."""
    words = escape(caption)
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{words}"><picture>'
        f'<source media="screen and (prefers-color-scheme:dark)" srcset="{pictures.dark}">'
        f'<img src="{pictures.light}" alt="Figure of {words}"></picture></div><figcaption>{words}</figcaption></figure>'
    )


def section(
    result: CheckResult,
    item: Mapping[str, Any],
    drawn: tuple[Pictures | None, str],
    links: Links | None,
    *,
    above: bool,
) -> str:
    """All that is known of one check; its figure too, unless it stands `above` among the first ones."""
    name = escape(item["name"])
    assumptions = "".join(f"<li>{escape(words)}</li>" for words in item["assumptions"]) or "<li>none</li>"
    theorems = links.theorems(item["name"], item["source"]) if links else []
    code = links.code(result.check) if links else []
    facts = {
        "Source": escape(item["source"]),
        "Theorem": _linked(theorems),
        "Code": _linked(code),
        "Believed": f"<ul>{assumptions}</ul>",
        "Statistic": escape(item["statistic"]),
        "Found": _found(item, ""),
        "Witness": escape(item["witness"] or ""),
        "Control": escape(item["control"]),
        "Control found": f"{control_badge(item['control_verdict'])} {_found(item, 'control_')}",
        "Its witness": escape(item["control_witness"] or ""),
        "Work": f"{item['shards']} + {item['control_shards']} pieces"
        + (f", {len(item['grades'])} graded controls" if item["grades"] else "")
        + f", {duration(item['seconds'])} s",
    }
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items() if value)
    alarm = ""
    if item["reason"]:
        alarm = f'<p class="alarm {item["verdict"]}"><b>{item["verdict"]}</b>: {escape(item["reason"])}</p>'
    if item["details"]:
        alarm += f"<details><summary>Traceback</summary><pre>{escape(item['details'])}</pre></details>"
    pictures, why = drawn
    shown = ""
    if pictures and above:
        shown = f'<p class="soft"><a href="#figure-{name}">Its figure</a> is one of the first three.</p>'
    elif pictures:
        shown = picture(pictures, f"{item['name']}: {item['statistic']}, claim and control.")
    elif why:
        shown = f'<p class="soft">The figure could not be drawn: {escape(why)}</p>'
    return (
        f'<section class="check" id="check-{name}">'
        f"<header><h4>{name}</h4>{badge(item['verdict'])}</header>"
        f'<p class="claim">{escape(item["claim"])}</p>{alarm}{interval_svg(item)}'
        f'<dl class="facts">{listed}</dl>'
        f"{_grades_html(item['grades'])}{shown}</section>"
    )
