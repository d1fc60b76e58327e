"""Discovery of checks; what each check of the project must have; the same piece is the same sample."""

from __future__ import annotations

import contextlib
import json
import re

import pytest

from gpsafe.testbed import check as checks
from gpsafe.testbed import store
from tests import toy_checks

try:
    FOUND = checks.discover()
except Exception as error:  # reported by the first test; the others have nothing to say then
    FOUND, BROKEN = {}, error
else:
    BROKEN = None

DETERMINISTIC = ("holds", "unclear", "unbounded")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Makes packages of toy checks that can be imported during one test."""
    with toy_checks.importable(tmp_path, monkeypatch) as make:
        yield make


def test_the_projects_own_checks_can_be_imported():
    assert BROKEN is None


def test_discovery_sorts_by_name(toy):
    assert list(checks.discover(toy("violated", "holds"))) == ["holds", "violated"]


def test_discovery_refuses_two_checks_of_one_name(toy):
    with pytest.raises(ValueError, match="discover: expected unique check names, got 'holds'"):
        checks.discover(toy("holds", "violated", "holds"))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_same_piece_is_the_same_json_able_sample(toy, name):
    check = checks.discover(toy(name))[name]
    for broken in (False, True):
        once, again = (store.plain(check.sample(0, "quick", broken)) for _ in range(2))
        assert once == again == json.loads(json.dumps(once))
    assert check.sample(0, "quick", False) != check.sample(0, "quick", True)


def test_control_shards_default_to_the_claims(toy):
    found = checks.discover(toy("holds", "unbounded"))
    assert [found["holds"].num_shards("quick", broken) for broken in (False, True)] == [3, 3]
    assert [found["unbounded"].num_shards("full", broken) for broken in (False, True)] == [2, 2]


def test_run_judges_all_pieces(toy):
    check = checks.discover(toy("holds"))["holds"]
    assert check.run().n == 3 * 400
    assert check.run("full", broken=True).verdict.outcome == "VIOLATED"


@pytest.mark.parametrize("name", FOUND)
def test_each_check_of_the_project_says_what_a_reader_needs(name):
    check = FOUND[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", check.name)
    for words in (check.claim, check.source, check.statistic, check.control):
        assert words.strip()
        assert "\n" not in words
    assert isinstance(check.assumptions, tuple)
    assert all(isinstance(words, str) and words.strip() for words in check.assumptions)
    for budget in checks.BUDGETS:
        for broken in (False, True):
            assert check.num_shards(budget, broken) >= 1


UNGRADED = {  # checks without graded controls, and why: a new check has some or stands here with its reason
    "actsafe-pendulum": "one run takes about as long as the graded controls of all others together; its parts are graded in "
    "cost-bounds-sound (the robust program) and in coverage-mixture (β)",
}


def test_every_check_has_graded_controls_or_a_reason_for_having_none():
    without = {name for name, check in FOUND.items() if not check.grades}
    assert without == UNGRADED.keys(), "say in UNGRADED why a check has none, and strike out those that have some"
    assert all(len(reason.split()) > 5 for reason in UNGRADED.values())


def test_what_a_check_cannot_notice_is_explained_and_not_all_of_it():
    for name, check in FOUND.items():
        assert not check.grades or any(not grade.unseen for grade in check.grades), name
        assert all(not grade.unseen or len(grade.unseen.split()) > 5 for grade in check.grades), name


GRADES = [(name, grade.term) for name, check in FOUND.items() for grade in check.grades]
SUBTLE = [  # parts of an error term whose loss the learned plants do not show
    ("shield", "RKHS norm B between points"),
    ("shield", "Taylor rest"),
    ("scenario-tubes", "Taylor rest"),
    ("scenario-tubes", "Hessian remainder of the known part"),
    ("gaussian-tubes", "κ in R_t"),
    ("cost-bounds-sound", "robust: kernel slack in cells"),
    ("policy-distance", "residual's part of the push"),
    ("width-order", "mixture width"),
    ("coverage-mixture", "norm B"),
    ("xmpsc-tube-ensemble", "σ over the section"),
]


def grade_of(name, term):
    return next(grade for grade in FOUND[name].grades if grade.term == term)


@pytest.mark.parametrize("name", FOUND)
def test_the_grades_of_a_check_name_different_terms_and_pieces_that_exist(name):
    check = FOUND[name]
    assert len({grade.term for grade in check.grades}) == len(check.grades)
    for grade in check.grades:
        distance = [abs(1.0 - factor) for factor in grade.factors]
        assert distance == sorted(distance)
        for shard in grade.shards or ():
            assert all(0 <= shard < check.num_shards(budget, False) for budget in checks.BUDGETS)


@pytest.mark.parametrize(("name", "term"), SUBTLE)
def test_a_tenth_of_a_subtle_term_is_missed(name, term):
    assert FOUND[name].measure(grade_of(name, term)).noticed >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "term"), GRADES)
def test_each_term_is_noticed_or_its_loss_is_explained_and_its_patch_alone_changes_nothing(name, term):
    check, grade = FOUND[name], grade_of(name, term)
    shards = range(check.num_shards("quick", False)) if grade.shards is None else grade.shards
    with grade.scaled(1.0):
        patched = check.judge([store.plain(check.sample(shard, "quick", False)) for shard in shards], False)
    honest = check.judge([store.plain(check.sample(shard, "quick", False)) for shard in shards], False)
    assert patched.estimate == pytest.approx(honest.estimate, rel=1e-9, abs=1e-12)
    assert check.measure(grade).accounted


def test_a_grade_needs_factors_that_scale():
    for factors in ((), (0.9, 1.0)):
        with pytest.raises(ValueError, match="Grade: expected factors other than 1"):
            checks.Grade("term", lambda factor: contextlib.nullcontext(), factors=factors)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("broken", [False, True], ids=["claim", "control"])
def test_each_check_of_the_project_gives_the_same_json_able_sample_twice(name, broken):
    once, again = (store.plain(FOUND[name].sample(0, "quick", broken)) for _ in range(2))
    assert repr(once) == repr(again) == repr(json.loads(json.dumps(once)))
