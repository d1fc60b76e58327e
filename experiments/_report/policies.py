"""Figures and tables of `pendulum_policies.py`, from stored pieces only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.testbed.experiment import Piece, Report, Run, Table

from .._report.policies_family import NAMES, Family, family
from .._report.policies_truth import BOX, VISITED

BUDGET = 0.2
LIMIT = 1.2  # rad


def report(runs: Sequence[Run]) -> Report:
    """|S_n| against |S*|, S_n in policy space, the states its members reach; sizes, safety, controls."""
    first = runs[0]
    members = family(targets=first.arguments.targets, gains=first.arguments.gains)
    truth = next((_truth(run) for run in runs if "truth" in run.pieces), None)
    figures = {"growth": _growth(runs, truth), "policies": _policy_space(first, members, truth)}
    notes = [
        "θ = 0 hangs; θ ≤ 1.2 rad is safe; T = 30 steps of 0.05 s; d = 0.2; the plant is an RKHS twin with known B. S_0, set "
        "points g ≤ −0.35 rad with one gain, is assumed safe; the truth proves it.",
        "Guaranteed with probability 1 − δ = 0.9, for an exact kernel and B, Gaussian noise of known variance and a safe S_0: "
        "every member of every S_n has J_c ≤ d. Which policies are evaluated, and in which window, does not bear on it.",
        "The published experiments have no policy class, so there is no published number. The project's own reference (its "
        "settings; same pendulum, one family of 45 set points, 240² cells): 12, 16, 19, 21, 24, 25 of 28 after 1 … 6 episodes.",
    ]
    if truth is None:
        notes.append("The truth is stored with seed 0, which is not among these runs.")
    else:
        figures["states"] = _states(first, truth)
    tables = {"episodes": _episodes(runs), "safety": _safety(runs, members, truth), "controls": _controls(runs)}
    if any("lipschitz" in run.pieces for run in runs):
        tables["lipschitz"] = _lipschitz(runs)
    if any("loss" in run.pieces for run in runs):
        tables["loss"] = _loss(runs)
    return Report(figures=figures, tables=tables, notes=notes)


def _truth(run: Run) -> Piece:
    """The truth by windows, with the policies that were swept again on the whole grid put in."""
    first = run.pieces["truth"]
    if "truth-undecided" not in run.pieces:
        return first
    again = run.pieces["truth-undecided"].tensors
    lower, upper = first.tensors["lower"].clone(), first.tensors["upper"].clone()
    lower[again["index"]], upper[again["index"]] = again["lower"], again["upper"]
    return Piece([], {**first.tensors, "lower": lower, "upper": upper})


def _sides(truth: Piece) -> tuple[Tensor, Tensor]:
    """Proved safe and proved unsafe, (P,) booleans each."""
    return truth.tensors["upper"] <= BUDGET, truth.tensors["lower"] > BUDGET


def _sizes(run: Run) -> list[int]:
    entered = run.pieces["sound"].tensors["entered"]
    last = len(run.pieces["sound"].rows)
    return [int(((entered >= 0) & (entered <= n)).sum()) for n in range(last + 1)]


def _growth(runs: Sequence[Run], truth: Piece | None) -> Figure:
    figure = plotting.figure("double", 4.4)
    axes = figure.subplots()
    for run in runs:
        axes.plot(
            _sizes(run),
            marker="o",
            color=plotting.colour("certified"),
            alpha=0.7,
            label="$|S_n|$, one line a seed" if run is runs[0] else None,
        )
    if truth is not None:
        safe, unsafe = _sides(truth)
        low, high = int(safe.sum()), int((~unsafe).sum())
        axes.axhspan(low, high, color=plotting.colour("safe"), alpha=0.25, label=f"$|S^*|$: between {low} and {high}")
        axes.axhline(len(safe), color=plotting.colour("ink"), linestyle=":", label=f"all {len(safe)} policies")
    axes.set(xlabel="episode $n$ (30 steps each)", ylabel="policies", ylim=(0, None))
    axes.set_xticks(range(len(_sizes(runs[0]))))
    axes.legend(loc="lower right")
    return figure


def _policy_space(run: Run, members: Family, truth: Piece | None) -> Figure:
    """One panel a sub-family: target against the other parameters, coloured by the episode of entry."""
    entered = run.pieces["sound"].tensors["entered"].numpy()
    last = len(run.pieces["sound"].rows)
    figure = plotting.figure("screen", 4.8)
    panels = figure.subplots(1, 4)
    shown, handles = None, ([], [])
    for k, axes in enumerate(panels):
        own = members.kind.numpy() == k
        other = np.stack([v.numpy() for v in (members.stiffness, members.damping, members.pump, members.push)], -1)[own]
        levels, row = np.unique(other, axis=0, return_inverse=True)
        x, when = members.target.numpy()[own], entered[own]
        row = row.reshape(-1)
        outside = when < 0
        axes.scatter(x[outside], row[outside], s=7, color=plotting.colour("faint"), label="not in $S_n$")
        inside = ~outside
        shown = axes.scatter(
            x[inside], row[inside], s=14, c=when[inside], cmap=plotting.colour_map("order"), vmin=0, vmax=last
        )
        if truth is not None:
            safe, unsafe = (side.numpy()[own] for side in _sides(truth))
            axes.scatter(
                x[unsafe],
                row[unsafe],
                s=12,
                marker="x",
                linewidth=0.6,
                color=plotting.colour("unsafe"),
                label="proved unsafe",
            )
            missing = safe & outside
            axes.scatter(
                x[missing],
                row[missing],
                s=12,
                marker="+",
                linewidth=0.7,
                color=plotting.colour("unsafe certified"),
                label="proved safe, not certified",
            )
        axes.axvline(LIMIT, color=plotting.colour("ink"), linestyle="--", linewidth=0.7)
        axes.set(title=NAMES[k], xlabel="target $g$ (rad)" if k < 3 else "level $E^*$, as an angle (rad)")
        axes.set_yticks(range(len(levels)), [_label(k, level) for level in levels])
        handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    if shown is not None:
        figure.colorbar(shown, ax=panels, label="episode at which the policy entered $S_n$", shrink=0.8)
    return figure


def _label(kind: int, level: np.ndarray) -> str:
    stiffness, damping, pump, push = level
    if kind < 2:
        return f"k {stiffness:g}, d {damping:g}"
    return f"k {stiffness:g}, d {damping:g}, p {pump:g}" if kind == 2 else f"p {pump:g}, push {push:g}"


def _reached(visits: Tensor, chosen: Tensor) -> Tensor:
    """Largest share of paths of one chosen policy that enter each cell, on the (θ, ω) grid."""
    top = visits[chosen].amax(0).double() / 255 if bool(chosen.any()) else torch.zeros(VISITED.num)
    return top.reshape(VISITED.cells)


def _states(run: Run, truth: Piece) -> Figure:
    """The states that members reach with probability, S_0 … S_n and S*."""
    entered, visits = run.pieces["sound"].tensors["entered"], truth.tensors["visits"]
    last = len(run.pieces["sound"].rows)
    numbers = sorted({0, 2, min(3, last), last} & set(range(last + 1)))
    sets = [(f"$S_{{{n}}}$", (entered >= 0) & (entered <= n)) for n in numbers] + [("proved safe", _sides(truth)[0])]
    figure = Figure(figsize=(3.1 * len(sets), 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(sets), sharey=True))
    image = None
    for axes, (name, chosen) in zip(panels, sets, strict=True):
        share = _reached(visits, chosen)
        limits = (float(BOX.lower[0]), float(BOX.upper[0]), float(BOX.lower[1]), float(BOX.upper[1]))
        image = axes.imshow(
            share.T.numpy(), origin="lower", extent=limits, aspect="auto", cmap=plotting.colour_map(), vmin=0, vmax=1
        )
        axes.axvline(LIMIT, color=plotting.colour("limit"), linestyle="--", linewidth=1)
        cells = int((share >= 0.5).sum())
        axes.set(title=f"{name}: {int(chosen.sum())} policies, {cells} cells", xlabel="θ (rad, 0 hangs)")
    panels[0].set_ylabel("ω (rad/s)")
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="largest share of one member's\npaths that enter the cell")
    return figure


def _episodes(runs: Sequence[Run]) -> Table:
    columns = ("seed", "episode", "|S_n|", *NAMES, "executed", "exploration value", "β", "unsafe states of 30", "max θ (rad)",
               "screened out", "kept", "evaluated", "on the finer grid", "exploration values refreshed", "seconds")  # fmt: skip
    rows = []
    for run in runs:
        for row in run.pieces["sound"].rows:
            by_kind = [row[f"size_{k}"] for k in range(4)]
            rows.append(
                (run.seed, row["episode"], row["size"], *by_kind, NAMES[row["kind"]], round(row["exploration"], 3),
                 round(row["beta"], 2), int(row["cost"]), round(row["max_angle"], 3), row["screened"], row["kept"],
                 row["evaluated"], row.get("refined", 0), row["refreshed"], round(row["seconds"], 1))
            )  # fmt: skip
    caption = (
        "Kept: an old UCB was still in use, because little had been learnt along the policy's paths. "
        "Seconds: of the whole run, divided by its episodes, on a shared machine."
    )
    return Table(columns, rows, caption)


def _safety(runs: Sequence[Run], members: Family, truth: Piece | None) -> Table:
    columns = ("seed", "sub-family", "members", "S*, at least", "S*, at most", "S_0", "S_n", "certified, proved unsafe",
               "certified, left open",
               "certified, estimate above d", "cells reached",
               "cells reached by those proved safe", "best J_r in S_n", "best J_r, proved safe")  # fmt: skip
    if truth is None:
        return Table(columns, [])
    safe, unsafe = _sides(truth)
    visits, estimate, reward = (truth.tensors[name] for name in ("visits", "estimate", "reward"))
    rows = []
    for run in runs:
        entered = run.pieces["sound"].tensors["entered"]
        for k in (*range(4), None):
            own = torch.ones_like(safe) if k is None else members.kind == k
            inside = own & (entered >= 0)
            cells = [int((_reached(visits, chosen) >= 0.5).sum()) for chosen in (inside, own & safe)]
            best = [
                round(float(reward[chosen].max()), 2) if bool(chosen.any()) else None for chosen in (inside, own & safe)
            ]
            rows.append(
                (run.seed, "all" if k is None else NAMES[k], int(own.sum()), int((own & safe).sum()),
                 int((own & ~unsafe).sum()), int((own & (entered == 0)).sum()), int(inside.sum()),
                 int((inside & unsafe).sum()), int((inside & ~safe & ~unsafe).sum()),
                 int((inside & (estimate > BUDGET)).sum()), *cells, *best)
            )  # fmt: skip
    caption = (
        "S* by sweeps with the true f: policies with an upper side ≤ d are proved safe, those with a lower side > d "
        "proved unsafe; the program's rounding leaves the rest open. A cell (0.1 rad × 0.4 rad/s) is reached when one "
        "member enters it in at least half of 64 paths."
    )
    return Table(columns, rows, caption)


def _loss(runs: Sequence[Run]) -> Table:
    rows = [
        (run.seed, row["band"], row["grid"], "no" if row["no slack"] else "yes", row["certified"], row["of"])
        for run in runs if "loss" in run.pieces for row in run.pieces["loss"].rows
    ]  # fmt: skip
    caption = (
        "Of every few-th policy proved safe, how many the newest posterior of the run certifies, in a window around true "
        "paths. Without slack in the cells is no bound: it says what the slack costs. With the true f all are certified."
    )
    return Table(("seed", "band", "grid", "slack in cells", "certified", "of"), rows, caption)


def _controls(runs: Sequence[Run]) -> Table:
    columns = (
        "seed",
        "control",
        "policies",
        "certified",
        "truly unsafe among them",
        "largest J_c",
        "cost of the episode",
    )
    rows = []
    for run in runs:
        for name, text in (("control/width", "zero width"), ("control/push", "zero width, pushed plant")):
            if name not in run.pieces:
                continue
            row = run.pieces[name].rows[0]
            rows.append(
                (
                    run.seed,
                    text,
                    row["policies"],
                    row["certified"],
                    row["unsafe"],
                    round(row["worst"], 2),
                    row["executed_cost"],
                )
            )
    return Table(
        columns,
        rows,
        "Here the prior mean is taken for the truth. Truth by Monte Carlo (200 paths, three standard errors).",
    )


def _lipschitz(runs: Sequence[Run]) -> Table:
    rows = next(run.pieces["lipschitz"].rows for run in runs if "lipschitz" in run.pieces)
    caption = (
        f"D between two policies whose input differs by a constant, against d = {BUDGET}. The smallest D between two members "
        f"of the class is {rows[0]['smallest']:.3g}: with noise of 0.01 rad/s and a motor of 15 rad/s² two chains part almost "
        "at once. The Lipschitz rule says nothing here and was left out of the run."
    )
    return Table(("change of the input", "D"), [(row["change"], round(row["distance"], 4)) for row in rows], caption)
