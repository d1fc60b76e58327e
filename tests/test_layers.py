"""The house by trust: imports point down, what is believed never sees what only proposes, and there are no circles."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gpsafe"

LAYERS: list[set[str]] = [
    {"verdict", "assumptions", "_require", "_show", "_files", "_lent", "_pinned", "_sealed", "_threads", "linalg"},
    {"sets", "rkhs", "data"},
    {"policies", "models"},
    {"systems"},
    {"confidence"},
    {"cost"},
    {"tube"},
    {"certify"},
    {"safety"},
    {"saved"},
    {"planning"},
    {"algorithms"},
    {"baselines", "comparison"},
    {"plotting"},
    {"testbed"},
    {"calibration"},
    {"referee"},
    {"lab"},
    {"cli"},
]
BELIEVED = frozenset[str]().union(*LAYERS[:10])
"""What a certificate rests on. The rest proposes, runs or shows, and is never believed."""
SIDEWAYS_FORBIDDEN = [("models", "systems"), ("systems", "models"), ("models", "policies"), ("testbed", "models")]
SIDEWAYS_FORBIDDEN += [
    ("testbed", room)
    for room in ("rkhs", "confidence", "cost", "safety", "planning", "algorithms", "baselines", "comparison")
]
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def modules_imported(path: Path) -> set[str]:
    """Dotted names below gpsafe; of `from gpsafe.a import b` both a and a.b (b may be a module)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gpsafe":
            base = node.module.split(".")[1:]
            found |= {".".join(base)} - {""}
            found |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: imports are absolute")
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("gpsafe.") for a in node.names if a.name.startswith("gpsafe.")}
    return found


def imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in modules_imported(path)}


def layer(name: str) -> int:
    for depth, names in enumerate(LAYERS):
        if name in names:
            return depth
    raise AssertionError(f"{name} has no place in LAYERS: decide where it belongs")


def offences(name: str, imported: Iterable[str]) -> list[str]:
    others = set(imported) - {name}
    up = {other for other in others if layer(other) > layer(name)}
    distrusted = {other for other in others if name in BELIEVED and other not in BELIEVED}
    return sorted(up | distrusted | {other for other in others if (name, other) in SIDEWAYS_FORBIDDEN})


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Strongly connected parts of more than one module (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def graph_of_modules() -> dict[str, set[str]]:
    """Which module of gpsafe imports which, at the top or inside a function. A package stands for its `__init__`."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    found = {name: {i for i in modules_imported(path) if i in names} - {name} for name, path in names.items()}
    inits = {name for name, path in names.items() if path.name == "__init__.py"}
    for imported in found.values():  # `from gpsafe.a import b`, b a module, does not read what a's __init__ makes
        imported -= {i for i in inits if any(other.startswith(f"{i}.") for other in imported)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_and_what_is_believed_sees_no_proposer(path):
    assert offences(unit(path), imports(path)) == []


def test_there_is_no_circle_of_imports():
    assert circles(graph_of_modules()) == []


def test_every_room_has_a_place_and_every_place_is_a_room():
    assert {unit(path) for path in MODULES} == set().union(*LAYERS)


def test_control_an_upward_or_sideways_import_is_caught():
    assert offences("cost", {"safety"}) == ["safety"]
    assert offences("models", {"systems"}) == ["systems"]
    assert offences("safety", {"planning", "cost"}) == ["planning"]
    assert offences("testbed", {"planning"}) == ["planning"]
    assert offences("cost", {"confidence", "linalg"}) == []


def test_control_a_circle_is_caught():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
