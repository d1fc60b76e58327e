"""Benchmark of the pictures that follow their controls (`gpsafe.lab`): how long an answer to a move takes.

A move is one value of one control, the others as they are at first. A reader feels an answer after a tenth of a second as
one that comes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

import gpsafe as gs
from gpsafe import calibration
from gpsafe.calibration import Effort
from gpsafe.lab import Explorer, bands, flights, learning, plans, prices
from gpsafe.lab.declared import Declared
from gpsafe.lab.explorer import undisturbed
from gpsafe.lab.growth import Growth
from gpsafe.lab.trust import Trust
from gpsafe.planning.mbpo import preset
from gpsafe.systems import SafeCartPole, SimplePendulum

from .. import pendulum_sound
from .._report.xmpsc_runs import toy, untrained
from .common import Record, Settings, benchmark

AT_ONCE = 100.0  # ms
VALUES = 12  # of a control, at most


def growing(quick: bool) -> Explorer:
    """As the notebook on the safe policy set has it."""
    plant, (policies, given) = gs.systems.reference_1d(), gs.systems.reference_1d_policies()
    model = gs.GP.create(plant.kernels, 1e-4, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
    bound = gs.Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    judge = gs.RobustDP(gs.Grid(gs.Box([-1.0], [1.5]), (40 if quick else 300,)), gs.Task.of(plant))
    episodes = 2 if quick else 12
    run = gs.ActSafe(plant, policies, given.tolist(), model, bound, judge, episodes=episodes, patience=0).run(0)
    found = Growth.of(run, torch.linspace(-0.5, 1.5, policies.num, dtype=torch.float64))
    return found.explorer(episode=episodes // 2)


def flying(quick: bool) -> Explorer:
    """A pendulum pushed along its swing, behind a filter and alone."""
    plant = SimplePendulum()
    x = plant.state_box.sample(500, torch.Generator().manual_seed(0))
    u = plant.input_box.sample(500, torch.Generator().manual_seed(1))
    model = untrained(plant, 0, 50 if quick else 1000, members=3).condition(gs.Transitions(x, u, plant.mean(x, u)))
    how = gs.Certification(states=5)
    safe = how.filter(plant, model, None, gs.Polytope.of_box(plant.initial_box))
    return flights.flown(plant, safe, plant.initial_state, steps=10 if quick else 50, seed=0).explorer()


def learning_agent(quick: bool) -> Explorer:
    """A learner on the cart-pole, of the smallest size."""
    plant = SafeCartPole()
    settings = replace(toy(preset("cart-pole")), warm_up=300, warm_up_epochs=2 if quick else 40, delay=1)
    learner = gs.XMPSC.create(plant, settings, prior=plant.prior())
    return learning.learned(learner, 32 if quick else 600, dims=(0, 2)).explorer()


def promising(quick: bool) -> Explorer:
    """The pendulum's explorers, with particles and with a verifier."""
    sizes: Any = {"samples": 20, "elites": 4, "iterations": 1, "table": (24, 9, 3)}
    arguments = pendulum_sound.Arguments(**sizes, steps=10 if quick else 50)
    plant, found = pendulum_sound.plant(arguments), {}
    for name in ("actsafe-sampled", "actsafe-sound"):
        agent = pendulum_sound.learner(arguments, plant, name, 0)
        plans.flown(agent)
        found[name] = plans.flown(agent)
    return plans.explorer(plans.Plane((0, 1), ("θ", "ω"), (-6.0, 6.0)), found)


def trusting(quick: bool) -> Explorer:
    """Models of a line."""
    plant, generator = gs.systems.reference_1d(), torch.Generator().manual_seed(0)

    def rows(count: int) -> gs.Transitions:
        x, u = (2 * torch.rand(2, count, 1, dtype=torch.float64, generator=generator) - 1).unbind()
        return gs.Transitions(x, u, plant.mean(x, u))

    seen = rows(40)
    fitted = calibration.fit(
        ["ensemble-3", "laplace"], seen, prior=plant.known, noise_std=plant.noise_std, effort=Effort(steps=20)
    )
    tests = {"a": rows(400), "b": rows(400)}
    return Trust.of({one.name: one.model for one in fitted}, seen, tests).explorer()


def declaring(quick: bool) -> Explorer:
    """Set-points of a line under fifteen statements."""
    plant, (policies, _) = gs.systems.reference_1d(), gs.systems.reference_1d_policies()
    x = torch.linspace(-1, 1, 40 if quick else 200, dtype=torch.float64).unsqueeze(-1)
    model = gs.GP.create(plant.kernels, 1e-4, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
    bound = gs.Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    judge = gs.RobustDP(gs.Grid(gs.Box([-1.0], [1.5]), (40 if quick else 300,)), gs.Task.of(plant))
    rows = gs.Transitions(x, -x, plant.mean(x, -x))
    targets = torch.linspace(-0.5, 1.5, policies.num, dtype=torch.float64)
    points = torch.cat([x, torch.zeros_like(x)], -1)
    return Declared.of(model, rows, bound, judge, policies, targets=targets, points=points).explorer()


MAKERS: dict[str, Callable[[bool], Explorer]] = {
    "bands": lambda quick: bands.explorer(),
    "vacuity map": lambda quick: prices.width_explorer(),
    "episodes": lambda quick: prices.episode_explorer(),
    "growth": growing,
    "flight": flying,
    "learning": learning_agent,
    "plans": promising,
    "trust": trusting,
    "declared": declaring,
}


@benchmark("explorers")
def explorers(settings: Settings) -> Record:
    """Milliseconds of every move of every picture with controls: median and worst, by the clock and of the processor."""
    found: dict[str, Any] = {}
    for name, make in MAKERS.items():
        begun = time.process_time()
        explorer = make(settings.quick)
        explorer.picture()
        built, moves = time.process_time() - begun, {}
        for control, kind in explorer.controls.items():
            step = 1 + len(kind.values) // VALUES
            values = list(islice(kind.values, 0, None, step))[: 2 if settings.quick else None]
            spent = np.array([_spent(explorer, control, v) for v in values for _ in range(1 if settings.quick else 3)])
            clock, processor = (
                {"median_ms": float(np.median(s)), "worst_ms": float(s.max())} for s in spent.T
            )  # fmt: skip
            moves[control] = {"moves": len(values), "clock": clock, "processor": processor}
        worst = max(move["processor"]["worst_ms"] for move in moves.values())
        found[name] = {"built_s": built, "worst_ms": worst, "moves": moves}
    slow = [name for name, one in found.items() if one["worst_ms"] >= AT_ONCE]
    return {"explorers": found, "at_once_ms": AT_ONCE, "slower": slow}


def _spent(explorer: Explorer, control: str, value: Any) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    with undisturbed():  # as the widgets do: the collection that waits for the end of this block comes after the answer
        explorer.picture(**{control: value})
        return 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - processor)
