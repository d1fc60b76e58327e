"""Figures of the safety-filter experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments._statistics import BLUE, COLORS, GREEN, ORANGE, PURPLE, RED, SKY, Share, draw_shares, grouped
from experiments._xmpsc_filter_questions import CASES, Case
from gpsafe.experiment import Piece, Run
from gpsafe.sets import Ellipsoid
from gpsafe.sets.plot import draw

MODE = {"none": "black", "paper": RED, "sound": BLUE, "invariant": GREEN}
SOURCE = {"plan": BLUE, "stored": GREEN, "backup": ORANGE, "soft": RED, "unfiltered": PURPLE, "none": "black"}
TITLE = {
    "pendulum": "pendulum, published noise",
    "pendulum-exact": "pendulum, measured exactly",
    "cart-pole": "cart-pole",
}
AXES = {"pendulum": ("θ (rad)", "ω (rad/s)"), "cart-pole": ("position (m)", "θ (rad)")}
AXES["pendulum-exact"] = AXES["pendulum"]


def rates(arms: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]], arguments: Any) -> Figure:
    """Violating episodes, steps without a plan, and plans that contain the true state to their end."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
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
                draw_shares(axes, at, shares, label=mode, color=MODE[mode], line="")
    titles = (
        "episodes in which the true state leaves the limits",
        "steps without a certified plan",
        f"plans that held all of {arguments.copies} copies to the end",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(
            range(len(places)), [f"{TITLE[p].split(',')[0]}\n{_noise(p)}{q}" for p, q in places], fontsize=7
        )
        axes.set_ylim(-0.03, 1.03)
        for i in range(1, len(places)):
            axes.axvline(i - 0.5, color="#dddddd", linewidth=0.8)
    marks = [Line2D([], [], color=MODE[m], marker="o", linestyle="", label=_called(m)) for m in arguments.modes]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize="small")
    panels[0].set_ylabel("share, 95 % Clopper–Pearson")
    return figure


def _called(mode: str) -> str:
    return "no filter" if mode == "none" else f"{mode} mode"


def _noise(plant: str) -> str:
    return "exact, " if plant == "pendulum-exact" else ""


def tubes(run: Run, arguments: Any) -> Figure:
    """Some plans of the last epoch's first episode: sections of all members, and the terminal set."""
    modes = [m for m in ("paper", "sound", "invariant") if m in arguments.modes]
    learner = arguments.learners[-1]
    figure = Figure(figsize=(4.4 * len(arguments.plants), 3.7 * len(modes)), layout="constrained")
    grid = figure.subplots(len(modes), len(arguments.plants), squeeze=False)
    for column, plant in enumerate(arguments.plants):
        for row, mode in enumerate(modes):
            axes, piece = grid[row, column], run.pieces.get(f"{plant}/{mode}/{learner}")
            axes.set_title(f"{TITLE[plant]}: {mode} mode", fontsize="medium")
            if piece is None or not piece.tensors:
                axes.text(0.5, 0.5, "no certified invariant set", ha="center", va="center", transform=axes.transAxes)
                axes.set_axis_off()
                continue
            _plans(axes, CASES[plant], piece, arguments)
            axes.set(xlabel=AXES[plant][0], ylabel=AXES[plant][1])
    marks = [Line2D([], [], color=COLORS[m % len(COLORS)], label=f"member {m}") for m in range(arguments.members)]
    marks += [Line2D([], [], color="black", linestyle="--", label="terminal set")]
    marks += [Line2D([], [], color=RED, linewidth=2, label="state limits")]
    marks += [Line2D([], [], color="#888888", marker=".", linewidth=0.8, label="true states of the episode")]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize="small")
    return figure


def _plans(axes: Axes, case: Case, piece: Piece, arguments: Any) -> None:
    epoch = arguments.epochs - 1
    i, j = case.dims
    corners = piece.tensors[f"terminal-{epoch}"].numpy()
    closed = np.concatenate([corners, corners[:1]])
    axes.plot(closed[:, 0], closed[:, 1], "--", color="black", linewidth=1.2)
    path = [r for r in piece.rows if r["kind"] == "step" and r["epoch"] == epoch and r["episode"] == 0]
    axes.plot(
        [r[f"x{i}"] for r in path], [r[f"x{j}"] for r in path], ".-", color="#888888", markersize=3, linewidth=0.6
    )
    steps = sorted(int(key.split("-")[1]) for key in piece.tensors if key.startswith("center-"))
    chosen = [steps[round(k)] for k in np.linspace(0, len(steps) - 1, min(6, len(steps)))] if steps else []
    for step in chosen:
        center, shape = piece.tensors[f"center-{step}"], piece.tensors[f"shape-{step}"]
        for m in range(center.shape[0]):
            sections = Ellipsoid.from_shape(center[m, 1:], shape[m, 1:])
            draw(axes, sections, color=COLORS[m % len(COLORS)], linewidth=0.8)
            axes.plot(center[m, :, 0], center[m, :, 1], color=COLORS[m % len(COLORS)], linewidth=0.5)
    box = case.plant.state_box
    lower, upper = box.lower.tolist(), box.upper.tolist()
    if len(lower) == 2:
        axes.plot(
            [lower[0], upper[0], upper[0], lower[0], lower[0]],
            [lower[1], lower[1], upper[1], upper[1], lower[1]],
            color=RED,
            linewidth=2,
        )
    else:
        axes.axhline(lower[j], color=RED, linewidth=2)
        axes.axhline(upper[j], color=RED, linewidth=2)


