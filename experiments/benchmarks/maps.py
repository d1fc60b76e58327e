"""Certified maps of the pendulum twin, refined where it helps or everywhere: cells, processor time, what is decided."""

from __future__ import annotations

import resource
from time import process_time

import torch

from gpsafe.cost import Grid
from gpsafe.safety import CertifiedMap, certified_map
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies
from gpsafe.systems.task import Task

from ..certified_map import AROUND, Arguments, learned
from .common import Record, Settings, benchmark

FIRST = 64  # cells along an axis of the map that is refined


@benchmark("maps")
def maps(settings: Settings) -> Record:
    """To the same smallest cells: one grid of them, or a map of 64 × 64 cells refined where it helps, whose steps all count."""
    torch.set_num_threads(1)
    arguments, rows = Arguments(), []
    policy = reference_pendulum_policies()[0].select(torch.tensor([arguments.policy]))
    task = Task.of(reference_pendulum()).with_(horizon=arguments.horizon)
    sizes = (128,) if settings.quick else (128, 256, 512, 1024)

    def told(kind: str, found: CertifiedMap, seconds: float) -> Record:
        decided = 1.0 - float(found.mean(found.undecided(arguments.level).double()))
        return {
            f"{kind}_cells": found.partition.num,
            f"{kind}_cpu_s": seconds,
            f"{kind}_decided": decided,
            f"{kind}_mean_gap": float(found.mean(found.gap)),
            f"{kind}_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }

    for count in (50,) if settings.quick else (50, 300):
        confidence = learned(0, count)
        for cells in sizes:
            start = process_time()
            coarse = certified_map(confidence, policy, task, Grid(AROUND, (FIRST, FIRST), (2, 2)))
            refined = coarse.refined(tolerance=arguments.tolerance, cells=cells)
            row = {"transitions": count, "cells": cells, **told("refined", refined, process_time() - start)}
            start = process_time()
            whole = certified_map(confidence, policy, task, Grid(AROUND, (cells, cells), (2, 2)))
            row |= told("whole", whole, process_time() - start)
            rows.append({**row, "times": row["whole_cpu_s"] / row["refined_cpu_s"]})
            print(rows[-1], flush=True)
    return {"what": f"T = {arguments.horizon}, tolerance {arguments.tolerance}, one thread, one round", "rows": rows}
