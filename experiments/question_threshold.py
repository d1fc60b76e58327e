"""Open question 2 of the paper: how does the uncertainty threshold relate to the probability of a violation?

The threshold is the multiple β of the posterior deviation that a policy must survive. Plants on a line, exactly in the
RKHS, are explored with the theorem's β, with multiples of it, with constants, and with several δ; for each run we
know whether f* left F_n, whether an unsafe policy was certified, and whether one was executed. Two kinds of plants:
*typical* ones (random functions) and *dormant* ones (invisible from the safe side, then as large as the norm allows).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats

from gpsafe import plotting
from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import ConfidenceBound, Constant, Mixture
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report.statistics import Share, draw_shares, grouped

CLAIMED = 0.1
CAPTION = (
    "Shares with 95 % Clopper–Pearson intervals. A run stops when F_n comes out empty, which spares the smallest β some of "
    "the unsafe episodes that it certified. Whether f* left F_n is looked up at 945 points after all episodes (F_n is nested)."
)
FAMILIES = {"typical": line.typical, "dormant": line.dormant}


@dataclass(frozen=True)
class Arguments:
    """Sizes; the settings compared are fixed in the file."""

    plants: int = 12
    """Random plants of each kind, per seed; each is explored with every setting."""
    episodes: int = 8
    """Episodes of exploration."""
    cells: int = 260
    """Cells of the robust program."""


@dataclass(frozen=True, kw_only=True)
class Scaled(Mixture):
    """scale · β of the mixture bound: no theorem unless scale ≥ 1."""

    scale: float = 1.0

    name = "scaled mixture"
    sound = False

    def formula(self, info_gain, count, regularizer, *, norm, noise, log_inv_delta):
        """scale · β."""
        beta = Mixture.formula(self, info_gain, count, regularizer, norm=norm, noise=noise, log_inv_delta=log_inv_delta)
        return self.scale * beta


@dataclass(frozen=True, slots=True)
class Setting:
    """One choice of β."""

    kind: Literal["scale", "constant", "delta"]
    value: float

    def bound(self, norm: tuple[float, ...], noise: float) -> ConfidenceBound:
        """The bound, with true norm and noise level."""
        if self.kind == "constant":
            return Constant(rkhs_norm=norm, subgaussian=noise, delta=CLAIMED, value=self.value)
        if self.kind == "delta":
            return Mixture(rkhs_norm=norm, subgaussian=noise, delta=self.value)
        return Scaled(rkhs_norm=norm, subgaussian=noise, delta=CLAIMED, scale=self.value)

    @property
    def claimed(self) -> float:
        """What its user believes the failure probability to be (nan: nothing is claimed).

        The theorem's δ; for a constant the Gaussian tail at one point, which is where such constants come from.
        """
        if self.kind == "constant":
            return float(2 * stats.norm.sf(self.value))
        if self.kind == "delta":
            return self.value
        return CLAIMED if self.value == 1.0 else float("nan")


SETTINGS = (
    *(Setting("scale", value) for value in (0.1, 0.25, 0.5, 0.75, 1.0)),
    *(Setting("constant", value) for value in (1.0, 2.0, 3.0)),
    *(Setting("delta", value) for value in (0.5, 0.01)),
)


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Every plant with every setting; plants are drawn from the seed, noise is common to the settings."""
    total = len(FAMILIES) * arguments.plants
    for i, family in enumerate(FAMILIES):
        for k in range(arguments.plants):
            record.progress(i * arguments.plants + k, total, family)
            record.piece(
                f"{family}/plant-{k:03d}", lambda f=family, k=k: Piece(list(_plant(arguments, f, seed, k)), {})
            )
    record.progress(total, total, "done")


def _plant(arguments: Arguments, family: str, seed: int, number: int) -> Iterator[dict[str, Any]]:
    start = 100_003 * seed + number
    residual = FAMILIES[family](torch.Generator().manual_seed(start))
    system = line.plant(residual)
    policies = line.set_points(torch.linspace(0.0, 1.15, 24))
    truth = line.truth(system, policies, cells=4 * arguments.cells)
    norm = tuple(system.rkhs_norm.tolist())
    for setting in SETTINGS:
        bound = setting.bound(norm, line.NOISE)
        program = line.program(system, arguments.cells)
        algorithm = ActSafe(
            system,
            policies,
            [0, 1, 2, 3],
            line.model(system),
            bound,
            program,
            episodes=arguments.episodes,
            unchecked=not bound.sound,
        )
        found = algorithm.run(torch.Generator().manual_seed(start + 1))
        row = line.outcome(algorithm, truth, found, residual)
        yield {"family": family, "plant": start, "kind": setting.kind, "value": setting.value, **row}


