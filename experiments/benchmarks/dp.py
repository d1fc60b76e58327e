"""Benchmark of the robust dynamic program: 400 policies, 256 × 256 cells, T = 30 on the reference pendulum."""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_pendulum, reference_pendulum_policies
from gpsafe.systems.task import Task

from .common import Record, Settings, benchmark


def _run(policies: int, cells: int, episodes: int, part: int, parts: int) -> dict[str, float]:
    """Seconds of the whole evaluation and of its sweeps for one part of the policies, and the process's peak memory."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    system = reference_pendulum()
    family, _ = reference_pendulum_policies()
    pick = torch.linspace(0, family.num - 1, policies).round().long()[part::parts]
    many = AffinePolicies(family.offset[pick], family.gain[pick], family.input_box)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    model = GP.create(
        system.kernels, 1e-4, nx=2, nu=1, noise_std=system.noise_std, outputs=system.outputs, prior=system.known
    )
    noise = sample_noise(system.noise_std, (system.horizon, 1, 1), torch.Generator().manual_seed(0))
    states, inputs = closed_loop(system.mean, family.select(torch.arange(episodes) * 5), system.initial_state, noise)
    model = model.condition(transitions(states, inputs))
    confidence = ConfidenceSet(bound).update(model)
    box = Box(torch.tensor([-1.0, -4.5], dtype=torch.float64), torch.tensor([1.6, 4.5], dtype=torch.float64))
    dp = RobustDP(Grid(box, (cells, cells)), Task.of(system))
    start = time.perf_counter()
    interval = dp.evaluate(confidence, many)
    whole = time.perf_counter() - start
    few = min(16, many.num)
    enclosure = dp.enclosure(confidence, many.select(torch.arange(few))).refine(confidence)
    start = time.perf_counter()
    dp.upper(enclosure)
    sweep = (time.perf_counter() - start) * many.num / few
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "evaluate_s": whole,
        "sweeps_s": sweep,
        "peak_gib": peak / 2**20,
        "baseline_gib": before / 2**20,
        "data": float(model.num_data),
        "certified": float((interval.upper <= system.budget).sum()),
    }


@benchmark("robust-dp")
def robust_dp(settings: Settings) -> Record:
    """Two processes of one thread, half of the policies each: seconds of the slower one, memory of both."""
    policies, cells = (20, 64) if settings.quick else (400, 256)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(_run, policies, cells, 3, part, 2) for part in range(2)]
        found = [part.result() for part in parts]
    return {
        "policies": policies,
        "cells": cells**2,
        "horizon": 30,
        "data": found[0]["data"],
        "certified": sum(f["certified"] for f in found),
        "evaluate_s": max(f["evaluate_s"] for f in found),
        "sweeps_s": max(f["sweeps_s"] for f in found),
        "peak_gib": sum(f["peak_gib"] for f in found),
        "baseline_gib": sum(f["baseline_gib"] for f in found),
    }
