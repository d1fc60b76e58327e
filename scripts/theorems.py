"""docs/theorems.md: every statement of both papers and of this library, with its proof, code, checks and last verdicts.

A statement is a file proofs_checks/claims/PAPER_NN_NAME.toml, in the order of the paper: what is claimed (LaTeX), where it
comes from, where it is proved, what computes it and which checks decide it; or why none can. What a check does is said by the
check alone. Verdicts are those of proofs_checks/verdicts.json, which takes over what report/report.json says:

    make verify && make theorems
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "proofs_checks" / "claims"
VERDICTS = ROOT / "proofs_checks" / "verdicts.json"
REPORT = ROOT / "report" / "report.json"
PAGE = ROOT / "docs" / "theorems.md"
KINDS = ("assumption", "definition", "lemma", "theorem")
KEPT = ("verdict", "n", "estimate", "lower", "upper", "threshold", "witness", "control_verdict", "control_n")
PAPERS = {
    "actsafe": (
        "ActSafe",
        "As et al., ICLR 2025. Statements that our copy does not number are named by their section.",
    ),
    "xmpsc": ("X-MPSC", "Gronauer et al., AAMAS 2024; what was published, and its defects: [xmpsc.md](xmpsc.md)."),
    "further": ("Beyond both papers", "What this library adds, or takes from elsewhere."),
}
HEAD = """# Theorems

Every assumption, lemma and theorem of both papers, in their order, and what this library adds: equation → statement → function
→ check → control → last verdict. A check is a statement that runs (`gpsafe verify --only NAME`); its control breaks one
assumption and must come out VIOLATED. A graded control scales one term, the mildest defect first: *smallest defect noticed* is
the first at which the claim fails. A HOLDS is evidence for the code as it ran, under what is assumed; proofs are in
[theory.md](theory.md).
Made by `make theorems` from `proofs_checks/claims`, the checks and `proofs_checks/verdicts.json`; not written by hand."""


@dataclass(frozen=True)
class Claim:
    """One statement; see a file of it."""

    name: str
    title: str
    kind: str
    source: str
    statement: str
    latex: tuple[str, ...]
    theory: tuple[str, ...]
    code: tuple[str, ...]
    checks: tuple[str, ...]
    undecided: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.paper not in PAPERS:
            raise ValueError(f"{self.name}: expected a kind of {KINDS} and a paper of {tuple(PAPERS)}")
        if not (self.latex and self.theory and self.code) or not (self.checks or self.undecided):
            raise ValueError(f"{self.name}: expected LaTeX, theory, code, and checks or why there are none")

    @property
    def paper(self) -> str:
        """The part of the name before the number."""
        return self.name.partition("_")[0]

    @property
    def heading(self) -> str:
        """As on the page: "A4 Calibration"."""
        return f"{PAPERS[self.paper][0][0]}{int(self.name.split('_')[1])} {self.title}"

    @staticmethod
    def read(path: Path) -> Claim:
        """From its file; what the file does not know is refused."""
        fields: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in fields.items()}
        return Claim(path.stem, **parts)


def claims() -> list[Claim]:
    """All of them, papers in their order."""
    found = [Claim.read(path) for path in sorted(CLAIMS.glob("*.toml"))]
    return sorted(found, key=lambda claim: list(PAPERS).index(claim.paper))


# -------------------------------------------------------------------------------------------------------- verdicts
def merged(stored: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """Verdicts by check, those of a report over those stored."""
    made = report["environment"]
    told = {"revision": made["git_revision"][:7], "date": made["started_at"][:10], "budget": made["budget"]}
    fresh = {
        record["name"]: {key: record[key] for key in KEPT}
        | {"grades": [{k: g[k] for k in ("term", "noticed", "unseen", "error")} for g in record["grades"]]}
        | told
        for record in report["checks"]
    }
    return dict(sorted({**stored, **fresh}.items()))


# ------------------------------------------------------------------------------------------------------------ page
def plain(text: str) -> str:
    """Words shown as they are: nothing in them is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def verdict(record: Mapping[str, Any] | None) -> str:
    """In a few words."""
    if record is None:
        return "not run"
    control = "caught" if record["control_verdict"] == "VIOLATED" else f"not caught ({record['control_verdict']})"
    return f"{record['verdict']} (n = {record['n']}), control {control}"


def _linked(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"[{plain(words)}]({target})" for words, target in pairs)


