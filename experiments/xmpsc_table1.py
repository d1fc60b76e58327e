"""Table 1 of the X-MPSC paper: CPU time of one certificate, cold start, one thread, on the Simple Pendulum.

The condensed SQP and IPOPT in several forms (`gpsafe.planning.mpc.reference`) answer the same questions in one process,
and the judge says which plans are certified. Horizon, width and ensemble size vary about N = 5, width 20, M = 5. Building
an IPOPT program is apart. States lie about the edge of the terminal set; a cell has as many that are safe as proposed as
ones that need a correction and ones for which no plan is found, and all proposers answer all of them: ratios are of totals
and of medians over the same states, with bootstrap intervals. Untrained networks, on which the published table was most
likely measured and which make every problem infeasible, have a table of their own. What a known part costs is measured on
states of the problem without.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from gpsafe import _require, plotting
from gpsafe.certify import judge
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table
from gpsafe.tube import EnsembleTube

from ._report import xmpsc
from ._report.statistics import Share, bootstrap_ratio, grouped

SWEEPS = ("horizon", "width", "members")
PAPER = {  # ms, 2.2 GHz i7
    "horizon": dict(zip(range(3, 13), (120, 436, 676, 1314, 2515, 4955, 7595, 7889, 10675, 14925), strict=True)),
    "width": dict(
        zip((10, *range(20, 181, 20)), (410, 613, 2114, 5396, 9759, 26107, 39933, 44261, 59362, 71982), strict=True)
    ),
    "members": dict(zip(range(1, 11), (89, 256, 529, 736, 872, 1324, 1390, 1356, 1690, 1943), strict=True)),
}
MOST = 20  # times as many states are drawn at most
RARE = 100  # the same where only those count that need a correction and have one
STUDIES = {"pendulum, N = 10": (SimplePendulum, 10), "cart-pole, N = 7": (SafeCartPole, 7)}


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
    """States of a cell, in three categories, answered by every proposer."""
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
    wide: int = 12
    """Random starts per state that make the best known cost."""
    pairs: int = 60
    """States on which a known part is timed against none."""
    data: int = 8000
    """Transitions."""
    steps: int = 2000
    """Least number of gradient steps."""

    def __post_init__(self) -> None:
        _require.names("--slow", self.slow, xmpsc.FORMS)
        _require.names("--ladder", self.ladder, xmpsc.FORMS)
        _require.names("--studies", self.studies, STUDIES)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """One cell a piece; networks and states are drawn from the seed."""
    torch.set_num_threads(1)
    work: dict[str, Callable[[], Piece]] = {"ladder/0": partial(_cell, arguments, "ladder", 0, seed)}
    for name in arguments.studies:
        slug = name.replace(", N = ", "-")
        for prior in (False, True):
            key = f"starts/{slug}" + ("-prior" if prior else "")
            work[key] = partial(_starts, arguments, name, prior, seed)
        work[f"prior/{slug}"] = partial(_prior, arguments, name, seed)
    cells = [(sweep, value) for sweep in SWEEPS for value in getattr(arguments, sweep)]
    cells += [("untrained", value) for value in arguments.untrained]
    cells += [("nx", value) for value in arguments.dimensions]
    work |= {f"{sweep}/{value}": partial(_cell, arguments, sweep, value, seed) for sweep, value in cells}
    for i, (key, piece) in enumerate(work.items()):
        record.progress(i, len(work), key)
        record.piece(key, piece)
    record.progress(len(work), len(work), "done")


def _cell(arguments: Arguments, sweep: str, value: int, seed: int) -> Piece:
    generator = torch.Generator().manual_seed(1000 + seed)
    plant, most = SimplePendulum(), MOST * arguments.states
    if sweep == "nx":
        question = xmpsc.chain_problem(value, seed)
        x0 = 1.6 * torch.rand(most, value, dtype=torch.float64, generator=generator) - 0.8
        pairs = list(zip(x0, plant.input_box.sample(most, generator), strict=True))
    else:
        sizes: dict[str, int] = dict(zip(SWEEPS, arguments.base, strict=True))
        if sweep != "ladder":
            sizes["horizon" if sweep == "untrained" else sweep] = value
        steps = 0 if sweep == "untrained" else arguments.steps
        question = xmpsc.problem(plant, sizes["horizon"], sizes["width"], sizes["members"], arguments.data, steps, seed)
        pairs = xmpsc.instances(plant, most, generator)
    cases = xmpsc.balanced(question, pairs[: arguments.states] if sweep == "untrained" else pairs, arguments.states)
    slow = arguments.ladder if sweep == "ladder" else arguments.slow
    rows = xmpsc.compared(question, cases, slow)
    return Piece([{"sweep": sweep, "value": value, **row} for row in rows])


def _starts(arguments: Arguments, name: str, prior: bool, seed: int) -> Piece:
    """States under proposals at their limits, until `corrections` of them need a correction and have one.

    Of the states without a plan as many are kept; where most are so, later ones are passed over by the default search's word.
    """
    plant, states = STUDIES[name]
    made, generator = plant(), torch.Generator().manual_seed(2000 + seed)
    question = xmpsc.problem(made, states, 10, 5, arguments.data, arguments.steps, seed, prior=prior)
    screen, default, rows, needed, without = CondensedSQP(starts=1), CondensedSQP(), [], 0, 0
    label = f"{name}, known part" if prior else name
    for x0, drawn in xmpsc.instances(made, RARE * arguments.corrections, generator):
        learned = torch.where(drawn < 0, -1.0, 1.0).to(drawn)
        first = judge(question, x0, learned, screen.propose(question, x0, learned))
        if first.certified and first.distance <= xmpsc.FREE:
            rows.append({"study": label, "feasible": True, "best": first.distance})
            continue
        if (
            without >= arguments.corrections
            and not judge(question, x0, learned, default.propose(question, x0, learned)).certified
        ):
            continue
        rows.append({"study": label, **xmpsc.corrected(question, x0, learned, arguments.wide, generator)})
        needed += rows[-1]["feasible"] and rows[-1]["best"] > xmpsc.FREE
        without += not rows[-1]["feasible"]
        if needed == arguments.corrections:
            break
    return Piece(rows)


def _prior(arguments: Arguments, name: str, seed: int) -> Piece:
    """The price of a known part: the same questions, once without it and once with all its operations at weight 10⁻³⁰⁰."""
    plant, states = STUDIES[name]
    made, generator = plant(), torch.Generator().manual_seed(3000 + seed)
    plain = xmpsc.problem(made, states, 10, 5, arguments.data, arguments.steps, seed)
    assert isinstance(plain.model, EnsembleTube)
    known = made.prior()
    ensemble = dataclasses.replace(plain.model.ensemble, prior=lambda x, u: x + 1e-300 * known(x, u))
    problems = {"none": plain, "known part": dataclasses.replace(plain, model=EnsembleTube.paper(ensemble))}
    rows = []
    for i, (x0, learned) in enumerate(xmpsc.instances(made, arguments.pairs, generator)):
        row: dict[str, Any] = {"priced": name, "instance": i}
        for kind, question in problems.items():
            row[f"{kind} sweep us"] = xmpsc.sweep_time(question, x0, learned)
            row[f"{kind} ms"] = xmpsc.timed(kind, CondensedSQP(), question, x0, learned, least=0.01)["ms"]
        rows.append(row)
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


def _ratio(rows: Sequence[Mapping[str, Any]], slow: str, statistic: Callable[..., Any], kind: str = "") -> str:
    """Ratio of the totals or medians of the slow one's times and the fast one's over the same states, with its interval."""
    mine = {(r["seed"], r["instance"]): r["ms"] for r in rows if r["proposer"] == "fast"}
    pairs = [r for r in rows if r["proposer"] == slow and kind in ("", r["category"])]
    if not pairs:
        return "–"
    above, below = [r["ms"] for r in pairs], [mine[r["seed"], r["instance"]] for r in pairs]
    found, low, high = bootstrap_ratio(above, below, [r["category"] for r in pairs], statistic)
    return f"{found:.3g} [{low:.3g}, {high:.3g}]"


def _kinds(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many states of each category."""
    mine = [r["category"] for r in rows if r["proposer"] == "fast"]
    return " + ".join(str(mine.count(kind)) for kind in xmpsc.CATEGORIES)


