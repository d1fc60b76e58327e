"""What completes candidates is not believed: plans are followed as they were verified, or cost the candidates."""

import math
from dataclasses import replace

import pytest
import torch
from shield_cases import HORIZON, case_of, judge_of, judged, shield_of, tracking_of

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.plan_tube import Plans
from gpsafe.linalg import vector
from gpsafe.safety.shield import NotCertified, Shield
from gpsafe.sets.zonotope import Zonotope

NONE = torch.zeros(0, 1, 1, dtype=torch.float64)
COUNT, LENGTH = 2, 3


def plans(**changes) -> Plans:
    """Two plans of one open-loop push each, then the fallback; the laws beyond, never to be followed, push back."""
    offset = vector(0.125, -1.0, -1.0).reshape(1, LENGTH, 1).expand(COUNT, -1, -1).clone()
    nothing = torch.zeros(COUNT, dtype=torch.long)
    return replace(Plans.open_loop(offset, nothing + 1, nothing, 2), **changes)


class Given:
    """Completes every candidate with plans that are given."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def plans(self, judge, x, candidates, lengths, steps):
        return self.answer() if callable(self.answer) else self.answer


class Unruly(Plans):
    """Fails where the shield, not the proposer, works with it."""

    __slots__ = ()

    def select(self, index):
        raise ArithmeticError("select")


def followed(answer, steps: int = 4) -> tuple[list[str], list[float]]:
    """Sources and inputs at one state, the candidates completed at the first step alone."""
    case, x = case_of(), case_of().system.initial_state
    shield, sources, inputs = replace(shield_of(case, judged()), tracking=Given(answer)), [], []
    for t in range(steps):
        candidates = torch.zeros(COUNT, LENGTH, 1, dtype=torch.float64) if t == 0 else NONE
        decision, shield = shield.decide(x, candidates)
        shield = replace(shield, expected=None)  # the state stands still, for comparison
        sources.append(decision.source)
        inputs.append(float(decision.u))
    return sources, inputs


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_no_law_beyond_a_plans_length_is_followed_whatever_integers_say_it(kind):
    given = plans()
    sources, inputs = followed(plans(**{name: getattr(given, name).to(kind) for name in ("lengths", "commit")}))
    assert sources == ["plan", "fallback", "fallback", "fallback"]
    assert inputs[0] == 0.125 and -1.0 not in inputs


ODD = {
    "Boolean lengths": lambda: plans(lengths=torch.ones(COUNT, dtype=torch.bool)),
    "lengths in floats": lambda: plans(lengths=torch.ones(COUNT)),
    "NaN lengths": lambda: plans(lengths=torch.full((COUNT,), math.nan)),
    "negative lengths": lambda: plans(lengths=torch.full((COUNT,), -1)),
    "lengths beyond the laws": lambda: plans(lengths=torch.full((COUNT,), LENGTH + 1)),
    "Boolean fallbacks": lambda: plans(fallback=torch.ones(COUNT, dtype=torch.bool)),
    "a fallback from the end": lambda: plans(fallback=torch.full((COUNT,), -1)),
    "a fallback too many": lambda: plans(fallback=torch.full((COUNT,), 9)),
    "Boolean commit": lambda: plans(commit=torch.zeros(COUNT, dtype=torch.bool)),
    "a list of lengths too many": lambda: plans(lengths=[1, 1, 1]),
    "Boolean inputs": lambda: plans(offset=torch.zeros(COUNT, LENGTH, 1, dtype=torch.bool)),
    "inputs of another plant": lambda: plans(offset=torch.zeros(COUNT, LENGTH, 2, dtype=torch.float64)),
    "no tensors": lambda: plans(gain="none"),
    "another class": lambda: object(),
    "another default device": lambda: torch.set_default_device("meta"),
    "another default type": lambda: torch.set_default_dtype(torch.float16),
}


@pytest.mark.parametrize("name", ODD)
def test_plans_that_are_none_cost_the_candidates_and_nothing_else(name):
    settings = torch.get_default_dtype(), torch.get_default_device()
    try:
        assert followed(ODD[name]) == followed(lambda: None)
        assert (torch.get_default_dtype(), torch.get_default_device()) == settings
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(settings[0])


def test_plans_of_a_class_of_their_own_become_plain_ones():
    own = plans()
    unruly = Unruly(own.offset, own.gain, own.lengths, own.fallback, own.commit)
    assert followed(unruly) == followed(own)
    kept = plans()
    shield = replace(shield_of(case_of(), judged()), tracking=Given(kept))
    x = case_of().system.initial_state
    _, after = shield.decide(x, torch.zeros(COUNT, LENGTH, 1, dtype=torch.float64))
    kept.offset.fill_(9.0)
    assert float(after.stored.offset.abs().max()) == 1.0


@pytest.mark.parametrize("steps", [-1, 1.0, True, math.nan])
def test_a_judge_follows_plans_for_a_number_of_steps(steps):
    with pytest.raises(ValueError, match=r"PlanTube\.verify: expected integer steps >= 0"):
        judged().verify(Zonotope.point(torch.zeros(COUNT, 2, dtype=torch.float64)), plans(), steps)


@pytest.mark.parametrize(
    "lengths", [torch.tensor([1.5, 1.0]), torch.tensor([True, True]), [0.5, 1], torch.full((2,), math.nan)]
)
def test_candidates_are_used_for_a_number_of_inputs(lengths):
    shield, x = shield_of(case_of(), judged()), case_of().system.initial_state
    with pytest.raises(ValueError, match="expected integers in lengths"):
        shield.decide(x, torch.zeros(COUNT, LENGTH, 1, dtype=torch.float64), lengths)
    with pytest.raises(ValueError, match="real numbers in candidates"):
        shield.decide(x, torch.zeros(COUNT, LENGTH, 1, dtype=torch.bool))


@pytest.mark.parametrize("assume", [False, True])
def test_an_empty_set_is_told_without_a_grid_too(assume):
    case = case_of()
    tiny = Mixture(rkhs_norm=0.05, subgaussian=1e-4, delta=0.1, unchecked=True)
    confidence, x0 = ConfidenceSet(tiny).update(case.confidence.model), vector(0.5, 2.0)
    judge = judge_of(case, grid=False, landing=False)
    judge = replace(judge, task=judge.task.with_(initial_state=x0, horizon=HORIZON))
    u = judge.fallbacks(x0.reshape(1, 1, -1))[:, 0]
    assert confidence.falsified(torch.cat([x0[None], u], dim=-1)) is not None
    found = Shield.start(judge, confidence, x0, tracking=tracking_of(case), assume=assume)
    assert isinstance(found, NotCertified) and "F_n is empty" in str(found.falsified)
