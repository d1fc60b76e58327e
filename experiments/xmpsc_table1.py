"""Table 1 of the X-MPSC paper: CPU time of one certificate, cold start, one thread, on the Simple Pendulum.

The condensed SQP and IPOPT in several forms (`gpsafe.mpc.reference`) answer the same questions in one process, and the judge
says which plans are certified. Horizon, width and ensemble size vary about N = 5, width 20, M = 5. Building an IPOPT program
is apart. States lie about the edge of the terminal set. Untrained networks, on which the published table was most likely
measured and which make every problem infeasible, have a table of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments import _xmpsc as xmpsc
from experiments._statistics import COLORS, Share, grouped
from gpsafe.certify import judge
from gpsafe.experiment import Experiment, Piece, Record, Report, Run, Table
from gpsafe.mpc.fast import CondensedSQP
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum

SWEEPS = ("horizon", "width", "members")
PAPER = {  # ms, 2.2 GHz i7
    "horizon": dict(zip(range(3, 13), (120, 436, 676, 1314, 2515, 4955, 7595, 7889, 10675, 14925), strict=True)),
    "width": dict(
        zip((10, *range(20, 181, 20)), (410, 613, 2114, 5396, 9759, 26107, 39933, 44261, 59362, 71982), strict=True)
    ),
    "members": dict(zip(range(1, 11), (89, 256, 529, 736, 872, 1324, 1390, 1356, 1690, 1943), strict=True)),
}
FREE = 1e-6  # cost below which nothing is corrected
MOST = 10  # times as many states are drawn at most
STUDIES = {"pendulum, N = 5": (SimplePendulum, 5), "pendulum, N = 10": (SimplePendulum, 10)}
STUDIES |= {"cart-pole, N = 7": (SafeCartPole, 7)}


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    base: tuple[int, int, int] = (5, 20, 5)
    """N, width and M where they are not varied (the published ones)."""
    horizon: tuple[int, ...] = (3, 5, 8, 12)
    """N, states of a plan (N − 1 inputs)."""
    width: tuple[int, ...] = (10, 20, 60)
    """Units of each of the two hidden layers."""
    members: tuple[int, ...] = (1, 5, 10)
    """M."""
    dimensions: tuple[int, ...] = (2, 4, 8)
    """nx, for random networks."""
    states: int = 24
    """States of a cell that the fast proposer answers."""
    slow_states: int = 3
    """How many of them IPOPT answers too."""
    slow: tuple[str, ...] = ("paper", "published", "repaired")
    """Forms of IPOPT in every cell (published, paper, shared, expanded, repaired)."""
    ladder: tuple[str, ...] = ("published", "paper", "shared", "expanded", "repaired")
    """Forms of IPOPT in the default cell."""
    untrained: tuple[int, ...] = (5,)
    """N of the cells with untrained networks."""
    studies: tuple[str, ...] = tuple(STUDIES)
    """Problems on which starts are compared."""
    corrections: int = 60
    """States of each study of starts that need a correction and have one."""
    wide: int = 10
    """Random starts per state that make the best known cost."""
    data: int = 8000
    """Transitions."""
    steps: int = 2000
    """Least number of gradient steps."""


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One cell a piece; networks and states are drawn from the seed."""
    torch.set_num_threads(1)
    cells = [(sweep, value) for sweep in SWEEPS for value in getattr(arguments, sweep)]
    cells += [("untrained", value) for value in arguments.untrained]
    cells += [("nx", value) for value in arguments.dimensions]
    total = len(cells) + 1 + len(arguments.studies)
    for i, (sweep, value) in enumerate(cells):
        record.progress(i, total, f"{sweep} = {value}")
        record.piece(f"{sweep}/{value}", partial(_cell, arguments, sweep, value, seed))
    record.progress(len(cells), total, "forms of IPOPT")
    record.piece("ladder", partial(_cell, arguments, "ladder", 0, seed))
    for i, name in enumerate(arguments.studies):
        record.progress(len(cells) + 1 + i, total, name)
        key = f"starts/{name.replace(', N = ', '-')}"
        record.piece(key, partial(_starts, arguments, name, seed))
    record.progress(total, total, "done")


