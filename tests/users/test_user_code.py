"""A type checker finds nothing in what a user writes through the face, and finds what is wrong there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # `make lint` checks the file too
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Errors of pyright in the user's file, and in a copy of its imports with mistakes: one start for both."""
    wrong = tmp_path_factory.mktemp("wrong") / "wrong.py"
    wrong.write_text(
        "import gpsafe as gs\n"
        "gs.Box([-1.0], 'one')\n"
        "gs.Gaussian\n"
        "x: int = gs.Verdict(0.0, 0.5, 1.0).outcome\n"
        "gs.plant(lambda x, u: x, x0=[0.0])\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", HERE / "user_code.py", wrong],
        capture_output=True, text=True, cwd=HERE.parents[1],
    )  # fmt: skip
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 2
    found = report["generalDiagnostics"]
    return {name: [d for d in found if Path(d["file"]).name == name] for name in ("user_code.py", "wrong.py")}


def test_a_users_code_is_clean(told):
    assert told["user_code.py"] == []


def test_control_mistakes_are_found(told):
    assert sorted({d["range"]["start"]["line"] + 1 for d in told["wrong.py"]}) == [2, 3, 4, 5]
