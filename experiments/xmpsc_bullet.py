"""The safety filter across a simulator gap: made for the analytic plants, flown in PyBullet, and what repairs it.

PyBullet integrates the pendulum and the cart-pole in steps of a millisecond where the plants take one Euler step of 100 or
20 ms; the drone's mechanics are nearly the same. Filters stand on the known part alone, on an ensemble that learned the plant's
own data, or on one that learned PyBullet's; a further one keeps the ensemble of the plant's data and widens its tubes to a
conformal radius of PyBullet's rows (sound mode). All have an invariant set of their model as terminal set, and limits drawn
in by the measurement noise (the drone's by three times as much), so that the gap is what changes. Proposed are uniform inputs,
and inputs that push to a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.algorithms.certification import Certification, invariant_about_rest
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import Ensemble, Training
from gpsafe.safety.flight import fly
from gpsafe.systems.bullet import BulletPlant
from gpsafe.systems.drone import Drone
from gpsafe.systems.warmup import mismatch, warm_up_data
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import Share, draw_shares, grouped
from ._report.xmpsc_runs import proposals, tilt_error

Plant = SimplePendulum | SafeCartPole | Drone
PLANTS: dict[str, Callable[[], Plant]] = {
    "pendulum": SimplePendulum,
    "pendulum-exact": lambda: SimplePendulum(observation_noise=0.0),
    "cart-pole": SafeCartPole,
    "drone": Drone,
}
ARMS: dict[str, tuple[str, str]] = {  # name: what the filter's model learned from, what is flown
    "none": ("nothing", "bullet"),
    "home": ("analytic", "analytic"),
    "known": ("known", "bullet"),
    "analytic": ("analytic", "bullet"),
    "widened": ("analytic", "bullet"),
    "bullet": ("bullet", "bullet"),
}
LEARNERS = ("adversary", "uniform")
SPREAD = {
    "pendulum": 0.05,
    "drone": 4e-3,
}  # of the known part alone: the measurement noise of two states; else the least
LEAST = 1e-3  # that the published ensembles may say


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: tuple[str, ...] = tuple(PLANTS)
    """pendulum, pendulum-exact (measured without noise), cart-pole, drone."""
    arms: tuple[str, ...] = tuple(ARMS)
    """none; home (flown on the plant itself); in PyBullet: known, analytic, widened, bullet."""
    data: int = 8000
    """Warm-up transitions."""
    apart: int = 1000
    """PyBullet's rows for the radius, and for the measured errors of the models."""
    training: int = 3000
    """Least number of gradient steps."""
    members: int = 3
    """Of an ensemble."""
    episodes: int = 10
    """For each learner."""
    sound_episodes: int = 3
    """The same in sound mode, whose decisions take ten times as long."""
    steps: int = 50
    """Of an episode of the pendulum, half as many of the others, whose steps are a fifth; it ends at a violation."""

    def __post_init__(self) -> None:
        _require.names("--plants", self.plants, PLANTS)
        _require.names("--arms", self.arms, ARMS)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One plant and arm a piece, and one of the models' errors a plant."""
    torch.set_num_threads(1)
    cells = [(plant, arm) for plant in arguments.plants for arm in ("models", *arguments.arms)]
    made: dict[str, _Models] = {}
    for i, (plant, arm) in enumerate(cells):
        record.progress(i, len(cells), f"{plant}, {arm}")

        def compute(plant: str = plant, arm: str = arm) -> Piece:
            if plant not in made:
                made[plant] = _Models(plant, arguments, seed)
            if arm == "models":
                return Piece(_errors(made[plant], seed))
            return Piece(_episodes(made[plant], arm, arguments, seed))

        record.piece(f"{plant}/{arm}", compute)
    record.progress(len(cells), len(cells), "done")


class _Models:
    """A plant, its double in PyBullet, and models of both, each learned when it is asked for."""

    def __init__(self, plant: str, arguments: Arguments, seed: int) -> None:
        self.plant, self.arguments, self.seed = PLANTS[plant](), arguments, seed
        self.spread = SPREAD.get(plant, LEAST)
        self.systems = {"analytic": self.plant, "bullet": BulletPlant(self.plant)}
        self._apart: Transitions | None = None
        self._learned: dict[str, Ensemble] = {}

    @property
    def apart(self) -> Transitions:
        """PyBullet's rows that no model learns from."""
        if self._apart is None:
            self._apart = warm_up_data(self.systems["bullet"], self.arguments.apart, 11_000_027 + self.seed).transitions
        return self._apart

    def model(self, name: str) -> Ensemble:
        """Of "known": networks that add nothing; else learned from warm-up data, on top of the published prior (20 % off)."""
        if name in self._learned:
            return self._learned[name]
        plant, arguments, known = self.plant, self.arguments, name == "known"
        ensemble = Ensemble.create(
            plant.nx,
            plant.nu,
            generator=torch.Generator().manual_seed(7_000_003 + self.seed),
            members=1 if known else arguments.members,
            hidden=(20, 20) if isinstance(plant, Drone) else (10, 10),
            prior=plant.prior(scale=1.0) if known else plant.prior(),
            std_limits=(0.999 * self.spread, self.spread) if known else (1e-3, 1e-1),
            training=Training(epochs=40, steps=arguments.training),
        )
        if known:
            nothing = replace(ensemble.targets, offset=torch.zeros(plant.nx), scale=torch.full((plant.nx,), 1e-9))
            ensemble = replace(ensemble, targets=nothing)
        else:
            ensemble = ensemble.condition(
                warm_up_data(self.systems[name], arguments.data, 9_000_011 + self.seed).transitions
            )
        self._learned[name] = ensemble
        return ensemble