def _sweep_table(rows: Sequence[Mapping[str, Any]], sweep: str, slow: Sequence[str]) -> Table:
    table = []
    for (value,), cell in grouped(rows, "value").items():
        times = {name: [r["ms"] for r in cell if r["proposer"] == name] for name in ("fast", *slow)}
        line = [value, PAPER.get(sweep, {}).get(value, "–"), _kinds(cell), _median_max(times["fast"])]
        for name in slow:
            line += [_median_max(times[name]), _ratio(cell, name, np.sum), _ratio(cell, name, np.median)]
            line += _agreement(cell, name)
        table.append(line)
    columns = [sweep, "printed ms", "states: as proposed + corrected + no plan", "fast ms (median / max)"]
    for name in slow:
        columns += [f"{name} ms (median / max)", f"{name} ÷ fast, totals", f"{name} ÷ fast, medians", "same verdict"]
        columns += [f"{name} alone certifies", "largest excess cost of fast"]
    return Table(columns=columns, rows=table, caption=CAPTION)


CAPTION = (
    "CPU ms of this machine, one thread, cold start, without building programs; the printed ones are of a 2.2 GHz i7. "
    "*paper*: IPOPT on the paper's equation (8); *published*: the released code's form; *repaired*: all repairs at once; one "
    "start each. Every proposer answers every state of its cell; ratios of totals and of medians over them, with 95 % "
    "bootstrap intervals that draw states anew within their category: given the networks, of which a seed has one set a cell. "
    f"Verdicts are the judge's, at a tolerance of {xmpsc.TOLERANCE:g} per row."
)


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
    figure = plotting.figure("double", 3.4)
    axes = figure.subplots()
    left = np.zeros(len(groups))
    looks = plotting.looks(labels)
    for i, label in enumerate(labels):
        width = np.array([share[i] for share in shares.values()])
        axes.barh(list(groups), width, left=left, color=looks[label].colour, label=label)
        left += width
    axes.set(xlabel="share of CPU time, default cell")
    plotting.legend_beside(axes)
    table = []
    for name, g in groups.items():
        spent = _median_max([r["ms"] for r in g])
        build = f"{np.median([r['build'] for r in g]):.3g}"
        believed = f"{sum(r['believed'] for r in g)}/{len(g)}"
        certified = f"{sum(r['certified'] for r in g)}/{len(g)}"
        ratios = [_ratio(rows, name, np.sum), _ratio(rows, name, np.median)]
        ratios += [_ratio(rows, name, np.sum, kind) for kind in xmpsc.CATEGORIES]
        table.append((name, build, spent, *ratios, certified, believed, *(f"{share:.2f}" for share in shares[name])))
    columns = ("proposer", "build ms", "ms (median / max)", "÷ fast, totals", "÷ fast, medians")
    columns += tuple(f"÷ fast, totals, {kind}" for kind in xmpsc.CATEGORIES)
    columns += ("certified", "believes so", *labels)
    caption = f"States: {_kinds(rows)} ({' + '.join(xmpsc.CATEGORIES)}). " + CAPTION
    return figure, Table(columns=columns, rows=table, caption=caption)


