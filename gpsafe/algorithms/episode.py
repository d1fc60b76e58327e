"""One episode under receding-horizon planning: replan at every step, execute the first action.

A `Pilot` is a policy with the memory of one episode. It sees measured states and nothing of the plant, so that it flies a
robot as it flies a simulation; `unverified_episode` and `verified_episode` fly it on a plant.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._lent import copied
from gpsafe.models.base import DynamicsModel
from gpsafe.planning.explorers import Planner
from gpsafe.planning.icem import Plan
from gpsafe.policies.rollout import one_episode
from gpsafe.safety.shield import Shield
from gpsafe.sets import Box
from gpsafe.systems.base import System
from gpsafe.systems.task import Task


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """What happened in one episode.

    Attributes:
        states: (T + 1, nx).
        inputs: (T, nu).
        sources: who chose each input: "plan", "stored" or "fallback"; without a verifier always "plan".
        values: score of the plan found at each step, (T,).
        planning_s, verifying_s: seconds.
        falsified: the first measurement that refutes the verifier's assumptions, in words; None if there was none.
        failures: what the planner raised under a verifier, in words, by step.
        wanted: first input of the plan found at each step, (T, nu), NaN where none was found; None if nobody planned.
    """

    states: Tensor
    inputs: Tensor
    sources: tuple[str, ...]
    values: Tensor
    planning_s: float
    verifying_s: float
    falsified: str | None = None
    failures: Mapping[int, str] = field(default_factory=dict)
    wanted: Tensor | None = None

    @property
    def overridden(self) -> Tensor:
        """At which steps another input was applied than the planner's, beyond rounding, (T,)."""
        if self.wanted is None:
            return torch.zeros(len(self.inputs), dtype=torch.bool)
        return ~((self.inputs - self.wanted).abs() <= 1e-9).all(-1)


def proposals(plan: Plan, box: Box, *, prefixes: tuple[int, ...] = (1, 5), levels: int = 7) -> tuple[Tensor, Tensor]:
    """Candidates for a verifier, best first: prefixes of the plan, then single inputs of a grid, nearest to its first one.

    A prefix of one input is the easiest to admit, and enough: the planner is asked again after it. The grid is for
    where no prefix is admitted: the verifier then picks the nearest input that can still be braked.

    Args:
        plan: found by the planner.
        box: input box.
        prefixes: lengths of the plan that are tried.
        levels: grid points per input, ends included; 0 for none.

    Returns:
        candidates (K, H, nu) and how many inputs of each are meant (K,).
    """
    horizon = plan.actions.shape[0]
    lengths = torch.tensor([min(n, horizon) for n in prefixes], device=plan.actions.device)
    candidates = plan.actions.expand(len(prefixes), *plan.actions.shape)
    if levels:
        axes = [
            torch.linspace(lo, hi, levels, dtype=torch.float64) for lo, hi in zip(box.lower, box.upper, strict=True)
        ]
        grid = torch.cartesian_prod(*axes).reshape(-1, box.dim).to(plan.actions.device)
        grid = grid[(grid - plan.actions[0]).square().sum(-1).argsort()]
        single = grid.unsqueeze(1).expand(-1, horizon, -1)
        candidates = torch.cat([candidates, single])
        lengths = torch.cat([lengths, lengths.new_ones(len(grid))])
    return candidates, lengths


