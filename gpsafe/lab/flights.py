"""A flight behind a safety filter, to be looked at step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe._show import short
from gpsafe.certify import Certificate
from gpsafe.lab.explorer import Explorer, Slider, panels
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.systems.episodic import Episodic

WORDS = {
    "plan": "a plan certified now",
    "stored": "the stored plan",
    "backup": "the backup",
    "soft": "the least-violating plan",
    "unfiltered": "the learner, unfiltered",
}


@short
@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """What happened.

    Attributes:
        box: admitted states.
        terminal: X_f.
        free, kept: states without the filter and behind it, (T + 1, nx) each; both end where they leave the box.
        proposed, applied: inputs, (T,) each.
        sources: who chose, a step.
        plans: the last certificate at hand, a step; None before the first.
    """

    box: Box
    terminal: Polytope
    free: Tensor
    kept: Tensor
    proposed: tuple[float, ...]
    applied: tuple[float, ...]
    sources: tuple[str, ...]
    plans: tuple[Certificate | None, ...]

    def draw(self, figure: Figure, *, step: int) -> None:
        """Both flights in the plane of the first two states with the tube at hand, and the inputs."""
        plane, time = panels(figure, 1, 2, width_ratios=(1.2, 1))
        plan, source = self.plans[step], self.sources[step]
        if plan is not None and plan.tube is not None:
            tube, style = plan.tube, plotting.look("plan")
            for member in range(
                tube.num_members
            ):  # one line a member: a line a section would take longer than the rest
                curves = plotting.outline(Ellipsoid(tube.center[member], tube.factor[member]), points=48)
                joined = torch.nn.functional.pad(curves, (0, 0, 0, 1), value=math.nan).reshape(-1, 2)
                plane.plot(joined[:, 0], joined[:, 1], linewidth=0.8, **style.line)
        plotting.draw(plane, self.terminal, label="terminal set", **plotting.look("terminal").line)
        alone, held = plotting.look("unsafe"), plotting.look("safe")
        plane.plot(self.free[:, 0], self.free[:, 1], label="learner alone", linewidth=0.9, **alone.line)
        plane.plot(self.kept[: step + 1, 0], self.kept[: step + 1, 1], label="filtered", linewidth=0.9, **held.line)
        plane.plot(self.kept[step, 0], self.kept[step, 1], **held.points)
        plotting.state_box(plane, self.box.lower, self.box.upper)
        plane.set(xlabel="θ (rad), 0 upright", ylabel="ω (rad/s)")
        plane.legend(loc="upper left", ncols=3)
        plane.set_title(f"step {step}: {WORDS[source]}", loc="left")
        steps = range(len(self.applied))
        time.step(steps, self.proposed, where="mid", label="proposed", **plotting.look("proposed").line)
        for name in dict.fromkeys(self.sources):
            mine = [u if s == name else math.nan for u, s in zip(self.applied, self.sources, strict=True)]
            time.plot(steps, mine, label=WORDS[name], **plotting.look(name).points)
        time.plot([step, step], [-1.05, 1.05], linewidth=0.8, **plotting.look("limit").line)
        time.set(xlabel="step", ylabel="torque (N m)", ylim=(-1.1, 1.6), yticks=(-1, 0, 1))
        time.legend(loc="upper left", ncols=2)

    def explorer(self, *, step: int = 0) -> Explorer:
        """Scrub through the flight."""
        return Explorer(self.draw, (10.0, 4.0), step=Slider("step", range(len(self.applied)), step))


def flown(plant: Episodic, safe: SafetyFilter, start: Tensor, *, steps: int, seed: int) -> Flight:
    """A learner that pushes along the second state with full input, alone and behind a filter, from one start."""
    _require.count("flown", "steps", steps)
    ends = plant.input_box

    def push(x: Tensor) -> Tensor:
        return ends.upper if float(x[1]) >= 0 else ends.lower

    free, generator = [start], torch.Generator().manual_seed(seed)
    while len(free) <= steps and bool(plant.state_box.contains(free[-1])):
        free.append(plant.advance(free[-1], push(free[-1]), generator))
    kept, generator, session = [start], torch.Generator().manual_seed(seed), safe.start()
    proposed, applied, sources, plans = [], [], [], []
    standing: Certificate | None = None
    while len(kept) <= steps and bool(plant.state_box.contains(kept[-1])):
        wanted = push(kept[-1])
        decision, session = session.decide(kept[-1], wanted)
        if decision.certificate is not None and decision.certificate.certified:
            standing = decision.certificate
        proposed.append(float(wanted[0]))
        applied.append(float(decision.u[0]))
        sources.append(str(decision.source))
        plans.append(standing)
        kept.append(plant.advance(kept[-1], decision.u, generator))
    return Flight(
        plant.state_box,
        safe.problem.terminal,
        torch.stack(free),
        torch.stack(kept),
        tuple(proposed),
        tuple(applied),
        tuple(sources),
        tuple(plans),
    )