def certification(plant: Plant, *, sound: bool = False) -> Certification:
    """Paper mode with the published gains and N; the drone's with the LQR gain of roll and pitch, which its limits are on."""
    how: dict[str, Any] = {"mode": "sound", "feedback": None, "delta": 0.1} if sound else {"feedback": 0.5}
    if isinstance(plant, SafeCartPole):
        return invariant_about_rest(plant, states=7, **how)
    if isinstance(plant, SimplePendulum):
        return invariant_about_rest(plant, states=5, error=2 * plant.observation_noise * plant.state_box.radius, **how)
    return invariant_about_rest(plant, error=tilt_error(plant), **(how | {"feedback": None}))


def push(plant: Plant, x: Tensor, drawn: Tensor) -> Tensor:
    """Inputs that drive the plant over a limit: along its speed, along the pole's, on to the side where the drone leans."""
    if isinstance(plant, Drone):
        return torch.cat([drawn[:1], torch.where(x[3:5] >= 0, 1.0, -1.0), drawn[3:]])
    return vector(1.0 if float(x[-1]) >= 0 else -1.0)


def _errors(models: _Models, seed: int) -> list[dict[str, Any]]:
    """How far the two simulators are apart, and each model from PyBullet's rows: in the one-sigma ellipsoids or not."""
    rows = []
    for name in ("known", "analytic", "bullet"):
        model, data = models.model(name), models.apart
        mean, std = _predicted(model, data)
        gap = data.x_next.unsqueeze(-2) - mean
        inside = (gap / std).square().sum(-1) <= 1.0
        error = gap.square().mean((0, 1)).sqrt() / std.mean((0, 1))
        told = {"model": name, "inside": int(inside.any(-1).sum()), "of": len(data)}
        rows += [{**told, "coordinate": i, "error": e} for i, e in enumerate(error.tolist())]
    apart = mismatch(models.plant, models.systems["bullet"], generator=torch.Generator().manual_seed(seed), episodes=10)
    gaps = apart.one_step.tolist()
    return rows + [{"model": "gap", "inside": 0, "of": 0, "coordinate": i, "error": e} for i, e in enumerate(gaps)]


def _predicted(model: Ensemble, data: Transitions) -> tuple[Tensor, Tensor]:
    """Means and one-step spreads of the members, (n, M, nx)."""
    tube = Certification().tube(model, None)
    x, u = (part.unsqueeze(-2).expand(-1, tube.num_members, -1) for part in (data.x, data.u))
    local = tube.linearise(x, u)
    return local.mean, local.variance.sqrt()


