"""The filter answers whatever a proposer raises, returns or writes on, and says so; what could never work is refused."""

import asyncio
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from filter_cases import (
    RAISED,
    RETURNED,
    Moody,
    Mute,
    Odd,
    Pair,
    Wordless,
    linear_case,
    linear_filter,
    told,
    worst_disturbance,
)

from gpsafe.certify import judge
from gpsafe.linalg import vector
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Polytope
from gpsafe.tube import LinearTube

ORIGIN = vector(0.0, 0.0)


def answered(proposer: object) -> None:
    """By the stored plan until its end, then by the backup, all backed, bit for bit as with a proposer without plan."""
    problem, sure = copy.deepcopy(linear_case())  # its copy may be spoilt
    x = vector(0.7, 0.3)
    first, fine = SafetyFilter(problem, Moody(), sure).decide(x, vector(1.0))
    assert first.backed
    odd, quiet = (replace(fine, proposer=p) for p in (proposer, Moody(False, "nan")))
    model = fine.problem.model
    assert isinstance(model, LinearTube)
    before, u = copy.deepcopy(fine.problem), first.u
    for stage in range(1, 7):
        x = model.plant(x, u)
        x = x + worst_disturbance(model.half_axes, fine.problem.states, x)
        (decision, odd), (expected, quiet) = odd.decide(x, vector(1.0)), quiet.decide(x, vector(1.0))
        assert decision.backed
        assert decision.source == ("stored" if stage < 4 else "backup")
        assert torch.equal(decision.u, expected.u)
        assert decision.reason
        u = decision.u
    for name in ("states", "inputs", "terminal"):
        assert torch.equal(getattr(odd.problem, name).h, getattr(before, name).h)
    assert torch.equal(odd.problem.gain, before.gain)
    assert isinstance(before.model, LinearTube)
    assert torch.equal(model.half_axes, before.model.half_axes)
    assert torch.equal(model.plant.A, before.model.plant.A)


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_whatever_a_proposer_raises_is_answered_and_told(error, caplog):
    answered(Odd(error))
    decision, _ = linear_filter(proposer=Odd(error)).decide(vector(0.2, 0.1), vector(0.0))
    assert (decision.source, decision.backed, decision.certificate) == ("backup", True, None)
    assert f"the proposer failed: {type(error).__name__}" in decision.reason
    message = "message fails" if isinstance(error, Wordless) else str(error)
    assert message in decision.reason
    assert "the proposer failed" in caplog.text


