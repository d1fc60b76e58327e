"""Uniform coverage of every valid confidence bound, over z and n at once, for random and adaptive designs
(theory §2.3–2.7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe.confidence import (
    AbbasiYadkori,
    ActSafeForm,
    ChowdhuryGopalan,
    ConfidenceBound,
    Constant,
    ConvexProgram,
    Fiedler,
    Lederer,
    Mixture,
    Srinivas,
)
from gpsafe.confidence.bounds import ClosedForm
from gpsafe.testbed.check import Budget, Check, Evidence, Sample
from gpsafe.verdict import Verdict, clopper_pearson, worst_of

from ._coverage import GRADES, closed, closed_ends, convex, convex_ends, lederer, lederer_ends
from ._handed_out import ROUNDING, Ends, shortfall
from ._regression import (
    CONFIDENCE,
    DELTAS,
    MODES,
    Deviations,
    Run,
    Setting,
    draw_band,
    draw_rates,
    generator,
    picture,
    rate_verdict,
    simulate,
)

TRIALS = 250  # per mode and shard
SHARDS: dict[Budget, int] = {"quick": 12, "full": 80}
MIDDLE = 12  # observations in the picture
Judge = Callable[[Any, float], tuple[Tensor, Tensor]]  # (run, δ) → failed (F,), largest |f − mid|/half (≤ F,)

SMALL = Setting(noise_std=0.1, regularizer=0.01)  # λ = σ², the usual posterior
ROUGH = Setting(nu=1.5, lengthscale=0.2, noise="rademacher", noise_std=0.1, regularizer=0.1)
UNIT = Setting(noise_std=0.5, regularizer=1 + 2 / 60)  # λ = 1 + 2/N
# In the next five one term of β leads: little is to be learned and B hardly counts, or the noise hardly counts.
COIN = Setting(lengthscale=1e3, noise_std=0.1, regularizer=0.01, noise="rademacher")
LOUD = Setting(lengthscale=0.4, noise_std=10.0, regularizer=1.0)
LOUD_UNIT = replace(LOUD, regularizer=UNIT.regularizer)
STILL = Setting(noise_std=0.02, regularizer=1 + 2 / 60)
QUIET = Setting(nu=2.5, lengthscale=0.15, noise_std=0.05, regularizer=2.0)
BOUNDED = Setting(noise="uniform", noise_std=0.1, regularizer=0.01)
BAYES = Setting(noise_std=0.1, regularizer=0.01, lengthscale=0.2, prior="gp")


@dataclass(frozen=True)
class Case:
    """One bound family: its settings (shards take turns), its judge, and the control's; whether they judge `Deviations`."""

    settings: tuple[Setting, ...]
    judge: Judge
    control_setting: Setting
    control_judge: Judge
    deviations: bool = True


def _actsafe(**options: Any) -> ActSafeForm:
    return ActSafeForm(**options, unchecked=True)


def _constant(delta: float, value: float = 2.0, **_: Any) -> Constant:
    return Constant(value=value, delta=delta)


HEURISTICS: dict[str, Callable[..., ClosedForm]] = {  # their failure rates at δ = 0.1 are reported beside the mixture's
    "constant 2": _constant,
    "constant 3": partial(_constant, value=3.0),
    "ActSafe form, λ = σ²": _actsafe,
}
CASES: dict[str, Case] = {
    "mixture": Case((SMALL, ROUGH, LOUD, QUIET), partial(closed, Mixture), SMALL, partial(closed, _actsafe)),
    "abbasi-yadkori": Case(
        (SMALL, ROUGH, LOUD, QUIET), partial(closed, AbbasiYadkori), SMALL, partial(closed, _constant)
    ),
    "fiedler": Case((SMALL, ROUGH, LOUD, QUIET), partial(closed, Fiedler), SMALL, partial(closed, _constant)),
    "chowdhury-gopalan": Case(
        (UNIT, LOUD_UNIT, STILL),
        partial(closed, partial(ChowdhuryGopalan, max_data=60)),
        SMALL,
        partial(closed, _actsafe),
    ),
    "srinivas": Case((BOUNDED, COIN), partial(closed, Srinivas), SMALL, partial(closed, _constant)),
    "convex-program": Case((SMALL, ROUGH, LOUD, QUIET), convex, SMALL, partial(convex, whole=False), False),
    "lederer": Case((BAYES,), lederer, BAYES, partial(lederer, grid=False), False),
}
ORDER = tuple(CASES)
_SQUARE: dict[str, Any] = {"lower": (0.0, 0.0), "upper": (1.0, 1.0)}
HANDED: dict[
    str, tuple[Callable[..., ConfidenceBound], Ends]
] = {  # as users make them, and the ends that the judges use
    "mixture": (Mixture, closed_ends),
    "abbasi-yadkori": (AbbasiYadkori, closed_ends),
    "fiedler": (Fiedler, closed_ends),
    "chowdhury-gopalan": (partial(ChowdhuryGopalan, max_data=60), closed_ends),
    "srinivas": (partial(Srinivas, unchecked=True), closed_ends),  # at very small g_n it is refused
    "convex-program": (ConvexProgram, convex_ends),
    "lederer": (partial(Lederer, **_SQUARE), lederer_ends),
}


