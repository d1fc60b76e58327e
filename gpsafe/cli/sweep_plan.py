"""Which cells a sweep has: the product of arguments and seeds that a TOML file or ``--grid`` asks for.

The values of arguments are judged by the same parser as those of ``gpsafe run``: in ``--grid`` a value is what would stand
after the argument's name there, in TOML a value of its type (lists for tuples, the string "None" for None).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from gpsafe import _require
from gpsafe.cli.common import UsageError, parse
from gpsafe.cli.experiments import named

if TYPE_CHECKING:
    from gpsafe.testbed.experiment import Experiment
    from gpsafe.testbed.sweep import Cell

BLOCK = ("experiment", "budget", "seeds", "arguments", "grid")
"""What a sweep in a TOML file may say."""
FILE_USAGE = """\
    experiment = "NAME"        # gpsafe run --list names them
    budget = "smoke"           # sets the defaults of the arguments: smoke, quick or full
    seeds = ["0-9", 20]        # as many as the budget says if left out
    [arguments]                # the same in every cell
    episodes = 20
    [grid]                     # the product of these
    horizon = [10, 20]"""
MOST = 1_000_000
"""Seeds of a range."""
_VALUE = re.compile(r"""(?:[^,"']|"[^"]*"|'[^']*')+""")


def from_file(path: Path, package: str) -> list[Cell]:
    """The cells that a TOML file asks for: one sweep, or several in [[sweep]] tables."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise UsageError(f"{path}: expected a TOML file, got {why}") from None
    blocks = {str(path): found}
    if "sweep" in found:
        several = found["sweep"]
        if not isinstance(several, list) or not all(isinstance(one, dict) for one in several) or len(found) > 1:
            others = ", ".join(sorted(set(found) - {"sweep"}))
            got = f"{others} beside [[sweep]]" if others else f"sweep = {several!r}"
            raise UsageError(f"{path}: expected either one sweep or [[sweep]] tables alone, got {got}")
        blocks = {f"{path}, sweep {i}": one for i, one in enumerate(several, 1)}
    return _distinct([cell for where, block in blocks.items() for cell in _block(block, where, package)])


def _block(block: Mapping[str, Any], where: str, package: str) -> list[Cell]:
    for key in block:
        if key not in BLOCK:
            raise UsageError(f"{where}: expected keys among {', '.join(BLOCK)}, got {key!r}{_near(key, BLOCK)}")
    for key, kind, what in (
        ("experiment", str, "the name of an experiment"),
        ("budget", str, "smoke, quick or full"),
        ("arguments", dict, "a table of arguments"),
        ("grid", dict, "a table of lists of values"),
    ):
        if not isinstance(block.get(key, kind()), kind):
            raise UsageError(f"{where}: expected {what} as {key}, got {block[key]!r}")
    if not block.get("experiment"):
        raise UsageError(
            f"{where}: expected the name of an experiment as experiment, got none; a file says\n{FILE_USAGE}"
        )
    experiment, package = _experiment(block["experiment"], where, package)
    budget: Any = block.get("budget", "quick")
    if budget not in experiment.budgets:
        raise UsageError(f"{where}: expected smoke, quick or full as budget, got {budget!r}")
    fixed = {
        _field(experiment, name, where): _typed(experiment, name, value, f"{where}: arguments.{name}")
        for name, value in block.get("arguments", {}).items()
    }
    grid: dict[str, list[Any]] = {}
    for name, values in block.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: expected a list of at least one value as grid.{name}, got {values!r}")
        key = _field(experiment, name, where)
        grid[key] = [_typed(experiment, name, value, f"{where}: grid.{name}") for value in values]
    if "grid" in block and not grid:
        raise UsageError(f"{where}: expected arguments with their values in grid, got an empty table")
    if both := set(grid) & set(fixed):
        raise UsageError(f"{where}: expected each argument once, got {min(both)!r} in both arguments and grid")
    base = _replaced(experiment.budgets[budget], fixed, where)
    return product(
        experiment, package, base, grid, _seeds(block.get("seeds"), experiment, budget, where), budget, where
    )


def _experiment(name: str, where: str, package: str) -> tuple[Experiment, str]:
    try:
        return named([name], "", package)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def from_words(
    experiment: Experiment, package: str, base: Any, grid: Iterable[str], seeds: Sequence[str], budget: str
) -> list[Cell]:
    """The cells of ``KEY=V1,V2`` words at the arguments `base`."""
    found: dict[str, list[Any]] = {}
    for word in grid:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UsageError(f"--grid: expected ARGUMENT=VALUE,VALUE, got {word!r}")
        where = f"--grid {name}"
        key = _field(experiment, name, "--grid")
        if key in found:
            raise UsageError(f"--grid: expected each argument once, got {name!r} again")
        found[key] = [_worded(experiment, name, value, where) for value in _split(text, where)]
    return _distinct(
        product(experiment, package, base, found, _seeds(list(seeds) or None, experiment, budget, ""), budget, "")
    )


def product(
    experiment: Experiment,
    package: str,
    base: Any,
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    budget: str,
    where: str,
) -> list[Cell]:
    """Cells of all combinations of the grid's values with all seeds."""
    from gpsafe.testbed import sweep

    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    arguments = [_replaced(base, one, where or "--grid") for one in combinations]
    try:
        return list(sweep.cells(experiment, package, arguments, seeds, budget))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _distinct(cells: list[Cell]) -> list[Cell]:
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            import pickle

            told = f"{cell.experiment} at {pickle.loads(cell.arguments)}, seed {cell.seed}"
            raise UsageError(f"expected cells that differ, got one twice: {told}")
        seen.add(cell.name)
    return cells


# -------------------------------------------------------------------------------------------------------- arguments
def _field(experiment: Experiment, name: str, where: str) -> str:
    """The argument of this name."""
    names = [f.name for f in dataclasses.fields(experiment.arguments)]
    key = name.replace("-", "_")
    if key not in names:
        known = ", ".join(names)
        raise UsageError(f"{where}: expected arguments of {experiment.name} ({known}), got {name!r}{_near(key, names)}")
    return key


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _replaced(base: Any, changes: Mapping[str, Any], where: str) -> Any:
    try:
        return dataclasses.replace(base, **changes)
    except (ValueError, TypeError) as error:  # the experiment's own checks
        raise UsageError(f"{where}: {changes}: {' '.join(str(error).split())}") from None


def _value(experiment: Experiment, name: str, words: list[str], told: Any, where: str) -> Any:
    key = name.replace("-", "_")
    option = f"--{key.replace('_', '-')}"
    line = [f"{option}={words[0]}"] if len(words) == 1 else [option, *words]
    try:
        found = parse(tyro.conf.FlagConversionOff[experiment.arguments], line, prog=f"gpsafe run {experiment.name}")
    except UsageError as error:
        raise UsageError(f"{where}: expected a value that it takes, got {told!r} ({error})") from None
    return getattr(found, key)


def _typed(experiment: Experiment, name: str, value: Any, where: str) -> Any:
    """A value of TOML as one of the argument's type."""
    _field(experiment, name, where.rpartition(":")[0])
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, (bool, int, float, str)) for item in items):
        expected = "a number, a string, true or false, or a list of them"
        raise UsageError(f"{where}: expected {expected}, got {value!r}")
    found = _value(experiment, name, [item if isinstance(item, str) else repr(item) for item in items], value, where)
    if isinstance(value, list) != isinstance(found, (tuple, list, set, frozenset)):
        raise UsageError(f"{where}: expected values of its type, as {found!r}, got {value!r}")
    if not all(map(_alike, items, found if isinstance(value, list) else [found])):
        raise UsageError(f"{where}: expected values of its type, as {found!r}, got {value!r}")
    return found


