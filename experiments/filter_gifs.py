"""Films of the X-MPSC plants with and without the safety filter: python -m experiments.filter_gifs [--tasks arm …].

Left the proposed inputs as they are, right the same proposer behind a filter, with the same start and noise. The model is an
ensemble that learned 8000 warm-up transitions on top of the published known part (20 % off); certification is in paper mode.
Pendulum, cart-pole and drone have an invariant set of their model as terminal set, and the drone's limits are drawn in (with
the published hull of its starts it has no plan at all); the arm has the hull of its starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from gpsafe import _require
from gpsafe.algorithms.certification import Certification
from gpsafe.linalg import vector
from gpsafe.safety.filter import SafetyFilter
from gpsafe.safety.flight import fly
from gpsafe.systems.arm import TwoLinkArm
from gpsafe.systems.drone import Drone
from gpsafe.systems.episodic import Episodic
from gpsafe.systems.warmup import warm_up_data
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.testbed.film import Film, save_film

from ._report.xmpsc_runs import proposals, untrained
from .xmpsc_bullet import certification

Propose = Callable[[Tensor, Tensor], Tensor]
"""Measured state (nx,) and an input drawn uniformly (nu,) to the proposed one."""


def along(speed: int) -> Propose:
    """Full force along a rate."""
    return lambda x, drawn: vector(1.0 if float(x[speed]) >= 0 else -1.0)


TASKS: dict[str, tuple[Callable[[], Episodic], str, Propose]] = {
    "pendulum": (SimplePendulum, "full torque along the swing", along(1)),
    "cart-pole": (SafeCartPole, "random forces", lambda x, drawn: drawn),
    "arm": (
        TwoLinkArm,
        "full torque along the joints' rates",
        lambda x, drawn: torch.where(x[6:] >= 0, 1.0, -1.0).double(),
    ),
    "drone": (
        Drone,
        "pitch to the side it leans to",
        lambda x, drawn: vector(0.0, 0.0, 1.0 if float(x[4]) >= 0 else -1.0, 0.0),
    ),
}


@dataclass(frozen=True)
class Arguments:
    """What to draw and where."""

    tasks: tuple[str, ...] = tuple(TASKS)
    out: Path = Path("docs/figures/gifs")
    data: int = 8000
    training: int = 3000
    steps: int = 80
    seed: int = 0
    size: int = 200

    def __post_init__(self) -> None:
        _require.names("--tasks", self.tasks, TASKS)


def main(arguments: Arguments) -> None:
    """One film a task."""
    torch.set_num_threads(1)
    for task in arguments.tasks:
        make, proposed, propose = TASKS[task]
        plant = make()
        safe = _filter(plant, arguments)
        free, kept = (
            fly(
                plant,
                behind,
                proposals(plant, task, propose),
                steps=arguments.steps,
                generator=torch.Generator().manual_seed(arguments.seed),
            )
            for behind in (None, safe)
        )
        sources = [decision.source for decision in kept.decisions]
        film = Film(plant, free.states, kept.states, sources, f"{task}: {proposed}")
        path = save_film(arguments.out / f"{task}.gif", film, size=arguments.size)
        size, right = path.stat().st_size // 1000, dict(kept.counts)
        print(f"{path}: {size} kB, left {len(free.inputs)} steps, right {right}, violated {kept.violated}")


def _filter(plant: Episodic, arguments: Arguments) -> SafetyFilter:
    found = warm_up_data(plant, arguments.data, 9_000_011 + arguments.seed)
    large = isinstance(plant, Drone | TwoLinkArm)
    hidden = (20, 20) if large else (10, 10)
    model = untrained(plant, arguments.seed, arguments.training, hidden=hidden, members=3).condition(found.transitions)
    if isinstance(plant, TwoLinkArm):
        how = Certification(states=7, feedback=1e-4, dims=plant.limited)
        return how.filter(plant, model, None, how.first(plant, found.starts[:80]).polytope)
    assert isinstance(plant, SimplePendulum | SafeCartPole | Drone)
    how = certification(plant)
    return how.filter(plant, model, None, how.invariant(plant, model, None))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
