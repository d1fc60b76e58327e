"""The price of an admission of SafeOpt's: the chance of the noise under which it may be unsafe (theory §4.6).

Of all functions within B under which the admitted point is unsafe and S_0 safe, the one that leaves the noise its smallest
martingale W (theory §2.2). By Ville P(W ≥ w) ≤ 1/w, so a price 1/W above δ is an unsafe policy that was admitted at less than
the theorem takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceBound, Constant, Mixture
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.safety.safeopt import Beliefs, SafeOptRule, SafeOptSets
from gpsafe.verdict import worst_of

DELTA = 0.1
TIGHT = 1e-9  # by how much values of a function may miss a limit: rounding
UNION = 1.0  # of the union over constraints


@dataclass(frozen=True, eq=False)
class Case:
    """A class of P points and what is believed of the q functions on it, which share kernel, λ, B and R.

    Attributes:
        points: (P, 1).
        lengthscale, regularizer, norm, noise: of the RBF kernel of variance 1, λ, B, R.
        rule: thresholds h and Lipschitz constants L.
        initial: S_0.
    """

    points: Tensor
    lengthscale: float
    regularizer: float
    norm: float
    noise: float
    rule: SafeOptRule
    initial: tuple[int, ...]

    @property
    def constraints(self) -> list[int]:
        """Which functions are constraints."""
        return [i for i, h in enumerate(self.rule.threshold.tolist()) if h > -math.inf]

    @property
    def gram(self) -> Tensor:
        """(P, P)."""
        return torch.exp(-0.5 * ((self.points - self.points.T) / self.lengthscale).square())

    def bound(self, broken: bool) -> ConfidenceBound:
        """Of each function, with its share of δ; the control's is by hand."""
        if broken:
            return Constant(value=2.0)
        share = 1 + UNION * (len(self.constraints) - 1)
        return Mixture(rkhs_norm=self.norm, subgaussian=self.noise, delta=DELTA / share)


@dataclass(frozen=True, eq=False)
class Run:
    """What was measured and what came of it: asked points (N,), y (N, q), S_0, and the sets after 0 … N measurements."""

    asked: list[int]
    seen: Tensor
    sets: list[SafeOptSets]


def run(case: Case, measure: Callable[[int, int], Tensor], steps: int, broken: bool) -> Run:
    """SafeOpt on measurements (n, point) → (q,)."""
    q, gaps = len(case.rule.threshold), (case.points - case.points.T).abs()
    kernel = kernels.rbf(case.lengthscale)
    models = [GP.regression(kernel, dim=1, noise_std=math.sqrt(case.regularizer))] * q
    sets, asked, seen = [case.rule.start(len(case.points), case.initial)], list[int](), list[Tensor]()
    for n in range(steps + 1):
        beliefs = Beliefs.of(models, [case.bound(broken)] * q, case.points, covariance=case.rule.needs_covariance)
        sets.append(case.rule.step(sets[-1], beliefs, gaps))
        if n == steps or not bool(sets[-1].candidates.any()):
            break
        asked.append(case.rule.choose(sets[-1]))
        seen.append(measure(n, asked[-1]))
        at = case.points[asked[-1] :][:1]
        models = [m.condition_on(at, y.reshape(1, 1)) for m, y in zip(models, seen[-1], strict=True)]
    return Run(asked, torch.stack(seen) if seen else torch.zeros(0, q, dtype=torch.float64), sets)