@dataclass(slots=True, eq=False)
class Pilot:
    """x ↦ u for one episode: the planner proposes; with a shield, only what it admits is answered.

    A planner that raises or returns no plan under a shield costs the candidates of that step (its value is NaN, and the next
    search starts anew), as in `gpsafe.safety.filter`; without a shield its errors are the caller's.

    Args:
        planner: proposes; untrusted.
        model: what it plans with, frozen during the episode.
        box: input box.
        generator: of the planner's randomness.
        shield: at t = 0; None: every plan is executed as it comes, and nothing is guaranteed.
        prefixes, levels: see :func:`proposals`.
    """

    planner: Planner
    model: DynamicsModel
    box: Box
    generator: torch.Generator
    shield: Shield | None = None
    prefixes: tuple[int, ...] = (1, 5)
    levels: int = 7
    plan: Plan | None = None
    sources: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    planning_s: float = 0.0
    verifying_s: float = 0.0
    falsified: str | None = None
    failures: dict[int, str] = field(default_factory=dict)
    wanted: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.shield is not None:  # which knows the same data: the planner gets a copy to write on
            self.model = copied("Pilot", self.model)

    def __call__(self, x: Tensor) -> Tensor:
        """u (nu,) at the measured state x (nx,); one call a step."""
        begun = time.perf_counter()
        if self.shield is None:
            plan = self.plan = self.planner.propose(
                self.model, x.clone(), generator=self.generator, warm_start=self.plan
            )
            u, value, source = plan.actions[0], plan.value, "plan"
            self.planning_s += time.perf_counter() - begun
        else:
            candidates, lengths, value = self._propose(x)
            between = time.perf_counter()
            decision, self.shield = self.shield.decide(x, candidates, lengths)
            self.planning_s += between - begun
            self.verifying_s += time.perf_counter() - between
            self.falsified = self.falsified or decision.falsified
            u, source = decision.u, decision.source
        self.values.append(value)
        self.sources.append(source)
        self.wanted.append(torch.full_like(u, math.nan) if self.plan is None else self.plan.actions[0])
        return u

    def arrived(self, x: Tensor) -> None:
        """Takes in the last measured state (nx,), which may refute the shield's assumptions as any other."""
        if self.shield is not None:
            self.shield = self.shield.arrived(x)
            self.falsified = self.falsified or self.shield.falsified

    def _propose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates, their lengths and the value of the plan; none and NaN if the planner fails."""
        nu = self.box.dim
        try:
            plan = self.planner.propose(self.model, x.clone(), generator=self.generator, warm_start=self.plan)
            candidates, lengths = proposals(plan, self.box, prefixes=self.prefixes, levels=self.levels)
            if candidates.ndim != 3 or candidates.shape[-1] != nu:
                raise _require.fail("Pilot", f"a plan (H, {nu})", tuple(candidates.shape))
            value = plan.value.detach().to(torch.float64).reshape(())
        except BaseException as error:
            if _require.stops(error):
                raise
            self.plan, self.failures[len(self.sources)] = None, _require.told(error)
            none = torch.zeros(0, dtype=torch.long, device=x.device)
            return x.new_zeros(0, 1, nu), none, x.new_full((), math.nan)
        self.plan = plan
        return candidates, lengths, value

    def flown(self, states: Tensor, inputs: Tensor) -> Trajectory:
        """The record of the episode, with what was measured."""
        record = (self.planning_s, self.verifying_s, self.falsified, dict(self.failures))
        return Trajectory(
            states, inputs, tuple(self.sources), torch.stack(self.values), *record, torch.stack(self.wanted)
        )


def unverified_episode(
    system: System, planner: Planner, model: DynamicsModel, *, noise: Tensor, generator: torch.Generator
) -> Trajectory:
    """T steps of x⁺ = mean(x, u) + w, every plan executed as it comes. No guarantee whatever.

    Args:
        system: the plant.
        planner: settings.
        model: what it plans with, frozen during the episode.
        noise: w, (T, nx).
        generator: of the planner's randomness.
    """
    _require.last_dim("episode", "noise", noise, system.nx)
    pilot = Pilot(planner, model, system.input_box, generator)
    return pilot.flown(*one_episode(system.mean, pilot, system.initial_state, noise))


def verified_episode(
    system: System,
    planner: Planner,
    model: DynamicsModel,
    shield: Shield,
    *,
    noise: Tensor,
    generator: torch.Generator,
    prefixes: tuple[int, ...] = (1, 5),
    levels: int = 7,
) -> Trajectory:
    """T steps in which every input passes `shield`: what holds for it holds for the episode, whatever the planner does.

    Args:
        system: the plant, started in its initial state, for which `shield` was started; of the shield's task.
        planner: proposes; untrusted.
        model: what it plans with.
        shield: at t = 0, with a horizon of at least T.
        noise: w, (T, nx).
        generator: of the planner's randomness.
        prefixes, levels: see :func:`proposals`.
    """
    _require.last_dim("episode", "noise", noise, system.nx)
    if isinstance(shield, Shield):
        Task.of(system).require_same("verified_episode", shield.judge.task)
    pilot = Pilot(planner, model, system.input_box, generator, shield, prefixes, levels)
    states, inputs = one_episode(system.mean, pilot, system.initial_state, noise)
    pilot.arrived(states[-1])
    return pilot.flown(states, inputs)
