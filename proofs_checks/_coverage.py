"""How the coverage checks judge trials: what it is to leave a bound, and graded controls of the terms of each bound."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from unittest import mock

import torch
from torch import Tensor

from gpsafe.confidence import AbbasiYadkori, ChowdhuryGopalan, ConfidenceBound, Fiedler, Lederer, Mixture, Srinivas
from gpsafe.confidence.bounds import ClosedForm
from gpsafe.confidence.dual_program import Program, Spectrum
from gpsafe.testbed.check import Grade

from ._defects import FACTORS, Scaled, around, scaled_argument, times
from ._handed_out import OUTPUTS, narrower
from ._regression import Deviations, Run

DUALS = 50  # trials of a shard whose dual intervals are computed (the set itself is tested in all)


def closed(make: Callable[..., ClosedForm], seen: Deviations, delta: float) -> tuple[Tensor, Tensor]:
    """Failures of μ ± βσ with the bound's own formula."""
    setting = seen.setting
    bound = make(rkhs_norm=setting.norm, subgaussian=setting.noise_std, delta=delta)
    ratio = seen.ratio(seen.beta(bound, delta))
    return ~(ratio <= 1), ratio


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
    return ~(ratio <= 1), ratio


def closed_ends(run: Run, bound: ConfidenceBound, count: int, delta: float) -> tuple[Tensor, Tensor]:
    """μ ∓ βσ with the bound's own formula, as `closed` judges it: see `_handed_out.Ends`."""
    assert isinstance(bound, ClosedForm)
    half = run.half_width(run.beta(bound, delta))[0, count]
    return run.mean[0, count] - half, run.mean[0, count] + half


def lederer_ends(run: Run, bound: ConfidenceBound, count: int, delta: float) -> tuple[Tensor, Tensor]:
    """As `lederer` judges them."""
    assert isinstance(bound, Lederer)
    root = bound.grid_log(torch.tensor(count, dtype=torch.float64), math.log(1 / delta)).sqrt()
    drift, modulus = bound.moduli(run.setting.kernel(), OUTPUTS)
    mean = run.mean[0, count]
    half = root * run.std[0, count] + drift + (mean.abs().amax() + root) * modulus
    return mean - half, mean + half


def convex_ends(run: Run, bound: ConfidenceBound, count: int, delta: float) -> tuple[Tensor, Tensor]:
    """The ends of the program over {‖f(X) − y‖² ≤ fit + R²(2g_n + 2ln(1/δ)), ‖f‖ ≤ B}."""
    gram, y, cross = (part[0] for part in run.data(count))
    spectrum, lam = Spectrum.of(gram, y), run.setting.regularizer
    fit = (spectrum.targets.square() / (1 + spectrum.values / lam)).sum(-1)
    norm = torch.tensor(run.setting.norm, dtype=torch.float64)
    prior = torch.ones(cross.shape[-1], dtype=torch.float64)
    radius_sq = fit + beyond(run, delta)[0, count - 1]
    upper, lower, _, _ = Program(spectrum, spectrum.vectors.mT @ cross, prior, radius_sq, norm).solve()
    return lower, upper


def beyond(run: Run, delta: float) -> Tensor:
    """R²(2g_n + 2ln(1/δ)), n ≥ 1, (F, N): R_n² without the fit."""
    return run.setting.noise_std**2 * 2 * (run.info_gain[:, 1:] + math.log(1 / delta))


