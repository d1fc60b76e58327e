"""`gs.verify`: the project's own checks, or a user's plant or data before the referee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from gpytorch.kernels import Kernel

from gpsafe import _require
from gpsafe.confidence.lineage import fingerprint
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.referee.examine import Examination, examine
from gpsafe.referee.sources import ROWS, named, of_env, of_system
from gpsafe.systems.task import Task
from gpsafe.testbed.check import Check
from gpsafe.testbed.check_result import CheckResult
from gpsafe.testbed.verify import verify as _checks


@overload
def verify(checks: Mapping[str, Check], **options: Any) -> tuple[CheckResult, ...]: ...


@overload
def verify(
    checks: None = None,
    *,
    system: Any = None,
    env: Any = None,
    data: Transitions | str | Path | Any = None,
    model: Any = None,
    task: Task | None = None,
    rows: int = ROWS,
    **options: Any,
) -> Examination: ...


def verify(
    checks: Mapping[str, Check] | None = None,
    *,
    system: Any = None,
    env: Any = None,
    data: Any = None,
    model: Any = None,
    task: Task | None = None,
    rows: int = ROWS,
    **options: Any,
) -> Examination | tuple[CheckResult, ...]:
    """What rows of a plant or of a recording say about kernel, B, R, noise and what can be certified: see `examine`.

        found = gs.verify(system=plant, model=gp, rkhs_norm=2.0)
        found = gs.verify(data=transitions, ids=labels)
        found = gs.verify(data="log.csv", state=["x", "v"], input=["u"], trajectory="run")
        print(found["norm"].statement); found.save("report.html")

    With `checks` (``gpsafe.testbed.check.survey(...)[0]``), the project's own checks are run instead (`gpsafe.testbed.verify`).

    Args:
        checks: see above; nothing else of this list goes with it.
        system: a `System`, ``"module:object"``, or a Gymnasium environment.
        env: a Gymnasium environment or its name.
        data: transitions, a table (pandas) or a file (CSV, NPZ, Parquet); of tables the columns are named by `state`, `input`,
            `next`, `trajectory`, `time`, as by ``gpsafe verify --data``.
        model: a theory-mode `GP`, a `ConfidenceSet` or an `Estimate`: kernel, and B and R as far as it states them.
        task: what is to be certified; that of the plant by default.
        rows: how many are drawn from a plant.
        options: of `examine`: ids, rkhs_norm, subgaussian, kernels, prior, outputs, states, inputs, policies, level, delta,
        seed, …
    """
    where = "verify"
    given = [name for name, value in (("system", system), ("env", env), ("data", data)) if value is not None]
    if checks is not None:
        if given or model is not None or task is not None:
            raise _require.fail(where, "either checks or a plant or data", f"both checks and {[*given, model, task]}")
        return _checks(checks, **options)
    if len(given) != 1:
        raise _require.fail(where, "one of system, env and data (or checks)", given or "none")
    _require.count(where, "rows", rows, minimum=24)
    seed = _require.seed(where, options.get("seed", 0))
    if data is not None:
        transitions, ids = _table(data, options)
        return examine(transitions, ids, model=model, task=task, **options)
    if env is not None:
        source = of_env(env, rows=rows, seed=seed)
    else:
        source = of_system(named(system) if isinstance(system, str) else system, rows=rows, seed=seed)
    stated = {k: v for k, v in source.stated.items() if k not in _unsaid(model, options, source.stated)} | options
    own = {"title": env if isinstance(env, str) else getattr(system, "name", "the plant"), "origin": source.origin}
    own |= {"states": source.states, "inputs": source.inputs, "notes": source.notes}
    task = task or source.task
    return examine(source.data, source.ids, model=model, task=task, **(own | stated))


def _unsaid(model: Any, options: Mapping[str, Any], stated: Mapping[str, Any]) -> set[str]:
    """What a plant states that does not stand beside what its user does: a norm is of one residual in one RKHS, and what is
    stated by output is of its own outputs.
    """
    if model is not None:  # which says all of this itself
        same = isinstance(model, GP) and _alike(model.kernels, stated.get("kernels", ()))
        return {"kernels", "prior", "outputs", "subgaussian"} | (set() if same else {"rkhs_norm"})
    if "outputs" in options:
        return {"kernels", "rkhs_norm", "subgaussian"}
    return {"rkhs_norm"} if {"kernels", "prior"} & options.keys() else set()


def _alike(one: Sequence[Kernel], other: Sequence[Kernel]) -> bool:
    """Whether two models have equal kernels."""
    return [fingerprint(kernel) for kernel in one] == [fingerprint(kernel) for kernel in other]


def _table(data: Any, options: dict[str, Any]) -> tuple[Transitions, Sequence[Any] | None]:
    """Transitions and labels; columns are taken out of the options."""
    from gpsafe.calibration import recordings

    if isinstance(data, Transitions):
        return data, options.pop("ids", None)
    frame = data
    if isinstance(data, str | Path):
        options.setdefault("title", Path(data).name)
        frame = recordings.read(data)
    if not hasattr(frame, "columns"):
        raise _require.fail("verify", "Transitions, a table or a file as data", type(data).__name__)
    columns = {name: options.pop(name, None) for name in ("state", "input", "next", "trajectory", "time")}
    for name in ("state", "input", "next"):
        columns[name] = _require.listing("verify", name, columns[name] or ())
    rows, labels, notes = recordings.transitions(
        frame,
        columns["state"],
        columns["input"],
        following=columns["next"],
        run=columns["trajectory"],
        time=columns["time"],
    )
    options.setdefault("names", columns["state"])
    options["notes"] = (*options.get("notes", ()), *notes)
    return rows, labels
