"""`examine`: every applicable test on a user's rows, and what they say in words (`gpsafe.referee.judgements`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence import strayed
from gpsafe.data import Transitions
from gpsafe.policies import PolicyClass
from gpsafe.referee import case, consequences, facts, judgements, reach, refit, widths
from gpsafe.referee.claim import Claim, claimed
from gpsafe.referee.finding import Finding, Findings, idle
from gpsafe.referee.rows import Rows, arranged, outlying
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.task import Task

TESTS = ("norm", "kernel", "time", "level", "tail", "held", "bars", "shape", "memory", "repeats", "refit")
MOST = 150  # rows behind F_n where costs are bounded
LARGEST = 1e100  # of numbers that are judged: their squares and products are finite


class Examination(Findings):
    """All findings, and where they go."""

    __slots__ = ()

    def save(self, path: str | Path, *, command: str = "") -> None:
        """Writes the page, one self-contained file."""
        from gpsafe.referee.page import html  # Matplotlib, loaded for this alone
        from gpsafe.testbed import store

        store.write_text(Path(path), html(self, command))


def examine(
    data: Transitions,
    ids: Sequence[Any] | None = None,
    *,
    task: Task | None = None,
    states: Box | None = None,
    inputs: Box | None = None,
    policies: PolicyClass | None = None,
    level: float = 0.05,
    delta: float = 0.1,
    seed: int = 0,
    title: str = "these rows",
    names: Sequence[str] = (),
    origin: str = "recorded",
    notes: Sequence[str] = (),
    on_progress: Callable[[str], None] | None = None,
    **stated: Any,
) -> Examination:
    """Every applicable test.

    >>> import torch
    >>> import gpsafe as gs
    >>> x = torch.linspace(-1, 1, 90, dtype=torch.float64).unsqueeze(-1)
    >>> data = gs.Transitions(x, x.flip(0), x + 0.3 * torch.sin(3 * x) + 0.02 * torch.sin(1e4 * x))
    >>> found = examine(data, rkhs_norm=1.0, subgaussian=0.02, kernels=gs.kernels.rbf([0.5, 2.0]))
    >>> found["norm"].ruling.value
    'not refuted'

    Args:
        data: transitions, successive rows of a run one after the other.
        ids: label of the run of every row; None: one-step data.
        task: what is to be certified; None: no cost, no "how much".
        states, inputs: boxes on which it is to be; those of the rows by default.
        policies: a class to certify.
        level: probability, over all tests together, of calling a true claim refuted.
        delta: of the confidence sets that are compared.
        seed: of the order of one-step data and of made-up observations.
        title, names, origin: of the data, of the states, and where they come from ("drawn": by gpsafe, noise and all).
        notes: what was done to them before.
        on_progress: told what is being done.
        stated: see `gpsafe.referee.claim.claimed`: model, kernels, rkhs_norm, subgaussian, prior, outputs.

    Raises:
        ValueError: on too few rows, states that do not change, statements that contradict each other, or numbers beyond
            `LARGEST`, or so much larger than their length-scales, that squares of them are none.
    """
    _require.probability("verify", "level", level)
    _require.probability("verify", "delta", delta)
    _require.seed("verify", seed)
    _require.kind("verify", "data", data, Transitions)
    _require.one_of("verify", "origin", origin, ("recorded", "drawn"))
    if names and (len(names) != data.x.shape[1] or len(set(names)) != len(names)):  # outputs are told apart by them
        raise _require.fail("verify", f"names, {data.x.shape[1]} that differ", list(names))
    for name in ("x", "u", "x_next"):
        _small(f"data.{name}", getattr(data, name).abs().max() if getattr(data, name).numel() else 0.0)
    begun, tell = time.process_time(), on_progress or (lambda _: None)
    rows = arranged(data, ids, seed=seed)
    tell("choosing what was not stated from the first rows")
    claim = claimed(rows, **stated)
    _small("rkhs_norm", max(claim.norm))
    _small("subgaussian", max(claim.noise))
    tell("testing")
    tried = case.heard(
        rows, claim, share=level / len(TESTS) / len(claim.outputs), names=tuple(names), origin=origin, seed=seed
    )
    findings = [*judgements.of_noise(tried), *judgements.of_norm(tried), *judgements.of_kernel(tried)]
    tell("comparing confidence bounds")
    compared = widths.widths(rows, claim, delta=delta, task=task, seed=seed)
    findings.append(consequences.of_widths(compared, delta, task))
    tell("refitting")
    findings.append(_refitted(tried))
    tell("what can be certified")
    findings += _reached(rows, claim, task, states, inputs, policies, delta)
    return Examination(
        title, tuple(findings), level, facts.facts(tried), (*notes, *outlying(data, names, ()), *rows.notes, *claim.notes),
        facts.series(tried, compared), time.process_time() - begun,
    )  # fmt: skip


def _small(name: str, size: Tensor | float) -> None:
    if not float(size) <= LARGEST:
        raise _require.fail(
            "verify", f"{name} of at most {LARGEST:g} (rescale the units: squares overflow)", float(size)
        )


def _told(error: Exception) -> str:
    return _require.told(error).removeprefix("ValueError: ")


def _refitted(heard: case.Case) -> Finding:
    name, claim = "refit", consequences.REFIT
    if any(kernels.stationary(k) is None for k in heard.claim.kernels):
        return idle(name, claim, "The kernel is not one of those that are refitted here.")
    try:
        return consequences.of_refit(heard, refit.refits(heard.rows, heard.claim))
    except Exception as error:  # an optimiser may fail in many ways
        return idle(name, claim, f"The refit failed: {_require.told(error)}.")


def _reached(
    rows: Rows, claim: Claim, task: Task | None, states: Box | None, inputs: Box | None, given: PolicyClass | None,
    delta: float,
) -> list[Finding]:  # fmt: skip
    x, u = rows.data.x, rows.data.u
    states = states or Box(x.amin(0), x.amax(0))
    own = inputs is not None or (u.shape[1] > 0 and bool((u.amax(0) > u.amin(0)).all()))
    inputs = inputs or (Box(u.amin(0), u.amax(0)) if own else None)
    found = []
    if task is not None:  # F_n is of the plant that the task describes: R is at least its noise
        floor = task.noise_std[list(claim.outputs)].tolist()
        claim = replace(claim, noise=tuple(max(r, low) for r, low in zip(claim.noise, floor, strict=True)))

    def nothing(why: object) -> list[Finding]:
        named = (("states", consequences.STATES), ("policies", consequences.POLICIES))
        return [idle(name, words, f"{why}.") for name, words in named]

    try:
        confidence = widths.sets_of(rows, claim, delta=delta, most=MOST)
    except ValueError as error:
        return nothing(_told(error))
    assert confidence.model.inputs is not None
    empty = confidence.falsified()
    if empty is not None:  # of no function everything is true
        return nothing(empty)
    try:
        whole = (
            states
            if inputs is None
            else Box(*(torch.cat([getattr(b, e) for b in (states, inputs)]) for e in ("lower", "upper")))
        )
        found.append(consequences.of_region(reach.states(confidence, whole), confidence.model.num_data, delta))
    except (ValueError, RuntimeError) as error:
        found.append(idle("states", consequences.STATES, f"{_told(error)}."))
    if task is None:
        found.append(idle("policies", consequences.POLICIES, "No task was stated: horizon, cost, budget, noise."))
    elif (away := strayed(confidence.model, rows.data, task.noise_std)) is not None:
        found.append(idle("policies", consequences.POLICIES, f"{away}."))
    elif inputs is None:
        found.append(idle("policies", consequences.POLICIES, "There is no input to choose."))
    else:
        try:
            found.append(
                consequences.of_policies(reach.policies(confidence, task, inputs, states, given=given), task, delta)
            )
        except (ValueError, RuntimeError) as error:
            found.append(idle("policies", consequences.POLICIES, f"{_told(error)}."))
    return found
