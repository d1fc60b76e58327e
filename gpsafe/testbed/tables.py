"""Reports, results and their pieces as pandas tables."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpsafe import _require
from gpsafe.testbed import store
from gpsafe.testbed.experiment_store import Folder, as_piece

if TYPE_CHECKING:
    from pandas import DataFrame

_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def frames(path: str | PathLike[str]) -> dict[str, DataFrame]:
    """The tables in a file or a folder that gpsafe has written, by name.

    - ``report.json`` of ``gpsafe verify --json``: ``checks`` (a row a check, the columns of `report.record`), ``grades`` (a row
      a graded control), ``environment`` (one row);
    - ``results``, ``results/NAME`` or ``results/NAME/<seed>`` of ``gpsafe run``: ``runs`` (a row a seed, with its arguments),
      ``pieces`` (a row a piece: when, from which code, in how many seconds), ``rows`` (all rows of all pieces);
    - ``results/NAME/report`` of ``gpsafe report``: its tables by their names; or one of its CSV files;
    - one piece ``….json``: ``rows``.

    Infinities and NaN are numbers again. Seeds that are not finished are in it, ``finished`` says so; files that cannot be used
    are left out with a warning. Nothing but JSON and CSV is read: tensors stay in `Run.pieces`, see `experiment.load`.

    Raises:
        ValueError: if there is nothing of this kind.
    """
    import pandas as pd

    path = Path(path)
    if path.is_dir():
        if seeds := [
            file.parent for file in sorted(path.rglob("config.json")) if file.parent.absolute().name.isdecimal()
        ]:
            return _results(
                [Folder(seed) for seed in sorted(seeds, key=lambda seed: (seed.parent, int(seed.absolute().name)))]
            )
        if tables := sorted(path.glob("*.csv")):
            return {file.stem: pd.read_csv(file) for file in tables}
    elif path.suffix == ".csv" and path.is_file():
        return {path.stem: pd.read_csv(path)}
    else:
        found = store.read_piece(path)
        if (
            isinstance(found, dict)
            and isinstance(found.get("checks"), list)
            and isinstance(found.get("environment"), dict)
        ):
            return _report(found)
        if isinstance(piece := as_piece(path), dict):
            return {"rows": _frame(piece["rows"])}
    expected = "a report (JSON), results of experiments or a folder of tables (CSV)"
    raise _require.fail("frames", expected, f"{str(path)!r}, which {'has' if path.exists() else 'is'} none")


def _report(found: Mapping[str, Any]) -> dict[str, DataFrame]:
    checks = [check for check in found["checks"] if isinstance(check, dict)]
    graded = [
        {"name": check.get("name"), **grade}
        for check in checks
        for grade in check.get("grades", ())
        if isinstance(grade, dict)
    ]
    rows = [{name: value for name, value in check.items() if name != "grades"} for check in checks]
    return {"checks": _frame(rows), "grades": _frame(graded), "environment": _frame([found["environment"]])}


def _results(folders: list[Folder]) -> dict[str, DataFrame]:
    runs, pieces, rows = [], [], []
    for folder in folders:
        config = folder.config()
        if config is None:
            warnings.warn(f"{folder.path}: no readable config.json, left out", stacklevel=3)
            continue
        about = {"experiment": config.get("experiment"), "seed": config["seed"]}
        found = dict(_pieces(folder))
        made = [piece["made"] for piece in found.values()]
        runs.append(
            about
            | {"budget": config.get("budget"), "finished": folder.done() is not None, "pieces": len(found)}
            | {
                f"{name}s": ", ".join(sorted({str(m.get(name) or "unknown") for m in made}))
                for name in ("revision", "code")
            }
            | {f"arguments.{name}": value for name, value in config["arguments"].items()}
        )
        for key, piece in found.items():
            pieces.append({**about, "piece": key, "rows": len(piece["rows"]), **piece["made"]})
            rows += [{**about, "piece": key, **row} for row in piece["rows"]]
    return {"runs": _frame(runs), "pieces": _frame(pieces), "rows": _frame(rows)}


def _pieces(folder: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    """The heads of the pieces by key, in the order of the run where that is known."""
    found: dict[str, dict[str, Any]] = {}
    for head in folder.heads():
        if isinstance(head, str):
            warnings.warn(head, stacklevel=4)
        else:
            found[head["key"]] = head
    first = [key for key in folder.done() or () if key in found]
    for key in dict.fromkeys([*first, *found]):
        yield key, found[key]


def _frame(rows: list[Any]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame([{name: number(value) for name, value in row.items()} for row in rows])


def number(value: Any) -> Any:
    """A value of JSON with infinities and NaN as numbers again."""
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