# ------------------------------------------------------------------ what an admitted policy costs
def cheapest(case: Case, asked: list[int], y: Tensor, levels: Mapping[int, float]) -> tuple[Tensor, Tensor] | None:
    """f on the points (P,) with ‖f‖ ≤ B, f = `levels` at some of them, that is nearest to the measurements, and W_0 … W_n.

    f minimises ‖y − f(X)‖² + η‖f‖² subject to the levels: a representer of X and of their points, and ‖f‖ falls in η. None if
    no f in the ball has the levels.
    """
    gram, seen, at = case.gram, torch.tensor(asked, dtype=torch.int64), torch.tensor(list(levels), dtype=torch.int64)
    own, cross, rows = gram[seen][:, seen], gram[seen][:, at], torch.cat([seen, at])
    values, eye = torch.tensor(list(levels.values()), dtype=torch.float64), torch.eye(len(y), dtype=torch.float64)

    def member(eta: float) -> tuple[Tensor, float]:
        solved = torch.linalg.solve(own + eta * eye, torch.cat([y.unsqueeze(-1), cross], -1))
        weights = torch.linalg.solve(gram[at][:, at] - cross.T @ solved[:, 1:], values - cross.T @ solved[:, 0])
        spread = torch.cat([solved[:, 0] - solved[:, 1:] @ weights, weights])
        return gram[:, rows] @ spread, float(spread @ gram[rows][:, rows] @ spread)

    low, high, within = -14.0, 14.0, case.norm**2 * (1 + 1e-9)
    if member(math.exp(high))[1] > within:
        return None
    for _ in range(45):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if member(math.exp(middle))[1] <= within else (middle, high)
    f, lam = member(math.exp(high))[0], case.regularizer
    root = torch.linalg.cholesky(eye + own / lam)
    white = torch.linalg.solve_triangular(root, y.unsqueeze(-1), upper=False)[:, 0]
    energy = ((y - f[seen]).square() - white.square()) / (2 * case.noise**2) - root.diagonal().log()
    return f, torch.cat([torch.zeros(1, dtype=torch.float64), energy.cumsum(0)]).clamp_max(700.0).exp()


def unsafe(case: Case, i: int, asked: list[int], y: Tensor, point: int) -> Tensor | None:
    """W_0 … W_n of an f_i that is h at the point, safe on S_0, of slope L, and else near what was measured; None if none is.

    Whatever would be too high beside the point, or too low on S_0, is held at its limit, one after another.
    """
    h, count = float(case.rule.threshold[i]), len(case.points)
    gaps = torch.full((count, count), torch.inf, dtype=torch.float64)
    if case.rule.lipschitz is not None:
        gaps = case.rule.lipschitz[i] * (case.points - case.points.T).abs()
    high, low = h + gaps[point], torch.full((count,), -torch.inf, dtype=torch.float64)
    low[list(case.initial)] = h
    levels = {point: h}
    while (told := cheapest(case, asked, y, levels)) is not None:
        f, path = told
        over, under = f - high, low - f
        worst = int(torch.maximum(over, under).argmax())
        if max(float(over[worst]), float(under[worst])) <= TIGHT:
            return path if bool(((f[:, None] - f).abs() <= gaps + TIGHT).all()) else None
        if worst in levels:
            return None
        levels[worst] = float(high[worst] if over[worst] > TIGHT else low[worst])
    return None


def price(case: Case, found: Run, n: int, point: int) -> float:
    """1/W of the cheapest way in which a point that was admitted after n measurements may be unsafe; 0 if there is none.

    W is the largest so far of the mean of the constraints' martingales; all but one function keep to what explains their
    measurements best.
    """
    asked = found.asked[:n]
    best = [cheapest(case, asked, found.seen[:n, j], {}) for j in case.constraints]
    paths = torch.stack([told[1] for told in best if told is not None])
    prices = [0.0]
    for j, i in enumerate(case.constraints):
        path = unsafe(case, i, asked, found.seen[:n, i], point)
        if path is not None:
            prices.append(1 / float(torch.cat([paths[:j], path.unsqueeze(0), paths[j + 1 :]]).mean(0).amax()))
    return worst_of(prices)


def prices(case: Case, found: Run) -> list[float]:
    """Of all that were admitted, when they were."""
    return [
        price(case, found, n, int(a))
        for n in range(len(found.sets) - 1)
        for a in torch.nonzero(found.sets[n + 1].safe & ~found.sets[n].safe).flatten()
    ]
