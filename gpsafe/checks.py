"""The `Check`: an executable theorem with a control that must fail (theory §8)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib.figure import Figure

from gpsafe import _require
from gpsafe.verdict import Verdict

Budget = Literal["quick", "full"]
BUDGETS: tuple[Budget, ...] = ("quick", "full")
Sample = dict[str, Any]  # JSON-able numbers, strings, lists and dicts


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a check found.

    Args:
        n: number of independent trials (or points) behind the estimate.
        estimate: point estimate of the statistic.
        verdict: its interval against the threshold.
        data: JSON-able numbers for the figure and the curious reader.
    """

    n: int
    estimate: float
    verdict: Verdict
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """A claim, how it is tested, and a control that breaks one assumption and must come out VIOLATED.

    Args:
        name: unique, kebab-case.
        claim: the statement tested, in one sentence.
        source: paper and equation, or section of docs/theory.
        assumptions: what is believed rather than shown.
        statistic: what the interval is about.
        control: which assumption the control breaks, in one sentence.
        shards: number of independent pieces of work per budget.
        sample: ``sample(shard, budget, broken) -> Sample``: one piece, JSON-able, deterministic in its
            arguments (it derives its own ``torch.Generator`` from the shard number); ``broken=True`` is the control.
        control_shards: pieces of the control per budget (defaults to `shards`).
        judge: ``judge(samples, broken) -> Evidence`` over all pieces in shard order.
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

    def num_shards(self, budget: Budget, broken: bool) -> int:
        """Number of pieces of the claim (``broken=False``) or of its control."""
        table = self.control_shards if broken and self.control_shards is not None else self.shards
        return table[budget]

    def run(self, budget: Budget = "quick", broken: bool = False) -> Evidence:
        """Runs all pieces here, one after another (the command line runs them in parallel)."""
        return self.judge([self.sample(i, budget, broken) for i in range(self.num_shards(budget, broken))], broken)


def discover(package: str = "proofs_checks") -> dict[str, Check]:
    """All checks of a package: each module's ``CHECKS`` tuple, sorted by name. Raises on a duplicate name."""
    found: dict[str, Check] = {}
    root = importlib.import_module(package)
    for info in pkgutil.iter_modules(root.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for check in getattr(module, "CHECKS", ()):
            if check.name in found:
                raise _require.fail("discover", "unique check names", repr(check.name))
            found[check.name] = check
    return dict(sorted(found.items()))
