"""Registry of benchmarks, and paired timing.

A benchmark is one function ``(settings) -> record`` under ``@benchmark("name")``; the record is JSON-able.
The module that holds it is named in ``experiments.benchmarks.__main__.MODULES``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What every benchmark is told."""

    rounds: int = 9
    """rounds of paired timing: in each one every contestant runs once, one after another"""
    quick: bool = False
    """smallest sizes only, to see that a benchmark runs"""


BENCHMARKS: dict[str, Callable[[Settings], Record]] = {}


def benchmark(name: str) -> Callable[[Callable[[Settings], Record]], Callable[[Settings], Record]]:
    """Registers a benchmark under its name."""

    def register(function: Callable[[Settings], Record]) -> Callable[[Settings], Record]:
        if name in BENCHMARKS:
            raise ValueError(f"benchmark: expected unique names, got {name!r} twice")
        BENCHMARKS[name] = function
        return function

    return register


def paired(contestants: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds per round of every contestant. They alternate, so that a busy machine slows all of them
    alike.
    """
    for _ in range(warm_up):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float], scale: float = 1.0) -> dict[str, float]:
    """Median and minimum, times `scale`."""
    return {"median": scale * statistics.median(seconds), "min": scale * min(seconds)}


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Speed-up of `fast` over `slow`: median of the ratios within a round, their quartiles, and the ratio of
    the minima.
    """
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {"median": statistics.median(ratios), "q25": low, "q75": high, "of_minima": min(slow) / min(fast)}


def dgemm(n: int = 1000) -> tuple[Callable[[], Any], float]:
    """A float64 matrix product of size n through the BLAS that NumPy has, and its number of flops."""
    a, b = np.random.default_rng(0).standard_normal((2, n, n))
    out = np.empty((n, n))
    return (lambda: np.matmul(a, b, out=out)), 2.0 * n**3
