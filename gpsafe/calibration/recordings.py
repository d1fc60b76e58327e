"""Transitions from a user's table: CSV, Parquet or NPZ, columns by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpsafe import _require
from gpsafe.data import Transitions

if TYPE_CHECKING:
    from pandas import DataFrame

KINDS = (".csv", ".npz", ".parquet")
GAP = 1.5  # a time step longer than the median one by this factor, or shorter, is no transition


def read(path: str | Path) -> DataFrame:
    """The table of a file; of an NPZ every array (n,) is a column, and of one (n, k) every column `name_0` … `name_{k-1}`."""
    import pandas as pd

    where, path = "recordings.read", Path(path)
    if not path.is_file():
        raise _require.fail(
            where, "a file", f"{str(path)!r}, which {'is a folder' if path.is_dir() else 'does not exist'}"
        )
    if path.suffix.lower() not in KINDS:
        raise _require.fail(where, f"a file that ends in {', '.join(KINDS)}", repr(path.name))
    try:
        if path.suffix.lower() == ".csv":
            return pd.read_csv(path, skipinitialspace=True)
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except ImportError:
        raise _require.fail(where, "pyarrow (pip install gpsafe[lab]) to read Parquet", "no such package") from None
    except Exception as error:  # whatever a broken file makes a reader raise
        raise _require.fail(where, f"a readable {path.suffix} file", _require.told(error)) from None
    columns: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            columns[name] = array
        elif array.ndim == 2:
            columns |= {f"{name}_{j}": array[:, j] for j in range(array.shape[1])}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise _require.fail(where, "arrays with equally many rows", {k: a.shape for k, a in arrays.items()})
    return pd.DataFrame(columns)


def transitions(
    frame: Any,
    state: Sequence[str],
    inputs: Sequence[str] = (),
    *,
    following: Sequence[str] = (),
    run: str | None = None,
    time: str | None = None,
) -> tuple[Transitions, list[Any] | None, tuple[str, ...]]:
    """Transitions, the label of each (None without `run`), and what was done to the rows.

    Args:
        frame: a pandas DataFrame, one row a time step.
        state, inputs: columns of x and u.
        following: columns of x⁺; none: x of the next row of the same run.
        run: column that labels trajectories.
        time: column that orders the rows of a run, numbers or times; without `following`, a step longer than the median one by
            a factor of 1.5, or shorter, is no transition.

    Raises:
        ValueError: on columns that are missing, not numeric, with gaps (NaN) or constant, or hardly any rows.
    """
    where = "columns"
    if not state:
        raise _require.fail(where, "at least one column of the state", "none")
    if following and len(following) != len(state):
        raise _require.fail(where, f"as many columns of the next state as of the state, {len(state)}", len(following))
    asked = [*state, *inputs, *following, *([run] if run else []), *([time] if time else [])]
    for name in asked:
        if name not in frame.columns:
            near = [str(c) for c in frame.columns if str(c).lower() == name.lower()]
            near = near or difflib.get_close_matches(name, [str(c) for c in frame.columns], n=1)
            got = f"{name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            raise _require.fail(where, f"columns among {', '.join(map(str, frame.columns))}", got)
    twice = sorted({name for name in [*state, *inputs] if [*state, *inputs].count(name) > 1})
    if twice:
        raise _require.fail(where, "every column of state and input once", ", ".join(twice))
    notes: list[str] = []
    keys = [key for key in (run, time) if key]
    for key in keys:
        if bool(frame[key].isna().any()):
            raise _require.fail(
                where, f"no empty cells in {key!r}", f"{int(frame[key].isna().sum())} of {len(frame)} rows"
            )
    if time:
        frame = frame.assign(**{time: _clock(frame[time])})
        frame = frame.sort_values(keys, kind="stable")
        if bool(frame.duplicated(keys).any()):
            row = int(np.flatnonzero(frame.duplicated(keys))[0])
            raise _require.fail(
                where, f"one row for each time of a {run or 'recording'}", f"{frame[time].iloc[row]} twice"
            )
    x, u = _numbers(frame, state), _numbers(frame, inputs)
    for name, column in zip([*state, *inputs], [*x.T, *u.T], strict=True):
        if len(column) and np.ptp(column) == 0:
            raise _require.fail(
                where, "columns that vary", f"{name!r}, which is {column[0]:g} in every row; leave it out"
            )
    labels = frame[run].tolist() if run else None
    if following:
        after, rows = _numbers(frame, following), np.arange(len(frame))
    else:
        rows = np.arange(len(frame) - 1)
        if labels is not None:
            rows = rows[[labels[i] == labels[i + 1] for i in rows]]
        if time:
            rows, dropped = _without_gaps(frame[time], rows)
            if dropped:
                notes.append(
                    f"{dropped} steps longer than {GAP} times the median one, or shorter by that factor, are no transitions "
                    "and were left out."
                )
        after = x[1:]
        after = np.vstack([after, x[-1:]])
    if len(rows) == 0:
        raise _require.fail(where, "successive rows of one run", f"none in {len(frame)} rows")
    chosen = None if labels is None else [labels[i] for i in rows]
    return Transitions(x[rows], u[rows], after[rows]), chosen, tuple(notes)


def _numbers(frame: Any, names: Sequence[str]) -> np.ndarray[Any, Any]:
    """(n, k) in float64."""
    import pandas as pd

    found = np.zeros((len(frame), len(names)))
    for j, name in enumerate(names):
        column: Any = frame[name]
        if getattr(column.dtype, "kind", "O") in "cMm":
            raise _require.fail("columns", f"real numbers in {name!r}", str(column.dtype))
        numbers: Any = pd.to_numeric(column, errors="coerce")
        values = numbers.to_numpy(dtype=float, na_value=np.nan)
        words = np.isnan(values) & ~column.isna().to_numpy()
        if words.any():
            row = int(np.flatnonzero(words)[0])
            raise _require.fail("columns", f"numbers in {name!r}", f"{column.iloc[row]!r} in row {row + 1}")
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(np.flatnonzero(bad)[0]) + 1
            got = f"{int(bad.sum())} empty or infinite, the first in row {row}; drop these rows (and name the runs they cut)"
            raise _require.fail("columns", f"a number in every row of {name!r}", got)
        found[:, j] = values
    return found


def _clock(column: Any) -> Any:
    """Times as numbers: nanoseconds of dates and durations."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        return column.astype("int64")
    numbers: Any = pd.to_numeric(column, errors="coerce")
    bad = np.flatnonzero(~np.isfinite(numbers.to_numpy(dtype=float, na_value=np.nan)))
    if len(bad):
        expected = f"numbers or times in {column.name!r} (pandas.to_datetime makes times of words)"
        raise _require.fail("columns", expected, f"{column.iloc[bad[0]]!r:.60} in row {bad[0] + 1}")
    return numbers


def _without_gaps(times: Any, rows: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    clock = times.to_numpy()
    steps = (clock[rows + 1] - clock[rows]).astype(float)
    if len(steps) == 0:
        return rows, 0
    usual = np.median(steps)
    kept = (steps <= GAP * usual) & (GAP * steps >= usual)
    return rows[kept], int((~kept).sum())
