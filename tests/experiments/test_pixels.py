"""A visual run that is killed outright goes on from its last checkpoint, to the same pieces."""

import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from gpsafe.testbed.experiment import load, run_seed

pixels_v3 = importlib.import_module("gpsafe.experiments.pixels_v3")
CODE = """
import sys
from gpsafe.experiments.pixels_v3 import EXPERIMENT
from gpsafe.testbed.experiment import run_seed
from dataclasses import replace
run_seed(EXPERIMENT, replace(EXPERIMENT.budgets["smoke"], updates=12), 0, folder=sys.argv[1], about={})
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_result(tmp_path):
    name = pixels_v3.EXPERIMENT.name
    homes = [tmp_path / end / name / "0" for end in ("whole", "killed")]
    command = [sys.executable, "-c", CODE]
    subprocess.run([*command, str(homes[0])], check=True)
    child = subprocess.Popen([*command, str(homes[1])])
    saved = 0
    while saved < 5 and child.poll() is None:  # five saves, in the updates of the first iteration
        found = list(homes[1].glob("unfinished/**/learner.json"))
        saved += bool(found) and found[0].stat().st_mtime_ns != getattr(child, "_seen", None)
        child._seen = found[0].stat().st_mtime_ns if found else None  # type: ignore[attr-defined]
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (homes[1] / "done.json").exists() and list(homes[1].glob("unfinished/**/learner.json"))
    subprocess.run([*command, str(homes[1])], check=True)
    assert not (homes[1] / "unfinished").exists() or not list(homes[1].glob("unfinished/**/*.npz"))
    first, second = (load(pixels_v3.EXPERIMENT, home.parents[1]).runs[0].pieces["actor-published"] for home in homes)
    assert first.rows == second.rows
    assert all(torch.equal(v, second.tensors[k]) for k, v in first.tensors.items())


def test_a_dry_run_estimates_and_learns_nothing(tmp_path):
    dry = replace(pixels_v3.EXPERIMENT.budgets["smoke"], dry=True, arms=("actsafe", "LAMBDA"))
    record = run_seed(pixels_v3.EXPERIMENT, dry, 0, folder=tmp_path / pixels_v3.EXPERIMENT.name / "0", about={})
    assert record.keys == ["estimate/actsafe", "estimate/lambda"]
    report = pixels_v3.EXPERIMENT.report(load(pixels_v3.EXPERIMENT, tmp_path).runs)
    assert list(report.tables) == ["estimate"] and not report.figures
    assert [row[1] for row in report.tables["estimate"].rows] == ["actsafe", "LAMBDA"]


def test_the_published_size_is_the_published_one():
    """Numbers of parameters of the published networks; see the settings in the experiment."""
    a = pixels_v3.Arguments(size="published")
    task = pixels_v3.task(a)
    settings = task.settings(a.members)
    assert (settings.shape, settings.deterministic, settings.stochastic, settings.members) == ((64, 64, 3), 200, 60, 5)
    plant = task.plant()
    assert plant.budget / plant.horizon / (1 - 0.99) == pytest.approx(10.0)  # of the discounted cost, as published
