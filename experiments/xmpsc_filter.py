"""The X-MPSC safety filter on the published pendulum and cart-pole: how often it is infeasible, falls back, and is wrong.

Two learners propose inputs, uniform ones and full pushes towards the limit, through the filter. Paper mode is the published
certification (one standard deviation, constant gain, no remainder) without the defects of its code; sound mode has a conformal
radius, an LQR gain and the networks' remainder; invariant mode also has a terminal set that is certified to be invariant, where
one is found. Without a filter the same proposals meet the same noise. Between epochs the ensemble is trained anew on all data,
the conformal radius is taken anew from rows kept apart, and the learned terminal set grows by the states that were certified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from gpsafe import _require
from gpsafe.testbed.experiment import Experiment, Record, Report, Run, Table

from ._report import xmpsc_filter_figures as figures
from ._report.statistics import Share, grouped, plus_minus
from ._report.xmpsc_filter import KINDS, arm
from ._report.xmpsc_filter_questions import CASES, Knowledge, Mode, Sizes

LEARNERS = ("uniform", "adversary")
MODES: tuple[Mode, ...] = ("none", "paper", "sound", "invariant")
CHANGED = 1e-6  # |u_L − u| that counts as a correction


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    plants: tuple[str, ...] = tuple(CASES)
    """pendulum and cart-pole with the published noise; pendulum-exact has the pendulum's input noise only."""
    modes: tuple[str, ...] = MODES
    """none, paper, sound, invariant."""
    learners: tuple[str, ...] = LEARNERS
    """Who proposes."""
    data: int = 4000
    """Warm-up transitions."""
    calibration: int = 1000
    """Further ones, never trained on, for the conformal radius."""
    training: int = 2000
    """Least number of gradient steps."""
    members: int = 5
    """M."""
    width: int = 10
    """Units of each of the two hidden layers."""
    initial: int = 80
    """Initial states whose hull is the first terminal set."""
    epochs: int = 3
    """Between them the ensemble, the radius and the terminal set are updated."""
    episodes: int = 2
    """Per epoch."""
    steps: int = 60
    """Of an episode, which ends at a violation."""
    delay: int = 0
    """ℓ: the terminal set is that many updates old."""
    delta: float = 0.1
    """δ of a plan, jointly over its steps (sound modes)."""
    cells: int = 16
    """At most this many cells cover a section when its remainder is bounded."""
    probe: int = 10
    """Plans certified at multiples of this step are followed to their end, on copies of the plant."""
    copies: int = 8
    """How many."""
    audits: int = 1
    """Infeasible states of a sound arm, every tenth, that a search on the sound tube itself repeats."""
    audit_iterations: int = 6
    """Of that search."""

    def __post_init__(self) -> None:
        _require.names("--plants", self.plants, CASES)
        _require.names("--modes", self.modes, MODES)
        _require.names("--learners", self.learners, LEARNERS)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One arm a piece."""
    torch.set_num_threads(1)
    sizes = Sizes(**{f.name: getattr(arguments, f.name) for f in fields(Sizes)})

    @cache
    def first(name: str, finest: str) -> Knowledge:
        return Knowledge.first(CASES[name], "paper" if finest == "paper" else "sound", sizes, seed)

    arms = [(p, m, q) for p in arguments.plants for m in arguments.modes for q in arguments.learners]
    for i, (name, mode, learner) in enumerate(arms):
        assert mode in MODES
        record.progress(i, len(arms), f"{name}, {mode}, {learner}")
        known = partial(first, name, "paper" if mode == "paper" else "sound")
        record.piece(f"{name}/{mode}/{learner}", partial(arm, CASES[name], mode, learner, sizes, seed, known))
    record.progress(len(arms), len(arms), "done")


# ------------------------------------------------------------------------------------------------------------ tables
Row = Mapping[str, Any]
Arms = Mapping[tuple[str, ...], Sequence[Row]]


def _share(values: Iterable[Any]) -> str:
    listed = list(values)
    return str(Share.of(listed)) if listed else "–"


def _mean(values: Sequence[float]) -> str:
    return plus_minus(values) if len(values) > 1 else f"{np.mean(values):.2f}" if values else "–"


def _of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _episodes(rows: Sequence[Row]) -> list[list[Row]]:
    return list(grouped(_of(rows, "step"), "seed", "epoch", "episode").values())


def _episode_table(arms: Arms) -> Table:
    table = []
    for key, rows in arms.items():
        episodes = _episodes(rows)
        if not episodes:
            continue
        begun = [e for e in episodes if e[0]["backed"]]
        whole = [e for e in episodes if all(row["backed"] for row in e)]
        lengths = [len(e) for e in episodes if e[-1]["violated"]]
        table.append(
            (
                *key,
                _share(e[-1]["violated"] for e in episodes),
                f"{np.median(lengths):.0f}" if lengths else "–",
                f"{len(begun)}/{len(episodes)}",
                _share(e[-1]["violated"] for e in begun),
                f"{len(whole)}/{len(episodes)}",
                _share(e[-1]["violated"] for e in whole),
            )
        )
    columns = (
        "plant",
        "mode",
        "learner",
        "episodes with a violation",
        "median steps until it",
        "first decision backed",
        "violation if so",
        "all decisions backed",
        "violation if all are",
    )
    caption = (
        "A violation: the true state leaves the limits, which ends the episode. Counts with 95 % Clopper–Pearson intervals, "
        "over all seeds; episodes of one seed share the data that the ensemble was trained on."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _step_table(arms: Arms) -> Table:
    table = []
    for key, rows in arms.items():
        steps = _of(rows, "step")
        if not steps or key[1] == "none":
            continue
        sources = Counter((row["source"], row["backed"]) for row in steps)
        shown = [sources[s, True] for s in ("plan", "stored", "backup")]
        loose = [sources[s, False] for s in ("stored", "backup", "soft", "unfiltered")]
        missing = [row for row in steps if row["source"] != "plan"]
        kinds = Counter(row["tightest"] for row in missing)
        change = [abs(row["learned"] - row["applied"]) for row in steps]
        audits = _of(rows, "audit")
        rates = [float(np.mean([row["source"] != "plan" for row in e])) for e in _episodes(rows)]
        table.append(
            (
                *key,
                _share(row["source"] != "plan" for row in steps),
                _mean(rates),
                " / ".join(map(str, shown)),
                " / ".join(map(str, loose)),
                ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "–",
                f"{sum(row['found'] for row in audits)} of {len(audits)}" if audits else "–",
                f"{np.mean([c > CHANGED for c in change]):.2f}",
                f"{np.mean(change):.2f}",
                f"{np.median([row['ms'] for row in steps]):.3g} / {max(row['ms'] for row in steps):.3g}",
            )
        )
    columns = (
        "plant",
        "mode",
        "learner",
        "steps without a certified plan",
        "… mean over episodes",
        "backed: plan / stored / backup",
        "not backed: stored / backup / soft / unfiltered",
        "tightest row without a plan",
        "slower search finds one",
        "share of steps corrected",
        "mean |u_L − u|",
        "CPU ms (median / max)",
    )
    caption = (
        "Steps of one episode are not independent, so that the Clopper–Pearson intervals over steps are too short; beside them "
        "the mean of the episodes' rates ± its 95 % half-width. In sound modes plans are sought by a search that need not find "
        "one that exists; a few of its failures were given to a search on the sound tube itself. Times: filter and judge, on a "
        "busy machine."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _containment_table(arms: Arms) -> Table:
    table = []
    for key, rows in arms.items():
        told = [row for row in _of(rows, "step") if row.get("stage", -1) >= 1]
        plans = _of(rows, "followed")
        if not told:
            continue
        line = [*key, len(told), *(f"{np.mean([row[kind] for row in told]):.3f}" for kind in KINDS), len(plans)]
        line += [_mean([row[kind] / row["copies"] for row in plans]) for kind in KINDS]
        line.append(f"{sum(row['left'] for row in plans)} of {sum(row['copies'] for row in plans)}")
        table.append(line)
    names = ("true state, a member", "true state, all members", "measured, a member", "measured, all members")
    columns = ["plant", "mode", "learner", "backed steps of a plan"]
    columns += [f"next state inside: {name}" for name in names]
    columns += ["plans followed", *(f"inside to the end: {name}" for name in names), "copies that left the limits"]
    caption = (
        "Next state inside: in the section of the tube of the plan whose law was applied. Inside to the end: in all "
        "sections of a plan that was followed without planning anew, on copies of the plant; the same member throughout; "
        "mean over plans ± 95 %. Sound modes claim the measured state, all members, with 1 − δ jointly to the end, on data "
        "exchangeable with the rows kept apart; their theorem needs one member. Paper mode assumes what is measured here."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _terminal_table(arms: Arms) -> Table:
    table = []
    for key, rows in arms.items():
        absent = _of(rows, "absent")
        by_epoch = grouped(_of(rows, "epoch"), "epoch")
        ends = [next(iter(by_epoch.values())), list(by_epoch.values())[-1]] if by_epoch else []
        if not absent and not ends:
            continue
        line = [*key]
        for name, form in (("area", ".3g"), ("facets", ".0f"), ("radius", ".2f"), ("within_one_sigma", ".2f")):
            line.append(" → ".join(f"{np.mean([r[name] for r in part]):{form}}" for part in ends) or "–")
        outcomes = Counter(row["invariance"].split(",")[0] for row in _of(rows, "epoch"))
        outcomes.update(f"none found ({row['why']})" for row in absent)
        line.append("; ".join(f"{name}: {count}" for name, count in outcomes.items()))
        line.append(sum(row["kept"] for row in _of(rows, "epoch")))
        table.append(line)
    columns = (
        "plant",
        "mode",
        "learner",
        "area of the terminal set",
        "rows",
        "radius (σ)",
        "rows kept apart within 1 σ",
        "invariance of the terminal set, by epoch",
        "epochs with the old certificate",
    )
    caption = (
        "First → last epoch, mean over seeds. Area in (θ, ω), in (x, θ) for the cart-pole. Invariance under the LQR backup "
        "law, for all members: VIOLATED comes with a state whose successor leaves the set; where an invariant set was "
        "sought and none was found, what each attempt gave."
    )
    return Table(columns=columns, rows=table, caption=caption)


def report(runs: Sequence[Run]) -> Report:
    """Rates by plant, mode and learner; tubes, episodes and terminal sets of the first seed."""
    a = runs[0].arguments
    arms: dict[tuple[str, ...], list[Row]] = {}
    for one in runs:
        for key, piece in one.pieces.items():
            arms.setdefault(tuple(key.split("/")), []).extend({"seed": one.seed, **row} for row in piece.rows)
    tables = {
        "episodes": _episode_table(arms),
        "steps": _step_table(arms),
        "containment": _containment_table(arms),
        "terminal": _terminal_table(arms),
    }
    drawn: dict[str, Figure] = {"rates": figures.rates(arms, a)}
    drawn |= {"tubes": figures.tubes(runs[0], a), "episode": figures.episode(runs[0], a)}
    drawn["growth"] = figures.growth(runs, a)
    notes = [
        f"{len(runs)} seeds, {a.epochs} epochs of {a.episodes} episodes of at most {a.steps} steps. Plans have 4 inputs "
        "(pendulum) or 6 (cart-pole). The same seed, epoch and episode have the same initial state, noise and uniform "
        "proposals in all modes.",
        "Paper mode: tubes of one standard deviation, K = −½·1, tolerance 10⁻⁶, hard terminal set; without a plan and a "
        "stored one, the published hand-set law (cart-pole) or the proposed input (pendulum), and least-violating plans "
        "once there were as many failures in a row as a plan has steps; these give up the terminal set before the limits. "
        "Nothing is guaranteed.",
        "Sound mode assumes that the steps of a plan are exchangeable with the rows kept apart (of measured states; X is "
        "tightened by the measurement noise), and that the learned terminal set is invariant under the LQR law, which the "
        "last table refutes: beyond the end of a plan it promises nothing. Invariant mode replaces the second by a "
        "certificate; the first stays, for every step of an episode.",
    ]
    return Report(figures=drawn, tables=tables, notes=notes)


EXPERIMENT = Experiment(
    name="xmpsc-filter",
    title="X-MPSC safety filter: infeasibility, fallback and containment on pendulum and cart-pole",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            plants=("pendulum-exact", "cart-pole"),
            learners=("adversary",),
            data=200,
            calibration=60,
            training=60,
            members=2,
            width=4,
            initial=12,
            epochs=2,
            episodes=1,
            steps=4,
            cells=1,
            probe=2,
            copies=2,
            audits=1,
            audit_iterations=1,
        ),
        "quick": Arguments(),
        "full": Arguments(data=8000, calibration=2000, epochs=10, episodes=5, steps=100, delay=2, audits=5),
    },
    seeds={"smoke": 1, "quick": 2, "full": 5},
    run=run,
    report=report,
)
