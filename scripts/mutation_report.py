"""The report of `mutate`: how many mutants of each module the tests notice, and which they do not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

STATUSES = ("killed", "survived", "equivalent")


def say(line: str) -> None:
    """One line for whoever watches."""
    print(line, flush=True)


def rate(killed: int, judged: int, confidence: float = 0.95) -> dict[str, Any]:
    """Share of the judged (not equivalent) mutants that was killed, with the Clopper–Pearson interval of its expectation.

    The interval holds for a random sample of one population. For equal samples from several modules it is that of their
    mean rate, and too wide if anything: a sum of independent draws with unequal chances varies less than a binomial one.
    """
    tail = (1.0 - confidence) / 2.0
    low = _least(killed, judged, tail) if killed else 0.0
    high = 1.0 - _least(judged - killed, judged, tail) if killed < judged else 1.0
    return {"killed": killed, "judged": judged, "share": killed / judged if judged else None, "low": low, "high": high}


def _least(count: int, trials: int, tail: float) -> float:
    """The p < count/trials at which `count` or more of the trials succeed with probability `tail`, by bisection."""
    low, high = 0.0, count / trials
    choose = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    for _ in range(60):
        p = 0.5 * (low + high)
        total = term = math.exp(choose + count * math.log(p) + (trials - count) * math.log1p(-p))
        for i in range(count, trials):
            term *= (trials - i) / (i + 1) * p / (1 - p)
            total += term
            if term < 1e-17 * total:
                break
        low, high = (p, high) if total < tail else (low, p)
    return low


def summary(rows: Iterable[dict[str, Any]], drawn: set[str], totals: dict[str, int]) -> dict[str, Any]:
    """Counts of each module and of all together, of the `drawn` mutants among `rows`; `totals`: all mutants of each module.

    Survivors of earlier samples are tried along, and left out here: they are no random draw. "first" counts each mutant as
    it came out when it was first run, before a test could be written against it: what to expect of mutants not yet seen.
    """
    rows = [row for row in rows if row["id"] in drawn]
    modules = {}
    for file, total in totals.items():
        mine = [row for row in rows if row["file"] == file]
        counts = Counter(row["status"] for row in mine)
        modules[file] = {s: counts[s] for s in STATUSES} | {"sampled": len(mine), "total": total}
    judged = [row for row in rows if row["status"] != "equivalent"]
    weights = {f: m["total"] for f, m in modules.items() if m["killed"] + m["survived"]}
    weighted = sum(
        w * modules[f]["killed"] / (modules[f]["killed"] + modules[f]["survived"]) for f, w in weights.items()
    )
    return {
        **{s: sum(m[s] for m in modules.values()) for s in STATUSES}, "sampled": len(rows), "total": sum(totals.values()),
        "rate": rate(sum(row["status"] == "killed" for row in judged), len(judged)),
        "first": rate(sum(row["first"] == "killed" for row in judged), len(judged)),
        "by_size": weighted / sum(weights.values()) if weights else None, "modules": modules,
    }  # fmt: skip


def show(report: dict[str, Any], only: list[str]) -> None:
    """The table of modules, and the survivors."""
    survivors = [row for row in report["rows"] if row["status"] == "survived"]
    for row in survivors:
        if not only or row["file"].startswith(tuple(only)):
            say(f"{row['file']}:{row['line']} {row['function']} [{row['operator']}] {row['reason']}\n    {row['text']}")
            say(f"    {row['before']}\n -> {row['after']}\n")
    say("killed  survived  equivalent  sampled of total   rate  module")
    for file, m in [*report["modules"].items(), ("all", report)]:
        judged = m["killed"] + m["survived"]
        share = f"{m['killed'] / judged:6.1%}" if judged else "     -"
        if m["sampled"]:
            say(
                f"{m['killed']:6}  {m['survived']:8}  {m['equivalent']:10}  {m['sampled']:7} of {m['total']:5}  {share}  {file}"
            )
    if report["rate"]["judged"]:
        for name, words in (("rate", "not equivalent, killed"), ("first", "killed when first run")):
            r = report[name]
            say(f"{words}: {r['killed']} of {r['judged']}, 95 % interval {r['low']:.1%} to {r['high']:.1%}")
        say(f"killed, each module weighted by its number of mutants: {report['by_size']:.1%}")
