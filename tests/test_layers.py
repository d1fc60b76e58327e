"""Imports point down only: each module sees its own layer and those below; the judge never sees the proposer."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gpsafe"

LAYERS: list[set[str]] = [
    {"verdict", "assumptions", "_require", "linalg", "store"},
    {"sets", "kernels", "rkhs", "data", "checks", "policies", "feature_policies", "parametric"},
    {"models", "systems", "envs", "_drawing"},
    {"confidence", "rollout"},
    {"cost", "tube", "certify"},
    {"safe_set", "explore", "safe_parameters", "search", "planning", "tracking", "shield"}
    | {"mpc", "terminal_set", "safety_filter"},
    {"algorithms", "report", "_report_figures", "_report_template", "_provenance", "_workers", "verify", "cli"}
    | {"_cli_common", "_cli_experiments", "animate", "experiment", "_experiment_report", "_experiment_store"},
]
SIDEWAYS_FORBIDDEN = [("models", "systems"), ("systems", "models")]


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gpsafe":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gpsafe.")}
    return found


def layer(name: str) -> int:
    for depth, names in enumerate(LAYERS):
        if name in names:
            return depth
    raise AssertionError(f"{name} has no place in LAYERS: decide where it belongs")


def offences(name: str, imported: set[str]) -> list[str]:
    up = [other for other in imported - {name} if layer(other) > layer(name)]
    return up + [other for other in imported if (name, other) in SIDEWAYS_FORBIDDEN]


MODULES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert offences(unit(path), imports(path)) == []


def test_control_an_upward_or_sideways_import_is_caught():
    assert offences("cost", {"safe_set"}) == ["safe_set"]
    assert offences("models", {"systems"}) == ["systems"]
    assert offences("cost", {"confidence", "linalg"}) == []
