"""Optional dependencies: which extra brings a module that is missing."""

from __future__ import annotations

EXTRAS = {
    "casadi": "mpc", "numba": "mpc",
    "sb3_contrib": "rl", "stable_baselines3": "rl",
    "flint": "rigor",
    "dask": "cluster", "dask_jobqueue": "cluster", "distributed": "cluster", "pyarrow": "cluster",
    "pybullet": "bullet",
    "imageio": "lab", "ipywidgets": "lab", "jupytext": "lab", "plotly": "lab",
}  # fmt: skip
"""Module → extra of gpsafe."""
NEEDS = "needs"


def needed(error: ImportError) -> str | None:
    """What to install, if `error` says that the module of an extra is missing, also where another error was raised from it."""
    cause: BaseException | None = error
    while cause is not None:
        module = (getattr(cause, "name", None) or "").split(".")[0]
        if module in EXTRAS:
            return f"{NEEDS} {module}: pip install 'gpsafe[{EXTRAS[module]}]'"
        cause = cause.__cause__
    return None
