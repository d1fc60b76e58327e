"""The guarantee report as JSON and as one self-contained HTML file."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gpsafe.testbed import report_claims as claims
from gpsafe.testbed import workers as pool
from gpsafe.testbed.check import Graded
from gpsafe.testbed.provenance import git_state, versions
from gpsafe.testbed.report_claims import Links
from gpsafe.testbed.report_figures import figure_uris
from gpsafe.testbed.report_first import first, headlines, tables
from gpsafe.testbed.report_sections import defect, row, section
from gpsafe.testbed.report_template import PAGE, STYLE
from gpsafe.testbed.verify import CheckResult, Result, Status

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
        "group": claims.group_of(check.source).title,
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
    return "; ".join(f"{grade.term}: {defect(_graded(grade))}" for grade in result.grades)


def document(results: Sequence[CheckResult], env: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report: write it with `gpsafe.testbed.store.write_json`, which puts infinities and NaN as strings."""
    return {"environment": dict(env), "checks": [record(result) for result in results]}


def summary(results: Sequence[CheckResult]) -> str:
    """One honest sentence or two."""
    count, passed = len(results), sum(result.passed for result in results)
    noun = "claim" if count == 1 else "claims"
    if passed == count:
        if count == 1:
            return "The claim holds, and its control, one assumption broken, is caught."
        return f"All {count} {noun} hold, and each of their controls, one assumption broken, is caught."
    others = Counter(result.status for result in results if not result.passed)
    listed = ", ".join(f"{others[status]} {words}" for status, words in WORDS.items() if others[status])
    return f"{passed} of {count} {noun} hold, each with its control caught. Not passed: {listed}."


def html(results: Sequence[CheckResult], env: Mapping[str, Any], *, folder: Path | None = None) -> str:
    """One self-contained page: no scripts, nothing loaded from anywhere; light, dark, printed and on a telephone.

    Args:
        results: what was found.
        env: of `environment`.
        folder: where the page will stand; claims then link to their theorems and code, if gpsafe runs from a checkout.
    """
    records = [record(result) for result in results]
    left_out = env["checks_known"] - env["checks_selected"]
    words = summary(results) + (f" {left_out} further checks were not selected for this run." if left_out else "")
    words += "".join(f" Not run: {module}, {why}." for module, why in env["not_run"].items())
    drawn = {result.check.name: figure_uris(result) for result in results}
    links, above = Links.of(folder), headlines(drawn)
    ours = {result.check.name for result in results if claims.ours(result.check)}
    groups = {
        group if ours.issuperset(item["name"] for item in items) else group.without_plants(): items
        for group, items in claims.grouped(records, lambda item: item["source"]).items()
    }
    return PAGE.substitute(
        title=f"Guarantee report: {escape(summary(results))}",
        style=STYLE,
        mood="summary" if all(result.passed for result in results) else "summary bad",
        summary=escape(words),
        first=first(records, groups, drawn),
        environment=_environment_html(env),
        groups=tables(
            groups,
            {item["name"]: row(item) for item in records},
            {
                item["name"]: section(r, item, drawn[item["name"]], links, above=item["name"] in above)
                for r, item in zip(results, records, strict=True)
            },
        ),
    )


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
