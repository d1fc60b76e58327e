"""Benchmarks, paired in one process: ``python -m experiments.benchmarks --json OUT [--only NAME ...] [--quick]``.

Every ratio is the median over rounds in which the contestants ran one after another; absolute times depend on
the machine and on what else it was doing. Pin threads (``make bench`` does: OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from gpsafe.testbed import provenance

from .common import BENCHMARKS, Settings

MODULES = (
    "gp",
    "dp",
    "planning",
    "xmpsc",
    "loop",
    "mbpo",
    "baselines",
    "sweep",
    "ranges",
    "maps",
    "lab",
)


@dataclass(frozen=True)
class Arguments(Settings):
    """What to run."""

    json: Path | None = None
    """where to write the results"""
    only: tuple[str, ...] = ()
    """names to run (default: all)"""


def environment() -> dict[str, object]:
    """Versions, processor, threads, load."""
    revision, changed = provenance.git_state()
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = lines[0] if lines else processor
    return {
        "versions": provenance.versions(),
        "revision": revision,
        "changed": changed,
        "processor": processor,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
        "load_average": os.getloadavg(),
    }


def main(arguments: Arguments) -> None:
    """Runs the benchmarks one after another and writes JSON after each of them."""
    for module in MODULES:
        importlib.import_module(f".{module}", __package__)
    unknown = set(arguments.only) - set(BENCHMARKS)
    if unknown:
        raise SystemExit(f"bench: expected names in {{{', '.join(BENCHMARKS)}}}, got {', '.join(sorted(unknown))}")
    result: dict[str, object] = {
        "environment": environment(),
        "settings": {"rounds": arguments.rounds, "quick": arguments.quick},
    }
    records: dict[str, object] = {}
    for name, run in BENCHMARKS.items():
        if arguments.only and name not in arguments.only:
            continue
        print(f"bench: {name}", flush=True)
        start = time.perf_counter()
        record = run(arguments)
        records[name] = {**record, "seconds": time.perf_counter() - start, "load_average": os.getloadavg()}
        print(json.dumps(record, indent=1), flush=True)
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps({**result, "benchmarks": records}, indent=1) + "\n")
    if arguments.json is not None:
        print(f"bench: wrote {arguments.json}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
