"""The `Check`: an executable theorem with a control that must fail (theory §8)."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gpsafe import _require
from gpsafe.testbed import extras, listing, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpsafe.verdict import Verdict

Budget = Literal["quick", "full"]
BUDGETS: tuple[Budget, ...] = ("quick", "full")
OURS = "gpsafe.proofs_checks"
"""The project's own checks."""
Sample = dict[str, Any]  # JSON-able numbers, strings, lists and dicts


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a check found.

    Args:
        n: number of independent trials (or points) behind the estimate, at least 1.
        estimate: point estimate of the statistic.
        verdict: its interval against the threshold.
        data: JSON-able numbers for the figure and the curious reader.
    """

    n: int
    estimate: float
    verdict: Verdict
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require.count("Evidence", "n", self.n)  # nothing was looked at: no claim holds for that


@dataclass(frozen=True, slots=True)
class Grade:
    """A graded control: one named term of what a check believes, and how much of it may go missing unnoticed.

    The claim's own pieces `shards` are made again while the term is multiplied by a factor, the mildest first, until the
    claim comes out VIOLATED: see `measure`.

    Args:
        term: what is scaled, in words.
        scaled: ``with scaled(g):`` multiplies this term, and nothing else, by g (a patch of one name).
        shards: pieces of the claim that stress the term; None: all of the budget.
        factors: mildest first; 0 drops the term.
        unseen: why even the last factor goes unnoticed, where it does and must. It is shown, never assumed: a term that is
            noticed all the same is reported as noticed.
    """

    term: str
    scaled: Callable[[float], AbstractContextManager[object]]
    shards: tuple[int, ...] | None = None
    factors: tuple[float, ...] = (0.9, 0.7, 0.5, 0.0)
    unseen: str = ""

    def __post_init__(self) -> None:
        if not self.factors or 1.0 in self.factors:
            raise _require.fail("Grade", "factors other than 1", self.factors)


@dataclass(frozen=True, slots=True)
class Graded:
    """What a graded control showed.

    Attributes:
        term: as in `Grade`.
        noticed: the mildest factor at which the claim came out VIOLATED; None if it never did.
        tried: pairs of a factor and the claim's outcome, in the order tried; the first factor is 1.
        unseen: as in `Grade`; empty if the term was noticed.
        error: one line if a piece failed, else empty.
        seconds: time that it took.
    """

    term: str
    noticed: float | None
    tried: tuple[tuple[float, str], ...]
    unseen: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def accounted(self) -> bool:
        """Whether a defect of the term was noticed, or the check says why none can be."""
        return not self.error and (self.noticed is not None or bool(self.unseen))


@dataclass(frozen=True, slots=True)
class Check:
    """A claim, how it is tested, and a control that breaks one assumption and must come out VIOLATED.

    Args:
        name: unique, kebab-case.
        claim: the statement tested, in one sentence.
        source: paper and equation, or statement of docs/theory.md.
        assumptions: what is believed rather than shown.
        statistic: what the interval is about.
        control: which assumption the control breaks, in one sentence.
        shards: number of independent pieces of work per budget.
        sample: ``sample(shard, budget, broken) -> Sample``: one piece, JSON-able, deterministic in its
            arguments (it derives its own ``torch.Generator`` from the shard number); ``broken=True`` is the control.
        control_shards: pieces of the control per budget (defaults to `shards`).
        judge: ``judge(samples, broken) -> Evidence`` over all pieces in shard order.
        grades: graded controls, one per named term.
        most: the claim goes on, a few pieces at a time and up to this many, while its verdict is INCONCLUSIVE; `judge` must
            then be valid at every number of pieces (`verdict.anytime_interval`). None: `shards` and no more.
        plot: optional ``plot(figure, claim_evidence_data, control_evidence_data)`` drawing on a Matplotlib figure
            from the two `Evidence.data` mappings.
    """

    name: str
    claim: str
    source: str
    assumptions: tuple[str, ...]
    statistic: str
    control: str
    shards: Mapping[Budget, int]
    sample: Callable[[int, Budget, bool], Sample]
    judge: Callable[[Sequence[Sample], bool], Evidence]
    control_shards: Mapping[Budget, int] | None = None
    plot: Callable[[Figure, Mapping[str, Any], Mapping[str, Any]], None] | None = None
    grades: tuple[Grade, ...] = ()
    most: Mapping[Budget, int] | None = None

    def limit(self, budget: Budget, broken: bool) -> int:
        """Largest number of pieces of the claim or of its control."""
        start = self.num_shards(budget, broken)
        return start if broken or self.most is None else max(start, self.most[budget])

    def num_shards(self, budget: Budget, broken: bool) -> int:
        """Number of pieces of the claim (``broken=False``) or of its control."""
        table = self.control_shards if broken and self.control_shards is not None else self.shards
        return table[budget]

    def run(self, budget: Budget = "quick", broken: bool = False) -> Evidence:
        """Runs all pieces here, one after another (the command line runs them in parallel)."""
        from gpsafe.verdict import Outcome

        samples = [self.sample(i, budget, broken) for i in range(self.num_shards(budget, broken))]
        evidence = self.judge(samples, broken)
        while evidence.verdict.outcome is Outcome.INCONCLUSIVE and len(samples) < self.limit(budget, broken):
            samples.append(self.sample(len(samples), budget, broken))
            evidence = self.judge(samples, broken)
        return evidence

    def measure(self, grade: Grade, budget: Budget = "quick") -> Graded:
        """The smallest defect of a term that this check notices.

        The term times 1 is tried first: where that is VIOLATED the patch itself does damage, and nothing it seems to show
        counts.
        """
        from gpsafe.verdict import Outcome  # loads SciPy, which a list of checks does not wait for

        shards = range(self.num_shards(budget, False)) if grade.shards is None else grade.shards
        tried: list[tuple[float, str]] = []
        for factor in (1.0, *grade.factors):
            with grade.scaled(factor):
                samples = [store.plain(self.sample(shard, budget, False)) for shard in shards]
                outcome = self.judge(samples, False).verdict.outcome  # pyright: ignore[reportArgumentType]
            tried.append((float(factor), str(outcome)))
            if outcome is Outcome.VIOLATED:
                if factor == 1.0:
                    raise _require.fail(self.name, f"a claim that stands with {grade.term!r} times 1", outcome)
                return Graded(grade.term, float(factor), tuple(tried))
        return Graded(grade.term, None, tuple(tried), grade.unseen)


def survey(package: str = OURS) -> tuple[dict[str, Check], dict[str, str]]:
    """All checks of a package, each module's ``CHECKS`` tuple, sorted by name; and the modules that need an extra that is not
    installed, with what to do. Any other failure to import is raised, as is a name that stands twice.
    """
    found: dict[str, Check] = {}
    missing: dict[str, str] = {}
    root = importlib.import_module(package)
    for info in pkgutil.iter_modules(root.__path__):
        name = f"{package}.{info.name}"
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if (why := extras.needed(error)) is None:
                raise
            missing[name] = why
            continue
        for check in getattr(module, "CHECKS", ()):
            if check.name in found:
                raise _require.fail("discover", "unique check names", repr(check.name))
            found[check.name] = check
    return dict(sorted(found.items())), missing


def listed(package: str = OURS) -> tuple[dict[str, Check], dict[str, str]]:
    """Like `survey`, and quicker: checks to be read, not run; what they compute with is loaded only if their texts need it."""

    def fits(found: tuple[dict[str, Check], dict[str, str]]) -> bool:
        counts = [
            c.num_shards(budget, broken) for c in found[0].values() for budget in BUDGETS for broken in (False, True)
        ]
        texts = [text for c in found[0].values() for text in (c.name, c.claim, c.source, c.statistic, c.control)]
        return all(type(text) is str for text in texts) and all(type(count) is int for count in counts)

    return listing.read(survey, package, fits)


def discover(package: str = OURS) -> dict[str, Check]:
    """All checks of a package by name, see `survey`. Raises ImportError if a module of it needs an extra that is missing."""
    found, missing = survey(package)
    if missing:
        raise ImportError("; ".join(f"{module} {why}" for module, why in missing.items()))
    return found


def select(checks: Mapping[str, Check], names: Iterable[str]) -> dict[str, Check]:
    """The checks of these names (all, if there are none). Raises ValueError with the closest known names."""
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in checks:
            near = difflib.get_close_matches(name, checks, n=3, cutoff=0.5)
            known = f"one like {', '.join(near)}" if near else f"one of {', '.join(checks)}"
            raise _require.fail("--only", f"the name of a check, {known}", repr(name))
    return {name: check for name, check in checks.items() if not wanted or name in wanted}
