"""``gpsafe verify --system | --env | --data``: a user's own plant or recording before the referee."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gpsafe.cli.common import PLAIN, UsageError, see_current_folder, width

if TYPE_CHECKING:
    from rich.console import Console

    from gpsafe.referee import Examination

ASKED = ("system", "env", "data")


@dataclass(frozen=True)
class Own:
    """What is examined instead of the project's own checks, and what is claimed of it."""

    system: Annotated[str | None, tyro.conf.arg(metavar="MODULE:OBJECT")] = None
    """A plant: a `System`, a Gymnasium environment, or a function that makes one."""
    env: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """A Gymnasium environment with continuous actions."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A table of transitions: .csv, .npz or .parquet."""
    state: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN")] = ()
    """Columns of the state."""
    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN")] = ()
    """Columns of the input."""
    next: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN")] = ()
    """Columns of the next state (default: the next row of the same run)."""
    trajectory: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """Column that labels the runs; without one, rows are taken for one-step data."""
    time: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """Column that orders the rows of a run."""
    known: Literal["identity", "zero"] | None = None
    """What is subtracted from the next state: the state (default), or nothing."""
    lengthscale: Annotated[tuple[float, ...], tyro.conf.arg(metavar="L")] = ()
    """Claimed kernel: RBF with these length-scales, one for all of (x, u) or one each (default: chosen from the first rows)."""
    variance: Annotated[float | None, tyro.conf.arg(metavar="V")] = None
    """Its variance (default 1)."""
    norm: Annotated[tuple[float, ...], tyro.conf.arg(metavar="B")] = ()
    """Claimed norm, one for all outputs or one each."""
    noise: Annotated[tuple[float, ...], tyro.conf.arg(metavar="R")] = ()
    """Claimed sub-Gaussian constant of the noise, likewise."""
    level: float = 0.05
    """Probability, over all tests, of calling a true claim refuted."""
    delta: float = 0.1
    """Failure probability of the confidence sets that are compared."""
    rows: Annotated[int, tyro.conf.arg(metavar="N")] = 600
    """Rows drawn from a plant."""
    seed: int = 0
    """Of everything random."""


DEFAULTS = Own()


def asked(own: Own) -> bool:
    """Whether a plant or a recording is to be examined.

    Raises:
        UsageError: if options of it are given without one, or two of them.
    """
    given = [name for name in ASKED if getattr(own, name) is not None]
    others = [n for n in Own.__dataclass_fields__ if n not in ASKED and getattr(own, n) != getattr(DEFAULTS, n)]
    if len(given) > 1:
        raise UsageError(f"--{given[1]}: expected one of --system, --env and --data, got --{given[0]} too")
    if not given and others:
        raise UsageError(f"--{others[0]}: expected a plant or recording (--system, --env or --data), got none")
    columns = [name for name in ("state", "input", "next", "trajectory", "time") if name in others]
    if given and given != ["data"] and columns:
        raise UsageError(f"--{columns[0]}: expected columns of --data, got --{given[0]}")
    if given == ["data"] and "rows" in others:
        raise UsageError("--rows: expected with --system or --env, of which they are drawn, got --data")
    return bool(given)


def judge(own: Own, *, html: Path | None, json: Path | None, command: str, outputs: list[Path]) -> int:
    """Runs it; 1 if anything is refuted, 0 if nothing is."""
    from rich.console import Console

    from gpsafe.testbed import store

    console = Console(width=width())
    if own.data is not None and not own.state:
        raise UsageError("--state: expected columns of the state of --data, got none")
    see_current_folder()
    try:
        found = _examined(own, lambda told: console.print(told, style="dim", **PLAIN))
    except ValueError as error:
        raise UsageError(str(error)) from None
    show(console, found)
    if json is not None:
        store.write_json(json, {"command": command, **found.document()})
    if html is not None:
        found.save(html, command=command)
    for path in outputs:
        console.print(f"wrote {path}", **PLAIN, soft_wrap=True)
    return 1 if found.refuted else 0


def _examined(own: Own, tell: Callable[[str], None]) -> Examination:
    from gpsafe.models import zero_prior
    from gpsafe.referee import verify
    from gpsafe.rkhs import kernels

    options: dict[str, Any] = {"level": own.level, "delta": own.delta, "seed": own.seed, "on_progress": tell}
    if own.known == "zero":
        options["prior"] = zero_prior
    for name, value in (("rkhs_norm", own.norm), ("subgaussian", own.noise)):
        if value:
            options[name] = value
    if own.lengthscale:
        options["kernels"] = kernels.rbf(own.lengthscale, 1.0 if own.variance is None else own.variance)
    elif own.variance is not None:
        raise UsageError("--variance: expected with --lengthscale, got it alone")
    if not 0 < own.level < 1 or not math.isfinite(own.level):
        raise UsageError(f"--level: expected a probability, got {own.level}")
    if own.data is not None:
        columns = {
            "state": own.state,
            "input": own.input,
            "next": own.next,
            "trajectory": own.trajectory,
            "time": own.time,
        }
        return verify(data=own.data, **columns, **options)
    if own.env is not None:
        return verify(env=own.env, rows=own.rows, **options)
    return verify(system=own.system, rows=own.rows, title=own.system, **options)


def show(console: Console, found: Examination) -> None:
    """The findings, one paragraph each, refuted ones last, where they are read."""
    from rich.text import Text

    from gpsafe.referee.finding import Ruling

    style = {
        Ruling.REFUTED: "bold red",
        Ruling.VACUOUS: "bold yellow",
        Ruling.STANDS: "bold",
        Ruling.NOT_APPLICABLE: "dim",
    }
    for key, value in found.facts.items():
        console.print(f"{key}: {value}", **PLAIN, soft_wrap=True)
    for one in sorted(found.findings, key=lambda f: f.ruling is Ruling.REFUTED):
        line = Text(f"{one.ruling.value.upper()} ", style=style[one.ruling])
        line.append(f"{one.name}: {one.claim} ", style="bold" if one.ruling is Ruling.REFUTED else "")
        line.append(one.statement, style="")
        console.print(line, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", **PLAIN, soft_wrap=True)
    console.print(found.summary(), **PLAIN, soft_wrap=True)
