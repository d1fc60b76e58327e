"""How a claim comes to HOLD: its own interval, a control that is violated, and no term that could be lost unnoticed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gpsafe.testbed.check import Check, Evidence, Grade, Graded, select
from gpsafe.testbed.check_result import CheckResult, Result, Status
from gpsafe.verdict import Outcome, Verdict

ENDS = {Outcome.HOLDS: (0.0, 1.0), Outcome.INCONCLUSIVE: (0.0, 2.0), Outcome.VIOLATED: (1.5, 2.0)}


def result(outcome: Outcome | None, *, witness: str = "", error: str | None = None) -> Result:
    if outcome is None:
        return Result(None, 3, 1, 2.0, error or "piece 0: it broke")
    return Result(Evidence(3, 0.5, Verdict(*ENDS[outcome], 1.0, witness=witness)), 3, 1, 2.0)


def made(claim: Result, control: Result, *grades: Graded) -> CheckResult:
    return CheckResult(PLAIN, claim, control, grades)


def evidence(samples: Any, broken: bool) -> Evidence:
    """The largest of the pieces against 1."""
    values = [s["value"] for s in samples]
    return Evidence(len(values), max(values), Verdict(min(values), max(values), 1.0))


SIZE = {"value": 1.0}


def piece(shard: int, budget: str, broken: bool) -> dict[str, float]:
    return {"value": 2.0 if broken else 0.9 / SIZE["value"] + 0.01 * shard}


PLAIN = Check(
    "plain", "a claim", "nowhere", (), "a number", "a control", {"quick": 2, "full": 5}, piece, evidence,
    control_shards={"quick": 1, "full": 3},
)  # fmt: skip
FOUND = Graded("seen", 0.5, ((1.0, "HOLDS"), (0.5, "VIOLATED")))
TOLD, LOST = Graded("told", None, (), unseen="a reason"), Graded("lost", None, ((1.0, "HOLDS"),))
BROKE = Graded("broke", None, (), error="it broke")


@pytest.mark.parametrize(("claim", "control"), list(itertools.product([*Outcome, None], repeat=2)))
def test_the_status_follows_from_claim_control_and_grades(claim, control):
    for grades, lost in (((), False), ((FOUND, TOLD), False), ((FOUND, LOST), True)):
        found = made(result(claim), result(control), *grades)
        if claim is None or control is None:
            expected = Status.ERROR
        elif claim is Outcome.VIOLATED:  # whatever the controls say
            expected = Status.VIOLATED
        elif control is not Outcome.VIOLATED or lost:
            expected = Status.UNPROVEN
        else:
            expected = Status(claim.value)
        assert found.status is expected and found.passed == (expected is Status.HOLDS)
        assert found.control_outcome is control and bool(found.reason) == (not found.passed)
        assert found.unaccounted == (("lost",) if lost else ())
        assert made(result(claim), result(control), *grades, BROKE).status is Status.ERROR


def test_reasons_name_what_is_missing():
    holds, violated, open_ = (
        result(o, witness="seen") for o in (Outcome.HOLDS, Outcome.VIOLATED, Outcome.INCONCLUSIVE)
    )
    assert made(holds, violated).reason == ""
    assert made(holds, open_).reason == "its control came out INCONCLUSIVE, not VIOLATED, so the check could not fail"
    assert made(holds, violated, LOST, replace(LOST, term="b")).reason == "it does not notice the loss of: lost, b"
    assert made(violated, violated).reason == "[1.5, 2] is above the threshold 1: seen"
    assert made(open_, violated).reason == "[0, 2] does not clear the threshold 1: seen"
    assert made(violated, holds).reason == "[1.5, 2] is above the threshold 1 (and its control came out HOLDS): seen"
    assert made(result(Outcome.VIOLATED), violated).reason == "[1.5, 2] is above the threshold 1"
    assert made(result(None), violated).reason == "piece 0: it broke"
    assert made(holds, result(None, error="a piece broke")).reason == "in the control: a piece broke"
    assert made(holds, violated, FOUND, BROKE).reason == "in the grade 'broke': it broke"
    assert made(holds, violated, replace(FOUND, seconds=0.5), LOST).seconds == 4.5


@contextlib.contextmanager
def scaled(factor: float) -> Iterator[None]:
    SIZE["value"] = factor
    yield
    SIZE["value"] = 1.0


def test_a_grade_is_the_mildest_factor_at_which_the_claim_is_violated():
    grade = Grade("size", scaled, factors=(0.95, 0.85, 0.5))
    found = PLAIN.measure(grade)  # pieces 0.9/g and that + 0.01: both beyond 1 from g < 0.9 on
    assert (found.term, found.noticed, found.accounted) == ("size", 0.85, True)
    assert found.tried == ((1.0, "HOLDS"), (0.95, "HOLDS"), (0.85, "VIOLATED")) and found.unseen == ""
    deaf = PLAIN.measure(replace(grade, factors=(0.95,), unseen="a reason"))
    assert (deaf.noticed, deaf.unseen, deaf.accounted) == (None, "a reason", True)
    assert not PLAIN.measure(replace(grade, factors=(0.95,))).accounted
    assert PLAIN.measure(replace(grade, factors=(0.905,))).tried[-1] == (
        0.905,
        "INCONCLUSIVE",
    )  # of the claim's two pieces
    assert PLAIN.measure(replace(grade, factors=(0.895,))).tried[-1] == (0.895, "VIOLATED")
    assert PLAIN.measure(replace(grade, shards=(10, 10), factors=(0.99,))).noticed == 0.99  # 0.9 + 0.1 as it is
    with pytest.raises(ValueError, match="plain: expected a claim that stands with 'size' times 1"):
        PLAIN.measure(replace(grade, shards=(20,)))
    assert Grade("a", scaled).factors == (0.9, 0.7, 0.5, 0.0)
    for factors in ((), (0.5, 1.0)):
        with pytest.raises(ValueError, match="factors other than 1"):
            Grade("a", scaled, factors=factors)
    assert not Graded("a", 0.5, (), error="it broke").accounted


def test_a_claim_goes_on_while_it_is_open_and_its_control_does_not():
    assert PLAIN.num_shards("quick", False) == 2 and PLAIN.num_shards("quick", True) == 1
    assert PLAIN.num_shards("full", True) == 3 and replace(PLAIN, control_shards=None).num_shards("full", True) == 5
    longer = replace(PLAIN, most={"quick": 6, "full": 3})
    assert (longer.limit("quick", False), longer.limit("quick", True), longer.limit("full", False)) == (6, 1, 5)
    assert PLAIN.limit("quick", False) == 2

    def judge(samples: Any, broken: bool, *, enough: int) -> Evidence:
        return Evidence(len(samples), 0.0, Verdict(0.0, 0.5 if len(samples) >= enough else 2.0, 1.0))

    for enough, expected in ((1, 2), (4, 4), (6, 6), (9, 6)):
        check = replace(longer, judge=lambda s, b, enough=enough: judge(s, b, enough=enough))
        assert check.run().n == expected and check.run(broken=True).n == 1
    assert PLAIN.run("full").n == 5 and PLAIN.run("full", True).n == 3 and PLAIN.run("full", True).estimate == 2.0


def test_evidence_is_of_something():
    for n in (0, -1, True):
        with pytest.raises(ValueError, match="integer n >= 1"):
            Evidence(n, 0.0, Verdict(0.0, 0.5, 1.0))
    assert Evidence(1, 0.0, Verdict(0.0, 0.5, 1.0)).n == 1


def test_checks_are_chosen_by_name_once_each():
    checks = {name: replace(PLAIN, name=name) for name in ("shield", "coverage", "budget")}
    assert list(select(checks, [])) == list(checks) and list(select(checks, ["budget", "shield", "budget"])) == [
        "shield",
        "budget",
    ]
    with pytest.raises(ValueError, match=r"a check, one like shield, got 'sheild'"):
        select(checks, ["sheild"])
    with pytest.raises(ValueError, match=r"one of shield, coverage, budget, got 'xyz'"):
        select(checks, ["xyz"])
