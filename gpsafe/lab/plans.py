"""What the plans of a receding-horizon learner promise, step by step, and what the plant would have made of them.

Without a verifier a plan promises what its particles do. With one, what was admitted promises a tube: all that can happen under
any member of F_n and any noise in its box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe._show import short
from gpsafe.algorithms.episode import Pilot
from gpsafe.algorithms.learner import PLANT
from gpsafe.algorithms.receding import PilotedPolicy, RecedingActSafe
from gpsafe.lab.explorer import Choice, Explorer, Slider, panels
from gpsafe.planning.scores import imagine
from gpsafe.policies.rollout import one_episode
from gpsafe.safety.shield import Shield
from gpsafe.sets import Zonotope
from gpsafe.systems.base import HalfspaceCost, System, is_violation, sample_noise

AHEAD = 20  # steps for which a promise is looked at, at most
WORDS = {"plan": "a new plan", "stored": "the plan admitted before", "fallback": "the fallback", "initial": "S₀"}


@short
@dataclass(frozen=True, slots=True, eq=False)
class Promise:
    """Of one step.

    Attributes:
        low, high: hull of the particles, or of the tube, from the present state on, (h + 1, nx).
        promised: largest excess over a limit within it.
        would: states of the plant without noise under the same plan, (h + 1, nx).
        excess: the largest of those.
    """

    low: Tensor
    high: Tensor
    promised: float
    would: Tensor
    excess: float

    @property
    def broken(self) -> bool:
        """Whether all was to be well, and would not have been."""
        return self.promised <= 0 < self.excess


@short
@dataclass(frozen=True, slots=True, eq=False)
class Flown:
    """One episode.

    Attributes:
        states: (T + 1, nx).
        sources: who chose, a step.
        promises: one a step; none in an episode on S_0.
        excess: over the limits, of each state, (T + 1,).
        verified: whether a verifier stood between plan and plant.
    """

    states: Tensor
    sources: tuple[str, ...]
    promises: tuple[Promise, ...]
    excess: Tensor
    verified: bool

    @property
    def violated(self) -> bool:
        """Whether a state was beyond a limit."""
        return bool(is_violation(self.excess).any())

    @property
    def worst(self) -> int:
        """The step whose promise was broken most, or came nearest to it; 0 without promises."""
        kept = [(p.promised <= 0, p.excess) for p in self.promises]
        return max(range(len(kept)), key=kept.__getitem__, default=0)


def _excess(system: System, x: Tensor) -> Tensor:
    cost = system.cost
    if not isinstance(cost, HalfspaceCost):
        raise _require.fail("plans", "a plant whose limits are half-spaces", type(cost).__name__)
    return cost.excess(x).amax(-1)


def _of_particles(agent: RecedingActSafe, pilot: Pilot, x: Tensor, generator: torch.Generator) -> Promise:
    planner, system, plan = agent.planner, agent.system, pilot.plan
    assert plan is not None
    free = planner.explorer.pessimism in ("none", "mean")
    inputs = plan.actions[:AHEAD]
    count = planner.free_particles if free else planner.particles
    paths = imagine(
        pilot.model, x, inputs[None], particles=count, beta=planner.beta, generator=None if free else generator
    ).states[0]
    paths = torch.cat([x.expand(count, 1, -1), paths], 1)
    would = [x]
    for u in inputs:
        would.append(system.mean(would[-1], u))
    true = torch.stack(would)
    ends = float(_excess(system, paths[:, 1:]).max()), float(_excess(system, true[1:]).max())
    return Promise(paths.amin(0), paths.amax(0), ends[0], true, ends[1])


def _of_tube(system: System, shield: Shield, x: Tensor, u: Tensor) -> Promise:
    judge, plan, tube = shield.judge, shield.stored, shield.expected
    assert tube is not None
    sections: list[Zonotope] = [tube]
    would = [x, system.mean(x, u)]
    for k in range(min(AHEAD, shield.horizon - shield.time + 1) - 1):
        tube = judge.reach(tube, plan, k)[0]
        sections.append(tube)
    rest = plan
    for _ in sections[1:]:
        would.append(system.mean(would[-1], rest.act(would[-1][None], judge.fallbacks, judge.input_box)[0]))
        rest = rest.shifted()
    low, high = (
        torch.stack([x, *((s.center + sign * s.radius).reshape(-1) for s in sections)]) for sign in (-1.0, 1.0)
    )
    promised = -min(float(judge.slack(s)) for s in sections)
    true = torch.stack(would)
    return Promise(low, high, promised, true, float(_excess(system, true[1:]).max()))


def flown(agent: RecedingActSafe, *, promises: bool = True) -> Flown:
    """One more episode of the learner on its plant, watched; the learner is told.

    Args:
        agent: the learner.
        promises: whether to look at what each step promised, which costs as much as planning.
    """
    system, number = agent.system, agent.told
    policy, generator, found = agent.ask(), torch.Generator().manual_seed(number), []

    def watched(x: Tensor) -> Tensor:
        u = policy(x)
        if promises and isinstance(policy, PilotedPolicy):
            pilot = policy.pilot
            if pilot.shield is None:
                found.append(_of_particles(agent, pilot, x, generator))
            else:
                found.append(_of_tube(system, pilot.shield, x, u))
        return u

    noise = sample_noise(system.noise_std, (system.horizon,), agent.stream(agent.seed, PLANT, policy.number))
    states, inputs = one_episode(system.mean, watched, policy.start, noise)
    sources = agent.flown(policy, states, inputs).sources
    agent.tell(states, inputs)
    return Flown(states, tuple(sources), tuple(found), _excess(system, states), agent.verified)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """What is shown of the states.

    Attributes:
        dims: the plane; its second coordinate is also drawn over time.
        names: of its axes.
        limits: of the second coordinate.
    """

    dims: tuple[int, int]
    names: tuple[str, str]
    limits: tuple[float, float]


def draw(figure: Figure, plane: Plane, episode: Flown, *, step: int) -> None:
    """What has been flown, what was promised from here, and what the plan would have come to."""
    phase, time = panels(figure, 1, 2, width_ratios=(1, 1.3))
    (i, j), promise, noun = plane.dims, episode.promises[step], "certified" if episode.verified else "sampled"
    told = "the tube of what was admitted" if episode.verified else "the particles of the plan"
    done, past = episode.states[: step + 1], range(step + 1)
    ahead = torch.arange(len(promise.would)) + step
    phase.plot(episode.states[:, i], episode.states[:, j], linewidth=0.6, **plotting.look("proposed").line)
    phase.plot(done[:, i], done[:, j], linewidth=1.1, color=plotting.colour("executed"))
    corners = [(promise.low, promise.low), (promise.high, promise.low), (promise.high, promise.high)]
    corners += [(promise.low, promise.high), (promise.low, promise.low)]
    boxes = torch.stack([torch.stack([a[:, i], b[:, j]], -1) for a, b in corners], 1)
    joined = torch.nn.functional.pad(boxes, (0, 0, 0, 1), value=math.nan).reshape(-1, 2)  # one line for all sections
    phase.plot(joined[:, 0], joined[:, 1], linewidth=0.7, color=plotting.colour(noun))
    style = plotting.look("truth")
    phase.plot(promise.would[:, i], promise.would[:, j], linewidth=1.0, color=style.colour, linestyle=":")
    phase.plot(*done[-1, [i, j]], **plotting.look("executed").points)
    time.fill_between(
        ahead, promise.low[:, j], promise.high[:, j], color=plotting.colour(noun), alpha=0.25, linewidth=0
    )
    for side, label in ((promise.low[:, j], told), (promise.high[:, j], None)):
        time.plot(ahead, side, color=plotting.colour(noun), linewidth=0.8, label=label)
    time.plot(past, done[:, j], label="flown", color=plotting.colour("executed"))
    time.plot(
        ahead, promise.would[:, j], color=style.colour, linestyle=":", label="what the plant would make of the plan"
    )
    for axes in (phase, time):
        for end in plane.limits:
            plotting.limit(axes, end)
        axes.set(ylabel=plane.names[1], ylim=(1.35 * plane.limits[0], 1.75 * plane.limits[1]))
    phase.set(xlabel=plane.names[0], xlim=_padded(episode.states[:, i]))
    time.set(xlabel="step", xlim=(0, len(episode.sources) + 1))
    time.legend(loc="upper left", ncols=2)
    phase.set_title(f"step {step}: {WORDS[episode.sources[step]]}", loc="left")
    room, real = _told(promise.promised), _told(promise.excess)
    time.set_title(f"promised: {room}; the plant: {real}", loc="left")


def _told(excess: float) -> str:
    return f"{abs(excess):.2g} {'beyond' if excess > 0 else 'below'} the limit"


def _padded(values: Tensor) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.1 * (high - low) + 1e-9
    return low - pad, high + pad


def explorer(plane: Plane, episodes: Mapping[str, Flown], *, step: int = 0) -> Explorer:
    """Choose an episode, and scrub through it."""
    for name, episode in episodes.items():
        if not episode.promises:
            raise _require.fail("explorer", "episodes that were watched with promises", name)
    last = min(len(episode.promises) for episode in episodes.values()) - 1

    def drawn(figure: Figure, *, who: str, step: int) -> None:
        draw(figure, plane, episodes[who], step=step)

    return Explorer(drawn, (10.0, 4.0), who=Choice("who", tuple(episodes)), step=Slider("step", range(last + 1), step))


def draw_kept(axes: Axes, episodes: Sequence[Flown], *, limit: float, noun: str, label: str) -> Axes:
    """Largest speed that each plan promised against the largest that the plant would have made of it."""
    found = [p for episode in episodes for p in episode.promises]
    promised, would = (torch.tensor([getattr(p, name) for p in found]) + limit for name in ("promised", "excess"))
    points = {**plotting.look(noun).points, "markersize": 2.5}
    axes.plot(promised, would, label=label, **points)
    return axes
