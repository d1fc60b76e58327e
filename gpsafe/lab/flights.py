"""Flights with and without a safety filter, to be looked at step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe._show import short
from gpsafe.certify import Certificate
from gpsafe.lab.explorer import Choice, Explorer, Slider, panels
from gpsafe.safety.filter import SafetyFilter
from gpsafe.safety.flight import fly
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.systems.episodic import Episodic

WORDS = {
    "plan": "a plan certified now",
    "stored": "the stored plan",
    "backup": "the backup",
    "soft": "the least-violating plan",
    "unfiltered": "the learner, unfiltered",
}
Dims = tuple[int, int]
Names = tuple[str, str, str]


def shadow(body: Polytope, dims: Dims) -> Tensor:
    """Outline (n, 2) on two coordinates of a polytope that may leave others free (columns of zeros)."""
    used = (body.H != 0).any(0).nonzero().flatten().tolist()
    if any(j not in used for j in dims):
        raise _require.fail("shadow", f"rows on the coordinates {dims}", f"rows on {used}")
    return plotting.outline(Polytope(body.H[:, used], body.h), (used.index(dims[0]), used.index(dims[1])))


@short
@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """What happened, once without and once with the filter; both end where they leave the box.

    Attributes:
        box: admitted states.
        terminal: outline of X_f in the plane, (n, 2).
        free, kept: true states without the filter and behind it, (t + 1, nx) each.
        proposed, applied: first input, as proposed and as applied behind the filter, (t,).
        sources: who chose, a step.
        plans: the last certificate at hand, a step; None before the first.
        dims: the plane.
        names: of its axes and of the input.
    """

    box: Box
    terminal: Tensor
    free: Tensor
    kept: Tensor
    proposed: Tensor
    applied: Tensor
    sources: tuple[str, ...]
    plans: tuple[Certificate | None, ...]
    dims: Dims
    names: Names

    @property
    def told(self) -> str:
        """What came of the flight behind the filter."""
        return (
            f"leaves the limits at step {len(self.applied)}" if self.left[1] else f"stays for {len(self.applied)} steps"
        )

    @property
    def left(self) -> tuple[bool, bool]:
        """Whether the last state is outside the box: without the filter, and behind it."""
        without, behind = (bool(~self.box.contains(states[-1])) for states in (self.free, self.kept))
        return without, behind

    def draw(self, figure: Figure, *, step: int) -> None:
        """Both flights in the plane with the tube at hand, and the inputs; a step after the end shows the end."""
        plane, time = panels(figure, 1, 2, width_ratios=(1.2, 1))
        i, j = self.dims
        ended, step = step >= len(self.applied), min(step, len(self.applied) - 1)
        plan, source = self.plans[step], self.sources[step]
        if plan is not None and plan.tube is not None:
            tube, style = plan.tube, plotting.look("plan")
            for member in range(tube.num_members):  # one line a member: one a section would take longer than the rest
                curves = plotting.outline(Ellipsoid(tube.center[member], tube.factor[member]), self.dims, points=48)
                joined = torch.nn.functional.pad(curves, (0, 0, 0, 1), value=math.nan).reshape(-1, 2)
                plane.plot(joined[:, 0], joined[:, 1], linewidth=0.8, **style.line)
        plane.plot(*self.terminal.T, label="terminal set", **plotting.look("terminal").line)
        shown = self.kept if ended else self.kept[: step + 1]
        for states, noun, label in ((self.free, "unsafe", "learner alone"), (shown, "safe", "filtered")):
            style = plotting.look(noun)
            plane.plot(states[:, i], states[:, j], label=label, linewidth=0.9, **style.line)
        plane.plot(shown[-1, i], shown[-1, j], **plotting.look("safe").points)
        plotting.state_box(plane, self.box.lower, self.box.upper, self.dims)
        low, high = plane.get_xlim()
        seen = torch.cat([self.free[:, i], self.kept[:, i], self.terminal[:, 0]])
        pad = 0.3 * float(seen.max() - seen.min())
        within = max(low, float(seen.min()) - pad), min(high, float(seen.max()) + pad)
        plane.set(xlabel=self.names[0], ylabel=self.names[1], xlim=within)
        plane.legend(loc="upper left", ncols=3)
        told = "the limit is left" if ended and self.left[1] else "the end" if ended else WORDS[source]
        plane.set_title(f"step {step + ended}: {told}", loc="left")
        steps, size = range(len(self.applied)), 1.05 * float(torch.cat([self.proposed, self.applied]).abs().max())
        time.step(steps, self.proposed, where="mid", label="proposed", **plotting.look("proposed").line)
        for name in dict.fromkeys(self.sources):
            mine = [u if s == name else math.nan for u, s in zip(self.applied.tolist(), self.sources, strict=True)]
            time.plot(steps, mine, label=WORDS[name], **plotting.look(name).points)
        time.plot([step, step], [-size, size], linewidth=0.8, **plotting.look("limit").line)
        time.set(xlabel="step", ylabel=self.names[2], ylim=(-1.05 * size, 1.6 * size), yticks=(-1, 0, 1))
        time.legend(loc="upper left", ncols=2)

    def explorer(self, *, step: int = 0) -> Explorer:
        """Scrub through the flight."""
        return Explorer(self.draw, (10.0, 4.0), step=Slider("step", range(len(self.applied) + 1), step))


def explorer(flights: Mapping[str, Flight], *, step: int = 0) -> Explorer:
    """Choose a flight, and scrub through it."""
    longest = max(len(flight.applied) for flight in flights.values())

    def draw(figure: Figure, *, behind: str, step: int) -> None:
        flights[behind].draw(figure, step=step)

    return Explorer(
        draw, (10.0, 4.0), behind=Choice("filter", tuple(flights)), step=Slider("step", range(longest + 1), step)
    )


def push(plant: Episodic, rate: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Full inputs along a rate of the measured state: to the limits as fast as can be."""
    ends = plant.input_box
    return lambda seen, _: ends.upper if float(seen[rate]) >= 0 else ends.lower


def flown(
    plant: Episodic,
    safe: SafetyFilter,
    start: Tensor | None = None,
    *,
    steps: int,
    seed: int,
    propose: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    dims: Dims = (0, 1),
    names: Names = ("θ (rad), 0 upright", "ω (rad/s)", "torque (N m)"),
) -> Flight:
    """One proposer alone and behind a filter, from one start, with the same measurement errors and noise.

    Args:
        plant: limits, noise, starts.
        safe: the filter.
        start: true state (nx,); one of the plant's own if None.
        steps: at most.
        seed: of everything drawn.
        propose: (measured state, generator) ↦ u; None: `push` along the second coordinate of the plane.
        dims: the plane that is shown.
        names: of its axes and of the input.
    """
    chosen = push(plant, dims[1]) if propose is None else propose
    free, kept = (
        fly(plant, behind, chosen, steps=steps, generator=torch.Generator().manual_seed(seed), start=start)
        for behind in (None, safe)
    )
    plans: list[Certificate | None] = []
    for decision in kept.decisions:
        found = decision.certificate
        plans.append(found if found is not None and found.certified else plans[-1] if plans else None)
    return Flight(
        plant.state_box,
        shadow(safe.problem.terminal, dims),
        free.states,
        kept.states,
        kept.proposed[:, 0],
        kept.inputs[:, 0],
        tuple(str(decision.source) for decision in kept.decisions),
        tuple(plans),
        dims,
        names,
    )