def report(runs: Sequence[Run]) -> Report:
    """Probabilities with exact intervals against β, and the reliability of the claimed levels."""
    rows = [row for one in runs for key, piece in sorted(one.pieces.items()) for row in piece.rows]
    groups = grouped(rows, "family", "kind", "value")
    columns = (
        "plants", "β", "claimed δ", "runs", "f* left F_n", "unsafe policy certified", "unsafe policy executed",
        "F_n found empty", "mean safe |S_n| / |S*|",
    )  # fmt: skip
    table = [
        (
            family,
            {"scale": f"{value:g} × mixture", "constant": f"{value:g}", "delta": f"mixture, δ = {value:g}"}[kind],
            "–" if np.isnan(Setting(kind, value).claimed) else f"{Setting(kind, value).claimed:.3f}",
            len(group),
            str(Share.of(r["escaped"] for r in group)),
            str(Share.of(r["unsafe_members"] for r in group)),
            str(Share.of(r["unsafe_executed"] for r in group)),
            str(Share.of(r["falsified"] for r in group)),
            f"{np.mean([r['safe_members'] / r['true_safe'] for r in group]):.3f}",
        )
        for (family, kind, value), group in groups.items()
    ]
    figure = plotting.figure("screen", 6.2)
    panels = figure.subplots(2, 2)
    for axes, family in zip(panels[0], FAMILIES, strict=True):
        _chain(axes, family, groups)
    _needed(panels[1, 0], groups)
    _reliability(panels[1, 1], groups)
    return Report(
        figures={"threshold": figure}, tables={"threshold": Table(columns=columns, rows=table, caption=CAPTION)}
    )


EVENTS = (
    ("escaped", "f* left F_n", "escaped"),
    ("unsafe_members", "unsafe policy certified", "unsafe certified"),
    ("unsafe_executed", "unsafe policy executed", "unsafe executed"),
)


def _chain(axes: Axes, family: str, groups: dict[tuple[Any, ...], list[Any]]) -> None:
    scales = [s.value for s in SETTINGS if s.kind == "scale"]
    for key, label, noun in EVENTS:
        shares = [Share.of(r[key] for r in groups[family, "scale", value]) for value in scales]
        draw_shares(axes, scales, shares, label=label, noun=noun)
    axes.axhline(CLAIMED, color=plotting.colour("ink"), linestyle="--", linewidth=0.8, label=f"claimed δ = {CLAIMED}")
    axes.set(
        xlabel="multiple of the theorem's β", ylabel="share of runs", xscale="log", ylim=(-0.03, 1.03),
        title=f"{family} plants",
    )  # fmt: skip
    axes.set_xticks(scales, [f"{v:g}" for v in scales])
    axes.minorticks_off()
    plotting.label_ends(axes)


def _needed(axes: Axes, groups: dict[tuple[Any, ...], list[Any]]) -> None:
    for family, look in plotting.looks(FAMILIES).items():
        needed = np.sort([r["needed_scale"] for r in groups[family, "scale", 1.0]])
        share = 1.0 - np.arange(1, len(needed) + 1) / len(needed)
        axes.step(needed, share, where="post", **look.line, label=f"{family}, n = {len(needed)}")
    axes.axvline(1.0, color=plotting.colour("ink"), linewidth=0.8)
    axes.axhline(CLAIMED, color=plotting.colour("ink"), linestyle="--", linewidth=0.8, label="claimed δ")
    axes.set(
        xlabel="least multiple of β that keeps f* in all F_n",
        ylabel="share of runs that need more",
        title="how much of the theorem's β is used",
    )
    plotting.legend_beside(axes)


def _reliability(axes: Axes, groups: dict[tuple[Any, ...], list[Any]]) -> None:
    for kind, label, noun in (
        ("constant", "constants 3, 2, 1", "paper"),
        ("delta", "mixture bound", "sound"),
    ):
        chosen = sorted((s for s in SETTINGS if s.kind == kind), key=lambda s: s.claimed)
        if kind == "delta":
            chosen = sorted([*chosen, Setting("scale", 1.0)], key=lambda s: s.claimed)
        for key, fill, line_style in (("escaped", "f* left F_n", "-"), ("unsafe_members", "unsafe certified", ":")):
            shares = [Share.of(r[key] for family in FAMILIES for r in groups[family, s.kind, s.value]) for s in chosen]
            draw_shares(
                axes, [s.claimed for s in chosen], shares, label=f"{label}: {fill}",
                noun=replace(plotting.look(noun), dash=line_style),
            )  # fmt: skip
    ends = np.array([0.002, 1.0])
    axes.plot(ends, ends, color=plotting.colour("ink"), linewidth=0.8, label="claim = truth")
    axes.set(
        xlabel="claimed: δ, or the Gaussian tail of a constant", ylabel="measured, both kinds of plants", xscale="log",
        yscale="symlog", title="reliability of the claimed level",
    )  # fmt: skip
    axes.set_yscale("symlog", linthresh=0.002)
    axes.set_ylim(-0.0005, 2.0)
    plotting.legend_beside(axes)


EXPERIMENT = Experiment(
    name="question-threshold",
    title="Q2: uncertainty threshold against the probability of a violation",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(plants=1, episodes=1, cells=40),
        "quick": Arguments(),
        "full": Arguments(plants=100, episodes=12, cells=520),
    },
    seeds={"smoke": 1, "quick": 10, "full": 10},
    run=run,
    report=report,
)
