"""Tables and figures of the pendulum explorations, from stored pieces only, beside the published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.systems.base import System
from gpsafe.systems.pendulum import wrap_angle
from gpsafe.testbed.experiment import Animation, Piece, Report, Run, Table
from gpsafe.verdict import clopper_pearson

from .._report import pendulum as common
from .._report.statistics import mean_interval

LIMIT, UPRIGHT = 6.0, 0.5
SOURCES = ("plan", "stored", "fallback", "initial")


def explorers(runs: Sequence[Run]) -> list[str]:
    """Names in the order of the runs."""
    names: dict[str, None] = {}
    for run in runs:
        names |= {key.split("/")[0]: None for key in run.pieces if "/episode-" in key}
    return list(names)


def episodes(run: Run, explorer: str) -> list[Piece]:
    """Pieces of the exploration in order; empty if this seed did not run the explorer."""
    return [piece for key, piece in run.pieces.items() if key.startswith(f"{explorer}/episode-")]


def interval(values: Sequence[float], digits: int = 2) -> str:
    """'mean ± half-width' of the 95 % Student t interval."""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def rate(count: int, total: int) -> str:
    """k of n with its 95 % Clopper–Pearson upper end."""
    return f"{count} of {total} (≤ {100 * clopper_pearson(count, total, 0.95)[1]:.2f} %)"


def returns(runs: Sequence[Run], explorer: str, task: str, column: str) -> list[float]:
    """Of the zero-shot tasks, one value a seed."""
    found = [row for run in runs for row in run.pieces.get(f"{explorer}/tasks", Piece()).rows if row["task"] == task]
    return [float(row[column]) for row in found]


def upright(runs: Sequence[Run], explorer: str) -> list[bool]:
    """Whether |θ| < 0.5 rad in all of the last ten states of the swing-up, one value a seed."""
    found = [run.pieces.get(f"{explorer}/tasks", Piece()).tensors.get("swing-up") for run in runs]
    return [bool((wrap_angle(states[-10:, 0]).abs() < UPRIGHT).all()) for states in found if states is not None]


def task_cells(runs: Sequence[Run], explorer: str) -> list[str]:
    """Return of swing-up and keep-down, share of seeds that stay upright, largest speed in the tasks."""
    up, down = (returns(runs, explorer, task, "return") for task in ("swing-up", "keep-down"))
    speeds = [v for task in ("swing-up", "keep-down") for v in returns(runs, explorer, task, "max_speed")]
    if not up:
        return ["–"] * 4
    held = upright(runs, explorer)
    return [interval(up, 1), f"{sum(held)} of {len(held)}", interval(down, 2), f"{max(speeds):.4g}"]


def summary(runs: Sequence[Run]) -> Table:
    """One row per explorer, then the published runs."""
    rows = []
    for name in explorers(runs):
        mine = [run for run in runs if episodes(run, name)]
        found = [episodes(run, name) for run in mine]
        flat = [piece.rows[0] for pieces in found for piece in pieces]
        bad, total = (sum(row[key] for row in flat) for key in ("violations", "steps"))
        covered = [common.coverage([p.tensors["states"] for p in pieces])[-1] for pieces in found]
        seconds = [(row["planning_s"] + row["verifying_s"]) / row["steps"] for row in flat if row["planning_s"] > 0]
        sources = ", ".join(
            f"{100 * share:.1f} % {s}" for s in SOURCES if (share := sum(r.get(f"from_{s}", 0) for r in flat) / total)
        )
        rows.append(
            [
                name,
                len(mine),
                rate(bad, total),
                sum(any(p.rows[0]["violations"] for p in pieces) for pieces in found),
                f"{max(row['max_speed'] for row in flat):.5g}",
                interval(covered, 1),
                *task_cells(mine, name),
                sources,
                f"{np.mean(seconds):.2f}" if seconds else "–",
            ]
        )
    if returns(runs, "truth", "swing-up", "return"):
        rows.append(
            [
                "planning with the true plant, |ω| ≤ 6 priced",
                len(runs),
                "–",
                "–",
                "–",
                "–",
                *task_cells(runs, "truth"),
                "–",
                "–",
            ]
        )
    safe, free = common.PUBLISHED_SAFE_VIOLATIONS, common.PUBLISHED_FREE_VIOLATIONS
    none = ["–"] * 6
    rows.append(["published, safe", 1, rate(*safe), 1, "6.105", str(common.PUBLISHED_SAFE_CELLS), *none])
    rows.append(["published, unsafe", 1, rate(*free), 1, "–", str(common.PUBLISHED_FREE_CELLS), *none])
    columns = (
        "explorer",
        "seeds",
        "states beyond 6 rad/s (95 % upper end)",
        "seeds with a violation",
        "max speed, rad/s",
        "cells visited of 320",
        "swing-up return",
        "held upright",
        "keep-down return",
        "max speed in tasks, rad/s",
        "who chose the inputs",
        "s per step",
    )
    one = episodes(runs[0], explorers(runs)[0])
    caption = (
        "± is the half-width of the 95 % Student t interval over seeds. Cells: 20 × 16 over θ ∈ [−π, π), ω ∈ [−8, 8] rad/s "
        "(18° × 1 rad/s); 240 lie in |ω| ≤ 6, and about 212 can be reached from hanging in 50 steps without ever leaving it "
        f"(value iteration on 400 × 481 nodes). Episodes: {len(one)} of {one[0].rows[0]['steps']} steps. The upper end treats "
        "states as independent, which they are not. Held upright: |θ| < 0.5 rad in the last ten states (the first threshold, "
        "0.2 rad after the last step, was dropped: planning with the true plant hovers there too). Seconds on a shared machine."
    )
    return Table(columns=columns, rows=rows, caption=caption)


def per_episode(runs: Sequence[Run]) -> Table:
    """Largest speed and cells so far, mean over seeds, beside the published safe run."""
    names = explorers(runs)
    columns = ["episode", "published max speed"]
    columns += [f"{n}: {what}" for n in names for what in ("max speed", "largest over seeds", "cells so far")]
    speeds, counts = {}, {}
    for name in names:
        found = [episodes(run, name) for run in runs if episodes(run, name)]
        speeds[name] = np.array([[p.rows[0]["max_speed"] for p in pieces] for pieces in found])
        counts[name] = np.array([common.coverage([p.tensors["states"] for p in pieces]) for pieces in found])
    rows = []
    for e in range(max(len(s[0]) for s in speeds.values())):
        row: list[object] = [e + 1, common.PUBLISHED_MAX[e] if e < len(common.PUBLISHED_MAX) else ""]
        for name in names:
            row += [
                float(speeds[name][:, e].mean()),
                float(speeds[name][:, e].max()),
                interval(counts[name][:, e].tolist(), 1),
            ]
        rows.append(row)
    return Table(columns=columns, rows=rows)


def curves(runs: Sequence[Run]) -> Figure:
    """Largest speed per episode (mean and range over seeds) and coverage (mean and 95 % interval)."""
    figure = plotting.figure("screen", 4.0)
    left, right = figure.subplots(1, 2)
    looks = plotting.looks(explorers(runs))
    for name, look in looks.items():
        found = [episodes(run, name) for run in runs if episodes(run, name)]
        speeds = [[p.rows[0]["max_speed"] for p in pieces] for pieces in found]
        counts = [common.coverage([p.tensors["states"] for p in pieces]) for pieces in found]
        for axes, values in ((left, speeds), (right, counts)):
            array = np.array(values, dtype=float)
            mean, half = np.array([mean_interval(column.tolist()) for column in array.T]).T
            x, half = np.arange(1, len(mean) + 1), np.nan_to_num(half)
            ends = (mean - half, mean + half) if axes is right else (array.min(0), array.max(0))
            axes.plot(x, mean, label=f"{name} (n = {len(array)})", **look.line)
            axes.fill_between(x, *ends, color=look.colour, alpha=0.15, lw=0)
    published = common.PUBLISHED_MAX
    line = left.plot(
        range(1, len(published) + 1), published, ms=4, lw=1, label="published", **plotting.look("published").marked
    )
    left.legend(handles=line, loc="lower left", bbox_to_anchor=(0.15, 0.03))
    plotting.limit(left, LIMIT, label="limit")
    left.set(xlabel="episode", ylabel="largest |ω| in the episode (rad/s)", title="mean and range over seeds")
    plotting.limit(right, common.PUBLISHED_SAFE_CELLS, label="published safe run")
    plotting.limit(right, common.PUBLISHED_FREE_CELLS, label="published unsafe run")
    right.set(xlabel="episode", ylabel="cells visited, of 320", title="mean and 95 % interval over seeds")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.set_ylim(0, 330)
    plotting.label_ends(right)
    return figure


def portraits(runs: Sequence[Run]) -> Figure:
    """All states of the first seed of every explorer, on the grid of cells."""
    names = explorers(runs)
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = plotting.figure(3.2 * columns, 2.6 * lines + 0.4)
    panels = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel()
    norm = Normalize(1, max(len(episodes(run, name)) for run in runs for name in names))
    for axes, name in zip(panels, names, strict=False):
        run = next(run for run in runs if episodes(run, name))
        states = torch.cat([p.tensors["states"] for p in episodes(run, name)])
        order = np.repeat(np.arange(len(episodes(run, name))), len(episodes(run, name)[0].tensors["states"]))
        axes.scatter(
            wrap_angle(states[:, 0]), states[:, 1], c=order + 1, s=4, cmap=plotting.colour_map("order"), lw=0, norm=norm
        )
        axes.axhspan(LIMIT, 8.6, color=plotting.colour("unsafe"), alpha=0.15, lw=0)
        axes.axhspan(-8.6, -LIMIT, color=plotting.colour("unsafe"), alpha=0.15, lw=0)
        axes.set_title(f"{name}, seed {run.seed}")
        axes.set_xticks(np.linspace(-math.pi, math.pi, 21), minor=True)
        axes.set_yticks(np.arange(-8, 9), minor=True)
        axes.set_xticks([-math.pi, 0, math.pi], ["−π", "0", "π"])
        axes.grid(which="minor", alpha=0.25, lw=0.4)
        axes.set(xlim=(-math.pi, math.pi), ylim=(-8.6, 8.6))
    for axes in panels[len(names) :]:
        axes.axis("off")
    for axes in panels[max(0, len(names) - columns) : len(names)]:
        axes.set_xlabel("θ (rad), 0 upright")
    for axes in panels[::columns]:
        axes.set_ylabel("ω (rad/s)")
    figure.colorbar(ScalarMappable(norm, plotting.colour_map("order")), ax=panels.tolist(), label="episode", shrink=0.8)
    return figure


def movie(runs: Sequence[Run], system: System) -> Mapping[str, Animation]:
    """The first explorer of the first seed: its last exploring episodes and the swing-up."""
    name = explorers(runs)[0]
    run = next(run for run in runs if episodes(run, name))
    states: list[Tensor] = [p.tensors["states"] for p in episodes(run, name)][1:4]
    swing = run.pieces.get(f"{name}/tasks", Piece()).tensors.get("swing-up")
    states += [] if swing is None else [swing]
    return (
        {"exploring": Animation(system, torch.stack(states), f"{name}: episodes 2 to 4, then swing-up")}
        if states
        else {}
    )


def report(runs: Sequence[Run], system: System, notes: Sequence[str] = ()) -> Report:
    """Everything."""
    return Report(
        figures={"curves": curves(runs), "portraits": portraits(runs)},
        tables={"summary": summary(runs), "episodes": per_episode(runs)},
        animations=movie(runs, system),
        notes=notes,
    )
