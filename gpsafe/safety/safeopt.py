"""SafeOpt's sets over a finite class: safe points, potential expanders, potential maximisers, and the point it asks for.

Functions f_0 … f_{q−1} of P points are measured with noise. f_i ≥ h_i is required of every i with h_i > −∞, and f_0 is to be
large; with q = 1 one function is both, as in the first paper. What is known of them are intervals [l_i, u_i].

[SGBK] Sui, Gotovos, Burdick & Krause, "Safe exploration for optimization with Gaussian processes", ICML 2015, Algorithm 1:

    line 5   C_n(a) = C_{n−1}(a) ∩ Q_{n−1}(a),   Q = μ ± βσ,   C_0 = [h, ∞) on S_0, ℝ elsewhere
    line 6   S_n = ∪_{a ∈ S_{n−1}} {a′ : l_n(a) − L d(a, a′) ≥ h}
    line 7   G_n = {a ∈ S_n : g_n(a) > 0},   g_n(a) = |{a′ ∉ S_n : u_n(a) − L d(a, a′) ≥ h}|
    line 8   M_n = {a ∈ S_n : u_n(a) ≥ max_{S_n} l_n}
    line 9   a_n = argmax over G_n ∪ M_n of w_n = u_n − l_n

[BKS] Berkenkamp, Krause & Schoellig, "Bayesian optimization with safety constraints" (SafeOpt-MC), Machine Learning 2021
(arXiv 1602.04450), for several functions: S_n is the intersection over the constraints of line 6, g_n counts the a′ with
u_n^i(a) − L d ≥ h_i for *some* constraint i (`agree` = "some"), the width is max_i w_n^i, M_n is of f_0 alone.

[BSK] Berkenkamp, Schoellig & Krause, "Safe controller optimization for quadrotors with Gaussian processes", ICRA 2016
(arXiv 1509.01066), without L: S_n = {l_n ≥ h}, and g_n counts the a′ ∉ S_n with l_{n,(a, u_n(a))}(a′) ≥ h, the lower bound of
the posterior that has also seen the value u_n(a) at a.

The released program (`safeopt` 0.16) is a fourth version: no intersection (Q_n itself), S_n = {l > h for all i} without S_0,
and a is an expander if *every* constraint has *some* a′ of its own (`agree` = "every"). `SafeOptRule.released` is that one.

**What it proves** (theory §4.6; `safeopt-safe`, `safeopt-reaches`). On the event that all intervals hold at once, and for
S_0 safe and (with L) every f_i L_i-Lipschitz in d, every point of S_n has f_i ≥ h_i: by induction, f_i(a′) ≥ f_i(a) − L_i d ≥
l_i(a) − L_i d. Without L the intervals are enough. G_n, M_n and the choice among them carry no claim of safety beyond S_n; with
L and `agree` = "some", S_n holds what is reachable with ε to spare once all of them are known to within ε and S_n stands still.
What the intervals rest on is the confidence bound's to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.rounding import EPS
from gpsafe.models._prior import known_part
from gpsafe.models.gp import GP
from gpsafe.sets.zonotope import HUGE

Agree = Literal["some", "same", "every"]


@short
@dataclass(frozen=True, slots=True, eq=False)
class Beliefs:
    """What q posteriors say of q functions at P points.

    Attributes:
        mean, half: μ and the half-width of Q = μ ± half, (P, q).
        covariance: between the points, (q, P, P); None where nobody asks for it (it is [BSK]'s g_n that does).
        beta: β of every function, (q,).
        regularizer: λ of every function, (q,).
    """

    mean: Tensor
    half: Tensor
    beta: Tensor
    regularizer: Tensor
    covariance: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "half", "beta", "regularizer", "covariance"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _require.floats("Beliefs", name, getattr(self, name)))

    @staticmethod
    def of(
        models: Sequence[GP], bounds: Sequence[ConfidenceBound], points: Tensor, *, covariance: bool = True
    ) -> Beliefs:
        """From one model of one output per function; `half` is the bound's, so rounded outwards.

        Args:
            models, bounds: q of each.
            points: (P, d).
            covariance: whether it is computed.
        """
        if len(models) != len(bounds) or not models:
            raise _require.fail("Beliefs", "as many bounds as models, at least one", (len(models), len(bounds)))
        for model in models:
            check_model("Beliefs", model, points)
        means, halves, betas = [], [], []
        for model, bound in zip(models, bounds, strict=True):
            low, high = bound.interval(model, points)
            means.append(0.5 * (low + high)[:, 0])
            # μ ± half holds [low, high] as it is computed: three roundings.
            halves.append((0.5 * (high - low) + 2 * EPS * (low.abs() + high.abs()))[:, 0])
            betas.append(bound.beta(model)[0])
        joint = torch.stack([model.covariance(points)[0] for model in models]) if covariance else None
        regularizer = torch.cat([model.regularizer for model in models])
        return Beliefs(torch.stack(means, -1), torch.stack(halves, -1), torch.stack(betas), regularizer, joint)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Q = [μ − half, μ + half], (P, q) each; all of ℝ where μ is no number, or the half-width none ≥ 0."""
        known = (self.mean.abs() <= HUGE) & (self.half >= 0)
        low, high = self.mean - self.half, self.mean + self.half
        return torch.where(known, low, -torch.inf), torch.where(known, high, torch.inf)


def check_model(where: str, model: GP, points: Tensor) -> None:
    """Refuses a model that is not one of a single function at the points (P, d): what a GP knows is f − its known part."""
    if (model.num_outputs, model.nx + model.nu) != (1, points.shape[-1]):
        got = f"{model.num_outputs} of {model.nx + model.nu}"
        raise _require.fail(where, f"models of one output over {points.shape[-1]} parameters", got)
    points = points.to(torch.float64)
    known = known_part(where, model.prior, points[..., : model.nx], points[..., model.nx :])[..., list(model.outputs)]
    if bool((known != 0).any()):
        got = type(model.prior).__name__
        raise _require.fail(where, "models of the functions themselves, without a known part (GP.regression)", got)


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeOptSets:
    """One iteration.

    Attributes:
        lower, upper: l_n and u_n, (P, q).
        safe, expanders, maximisers: S_n, G_n and M_n, (P,) Boolean.
    """

    lower: Tensor
    upper: Tensor
    safe: Tensor
    expanders: Tensor
    maximisers: Tensor

    @property
    def width(self) -> Tensor:
        """w_n = u_n − l_n, (P, q)."""
        return self.upper - self.lower

    @property
    def candidates(self) -> Tensor:
        """G_n ∪ M_n, (P,)."""
        return self.expanders | self.maximisers

    def __len__(self) -> int:
        """|S_n|."""
        return int(self.safe.sum())


def intersect(before: SafeOptSets, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """C_n = C_{n−1} ∩ Q (line 5), (P, q) each; NaN in Q changes nothing. Empty intervals (l > u) stay as they are."""
    lower = torch.where(low > before.lower, low, before.lower)
    return lower, torch.where(high < before.upper, high, before.upper)


def lipschitz_safe(
    before: Tensor, lower: Tensor, distance: Tensor, lipschitz: Tensor, threshold: Tensor, *, strict: bool = False
) -> Tensor:
    """S_n of line 6, for every constraint: a′ for which each i has some a ∈ S_{n−1} with l_i(a) − L_i d(a, a′) ≥ h_i, (P,).

    Args:
        before: S_{n−1}, (P,).
        lower: l_n, (P, q).
        distance: d, (P, P).
        lipschitz: L_i ≥ 0, (q,).
        threshold: h_i, (q,); −inf where f_i is no constraint.
        strict: > instead of ≥.

    A distance that is no number ≥ 0, or an infinite bound, vouches for nobody.
    """
    where = "lipschitz_safe"
    lower, distance = (_require.floats(where, "lower, distance", value) for value in (lower, distance))
    lipschitz = _require.nonnegative(where, "lipschitz", lipschitz)
    found = torch.ones_like(before)
    for i in constrained(threshold):
        known = (distance >= 0) & (lower[:, i, None] <= HUGE)
        value = torch.where(known, lower[:, i, None] - lipschitz[i] * distance, -torch.inf)
        reached = (value > threshold[i]) if strict else (value >= threshold[i])
        found &= (reached & before[:, None]).any(0)
    return found


def confident_safe(lower: Tensor, threshold: Tensor, *, strict: bool = False) -> Tensor:
    """{a : l_i(a) ≥ h_i for all i}, (P,): [BSK]'s S_n. See `lipschitz_safe`."""
    rows = constrained(threshold)
    found = lower[:, rows] > threshold[rows] if strict else lower[:, rows] >= threshold[rows]
    return found.all(-1)


def maximisers(safe: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """M_n of line 8, of f_0: (P,) from S_n (P,), l_n and u_n (P, q)."""
    best = torch.where(safe & ~lower[:, 0].isnan(), lower[:, 0], -torch.inf).amax()
    return safe & (upper[:, 0] >= best)


def lipschitz_expanders(
    safe: Tensor, upper: Tensor, distance: Tensor, lipschitz: Tensor, threshold: Tensor, *, agree: Agree = "some"
) -> Tensor:
    """G_n of line 7: a ∈ S_n with u_i(a) − L_i d(a, a′) ≥ h_i for an a′ ∉ S_n, (P,). See `lipschitz_safe`.

    Args:
        agree: "some": for some constraint i; "same": for all i at one a′; "every": for every i at some a′ of its own.
    """
    reached = [upper[:, i, None] - lipschitz[i] * distance >= threshold[i] for i in constrained(threshold)]
    return safe & _agreed(reached, safe, agree)


def optimistic_expanders(
    safe: Tensor, upper: Tensor, beliefs: Beliefs, threshold: Tensor, *, agree: Agree = "same"
) -> Tensor:
    """[BSK]'s G_n: a ∈ S_n that would make some a′ ∉ S_n safe if the value u_i(a) were seen at a, (P,). See
    `lipschitz_expanders`.

    All pairs at once, by the rank-one update of the posterior with c = cov(a, a′):

        μ′(a′) = μ(a′) + c (u(a) − μ(a))/(σ²(a) + λ),      σ′²(a′) = σ²(a′) − c²/(σ²(a) + λ),      l′ = μ′ − βσ′.
    """
    if beliefs.covariance is None:
        raise _require.fail("optimistic_expanders", "beliefs with a covariance", None)
    reached = []
    for i in constrained(threshold):
        joint, mean = beliefs.covariance[i], beliefs.mean[:, i]
        variance = joint.diagonal()
        gain = joint / (variance + beliefs.regularizer[i]).unsqueeze(-1)
        shifted = mean + gain * (upper[:, i] - mean).unsqueeze(-1)
        rest = (variance - gain * joint).clamp_min(0.0).sqrt()
        reached.append(shifted - beliefs.beta[i] * rest >= threshold[i])
    return safe & _agreed(reached, safe, agree)


def constrained(threshold: Tensor) -> list[int]:
    """Which f_i are constraints. A NaN is no way to say that one is none."""
    if bool(threshold.isnan().any()):
        raise _require.fail("SafeOptSets", "a threshold (q,), numbers or -inf", threshold.tolist())
    return [i for i, h in enumerate(threshold.tolist()) if h > -math.inf]


def _agreed(reached: list[Tensor], safe: Tensor, agree: Agree) -> Tensor:
    """Which rows reach an outsider, see `lipschitz_expanders`."""
    if not reached:  # nothing is required of anybody: nobody is outside
        return torch.zeros_like(safe)
    pairs = torch.stack(reached) & ~safe
    if agree == "every":
        return pairs.any(-1).all(0)
    return (pairs.any(0) if agree == "some" else pairs.all(0)).any(-1)


@short
@dataclass(frozen=True, slots=True, eq=False)
class SafeOptRule:
    """Which version of the sets: see the module.

    Args:
        threshold: h, (q,); −inf where f_i is no constraint. f_0 is what is to be large.
        lipschitz: L, (q,), with which S_n and G_n are those of [SGBK] and [BKS]; None: those of [BSK].
        agree: among several constraints, see `lipschitz_expanders`.
        intersect: C_n = C_{n−1} ∩ Q_n, from [h, ∞) on S_0; False: Q_n alone, and S_0 is forgotten.
        own: S_n of [BSK] also where there is an L, which then serves G_n alone.
        strict: l > h where the papers have ≥.
        scaling: w_i is divided by it where widths of different functions are compared, (q,); 1 if None.
    """

    threshold: Tensor
    lipschitz: Tensor | None = None
    agree: Agree = "some"
    intersect: bool = True
    own: bool = False
    strict: bool = False
    scaling: Tensor | None = None

    def __post_init__(self) -> None:
        where = "SafeOptRule"
        threshold = _require.floats(where, "threshold", self.threshold)
        if threshold.ndim != 1 or not bool((threshold < torch.inf).all()):
            raise _require.fail(where, "a threshold (q,), numbers or -inf", threshold.tolist())
        if bool((threshold == -torch.inf).all()):
            raise _require.fail(where, "at least one constraint", threshold.tolist())
        _require.one_of(where, "agree", self.agree, get_args(Agree))
        object.__setattr__(self, "threshold", threshold)
        for name, check in (("lipschitz", _require.nonnegative), ("scaling", _require.positive)):
            value = getattr(self, name)
            if value is not None:
                value = _require.shape(where, name, check(where, name, value), tuple(threshold.shape))
                object.__setattr__(self, name, value)

    @staticmethod
    def released(threshold: Tensor, *, lipschitz: Tensor | None = None, scaling: Tensor | None = None) -> SafeOptRule:
        """As the program `safeopt` 0.16 computes them (`compute_sets` with all expanders)."""
        return SafeOptRule(threshold, lipschitz, "every", intersect=False, own=True, strict=True, scaling=scaling)

    @property
    def needs_covariance(self) -> bool:
        """Whether `step` asks for it."""
        return self.lipschitz is None

    def start(self, num: int, initial: Sequence[int] | Tensor | slice) -> SafeOptSets:
        """n = 0: C_0 (lines 1 and 2) and S_0, which is assumed safe; nothing else is known."""
        safe = torch.zeros(num, dtype=torch.bool)
        safe[_require.indices("SafeOptRule.start", "S_0", initial, num)] = True
        if not bool(safe.any()):
            raise _require.fail("SafeOptRule.start", "a non-empty S_0", initial)
        lower = torch.full((num, len(self.threshold)), -torch.inf, dtype=torch.float64)
        lower[safe] = self.threshold
        return SafeOptSets(lower, torch.full_like(lower, torch.inf), safe, torch.zeros_like(safe), safe.clone())

    def step(self, before: SafeOptSets, beliefs: Beliefs, distance: Tensor | None = None) -> SafeOptSets:
        """Iteration n from n − 1 and the beliefs after n − 1 measurements.

        Args:
            before: of iteration n − 1.
            beliefs: of q functions at P points.
            distance: d, (P, P); needed with `lipschitz`.
        """
        num, q = before.lower.shape
        _require.shape("SafeOptRule.step", "beliefs.mean", beliefs.mean, (num, q))
        low, high = beliefs.ends()
        lower, upper = intersect(before, low, high) if self.intersect else (low, high)
        if self.lipschitz is not None:
            if distance is None:
                raise _require.fail("SafeOptRule.step", "a distance (P, P) beside the Lipschitz constants", None)
            _require.shape("SafeOptRule.step", "distance", distance, (num, num))
        if self.lipschitz is None or self.own:
            safe = confident_safe(lower, self.threshold, strict=self.strict)
        else:
            assert distance is not None
            safe = lipschitz_safe(before.safe, lower, distance, self.lipschitz, self.threshold, strict=self.strict)
        sets = SafeOptSets(lower, upper, safe, torch.zeros_like(safe), maximisers(safe, lower, upper))
        if self.lipschitz is None:
            expanders = optimistic_expanders(safe, upper, beliefs, self.threshold, agree=self.agree)
        else:
            assert distance is not None
            expanders = lipschitz_expanders(safe, upper, distance, self.lipschitz, self.threshold, agree=self.agree)
        return replace(sets, expanders=expanders)

    def choose(self, sets: SafeOptSets, among: Tensor | None = None) -> int:
        """a_n of line 9: the widest of G_n ∪ M_n (or of `among`), the first of several, by max_i w_i/scaling_i.

        Raises:
            ValueError: if there is none.
        """
        among = sets.candidates if among is None else among
        if not bool(among.any()):
            raise _require.fail("SafeOptRule.choose", "a point to choose from", "none")
        width = sets.width if self.scaling is None else sets.width / self.scaling
        widest = torch.where(among, width.amax(-1).nan_to_num(nan=-torch.inf), -torch.inf)
        return int(torch.nonzero(among & (widest == widest.amax()))[0])
