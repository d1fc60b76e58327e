"""Benchmark of X-MPSC's whole loop: environment steps a second, where the time goes, what the certifier adds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from gpsafe.algorithms import xmpsc
from gpsafe.algorithms.xmpsc import XMPSC
from gpsafe.planning.mbpo import SAC, preset
from gpsafe.safety.filter import SafetyFilter
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm

from .common import Record, Settings, benchmark

PLANTS = {"pendulum": SimplePendulum, "cart-pole": SafeCartPole, "arm": TwoLinkArm, "drone": Drone}
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "policy": ((SAC, "act"),),
    "certificate": ((SafetyFilter, "decide"), (SafetyFilter, "start"), (XMPSC, "filter")),
    "environment": tuple((plant, name) for plant in PLANTS.values() for name in ("advance", "observe", "terminated")),
    "agent": ((xmpsc, "train"),),
    "ensemble": ((xmpsc, "refit"),),
    "virtual": ((xmpsc, "branch"),),
}
MEMORY = 5e8  # bytes of a virtual ring
PUBLISHED_MS = 2515.0  # a decision at N = 7, M = 5, width 20: Table 1 of the paper, on its authors' machine


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """CPU seconds within each of `PARTS`; what one part calls of another counts for the outer one."""
    spent: dict[str, float] = defaultdict(float)
    running: list[str] = []

    def timed(part: str, inner: Any) -> Any:
        def outer(*arguments: Any, **options: Any) -> Any:
            if running:
                return inner(*arguments, **options)
            running.append(part)
            began = time.process_time()
            try:
                return inner(*arguments, **options)
            finally:
                spent[part] += time.process_time() - began
                running.pop()

        return outer

    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        yield spent


@benchmark("loop")
def loop(settings: Settings) -> Record:
    """Environment steps a CPU second of X-MPSC (paper mode, known part, published N) and of the same agent without certifier.

    After the warm-up and one episode, on the same seeds. Shares are of the loop's CPU time; `rest` is bookkeeping. A refit goes
    over all data so far, so that the ensemble's share grows with a run: it is measured here behind 8000 transitions of warm-up,
    or 300 in a quick run.
    """
    episodes = 1 if settings.quick else 4 * settings.rounds
    record: Record = {}
    for task, plant in PLANTS.items():
        chosen = preset(task)  # type: ignore[arg-type]
        if settings.quick:
            chosen = replace(chosen, warm_up=300, warm_up_epochs=2, rollouts=4)
        chosen = chosen.within(MEMORY, plant().nx, plant().nu)
        found: dict[str, Any] = {}
        for name, certification in (("X-MPSC", "published"), ("MBPO", None)):
            one = XMPSC.create(plant(), chosen, prior=plant().prior(), certification=certification, seed=0)  # type: ignore[arg-type]
            while one.standing.version == 0:
                one.learn(1)
            one.learn(1)  # loads what is compiled
            before, began = one.steps, time.process_time()
            with clocked() as spent:
                one.learn(episodes)
            total, steps = time.process_time() - began, one.steps - before
            shares = {part: spent[part] / total for part in PARTS} | {"rest": 1 - sum(spent.values()) / total}
            found[name] = {"steps": steps, "steps_per_s": steps / total, "shares": shares}
            decisions = [row["certify_ms"] for row in one.logger.rows if "certify_ms" in row]
            if decisions:
                found[name] |= {"decision_ms": float(np.median(decisions)), "overhead": shares["certificate"]}
                budget = chosen.epochs * chosen.steps
                found[name]["hours_of_the_budget"] = budget * total / steps / 3600
                found[name]["hours_of_published_decisions"] = budget * PUBLISHED_MS / 3.6e6
        record[task] = {"N": chosen.horizon, "episodes": episodes, **found}
    return record