def _cell(arguments: Arguments, sweep: str, value: int, seed: int) -> Piece:
    generator = torch.Generator().manual_seed(1000 + seed)
    plant = SimplePendulum()
    if sweep == "nx":
        question = xmpsc.chain_problem(value, seed)
        x0 = 1.6 * torch.rand(arguments.states, value, dtype=torch.float64, generator=generator) - 0.8
        pairs = list(zip(x0, plant.input_box.sample(arguments.states, generator), strict=True))
    else:
        sizes = dict(zip(SWEEPS, arguments.base, strict=True))
        if sweep != "ladder":
            sizes["horizon" if sweep == "untrained" else sweep] = value
        steps = 0 if sweep == "untrained" else arguments.steps
        question = xmpsc.problem(plant, sizes["horizon"], sizes["width"], sizes["members"], arguments.data, steps, seed)
        pairs = xmpsc.instances(plant, arguments.states, generator)
    slow = arguments.ladder if sweep == "ladder" else arguments.slow
    rows = xmpsc.compared(question, pairs, slow, arguments.slow_states)
    return Piece([{"sweep": sweep, "value": value, **row} for row in rows])


def _starts(arguments: Arguments, name: str, seed: int) -> Piece:
    """States under proposals at their limits, drawn until `corrections` of them need a correction and have one."""
    plant, states = STUDIES[name]
    made, generator = plant(), torch.Generator().manual_seed(2000 + seed)
    question = xmpsc.problem(made, states, 10, 5, arguments.data, arguments.steps, seed)
    screen, rows, needed = CondensedSQP(starts=1), [], 0
    for x0, drawn in xmpsc.instances(made, MOST * arguments.corrections, generator):
        learned = torch.where(drawn < 0, -1.0, 1.0).to(drawn)
        first = judge(question, x0, learned, screen.propose(question, x0, learned))
        if first.certified and first.distance <= FREE:
            rows.append({"study": name, "feasible": True, "best": first.distance})
            continue
        rows.append({"study": name, **xmpsc.corrected(question, x0, learned, arguments.wide, generator)})
        needed += rows[-1]["feasible"] and rows[-1]["best"] > FREE
        if needed == arguments.corrections:
            break
    return Piece(rows)


def _median_max(values: Sequence[float]) -> str:
    return f"{np.median(values):.3g} / {max(values):.3g}" if values else "–"


def _agreement(rows: Sequence[Mapping[str, Any]], slow: str) -> tuple[str, str, str]:
    """Same verdict of the judge, how many the slow one alone certifies, and largest excess cost of the fast one."""
    mine = {(r["seed"], r["instance"]): r for r in rows if r["proposer"] == "fast"}
    pairs = [(mine[r["seed"], r["instance"]], r) for r in rows if r["proposer"] == slow]
    same = sum(a["certified"] == b["certified"] for a, b in pairs)
    lost = sum(b["certified"] and not a["certified"] for a, b in pairs)
    gaps = [a["distance"] - b["distance"] for a, b in pairs if a["certified"] and b["certified"]]
    return f"{same}/{len(pairs)}", str(lost), f"{max(gaps):.1e}" if gaps else "–"


def _ratios(rows: Sequence[Mapping[str, Any]], slow: str) -> list[float]:
    mine = {(r["seed"], r["instance"]): r["ms"] for r in rows if r["proposer"] == "fast"}
    return [r["ms"] / mine[r["seed"], r["instance"]] for r in rows if r["proposer"] == slow]


