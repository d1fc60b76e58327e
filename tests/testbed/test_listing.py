"""Lists of checks and experiments: quick, true to the files as they are, and never read off a stand-in."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpsafe.cli import experiments
from gpsafe.cli import main as cli
from gpsafe.cli.common import UsageError
from gpsafe.testbed import check, experiment, listing

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "scipy", "gpytorch", "matplotlib", "pandas"}
TELL = """
import json, sys
from gpsafe.cli import main as cli
from gpsafe.testbed import check, experiment
checks, experiments = check.listed(), experiment.listed()
cli.main(["verify", "--list"]), cli.main(["run", "--list"]), cli.main(["run"]), cli.main(["run", "pendulum-sond"])
print()
print(json.dumps([
    {n: [c.name, c.claim, c.source, [c.num_shards(b, k) for b in check.BUDGETS for k in (False, True)]]
     for n, c in checks[0].items()},
    {n: [e.name, e.title, dict(e.seeds)] for n, e in experiments[0].items()},
    [checks[1], experiments[1]],
    [name for name in sys.modules],
]))
"""


@pytest.fixture(scope="module")
def told():
    """What a process that lists ours says, and what it has loaded."""
    done = subprocess.run([sys.executable, "-c", TELL], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "did you mean pendulum-sound?" in done.stderr and "there are actsafe-bounds" in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_our_lists_are_those_of_the_loaded_modules(told):
    checks, found = check.discover(), experiment.discover()[0]
    shards = {n: [c.num_shards(b, k) for b in check.BUDGETS for k in (False, True)] for n, c in checks.items()}
    assert told[0] == {n: [c.name, c.claim, c.source, shards[n]] for n, c in checks.items()}
    assert told[1] == {n: [e.name, e.title, dict(e.seeds)] for n, e in found.items()}


def test_our_lists_are_made_without_a_numerical_library(told):
    """The reason why they take less than a second; a limit in seconds would depend on the machine."""
    assert not HEAVY & set(told[3]) and told[2] == [{}, {}]
    assert not [
        name for name in told[3] if name.startswith(("gpsafe.proofs_checks", "gpsafe.experiments", "gpsafe.cost"))
    ]


def test_store_experiment_check_and_errors_load_no_torch():
    names = ("_require", "testbed.store", "testbed.check", "testbed.experiment", "testbed.tables", "testbed.lock")
    code = "".join(f"import gpsafe.{name}\n" for name in names) + "import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


# ------------------------------------------------------------------------------- packages of others
MODULE = """
import dataclasses, math
import {library} as lib
from {library}.deep import thing
from gpsafe.testbed.check import Check

@dataclasses.dataclass(frozen=True)
class Setting(lib.Base):
    "Without these words `dataclass` makes some, of the defaults."
    size: float = 2 * lib.SIZE + 1

SETTINGS = {{"small": dataclasses.replace(lib.Made(), size=lib.SIZE), "none": lib.Base | None, "typed": list[lib.Base]}}

@lib.decorated(option=-lib.SIZE)
def sample(shard, budget, broken): ...

def made(name, claim="C.", shards=1):
    return Check(name, claim, "S", (), "s", "K.", {{"quick": shards, "full": 2}}, sample, lib.judge)

