"""The guarantee report as JSON and as one self-contained HTML file."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gpsafe.testbed import workers as pool
from gpsafe.testbed.check import Graded
from gpsafe.testbed.provenance import git_state, versions
from gpsafe.testbed.report_figures import figure_uri, interval_svg, number
from gpsafe.testbed.report_template import PAGE, STYLE
from gpsafe.testbed.verify import CheckResult, Result, Status

SIGNS = {"HOLDS": "✓", "VIOLATED": "✗", "INCONCLUSIVE": "?", "UNPROVEN": "!", "ERROR": "×"}
WORDS = {
    Status.VIOLATED: "violated",
    Status.INCONCLUSIVE: "inconclusive",
    Status.UNPROVEN: "unproven (a control did not fail)",
    Status.ERROR: "broken by an error",
}


def environment(
    *,
    budget: str,
    command: str,
    started_at: str,
    seconds: float,
    workers: int,
    selected: int,
    known: int,
    not_run: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a reader needs to run the same again: versions, machine, revision, budget, time.

    Args:
        budget: ``quick`` or ``full``.
        command: the command line.
        started_at: UTC, ISO 8601.
        seconds: wall-clock time of this run (kept pieces cost none).
        workers: number of worker processes.
        selected: how many checks ran.
        known: how many there are.
        not_run: modules of checks that need an extra that is not installed, with what to do.
    """
    revision, dirty = git_state()
    try:
        version = importlib.metadata.version("gpsafe")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        **versions(),
        "gpsafe": version,
        "platform": platform.platform(),
        "cpu_count": pool.available_cores(),
        "workers": workers,
        "git_revision": revision,
        "git_dirty": dirty,
        "budget": budget,
        "checks_selected": selected,
        "checks_known": known,
        "not_run": dict(not_run or {}),
        "started_at": started_at,
        "seconds": seconds,
        "command": command,
    }


def _numbers(result: Result, prefix: str) -> dict[str, Any]:
    found = result.evidence
    verdict = None if found is None else found.verdict
    return {
        prefix + "n": None if found is None else found.n,
        prefix + "estimate": None if found is None else found.estimate,
        **{prefix + key: getattr(verdict, key, None) for key in ("lower", "upper", "threshold", "tol", "witness")},
    }


def record(result: CheckResult) -> dict[str, Any]:
    """One check as a flat mapping. Numbers are None after an error.

    ``verdict`` is the report's `Status`; ``outcome`` is what the claim's interval alone says.
    """
    check, claim, control = result.check, result.claim, result.control
    return {
        "name": check.name,
        "claim": check.claim,
        "source": check.source,
        "assumptions": list(check.assumptions),
        "statistic": check.statistic,
        **_numbers(claim, ""),
        "verdict": result.status.value,
        "outcome": None if claim.evidence is None else claim.evidence.verdict.outcome.value,
        "reason": result.reason,
        "control": check.control,
        **_numbers(control, "control_"),
        "control_verdict": "ERROR" if result.control_outcome is None else result.control_outcome.value,
        "grades": [_graded(grade) for grade in result.grades],
        "seconds": result.seconds,
        "shards": claim.shards,
        "control_shards": control.shards,
        "shards_reused": claim.reused + control.reused,
        "error": claim.error or control.error,
        "details": claim.details or control.details,
        "data": {} if claim.evidence is None else claim.evidence.data,
        "control_data": {} if control.evidence is None else control.evidence.data,
    }


def _graded(grade: Graded) -> dict[str, Any]:
    return {
        "term": grade.term,
        "noticed": grade.noticed,
        "tried": [[factor, outcome] for factor, outcome in grade.tried],
        "unseen": grade.unseen,
        "error": grade.error,
        "seconds": grade.seconds,
    }


def noticed(result: CheckResult) -> str:
    """The smallest defect of each named term that a check notices, in one line; empty without graded controls."""
    return "; ".join(f"{grade.term}: {_defect(_graded(grade))}" for grade in result.grades)


