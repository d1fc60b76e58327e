"""What a claim belongs to, and where its theorem and its code are: groups by paper, links into a checkout."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import gpsafe

T = TypeVar("T")
SIGN = "\N{SECTION SIGN}"
_SECTION = re.compile(SIGN + r"\s?(\d+(?:\.\d+)?(?:\s\((?:[ivx]+|[a-z])\))?)")
_HEADING = re.compile(r"^#{2,4} (.+)$", re.MULTILINE)
_NUMBER = re.compile(r"^\d+(?:\.\d+)?(?:\s\((?:[ivx]+|[a-z])\))?")


@dataclass(frozen=True)
class Group:
    """Claims of one origin, with what a reader should know of them before the numbers."""

    title: str
    what: str = ""
    tested: str = ""
    """On what our own checks test it."""
    silent: str = ""
    """What its claims do not say although they hold."""
    chapters: tuple[str, ...] = ()
    """Of docs/theory.md."""

    def belongs(self, source: str) -> bool:
        """Whether a check with this source is one of the group's."""
        return bool({number.split(".")[0].split()[0] for number in _cited(source, "theory")} & set(self.chapters))

    def without_plants(self) -> Group:
        """For checks that are not ours."""
        return replace(self, tested="")


GROUPS: tuple[Group, ...] = (
    Group(
        "ActSafe",
        "A learner that runs only policies certified safe against every plant that its data still allow (As et al., ICLR 2025),"
        " and the bounds of a policy's cost that certify them.",
        "Tested on plants that lie exactly in the class that the theorems speak of: lines, random finite plants, and a twin of"
        " the pendulum.",
        "The number of episodes that the theorem on reaching the reachable set asks for is astronomically large and predicts "
        "nothing, and the total-variation bound of a cost says no more than the largest cost there is once the model is as "
        "uncertain as the noise is large.",
        ("3", "4"),
    ),
    Group(
        "X-MPSC",
        "A filter that lets an input pass only with a certified plan back to a safe set (Gronauer et al., AAMAS 2024), the"
        " tubes of its plans, and the shield that works alike.",
        "Tested on linear plants, on networks of known error, and on the published pendulum.",
        "The published one-sigma tube does not contain the plant: it stands here as a control. And a tube that holds is of use "
        "only where a plan fits into it; how often one does is measured by the experiments, not here.",
        ("6", "7"),
    ),
    Group(
        "Shared foundations",
        "Confidence sets around a Gaussian process, their widths, information gain, and what an empty set refutes.",
        "Tested on functions of exactly known norm, with noise of the kind assumed, at every point and after every observation"
        " at once.",
        "A confidence set that does not come out empty proves nothing about its assumptions.",
        ("1", "2", "5", "8"),
    ),
)
OTHER = Group("Further claims")


def group_of(source: str) -> Group:
    """The first group whose chapters a check's source cites.

    >>> group_of("Theorem 3").title, group_of("theory §6.2").title, group_of("Lemma 2; theory §2.5").title
    ('Further claims', 'X-MPSC', 'Shared foundations')
    """
    return next((group for group in GROUPS if group.belongs(source)), OTHER)


def grouped(items: Iterable[T], source: Callable[[T], str]) -> dict[Group, list[T]]:
    """Items by group, groups in their order, those without items left out."""
    listed = list(items)
    found = {group: [item for item in listed if group_of(source(item)) == group] for group in (*GROUPS, OTHER)}
    return {group: members for group, members in found.items() if members}


def ours(check: Any) -> bool:
    """Whether a check stands in the project's own package of checks."""
    return str(getattr(_innermost(check.sample), "__module__", "")).removeprefix("gpsafe.").startswith("proofs_checks.")


