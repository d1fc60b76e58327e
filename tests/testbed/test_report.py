"""The report: strict JSON with the agreed fields, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.testbed import check as checks
from gpsafe.testbed import report, store, verify
from gpsafe.testbed.report_figures import figure_uri, interval_svg, number
from tests import toy_checks

NAMES = ("holds", "violated", "unproven", "unclear", "unbounded", "raises")
GRADED = ("graded", "blind", "blind-told", "grade-raises", "grade-harms")
FIELDS = {
    **dict.fromkeys(("name", "claim", "source", "statistic", "verdict", "control", "control_verdict"), str),
    "assumptions": list,
    "seconds": float,
    **dict.fromkeys(("shards", "control_shards", "shards_reused"), int),
    **dict.fromkeys(("data", "control_data"), dict),
}
NUMBERS = ("n", "estimate", "lower", "upper", "threshold", "tol")
ENVIRONMENT = {
    *("python", "gpsafe", "torch", "gpytorch", "botorch", "cvxpy", "numpy", "platform", "cpu_count"),
    *("git_revision", "git_dirty", "budget", "started_at", "seconds", "command"),
}


def refuse(literal):
    raise AssertionError(f"{literal} is no strict JSON")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch, toy_checks.importable(folder, patch) as make:
        package = make(*NAMES)
        found = checks.discover(package)
        yield verify.verify(found, package=package, cache=folder / "cache", workers=0)


@pytest.fixture(scope="module")
def env():
    return report.environment(
        budget="quick",
        command="gpsafe verify --html 'a&b.html'",
        started_at="2024-01-01T00:00:00+00:00",
        seconds=1.5,
        workers=2,
        selected=6,
        known=8,
    )


class Page(HTMLParser):
    """Collects tags, checks nesting, and gathers text."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def test_json_is_strict_and_has_the_agreed_fields(results, env, tmp_path):
    path = store.write_json(tmp_path / "out.json", report.document(results, env))
    back = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert back["environment"].keys() >= ENVIRONMENT
    assert [item["name"] for item in back["checks"]] == sorted(NAMES)
    for item in back["checks"]:
        for field, kind in FIELDS.items():
            assert isinstance(item[field], kind), field
        assert item["verdict"] in set(verify.Status)
        for field in (*NUMBERS, *(f"control_{name}" for name in NUMBERS)):
            if item[field] is None:
                assert item["verdict"] == "ERROR"
            else:
                float(item[field])  # a number, or the name of an infinity
    items = {item["name"]: item for item in back["checks"]}
    assert (items["unbounded"]["lower"], items["unbounded"]["control_upper"]) == ("-Infinity", "Infinity")
    assert items["unbounded"]["control_estimate"] == "NaN"
    assert items["holds"]["data"]["far"] == "Infinity"
    assert items["raises"]["error"] == "piece 1: RuntimeError: not positive definite"
    assert items["unproven"]["outcome"] == "HOLDS"


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graded")
    with pytest.MonkeyPatch.context() as patch, toy_checks.importable(folder, patch) as make:
        package = make(*GRADED)
        found = checks.discover(package)
        yield verify.verify(found, package=package, cache=folder / "cache", workers=0)


def test_a_term_that_can_be_lost_unnoticed_is_shown_as_such_and_never_hidden(graded, env, tmp_path):
    path = store.write_json(tmp_path / "out.json", report.document(graded, env))
    items = {item["name"]: item for item in json.loads(path.read_text(encoding="utf-8"))["checks"]}
    shares, spare = items["graded"]["grades"]
    assert (shares["term"], shares["noticed"]) == ("the share", 0.7)
    assert shares["tried"] == [[1.0, "HOLDS"], [0.9, "HOLDS"], [0.7, "VIOLATED"]]
    assert (spare["noticed"], spare["unseen"]) == (0.0, "")  # a reason given in vain is not shown
    assert items["graded"]["verdict"] == "HOLDS"
    assert items["blind"]["verdict"] == "UNPROVEN"
    assert items["blind"]["grades"][0]["noticed"] is None
    assert items["blind"]["reason"] == "it does not notice the loss of: nothing"
    assert items["blind-told"]["verdict"] == "HOLDS"
    assert items["blind-told"]["grades"][0]["unseen"] == "it is <nothing>"
    assert [items[name]["verdict"] for name in ("grade-raises", "grade-harms")] == ["ERROR", "ERROR"]
    text = report.html(graded, env)
    page = Page(text)
    for words in ("× 0.7", "× 0.9 HOLDS, × 0.7 VIOLATED", "dropped", "! not noticed", "not noticed (it is <nothing>)"):
        assert words in page.text
    assert text.count('class="grades"') == len(GRADED)
    lines = {result.check.name: report.noticed(result) for result in graded}
    assert lines["graded"] == "the share: × 0.7; spare: dropped"
    assert lines["blind"] == "nothing: not noticed"