def _sweep_table(rows: Sequence[Mapping[str, Any]], sweep: str, slow: Sequence[str]) -> Table:
    table = []
    for (value,), cell in grouped(rows, "value").items():
        times = {name: [r["ms"] for r in cell if r["proposer"] == name] for name in ("fast", *slow)}
        line = [value, PAPER.get(sweep, {}).get(value, "–"), _median_max(times["fast"])]
        mine = [r for r in cell if r["proposer"] == "fast"]
        line.append(f"{sum(r['certified'] for r in mine)}/{len(mine)}")
        for name in slow:
            ratios = _ratios(cell, name)
            line += [_median_max(times[name]), f"{np.median(ratios):.3g}" if ratios else "–", *_agreement(cell, name)]
        table.append(line)
    columns = [sweep, "printed ms", "fast ms (median / max)", "fast certified"]
    for name in slow:
        columns += [f"{name} ms (median / max)", f"{name} ÷ fast", "same verdict"]
        columns += [f"{name} alone certifies", "largest excess cost of fast"]
    caption = (
        "CPU ms of this machine, one thread, cold start, without building programs; the printed ones are of a 2.2 GHz i7. "
        "*paper*: IPOPT on the paper's equation (8); *published*: the released code's form; *repaired*: all repairs at once. "
        "The ratio is the median over states that both answered. "
        f"Verdicts are the judge's, at a tolerance of {xmpsc.TOLERANCE:g} per row."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _growth(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = []
    for (sweep, proposer), group in grouped(rows, "sweep", "proposer").items():
        cells = {value: float(np.median([r["ms"] for r in g])) for (value,), g in grouped(group, "value").items()}
        if sweep not in (*SWEEPS, "nx") or len(cells) < 2:
            continue
        slope = np.polyfit(np.log(list(cells)), np.log(list(cells.values())), 1)[0]
        table.append((sweep, proposer, f"{min(cells)}–{max(cells)}", f"{slope:.2f}"))
    return Table(
        columns=("grows with", "proposer", "from–to", "exponent"), rows=table, caption="Fitted to the medians."
    )


def _split(rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, Table]:
    groups = {name: g for (name,), g in grouped(rows, "proposer").items()}
    shares = {
        name: [sum(r[part] for r in g) / max(sum(r["ms"] for r in g), 1e-12) for part in xmpsc.SPLIT]
        for name, g in groups.items()
    }
    labels = ("Hessian", "Jacobian of the rows", "values (fast: with Jacobian)", "quadratic program", "solver, rest")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(groups))
    for i, label in enumerate(labels):
        width = np.array([share[i] for share in shares.values()])
        axes.barh(list(groups), width, left=left, color=COLORS[i], label=label)
        left += width
    axes.set(xlabel="share of CPU time, default cell")
    axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.45, 1.3))
    table = []
    fast = [r["ms"] for r in groups.get("fast", ())]
    for name, g in groups.items():
        ratios = _ratios(rows, name)
        spent = _median_max([r["ms"] for r in g])
        build = f"{np.median([r['build'] for r in g]):.3g}"
        believed = f"{sum(r['believed'] for r in g)}/{len(g)}"
        certified = f"{sum(r['certified'] for r in g)}/{len(g)}"
        ratio = f"{np.median(ratios):.3g}" if ratios and fast else "–"
        table.append((name, build, spent, ratio, certified, believed, *(f"{share:.2f}" for share in shares[name])))
    columns = ("proposer", "build ms", "ms (median / max)", "÷ fast", "certified", "believes so", *labels)
    return figure, Table(columns=columns, rows=table)


