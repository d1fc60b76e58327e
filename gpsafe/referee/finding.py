"""What a referee says: one finding a question, each with its level, what it assumes and what it would have noticed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from gpsafe import _require
from gpsafe._show import short, table

BAYES = "the Bayesian reading: f is a draw of the Gaussian process, noise is normal; no theorem of gpsafe rests on it"


class Ruling(StrEnum):
    """What the rows say about a claim. None of them means that it is true."""

    REFUTED = "refuted"
    STANDS = "not refuted"
    VACUOUS = "vacuous"  # it could not have come out otherwise, whatever the truth
    NOT_APPLICABLE = "not applicable"


@short
@dataclass(frozen=True, slots=True)
class Finding:
    """One question and its answer.

    Attributes:
        name: short, for programs.
        claim: what is on trial, as a sentence.
        ruling: see `Ruling`.
        statement: what was found, in plain words.
        statistic: the number compared (worst output); None if there is none.
        threshold: what it is compared with; `refuted` says that the statistic is above it.
        interval: a confidence interval for what the statistic estimates, at `level`.
        level: probability, under what is assumed, that a true claim is called refuted.
        assumes: what the answer rests on besides the claim.
        power: what would have been noticed, and how often.
        head, rows: a table of the numbers behind it.
    """

    name: str
    claim: str
    ruling: Ruling
    statement: str
    statistic: float | None = None
    threshold: float | None = None
    interval: tuple[float, float] | None = None
    level: float | None = None
    assumes: tuple[str, ...] = ()
    power: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str | float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.ruling is Ruling.REFUTED and self.level is None:
            raise _require.fail("Finding", "a level for what is refuted", None)

    def line(self) -> str:
        """For a terminal."""
        return f"{self.ruling.value.upper()}  {self.claim} {self.statement}"


def shown(value: float, digits: int = 3) -> str:
    """A few digits, true minus and infinity signs, a dash for nothing."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return "–" if math.isnan(value) else f"{value:.{digits}g}".replace("-", "−")


def listing(names: Sequence[str]) -> str:
    """One, two and three."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def idle(name: str, claim: str, why: str) -> Finding:
    """A question that these rows, or what was stated, do not let anyone ask."""
    return Finding(name, claim, Ruling.NOT_APPLICABLE, why)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """All findings about a plant or a recording.

    Attributes:
        title: of what was examined.
        findings: in reading order.
        level: probability, at most, that a report calls anything refuted although all that it tried is true.
        facts: rows, outputs, kernel, B, R in words.
        notes: what was done to the rows, and what a reader must know.
        series: numbers of the pictures.
        seconds: processor time.
    """

    title: str
    findings: tuple[Finding, ...]
    level: float
    facts: Mapping[str, str]
    notes: tuple[str, ...]
    series: Mapping[str, Any]
    seconds: float

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, name: str) -> Finding:
        for found in self.findings:
            if found.name == name:
                return found
        raise _require.fail("Findings", f"one of {', '.join(f.name for f in self.findings)}", repr(name))

    def counted(self, ruling: Ruling) -> tuple[Finding, ...]:
        """The findings of one ruling."""
        return tuple(found for found in self.findings if found.ruling is ruling)

    @property
    def refuted(self) -> tuple[Finding, ...]:
        """What the rows contradict."""
        return self.counted(Ruling.REFUTED)

    def summary(self) -> str:
        """One or two sentences."""
        count = Counter(found.ruling for found in self.findings)
        told = ", ".join(f"{count[ruling]} {ruling.value}" for ruling in Ruling if count[ruling])
        if not self.refuted:
            return f"{told}. Nothing that was tried is refuted, which makes none of it true: see what each test would notice."
        parts = []
        for of, bayes in (("what theorems rest on", False), ("the Bayesian reading alone", True)):
            names = [found.name for found in self.refuted if (BAYES in found.assumes) is bayes]
            parts += [f"Refuted of {of}: {listing(names)}."] if names else []
        chance = f"If all that was tried were true, a report would refute some of it with probability ≤ {self.level:g}."
        return f"{told}. {' '.join(parts)} {chance}"

    def document(self) -> dict[str, Any]:
        """Everything, for `gpsafe.testbed.store.write_json`."""
        return {
            "title": self.title, "summary": self.summary(), "level": self.level, "facts": dict(self.facts),
            "notes": list(self.notes), "findings": [asdict(found) for found in self.findings], "series": dict(self.series),
            "seconds": self.seconds,
        }  # fmt: skip

    def _repr_html_(self) -> str:
        rows = [(found.ruling.value, found.claim, found.statement) for found in self.findings]
        return table(self.title, rows, head=("ruling", "claim", "finding"))