@dataclass(frozen=True)
class Links:
    """Relative links from a page into the checkout that gpsafe runs from: words and targets."""

    base: str
    root: Path

    @staticmethod
    def of(folder: Path | None) -> Links | None:
        """For a page in this folder; None if gpsafe is no checkout, or the page's place is not known."""
        root = Path(gpsafe.__file__).resolve().parents[1]
        if folder is None or not (root / "docs" / "theory.md").is_file():
            return None
        return Links(Path(os.path.relpath(root, folder.resolve())).as_posix(), root)

    def theorems(self, name: str, source: str) -> list[tuple[str, str]]:
        """The statements a check cites, or that cite the check."""
        return [
            (f"{file.removesuffix('.md')} {SIGN}{heading}", f"{self.base}/docs/{file}#{slug(heading)}")
            for file, heading, _ in self._found(name, source)
        ]

    def _found(self, name: str, source: str) -> list[tuple[str, str, str]]:
        """File, heading and text of those statements."""
        return [
            (file, heading, text)
            for file, document in (("theory.md", "theory"), ("xmpsc.md", "xmpsc.md"))
            for number, heading, text in _statements(self.root / "docs" / file)
            if number in _cited(source, document) or f"`{name}`" in text
        ]

    def code(self, check: Any) -> list[tuple[str, str]]:
        """The file of the check, and those of the functions that its statements name."""
        names = re.findall(r"gpsafe\.([a-z_]+(?:\.\w+)+)", check.source)
        for _, _, text in self._found(check.name, check.source):
            names += re.findall(r"`([a-z_]+(?:\.\w+)+)`", text.partition("*Code*")[2])
        paths = [_file_of(check.sample), *(_module_file(self.root / "gpsafe", name) for name in names)]
        inside = [path.relative_to(self.root) for path in paths if path is not None and path.is_relative_to(self.root)]
        return [(path.as_posix(), f"{self.base}/{path.as_posix()}") for path in dict.fromkeys(inside)][:6]


def slug(heading: str) -> str:
    """The anchor that code hosts give a heading of Markdown.

    >>> slug("4 (i) Safety"), slug("3.3 Robust dynamic program")
    ('4-i-safety', '33-robust-dynamic-program')
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _cited(source: str, document: str) -> set[str]:
    """Numbers after a document's name, up to the next one; 3.1–3.3 are three."""
    found: set[str] = set()
    for part in re.split(r";", source):
        if document in part:
            found |= set(_SECTION.findall(part))
            for chapter, first, last in re.findall(SIGN + r"(\d+)\.(\d+)–(?:\d+\.)?(\d+)", part):
                found |= {f"{chapter}.{k}" for k in range(int(first), int(last) + 1)}
    return found


@functools.cache
def _statements(path: Path) -> tuple[tuple[str, str, str], ...]:
    """Number, heading and text of each section of a document."""
    if not path.is_file():
        return ()
    text = path.read_text(encoding="utf-8")
    marks = list(_HEADING.finditer(text))
    found = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        if number := _NUMBER.match(mark[1]):
            found.append((number[0], mark[1], text[mark.end() : after.start() if after else None]))
    return tuple(found)


def _innermost(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _file_of(function: Any) -> Path | None:
    module = sys.modules.get(getattr(_innermost(function), "__module__", ""))
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _module_file(package: Path, name: str) -> Path | None:
    """`safety.budget.BudgetFilter` → …/safety/budget.py; a name of a room's face → the file that makes it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = package.joinpath(*parts[:length]).with_suffix(".py")
        if path.is_file():
            return path
    return _file_of(getattr(sys.modules.get(f"gpsafe.{parts[0]}"), parts[1], None)) if len(parts) > 1 else None


def interval_words(record: Mapping[str, Any], prefix: str = "") -> str:
    """What an interval that is no two-sided one means; empty for an ordinary one."""
    lower, upper, estimate = (record[prefix + key] for key in ("lower", "upper", "estimate"))
    if lower is None:
        return ""
    if lower == upper:
        return "one point: the largest over the n cases, computed and not estimated; it says nothing of further cases"
    if lower == -float("inf") and upper == float("inf"):
        return "all numbers: the data say nothing"
    if lower == -float("inf"):
        return "one-sided: only an upper limit is known"
    if upper == float("inf"):
        return "one-sided: only a lower limit is known"
    if lower == estimate == 0.0:
        return "nothing was seen; the upper end is how large it may still be at the interval's confidence"
    if estimate in (lower, upper):
        return "one-sided: the estimate is itself an end, the other one is how far the truth may be from it"
    return ""


def loose(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of claims whose estimate from sampling stays below a tenth of what the theorem grants: sound, and wide."""
    sampled = [r for r in records if r["lower"] is not None and r["lower"] < r["upper"] and r["verdict"] == "HOLDS"]
    return [r["name"] for r in sampled if r["threshold"] > 0 and 0 <= r["estimate"] <= r["threshold"] / 10]
