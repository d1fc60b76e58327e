"""The face: what `import gpsafe as gs` shows, what it loads, and that the stub tells the truth."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gpsafe as gs
import gpsafe.testbed

ROOT = Path(__file__).parents[1]


def stub_names(package) -> dict[str, str]:
    """Name → module it comes from, as the stub beside the package says."""
    tree = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    return {
        a.asname or a.name: node.module or ""
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for a in node.names
    }


def loaded_after(code: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(told.stdout.split())


@pytest.mark.parametrize("package", [gs, gpsafe.testbed], ids=lambda p: p.__name__)
def test_every_name_of_the_face_is_where_the_stub_says(package):
    names = stub_names(package)
    assert set(names) == set(package.__all__) <= set(dir(package))
    for name, module in names.items():
        found = getattr(package, name)
        if module:
            assert found is getattr(sys.modules[f"{package.__name__}.{module}"], name)
        else:
            assert found is sys.modules[f"{package.__name__}.{name}"]


@pytest.mark.parametrize("room", [n for n, module in stub_names(gs).items() if not module])
def test_every_room_names_what_it_offers(room):
    package = getattr(gs, room)
    assert package.__doc__
    assert all(hasattr(package, name) for name in package.__all__)


def test_importing_the_face_loads_no_numbers():
    heavy = {"torch", "numpy", "gpytorch", "matplotlib", "pandas", "gymnasium"}
    assert not heavy & loaded_after("import gpsafe as gs; gs.__version__; dir(gs)")
    assert "torch" in loaded_after("import gpsafe as gs; gs.Box")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Gaussian"):
        _ = gs.Gaussian


def test_the_version_is_the_projects():
    assert gs.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
