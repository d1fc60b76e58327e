"""What a run found of a check: its claim, its control and its graded controls, and the status that follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpsafe.testbed.check import Check, Evidence, Graded
from gpsafe.verdict import Outcome


class Status(StrEnum):
    """What the report says of a claim: its outcome, unless the check broke or cannot fail."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNPROVEN = "UNPROVEN"  # its control, or a term's loss, did not come out VIOLATED: it could not fail, or not there
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Result:
    """A claim, or its control, after its pieces.

    Args:
        evidence: what `Check.judge` found, or None after an error.
        shards: number of pieces.
        reused: how many of them an earlier run had finished.
        seconds: time in the workers, summed; kept pieces count with the time that they took.
        error: one line, or None.
        details: traceback of the error, or the empty string.
    """

    evidence: Evidence | None
    shards: int
    reused: int
    seconds: float
    error: str | None = None
    details: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check with the results of its claim, of its control and of its graded controls."""

    check: Check
    claim: Result
    control: Result
    grades: tuple[Graded, ...] = ()

    @property
    def status(self) -> Status:
        """ERROR if a piece failed; else VIOLATED if the claim is; else UNPROVEN if the control is not, or if a term can be
        lost unnoticed and the check does not say why.

        A refuted claim stays refuted whatever its controls say: the check has shown that it can fail.
        """
        if self.claim.evidence is None or self.control.evidence is None or any(grade.error for grade in self.grades):
            return Status.ERROR
        outcome = self.claim.evidence.verdict.outcome
        if outcome is Outcome.VIOLATED:
            return Status.VIOLATED
        if self.control.evidence.verdict.outcome is not Outcome.VIOLATED or self.unaccounted:
            return Status.UNPROVEN
        return Status(outcome.value)

    @property
    def passed(self) -> bool:
        """Whether the claim HOLDS and its control is VIOLATED."""
        return self.status is Status.HOLDS  # which `status` grants only with a violated control

    @property
    def control_outcome(self) -> Outcome | None:
        """The control's own outcome; None after an error."""
        return None if self.control.evidence is None else self.control.evidence.verdict.outcome

    @property
    def unaccounted(self) -> tuple[str, ...]:
        """Terms whose loss the check did not notice, without a reason given."""
        return tuple(grade.term for grade in self.grades if not grade.accounted)

    @property
    def seconds(self) -> float:
        """Time in the workers for the claim and all its controls."""
        return self.claim.seconds + self.control.seconds + sum(grade.seconds for grade in self.grades)

    @property
    def reason(self) -> str:
        """Why the claim did not pass, in one line; empty if it did."""
        status = self.status
        if status is Status.ERROR:
            graded = next((f"in the grade {g.term!r}: {g.error}" for g in self.grades if g.error), "")
            return self.claim.error or (f"in the control: {self.control.error}" if self.control.error else graded)
        if status is Status.UNPROVEN and self.control_outcome is Outcome.VIOLATED:
            return f"it does not notice the loss of: {', '.join(self.unaccounted)}"
        if status is Status.UNPROVEN:
            return f"its control came out {self.control_outcome}, not VIOLATED, so the check could not fail"
        if status is Status.HOLDS:
            return ""
        assert self.claim.evidence is not None
        verdict = self.claim.evidence.verdict
        between = "is above" if status is Status.VIOLATED else "does not clear"
        words = f"[{verdict.lower:.4g}, {verdict.upper:.4g}] {between} the threshold {verdict.threshold:.4g}"
        if self.control_outcome is not Outcome.VIOLATED:
            words += f" (and its control came out {self.control_outcome})"
        return words + (f": {verdict.witness}" if verdict.witness else "")
