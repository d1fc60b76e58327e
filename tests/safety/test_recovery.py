"""Recovery shielding: what passes, what it adds up to, and that ε is paid again and again."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpsafe.confidence import ConfidenceSet, Constant
from gpsafe.cost import CostToGo
from gpsafe.safety import BudgetFilter, RecoveryShield
from proofs_checks._defects import forged
from tests.safety.test_budget import gamble, scalar

STEP = 0.5 * math.erfc(2 / math.sqrt(2))  # P(0.8 + w > 1), w ~ N(0, 0.1²)


toy = cache(gamble)


@pytest.fixture
def gambler():
    return toy()


def flown(shield: RecoveryShield, value: float) -> tuple[list[str], float]:
    """Sources and mass of an episode at x = 0: what is decided at a harmless state does not depend on it here."""
    sources, shield = [], shield.start()
    for _ in range(shield.to_go.program.horizon):
        found, shield = shield.decide(scalar(0.0), scalar(value))
        sources.append(found.source)
    assert shield.mass is not None
    return sources, shield.mass


def test_epsilon_alone_is_paid_at_every_step_and_the_mass_once(gambler):
    rule = RecoveryShield(gambler, level=0.05)
    sources, mass = flown(rule, 0.8)
    assert sources == 8 * ["learner"]
    violated = 1 - (1 - STEP) ** 7  # the last input has no state after it that counts
    assert 0.05 < violated <= mass <= 1 - rule.safety == pytest.approx(8 * 0.05, abs=0.01)
    bounded = RecoveryShield(gambler, level=0.05, total=0.06)
    sources, mass = flown(bounded, 0.8)
    assert 1 <= sources[:7].count("learner") <= 2 and mass <= 0.06
    assert 1 - bounded.safety == pytest.approx(0.06) and 1 - (1 - STEP) ** sources[:7].count("learner") <= 0.06


def test_a_set_that_no_theorem_speaks_of_promises_nothing(gambler):
    known = gambler.confidence
    bound = Constant(rkhs_norm=known.bound.rkhs_norm, subgaussian=0.1, value=2.0)
    guessed = ConfidenceSet(bound).update(known.model)
    assert not guessed.sound
    unsure = RecoveryShield(forged(gambler, confidence=guessed), level=0.0, total=0.0)
    assert unsure.safety == 0.0 and unsure.decide(scalar(0.0), scalar(0.1))[0].source == "backup"
    assert replace(unsure, to_go=gambler).safety > 0.9


class Still:
    """u = −x, which is as much a number as x is."""

    num = 1

    def __call__(self, x):
        return -x

    def select(self, index):
        return self

    def slopes(self, lower, upper):
        one = torch.ones(1, lower.shape[1], 1, dtype=torch.float64)
        return -torch.ones(1, 1, 1, dtype=torch.float64), one, one


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_no_number_is_answered_by_an_input_that_is_one(gambler, value):
    """The backup's answer to NaN was NaN, and went to the plant."""
    made = CostToGo.of(gambler.program, gambler.confidence, Still(), gambler.inputs)
    found, after = RecoveryShield(made, level=1.0).decide(scalar(value), scalar(0.1))
    assert found.source == "backup" and torch.equal(found.u, gambler.inputs.center) and after.stage == 1


def test_control_a_chance_that_is_told_a_third_is_caught(gambler, monkeypatch):
    ahead = type(gambler).ahead
    monkeypatch.setattr(type(gambler), "ahead", lambda self, x, u, left: 0.2 * ahead(self, x, u, left))
    bounded = RecoveryShield(gambler, level=0.05, total=0.06)
    assert 1 - (1 - STEP) ** flown(bounded, 0.8)[0][:7].count("learner") > 1 - bounded.safety


@pytest.mark.slow
@given(st.floats(-2.0, 2.0), st.floats(0.0, 0.3), st.floats(0.0, 0.3))
@settings(max_examples=3)
def test_a_smaller_level_or_mass_never_lets_more_pass(value, level, total):
    loose, tight = (RecoveryShield(toy(), s * level, s * total) for s in (1.0, 0.5))
    assert flown(tight, value)[0].count("learner") <= flown(loose, value)[0].count("learner")
    assert tight.safety >= loose.safety


def test_what_is_not_finite_does_not_pass_and_what_makes_no_sense_is_refused(gambler):
    rule = RecoveryShield(gambler, level=1.1)
    for x, u in ((math.nan, 0.0), (0.0, math.nan), (0.0, math.inf)):
        assert rule.decide(scalar(x), scalar(u))[0].source == "backup"
    assert rule.decide(scalar(0.0), scalar(0.0))[0].source == "learner"
    wrong: list[dict[str, Any]] = [{"level": -0.1}, {"level": 0.1, "total": math.nan}]
    for bad in wrong:
        with pytest.raises(ValueError, match="RecoveryShield"):
            RecoveryShield(gambler, **bad)
    assert rule.assumptions == BudgetFilter(gambler).assumptions
    late = RecoveryShield(gambler, 1.0, stage=8, mass=0.0)
    with pytest.raises(ValueError, match="at most 8 steps"):
        late.decide(scalar(0.0), scalar(0.0))
    assert torch.equal(rule.start().decide(scalar(0.0), scalar(5.0))[0].u, scalar(2.0))
