"""Figure 2 of the X-MPSC paper: reward and cumulative violations against environment steps, one counter for all algorithms.

X-MPSC with and without the published known part (masses and lengths 20 % low), the same agent without a certifier (MBPO), the
plants' safe controller alone, and, as further arms, the constrained model-free baselines, at the published budgets or a stated
fraction of their epochs. A violation is a true state outside the limits, which ends the episode; all steps count, those of a
warm-up or pre-training are shown apart. What the published comparison counted differently stands in docs/xmpsc.md: above all,
the baselines' budgets are up to 150 times as long, so that steps, not epochs, are the axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from gpsafe import _require, plotting
from gpsafe.algorithms.certification import Certification, invariant_about_rest
from gpsafe.algorithms.xmpsc import XMPSC
from gpsafe.baselines import create
from gpsafe.planning.mbpo import Preset, preset
from gpsafe.safety.flight import SOURCES
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm
from gpsafe.systems.episodic import Episodic
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report.statistics import RateRatio, Share, plus_minus
from ._report.xmpsc_runs import tilt_error, toy, trained

TASKS = {"pendulum": SimplePendulum, "cart-pole": SafeCartPole, "arm": TwoLinkArm, "drone": Drone}
ARMS: tuple[str, ...] = ("prior", "plain", "invariant", "certain", "sound", "mbpo", "safe")
FREE = {
    "cpo": "CPO",
    "trpo-lagrangian": "TRPO-Lagrangian",
    "ppo-lagrangian": "PPO-Lagrangian",
    "lbpo": "LBPO",
    "sqrl": "SQRL",
    "safety-layer": "safety layer",
}
NAMES: dict[str, str] = {
    "prior": "X-MPSC, known part",
    "plain": "X-MPSC",
    "invariant": "X-MPSC, known part, invariant terminal set",
    "certain": "X-MPSC, known part, invariant terminal set, limit on disagreement",
    "sound": "X-MPSC, known part, sound mode",
    "mbpo": "MBPO, uncertified",
    "safe": "safe controller",
    **{name: f"{told}, {{}}" for name, told in FREE.items()},
}
WHERE = {
    "invariant": ("pendulum", "cart-pole", "drone"),  # the arm has plans in every step under its hull
    "certain": ("pendulum", "cart-pole"),
    "sound": ("pendulum", "cart-pole"),
}
SAVE_BATCHES = 10  # of a baseline, between two saves
MEMORY = 5e8  # bytes of a virtual ring: the drone's published one has 2e9


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    tasks: tuple[str, ...] = ("cart-pole",)
    """pendulum, cart-pole, arm, drone."""
    arms: tuple[str, ...] = ("prior", "plain", "invariant", "mbpo", "safe")
    """prior, plain, invariant (an invariant terminal set instead of the hull; not on the arm), certain (and a limit on
    disagreement), sound (conformal tubes, remainders, invariance certified anew for each model), these two on pendulum and
    cart-pole alone; mbpo, safe; cpo, trpo-lagrangian, ppo-lagrangian,
    lbpo, sqrl, safety-layer."""
    fraction: float = 1.0
    """Of the published epochs."""
    baselines: Literal["published", "corrected"] = "corrected"
    """As their authors' code has them, or as their papers say."""
    warm_up: int = 8000
    """First transitions, under the plant's warm-up law."""
    toy: bool = False
    """Everything so small that it takes seconds."""

    def __post_init__(self) -> None:
        _require.names("--tasks", self.tasks, TASKS)
        _require.names("--arms", self.arms, NAMES)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One task and algorithm a piece; saved every few episodes while it runs."""
    torch.set_num_threads(1)
    cells = [(task, arm) for task in arguments.tasks for arm in arguments.arms if task in WHERE.get(arm, TASKS)]
    for i, (task, arm) in enumerate(cells):
        key = f"{task}/{arm}"

        def told(text: str, i: int = i, key: str = key) -> None:
            record.progress(i, len(cells), f"{key}: {text}")

        def compute(task: str = task, arm: str = arm, key: str = key, told=told) -> Piece:
            if arm == "safe":
                return Piece(_safe(TASKS[task](), _settings(task, arguments), seed))
            if arm in FREE:
                return Piece(_baseline(task, arm, arguments, seed, record.scratch(key), told))
            return Piece(_learned(task, arm, arguments, seed, record.scratch(key), told))

        record.piece(key, compute)
    record.progress(len(cells), len(cells), "done")


def _settings(task: str, arguments: Arguments) -> Preset:
    found = preset(task)  # type: ignore[arg-type]
    plant = TASKS[task]()
    found = replace(found.shorter(arguments.fraction), warm_up=arguments.warm_up).within(MEMORY, plant.nx, plant.nu)
    return toy(found) if arguments.toy else found


def learner(task: str, arm: str, settings: Preset, seed: int) -> XMPSC:
    """The algorithm of an arm."""
    plant = TASKS[task]()
    known = {} if arm == "plain" else {"prior": plant.prior()}
    certification: Any = "published"
    if arm == "mbpo":
        certification = None
    elif arm == "invariant" and isinstance(plant, Drone):
        certification = invariant_about_rest(plant, error=tilt_error(plant))
    elif arm in ("invariant", "certain"):
        share = 0.95 if arm == "certain" else None
        certification = Certification(
            states=settings.horizon, feedback=settings.feedback, terminal="invariant", certainty=share
        )
    elif arm == "sound":
        noise = getattr(plant, "observation_noise", 0.0)
        certification = Certification(
            states=3,
            mode="sound",
            feedback=None,
            input_weight=10.0,
            terminal="invariant",
            error=2 * noise * plant.state_box.radius,
        )
    return XMPSC.create(plant, settings, certification=certification, seed=seed, **known)


def _learned(task: str, arm: str, arguments: Arguments, seed: int, scratch: Path, told: Any) -> list[dict[str, Any]]:
    settings = _settings(task, arguments)
    return trained(learner(task, arm, settings, seed), settings.epochs * settings.steps, scratch, told)


def _baseline(task: str, arm: str, arguments: Arguments, seed: int, scratch: Path, told: Any) -> list[dict[str, Any]]:
    plant = TASKS[task]()
    epochs = 1 if arguments.toy else max(round(arguments.fraction * create(arm, plant).epochs), 1)
    one = create(arm, plant, arguments.baselines, seed=seed, epochs=epochs)
    if (scratch / "learner.json").exists():
        one.load(scratch)
    while one.told < one.budget:
        one.learn(min(SAVE_BATCHES, one.budget - one.told))
        one.save(scratch)
        told(f"{one.told} of {one.budget} batches")
    kept = ("epoch", "steps", "reward", "violations", "violations_observed", "episodes")
    return [
        {"phase": "train" if row["phase"] == "train" else "warm-up", **{name: row[name] for name in kept}}
        for row in one.logger.rows
    ]


def _safe(plant: Episodic, settings: Preset, seed: int) -> list[dict[str, Any]]:
    """The safe controller alone, after a warm-up of the same length (which it is not charged for)."""
    generator, rows, steps = torch.Generator().manual_seed(500_009 + seed), [], 0
    while steps < settings.epochs * settings.steps:
        x, reward, violated, taken = plant.initial(1, generator), 0.0, False, 0
        while taken < plant.horizon and not violated:
            u = plant.backup(plant.observe(x, generator))
            x = plant.advance(x, u, generator)
            reward, violated, taken = reward + float(plant.reward(x, u)), bool(plant.terminated(x)), taken + 1
        steps += taken
        row = {"episode": len(rows), "phase": "train", "steps": taken, "reward": reward, "violations": int(violated)}
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------------------ report
Row = Mapping[str, Any]


Cells = Mapping[tuple[str, str], Mapping[int, Sequence[Row]]]
FIRST = 200.0  # steps at which a logarithmic axis begins


def _cells(runs: Sequence[Run]) -> tuple[Cells, dict[tuple[str, str], set[float]]]:
    """Rows of each task, algorithm and seed; and the shares of the published epochs that they trained."""
    found: dict[tuple[str, str], dict[int, Sequence[Row]]] = {}
    shares: dict[tuple[str, str], set[float]] = {}
    for run in runs:
        for key, piece in run.pieces.items():
            task, arm = key.split("/")
            seeds = found.setdefault((task, arm), {})
            if run.seed in seeds:  # of several folders
                raise _require.fail(
                    "xmpsc-figure2", "one run of each algorithm and seed", f"seed {run.seed} of {key} twice"
                )
            seeds[run.seed] = piece.rows
            shares.setdefault((task, arm), set()).add(run.arguments.fraction)
    return found, shares


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["phase"] == "train"]


def _mean(values: Iterable[float | None]) -> float:
    """Of a batch's rewards; batches in which no episode ended have none."""
    listed = [value for value in values if value is not None]
    return float(np.mean(listed)) if listed else float("nan")


