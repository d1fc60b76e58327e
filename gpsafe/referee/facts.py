"""What stands beside the findings: what was examined, in words, and the numbers of the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpsafe.referee.case import Case
from gpsafe.referee.finding import shown
from gpsafe.referee.widths import Width
from gpsafe.rkhs import kernels


def facts(case: Case) -> dict[str, str]:
    """What was examined, in words."""
    claim, rows = case.claim, case.rows
    told = []
    for kernel in claim.kernels:
        form = kernels.stationary(kernel)
        if form is None:
            told.append(kernels.describe(kernel))
        else:
            kind = "RBF" if math.isinf(form.nu) else f"Matérn-{form.nu:g}"
            told.append(
                f"{kind}, length-scales {', '.join(shown(v) for v in form.lengthscale.flatten().tolist())}, variance "
                f"{shown(form.variance)}"
            )
    names = [o.name for o in case.outputs]
    kind = "one-step data" if not rows.runs else f"{rows.runs} runs, {rows.linked} judging rows follow another"
    return {
        "rows": f"{rows.given}; {rows.first} to choose, {rows.judging} to judge", "kind": kind,
        f"kernel ({claim.words('kernel')})": "; ".join(f"{n}: {t}" for n, t in zip(names, told, strict=True)),
        f"B ({claim.words('B')})": ", ".join(map(shown, claim.norm)),
        f"R ({claim.words('R')})": ", ".join(map(shown, claim.noise)),
        "level of each test": shown(case.share * len(names)),
    }  # fmt: skip


def series(case: Case, compared: Sequence[Width]) -> dict[str, Any]:
    """What the pictures are drawn from."""
    found = []
    for o in case.outputs:
        away = (o.tried.errors[0][:, 0].abs() / o.design.noise).sort(descending=True).values
        found.append(
            {
                "name": o.name,
                "norm": o.design.norm,
                "noise": o.design.noise,
                "counts": list(o.growth.counts),
                "lower": list(o.growth.lower),
                "mean": list(o.growth.mean),
                "random": float(o.random[-1]),
                "errors": away.tolist(),
                "factors": [a.factor for a in o.others],
                "needed": {f: [a.lower[f] for a in o.others] for f in o.others[0].lower},
                "level": float(o.tried.level[0]),
                "refuted": [list(a.refuted) for a in o.others],
            }
        )
    return {
        "outputs": found, "stated": sorted(case.claim.stated),
        "power": {"trials": case.power.trials, "hits": {d: dict(t) for d, t in case.power.hits.items()}},
        "bounds": [w.name for w in compared],
    }  # fmt: skip