def convex(
    run: Run,
    delta: float,
    *,
    whole: bool = True,
    selected: Sequence[int] = (2, 5, 10, 20, 40, 60),
    duals: int = DUALS,
) -> tuple[Tensor, Tensor]:
    """Failures of f* ∈ C_n at every n, or of the dual interval at selected n; ``whole=False`` drops log det
    and ln(1/δ). An interval that misses what its set holds is no matter of chance: then all trials count as failed.

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
    extra = beyond(run, delta) if whole else 0.0
    outside = (~(errors.square().cumsum(-1) <= fit + extra)).any(-1)
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
    missed = ~(worst <= 1 + 1e-9)
    return outside | missed | (missed & ~outside).any(), worst[:duals]


PIECES = (4, 5, 6, 7)  # one of every setting, and none with a picture
FALLING = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)

_HERE = sys.modules[__name__]
_VACUOUS = (
    "300 γ ln³(n/δ) has room for it: a missing share of γ itself is noticed only where next to nothing of it is left"
)
_ROOM = "the 1 beside g and the sum B + R√(…) leave more room than the g of these trials is large"
_FINE = "between points of a grid of radius 1e-6 next to nothing happens, so that γ is far below the width"


def _formula(bound: type[ClosedForm], pieces: tuple[int, ...] = PIECES, gain_unseen: str = "") -> tuple[Grade, ...]:
    """Graded controls of β and of what its formula is made of."""
    parts: dict[str, Scaled] = {"β": around(bound, "formula", times)}
    for term, argument in {
        "norm B": "norm",
        "noise R": "noise",
        "gain g": "info_gain",
        "ln(1/δ)": "log_inv_delta",
    }.items():
        parts[term] = scaled_argument(bound, "formula", argument)
    return tuple(
        Grade(term, scaled, pieces, FALLING, gain_unseen if term == "gain g" else "") for term, scaled in parts.items()
    )


def tighter(factor: float) -> AbstractContextManager[object]:
    """R_n² without a share of its log det and ln(1/δ) terms, where f* is tested and where the intervals are computed."""
    radius_sq = Spectrum.radius_sq

    def less(self: Spectrum, scale: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        fit = (self.targets.square() / (1 + (scale / noise.square()).unsqueeze(-1) * self.values)).sum(-1)
        return fit + factor * (radius_sq(self, scale, noise, log_inv_delta) - fit)

    stack = ExitStack()
    stack.enter_context(mock.patch.object(Spectrum, "radius_sq", less))
    stack.enter_context(around(_HERE, "beyond", times)(factor))
    return stack


def _srinivas() -> tuple[Grade, ...]:
    norm, gain, log = (scaled_argument(Srinivas, "formula", name) for name in ("norm", "info_gain", "log_inv_delta"))
    return (
        Grade("β", around(Srinivas, "formula", times), PIECES, FALLING),
        Grade("norm B", norm, PIECES, FALLING),
        Grade("γ", gain, PIECES, (0.01, 1e-4, 1e-5, 0.0)),
        Grade("ln(1/δ)", log, PIECES, (0.5, 0.0), unseen=_VACUOUS),
    )


def _less_between(moduli: tuple[float, float], factor: float) -> tuple[float, float]:
    return factor * moduli[0], factor * moduli[1]


_GRADES: dict[str, tuple[Grade, ...]] = {
    "mixture": _formula(Mixture),
    "abbasi-yadkori": _formula(AbbasiYadkori),
    "fiedler": _formula(Fiedler),
    "chowdhury-gopalan": _formula(ChowdhuryGopalan, (1, 2, 4, 7, 10), _ROOM),
    "srinivas": _srinivas(),
    "convex-program": (
        Grade("R_n² without the fit", tighter, (6,), (0.9, 0.8, 0.7, 0.5, 0.3)),
        Grade("norm B", scaled_argument(_HERE, "Program", "norm"), (7,), (0.99, 0.95, 0.9)),
    ),
    "lederer": (
        Grade("b_n", around(Lederer, "grid_log", times), (1,), (0.5, 0.4, 0.3, 0.2, 0.1)),
        Grade(
            "γ_n between grid points",
            around(Lederer, "moduli", _less_between),
            (1,),
            (0.0,),
            unseen=_FINE,
        ),
    ),
}
_HANDED = (Grade("width handed out", narrower, (0,), FACTORS),)
GRADES = {
    name: found + (_HANDED if name in ("mixture", "convex-program", "lederer") else ())
    for name, found in _GRADES.items()
}
