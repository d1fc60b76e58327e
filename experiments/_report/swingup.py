"""Tables and figure of `cartpole-swingup`, from stored runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from gpsafe import plotting
from gpsafe.linalg import vector
from gpsafe.systems.base import is_violation
from gpsafe.systems.cartpole import CartPole
from gpsafe.testbed.experiment import Animation, Piece, Report, Run, Table

from .statistics import Share, plus_minus

DT = 0.05  # s, a step
UP = math.radians(15.0)  # from the top: "upright"
BRAKE = (4.0, 0.0, 1.25, 0.0)  # −u per m, rad, m/s, rad/s, of the cart alone: as stiff as inputs of 0.05 s allow
GUARANTEED = (
    "Guaranteed behind the shield, whatever the explorer proposes: with probability ≥ {chance:.2f} over the data of one seed "
    "no state of an episode that begins with a certified fallback leaves |x| ≤ {track:g} m. Assumed: the exact B of the twin, "
    "Gaussian noise in its box, exact measurement, S_0 safe in its {initial} episodes. Nothing is guaranteed without the "
    "shield, between steps, after the last step, or for the physics, nor that upright is reached."
)


def body(arguments: Any) -> CartPole:
    """The physics: a light pole, and a motor that can hold the cart against it."""
    a = arguments
    noise = vector(*a.noise)
    size = {"cart": 1.0, "pole": 0.1, "length": 1.0, "force": 10.0}
    return CartPole(**size, dt=DT, track=a.track, horizon=a.steps, noise_std=noise, budget=0.01)


def shielded(variant: str) -> bool:
    """Whether a shield stands between its plans and the plant."""
    return variant.endswith("+shield")


def pieces(runs: Sequence[Run], variant: str, *phases: str) -> Iterator[Piece]:
    """Its episodes of the given phases ("episode", "early", "task"), seed by seed, those flown by S_0 left out."""
    for run in runs:
        for key, piece in run.pieces.items():
            owner, _, rest = key.partition("/")
            if owner == variant and rest.split("-")[0] in phases and piece.rows and piece.rows[0]["phase"] != "initial":
                yield piece


def rows(runs: Sequence[Run], variant: str, *phases: str) -> list[Mapping[str, Any]]:
    """The rows of `pieces`."""
    return [row for piece in pieces(runs, variant, *phases) for row in piece.rows]


def _refused(runs: Sequence[Run], variant: str) -> int:
    """Episodes and tasks for which no fallback was certified: flown by S_0, or not at all."""
    a = runs[0].arguments
    planned = a.episodes - a.initial + 2 * a.tasks
    return len(runs) * planned - len(rows(runs, variant, "early", "episode", "task"))


def _violations(runs: Sequence[Run]) -> Table:
    a = runs[0].arguments
    found = []
    for name in (*a.variants, "backup"):
        every = rows(runs, name, "early", "episode", "task")
        exploring, tasks = rows(runs, name, "episode"), rows(runs, name, "task")
        steps = a.steps * len(every)
        share = f"{100 * sum(row['overridden'] for row in every) / steps:.0f} %" if shielded(name) else "–"
        judged = f"{1000 * sum(row['verifying_s'] for row in every) / steps:.0f}" if shielded(name) else "–"
        found.append(
            (
                name,
                len(every),
                f"{int(sum(row['cost'] for row in every))} of {steps}",
                str(Share.of(is_violation(row["cost"]) for row in every)),
                f"{max(row['max_position'] for row in every):.3f}",
                share,
                f"{min(row['closest'] for row in every):.3f}",
                str(Share.of(row["upright"] > 0 for row in exploring)) if exploring else "–",
                str(Share.of(row["upright"] > 0 for row in tasks)),
                plus_minus([DT * row["upright"] for row in tasks]),
                f"{1000 * sum(row['planning_s'] for row in every) / steps:.0f}",
                judged,
            )
        )
    return Table(
        columns=(
            "explorer",
            "episodes",
            f"states beyond {a.track:g} m",
            "episodes with a violation",
            "largest |x| (m)",
            "inputs overridden",
            "closest to upright (rad)",
            "episodes of exploration that reach upright",
            "tasks that reach upright",
            "upright in a task (s)",
            "planning (ms a step)",
            "verifying (ms a step)",
        ),
        rows=found,
        caption=f"After S_0; tasks before exploration count in the first seven columns. Upright: within "
        f"{math.degrees(UP):.0f}° of the top. Shares with Clopper–Pearson intervals (95 %), times upright as mean ± 95 % "
        "Student t interval. Times of computation on a shared machine.",
    )


def _learning(runs: Sequence[Run]) -> Table:
    """How high the pole gets behind the shield with F_n of S_0 alone, and after exploration."""
    a, found = runs[0].arguments, []
    for name in filter(shielded, a.variants):
        for label, phase, episodes in (("S_0", "early", a.initial), ("exploration", "task", a.episodes)):
            tasks = rows(runs, name, phase)
            if tasks:
                found.append(
                    (
                        name,
                        f"{label}: {episodes * a.steps} transitions",
                        len(tasks),
                        plus_minus([row["closest"] for row in tasks]),
                        f"{min(row['closest'] for row in tasks):.2f}",
                        plus_minus([100 * row["overridden"] / a.steps for row in tasks], 0),
                    )
                )
    return Table(
        columns=(
            "explorer",
            "data before the task",
            "tasks",
            "closest to upright (rad)",
            "best (rad)",
            "inputs overridden (%)",
        ),
        rows=found,
        caption="Tasks seek the reward alone, with the same planner and shield. Mean ± 95 % Student t interval over tasks "
        "and seeds.",
    )


def _curves(axes: Axes, runs: Sequence[Run], pick: Callable[[Mapping[str, Any]], float], over: Any) -> None:
    a = runs[0].arguments
    looks = plotting.looks(a.variants)
    numbers = range(a.initial, a.episodes)
    for name in a.variants:
        values = [[pick(r.pieces[f"{name}/episode-{n:02d}"].rows[0]) for r in runs] for n in numbers]
        axes.plot(
            [n + 1 for n in numbers], over(np.array(values), axis=1), label=name, markersize=3, **looks[name].marked
        )
    axes.set(xlabel="episode")
    plotting.label_ends(axes)


def _afterwards(runs: Sequence[Run], variant: str) -> Share:
    """After how many episodes the cart, braked from their last state (physics, no noise), would still pass the limit."""
    plant = body(runs[0].arguments)
    every = pieces(runs, variant, "early", "episode", "task")
    x = torch.stack([piece.tensors["states"][-1] for piece in every])
    furthest, gain = x[:, 0].abs(), vector(*BRAKE)
    for _ in range(plant.horizon):
        x = plant.mean(x, -(x @ gain).clamp(-1.0, 1.0).unsqueeze(-1))
        furthest = torch.maximum(furthest, x[:, 0].abs())
    return Share.of((furthest > plant.track).tolist())


def _shown(runs: Sequence[Run]) -> tuple[str, Piece, Piece]:
    """A variant, behind the shield if any is, its first episode of exploration, and its best episode."""
    variants = runs[0].arguments.variants
    name = next(filter(shielded, variants), variants[0])
    explored = list(pieces(runs, name, "episode"))
    flown = explored + list(pieces(runs, name, "task"))
    return name, flown[0], max(flown, key=lambda piece: (piece.rows[0]["upright"], -piece.rows[0]["closest"]))


def _figure(runs: Sequence[Run]) -> Any:
    a = runs[0].arguments
    figure = plotting.figure("screen", 6.0)
    (closest, furthest), (phase, path) = figure.subplots(2, 2)
    _curves(closest, runs, lambda row: row["closest"], np.median)
    closest.axhline(UP, linewidth=0.8, color=plotting.colour("grey"), linestyle=":")
    closest.set(ylabel="closest to upright (rad)", title="how high: median over seeds", ylim=(0.0, None))
    _curves(furthest, runs, lambda row: row["max_position"], np.max)
    plotting.limit(furthest, a.track, label=f"limit {a.track:g} m")
    furthest.set(ylabel="largest |x| (m)", title="how far: largest over seeds", ylim=(0.0, None))
    looks = plotting.looks(a.variants)
    behind, first, best = _shown(runs)
    plotting.phase(phase, [first.tensors["states"], best.tensors["states"]], (1, 3), names=["first", "best"])
    for top in (-math.pi, math.pi):
        phase.axvline(top, linewidth=0.8, color=plotting.colour("grey"), linestyle=":")
    phase.legend()
    phase.set(xlabel="θ (rad), upright at ±π", ylabel="ω (rad/s)", title=f"{behind}: first and best episode")
    for name in a.variants:
        flown = list(pieces(runs[:1], name, "task"))
        if flown:
            x = flown[0].tensors["states"][:, 0]
            path.plot(DT * np.arange(len(x)), x, label=name, **looks[name].line)
    plotting.limit(path, a.track)
    plotting.limit(path, -a.track)
    path.set(xlabel="time (s)", ylabel="x (m)", title="the first task of one seed")
    plotting.label_ends(path)
    return figure


def report(runs: Sequence[Run]) -> Report:
    """Violations, overrides and how far the pole got, with and without the shield."""
    a = runs[0].arguments
    phases = ("early", "episode", "task")
    checks = {name: rows(runs, name, *phases) for name in a.variants}
    inside = "; ".join(
        f"{name}: f* inside F_n in {sum(row['inside'] for row in found)} of {len(found)}, refuted "
        f"{sum(bool(row['falsified']) for row in found)}"
        for name, found in checks.items()
    )
    later = {name: checks[name] for name in filter(shielded, a.variants)}
    sources = ("plan", "stored", "fallback")
    behind = "; ".join(
        f"{name}: {' / '.join(str(sum(row[f'from_{s}'] for row in found)) for s in sources)} "
        f"({_refused(runs, name)} episodes had no certified start)"
        for name, found in later.items()
    )
    told = GUARANTEED.format(chance=1 - a.delta - a.delta_noise, track=a.track, initial=a.initial)
    notes = [
        f"{len(runs)} seeds. {told}",
        f"At 1000 random points and each episode: {inside}. Steps behind the shield from a new plan / the stored one / the "
        f"fallback: {behind}.",
        "Certificates end with the episode. Braked from its last state (physics, no noise), the cart would pass the limit "
        "after the episodes of " + ", ".join(f"{name}: {_afterwards(runs, name)}" for name in a.variants) + ".",
        "An input is overridden where another one is applied than the first of the plan that the explorer found. Explorer and "
        "noise of a pair with and without the shield are the same; the blind one prices the limit with 1e-9.",
    ]
    tables = {"violations": _violations(runs), "learning": _learning(runs)}
    name, first, best = _shown(runs)
    states = torch.stack([first.tensors["states"], best.tensors["states"]])
    film = Animation(body(a), states, f"{name}: first and best episode")
    return Report(figures={"swingup": _figure(runs)}, tables=tables, animations={"swingup": film}, notes=notes)
