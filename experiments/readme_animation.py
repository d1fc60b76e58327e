"""The README's film, a pendulum that explores without a verifier and with one: python -m experiments.readme_animation.

Both sides have the same plant (an RKHS twin of the pendulum, whose known part is 10 % off), model, noise and first episode of
small inputs, and seek the same information. Left every plan is flown as it comes, and no limit is feared (`opax`); right the
limit is priced, and an input is flown only if the shield admits it (`actsafe-sound`), in the setting of the experiment
pendulum-sound with a smaller search. Every third state is shown, speeds beyond 9 rad/s at the edge; counts are of all states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from gpsafe import plotting
from gpsafe.systems.pendulum import wrap_angle
from gpsafe.testbed import store
from gpsafe.testbed.animate import encode

from . import pendulum_sound
from ._report.pendulum import coverage

SIDES = {"opax": "no verifier", "actsafe-sound": "verified: ActSafe"}
LIMIT, SHOWN = 6.0, 9.0  # rad/s


@dataclass(frozen=True)
class Arguments:
    """What to fly and where to write."""

    out: Path = Path("docs/figures/exploring.gif")
    episodes: int = 6
    every: int = 3
    """States that are left out between two frames, and one."""
    samples: int = 200
    seed: int = 0
    dpi: int = 100


def main(arguments: Arguments) -> None:
    """Flies both sides, and films them."""
    torch.set_num_threads(1)
    setting = pendulum_sound.Arguments(
        episodes=arguments.episodes, samples=arguments.samples, elites=20, iterations=3, table=(60, 17, 5)
    )
    plant, flown = pendulum_sound.plant(setting), {}
    for explorer in SIDES:
        agent = pendulum_sound.learner(setting, plant, explorer, arguments.seed)
        agent.learn(arguments.episodes)
        flown[explorer] = torch.stack([states for states, _ in agent.history])
        beyond = int((flown[explorer][..., 1].abs() > LIMIT).sum())
        print(f"{explorer}: {beyond} of {flown[explorer][..., 0].numel()} states beyond the limit")
    length = flown["opax"].shape[1]
    frames = [
        frame(flown, number // length, number % length, arguments.dpi)
        for number in range(0, arguments.episodes * length, arguments.every)
    ]
    frames.append(frame(flown, arguments.episodes - 1, length - 1, arguments.dpi))
    data = encode(frames, "gpsafe: a pendulum that explores, with and without a verifier")
    store.write_bytes(arguments.out, data)
    print(f"{arguments.out}: {len(frames)} frames, {len(data) / 1e3:.0f} kB")


def frame(flown: dict[str, Tensor], episode: int, step: int, dpi: int) -> Image.Image:
    """Both sides after a step of an episode."""
    with plotting.style(size=9):
        figure = plotting.figure(8.4, 2.9)
        figure.set_layout_engine("none")
        told = "A pendulum explores what it does not know. It must not swing faster than 6 rad/s."
        figure.text(0.03, 0.925, told, fontsize=10)
        for left, (name, title) in zip((0.02, 0.51), SIDES.items(), strict=True):
            rod, plane = figure.add_axes((left, 0.20, 0.13, 0.40)), figure.add_axes((left + 0.19, 0.12, 0.26, 0.57))
            side(plane, rod, flown[name][:episode], flown[name][episode, : step + 1])
            figure.text(left + 0.01, 0.825, title, fontsize=11, weight="bold")
            states = torch.cat([*flown[name][:episode], flown[name][episode, : step + 1]])
            beyond = int((states[:, 1].abs() > LIMIT).sum())
            cells = coverage([*flown[name][:episode], flown[name][episode, : step + 1]])[-1]
            colour = plotting.colour("unsafe" if beyond else "safe")
            figure.text(left + 0.148, 0.405, "rad/s", rotation=90, va="center", fontsize=8)
            figure.text(left + 0.01, 0.735, f"{beyond} states beyond the limit", color=colour, fontsize=10)
            figure.text(left + 0.45, 0.735, f"{cells} cell{'s' * (cells != 1)} explored", ha="right", fontsize=10)
        edge = Rectangle((0.001, 0.003), 0.998, 0.994, fill=False, edgecolor=plotting.colour("grey"), linewidth=0.8)
        figure.add_artist(edge)
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def side(plane: Axes, rod: Axes, past: Tensor, now: Tensor) -> None:
    """The pendulum, and all states so far."""
    for states, size in ((past.reshape(-1, 2), 2.8), (now, 4.5)):
        angle, speed = wrap_angle(states[:, 0]), states[:, 1].clamp(-SHOWN, SHOWN)
        out = states[:, 1].abs() > LIMIT
        for mask, noun in ((~out, "safe"), (out, "unsafe")):
            points = {**plotting.look(noun).points, "marker": "o", "markersize": size, "markeredgewidth": 0.0}
            plane.plot(angle[mask], speed[mask], **points)
    limit = torch.tensor([-LIMIT, LIMIT], dtype=torch.float64)
    endless = limit.new_tensor([math.inf])
    plane.set_xlim(-math.pi, math.pi)  # of an angle there is no limit; the frame reaches as far as the axes do
    plotting.state_box(plane, torch.cat([-endless, limit[:1]]), torch.cat([endless, limit[1:]]), margin=0.4)
    plane.set(xlim=(-math.pi, math.pi), ylim=(-SHOWN - 0.6, SHOWN + 0.6), yticks=(-6, 0, 6))
    plane.set_xticks([-math.pi, 0, math.pi], ["hanging", "upright", "hanging"])
    angle, moving_out = float(now[-1, 0]), bool(now[-1, 1].abs() > LIMIT)
    tip = (-math.sin(angle), math.cos(angle))
    colour = plotting.colour("unsafe" if moving_out else "ink")
    rod.plot([0, tip[0]], [0, tip[1]], color=colour, linewidth=3.5, solid_capstyle="round")
    rod.plot(*tip, "o", color=colour, markersize=13)
    rod.plot(0, 0, "o", color=plotting.colour("grey"), markersize=5)
    rod.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    rod.axis("off")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