def _run(name: str, shard: int, broken: bool, m: int) -> Run:
    case = CASES[name]
    setting = case.control_setting if broken else case.settings[shard % len(case.settings)]
    return simulate(setting, TRIALS, MODES[m], generator(1, ORDER.index(name), shard, int(broken), m))


@lru_cache(maxsize=64)
def _deviations(name: str, shard: int, broken: bool, m: int) -> Deviations:
    """Simulated once, judged with as many defects as there are graded controls."""
    return _run(name, shard, broken, m).deviations


def _short(name: str, shard: int) -> float:
    """How much narrower than judged is what the bound hands out, once for each setting."""
    settings, (make, ends) = CASES[name].settings, HANDED[name]
    if shard >= len(settings):
        return 0.0
    setting = settings[shard]
    bound = make(rkhs_norm=setting.norm, subgaussian=setting.noise_std, delta=DELTAS[0])
    return shortfall(bound, setting, ends, generator(1, ORDER.index(name), shard, 9))


def sample(name: str, shard: int, budget: Budget, broken: bool) -> Sample:
    """Failures of one shard: for each mode and δ the number of trials and failures, and the ratio's
    quantiles.
    """
    case = CASES[name]
    judge = case.control_judge if broken else case.judge
    cells, others, band = [], [], None
    for m, mode in enumerate(MODES):
        run = (_deviations if case.deviations else _run)(name, shard, broken, m)
        for delta in DELTAS:
            failed, ratio = judge(run, delta)
            if (
                name == "mixture"
                and isinstance(run, Deviations)
                and run.setting is SMALL
                and delta == DELTAS[0]
                and not broken
            ):
                for label, heuristic in HEURISTICS.items():
                    others.append([label, mode, int(closed(heuristic, run, delta)[0].sum()), TRIALS])
            cells.append(
                {
                    "mode": mode,
                    "delta": delta,
                    "trials": TRIALS,
                    "failures": int(failed.sum()),
                    "ratios": [round(v, 5) for v in ratio.tolist()],
                }
            )
        if shard == 0 and m == 1:
            band = _band(name, run if isinstance(run, Run) else _run(name, shard, broken, m), broken)
    short = 0.0 if broken else _short(name, shard)
    return {"setting": shard % len(case.settings), "cells": cells, "others": others, "band": band, "short": short}


def _band(name: str, run: Run, broken: bool) -> dict[str, Any]:
    """One band at δ = 0.1 after a few observations (the mixture's for the bounds without a β formula)."""
    makers: dict[str, Callable[..., ClosedForm]] = {
        "mixture": Mixture,
        "abbasi-yadkori": AbbasiYadkori,
        "fiedler": Fiedler,
        "chowdhury-gopalan": partial(ChowdhuryGopalan, max_data=60),
        "srinivas": Srinivas,
    }
    broken_makers = {"mixture": _actsafe, "chowdhury-gopalan": _actsafe}
    make = broken_makers.get(name, _constant) if broken else makers.get(name, Mixture)
    bound = make(rkhs_norm=run.setting.norm, subgaussian=run.setting.noise_std, delta=0.1)
    half = run.half_width(run.beta(bound, 0.1))
    return {**picture(run, half, MIDDLE), "label": bound.name}


