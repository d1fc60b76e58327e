"""The examples of docs/extending.md are one project that runs: a system, a model, a bound, a check, an experiment."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from gpsafe.data import Transitions
from gpsafe.models import DynamicsModel
from gpsafe.systems import System
from gpsafe.testbed import check as checks
from gpsafe.testbed import experiment as experiments
from gpsafe.verdict import Outcome

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = dict(re.findall(r"\n## (.*?)\n.*?```python\n(.*?)```", PAGE, flags=re.S))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A package with one module, all of the page in it, as a user would have it."""
    home = tmp_path_factory.mktemp("project") / "extending_examples"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "all_of_it.py").write_text("\n\n".join(BLOCKS.values()))
    sys.path.insert(0, str(home.parent))
    importlib.invalidate_caches()
    yield importlib.import_module("extending_examples.all_of_it")
    sys.path.remove(str(home.parent))
    for name in [name for name in sys.modules if name.startswith("extending_examples")]:
        del sys.modules[name]


def test_the_page_has_one_example_of_each():
    assert list(BLOCKS) == ["A system", "A model", "A bound", "A check", "An experiment"]


def test_the_system_keeps_what_systems_promise(project):
    plant = project.Tank()
    assert isinstance(plant, System)
    x, u = plant.state_box.sample(6, torch.Generator().manual_seed(0)), torch.zeros(6, 1, dtype=torch.float64)
    assert torch.equal(plant.mean(x, u)[2], plant.mean(x[2], u[2]))
    assert float(plant.cost(plant.initial_state)) == 0.0 == float(plant.cost.upper(x, x).min())
    with pytest.raises(ValueError, match="Tank: expected"):
        project.Tank(noise_std=[0.1, 0.1])


def test_the_model_learns_and_leaves_the_old_one_alone(project):
    plant, model = project.plant, project.model
    assert isinstance(model, DynamicsModel)
    x, u = torch.full((1, 1), 0.9, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)
    before = model.predict(x, u)
    after = model.condition(Transitions(x, u, plant.mean(x, u))).predict(x, u)
    assert torch.equal(before.mean, model.predict(x, u).mean) and bool((after.std < before.std).all())
    assert float((before.mean - plant.mean(x, u)).abs()) < 0.02


def test_the_bound_is_never_below_the_mixture_and_says_what_it_believes(project):
    entries = project.bound.assumptions(project.gp)
    assert any(entry.startswith("rkhs_norm<=1.0") for entry in entries)
    assert float(project.bound.beta(project.gp)) > float(project.gs.Mixture(
        rkhs_norm=1.0, subgaussian=0.2, delta=0.1).beta(project.gp))  # fmt: skip


def test_the_check_is_found_holds_and_its_control_fails(project):
    found = checks.discover("extending_examples")
    assert list(found) == ["split-above-mixture"]
    (check,) = found.values()
    assert check.run().verdict.outcome is Outcome.HOLDS
    assert check.run(broken=True).verdict.outcome is Outcome.VIOLATED


def test_the_experiment_is_found_runs_and_reports(project, tmp_path):
    assert [*experiments.discover("extending_examples")[0]] == ["split-width"]
    experiment = project.EXPERIMENT
    folder = tmp_path / experiment.name / "0"
    experiments.run_seed(experiment, experiment.budgets["smoke"], 0, folder=folder, budget="smoke")
    (run,) = experiments.load(experiment, tmp_path).runs
    (row,) = experiment.report([run]).tables["ratio"].rows
    assert row[1] == 5 and row[2] >= 1.0
