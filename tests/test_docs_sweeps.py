"""docs/sweeps.md from top to bottom: its experiment is swept, its table is read as it says, its SLURM job is written."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import toy_sweep

from gpsafe.cli import main as cli
from gpsafe.cli import sweeps
from gpsafe.testbed import sweep, sweep_pools

TEXT = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
(TOML,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.S)


def block(word: str) -> str:
    (found,) = [code for code in PYTHON if word in code]
    return found


@pytest.fixture
def decay(tmp_path, monkeypatch):
    package = tmp_path / "decay_work"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "decay.py").write_text(block("EXPERIMENT"))
    (tmp_path / "decay.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sweep_pools, "processes", toy_sweep.here)
    importlib.invalidate_caches()
    yield "decay_work"
    sweep._experiment.cache_clear()
    for name in [name for name in sys.modules if name.startswith("decay_work")]:
        del sys.modules[name]


def test_its_experiment_is_swept_and_its_table_read_as_it_says(decay, capsys):
    words = re.search(r"gpsafe sweep (decay --grid .*)\n", TEXT)[1].split()  # type: ignore[index]
    assert sweeps.sweep(["decay.toml"], "", package=decay) == 0
    assert "18 cells, 0 finished before" in capsys.readouterr().out
    assert sweeps.sweep(words, "", package=decay) == 0
    assert "18 cells, 18 finished before" in capsys.readouterr().out  # words and file mean the same cells
    exec(compile(block("import pandas"), "pandas", "exec"), {})
    out = capsys.readouterr().out
    assert re.search(r"0\.99 .*\b6\n", out) and out.count("\n") == 5
    exec(compile(block("import duckdb"), "duckdb", "exec"), {})
    out = capsys.readouterr().out
    assert "share_left" in out and len(re.findall(r"│ +0\.\d+ │ +6 │", out)) == 3
    words = re.search(r"gpsafe (leaderboard .*)\n", TEXT)[1].split()  # type: ignore[index]
    assert cli.main(words) == 0
    assert "Bentkus" in Path("decay.html").read_text() and "n = 6, 180 rows" in Path("decay.html").read_text()


def test_the_job_that_it_would_send_to_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block("SLURMCluster"), "slurm", "exec"), names)
    with names["cluster"] as cluster:
        script = cluster.job_script()
    assert script in capsys.readouterr().out
    lines = script.splitlines()
    for line in ("#SBATCH -p normal", "#SBATCH -n 1", "#SBATCH --cpus-per-task=16", "#SBATCH -t 04:00:00"):
        assert line in lines
    assert re.search(r"^#SBATCH --mem=\d+G$", script, flags=re.M)
    assert lines.index("export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1") < len(lines) - 1
    worker = lines[-1]
    assert worker.startswith(sys.executable) and "dask_worker" in worker
    for words in ("--nthreads 1", "--nworkers 16", "--lifetime 225m", "--death-timeout"):
        assert words in worker