def test_environment_names_the_revision_of_this_checkout(env):
    assert env["git_revision"] is None or re.fullmatch(r"[0-9a-f]{40,64}", env["git_revision"])
    assert env["git_dirty"] in (None, True, False)
    assert env["python"].startswith("3.")


def test_html_loads_nothing_and_is_well_formed(results, env):
    page = Page(report.html(results, env))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        for attribute in ("src", "href", "srcset", "xlink:href", "action", "data"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
        assert not any(attribute.startswith("on") for attribute in attributes)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http://" not in report.html(results, env)
    assert "https://" not in report.html(results, env)
    style = re.search(r"<style>(.*?)</style>", report.html(results, env), re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert links == {f"check-{name}" for name in NAMES} <= set(ids)


def test_html_says_every_verdict_in_words_and_escapes_the_checks_text(results, env):
    text = report.html(results, env)
    page = Page(text)
    for status in verify.Status:
        assert status.value in page.text
    assert "<script>alert('x')</script>" in page.text  # as text, not as an element
    assert "1 of 6" not in page.text
    assert "2 of 6 claims hold, with a violated control each." in page.text
    assert "2 further checks were not selected" in page.text
    assert "not violated: HOLDS" in page.text
    assert "The figure could not be drawn: ValueError: no <axis>" in page.text
    assert "'a&b.html'" in page.text
    assert "Traceback" in page.text


def test_every_picture_has_a_description(results, env):
    page = Page(report.html(results, env))
    images = [a for tag, a in page.tags if tag == "img"]
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(images) == 1
    assert images[0]["alt"].startswith("Figure of holds")
    assert len(drawings) == 6  # the broken check still has its control
    assert all(a["role"] == "img" and "threshold" in a["aria-label"] for a in drawings)


def test_figures_are_the_same_each_time_and_carry_no_date(results):
    result = next(r for r in results if r.check.name == "holds")
    uri, why = figure_uri(result)
    assert why == ""
    assert uri == figure_uri(result)[0]
    svg = base64.b64decode(uri.split(",", 1)[1]).decode()
    assert svg.count("<svg") == 1
    assert "<dc:date>" not in svg


def test_large_figures_become_png(results, monkeypatch):
    monkeypatch.setattr("gpsafe.testbed.report_figures.MAX_SVG_BYTES", 100)
    uri, _ = figure_uri(next(r for r in results if r.check.name == "holds"))
    assert uri.startswith("data:image/png;base64,iVBOR")


def test_summary_is_honest(results):
    passed = [r for r in results if r.passed]
    assert report.summary(passed).startswith("All 2 claims hold")
    assert report.summary(passed[:1]).startswith("The claim holds")
    words = report.summary(results)
    assert "1 violated, 1 inconclusive, 1 unproven (a control did not fail), 1 broken by an error" in words


ENDS = st.tuples(*[st.floats(allow_nan=False)] * 2).map(sorted)


@given(ENDS, ENDS, st.floats(), st.floats(allow_nan=False))
def test_interval_drawing_stays_inside_its_frame(claim, control, estimate, threshold):
    bar = {"threshold": threshold, "estimate": estimate}
    claim, control = ({"lower": low, "upper": high} | bar for low, high in (claim, control))
    record = claim | {"outcome": "HOLDS", "control_verdict": "VIOLATED"}
    record |= {f"control_{key}": value for key, value in control.items()}
    drawing = interval_svg(record)
    for attribute in ("x", "cx", "width"):
        for value in re.findall(rf' {attribute}="([^"]*)"', drawing):
            assert 0 <= float(value) <= 644


@given(st.none() | st.integers() | st.floats(-1e300, 1e300))
def test_numbers_keep_their_value(value):
    text = number(value)
    assert "-" not in text
    if isinstance(value, float):
        assert float(text.replace("−", "-")) == pytest.approx(value, rel=1e-3)