@pytest.mark.parametrize("name", RETURNED)
def test_whatever_a_proposer_returns_or_writes_on_is_answered(name):
    def settings():
        return np.geterr(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()

    before = settings()
    answered(Odd(RETURNED[name]))
    assert settings() == before


@pytest.mark.parametrize(
    "wish",
    [
        KeyboardInterrupt(),
        SystemExit(1),
        BaseExceptionGroup("of tasks", [ValueError("no"), BaseExceptionGroup("inner", [KeyboardInterrupt()])]),
    ],
)
def test_a_wish_to_stop_is_no_failure_of_a_proposer(wish):
    with pytest.raises(type(wish)):
        linear_filter(proposer=Odd(wish)).decide(ORIGIN, vector(0.0))


def test_a_model_that_fails_at_a_wild_plan_is_a_plan_refused():
    class Brittle(Pair):
        def linearise(self, x, u):
            if bool((u.abs() > 10).any()):
                raise KeyError("no table entry")
            return super().linearise(x, u)

    problem, _ = linear_case()
    assert isinstance(problem.model, LinearTube)
    brittle = SafetyFilter(replace(problem, model=Brittle(problem.model, vector(0.0, 0.0))), Moody())
    _, running = brittle.decide(ORIGIN, vector(0.0))
    decision, _ = replace(running, proposer=Moody(False, "far")).decide(ORIGIN, vector(0.0))
    assert (decision.source, decision.backed) == ("stored", True)
    assert "tube could not be made: KeyError: 'no table entry'" in decision.reason


@pytest.mark.parametrize(
    "proposer",
    [
        None,
        Moody,
        "CondensedSQP",
        torch.zeros(4, 1),
        Odd(None).propose,
        type("Wrong", (), {"propose": lambda self, x: x})(),
    ],
)
def test_what_cannot_be_asked_for_plans_is_refused_at_once(proposer):
    with pytest.raises(ValueError, match="expected a proposer"):
        linear_filter(proposer=proposer)


def test_a_proposer_that_lacks_what_it_needs_is_an_error_at_the_start():
    class Unbuilt(Moody):
        def prepare(self, problem):
            raise ImportError("No module named 'solver'")

    with pytest.raises(ImportError, match="solver"):
        linear_filter(proposer=Unbuilt()).start()


def cancelled(x):
    raise asyncio.CancelledError


def test_an_error_without_words_is_told():
    decision, _ = linear_filter(proposer=Odd(Mute())).decide(vector(0.2, 0.1), vector(0.0))
    assert "Mute: (its message fails)" in decision.reason


@pytest.mark.parametrize("backup", [1 / 3, "κ"])
def test_a_backup_that_is_no_law_is_refused(backup):
    with pytest.raises(ValueError, match="backup law"):
        SafetyFilter(linear_case()[0], Moody(), backup=backup)


@pytest.mark.parametrize(
    "law",
    [cancelled, lambda x: 1 / 0, lambda x: None, lambda x: x, lambda x: x[0], lambda x: "left", lambda x: x.fill_(9.0)],
)
def test_a_backup_that_fails_is_told_and_backs_nothing(law, caplog):
    safe = SafetyFilter(linear_case()[0], Moody(False), backup=law)
    x = vector(0.9, 0.9)
    decision, _ = safe.decide(x, vector(0.4))
    assert torch.equal(x, vector(0.9, 0.9))
    assert (decision.source, decision.backed) == ("unfiltered", False)
    assert torch.equal(decision.u, vector(0.4))
    assert "the backup failed" in decision.reason
    assert "the backup failed" in caplog.text
    planned, _ = replace(safe, proposer=Moody()).decide(ORIGIN, vector(0.0))
    assert (planned.source, planned.backed, planned.reason) == ("plan", True, "")


def test_a_plan_that_another_model_certified_brings_its_assumptions_along():
    problem, _ = linear_case()
    paper = replace(problem, model=replace(problem.model, mode="paper"), assumptions=("the paper's tube",))
    _, running = SafetyFilter(paper, Moody()).decide(ORIGIN, vector(0.0))
    taken_over = SafetyFilter(problem, Odd(None), stored=running.stored, stage=1)
    decision, _ = taken_over.decide(running.stored.tube.center[0, 1], vector(0.0))
    assert decision.backed and "the paper's tube" in taken_over.assumptions
    assert "the paper's tube" not in taken_over.start().assumptions


def test_a_stored_plan_must_be_certified_and_for_these_sets():
    _, running = linear_filter().decide(ORIGIN, vector(0.0))
    problem, _ = linear_case()
    liar = judge(problem, ORIGIN, vector(0.0), told(torch.full((4, 1), 2.0).double()))
    with pytest.raises(ValueError, match="certified plan"):
        replace(running, stored=liar)
    small = Polytope(problem.states.H, 0.9 * problem.states.h)
    with pytest.raises(ValueError, match="these sets"):
        SafetyFilter(replace(problem, states=small), Moody(), stored=running.stored, stage=1)
    wide = judge(replace(problem, tolerance=1.0), ORIGIN, vector(0.0), told(torch.full((4, 1), 0.4).double()))
    assert wide.certified
    with pytest.raises(ValueError, match="within a tolerance of 0"):  # it may leave X by 1, and was backed
        replace(running, stored=wide)
    for wrong in ({"stage": True}, {"stage": 1.0}, {"stage": -1}, {"failures": 0.5}, {"soften": True}):
        with pytest.raises(ValueError, match="integer"):
            replace(running, **wrong)
