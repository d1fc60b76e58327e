"""The README's examples run as they stand."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from gpsafe.testbed.check import discover

README = (Path(__file__).parents[1] / "README.md").read_text()


def example(heading: str) -> dict[str, Any]:
    """Names left by the Python block under a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], names)
    return names


@pytest.mark.slow
def test_actsafe_in_a_notebook(capsys):
    run = example("In a notebook")["run"]
    assert len(run.safe_sets[-1]) > 50 > 5 == len(run.safe_sets[0])
    assert "rkhs_norm" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra 'rl'")
def test_an_agent_behind_the_filter(capsys):
    names = example("An agent behind the filter")
    assert names["info"]["filter"]["backed"] and names["info"]["cost_next"] == 0.0
    assert "'backed': True" in capsys.readouterr().out


def test_the_table_names_every_check_and_no_other():
    table = README.split("\n## Theorem → function → check → verdict\n")[1].split("\n## ")[0]
    named = re.findall(r"^\|(?:[^|]*\|){2} `([^`]*)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(discover("proofs_checks"))
