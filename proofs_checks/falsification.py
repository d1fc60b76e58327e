"""A false assumption shows: the confidence set comes out empty, while under true assumptions it rarely does
(theory §2.10).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe.confidence import Mixture
from gpsafe.confidence.dual_program import Program, Spectrum
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import clopper_pearson, worst_of

from ._coverage import tighter
from ._defects import Scaled, around, replaced, times
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

TRIALS = 125
BELIEVED = Setting(lengthscale=0.2, noise_std=0.1, regularizer=0.01)
BROKEN: dict[str, Setting] = {
    "norm": replace(BELIEVED, norm=4.0),
    "lengthscale": replace(BELIEVED, true_lengthscale=0.02),
    "noise": replace(BELIEVED, noise="student"),
}
GENERATIONS = (2, 5, 10, 20, 40, 60)


def truth(kind: str, broken: bool) -> Setting:
    """What is simulated."""
    return BROKEN[kind] if broken else BELIEVED


def intersection_empty(run: Run, delta: float) -> Tensor:
    """Whether the running intersection of the mixture intervals, clipped to ±B√k, is empty somewhere,
    (F,).
    """
    bound = Mixture(rkhs_norm=BELIEVED.norm, subgaussian=BELIEVED.noise_std, delta=delta)
    half = run.half_width(run.beta(bound, delta))
    low = (run.mean - half).amax(1).clamp_min(-BELIEVED.norm)
    high = (run.mean + half).amin(1).clamp_max(BELIEVED.norm)
    return (low > high + 1e-9).any(-1)


def program_empty(run: Run, delta: float) -> Tensor:
    """Whether {‖f(X) − y‖² ≤ R_n², ‖f‖ ≤ B} is empty at one of a few n, (F,)."""
    found = torch.zeros(len(run.f), dtype=torch.bool)
    norm = torch.full((len(run.f),), BELIEVED.norm, dtype=torch.float64)
    noise = torch.full_like(norm, BELIEVED.noise_std)
    for count in GENERATIONS:
        gram, y, cross = run.data(count)
        spectrum = Spectrum.of(gram, y)
        radius = spectrum.radius_sq(noise.square() / BELIEVED.regularizer, noise, math.log(1 / delta))
        prior = torch.ones(len(y), 1, dtype=torch.float64)
        found = found | Program(spectrum, cross[..., :1], prior, radius, norm).empty()
    return found


def sample(kind: str, shard: int, budget: Budget, broken: bool) -> Sample:
    """Alarms of one shard for each mode and δ; broken: the assumption `kind` is false."""
    setting = truth(kind, broken)
    cells, band = [], None
    for m, mode in enumerate(MODES):
        run = simulate(setting, TRIALS, mode, generator(6, list(BROKEN).index(kind), shard, int(broken), m))
        for delta in DELTAS:
            bound = Mixture(rkhs_norm=BELIEVED.norm, subgaussian=BELIEVED.noise_std, delta=delta)
            half = run.half_width(run.beta(bound, delta))
            crossed, empty = intersection_empty(run, delta), program_empty(run, delta)
            cells.append(
                {
                    "mode": mode,
                    "delta": delta,
                    "trials": TRIALS,
                    "alarms": int((crossed | empty).sum()),
                    "intersection": int(crossed.sum()),
                    "program": int(empty.sum()),
                    "uncovered": int((~(run.ratio(half) <= 1)).sum()),
                }
            )
            if shard == 0 and band is None:
                band = picture(run, half, 20)
    return {"cells": cells, "band": band}


def judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """Pools the shards; the alarm is raised by either detector."""
    cells = []
    for i, first in enumerate(samples[0]["cells"]):
        total = {key: sum(s["cells"][i][key] for s in samples) for key in first if key not in ("mode", "delta")}
        low, high = clopper_pearson(total["alarms"], total["trials"], 1 - (1 - CONFIDENCE) / len(samples[0]["cells"]))
        name = f"{first['mode']}, δ={first['delta']:g}"
        rates = {f"{key}_rate": total[key] / total["trials"] for key in ("intersection", "program", "uncovered")}
        cells.append(
            {
                "name": name,
                "delta": first["delta"],
                **total,
                "rate": total["alarms"] / total["trials"],
                "lower": low,
                "upper": high,
                **rates,
            }
        )
    worst = worst_of(cells, key=lambda cell: cell["lower"] / cell["delta"])
    witness = f"{worst['alarms']} alarms in {worst['trials']} runs ({worst['name']})"
    estimate, verdict = rate_verdict(
        [c["alarms"] for c in cells], [c["trials"] for c in cells], [c["delta"] for c in cells], witness
    )
    total = sum(cell["trials"] for cell in cells) // len(DELTAS)
    return Evidence(total, estimate, verdict, {"cells": cells, "band": samples[0]["band"]})


def plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    """Left: a band under the false assumption. Right: alarm rates."""
    left, right = figure.subplots(1, 2)
    draw_band(left, control["band"], "false assumption, 20 observations")
    groups = {
        "assumptions true": (claim["cells"], "claim"),
        "assumption false": (control["cells"], "control"),
    }
    draw_rates(right, groups, "rate of runs with an empty set")


_CONTROLS = {
    "norm": "‖f*‖ is 4 times the assumed B",
    "lengthscale": "f* has a tenth of the assumed length-scale",
    "noise": "Student-t noise with 2 degrees of freedom in place of R-sub-Gaussian noise",
}


def _false(change: Callable[[float], Setting]) -> Scaled:
    """The plants of the claim are those of `change(factor)`; what is believed stays."""
    return replaced(sys.modules[__name__], "truth", lambda found, factor: lambda kind, broken: change(factor))


GRADES = {
    "norm": (
        Grade("B over ‖f*‖", _false(lambda g: replace(BELIEVED, norm=BELIEVED.norm / g)), (1,), (0.9, 0.8, 0.7, 0.5)),
        Grade("β of the intersection", around(Mixture, "formula", times), (1,), (0.5, 0.4, 0.3)),
        Grade("R_n² without the fit", tighter, (1,), (0.1, 0.0)),
    ),
    "lengthscale": (
        Grade(
            "length-scale of f*",
            _false(lambda g: replace(BELIEVED, true_lengthscale=0.2 * g)),
            (1,),
            (0.7, 0.6, 0.5, 0.3),
        ),
    ),
    "noise": (
        Grade(
            "R over the noise",
            _false(lambda g: replace(BELIEVED, noise_std=BELIEVED.noise_std / g)),
            (1,),
            (0.5, 0.4, 0.3),
        ),
    ),
}

CHECKS = tuple(
    Check(
        name=f"falsification-{kind}",
        claim="under true assumptions the confidence set (running mixture intersection, or convex-program set) is "
        "found empty at some n ≤ 60 with probability ≤ δ; a false " + kind + " raises the alarm",
        source="theory §2.9, §2.10",
        assumptions=("‖f*‖_k ≤ B (exact by construction)", "R-sub-Gaussian noise", "kernel and λ fixed before data"),
        statistic="largest (alarm rate)/δ over random and adaptive designs and δ ∈ {0.1, 0.01}; threshold 1",
        control=text,
        shards={"quick": 8, "full": 40},
        control_shards={"quick": 2, "full": 8},
        sample=partial(sample, kind),
        judge=judge,
        plot=plot,
        grades=GRADES[kind],
    )
    for kind, text in _CONTROLS.items()
)
