"""Benchmark of the GP phase: one published planning step (500 sequences × 10 particles × 20 steps × 5 iterations).

The step is timed whole with the tabulated posterior. With the other posteriors it would take seconds to minutes, so one call
of each (500 × 10 points, a hundredth of the step's queries) is timed beside the table's, and the step is computed from it:
t_step − 100 t_table + 100 t_call. Memory is that of the arrays that live through a step, counted, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpsafe.data import Transitions
from gpsafe.models import GP, LowRankGP
from gpsafe.models.gp import identity_prior
from gpsafe.models.views import as_gpytorch
from gpsafe.planning import EXPLORERS, ICEM, PUBLISHED, Constraint, Planner, Table
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.pendulum import Pendulum

from .common import Record, Settings, benchmark, paired, ratio, summary
from .gp import Batched, fastest

COUNTS = (90, 33, 7)
SIZES = (50, 200, 500, 1000)
STEPS = 50
PARTICLES = 10


def problem(n: int) -> tuple[Pendulum, GP, Box]:
    """n transitions of the pendulum, prior model off by 10 %, and the box over which the posterior is tabulated."""
    system = Pendulum(action_repeat=2)
    generator = torch.Generator().manual_seed(0)
    box = Box(*(s * torch.tensor([math.pi, 8.0, 1.0], dtype=torch.float64) for s in (-1.0, 1.0)))
    z = box.sample(n, generator)
    x, u = z[:, :2], z[:, 2:]
    data = Transitions(x, u, system.mean(x, u) + sample_noise(system.noise_std, (n,), generator))
    chosen = [kernels.rbf([1.5, 16.0, 3.0], (0.3 * s) ** 2, dims=range(3)) for s in (0.1, 1.0)]
    model = GP.create(chosen, 1e-6, nx=2, nu=1, noise_std=system.noise_std, prior=system.prior())
    return system, model.condition(data), box


def naive(model: GP) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Mean and std with a cached Cholesky factor, one output after another, in plain torch."""
    assert model.inputs is not None
    assert model.targets is not None
    inputs = model.inputs
    parts = []
    for j, kernel in enumerate(model.kernels):
        gram = kernels.cross(kernel, inputs, inputs) + model.regularizer[j] * torch.eye(len(inputs)).double()
        lower = torch.linalg.cholesky(gram)
        parts.append((kernel, lower, torch.cholesky_solve(model.targets[:, j : j + 1], lower)))

    def posterior(z: Tensor) -> tuple[Tensor, Tensor]:
        means, stds = [], []
        for kernel, lower, weights in parts:
            cross = kernels.cross(kernel, inputs, z)
            explained = torch.linalg.solve_triangular(lower, cross, upper=False).square().sum(0)
            means.append((cross.mT @ weights).squeeze(-1))
            stds.append((kernels.diagonal(kernel, z) - explained).clamp_min(0.0).sqrt())
        return torch.stack(means, -1), torch.stack(stds, -1)

    return posterior


def gpytorch_ways(model: GP) -> dict[str, Callable[[Tensor], Any]]:
    """One batched model, or one per output; caches warm, chunks of 1000 points."""
    p = model.num_outputs
    batched, separate = Batched(model), [as_gpytorch(model, j) for j in range(p)]

    def together(z: Tensor) -> None:
        with fastest():
            for part in z.split(1000):
                found = batched(part.expand(p, *part.shape))
                found.mean, found.variance.sqrt()

    def apart(z: Tensor) -> None:
        with fastest():
            for part in z.split(1000):
                for one in separate:
                    found = one(part)
                    found.mean, found.variance.sqrt()

    return {"batched": together, "one per output": apart}


@benchmark("planning-step")
def planning_step(settings: Settings) -> Record:
    """Seconds and queries of a planning step and an episode against n; ratio to other posteriors in the same run."""
    optimiser = ICEM(40, 8, 2, 5) if settings.quick else PUBLISHED["figure"]
    rows = []
    for n in (50,) if settings.quick else SIZES:
        system, model, box = problem(n)
        low = LowRankGP.create(model)
        build = {
            "exact": lambda model=model, box=box: Table.build(model, identity_prior, box, counts=COUNTS, periodic=(0,)),
            "low rank": lambda low=low, box=box: Table.build(low, identity_prior, box, counts=COUNTS, periodic=(0,)),
        }
        table = build["exact"]()
        planner = Planner(
            EXPLORERS["actsafe-sampled"],
            optimiser,
            system.input_box,
            system.reward,
            Constraint(system.cost),  # pyright: ignore[reportArgumentType]
            particles=PARTICLES,
        )
        generator = torch.Generator().manual_seed(1)
        points = box.sample(optimiser.samples * PARTICLES, generator)
        x, u = points[:, :2], points[:, 2:]
        plain = naive(model)
        contestants: dict[str, Callable[[], Any]] = {
            "step": lambda p=planner, t=table, s=system, g=generator: p.propose(t, s.initial_state, generator=g),
            "table": lambda t=table, x=x, u=u: t.predict(x, u),
            "exact": lambda m=model, x=x, u=u: m.predict(x, u),
            "low rank": lambda m=low, x=x, u=u: m.predict(x, u),
            "naive": lambda f=plain, z=points: f(z),
            **{f"gpytorch, {k}": (lambda f=f, z=points: f(z)) for k, f in gpytorch_ways(model).items()},
        }
        seconds = paired(contestants, settings.rounds)
        calls = optimiser.iterations * optimiser.horizon
        step = seconds["step"]
        would = {
            name: [s - calls * t + calls * c for s, t, c in zip(step, seconds["table"], values, strict=True)]
            for name, values in seconds.items()
            if name not in ("step", "table")
        }
        made = paired(build, max(settings.rounds // 3, 1), warm_up=0)
        error = table.error(2000, generator=generator)
        best = min((k for k in would if k.startswith("gpytorch")), key=lambda k: min(would[k]))
        states = optimiser.samples * PARTICLES * optimiser.horizon * 2 * 8
        rows.append(
            {
                "n": n,
                "queries_per_step": calls * optimiser.samples * PARTICLES,
                "queries_per_episode": calls * optimiser.samples * PARTICLES * STEPS + table.values.shape[0],
                "step_s": summary(step),
                "step_would_take_s": {name: summary(values) for name, values in would.items()},
                "speedup_over": {name: ratio(would[name], step) for name in ("exact", "low rank", "naive", best)},
                "table_build_s": {name: summary(values) for name, values in made.items()},
                "episode_s": summary([STEPS * s + min(made["exact"]) for s in step]),
                "table_mib": table.values.nbytes / 2**20,
                "trajectories_mib": 2 * states / 2**20,
                "table_mean_error_max": error.mean_max,
                "table_std_error_max": error.std_max,
            }
        )
    return {
        "what": "500 sequences x 10 particles x 20 steps x 5 iterations, pendulum, 2 outputs, d = 3; one thread",
        "note": "the table is an approximation without a rigorous error: it proposes; the verifier uses the exact posterior",
        "rows": rows,
    }
