"""A missing extra costs what needs it and nothing else, and says what to install."""

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
