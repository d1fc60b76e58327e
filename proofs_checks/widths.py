"""Width ordering of the bounds on the same data: convex ≤ mixture ≤ Abbasi-Yadkori ≤ Fiedler (theory §2.5, §2.6)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence import AbbasiYadkori, ChowdhuryGopalan, ConfidenceBound, ConvexProgram, Fiedler, Mixture
from gpsafe.confidence.bounds import ClosedForm
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels, random_function
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import FACTORS, around, times
from ._regression import generator

TOLERANCE = 1e-9  # relative, for rounding
NOISE = 0.2
ORDER: tuple[str, ...] = ("convex-program", "mixture", "abbasi-yadkori", "fiedler")
REGULARIZERS = (0.04, 0.3, 1.0, 1 + 2 / 60, 1e4)  # at the last the norm leads: β is hardly more than B
COUNTS = (5, 20, 60)


class _Alone(ConvexProgram):
    """The program without the mixture interval that `ConvexProgram` meets it with: that it is narrower is to be shown."""

    def _outer(self) -> None:
        return None


def half_widths(model: GP, z: Tensor, delta: float) -> dict[str, Tensor]:
    """Half-widths at z (m, 1) of the bounds on one model."""
    assumed: dict[str, Any] = {"rkhs_norm": 1.0, "subgaussian": NOISE, "delta": delta}
    bounds = [Mixture(**assumed), AbbasiYadkori(**assumed), Fiedler(**assumed), _Alone(**assumed)]
    pairs: list[tuple[str, ConfidenceBound]] = []
    if bool((model.regularizer <= 1).all()):
        pairs.append(("fiedler R/λ", Fiedler(**assumed, convention="published")))
    if abs(float(model.regularizer[0]) - (1 + 2 / 60)) < 1e-12:
        pairs.append(("chowdhury-gopalan", ChowdhuryGopalan(**assumed, max_data=60)))
    pairs += [(bound.name, bound) for bound in bounds]
    found = {}
    for name, bound in pairs:
        lower, upper = bound.interval(model, z)
        found[name] = 0.5 * (upper - lower)
    return found


def excess(narrow: Tensor, wide: Tensor) -> float:
    """max (narrow − wide)/wide."""
    return float(((narrow - wide) / wide).max())


def sample(kind: str, shard: int, budget: Budget, broken: bool) -> Sample:
    """Largest excess on one random data set per λ and n, with the mean widths relative to the mixture's."""
    source = generator(2, shard)
    kernel = kernels.rbf(0.15) if shard % 2 == 0 else kernels.matern(2.5, 0.3)
    f = random_function(kernel, torch.zeros(1), torch.ones(1), norm=1.0, generator=source)
    z = torch.linspace(-0.1, 1.1, 61, dtype=torch.float64).unsqueeze(-1)
    worst, where, ratios = -float("inf"), "", []
    for lam in REGULARIZERS:
        for count in COUNTS:
            x = torch.rand(count, 1, dtype=torch.float64, generator=source)
            y = f(x) + NOISE * torch.randn(count, dtype=torch.float64, generator=source)
            model = GP.create(kernel, lam, nx=1, nu=0, noise_std=NOISE).condition_on(x, y.unsqueeze(-1))
            for delta in (0.1, 0.01):
                widths = half_widths(model, z, delta)
                if kind == "order":
                    chain = tuple(reversed(ORDER)) if broken else ORDER
                    pairs = list(itertools.pairwise(chain))
                    if "chowdhury-gopalan" in widths and not broken:
                        pairs.append(("abbasi-yadkori", "chowdhury-gopalan"))
                elif lam > 1:
                    continue
                else:
                    other = "fiedler R/λ" if broken else "fiedler"
                    pairs = [(other, "abbasi-yadkori"), ("abbasi-yadkori", other)]
                for narrow, wide in pairs:
                    value = excess(widths[narrow], widths[wide])
                    if math.isnan(value) or value > worst:
                        worst, where = value, f"{narrow} against {wide}, λ = {lam:.3g}, n = {count}, δ = {delta}"
                relative = {name: float((width / widths["mixture"]).mean()) for name, width in widths.items()}
                ratios.append({"lambda": lam, "n": count, "delta": delta, **relative})
    return {"excess": worst, "where": where, "ratios": ratios}


def judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest excess over all data sets, known up to rounding."""
    worst = worst_of(samples, key=lambda s: s["excess"])
    rows: dict[tuple[float, int, float], list[dict[str, float]]] = {}
    for s in samples:
        for row in s["ratios"]:
            rows.setdefault((row["lambda"], row["n"], row["delta"]), []).append(row)
    table = [{name: sum(r[name] for r in group) / len(group) for name in group[0]} for group in rows.values()]
    verdict = Verdict(worst["excess"], worst["excess"], TOLERANCE, witness=worst["where"])
    return Evidence(len(samples) * len(table), worst["excess"], verdict, {"relative_widths": table})


def plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    """Mean widths relative to the mixture's, against λ, at n = 60 and δ = 0.1."""
    axes = figure.subplots()
    rows = [row for row in claim["relative_widths"] if row["n"] == 60 and row["delta"] == 0.1]
    looks = plotting.looks((*ORDER, "chowdhury-gopalan", "fiedler R/λ"))
    for name in looks:
        points = [(row["lambda"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), ms=4, label=name, **looks[name].marked)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("λ")
    axes.set_ylabel("mean width / mixture width (n = 60, δ = 0.1)")
    plotting.label_ends(axes)


def _narrower(term: str, bound: type[ClosedForm]) -> Grade:
    return Grade(term, around(bound, "formula", times), (0,), FACTORS)


_ASSUMED = ("kernel and λ fixed before data",)
CHECKS = (
    Check(
        name="width-order",
        claim="on the same data and at every point, convex ≤ mixture ≤ Abbasi-Yadkori ≤ Fiedler (and Abbasi-Yadkori ≤ "
        "Chowdhury–Gopalan at λ = 1 + 2/N)",
        source="theory §2.5, §2.6",
        assumptions=_ASSUMED,
        statistic="largest relative excess of a width over the next in order; threshold 1e-9 for rounding",
        control="the order reversed",
        shards={"quick": 4, "full": 40},
        control_shards={"quick": 1, "full": 2},
        sample=partial(sample, "order"),
        judge=judge,
        plot=plot,
        grades=(
            _narrower("mixture width", Mixture),
            _narrower("Abbasi-Yadkori width", AbbasiYadkori),
            _narrower("Fiedler width", Fiedler),
            _narrower("Chowdhury–Gopalan width", ChowdhuryGopalan),
        ),
    ),
    Check(
        name="width-fiedler-below-one",
        claim="for λ ≤ 1 the Fiedler width with R/√λ equals the Abbasi-Yadkori width (λ̄ = 1)",
        source="theory §2.5; Fiedler, Scherer & Trimpe 2021",
        assumptions=_ASSUMED,
        statistic="largest relative difference of the two widths; threshold 1e-9 for rounding",
        control="the published convention R/λ",
        shards={"quick": 2, "full": 10},
        control_shards={"quick": 1, "full": 2},
        sample=partial(sample, "equal"),
        judge=judge,
        plot=plot,
        grades=(_narrower("Abbasi-Yadkori width", AbbasiYadkori), _narrower("Fiedler width", Fiedler)),
    ),
)
