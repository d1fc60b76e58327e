"""Every citation of the theory resolves to a numbered statement, and everything that the theory names exists."""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from gpsafe.testbed.check import discover

ROOT = Path(__file__).parents[1]
DOCUMENTS = {"theory": ROOT / "docs" / "theory.md", "xmpsc.md": ROOT / "docs" / "xmpsc.md"}
ROOMS = ("gpsafe", "proofs_checks", "experiments", "tests", "docs")
FILES = sorted({p for room in ROOMS for kind in ("py", "pyi", "md") for p in (ROOT / room).rglob(f"*.{kind}")})
FILES = [p for p in (*FILES, ROOT / "README.md") if p != Path(__file__)]
FOREIGN = ("Boyd & Vandenberghe, §8.4.2",)  # sections of other people's books

ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
PART = r"\((?:[ivx]+|[a-z])\)"
ITEM = rf"\d+(?:\.\d+)*(?: {PART})?"
CITATION = re.compile(
    rf"(?:\b(?P<document>[Tt]heory|xmpsc\.md) )?§(?P<list>{ITEM}(?:(?:, | and )(?:§{ITEM}|{PART})|–(?:§?{ITEM}|{PART}))*)"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
VOCABULARY = re.compile(r"^\| `[A-Z_]+` \|.*$", re.MULTILINE)
KEBAB = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)+")


# ------------------------------------------------------------------------------------------------ what there is
def headings(text: str) -> list[str]:
    return re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)


def statements(text: str) -> set[str]:
    """Numbers of headings, and of bold numbers at the start of a line: "3.4", "4 (iii)", "11.3"."""
    marks = [*headings(text), *re.findall(r"^\*\*(\d+(?:\.\d+)*)\*\*", text, re.MULTILINE)]
    return {found.group() for mark in marks if (found := re.match(rf"{ITEM}(?![\w.])", mark))}


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(text)}


@cache
def known(document: str) -> set[str]:
    return statements(DOCUMENTS[document].read_text())


# --------------------------------------------------------------------------------------------------- citations
def parts(cited: str) -> Iterator[str]:
    """Single numbers of a list: "4 (iii)–(v), §5" gives 4 (iii), 4 (iv), 4 (v), 5; a range names all between its ends."""
    section, last = "", ""
    for joint, number, part in re.findall(rf"(–?)(?:[, §]|and )*(\d+(?:\.\d+)*)?\s?({PART})?", cited):
        if not number and not part:
            continue
        section = number or section
        one = f"{section} {part}".strip()
        yield from between(last, one) if joint else ()
        yield one
        last = one


def between(first: str, last: str) -> Iterator[str]:
    """What lies strictly between two numbers that differ in their last place."""
    if first.endswith(")"):
        (head, low), (_, high) = (re.fullmatch(r"(.*)\((\w+)\)", end).groups() for end in (first, last))  # type: ignore[union-attr]
        yield from (f"{head}({roman})" for roman in ROMAN[ROMAN.index(low) + 1 : ROMAN.index(high)])
    else:
        (head, _, low), (_, _, high) = first.rpartition("."), last.rpartition(".")
        yield from (f"{head}.{i}".lstrip(".") for i in range(int(low) + 1, int(high)))


def flat(text: str) -> str:
    """One line, without the marks of comments, so that citations broken across lines are read whole."""
    return re.sub(r"\s*\n\s*(?:#+ )?", " ", text)


def unresolved(text: str, home: str | None = None) -> list[str]:
    """Citations that lead nowhere, and sections of no named document. `home`: the document that bare sections belong to."""
    text = flat(text)
    for words in FOREIGN:
        text = text.replace(words, "")
    wrong = re.findall(r"\b[Tt]heory \d[\d.]*|xmpsc\.md \d[\d.]*", text)
    for found in CITATION.finditer(text):
        document = (found["document"] or home or "").lower()
        if not document:
            wrong.append(f"{found.group()} of which document?")
            continue
        wrong += [f"{document} §{one}" for one in parts(found["list"]) if one not in known(document)]
    return wrong + ["§ without a number"] * (
        text.count("§") - sum(f.group().count("§") for f in CITATION.finditer(text))
    )


