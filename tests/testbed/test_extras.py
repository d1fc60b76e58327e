"""A missing extra costs what needs it and nothing else, and says what to install."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gpsafe.testbed import check as checks
from gpsafe.testbed import experiment
from gpsafe.testbed.extras import EXTRAS, needed

ROOT = Path(__file__).parents[2]
NEEDS = "from gpsafe.verdict import Verdict\nimport numba\nEXPERIMENT = CHECKS = ()\n"
FINE = "CHECKS = ()\n"


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)


def made(tmp_path, monkeypatch, name, modules):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    for module, text in modules.items():
        (tmp_path / name / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_checks_that_need_a_missing_extra_are_named_and_the_others_found(tmp_path, monkeypatch, without_numba):
    package = made(tmp_path, monkeypatch, "some_checks", {"needs": NEEDS, "fine": FINE})
    assert checks.survey(package) == ({}, {f"{package}.needs": "needs numba: pip install 'gpsafe[mpc]'"})
    with pytest.raises(ImportError, match="needs numba"):
        checks.discover(package)


def test_an_experiment_that_needs_a_missing_extra_says_so(tmp_path, monkeypatch, without_numba):
    package = made(tmp_path, monkeypatch, "some_experiments", {"needs": NEEDS})
    assert experiment.discover(package) == ({}, {f"{package}.needs": "needs numba: pip install 'gpsafe[mpc]'"})


def test_the_search_says_what_it_needs_and_a_name_is_not_taken_for_a_misspelt_one():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import gpsafe\n"
        "from gpsafe.cli import experiments\n"
        "for what in (lambda: gpsafe.CondensedSQP, lambda: experiments.run(['xmpsc-filter'], 'gpsafe')):\n"
        "    try: what()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    first, second = told.splitlines()
    assert first == "ImportError gpsafe.planning.mpc needs numba: pip install 'gpsafe[mpc]'"
    assert second == "UsageError gpsafe.experiments.xmpsc_filter cannot be used: needs numba: pip install 'gpsafe[mpc]'"


def test_control_another_failure_to_import_is_no_missing_extra(tmp_path, monkeypatch):
    package = made(tmp_path, monkeypatch, "torn_checks", {"torn": "import no_such_module_anywhere\n"})
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        checks.survey(package)
    assert needed(ImportError("cannot import name", name="numpy")) is None


def test_every_extra_named_is_one_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {"flint": "python-flint"}
    for module, extra in EXTRAS.items():
        assert any(line.startswith(names.get(module, module).replace("_", "-")) for line in extras[extra]), module


def test_ours_are_found_under_one_name_beside_the_package_or_in_it():
    assert set(experiment.discover()[0]) == set(experiment.discover("experiments")[0])
    assert list(checks.discover()) == list(checks.discover("proofs_checks"))
