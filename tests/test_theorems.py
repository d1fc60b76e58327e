"""docs/theorems.md: every statement of both papers names what there is, every check belongs to one, the page is as made."""

import html
import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.mathtext import MathTextParser
from test_citations import exists, known, unknown

from gpsafe.testbed.check import discover

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("theorems", ROOT / "scripts" / "theorems.py")
assert spec is not None and spec.loader is not None
theorems = sys.modules["theorems"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(theorems)
CLAIMS = theorems.claims()


# ------------------------------------------------------------------------------------------------------- statements
def wrong(claim) -> list[str]:
    """What a statement names that is nothing."""
    return (
        [name for name in claim.checks if name not in discover()]
        + [name for name in claim.code if not exists(name)]
        + [number for number in claim.theory if number not in known("theory")]
        + unknown(f"{claim.statement} {claim.undecided}")
    )


def test_every_statement_names_checks_functions_and_proofs_that_exist():
    assert {claim.name: found for claim in CLAIMS if (found := wrong(claim))} == {}


def test_control_a_name_that_is_nothing_is_seen():
    claim = CLAIMS[0]
    broken = replace(
        claim, checks=("simulation-lemmas",), code=("confidence.Mixtures",), theory=("99.9",), undecided="`no/file.py`"
    )
    assert wrong(broken) == ["simulation-lemmas", "confidence.Mixtures", "99.9", "no/file.py"]


def test_every_check_belongs_to_a_statement():
    assert {name for claim in CLAIMS for name in claim.checks} == set(discover())


def test_statements_are_numbered_in_the_order_of_their_papers():
    for paper in theorems.PAPERS:
        numbers = [int(claim.name.split("_")[1]) for claim in CLAIMS if claim.paper == paper]
        assert numbers == list(range(1, len(numbers) + 1)) and numbers
    assert len({claim.heading for claim in CLAIMS}) == len(CLAIMS)


@pytest.mark.slow
def test_every_equation_is_latex_that_can_be_set():
    parser = MathTextParser("path")
    for claim in CLAIMS:
        for formula in claim.latex:
            assert parser.parse(f"${formula}$").width > 0, claim.name


@pytest.mark.parametrize("change", [{"checks": (), "undecided": ""}, {"kind": "hope"}, {"latex": ()}, {"theory": ()}])
def test_a_statement_without_what_it_needs_is_refused(change):
    with pytest.raises(ValueError, match=CLAIMS[0].name):
        replace(CLAIMS[0], **change)


# -------------------------------------------------------------------------------------------------------------- page
def test_the_page_is_the_one_that_is_made():
    assert theorems.PAGE.read_text() == theorems.page(theorems.stored()), "make theorems"


def test_the_page_has_each_statement_and_each_check_once_with_its_words():
    page = theorems.PAGE.read_text()
    for claim in CLAIMS:
        assert page.count(f"\n### {theorems.plain(claim.heading)}\n") == 1
        assert all(page.count(f"```math\n{formula}\n```") == 1 for formula in claim.latex)
    for name, check in discover().items():
        part = page.split(f"\n### `{name}`\n")
        assert len(part) == 2, name
        part = part[1].split("\n### ")[0]
        words = html.unescape(part).replace("\\", "")
        assert check.control.replace("\\", "") in words and "../proofs_checks/" in part
        assert re.search(r"\]\((theory|xmpsc)\.md#", part), name
        assert all(grade.term.replace("\\", "") in words for grade in check.grades)


def test_every_check_has_a_stored_verdict_that_holds_and_a_control_that_was_caught():
    told = theorems.stored()
    assert set(told) == set(discover())
    assert {
        name for name, one in told.items() if (one["verdict"], one["control_verdict"]) != ("HOLDS", "VIOLATED")
    } == set()


def test_a_report_replaces_the_verdicts_of_its_checks_and_no_others():
    record = {**dict.fromkeys(theorems.KEPT), "name": "b", "verdict": "VIOLATED", "grades": []}
    report = {
        "environment": {"git_revision": "0123456789", "started_at": "2026-01-02T03:04:05", "budget": "full"},
        "checks": [record],
    }
    told = theorems.merged({"a": {"verdict": "HOLDS"}, "b": {"verdict": "HOLDS"}}, report)
    assert told["a"] == {"verdict": "HOLDS"}
    assert (told["b"]["verdict"], told["b"]["revision"], told["b"]["date"]) == ("VIOLATED", "0123456", "2026-01-02")
    assert json.loads(json.dumps(told)) == told
