"""The report: strict JSON with the agreed fields, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpsafe import plotting
from gpsafe.testbed import check as checks
from gpsafe.testbed import report, store, verify
from gpsafe.testbed import report_claims as claims
from gpsafe.testbed.report_figures import figure_uris, interval_svg, number
from gpsafe.testbed.report_first import headlines
from tests import toy_checks

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def written(results, env):
    return report.html(results, env)


class Page(HTMLParser):
    """Collects tags, checks nesting, and gathers text."""

    VOID = frozenset({"meta", "img", "link", "br", "source"})

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


def test_html_loads_nothing_and_is_well_formed(written):
    page = Page(written)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        for attribute in ("src", "href", "srcset", "xlink:href", "action", "data"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
        assert not any(attribute.startswith("on") for attribute in attributes)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http://" not in written
    assert "https://" not in written
    style = re.search(r"<style>(.*?)</style>", written, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert {f"check-{name}" for name in NAMES} <= links <= set(ids)


def test_html_says_every_verdict_in_words_and_escapes_the_checks_text(written):
    text = written
    page = Page(text)
    for status in verify.Status:
        assert status.value in page.text
    assert "<script>alert('x')</script>" in page.text  # as text, not as an element
    assert "1 of 6" not in page.text
    assert "2 of 6 claims hold, each with its control caught." in page.text
    assert "2 further checks were not selected" in page.text
    assert "missed (HOLDS)" in page.text
    assert "The figure could not be drawn: ValueError: no <axis>" in page.text
    assert "'a&b.html'" in page.text
    assert "Traceback" in page.text


def test_every_picture_has_a_description(written):
    page = Page(written)
    images = [a for tag, a in page.tags if tag == "img"]
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(images) == 1
    assert images[0]["alt"].startswith("Figure of P(miss)")
    assert len(drawings) == 6  # the broken check still has its control
    assert all(a["role"] == "img" and "threshold" in a["aria-label"] for a in drawings)


def test_figures_are_the_same_each_time_and_carry_no_date(results):
    result = next(r for r in results if r.check.name == "holds")
    uris, why = figure_uris(result)
    assert why == ""
    assert uris == figure_uris(result)[0]
    for uri, page in zip(uris, (plotting.LIGHT.page, plotting.DARK.page), strict=True):
        svg = base64.b64decode(uri.split(",", 1)[1]).decode()
        assert svg.count("<svg") == 1
        assert "<dc:date>" not in svg
        assert page in svg.lower()


def test_large_figures_become_png(results, monkeypatch):
    monkeypatch.setattr("gpsafe.testbed.report_figures.MAX_SVG_BYTES", 100)
    uris, _ = figure_uris(next(r for r in results if r.check.name == "holds"))
    assert all(uri.startswith("data:image/png;base64,iVBOR") for uri in uris)
    assert uris.light != uris.dark


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
            assert 0 <= float(value) <= 420


@given(st.none() | st.integers() | st.floats(-1e300, 1e300))
def test_numbers_keep_their_value(value):
    text = number(value)
    assert "-" not in text
    if isinstance(value, float):
        assert float(text.replace("−", "-")) == pytest.approx(value, rel=1e-3)


# --------------------------------------------------------------------------------------------- the first screen
def test_the_first_screen_says_what_was_tested_what_holds_what_is_assumed_and_what_is_not_said(written):
    text = written
    titles = re.findall(r'<section class="card"><h2>(.*?)</h2>', text)
    assert titles == ["What was tested", "What holds", "What is assumed", "What it does not say"]
    before = Page(text[: text.index('<h2 id="reading"')] + "</main></body></html>").text
    assert "2 of 6 claims" in before
    assert "5 of 6 controls were caught" in before
    assert all(
        name in before for name in ("violated", "unproven", "unclear", "raises")
    )  # what fails is on the first screen
    assert "RKHS norm" in before
    assert "Tested on" not in before and "plants here" not in before  # these checks are not the project's own
    assert text.index('class="headlines"') < text.index('id="reading"') < text.index('id="group-further-claims"')


def test_a_control_that_was_caught_is_never_shown_as_a_ticked_violation(results, written):
    text = written
    assert not re.search(r"✓</span> VIOLATED", text)
    assert text.count("✓</span> caught") == 2 * sum(r.control_outcome == "VIOLATED" for r in results)
    assert text.count("!</span> missed (HOLDS)") == 2 * sum(r.control_outcome == "HOLDS" for r in results)


def test_every_claim_stands_in_a_sentence_beside_its_name(written):
    pattern = r'<th scope="row"><a href="#check-[^"]*">([^<]*)</a><span class="sentence">(.*?)</span>'
    rows = re.findall(pattern, written)
    assert [name for name, _ in rows] == sorted(NAMES)
    assert all(sentence.startswith("P(miss) ≤ 0.1") for _, sentence in rows)


def test_figures_follow_the_page_into_the_dark(written):
    page = Page(written)
    (source,) = (a for tag, a in page.tags if tag == "source")
    (image,) = (a for tag, a in page.tags if tag == "img")
    assert source["media"] == "screen and (prefers-color-scheme:dark)"
    assert source["srcset"] != image["src"]


def test_the_figures_of_both_papers_open_the_report_where_they_are_there():
    shown = (figure_uris, "")
    assert headlines(dict.fromkeys(("a", "b", "coverage-mixture", "actsafe-executed-safe"), shown)) == [
        "actsafe-executed-safe", "coverage-mixture", "a",
    ]  # fmt: skip
    assert headlines({"a": (None, "broken"), "b": (None, "")}) == []


@pytest.fixture(scope="module")
def ours():
    return checks.discover()


def test_every_check_of_ours_belongs_to_a_paper_and_leads_to_its_theorem_and_its_code(ours, tmp_path):
    links = claims.Links.of(ROOT / "report")
    titles = {group.title for group in claims.GROUPS}
    for name, check in ours.items():
        assert claims.group_of(check.source).title in titles, name
        assert claims.ours(check), name
        theorems, code = links.theorems(name, check.source), links.code(check)
        assert theorems, name
        assert code[0][0].startswith("proofs_checks/"), name
        for _, target in theorems + code:
            file, _, anchor = target.partition("#")
            path = (ROOT / "report" / file).resolve()
            assert path.is_file(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
                assert anchor in map(claims.slug, headings), target
    assert claims.Links.of(None) is None
    far = claims.Links.of(tmp_path / "a" / "b")
    assert (
        (tmp_path / "a" / "b" / far.theorems("xmpsc-filter", "theory §6.8")[0][1].partition("#")[0]).resolve().is_file()
    )


def test_known_checks_are_in_the_group_one_would_look_in(ours):
    groups = claims.grouped(ours.values(), lambda check: check.source)
    found = {group.title: {check.name for check in items} for group, items in groups.items()}
    assert {"actsafe-executed-safe", "cost-bounds-sound", "simulation-lemma"} <= found["ActSafe"]
    assert {"xmpsc-filter", "xmpsc-outer-sum", "shield", "noise-box"} <= found["X-MPSC"]
    assert {"coverage-srinivas", "width-order", "falsification-norm"} <= found["Shared foundations"]
    assert sum(map(len, found.values())) == len(ours)


@pytest.mark.parametrize(
    ("lower", "upper", "estimate", "words"),
    [
        (1.0, 1.0, 1.0, "one point"),
        (0.0, 0.098, 0.0, "nothing was seen"),
        (-float("inf"), 0.5, 0.0, "only an upper limit"),
        (0.5, float("inf"), 0.6, "only a lower limit"),
        (-float("inf"), float("inf"), 0.0, "say nothing"),
        (0.7, 1.0, 1.0, "one-sided"),
        (0.1, 0.3, 0.2, ""),
        (None, None, None, ""),
    ],
)
def test_intervals_that_are_no_ordinary_ones_are_explained(lower, upper, estimate, words):
    said = claims.interval_words({"lower": lower, "upper": upper, "estimate": estimate})
    assert words in said
    assert bool(said) == bool(words)


def test_the_json_says_the_group(results, env):
    assert {item["group"] for item in report.document(results, env)["checks"]} == {"Further claims"}
