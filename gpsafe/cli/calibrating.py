"""``gpsafe calibrate``: whose uncertainty fits a table of transitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from gpsafe.cli.common import PLAIN, UsageError, parse, width

if TYPE_CHECKING:
    from rich.table import Table

    from gpsafe.calibration.resampling import Estimated
    from gpsafe.calibration.study import Study


@dataclass(frozen=True)
class Calibrate:
    """Fits Gaussian processes, ensembles and other networks to a part of a recording, and says whose bars hold on the rest.

    One row is one time step. The next state is in columns of its own (--next), or in the next row of the same run (--id).
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """A table: .csv, .npz or .parquet."""
    state: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN")]
    """Columns of the state."""
    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN")] = ()
    """Columns of the input."""
    next: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN")] = ()
    """Columns of the next state, in the order of --state (default: the next row)."""
    id: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """Column that labels the runs: whole runs are held out."""
    time: Annotated[str | None, tyro.conf.arg(metavar="COLUMN")] = None
    """Column that orders the rows of a run; at gaps no transition is taken."""
    html: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("calibration.html")
    """Where the report goes, one self-contained page."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write all numbers here, too."""
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """These models only (default: gp, sparse-gp, ensembles of 1, 3, 5 and 10, dropout, laplace)."""
    level: float = 0.9
    """Probability of the bars that are compared."""
    seed: int = 0
    """Of splits and fits."""


def calibrate(words: Sequence[str], command: str) -> int:
    """Runs the command; 0, or 2 for wrong usage."""
    options: Calibrate = parse(Calibrate, words, prog="gpsafe calibrate", known=list(Calibrate.__dataclass_fields__))
    from rich.console import Console

    from gpsafe.testbed import store

    console = Console(width=width())
    if not 0.5 <= options.level < 1:
        raise UsageError(f"--level: expected a probability from 0.5 up to below 1, got {options.level}")
    outputs = [path for path in (options.html, options.json) if path is not None]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UsageError(f"--json: expected another file than --html, got {str(options.json)!r}")
    try:
        for name, path in (("html", options.html), ("json", options.json)):
            if path is not None:
                store.require_writable(f"--{name}", path)
        study = _study(options, lambda told: console.print(told, style="dim", **PLAIN))
    except ValueError as error:
        raise UsageError(str(error)) from None
    console.print(scores_table(study))
    for line in (*study.sentences(), *(f"note: {note}" for note in study.notes)):
        console.print(line, **PLAIN, soft_wrap=True)
    study.save(options.html)
    if options.json is not None:
        about = {
            "command": command,
            "rows": study.rows,
            "units": study.units,
            "delta": study.delta,
            "notes": study.notes,
        }
        store.write_json(options.json, {**about, "assessments": study.frame()})
    for path in outputs:
        console.print(f"wrote {path}", **PLAIN, soft_wrap=True)
    return 0


def _study(options: Calibrate, tell: Callable[[str], None]) -> Study:
    from gpsafe.calibration import recordings
    from gpsafe.calibration.study import NAMES, calibrate
    from gpsafe.calibration.zoo import MODELS

    unknown = [name for name in options.models if name not in MODELS]
    if unknown:
        raise UsageError(f"--models: expected names among {', '.join(MODELS)}, got {unknown[0]!r}")
    frame = recordings.read(options.data)
    data, ids, notes = recordings.transitions(
        frame, options.state, options.input, following=options.next, run=options.id, time=options.time
    )
    for note in notes:
        tell(note)
    return calibrate(
        data, ids=ids, models=options.models or NAMES, delta=1 - options.level, seed=options.seed,
        title=options.data.name, states=options.state, inputs=options.input, on_progress=tell,
    )  # fmt: skip


def scores_table(study: Study) -> Table:
    """One line a model, as fitted, and what conformal recalibration makes of it."""
    from rich import box
    from rich.table import Table

    level = f"{1 - study.delta:.0%}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    titles = (f"inside {level} bars", "errors / σ", "ECE", "CRPS", "all inside at", "after conformal", "fit s")
    for title in titles:
        table.add_column(title, justify="right")
    seconds = {fitted.name: fitted.seconds for fitted in study.fits}
    for name in study.models:
        one = study.of(name)
        again = [a for a in study.assessments if (a.model, a.recalibration) == (name, "conformal")]
        table.add_row(
            name, _interval(one.inside_interval, ".1%"), _interval(one.stretch, ".2f"), _interval(one.scores["ece"], ".3f"),
            _interval(one.scores["crps"], ".3f"), f"{one.needed:.3g} σ",
            *(_interval(a.inside_interval, ".1%") for a in again[:1]), *([] if again else ["–"]), f"{seconds[name]:.1f}",
        )  # fmt: skip
    return table


def _interval(found: Estimated, form: str) -> str:
    value, low, high = (format(float(v), form) for v in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"
