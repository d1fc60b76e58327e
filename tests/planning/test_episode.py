"""Verified episodes: the verifier has the last word at every step, and gets the candidates it was promised."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.algorithms.episode import proposals, unverified_episode, verified_episode
from gpsafe.models import Prediction
from gpsafe.planning import EXPLORERS, ICEM, Constraint, Plan, Planner
from gpsafe.sets import Box
from gpsafe.systems.pendulum import Pendulum

PLANT = Pendulum(action_repeat=2, horizon=5)
PLANNER = Planner(
    EXPLORERS["actsafe-sound"], ICEM(20, 4, 2, 6), PLANT.input_box, PLANT.reward, Constraint(PLANT.cost), particles=2
)


NOTHING = Plan(*(torch.zeros(1).double() for _ in range(6)))


class Model:
    nx, nu = 2, 1

    def predict(self, x, u):
        return Prediction(PLANT.mean(x, u), 0.1 * torch.ones_like(x), PLANT.noise_std)

    def condition(self, data):
        return self


@dataclass
class Answer:
    u: torch.Tensor
    source: str
    falsified: str | None = None


@dataclass
class Stub:
    """Takes the last candidate at even steps and zero at odd ones; refutes itself at step 3."""

    time: int = 0
    seen: list = field(default_factory=list)
    falsified: str | None = None

    def decide(self, x, candidates, lengths):
        self.seen.append((x, candidates, lengths))
        plan = self.time % 2 == 0
        answer = Answer(
            candidates[-1, 0] if plan else torch.zeros(1).double(),
            "plan" if plan else "stored",
            "refuted" if self.time == 3 else None,
        )
        return answer, Stub(self.time + 1, self.seen)

    def arrived(self, x):
        return replace(self, falsified="refuted at the end")


def test_only_what_the_verifier_answers_is_applied():
    stub = Stub()
    noise = 1e-3 * torch.ones(5, 2).double()
    found = verified_episode(PLANT, PLANNER, Model(), stub, noise=noise, generator=torch.Generator().manual_seed(0))
    assert found.sources == ("plan", "stored", "plan", "stored", "plan")
    assert found.falsified == "refuted"
    assert bool((found.inputs[1::2] == 0).all())
    for t, (x, candidates, lengths) in enumerate(stub.seen):
        assert torch.equal(x, found.states[t])
        assert candidates.shape[0] == lengths.shape[0]
        assert t % 2 or torch.equal(candidates[-1, 0], found.inputs[t])
        assert torch.equal(found.states[t + 1], PLANT.mean(x, found.inputs[t]) + noise[t])
        assert torch.equal(found.wanted[t], candidates[0, 0])
    assert found.overridden.tolist() == [bool((u != w).any()) for u, w in zip(found.inputs, found.wanted, strict=True)]
    assert bool(found.overridden[1::2].all())  # zero is no plan's first input here


def test_nothing_is_overridden_without_a_verifier_and_everything_where_no_plan_was_found():
    generator = torch.Generator().manual_seed(0)
    free = unverified_episode(PLANT, PLANNER, Model(), noise=torch.zeros(5, 2).double(), generator=generator)
    assert torch.equal(free.wanted, free.inputs) and not bool(free.overridden.any())
    assert bool(replace(free, inputs=free.inputs + 1e-3).overridden.all())
    assert bool(replace(free, wanted=torch.full_like(free.wanted, torch.nan)).overridden.all())
    assert not bool(replace(free, wanted=None).overridden.any())


@dataclass
class Failing:
    """Plans well at even steps."""

    answer: object
    time: int = -1

    def propose(self, model, x, *, generator, warm_start):
        self.time += 1
        if self.time % 2 == 0:
            return PLANNER.propose(model, x, generator=generator, warm_start=warm_start)
        x.fill_(7.0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass
class Counting:
    """Applies nothing, and writes down what it was asked."""

    counts: list = field(default_factory=list)
    falsified: str | None = None

    def decide(self, x, candidates, lengths):
        self.counts.append((len(candidates), len(lengths), candidates.shape[-1]))
        return Answer(torch.zeros(1).double(), "plan" if len(candidates) else "stored"), self

    def arrived(self, x):
        return self


@pytest.mark.parametrize(
    "answer",
    [
        KeyError("x"),
        TimeoutError(),
        MemoryError(),
        None,
        torch.zeros(4, 1).double(),
        (part for part in ()),
        replace(NOTHING, actions=torch.zeros(4, 3).double()),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_whatever_a_planner_does_under_a_verifier_is_answered(answer):
    counting, noise = Counting(), torch.zeros(5, 2).double()
    generator = torch.Generator().manual_seed(0)
    found = verified_episode(PLANT, Failing(answer), Model(), counting, noise=noise, generator=generator)  # type: ignore[arg-type]
    assert found.sources == ("plan", "stored", "plan", "stored", "plan")
    assert [bool(c[0]) for c in counting.counts] == [True, False] * 2 + [True]
    assert all(c[0] == c[1] and c[2] == 1 for c in counting.counts)
    assert set(found.failures) == {1, 3}
    assert bool(torch.isnan(found.values[1::2]).all()) and bool(torch.isfinite(found.values[::2]).all())
    for t in range(5):
        assert torch.equal(found.states[t + 1], PLANT.mean(found.states[t], found.inputs[t]))
    if isinstance(answer, Exception):
        assert type(answer).__name__ in found.failures[1]


@given(seeds(), st.integers(1, 2), st.sampled_from([0, 3, 5]))
def test_proposals_begin_with_the_plan_and_go_on_by_distance(seed, nu, levels):
    generator = torch.Generator().manual_seed(seed)
    box = Box(-torch.ones(nu).double(), 2 * torch.ones(nu).double())
    actions = box.sample(4, generator)
    plan = Plan(actions, torch.zeros(()), actions[None], torch.zeros(1), actions, torch.zeros(1))
    candidates, lengths = proposals(plan, box, prefixes=(1, 3, 9), levels=levels)
    assert candidates.shape == (3 + levels**nu * (levels > 0), 4, nu)
    assert lengths.tolist() == [1, 3, 4] + [1] * (levels**nu * (levels > 0))
    assert bool((candidates[:3] == actions).all())
    assert bool(box.contains(candidates).all())
    away = (candidates[3:, 0] - actions[0]).norm(dim=-1)
    assert bool((away.diff() >= 0).all())
