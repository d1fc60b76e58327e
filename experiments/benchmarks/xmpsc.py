"""Benchmark of certificates: the default cell of Table 1 (N = 5, M = 5, width 20), all proposers on the same states.

`gpsafe bench xmpsc` measures the whole table; this is its summary for `make bench`.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

from gpsafe.systems.xmpsc import SimplePendulum

from .._report import xmpsc
from .._report.statistics import bootstrap_ratio
from .common import Record, Settings, benchmark


@benchmark("certificate")
def certificate(settings: Settings) -> Record:
    """CPU ms of a cold search, and the ratios of totals and medians to the condensed SQP over the same states.

    One set of networks: intervals of the ratios draw states anew and speak of these networks.
    """
    plant = SimplePendulum()
    states, width, members, data, steps = (3, 6, 1, 200, 20) if settings.quick else (5, 20, 5, 8000, 2000)
    question = xmpsc.problem(plant, states, width, members, data, steps, 0)
    count = 3 if settings.quick else max(24, 3 * settings.rounds)
    cases = xmpsc.balanced(question, xmpsc.instances(plant, 20 * count, torch.Generator().manual_seed(1000)), count)
    forms = ("published", "repaired") if settings.quick else tuple(xmpsc.FORMS)
    rows = xmpsc.compared(question, cases, forms)
    fast = [row["ms"] for row in rows if row["proposer"] == "fast"]
    kinds = [kind for kind, *_ in cases]
    record: Record = {
        "what": f"N = {states}, M = {members}, width {width}, trained, cold start, one thread",
        "states": {kind: kinds.count(kind) for kind in xmpsc.CATEGORIES},
        "fast": {"median_ms": statistics.median(fast), "max_ms": max(fast)},
    }
    for name in forms:
        mine = [row for row in rows if row["proposer"] == name]
        times = [row["ms"] for row in mine]
        record[name] = {
            "median_ms": statistics.median(times),
            "max_ms": max(times),
            "build_ms": mine[0]["build"],
            "ratio_of_totals": bootstrap_ratio(times, fast, kinds, np.sum),
            "ratio_of_medians": bootstrap_ratio(times, fast, kinds, np.median),
        }
    return record