CHECKS = ({checks})
"""
LIBRARY = (
    "import pathlib\n(pathlib.Path(__file__).parent / 'loaded').touch()\n"
    "from dataclasses import dataclass\nSIZE, WORD, NUMBERS, judge = 3, 'seen', [1, 2], None\nclass Base: pass\n"
    "@dataclass(frozen=True)\nclass Made: size: int = 1\n"
    "def decorated(option): return lambda f: f\n"
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of checks that imports a library, which leaves a mark when it is loaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [f"{kind}_of_{tmp_path.name}".replace("-", "_") for kind in ("checks", "library")]

    def make(checks: str) -> tuple[str, Path]:
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "__init__.py").touch()
        (tmp_path / names[1] / "__init__.py").write_text(LIBRARY)
        (tmp_path / names[1] / "deep.py").write_text("thing = 1\n")
        (tmp_path / names[0] / "some.py").write_text(MODULE.format(library=names[1], checks=checks))
        importlib.invalidate_caches()
        return names[0], tmp_path / names[1] / "loaded"

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] in names]:
        del sys.modules[name]


def read(found: tuple[dict[str, check.Check], dict[str, str]]) -> dict[str, tuple[str, int]]:
    return {name: (c.claim, c.num_shards("quick", False)) for name, c in found[0].items()}


def test_what_needs_no_library_is_listed_without_it(package):
    name, mark = package('made("a"), made("b", shards=2), *[made(f"c-{n}", "D.") for n in range(2)]')
    assert read(check.listed(name)) == {"a": ("C.", 1), "b": ("C.", 2), "c-0": ("D.", 1), "c-1": ("D.", 1)}
    assert not mark.exists() and not any(module.startswith(name) for module in sys.modules)
    found = check.survey(name)  # and now as it is: no stand-in is left anywhere
    assert mark.exists() and read(found) == read(check.listed(name)) and found[0]["a"].judge is None


@pytest.mark.parametrize(
    "checks",
    [
        "made(lib.WORD),",
        'made(f"x{lib.WORD}"),',
        'made(f"x{lib.WORD!r}"),',
        'made("x" + lib.WORD),',
        'made("%s" % lib.WORD),',
        'made(" ".join([lib.WORD])),',
        'made("a", lib.WORD.upper()),',
        'made("a", "B." if lib.SIZE > 2 else "C."),',
        'made("a", "B." if lib.WORD == "seen" else "C."),',
        'made("a", "B." if lib.WORD else "C."),',
        'made("a", "B." if 3 in lib.NUMBERS else "C."),',
        'made("a", shards=lib.SIZE),',
        'made("a", shards=int(lib.SIZE)),',
        'made("a", shards=len(lib.NUMBERS)),',
        'made("a", shards=round(2 * lib.SIZE)),',
        'made("a", shards=math.floor(lib.SIZE / 2)),',
        'made("a", shards=max(1, lib.SIZE)),',
        "*[made(str(n)) for n in lib.NUMBERS],",
        "*map(made, map(str, lib.NUMBERS)),",
    ],
)
def test_a_list_that_a_library_has_a_part_in_is_read_with_the_library(package, checks):
    name, mark = package(checks)
    listed = read(check.listed(name))
    assert mark.exists() and listed == read(check.survey(name)) and listed


def test_control_a_module_that_catches_exceptions_does_not_catch_that_it_read_a_stand_in():
    assert not issubclass(listing._Read, Exception)
    with pytest.raises(listing._Read):
        len(listing._Module("some").anything)


def test_a_list_follows_its_files(package):
    name, _ = package('made("a"),')
    assert list(check.listed(name)[0]) == ["a"]
    file = next(Path(folder, name, "some.py") for folder in sys.path if Path(folder, name, "some.py").exists())
    file.write_text(file.read_text().replace('made("a")', 'made("other")'))
    assert list(check.listed(name)[0]) == ["other"]


def test_a_module_that_cannot_be_loaded_is_named_when_it_is_run(tmp_path, monkeypatch):
    """It can be listed, and even so it must not be said that there is no such experiment."""
    home = tmp_path / "works_of_mine"
    home.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (ROOT / "tests" / "toy_light.py").read_text()
    body = text.split("'''")[1].replace("from . import helper", "from gpsafe.models import no_such_thing")
    (home / "light.py").write_text("\n".join(line[4:] for line in body.splitlines()))
    assert list(experiment.listed("works_of_mine")[0]) == ["light"]
    with pytest.raises(UsageError, match=r"works_of_mine\.light cannot be used: ImportError: .*no_such_thing"):
        experiments.run(["light"], "gpsafe", package="works_of_mine")


def test_names_are_checked_before_anything_is_loaded(capsys):
    assert cli.main(["verify", "--list", "--only", "no-such-check"]) == 2
    assert "--only: expected the name of a check" in capsys.readouterr().err
