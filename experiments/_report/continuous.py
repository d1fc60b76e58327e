"""Figures and tables of `continuous_policies`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from gpsafe import plotting
from gpsafe.policies.parametric import ParametricPolicies
from gpsafe.testbed.experiment import Piece, Report, Run, Table

from .._report.statistics import plus_minus

Arms = dict[str, list[Piece]]


def draw(runs: Sequence[Run], family: ParametricPolicies, *, budget: float) -> Report:
    """One panel of parameter space per arm (first seed), the comparison of the arms, and a table."""
    arms: Arms = {}
    for one in runs:
        for key, piece in one.pieces.items():
            if key.startswith("arm/"):
                arms.setdefault(piece.rows[0]["arm"], []).append(piece)
    truth = runs[0].pieces["truth"]
    a = runs[0].arguments
    shape = (a.truth_goals, a.truth_gains)
    upper = truth.tensors["upper"].numpy()
    safe = upper <= budget
    best = float(truth.tensors["reward"].numpy()[safe].max()) if safe.any() else float("nan")
    undecided = int(((truth.tensors["lower"].numpy() <= budget) & ~safe).sum())
    note = (
        f"Seeds {[r.seed for r in runs]}. Truly safe: {int(safe.sum())} of {safe.size} cells of (g, k) (centres; {undecided} "
        f"undecided by the two sweeps); best reward among them {best:.2f}. Safety rests on the certifier alone; the arms "
        "differ in what they propose. The finite grid has no back-off and asks about every point not yet in S_n."
    )
    return Report(
        figures={
            "parameter-space": _space(arms, truth, shape, family, budget),
            "comparison": _comparison(arms, safe, best),
        },
        tables={"arms": _table(arms, safe, best), "refusals": _refusals(arms)},
        notes=(note,),
    )


def _sum(piece: Piece, key: str, goal: str | None = None) -> float:
    return float(sum(row[key] for row in piece.rows if goal is None or row["goal"] == goal))


def _share(piece: Piece, name: str, safe: np.ndarray) -> float:
    """Share of the truly safe cells that carry the flag `name`."""
    return float((piece.tensors[name].numpy() & safe).sum() / max(1, safe.sum()))


def _reward(piece: Piece) -> float:
    """True reward of the last policy executed."""
    return float(piece.rows[-1]["true_reward"])


def _table(arms: Arms, safe: np.ndarray, best: float) -> Table:
    columns = (
        "proposals by", "|S_n|", "accepted / proposed", "back-offs kept", "true J_r of the last policy (best safe: "
        f"{best:.2f})", "F_n certifies, of the safe region", "inside certified boxes", "largest D-box half-width in g",
        "certifier calls", "search s", "certifier s", "unsafe executed", "steps beyond x = 1", "members not safe",
    )  # fmt: skip
    rows = []
    for name, pieces in arms.items():
        executed = sum(len(p.rows) for p in pieces)
        steps = sum(_sum(p, "steps") for p in pieces)
        bad = sum(row["true_cost_upper"] > 0.2 for p in pieces for row in p.rows)
        outside = sum(float((p.tensors["true_upper"].numpy() > 0.2).sum()) for p in pieces)
        members = sum(p.tensors["theta"].shape[0] for p in pieces)
        rows.append(
            (
                name,
                plus_minus((p.rows[-1]["members"] for p in pieces), 0),
                f"{sum(_sum(p, 'accepted') for p in pieces):.0f} / {sum(_sum(p, 'proposals') for p in pieces):.0f}",
                f"{sum(_sum(p, 'retreats') for p in pieces):.0f}",
                plus_minus(map(_reward, pieces)),
                plus_minus((_share(p, "known", safe) for p in pieces), 3),
                plus_minus((_share(p, "covered", safe) for p in pieces), 3),
                f"{max(float(p.tensors['lipschitz_radius'][:, 0].max()) for p in pieces):.1e}",
                plus_minus((_sum(p, "calls") for p in pieces), 0),
                plus_minus((_sum(p, "search_seconds") for p in pieces), 1),
                plus_minus((_sum(p, "certifier_seconds") for p in pieces), 1),
                f"{bad} of {executed}",
                f"{sum(_sum(p, 'cost') for p in pieces):.0f} of {steps:.0f}",
                f"{outside:.0f} of {members}",
            )
        )
    caption = (
        "Mean ± half-width of the 95 % Student t interval over seeds. *Unsafe executed* and *members not safe* count policies "
        "whose rigorous upper end of the true J_c exceeds d. *Certified boxes* were sought around a bounded number of members "
        "by the robust program with uncertain parameters; *D-boxes* are what the policy distance gives around the same "
        "members. The published method searches without a certifier; no number there compares with these."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def _refusals(arms: Arms) -> Table:
    columns = (
        "proposals by", "feasible by the surrogate", "refused by the certifier", "of them truly unsafe",
        "of them truly safe (price of soundness)", "refused, %",
    )  # fmt: skip
    rows = []
    for name, pieces in arms.items():
        feasible, refused, unsafe, safe = (
            sum(_sum(p, key) for p in pieces)
            for key in ("feasible", "feasible_refused", "feasible_unsafe", "feasible_safe")
        )
        share = 100 * refused / feasible if feasible else float("nan")
        kept = feasible - refused
        rows.append((name, int(feasible), int(refused), int(unsafe), int(safe - kept), f"{share:.0f}"))
    caption = "Had the surrogate decided, the truly unsafe ones would have been open to execution."
    return Table(columns=columns, rows=rows, caption=caption)


def _space(arms: Arms, truth: Piece, shape: tuple[int, int], family: ParametricPolicies, budget: float) -> Figure:
    figure = plotting.figure("screen", 5.3)
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flatten()
    grid = truth.tensors["theta"].reshape(*shape, 2).numpy()
    cost = truth.tensors["upper"].reshape(*shape).numpy()
    marks, last = None, max(row["episode"] for pieces in arms.values() for row in pieces[0].rows)
    for axes, (name, pieces) in zip(panels, arms.items(), strict=False):
        piece = pieces[0]
        inside = np.ma.masked_where(cost > budget, cost)
        axes.pcolormesh(
            grid[..., 0], grid[..., 1], inside, cmap=ListedColormap([plotting.colour("faint")]), shading="nearest"
        )
        known = piece.tensors["known"].reshape(*shape).numpy().astype(float)
        if known.any() and not known.all():
            axes.contour(
                grid[..., 0], grid[..., 1], known, levels=[0.5], colors=[plotting.colour("certified")], linewidths=1.0
            )
        _boxes(axes, piece)
        proposed = piece.tensors["proposed"].numpy()
        refused = (piece.tensors["proposed_feasible"] & ~piece.tensors["proposed_accepted"]).numpy()
        axes.plot(*proposed[refused].T, "x", color=plotting.colour("refused"), markersize=3, alpha=0.6)
        members, entered = piece.tensors["theta"].numpy(), piece.tensors["entered"].numpy()
        marks = axes.scatter(*members.T, c=entered, cmap=plotting.colour_map("order"), s=7, zorder=3, vmin=0, vmax=last)
        executed = piece.tensors["executed"].numpy()
        axes.plot(*executed.T, "o", mfc="none", mec=plotting.colour("ink"), markersize=6, zorder=4)
        axes.set(title=name, xlim=(float(family.box.lower[0]), float(family.box.upper[0])), ylim=(0.9, 6.1))
    for axes in panels[::4]:
        axes.set(ylabel="gain k")
    for axes in panels[4:]:
        axes.set(xlabel="set-point g")
    if marks is not None:
        figure.colorbar(marks, ax=panels, label="episode of entry", shrink=0.6)
    figure.legend(
        handles=[
            Patch(color=plotting.colour("faint"), label="truly safe (J_c ≤ 0.2)"),
            Line2D([], [], color=plotting.colour("certified"), label="certified by the last F_n"),
            Patch(color=plotting.colour("covered"), alpha=0.4, label="certified boxes"),
            Line2D(
                [], [], marker="o", linestyle="", color=plotting.colour("safe"), markersize=4, label="member of S_n"
            ),
            Line2D([], [], marker="o", linestyle="", mfc="none", mec=plotting.colour("ink"), label="executed"),
            Line2D(
                [],
                [],
                marker="x",
                linestyle="",
                color=plotting.colour("refused"),
                markersize=4,
                label="feasible by surrogate, refused",
            ),
        ],
        loc="outside lower center",
        ncols=6,
    )
    return figure


def _boxes(axes: Axes, piece: Piece) -> None:
    for center, radius in zip(piece.tensors["box_center"].numpy(), piece.tensors["box_radius"].numpy(), strict=True):
        if radius.max() > 0:
            low = center - radius
            axes.add_patch(
                Rectangle(
                    (low[0], low[1]),
                    2 * radius[0],
                    2 * radius[1],
                    color=plotting.colour("covered"),
                    alpha=0.25,
                    linewidth=0,
                )
            )


def _comparison(arms: Arms, safe: np.ndarray, best: float) -> Figure:
    figure = plotting.figure("screen", 6.2)
    panels = figure.subplots(2, 2)
    names = list(arms)
    place = np.arange(len(names))
    refused = [[_rate(p) for p in arms[name]] for name in names]
    unsafe = [[_rate(p, "feasible_unsafe") for p in arms[name]] for name in names]
    _bars(panels[0, 0], place - 0.2, refused, "certified", "refused by the certifier")
    _bars(panels[0, 0], place + 0.2, unsafe, "unsafe", "truly unsafe")
    panels[0, 0].set(ylabel="share of surrogate-feasible proposals", title="what the surrogate calls feasible")
    _bars(
        panels[0, 1],
        place - 0.2,
        [[_share(p, "known", safe) for p in arms[n]] for n in names],
        "certified",
        "certified by F_n",
    )
    _bars(
        panels[0, 1], place + 0.2, [[_share(p, "covered", safe) for p in arms[n]] for n in names], "covered",
        "inside certified boxes",
    )  # fmt: skip
    panels[0, 1].set(ylabel="share of the truly safe region", title="certified parameter space at the end")
    for axes in panels[0]:
        axes.set_xticks(place, names, rotation=30, ha="right")
        axes.set_ylim(0, 1.2)
        axes.legend(loc="upper left", ncols=2)
    looks = plotting.looks(arms)
    for name, pieces in arms.items():
        calls = np.mean([np.cumsum([r["calls"] for r in p.rows]) for p in pieces], axis=0)
        reward = np.mean([np.maximum.accumulate([r["true_reward"] for r in p.rows]) for p in pieces], axis=0)
        seconds = np.mean(
            [np.cumsum([r["search_seconds"] + r["certifier_seconds"] for r in p.rows]) for p in pieces], axis=0
        )
        panels[1, 0].plot(calls, reward, label=name, **looks[name].marked)
        panels[1, 1].plot(seconds, reward, label=name, **looks[name].marked)
    for axes, label in ((panels[1, 0], "certifier calls (policies)"), (panels[1, 1], "search + certifier (s)")):
        axes.axhline(best, color=plotting.colour("ink"), linewidth=0.8)
        axes.set(xlabel=label, ylabel="best true reward executed so far", xscale="log")
    for axes in panels[1]:
        plotting.label_ends(axes)
    panels[1, 0].set_title("reward against certifier calls (line: best safe)")
    panels[1, 1].set_title("reward against time")
    return figure


def _rate(piece: Piece, key: str = "feasible_refused") -> float:
    total = _sum(piece, "feasible")
    return _sum(piece, key) / total if total else float("nan")


def _bars(axes: Axes, place: np.ndarray, values: Sequence[Sequence[float]], noun: str, label: str) -> None:
    axes.bar(place, [np.mean(v) for v in values], width=0.36, color=plotting.colour(noun), alpha=0.7, label=label)
    for x, seeds in zip(place, values, strict=True):
        axes.plot([x] * len(seeds), seeds, ".", color=plotting.colour("ink"), markersize=4)