def _table(cells: Cells, shares: Mapping[tuple[str, str], set[float]], chosen: str) -> Table:
    table = []
    for (task, arm), seeds in cells.items():
        runs = [_trained(rows) for rows in seeds.values()]
        warm = [[row for row in rows if row["phase"] != "train"] for rows in seeds.values()]
        every = [row for rows in runs for row in rows]
        steps = sum(row["steps"] for row in every)
        late = [_mean(row["reward"] for row in rows[-max(len(rows) // 5, 1) :]) for rows in runs]
        late = [value for value in late if np.isfinite(value)]  # a short run may end no episode there
        episodes = sum(row.get("episodes", 1) for row in every)
        name = NAMES[arm].format(chosen)
        violations = [sum(row["violations"] for row in rows) for rows in runs]
        sources = [sum(row.get(f"from_{name}", 0) for row in every) for name in SOURCES]
        captured, of = (sum(row.get(name, 0) for row in every) for name in ("captured", "captured_of"))
        times = [row["certify_ms"] for row in every if "certify_ms" in row]
        certified = arm not in ("mbpo", "safe", *FREE)
        table.append(
            (
                task,
                name,
                len(runs),
                " and ".join(f"{share:g}" for share in sorted(shares[task, arm])),
                steps,
                plus_minus(violations) if len(runs) > 1 else f"{violations[0]}",
                f"{1000 * sum(violations) / steps:.3g}",
                str(Share(min(sum(violations), episodes), episodes)),
                f"{np.mean([sum(r['violations'] for r in rows) for rows in warm]):.1f}" if arm != "safe" else "–",
                plus_minus(late) if len(late) > 1 else f"{late[0]:.1f}" if late else "–",
                " / ".join(f"{s / steps:.3f}" for s in sources) if certified else "–",
                f"{captured / of:.3f} of {of}" if of else "–",
                f"{np.median(times):.3g}" if times else "–",
            )
        )
    columns = (
        "task",
        "algorithm",
        "seeds",
        "of the published epochs",
        "steps, all seeds",
        "violations a seed",
        "in 1000 steps",
        "episodes with one",
        "in the warm-up, a seed",
        "reward of the last fifth",
        "plan / stored / backup / soft / unfiltered",
        "next state in a member's tube",
        "CPU ms a decision",
    )
    caption = (
        "Means over seeds ± 95 %; shares of episodes with 95 % Clopper–Pearson intervals, which take episodes as independent. "
        "Every step has exactly one of the five sources. Next state in a tube: Assumption 4.4 of the paper, measured states, "
        "while a plan's law is followed."
    )
    return Table(columns=columns, rows=table, caption=caption)


CERTIFIED = ("prior", "plain", "invariant", "certain", "sound")


def _claims(cells: Cells) -> Table:
    """What the paper says, against what was counted."""
    counted: dict[tuple[str, str], tuple[int, int]] = {}
    for key, seeds in cells.items():
        every = [row for rows in seeds.values() for row in _trained(rows)]
        counted[key] = sum(row["violations"] for row in every), sum(row["steps"] for row in every)
    table = []

    def compare(claim: str, task: str, arm: str, other: str, at_least: float) -> None:
        if (task, arm) not in counted or (task, other) not in counted:
            return
        ratio = RateRatio(*counted[task, arm], *counted[task, other])
        low, high = ratio.interval
        verdict = "confirmed" if low > at_least else "refuted" if high < at_least else "open"
        told = (f"{name}: {counted[task, name][0]} in {counted[task, name][1]}" for name in (arm, other))
        table.append((claim, task, *told, str(ratio), verdict))

    for task in dict.fromkeys(task for task, _ in cells):
        for arm in CERTIFIED:
            compare(f"MBPO violates more often than {SHORT[arm]}", task, "mbpo", arm, 1.0)
        compare("ten times as many violations without the known part", task, "plain", "prior", 10.0)
    if ("pendulum", "prior") in counted:
        count, steps = counted["pendulum", "prior"]
        claim = "no violation with the known part"
        table.append((claim, "pendulum", f"prior: {count} in {steps}", "–", "–", "refuted" if count else "open"))
    columns = ("claim", "task", "violations in steps", "against", "ratio of the rates", "verdict")
    caption = (
        "Exact 95 % intervals of the ratio of two Poisson rates. Seeds differ by more than chance (± in the totals), so that "
        "they are too narrow. Confirmed: the interval lies above the claim (1, or 10); refuted: below it; open: it holds both, "
        "and no run proves that there are never any."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _curve(rows: Sequence[Row], name: str, points: np.ndarray) -> np.ndarray:
    """Violations so far, or the running mean of the rewards of ten episodes, at numbers of steps; NaN before there is one."""
    at = np.cumsum([row["steps"] for row in rows])
    values = np.array([row[name] for row in rows], float)  # None: NaN
    if name == "violations":
        shown = np.cumsum(values)
        return np.concatenate([[0.0], shown])[np.searchsorted(at, points, side="right")]
    wide = 1 if "epoch" in rows[0] else 10  # a batch is a mean of many episodes
    shown = np.array(
        [_mean(v for v in values[max(0, i + 1 - wide) : i + 1] if not np.isnan(v)) for i in range(len(values))]
    )
    return np.interp(points, at, shown, left=np.nan)


SHORT = {
    "prior": "known part",
    "plain": "X-MPSC",
    "invariant": "invariant set",
    "certain": "limited disagreement",
    "sound": "sound mode",
    "mbpo": "MBPO",
    "safe": "safe controller",
    **FREE,
}
"""What stands at the end of a line."""


def _noun(arm: str) -> str:
    return {"plain": "paper", "safe": "safe-controller"}.get(arm, arm)


def _figure(cells: Cells, chosen: str) -> Figure:
    tasks, shown = list(dict.fromkeys(task for task, _ in cells)), plotting.looks(_noun(arm) for _, arm in cells)
    names = {arm: SHORT.get(arm, NAMES[arm].format(chosen)) for _, arm in cells}
    figure = plotting.figure(1.2 + 4.4 * len(tasks), 5.6)
    axes = figure.subplots(2, len(tasks), squeeze=False, sharex="col")
    for column, task in enumerate(tasks):
        runs = {
            arm: [_trained(rows) for rows in seeds.values()] for (where, arm), seeds in cells.items() if where == task
        }
        least = {arm: min(sum(row["steps"] for row in rows) for rows in each) for arm, each in runs.items()}
        apart = max(least.values()) > 5 * min(least.values())
        for line, name in enumerate(("reward", "violations")):
            here = axes[line, column]
            for arm, each in runs.items():
                points = np.geomspace(FIRST, least[arm], 200) if apart else np.linspace(0, least[arm], 200)
                curves = np.array([_curve(rows, name, points) for rows in each])
                told = ~np.isnan(curves).any(0)
                look = {names[arm]: shown[_noun(arm)]}
                plotting.learning_curves(
                    here, {names[arm]: curves[:, told]}, x=points[told], styles=look, labelled=False
                )
            if apart:
                here.set_xscale("log")
            if name == "reward":  # bands of two seeds are wider than any reward
                lines = np.concatenate([np.asarray(found.get_ydata(), float) for found in here.get_lines()])
                if lines.size:  # a run may be too short for an episode's reward
                    room = 0.15 * max(np.ptp(lines), 1e-9)
                    here.set_ylim(lines.min() - room, lines.max() + room)
        axes[0, column].set_title(task)
        axes[0, column].set_ylabel("reward of an episode" if column == 0 else "")
        axes[1, column].set_ylabel("violations so far" if column == 0 else "")
        axes[1, column].set_yscale("symlog", linthresh=1)
        axes[1, column].set_ylim(bottom=0)
        axes[1, column].yaxis.set_major_formatter("{x:g}")
        axes[1, column].set_xlabel("environment steps after the warm-up")
    for each in axes.flat:
        plotting.label_ends(each)
    return figure


def report(runs: Sequence[Run]) -> Report:
    """The figure, and its numbers."""
    (cells, shares), chosen = _cells(runs), runs[0].arguments.baselines
    tables = {"claims": _claims(cells), "totals": _table(cells, shares, chosen)}
    return Report(figures={"figure2": _figure(cells, chosen)}, tables=tables)


EXPERIMENT = Experiment(
    name="xmpsc-figure2",
    title="Reward and violations of X-MPSC against environment steps (Figure 2 of its paper)",
    arguments=Arguments,
    run=run,
    report=report,
    budgets={
        "smoke": Arguments(tasks=("pendulum",), arms=("prior", "mbpo", "safe", "cpo"), warm_up=100, toy=True),
        "quick": Arguments(fraction=0.2),
        "full": Arguments(tasks=tuple(TASKS)),
    },
    seeds={"smoke": 1, "quick": 3, "full": 5},
)
