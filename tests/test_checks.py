"""Discovery of checks; what each check of the project must have; the same piece is the same sample."""

from __future__ import annotations

import json
import re

import pytest

from gpsafe import checks, store
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


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("broken", [False, True], ids=["claim", "control"])
def test_each_check_of_the_project_gives_the_same_json_able_sample_twice(name, broken):
    once, again = (store.plain(FOUND[name].sample(0, "quick", broken)) for _ in range(2))
    assert repr(once) == repr(again) == repr(json.loads(json.dumps(once)))