def document(results: Sequence[CheckResult], env: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report: write it with `gpsafe.testbed.store.write_json`, which puts infinities and NaN as strings."""
    return {"environment": dict(env), "checks": [record(result) for result in results]}


def summary(results: Sequence[CheckResult]) -> str:
    """One honest sentence or two."""
    count, passed = len(results), sum(result.passed for result in results)
    noun = "claim" if count == 1 else "claims"
    if passed == count:
        if count == 1:
            return "The claim holds, and its control is violated, as it must be."
        return f"All {count} {noun} hold, and each of their controls is violated, as it must be."
    others = Counter(result.status for result in results if not result.passed)
    listed = ", ".join(f"{others[status]} {words}" for status, words in WORDS.items() if others[status])
    return f"{passed} of {count} {noun} hold, with a violated control each. Not passed: {listed}."


def html(results: Sequence[CheckResult], env: Mapping[str, Any]) -> str:
    """One self-contained page: no scripts, nothing loaded from anywhere; light, dark and printed."""
    records = [record(result) for result in results]
    left_out = env["checks_known"] - env["checks_selected"]
    words = summary(results) + (f" {left_out} further checks were not selected for this run." if left_out else "")
    words += "".join(f" Not run: {module}, {why}." for module, why in env["not_run"].items())
    return PAGE.substitute(
        title=f"Guarantee report: {escape(summary(results))}",
        style=STYLE,
        mood="summary" if all(result.passed for result in results) else "summary bad",
        summary=escape(words),
        environment=_environment_html(env),
        rows="\n".join(_row(item) for item in records),
        sections="\n".join(_section(r, item) for r, item in zip(results, records, strict=True)),
    )


def duration(seconds: float) -> str:
    """Seconds with one digit after the point.

    >>> duration(0.001), duration(12.34)
    ('<0.1', '12.3')
    """
    return "<0.1" if 0 < seconds < 0.05 else f"{seconds:.1f}"


def _badge(word: str, *, expected: bool = False) -> str:
    extra = " expected" if expected else ""
    sign = "✓" if expected else SIGNS.get(word, "")
    return f'<span class="badge {word}{extra}"><span aria-hidden="true">{sign}</span> {word}</span>'


def _control_badge(item: Mapping[str, Any]) -> str:
    outcome = item["control_verdict"]
    if outcome in ("VIOLATED", "ERROR"):
        return _badge(outcome, expected=outcome == "VIOLATED")
    return f'<span class="badge UNPROVEN"><span aria-hidden="true">!</span> not violated: {outcome}</span>'


def _environment_html(env: Mapping[str, Any]) -> str:
    revision = "none" if env["git_revision"] is None else env["git_revision"][:12]
    rows = {
        "budget": f"{env['budget']}, {env['checks_selected']} of {env['checks_known']} checks",
        "took": f"{env['seconds']:.1f} s on {env['workers']} workers",
        **{name: env[name] or "not installed" for name in ("gpsafe", *versions())},
        "cores": env["cpu_count"],
    }
    wide = {
        "started": env["started_at"],
        "revision": revision + (" with uncommitted changes" if env["git_dirty"] else ""),
        "platform": env["platform"],
        "command": env["command"],
    }
    parts = [f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in rows.items()]
    parts += [f'<div class="wide"><dt>{k}</dt><dd>{escape(str(v))}</dd></div>' for k, v in wide.items()]
    return "".join(parts)


def _range(item: Mapping[str, Any], prefix: str = "") -> str:
    if item[prefix + "lower"] is None:
        return "–"
    return f"[{number(item[prefix + 'lower'])}, {number(item[prefix + 'upper'])}]"


def _row(item: Mapping[str, Any]) -> str:
    name = escape(item["name"])
    between = "" if item["lower"] is None else f'<span class="range">{_range(item)}</span>'
    return (
        f'<tr><th scope="row"><a href="#check-{name}">{name}</a></th>'
        f'<td class="source">{escape(item["source"])}</td>'
        f'<td class="number">{number(item["n"])}</td>'
        f'<td class="number">{number(item["estimate"])} {between}</td>'
        f'<td class="number">{number(item["threshold"])}</td><td>{_badge(item["verdict"])}</td>'
        f'<td>{_control_badge(item)}</td><td class="number">{escape(duration(item["seconds"]))}</td></tr>'
    )


def _found(item: Mapping[str, Any], prefix: str) -> str:
    if item[prefix + "lower"] is None:
        return "nothing"
    text = (
        f"estimate {number(item[prefix + 'estimate'])} in {_range(item, prefix)}, threshold "
        f"{number(item[prefix + 'threshold'])}, n = {number(item[prefix + 'n'])}"
    )
    tol = item[prefix + "tol"]
    return text + (f", tolerance {number(tol)}" if tol else "")


def _defect(grade: Mapping[str, Any]) -> str:
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
        word = escape(_defect(grade))
        found = f'<span class="badge {"ERROR" if grade["error"] else "UNPROVEN"}">! {word}</span>' if bad else word
        tried = ", ".join(f"× {number(factor)} {outcome}" for factor, outcome in grade["tried"])
        rows.append(f'<tr><th scope="row">{escape(grade["term"])}</th><td>{found}</td><td>{escape(tried)}</td></tr>')
    return (
        '<table class="grades"><thead><tr><th scope="col">Term scaled</th><th scope="col">Smallest defect noticed</th>'
        f'<th scope="col">Claim with the term scaled</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _section(result: CheckResult, item: Mapping[str, Any]) -> str:
    name = escape(item["name"])
    assumptions = "".join(f"<li>{escape(words)}</li>" for words in item["assumptions"]) or "<li>none</li>"
    facts = {
        "Source": escape(item["source"]),
        "Believed": f"<ul>{assumptions}</ul>",
        "Statistic": escape(item["statistic"]),
        "Found": _found(item, ""),
        "Witness": escape(item["witness"] or ""),
        "Control": escape(item["control"]),
        "Control found": f"{_control_badge(item)} {_found(item, 'control_')}",
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
    uri, why = figure_uri(result)
    picture = ""
    if uri:
        caption = f"{item['name']}: {item['statistic']}, claim and control."
        picture = (
            f'<figure><img src="{uri}" alt="Figure of {escape(caption)}"><figcaption>{escape(caption)}'
            "</figcaption></figure>"
        )
    elif why:
        picture = f'<p class="soft">The figure could not be drawn: {escape(why)}</p>'
    return (
        f'<section class="check" id="check-{name}">'
        f"<header><h3>{name}</h3>{_badge(item['verdict'])}</header>"
        f'<p class="claim">{escape(item["claim"])}</p>{alarm}{interval_svg(item)}'
        f'<dl class="facts">{listed}</dl>'
        f"{_grades_html(item['grades'])}{picture}</section>"
    )
