"""The toy experiment in a temporary folder, from which the tests work."""

import pytest
from toy_experiment import importable, module


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with importable(tmp_path, monkeypatch) as name:
        yield name


@pytest.fixture
def toy(package):
    return module(package).EXPERIMENT
