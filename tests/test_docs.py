"""The examples of docs/ run as they stand, and what they say comes out."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "your-plant.md").read_text()
BLOCKS = {
    title: re.search(r"```python\n(.*?)```", part, flags=re.S).group(1)  # type: ignore[union-attr]
    for title, part in re.findall(r"\n## (.*?)\n(.*?)(?=\n## |\Z)", TEXT, flags=re.S)
    if "```python" in part
}
PLANTS = [title for title, code in BLOCKS.items() if "sound_learner" in code]


def test_three_plants_in_at_most_25_lines_each():
    assert len(PLANTS) == 3
    for title in PLANTS:
        assert sum(bool(line.strip()) for line in BLOCKS[title].splitlines()) <= 25, title


@pytest.mark.parametrize("title", [pytest.param(t, marks=[] if "Duffing" in t else [pytest.mark.slow]) for t in PLANTS])
def test_a_plant_of_ones_own_is_explored_under_the_verifier(title, capsys):
    names: dict = {}
    exec(compile(BLOCKS[title], title, "exec"), names)
    learner, system = names["learner"], names["system"]
    rows = learner.logger.frame()
    certified = rows[rows["guaranteed"]]
    assert len(certified) >= 1 and bool((certified["from_plan"] > 0).all())
    assert bool((rows["cost"] == 0).all())  # every assumption is true here: a violation would be an error
    assert float(system.cost(learner.history[-1][0]).max()) == 0.0
    assert "from_plan" in capsys.readouterr().out


@pytest.mark.slow
def test_an_agent_learns_behind_the_certifier(capsys):
    (title,) = [title for title, code in BLOCKS.items() if "XMPSC" in code]
    names: dict = {}
    exec(compile(BLOCKS[title], title, "exec"), names)
    rows = names["learner"].logger.frame()
    trained, warm = (rows[rows["phase"] == phase] for phase in ("train", "warm-up"))
    assert len(trained) == 10 and len(warm) == 15
    assert trained["from_plan"].sum() > 0.9 * trained["steps"].sum()
    assert trained["reward"].mean() > warm["reward"].mean() and trained["violations"].sum() <= 5
    assert "from_plan" in capsys.readouterr().out


@pytest.mark.slow
def test_models_and_certifiers_are_compared_on_a_plant_of_ones_own(capsys):
    text = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names: dict = {}
    exec(compile(code, "docs/compare.md", "exec"), names)
    frame = names["found"].frame()
    assert list(frame["certifier"]) == ["none", "tube-paper"] and list(frame["steps"]) == [20, 20]
    assert "covered" in capsys.readouterr().out


def test_a_recording_is_examined(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names: dict = {}
    exec(compile(code, "docs/your-data.md", "exec"), names)
    refuted = {one.name for one in names["found"].refuted}
    assert {"level", "tail", "held"} <= refuted and "norm" not in refuted
    assert "no test refutes from R = 0.04" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()