def _alike(toml: Any, found: Any) -> bool:
    """Whether a string did not pass for a number, nor a number for a string."""
    if isinstance(toml, str):
        return not isinstance(found, (bool, int, float))
    return isinstance(toml, bool) == isinstance(found, bool) and not isinstance(found, str)


def _worded(experiment: Experiment, name: str, text: str, where: str) -> Any:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{where}: expected a value as on the command line, got {text!r} ({error})") from None
    return _value(experiment, name, words, text, where)


def _split(text: str, where: str) -> list[str]:
    """The values between commas; commas in quotes are none."""
    found = _VALUE.findall(text)
    if ",".join(found) != text or not all(one.strip() for one in found) or not found:
        raise UsageError(f'{where}: expected values joined by commas ("" for an empty one), got {text!r}')
    return found


def _seeds(given: Any, experiment: Experiment, budget: Any, where: str) -> list[int]:
    where = f"{where}: seeds" if where else "--seeds"
    if given is None:
        return list(range(experiment.seeds[budget]))
    found: list[int] = []
    for one in given if isinstance(given, list) else [given] if isinstance(given, str) else [None]:
        text = str(one) if isinstance(one, (int, str)) and not isinstance(one, bool) else ""
        ends = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", text, flags=re.ASCII)
        if ends is None or (ends[2] and int(ends[2]) < int(ends[1])):
            raise UsageError(f'{where}: expected numbers >= 0 and ranges such as "0-9", got {given!r}')
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last >= _require.SEEDS or last - first >= MOST:
            raise UsageError(
                f"{where}: expected numbers below {_require.SEEDS} and ranges of at most {MOST}, got {text}"
            )
        found += range(first, last + 1)
    if not found:
        raise UsageError(f"{where}: expected at least one, got none")
    if len(set(found)) < len(found):
        twice = next(seed for seed in found if found.count(seed) > 1)
        raise UsageError(f"{where}: expected each once, got {twice} twice")
    return found