def test_every_citation_resolves():
    homes = {file: name for name, file in DOCUMENTS.items()}
    wrong = {str(p.relative_to(ROOT)): unresolved(p.read_text(), homes.get(p)) for p in FILES}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_numbers_are_distinct():
    for path in DOCUMENTS.values():
        found = [m.group() for h in headings(path.read_text()) if (m := re.match(rf"{ITEM}(?![\w.])", h))]
        assert len(found) == len(set(found)) > 10


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("theory §3.4 and §4 (i), xmpsc.md §1.3", []),
        ("Theory §4 (i), (ii), (vi); theory §3.3–3.5, §5", []),
        ("theory\n    # §2", []),
        ("theory §3.99", ["theory §3.99"]),
        ("theory §2, §77", ["theory §77"]),
        ("theory §4 (i), (ix)", ["theory §4 (ix)"]),
        ("theory §4 (v)–(viii)", ["theory §4 (vii)", "theory §4 (viii)"]),
        ("theory §3.9–3.14", ["theory §3.13", "theory §3.14"]),
        ("xmpsc.md §11.3, §11.21", ["xmpsc.md §11.21"]),
        ("see §2", ["§2 of which document?"]),
        ("theory 6", ["theory 6"]),
        ("theory § 2", ["§ without a number"]),
    ],
)
def test_control_an_invented_number_is_caught(text, wrong):
    assert unresolved(text) == wrong


# ------------------------------------------------------------------------------------------------------- links
def dead(path: Path, text: str) -> list[str]:
    """Links to files or headings that do not exist."""
    wrong = []
    for target in LINK.findall(text):
        name, _, anchor = target.partition("#")
        file = path if not name else path.parent / name
        if "://" in target or target.startswith("mailto:"):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCUMENTS.values()], ids=lambda p: p.name)
def test_every_link_leads_somewhere(path):
    assert dead(path, path.read_text()) == []


def test_control_a_dead_link_is_caught():
    path = ROOT / "README.md"
    assert dead(path, "[a](docs/theory.md#99-nothing) [b](docs/nothing.md)") == [
        "docs/theory.md#99-nothing", "docs/nothing.md",
    ]  # fmt: skip
    assert dead(path, "[a](docs/theory.md#34-total-variation) [c](https://example.org)") == []


# --------------------------------------------------------------------------------------------- names of code
def exists(name: str) -> bool:
    """Whether a dotted name, relative to gpsafe or absolute, is a module or something in one."""
    return any(_found(full.split(".")) for full in (f"gpsafe.{name}", name))


def _found(path: list[str]) -> bool:
    for cut in range(len(path), 0, -1):
        try:
            owner: object = importlib.import_module(".".join(path[:cut]))
        except ImportError:
            continue
        return _within(owner, path[cut:])
    return False


def _within(owner: object, rest: list[str]) -> bool:
    for name in rest:
        fields = {f for base in getattr(owner, "__mro__", ()) for f in getattr(base, "__annotations__", {})}
        if not hasattr(owner, name):
            return name in fields and rest[-1] == name and not isinstance(owner, ModuleType)
        owner = getattr(owner, name)
    return True


def unknown(text: str) -> list[str]:
    """Names in back quotes that are nothing: dotted ones of code, kebab-case ones of checks, paths."""
    wrong = []
    text = VOCABULARY.sub("", text)  # the sentences of `gpsafe.assumptions`, word for word
    for name in CODE.findall(text):
        bare = name.removesuffix("()")
        if "/" in bare and re.fullmatch(r"[\w./-]+", bare):
            wrong += [] if (ROOT / bare).exists() else [name]
        elif DOTTED.fullmatch(bare) and not bare.endswith((".py", ".md")):
            wrong += [] if exists(bare) else [name]
        elif KEBAB.fullmatch(bare):
            wrong += [] if bare in discover() else [name]
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS)
def test_everything_that_the_theory_names_exists(document):
    assert unknown(DOCUMENTS[document].read_text()) == []


def test_the_theory_names_every_check():
    named = {name for path in DOCUMENTS.values() for name in CODE.findall(path.read_text())}
    assert set(discover()) <= named


def table() -> str:
    section = (ROOT / "README.md").read_text().split("\n## Theorem → function → check → verdict\n")[1]
    return section.strip().split("\n\n")[0]


def test_every_row_of_the_readme_points_to_a_statement_and_to_functions_that_exist():
    rows = [line.split("|") for line in table().splitlines()[2:]]
    assert len(rows) == len(discover())
    for row in rows:
        assert re.search(r"\]\(docs/theory\.md#[\w-]+\)", row[1]), row
        assert CODE.findall(row[2]) and unknown(row[2]) == [], row


def test_control_a_name_that_is_nothing_is_caught():
    assert unknown("`confidence.Mixture` `models.GP.noise_scale` `simulation-lemma` `tests/test_citations.py`") == []
    text = "`confidence.Mixtures` `models.GP.nothing` `simulation-lemmas` `tests/nothing.py` `proofs_checks.nothing`"
    assert unknown(text) == CODE.findall(text)
