"""Uniform coverage of every valid confidence bound, over z and n at once, for random and adaptive designs
(theory §2.3–2.7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe.confidence import (
    AbbasiYadkori,
    ActSafeForm,
    ChowdhuryGopalan,
    Constant,
    Fiedler,
    Lederer,
    Mixture,
    Srinivas,
)
from gpsafe.confidence.bounds import ClosedForm
from gpsafe.confidence.convex_program import Program, Spectrum
from gpsafe.testbed.check import Budget, Check, Evidence, Sample
from gpsafe.verdict import clopper_pearson

from ._regression import (
    CONFIDENCE,
    DELTAS,
    MODES,
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
DUALS = 50  # of them, those whose dual intervals are computed (the set itself is tested in all)
SHARDS: dict[Budget, int] = {"quick": 12, "full": 80}
MIDDLE = 12  # observations in the picture
Judge = Callable[[Run, float], tuple[Tensor, Tensor]]  # (run, δ) → failed (F,), largest |f − mid|/half (≤ F,)

SMALL = Setting(noise_std=0.1, regularizer=0.01)  # λ = σ², the usual posterior
ROUGH = Setting(nu=1.5, lengthscale=0.2, noise="rademacher", noise_std=0.1, regularizer=0.1)
UNIT = Setting(noise_std=0.5, regularizer=1 + 2 / 60)  # λ = 1 + 2/N
LARGE = Setting(nu=2.5, lengthscale=0.15, noise_std=0.5, regularizer=2.0)
BOUNDED = Setting(noise="uniform", noise_std=0.1, regularizer=0.01)
BAYES = Setting(noise_std=0.1, regularizer=0.01, lengthscale=0.2, prior="gp")


def closed(make: Callable[..., ClosedForm], run: Run, delta: float) -> tuple[Tensor, Tensor]:
    """Failures of μ ± βσ with the bound's own formula."""
    setting = run.setting
    bound = make(rkhs_norm=setting.norm, subgaussian=setting.noise_std, delta=delta)
    ratio = run.ratio(run.half_width(run.beta(bound, delta)))
    return ratio > 1, ratio


def lederer(run: Run, delta: float, *, grid: bool = True) -> tuple[Tensor, Tensor]:
    """Failures of the Lipschitz-grid bound; ``grid=False`` is √b = 2 without γ."""
    bound = Lederer(delta=delta, lower=(0.0,), upper=(1.0,))
    steps = torch.arange(run.info_gain.shape[1], dtype=torch.float64)
    root = bound.grid_log(steps, math.log(1 / delta)).sqrt()
    drift, modulus = bound.moduli(run.setting.kernel(), 1)
    grown = run.mean.abs().amax(
        -1
    )  # ‖μ_n‖_k ≥ sup|μ_n| with k(z, z) = 1: a smaller γ than the theorem's, so a stricter test
    half = run.half_width(root.expand_as(run.info_gain)) + (drift + (grown + root) * modulus).unsqueeze(-1)
    ratio = run.ratio(half if grid else run.half_width(torch.full_like(run.info_gain, 2.0)))
    return ratio > 1, ratio