def _starts_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = []
    for (study,), group in grouped(rows, "study").items():
        needed = [r for r in group if r["feasible"] and r["best"] > FREE]
        line = [study, len(group), sum(not r["feasible"] for r in group), len(needed)]
        for name in ("one", "default", "four"):
            line += [str(Share.of(r[f"{name} best"] for r in needed)) if needed else "–"]
            line += [_median_max([r[f"{name} ms"] for r in needed])]
        table.append(line)
    columns = ["problem", "states", "no plan known", "need a correction and have one"]
    for name in ("one start", "default", "four starts"):
        columns += [f"{name}: at the best known cost", f"{name}: ms (median / max)"]
    caption = (
        "Best known: the least certified cost of all these, the repaired reference and random starts; within 10⁻⁶."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _times(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    names = {"horizon": "N, states", "width": "width", "members": "M, members", "nx": "nx, random networks"}
    for axes, (sweep, label) in zip(panels, names.items(), strict=True):
        chosen = [r for r in rows if r["sweep"] == sweep]
        for color, ((proposer,), group) in zip(COLORS, grouped(chosen, "proposer").items(), strict=False):
            cells = {value: [r["ms"] for r in g] for (value,), g in grouped(group, "value").items()}
            middle = [float(np.median(v)) for v in cells.values()]
            axes.plot(list(cells), middle, marker="o", markersize=4, color=color, label=f"{proposer}, median")
            axes.plot(list(cells), [max(v) for v in cells.values()], ":", color=color, label="… largest")
        paper = {v: ms for v, ms in PAPER.get(sweep, {}).items() if v in {r["value"] for r in chosen}}
        if paper:
            axes.plot(list(paper), list(paper.values()), "x--", color="#888888", label="printed in the paper")
        values = sorted({r["value"] for r in chosen})
        axes.set(xlabel=label, xscale="log", yscale="log")
        shown = [v for i, v in enumerate(values) if i % 2 == 0 or len(values) < 8]
        axes.set_xticks(values, [str(v) if v in shown else "" for v in values])
        axes.minorticks_off()
    panels[0].set_ylabel("CPU ms of one certificate")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    return figure


def report(runs: Sequence[Run]) -> Report:
    """Times beside the paper's, verdicts, costs, starts, split and growth."""
    rows = [{"seed": one.seed, **row} for one in runs for piece in one.pieces.values() for row in piece.rows]
    cells = [r for r in rows if "sweep" in r]
    slow = runs[0].arguments.slow
    figure, ladder = _split([r for r in cells if r["sweep"] == "ladder"])
    tables = {
        sweep: _sweep_table([r for r in cells if r["sweep"] == sweep], sweep, slow)
        for sweep in (*SWEEPS, "untrained", "nx")
        if any(r["sweep"] == sweep for r in cells)
    }
    tables |= {"ladder": ladder, "growth": _growth(cells), "starts": _starts_table([r for r in rows if "study" in r])}
    times = [r["ms"] for r in cells if r["proposer"] == "fast" and r["sweep"] in SWEEPS]
    note = (
        f"Trained cells: {len(times)} certificates of the fast proposer, median {np.median(times):.3g} ms, "
        f"largest {max(times, default=math.nan):.3g} ms. The published form is written anew from its specification: the same "
        "variables, rows and objective, not the same instructions, so its times are not the released code's."
    )
    return Report(figures={"times": _times(cells), "split": figure}, tables=tables, notes=[note])


EXPERIMENT = Experiment(
    name="xmpsc-table1",
    title="X-MPSC, Table 1: CPU time of one certificate, condensed SQP against IPOPT",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            base=(3, 6, 1), horizon=(3, 4), width=(6,), members=(1,), dimensions=(2,), states=2, slow_states=1,
            slow=("repaired",), ladder=("published", "repaired"), untrained=(3,), studies=("pendulum, N = 5",),
            corrections=2, wide=1, data=200, steps=20,
        ),
        "quick": Arguments(),
        "full": Arguments(
            horizon=tuple(PAPER["horizon"]), width=tuple(PAPER["width"]), members=tuple(PAPER["members"]),
            dimensions=(2, 3, 4, 6, 8, 12), states=60, slow_states=8, untrained=(3, 5, 8, 12), corrections=300, wide=30,
        ),
    },
    seeds={"smoke": 1, "quick": 1, "full": 3},
    run=run,
    report=report,
)  # fmt: skip
