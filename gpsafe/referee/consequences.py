"""What follows from (k, B, R) on these rows, in words: bounds, refits, and how much can be certified. Computations, "
"but for the refit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpsafe.referee.case import Case
from gpsafe.referee.finding import BAYES, Finding, Ruling, idle, listing, shown
from gpsafe.referee.reach import Policies, Region
from gpsafe.referee.refit import Refit
from gpsafe.referee.widths import EMPTY, Width
from gpsafe.systems.task import Task

REFIT = "Hyperparameters frozen before the rows predict as well as refitted ones."
STATES = "Part of the box of (x, u) is known well enough to certify anything in it."
POLICIES = "Some policies can be certified with these rows."


def of_widths(found: Sequence[Width], delta: float, task: Task | None) -> Finding:
    """The registered bounds."""
    sound = [w for w in found if w.status == "theorem"]
    claim = f"The confidence bounds are narrow enough to be of use (δ = {delta:g})."
    rows = tuple((w.name, w.status, w.beta, w.at_rows, w.in_box, w.saturated, w.episodes) for w in found)
    head = ("bound", "status", "β", "half-width at rows", "in their box", "saturated", "n*")
    empty = [w.name for w in found if w.status == EMPTY]
    none = f" The band of {listing(empty)} is {EMPTY}." if empty else ""
    if not sound:
        return idle("widths", claim, f"No bound of the registry is a theorem for this model that holds anything.{none}")
    best = min(sound, key=lambda w: w.in_box)
    text = (
        f"The narrowest theorem is {best.name}: half-width {shown(best.at_rows)} at the rows and {shown(best.in_box)} "
        "in their box, in units of "
        f"what the output moves by; in {best.saturated:.0%} of the box it says hardly more than |f| ≤ B√k."
    )
    if task is not None:
        text += " n*, the theory's number of episodes, is printed beside what is measured and never used."
    vacuous = not best.in_box < 1.0
    if vacuous:
        text += " Wider than the output moves: vacuous in the box as a whole."
    return Finding(
        "widths", claim, Ruling.VACUOUS if vacuous or empty else Ruling.STANDS, text + none, best.in_box, 1.0, None, None,
        ("kernel, B and R as claimed, chosen from none of the rows used here",), "", head, rows,
    )  # fmt: skip


def of_refit(case: Case, found: Sequence[Refit]) -> Finding:
    """Frozen against refitted."""
    need = math.log(1 / case.share)
    named = list(zip((o.name for o in case.outputs), found, strict=True))
    name, worst = max(named, key=lambda item: item[1].log_ratio)
    wrong = [n for n, r in named if r.log_ratio > need]
    a, b = worst.scales
    text = (
        f"Refitted to more rows, length-scales of {name} become {shown(a)} to {shown(b)} times the frozen ones, noise "
        f"{shown(worst.noise)} times; the "
        f"norm of the same mean goes from {shown(worst.norms[0])} to {shown(worst.norms[1])}, its bars to "
        f"{shown(worst.width)} times. "
    )
    text += (
        f"The last {worst.tested} rows are e^{shown(worst.log_ratio)} times as likely under the refitted ones "
        f"(refuted for {listing(wrong)})."
        if wrong
        else f"The last {worst.tested} rows do not prefer the refitted ones by enough (ln ratio {shown(worst.log_ratio)}, "
        f"{shown(need)} would refute). That does not make the frozen ones true."
    )
    text += " Either way a refit is another space, and voids every statement for all n."
    rows = tuple((n, r.log_ratio, *r.scales, r.amplitude, r.noise, *r.norms, r.width) for n, r in named)
    head = ("output", "ln ratio", "ℓ, least", "ℓ, most", "amplitude", "noise", "‖μ‖ frozen", "‖μ‖ refitted", "bars")
    ruling = Ruling.REFUTED if wrong else Ruling.STANDS
    return Finding(
        "refit", REFIT, ruling, text, worst.log_ratio, need, None, case.share * len(found), (BAYES,), "", head, rows
    )


def of_region(found: Region, rows: int, delta: float) -> Finding:
    """Share of (x, u) that is known well enough."""
    why = (
        f" Of the rest, {found.far} have no row near, in {found.loose} β is too large for the σ that the rows leave, "
        f"{found.undecided} are "
        "undecided."
        if found.yes < found.cells
        else ""
    )
    text = (
        f"In {found.yes} of {found.cells} cells of the box of (x, u), f is proved to be within "
        f"{listing([shown(e) for e in found.epsilon])} of the "
        f"mean of {rows} rows, at every point of the cell.{why}"
    )
    ruling = Ruling.VACUOUS if found.yes == 0 else Ruling.STANDS
    return Finding(
        "states", STATES, ruling, text, found.yes / found.cells, None, None, None,
        ("kernel, B and R as claimed, chosen from none of the rows used here", f"an event of probability 1 − {delta:g}"), "",
        ("cells", "proved", "no row near", "β too large", "undecided"),
        ((found.cells, found.yes, found.far, found.loose, found.undecided),),
    )  # fmt: skip


def of_policies(found: Policies, task: Task, delta: float) -> Finding:
    """Share of a policy class, and why not the rest."""
    best = min(found.upper)
    text = (
        f"{found.certified} of {found.num} policies ({found.origin}) cost at most {shown(task.budget)} in expectation "
        f"over {task.horizon} steps "
        f"for every f of F_n, by {found.bound}; the best proved cost is {shown(best)} of at most {shown(task.total_ceiling)}."
    )
    if found.causes:
        causes = listing([f"{cause} ({count} of {len(found.told)})" for cause, count in found.causes.most_common()])
        text += f" Of the {len(found.told)} nearest to it, not certified because of: {causes}."
    rows = tuple((f"policy {i}", one.excess, one.steps, one.advice) for i, one in found.told)
    ruling = Ruling.STANDS if found.certified else Ruling.VACUOUS
    return Finding(
        "policies", POLICIES, ruling, text, found.certified / found.num, None, None, None,
        ("kernel, B and R as claimed, chosen from none of the rows used here",
        f"an event of probability 1 − {delta + found.delta:g}", "normal noise, as the task states"), "",
        ("not certified", "excess", "good for steps", "try"), rows,
    )  # fmt: skip