def _quantiles(values: Sequence[float]) -> str:
    return f"{np.median(values):.3g} / {np.quantile(values, 0.95):.3g} / {max(values):.3g}" if values else "–"


def _starts_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = []
    for (study,), group in grouped(rows, "study").items():
        needed = [r for r in group if r["feasible"] and r["best"] > xmpsc.FREE]
        hopeless = [r for r in group if not r["feasible"]]
        line = [study, len(group), len(needed)]
        for name in ("one", "default"):
            line += [str(Share.of(r[f"{name} best"] for r in needed)) if needed else "–"]
            line += [_quantiles([r[f"{name} ms"] for r in needed])]
        table.append([*line, len(hopeless), _quantiles([r["default ms"] for r in hopeless])])
    columns = ["problem", "states", "need a correction and have one"]
    for name in ("one start", "default"):
        columns += [f"{name}: at the best known cost", f"{name}: ms (median / 95 % / max)"]
    columns += ["no plan known", "no plan: ms of the default (median / 95 % / max)"]
    caption = (
        "Best known: the least certified cost of the default, all its starts to the end, the repaired reference "
        "and random starts; within 10⁻⁶. Shares with 95 % Clopper–Pearson intervals given the networks "
        "(states of a seed share them); CPU ms, one thread."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _prior_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = []
    for (name,), group in grouped(rows, "priced").items():
        line = [name, len(group)]
        for unit in ("sweep us", "ms"):
            ratios = [r[f"known part {unit}"] / r[f"none {unit}"] for r in group]
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            line += [f"{np.median([r[f'none {unit}'] for r in group]):.3g}", f"{middle:.3g} [{low:.3g}, {high:.3g}]"]
        table.append(line)
    columns = (
        "problem",
        "states",
        "sweep without, µs",
        "sweep, ratio",
        "certificate without, ms",
        "certificate, ratio",
    )
    caption = (
        "What the published known part costs: medians, and medians of ratios on the same states with quartiles. "
        "Both answer the same questions: the known part runs with weight 10⁻³⁰⁰."
    )
    return Table(columns=columns, rows=table, caption=caption)


def _times(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = plotting.figure("screen", 2.9)
    panels = figure.subplots(1, 4, sharey=True)
    names = {"horizon": "N, states", "width": "width", "members": "M, members", "nx": "nx, random networks"}
    for axes, (sweep, label) in zip(panels, names.items(), strict=True):
        chosen = [r for r in rows if r["sweep"] == sweep]
        groups = {proposer: group for (proposer,), group in grouped(chosen, "proposer").items()}
        looks = plotting.looks(groups)
        for proposer, group in groups.items():
            cells = {value: [r["ms"] for r in g] for (value,), g in grouped(group, "value").items()}
            middle = [float(np.median(v)) for v in cells.values()]
            axes.plot(
                list(cells),
                middle,
                markersize=4,
                color=looks[proposer].colour,
                marker=looks[proposer].marker,
                label=f"{proposer}, median",
            )
            axes.plot(
                list(cells), [max(v) for v in cells.values()], ":", color=looks[proposer].colour, label="… largest"
            )
        paper = {v: ms for v, ms in PAPER.get(sweep, {}).items() if v in {r["value"] for r in chosen}}
        if paper:
            axes.plot(
                list(paper), list(paper.values()), label="printed in the paper", **plotting.look("published").marked
            )
        values = sorted({r["value"] for r in chosen})
        axes.set(xlabel=label, xscale="log", yscale="log")
        shown = [v for i, v in enumerate(values) if i % 2 == 0 or len(values) < 8]
        axes.set_xticks(values, [str(v) if v in shown else "" for v in values])
        axes.minorticks_off()
    panels[0].set_ylabel("CPU ms of one certificate")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
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
    tables["prior"] = _prior_table([r for r in rows if "priced" in r])
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
            base=(3, 6, 1), horizon=(3,), width=(6,), members=(1,), dimensions=(2,), states=3, slow=("repaired",),
            ladder=("published", "repaired"), untrained=(3,), studies=("pendulum, N = 10",), corrections=1, wide=1, pairs=1,
            data=200, steps=20,
        ),
        "quick": Arguments(
            horizon=(3, 8), width=(60,), members=(10,), dimensions=(4,), states=12, slow=("repaired",),
            ladder=("published", "paper", "repaired"), untrained=(), corrections=12, wide=6, pairs=50, steps=1000,
        ),
        "full": Arguments(
            horizon=tuple(PAPER["horizon"]), width=tuple(PAPER["width"]), members=tuple(PAPER["members"]),
            dimensions=(2, 3, 4, 6, 8, 12), states=30, untrained=(3, 5, 8, 12), corrections=300, wide=30, pairs=200,
        ),
    },
    seeds={"smoke": 1, "quick": 1, "full": 3},
    run=run,
    report=report,
)  # fmt: skip
