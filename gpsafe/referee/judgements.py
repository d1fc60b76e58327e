"""What the tests say, in words. A claim that was not refuted is never called true."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gpsafe.referee import power, trials
from gpsafe.referee.case import Case, Output
from gpsafe.referee.finding import BAYES, Finding, Ruling, idle, listing, shown

SHORT, RARE = "length-scales a quarter as long, norm B", "every fiftieth row ten times as noisy"
DEFECTS = {
    "norm": ("a norm of 1.5 B", "a norm of 3 B"), "kernel": (SHORT,), "shape": (SHORT,), "time": (power.MEMORY,),
    "memory": (power.MEMORY,), "level": ("noise of 1.5 R", "noise of 3 R"), "tail": ("noise of 3 R", RARE),
    "held": ("a norm of 3 B", RARE), "bars": ("noise of 1.5 R", "noise of 3 R"),
}  # fmt: skip
BLIND = 0.2  # a test that notices the last of its defects no more often than this is vacuous
OVER = (
    "proved: kernel, R, and noise of mean 0 given everything before it",
    "mean: nothing, for it bounds nothing",
    "random functions: f is one more draw of the same kind, with weights of that size and centres in the box of the rows",
    "B from the first rows: later rows add no more to the norm than the second half of the first ones did",
)
MARTINGALE = "noise has mean 0 given everything before it"
DRAWN = (
    "noise has mean 0 given all inputs and the noise of other rows (one-step data are put in a drawn order, so that no input "
    "may have been chosen by what was measured elsewhere)"
)
REPEATED = "what was measured at an input had no say in whether it was measured again"
JOINT = "kernel, B and R as claimed, all three: one of them is false if this is"
CHOSEN = (
    "R as claimed; F_n stands on rows from which a part of the claim was chosen: no theorem says that it contains f"
)
Number = Callable[[Output], float]


def _tested(
    case: Case, name: str, claim: str, statistic: Number, threshold: Number, refuted: str, stands: str, *,
    assumes: tuple[str, ...], head: tuple[str, str], joint: bool = True,
) -> Finding:  # fmt: skip
    """A test of every output; the worst one is told: {state}, {statistic}, {threshold} and {ratio} may stand in both texts."""
    applicable = [o for o in case.outputs if name in o.power.hits[power.NONE]]
    ratio = {o.name: statistic(o) / (threshold(o) or 1.0) for o in applicable}
    wrong = [o for o in applicable if o.refuted(name)]
    worst = max(wrong or applicable, key=lambda o: ratio[o.name] if not math.isnan(ratio[o.name]) else -math.inf)
    values = {
        "state": worst.name, "statistic": shown(statistic(worst)), "threshold": shown(threshold(worst)),
        "ratio": shown(ratio[worst.name]),
        "which": f" (refuted for {listing([o.name for o in wrong])})" if len(case.outputs) > 1 and wrong else "",
    }  # fmt: skip
    strength = case.power.words(name, *DEFECTS[name])
    last = DEFECTS[name][-1]
    blind = last in case.power.hits and case.power.hits[last].get(name, 0) <= BLIND * case.power.trials
    if wrong:
        ruling, text = Ruling.REFUTED, refuted.format(**values) + (_repair(wrong) if joint else "")
    elif blind:
        ruling = Ruling.VACUOUS
        text = f"{stands.format(**values)} These rows could hardly have shown otherwise: even “{last}” would be noticed rarely."
    else:
        ruling, text = Ruling.STANDS, f"{stands.format(**values)} That does not make it true."
    table = tuple(
        (o.name, statistic(o), threshold(o), "refuted" if o.refuted(name) else "not refuted") for o in applicable
    )
    return Finding(
        name, claim, ruling, text, statistic(worst), threshold(worst), None, case.share * len(case.outputs), assumes, strength,
        ("output", *head, ""), table,
    )  # fmt: skip


def _noise(case: Case) -> str:
    """What is assumed of the noise: rows of runs stand in their order, others in one that was drawn."""
    return MARTINGALE if case.rows.runs or case.origin == "drawn" else DRAWN


def _repair(wrong: Sequence[Output]) -> str:
    """What R would have to be for B to survive."""
    factors = [o.repair() for o in wrong]
    if max(factors) == math.inf:
        return " No R up to 16 times the claimed one would save the claim with this kernel and B."
    told = listing(
        [f"{shown(f * o.design.noise)} ({shown(f)} R) for {o.name}" for f, o in zip(factors, wrong, strict=True)]
    )
    return f" With this kernel and B, no test refutes from R = {told} on." if max(factors) > 1 else ""


# ------------------------------------------------------------------------------------------------------ noise
def of_noise(case: Case) -> list[Finding]:
    """Repeats, copies, level, tail, memory."""
    return [*_repeats(case), _level(case), _tail(case), *_time(case)]


def _repeats(case: Case) -> list[Finding]:
    claim, seen, delta = "R bounds the noise seen at repeated inputs.", case.repeats, case.share * len(case.outputs)
    copies = "Every row is a measurement of its own."
    lattices = [f"{o.name} by {shown(o.lattice)}" for o in case.outputs if o.lattice]
    steps = (
        f" Measured values move in steps ({listing(lattices)}): part of what is called noise is rounding, which is "
        "bounded and not "
        "independent of the state."
        if lattices
        else ""
    )
    low = dict(zip((o.name for o in case.outputs), seen.low, strict=True))
    if math.isnan(next(iter(low.values()))):
        first = idle(
            "repeats",
            claim,
            f"{seen.pairs} pairs of judging rows have the same (x, u); from 3 on they would tell.{steps}",
        )
    else:
        wrong = [o for o in case.outputs if low[o.name] > o.design.noise]
        worst = max(case.outputs, key=lambda o: low[o.name] / o.design.noise)
        text = (
            f"{seen.pairs} pairs of rows with the same (x, u): whatever f is, the noise of {worst.name} needs R ≥ "
            f"{shown(low[worst.name])}, against {shown(worst.design.noise)} claimed.{steps}"
        )
        first = Finding(
            "repeats", claim, Ruling.REFUTED if wrong else Ruling.STANDS, text + ("" if wrong else " That does not "
            "make it true."),
            low[worst.name], worst.design.noise, None, delta, (_noise(case), REPEATED, "nothing about f, k or B"), "",
            ("output", "R at least", "r.m.s. seen", "R claimed"),
            tuple((o.name, low[o.name], s, o.design.noise) for o, s in zip(case.outputs, seen.size, strict=True)),
        )  # fmt: skip
    if case.origin == "drawn":
        return [first, idle("copies", copies, "gpsafe drew the rows itself.")]
    if lattices or not seen.copies:
        told = f"{seen.copies} pairs of rows are equal in all columns.{steps if seen.copies else ''}"
        stands = Finding(
            "copies", copies, Ruling.STANDS, f"{told} That does not make it true.", float(seen.copies), 0.0
        )
        return [first, stands]
    text = (
        f"{seen.copies} pairs of rows are equal in every column, which noise with a density does with "
        "probability 0: rows "
        "were copied, and confidence sets would count them twice. For a plant without noise this is no objection."
    )
    found = Finding(
        "copies",
        copies,
        Ruling.REFUTED,
        text,
        float(seen.copies),
        0.0,
        None,
        0.0,
        ("noise with a density, not rounded",),
    )
    return [first, found]


def _level(case: Case) -> Finding:
    return _tested(
        case, "level", "R is large enough for the size of the residuals.",
        lambda o: float(o.tried.level[0]), lambda o: o.design.noise,
        "Every f with ‖f‖ ≤ B leaves residuals of {state} that need R ≥ {statistic}, against {threshold} claimed ({ratio} "
        "times){which}.",
        "The residuals of {state} that the best f of the ball leaves need R ≥ {statistic}; {threshold} is claimed.",
        assumes=(JOINT, _noise(case)), head=("R at least", "R claimed"),
    )  # fmt: skip


def _tail(case: Case) -> Finding:
    found = _tested(
        case, "tail", "The noise has no heavier tail than R-sub-Gaussian noise may have.",
        lambda o: -math.log10(max(float(o.tried.tail[0]), 1e-300)), lambda o: -math.log10(o.design.delta / 2),
        "More residuals of {state} are large, the whole uncertainty of f granted, than R-sub-Gaussian noise allows: "
        "exact binomial "
        "probability 1e−{statistic}{which}.",
        "The numbers of large residuals are within what R-sub-Gaussian noise may do (worst output {state}).",
        assumes=(JOINT, _noise(case)), head=("−log₁₀ p", "needed to refute"),
    )  # fmt: skip
    m = case.outputs[0].design.judging
    shares = []
    for o in case.outputs:
        error, spread = o.tried.errors[0][:, 0].abs(), o.tried.errors[1]
        away = error / (o.design.noise**2 + spread.square()).sqrt()
        shares.append((o.name, *(float((away > k).double().mean()) for k in (1, 2, 3)), float(away.max())))
    words = max(shares, key=lambda row: row[3])
    more = (
        f" For comparison, without any claim: {words[3]:.1%} of the {m} forecasts of {words[0]} miss by more than three of "
        f"their own standard deviations (normal: 0.3 %), the worst by {words[4]:.3g}."
    )
    return Finding(
        found.name, found.claim, found.ruling, found.statement + more, found.statistic, found.threshold, None, found.level,
        found.assumes, found.power, ("output", "beyond 1 sd", "beyond 2 sd", "beyond 3 sd", "worst, sd"), tuple(shares),
    )  # fmt: skip


def _time(case: Case) -> list[Finding]:
    names = ("time", "memory")
    claims = (
        "Noise does not remember from row to row (any f of the ball).",
        "Noise does not remember from row to row (f as the process draws it, whatever B and R).",
    )
    if case.origin == "drawn":
        return [idle(n, c, "gpsafe drew the noise itself, independently.") for n, c in zip(names, claims, strict=True)]
    if not case.rows.linked:
        why = (
            "One-step data: no row is said to follow another."
            if not case.rows.runs
            else "No two kept rows are successive."
        )
        return [idle(n, c, why) for n, c in zip(names, claims, strict=True)]
    lags = listing([f"{o.name} {shown(o.lag[0])}" for o in case.outputs])
    told = f" Correlation of successive forecast errors, model error included: {lags}."
    first = _tested(
        case, "time", claims[0], lambda o: float(o.tried.lower[trials.TIME][0]), lambda o: o.design.norm,
        "A forecaster that remembers its last error predicts {state} better than independent noise allows for any f "
        "of norm below "
        "{statistic}; B is {threshold}{which}." + told,
        "Explaining {state} with independent noise takes a norm of at least {statistic}; B is {threshold}." + told,
        assumes=(JOINT, _noise(case)), head=("norm at least", "B"),
    )  # fmt: skip
    heard = [o for o in case.outputs if o.refuted("memory")]
    if heard and all(o.quiet() for o in heard):
        why = (
            "Forecast errors are far below R: what is correlated in them is the model's error, not noise of that size."
        )
        return [first, idle("memory", claims[1], why + told)]
    return [first, _ratio(
        case, "memory", claims[1],
        "Processes with correlated noise give the rows of {state} e^{statistic} times the density of all with "
        "independent noise, other "
        "amplitudes, noises and length-scales included{which}." + told,
    )]  # fmt: skip


def _ratio(case: Case, name: str, claim: str, refuted: str) -> Finding:
    tried: Callable[[Output], Any] = lambda o: getattr(o.tried, name)[0]  # noqa: E731
    return _tested(
        case, name, claim, lambda o: float(tried(o)), lambda o: math.log(1 / o.design.delta), refuted,
        "The alternatives do not predict enough better (ln ratio {statistic} for {state}; {threshold} would refute).",
        assumes=(BAYES,), head=("ln ratio", "needed to refute"), joint=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- norm
def of_norm(case: Case) -> list[Finding]:
    """Lower bound, growth, and what is published from above."""
    found = _tested(
        case, "norm", f"‖f‖_k ≤ B (B {case.claim.words('B')}).", lambda o: float(o.tried.lower[trials.OWN][0]),
        lambda o: o.design.norm,
        "Every f that these rows allow has ‖f‖ ≥ {statistic} for {state}, against B = {threshold} ({ratio} times){which}.",
        "‖f‖ ≥ {statistic} is what these rows prove of {state}, {ratio} of B = {threshold}.",
        assumes=(JOINT, _noise(case)), head=("norm at least", "B"),
    )  # fmt: skip
    return [found, _growth(case), _upper(case)]


def _growth(case: Case) -> Finding:
    rows = tuple((o.name, *o.growth.lower, o.growth.exponent) for o in case.outputs)
    known = [o for o in case.outputs if not math.isnan(o.growth.exponent)]
    head = ("output", *(f"n = {n}" for n in case.outputs[0].growth.counts), "exponent")
    claim = "The rows have seen the norm whole: its lower bound no longer grows with n."
    if not known:
        text = "The lower bound is 0 at a quarter of the rows, so there is no growth to read."
        return Finding("growth", claim, Ruling.VACUOUS, text, head=head, rows=rows)
    worst = max(known, key=lambda o: o.growth.exponent)
    a = worst.growth.exponent
    growing = a > 0.15
    text = (
        f"Over the last factor of four the lower bound of {worst.name} grows like n^{shown(a)}"
        + (": a B read off these rows is still too small for more of them." if growing else ", hardly at all.")
        + " A bound for a function outside the space would grow for ever; one that stays proves nothing of unseen places."
    )
    return Finding(
        "growth", claim, Ruling.VACUOUS if growing else Ruling.STANDS, text, a, None, None, None,
        (JOINT, "all n at once, by Ville's inequality"), "", head, rows,
    )  # fmt: skip


def _upper(case: Case) -> Finding:
    rows = []
    for o in case.outputs:
        growth, n = o.growth, len(o.random)
        rows.append(
            (o.name, growth.lower[-1], growth.mean[-1], float(o.random[-1]), float(o.random[n // 2]), o.design.norm)
        )
    text = (
        "No rows bound ‖f‖ from above: a bump between two of them has any norm and leaves no trace. Side by side: "
        "what is proved from "
        "below; the norm of the posterior mean, which bounds nothing; the largest (and the median) of "
        f"{len(case.outputs[0].random)} random functions through the rows, an over-estimate that is right with high "
        "probability if f is "
        "one more draw of the same kind (after Tokmak et al. 2024, 2025); and B"
        + (
            ", stated."
            if "B" in case.claim.stated
            else ", twice the norm of the first rows' mean, times its growth (`gs.estimate`)."
        )
    )
    return Finding(
        "upper", "Rows bound ‖f‖_k from above.", Ruling.VACUOUS, text, assumes=OVER,
        head=("output", "proved, ≥", "mean", "random, largest", "random, median", "B"), rows=tuple(rows),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ kernel
def of_kernel(case: Case) -> list[Finding]:
    """Shape, in both readings; held-out rows; bars."""
    return [*_shape(case), _held(case), _bars(case)]


def _shape(case: Case) -> list[Finding]:
    claims = (
        "No shorter or rougher kernel forecasts better than every f of the ball could.",
        "No shorter or rougher kernel is preferred (f as the process draws it, whatever B and R).",
    )
    if not any("kernel" in o.power.hits[power.NONE] for o in case.outputs):
        why = "The kernel has no closed stationary form, so there is nothing shorter or rougher to try."
        return [idle(n, c, why) for n, c in zip(("kernel", "shape"), claims, strict=True)]
    first = _tested(
        case, "kernel", claims[0], lambda o: float(o.tried.lower[trials.KERNEL][0]), lambda o: o.design.norm,
        "A forecaster with a shorter length-scale or a rougher kernel predicts {state} better than any f of norm "
        "below {statistic} "
        "could; B is {threshold}{which}.",
        "What these forecasters predict of {state} could be done by some f of norm {statistic}; B is {threshold}.",
        assumes=(JOINT, _noise(case)), head=("norm at least", "B"),
    )  # fmt: skip
    return [first, _ratio(
        case, "shape", claims[1],
        "Shorter length-scales or a Matérn-3/2 kernel give the rows of {state} e^{statistic} times the density of "
        "the claimed shape, at any "
        "of the amplitudes and noises tried{which}.",
    )]  # fmt: skip


def _held(case: Case) -> Finding:
    m, first = case.outputs[0].design.judging, case.rows.first
    return _tested(
        case, "held", f"F_n of the first {first} rows contains f at the other {m}.",
        lambda o: float(o.tried.held[0]), lambda o: 0.0,
        "A row of {state} is {statistic} R further outside the band than the noise may carry it{which}.",
        "No row is further outside the band than the noise may carry it (closest: {state}, {statistic} R).",
        assumes=(JOINT if len(case.claim.stated) == 3 else CHOSEN, _noise(case)), head=("largest excess, R", "allowed"),
    )  # fmt: skip


def _bars(case: Case) -> Finding:
    m = case.outputs[0].design.judging
    return _tested(
        case, "bars", "The error bars of the Gaussian process are right for rows that it has not seen.",
        lambda o: math.sqrt(float(o.tried.bars[0]) / m), lambda o: 1.0,
        "Forecast errors of {state} are {statistic} times what the process says, in the mean square{which}.",
        "Forecast errors are {statistic} times what the process says (worst output {state}).",
        assumes=(BAYES,), head=("errors / bars", "1 is right"), joint=False,
    )  # fmt: skip