def episode(run: Run, arguments: Any) -> Figure:
    """Proposed and applied input of one episode, and where the angle goes in each mode."""
    modes = [m for m in ("paper", "sound", "invariant") if m in arguments.modes]
    learner, plants = arguments.learners[-1], arguments.plants
    figure = Figure(figsize=(4.6 * len(plants), 2.3 * (len(modes) + 1)), layout="constrained")
    grid = figure.subplots(len(modes) + 1, len(plants), squeeze=False, sharex="col")
    for column, plant in enumerate(plants):
        case, angles = CASES[plant], grid[-1, column]
        grid[0, column].set_title(TITLE[plant], fontsize="medium")
        paths = {mode: _path(run, arguments, f"{plant}/{mode}/{learner}") for mode in ("none", *modes)}
        for row, mode in enumerate(modes):
            axes, path = grid[row, column], paths[mode]
            if path:
                _inputs(axes, path)
            else:
                axes.text(0.5, 0.5, "no certified invariant set", ha="center", va="center", transform=axes.transAxes)
            axes.set_ylim(-1.15, 1.15)
            axes.set_ylabel(f"u, {mode} mode")
        for mode, path in paths.items():
            if not path:
                continue
            values = [r[f"x{case.angle}"] for r in path]
            angles.plot(range(len(values)), values, color=MODE[mode], label=mode, linewidth=1.2)
            if path[-1]["violated"]:
                angles.plot(len(values) - 1, values[-1], "x", color=MODE[mode])
        box = case.plant.state_box
        for limit in (float(box.lower[case.angle]), float(box.upper[case.angle])):
            angles.axhline(limit, color="black", linestyle="--", linewidth=1)
        angles.set(xlabel="step", ylabel="θ (rad)")
        angles.legend(fontsize="x-small", ncols=2)
    marks = [Line2D([], [], color="#999999", drawstyle="steps-post", label="proposed")]
    marks += [Line2D([], [], color=SOURCE[s], marker="o", linestyle="", label=s) for s in list(SOURCE)[:-1]]
    marks += [Line2D([], [], color="#555555", marker="o", fillstyle="none", linestyle="", label="open: not backed")]
    marks += [Line2D([], [], color="black", linestyle="--", label="limits (× last state inside them)")]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize="small")
    return figure


def _path(run: Run, arguments: Any, key: str) -> list[Mapping[str, Any]]:
    rows = run.pieces[key].rows if key in run.pieces else ()
    last = arguments.epochs - 1
    return [r for r in rows if r["kind"] == "step" and r["epoch"] == last and r["episode"] == 0]


def _inputs(axes: Axes, path: Sequence[Mapping[str, Any]]) -> None:
    axes.step(range(len(path)), [r["learned"] for r in path], where="mid", color="#999999", linewidth=0.8)
    for source, color in SOURCE.items():
        for backed in (True, False):
            part = [(k, r["applied"]) for k, r in enumerate(path) if r["source"] == source and r["backed"] == backed]
            if part:
                at, u = zip(*part, strict=True)
                style = "full" if backed else "none"
                axes.plot(at, u, "o", color=color, markersize=3.5, fillstyle=style)


def growth(runs: Sequence[Run], arguments: Any) -> Figure:
    """Area of the learned terminal set over the epochs, and the sets themselves for the first seed."""
    plants = arguments.plants
    figure = Figure(figsize=(4.4 * len(plants), 7), layout="constrained")
    grid = figure.subplots(2, len(plants), squeeze=False)
    learner = arguments.learners[0]
    for column, plant in enumerate(plants):
        areas, hulls = grid[:, column]
        for mode in ("paper", "sound"):
            for line, who in zip(("-", ":"), arguments.learners, strict=False):
                key = f"{plant}/{mode}/{who}"
                table = [[r["area"] for r in one.pieces[key].rows if r["kind"] == "epoch"] for one in runs]
                if key not in runs[0].pieces:
                    continue
                mean = np.array(table).mean(0)
                label = f"{mode}, {who}"
                areas.plot(range(len(mean)), mean, line, marker="o", markersize=4, color=MODE[mode], label=label)
        areas.set(xlabel="epoch", ylabel="area of the terminal set in use", title=TITLE[plant])
        areas.set_xticks(range(arguments.epochs))
        areas.set_ylim(bottom=0)
        areas.legend(fontsize="x-small")
        piece = runs[0].pieces[f"{plant}/paper/{learner}"]
        for epoch in range(arguments.epochs):
            corners = piece.tensors[f"terminal-{epoch}"].numpy()
            closed = np.concatenate([corners, corners[:1]])
            shade = 0.15 + 0.7 * epoch / max(1, arguments.epochs - 1)
            hulls.plot(closed[:, 0], closed[:, 1], color=(0, 0.3, 0.6, shade), label=f"epoch {epoch}")
        i, j = CASES[plant].dims
        certified = [r for r in piece.rows if r["kind"] == "step" and r["source"] == "plan"]
        x, y = [r[f"x{i}"] for r in certified], [r[f"x{j}"] for r in certified]
        hulls.plot(x, y, ".", color=SKY, markersize=2, label="certified states", zorder=0)
        hulls.set(xlabel=AXES[plant][0], ylabel=AXES[plant][1], title=f"paper mode, {learner}, first seed")
        hulls.legend(fontsize="x-small")
    return figure