def _episodes(models: _Models, arm: str, arguments: Arguments, seed: int) -> list[dict[str, Any]]:
    name, where = ARMS[arm]
    system, safe = models.systems[where], None
    if arm != "none":
        how, model = certification(models.plant, sound=arm == "widened"), models.model(name)
        try:
            safe = how.filter(models.plant, model, models.apart, how.invariant(models.plant, model, models.apart))
        except ValueError as error:  # the model's disturbance leaves no invariant set: then there is no such filter
            return [{"learner": learner, "episode": -1, "refused": str(error)} for learner in LEARNERS]
    rows = []
    for learner in LEARNERS:
        for episode in range(arguments.sound_episodes if arm == "widened" else arguments.episodes):
            generator = torch.Generator().manual_seed(1_000_003 * seed + 1009 * episode + 17 * (learner == "uniform"))
            steps = arguments.steps if isinstance(models.plant, SimplePendulum) else -(-arguments.steps // 2)
            flight = fly(
                system,
                safe,
                proposals(models.plant, learner, partial(push, models.plant)),
                steps=steps,
                generator=generator,
            )
            row = flight.row()
            rows.append({"learner": learner, "episode": episode, "refused": "", **row})
    return rows


# ------------------------------------------------------------------------------------------------------------ report
Row = Mapping[str, Any]
Cells = Mapping[tuple[str, str, str], Sequence[Row]]


def _flown(rows: Sequence[Row]) -> list[Row]:
    """Without the seeds whose model left no invariant set, and hence no filter."""
    return [row for row in rows if not row["refused"]]


def _table(cells: Cells) -> Table:
    rows = []
    for (plant, arm, learner), found in cells.items():
        flown = _flown(found)
        made, where = ARMS[arm]
        head = (plant, learner, arm, "no filter" if arm == "none" else made, where)
        if not flown:
            rows.append((*head, "none: no invariant set", *5 * ("–",)))
            continue
        without = f"; no invariant set for {len(found) - len(flown)} seeds" if len(flown) < len(found) else ""
        steps, filtered = sum(row["steps"] for row in flown), arm != "none"
        counts = [sum(row[f"from_{name}"] for row in flown) / steps for name in ("plan", "stored", "backup", "soft")]
        held, of = (sum(row[name] for row in flown) for name in ("captured", "captured_of"))
        rows.append(
            (
                *head,
                f"{Share.of(row['violated'] for row in flown)}{without}",
                " / ".join(f"{c:.3f}" for c in counts) if filtered else "–",
                f"{sum(row['corrected'] for row in flown) / steps:.3f}" if filtered else "–",
                f"{held / of:.3f} of {of}" if of else "–",
                f"{sum(row['backed'] for row in flown) / steps:.3f}, {sum(row['refuted'] for row in flown)}"
                if arm == "widened"
                else "–",
                f"{np.median([row['ms'] for row in flown]):.3g}" if filtered else "–",
            )
        )
    columns = (
        "plant",
        "proposed",
        "arm",
        "model learned from",
        "flown",
        "episodes with a violation",
        "plan / stored / backup / soft",
        "steps corrected",
        "next state in a member's tube",
        "backed; episodes that refuted the model",
        "CPU ms a decision",
    )
    caption = (
        "True states; counts with 95 % Clopper–Pearson intervals, which take episodes as independent. An episode ends when the "
        "true state leaves the limits. Next state in a tube: Assumption 4.4 of the paper, measured states, while a plan's law "
        "is followed. Times on a machine that did other work too."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def _models_table(found: Mapping[str, Sequence[Row]]) -> Table:
    rows = []
    for plant, all_rows in found.items():
        for (model,), same in grouped(all_rows, "model").items():
            errors = [np.mean([row["error"] for row in one]) for one in grouped(same, "coordinate").values()]
            told, of = ", ".join(f"{e:.2g}" for e in errors), sum(row["of"] for row in same)
            if of:
                rows.append((plant, model, told, f"{sum(row['inside'] for row in same) / of:.3f}"))
            else:
                rows.append((plant, "analytic ↔ PyBullet", f"{told} (units of the coordinates)", "–"))
    columns = (
        "plant",
        "model",
        "r.m.s. one-step error, in its σ, by coordinate",
        "rows in a member's one-sigma ellipsoid",
    )
    caption = (
        "On rows of PyBullet's warm-up that no model learned from (measured states). Last line of a plant: root mean square "
        "of one step's difference between the simulators under uniform inputs."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def report(runs: Sequence[Run]) -> Report:
    """Violations, sources and captured states by arm; errors of the models."""
    cells: dict[tuple[str, str, str], list[Row]] = {}
    models: dict[str, list[Row]] = {}
    for run in runs:
        for key, piece in run.pieces.items():
            plant, arm = key.split("/")
            if arm == "models":
                models.setdefault(plant, []).extend(piece.rows)
                continue
            for (learner,), rows in grouped(piece.rows, "learner").items():
                cells.setdefault((plant, arm, learner), []).extend(rows)
    order = {name: i for i, name in enumerate((*PLANTS, *LEARNERS, *ARMS))}
    cells = dict(sorted(cells.items(), key=lambda c: (order[c[0][0]], order[c[0][2]], order[c[0][1]])))
    return Report(
        figures={"bullet": _figure(cells)}, tables={"flights": _table(cells), "models": _models_table(models)}
    )


def _figure(cells: Cells) -> Figure:
    places = list(dict.fromkeys((plant, learner) for plant, _, learner in cells))
    figure = plotting.figure("screen", 4.0)
    left, right = figure.subplots(1, 2)
    for j, name in enumerate(ARMS):
        at = [(i, _flown(cells.get((p, name, q), ()))) for i, (p, q) in enumerate(places)]
        at = [(i, rows) for i, rows in at if rows]
        if not at:
            continue
        x = [i + 0.13 * (j - 2.5) for i, _ in at]
        shares = [Share.of(row["violated"] for row in rows) for _, rows in at]
        draw_shares(left, x, shares, label=name, noun=name, joined=False)
        held = [
            (i, [sum(row[key] for row in rows) for key in ("captured", "captured_of")])
            for i, (_, rows) in zip(x, at, strict=True)
        ]
        right.plot(
            [i for i, (_, of) in held if of], [k / of for _, (k, of) in held if of], **plotting.look(name).points
        )
    for axes, title in ((left, "episodes with a violation"), (right, "next states in a member's tube")):
        axes.set_xticks(range(len(places)), [f"{p}\n{q}" for p, q in places])
        axes.set_title(title)
        axes.set_ylim(-0.03, 1.03)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    return figure


EXPERIMENT = Experiment(
    name="xmpsc-bullet",
    title="The safety filter across the gap between two simulators",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(
            plants=("cart-pole",),
            arms=("none", "analytic", "bullet"),
            data=400,
            apart=60,
            training=200,
            episodes=1,
            steps=4,
        ),
        "quick": Arguments(),
        "full": Arguments(episodes=50, sound_episodes=10, steps=100, members=5),
    },
    seeds={"smoke": 1, "quick": 5, "full": 10},
)
