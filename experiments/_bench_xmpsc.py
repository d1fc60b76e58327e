"""Benchmark of certificates: the default cell of Table 1 (N = 5, M = 5, width 20), all proposers on the same states.

`gpsafe bench xmpsc` measures the whole table; this is its summary for `make bench`.
"""

from __future__ import annotations

import statistics

import torch

from experiments import _xmpsc as xmpsc
from experiments._benchmarks import Record, Settings, benchmark
from gpsafe.systems.xmpsc import SimplePendulum


@benchmark("certificate")
def certificate(settings: Settings) -> Record:
    """CPU ms of a cold search, and the median ratio to the condensed SQP over the states that both answered."""
    plant = SimplePendulum()
    states, width, members, data, steps = (3, 6, 1, 200, 20) if settings.quick else (5, 20, 5, 8000, 2000)
    question = xmpsc.problem(plant, states, width, members, data, steps, 0)
    count, few = (3, 1) if settings.quick else (8 * settings.rounds, settings.rounds)
    pairs = xmpsc.instances(plant, count, torch.Generator().manual_seed(1000))
    forms = ("published", "repaired") if settings.quick else tuple(xmpsc.FORMS)
    rows = xmpsc.compared(question, pairs, forms, few)
    fast = {row["instance"]: row["ms"] for row in rows if row["proposer"] == "fast"}
    record: Record = {
        "what": f"N = {states}, M = {members}, width {width}, trained, cold start, one thread",
        "fast": {"median_ms": statistics.median(fast.values()), "max_ms": max(fast.values()), "states": len(fast)},
    }
    for name in forms:
        mine = [row for row in rows if row["proposer"] == name]
        record[name] = {
            "median_ms": statistics.median(row["ms"] for row in mine),
            "max_ms": max(row["ms"] for row in mine),
            "build_ms": mine[0]["build"],
            "ratio_median": statistics.median(row["ms"] / fast[row["instance"]] for row in mine),
            "states": len(mine),
        }
    return record
