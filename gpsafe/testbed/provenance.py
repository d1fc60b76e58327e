"""Where numbers come from: versions, revision, and a fingerprint of the sources."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gpsafe

# Sources that cannot change what a check finds: editing them keeps the finished pieces.
PRESENTATION = frozenset(
    {f"cli/{name}.py" for name in ("__init__", "main", "common", "experiments", "running", "verdicts")}
    | {f"cli/{name}.py" for name in ("sweeps", "sweep_plan", "leaderboards")}
    | {f"testbed/{name}.py" for name in ("report", "animate", "tables", "listing")}
    | {f"testbed/report_{part}.py" for part in ("claims", "figures", "first", "sections", "template")}
    | {f"testbed/leaderboard{part}.py" for part in ("", "_page")}
    | {f"testbed/experiment{part}.py" for part in ("", "_report", "_run", "_store")}
    | {f"testbed/sweep{part}.py" for part in ("", "_pools", "_table")}
)
PICTURES = "plotting/"  # neither can a picture: of no check, and of no experiment
SOURCES = (".py", ".urdf")  # programs, and the bodies that PyBullet moves
OURS = ("experiments/", "proofs_checks/")  # stand inside gpsafe in a wheel, beside it in a checkout
DISTRIBUTIONS = ("torch", "numpy", "scipy", "gpytorch", "botorch", "cvxpy")
ENGINES = ("linear_operator", "clarabel", "numba", "casadi", "pybullet")
"""What these call, and what checks of filters and plants run on: kept pieces of checks depend on them too."""


def versions(names: Iterable[str] = DISTRIBUTIONS) -> dict[str, str | None]:
    """Versions of what the numbers depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def fingerprint(package: str = "gpsafe.proofs_checks") -> str:
    """16 hex digits that change with the sources of gpsafe and of the checks and with the versions used."""
    spec = importlib.util.find_spec(package)
    checks = [
        (f"{package}/{path.relative_to(root).as_posix()}", path)
        for root in (spec and spec.submodule_search_locations) or []
        for path in sorted(Path(root).rglob("*.py"))
    ]
    files = [*_library(lambda inside: inside in PRESENTATION or inside.startswith(PICTURES)), *checks]
    return _digest(files, (*DISTRIBUTIONS, *ENGINES))


def code(*modules: str) -> str | None:
    """16 hex digits of what an experiment rests on: the versions used, gpsafe without its testbed, command line and pictures,
    and the sources of `modules` with all that they import, on and on, of their own packages and of others not installed.

    Imports are read from the sources, those inside functions too; what a module finds in any other way (data files, names put
    together at run time) is not seen. None if one of the modules has no source file.
    """
    sources = _imported(modules)
    if sources is None:
        return None
    return _digest(
        [*_library(lambda inside: inside.startswith(("cli/", "testbed/", PICTURES))), *sorted(sources.items())]
    )


def _digest(files: Iterable[tuple[str, Path]], names: Iterable[str] = DISTRIBUTIONS) -> str:
    digest = hashlib.sha256(repr(sorted(versions(names).items())).encode())
    for name, path in files:
        digest.update(f"\0{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _library(left_out: Callable[[str], bool]) -> Iterator[tuple[str, Path]]:
    """The files of gpsafe, but those whose place inside it is left out."""
    root = Path(gpsafe.__file__).parent
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).as_posix()
        if path.suffix in SOURCES and not inside.startswith(OURS) and not left_out(inside):
            yield f"gpsafe/{inside}", path


def _imported(modules: Iterable[str]) -> dict[str, Path] | None:
    """Source files by name of modules and of all that they import, except gpsafe's own and installed packages."""
    waiting, found = list(modules), {}
    own = {name.partition(".")[0] for name in waiting}
    if any(_source(name) is None for name in waiting):
        return None
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or (name.startswith("gpsafe.") and f"{name.split('.')[1]}/" not in OURS) or name == "gpsafe":
            continue
        seen.add(name)
        path = _source(name)
        if path is None or (name.partition(".")[0] not in own and _installed(path)):
            continue
        found[name.removeprefix("gpsafe.")] = path
        waiting.append(name.rpartition(".")[0])  # a package is run before what is in it
        waiting += _names(name, path)
    return found


def _names(module: str, path: Path) -> Iterator[str]:
    """What the import statements of a source file name; not all of it need be modules."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*home, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _source(module: str) -> Path | None:
    """The file of a module, found without running anything."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None and module:
        top, *rest = module.split(".")
        if top in sys.stdlib_module_names:
            return None
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return None
        file, places = getattr(spec, "origin", None), getattr(spec, "submodule_search_locations", None)
        places = getattr(sys.modules.get(top), "__path__", places)
        for part in rest:
            options = [Path(place, part, "__init__.py") for place in places or ()]
            options += [Path(place, f"{part}.py") for place in places or ()]
            file = next((str(option) for option in options if option.is_file()), None)
            places = [str(Path(file).parent)] if file and file.endswith("__init__.py") else None
    path = Path(file) if file else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


@functools.cache
def _libraries() -> tuple[Path, ...]:
    return tuple(Path(place).resolve() for key, place in sysconfig.get_paths().items() if "lib" in key)


def _installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package, whose versions stand for it."""
    path = path.resolve()
    return any(path.is_relative_to(place) for place in _libraries())


def git_state() -> tuple[str | None, bool | None]:
    """Revision of the checkout that gpsafe runs from, and whether it has changes; else Nones."""
    root = Path(gpsafe.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, None

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return git("rev-parse", "--verify", "HEAD"), None if status is None else bool(status)
