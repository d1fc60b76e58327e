"""The first screen of the report: what was tested on what, what holds, what is assumed, what says nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gpsafe.testbed.report_claims import Group, loose
from gpsafe.testbed.report_figures import Pictures
from gpsafe.testbed.report_sections import picture

HEADLINES = ("actsafe-executed-safe", "xmpsc-tube-coverage", "coverage-mixture")
"""The figures that stand first, where they are there; else those of the first checks that draw one."""
MANY = 6  # entries of a list that is read in two minutes
PLAIN = (  # how an entry begins or what it contains, and what it means in words
    (r"rkhs_norm|‖f\*‖", "the unknown part of the plant is as smooth as stated (its RKHS norm is at most B)"),
    (r"f\*? ?(∈|in) F_n|\|f\* − μ_n\|", "the confidence set contains the plant"),
    (r"gaussian noise|^w_t ~|^noise N\(", "the plant's noise is Gaussian and its variance is known"),
    (r"sub-Gaussian", "measurement noise has tails no heavier than stated (R-sub-Gaussian)"),
    (r"ellipsoid|^\|w\||^\|noise\|", "noise never leaves its stated bounds"),
    (r"fixed before data|^kernel", "kernel and regulariser were chosen before the data were seen"),
    (r"S_0 safe", "the policies given at the start are safe"),
    (r"^calibrated", "errors of the model stay within what held-out data showed"),
    (r"exact(ly)?( state|$)|measured exactly", "states are measured exactly"),
)


def headlines(drawn: Mapping[str, tuple[Pictures | None, str]]) -> list[str]:
    """Names of up to three checks whose figures open the report."""
    there = [name for name, (pictures, _) in drawn.items() if pictures]
    return sorted(there, key=lambda name: HEADLINES.index(name) if name in HEADLINES else len(HEADLINES))[:3]


def first(
    records: Sequence[Mapping[str, Any]],
    groups: Mapping[Group, Sequence[Mapping[str, Any]]],
    drawn: Mapping[str, tuple[Pictures | None, str]],
) -> str:
    """Four short answers and the figures, as HTML."""
    cards = {
        "What was tested": _tested(groups),
        "What holds": _holds(records),
        "What is assumed": _assumed(records, groups),
        "What it does not say": _silent(records, groups),
    }
    text = "".join(f'<section class="card"><h2>{title}</h2>{body}</section>' for title, body in cards.items())
    by_name = {item["name"]: item for item in records}
    figures = "".join(
        f'<div id="figure-{escape(name)}">{picture(_pictures(drawn, name), _caption(by_name[name]))}'
        f'<p class="soft"><a href="#check-{escape(name)}">{escape(name)}</a></p></div>'
        for name in headlines(drawn)
    )
    return f'<div class="cards">{text}</div>' + (f'<div class="headlines">{figures}</div>' if figures else "")


def _pictures(drawn: Mapping[str, tuple[Pictures | None, str]], name: str) -> Pictures:
    found = drawn[name][0]
    assert found is not None
    return found


def _caption(item: Mapping[str, Any]) -> str:
    words = item["claim"][:1].upper() + item["claim"][1:]
    return words if words.endswith(".") else f"{words}."


def _tested(groups: Mapping[Group, Sequence[Mapping[str, Any]]]) -> str:
    parts = []
    for group, items in groups.items():
        claims = f"{len(items)} claim{'s' if len(items) > 1 else ''}"
        anchor = f'<a href="#group-{_anchor(group)}">{escape(group.title)}</a>'
        parts.append(f"<li><b>{anchor}</b>, {claims}. {_about(group)}</li>")
    return f"<ul>{''.join(parts)}</ul>"


def _about(group: Group) -> str:
    return escape(f"{group.what} {group.tested}".strip())


def _anchor(group: Group) -> str:
    return group.title.lower().replace(" ", "-")


def _holds(records: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(item["verdict"] for item in records)
    caught = sum(item["control_verdict"] == "VIOLATED" for item in records)
    terms = [grade for item in records for grade in item["grades"]]
    seen = sum(grade["noticed"] is not None for grade in terms)
    lines = [
        f"{counts['HOLDS']} of {len(records)} claims: the whole interval of the measured number is in the range claimed."
    ]
    others = [item for item in records if item["verdict"] != "HOLDS"]
    if others:
        names = ", ".join(
            f'<a href="#check-{escape(i["name"])}">{escape(i["name"])}</a> ({i["verdict"]})' for i in others
        )
        lines.append(f"Not so: {names}.")
    lines.append(
        f"{caught} of {len(records)} controls were caught: the same test with one assumption broken on purpose came out as "
        "a violation, so the test can tell right from wrong."
    )
    if terms:
        lines.append(f"{seen} of {len(terms)} single terms of the bounds cannot be lost without a check noticing it.")
    return "".join(f"<p>{line}</p>" for line in lines)


def _assumed(records: Sequence[Mapping[str, Any]], groups: Mapping[Group, Any]) -> str:
    entries = Counter(words for item in records for words in {_plainly(entry) for entry in item["assumptions"]})
    if not entries:
        return "<p>Nothing.</p>"
    rows = "".join(
        f'<li>{escape(words)} <span class="soft">({count} claim{"s" if count > 1 else ""})</span></li>'
        for words, count in entries.most_common(MANY)
    )
    more = len(entries) - MANY
    end = f'<p class="soft">and {more} rarer ones, each beside its claim.</p>' if more > 0 else ""
    if any(group.tested for group in groups):
        end += "<p>The plants here were made so that these are true. Of your plant they are yours to believe.</p>"
    return f"<ul>{rows}</ul>{end}"


def _plainly(entry: str) -> str:
    """An assumption in words, where there are some.

    >>> _plainly("S_0 safe"), _plainly("mine (yours)")
    ('the policies given at the start are safe', 'mine')
    """
    return next((words for pattern, words in PLAIN if re.search(pattern, entry)), entry.split(" (")[0])


def _silent(records: Sequence[Mapping[str, Any]], groups: Mapping[Group, Any]) -> str:
    lines = [
        "A claim that holds is evidence for the code as it ran, on the cases that it ran on; it is no proof of the theorem."
    ]
    lines += [group.silent for group in groups if group.silent]
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if wide := loose(records):
        names = ", ".join(f'<a href="#check-{escape(name)}">{escape(name)}</a>' for name in wide[:MANY])
        more = f" and {len(wide) - MANY} more" if len(wide) > MANY else ""
        text += f"<p>Seen less than a tenth as often as the theorem grants, so probably wider than need be: {names}{more}.</p>"
    unseen = sum(grade["noticed"] is None for item in records for grade in item["grades"])
    if unseen:
        terms = f"{unseen} single term{'s' if unseen > 1 else ''}"
        text += f"<p>{terms} of bounds could be lost unnoticed; each is listed with the reason.</p>"
    return text


def tables(
    groups: Mapping[Group, Sequence[Mapping[str, Any]]], rows: Mapping[str, str], sections: Mapping[str, str]
) -> str:
    """For each group its title, its table and its checks."""
    head = (
        '<thead><tr><th scope="col">Claim</th><th scope="col" class="number">Estimate, interval</th>'
        '<th scope="col" class="number">Threshold</th><th scope="col" class="number extra">n</th>'
        '<th scope="col">Verdict</th><th scope="col">Control</th></tr></thead>'
    )
    parts = []
    for group, items in groups.items():
        anchor, names = _anchor(group), [item["name"] for item in items]
        parts.append(
            f'<h2 id="group-{anchor}">{escape(group.title)}</h2><p class="note">{_about(group)}</p>'
            f'<table class="verdicts" aria-labelledby="group-{anchor}">{head}<tbody>'
            f"{''.join(rows[n] for n in names)}</tbody></table>"
            f"<h3>{escape(group.title)}: the checks one by one</h3>{''.join(sections[n] for n in names)}"
        )
    return "".join(parts)