def _others(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Failure rates of the heuristics, pooled."""
    pooled: dict[str, list[int]] = {}
    for label, mode, failures, trials in (row for s in samples for row in s["others"]):
        known = pooled.setdefault(f"{label}, {mode}", [0, 0])
        known[0], known[1] = known[0] + failures, known[1] + trials
    cells = []
    for name, (failures, trials) in pooled.items():
        low, high = clopper_pearson(failures, trials, CONFIDENCE)
        cells.append({"name": name, "delta": DELTAS[0], "rate": failures / trials, "lower": low, "upper": high})
    return cells


def _pooled(samples: Sequence[Sample], i: int) -> tuple[int, int]:
    """Failures and trials of the i-th cell."""
    return sum(s["cells"][i]["failures"] for s in samples), sum(s["cells"][i]["trials"] for s in samples)


def judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """Pools the shards. A setting may refute alone: a bound that fails in one must not be thinned by the others.

    Intervals hold jointly with 99 % over all settings together, and likewise over the single ones.
    """
    cells = []
    for i, first in enumerate(samples[0]["cells"]):
        failures, trials = _pooled(samples, i)
        ratios = torch.tensor([r for s in samples for r in s["cells"][i]["ratios"]], dtype=torch.float64)
        low, high = clopper_pearson(failures, trials, 1 - (1 - CONFIDENCE) / len(samples[0]["cells"]))
        levels = torch.tensor([0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
        cells.append(
            {
                "name": f"{first['mode']}, δ={first['delta']:g}",
                "delta": first["delta"],
                "trials": trials,
                "failures": failures,
                "rate": failures / trials,
                "lower": low,
                "upper": high,
                "ratio_quantiles": dict(
                    zip(("50%", "90%", "99%", "max"), ratios.quantile(levels).tolist(), strict=True)
                ),
            }
        )
    worst = worst_of(cells, key=lambda cell: cell["lower"] / cell["delta"])
    witness = f"{worst['failures']} of {worst['trials']} trials failed ({worst['name']})"
    estimate, verdict = rate_verdict(
        [c["failures"] for c in cells], [c["trials"] for c in cells], [c["delta"] for c in cells], witness
    )
    alone, deltas = [], []
    for setting in sorted({s["setting"] for s in samples}):
        same = [s for s in samples if s["setting"] == setting]
        alone += [_pooled(same, i) for i in range(len(cells))]
        deltas += [c["delta"] for c in cells]
    own, refuted = rate_verdict([k for k, _ in alone], [n for _, n in alone], deltas, "one setting alone")
    if refuted.lower > refuted.threshold:
        estimate, verdict = own, refuted
    short = worst_of(s["short"] for s in samples)
    if not short <= ROUNDING:  # the trials were of another interval than is handed out: all count as failed
        estimate = 1 / min(DELTAS)
        told = f"what is handed out is narrower than what was judged, by {short:.3g} of a half-width"
        verdict = Verdict(estimate, estimate, 1.0, witness=told)
    total = sum(cell["trials"] for cell in cells) // len(DELTAS)
    data = {"cells": cells, "others": _others(samples), "band": samples[0]["band"]}
    return Evidence(total, estimate, verdict, data)


def plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    """Left: one band. Right: failure rates with their intervals, claim against control, a dash at δ."""
    left, right = figure.subplots(1, 2)
    draw_band(left, claim["band"], f"{claim['band']['label']}, {MIDDLE} observations")
    groups = {"claim": (claim["cells"], "claim"), "control": (control["cells"], "control")}
    if claim["others"]:
        groups["heuristics and misuse"] = (claim["others"], "published")
    draw_rates(right, groups, "rate of runs with a failure anywhere")


_BROKEN_ACTSAFE = "the ActSafe form B + σ√(2(γ+1+ln(1/δ))) on a posterior with λ = σ² instead"
_BROKEN_CONSTANT = "β = 2 by hand instead"
_NORM = ("‖f*‖_k ≤ B (exact by construction)", "R-sub-Gaussian noise", "kernel and λ fixed before data")
TEXTS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "mixture": (
        "mixture bound, β² = B² + (R²/λ)(2g + 2ln(1/δ)),", "theory §2.3; Flynn & Reeb 2024", _NORM, _BROKEN_ACTSAFE
    ),
    "abbasi-yadkori": (
        "Abbasi-Yadkori bound, β = B + (R/√λ)√(2g + 2ln(1/δ)),", "Abbasi-Yadkori 2012, Thm 3.11; theory §2.5", _NORM,
        _BROKEN_CONSTANT,
    ),
    "fiedler": (
        "Fiedler bound with R/√λ", "Fiedler, Scherer & Trimpe 2021, Thm 1; theory §2.5", _NORM, _BROKEN_CONSTANT
    ),
    "chowdhury-gopalan": (
        "Chowdhury–Gopalan bound on the posterior with λ = 1 + 2/N", "Chowdhury & Gopalan 2017, Thm 2; theory §2.5", _NORM,
        _BROKEN_ACTSAFE,
    ),
    "srinivas": (
        "Srinivas bound, β² = 2B² + 300γln³(n/δ), λ = σ²,", "Srinivas et al. 2010, Thm 6; theory §2.5",
        ("‖f*‖_k ≤ B (exact by construction)", "|noise| ≤ σ", "kernel fixed before data"),
        _BROKEN_CONSTANT + ", and Gaussian noise",
    ),
    "convex-program": (
        "convex-program set {‖f(X)−y‖² ≤ R_n², ‖f‖ ≤ B}, and its dual interval,", "Flynn & Reeb 2024 (CMM); theory §2.6", _NORM,
        "R_n² without its log det and ln(1/δ) terms",
    ),
    "lederer": (
        "Lipschitz-grid bound", "Lederer, Umlauft & Hirche 2019; theory §2.7",
        ("f ~ GP(0, k)", "noise ~ N(0, λ)", "kernel and λ fixed before data"), "√b = 2 without the grid term",
    ),
}  # fmt: skip

CHECKS = tuple(
    Check(
        name=f"coverage-{name}",
        claim=f"the {text[0]} contains f* at all test points and all n ≤ 60 with probability ≥ 1 − δ",
        source=text[1],
        assumptions=text[2],
        statistic="largest (failure rate)/δ over random and adaptive designs and δ ∈ {0.1, 0.01}, all settings together, joint "
        "99 % intervals; one setting may refute alone (again 99 %), and all count as failed if what is handed out for two "
        "outputs is narrower; threshold 1",
        control=text[3],
        shards=SHARDS,
        control_shards={"quick": 2, "full": 8},
        sample=partial(sample, name),
        judge=judge,
        plot=plot,
        grades=GRADES[name],
    )
    for name, text in TEXTS.items()
)
