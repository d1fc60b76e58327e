"""Figures of the safety-filter experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gpsafe import plotting
from gpsafe.sets import Ellipsoid
from gpsafe.testbed.experiment import Piece, Run

from .._report.statistics import Share, draw_shares, grouped
from .._report.xmpsc_filter_questions import CASES, Case

MODE = ("none", "paper", "sound", "invariant")
SOURCE = ("plan", "stored", "backup", "soft", "unfiltered", "none")
TITLE = {
    "pendulum": "pendulum, published noise",
    "pendulum-exact": "pendulum, measured exactly",
    "cart-pole": "cart-pole",
}
AXES = {"pendulum": ("θ (rad)", "ω (rad/s)"), "cart-pole": ("position (m)", "θ (rad)")}
AXES["pendulum-exact"] = AXES["pendulum"]
AREA = {"pendulum": "rad²/s", "pendulum-exact": "rad²/s", "cart-pole": "m rad"}


def rates(arms: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]], arguments: Any) -> Figure:
    """Violating episodes, steps without a plan, and plans that contain the true state to their end."""
    figure = plotting.figure("screen", 3.6)
    panels = figure.subplots(1, 3)
    places = [(p, q) for p in arguments.plants for q in arguments.learners]
    for k, mode in enumerate(arguments.modes):
        shown: list[list[tuple[float, Share]]] = [[], [], []]
        for i, (plant, learner) in enumerate(places):
            rows = arms.get((plant, mode, learner), ())
            steps = [r for r in rows if r["kind"] == "step"]
            plans = [r for r in rows if r["kind"] == "followed"]
            x = i + 0.18 * (k - 0.5 * (len(arguments.modes) - 1))
            if steps:
                episodes = grouped(steps, "seed", "epoch", "episode").values()
                shown[0].append((x, Share.of(e[-1]["violated"] for e in episodes)))
            if steps and mode != "none":
                shown[1].append((x, Share.of(r["source"] != "plan" for r in steps)))
            if plans:
                # all copies of a plan count as one observation: they share it
                shown[2].append((x, Share.of(r["real_any"] == r["copies"] for r in plans)))
        for axes, found in zip(panels, shown, strict=True):
            if found:
                at, shares = zip(*found, strict=True)
                draw_shares(axes, at, shares, label=mode, noun=mode, joined=False)
    titles = (
        "episodes in which the true state leaves the limits",
        "steps without a certified plan",
        f"plans of which {arguments.copies} of {arguments.copies} copies stay in a tube",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xticks(range(len(places)), [f"{_short(p)}\n{q}" for p, q in places], rotation=60, fontsize="small")
        axes.set_ylim(-0.03, 1.03)
        for i in range(1, len(places)):
            axes.axvline(i - 0.5, color=plotting.colour("faint"), linewidth=0.8)
    marks = [Line2D([], [], label=_called(m), **plotting.look(m).points) for m in arguments.modes]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    panels[0].set_ylabel("share, 95 % Clopper–Pearson")
    return figure


def _called(mode: str) -> str:
    return "no filter" if mode == "none" else f"{mode} mode"


def _short(plant: str) -> str:
    return {"pendulum": "pendulum, noisy", "pendulum-exact": "pendulum, exact", "cart-pole": "cart-pole"}[plant]


def tubes(run: Run, arguments: Any) -> Figure:
    """Some plans of the last epoch's first episode: sections of all members, and the terminal set; all limits in an inset."""
    learner = arguments.learners[-1]
    pairs = [(p, m) for m in ("paper", "sound", "invariant") for p in arguments.plants if m in arguments.modes]
    found = [(p, m, run.pieces[f"{p}/{m}/{learner}"]) for p, m in pairs]
    found = [entry for entry in found if entry[2].tensors]
    columns = max(2, len(arguments.plants))
    rows = len(found) // columns + 1  # one place at least for the legend
    figure = plotting.figure(4.6 * columns, 4.0 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (plant, mode, piece) in zip(panels, found, strict=False):
        axes.set_title(f"{TITLE[plant]}: {mode} mode")
        _plans(axes, CASES[plant], piece, arguments)
        axes.set(xlabel=AXES[plant][0], ylabel=AXES[plant][1])
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    looks = plotting.looks(range(arguments.members))
    marks = [Line2D([], [], color=looks[m].colour, label=f"member {m}") for m in looks]
    marks += [Line2D([], [], color=plotting.colour("ink"), linestyle="--", label="terminal set")]
    marks += [Line2D([], [], color=plotting.colour("unsafe"), linewidth=2, label="state limits")]
    marks += [
        Line2D([], [], color=plotting.colour("grey"), marker=".", linewidth=0.8, label="true states of the episode")
    ]
    panels[len(found)].legend(handles=marks, loc="center", title="adversary, last epoch, first episode")
    return figure


def _plans(axes: Axes, case: Case, piece: Piece, arguments: Any) -> None:
    epoch = arguments.epochs - 1
    i, j = case.dims
    corners = piece.tensors[f"terminal-{epoch}"].numpy()
    closed = np.concatenate([corners, corners[:1]])
    axes.plot(closed[:, 0], closed[:, 1], "--", color=plotting.colour("ink"), linewidth=1.2)
    path = [r for r in piece.rows if r["kind"] == "step" and r["epoch"] == epoch and r["episode"] == 0]
    axes.plot(
        [r[f"x{i}"] for r in path],
        [r[f"x{j}"] for r in path],
        ".-",
        color=plotting.colour("grey"),
        markersize=3,
        linewidth=0.6,
    )
    steps = sorted(int(key.split("-")[1]) for key in piece.tensors if key.startswith("center-"))
    looks = plotting.looks(range(arguments.members))
    chosen = [steps[round(k)] for k in np.linspace(0, len(steps) - 1, min(6, len(steps)))] if steps else []
    for step in chosen:
        center, shape = piece.tensors[f"center-{step}"], piece.tensors[f"shape-{step}"]
        for m in range(center.shape[0]):
            color = looks[m].colour
            plotting.draw(axes, Ellipsoid.from_shape(center[m, 1:], shape[m, 1:]), color=color, linewidth=0.8)
            axes.plot(center[m, :, 0], center[m, :, 1], color=color, linewidth=0.5)
    seen = axes.dataLim.frozen()
    lower, upper = case.plant.state_box.lower, case.plant.state_box.upper
    left, right = float(lower[i]), float(upper[i])
    bottom, top = float(lower[j]), float(upper[j])
    limits = ([left, right, right, left, left], [bottom, bottom, top, top, bottom])
    axes.plot(*limits, color=plotting.colour("unsafe"), linewidth=2)
    axes.set_xlim(seen.x0 - 0.06 * seen.width, seen.x1 + 0.06 * seen.width)
    axes.set_ylim(seen.y0 - 0.06 * seen.height, seen.y1 + 0.45 * seen.height)  # room for the inset
    small = axes.inset_axes((0.66, 0.73, 0.32, 0.25))
    small.plot(*limits, color=plotting.colour("unsafe"), linewidth=1.5)
    small.fill(corners[:, 0], corners[:, 1], color=plotting.colour("ink"), alpha=0.5, linewidth=0)
    small.plot([r[f"x{i}"] for r in path], [r[f"x{j}"] for r in path], color=plotting.colour("grey"), linewidth=0.6)
    small.set_xticks([left, right], [f"{left:.3g}", f"{right:.3g}"])
    small.set_yticks([bottom, top], [f"{bottom:.3g}", f"{top:.3g}"])


def episode(run: Run, arguments: Any) -> Figure:
    """Proposed and applied input of one episode, and where the angle goes in each mode."""
    learner, plants = arguments.learners[-1], arguments.plants
    figure = Figure(figsize=(4.8 * len(plants), 8.2), layout="constrained")
    parts = figure.subfigures(1, len(plants), squeeze=False)[0]
    for part, plant in zip(parts, plants, strict=True):
        paths = {mode: _path(run, arguments, f"{plant}/{mode}/{learner}") for mode in MODE if mode in arguments.modes}
        paths = {mode: path for mode, path in paths.items() if path}
        filtered = [mode for mode in paths if mode != "none"]
        *panels, angles = part.subplots(len(filtered) + 1, 1, sharex=True, squeeze=False)[:, 0]
        part.suptitle(TITLE[plant])
        for axes, mode in zip(panels, filtered, strict=True):
            _inputs(axes, paths[mode])
            axes.set_ylim(-1.15, 1.15)
            axes.set_ylabel(f"u, {mode} mode")
        angle = CASES[plant].angle
        for mode, path in paths.items():
            values = [r[f"x{angle}"] for r in path]
            angles.plot(range(len(values)), values, label=_called(mode), linewidth=1.2, **plotting.look(mode).line)
            if path[-1]["violated"]:
                angles.plot(len(values) - 1, values[-1], "x", color=plotting.colour(mode))
        box = CASES[plant].plant.state_box
        for limit in (float(box.lower[angle]), float(box.upper[angle])):
            angles.axhline(limit, color=plotting.colour("ink"), linestyle="--", linewidth=1)
        angles.set(xlabel="step", ylabel="θ (rad)")
        plotting.label_ends(angles)
    marks = [Line2D([], [], color=plotting.colour("grey"), label="proposed")]
    marks += [Line2D([], [], label=s, **plotting.look(s).points) for s in SOURCE[:-1]]
    marks += [
        Line2D(
            [], [], color=plotting.colour("grey"), marker="o", fillstyle="none", linestyle="", label="open: not backed"
        )
    ]
    marks += [
        Line2D([], [], color=plotting.colour("ink"), linestyle="--", label="limits (× leaves them in the next step)")
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    return figure


def _path(run: Run, arguments: Any, key: str) -> list[Mapping[str, Any]]:
    rows = run.pieces[key].rows if key in run.pieces else ()
    last = arguments.epochs - 1
    return [r for r in rows if r["kind"] == "step" and r["epoch"] == last and r["episode"] == 0]


def _inputs(axes: Axes, path: Sequence[Mapping[str, Any]]) -> None:
    axes.step(range(len(path)), [r["learned"] for r in path], where="mid", color=plotting.colour("grey"), linewidth=0.8)
    for source in SOURCE:
        for backed in (True, False):
            part = [(k, r["applied"]) for k, r in enumerate(path) if r["source"] == source and r["backed"] == backed]
            if part:
                at, u = zip(*part, strict=True)
                style = "full" if backed else "none"
                axes.plot(at, u, markersize=3.5, fillstyle=style, **plotting.look(source).points)


def growth(runs: Sequence[Run], arguments: Any) -> Figure:
    """Area of the learned terminal set over the epochs, and the sets themselves for the first seed."""
    plants, learner = arguments.plants, arguments.learners[-1]
    figure = Figure(figsize=(4.6 * len(plants), 7.4), layout="constrained")
    grid = figure.subplots(2, len(plants), squeeze=False)
    for column, plant in enumerate(plants):
        areas, hulls = grid[:, column]
        for mode in ("paper", "sound"):
            for line, who in zip(("-", ":"), arguments.learners, strict=False):
                key = f"{plant}/{mode}/{who}"
                if key not in runs[0].pieces:
                    continue
                table = [[r["area"] for r in one.pieces[key].rows if "area" in r] for one in runs]
                mean = np.array(table).mean(0)
                areas.plot(
                    range(len(mean)),
                    mean,
                    line,
                    marker="o",
                    markersize=4,
                    color=plotting.colour(mode),
                    label=f"{mode}, {who}",
                )
        areas.set(xlabel="epoch (last: after all)", title=TITLE[plant])
        areas.set_ylabel(f"area of the set in use ({AREA[plant]})")
        areas.set_xticks(range(arguments.epochs + 1))
        areas.set_ylim(0, 1.1 * areas.get_ylim()[1])
        plotting.label_ends(areas)
        piece = runs[0].pieces[f"{plant}/paper/{learner}"]
        shades = plotting.ramp(arguments.epochs + 1)
        for epoch in reversed(range(arguments.epochs + 1)):
            corners = piece.tensors[f"terminal-{epoch}"].numpy()
            closed = np.concatenate([corners, corners[:1]])
            style = ("--", "-")[epoch > 0]
            hulls.plot(closed[:, 0], closed[:, 1], style, color=shades[epoch], label=f"epoch {epoch}")
        i, j = CASES[plant].dims
        certified = [r for r in piece.rows if r["kind"] == "step" and r["source"] == "plan"]
        x, y = [r[f"x{i}"] for r in certified], [r[f"x{j}"] for r in certified]
        hulls.plot(x, y, ".", color=plotting.colour("grey"), markersize=2, label="certified states", zorder=0)
        hulls.set(xlabel=AXES[plant][0], ylabel=AXES[plant][1], title=f"paper mode, {learner}, first seed")
        hulls.set_ylim(hulls.get_ylim()[0], hulls.get_ylim()[1] + 0.42 * (hulls.get_ylim()[1] - hulls.get_ylim()[0]))
        hulls.legend(loc="upper right")
    return figure
