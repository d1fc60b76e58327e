"""Confidence bands on one input axis, many runs at once: what stays inside, and what escapes when an assumption is broken.

The truth is a random function of norm 1 in the RKHS of its kernel, observed with Gaussian noise of deviation `NOISE` at points
of [0, 1]. The design is uniform, or goes where μ + 2σ is largest so far, so that it depends on all observations; the theorems
allow both. `histories` updates mean and variance by one row a step, for all runs together; the band is the exact model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import _require, plotting
from gpsafe.confidence import ConfidenceSet, make_bound
from gpsafe.confidence.bounds import ClosedForm
from gpsafe.lab.explorer import Choice, Explorer, Slider, panels
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.rkhs.functions import random_function
from gpsafe.verdict import clopper_pearson

NOISE, STEPS, POINTS, RUNS = 0.1, 30, 61, 100
FORMS = {
    "RBF": lambda scale: kernels.rbf(scale),
    "Matérn 5/2": lambda scale: kernels.matern(2.5, scale),
    "Matérn 3/2": lambda scale: kernels.matern(1.5, scale),
}
SMOOTH = 0.2  # length-scale that the model assumes
BOUNDS = (
    "mixture",
    "abbasi-yadkori",
    "fiedler",
    "chowdhury-gopalan",
    "srinivas",
    "actsafe",
    "constant 2",
    "constant 3",
)
Design = Literal["uniform", "adaptive"]
DESIGNS: tuple[Design, ...] = ("uniform", "adaptive")
TRUTHS = ("as assumed", "half the length-scale", "twice the norm")


@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """Posterior of every run after 0 … N observations, at the points of the axis.

    Attributes:
        chosen: indices of the observed points, (runs, N).
        seen: observations, (runs, N).
        mean, std: (runs, N + 1, m).
        gain: g_n, (runs, N + 1).
    """

    chosen: Tensor
    seen: Tensor
    mean: Tensor
    std: Tensor
    gain: Tensor


def histories(gram: Tensor, truth: Tensor, noise: Tensor, regularizer: float, design: Tensor | None) -> Histories:
    """One rank-one step an observation, for all runs together.

    Args:
        gram: of the m points, (m, m).
        truth: (runs, m).
        noise: (runs, N).
        regularizer: λ.
        design: indices (runs, N); where μ + 2σ is largest if None.
    """
    runs, steps = noise.shape
    every = torch.arange(runs)
    mean, variance = torch.zeros_like(truth), gram.diagonal().repeat(runs, 1)
    rows = torch.zeros(runs, steps, len(gram), dtype=torch.float64)
    means, stds, gains = [mean], [variance.sqrt()], [torch.zeros(runs, dtype=torch.float64)]
    chosen, seen = [], []
    for t in range(steps):
        at = design[:, t] if design is not None else (mean + 2 * variance.sqrt()).argmax(-1)
        value, left = truth[every, at] + noise[:, t], variance[every, at]
        past = rows[:, :t]
        row = gram[at] - torch.einsum("rt,rtm->rm", past[every, :, at], past)
        row = row / (left + regularizer).sqrt().unsqueeze(-1)
        mean = mean + row * ((value - mean[every, at]) / (left + regularizer).sqrt()).unsqueeze(-1)
        variance = (variance - row.square()).clamp_min(0.0)
        rows[:, t] = row
        means.append(mean)
        stds.append(variance.sqrt())
        gains.append(gains[-1] + 0.5 * torch.log1p(left / regularizer))
        chosen.append(at)
        seen.append(value)
    return Histories(*(torch.stack(parts, 1) for parts in (chosen, seen, means, stds, gains)))


def points() -> Tensor:
    """The axis, (m, 1)."""
    return torch.linspace(0, 1, POINTS, dtype=torch.float64).unsqueeze(-1)


@lru_cache(maxsize=16)
def truths(form: str, truth: str) -> Tensor:
    """Functions of norm 1 (or 2), (runs, m)."""
    _require.one_of("truths", "form", form, FORMS)
    _require.one_of("truths", "truth", truth, TRUTHS)
    generator, z = torch.Generator().manual_seed(1), points()
    kernel = FORMS[form](SMOOTH / 2 if truth == "half the length-scale" else SMOOTH)
    norm = 2.0 if truth == "twice the norm" else 1.0
    corners = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    drawn = (random_function(kernel, *corners, norm=norm, generator=generator, num_centers=12) for _ in range(RUNS))
    return torch.stack([f(z) for f in drawn])


@lru_cache(maxsize=32)
def watched(form: str, truth: str, design: Design, regularizer: float) -> Histories:
    """All runs of one setting; what only changes the width of the band needs no new ones."""
    _require.one_of("watched", "form", form, FORMS)
    _require.one_of("watched", "design", design, DESIGNS)
    generator = torch.Generator().manual_seed(2)
    noise = NOISE * torch.randn(RUNS, STEPS, dtype=torch.float64, generator=generator)
    uniform = torch.randint(POINTS, (RUNS, STEPS), generator=generator)
    gram = kernels.cross(FORMS[form](SMOOTH), points(), points())
    return histories(gram, truths(form, truth), noise, regularizer, uniform if design == "uniform" else None)


def bound_of(name: str, norm: float, subgaussian: float, delta: float, *, unchecked: bool = False) -> ClosedForm:
    """A bound by the name in `BOUNDS`."""
    _require.one_of("bound_of", "name", name, BOUNDS)
    options: dict[str, Any] = {"rkhs_norm": norm, "subgaussian": subgaussian, "delta": delta, "unchecked": unchecked}
    if name.startswith("constant"):
        name, options["value"] = "constant", float(name.split()[1])
    if name in ("chowdhury-gopalan", "actsafe"):
        options["max_data"] = STEPS
    made = make_bound(name, **options)
    assert isinstance(made, ClosedForm)
    return made


def _beta(seen: Histories, bound: ClosedForm, regularizer: float) -> Tensor:
    """β of every run after every number of observations, (runs, N + 1)."""
    count = torch.arange(seen.gain.shape[1], dtype=torch.float64).expand_as(seen.gain)
    lam, log = torch.tensor(regularizer, dtype=torch.float64), math.log(1 / bound.delta)
    return bound.formula(seen.gain, count, lam, norm=bound.norms(1), noise=bound.noise(1), log_inv_delta=log)


def escaped(seen: Histories, truth: Tensor, bound: ClosedForm, regularizer: float) -> Tensor:
    """Share of runs whose truth has been outside the band anywhere at some step ≤ n, n = 0 … N, (N + 1,)."""
    beta = _beta(seen, bound, regularizer).unsqueeze(-1)
    off = (truth.unsqueeze(1) - seen.mean).abs() > beta * seen.std + 1e-9
    outside = off.any(-1)
    if bound.frequentist:
        outside = outside | (truth.abs() > bound.norms(1) + 1e-9).any(-1, keepdim=True)
    return outside.cummax(1).values.double().mean(0)


def model_of(form: str, seen: Histories, run: int, count: int, regularizer: float) -> GP:
    """The exact model of one run after `count` observations."""
    model = GP.create(FORMS[form](SMOOTH), regularizer, nx=1, nu=0, noise_std=NOISE)
    if count:
        z = points()[seen.chosen[run, :count]]
        model = model.condition_on(z, seen.seen[run, :count].unsqueeze(-1))
    return model


def draw(
    figure: Figure,
    *,
    bound: str,
    kernel: str,
    design: Design,
    truth: str,
    norm: float,
    noise: float,
    regularizer: float,
    delta: float,
    n: int,
    run: int,
) -> None:
    """The band of one run after n observations, and the share of all runs whose truth has escaped so far."""
    seen, functions = watched(kernel, truth, design, regularizer), truths(kernel, truth)
    model, stated = model_of(kernel, seen, run, n, regularizer), bound_of(bound, norm, noise, delta)
    refusal = stated.refusal(model)
    if refusal is not None:
        stated = bound_of(bound, norm, noise, delta, unchecked=True)
    low, high = ConfidenceSet(stated).update(model).bounds(points())
    share = escaped(seen, functions, stated, regularizer)
    x, theorem = points()[:, 0], stated.sound and refusal is None
    band, count = panels(figure, 1, 2, width_ratios=(1.5, 1))
    data = (x[seen.chosen[run, :n]], seen.seen[run, :n])
    look = "band" if theorem else "unsafe"
    plotting.band(band, x, low[:, 0], high[:, 0], mean=model.posterior(points())[0][:, 0], truth=functions[run],
                  data=data, noun=look, label="mean")  # fmt: skip
    band.set(xlabel="z", ylabel="f(z)", xlim=(0, 1), ylim=(-2.6, 2.6), xticks=(0, 0.5, 1), yticks=(-2, 0, 2))
    why = "a theorem, if what it assumes is true" if theorem else f"no theorem: {_told(refusal)}"
    band.set_title(f"{bound}, β = {float(stated.beta(model)[0]):.3g}\n{why}", loc="left")
    band.legend(loc="lower left", ncols=3)
    steps = torch.arange(len(share))
    style = plotting.look("claim" if theorem else "control")
    count.step(steps, 100 * share, where="post", color=style.colour)
    count.plot(n, 100 * share[n], "o", color=style.colour)
    if not bound.startswith("constant"):
        plotting.limit(count, 100 * delta, label=f"δ = {delta:g}")
    count.set(
        xlim=(0, STEPS),
        ylim=(-2, 102),
        xticks=(0, 10, 20, 30),
        yticks=(0, 50, 100),
        xlabel="observations n",
        ylabel="escaped so far (% of runs)",
    )
    count.set_title(
        f"by n = {n} the truth has left the band\nin {round(RUNS * float(share[n]))} of {RUNS} runs", loc="left"
    )


def _told(refusal: str | None) -> str:
    if refusal is None:
        return "a number chosen by hand"
    if "1 + 2/max_data" in refusal:
        return "it holds for λ = 1 + 2/N only"
    return "it holds for λ = R² only" if refusal.startswith("lambda = subgaussian") else refusal


def broken(*, design: Design, delta: float = 0.1) -> list[tuple[str, float]]:
    """What is assumed, and the share of runs that escaped within N observations: the mixture bound first, then its controls."""
    cases = (  # name, bound, truth, B, R
        ("mixture bound, all true", "mixture", "as assumed", 1.0, NOISE),
        ("mixture bound, B half of ‖f‖", "mixture", "twice the norm", 1.0, NOISE),
        ("mixture bound, R a fifth of the noise", "mixture", "as assumed", 1.0, NOISE / 5),
        ("mixture bound, f half as smooth", "mixture", "half the length-scale", 1.0, NOISE),
        ("ActSafe's form on λ = σ²", "actsafe", "as assumed", 1.0, NOISE),
        ("β = 2 by hand", "constant 2", "as assumed", 1.0, NOISE),
        ("β = 3 by hand", "constant 3", "as assumed", 1.0, NOISE),
    )
    lam, rows = 0.01, []
    for told, name, truth, norm, noise in cases:
        seen = watched("RBF", truth, design, lam)
        stated = bound_of(name, norm, noise, delta, unchecked=name == "actsafe")
        rows.append((told, float(escaped(seen, truths("RBF", truth), stated, lam)[-1])))
    return rows


def draw_broken(axes: Axes, delta: float = 0.1) -> Axes:
    """`broken` for both designs, with Clopper-Pearson intervals of 95 %, in % of the runs."""
    for offset, design in zip((-0.16, 0.16), DESIGNS, strict=True):
        for place, (_, share) in enumerate(broken(design=design, delta=delta)):
            low, high = clopper_pearson(round(RUNS * share), RUNS, 0.95)
            style, filled = plotting.look("control" if place else "claim"), "full" if design == "uniform" else "none"
            axes.plot([100 * low, 100 * high], [place + offset] * 2, color=style.colour, linewidth=1.2)
            label = f"{design} design" if not place else None
            axes.plot(100 * share, place + offset, "o", color=style.colour, fillstyle=filled, label=label)
    rows = broken(design=DESIGNS[0], delta=delta)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(
        xlim=(-2, 102), ylim=(len(rows) - 0.5, -0.5), xlabel=f"escaped within {STEPS} observations (% of {RUNS} runs)"
    )
    return plotting.legend_beside(plotting.limit(axes, 100 * delta, upright=True, label=f"δ = {delta:g}"))


WIDE = (
    ("mixture", NOISE**2),
    ("abbasi-yadkori", NOISE**2),
    ("srinivas", NOISE**2),
    ("chowdhury-gopalan", 1 + 2 / STEPS),
)


def widths(delta: float = 0.1) -> dict[str, Tensor]:
    """βσ_n, mean over the axis and the runs of the uniform design, n = 1 … N, of bounds on models that they hold for."""
    found = {}
    for name, lam in WIDE:
        seen, stated = watched("RBF", "as assumed", "uniform", lam), bound_of(name, 1.0, NOISE, delta)
        half = _beta(seen, stated, lam).unsqueeze(-1) * seen.std
        found[f"{name}, λ = {_lambda(lam)}"] = half.mean((0, 2))[1:]
    return found


def draw_widths(axes: Axes, delta: float = 0.1) -> Axes:
    """`widths` against n, beside what is known without any observation."""
    found = widths(delta)
    for (name, width), style in zip(found.items(), plotting.looks(found).values(), strict=True):
        axes.plot(range(1, STEPS + 1), width, label=name, **style.line)
    axes.plot([1, STEPS], [1.0, 1.0], label="no data: |f| ≤ B", linewidth=0.9, **plotting.look("limit").line)
    axes.set(xlabel="observations n", ylabel="mean half-width of the band", yscale="log", xlim=(1, STEPS))
    return plotting.label_ends(axes)


def _lambda(value: float) -> str:
    return "1 + 2/N" if math.isclose(value, 1 + 2 / STEPS) else f"{value:g}"


def explorer() -> Explorer:
    """The live band."""
    for kernel in FORMS:
        for truth in TRUTHS:
            truths(kernel, truth)  # once, so that no move waits for them
    return Explorer(
        draw,
        (10.0, 3.7),
        bound=Choice("bound", BOUNDS),
        kernel=Choice("kernel", tuple(FORMS)),
        design=Choice("design", DESIGNS),
        truth=Choice("the truth is", TRUTHS),
        norm=Slider("B", (0.25, 0.5, 1.0, 2.0, 4.0), 1.0),
        noise=Slider("R", (0.02, 0.05, 0.1, 0.2, 0.4), NOISE),
        regularizer=Slider("λ", (0.001, 0.01, 0.1, 1.0, 1 + 2 / STEPS), 0.01, _lambda),
        delta=Slider("δ", (0.01, 0.05, 0.1, 0.2, 0.5), 0.1),
        n=Slider("n", range(STEPS + 1), 12),
        run=Slider("run", range(12), 0, lambda k: str(k + 1)),
    )
