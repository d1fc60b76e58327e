"""One plant, the same data, noise and starts: each model behind each certifier under each explorer.

    from gpsafe.comparison import Contest, compare

    contest = Contest.create(SimplePendulum(horizon=50), SimplePendulum().prior())
    found = compare(contest, models=("gp", "ensemble"), certifiers=("none", "tube-paper"), explorers=("uniform", "uncertainty"))
    found.frame()

A contestant explores for some episodes, each told to its model; after every so many it is asked, without being told of it, to
seek the task's reward behind the same certifier. At the end its certifier is tried on pairs (x, u) of which the truth is known.
Nothing here is a certificate: it is where certificates and the truth are held against each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import table
from gpsafe.algorithms.learned import TrueModel
from gpsafe.comparison.beliefs import Belief, believe
from gpsafe.comparison.contest import Contest, Trajectory
from gpsafe.comparison.guards import Guard, UnfitError, guard
from gpsafe.comparison.policies import PolicySet
from gpsafe.planning import EXPLORERS, ICEM, Constraint, Explorer, Planner
from gpsafe.planning.icem import Plan
from gpsafe.policies import input_at, selected
from gpsafe.safety.flight import CORRECTED
from gpsafe.systems.base import HalfspaceCost, is_violation

if TYPE_CHECKING:
    from pandas import DataFrame

MODELS: tuple[str, ...] = ("gp", "ensemble")
CERTIFIERS: tuple[str, ...] = ("none", "policy-set", "tube-paper", "tube-sound", "shield")
SEEKS = {"uniform": "uniform", "uncertainty": "opax", "reward": "greedy"}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is flown and tried.

    Attributes:
        episodes: of exploration.
        every: exploring episodes between two that seek the reward.
        pairs: (x, u) on which the certifier is tried at the end.
        goals: states, drawn for the coverage of the region.
        points: at which the models' assumptions are tried.
        optimiser: of plans.
    """

    episodes: int = 4
    every: int = 2
    pairs: int = 60
    goals: int = 1000
    points: int = 1000
    optimiser: ICEM = field(default_factory=lambda: ICEM(samples=64, elites=8, iterations=2, horizon=10))

    def __post_init__(self) -> None:
        for name in ("episodes", "every", "pairs", "goals", "points"):
            _require.count("Budget", name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was flown, a row an episode, and what each contestant is worth, a row each.

    Attributes:
        episodes: of all contestants; columns model, certifier, explorer, seed, phase ("explore" or "seek"), steps, violated,
            corrected, backed, passed, captured, captured_of, refuted, reward, covered, seconds.
        contestants: columns model, certifier, explorer, seed, rests_on, found_false, accepted_of_safe, safe_pairs,
            accepted_of_unsafe, unsafe_pairs, certified_policies, safe_policies, false_policies, unfit.
    """

    episodes: tuple[Row, ...]
    contestants: tuple[Row, ...]

    def frame(self) -> DataFrame:
        """The contestants as a pandas table, with the sums over their episodes of exploration."""
        import pandas

        return pandas.DataFrame([{**row, **totals(self.episodes, row)} for row in self.contestants])

    def _repr_html_(self) -> str:
        names = ("model", "certifier", "explorer", "episodes", "violations", "corrected", "covered")
        full = [{**row, **totals(self.episodes, row)} for row in self.contestants]
        rows = [tuple(row.get(n, "") for n in names) for row in full]
        return table(f"{len(rows)} contestants", rows, head=names)


def totals(episodes: Sequence[Row], who: Row) -> Row:
    """Sums over the exploring episodes of a contestant."""
    mine = [e for e in episodes if e["phase"] == "explore" and all(e[k] == who[k] for k in _NAME)]
    steps = sum(e["steps"] for e in mine)
    return {
        "episodes": len(mine),
        "steps": steps,
        "violations": sum(e["violated"] for e in mine),
        "corrected": sum(e["corrected"] for e in mine),
        "covered": mine[-1]["covered"] if mine else math.nan,
        "ms": 1e3 * sum(e["seconds"] for e in mine) / max(steps, 1),
    }


_NAME = ("model", "certifier", "explorer", "seed")


def compare(
    contest: Contest,
    *,
    models: Sequence[str] = MODELS,
    certifiers: Sequence[str] = CERTIFIERS,
    explorers: Sequence[str] = tuple(SEEKS),
    budget: Budget | None = None,
    callback: Callable[[str], object] | None = None,
) -> Comparison:
    """All combinations on one contest.

    Args:
        contest: plant, known part, first data, seed.
        models: "gp", "ensemble".
        certifiers: "none"; "policy-set" (S_n of ActSafe); "tube-paper", "tube-sound" (X-MPSC's filter); "shield" (plan tubes of
            F_n). A pair that makes no sense has a row with `unfit`, and no episode.
        explorers: "uniform", "uncertainty" (the model's doubt along a plan), "reward" (greedy).
        budget: see `Budget`.
        callback: told the name of each combination before it flies.
    """
    episodes: list[Row] = []
    contestants: list[Row] = []
    for who in combinations(models, certifiers, explorers):
        if callback is not None:
            callback("/".join(who))
        flown, summary = contestant(contest, *who, budget=budget or Budget())
        episodes += flown
        contestants.append(summary)
    return Comparison(tuple(episodes), tuple(contestants))


def combinations(
    models: Sequence[str], certifiers: Sequence[str], explorers: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """(model, certifier, explorer), each name checked."""
    for model in models:
        for certifier in certifiers:
            for explorer in explorers:
                where = "compare"
                _require.one_of(where, "model", model, MODELS)
                _require.one_of(where, "certifier", certifier, CERTIFIERS)
                _require.one_of(where, "explorer", explorer, SEEKS)
                yield model, certifier, explorer


def contestant(contest: Contest, model: str, certifier: str, explorer: str, *, budget: Budget) -> tuple[list[Row], Row]:
    """One combination: its episodes, and what it is worth at the end."""
    about = {"model": model, "certifier": certifier, "explorer": explorer, "seed": contest.seed}
    belief = believe(model, contest)
    goals, rows, visited = contest.goals(budget.goals), [], [contest.plant.initial_state.unsqueeze(0)]
    explored: list[Trajectory] = []
    try:
        entry = _Policies(contest) if certifier == "policy-set" else _Steps(contest, certifier, budget)
        entry.learned(belief, 0)
    except UnfitError as error:
        return [], {**about, "unfit": str(error)}
    for number in range(budget.episodes):
        row, states, inputs = entry.fly(belief, number, explorer)
        visited.append(states)
        explored.append((states, inputs))
        covered = float(contest.covered(goals, torch.cat(visited)).double().mean())
        rows.append({**about, "phase": "explore", "episode": number, **row, "covered": covered})
        belief = belief.told([(states, inputs)])
        entry.learned(belief, number + 1)
        if (number + 1) % budget.every == 0:
            row, _, _ = entry.fly(belief, 1000 + number, "reward")
            rows.append({**about, "phase": "seek", "episode": number, **row, "covered": covered})
    x, u = _points(contest, budget.points, explored)
    false = {**belief.outside(contest, x, u), **entry.outside()}
    return rows, {
        **about,
        "unfit": "",
        "found_false": {k: list(v) for k, v in false.items()},
        **entry.worth(belief, budget),
    }


def _points(contest: Contest, count: int, explored: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
    """Where models are tried: half in the region, half where the contestant has been with other inputs."""
    generator = contest.generator(6)
    flown = torch.cat([states[:-1] for states, _ in explored])
    x = torch.cat([contest.goals(count // 2), flown[torch.randint(len(flown), (count // 2,), generator=generator)]])
    return x, contest.plant.input_box.sample(len(x), generator)


def _flight(contest: Contest, number: int, act: Callable[[Tensor], Tensor]) -> tuple[Row, Tensor, Tensor]:
    """An episode of x ↦ u with the noise of its number, until T steps are over or the limits are left."""
    plant, noise, reward = contest.plant, contest.generator(7, number), 0.0
    states, inputs = [plant.initial_state], []
    while len(inputs) < plant.horizon and float(plant.cost(states[-1])) == 0:
        inputs.append(act(states[-1]))
        states.append(plant.advance(states[-1].unsqueeze(0), inputs[-1].unsqueeze(0), noise)[0])
        reward += float(plant.reward(states[-1], inputs[-1]))
    row = {"steps": len(inputs), "violated": int(is_violation(plant.cost(states[-1]))), "reward": reward}
    return row, torch.stack(states), torch.stack(inputs)


def _planner(contest: Contest, explorer: Explorer, budget: Budget) -> Planner:
    plant = contest.plant
    price = Constraint(cast(HalfspaceCost, plant.cost), form="indicator")
    return Planner(explorer, budget.optimiser, plant.input_box, plant.reward, price)


class _Steps:
    """Certifiers that rule on every input."""

    def __init__(self, contest: Contest, certifier: str, budget: Budget) -> None:
        self.contest, self.certifier, self.budget = contest, certifier, budget
        self.guard: Guard | None = None

    def learned(self, belief: Belief, number: int) -> None:
        self.guard = guard(self.certifier, self.contest, belief)

    def fly(self, belief: Belief, number: int, explorer: str) -> tuple[Row, Tensor, Tensor]:
        contest, safe = self.contest, self.guard
        assert safe is not None
        mind, planner = contest.generator(8, number), _planner(contest, EXPLORERS[SEEKS[explorer]], self.budget)
        count = dict.fromkeys(("corrected", "backed", "passed", "captured", "captured_of"), 0)
        plan: Plan | None = None

        def act(x: Tensor) -> Tensor:
            nonlocal plan
            proposed, plan = self._proposed(planner, belief, x, mind, plan)
            ruling = safe.decide(x, proposed)
            count["corrected"] += int(float((ruling.u - proposed).abs().amax()) > CORRECTED)
            count["backed"] += int(ruling.backed)
            count["passed"] += int(ruling.passed)
            if ruling.captured is not None:
                count["captured"] += int(ruling.captured)
                count["captured_of"] += 1
            return ruling.u

        begun = time.process_time()
        safe.start(contest.plant.initial_state)
        row, states, inputs = _flight(contest, number, act)
        refuted = safe.arrived(states[-1]) or ""
        return {**row, **count, "refuted": refuted, "seconds": time.process_time() - begun}, states, inputs

    def _proposed(
        self, planner: Planner, belief: Belief, x: Tensor, mind: torch.Generator, plan: Plan | None
    ) -> tuple[Tensor, Plan | None]:
        if planner.explorer.uniform:
            return self.contest.plant.input_box.sample(1, mind)[0], None
        plan = planner.propose(belief.dynamics, x, generator=mind, warm_start=plan)
        return plan.actions[0], plan

    def outside(self) -> Mapping[str, tuple[int, int]]:
        assert self.guard is not None
        return self.guard.outside(self.contest)

    def worth(self, belief: Belief, budget: Budget) -> Row:
        """Of safe and of unsafe pairs, how many inputs are let through."""
        safe = self.guard
        assert safe is not None
        x, u, good = self.contest.pairs(budget.pairs)
        passed = []
        for state, proposed in zip(x, u, strict=True):
            safe.start(state)
            passed.append(safe.decide(state, proposed).passed)
        let = torch.tensor(passed, dtype=torch.bool)
        return {
            "rests_on": list(safe.rests_on), "accepted_of_safe": int((let & good).sum()), "safe_pairs": int(good.sum()),
            "accepted_of_unsafe": int((let & ~good).sum()), "unsafe_pairs": int((~good).sum()),
        }  # fmt: skip


class _Policies:
    """The certifier that rules on whole policies."""

    def __init__(self, contest: Contest) -> None:
        self.contest, self.set, self.cost = contest, PolicySet.create(contest), 0.0

    def learned(self, belief: Belief, number: int) -> None:
        begun = time.process_time()
        self.set.expand(belief, number)
        self.cost = time.process_time() - begun

    def fly(self, belief: Belief, number: int, explorer: str) -> tuple[Row, Tensor, Tensor]:
        begun = time.process_time() - self.cost
        index = self.set.choose(belief, explorer, self.contest.generator(8, number))
        policy = selected(self.set.policies, torch.tensor([index]), self.contest.plant.initial_state)
        row, states, inputs = _flight(self.contest, number, partial(input_at, policy))
        certified = {"corrected": 0, "backed": row["steps"], "passed": row["steps"], "captured": 0, "captured_of": 0}
        about = {"refuted": "", "policy": index, "size": int(self.set.member.sum())}
        return {**row, **certified, **about, "seconds": time.process_time() - begun}, states, inputs

    def outside(self) -> Mapping[str, tuple[int, int]]:
        return self.set.outside()

    def worth(self, belief: Belief, budget: Budget) -> Row:
        safe, member = ~self.set.unsafe(), self.set.member
        return {
            "rests_on": list(self.set.rests_on), "certified_policies": int((member & safe).sum()),
            "safe_policies": int(safe.sum()), "false_policies": int((member & ~safe).sum()),
        }  # fmt: skip


def reference(contest: Contest, budget: Budget, *, episodes: int = 3) -> tuple[float, float]:
    """Reward of the safe controller, and of the same planner with the true plant as its model and a price on leaving: means."""
    plant, model = contest.plant, TrueModel(contest.plant)
    planner = _planner(contest, replace(EXPLORERS["greedy"], pessimism="mean"), budget)

    def clever(number: int) -> Callable[[Tensor], Tensor]:
        mind, plan = contest.generator(8, number), None

        def act(x: Tensor) -> Tensor:
            nonlocal plan
            plan = planner.propose(model, x, generator=mind, warm_start=plan)
            return plan.actions[0]

        return act

    numbers = range(1000, 1000 + episodes)
    safe = [_flight(contest, number, plant.backup)[0]["reward"] for number in numbers]
    best = [_flight(contest, number, clever(number))[0]["reward"] for number in numbers]
    return sum(safe) / episodes, sum(best) / episodes
