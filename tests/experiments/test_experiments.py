"""Every experiment of the project: runs at the smoke budget, goes on without work, and is drawn from what it stored."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gpsafe.testbed.experiment import Experiment, find, load, run_seed
from gpsafe.testbed.experiment_report import write

FOLDER = Path(__file__).parents[2] / "experiments"
MODULES = sorted(
    p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_") and "EXPERIMENT" in p.read_text(encoding="utf-8")
)


SLOW = {  # more than a second each; IPOPT several times over: forty. What they do is tested where their methods are.
    "budget_regret",
    "calibration",
    "calibration_downstream",
    "cartpole_budgets",
    "cartpole_sound",
    "cartpole_swingup",
    "check_noise_misalignment",
    "check_rkhs_assumption",
    "check_scaling",
    "compare",
    "continuous_policies",
    "neighbours",
    "pendulum_paper",
    "pendulum_policies",
    "pendulum_sound",
    "pixels_v0",
    "question_dimension",
    "question_models",
    "xmpsc_bullet",
    "xmpsc_certainty",
    "xmpsc_figure2",
    "xmpsc_figure3",
    "xmpsc_filter",
    "xmpsc_table1",
}


@pytest.mark.parametrize("module", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in MODULES])
def test_smoke(module, tmp_path):
    experiment = importlib.import_module(f"gpsafe.experiments.{module}").EXPERIMENT
    assert isinstance(experiment, Experiment)
    assert find(experiment.name) is experiment
    arguments = experiment.budgets["smoke"]
    for seed in range(experiment.seeds["smoke"]):
        folder = tmp_path / experiment.name / str(seed)
        record = run_seed(experiment, arguments, seed, folder=folder, about={})
        assert record.keys
        again = run_seed(experiment, arguments, seed, folder=folder, about={})
        assert again.reused == len(again.keys) and again.keys == record.keys

    def never(*_):
        pytest.fail("a report must not compute")

    stored = load(experiment, tmp_path)
    assert stored.left_out == ()
    files = write(replace(experiment, run=never), stored, tmp_path / "out", formats=("png",))
    assert any(file.suffix == ".png" for file in files) and any(file.suffix == ".md" for file in files[1:])


@pytest.mark.parametrize("module", MODULES)
def test_lists_of_names_refuse_one_that_does_not_exist_and_say_which_do(module):
    """It ended a run hours later in a bare KeyError, or was taken for another."""
    arguments = importlib.import_module(f"gpsafe.experiments.{module}").EXPERIMENT.arguments()
    for field in fields(arguments):
        given = getattr(arguments, field.name)
        if isinstance(given, tuple) and given and isinstance(given[0], str):
            told = rf"--{field.name}: expected names among .*'{re.escape(given[0])}'.*, got 'nobody'"
            with pytest.raises(ValueError, match=told):
                replace(arguments, **{field.name: (given[0], "nobody")})
            with pytest.raises(ValueError, match="got none"):
                replace(arguments, **{field.name: ()})