def page(told: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/theorems.md with these verdicts."""
    from gpsafe.testbed.check import discover
    from gpsafe.testbed.report_claims import Links, slug
    from gpsafe.testbed.report_figures import number
    from gpsafe.testbed.report_sections import defect

    checks, links = discover(), Links(".", ROOT)

    def led(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(words.replace("xmpsc ", "xmpsc.md "), posixpath.relpath(target, "docs")) for words, target in pairs]

    def theory(claim: Claim) -> list[tuple[str, str]]:
        return [pair for part in claim.theory for pair in led(links.theorems("", f"theory \N{SECTION SIGN}{part}"))]

    every = claims()
    lines = [HEAD, ""]
    dates = sorted({(one["date"], one["revision"], one["budget"]) for name, one in told.items() if name in checks})
    when = "; ".join(f"revision {revision}, {date}, budget {budget}" for date, revision, budget in dates)
    lines += [f"{len(every)} statements, {len(checks)} checks. Last verdicts: {when or 'none'}.", ""]
    for paper, (title, words) in PAPERS.items():
        rows = ["| statement | kind | source | function | check | last verdict |", "|---|---|---|---|---|---|"]
        for claim in (c for c in every if c.paper == paper):
            names = [f"[`{name}`](#{name})" for name in claim.checks]
            verdicts = [verdict(told.get(name)) for name in claim.checks]
            cells = (
                f"[{plain(claim.heading)}](#{slug(claim.heading)})",
                claim.kind,
                plain(claim.source),
                ", ".join(f"`{name}`" for name in claim.code),
                "<br>".join(names) or "none: believed",
                "<br>".join(verdicts),
            )
            rows.append(f"| {' | '.join(cells)} |")
        lines += [f"## {title}", "", words, "", *rows, ""]
        for claim in (c for c in every if c.paper == paper):
            lines += [f"### {plain(claim.heading)}", "", f"*{claim.kind.capitalize()}* ({plain(claim.source)}).", ""]
            lines += [claim.statement, ""]
            for formula in claim.latex:
                lines += ["```math", formula, "```", ""]
            items = [
                ("Proof" if claim.kind in ("lemma", "theorem") else "Where", _linked(theory(claim))),
                ("Function", ", ".join(f"`{name}`" for name in claim.code)),
                ("Check", "; ".join(f"[`{n}`](#{n}): {verdict(told.get(n))}" for n in claim.checks)),
                ("What no check decides", claim.undecided),
            ]
            lines += [f"- **{head}**: {words}" for head, words in items if words] + [""]
    lines += ["## Checks", ""]
    for name, check in checks.items():
        record = told.get(name)
        cited = [c for c in every if name in c.checks]
        numbers, grades = "", "; ".join(f"{plain(grade.term)}: not run" for grade in check.grades)
        if record is not None:
            ends = (
                ""
                if record["lower"] in (None, record["upper"])
                else f" [{number(record['lower'])}, {number(record['upper'])}]"
            )
            numbers = f"{number(record['estimate'])}{ends} against {number(record['threshold'])}"
            grades = "; ".join(f"{plain(grade['term'])}: {plain(defect(grade))}" for grade in record["grades"])
        items = [
            ("Statement", ", ".join(f"[{plain(c.heading)}](#{slug(c.heading)})" for c in cited)),
            ("Source", plain(check.source)),
            ("Theory", _linked(led(links.theorems(name, check.source)))),
            ("Code", _linked(led(links.code(check)))),
            ("Assumed", plain("; ".join(check.assumptions)) or "nothing"),
            ("Statistic", plain(check.statistic)),
            ("Control", plain(check.control)),
            ("Verdict", verdict(record) + (f"; {numbers}" if numbers else "")),
            ("Seen", plain((record or {}).get("witness") or "")),
            ("Smallest defect noticed", grades),
        ]
        lines += [f"### `{name}`", "", plain(check.claim[:1].upper() + check.claim[1:]), ""]
        lines += [f"- **{head}**: {words}" for head, words in items if words] + [""]
    return "\n".join(lines).rstrip() + "\n"


def stored() -> dict[str, Any]:
    """The verdicts kept in the repository."""
    return json.loads(VERDICTS.read_text(encoding="utf-8")) if VERDICTS.is_file() else {}


def main(report: Path = REPORT) -> None:
    """Takes over a report, if there is one, and writes the page."""
    sys.path.insert(0, str(ROOT))
    from gpsafe.testbed.check import discover

    told = stored()
    if report.is_file():
        told = merged(told, json.loads(report.read_text(encoding="utf-8")))
    told = {name: one for name, one in told.items() if name in discover()}
    VERDICTS.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(told), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
