"""Where numbers come from: versions, revision, and a fingerprint of the sources."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path

import gpsafe

# Sources that cannot change what a check finds: editing them keeps the finished pieces.
PRESENTATION = frozenset(
    {f"cli/{name}.py" for name in ("__init__", "main", "common", "experiments")}
    | {f"testbed/{name}.py" for name in ("report", "report_template", "report_figures", "animate")}
    | {f"testbed/experiment{part}.py" for part in ("", "_report", "_store")}
)
DISTRIBUTIONS = ("torch", "numpy", "scipy", "gpytorch", "botorch", "cvxpy")


def versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def fingerprint(package: str = "gpsafe.proofs_checks") -> str:
    """16 hex digits that change with the sources of gpsafe and of the checks and with the versions used."""
    digest = hashlib.sha256(repr(sorted(versions().items())).encode())
    spec = importlib.util.find_spec(package)
    roots = {"gpsafe": [str(Path(gpsafe.__file__).parent)], package: (spec and spec.submodule_search_locations) or []}
    for name, places in roots.items():
        for root in places:
            for path in sorted(Path(root).rglob("*.py")):
                inside = path.relative_to(root).as_posix()
                if name != "gpsafe" or not (
                    inside in PRESENTATION or inside.startswith(("experiments/", "proofs_checks/"))
                ):
                    digest.update(f"\0{name}/{inside}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


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