def convex(
    run: Run,
    delta: float,
    *,
    whole: bool = True,
    selected: Sequence[int] = (2, 5, 10, 20, 40, 60),
    duals: int = DUALS,
) -> tuple[Tensor, Tensor]:
    """Failures of f* ∈ C_n at every n, or of the dual interval at selected n; ``whole=False`` drops log det
    and ln(1/δ).

    With c = R²/λ: yᵀ(I + K/λ)⁻¹y = λΣw² with the whitened residuals, found from the posterior means.
    """
    setting = run.setting
    norm, spread = torch.tensor(setting.norm, dtype=torch.float64), torch.tensor(setting.noise_std, dtype=torch.float64)
    rows = torch.arange(run.f.shape[0]).unsqueeze(-1)
    index = torch.arange(setting.steps)
    before = run.mean[rows, index, run.picks]  # μ_{n−1} at the n-th point
    variance = run.std[rows, index, run.picks].square()
    errors = run.y - run.f.gather(1, run.picks)
    fit = setting.regularizer * ((run.y - before).square() / (variance + setting.regularizer)).cumsum(-1)
    extra = spread.square() * 2 * (run.info_gain[:, 1:] + math.log(1 / delta)) if whole else 0.0
    outside = (errors.square().cumsum(-1) > fit + extra).any(-1)
    worst = torch.zeros(run.f.shape[0], dtype=torch.float64)
    for count in selected:
        gram, y, cross = (part[:duals] for part in run.data(count))
        spectrum = Spectrum.of(gram, y)
        radius = fit[:duals, count - 1]
        if whole:
            scale = (spread.square() / setting.regularizer).expand(duals)
            radius = spectrum.radius_sq(scale, spread.expand(duals), math.log(1 / delta))
        step = slice(None, None, 5)
        rotated = spectrum.vectors.mT @ cross[..., step]
        prior = torch.ones(duals, rotated.shape[-1], dtype=torch.float64)
        upper, lower, _, _ = Program(spectrum, rotated, prior, radius, norm.expand(duals)).solve(grid=16, sections=6)
        middle, half = 0.5 * (upper + lower), 0.5 * (upper - lower)
        ratio = (run.f[:duals, step] - middle).abs() / half.clamp_min(1e-3)
        worst[:duals] = torch.maximum(worst[:duals], ratio.amax(-1))
    return outside | (worst > 1 + 1e-9), worst[:duals]


@dataclass(frozen=True)
class Case:
    """One bound family: its settings (shards take turns), its judge, and the control's."""

    settings: tuple[Setting, ...]
    judge: Judge
    control_setting: Setting
    control_judge: Judge


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
    "mixture": Case((SMALL, ROUGH, UNIT, LARGE), partial(closed, Mixture), SMALL, partial(closed, _actsafe)),
    "abbasi-yadkori": Case(
        (SMALL, ROUGH, UNIT, LARGE), partial(closed, AbbasiYadkori), SMALL, partial(closed, _constant)
    ),
    "fiedler": Case((SMALL, ROUGH, UNIT, LARGE), partial(closed, Fiedler), SMALL, partial(closed, _constant)),
    "chowdhury-gopalan": Case(
        (UNIT,), partial(closed, partial(ChowdhuryGopalan, max_data=60)), SMALL, partial(closed, _actsafe)
    ),
    "srinivas": Case((BOUNDED,), partial(closed, Srinivas), SMALL, partial(closed, _constant)),
    "convex-program": Case((SMALL, ROUGH, UNIT, LARGE), convex, SMALL, partial(convex, whole=False)),
    "lederer": Case((BAYES,), lederer, BAYES, partial(lederer, grid=False)),
}
ORDER = tuple(CASES)


def sample(name: str, shard: int, budget: Budget, broken: bool) -> Sample:
    """Failures of one shard: for each mode and δ the number of trials and failures, and the ratio's
    quantiles.
    """
    case = CASES[name]
    setting = case.control_setting if broken else case.settings[shard % len(case.settings)]
    judge = case.control_judge if broken else case.judge
    cells, others, band = [], [], None
    for m, mode in enumerate(MODES):
        run = simulate(setting, TRIALS, mode, generator(1, ORDER.index(name), shard, int(broken), m))
        for delta in DELTAS:
            failed, ratio = judge(run, delta)
            if name == "mixture" and setting is SMALL and delta == DELTAS[0] and not broken:
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
            band = _band(name, run, broken)
    return {"cells": cells, "others": others, "band": band}


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


def judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """Pools the shards."""
    cells = []
    for i, first in enumerate(samples[0]["cells"]):
        failures = sum(s["cells"][i]["failures"] for s in samples)
        trials = sum(s["cells"][i]["trials"] for s in samples)
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
    worst = max(cells, key=lambda cell: cell["lower"] / cell["delta"])
    witness = f"{worst['failures']} of {worst['trials']} trials failed ({worst['name']})"
    estimate, verdict = rate_verdict(
        [c["failures"] for c in cells], [c["trials"] for c in cells], [c["delta"] for c in cells], witness
    )
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
        statistic="largest (failure rate)/δ over random and adaptive designs and δ ∈ {0.1, 0.01}; threshold 1",
        control=text[3],
        shards=SHARDS,
        control_shards={"quick": 2, "full": 8},
        sample=partial(sample, name),
        judge=judge,
        plot=plot,
    )
    for name, text in TEXTS.items()
)
