"""A learner behind a certifier, episode by episode: where it went, on whose word, and how its terminal set grew."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe._show import short
from gpsafe.algorithms.xmpsc import XMPSC, CertifiedPolicy
from gpsafe.lab.explorer import Explorer, Slider, panels
from gpsafe.lab.flights import WORDS, Dims, shadow
from gpsafe.safety.flight import SOURCES
from gpsafe.sets import Box


@short
@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """E episodes after the warm-up.

    Attributes:
        box: admitted states.
        states: true ones, (t + 1, nx) an episode.
        sources: who chose, a step of each episode.
        terminal: outline (n, 2) of the terminal set in use in each episode; None without a filter.
        violated: whether an episode left the limits.
        dims: the plane.
        names: of its axes.
    """

    box: Box
    states: tuple[Tensor, ...]
    sources: tuple[tuple[str, ...], ...]
    terminal: tuple[Tensor | None, ...]
    violated: tuple[bool, ...]
    dims: Dims
    names: tuple[str, str]

    @property
    def counts(self) -> dict[str, Tensor]:
        """Source → steps in each episode, (E,), of those that ever acted."""
        found = {name: torch.tensor([chosen.count(name) for chosen in self.sources]) for name in SOURCES}
        return {name: count for name, count in found.items() if bool(count.any())}

    @property
    def areas(self) -> Tensor:
        """Of the terminal set in each episode, (E,); NaN without one."""
        return torch.stack([torch.tensor(torch.nan) if c is None else _area(c) for c in self.terminal]).double()

    @property
    def _window(self) -> list[tuple[float, float]]:
        """All states and limits near them, with a margin, below which there is room for a legend."""
        flown, found = torch.cat(self.states), []
        for dim, room in zip(self.dims, (0.08, 0.45), strict=True):
            low, high = float(flown[:, dim].min()), float(flown[:, dim].max())
            pad = 0.08 * (high - low)
            found.append((low - room * (high - low) - pad, high + pad))
        return found

    def draw(self, figure: Figure, *, episode: int) -> None:
        """The terminal sets so far, states certified so far, this episode; and who chose in all episodes."""
        plane, acts = panels(figure, 1, 2, width_ratios=(1.2, 1))
        i, j = self.dims
        before = [(x, s) for x, s in zip(self.states[: episode + 1], self.sources, strict=False)]
        seen = [
            x[:-1][torch.tensor([name == "plan" for name in chosen], dtype=torch.bool)] for x, chosen in before[:-1]
        ]
        known = torch.cat([*seen, self.states[0][:0]])
        plane.plot(known[:, i], known[:, j], ".", markersize=2, color=plotting.colour("grey"), label="certified before")
        grown: list[Tensor] = []
        for curve in self.terminal[: episode + 1]:
            if curve is not None and not (grown and torch.equal(grown[-1], curve)):
                grown.append(curve)
        for number, (curve, shade) in enumerate(zip(grown, plotting.ramp(max(len(grown), 1)), strict=False)):
            last = number == len(grown) - 1
            plane.plot(*curve.T, color=shade, linewidth=1.4 if last else 0.8, label="terminal set" if last else None)
        states, chosen = before[-1]
        plane.plot(states[:, i], states[:, j], linewidth=0.9, **plotting.look("safe").line)
        for name in dict.fromkeys(chosen):
            mine = states[:-1][torch.tensor([source == name for source in chosen])]
            points = {**plotting.look(name).points, "markersize": 3}
            plane.plot(mine[:, i], mine[:, j], label=WORDS[name], **points)
        plotting.state_box(plane, self.box.lower, self.box.upper, self.dims)
        xlim, ylim = self._window
        plane.set(xlabel=self.names[0], ylabel=self.names[1], xlim=xlim, ylim=ylim)
        plane.legend(loc="lower left", ncols=2)
        area = float(self.areas[episode] / self.areas[0])
        left = "; the limit was left" if self.violated[episode] else ""
        size = "" if not area > 0 else f": the terminal set is {area:.2f} times as large as at first"
        plane.set_title(f"episode {episode}{size}{left}", loc="left")
        at, below = torch.arange(len(self.states) + 1) - 0.5, torch.zeros(len(self.states) + 1)
        for name, count in self.counts.items():  # one body a source: a patch a bar would take ten times as long
            top = below + torch.cat([count, count[-1:]])
            acts.fill_between(
                at, below, top, step="post", label=WORDS[name], color=plotting.colour(name), linewidth=0
            )  # fmt: skip
            below = top
        acts.plot([episode, episode], [0, float(below.max())], linewidth=0.9, **plotting.look("limit").line)
        acts.set(xlabel="episode", ylabel="steps", ylim=(0, 1.45 * float(below.max())))
        acts.legend(loc="upper left")

    def explorer(self, *, episode: int | None = None) -> Explorer:
        """Scrub through the episodes."""
        last = len(self.states) - 1
        return Explorer(
            self.draw,
            (10.0, 4.0),
            episode=Slider("episode", range(last + 1), last if episode is None else episode),
        )


def _area(curve: Tensor) -> Tensor:
    """Of the inside of a closed curve (n, 2)."""
    x, y = curve.T
    return 0.5 * (x[:-1] * y[1:] - x[1:] * y[:-1]).sum().abs()


def learned(learner: XMPSC, steps: int, *, dims: Dims = (0, 1), names: tuple[str, str] = ("x₀", "x₁")) -> Learned:
    """Learns for at least `steps` steps after the warm-up, which is flown first if it was not yet, and watches."""
    states, sources, terminal, violated = [], [], [], []
    while learner.steps < steps:
        warm, safe = learner.standing.version == 0, learner.filter()
        policy = learner.ask()
        seen, inputs = learner.rollout(policy)
        learner.tell(seen, inputs)
        if warm or not isinstance(policy, CertifiedPolicy):
            continue
        true = seen if policy.truth is None else policy.truth
        states.append(true)
        sources.append(tuple(str(d.source) for d in policy.decisions) or ("unfiltered",) * len(inputs))
        terminal.append(None if safe is None else shadow(safe.problem.terminal, dims))
        violated.append(bool(learner.system.terminated(true[-1])))
    box = learner.system.state_box
    return Learned(box, tuple(states), tuple(sources), tuple(terminal), tuple(violated), dims, names)
