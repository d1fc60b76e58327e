"""Nobody but `gpsafe.plotting` says what a colour is: no hex colours, no names of colours, no marks with one, anywhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from matplotlib.colors import BASE_COLORS, CSS4_COLORS, TABLEAU_COLORS

ROOT = Path(__file__).parents[2]
NAMES = (set(CSS4_COLORS) | set(TABLEAU_COLORS)) - set(BASE_COLORS)
HEX = re.compile(r"#(?:[0-9a-fA-F]{3,4}){1,2}")
MARK = re.compile(r"(?:[bgrcmykw](?:--|-\.|[-:.,ox+*sv^_]){1,2}|C\d)(?:--|-\.|[-:.,ox+*sv^_])?")
KEYWORDS = re.compile(r"(?:.*colou?rs?|c|mfc|mec|fc|ec)$")
FREE = (  # a rendered scene, and a page whose style sheet has no Matplotlib in it
    "gpsafe/plotting",
    "gpsafe/systems/scene.py",
    "gpsafe/testbed/report_template.py",
)
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("gpsafe", "experiments", "proofs_checks", "scripts", "notebooks")
    for path in (ROOT / folder).rglob("*.py")
)


def colours(source: str) -> list[str]:
    """Every string of a source that names a colour to Matplotlib; parts of the page, as in colour("grey"), are none."""
    found = []
    tree = ast.parse(source)
    asked = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "colour"
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in asked:
            word = node.value
            if HEX.fullmatch(word) or word in NAMES:
                found.append(word)
        if isinstance(node, ast.Call):
            for argument in node.args:
                if (
                    isinstance(argument, ast.Constant)
                    and isinstance(argument.value, str)
                    and MARK.fullmatch(argument.value)
                ):
                    found.append(argument.value)
        if isinstance(node, ast.keyword) and node.arg and KEYWORDS.fullmatch(node.arg):
            value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value != "none":
                found.append(value.value)
    return found


def test_no_colour_is_said_outside_the_palette():
    texts = {name: (ROOT / name).read_text() for name in FILES if not name.startswith(FREE)}
    drawing = {
        name: text for name, text in texts.items() if "matplotlib" in text or "plotting" in text or HEX.search(text)
    }
    assert len(drawing) > 40
    assert {name: found for name, text in drawing.items() if (found := colours(text))} == {}


@pytest.mark.parametrize("name", FREE)
def test_the_exceptions_are_there(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize(
    "line",
    [
        'BLUE = "#0072B2"',
        'axes.plot(x, color="black")',
        'axes.plot(x, "k--")',
        'axes.plot(x, "C1o")',
        'axes.scatter(x, c="r")',
        'looks = {"truth": "tab:red"}',
        'axes.plot(x, color="0.8")',
    ],
)
def test_control_a_colour_of_ones_own_is_caught(line):
    assert colours(line)


def test_control_nouns_marks_and_words_are_let_through():
    source = 'axes.plot(x, "o--", color=plotting.colour("grey"), label="the red one"); axes.contourf(z, colors="none")'
    assert colours(source) == []
